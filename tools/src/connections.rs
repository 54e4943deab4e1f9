//! What an idle connection costs: memory and CPU of thousands that have sent one message and then say nothing.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::pinning::raise_open_files;
use ringpost_loadtest::source::{Source, SourceOptions};

use crate::engine::{Engine, EngineOptions, Route, rig_base, rig_folder};
use crate::heading::Heading;
use crate::machine;
use crate::traffic::{Sent, texts};

/// Growth of memory per connection, in octets.
const GROWTH_BYTES_MAX: u64 = 4096;
/// CPU of the idle process a minute.
const IDLE_CPU_MAX: Duration = Duration::from_millis(50);
/// All connections must be up and have sent within this.
const ALL_UP_MAX: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Debug, Args)]
pub struct ConnectionsArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Connections at once.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Minutes of silence over which CPU is measured.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
}

/// Runs the measurement; true when both limits are kept.
pub fn run(arguments: &ConnectionsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let files = raise_open_files();
    let wanted = arguments.connections as u64;
    if files < wanted + 200 {
        return Err(format!("{wanted} connections need as many open files, and the limit is {files}: raise it (ulimit -n)").into());
    }
    let folder = rig_folder("connections")?;
    // Accepted mail is forgotten, so that only connections are counted.
    let mut options = EngineOptions::new(&arguments.engine, folder.path(), Route::Discard)?;
    options.lines.push(("smtp", format!("sessions_max = {}", wanted + 200)));
    let mut engine = Engine::new(options)?;
    engine.start()?;
    let pid = engine.pid().expect("the engine was started");
    let base = texts(engine.address, "1KiB")?;

    // Memory that every path needs once is touched before the first reading.
    Sent::run(SourceOptions { sessions: 50, messages: Some(20_000), ..base.clone() })?;
    std::thread::sleep(Duration::from_secs(2));
    let before = machine::status_kib(pid, "VmRSS")?;

    let sessions = arguments.connections;
    let load = Source::start(SourceOptions { sessions, per_connection: Some(1), linger: true, pipelining: false, ..base })?;
    let began = Instant::now();
    while load.acknowledged() < wanted {
        engine.must_run()?;
        if began.elapsed() > ALL_UP_MAX {
            let trouble = load.last_trouble().unwrap_or_default();
            return Err(format!("{} of {wanted} connections sent their message: {trouble}", load.acknowledged()).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = began.elapsed();
    std::thread::sleep(Duration::from_secs(3));
    let after = machine::status_kib(pid, "VmRSS")?;
    let growth = after.saturating_sub(before) * 1024 / wanted;
    Heading::observe(&arguments.engine, &rig_base()).say(false)?;
    println!("{wanted} connections, EHLO and one message each in {took:.1?}; memory {before} KiB -> {after} KiB");
    println!("growth {growth} octets a connection (at most {GROWTH_BYTES_MAX})");

    let cpu_before = machine::process_cpu(pid)?;
    std::thread::sleep(Duration::from_secs_f64(60.0 * arguments.minutes));
    let cpu = (machine::process_cpu(pid)? - cpu_before).div_f64(arguments.minutes);
    engine.must_run()?;
    println!("{cpu:?} of CPU a minute (at most {IDLE_CPU_MAX:?}; the kernel counts in steps of 10 ms)");
    let broken = load.broken();
    println!("connections that broke: {broken}");
    drop(load);
    let good = growth <= GROWTH_BYTES_MAX && cpu <= IDLE_CPU_MAX && broken == 0;
    println!("{}", if good { "connections: OK" } else { "connections: FAILED" });
    Ok(good)
}
