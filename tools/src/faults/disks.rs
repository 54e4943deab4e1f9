//! Disks that are full or fail.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringpost_loadtest::schedule::Rate;
use ringpost_loadtest::sink::Sink;
use ringpost_loadtest::source::{Source, SourceOptions};

use super::{Case, Needs, Place, Seen};
use crate::dialogue::Dialogue;
use crate::disk::{Disk, Fault};
use crate::engine::{Engine, EngineOptions, Route};
use crate::traffic::{Sent, difference, next_hop, texts};
use crate::volume::{Volume, fresh_ext4};
use crate::witness::outcomes_durable;

/// Size of the file systems in MiB.
const DISK_MIB: u64 = 128;
/// Whatever is waited for comes within this.
const PATIENCE: Duration = Duration::from_secs(30);
/// The process is gone within this of the disk's failure (S8).
const LEAVE_MAX: Duration = Duration::from_secs(5);

pub(super) const CASES: &[Case] = &[
    ("disk: full", Needs::Root, full),
    ("disk: full at a start", Needs::Root, full_at_a_start),
    ("disk: EIO on write", Needs::Disks, |place| failing(place, Fault::Writes)),
    ("disk: EIO on flush", Needs::Disks, |place| failing(place, Fault::Flushes)),
];

fn options(place: &Place<'_>, mounted: &Path, route: Route) -> io::Result<EngineOptions> {
    let mut options = EngineOptions::new(place.engine, &place.folder, route)?;
    options.spool = Some(mounted.join("spool"));
    options.segment_mib = Some(1);
    options.lines.push(("spool", crate::powercut::small_disk()));
    Ok(options)
}

fn wait_until(what: &str, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<Duration> {
    let began = Instant::now();
    while !done()? {
        if began.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{what}: not within {PATIENCE:?}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(began.elapsed())
}

/// An engine with a thousand messages for a next hop that is down, on a small disk of its own.
struct Laden {
    mounted: PathBuf,
    sent: PathBuf,
    received: PathBuf,
    volume: Volume,
    sink: Sink,
    engine: Engine,
}

impl Laden {
    fn start(place: &Place<'_>) -> io::Result<Laden> {
        let (image, mounted) = (place.folder.join("image"), place.folder.join("fs"));
        let (sent, received) = (place.folder.join("sent"), place.folder.join("received"));
        std::fs::write(&image, fresh_ext4(DISK_MIB, &place.folder)?)?;
        let volume = Volume::mount(&image, &mounted)?;
        let sink = Sink::start(next_hop(Some(received.clone()))?)?;
        sink.set_down(true);
        let mut engine = Engine::new(options(place, &mounted, Route::Smarthost(sink.address))?)?;
        engine.start()?;
        let load = texts(engine.address, "4KiB")?;
        Sent::run(SourceOptions { sessions: 5, messages: Some(1000), pipelining: false, ledger: Some(sent.clone()), ..load })?;
        Ok(Laden { mounted, sent, received, volume, sink, engine })
    }
}

/// 452 while it is full, deliveries go on and are recorded for good, and mail is taken again when there is space.
fn full(place: &Place<'_>) -> Seen {
    let Laden { mounted, sent, received, volume, sink, mut engine } = Laden::start(place)?;

    let mut filler = Filler::new(&mounted)?;
    filler.take_rest()?;
    let mut reply = String::new();
    wait_until("452", || {
        // What fits in segments that are there already is taken.
        let mut client = Dialogue::greeted(engine.address, PATIENCE)?;
        reply = client.say("MAIL FROM:<a@x.test>")?;
        if reply.starts_with("250") {
            client.say("RSET")?;
            reply = client.message().unwrap_or_else(|error| error.to_string());
        }
        Ok(reply.starts_with("452"))
    })?;
    sink.set_down(false);
    engine.drain(PATIENCE, || sink.messages())?;
    outcomes_durable(&engine.socket())?;
    let delivered = sink.counters().deliveries();
    engine.kill()?;
    // What the kill gave back is taken, too: a start needs no block.
    filler.take_rest()?;
    engine.start()?;
    engine.drain(PATIENCE, || sink.messages())?;
    let again = sink.counters().deliveries() - delivered;
    filler.give_back()?;
    let recovered = takes_mail(&mut engine)?;
    let status = engine.terminate(PATIENCE)?;
    sink.stop();
    sink.join()?;
    volume.unmount()?;
    let result = difference(&[&sent], &received)?;
    let good = reply.starts_with("452 4.3.1") && again == 0 && result.is_intact() && status.success();
    Ok((
        good,
        format!(
            "{:?}; {delivered} delivered while full, {again} of them again after a kill; lost {}; takes mail {:.1} s after space is back",
            reply.trim_end(),
            result.lost,
            recovered.as_secs_f64()
        ),
    ))
}

/// Until a message is accepted.
fn takes_mail(engine: &mut Engine) -> io::Result<Duration> {
    wait_until("250 after space is back", || {
        engine.must_run()?;
        Ok(Dialogue::greeted(engine.address, PATIENCE)?.message().is_ok_and(|reply| reply.starts_with("250")))
    })
}

/// A file that has what is left of a disk.
struct Filler {
    disk: PathBuf,
    file: File,
    size: u64,
}

impl Filler {
    fn new(disk: &Path) -> io::Result<Self> {
        Ok(Self { disk: disk.to_owned(), file: File::create(disk.join("filler"))?, size: 0 })
    }

    /// The last blocks go to metadata: it takes less and less until nothing more is to be had.
    fn take_rest(&mut self) -> io::Result<()> {
        let mut rest = crate::machine::free_bytes(&self.disk)?;
        while rest >= 4096 {
            match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), self.size, rest) {
                Ok(()) => self.size += rest,
                Err(_) => rest /= 2,
            }
        }
        Ok(())
    }

    fn give_back(self) -> io::Result<()> {
        std::fs::remove_file(self.disk.join("filler"))
    }
}

/// A start whose log has no segment free, on a disk without room for one: 452 and a word in the log until there is room, and what is in the log waits for it.
fn full_at_a_start(place: &Place<'_>) -> Seen {
    let Laden { mounted, sent, received, volume, sink, mut engine } = Laden::start(place)?;
    engine.kill()?;
    // What is free has gone, and its room with it.
    let mut unwritten = 0;
    for entry in std::fs::read_dir(mounted.join("spool/shard-000"))? {
        let (path, mut block) = (entry?.path(), [0; 4096]);
        // Behind the two blocks of its header.
        if path.extension().is_some_and(|end| end == "log") && File::open(&path)?.read_at(&mut block, 2 * 4096)? > 0 && block == [0; 4096] {
            std::fs::remove_file(path)?;
            unwritten += 1;
        }
    }
    let mut filler = Filler::new(&mounted)?;
    filler.take_rest()?;
    engine.start()?;
    sink.set_down(false);
    let reply = Dialogue::greeted(engine.address, PATIENCE)?.say("MAIL FROM:<a@x.test>")?;
    let words = "no segment of this log is free, and there is no room to make one: mail is answered with 452";
    let is_told = engine.last_words().contains(words);
    let early = sink.counters().deliveries();
    filler.give_back()?;
    let recovered = takes_mail(&mut engine)?;
    engine.drain(PATIENCE, || sink.messages())?;
    let status = engine.terminate(PATIENCE)?;
    sink.stop();
    sink.join()?;
    volume.unmount()?;
    let result = difference(&[&sent], &received)?;
    let good = unwritten > 0 && reply.starts_with("452 4.3.1") && is_told && early == 0 && result.is_intact() && status.success();
    Ok((
        good,
        format!(
            "{:?}{}; {early} delivered meanwhile; lost {}; takes mail {:.1} s after space is back",
            reply.trim_end(),
            if is_told { "" } else { ", and no word of it in the log" },
            result.lost,
            recovered.as_secs_f64()
        ),
    ))
}

/// Who waits gets 451, nothing more is promised, the process leaves, and the healed disk has everything acknowledged.
fn failing(place: &Place<'_>, fault: Fault) -> Seen {
    let (sent, received, mounted) = (place.folder.join("sent"), place.folder.join("received"), place.folder.join("fs"));
    let disk = Disk::mount(fresh_ext4(DISK_MIB, &place.folder)?, &place.folder.join("disk"), Duration::ZERO)?;
    let volume = Volume::mount(&disk.file(), &mounted)?;
    let sink = Sink::start(next_hop(Some(received.clone()))?)?;
    let mut engine = Engine::new(options(place, &mounted, Route::Smarthost(sink.address))?)?;
    engine.start()?;
    let (load, rate) = (texts(engine.address, "4KiB")?, Some(Rate::Fixed(1000.0)));
    let load = Source::start(SourceOptions { sessions: 20, pipelining: false, rate, ledger: Some(sent.clone()), ..load })?;
    wait_until("mail", || Ok(load.acknowledged() > 500))?;
    let mut waiting = Dialogue::greeted(engine.address, PATIENCE)?;
    waiting.begin_content()?;
    disk.control().fail(fault);
    let began = Instant::now();
    let answer = waiting.say("Subject: too late\r\n\r\ntext\r\n.").unwrap_or_else(|error| error.to_string());
    let status = engine.wait(PATIENCE)?;
    let took = began.elapsed();
    load.hold(true);
    load.stop();
    let refused = load.join()?;
    disk.control().fail(Fault::None);
    volume.unmount()?;
    let volume = Volume::mount(&disk.file(), &mounted)?;
    engine.start()?;
    engine.drain(PATIENCE, || sink.messages())?;
    let last = engine.terminate(PATIENCE)?;
    sink.stop();
    sink.join()?;
    volume.unmount()?;
    drop(disk);
    let result = difference(&[&sent], &received)?;
    let good = answer.starts_with("451") && !status.success() && took < LEAVE_MAX && result.is_intact() && last.success();
    Ok((
        good,
        format!(
            "{:?}, {status} after {:.1} s; {} acknowledged, {} answered 4xx, lost {}, damaged {}",
            answer.trim_end(),
            took.as_secs_f64(),
            result.accepted,
            refused.refused,
            result.lost,
            result.damaged
        ),
    ))
}
