//! Segments are made ahead of need, and freed when nothing in them counts any more.
//!
//! Making one: under a temporary name zeros, then the header with a flush, rename, directory flush. Freeing one: a header with a new
//! generation and a flush. Only then may it be written to, and only then does what stood elsewhere for its sake stop counting.

use std::time::{Duration, Instant};

use crate::batch::BLOCK_BYTES;
use crate::config::PREPARE_RETRY;
use crate::event::{Event, PoisonReason};
use crate::log::{Log, Phase, Purpose, Space, check_write};
use crate::op::{BatchBuffer, Host, Op, OpKind, OpResult, done, is_shortage};
use crate::segment::{FIRST_BATCH, SegmentFile, SegmentHeader};
use crate::segments::{RESERVE_SEGMENTS, Segment, SegmentState};

/// Zeros written at once.
const FILL_BYTES: u32 = 1 << 20;

/// What is done next to the file that is being made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Create,
    Allocate,
    Fill {
        from: u32,
    },
    Header,
    Publish,
    SyncDirectory,
    /// It failed: the file goes away again, under the name that it has.
    Unlink {
        temporary: bool,
    },
}

/// The file that is being made.
#[derive(Clone, Copy, Debug)]
struct Making {
    slot: u32,
    step: Step,
    written: bool,
    /// Begun although the file system has less left than it is to keep: for records only, no promise to mail.
    is_below: bool,
}

/// Making segments, and the room that there is for it.
pub(crate) struct Supply {
    making: Option<Making>,
    space: Option<Space>,
    /// Not before, after a full disk.
    retry_at: Option<Instant>,
    /// Not before, so that zeros do not crowd out mail.
    fill_at: Instant,
    /// Mail found none free since one was last taken.
    mail_waits: bool,
    /// Records found none.
    records_wait: bool,
    /// Slots of files still to be unlinked by `retire`.
    retiring: Vec<u32>,
}

impl Supply {
    pub(crate) fn new(now: Instant) -> Self {
        Supply { making: None, space: None, retry_at: None, fill_at: now, mail_waits: false, records_wait: false, retiring: Vec::new() }
    }

    /// Somebody wanted a segment and none was free.
    pub(crate) fn found_none(&mut self, is_mail: bool) {
        if is_mail {
            self.mail_waits = true;
        } else {
            self.records_wait = true;
        }
    }

    /// One is written to now; who still finds none says so again.
    pub(crate) fn took_one(&mut self) {
        (self.mail_waits, self.records_wait) = (false, false);
    }

    /// The segment that is being made, unless it came to nothing.
    fn promising(&self) -> Option<Making> {
        self.making.filter(|making| !matches!(making.step, Step::Unlink { .. }))
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let fill = self.making.is_some_and(|making| matches!(making.step, Step::Fill { .. })).then_some(self.fill_at);
        [fill, self.retry_at].into_iter().flatten().min()
    }
}

impl<H: Host> Log<H> {
    /// Tells how much room the file system has. To be called every second or so, and at the start; before, preparing goes on unwatched.
    pub fn set_space(&mut self, space: Space) {
        self.supply.space = Some(space);
    }

    /// Keeps so many more segments ready than the settings say, for this run.
    pub fn prepare_more(&mut self, segments: u32) {
        self.config.prepared_segments = self.config.prepared_segments.saturating_add(segments).min(self.config.segments_max - 1);
    }

    /// What is written ahead, and is to be.
    pub fn ahead(&self) -> Ahead {
        let begun_bytes = self.supply.promising().map_or(0, |making| match making.step {
            Step::Create | Step::Allocate | Step::Unlink { .. } => 0,
            Step::Fill { from } => from,
            Step::Header | Step::Publish | Step::SyncDirectory => self.segments.get(making.slot).bytes,
        });
        let ready = u32::try_from(self.segments.coming_count()).unwrap_or(u32::MAX);
        Ahead { segment_bytes: self.config.segment_bytes, kept: self.config.prepared_segments, ready, begun_bytes }
    }

    /// What can still be promised to new messages.
    pub fn room(&self, now: Instant) -> Room {
        let usable = u64::from(self.config.segment_bytes - FIRST_BATCH);
        let left = self.segments.left();
        let free = self.segments.coming_count().saturating_sub(RESERVE_SEGMENTS) as u64;
        let bytes = if self.reserve || self.phase != Phase::Open { 0 } else { u64::from(left) + (free + self.preparable(now)) * usable };
        Room { bytes, open_bytes: self.config.open_bytes_max.saturating_sub(self.open_bytes), reserve: self.reserve || self.lacks_segment }
    }

    /// Unlinks all files of a log that is empty and takes nothing more: [`Event::Retired`] tells when the directory may go.
    ///
    /// Panics unless [`is_empty`](Log::is_empty) and every segment but the last one is freed ([`is_retirable`](Log::is_retirable)).
    pub fn retire(&mut self) {
        assert!(self.is_retirable(), "an empty log is retired");
        self.phase = Phase::Retiring;
        self.supply.retiring = self.segments.drain_free();
        self.supply.retiring.extend(self.segments.active.take());
    }

    /// Whether [`retire`](Log::retire) may be called: empty, and no older segment stands in which a settled message could be found.
    pub fn is_retirable(&self) -> bool {
        self.is_empty()
            && self.phase == Phase::Open
            && self.supply.making.is_none()
            && self.segments.blank.is_empty()
            && self.segments.heading.is_none()
            && self.segments.slots.iter().all(|segment| {
                matches!(segment.state, SegmentState::Free | SegmentState::Active | SegmentState::Unlinked) && segment.pins == 0
            })
    }

    /// Segments that could be made in the room there is.
    fn preparable(&self, now: Instant) -> u64 {
        if self.supply.retry_at.is_some_and(|at| at > now) {
            return 0;
        }
        if self.phase == Phase::Recovering && self.segments.coming_count() == 0 {
            // A start needs one segment, whatever the limits: without it nothing could ever be freed again.
            return 1;
        }
        let by_count = u64::from(self.config.segments_max).saturating_sub(self.segments.files() as u64);
        let by_space = self.supply.space.map_or(u64::MAX, |space| {
            let inodes = space.inodes.saturating_sub(self.config.free_inodes_min);
            (space.bytes.saturating_sub(self.config.free_bytes_min) / u64::from(self.config.segment_bytes)).min(inodes)
        });
        by_count.min(by_space)
    }

    /// Whether a segment more is being made or could be, within the limits.
    pub(crate) fn can_prepare(&self, now: Instant) -> bool {
        self.supply.promising().is_some_and(|making| !making.is_below) || self.preparable(now) > 0
    }

    /// Whether a segment more is being made or could be for records that found none, of what the file system is to keep: that is there
    /// for them.
    ///
    /// Only when compaction can gain nothing: then more than three quarters of what the segments hold counts, which bounds how many are
    /// made. Or when nothing is left to carry it into.
    pub(crate) fn can_prepare_below(&self, now: Instant) -> bool {
        if self.supply.promising().is_some() {
            return true;
        }
        let coming = self.segments.coming_count();
        let is_needed = self.supply.records_wait
            && self.recovery.is_none()
            && coming < RESERVE_SEGMENTS
            && (coming == 0 || !self.may_gain_by_compaction());
        let may_try = self.supply.retry_at.is_none_or(|at| at <= now) && self.segments.files() < self.config.segments_max as usize;
        // One more is left to the next start, which has nothing else to go on in when records took what was free.
        let fits = |space: Space| space.bytes >= 2 * u64::from(self.config.segment_bytes) && space.inodes > 1;
        is_needed && may_try && self.supply.space.is_none_or(fits)
    }

    /// Segments in which nothing counts any more are to get a new header.
    pub(crate) fn free_dead_segments(&mut self) {
        if self.recovery.is_some() || !self.is_changed {
            return;
        }
        let acknowledged = self.commit.acknowledged();
        for slot in 0..self.segments.slots.len() as u32 {
            let segment = self.segments.get(slot);
            let dead = segment.state == SegmentState::Full && segment.is_dead() && segment.pins == 0 && segment.last <= acknowledged;
            if dead && !self.compaction.is_about(slot) {
                self.segments.get_mut(slot).state = SegmentState::Blank;
                self.segments.blank.push_back(slot);
            }
        }
    }

    pub(crate) fn supply_op(&mut self, now: Instant) -> Option<Op<H::Buffer>> {
        self.set_reserve(now);
        // One header at a time until its segment is free: segments become free, and are written to, in the order of their numbers.
        let is_numbered =
            self.supply.making.is_some_and(|making| matches!(making.step, Step::Header | Step::Publish | Step::SyncDirectory));
        if self.segments.heading.is_none()
            && !is_numbered
            && let Some(slot) = self.segments.blank.front().copied()
            && let Some(buffer) = self.host.take_buffer(BLOCK_BYTES)
        {
            self.segments.blank.pop_front();
            self.segments.heading = Some(slot);
            return Some(self.header_op(slot, buffer, Purpose::Header { slot }));
        }
        if self.is_outstanding(|purpose| purpose == Purpose::Prepare) {
            return None;
        }
        if self.supply.making.is_none() {
            self.begin_making(now);
        }
        self.making_op(now)
    }

    fn set_reserve(&mut self, now: Instant) {
        if self.recovery.is_some() || !matches!(self.phase, Phase::Open | Phase::Stopping) {
            return;
        }
        let coming = self.segments.coming_count();
        let short = coming <= RESERVE_SEGMENTS && !self.can_prepare(now);
        // Hysteresis: it takes one segment more to leave than to enter.
        let over = coming > RESERVE_SEGMENTS + 1 || self.can_prepare(now);
        if (!self.reserve && short) || (self.reserve && over) {
            self.reserve = !self.reserve;
            self.events.push_back(Event::Reserve(self.reserve));
        }
    }

    fn begin_making(&mut self, now: Instant) {
        if self.supply.retry_at.is_some_and(|at| now >= at) {
            self.supply.retry_at = None;
        }
        if !matches!(self.phase, Phase::Open | Phase::Recovering) || self.is_reading_ends() {
            return;
        }
        let is_wanted = self.segments.coming_count() < self.config.prepared_segments as usize;
        let is_below = self.preparable(now) == 0;
        if !is_wanted || (is_below && !self.can_prepare_below(now)) {
            return;
        }
        let file = SegmentFile(self.segments.next_file);
        self.segments.next_file += 1;
        let slot = self.segments.add(Segment::new(file, self.config.segment_bytes, SegmentState::Preparing));
        self.supply.making = Some(Making { slot, step: Step::Create, written: false, is_below });
    }

    fn making_op(&mut self, now: Instant) -> Option<Op<H::Buffer>> {
        let Making { slot, step, .. } = self.supply.making?;
        let (file, bytes) = (self.segments.get(slot).file, self.segments.get(slot).bytes);
        let kind = match step {
            Step::Create => OpKind::Create { file },
            Step::Allocate => OpKind::Allocate { file, bytes: u64::from(bytes) },
            Step::Fill { .. } if now < self.supply.fill_at => return None,
            Step::Fill { from } => {
                let bytes = FILL_BYTES.min(bytes - from);
                let nanos = u64::from(bytes) * 1_000_000_000 / self.config.prepare_bytes_per_s.max(1);
                self.supply.fill_at = now + Duration::from_nanos(nanos);
                OpKind::Fill { file, offset: u64::from(from), bytes: bytes as usize }
            }
            Step::Header if self.segments.heading.is_some() => return None,
            Step::Header => {
                let buffer = self.host.take_buffer(BLOCK_BYTES)?;
                return Some(self.header_op(slot, buffer, Purpose::Prepare));
            }
            Step::Publish => OpKind::Publish { file },
            Step::SyncDirectory => OpKind::SyncDirectory,
            Step::Unlink { temporary } => OpKind::Unlink { file, temporary },
        };
        Some(self.op(Purpose::Prepare, kind))
    }

    /// A number and a generation for the next use of `slot`, and the write of its header.
    fn header_op(&mut self, slot: u32, mut buffer: H::Buffer, purpose: Purpose) -> Op<H::Buffer> {
        let number = self.segments.next_number;
        self.segments.next_number += 1;
        let generation = self.new_generation(number);
        let bytes = self.segments.get(slot).bytes;
        let header = SegmentHeader { spool: self.config.spool, shard: self.config.shard, bytes, number, generation };
        header.encode(&mut buffer.bytes_mut()[..BLOCK_BYTES]);
        let file = self.segments.get(slot).file;
        let header_block = 1 - self.segments.get(slot).header_block;
        let fresh = Segment { number, generation, header_block, ..Segment::new(file, bytes, SegmentState::Blank) };
        // The old use ends when the header is synced, not before: its number is kept until then.
        self.segments.ending = std::mem::replace(self.segments.get_mut(slot), fresh).number;
        let kind = OpKind::WriteSynced {
            file,
            temporary: purpose == Purpose::Prepare,
            offset: u64::from(header_block) * BLOCK_BYTES as u64,
            buffer,
            bytes: BLOCK_BYTES,
            batch: None,
        };
        self.op(purpose, kind)
    }

    pub(crate) fn header_completed(&mut self, slot: u32, result: &OpResult<H::Buffer>) {
        if let Err(reason) = check_write(result, BLOCK_BYTES) {
            return self.poison(reason);
        }
        self.segments.heading = None;
        self.segments.use_ended(self.segments.ending);
        self.segments.set_free(slot);
        self.is_changed = true;
        self.events.push_back(Event::SegmentFreed { file: self.segments.get(slot).file });
    }

    pub(crate) fn prepare_completed(&mut self, result: &OpResult<H::Buffer>, now: Instant) {
        let Some(making @ Making { slot, step, written, .. }) = self.supply.making else { return };
        let ended = match result {
            OpResult::WriteSynced { write, sync } if *write == BLOCK_BYTES as i64 => *sync,
            OpResult::WriteSynced { write, .. } if *write >= 0 => -28,
            OpResult::WriteSynced { write, .. } => *write,
            other => done(other),
        };
        if matches!(step, Step::Unlink { .. }) {
            // Whatever came of it: a leftover under the temporary name is removed at the next start, another is found to hold nothing.
            self.segments.get_mut(slot).state = SegmentState::Unlinked;
            self.supply.making = None;
            return;
        }
        if ended < 0 && is_shortage(ended) {
            self.supply.retry_at = Some(now + PREPARE_RETRY);
            let temporary = step != Step::SyncDirectory;
            self.supply.making = Some(Making { step: Step::Unlink { temporary }, ..making });
            self.lacks_segment = self.phase == Phase::Recovering && self.segments.coming_count() == 0;
            self.events.push_back(Event::PrepareFailed { result: ended, keeps_closed: self.lacks_segment });
            return;
        }
        if ended < 0 {
            return self.poison(match step {
                Step::Fill { .. } | Step::Header => PoisonReason::Write { expected: BLOCK_BYTES, result: ended },
                _ => PoisonReason::Directory { result: ended },
            });
        }
        // Nothing free for who asks and nothing coming: reserving space is quicker than writing it, and slower later.
        let coming = self.segments.coming_count();
        let kept = if self.supply.mail_waits { RESERVE_SEGMENTS } else { usize::from(self.supply.records_wait) };
        let hurry = coming <= kept;
        let bytes = self.segments.get(slot).bytes;
        let next = match step {
            Step::Create if hurry => Step::Allocate,
            Step::Create => Step::Fill { from: 0 },
            Step::Allocate => Step::Header,
            Step::Fill { from } if from + FILL_BYTES < bytes && hurry => Step::Allocate,
            Step::Fill { from } if from + FILL_BYTES < bytes => Step::Fill { from: from + FILL_BYTES },
            Step::Fill { .. } => Step::Header,
            Step::Header => Step::Publish,
            Step::Publish => Step::SyncDirectory,
            Step::SyncDirectory => {
                self.supply.making = None;
                self.segments.set_free(slot);
                self.events.push_back(Event::SegmentPrepared { file: self.segments.get(slot).file, written });
                return;
            }
            Step::Unlink { .. } => unreachable!("returned above"),
        };
        let written = written || matches!((step, next), (Step::Fill { .. }, Step::Header));
        self.supply.making = Some(Making { step: next, written, ..making });
    }

    pub(crate) fn retire_op(&mut self) -> Option<Op<H::Buffer>> {
        if self.is_outstanding(|purpose| purpose == Purpose::Retire) {
            return None;
        }
        let kind = match self.supply.retiring.last() {
            Some(&slot) => OpKind::Unlink { file: self.segments.get(slot).file, temporary: false },
            None => OpKind::SyncDirectory,
        };
        Some(self.op(Purpose::Retire, kind))
    }

    pub(crate) fn retire_completed(&mut self, result: &OpResult<H::Buffer>) {
        let result = done(result);
        if result < 0 {
            return self.poison(PoisonReason::Directory { result });
        }
        match self.supply.retiring.pop() {
            Some(slot) => self.segments.get_mut(slot).state = SegmentState::Unlinked,
            None => {
                self.phase = Phase::Stopped;
                self.events.push_back(Event::Retired);
            }
        }
    }
}

/// What a log has written ahead, and is to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ahead {
    /// Of each segment that is made now.
    pub segment_bytes: u32,
    /// Segments that are kept ready.
    pub kept: u32,
    /// Segments that are.
    pub ready: u32,
    /// Bytes that are there of one that is being made.
    pub begun_bytes: u32,
}

/// What the log can still promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Bytes of records for new messages. Zero in reserve mode: answer MAIL with 452.
    pub bytes: u64,
    /// Bytes of chunks that may still be begun.
    pub open_bytes: u64,
    /// Messages are refused, outcomes go on. Or the log can't be opened for want of a segment.
    pub reserve: bool,
}
