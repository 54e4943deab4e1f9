//! The control socket: requests of `ringpost queue|stats|spool` to the running engine, passed on to the shards.
//!
//! Each connection carries one request. A slow or silent client holds a connection, never a shard: shards answer into memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::{Duration, Instant},
};

use ringpost_engine::{
    control::{Answer, Change, ChangeOrder, Command, DestinationSummary, ListQuery, PAGE_MESSAGES_MAX, Selection},
    request_lane::RequestLane,
};
use ringpost_queue::QueueId;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::warn;

use crate::{
    cluster::ClusterNode,
    cluster_server,
    control_wire::{End, NotChanged, NotDone, Progress, REQUEST_BYTES_MAX, WhyLine, WireRequest, too_long},
    counter_sums::counter_sums,
    handover::{AWAY_MAX, SharedDelivery},
    in_turn,
    pauser::Pauser,
    reloader::Reloader,
    resolver::DnsCounters,
    shard_call::{ShardGone, answer_of},
    spool_supply::SpoolSupply,
};

/// Control connections at once; a further one is told so and closed.
const CONNECTIONS_MAX: usize = 64;
/// A client that neither asks nor reads for so long is dropped.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Who connects asks at once: others wait for the place.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A shard answers within milliseconds, or when it has loaded the mail of earlier runs; one that does not is reported.
const SHARD_TIMEOUT: Duration = Duration::from_secs(100);

/// How often who waits for a change is told that it goes on; callers wait for two minutes without a word.
const CHANGE_PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// How often who waits for a drain is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Why a request was not answered in full; a sentence for the operator.
type Refusal = String;

/// Serves requests over a socket.
pub struct ControlServer {
    shards: Arc<Vec<Arc<RequestLane>>>,
    dns: Arc<DnsCounters>,
    cluster: Option<ClusterNode>,
    reloader: Arc<Reloader>,
    pauser: Arc<Pauser>,
    sharing: Option<SharedDelivery>,
    connections: Arc<AtomicUsize>,
}

impl ControlServer {
    /// Over the request lanes of all shards, in order of their numbers.
    pub fn new(
        shards: Arc<Vec<Arc<RequestLane>>>,
        dns: Arc<DnsCounters>,
        reloader: Arc<Reloader>,
        pauser: Arc<Pauser>,
        cluster: Option<ClusterNode>,
        sharing: Option<SharedDelivery>,
    ) -> Self {
        ControlServer { shards, dns, cluster, reloader, pauser, sharing, connections: Arc::default() }
    }

    /// Accepts for ever.
    pub async fn serve(&self, listener: &UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if self.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                        self.connections.fetch_sub(1, Ordering::Relaxed);
                        turn_away(&stream);
                        continue;
                    }
                    let (shards, dns) = (self.shards.clone(), self.dns.clone());
                    let (reloader, pauser) = (self.reloader.clone(), self.pauser.clone());
                    let (cluster, sharing, connections) = (self.cluster.clone(), self.sharing.clone(), self.connections.clone());
                    tokio::spawn(async move {
                        // A client that went away needs no answer.
                        let _ = converse(stream, &shards, &dns, &reloader, &pauser, cluster.as_ref(), sharing.as_ref()).await;
                        connections.fetch_sub(1, Ordering::Relaxed);
                    });
                }
                Err(reason) => {
                    warn!(%reason, "control socket: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// One too many. What it is told has room in the fresh socket's buffer, so nobody waits for it to be read.
fn turn_away(stream: &UnixStream) {
    let error = format!("the engine answers {CONNECTIONS_MAX} connections to its control socket at a time, and all are in use: try again");
    if let Ok(mut line) = serde_json::to_vec(&End { end: true, error: Some(error), is_unavailable: true, ..End::default() }) {
        line.push(b'\n');
        let _unheard = stream.try_write(&line);
    }
}

async fn converse(
    mut stream: UnixStream,
    shards: &[Arc<RequestLane>],
    dns: &DnsCounters,
    reloader: &Reloader,
    pauser: &Pauser,
    cluster: Option<&ClusterNode>,
    sharing: Option<&SharedDelivery>,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let request = timeout(REQUEST_TIMEOUT, read_request(read)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    // Whoever asks can tell an engine that is at work from one that is stopped.
    timeout(CLIENT_TIMEOUT, write.write_all(b"\n")).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let end: Result<u64, NotDone> = match request {
        Err(reason) => Err(reason.into()),
        Ok(WireRequest::Cluster { ask }) => match cluster_server::answer(ask, cluster).await {
            Err(reason) => Err(reason),
            Ok(lines) => {
                for line in &lines {
                    send(&mut write, line).await?;
                }
                Ok(lines.len() as u64)
            }
        },
        Ok(WireRequest::Reload {}) => reload(reloader, &mut write).await.map_err(NotDone::from),
        Ok(WireRequest::DrainToCluster {}) => drain(sharing, &mut write).await,
        Ok(request @ (WireRequest::QueuePause { .. } | WireRequest::QueuePaused {})) => {
            pause(request, pauser, &mut write).await.map_err(NotDone::from)
        }
        Ok(
            request @ (WireRequest::QueueList { .. }
            | WireRequest::QueueShow { .. }
            | WireRequest::QueueWhy { .. }
            | WireRequest::QueueSummary { .. }
            | WireRequest::Stats {}),
        ) => tell(request, shards, dns, sharing, &mut write).await.map_err(NotDone::from),
        Ok(request) => answer(request, shards, dns, sharing, &mut write).await.map_err(NotDone::from),
    };
    let end = match end {
        Ok(count) => End { end: true, count, ..End::default() },
        Err(NotDone::Refused(reason)) => End { end: true, error: Some(reason), ..End::default() },
        Err(NotDone::Config(reason)) => End { end: true, error: Some(reason), is_config: true, ..End::default() },
        Err(NotDone::Unavailable(reason)) => End { end: true, error: Some(reason), is_unavailable: true, ..End::default() },
    };
    send(&mut write, &end).await
}

/// What is asked, or why it is no request. Err: it did not come.
async fn read_request(stream: impl AsyncRead + Unpin) -> io::Result<Result<WireRequest, Refusal>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_until(b'\n', &mut line).await?;
    let is_cut = line.len() as u64 == REQUEST_BYTES_MAX && !line.ends_with(b"\n");
    Ok(serde_json::from_slice(&line).map_err(|reason| if is_cut { too_long() } else { format!("not a request: {reason}") }))
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), value: &impl Serialize) -> io::Result<()> {
    send_all(write, std::slice::from_ref(value)).await
}

/// A line of each, in one piece: who reads is woken once for all of them.
async fn send_all(write: &mut (impl AsyncWriteExt + Unpin), values: &[impl Serialize]) -> io::Result<()> {
    let mut lines = Vec::new();
    for value in values {
        serde_json::to_writer(&mut lines, value)?;
        lines.push(b'\n');
    }
    // Who reads slowly may: the time is for each step and not for all of them.
    let mut left = &lines[..];
    while !left.is_empty() {
        let written = timeout(CLIENT_TIMEOUT, write.write(left)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        left = &left[written..];
    }
    Ok(())
}

pub(crate) async fn ask(shard: &RequestLane, command: Command) -> Result<Answer, Refusal> {
    match timeout(SHARD_TIMEOUT, answer_of(shard, &command)).await {
        Ok(answer) => told(answer),
        Err(_) => Err(format!("a shard has not answered within {} s", SHARD_TIMEOUT.as_secs())),
    }
}

fn told(answer: Result<Answer, ShardGone>) -> Result<Answer, Refusal> {
    match answer {
        Ok(Answer::Failed(reason)) => Err(reason),
        Ok(answer) => Ok(answer),
        Err(gone) => Err(gone.to_string()),
    }
}

/// A page of a change, for as long as it takes: what a shard was told to do it does, and to be told "failed" of what is done later, as once a
/// large spool is loaded, would be no answer. `changed` before it is said again meanwhile, so that the caller knows that it is under way.
async fn ask_for_change(
    shard: &RequestLane,
    order: ChangeOrder,
    changed: u64,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> Result<Answer, Refusal> {
    let command = Command::Change(order);
    let call = answer_of(shard, &command);
    tokio::pin!(call);
    loop {
        match timeout(CHANGE_PROGRESS_EVERY, &mut call).await {
            Ok(Err(ShardGone::Meanwhile)) => {
                return Err("a shard ended before this was done: what was changed last may not be on disk; repeat it after the next start"
                    .to_owned());
            }
            Ok(answer) => return told(answer),
            // Who gave up waiting does not end what was begun: half of a change is nobody's wish.
            Err(_) => drop(send(write, &Progress { changed }).await),
        }
    }
}

async fn reload(reloader: &Reloader, write: &mut (impl AsyncWriteExt + Unpin)) -> Result<u64, Refusal> {
    let done = reloader.reload().await?;
    send(write, &done).await.map_err(|reason| reason.to_string())?;
    Ok(1)
}

async fn pause(request: WireRequest, pauser: &Pauser, write: &mut (impl AsyncWriteExt + Unpin)) -> Result<u64, Refusal> {
    let paused = match request {
        WireRequest::QueuePause { action, names, all } => pauser.change(action, names, all).await?,
        _ => pauser.paused().await,
    };
    send(write, &paused).await.map_err(|reason| reason.to_string())?;
    Ok(paused.changed.len() as u64)
}

/// Answers what changes nothing by what can be asked: in a drain shards end one after the other, and who still delivers can say so. What those
/// have that have ended is not known to be nothing.
async fn tell(
    request: WireRequest,
    shards: &[Arc<RequestLane>],
    dns: &DnsCounters,
    sharing: Option<&SharedDelivery>,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> Result<u64, Refusal> {
    let living: Vec<_> = shards.iter().filter(|shard| !shard.has_ended()).cloned().collect();
    let is_about_one = matches!(request, WireRequest::QueueShow { .. } | WireRequest::QueueWhy { .. });
    let count = answer(request, &living, dns, sharing, write).await?;
    let ended = shards.len() - living.len();
    if ended == 0 || is_about_one && count > 0 {
        return Ok(count);
    }
    Err(format!(
        "the node drains, and {ended} of its {} shards have ended: what they keep is not told, and is there at the next start",
        shards.len()
    ))
}

async fn answer(
    request: WireRequest,
    shards: &[Arc<RequestLane>],
    dns: &DnsCounters,
    sharing: Option<&SharedDelivery>,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> Result<u64, Refusal> {
    match request {
        WireRequest::Cluster { .. } | WireRequest::DrainToCluster {} => unreachable!("answered by the cluster's own server"),
        WireRequest::QueueList { query } => list(query, shards, sharing, write).await,
        WireRequest::QueueShow { id } => {
            let id = parse_id(&id)?;
            for shard in shards {
                if let Answer::Message(Some(mut view)) = ask(shard, Command::Show(id)).await? {
                    in_turn::correct(std::slice::from_mut(&mut *view), shards).await?;
                    sharing.into_iter().for_each(|sharing| sharing.correct(std::slice::from_mut(&mut *view)));
                    send(write, &view).await.map_err(|reason| reason.to_string())?;
                    return Ok(1);
                }
            }
            Ok(0)
        }
        WireRequest::QueueWhy { id } => {
            let id = parse_id(&id)?;
            let mut elsewhere = in_turn::elsewhere(id, shards).await?;
            elsewhere.unoffered = sharing.and_then(|sharing| sharing.unoffered(id)).map(|unoffered| unoffered.sentence());
            for shard in shards {
                if let Answer::Why(Some(why)) = ask(shard, Command::Why(id, elsewhere.clone())).await? {
                    send(write, &WhyLine { id: id.to_string(), why }).await.map_err(|reason| reason.to_string())?;
                    return Ok(1);
                }
            }
            Ok(0)
        }
        WireRequest::QueueSummary { destination } => summary(destination, shards, write).await,
        WireRequest::QueueChange { change, ids, filter, whole_messages } => {
            let selection = match (ids, filter) {
                // One that is named twice is changed once.
                (Some(ids), None) => {
                    let ids: BTreeSet<QueueId> = ids.iter().map(|id| parse_id(id)).collect::<Result<_, _>>()?;
                    Selection::Ids(ids.into_iter().collect())
                }
                (None, Some(filter)) => Selection::Matching(filter),
                _ => return Err("either ids or a filter says which messages are meant".to_owned()),
            };
            let order = ChangeOrder { change, selection, after: None, only_counts: false };
            if !whole_messages {
                refuse_partly_meant(&order, shards).await?;
            }
            change_all(&order, shards, write).await
        }
        WireRequest::Reload {} | WireRequest::QueuePause { .. } | WireRequest::QueuePaused {} => {
            unreachable!("they have ways of their own")
        }
        WireRequest::Stats {} => {
            let mut of_shards = Vec::with_capacity(shards.len());
            for shard in shards {
                if let Answer::Stats(counters) = ask(shard, Command::Stats).await? {
                    of_shards.push(counters);
                }
            }
            let mut sums = counter_sums(of_shards);
            sums.extend(dns.snapshot());
            #[cfg(feature = "count-allocations")]
            {
                let counted = stats_alloc::INSTRUMENTED_SYSTEM.stats();
                sums.insert("allocations", (counted.allocations + counted.reallocations) as u64);
            }
            send(write, &sums).await.map_err(|reason| reason.to_string())?;
            Ok(1)
        }
        WireRequest::SpoolPrepare { segments } => {
            let mut ahead = Vec::with_capacity(shards.len());
            for shard in shards {
                match ask(shard, Command::Ahead).await? {
                    Answer::Ahead(logs) => ahead.push(logs),
                    Answer::Failed(reason) => return Err(reason),
                    _ => {}
                }
            }
            let prepared = SpoolSupply::of_shards(ahead).ok_or_else(|| "no shard runs".to_owned())?.prepare(segments)?;
            for shard in shards {
                ask(shard, Command::Prepare(segments)).await?;
            }
            send(write, &prepared).await.map_err(|reason| reason.to_string())?;
            Ok(prepared.made)
        }
    }
}

/// Empties the node into the cluster's queue and tells how far it is, until nothing is left that goes by itself.
async fn drain(sharing: Option<&SharedDelivery>, write: &mut (impl AsyncWriteExt + Unpin)) -> Result<u64, NotDone> {
    let sharing =
        sharing.ok_or_else(|| NotDone::Config("this node is in no cluster: set cluster.enabled = true in its config".to_owned()))?;
    let (begun, began) = (sharing.begin_drain().await?, Instant::now());
    loop {
        sharing.has_spool()?;
        let Some(progress) = sharing.drain_progress(begun, began.elapsed()) else {
            tokio::time::sleep(PROGRESS_EVERY).await;
            continue;
        };
        if send(write, &progress).await.is_err() {
            // What was begun goes on without a listener.
            return Ok(progress.handed_over);
        }
        if progress.is_done() {
            return Ok(progress.handed_over);
        }
        if let Some(left) = progress.stuck(sharing.delivers()) {
            return Err(left.into());
        }
        if Duration::from_millis(progress.valkey_away_ms) >= AWAY_MAX {
            return Err(NotDone::Unavailable(format!(
                "Valkey has not answered for {} s: this node delivers what it can itself; the drain goes on when Valkey is back. See that Valkey runs and \
                 that it is reached from here, then repeat the call to wait for the rest",
                progress.valkey_away_ms / 1000
            )));
        }
        tokio::time::sleep(PROGRESS_EVERY).await;
    }
}

/// Refuses, before anything is changed, what would be done with recipients that the filter does not match.
async fn refuse_partly_meant(order: &ChangeOrder, shards: &[Arc<RequestLane>]) -> Result<(), Refusal> {
    let what = match (&order.change, &order.selection) {
        (change, Selection::Matching(filter)) if change.is_of_messages() && filter.is_about_recipients() => match change {
            Change::Hold {} => "held",
            Change::Release {} => "released",
            _ => "given another end of life",
        },
        _ => return Ok(()),
    };
    let (mut messages, mut others) = (0, 0);
    for shard in shards {
        let mut after = None;
        loop {
            let look = ChangeOrder { after, only_counts: true, ..order.clone() };
            let Answer::Changed(answer) = ask(shard, Command::Change(look)).await? else { break };
            messages += answer.count;
            others += answer.others;
            after = answer.next;
            if after.is_none() {
                break;
            }
        }
    }
    if others == 0 {
        return Ok(());
    }
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    Err(format!(
        "this is done with whole messages, and nothing was changed: {others} recipient{} of {messages} message{} that the filter does not match \
         would be {what}, too; --whole-messages goes on, `ringpost queue ls` with the same filter shows the messages",
        plural(others),
        plural(messages)
    ))
}

/// One shard after the other, each until nothing is left.
async fn change_all(order: &ChangeOrder, shards: &[Arc<RequestLane>], write: &mut (impl AsyncWriteExt + Unpin)) -> Result<u64, Refusal> {
    if shards.iter().any(|shard| shard.has_ended()) {
        return Err("the node drains, and some of its shards have ended: nothing was changed; repeat it after the next start".to_owned());
    }
    let (mut changed, mut left) = (0, NotChanged::default());
    for shard in shards {
        let mut after = None;
        loop {
            let page = ChangeOrder { after, ..order.clone() };
            let Answer::Changed(answer) = ask_for_change(shard, page, changed, write).await? else { break };
            changed += answer.count;
            left.unchanged += answer.unchanged;
            left.taken += answer.taken;
            left.unanswered += answer.unanswered;
            left.held += answer.held;
            left.offered += answer.offered;
            left.failed += answer.failed;
            left.once_retried += answer.once_retried;
            left.already_failed += answer.already_failed;
            left.ends_earlier += answer.ends_earlier;
            left.paused += answer.paused;
            left.unless_delivered += answer.unless_delivered;
            left.others += answer.others;
            after = answer.next;
            if after.is_none() {
                break;
            }
            let _gone = send(write, &Progress { changed }).await;
        }
    }
    if left != NotChanged::default() {
        let _gone = send(write, &left).await;
    }
    Ok(changed)
}

async fn summary(
    destination: Option<String>,
    shards: &[Arc<RequestLane>],
    write: &mut (impl AsyncWriteExt + Unpin),
) -> Result<u64, Refusal> {
    let (mut all, mut in_turn) = (BTreeMap::<String, DestinationSummary>::new(), Vec::new());
    for shard in shards {
        if let Answer::Summary(summary) = ask(shard, Command::Summary(destination.clone())).await? {
            in_turn.extend(summary.in_turn);
            for summary in summary.destinations {
                match all.get_mut(&summary.destination) {
                    Some(other) => other.add(summary),
                    None => drop(all.insert(summary.destination.clone(), summary)),
                }
            }
        }
    }
    for (name, recipients) in in_turn {
        if let Some(summary) = all.get_mut(&name) {
            summary.wait_in_turn(recipients);
        }
    }
    // One without mail says something only to who asked for it.
    let mut all: Vec<_> = all.into_values().filter(|summary| summary.recipients > 0 || destination.is_some()).collect();
    all.sort_by_key(|summary| std::cmp::Reverse(summary.messages));
    for summary in &all {
        send(write, summary).await.map_err(|reason| reason.to_string())?;
    }
    Ok(all.len() as u64)
}

async fn list(
    query: ListQuery,
    shards: &[Arc<RequestLane>],
    sharing: Option<&SharedDelivery>,
    write: &mut (impl AsyncWriteExt + Unpin),
) -> Result<u64, Refusal> {
    let limit = query.limit.unwrap_or(usize::MAX);
    let mut listed = 0;
    for shard in shards {
        let mut after = None;
        while listed < limit {
            let page = ListQuery { after, limit: Some((limit - listed).min(PAGE_MESSAGES_MAX)), ..query.clone() };
            let Answer::Messages(mut views, next) = ask(shard, Command::List(page)).await? else { break };
            if shards.len() > 1 {
                in_turn::correct(&mut views, shards).await?;
                views.retain(|view| in_turn::is_in_state(view, query.filter.state.as_deref()));
            }
            sharing.into_iter().for_each(|sharing| sharing.correct(&mut views));
            send_all(write, &views).await.map_err(|reason| reason.to_string())?;
            listed += views.len();
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    Ok(listed as u64)
}

fn parse_id(text: &str) -> Result<QueueId, Refusal> {
    text.parse().map_err(|reason| format!("{text:?}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that was cut within a character counted as nothing: "EOF while parsing".
    #[tokio::test]
    async fn a_request_that_is_too_long_is_told_so_wherever_it_is_cut() {
        for shift in 0..2 {
            let text = format!("{}{}", &"{{"[..=shift], "ü".repeat(REQUEST_BYTES_MAX as usize / 2 + 1));
            assert_eq!(read_request(text.as_bytes()).await.unwrap().err(), Some(too_long()), "{shift}");
        }
        for not_one in [&b"\xFF\n"[..], b"{\xC3", b""] {
            let reason = read_request(not_one).await.unwrap().expect_err("it is none");
            assert!(reason.starts_with("not a request: "), "{reason}");
        }
    }
}
