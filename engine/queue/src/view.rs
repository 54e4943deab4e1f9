//! What people and programs see of messages, recipients and destinations: `queue show`, metrics. `listing.rs` finds them.

use std::borrow::Cow;
use std::ops::Range;

use crate::breaker::Breaker;
use crate::destination::Destination;
use crate::destination_id::DestinationId;
use crate::domain_name::after_at;
use crate::hosts::HostView;
use crate::kept_reply::{UNNAMED, split_reply};
use crate::message::{Envelope, Flags, MessageKey, Place, Recipient};
use crate::notify::Notify;
use crate::pauses::PausedBy;
use crate::queue::Queue;
use crate::queue_id::QueueId;
use crate::report::Notice;
use crate::route::{DestinationLimits, RouteId, Via};
use crate::site::Role;
use crate::terms::TermKind;
use crate::transition::EXPIRED;
use crate::wait::Wait;

/// What operators are told of mail that no route is for: a reload or a restart can have taken it away.
const UNROUTED: &str = "no route of the config is for it (any more): a route for its domain, or `queue reroute`, sends it";

/// The reason of mail that is to be offered, as far as the queue knows; whether it was is known elsewhere.
pub const OFFERED_REASON: &str = "offered to the nodes of the cluster";

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
    /// To the cluster: whichever node takes it delivers it.
    Offered,
    /// Taken by the next hop.
    Delivered,
    /// Refused for good, or past its lifetime. Stays until it is retried or deleted.
    Failed,
    /// Failed, and its sender was told or need not be: nothing is left to do.
    Bounced,
    /// Taken out by command, and nobody was told: nothing is left to do.
    Purged,
}

impl State {
    /// The word in listings and in `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deferred => "deferred",
            Self::Ready => "ready",
            Self::Attempting => "attempting",
            Self::Held => "held",
            Self::Offered => "offered",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Bounced => "bounced",
            Self::Purged => "purged",
        }
    }
}

/// A queued message.
#[derive(Clone, Copy, Debug)]
pub struct MessageView<'q> {
    pub(crate) queue: &'q Queue,
    pub(crate) index: u32,
}

/// One recipient of a queued message.
#[derive(Clone, Copy, Debug)]
pub struct RecipientView<'q> {
    pub(crate) message: MessageView<'q>,
    pub(crate) number: u16,
}

/// One destination.
#[derive(Clone, Copy, Debug)]
pub struct DestinationView<'q> {
    /// Its id.
    pub id: DestinationId,
    /// The route's pattern, or `unrouted`; the domain, or the first host of the site, where the route is by mx.
    pub name: &'q str,
    /// Its route.
    pub route: Option<RouteId>,
    /// What is done with its mail.
    pub via: &'q Via,
    /// The site whose hosts serve it, by its first host; only for a domain whose hosts are known. Attempts, limits, window and
    /// breaker are then those of the site.
    pub site: Option<&'q str>,
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
    /// What pauses it, or its site, if an operator did.
    pub paused: Option<PausedBy<'q>>,
    /// Attempts at a time that it may be given at most.
    pub connections_max: u32,
    /// What the route allows, for all shards together.
    pub limits: Option<&'q DestinationLimits>,
    /// This shard makes the attempts itself.
    pub is_home: bool,
    /// What its mail waits for now, and until when.
    pub wait: Wait,
    /// Where another shard makes the attempts: what those that are there wait for, as it said last.
    pub wait_there: Wait,
    /// No connection is made just now for a reason of this system.
    pub is_short: bool,
    /// End of the pause that it asked for, unix milliseconds.
    pub throttled_until: Option<u64>,
    /// When its rate lets the next message go, unix milliseconds, if that is not now.
    pub rate_next: Option<u64>,
    /// Why it is dead or throttled, in its own words where it said any; empty if it is well.
    pub reason: &'q str,
    pub(crate) acting: &'q Destination,
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
    /// Purged recipients of messages that are not done yet.
    pub purged: usize,
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

    /// Domains or tags of queued messages with the number of messages under each, in no order. Messages that came just now may be missing.
    pub fn terms(&self, kind: TermKind) -> impl Iterator<Item = (&[u8], usize)> {
        self.index.terms(kind)
    }

    /// All destinations; the first is [`DestinationId::UNROUTED`].
    pub fn destinations(&self, now: u64) -> impl Iterator<Item = DestinationView<'_>> {
        self.destinations_in(0..self.destination_slots(), now)
    }

    /// The destinations in some of the slots: for going over all of them in several steps. One that stays stays in its slot.
    pub fn destinations_in(&self, slots: Range<usize>, now: u64) -> impl Iterator<Item = DestinationView<'_>> {
        let slots = slots.start.min(self.destinations.len())..slots.end.min(self.destinations.len());
        let used = slots.filter(|&slot| !matches!(self.destinations[slot].role, Role::Vacant));
        used.map(move |slot| self.view_of(slot as u32, now))
    }

    /// How many slots there are for destinations, the free ones included.
    pub fn destination_slots(&self) -> usize {
        self.destinations.len()
    }

    /// One destination; `None` if it was dropped.
    pub fn destination(&self, id: DestinationId, now: u64) -> Option<DestinationView<'_>> {
        self.live(id).map(|_| self.view_of(id.slot, now))
    }

    fn view_of(&self, slot: u32, now: u64) -> DestinationView<'_> {
        let (destination, acting) = (&self.destinations[slot as usize], self.acting(slot));
        DestinationView {
            id: self.id(slot),
            name: &destination.name,
            route: destination.route,
            via: &destination.via,
            site: (!std::ptr::eq(destination, acting)).then_some(&*acting.name),
            in_flight: acting.in_flight,
            window: acting.window(now),
            ready: destination.ready.len(),
            messages: destination.groups,
            breaker: acting.breaker(now),
            paused: self.paused_by(destination).or_else(|| self.paused_by(acting)),
            connections_max: acting.limits.connections_max,
            limits: acting.route.and_then(|route| self.routes.all().get(usize::from(route.0))).map(|route| &route.limits),
            is_home: acting.away.is_none(),
            wait: self.wait_of(slot, now),
            wait_there: acting.away.as_ref().map_or(Wait::Turn, |away| away.wait_there(now)),
            is_short: acting.is_short(now),
            throttled_until: acting.throttled_until(now).or(acting.crowding.pauses_until(now)),
            rate_next: acting.rate_next(now),
            reason: if slot == DestinationId::UNROUTED.slot { UNROUTED } else { self.reason_of(slot) },
            acting,
        }
    }

    /// What keeps the mail of a destination, at its site where it has one.
    pub(crate) fn wait_of(&self, home: u32, now: u64) -> Wait {
        let state = &self.destinations[home as usize];
        match &state.role {
            Role::Domain(_) if state.paused => Wait::Paused,
            // Nobody asks DNS for mail that waits for a time of its own.
            Role::Domain(domain) if !domain.is_asked() && state.ready.is_empty() => self.acting(home).wait(now),
            Role::Domain(domain) => domain.wait(now).unwrap_or_else(|| self.acting(home).wait(now)),
            Role::Route | Role::Site(_) | Role::Vacant => state.wait(now),
        }
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
            purged: self.placed[Place::Purged as usize],
        }
    }
}

impl<'q> DestinationView<'q> {
    /// Its hosts, at most [`HOSTS_MAX`](crate::HOSTS_MAX), or those of its site; none where another shard makes the attempts, which alone knows
    /// how they are.
    pub fn hosts(&self, now: u64) -> impl Iterator<Item = HostView<'q>> + use<'q> {
        self.acting.hosts.views(now).take(if self.is_home { usize::MAX } else { 0 })
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

    /// Offered to other nodes.
    pub fn is_offered(&self) -> bool {
        self.queue.messages[self.index].flags.has(Flags::OFFERED)
    }

    /// Offered to other nodes, and not held: their queue has it, or is about to.
    pub fn is_given_out(&self) -> bool {
        self.queue.is_given_out(self.index)
    }

    /// When the last of its open recipients expires, unix milliseconds; `u64::MAX`: never.
    pub fn ends_at(&self) -> u64 {
        self.queue.last_end(self.index)
    }

    /// The end of life that a command gave it, unix milliseconds.
    pub fn end_by_command(&self) -> Option<u64> {
        let message = &self.queue.messages[self.index];
        message.flags.has(Flags::EXPIRY_SET).then_some(message.expires_at)
    }

    /// A recipient is neither delivered nor failed.
    pub fn is_open(&self) -> bool {
        self.recipients().any(|recipient| recipient.is_open())
    }

    /// No recipient was attempted, and none has come to an end.
    pub fn is_untouched(&self) -> bool {
        self.recipients().all(|recipient| recipient.is_open() && recipient.attempts() == 0)
    }

    /// Done or deleted, waiting for the acknowledgement of its settled record.
    pub fn is_closing(&self) -> bool {
        self.queue.messages[self.index].flags.has(Flags::CLOSING)
    }

    /// Its recipients in order.
    pub fn recipients(&self) -> impl ExactSizeIterator<Item = RecipientView<'q>> + use<'q> {
        let message = *self;
        let count = self.queue.messages.recipients(self.index).len() as u16;
        (0..count).map(move |number| RecipientView { message, number })
    }

    /// What it can be found by beside its addresses.
    pub fn tags(&self) -> impl Iterator<Item = &'q [u8]> + use<'q> {
        self.queue.index.tags(self.index)
    }
}

impl<'q> RecipientView<'q> {
    /// Its number in the message.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Forward-path without brackets.
    pub fn address(&self) -> &'q [u8] {
        self.message.queue.address(self.message.index, self.number)
    }

    /// What follows the last `@` of the address; empty if there is none.
    pub fn domain(&self) -> &'q [u8] {
        after_at(self.address())
    }

    /// Where it is.
    pub fn state(&self) -> State {
        let queue = self.message.queue;
        match self.recipient().place {
            Place::Waiting | Place::Ready if self.message.is_held() => State::Held,
            Place::Waiting | Place::Ready if self.message.is_offered() => State::Offered,
            // Also when its time has not come: then it will not be tried either.
            Place::Waiting | Place::Ready if queue.destinations[self.destination().index()].is_held() => State::Held,
            Place::Waiting => State::Deferred,
            Place::Ready => State::Ready,
            Place::Attempting => State::Attempting,
            Place::Delivered => State::Delivered,
            Place::Failed => State::Failed,
            Place::Bounced => State::Bounced,
            Place::Purged => State::Purged,
        }
    }

    /// Where to.
    pub fn destination(&self) -> DestinationId {
        self.message.queue.id(self.home())
    }

    pub(crate) fn home(&self) -> u32 {
        self.message.queue.groups[self.recipient().group].destination
    }

    /// The name of that destination.
    pub fn destination_name(&self) -> &'q str {
        &self.message.queue.destinations[self.home() as usize].name
    }

    /// What pauses its destination, or the site of that, if an operator did.
    pub fn paused(&self) -> Option<PausedBy<'q>> {
        let queue = self.message.queue;
        queue.paused_by(&queue.destinations[self.home() as usize]).or_else(|| queue.paused_by(queue.acting(self.home())))
    }

    /// Not tried until an operator lets it: held by command or by its route, without a route, or for a destination that is paused.
    pub fn is_kept(&self) -> bool {
        match self.state() {
            State::Held => true,
            State::Deferred | State::Ready => self.paused().is_some(),
            State::Attempting | State::Offered | State::Delivered | State::Failed | State::Bounced | State::Purged => false,
        }
    }

    /// The name of the route that it goes by; empty when there is none.
    pub fn route_name(&self) -> &'q str {
        let queue = self.message.queue;
        let route = queue.destinations[self.home() as usize].route;
        route.map_or("", |route| &queue.routes.all()[usize::from(route.0)].pattern)
    }

    /// The name of the route that a command sent it by while it is being attempted: it goes there when that has ended without a delivery.
    pub fn next_route_name(&self) -> Option<&'q str> {
        let queue = self.message.queue;
        let is_attempted = self.place() == Place::Attempting && queue.messages[self.message.index].flags.has(Flags::REGROUP);
        let route = queue.rerouted_to(self.message.index, self.number).filter(|_| is_attempted)?;
        let leads_elsewhere = queue.destinations[self.home() as usize].route != Some(route);
        leads_elsewhere.then(|| &*queue.routes.all()[usize::from(route.0)].pattern)
    }

    /// Nothing is left to do for it.
    pub fn is_settled(&self) -> bool {
        self.recipient().is_settled()
    }

    /// Neither delivered nor failed.
    pub fn is_open(&self) -> bool {
        self.place().is_open()
    }

    pub(crate) fn queue(&self) -> &'q Queue {
        self.message.queue
    }

    pub(crate) fn place(&self) -> Place {
        self.recipient().place
    }

    /// Attempts so far.
    pub fn attempts(&self) -> u16 {
        self.recipient().attempts
    }

    /// Unix milliseconds.
    pub fn last_attempt(&self) -> Option<u64> {
        Some(self.recipient().last_attempt).filter(|&at| at > 0)
    }

    /// Unix milliseconds, `now` at the earliest; `None` when no time is set for it (held, paused, settled, being attempted).
    pub fn next_attempt(&self, now: u64) -> Option<u64> {
        match self.state() {
            State::Deferred | State::Ready if self.paused().is_some() => None,
            State::Deferred => Some(self.recipient().next_attempt.max(now)),
            State::Ready => {
                let queue = self.message.queue;
                let by_dns = queue.wait_of(self.home(), now).until();
                Some(queue.acting(self.home()).wakes_at(now).or(by_dns).map_or(now, |at| at.max(now)))
            }
            State::Attempting | State::Held | State::Offered | State::Delivered | State::Failed | State::Bounced | State::Purged => None,
        }
    }

    /// The time that it waits for (unix ms), as if it were not held; `None` for what waits for none.
    pub fn due_at(&self) -> Option<u64> {
        Some(self.recipient().next_attempt).filter(|_| self.place() == Place::Waiting)
    }

    /// What its sender is to be told and was not yet.
    pub fn notice(&self) -> Option<Notice> {
        self.recipient().notice()
    }

    /// Whether its sender is to be told of its [`RecipientView::notice`]: NOTIFY may say that it is not. Failures of mail with
    /// the null reverse-path are the driver's to tell.
    pub fn is_told(&self) -> bool {
        let message = &self.message.queue.messages[self.message.index];
        self.recipient().is_told(message.reverse_bytes > 0)
    }

    /// NOTIFY.
    pub fn notify(&self) -> Notify {
        self.recipient().notify()
    }

    /// Until when it is tried (unix ms), with the time that was granted for one more attempt, as if it were not held.
    pub fn expires_at(&self) -> u64 {
        self.message.queue.end_with_grace(self.recipient().group)
    }

    /// When it fails where it is now (unix ms); `None` for what is held without a time of its own.
    pub fn fails_at(&self) -> Option<u64> {
        self.message.queue.deadline(self.recipient().group)
    }

    /// The last word of the next hop about it; may be empty.
    pub fn reply(&self) -> Cow<'q, str> {
        String::from_utf8_lossy(self.said().0)
    }

    /// Did its time end it? Not a next hop or a command.
    pub fn has_expired(&self) -> bool {
        matches!(self.place(), Place::Failed | Place::Bounced) && self.said().0.starts_with(EXPIRED.as_bytes())
    }

    /// The next hop that said it, or the place where it was kept; `?` if the name was too long to be kept. `None` if it was said by none.
    pub fn relay(&self) -> Option<Cow<'q, str>> {
        Some(String::from_utf8_lossy(self.said().1)).filter(|relay| !relay.is_empty())
    }

    /// The same for people: without the address where that was too long to be kept, and none where the name was.
    pub fn relay_name(&self) -> Option<Cow<'q, str>> {
        let relay = self.relay().filter(|relay| relay != UNNAMED)?;
        Some(relay.strip_suffix('[').map_or_else(|| relay.clone(), |name| Cow::Owned(name.to_owned())))
    }

    /// Was it said at its destination? Who was re-routed may have the word of a host of another one.
    pub fn was_said_here(&self) -> bool {
        let queue = self.message.queue;
        let relay = self.said().1;
        let is_it = |name: &[u8]| name == relay || relay.ends_with(b"[") && name.starts_with(relay);
        queue.rerouted_to(self.message.index, self.number()).is_none()
            || queue.acting(self.home()).hops().any(|hop| is_it(hop.name.as_bytes()))
    }

    fn said(&self) -> (&'q [u8], &'q [u8]) {
        split_reply(self.message.queue.texts.get(self.recipient().reply()))
    }

    /// Why it is still here, in one sentence; empty if there is nothing to say.
    pub fn reason(&self, now: u64) -> Cow<'q, str> {
        let queue = self.message.queue;
        let destination = &queue.destinations[self.home() as usize];
        let acting = queue.acting(self.home());
        match self.state() {
            State::Held if self.message.is_held() => "held by command".into(),
            State::Offered if self.message.envelope().size > queue.settings.offered_bytes_max => {
                let most = queue.settings.offered_bytes_max;
                format!(
                    "more than the {most} bytes that can be offered to the cluster: it waits for a restart with delivery.deliver = true"
                )
                .into()
            }
            State::Offered => OFFERED_REASON.into(),
            State::Held if self.destination() == DestinationId::UNROUTED => UNROUTED.into(),
            State::Held => format!("held by route {:?}", destination.name).into(),
            State::Ready | State::Deferred if self.paused().is_some() => {
                format!("destination {:?} is paused by command", destination.name).into()
            }
            State::Ready if acting.breaker(now) != Breaker::Closed => acting.reason.as_str().into(),
            State::Ready => match queue.wait_of(self.home(), now) {
                Wait::Turn => self.reply(),
                Wait::Asking if destination.reason.is_empty() => format!("waits for DNS of {}", destination.asked_about()).into(),
                Wait::Asking | Wait::Unanswered { .. } => destination.reason.as_str().into(),
                wait @ (Wait::Throttled { .. } | Wait::Crowded { .. } | Wait::Shortage { .. }) if !acting.reason.is_empty() => {
                    format!("{wait}: {}", acting.reason).into()
                }
                wait => wait.to_string().into(),
            },
            State::Failed if self.message.is_held() => {
                format!("{}; its message is held by command: a retry comes after a release", self.reply()).into()
            }
            State::Deferred | State::Failed | State::Bounced => self.reply(),
            State::Attempting | State::Delivered | State::Purged => "".into(),
        }
    }

    fn recipient(&self) -> &'q Recipient {
        &self.message.queue.messages.recipients(self.message.index)[usize::from(self.number)]
    }
}
