//! Sizes with their unit.

use std::fmt;
use std::str::FromStr;

/// Units in bytes, the largest first. Powers of 1024 and of 1000 have different names, so neither is a surprise.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// A number of bytes, written `25 MiB`, `64 KiB`, `512 B`. A bare number is refused: it does not say what it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn new(bytes: u64) -> ByteSize {
        ByteSize(bytes)
    }

    /// So many times 1024 bytes; panics when that is beyond 64 bits.
    pub const fn kib(count: u64) -> ByteSize {
        ByteSize(count * 1024)
    }

    /// So many times 1024 KiB; panics when that is beyond 64 bits.
    pub const fn mib(count: u64) -> ByteSize {
        ByteSize(count * 1024 * 1024)
    }

    /// So many times 1024 MiB; panics when that is beyond 64 bits.
    pub const fn gib(count: u64) -> ByteSize {
        ByteSize(count * 1024 * 1024 * 1024)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.strip_prefix(' ').unwrap_or(unit);
        let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        let (Ok(number), Some(factor)) = (number.parse::<u64>(), factor) else {
            return Err("is not a size: write a whole number and B, KiB, MiB, GiB or TiB, for instance \"25 MiB\"".to_owned());
        };
        number.checked_mul(factor).map(ByteSize).ok_or_else(|| "is too large a size".to_owned())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only powers of 1024: a default written in MiB is shown in MiB.
        let binary = UNITS.iter().filter(|(name, _)| name.contains('i'));
        let unit = binary.into_iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match unit {
            Some((name, factor)) => write!(f, "{} {name}", self.0 / factor),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Bytes a second, written `500 B/s`, `1 KiB/s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRate(ByteSize);

impl ByteRate {
    /// So many bytes a second.
    pub const fn new(bytes_per_second: u64) -> ByteRate {
        ByteRate(ByteSize(bytes_per_second))
    }

    /// The number of bytes a second.
    pub const fn bytes_per_second(self) -> u64 {
        self.0.bytes()
    }
}

impl FromStr for ByteRate {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteRate, String> {
        let size = text.strip_suffix("/s").and_then(|size| size.parse().ok());
        size.map(ByteRate).ok_or_else(|| "is not a rate: write a whole number and B/s, KiB/s or MiB/s, for instance \"500 B/s\"".to_owned())
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read() {
        let cases =
            [("25 MiB", 25 << 20), ("64 KiB", 65_536), ("64KiB", 65_536), ("1 GiB", 1 << 30), ("512 B", 512), ("10 MB", 10_000_000)];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize::new(bytes)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "5", "MiB", "-1 B", "1.5 GiB", "5 M", "5 mib", "99999999 TiB", "18446744073709551616 B"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_is_a_size_per_second() {
        assert_eq!("500 B/s".parse(), Ok(ByteRate::new(500)));
        assert_eq!(ByteRate::new(2048).to_string(), "2 KiB/s");
        for text in ["500 B", "500", "500/s", "B/s", "500 B/m"] {
            assert!(text.parse::<ByteRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_shown_size_reads_back() {
        for bytes in [0, 1, 1023, 1024, 1025, 65_536, 1 << 20, 50 << 20, 1 << 40, 10_000_000] {
            let size = ByteSize::new(bytes);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        assert_eq!(ByteSize::mib(50).to_string(), "50 MiB");
    }
}
