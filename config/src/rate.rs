//! Messages per time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Messages one can allow in the time of a rate.
const MESSAGES_MAX: u32 = 1_000_000;

/// So many messages in a time: `"100/s"`, `"1000/min"`, `"500/h"`, `"2000/d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Messages, from 1 to 1,000,000.
    pub messages: u32,
    /// In this time: a second, a minute, an hour or a day.
    pub per: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let refused = || "is not a rate: write for instance \"100/s\", \"1000/min\", \"500/h\" or \"2000/d\"".to_owned();
        let (messages, unit) = text.split_once('/').ok_or_else(refused)?;
        let (messages, unit) = (messages.trim_end(), unit.trim_start());
        let seconds = match unit {
            "s" | "sec" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hr" | "hour" => 3600,
            "d" | "day" => 86_400,
            _ => return Err(refused()),
        };
        if !messages.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        match messages.parse() {
            Ok(messages @ 1..=MESSAGES_MAX) => Ok(Rate { messages, per: Duration::from_secs(seconds) }),
            _ => Err(format!("is out of bounds: allowed are 1 to {MESSAGES_MAX} messages")),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "min",
            3600 => "h",
            _ => "d",
        };
        write!(f, "{}/{unit}", self.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_in_the_units_people_write() {
        for (text, messages, seconds) in [
            ("100/s", 100, 1),
            ("1000/min", 1000, 60),
            ("7/m", 7, 60),
            ("500/hour", 500, 3600),
            ("2000 / d", 2000, 86_400),
            ("1/sec", 1, 1),
        ] {
            assert_eq!(text.parse(), Ok(Rate { messages, per: Duration::from_secs(seconds) }), "{text}");
        }
        assert_eq!("1000/minute".parse::<Rate>().unwrap().to_string(), "1000/min");
        for text in ["", "100", "/s", "100/", "-1/s", "+1/s", "1.5/s", "0/s", "100/week", "1000001/s", "99999999999/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
