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

mod blackhole;
mod failovers;
mod flush;
mod leader;
mod listener;
mod monitor;
mod network;
pub(crate) mod nodes;
mod operator;
mod relay;
mod report;
mod topologies;
mod worker;

use report::Report;

/// A worker that lost its answer with Valkey's data waits for owners before it decides, 25 s: no delivery for so long is no fault where
/// data is lost.
const CLAIMS_DECIDED: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Args)]
pub struct ClusterArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Only these rigs.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Rig>,
    /// Short runs, for `./dev test`: without `only`, those that need no quiet machine.
    #[arg(long)]
    smoke: bool,
    /// Pauses, kills and cuts of the rig `leader`, between which a third as many leaders go in order.
    #[arg(long)]
    disturbances: Option<u64>,
    /// Failovers of the rig `failovers`.
    #[arg(long)]
    failovers: Option<u64>,
    /// How long Valkey does not answer in the rig `blackhole`, and how long its normal phases last.
    #[arg(long)]
    seconds: Option<u64>,
    /// Messages of the rig `flush`.
    #[arg(long)]
    items: Option<u64>,
    /// Workers that the rig `worker` kills.
    #[arg(long)]
    kills: Option<u64>,
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
    /// Valkey fails over and loses what was written last.
    Failovers,
    /// Valkey does not answer while mail comes in.
    Blackhole,
    /// Valkey loses all data with thousands of messages offered.
    Flush,
    /// Workers are killed while they hold leases, and the node that accepted for good.
    Worker,
    /// Valkey, Redis, TLS, Sentinels, a cluster; every command of `ringpost cluster`.
    Topologies,
}

/// Where a rig works and how much it does.
#[derive(Debug)]
struct Place<'a> {
    engine: &'a Path,
    folder: PathBuf,
    seed: u64,
    is_smoke: bool,
    disturbances: u64,
    failovers: u64,
    seconds: u64,
    items: u64,
    kills: u64,
    /// Messages of the node that does not come back.
    items_of_the_dead: u64,
}

/// Runs one rig.
type Case = fn(&Place<'_>, &mut Report) -> io::Result<()>;

/// Runs the rigs; true when each saw what it must.
pub fn run(arguments: &ClusterArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = rig_folder("cluster")?;
    let seed = arguments.seed.unwrap_or_else(Random::fresh_seed);
    eprintln!("cluster: seed {seed}; {}", machine::description());
    let smoke = |full, short| if arguments.smoke { short } else { full };
    let mut good = true;
    let is_chosen = |rig: &&Rig| match arguments.only.as_slice() {
        [] if arguments.smoke => !matches!(rig, Rig::Blackhole | Rig::Worker),
        [] => true,
        only => only.contains(rig),
    };
    for rig in Rig::value_variants().iter().filter(is_chosen) {
        let (name, case): (&'static str, Case) = match rig {
            Rig::Leader => ("leader", leader::run),
            Rig::Failovers => ("failovers", failovers::run),
            Rig::Blackhole => ("blackhole", blackhole::run),
            Rig::Flush => ("flush", flush::run),
            Rig::Worker => ("worker", worker::run),
            Rig::Topologies => ("topologies", topologies::run),
        };
        let place = Place {
            engine: &arguments.engine,
            folder: folder.path().join(name),
            seed,
            is_smoke: arguments.smoke,
            disturbances: arguments.disturbances.unwrap_or(smoke(200, 8)),
            failovers: arguments.failovers.unwrap_or(smoke(100, 4)),
            seconds: arguments.seconds.unwrap_or(smoke(20, 5)),
            items: arguments.items.unwrap_or(smoke(20_000, 2_000)),
            kills: arguments.kills.unwrap_or(smoke(30, 2)),
            items_of_the_dead: smoke(2_000, 300),
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
