//! Carrying live records out of a segment that holds few of them, so that it can be freed.
//!
//! The segment is read front to back; whether a record counts is decided when it is appended, not when it is read, because outcomes
//! and settled records arrive in between. The old record counts until its copy is acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::append::{AppendError, Asks};
use crate::batch::{BLOCK_BYTES, Ticket};
use crate::check::u64_at;
use crate::event::{Damage, Event};
use crate::fetch::{Fetch, Unreadable};
use crate::index::{MessageState, PieceKind, Place};
use crate::log::{Log, Purpose};
use crate::op::{BatchBuffer, Host, Op, OpKind, OpResult};
use crate::record::{HOMES_MAX, RecordHeader, RecordKind};
use crate::release::Release;
use crate::scan::{Scan, ScanOf, Step, Window};
use crate::seal::Seal;
use crate::segment::FIRST_BATCH;
use crate::segments::{RESERVE_SEGMENTS, Segment, SegmentState};

/// When a read found no buffer it is tried again after this.
const BUFFER_RETRY: Duration = Duration::from_millis(10);

/// A record that was read and waits for room.
struct Waiting {
    header: RecordHeader,
    place: Place,
    body: std::ops::Range<usize>,
}

/// The segment that is being emptied.
struct Victim<B> {
    slot: u32,
    scan: Scan,
    held: Option<B>,
    held_at: u32,
    held_bytes: usize,
    /// What the scan needs next: offset, bytes.
    wanted: Option<(u32, u32)>,
    /// How far that has come, and what can't be read.
    fetch: Option<Fetch>,
    unreadable: Unreadable,
    waiting: VecDeque<Waiting>,
    /// Everything was copied; over when this is acknowledged.
    until: Option<Ticket>,
}

/// What compaction is about, and its pace.
pub(crate) struct Compaction<B> {
    victim: Option<Victim<B>>,
    read_at: Instant,
    carried: Carried,
}

/// Records that compaction has carried forward in this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Outcomes and settled records.
    pub outcomes: u64,
    /// Messages, chunks and seals.
    pub others: u64,
    /// Bytes of all their bodies.
    pub bytes: u64,
}

impl<B: BatchBuffer> Compaction<B> {
    pub(crate) fn new(now: Instant) -> Self {
        Compaction { victim: None, read_at: now, carried: Carried::default() }
    }

    pub(crate) fn is_about(&self, slot: u32) -> bool {
        self.victim.as_ref().is_some_and(|victim| victim.slot == slot)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.victim.as_ref().is_some_and(|victim| victim.wanted.is_some()).then_some(self.read_at)
    }
}

impl<H: Host> Log<H> {
    pub(crate) fn compaction_op(&mut self, now: Instant) -> Option<Op<H::Buffer>> {
        if self.check_open().is_err() || self.is_outstanding(|purpose| purpose == Purpose::Compaction) {
            return None;
        }
        let mut victim = self.compaction.victim.take().or_else(|| self.choose_victim(now))?;
        loop {
            if victim.until.is_none() {
                self.carry(&mut victim, now);
            }
            // Nothing may have been copied: then no completion is to come that would bring one back here.
            if victim.until.is_some_and(|until| self.commit.acknowledged() >= until) {
                self.end_compaction(&victim);
                return None;
            }
            let wanted = victim.wanted.is_some();
            let op = self.read_victim(&mut victim, now);
            // All of what was wanted is known to be unreadable: it is at hand, as zeros.
            if op.is_none() && wanted && victim.wanted.is_none() {
                continue;
            }
            self.compaction.victim = Some(victim);
            return op;
        }
    }

    /// The copies out of the segment are acknowledged.
    fn end_compaction(&mut self, victim: &Victim<H::Buffer>) {
        self.is_changed = true;
        self.tell_unreadable(victim.slot, &victim.unreadable);
        let segment = self.segments.get_mut(victim.slot);
        // What still counts in it couldn't be read: it stays as it is until that is settled.
        segment.stuck = !segment.is_dead();
        if segment.stuck {
            let file = segment.file;
            self.events.push_back(Event::NotEmptied { file });
        }
    }

    pub(crate) fn compaction_completed(&mut self, result: OpResult<H::Buffer>) {
        let OpResult::Read { mut buffer, result } = result else { panic!("the answer to a read") };
        let Some(mut victim) = self.compaction.victim.take() else { return };
        let fetch = victim.fetch.as_mut().expect("a read was under way");
        fetch.completed(buffer.bytes_mut(), result, &mut victim.unreadable);
        if fetch.next(buffer.bytes_mut(), &mut victim.unreadable).is_none() {
            (victim.held_at, victim.held_bytes) = (fetch.at(), fetch.bytes());
            (victim.fetch, victim.wanted) = (None, None);
        }
        victim.held = Some(buffer);
        if self.config.controls().stale_compaction {
            while victim.wanted.is_none() && self.next_waiting(&mut victim) && victim.wanted.is_none() {}
        }
        self.compaction.victim = Some(victim);
    }

    /// The segment to empty next, if one is worth it: under a quarter of it counts, or space is wanted.
    fn choose_victim(&mut self, now: Instant) -> Option<Victim<H::Buffer>> {
        let wanted = self.reserve || (self.segments.coming_count() <= RESERVE_SEGMENTS && !self.can_prepare(now));
        if !std::mem::take(&mut self.is_changed) && !wanted {
            return None;
        }
        let (slot, segment) = self.lightest(wanted)?;
        let scan = Scan::new(ScanOf {
            generation: segment.generation,
            number: segment.number,
            end: segment.used,
            all_acknowledged: true,
            boot: None,
            witnesses: Default::default(),
            next_first: None,
            read_bytes: self.config.read_bytes,
            check_bodies: !self.config.controls().crc_unchecked,
            later_boots: self.config.controls().append_after_restart,
        });
        let unreadable = Unreadable::new(segment.used);
        Some(Victim {
            slot,
            scan,
            held: None,
            held_at: 0,
            held_bytes: 0,
            wanted: None,
            fetch: None,
            unreadable,
            waiting: VecDeque::new(),
            until: None,
        })
    }

    /// The segment that is emptied with the least work, of those with which it is worth while: when space is `wanted`, if it gives back a
    /// quarter of its length, used or not.
    ///
    /// What counts must then fit into what is free now: an old segment may be longer than those of the present settings.
    fn lightest(&self, wanted: bool) -> Option<(u32, &Segment)> {
        let acknowledged = self.commit.acknowledged();
        let fits = |weight| {
            let (copies, left) = (self.span_of_copies(weight), u64::from(self.segments.left()));
            // A record that does not fit any more goes into the next segment.
            let usable_of_left = left.saturating_sub(u64::from(self.config.batch_bytes));
            let usable = u64::from(self.config.segment_bytes - FIRST_BATCH);
            copies <= left || copies <= usable_of_left + self.segments.free_count() as u64 * usable
        };
        let worth = |segment: &Segment| {
            if segment.state != SegmentState::Full || segment.stuck || segment.is_dead() || segment.last > acknowledged {
                return false;
            }
            let weight = segment.weight();
            if wanted {
                weight * 4 <= u64::from(segment.bytes - FIRST_BATCH) * 3 && fits(weight)
            } else {
                weight * 4 < u64::from(segment.used - FIRST_BATCH)
            }
        };
        let slots = self.segments.slots.iter().enumerate().filter(|(_, segment)| worth(segment));
        let (slot, segment) = slots.min_by_key(|(_, segment)| segment.weight())?;
        Some((slot as u32, segment))
    }

    /// Bytes that copies of records of this `weight` take, in batches that are half full at least, each with its header and padded.
    fn span_of_copies(&self, weight: u64) -> u64 {
        let batches = 2 * weight / u64::from(self.config.batch_bytes) + 1;
        weight + batches * BLOCK_BYTES as u64
    }

    /// Whether a segment is being emptied or could be.
    pub(crate) fn may_gain_by_compaction(&self) -> bool {
        self.compaction.victim.is_some() || self.lightest(true).is_some()
    }

    /// Whether what counts in the segment that is being emptied is still being copied.
    pub(crate) fn is_compacting(&self) -> bool {
        self.compaction.victim.as_ref().is_some_and(|victim| victim.until.is_none())
    }

    /// With none free, what is left of the active segment is for the copies that compaction has begun to write: it is they that free one.
    pub(crate) fn is_kept_for_compaction(&self, needed: u32) -> bool {
        if self.segments.free_count() > 0 {
            return false;
        }
        let Some(victim) = self.compaction.victim.as_ref().filter(|victim| victim.until.is_none()) else { return false };
        self.span_of_copies(self.segments.get(victim.slot).weight()) > u64::from(self.segments.left().saturating_sub(needed))
    }

    /// Appends what counts of what was read, as long as there is room.
    fn carry(&mut self, victim: &mut Victim<H::Buffer>, now: Instant) {
        loop {
            if let Some(record) = victim.waiting.front() {
                let held = victim.held.as_ref().expect("the record stands in it");
                let body = &held.bytes()[record.body.clone()];
                if self.carry_record(record.header, record.place, body, now).is_err() {
                    return;
                }
                victim.waiting.pop_front();
            } else if victim.wanted.is_some() || victim.until.is_some() || !self.next_waiting(victim) {
                return;
            }
        }
    }

    /// Takes the next step of reading. Returns whether there may be more to take.
    fn next_waiting(&mut self, victim: &mut Victim<H::Buffer>) -> bool {
        let bytes = victim.held.as_ref().map_or(&[][..], |held| &held.bytes()[..victim.held_bytes]);
        match victim.scan.step(Window { at: victim.held_at, bytes }) {
            Step::Read { offset, bytes } => victim.wanted = Some((offset, bytes)),
            Step::Batch { .. } => (),
            Step::Record { header, offset, body, .. } => {
                let place = Place { slot: victim.slot, offset, body_bytes: header.body_bytes };
                if !self.config.controls().stale_compaction || self.counts(&header, place) {
                    victim.waiting.push_back(Waiting { header, place, body });
                }
            }
            Step::Damaged { offset, bytes, kind } => {
                let file = self.segments.get(victim.slot).file;
                self.events.push_back(Event::Damaged(Damage { file, offset: offset.into(), bytes: bytes.into(), kind }));
            }
            Step::Done => {
                let gathering = self.open.as_ref().is_some_and(|open| !open.is_empty());
                let next = self.commit.next();
                victim.until = Some(if gathering { next } else { Ticket(next.0 - 1) });
                return false;
            }
        }
        true
    }

    fn read_victim(&mut self, victim: &mut Victim<H::Buffer>, now: Instant) -> Option<Op<H::Buffer>> {
        let (offset, needed) = victim.wanted?;
        if now < self.compaction.read_at && !self.reserve {
            return None;
        }
        let mut buffer = match victim.held.take() {
            Some(buffer) => buffer,
            None => match self.host.take_buffer(self.config.read_bytes as usize) {
                Some(buffer) => buffer,
                None => {
                    // Nobody tells when there is memory again.
                    self.compaction.read_at = now + BUFFER_RETRY;
                    return None;
                }
            },
        };
        victim.held_bytes = 0;
        let segment = self.segments.get(victim.slot);
        let most = self.config.read_bytes.max(needed).min(segment.used - offset);
        let fetch = victim.fetch.get_or_insert_with(|| Fetch::new(offset, needed, most, &victim.unreadable));
        let Some((offset, bytes)) = fetch.next(buffer.bytes_mut(), &mut victim.unreadable) else {
            (victim.held_at, victim.held_bytes) = (fetch.at(), fetch.bytes());
            (victim.held, victim.fetch, victim.wanted) = (Some(buffer), None, None);
            return None;
        };
        let bytes = bytes as usize;
        let nanos = bytes as u64 * 1_000_000_000 / self.config.compact_bytes_per_s.max(1);
        self.compaction.read_at = now + Duration::from_nanos(nanos);
        let kind = OpKind::Read { file: segment.file, offset: u64::from(offset), buffer, bytes };
        Some(self.op(Purpose::Compaction, kind))
    }

    /// What compaction has carried forward since the start.
    pub fn carried(&self) -> Carried {
        self.compaction.carried
    }

    fn count_carried(&mut self, kind: RecordKind, bytes: usize) {
        let carried = &mut self.compaction.carried;
        match kind {
            RecordKind::Outcome | RecordKind::Settled => carried.outcomes += 1,
            _ => carried.others += 1,
        }
        carried.bytes += bytes as u64;
    }

    /// Whether this very record still counts.
    fn counts(&mut self, header: &RecordHeader, place: Place) -> bool {
        let found = self.index.find(header.id);
        match header.kind {
            RecordKind::Message => found.is_some_and(|at| {
                let message = self.index.message(at);
                message.state == MessageState::Committed && message.place == place
            }),
            RecordKind::Chunk => {
                found.and_then(|at| self.index.piece_mut(at, PieceKind::Chunk, header.index)).is_some_and(|p| p.place == place)
            }
            RecordKind::Outcome => {
                found.and_then(|at| self.index.piece_mut(at, PieceKind::Outcome, header.index)).is_some_and(|p| p.place == place)
            }
            RecordKind::Settled | RecordKind::Seal => true,
            RecordKind::Witness => false,
        }
    }

    fn carry_record(&mut self, header: RecordHeader, place: Place, body: &[u8], now: Instant) -> Result<(), AppendError> {
        let is_stale = self.config.controls().stale_compaction;
        if !is_stale && !self.counts(&header, place) {
            return Ok(());
        }
        match header.kind {
            RecordKind::Message => self.carry_message(header, place, body, now),
            RecordKind::Chunk | RecordKind::Outcome => {
                let kind = if header.kind == RecordKind::Chunk { PieceKind::Chunk } else { PieceKind::Outcome };
                let new = self.append_small(header, &[body], Asks::Relief, now)?;
                self.count_carried(header.kind, body.len());
                self.hold_piece(kind, new);
                self.release_later(Release::MovedPiece { id: header.id, kind, key: header.index, from: place, to: new });
                Ok(())
            }
            RecordKind::Settled => self.carry_settled(header, place.slot, body, now),
            RecordKind::Seal => self.carry_seal(place.slot, body, now),
            RecordKind::Witness => Ok(()),
        }
    }

    fn carry_message(&mut self, header: RecordHeader, place: Place, body: &[u8], now: Instant) -> Result<(), AppendError> {
        let Some(at) = self.index.find(header.id) else {
            // Only where a control of the tests doesn't look: the message was settled since it was read.
            return self.append_small(header, &[body], Asks::Relief, now).map(|_| ());
        };
        let found: Vec<u32> = self.index.pieces(at).filter(|piece| self.use_of_copy(piece).is_some()).map(|piece| piece.key).collect();
        self.index.retain_pieces(at, |piece| piece.kind != PieceKind::Copy || found.contains(&piece.key));
        if found.len() + 2 > HOMES_MAX {
            // A settled record couldn't name all of its homes: this segment keeps the message.
            return Ok(());
        }
        let new = self.append_small(header, &[body], Asks::Relief, now)?;
        self.count_carried(header.kind, body.len());
        let number = self.segments.get(new.slot).number;
        self.segments.get_mut(new.slot).hold(new.body_bytes);
        // Until it is acknowledged the message is read where it was; but a settled record has to know of the copy at once.
        self.index.add_piece(at, PieceKind::Copy, number as u32, new, 0);
        self.release_later(Release::MovedMessage { id: header.id, from: place, to: new });
        Ok(())
    }

    fn carry_settled(&mut self, header: RecordHeader, slot: u32, body: &[u8], now: Instant) -> Result<(), AppendError> {
        let number = self.segments.get(slot).number;
        let (mut homes, mut count) = ([0; HOMES_MAX], 0);
        let named = (header.index as usize).min(HOMES_MAX);
        for home in body.chunks_exact(8).take(named).map(|home| u64_at(home, 0)) {
            // A home in the segment that is emptied goes with it.
            if home != number && self.segments.get(slot).is_held_for(home) {
                homes[count] = home;
                count += 1;
            }
        }
        if count == 0 {
            return Ok(());
        }
        let payload = body.get(header.index as usize * 8..).unwrap_or(&[]);
        let new = self.append_settled(header.id, &homes[..count], payload, Asks::Relief, now)?;
        self.count_carried(header.kind, body.len());
        self.hold_settled(new.slot, &homes[..count]);
        for &home in &homes[..count] {
            self.release_later(Release::Settled { slot, number, home });
        }
        Ok(())
    }

    fn carry_seal(&mut self, slot: u32, body: &[u8], now: Instant) -> Result<(), AppendError> {
        let Some(seal) = Seal::decode(body).filter(|seal| self.segments.get(slot).seals_for.contains(&seal.number)) else {
            return Ok(());
        };
        self.append_seal(seal, Asks::Relief, now)?;
        self.count_carried(RecordKind::Seal, body.len());
        let number = self.segments.get(slot).number;
        self.release_later(Release::Seal { slot, number, sealed: seal.number });
        Ok(())
    }
}
