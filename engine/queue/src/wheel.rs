//! A hierarchical timer wheel: set, move and cancel in O(1), one deadline per index, millisecond resolution.
//!
//! Eleven levels of 64 slots cover every 64-bit time, so nothing is ever "too far". A deadline sits at the level of the
//! highest base-64 digit in which it differs from the base time, and moves down when the base reaches its slot.
//!
//! Mail that is delivered at once sets a deadline days ahead and cancels it. What is cancelled stays in its list until its slot is reached or
//! its index has a deadline elsewhere: the next message of that index mostly has one in the same slot, and then no list is touched, whose
//! other nodes are in no cache.

use std::ops::{Index, IndexMut};

use crate::slab::{NONE, Slab};

const LEVELS: usize = 11;
const SLOTS: usize = 64;

/// A deadline, set or not, and where it is linked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    /// In halves, so that a node takes 20 bytes.
    deadline: [u32; 2],
    previous: u32,
    next: u32,
    /// `level * 64 + slot`, with [`CANCELLED`] if its deadline is not set any more, or [`IDLE`] in no list.
    place: u16,
}

const CANCELLED: u16 = 1 << 15;
const IDLE: u16 = u16::MAX;
const _: () = assert!(LEVELS * SLOTS < (IDLE & !CANCELLED) as usize);

impl Node {
    fn deadline(&self) -> u64 {
        u64::from(self.deadline[1]) << 32 | u64::from(self.deadline[0])
    }

    fn is_set(&self) -> bool {
        self.place & CANCELLED == 0
    }

    /// The list that it is in, if it is in one.
    fn list(&self) -> u16 {
        self.place & !CANCELLED
    }
}

fn halves(deadline: u64) -> [u32; 2] {
    [deadline as u32, (deadline >> 32) as u32]
}

const _: () = assert!(size_of::<Node>() <= 20);

impl AsRef<Self> for Node {
    #[inline]
    fn as_ref(&self) -> &Self {
        self
    }
}

impl AsMut<Self> for Node {
    #[inline]
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}

impl Default for Node {
    fn default() -> Self {
        Self { deadline: [0; 2], previous: NONE, next: NONE, place: IDLE }
    }
}

/// What [`Wheel::pop`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Popped {
    /// The deadline of this index has come; it is no longer set.
    Due(u32),
    /// As many nodes were moved as may be at a time; call again, later.
    Working,
    /// Nothing is due.
    Nothing,
}

/// Deadlines of indices that the caller hands out (from a [`Slab`] of its own). A `T` has the node of an index, and what else is kept by
/// that index and looked at when its deadline is.
#[derive(Debug)]
pub(crate) struct Wheel<T = Node> {
    base: u64,
    nodes: Slab<T>,
    heads: Box<[u32; LEVELS * SLOTS]>,
    occupied: [u64; LEVELS],
    cascading: Option<u16>,
    /// Deadlines that are set.
    set: usize,
    /// Nothing is to be done before: at or before the start of the earliest occupied slot.
    quiet_until: u64,
}

impl<T: Default + AsRef<Node> + AsMut<Node>> Wheel<T> {
    /// `now` only needs to be near: earlier deadlines are due at once.
    pub(crate) fn new(now: u64) -> Self {
        let heads = Box::new([NONE; LEVELS * SLOTS]);
        Self { base: now, nodes: Slab::new(), heads, occupied: [0; LEVELS], cascading: None, set: 0, quiet_until: 0 }
    }

    /// Makes sure that `index` can be looked at, without a deadline.
    #[inline]
    pub(crate) fn cover(&mut self, index: u32) {
        self.nodes.cover(index);
    }

    /// What is kept by an index, if it ever had a deadline or was covered.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.nodes.get(index)
    }

    /// Sets or moves the deadline of `index`.
    #[inline]
    pub(crate) fn set(&mut self, index: u32, deadline: u64) {
        self.nodes.cover(index);
        let place = self.place(deadline);
        let node = self.nodes[index].as_mut();
        self.set += usize::from(!node.is_set());
        if node.list() == place {
            (node.deadline, node.place) = (halves(deadline), place);
        } else {
            self.relink(index, deadline, place);
        }
    }

    /// Moves `index` into another list, or into its first one.
    #[inline(never)]
    fn relink(&mut self, index: u32, deadline: u64, place: u16) {
        if self.node(index).place != IDLE {
            self.unlink(index);
        }
        self.link(index, deadline, place);
    }

    /// Sets or moves the deadline of `index`; `u64::MAX` is none.
    #[inline]
    pub(crate) fn set_or_cancel(&mut self, index: u32, deadline: u64) {
        match deadline {
            u64::MAX => self.cancel(index),
            deadline => self.set(index, deadline),
        }
    }

    /// Forgets the deadline of `index`, if it has one.
    #[inline]
    pub(crate) fn cancel(&mut self, index: u32) {
        if let Some(node) = self.nodes.get_mut(index).map(|timed| timed.as_mut()).filter(|node| node.is_set()) {
            node.place |= CANCELLED;
            self.set -= 1;
        }
    }

    /// The deadline of `index`, if it has one.
    pub(crate) fn deadline(&self, index: u32) -> Option<u64> {
        self.is_set(index).then(|| self.node(index).deadline())
    }

    /// Whether `index` has a deadline.
    pub(crate) fn is_set(&self, index: u32) -> bool {
        self.nodes.get(index).is_some_and(|timed| timed.as_ref().is_set())
    }

    /// The next index whose deadline is at or before `now`. Each node that is moved or given out takes one of `moves`, so that a million
    /// deadlines in one slot do not stall a shard.
    #[inline]
    pub(crate) fn pop(&mut self, now: u64, moves: &mut usize) -> Popped {
        if now < self.quiet_until && self.cascading.is_none() {
            return Popped::Nothing;
        }
        self.turn(now, moves)
    }

    fn turn(&mut self, now: u64, moves: &mut usize) -> Popped {
        let now = now.max(self.base);
        loop {
            if let Some(place) = self.cascading
                && !self.cascade(place, moves)
            {
                return Popped::Working;
            }
            let Some((level, slot, start)) = self.earliest() else {
                (self.base, self.quiet_until) = (now, u64::MAX);
                return Popped::Nothing;
            };
            if start > now {
                (self.base, self.quiet_until) = (now, start);
                return Popped::Nothing;
            }
            self.base = self.base.max(start);
            let place = (level * SLOTS + slot) as u16;
            if level == 0 {
                let Some(left) = moves.checked_sub(1) else { return Popped::Working };
                *moves = left;
                let index = self.heads[place as usize];
                let is_set = self.node(index).is_set();
                self.unlink(index);
                if !is_set {
                    continue;
                }
                self.set -= 1;
                return Popped::Due(index);
            }
            self.cascading = Some(place);
        }
    }

    /// When to call [`Wheel::pop`] next: never after the nearest deadline, at most a few times before it, and once more for each slot in
    /// which all were cancelled. `None` when nothing is set.
    pub(crate) fn next_due(&self) -> Option<u64> {
        if self.set == 0 {
            return None;
        }
        if self.cascading.is_some() {
            return Some(self.base);
        }
        self.earliest().map(|(_, _, start)| start)
    }

    /// Levels hold disjoint spans of time, the lower the earlier, so the first occupied slot of the first occupied level is it.
    fn earliest(&self) -> Option<(usize, usize, u64)> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let above = 6 * (level as u32 + 1);
        let upper = if above >= 64 { 0 } else { self.base >> above << above };
        Some((level, slot, upper | (slot as u64) << (6 * level)))
    }

    /// Moves up to so many nodes of a slot down; true when it is empty.
    fn cascade(&mut self, place: u16, moves: &mut usize) -> bool {
        while *moves > 0 {
            let index = self.heads[place as usize];
            if index == NONE {
                break;
            }
            *moves -= 1;
            let node = *self.node(index);
            self.unlink(index);
            if node.is_set() {
                self.link(index, node.deadline(), self.place(node.deadline()));
            }
        }
        let empty = self.heads[place as usize] == NONE;
        if empty {
            self.cascading = None;
        }
        empty
    }

    #[inline]
    fn node(&self, index: u32) -> &Node {
        self.nodes[index].as_ref()
    }

    #[inline]
    fn node_mut(&mut self, index: u32) -> &mut Node {
        self.nodes[index].as_mut()
    }

    /// The list for a deadline.
    #[inline]
    fn place(&self, deadline: u64) -> u16 {
        let at = deadline.max(self.base);
        let level = ((63 - ((self.base ^ at) | 63).leading_zeros()) / 6) as usize;
        (level * SLOTS + (at >> (6 * level)) as usize % SLOTS) as u16
    }

    #[inline]
    fn link(&mut self, index: u32, deadline: u64, place: u16) {
        let (level, slot) = (usize::from(place) / SLOTS, usize::from(place) % SLOTS);
        let shift = 6 * level as u32;
        self.quiet_until = self.quiet_until.min(deadline.max(self.base) >> shift << shift);
        self.occupied[level] |= 1 << slot;
        let head = std::mem::replace(&mut self.heads[usize::from(place)], index);
        *self.node_mut(index) = Node { deadline: halves(deadline), previous: NONE, next: head, place };
        if head != NONE {
            self.node_mut(head).previous = index;
        }
    }

    #[inline]
    fn unlink(&mut self, index: u32) {
        let node = self.node_mut(index);
        let (Node { previous, next, .. }, place) = (*node, usize::from(node.list()));
        node.place = IDLE;
        if next != NONE {
            self.node_mut(next).previous = previous;
        }
        if previous != NONE {
            self.node_mut(previous).next = next;
            return;
        }
        self.heads[place] = next;
        if next == NONE {
            self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
        }
    }
}

impl<T> Index<u32> for Wheel<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: u32) -> &T {
        &self.nodes[index]
    }
}

impl<T> IndexMut<u32> for Wheel<T> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.nodes[index]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::queue::{Queue, QueueSettings};
    use crate::retry::Jitter;
    use crate::routes::Routes;

    fn due(wheel: &mut Wheel, now: u64) -> BTreeSet<u32> {
        let mut all = BTreeSet::new();
        loop {
            match wheel.pop(now, &mut 64) {
                Popped::Due(index) => assert!(all.insert(index)),
                Popped::Working => {}
                Popped::Nothing => return all,
            }
        }
    }

    #[test]
    fn random_operations_agree_with_a_sorted_map() {
        for seed in 0..40 {
            let mut random = Jitter::new(seed);
            let mut now = 1_790_000_000_000 + random.below(1 << 37);
            let mut wheel = Wheel::new(now);
            let mut model = BTreeMap::<u32, u64>::new();
            for _ in 0..4000 {
                let index = random.below(1500) as u32;
                match random.below(10) {
                    0..=5 => {
                        let span = 1 << random.below(40);
                        let deadline = now + random.below(span);
                        wheel.set(index, deadline);
                        model.insert(index, deadline);
                    }
                    6..=7 => {
                        wheel.cancel(index);
                        model.remove(&index);
                    }
                    _ => {
                        let nearest = model.values().min().copied();
                        match (wheel.next_due(), nearest) {
                            (Some(at), Some(nearest)) => assert!(at.max(now) <= nearest.max(now), "seed {seed}"),
                            (at, nearest) => assert_eq!(at, nearest, "seed {seed}"),
                        }
                        let span = 1 << random.below(34);
                        now = match random.below(3) {
                            0 => now + random.below(span),
                            _ => wheel.next_due().unwrap_or(now).max(now),
                        };
                        let expected: BTreeSet<_> = model.iter().filter(|(_, at)| **at <= now).map(|(index, _)| *index).collect();
                        model.retain(|_, at| *at > now);
                        assert_eq!(due(&mut wheel, now), expected, "seed {seed} at {now}");
                    }
                }
            }
        }
    }

    #[test]
    fn waking_only_when_told_meets_a_deadline_exactly_and_after_few_visits() {
        let start = 1_790_000_000_000;
        let mut wheel = Wheel::new(start);
        let deadline = start + 5 * 24 * 3_600_000 + 17;
        wheel.set(3, deadline);
        let mut visits = 0;
        loop {
            let at = wheel.next_due().unwrap();
            visits += 1;
            match due(&mut wheel, at).len() {
                0 => assert!(at < deadline),
                _ => break assert_eq!(at, deadline),
            }
        }
        assert!(visits <= 7, "{visits}");
        assert_eq!(wheel.next_due(), None);
    }

    #[test]
    fn cancelled_deadlines_fire_never_and_wake_a_few_times_at_most() {
        let start = 1_790_000_000_000;
        let (mut wheel, mut random) = (Wheel::new(start), Jitter::new(1));
        let last = start + 5 * 24 * 3_600_000;
        for index in 0..20_000 {
            wheel.set(index, start + random.below(last - start));
            wheel.cancel(index);
            assert!(!wheel.is_set(index));
        }
        assert_eq!(wheel.next_due(), None, "nothing is set");
        wheel.set(7, last);
        let mut visits = 0;
        loop {
            let at = wheel.next_due().unwrap();
            visits += 1;
            let due = due(&mut wheel, at);
            if !due.is_empty() {
                break assert_eq!((at, due), (last, BTreeSet::from([7])));
            }
        }
        assert!(visits <= LEVELS * SLOTS, "{visits}");
        assert_eq!(wheel.next_due(), None);
    }

    #[test]
    fn an_index_that_was_cancelled_is_set_again_within_its_list() {
        let mut wheel = Wheel::new(1 << 20);
        let (first, second) = ((1 << 20) + 70_000, (1 << 20) + 70_001);
        for index in 0..3 {
            wheel.set(index, first);
        }
        wheel.cancel(1);
        wheel.set(1, second);
        assert_eq!((due(&mut wheel, first), due(&mut wheel, second)), (BTreeSet::from([0, 2]), BTreeSet::from([1])));
    }

    /// One poll took a thousand times 256 cancelled deadlines out of their slot, for it counted them by the 256: the shard stood still.
    #[test]
    fn one_poll_moves_no_more_deadlines_than_it_may() {
        const CANCELLED: u32 = 100_000;
        let start = 1_790_000_000_000;
        let deadline = start + 5 * 24 * 3_600_000;
        let mut queue = Queue::new(QueueSettings::default(), Routes::default(), 1, start);
        queue.poll(start, &mut Vec::new());
        fn fill<T: Default + AsRef<Node> + AsMut<Node>>(wheel: &mut Wheel<T>, deadline: u64) {
            for index in 0..CANCELLED {
                wheel.set(index, deadline);
                wheel.cancel(index);
            }
            wheel.set(CANCELLED, deadline + 3_600_000);
        }
        fn linked_in<T: Default + AsRef<Node> + AsMut<Node>>(wheel: &Wheel<T>) -> usize {
            (0..CANCELLED).filter(|index| wheel.node(*index).place != IDLE).count()
        }
        fill(&mut queue.groups.timers, deadline);
        fill(&mut queue.destination_timers, deadline);
        fill(queue.reports.timers_mut(), deadline);
        let linked = |queue: &mut Queue| {
            [linked_in(&queue.groups.timers), linked_in(&queue.destination_timers), linked_in(queue.reports.timers_mut())]
        };
        let mut before = linked(&mut queue);
        assert_eq!(before, [CANCELLED as usize; 3]);
        let mut polls = 0;
        while before != [0; 3] {
            assert!(queue.poll(deadline + 1, &mut Vec::new()).is_none());
            let after = linked(&mut queue);
            let moved: usize = before.iter().zip(after).map(|(before, after)| before - after).sum();
            assert!((1..=4096).contains(&moved), "{moved} after {polls} polls");
            (before, polls) = (after, polls + 1);
        }
        assert!(queue.groups.timers.is_set(CANCELLED) && queue.destination_timers.is_set(CANCELLED));
        assert!(queue.reports.timers_mut().is_set(CANCELLED));
    }

    #[test]
    fn a_clock_that_goes_back_fires_nothing_early() {
        let mut wheel = Wheel::new(1000);
        wheel.set(0, 5000);
        assert!(due(&mut wheel, 4999).is_empty());
        assert!(due(&mut wheel, 10).is_empty());
        wheel.set(1, 20);
        assert_eq!(due(&mut wheel, 4999), BTreeSet::from([1]));
        assert_eq!(due(&mut wheel, 5000), BTreeSet::from([0]));
    }
}
