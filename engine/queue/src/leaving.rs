//! Recipients that a command to end them found in an attempt: what it delivers is delivered, and all else is purged, or fails in the command's words.
//!
//! Their records say so from the command on, so that a restart does not bring them back. Few at a time: each leaves with its attempt.

use std::collections::BTreeMap;

use crate::dispatch::Dispatch;
use crate::guest::Guest;
use crate::message::{Flags, Place};
use crate::outcome::Settling;
use crate::queue::Queue;
use crate::view::RecipientView;

/// What a recipient comes to unless its attempt delivers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Leave {
    /// Nothing is kept of it, and nobody is told.
    Purged,
    /// It fails with this reply, sanitised, and its sender is told.
    Bounced(Box<[u8]>),
}

/// By message and number.
#[derive(Debug, Default)]
pub(crate) struct Leaving(BTreeMap<(u32, u16), Leave>);

impl Leaving {
    #[inline]
    pub(crate) fn has(&self, index: u32, recipient: u16) -> bool {
        self.get(index, recipient).is_some()
    }

    #[inline]
    pub(crate) fn get(&self, index: u32, recipient: u16) -> Option<&Leave> {
        if self.0.is_empty() { None } else { self.0.get(&(index, recipient)) }
    }

    /// True if that changes something: what is bounced can be purged yet, but not bounced again.
    pub(crate) fn add(&mut self, index: u32, recipient: u16, leave: Leave) -> bool {
        let is_new = match self.0.get(&(index, recipient)) {
            None => true,
            Some(before) => *before != Leave::Purged && leave == Leave::Purged,
        };
        if is_new {
            self.0.insert((index, recipient), leave);
        }
        is_new
    }

    /// Its attempt has ended.
    #[inline]
    pub(crate) fn take(&mut self, index: u32, recipient: u16) -> Option<Leave> {
        if self.0.is_empty() { None } else { self.0.remove(&(index, recipient)) }
    }

    /// The message has left the queue: whoever has its place next is not to leave for it. True if there was something left to forget.
    #[inline]
    pub(crate) fn forget(&mut self, index: u32) -> bool {
        let mut found = false;
        while !self.0.is_empty()
            && let Some((&key, _)) = self.0.range((index, 0)..=(index, u16::MAX)).next()
        {
            self.0.remove(&key);
            found = true;
        }
        found
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

impl Leave {
    /// What a record says of it, and the reply, if that is another than the recipient's.
    pub(crate) fn settling(&self) -> (Settling, Option<&[u8]>) {
        match self {
            Self::Purged => (Settling::Purged, None),
            Self::Bounced(reply) => (Settling::Failed, Some(reply)),
        }
    }
}

impl Queue {
    /// After an attempt that did not deliver to it: out for good, or failed, if a command was for that. False if none was.
    #[inline]
    pub(crate) fn leaves(&mut self, index: u32, recipient: u16) -> bool {
        match self.leaving.take(index, recipient) {
            None => return false,
            Some(Leave::Purged) => {
                self.place(index, recipient, Place::Purged);
                self.keep_reply(index, recipient, &[], "");
            }
            Some(Leave::Bounced(reply)) => {
                self.place(index, recipient, Place::Failed);
                self.keep_reply(index, recipient, &[&reply], "");
                self.messages[index].flags.set(Flags::REPORT_DUE, true);
            }
        }
        true
    }
}

impl Queue {
    /// Is nothing of an attempt wanted any more, because a purge was for all of its recipients or the message was deleted? Its content is not begun
    /// then. Of another shard's mail, as far as that has said so.
    pub fn is_taken_out(&self, dispatch: &Dispatch) -> bool {
        if dispatch.is_guest() {
            return self.guest(dispatch).is_some_and(Guest::is_taken_out);
        }
        self.messages[dispatch.key.index].flags.has(Flags::CLOSING)
            || self.leaving.count() > 0 && self.recipients(dispatch).all(|(recipient, _)| self.is_purged(dispatch, recipient))
    }

    /// Was a purge for this recipient of an attempt, or was its message deleted?
    pub fn is_purged(&self, dispatch: &Dispatch, recipient: u16) -> bool {
        let index = dispatch.key.index;
        self.messages[index].flags.has(Flags::CLOSING) || self.leaving.get(index, recipient) == Some(&Leave::Purged)
    }
}

impl RecipientView<'_> {
    /// A purge was for it while it is being attempted: it leaves when that ends, delivered or not.
    pub fn is_leaving(&self) -> bool {
        self.leave() == Some(&Leave::Purged)
    }

    /// It was bounced while it is being attempted: it fails when that ends, unless it is delivered.
    pub fn is_failing(&self) -> bool {
        matches!(self.leave(), Some(Leave::Bounced(_)))
    }

    fn leave(&self) -> Option<&Leave> {
        self.queue().leaving.get(self.message.index, self.number())
    }
}
