//! Recipients that lead elsewhere than their groups say, because a command or another routing table sends them another way.

use std::collections::HashMap;

use crate::destination_id::DestinationId;
use crate::message::{Flags, Group, Message, NO_RECIPIENT, Place};
use crate::queue::Queue;
use crate::routes::Mail;
use crate::slab::NONE;

impl Queue {
    /// Puts a message's recipients into the groups of where they lead now. Those that are being attempted go there when their attempt has
    /// ended; the others do not wait for that. Where all lead where they did each keeps its place in the lists of its destination.
    pub(crate) fn regroup(&mut self, index: u32, now: u64) {
        if self.messages[index].in_flight > 0 {
            let waits = self.move_recipients(index, now);
            self.messages[index].flags.set(Flags::REGROUP, waits);
        } else {
            self.messages[index].flags.set(Flags::REGROUP, false);
            if self.leads_elsewhere(index) {
                self.make_groups_anew(index);
            }
        }
        // By the lifetimes of where it leads now.
        self.grant_grace(index, now);
        self.start(index, now);
    }

    fn make_groups_anew(&mut self, index: u32) {
        self.withdraw(index);
        self.drop_groups(index);
        for recipient in 0..self.messages.recipients(index).len() as u16 {
            let destination = self.destination_now(index, recipient).slot;
            self.messages.recipients_mut(index)[usize::from(recipient)].group = destination;
        }
        self.make_groups(index);
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
        let (mut waits, mut moves) = (false, false);
        // Each is looked for once: a message can have as many as recipients.
        let mut towards = HashMap::new();
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
            if towards.is_empty() {
                towards.extend(self.groups_of(index).map(|group| (self.groups[group].destination, group)));
            }
            let group = match towards.get(&destination) {
                Some(&group) => group,
                None => self.begin_group(index, destination),
            };
            towards.insert(destination, group);
            // Who comes may not have been told yet of a delay that the others were told of.
            self.groups[group].warned = false;
            self.messages.recipients_mut(index)[usize::from(number)].group = group;
            moves = true;
        }
        if moves {
            self.link_recipients(index);
        }
        waits
    }

    /// Links the recipients of each group in the order of their numbers, and gives groups without any back: none of an attempt is in them, so
    /// that nobody will ask for them.
    fn link_recipients(&mut self, index: u32) {
        let groups: Vec<u32> = self.groups_of(index).collect();
        for &group in &groups {
            self.groups[group].first = NO_RECIPIENT;
        }
        for (number, state) in self.messages.recipients_mut(index).iter_mut().enumerate().rev() {
            state.next_in_group = std::mem::replace(&mut self.groups[state.group].first, number as u16);
        }
        let (empty, kept): (Vec<u32>, Vec<u32>) = groups.into_iter().partition(|&group| self.groups[group].first == NO_RECIPIENT);
        let mut behind = NONE;
        for &group in kept.iter().rev() {
            self.groups[group].next_in_message = behind;
            behind = group;
        }
        self.messages[index].first_group = behind;
        for group in empty {
            self.groups[group].next_in_message = NONE;
            self.give_groups(group);
        }
    }

    fn groups_of(&self, index: u32) -> impl Iterator<Item = u32> + '_ {
        let some = |group: u32| (group != NONE).then_some(group);
        std::iter::successors(some(self.messages[index].first_group), move |&group| some(self.groups[group].next_in_message))
    }

    fn begin_group(&mut self, index: u32, destination: u32) -> u32 {
        let Message { first_group, priority, .. } = self.messages[index];
        self.add_group_of(index, Group { message: index, destination, next_in_message: first_group, priority, ..Group::default() })
    }
}
