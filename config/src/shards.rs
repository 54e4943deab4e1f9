//! `[shards]`: which cores carry mail.

use toml::de::DeValue;

use crate::CoreSet;
use crate::choice::choice;
use crate::section::Section;
use crate::setting::{Setting, text};

/// `[shards]`: one pinned thread per chosen core. [`crate::topology::Plan`] turns it into cores of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    /// The cores that get a shard.
    pub cores: Cores,
    /// Shards on each of them, 1 to 16. More than one is slower; it lets a small machine test many shards.
    pub per_core: u32,
    /// Whether a shard with more connections, or more to do, than 1.25 of the mean passes new ones on.
    pub pass_connections: bool,
    /// Whether `cores = "auto"` takes both threads of a physical core.
    pub smt: Smt,
    /// The core of the coordinator (control socket, logs, later cluster and DNS).
    pub coordinator_core: CoordinatorCore,
    /// Where the kernel runs the workers that flush the disk.
    pub io_wq: IoWq,
}

/// The cores that get a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Every usable physical core; with four or more of them one is left to the coordinator.
    Auto,
    /// These.
    List(CoreSet),
}

choice! {
    /// What `cores = "auto"` does with the second thread of a physical core.
    Smt {
        /// One shard per physical core.
        Avoid = "avoid",
        /// One shard per hardware thread.
        Use = "use",
    }
}

/// The core of the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoordinatorCore {
    /// A core without a shard where there is one, else the last shard's.
    Auto,
    /// This one.
    Core(u32),
}

/// Where the kernel's workers of a shard's ring run (they execute every flush).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoWq {
    /// The coordinator's core if no shard is on it, else the shard's own.
    Auto,
    /// The coordinator's core.
    Coordinator,
    /// The core of the shard they work for.
    Shard,
    /// This one.
    Core(u32),
}

impl Shards {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Shards {
        let default = Shards::default();
        let shards = Shards {
            cores: section.read("cores", default.cores),
            per_core: section.within("per_core", default.per_core, 1..=16),
            pass_connections: section.read("pass_connections", default.pass_connections),
            smt: section.read("smt", default.smt),
            coordinator_core: section.read("coordinator_core", default.coordinator_core),
            io_wq: section.read("io_wq", default.io_wq),
        };
        section.finish();
        shards
    }
}

impl Default for Shards {
    fn default() -> Shards {
        Shards {
            cores: Cores::Auto,
            per_core: 1,
            pass_connections: true,
            smt: Smt::Avoid,
            coordinator_core: CoordinatorCore::Auto,
            io_wq: IoWq::Auto,
        }
    }
}

impl Setting for Cores {
    fn read(value: &DeValue<'_>) -> Result<Cores, String> {
        match text(value, "\"auto\" or a list of cores in quotes, for instance \"0,2-5\"")? {
            "auto" => Ok(Cores::Auto),
            list => list.parse().map(Cores::List).map_err(|error: String| format!("{error}; or \"auto\"")),
        }
    }
}

impl Setting for CoordinatorCore {
    fn read(value: &DeValue<'_>) -> Result<CoordinatorCore, String> {
        match value.as_str() {
            Some("auto") => Ok(CoordinatorCore::Auto),
            _ => core_number(value).map(CoordinatorCore::Core).ok_or_else(|| "is not a core: write \"auto\" or a number".to_owned()),
        }
    }
}

impl Setting for IoWq {
    fn read(value: &DeValue<'_>) -> Result<IoWq, String> {
        match value.as_str() {
            Some("auto") => Ok(IoWq::Auto),
            Some("coordinator") => Ok(IoWq::Coordinator),
            Some("shard") => Ok(IoWq::Shard),
            _ => core_number(value)
                .map(IoWq::Core)
                .ok_or_else(|| "is not a place: write \"auto\", \"coordinator\", \"shard\" or a number".to_owned()),
        }
    }
}

/// A core as a number, or as a number in quotes like those in `cores`.
fn core_number(value: &DeValue<'_>) -> Option<u32> {
    let core = match value.as_str() {
        Some(text) => text.parse::<CoreSet>().ok().filter(|set| set.len() == 1).and_then(|set| set.iter().next()),
        None => u32::read(value).ok(),
    };
    core.filter(|core| *core <= crate::CORE_ID_MAX)
}
