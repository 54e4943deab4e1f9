//! Pages of the queue and single messages, as the coordinator wants them.

use std::borrow::Cow;

use ringpost_queue::{
    Cursor, DestinationId, Filter, MessageView as QueuedView, OFFERED_REASON, Queue, QueueId, RecipientView as QueuedRecipient, State,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    control::{Elsewhere, ListQuery, MessageFilter, MessageView, PAGE_MESSAGES_MAX, RecipientView},
    shard::Shard,
    why,
};

/// What attempts name as their relay where it is none.
const NO_HOSTS: [&str; 3] = ["maildir", "discard", "none"];

/// A page and where to go on. Fails with a sentence for the operator.
pub(crate) fn list(shard: &Shard, query: &ListQuery) -> Result<(Vec<MessageView>, Option<u64>), String> {
    let now = shard.now_ms();
    let filter = filter_of(&shard.queue.borrow(), &query.filter, now)?;
    let Some(filter) = filter else { return Ok((Vec::new(), None)) };
    // Who asks finds out which of them wait.
    let filter = Filter { or_given_out: filter.state == Some(State::Ready), ..filter };
    let cursor = query.after.map_or_else(Cursor::default, Cursor::at);
    let limit = query.limit.unwrap_or(PAGE_MESSAGES_MAX).min(PAGE_MESSAGES_MAX);
    let mut views = Vec::new();
    let next = shard.queue.borrow_mut().page(&filter, cursor, limit, |view| views.push(view_of(shard, &view, now)));
    Ok((views, next.map_err(|lost| lost.to_string())?.map(Cursor::position)))
}

/// A message that is queued and not done.
pub(crate) fn show(shard: &Shard, id: QueueId) -> Option<MessageView> {
    let queue = shard.queue.borrow();
    let view = queue.key_of(id).and_then(|key| queue.show(key)).filter(|view| !view.is_closing())?;
    Some(view_of(shard, &view, shard.now_ms()))
}

/// Sentences about such a message.
pub(crate) fn why(shard: &Shard, id: QueueId, elsewhere: &Elsewhere) -> Option<String> {
    let (queue, now) = (shard.queue.borrow(), shard.now_ms());
    let view = queue.key_of(id).and_then(|key| queue.show(key)).filter(|view| !view.is_closing())?;
    // The shard alone knows of mail that it could not give to be offered.
    let mut elsewhere = Cow::Borrowed(elsewhere);
    if let Some(reason) = shard.unread_offer(id) {
        let sentence = format!("Waits to be offered to the nodes of the cluster, and stays with this node: {reason}");
        elsewhere.to_mut().unoffered = Some(sentence);
    }
    Some(why::why(&view, |destination: DestinationId| queue.destination(destination, now), &elsewhere, now))
}

/// The filter in the queue's terms; `None` when nothing can match, because this shard knows no such destination.
pub(crate) fn filter_of(queue: &Queue, filter: &MessageFilter, now: u64) -> Result<Option<Filter>, String> {
    let destinations: Vec<DestinationId> = filter.destination.iter().flat_map(|name| queue.destinations_named(name)).collect();
    if filter.destination.is_some() && destinations.is_empty() {
        return Ok(None);
    }
    Ok(Some(Filter {
        id: None,
        sender: filter.sender.clone(),
        sender_domain: filter.sender_domain.clone(),
        tag: filter.tag.clone(),
        older_than: None,
        accepted_until: filter.older_than_s.map(|seconds| now.saturating_sub(seconds.saturating_mul(1000))),
        recipient_domain: filter.domain.clone(),
        destinations,
        state: filter.state.as_deref().map(state_named).transpose()?,
        or_given_out: false,
    }))
}

fn state_named(word: &str) -> Result<State, String> {
    let states = [
        State::Deferred,
        State::Ready,
        State::Attempting,
        State::Held,
        State::Offered,
        State::Delivered,
        State::Failed,
        State::Bounced,
        State::Purged,
    ];
    states
        .into_iter()
        .find(|state| state.as_str() == word || (word == "active" && *state == State::Attempting))
        .ok_or_else(|| format!("{word:?} is not a state: ready, deferred, active, held, offered, failed"))
}

fn view_of(shard: &Shard, view: &QueuedView<'_>, now: u64) -> MessageView {
    let envelope = view.envelope();
    let recipients: Vec<_> = view
        .recipients()
        .map(|recipient| RecipientView {
            address: String::from_utf8_lossy(recipient.address()).into_owned(),
            state: if recipient.state() == State::Attempting { "active" } else { recipient.state().as_str() }.to_owned(),
            destination: recipient.destination_name().to_owned(),
            route: recipient.route_name().to_owned(),
            attempts: u32::from(recipient.attempts()),
            next_attempt: recipient.next_attempt(now).map(time_text),
            paused_by: paused_by(&recipient),
            after_attempt: why::after_attempt(view, &recipient, now),
            expires_at: recipient.fails_at().filter(|_| recipient.is_open()).map(time_text),
            last_reply: Some(recipient.reply()).filter(|reply| !reply.is_empty()).map(|reply| reply.into_owned()),
            relay: said_by(&recipient),
        })
        .collect();
    let next_attempt = view.recipients().filter_map(|recipient| recipient.next_attempt(now)).min();
    // What is still to be delivered comes before what only waits for its report; what is settled keeps nothing here.
    let reason_of = |is_meant: fn(&QueuedRecipient<'_>) -> bool| {
        let meant = view.recipients().filter(|recipient| is_meant(recipient) && !recipient.is_settled());
        meant.map(|recipient| recipient.reason(now)).find(|reason| !reason.is_empty())
    };
    let reason = reason_of(|recipient| recipient.is_open()).or_else(|| reason_of(|recipient| !recipient.is_open())).unwrap_or_default();
    let unread = (reason == OFFERED_REASON).then(|| shard.unread_offer(envelope.id)).flatten();
    let reason = match unread {
        Some(unread) => format!("waits to be offered to the nodes of the cluster: {unread}"),
        None => reason.into_owned(),
    };
    MessageView {
        id: envelope.id.to_string(),
        sender: String::from_utf8_lossy(envelope.reverse_path).into_owned(),
        attempts: recipients.iter().map(|recipient| recipient.attempts).max().unwrap_or(0),
        recipients,
        next_attempt: next_attempt.map(time_text),
        size: envelope.size,
        priority: Some(view.priority()),
        accepted_at: time_text(envelope.accepted_at),
        tags: view.tags().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect(),
        reason,
    }
}

/// The next hop that gave the last word about a recipient, as attempts name it.
pub(crate) fn said_by(recipient: &QueuedRecipient<'_>) -> Option<String> {
    let relay = recipient.relay_name().filter(|relay| !NO_HOSTS.contains(&&**relay))?;
    Some(relay.into_owned())
}

/// Only of what would go otherwise.
fn paused_by(recipient: &QueuedRecipient<'_>) -> Option<String> {
    let waits = matches!(recipient.state(), State::Ready | State::Deferred);
    recipient.paused().filter(|_| waits).map(|by| by.to_string())
}

/// RFC 3339.
pub fn time_text(unix_ms: u64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| unix_ms.to_string())
}
