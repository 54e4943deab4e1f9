//! `./dev demo`: ten seconds of mail, a SIGKILL in the middle, and the account at the end.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::content::ContentKind;
use ringpost_loadtest::diff::{Difference, compare};
use ringpost_loadtest::live::{Beside, Second, Viewer, run_source, shown};
use ringpost_loadtest::phase::Phase;
use ringpost_loadtest::schedule::Rate;
use ringpost_loadtest::signals::StopSignal;
use ringpost_loadtest::sink::{Sink, SinkOptions};
use ringpost_loadtest::sizes::Sizes;
use ringpost_loadtest::source::SourceOptions;
use serde_json::Value;

use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::machine;

/// How long mail is pushed.
const PUSH: Duration = Duration::from_secs(10);
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
    let ((shards, _), own) = (machine::shares()?, machine::own_core()?);
    let sink = Sink::start(SinkOptions { ledger: Some(received.clone()), ..SinkOptions::new(([127, 0, 0, 1], 0).into(), own) })?;
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
    let options = SourceOptions {
        sessions: arguments.sessions,
        pipelining: !arguments.no_pipelining,
        ledger: Some(sent.clone()),
        duration: Some(PUSH),
        rate: (affordable < 150_000.0).then_some(Rate::Fixed(affordable)),
        ..SourceOptions::new(engine.address, own, ContentKind::Text(Sizes::fixed(MESSAGE_BYTES)))
    };
    let mut live = Live::new(engine, &sink);
    let ran = run_source(options, Beside::default(), &StopSignal::never(), &mut live)?;
    live.event("sender done, waiting for the queue to empty");
    let (mut engine, first_life) = live.into_engine()?;
    engine.drain(Duration::from_secs(30), || sink.messages())?;
    let second_life = engine.stats();
    let status = engine.terminate(Duration::from_secs(30))?;
    sink.stop();
    sink.join()?;
    let result = compare(&[&sent], &received)?;

    let (report, latency) = (&ran.report, ran.measurement.totals().histogram(Phase::DotTo250));
    let wall = report.lasted.as_secs_f64().max(1e-9);
    print_difference(&result);
    println!("{:<28}{:>14}", "without answer at the kill", report.unknown);
    println!("{:<28}{:>14.0}", "accepted/s over all", report.acknowledged as f64 / wall);
    for (name, at) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)] {
        println!("{:<28}{:>14}", format!("dot to 250, {name}"), shown(latency, at));
    }
    println!("{:<28}{:>14}", "messages per sync", per_sync(&[&first_life, &second_life]));
    println!("{:<28}{:>13.0}%", "sender's share of its core", 100.0 * report.cpu.as_secs_f64() / wall);
    if !status.success() {
        println!("SIGTERM at the end: {status}: {}", engine.last_words());
    }
    Ok(result.lost + result.damaged == 0 && status.success() && result.accepted > 0)
}

/// What became of the mail, a line each.
pub(crate) fn print_difference(difference: &Difference) {
    println!();
    for (what, count) in [
        ("accepted", difference.accepted),
        ("delivered", difference.delivered),
        ("  of these without a 250", difference.unacknowledged),
        ("lost", difference.lost),
        ("damaged", difference.damaged),
        ("duplicates", difference.duplicated),
    ] {
        println!("{what:<28}{count:>14}");
    }
}

/// `accepted / batches` over the lives that told both; `-` where none did.
pub(crate) fn per_sync(lives: &[&Value]) -> String {
    let sum = |key: &str| lives.iter().filter_map(|life| life[key].as_u64()).sum::<u64>();
    let (accepted, batches) = (sum("accepted"), sum("batches"));
    if batches == 0 { "-".into() } else { format!("{:.1}", accepted as f64 / batches as f64) }
}

/// The line that moves, rewritten in place on a terminal, one under the other elsewhere; and the kill in the middle.
struct Live<'a> {
    terminal: bool,
    began: Instant,
    sink: &'a Sink,
    delivered: u64,
    engine: Engine,
    /// What the engine counted before it was killed.
    first_life: Option<Value>,
    trouble: Option<io::Error>,
}

impl<'a> Live<'a> {
    fn new(engine: Engine, sink: &'a Sink) -> Self {
        let terminal = io::stdout().is_terminal();
        Self { terminal, began: Instant::now(), sink, delivered: 0, engine, first_life: None, trouble: None }
    }

    fn event(&mut self, text: &str) {
        println!("{}-- {text}", if self.terminal { "\n" } else { "" });
    }

    fn kill_and_start(&mut self) -> io::Result<()> {
        self.first_life = Some(self.engine.stats());
        self.engine.must_run()?;
        self.engine.kill()?;
        self.event("kill -9");
        let took = self.engine.start()?;
        self.event(&format!("started again: banner after {} ms", took.as_millis()));
        Ok(())
    }

    /// The engine in its second life, and the counters of its first.
    fn into_engine(self) -> io::Result<(Engine, Value)> {
        match self.trouble {
            None => Ok((self.engine, self.first_life.unwrap_or_default())),
            Some(error) => Err(error),
        }
    }
}

impl Viewer for Live<'_> {
    fn second(&mut self, second: &Second<'_>) {
        let (latency, delivered) = (second.part.histogram(Phase::DotTo250), self.sink.messages());
        let text = format!(
            "accepted {:>7}/s  delivered {:>7}/s  queue {:>8}  dot to 250: p50 {:>8}  p99 {:>8}",
            second.part.acknowledged,
            delivered - self.delivered,
            second.totals.acknowledged.saturating_sub(delivered),
            shown(latency, 50.0),
            shown(latency, 99.0),
        );
        self.delivered = delivered;
        if self.terminal {
            print!("\r{text}");
            let _shown_later = io::stdout().flush();
        } else {
            println!("{text}");
        }
    }

    fn goes_on(&mut self) -> bool {
        if self.first_life.is_none() && self.began.elapsed() >= PUSH / 2 {
            self.trouble = self.kill_and_start().err();
        }
        self.trouble.is_none()
    }
}
