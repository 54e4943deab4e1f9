//! A shard takes other settings over: between two of its tasks' turns, so that a session sees them with its next command.

use std::{future::poll_fn, rc::Rc, sync::Arc};

use ringpost_config::Config;
use ringpost_queue::{Filter, RouteError};

use crate::{control::Answer, priority::Priorities, queue_walk::QueueWalk, routes::routes_of, shard::Shard};

/// Messages looked at before other tasks get their turn.
const LOOKS_PER_TURN: usize = 512;

/// Destinations that take over what their routes say before other tasks get their turn: each takes a quarter of a microsecond.
const DESTINATIONS_PER_TURN: usize = 1024;

/// Swaps the settings; [`follow_routes`] is next. No session ends, no attempt is cut off. Err: nothing was changed, and why. One at a time.
pub(crate) async fn swap(shard: &Rc<Shard>, config: Arc<Config>) -> Result<(), RouteError> {
    let now = shard.now_ms();
    shard.queue.borrow_mut().begin_routes(routes_of(&config), now)?;
    shard.pool.begin_change();
    reconfigure_all(shard).await;
    let elsewhere;
    {
        let queue = shard.queue.borrow();
        shard.pool.set_limits(&config, |pattern| queue.route_named(pattern));
        elsewhere = shard.pool.change_limits(|destination| queue.home_connections_max(destination));
        shard.pool.end_change();
        shard.priorities.replace(Priorities::numbered(&config, |pattern| queue.route_named(pattern)));
    }
    elsewhere.into_iter().for_each(|dispatch| shard.attempt_abandoned(dispatch));
    shard.admission.set_limits(&config, shard.share);
    shard.set_config(config);
    // Idle connections look at how long they stay.
    shard.wake_life();
    Ok(())
}

/// What is said of settings that were not taken.
pub(crate) fn refusal(error: RouteError) -> Answer {
    let reason = format!("route: {error}");
    match error {
        RouteError::ChangingOver => Answer::NotNow(reason),
        // Places of routes that are gone are free with a restart, which tries what was refused anew.
        RouteError::TooMany | RouteError::Twice(_) | RouteError::Pattern(_) | RouteError::Hosts(_) => Answer::Failed(reason),
    }
}

/// All destinations go by what their routes say now. Those that are made meanwhile do so from the start.
async fn reconfigure_all(shard: &Rc<Shard>) {
    let mut done = 0;
    loop {
        {
            let (mut queue, now) = (shard.queue.borrow_mut(), shard.now_ms());
            queue.reconfigure(done..done + DESTINATIONS_PER_TURN, now);
            done += DESTINATIONS_PER_TURN;
            if done >= queue.destination_slots() {
                return;
            }
        }
        shard.delivery.kick();
        shard.ring.yield_now().await;
    }
}

/// Queued mail follows the routes that are in force.
pub(crate) async fn follow_routes(shard: &Rc<Shard>) -> Answer {
    // Mail of earlier runs that is still being loaded was given its destinations by the old table, in part.
    shard.loaded().await;
    let (mut moved, mut held, mut keys) = (0, 0, Vec::with_capacity(LOOKS_PER_TURN));
    // What comes meanwhile goes by the routes that are in force.
    let mut walk = QueueWalk::begin(Filter::default(), shard.upcoming_id());
    loop {
        keys.clear();
        let page = walk.page(&mut shard.queue.borrow_mut(), LOOKS_PER_TURN, |view| keys.push(view.key()));
        match page {
            Ok(true) => {}
            Ok(false) => return Answer::Followed { moved, held },
            Err(lost) => return Answer::Failed(lost.to_string()),
        }
        {
            let (mut queue, now) = (shard.queue.borrow_mut(), shard.now_ms());
            for key in &keys {
                let followed = queue.follow_routes(*key, now);
                moved += u64::from(followed.moves);
                held += u64::from(followed.is_held_now);
            }
        }
        shard.countermand(&keys);
        shard.delivery.kick();
        shard.ring.yield_now().await;
    }
}

/// Waits until this shard has no more connections to any destination than its part, which since a change of the limits is the lesser of
/// the old one and the new one. From then on it does not have more. The answer names the change.
pub(crate) async fn limits_kept(shard: &Rc<Shard>) -> Answer {
    poll_fn(|cx| {
        let queue = shard.queue.borrow();
        shard.pool.poll_within(|destination| queue.home_connections_max(destination), cx)
    })
    .await;
    Answer::LimitsKept(shard.pool.changes())
}

/// All shards keep the new limits: their whole parts are theirs, unless another change has come meanwhile.
pub(crate) async fn settle_limits(shard: &Rc<Shard>, change: u64) {
    if !shard.pool.is_newest(change) {
        return;
    }
    shard.queue.borrow_mut().begin_settling();
    reconfigure_all(shard).await;
    if !shard.pool.is_newest(change) {
        // It goes on from here by itself.
        return;
    }
    let elsewhere = {
        let queue = shard.queue.borrow();
        shard.pool.change_limits(|destination| queue.home_connections_max(destination))
    };
    elsewhere.into_iter().for_each(|dispatch| shard.attempt_abandoned(dispatch));
    shard.pool.end_shrinking();
    shard.delivery.kick();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_to_be_tried_again() {
        assert!(
            matches!(refusal(RouteError::ChangingOver), Answer::NotNow(reason) if reason.starts_with("route: connections of earlier limits"))
        );
        for error in
            [RouteError::TooMany, RouteError::Twice("*".to_owned()), RouteError::Pattern("?".to_owned()), RouteError::Hosts("*".to_owned())]
        {
            assert!(matches!(refusal(error.clone()), Answer::Failed(reason) if reason == format!("route: {error}")));
        }
    }
}
