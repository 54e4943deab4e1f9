//! Power cuts under the release binary: what was acknowledged must be on the platter.
//!
//! Each cut: a fresh ext4 on a disk with a volatile cache, the engine's spool on it, mail, the cut, and then a start of the
//! engine on what the platter holds. The same with a build that never syncs must lose, or the rig proves nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ringpost_loadtest::diff::Difference;
use ringpost_loadtest::random::Random;
use ringpost_loadtest::schedule::Rate;
use ringpost_loadtest::sink::Sink;
use ringpost_loadtest::source::{Source, SourceOptions};

use crate::disk::{Cut, Disk};
use crate::engine::{Engine, EngineOptions, Route, rig_folder};
use crate::traffic::{difference, next_hop, texts};
use crate::volume::{Volume, fresh_ext4, must_be_possible};

/// Size of the disk in MiB.
const DISK_MIB: u64 = 256;
/// One cut in this many follows a lone message.
const LONE_EVERY: u64 = 3;
/// A cut comes within this of a lone message's 250.
const LONE_MS_MAX: u64 = 50;
/// A cut under load comes between these moments after the first 250.
const LOAD_MS: (u64, u64) = (20, 900);
/// A flush of the disk takes up to this long.
const FLUSH_US_MAX: u64 = 5_000;
/// A 250 that does not come within this is a failure of the rig.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Octets of a lone message.
const LONE_SIZES: &str = "lognormal:1536:1:1KiB..16KiB";
/// Octets of a message under load; with the rate they fit the disk also when nothing of them is delivered.
const LOAD_SIZES: &str = "lognormal:1536:2.2:1KiB..256KiB";
/// Messages a second under load.
const LOAD_RATE: Rate = Rate::Fixed(4000.0);

/// The control is given this many cuts more to lose something: with few cuts chance keeps everything now and then.
const CONTROL_CUTS_MORE: u64 = 20;

/// What to run.
#[derive(Debug, Args)]
pub struct PowercutArguments {
    /// The engine's binary.
    #[arg(long)]
    engine: PathBuf,
    /// A build without its fdatasync: it must lose.
    #[arg(long)]
    mutant: Option<PathBuf>,
    /// Cuts with each binary.
    #[arg(long, default_value_t = 20)]
    cuts: u64,
    /// Decides moments and sectors; chosen and printed when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the folder of the run, with the image of each cut that lost.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    lone: u64,
    /// Lone cuts that came within 50 ms of the 250.
    lone_in_time: u64,
    acknowledged: u64,
    lost: u64,
    damaged: u64,
    duplicated: u64,
    torn: u64,
}

/// Runs the cuts with the engine, which must lose nothing, and with the mutant, which must lose.
pub fn run(arguments: &PowercutArguments) -> Result<bool, Box<dyn std::error::Error>> {
    must_be_possible()?;
    let seed = arguments.seed.unwrap_or_else(Random::fresh_seed);
    println!("powercut: {} cuts, seed {seed}", arguments.cuts);
    let folder = rig_folder("powercut")?;
    let content = fresh_ext4(DISK_MIB, folder.path())?;
    let whole = all_cuts(&arguments.engine, Subject::Engine, arguments.cuts, seed, &content, folder.path());
    let whole = match whole {
        Ok(tally) => tally,
        Err(error) => return Err(format!("{error} (seed {seed}; kept in {})", folder.keep().display()).into()),
    };
    let lone_wanted = if arguments.cuts >= 20 { 5 } else { 1 };
    let mut good = whole.lost == 0 && whole.damaged == 0 && whole.lone_in_time >= lone_wanted;
    report("engine", &whole);
    if let Some(mutant) = &arguments.mutant {
        let control = all_cuts(mutant, Subject::Control, arguments.cuts, seed, &content, folder.path());
        match control {
            Ok(tally) => {
                report("without fdatasync", &tally);
                if tally.lost == 0 {
                    println!("the build without fdatasync lost nothing: this rig proves nothing");
                    good = false;
                }
            }
            Err(error) => {
                return Err(format!("the build without fdatasync: {error} (seed {seed}; kept in {})", folder.keep().display()).into());
            }
        }
    }
    println!("{}", if good { "powercut: OK" } else { "powercut: FAILED" });
    if arguments.keep || !good {
        println!("kept: {}", folder.keep().display());
    }
    Ok(good)
}

fn report(name: &str, tally: &Tally) {
    println!(
        "{name}: {} cuts ({} with torn or lost sectors, {} after a lone message, {} of these within {LONE_MS_MAX} ms of its 250)",
        tally.cuts, tally.torn, tally.lone, tally.lone_in_time
    );
    println!(
        "{name}: acknowledged {}, lost {}, damaged {}, duplicates {}",
        tally.acknowledged, tally.lost, tally.damaged, tally.duplicated
    );
}

/// Whom the cuts hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// The engine, which must lose nothing.
    Engine,
    /// The build that must lose: its next hop is never up, since what was delivered cannot be lost, and it gets more cuts while it lost nothing.
    Control,
}

fn all_cuts(binary: &Path, subject: Subject, cuts: u64, seed: u64, content: &[u8], place: &Path) -> io::Result<Tally> {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let more = |tally: &Tally| subject == Subject::Control && tally.lost == 0 && tally.cuts < cuts + CONTROL_CUTS_MORE;
    while tally.cuts < cuts || more(&tally) {
        let number = tally.cuts;
        let folder = place.join(format!("cut-{number}"));
        std::fs::create_dir_all(&folder)?;
        let (result, cut, since_last) = one_cut(number, binary, subject, content, &folder, &mut random)
            .map_err(|error| io::Error::other(format!("cut {number}: {error}")))?;
        let lone = is_lone(number);
        tally.cuts += 1;
        tally.lone += u64::from(lone);
        tally.lone_in_time += u64::from(lone && since_last <= Duration::from_millis(LONE_MS_MAX));
        tally.acknowledged += result.accepted;
        tally.lost += result.lost;
        tally.damaged += result.damaged;
        tally.duplicated += result.duplicated;
        tally.torn += u64::from(cut.kept < cut.unflushed);
        println!(
            "cut {number}: {}{} acknowledged, {} sectors in the cache, {} of them kept, lost {}, damaged {}",
            if lone { "lone, " } else { "" },
            result.accepted,
            cut.unflushed,
            cut.kept,
            result.lost,
            result.damaged
        );
        if result.is_intact() {
            std::fs::remove_dir_all(&folder)?;
        }
    }
    Ok(tally)
}

fn is_lone(number: u64) -> bool {
    number % LONE_EVERY == 1 || number == 0
}

/// One disk's life; returns what became of the mail, what the cut did, and how long after the last 250 it came.
fn one_cut(
    number: u64,
    binary: &Path,
    subject: Subject,
    content: &[u8],
    folder: &Path,
    random: &mut Random,
) -> io::Result<(Difference, Cut, Duration)> {
    let (sent, received, image, mounted) = (folder.join("sent"), folder.join("received"), folder.join("image"), folder.join("fs"));
    let sink = Sink::start(next_hop(Some(received.clone()))?)?;
    // A loss shows only on what is not delivered yet, so the next hop is up in one cut of four only.
    sink.set_down(is_lone(number) || subject == Subject::Control || !random.one_in(4));
    // A flush that takes time leaves more in the cache for the cut to tear.
    let flush_time = Duration::from_micros(if is_lone(number) { 0 } else { random.below(FLUSH_US_MAX) });
    let disk = Disk::mount(content.to_vec(), &folder.join("disk"), flush_time)?;
    let control = disk.control();
    let volume = Volume::mount(&disk.file(), &mounted)?;
    let mut options = EngineOptions::new(binary, folder, Route::Smarthost(sink.address))?;
    options.spool = Some(mounted.join("spool"));
    options.segment_mib = Some(2);
    options.lines.push(("spool", small_disk()));
    let mut engine = Engine::new(options)?;
    engine.start()?;

    let lone = is_lone(number);
    let load = Source::start(SourceOptions {
        sessions: if lone { 1 } else { 30 },
        messages: lone.then_some(1),
        pipelining: random.one_in(2),
        rate: (!lone).then_some(LOAD_RATE),
        ledger: Some(sent.clone()),
        seed: random.bits(),
        ..texts(engine.address, if lone { LONE_SIZES } else { LOAD_SIZES })?
    })?;
    let began = Instant::now();
    while load.acknowledged() == 0 {
        engine.must_run()?;
        if began.elapsed() > ANSWER_MAX {
            return Err(io::Error::other(format!("no 250: {}", load.last_trouble().unwrap_or_default())));
        }
        std::thread::yield_now();
    }
    let first = Instant::now();
    let delay = if lone { random.below(LONE_MS_MAX - 5) } else { random.between(LOAD_MS.0, LOAD_MS.1) };
    std::thread::sleep(Duration::from_millis(delay));
    let since_last = first.elapsed();
    let cut = control.cut(random, &image)?;

    // Whoever still runs meets a dead disk: nothing may be promised any more.
    std::thread::sleep(Duration::from_millis(50));
    load.hold(true);
    load.stop();
    engine.kill()?;
    load.join()?;
    drop((volume, disk));

    sink.set_down(false);
    let volume = Volume::mount(&image, &mounted)?;
    engine.start()?;
    engine.drain(Duration::from_secs(20), || sink.messages())?;
    let status = engine.terminate(Duration::from_secs(30))?;
    if !status.success() {
        return Err(io::Error::other(format!("SIGTERM after the recovery: {status}: {}", engine.last_words())));
    }
    volume.unmount()?;
    sink.stop();
    sink.join()?;
    let result = difference(&[&sent], &received)?;
    Ok((result, cut, since_last))
}

/// Lines for `[spool]` that let it live on a disk of these rigs.
pub(crate) fn small_disk() -> String {
    "min_free_bytes = \"16 MiB\"\nprepared_segments = 3".into()
}
