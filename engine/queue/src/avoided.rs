//! Whose mail goes behind that of others for a while: the sender's whose message was answered by a pause.
//!
//! A destination that refuses one sender with 421 is told from one that has too much by what it says to another. So what is tried after a
//! pause is of another sender, if one is near, and for as long again as the pause was; then it is everybody's turn as before. A bounded
//! number of messages is looked at, and none while no destination asked for a pause.

use crate::destination::{Destination, DestinationId};
use crate::guests::Waiting;
use crate::message::{Group, MessageKey};
use crate::queue::Queue;
use crate::slab::NONE;
use crate::wait::Wait;

/// Looked at from the front of a ready queue, or of guests.
const NEAR_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct Avoided {
    sender: Box<[u8]>,
    /// Unix milliseconds.
    until: u64,
}

impl Avoided {
    fn is(&self, sender: &[u8]) -> bool {
        *self.sender == *sender
    }
}

impl Destination {
    /// It asked for less, and has taken nothing since, as far as this shard knows.
    pub(crate) fn has_asked_for_less(&self, now: u64) -> bool {
        let its_home_says_so = || self.away.as_ref().is_some_and(|away| matches!(away.wait(now), Wait::Throttled { .. }));
        self.has_paused() || self.avoided.as_ref().is_some_and(|avoided| now < avoided.until) || its_home_says_so()
    }

    /// A pause lasts until then: whoever is avoided is so for as long again.
    pub(crate) fn avoid_on(&mut self, until: u64, now: u64) {
        if let Some(avoided) = &mut self.avoided {
            avoided.until = avoided.until.max(until + until.saturating_sub(now));
        }
    }
}

impl Group {
    /// An operator wants it tried before all others.
    fn is_chosen(&self) -> bool {
        self.ready_since_s == 0
    }
}

impl Queue {
    /// This message was answered by a pause until then.
    pub(crate) fn avoid_sender(&mut self, destination: DestinationId, key: MessageKey, until: u64, now: u64) {
        let Some(envelope) = self.envelope(key) else { return };
        let sender = envelope.reverse_path.into();
        let state = &mut self.destinations[destination.index()];
        state.avoided = Some(Box::new(Avoided { sender, until }));
        state.avoid_on(until, now);
    }

    /// The group whose turn it is in the ready queue of `home`, at `destination`.
    #[inline]
    pub(crate) fn next_group(&mut self, home: u32, destination: u32, now: u64) -> Option<u32> {
        let first = self.destinations[home as usize].ready.first(&self.groups, self.settings.age_step_ms)?;
        match &self.destinations[destination as usize].avoided {
            None => Some(first),
            Some(_) => Some(self.next_of_another_sender(home, destination, first, now)),
        }
    }

    #[inline(never)]
    fn next_of_another_sender(&mut self, home: u32, destination: u32, first: u32, now: u64) -> u32 {
        self.forget_avoided(destination, now);
        let is_chosen = self.groups[first].is_chosen();
        let Some(avoided) = self.destinations[destination as usize].avoided.as_deref().filter(|_| !is_chosen) else { return first };
        let near = std::iter::successors(Some(first), |&group| Some(self.groups[group].next).filter(|&next| next != NONE));
        let ends = self.destinations[home as usize].ready.ends();
        let is_another = |group: &u32| {
            let message = &self.messages[self.groups[*group].message];
            !avoided.is(&self.texts.get(message.addresses)[..usize::from(message.reverse_bytes)])
        };
        near.take(NEAR_MAX).chain(ends).find(is_another).unwrap_or(first)
    }

    /// Which of the guests that wait is next, counted from the front.
    pub(crate) fn next_guest(&mut self, destination: u32, now: u64) -> usize {
        self.forget_avoided(destination, now);
        let state = &self.destinations[destination as usize];
        let Some(avoided) = state.avoided.as_deref().filter(|_| !state.guests.has_chosen()) else { return 0 };
        let is_another = |guest: &Waiting| self.guest_envelope(guest.key()).is_some_and(|guest| !avoided.is(guest.reverse_path));
        state.guests.foremost(NEAR_MAX).position(is_another).unwrap_or(0)
    }

    /// Nobody is avoided for longer than that.
    fn forget_avoided(&mut self, destination: u32, now: u64) {
        self.destinations[destination as usize].avoided.take_if(|avoided| avoided.until <= now);
    }

    /// What is ready of a group goes before all other mail, by command.
    pub(crate) fn go_first(&mut self, group: u32, now: u64) {
        let Group { ready, destination, .. } = self.groups[group];
        if ready > 0 {
            self.destinations[destination as usize].ready.move_first(&mut self.groups, group);
            self.refresh(destination, now);
        }
    }

    /// What is ready of a group goes behind the mail that waits already.
    pub(crate) fn go_behind(&mut self, group: u32, now: u64) {
        let Group { ready, destination, .. } = self.groups[group];
        if ready > 0 {
            let queue = &mut self.destinations[destination as usize].ready;
            queue.remove(&mut self.groups, group);
            queue.push(&mut self.groups, group, now);
        }
    }
}
