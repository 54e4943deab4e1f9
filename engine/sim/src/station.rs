//! One log on one disk, and the driver between them: begins operations, lets them complete in any order, cuts.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use ringpost_spool::{Controls, Doubt, FoundFile, Host, Log, LogConfig, Op, OpId, OpKind, OpResult, SegmentFile};

use crate::control::Control;
use crate::disk::{Cut, Disk, Landing};
use crate::random::Random;

/// Buffers and random bits for a log.
pub struct SimHost {
    pool: Rc<RefCell<Vec<Vec<u8>>>>,
    random: Random,
    /// One request in so many finds no buffer; 0: never.
    starve_in: u64,
}

impl Host for SimHost {
    type Buffer = Vec<u8>;

    fn take_buffer(&mut self, bytes: usize) -> Option<Vec<u8>> {
        if self.starve_in > 0 && self.random.one_in(self.starve_in) {
            return None;
        }
        let mut buffer = self.pool.borrow_mut().pop().unwrap_or_default();
        buffer.resize(bytes, 0xa5);
        Some(buffer)
    }

    fn random(&mut self) -> u64 {
        self.random.draw()
    }
}

/// An operation under way.
enum Running {
    Write { id: OpId, file: (SegmentFile, bool), landing: Option<Landing>, is_header: bool },
    Other { id: OpId, kind: OpKind<Vec<u8>> },
}

/// What goes wrong next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A write that puts down only a part.
    ShortWrite,
    /// A write that fails.
    FailedWrite,
    /// A flush that fails.
    FailedSync,
}

/// Reads that touch this stretch of a file fail, so many times.
#[derive(Clone, Debug)]
pub struct BadPlace {
    /// The file.
    pub file: SegmentFile,
    /// Offsets in it.
    pub bytes: Range<u64>,
    /// Failures left.
    pub times: u32,
}

/// A change of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A file is made.
    Create,
    /// The names are made durable.
    Sync,
}

/// One log, its disk, and what is under way between them.
pub struct Station {
    /// The disk; it outlives the log's lives.
    pub disk: Disk,
    /// The log of the present life.
    pub log: Log<SimHost>,
    /// After so many writes one fails.
    pub fault: Option<(u64, Fault)>,
    /// The next change of this kind is refused with this errno, negated.
    pub refused: Option<(Change, i64)>,
    /// What can't be read.
    pub unreadable: Vec<BadPlace>,
    /// Reads that were begun, and those of them that failed.
    pub reads: (u64, u64),
    /// Bytes that reads brought.
    pub bytes_read: u64,
    control: Option<Control>,
    running: Vec<Running>,
    late: Vec<Landing>,
    pool: Rc<RefCell<Vec<Vec<u8>>>>,
}

/// What was under way when the cut came.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnderWay {
    /// Batches.
    pub batches: usize,
    /// A freed segment's header.
    pub freeing: bool,
    /// A file being made.
    pub preparing: bool,
    /// Reads.
    pub reading: bool,
    /// Some write landed in part.
    pub torn: bool,
}

impl Station {
    /// A first life on an empty disk.
    pub fn new(disk: Disk, config: LogConfig, control: Option<Control>, random: &mut Random, now: Instant) -> Self {
        let pool = Rc::default();
        let log = Self::open(&disk, config, control, &pool, random, now, &HashMap::new());
        Station {
            disk,
            log,
            fault: None,
            refused: None,
            unreadable: Vec::new(),
            reads: (0, 0),
            bytes_read: 0,
            control,
            running: Vec::new(),
            late: Vec::new(),
            pool,
        }
    }

    /// The next life on what the disk has.
    pub fn reopen(&mut self, config: LogConfig, random: &mut Random, now: Instant) {
        self.fault = None;
        // A driver writes them down when the log is loaded.
        let doubts = if self.log.is_loading() { HashMap::new() } else { self.log.doubts().collect() };
        self.log = Self::open(&self.disk, config, self.control, &self.pool, random, now, &doubts);
    }

    fn open(
        disk: &Disk,
        mut config: LogConfig,
        control: Option<Control>,
        pool: &Rc<RefCell<Vec<Vec<u8>>>>,
        random: &mut Random,
        now: Instant,
        doubts: &HashMap<SegmentFile, Doubt>,
    ) -> Log<SimHost> {
        config.controls = control.map_or(Controls::default(), Control::of_log);
        let starve_in = if random.one_in(4) { 20 } else { 0 };
        let host = SimHost { pool: Rc::clone(pool), random: Random::new(random.draw()), starve_in };
        let mut files: Vec<FoundFile> = disk.list();
        files.iter_mut().for_each(|found| found.doubt = doubts.get(&found.file).copied());
        Log::open(config, host, &files, now)
    }

    /// Begins all that the log asks for.
    pub fn begin_all(&mut self, now: Instant) {
        while let Some(Op { id, kind }) = self.log.poll(now) {
            self.running.push(match kind {
                OpKind::WriteSynced { file, temporary, offset, buffer, bytes, batch } => {
                    let landing = self.disk.begin_write((file, temporary), offset as usize, &buffer[..bytes]);
                    self.pool.borrow_mut().push(buffer);
                    Running::Write { id, file: (file, temporary), landing, is_header: batch.is_none() }
                }
                kind => Running::Other { id, kind },
            });
        }
        // A driver sleeps until the deadline: one that has passed, with nothing to do, would let it spin.
        let due = self.log.next_deadline().filter(|at| *at <= now);
        assert!(due.is_none(), "nothing is to be done, and the log asks to be polled again at once");
    }

    /// Operations under way.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Lets one operation complete, whichever.
    pub fn complete_one(&mut self, random: &mut Random, now: Instant) {
        if self.running.is_empty() {
            return;
        }
        let at = random.below(self.running.len() as u64) as usize;
        match self.running.swap_remove(at) {
            Running::Write { id, file, landing, .. } => {
                let (write, sync) = self.write_synced(file, landing, random);
                self.log.completed(id, OpResult::WriteSynced { write, sync }, now);
            }
            Running::Other { id, kind } => {
                let result = self.execute(kind);
                self.log.completed(id, result, now);
            }
        }
    }

    fn write_synced(&mut self, file: (SegmentFile, bool), landing: Option<Landing>, random: &mut Random) -> (i64, i64) {
        const EIO: i64 = -5;
        const ECANCELED: i64 = -125;
        let Some(landing) = landing else { return (-2, ECANCELED) };
        let fault = match &mut self.fault {
            Some((0, fault)) => Some(*fault),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        match fault {
            Some(Fault::FailedWrite) => return (EIO, ECANCELED),
            Some(Fault::ShortWrite) => return (512, ECANCELED),
            _ => (),
        }
        if self.control == Some(Control::ChainPushedSingly) {
            let sync = self.disk.sync(file);
            return (self.disk.land(&landing), sync);
        }
        let write = self.disk.land(&landing);
        if fault == Some(Fault::FailedSync) {
            self.disk.fail_sync(file, random);
            return (write, EIO);
        }
        (write, self.disk.sync(file))
    }

    fn execute(&mut self, kind: OpKind<Vec<u8>>) -> OpResult<Vec<u8>> {
        let change = match kind {
            OpKind::Create { .. } => Some(Change::Create),
            OpKind::SyncDirectory => Some(Change::Sync),
            _ => None,
        };
        if let Some((_, errno)) = self.refused.take_if(|(refused, _)| Some(*refused) == change) {
            return OpResult::Done { result: errno };
        }
        let disk = &mut self.disk;
        let result = match kind {
            OpKind::Read { file, offset, mut buffer, bytes } => {
                self.reads.0 += 1;
                let touched = |bad: &&mut BadPlace| {
                    bad.file == file && bad.times > 0 && bad.bytes.start < offset + bytes as u64 && offset < bad.bytes.end
                };
                if let Some(bad) = self.unreadable.iter_mut().find(touched) {
                    bad.times -= 1;
                    self.reads.1 += 1;
                    return OpResult::Read { buffer, result: -5 };
                }
                let result = disk.read((file, false), offset as usize, &mut buffer[..bytes]);
                self.bytes_read += result.max(0) as u64;
                return OpResult::Read { buffer, result };
            }
            OpKind::WriteSynced { .. } => unreachable!("writes are kept apart"),
            OpKind::Sync { file } => disk.sync((file, false)),
            OpKind::Create { file } => disk.create((file, true)),
            OpKind::Allocate { file, bytes } => disk.allocate((file, true), bytes as usize),
            // Zeros behind the end: as long as the file only grows, that is what allocating gives.
            OpKind::Fill { file, offset, bytes } => disk.allocate((file, true), offset as usize + bytes),
            OpKind::Publish { file } => disk.rename((file, true), (file, false)),
            OpKind::SyncDirectory => disk.sync_directory(),
            OpKind::Unlink { file, temporary } => disk.unlink((file, temporary)),
        };
        OpResult::Done { result }
    }

    /// While a log is being opened, writes of the process killed before may still land.
    pub fn land_late(&mut self, random: &mut Random) {
        if let Some(landing) = self.late.pop()
            && random.one_in(2)
        {
            self.disk.cut(Cut::Kill, &[landing], random);
        }
    }

    /// The log is open: whatever had not landed never will.
    pub fn forget_late(&mut self) {
        self.late.clear();
    }

    /// The life ends here. Tells what was under way.
    pub fn cut(&mut self, cut: Cut, random: &mut Random) -> UnderWay {
        let mut under_way = UnderWay::default();
        let mut landings = Vec::new();
        for running in std::mem::take(&mut self.running) {
            match running {
                Running::Write { landing, is_header, file, .. } => {
                    under_way.batches += usize::from(!is_header);
                    under_way.freeing |= is_header && !file.1;
                    under_way.preparing |= is_header && file.1;
                    match landing {
                        Some(landing) if cut == Cut::Kill && random.one_in(4) => self.late.push(landing),
                        landing => landings.extend(landing),
                    }
                }
                Running::Other { kind: OpKind::Read { buffer, .. }, .. } => {
                    under_way.reading = true;
                    self.pool.borrow_mut().push(buffer);
                }
                Running::Other { kind, .. } => {
                    under_way.preparing |= !matches!(kind, OpKind::Sync { .. });
                    if random.one_in(2) {
                        self.execute(kind);
                    }
                }
            }
        }
        if cut == Cut::Power {
            self.late.clear();
        }
        under_way.torn = self.disk.cut(cut, &landings, random);
        under_way
    }
}
