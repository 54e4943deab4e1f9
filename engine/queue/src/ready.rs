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

/// One list per priority, linked through the groups, each in the order of arrival; and such lists of those that were set aside, behind all
/// others whatever their priority and age.
///
/// What is looked at for a message stands together: a destination is one of many, and its lines are in no cache when its turn comes.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ReadyQueue {
    aside: Option<Box<Aside>>,
    groups: u32,
    lists: Lists,
}

#[derive(Debug)]
#[repr(C)]
struct Lists {
    /// Bit p: there are groups of priority p.
    occupied: u16,
    ends: [Ends; PRIORITIES],
}

#[derive(Debug)]
struct Aside {
    lists: Lists,
    /// Names the cause, so that those of an earlier one are told from them.
    cause: u64,
}

impl ReadyQueue {
    pub(crate) const fn new() -> Self {
        Self { aside: None, groups: 0, lists: Lists::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.groups as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups == 0
    }

    /// The highest priority of a group in it; 0 when it is empty.
    pub(crate) fn best_priority(&self) -> u8 {
        let occupied = self.lists.occupied | self.aside.as_ref().map_or(0, |aside| aside.lists.occupied);
        (u16::BITS - occupied.leading_zeros()).saturating_sub(1) as u8
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
        group.ready_since_s = u32::try_from(now / 1000).unwrap_or(u32::MAX);
        self.groups += 1;
        self.lists.append(group, index)
    }

    /// Puts a group back before all others of its priority, with the age it had.
    pub(crate) fn put_back(&mut self, groups: &mut Groups, index: u32) {
        let group = &mut groups[index];
        let priority = usize::from(group.priority);
        let list = &mut self.lists.ends[priority];
        let head = std::mem::replace(&mut list.head, index);
        (group.previous, group.next) = (NONE, head);
        match head {
            NONE => list.tail = index,
            head => groups[head].previous = index,
        }
        self.lists.occupied |= 1 << priority;
        self.groups += 1;
    }

    /// Moves a group before all others, of any priority.
    pub(crate) fn move_first(&mut self, groups: &mut Groups, index: u32) {
        self.remove(groups, index);
        groups[index].ready_since_s = 0;
        self.put_back(groups, index);
    }

    /// Takes out the group that is before all others of its priority; `next` is behind it.
    #[inline]
    pub(crate) fn remove_first(&mut self, groups: &mut Groups, index: u32, priority: u8, next: u32) {
        if self.has_aside() {
            return self.remove(groups, index);
        }
        let list = &mut self.lists.ends[usize::from(priority)];
        list.head = next;
        match next {
            NONE => {
                list.tail = NONE;
                self.lists.occupied &= !(1 << priority);
            }
            next => groups[next].previous = NONE,
        }
        self.groups -= 1;
    }

    /// Takes out a group that stands anywhere.
    #[inline]
    pub(crate) fn remove(&mut self, groups: &mut Groups, index: u32) {
        let Group { previous, next, priority, .. } = groups[index];
        if previous != NONE {
            groups[previous].next = next;
        }
        if next != NONE {
            groups[next].previous = previous;
        }
        // From the middle of a list it is taken without knowing which one.
        if previous == NONE || next == NONE {
            let priority = usize::from(priority);
            let lists = match &mut self.aside {
                Some(aside) if aside.lists.ends[priority].has(index) => &mut aside.lists,
                _ => &mut self.lists,
            };
            let list = &mut lists.ends[priority];
            if previous == NONE {
                list.head = next;
            }
            if next == NONE {
                list.tail = previous;
            }
            if list.head == NONE {
                lists.occupied &= !(1 << priority);
            }
        }
        self.groups -= 1;
    }

    /// The group whose turn it is: of those that were set aside one only when there is no other. Each priority is worth `age_step_ms` of waiting,
    /// so a message of priority 0 waits at most nine steps longer than one of priority 9 that came at the same time, however many of those
    /// come after it.
    #[inline]
    pub(crate) fn first(&self, groups: &Groups, age_step_ms: u64) -> Option<u32> {
        if self.lists.occupied.is_power_of_two() {
            return Some(self.lists.ends[self.lists.occupied.trailing_zeros() as usize].head);
        }
        self.lists.first_of_several(groups, age_step_ms).or_else(|| self.aside.as_ref()?.lists.first_of_several(groups, age_step_ms))
    }

    /// Groups may be set aside.
    #[inline]
    pub(crate) fn has_aside(&self) -> bool {
        self.aside.is_some()
    }

    /// All groups were set aside for this cause.
    pub(crate) fn is_all_aside(&self, cause: u64) -> bool {
        self.lists.occupied == 0 && self.aside.as_ref().is_some_and(|aside| aside.cause == cause)
    }

    /// Sets a group aside that is not yet, with its age. Those of another cause [rejoin](ReadyQueue::rejoin) first.
    pub(crate) fn set_aside(&mut self, groups: &mut Groups, index: u32, cause: u64) {
        self.remove(groups, index);
        let aside = self.aside.get_or_insert_with(|| Box::new(Aside { lists: Lists::new(), cause }));
        assert_eq!(aside.cause, cause, "those of another cause have rejoined");
        let before = aside.lists.append(&mut groups[index], index);
        if before != NONE {
            groups[before].next = index;
        }
        self.groups += 1;
    }

    /// Puts those back before the others of their priority that were set aside for another cause than `cause`.
    pub(crate) fn rejoin(&mut self, groups: &mut Groups, cause: Option<u64>) {
        let Some(aside) = self.aside.take_if(|aside| Some(aside.cause) != cause) else { return };
        for priority in (0..PRIORITIES).filter(|priority| aside.lists.occupied & 1 << priority != 0) {
            let (first, list) = (aside.lists.ends[priority], &mut self.lists.ends[priority]);
            let head = std::mem::replace(&mut list.head, first.head);
            groups[first.tail].next = head;
            match head {
                NONE => list.tail = first.tail,
                head => groups[head].previous = first.tail,
            }
            self.lists.occupied |= 1 << priority;
        }
    }
}

impl Ends {
    fn has(self, group: u32) -> bool {
        self.head == group || self.tail == group
    }
}

impl Lists {
    const fn new() -> Self {
        Self { occupied: 0, ends: [Ends { head: NONE, tail: NONE }; PRIORITIES] }
    }

    #[inline]
    fn append(&mut self, group: &mut Group, index: u32) -> u32 {
        let priority = usize::from(group.priority);
        let list = &mut self.ends[priority];
        let before = std::mem::replace(&mut list.tail, index);
        (group.previous, group.next) = (before, NONE);
        if before == NONE {
            list.head = index;
        }
        self.occupied |= 1 << priority;
        before
    }

    #[inline(never)]
    fn first_of_several(&self, groups: &Groups, age_step_ms: u64) -> Option<u32> {
        // On equal turns the higher priority, which comes first here, wins.
        self.ends.iter().rev().map(|list| list.head).filter(|&head| head != NONE).min_by_key(|&head| groups[head].turn(age_step_ms))
    }
}

impl Group {
    /// What decides who is first: the time since when it is ready, later by a step for each priority below the highest.
    pub(crate) fn turn(&self, age_step_ms: u64) -> u64 {
        u64::from(self.ready_since_s) * 1000 + u64::from(PRIORITY_MAX - self.priority) * age_step_ms
    }
}
