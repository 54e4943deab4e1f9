//! The number of shards changes over and over, with `kill -9` under load between the changes: nothing acknowledged is lost,
//! and what is written as delivered is never delivered again (RELIABILITY S18).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::identity::MessageId;
use ringpost_loadtest::random::Random;
use ringpost_loadtest::sink::fault::Faults;
use ringpost_loadtest::sink::{Sink, SinkOptions};
use ringpost_loadtest::source::{Source, SourceOptions};

use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::traffic::{acknowledged, difference, hold, next_hop, texts, trouble};
use crate::witness::{Witness, outcomes_durable};

/// Shards of the lives of one round.
const SHARDS: [usize; 4] = [2, 1, 2, 3];
/// Load before the outcomes are looked at.
const LOAD_MS: (u64, u64) = (150, 600);
/// Load between that look and the kill.
const KILL_MS: (u64, u64) = (0, 150);
/// A life without its first 250 after this long has failed.
const FIRST_MAX: Duration = Duration::from_secs(60);
/// One life in this many is killed during its recovery as well.
const RECOVERY_KILL_ONE_IN: u64 = 3;
/// The next hop is up in the lives whose number is no multiple of this.
const DOWN_EVERY: u64 = 3;
/// Octets of a message.
const SIZES: &str = "lognormal:1536:2.3:1KiB..200KiB";
/// The next hop defers one message in twenty.
const DEFERS: &str = "dot:451:0.05";

/// What to run.
#[derive(Debug, Args)]
pub struct ShardsArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Rounds of 2, 1, 2 and 3 shards.
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Decides moments and sizes; chosen and printed when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the folder of the run.
    #[arg(long)]
    keep: bool,
}

/// One delivery: a message to a recipient.
type Delivery = (MessageId, String);

#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    down: u64,
    /// Deliveries whose outcome was durable before a kill, with the lines that the sink's ledger had by then.
    written: HashMap<Delivery, usize>,
    duplicates_max: u64,
}

/// Runs the rounds; true when nothing is lost, damaged or repeated.
pub fn run(arguments: &ShardsArguments) -> Result<bool, Box<dyn std::error::Error>> {
    let seed = arguments.seed.unwrap_or_else(Random::fresh_seed);
    println!("shards: {} rounds of {SHARDS:?} shards, seed {seed}", arguments.rounds);
    let mut random = Random::new(seed);
    let folder = rig_folder("shards")?;
    let place = folder.path().to_path_buf();
    let (received, sent) = (place.join("received"), [place.join("sent-single"), place.join("sent-several")]);
    let faults = Faults::new(vec![DEFERS.parse()?]);
    let sink = Sink::start(SinkOptions { faults, ..next_hop(Some(received.clone()))? })?;
    let mut options = EngineOptions::new(&arguments.engine, &place, Route::Smarthost(sink.address))?;
    options.segment_mib = Some(1);
    let mut engine = Engine::new(options)?;
    let base = SourceOptions { seed, ..texts(engine.address, SIZES)? };
    let single = SourceOptions { sessions: 20, ledger: Some(sent[0].clone()), ..base.clone() };
    let mut several = SourceOptions { sessions: 10, per_connection: Some(20), ledger: Some(sent[1].clone()), ..base };
    several.recipients.per_message = 3;
    let loads = [Source::start(single)?, Source::start(several)?];
    hold(&loads, true);

    let mut tally = Tally::default();
    let scene = Scene { sink: &sink, loads: &loads, ledgers: Ledgers { sent: &sent, received: &received } };
    for number in 0..arguments.rounds * SHARDS.len() as u64 {
        if let Err(error) = life(number, &mut engine, &scene, &mut random, &mut tally) {
            let kept = folder.keep();
            return Err(format!("life {number}: {error} (seed {seed}; everything is kept in {})", kept.display()).into());
        }
    }

    hold(&loads, true);
    for load in loads {
        load.stop();
        load.join()?;
    }
    sink.set_down(false);
    set_shards(&mut engine, 1)?;
    engine.start()?;
    let drained = engine.drain(Duration::from_secs(30), || sink.messages());
    let queued = engine.queued().unwrap_or_default();
    let status = match engine.terminate(Duration::from_secs(30)) {
        Ok(status) => status,
        Err(error) => return Err(format!("{error} (seed {seed}; everything is kept in {})", folder.keep().display()).into()),
    };
    sink.stop();
    sink.join()?;
    let result = difference(&[&sent[0], &sent[1]], &received)?;
    let repeated = repeated(&tally, &received)?;

    println!("kills {}, next hop down in {} lives", tally.kills, tally.down);
    println!("acknowledged {}, deliveries {}, still queued {}", result.accepted, result.delivered, queued.len());
    println!("lost {}, damaged {}, foreign {}", result.lost, result.damaged, result.foreign);
    println!("outcomes written before a kill {}, repeated after it {}", tally.written.len(), repeated.len());
    println!("duplicates {} (bound {}: outcome not yet durable at a kill)", result.duplicated, tally.duplicates_max);
    for example in result.examples.iter().chain(repeated.iter().take(10)) {
        println!("  {example}");
    }
    if let Err(error) = &drained {
        println!("{error}");
    }
    if !status.success() {
        println!("SIGTERM at the end: {status}: {}", engine.last_words());
    }
    let checked = !tally.written.is_empty();
    if !checked {
        println!("no outcome was written before a kill: this run proves nothing");
    }
    let good = result.is_intact()
        && checked
        && repeated.is_empty()
        && result.foreign == 0
        && drained.is_ok()
        && status.success()
        && result.duplicated <= tally.duplicates_max;
    println!("{}", if good { "shards: OK" } else { "shards: FAILED" });
    if arguments.keep || !good {
        println!("kept: {}", folder.keep().display());
    }
    Ok(good)
}

/// What surrounds the engine.
struct Scene<'a> {
    sink: &'a Sink,
    loads: &'a [Source],
    ledgers: Ledgers<'a>,
}

struct Ledgers<'a> {
    sent: &'a [PathBuf],
    received: &'a Path,
}

/// On cores of their own where there are enough, else all on the first.
fn set_shards(engine: &mut Engine, shards: usize) -> io::Result<()> {
    let cores = ringpost_loadtest::pinning::cores()?;
    engine.change(|options| {
        if shards <= cores.len() {
            (options.cores, options.per_core) = (cores[..shards].to_vec(), 1);
        } else {
            (options.cores, options.per_core) = (cores[..1].to_vec(), shards as u32);
        }
    })
}

/// One life of the engine, and its sudden end.
fn life(number: u64, engine: &mut Engine, scene: &Scene<'_>, random: &mut Random, tally: &mut Tally) -> io::Result<()> {
    let Scene { sink, loads, ledgers } = scene;
    let shards = SHARDS[number as usize % SHARDS.len()];
    let down = number.is_multiple_of(DOWN_EVERY);
    tally.down += u64::from(down);
    sink.set_down(down);
    set_shards(engine, shards)?;
    if random.one_in(RECOVERY_KILL_ONE_IN) {
        let witness = Witness::start(engine.socket(), sink.counters())?;
        engine.spawn()?;
        std::thread::sleep(Duration::from_millis(random.below(300)));
        kill(engine, witness, tally)?;
    }
    let witness = Witness::start(engine.socket(), sink.counters())?;
    engine.start()?;
    let before = acknowledged(loads);
    hold(loads, false);
    let began = Instant::now();
    while acknowledged(loads) == before {
        engine.must_run()?;
        if began.elapsed() > FIRST_MAX {
            return Err(io::Error::other(format!("no 250: {}", trouble(loads))));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(random.between(LOAD_MS.0, LOAD_MS.1)));
    note_written(engine, sink, ledgers, tally)?;
    std::thread::sleep(Duration::from_millis(random.between(KILL_MS.0, KILL_MS.1)));
    kill(engine, witness, tally)?;
    hold(loads, true);
    println!(
        "life {number}: {shards} shards, next hop {}, {} acknowledged, {} outcomes written so far",
        if down { "down" } else { "up" },
        acknowledged(loads) - before,
        tally.written.len()
    );
    Ok(())
}

fn kill(engine: &mut Engine, witness: Witness, tally: &mut Tally) -> io::Result<()> {
    engine.must_run()?;
    let written = witness.written();
    engine.kill()?;
    tally.kills += 1;
    tally.duplicates_max += witness.may_come_again(written)?;
    Ok(())
}

/// Whole lines of a ledger that is being written.
fn lines(path: &Path) -> io::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(whole.lines().map(str::to_string).collect())
}

/// Deliveries of a line of the sink's ledger.
fn deliveries(line: &str) -> Vec<Delivery> {
    let words: Vec<&str> = line.split(' ').collect();
    let [id, _, _, _, "ok", recipients, ..] = words[..] else { return Vec::new() };
    let Some(id) = MessageId::parse(id.as_bytes()) else { return Vec::new() };
    recipients.split(',').map(|recipient| (id, recipient.to_string())).collect()
}

/// Adds what has arrived, is gone from the queue, and is durable as gone. In this order: what arrives or leaves the queue
/// while this looks is left for the next time.
fn note_written(engine: &Engine, sink: &Sink, ledgers: &Ledgers<'_>, tally: &mut Tally) -> io::Result<()> {
    sink.write_ledger();
    let arrived = lines(ledgers.received)?;
    let mut queue_id = HashMap::new();
    for sent in ledgers.sent {
        for line in lines(sent)? {
            let words: Vec<&str> = line.split(' ').collect();
            if let [id, _, _, _, _, name] = words[..]
                && let Some(id) = MessageId::parse(id.as_bytes())
            {
                queue_id.insert(id, name.to_string());
            }
        }
    }
    let queued = engine.queued()?;
    outcomes_durable(&engine.socket())?;
    // A message that came again between the first look and the listing did so before its outcome was written.
    sink.write_ledger();
    let looked_at = lines(ledgers.received)?.len();
    for line in &arrived {
        for delivery in deliveries(line) {
            if queue_id.get(&delivery.0).is_some_and(|name| !queued.contains(name)) {
                tally.written.entry(delivery).or_insert(looked_at);
            }
        }
    }
    Ok(())
}

/// Deliveries that came again although they were written down before.
fn repeated(tally: &Tally, received: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for (at, line) in lines(received)?.iter().enumerate() {
        for delivery in deliveries(line) {
            if tally.written.get(&delivery).is_some_and(|&lines| at >= lines) {
                found.push(format!("repeated: {} to {}", delivery.0, delivery.1));
            }
        }
    }
    Ok(found)
}
