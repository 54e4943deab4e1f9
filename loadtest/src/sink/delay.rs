//! How long the sink holds replies back: not at all, always as long, or as next hops do, mostly short and now and then long.

use std::{fmt, str::FromStr, time::Duration};

use crate::random::Random;

/// The longest delay, milliseconds: an hour, longer than any client waits.
const DELAY_MS_MAX: f64 = 3_600_000.0;

/// What a text for delays may look like.
pub const DELAY_FORM: &str =
    "milliseconds: 20, 5..50 (each as likely), or lognormal:MEDIAN:SIGMA[:MOST] (half of the replies are faster, few take long)";

/// The delay of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ReplyDelay {
    /// None.
    #[default]
    None,
    /// Each length between the two is as likely as another, milliseconds.
    Uniform {
        /// The shortest.
        least_ms: f64,
        /// The longest; the same for a fixed delay.
        most_ms: f64,
    },
    /// Log-normal, milliseconds.
    LogNormal {
        /// Half of the replies come earlier.
        median_ms: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
        /// None comes later.
        most_ms: f64,
    },
}

impl ReplyDelay {
    /// Always so long.
    pub fn fixed(length: Duration) -> ReplyDelay {
        match length.as_secs_f64() * 1000.0 {
            0.0 => ReplyDelay::None,
            ms => ReplyDelay::Uniform { least_ms: ms, most_ms: ms },
        }
    }

    /// The delay of the next reply; nothing where there is none.
    pub fn draw(&self, random: &mut Random) -> Option<Duration> {
        let ms = match *self {
            ReplyDelay::None => return None,
            ReplyDelay::Uniform { least_ms, most_ms } => least_ms + (most_ms - least_ms) * random.unit(),
            ReplyDelay::LogNormal { median_ms, sigma, most_ms } => (median_ms * (sigma * random.normal()).exp()).min(most_ms),
        };
        Some(Duration::from_secs_f64(ms / 1000.0))
    }
}

impl FromStr for ReplyDelay {
    type Err = String;

    fn from_str(text: &str) -> Result<ReplyDelay, String> {
        let wrong = || format!("{text:?} is no delay; delays are {DELAY_FORM}, an hour at most");
        let ms = |word: &str| word.trim().parse().ok().filter(|ms| (0.0..=DELAY_MS_MAX).contains(ms)).ok_or_else(wrong);
        if let Some(rest) = text.strip_prefix("lognormal:") {
            let words: Vec<&str> = rest.split(':').collect();
            let (median, sigma, most) = match words[..] {
                [median, sigma] => (ms(median)?, sigma, DELAY_MS_MAX),
                [median, sigma, most] => (ms(median)?, sigma, ms(most)?),
                _ => return Err(wrong()),
            };
            let sigma = sigma.parse().ok().filter(|sigma| (0.0..=10.0).contains(sigma)).ok_or_else(wrong)?;
            return Ok(ReplyDelay::LogNormal { median_ms: median, sigma, most_ms: most });
        }
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        match (ms(least)?, ms(most)?) {
            (0.0, 0.0) => Ok(ReplyDelay::None),
            (least_ms, most_ms) if least_ms <= most_ms => Ok(ReplyDelay::Uniform { least_ms, most_ms }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for ReplyDelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplyDelay::None => f.write_str("0"),
            ReplyDelay::Uniform { least_ms, most_ms } if least_ms == most_ms => write!(f, "{least_ms}"),
            ReplyDelay::Uniform { least_ms, most_ms } => write!(f, "{least_ms}..{most_ms}"),
            ReplyDelay::LogNormal { median_ms, sigma, most_ms } => write!(f, "lognormal:{median_ms}:{sigma}:{most_ms}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_read_and_printed_so_that_they_read_back() {
        for text in ["0", "20", "0.5", "5..50", "lognormal:20:0.5:1000"] {
            assert_eq!(text.parse::<ReplyDelay>().unwrap().to_string(), text);
        }
        for text in ["", "-1", "50..5", "nan", "1e30", "lognormal:20", "lognormal:20:x", "lognormal:1:1:1:1", "99999999999"] {
            assert!(text.parse::<ReplyDelay>().unwrap_err().contains(DELAY_FORM), "{text}");
        }
    }

    #[test]
    fn drawn_delays_follow_their_model() {
        let mut random = Random::new(7);
        let mut drawn = |text: &str| -> Vec<f64> {
            let delay: ReplyDelay = text.parse().unwrap();
            (0..10_000).map(|_| delay.draw(&mut random).map_or(0.0, |delay| delay.as_secs_f64() * 1000.0)).collect()
        };
        assert!(drawn("0").iter().all(|&ms| ms == 0.0) && drawn("20").iter().all(|&ms| ms == 20.0));
        assert!(drawn("5..50").iter().all(|ms| (5.0..=50.0).contains(ms)));
        let mail = drawn("lognormal:20:1:500");
        let fast = mail.iter().filter(|&&ms| ms < 20.0).count();
        assert!((4_700..5_300).contains(&fast), "{fast}");
        assert!(mail.iter().all(|&ms| ms <= 500.0) && mail.iter().any(|&ms| ms > 200.0));
    }
}
