//! Times with their unit.

use std::time::Duration;

/// Units in milliseconds, the largest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `300s`, `5m`, `4h`, `5d` or `250ms`: one whole number and one unit, a space between them allowed.
///
/// The error says what is allowed and reads on after the value.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let allowed = "is not a time: write a whole number and ms, s, m, h or d, for instance \"300s\"";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let (Ok(number), Some(factor)) = (number.parse::<u64>(), factor) else { return Err(allowed.to_owned()) };
    number.checked_mul(factor).map(Duration::from_millis).ok_or_else(|| "is too long a time".to_owned())
}

/// Writes a time as [`parse_duration`] reads it, in the largest unit that divides it; parts below a millisecond are dropped.
pub fn format_duration(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let unit = UNITS.iter().find(|(_, factor)| millis >= *factor && millis.is_multiple_of(*factor));
    match unit {
        Some((name, factor)) => format!("{}{name}", millis / factor),
        None => "0s".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read() {
        let cases =
            [("250ms", 250), ("300s", 300_000), ("5m", 300_000), ("4h", 14_400_000), ("5d", 432_000_000), ("7 s", 7_000), ("0s", 0)];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "5", "s", "-5s", "5 weeks", "1h30m", "1.5h", "5S", " 5s", "5  s", "99999999999999999d", "18446744073709551616ms"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_formatted_time_reads_back() {
        for millis in [0, 1, 999, 1_000, 1_500, 60_000, 90_000, 3_600_000, 86_400_000, 86_400_001] {
            let time = Duration::from_millis(millis);
            assert_eq!(parse_duration(&format_duration(time)), Ok(time));
        }
        assert_eq!(format_duration(Duration::from_secs(7200)), "2h");
    }
}
