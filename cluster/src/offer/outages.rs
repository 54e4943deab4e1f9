//! Which parts of the queue do not answer, or take nothing, and since when. With Valkey Cluster one can be away while the others are there.

use std::collections::BTreeMap;

use crate::{boot_time::BootTime, work_queue::partition_of};

/// Of one partition.
#[derive(Clone, Copy, Debug)]
struct Outage {
    since: BootTime,
    /// It has lasted for so long that no worker that this node could hear of has what it offered there.
    is_over: bool,
}

/// By partition.
#[derive(Debug)]
pub(super) struct Outages {
    partitions: u16,
    away: BTreeMap<u16, Outage>,
}

impl Outages {
    pub(super) fn new(partitions: u16) -> Outages {
        Outages { partitions, away: BTreeMap::new() }
    }

    pub(super) fn partition(&self, id: &str) -> u16 {
        partition_of(id, self.partitions)
    }

    /// True: one begins.
    pub(super) fn begin(&mut self, partition: u16, now: BootTime) -> bool {
        let begins = !self.away.contains_key(&partition);
        self.away.entry(partition).or_insert(Outage { since: now, is_over: false });
        begins
    }

    /// Returns since when there was one.
    pub(super) fn end(&mut self, partition: u16) -> Option<BootTime> {
        self.away.remove(&partition).map(|outage| outage.since)
    }

    pub(super) fn since(&self, partition: u16) -> Option<BootTime> {
        self.away.get(&partition).map(|outage| outage.since)
    }

    /// The first that began.
    pub(super) fn first(&self) -> Option<BootTime> {
        self.away.values().map(|outage| outage.since).min()
    }

    /// Since when no partition has answered; `None`: one does.
    pub(super) fn all_since(&self) -> Option<BootTime> {
        self.all().then(|| self.away.values().map(|outage| outage.since).max()).flatten()
    }

    pub(super) fn count(&self) -> usize {
        self.away.len()
    }

    /// The first that has not lasted long enough.
    pub(super) fn first_fresh(&self) -> Option<BootTime> {
        self.away.values().filter(|outage| !outage.is_over).map(|outage| outage.since).min()
    }

    pub(super) fn any(&self) -> bool {
        !self.away.is_empty()
    }

    pub(super) fn all(&self) -> bool {
        self.away.len() == usize::from(self.partitions)
    }

    /// An item's partition does not answer.
    pub(super) fn has(&self, id: &str) -> bool {
        self.any() && self.away.contains_key(&self.partition(id))
    }

    /// And has not for long enough.
    pub(super) fn is_over(&self, id: &str) -> bool {
        self.any() && self.away.get(&self.partition(id)).is_some_and(|outage| outage.is_over)
    }

    /// As is that of every item.
    pub(super) fn all_over(&self) -> bool {
        self.all() && self.away.values().all(|outage| outage.is_over)
    }

    /// Those that began then or before, and were not told yet, have lasted long enough from now on.
    pub(super) fn over(&mut self, began: BootTime) -> Vec<u16> {
        let over = self.away.iter_mut().filter(|(_, outage)| !outage.is_over && outage.since <= began);
        over.map(|(partition, outage)| {
            outage.is_over = true;
            *partition
        })
        .collect()
    }
}
