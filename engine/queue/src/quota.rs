//! A destination's part of a rate that all nodes of a cluster share: moments that were reserved for this shard, one for each message.
//!
//! The queue says how many it could use ([`Work::Reserve`](crate::Work::Reserve)), somebody reserves them
//! ([`Queue::reserved`](crate::Queue::reserved)), and a message goes at each. Nothing here waits for the answer: mail of this one
//! destination stays in its ready queue meanwhile. So many are asked for as were used in the last quarter of a second, so that a shard with
//! little to send takes little from the others.

use crate::rate::Rate;

const NANOS_PER_MS: u64 = 1_000_000;
/// One reservation is meant to last so long.
const LASTS_MS: u64 = 250;
/// A moment that was missed may be made up for this long; then it is lost, or moments of hours would gather and go at once.
const KEPT_MS: u64 = 1000;
/// An answer that does not come within this was lost.
const ANSWER_MS: u64 = 1000;
/// Moments in one reservation at most.
pub const SLOTS_MAX: u32 = 100_000;

/// What of a cluster's limit holds while the nodes cannot agree on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Apart {
    /// Each node has an equal part of it.
    #[default]
    Share,
    /// There is no limit.
    Open,
    /// Nothing passes.
    Closed,
}

/// A rate over all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedRate {
    /// Of all nodes together.
    pub rate: Rate,
    /// While they cannot agree.
    pub apart: Apart,
}

/// Moments that are reserved: the first, and the others evenly behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slots {
    /// How many.
    pub count: u32,
    /// When the first is, in microseconds from the answer; negative for one that has passed and may be used at once.
    pub first_in_us: i64,
    /// Nanoseconds from one to the next.
    pub step_ns: u64,
}

/// What came of a reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserved {
    /// These.
    Slots(Slots),
    /// Others have what there is; to be asked again after so many milliseconds.
    Later(u64),
    /// Nothing goes while Valkey does not answer about it, as the limit says; to be asked again after so many milliseconds.
    Shut(u64),
}

/// A run of moments that are left.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    left: u32,
    /// Unix nanoseconds of the next.
    next_ns: u64,
    step_ns: u64,
    /// When they were reserved, in milliseconds.
    given_at: u64,
}

impl Run {
    fn new(slots: Slots, now: u64) -> Run {
        let now_ns = now.saturating_mul(NANOS_PER_MS);
        let shift_ns = slots.first_in_us.unsigned_abs().saturating_mul(1000);
        let next_ns = if slots.first_in_us < 0 { now_ns.saturating_sub(shift_ns) } else { now_ns.saturating_add(shift_ns) };
        Run { left: slots.count.min(SLOTS_MAX), next_ns, step_ns: slots.step_ns, given_at: now }
    }

    /// The last millisecond at which one of them may be used.
    fn ends_at(&self) -> u64 {
        let last_ns = self.next_ns.saturating_add(self.step_ns.saturating_mul(u64::from(self.left.saturating_sub(1))));
        // Those of a burst had passed before they were reserved.
        (last_ns / NANOS_PER_MS).max(self.given_at).saturating_add(KEPT_MS)
    }

    fn is_left(&self, now: u64) -> bool {
        self.left > 0 && now <= self.ends_at()
    }

    /// When the next may be used. A clock of milliseconds cannot wait for less.
    fn next_at(&self) -> u64 {
        self.next_ns.saturating_sub(NANOS_PER_MS - 1).div_ceil(NANOS_PER_MS)
    }
}

/// What one destination has of its [`SharedRate`] on this shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quota {
    /// In use, and what comes behind it.
    runs: [Run; 2],
    /// When the newest run began to count.
    since: u64,
    /// How many to ask for next.
    wanted: u32,
    /// Not asked for before this: the answer is under way, or there is nothing before.
    ask_at: u64,
    /// The last answer was [`Reserved::Shut`].
    is_shut: bool,
}

impl Quota {
    /// Nothing goes until Valkey answers.
    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// When the next message may go, as far as what is reserved says.
    pub(crate) fn next_at(&self, now: u64) -> Option<u64> {
        self.runs.iter().find(|run| run.is_left(now)).map(Run::next_at)
    }

    /// When there is something to do that time alone brings: a message may go, or more is asked for.
    pub(crate) fn wakes_at(&self, now: u64) -> u64 {
        self.next_at(now).unwrap_or(self.ask_at)
    }

    /// A message goes.
    pub(crate) fn take(&mut self, now: u64) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.is_left(now)) {
            run.left -= 1;
            run.next_ns = run.next_ns.saturating_add(run.step_ns);
        }
    }

    /// How many to ask for now, if any: before the last are used up, so that a steady flow does not stand still for the answer.
    pub(crate) fn ask(&mut self, rate: Rate, now: u64) -> Option<u32> {
        if !self.runs[0].is_left(now) {
            let unused = self.runs[0].left > 0;
            self.runs = [self.runs[1], Run::default()];
            if unused {
                self.wanted = 1;
            }
        }
        let [current, next] = &self.runs;
        if now < self.ask_at || next.is_left(now) || current.is_left(now) && current.left > self.wanted / 2 {
            return None;
        }
        let most = u64::from(rate.messages).saturating_mul(LASTS_MS) / rate.per_ms.max(1) + 1;
        let lasted = now.saturating_sub(self.since);
        self.wanted = match self.wanted {
            0 => 1,
            wanted if lasted < LASTS_MS => wanted.saturating_mul(2),
            wanted if lasted > 2 * LASTS_MS => (wanted / 2).max(1),
            wanted => wanted,
        };
        self.wanted = self.wanted.min(u32::try_from(most).unwrap_or(SLOTS_MAX)).min(SLOTS_MAX);
        self.ask_at = now.saturating_add(ANSWER_MS);
        Some(self.wanted)
    }

    /// Takes in what came of asking.
    pub(crate) fn answered(&mut self, reserved: Reserved, now: u64) {
        self.is_shut = matches!(reserved, Reserved::Shut(_));
        match reserved {
            Reserved::Slots(slots) => {
                let run = Run::new(slots, now);
                // An answer that was given up came after all: what it brings beside another is lost, never used twice.
                let place = if self.runs[0].is_left(now) { 1 } else { 0 };
                self.runs[place] = run;
                self.since = now.max(run.next_at());
                self.ask_at = now;
            }
            Reserved::Later(after_ms) | Reserved::Shut(after_ms) => self.ask_at = now.saturating_add(after_ms.max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { messages: 100, per_ms: 1000, burst: 1 };

    fn slots(count: u32, first_in_us: i64) -> Reserved {
        Reserved::Slots(Slots { count, first_in_us, step_ns: 10_000_000 })
    }

    #[test]
    fn messages_go_at_the_moments_that_were_reserved() {
        let mut quota = Quota::default();
        assert_eq!((quota.next_at(1000), quota.ask(RATE, 1000)), (None, Some(1)));
        assert_eq!(quota.ask(RATE, 1001), None, "the answer is under way");
        quota.answered(slots(3, 20_000), 1002);
        let mut times = Vec::new();
        while let Some(at) = quota.next_at(1002) {
            times.push(at);
            quota.take(at);
        }
        assert_eq!(times, [1022, 1032, 1042]);
    }

    #[test]
    fn what_is_missed_is_made_up_for_a_second_and_then_lost() {
        let mut quota = Quota::default();
        quota.ask(RATE, 1000);
        quota.answered(slots(2, 0), 1000);
        assert!(quota.next_at(2010).is_some_and(|at| at <= 2010));
        assert_eq!(quota.next_at(2011), None);
    }

    /// The moments of a burst have passed when they are given: those of more than a second before were lost with the answer.
    #[test]
    fn moments_that_had_passed_when_they_were_reserved_are_kept_as_long_as_others() {
        let mut quota = Quota::default();
        quota.answered(slots(3, -20_000_000), 100_000);
        for now in [100_000, 100_500, 101_000] {
            assert!(quota.next_at(now).is_some_and(|at| at <= now), "{now}");
            quota.take(now);
        }
        assert_eq!(quota.next_at(101_000), None);
        quota.answered(slots(3, -20_000_000), 102_000);
        assert_eq!(quota.next_at(103_001), None);
    }

    #[test]
    fn demand_decides_how_many_are_asked_for_and_an_answer_that_is_lost_is_asked_for_again() {
        let mut quota = Quota::default();
        let mut asked = Vec::new();
        let mut now = 1000;
        for _ in 0..8 {
            let Some(wanted) = quota.ask(RATE, now) else { break };
            asked.push(wanted);
            quota.answered(slots(wanted, 0), now);
            while let Some(at) = quota.next_at(now) {
                now = now.max(at);
                quota.take(now);
            }
        }
        assert_eq!(asked, [1, 2, 4, 8, 16, 26, 26, 26]);
        assert_eq!(quota.ask(RATE, now), Some(26));
        assert_eq!((quota.ask(RATE, now + 999), quota.ask(RATE, now + 1000)), (None, Some(13)));
        // Nothing more to send: what is left over is lost, and little is asked for next time.
        quota.answered(slots(13, 0), now + 1000);
        assert_eq!(quota.ask(RATE, now + 60_000), Some(1));
    }

    #[test]
    fn a_second_run_is_asked_for_before_the_first_has_ended() {
        let mut quota = Quota::default();
        for now in [1000, 1001, 1002] {
            let wanted = quota.ask(RATE, now).unwrap();
            quota.answered(slots(wanted, 0), now);
            (0..wanted).for_each(|_| quota.take(now));
        }
        let wanted = quota.ask(RATE, 1003).unwrap();
        quota.answered(slots(wanted, 0), 1003);
        assert_eq!((wanted, quota.ask(RATE, 1003)), (8, None));
        (0..4).for_each(|_| quota.take(1050));
        assert!(quota.ask(RATE, 1050).is_some(), "half of it is used");
        quota.answered(slots(5, 40_000), 1050);
        let mut left = 0;
        while let Some(at) = quota.next_at(1060) {
            quota.take(at);
            left += 1;
        }
        assert_eq!(left, 4 + 5);
    }

    #[test]
    fn who_is_told_to_wait_asks_again_then() {
        let mut quota = Quota::default();
        assert_eq!(quota.ask(RATE, 1000), Some(1));
        quota.answered(Reserved::Later(500), 1000);
        assert_eq!((quota.wakes_at(1000), quota.ask(RATE, 1499), quota.ask(RATE, 1500)), (1500, None, Some(1)));
    }
}
