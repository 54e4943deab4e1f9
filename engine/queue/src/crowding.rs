//! A destination that allows fewer connections than it is given: how many it bears is learned from those that it refuses.
//!
//! A refused connection (`421 too many connections` in place of a greeting) says that the host is alive and full. While others are up, no
//! further one is made for a while, which doubles with each refusal until a further one is taken. A home that has none up gives way for as
//! long: it is no home, its own mail goes to the other homes, and the guests that it has go there, too. So the homes are as many as the
//! destination bears. Where nobody else can deliver it tries again within seconds. No part of a limit moves, so limits hold as before.

use crate::destination::Destination;
use crate::destination_id::DestinationId;
use crate::hosts::HostIndex;
use crate::queue::Queue;
use crate::retry::{Jitter, back_off_ms};
use crate::throttling::Throttled;
use crate::wait::Wait;

/// No connection is up: the next one is tried after this, doubling up to [`PAUSE_MAX_MS`].
const PAUSE_FIRST_MS: u64 = 1_000;
const PAUSE_MAX_MS: u64 = 30_000;
/// Some are up, here or at other homes: a further one is tried after this, doubling up to [`SETTLED_MAX_MS`].
const SETTLED_FIRST_MS: u64 = 10_000;
const SETTLED_MAX_MS: u64 = 300_000;
const JITTER_PERCENT: u8 = 20;

/// What refused connections say; the default is that none was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Crowding {
    /// Connections that were up when a further one was refused.
    up: u32,
    /// Refusals since a further one was taken.
    times: u32,
    /// Until then no further one is made (unix ms); 0 where none was refused.
    settled_until: u64,
    /// None is up, and none is tried before (unix ms).
    pause_until: u64,
    /// Until then the other homes deliver (unix ms).
    gives_way_until: u64,
}

impl Crowding {
    /// A connection was refused while `up` others were. False for a straggler of those that already counted.
    pub(crate) fn refused(&mut self, up: u32, has_other_homes: bool, now: u64, jitter: &mut Jitter) -> bool {
        if now < self.settled_until && self.up <= up && (up > 0 || now < self.pause_until) {
            return false;
        }
        self.times = self.times.saturating_add(1);
        self.up = up;
        self.settled_until = now + back_off_ms(SETTLED_FIRST_MS, SETTLED_MAX_MS, self.times, JITTER_PERCENT, jitter);
        let pause_ms = back_off_ms(PAUSE_FIRST_MS, PAUSE_MAX_MS, self.times, JITTER_PERCENT, jitter);
        self.pause_until = if up == 0 { now + pause_ms } else { 0 };
        self.gives_way_until = if up == 0 && has_other_homes { self.settled_until } else { 0 };
        true
    }

    /// So many connections are up. True if that is more than were borne before: nothing is known any more.
    pub(crate) fn are_up(&mut self, up: u32) -> bool {
        let is_more = self.times > 0 && up > self.up;
        if is_more {
            self.end();
        }
        is_more
    }

    /// No other home can deliver either.
    pub(crate) fn nobody_else(&mut self) {
        self.gives_way_until = self.gives_way_until.min(self.pause_until);
    }

    /// Nothing is known any more: an operator wants it tried now, or it bears more. A home that gave way is still to be made one again.
    pub(crate) fn end(&mut self) {
        *self = Self { gives_way_until: self.gives_way_until.min(1), ..Self::default() };
    }

    /// Connections that there may be, where they were refused lately and some are up.
    pub(crate) fn most(self, now: u64) -> Option<u32> {
        (self.up > 0 && now < self.settled_until).then_some(self.up)
    }

    /// None is up, and until then none is tried.
    pub(crate) fn pauses_until(self, now: u64) -> Option<u64> {
        (now < self.pause_until).then_some(self.pause_until)
    }

    /// Until then other homes deliver.
    pub(crate) fn gives_way_until(self, now: u64) -> Option<u64> {
        (now < self.gives_way_until).then_some(self.gives_way_until)
    }

    /// When a guest may come again, and why not before. Sooner than its own mail: where the other homes are refused, too, it is a home
    /// again long before it was to be one.
    pub(crate) fn sends_away(self, now: u64) -> Option<(u64, Wait)> {
        let until = self.gives_way_until(now)?.min(now + PAUSE_MAX_MS);
        Some((until, Wait::Crowded { until }))
    }

    /// It gave way, and that is over.
    pub(crate) fn is_back(self, now: u64) -> bool {
        self.gives_way_until > 0 && now >= self.gives_way_until
    }

    pub(crate) fn came_back(&mut self) {
        self.gives_way_until = 0;
    }

    /// None was refused while none was up since one was taken.
    pub(crate) fn is_quiet(self) -> bool {
        self.pause_until == 0
    }
}

impl Destination {
    /// A host has enough connections, so it is alive. True if its breaker closed.
    pub(crate) fn host_crowded(&mut self, host: HostIndex, reason: &str, now: u64, jitter: &mut Jitter) -> bool {
        let settings = self.limits.breaker;
        let Some(circuit) = self.hosts.circuit_mut(host) else { return false };
        let closed = circuit.reached(&settings);
        self.hosts.crowded(host, now, jitter);
        self.keep_reason(reason);
        closed
    }

    /// No host takes another connection, while so many are up. False for a straggler.
    pub(crate) fn crowded(&mut self, up: u32, now: u64, jitter: &mut Jitter) -> bool {
        if !self.crowding.refused(up, self.part.has_others(), now, jitter) {
            return false;
        }
        self.window.come_down_to(up);
        self.is_well = false;
        true
    }

    /// So many connections are up. True if it bears more than it did.
    pub(crate) fn are_up(&mut self, up: u32) -> bool {
        let is_more = self.crowding.are_up(up);
        if is_more {
            self.note_health(false);
        }
        is_more
    }
}

impl Queue {
    /// This host has refused a connection because it has enough of them (421, or what else means that, in place of a greeting); `reason` is
    /// shown to operators. It is alive; other hosts come first for some seconds. When none takes the connection call [`Queue::crowded`].
    pub fn host_crowded(&mut self, destination: DestinationId, host: HostIndex, reason: &str, now: u64) {
        if self.live(destination).is_none() {
            return;
        }
        let state = &mut self.destinations[destination.index()];
        let closed = state.host_crowded(host, reason, now, &mut self.jitter);
        self.note_breaker(closed, destination, host, true, now);
    }

    /// No host took a connection, and at least one has enough of them, while `up` others of this shard are up, idle ones too. What the
    /// attempt was for is given back with [`Queue::abandon`] or [`Queue::put_off_guest`]: it is not the message that was refused.
    pub fn crowded(&mut self, destination: DestinationId, up: u32, now: u64) {
        if self.live(destination).is_none() {
            return;
        }
        let state = &mut self.destinations[destination.index()];
        if !state.crowded(up, now, &mut self.jitter) {
            return;
        }
        if let Some(until) = state.crowding.pauses_until(now) {
            self.note_throttled(Throttled { destination, until });
        }
        if self.destinations[destination.index()].crowding.gives_way_until(now).is_some() {
            self.assign_homes(destination.slot, now);
        }
        self.refresh(destination.slot, now);
    }

    /// A connection of this shard was greeted, and so many are up now.
    pub fn connections_are_up(&mut self, destination: DestinationId, up: u32, now: u64) {
        let Some(state) = self.live_mut(destination) else { return };
        if state.are_up(up) {
            self.come_back(destination.slot, now);
        }
    }

    /// Connections that this shard may have to a destination just now: fewer than [`Queue::connections_max`] where the destination has
    /// refused some lately.
    pub fn connections_now(&self, destination: DestinationId, now: u64) -> u32 {
        let Some(state) = self.live(destination) else { return 0 };
        if state.away.is_some() || state.crowding.pauses_until(now).is_some() {
            return 0;
        }
        let most = state.limits.connections_max;
        state.crowding.most(now).map_or(most, |up| up.min(most))
    }

    /// A home that gave way is one again when its time is over.
    pub(crate) fn come_back(&mut self, slot: u32, now: u64) {
        let crowding = &mut self.destinations[slot as usize].crowding;
        if crowding.is_back(now) {
            crowding.came_back();
            self.assign_homes(slot, now);
        }
    }

    /// Of guests that a home refuses: when and why, if it gave way.
    pub(crate) fn gives_way(&self, slot: u32, now: u64) -> Option<(u64, Wait)> {
        self.destinations[slot as usize].crowding.sends_away(now)
    }
}
