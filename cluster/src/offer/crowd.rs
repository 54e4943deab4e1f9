//! What a partition had no room for, of a node that does not deliver: a few are offered now and then, and two for each that comes in, so that room
//! is found soon and filled fast, and a queue that stays full costs little. What was completed holds its place until its owner has settled it, so
//! a completion says nothing of room.

use std::{collections::BTreeMap, time::Duration};

use super::{Offers, State, soon::Soon};
use crate::{boot_time::BootTime, work_queue::IDS_PER_CALL};

/// How often a few are offered without a word that there is room: as often as places of what was completed are swept.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So many: each costs a read from the spool, and a call's bytes.
const LOOKED_WITH: usize = 4;
/// For each that came in.
const MORE_OFFERED: usize = 2;

/// By partition; no more than items are open.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    partitions: BTreeMap<u16, Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    items: Soon,
    /// So many are to be offered.
    room: usize,
    /// `None`: at the next poll it is said when.
    look_at: Option<BootTime>,
}

impl Crowd {
    /// When some are to be offered; the distant past: a poll has not looked yet.
    pub(super) fn next_due(&self) -> Option<BootTime> {
        self.partitions
            .values()
            .map(|waiting| if waiting.room > 0 { BootTime::default() } else { waiting.look_at.unwrap_or_default() })
            .min()
    }
}

impl Offers {
    /// The queue has no room for an item.
    pub(super) fn crowded(&mut self, id: &str) {
        self.items.set(id, State::Unsure);
        let waiting = self.crowd.partitions.entry(self.outages.partition(id)).or_default();
        waiting.items.push(id);
        waiting.room = 0;
    }

    /// An item found room in its partition, or what was completed gave its place.
    pub(super) fn has_room(&mut self, id: &str) {
        if let Some(waiting) = self.crowd.partitions.get_mut(&self.outages.partition(id)) {
            waiting.room = (waiting.room + MORE_OFFERED).min(IDS_PER_CALL);
        }
    }

    /// Puts those that may find room beside the others that are offered.
    pub(super) fn offer_crowd(&mut self, now: BootTime) {
        let offer = &mut self.offer;
        self.crowd.partitions.retain(|_, waiting| {
            let look_at = *waiting.look_at.get_or_insert(now + LOOK_EVERY);
            if now >= look_at {
                waiting.room = waiting.room.max(LOOKED_WITH);
            }
            if waiting.room > 0 {
                waiting.look_at = Some(now + LOOK_EVERY);
                // What has another state by then is left out there.
                offer.extend(waiting.items.take(std::mem::take(&mut waiting.room)).into_iter().flatten());
            }
            !waiting.items.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        offer::{Sending, Todo, sample_bounds::SAMPLE_BOUNDS},
        work_queue::{Enqueued, Known},
    };

    fn at(millis: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(100_000 + millis))
    }

    fn front() -> Offers {
        Offers::new(SAMPLE_BOUNDS, false, at(0))
    }

    /// What is offered now, each taken in as long as there is room.
    fn offered(offers: &mut Offers, now: BootTime, room: &mut usize) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(todo) = offers.poll(now) {
            let ids = match todo {
                Todo::Offer(ids) => ids,
                Todo::Ask(_) | Todo::Settle(_) => continue,
                other => panic!("{other:?}"),
            };
            for id in &ids {
                assert_eq!(offers.sending(id), Sending::Send);
                offers.enqueued(id, if *room > 0 { Enqueued::Added } else { Enqueued::Full });
                *room = room.saturating_sub(1);
            }
            all.extend(ids);
        }
        all
    }

    /// A front end's mail waited for the next round, ten seconds, while the queue was empty and workers had nothing to do.
    #[test]
    fn what_the_queue_had_no_room_for_is_offered_as_soon_as_there_is_some() {
        let mut offers = front();
        for number in 100..400 {
            let id = number.to_string();
            assert_eq!(offers.sending(&id), Sending::Send);
            offers.enqueued(&id, if number < 103 { Enqueued::Added } else { Enqueued::Full });
        }
        assert_eq!(offered(&mut offers, at(0), &mut 0), Vec::<String>::new());
        assert_eq!(offers.next_due(), at(500));
        assert_eq!(offered(&mut offers, at(499), &mut 9), Vec::<String>::new());
        assert_eq!(offered(&mut offers, at(500), &mut 0), ["103", "104", "105", "106"], "others may have made room, and have not");
        // The place of one that was completed is given back.
        offers.done("100");
        offers.known("100", &Known::Completed("n2 x".into()), at(550));
        offers.settled("100", at(560));
        assert_eq!(offered(&mut offers, at(600), &mut 9), Vec::<String>::new(), "its record has the place yet");
        offers.forgotten("100", true, at(700));
        assert_eq!(offered(&mut offers, at(700), &mut 1), ["107", "108"], "two are tried for it, and one comes in");
        assert!(offered(&mut offers, at(1200), &mut 1000).len() > 200, "room is found as fast as answers come");
        assert!(offers.crowd.partitions.is_empty() && offers.next_due() > at(2000));
    }
}
