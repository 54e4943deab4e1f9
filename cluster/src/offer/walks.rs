//! What is done with many items at once, a part of it with each call: shards and messages wait for nothing long.

use std::collections::VecDeque;

use super::{
    Offers, Recall, State,
    items::{WALK_ITEMS, Walk},
};
use crate::work_queue::IDS_PER_CALL;

/// Those under way, one partition after another.
#[derive(Debug, Default)]
pub(super) struct Walks {
    /// A round, and what it wants of partitions that are back.
    round: VecDeque<Walk>,
    /// Partitions that have been away for so long that this node delivers what it offered there.
    local: VecDeque<Walk>,
}

impl Walks {
    /// Something is left to do at once.
    pub(super) fn are_due(&self, is_all_away: bool) -> bool {
        !self.local.is_empty() || !self.round.is_empty() && !is_all_away
    }

    pub(super) fn has_round(&self) -> bool {
        !self.round.is_empty()
    }
}

impl Offers {
    /// Of a partition that is away for too long all is delivered here, as [`Offers::go_on_local`] comes to it.
    pub(super) fn go_local(&mut self, partition: u16) {
        self.walks.local.push_back(self.items.walk(partition));
    }

    /// All items are asked for, or what they want is told, as [`Offers::go_on_round`] comes to them.
    pub(super) fn go_round(&mut self) {
        self.walks.round = (0..self.bounds.partitions).map(|partition| self.items.walk(partition)).collect();
    }

    /// The same with those of a partition that is back, first.
    pub(super) fn go_round_of(&mut self, partition: u16) {
        self.walks.local.retain(|walk| walk.partition != partition);
        self.walks.round.retain(|walk| walk.partition != partition);
        self.walks.round.push_front(self.items.walk(partition));
    }

    pub(super) fn go_on_local(&mut self) {
        let is_offered = |state: State| state.is_open() && state != State::Crossing;
        let (mut looks, mut found) = (WALK_ITEMS, Vec::new());
        while looks > 0
            && self.take_back.len() < IDS_PER_CALL
            && let Some(walk) = self.walks.local.front_mut()
        {
            if !self.items.go_on(walk, &mut looks, is_offered, &mut found) {
                self.walks.local.pop_front();
            }
            for id in found.drain(..) {
                self.items.set(&id, State::Back);
                self.take_back.push_back(id);
            }
        }
    }

    /// Not before what it has found so far is on its way.
    pub(super) fn go_on_round(&mut self) {
        let (mut looks, mut found) = (WALK_ITEMS, Vec::new());
        while looks > 0
            && [&self.ask, &self.offer, &self.withdraw, &self.leftover, &self.free].iter().all(|queue| queue.len() < IDS_PER_CALL)
            && let Some(walk) = self.walks.round.front_mut()
        {
            if !self.items.go_on(walk, &mut looks, State::is_asked_about, &mut found) {
                self.walks.round.pop_front();
            }
            found.drain(..).for_each(|id| self.look_after(id));
        }
    }

    /// Of partitions that are away: what is wanted back is out by now, or that cannot be said. Wishes that have their answer are left out.
    pub(super) fn answer_recalls(&mut self) {
        let looks = if self.outages.any() { WALK_ITEMS } else { IDS_PER_CALL };
        for _ in 0..looks.min(self.recalls.len()) {
            let id = self.recalls.pop_front().expect("it has so many");
            if self.items.get(&id) != Some(State::Recalled) {
                continue;
            }
            if self.outages.is_over(&id) {
                self.part(&id);
            } else if self.outages.has(&id) && !self.retracts {
                self.items.set(&id, State::Waiting);
                self.tell.push_back((id, Recall::Unanswered));
            } else {
                self.recalls.push_back(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;
    use crate::{
        boot_time::BootTime,
        offer::{OfferBounds, Todo, sample_bounds::SAMPLE_BOUNDS},
        work_queue::Enqueued,
    };

    const ITEMS: usize = 20_000;
    const PARTITIONS: u16 = 8;

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    fn offered() -> Offers {
        let bounds = OfferBounds { open_max: ITEMS, partitions: PARTITIONS, ..SAMPLE_BOUNDS };
        let mut offers = Offers::new(bounds, true, at(0));
        for number in 0..ITEMS {
            let id = number.to_string();
            offers.sending(&id);
            offers.enqueued(&id, Enqueued::Added);
        }
        offers
    }

    fn count(offers: &Offers, wanted: State) -> usize {
        (0..ITEMS).filter(|number| offers.items.get(&number.to_string()) == Some(wanted)).count()
    }

    /// What the polls of one moment give, until there is nothing more.
    fn all(offers: &mut Offers, now: BootTime) -> Vec<Todo> {
        let mut all = Vec::new();
        loop {
            match offers.poll(now) {
                Some(todo) => all.push(todo),
                None if offers.next_due() > now => return all,
                None => {}
            }
        }
    }

    /// With Valkey away, and on its return, each partition went through all items of all partitions, on the thread that carries messages, and
    /// shards waited for the end of it.
    #[test]
    fn an_outage_of_all_partitions_and_its_end_look_at_a_bounded_number_of_items_in_a_call() {
        let mut offers = offered();
        (0..PARTITIONS).for_each(|partition| assert!(offers.away(partition, at(1))));
        let Some(Todo::TakeBack(first)) = offers.poll(at(5)) else { panic!("nothing is taken back") };
        assert!(first.len() <= IDS_PER_CALL && count(&offers, State::Back) <= WALK_ITEMS);
        let mut taken: HashSet<String> = first.into_iter().collect();
        for todo in all(&mut offers, at(5)) {
            let Todo::TakeBack(ids) = todo else { panic!("{todo:?}") };
            ids.into_iter().for_each(|id| assert!(taken.insert(id), "once"));
        }
        assert_eq!(taken.len(), ITEMS);

        (0..PARTITIONS).for_each(|partition| assert!(offers.returned(partition, at(6))));
        assert!(offers.withdraw.is_empty());
        let Some(Todo::Withdraw(first)) = offers.poll(at(6)) else { panic!("nothing is withdrawn") };
        assert!(first.len() + offers.withdraw.len() <= WALK_ITEMS);
        let mut withdrawn: HashSet<String> = first.into_iter().collect();
        for todo in all(&mut offers, at(6)) {
            let Todo::Withdraw(ids) = todo else { panic!("{todo:?}") };
            ids.into_iter().for_each(|id| assert!(withdrawn.insert(id), "once"));
        }
        assert_eq!(withdrawn.len(), ITEMS);
    }

    #[test]
    fn a_partition_that_is_back_before_its_mail_was_taken_back_keeps_the_rest_offered() {
        let mut offers = offered();
        (0..PARTITIONS).for_each(|partition| assert!(offers.away(partition, at(1))));
        assert!(matches!(offers.poll(at(5)), Some(Todo::TakeBack(_))));
        (0..PARTITIONS).for_each(|partition| assert!(offers.returned(partition, at(6))));
        let back = count(&offers, State::Back);
        let (mut asked, mut withdrawn) = (0, 0);
        for todo in all(&mut offers, at(6)) {
            match todo {
                Todo::Ask(ids) => asked += ids.len(),
                Todo::Withdraw(ids) => withdrawn += ids.len(),
                Todo::TakeBack(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((asked, withdrawn), (ITEMS - back, back));
    }

    #[test]
    fn wishes_without_an_answer_are_looked_through_a_part_at_a_time() {
        let mut offers = offered();
        (0..ITEMS).for_each(|number| offers.recalled(&number.to_string()));
        (0..PARTITIONS).for_each(|partition| assert!(offers.away(partition, at(1))));
        let Some(Todo::Tell(first)) = offers.poll(at(2)) else { panic!("nothing is told") };
        assert!(first.len() <= IDS_PER_CALL && count(&offers, State::Waiting) <= WALK_ITEMS);
        let told = all(&mut offers, at(2)).into_iter().map(|todo| match todo {
            Todo::Tell(answers) => answers.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(first.len() + told.sum::<usize>(), ITEMS);
    }
}
