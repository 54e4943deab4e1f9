//! What the owner hears of its items from the queue.

use super::{OWN_AGAIN, Offers, Recall, State};
use crate::{
    boot_time::BootTime,
    work_queue::{Ending, Enqueued, ITEMS_PER_CALL, Known},
};

impl Offers {
    /// The queue's answer to an item.
    pub fn enqueued(&mut self, id: &str, answer: Enqueued) {
        let Some(state) = self.items.get(id) else { return };
        self.heavy.came_in(id);
        if answer != Enqueued::Full {
            self.late.came_in(id);
        }
        if answer == Enqueued::Added {
            self.has_room(id);
        }
        match (state, answer) {
            // By whom, and whether for good, is asked for.
            (State::Sending { is_done: true }, Enqueued::Added | Enqueued::Present)
            | (State::Sending { .. } | State::Unsure, Enqueued::Completed) => {
                self.items.set(id, State::Waiting);
                self.ask_soon.push(id);
            }
            (State::Sending { .. } | State::Unsure, Enqueued::Added | Enqueued::Present) => drop(self.items.set(id, State::Waiting)),
            (State::Sending { .. }, Enqueued::Full) if self.delivers => self.back(id),
            (State::Sending { .. }, Enqueued::Full) => self.crowded(id),
            (State::Crossing, _) => self.recall(id),
            _ => {}
        }
    }

    /// No answer to an item that was sent: the queue may have it. It is offered again when Valkey is back, or in the next round; if no call has
    /// brought it in for as long as an outage lasts before a node that delivers goes on by itself, that node delivers it.
    pub fn unanswered(&mut self, id: &str, now: BootTime) {
        match self.items.get(id) {
            Some(State::Sending { .. }) if self.is_local_for(id) => self.back(id),
            Some(State::Sending { .. }) => {
                self.failed(id, true, now);
                self.unheard(vec![id.to_owned()]);
            }
            Some(State::Crossing) => self.recall(id),
            _ => {}
        }
    }

    /// Valkey is there, and would not take an item. The same as without an answer, but that it is offered again in the next round only.
    pub fn refused(&mut self, id: &str, now: BootTime) {
        match self.items.get(id) {
            Some(State::Sending { .. }) => self.failed(id, false, now),
            Some(State::Crossing) => self.recall(id),
            _ => {}
        }
    }

    pub(super) fn failed(&mut self, id: &str, may_be_there: bool, now: BootTime) {
        self.failed_until(id, may_be_there, now + self.bounds.lease_ttl + self.bounds.guard);
    }

    /// A node that delivers does so with the item then, if none has brought it in.
    pub(super) fn failed_until(&mut self, id: &str, may_be_there: bool, due: BootTime) {
        self.heavy.ended(id);
        if self.items.set(id, State::Unsure) == Some(State::Sending { is_done: true }) {
            self.ask_soon.push(id);
        }
        if self.delivers {
            self.late.failed(id, due, may_be_there);
        }
    }

    /// No answer to [`Ask`](super::Todo::Ask) or [`Withdraw`](super::Todo::Withdraw): that is repeated when Valkey is back, or in the next round.
    pub fn unheard(&mut self, ids: Vec<String>) {
        for id in ids {
            self.unheard.entry(self.outages.partition(&id)).or_default().insert(id);
        }
    }

    /// A message says that an item was completed. It may be from before a loss of data, after which the item was offered again: only the
    /// queue's answer counts, and it is asked for now.
    pub fn done(&mut self, id: &str) {
        match self.items.get(id) {
            // The worker was faster than the answer to the call that brought it in. Until that is there the queue's word on it means nothing.
            Some(State::Sending { .. }) => drop(self.items.set(id, State::Sending { is_done: true })),
            Some(State::Overdue | State::Waiting | State::Unsure | State::Fetching) => self.ask_soon.push(id),
            _ => {}
        }
    }

    /// Whether it sees to an item, or remembers its end.
    pub fn knows(&self, id: &str) -> bool {
        self.items.get(id).is_some()
    }

    /// Whether the queue or a worker may have an item: it has not come to an end that this node's spool knows of.
    pub fn is_at_large(&self, id: &str) -> bool {
        self.items.get(id).is_some_and(|state| !state.is_past())
    }

    /// Where the queue has an item. Means nothing for one that is just being sent: the two may have crossed.
    pub fn known(&mut self, id: &str, known: &Known, now: BootTime) {
        let Some(state) = self.items.get(id) else { return };
        match (state, known) {
            (State::Recalled, Known::Completed(result)) if result.starts_with(OWN_AGAIN) => {
                self.tell.push_back((id.to_owned(), Recall::Out));
                self.ended(id, now);
            }
            (State::Recalled, Known::Completed(result)) => {
                self.tell.push_back((id.to_owned(), Recall::Taken));
                self.settling(id, result);
            }
            (State::Recalled, Known::Unknown | Known::Withdrawn) => self.part(id),
            (State::Recalled, Known::Leased) => self.is_leased(id),
            // A call of before brought it in.
            (State::Recalled, Known::Waiting | Known::Dead) => self.withdraw.push_back(id.to_owned()),
            (State::Back | State::Leftover | State::Parted, Known::Completed(result)) if result.starts_with(OWN_AGAIN) => {
                self.ended(id, now);
            }
            (State::Waiting | State::Reviving | State::Overdue | State::Unsure | State::Fetching, Known::Completed(result))
                if result.starts_with(OWN_AGAIN) =>
            {
                if self.delivers && !self.is_emptied {
                    self.back(id);
                } else {
                    self.items.set(id, State::Freeing);
                    self.free.push_back(id.to_owned());
                }
            }
            (state, Known::Completed(result)) if state.may_be_taken() => self.settling(id, result),
            // Nobody has it who could prove that. What says so has to leave the queue before the item can be offered again.
            (state, Known::Unproven(record)) if state.is_this_nodes() => {
                self.unproven.push_back((id.to_owned(), record.clone()));
            }
            // A worker's late claim is to be told by this node's word that the item is not its own.
            (State::Back | State::Recalled | State::Parted | State::Overdue, Known::Unsigned(record)) => {
                self.unproven.push_back((id.to_owned(), record.clone()));
            }
            // With whom it was ended nobody knows, so nothing is signed, neither now nor when the queue has it again: it is another's.
            (State::Leftover, Known::Withdrawn | Known::Unsigned(_) | Known::Unproven(_)) => self.ended(id, now),
            // It never came, or Valkey lost it; or it was withdrawn, which was not heard.
            (State::Waiting | State::Reviving, Known::Unknown | Known::Withdrawn | Known::Unsigned(_)) => {
                self.items.set(id, State::Unsure);
                self.offer.push_back(id.to_owned());
            }
            // Poison to its workers, or past its time: the owner sees to it.
            // Somebody may give it another chance at this moment, and a worker lease it: it is delivered here once it has left the queue.
            (State::Waiting, Known::Dead) if self.delivers => {
                self.items.set(id, State::Overdue);
                self.withdraw.push_back(id.to_owned());
            }
            (State::Waiting, Known::Dead) => self.dead(id, now),
            (State::Waiting, Known::Unreadable) => self.unread(id, now),
            (State::Reviving, Known::Unreadable) => self.withdraw.push_back(id.to_owned()),
            (_, Known::Unreadable) => self.known(id, &Known::Waiting, now),
            // It was given another chance by command.
            (State::Reviving, Known::Waiting | Known::Leased) => drop(self.items.set(id, State::Waiting)),
            (State::Reviving, Known::Dead) => self.withdraw.push_back(id.to_owned()),
            // It never came, or has left: this node delivers it.
            (State::Overdue, Known::Unknown | Known::Withdrawn) => self.back(id),
            (State::Overdue, Known::Leased) => drop(self.items.set(id, State::Waiting)),
            (State::Overdue, Known::Waiting | Known::Dead) => self.withdraw.push_back(id.to_owned()),
            // What is being fetched is given by its shard in any case.
            (State::Unsure, Known::Waiting | Known::Leased | Known::Dead) => {
                self.heavy.came_in(id);
                self.items.set(id, State::Waiting);
            }
            (State::Unsure, Known::Unknown | Known::Withdrawn | Known::Unsigned(_)) => self.is_not_there(id, now),
            (State::Back | State::Leftover | State::Parted, Known::Unknown) => self.items.remove(id),
            (State::Back | State::Parted, Known::Withdrawn) => {
                self.remember(id, |until| State::Gone { until }, now + self.bounds.forget_after);
            }
            _ => {}
        }
    }

    /// The queue's answer to the wish to have an item back; false: a worker has it.
    pub fn withdrawn(&mut self, id: &str, is_out: bool) {
        match self.items.get(id) {
            // Out of the queue is what was completed, too: the queue's next answer tells. A leased one is asked for again soon.
            Some(State::Back | State::Parted | State::Recalled | State::Reviving | State::Overdue) if is_out => self.ask_soon.push(id),
            Some(State::Reviving | State::Overdue) => drop(self.items.set(id, State::Waiting)),
            Some(State::Recalled) => self.is_leased(id),
            Some(State::Back | State::Parted) => self.is_held(id),
            _ => {}
        }
    }

    /// What became of an item that has come to its end, and that the queue had again.
    pub fn ended_there(&mut self, id: &str, ending: Ending) {
        if self.items.get(id) == Some(State::Leftover) {
            match ending {
                Ending::Out => self.ask_soon.push(id),
                Ending::Leased => self.is_held(id),
                // Somebody delivers it, and it is nothing to this node.
                Ending::Stays => self.items.remove(id),
            }
        }
    }

    /// Records to be replaced by this node's signed word that it has the mail. It may have found out meanwhile that another has.
    pub(super) fn next_to_refuse(&mut self) -> Option<Vec<(String, Vec<u8>)>> {
        while !self.unproven.is_empty() {
            let count = self.unproven.len().min(ITEMS_PER_CALL);
            let records = self.unproven.drain(..count).filter(|(id, _)| self.items.get(id).is_some_and(State::is_this_nodes));
            let records: Vec<_> = records.collect();
            if !records.is_empty() {
                return Some(records);
            }
        }
        None
    }

    /// The record that was not believed is gone; false: another has taken its place.
    pub fn refused_record(&mut self, id: &str, is_gone: bool, now: BootTime) {
        match self.items.get(id) {
            Some(_) if is_gone => self.known(id, &Known::Withdrawn, now),
            Some(State::Sending { .. } | State::Settling { .. } | State::Settled { .. }) | None => {}
            Some(_) => self.ask_soon.push(id),
        }
    }

    /// The queue has forgotten it, or had; false: it gave no answer.
    pub fn forgotten(&mut self, id: &str, is_answered: bool, now: BootTime) {
        let again_at = now + self.bounds.reconcile_every;
        match self.items.get(id) {
            Some(State::Freeing) if is_answered => {
                self.items.set(id, State::Unsure);
                self.offer.push_back(id.to_owned());
            }
            Some(State::Freeing) => self.unheard(vec![id.to_owned()]),
            Some(State::Settled { .. } | State::Gone { .. }) if is_answered => {
                self.items.remove(id);
                self.has_room(id);
            }
            Some(State::Settled { .. }) => self.remember(id, |until| State::Settled { until }, again_at),
            Some(State::Gone { .. }) => self.remember(id, |until| State::Gone { until }, again_at),
            _ => {}
        }
    }

    /// The queue's data in a partition has this generation: another than before means that it was lost, or is that of another time. True: it is
    /// another.
    pub fn generation(&mut self, partition: u16, generation: &str, now: BootTime) -> bool {
        let before = self.generations.insert(partition, generation.to_owned());
        let is_another = before.is_some_and(|before| before != generation);
        if is_another {
            self.ask_all_at = self.ask_all_at.min(now);
        }
        is_another
    }

    /// Since when Valkey does not answer, or a part of it.
    pub fn away_since(&self) -> Option<BootTime> {
        self.outages.first()
    }

    /// Since when all of it does not.
    pub fn all_away_since(&self) -> Option<BootTime> {
        self.outages.all_since()
    }

    /// How many partitions do not answer.
    pub fn partitions_away(&self) -> usize {
        self.outages.count()
    }

    /// Since when a partition does not answer.
    pub fn is_away(&self, partition: u16) -> Option<BootTime> {
        self.outages.since(partition)
    }

    /// A partition does not answer, or takes nothing. True: since now.
    pub fn away(&mut self, partition: u16, now: BootTime) -> bool {
        self.outages.begin(partition, now)
    }

    /// A partition answers and takes mail. True: it was away for so long that nodes may have begun to deliver what they had offered, this one or another
    /// that saw it go a little earlier; then all of its items are asked for, and nobody is to lease before owners have taken back theirs.
    /// After a call that came late only what was not answered is repeated.
    pub fn returned(&mut self, partition: u16, now: BootTime) -> bool {
        let Some(since) = self.outages.end(partition) else { return false };
        let was_long = now.since(since) >= self.bounds.lease_ttl;
        let repeated = self.unheard.remove(&partition).unwrap_or_default();
        if was_long {
            self.go_round_of(partition);
        } else {
            repeated.into_iter().for_each(|id| self.look_after(id));
        }
        was_long
    }

    /// Messages may have been missed: everything is asked for.
    pub fn missed(&mut self, now: BootTime) {
        self.ask_all_at = self.ask_all_at.min(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::offer::{OfferBounds, Sending, Todo, sample_bounds::SAMPLE_BOUNDS};

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    fn waiting(delivers: bool) -> Offers {
        let bounds = OfferBounds { open_max: 2, ..SAMPLE_BOUNDS };
        let mut offers = Offers::new(bounds, delivers, at(0));
        offers.sending("a");
        offers.enqueued("a", Enqueued::Added);
        offers
    }

    fn refusing(offers: &mut Offers) {
        let record = b"t\nn1\nn9 0001".to_vec();
        offers.known("a", &Known::Unproven(record.clone()), at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::Refuse(vec![("a".to_owned(), record)])));
    }

    /// It was delivered here as soon as it was dead, and by the worker that leased it because of a `requeue` before it had left the queue, too.
    #[test]
    fn a_dead_letter_is_delivered_here_once_it_has_left_the_queue_and_not_where_a_worker_has_it_again() {
        let one = || vec!["a".to_owned()];
        let dead = || {
            let mut offers = waiting(true);
            offers.known("a", &Known::Dead, at(1));
            assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(one())));
            offers
        };
        let mut leased = dead();
        leased.withdrawn("a", false);
        assert_eq!(leased.poll(at(2)), None, "the worker's word is waited for");
        leased.known("a", &Known::Completed("n2 0001".to_owned()), at(2));
        assert_eq!(leased.poll(at(2)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));
        let mut out = dead();
        out.withdrawn("a", true);
        assert_eq!(out.poll(at(1)), Some(Todo::Ask(one())));
        out.known("a", &Known::Withdrawn, at(1));
        assert_eq!(out.poll(at(1)), Some(Todo::TakeBack(one())));
    }

    /// The queue remembers for a minute that the node had it itself, and takes it no second time meanwhile.
    #[test]
    fn what_a_node_took_itself_is_offered_again_where_it_is_emptied() {
        let mut offers = waiting(true);
        offers.known("a", &Known::Completed(format!("{OWN_AGAIN} n1")), at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::TakeBack(vec!["a".to_owned()])));
        assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(vec!["a".to_owned()])));
        offers.withdrawn("a", true);
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(vec!["a".to_owned()])));
        offers.known("a", &Known::Completed(format!("{OWN_AGAIN} n1")), at(1));
        assert_eq!(offers.sending("a"), Sending::TakeBack);
        offers.empty();
        assert_eq!(offers.sending("a"), Sending::Leave);
        assert_eq!(offers.poll(at(2)), Some(Todo::Forget(vec!["a".to_owned()])));
        offers.forgotten("a", true, at(2));
        assert_eq!(offers.poll(at(2)), Some(Todo::Offer(vec!["a".to_owned()])));
        assert_eq!(offers.sending("a"), Sending::Send);
    }

    #[test]
    fn what_workers_with_its_owners_key_cannot_read_leaves_the_queue_and_is_offered_again() {
        for delivers in [true, false] {
            let mut offers = waiting(delivers);
            offers.known("a", &Known::Unreadable, at(1));
            assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(vec!["a".to_owned()])));
            offers.withdrawn("a", true);
            assert_eq!(offers.poll(at(1)), Some(Todo::Ask(vec!["a".to_owned()])));
            offers.known("a", &Known::Unsigned(Vec::new()), at(1));
            assert_eq!(offers.poll(at(1)), Some(Todo::Offer(vec!["a".to_owned()])));
            assert_eq!(offers.sending("a"), Sending::Send);
        }
        // What is wanted back is taken back as anything that waits.
        let mut offers = waiting(true);
        offers.recalled("a");
        assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(vec!["a".to_owned()])));
        offers.known("a", &Known::Unreadable, at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(vec!["a".to_owned()])));
    }

    /// The owner settled what nobody had taken over.
    #[test]
    fn an_item_with_a_forged_completion_is_offered_again() {
        for delivers in [true, false] {
            let mut offers = waiting(delivers);
            refusing(&mut offers);
            assert_eq!(offers.poll(at(1)), None);
            offers.refused_record("a", true, at(1));
            assert_eq!(offers.poll(at(1)), Some(Todo::Offer(vec!["a".to_owned()])));
            assert_eq!(offers.sending("a"), Sending::Send);
        }
    }

    #[test]
    fn a_record_that_took_the_place_of_a_forged_one_is_asked_for() {
        let mut offers = waiting(true);
        refusing(&mut offers);
        offers.refused_record("a", false, at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(vec!["a".to_owned()])));
        offers.known("a", &Known::Completed("n2 0001".to_owned()), at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));
    }

    #[test]
    fn what_is_wanted_back_is_out_once_its_forged_completion_is() {
        let mut offers = waiting(false);
        offers.recalled("a");
        assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(vec!["a".to_owned()])));
        offers.withdrawn("a", true);
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(vec!["a".to_owned()])));
        refusing(&mut offers);
        offers.refused_record("a", true, at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::Tell(vec![("a".to_owned(), Recall::Out)])));
    }

    #[test]
    fn a_refusal_that_nobody_answered_is_repeated() {
        let mut offers = waiting(true);
        refusing(&mut offers);
        offers.unheard(vec!["a".to_owned()]);
        assert_eq!(offers.poll(at(10)), Some(Todo::Ask(vec!["a".to_owned()])), "and found again");
    }

    /// A worker has taken it over, and the owner has settled that, but for the disk's last word.
    fn settling() -> Offers {
        let mut offers = waiting(true);
        offers.known("a", &Known::Completed("n2 0001".to_owned()), at(1));
        assert!(matches!(offers.poll(at(1)), Some(Todo::Settle(_))));
        offers
    }

    /// Valkey went back in time while the owner's disk was not done: the look for such items passed it over and was not repeated, and another worker
    /// delivered the mail a second time.
    #[test]
    fn what_the_queue_has_again_leaves_it_once_it_is_settled_for_good() {
        let mut offers = settling();
        offers.orphan("a");
        assert_eq!(offers.poll(at(1)), None, "not before");
        offers.not_settled("a", "n2 0001".to_owned(), at(1));
        assert!(matches!(offers.poll(at(11)), Some(Todo::Settle(_))));
        offers.settled("a", at(11));
        assert_eq!(offers.poll(at(11)), Some(Todo::End(vec!["a".to_owned()])));
        offers.ended_there("a", Ending::Out);
        assert_eq!(offers.poll(at(11)), Some(Todo::Ask(vec!["a".to_owned()])));
        offers.known("a", &Known::Withdrawn, at(11));
        assert_eq!(offers.poll(at(12)), None);
    }

    /// The owner had settled with a worker, and signed all the same that it had taken the mail back: for a worker of a version whose tokens do
    /// not say when an item was enqueued that was the word to drop the last copy.
    #[test]
    fn of_mail_that_another_has_nothing_is_signed() {
        let record = || Known::Unproven(b"t\nn1\nn9 0001".to_vec());
        let mut offers = settling();
        offers.orphan("a");
        offers.settled("a", at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::End(vec!["a".to_owned()])));
        offers.ended_there("a", Ending::Out);
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(vec!["a".to_owned()])));
        offers.known("a", &record(), at(1));
        assert_eq!(offers.poll(at(2)), None);

        // A proof that comes before the signature.
        let mut offers = waiting(true);
        offers.known("a", &record(), at(1));
        offers.known("a", &Known::Completed("n2 0001".to_owned()), at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));
        assert_eq!(offers.poll(at(1)), None);
    }
}
