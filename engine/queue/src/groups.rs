//! The groups of a queue, and beside them the timers of its messages.
//!
//! Most mail has one recipient and so one group. A message's first group has the message's own index and shares a cache line with its
//! timer: both are written when the message comes and read again when it is tried and leaves, and by then they have left the cache.

use std::ops::{Index, IndexMut};

use ringpost_prefetch::prefetch;

use crate::message::Group;
use crate::slab::Slab;
use crate::wheel::{Node, Wheel};

/// Marks a group that is not the first of its message.
const FURTHER: u32 = 1 << 31;

/// What each message has, by the message's own index.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Own {
    group: Group,
    timer: Node,
}

const _: () = assert!(size_of::<Own>() == 64);

impl AsRef<Node> for Own {
    #[inline]
    fn as_ref(&self) -> &Node {
        &self.timer
    }
}

impl AsMut<Node> for Own {
    #[inline]
    fn as_mut(&mut self) -> &mut Node {
        &mut self.timer
    }
}

/// All groups, addressed by a 32-bit index.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Of messages, by their index.
    pub(crate) timers: Wheel<Own>,
    further: Slab<Group>,
}

impl Groups {
    /// None yet. `now` as for [`Wheel::new`].
    pub(crate) fn new(now: u64) -> Self {
        Self { timers: Wheel::new(now), further: Slab::new() }
    }

    /// The place of a message's first group, which the message has as long as it is queued.
    #[inline]
    pub(crate) fn first_of(&mut self, message: u32) -> u32 {
        assert!(message < FURTHER, "the caller bounds the number of messages");
        self.timers.cover(message);
        message
    }

    /// Takes a place for a further group of a message.
    pub(crate) fn take_further(&mut self) -> u32 {
        FURTHER | self.further.take()
    }

    /// Gives the place of a group back.
    #[inline]
    pub(crate) fn give(&mut self, index: u32) {
        if index & FURTHER != 0 {
            self.further.give(index & !FURTHER);
        }
    }

    /// The message whose first group this is; `None` of further groups and of no group.
    #[inline]
    pub(crate) fn message_of_first(index: u32) -> Option<u32> {
        (index & FURTHER == 0).then_some(index)
    }

    /// Asks for a group that is wanted soon, and for the timer beside it.
    #[inline]
    pub(crate) fn prefetch(&self, index: u32) {
        if let Some(group) = self.get(index) {
            prefetch(group);
        }
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Group> {
        if index & FURTHER == 0 { self.timers.get(index).map(|own| &own.group) } else { self.further.get(index & !FURTHER) }
    }
}

impl Index<u32> for Groups {
    type Output = Group;

    #[inline]
    fn index(&self, index: u32) -> &Group {
        if index & FURTHER == 0 { &self.timers[index].group } else { &self.further[index & !FURTHER] }
    }
}

impl IndexMut<u32> for Groups {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Group {
        if index & FURTHER == 0 { &mut self.timers[index].group } else { &mut self.further[index & !FURTHER] }
    }
}
