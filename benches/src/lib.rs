//! What the benches share: how a run is sized, measured, printed and profiled, and the mail they work on.
//!
//! A bench is real under `cargo bench` and small under `cargo test`, so that it cannot rot. Read [`Run`] first. A line says operations per
//! second, p50 and p99 of one operation (the mean of a sample of so many, since a clock takes longer than some of them), the goal where
//! there is one, and a checksum of the work.
#![forbid(unsafe_code)]

pub mod exchange;
pub mod flame_graph;
pub mod mail;
pub mod profile;
pub mod queued;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringpost_loadtest::machine::Machine;
use ringpost_tools::engine::rig_base;
use ringpost_tools::heading::command_line;

use crate::profile::Profile;

/// Longest operation that is told apart.
const NANOSECONDS_MAX: u64 = 60_000_000_000;
/// Random numbers of the benches; the same in every run.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// A histogram of nanoseconds.
pub fn nanoseconds() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NANOSECONDS_MAX, 3).expect("the bounds are constants in order")
}

/// How often a real run does something, and a small one.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Samples that are timed.
    pub samples: usize,
    /// Operations of a sample.
    pub operations: u64,
}

/// One run of one bench program.
#[derive(Debug)]
pub struct Run {
    real: bool,
    only: Vec<String>,
    profile: Option<Profile>,
    missed: usize,
}

impl Run {
    /// Reads the arguments (`--bench` makes it real, `--profile FILE` or a folder, in which the bench gives the file its name, names of
    /// what is to be measured), says where it runs, and what it asks: the head of its `source`.
    pub fn begin(name: &str, source: &str) -> Self {
        let (mut real, mut only, mut profile) = (false, Vec::new(), None);
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => real = true,
                "--profile" => profile = Some(PathBuf::from(arguments.next().expect("--profile wants a file"))),
                // Cargo's own test harness has options that mean nothing here.
                option if option.starts_with('-') => {}
                part => only.push(part.to_owned()),
            }
        }
        if real {
            println!("{}\n{}", heading(name), question(source));
        }
        let profile = profile.map(|path| Profile::begin(profile_file(path, name)).expect("the profiler starts"));
        Self { real, only, profile, missed: 0 }
    }

    /// Under `cargo bench`.
    pub fn is_real(&self) -> bool {
        self.real
    }

    /// A profile was asked for.
    pub fn is_profiled(&self) -> bool {
        self.profile.is_some()
    }

    /// The first in a real run, the second in a small one.
    pub fn of<T>(&self, real: T, small: T) -> T {
        if self.real { real } else { small }
    }

    /// Was this asked for?
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// Times samples of `work`, which does `size.operations` and gives a checksum. `goal`: millions a second.
    pub fn measure(&mut self, name: &str, goal: Option<f64>, size: Size, mut work: impl FnMut() -> u64) {
        if !self.wants(name) {
            return;
        }
        let samples = self.of(size.samples, 2);
        let (mut histogram, mut spent, mut sum) = (nanoseconds(), Duration::ZERO, 0u64);
        for _ in 0..samples / 10 + 1 {
            work();
        }
        for _ in 0..samples {
            let begun = Instant::now();
            sum = sum.rotate_left(7) ^ work();
            let took = begun.elapsed();
            spent += took;
            histogram.saturating_record(took.as_nanos() as u64 / size.operations);
        }
        self.report(name, goal, &histogram, samples as u64 * size.operations, spent, sum);
    }

    /// Prints one line. `histogram` holds nanoseconds of one operation.
    pub fn report(&mut self, name: &str, goal: Option<f64>, histogram: &Histogram<u64>, operations: u64, spent: Duration, sum: u64) {
        let millions = operations as f64 / spent.as_secs_f64().max(1e-9) / 1e6;
        let verdict = match goal {
            Some(goal) if !self.real => format!(", goal {goal} M/s"),
            // By the median: who else uses the machine shows in the mean.
            Some(goal) if 1e3 / histogram.value_at_quantile(0.5).max(1) as f64 >= goal => format!(", goal {goal} M/s at p50: reached"),
            Some(goal) => {
                self.missed += 1;
                format!(", goal {goal} M/s at p50: MISSED")
            }
            None => String::new(),
        };
        let at = |quantile| histogram.value_at_quantile(quantile);
        println!("{name:44} {millions:10.4} M/s, p50 {:>7} ns, p99 {:>7} ns{verdict}, checksum {sum:016x}", at(0.5), at(0.99));
    }

    /// Writes the profile, if one was asked for.
    pub fn end(self) {
        if let Some(profile) = self.profile {
            profile.end().expect("the profile can be written");
        }
        if self.missed > 0 {
            println!("{} goals missed", self.missed);
        }
    }
}

/// Where and how a bench runs: machine, kernel, the disk that is used where one is, commit, command.
fn heading(name: &str) -> String {
    let machine = Machine::observe(&rig_base(), "");
    format!(
        "{name}: {}, load average {:.2}, commit {}\ncommand: {}",
        machine.line(),
        machine.load_average,
        commit(),
        command_line(std::env::args())
    )
}

/// The question of a bench and the answer expected: the first paragraph of its file.
fn question(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//! "));
    lines.map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// In a folder several benches have a profile each; a file has that of the last.
fn profile_file(path: PathBuf, bench: &str) -> PathBuf {
    if path.is_dir() { path.join(format!("{bench}.pb")) } else { path }
}

/// The commit that is checked out, with a mark if the tree has changes.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    if changed { commit + " with changes" } else { commit }
}

/// A small fast source of numbers (xorshift64*), the same in every run.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(SEED)
    }
}

impl Random {
    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D);
        ((u128::from(drawn) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever ran a bench saw figures, and had to open its file to learn what they answer.
    #[test]
    fn a_bench_asks_its_question_and_says_what_answer_is_expected() {
        let source = "//! How long? Expected: a second,\n//! or two.\n//!\n//! By hand.\nuse x;\n";
        assert_eq!(question(source), "  How long? Expected: a second,\n  or two.");
        for bench in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/benches")).unwrap() {
            let path = bench.unwrap().path();
            let asked = question(&std::fs::read_to_string(&path).unwrap());
            assert!(asked.contains('?') && asked.contains("Expected"), "{}: {asked}", path.display());
        }
    }

    /// Of a figure that was copied out of a run nobody could say on which disk, or by which call, it had been measured.
    #[test]
    fn a_run_names_machine_disk_commit_and_command() {
        let (text, machine) = (heading("queue"), Machine::observe(&rig_base(), ""));
        let own = std::env::args().next().unwrap();
        for part in [&machine.cpu_model, &machine.kernel, &machine.disk, &commit(), &own] {
            assert!(!part.is_empty() && text.contains(part.as_str()), "{part:?} in {text}");
        }
    }

    /// What happened: of several benches with one `--profile` the last wrote over the others' profiles.
    #[test]
    fn in_a_folder_each_bench_has_a_profile_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(profile_file(folder.path().into(), "queue"), folder.path().join("queue.pb"));
        assert_eq!(profile_file("here.pb".into(), "queue"), PathBuf::from("here.pb"));
    }
}
