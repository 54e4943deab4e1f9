//! A lane: a bounded queue from one thread to another, without locks.
//!
//! Each side keeps its own index to itself and the other's as last seen, and looks at the shared ones only when those say empty or
//! full. The other side is woken by its [`Bell`], once per batch.
#![expect(unsafe_code, reason = "slots are handed from side to side by the indices")]

use std::fmt;
use std::mem::MaybeUninit;
use std::task::{Context, Poll};

use crossbeam::utils::CachePadded;

use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering, UnsafeCell, fence};
use crate::{Bell, Listener};

/// Bytes of a slot, and so of the largest item: one cache line.
pub const SLOT_BYTES: usize = 64;
/// Most slots of one lane: 4 MiB of memory.
pub const SLOTS_MAX: usize = 65_536;

/// One item, aligned so that two never share a cache line.
#[repr(C, align(64))]
struct Slot<T>(UnsafeCell<MaybeUninit<T>>);

#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot<[u8; SLOT_BYTES]>>() <= SLOT_BYTES);

/// Slots from `head` to `tail` hold an item and are the receiver's; the others are empty and the sender's. The indices count up for
/// ever (and around), a slot is an index modulo the number of slots.
struct Shared<T> {
    /// Next slot to take out of. Written by the receiver only.
    head: CachePadded<AtomicUsize>,
    /// Next slot to put into. Written by the sender only.
    tail: CachePadded<AtomicUsize>,
    /// The sender found the lane full and wants its bell rung.
    wants_room: CachePadded<AtomicBool>,
    /// One side is gone.
    is_closed: AtomicBool,
    /// A power of two of them.
    slots: Box<[Slot<T>]>,
}

// SAFETY: an item crosses from the sender's thread to the receiver's (T: Send); the indices hand each slot over as written at
// `Shared`, and `Sender` and `Receiver` are one each and not Clone.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above; no method gives out a reference into a slot.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)].0
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = self.tail.load(Ordering::Acquire);
        let mut head = self.head.load(Ordering::Acquire);
        while head != tail {
            // SAFETY: both sides are gone, and the slots from head to tail hold items nobody took.
            self.slot(head).with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// An item that found its lane full, given back.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

/// A new lane of `slots` (a power of two up to [`SLOTS_MAX`]) for items of at most [`SLOT_BYTES`] (checked when compiled).
///
/// `receiver_bell` rings when there is something to take, `sender_bell` when a lane that was found full has room again, each also
/// when the other side is gone.
pub fn lane<T: Send>(slots: usize, receiver_bell: Bell, sender_bell: Bell) -> (Sender<T>, Receiver<T>) {
    const { assert!(size_of::<T>() <= SLOT_BYTES && align_of::<T>() <= SLOT_BYTES) };
    assert!(slots.is_power_of_two() && slots <= SLOTS_MAX, "a lane has a power of two of slots, up to {SLOTS_MAX}");
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
        wants_room: CachePadded::new(AtomicBool::new(false)),
        is_closed: AtomicBool::new(false),
        slots: (0..slots).map(|_| Slot(UnsafeCell::new(MaybeUninit::uninit()))).collect(),
    });
    let sender = Sender { shared: shared.clone(), bell: receiver_bell, tail: 0, head_seen: 0, is_rung: true, full_total: 0 };
    let receiver = Receiver { shared, bell: sender_bell, head: 0, head_published: 0, tail_seen: 0 };
    (sender, receiver)
}

/// The producer's side.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
    /// The receiver's.
    bell: Bell,
    tail: usize,
    head_seen: usize,
    /// Nothing was pushed since the last ring.
    is_rung: bool,
    full_total: u64,
}

impl<T: Send> Sender<T> {
    /// Puts an item in; the receiver is woken at the next [`Sender::flush`]. Full: the item comes back, is counted, and the sender's
    /// bell rings when there is room.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), Full<T>> {
        if !self.has_room(1) {
            self.full_total += 1;
            return Err(Full(item));
        }
        // SAFETY: the lane has room, so the slot at `tail` is empty and the sender's until `tail` is published.
        self.shared.slot(self.tail).with_mut(|slot| unsafe { (*slot).write(item) });
        self.tail = self.tail.wrapping_add(1);
        self.shared.tail.store(self.tail, Ordering::Release);
        self.is_rung = false;
        Ok(())
    }

    /// Wakes the receiver if anything was pushed since the last flush.
    #[inline]
    pub fn flush(&mut self) {
        if !self.is_rung {
            self.is_rung = true;
            self.bell.ring();
        }
    }

    /// `push` and `flush`, for a single item.
    pub fn try_send(&mut self, item: T) -> Result<(), Full<T>> {
        self.push(item)?;
        self.flush();
        Ok(())
    }

    /// Whether the next `count` pushes find room. If not, the sender's bell rings when the receiver made some.
    #[inline]
    pub fn has_room(&mut self, count: usize) -> bool {
        let slots = self.shared.slots.len();
        if slots - self.tail.wrapping_sub(self.head_seen) >= count {
            return true;
        }
        self.head_seen = self.shared.head.load(Ordering::Acquire);
        slots - self.tail.wrapping_sub(self.head_seen) >= count || self.ask_for_room(count)
    }

    #[cold]
    fn ask_for_room(&mut self, count: usize) -> bool {
        self.shared.wants_room.store(true, Ordering::Relaxed);
        // Pairs with the fence of `Receiver::release`: either this side sees the room made there, or that side sees the wish.
        fence(Ordering::SeqCst);
        self.head_seen = self.shared.head.load(Ordering::Acquire);
        self.shared.slots.len() - self.tail.wrapping_sub(self.head_seen) >= count
    }

    /// How often an item found the lane full.
    pub fn full_total(&self) -> u64 {
        self.full_total
    }

    /// Whether the receiver is gone: what is sent now is never taken.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed.load(Ordering::Acquire)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Release);
        self.bell.ring();
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("tail", &self.tail).field("full_total", &self.full_total).finish_non_exhaustive()
    }
}

/// The consumer's side.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// The sender's.
    bell: Bell,
    head: usize,
    head_published: usize,
    tail_seen: usize,
}

impl<T: Send> Receiver<T> {
    /// Takes the oldest item. None: there is none now, and the sender knows of all the room.
    ///
    /// Taken slots go back to the sender by half a lane, and at None; see [`Receiver::release`].
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            self.tail_seen = self.shared.tail.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                self.release();
                return None;
            }
        }
        // SAFETY: head is before tail, so the slot holds an item and is the receiver's until `head` is published beyond it; `head`
        // moves on, so it is read once.
        let item = self.shared.slot(self.head).with(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        if self.head.wrapping_sub(self.head_published) > self.shared.slots.len() / 2 {
            self.release();
        }
        Some(item)
    }

    /// Gives the taken slots back, and wakes a sender that waits for room. Call it when leaving a lane that is not empty.
    pub fn release(&mut self) {
        if self.head == self.head_published {
            return;
        }
        self.head_published = self.head;
        self.shared.head.store(self.head, Ordering::Release);
        // Pairs with the fence of `Sender::ask_for_room`.
        fence(Ordering::SeqCst);
        if self.shared.wants_room.load(Ordering::Relaxed) && self.shared.wants_room.swap(false, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    /// Whether the sender is gone and everything it sent was taken.
    pub fn is_finished(&self) -> bool {
        // In this order: what was sent before the end is seen after it.
        self.shared.is_closed.load(Ordering::Acquire) && self.shared.tail.load(Ordering::Acquire) == self.head
    }

    /// The next item, or None when the sender is gone. For a thread whose `listener` hears this lane only, or whose other lanes are
    /// looked at by the same task: a ring taken here is not heard again.
    pub fn poll_recv(&mut self, listener: &mut Listener, context: &mut Context<'_>) -> Poll<Option<T>> {
        loop {
            if let Some(item) = self.pop() {
                return Poll::Ready(Some(item));
            }
            if self.is_finished() {
                return Poll::Ready(None);
            }
            if listener.poll_ring(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// [`Receiver::poll_recv`] as a future.
    pub async fn recv(&mut self, listener: &mut Listener) -> Option<T> {
        std::future::poll_fn(|context| self.poll_recv(listener, context)).await
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        // What was taken must not be dropped again with the lane.
        self.shared.head.store(self.head, Ordering::Release);
        self.shared.is_closed.store(true, Ordering::Release);
        self.bell.ring();
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("head", &self.head).finish_non_exhaustive()
    }
}
