//! What people and programs see of the queue: `queue ls`, `queue show`, metrics.

use std::borrow::Cow;

use crate::destination::{Breaker, DestinationId};
use crate::message::{Envelope, Flags, MessageKey, Place, Recipient};
use crate::queue::Queue;
use crate::queue_id::QueueId;
use crate::route::{RouteId, Via};

/// Slots looked at by one call of [`Queue::page`] at most, so that listing a long queue never stalls delivery.
const SLOTS_PER_PAGE: usize = 4096;

/// Where a recipient is, in the operator's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Waits for its next attempt.
    Deferred,
    /// May be attempted as soon as its destination takes it.
    Ready,
    /// Being attempted.
    Attempting,
    /// By command or by route.
    Held,
    /// Taken by the next hop.
    Delivered,
    /// Refused for good, or past its lifetime. Stays until it is retried or deleted.
    Failed,
    /// Failed, and its sender was told or need not be: nothing is left to do.
    Bounced,
}

impl State {
    /// The word in listings and in `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deferred => "deferred",
            Self::Ready => "ready",
            Self::Attempting => "attempting",
            Self::Held => "held",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Bounced => "bounced",
        }
    }
}

/// Which messages to list; absent parts match everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Exactly this message.
    pub id: Option<QueueId>,
    /// Reverse-path, in any case; empty is the null reverse-path.
    pub sender: Option<String>,
    /// Domain of at least one recipient, in any case.
    pub recipient_domain: Option<String>,
    /// State of at least one recipient (of that domain, if one is given).
    pub state: Option<State>,
}

/// Where a listing goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor(u32);

impl Cursor {
    /// A cursor from its [`Cursor::position`], for listings that go on in a later call from outside.
    pub fn at(position: u32) -> Self {
        Self(position)
    }

    /// Where it stands.
    pub fn position(self) -> u32 {
        self.0
    }
}

/// A queued message.
#[derive(Clone, Copy, Debug)]
pub struct MessageView<'q> {
    queue: &'q Queue,
    index: u32,
}

/// One recipient of a queued message.
#[derive(Clone, Copy, Debug)]
pub struct RecipientView<'q> {
    message: MessageView<'q>,
    number: u16,
}

/// One destination.
#[derive(Clone, Copy, Debug)]
pub struct DestinationView<'q> {
    /// Its id.
    pub id: DestinationId,
    /// The route's pattern, or `unrouted`.
    pub name: &'q str,
    /// Its route.
    pub route: Option<RouteId>,
    /// What is done with its mail.
    pub via: &'q Via,
    /// Attempts in progress.
    pub in_flight: u32,
    /// Attempts at a time that are allowed now.
    pub window: u32,
    /// Messages in its ready queue.
    pub ready: usize,
    /// Queued messages with recipients that lead here, in any state.
    pub messages: usize,
    /// State of the breaker.
    pub breaker: Breaker,
    /// Paused by command.
    pub paused: bool,
    /// Last reason for which it was dead; empty if it is not.
    pub reason: &'q str,
}

/// Recipients of the queue by state, and messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueCounts {
    /// Messages of all states.
    pub messages: usize,
    /// Recipients that wait for a time or, when held by command, for a release.
    pub waiting: usize,
    /// Recipients in ready queues, those held by route included.
    pub ready: usize,
    /// Recipients being attempted.
    pub attempting: usize,
    /// Delivered recipients of messages that are not done yet.
    pub delivered: usize,
    /// Failed recipients.
    pub failed: usize,
    /// Bounced recipients of messages that are not done yet.
    pub bounced: usize,
}

impl Queue {
    /// The key of a queued message.
    pub fn key_of(&self, id: QueueId) -> Option<MessageKey> {
        self.find_id(id).map(|index| self.key(index))
    }

    /// One message; `None` if it has left the queue.
    pub fn show(&self, key: MessageKey) -> Option<MessageView<'_>> {
        self.find(key).map(|index| MessageView { queue: self, index })
    }

    /// Visits up to `limit` messages that match, from `cursor` on ([`Cursor::default`] begins), and returns where to go on;
    /// `None` at the end. Bounded work per call, so a page can be short or empty before the end. Messages that come or go
    /// between pages may be missed, none is visited twice. Done messages are not listed.
    pub fn page<'q>(&'q self, filter: &Filter, cursor: Cursor, limit: usize, mut visit: impl FnMut(MessageView<'q>)) -> Option<Cursor> {
        let mut offer = |index: u32| {
            let flags = self.messages[index].flags;
            let view = MessageView { queue: self, index };
            let matches = flags.has(Flags::QUEUED) && !flags.has(Flags::CLOSING) && view.matches(filter);
            if matches {
                visit(view);
            }
            matches
        };
        if let Some(id) = filter.id {
            self.find_id(id).map(&mut offer);
            return None;
        }
        let end = (cursor.0 as usize + SLOTS_PER_PAGE).min(self.messages.slots()) as u32;
        let mut found = 0;
        for index in cursor.0..end {
            if found == limit {
                return Some(Cursor(index));
            }
            found += usize::from(offer(index));
        }
        ((end as usize) < self.messages.slots()).then_some(Cursor(end))
    }

    /// All destinations; the first is [`DestinationId::UNROUTED`].
    pub fn destinations(&self, now: u64) -> impl Iterator<Item = DestinationView<'_>> {
        self.destinations.iter().enumerate().map(move |(index, destination)| DestinationView {
            id: DestinationId(index as u32),
            name: &destination.name,
            route: destination.route,
            via: &destination.via,
            in_flight: destination.in_flight,
            window: destination.window(now),
            ready: destination.ready.len(),
            messages: destination.groups,
            breaker: destination.breaker(now),
            paused: destination.paused,
            reason: &destination.reason,
        })
    }

    /// Counts for metrics; O(1).
    pub fn counts(&self) -> QueueCounts {
        QueueCounts {
            messages: self.len(),
            waiting: self.placed[Place::Waiting as usize],
            ready: self.placed[Place::Ready as usize],
            attempting: self.placed[Place::Attempting as usize],
            delivered: self.placed[Place::Delivered as usize],
            failed: self.placed[Place::Failed as usize],
            bounced: self.placed[Place::Bounced as usize],
        }
    }
}

impl<'q> MessageView<'q> {
    /// Its key.
    pub fn key(&self) -> MessageKey {
        self.queue.key(self.index)
    }

    /// Id, sender, size, time of acceptance.
    pub fn envelope(&self) -> Envelope<'q> {
        self.queue.envelope(self.key()).expect("a view is of a queued message")
    }

    /// 0 to 9.
    pub fn priority(&self) -> u8 {
        self.queue.messages[self.index].priority
    }

    /// Held by command.
    pub fn is_held(&self) -> bool {
        self.queue.messages[self.index].flags.has(Flags::HELD)
    }

    /// Done or deleted, waiting for the acknowledgement of its settled record.
    pub fn is_closing(&self) -> bool {
        self.queue.messages[self.index].flags.has(Flags::CLOSING)
    }

    /// Its recipients in order.
    pub fn recipients(&self) -> impl ExactSizeIterator<Item = RecipientView<'q>> + use<'q> {
        let message = *self;
        let count = self.queue.messages[self.index].recipients.len() as u16;
        (0..count).map(move |number| RecipientView { message, number })
    }

    fn matches(&self, filter: &Filter) -> bool {
        if filter.sender.as_ref().is_some_and(|sender| !self.envelope().reverse_path.eq_ignore_ascii_case(sender.as_bytes())) {
            return false;
        }
        if filter.recipient_domain.is_none() && filter.state.is_none() {
            return true;
        }
        self.recipients().any(|recipient| {
            let domain = filter.recipient_domain.as_ref();
            domain.is_none_or(|domain| recipient.domain().eq_ignore_ascii_case(domain.as_bytes()))
                && filter.state.is_none_or(|state| recipient.state() == state)
        })
    }
}

impl<'q> RecipientView<'q> {
    /// Its number in the message.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Forward-path without brackets.
    pub fn address(&self) -> &'q [u8] {
        self.message.queue.address(&self.message.queue.messages[self.message.index], self.number)
    }

    /// What follows the last `@` of the address; empty if there is none.
    pub fn domain(&self) -> &'q [u8] {
        let address = self.address();
        address.iter().rposition(|&b| b == b'@').map_or(&[][..], |at| &address[at + 1..])
    }

    /// Where it is.
    pub fn state(&self) -> State {
        let queue = self.message.queue;
        match self.recipient().place {
            Place::Waiting | Place::Ready if self.message.is_held() => State::Held,
            Place::Ready if queue.destinations[self.destination().index()].is_held() => State::Held,
            Place::Waiting => State::Deferred,
            Place::Ready => State::Ready,
            Place::Attempting => State::Attempting,
            Place::Delivered => State::Delivered,
            Place::Failed => State::Failed,
            Place::Bounced => State::Bounced,
        }
    }

    /// Where to.
    pub fn destination(&self) -> DestinationId {
        DestinationId(self.message.queue.groups[self.recipient().group].destination)
    }

    /// Attempts so far.
    pub fn attempts(&self) -> u16 {
        self.recipient().attempts
    }

    /// Unix milliseconds.
    pub fn last_attempt(&self) -> Option<u64> {
        Some(self.recipient().last_attempt).filter(|&at| at > 0)
    }

    /// Unix milliseconds, `now` at the earliest; `None` when no time is set for it (held, settled, being attempted).
    pub fn next_attempt(&self, now: u64) -> Option<u64> {
        match self.state() {
            State::Deferred => Some(self.recipient().next_attempt.max(now)),
            State::Ready => {
                self.message.queue.destinations[self.destination().index()].wakes_at(now).map_or(Some(now), |at| Some(at.max(now)))
            }
            State::Attempting | State::Held | State::Delivered | State::Failed | State::Bounced => None,
        }
    }

    /// The last word of the next hop about it; may be empty.
    pub fn reply(&self) -> Cow<'q, str> {
        String::from_utf8_lossy(self.message.queue.texts.get(self.recipient().reply()))
    }

    /// Why it is still here, in one sentence; empty if there is nothing to say.
    pub fn reason(&self, now: u64) -> Cow<'q, str> {
        let destination = &self.message.queue.destinations[self.destination().index()];
        match self.state() {
            State::Held if self.message.is_held() => "held by command".into(),
            State::Held if self.destination() == DestinationId::UNROUTED => destination.reason.as_str().into(),
            State::Held => format!("held by route {:?}", destination.name).into(),
            State::Ready if destination.paused => format!("destination {:?} is paused by command", destination.name).into(),
            State::Ready if destination.breaker(now) != Breaker::Closed => destination.reason.as_str().into(),
            State::Ready if destination.window(now) <= destination.in_flight => "waits for its turn at the destination".into(),
            State::Ready | State::Deferred | State::Failed | State::Bounced => self.reply(),
            State::Attempting | State::Delivered => "".into(),
        }
    }

    fn recipient(&self) -> &'q Recipient {
        &self.message.queue.recipients.get(self.message.queue.messages[self.message.index].recipients)[usize::from(self.number)]
    }
}
