//! Items that workers with this node's key cannot read, and how often each was offered again for that.

use std::collections::HashMap;

use super::{Offers, State};
use crate::boot_time::BootTime;

/// So many times an item is offered again at once. Once is enough where it was signed with a key that this node has no more, or was damaged by chance.
const OFFERED_AGAIN_MAX: u32 = 3;

/// Those that are offered, by name: no more than items are open.
#[derive(Debug, Default)]
pub(super) struct Unread {
    times: HashMap<String, u32>,
    given_up: u64,
}

impl Unread {
    /// One could not be read. True: it is offered again; false: that has not helped so often that it will not.
    fn again(&mut self, id: &str) -> bool {
        let times = self.times.entry(id.to_owned()).or_default();
        *times = times.saturating_add(1);
        self.given_up += u64::from(*times == OFFERED_AGAIN_MAX + 1);
        *times <= OFFERED_AGAIN_MAX
    }

    pub(super) fn retain(&mut self, is_open: impl Fn(&str) -> bool) {
        self.times.retain(|id, _| is_open(id));
    }
}

impl Offers {
    /// Items of this run that no worker could read however often they were offered: this node delivers them, or, if it does not deliver, offers them
    /// as seldom as dead letters.
    pub fn unreadable(&self) -> u64 {
        self.unread.given_up
    }

    /// What comes next of an item that no worker with this node's key could read, in words for an operator; `None`: one that was read, or waits for the next
    /// worker.
    pub fn unread_next(&self, id: &str) -> Option<&'static str> {
        if !self.unread.times.contains_key(id) {
            return None;
        }
        match self.items.get(id)? {
            State::Overdue => Some("it leaves the queue, and this node delivers it"),
            State::Reviving => Some("it leaves the queue, and is offered again"),
            State::Unsure | State::Fetching | State::Sending { .. } => Some("it is offered again at once"),
            State::Waiting if self.dead.get(id).is_some_and(|letter| letter.again_at.is_some()) => {
                Some("it is offered again as seldom as a dead letter: after five minutes, and after twice as long each further time")
            }
            _ => None,
        }
    }

    /// Signed with a key that this node has no more, or damaged: no worker takes it. It is offered again once it has left the queue. What comes to that
    /// again and again is damaged on its way each time, or the workers' key only looks like this node's.
    pub(super) fn unread(&mut self, id: &str, now: BootTime) {
        let state = match (self.unread.again(id), self.delivers) {
            (true, _) => State::Reviving,
            (false, true) => State::Overdue,
            (false, false) => return self.dead(id, now),
        };
        self.items.set(id, state);
        self.withdraw.push_back(id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        offer::{OfferBounds, Sending, Todo, sample_bounds::SAMPLE_BOUNDS},
        work_queue::{Enqueued, Known},
    };

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    fn one() -> Vec<String> {
        vec!["a".to_owned()]
    }

    /// It is waiting, and that it cannot be read has it leave the queue and come in again.
    fn is_offered_again(offers: &mut Offers, now: BootTime) {
        offers.known("a", &Known::Unreadable, now);
        is_out(offers, now);
        offers.known("a", &Known::Unsigned(Vec::new()), now);
        assert_eq!(offers.poll(at(0)), Some(Todo::Offer(one())));
        assert_eq!(offers.sending("a"), Sending::Send);
        offers.enqueued("a", Enqueued::Added);
    }

    fn is_out(offers: &mut Offers, now: BootTime) {
        assert_eq!(offers.poll(at(0)), Some(Todo::Withdraw(one())), "{now:?}");
        offers.withdrawn("a", true);
        assert_eq!(offers.poll(at(0)), Some(Todo::Ask(one())));
    }

    fn unreadable(delivers: bool) -> Offers {
        let bounds = OfferBounds { open_max: 2, ..SAMPLE_BOUNDS };
        let mut offers = Offers::new(bounds, delivers, at(0));
        offers.sending("a");
        offers.enqueued("a", Enqueued::Added);
        (0..3).for_each(|second| is_offered_again(&mut offers, at(second)));
        assert_eq!(offers.unreadable(), 0);
        offers
    }

    /// It was offered again for ever, with each look of a worker: nobody delivered it and nobody said so.
    #[test]
    fn what_workers_cannot_read_again_and_again_is_delivered_by_its_owner_once_it_has_left_the_queue() {
        let mut offers = unreadable(true);
        assert_eq!(offers.unread_next("a"), None, "it waits for the next worker");
        offers.known("a", &Known::Unreadable, at(4));
        assert_eq!(offers.unread_next("a"), Some("it leaves the queue, and this node delivers it"));
        is_out(&mut offers, at(4));
        assert_eq!(offers.sending("a"), Sending::Leave, "a worker may have it still");
        offers.known("a", &Known::Unsigned(b"t".to_vec()), at(4));
        assert_eq!(offers.poll(at(0)), Some(Todo::Refuse(vec![("a".to_owned(), b"t".to_vec())])));
        offers.refused_record("a", true, at(4));
        assert_eq!(offers.poll(at(0)), Some(Todo::TakeBack(one())));
        assert_eq!((offers.sending("a"), offers.unreadable()), (Sending::TakeBack, 1));

        // It was leased just then, by a worker that could read it.
        let mut offers = unreadable(true);
        offers.known("a", &Known::Unreadable, at(4));
        assert_eq!(offers.poll(at(0)), Some(Todo::Withdraw(one())));
        offers.withdrawn("a", false);
        offers.known("a", &Known::Completed("n2 0001".to_owned()), at(4));
        assert_eq!(offers.poll(at(0)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));
    }

    #[test]
    fn at_a_front_end_it_waits_as_a_dead_letter_does() {
        let mut offers = unreadable(false);
        let mut now = 10;
        for wait in [300, 600, 1200] {
            for seconds in [0, wait - 1] {
                offers.known("a", &Known::Unreadable, at(now + seconds));
                assert_eq!(offers.poll(at(0)), None, "{wait}");
                assert!(offers.unread_next("a").is_some_and(|next| next.contains("as seldom as a dead letter")));
            }
            now += wait;
            is_offered_again(&mut offers, at(now));
        }
        assert_eq!(offers.unreadable(), 1, "told once");
    }

    #[test]
    fn what_has_ended_is_counted_no_more() {
        let mut offers = unreadable(true);
        offers.known("a", &Known::Completed("n2 0001".to_owned()), at(4));
        while offers.poll(at(10)).is_some() {}
        assert!(offers.unread.times.is_empty());
    }
}
