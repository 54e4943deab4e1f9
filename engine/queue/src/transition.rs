//! How recipients move between their places; every move goes through [`Queue::place`].

use crate::destination::DestinationId;
use crate::message::{
    Flags, Group, Message, MessageKey, NO_RECIPIENT, NewMessage, NewRecipient, PRIORITY_MAX, Place, RECIPIENTS_MAX, Recipient,
};
use crate::outcome::{DecodeError, Outcome, REPLY_BYTES_MAX, RecipientState, RecordWriter, Settling, read_record, sanitise};
use crate::queue::{Dispatch, Queue, Settled};
use crate::queue_id::QueueId;
use crate::retry::{Jitter, RetryPolicy};
use crate::slab::NONE;

/// An attempt that ends before a recipient's turn so many times in a row counts as a deferral.
const UNTRIED_MAX: u8 = 3;

/// RFC 3463 3.5: X.4.7, delivery time expired.
const EXPIRED: &str = "5.4.7 expired";

impl Queue {
    pub(crate) fn key(&self, index: u32) -> MessageKey {
        MessageKey { index, generation: self.messages[index].generation }
    }

    pub(crate) fn find(&self, key: MessageKey) -> Option<u32> {
        let message = self.messages.get(key.index)?;
        (message.generation == key.generation && message.flags.has(Flags::QUEUED)).then_some(key.index)
    }

    pub(crate) fn find_id(&self, id: QueueId) -> Option<u32> {
        self.by_id.find(id.spread(), |&index| self.messages[index].id == id).copied()
    }

    pub(crate) fn address(&self, message: &Message, recipient: u16) -> &[u8] {
        let recipients = self.recipients.get(message.recipients);
        let start = match recipient {
            0 => usize::from(message.reverse_bytes),
            after => recipients[usize::from(after) - 1].address_end as usize,
        };
        &self.texts.get(message.addresses)[start..recipients[usize::from(recipient)].address_end as usize]
    }

    /// Stores a message with all recipients waiting.
    pub(crate) fn insert<'a>(&mut self, new: &NewMessage<'_>, recipients: impl Iterator<Item = NewRecipient<'a>> + Clone) -> u32 {
        let (count, bytes) = recipients.clone().fold((0, new.reverse_path.len()), |(n, bytes), r| (n + 1, bytes + r.address.len()));
        assert!((1..=RECIPIENTS_MAX).contains(&count), "the session limits recipients");
        assert!(self.find_id(new.id).is_none(), "an id is given out once");
        let index = self.messages.take();
        let addresses = self.texts.take(bytes);
        let span = self.recipients.take(count);
        let text = self.texts.get_mut(addresses);
        text[..new.reverse_path.len()].copy_from_slice(new.reverse_path);
        let mut end = new.reverse_path.len();
        for (state, recipient) in self.recipients.get_mut(span).iter_mut().zip(recipients) {
            text[end..end + recipient.address.len()].copy_from_slice(recipient.address);
            end += recipient.address.len();
            // Until the groups are made, `group` holds the destination.
            *state = Recipient { address_end: end as u32, group: recipient.destination.0, ..Recipient::default() };
        }
        let message = &mut self.messages[index];
        *message = Message {
            id: new.id,
            size: new.size,
            accepted_at: new.accepted_at,
            expires_at: new.expires_at.unwrap_or(u64::MAX),
            segment: new.location.segment,
            offset: new.location.offset,
            bytes: new.location.bytes,
            chunks: new.location.chunks,
            generation: message.generation,
            addresses,
            recipients: span,
            reverse_bytes: u16::try_from(new.reverse_path.len()).expect("the session limits paths"),
            priority: new.priority.min(PRIORITY_MAX),
            ..Message::default()
        };
        message.flags.set(Flags::QUEUED, true);
        message.flags.set(Flags::EIGHT_BIT, new.eight_bit);
        message.flags.set(Flags::SMTPUTF8, new.smtputf8);
        self.placed[Place::Waiting as usize] += count;
        for recipient in (0..count as u16).rev() {
            let destination = self.recipients.get(span)[usize::from(recipient)].group;
            let group = self.group_of(index, destination);
            let state = &mut self.recipients.get_mut(span)[usize::from(recipient)];
            (state.group, state.next_in_group) = (group, self.groups[group].first);
            self.groups[group].first = recipient;
        }
        let messages = &self.messages;
        self.by_id.insert_unique(new.id.spread(), index, |&other| messages[other].id.spread());
        index
    }

    /// The group of a message being stored for a destination. Its groups are the newest of their destinations.
    fn group_of(&mut self, message: u32, destination: u32) -> u32 {
        let newest = self.destinations[destination as usize].newest_group;
        if newest != NONE && self.groups[newest].message == message && self.groups[newest].destination == destination {
            return newest;
        }
        let group = self.groups.take();
        let Message { first_group, priority, .. } = &mut self.messages[message];
        self.groups[group] = Group { message, destination, next_in_message: *first_group, priority: *priority, ..Group::default() };
        *first_group = group;
        let destination = &mut self.destinations[destination as usize];
        destination.newest_group = group;
        destination.groups += 1;
        group
    }

    /// Takes in a persisted record.
    pub(crate) fn apply(&mut self, index: u32, record: &[u8]) -> Result<(), DecodeError> {
        let span = self.messages[index].recipients;
        let held = read_record(record, |state| {
            if usize::from(state.recipient) >= span.len() {
                return Err(DecodeError::Recipient(state.recipient));
            }
            let place = match state.settling {
                Settling::Waiting => Place::Waiting,
                Settling::Delivered => Place::Delivered,
                Settling::Failed => Place::Failed,
            };
            self.place(index, state.recipient, place);
            self.keep_reply(index, state.recipient, &[state.reply]);
            let recipient = &mut self.recipients.get_mut(span)[usize::from(state.recipient)];
            (recipient.attempts, recipient.deferrals) = (state.attempts, state.deferrals);
            (recipient.last_attempt, recipient.next_attempt) = (state.last_attempt, state.next_attempt);
            Ok(())
        })?;
        self.messages[index].flags.set(Flags::HELD, held);
        Ok(())
    }

    /// Lets a message live in the queue: what is due is ready, the rest waits for its time.
    pub(crate) fn start(&mut self, index: u32, now: u64) {
        self.ready_due(index, now);
        self.arm(index);
    }

    /// Handles a message's timer. True if recipients expired; the record is then appended.
    pub(crate) fn ripen(&mut self, index: u32, now: u64, record: &mut Vec<u8>) -> bool {
        let expired = self.expire(index, now);
        if expired {
            self.write_record(index, |recipient| recipient.place == Place::Failed, record);
        }
        self.start(index, now);
        expired
    }

    /// Moves recipients whose time has come into the ready queues, unless the message is held.
    fn ready_due(&mut self, index: u32, now: u64) {
        if self.messages[index].flags.has(Flags::HELD) {
            return;
        }
        let span = self.messages[index].recipients;
        let mut group = self.messages[index].first_group;
        while group != NONE {
            let mut due = 0;
            let mut next = self.groups[group].first;
            while next != NO_RECIPIENT {
                let recipient = self.recipients.get(span)[usize::from(next)];
                if recipient.place == Place::Waiting && recipient.next_attempt <= now {
                    self.place(index, next, Place::Ready);
                    due += 1;
                }
                next = recipient.next_in_group;
            }
            if due > 0 {
                self.add_ready(group, due, |ready, groups| ready.push(groups, group, now));
                self.refresh(self.groups[group].destination, now);
            }
            group = self.groups[group].next_in_message;
        }
    }

    /// Counts recipients as ready; `enter` puts the group into the ready queue if it is not there yet.
    fn add_ready(&mut self, group: u32, count: u16, enter: impl FnOnce(&mut crate::ready::ReadyQueue, &mut crate::slab::Slab<Group>)) {
        if self.groups[group].ready == 0 {
            enter(&mut self.destinations[self.groups[group].destination as usize].ready, &mut self.groups);
        }
        self.groups[group].ready += count;
    }

    /// Takes recipients out of the ready queue's count; the last one takes the group out of the queue.
    fn subtract_ready(&mut self, group: u32, count: u16) {
        let ready = &mut self.groups[group].ready;
        *ready = ready.checked_sub(count).expect("a ready recipient is counted by its group");
        if *ready == 0 && count > 0 {
            let destination = self.groups[group].destination;
            self.destinations[destination as usize].ready.remove(&mut self.groups, group);
        }
    }

    /// Fails the recipients that wait beyond their lifetime. What is held does not expire.
    fn expire(&mut self, index: u32, now: u64) -> bool {
        if self.messages[index].flags.has(Flags::HELD) {
            return false;
        }
        let span = self.messages[index].recipients;
        let mut expired = false;
        let mut group = self.messages[index].first_group;
        while group != NONE {
            let next_group = self.groups[group].next_in_message;
            if self.deadline(group).is_some_and(|at| at <= now) {
                let mut next = self.groups[group].first;
                while next != NO_RECIPIENT {
                    let recipient = self.recipients.get(span)[usize::from(next)];
                    if matches!(recipient.place, Place::Waiting | Place::Ready) {
                        self.subtract_ready(group, u16::from(recipient.place == Place::Ready));
                        self.fail_expired(index, next);
                        expired = true;
                    }
                    next = recipient.next_in_group;
                }
                self.refresh(self.groups[group].destination, now);
            }
            group = next_group;
        }
        expired
    }

    fn fail_expired(&mut self, index: u32, recipient: u16) {
        let state = self.recipients.get(self.messages[index].recipients)[usize::from(recipient)];
        let mut last = [0; REPLY_BYTES_MAX];
        let length = if state.reply.len() > 0 {
            sanitise(self.texts.get(state.reply), &mut last)
        } else {
            sanitise(self.destinations[self.groups[state.group].destination as usize].reason.as_bytes(), &mut last)
        };
        self.place(index, recipient, Place::Failed);
        match length {
            0 => self.keep_reply(index, recipient, &[EXPIRED.as_bytes()]),
            length => self.keep_reply(index, recipient, &[EXPIRED.as_bytes(), b"; last: ", &last[..length]]),
        }
    }

    /// When the recipients of a group expire by their message's age alone.
    fn end_of_life(&self, group: u32) -> u64 {
        let Group { message, destination, .. } = self.groups[group];
        let message = &self.messages[message];
        message.expires_at.min(message.accepted_at.saturating_add(self.destinations[destination as usize].retry.lifetime_ms))
    }

    /// When the recipients of a group expire where they wait; never while their route holds them.
    fn deadline(&self, group: u32) -> Option<u64> {
        let Group { message, destination, .. } = self.groups[group];
        let held = self.destinations[destination as usize].is_held();
        (!held).then(|| self.end_of_life(group).max(self.messages[message].grace_until))
    }

    /// Gives mail that is past its lifetime the time for one more attempt.
    pub(crate) fn grant_grace(&mut self, index: u32, now: u64) {
        let mut group = self.messages[index].first_group;
        while group != NONE {
            if self.end_of_life(group) <= now {
                self.messages[index].grace_until = now + self.settings.grace_ms;
            }
            group = self.groups[group].next_in_message;
        }
    }

    /// Sets the message's one timer to the nearest of its retries and its end.
    pub(crate) fn arm(&mut self, index: u32) {
        let message = &self.messages[index];
        if message.flags.has(Flags::HELD) || message.flags.has(Flags::CLOSING) {
            return self.timers.cancel(index);
        }
        let recipients = self.recipients.get(message.recipients);
        let mut nearest = u64::MAX;
        let mut group = message.first_group;
        while group != NONE {
            let mut next = self.groups[group].first;
            let mut open = false;
            while next != NO_RECIPIENT {
                let recipient = &recipients[usize::from(next)];
                match recipient.place {
                    Place::Waiting => {
                        open = true;
                        nearest = nearest.min(recipient.next_attempt);
                    }
                    Place::Ready => open = true,
                    Place::Attempting | Place::Delivered | Place::Failed => {}
                }
                next = recipient.next_in_group;
            }
            if open {
                nearest = nearest.min(self.deadline(group).unwrap_or(u64::MAX));
            }
            group = self.groups[group].next_in_message;
        }
        match nearest {
            u64::MAX => self.timers.cancel(index),
            nearest => self.timers.set(index, nearest),
        }
    }

    /// Puts a destination into the list of those that may be served, or sees to it that it wakes when it may.
    pub(crate) fn refresh(&mut self, destination: u32, now: u64) {
        let state = &mut self.destinations[destination as usize];
        if state.may_start(now) {
            if !state.listed {
                state.listed = true;
                self.serving.push_back(destination);
            }
            return;
        }
        match state.wakes_at(now) {
            Some(at) => self.destination_timers.set(destination, at),
            None => self.destination_timers.cancel(destination),
        }
    }

    /// Takes the next recipients from a ready queue.
    pub(crate) fn dispatch(&mut self, destination: u32) -> Option<Dispatch> {
        let state = &self.destinations[destination as usize];
        let group = state.ready.first(&self.groups, self.settings.age_step_ms)?;
        let most = state.limits.recipients_max.max(1);
        let index = self.groups[group].message;
        let message = &mut self.messages[index];
        let number = message.next_dispatch;
        message.next_dispatch = number.wrapping_add(1);
        message.in_flight += 1;
        let span = message.recipients;
        let (mut taken, mut tried) = (0, 0);
        let mut next = self.groups[group].first;
        while next != NO_RECIPIENT && taken < most {
            let recipient = &mut self.recipients.get_mut(span)[usize::from(next)];
            let (this, place) = (next, recipient.place);
            next = recipient.next_in_group;
            if place == Place::Ready {
                recipient.dispatch = number;
                tried = recipient.attempts.max(tried);
                self.place(index, this, Place::Attempting);
                taken += 1;
            }
        }
        self.subtract_ready(group, taken);
        self.destinations[destination as usize].in_flight += 1;
        let (key, destination) = (self.key(index), DestinationId(destination));
        Some(Dispatch { key, destination, group, number, recipients: taken, attempt: tried.saturating_add(1) })
    }

    /// Takes in the outcome for one recipient of an attempt; true if its persisted state changes.
    pub(crate) fn settle_recipient(
        &mut self,
        index: u32,
        recipient: u16,
        outcome: &Outcome<'_>,
        now: u64,
        policy: &RetryPolicy,
        draw: u64,
    ) -> bool {
        let span = self.messages[index].recipients;
        let state = &mut self.recipients.get_mut(span)[usize::from(recipient)];
        if *outcome == Outcome::Untried {
            state.untried = state.untried.saturating_add(1);
            if state.untried >= UNTRIED_MAX {
                let reply = b"451 4.4.2 the connection ended before this recipient's turn";
                return self.settle_recipient(index, recipient, &Outcome::Deferred { reply }, now, policy, draw);
            }
            self.make_ready_again(index, recipient, now);
            return false;
        }
        state.untried = 0;
        state.attempts = state.attempts.saturating_add(1);
        state.last_attempt = now;
        match outcome {
            Outcome::Delivered { .. } => {
                self.place(index, recipient, Place::Delivered);
                self.keep_reply(index, recipient, &[]);
            }
            Outcome::Failed { reply } => {
                self.place(index, recipient, Place::Failed);
                self.keep_reply(index, recipient, &[reply]);
            }
            Outcome::Deferred { reply } => {
                state.deferrals = state.deferrals.saturating_add(1);
                let wait = policy.delay_ms(u32::from(state.deferrals), &mut Jitter::new(draw));
                state.next_attempt = now + wait;
                let group = state.group;
                self.place(index, recipient, Place::Waiting);
                self.keep_reply(index, recipient, &[reply]);
                if self.end_of_life(group) <= now && !self.messages[index].flags.has(Flags::HELD) {
                    self.fail_expired(index, recipient);
                }
            }
            Outcome::Untried => unreachable!("handled above"),
        }
        true
    }

    /// Back from an attempt that said nothing: before all others, with the age it had.
    pub(crate) fn make_ready_again(&mut self, index: u32, recipient: u16, now: u64) {
        let state = &mut self.recipients.get_mut(self.messages[index].recipients)[usize::from(recipient)];
        state.next_attempt = now;
        let group = state.group;
        let flags = self.messages[index].flags;
        if flags.has(Flags::HELD) || flags.has(Flags::CLOSING) {
            return self.place(index, recipient, Place::Waiting);
        }
        self.place(index, recipient, Place::Ready);
        self.add_ready(group, 1, |ready, groups| ready.put_back(groups, group));
    }

    /// Ends an attempt, calling `each` for the recipients that no outcome was given for; each must move them on.
    pub(crate) fn end_attempt(&mut self, dispatch: &Dispatch, now: u64, mut each: impl FnMut(&mut Self, u16)) {
        let span = self.messages[dispatch.key.index].recipients;
        let mut next = self.groups[dispatch.group].first;
        while next != NO_RECIPIENT {
            let recipient = self.recipients.get(span)[usize::from(next)];
            if recipient.is_in(dispatch.number) {
                each(self, next);
            }
            next = recipient.next_in_group;
        }
        self.messages[dispatch.key.index].in_flight -= 1;
        let destination = &mut self.destinations[dispatch.destination.index()];
        destination.in_flight -= 1;
        // A chained attempt inherits the place in the window of the one before it.
        destination.chained = destination.chained.saturating_sub(1);
        self.refresh(dispatch.destination.0, now);
    }

    /// After an attempt: what has to be persisted.
    pub(crate) fn conclude(&mut self, dispatch: &Dispatch, changed: bool, now: u64, record: &mut Vec<u8>) -> Settled {
        let index = dispatch.key.index;
        let settled = if self.messages[index].flags.has(Flags::CLOSING) {
            Settled::Nothing
        } else if self.is_delivered(index) {
            self.begin_closing(index);
            Settled::Done
        } else if changed {
            self.write_record(index, |recipient| recipient.dispatch == dispatch.number && recipient.last_attempt == now, record);
            self.messages[index].unrecorded += 1;
            Settled::Outcome
        } else {
            Settled::Nothing
        };
        self.arm(index);
        self.close(index);
        settled
    }

    pub(crate) fn is_delivered(&self, index: u32) -> bool {
        self.recipients.get(self.messages[index].recipients).iter().all(|recipient| recipient.place == Place::Delivered)
    }

    /// From here on only the acknowledgement of the settled record and open attempts keep the message.
    pub(crate) fn begin_closing(&mut self, index: u32) {
        self.withdraw(index);
        self.messages[index].flags.set(Flags::CLOSING, true);
        self.messages[index].unrecorded += 1;
        self.timers.cancel(index);
    }

    /// Takes all recipients of a message out of the ready queues; they wait.
    pub(crate) fn withdraw(&mut self, index: u32) {
        let span = self.messages[index].recipients;
        let mut group = self.messages[index].first_group;
        while group != NONE {
            let mut next = self.groups[group].first;
            while next != NO_RECIPIENT {
                let recipient = self.recipients.get(span)[usize::from(next)];
                if recipient.place == Place::Ready {
                    self.subtract_ready(group, 1);
                    self.place(index, next, Place::Waiting);
                }
                next = recipient.next_in_group;
            }
            group = self.groups[group].next_in_message;
        }
    }

    /// Drops a message that is done or deleted, once nothing is open any more.
    pub(crate) fn close(&mut self, index: u32) {
        let message = &self.messages[index];
        if !message.flags.has(Flags::CLOSING) || message.unrecorded > 0 || message.in_flight > 0 {
            return;
        }
        let Message { id, addresses, recipients: span, mut first_group, generation, .. } = *message;
        for recipient in 0..span.len() {
            let Recipient { reply, place, .. } = self.recipients.get(span)[recipient];
            self.texts.give(reply);
            self.placed[place as usize] -= 1;
        }
        while first_group != NONE {
            let group = &mut self.groups[first_group];
            assert_eq!(group.ready, 0, "a closing message is in no ready queue");
            group.message = NONE;
            self.destinations[group.destination as usize].groups -= 1;
            let next = group.next_in_message;
            self.groups.give(first_group);
            first_group = next;
        }
        self.texts.give(addresses);
        self.recipients.give(span);
        self.timers.cancel(index);
        let entry = self.by_id.find_entry(id.spread(), |&other| other == index);
        entry.expect("a queued message is found by its id").remove();
        self.messages[index] = Message { generation: generation.wrapping_add(1), ..Message::default() };
        self.messages.give(index);
    }

    /// Moves a recipient; its group's count of ready recipients is the caller's.
    pub(crate) fn place(&mut self, index: u32, recipient: u16, place: Place) {
        let state = &mut self.recipients.get_mut(self.messages[index].recipients)[usize::from(recipient)];
        self.placed[state.place as usize] -= 1;
        self.placed[place as usize] += 1;
        state.place = place;
    }

    /// Keeps the last word about a recipient: `parts` in one sanitised line.
    pub(crate) fn keep_reply(&mut self, index: u32, recipient: u16, parts: &[&[u8]]) {
        let mut line = [0; REPLY_BYTES_MAX];
        let mut length = 0;
        for part in parts {
            let mut clean = [0; REPLY_BYTES_MAX];
            let bytes = sanitise(part, &mut clean).min(REPLY_BYTES_MAX - length);
            let bytes = (0..=bytes).rev().find(|&end| std::str::from_utf8(&clean[..end]).is_ok()).unwrap_or(0);
            line[length..length + bytes].copy_from_slice(&clean[..bytes]);
            length += bytes;
        }
        let span = self.messages[index].recipients;
        let old = self.recipients.get(span)[usize::from(recipient)].reply;
        self.texts.give(old);
        let reply = self.texts.take(length);
        self.texts.get_mut(reply).copy_from_slice(&line[..length]);
        self.recipients.get_mut(span)[usize::from(recipient)].reply = reply;
    }

    /// Appends the state of the recipients that `select` picks.
    pub(crate) fn write_record(&self, index: u32, select: impl Fn(&Recipient) -> bool, record: &mut Vec<u8>) {
        let message = &self.messages[index];
        let mut writer = RecordWriter::new(record, message.flags.has(Flags::HELD));
        for (number, recipient) in self.recipients.get(message.recipients).iter().enumerate().filter(|(_, recipient)| select(recipient)) {
            writer.push(&RecipientState {
                recipient: number as u16,
                settling: recipient.place.settling(),
                deferrals: recipient.deferrals,
                attempts: recipient.attempts,
                last_attempt: recipient.last_attempt,
                next_attempt: recipient.next_attempt,
                reply: self.texts.get(recipient.reply),
            });
        }
    }
}
