//! Whose mail goes behind that of others for a while: the senders' whose messages were answered by a pause.
//!
//! A destination that refuses one sender with 421 is told from one that has too much by what it says to another. So what is tried after a
//! pause is of another sender, wherever in the queue that stands, and for as long again as the pause was; then it is everybody's turn as
//! before. Who the sender is, [`SenderGroup`] says: a list that writes with another address for each recipient is one. What is passed over is set aside ([`ReadyQueue`](crate::ready::ReadyQueue)), so that it is looked at once and not at each
//! attempt; and no message is looked at while no destination asked for a pause.

use crate::destination::Destination;
use crate::destination_id::DestinationId;
use crate::guests::Waiting;
use crate::message::{Group, MessageKey};
use crate::queue::Queue;
use crate::queued_domains::QueuedAt;
use crate::sender_group::{OF_DOMAIN_MAX, Sender, SenderGroup};
use crate::site::Role;
use crate::wait::Wait;

/// Senders avoided at a destination at once; of more the one that was refused longest ago is not, but what was set aside stays there.
///
/// A destination names one with each pause, so that in the time for which it is remembered, twice its longest pause, few are new: pauses double
/// from 10 s to 5 minutes, and the sixth is as long as that. Those of one domain are never more than [`OF_DOMAIN_MAX`], so that no list and no
/// domain pushes out others. Each look at a group compares as many, see [`GROUPS_PER_POLL`].
const SENDERS_MAX: usize = 32;

/// Groups of one ready queue set aside in one go, and domains of a site set aside. A search that is not at its end goes on at the next
/// poll, so that other tasks get their turn: 512 looks take 13 us where one sender is avoided and 57 us where 32 are (measured), a ninth of the
/// 500 us after which a shard looks after its other tasks. Of 32 domains, each sets aside many only when it is looked at for the first time.
const GROUPS_PER_POLL: usize = 512;
const DOMAINS_PER_POLL: usize = 32;

#[derive(Debug)]
pub(crate) struct Avoided {
    /// The one that was refused last is the last.
    senders: Vec<SenderGroup>,
    /// Unix milliseconds.
    until: u64,
    /// No other of the queue's has the same: the cause for which groups are set aside.
    number: u64,
}

impl Avoided {
    fn has(&self, sender: &[u8]) -> bool {
        let sender = Sender::of(sender);
        self.senders.iter().any(|avoided| avoided.has(sender))
    }

    fn add(&mut self, reverse_path: &[u8]) {
        let sender = Sender::of(reverse_path);
        let of_domain = self.senders.iter().filter(|avoided| avoided.is_of_domain(sender)).count();
        let group = if of_domain >= OF_DOMAIN_MAX { SenderGroup::domain_of(sender) } else { SenderGroup::of(sender) };
        // One whose domain is avoided already stays so.
        let group = self.senders.iter().position(|avoided| avoided.has(sender)).map_or(group, |at| self.senders.remove(at));
        self.senders.retain(|avoided| !group.covers(avoided));
        if self.senders.len() == SENDERS_MAX {
            self.senders.remove(0);
        }
        self.senders.push(group);
    }
}

impl Destination {
    /// It asked for less, and has taken nothing since, as far as this shard knows.
    pub(crate) fn has_asked_for_less(&self, now: u64) -> bool {
        let its_home_says_so = || self.away.as_ref().is_some_and(|away| matches!(away.wait(now), Wait::Throttled { .. }));
        self.has_paused() || self.avoided.as_ref().is_some_and(|avoided| now < avoided.until) || its_home_says_so()
    }

    /// A pause lasts until then: whoever is avoided is so for as long again.
    pub(crate) fn avoid_on(&mut self, until: u64, now: u64) {
        if let Some(avoided) = &mut self.avoided {
            avoided.until = avoided.until.max(until + until.saturating_sub(now));
        }
    }
}

impl Group {
    /// An operator wants it tried before all others.
    fn is_chosen(&self) -> bool {
        self.ready_since_s == 0
    }
}

impl Queue {
    /// This message was answered by a pause until then.
    pub(crate) fn avoid_sender(&mut self, destination: DestinationId, key: MessageKey, until: u64, now: u64) {
        let Some(envelope) = self.envelope(key) else { return };
        let sender: Box<[u8]> = envelope.reverse_path.into();
        self.forget_avoided(destination.slot, now);
        let number = &mut self.avoidances;
        let state = &mut self.destinations[destination.index()];
        let avoided = state.avoided.get_or_insert_with(|| {
            *number += 1;
            Box::new(Avoided { senders: Vec::new(), until, number: *number })
        });
        avoided.add(&sender);
        state.avoid_on(until, now);
    }

    /// The group whose turn it is in the ready queue of `home`, at `destination`. `None` with mail there: the search goes on at the next poll.
    #[inline]
    pub(crate) fn next_group(&mut self, home: u32, destination: u32, now: u64) -> Option<u32> {
        let ready = &self.destinations[home as usize].ready;
        if ready.has_aside() || self.destinations[destination as usize].avoided.is_some() {
            return self.next_of_another_sender(home, destination, now);
        }
        ready.first(&self.groups, self.settings.age_step_ms)
    }

    #[inline(never)]
    fn next_of_another_sender(&mut self, home: u32, destination: u32, now: u64) -> Option<u32> {
        let age_step_ms = self.settings.age_step_ms;
        let first = self.destinations[home as usize].ready.first(&self.groups, age_step_ms)?;
        if self.groups[first].is_chosen() {
            return Some(first);
        }
        self.forget_avoided(destination, now);
        let avoided = self.destinations[destination as usize].avoided.take();
        let cause = avoided.as_ref().map(|avoided| avoided.number);
        let ready = &mut self.destinations[home as usize].ready;
        ready.rejoin(&mut self.groups, cause);
        let mut next = ready.first(&self.groups, age_step_ms);
        if let Some(avoided) = &avoided {
            let is_avoided = |message: u32| {
                let message = &self.messages[message];
                avoided.has(&self.texts.get(message.addresses)[..usize::from(message.reverse_bytes)])
            };
            let mut looks = GROUPS_PER_POLL;
            while let Some(group) = next
                && !ready.is_all_aside(avoided.number)
                && is_avoided(self.groups[group].message)
            {
                ready.set_aside(&mut self.groups, group, avoided.number);
                looks -= 1;
                next = if looks > 0 { ready.first(&self.groups, age_step_ms) } else { None };
            }
        }
        self.destinations[destination as usize].avoided = avoided;
        next
    }

    /// The domain whose turn it is at a site; one with nothing but mail of avoided senders only when there is no other. It is no longer
    /// queued. `None` with mail there: the search goes on at the next poll.
    pub(crate) fn next_domain_of_another_sender(&mut self, site: u32, now: u64) -> Option<u32> {
        self.forget_avoided(site, now);
        if !self.rejoin_domains(site, now) {
            return None;
        }
        for _ in 0..DOMAINS_PER_POLL {
            let (home, at) = self.next_domain(site, now)?;
            if matches!(at, QueuedAt::Aside(_)) || self.destinations[site as usize].avoided.is_none() {
                return Some(home);
            }
            let next = self.next_group(home, site, now);
            if next.is_some() && !self.has_only_avoided(home, site) {
                return Some(home);
            }
            // Set aside; or behind the others, where the search in it is not at its end.
            self.refresh_domain(home, now);
            next?;
        }
        None
    }

    /// Puts domains back in turn that were set aside for another cause than that of now. False if some are left for the next poll.
    fn rejoin_domains(&mut self, site: u32, now: u64) -> bool {
        let cause = self.avoidance(site);
        for _ in 0..GROUPS_PER_POLL {
            let Role::Site(state) = &mut self.destinations[site as usize].role else { unreachable!("the caller looked") };
            let queued = &mut state.queued;
            let Some((at, domain)) = queued.pop_outdated(cause) else { return true };
            if self.leaves_queue(domain, at) {
                self.refresh_domain(domain.slot, now);
            }
        }
        false
    }

    /// The number of what a destination avoids now.
    pub(crate) fn avoidance(&self, destination: u32) -> Option<u64> {
        self.destinations[destination as usize].avoided.as_ref().map(|avoided| avoided.number)
    }

    /// All that is ready for a domain was passed over, for what its site avoids now.
    fn has_only_avoided(&self, home: u32, site: u32) -> bool {
        self.avoidance(site).is_some_and(|cause| self.destinations[home as usize].ready.is_all_aside(cause))
    }

    /// Which of the guests that wait is next, counted from the front.
    pub(crate) fn next_guest(&mut self, destination: u32, now: u64) -> usize {
        self.forget_avoided(destination, now);
        let state = &self.destinations[destination as usize];
        let Some(avoided) = state.avoided.as_deref().filter(|_| !state.guests.has_chosen()) else { return 0 };
        let is_another = |guest: &Waiting| self.guest_envelope(guest.key()).is_some_and(|guest| !avoided.has(guest.reverse_path));
        state.guests.in_turn().position(is_another).unwrap_or(0)
    }

    /// Nobody is avoided for longer than that.
    fn forget_avoided(&mut self, destination: u32, now: u64) {
        self.destinations[destination as usize].avoided.take_if(|avoided| avoided.until <= now);
    }

    /// What is ready of a group goes before all other mail, by command.
    pub(crate) fn go_first(&mut self, group: u32, now: u64) {
        let Group { ready, destination, .. } = self.groups[group];
        if ready > 0 {
            self.destinations[destination as usize].ready.move_first(&mut self.groups, group);
            self.refresh(destination, now);
        }
    }

    /// What is ready of a group goes behind the mail that waits already.
    pub(crate) fn go_behind(&mut self, group: u32, now: u64) {
        let Group { ready, destination, .. } = self.groups[group];
        if ready > 0 {
            let queue = &mut self.destinations[destination as usize].ready;
            queue.remove(&mut self.groups, group);
            queue.push(&mut self.groups, group, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thirty-two messages of one list, each with a reverse-path of its own, and whoever else was refused was forgotten.
    #[test]
    fn one_list_pushes_nobody_out() {
        let mut avoided = Avoided { senders: Vec::new(), until: 0, number: 0 };
        (0..20).for_each(|number| avoided.add(format!("a@{number}.test").as_bytes()));
        for number in 0..1000 {
            avoided.add(format!("news+b{number}=y.test@x.test").as_bytes());
            avoided.add(format!("bounce-{number}@z.test").as_bytes());
        }
        let all = (0..20).map(|number| format!("a@{number}.test")).chain(["news+c=y.test@x.test".to_owned(), "bounce-c@Z.test".to_owned()]);
        for sender in all {
            assert!(avoided.has(sender.as_bytes()), "{sender}");
        }
        assert!(!avoided.has(b"other@x.test") && !avoided.has(b""));
        assert_eq!(avoided.senders.len(), 22);
        // Of more domains the one that was refused longest ago is not avoided.
        (20..31).for_each(|number| avoided.add(format!("a@{number}.test").as_bytes()));
        assert_eq!(avoided.senders.len(), SENDERS_MAX);
        assert!(!avoided.has(b"a@0.test") && avoided.has(b"a@1.test") && avoided.has(b"anybody@z.test"));
    }
}
