//! When the disk is flushed: before each lone 250, and once for many messages under load.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::content::{Composer, ContentKind, Form};
use ringpost_loadtest::random::Random;
use ringpost_loadtest::sizes::Sizes;
use ringpost_loadtest::source::SourceOptions;
use serde_json::Value;

use crate::demo::per_sync;
use crate::dialogue::Dialogue;
use crate::disk::{Control, Disk, Event};
use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::heading::Heading;
use crate::powercut::small_disk;
use crate::traffic::{Sent, texts};
use crate::volume::{Volume, fresh_ext4, must_be_possible};

/// Time between two lone messages.
const APART: Duration = Duration::from_millis(200);
/// What one flush of the slow disk takes.
const SLOW_FLUSH: Duration = Duration::from_millis(4);
/// An answer comes within this.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Messages a flush of the slow disk must serve.
const MESSAGES_PER_FLUSH_MIN: f64 = 25.0;

/// What to run.
#[derive(Debug, Args)]
pub struct FlushesArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// Lone messages.
    #[arg(long, default_value_t = 100)]
    messages: u64,
    /// Seconds of the runs under load.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// Runs the three parts; true when each lone message had its flush and flushes were shared under load.
pub fn run(arguments: &FlushesArguments) -> Result<bool, Box<dyn std::error::Error>> {
    must_be_possible()?;
    let folder = rig_folder("flushes")?;
    Heading::observe(&arguments.engine, folder.path()).say(false)?;
    let flushed = lone(&arguments.engine, arguments.messages, &folder.path().join("lone"))?;
    println!(
        "lone messages, {} ms apart: {flushed} of {} had a flush that began after their last write and ended before their 250",
        APART.as_millis(),
        arguments.messages
    );
    let shared = under_load(&arguments.engine, arguments.seconds, &folder.path().join("slow"))?;
    println!("100 pipelined sessions, a flush takes {SLOW_FLUSH:?}: {shared:.1} messages per flush (at least {MESSAGES_PER_FLUSH_MIN})");
    real_disk(&arguments.engine, arguments.seconds, &folder.path().join("real"))?;
    let good = flushed == arguments.messages && shared >= MESSAGES_PER_FLUSH_MIN;
    println!("{}", if good { "flushes: OK" } else { "flushes: FAILED" });
    Ok(good)
}

struct Stage {
    engine: Engine,
    // Unmounted before the disk below it goes.
    _volume: Volume,
    disk: Disk,
}

fn stage(binary: &Path, folder: &Path, mib: u64, segment_mib: u64, flush_time: Duration) -> io::Result<Stage> {
    std::fs::create_dir_all(folder)?;
    let disk = Disk::mount(fresh_ext4(mib, folder)?, &folder.join("disk"), flush_time)?;
    let volume = Volume::mount(&disk.file(), &folder.join("fs"))?;
    let mut options = EngineOptions::new(binary, folder, Route::Hold)?;
    options.spool = Some(folder.join("fs/spool"));
    options.segment_mib = Some(segment_mib);
    options.lines.push(("spool", small_disk()));
    let mut engine = Engine::new(options)?;
    engine.start()?;
    engine.ask(&["spool", "prepare", "3"])?;
    let control = disk.control();
    wait_until_quiet(&control);
    // The first segment of a new spool was not written ahead, and a flush on it commits metadata too. A second start finds
    // the segments that were prepared meanwhile, as every later one does.
    let status = engine.terminate(Duration::from_secs(30))?;
    if !status.success() {
        return Err(io::Error::other(format!("SIGTERM: {status}: {}", engine.last_words())));
    }
    engine.start()?;
    wait_until_quiet(&control);
    Ok(Stage { engine, _volume: volume, disk })
}

/// Waits until nothing is prepared any more.
fn wait_until_quiet(control: &Control) {
    let mut before = control.counts();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = control.counts();
        if now.0 - before.0 < 8 {
            return;
        }
        before = now;
    }
}

/// How many of `messages` lone messages had their own flush in time.
fn lone(binary: &Path, messages: u64, folder: &Path) -> io::Result<u64> {
    let mut stage = stage(binary, folder, 128, 4, Duration::ZERO)?;
    let flushed = flushed_before_250(stage.engine.address, &stage.disk.control(), messages, APART)?;
    stage.engine.must_run()?;
    Ok(flushed)
}

/// Sends messages one after the other to a server whose log is on this disk: before how many of their 250s had a flush begun that was
/// behind the last write of the message, and ended. Between two of them nothing is sent for as long as `apart`.
pub fn flushed_before_250(server: SocketAddr, control: &Control, messages: u64, apart: Duration) -> io::Result<u64> {
    let (mut composer, texts) = Composer::new(&ContentKind::Text(Sizes::fixed(2048)), Random::fresh_seed(), 1, 0);
    let mut client = Dialogue::greeted(server, ANSWER_MAX)?;
    let mut flushed = 0;
    for number in 0..messages {
        std::thread::sleep(apart);
        let plan = composer.plan(number, 0, Form::Stuffed);
        let mut content = composer.whole(&plan, &texts);
        content.extend_from_slice(b".\r\n");
        control.watch(plan.mark.id.to_string().as_bytes());
        client.begin_content()?;
        client.send(&content)?;
        let answer = client.reply()?;
        let answered = Instant::now();
        if !answer.starts_with("250") {
            return Err(io::Error::other(format!("message {number} was answered {answer:?}")));
        }
        let events = control.events();
        let last_write = events
            .iter()
            .filter_map(|event| if let Event::Write(at, true) = event { Some(*at) } else { None })
            .filter(|at| *at < answered)
            .max();
        let in_time = last_write.is_some_and(|write| {
            events.iter().any(|event| matches!(event, Event::Flush(came, done) if *came >= write && *done <= answered))
        });
        if !in_time {
            println!("message {number}: written {}, events before its 250: {}", last_write.is_some(), events.len());
        }
        flushed += u64::from(in_time);
    }
    Ok(flushed)
}

/// Messages per flush at 100 pipelined sessions on a disk with a slow flush.
fn under_load(binary: &Path, seconds: f64, folder: &Path) -> io::Result<f64> {
    let mut stage = stage(binary, folder, 768, 16, SLOW_FLUSH)?;
    let control = stage.disk.control();
    let options = SourceOptions { sessions: 100, duration: Some(Duration::from_secs_f64(seconds)), ..texts(stage.engine.address, "1KiB")? };
    let (_, before) = control.counts();
    let sent = Sent::run(options)?;
    let (_, after) = control.counts();
    stage.engine.must_run()?;
    let stats = stage.engine.stats();
    println!(
        "slow disk: {} messages, {} flushes, {:.0} messages/s, p50 {} us from dot to 250, {} messages per batch by the engine's count, {} segments not prepared",
        sent.acknowledged,
        after - before,
        sent.messages_per_s,
        sent.latency_us.p50,
        per_sync(&[&stats]),
        stats["segments_unprepared"]
    );
    Ok(sent.acknowledged as f64 / (after - before).max(1) as f64)
}

/// What the engine tells of its batches on the real disk.
fn real_disk(binary: &Path, seconds: f64, folder: &Path) -> io::Result<()> {
    let (shards, _) = crate::machine::shares()?;
    let mut options = EngineOptions::new(binary, folder, Route::Discard)?;
    options.cores = shards[..1].to_vec();
    let mut engine = Engine::new(options)?;
    engine.start()?;
    let sent =
        Sent::run(SourceOptions { sessions: 100, duration: Some(Duration::from_secs_f64(seconds)), ..texts(engine.address, "4KiB")? })?;
    let stats = engine.stats();
    let figure = |key: &str| match &stats[key] {
        Value::Null => "-".to_string(),
        value => value.to_string(),
    };
    println!(
        "real disk: {:.0} messages/s, {} messages per sync, batches {}, batch bytes {}, most batches in flight {}",
        sent.messages_per_s,
        per_sync(&[&stats]),
        figure("batches"),
        figure("batch_bytes"),
        figure("in_flight_max")
    );
    Ok(())
}
