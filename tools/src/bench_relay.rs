//! In and out again: what relaying a message costs, beside Postfix, with the same source and the same next hop.

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
pub struct RelayArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Seconds that the source sends in each measurement; it is measured until the next hop has all.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Interleaved rounds; medians by CPU per message are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Sessions of the source.
    #[arg(long, default_value_t = 50)]
    sessions: usize,
    /// Octets of a message.
    #[arg(long, default_value_t = 4096)]
    size: u64,
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
    figure: &'a Figure,
    /// Its CPU per message over the engine's.
    ratio: f64,
    /// What is wanted of it, where the server is Postfix.
    wanted: Option<PostfixRatio>,
}

/// Runs both; true when the ratio is not below its alarm.
pub fn run(arguments: &RelayArguments) -> Result<bool, Box<dyn std::error::Error>> {
    raise_open_files();
    let folder = rig_folder("relay")?;
    let (shards, own) = machine::shares()?;
    let scenario =
        Scenario { bytes: arguments.size, sessions: arguments.sessions, pipeline: true, per_connection: 0, relay: true, open_loop: true };
    let mut contestants = vec![Contestant::Engine(arguments.engine.clone())];
    if !arguments.no_postfix {
        if !Program::Postfix.is_there() {
            return Err("Postfix is not installed (package postfix); --no-postfix measures the engine alone".into());
        }
        contestants.push(Contestant::Peer(Program::Postfix));
    }
    Heading::observe(&arguments.engine, folder.path()).say(arguments.json)?;
    if !arguments.json {
        println!(
            "{} rounds of {} s, {} sessions, {} octets, servers on core {}, source and next hop on {own:?}, all relayed to one next hop, \
             measured until it has the last; {}",
            arguments.rounds,
            arguments.seconds,
            arguments.sessions,
            arguments.size,
            shards[0],
            folder.path().display()
        );
        println!(
            "latencies: whole transactions with the source in ms from when they were due, in an open loop at {RATE_OF_LATENCY} of the server's \
             messages/s\n\nserver        msg/s   us CPU per message   messages per connection to the next hop{}   ratio of CPU to the engine's",
            Told::HEAD
        );
    }
    let mut rounds: Vec<Vec<Figure>> = contestants.iter().map(|_| Vec::new()).collect();
    for _ in 0..arguments.rounds {
        for (figures, contestant) in rounds.iter_mut().zip(&contestants) {
            let figure = measure(contestant, &scenario, arguments.seconds, folder.path());
            figures.push(figure.map_err(|error| format!("{}: {error}", contestant.name()))?);
        }
    }
    let engine_us = median(&rounds[0]).cpu_us;
    let mut good = true;
    for (contestant, figures) in contestants.iter().zip(&rounds) {
        let figure = median(figures);
        let wanted = matches!(contestant, Contestant::Peer(_)).then(|| PostfixRatio::relaying(scenario.pipeline));
        let line = Line { server: contestant.name(), figure, ratio: figure.cpu_us / engine_us, wanted };
        good &= wanted.is_none_or(|wanted| wanted.is_good(line.ratio));
        if arguments.json {
            println!("{}", serde_json::to_string(&line)?);
        } else {
            println!(
                "{:<11} {:>1}{:>6.0} {:>20.1} {:>41.1}{} {:>8.1}{}",
                line.server,
                if figure.rate_is_lower_bound { ">" } else { "" },
                figure.messages_per_s,
                figure.cpu_us,
                figure.per_hop_connection.unwrap_or_default(),
                figure.open_loop.as_ref().map_or(String::new(), OpenLoop::columns),
                line.ratio,
                wanted.map_or(String::new(), |wanted| wanted.beside(line.ratio))
            );
        }
    }
    say_verdict(if good { "bench relay: no alarm" } else { "bench relay: ALARM" }, arguments.json);
    Ok(good)
}
