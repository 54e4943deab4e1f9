//! `./dev demo`: ten seconds of mail, a SIGKILL in the middle, and the account at the end.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::ledger::difference;
use crate::load::{Latency, LoadOptions};
use crate::machine;
use crate::sender::LoadHandle;
use crate::sink::{Sink, SinkHandle, SinkOptions};

/// How long mail is pushed.
const PUSH: Duration = Duration::from_secs(10);
/// Pace of the live line.
const LINE_EVERY: Duration = Duration::from_millis(500);
/// Octets of a message of the demo.
const MESSAGE_BYTES: u64 = 4096;
/// Disk the demo leaves alone.
const DISK_KEPT_FREE: u64 = 2 << 30;

/// What to show.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Connections of the sender.
    #[arg(long, default_value_t = 100)]
    sessions: usize,
    /// Wait for each reply instead of sending ahead.
    #[arg(long)]
    no_pipelining: bool,
}

/// Runs the demo; true when nothing was lost.
pub fn run(arguments: &DemoArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let folder = rig_folder("demo")?;
    let place = folder.path().to_path_buf();
    let (sent, received) = (place.join("sent"), place.join("received"));
    let (shards, own) = machine::shares()?;
    let sink = Sink::spawn(SinkOptions { ledger: Some(received.clone()), core: own, ..SinkOptions::on_loopback() })?;
    let mut options = EngineOptions::new(&arguments.engine, &place, Route::Smarthost(sink.address))?;
    options.cores = shards;
    let mut engine = Engine::new(options)?;
    println!("{}", machine::description());
    println!("engine on {} (shards on cores {:?}), next hop on {}", engine.address, machine::shares()?.0, sink.address);
    let took = engine.start()?;
    println!("first start: banner after {} ms", took.as_millis());

    // A batch holds each message once, and the queue may grow when the next hop is slower than the sender.
    let room = machine::free_bytes(&place)?.saturating_sub(DISK_KEPT_FREE);
    let affordable = room as f64 / (2 * MESSAGE_BYTES * PUSH.as_secs()) as f64;
    if affordable < 1000.0 {
        return Err(format!("{}: too little disk space for the demo; want at least 4 GiB free", place.display()).into());
    }
    let load = LoadHandle::start(LoadOptions {
        sessions: arguments.sessions,
        sizes: crate::content::SizeRange(MESSAGE_BYTES..=MESSAGE_BYTES),
        pipeline: !arguments.no_pipelining,
        ledger: Some(sent.clone()),
        duration: Some(PUSH),
        rate: (affordable < 150_000.0).then_some(affordable),
        core: own,
        ..LoadOptions::new(engine.address)
    })?;

    let mut live = Live::new();
    let began = Instant::now();
    let mut first_life = Value::Null;
    let mut restarted = None;
    while began.elapsed() < PUSH {
        std::thread::sleep(LINE_EVERY.min(PUSH.saturating_sub(began.elapsed())));
        live.line(&load, &sink);
        if restarted.is_none() && began.elapsed() >= PUSH / 2 {
            first_life = engine.stats();
            engine.must_run()?;
            engine.kill()?;
            live.event("kill -9");
            restarted = Some(engine.start()?);
            live.event(&format!("started again: banner after {} ms", restarted.unwrap_or_default().as_millis()));
        }
    }
    while !load.is_over() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = load.join()?;
    live.event("sender done, waiting for the queue to empty");
    engine.drain(Duration::from_secs(30), || sink.state.accepted.load(Relaxed))?;
    let second_life = engine.stats();
    let status = engine.terminate(Duration::from_secs(30))?;
    sink.stop()?;
    let result = difference(&[&sent], &received, &Default::default())?;

    let latency = &report.latency_us;
    println!("\n{:<28}{:>14}", "accepted", result.acknowledged);
    println!("{:<28}{:>14}", "delivered", result.delivered);
    println!("{:<28}{:>14}", "  of these without a 250", result.unacknowledged);
    println!("{:<28}{:>14}", "lost", result.lost);
    println!("{:<28}{:>14}", "damaged", result.damaged);
    println!("{:<28}{:>14}", "duplicates", result.duplicated);
    println!("{:<28}{:>14}", "without answer at the kill", report.unknown);
    println!("{:<28}{:>14.0}", "accepted/s over all", report.messages_per_s);
    for (name, us) in [("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99), ("p99.9", latency.p999), ("max", latency.max)] {
        println!("{:<28}{:>11.2} ms", format!("dot to 250, {name}"), us as f64 / 1000.0);
    }
    println!("{:<28}{:>14}", "messages per sync", per_sync(&[&first_life, &second_life]));
    println!("{:<28}{:>13.0}%", "sender's share of its core", report.own_core_percent);
    if !status.success() {
        println!("SIGTERM at the end: {status}: {}", engine.last_words());
    }
    Ok(result.is_intact() && status.success() && result.acknowledged > 0)
}

/// `accepted / batches` over the lives that told both; `-` where none did.
pub(crate) fn per_sync(lives: &[&Value]) -> String {
    let sum = |key: &str| lives.iter().filter_map(|life| life[key].as_u64()).sum::<u64>();
    let (accepted, batches) = (sum("accepted"), sum("batches"));
    if batches == 0 { "-".into() } else { format!("{:.1}", accepted as f64 / batches as f64) }
}

/// The line that moves: rewritten in place on a terminal, one under the other elsewhere.
struct Live {
    terminal: bool,
    since: Instant,
    acknowledged: u64,
    delivered: u64,
}

impl Live {
    fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), since: Instant::now(), acknowledged: 0, delivered: 0 }
    }

    fn line(&mut self, load: &LoadHandle, sink: &SinkHandle) {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-3);
        let (acknowledged, delivered) = (load.state.acknowledged.load(Relaxed), sink.state.accepted.load(Relaxed));
        let taken = load.state.recent.lock().ok().and_then(|mut recent| recent.take());
        let latency = taken.map(|histogram| Latency::of(&histogram)).unwrap_or_default();
        let text = format!(
            "accepted {:>7.0}/s  delivered {:>7.0}/s  queue {:>8}  dot to 250: p50 {:>7.2} ms  p99 {:>7.2} ms",
            (acknowledged - self.acknowledged) as f64 / seconds,
            (delivered - self.delivered) as f64 / seconds,
            acknowledged.saturating_sub(delivered),
            latency.p50 as f64 / 1000.0,
            latency.p99 as f64 / 1000.0,
        );
        if self.terminal {
            print!("\r{text}");
            let _shown_later = io::stdout().flush();
        } else {
            println!("{text}");
        }
        (self.since, self.acknowledged, self.delivered) = (Instant::now(), acknowledged, delivered);
    }

    fn event(&mut self, text: &str) {
        println!("{}-- {text}", if self.terminal { "\n" } else { "" });
    }
}
