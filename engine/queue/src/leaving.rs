//! Recipients that a purge found in an attempt: what it delivers is delivered, and of all else nothing is kept.
//!
//! Their records say `purged` from the purge on, so that a restart does not bring them back. Few at a time: each leaves with its attempt.

use std::collections::BTreeSet;

use crate::message::Place;
use crate::queue::Queue;
use crate::view::RecipientView;

/// By message and number.
#[derive(Debug, Default)]
pub(crate) struct Leaving(BTreeSet<(u32, u16)>);

impl Leaving {
    #[inline]
    pub(crate) fn has(&self, index: u32, recipient: u16) -> bool {
        !self.0.is_empty() && self.0.contains(&(index, recipient))
    }

    pub(crate) fn add(&mut self, index: u32, recipient: u16) {
        self.0.insert((index, recipient));
    }

    /// Its attempt has ended. True if it was among them.
    #[inline]
    pub(crate) fn take(&mut self, index: u32, recipient: u16) -> bool {
        !self.0.is_empty() && self.0.remove(&(index, recipient))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

impl Queue {
    /// After an attempt that did not deliver to it: out for good, if a purge was for it. False if none was.
    #[inline]
    pub(crate) fn leaves(&mut self, index: u32, recipient: u16) -> bool {
        let leaves = self.leaving.take(index, recipient);
        if leaves {
            self.place(index, recipient, Place::Purged);
            self.keep_reply(index, recipient, &[], "");
        }
        leaves
    }
}

impl RecipientView<'_> {
    /// A purge was for it while it is being attempted: it leaves when that ends, delivered or not.
    pub fn is_leaving(&self) -> bool {
        self.queue().leaving.has(self.message.index, self.number())
    }
}
