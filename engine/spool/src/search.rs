//! Which use a segment is in whose head can't be read: its batches tell, if they prove themselves.
//!
//! Content may hold batches that are right in themselves, of its sender's making (S4), and here no generation is known to tell them by. But
//! none of them goes on behind the end of the batch in which it came: there a header stands whose bytes nobody outside knows. So a use is
//! believed when its batches follow one another, each chained to the one before, over more bytes than one batch can have, all verified. Behind the present use
//! earlier ones may stand, so the first that proves itself is the one, unless something in front of it claims to be newer.

use crate::batch::{BLOCK_BYTES, BatchHeader, verify_records};
use crate::scan::Window;
use crate::segment::FIRST_BATCH;

/// Looking through a segment for its use.
pub(crate) struct Search {
    at: u32,
    end: u32,
    batch_bytes_max: u32,
    run: Option<Run>,
    /// The batch of the greatest log position so far.
    newest: Option<BatchHeader>,
    is_blank: bool,
}

/// Batches that follow one another.
#[derive(Clone, Copy)]
struct Run {
    bytes: u32,
    last: BatchHeader,
    check: u32,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SearchStep {
    /// A window that starts here and has at least so many bytes is needed (whole blocks).
    Read { offset: u32, bytes: u32 },
    /// That is what it is.
    Done(Searched),
}

/// What a segment without a head turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Searched {
    /// Zeros: nothing was ever written to it.
    Blank,
    /// It is in the use of this batch.
    Use(BatchHeader),
    /// Nothing in it proves a use, or something in front of what does claims to be newer.
    Unknown,
}

impl Search {
    /// `end`: length of the segment; no batch is longer than `batch_bytes_max`.
    pub(crate) fn new(end: u32, batch_bytes_max: u32) -> Self {
        Search { at: FIRST_BATCH, end, batch_bytes_max, run: None, newest: None, is_blank: true }
    }

    /// Goes on in `window`.
    pub(crate) fn step(&mut self, window: Window<'_>) -> SearchStep {
        let block = BLOCK_BYTES as u32;
        while self.at + block <= self.end {
            let Some(front) = window.view(self.at, block) else { return SearchStep::Read { offset: self.at, bytes: block } };
            self.is_blank = self.is_blank && front.iter().all(|&byte| byte == 0);
            let decoded = BatchHeader::decode(front);
            let Some((header, check)) = decoded.filter(|(header, _)| header.bytes <= self.batch_bytes_max.min(self.end - self.at)) else {
                self.run = None;
                self.at += block;
                continue;
            };
            let Some(batch) = window.view(self.at, header.bytes) else {
                return SearchStep::Read { offset: self.at, bytes: header.bytes };
            };
            if verify_records(batch, &header, true) {
                if let Some(searched) = self.take(&header, check) {
                    return SearchStep::Done(searched);
                }
                // What stands within it is content.
                self.at += header.bytes;
            } else {
                self.run = None;
                self.at += block;
            }
        }
        SearchStep::Done(if self.is_blank { Searched::Blank } else { Searched::Unknown })
    }

    /// A batch that verifies. Returns what the segment is once that is known.
    fn take(&mut self, header: &BatchHeader, check: u32) -> Option<Searched> {
        let follows = |run: &Run| {
            let last = &run.last;
            (header.generation, header.number, header.boot) == (last.generation, last.number, last.boot)
                && Some(header.sequence) == last.sequence.checked_add(1)
                && header.previous_check == run.check
        };
        let before = self.run.filter(follows).map_or(0, |run| run.bytes);
        let run = Run { bytes: before + header.bytes, last: *header, check };
        self.run = Some(run);
        let position = |header: &BatchHeader| (header.boot, header.sequence);
        let newest = self.newest.filter(|newest| position(newest) > position(header)).unwrap_or(*header);
        self.newest = Some(newest);
        let is_proven = run.bytes > self.batch_bytes_max;
        is_proven.then_some(if newest.generation == header.generation { Searched::Use(*header) } else { Searched::Unknown })
    }
}
