//! What a leader does for the queue of mail: old dead letters leave it, what lost its place is put back, and deaths and damage are told.

use std::{collections::BTreeMap, sync::Mutex};

use ringpost_cluster::{
    identity::Epoch,
    work_queue::{QueueError, QueueStats, WorkQueue},
};
use tracing::warn;

/// Parts of all partitions that are looked through in one round of chores, 64 items each: Valkey takes about 0.3 ms for one, and the rounds come each
/// 5 s, so that it is below 2 % of Valkey's time however many partitions are full.
const PARTS_PER_ROUND: u16 = 256;
/// Of one partition: with the few that are usual its 50,000 items are looked through within some minutes.
const PARTS_OF_ONE: u16 = 16;

/// Where the look through a partition goes on.
pub struct Walk {
    /// For items without a place.
    cursor: String,
    /// For dead letters that are old.
    offset: u64,
}

/// Of each partition that is not looked through whole.
pub type Walks = BTreeMap<u16, Walk>;

/// Looks through the next parts of a partition, and says how many dead letters were removed. Err(epoch): another leads.
pub async fn tidy(
    queue: &WorkQueue,
    partition: u16,
    epoch: Epoch,
    kept_ms: u64,
    walks: &Mutex<Walks>,
) -> Result<Result<u64, Epoch>, QueueError> {
    let held = || walks.lock().expect("no panic happens under this lock");
    let mut walk = held().remove(&partition).unwrap_or_else(|| Walk { cursor: "0".to_owned(), offset: 0 });
    let removed = match queue.retire(partition, epoch, kept_ms, walk.offset).await? {
        Ok((removed, next)) => {
            walk.offset = next;
            removed
        }
        Err(epoch) => return Ok(Err(epoch)),
    };
    for _ in 0..parts_of_one(queue.bounds().partitions) {
        match queue.restore(partition, epoch, &walk.cursor).await? {
            Ok((next, _)) => walk.cursor = next,
            Err(epoch) => return Ok(Err(epoch)),
        }
        if walk.cursor == "0" {
            break;
        }
    }
    held().insert(partition, walk);
    Ok(Ok(removed))
}

/// Each of so many partitions has its turn in each round, so that none waits for the others; there are 256 at most.
fn parts_of_one(partitions: u16) -> u16 {
    (PARTS_PER_ROUND / partitions.max(1)).clamp(1, PARTS_OF_ONE)
}

/// What the queue counted of its dead letters, and of damaged items, when it was looked at last.
#[derive(Default)]
pub struct Deaths {
    counted: Option<[u64; 3]>,
}

impl Deaths {
    /// Warns of items that died since, and of those for which there was no room. What was before the first look is another leader's.
    pub fn look(&mut self, stats: &QueueStats) {
        let [died, turned_away, damaged] = self.since_last(stats);
        if damaged > 0 {
            let item = stats.damaged_last.as_deref().unwrap_or_default();
            warn!(
                damaged,
                item,
                "items of the work queue could not be read, or had lost their content, and left it: their owners offer them again; the last is named"
            );
        }
        if died > 0 {
            warn!(died, dead = stats.failed, "items of the work queue became dead letters: see `ringpost cluster queue dead`");
        }
        if turned_away > 0 {
            warn!(
                turned_away,
                dead = stats.failed,
                "the dead letters of a partition are cluster.dead_letters_max: further ones wait beside them, and are looked at each minute; \
                 requeue or purge some"
            );
        }
    }

    /// Dead letters, those that were turned away, damaged items.
    fn since_last(&mut self, stats: &QueueStats) -> [u64; 3] {
        // What a partition has counted for long is not new when it answers again.
        if !stats.unanswered.is_empty() {
            return [0; 3];
        }
        let now = ["died", "dead_full", "damaged"].map(|name| stats.counters.get(name).copied().unwrap_or(0));
        let before = self.counted.replace(now).unwrap_or(now);
        // Where the data began anew there are fewer.
        [0, 1, 2].map(|index| now[index].saturating_sub(before[index]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 16 parts of each partition, however many there are, took 1.1 s of each 5 s of Valkey's with 256 that were full.
    #[test]
    fn a_round_costs_no_more_with_many_partitions() {
        for partitions in 1..=256 {
            let parts = parts_of_one(partitions);
            assert!(parts >= 1 && parts * partitions <= PARTS_PER_ROUND, "{parts} of each of {partitions}");
        }
        assert_eq!([1, 4, 16, 17, 64, 256].map(parts_of_one), [16, 16, 16, 15, 4, 1]);
    }

    #[test]
    fn deaths_are_told_once_and_not_those_of_before() {
        let stats = |died: u64, dead_full: u64| QueueStats {
            counters: BTreeMap::from([("died".to_owned(), died), ("dead_full".to_owned(), dead_full)]),
            ..QueueStats::default()
        };
        let mut deaths = Deaths::default();
        let looks = [(5, 1), (5, 1), (7, 1), (7, 3), (0, 0), (1, 0)].map(|(died, full)| deaths.since_last(&stats(died, full)));
        assert_eq!(looks, [[0, 0, 0], [0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 0], [1, 0, 0]]);
        // A look without one of the partitions: its share of what died before would be told with its return.
        assert_eq!(deaths.since_last(&QueueStats { unanswered: vec![3], ..stats(0, 0) }), [0, 0, 0]);
        assert_eq!(deaths.since_last(&stats(2, 0)), [1, 0, 0]);
    }
}
