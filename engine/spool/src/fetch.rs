//! Reading a stretch of a file on a disk that may have bad places.
//!
//! One bad sector fails a whole request, and a request asks for far more than is needed at once. So what is needed is asked for again by
//! itself, then block by block; only a block that was refused by itself is unreadable. All that is tried is bounded: each block is asked for
//! a few times at most, and a file with too many bad ones is given up.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::batch::BLOCK_BYTES;

const BLOCK: u32 = BLOCK_BYTES as u32;

/// So many unreadable blocks (256 KiB) in one pass over one file, and the rest of what it still asks for is taken as unreadable: a disk may
/// take seconds to refuse each, and accepting waits. At 7 s each that is 8 minutes for a pass.
pub(crate) const UNREADABLE_BLOCKS_MAX: usize = 64;

/// What one pass over one file knows of its bad places.
#[derive(Default)]
pub(crate) struct Unreadable {
    /// Offsets of blocks that were refused by themselves.
    blocks: BTreeSet<u32>,
    /// A request for all of this failed: within it only what is needed is asked for.
    doubted: Range<u32>,
    /// The one that was found last.
    last: u32,
    /// Length of the file.
    end: u32,
}

impl Unreadable {
    pub(crate) fn new(end: u32) -> Self {
        Unreadable { end, ..Unreadable::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether the block at this offset is not to be had.
    pub(crate) fn holds(&self, block: u32) -> bool {
        self.is_given_up() || self.blocks.contains(&block)
    }

    /// All that is unreadable, from the front to the back; given up, with all behind the last block that was tried.
    pub(crate) fn stretches(&self) -> Vec<Range<u32>> {
        let rest = self.is_given_up().then_some(self.last..self.end);
        let mut stretches: Vec<Range<u32>> = Vec::new();
        for next in self.blocks.iter().map(|&block| block..block + BLOCK).chain(rest) {
            match stretches.last_mut() {
                Some(before) if next.start <= before.end => {
                    before.start = before.start.min(next.start);
                    before.end = before.end.max(next.end);
                }
                _ => stretches.push(next),
            }
        }
        stretches
    }

    fn is_given_up(&self) -> bool {
        self.blocks.len() >= UNREADABLE_BLOCKS_MAX
    }

    fn holds_any(&self, stretch: Range<u32>) -> bool {
        self.is_given_up() || self.blocks.range(stretch).next().is_some()
    }

    /// Bytes that one request at `at` may ask for, without what is known to be bad or doubted.
    fn reach(&self, at: u32, most: u32) -> u32 {
        if self.doubted.contains(&at) {
            return 0;
        }
        let doubted = (self.doubted.start > at).then_some(self.doubted.start);
        let bad = self.blocks.range(at..).next().copied();
        [doubted, bad].into_iter().flatten().map(|stop| stop - at).min().map_or(most, |stop| stop.min(most))
    }

    fn add(&mut self, block: u32) {
        self.blocks.insert(block);
        self.last = block;
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
    /// Block by block, from the last to the first: each is read to the front of the memory and moved to its place.
    Blocks { left: u32 },
    /// So much is there.
    Done { bytes: u32 },
}

impl Fetch {
    /// `needed` bytes at `at`, whole blocks within the file; up to `most` are welcome.
    pub(crate) fn new(at: u32, needed: u32, most: u32, unreadable: &Unreadable) -> Self {
        let attempt = if unreadable.holds_any(at..at + needed) {
            Attempt::Blocks { left: needed / BLOCK }
        } else {
            Attempt::Whole { bytes: unreadable.reach(at, most).max(needed) }
        };
        Fetch { at, needed, attempt }
    }

    /// What to read next to the front of `buffer`, offset and bytes; or nothing: then [`bytes`](Fetch::bytes) are there.
    pub(crate) fn next(&mut self, buffer: &mut [u8], unreadable: &Unreadable) -> Option<(u32, u32)> {
        match self.attempt {
            Attempt::Whole { bytes } => Some((self.at, bytes)),
            Attempt::Exact => Some((self.at, self.needed)),
            Attempt::Blocks { mut left } => {
                while left > 0 {
                    let place = (left - 1) * BLOCK;
                    if !unreadable.holds(self.at + place) {
                        self.attempt = Attempt::Blocks { left };
                        return Some((self.at + place, BLOCK));
                    }
                    buffer[place as usize..][..BLOCK_BYTES].fill(0);
                    left -= 1;
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
        let by_block = Attempt::Blocks { left: self.needed / BLOCK };
        self.attempt = match self.attempt {
            Attempt::Whole { .. } | Attempt::Exact if read >= self.needed => Attempt::Done { bytes: read.min(buffer.len() as u32) },
            Attempt::Whole { bytes } if bytes > self.needed => {
                unreadable.doubted = self.at..self.at + bytes;
                Attempt::Exact
            }
            // A second time: with what is about it, and by itself.
            Attempt::Whole { .. } | Attempt::Exact if self.needed == BLOCK && unreadable.doubted.contains(&self.at) => {
                unreadable.add(self.at);
                buffer[..BLOCK_BYTES].fill(0);
                Attempt::Done { bytes: BLOCK }
            }
            Attempt::Whole { .. } | Attempt::Exact => by_block,
            Attempt::Blocks { left } => {
                let place = (left - 1) * BLOCK;
                if read >= BLOCK {
                    buffer.copy_within(..BLOCK_BYTES, place as usize);
                } else {
                    unreadable.add(self.at + place);
                    buffer[place as usize..][..BLOCK_BYTES].fill(0);
                }
                Attempt::Blocks { left: left - 1 }
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
        assert_eq!(fetch.next(&mut buffer, &unreadable), Some((63 * BLOCK, BLOCK)));
        fetch.completed(&mut buffer, -5, &mut unreadable);
        assert_eq!(fetch.next(&mut buffer, &unreadable), Some((63 * BLOCK, BLOCK)));
        fetch.completed(&mut buffer, i64::from(BLOCK), &mut unreadable);
        assert_eq!(fetch.next(&mut buffer, &unreadable), None);
        assert!(unreadable.is_empty() && fetch.bytes() == BLOCK_BYTES);
    }

    #[test]
    fn a_file_that_is_all_bad_is_given_up() {
        // 64 MiB.
        let blocks = 1 << 14;
        let all: Vec<u32> = (0..blocks).collect();
        let (mut unreadable, mut requests) = (Unreadable::new(blocks * BLOCK), 0);
        for block in 0..blocks {
            let (bytes, asked) = fetch(block * BLOCK, BLOCK, (64 * BLOCK).min((blocks - block) * BLOCK), &all, &mut unreadable);
            assert_eq!(numbers(&bytes), [0]);
            requests += asked;
        }
        // Each by itself, and once what was asked for with it.
        assert!(requests <= 70, "{requests}");
        assert_eq!(unreadable.stretches(), [Range { start: 0, end: blocks * BLOCK }]);
    }
}
