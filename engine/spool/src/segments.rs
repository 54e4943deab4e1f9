//! The segments of a log in memory: what each holds, which are free, which one is written to.
//!
//! What keeps a segment from being freed: unsettled messages, chunks and outcomes (`live`), settled records of messages whose record still
//! stands in another segment (`held_for`), and seals of segments that still stand (`seals_for`). What a start could not read may be whatever
//! the rest speaks of: so long as it stands, records about messages and segments that were not met count too.

use std::collections::VecDeque;

use crate::batch::Ticket;
use crate::check::Generation;
use crate::log::Doubt;
use crate::record::record_span;
use crate::seal::SEAL_BYTES;
use crate::segment::{FIRST_BATCH, SegmentFile};

/// Free segments that new mail leaves alone: one for outcomes, the last one for what frees others (settled records, copies by compaction),
/// and for the next start.
pub const RESERVE_SEGMENTS: usize = 2;

/// Where a segment is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SegmentState {
    /// Its file is being made.
    Preparing,
    /// Recovery looks at it.
    Loading,
    /// Nothing in it counts; a new header has to be written.
    Blank,
    /// Its header is synced and nothing was written behind it.
    Free,
    /// Batches are appended.
    Active,
    /// No batch will be appended.
    Full,
    /// The file is gone; the slot is used again.
    Unlinked,
}

/// One segment file and its present use.
pub(crate) struct Segment {
    pub(crate) file: SegmentFile,
    pub(crate) bytes: u32,
    pub(crate) number: u64,
    pub(crate) generation: Generation,
    pub(crate) state: SegmentState,
    /// Which of the two header blocks holds the header of the present use; the next one goes into the other.
    pub(crate) header_block: u8,
    /// Log position (boot, sequence) of its first batch: newer records stand in segments with a greater one.
    pub(crate) first: (u64, u64),
    /// Bytes from the start up to the end of the last batch.
    pub(crate) used: u32,
    /// The last batch of this run in it.
    pub(crate) last: Ticket,
    pub(crate) live: u32,
    pub(crate) live_bytes: u64,
    /// (number of the home's use, settled records here for its sake).
    pub(crate) held_for: Vec<(u64, u32)>,
    /// Numbers of the uses whose end a record here seals.
    pub(crate) seals_for: Vec<u64>,
    /// Readers that hold locations in it.
    pub(crate) pins: u32,
    /// Compaction could not empty it (damage): not tried again in this run.
    pub(crate) stuck: bool,
    /// Something of it could not be read at this start, and may be of lives up to this boot.
    pub(crate) unread_upto: Option<u64>,
    /// Nor is it sure in which use it is: whatever `number` says, it may be in any below `doubt`'s.
    pub(crate) unknown_use: bool,
    /// What is known of it from the starts before that could not read it either.
    pub(crate) doubt: Option<Doubt>,
}

impl Segment {
    pub(crate) fn new(file: SegmentFile, bytes: u32, state: SegmentState) -> Self {
        Segment {
            file,
            bytes,
            number: 0,
            generation: Generation(0),
            state,
            first: (0, 0),
            used: FIRST_BATCH,
            header_block: 1,
            last: Ticket(0),
            live: 0,
            live_bytes: 0,
            held_for: Vec::new(),
            seals_for: Vec::new(),
            pins: 0,
            stuck: false,
            unread_upto: None,
            unknown_use: false,
            doubt: None,
        }
    }

    /// The newest life that can have written to it, if the start `boot` could not read it.
    pub(crate) fn newest_life(&self, boot: u64) -> u64 {
        self.doubt.map_or(boot, |doubt| doubt.since).saturating_sub(1)
    }

    /// Whether a recovery may find records of its present use.
    pub(crate) fn may_be_found(&self) -> bool {
        matches!(self.state, SegmentState::Loading | SegmentState::Blank | SegmentState::Active | SegmentState::Full)
    }

    /// In this run nothing is written to it.
    pub(crate) fn leave(&mut self) {
        (self.state, self.stuck) = (SegmentState::Full, true);
        self.pins += 1;
    }

    /// Whether nothing in it counts any more.
    pub(crate) fn is_dead(&self) -> bool {
        self.live == 0 && self.held_for.is_empty() && self.seals_for.is_empty()
    }

    /// Bytes that compaction would copy.
    pub(crate) fn weight(&self) -> u64 {
        let settled: u64 = self.held_for.iter().map(|&(_, count)| u64::from(count) * record_span(16)).sum();
        self.live_bytes + settled + self.seals_for.len() as u64 * record_span(SEAL_BYTES)
    }

    pub(crate) fn hold(&mut self, body_bytes: u32) {
        self.live += 1;
        self.live_bytes += record_span(body_bytes);
    }

    pub(crate) fn release(&mut self, body_bytes: u32) {
        self.live = self.live.checked_sub(1).expect("what is released was held");
        self.live_bytes -= record_span(body_bytes);
    }

    pub(crate) fn hold_for(&mut self, home: u64) {
        match self.held_for.iter_mut().find(|held| held.0 == home) {
            Some(held) => held.1 += 1,
            None => self.held_for.push((home, 1)),
        }
    }

    pub(crate) fn is_held_for(&self, home: u64) -> bool {
        self.held_for.iter().any(|held| held.0 == home)
    }

    /// One settled record for `home` was carried forward. The home may have been freed since.
    pub(crate) fn release_for(&mut self, home: u64) {
        if let Some(at) = self.held_for.iter().position(|held| held.0 == home) {
            self.held_for[at].1 -= 1;
            if self.held_for[at].1 == 0 {
                self.held_for.swap_remove(at);
            }
        }
    }
}

/// All segments of a log.
pub(crate) struct Segments {
    pub(crate) slots: Vec<Segment>,
    pub(crate) active: Option<u32>,
    /// Records took the active segment, or a start with no more than the reserve, mail did not.
    pub(crate) is_from_reserve: bool,
    /// Nothing in them counts; each gets a new header, one after the other.
    pub(crate) blank: VecDeque<u32>,
    /// The one whose header is being written.
    pub(crate) heading: Option<u32>,
    /// Number of the use that ends with it.
    pub(crate) ending: u64,
    free: Vec<u32>,
    pub(crate) next_number: u64,
    /// Number of the first use that begins in this run.
    pub(crate) first_number: u64,
    pub(crate) next_file: u32,
}

impl Segments {
    pub(crate) fn new() -> Self {
        Segments {
            slots: Vec::new(),
            active: None,
            is_from_reserve: false,
            blank: VecDeque::new(),
            heading: None,
            ending: 0,
            free: Vec::new(),
            next_number: 1,
            first_number: 1,
            next_file: 1,
        }
    }

    pub(crate) fn get(&self, slot: u32) -> &Segment {
        &self.slots[slot as usize]
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut Segment {
        &mut self.slots[slot as usize]
    }

    /// Slots whose file exists, or is being made.
    pub(crate) fn files(&self) -> usize {
        self.slots.iter().filter(|segment| segment.state != SegmentState::Unlinked).count()
    }

    /// Bytes that can still be appended to the active segment.
    pub(crate) fn left(&self) -> u32 {
        self.active.map_or(0, |slot| self.get(slot).bytes - self.get(slot).used)
    }

    /// Whether mail would take of the reserve by what is left of the active segment.
    pub(crate) fn is_kept_from_mail(&self) -> bool {
        self.is_from_reserve && self.free.len() < RESERVE_SEGMENTS
    }

    /// The newest life of which something stands where this start could not read it.
    pub(crate) fn unread_upto(&self) -> Option<u64> {
        self.slots.iter().filter_map(|segment| segment.unread_upto).max()
    }

    /// Whether a later start may find a segment in a use that this one doesn't know.
    pub(crate) fn has_unknown_use(&self) -> bool {
        self.slots.iter().any(|segment| segment.unknown_use)
    }

    /// Whether that may be the use of this number.
    pub(crate) fn may_be_unknown(&self, number: u64) -> bool {
        let may_be = |segment: &Segment| segment.unknown_use && segment.doubt.is_none_or(|doubt| number < doubt.below);
        self.slots.iter().any(may_be)
    }

    /// Numbers of the uses in which something of the life `boot` may stand that this start could not read. Of a segment in an unknown use it is
    /// the last one that it may be in, which nothing else ever has.
    pub(crate) fn unread_uses(&self, boot: u64) -> impl Iterator<Item = u64> {
        let below = |segment: &Segment| segment.doubt.map_or(self.first_number, |doubt| doubt.below);
        let unread = self.slots.iter().filter(move |segment| segment.unread_upto.is_some_and(|upto| boot <= upto));
        unread.map(move |segment| if segment.unknown_use { below(segment) - 1 } else { segment.number })
    }

    /// Segments that could not be read whole at the start `boot`.
    pub(crate) fn doubts(&self, boot: u64) -> impl Iterator<Item = (SegmentFile, Doubt)> {
        // Of a use that is known none comes after it: its segment is not used again before it was read.
        let below = |segment: &Segment| if segment.unknown_use { self.first_number } else { segment.number + 1 };
        let fresh = move |segment: &Segment| Doubt { since: boot, below: below(segment) };
        let unread = self.slots.iter().filter(|segment| segment.unread_upto.is_some());
        unread.map(move |segment| (segment.file, segment.doubt.unwrap_or_else(|| fresh(segment))))
    }

    pub(crate) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Free now or as soon as their header is written.
    pub(crate) fn coming_count(&self) -> usize {
        self.free.len() + self.blank.len() + usize::from(self.heading.is_some())
    }

    /// A slot for a file that is to be made.
    pub(crate) fn add(&mut self, segment: Segment) -> u32 {
        match self.slots.iter().position(|slot| slot.state == SegmentState::Unlinked) {
            Some(slot) => {
                self.slots[slot] = segment;
                slot as u32
            }
            None => {
                self.slots.push(segment);
                self.slots.len() as u32 - 1
            }
        }
    }

    /// The header of `slot` is synced.
    pub(crate) fn set_free(&mut self, slot: u32) {
        self.get_mut(slot).state = SegmentState::Free;
        self.free.push(slot);
    }

    /// The free segment of the lowest number.
    pub(crate) fn take_free(&mut self) -> Option<u32> {
        let at = (0..self.free.len()).min_by_key(|&at| self.get(self.free[at]).number)?;
        Some(self.free.swap_remove(at))
    }

    /// All free segments, which are about to be unlinked.
    pub(crate) fn drain_free(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.free)
    }

    /// The use `number` of a segment is gone durably: what stood elsewhere for its sake counts no more.
    pub(crate) fn use_ended(&mut self, number: u64) {
        for segment in &mut self.slots {
            segment.held_for.retain(|held| held.0 != number);
            segment.seals_for.retain(|&sealed| sealed != number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u64 = 20;

    fn unread(file: u32, number: u64, unknown_use: bool, doubt: Option<Doubt>) -> Segment {
        let segment = Segment::new(SegmentFile(file), 1 << 20, SegmentState::Full);
        Segment { number, unknown_use, doubt, unread_upto: Some(segment.newest_life(7)), ..segment }
    }

    fn segments(slots: Vec<Segment>) -> Segments {
        Segments { slots, first_number: FIRST, next_number: FIRST, ..Segments::new() }
    }

    /// A start that knew the use of a segment, and could not read all of it, left for the next one only that the use was below those of its own. That one
    /// could not read so much as the header, and had each settled record say that the message may stand in the last of those uses, which was another
    /// segment's: when that was freed the record went, and the message was delivered again once its segment could be read.
    #[test]
    fn a_use_that_one_start_knew_is_the_one_that_the_next_names() {
        let known =
            segments(vec![unread(1, 5, false, None), Segment::new(SegmentFile(2), 1 << 20, SegmentState::Full), unread(3, 9, true, None)]);
        assert_eq!(known.unread_uses(3).collect::<Vec<_>>(), [5, FIRST - 1], "what is not known may be the last of all");
        let doubts: Vec<_> = known.doubts(7).collect();
        assert_eq!(doubts, [(SegmentFile(1), Doubt { since: 7, below: 6 }), (SegmentFile(3), Doubt { since: 7, below: FIRST })]);
        // The next start can't read their headers.
        let next = Segments {
            first_number: 2 * FIRST,
            ..segments(doubts.iter().map(|(file, doubt)| unread(file.0, 0, true, Some(*doubt))).collect())
        };
        assert_eq!(next.unread_uses(3).collect::<Vec<_>>(), [5, FIRST - 1]);
        assert!([0, 5, FIRST - 1].iter().all(|&number| next.may_be_unknown(number)) && !next.may_be_unknown(FIRST));
        assert_eq!(next.doubts(8).collect::<Vec<_>>(), doubts, "and it leaves what it was told");
        // Of a life that had not begun when the first of them failed nothing stands there.
        assert_eq!(next.unread_uses(7).count(), 0);
    }
}
