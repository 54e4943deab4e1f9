//! A next hop: how many attempts it bears, which of its hosts answer, and what waits for it.
//!
//! Each rule is a file of its own: `window.rs` (attempts at a time), `hosts.rs` (which host is next), `breaker.rs` (hosts that
//! failed), `throttling.rs` (it asked for less), `rate.rs` (messages per time). Here they meet: may an attempt start now, and if not, what is waited for and
//! until when. Mail of a destination that may not be tried stays in its ready queue and costs nothing there; the destination
//! has one timer, for the time at which the first of what forbids it ends.

use std::mem::offset_of;

use ringpost_prefetch::LINE_BYTES;

use crate::avoided::Avoided;
use crate::away::Away;
use crate::breaker::Breaker;
use crate::crowding::Crowding;
use crate::guests::Guests;
use crate::home::Part;
use crate::hosts::Hosts;
use crate::quota::Quota;
use crate::rate::RateLimiter;
use crate::ready::ReadyQueue;
use crate::route::{DestinationLimits, RouteId, Via};
use crate::shortages::Shortages;
use crate::site::Role;
use crate::slab::NONE;
use crate::throttling::Throttle;
use crate::wait::Wait;
use crate::window::Window;

mod health;

/// Lines of the cache that a look at a destination touches are few, for messages go to many: what each message asks for stands together, and
/// what is asked for seldom fills the room between (see the assertions below).
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Destination {
    /// Counts the uses of this slot.
    pub(crate) generation: u32,
    pub(crate) in_flight: u32,
    /// Attempts that follow another on the same connection, so use no place of the window.
    pub(crate) chained: u32,
    pub(crate) window: Window,
    /// This shard is no home: where the homes are, which own the limits and know the hosts.
    pub(crate) away: Option<Box<Away>>,
    /// Dispatches of other shards, for which this one is a home.
    pub(crate) guests: Guests,
    /// Whose mail goes behind that of others just now.
    pub(crate) avoided: Option<Box<Avoided>>,
    /// After a shortage of our own.
    pause_until: u64,
    /// By command, see `pauses.rs`.
    pub(crate) paused: bool,
    /// In the queue's list of destinations that may be served.
    pub(crate) listed: bool,
    /// All hosts are alive and none has failed since it was last reached.
    pub(crate) is_well: bool,
    /// A host failed since an attempt last found none.
    failure_told: bool,
    pub(crate) route: Option<RouteId>,
    pub(crate) role: Role,
    /// Since when nobody uses it (unix ms); 0 while somebody does. Only for those that are dropped then.
    pub(crate) idle_since: u64,

    pub(crate) ready: ReadyQueue,
    /// Groups of all states that lead here, linked from the oldest to the newest.
    pub(crate) groups: usize,
    pub(crate) oldest_group: u32,
    pub(crate) newest_group: u32,
    /// When its lifetime was made shorter or a hold ended (unix ms): what was too old by that is still being found, and does not end
    /// before [`Destination::spares_until`].
    pub(crate) spares_since: u64,
    pub(crate) spares_until: u64,

    pub(crate) crowding: Crowding,
    pub(crate) hosts: Hosts,

    pub(crate) via: Via,
    pub(crate) retry: crate::retry::RetryPolicy,
    pub(crate) name: String,
    pub(crate) reason: String,

    pub(crate) limits: DestinationLimits,
    /// Of limits of the node, which part is this shard's.
    pub(crate) part: Part,
    throttle: Throttle,
    rate: RateLimiter,
    pub(crate) quota: Quota,
    shortages: Shortages,
    /// Its route began to hold with the table of now.
    pub(crate) holds_anew: bool,
    /// Of a domain: see [`Asking::table`](crate::Asking::table).
    pub(crate) table: u16,
}

/// The line of a field, counted from the beginning.
macro_rules! line_of {
    ($($field:ident).+) => {
        offset_of!(Destination, $($field).+) / LINE_BYTES
    };
}

// What a message asks for is in six lines: to come, to be polled and to be settled each take four or five of them.
const _: () = assert!(line_of!(generation) == 0 && line_of!(role) == 0);
const _: () = assert!(line_of!(ready) == 2 && size_of::<ReadyQueue>() <= 96);
const _: () = assert!(line_of!(groups) == 3 && line_of!(newest_group) == 3 && line_of!(spares_until) == 3);
const _: () = assert!(line_of!(crowding) == 4 && line_of!(hosts) == 4);
const _: () = assert!(line_of!(via) == 5 && line_of!(retry.lifetime_ms) == 5 && line_of!(retry.warn_after_ms) == 5);
const _: () = assert!(line_of!(limits) == 7 && line_of!(limits.shared_rate) == 7);

impl Destination {
    pub(crate) fn new(route: Option<RouteId>, via: Via, limits: DestinationLimits, retry: crate::retry::RetryPolicy, name: String) -> Self {
        let hosts = match &via {
            Via::Smarthost { hosts } | Via::Lmtp { hosts } => Hosts::new(hosts),
            Via::Named { .. } | Via::Mx { .. } | Via::Maildir { .. } | Via::Discard | Via::Hold => Hosts::new(&[]),
        };
        Self {
            role: Role::Route,
            generation: 0,
            route,
            name,
            via,
            limits,
            retry,
            ready: ReadyQueue::new(),
            guests: Guests::default(),
            part: Part::default(),
            away: None,
            groups: 0,
            oldest_group: NONE,
            newest_group: NONE,
            paused: false,
            holds_anew: false,
            table: 0,
            listed: false,
            in_flight: 0,
            chained: 0,
            reason: String::new(),
            idle_since: 0,
            spares_since: 0,
            spares_until: 0,
            hosts,
            window: Window::new(&limits),
            throttle: Throttle::default(),
            avoided: None,
            crowding: Crowding::default(),
            rate: RateLimiter::default(),
            quota: Quota::default(),
            pause_until: 0,
            shortages: Shortages::default(),
            failure_told: false,
            is_well: true,
        }
    }

    /// Held by its route.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.via, Via::Hold)
    }

    /// Its route has become one whose mail has destinations of its own: what is here goes there when it is looked at.
    fn is_left(&self) -> bool {
        matches!((&self.role, &self.via), (Role::Route, Via::Mx { .. } | Via::Named { .. }))
    }

    /// Attempts at a time that are allowed just now, whatever the rate.
    #[inline]
    pub(crate) fn window(&self, now: u64) -> u32 {
        if self.is_held() || self.paused || now < self.pause_until {
            return 0;
        }
        // Most destinations are well, and each message asks a few times.
        if self.is_well && self.away.is_none() && !self.hosts.is_empty() {
            return self.window.attempts();
        }
        self.window_of_few(now)
    }

    /// As [`Destination::window`], for one that is away, has no hosts or is not well.
    fn window_of_few(&self, now: u64) -> u32 {
        if self.is_left() {
            return 0;
        }
        if let Some(away) = &self.away {
            return if away.asleep_until(now).is_some() { 0 } else { away.credits_of_all() };
        }
        if self.hosts.is_empty() {
            return self.limits.connections_max.max(1);
        }
        if self.throttle.until(now).is_some() || self.crowding.pauses_until(now).is_some() {
            return 0;
        }
        match self.breaker(now) {
            // Failures of a cohort count against the window until it is known what they mean.
            Breaker::Closed => {
                let failures = self.hosts.circuits().filter(|circuit| circuit.is_closed()).map(|circuit| circuit.failures()).min();
                self.window.attempts().saturating_sub(failures.unwrap_or(0)).max(1)
            }
            Breaker::HalfOpen => self.limits.breaker.max_requests.max(1),
            Breaker::Open { .. } => 0,
        }
    }

    /// Is there mail of this shard that may be attempted here?
    pub(crate) fn has_ready(&self) -> bool {
        match &self.role {
            Role::Site(site) => !site.queued.is_empty(),
            Role::Route | Role::Domain(_) | Role::Vacant => !self.ready.is_empty(),
        }
    }

    /// Is there mail that may be attempted here, of this shard or a guest?
    pub(crate) fn has_mail(&self) -> bool {
        self.has_ready() || !self.guests.is_empty()
    }

    /// A look at it does more than list it: guests may be refused, or more of a shared rate asked for.
    #[inline]
    pub(crate) fn wants_more_looks(&self) -> bool {
        !self.guests.is_empty() || self.limits.shared_rate.is_some()
    }

    #[inline]
    pub(crate) fn may_start(&self, now: u64) -> bool {
        match &self.away {
            Some(away) => self.may_start_away(away, now),
            None => self.has_mail() && self.in_flight.saturating_sub(self.chained) < self.window(now) && self.rate_allows(now),
        }
    }

    #[inline(never)]
    fn may_start_away(&self, away: &Away, now: u64) -> bool {
        self.has_ready() && self.window(now) > 0 && away.has_credit(now)
    }

    /// A further attempt on a connection in use; not while there are more of them than the window now allows.
    pub(crate) fn may_chain(&self, now: u64) -> bool {
        let may = self.away.is_none() && self.has_mail();
        may && self.in_flight.saturating_sub(self.chained) <= self.window(now) && self.rate_allows(now)
    }

    #[inline]
    fn rate_allows(&self, now: u64) -> bool {
        self.limits.rate.is_none() && self.limits.shared_rate.is_none() || self.each_rate_allows(now)
    }

    #[inline(never)]
    fn each_rate_allows(&self, now: u64) -> bool {
        self.limits.rate.is_none_or(|rate| self.rate.next_at(rate) <= now)
            && (self.limits.shared_rate.is_none() || self.quota.next_at(now).is_some_and(|at| at <= now))
    }

    /// An attempt begins.
    #[inline]
    pub(crate) fn started(&mut self, now: u64) {
        self.in_flight += 1;
        if let Some(rate) = self.limits.rate {
            self.rate.take(rate, now);
        }
        if self.limits.shared_rate.is_some() {
            self.quota.take(now);
        }
    }

    pub(crate) fn breaker(&self, now: u64) -> Breaker {
        if let Some(away) = &self.away {
            return match (away.asleep_until(now), away.wait(now)) {
                (Some(until), Wait::BreakerOpen { .. }) => Breaker::Open { until },
                _ => Breaker::Closed,
            };
        }
        self.hosts.breaker(now)
    }

    /// Why nothing more is started now, if there is mail. What lasts longest and explains most comes first.
    pub(crate) fn wait(&self, now: u64) -> Wait {
        if self.is_held() {
            return Wait::Held;
        }
        if self.paused {
            return Wait::Paused;
        }
        if self.is_left() {
            return Wait::Turn;
        }
        if let Some(away) = &self.away {
            return away.wait(now);
        }
        match self.breaker(now) {
            Breaker::Open { until } => return Wait::BreakerOpen { until },
            Breaker::HalfOpen if self.in_flight >= self.window(now) => return Wait::Probing,
            Breaker::HalfOpen | Breaker::Closed => {}
        }
        if let Some(until) = self.throttle.until(now) {
            return Wait::Throttled { until };
        }
        if let Some(until) = self.crowding.pauses_until(now) {
            return Wait::Crowded { until };
        }
        if now < self.pause_until {
            return Wait::Shortage { until: self.pause_until };
        }
        let (attempts, window) = (self.in_flight.saturating_sub(self.chained), self.window(now));
        if attempts >= window && self.crowding.most(now).is_some() {
            return Wait::Full { attempts };
        }
        if attempts >= window {
            return Wait::Window { attempts, window };
        }
        match self.limits.rate {
            Some(rate) if self.rate.next_at(rate) > now => return Wait::Rate { until: self.rate.next_at(rate), rate },
            _ => {}
        }
        match self.limits.shared_rate {
            Some(shared) if self.quota.wakes_at(now) > now => {
                let (until, rate) = (self.quota.wakes_at(now), shared.rate);
                if self.quota.is_shut() { Wait::SharedShut { until, rate } } else { Wait::SharedRate { until, rate } }
            }
            _ => Wait::Turn,
        }
    }

    /// When something may be started that may not be now, by time alone.
    pub(crate) fn wakes_at(&self, now: u64) -> Option<u64> {
        if !self.has_mail() || self.is_held() || self.paused {
            return None;
        }
        if let Some(away) = &self.away {
            // One that gave way is a home again then.
            return away.wakes_at(now).into_iter().chain(self.crowding.gives_way_until(now)).min();
        }
        if let Some(until) = self.blocked_until(now) {
            return Some(until);
        }
        // A full window is opened by an attempt that ends; the rate, by time.
        let next = self.limits.rate.map_or(now, |rate| self.rate.next_at(rate));
        let next = self.limits.shared_rate.map_or(next, |_| next.max(self.quota.wakes_at(now)));
        (next > now && self.in_flight.saturating_sub(self.chained) < self.window(now)).then_some(next)
    }

    /// Until then no attempt can be started at all.
    pub(crate) fn blocked_until(&self, now: u64) -> Option<u64> {
        if now < self.pause_until {
            return Some(self.pause_until);
        }
        if let Some(until) = self.throttle.until(now) {
            return Some(until);
        }
        if let Some(until) = self.crowding.pauses_until(now) {
            return Some(until);
        }
        match self.breaker(now) {
            Breaker::Open { until } => Some(until),
            Breaker::Closed | Breaker::HalfOpen => None,
        }
    }
}
