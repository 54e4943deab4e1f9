//! What the server was given: where it turns mail away, or stops.

use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

/// Octets of its memory that an engine reckons a session with, where it derives how many it takes (`docs/tuning.md`).
const SESSION_BYTES: u64 = 16 << 10;
/// Free space that an engine keeps where its settings name none (`config/default.toml`).
const DISK_RESERVE_BYTES: u64 = 512 << 20;
/// Units of sizes in an engine's settings.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1000),
    ("B", 1),
];

/// Bounds of a server, as far as they are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Bounds {
    /// Memory at which it sheds load, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Sessions at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
    /// Free space of the spool's file system when the load had ended, without what is kept free, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

impl Bounds {
    /// Of an engine with these settings and a spool in `folder`, as its config says that it derives what they leave open.
    pub fn of_engine(settings: &toml::Table, folder: &Path, memory_of_machine: u64) -> Bounds {
        let setting = |section: &str, key: &str| settings.get(section).and_then(|section| section.get(key));
        let size = |section, key| parse_size(setting(section, key)?.as_str()?);
        let memory = size("memory", "max_memory")
            .unwrap_or_else(|| group_memory().map_or(memory_of_machine, |of_group| of_group.min(memory_of_machine)) / 2);
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 4 * 3;
        let sessions = setting("smtp", "sessions_max").and_then(toml::Value::as_integer).and_then(|sessions| u64::try_from(sessions).ok());
        let kept = size("spool", "min_free_bytes").unwrap_or(DISK_RESERVE_BYTES);
        Bounds {
            memory_bytes: Some(memory),
            sessions: Some(sessions.unwrap_or_else(|| (memory / 2 / SESSION_BYTES).min(files))),
            disk_bytes: free_bytes(folder).map(|free| free.saturating_sub(kept)),
        }
    }

    /// Is nothing known?
    pub fn is_unknown(&self) -> bool {
        *self == Bounds::default()
    }
}

/// A size as settings have it; none of `auto`.
fn parse_size(text: &str) -> Option<u64> {
    let (unit, factor) = UNITS.into_iter().find(|(unit, _)| text.ends_with(unit))?;
    text[..text.len() - unit.len()].trim().parse::<u64>().ok()?.checked_mul(factor)
}

/// The limit of the control group, where it has one.
fn group_memory() -> Option<u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// Free space of a file system, for whoever is not root.
fn free_bytes(folder: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(folder).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_the_bounds_and_what_they_leave_open_is_derived() {
        let of = |settings: &str| Bounds::of_engine(&settings.parse().unwrap(), Path::new("/"), 1 << 40);
        let said = of("[memory]\nmax_memory = \"96 MiB\"\n[smtp]\nsessions_max = 70\n[spool]\nmin_free_bytes = \"65536 GiB\"\n");
        assert_eq!(said, Bounds { memory_bytes: Some(96 << 20), sessions: Some(70), disk_bytes: Some(0) });
        let derived = of("[memory]\nmax_memory = \"64 MiB\"\n");
        assert!(derived.sessions.is_some_and(|sessions| sessions > 0 && sessions <= (64 << 20) / 2 / SESSION_BYTES), "{derived:?}");
        let open = of("");
        assert!(open.memory_bytes.is_some_and(|bytes| bytes > 0 && bytes <= 1 << 39) && !open.is_unknown(), "{open:?}");
        assert_eq!(of("[memory]\nmax_memory = \"auto\"\n").memory_bytes, open.memory_bytes);
        assert_eq!(["10 MB", "64KiB", "1 GiB", "5"].map(parse_size), [Some(10_000_000), Some(65_536), Some(1 << 30), None]);
        assert_eq!(Bounds::of_engine(&toml::Table::new(), Path::new("/nowhere/spool"), 1 << 30).disk_bytes, None);
    }
}
