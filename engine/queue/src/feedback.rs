//! What attempts say about hosts and destinations: who was reached, who broke off, who asked for less.

use crate::breaker::Break;
use crate::destination_id::DestinationId;
use crate::dispatch::Dispatch;
use crate::hosts::{BreakerChange, HostIndex, HostsTried, PutOffBy};
use crate::kept_reply::split_reply;
use crate::outcome::Outcome;
use crate::queue::Queue;
use crate::throttling::{Asks, Said, Throttled, asks, put_off_by, speaks_of_connection};

/// Changes kept for [`Queue::take_change`]; a driver that takes them after each turn never sees one dropped.
const CHANGES_MAX: usize = 4096;

/// What happened to a destination, for the log and the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The breaker of a host opened, is half-open or closed.
    Breaker(BreakerChange),
    /// It asked for less and pauses.
    Throttled(Throttled),
}

impl Queue {
    /// The host to connect to for an attempt: of those that may be tried and were not, one of the lowest preference, drawn by
    /// weight; the last that it may ask, of any preference. `None`: ask [`Queue::ends_round`] what the attempt counts for.
    pub fn next_host(&mut self, destination: DestinationId, tried: &mut HostsTried, now: u64) -> Option<HostIndex> {
        self.live(destination)?;
        let (host, is_half_open) = self.destinations[destination.index()].next_host(tried, now, &mut self.jitter)?;
        self.note_breaker(is_half_open, destination, host, true, now);
        Some(host)
    }

    /// An attempt was put off by `host`, and had been put off by or not got through to those of `tried`: may another host have it? Then
    /// `tried` has this one, too: all of its addresses, or the one. An attempt is put off by a few hosts, not by all that there may be; for what
    /// hosts do not offer it asks on, and [`Queue::all_hosts_lack`] says what that comes to.
    pub fn has_other_host(&self, destination: DestinationId, host: HostIndex, by: PutOffBy, tried: &mut HostsTried, now: u64) -> bool {
        self.live(destination).is_some_and(|state| state.has_other_host(host, by, tried, now))
    }

    /// Was each host of the destination asked by an attempt, the last time `host`, and none offers what its message, or some of its recipients,
    /// need? Else another may, and nothing is final.
    pub fn all_hosts_lack(&self, destination: DestinationId, host: HostIndex, tried: HostsTried) -> bool {
        self.live(destination).is_some_and(|state| state.hosts.all_lack(state.hosts.lacking(host, tried)))
    }

    /// None is tried yet. The host where the attempt before failed for reasons of its machine or the line, with content that it may have taken or
    /// without, comes after the others: for a message that has it end each time, the next one is to be asked once.
    pub fn hosts_to_try(&self, dispatch: &Dispatch) -> HostsTried {
        let mut tried = HostsTried::default();
        if dispatch.attempt() > 1
            && let (Some(relay), Some(state)) = (self.failed_at(dispatch), self.live(dispatch.destination))
        {
            state.hosts.later(relay, &mut tried);
        }
        tried
    }

    /// Is there a host that comes before this one, by [`Queue::hosts_to_try`]?
    pub fn comes_later(&self, destination: DestinationId, host: HostIndex, tried: HostsTried, now: u64) -> bool {
        self.live(destination).is_some_and(|state| state.hosts.comes_later(host, tried, &state.limits.breaker, now))
    }

    /// The host where the attempt before failed so.
    pub(crate) fn failed_at(&self, dispatch: &Dispatch) -> Option<&[u8]> {
        if dispatch.is_guest() {
            return self.guest_failed_at(dispatch.key);
        }
        let recipients = self.messages.recipients(dispatch.key.index);
        self.recipients(dispatch).find_map(|(number, _)| {
            let (words, relay) = split_reply(self.texts.get(recipients[usize::from(number)].reply()));
            (!relay.is_empty() && put_off_by(words) == PutOffBy::Address).then_some(relay)
        })
    }

    /// None of the hosts that an attempt tried took it. True if it counts as one: all hosts were tried, by it alone or by it and those
    /// before it that did not count. Then call [`Queue::unreachable`], else [`Queue::abandon`].
    ///
    /// Each host is tried again at a time of its own: of many dead addresses one after the other is, and if each were an attempt, a message
    /// had dozens within seconds.
    pub fn ends_round(&mut self, destination: DestinationId, tried: HostsTried, now: u64) -> bool {
        let Some(state) = self.live_mut(destination) else { return true };
        let ends = state.hosts.ends_round(tried);
        if !ends {
            state.unreachable(now);
        }
        ends
    }

    /// A connection to this host is up and greeted. If the destination was dead, what waits goes at once.
    pub fn host_reached(&mut self, destination: DestinationId, host: HostIndex, now: u64) {
        let Some(state) = self.live_mut(destination) else { return };
        let closed = state.host_reached(host);
        self.note_breaker(closed, destination, host, true, now);
        self.refresh(destination.slot, now);
    }

    /// This host answered an attempt, well or not: counted for its breaker.
    pub fn host_served(&mut self, destination: DestinationId, host: HostIndex, now: u64) {
        let Some(state) = self.live_mut(destination) else { return };
        if state.host_served(host, now) {
            self.note_breaker(true, destination, host, true, now);
            self.refresh(destination.slot, now);
        }
    }

    /// No usable connection to this host; `reason` is shown to operators: `connect to 127.0.0.1:2600: refused`.
    pub fn host_failed(&mut self, destination: DestinationId, host: HostIndex, reason: &str, now: u64) {
        self.host_broke(destination, host, Break::BeforeGreeting, reason, now);
    }

    /// No connection could be made for a reason of this system, such as descriptors: that is no word about a host, whichever is next. The next
    /// attempt waits a little. `reason` is shown to operators. For this attempt ask [`Queue::tells_shortage`].
    pub fn shortage(&mut self, destination: DestinationId, reason: &str, now: u64) {
        if let Some(state) = self.live_mut(destination) {
            state.shortage(reason, now);
        }
    }

    /// Is it to be told that an attempt has met a [shortage](Queue::shortage)? The first one is, and then one a minute, with the number of the
    /// others: then call [`Queue::unreachable`] for it, else [`Queue::abandon`].
    pub fn tells_shortage(&mut self, destination: DestinationId, now: u64) -> bool {
        self.live_mut(destination).is_none_or(|state| state.tells_shortage(now))
    }

    /// The connection to this host broke off, or nothing more was heard, with an attempt under way. For the attempt itself see
    /// [`Queue::settle`].
    pub fn host_faltered(&mut self, destination: DestinationId, host: HostIndex, reason: &str, now: u64) {
        self.host_broke(destination, host, Break::AfterGreeting, reason, now);
    }

    fn host_broke(&mut self, destination: DestinationId, host: HostIndex, how: Break, reason: &str, now: u64) {
        if self.live(destination).is_none() {
            return;
        }
        let state = &mut self.destinations[destination.index()];
        let was_closed = state.is_closed(host);
        let opened = state.host_failed(host, how, reason, now, &mut self.jitter);
        self.note_breaker(opened, destination, host, !was_closed, now);
        self.refresh(destination.slot, now);
    }

    /// The destination closed a connection (421 between transactions): its window shrinks by one.
    pub fn refused(&mut self, destination: DestinationId) {
        if let Some(state) = self.live_mut(destination) {
            state.refused();
        }
    }

    /// What happened to destinations since the last call, oldest first.
    pub fn take_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Takes in what an attempt that delivered nothing says about its destination. True if it pauses because of that.
    pub(crate) fn heed(&mut self, dispatch: &Dispatch, outcomes: &[(u16, Outcome<'_>)], now: u64) -> bool {
        let destination = dispatch.destination;
        let throttling = outcomes.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Deferred { reply } if asks(reply) == Some(Asks::Pause) => Some((*reply, Said::OfMail)),
            Outcome::Untried { reply } if asks(reply) == Some(Asks::Pause) && !speaks_of_connection(reply) => Some((*reply, Said::OnUsed)),
            _ => None,
        });
        // Another host has said otherwise: that one comes after it, and the destination is not left alone.
        let throttling = throttling.filter(|_| !dispatch.is_of_one_host);
        let state = &mut self.destinations[destination.index()];
        if state.away.is_some() {
            // Its home has heeded it, and may have paused.
            if throttling.is_some() {
                let until = now + state.limits.throttle_pause_ms;
                self.avoid_sender(destination, dispatch.key, until, now);
            }
            return false;
        }
        let Some((reply, said)) = throttling else {
            let asks_for_fewer = |outcome: &Outcome<'_>| matches!(outcome, Outcome::Deferred { reply } if asks(reply).is_some());
            if outcomes.iter().any(|(_, outcome)| asks_for_fewer(outcome)) {
                state.refused();
            }
            return false;
        };
        let pauses = state.throttled(&String::from_utf8_lossy(reply), said, now, &mut self.jitter);
        let Some(until) = state.throttled_until(now).filter(|_| pauses) else { return false };
        self.avoid_sender(destination, dispatch.key, until, now);
        self.note_throttled(Throttled { destination, until });
        true
    }

    pub(crate) fn note_breaker(&mut self, changed: bool, destination: DestinationId, host: HostIndex, was_broken: bool, now: u64) {
        if changed {
            let change = self.destinations[destination.index()].change(destination, host, was_broken, now);
            self.note(Change::Breaker(change));
        }
    }

    pub(crate) fn note_throttled(&mut self, throttled: Throttled) {
        self.note(Change::Throttled(throttled));
    }

    fn note(&mut self, change: Change) {
        if self.changes.len() < CHANGES_MAX {
            self.changes.push_back(change);
        }
    }
}
