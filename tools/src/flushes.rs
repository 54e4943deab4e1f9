//! When the disk is flushed: before each lone 250, and once for many messages under load.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use crate::content::{Composer, HashKind, SizeRange};
use crate::demo::per_sync;
use crate::disk::{Control, Disk, Event};
use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::load::LoadOptions;
use crate::powercut::small_disk;
use crate::random::Random;
use crate::sender::LoadHandle;
use crate::volume::{Volume, fresh_ext4, must_be_possible};

/// Time between two lone messages.
const APART: Duration = Duration::from_millis(200);
/// What one flush of the slow disk takes.
const SLOW_FLUSH: Duration = Duration::from_millis(4);
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
    let control = stage.disk.control();
    let mut composer = Composer::new(Random::fresh_seed(), 1, &SizeRange(2048..=2048), HashKind::Sha256);
    let mut client = Client::connect(stage.engine.address)?;
    let mut flushed = 0;
    for number in 0..messages {
        std::thread::sleep(APART);
        let (mut content, mut tail) = (Vec::new(), Vec::new());
        let composed = composer.compose(&mut content, &mut tail);
        content.extend_from_slice(composer.block(composed.block).stuffed());
        content.extend_from_slice(&tail);
        content.extend_from_slice(b".\r\n");
        control.watch(composed.id.to_string().as_bytes());
        client.say(b"MAIL FROM:<sender@x.test>\r\n", b"250")?;
        client.say(b"RCPT TO:<b@y.test>\r\n", b"250")?;
        client.say(b"DATA\r\n", b"354")?;
        client.say(&content, b"250")?;
        let answered = Instant::now();
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
    stage.engine.must_run()?;
    Ok(flushed)
}

/// Messages per flush at 100 pipelined sessions on a disk with a slow flush.
fn under_load(binary: &Path, seconds: f64, folder: &Path) -> io::Result<f64> {
    let mut stage = stage(binary, folder, 768, 16, SLOW_FLUSH)?;
    let control = stage.disk.control();
    let load = LoadHandle::start(LoadOptions {
        sessions: 100,
        pipeline: true,
        sizes: SizeRange(1024..=1024),
        duration: Some(Duration::from_secs_f64(seconds)),
        ..LoadOptions::new(stage.engine.address)
    })?;
    let (_, before) = control.counts();
    while !load.is_over() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let (_, after) = control.counts();
    let report = load.join()?;
    stage.engine.must_run()?;
    let stats = stage.engine.stats();
    println!(
        "slow disk: {} messages, {} flushes, {:.0} messages/s, p50 {} us from dot to 250, {} messages per batch by the engine's count, {} segments not prepared",
        report.acknowledged,
        after - before,
        report.messages_per_s,
        report.latency_us.p50,
        per_sync(&[&stats]),
        stats["segments_unprepared"]
    );
    Ok(report.acknowledged as f64 / (after - before).max(1) as f64)
}

/// What the engine tells of its batches on the real disk.
fn real_disk(binary: &Path, seconds: f64, folder: &Path) -> io::Result<()> {
    let (shards, own) = crate::machine::shares()?;
    let mut options = EngineOptions::new(binary, folder, Route::Discard)?;
    options.cores = shards[..1].to_vec();
    let mut engine = Engine::new(options)?;
    engine.start()?;
    let load = LoadHandle::start(LoadOptions {
        sessions: 100,
        pipeline: true,
        duration: Some(Duration::from_secs_f64(seconds)),
        core: own,
        ..LoadOptions::new(engine.address)
    })?;
    let mut seen = 0;
    while !load.is_over() {
        std::thread::sleep(Duration::from_millis(10));
        seen = seen.max(load.state.acknowledged.load(Relaxed));
    }
    let report = load.join()?;
    let stats = engine.stats();
    let figure = |key: &str| match &stats[key] {
        Value::Null => "-".to_string(),
        value => value.to_string(),
    };
    println!(
        "real disk: {:.0} messages/s, {} messages per sync, batches {}, batch bytes {}, most batches in flight {}",
        report.messages_per_s,
        per_sync(&[&stats]),
        figure("batches"),
        figure("batch_bytes"),
        figure("in_flight_max")
    );
    Ok(())
}

/// A client that waits for each reply.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut client = Self { stream: BufReader::new(stream) };
        client.say(b"", b"220")?;
        client.say(b"EHLO sender.x.test\r\n", b"250")?;
        Ok(client)
    }

    fn say(&mut self, words: &[u8], expected: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(words)?;
        let mut line = Vec::new();
        loop {
            line.clear();
            if self.stream.read_until(b'\n', &mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !line.starts_with(expected) {
                return Err(io::Error::other(String::from_utf8_lossy(&line).into_owned()));
            }
            if line.get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}
