//! Permissions to attempt: which recipients go next, and to whom they belong until they are settled.

use crate::destination_id::DestinationId;
use crate::guest::Guest;
use crate::hosts::HostsTried;
use crate::message::{Group, MessageKey, NO_RECIPIENT, Place};
use crate::queue::Queue;
use crate::site::Role;
use crate::slab::NONE;

/// Permission to try some recipients of one message at one destination, once. Must be given back to the queue in exactly one
/// of [`Queue::settle`], [`Queue::unreachable`] and [`Queue::abandon`], or its place in the window is lost.
#[derive(Debug)]
#[must_use]
pub struct Dispatch {
    pub(crate) key: MessageKey,
    pub(crate) destination: DestinationId,
    pub(crate) group: u32,
    pub(crate) number: u16,
    pub(crate) recipients: u16,
    pub(crate) attempt: u16,
    /// The shard that makes the attempt, or [`OWN`].
    pub(crate) home: u16,
    /// The next hop has taken it for some recipients, see [`Queue::settle_some`].
    pub(crate) has_delivered: bool,
    /// What asks for less in its outcome is the word of one host, and another one said otherwise.
    pub(crate) is_of_one_host: bool,
}

/// In place of a home: this shard makes the attempt.
pub(crate) const OWN: u16 = u16::MAX;

impl Dispatch {
    /// The message.
    pub fn key(&self) -> MessageKey {
        self.key
    }

    /// Where to.
    pub fn destination(&self) -> DestinationId {
        self.destination
    }

    /// Number of recipients, at least 1.
    pub fn recipients(&self) -> usize {
        self.recipients.into()
    }

    /// The next hop has taken it for some recipients, which are settled and not among these any more.
    pub fn has_delivered(&self) -> bool {
        self.has_delivered
    }

    /// Its outcome is the word of the last of the hosts of `tried`. Where one asks for less, but another said otherwise, of this message alone or of
    /// what it offers, the destination is not left alone for it.
    pub fn weigh(&mut self, tried: HostsTried) {
        self.is_of_one_host |= tried.have_said_otherwise();
    }

    /// As it was weighed at its home.
    pub fn weigh_as(&mut self, guest: &Guest) {
        self.is_of_one_host |= guest.is_of_one_host;
    }

    /// 1 for the first attempt of its most tried recipient.
    pub fn attempt(&self) -> u16 {
        self.attempt
    }
}

impl Queue {
    /// The next attempt at one destination, for a connection that has just become free.
    pub fn poll_next(&mut self, destination: DestinationId, now: u64) -> Option<Dispatch> {
        let state = self.live(destination)?;
        // A connection of a home that gave way serves nobody any more.
        let may = state.away.is_none() && state.may_start(now);
        let dispatch = may.then(|| self.dispatch(destination.slot, now)).flatten();
        self.refresh(destination.slot, now);
        dispatch
    }

    /// An attempt to be chained behind an open one on the same connection: its MAIL goes right behind the dot of `before`.
    /// Uses no place of the window; at most one behind each open attempt.
    pub fn poll_behind(&mut self, before: &Dispatch, now: u64) -> Option<Dispatch> {
        let destination = before.destination;
        let may = self.destinations[destination.index()].may_chain(now);
        let dispatch = may.then(|| self.dispatch(destination.slot, now)).flatten()?;
        self.destinations[destination.index()].chained += 1;
        self.refresh(destination.slot, now);
        Some(dispatch)
    }

    /// Takes the next recipients that may be attempted at a destination.
    // Inlined, the dispatch is written once, where the caller wants it: it is read right behind, and what was just written in parts of other
    // sizes is waited for.
    #[inline(always)]
    pub(crate) fn dispatch(&mut self, destination: u32, now: u64) -> Option<Dispatch> {
        if !self.destinations[destination as usize].guests.is_empty() && self.is_guests_turn(destination) {
            let guest = self.dispatch_guest(destination, now);
            if guest.is_some() {
                return guest;
            }
        }
        let is_site = matches!(self.destinations[destination as usize].role, Role::Site(_));
        let home = if is_site { self.next_domain_of_another_sender(destination, now)? } else { destination };
        let dispatch = self.take(home, destination, now);
        if is_site {
            self.refresh_domain(home, now);
        }
        dispatch
    }

    /// Takes the next recipients from the ready queue of `home` for an attempt at `destination`.
    #[inline(always)]
    pub(crate) fn take(&mut self, home: u32, destination: u32, now: u64) -> Option<Dispatch> {
        let group = self.next_group(home, destination, now)?;
        let most = self.destinations[home as usize].limits.recipients_max.max(1);
        let ready_group = &mut self.groups[group];
        let Group { message: index, first, ready, previous: before, next: behind, priority, .. } = *ready_group;
        let (message, recipients) = self.messages.with_recipients_mut(index);
        let number = message.next_dispatch;
        message.next_dispatch = number.wrapping_add(1);
        message.in_flight += 1;
        let key = MessageKey { index, generation: message.generation };
        let (mut taken, mut tried, mut next) = (0, 0, first);
        while next != NO_RECIPIENT && taken < most {
            let recipient = &mut recipients[usize::from(next)];
            next = recipient.next_in_group;
            if recipient.place == Place::Ready {
                (recipient.place, recipient.dispatch) = (Place::Attempting, number);
                tried = recipient.attempts.max(tried);
                taken += 1;
            }
        }
        self.placed[Place::Ready as usize] -= usize::from(taken);
        self.placed[Place::Attempting as usize] += usize::from(taken);
        ready_group.ready = ready.checked_sub(taken).expect("a ready recipient is counted by its group");
        if taken == ready {
            match before {
                NONE => self.destinations[home as usize].ready.remove_first(&mut self.groups, group, priority, behind),
                _ => self.destinations[home as usize].ready.remove(&mut self.groups, group),
            }
            self.prefetch_ahead(index, behind);
        }
        let state = &mut self.destinations[destination as usize];
        state.started(now);
        let home = state.away.as_mut().and_then(|away| away.take(now)).unwrap_or(OWN);
        let destination = DestinationId { slot: destination, generation: state.generation };
        Some(Dispatch {
            key,
            destination,
            group,
            number,
            recipients: taken,
            attempt: tried.saturating_add(1),
            home,
            has_delivered: false,
            is_of_one_host: false,
        })
    }

    /// The recipients of an attempt: their number in the message (for [`Queue::settle`]) and forward-path.
    pub fn recipients(&self, dispatch: &Dispatch) -> impl Iterator<Item = (u16, &[u8])> + Clone {
        if dispatch.is_guest() {
            OwnOrGuest::Guest(self.guest_recipients(dispatch.key))
        } else {
            OwnOrGuest::Own(self.own_recipients(dispatch))
        }
    }

    fn own_recipients(&self, dispatch: &Dispatch) -> impl Iterator<Item = (u16, &[u8])> + Clone {
        let index = dispatch.key.index;
        let recipients = self.messages.recipients(index);
        let mut next = self.groups[dispatch.group].first;
        let chain = std::iter::from_fn(move || {
            let number = (next != NO_RECIPIENT).then_some(next)?;
            next = recipients[usize::from(number)].next_in_group;
            Some(number)
        });
        let open = dispatch.number;
        chain.filter(move |&number| recipients[usize::from(number)].is_in(open)).map(move |number| (number, self.address(index, number)))
    }
}

/// One of two iterators over recipients.
#[derive(Clone)]
enum OwnOrGuest<A, B> {
    Own(A),
    Guest(B),
}

impl<T, A: Iterator<Item = T>, B: Iterator<Item = T>> Iterator for OwnOrGuest<A, B> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        match self {
            Self::Own(own) => own.next(),
            Self::Guest(guest) => guest.next(),
        }
    }
}
