//! The engine among faults: disks that are full or fail, surroundings that forbid, peers that mean it, and the end of its life.
//! Each case is a row: what was done, what was seen, and whether that is right.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

mod disks;
mod drain;
mod next_hops;
mod surroundings;

/// What to run.
#[derive(Debug, Args)]
pub struct FaultsArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Keep the folder of the run.
    #[arg(long)]
    keep: bool,
}

/// What a case saw: a sentence, and whether it is as it must be. An error is a case that failed.
type Seen = io::Result<(bool, String)>;

/// Where a case works.
#[derive(Debug)]
struct Place<'a> {
    engine: &'a Path,
    folder: PathBuf,
}

/// A case: its name, what it needs, what it does.
type Case = (&'static str, Needs, fn(&Place<'_>) -> Seen);

/// What a case needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// Loop devices, mounts, other users.
    Root,
    /// Root, FUSE and loop devices.
    Disks,
    /// `strace`.
    Strace,
}

impl Needs {
    fn lacking(self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Root if crate::machine::is_root() => None,
            Self::Root => Some("needs root".into()),
            Self::Disks => crate::volume::must_be_possible().err().map(|error| error.to_string()),
            Self::Strace => crate::volume::run("strace", &["-V".as_ref()]).err().map(|error| error.to_string()),
        }
    }
}

/// Runs all cases; true when each saw what it must.
pub fn run(arguments: &FaultsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = crate::engine::rig_folder("faults")?;
    let cases: Vec<Case> = [surroundings::CASES, next_hops::CASES, drain::CASES, disks::CASES].concat();
    let (mut wrong, mut left_out) = (0, 0);
    for (number, (name, needs, case)) in cases.into_iter().filter(|case| case.0.contains(&arguments.only)).enumerate() {
        if let Some(lacking) = needs.lacking() {
            println!("{name:<28} LEFT OUT  {lacking}");
            left_out += 1;
            continue;
        }
        let place = Place { engine: &arguments.engine, folder: folder.path().join(number.to_string()) };
        std::fs::create_dir_all(&place.folder)?;
        let (good, seen) = case(&place).unwrap_or_else(|error| (false, error.to_string()));
        println!("{name:<28} {}  {seen}", if good { "ok      " } else { "WRONG   " });
        wrong += usize::from(!good);
    }
    println!("faults: {} ({wrong} wrong, {left_out} left out)", if wrong == 0 { "OK" } else { "FAILED" });
    if arguments.keep || wrong > 0 {
        println!("kept: {}", folder.keep().display());
    }
    Ok(wrong == 0)
}
