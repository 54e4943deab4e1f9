//! Dispatches of other shards at a home of their destination: guests.
//!
//! A guest is as much of a message as an attempt needs. It takes a place in the home's window like the home's own mail, in turn
//! with it: as often as there are shards with guests waiting. It is not queued here: it expires at its owner, who has it sent home for that
//! ([`Countermand::end`](crate::Countermand::end)), is in no listing, and nothing of it is persisted. How it ends is told to its owner, who settles it.
//!
//! A guest waits while an attempt that ends can make room for it. When the destination can do nothing for longer, because its
//! breaker is open or it asked for a pause, all guests are refused until then, and their owners keep them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::away::GuestSite;
use crate::countermand::Countermand;
use crate::destination::Destination;
use crate::destination_id::DestinationId;
use crate::dispatch::{Dispatch, OWN};
use crate::guests::Waiting;
use crate::message::{Envelope, MessageKey, PRIORITY_MAX};
use crate::outcome::Outcome;
use crate::queue::Queue;
use crate::queue_id::QueueId;
use crate::route::{RouteId, Via};
use crate::site::Role;
use crate::slab::NONE;
use crate::wait::Wait;

/// Marks the key of a guest; far above the number of messages.
const GUEST: u32 = 1 << 31;
/// A destination that can do nothing for longer than this refuses its guests.
const WAIT_MAX_MS: u64 = 1000;

/// One dispatch of another shard. Goes to the home and comes back, its memory to be used again.
#[derive(Debug, Default)]
pub struct Guest {
    /// What its owner finds it by again.
    pub owner_call: u32,
    /// What the home finds the duty to answer by; the owner leaves it alone.
    pub home_call: u32,
    owner: u16,
    pub(crate) route: u16,
    /// Of the route's pattern.
    pub(crate) route_number: u64,
    site: Option<Arc<GuestSite>>,
    id: QueueId,
    size: u64,
    accepted_at: u64,
    eight_bit: bool,
    eight_bit_header: bool,
    smtputf8: bool,
    extended: bool,
    priority: u8,
    attempt: u16,
    /// The operator wants the destination tried at once.
    revive: bool,
    /// It waits at its home.
    is_in_turn: bool,
    /// See [`Dispatch::weigh`]: the home says so of what it came to.
    pub(crate) is_of_one_host: bool,
    /// Its owner says so when it is not to go on.
    pub(crate) countermand: Countermand,
    reverse_bytes: u16,
    /// Reverse-path, then the addresses of the recipients, then the host where the attempt before failed: nothing where none did, see
    /// [`Queue::hosts_to_try`].
    text: Vec<u8>,
    /// Where the addresses end in it.
    addresses_end: usize,
    /// Number in the message, and the address in `text`.
    recipients: Vec<(u16, Range<u32>)>,
}

impl Guest {
    /// Its message.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// The shard that it is of.
    pub fn owner(&self) -> u16 {
        self.owner
    }

    fn failed_at(&self) -> &[u8] {
        self.text.get(self.addresses_end..).unwrap_or_default()
    }

    pub(crate) fn recipients(&self) -> impl Iterator<Item = (u16, &[u8])> + Clone {
        self.recipients.iter().map(|(number, at)| (*number, &self.text[at.start as usize..at.end as usize]))
    }
}

/// A guest that was not tried, when its owner may ask again, and why not before.
#[derive(Debug)]
pub struct Refused {
    /// To be answered.
    pub guest: Guest,
    /// Unix milliseconds.
    pub until: u64,
    /// What mail waits for at this home.
    pub wait: Wait,
    /// In the destination's own words, where it said any.
    pub reason: String,
}

/// Guests of all destinations, waiting or being attempted.
#[derive(Debug, Default)]
pub(crate) struct GuestBook {
    slots: Vec<Option<Guest>>,
    free: Vec<u32>,
    /// Of destinations that can do nothing just now, for the driver.
    pub(crate) refused: VecDeque<Refused>,
}

impl GuestBook {
    fn add(&mut self, guest: Guest) -> u32 {
        let guest = Guest { is_in_turn: true, ..guest };
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(guest);
                slot
            }
            None => {
                self.slots.push(Some(guest));
                self.slots.len() as u32 - 1
            }
        }
    }

    fn get(&self, key: MessageKey) -> Option<&Guest> {
        self.at(key.index & !GUEST)
    }

    pub(crate) fn at(&self, slot: u32) -> Option<&Guest> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn get_mut(&mut self, key: MessageKey) -> Option<&mut Guest> {
        self.slots.get_mut((key.index & !GUEST) as usize)?.as_mut()
    }

    /// Those that wait.
    pub(crate) fn in_turn(&self) -> impl Iterator<Item = &Guest> {
        self.slots.iter().flatten().filter(|guest| guest.is_in_turn)
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Guest {
        let guest = self.slots[slot as usize].take().expect("a guest leaves once");
        self.free.push(slot);
        guest
    }
}

impl Waiting {
    pub(crate) fn key(&self) -> MessageKey {
        MessageKey { index: self.slot | GUEST, generation: u32::MAX }
    }
}

impl MessageKey {
    pub(crate) fn is_guest(self) -> bool {
        self.index & GUEST != 0
    }
}

impl Dispatch {
    /// It is of another shard: its outcome is told to that one, by [`Queue::settle_guest`] and its like.
    pub fn is_guest(&self) -> bool {
        self.key.is_guest()
    }

    /// As [`Queue::settle_some`], for a guest, once its owner is told. Panics if no recipient is left.
    pub fn told_some(&mut self, outcomes: &[(u16, Outcome<'_>)]) {
        let count = u16::try_from(outcomes.len()).ok().filter(|count| *count < self.recipients);
        self.recipients -= count.expect("some recipients are still under way");
        self.has_delivered |= outcomes.iter().any(|(_, outcome)| outcome.is_delivery());
    }

    /// The shard that is to make the attempt, if not this one.
    pub fn home(&self) -> Option<u16> {
        (self.home != OWN).then_some(self.home)
    }
}

impl Destination {
    fn site_for_guests(&mut self) -> Option<Arc<GuestSite>> {
        let Role::Site(site) = &self.role else { return None };
        if self.away.as_ref()?.site.is_none() {
            let (hosts, is_whole) = (self.hops().cloned().collect(), self.hosts.is_whole());
            let told = GuestSite { key: site.key.clone(), name: self.name.clone(), hosts, is_whole, turn: site.turn };
            self.away.as_mut()?.site = Some(Arc::new(told));
        }
        self.away.as_ref()?.site.clone()
    }
}

/// The owner's side.
impl Queue {
    /// Writes what a home needs for this dispatch. `owner_call` is the caller's.
    pub fn describe(&mut self, dispatch: &Dispatch, owner_call: u32, guest: &mut Guest) {
        let destination = &mut self.destinations[dispatch.destination.index()];
        guest.revive = destination.away.as_mut().is_some_and(|away| std::mem::take(&mut away.revive));
        guest.route = destination.route.map_or(u16::MAX, |route| route.0);
        guest.route_number = destination.route.map_or(0, |route| self.routes.number(route));
        guest.site = destination.site_for_guests();
        (guest.owner, guest.owner_call) = (self.settings.homes.shard, owner_call);
        (guest.attempt, guest.priority) = (dispatch.attempt, self.messages[dispatch.key.index].priority);
        guest.is_of_one_host = false;
        guest.countermand.begin();
        guest.text.clear();
        guest.recipients.clear();
        guest.addresses_end = 0;
        let Some(envelope) = self.envelope(dispatch.key) else { return };
        (guest.id, guest.size, guest.accepted_at) = (envelope.id, envelope.size, envelope.accepted_at);
        (guest.eight_bit, guest.eight_bit_header) = (envelope.eight_bit, envelope.eight_bit_header);
        (guest.smtputf8, guest.extended) = (envelope.smtputf8, envelope.extended);
        guest.text.extend_from_slice(envelope.reverse_path);
        guest.reverse_bytes = envelope.reverse_path.len() as u16;
        for (number, address) in self.recipients(dispatch) {
            let start = guest.text.len() as u32;
            guest.text.extend_from_slice(address);
            guest.recipients.push((number, start..guest.text.len() as u32));
        }
        guest.addresses_end = guest.text.len();
        if dispatch.attempt() > 1 {
            guest.text.extend_from_slice(self.failed_at(dispatch).unwrap_or_default());
        }
    }

    /// The home of this dispatch can do nothing for the destination before `until`, because of `wait`, in the words of `reason`. Give
    /// the dispatch back with [`Queue::unreachable`] or [`Queue::abandon`] next.
    pub fn home_sleeps(&mut self, dispatch: &Dispatch, until: u64, wait: Wait, reason: &str, now: u64) {
        let Some(home) = dispatch.home() else { return };
        let destination = &mut self.destinations[dispatch.destination.index()];
        if let Some(away) = &mut destination.away {
            away.set_sleep(home, until, wait);
            if away.asleep_until(now).is_some() {
                destination.crowding.nobody_else();
            }
            destination.keep_reason(reason);
            if matches!(wait, Wait::Throttled { .. }) {
                destination.avoid_on(until, now);
            }
        }
        if matches!(wait, Wait::BreakerOpen { .. }) {
            self.await_turn(self.groups[dispatch.group].destination, now);
        }
    }

    /// What the guests of this shard that are at a destination wait for now; nothing where none waits.
    pub fn guests_wait_for(&self, destination: DestinationId, now: u64) -> Wait {
        self.live(destination).filter(|state| !state.guests.is_empty()).map_or(Wait::Turn, |state| state.wait(now))
    }

    /// The home of this dispatch said so.
    pub fn home_said(&mut self, dispatch: &Dispatch, busy_with: Wait) {
        let Some(home) = dispatch.home() else { return };
        if let Some(away) = &mut self.destinations[dispatch.destination.index()].away {
            away.set_busy(home, busy_with);
        }
    }
}

/// The home's side.
impl Queue {
    /// Takes in a dispatch of another shard; it then comes out of [`Queue::poll`] and its like, or of [`Queue::take_refused`].
    /// It comes back when this shard is no home of its destination, or knows no such route.
    #[expect(clippy::result_large_err, reason = "it goes back as it came, in the box of its parcel")]
    pub fn receive(&mut self, mut guest: Guest, now: u64) -> Result<(), Guest> {
        let Some(route) = self.routes.found_as(RouteId(guest.route), guest.route_number) else { return Err(guest) };
        guest.route = route.0;
        let Some(destination) = self.destination_of_guest(&guest, now) else { return Err(guest) };
        self.come_back(destination, now);
        if guest.revive {
            self.destinations[destination as usize].revive(now);
            self.come_back(destination, now);
        }
        if let Some((until, wait)) = self.gives_way(destination, now) {
            let reason = self.destinations[destination as usize].reason.clone();
            self.guests.refused.push_back(Refused { guest, until, wait, reason });
            return Ok(());
        }
        let state = &mut self.destinations[destination as usize];
        if state.away.is_some() {
            // A site that was made for it goes again in time.
            self.refresh(destination, now);
            return Err(guest);
        }
        if self.is_paused_for(destination, &guest) {
            self.send_paused_home(destination, guest, now);
            return Ok(());
        }
        let state = &mut self.destinations[destination as usize];
        let (priority, owner) = (guest.priority.min(PRIORITY_MAX), guest.owner);
        // With the operator's wish comes what it is to be tried with.
        let turn = if guest.revive { 0 } else { now + u64::from(PRIORITY_MAX - priority) * self.settings.age_step_ms };
        let slot = self.guests.add(guest);
        state.guests.push(Waiting { turn, slot, owner, priority });
        self.refresh(destination, now);
        Ok(())
    }

    fn destination_of_guest(&mut self, guest: &Guest, now: u64) -> Option<u32> {
        let route = RouteId(guest.route);
        let via = &self.routes.all().get(usize::from(guest.route))?.via;
        match (&guest.site, via) {
            (Some(site), Via::Mx { .. } | Via::Named { .. }) => {
                let slot = self.site_of(route, &site.key, &site.name);
                let state = &mut self.destinations[slot as usize];
                state.take_hosts_of_guest(site, guest.owner, now);
                Some(slot)
            }
            (None, Via::Mx { .. } | Via::Named { .. }) | (Some(_), _) => None,
            (None, _) => Some(self.destination_by(route, b"").slot),
        }
    }

    /// Is it a guest's turn at this destination, which has some?
    pub(crate) fn is_guests_turn(&mut self, destination: u32) -> bool {
        let state = &mut self.destinations[destination as usize];
        let own = match &state.role {
            Role::Site(site) => site.queued.best_priority(),
            _ => state.ready.first(&self.groups, self.settings.age_step_ms).map(|group| self.groups[group].priority),
        };
        state.guests.go_first(own)
    }

    /// The next guest that is not to be tried now.
    pub fn take_refused(&mut self) -> Option<Refused> {
        self.guests.refused.pop_front()
    }

    /// Is there one? Looks at the queue for a connection leave them, too.
    pub fn has_refused(&self) -> bool {
        !self.guests.refused.is_empty()
    }

    /// Refuses all guests that wait, because this shard ends.
    pub fn refuse_all(&mut self, now: u64) {
        for destination in 0..self.destinations.len() as u32 {
            self.refuse_guests(destination, now, now);
        }
    }

    /// Guests that wait.
    pub fn guests_waiting(&self) -> usize {
        self.destinations.iter().map(|destination| destination.guests.len()).sum()
    }

    /// Refuses the guests of a destination that can do nothing for long; called when it may not start anything.
    pub(crate) fn review_guests(&mut self, destination: u32, wakes_at: Option<u64>, now: u64) {
        let state = &self.destinations[destination as usize];
        match wakes_at {
            Some(at) if at > now + WAIT_MAX_MS => self.refuse_guests(destination, at, now),
            // Nothing will end that could make room: it is paused by command.
            None if state.in_flight == 0 => self.refuse_guests(destination, now + WAIT_MAX_MS, now),
            _ => {}
        }
    }

    pub(crate) fn refuse_guests(&mut self, destination: u32, until: u64, now: u64) {
        let state = &mut self.destinations[destination as usize];
        let (until, wait) = state.crowding.sends_away(now).unwrap_or((until, state.wait(now)));
        while let Some(waiting) = state.guests.take(0) {
            let guest = self.guests.remove(waiting.slot);
            self.guests.refused.push_back(Refused { guest, until, wait, reason: state.reason.clone() });
        }
    }

    /// Refuses those guests of a destination that are not to be attempted because an operator paused what they are for.
    pub(crate) fn refuse_paused_guests(&mut self, destination: u32, now: u64) {
        for guest in self.take_guests_that(destination, |queue, guest| queue.is_paused_for(destination, guest)) {
            self.send_paused_home(destination, guest, now);
        }
        self.refresh(destination, now);
    }

    /// By what this shard has been told: all shards are, one after the other.
    fn is_paused_for(&self, destination: u32, guest: &Guest) -> bool {
        self.destinations[destination as usize].paused || self.is_guest_paused(guest)
    }

    /// Where its domain alone is paused its owner knows of that, or is about to, and may ask again at once: a time would keep other mail of the
    /// site, too. A site may have another name at its owner, which then does not know that it is paused.
    fn send_paused_home(&mut self, destination: u32, guest: Guest, now: u64) {
        let until = if self.destinations[destination as usize].paused { now + WAIT_MAX_MS } else { now };
        self.guests.refused.push_back(Refused { guest, until, wait: Wait::Paused, reason: String::new() });
    }

    /// Takes the next guest for an attempt; `None` when commands have come for all of them.
    pub(crate) fn dispatch_guest(&mut self, destination: u32, now: u64) -> Option<Dispatch> {
        let waiting = self.take_guest(destination, now)?;
        self.destinations[destination as usize].started(now);
        let key = waiting.key();
        let guest = self.guests.get_mut(key).expect("a waiting guest is in the book");
        guest.is_in_turn = false;
        let (recipients, attempt) = (guest.recipients.len() as u16, guest.attempt);
        Some(Dispatch {
            key,
            destination: self.id(destination),
            group: NONE,
            number: 0,
            recipients,
            attempt,
            home: OWN,
            has_delivered: false,
            is_of_one_host: false,
        })
    }

    /// The guest of a dispatch.
    pub fn guest(&self, dispatch: &Dispatch) -> Option<&Guest> {
        self.guests.get(dispatch.key)
    }

    pub(crate) fn guest_envelope(&self, key: MessageKey) -> Option<Envelope<'_>> {
        let guest = self.guests.get(key)?;
        Some(Envelope {
            id: guest.id,
            size: guest.size,
            accepted_at: guest.accepted_at,
            eight_bit: guest.eight_bit,
            eight_bit_header: guest.eight_bit_header,
            smtputf8: guest.smtputf8,
            extended: guest.extended,
            reverse_path: &guest.text[..usize::from(guest.reverse_bytes)],
        })
    }

    pub(crate) fn guest_recipients(&self, key: MessageKey) -> impl Iterator<Item = (u16, &[u8])> + Clone {
        self.guests.get(key).into_iter().flat_map(Guest::recipients)
    }

    /// A guest goes on to another host with those of its recipients that `is_open` names. The others are decided, and its owner was told.
    pub fn keep_of_guest(&mut self, dispatch: &Dispatch, is_open: impl Fn(u16) -> bool) {
        let guest = self.guests.get_mut(dispatch.key).expect("it leaves with its dispatch");
        guest.recipients.retain(|(number, _)| is_open(*number));
        assert_eq!(guest.recipients.len(), dispatch.recipients(), "who is not decided goes on");
    }

    /// See [`Queue::failed_at`].
    pub(crate) fn guest_failed_at(&self, key: MessageKey) -> Option<&[u8]> {
        self.guests.get(key).map(Guest::failed_at).filter(|relay| !relay.is_empty())
    }

    /// As [`Queue::settle`], for a guest: what the outcomes say of the destination is heeded here, the rest by its owner.
    pub fn settle_guest(&mut self, dispatch: Dispatch, outcomes: &[(u16, Outcome<'_>)], now: u64) -> Guest {
        if dispatch.has_delivered || outcomes.iter().any(|(_, outcome)| outcome.is_delivery()) {
            self.destinations[dispatch.destination.index()].succeeded(now);
        } else {
            self.heed(&dispatch, outcomes, now);
        }
        let is_of_one_host = dispatch.is_of_one_host;
        Guest { is_of_one_host, ..self.end_guest(dispatch, now) }
    }

    /// As [`Queue::unreachable`], for a guest: when its owner may ask again, and why not before.
    pub fn unreachable_guest(&mut self, dispatch: Dispatch, now: u64) -> Refused {
        let destination = dispatch.destination;
        self.destinations[destination.index()].unreachable(now);
        let guest = self.end_guest(dispatch, now);
        let state = &self.destinations[destination.index()];
        // At the latest then it is tried again, whatever was meant.
        let until = state.blocked_until(now).unwrap_or(now + WAIT_MAX_MS);
        Refused { guest, until, wait: state.wait(now), reason: state.reason.clone() }
    }

    /// A guest for which no connection could be had, see [`Queue::crowded`]: when its owner may ask again, and why not before.
    pub fn put_off_guest(&mut self, dispatch: Dispatch, now: u64) -> Refused {
        let destination = dispatch.destination;
        let guest = self.end_guest(dispatch, now);
        let state = &self.destinations[destination.index()];
        let gives_way = self.gives_way(destination.slot, now);
        // With connections up its turn comes when one of them is free.
        let (until, wait) = gives_way.unwrap_or_else(|| (state.blocked_until(now).unwrap_or(now), state.wait(now)));
        Refused { guest, until, wait, reason: state.reason.clone() }
    }

    /// As [`Queue::abandon`], for a guest: it waits again, before all others, at a home, or goes home where it is paused. `None`; or the guest,
    /// when this shard `ends`.
    pub fn abandon_guest(&mut self, dispatch: Dispatch, ends: bool, now: u64) -> Option<Guest> {
        let destination = dispatch.destination;
        let guest = self.end_guest(dispatch, now);
        if ends {
            return Some(guest);
        }
        if self.is_paused_for(destination.slot, &guest) {
            self.send_paused_home(destination.slot, guest, now);
            return None;
        }
        let (priority, owner) = (guest.priority.min(PRIORITY_MAX), guest.owner);
        let slot = self.guests.add(guest);
        self.destinations[destination.index()].guests.push(Waiting { turn: 0, slot, owner, priority });
        if !self.is_home(destination) {
            // It was one when the attempt began.
            self.refuse_guests(destination.slot, now, now);
        }
        self.refresh(destination.slot, now);
        None
    }

    fn end_guest(&mut self, dispatch: Dispatch, now: u64) -> Guest {
        assert!(dispatch.is_guest(), "the caller asked");
        self.end_at_destination(&dispatch, now);
        self.guests.remove(dispatch.key.index & !GUEST)
    }
}
