//! Messages per time to one destination: the generic cell rate algorithm, without a queue of its own.
//!
//! One number is kept, the time at which the next message would come if all came evenly spaced. A message may go while that
//! time is not further ahead than the burst reaches; the wait for it is then known to the millisecond, so nothing polls.

use std::fmt;

const NANOS_PER_MS: u64 = 1_000_000;

/// Longest period a rate can be stated for: a day.
pub const RATE_PERIOD_MS_MAX: u64 = 86_400_000;

/// So many messages per time, evenly spaced but for a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Messages in `per_ms`, at least 1.
    pub messages: u32,
    /// The time they are spread over, in milliseconds; 1 to [`RATE_PERIOD_MS_MAX`].
    pub per_ms: u64,
    /// Messages that may go at once after a pause, at least 1. More than `messages` is no use.
    pub burst: u32,
}

impl Rate {
    /// An equal part of this rate, for one of `parts` that share it: exact, because it is the time that is stretched.
    /// A burst is split too, and nobody's part of it is 0.
    pub fn divided(self, parts: u32) -> Self {
        let parts = parts.max(1);
        Self { per_ms: self.per_ms.saturating_mul(parts.into()), burst: (self.burst / parts).max(1), ..self }
    }

    /// Nanoseconds between two messages, rounded up, so that the rate is never exceeded.
    fn interval_ns(self) -> u64 {
        self.per_ms.saturating_mul(NANOS_PER_MS).div_ceil(self.messages.max(1).into()).max(1)
    }

    /// How far ahead of even spacing messages may run. A millisecond at least: it is the clock's step, and several messages of
    /// a fast rate fall into one.
    fn tolerance_ns(self) -> u64 {
        self.interval_ns().saturating_mul(u64::from(self.burst.max(1)) - 1).max(NANOS_PER_MS - 1)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per_ms {
            1000 => write!(f, "{}/s", self.messages),
            60_000 => write!(f, "{}/min", self.messages),
            3_600_000 => write!(f, "{}/h", self.messages),
            per_ms => write!(f, "{} in {per_ms} ms", self.messages),
        }
    }
}

/// What one destination has used of its [`Rate`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RateLimiter {
    /// Unix nanoseconds at which the next message is on time.
    on_time_ns: u64,
}

impl RateLimiter {
    /// The first millisecond at which a message may go; at or before `now` it is now.
    pub(crate) fn next_at(&self, rate: Rate) -> u64 {
        self.on_time_ns.saturating_sub(rate.tolerance_ns()).div_ceil(NANOS_PER_MS)
    }

    /// A message goes at `now`.
    pub(crate) fn take(&mut self, rate: Rate, now: u64) {
        let now_ns = now.saturating_mul(NANOS_PER_MS);
        self.on_time_ns = self.on_time_ns.max(now_ns).saturating_add(rate.interval_ns());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Jitter;

    const START: u64 = 1_790_000_000_000;

    /// Sends whenever it may, sleeping as it says; the times of all messages within `span_ms`.
    fn send_all(rate: Rate, span_ms: u64) -> Vec<u64> {
        let (mut limiter, mut now, mut sent) = (RateLimiter::default(), START, Vec::new());
        while now < START + span_ms {
            let next = limiter.next_at(rate);
            if next > now {
                now = next;
                continue;
            }
            limiter.take(rate, now);
            sent.push(now);
        }
        sent
    }

    #[test]
    fn a_rate_is_used_up_and_never_exceeded_in_any_window() {
        for (messages, per_ms, burst) in
            [(100, 1000, 1), (1000, 60_000, 1), (7, 1000, 3), (5000, 1000, 1), (1, 3_600_000, 1), (30, 60_000, 30), (20_000, 1000, 100)]
        {
            let rate = Rate { messages, per_ms, burst };
            let span_ms = 5 * per_ms;
            let sent = send_all(rate, span_ms);
            let expected = 5 * messages as usize;
            assert!(
                sent.len() >= expected && sent.len() <= expected + burst as usize + messages as usize / per_ms as usize + 1,
                "{rate}: {}",
                sent.len()
            );
            // A millisecond's worth may go at once however small the burst is.
            let at_once = (burst as usize).max((u64::from(messages) / per_ms) as usize + 1);
            let mut end = 0;
            for (index, from) in sent.iter().enumerate() {
                while sent.get(end).is_some_and(|at| *at < from + per_ms) {
                    end += 1;
                }
                let within = end - index;
                assert!(within <= messages as usize + at_once, "{rate}: {within} in {per_ms} ms");
            }
        }
    }

    #[test]
    fn a_burst_goes_at_once_after_a_pause_and_then_the_rate_holds() {
        let rate = Rate { messages: 10, per_ms: 1000, burst: 4 };
        let sent = send_all(rate, 1000);
        let offsets: Vec<_> = sent.iter().map(|at| at - START).take(7).collect();
        assert_eq!(offsets, [0, 0, 0, 0, 100, 200, 300]);
    }

    #[test]
    fn random_senders_agree_with_a_leaky_bucket() {
        for seed in 0..50 {
            let mut random = Jitter::new(seed);
            let rate = Rate { messages: 1 + random.below(50) as u32, per_ms: 1000, burst: 1 + random.below(20) as u32 };
            let (mut limiter, mut now) = (RateLimiter::default(), START);
            // The model: a bucket that leaks `messages` per second and holds `burst`, in nanoseconds of leaking.
            let (interval, mut level_ns, mut leaked_at) = (rate.interval_ns(), 0_u64, START);
            for _ in 0..2000 {
                now += random.below(3 * 1000 / u64::from(rate.messages) + 2);
                level_ns = level_ns.saturating_sub((now - leaked_at) * NANOS_PER_MS);
                leaked_at = now;
                let fits = level_ns <= rate.tolerance_ns();
                assert_eq!(limiter.next_at(rate) <= now, fits, "seed {seed}");
                if fits {
                    level_ns += interval;
                    limiter.take(rate, now);
                }
            }
        }
    }

    #[test]
    fn parts_of_a_rate_add_up_to_it() {
        let rate = Rate { messages: 90, per_ms: 1000, burst: 1 };
        let sent: usize = (0..4).map(|_| send_all(rate.divided(4), 4000).len()).sum();
        assert!((360..=364).contains(&sent), "{sent}");
        assert_eq!(Rate { burst: 3, ..rate }.divided(8).burst, 1);
        assert_eq!((rate.to_string(), Rate { per_ms: 60_000, ..rate }.to_string()), ("90/s".to_owned(), "90/min".to_owned()));
    }

    #[test]
    fn a_clock_that_goes_back_lets_nothing_go_early() {
        let rate = Rate { messages: 1, per_ms: 1000, burst: 1 };
        let mut limiter = RateLimiter::default();
        limiter.take(rate, START);
        limiter.take(rate, START - 500);
        assert_eq!(limiter.next_at(rate), START + 2000);
    }
}
