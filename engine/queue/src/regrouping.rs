//! Recipients that lead elsewhere than their groups say, because a command or another routing table sends them another way.

use crate::destination::DestinationId;
use crate::message::{Flags, Group, Message, NO_RECIPIENT, Place};
use crate::queue::Queue;
use crate::routes::Mail;
use crate::slab::NONE;

impl Queue {
    /// Puts a message's recipients into the groups of where they lead now. Those that are being attempted go there when their attempt has
    /// ended; the others do not wait for that.
    pub(crate) fn regroup(&mut self, index: u32, now: u64) {
        if self.messages[index].in_flight > 0 {
            let waits = self.move_recipients(index, now);
            self.messages[index].flags.set(Flags::REGROUP, waits);
        } else {
            self.messages[index].flags.set(Flags::REGROUP, false);
            self.withdraw(index);
            self.drop_groups(index);
            for recipient in 0..self.messages.recipients(index).len() as u16 {
                let destination = self.destination_now(index, recipient).slot;
                self.messages.recipients_mut(index)[usize::from(recipient)].group = destination;
            }
            self.make_groups(index);
        }
        // By the lifetimes of where it leads now.
        self.grant_grace(index, now);
        self.start(index, now);
    }

    /// Where a recipient leads by command, or by its domain and the sender.
    pub(crate) fn destination_now(&mut self, index: u32, recipient: u16) -> DestinationId {
        let message = &self.messages[index];
        let domain = self.domain_of(self.address(index, recipient)).to_vec();
        match self.rerouted_to(index, recipient) {
            None => {
                let reverse_path = self.texts.get(message.addresses)[..usize::from(message.reverse_bytes)].to_vec();
                self.route_mail(Mail { reverse_path: &reverse_path, domain: &domain })
            }
            Some(route) => self.destination_by(route, &domain),
        }
    }

    /// Moves each recipient that leads elsewhere, but for those that are being attempted: true if there are some of them.
    fn move_recipients(&mut self, index: u32, now: u64) -> bool {
        let mut waits = false;
        for number in 0..self.messages.recipients(index).len() as u16 {
            let state = self.messages.recipients(index)[usize::from(number)];
            let destination = self.destination_now(index, number).slot;
            if destination == self.groups[state.group].destination {
                continue;
            }
            if state.place == Place::Attempting {
                waits = true;
                continue;
            }
            self.leave_ready(index, number, now);
            self.leave_group(index, number);
            let group = self.group_towards(index, destination);
            self.enter_group(index, number, group);
        }
        waits
    }

    /// Takes a recipient, which is not ready, out of its group; without recipients that is given back.
    fn leave_group(&mut self, index: u32, number: u16) {
        let state = self.messages.recipients(index)[usize::from(number)];
        match self.last_before(index, state.group, number) {
            None => self.groups[state.group].first = state.next_in_group,
            Some(before) => self.messages.recipients_mut(index)[usize::from(before)].next_in_group = state.next_in_group,
        }
        if self.groups[state.group].first == NO_RECIPIENT {
            self.drop_group(index, state.group);
        }
    }

    /// Puts a recipient into a group of its message, in the order of the recipients' numbers.
    fn enter_group(&mut self, index: u32, number: u16, group: u32) {
        let next = match self.last_before(index, group, number) {
            None => std::mem::replace(&mut self.groups[group].first, number),
            Some(before) => {
                let before = &mut self.messages.recipients_mut(index)[usize::from(before)];
                std::mem::replace(&mut before.next_in_group, number)
            }
        };
        let state = &mut self.messages.recipients_mut(index)[usize::from(number)];
        (state.group, state.next_in_group) = (group, next);
    }

    /// The last recipient of a group whose number is below this one.
    fn last_before(&self, index: u32, group: u32, number: u16) -> Option<u16> {
        let (mut before, mut next) = (None, self.groups[group].first);
        while next != NO_RECIPIENT && next < number {
            before = Some(next);
            next = self.messages.recipients(index)[usize::from(next)].next_in_group;
        }
        before
    }

    /// The group of a message for a destination; a new one if it has none.
    fn group_towards(&mut self, index: u32, destination: u32) -> u32 {
        let Message { first_group, priority, .. } = self.messages[index];
        let mut group = first_group;
        while group != NONE {
            if self.groups[group].destination == destination {
                return group;
            }
            group = self.groups[group].next_in_message;
        }
        self.add_group_of(index, Group { message: index, destination, next_in_message: first_group, priority, ..Group::default() })
    }

    /// Gives a group without recipients back. None of an attempt is in it, so that nobody will ask for it.
    fn drop_group(&mut self, index: u32, group: u32) {
        let behind = self.groups[group].next_in_message;
        let first = self.messages[index].first_group;
        if first == group {
            self.messages[index].first_group = behind;
        } else {
            let mut before = first;
            while self.groups[before].next_in_message != group {
                before = self.groups[before].next_in_message;
            }
            self.groups[before].next_in_message = behind;
        }
        self.groups[group].next_in_message = NONE;
        self.give_groups(group);
    }
}
