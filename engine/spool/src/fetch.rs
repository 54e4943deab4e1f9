//! Reading a stretch of a file on a disk that may have bad places.
//!
//! One bad sector fails a whole request, and a request asks for far more than is needed at once. So what is needed is asked for again by
//! itself, then block by block; only a block that was refused by itself is unreadable. A disk may take seconds to refuse each, and accepting
//! waits. So behind a number of them the end of the bad area is looked for instead: good blocks behind it are read, however long it is.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::batch::BLOCK_BYTES;

const BLOCK: u32 = BLOCK_BYTES as u32;

/// Blocks (256 KiB) that one pass over one file finds unreadable one by one. Behind them a refused block is the start of an area.
const ONE_BY_ONE_MAX: u32 = 64;

/// An area's end is looked for in leaps of this part of the file, or of `LEAP_MIN`: a good place as long as a leap is never missed.
const LEAPS: u32 = 64;
const LEAP_MIN: u32 = 1 << 20;

/// Areas whose end one pass finds to the block, with some 10 requests for each. Behind them a refused block costs all up to the next leap.
///
/// A file that can't be read at all refuses twice 64 requests: at 7 s each that is a quarter of an hour for a pass. The worst, with bad places
/// strewn all over it, are 500.
const AREAS_MAX: u32 = 16;

/// What one pass over one file knows of its bad places.
#[derive(Default)]
pub(crate) struct Unreadable {
    /// Start and end of each unreadable area; no two of them touch.
    areas: BTreeMap<u32, u32>,
    /// Blocks that were needed and refused by themselves.
    refused: u32,
    /// The area whose end is being looked for.
    searched: Option<Area>,
    areas_searched: u32,
    /// A request for all of this failed: within it only what is needed is asked for.
    doubted: Range<u32>,
    /// Length of the file.
    end: u32,
}

/// A bad area, as far as it is known.
#[derive(Clone, Copy)]
struct Area {
    start: u32,
    /// The last block of it that was refused.
    bad: u32,
    /// A block behind it that was read.
    good: Option<u32>,
}

impl Unreadable {
    pub(crate) fn new(end: u32) -> Self {
        Unreadable { end, ..Unreadable::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// Whether the block at this offset is not to be had.
    pub(crate) fn holds(&self, block: u32) -> bool {
        self.holds_any(block..block + BLOCK)
    }

    /// All that is unreadable, or was not asked for because what is about it is, from the front to the back.
    pub(crate) fn stretches(&self) -> Vec<Range<u32>> {
        self.areas.iter().map(|(&start, &end)| start..end).collect()
    }

    fn holds_any(&self, stretch: Range<u32>) -> bool {
        self.areas.range(..stretch.end).next_back().is_some_and(|(_, &end)| end > stretch.start)
    }

    /// Bytes that one request at `at` may ask for, without what is known to be bad or doubted.
    fn reach(&self, at: u32, most: u32) -> u32 {
        if self.doubted.contains(&at) {
            return 0;
        }
        let doubted = (self.doubted.start > at).then_some(self.doubted.start);
        let bad = self.areas.range(at..).next().map(|(&start, _)| start);
        [doubted, bad].into_iter().flatten().map(|stop| stop - at).min().map_or(most, |stop| stop.min(most))
    }

    fn leap(&self) -> u32 {
        (self.end / LEAPS).next_multiple_of(BLOCK).max(LEAP_MIN)
    }

    /// A block that was needed is refused by itself.
    fn refuse(&mut self, block: u32) {
        self.add(block..block + BLOCK);
        self.refused += 1;
        if self.refused <= ONE_BY_ONE_MAX {
            return;
        }
        if self.areas_searched < AREAS_MAX {
            self.areas_searched += 1;
            self.searched = Some(Area { start: block, bad: block, good: None });
        } else {
            self.add(block..block.saturating_add(self.leap()).min(self.end).max(block + BLOCK));
        }
    }

    /// The block to ask for next in search of the end of an area; nothing: none is searched, or its end is found.
    fn probe(&mut self) -> Option<u32> {
        let Area { start, bad, good } = self.searched?;
        let last = self.end.saturating_sub(BLOCK);
        let end = match good {
            None if bad < last => return Some(bad.saturating_add(self.leap()).min(last)),
            None => self.end.max(bad + BLOCK),
            Some(good) if good - bad > BLOCK => return Some(bad + (good - bad) / BLOCK / 2 * BLOCK),
            Some(good) => good,
        };
        self.add(start..end);
        self.searched = None;
        None
    }

    fn probed(&mut self, is_good: bool) {
        let Some(at) = self.probe() else { return };
        let area = self.searched.as_mut().expect("it was just probed");
        if is_good {
            area.good = Some(at);
        } else {
            area.bad = at;
        }
    }

    /// Areas that overlap or touch become one.
    fn add(&mut self, mut bad: Range<u32>) {
        while let Some((&start, &end)) = self.areas.range(..=bad.end).next_back()
            && end >= bad.start
        {
            self.areas.remove(&start);
            bad = start.min(bad.start)..end.max(bad.end);
        }
        self.areas.insert(bad.start, bad.end);
    }
}

/// One stretch on its way into memory.
#[derive(Debug)]
pub(crate) struct Fetch {
    at: u32,
    needed: u32,
    attempt: Attempt,
}

#[derive(Clone, Copy, Debug)]
enum Attempt {
    /// With as much behind it as one request may have.
    Whole { bytes: u32 },
    /// By itself.
    Exact,
    /// Block by block, so many are done: each is read to the front of the memory and moved to its place, the first block last.
    Blocks { done: u32 },
    /// So much is there.
    Done { bytes: u32 },
}

impl Fetch {
    /// `needed` bytes at `at`, whole blocks within the file; up to `most` are welcome.
    pub(crate) fn new(at: u32, needed: u32, most: u32, unreadable: &Unreadable) -> Self {
        let attempt = if unreadable.holds_any(at..at + needed) {
            Attempt::Blocks { done: 0 }
        } else {
            Attempt::Whole { bytes: unreadable.reach(at, most).max(needed) }
        };
        Fetch { at, needed, attempt }
    }

    /// Where the block stands in the stretch that comes when so many are done.
    fn place(&self, done: u32) -> u32 {
        (done + 1) % (self.needed / BLOCK) * BLOCK
    }

    /// What to read next to the front of `buffer`, offset and bytes; or nothing: then [`bytes`](Fetch::bytes) are there.
    pub(crate) fn next(&mut self, buffer: &mut [u8], unreadable: &mut Unreadable) -> Option<(u32, u32)> {
        if let Some(block) = unreadable.probe() {
            return Some((block, BLOCK));
        }
        match self.attempt {
            Attempt::Whole { bytes } => Some((self.at, bytes)),
            Attempt::Exact => Some((self.at, self.needed)),
            Attempt::Blocks { mut done } => {
                while done < self.needed / BLOCK {
                    let place = self.place(done);
                    if !unreadable.holds(self.at + place) {
                        self.attempt = Attempt::Blocks { done };
                        return Some((self.at + place, BLOCK));
                    }
                    buffer[place as usize..][..BLOCK_BYTES].fill(0);
                    done += 1;
                }
                self.attempt = Attempt::Done { bytes: self.needed };
                None
            }
            Attempt::Done { .. } => None,
        }
    }

    /// What `next` asked for has ended with `result`, bytes read or a negative errno.
    pub(crate) fn completed(&mut self, buffer: &mut [u8], result: i64, unreadable: &mut Unreadable) {
        let read = u32::try_from(result).unwrap_or(0);
        if unreadable.searched.is_some() {
            return unreadable.probed(read >= BLOCK);
        }
        self.attempt = match self.attempt {
            Attempt::Whole { .. } | Attempt::Exact if read >= self.needed => Attempt::Done { bytes: read.min(buffer.len() as u32) },
            Attempt::Whole { bytes } if bytes > self.needed => {
                unreadable.doubted = self.at..self.at + bytes;
                Attempt::Exact
            }
            Attempt::Whole { .. } | Attempt::Exact => {
                // A second time: with what is about it, and by itself.
                if self.needed == BLOCK && unreadable.doubted.contains(&self.at) {
                    unreadable.refuse(self.at);
                }
                Attempt::Blocks { done: 0 }
            }
            Attempt::Blocks { done } if read >= BLOCK => {
                buffer.copy_within(..BLOCK_BYTES, self.place(done) as usize);
                Attempt::Blocks { done: done + 1 }
            }
            Attempt::Blocks { done } => {
                unreadable.refuse(self.at + self.place(done));
                Attempt::Blocks { done }
            }
            Attempt::Done { .. } => unreachable!("nothing was asked for"),
        };
    }

    /// Where the stretch starts.
    pub(crate) fn at(&self) -> u32 {
        self.at
    }

    /// Bytes at hand, at least those needed; zeros in place of unreadable blocks.
    pub(crate) fn bytes(&self) -> usize {
        match self.attempt {
            Attempt::Done { bytes } => bytes as usize,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose block `n` is filled with `n`, and refuses `bad`. Returns what was fetched and how many requests that took.
    fn fetch(at: u32, needed: u32, most: u32, bad: &[u32], unreadable: &mut Unreadable) -> (Vec<u8>, usize) {
        let (mut buffer, mut requests) = (vec![0xa5; most.max(needed) as usize], 0);
        let mut fetch = Fetch::new(at, needed, most, unreadable);
        while let Some((offset, bytes)) = fetch.next(&mut buffer, unreadable) {
            requests += 1;
            let blocks = offset / BLOCK..(offset + bytes) / BLOCK;
            let refused = blocks.clone().any(|block| bad.contains(&block));
            if !refused {
                blocks.enumerate().for_each(|(place, block)| buffer[place * BLOCK_BYTES..][..BLOCK_BYTES].fill(block as u8));
            }
            fetch.completed(&mut buffer, if refused { -5 } else { i64::from(bytes) }, unreadable);
        }
        buffer.truncate(fetch.bytes());
        (buffer, requests)
    }

    fn numbers(bytes: &[u8]) -> Vec<u8> {
        bytes.chunks(BLOCK_BYTES).inspect(|block| assert!(block.iter().all(|&byte| byte == block[0]))).map(|block| block[0]).collect()
    }

    #[test]
    fn a_good_stretch_is_read_at_once() {
        let mut unreadable = Unreadable::new(64 * BLOCK);
        let (bytes, requests) = fetch(2 * BLOCK, BLOCK, 4 * BLOCK, &[], &mut unreadable);
        assert_eq!((numbers(&bytes), requests), (vec![2, 3, 4, 5], 1));
        assert!(unreadable.is_empty() && unreadable.stretches().is_empty());
    }

    #[test]
    fn only_the_block_that_is_refused_by_itself_is_missing() {
        let mut unreadable = Unreadable::new(64 * BLOCK);
        // In what was asked for beyond the needed: nothing is missing, and what comes next is not asked for in one with it.
        assert_eq!(fetch(2 * BLOCK, BLOCK, 8 * BLOCK, &[5], &mut unreadable), (vec![2; BLOCK_BYTES], 2));
        assert!(unreadable.is_empty());
        assert_eq!(fetch(3 * BLOCK, 2 * BLOCK, 8 * BLOCK, &[5], &mut unreadable).1, 1);
        let (bytes, _) = fetch(4 * BLOCK, 4 * BLOCK, 8 * BLOCK, &[5], &mut unreadable);
        assert_eq!(numbers(&bytes), [4, 0, 6, 7]);
        assert_eq!(unreadable.stretches(), [Range { start: 5 * BLOCK, end: 6 * BLOCK }]);
        // It is not asked for again, and nothing reaches over it.
        assert_eq!(fetch(5 * BLOCK, BLOCK, 8 * BLOCK, &[5], &mut unreadable), (vec![0; BLOCK_BYTES], 0));
        assert_eq!(fetch(BLOCK, BLOCK, 8 * BLOCK, &[5], &mut unreadable).1, 1);
    }

    #[test]
    fn a_block_that_is_refused_once_is_asked_for_again() {
        let (mut unreadable, mut buffer) = (Unreadable::new(64 * BLOCK), vec![0xa5; BLOCK_BYTES]);
        let mut fetch = Fetch::new(63 * BLOCK, BLOCK, BLOCK, &unreadable);
        assert_eq!(fetch.next(&mut buffer, &mut unreadable), Some((63 * BLOCK, BLOCK)));
        fetch.completed(&mut buffer, -5, &mut unreadable);
        assert_eq!(fetch.next(&mut buffer, &mut unreadable), Some((63 * BLOCK, BLOCK)));
        fetch.completed(&mut buffer, i64::from(BLOCK), &mut unreadable);
        assert_eq!(fetch.next(&mut buffer, &mut unreadable), None);
        assert!(unreadable.is_empty() && fetch.bytes() == BLOCK_BYTES);
    }

    /// All of a file of so many blocks, as a survey asks for it: which of them were read, and how many requests were refused.
    fn survey(blocks: u32, is_bad: impl Fn(u32) -> bool) -> (Vec<bool>, usize) {
        let (mut unreadable, mut refused, mut buffer) = (Unreadable::new(blocks * BLOCK), 0, vec![0; 256 * BLOCK_BYTES]);
        let mut read: Vec<bool> = Vec::new();
        while let Ok(at) = u32::try_from(read.len())
            && at < blocks
        {
            let mut fetch = Fetch::new(at * BLOCK, BLOCK, 256.min(blocks - at) * BLOCK, &unreadable);
            while let Some((offset, bytes)) = fetch.next(&mut buffer, &mut unreadable) {
                let asked = offset / BLOCK..(offset + bytes) / BLOCK;
                let is_refused = asked.clone().any(&is_bad);
                refused += usize::from(is_refused);
                fetch.completed(&mut buffer, if is_refused { -5 } else { i64::from(bytes) }, &mut unreadable);
            }
            read.extend((at..at + fetch.bytes() as u32 / BLOCK).map(|block| !unreadable.holds(block * BLOCK)));
        }
        (read, refused)
    }

    /// 64 MiB.
    const SEGMENT: u32 = 1 << 14;

    #[test]
    fn a_file_that_is_all_bad_is_given_up_soon() {
        let (read, refused) = survey(SEGMENT, |_| true);
        assert!(read.iter().all(|&read| !read));
        // One by one, and once what was asked for with the first; then once in each MiB.
        assert!(refused <= 64 + 64 + 4, "{refused}");
    }

    /// Behind 64 bad blocks nothing more of a file was read, at any start: mail that the disk gave was not found.
    #[test]
    fn all_behind_a_bad_area_is_read() {
        for bad in [5..70, 5..71, 5..400, 255..256 + 300, 1000..1300, 3000..13_000, 16_000..SEGMENT - 1, 16_000..SEGMENT] {
            let (read, refused) = survey(SEGMENT, |block| bad.contains(&block));
            let missed: Vec<u32> = (0..SEGMENT).filter(|&block| read[block as usize] == bad.contains(&block)).collect();
            assert!(missed.is_empty(), "{bad:?}: {missed:?}");
            assert!(refused <= 64 + 64 + 14, "{bad:?}: {refused}");
        }
    }

    #[test]
    fn of_many_bad_places_each_costs_what_is_about_it_and_the_requests_are_bounded() {
        // Two areas with a good place between them.
        let (read, _) = survey(SEGMENT, |block| (100..500).contains(&block) || (1000..2000).contains(&block));
        assert!((500..1000).chain(2000..SEGMENT).all(|block| read[block as usize]));
        for apart in [2, 3, 7, 50, 256, 300] {
            let (read, refused) = survey(SEGMENT, |block| block % apart == 0);
            let missed = (0..SEGMENT).filter(|&block| block % apart != 0 && !read[block as usize]).count();
            assert!(refused <= 500, "one in {apart}: {refused}, {missed} good ones were missed");
        }
        // A file of 1 GiB.
        let (read, refused) = survey(1 << 18, |block| (300..200_000).contains(&block));
        assert!(read[200_000..].iter().all(|&read| read) && refused <= 64 + 64 + 16, "{refused}");
    }

    #[test]
    fn a_batch_with_bad_blocks_comes_with_all_of_its_good_ones() {
        let (mut unreadable, all): (_, Vec<u32>) = (Unreadable::new(1024 * BLOCK), (8..200).collect());
        for at in (0..256).step_by(32) {
            let (bytes, _) = fetch(at * BLOCK, 32 * BLOCK, 32 * BLOCK, &all, &mut unreadable);
            let expected = (at..at + 32).map(|block| if all.contains(&block) { 0 } else { block as u8 });
            assert_eq!(numbers(&bytes), expected.collect::<Vec<_>>(), "at {at}");
        }
        assert_eq!(unreadable.stretches(), [Range { start: 8 * BLOCK, end: 200 * BLOCK }]);
    }
}
