//! A shard's answers to the coordinator: list, show and steer queued messages, counters, drain.

use std::{num::NonZeroU16, rc::Rc};

use ringpost_queue::{Cursor, Filter, MessageKey, MessageView as QueuedView, Queue, Settled, State};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    control::{Answer, Change, Command, ListQuery, MessageView, PAGE_MESSAGES_MAX, RecipientView, Request, Selection},
    request_lane::RequestReceiver,
    shard::Shard,
    share::Share,
};

/// Messages changed before other tasks get their turn.
const CHANGES_PER_TURN: usize = 1024;

/// Answers until the shard ends.
pub(crate) async fn answer_requests(shard: Rc<Shard>, mut requests: RequestReceiver) {
    loop {
        while let Some(Request { command, answer }) = requests.take() {
            match command {
                // What waits for the disk or goes over a long queue does not hold up the rest, a drain least of all.
                Command::Change(change, selection) => {
                    let changing = shard.clone();
                    shard.ring.spawn(async move { answer(Answer::Changed(apply(&changing, change, selection).await)) }).detach();
                }
                // So does what must not be answered before the mail of earlier runs is queued.
                command @ (Command::List(_) | Command::Show(_)) if shard.logs_loading() > 0 => {
                    let loading = shard.clone();
                    shard
                        .ring
                        .spawn(async move {
                            loading.loaded().await;
                            answer(reply(&loading, command));
                        })
                        .detach();
                }
                command => answer(reply(&shard, command)),
            }
        }
        shard.look_at_spool();
        requests.rung(&shard.ring).await;
    }
}

fn reply(shard: &Rc<Shard>, command: Command) -> Answer {
    match command {
        Command::List(query) => match list(shard, &query) {
            Ok((views, next)) => Answer::Messages(views, next),
            Err(reason) => Answer::Failed(reason),
        },
        Command::Show(id) => {
            let queue = shard.queue.borrow();
            let view = queue.key_of(id).and_then(|key| queue.show(key)).filter(|view| !view.is_closing());
            Answer::Message(view.map(|view| Box::new(view_of(&view, shard.now_ms()))))
        }
        Command::Change(..) => unreachable!("changes have tasks of their own"),
        Command::Stats => Answer::Stats(stats(shard)),
        Command::Resolved(answers) => {
            let (mut queue, now) = (shard.queue.borrow_mut(), shard.now_ms());
            for (destination, resolution) in answers {
                queue.resolved(destination, &resolution.map_until(|lasts_ms| now.saturating_add(lasts_ms)), now);
            }
            drop(queue);
            shard.delivery.kick();
            Answer::Done
        }
        Command::Prepare(segments) => {
            shard.own.with_log(|log| log.prepare_more(segments));
            Answer::Done
        }
        Command::Reload(config) => {
            let share = Share { shard: shard.id, shards: NonZeroU16::new(shard.shards).expect("a node has shards") };
            shard.reload(config, share);
            Answer::Done
        }
        Command::Drain => {
            shard.begin_drain();
            Answer::Done
        }
    }
}

fn stats(shard: &Shard) -> Vec<(&'static str, u64)> {
    let mut stats = shard.metrics.snapshot();
    let counts = shard.queue.borrow().counts();
    let connections = shard.pool.all();
    stats.extend([
        ("queue_messages", counts.messages as u64),
        ("queue_waiting", counts.waiting as u64),
        ("queue_ready", counts.ready as u64),
        ("queue_attempting", counts.attempting as u64),
        ("queue_failed", counts.failed as u64),
        ("queue_bounced", counts.bounced as u64),
        ("dispatches_at_homes", shard.homes.out() as u64),
        ("dispatches_of_others", shard.homes.guests() as u64),
        ("reports_waiting", shard.queue.borrow().reports_waiting() as u64),
        ("logs_loading", shard.logs_loading() as u64),
        ("connections_idle", connections.idle.into()),
        ("pool_created", shard.metrics.connects.get()),
        ("pool_reused", shard.metrics.reused.get()),
        ("pool_active", connections.active.into()),
        ("pool_idle", connections.idle.into()),
        ("pool_total", connections.total.into()),
        ("arena_bytes", shard.ring.pages_bytes() as u64),
        ("staging_bytes", shard.staging.taken() as u64),
        ("receive_buffers_free", shard.ring.buffers_free() as u64),
    ]);
    stats
}

fn state_named(word: &str) -> Result<State, String> {
    let states = [State::Deferred, State::Ready, State::Attempting, State::Held, State::Delivered, State::Failed, State::Bounced];
    states
        .into_iter()
        .find(|state| state.as_str() == word || (word == "active" && *state == State::Attempting))
        .ok_or_else(|| format!("{word:?} is not a state: ready, deferred, active, held, failed"))
}

fn list(shard: &Shard, query: &ListQuery) -> Result<(Vec<MessageView>, Option<u64>), String> {
    let filter = Filter {
        sender: query.sender.clone(),
        recipient_domain: query.domain.clone(),
        state: query.state.as_deref().map(state_named).transpose()?,
        ..Filter::default()
    };
    let cursor = match query.after {
        None => Cursor::default(),
        Some(after) => Cursor::at(after),
    };
    let limit = query.limit.unwrap_or(PAGE_MESSAGES_MAX).min(PAGE_MESSAGES_MAX);
    let now = shard.now_ms();
    let mut views = Vec::new();
    let next = shard.queue.borrow_mut().page(&filter, cursor, limit, |view| views.push(view_of(&view, now)));
    Ok((views, next.map_err(|lost| lost.to_string())?.map(Cursor::position)))
}

fn view_of(view: &QueuedView<'_>, now: u64) -> MessageView {
    let envelope = view.envelope();
    let recipients: Vec<_> = view
        .recipients()
        .map(|recipient| RecipientView {
            address: String::from_utf8_lossy(recipient.address()).into_owned(),
            state: if recipient.state() == State::Attempting { "active" } else { recipient.state().as_str() }.to_owned(),
            attempts: u32::from(recipient.attempts()),
            next_attempt: recipient.next_attempt(now).map(time_text),
            last_reply: Some(recipient.reply()).filter(|reply| !reply.is_empty()).map(|reply| reply.into_owned()),
        })
        .collect();
    let next_attempt = view.recipients().filter_map(|recipient| recipient.next_attempt(now)).min();
    let reason =
        view.recipients().map(|recipient| recipient.reason(now).into_owned()).find(|reason| !reason.is_empty()).unwrap_or_default();
    MessageView {
        id: envelope.id.to_string(),
        sender: String::from_utf8_lossy(envelope.reverse_path).into_owned(),
        attempts: recipients.iter().map(|recipient| recipient.attempts).max().unwrap_or(0),
        recipients,
        next_attempt: next_attempt.map(time_text),
        size: envelope.size,
        accepted_at: time_text(envelope.accepted_at),
        reason,
    }
}

fn time_text(unix_ms: u64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| unix_ms.to_string())
}

/// Applies a change and waits until it is durable. Returns how many messages it found.
async fn apply(shard: &Rc<Shard>, change: Change, selection: Selection) -> u64 {
    shard.loaded().await;
    let keys: Vec<MessageKey> = {
        let mut queue = shard.queue.borrow_mut();
        match selection {
            Selection::Ids(ids) => ids.iter().filter_map(|id| queue.key_of(*id)).collect(),
            Selection::All => all_keys(&mut queue),
        }
    };
    let mut found = 0;
    for (at, key) in keys.into_iter().enumerate() {
        if at % CHANGES_PER_TURN == CHANGES_PER_TURN - 1 {
            shard.delivery.kick();
            shard.ring.yield_now().await;
        }
        let settled = {
            let (mut queue, now, mut record) = (shard.queue.borrow_mut(), shard.now_ms(), Vec::new());
            match change {
                Change::Retry => queue.retry(key, now, &mut record),
                Change::Hold => queue.hold(key, now, &mut record),
                Change::Release => queue.release(key, now, &mut record),
                Change::Delete => queue.delete(key, now),
            }
        };
        if let Some(settled) = settled {
            found += 1;
            if settled == Settled::Done {
                log_deletion(shard, key);
            }
            shard.persist(key, settled);
        }
    }
    shard.delivery.kick();
    shard.records_durable().await;
    found
}

fn log_deletion(shard: &Shard, key: MessageKey) {
    let queue = shard.queue.borrow();
    if let Some(envelope) = queue.envelope(key) {
        shard.log_mail(format_args!("queue_id={} event=deleted reason=\"by command\"", envelope.id));
    }
}

fn all_keys(queue: &mut Queue) -> Vec<MessageKey> {
    let (filter, mut keys) = (Filter::default(), Vec::with_capacity(queue.len()));
    let mut cursor = Some(Cursor::default());
    while let Some(at) = cursor {
        cursor = queue.page(&filter, at, PAGE_MESSAGES_MAX, |view| keys.push(view.key())).unwrap_or(None);
    }
    keys
}
