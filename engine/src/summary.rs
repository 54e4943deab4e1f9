//! What is stuck: each destination with its mail by state, the oldest of it, the last word, and what it waits for.

use std::rc::Rc;

use ringpost_queue::{Breaker, Cursor, Filter, State};

use crate::{
    control::{DestinationSummary, PAGE_MESSAGES_MAX},
    listing::time_text,
    shard::Shard,
};

/// Goes over the whole queue, a page at a time.
pub(crate) async fn summarise(shard: &Rc<Shard>) -> Result<Vec<DestinationSummary>, String> {
    shard.loaded().await;
    let mut summaries: Vec<DestinationSummary> = Vec::new();
    let mut cursor = Some(Cursor::default());
    while let Some(at) = cursor {
        let page = shard.queue.borrow_mut().page(&Filter::default(), at, PAGE_MESSAGES_MAX, |view| {
            let accepted_at = view.envelope().accepted_at;
            let mut last = usize::MAX;
            for recipient in view.recipients().filter(|recipient| !recipient.is_settled()) {
                let index = recipient.destination().index();
                if summaries.len() <= index {
                    summaries.resize_with(index + 1, DestinationSummary::default);
                }
                let summary = &mut summaries[index];
                if std::mem::replace(&mut last, index) != index {
                    summary.messages += 1;
                }
                summary.oldest_ms = Some(summary.oldest_ms.map_or(accepted_at, |oldest| oldest.min(accepted_at)));
                let count = match recipient.state() {
                    State::Deferred => &mut summary.deferred,
                    State::Ready => &mut summary.ready,
                    State::Attempting => &mut summary.active,
                    State::Held | State::Offered => &mut summary.held,
                    State::Failed | State::Delivered | State::Bounced => &mut summary.failed,
                };
                *count += 1;
                if recipient.state() == State::Deferred {
                    let next = recipient.next_attempt(0);
                    summary.next_ms = [summary.next_ms, next].into_iter().flatten().min();
                }
                if let Some(at) = recipient.last_attempt().filter(|&at| summary.last_reply_ms.is_none_or(|last| at > last)) {
                    let reply = recipient.reply();
                    if !reply.is_empty() {
                        (summary.last_reply, summary.last_reply_ms) = (Some(reply.into_owned()), Some(at));
                    }
                }
            }
        });
        cursor = page.map_err(|lost| lost.to_string())?;
        shard.ring.yield_now().await;
    }
    let (queue, now) = (shard.queue.borrow(), shard.now_ms());
    for destination in queue.destinations(now) {
        let Some(summary) = summaries.get_mut(destination.id.index()) else { continue };
        summary.destination = destination.name.to_owned();
        summary.connections = destination.in_flight;
        summary.window = destination.window;
        summary.paused = destination.paused;
        summary.breaker = match destination.breaker {
            Breaker::Closed => "closed",
            Breaker::Open { .. } => "open",
            Breaker::HalfOpen => "half-open",
        }
        .to_owned();
        summary.wait = destination.wait.as_str().to_owned();
        if summary.ready > 0 {
            summary.next_ms = Some(destination.wait.until().unwrap_or(now)).filter(|_| !destination.paused).or(summary.next_ms);
        }
        if !destination.reason.is_empty() {
            summary.last_reply = Some(destination.reason.to_owned());
        }
        summary.oldest = summary.oldest_ms.map(time_text);
        summary.next_attempt = summary.next_ms.map(time_text);
    }
    summaries.retain(|summary| summary.messages > 0 || !matches!(&*summary.breaker, "" | "closed") || summary.paused);
    Ok(summaries)
}
