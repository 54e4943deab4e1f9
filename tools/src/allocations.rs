//! Allocations of the running engine per message in the steady state, by a build that counts them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::sink::Sink;
use ringpost_loadtest::source::{Source, SourceOptions};
use serde_json::Value;

use crate::engine::{Engine, EngineOptions, Route, rig_base, rig_folder};
use crate::heading::Heading;
use crate::traffic::{next_hop, texts};

/// Messages before the counting begins, and at its end.
const FROM: u64 = 10_000;
const TO: u64 = 110_000;
/// Allocations per message in between.
const PER_MESSAGE_MAX: f64 = 0.01;
/// A quiet engine has nothing under way after this long.
const QUIET: Duration = Duration::from_millis(500);

/// What to measure.
#[derive(Debug, Args)]
pub struct AllocationsArguments {
    /// A build of the engine with the feature `count-allocations`.
    #[arg(long)]
    engine: PathBuf,
}

/// Runs it with mail discarded and with mail relayed; true when both keep the limit.
pub fn run(arguments: &AllocationsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    Heading::observe(&arguments.engine, &rig_base()).say(false)?;
    let mut good = true;
    for relayed in [false, true] {
        good &= one(&arguments.engine, relayed)?;
    }
    println!("{}", if good { "allocations: OK" } else { "allocations: FAILED" });
    Ok(good)
}

fn one(binary: &Path, relayed: bool) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = rig_folder("allocations")?;
    let sink = Sink::start(next_hop(None)?)?;
    let route = if relayed { Route::Smarthost(sink.address) } else { Route::Discard };
    let mut engine = Engine::new(EngineOptions::new(binary, folder.path(), route)?)?;
    engine.start()?;
    let load = Source::start(SourceOptions { sessions: 100, ..texts(engine.address, "4KiB")? })?;
    let mut readings = Vec::new();
    for mark in [FROM, TO] {
        load.pause(false);
        let began = Instant::now();
        while load.acknowledged() < mark {
            engine.must_run()?;
            if began.elapsed() > Duration::from_secs(120) {
                return Err(format!("{} of {mark} messages after two minutes", load.acknowledged()).into());
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        // Sessions stay; what is under way ends, and what was accepted is delivered.
        load.pause(true);
        let (mut seen, mut since) = ((0, 0), Instant::now());
        while since.elapsed() < QUIET {
            let now = (load.acknowledged(), sink.messages());
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        readings.push((seen.0, engine.stats()));
    }
    load.stop();
    load.join()?;
    let count = |stats: &Value| {
        stats["allocations"].as_u64().ok_or("`ringpost stats --json` shows no `allocations`: build with --features count-allocations")
    };
    let messages = readings[1].0 - readings[0].0;
    let allocations = count(&readings[1].1)? - count(&readings[0].1)?;
    let per_message = allocations as f64 / messages as f64;
    let way = if relayed { "relayed" } else { "discarded" };
    println!("{way}: {allocations} allocations over {messages} messages = {per_message:.4} a message (at most {PER_MESSAGE_MAX})");
    let good = per_message <= PER_MESSAGE_MAX;
    if !good {
        // The build lists its call sites where it knows them.
        for (key, value) in readings[1].1.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("allocation")) {
            println!("  {key}: {value}");
        }
    }
    Ok(good)
}
