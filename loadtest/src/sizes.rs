//! How large messages are: one size, a weighted list, a range, a log-normal distribution, or a mix from a file.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{input_file, random::Random};

/// The largest message a load may have, in octets: what one block of memory for its text can hold with stuffing.
pub const MESSAGE_BYTES_MAX: u64 = 512 << 20;

/// Sizes of messages in octets, their header included.
#[derive(Debug, Clone, PartialEq)]
pub enum Sizes {
    /// Each as likely as its weight says. One entry: a fixed size.
    Weighted(Vec<(u64, f64)>),
    /// Every size of a range is as likely as another.
    Uniform {
        /// The smallest.
        least: u64,
        /// The largest.
        most: u64,
    },
    /// Many small and few large: what mail looks like.
    LogNormal {
        /// Half of the messages are smaller.
        median: u64,
        /// Standard deviation of the logarithm; 1.5 or so for mail.
        sigma: f64,
        /// Nothing is smaller.
        least: u64,
        /// Nothing is larger.
        most: u64,
    },
}

/// What a text for sizes may look like.
pub const SIZES_FORM: &str = "4KiB, 1KiB..5MiB, a list with weights such as 4KiB*8,64KiB*2, lognormal:MEDIAN:SIGMA[:LEAST..MOST] (256..25MiB where it is left out), or @FILE with a line SIZE WEIGHT each";

impl Sizes {
    /// One size.
    pub fn fixed(bytes: u64) -> Sizes {
        Sizes::Weighted(vec![(bytes, 1.0)])
    }

    /// The smallest that was asked for; of a distribution, whose small ones are few, the size that half of them have at most.
    pub fn least_asked(&self) -> u64 {
        match self {
            Sizes::Weighted(entries) => entries.iter().map(|&(size, _)| size).min().unwrap_or_default(),
            Sizes::Uniform { least, .. } => *least,
            Sizes::LogNormal { median, least, most, .. } => (*median).clamp(*least, *most),
        }
    }

    /// Reads a mix file of at most [`input_file::TEXT_BYTES_MAX`].
    ///
    /// # Errors
    /// A sentence that names the file, and the line where one is wrong.
    pub fn read_mix(path: &Path) -> Result<Sizes, String> {
        let text =
            input_file::read_text(path, input_file::TEXT_BYTES_MAX).map_err(|error| format!("the mix file {}: {error}", path.display()))?;
        let mut entries = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (size, weight) = line.split_once(char::is_whitespace).unwrap_or((line, "1"));
            let entry = parse_bytes(size).and_then(|size| Ok((size, parse_weight(weight.trim())?)));
            entries.push(entry.map_err(|error| format!("{}:{}: {error}", path.display(), number + 1))?);
        }
        Sizes::weighted(entries).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn weighted(entries: Vec<(u64, f64)>) -> Result<Sizes, String> {
        let total: f64 = entries.iter().map(|&(_, weight)| weight).sum();
        if total > 0.0 { Ok(Sizes::Weighted(entries)) } else { Err("no size has a weight above 0".into()) }
    }

    /// The largest size that can come.
    pub fn most(&self) -> u64 {
        match self {
            Sizes::Weighted(entries) => entries.iter().map(|&(size, _)| size).max().unwrap_or_default(),
            Sizes::Uniform { most, .. } | Sizes::LogNormal { most, .. } => *most,
        }
    }

    /// The next size.
    pub fn draw(&self, random: &mut Random) -> u64 {
        match self {
            Sizes::Weighted(entries) => match entries[..] {
                [(size, _)] => size,
                _ => draw_weighted(entries, random),
            },
            Sizes::Uniform { least, most } => least + random.below(most - least + 1),
            Sizes::LogNormal { median, sigma, least, most } => {
                let size = *median as f64 * (sigma * random.normal()).exp();
                (size as u64).clamp(*least, *most)
            }
        }
    }
}

/// What [`SIZES_FORM`] describes, a mix file included, which is not read yet: what is wrong with a file is no wrong usage.
#[derive(Debug, Clone, PartialEq)]
pub enum SizesArgument {
    /// Sizes.
    Given(Sizes),
    /// The file that has them.
    Mix(PathBuf),
}

impl FromStr for SizesArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<SizesArgument, String> {
        match text.strip_prefix('@') {
            Some(path) => Ok(SizesArgument::Mix(path.into())),
            None => text.parse().map(SizesArgument::Given),
        }
    }
}

impl SizesArgument {
    /// The sizes.
    ///
    /// # Errors
    /// What [`Sizes::read_mix`] says.
    pub fn read(&self) -> Result<Sizes, String> {
        match self {
            SizesArgument::Given(sizes) => Ok(sizes.clone()),
            SizesArgument::Mix(path) => Sizes::read_mix(path),
        }
    }
}

fn draw_weighted(entries: &[(u64, f64)], random: &mut Random) -> u64 {
    let mut left = random.unit() * entries.iter().map(|&(_, weight)| weight).sum::<f64>();
    for &(size, weight) in entries {
        left -= weight;
        if left < 0.0 {
            return size;
        }
    }
    entries.last().map_or(0, |&(size, _)| size)
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let wrong = |error: String| format!("{error}; sizes are {SIZES_FORM}");
        if let Some(rest) = text.strip_prefix("lognormal:") {
            return parse_log_normal(rest).map_err(wrong);
        }
        if let Some((least, most)) = text.split_once("..") {
            let (least, most) = parse_range(least, most).map_err(wrong)?;
            return Ok(Sizes::Uniform { least, most });
        }
        let entries = text.split(',').map(|entry| {
            let (size, weight) = entry.split_once('*').unwrap_or((entry, "1"));
            Ok((parse_bytes(size)?, parse_weight(weight)?))
        });
        entries.collect::<Result<Vec<_>, String>>().and_then(Sizes::weighted).map_err(wrong)
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Weighted(entries) => match entries[..] {
                [(size, _)] => write!(f, "{size}"),
                _ => {
                    let words: Vec<String> = entries.iter().map(|(size, weight)| format!("{size}*{weight}")).collect();
                    f.write_str(&words.join(","))
                }
            },
            Sizes::Uniform { least, most } => write!(f, "{least}..{most}"),
            Sizes::LogNormal { median, sigma, least, most } => write!(f, "lognormal:{median}:{sigma}:{least}..{most}"),
        }
    }
}

fn parse_log_normal(text: &str) -> Result<Sizes, String> {
    let mut words = text.split(':');
    let median = parse_bytes(words.next().unwrap_or_default())?;
    let sigma = words.next().unwrap_or("1.5");
    let sigma: f64 =
        sigma.parse().ok().filter(|sigma| (0.0..=10.0).contains(sigma)).ok_or(format!("{sigma:?} is no SIGMA from 0 to 10"))?;
    let (least, most) = match words.next().map(|range| range.split_once("..").ok_or(range)) {
        None => (256, 25 << 20),
        Some(Ok((least, most))) => parse_range(least, most)?,
        Some(Err(range)) => return Err(format!("{range:?} is no range")),
    };
    if words.next().is_some() {
        return Err(format!("{text:?} has too many parts"));
    }
    Ok(Sizes::LogNormal { median, sigma, least, most })
}

fn parse_range(least: &str, most: &str) -> Result<(u64, u64), String> {
    let (least, most) = (parse_bytes(least)?, parse_bytes(most)?);
    if least <= most { Ok((least, most)) } else { Err(format!("{least}..{most} begins behind its end")) }
}

fn parse_weight(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|weight: &f64| weight.is_finite() && *weight >= 0.0).ok_or(format!("{text:?} is no weight"))
}

/// Octets: `4096`, `4KiB`, `4k`, `5MiB`, `5M`; at most [`MESSAGE_BYTES_MAX`].
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "k" | "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        _ => return Err(format!("{text:?} is no size")),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.filter(|&bytes| bytes <= MESSAGE_BYTES_MAX).ok_or(format!("{text:?} is no size up to 512 MiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_printed_so_that_it_reads_back() {
        for text in ["4096", "1024*1,65536*3", "1024..5242880", "lognormal:8192:1.5:512..1048576"] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
        assert_eq!("4KiB".parse(), Ok(Sizes::fixed(4096)));
        assert_eq!("lognormal:8k:1".parse::<Sizes>().unwrap().most(), 25 << 20);
    }

    #[test]
    fn nonsense_is_refused_with_the_allowed_forms() {
        for text in ["", "4 parsecs", "9..3", "1GiB", "4k*-1", "4k*0", "lognormal:4k:x", "lognormal:4k:1:2", "600M"] {
            let error = text.parse::<Sizes>().unwrap_err();
            assert!(error.contains(SIZES_FORM), "{text}: {error}");
        }
        assert!(Sizes::read_mix(Path::new("/nowhere/mix")).unwrap_err().contains("/nowhere/mix"));
    }

    #[test]
    fn drawn_sizes_follow_their_model() {
        let mut random = Random::new(5);
        let list: Sizes = "1k*1,2k*3".parse().unwrap();
        let large = (0..10_000).filter(|_| list.draw(&mut random) == 2048).count();
        assert!((7_000..8_000).contains(&large), "{large}");
        let mail: Sizes = "lognormal:8k:1.5:1k..1M".parse().unwrap();
        let drawn: Vec<u64> = (0..10_000).map(|_| mail.draw(&mut random)).collect();
        assert!(drawn.iter().all(|size| (1024..=1 << 20).contains(size)));
        let below = drawn.iter().filter(|&&size| size < 8192).count();
        assert!((4_700..5_300).contains(&below), "{below}");
    }

    #[test]
    fn a_mix_file_names_its_wrong_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mix");
        std::fs::write(&path, "# small\n1KiB 80\n\n64KiB 20 # large\n").unwrap();
        let read = || format!("@{}", path.display()).parse::<SizesArgument>().unwrap().read();
        assert_eq!(read(), Ok(Sizes::Weighted(vec![(1024, 80.0), (65_536, 20.0)])));
        std::fs::write(&path, "1KiB 80\nmany 3\n").unwrap();
        assert!(read().unwrap_err().contains("mix:2: "));
    }
}
