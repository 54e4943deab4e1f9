//! Deadlines of a shard: one heap, and one kernel timeout armed for the nearest.
//!
//! Moving a deadline further away writes a field; when its old time comes the heap looks again and files it anew. So a session that
//! sets its time-out with each command costs nothing until one has really passed. Timeouts come from the ring, never from glommio.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use io_uring::{opcode, types};
use slab::Slab;

use crate::{ring::Shared, slot::Tag};

/// Filed entries that belong to no deadline any more are thrown out when there are more of them than live ones and this.
const STALE_MIN: usize = 64;

struct Entry {
    at: Option<Instant>,
    /// Its earliest place in the heap.
    filed: Option<Instant>,
    /// Tells a filed entry from one of an earlier deadline with the same key.
    generation: u32,
    waiter: Option<Waker>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Filed {
    at: Instant,
    key: u32,
    generation: u32,
}

/// The times alone, without a kernel.
#[derive(Default)]
struct Heap {
    entries: Slab<Entry>,
    filed: BinaryHeap<Reverse<Filed>>,
    generation: u32,
}

impl Heap {
    fn insert(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.entries.insert(Entry { at: None, filed: None, generation: self.generation, waiter: None }) as u32
    }

    /// Tells whether the nearest time may have come nearer.
    fn set(&mut self, key: u32, at: Option<Instant>) -> bool {
        let entry = &mut self.entries[key as usize];
        entry.at = at;
        match (at, entry.filed) {
            (None, _) => false,
            (Some(at), Some(filed)) if at >= filed => false,
            (Some(at), _) => {
                entry.filed = Some(at);
                let generation = entry.generation;
                self.filed.push(Reverse(Filed { at, key, generation }));
                self.drop_stale();
                true
            }
        }
    }

    fn drop_stale(&mut self) {
        if self.filed.len() > 2 * self.entries.len() + STALE_MIN {
            let entries = &self.entries;
            self.filed.retain(|Reverse(f)| is_current(entries, f));
        }
    }

    fn nearest(&self) -> Option<Instant> {
        self.filed.peek().map(|Reverse(filed)| filed.at)
    }

    /// Takes the next waiter whose time has come. `None`: there are no more.
    fn pop_expired(&mut self, now: Instant) -> Option<Option<Waker>> {
        loop {
            if self.nearest().is_none_or(|at| at > now) {
                return None;
            }
            let Reverse(filed) = self.filed.pop().expect("it was just looked at");
            if !is_current(&self.entries, &filed) {
                continue;
            }
            let entry = &mut self.entries[filed.key as usize];
            entry.filed = None;
            match entry.at {
                Some(at) if at > now => {
                    entry.filed = Some(at);
                    self.filed.push(Reverse(Filed { at, ..filed }));
                }
                Some(_) => return Some(entry.waiter.take()),
                None => {}
            }
        }
    }
}

fn is_current(entries: &Slab<Entry>, filed: &Filed) -> bool {
    entries.get(filed.key as usize).is_some_and(|e| e.generation == filed.generation && e.filed == Some(filed.at))
}

/// The heap and the timeout in the kernel.
pub(crate) struct Deadlines {
    heap: RefCell<Heap>,
    /// When the timeout in the kernel ends.
    armed_for: Cell<Option<Instant>>,
    /// The heap's nearest may be nearer than that.
    nearer: Cell<bool>,
    /// What the next timeout entry points at. The kernel copies it when it takes the entry.
    timespec: RefCell<Box<types::Timespec>>,
    /// The entry that last pointed at it.
    entry: Cell<Option<u64>>,
}

impl Deadlines {
    pub(crate) fn new() -> Deadlines {
        Deadlines {
            heap: RefCell::default(),
            armed_for: Cell::new(None),
            nearer: Cell::new(false),
            timespec: RefCell::default(),
            entry: Cell::new(Some(0)),
        }
    }

    pub(crate) fn needs_arming(&self) -> bool {
        self.nearer.get()
    }

    /// The kernel's timeout is over.
    pub(crate) fn timed_out(&self) {
        self.armed_for.set(None);
        self.nearer.set(true);
    }

    /// Wakes those whose time has come. Returns how many.
    pub(crate) fn expire(&self, now: Instant) -> usize {
        if self.heap.borrow().nearest().is_none_or(|at| at > now) {
            return 0;
        }
        self.nearer.set(true);
        let mut woken = 0;
        loop {
            let expired = self.heap.borrow_mut().pop_expired(now);
            match expired {
                None => return woken,
                Some(waiter) => woken += usize::from(waiter.map(Waker::wake).is_some()),
            }
        }
    }
}

impl Shared {
    /// Brings the timeout in the kernel in line with the nearest deadline.
    pub(crate) fn arm_deadline(&self) {
        let deadlines = &self.deadlines;
        if !deadlines.nearer.get() || !self.kernel.has_taken(deadlines.entry.get()) || self.is_shut_down() {
            return;
        }
        deadlines.nearer.set(false);
        let Some(nearest) = deadlines.heap.borrow().nearest() else { return };
        if deadlines.armed_for.get().is_some_and(|armed| armed <= nearest) {
            return;
        }
        // Never zero, which an update would take for an error, and never early: a clock read later only makes it shorter.
        let left = nearest.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        **deadlines.timespec.borrow_mut() = types::Timespec::new().sec(left.as_secs()).nsec(left.subsec_nanos());
        let timespec: *const types::Timespec = &raw const **deadlines.timespec.borrow();
        let user_data = Tag::Timeout.with(0);
        let entry = if deadlines.armed_for.get().is_none() {
            self.armed.set(self.armed.get() + 1);
            opcode::Timeout::new(timespec).build().user_data(user_data)
        } else {
            // Fails when it has just ended, whose completion arms it anew.
            let update = opcode::TimeoutUpdate::new(user_data, timespec).build();
            update.flags(io_uring::squeue::Flags::SKIP_SUCCESS).user_data(Tag::Forget.with(0))
        };
        deadlines.armed_for.set(Some(nearest));
        // SAFETY: the timespec is boxed in `Shared`, and not written again before the kernel took the entry.
        unsafe { self.kernel.push(entry) };
        deadlines.entry.set(self.kernel.last_pushed());
    }

    pub(crate) fn new_deadline(self: &Rc<Self>) -> Deadline {
        let key = self.deadlines.heap.borrow_mut().insert();
        Deadline { shared: self.clone(), key }
    }
}

/// A time that may be moved, and waited for by one task. Unset at first.
pub struct Deadline {
    shared: Rc<Shared>,
    key: u32,
}

impl Deadline {
    /// Moves it. Writes a field, unless it moves to an earlier time than it was last filed for.
    pub fn set(&self, at: Instant) {
        if self.shared.deadlines.heap.borrow_mut().set(self.key, Some(at)) {
            self.shared.deadlines.nearer.set(true);
        }
    }

    /// Never expires until it is set again.
    pub fn clear(&self) {
        self.shared.deadlines.heap.borrow_mut().set(self.key, None);
    }

    /// Where it stands.
    pub fn at(&self) -> Option<Instant> {
        self.shared.deadlines.heap.borrow().entries[self.key as usize].at
    }

    /// Waits until its time has come; for ever while it is not set.
    pub async fn expired(&self) {
        poll_fn(|cx| self.poll_expired(cx)).await;
    }

    /// `expired` for those who poll. One task waits at a time: the last one to poll.
    pub fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut heap = self.shared.deadlines.heap.borrow_mut();
        let entry = &mut heap.entries[self.key as usize];
        if entry.at.is_some_and(|at| at <= self.shared.now.get()) {
            return Poll::Ready(());
        }
        if entry.waiter.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let before = entry.waiter.replace(cx.waker().clone());
        drop(heap);
        drop(before);
        Poll::Pending
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadline").field("at", &self.at()).finish()
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let entry = self.shared.deadlines.heap.borrow_mut().entries.remove(self.key as usize);
        drop(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves deadlines at random beside a plain table of times.
    #[test]
    fn deadlines_expire_at_their_last_set_time_whatever_was_set_before() {
        for seed in 0..50u64 {
            println!("seed {seed}");
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut random = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let start = Instant::now();
            let (mut heap, mut now) = (Heap::default(), start);
            let mut model: Vec<(u32, Option<Instant>)> = (0..20).map(|_| (heap.insert(), None)).collect();
            for _ in 0..2000 {
                match random(4) {
                    0 | 1 => {
                        let which = random(20) as usize;
                        let at = (random(8) > 0).then(|| now + Duration::from_millis(1 + random(500)));
                        heap.set(model[which].0, at);
                        model[which].1 = at;
                    }
                    2 => {
                        let which = random(20) as usize;
                        heap.entries.remove(model[which].0 as usize);
                        model[which] = (heap.insert(), None);
                    }
                    _ => {
                        now += Duration::from_millis(random(50));
                        let mut expired = 0;
                        while heap.pop_expired(now).is_some() {
                            expired += 1;
                        }
                        let due = model.iter_mut().filter(|(_, at)| at.is_some_and(|at| at <= now));
                        let due: Vec<_> = due.map(|(key, at)| (*key, at.take())).collect();
                        assert_eq!(expired, due.len());
                        due.iter().for_each(|(key, _)| heap.entries[*key as usize].at = None);
                        let nearest = model.iter().filter_map(|(_, at)| *at).min();
                        assert!(nearest.is_none_or(|n| heap.nearest().is_some_and(|h| h <= n)), "none is forgotten");
                    }
                }
                assert!(heap.filed.len() <= 2 * 20 + STALE_MIN + 1, "{} filed", heap.filed.len());
            }
        }
    }
}
