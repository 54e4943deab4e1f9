//! Reading the old log, segment by segment, and going on in a fresh one with the old ends sealed.

use std::time::Instant;

use crate::append::{AppendError, Asks};
use crate::event::{Damage, DamageKind, Event, RecoveryError};
use crate::index::Place;
use crate::load::Found;
use crate::log::{Log, Phase};
use crate::op::{BatchBuffer, Host};
use crate::record::{RecordKind, payload};
use crate::recovery::{Recovery, Stage};
use crate::scan::{Scan, ScanOf, Step};
use crate::seal::Seal;
use crate::segment::FIRST_BATCH;
use crate::segments::SegmentState;

/// A life whose batches up to this one are acknowledged has sealed the ends before it: its seals are in its first batches.
const SEALED_AFTER: u64 = 8;

/// The segment that is read now.
pub(crate) struct Reading {
    pub(crate) slot: u32,
    scan: Scan,
    is_sealed: bool,
    /// What the scan needs next: offset, bytes.
    pub(crate) wanted: Option<(u32, u32)>,
}

/// Where the log of one boot ends.
#[derive(Clone, Copy)]
pub(crate) struct LogEnd {
    sequence: u64,
    slot: u32,
    check: Option<u32>,
    is_sealed: bool,
}

impl<H: Host> Log<H> {
    /// Reads on in the buffer at hand until something is found that the driver wants to know.
    pub(crate) fn recovery_step(&mut self) -> Option<Found> {
        let mut recovery = self.recovery.take()?;
        let found = match recovery.stage {
            Stage::Scan => self.read_on(&mut recovery),
            _ => Ok(None),
        };
        match found {
            Ok(found) => {
                self.recovery = Some(recovery);
                found
            }
            Err(error) => {
                self.refuse(error);
                None
            }
        }
    }

    /// The event for what `recovery_step` found.
    pub(crate) fn found_event(&self, Found { header, body }: Found) -> Event<'_> {
        let recovery = self.recovery.as_ref().expect("something was just found");
        let payload = payload(&header, &recovery.window().bytes[body]);
        match header.kind {
            RecordKind::Message => Event::Found { id: header.id, chunks: header.index, payload },
            RecordKind::Outcome => Event::FoundOutcome { id: header.id, index: header.index, payload },
            _ => Event::FoundSettled { id: header.id },
        }
    }

    pub(crate) fn read_on(&mut self, recovery: &mut Recovery<H::Buffer>) -> Result<Option<Found>, RecoveryError> {
        loop {
            let Some(mut reading) = recovery.reading.take() else {
                if !recovery.may_open && self.knows_ends(recovery) {
                    self.allow_opening(recovery)?;
                }
                let Some(&slot) = recovery.order.get(recovery.next) else {
                    self.finish_reading(recovery)?;
                    return Ok(None);
                };
                recovery.next += 1;
                recovery.reading = Some(self.begin_reading(recovery, slot));
                continue;
            };
            if reading.wanted.is_some() {
                recovery.reading = Some(reading);
                return Ok(None);
            }
            let file = self.segments.get(reading.slot).file;
            let mut found = None;
            match reading.scan.step(recovery.window()) {
                Step::Read { offset, bytes } => reading.wanted = Some((offset, bytes)),
                Step::Batch { position } => self.place_segment(reading.slot, position),
                Step::Record { header, offset, body, rescued } => {
                    recovery.report.records += 1;
                    recovery.report.rescued_records += u64::from(rescued);
                    let held = recovery.held.as_ref().expect("the record stands in it");
                    let bytes = &held.buffer.bytes()[body.clone()];
                    if header.kind == RecordKind::Seal {
                        self.take_seal(&mut recovery.seals, reading.slot, bytes);
                    } else {
                        let place = Place { slot: reading.slot, offset, body_bytes: header.body_bytes };
                        found = self.load(&mut recovery.known, &header, place, bytes).then_some(Found { header, body });
                    }
                }
                Step::Damaged { offset, bytes, kind } => {
                    if let Some(position) = reading.scan.next_position() {
                        self.place_segment(reading.slot, position);
                    }
                    recovery.report.quarantined += u64::from(kind == DamageKind::Quarantined);
                    let (offset, bytes) = (u64::from(offset), u64::from(bytes));
                    self.events.push_back(Event::Damaged(Damage { file, offset, bytes, kind }));
                }
                Step::Done => {
                    self.finish_segment(recovery, &reading);
                    continue;
                }
            }
            recovery.reading = Some(reading);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn begin_reading(&self, recovery: &mut Recovery<H::Buffer>, slot: u32) -> Reading {
        self.begin_file(recovery, slot);
        let segment = self.segments.get(slot);
        let seals = recovery.seals.iter().filter(|seal| seal.number == segment.number && seal.generation == segment.generation);
        // Several seals of one end: the lowest counts, so that sealing again never brings back what was sealed away.
        let sealed = seals.min_by_key(|seal| seal.end);
        recovery.report.seals += u64::from(sealed.is_some());
        let scan = Scan::new(ScanOf {
            generation: segment.generation,
            number: segment.number,
            end: sealed.map_or(segment.bytes, |seal| seal.end.min(segment.bytes)),
            all_acknowledged: sealed.is_some(),
            boot: sealed.map(|seal| seal.last.0).filter(|&boot| boot > 0),
            witnesses: recovery.witnessed.clone(),
            next_first: recovery.firsts.get(&(segment.number + 1)).copied(),
            read_bytes: self.config.read_bytes,
            check_bodies: !self.config.controls().crc_unchecked,
            later_boots: self.config.controls().append_after_restart,
        });
        Reading { slot, scan, is_sealed: sealed.is_some(), wanted: None }
    }

    /// The log position of the first batch met in a segment orders its records among those of others.
    fn place_segment(&mut self, slot: u32, position: (u64, u64)) {
        let segment = self.segments.get_mut(slot);
        if segment.first == (0, 0) {
            segment.first = position;
        }
    }

    fn take_seal(&mut self, seals: &mut Vec<Seal>, slot: u32, body: &[u8]) {
        let Some(seal) = Seal::decode(body) else { return };
        let stands = self.segments.slots.iter().any(|segment| segment.number == seal.number && segment.generation == seal.generation);
        if stands || self.segments.may_be_unknown(seal.number) {
            self.segments.get_mut(slot).seals_for.push(seal.number);
            seals.push(seal);
        }
    }

    fn finish_segment(&mut self, recovery: &mut Recovery<H::Buffer>, reading: &Reading) {
        let (scan, slot) = (&reading.scan, reading.slot);
        self.tell_unreadable(slot, &recovery.unreadable);
        recovery.report.batches += scan.batches;
        recovery.report.torn_before_valid += scan.torn_before_valid;
        recovery.report.stale_generations += scan.stale_generations;
        recovery.report.tails_dropped += scan.tails_dropped;
        if let Some((boot, sequence)) = scan.last() {
            recovery.witness(boot, scan.witnessed());
            let end = recovery.ends.entry(boot).or_insert(LogEnd { sequence: 0, slot, check: None, is_sealed: false });
            if end.sequence < sequence {
                *end = LogEnd { sequence, slot, check: scan.chain(), is_sealed: reading.is_sealed };
            }
        }
        let segment = self.segments.get_mut(slot);
        segment.used = scan.log_end();
        let is_blank = segment.used == FIRST_BATCH;
        // What could not be read may hold what was acknowledged, beyond the end that was found: this start neither uses the segment again
        // nor seals its end, and the next one looks again.
        let failed = segment.stuck || !recovery.unreadable.is_empty();
        if !recovery.unreadable.is_empty() {
            // All of a use is of one life. One that was met by its header alone, as what was written ahead is, may be of any.
            let life = scan.last().or(recovery.firsts.get(&segment.number).copied()).map(|position| position.0);
            let upto = life.unwrap_or_else(|| segment.newest_life(self.config.boot));
            segment.unread_upto = segment.unread_upto.max(Some(upto));
        }
        segment.state = if is_blank && !failed { SegmentState::Blank } else { SegmentState::Full };
        recovery.report.blank_segments += u64::from(is_blank);
        if failed {
            segment.stuck = true;
            segment.pins += 1;
        }
        if recovery.may_open {
            // Older than the life before: its end was sealed then, or it was left for another.
            if segment.state == SegmentState::Blank {
                self.segments.blank.push_back(slot);
            }
            return;
        }
        if !reading.is_sealed && !failed && segment.number > 0 {
            let last = scan.last().unwrap_or((0, 0));
            recovery.seals_wanted.push(Seal { number: segment.number, generation: segment.generation, last, end: segment.used });
        }
    }

    /// Whether the segments read so far hold all ends that have no seal: the newest life got so far that its own seals are acknowledged.
    fn knows_ends(&self, recovery: &Recovery<H::Buffer>) -> bool {
        let newest = recovery.ends.keys().max();
        newest.is_some_and(|boot| recovery.witnessed.get(boot).is_some_and(|&upto| upto >= SEALED_AFTER))
    }

    /// The write side may open, with a seal for each of these ends.
    fn allow_opening(&mut self, recovery: &mut Recovery<H::Buffer>) -> Result<(), RecoveryError> {
        let met = recovery.firsts.values().map(|first| first.0).chain(recovery.ends.keys().copied());
        let newest = met.max().unwrap_or(0);
        if newest >= self.config.boot {
            return Err(RecoveryError::BootNotNewer { boot: newest });
        }
        recovery.may_open = true;
        let ends = &recovery.ends;
        // A segment that was left for another is complete: its end needs no seal.
        recovery.seals_wanted.retain(|seal| ends.get(&seal.last.0).is_none_or(|end| end.sequence == seal.last.1));
        let mut blank: Vec<u32> =
            (0..self.segments.slots.len() as u32).filter(|&slot| self.segments.get(slot).state == SegmentState::Blank).collect();
        blank.sort_by_key(|&slot| self.segments.get(slot).number);
        self.segments.blank.extend(blank);
        Ok(())
    }

    fn finish_reading(&mut self, recovery: &mut Recovery<H::Buffer>) -> Result<(), RecoveryError> {
        if !recovery.may_open {
            self.allow_opening(recovery)?;
        }
        self.finish_loading(&recovery.known, &mut recovery.report);
        recovery.known = Default::default();
        recovery.held = None;
        let unwitnessed = recovery
            .ends
            .iter()
            .filter(|(boot, end)| !end.is_sealed && recovery.witnessed.get(boot).is_none_or(|&upto| upto < end.sequence));
        recovery.report.tails_without_witness = unwitnessed.count() as u64;
        recovery.begin(Stage::Finish);
        Ok(())
    }

    /// Goes on in a free segment, if there is one; the ends of the old log are sealed there before anything else.
    pub(crate) fn open_write_side(&mut self, recovery: &mut Recovery<H::Buffer>, now: Instant) {
        if self.config.controls().append_after_restart {
            self.resume(recovery);
        }
        if self.segments.active.is_none() && self.activate(Asks::Start, now).is_err() {
            if self.segments.coming_count() == 0 && matches!(recovery.stage, Stage::Finish) {
                self.reclaim_seals(recovery);
            }
            return;
        }
        while let Some(&seal) = recovery.seals_wanted.last() {
            if !self.holds_use(seal.number) && !self.segments.may_be_unknown(seal.number) {
                recovery.seals_wanted.pop();
                continue;
            }
            match self.append_seal(seal, Asks::Bookkeeping, now) {
                Ok(()) => recovery.seals_wanted.pop(),
                Err(AppendError::Full | AppendError::NoSpace) => return,
                Err(error) => unreachable!("a seal is small: {error}"),
            };
        }
        if let Some(open) = &mut self.open {
            open.urgent = true;
        }
        (self.phase, self.lacks_segment) = (Phase::Open, false);
        self.events.push_back(Event::Opened);
    }

    /// No segment is left to go on in: those that hold nothing but seals are used again, and the ends sealed anew.
    ///
    /// Nothing that counts was written by the lives that wrote them, so whoever recovers in between finds the same ends.
    fn reclaim_seals(&mut self, recovery: &mut Recovery<H::Buffer>) {
        for slot in 0..self.segments.slots.len() as u32 {
            let segment = self.segments.get_mut(slot);
            let only_seals = segment.live == 0 && segment.held_for.is_empty();
            if segment.state == SegmentState::Full && only_seals && segment.pins == 0 {
                let sealed = std::mem::take(&mut segment.seals_for);
                segment.state = SegmentState::Blank;
                recovery.seals_wanted.extend(recovery.seals.iter().filter(|seal| sealed.contains(&seal.number)));
                self.segments.blank.push_back(slot);
            }
        }
    }

    /// A control of the tests: goes on where the old log ended.
    fn resume(&mut self, recovery: &mut Recovery<H::Buffer>) {
        let newest = recovery.ends.iter().max_by_key(|(boot, _)| **boot).map(|(_, end)| *end);
        if let Some(end) = newest.filter(|_| self.segments.active.is_none()) {
            self.segments.get_mut(end.slot).state = SegmentState::Active;
            self.segments.active = Some(end.slot);
            self.commit.resume(end.check.unwrap_or(0));
            recovery.seals_wanted.clear();
        }
    }
}
