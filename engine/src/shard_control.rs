//! A shard's answers to the coordinator: list, show and steer queued messages, counters, drain.

use std::rc::Rc;

use crate::{
    control::{Answer, Command, HandOver, Request},
    listing, pausing, reloading,
    request_lane::RequestReceiver,
    shard::Shard,
    steering, summary,
};

/// Answers until the shard ends.
pub(crate) async fn answer_requests(shard: Rc<Shard>, mut requests: RequestReceiver) {
    loop {
        while let Some(Request { command, answer }) = requests.take() {
            match command {
                // What waits for the disk or goes over a long queue does not hold up the rest, a drain least of all.
                Command::Change(order) => {
                    let changing = shard.clone();
                    shard.ring.spawn(async move { answer(steering::steer(&changing, order).await) }).detach();
                }
                Command::Reload(config) => {
                    let changing = shard.clone();
                    shard
                        .ring
                        .spawn(
                            async move { answer(reloading::swap(&changing, config).await.map_or_else(Answer::Failed, |()| Answer::Done)) },
                        )
                        .detach();
                }
                Command::SettleLimits(change) => {
                    let settling = shard.clone();
                    shard
                        .ring
                        .spawn(async move {
                            reloading::settle_limits(&settling, change).await;
                            answer(Answer::Done);
                        })
                        .detach();
                }
                Command::Pause(pauses) => {
                    let changing = shard.clone();
                    shard
                        .ring
                        .spawn(async move {
                            pausing::pause(&changing, pauses).await;
                            answer(Answer::Done);
                        })
                        .detach();
                }
                Command::FollowRoutes => {
                    let following = shard.clone();
                    shard.ring.spawn(async move { answer(reloading::follow_routes(&following).await) }).detach();
                }
                Command::AwaitLimits => {
                    let waiting = shard.clone();
                    shard.ring.spawn(async move { answer(reloading::limits_kept(&waiting).await) }).detach();
                }
                Command::Summary(name) => {
                    let looking = shard.clone();
                    shard
                        .ring
                        .spawn(async move {
                            answer(summary::summarise(&looking, name.as_deref()).await.map_or_else(Answer::Failed, Answer::Summary))
                        })
                        .detach();
                }
                // So does what must not be answered before the mail of earlier runs is queued.
                command @ (Command::List(_) | Command::Show(_) | Command::Why(..)) if shard.logs_loading() > 0 => {
                    let loading = shard.clone();
                    shard
                        .ring
                        .spawn(async move {
                            loading.loaded().await;
                            answer(reply(&loading, command));
                        })
                        .detach();
                }
                Command::HandOver(call) => {
                    let shard = shard.clone();
                    shard.ring.clone().spawn(async move { answer(hand_over(shard, call).await) }).detach();
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
            for (destination, resolution) in answers {
                queue.resolved(destination, &resolution.map_until(|lasts_ms| now.saturating_add(lasts_ms)), now);
            }
            drop(queue);
            shard.delivery.kick();
            Answer::Done
        }
        Command::Limits(answers) => {
            shard.heard_of_limits(answers);
            Answer::Done
        }
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
        ("queue_purged", counts.purged as u64),
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
