//! `ringpost-tools`: the rigs as commands. `./dev` calls them; each also runs by itself.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ringpost_tools::content::{HashKind, SizeRange};
use ringpost_tools::ledger;
use ringpost_tools::load::LoadOptions;
use ringpost_tools::sender::LoadHandle;
use ringpost_tools::sink::{Sink, SinkOptions};

#[derive(Debug, Parser)]
#[command(name = "ringpost-tools", version, about = "Sender, sink and fault rigs of Ringpost")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send messages that carry identity, length and hash, and record what was acknowledged.
    Send(SendArguments),
    /// Take messages, check each, record what arrived.
    Sink(SinkArguments),
    /// Compare two ledgers; exit 1 when something is lost or damaged.
    Diff(DiffArguments),
    /// Ten seconds of mail with a SIGKILL in the middle.
    Demo(ringpost_tools::demo::DemoArguments),
    /// Kill the engine under load again and again.
    Crash(ringpost_tools::crash::CrashArguments),
    /// Change the number of shards, with kills in between.
    Shards(ringpost_tools::shards::ShardsArguments),
    /// Full and failing disks, surroundings that forbid, broken peers, drains.
    Faults(ringpost_tools::faults::FaultsArguments),
    /// Cut the power of the engine's disk again and again (root).
    Powercut(ringpost_tools::powercut::PowercutArguments),
    /// When the disk is flushed: per lone message, and under load (root).
    Flushes(ringpost_tools::flushes::FlushesArguments),
    /// Accepted messages per second and CPU per message beside Postfix (root).
    Bench(ringpost_tools::bench::BenchArguments),
    /// What a message costs the engine beside the floor and Postfix (root for Postfix).
    BenchFloor(ringpost_tools::bench_floor::FloorArguments),
    /// Memory and CPU of thousands of idle connections.
    Connections(ringpost_tools::connections::ConnectionsArguments),
    /// Allocations per message in the steady state.
    Allocations(ringpost_tools::allocations::AllocationsArguments),
    /// Clients that others wrote.
    Interop(ringpost_tools::interop::InteropArguments),
}

#[derive(Debug, Args)]
struct SendArguments {
    /// HOST:PORT to send to.
    #[arg(long)]
    to: String,
    /// Connections at once.
    #[arg(long, default_value_t = 1)]
    sessions: usize,
    /// End after this many acknowledgements.
    #[arg(long, required_unless_present = "seconds")]
    messages: Option<u64>,
    /// End after this many seconds.
    #[arg(long)]
    seconds: Option<f64>,
    /// Octets of content: 4096, 4KiB or 1KiB..5MiB.
    #[arg(long, default_value = "4KiB")]
    size: SizeRange,
    /// Send MAIL, RCPT and DATA ahead where the server pipelines.
    #[arg(long)]
    pipeline: bool,
    /// Messages per connection, 0 keeps it.
    #[arg(long, default_value_t = 0)]
    per_connection: u32,
    /// Recipients per message.
    #[arg(long, default_value_t = 1)]
    recipients: usize,
    /// Their domain.
    #[arg(long, default_value = "y.test")]
    domain: String,
    /// Messages per second at most.
    #[arg(long)]
    rate: Option<f64>,
    /// Use BDAT where announced.
    #[arg(long)]
    bdat: bool,
    /// Sum carried by each message: sha256 or crc32c.
    #[arg(long, default_value = "sha256")]
    hash: HashKind,
    /// Where acknowledgements are appended.
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// Decides the content; chosen and printed when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
    /// Print a line per second while it runs.
    #[arg(long)]
    live: bool,
}

#[derive(Debug, Args)]
struct SinkArguments {
    /// HOST:PORT to listen on.
    #[arg(long)]
    listen: String,
    /// Where arrivals are appended.
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// Announce PIPELINING.
    #[arg(long)]
    pipelining: bool,
    /// Milliseconds before the reply to the final dot.
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// Answer 451 to one in this many messages.
    #[arg(long, default_value_t = 0)]
    defer_one_in: u64,
    /// Answer 554 to one in this many messages.
    #[arg(long, default_value_t = 0)]
    reject_one_in: u64,
    /// Close without an answer to one in this many messages.
    #[arg(long, default_value_t = 0)]
    drop_one_in: u64,
    /// Be down while this file exists.
    #[arg(long)]
    down: Option<PathBuf>,
    /// Keep each message as a file in this folder.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// End after this many messages.
    #[arg(long)]
    messages: Option<u64>,
    /// End after this many seconds.
    #[arg(long)]
    seconds: Option<f64>,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DiffArguments {
    /// Ledger of the sender.
    #[arg(long)]
    sent: PathBuf,
    /// Ledger of the sink.
    #[arg(long)]
    received: PathBuf,
    /// Output of `ringpost queue ls --json`.
    #[arg(long)]
    queued: Option<PathBuf>,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

/// What a rig found: `true` when all it checked holds.
type Verdict = Result<bool, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Send(arguments) => send(arguments),
        Command::Sink(arguments) => sink(arguments),
        Command::Diff(arguments) => diff(&arguments),
        Command::Demo(arguments) => ringpost_tools::demo::run(&arguments),
        Command::Crash(arguments) => ringpost_tools::crash::run(&arguments),
        Command::Shards(arguments) => ringpost_tools::shards::run(&arguments),
        Command::Faults(arguments) => ringpost_tools::faults::run(&arguments),
        Command::Powercut(arguments) => ringpost_tools::powercut::run(&arguments),
        Command::Flushes(arguments) => ringpost_tools::flushes::run(&arguments),
        Command::Bench(arguments) => ringpost_tools::bench::run(&arguments),
        Command::BenchFloor(arguments) => ringpost_tools::bench_floor::run(&arguments),
        Command::Connections(arguments) => ringpost_tools::connections::run(&arguments),
        Command::Allocations(arguments) => ringpost_tools::allocations::run(&arguments),
        Command::Interop(arguments) => ringpost_tools::interop::run(&arguments),
    };
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("ringpost-tools: {error}");
            ExitCode::from(2)
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| format!("{text}: {error}"))?;
    found.next().ok_or_else(|| format!("{text}: no address"))
}

fn send(arguments: SendArguments) -> Verdict {
    let seed = arguments.seed.unwrap_or_else(ringpost_tools::random::Random::fresh_seed);
    let options = LoadOptions {
        to: address(&arguments.to)?,
        sessions: arguments.sessions,
        messages: arguments.messages,
        duration: arguments.seconds.map(Duration::from_secs_f64),
        sizes: arguments.size,
        pipeline: arguments.pipeline,
        per_connection: arguments.per_connection,
        linger: false,
        recipients: arguments.recipients,
        domain: arguments.domain,
        rate: arguments.rate,
        bdat: arguments.bdat,
        hash: arguments.hash,
        ledger: arguments.ledger,
        seed,
        core: None,
    };
    let load = LoadHandle::start(options)?;
    if arguments.live {
        let mut before = 0;
        while !load.is_over() {
            std::thread::sleep(Duration::from_secs(1));
            let now = load.state.acknowledged.load(Relaxed);
            eprintln!("acknowledged {:>8}/s, {now} in all", now - before);
            before = now;
        }
    }
    let report = load.join()?;
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        let latency = &report.latency_us;
        println!("acknowledged {} in {:.2} s = {:.0} messages/s", report.acknowledged, report.seconds, report.messages_per_s);
        println!("refused {}, unknown {}, connections broken {}, seed {seed}", report.refused, report.unknown, report.broken);
        println!("dot to 250: p50 {} us, p99 {} us, p99.9 {} us, max {} us", latency.p50, latency.p99, latency.p999, latency.max);
        println!("sender: {:.1} us CPU a message, {:.0} % of its core", report.own_cpu_us_per_message, report.own_core_percent);
        if report.is_void {
            println!("VOID: the sender's core was the bottleneck");
        }
        if !report.last_trouble.is_empty() {
            println!("last trouble: {}", report.last_trouble);
        }
    }
    Ok(report.refused == 0 && arguments.messages.is_none_or(|wanted| report.acknowledged >= wanted))
}

fn sink(arguments: SinkArguments) -> Verdict {
    let options = SinkOptions {
        listen: address(&arguments.listen)?,
        ledger: arguments.ledger,
        pipelining: arguments.pipelining,
        delay: Duration::from_millis(arguments.delay),
        defer_one_in: arguments.defer_one_in,
        reject_one_in: arguments.reject_one_in,
        drop_one_in: arguments.drop_one_in,
        down_file: arguments.down,
        keep: arguments.keep,
        core: None,
    };
    let sink = Sink::bind(options)?;
    println!("listening on {}", sink.address());
    let state = sink.state();
    let (messages, seconds) = (arguments.messages, arguments.seconds);
    let watched = sink.state();
    std::thread::spawn(move || {
        let start = std::time::Instant::now();
        while messages.is_none_or(|wanted| watched.accepted.load(Relaxed) < wanted)
            && seconds.is_none_or(|limit| start.elapsed().as_secs_f64() < limit)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        watched.stop.store(true, Relaxed);
    });
    sink.run()?;
    let report = state.report();
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report:?}");
    }
    Ok(report.damaged == 0)
}

fn diff(arguments: &DiffArguments) -> Verdict {
    let queued = match &arguments.queued {
        Some(path) => ledger::queue_ids(&std::fs::read_to_string(path)?)?,
        None => HashSet::new(),
    };
    let difference = ledger::difference(&[&arguments.sent], &arguments.received, &queued)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&difference)?);
    } else {
        println!("{difference:#?}");
    }
    Ok(difference.is_intact())
}
