//! What a message costs the engine, in floors, and Postfix, in engines: floor, engine and Postfix one after the other under the same load.

use std::path::PathBuf;

use clap::Args;
use ringpost_loadtest::pinning::raise_open_files;
use serde::Serialize;

use crate::contest::{Contestant, Figure, OpenLoop, RATE_OF_LATENCY, Scenario, measure, median, say_verdict};
use crate::engine::rig_folder;
use crate::goals::{FLOORS_CPU_MAX, FLOORS_RATE_MIN, postfix_cpu_min};
use crate::heading::Heading;
use crate::machine;
use crate::peer::Program;
use crate::traffic::Told;

/// Postfix has a process for each session: a thousand of them take seconds to start, and then measure how one core switches between them.
const POSTFIX_SESSIONS_MAX: usize = 100;

/// What to measure.
#[derive(Debug, Args)]
pub struct FloorArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// The floor's binary.
    #[arg(long)]
    floor: PathBuf,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Interleaved rounds; medians by CPU per message are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Octets of a message; can be given more than once.
    #[arg(long, default_values_t = [1024, 4096, 65536])]
    size: Vec<u64>,
    /// Sessions of the sender; can be given more than once.
    #[arg(long, default_values_t = [1, 10, 100, 1000])]
    sessions: Vec<usize>,
    /// Only with or only without pipelining.
    #[arg(long, value_parser = ["yes", "no"])]
    pipelined: Option<String>,
    /// Relay to a next hop instead of only accepting; without Postfix.
    #[arg(long)]
    relay: bool,
    /// Leave Postfix out.
    #[arg(long)]
    no_postfix: bool,
    /// One JSON object for each server and load.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    server: &'a str,
    bytes: u64,
    sessions: usize,
    pipelined: bool,
    relay: bool,
    rounds: usize,
    figure: &'a Figure,
    /// CPU per message in floors.
    cpu_ratio: f64,
    /// Messages per second in the floor's; a bound where one of the two rates is a lower bound.
    rate_ratio: f64,
    /// CPU per message in the engine's.
    cpu_in_engines: f64,
}

/// Why Postfix is not measured; nothing where it is.
fn without_postfix(arguments: &FloorArguments, is_there: bool, is_root: bool) -> Option<&'static str> {
    match () {
        () if arguments.no_postfix => Some("--no-postfix"),
        () if arguments.relay => Some("relaying beside it is ./dev bench relay"),
        () if !is_there => Some("it is not installed (package postfix)"),
        () if !is_root => Some("it is started by root only"),
        () => None,
    }
}

/// One rate in another. A rate whose sender was at its limit is a lower bound, and the ratio one with it.
fn in_rates_of(own: &Figure, other: &Figure) -> String {
    let bound = match (own.rate_is_lower_bound, other.rate_is_lower_bound) {
        (false, false) => "",
        (true, false) => ">",
        (false, true) => "<",
        (true, true) => "~",
    };
    format!("{bound}{:.2}", own.messages_per_s / other.messages_per_s)
}

/// Runs all measurements; false when one of them is void.
pub fn run(arguments: &FloorArguments) -> Result<bool, Box<dyn std::error::Error>> {
    raise_open_files();
    let folder = rig_folder("floor")?;
    let (shards, own) = machine::shares()?;
    let mut scenarios = Vec::new();
    for &bytes in &arguments.size {
        for &sessions in &arguments.sessions {
            for pipeline in [true, false] {
                if arguments.pipelined.as_deref().is_none_or(|only| (only == "yes") == pipeline) {
                    scenarios.push(Scenario { bytes, sessions, pipeline, per_connection: 0, relay: arguments.relay, open_loop: true });
                }
            }
        }
    }
    let mut contestants = vec![Contestant::Floor(arguments.floor.clone()), Contestant::Engine(arguments.engine.clone())];
    let left_out = without_postfix(arguments, Program::Postfix.is_there(), machine::is_root());
    if left_out.is_none() {
        contestants.push(Contestant::Peer(Program::Postfix));
    }
    Heading::observe(&arguments.engine, folder.path()).say(arguments.json)?;
    if !arguments.json {
        println!(
            "{} rounds of {} s; servers on core {}, sender on {own:?}, kept connections, every 250 synced, {}",
            arguments.rounds,
            arguments.seconds,
            shards[0],
            if arguments.relay { "relayed over 16 connections, measured until all arrived" } else { "accepted into a held queue" }
        );
        println!(
            "goals, which judge nothing here: the engine at {FLOORS_CPU_MAX} floors of CPU at most and at {FLOORS_RATE_MIN} of the floor's messages/s \
             at least; Postfix at {} engines of CPU pipelined, at {} not",
            postfix_cpu_min(true),
            postfix_cpu_min(false)
        );
        match left_out {
            Some(reason) => println!("Postfix is left out: {reason}"),
            None => println!(
                "Postfix up to {POSTFIX_SESSIONS_MAX} sessions: it has a process for each, and more of them measure how a core switches \
                 between processes; its flushes are fsync and fdatasync, counted by perf"
            ),
        }
        println!(
            "latencies: whole transactions in ms from when they were due, in an open loop at {RATE_OF_LATENCY} of the server's messages/s\n\n   \
             size sessions piped server       msg/s  floors     us CPU  floors engines    calls   flushes{}",
            Told::HEAD
        );
    }
    let mut good = true;
    for scenario in &scenarios {
        let takes_part = |contestant: &&Contestant| !matches!(contestant, Contestant::Peer(_)) || scenario.sessions <= POSTFIX_SESSIONS_MAX;
        let present: Vec<&Contestant> = contestants.iter().filter(takes_part).collect();
        let mut figures: Vec<Vec<Figure>> = present.iter().map(|_| Vec::new()).collect();
        for _ in 0..arguments.rounds {
            for (at, contestant) in present.iter().enumerate() {
                let figure = measure(contestant, scenario, arguments.seconds, folder.path());
                figures[at].push(figure.map_err(|error| format!("{} under {scenario:?}: {error}", contestant.name()))?);
            }
        }
        let (floor, engine_us) = (median(&figures[0]), median(&figures[1]).cpu_us);
        for (contestant, figures) in present.iter().zip(&figures) {
            let figure = median(figures);
            good &= !figure.void;
            let line = Line {
                server: contestant.name(),
                bytes: scenario.bytes,
                sessions: scenario.sessions,
                pipelined: scenario.pipeline,
                relay: scenario.relay,
                rounds: arguments.rounds,
                figure,
                cpu_ratio: figure.cpu_us / floor.cpu_us,
                rate_ratio: figure.messages_per_s / floor.messages_per_s,
                cpu_in_engines: figure.cpu_us / engine_us,
            };
            if arguments.json {
                println!("{}", serde_json::to_string(&line)?);
            } else {
                print(&line, floor);
            }
        }
    }
    say_verdict(if good { "bench floor: OK" } else { "bench floor: some figures are VOID" }, arguments.json);
    Ok(good)
}

fn print(line: &Line<'_>, floor: &Figure) {
    let figure = line.figure;
    let optional = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    println!(
        "{:>7} {:>8} {:<5} {:<10} {:>1}{:>8.0} {:>7} {:>10.1} {:>7.2} {:>7.2} {:>8} {:>9}{}{}",
        line.bytes,
        line.sessions,
        if line.pipelined { "yes" } else { "no" },
        line.server,
        if figure.rate_is_lower_bound { ">" } else { "" },
        figure.messages_per_s,
        in_rates_of(figure, floor),
        figure.cpu_us,
        line.cpu_ratio,
        line.cpu_in_engines,
        optional(figure.calls),
        optional(figure.flushes),
        figure.open_loop.as_ref().map_or(String::new(), OpenLoop::columns),
        if figure.void { "  VOID: sender above 95 %" } else { "" }
    );
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: FloorArguments,
    }

    #[test]
    fn why_postfix_is_not_there_is_said() {
        let arguments = |more: &[&str]| Cli::parse_from([&["bench-floor", "--engine", "e", "--floor", "f"], more].concat()).arguments;
        assert_eq!(without_postfix(&arguments(&[]), true, true), None);
        assert!(without_postfix(&arguments(&[]), false, true).unwrap().contains("not installed"));
        assert!(without_postfix(&arguments(&[]), true, false).unwrap().contains("root"));
        assert!(without_postfix(&arguments(&["--relay"]), true, true).unwrap().contains("bench relay"));
        assert_eq!(without_postfix(&arguments(&["--no-postfix"]), true, true), Some("--no-postfix"));
    }

    #[test]
    fn a_share_of_a_lower_bound_is_named_a_bound() {
        let figure = |messages_per_s, rate_is_lower_bound| Figure { messages_per_s, rate_is_lower_bound, ..Figure::default() };
        let (engine, floor) = (figure(40.0, false), figure(80.0, false));
        assert_eq!(in_rates_of(&engine, &floor), "0.50");
        assert_eq!(in_rates_of(&engine, &figure(80.0, true)), "<0.50");
        assert_eq!(in_rates_of(&figure(40.0, true), &floor), ">0.50");
        assert_eq!(in_rates_of(&figure(40.0, true), &figure(80.0, true)), "~0.50");
    }
}
