//! The buffers in which content is staged that arrives in pieces: bounded in bytes, and kept for the next message.

use std::cell::{Cell, RefCell};

use crate::incoming::CHUNK_BYTES;

/// Buffers grow in these steps. The last is what fills up before it leaves as a chunk, and a receive buffer more.
const STEPS: [usize; 4] = [4 * 1024, 16 * 1024, 64 * 1024, CHUNK_BYTES + 16 * 1024];
/// Free buffers kept of each step: 3.6 MiB in all. What messages under way want more of at once is asked of the allocator again.
const KEPT: usize = 16;

/// Free buffers of one size.
struct Shelf {
    buffers: Vec<Vec<u8>>,
    /// So many were never wanted since the last [`Staging::trim`].
    unused: usize,
}

/// Staging of one shard.
pub struct Staging {
    bytes_max: usize,
    taken: Cell<usize>,
    shelves: RefCell<[Shelf; STEPS.len()]>,
}

impl Staging {
    /// Nothing taken. At `bytes_max` a message that needs more is answered with 452.
    pub fn new(bytes_max: usize) -> Self {
        let shelves = STEPS.map(|_| Shelf { buffers: Vec::with_capacity(KEPT), unused: 0 });
        Staging { bytes_max, taken: Cell::default(), shelves: RefCell::new(shelves) }
    }

    /// Makes room for `needed` bytes in all in `buffer`, which keeps its content and may be none (empty, without capacity). False when
    /// too many bytes would be taken; nothing has changed then.
    pub fn grow(&self, buffer: &mut Vec<u8>, needed: usize) -> bool {
        if needed <= buffer.capacity() {
            return true;
        }
        let step = STEPS.iter().position(|step| *step >= needed);
        let kept = step.and_then(|step| self.shelves.borrow_mut()[step].take());
        let bytes = kept.as_ref().map_or_else(|| step.map_or_else(|| needed.next_power_of_two(), |step| STEPS[step]), Vec::capacity);
        if self.taken.get() - buffer.capacity() + bytes > self.bytes_max {
            kept.into_iter().for_each(|kept| self.keep(kept));
            return false;
        }
        let mut larger = kept.unwrap_or_else(|| Vec::with_capacity(bytes));
        larger.extend_from_slice(buffer);
        // The allocator may have given more than was asked for: what is given back is the capacity.
        self.taken.set(self.taken.get() + larger.capacity());
        self.give_back(std::mem::replace(buffer, larger));
        true
    }

    /// Takes back what [`Staging::grow`] gave; a buffer without capacity is none.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        self.taken.set(self.taken.get() - buffer.capacity());
        buffer.clear();
        self.keep(buffer);
    }

    fn keep(&self, buffer: Vec<u8>) {
        // One that was made for content of no step is freed.
        let step = STEPS.iter().rposition(|step| *step <= buffer.capacity()).filter(|_| buffer.capacity() < 2 * STEPS[STEPS.len() - 1]);
        if let Some(step) = step {
            let shelf = &mut self.shelves.borrow_mut()[step];
            if shelf.buffers.len() < KEPT {
                shelf.buffers.push(buffer);
            }
        }
    }

    /// Takes so many bytes for what lies elsewhere (envelopes). False when too many would be taken; nothing has changed then.
    pub fn charge(&self, bytes: usize) -> bool {
        let fits = bytes <= self.bytes_max.saturating_sub(self.taken.get());
        if fits {
            self.taken.set(self.taken.get() + bytes);
        }
        fits
    }

    /// Takes back what [`Staging::charge`] gave.
    pub fn release(&self, bytes: usize) {
        self.taken.set(self.taken.get() - bytes);
    }

    /// Bytes taken now; what is kept free does not count.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }

    /// Frees what nobody wanted since the last time. True while something is kept.
    pub fn trim(&self) -> bool {
        let mut kept = 0;
        for shelf in self.shelves.borrow_mut().iter_mut() {
            let left = shelf.buffers.len() - shelf.unused;
            shelf.buffers.truncate(left);
            shelf.unused = left;
            kept += left;
        }
        kept > 0
    }
}

impl Shelf {
    fn take(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop();
        self.unused = self.unused.min(self.buffers.len());
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(staging: &Staging, content: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        assert!(staging.grow(&mut buffer, content.len()));
        buffer.extend_from_slice(content);
        buffer
    }

    #[test]
    fn the_next_message_gets_the_buffer_of_the_last() {
        let staging = Staging::new(1 << 20);
        for bytes in [100, 5_000, 50_000, 140_000] {
            let first = staged(&staging, &vec![b'x'; bytes]);
            let at = first.as_ptr();
            staging.give_back(first);
            let second = staged(&staging, b"y");
            staging.give_back(second);
            let second = staged(&staging, &vec![b'y'; bytes]);
            assert_eq!((second.as_ptr(), &second[..]), (at, &vec![b'y'; bytes][..]), "{bytes}");
            staging.give_back(second);
        }
        assert_eq!(staging.taken(), 0);
    }

    #[test]
    fn a_buffer_that_grows_keeps_its_content_and_leaves_the_small_one() {
        let staging = Staging::new(1 << 20);
        let mut buffer = staged(&staging, b"begin");
        let small = buffer.as_ptr();
        for needed in [10_000, 60_000, 144 * 1024, 200_000] {
            assert!(staging.grow(&mut buffer, needed));
            assert!(buffer.capacity() >= needed);
            assert_eq!(&buffer[..], b"begin");
            assert_eq!(staging.taken(), buffer.capacity());
        }
        let other = staged(&staging, b"other");
        assert_eq!(other.as_ptr(), small);
        staging.give_back(other);
        staging.give_back(buffer);
        assert_eq!(staging.taken(), 0);
    }

    #[test]
    fn the_bound_holds_and_a_refusal_changes_nothing() {
        let staging = Staging::new(20 * 1024);
        let mut buffer = staged(&staging, b"begin");
        assert!(!staging.grow(&mut buffer, 60_000));
        assert_eq!((&buffer[..], staging.taken()), (&b"begin"[..], buffer.capacity()));
        assert!(staging.grow(&mut buffer, 10_000));
        let mut none = Vec::new();
        assert!(!staging.grow(&mut none, 10_000));
        staging.give_back(buffer);
        assert!(staging.grow(&mut none, 10_000), "from what was given back");
    }

    #[test]
    fn what_is_charged_counts_as_what_is_staged() {
        let staging = Staging::new(20 * 1024);
        assert!(staging.charge(15 * 1024) && !staging.charge(6 * 1024) && !staging.charge(usize::MAX));
        assert!(!staging.grow(&mut Vec::new(), 10_000));
        staging.release(15 * 1024);
        assert_eq!(staging.taken(), 0);
        staging.give_back(staged(&staging, &[b'x'; 10_000]));
        assert_eq!(staging.taken(), 0);
    }

    #[test]
    fn what_is_kept_is_bounded_and_freed_when_nobody_wants_it() {
        let staging = Staging::new(1 << 24);
        let all: Vec<_> = (0..3 * KEPT).map(|_| staged(&staging, b"x")).collect();
        all.into_iter().for_each(|buffer| staging.give_back(buffer));
        let kept = |staging: &Staging| staging.shelves.borrow()[0].buffers.len();
        assert_eq!(kept(&staging), KEPT);
        assert!(staging.trim());
        // One is in use now and then: one stays.
        staging.give_back(staged(&staging, b"x"));
        assert!(staging.trim());
        assert_eq!(kept(&staging), 1);
        assert!(!staging.trim());
        assert_eq!(kept(&staging), 0);
    }
}
