//! Accepted messages per second and CPU per message, beside other mail servers on the same disk in one interleaved run.

use std::path::PathBuf;

use clap::Args;
use ringpost_loadtest::pinning::raise_open_files;
use serde::Serialize;

use crate::contest::{Contestant, Figure, OpenLoop, RATE_OF_LATENCY, Scenario, measure, median, say_verdict};
use crate::engine::rig_folder;
use crate::goals::PostfixRatio;
use crate::heading::Heading;
use crate::machine;
use crate::peer::Program;
use crate::traffic::Told;

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Interleaved rounds; medians by CPU per message are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Sessions of the sender.
    #[arg(long, default_value_t = 100)]
    sessions: usize,
    /// Octets of a message; can be given more than once.
    #[arg(long, default_values_t = [1024, 4096])]
    size: Vec<u64>,
    /// Only kept or only single connections.
    #[arg(long, value_parser = ["kept", "single"])]
    connections: Option<String>,
    /// Measure the engine only.
    #[arg(long)]
    no_postfix: bool,
    /// One JSON object per line of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    server: &'a str,
    bytes: u64,
    connections: &'static str,
    pipelined: bool,
    figure: &'a Figure,
    /// Its CPU per message over the engine's.
    ratio: f64,
    /// What is wanted of it, where the server is Postfix.
    wanted: Option<PostfixRatio>,
    good: bool,
}

/// Runs all measurements; true when no ratio to Postfix is below its alarm and nothing is void.
pub fn run(arguments: &BenchArguments) -> Result<bool, Box<dyn std::error::Error>> {
    raise_open_files();
    let folder = rig_folder("bench")?;
    let (shards, own) = machine::shares()?;
    let mut scenarios = Vec::new();
    for &bytes in &arguments.size {
        for per_connection in [0, 1] {
            let wanted = arguments.connections.as_deref().is_none_or(|only| (only == "kept") == (per_connection == 0));
            for pipeline in [true, false] {
                if wanted {
                    scenarios.push(Scenario {
                        bytes,
                        sessions: arguments.sessions,
                        pipeline,
                        per_connection,
                        relay: false,
                        open_loop: true,
                    });
                }
            }
        }
    }
    let mut contestants = vec![Contestant::Engine(arguments.engine.clone())];
    if !arguments.no_postfix {
        contestants.extend(Program::ALL.into_iter().filter(|program| program.is_there()).map(Contestant::Peer));
    }
    Heading::observe(&arguments.engine, folder.path()).say(arguments.json)?;
    if !arguments.json {
        println!(
            "{} rounds of {} s, {} sessions, servers on core {}, sender on {own:?}, mail held, {}",
            arguments.rounds,
            arguments.seconds,
            arguments.sessions,
            shards[0],
            folder.path().display()
        );
        for program in Program::ALL {
            println!("{}: {}", program.name(), if program.is_there() { program.settings() } else { "not installed, left out" });
        }
        println!(
            "latencies: whole transactions in ms from when they were due, in an open loop at {RATE_OF_LATENCY} of the server's messages/s\n\n\
             server       size connections     pipelined      msg/s     us CPU  flushes/msg{}    ratio of CPU to the engine's",
            Told::HEAD
        );
    }
    let mut good = true;
    let (mut goals, mut reached) = (0, 0);
    for scenario in &scenarios {
        let mut figures: Vec<Result<Vec<Figure>, String>> = contestants.iter().map(|_| Ok(Vec::new())).collect();
        for _ in 0..arguments.rounds {
            for (figures, contestant) in figures.iter_mut().zip(&contestants) {
                let Ok(known) = figures else { continue };
                match measure(contestant, scenario, arguments.seconds, folder.path()) {
                    Ok(figure) => known.push(figure),
                    Err(error) => *figures = Err(format!("{} under {scenario:?}: {error}", contestant.name())),
                }
            }
        }
        let engine_us = median(figures[0].as_ref().map_err(String::clone)?).cpu_us;
        for (contestant, figures) in contestants.iter().zip(&figures) {
            let figure = match figures {
                Ok(figures) => median(figures),
                Err(reason) => {
                    // The others are measured all the same. Without Postfix there is nothing to compare with.
                    eprintln!("left out: {reason}");
                    good &= *contestant != Contestant::Peer(Program::Postfix);
                    continue;
                }
            };
            let ratio = figure.cpu_us / engine_us;
            let wanted = (*contestant == Contestant::Peer(Program::Postfix))
                .then(|| PostfixRatio::accepting(scenario.per_connection == 0, scenario.pipeline));
            if let Some(goal) = wanted.and_then(|wanted| wanted.goal) {
                goals += 1;
                reached += u32::from(ratio >= goal);
            }
            let line = Line {
                server: contestant.name(),
                bytes: scenario.bytes,
                connections: if scenario.per_connection == 0 { "kept" } else { "one per message" },
                pipelined: scenario.pipeline,
                figure,
                ratio,
                wanted,
                good: !figure.void && wanted.is_none_or(|wanted| wanted.is_good(ratio)),
            };
            good &= line.good;
            if arguments.json {
                println!("{}", serde_json::to_string(&line)?);
            } else {
                print(&line);
            }
        }
    }
    let verdict = if good { "no alarm" } else { "ALARM" };
    say_verdict(&format!("bench: {verdict}; {reached} of {goals} goals reached"), arguments.json);
    Ok(good)
}

fn print(line: &Line<'_>) {
    let figure = line.figure;
    println!(
        "{:<11} {:>5} {:<16} {:<9} {:>1}{:>9.0} {:>10.1} {:>12}{} {:>8.1}{}{}",
        line.server,
        line.bytes,
        line.connections,
        if line.pipelined { "yes" } else { "no" },
        if figure.rate_is_lower_bound { ">" } else { "" },
        figure.messages_per_s,
        figure.cpu_us,
        figure.flushes.map_or("-".into(), |flushes| format!("{flushes:.3}")),
        figure.open_loop.as_ref().map_or(String::new(), OpenLoop::columns),
        line.ratio,
        line.wanted.map_or(String::new(), |wanted| wanted.beside(line.ratio)),
        if figure.void { "  VOID: sender above 95 %" } else { "" }
    );
}
