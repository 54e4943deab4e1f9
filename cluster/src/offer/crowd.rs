//! What a partition had no room for, of a node that does not deliver: it is offered again as room is made, one item for each place that is heard
//! of, and a few now and then, since what others complete nobody tells this node.

use std::{collections::BTreeMap, time::Duration};

use super::{Offers, State, soon::Soon};
use crate::{boot_time::BootTime, work_queue::IDS_PER_CALL};

/// How often a few are offered without a word that there is room.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// By partition; no more than items are open.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    partitions: BTreeMap<u16, Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    items: Soon,
    /// Places that were heard of since it was full.
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

    /// An item has left a partition, or found room there.
    pub(super) fn has_room(&mut self, id: &str) {
        if let Some(waiting) = self.crowd.partitions.get_mut(&self.outages.partition(id)) {
            waiting.room = (waiting.room + 1).min(IDS_PER_CALL);
        }
    }

    /// Puts those that may find room beside the others that are offered.
    pub(super) fn offer_crowd(&mut self, now: BootTime) {
        let offer = &mut self.offer;
        self.crowd.partitions.retain(|_, waiting| {
            let look_at = *waiting.look_at.get_or_insert(now + LOOK_EVERY);
            if now >= look_at {
                waiting.room = IDS_PER_CALL;
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
        offer::{OfferBounds, Sending, Todo},
        work_queue::Enqueued,
    };

    fn at(millis: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(100_000 + millis))
    }

    fn front() -> Offers {
        let second = Duration::from_secs(1);
        let bounds = OfferBounds {
            lease_ttl: 3 * second,
            guard: second,
            reconcile_every: 10 * second,
            forget_after: 30 * second,
            open_max: 1000,
            dead_wait: 300 * second,
            partitions: 1,
        };
        Offers::new(bounds, false, at(0))
    }

    /// What is offered now, each taken in as long as there is room.
    fn offered(offers: &mut Offers, now: BootTime, room: &mut usize) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(todo) = offers.poll(now) {
            let ids = match todo {
                Todo::Offer(ids) => ids,
                Todo::Ask(_) => continue,
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
        // A worker has completed two.
        (100..102).for_each(|number| offers.done(&number.to_string()));
        assert_eq!(offered(&mut offers, at(10), &mut 2), ["103", "104", "105", "106"], "each that comes in has the next one tried");
        assert_eq!(offered(&mut offers, at(509), &mut 0), Vec::<String>::new());
        assert_eq!(offered(&mut offers, at(510), &mut 0).len(), IDS_PER_CALL, "others may have made room");
        assert_eq!(offered(&mut offers, at(1000), &mut 0).len(), 0);
        assert!(offered(&mut offers, at(1010), &mut 1000).len() > 200, "room is found as fast as answers come");
        assert!(offers.crowd.partitions.is_empty() && offers.next_due() > at(2000));
    }
}
