//! Accepted messages per second and CPU per message, beside Postfix on the same disk in one interleaved run.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::content::{HashKind, SizeRange};
use crate::demo::per_sync;
use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::load::{LoadOptions, LoadReport};
use crate::machine;
use crate::postfix::Postfix;
use crate::random::Random;
use crate::sender::LoadHandle;

/// At most this share of Postfix's CPU per message, on kept connections and with a connection per message.
const SHARE_MAX: [(u32, f64); 2] = [(0, 1.0 / 15.0), (1, 1.0 / 10.0)];
/// A sender at its limit is run again at this part of what it reached, so that CPU per message can be judged.
const RATE_BELOW_LIMIT: f64 = 0.85;
/// Disk the bench leaves alone.
const DISK_KEPT_FREE: u64 = 4 << 30;

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Interleaved rounds; medians are reported.
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

#[derive(Debug, Clone, Copy)]
struct Scenario {
    bytes: u64,
    per_connection: u32,
    pipeline: bool,
}

/// One measurement of one server.
#[derive(Debug, Clone)]
struct Figure {
    messages_per_s: f64,
    cpu_us: f64,
    report: LoadReport,
    /// The sender was at its limit, so the rate is a lower bound.
    sender_bound: bool,
    per_sync: String,
}

#[derive(Debug, Serialize)]
struct Line {
    bytes: u64,
    connections: &'static str,
    pipelined: bool,
    engine_messages_per_s: f64,
    engine_rate_is_lower_bound: bool,
    engine_cpu_us: f64,
    engine_p50_us: u64,
    engine_p99_us: u64,
    engine_messages_per_sync: String,
    sender_core_percent: f64,
    void: bool,
    postfix_messages_per_s: Option<f64>,
    postfix_cpu_us: Option<f64>,
    cpu_ratio: Option<f64>,
    cpu_ratio_wanted: f64,
    good: bool,
}

/// Runs all measurements; true when every ratio is reached and nothing is void.
pub fn run(arguments: &BenchArguments) -> Result<bool, Box<dyn std::error::Error>> {
    machine::raise_open_files();
    let folder = rig_folder("bench")?;
    let (shards, own) = machine::shares()?;
    let mut scenarios = Vec::new();
    for &bytes in &arguments.size {
        for (per_connection, _) in SHARE_MAX {
            let wanted = arguments.connections.as_deref().is_none_or(|only| (only == "kept") == (per_connection == 0));
            for pipeline in [true, false] {
                if wanted {
                    scenarios.push(Scenario { bytes, per_connection, pipeline });
                }
            }
        }
    }
    println!("{}", machine::description());
    println!(
        "{} rounds of {} s, {} sessions, engine and Postfix on core {}, sender on {own:?}, mail held, {}",
        arguments.rounds,
        arguments.seconds,
        arguments.sessions,
        shards[0],
        folder.path().display()
    );
    let mut engines: Vec<Vec<Figure>> = scenarios.iter().map(|_| Vec::new()).collect();
    let mut others: Vec<Vec<Figure>> = scenarios.iter().map(|_| Vec::new()).collect();
    for round in 0..arguments.rounds {
        for (at, scenario) in scenarios.iter().enumerate() {
            engines[at].push(engine_figure(arguments, scenario, folder.path())?);
            if !arguments.no_postfix {
                others[at].push(postfix_figure(arguments, scenario, folder.path())?);
            }
            let other = others[at].last().map(|figure| figure.cpu_us);
            eprintln!("round {round} {scenario:?}: engine {:.1} us, Postfix {other:.0?} us", engines[at][round].cpu_us);
        }
    }
    let mut good = true;
    if !arguments.json {
        println!(
            "\nsize connections  pipelined   engine msg/s  us CPU  p50/p99 dot to 250   per sync   Postfix msg/s  us CPU   ratio (wanted)"
        );
    }
    for (at, scenario) in scenarios.iter().enumerate() {
        let line = line(scenario, &mut engines[at], &mut others[at]);
        good &= line.good;
        if arguments.json {
            println!("{}", serde_json::to_string(&line)?);
        } else {
            print(&line);
        }
    }
    println!("{}", if good { "bench: OK" } else { "bench: NOT REACHED" });
    Ok(good)
}

fn line(scenario: &Scenario, engine: &mut [Figure], other: &mut [Figure]) -> Line {
    engine.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
    other.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
    let median = &engine[engine.len() / 2];
    let other = (!other.is_empty()).then(|| &other[other.len() / 2]);
    let share =
        SHARE_MAX.iter().find(|(per_connection, _)| *per_connection == scenario.per_connection).expect("scenarios are made from it").1;
    let ratio = other.map(|other| other.cpu_us / median.cpu_us);
    Line {
        bytes: scenario.bytes,
        connections: if scenario.per_connection == 0 { "kept" } else { "one per message" },
        pipelined: scenario.pipeline,
        engine_messages_per_s: median.messages_per_s,
        engine_rate_is_lower_bound: median.sender_bound,
        engine_cpu_us: median.cpu_us,
        engine_p50_us: median.report.latency_us.p50,
        engine_p99_us: median.report.latency_us.p99,
        engine_messages_per_sync: median.per_sync.clone(),
        sender_core_percent: median.report.own_core_percent,
        void: median.report.is_void,
        postfix_messages_per_s: other.map(|other| other.messages_per_s),
        postfix_cpu_us: other.map(|other| other.cpu_us),
        cpu_ratio: ratio,
        cpu_ratio_wanted: 1.0 / share,
        good: !median.report.is_void && ratio.is_none_or(|ratio| ratio >= 1.0 / share),
    }
}

fn print(line: &Line) {
    println!(
        "{:>4} {:<16} {:<9} {:>1}{:>12.0} {:>7.1} {:>9.2} /{:>6.2} ms {:>9} {:>15.0} {:>7.0} {:>7.1} ({:.0}){}",
        line.bytes,
        line.connections,
        if line.pipelined { "yes" } else { "no" },
        if line.engine_rate_is_lower_bound { ">" } else { "" },
        line.engine_messages_per_s,
        line.engine_cpu_us,
        line.engine_p50_us as f64 / 1000.0,
        line.engine_p99_us as f64 / 1000.0,
        line.engine_messages_per_sync,
        line.postfix_messages_per_s.unwrap_or(f64::NAN),
        line.postfix_cpu_us.unwrap_or(f64::NAN),
        line.cpu_ratio.unwrap_or(f64::NAN),
        line.cpu_ratio_wanted,
        if line.void {
            "  VOID: sender above 95 %"
        } else if !line.good {
            "  NOT REACHED"
        } else {
            ""
        }
    );
}

/// Runs one load; where the sender is at its limit, a second one below it, whose CPU figures then count.
fn measure(
    arguments: &BenchArguments,
    scenario: &Scenario,
    to: std::net::SocketAddr,
    cpu: impl Fn() -> io::Result<Duration>,
) -> io::Result<Figure> {
    let (_, own) = machine::shares()?;
    let options = LoadOptions {
        sessions: arguments.sessions,
        sizes: SizeRange(scenario.bytes..=scenario.bytes),
        pipeline: scenario.pipeline,
        per_connection: scenario.per_connection,
        hash: HashKind::Crc32c,
        seed: Random::fresh_seed(),
        core: own,
        ..LoadOptions::new(to)
    };
    // A short one first: processes are started, memory is touched.
    LoadHandle::start(LoadOptions { duration: Some(Duration::from_millis(500)), ..options.clone() })?.join()?;
    let one = |rate: Option<f64>| -> io::Result<Figure> {
        let before = cpu()?;
        let duration = Some(Duration::from_secs_f64(arguments.seconds));
        let report = LoadHandle::start(LoadOptions { duration, rate, ..options.clone() })?.join()?;
        let used = cpu()? - before;
        if report.acknowledged == 0 || report.refused > 0 {
            return Err(io::Error::other(format!("{} refused: {}", report.refused, report.last_trouble)));
        }
        Ok(Figure {
            messages_per_s: report.messages_per_s,
            cpu_us: used.as_secs_f64() * 1e6 / report.acknowledged as f64,
            report,
            sender_bound: false,
            per_sync: String::new(),
        })
    };
    let free = one(None)?;
    if !free.report.is_void {
        return Ok(free);
    }
    let below = one(Some(free.messages_per_s * RATE_BELOW_LIMIT))?;
    Ok(Figure { messages_per_s: free.messages_per_s, sender_bound: true, ..below })
}

fn engine_figure(arguments: &BenchArguments, scenario: &Scenario, place: &Path) -> io::Result<Figure> {
    let folder = place.join("engine");
    let (shards, _) = machine::shares()?;
    let mut options = EngineOptions::new(&arguments.engine, &folder, Route::Hold)?;
    options.cores = shards[..1].to_vec();
    options.lines.push(("shards", format!("coordinator_core = \"{}\"", shards[0])));
    // Segments enough for all that is accepted, written before the measurement as an operator would who expects a burst.
    let expected = 110_000.0 * (scenario.bytes + 600) as f64 * (2.0 * arguments.seconds + 1.0);
    let room = machine::free_bytes(place)?.saturating_sub(DISK_KEPT_FREE) as f64;
    let segments = (expected.min(room) / f64::from(64 << 20)).ceil() as u64;
    let mut engine = Engine::new(options)?;
    engine.start()?;
    engine.ask(&["spool", "prepare", &segments.to_string()])?;
    let pid = engine.pid().expect("the engine was started");
    let figure = measure(arguments, scenario, engine.address, || machine::process_cpu(pid));
    let stats = engine.stats();
    engine.must_run()?;
    drop(engine);
    std::fs::remove_dir_all(&folder)?;
    figure.map(|figure| Figure { per_sync: per_sync(&[&stats]), ..figure })
}

fn postfix_figure(arguments: &BenchArguments, scenario: &Scenario, place: &Path) -> io::Result<Figure> {
    let folder = place.join("postfix");
    std::fs::create_dir_all(&folder)?;
    let (shards, _) = machine::shares()?;
    let postfix = Postfix::start(&folder, Some(shards[0]), arguments.sessions)?;
    let figure = measure(arguments, scenario, postfix.address, || postfix.cpu());
    drop(postfix);
    std::fs::remove_dir_all(&folder)?;
    figure
}
