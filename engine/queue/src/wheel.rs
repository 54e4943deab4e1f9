//! A hierarchical timer wheel: set, move and cancel in O(1), one deadline per index, millisecond resolution.
//!
//! Eleven levels of 64 slots cover every 64-bit time, so nothing is ever "too far". A deadline sits at the level of the
//! highest base-64 digit in which it differs from the base time, and moves down when the base reaches its slot.

use std::hint::black_box;

use crate::slab::{NONE, Slab};

const LEVELS: usize = 11;
const SLOTS: usize = 64;

/// Nodes moved down per call of [`Wheel::pop`], so that a million deadlines in one slot do not stall a shard.
const CASCADE_MAX: usize = 256;

#[derive(Debug, Clone, Copy)]
struct Node {
    /// In halves, so that a node takes 20 bytes.
    deadline: [u32; 2],
    previous: u32,
    next: u32,
    /// `level * 64 + slot`, or [`IDLE`].
    place: u16,
}

const IDLE: u16 = u16::MAX;

impl Node {
    fn deadline(&self) -> u64 {
        u64::from(self.deadline[1]) << 32 | u64::from(self.deadline[0])
    }
}

const _: () = assert!(size_of::<Node>() <= 20);

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
    /// Some deadlines were moved down; call again.
    Working,
    /// Nothing is due.
    Nothing,
}

/// Deadlines of indices that the caller hands out (from a [`Slab`] of its own).
#[derive(Debug)]
pub(crate) struct Wheel {
    base: u64,
    nodes: Slab<Node>,
    heads: Box<[u32; LEVELS * SLOTS]>,
    occupied: [u64; LEVELS],
    cascading: Option<u16>,
    /// Nothing is to be done before: at or before the start of the earliest occupied slot.
    quiet_until: u64,
}

impl Wheel {
    /// `now` only needs to be near: earlier deadlines are due at once.
    pub(crate) fn new(now: u64) -> Self {
        let heads = Box::new([NONE; LEVELS * SLOTS]);
        Self { base: now, nodes: Slab::new(), heads, occupied: [0; LEVELS], cascading: None, quiet_until: 0 }
    }

    /// Sets or moves the deadline of `index`.
    pub(crate) fn set(&mut self, index: u32, deadline: u64) {
        self.nodes.cover(index);
        let node = &self.nodes[index];
        if node.place != IDLE {
            if node.deadline() == deadline {
                return;
            }
            self.unlink(index);
        }
        self.link(index, deadline);
    }

    /// Forgets the deadline of `index`, if it has one.
    #[inline]
    pub(crate) fn cancel(&mut self, index: u32) {
        if self.nodes.get(index).is_some_and(|node| node.place != IDLE) {
            self.unlink(index);
        }
    }

    /// Whether `index` has a deadline.
    pub(crate) fn is_set(&self, index: u32) -> bool {
        self.nodes.get(index).is_some_and(|node| node.place != IDLE)
    }

    /// Brings the deadline of `index` into the cache without waiting for it.
    pub(crate) fn touch(&self, index: u32) {
        black_box(self.nodes.get(index).map(|node| node.place));
    }

    /// The next index whose deadline is at or before `now`.
    #[inline]
    pub(crate) fn pop(&mut self, now: u64) -> Popped {
        if now < self.quiet_until && self.cascading.is_none() {
            return Popped::Nothing;
        }
        self.turn(now)
    }

    fn turn(&mut self, now: u64) -> Popped {
        let now = now.max(self.base);
        loop {
            if let Some(place) = self.cascading
                && !self.cascade(place)
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
                let index = self.heads[place as usize];
                self.unlink(index);
                return Popped::Due(index);
            }
            self.cascading = Some(place);
        }
    }

    /// When to call [`Wheel::pop`] next: never after the nearest deadline, at most a few times before it.
    pub(crate) fn next_due(&self) -> Option<u64> {
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

    /// Moves up to [`CASCADE_MAX`] nodes of a slot down; true when it is empty.
    fn cascade(&mut self, place: u16) -> bool {
        for _ in 0..CASCADE_MAX {
            let index = self.heads[place as usize];
            if index == NONE {
                break;
            }
            let deadline = self.nodes[index].deadline();
            self.unlink(index);
            self.link(index, deadline);
        }
        let empty = self.heads[place as usize] == NONE;
        if empty {
            self.cascading = None;
        }
        empty
    }

    #[inline]
    fn link(&mut self, index: u32, deadline: u64) {
        let at = deadline.max(self.base);
        let level = ((63 - ((self.base ^ at) | 63).leading_zeros()) / 6) as usize;
        let shift = 6 * level as u32;
        let slot = (at >> shift) as usize % SLOTS;
        self.quiet_until = self.quiet_until.min(at >> shift << shift);
        self.occupied[level] |= 1 << slot;
        let place = level * SLOTS + slot;
        let head = std::mem::replace(&mut self.heads[place], index);
        self.nodes[index] = Node { deadline: [deadline as u32, (deadline >> 32) as u32], previous: NONE, next: head, place: place as u16 };
        if head != NONE {
            self.nodes[head].previous = index;
        }
    }

    #[inline]
    fn unlink(&mut self, index: u32) {
        let node = &mut self.nodes[index];
        let Node { previous, next, .. } = *node;
        let place = std::mem::replace(&mut node.place, IDLE);
        if next != NONE {
            self.nodes[next].previous = previous;
        }
        if previous != NONE {
            self.nodes[previous].next = next;
            return;
        }
        self.heads[place as usize] = next;
        if next == NONE {
            self.occupied[place as usize / SLOTS] &= !(1 << (place as usize % SLOTS));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::retry::Jitter;

    fn due(wheel: &mut Wheel, now: u64) -> BTreeSet<u32> {
        let mut all = BTreeSet::new();
        loop {
            match wheel.pop(now) {
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
