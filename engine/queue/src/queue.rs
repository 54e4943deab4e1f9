//! The queue of one shard: who waits, who may go, what came of it.

use std::collections::VecDeque;
use std::hint::black_box;

use crate::arena::Arena;
use crate::destination::Destination;
use crate::destination_id::DestinationId;
use crate::directory::Directory;
use crate::dispatch::Dispatch;
use crate::feedback::Change;
use crate::groups::Groups;
use crate::guest::GuestBook;
use crate::home::Homes;
use crate::ids::Ids;
use crate::index::Index;
use crate::leaving::Leaving;
use crate::message::{Envelope, Flags, Message, MessageKey, NOT_REROUTED, NewMessage, NewRecipient, Offered, PLACES, Place, Recipient};
use crate::messages::Messages;
use crate::outcome::DecodeError;
use crate::pauses::Pauses;
use crate::report::{ReportLimits, Reports};
use crate::reroutes::{RecordedReroutes, Reroutes};
use crate::reserving::Reservation;
use crate::retry::{Jitter, RetryPolicy};
use crate::route::{DestinationLimits, RouteId, Via};
use crate::routes::Routes;
use crate::site::{Lookup, Role};
use crate::slab::NONE;
use crate::wheel::{Popped, Wheel};
use crate::wrong_clock::as_accepted;

/// Timers of a kind handled or moved in their wheel by one call of [`Queue::poll`] at most; the rest follow at the next call, so that other
/// tasks get their turn.
const TIMERS_PER_POLL: usize = 1024;

/// Polls from one look at the reports to the next while attempts can be begun.
const REPORT_EVERY: u32 = 64;

/// Destinations whose next messages are brought into the cache together.
const LOADED_AHEAD: usize = 8;

/// Messages of a queue that is so short that they are in the cache all the time.
const NEAR_MAX: usize = 4096;

/// Messages from which what is wanted next is loaded instead of prefetched: what was prefetched was often not there when it was wanted.
const FAR_MIN: usize = 1 << 15;

/// What holds for all routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueSettings {
    /// Messages in the queue from which [`Queue::has_room`] says no; derived by the engine from its memory budget.
    pub messages_max: usize,
    /// Destinations in use from which [`Queue::has_room`] says no: mx routes have one for each domain with mail.
    pub destinations_max: usize,
    /// This shard among all: it owns a part of the limits of the destinations that it is a home of.
    pub homes: Homes,
    /// Waiting that outweighs one priority in a ready queue.
    pub age_step_ms: u64,
    /// Mail past its lifetime when it is recovered, released, retried or sent another way, taken over, or offered where its route holds it, or when
    /// its route's hold ends or lifetime becomes shorter, gets one more attempt within this time.
    pub grace_ms: u64,
    /// Content above this is not given to other nodes though the message is offered: what is said about it says so.
    pub offered_bytes_max: u64,
    /// How fast senders are told; `None`: they are not, and failed recipients stay until a command takes them away.
    pub reports: Option<ReportLimits>,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            messages_max: 4_000_000,
            destinations_max: 1 << 18,
            homes: Homes::default(),
            age_step_ms: 30_000,
            grace_ms: 4 * 3_600_000,
            offered_bytes_max: u64::MAX,
            reports: None,
        }
    }
}

/// What [`Queue::poll`] wants done.
#[derive(Debug)]
#[must_use]
pub enum Work {
    /// Try these recipients now.
    Attempt(Dispatch),
    /// The lifetime of these recipients of this message ended; they are failed. Persist the record that `poll` wrote as an
    /// outcome, then call [`Queue::recorded`].
    Expired(MessageKey, Vec<u16>),
    /// The life of this offered message has ended: take it out of what is offered, then call [`Queue::expire_offered`]. Said again now
    /// and then until something comes of it.
    Overdue(MessageKey),
    /// Tell the sender what [`Queue::report`] says, then call [`Queue::reported`], or [`Queue::postpone_report`] if that cannot
    /// be done now.
    Report(MessageKey),
    /// Ask DNS; no mail waits for it but that of this destination. Ends in [`Queue::resolved`] or [`Queue::not_asked`].
    Resolve(Lookup),
    /// Reserve a part of a rate that the cluster shares. Ends in [`Queue::reserved`] or [`Queue::not_reserved`].
    Reserve(Reservation),
}

/// A message found by recovery, as the queue has it now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Recovered<'r> {
    /// Its key.
    pub key: MessageKey,
    /// All recipients are settled: a settled record is wanted, to be followed by [`Queue::recorded`].
    pub done: bool,
    /// It was re-routed by command, or some of its recipients were that are not over, to a route that does not exist any more, so these go the
    /// way of their domains: say so.
    pub lost_route: Option<&'r str>,
}

/// All mail of one shard. See the crate's page for the driver's loop.
#[derive(Debug)]
pub struct Queue {
    pub(crate) settings: QueueSettings,
    pub(crate) routes: Routes,
    pub(crate) jitter: Jitter,
    pub(crate) messages: Messages,
    pub(crate) groups: Groups,
    pub(crate) texts: Arena<u8, 8>,
    pub(crate) ids: Ids,
    pub(crate) index: Index,
    pub(crate) reroutes: Reroutes,
    pub(crate) leaving: Leaving,
    /// The domain that a recipient without one is routed by.
    pub(crate) local_domain: String,
    pub(crate) destinations: Vec<Destination>,
    /// Where the destination of each route is that names its hosts itself, or needs none.
    pub(crate) route_slots: Vec<u32>,
    pub(crate) destination_timers: Wheel,
    pub(crate) directory: Directory,
    pub(crate) pauses: Pauses,
    pub(crate) reports: Reports,
    polls: u32,
    /// Polls until the next [`Queue::load_ahead`].
    loaded: usize,
    /// Destinations that may be served, each at most once, in turn.
    pub(crate) serving: VecDeque<u32>,
    pub(crate) changes: VecDeque<Change>,
    /// Limits of earlier tables that other shards may still go by, by route: see [`Queue::begin_settling`].
    pub(crate) limits_before: Vec<Vec<DestinationLimits>>,
    /// Destinations that could use more of a shared rate, and how much.
    pub(crate) reservations: VecDeque<(DestinationId, u32)>,
    /// Dispatches of other shards.
    pub(crate) guests: GuestBook,
    /// Times that senders began to be avoided at a destination.
    pub(crate) avoidances: u64,
    /// Recipients by place.
    pub(crate) placed: [usize; PLACES],
}

impl Queue {
    /// An empty queue. `seed` feeds the jitter; `now` is unix milliseconds.
    pub fn new(settings: QueueSettings, routes: Routes, seed: u64, now: u64) -> Self {
        let unrouted = Destination::new(None, Via::Hold, DestinationLimits::default(), RetryPolicy::default(), "unrouted".into());
        let mut destinations = vec![unrouted];
        for (index, route) in routes.all().iter().enumerate() {
            let id = RouteId(index as u16);
            let destination = Destination::new(Some(id), route.via.clone(), route.limits, route.retry, route.pattern.clone());
            destinations.push(destination);
        }
        destinations[0].reason.push_str("no route for this domain");
        let mut queue = Self {
            settings,
            routes,
            jitter: Jitter::new(seed),
            messages: Messages::new(),
            groups: Groups::new(now),
            texts: Arena::new(),
            ids: Ids::new(),
            local_domain: String::new(),
            index: Index::new(seed.rotate_left(17)),
            reroutes: Reroutes::default(),
            leaving: Leaving::default(),
            destination_timers: Wheel::new(now),
            directory: Directory::default(),
            pauses: Pauses::default(),
            reports: Reports::new(settings.reports, seed, now),
            polls: 0,
            loaded: 0,
            serving: VecDeque::with_capacity(destinations.len()),
            route_slots: (1..destinations.len() as u32).collect(),
            destinations,
            changes: VecDeque::new(),
            limits_before: Vec::new(),
            reservations: VecDeque::new(),
            guests: GuestBook::default(),
            avoidances: 0,
            placed: [0; PLACES],
        };
        for slot in 0..queue.destinations.len() as u32 {
            queue.directory.names.insert(slot, &queue.destinations);
            queue.assign_first_homes(slot);
        }
        queue
    }

    /// The route with this pattern, in any case; what [`Queue::reroute`] wants.
    pub fn route_named(&self, pattern: &str) -> Option<RouteId> {
        self.routes.by_pattern(pattern)
    }

    /// Sets the domain that recipients without one (a bare `postmaster`) are routed by when a change of routes sends them elsewhere.
    pub fn set_local_domain(&mut self, domain: &str) {
        self.local_domain = domain.to_owned();
    }

    /// What is done with mail for a destination; [`Via::Discard`] and [`Via::Maildir`] are settled by the driver itself.
    pub fn via(&self, destination: DestinationId) -> &Via {
        self.live(destination).map_or(&Via::Hold, |destination| &destination.via)
    }

    /// False when the queue is as long as memory allows: MAIL is answered with 452. What is accepted is queued all the same.
    pub fn has_room(&self) -> bool {
        self.len() < self.settings.messages_max && self.destinations_len() < self.settings.destinations_max
    }

    /// Messages in the queue, failed ones included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// No message is queued.
    pub fn is_empty(&self) -> bool {
        self.ids.len() == 0
    }

    /// Queues a message whose record is acknowledged (S21). Its recipients are ready at once, or when its time of release has come.
    ///
    /// Panics if the id is queued already, there is no recipient or more than [`RECIPIENTS_MAX`](crate::RECIPIENTS_MAX), or the reverse-path is longer
    /// than 65,535 bytes: the session's limits are far below.
    pub fn enqueue<'a>(
        &mut self,
        message: &NewMessage<'_>,
        recipients: impl Iterator<Item = NewRecipient<'a>> + Clone,
        now: u64,
    ) -> MessageKey {
        let (key, is_started) = self.lay_down(message, recipients, Some(now));
        if !is_started {
            self.start_any(key.index, now);
        }
        key
    }

    /// Queues a message found by recovery, with its outcome records, oldest first (later ones win, S11).
    ///
    /// Settled and failed recipients stay so, others wait for their persisted time; mail past its lifetime gets one more
    /// attempt. A record that cannot be read is an error and nothing is queued: the engine reports and keeps it. Times that a wrong clock
    /// wrote are brought to where they can be: nothing waits for years because of them.
    pub fn recover<'a, 'r>(
        &mut self,
        message: &NewMessage<'_>,
        recipients: impl Iterator<Item = NewRecipient<'a>> + Clone,
        records: impl Iterator<Item = &'r [u8]> + Clone,
        now: u64,
    ) -> Result<Recovered<'r>, DecodeError> {
        let message = &as_accepted(message, now);
        let recorded = RecordedReroutes::read(records.clone())?;
        let index = match recorded.is_empty() {
            true => self.insert(message, recipients),
            false => self.insert_rerouted(message, recipients, &recorded),
        };
        for record in records {
            if let Err(error) = self.apply(index, record) {
                self.messages[index].flags.set(Flags::CLOSING, true);
                self.close(index);
                return Err(error);
            }
        }
        // Who is over goes nowhere any more, and is nothing to mend.
        let open = (0..).zip(self.messages.recipients(index)).filter(|(_, recipient)| !recipient.place.is_over()).map(|(number, _)| number);
        let lost_route = recorded.first_lost(open, |pattern| self.routes.by_pattern(pattern));
        self.bound_attempts(index, now);
        let untouched = |recipient: &Recipient| recipient.place == Place::Waiting && recipient.attempts == 0;
        let is_held = self.messages[index].flags.has(Flags::HELD);
        // What was begun here is ended here, unless this node ends nothing, or may have offered it all the same.
        let is_kept = match message.offered {
            Offered::No | Offered::Always => false,
            Offered::Untouched => is_held || !self.messages.recipients(index).iter().all(untouched),
            Offered::Perhaps => is_held,
        };
        if is_kept {
            self.messages[index].flags.set(Flags::OFFERED, false);
        }
        let done = self.is_settled(index);
        if done {
            self.begin_closing(index);
        } else {
            self.grant_grace(index, now);
            self.start(index, now);
            self.want_what_is_left(index, now);
        }
        Ok(Recovered { key: self.key(index), done, lost_route })
    }

    /// As [`Queue::insert`], each recipient where it was sent, or by its domain where that route does not exist any more.
    fn insert_rerouted<'a>(
        &mut self,
        message: &NewMessage<'_>,
        recipients: impl Iterator<Item = NewRecipient<'a>> + Clone,
        recorded: &RecordedReroutes<'_>,
    ) -> u32 {
        let routes = recorded.resolve(recipients.clone().count(), |pattern| self.routes.by_pattern(pattern));
        let to = |(recipient, &route): (NewRecipient<'a>, &u16)| match route {
            NOT_REROUTED => recipient,
            route => {
                let domain = self.domain_of(recipient.address).to_vec();
                NewRecipient { destination: self.destination_by(RouteId(route), &domain), ..recipient }
            }
        };
        let recipients: Vec<_> = recipients.zip(&routes).map(to).collect();
        let index = self.insert(message, recipients.into_iter());
        self.set_reroutes(index, routes);
        index
    }

    /// The next thing to do, if any; call until `None`. For [`Work::Expired`] the record is appended to `record`.
    pub fn poll(&mut self, now: u64, record: &mut Vec<u8>) -> Option<Work> {
        let mut moves = TIMERS_PER_POLL;
        while let Popped::Due(destination) = self.destination_timers.pop(now, &mut moves) {
            self.refresh(destination, now);
        }
        let mut moves = TIMERS_PER_POLL;
        while let Popped::Due(index) = self.groups.timers.pop(now, &mut moves) {
            if self.is_given_out(index) {
                if self.is_overdue(index, now) {
                    return Some(Work::Overdue(self.key(index)));
                }
                continue;
            }
            let expired = self.ripen(index, now, record);
            if !expired.is_empty() {
                self.messages[index].unrecorded += 1;
                return Some(Work::Expired(self.key(index), expired));
            }
        }
        // After the attempts, so that what fails together is told together; now and then before them, so that no load starves reports.
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(REPORT_EVERY)
            && let Some(key) = self.poll_report(now)
        {
            return Some(Work::Report(key));
        }
        if self.len() > FAR_MIN {
            if self.loaded == 0 {
                self.load_ahead();
            }
            self.loaded = self.loaded.saturating_sub(1);
        }
        while let Some(destination) = self.serving.pop_front() {
            let state = &mut self.destinations[destination as usize];
            if matches!(state.role, Role::Domain(_)) {
                state.listed = false;
                match self.serve_domain(destination, now) {
                    Some(work) => return Some(work),
                    None => continue,
                }
            }
            let dispatch = state.may_start(now).then(|| self.dispatch(destination, now)).flatten();
            let state = &mut self.destinations[destination as usize];
            // Mostly it may start more and stays listed, behind the others: `look_at` would come to the same, for twice as much.
            let stays = dispatch.is_some() && state.may_start(now) && !state.crowding.is_back(now);
            if stays {
                self.serving.push_back(destination);
            } else {
                state.listed = false;
            }
            if !stays || state.wants_more_looks() {
                self.look_at(destination, now);
            }
            if let Some(dispatch) = dispatch {
                return Some(Work::Attempt(dispatch));
            }
            // It looks for mail of another sender, and is not at the end: other tasks first.
            if self.destinations[destination as usize].listed {
                break;
            }
        }
        if let Some(reservation) = self.poll_reservation() {
            return Some(Work::Reserve(reservation));
        }
        self.poll_report(now).map(Work::Report)
    }

    /// Brings into the cache what the next polls read: the first messages of the destinations whose turn comes next. Most have waited long
    /// enough to have left it, and each poll would wait for its group and then for the message. A queue that is not that long asks for it
    /// as it goes, see [`Queue::prefetch_ahead`].
    fn load_ahead(&mut self) {
        let destinations = self.serving.len().min(LOADED_AHEAD);
        let each = LOADED_AHEAD / destinations.max(1);
        let (mut messages, mut count) = ([0; LOADED_AHEAD], 0);
        for &destination in self.serving.iter().take(destinations) {
            let state = &self.destinations[destination as usize];
            let home = match &state.role {
                Role::Site(site) => site.queued.foremost().map_or(state, |domain| &self.destinations[domain as usize]),
                Role::Route | Role::Domain(_) | Role::Vacant => state,
            };
            let mut next = home.ready.first(&self.groups, self.settings.age_step_ms).unwrap_or(NONE);
            for _ in 0..each {
                let Some(group) = self.groups.get(next) else { break };
                messages[count] = group.message;
                count += 1;
                next = group.next;
                let message = &self.messages[group.message];
                black_box((message.flags, message.generation, self.groups.get(next).map(|group| group.message)));
            }
        }
        // In a loop of its own: nothing above waits for a message.
        for &index in &messages[..count] {
            let Message { id_place, addresses, .. } = self.messages[index];
            // The attempt reads addresses, and who comes next is written into their place. The rest is read by the end of the attempt, and
            // until then it stays near.
            self.ids.load(id_place);
            self.texts.load(addresses);
            self.index.load(index);
        }
        self.loaded = destinations * each;
    }

    /// Asks for what is read until an attempt ends whose message was just looked up, and for what the next ones at its destination read, whose
    /// first group this is now: the message of it, and the group behind it.
    #[inline(always)]
    pub(crate) fn prefetch_ahead(&self, index: u32, first: u32) {
        if !(NEAR_MAX..=FAR_MIN).contains(&self.len()) {
            return;
        }
        // The attempt reads addresses, and who comes next is written into their place.
        let Message { id_place, addresses, flags, .. } = self.messages[index];
        self.ids.prefetch_later(id_place);
        self.texts.prefetch_later(addresses);
        if flags.has(Flags::LISTED) {
            self.index.prefetch_later(index);
        }
        let Some(group) = self.groups.get(first) else { return };
        if let Some(message) = Groups::message_of_first(first) {
            self.messages.prefetch(message);
        }
        self.groups.prefetch(group.next);
    }

    /// When to call [`Queue::poll`] again if nothing else happens (unix ms, `now` if there is work left); arm one timer for it.
    pub fn next_due(&self, now: u64) -> Option<u64> {
        if !self.serving.is_empty() || !self.reservations.is_empty() {
            return Some(now);
        }
        let next = [self.groups.timers.next_due(), self.destination_timers.next_due(), self.next_report(now)];
        next.into_iter().flatten().min().map(|at| at.max(now))
    }

    /// Sender and size of a queued message; `None` if it has left the queue.
    pub fn envelope(&self, key: MessageKey) -> Option<Envelope<'_>> {
        if key.is_guest() {
            return self.guest_envelope(key);
        }
        let message = self.message(key)?;
        Some(Envelope {
            id: self.ids.id(message.id_place),
            size: message.size,
            accepted_at: message.accepted_at,
            eight_bit: message.flags.has(Flags::EIGHT_BIT),
            eight_bit_header: message.flags.has(Flags::EIGHT_BIT_HEADER),
            smtputf8: message.flags.has(Flags::SMTPUTF8),
            extended: message.flags.has(Flags::EXTENDED),
            reverse_path: &self.texts.get(message.addresses)[..usize::from(message.reverse_bytes)],
        })
    }

    /// Appends the whole state of a message as one record: what compaction carries forward, in place of all records before.
    /// `false` if it has left the queue. Not counted by [`Queue::recorded`].
    pub fn state(&self, key: MessageKey, record: &mut Vec<u8>) -> bool {
        let Some(index) = self.find(key) else { return false };
        // All but those that are as they came.
        let is_changed = |recipient: &Recipient| {
            recipient.attempts > 0
                || recipient.was_told()
                || !recipient.place.is_open()
                || recipient.has_reply()
                || recipient.next_attempt > 0
        };
        let select =
            |number, recipient: &Recipient| is_changed(recipient) || self.leaving.has(index, number) || self.has_own_route(index, number);
        self.write_numbered(index, select, record);
        true
    }

    /// Gives memory back if the queue is empty and nothing is in flight.
    pub fn trim(&mut self) {
        if self.is_empty() {
            self.messages.trim();
            self.texts.trim();
        }
    }
}
