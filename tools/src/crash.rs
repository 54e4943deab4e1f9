//! `kill -9` under load, again and again: nothing acknowledged may be lost, whatever the moment.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::random::Random;
use ringpost_loadtest::sink::Sink;
use ringpost_loadtest::source::{Source, SourceOptions};

use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::odd_content;
use crate::traffic::{acknowledged, difference, hold, next_hop, texts, trouble};
use crate::witness::Witness;

/// Pace of looking at the counters.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Acknowledgements every cycle must reach before its kill.
const ACKNOWLEDGED_MIN: u64 = 500;
/// The kill comes between these moments after the first 250 of its cycle.
const KILL_MS: (u64, u64) = (50, 1500);
/// A cycle without its first 250 after this long has failed.
const FIRST_MAX: Duration = Duration::from_secs(60);
/// Recipients of a message at most.
const RECIPIENTS_MAX: usize = 3;
/// Octets of a message: half of them at most 1.5 KiB, one in 150 has 5 MiB.
const SIZES: &str = "lognormal:1536:3.3:1KiB..5MiB";
/// Every such cycle has a second kill during recovery: a quarter of all kills.
const RECOVERY_KILL_EVERY: u64 = 3;

/// What to run.
#[derive(Debug, Args)]
pub struct CrashArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Cycles of start, load and kill.
    #[arg(long, default_value_t = 200)]
    cycles: u64,
    /// Decides delays and sizes; chosen and printed when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the folder of the run.
    #[arg(long)]
    keep: bool,
}

/// Figures of a whole run.
#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    recovery_kills: u64,
    down_cycles: u64,
    /// Cycles that did not reach 500 acknowledgements within 1,500 ms.
    short_cycles: u64,
    acknowledged_min: Option<u64>,
    duplicates_max: u64,
    /// Deliveries whose outcome was durable before the kill of their life.
    written: u64,
    start_max: Duration,
}

/// Runs the cycles; true when nothing was lost or damaged, every cycle had its load, and duplicates kept their bound.
pub fn run(arguments: &CrashArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let seed = arguments.seed.unwrap_or_else(Random::fresh_seed);
    println!("crash: {} cycles, seed {seed}", arguments.cycles);
    let mut random = Random::new(seed);
    let folder = rig_folder("crash")?;
    let place = folder.path().to_path_buf();
    let (received, sent_a, sent_b) = (place.join("received"), place.join("sent-pipelined"), place.join("sent-plain"));
    let sink = Sink::start(next_hop(Some(received.clone()))?)?;
    let mut options = EngineOptions::new(&arguments.engine, &place, Route::Smarthost(sink.address))?;
    options.segment_mib = Some(1);
    let mut engine = Engine::new(options)?;

    let base = SourceOptions { seed, ..texts(engine.address, SIZES)? };
    let pipelined = SourceOptions { sessions: 40, ledger: Some(sent_a.clone()), ..base.clone() };
    let mut plain = SourceOptions {
        sessions: 10,
        per_connection: Some(20),
        content: odd_content::corpus(1 << 10, 5 << 20, seed),
        pipelining: false,
        chunking: true,
        ledger: Some(sent_b.clone()),
        ..base
    };
    plain.recipients.per_message = RECIPIENTS_MAX;
    let loads = [Source::start(pipelined)?, Source::start(plain)?];
    hold(&loads, true);

    let mut tally = Tally::default();
    let outcome = (0..arguments.cycles).try_for_each(|number| cycle(number, &mut engine, &sink, &loads, &mut random, &mut tally));
    if let Err(error) = outcome {
        let kept = folder.keep();
        return Err(format!("{error} (seed {seed}; everything is kept in {})", kept.display()).into());
    }

    // The last life: nothing new, the next hop up, until the queue is empty.
    hold(&loads, true);
    let reports = loads.into_iter().map(|load| {
        load.stop();
        load.join()
    });
    let reports = reports.collect::<Result<Vec<_>, _>>()?;
    sink.set_down(false);
    engine.start()?;
    let drained = engine.drain(Duration::from_secs(30), || sink.messages());
    let queued = engine.queued().unwrap_or_default();
    let status = engine.terminate(Duration::from_secs(30))?;
    sink.stop();
    let (arrived, _) = sink.join()?;
    let result = difference(&[&sent_a, &sent_b], &received)?;

    println!(
        "kills {} ({} during recovery), next hop down in {} cycles, slowest start {:?}",
        tally.kills, tally.recovery_kills, tally.down_cycles, tally.start_max
    );
    println!(
        "acknowledged {} (at least {} a cycle, {} cycles short of {ACKNOWLEDGED_MIN}), without answer {}, arrivals {}",
        result.accepted,
        tally.acknowledged_min.unwrap_or(0),
        tally.short_cycles,
        reports.iter().map(|report| report.unknown).sum::<u64>(),
        arrived.messages,
    );
    println!("lost {}, damaged {}, foreign {}, still queued {}", result.lost, result.damaged, result.foreign, queued.len());
    println!(
        "duplicates {} (bound {}: deliveries that the next hop took and whose outcome was not yet durable at a kill, beside {} whose was)",
        result.duplicated, tally.duplicates_max, tally.written
    );
    for example in &result.examples {
        println!("  {example}");
    }
    if let Err(error) = &drained {
        println!("{error}");
    }
    if !status.success() {
        println!("SIGTERM at the end: {status}: {}", engine.last_words());
    }
    let good = result.is_intact()
        && drained.is_ok()
        && status.success()
        && result.foreign == 0
        && tally.short_cycles == 0
        && result.duplicated <= tally.duplicates_max;
    println!("{}", if good { "crash: OK" } else { "crash: FAILED" });
    if arguments.keep || !good {
        println!("kept: {}", folder.keep().display());
    }
    Ok(good)
}

/// One life of the engine under load, and its sudden end.
fn cycle(number: u64, engine: &mut Engine, sink: &Sink, loads: &[Source], random: &mut Random, tally: &mut Tally) -> io::Result<()> {
    // Of each two cycles one, so that the queue does not grow for long.
    let down = if number.is_multiple_of(2) { random.one_in(2) } else { tally.down_cycles * 2 < number + 1 };
    tally.down_cycles += u64::from(down);
    sink.set_down(down);

    if number % RECOVERY_KILL_EVERY == RECOVERY_KILL_EVERY - 1 {
        let witness = Witness::start(engine.socket(), sink.counters())?;
        engine.spawn()?;
        let moment = Duration::from_micros(random.below(2 * tally.start_max.as_micros() as u64 + 1));
        let until = Instant::now() + moment;
        while Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        engine.must_run()?;
        let written = witness.written();
        engine.kill()?;
        tally.duplicates_max += witness.may_come_again(written)?;
        tally.written += written;
        tally.kills += 1;
        tally.recovery_kills += 1;
    }

    let witness = Witness::start(engine.socket(), sink.counters())?;
    let took = engine.start()?;
    tally.start_max = tally.start_max.max(took);
    let before = acknowledged(loads);
    hold(loads, false);
    let began = Instant::now();
    while acknowledged(loads) == before {
        engine.must_run()?;
        if began.elapsed() > FIRST_MAX {
            return Err(io::Error::other(format!("cycle {number}: no 250 after {FIRST_MAX:?}: {}", trouble(loads))));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let first = Instant::now();
    let delay = Duration::from_millis(random.between(KILL_MS.0, KILL_MS.1));
    let last = Duration::from_millis(KILL_MS.1);
    while first.elapsed() < delay || (acknowledged(loads) - before < ACKNOWLEDGED_MIN && first.elapsed() < last) {
        std::thread::sleep(LOOK_EVERY);
    }
    engine.must_run()?;
    let written = witness.written();
    engine.kill()?;
    hold(loads, true);
    let bound = witness.may_come_again(written)?;
    tally.duplicates_max += bound;
    tally.written += written;
    tally.kills += 1;
    let reached = acknowledged(loads) - before;
    tally.short_cycles += u64::from(reached < ACKNOWLEDGED_MIN);
    tally.acknowledged_min = Some(tally.acknowledged_min.map_or(reached, |least| least.min(reached)));
    if number.is_multiple_of(10) {
        println!("cycle {number}: {reached} acknowledged, start {took:?}, arrivals {}, may come again {bound}", sink.messages());
    }
    Ok(())
}
