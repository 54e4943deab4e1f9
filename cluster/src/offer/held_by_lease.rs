//! What is to leave the queue and was leased when that was asked: perhaps by a call whose answer no worker has heard, and then until the lease ends and the
//! next worker has it. It is asked again until then, so that this node is there before that worker. What is held for longer than a lease lasts, as where
//! the queue has another owner's item under that name, is asked for at growing gaps, and behind the others: however many there are of it, it takes no turn
//! from what a lease of this moment holds.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use super::{Offers, State, items::WALK_ITEMS, soon::Soon};
use crate::{boot_time::BootTime, work_queue::IDS_PER_CALL};

/// One call's worth so often: a lease that has ended is swept within half a second, and may wait as long again before another has it.
const AGAIN_EVERY: Duration = Duration::from_millis(100);

/// Those of one node; no more than it has items.
#[derive(Debug, Default)]
pub(super) struct HeldByLease {
    items: Soon,
    /// Those that were held for longer than a lease lasts, and whose turn has come: behind the others.
    for_long: Soon,
    /// `None`: the next poll says when.
    again_at: Option<BootTime>,
    asked: HashMap<String, Asked>,
    /// Those whose turn comes later than that of the others, by when.
    later: BTreeSet<(BootTime, String)>,
}

/// When an item was asked for again.
#[derive(Clone, Copy, Debug)]
struct Asked {
    first: BootTime,
    last: BootTime,
}

impl Asked {
    fn so_far(self) -> Duration {
        self.last.since(self.first)
    }
}

impl HeldByLease {
    /// When some are asked for again; the distant past: a poll has not looked yet.
    pub(super) fn next_due(&self) -> Option<BootTime> {
        let soon = (!self.is_idle()).then(|| self.again_at.unwrap_or_default());
        soon.into_iter().chain(self.later.first().map(|(due, _)| *due)).min()
    }

    /// Nobody's turn has come.
    fn is_idle(&self) -> bool {
        self.items.is_empty() && self.for_long.is_empty()
    }

    /// The next in its turn.
    fn next(&mut self) -> Option<String> {
        self.items.pop().or_else(|| self.for_long.pop())
    }

    /// A worker has it. A lease ends within `lease`.
    fn push(&mut self, id: &str, lease: Duration) {
        let is_for_long = self.asked.get(id).is_some_and(|asked| asked.so_far() >= lease);
        if is_for_long { self.for_long.push(id) } else { self.items.push(id) }
    }

    /// Whether an item is to be asked for now; if not it comes later. A lease ends within `lease`; from then on each gap is as long as all before it
    /// together, `gap_max` at most.
    fn is_due(&mut self, id: &str, now: BootTime, lease: Duration, gap_max: Duration) -> bool {
        let asked = self.asked.entry(id.to_owned()).or_insert(Asked { first: now, last: now });
        let so_far = asked.so_far();
        let due = if so_far < lease { asked.last } else { asked.last + so_far.min(gap_max) };
        if now < due {
            self.later.insert((due, id.to_owned()));
            return false;
        }
        asked.last = now;
        true
    }

    /// What is held no more is forgotten.
    pub(super) fn retain(&mut self, is_held: impl Fn(&str) -> bool) {
        self.asked.retain(|id, _| is_held(id));
        self.later.retain(|(_, id)| is_held(id));
    }
}

impl Offers {
    /// A worker has an item that this node delivers, or has delivered.
    pub(super) fn is_held(&mut self, id: &str) {
        self.held.push(id, self.bounds.lease_ttl + self.bounds.guard);
    }

    /// Asks again, a call's worth at a time.
    pub(super) fn ask_for_held(&mut self, now: BootTime) {
        while self.held.later.first().is_some_and(|(due, _)| now >= *due) {
            let (_, id) = self.held.later.pop_first().expect("it was looked at");
            self.held.for_long.push(&id);
        }
        if self.held.is_idle() {
            self.held.again_at = None;
            return;
        }
        let again_at = *self.held.again_at.get_or_insert(now + AGAIN_EVERY);
        if now >= again_at {
            self.held.again_at = Some(now + AGAIN_EVERY);
            let (lease, gap_max) = (self.bounds.lease_ttl + self.bounds.guard, self.bounds.reconcile_every);
            let (mut looks, mut asked) = (WALK_ITEMS, 0);
            while looks > 0
                && asked < IDS_PER_CALL
                && let Some(id) = self.held.next()
            {
                looks -= 1;
                // What has another state by now is seen to elsewhere.
                if self.items.get(&id).is_some_and(State::can_be_held) && self.held.is_due(&id, now, lease, gap_max) {
                    self.look_after(id);
                    asked += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        offer::{Todo, sample_bounds::SAMPLE_BOUNDS},
        work_queue::{Ending, Known},
    };

    fn at(millis: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(100_000 + millis))
    }

    fn offers() -> Offers {
        Offers::new(SAMPLE_BOUNDS, true, at(0))
    }

    /// Leased by a call whose answer was lost, it was not asked for again within ten seconds: the lease ended, and the next worker delivered what its owner
    /// had delivered long before.
    #[test]
    fn what_its_owner_has_delivered_leaves_the_queue_when_the_lease_that_held_it_ends() {
        let mut offers = offers();
        offers.keeps("a");
        let withdraw = || Some(Todo::Withdraw(vec!["a".to_owned()]));
        assert_eq!(offers.poll(at(0)), withdraw());
        for tenth in 0..30 {
            offers.withdrawn("a", false);
            assert_eq!(offers.poll(at(tenth * 100)), None, "not at once");
            assert_eq!(offers.next_due(), at(tenth * 100 + 100));
            assert_eq!(offers.poll(at(tenth * 100 + 100)), withdraw());
        }
        offers.withdrawn("a", true);
        assert_eq!(offers.poll(at(3000)), Some(Todo::Ask(vec!["a".to_owned()])));
        offers.known("a", &Known::Unknown, at(3000));
        assert_eq!(offers.poll(at(3200)), None);
        assert_eq!(offers.next_due(), at(10_000), "the next round");
    }

    /// The queue had another owner's item under that name: it was asked for ten times a second, for ever.
    #[test]
    fn what_is_held_for_longer_than_a_lease_is_asked_for_more_and_more_seldom() {
        let mut offers = offers();
        offers.keeps("a");
        let mut asked = Vec::new();
        for tenth in 0..1200 {
            while let Some(Todo::Withdraw(ids)) = offers.poll(at(tenth * 100)) {
                assert_eq!(ids, ["a"]);
                offers.withdrawn("a", false);
                asked.push(tenth);
            }
        }
        let within = |tenths: std::ops::Range<u64>| asked.iter().filter(|tenth| tenths.contains(tenth)).count();
        assert!(within(0..41) >= 40, "as long as the lease may last: {asked:?}");
        assert!(within(41..200) < 8 && within(200..1200) <= 21, "each round asks as well: {asked:?}");
        // It is forgotten with the item.
        offers.withdrawn("a", true);
        offers.known("a", &Known::Unknown, at(120_000));
        while offers.poll(at(130_000)).is_some() {}
        assert!(offers.held.asked.is_empty() && offers.held.later.is_empty());
    }

    #[test]
    fn what_was_settled_and_is_leased_again_is_asked_for_until_the_lease_ends() {
        let mut offers = offers();
        offers.orphan("a");
        let end = || Some(Todo::End(vec!["a".to_owned()]));
        assert_eq!(offers.poll(at(0)), end());
        offers.ended_there("a", Ending::Leased);
        assert_eq!((offers.poll(at(0)), offers.poll(at(100))), (None, end()));
        offers.ended_there("a", Ending::Stays);
        assert_eq!(offers.poll(at(300)), None);
    }

    #[test]
    fn many_are_asked_for_a_call_at_a_time() {
        let mut offers = offers();
        (0..300).for_each(|number| offers.keeps(&number.to_string()));
        let asked = |offers: &mut Offers, millis| {
            let mut count = 0;
            while let Some(Todo::Withdraw(ids)) = offers.poll(at(millis)) {
                ids.iter().for_each(|id| offers.withdrawn(id, false));
                count += ids.len();
            }
            count
        };
        assert_eq!(
            [0, 0, 100, 150, 200, 300].map(|millis| asked(&mut offers, millis)),
            [300, 0, IDS_PER_CALL, 0, IDS_PER_CALL, IDS_PER_CALL]
        );
    }

    /// Six thousand that were held for long, as by another owner's items, took their turns with the others: after each round what a worker had just leased was
    /// not asked for within five seconds, longer than its lease, and the next worker had it.
    #[test]
    fn what_a_lease_of_this_moment_holds_is_asked_for_before_what_is_held_for_long() {
        let mut offers = offers();
        let asked = |offers: &mut Offers, tenth: u64| {
            let mut asked = Vec::new();
            while let Some(Todo::Withdraw(ids)) = offers.poll(at(tenth * 100)) {
                ids.iter().for_each(|id| offers.withdrawn(id, false));
                asked.extend(ids);
            }
            asked
        };
        (0..6000).for_each(|number| offers.keeps(&number.to_string()));
        // A minute, at the end of which a round begins.
        (0..=600).for_each(|tenth| drop(asked(&mut offers, tenth)));
        offers.keeps("leased");
        assert!(asked(&mut offers, 600).contains(&"leased".to_owned()));
        let (mut with, mut all) = (0, BTreeSet::new());
        for tenth in 601..640 {
            let ids = asked(&mut offers, tenth);
            assert!(ids.len() <= IDS_PER_CALL);
            with += usize::from(ids.contains(&"leased".to_owned()));
            all.extend(ids);
        }
        assert_eq!(with, 39, "each time");
        assert!(all.len() > 1000, "and the others have what is left of each call: {}", all.len());
    }
}
