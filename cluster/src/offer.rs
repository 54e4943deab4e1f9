//! The owner's side of a hand-over: what became of the mail that this node has offered to the work queue (Q18).
//!
//! ```text
//! sending -> waiting -> settling -> settled -> (forgotten)
//!    |          |          ^
//!    +-- unsure +-- back --+   back: the node delivers it itself, and takes it out of the queue as soon as Valkey answers
//! ```
//! The owner's spool holds the mail in every state but the last two. It leaves on nothing but the word of the queue that another
//! has completed it; silence, a restart or lost data only make the owner ask, or offer again by the same id. Pure: the driver
//! reports what it heard and does what [`Offers::poll`] says.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use crate::{
    boot_time::BootTime,
    work_queue::{Enqueued, IDS_PER_CALL, Known},
};

/// How the completer's word begins that gives an item back to its own owner.
pub const OWN_AGAIN: &str = "own-again";

/// When an owner does what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OfferTimes {
    /// With Valkey away for so long no worker begins to complete what it has leased before.
    pub lease_ttl: Duration,
    /// And for so long more, for clocks and for what was under way.
    pub guard: Duration,
    /// How often the owner asks for what it has heard nothing of.
    pub reconcile_every: Duration,
    /// How long the queue remembers what was settled: a worker that comes back within it gets an exact answer.
    pub forget_after: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// On its way into the queue.
    Sending,
    /// The queue has it or not: nobody answered, or there was no room. Its content is asked for again.
    Unsure,
    /// In the queue, by its last word.
    Waiting,
    /// Another has it; the spool does not know yet.
    Settling,
    /// The spool knows.
    Settled,
    /// Delivered by this node; the queue may have it still.
    Back,
}

/// What is to be done with some ids, at most [`IDS_PER_CALL`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Todo {
    /// Ask the queue where they are, then call [`Offers::known`] for each.
    Ask(Vec<String>),
    /// Read them from the spool and enqueue them again, then call [`Offers::enqueued`] or [`Offers::unanswered`]; or
    /// [`Offers::gone`] for what the spool does not have any more.
    Offer(Vec<String>),
    /// Another node has them: settle them in the spool, then call [`Offers::settled`] when that is durable.
    Settle(Vec<String>),
    /// Let the shards deliver them.
    TakeBack(Vec<String>),
    /// Take them out of the queue, then call [`Offers::withdrawn`] for each.
    Withdraw(Vec<String>),
    /// Tell the queue that they are settled, then call [`Offers::forgotten`].
    Forget(Vec<String>),
}

/// All that this node has offered.
#[derive(Debug)]
pub struct Offers {
    times: OfferTimes,
    /// A node that does not deliver takes nothing back.
    delivers: bool,
    items: HashMap<String, State>,
    ask: VecDeque<String>,
    offer: VecDeque<String>,
    settle: VecDeque<String>,
    take_back: VecDeque<String>,
    withdraw: VecDeque<String>,
    forget: VecDeque<(BootTime, String)>,
    generations: BTreeMap<u16, String>,
    away_since: Option<BootTime>,
    is_local: bool,
    ask_all_at: BootTime,
}

impl Offers {
    /// Nothing is offered. `delivers`: `[delivery] deliver`.
    pub fn new(times: OfferTimes, delivers: bool, now: BootTime) -> Offers {
        Offers {
            times,
            delivers,
            items: HashMap::new(),
            ask: VecDeque::new(),
            offer: VecDeque::new(),
            settle: VecDeque::new(),
            take_back: VecDeque::new(),
            withdraw: VecDeque::new(),
            forget: VecDeque::new(),
            generations: BTreeMap::new(),
            away_since: None,
            is_local: false,
            ask_all_at: now + times.reconcile_every,
        }
    }

    /// Items of which the node has not heard the last word.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Nothing is offered.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Valkey has been away for so long that the node delivers what it accepts.
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// A shard hands out an item, which goes to the queue now. False: this node cannot offer it at this time, the shard is to deliver it.
    pub fn sending(&mut self, id: &str) -> bool {
        if self.is_local && !self.items.contains_key(id) {
            return false;
        }
        let state = self.items.entry(id.to_owned()).or_insert(State::Sending);
        if *state == State::Unsure {
            *state = State::Sending;
        }
        true
    }

    /// A shard delivers this itself, but an earlier run may have offered it.
    pub fn keeps(&mut self, id: &str) {
        if self.items.insert(id.to_owned(), State::Back).is_none() {
            self.withdraw.push_back(id.to_owned());
        }
    }

    /// The queue's answer to an item.
    pub fn enqueued(&mut self, id: &str, answer: Enqueued) {
        let Some(state) = self.items.get_mut(id) else { return };
        match (*state, answer) {
            (State::Sending | State::Unsure, Enqueued::Added | Enqueued::Present) => *state = State::Waiting,
            // By whom, and whether for good, is asked for.
            (State::Sending | State::Unsure, Enqueued::Completed) => {
                *state = State::Waiting;
                self.ask.push_back(id.to_owned());
            }
            (State::Sending, Enqueued::Full) if self.delivers => self.back(id),
            (State::Sending, Enqueued::Full) => *state = State::Unsure,
            _ => {}
        }
    }

    /// No answer: the queue may have it. While Valkey is away nothing is asked.
    pub fn unanswered(&mut self, id: &str) {
        if let Some(state @ State::Sending) = self.items.get_mut(id) {
            *state = State::Unsure;
            if self.is_local && self.delivers {
                self.back(id);
            } else if self.away_since.is_none() {
                self.offer.push_back(id.to_owned());
            }
        }
    }

    /// The spool does not have it any more: it was settled by command, or is in delivery.
    pub fn gone(&mut self, id: &str) {
        if let Some(state @ (State::Sending | State::Unsure | State::Waiting)) = self.items.get_mut(id) {
            *state = State::Back;
            self.withdraw.push_back(id.to_owned());
        }
    }

    /// A message says that an item was completed. It may be from before a loss of data, after which the item was offered again: only the
    /// queue's answer counts, and it is asked for now.
    pub fn done(&mut self, id: &str) {
        if matches!(self.items.get(id), Some(State::Sending | State::Waiting | State::Unsure)) {
            self.ask.push_back(id.to_owned());
        }
    }

    /// Where the queue has an item. Means nothing for one that is just being sent: the two may have crossed.
    pub fn known(&mut self, id: &str, known: &Known, now: BootTime) {
        let Some(&state) = self.items.get(id) else { return };
        match (state, known) {
            (State::Back, Known::Completed(result)) if result.starts_with(OWN_AGAIN) => self.ended(id, now),
            (State::Waiting | State::Unsure, Known::Completed(result)) if result.starts_with(OWN_AGAIN) => self.back(id),
            (State::Waiting | State::Unsure | State::Back, Known::Completed(_)) => {
                self.items.insert(id.to_owned(), State::Settling);
                self.settle.push_back(id.to_owned());
            }
            // It never came, or Valkey lost it.
            (State::Waiting, Known::Unknown) => {
                self.items.insert(id.to_owned(), State::Unsure);
                self.offer.push_back(id.to_owned());
            }
            // Poison to its workers, or past its time: the owner sees to it.
            (State::Waiting, Known::Dead) if self.delivers => self.back(id),
            (State::Unsure, Known::Waiting | Known::Leased | Known::Dead) => {
                self.items.insert(id.to_owned(), State::Waiting);
            }
            (State::Back, Known::Unknown) => drop(self.items.remove(id)),
            _ => {}
        }
    }

    /// The queue's answer to the wish to have an item back; false: a worker has it.
    pub fn withdrawn(&mut self, id: &str, is_out: bool) {
        // Out of the queue is what was completed, too: the queue's next answer tells. A leased one is asked for in the next round.
        if is_out && self.items.get(id) == Some(&State::Back) {
            self.ask.push_back(id.to_owned());
        }
    }

    /// That it is settled here is durable.
    pub fn settled(&mut self, id: &str, now: BootTime) {
        if self.items.get(id) == Some(&State::Settling) {
            self.items.insert(id.to_owned(), State::Settled);
            self.forget.push_back((now + self.times.forget_after, id.to_owned()));
        }
    }

    /// The shard could not settle it now.
    pub fn not_settled(&mut self, id: &str) {
        if self.items.get(id) == Some(&State::Settling) {
            self.settle.push_back(id.to_owned());
        }
    }

    /// The queue has forgotten it, or had; false: it gave no answer.
    pub fn forgotten(&mut self, id: &str, is_answered: bool, now: BootTime) {
        if self.items.get(id) == Some(&State::Settled) {
            if is_answered {
                self.items.remove(id);
            } else {
                self.forget.push_back((now + self.times.reconcile_every, id.to_owned()));
            }
        }
    }

    /// The queue's data in a partition has this generation: another than before means that it was lost.
    pub fn generation(&mut self, partition: u16, generation: &str, now: BootTime) {
        let before = self.generations.insert(partition, generation.to_owned());
        if before.is_some_and(|before| before != generation) {
            self.ask_all_at = self.ask_all_at.min(now);
        }
    }

    /// Messages may have been missed: everything is asked for.
    pub fn missed(&mut self, now: BootTime) {
        self.ask_all_at = self.ask_all_at.min(now);
    }

    /// Valkey does not answer.
    pub fn away(&mut self, now: BootTime) {
        self.away_since.get_or_insert(now);
    }

    /// Valkey answers.
    pub fn returned(&mut self, now: BootTime) {
        if self.away_since.take().is_some() {
            self.is_local = false;
            self.missed(now);
        }
    }

    /// The next thing to do. While Valkey is away only what concerns the shards.
    pub fn poll(&mut self, now: BootTime) -> Option<Todo> {
        if let Some(since) = self.away_since
            && self.delivers
            && !self.is_local
            && now >= since + self.times.lease_ttl + self.times.guard
        {
            self.is_local = true;
            for (id, state) in &mut self.items {
                if matches!(state, State::Sending | State::Unsure | State::Waiting) {
                    *state = State::Back;
                    self.take_back.push_back(id.clone());
                }
            }
        }
        if let Some(ids) = take(&mut self.take_back) {
            return Some(Todo::TakeBack(ids));
        }
        if let Some(ids) = self.in_state(|offers| &mut offers.settle, State::Settling) {
            return Some(Todo::Settle(ids));
        }
        if self.away_since.is_some() {
            return None;
        }
        if now >= self.ask_all_at {
            self.ask_all_at = now + self.times.reconcile_every;
            self.begin_round();
        }
        // What this node delivers itself leaves the queue first: workers are about to lease again.
        if let Some(ids) = self.in_state(|offers| &mut offers.withdraw, State::Back) {
            return Some(Todo::Withdraw(ids));
        }
        if let Some(ids) = take(&mut self.ask) {
            return Some(Todo::Ask(ids));
        }
        if let Some(ids) = self.in_state(|offers| &mut offers.offer, State::Unsure) {
            return Some(Todo::Offer(ids));
        }
        let due = self.forget.iter().take(IDS_PER_CALL).take_while(|(at, _)| now >= *at).count();
        (due > 0).then(|| Todo::Forget(self.forget.drain(..due).map(|(_, id)| id).collect()))
    }

    /// When [`Offers::poll`] has something to do again if nothing happens.
    pub fn next_due(&self) -> BootTime {
        match self.away_since {
            Some(since) if self.delivers && !self.is_local => since + self.times.lease_ttl + self.times.guard,
            _ => self.forget.front().map_or(self.ask_all_at, |(at, _)| self.ask_all_at.min(*at)),
        }
    }

    fn begin_round(&mut self) {
        self.ask.clear();
        self.withdraw.clear();
        self.offer.clear();
        for (id, state) in &self.items {
            match state {
                State::Waiting => self.ask.push_back(id.clone()),
                State::Unsure => self.offer.push_back(id.clone()),
                State::Back => self.withdraw.push_back(id.clone()),
                State::Sending | State::Settling | State::Settled => {}
            }
        }
    }

    fn back(&mut self, id: &str) {
        self.items.insert(id.to_owned(), State::Back);
        self.take_back.push_back(id.to_owned());
        self.withdraw.push_back(id.to_owned());
    }

    /// It was this node's own lease. The queue remembers that for a while, too: another's claim of it is to be refused.
    fn ended(&mut self, id: &str, now: BootTime) {
        self.items.insert(id.to_owned(), State::Settled);
        self.forget.push_back((now + self.times.forget_after, id.to_owned()));
    }

    fn in_state(&mut self, queue: impl Fn(&mut Offers) -> &mut VecDeque<String>, wanted: State) -> Option<Vec<String>> {
        while let Some(mut ids) = take(queue(self)) {
            ids.retain(|id| self.items.get(id) == Some(&wanted));
            if !ids.is_empty() {
                return Some(ids);
            }
        }
        None
    }
}

fn take(queue: &mut VecDeque<String>) -> Option<Vec<String>> {
    let count = queue.len().min(IDS_PER_CALL);
    (count > 0).then(|| queue.drain(..count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: OfferTimes = OfferTimes {
        lease_ttl: Duration::from_secs(3),
        guard: Duration::from_secs(1),
        reconcile_every: Duration::from_secs(10),
        forget_after: Duration::from_secs(30),
    };

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    fn one(id: &str) -> Vec<String> {
        vec![id.to_owned()]
    }

    #[test]
    fn a_completed_item_is_settled_and_forgotten_later() {
        let mut offers = Offers::new(TIMES, true, at(0));
        assert!(offers.sending("a"));
        offers.enqueued("a", Enqueued::Added);
        assert_eq!(offers.poll(at(1)), None);
        offers.done("a");
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Completed("n2 0001".to_owned()), at(7));
        assert_eq!(offers.poll(at(1)), Some(Todo::Settle(one("a"))));
        offers.settled("a", at(2));
        offers.done("a");
        assert_eq!(offers.poll(at(3)), None);
        assert_eq!(offers.poll(at(32)), Some(Todo::Forget(one("a"))));
        offers.forgotten("a", true, at(32));
        assert!(offers.is_empty());
    }

    #[test]
    fn with_valkey_away_the_node_delivers_after_the_guard_and_withdraws_on_return() {
        let mut offers = Offers::new(TIMES, true, at(0));
        offers.sending("a");
        offers.enqueued("a", Enqueued::Added);
        offers.away(at(1));
        assert_eq!(offers.next_due(), at(5));
        assert_eq!(offers.poll(at(4)), None);
        assert_eq!(offers.poll(at(5)), Some(Todo::TakeBack(one("a"))));
        assert!(!offers.sending("b"), "what is new is delivered at once");
        assert_eq!(offers.poll(at(6)), None);
        offers.returned(at(7));
        assert_eq!(offers.poll(at(7)), Some(Todo::Withdraw(one("a"))));
        offers.withdrawn("a", true);
        assert_eq!(offers.poll(at(7)), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Unknown, at(7));
        assert!(offers.is_empty());
    }

    #[test]
    fn a_node_that_does_not_deliver_takes_nothing_back() {
        let mut offers = Offers::new(TIMES, false, at(0));
        offers.sending("a");
        offers.enqueued("a", Enqueued::Full);
        offers.away(at(1));
        assert_eq!(offers.poll(at(99)), None);
        offers.returned(at(100));
        assert_eq!(offers.poll(at(100)), Some(Todo::Offer(one("a"))));
    }

    #[test]
    fn lost_data_is_offered_again() {
        let mut offers = Offers::new(TIMES, true, at(0));
        offers.sending("a");
        offers.enqueued("a", Enqueued::Added);
        offers.generation(3, "g1", at(0));
        assert_eq!(offers.poll(at(1)), None);
        offers.generation(3, "g2", at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Unknown, at(7));
        assert_eq!(offers.poll(at(1)), Some(Todo::Offer(one("a"))));
        assert!(offers.sending("a"));
        offers.unanswered("a");
        assert_eq!(offers.poll(at(1)), Some(Todo::Offer(one("a"))));
    }

    #[test]
    fn an_item_that_its_own_node_leased_is_not_settled() {
        let mut offers = Offers::new(TIMES, true, at(0));
        offers.sending("a");
        offers.enqueued("a", Enqueued::Completed);
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Completed(format!("{OWN_AGAIN} n1")), at(7));
        assert_eq!(offers.poll(at(1)), Some(Todo::TakeBack(one("a"))));
        assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(one("a"))));
        offers.withdrawn("a", true);
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Completed(format!("{OWN_AGAIN} n1")), at(7));
        assert_eq!(offers.poll(at(1)), None);
        assert_eq!(offers.poll(at(37)), Some(Todo::Forget(one("a"))));
    }
}
