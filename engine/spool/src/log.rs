//! The log of one shard: one state machine that decides each operation on the disk and its order.
//!
//! The driver executes operations ([`Log::poll`]) and reports what became of them ([`Log::completed`]); what that means comes out as
//! events ([`Log::event`]). The simulator drives exactly this code. Appending is in `append`, making and freeing segments in `supply`,
//! the start in `recovery`, carrying live records forward in `compaction`.

use std::collections::VecDeque;
use std::time::Instant;

use crate::batch::Ticket;
use crate::check::Generation;
use crate::commit::GroupCommit;
use crate::compaction::Compaction;
use crate::config::{LogConfig, RIDE_IN_RESERVE_MAX, RIDE_MAX, WITNESS_AFTER};
use crate::event::{Event, PoisonReason};
use crate::index::Index;
use crate::op::{Host, Op, OpId, OpKind, OpResult};
use crate::open_batch::{Chained, OpenBatch};
use crate::recovery::Recovery;
use crate::release::Release;
use crate::segment::SegmentFile;
use crate::segments::Segments;
use crate::supply::Supply;

/// A file that the driver found in the log's directory, by [`SegmentFile::parse`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundFile {
    /// The file.
    pub file: SegmentFile,
    /// Its length.
    pub bytes: u64,
    /// Whether it has its temporary name: left over from a preparation.
    pub temporary: bool,
    /// What [`Log::doubts`] said of it in the start before this one, if that came to its end and this one is the very next.
    pub doubt: Option<Doubt>,
}

/// A file of which something could not be read, and no start since could. None of them wrote to it, so nothing in it is of a later time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Doubt {
    /// Boot number of the first of these starts: what stands in the file is of earlier lives.
    pub since: u64,
    /// The use that it is in has a number below this one.
    pub below: u64,
}

/// Room left on the file system, as statvfs tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Bytes that this process may still use.
    pub bytes: u64,
    /// Inodes that it may still use.
    pub inodes: u64,
}

/// What the log is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Nothing can be appended yet.
    Recovering,
    /// Records may be appended.
    Open,
    /// All that was appended gets durable and witnessed; nothing new.
    Stopping,
    /// Nothing is asked for any more.
    Stopped,
    /// A write or flush failed, or the log was refused: nothing is asked for, nothing promised.
    Poisoned,
    /// The files are being unlinked.
    Retiring,
}

/// What an operation under way is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Batch {
        bytes: usize,
    },
    Header {
        slot: u32,
    },
    Prepare,
    Recovery,
    /// At the start, of one segment.
    Flush {
        file: SegmentFile,
    },
    /// At the start, of one segment.
    Head {
        slot: u32,
    },
    Compaction,
    Retire,
}

/// The durable log of one shard. Start with [`Log::open`].
pub struct Log<H: Host> {
    pub(crate) config: LogConfig,
    pub(crate) host: H,
    pub(crate) phase: Phase,
    pub(crate) segments: Segments,
    pub(crate) index: Index,
    pub(crate) commit: GroupCommit,
    pub(crate) open: Option<OpenBatch<H::Buffer>>,
    /// What stops counting when a ticket is acknowledged, in order of tickets.
    pub(crate) releases: VecDeque<(Ticket, Release)>,
    pub(crate) supply: Supply,
    pub(crate) compaction: Compaction<H::Buffer>,
    pub(crate) recovery: Option<Recovery<H::Buffer>>,
    pub(crate) events: VecDeque<Event<'static>>,
    pub(crate) reserve: bool,
    /// A start that has no segment to go on in, nor room to make one.
    pub(crate) lacks_segment: bool,
    /// Something stopped counting, or may be freed, since segments were last looked at.
    pub(crate) is_changed: bool,
    /// Bytes of chunks whose message isn't committed.
    pub(crate) open_bytes: u64,
    outstanding: Vec<(OpId, Purpose)>,
    next_op: u64,
    /// When the last content batch was acknowledged and nothing was left to write.
    idle_since: Option<Instant>,
}

impl<H: Host> Log<H> {
    /// Opens the log whose directory holds `files`. Nothing is read yet: [`poll`](Log::poll) asks for it.
    ///
    /// A new log has no files. Panics if the settings contradict each other.
    pub fn open(config: LogConfig, host: H, files: &[FoundFile], now: Instant) -> Self {
        config.check();
        let controls = config.controls();
        Log {
            recovery: Some(Recovery::new(files)),
            phase: Phase::Recovering,
            segments: Segments::new(),
            index: Index::default(),
            commit: GroupCommit::new(controls.in_flight_across_segments),
            open: None,
            releases: VecDeque::new(),
            supply: Supply::new(now),
            compaction: Compaction::new(now),
            events: VecDeque::new(),
            reserve: false,
            lacks_segment: false,
            is_changed: false,
            open_bytes: 0,
            outstanding: Vec::new(),
            next_op: 1,
            idle_since: None,
            config,
            host,
        }
    }

    /// The next operation that should be begun, if any. Call until `None` after each turn of appends and completions.
    pub fn poll(&mut self, now: Instant) -> Option<Op<H::Buffer>> {
        if matches!(self.phase, Phase::Poisoned | Phase::Stopped) {
            return None;
        }
        if self.phase == Phase::Retiring {
            return self.retire_op();
        }
        if self.recovery.is_some()
            && let Some(op) = self.recovery_op(now)
        {
            return Some(op);
        }
        if let Some(op) = self.batch_op(now) {
            return Some(op);
        }
        self.free_dead_segments();
        if let Some(op) = self.supply_op(now) {
            return Some(op);
        }
        if self.recovery.is_none()
            && let Some(op) = self.compaction_op(now)
        {
            return Some(op);
        }
        // Compaction may have filled the batch that gathers.
        self.batch_op(now)
    }

    /// Tells what became of an operation. Then drain [`event`](Log::event), then [`poll`](Log::poll) again.
    pub fn completed(&mut self, id: OpId, result: OpResult<H::Buffer>, now: Instant) {
        let at = self.outstanding.iter().position(|&(open, _)| open == id).expect("the operation is open");
        let (_, purpose) = self.outstanding.swap_remove(at);
        if matches!(self.phase, Phase::Poisoned | Phase::Stopped) {
            // A failed flush is never made good by a later one: nothing that ends now is acknowledged any more.
            return;
        }
        match purpose {
            Purpose::Batch { bytes } => self.batch_completed(id, bytes, &result, now),
            Purpose::Header { slot } => self.header_completed(slot, &result),
            Purpose::Prepare => self.prepare_completed(&result, now),
            Purpose::Recovery => self.recovery_completed(result),
            Purpose::Flush { file } => self.flush_completed(file, &result),
            Purpose::Head { slot } => self.head_completed(slot, result),
            Purpose::Compaction => self.compaction_completed(result),
            Purpose::Retire => self.retire_completed(&result),
        }
    }

    /// The next event, in order. While the log is loading this reads on in the buffer at hand: drain it after each completion.
    pub fn event(&mut self) -> Option<Event<'_>> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if self.phase == Phase::Poisoned {
            return None;
        }
        match self.recovery_step() {
            Some(found) => Some(self.found_event(found)),
            None => self.events.pop_front(),
        }
    }

    /// When [`poll`](Log::poll) has something to do even if nothing happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        if matches!(self.phase, Phase::Retiring | Phase::Stopped | Phase::Poisoned) {
            // What was planned before, such as the next read of a compaction, is not done any more: its time is nobody's business.
            return None;
        }
        let batch = match &self.open {
            // With both flight slots taken it goes on at the next completion.
            Some(open) if !open.is_empty() && self.commit.may_send(open.slot) => open.ride_until,
            _ => None,
        };
        let witness = self.idle_since.map(|since| since + WITNESS_AFTER);
        // What waits for an operation goes on when that completes, whatever its time.
        let supply = self.supply.deadline().filter(|_| !self.is_outstanding(|purpose| purpose == Purpose::Prepare));
        let compaction = self
            .compaction
            .deadline()
            .filter(|_| self.phase == Phase::Open && !self.is_outstanding(|purpose| purpose == Purpose::Compaction));
        [batch, witness, supply, compaction].into_iter().flatten().min()
    }

    /// Nothing is promised any more: for a failure that another log of the same spool met. Events tell it as for an own failure.
    pub fn poison(&mut self, reason: PoisonReason) {
        if self.phase != Phase::Poisoned {
            self.phase = Phase::Poisoned;
            self.events.push_back(Event::Poisoned(reason));
        }
    }

    /// No more appends: what was appended gets durable and witnessed, then [`Event::Stopped`].
    pub fn stop(&mut self) {
        match self.phase {
            Phase::Open => self.phase = Phase::Stopping,
            Phase::Recovering => {
                self.phase = Phase::Stopped;
                self.events.push_back(Event::Stopped);
            }
            _ => (),
        }
    }

    /// Everything up to this ticket is durable.
    pub fn acknowledged(&self) -> Ticket {
        self.commit.acknowledged()
    }

    /// Whether older segments are still being read, see [`Event::Loaded`].
    pub fn is_loading(&self) -> bool {
        self.recovery.is_some()
    }

    /// The files of which this start could not read something, after [`Event::Loaded`]. The driver keeps this for the next start: without
    /// it, that one can't tell how old they are, and keeps for their sake what has come since.
    pub fn doubts(&self) -> impl Iterator<Item = (SegmentFile, Doubt)> {
        self.segments.doubts(self.config.boot)
    }

    /// Unsettled messages, open uploads included, and those whose message record this start could not read.
    pub fn messages(&self) -> usize {
        self.index.len()
    }

    /// Whether no message is left in the log, and none can still need what it holds: an adopted log may be retired.
    pub fn is_empty(&self) -> bool {
        self.recovery.is_none()
            && self.index.len() == 0
            && self.commit.in_flight() == 0
            && self.open.as_ref().is_none_or(OpenBatch::is_empty)
    }

    /// The operation with a fresh id.
    pub(crate) fn op(&mut self, purpose: Purpose, kind: OpKind<H::Buffer>) -> Op<H::Buffer> {
        let id = OpId(self.next_op);
        self.next_op += 1;
        self.outstanding.push((id, purpose));
        Op { id, kind }
    }

    /// Whether an operation for this purpose is under way.
    pub(crate) fn is_outstanding(&self, wanted: impl Fn(Purpose) -> bool) -> bool {
        self.outstanding.iter().any(|&(_, purpose)| wanted(purpose))
    }

    /// A generation for the next use of a segment.
    pub(crate) fn new_generation(&mut self, number: u64) -> Generation {
        let random = self.host.random();
        Generation(if self.config.controls().generation_guessable { number } else { random })
    }

    /// How long outcomes wait for company.
    pub(crate) fn ride_until(&self, now: Instant) -> Instant {
        now + if self.reserve { RIDE_IN_RESERVE_MAX } else { RIDE_MAX }
    }

    fn batch_op(&mut self, now: Instant) -> Option<Op<H::Buffer>> {
        self.witness_if_idle(now);
        let stopping = self.phase == Phase::Stopping;
        let due = self
            .open
            .as_ref()
            .is_some_and(|open| !open.is_empty() && (open.urgent || stopping || open.ride_until.is_none_or(|until| until <= now)));
        if !due {
            if stopping && self.commit.in_flight() == 0 && self.open.as_ref().is_none_or(OpenBatch::is_empty) {
                self.phase = Phase::Stopped;
                self.events.push_back(Event::Stopped);
            }
            return None;
        }
        let slot = self.open.as_ref().expect("it was just seen").slot;
        if !self.commit.may_send(slot) {
            return None;
        }
        let open = self.open.take().expect("it was just seen");
        let (offset, is_witness, ticket) = (open.offset, open.is_witness, self.commit.next());
        let sealed = open.seal(Chained {
            number: self.segments.get(slot).number,
            boot: self.config.boot,
            sequence: ticket.0,
            durable_upto: self.commit.acknowledged().0,
            previous_check: self.commit.chain(),
        });
        let segment = self.segments.get_mut(slot);
        segment.used = offset + sealed.bytes as u32;
        segment.last = ticket;
        self.idle_since = None;
        let (file, bytes) = (segment.file, sealed.bytes);
        let kind =
            OpKind::WriteSynced { file, temporary: false, offset: u64::from(offset), buffer: sealed.buffer, bytes, batch: Some(ticket) };
        let op = self.op(Purpose::Batch { bytes }, kind);
        self.commit.sent(op.id, slot, sealed.check, is_witness);
        if self.config.controls().ack_before_sync {
            self.events.push_back(Event::Acknowledged(ticket));
        }
        Some(op)
    }

    fn witness_if_idle(&mut self, now: Instant) {
        let quiet = self.open.as_ref().is_none_or(OpenBatch::is_empty) && self.commit.in_flight() == 0;
        if !quiet || !self.commit.lacks_witness() || !matches!(self.phase, Phase::Open | Phase::Stopping) {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        if self.phase == Phase::Stopping || now >= since + WITNESS_AFTER {
            self.idle_since = None;
            // Without room for it the log goes on unwitnessed: it is a proof, not a promise.
            if self.append_witness(now).is_err() {
                self.commit.give_up_witness();
            }
        }
    }

    fn batch_completed(&mut self, id: OpId, bytes: usize, result: &OpResult<H::Buffer>, now: Instant) {
        if let Err(reason) = check_write(result, bytes) {
            return self.poison(reason);
        }
        if !self.commit.landed(id) {
            return;
        }
        let acknowledged = self.commit.acknowledged();
        if !self.config.controls().ack_before_sync {
            self.events.push_back(Event::Acknowledged(acknowledged));
        }
        while self.releases.front().is_some_and(|&(ticket, _)| ticket <= acknowledged) {
            let (_, release) = self.releases.pop_front().expect("the front was just seen");
            self.release(release);
        }
        // The last batch of a segment that was left may be what kept it.
        self.is_changed |= self.commit.in_flight() == 0;
        if self.commit.in_flight() == 0 && self.commit.lacks_witness() {
            self.idle_since = Some(now);
        }
    }
}

/// Whether a write linked to its flush did all it should.
pub(crate) fn check_write<B>(result: &OpResult<B>, expected: usize) -> Result<(), PoisonReason> {
    let OpResult::WriteSynced { write, sync } = *result else { panic!("the answer to a synced write") };
    if write != expected as i64 {
        return Err(PoisonReason::Write { expected, result: write });
    }
    if sync != 0 {
        return Err(PoisonReason::Flush { result: sync });
    }
    Ok(())
}
