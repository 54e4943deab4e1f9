//! Commands that come while an attempt is under way: what the attempt has begun runs to its end, but no further host is asked for whom they are about.
//! A dispatch that waits for its turn at a home has begun nothing.
//!
//! One that a host did not take goes on to the next host, with a transaction that is new: whoever was told that its message is held, goes another way,
//! has come to its end or is purged, or that its destination is paused, is not to see it delivered there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::dispatch::Dispatch;
use crate::guest::{Guest, Refused};
use crate::guests::Waiting;
use crate::message::Flags;
use crate::queue::Queue;
use crate::wait::Wait;

/// Says of a dispatch that another shard has which of its recipients may not go on there.
#[derive(Clone, Debug, Default)]
pub struct Countermand(Option<Arc<Given>>);

#[derive(Debug, Default)]
struct Given {
    /// Without it nobody looks further: commands are few.
    is_given: AtomicBool,
    /// The life of the message is over, by that of its route as well: what has not begun is not to begin. An attempt that is under way goes on.
    is_over: AtomicBool,
    /// Numbers in the message, and whether a purge was for each; held for a few instructions.
    recipients: Mutex<BTreeMap<u16, bool>>,
}

impl Countermand {
    /// Of a dispatch that leaves now; memory that nobody else has any more is used again.
    pub(crate) fn begin(&mut self) {
        match self.0.as_mut().and_then(Arc::get_mut) {
            Some(given) => {
                (*given.is_given.get_mut(), *given.is_over.get_mut()) = (false, false);
                given.recipients.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
            }
            None => self.0 = Some(Arc::default()),
        }
    }

    /// These are not to go on, by their numbers in the message; what it has begun of those that are purged is not wanted either.
    pub fn give(&self, recipients: impl Iterator<Item = (u16, bool)>) {
        if let Some(given) = &self.0 {
            given.recipients.lock().unwrap_or_else(PoisonError::into_inner).extend(recipients);
            given.is_given.store(true, Ordering::Release);
        }
    }

    /// What has not begun is not to begin: the message's life is over.
    pub fn end(&self) {
        if let Some(given) = &self.0 {
            given.is_over.store(true, Ordering::Release);
        }
    }

    fn is_over(&self) -> bool {
        self.0.as_ref().is_some_and(|given| given.is_over.load(Ordering::Acquire))
    }

    /// Is one that waits for its turn to go home?
    fn ends_waiting(&self) -> bool {
        self.is_given() || self.is_over()
    }

    /// It is for some of the recipients at least.
    fn is_given(&self) -> bool {
        self.0.as_ref().is_some_and(|given| given.is_given.load(Ordering::Acquire))
    }

    /// Whether it is given to a recipient, and whether because of a purge.
    fn given_to(&self, recipient: u16) -> Option<bool> {
        let given = self.0.as_ref().filter(|_| self.is_given())?;
        given.recipients.lock().unwrap_or_else(PoisonError::into_inner).get(&recipient).copied()
    }
}

impl Guest {
    /// For its owner to keep.
    pub fn countermand(&self) -> Countermand {
        self.countermand.clone()
    }

    /// As [`Queue::is_taken_out`].
    pub(crate) fn is_taken_out(&self) -> bool {
        self.countermand.is_given() && self.recipients().all(|(recipient, _)| self.countermand.given_to(recipient) == Some(true))
    }
}

impl Queue {
    /// May an attempt go on with this recipient at a host that has heard nothing of it yet? Not where a command has come meanwhile.
    pub fn may_go_on(&mut self, dispatch: &Dispatch, recipient: u16, now: u64) -> bool {
        let Some(acting) = self.live(dispatch.destination) else { return false };
        if acting.paused {
            return false;
        }
        if dispatch.is_guest() {
            return self
                .guest(dispatch)
                .is_some_and(|guest| guest.countermand.given_to(recipient).is_none() && !self.is_guest_paused(guest));
        }
        let index = dispatch.key.index;
        let message = &self.messages[index];
        // A time of its own: the lifetime of a route ends nothing that is being attempted.
        let is_at_end = message.expires_at.max(message.grace_until) <= now;
        let is_kept = message.flags.has(Flags::KEPT | Flags::CLOSING) || self.leaving.has(index, recipient);
        let is_paused = self.destinations[self.groups[dispatch.group].destination as usize].paused;
        !is_at_end && !is_kept && !is_paused && !self.is_to_go_elsewhere(index, recipient)
    }

    /// Has the owner of a guest said of one of its recipients that it is not to go on? Of this shard's own mail, ask [`Queue::may_go_on`].
    pub fn is_countermanded(&self, dispatch: &Dispatch) -> bool {
        dispatch.is_guest() && self.guest(dispatch).is_some_and(|guest| guest.countermand.is_given())
    }

    /// When the life ends of what is not begun of this shard's own mail (unix ms), by that of its route as well; `None` where nothing ends it.
    pub fn end_at(&self, dispatch: &Dispatch) -> Option<u64> {
        if dispatch.is_guest() { None } else { self.deadline(dispatch.group) }
    }

    /// Is an attempt that has begun nothing not to begin, because the life of its message is over? For another shard's its owner has said so.
    pub fn is_over(&self, dispatch: &Dispatch, now: u64) -> bool {
        match dispatch.is_guest() {
            true => self.guest(dispatch).is_some_and(|guest| guest.countermand.is_over()),
            false => self.end_at(dispatch).is_some_and(|end| end <= now),
        }
    }

    /// Takes the guest whose turn it is at this destination. Those that a command, or the end of their lives, has come for go home, for their owner sends those of their
    /// recipients again at once that it is not about.
    pub(crate) fn take_guest(&mut self, destination: u32, now: u64) -> Option<Waiting> {
        loop {
            let next = self.next_guest(destination, now);
            let waiting = self.destinations[destination as usize].guests.take(next)?;
            let guest = self.guests.at(waiting.slot).expect("a waiting guest is in the book");
            if !guest.countermand.ends_waiting() {
                return Some(waiting);
            }
            let guest = self.guests.remove(waiting.slot);
            self.send_home(destination, guest, now);
        }
    }

    /// Commands, or the ends of their lives, have come for guests: those of them that wait go home at once, and not when their turn comes, which behind a host that hangs takes minutes.
    /// They then come out of [`Queue::take_refused`]. Goes over the guests that are here, and over the destinations if it finds one.
    pub fn send_countermanded_home(&mut self, now: u64) {
        if !self.guests.in_turn().any(|guest| guest.countermand.ends_waiting()) {
            return;
        }
        for destination in 0..self.destinations.len() as u32 {
            if self.destinations[destination as usize].guests.is_empty() {
                continue;
            }
            for guest in self.take_guests_that(destination, |_, guest| guest.countermand.ends_waiting()) {
                self.send_home(destination, guest, now);
            }
            self.refresh(destination, now);
        }
    }

    /// Its owner may ask again at once.
    fn send_home(&mut self, destination: u32, guest: Guest, now: u64) {
        let reason = self.destinations[destination as usize].reason.clone();
        self.guests.refused.push_back(Refused { guest, until: now, wait: Wait::Turn, reason });
    }

    /// The end of life of this shard's own mail that is a message's own (unix ms): from then on its attempts do not go on. `None` where it has none.
    pub fn own_end(&self, dispatch: &Dispatch) -> Option<u64> {
        if dispatch.is_guest() {
            return None;
        }
        let message = &self.messages[dispatch.key.index];
        Some(message.expires_at.max(message.grace_until)).filter(|&end| end < u64::MAX)
    }

    /// Is this recipient of an attempt, which has not delivered to it, to go another way now? Then what the attempt was told of it is not the last
    /// word, be it a refusal.
    pub fn goes_elsewhere(&mut self, dispatch: &Dispatch, recipient: u16) -> bool {
        !dispatch.is_guest() && !self.leaving.has(dispatch.key.index, recipient) && self.is_to_go_elsewhere(dispatch.key.index, recipient)
    }

    /// Is this recipient, which is being attempted, to go where its group does not lead?
    pub(crate) fn is_to_go_elsewhere(&mut self, index: u32, recipient: u16) -> bool {
        if !self.messages[index].flags.has(Flags::REGROUP) {
            return false;
        }
        let group = self.messages.recipients(index)[usize::from(recipient)].group;
        self.destination_now(index, recipient).slot != self.groups[group].destination
    }
}
