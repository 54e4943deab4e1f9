//! When Valkey is asked and when it is left alone: three failures open the circuit, probes come with growing, jittered gaps (Q17).
//!
//! A failure does not count while others, sent later, are answered. Which calls share a circuit is in [`crate::circuits`].

use std::time::Duration;

use crate::boot_time::BootTime;

/// Failures in a row that open the circuit.
const FAILURES_MAX: u32 = 3;
/// The gap before the first probe; it doubles.
const GAP_MIN: Duration = Duration::from_millis(100);
/// The longest gap: how long after Valkey's return a node may notice it.
pub const GAP_MAX: Duration = Duration::from_secs(1);

/// Closed, open until a time, or half-open with one probe under way.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    failures: u32,
    probes: u32,
    open_until: Option<BootTime>,
    is_probing: bool,
    answered_at: Option<BootTime>,
}

/// A call that failed for want of a sound server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// When it was sent.
    pub sent_at: BootTime,
    /// When it failed.
    pub failed_at: BootTime,
}

impl Breaker {
    /// Whether a call may be sent now. In the half-open state only the first one may; it decides.
    pub fn allows(&mut self, now: BootTime) -> bool {
        match self.open_until {
            None => true,
            Some(until) if now >= until && !self.is_probing => {
                self.is_probing = true;
                true
            }
            Some(_) => false,
        }
    }

    /// Whether calls are refused for want of a server.
    pub fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// When the next probe may go; None while the circuit is closed.
    pub fn opens_at(&self) -> Option<BootTime> {
        self.open_until
    }

    /// A call was answered. True when that closed the circuit.
    pub fn succeeded(&mut self, now: BootTime) -> bool {
        let was_open = self.is_open();
        *self = Breaker { answered_at: Some(now), ..Breaker::default() };
        was_open
    }

    /// A call failed. True when that opened the circuit. `random` spreads the probes of many nodes.
    pub fn failed(&mut self, Failure { sent_at, failed_at: now }: Failure, random: u64) -> bool {
        if self.open_until.is_none() && self.answered_at.is_some_and(|answered_at| answered_at > sent_at) {
            // Another was answered meanwhile: a part of Valkey is there.
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        // A call that was sent before the circuit opened says nothing of the probe, which may be under way.
        if self.open_until.is_some_and(|until| !self.is_probing || sent_at < until) {
            return false;
        }
        if self.failures < FAILURES_MAX && self.open_until.is_none() {
            return false;
        }
        let was_open = self.is_open();
        let gap = GAP_MIN.saturating_mul(1 << self.probes.min(10)).min(GAP_MAX);
        // Half to all of the gap.
        let gap = gap / 2 + gap / 2 * u32::try_from(random % 1024).expect("below 1024") / 1024;
        self.probes = self.probes.saturating_add(1);
        self.is_probing = false;
        self.open_until = Some(now + gap);
        !was_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(ms))
    }

    fn fails(breaker: &mut Breaker, sent_ms: u64, failed_ms: u64) -> bool {
        breaker.failed(Failure { sent_at: at(sent_ms), failed_at: at(failed_ms) }, 1023)
    }

    /// Of partitions that are asked at the same time those of a dead primary fail last, three in a row: the circuit opened for all others.
    #[test]
    fn a_part_of_valkey_that_is_away_does_not_open_the_circuit_for_the_others() {
        let mut breaker = Breaker::default();
        for sweep in [0, 500, 1000] {
            (0..4).for_each(|ms| assert!(!breaker.succeeded(at(sweep + 1 + ms))));
            (0..4).for_each(|ms| assert!(!fails(&mut breaker, sweep, sweep + 50 + ms) && breaker.allows(at(sweep + 60))));
        }
        // Then all of it.
        assert!(!fails(&mut breaker, 1500, 1550) && !fails(&mut breaker, 1500, 1550) && fails(&mut breaker, 1500, 1550));
    }

    /// A call that had a minute ended the probe of another, and a second went beside it.
    #[test]
    fn a_call_that_was_sent_before_the_circuit_opened_does_not_end_the_probe() {
        let mut breaker = Breaker::default();
        assert_eq!([10, 11, 12].map(|ms| fails(&mut breaker, ms, ms)), [false, false, true]);
        assert!(breaker.allows(at(120)));
        assert!(!fails(&mut breaker, 5, 130) && !breaker.allows(at(1200)), "the probe is under way");
        assert!(!fails(&mut breaker, 120, 1300) && !breaker.allows(at(1301)) && breaker.allows(at(1500)));
    }

    #[test]
    fn three_failures_open_it_and_one_probe_decides() {
        let mut breaker = Breaker::default();
        assert!(!fails(&mut breaker, 0, 0) && !fails(&mut breaker, 1, 1) && breaker.allows(at(2)));
        assert!(fails(&mut breaker, 2, 2) && breaker.is_open());
        assert!(!breaker.allows(at(50)));
        assert!(breaker.allows(at(103)) && !breaker.allows(at(103)), "one probe");
        assert!(!fails(&mut breaker, 103, 110), "it was open");
        assert!(!breaker.allows(at(111)));
        let mut gaps = 0;
        let mut now = 200;
        for _ in 0..20 {
            while !breaker.allows(at(now)) {
                now += 1;
                gaps += 1;
            }
            fails(&mut breaker, now, now);
        }
        assert!((10_000..23_000).contains(&gaps), "capped at a second: {gaps}");
        now += 5000;
        assert!(breaker.allows(at(now)) && breaker.succeeded(at(now)) && !breaker.is_open() && breaker.allows(at(now)));
    }
}
