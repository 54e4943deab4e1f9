//! What operators do to some recipients of a message, or to its course: bounce, purge, re-route, another end of life.
//!
//! As in `command.rs`, each call answers `None` if the message has left the queue, else what to persist before the command is confirmed.

use crate::domain_name::after_at;
use crate::kept_reply::{REPLY_BYTES_MAX, sanitise};
use crate::leaving::Leave;
use crate::listing::Filter;
use crate::message::{Flags, MessageKey, Place};
use crate::queue::Queue;
use crate::route::RouteId;
use crate::settling::Settled;
use crate::view::RecipientView;

/// Those of a message that a re-route is for: what meets its filter and is not over.
struct Travellers {
    numbers: Vec<u16>,
    /// All have failed and their report is being made: nothing of them is left to be sent.
    is_told: bool,
    /// All lead there by command already.
    goes_already: bool,
}

impl Queue {
    /// Fails the recipients that meet the filter, with `reply` as the last word about them, so that their sender is told; one that is being
    /// attempted when that has ended, unless it is delivered. A held message is bounced, too.
    pub fn bounce(&mut self, key: MessageKey, filter: &Filter, reply: &[u8], now: u64, record: &mut Vec<u8>) -> Option<Settled> {
        let index = self.find_open(key)?;
        let mut line = [0; REPLY_BYTES_MAX];
        let length = sanitise(reply, &mut line);
        let chosen = self.chosen(key, filter, |place| matches!(place, Place::Waiting | Place::Ready));
        for &recipient in &chosen {
            self.leave_ready(index, recipient, now);
            self.place(index, recipient, Place::Failed);
            self.keep_reply(index, recipient, &[&line[..length]], "");
        }
        let mut is_any_leaving = false;
        for recipient in self.chosen(key, filter, |place| place == Place::Attempting) {
            is_any_leaving |= self.leaving.add(index, recipient, Leave::Bounced(line[..length].into()));
        }
        Some(self.conclude_steering(index, is_any_leaving || !chosen.is_empty(), now, record))
    }

    /// Takes the recipients that meet the filter out for good and tells nobody; one that is being attempted when that has ended, unless it is
    /// delivered. When none is left that is open, the message leaves.
    pub fn purge(&mut self, key: MessageKey, filter: &Filter, now: u64, record: &mut Vec<u8>) -> Option<Settled> {
        let index = self.find_open(key)?;
        let view = self.show(key).expect("it was found");
        let stays =
            |recipient: &RecipientView<'_>| recipient.place() == Place::Attempting || !recipient.matches(filter) && !recipient.is_settled();
        if !view.recipients().any(|recipient| stays(&recipient)) {
            return self.delete(key, now);
        }
        let mut is_any_leaving = false;
        for recipient in self.chosen(key, filter, |place| place == Place::Attempting) {
            is_any_leaving |= self.leaving.add(index, recipient, Leave::Purged);
        }
        let chosen = self.chosen(key, filter, |place| matches!(place, Place::Waiting | Place::Ready | Place::Failed));
        for &recipient in &chosen {
            self.leave_ready(index, recipient, now);
            self.place(index, recipient, Place::Purged);
        }
        Some(self.conclude_steering(index, is_any_leaving || !chosen.is_empty(), now, record))
    }

    /// Sends the recipients that meet the filter another way, whatever their domains say; the others go theirs. One that is being attempted
    /// goes there when that has ended without a delivery. They are tried there at once or at the message's time of release, also when it is past
    /// the lifetime there. Failed ones go there when they are retried; where all that are meant have
    /// failed and a report of the message is being made, or all go that way already and wait for no later time, nothing changes. `None` also for
    /// a route that does not exist.
    pub fn reroute(&mut self, key: MessageKey, filter: &Filter, to: RouteId, now: u64, record: &mut Vec<u8>) -> Option<Settled> {
        let index = self.find_open(key)?;
        if !self.routes.is_matched(to) {
            return None;
        }
        let at = self.messages[index].may_go_at(now);
        let Travellers { numbers: chosen, is_told, goes_already } = self.travellers(key, index, filter, to);
        let recipients = self.messages.recipients(index);
        let is_put_off = |&number: &u16| {
            let recipient = &recipients[usize::from(number)];
            recipient.place == Place::Waiting && recipient.next_attempt > at
        };
        // What goes that way already is left alone, or a command that goes along the mail of a destination would find what it sent there itself behind all
        // other, and never end.
        if chosen.is_empty() || is_told || goes_already && !chosen.iter().any(is_put_off) {
            return Some(Settled::Nothing);
        }
        self.reroute_some(index, &chosen, to);
        let recipients = self.messages.recipients_mut(index);
        for &number in &chosen {
            let recipient = &mut recipients[usize::from(number)];
            if recipient.place == Place::Waiting {
                recipient.next_attempt = at;
            }
        }
        self.regroup(index, now);
        // All of them: whatever earlier records say of the others' way is not to come back.
        self.write_record(index, |_| true, record);
        self.messages[index].unrecorded += 1;
        Some(Settled::Outcome)
    }

    /// Do all that meet the filter and are not over go this way by command already, as far as anything is sent of them yet?
    pub fn is_rerouted(&self, key: MessageKey, filter: &Filter, to: RouteId) -> bool {
        let Some(index) = self.find_open(key) else { return false };
        let Travellers { numbers, is_told, goes_already } = self.travellers(key, index, filter, to);
        !numbers.is_empty() && !is_told && goes_already
    }

    fn travellers(&self, key: MessageKey, index: u32, filter: &Filter, to: RouteId) -> Travellers {
        let numbers = self.chosen(key, filter, |place| !place.is_over());
        let recipients = self.messages.recipients(index);
        let is_failed = |&number: &u16| recipients[usize::from(number)].place == Place::Failed;
        let is_told = self.messages[index].flags.has(Flags::REPORT_OPEN) && numbers.iter().all(is_failed);
        let goes_already = numbers.iter().all(|&number| self.rerouted_to(index, number) == Some(to));
        Travellers { numbers, is_told, goes_already }
    }

    /// Sets when a message expires, unix milliseconds; the lifetimes of its recipients' routes still hold when they end earlier.
    pub fn set_expiry(&mut self, key: MessageKey, expires_at: u64, record: &mut Vec<u8>) -> Option<Settled> {
        let index = self.find_open(key)?;
        let message = &mut self.messages[index];
        message.expires_at = expires_at;
        message.grace_until = 0;
        message.flags.set(Flags::EXPIRY_SET, true);
        self.arm(index);
        Some(self.persist_flags(index, record))
    }

    /// The domain that a recipient is routed by; of one without (a bare `postmaster`) it is the local one.
    pub(crate) fn domain_of<'a>(&'a self, address: &'a [u8]) -> &'a [u8] {
        match after_at(address) {
            b"" => self.local_domain.as_bytes(),
            domain => domain,
        }
    }

    /// The recipients that meet a filter and are in one of these places.
    pub(crate) fn chosen(&self, key: MessageKey, filter: &Filter, is_one: impl Fn(Place) -> bool) -> Vec<u16> {
        let view = self.show(key).expect("the caller found it");
        view.recipients().filter(|recipient| is_one(recipient.place()) && recipient.matches(filter)).map(|one| one.number()).collect()
    }

    pub(crate) fn leave_ready(&mut self, index: u32, recipient: u16, now: u64) {
        let state = self.messages.recipients(index)[usize::from(recipient)];
        if state.place == Place::Ready {
            self.subtract_ready(state.group, 1);
            self.place(index, recipient, Place::Waiting);
            self.refresh(self.groups[state.group].destination, now);
        }
    }

    pub(crate) fn conclude_steering(&mut self, index: u32, has_changed: bool, now: u64, record: &mut Vec<u8>) -> Settled {
        if !has_changed {
            return Settled::Nothing;
        }
        self.write_numbered(index, |number, recipient| !recipient.place.is_open() || self.leaving.has(index, number), record);
        self.messages[index].unrecorded += 1;
        self.arm(index);
        self.want_what_is_left(index, now);
        Settled::Outcome
    }
}
