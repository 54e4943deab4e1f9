//! Shares of a whole.

use std::fmt;
use std::str::FromStr;

/// A share of 0 to 100 %, in whole percents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u8);

impl Percent {
    /// So many percent; panics above 100.
    pub const fn new(percent: u8) -> Percent {
        assert!(percent <= 100);
        Percent(percent)
    }

    /// The share in percent, 0 to 100.
    pub const fn percent(self) -> u8 {
        self.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Percent, String> {
        let number = text.strip_suffix('%').map(|number| number.strip_suffix(' ').unwrap_or(number));
        let digits = number.filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        match digits.and_then(|digits| digits.parse::<u8>().ok()) {
            Some(percent) if percent <= 100 => Ok(Percent(percent)),
            _ => Err("is not a share: write a whole number from 0 to 100 and %, for instance \"20 %\"".to_owned()),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_percents_are_read_and_nothing_else() {
        assert_eq!("20 %".parse(), Ok(Percent::new(20)));
        assert_eq!("100%".parse(), Ok(Percent::new(100)));
        for text in ["", "%", "20", "101 %", "-1 %", "+1 %", "1.5 %", "300 %"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }
}
