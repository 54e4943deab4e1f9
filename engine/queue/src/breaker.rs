//! The circuit breaker of one host: closed while it serves, open after it failed, half-open while it is tried again.
//!
//! It opens in two ways: as many connections in a row fail as attempts were open at the first of them (a failed cohort, which
//! finds a dead host within one round), or within `interval` at least `minimum` attempts ended of which `failure ratio` broke
//! off (which finds one that greets and then breaks). It is open for `timeout` at first, short because mail that waits costs
//! nothing, and twice as long each time it fails again. Then it is half-open: `max_requests` probes, and nothing else. When
//! all of them succeed it is closed. A host that could not be connected to has proved itself by a greeting, one that broke off
//! after it by an answer to an attempt.

use crate::retry::{Jitter, back_off_ms};

/// Spread of the time a breaker is open, to both sides.
const JITTER_PERCENT: u8 = 20;

/// A probe that said nothing for this long is given up: another may be made.
const PROBE_MS: u64 = 60_000;

/// What a breaker says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Breaker {
    /// It serves, as far as is known. For a destination: at least one of its hosts does.
    Closed,
    /// It failed; the next probe is made at this time, if mail waits.
    Open {
        /// Unix milliseconds.
        until: u64,
    },
    /// The time is over: a few attempts at a time until they succeed.
    HalfOpen,
}

impl Breaker {
    /// The word in logs and listings: `closed`, `open`, `half-open`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// When a breaker opens, and how it closes again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerSettings {
    /// Probes of a half-open breaker, at least 1: so many must succeed.
    pub max_requests: u32,
    /// Attempts are counted for this long, then anew.
    pub interval_ms: u64,
    /// First time it is open; doubles up to `timeout_max_ms`.
    pub timeout_ms: u64,
    /// Longest time it is open.
    pub timeout_max_ms: u64,
    /// Share of attempts within `interval_ms` that broke off, from which it opens.
    pub failure_percent: u8,
    /// Attempts within `interval_ms` below which the share says nothing.
    pub minimum: u32,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self { max_requests: 1, interval_ms: 60_000, timeout_ms: 1000, timeout_max_ms: 300_000, failure_percent: 60, minimum: 10 }
    }
}

/// How an attempt at a host broke off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Break {
    /// No connection, or no usable greeting.
    BeforeGreeting,
    /// The connection broke off, or nothing more was heard, with an attempt under way.
    AfterGreeting,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { until: u64 },
    HalfOpen { probes: u32, successes: u32, probed_at: u64 },
}

/// The rule; the caller tells what happened and asks what may be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circuit {
    state: State,
    /// Openings since it was closed.
    times: u32,
    /// A greeting does not close it.
    broke_after_greeting: bool,
    /// Failed connections in a row while closed, and how many make it open.
    in_a_row: u32,
    cohort: u32,
    /// Attempts that ended since `counted_since`, while closed.
    served: u32,
    broken: u32,
    counted_since: u64,
}

impl Circuit {
    pub(crate) const fn new() -> Self {
        Self { state: State::Closed, times: 0, broke_after_greeting: false, in_a_row: 0, cohort: 0, served: 0, broken: 0, counted_since: 0 }
    }

    pub(crate) fn breaker(&self, now: u64) -> Breaker {
        match self.state {
            State::Closed => Breaker::Closed,
            State::Open { until } if now < until => Breaker::Open { until },
            State::Open { .. } | State::HalfOpen { .. } => Breaker::HalfOpen,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Closed, and no connection has failed since the last good one.
    pub(crate) fn is_well(&self) -> bool {
        self.is_closed() && self.in_a_row == 0
    }

    /// Failed connections in a row that are not yet a failed cohort.
    pub(crate) fn failures(&self) -> u32 {
        self.in_a_row
    }

    /// A probe is under way.
    pub(crate) fn is_probing(&self) -> bool {
        matches!(self.state, State::HalfOpen { probes: 1.., .. })
    }

    /// May it be connected to?
    pub(crate) fn may_try(&self, settings: &BreakerSettings, now: u64) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } => until <= now,
            State::HalfOpen { probes, successes, probed_at } => {
                probes + successes < settings.max_requests.max(1) || now >= probed_at + PROBE_MS
            }
        }
    }

    /// It is being connected to, after [`Circuit::may_try`]. True if that made it half-open.
    pub(crate) fn begin(&mut self, now: u64) -> bool {
        match &mut self.state {
            State::Closed => false,
            State::Open { .. } => {
                self.state = State::HalfOpen { probes: 1, successes: 0, probed_at: now };
                true
            }
            State::HalfOpen { probes, probed_at, .. } => {
                // Given up ones are not waited for.
                *probes = if now >= *probed_at + PROBE_MS { 1 } else { *probes + 1 };
                *probed_at = now;
                false
            }
        }
    }

    /// It greeted. True if that closed it.
    pub(crate) fn reached(&mut self, settings: &BreakerSettings) -> bool {
        self.in_a_row = 0;
        !self.broke_after_greeting && self.succeed(settings)
    }

    /// It answered an attempt, well or not. True if that closed it.
    pub(crate) fn served(&mut self, settings: &BreakerSettings, now: u64) -> bool {
        self.in_a_row = 0;
        if self.is_closed() {
            self.begin_interval(settings, now);
            self.served = self.served.saturating_add(1);
            return false;
        }
        // An attempt of before, as those are that fail now: it opened because too many of them break off, not because none is answered.
        if matches!(self.state, State::Open { until } if now < until && self.broke_after_greeting) {
            return false;
        }
        self.succeed(settings)
    }

    /// The destination delivers: single failures among that kill no host.
    pub(crate) fn forgive(&mut self) {
        self.in_a_row = 0;
    }

    /// An attempt at it broke off while `open` of them were under way. True if that opened it.
    pub(crate) fn failed(&mut self, how: Break, open: u32, settings: &BreakerSettings, now: u64, jitter: &mut Jitter) -> bool {
        match self.state {
            // A straggler of those that already counted.
            State::Open { until } if now < until => return false,
            State::Open { .. } | State::HalfOpen { .. } => {}
            State::Closed => {
                self.begin_interval(settings, now);
                self.broken = self.broken.saturating_add(1);
                if how == Break::BeforeGreeting {
                    if self.in_a_row == 0 {
                        self.cohort = open.max(1);
                    }
                    self.in_a_row += 1;
                }
                let all = u64::from(self.served) + u64::from(self.broken);
                let by_ratio = all >= u64::from(settings.minimum.max(1))
                    && u64::from(self.broken) * 100 >= all * u64::from(settings.failure_percent.clamp(1, 100));
                if !by_ratio && (how == Break::AfterGreeting || (self.in_a_row < self.cohort && open > 1)) {
                    return false;
                }
            }
        }
        self.broke_after_greeting = how == Break::AfterGreeting;
        self.times = self.times.saturating_add(1);
        let timeout_ms = back_off_ms(settings.timeout_ms, settings.timeout_max_ms, self.times, JITTER_PERCENT, jitter);
        self.state = State::Open { until: now + timeout_ms };
        (self.in_a_row, self.served, self.broken) = (0, 0, 0);
        true
    }

    /// No attempt is under way, so no probe is either: one that ended without a word is made again soon.
    pub(crate) fn forget_probes(&mut self, settings: &BreakerSettings, now: u64) {
        if self.is_probing() {
            self.state = State::Open { until: now + settings.timeout_ms };
        }
    }

    /// An operator wants it probed now.
    pub(crate) fn revive(&mut self, now: u64) {
        if let State::Open { until } = &mut self.state {
            *until = (*until).min(now);
        }
    }

    fn succeed(&mut self, settings: &BreakerSettings) -> bool {
        match &mut self.state {
            State::Closed => return false,
            State::Open { .. } => {}
            State::HalfOpen { probes, successes, .. } => {
                (*probes, *successes) = (probes.saturating_sub(1), *successes + 1);
                if *successes < settings.max_requests.max(1) {
                    return false;
                }
            }
        }
        *self = Self::new();
        true
    }

    /// The counts are of one interval, not of hours in which all was well.
    fn begin_interval(&mut self, settings: &BreakerSettings, now: u64) {
        if now >= self.counted_since.saturating_add(settings.interval_ms) {
            (self.served, self.broken, self.counted_since) = (0, 0, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BreakerSettings = BreakerSettings {
        max_requests: 2,
        interval_ms: 60_000,
        timeout_ms: 1000,
        timeout_max_ms: 300_000,
        failure_percent: 50,
        minimum: 10,
    };

    fn opened(jitter: &mut Jitter) -> Circuit {
        let mut circuit = Circuit::new();
        assert!(circuit.failed(Break::BeforeGreeting, 1, &SETTINGS, 0, jitter));
        circuit
    }

    #[test]
    fn a_failed_cohort_opens_it_and_one_greeting_among_failures_does_not() {
        let (mut circuit, mut jitter) = (Circuit::new(), Jitter::new(1));
        for round in 0..3 {
            for _ in 0..2 {
                assert!(!circuit.failed(Break::BeforeGreeting, 3, &SETTINGS, round, &mut jitter));
            }
            assert!(!circuit.reached(&SETTINGS) && circuit.is_well());
        }
        for failure in 1..=3 {
            assert_eq!(circuit.failed(Break::BeforeGreeting, 3, &SETTINGS, 100_000, &mut jitter), failure == 3);
        }
        assert!(matches!(circuit.breaker(100_000), Breaker::Open { .. }));
    }

    #[test]
    fn the_ratio_opens_it_from_the_minimum_on_and_within_one_interval() {
        let mut jitter = Jitter::new(1);
        let mut circuit = Circuit::new();
        for at in 0..9 {
            assert!(!circuit.failed(Break::AfterGreeting, 3, &SETTINGS, at, &mut jitter), "below the minimum");
        }
        assert!(circuit.failed(Break::AfterGreeting, 3, &SETTINGS, 10, &mut jitter));

        let mut circuit = Circuit::new();
        for at in 0..40 {
            circuit.served(&SETTINGS, at);
            assert!(at % 2 == 0 || !circuit.failed(Break::AfterGreeting, 3, &SETTINGS, at, &mut jitter), "a third breaks off");
        }
        // The same share of failures in each of many intervals, but few attempts in each.
        let mut circuit = Circuit::new();
        for round in 0..100 {
            let now = round * 70_000;
            for _ in 0..4 {
                assert!(!circuit.failed(Break::AfterGreeting, 3, &SETTINGS, now, &mut jitter));
            }
        }
    }

    #[test]
    fn half_open_lets_the_probes_through_and_closes_when_all_have_succeeded() {
        let mut jitter = Jitter::new(1);
        let mut circuit = opened(&mut jitter);
        assert!(!circuit.may_try(&SETTINGS, 500) && circuit.may_try(&SETTINGS, 1200));
        assert!(circuit.begin(1200));
        assert!(circuit.may_try(&SETTINGS, 1200) && !circuit.begin(1200));
        assert!(!circuit.may_try(&SETTINGS, 1200), "two probes and no more");
        assert!(!circuit.reached(&SETTINGS));
        assert!(!circuit.may_try(&SETTINGS, 1200));
        assert!(circuit.reached(&SETTINGS));
        assert!(circuit.is_well());

        // A silent probe does not block for ever.
        let mut circuit = opened(&mut jitter);
        assert!(circuit.begin(2000));
        circuit.begin(2000);
        assert!(!circuit.may_try(&SETTINGS, 61_999) && circuit.may_try(&SETTINGS, 62_000));
    }

    #[test]
    fn a_host_that_greets_and_breaks_off_is_not_closed_by_its_greeting() {
        let mut jitter = Jitter::new(1);
        let mut circuit = Circuit::new();
        let settings = BreakerSettings { max_requests: 1, ..SETTINGS };
        for at in 0..10 {
            circuit.failed(Break::AfterGreeting, 3, &settings, at, &mut jitter);
        }
        circuit.begin(2000);
        assert!(!circuit.reached(&settings));
        assert!(circuit.failed(Break::AfterGreeting, 1, &settings, 2000, &mut jitter));
        circuit.begin(10_000);
        assert!(!circuit.reached(&settings) && circuit.served(&settings, 10_000));
    }

    /// Of a host that broke off three attempts of four each opening ended within milliseconds, with the next of its attempts that was answered: it was
    /// opened and closed 28 times, and tried a hundred times, in the second in which it should have been left alone.
    #[test]
    fn an_attempt_of_before_that_is_answered_does_not_close_what_breaks_off_too_often() {
        let (mut circuit, mut jitter) = (Circuit::new(), Jitter::new(1));
        for at in 0..10 {
            circuit.failed(Break::AfterGreeting, 20, &SETTINGS, at, &mut jitter);
        }
        let Breaker::Open { until } = circuit.breaker(20) else { panic!("open") };
        assert!(!circuit.served(&SETTINGS, 20) && !circuit.reached(&SETTINGS));
        assert_eq!(circuit.breaker(21), Breaker::Open { until });
        for _ in 0..SETTINGS.max_requests {
            circuit.begin(until);
        }
        assert!(!circuit.served(&SETTINGS, until) && circuit.served(&SETTINGS, until), "the probes do");
    }

    #[test]
    fn each_failed_probe_doubles_the_time_up_to_the_longest() {
        let mut jitter = Jitter::new(3);
        let mut circuit = opened(&mut jitter);
        let mut now = 0;
        for times in 1..20_u32 {
            let Breaker::Open { until } = circuit.breaker(now) else { panic!("open") };
            let plain = (1000_u64 << (times - 1).min(30)).min(300_000);
            let expected = plain * 8 / 10..=plain * 12 / 10;
            assert!(expected.contains(&(until - now)), "{times}: {}", until - now);
            assert!(!circuit.failed(Break::BeforeGreeting, 1, &SETTINGS, now, &mut jitter), "a straggler");
            now = until;
            circuit.begin(now);
            assert!(circuit.failed(Break::BeforeGreeting, 1, &SETTINGS, now, &mut jitter));
        }
    }

    /// The states as a table of what may follow what, and every probe accounted for.
    #[test]
    fn random_events_keep_to_the_state_diagram() {
        for seed in 0..200 {
            let (mut random, mut jitter) = (Jitter::new(seed), Jitter::new(seed));
            let settings = BreakerSettings { max_requests: 1 + random.below(3) as u32, ..SETTINGS };
            let (mut circuit, mut now, mut probes) = (Circuit::new(), 0, 0);
            for _ in 0..2000 {
                now += random.below(400);
                let before = circuit.breaker(now);
                let (mut opened, mut closed) = (false, false);
                match random.below(5) {
                    0 if circuit.may_try(&settings, now) => {
                        let was_closed = circuit.is_closed();
                        circuit.begin(now);
                        probes += u32::from(!was_closed);
                    }
                    1 => closed = circuit.reached(&settings),
                    2 => closed = circuit.served(&settings, now),
                    3 => {
                        let how = if random.below(2) == 0 { Break::AfterGreeting } else { Break::BeforeGreeting };
                        opened = circuit.failed(how, 1 + random.below(5) as u32, &settings, now, &mut jitter);
                    }
                    _ => {}
                }
                let after = circuit.breaker(now);
                match (before, after) {
                    (Breaker::Closed, Breaker::Closed) | (Breaker::Open { .. }, Breaker::Open { .. }) => assert!(!opened && !closed),
                    (Breaker::Closed | Breaker::HalfOpen, Breaker::Open { .. }) => assert!(opened),
                    (Breaker::Open { .. } | Breaker::HalfOpen, Breaker::Closed) => assert!(closed),
                    (Breaker::HalfOpen, Breaker::HalfOpen) => assert!(!closed),
                    (Breaker::Closed | Breaker::Open { .. }, Breaker::HalfOpen) => panic!("seed {seed}: only time does that"),
                }
                if circuit.is_closed() {
                    assert!(circuit.may_try(&settings, now));
                    probes = 0;
                }
                if opened {
                    probes = 0;
                }
                assert!(now >= PROBE_MS || probes <= settings.max_requests, "seed {seed}: {probes} probes");
            }
        }
    }
}
