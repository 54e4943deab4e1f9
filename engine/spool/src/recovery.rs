//! The start of a log: clean, flush, read the heads, read each segment from the newest to the oldest, seal the ends, open the write side.
//!
//! Nothing that was there is truncated, zeroed or appended to. A segment in which nothing verifies gets a new header before it is used.

use std::collections::HashMap;
use std::time::Instant;

use crate::batch::BLOCK_BYTES;
use crate::event::{Event, RecoveryError, RecoveryReport};
use crate::fetch::{Fetch, Unreadable};
use crate::heads::Headless;
use crate::load::Known;
use crate::log::{FoundFile, Log, Phase, Purpose};
use crate::op::{BatchBuffer, Host, Op, OpKind, OpResult, done, filled};
use crate::reading::{LogEnd, Reading};
use crate::scan::Window;
use crate::seal::Seal;
use crate::search::{Search, SearchStep};
use crate::segment::{FIRST_BATCH, SegmentFile};
use crate::segments::{Segment, SegmentState};

/// Blocks at the front of a segment that tell what it is: its headers, and the front of its first batch.
const HEAD_BYTES: u32 = FIRST_BATCH + BLOCK_BYTES as u32;

/// Flushes or reads of heads under way at once: a spool has many segments, and accepting waits for these.
const AT_ONCE: usize = 32;

/// More uses than segments can have gone through since the newest one whose number is known.
const NUMBERS_IN_DOUBT: u64 = 1 << 20;

/// How far the start has come. `Recovery::next` counts the files, slots or places in `order` that were begun with.
#[derive(Clone, Copy)]
pub(crate) enum Stage {
    /// Leftovers of preparations are unlinked.
    Clean { synced: bool },
    /// Each segment is flushed: what is read must be what the disk has (S9).
    Flush,
    /// Headers and first batches.
    Heads,
    /// A head that was refused is read again, block by block.
    HeadAgain { slot: u32 },
    /// The head of a segment can't be read: its batches are searched for what proves a use.
    Search { slot: u32 },
    /// Segment by segment.
    Scan,
    /// The whole log is known.
    Finish,
}

/// Memory with a piece of a segment in it.
pub(crate) struct Held<B> {
    pub(crate) buffer: B,
    pub(crate) at: u32,
    pub(crate) bytes: usize,
}

/// What came of asking for a piece of a segment.
enum Asked<B> {
    Op(Op<B>),
    /// There is no memory for it now.
    NoBuffer,
    /// It is in `Recovery::held`.
    Held,
}

/// The state of a start.
pub(crate) struct Recovery<B> {
    files: Vec<FoundFile>,
    pub(crate) stage: Stage,
    pub(crate) next: usize,
    /// The segment that is being read.
    pub(crate) reading: Option<Reading>,
    pub(crate) held: Option<Held<B>>,
    /// The piece that is being read into `held`, and what can't be read of its segment.
    fetch: Option<Fetch>,
    pub(crate) unreadable: Unreadable,
    /// Operations that have not ended.
    under_way: usize,
    /// Slots whose head was refused in one piece.
    heads_refused: Vec<u32>,
    /// Segments that are still to be searched; the last one is.
    pub(crate) headless: Vec<Headless>,
    search: Option<Search>,
    /// Slots from the newest use to the oldest.
    pub(crate) order: Vec<u32>,
    /// Batches up to here were acknowledged, by boot.
    pub(crate) witnessed: HashMap<u64, u64>,
    /// Log position of the first batch, by number of the use.
    pub(crate) firsts: HashMap<u64, (u64, u64)>,
    /// The ends of the log found, by boot: last batch, its check, the slot that holds it, whether a seal was there.
    pub(crate) ends: HashMap<u64, LogEnd>,
    /// All ends without a seal are known: the write side may open while older segments are still being read.
    pub(crate) may_open: bool,
    /// Seals met, and those to be written for ends that have none.
    pub(crate) seals: Vec<Seal>,
    pub(crate) seals_wanted: Vec<Seal>,
    pub(crate) known: Known,
    pub(crate) report: RecoveryReport,
}

impl<B> Recovery<B> {
    pub(crate) fn new(files: &[FoundFile]) -> Self {
        Recovery {
            files: files.to_vec(),
            stage: Stage::Clean { synced: false },
            next: 0,
            reading: None,
            held: None,
            fetch: None,
            unreadable: Unreadable::default(),
            under_way: 0,
            heads_refused: Vec::new(),
            headless: Vec::new(),
            search: None,
            order: Vec::new(),
            witnessed: HashMap::new(),
            firsts: HashMap::new(),
            ends: HashMap::new(),
            may_open: false,
            seals: Vec::new(),
            seals_wanted: Vec::new(),
            known: Known::default(),
            report: RecoveryReport::default(),
        }
    }

    pub(crate) fn window(&self) -> Window<'_>
    where
        B: BatchBuffer,
    {
        match &self.held {
            Some(held) => Window { at: held.at, bytes: &held.buffer.bytes()[..held.bytes] },
            None => Window { at: 0, bytes: &[] },
        }
    }

    pub(crate) fn begin(&mut self, stage: Stage) {
        (self.stage, self.next) = (stage, 0);
    }

    pub(crate) fn witness(&mut self, boot: u64, upto: u64) {
        let known = self.witnessed.entry(boot).or_default();
        *known = (*known).max(upto);
    }
}

impl<H: Host> Log<H> {
    /// Whether a segment can't be made yet: numbers and names aren't all known.
    pub(crate) fn is_reading_ends(&self) -> bool {
        self.recovery.as_ref().is_some_and(|recovery| !recovery.may_open)
    }

    pub(crate) fn recovery_op(&mut self, now: Instant) -> Option<Op<H::Buffer>> {
        let mut recovery = self.recovery.take()?;
        let at_once = if matches!(recovery.stage, Stage::Flush | Stage::Heads) { AT_ONCE } else { 1 };
        if recovery.under_way >= at_once {
            self.recovery = Some(recovery);
            return None;
        }
        let op = match self.next_recovery_op(&mut recovery) {
            Ok(op) => op,
            Err(error) => {
                self.refuse(error);
                return None;
            }
        };
        recovery.under_way += usize::from(op.is_some());
        if recovery.may_open && self.phase == Phase::Recovering {
            self.open_write_side(&mut recovery, now);
        }
        if self.phase != Phase::Recovering && matches!(recovery.stage, Stage::Finish) {
            self.is_changed = true;
            self.events.push_back(Event::Loaded(recovery.report));
        } else {
            self.recovery = Some(recovery);
        }
        op
    }

    fn next_recovery_op(&mut self, recovery: &mut Recovery<H::Buffer>) -> Result<Option<Op<H::Buffer>>, RecoveryError> {
        loop {
            let next = recovery.next;
            match recovery.stage {
                Stage::Clean { synced } => match recovery.files.get(next) {
                    Some(found) if found.temporary => {
                        return Ok(Some(self.op(Purpose::Recovery, OpKind::Unlink { file: found.file, temporary: true })));
                    }
                    Some(_) => recovery.next += 1,
                    // Always: a name that the last life did not get to sync must not be relied on.
                    None if !synced => return Ok(Some(self.op(Purpose::Recovery, OpKind::SyncDirectory))),
                    None => {
                        let last = recovery.files.iter().map(|found| found.file.0).max();
                        self.segments.next_file = last.map_or(1, |last| last + 1);
                        recovery.files.retain(|found| !found.temporary);
                        recovery.begin(Stage::Flush);
                    }
                },
                Stage::Flush => match recovery.files.get(next) {
                    Some(&FoundFile { file, .. }) => {
                        recovery.next += 1;
                        return Ok(Some(self.op(Purpose::Flush { file }, OpKind::Sync { file })));
                    }
                    None if recovery.under_way > 0 => return Ok(None),
                    None => {
                        for found in &recovery.files {
                            let block = BLOCK_BYTES as u64;
                            let bytes = (found.bytes / block * block).min(1 << 30) as u32;
                            let segment = Segment { doubt: found.doubt, ..Segment::new(found.file, bytes, SegmentState::Loading) };
                            self.segments.add(segment);
                        }
                        recovery.report.segments = recovery.files.len() as u64;
                        recovery.begin(Stage::Heads);
                    }
                },
                // It ends in front of a first batch: a restore that was cut short, a file that isn't ours. There is no room for one either.
                Stage::Heads if self.segments.slots.get(next).is_some_and(|segment| segment.bytes < HEAD_BYTES) => {
                    recovery.next += 1;
                    self.set_aside(next as u32);
                }
                Stage::Heads if next < self.segments.slots.len() => {
                    let op = self.head_op(next as u32);
                    recovery.next += usize::from(op.is_some());
                    return Ok(op);
                }
                Stage::Heads if recovery.under_way > 0 => return Ok(None),
                Stage::Heads => {
                    if let Some(slot) = recovery.heads_refused.pop() {
                        self.begin_file(recovery, slot);
                        recovery.stage = Stage::HeadAgain { slot };
                        continue;
                    }
                    if let Some(&Headless { slot, .. }) = recovery.headless.last() {
                        self.begin_file(recovery, slot);
                        recovery.search = Some(Search::new(self.segments.get(slot).bytes, self.config.read_bytes));
                        recovery.stage = Stage::Search { slot };
                        continue;
                    }
                    // The others are blank, or nothing tells their use.
                    recovery.order = (0..next as u32).filter(|&slot| self.segments.get(slot).number > 0).collect();
                    recovery.order.sort_by_key(|&slot| std::cmp::Reverse(self.segments.get(slot).number));
                    let newest = recovery.order.first().map(|&slot| self.segments.get(slot));
                    // A use that could not be read may have a later number than those that could, and no number is given twice.
                    let step = if self.segments.has_unknown_use() { 1 + NUMBERS_IN_DOUBT } else { 1 };
                    let Some(next_number) = newest.map_or(Some(step), |segment| segment.number.checked_add(step)) else {
                        let file = newest.expect("it has a number").file;
                        return Err(RecoveryError::NumbersUsedUp { file });
                    };
                    (self.segments.next_number, self.segments.first_number) = (next_number, next_number);
                    recovery.begin(Stage::Scan);
                }
                Stage::HeadAgain { slot } => match self.ask(recovery, slot, 0, HEAD_BYTES) {
                    Asked::Op(op) => return Ok(Some(op)),
                    Asked::NoBuffer => return Ok(None),
                    Asked::Held => self.take_head_again(recovery, slot)?,
                },
                Stage::Search { slot } => {
                    let mut search = recovery.search.take().expect("a segment is searched");
                    let step = search.step(recovery.window());
                    recovery.search = Some(search);
                    match step {
                        SearchStep::Done(searched) => self.end_search(recovery, searched),
                        SearchStep::Read { offset, bytes } => match self.ask(recovery, slot, offset, bytes) {
                            Asked::Op(op) => return Ok(Some(op)),
                            Asked::NoBuffer => return Ok(None),
                            Asked::Held => (),
                        },
                    }
                }
                Stage::Scan => {
                    if recovery.window().bytes.is_empty() || recovery.reading.is_none() {
                        // Nothing at hand that the driver has not been told of yet.
                        self.read_on(recovery)?;
                    }
                    let wanted = recovery.reading.as_ref().and_then(|reading| Some((reading.slot, reading.wanted?)));
                    match wanted {
                        Some((slot, (offset, bytes))) => match self.ask(recovery, slot, offset, bytes) {
                            Asked::Op(op) => return Ok(Some(op)),
                            Asked::NoBuffer => return Ok(None),
                            // All of it was found unreadable before: no record stands in it that the driver is to be told of.
                            Asked::Held => {
                                self.scan_held(recovery);
                                self.read_on(recovery)?;
                            }
                        },
                        None if matches!(recovery.stage, Stage::Scan) => return Ok(None),
                        None => (),
                    }
                }
                Stage::Finish => return Ok(None),
            }
        }
    }

    fn head_op(&mut self, slot: u32) -> Option<Op<H::Buffer>> {
        let buffer = self.host.take_buffer(HEAD_BYTES as usize)?;
        let kind = OpKind::Read { file: self.segments.get(slot).file, offset: 0, buffer, bytes: HEAD_BYTES as usize };
        Some(self.op(Purpose::Head { slot }, kind))
    }

    /// Another segment is read from here on.
    pub(crate) fn begin_file(&self, recovery: &mut Recovery<H::Buffer>, slot: u32) {
        recovery.unreadable = Unreadable::new(self.segments.get(slot).bytes);
        recovery.fetch = None;
        if let Some(held) = &mut recovery.held {
            held.bytes = 0;
        }
    }

    /// Reads what is needed and more, or goes on with that: `needed` bytes at `at` of a segment, whole blocks of it.
    fn ask(&mut self, recovery: &mut Recovery<H::Buffer>, slot: u32, at: u32, needed: u32) -> Asked<H::Buffer> {
        let mut buffer = match recovery.held.take() {
            Some(held) => held.buffer,
            None => match self.host.take_buffer(self.config.read_bytes.max(HEAD_BYTES) as usize) {
                Some(buffer) => buffer,
                None => return Asked::NoBuffer,
            },
        };
        let segment = self.segments.get(slot);
        let most = self.config.read_bytes.min(segment.bytes - at);
        let fetch = recovery.fetch.get_or_insert_with(|| Fetch::new(at, needed, most, &recovery.unreadable));
        match fetch.next(buffer.bytes_mut(), &mut recovery.unreadable) {
            Some((offset, bytes)) => {
                let kind = OpKind::Read { file: segment.file, offset: u64::from(offset), buffer, bytes: bytes as usize };
                Asked::Op(self.op(Purpose::Recovery, kind))
            }
            None => {
                recovery.held = Some(Held { buffer, at, bytes: fetch.bytes() });
                recovery.fetch = None;
                Asked::Held
            }
        }
    }

    /// One read of what was asked for has ended. Returns whether all of it is held now.
    fn asked_completed(&self, recovery: &mut Recovery<H::Buffer>, result: OpResult<H::Buffer>) -> bool {
        let OpResult::Read { mut buffer, result } = result else { panic!("the answer to a read") };
        let fetch = recovery.fetch.as_mut().expect("a read was under way");
        fetch.completed(buffer.bytes_mut(), result, &mut recovery.unreadable);
        let is_held = fetch.next(buffer.bytes_mut(), &mut recovery.unreadable).is_none();
        recovery.held = Some(Held { buffer, at: fetch.at(), bytes: fetch.bytes() });
        if is_held {
            recovery.fetch = None;
        }
        is_held
    }

    pub(crate) fn recovery_completed(&mut self, result: OpResult<H::Buffer>) {
        self.recover(|log, recovery| log.advance_recovery(recovery, result));
    }

    pub(crate) fn flush_completed(&mut self, file: SegmentFile, result: &OpResult<H::Buffer>) {
        let result = done(result);
        self.recover(|_, _| if result < 0 { Err(RecoveryError::SyncFailed { file, result }) } else { Ok(()) });
    }

    pub(crate) fn head_completed(&mut self, slot: u32, result: OpResult<H::Buffer>) {
        let OpResult::Read { buffer, result } = result else { panic!("the answer to a read") };
        self.recover(|log, recovery| {
            let (head, needed) = (filled(&buffer, result), HEAD_BYTES as usize);
            if head.len() < needed {
                recovery.heads_refused.push(slot);
                return Ok(());
            }
            log.take_head(recovery, slot, &head[..needed], &Unreadable::default())
        });
    }

    /// One operation of the start has ended; `advance` takes what it brought.
    fn recover(&mut self, advance: impl FnOnce(&mut Self, &mut Recovery<H::Buffer>) -> Result<(), RecoveryError>) {
        let Some(mut recovery) = self.recovery.take() else { return };
        recovery.under_way -= 1;
        match advance(self, &mut recovery) {
            Ok(()) => self.recovery = Some(recovery),
            Err(error) => self.refuse(error),
        }
    }

    /// The log stays as it is: nothing was written to it.
    pub(crate) fn refuse(&mut self, error: RecoveryError) {
        self.phase = Phase::Poisoned;
        self.events.push_back(Event::Refused(error));
    }

    fn advance_recovery(&mut self, recovery: &mut Recovery<H::Buffer>, result: OpResult<H::Buffer>) -> Result<(), RecoveryError> {
        let next = recovery.next;
        match recovery.stage {
            Stage::Clean { .. } => {
                let result = done(&result);
                if result < 0 {
                    return Err(RecoveryError::Directory { result });
                }
                recovery.stage = Stage::Clean { synced: next >= recovery.files.len() };
                recovery.next += 1;
            }
            Stage::Flush | Stage::Heads => unreachable!("their operations have completions of their own"),
            Stage::HeadAgain { slot } => {
                if self.asked_completed(recovery, result) {
                    self.take_head_again(recovery, slot)?;
                }
            }
            // The search goes on in what is held when the next operation is asked for.
            Stage::Search { .. } => {
                self.asked_completed(recovery, result);
            }
            Stage::Scan => {
                if self.asked_completed(recovery, result) {
                    self.scan_held(recovery);
                }
            }
            Stage::Finish => unreachable!("nothing was under way"),
        }
        Ok(())
    }

    /// What the scan wanted is at hand.
    fn scan_held(&mut self, recovery: &mut Recovery<H::Buffer>) {
        recovery.reading.as_mut().expect("a segment is being read").wanted = None;
        recovery.report.bytes += recovery.window().bytes.len() as u64;
    }
}
