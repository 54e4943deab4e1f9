//! What is stuck: each destination with its mail by state, the oldest of it, the last word, and what it waits for.

use std::{collections::HashMap, rc::Rc};

use ringpost_queue::{Breaker, DestinationId, DestinationView, Filter, HostView, MessageKey, PausedBy, RecipientView, State};

use crate::{
    control::{DestinationSummary, HostSummary, PAGE_MESSAGES_MAX, Summary},
    listing::time_text,
    queue_walk::QueueWalk,
    shard::Shard,
};

/// Destinations told of before other tasks get their turn: each takes a microsecond or two.
const DESTINATIONS_PER_TURN: usize = 256;

/// Goes over the whole queue, or over the mail of the destinations of this name, a page at a time.
pub(crate) async fn summarise(shard: &Rc<Shard>, name: Option<&str>) -> Result<Summary, String> {
    let destinations = summarise_destinations(shard, name).await?;
    let mut in_turn: Vec<_> = shard.queue.borrow().guests_in_turn().into_iter().collect();
    in_turn.extend(shard.unsent_by_destination());
    Ok(Summary { destinations, in_turn })
}

async fn summarise_destinations(shard: &Rc<Shard>, name: Option<&str>) -> Result<Vec<DestinationSummary>, String> {
    shard.loaded_for_command().await?;
    let destinations: Vec<DestinationId> =
        name.into_iter().flat_map(|name| shard.queue.borrow().destinations_named(name).collect::<Vec<_>>()).collect();
    if name.is_some() && destinations.is_empty() {
        return Ok(Vec::new());
    }
    let filter = Filter { destinations, ..Filter::default() };
    // Boxed, and with room for all, so that it does not grow for milliseconds in the middle of a page.
    let room = if name.is_some() { filter.destinations.len() } else { shard.queue.borrow().destination_slots() };
    let mut summaries: HashMap<DestinationId, Box<Tally>> = HashMap::with_capacity(room);
    let mut walk = QueueWalk::begin(filter, shard.upcoming_id());
    let filter = walk.filter().clone();
    loop {
        let page = walk.page(&mut shard.queue.borrow_mut(), PAGE_MESSAGES_MAX, |view| {
            let (key, accepted_at) = (view.key(), view.envelope().accepted_at);
            for recipient in view.recipients().filter(|recipient| !recipient.is_settled() && recipient.matches(&filter)) {
                let tally = summaries.entry(recipient.destination()).or_default();
                // Its recipients for one destination may stand among those for others.
                tally.summary.messages += u64::from(tally.last.replace(key) != Some(key));
                count(&mut tally.summary, &recipient, accepted_at);
            }
        });
        if !page.map_err(|lost| lost.to_string())? {
            break;
        }
        shard.ring.yield_now().await;
    }
    // Mail of a site is its domains'.
    let mut ids: Vec<_> = filter.destinations.iter().chain(summaries.keys().filter(|_| name.is_some())).copied().collect();
    ids.sort_unstable_by_key(|id| id.index());
    ids.dedup();
    let (mut done, mut lines) = (0, Vec::with_capacity(summaries.len()));
    // One without mail is shown when it is not well.
    let mut shown = |view: DestinationView<'_>, now: u64| {
        let summary = summaries.remove(&view.id).unwrap_or_default().summary;
        // What a wider pause takes along is shown where it has mail.
        let is_paused = view.paused == Some(PausedBy::Name(view.name));
        // Of a site one line says that a host is ill, not one for each of its domains.
        let has_ill_host = || view.site.is_none() && view.hosts(now).any(|host| host.breaker != Breaker::Closed);
        let is_shown = summary.messages > 0 || is_paused || view.breaker != Breaker::Closed || has_ill_host();
        is_shown.then(|| finished(summary, &view, now))
    };
    loop {
        {
            let (queue, now) = (shard.queue.borrow(), shard.now_ms());
            let end = done + DESTINATIONS_PER_TURN;
            let all = if name.is_some() { ids.len() } else { queue.destination_slots() };
            match name {
                None => lines.extend(queue.destinations_in(done..end, now).filter_map(|view| shown(view, now))),
                Some(_) => {
                    let ids = ids.iter().skip(done).take(DESTINATIONS_PER_TURN);
                    lines.extend(ids.filter_map(|id| queue.destination(*id, now)).filter_map(|view| shown(view, now)));
                }
            }
            if end >= all {
                return Ok(lines);
            }
            done = end;
        }
        shard.ring.yield_now().await;
    }
}

/// What is counted of one destination.
#[derive(Default)]
struct Tally {
    summary: DestinationSummary,
    /// The message that was counted last.
    last: Option<MessageKey>,
}

fn count(summary: &mut DestinationSummary, recipient: &RecipientView<'_>, accepted_at: u64) {
    summary.oldest_ms = Some(summary.oldest_ms.map_or(accepted_at, |oldest| oldest.min(accepted_at)));
    let count = match recipient.state() {
        State::Deferred => &mut summary.deferred,
        State::Ready => &mut summary.ready,
        State::Attempting => &mut summary.active,
        State::Held => &mut summary.held,
        State::Offered => &mut summary.offered,
        State::Failed | State::Delivered | State::Bounced | State::Purged => &mut summary.failed,
    };
    *count += 1;
    summary.recipients += 1;
    if recipient.state() == State::Deferred {
        let next = recipient.next_attempt(0);
        summary.next_ms = [summary.next_ms, next].into_iter().flatten().min();
    }
    if let Some(at) = recipient.last_attempt().filter(|&at| summary.last_reply_ms.is_none_or(|last| at > last)) {
        let reply = recipient.reply();
        if !reply.is_empty() && recipient.was_said_here() {
            (summary.last_reply, summary.last_reply_ms) = (Some(reply.into_owned()), Some(at));
        }
    }
}

/// With what is known of the destination itself.
fn finished(mut summary: DestinationSummary, view: &DestinationView<'_>, now: u64) -> DestinationSummary {
    summary.destination = view.name.to_owned();
    // Elsewhere it counts what it has given out to the homes, and what they have allowed it.
    if view.is_home {
        (summary.connections, summary.window) = (view.in_flight, view.window);
    }
    summary.connections_max = view.limits.map_or(view.connections_max, |limits| limits.connections_max);
    summary.rate = view.limits.and_then(|limits| limits.rate).map(|rate| rate.to_string());
    summary.paused = view.paused.is_some();
    summary.paused_by = view.paused.map(|by| by.to_string());
    summary.breaker = view.breaker.as_str().to_owned();
    let hosts = view.hosts(now).filter(|host| host.breaker != Breaker::Closed);
    summary.hosts = hosts.map(|host| host_summary(&host)).collect();
    summary.wait = view.wait.as_str().to_owned();
    if summary.ready > 0 {
        summary.next_ms = Some(view.wait.until().unwrap_or(now)).filter(|_| view.paused.is_none()).or(summary.next_ms);
    }
    if !view.reason.is_empty() {
        (summary.last_reply, summary.last_reply_ms) = (Some(view.reason.to_owned()), None);
    }
    summary.oldest = summary.oldest_ms.map(time_text);
    summary.next_attempt = summary.next_ms.map(time_text);
    summary
}

fn host_summary(host: &HostView<'_>) -> HostSummary {
    let next_probe = match host.breaker {
        Breaker::Open { until } => Some(time_text(until)),
        Breaker::Closed | Breaker::HalfOpen => None,
    };
    HostSummary { host: host.name.to_owned(), breaker: host.breaker.as_str().to_owned(), next_probe, reason: host.reason.to_owned() }
}
