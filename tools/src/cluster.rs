//! `./dev cluster`: several real nodes over a real Valkey, and everything that can happen to either.
//!
//! Each rig stands alone (`--only leader,flush`), prints figures and OK or FAILED, and repeats its choices for a seed.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use ringpost_loadtest::random::Random;

use crate::{engine::rig_folder, machine};

mod flush;
mod leader;
mod monitor;
mod network;
pub(crate) mod nodes;
mod report;

use report::Report;

/// A worker that lost its answer with Valkey's data waits for owners before it decides: no delivery for so long is no fault.
const CLAIMS_ASKED_AGAIN: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Debug, Args)]
pub struct ClusterArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Only these rigs.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Rig>,
    /// A short run of each: for `./dev test`.
    #[arg(long)]
    smoke: bool,
    /// Disturbances of the rig `leader`.
    #[arg(long)]
    disturbances: Option<u64>,
    /// Messages of the rig `flush`.
    #[arg(long)]
    items: Option<u64>,
    /// Decides moments and kinds; chosen and printed when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// One JSON object a rig.
    #[arg(long)]
    json: bool,
    /// Keep the folder of the run.
    #[arg(long)]
    keep: bool,
}

/// The rigs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rig {
    /// Leaders are stopped, killed, cut off and asked to go: nothing stale is done.
    Leader,
    /// Valkey loses all data with thousands of messages offered.
    Flush,
}

/// Where a rig works and how much it does.
#[derive(Debug)]
struct Place<'a> {
    engine: &'a Path,
    folder: PathBuf,
    seed: u64,
    is_smoke: bool,
    disturbances: u64,
    items: u64,
}

/// Runs the rigs; true when each saw what it must.
pub fn run(arguments: &ClusterArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = rig_folder("cluster")?;
    let seed = arguments.seed.unwrap_or_else(Random::fresh_seed);
    eprintln!("cluster: seed {seed}; {}", machine::description());
    let smoke = |full, short| if arguments.smoke { short } else { full };
    let mut good = true;
    for rig in Rig::value_variants().iter().filter(|rig| arguments.only.is_empty() || arguments.only.contains(rig)) {
        let (name, case): (&'static str, fn(&Place<'_>, &mut Report) -> io::Result<()>) = match rig {
            Rig::Leader => ("leader", leader::run),
            Rig::Flush => ("flush", flush::run),
        };
        let place = Place {
            engine: &arguments.engine,
            folder: folder.path().join(name),
            seed,
            is_smoke: arguments.smoke,
            disturbances: arguments.disturbances.unwrap_or(smoke(200, 8)),
            items: arguments.items.unwrap_or(smoke(20_000, 2_000)),
        };
        std::fs::create_dir_all(&place.folder)?;
        let (mut report, began) = (Report::new(name), Instant::now());
        if let Err(error) = case(&place, &mut report) {
            report.failed(&error);
        }
        report.figure("took_s", began.elapsed().as_secs());
        good &= report.print(arguments.json);
    }
    if arguments.keep || !good {
        eprintln!("kept: {}", folder.keep().display());
    }
    Ok(good)
}
