//! How a message is laid down in the queue's memory, changed by its records, written as one, and taken out again.

use std::hint::black_box;

use crate::destination::Destination;
use crate::fresh::{FRESH_MAX, LINKED_AT_ONCE};
use crate::groups::Groups;
use crate::index::TAGS_MAX;
use crate::kept_reply::{REPLY_BYTES_MAX, join_reply, split_reply};
use crate::leaving::Leave;
use crate::message::{
    Flags, Group, Message, MessageKey, NO_RECIPIENT, NOT_REROUTED, NewMessage, NewRecipient, Offered, PRIORITY_MAX, Place, RECIPIENTS_MAX,
    Recipient,
};
use crate::outcome::{
    DecodeError, RecipientState, RecordHead, RecordWriter, SUCCESS_DUE, SUCCESS_RELAYED, Settling, TOLD_KNOWN, read_record,
};
use crate::queue::Queue;
use crate::queue_id::QueueId;
use crate::site::Role;
use crate::slab::NONE;
use crate::transition::{go, may_go};
use crate::walks::Chain;

impl Queue {
    pub(crate) fn key(&self, index: u32) -> MessageKey {
        MessageKey { index, generation: self.messages[index].generation }
    }

    /// The message with this key, while it is queued.
    #[inline]
    pub(crate) fn message(&self, key: MessageKey) -> Option<&Message> {
        self.messages.get(key.index).filter(|message| message.generation == key.generation && message.flags.has(Flags::QUEUED))
    }

    /// As [`Queue::message`].
    #[inline]
    pub(crate) fn message_mut(&mut self, key: MessageKey) -> Option<&mut Message> {
        let message = self.messages.get_mut(key.index)?;
        (message.generation == key.generation && message.flags.has(Flags::QUEUED)).then_some(message)
    }

    pub(crate) fn find(&self, key: MessageKey) -> Option<u32> {
        self.message(key).map(|_| key.index)
    }

    pub(crate) fn find_id(&self, id: QueueId) -> Option<u32> {
        self.ids.find(id)
    }

    pub(crate) fn address(&self, index: u32, recipient: u16) -> &[u8] {
        let (message, recipients) = self.messages.with_recipients(index);
        let start = match recipient {
            0 => usize::from(message.reverse_bytes),
            after => recipients[usize::from(after) - 1].address_end as usize,
        };
        &self.texts.get(message.addresses)[start..recipients[usize::from(recipient)].address_end as usize]
    }

    /// Stores a message with all recipients waiting.
    pub(crate) fn insert<'a>(&mut self, new: &NewMessage<'_>, recipients: impl Iterator<Item = NewRecipient<'a>> + Clone) -> u32 {
        self.lay_down(new, recipients, None).0.index
    }

    /// Stores a message with all recipients waiting, or if it has one that may go at `start`, as most mail, ready: the second value says so.
    /// Each thing is looked up once.
    #[inline]
    pub(crate) fn lay_down<'a>(
        &mut self,
        new: &NewMessage<'_>,
        recipients: impl Iterator<Item = NewRecipient<'a>> + Clone,
        start: Option<u64>,
    ) -> (MessageKey, bool) {
        let (count, bytes) = recipients.clone().fold((0, new.reverse_path.len()), |(n, bytes), r| (n + 1, bytes + r.address.len()));
        assert!((1..=RECIPIENTS_MAX).contains(&count), "the session limits recipients");
        let index = self.messages.take(count);
        let id_place = self.ids.insert(new.id, index);
        let addresses = self.texts.take(bytes);
        let text = self.texts.get_mut(addresses);
        text[..new.reverse_path.len()].copy_from_slice(new.reverse_path);
        let mut end = new.reverse_path.len();
        let (message, states) = self.messages.with_recipients_mut(index);
        for (state, recipient) in states.iter_mut().zip(recipients) {
            text[end..end + recipient.address.len()].copy_from_slice(recipient.address);
            end += recipient.address.len();
            // Until the groups are made, `group` holds the destination.
            *state = Recipient::waiting(end as u32, recipient.destination.slot);
            state.next_attempt = new.not_before.unwrap_or(0);
            state.set_notify(recipient.notify);
        }
        let flags = Flags::of([
            (Flags::QUEUED, true),
            (Flags::EIGHT_BIT, new.eight_bit),
            (Flags::EIGHT_BIT_HEADER, new.eight_bit_header),
            (Flags::SMTPUTF8, new.smtputf8),
            (Flags::EXTENDED, new.extended),
            (Flags::OFFERED, new.offered != Offered::No),
            (Flags::TRACED, new.traced),
        ]);
        let seconds_until = |at: u64| u32::try_from(at.saturating_sub(new.accepted_at).div_ceil(1000)).unwrap_or(u32::MAX);
        *message = Message {
            id_place,
            size: new.size,
            accepted_at: new.accepted_at,
            expires_at: new.expires_at.unwrap_or(u64::MAX),
            generation: message.generation,
            addresses,
            fresh_place: self.index.fresh.push(index),
            release_after_s: new.not_before.map_or(0, seconds_until),
            warn_after_s: new.warn_at.map_or(0, |at| seconds_until(at).max(1)),
            reverse_bytes: u16::try_from(new.reverse_path.len()).expect("the session limits paths"),
            priority: new.priority.min(PRIORITY_MAX),
            flags,
            ..Message::default()
        };
        let key = MessageKey { index, generation: message.generation };
        let mut is_started = false;
        match states {
            [alone] => {
                let (group, destination) = group_alone(index, message, alone, &mut self.groups, &mut self.destinations);
                match start.filter(|&now| may_go(message, alone, now)) {
                    None => self.placed[Place::Waiting as usize] += 1,
                    Some(now) => {
                        self.placed[Place::Ready as usize] += 1;
                        is_started = true;
                        let going = go(&self.settings, message, alone, group, destination, now);
                        self.gone(index, &going, now);
                    }
                }
            }
            _ => {
                self.placed[Place::Waiting as usize] += count;
                self.make_groups_of_several(index);
            }
        }
        if !new.tags.is_empty() {
            let listed =
                new.tags.iter().take(TAGS_MAX).filter(|tag| !tag.is_empty()).fold(false, |listed, tag| self.index.tag(index, tag) | listed);
            self.messages[index].flags.set(Flags::LISTED, listed);
        }
        if self.index.fresh.len() == FRESH_MAX {
            self.list_some();
        }
        (key, is_started)
    }

    /// As [`Queue::list`], for those of the oldest that have not left. They are in no cache.
    #[cold]
    fn list_some(&mut self) {
        let mut queued = [NONE; LINKED_AT_ONCE];
        let count = self.index.fresh.pop_some(&mut queued);
        let queued = &queued[..count];
        // Each loop waits once for what it reads, not once for each message.
        for &index in queued {
            black_box(self.messages[index].flags);
        }
        for &index in queued {
            let (message, recipients) = self.messages.with_recipients(index);
            self.index.load(index);
            self.texts.load(message.addresses);
            black_box((recipients[0].place, recipients[recipients.len() - 1].place));
        }
        for &index in queued {
            self.list(index);
        }
        // The next ones are there by the time so many have come.
        let mut next = [NONE; LINKED_AT_ONCE];
        let count = self.index.fresh.peek_some(&mut next);
        for &index in &next[..count] {
            self.messages.prefetch(index);
            self.index.prefetch_later(index);
        }
    }

    /// Puts a message into the lists of its domains.
    pub(crate) fn list(&mut self, index: u32) {
        let (message, recipients) = self.messages.with_recipients_mut(index);
        message.flags.set(Flags::LISTED, true);
        let text = self.texts.get(message.addresses);
        let sender = usize::from(message.reverse_bytes);
        let recipients = recipients.iter().scan(sender, |start, recipient| {
            let end = recipient.address_end as usize;
            Some(&text[std::mem::replace(start, end)..end])
        });
        self.index.link(index, &text[..sender], recipients);
    }

    /// Puts each recipient, whose `group` holds its destination, into the group of that destination.
    #[inline]
    pub(crate) fn make_groups(&mut self, index: u32) {
        match self.messages.with_recipients_mut(index) {
            (message, [alone]) => {
                group_alone(index, message, alone, &mut self.groups, &mut self.destinations);
            }
            _ => self.make_groups_of_several(index),
        }
    }

    fn make_groups_of_several(&mut self, index: u32) {
        for recipient in (0..self.messages.recipients(index).len() as u16).rev() {
            let destination = self.messages.recipients(index)[usize::from(recipient)].group;
            let group = self.group_of(index, destination);
            let state = &mut self.messages.recipients_mut(index)[usize::from(recipient)];
            (state.group, state.next_in_group) = (group, self.groups[group].first);
            self.groups[group].first = recipient;
        }
    }

    /// Gives the groups of a message back, none of which is in a ready queue.
    pub(crate) fn drop_groups(&mut self, index: u32) {
        let first = std::mem::replace(&mut self.messages[index].first_group, NONE);
        self.give_groups(first);
    }

    /// Gives a group and those behind it in their message back.
    #[inline(always)]
    pub(crate) fn give_groups(&mut self, first: u32) {
        let mut group = first;
        while group != NONE {
            let state = &mut self.groups[group];
            assert_eq!(state.ready, 0, "a ready recipient is in its queue");
            state.message = NONE;
            let next = state.next_in_message;
            self.leave_destination(group);
            self.groups.give(group);
            group = next;
        }
    }

    /// The group of a message being stored for a destination. Its groups are the newest of their destinations.
    fn group_of(&mut self, message: u32, destination: u32) -> u32 {
        let newest = self.destinations[destination as usize].newest_group;
        // The first recipient has none: no need to look at a group that is not in the cache.
        let has_groups = self.messages[message].first_group != NONE;
        if has_groups && newest != NONE && self.groups[newest].message == message && self.groups[newest].destination == destination {
            return newest;
        }
        let Message { first_group, priority, .. } = &self.messages[message];
        let group = Group { message, destination, next_in_message: *first_group, priority: *priority, ..Group::default() };
        self.add_group_of(message, group)
    }

    /// Adds a group to its message, in front of the others, and to its destination.
    pub(crate) fn add_group_of(&mut self, message: u32, group: Group) -> u32 {
        // The message's own place is for the group that comes when it has none.
        let index = if group.next_in_message == NONE { self.groups.first_of(message) } else { self.groups.take_further() };
        self.messages[message].first_group = index;
        add_group(&mut self.groups, &mut self.destinations, index, group);
        index
    }

    /// Takes a group, of which nothing is ready, out of those of its destination.
    #[inline]
    pub(crate) fn leave_destination(&mut self, group: u32) {
        let Group { destination: slot, previous_here, next_here, .. } = self.groups[group];
        self.index.walks.leaves(Chain::Groups, group, next_here);
        let destination = &mut self.destinations[slot as usize];
        destination.groups -= 1;
        match previous_here {
            NONE => destination.oldest_group = next_here,
            before => self.groups[before].next_here = next_here,
        }
        match next_here {
            NONE => destination.newest_group = previous_here,
            behind => self.groups[behind].previous_here = previous_here,
        }
        if destination.groups == 0 && matches!(destination.role, Role::Domain(_)) {
            // Without mail it is dropped in time.
            self.serve(slot);
        }
    }

    /// Takes in a persisted record.
    pub(crate) fn apply(&mut self, index: u32, record: &[u8]) -> Result<(), DecodeError> {
        let (count, reports) = (self.messages.recipients(index).len(), self.settings.reports.is_some());
        let head = read_record(record, |state| {
            if usize::from(state.recipient) >= count {
                return Err(DecodeError::Recipient(state.recipient));
            }
            let place = match state.settling {
                Settling::Waiting => Place::Waiting,
                Settling::Delivered => Place::Delivered,
                Settling::Failed => Place::Failed,
                Settling::Bounced => Place::Bounced,
                Settling::Purged => Place::Purged,
            };
            self.place(index, state.recipient, place);
            let (reply, relay) = split_reply(state.reply);
            let parts: &[&[u8]] = if reply.is_empty() { &[] } else { &[reply] };
            self.keep_reply(index, state.recipient, parts, std::str::from_utf8(relay).unwrap_or(""));
            let recipient = &mut self.messages.recipients_mut(index)[usize::from(state.recipient)];
            (recipient.attempts, recipient.deferrals) = (state.attempts, state.deferrals);
            recipient.told = recipient.told & !TOLD_KNOWN | state.told;
            if !reports {
                recipient.told &= !(SUCCESS_DUE | SUCCESS_RELAYED);
            }
            (recipient.last_attempt, recipient.next_attempt) = (state.last_attempt, state.next_attempt);
            Ok(())
        })?;
        let message = &mut self.messages[index];
        message.flags.set(Flags::HELD, head.held);
        if let Some(expires_at) = head.expires_at {
            message.expires_at = expires_at;
            message.flags.set(Flags::EXPIRY_SET, true);
        }
        Ok(())
    }

    /// Drops a message that is done or deleted, once nothing is open any more.
    #[inline]
    pub(crate) fn close(&mut self, index: u32) {
        if self.messages[index].is_over() {
            self.drop_message(index);
        }
    }

    pub(crate) fn drop_message(&mut self, index: u32) {
        let (message, recipients) = self.messages.with_recipients_mut(index);
        let Message { id_place, addresses, flags, fresh_place, .. } = *message;
        let first_group = std::mem::replace(&mut message.first_group, NONE);
        for state in recipients {
            debug_assert!(state.place != Place::Attempting, "its attempts have ended, and what leaves with them has left");
            self.texts.give(state.reply());
            self.placed[state.place as usize] -= 1;
        }
        self.give_groups(first_group);
        self.index.fresh.leave(fresh_place, index);
        if flags.has(Flags::PARTLY_REROUTED) {
            self.forget_reroutes(index);
        }
        if flags.has(Flags::LISTED) {
            self.index.unlink(index);
        }
        self.texts.give(addresses);
        self.groups.timers.cancel(index);
        self.reports.forget(index);
        let was_left = self.leaving.forget(index);
        debug_assert!(!was_left, "what leaves with its attempts has left");
        self.ids.remove(id_place);
        self.messages.give(index);
    }

    /// Keeps the last word about a recipient: `parts` in one sanitised line, and the next hop that said it (empty: none did).
    pub(crate) fn keep_reply(&mut self, index: u32, recipient: u16, parts: &[&[u8]], relay: &str) {
        let old = self.messages.recipients(index)[usize::from(recipient)].reply();
        if parts.is_empty() && old.len() == 0 {
            return;
        }
        let mut line = [0; REPLY_BYTES_MAX];
        let length = if parts.is_empty() { 0 } else { join_reply(parts, relay, &mut line) };
        self.texts.give(old);
        let reply = self.texts.take(length);
        self.texts.get_mut(reply).copy_from_slice(&line[..length]);
        self.messages.recipients_mut(index)[usize::from(recipient)].set_reply(reply);
    }

    /// Appends the state of the recipients that `select` picks.
    pub(crate) fn write_record(&self, index: u32, select: impl Fn(&Recipient) -> bool, record: &mut Vec<u8>) {
        self.write_numbered(index, |_, recipient| select(recipient), record);
    }

    /// As [`Queue::write_record`], by number and state.
    pub(crate) fn write_numbered(&self, index: u32, select: impl Fn(u16, &Recipient) -> bool, record: &mut Vec<u8>) {
        let (message, recipients) = self.messages.with_recipients(index);
        let pattern_of = |route: u16| self.routes.all()[usize::from(route)].pattern.as_str();
        let is_partly_rerouted = message.flags.has(Flags::PARTLY_REROUTED);
        let head = RecordHead {
            held: message.flags.has(Flags::HELD),
            expires_at: message.flags.has(Flags::EXPIRY_SET).then_some(message.expires_at),
            route: (message.rerouted != NOT_REROUTED).then(|| pattern_of(message.rerouted)),
        };
        let mut writer = RecordWriter::new(record, &head);
        let recipients = (0..).zip(recipients);
        for (number, recipient) in recipients.filter(|&(number, recipient)| select(number, recipient)) {
            let (settling, reply) = self.leaving.get(index, number).map_or_else(|| (recipient.place.settling(), None), Leave::settling);
            writer.push(&RecipientState {
                recipient: number,
                settling,
                told: recipient.told & TOLD_KNOWN,
                deferrals: recipient.deferrals,
                attempts: recipient.attempts,
                last_attempt: recipient.last_attempt,
                next_attempt: recipient.next_attempt,
                reply: reply.unwrap_or_else(|| self.texts.get(recipient.reply())),
                route: if is_partly_rerouted { self.rerouted_to(index, number).map(|route| pattern_of(route.0)) } else { None },
            });
        }
    }
}

/// Puts the only recipient of a message, as most mail has one, into its group.
#[inline]
fn group_alone<'q>(
    index: u32,
    message: &mut Message,
    recipient: &mut Recipient,
    groups: &'q mut Groups,
    destinations: &'q mut [Destination],
) -> (&'q mut Group, &'q mut Destination) {
    let group = Group { message: index, destination: recipient.group, first: 0, priority: message.priority, ..Group::default() };
    (recipient.group, recipient.next_in_group) = (groups.first_of(index), NO_RECIPIENT);
    message.first_group = recipient.group;
    add_group(groups, destinations, recipient.group, group)
}

/// Stores a group at its place, behind all others of its destination.
#[inline]
fn add_group<'q>(
    groups: &'q mut Groups,
    destinations: &'q mut [Destination],
    index: u32,
    group: Group,
) -> (&'q mut Group, &'q mut Destination) {
    let destination = &mut destinations[group.destination as usize];
    destination.groups += 1;
    let before = std::mem::replace(&mut destination.newest_group, index);
    match before {
        NONE => destination.oldest_group = index,
        before => groups[before].next_here = index,
    }
    let place = &mut groups[index];
    *place = Group { previous_here: before, next_here: NONE, ..group };
    (place, destination)
}
