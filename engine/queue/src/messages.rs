//! The messages of a queue with their recipients, by slot.
//!
//! Most mail has one recipient: it stands beside its message, in the same cache lines. Several are elsewhere, in one slice.

use std::ops::{Index, IndexMut};
use std::slice;

use ringpost_prefetch::prefetch;

use crate::arena::{Arena, Span};
use crate::message::{Flags, Message, Recipient};
use crate::slab::Slab;

/// Two cache lines, and never three.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    message: Message,
    recipients: Recipients,
}

#[derive(Debug)]
enum Recipients {
    One(Recipient),
    Many(Span),
}

const _: () = assert!(size_of::<Slot>() == 128);

impl Default for Recipients {
    fn default() -> Self {
        Self::One(Recipient::default())
    }
}

impl Slot {
    #[inline]
    fn recipients<'a>(&'a self, many: &'a Arena<Recipient, 1>) -> &'a [Recipient] {
        match &self.recipients {
            Recipients::One(recipient) => slice::from_ref(recipient),
            Recipients::Many(span) => many.get(*span),
        }
    }
}

/// All messages, addressed by a 32-bit index.
#[derive(Debug)]
pub(crate) struct Messages {
    slots: Slab<Slot>,
    /// The recipients of those that have several.
    many: Arena<Recipient, 1>,
}

impl Messages {
    pub(crate) const fn new() -> Self {
        Self { slots: Slab::new(), many: Arena::new() }
    }

    /// Takes a free slot with room for so many recipients, at least one. Message and recipients are what the last user left.
    #[inline]
    pub(crate) fn take(&mut self, recipients: usize) -> u32 {
        let index = self.slots.take();
        if recipients > 1 {
            self.slots[index].recipients = Recipients::Many(self.many.take(recipients));
        }
        index
    }

    /// Gives a slot back, to which no key leads from now on. What else is in it is written by its next user.
    #[inline]
    pub(crate) fn give(&mut self, index: u32) {
        let Slot { message, recipients } = &mut self.slots[index];
        (message.generation, message.flags) = (message.generation.wrapping_add(1), Flags::default());
        if let Recipients::Many(span) = *recipients {
            self.many.give(span);
            *recipients = Recipients::default();
        }
        self.slots.give(index);
    }

    /// All slots, used and free.
    pub(crate) fn slots(&self) -> usize {
        self.slots.slots()
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Message> {
        self.slots.get(index).map(|slot| &slot.message)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Message> {
        self.slots.get_mut(index).map(|slot| &mut slot.message)
    }

    /// Asks for a message that is wanted soon, and for its only recipient.
    #[inline]
    pub(crate) fn prefetch(&self, index: u32) {
        if let Some(slot) = self.slots.get(index) {
            prefetch(slot);
        }
    }

    #[inline]
    pub(crate) fn recipients(&self, index: u32) -> &[Recipient] {
        self.slots[index].recipients(&self.many)
    }

    #[inline]
    pub(crate) fn recipients_mut(&mut self, index: u32) -> &mut [Recipient] {
        self.with_recipients_mut(index).1
    }

    /// A message and its recipients.
    #[inline]
    pub(crate) fn with_recipients(&self, index: u32) -> (&Message, &[Recipient]) {
        let slot = &self.slots[index];
        (&slot.message, slot.recipients(&self.many))
    }

    /// As [`Messages::with_recipients`].
    #[inline]
    pub(crate) fn with_recipients_mut(&mut self, index: u32) -> (&mut Message, &mut [Recipient]) {
        let Slot { message, recipients } = &mut self.slots[index];
        match recipients {
            Recipients::One(recipient) => (message, slice::from_mut(recipient)),
            Recipients::Many(span) => (message, self.many.get_mut(*span)),
        }
    }

    /// Gives back what can be, when no message is queued.
    pub(crate) fn trim(&mut self) {
        self.many.trim();
    }
}

impl Index<u32> for Messages {
    type Output = Message;

    #[inline]
    fn index(&self, index: u32) -> &Message {
        &self.slots[index].message
    }
}

impl IndexMut<u32> for Messages {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Message {
        &mut self.slots[index].message
    }
}
