//! A CPU profile of a bench: pprof format, and a flame graph beside it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use pprof::protos::Message;
use pprof::{ProfilerGuard, ProfilerGuardBuilder};

use crate::flame_graph;

/// Samples a second; no multiple of what programs do by the clock.
const SAMPLES_PER_S: i32 = 997;

/// A profile being taken.
pub struct Profile {
    path: PathBuf,
    guard: ProfilerGuard<'static>,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Profile {
    /// Samples all threads of this process from now on.
    pub fn begin(path: PathBuf) -> Result<Self, Box<dyn std::error::Error>> {
        // Unwinding through these from a signal may meet a lock that the interrupted thread holds.
        let guard = ProfilerGuardBuilder::default().frequency(SAMPLES_PER_S).blocklist(&["libc", "libgcc", "pthread", "vdso"]).build()?;
        Ok(Self { path, guard })
    }

    /// Writes the profile to its file and the flame graph beside it; neither where this process has used no CPU.
    pub fn end(self) -> Result<(), Box<dyn std::error::Error>> {
        let report = self.guard.report().build()?;
        if report.data.is_empty() {
            println!("profile: none, as nothing was sampled: other processes do the work, or it took no time");
            return Ok(());
        }
        fs::write(&self.path, report.pprof()?.encode_to_vec())?;
        let mut stacks: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        for (frames, count) in &report.data {
            let stack = frames.frames.iter().rev().flat_map(|frame| frame.iter().rev()).map(|symbol| symbol.name());
            *stacks.entry(stack.collect()).or_default() += u64::try_from(*count).unwrap_or(0);
        }
        let picture = self.path.with_extension("svg");
        fs::write(&picture, flame_graph::draw(&stacks))?;
        let mut leaves: BTreeMap<&str, u64> = BTreeMap::new();
        stacks.iter().for_each(|(stack, count)| *leaves.entry(stack.last().map_or("", String::as_str)).or_default() += count);
        let all: u64 = leaves.values().sum();
        let mut order: Vec<(&str, u64)> = leaves.into_iter().collect();
        order.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let mut text = format!("profile: {} and {}, {all} samples; most in", self.path.display(), picture.display());
        for (name, count) in order.iter().take(12) {
            write!(text, "\n  {:5.1} % {name}", 100.0 * *count as f64 / all.max(1) as f64)?;
        }
        println!("{text}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use pprof::protos::Profile as Pprof;

    use super::*;
    use crate::profile_file;

    /// What several benches do that are given one folder, without the processes between them. Then one that does nothing itself, as
    /// `instructions`: it left two files with nothing in them.
    #[test]
    fn each_bench_leaves_a_profile_and_a_flame_graph_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            let profile = Profile::begin(profile_file(folder.path().into(), name)).unwrap();
            let mut sum = 0u64;
            // A sample is taken for each millisecond of CPU, however long the machine takes for it.
            while profile.guard.report().build().unwrap().data.is_empty() {
                (0..100_000u64).for_each(|number| sum = black_box(sum.rotate_left(3) ^ number));
            }
            profile.end().unwrap();
        }
        for name in ["one", "two"] {
            let profile = Pprof::decode(fs::read(folder.path().join(format!("{name}.pb"))).unwrap().as_slice()).unwrap();
            assert!(!profile.sample.is_empty(), "{name}");
            let picture = fs::read_to_string(folder.path().join(format!("{name}.svg"))).unwrap();
            assert!(picture.starts_with("<svg") && picture.contains("<title>"), "{picture}");
        }
        // A sample may be taken between begin and end, but not each time.
        let nothing = folder.path().join("nothing.pb");
        let leaves_none = (0..100).any(|_| {
            let _gone = fs::remove_file(&nothing);
            Profile::begin(nothing.clone()).unwrap().end().unwrap();
            !nothing.exists()
        });
        assert!(leaves_none);
    }
}
