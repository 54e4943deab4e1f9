//! How recipients move between their places; every move goes through [`Queue::place`].

use std::borrow::Cow;

use crate::destination::Destination;
use crate::groups::Groups;
use crate::kept_reply::{REPLY_BYTES_MAX, sanitise};
use crate::message::{Flags, Group, Message, NO_RECIPIENT, Place, Recipient};
use crate::queue::{Queue, QueueSettings};
use crate::ready::ReadyQueue;
use crate::site::Role;
use crate::slab::NONE;
use crate::view::{MessageView, RecipientView};

/// How the text of a recipient that expired begins; the last reply, or what it waited for, stands behind it. RFC 3463 3.5: X.4.7, delivery time expired.
pub(crate) const EXPIRED: &str = "5.4.7 expired";

impl Queue {
    /// Lets a message live in the queue: what is due is ready, the rest waits for its time.
    pub(crate) fn start(&mut self, index: u32, now: u64) {
        if !self.start_alone(index, now) {
            self.start_any(index, now);
        }
    }

    /// As [`Queue::start`], for a message with any number of recipients.
    pub(crate) fn start_any(&mut self, index: u32, now: u64) {
        if self.ready_due(index, now) {
            self.arm_for_end(index);
        } else {
            self.arm(index);
        }
    }

    /// As [`Queue::start`], for a message with one recipient, as most mail is, that may go now; false for any other. Each thing is looked up
    /// once.
    #[inline(always)]
    pub(crate) fn start_alone(&mut self, index: u32, now: u64) -> bool {
        let (message, [recipient]) = self.messages.with_recipients_mut(index) else { return false };
        if recipient.place != Place::Waiting || !may_go(message, recipient, now) {
            return false;
        }
        self.placed[Place::Waiting as usize] -= 1;
        self.placed[Place::Ready as usize] += 1;
        let group = &mut self.groups[message.first_group];
        let destination = &mut self.destinations[group.destination as usize];
        let going = go(&self.settings, message, recipient, group, destination, now);
        self.gone(index, &going, now);
        true
    }

    /// What follows [`go`] outside of the message.
    #[inline(always)]
    pub(crate) fn gone(&mut self, index: u32, going: &Going, now: u64) {
        if going.before != NONE {
            self.groups[going.before].next = going.group;
        }
        self.groups.timers.set_or_cancel(index, going.nearest);
        self.refresh(going.destination, now);
    }

    /// Handles a message's timer. Returns the recipients that expired; if there are some the record is appended.
    pub(crate) fn ripen(&mut self, index: u32, now: u64, record: &mut Vec<u8>) -> Vec<u16> {
        let expired = self.expire(index, now);
        if !expired.is_empty() {
            self.write_record(index, |recipient| recipient.place == Place::Failed, record);
        }
        self.warn(index, now);
        self.start(index, now);
        self.want_report(index, now);
        expired
    }

    /// Moves recipients whose time has come into the ready queues, unless no attempt is to be begun. True if none waits any more.
    fn ready_due(&mut self, index: u32, now: u64) -> bool {
        let Message { flags, first_group, .. } = self.messages[index];
        if flags.has(Flags::KEPT) {
            return false;
        }
        let (mut waiting, mut group) = (0, first_group);
        while group != NONE {
            let Group { first, destination, next_in_message, .. } = self.groups[group];
            let (mut due, mut next) = (0, first);
            let recipients = self.messages.recipients_mut(index);
            while next != NO_RECIPIENT {
                let recipient = &mut recipients[usize::from(next)];
                if recipient.place == Place::Waiting {
                    waiting += 1;
                    if recipient.next_attempt <= now {
                        recipient.place = Place::Ready;
                        due += 1;
                    }
                }
                next = recipient.next_in_group;
            }
            self.placed[Place::Waiting as usize] -= usize::from(due);
            self.placed[Place::Ready as usize] += usize::from(due);
            if due > 0 {
                self.add_ready(group, due, |ready, groups| ready.push(groups, group, now));
                self.refresh(destination, now);
            }
            waiting -= due;
            group = next_in_message;
        }
        waiting == 0
    }

    /// Counts recipients as ready; `enter` puts the group into the ready queue if it is not there yet.
    pub(crate) fn add_ready(&mut self, group: u32, count: u16, enter: impl FnOnce(&mut ReadyQueue, &mut Groups)) {
        let Group { ready, destination, .. } = &mut self.groups[group];
        *ready += count;
        if *ready == count {
            let destination = *destination as usize;
            enter(&mut self.destinations[destination].ready, &mut self.groups);
        }
    }

    /// Takes recipients out of the ready queue's count; the last one takes the group out of the queue.
    #[inline]
    pub(crate) fn subtract_ready(&mut self, group: u32, count: u16) {
        let Group { ready, destination, .. } = &mut self.groups[group];
        *ready = ready.checked_sub(count).expect("a ready recipient is counted by its group");
        if *ready == 0 && count > 0 {
            let destination = *destination as usize;
            self.destinations[destination].ready.remove(&mut self.groups, group);
        }
    }

    /// Fails the recipients that wait beyond their time, held ones too where they have a time of their own, and returns them.
    pub(crate) fn expire(&mut self, index: u32, now: u64) -> Vec<u16> {
        let mut expired = Vec::new();
        let mut group = self.messages[index].first_group;
        while group != NONE {
            let next_group = self.groups[group].next_in_message;
            if self.deadline(group).is_some_and(|at| at <= now) {
                let mut next = self.groups[group].first;
                while next != NO_RECIPIENT {
                    let recipient = self.messages.recipients(index)[usize::from(next)];
                    if matches!(recipient.place, Place::Waiting | Place::Ready) {
                        // What it waits for is asked while it waits.
                        self.fail_expired(index, next, now);
                        self.subtract_ready(group, u16::from(recipient.place == Place::Ready));
                        expired.push(next);
                    }
                    next = recipient.next_in_group;
                }
                self.refresh(self.groups[group].destination, now);
            }
            group = next_group;
        }
        expired
    }

    pub(crate) fn fail_expired(&mut self, index: u32, recipient: u16, now: u64) {
        let mut last = [0; REPLY_BYTES_MAX];
        let (length, relay) = if self.is_given_out(index) {
            (sanitise(b"no node of the cluster has taken it over", &mut last), String::new())
        } else {
            let view = RecipientView { message: MessageView { queue: self, index }, number: recipient };
            let (text, by) = view.last_word(now);
            (sanitise(text.as_bytes(), &mut last), by.map_or_else(String::new, Cow::into_owned))
        };
        self.place(index, recipient, Place::Failed);
        self.messages[index].flags.set(Flags::REPORT_DUE, true);
        match length {
            0 => self.keep_reply(index, recipient, &[EXPIRED.as_bytes()], ""),
            length => self.keep_reply(index, recipient, &[EXPIRED.as_bytes(), b"; last: ", &last[..length]], &relay),
        }
    }

    /// When the recipients of a group expire by their message's age alone.
    pub(crate) fn end_of_life(&self, group: u32) -> u64 {
        let Group { message, destination, .. } = self.groups[group];
        end_of_life(&self.messages[message], &self.destinations[destination as usize])
    }

    /// As [`Queue::end_of_life`], with the time that was granted for one more attempt.
    pub(crate) fn end_with_grace(&self, group: u32) -> u64 {
        let Group { message, destination, .. } = self.groups[group];
        end_with_grace(&self.messages[message], &self.destinations[destination as usize])
    }

    /// When the recipients of a group expire where they wait.
    pub(crate) fn deadline(&self, group: u32) -> Option<u64> {
        let Group { message, destination, .. } = self.groups[group];
        deadline(&self.messages[message], &self.destinations[destination as usize])
    }

    /// Gives mail that is past its lifetime one more attempt, and the time for it.
    pub(crate) fn grant_grace(&mut self, index: u32, now: u64) {
        let mut group = self.messages[index].first_group;
        while group != NONE {
            if self.end_of_life(group) <= now {
                self.messages[index].grace_until = now + self.settings.grace_ms;
                self.hasten(group, now);
            }
            group = self.groups[group].next_in_message;
        }
    }

    /// Brings the next attempts of a group forward where they would come when the grace is over, or just before.
    fn hasten(&mut self, group: u32, now: u64) {
        let (message, recipients) = self.messages.with_recipients_mut(self.groups[group].message);
        if message.released_at() > now {
            return;
        }
        let half = self.settings.grace_ms / 2;
        let mut next = self.groups[group].first;
        while next != NO_RECIPIENT {
            let recipient = &mut recipients[usize::from(next)];
            if recipient.place == Place::Waiting && recipient.next_attempt > now + half {
                recipient.next_attempt = now + self.jitter.below(half + 1);
            }
            next = recipient.next_in_group;
        }
    }

    /// Sets the timer of a message, neither held nor closing, of which no recipient waits: to its end.
    fn arm_for_end(&mut self, index: u32) {
        let message = &self.messages[index];
        let (mut nearest, mut group) = (u64::MAX, message.first_group);
        while group != NONE {
            let state = &self.groups[group];
            if state.ready > 0 {
                let destination = &self.destinations[state.destination as usize];
                nearest = nearest.min(end_or_warning(&self.settings, state, message, destination));
            }
            group = state.next_in_message;
        }
        self.groups.timers.set_or_cancel(index, nearest);
    }

    /// Sets the message's one timer to the nearest of its retries, its warning and its end; while it is held, only what goes on.
    pub(crate) fn arm(&mut self, index: u32) {
        let (message, recipients) = self.messages.with_recipients(index);
        if message.flags.has(Flags::CLOSING) {
            return self.groups.timers.cancel(index);
        }
        if self.is_given_out(index) {
            return self.arm_offered(index);
        }
        let is_still = message.flags.has(Flags::HELD);
        let mut nearest = u64::MAX;
        let mut group = message.first_group;
        while group != NONE {
            let state = &self.groups[group];
            let (mut next, mut open) = (state.first, false);
            while next != NO_RECIPIENT {
                let recipient = &recipients[usize::from(next)];
                match recipient.place {
                    Place::Waiting => {
                        open = true;
                        if !is_still {
                            nearest = nearest.min(recipient.next_attempt);
                        }
                    }
                    Place::Ready => open = true,
                    Place::Attempting | Place::Delivered | Place::Failed | Place::Bounced | Place::Purged => {}
                }
                next = recipient.next_in_group;
            }
            if open {
                let destination = &self.destinations[state.destination as usize];
                nearest = nearest.min(end_or_warning(&self.settings, state, message, destination));
            }
            group = state.next_in_message;
        }
        self.groups.timers.set_or_cancel(index, nearest);
    }

    /// Puts a destination into the list of those that may be served, or sees to it that it wakes when it may.
    #[inline]
    pub(crate) fn refresh(&mut self, destination: u32, now: u64) {
        let state = &self.destinations[destination as usize];
        // The next poll looks at what is listed, whatever may be done there now: while mail flows, this is how most calls end.
        let is_looked_at = state.listed && !matches!(state.role, Role::Domain(_));
        if !is_looked_at || state.wants_more_looks() {
            self.look_at(destination, now);
        }
    }

    /// As [`Queue::refresh`], and at once.
    #[inline(never)]
    pub(crate) fn look_at(&mut self, destination: u32, now: u64) {
        let state = &mut self.destinations[destination as usize];
        if matches!(state.role, Role::Domain(_)) {
            return self.refresh_domain(destination, now);
        }
        if state.crowding.is_back(now) {
            self.come_back(destination, now);
        }
        let state = &mut self.destinations[destination as usize];
        if state.limits.shared_rate.is_some() {
            self.ask_for_quota(destination, now);
        }
        let state = &mut self.destinations[destination as usize];
        if state.may_start(now) {
            if !state.listed {
                state.listed = true;
                self.serving.push_back(destination);
            }
            return;
        }
        let wakes_at = state.wakes_at(now);
        let has_guests = !state.guests.is_empty();
        match wakes_at {
            Some(at) => self.destination_timers.set(destination, at),
            None if matches!(state.role, Role::Site(_)) => self.rest(destination, now),
            None => self.destination_timers.cancel(destination),
        }
        if has_guests {
            self.review_guests(destination, wakes_at, now);
        }
    }

    /// Why mail of this destination waits, if it does not wait for its turn.
    pub(crate) fn reason_of(&self, home: u32) -> &str {
        let own = &self.destinations[home as usize].reason;
        if own.is_empty() { &self.acting(home).reason } else { own }
    }

    /// Takes all recipients of a message out of the ready queues; they wait.
    pub(crate) fn withdraw(&mut self, index: u32) {
        let mut group = self.messages[index].first_group;
        while group != NONE {
            let mut next = self.groups[group].first;
            while next != NO_RECIPIENT {
                let recipient = self.messages.recipients(index)[usize::from(next)];
                if recipient.place == Place::Ready {
                    self.subtract_ready(group, 1);
                    self.place(index, next, Place::Waiting);
                }
                next = recipient.next_in_group;
            }
            group = self.groups[group].next_in_message;
        }
    }

    /// Moves a recipient; its group's count of ready recipients is the caller's.
    pub(crate) fn place(&mut self, index: u32, recipient: u16, place: Place) {
        let state = &mut self.messages.recipients_mut(index)[usize::from(recipient)];
        self.placed[state.place as usize] -= 1;
        self.placed[place as usize] += 1;
        state.place = place;
    }
}

/// A group that went into a ready queue.
#[derive(Clone, Copy)]
pub(crate) struct Going {
    group: u32,
    /// Behind this one, or [`NONE`].
    before: u32,
    destination: u32,
    /// When something is due for its message; `u64::MAX`: nothing.
    nearest: u64,
}

/// May the only recipient of a message, which waits, be attempted now?
#[inline(always)]
pub(crate) fn may_go(message: &Message, recipient: &Recipient, now: u64) -> bool {
    !message.flags.has(Flags::KEPT) && recipient.next_attempt <= now
}

/// Makes the only recipient of a message ready.
#[inline(always)]
pub(crate) fn go(
    settings: &QueueSettings,
    message: &Message,
    recipient: &mut Recipient,
    group: &mut Group,
    destination: &mut Destination,
    now: u64,
) -> Going {
    recipient.place = Place::Ready;
    group.ready = 1;
    let nearest = end_or_warning(settings, group, message, destination);
    let before = destination.ready.append(group, message.first_group, now);
    Going { group: message.first_group, before, destination: group.destination, nearest }
}

fn end_of_life(message: &Message, destination: &Destination) -> u64 {
    message.expires_at.min(message.released_at().saturating_add(destination.retry.lifetime_ms))
}

/// As [`end_of_life`], with the time that was granted to the message, or to all mail of the destination, for one more attempt.
fn end_with_grace(message: &Message, destination: &Destination) -> u64 {
    let mut end = message.released_at().saturating_add(destination.retry.lifetime_ms);
    if end <= destination.spares_since {
        end = end.max(destination.spares_until);
    }
    message.expires_at.min(end).max(message.grace_until)
}

/// The nearer of the end and the warning of a group's recipients that are tried; `u64::MAX` where they have neither.
#[inline]
fn end_or_warning(settings: &QueueSettings, group: &Group, message: &Message, destination: &Destination) -> u64 {
    let warn_at = settings.warn_at(group, message, destination).unwrap_or(u64::MAX);
    deadline(message, destination).unwrap_or(u64::MAX).min(warn_at)
}

/// While mail is held, by command or by its route, or a part of it waits for the attempt after which it goes another way, the route's lifetime
/// does not end it: only a time that was set for the message itself does, by its sender (RFC 2852) or by a command.
fn deadline(message: &Message, destination: &Destination) -> Option<u64> {
    // What is offered goes by the routes of other nodes: that this one would hold it says nothing.
    let is_kept = destination.is_held() && !message.flags.has(Flags::OFFERED);
    if message.flags.has(Flags::WAY_OPEN) || is_kept {
        return Some(message.expires_at).filter(|&at| at < u64::MAX);
    }
    Some(end_with_grace(message, destination))
}
