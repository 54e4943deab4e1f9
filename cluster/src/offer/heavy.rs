//! What calls could not carry in their time though Valkey answers to others: a line is slow for what they weigh. Whether such an item has come in all the
//! same is asked first, by a small call; only what is known not to be there is sent again, later each time, and what went alone with more time each time
//! and one at a time, so that it does come in at last and fills the line once only.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use super::{Offers, State};
use crate::boot_time::BootTime;

/// The gap before the second time; it doubles.
const GAP_MIN: Duration = Duration::from_millis(500);
/// The longest.
const GAP_MAX: Duration = Duration::from_secs(30);

/// A node that is emptied delivers what has not come in for so long: by then it was sent with the most time that a call has.
const EMPTYING_FOR: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
struct Tried {
    /// Calls with it alone that came to nothing, and all calls after the first.
    tries: u32,
    /// It is not sent before.
    due: BootTime,
}

/// How a call that carried much came to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotCarried {
    /// Its time was over.
    Late {
        /// It had no other item.
        was_alone: bool,
    },
    /// There was no connection, or it broke: with more time it would not have come in either.
    Cut,
}

/// Those of one node, by name: no more than items are open.
#[derive(Debug, Default)]
pub(super) struct Heavy {
    tried: HashMap<String, Tried>,
    /// Those to be asked for, by when.
    asked_at: BTreeSet<(BootTime, String)>,
    /// The one that is sent with more time.
    under_way: Option<String>,
}

impl Heavy {
    fn failed(&mut self, id: &str, ended: NotCarried, now: BootTime) {
        let before = self.tried.get(id).map(|tried| tried.tries);
        let tries = match (ended, before) {
            (NotCarried::Cut, before) => before.unwrap_or(0),
            (NotCarried::Late { was_alone }, None) => u32::from(was_alone),
            (NotCarried::Late { .. }, Some(before)) => before.saturating_add(1),
        };
        let gap = GAP_MIN.saturating_mul(1 << tries.min(10)).min(GAP_MAX);
        self.wait(id, Tried { tries, due: now + gap });
    }

    fn wait(&mut self, id: &str, tried: Tried) {
        if let Some(before) = self.tried.insert(id.to_owned(), tried) {
            self.asked_at.remove(&(before.due, id.to_owned()));
        }
        self.asked_at.insert((tried.due, id.to_owned()));
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.tried.contains_key(id)
    }

    /// A call has brought it in, or could have.
    pub(super) fn came_in(&mut self, id: &str) {
        if let Some(tried) = self.tried.remove(id) {
            self.asked_at.remove(&(tried.due, id.to_owned()));
        }
        self.ended(id);
    }

    /// Nothing with it is under way.
    pub(super) fn ended(&mut self, id: &str) {
        self.under_way.take_if(|under_way| under_way == id);
    }

    pub(super) fn retain(&mut self, is_open: impl Fn(&str) -> bool) {
        self.tried.retain(|id, _| is_open(id));
        self.asked_at.retain(|(_, id)| is_open(id));
    }

    pub(super) fn next_due(&self) -> Option<BootTime> {
        self.asked_at.first().map(|(due, _)| *due)
    }
}

impl Offers {
    /// No answer to a call that carried much, while Valkey answers to others, as far as is known: the queue may have the item. It is asked for before it is
    /// sent again.
    pub fn not_carried(&mut self, id: &str, ended: NotCarried, now: BootTime) {
        match self.items.get(id) {
            Some(State::Sending { .. }) if self.is_local_for(id) => self.back(id),
            Some(State::Sending { .. }) => {
                let lasts = self.bounds.lease_ttl + self.bounds.guard;
                self.failed_until(id, true, now + if self.is_emptied { EMPTYING_FOR.max(lasts) } else { lasts });
                self.heavy.failed(id, ended, now);
            }
            Some(State::Crossing) => self.recall(id),
            _ => {}
        }
    }

    /// How often an item was not carried in time: 0 as often as it goes with others, in the time that any call has. A node that delivers gives it no more
    /// time, and delivers it, unless it is emptied.
    pub fn tries(&self, id: &str) -> u32 {
        if self.delivers && !self.is_emptied { 0 } else { self.heavy.tried.get(id).map_or(0, |tried| tried.tries) }
    }

    /// Asks for those whose time has come.
    pub(super) fn ask_for_heavy(&mut self, now: BootTime) {
        while self.heavy.asked_at.first().is_some_and(|(due, _)| now >= *due) {
            let (_, id) = self.heavy.asked_at.pop_first().expect("it was looked at");
            if self.items.get(&id) == Some(State::Unsure) {
                self.ask_soon.push(&id);
            }
        }
    }

    /// The queue does not have it: it is sent again once its time has come, and that of the one before is over.
    pub(super) fn is_not_there(&mut self, id: &str, now: BootTime) {
        let Some(tried) = self.heavy.tried.get(id).copied().filter(|tried| now >= tried.due) else { return };
        if tried.tries > 0 {
            let is_pending = |state: State| matches!(state, State::Unsure | State::Fetching | State::Sending { .. } | State::Crossing);
            // One whose partition is away comes to nothing for as long as that is.
            let other = self.heavy.under_way.as_deref().filter(|other| *other != id && !self.outages.has(other));
            if other.is_some_and(|other| self.items.get(other).is_some_and(is_pending)) {
                return self.heavy.wait(id, Tried { due: now + GAP_MIN, ..tried });
            }
            self.heavy.under_way = Some(id.to_owned());
        }
        self.offer.push_back(id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        offer::{OfferBounds, Recall, Sending, Todo, sample_bounds::SAMPLE_BOUNDS},
        work_queue::{Enqueued, Known, partition_of},
    };

    const ALONE: NotCarried = NotCarried::Late { was_alone: true };

    fn at(millis: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(100_000 + millis))
    }

    fn front() -> Offers {
        Offers::new(SAMPLE_BOUNDS, false, at(0))
    }

    fn one(id: &str) -> Vec<String> {
        vec![id.to_owned()]
    }

    /// When it is sent, as each call comes to nothing and none is known to have brought it in.
    fn sent(offers: &mut Offers, until: u64) -> Vec<u64> {
        let mut sent = Vec::new();
        for now in (0..until).step_by(100) {
            while let Some(todo) = offers.poll(at(now)) {
                match todo {
                    Todo::Ask(ids) => ids.iter().for_each(|id| offers.known(id, &Known::Unknown, at(now))),
                    Todo::Offer(ids) => ids.iter().for_each(|id| {
                        assert_eq!(offers.sending(id), Sending::Send);
                        offers.not_carried(id, ALONE, at(now));
                        sent.push(now);
                    }),
                    other => panic!("{other:?}"),
                }
            }
        }
        sent
    }

    /// Mail of 3 MB on a line of 2 MB a second was sent again as soon as its time was over, without end, and never settled though a worker had delivered it
    /// long before: the time came back with each answer to another call.
    #[test]
    fn what_no_call_carries_in_time_is_sent_more_and_more_seldom() {
        let mut offers = front();
        offers.sending("a");
        offers.not_carried("a", ALONE, at(0));
        assert_eq!(offers.next_due(), at(1000));
        let sent = sent(&mut offers, 200_000);
        assert_eq!(sent[..4], [1000, 3000, 7000, 15_000]);
        assert!(sent.len() <= 11 && sent.windows(2).all(|pair| pair[1] - pair[0] <= 30_500), "{sent:?}");
        assert_eq!(offers.tries("a") as usize, sent.len() + 1, "with more time each time");
    }

    #[test]
    fn what_came_in_without_an_answer_is_asked_for_and_not_sent_again() {
        for known in [Known::Waiting, Known::Leased, Known::Completed("n2 0001".into())] {
            let mut offers = front();
            offers.sending("a");
            offers.not_carried("a", ALONE, at(0));
            assert!(!offers.returned(0, at(100)) && offers.poll(at(999)).is_none(), "not with any answer");
            assert_eq!(offers.poll(at(1000)), Some(Todo::Ask(one("a"))));
            offers.known("a", &known, at(1000));
            let is_settled = matches!(offers.poll(at(1000)), Some(Todo::Settle(_)));
            assert_eq!(is_settled, matches!(known, Known::Completed(_)));
            assert_eq!((offers.poll(at(5000)), offers.was_brought_in("a")), (None, true));
        }
        // A worker was faster than the answer that never came: that is asked for at once.
        let mut offers = front();
        offers.sending("a");
        offers.done("a");
        offers.not_carried("a", ALONE, at(0));
        assert_eq!(offers.poll(at(0)), Some(Todo::Ask(one("a"))));
    }

    /// The round does not send them before their time.
    #[test]
    fn a_round_asks_for_them_and_sends_nothing() {
        let mut offers = front();
        offers.sending("a");
        for _ in 0..7 {
            offers.items.set("a", State::Sending { is_done: false });
            offers.not_carried("a", ALONE, at(0));
        }
        assert_eq!(offers.poll(at(10_000)), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Unknown, at(10_000));
        assert_eq!(offers.poll(at(10_000)), None);
    }

    #[test]
    fn one_at_a_time_is_sent_with_more_time_and_those_of_one_call_once_more_together() {
        let mut offers = front();
        for id in ["a", "b"] {
            offers.sending(id);
            offers.not_carried(id, ALONE, at(0));
        }
        let both = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(offers.poll(at(1000)), Some(Todo::Ask(both.clone())));
        both.iter().for_each(|id| offers.known(id, &Known::Unknown, at(1000)));
        assert_eq!(offers.poll(at(1000)), Some(Todo::Offer(one("a"))));
        assert_eq!(offers.sending("a"), Sending::Send);
        assert_eq!(offers.poll(at(1500)), Some(Todo::Ask(one("b"))));
        offers.known("b", &Known::Unknown, at(1500));
        assert_eq!(offers.poll(at(1500)), None, "the other is under way");
        offers.enqueued("a", Enqueued::Added);
        assert_eq!(offers.poll(at(2000)), Some(Todo::Ask(one("b"))));
        offers.known("b", &Known::Unknown, at(2000));
        assert_eq!(offers.poll(at(2000)), Some(Todo::Offer(one("b"))));

        let mut offers = front();
        for id in ["a", "b"] {
            offers.sending(id);
            offers.not_carried(id, NotCarried::Late { was_alone: false }, at(0));
        }
        assert_eq!(offers.poll(at(500)), Some(Todo::Ask(both.clone())));
        both.iter().for_each(|id| offers.known(id, &Known::Unknown, at(500)));
        assert_eq!((offers.poll(at(500)), offers.tries("a")), (Some(Todo::Offer(both)), 0));
    }

    /// A Valkey that was restarted under a call that carried much: each such item went alone from then on.
    #[test]
    fn a_connection_that_broke_counts_for_nothing_towards_going_alone() {
        let mut offers = front();
        offers.sending("a");
        for now in [0, 500, 1000] {
            offers.not_carried("a", NotCarried::Cut, at(now));
            assert_eq!((offers.poll(at(now + 499)), offers.tries("a")), (None, 0));
            assert_eq!(offers.poll(at(now + 500)), Some(Todo::Ask(one("a"))));
            offers.known("a", &Known::Unknown, at(now + 500));
            assert_eq!(offers.poll(at(now + 500)), Some(Todo::Offer(one("a"))));
            assert_eq!(offers.sending("a"), Sending::Send);
        }
        offers.not_carried("a", ALONE, at(1500));
        assert_eq!(offers.tries("a"), 1);
        // What is known of the line stays known.
        offers.items.set("a", State::Sending { is_done: false });
        offers.not_carried("a", NotCarried::Cut, at(2000));
        assert_eq!(offers.tries("a"), 1);
    }

    /// With one primary of a cluster away no such item of any other partition was sent.
    #[test]
    fn one_whose_partition_is_away_stops_none_of_another() {
        let mut offers = Offers::new(OfferBounds { partitions: 2, ..SAMPLE_BOUNDS }, false, at(0));
        let of = |partition: u16| (0..).map(|n| n.to_string()).find(|id| partition_of(id, 2) == partition).unwrap();
        let (first, second) = (of(0), of(1));
        for (id, now) in [(&first, 0), (&second, 500)] {
            offers.sending(id);
            offers.not_carried(id, ALONE, at(now));
        }
        let ask = |offers: &mut Offers, id: &str, now: u64| {
            assert_eq!(offers.poll(at(now)), Some(Todo::Ask(one(id))));
            offers.known(id, &Known::Unknown, at(now));
        };
        ask(&mut offers, &first, 1000);
        assert_eq!(offers.poll(at(1000)), Some(Todo::Offer(one(&first))));
        ask(&mut offers, &second, 1500);
        assert_eq!(offers.poll(at(1500)), None, "the other is under way");
        offers.away(0, at(1600));
        ask(&mut offers, &second, 2000);
        assert_eq!(offers.poll(at(2000)), Some(Todo::Offer(one(&second))));
    }

    /// Who wanted it back waited for a call that may take a minute.
    #[test]
    fn what_is_wanted_back_while_it_is_sent_with_more_time_stays_offered() {
        for retracts in [false, true] {
            let mut offers = front();
            offers.sending("a");
            offers.not_carried("a", ALONE, at(0));
            assert_eq!(offers.poll(at(1000)), Some(Todo::Ask(one("a"))));
            offers.known("a", &Known::Unknown, at(1000));
            assert_eq!(offers.poll(at(1000)), Some(Todo::Offer(one("a"))));
            assert_eq!((offers.sending("a"), offers.tries("a")), (Sending::Send, 1));
            if retracts {
                offers.retract();
            }
            offers.recalled("a");
            let told = (!retracts).then(|| Todo::Tell(vec![("a".to_owned(), Recall::Unanswered)]));
            assert_eq!((offers.poll(at(1000)), offers.poll(at(1000))), (told, None));
            offers.enqueued("a", Enqueued::Added);
            assert_eq!(offers.poll(at(1500)), retracts.then(|| Todo::Withdraw(one("a"))));
            // It is there: now it can be had.
            offers.recalled("a");
            assert_eq!(offers.poll(at(1500)), (!retracts).then(|| Todo::Withdraw(one("a"))));
        }
    }

    /// It took back what did not come in within `lease_ttl` and a second, and what could not be delivered at once never left it.
    #[test]
    fn a_node_that_is_emptied_gives_what_is_heavy_more_time_and_delivers_what_does_not_come_in_at_all() {
        let mut offers = Offers::new(SAMPLE_BOUNDS, true, at(0));
        offers.empty();
        for id in ["a", "b"] {
            offers.sending(id);
        }
        offers.not_carried("a", ALONE, at(0));
        offers.refused("b", at(1));
        let begun = sent(&mut offers, 4000);
        assert_eq!(begun, [1000, 3000]);
        assert_eq!(offers.poll(at(4001)), Some(Todo::TakeBack(one("b"))), "it does not wait for the other");
        while let Some(now) = Some(offers.next_due()).filter(|now| *now < at(300_000)) {
            while let Some(todo) = offers.poll(now) {
                match todo {
                    Todo::Ask(ids) => ids.iter().for_each(|id| offers.known(id, &Known::Unknown, now)),
                    Todo::Offer(ids) => ids.iter().for_each(|id| {
                        assert_eq!(offers.sending(id), Sending::Send);
                        offers.not_carried(id, ALONE, now);
                    }),
                    Todo::Withdraw(ids) => {
                        assert_eq!(ids, one("b"));
                        offers.withdrawn("b", true);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(offers.tries("a") > 10);
        assert_eq!(offers.poll(at(300_000)), Some(Todo::Withdraw(one("a"))));
    }

    #[test]
    fn a_node_that_delivers_does_so_with_what_is_not_carried_in_time() {
        let mut offers = Offers::new(SAMPLE_BOUNDS, true, at(0));
        offers.sending("a");
        offers.not_carried("a", ALONE, at(0));
        sent(&mut offers, 3900);
        assert_eq!(offers.tries("a"), 0, "it waits for nothing long");
        assert_eq!(offers.poll(at(4000)), Some(Todo::Withdraw(one("a"))));
        offers.withdrawn("a", true);
        assert_eq!(offers.poll(at(4000)), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Unknown, at(4000));
        assert_eq!(offers.poll(at(4000)), Some(Todo::TakeBack(one("a"))));
    }
}
