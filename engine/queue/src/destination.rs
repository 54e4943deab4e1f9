//! A next hop: how many attempts it bears, which of its hosts answer, and what waits for it.
//!
//! The window of attempts at a time begins at 5, grows by 1/window per delivered transaction and loses one per failed
//! connection. A host is dead after as many failures in a row as attempts were open at the first of them (a failed cohort).
//! Its dead time is short at first (1 s, doubling to 5 min, +-20 %), because nothing waits on a connection meanwhile: one
//! probe is made per dead time, and the mail stays in the ready queue. A restarted next hop so costs seconds, and one that
//! is gone for a day costs a probe every five minutes.

use crate::ready::ReadyQueue;
use crate::retry::{Jitter, back_off_ms};
use crate::route::{DestinationLimits, HOSTS_MAX, RouteId, Via};
use crate::slab::NONE;

/// Longest reason that is kept, in bytes.
const REASON_BYTES_MAX: usize = 200;

/// A host being probed is nobody else's first choice for this long.
const PROBE_MS: u64 = 60_000;

/// Pause after an attempt that found no host for a reason of our own.
const SHORTAGE_PAUSE_MS: u64 = 1000;

/// The window is counted in thousandths of an attempt.
const ONE: u32 = 1000;

/// Spread of dead times.
const JITTER_PERCENT: u8 = 20;

/// A route and its next-hop site.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DestinationId(pub(crate) u32);

impl DestinationId {
    /// Where recipients wait for whom no route is configured (a restart with fewer routes): held until there is one.
    pub const UNROUTED: Self = Self(0);

    /// Position in the list of destinations: stable for the life of the queue, 0 is [`Self::UNROUTED`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Position of a host in its smarthost route.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HostIndex(pub u8);

/// The hosts that an attempt has tried; a fresh one for each attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostsTried(u32);

const _: () = assert!(HOSTS_MAX <= 32, "one bit per host");

/// What the breaker of a destination says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Breaker {
    /// At least one host answers, as far as is known.
    Closed,
    /// No host answers; the next probe is made at this time (unix ms), if mail waits.
    Open {
        /// Unix milliseconds.
        until: u64,
    },
    /// The dead time is over: one attempt at a time until a host answers.
    HalfOpen,
}

#[derive(Debug)]
struct Host {
    address: String,
    /// 0 while it is taken to be alive.
    dead_until: u64,
    dead_times: u32,
    failures: u32,
    cohort: u32,
    probing: bool,
}

#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) route: Option<RouteId>,
    pub(crate) name: String,
    pub(crate) via: Via,
    pub(crate) limits: DestinationLimits,
    pub(crate) retry: crate::retry::RetryPolicy,
    pub(crate) ready: ReadyQueue,
    /// Groups of all states that lead here.
    pub(crate) groups: usize,
    /// The newest group, to find the group of a message that is being queued.
    pub(crate) newest_group: u32,
    pub(crate) paused: bool,
    /// In the queue's list of destinations that may be served.
    pub(crate) listed: bool,
    pub(crate) in_flight: u32,
    /// Attempts that follow another on the same connection, so use no place of the window.
    pub(crate) chained: u32,
    pub(crate) reason: String,
    hosts: Vec<Host>,
    window: u32,
    pause_until: u64,
    /// A host failed since an attempt last found none.
    failure_told: bool,
    /// All hosts are alive and none has failed since it was last reached.
    is_well: bool,
}

impl Destination {
    pub(crate) fn new(route: Option<RouteId>, via: Via, limits: DestinationLimits, retry: crate::retry::RetryPolicy, name: String) -> Self {
        let hosts = match &via {
            Via::Smarthost { hosts } => hosts
                .iter()
                .map(|address| Host { address: address.clone(), dead_until: 0, dead_times: 0, failures: 0, cohort: 0, probing: false })
                .collect(),
            Via::Discard | Via::Hold => Vec::new(),
        };
        let mut destination = Self {
            route,
            name,
            via,
            limits,
            retry,
            ready: ReadyQueue::new(),
            groups: 0,
            newest_group: NONE,
            paused: false,
            listed: false,
            in_flight: 0,
            chained: 0,
            reason: String::new(),
            hosts,
            window: 0,
            pause_until: 0,
            failure_told: false,
            is_well: true,
        };
        destination.reset_window();
        destination
    }

    /// Held by its route.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.via, Via::Hold)
    }

    /// Attempts at a time that are allowed just now.
    pub(crate) fn window(&self, now: u64) -> u32 {
        if self.is_held() || self.paused || now < self.pause_until {
            return 0;
        }
        if self.hosts.is_empty() {
            return self.limits.connections_max.max(1);
        }
        if self.is_well {
            return self.window / ONE;
        }
        match self.breaker(now) {
            // Failures of a cohort count against the window until it is known what they mean.
            Breaker::Closed => {
                let failures = self.hosts.iter().filter(|host| host.dead_until == 0).map(|host| host.failures).min().unwrap_or(0);
                (self.window / ONE).saturating_sub(failures).max(1)
            }
            Breaker::HalfOpen => 1,
            Breaker::Open { .. } => 0,
        }
    }

    pub(crate) fn may_start(&self, now: u64) -> bool {
        !self.ready.is_empty() && self.in_flight.saturating_sub(self.chained) < self.window(now)
    }

    /// A further attempt on a connection in use; not while there are more of them than the window now allows.
    pub(crate) fn may_chain(&self, now: u64) -> bool {
        !self.ready.is_empty() && self.in_flight.saturating_sub(self.chained) <= self.window(now)
    }

    pub(crate) fn breaker(&self, now: u64) -> Breaker {
        if self.hosts.is_empty() || self.hosts.iter().any(|host| host.dead_until == 0) {
            return Breaker::Closed;
        }
        let until = self.hosts.iter().map(|host| host.dead_until).min().unwrap_or(0);
        if until <= now || self.hosts.iter().any(|host| host.probing) { Breaker::HalfOpen } else { Breaker::Open { until } }
    }

    /// When something may be started that may not be now, by time alone.
    pub(crate) fn wakes_at(&self, now: u64) -> Option<u64> {
        if self.ready.is_empty() || self.is_held() || self.paused {
            return None;
        }
        if now < self.pause_until {
            return Some(self.pause_until);
        }
        match self.breaker(now) {
            Breaker::Open { until } => Some(until),
            Breaker::Closed | Breaker::HalfOpen => None,
        }
    }

    pub(crate) fn next_host(&mut self, tried: &mut HostsTried, now: u64) -> Option<HostIndex> {
        let index = self.hosts.iter().enumerate().position(|(index, host)| {
            let untried = tried.0 & (1 << index) == 0;
            untried && host.dead_until <= now
        })?;
        tried.0 |= 1 << index;
        let host = &mut self.hosts[index];
        if host.dead_until > 0 {
            host.dead_until = now + PROBE_MS;
            host.probing = true;
            self.is_well = false;
        }
        Some(HostIndex(index as u8))
    }

    pub(crate) fn address(&self, host: HostIndex) -> Option<&str> {
        self.hosts.get(usize::from(host.0)).map(|host| host.address.as_str())
    }

    pub(crate) fn host_reached(&mut self, host: HostIndex) {
        let was_dead = self.hosts.iter().all(|host| host.dead_until > 0);
        let Some(host) = self.hosts.get_mut(usize::from(host.0)) else { return };
        (host.dead_until, host.dead_times, host.failures, host.probing) = (0, 0, 0, false);
        self.note_health();
        self.pause_until = 0;
        if was_dead {
            self.reset_window();
            self.reason.clear();
        }
    }

    pub(crate) fn host_failed(&mut self, host: HostIndex, reason: &str, now: u64, jitter: &mut Jitter) {
        let open = self.in_flight.saturating_sub(self.chained).max(1);
        let limits = self.limits;
        let Some(host) = self.hosts.get_mut(usize::from(host.0)) else { return };
        (self.failure_told, self.is_well) = (true, false);
        self.reason.clear();
        for character in reason.chars() {
            if self.reason.len() + character.len_utf8() > REASON_BYTES_MAX {
                break;
            }
            self.reason.push(if character.is_control() { ' ' } else { character });
        }
        if host.dead_until > now && !host.probing {
            return; // A straggler of the cohort that already counted.
        }
        if host.dead_until == 0 {
            self.window = self.window.saturating_sub(ONE).max(ONE);
        }
        if host.failures == 0 {
            host.cohort = open;
        }
        host.failures += 1;
        if host.dead_times == 0 && host.failures < host.cohort && open > 1 {
            return;
        }
        host.dead_times = host.dead_times.saturating_add(1);
        host.dead_until = now + back_off_ms(limits.dead_first_ms, limits.dead_max_ms, host.dead_times, JITTER_PERCENT, jitter);
        (host.failures, host.probing) = (0, false);
    }

    /// A transaction was delivered: the destination bears more.
    pub(crate) fn succeeded(&mut self) {
        if !self.is_well {
            self.hosts.iter_mut().filter(|host| host.dead_until == 0).for_each(|host| host.failures = 0);
            self.note_health();
        }
        let most = self.limits.connections_max.max(1).saturating_mul(ONE);
        self.window = (self.window + ONE * ONE / self.window).min(most);
    }

    /// The destination said that it bears less.
    pub(crate) fn refused(&mut self) {
        self.window = self.window.saturating_sub(ONE).max(ONE);
    }

    /// An attempt found no host. If none was reported to have failed, the reason is our own (no descriptors, say), and the next
    /// attempt waits a little; so a driver that cannot connect does not spin.
    pub(crate) fn unreachable(&mut self, now: u64) {
        if !std::mem::take(&mut self.failure_told) {
            self.pause_until = self.pause_until.max(now + SHORTAGE_PAUSE_MS);
        }
    }

    /// No attempt is open, so no probe is either: one that ended without a word is made again soon.
    pub(crate) fn forget_probes(&mut self, now: u64) {
        for host in self.hosts.iter_mut().filter(|host| host.probing) {
            host.probing = false;
            host.dead_until = now + self.limits.dead_first_ms;
        }
    }

    /// Forgets that hosts are dead: each is probed when mail waits.
    pub(crate) fn revive(&mut self, now: u64) {
        self.pause_until = 0;
        for host in self.hosts.iter_mut().filter(|host| host.dead_until > 0 && !host.probing) {
            host.dead_until = now.max(1);
        }
    }

    fn note_health(&mut self) {
        self.is_well = self.hosts.iter().all(|host| host.dead_until == 0 && host.failures == 0 && !host.probing);
    }

    fn reset_window(&mut self) {
        self.window = self.limits.window_initial.clamp(1, self.limits.connections_max.max(1)).saturating_mul(ONE);
    }
}
