//! A disk whose power can be cut: one file in FUSE with a volatile write cache, under a loop device.
//!
//! Writes stay in the cache until a flush; a cut keeps a random part of the unflushed 512-octet sectors, in any order, and
//! the disk answers EIO from then on. A loop device over the file turns the file system's flushes into `fsync`. Needs root.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, FileAttr, FileType, Filesystem, KernelConfig, MountOption, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, TimeOrNow,
};

use ringpost_loadtest::random::Random;

/// What the disk writes in one piece.
const SECTOR: usize = 512;
const FILE: u64 = 2;
const FILE_NAME: &str = "disk";
/// Nothing changes but by us: names and attributes stay valid.
const VALID: Duration = Duration::from_secs(3600);
/// Events kept of a disk; beyond it the oldest half goes.
const EVENTS_MAX: usize = 1 << 20;

/// What happened to the disk, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A write was taken into the cache; true when it held the marker.
    Write(Instant, bool),
    /// A flush: when it came, when it was done.
    Flush(Instant, Instant),
}

/// How the disk fails while its power is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// It does not.
    #[default]
    None,
    /// Writes get EIO and change nothing.
    Writes,
    /// Flushes get EIO, and what they were to make durable is lost: a later flush succeeds without it.
    Flushes,
}

#[derive(Debug)]
struct Platter {
    fault: Fault,
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Writes since the last flush, in order: offset and octets.
    unflushed: Vec<(usize, Vec<u8>)>,
    dead: bool,
    flushes: u64,
    writes: u64,
    events: Vec<Event>,
    marker: Vec<u8>,
}

/// The control side of the disk.
#[derive(Debug, Clone)]
pub struct Control {
    platter: Arc<Mutex<Platter>>,
}

/// What a cut left behind.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Sectors in the cache at the cut.
    pub unflushed: u64,
    /// Those of them that reached the platter all the same.
    pub kept: u64,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().expect("no holder of this lock panics")
    }

    /// Cuts the power: writes what the platter then holds to `image` (durable content and a random part of the unflushed
    /// sectors), and lets every later request fail with EIO.
    pub fn cut(&self, random: &mut Random, image: &Path) -> io::Result<Cut> {
        let mut platter = self.lock();
        platter.dead = true;
        let mut cut = Cut { unflushed: 0, kept: 0 };
        // Sometimes nearly nothing of the cache is written, sometimes nearly all of it.
        let share = random.unit();
        let writes = std::mem::take(&mut platter.unflushed);
        for (offset, bytes) in &writes {
            for (at, sector) in bytes.chunks(SECTOR).enumerate() {
                cut.unflushed += 1;
                if random.unit() < share {
                    cut.kept += 1;
                    let start = offset + at * SECTOR;
                    platter.durable[start..start + sector.len()].copy_from_slice(sector);
                }
            }
        }
        std::fs::write(image, &platter.durable)?;
        Ok(cut)
    }

    /// Lets the disk fail from now on, or heals it.
    pub fn fail(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    /// From now on writes that hold these octets are marked in the events; clears the events.
    pub fn watch(&self, marker: &[u8]) {
        let mut platter = self.lock();
        platter.marker = marker.to_vec();
        platter.events.clear();
    }

    /// What happened since `watch`.
    pub fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// Writes and flushes so far.
    pub fn counts(&self) -> (u64, u64) {
        let platter = self.lock();
        (platter.writes, platter.flushes)
    }
}

fn record(platter: &mut Platter, event: Event) {
    if platter.events.len() >= EVENTS_MAX {
        platter.events.drain(..EVENTS_MAX / 2);
    }
    platter.events.push(event);
}

/// A flush that waits for its time to be over.
struct Waiting {
    came: Instant,
    due: Instant,
    /// Unflushed writes it covers: those that were complete when it came.
    covers: usize,
    reply: ReplyEmpty,
}

#[derive(Default)]
struct FlushQueue {
    waiting: Mutex<(Vec<Waiting>, bool)>,
    bell: Condvar,
}

/// The FUSE side: one file.
struct Device {
    platter: Arc<Mutex<Platter>>,
    size: u64,
    flush_time: Duration,
    queue: Arc<FlushQueue>,
}

impl Device {
    fn attributes(&self, inode: u64) -> FileAttr {
        let folder = inode == fuser::FUSE_ROOT_ID;
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: inode,
            size: if folder { 0 } else { self.size },
            blocks: self.size / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if folder { FileType::Directory } else { FileType::RegularFile },
            perm: if folder { 0o755 } else { 0o600 },
            nlink: if folder { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().expect("no holder of this lock panics")
    }
}

/// Makes the first `covers` unflushed writes durable.
fn flush(platter: &mut Platter, covers: usize, came: Instant) {
    let covers = covers.min(platter.unflushed.len());
    for (offset, bytes) in platter.unflushed.drain(..covers).collect::<Vec<_>>() {
        platter.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    platter.flushes += 1;
    record(platter, Event::Flush(came, Instant::now()));
}

/// Answers flushes when their time is over. Writes go on meanwhile, as on a real disk.
fn flush_later(queue: &FlushQueue, platter: &Mutex<Platter>) {
    let mut state = queue.waiting.lock().expect("no holder of this lock panics");
    loop {
        let now = Instant::now();
        while let Some(at) = state.0.iter().position(|waiting| waiting.due <= now) {
            let waiting = state.0.remove(at);
            let mut platter = platter.lock().expect("no holder of this lock panics");
            if platter.dead {
                waiting.reply.error(libc::EIO);
                continue;
            }
            flush(&mut platter, waiting.covers, waiting.came);
            drop(platter);
            for other in &mut state.0 {
                other.covers = other.covers.saturating_sub(waiting.covers);
            }
            waiting.reply.ok();
        }
        if state.1 {
            return;
        }
        let wait = state.0.iter().map(|waiting| waiting.due - now).min().unwrap_or(Duration::from_secs(1));
        state = queue.bell.wait_timeout(state, wait).expect("no holder of this lock panics").0;
    }
}

impl Filesystem for Device {
    fn init(&mut self, _request: &Request<'_>, config: &mut KernelConfig) -> Result<(), libc::c_int> {
        let _as_much_as_the_kernel_takes = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&mut self, _request: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        if parent == fuser::FUSE_ROOT_ID && name == FILE_NAME {
            reply.entry(&VALID, &self.attributes(FILE), 0);
        } else {
            reply.error(libc::ENOENT);
        }
    }

    fn getattr(&mut self, _request: &Request<'_>, inode: u64, _handle: Option<u64>, reply: ReplyAttr) {
        reply.attr(&VALID, &self.attributes(inode));
    }

    fn setattr(
        &mut self,
        _request: &Request<'_>,
        inode: u64,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<u64>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<u32>,
        reply: ReplyAttr,
    ) {
        reply.attr(&VALID, &self.attributes(inode));
    }

    fn open(&mut self, _request: &Request<'_>, _inode: u64, _flags: i32, reply: ReplyOpen) {
        reply.opened(1, 0);
    }

    fn read(
        &mut self,
        _request: &Request<'_>,
        _inode: u64,
        _handle: u64,
        offset: i64,
        size: u32,
        _flags: i32,
        _lock: Option<u64>,
        reply: ReplyData,
    ) {
        let platter = self.platter();
        let start = (offset.max(0) as usize).min(platter.current.len());
        let end = (start + size as usize).min(platter.current.len());
        reply.data(&platter.current[start..end]);
    }

    fn write(
        &mut self,
        _request: &Request<'_>,
        _inode: u64,
        _handle: u64,
        offset: i64,
        data: &[u8],
        _write_flags: u32,
        _flags: i32,
        _lock: Option<u64>,
        reply: ReplyWrite,
    ) {
        let mut platter = self.platter();
        let start = offset.max(0) as usize;
        if platter.dead || platter.fault == Fault::Writes || start + data.len() > platter.current.len() {
            return reply.error(libc::EIO);
        }
        platter.current[start..start + data.len()].copy_from_slice(data);
        platter.unflushed.push((start, data.to_vec()));
        platter.writes += 1;
        let marked = !platter.marker.is_empty() && memchr::memmem::find(data, &platter.marker).is_some();
        record(&mut platter, Event::Write(Instant::now(), marked));
        reply.written(data.len() as u32);
    }

    fn fsync(&mut self, _request: &Request<'_>, _inode: u64, _handle: u64, _datasync: bool, reply: ReplyEmpty) {
        let came = Instant::now();
        let mut platter = self.platter();
        if platter.dead {
            return reply.error(libc::EIO);
        }
        if platter.fault == Fault::Flushes {
            for (offset, bytes) in std::mem::take(&mut platter.unflushed) {
                let range = offset..offset + bytes.len();
                let Platter { current, durable, .. } = &mut *platter;
                current[range.clone()].copy_from_slice(&durable[range]);
            }
            return reply.error(libc::EIO);
        }
        let covers = platter.unflushed.len();
        if self.flush_time.is_zero() {
            flush(&mut platter, covers, came);
            return reply.ok();
        }
        drop(platter);
        let mut state = self.queue.waiting.lock().expect("no holder of this lock panics");
        state.0.push(Waiting { came, due: came + self.flush_time, covers, reply });
        self.queue.bell.notify_one();
    }

    fn flush(&mut self, _request: &Request<'_>, _inode: u64, _handle: u64, _lock: u64, reply: ReplyEmpty) {
        // close(2), not a flush of the disk.
        reply.ok();
    }
}

/// A mounted disk; taken down when dropped.
#[derive(Debug)]
pub struct Disk {
    control: Control,
    folder: PathBuf,
    session: Option<BackgroundSession>,
    queue: Arc<FlushQueue>,
    flusher: Option<std::thread::JoinHandle<()>>,
}

impl std::fmt::Debug for FlushQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FlushQueue")
    }
}

impl Disk {
    /// Mounts a disk that begins as `content` on the empty folder `folder`; each flush takes `flush_time`.
    pub fn mount(content: Vec<u8>, folder: &Path, flush_time: Duration) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let size = content.len() as u64;
        let platter = Arc::new(Mutex::new(Platter {
            current: content.clone(),
            durable: content,
            unflushed: Vec::new(),
            dead: false,
            fault: Fault::None,
            flushes: 0,
            writes: 0,
            events: Vec::new(),
            marker: Vec::new(),
        }));
        let queue = Arc::new(FlushQueue::default());
        let (queue_there, platter_there) = (Arc::clone(&queue), Arc::clone(&platter));
        let flusher = std::thread::Builder::new().name("flusher".into()).spawn(move || flush_later(&queue_there, &platter_there))?;
        let device = Device { platter: Arc::clone(&platter), size, flush_time, queue: Arc::clone(&queue) };
        let options = [MountOption::FSName("ringpost-disk".into()), MountOption::RW];
        let session = fuser::spawn_mount2(device, folder, &options).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot mount FUSE on {} (needs root and /dev/fuse): {error}", folder.display()))
        })?;
        Ok(Self { control: Control { platter }, folder: folder.to_path_buf(), session: Some(session), queue, flusher: Some(flusher) })
    }

    /// Its control side.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The file to put a loop device on.
    pub fn file(&self) -> PathBuf {
        self.folder.join(FILE_NAME)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            // The kernel lets go of a loop device a moment after it was told to: an ordinary unmount is then refused, and `join` would wait for
            // ever. Detached, the file system ends when the last that holds it has gone.
            let _as_good_as_it_gets = rustix::mount::unmount(&self.folder, rustix::mount::UnmountFlags::DETACH);
            session.join();
        }
        self.queue.waiting.lock().expect("no holder of this lock panics").1 = true;
        self.queue.bell.notify_one();
        if let Some(flusher) = self.flusher.take() {
            let _ended = flusher.join();
        }
    }
}
