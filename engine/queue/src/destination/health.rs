//! What attempts say about a destination: which of its hosts is next, whether they answer, and what it bears.

use super::Destination;
use crate::breaker::{Break, Breaker};
use crate::destination_id::DestinationId;
use crate::hosts::{BreakerChange, HostIndex, HostsTried, PutOffBy, shortened};
use crate::retry::Jitter;
use crate::route::NextHop;
use crate::throttling::Said;
use crate::wait::Wait;
use crate::window::Window;

/// Pause after an attempt that found no host for a reason of our own.
const SHORTAGE_PAUSE_MS: u64 = 1000;

impl Destination {
    /// The host to connect to, see [`crate::hosts::Hosts::choose`].
    pub(crate) fn next_host(&mut self, tried: &mut HostsTried, now: u64, jitter: &mut Jitter) -> Option<(HostIndex, bool)> {
        let chosen = self.hosts.choose(tried, &self.limits.breaker, now, jitter)?;
        self.is_well &= self.hosts.circuit(chosen.0).is_some_and(|circuit| circuit.is_well());
        Some(chosen)
    }

    /// May an attempt that `host` put off ask another one? See [`crate::hosts::Hosts::has_other`].
    pub(crate) fn has_other_host(&self, host: HostIndex, by: PutOffBy, tried: &mut HostsTried, now: u64) -> bool {
        self.hosts.has_other(host, by, tried, &self.limits.breaker, now)
    }

    /// Replaces the hosts, see [`crate::hosts::Hosts::replace`]. True if something changed.
    pub(crate) fn set_hosts(&mut self, hops: &[NextHop], is_whole: bool) -> bool {
        let was_whole = self.hosts.is_whole();
        if !self.hosts.replace(hops, is_whole) {
            if let Some(away) = &mut self.away
                && was_whole != is_whole
            {
                away.site = None;
            }
            return false;
        }
        self.note_health(false);
        if let Some(away) = &mut self.away {
            away.site = None;
        }
        true
    }

    /// The hosts, in the order of their slots.
    pub(crate) fn hops(&self) -> impl Iterator<Item = &NextHop> {
        self.hosts.hops()
    }

    pub(crate) fn hop(&self, index: HostIndex) -> Option<&NextHop> {
        self.hosts.hop(index)
    }

    /// The breaker of this host is closed.
    pub(crate) fn is_closed(&self, host: HostIndex) -> bool {
        self.hosts.circuit(host).is_some_and(|circuit| circuit.is_closed())
    }

    /// A host greeted. True if its breaker closed.
    pub(crate) fn host_reached(&mut self, host: HostIndex) -> bool {
        let was_broken = self.hosts.circuits().all(|circuit| !circuit.is_closed());
        let settings = self.limits.breaker;
        let Some(circuit) = self.hosts.circuit_mut(host) else { return false };
        let closed = circuit.reached(&settings);
        self.pause_until = 0;
        self.hosts.has_room(host);
        self.note_health(was_broken && closed);
        closed
    }

    /// A host answered an attempt. True if its breaker closed.
    pub(crate) fn host_served(&mut self, host: HostIndex, now: u64) -> bool {
        let settings = self.limits.breaker;
        let Some(circuit) = self.hosts.circuit_mut(host) else { return false };
        let closed = circuit.served(&settings, now);
        if closed {
            let was_broken = self.hosts.circuits().filter(|circuit| circuit.is_closed()).count() == 1;
            self.note_health(was_broken);
        }
        closed
    }

    /// An attempt at a host broke off. True if its breaker opened.
    pub(crate) fn host_failed(&mut self, host: HostIndex, how: Break, reason: &str, now: u64, jitter: &mut Jitter) -> bool {
        let open = self.in_flight.saturating_sub(self.chained).max(1);
        let settings = self.limits.breaker;
        let Some(circuit) = self.hosts.circuit_mut(host) else { return false };
        if how == Break::BeforeGreeting {
            self.failure_told = true;
        }
        if circuit.is_closed() {
            self.window.lose_one();
        }
        let opened = circuit.failed(how, open, &settings, now, jitter);
        if opened {
            self.hosts.opened(host, reason);
        }
        if opened || how == Break::BeforeGreeting {
            self.keep_reason(reason);
        }
        self.note_health(false);
        opened
    }

    /// A transaction was delivered: the destination bears more.
    pub(crate) fn succeeded(&mut self, now: u64) {
        if self.away.is_some() {
            // Whatever kept a home from trying is over; the rest is the home's.
            return self.reason.clear();
        }
        if !self.is_well {
            self.throttle.delivered(now);
            self.hosts.circuits_mut().for_each(|circuit| circuit.forgive());
            self.note_health(false);
        }
        if self.crowding.most(now).is_none_or(|up| self.window.attempts() < up) {
            self.window.grow(&self.limits);
        }
    }

    /// The limits are others now.
    pub(crate) fn limit_window(&mut self) {
        self.window.limit(&self.limits);
    }

    /// Nothing is known of it.
    pub(crate) fn begin_window(&mut self) {
        self.window = Window::new(&self.limits);
    }

    #[cfg(test)]
    pub(crate) fn set_window(&mut self, attempts: u32) {
        self.window = Window::new(&crate::route::DestinationLimits { window_initial: attempts, connections_max: attempts, ..self.limits });
    }

    /// The destination said that it bears less.
    pub(crate) fn refused(&mut self) {
        self.window.lose_one();
    }

    /// An attempt delivered nothing because the destination is asked for too much; `reply` says so. True if it pauses.
    pub(crate) fn throttled(&mut self, reply: &str, said: Said, now: u64, jitter: &mut Jitter) -> bool {
        let open = self.in_flight.saturating_sub(self.chained).max(if said == Said::OnUsed { 2 } else { 1 });
        let limits = &self.limits;
        let pauses = self.throttle.throttled(open, limits.throttle_pause_ms, limits.breaker.timeout_max_ms, now, jitter);
        if pauses {
            self.window.halve();
        } else if self.throttle.until(now).is_none() && said == Said::OfMail {
            // The end of a used connection is told by itself, see [`Destination::refused`].
            self.window.lose_one();
        }
        self.is_well = false;
        self.keep_reason(reply);
        pauses
    }

    /// It paused, and nothing was delivered since.
    pub(crate) fn has_paused(&self) -> bool {
        self.throttle.has_paused()
    }

    /// The end of a pause that it asked for.
    pub(crate) fn throttled_until(&self, now: u64) -> Option<u64> {
        self.throttle.until(now)
    }

    /// When the rate lets the next message go, if that is later than `now`.
    pub(crate) fn rate_next(&self, now: u64) -> Option<u64> {
        self.limits.rate.map(|rate| self.rate.next_at(rate)).filter(|&at| at > now)
    }

    /// An attempt found no host. If none was reported to have failed, the reason is our own (no descriptors, say), and the next
    /// attempt waits a little; so a driver that cannot connect does not spin.
    pub(crate) fn unreachable(&mut self, now: u64) {
        if self.away.is_some() {
            return; // Its home said how long it sleeps.
        }
        if !std::mem::take(&mut self.failure_told) {
            self.pause_until = self.pause_until.max(now + SHORTAGE_PAUSE_MS);
        }
    }

    /// No connection could be made for a reason of this system: says nothing of any host, and the next attempt waits a little.
    pub(crate) fn shortage(&mut self, reason: &str, now: u64) {
        self.pause_until = self.pause_until.max(now + SHORTAGE_PAUSE_MS);
        // The next connection that comes up ends it, and takes the reason away.
        self.is_well = false;
        self.keep_reason(reason);
    }

    /// An attempt has met that shortage: is it to be told? Then its reason says of how many nobody was told.
    pub(crate) fn tells_shortage(&mut self, now: u64) -> bool {
        let untold = self.shortages.found(now);
        if let Some(untold @ 1..) = untold {
            let reason = format!("{}; {untold} times more since that was last told", self.reason);
            self.keep_reason(&reason);
        }
        untold.is_some()
    }

    /// What keeps it from being tried is a shortage, here or at its home.
    pub(crate) fn is_short(&self, now: u64) -> bool {
        now < self.pause_until || self.away.as_ref().is_some_and(|away| matches!(away.wait(now), Wait::Shortage { .. }))
    }

    /// No attempt is open, so no probe is either: one that ended without a word is made again soon.
    pub(crate) fn forget_probes(&mut self, now: u64) {
        if self.is_well {
            return;
        }
        let settings = self.limits.breaker;
        self.hosts.circuits_mut().for_each(|circuit| circuit.forget_probes(&settings, now));
    }

    /// Forgets that hosts are dead and that it asked for less: it is tried when mail waits.
    pub(crate) fn revive(&mut self, now: u64) {
        if let Some(away) = &mut self.away {
            away.wake();
        }
        self.pause_until = 0;
        self.throttle.end();
        self.crowding.end();
        self.hosts.circuits_mut().for_each(|circuit| circuit.revive(now));
        self.note_health(false);
    }

    /// A change of a host's breaker, as it is told.
    pub(crate) fn change(&self, id: DestinationId, host: HostIndex, was_broken: bool, now: u64) -> BreakerChange {
        let breaker = self.hosts.circuit(host).map_or(Breaker::Closed, |circuit| circuit.breaker(now));
        BreakerChange { destination: id, host, now: breaker, was_broken }
    }

    /// `begins_anew`: it was away, and is back.
    pub(crate) fn note_health(&mut self, begins_anew: bool) {
        self.is_well = self.throttle.is_quiet() && self.crowding.is_quiet() && self.hosts.circuits().all(|circuit| circuit.is_well());
        if begins_anew {
            self.window = Window::new(&self.limits);
        }
        if begins_anew || self.is_well {
            self.reason.clear();
        }
    }

    pub(crate) fn keep_reason(&mut self, reason: &str) {
        self.reason = shortened(reason);
    }
}
