//! What operators do to queued mail: retry, hold, release, delete.
//!
//! Each call answers `None` if the message has left the queue, else what to persist before the command is confirmed. For
//! "all", go through [`Queue::page`] and apply the command to each key.

use crate::destination_id::DestinationId;
use crate::listing::Filter;
use crate::message::{Flags, MessageKey, Place, Recipient};
use crate::queue::Queue;
use crate::settling::Settled;
use crate::slab::NONE;

impl Queue {
    /// Makes the recipients that meet the filter and are not over ready now, or at the message's time of release; where they lead, dead
    /// destinations are probed at once. Failed ones are among them as long as no report of the message is being made: who was told of a
    /// failure is not to hear of a delivery, or of a second failure.
    /// Where a destination asked for less and has taken nothing since they go before all other mail: they are what it is tried with.
    /// Mail past its lifetime gets one more attempt. A held message stays held. `None` also where nothing is left to be tried.
    pub fn retry(&mut self, key: MessageKey, filter: &Filter, now: u64, record: &mut Vec<u8>) -> Option<Settled> {
        let index = self.find_open(key)?;
        let at = self.messages[index].may_go_at(now);
        let meant = self.chosen(key, filter, |_| true);
        let is_being_told = self.messages[index].flags.has(Flags::REPORT_OPEN);
        let (mut is_any_open, mut changed) = (false, Vec::new());
        let (mut last_group, mut asked_for_less, mut first) = (NONE, false, Vec::new());
        for number in meant {
            let Recipient { place, group, .. } = self.messages.recipients(index)[usize::from(number)];
            let is_revived = place == Place::Failed && !is_being_told;
            is_any_open |= place.is_open() || is_revived;
            if std::mem::replace(&mut last_group, group) != group {
                let home = self.groups[group].destination;
                asked_for_less = self.acting(home).has_asked_for_less(now);
                if asked_for_less {
                    first.push(group);
                }
                self.revive_home(home, now);
            }
            if place == Place::Waiting || is_revived {
                self.messages.recipients_mut(index)[usize::from(number)].next_attempt = at;
                self.place(index, number, Place::Waiting);
                changed.push(number);
            } else if place == Place::Ready && asked_for_less {
                changed.push(number);
            }
        }
        if changed.is_empty() {
            return is_any_open.then_some(Settled::Nothing);
        }
        self.grant_grace(index, now);
        self.write_numbered(index, |number, _| changed.binary_search(&number).is_ok(), record);
        self.messages[index].unrecorded += 1;
        self.start(index, now);
        first.into_iter().for_each(|group| self.go_first(group, now));
        Some(Settled::Outcome)
    }

    /// Holds a message until it is released: it is not attempted, its sender is not warned, and its route's lifetime does not end it,
    /// only a time of its own. What a host has begun to take of an attempt in progress runs to its end, see [`Queue::may_go_on`].
    pub fn hold(&mut self, key: MessageKey, now: u64, record: &mut Vec<u8>) -> Option<Settled> {
        let index = self.find_open(key)?;
        if self.messages[index].flags.has(Flags::HELD) {
            return Some(Settled::Nothing);
        }
        self.withdraw(index);
        self.messages[index].flags.set(Flags::HELD, true);
        self.arm(index);
        self.refresh_all(index, now);
        Some(self.persist_flags(index, record))
    }

    /// Ends a hold by command. Recipients whose time has come are ready; mail past its lifetime gets one more attempt.
    pub fn release(&mut self, key: MessageKey, now: u64, record: &mut Vec<u8>) -> Option<Settled> {
        let index = self.find_open(key)?;
        if !self.messages[index].flags.has(Flags::HELD) {
            return Some(Settled::Nothing);
        }
        self.messages[index].flags.set(Flags::HELD, false);
        self.grant_grace(index, now);
        self.start(index, now);
        Some(self.persist_flags(index, record))
    }

    /// Deletes a message, whatever its state; what an attempt in progress comes to is no longer kept.
    pub fn delete(&mut self, key: MessageKey, now: u64) -> Option<Settled> {
        let index = self.find_open(key)?;
        self.withdraw(index);
        self.begin_closing(index);
        self.refresh_all(index, now);
        Some(Settled::Done)
    }

    /// A record that says nothing but that the message is this node's.
    pub fn confirm(&mut self, key: MessageKey, record: &mut Vec<u8>) -> Option<Settled> {
        self.find_open(key).map(|index| self.persist_flags(index, record))
    }

    /// Probes a dead destination at once if mail waits for it.
    pub fn revive(&mut self, destination: DestinationId, now: u64) {
        if self.live(destination).is_some() {
            self.revive_home(destination.slot, now);
        }
    }

    /// A message that is neither done nor deleted.
    pub(crate) fn find_open(&self, key: MessageKey) -> Option<u32> {
        self.find(key).filter(|&index| !self.messages[index].flags.has(Flags::CLOSING))
    }

    pub(crate) fn persist_flags(&mut self, index: u32, record: &mut Vec<u8>) -> Settled {
        self.write_record(index, |_| false, record);
        self.messages[index].unrecorded += 1;
        Settled::Outcome
    }

    pub(crate) fn refresh_all(&mut self, index: u32, now: u64) {
        let mut group = self.messages[index].first_group;
        while group != NONE {
            self.refresh(self.groups[group].destination, now);
            group = self.groups[group].next_in_message;
        }
    }
}
