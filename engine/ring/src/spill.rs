//! What connections have not read, on the heap: where it goes while the arena is short, so that those who do not read take no buffer from
//! those who do.

use std::{cell::Cell, collections::VecDeque};

use crate::{conn::ConnSlot, ring::Shared};

/// Unread bytes of one connection that lay in buffers, oldest first, in pieces of a buffer at most. All of them are older than what its list of buffers
/// holds, and `Unread` counts them, too.
pub(crate) type Spilled = Box<VecDeque<Vec<u8>>>;

/// The heap that this may take: bounded.
pub(crate) struct Heap {
    bytes: Cell<usize>,
    bytes_max: usize,
}

impl Heap {
    pub(crate) fn new(bytes_max: usize) -> Heap {
        Heap { bytes: Cell::new(0), bytes_max }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self.bytes.get() + bytes;
        if taken <= self.bytes_max {
            self.bytes.set(taken);
        }
        taken <= self.bytes_max
    }

    fn give_back(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() - bytes);
    }
}

impl Shared {
    /// Moves what this connection has unread out of the arena, which is short. What finds no room stays where it is.
    #[cold]
    pub(crate) fn spill(&self, slot: &mut ConnSlot) {
        while let Some((bid, len)) = self.arena.first(&slot.unread) {
            if !self.heap.take(len as usize) {
                return;
            }
            let spilled = slot.spilled.get_or_insert_default();
            // Of small pieces many share one, as they do in the arena.
            if spilled.back().is_none_or(|last| last.len() + len as usize > self.arena.buffer_bytes()) {
                spilled.push_back(Vec::new());
            }
            let last = spilled.back_mut().expect("there is one now");
            last.reserve_exact(len as usize);
            // SAFETY: the buffer is taken and on this connection's list alone, with `len` bytes of the kernel's.
            last.extend_from_slice(unsafe { self.arena.bytes(bid, len) });
            self.arena.pop(&mut slot.unread);
            slot.unread.count(len);
            self.arena.give_back(bid);
        }
    }

    /// The oldest piece that was spilled.
    #[cold]
    pub(crate) fn take_spilled(&self, slot: &mut ConnSlot) -> Option<Vec<u8>> {
        let spilled = slot.spilled.as_mut()?;
        let piece = spilled.pop_front()?;
        if spilled.is_empty() {
            slot.spilled = None;
        }
        slot.unread.uncount(piece.len() as u32);
        self.heap.give_back(piece.len());
        Some(piece)
    }
}
