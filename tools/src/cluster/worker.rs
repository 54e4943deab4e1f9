//! A worker is killed the moment it has leased mail, again and again: its items are leased by others soon after its leases end. Then the
//! node that accepted the mail is killed for good: what it had offered is delivered by others.

use std::{
    collections::HashMap,
    io, thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ringpost_loadtest::{
    schedule::Rate,
    sink::Sink,
    source::{Source, SourceOptions},
};

use super::{
    Place,
    listener::Listener,
    monitor::{Call, Monitor},
    nodes::{self, NodeSetup, wait_for, wait_within},
    report::Report,
};
use crate::{
    engine::Route,
    traffic::{Sent, difference, next_hop, texts},
    valkey_server::{ValkeyOptions, ValkeyServer},
};

/// Octets of a message.
const SIZE: &str = "2KiB";
/// Mail comes in bursts, so that a worker that is killed in one is in the middle of something.
const BURSTS: Rate = Rate::Spikes { base: 50.0, peak: 3000.0, every: Duration::from_secs(1), length: Duration::from_millis(100) };
/// A worker is killed when it has leased so many items at least: it completes one or two before the signal comes.
const LEASED_MIN: usize = 4;
/// For each kill that is to find leases, kills at most: where disk and cores are fast a worker has often completed all when the signal comes.
const TRIES_PER_KILL: u64 = 5;
/// With leases of 3 s a dead worker's items are leased again within this.
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// An owner asks for what was completed later by this at most than a program that does nothing else has heard of it.
const HEARD_MAX: Duration = Duration::from_millis(100);
/// What a killed worker had sent has reached Valkey by then.
const SENT_BEFORE_ITS_END: Duration = Duration::from_millis(200);

/// Who holds which item, by Valkey's account.
#[derive(Debug, Default)]
struct Leases {
    /// By item: the worker's life, and when.
    held: HashMap<String, (String, f64)>,
    /// Every lease in order: item, worker, time.
    log: Vec<(String, String, f64)>,
    /// Completed, and nobody has asked for it yet: when.
    completed: HashMap<String, f64>,
    /// From an item's completion to its owner's question for it.
    heard: Vec<Duration>,
    /// Completed, and the bare listener has not said so yet: when.
    unsaid: HashMap<String, f64>,
    /// From an item's completion to the bare listener's word.
    said: Vec<Duration>,
    caller: String,
}

impl Leases {
    fn take(&mut self, call: &Call) {
        if !call.is_of_script && call.word(0).eq_ignore_ascii_case("ECHO") {
            if let Some(at) = self.unsaid.remove(call.word(1)) {
                self.said.push(Duration::from_secs_f64((call.at - at).max(0.0)));
            }
            return;
        }
        if !call.is_of_script {
            let keys: usize = call.word(2).parse().unwrap_or(0);
            // The lease script's second argument names the worker.
            call.word(4 + keys).clone_into(&mut self.caller);
            if call.word(0) == "EVALSHA" && !self.completed.is_empty() {
                for word in call.words.iter().skip(3 + keys) {
                    if let Some(at) = self.completed.remove(word) {
                        self.heard.push(Duration::from_secs_f64((call.at - at).max(0.0)));
                    }
                }
            }
            return;
        }
        let (command, key) = (call.word(0), call.word(1));
        let timed = key.ends_with(":timed").then(|| if command == "ZADD" { call.word(3) } else { call.word(2) });
        match command {
            "ZADD" => {
                if let Some(item) = timed {
                    self.held.insert(item.to_owned(), (self.caller.clone(), call.at));
                    self.log.push((item.to_owned(), self.caller.clone(), call.at));
                }
            }
            "ZREM" => {
                if let Some(item) = timed {
                    self.held.remove(item);
                }
            }
            "HSET" if key.ends_with(":outcomes") => {
                self.completed.insert(call.word(2).to_owned(), call.at);
                self.unsaid.insert(call.word(2).to_owned(), call.at);
            }
            _ => {}
        }
    }

    /// Items that a node's processes hold.
    fn of(&self, node: &str) -> Vec<String> {
        let held = self.held.iter().filter(|(_, (worker, _))| worker.strip_prefix(node).is_some_and(|rest| rest.starts_with(':')));
        held.map(|(item, _)| item.clone()).collect()
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

pub(super) fn run(place: &Place<'_>, report: &mut Report) -> io::Result<()> {
    let (received, sent_to, last_sent) = (place.folder.join("received"), place.folder.join("sent"), place.folder.join("sent-last"));
    let sink = Sink::start(next_hop(Some(received.clone()))?)?;
    let valkey = ValkeyServer::start(ValkeyOptions::new(&place.folder)?)?;
    let setup = NodeSetup::new(place.engine, &place.folder, valkey.url(), Route::Smarthost(sink.address));
    let mut cluster = NodeSetup { is_shared: true, ..setup }.start(3, 1)?;
    let monitor = Monitor::start(&valkey)?;
    let listener = Listener::start(valkey.address)?;
    let options = SourceOptions { sessions: 4, rate: Some(BURSTS), ledger: Some(sent_to.clone()), ..texts(cluster[0].address, SIZE)? };
    let source = Source::start(options)?;

    let (mut leases, mut again, mut kills, mut empty_kills) = (Leases::default(), Vec::new(), 0, 0);
    while kills - empty_kills < place.kills && kills < place.kills * TRIES_PER_KILL {
        let victim = 1 + usize::try_from(kills % 2).expect("0 or 1");
        let name = format!("n{}", victim + 1);
        let began = Instant::now();
        // It has leases now, and a flush of the disk until it completes them.
        while leases.of(&name).len() < LEASED_MIN {
            if let Some(call) = monitor.next(Duration::from_millis(20))? {
                leases.take(&call);
            }
            // What is said here is old when more has come meanwhile.
            monitor.rest().for_each(|call| leases.take(&call));
            if began.elapsed() > nodes::PATIENCE {
                return Err(io::Error::other(format!("{name} leases nothing: {}", cluster[victim].last_words())));
            }
        }
        cluster[victim].kill()?;
        let killed_at = now();
        thread::sleep(SENT_BEFORE_ITS_END);
        monitor.rest().for_each(|call| leases.take(&call));
        let held = leases.of(&name);
        kills += 1;
        empty_kills += u64::from(held.is_empty());
        let mark = leases.log.len();
        let mut waiting: Vec<String> = held.clone();
        wait_within(Duration::from_secs(30), "a new lease of a dead worker's items", || {
            monitor.rest().for_each(|call| leases.take(&call));
            waiting.retain(|item| !leases.log[mark..].iter().any(|(leased, ..)| leased == item));
            Ok(waiting.is_empty().then_some(()))
        })?;
        for item in &held {
            let (_, _, at) = leases.log[mark..].iter().find(|(leased, ..)| leased == item).expect("it was waited for");
            again.push(Duration::from_secs_f64((at - killed_at).max(0.0)));
        }
        cluster[victim].start()?;
    }
    source.stop();
    let accepted = source.join()?;
    monitor.rest().for_each(|call| leases.take(&call));
    drop(listener);
    drop(monitor);
    for node in &mut cluster {
        node.drain(super::CLAIMS_DECIDED, || sink.messages())?;
    }

    // Nobody delivers while the node that will not come back takes mail.
    for node in &mut cluster[1..] {
        node.terminate(Duration::from_secs(30))?;
    }
    let load = SourceOptions {
        sessions: 10,
        messages: Some(place.items_of_the_dead),
        ledger: Some(last_sent.clone()),
        ..texts(cluster[0].address, SIZE)?
    };
    let sent = Sent::run(load)?;
    wait_for("the offer of all", || {
        Ok(nodes::queue_stats(&cluster[0]).filter(|stats| stats["pending"].as_u64() == Some(sent.acknowledged)).map(drop))
    })?;
    cluster[0].kill()?;
    let before = sink.messages();
    let began = Instant::now();
    for node in &mut cluster[1..] {
        node.start()?;
    }
    wait_for("delivery of a dead node's mail", || Ok((sink.messages() - before >= sent.acknowledged).then_some(())))?;
    report.figure("dead_nodes_mail", sent.acknowledged);
    report.figure("dead_nodes_mail_delivered_after_ms", began.elapsed().as_millis() as u64);
    for node in &mut cluster[1..] {
        node.drain(super::CLAIMS_DECIDED, || sink.messages())?;
        node.terminate(Duration::from_secs(30))?;
    }
    sink.stop();
    sink.join()?;
    let result = difference(&[&sent_to, &last_sent], &received)?;
    report.figure("accepted", result.accepted);
    report.figure("kills", kills);
    report.figure("kills_of_a_worker_without_lease", empty_kills);
    report.figure("lost", result.lost);
    report.figure("damaged", result.damaged);
    report.figure("duplicates", result.duplicated);
    let p99 = report.times("leased_again_after", &again);
    let heard_p99 = report.times("owner_asks_after_completion", &leases.heard);
    let bare_p99 = report.times("bare_listener_asks_after_completion", &leases.said);
    report.must(result.is_intact(), format!("lost {}, damaged {}: {:?}", result.lost, result.damaged, result.examples));
    report.must(accepted.refused + accepted.unknown == 0, format!("{} refused, {} without answer", accepted.refused, accepted.unknown));
    report
        .must(kills - empty_kills >= place.kills, format!("only {} killed workers held something: they prove little", kills - empty_kills));
    report.must(p99 <= AGAIN_MAX, format!("items of dead workers are leased again: p99 {p99:?}"));
    report.must(!leases.said.is_empty(), "the bare listener heard nothing");
    report.must(
        heard_p99 <= HEARD_MAX + bare_p99,
        format!("owners hear of completions: p99 {heard_p99:?}, where a program that does nothing else takes {bare_p99:?}"),
    );
    Ok(())
}
