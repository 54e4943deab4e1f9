//! Partitions that have as many items as there may be: said once when that begins and once when it is over, and by this node as long as it lasts.

use std::{collections::BTreeMap, sync::MutexGuard, time::Duration};

use tracing::{info, warn};

use super::WorkQueue;
use crate::boot_time::BootTime;

/// So long after the last item that found no room a partition counts as crowded: items come and go all the time where there are that many.
const CROWDED_FOR: Duration = Duration::from_secs(60);

/// Those that are, by when an item found no room there last, and how often one did since that began: an item that is offered again counts again.
#[derive(Debug, Default)]
pub(super) struct Crowding(BTreeMap<u16, (BootTime, u64)>);

impl Crowding {
    /// So many times an item found no room. True: that is new.
    pub(super) fn turned_away(&mut self, partition: u16, count: u64, now: BootTime) -> bool {
        let is_new = !self.0.contains_key(&partition);
        let (at, sum) = self.0.entry(partition).or_insert((now, 0));
        (*at, *sum) = (now, sum.saturating_add(count));
        is_new
    }

    /// Those in which that is over, with how often an item found no room; each is told once.
    pub(super) fn over(&mut self, now: BootTime) -> Vec<(u16, u64)> {
        let mut over = Vec::new();
        self.0.retain(|partition, (at, count)| {
            let lasts = now.since(*at) < CROWDED_FOR;
            if !lasts {
                over.push((*partition, *count));
            }
            lasts
        });
        over
    }

    /// The partitions, in order.
    pub(super) fn partitions(&self) -> impl Iterator<Item = u16> {
        self.0.keys().copied()
    }
}

impl WorkQueue {
    fn crowding(&self) -> MutexGuard<'_, Crowding> {
        self.crowding.lock().expect("no panic happens under this lock")
    }

    /// The same queue, of whose want of room the log says nothing: whoever enqueues is answered, and it is no mail.
    #[must_use]
    pub(crate) fn untold(self) -> WorkQueue {
        WorkQueue { tells_crowding: false, ..self }
    }

    /// Says that partitions are crowded, and that they are so no longer. So many items of a call found no room in this one.
    pub(super) fn tell_crowding(&self, partition: u16, count: u64) {
        let now = BootTime::now();
        if !self.tells_crowding {
            return;
        }
        if count > 0 && self.crowding().turned_away(partition, count, now) {
            warn!(
                queue = %self.name,
                partition,
                queue_capacity = self.bounds.capacity,
                "a partition of the cluster's queue has cluster.queue_capacity items, and takes no more of this node's: mail is delivered here where this \
                 node delivers, and waits here where it does not. Start more nodes that take mail, or raise cluster.queue_capacity on all nodes and \
                 Valkey's maxmemory with it"
            );
        }
        for (partition, refusals) in self.crowding().over(now) {
            info!(queue = %self.name, partition, refusals, "a partition of the cluster's queue has had room for a minute: so many times an item, perhaps the same one, had found none");
        }
    }

    /// The same, where this partition is one of them.
    pub fn crowded_in(&self, partition: u16) -> Option<String> {
        self.crowded().filter(|_| self.crowding().partitions().any(|crowded| crowded == partition))
    }

    /// That partitions have no room for this node's items, in words for an operator; `None`: all had, for a minute.
    pub fn crowded(&self) -> Option<String> {
        self.tell_crowding(0, 0);
        let partitions: Vec<String> = self.crowding().partitions().map(|partition| partition.to_string()).collect();
        (!partitions.is_empty()).then(|| {
            format!(
                "the cluster's queue has no room for some of its mail: {} of {} partitions have cluster.queue_capacity ({}) items, or had within a minute: {}",
                partitions.len(),
                self.bounds.partitions,
                self.bounds.capacity,
                partitions.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    #[test]
    fn a_partition_is_crowded_from_the_first_item_that_finds_no_room_until_a_minute_after_the_last() {
        let mut crowding = Crowding::default();
        assert!(crowding.turned_away(3, 2, at(0)) && crowding.turned_away(1, 1, at(10)));
        assert!(!crowding.turned_away(3, 5, at(30)), "said before");
        assert_eq!(crowding.partitions().collect::<Vec<_>>(), [1, 3]);
        assert!(crowding.over(at(69)).is_empty());
        assert_eq!(crowding.over(at(70)), [(1, 1)]);
        assert!(crowding.over(at(89)).is_empty());
        assert_eq!(crowding.over(at(90)), [(3, 7)]);
        assert!(crowding.over(at(91)).is_empty() && crowding.partitions().next().is_none());
        assert!(crowding.turned_away(3, 1, at(92)), "it begins anew");
    }
}
