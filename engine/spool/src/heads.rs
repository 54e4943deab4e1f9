//! What tells which use a segment is in: its two headers and the front of its first batch, or, where these can't be read, its batches.

use crate::batch::{BLOCK_BYTES, BatchHeader};
use crate::event::{Damage, DamageKind, Event, RecoveryError};
use crate::fetch::Unreadable;
use crate::log::Log;
use crate::op::{BatchBuffer, Host};
use crate::recovery::{Recovery, Stage};
use crate::search::Searched;
use crate::segment::{FIRST_BATCH, HeaderFault, SegmentHeader};
use crate::segments::{Segment, SegmentState};

/// A segment whose head doesn't tell its use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Headless {
    pub(crate) slot: u32,
    /// A header had stood there.
    had_header: bool,
    /// Number of a use that it is in, or in a later one.
    at_least: u64,
}

impl<H: Host> Log<H> {
    /// A head that was refused in one piece is at hand, as far as it can be read.
    pub(crate) fn take_head_again(&mut self, recovery: &mut Recovery<H::Buffer>, slot: u32) -> Result<(), RecoveryError> {
        let (held, unreadable) = (recovery.held.take().expect("the head was just read"), std::mem::take(&mut recovery.unreadable));
        recovery.stage = Stage::Heads;
        self.tell_unreadable(slot, &unreadable);
        self.take_head(recovery, slot, &held.buffer.bytes()[..held.bytes], &unreadable)?;
        recovery.held = Some(held);
        Ok(())
    }

    /// `head`: zeros where it is `unreadable`.
    pub(crate) fn take_head(
        &mut self,
        recovery: &mut Recovery<H::Buffer>,
        slot: u32,
        head: &[u8],
        unreadable: &Unreadable,
    ) -> Result<(), RecoveryError> {
        let file = self.segments.get(slot).file;
        let first = head.get(FIRST_BATCH as usize..).and_then(BatchHeader::decode).map(|(header, _)| header);
        let mut damaged = None;
        let mut present: Option<SegmentHeader> = None;
        let mut is_marked_blank = false;
        for block in 0..2 {
            if unreadable.holds(u32::from(block) * BLOCK_BYTES as u32) {
                damaged = Some(block);
                continue;
            }
            match SegmentHeader::decode(head.get(usize::from(block) * BLOCK_BYTES..).unwrap_or(&[])) {
                Ok(header) if header.spool != self.config.spool || header.shard != self.config.shard => {
                    return Err(RecoveryError::Foreign { file, spool: header.spool, shard: header.shard });
                }
                Ok(header) if header.number == 0 => is_marked_blank = true,
                Ok(header) if present.is_none_or(|known| known.number < header.number) => {
                    present = Some(header);
                    self.segments.get_mut(slot).header_block = block;
                }
                Ok(_) | Err(HeaderFault::Absent) => (),
                Err(HeaderFault::Newer(format)) => return Err(RecoveryError::NewerFormat { file, format }),
                Err(HeaderFault::Unreadable) => damaged = Some(block),
            }
        }
        let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
        if is_marked_blank && present.is_none() && damaged.is_none() {
            // The mark is gone with the first header: nothing was ever written here.
            if unreadable.holds(FIRST_BATCH) {
                self.segments.get_mut(slot).leave();
                return Ok(());
            }
            if head.get(FIRST_BATCH as usize..).is_some_and(is_zero) {
                self.segments.get_mut(slot).state = SegmentState::Blank;
                recovery.report.blank_segments += 1;
                return Ok(());
            }
        }
        let at_least = present.map_or(0, |header| header.number);
        if damaged.is_some() && unreadable.holds(FIRST_BATCH) {
            // What can't be read may be of a later use than the header that can: the other batches tell.
            present = None;
        }
        if let Some(header) = present {
            let segment = self.segments.get_mut(slot);
            (segment.number, segment.generation) = (header.number, header.generation);
            if header.bytes > segment.bytes {
                // Its end would be sealed where the file ends, and what a restore brings back were ignored for ever.
                (segment.stuck, segment.unread_upto) = (true, Some(segment.newest_life(self.config.boot)));
                let (offset, bytes) = (u64::from(segment.bytes), u64::from(header.bytes - segment.bytes));
                self.events.push_back(Event::Damaged(Damage { file, offset, bytes, kind: DamageKind::CutShort }));
            }
            let segment = self.segments.get_mut(slot);
            segment.bytes = segment.bytes.min(header.bytes);
        }
        recovery.report.headers_unreadable += u64::from(damaged.is_some());
        // A header torn while the segment was being freed: then the other one holds. One that went bad later: then there are batches of
        // a later use. No content ever stands at the front of a first batch: its header is ours, or nothing.
        let later = first.filter(|first| present.is_none_or(|present| present.number < first.number));
        if later.is_some() || present.is_none() {
            let block = damaged.unwrap_or(1 - self.segments.get(slot).header_block);
            self.segments.get_mut(slot).header_block = block;
        }
        match later {
            Some(header) => {
                self.tell_lost_header(slot);
                self.adopt_generation(slot, &header);
            }
            None if present.is_none() => recovery.headless.push(Headless { slot, had_header: damaged.is_some(), at_least }),
            None => (),
        }
        // A later use than the one that will be found may stand there: the segment isn't used again in this run.
        self.segments.get_mut(slot).stuck |= first.is_none() && !unreadable.is_empty();
        if let Some(header) = first.filter(|header| header.generation == self.segments.get(slot).generation) {
            recovery.witness(header.boot, header.durable_upto);
            recovery.firsts.insert(header.number, (header.boot, header.sequence));
        }
        Ok(())
    }

    /// The segment that was searched is in the use that its batches prove (S7), or blank, or left as it is.
    pub(crate) fn end_search(&mut self, recovery: &mut Recovery<H::Buffer>, searched: Searched) {
        let Some(Headless { slot, had_header, at_least }) = recovery.headless.pop() else { return };
        recovery.stage = Stage::Heads;
        self.tell_unreadable(slot, &recovery.unreadable);
        let was_read = recovery.unreadable.is_empty() && !self.segments.get(slot).stuck;
        match searched {
            // Zeros in place of both headers, and nothing behind them: a file written in advance, which never had one.
            Searched::Blank if was_read => {
                if had_header {
                    self.tell_lost_header(slot);
                }
                self.segments.get_mut(slot).state = SegmentState::Blank;
                recovery.report.blank_segments += 1;
            }
            Searched::Use(header) if self.is_believed(&header, at_least) => {
                self.tell_lost_header(slot);
                self.adopt_generation(slot, &header);
                let boot = self.config.boot;
                let segment = self.segments.get_mut(slot);
                // One batch of a later use may have stood in front of what was found. It is there yet if it just could not be read.
                (segment.stuck, segment.unknown_use) = (true, !was_read);
                segment.unread_upto = (!was_read).then(|| segment.newest_life(boot));
            }
            _ => self.set_aside(slot),
        }
    }

    fn is_believed(&self, header: &BatchHeader, at_least: u64) -> bool {
        let is_another = |segment: &Segment| segment.number == header.number;
        header.boot < self.config.boot && header.number >= at_least.max(1) && !self.segments.slots.iter().any(is_another)
    }

    /// Nothing of the segment is read in this run, and nothing is written to it.
    pub(crate) fn set_aside(&mut self, slot: u32) {
        let boot = self.config.boot;
        let segment = self.segments.get_mut(slot);
        (segment.unknown_use, segment.unread_upto) = (true, Some(segment.newest_life(boot)));
        segment.leave();
        let damage = Damage { file: segment.file, offset: 0, bytes: u64::from(segment.bytes), kind: DamageKind::Unidentified };
        self.events.push_back(Event::Damaged(damage));
    }

    /// Tells what the pass over a segment that ends here found unreadable.
    pub(crate) fn tell_unreadable(&mut self, slot: u32, unreadable: &Unreadable) {
        let file = self.segments.get(slot).file;
        for stretch in unreadable.stretches() {
            let (offset, bytes) = (u64::from(stretch.start), u64::from(stretch.end - stretch.start));
            self.events.push_back(Event::Damaged(Damage { file, offset, bytes, kind: DamageKind::ReadFailed }));
        }
    }

    fn tell_lost_header(&mut self, slot: u32) {
        let &Segment { file, header_block, .. } = self.segments.get(slot);
        let (offset, bytes) = (u64::from(header_block) * BLOCK_BYTES as u64, BLOCK_BYTES as u64);
        self.events.push_back(Event::Damaged(Damage { file, offset, bytes, kind: DamageKind::SegmentHeader }));
    }

    fn adopt_generation(&mut self, slot: u32, header: &BatchHeader) {
        let segment = self.segments.get_mut(slot);
        (segment.number, segment.generation) = (header.number, header.generation);
    }
}
