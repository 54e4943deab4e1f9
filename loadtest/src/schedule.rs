//! When messages are due under an open loop: a fixed rate, a ramp, Poisson arrivals, a train of spikes. Pure.
//!
//! A schedule is the same for all cores; each takes its share of it: every n-th message of a rate that follows a rule, and a Poisson
//! process of a n-th of the rate, which together are one of the whole rate.

use std::{fmt, str::FromStr, time::Duration};

use crate::random::Random;

/// The highest rate, in messages per second.
pub const RATE_MAX: f64 = 10_000_000.0;

/// What a text for a rate may look like.
pub const RATE_FORM: &str = "N (messages per second), A..B/SECONDS (a ramp), poisson:N, or spikes:BASE:PEAK:EVERY:LENGTH (rates, seconds)";

/// A rate over time, in messages per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Always the same.
    Fixed(f64),
    /// From one rate to another, evenly; then it stays.
    Ramp {
        /// At the start.
        from: f64,
        /// At the end.
        to: f64,
        /// How long it takes.
        over: Duration,
    },
    /// Gaps are exponentially distributed: independent senders.
    Poisson(f64),
    /// A base rate, and every so often a peak.
    Spikes {
        /// Between the peaks.
        base: f64,
        /// In them.
        peak: f64,
        /// From the start of one to that of the next; the first begins after `every - length`.
        every: Duration,
        /// How long each lasts.
        length: Duration,
    },
}

impl Rate {
    /// The highest rate it reaches.
    pub fn peak(&self) -> f64 {
        match *self {
            Rate::Fixed(rate) | Rate::Poisson(rate) => rate,
            Rate::Ramp { from, to, .. } => from.max(to),
            Rate::Spikes { base, peak, .. } => base.max(peak),
        }
    }

    /// The same course within `factor` times the time.
    pub fn stretched(self, factor: f64) -> Rate {
        match self {
            Rate::Ramp { from, to, over } => Rate::Ramp { from, to, over: over.mul_f64(factor) },
            Rate::Spikes { base, peak, every, length } => {
                Rate::Spikes { base, peak, every: every.mul_f64(factor), length: length.mul_f64(factor) }
            }
            steady => steady,
        }
    }

    /// Messages due from the start until `seconds` later, on average.
    fn due_until(&self, seconds: f64) -> f64 {
        match *self {
            Rate::Fixed(rate) | Rate::Poisson(rate) => rate * seconds,
            Rate::Ramp { from, to, over } => {
                let over = over.as_secs_f64();
                let within = seconds.min(over);
                from * within + (to - from) * within * within / (2.0 * over) + to * (seconds - within)
            }
            Rate::Spikes { base, peak, every, length } => {
                let (every, length) = (every.as_secs_f64(), length.as_secs_f64());
                let (whole, rest) = ((seconds / every).floor(), seconds % every);
                let in_peak = whole * length + (rest - (every - length)).max(0.0);
                base * (seconds - in_peak) + peak * in_peak
            }
        }
    }

    /// The time by which `count` messages are due: `due_until` turned round.
    fn time_of(&self, count: f64) -> f64 {
        match *self {
            Rate::Fixed(rate) | Rate::Poisson(rate) => count / rate,
            Rate::Ramp { from, to, over } => {
                let over = over.as_secs_f64();
                let in_ramp = (from + to) / 2.0 * over;
                if count >= in_ramp {
                    return over + (count - in_ramp) / to;
                }
                // from*t + (to-from)/(2*over)*t^2 = count, in the form that does not cancel.
                let slope = (to - from) / over;
                2.0 * count / (from + (from * from + 2.0 * slope * count).max(0.0).sqrt())
            }
            Rate::Spikes { base, peak, every, length } => {
                let (every, length) = (every.as_secs_f64(), length.as_secs_f64());
                let per_cycle = base * (every - length) + peak * length;
                let (whole, rest) = ((count / per_cycle).floor(), count % per_cycle);
                let in_base = base * (every - length);
                let within = if rest < in_base { rest / base } else { (every - length) + (rest - in_base) / peak };
                whole * every + within
            }
        }
    }
}

/// The due times of one core's share, in order, from the start of the load.
#[derive(Debug, Clone)]
pub struct Schedule {
    rate: Rate,
    share: u64,
    shares: u64,
    given: u64,
    /// Under Poisson: the last due time in seconds.
    last_s: f64,
    random: Random,
}

impl Schedule {
    /// Share number `share` of `shares`.
    pub fn new(rate: Rate, share: usize, shares: usize, seed: u64) -> Schedule {
        Schedule { rate, share: share as u64, shares: shares as u64, given: 0, last_s: 0.0, random: Random::part(seed, share as u64) }
    }

    /// When the next message of this share is due. Never ends.
    pub fn next_due(&mut self) -> Duration {
        let seconds = match self.rate {
            Rate::Poisson(rate) => {
                self.last_s += self.random.exponential() * self.shares as f64 / rate;
                self.last_s
            }
            // Message k of all is due when k of them are.
            rate => rate.time_of((self.given * self.shares + self.share) as f64),
        };
        self.given += 1;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4)
    }

    /// Messages due in all shares together until then, on average.
    pub fn expected(rate: &Rate, until: Duration) -> f64 {
        rate.due_until(until.as_secs_f64())
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let rate = |word: &str| {
            let number = word.parse().ok().filter(|rate: &f64| *rate > 0.0 && *rate <= RATE_MAX);
            number.ok_or_else(|| format!("{word:?} is no rate above 0 and up to {RATE_MAX}; rates are {RATE_FORM}"))
        };
        let seconds = |word: &str| {
            let number = word.trim_end_matches('s').parse().ok().filter(|s: &f64| *s > 0.0 && *s <= 1e6);
            number.map(Duration::from_secs_f64).ok_or_else(|| format!("{word:?} is no number of seconds; rates are {RATE_FORM}"))
        };
        if let Some(rest) = text.strip_prefix("poisson:") {
            return Ok(Rate::Poisson(rate(rest)?));
        }
        if let Some(rest) = text.strip_prefix("spikes:") {
            let words: Vec<&str> = rest.split(':').collect();
            let [base, peak, every, length] = words[..] else { return Err(format!("{text:?} has not four parts; rates are {RATE_FORM}")) };
            let (every, length) = (seconds(every)?, seconds(length)?);
            if length >= every {
                return Err(format!("a spike of {length:?} every {every:?} has no end"));
            }
            return Ok(Rate::Spikes { base: rate(base)?, peak: rate(peak)?, every, length });
        }
        if let Some((from, rest)) = text.split_once("..") {
            let (to, over) = rest.split_once('/').ok_or_else(|| format!("{text:?} lacks /SECONDS; rates are {RATE_FORM}"))?;
            return Ok(Rate::Ramp { from: rate(from)?, to: rate(to)?, over: seconds(over)? });
        }
        Ok(Rate::Fixed(rate(text)?))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::Fixed(rate) => write!(f, "{rate}"),
            Rate::Ramp { from, to, over } => write!(f, "{from}..{to}/{}", over.as_secs_f64()),
            Rate::Poisson(rate) => write!(f, "poisson:{rate}"),
            Rate::Spikes { base, peak, every, length } => {
                write!(f, "spikes:{base}:{peak}:{}:{}", every.as_secs_f64(), length.as_secs_f64())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: [&str; 5] = ["1000", "100..900/4", "900..100/4", "poisson:500", "spikes:100:2000:2:0.5"];

    #[test]
    fn rates_are_read_and_printed_so_that_they_read_back() {
        for text in RATES {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["", "0", "-1", "1..2", "poisson:", "spikes:1:2:3", "spikes:1:2:3:3", "1e9"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_together_follow_the_rate_and_none_goes_back_in_time() {
        for text in RATES {
            let rate: Rate = text.parse().unwrap();
            for until in [1.0, 3.3, 7.0] {
                let mut due = 0;
                for share in 0..3 {
                    let mut schedule = Schedule::new(rate, share, 3, 9);
                    let mut last = Duration::ZERO;
                    loop {
                        let next = schedule.next_due();
                        assert!(next >= last);
                        if next.as_secs_f64() >= until {
                            break;
                        }
                        (last, due) = (next, due + 1);
                    }
                }
                let expected = Schedule::expected(&rate, Duration::from_secs_f64(until));
                let slack = if text.starts_with('p') { 4.0 * expected.sqrt() } else { 1.5 };
                assert!((f64::from(due) - expected).abs() <= slack, "{text} until {until}: {due} instead of {expected}");
            }
        }
    }

    #[test]
    fn a_stretched_course_has_the_same_number_of_messages_by_its_length() {
        for text in RATES {
            let rate: Rate = text.parse().unwrap();
            let whole = Schedule::expected(&rate, Duration::from_secs(8));
            let half = Schedule::expected(&rate.stretched(0.5), Duration::from_secs(4));
            assert!((whole / 2.0 - half).abs() < 1e-6, "{text}");
        }
    }

    #[test]
    fn a_fixed_rate_has_even_gaps_over_its_shares() {
        let mut shares: Vec<Schedule> = (0..2).map(|share| Schedule::new(Rate::Fixed(1000.0), share, 2, 0)).collect();
        let times: Vec<u128> = (0..10).map(|at| shares[at % 2].next_due().as_micros()).collect();
        assert_eq!(times, (0..10).map(|k| k * 1000).collect::<Vec<u128>>());
    }
}
