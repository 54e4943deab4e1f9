//! Sets of processor cores, as the kernel and operators write them.

use std::fmt;
use std::str::FromStr;

/// Largest core number: the kernel's own bound is 8192 cores, and a mistyped range must not fill the memory.
pub const CORE_ID_MAX: u32 = 8191;

/// A set of core numbers in order, written `0`, `0,2-5,18-31`; the same form as in `/sys/devices/system/cpu/online`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CoreSet(Vec<u32>);

impl CoreSet {
    /// The set of these cores, in order, each once.
    pub fn new(cores: impl IntoIterator<Item = u32>) -> CoreSet {
        let mut cores: Vec<u32> = cores.into_iter().collect();
        cores.sort_unstable();
        cores.dedup();
        CoreSet(cores)
    }

    /// Reads a list as the kernel writes it: like `parse`, but surrounding white space and the empty set are allowed.
    pub fn from_kernel(text: &str) -> Result<CoreSet, String> {
        let text = text.trim();
        if text.is_empty() { Ok(CoreSet::default()) } else { text.parse() }
    }

    /// Whether the set holds this core.
    pub fn contains(&self, core: u32) -> bool {
        self.0.binary_search(&core).is_ok()
    }

    /// The cores in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// How many cores.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for CoreSet {
    type Err = String;

    fn from_str(text: &str) -> Result<CoreSet, String> {
        let number = |text: &str| {
            let digits = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            digits.and_then(|digits| digits.parse::<u32>().ok()).filter(|core| *core <= CORE_ID_MAX)
        };
        let allowed = || format!("is not a list of cores: write for instance \"0,2-5\", numbers up to {CORE_ID_MAX}");
        let mut cores = Vec::new();
        for part in text.split(',') {
            let part = part.trim();
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Some(first), Some(last)) = (number(first), number(last)) else { return Err(allowed()) };
            if first > last {
                return Err(format!("is not a list of cores: the range {part} runs backwards"));
            }
            cores.extend(first..=last);
            // Overlapping ranges must not add up to more than there can be.
            if cores.len() > CORE_ID_MAX as usize + 1 {
                return Err(allowed());
            }
        }
        let count = cores.len();
        let set = CoreSet::new(cores);
        if set.len() < count {
            return Err("is not a list of cores: a core stands in it twice".to_owned());
        }
        Ok(set)
    }
}

impl fmt::Display for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        let mut separator = "";
        while let Some(&first) = rest.first() {
            let run = rest.iter().zip(first..).take_while(|(core, expected)| **core == *expected).count();
            let last = rest[run - 1];
            f.write_str(separator)?;
            if first == last {
                write!(f, "{first}")?
            } else {
                write!(f, "{first}-{last}")?
            }
            separator = ",";
            rest = &rest[run..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_read() {
        let set: CoreSet = "0,2-5,18-31".parse().unwrap();
        assert_eq!(set.len(), 1 + 4 + 14);
        assert!(set.contains(3) && set.contains(31) && !set.contains(1));
        assert_eq!(set.to_string(), "0,2-5,18-31");
        assert_eq!("3,1, 2".parse::<CoreSet>().unwrap().to_string(), "1-3");
        assert_eq!(CoreSet::from_kernel("0-3\n").unwrap().to_string(), "0-3");
        assert!(CoreSet::from_kernel("\n").unwrap().is_empty());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "a", "1-", "-1", "3-1", "1,,2", "1,1", "0-3,2", "0-9999999", "8192", "4294967296", "1-2-3", "+1"] {
            assert!(text.parse::<CoreSet>().is_err(), "{text}");
        }
    }
}
