//! What a connection does when it has no message: it is parked, tested, kept or closed.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use ringpost_queue::{DestinationId, Dispatch};
use ringpost_ring::Received;
use ringpost_smtp::client::Disconnect;

use crate::{
    dialing,
    outbound::{Event, Outbound},
    shard::Shard,
};

/// A destination that has had no message for so long has no connections made or kept for it, whatever `min_idle` says.
const KEPT_WITHOUT_MAIL: Duration = Duration::from_secs(300);

/// What a connection remembers while it has no message.
pub(crate) struct Idling {
    /// When it last had one, or was made for one.
    pub(crate) used: Instant,
    since: Option<Instant>,
    tested: Option<Instant>,
    /// The answer to a test is awaited.
    is_testing: bool,
}

impl Idling {
    pub(crate) fn new(used: Instant) -> Self {
        Idling { used, since: None, tested: None, is_testing: false }
    }

    /// It has a message.
    pub(crate) fn end(&mut self, now: Instant) {
        *self = Idling::new(now);
    }

    /// The peer answered: a test that was under way is passed.
    pub(crate) fn passed(&mut self) {
        self.is_testing = false;
    }

    /// A test came before what it does next.
    pub(crate) fn was_tested(&self) -> bool {
        self.tested.is_some()
    }

    /// It ended with a test under way.
    pub(crate) fn has_failed(&self) -> bool {
        self.is_testing
    }
}

impl Outbound<'_> {
    /// Nothing to do: waits in the pool for an attempt, a word of the peer, or the end of patience. Returns bytes that came.
    pub(crate) async fn idle(&mut self) -> Option<Received> {
        self.send_out();
        let now = self.shard.ring.now();
        if !self.may_serve() || !self.client.can_begin() {
            if self.age(now) >= self.limits.max_lifetime {
                self.shard.metrics.pool_lifetime_expired.increment();
            }
            self.client.quit(&mut self.out);
            if self.declined.is_some() {
                // A message waits to go elsewhere: the farewell is said, and not waited for.
                self.client.disconnected(Disconnect::Closed);
            }
            return None;
        }
        let idle_since = *self.idling.since.get_or_insert(now);
        if self.limits.test_on_return && self.idling.tested.is_none() {
            self.test(now);
            return None;
        }
        let parked = self.parked.clone();
        self.soon_idle = None;
        if !self.shard.pool.park(self.destination, &parked, &self.limits) {
            self.client.quit(&mut self.out);
            return None;
        }
        self.has_rested = true;
        self.shard.keep_idle(self.destination, self.idling.used);
        let event = self.wait(self.idle_patience(now, idle_since), Some(&parked)).await;
        self.shard.pool.leave(self.destination, &parked);
        let now = self.shard.ring.now();
        self.renew_limits();
        match event {
            // Nothing tells an idle one that DNS has other hosts now.
            Event::Handed(dispatch) if !self.has_host() => {
                self.shard.attempt_abandoned(dispatch);
                self.client.quit(&mut self.out);
                None
            }
            Event::Handed(dispatch) => {
                self.next = Some(dispatch);
                let untested = now.duration_since(self.idling.tested.unwrap_or(idle_since));
                if self.limits.test_on_borrow.is_some_and(|after| untested >= after) {
                    self.test(now);
                }
                None
            }
            Event::Bytes(bytes) => {
                self.next = parked.take();
                Some(bytes)
            }
            Event::Ended(why) => {
                self.next = parked.take();
                self.client.disconnected(why);
                None
            }
            Event::TimeOut | Event::Called => {
                self.next = parked.take();
                if self.next.is_none() && (parked.is_retired() || !self.has_host()) {
                    self.client.quit(&mut self.out);
                } else if self.next.is_none() {
                    self.idle_long_enough(now, idle_since);
                }
                None
            }
        }
    }

    /// Has it had its turn while others wait for its seat? Then so until it ends.
    pub(crate) fn gives_way(&self) -> bool {
        if self.giving_way.get().is_none()
            && let Some(giving_way) = self.shard.pool.gives_way(self.destination, self.age(self.shard.ring.now()))
        {
            let _only = self.giving_way.set(giving_way);
        }
        self.giving_way.get().is_some()
    }

    /// Until the next thing that a connection does without mail: its test, its end.
    fn idle_patience(&self, now: Instant, idle_since: Instant) -> Duration {
        let lifetime = self.limits.max_lifetime.saturating_sub(self.age(now));
        let timeout = self.limits.idle_timeout.saturating_sub(now.duration_since(idle_since));
        // One that is kept beyond its time looks again when it could be too many, at the latest.
        let end =
            if timeout.is_zero() && self.limits.min_idle > 0 { self.limits.idle_timeout.max(Duration::from_secs(1)) } else { timeout };
        let test = self
            .limits
            .test_while_idle
            .map_or(Duration::MAX, |every| every.saturating_sub(now.duration_since(self.idling.tested.unwrap_or(idle_since))));
        end.min(lifetime).min(test)
    }

    /// Its patience is over and nothing was handed to it.
    fn idle_long_enough(&mut self, now: Instant, idle_since: Instant) {
        let is_wanted = self.shard.pool.idle_of(self.destination) < self.limits.min_idle
            && now.duration_since(self.idling.used) < KEPT_WITHOUT_MAIL
            && !self.shard.is_ending();
        if self.age(now) >= self.limits.max_lifetime {
            self.shard.metrics.pool_lifetime_expired.increment();
            if is_wanted {
                self.shard.keep_idle(self.destination, self.idling.used);
            }
        } else if now.duration_since(idle_since) >= self.limits.idle_timeout && !is_wanted {
            self.shard.metrics.pool_idle_timeouts.increment();
        } else if !self.shard.is_ending() {
            let tested = self.idling.tested.unwrap_or(idle_since);
            if self.limits.test_while_idle.is_some_and(|every| now.duration_since(tested) >= every) {
                self.test(now);
            }
            return;
        }
        self.client.quit(&mut self.out);
    }

    fn test(&mut self, now: Instant) {
        (self.idling.tested, self.idling.is_testing) = (Some(now), true);
        // One that is tested before its next message is not to be idle.
        if self.next.is_none() {
            self.soon_idle = Some(self.shard.pool.soon_idle(self.destination));
        }
        self.client.probe(&mut self.out);
    }
}

impl Shard {
    /// Makes a connection for a destination that is to have idle ones and has too few; the next is made when this one is idle.
    pub(crate) fn keep_idle(self: &Rc<Self>, destination: DestinationId, used: Instant) {
        let limits = self.pool_limits(destination);
        if limits.min_idle == 0 || self.is_ending() || self.ring.now().duration_since(used) >= KEPT_WITHOUT_MAIL {
            return;
        }
        if let Some((seat, soon_idle)) = self.pool.seat_for_idle(destination, &limits, self.ring.now()) {
            self.ring.spawn(dialing::warm(self.clone(), destination, seat, soon_idle, used)).detach();
        }
    }

    /// An attempt for a connection that has just become free: one that waits for it in the pool.
    pub(crate) fn take_waiting(&self, destination: DestinationId) -> Option<Dispatch> {
        let dispatch = self.pool.take_waiting(destination)?;
        self.metrics.pool_acquire_success.increment();
        Some(dispatch)
    }
}
