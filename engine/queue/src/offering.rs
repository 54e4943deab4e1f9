//! Mail that is offered to other nodes: not attempted here, and given up here only when it is certain that no other node has it.
//!
//! When its life ends the queue does not fail it but says so ([`Work::Overdue`](crate::Work::Overdue)): its driver takes it out of
//! what is offered first, and then calls [`Queue::expire_offered`].

use crate::listing::Filter;
use crate::message::{Flags, Message, MessageKey, Place};
use crate::queue::Queue;
use crate::settling::Settled;

/// An overdue message is said again after so long, if nothing came of it.
const OVERDUE_AGAIN_MS: u64 = 10_000;

impl Queue {
    /// Offers a message to other nodes instead of trying it here: those of its recipients that are not settled. Mail past its lifetime, as a
    /// route that holds it keeps, gets the time for one more attempt. False where that cannot be: it is held by command, is being attempted, has
    /// something to report, or is gone.
    pub fn offer(&mut self, key: MessageKey, now: u64) -> bool {
        let Some(index) = self.find_open(key).filter(|&index| !self.messages[index].flags.has(Flags::KEPT)) else { return false };
        let recipients = self.messages.recipients(index);
        if !recipients.iter().all(|one| matches!(one.place, Place::Waiting | Place::Ready) || one.is_settled()) {
            return false;
        }
        self.withdraw(index);
        self.messages[index].flags.set(Flags::OFFERED, true);
        self.spare(index, now);
        self.arm(index);
        self.refresh_all(index, now);
        true
    }

    /// A message that was just queued is what another node has given up to this one, to be attempted at least once: that node may have had it for long,
    /// held, or while it was down. Mail past its lifetime gets the time for it.
    pub fn taken_over(&mut self, key: MessageKey, now: u64) {
        let Some(index) = self.find_open(key) else { return };
        if self.spare(index, now) {
            self.arm(index);
        }
    }

    /// Lets a message that was offered be attempted here. False if it was not, or has left the queue.
    pub fn take_back(&mut self, key: MessageKey, now: u64) -> bool {
        let Some(index) = self.find_open(key).filter(|&index| self.messages[index].flags.has(Flags::OFFERED)) else { return false };
        self.messages[index].flags.set(Flags::OFFERED, false);
        self.start(index, now);
        true
    }

    /// No other node has this message, nor can get it: the recipients whose life has ended fail, and are returned. If there are some, the
    /// record that was appended is to be persisted as an outcome. The others go on being offered; whether there are some the caller asks
    /// [`MessageView::is_open`](crate::MessageView::is_open). `None` if it is not offered.
    pub fn expire_offered(&mut self, key: MessageKey, now: u64, record: &mut Vec<u8>) -> Option<Vec<u16>> {
        let index = self.find_open(key).filter(|&index| self.is_given_out(index))?;
        let expired = self.expire(index, now);
        if !expired.is_empty() {
            self.write_record(index, |recipient| recipient.place == Place::Failed, record);
            self.messages[index].unrecorded += 1;
            self.want_report(index, now);
        }
        self.arm(index);
        Some(expired)
    }

    /// Another node has what is open of this message. It leaves, unless its sender is still to hear of recipients that came to their end
    /// here: then it stays until that is reported. `None` if it has left already.
    pub fn handed_over(&mut self, key: MessageKey, now: u64, record: &mut Vec<u8>) -> Option<Settled> {
        let index = self.find_open(key)?;
        let recipients = self.messages.recipients(index);
        if !recipients.iter().any(|one| !one.place.is_open() && !one.is_settled()) {
            return self.delete(key, now);
        }
        let waiting = self.chosen(key, &Filter::default(), |place| matches!(place, Place::Waiting | Place::Ready));
        for &recipient in &waiting {
            self.leave_ready(index, recipient, now);
            self.place(index, recipient, Place::Delivered);
        }
        Some(self.conclude_steering(index, !waiting.is_empty(), now, record))
    }

    /// Grants mail past its routes' lifetimes one more attempt, once until the time for it is over. A time of its own ends it all the same (RFC 2852:
    /// with `R` it goes back then). True: its end is another now.
    fn spare(&mut self, index: u32, now: u64) -> bool {
        let Message { expires_at, grace_until, .. } = self.messages[index];
        if expires_at <= now || grace_until > now {
            return false;
        }
        self.grant_grace(index, now);
        let granted = self.messages[index].grace_until;
        self.messages[index].grace_until = granted.min(expires_at);
        granted != grace_until
    }

    /// Handles the timer of an offered message: true if its life has ended.
    pub(crate) fn is_overdue(&mut self, index: u32, now: u64) -> bool {
        let is_overdue = self.end_of_offer(index) <= now;
        if is_overdue {
            self.groups.timers.set(index, now + OVERDUE_AGAIN_MS);
        } else {
            self.arm_offered(index);
        }
        is_overdue
    }

    /// Offered, and not held by command.
    pub(crate) fn is_given_out(&self, index: u32) -> bool {
        let flags = self.messages[index].flags;
        flags.has(Flags::OFFERED) && !flags.has(Flags::HELD) && !flags.has(Flags::CLOSING)
    }

    /// Sets the timer of an offered message to its end.
    pub(crate) fn arm_offered(&mut self, index: u32) {
        self.groups.timers.set_or_cancel(index, self.end_of_offer(index));
    }

    /// When the last of the open recipients of a message expires.
    pub(crate) fn last_end(&self, index: u32) -> u64 {
        let open = self.messages.recipients(index).iter().filter(|one| one.place.is_open());
        open.map(|one| self.end_with_grace(one.group)).max().unwrap_or(u64::MAX)
    }

    /// When the first of its open recipients expires.
    fn end_of_offer(&self, index: u32) -> u64 {
        let open = self.messages.recipients(index).iter().filter(|one| one.place.is_open());
        open.map(|one| self.end_with_grace(one.group)).min().unwrap_or(u64::MAX)
    }
}
