//! What a cluster costs mail that does not use it: the engine with `[cluster]` enabled and `delivery.mode = "local"` beside the engine without a
//! cluster, under one load, in interleaved rounds. The engine without is there twice: by how much it differs from itself is what cannot be told.

use std::path::PathBuf;

use clap::Args;
use ringpost_loadtest::pinning::raise_open_files;
use serde::Serialize;

use crate::contest::{Contestant, Figure, Scenario, measure, median, say_verdict};
use crate::engine::rig_folder;
use crate::heading::Heading;
use crate::machine;

/// More than this is a cost, whatever the machine did meanwhile.
const RATIO_MAX: f64 = 1.02;

/// What to measure.
#[derive(Debug, Args)]
pub struct ClusterCostArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Interleaved rounds; medians by CPU per message are compared.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Sessions of the sender.
    #[arg(long, default_value_t = 100)]
    sessions: usize,
    /// Octets of a message.
    #[arg(long, default_value_t = 4096)]
    size: u64,
    /// One JSON object per line of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    engine: &'a str,
    figure: &'a Figure,
    /// CPU per message, the least and the most of the rounds.
    cpu_us_range: [f64; 2],
    /// Its CPU per message over that of the engine without a cluster.
    ratio: f64,
}

/// Measures all; true when the cluster's ratio is at most `RATIO_MAX`, or no further from 1 than that of the engine beside itself.
pub fn run(arguments: &ClusterCostArguments) -> Result<bool, Box<dyn std::error::Error>> {
    raise_open_files();
    let folder = rig_folder("cluster-cost")?;
    let (shards, own) = machine::shares()?;
    let scenario =
        Scenario { bytes: arguments.size, sessions: arguments.sessions, pipeline: true, per_connection: 0, relay: false, open_loop: false };
    let alone = Contestant::Engine(arguments.engine.clone());
    let contestants =
        [("alone", alone.clone()), ("alone, again", alone), ("in a cluster", Contestant::InCluster(arguments.engine.clone()))];
    Heading::observe(&arguments.engine, folder.path()).say(arguments.json)?;
    if !arguments.json {
        println!(
            "{} rounds of {} s, {} sessions, {} octets, engine and its coordinator on core {}, sender on {own:?}, mail held, {}",
            arguments.rounds,
            arguments.seconds,
            arguments.sessions,
            arguments.size,
            shards[0],
            folder.path().display()
        );
        println!("\nengine           msg/s   us CPU per message (least to most)   p50/p99 dot to 250, closed loop   ratio");
    }
    let mut rounds: [Vec<Figure>; 3] = Default::default();
    for _ in 0..arguments.rounds.max(1) {
        for (figures, (name, contestant)) in rounds.iter_mut().zip(&contestants) {
            let figure = measure(contestant, &scenario, arguments.seconds, folder.path());
            figures.push(figure.map_err(|error| format!("{name}: {error}"))?);
        }
    }
    let alone_us = median(&rounds[0]).cpu_us;
    let lines = rounds.each_ref().map(|figures| {
        let of_rounds = || figures.iter().map(|figure| figure.cpu_us);
        let cpu_us_range = [of_rounds().fold(f64::INFINITY, f64::min), of_rounds().fold(0.0, f64::max)];
        let figure = median(figures);
        (figure, cpu_us_range, figure.cpu_us / alone_us)
    });
    for ((figure, cpu_us_range, ratio), (engine, _)) in lines.into_iter().zip(&contestants) {
        let line = Line { engine, figure, cpu_us_range, ratio };
        if arguments.json {
            println!("{}", serde_json::to_string(&line)?);
        } else {
            println!(
                "{:<13} {:>8.0} {:>10.2} ({:.2} to {:.2}) {:>16.2} /{:>6.2} ms {:>27.3}",
                line.engine,
                figure.messages_per_s,
                figure.cpu_us,
                cpu_us_range[0],
                cpu_us_range[1],
                figure.closed_loop_us.p50 as f64 / 1000.0,
                figure.closed_loop_us.p99 as f64 / 1000.0,
                line.ratio
            );
        }
    }
    let [_, (.., itself), (.., in_cluster)] = lines;
    let good = in_cluster <= RATIO_MAX || in_cluster - 1.0 <= (itself - 1.0).abs();
    say_verdict(if good { "bench cluster: no cost to be told" } else { "bench cluster: A COST" }, arguments.json);
    Ok(good)
}
