//! The ready queue of one destination: groups that may be attempted now, by priority and age.

use crate::groups::Groups;
use crate::message::{Group, PRIORITY_MAX};
use crate::slab::NONE;

const PRIORITIES: usize = PRIORITY_MAX as usize + 1;

/// The first and the last group of a list, or [`NONE`] where it is empty.
#[derive(Clone, Copy, Debug)]
struct Ends {
    head: u32,
    tail: u32,
}

/// One list per priority, linked through the groups, each in the order of arrival.
///
/// What is looked at for a message stands together: a destination is one of many, and its lines are in no cache when its turn comes.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ReadyQueue {
    groups: usize,
    /// Bit p: there are groups of priority p.
    occupied: u16,
    lists: [Ends; PRIORITIES],
}

impl ReadyQueue {
    pub(crate) const fn new() -> Self {
        Self { groups: 0, occupied: 0, lists: [Ends { head: NONE, tail: NONE }; PRIORITIES] }
    }

    pub(crate) fn len(&self) -> usize {
        self.groups
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups == 0
    }

    /// The highest priority of a group in it; 0 when it is empty.
    pub(crate) fn best_priority(&self) -> u8 {
        (u16::BITS - self.occupied.leading_zeros()).saturating_sub(1) as u8
    }

    /// Appends a group, whose age counts from now on.
    pub(crate) fn push(&mut self, groups: &mut Groups, index: u32, now: u64) {
        let before = self.append(&mut groups[index], index, now);
        if before != NONE {
            groups[before].next = index;
        }
    }

    /// As [`ReadyQueue::push`]; the caller says to the group that is returned, if one is, who comes behind it.
    #[inline]
    #[must_use]
    pub(crate) fn append(&mut self, group: &mut Group, index: u32, now: u64) -> u32 {
        let priority = usize::from(group.priority);
        let list = &mut self.lists[priority];
        let before = std::mem::replace(&mut list.tail, index);
        (group.previous, group.next, group.ready_since_s) = (before, NONE, u32::try_from(now / 1000).unwrap_or(u32::MAX));
        if before == NONE {
            list.head = index;
        }
        self.occupied |= 1 << priority;
        self.groups += 1;
        before
    }

    /// Puts a group back before all others of its priority, with the age it had.
    pub(crate) fn put_back(&mut self, groups: &mut Groups, index: u32) {
        let group = &mut groups[index];
        let priority = usize::from(group.priority);
        let list = &mut self.lists[priority];
        let head = std::mem::replace(&mut list.head, index);
        (group.previous, group.next) = (NONE, head);
        match head {
            NONE => list.tail = index,
            head => groups[head].previous = index,
        }
        self.occupied |= 1 << priority;
        self.groups += 1;
    }

    /// Moves a group before all others, of any priority.
    pub(crate) fn move_first(&mut self, groups: &mut Groups, index: u32) {
        self.remove(groups, index);
        groups[index].ready_since_s = 0;
        self.put_back(groups, index);
    }

    /// The first and the last group of each priority.
    pub(crate) fn ends(&self) -> impl Iterator<Item = u32> + '_ {
        let tails = self.lists.iter().rev().map(|list| list.tail);
        tails.chain(self.lists.iter().rev().map(|list| list.head)).filter(|&end| end != NONE)
    }

    /// Takes out the group that is before all others of its priority; `next` is behind it.
    #[inline]
    pub(crate) fn remove_first(&mut self, groups: &mut Groups, priority: u8, next: u32) {
        let list = &mut self.lists[usize::from(priority)];
        list.head = next;
        match next {
            NONE => {
                list.tail = NONE;
                self.occupied &= !(1 << priority);
            }
            next => groups[next].previous = NONE,
        }
        self.groups -= 1;
    }

    /// Takes out a group that stands anywhere.
    #[inline]
    pub(crate) fn remove(&mut self, groups: &mut Groups, index: u32) {
        let Group { previous, next, priority, .. } = groups[index];
        let list = &mut self.lists[usize::from(priority)];
        match previous {
            NONE => list.head = next,
            previous => groups[previous].next = next,
        }
        match next {
            NONE => list.tail = previous,
            next => groups[next].previous = previous,
        }
        if list.head == NONE {
            self.occupied &= !(1 << priority);
        }
        self.groups -= 1;
    }

    /// The group whose turn it is. Each priority is worth `age_step_ms` of waiting, so a message of priority 0 waits at most
    /// nine steps longer than one of priority 9 that came at the same time, however many of those come after it.
    #[inline]
    pub(crate) fn first(&self, groups: &Groups, age_step_ms: u64) -> Option<u32> {
        if self.occupied.is_power_of_two() {
            return Some(self.lists[self.occupied.trailing_zeros() as usize].head);
        }
        self.first_of_several(groups, age_step_ms)
    }

    #[inline(never)]
    fn first_of_several(&self, groups: &Groups, age_step_ms: u64) -> Option<u32> {
        // On equal turns the higher priority, which comes first here, wins.
        self.lists.iter().rev().map(|list| list.head).filter(|&head| head != NONE).min_by_key(|&head| groups[head].turn(age_step_ms))
    }
}

impl Group {
    /// What decides who is first: the time since when it is ready, later by a step for each priority below the highest.
    pub(crate) fn turn(&self, age_step_ms: u64) -> u64 {
        u64::from(self.ready_since_s) * 1000 + u64::from(PRIORITY_MAX - self.priority) * age_step_ms
    }
}
