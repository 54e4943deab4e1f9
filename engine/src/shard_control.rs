//! A shard's answers to the coordinator: list, show and steer queued messages, counters, drain.

use std::{cell::RefCell, io, rc::Rc};

use ringpost_spool::Space;
use slab::Slab;

use crate::{
    control::{Answer, Command, HandOver, LogsAhead, Request},
    listing, pausing, reloading,
    request_lane::RequestReceiver,
    shard::Shard,
    steering, summary,
};

/// The way of an answer.
type Answering = Box<dyn FnOnce(Answer) + Send>;

/// Answers until the shard ends; what has not been answered by then never is, and who asked hears so at once.
pub(crate) async fn answer_requests(shard: Rc<Shard>, mut requests: RequestReceiver) {
    let owed = Owed::default();
    loop {
        while let Some(Request { command, answer }) = requests.take() {
            match has_task_of_its_own(&shard, &command) {
                true => {
                    let (shard, owing) = (shard.clone(), owed.owing(answer));
                    shard.ring.clone().spawn(async move { owing.settle(take_time(&shard, command).await) }).detach();
                }
                false => answer(reply(&shard, command)),
            }
        }
        shard.look_at_spool();
        requests.rung(&shard.ring).await;
    }
}

/// Answers that tasks of their own are to give. When the shard ends those tasks run no more, and nobody drops them before the whole process ends: the
/// ways of their answers are dropped with this, as those of requests that nobody took are.
#[derive(Default)]
struct Owed(Rc<RefCell<Slab<Answering>>>);

impl Owed {
    fn owing(&self, answer: Answering) -> Owing {
        Owing { owed: self.0.clone(), key: self.0.borrow_mut().insert(answer) }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

/// One of them.
struct Owing {
    owed: Rc<RefCell<Slab<Answering>>>,
    key: usize,
}

impl Owing {
    /// Gives it, if somebody waits still.
    fn settle(self, answer: Answer) {
        let way = self.owed.borrow_mut().try_remove(self.key);
        if let Some(way) = way {
            way(answer);
        }
    }
}

/// What waits for the disk or goes over a long queue does not hold up the rest, a drain least of all; nor does what must not be answered before
/// the mail of earlier runs is queued.
fn has_task_of_its_own(shard: &Shard, command: &Command) -> bool {
    match command {
        Command::Change(_)
        | Command::Reload(_)
        | Command::SettleLimits(_)
        | Command::Pause(_)
        | Command::FollowRoutes
        | Command::AwaitLimits
        | Command::Summary(_)
        | Command::HandOver(_) => true,
        Command::List(_) | Command::Show(_) | Command::Why(..) => shard.logs_loading() > 0,
        Command::SaidBefore(_)
        | Command::InTurn(_)
        | Command::CanPause(_)
        | Command::WhatPauses(_)
        | Command::Stats
        | Command::Resolved(_)
        | Command::Limits(_)
        | Command::Ahead
        | Command::Prepare(_)
        | Command::Drain => false,
    }
}

/// The answer of a task of its own.
async fn take_time(shard: &Rc<Shard>, command: Command) -> Answer {
    match command {
        Command::Change(order) => steering::steer(shard, order).await,
        Command::Reload(config) => reloading::swap(shard, config).await.map_or_else(reloading::refusal, |()| Answer::Done),
        Command::SettleLimits(change) => {
            reloading::settle_limits(shard, change).await;
            Answer::Done
        }
        Command::Pause(pauses) => {
            pausing::pause(shard, pauses).await;
            Answer::Done
        }
        Command::FollowRoutes => reloading::follow_routes(shard).await,
        Command::AwaitLimits => reloading::limits_kept(shard).await,
        Command::Summary(name) => summary::summarise(shard, name.as_deref()).await.map_or_else(Answer::Failed, Answer::Summary),
        Command::HandOver(call) => hand_over(shard.clone(), call).await,
        command => match shard.loaded_for_command().await {
            Ok(()) => reply(shard, command),
            Err(reason) => Answer::Failed(reason),
        },
    }
}

fn reply(shard: &Rc<Shard>, command: Command) -> Answer {
    match command {
        Command::List(query) => match listing::list(shard, &query) {
            Ok((views, next)) => Answer::Messages(views, next),
            Err(reason) => Answer::Failed(reason),
        },
        Command::Show(id) => Answer::Message(listing::show(shard, id).map(Box::new)),
        Command::Why(id, elsewhere) => Answer::Why(listing::why(shard, id, &elsewhere)),
        Command::SaidBefore(id) => Answer::SaidBefore(shard.said_before.of(id)),
        Command::InTurn(ids) => Answer::InTurn(shard.in_turn_of(ids)),
        Command::CanPause(names) => {
            let queue = shard.queue.borrow();
            names.iter().try_for_each(|name| queue.can_be_paused(name)).map_or_else(Answer::Failed, |()| Answer::Done)
        }
        Command::WhatPauses(names) => {
            let queue = shard.queue.borrow();
            Answer::PausedBy(names.iter().map(|name| queue.what_pauses(name).map(|by| by.to_string())).collect())
        }
        Command::Change(_)
        | Command::Pause(_)
        | Command::Summary(_)
        | Command::Reload(_)
        | Command::FollowRoutes
        | Command::AwaitLimits
        | Command::SettleLimits(_)
        | Command::HandOver(_) => {
            unreachable!("these have tasks of their own")
        }
        Command::Stats => Answer::Stats(stats(shard)),
        Command::Resolved(answers) => {
            let (mut queue, now) = (shard.queue.borrow_mut(), shard.now_ms());
            for (asking, resolution) in answers {
                queue.resolved(asking, &resolution.map_until(|lasts_ms| now.saturating_add(lasts_ms)), now);
            }
            drop(queue);
            shard.delivery.kick();
            Answer::Done
        }
        Command::Limits(answers) => {
            shard.heard_of_limits(answers);
            Answer::Done
        }
        Command::Ahead => logs_ahead(shard).map_or_else(|reason| Answer::Failed(reason.to_string()), Answer::Ahead),
        Command::Prepare(segments) => {
            shard.own.with_log(|log| log.prepare_more(segments));
            Answer::Done
        }
        Command::Drain => {
            shard.begin_drain();
            Answer::Done
        }
    }
}

async fn hand_over(shard: Rc<Shard>, call: HandOver) -> Answer {
    match call {
        HandOver::Take(take) => shard.take_offers(take).await,
        HandOver::OfferAgain(ids) => {
            shard.offer_again(&ids);
            Answer::Done
        }
        HandOver::TakeBack(ids) => {
            shard.deliver_here(&ids);
            Answer::Done
        }
        HandOver::HandedOver(items) => shard.handed_over(items).await,
        HandOver::SetOffering(offers) => {
            shard.set_offering(offers);
            Answer::Done
        }
        HandOver::OfferAll => shard.offer_all().await,
        HandOver::Recalls => shard.take_recalls().await,
        HandOver::Recalled(answers) => {
            shard.recalled(answers);
            Answer::Done
        }
        HandOver::Retracted => shard.retracted().await,
        HandOver::Missing(ids) => shard.missing(ids).await,
        HandOver::SettledIds => shard.settled_ids().await,
        HandOver::Claim(claim) => shard.claim(claim).await,
        HandOver::Decide(id, is_own) => {
            shard.decide_claim(id, is_own);
            Answer::Done
        }
        HandOver::Claims => shard.claims().await,
        HandOver::Backlog => shard.backlog().await,
    }
}

fn logs_ahead(shard: &Shard) -> io::Result<LogsAhead> {
    let (own, space) = (shard.own.log().ahead(), shard.own.space()?);
    let adopted = shard.adopted.borrow().iter().map(|(_, log)| log.log().ahead()).collect();
    let config = shard.config();
    let kept = Space { bytes: config.spool.min_free_bytes.bytes(), inodes: config.spool.min_free_inodes.into() };
    Ok(LogsAhead { own, adopted, space, kept })
}

fn stats(shard: &Shard) -> Vec<(&'static str, u64)> {
    let mut stats = shard.metrics.snapshot();
    let counts = shard.queue.borrow().counts();
    let connections = shard.pool.all();
    let ahead = shard.own.log().ahead();
    stats.extend([
        ("queue_messages", counts.messages as u64),
        ("queue_waiting", counts.waiting as u64),
        ("queue_ready", counts.ready as u64),
        ("queue_attempting", counts.attempting as u64),
        ("queue_failed", counts.failed as u64),
        ("queue_bounced", counts.bounced as u64),
        ("queue_purged", counts.purged as u64),
        ("dispatches_at_homes", shard.homes.out() as u64),
        ("dispatches_of_others", shard.homes.guests() as u64),
        ("reports_waiting", shard.queue.borrow().reports_waiting() as u64),
        ("logs_loading", shard.logs_loading() as u64),
        ("logs_closed", shard.logs_closed() as u64),
        ("own_log_closed", shard.is_own_log_closed().into()),
        ("mail_log_blocks", shard.waits_for_mail_log().into()),
        ("connections_idle", connections.idle.into()),
        ("pool_created", shard.metrics.connects.get()),
        ("pool_reused", shard.metrics.reused.get()),
        ("pool_active", connections.active.into()),
        ("pool_idle", connections.idle.into()),
        ("pool_total", connections.total.into()),
        ("segments_kept", ahead.kept.into()),
        ("segments_ready", ahead.ready.into()),
        ("arena_bytes", shard.ring.pages_bytes() as u64),
        ("staging_bytes", shard.staging.taken() as u64),
        ("receive_buffers_free", shard.ring.buffers_free() as u64),
        ("receive_heap_bytes", shard.ring.heap_bytes() as u64),
    ]);
    stats
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, sync::mpsc, task::Poll};

    use super::*;
    use crate::{
        control::{Change, ChangeOrder, ListQuery, Selection},
        test_shard::run,
    };

    /// They waited for as long as the disk had no room for it, while the node said that it was ready.
    #[test]
    fn commands_about_mail_of_a_log_that_cannot_be_opened_are_refused() {
        run(async |shard| {
            let selection = Selection::Matching(Default::default());
            let hold = ChangeOrder { change: Change::Hold {}, selection, after: None, only_counts: false };
            for command in [Command::Summary(None), Command::List(ListQuery::default()), Command::Change(hold)] {
                shard.loading.set(1);
                let mut waiting = pin!(take_time(&shard, command));
                let is_answered = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await;
                assert!(!is_answered, "it is being loaded");
                shard.closed_logs.borrow_mut().push(7);
                shard.wake_life();
                let answer = waiting.await;
                assert!(
                    matches!(&answer, Answer::Failed(reason) if reason.starts_with("log 7 of the spool cannot be opened")),
                    "{answer:?}"
                );
                shard.closed_logs.borrow_mut().clear();
                shard.loading.set(0);
            }
            assert!(matches!(take_time(&shard, Command::Summary(None)).await, Answer::Summary(_)));
        });
    }

    /// Whoever waited for a task of a shard that had ended, while another still drained, waited until their own patience was over.
    #[test]
    fn who_waits_for_a_task_of_a_shard_that_ends_hears_at_once_that_nobody_answers() {
        let owed = Owed::default();
        let (sender, answers) = mpsc::channel();
        let owing = |text: &'static str| {
            let sender = sender.clone();
            owed.owing(Box::new(move |answer| sender.send((text, matches!(answer, Answer::Done))).unwrap()))
        };
        let (first, last) = (owing("first"), owing("last"));
        drop(sender);
        first.settle(Answer::Done);
        assert_eq!(answers.try_recv(), Ok(("first", true)));
        assert_eq!(answers.try_recv(), Err(mpsc::TryRecvError::Empty), "the last one is under way");
        drop(owed);
        assert_eq!(answers.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        // The task may run once more.
        last.settle(Answer::Done);
    }
}
