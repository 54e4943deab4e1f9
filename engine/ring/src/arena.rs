//! The receive arena: memory the kernel fills on its own initiative.
//!
//! A provided-buffer ring. An idle connection owns none of it: the kernel takes a buffer when bytes have arrived, and dropping the
//! [`Received`](crate::Received) that lends it gives it back. What a connection has not read yet is a list threaded through the buffers
//! themselves, so that an idle connection pays for an empty list only.

use std::{
    cell::{Cell, RefCell},
    io, ptr,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{
    opcode, squeue,
    types::{self, BufRingEntry},
};

use crate::{kernel::Kernel, mapping::Mapping};

/// The arena's buffer group in its ring.
pub(crate) const GROUP: u16 = 0;

/// Where `optlen` lies in `struct io_uring_sqe`: the window of a multishot receive, which Linux has from 6.17 and the crate has not.
const OPTLEN: usize = 44;
const _: () = assert!(size_of::<squeue::Entry>() == 64, "the layout that OPTLEN relies on");

/// End of a list of buffers. Never a buffer: there are at most 32,768 of them.
const NONE: u16 = u16::MAX;

pub(crate) struct Arena {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    buffer_bytes: u32,
    /// Where the next returned buffer goes; published to the kernel at once.
    tail: Cell<u16>,
    /// Buffers the kernel can still take.
    free: Cell<u16>,
    /// With fewer of them it is short.
    low: u16,
    links: RefCell<Vec<Link>>,
}

/// A buffer that is taken: its bytes, and the next one of its connection.
#[derive(Clone, Copy)]
struct Link {
    next: u16,
    len: u32,
}

/// The buffers that one connection has not read yet, oldest first.
#[derive(Debug)]
pub(crate) struct Unread {
    head: u16,
    tail: u16,
    bytes: u32,
}

impl Unread {
    pub(crate) const EMPTY: Unread = Unread { head: NONE, tail: NONE, bytes: 0 };

    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Bytes that left the buffers and are unread still.
    pub(crate) fn count(&mut self, bytes: u32) {
        self.bytes += bytes;
    }

    /// Those were read.
    pub(crate) fn uncount(&mut self, bytes: u32) {
        self.bytes -= bytes;
    }
}

impl Arena {
    /// `count` buffers (a power of two, at most 32,768) of `buffer_bytes`. Pages of it cost nothing until the kernel fills them.
    pub(crate) fn new(kernel: &Kernel, count: u16, buffer_bytes: u32) -> io::Result<Arena> {
        assert!(count.is_power_of_two(), "the kernel indexes the ring of buffers by a mask");
        let arena = Arena {
            entries: Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?,
            memory: Mapping::new(usize::from(count) * buffer_bytes as usize)?,
            count,
            buffer_bytes,
            tail: Cell::new(0),
            free: Cell::new(0),
            low: count / 4,
            links: RefCell::new(vec![Link { next: NONE, len: 0 }; usize::from(count)]),
        };
        let base = arena.entries.at(0) as u64;
        // SAFETY: both mappings are page aligned, and outlive the kernel's use of them: `Shared` unmaps after nothing is armed.
        kernel.with_submitter(|s| unsafe { s.register_buf_ring_with_flags(base, count, GROUP, 0) })?;
        (0..count).for_each(|bid| arena.give_back(bid));
        Ok(arena)
    }

    pub(crate) fn free(&self) -> u16 {
        self.free.get()
    }

    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// Fewer than a quarter of the buffers are free.
    pub(crate) fn is_short(&self) -> bool {
        self.free.get() < self.low
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes as usize
    }

    /// The kernel took a buffer: it is ours until `give_back`.
    pub(crate) fn taken(&self) {
        self.free.set(self.free.get() - 1);
    }

    pub(crate) fn give_back(&self, bid: u16) {
        let tail = self.tail.get();
        let at = usize::from(tail & (self.count - 1)) * size_of::<BufRingEntry>();
        // SAFETY: `at` lies inside `entries`, and the kernel reads the entry only after the tail has moved past it. The tail overlays
        // the first entry's reserved field, which the setters never touch.
        unsafe {
            let entry = &mut *self.entries.at(at).cast::<BufRingEntry>();
            entry.set_addr(self.memory.at(usize::from(bid) * self.buffer_bytes as usize) as u64);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(bid);
            let shared = BufRingEntry::tail(self.entries.at(0).cast::<BufRingEntry>());
            (*shared.cast::<AtomicU16>()).store(tail.wrapping_add(1), Ordering::Release);
        }
        self.tail.set(tail.wrapping_add(1));
        self.free.set(self.free.get() + 1);
    }

    /// Appends a filled buffer to what a connection has not read. Small pieces share a buffer, so that a peer who sends byte by byte
    /// cannot take more of the arena than one who sends in bulk.
    pub(crate) fn append(&self, unread: &mut Unread, bid: u16, len: u32) {
        let mut links = self.links.borrow_mut();
        unread.bytes += len;
        if unread.tail != NONE {
            let last = &mut links[usize::from(unread.tail)];
            if last.len + len <= self.buffer_bytes {
                // SAFETY: both buffers are taken and distinct, and the list's last one has room for `len` bytes more.
                unsafe { ptr::copy_nonoverlapping(self.start(bid), self.start(unread.tail).add(last.len as usize), len as usize) };
                last.len += len;
                drop(links);
                return self.give_back(bid);
            }
            last.next = bid;
        } else {
            unread.head = bid;
        }
        unread.tail = bid;
        links[usize::from(bid)] = Link { next: NONE, len };
    }

    /// The oldest unread buffer and its length; it stays where it is.
    pub(crate) fn first(&self, unread: &Unread) -> Option<(u16, u32)> {
        (unread.head != NONE).then(|| (unread.head, self.links.borrow()[usize::from(unread.head)].len))
    }

    /// Takes the oldest unread buffer off the list; with its length.
    pub(crate) fn pop(&self, unread: &mut Unread) -> Option<(u16, u32)> {
        let bid = unread.head;
        if bid == NONE {
            return None;
        }
        let Link { next, len } = self.links.borrow()[usize::from(bid)];
        unread.head = next;
        if next == NONE {
            unread.tail = NONE;
        }
        unread.bytes -= len;
        Some((bid, len))
    }

    fn start(&self, bid: u16) -> *mut u8 {
        self.memory.at(usize::from(bid) * self.buffer_bytes as usize)
    }

    /// # Safety
    /// `bid` is taken and not shared with another list, and the kernel wrote `len` bytes of it.
    pub(crate) unsafe fn bytes(&self, bid: u16, len: u32) -> &[u8] {
        // SAFETY: the buffer lies inside `memory`, and nobody writes it before it is given back.
        unsafe { std::slice::from_raw_parts(self.start(bid), len as usize) }
    }
}

/// A multishot receive that ends after about `window_bytes`.
pub(crate) fn windowed_receive(fd: types::Fd, window_bytes: u32) -> squeue::Entry {
    let mut entry = opcode::RecvMulti::new(fd, GROUP).build();
    // SAFETY: an entry is a `struct io_uring_sqe`, 64 bytes of plain data, and the field lies within.
    unsafe { (&raw mut entry).cast::<u8>().add(OPTLEN).cast::<u32>().write(window_bytes) };
    entry
}
