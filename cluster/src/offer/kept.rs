//! Mail that a start found on its disk and delivers itself, and that an earlier run may have offered: it leaves the queue, if it is there. It can be all of a
//! long queue, of which most never was there, so only a part of it is seen to at a time; the rest waits in its shards.

use super::{Offers, State, items::Counts};
use crate::boot_time::BootTime;

/// So much is on its way out of the queue, with some 300 bytes each, and two calls for each 128 of them.
const KEPT_MAX: usize = 4096;
/// So much is on its way back to its shards at a time.
const RECALLED_MAX: usize = 4096;
/// Together with what is out and looked for once more, with the next round: 15 MB.
const PARTED_MAX: usize = 50_000;

/// A shard's wait until it may tell of more that it wants back. It goes on while anything moves, and ends behind two rounds in which nothing has: a
/// partition that answers and refuses what it is asked keeps what it has, and the others are not to wait for that.
#[derive(Clone, Copy, Debug)]
pub struct RecallWait {
    /// What was on its way and what was out, when it was looked at last.
    seen: (usize, usize),
    changed_at: BootTime,
}

impl RecallWait {
    /// From now on.
    pub fn new(offers: &Offers, now: BootTime) -> RecallWait {
        RecallWait { seen: offers.on_the_way_back(), changed_at: now }
    }

    /// Whether it is over, by one more look.
    pub fn is_over(&mut self, offers: &Offers, now: BootTime) -> bool {
        let (before, seen) = (self.seen, offers.on_the_way_back());
        // What other shards tell of moves nothing: each would have the others begin anew.
        if seen.0 < before.0 || seen.1 != before.1 {
            self.changed_at = now;
        }
        self.seen = seen;
        offers.takes_recalls() || now.since(self.changed_at) >= 2 * offers.bounds.reconcile_every
    }
}

impl Offers {
    /// Whether shards are to tell of more such mail.
    pub fn takes_kept(&self) -> bool {
        self.items.counts().back < KEPT_MAX
    }

    fn on_the_way_back(&self) -> (usize, usize) {
        let Counts { recalled, parted, .. } = self.items.counts();
        (recalled, parted)
    }

    /// Whether shards are to tell of more that they want back: after a drain that was cut short that is all mail of a long queue, of which most never was
    /// there. With Valkey away what is out by that is delivered, however much of it is to be looked for later.
    pub fn takes_recalls(&self) -> bool {
        let (recalled, parted) = self.on_the_way_back();
        recalled < RECALLED_MAX && (self.outages.any() || recalled + parted < PARTED_MAX)
    }

    /// A shard delivers this itself, but an earlier run may have offered it. What this run has offered since the shard found it stays offered.
    pub fn keeps(&mut self, id: &str) {
        if self.items.get(id).is_none() {
            self.items.set(id, State::Back);
            self.withdraw.push_back(id.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        offer::{Todo, sample_bounds::SAMPLE_BOUNDS},
        work_queue::{Enqueued, ITEMS_PER_CALL, Known},
    };

    const KEPT: usize = 50_000;
    /// What is on its way, all that a shard tells at a time, and what is offered.
    const ITEMS_MAX: usize = KEPT_MAX + ITEMS_PER_CALL + 1;

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    /// Does what there is to do where the queue has none of what is asked for: of how many a shard was told by it that they are out. None: nothing.
    fn work(offers: &mut Offers, now: BootTime) -> Option<usize> {
        match offers.poll(now)? {
            Todo::Withdraw(ids) => ids.iter().for_each(|id| offers.withdrawn(id, true)),
            Todo::Ask(ids) => ids.iter().for_each(|id| offers.known(id, &Known::Unknown, now)),
            Todo::Tell(answers) => return Some(answers.len()),
            other => panic!("{other:?}"),
        }
        Some(0)
    }

    /// A node that was killed while a million mails were being handed over had an entry for each at its next start, and shards and workers waited for calls
    /// about all of them.
    #[test]
    fn a_long_queue_that_is_wanted_back_takes_little_memory_and_comes_back_whole() {
        const WANTED: usize = 70_000;
        let mut offers = Offers::new(SAMPLE_BOUNDS, true, at(0));
        let (mut told, mut out, mut most, mut now) = (0, 0, 0, at(1));
        while out < WANTED {
            while told < WANTED && offers.takes_recalls() {
                (told..(told + 512).min(WANTED)).for_each(|number| offers.recalled(&format!("wanted-{number}")));
                told = (told + 512).min(WANTED);
            }
            most = most.max(offers.items.len());
            match work(&mut offers, now) {
                Some(told) => out += told,
                None => now = offers.next_due().max(now),
            }
        }
        assert_eq!((told, out), (WANTED, WANTED), "each once");
        assert!(most <= PARTED_MAX + 512, "{most}");
    }

    /// Half a second without room was waited for, and a round of so much lasts for some seconds, after up to ten until it begins: each shard told of 512 more
    /// each half second.
    #[test]
    fn shards_tell_of_no_more_than_the_bound_while_a_round_lasts() {
        const WANTED: usize = 60_000;
        const SHARDS: usize = 4;
        let mut offers = Offers::new(SAMPLE_BOUNDS, true, at(0));
        let (mut told, mut out, mut most, mut now) = (0, 0, 0, at(1));
        let mut waits = [RecallWait::new(&offers, now); SHARDS];
        while out < WANTED {
            for wait in &mut waits {
                if told < WANTED && wait.is_over(&offers, now) {
                    (told..(told + 512).min(WANTED)).for_each(|number| offers.recalled(&format!("wanted-{number}")));
                    told = (told + 512).min(WANTED);
                    *wait = RecallWait::new(&offers, now);
                }
            }
            most = most.max(offers.items.len());
            out += work(&mut offers, now).unwrap_or(0);
            // Of each call, or until the next look.
            now = now + Duration::from_millis(20);
        }
        assert!(most <= PARTED_MAX + SHARDS * 512, "{most}");
    }

    /// Where a partition refuses what it is asked nothing moves.
    #[test]
    fn a_wait_for_room_ends_behind_two_rounds_without_change() {
        let mut offers = Offers::new(SAMPLE_BOUNDS, true, at(0));
        (0..RECALLED_MAX).for_each(|number| offers.recalled(&format!("wanted-{number}")));
        let mut wait = RecallWait::new(&offers, at(1));
        assert!([1, 11, 20].iter().all(|now| !wait.is_over(&offers, at(*now))));
        let mut another = wait;
        // Those of another shard that waited no longer.
        (0..512).for_each(|number| offers.recalled(&format!("another-{number}")));
        assert!(!another.is_over(&offers, at(20)) && another.is_over(&offers, at(21)));
        // One is leased, and not on its way back any more.
        assert!(!wait.is_over(&offers, at(20)));
        let Some(Todo::Withdraw(ids)) = offers.poll(at(20)) else { panic!("nothing is withdrawn") };
        offers.withdrawn(&ids[0], false);
        assert!(!wait.is_over(&offers, at(20)) && !wait.is_over(&offers, at(39)) && wait.is_over(&offers, at(40)));
        // With room there is nothing to wait for.
        assert!(RecallWait::new(&Offers::new(SAMPLE_BOUNDS, true, at(0)), at(1)).is_over(&Offers::new(SAMPLE_BOUNDS, true, at(0)), at(1)));
    }

    /// With Valkey away for long nothing is looked for, and mail goes all the same.
    #[test]
    fn what_is_out_as_valkey_is_away_keeps_no_other_from_coming_back() {
        let mut offers = Offers::new(SAMPLE_BOUNDS, true, at(0));
        (0..SAMPLE_BOUNDS.partitions).for_each(|partition| assert!(offers.away(partition, at(0))));
        let (mut told, mut out) = (0, 0);
        while out < PARTED_MAX + 5000 {
            assert!(offers.takes_recalls() || told > out);
            if offers.takes_recalls() {
                (told..told + 512).for_each(|number| offers.recalled(&format!("wanted-{number}")));
                told += 512;
            }
            match offers.poll(at(60)) {
                Some(Todo::Tell(answers)) => out += answers.len(),
                None => {}
                other => panic!("{other:?} with {out} out"),
            }
        }
    }

    /// It can wait in its shard for seconds, and a drain offers it meanwhile.
    #[test]
    fn what_was_offered_before_its_turn_came_stays_offered() {
        let mut offers = Offers::new(SAMPLE_BOUNDS, true, at(0));
        offers.sending("a");
        offers.enqueued("a", Enqueued::Added);
        offers.keeps("a");
        assert_eq!(offers.poll(at(11)), Some(Todo::Ask(vec!["a".to_owned()])));
    }

    /// A sharing node that started with a million deferred mails had an entry for each, and asked for nothing that workers had completed, nor offered
    /// anything again, until the last of them was out of the queue, in which hardly one of them was.
    #[test]
    fn a_long_queue_of_an_earlier_run_takes_little_memory_and_holds_up_nothing() {
        let mut offers = Offers::new(SAMPLE_BOUNDS, true, at(0));
        offers.sending("offered");
        offers.enqueued("offered", Enqueued::Added);
        let (mut told, mut polls, mut asked_after, mut gone) = (0, 0, None, 0);
        while gone < KEPT {
            while told < KEPT && offers.takes_kept() {
                (told..(told + ITEMS_PER_CALL).min(KEPT)).for_each(|number| offers.keeps(&format!("kept-{number}")));
                told = (told + ITEMS_PER_CALL).min(KEPT);
            }
            assert!(offers.items.len() <= ITEMS_MAX, "{}", offers.items.len());
            if polls == 20 {
                offers.done("offered");
            }
            polls += 1;
            match offers.poll(at(1)) {
                Some(Todo::Withdraw(ids)) => ids.iter().for_each(|id| offers.withdrawn(id, true)),
                Some(Todo::Ask(ids)) => {
                    for id in &ids {
                        if id == "offered" {
                            asked_after = Some(polls - 20);
                        } else {
                            gone += 1;
                            offers.known(id, &Known::Unknown, at(1));
                        }
                    }
                }
                other => panic!("{other:?} with {gone} gone"),
            }
        }
        // Behind those that are on their way.
        assert!(asked_after.is_some_and(|polls| polls <= 3 * KEPT_MAX / 128), "{asked_after:?}");
        assert_eq!(offers.items.len(), 1);
    }
}
