//! Taking back what earlier runs have offered: all of it when the node shares no longer, else what this spool has settled.
//!
//! That a shard does not have mail is no proof that it was settled: the spool may have been put back from a copy, and what is in the queue be the
//! last of it (`settlements`).

use std::{collections::BTreeSet, sync::Arc};

use ringpost_cluster::work_queue::QueueError;
use ringpost_engine::control::{Answer, HandOver, Missing};
use tokio::{sync::Notify, time::sleep};
use tracing::{info, warn};

use super::{Driver, Ended, TICK};

/// Why a look through a partition came to no end.
enum Incomplete {
    Ended,
    Unanswered,
}

impl From<Ended> for Incomplete {
    fn from(_: Ended) -> Incomplete {
        Incomplete::Ended
    }
}

impl From<QueueError> for Incomplete {
    fn from(_: QueueError) -> Incomplete {
        Incomplete::Unanswered
    }
}

impl Driver {
    /// For a node that does not share, after a run that did: ends when nothing of its mail is in the queue.
    pub(super) async fn retract(self: Arc<Self>) {
        info!("an earlier run shared its mail: what it offered in this queue is taken back before it is delivered here");
        for shard in 0..self.shards.len() {
            if !matches!(self.ask(shard, HandOver::Retracted).await, Ok(Answer::Retracted(_))) {
                return;
            }
        }
        if self.look_for_orphans().await.is_err() {
            return;
        }
        while self.open_claims.count() != Some(0) || !self.offers().is_empty() {
            sleep(TICK).await;
        }
        self.has_retracted();
    }

    /// For a node that shares and delivers, after a run that was emptied or delivered nothing: that is over once nothing that the earlier run had offered, and
    /// this one would not, is in the queue.
    pub(super) async fn see_to_drained(self: Arc<Self>) {
        let mut found = Vec::new();
        for shard in 0..self.shards.len() {
            let Ok(Answer::Retracted(ids)) = self.ask(shard, HandOver::Retracted).await else { return };
            found.extend(ids);
        }
        // Each has its answer. What a worker had is waited for, as is the last look for what is out.
        while let Some(id) = found.last() {
            if self.offers().is_at_large(&self.item(*id)) {
                sleep(TICK).await;
            } else {
                found.pop();
                tokio::task::yield_now().await;
            }
        }
        self.drain_is_over();
    }

    /// Each new connection, and each return, may be to a Valkey that has gone back in time: what was settled since is looked for.
    pub(super) async fn keep_looking_for_orphans(self: Arc<Self>) {
        let mut left = BTreeSet::new();
        loop {
            look_is_due(&self.connected, self.partitions(), &mut left).await;
            if look_through(&mut left, |partition| self.orphans(partition)).await.is_err() {
                return;
            }
        }
    }

    /// Mail that was settled while the queue could not be told, perhaps in an earlier run, leaves it: nobody is to deliver it again.
    /// Repeats until Valkey has answered for all of it.
    pub(super) async fn look_for_orphans(self: &Arc<Self>) -> Result<(), Ended> {
        let mut left: BTreeSet<u16> = self.partitions().collect();
        loop {
            look_through(&mut left, |partition| self.orphans(partition)).await?;
            if left.is_empty() {
                return Ok(());
            }
            sleep(TICK).await;
        }
    }

    /// Takes out what one partition has of this node's and this spool has settled.
    async fn orphans(self: &Arc<Self>, partition: u16) -> Result<(), Incomplete> {
        let (found, left) = self.find_orphans(partition).await?;
        if found > 0 {
            info!(partition, found, "mail that this node has settled was still in the cluster's queue and is taken out");
            self.owner.notify_one();
        }
        if left > 0 {
            warn!(
                partition,
                left,
                "mail that was offered under this node's name is in the cluster's queue, and its spool neither has it nor knows that it was settled, \
                 as after it was put back from a copy or damaged: it is left to whoever delivers it, perhaps a second time"
            );
        }
        Ok(())
    }

    /// How many those were, and how many it does not have and knows nothing of.
    async fn find_orphans(self: &Arc<Self>, partition: u16) -> Result<(usize, usize), Incomplete> {
        // Of another spool of this name nothing is known here: it stays.
        let (mine, mut count, mut left, mut cursor) = (self.names.prefix(), 0, 0, "0".to_owned());
        loop {
            let answer = self.node.queue.names(partition, &cursor, &mine).await;
            self.noticed(partition, &answer);
            let (next, items) = answer?;
            let (ended, items): (Vec<String>, Vec<String>) = items.into_iter().partition(|item| self.offers().has_ended(item));
            ended.iter().for_each(|item| self.offers().orphan(item));
            count += ended.len();
            for (shard, ids) in self.by_shard(items) {
                let asked = ids.iter().map(|(_, id)| *id).collect();
                let Missing { settled, unknown } = self.missing(shard, asked).await?;
                settled.iter().for_each(|id| self.offers().orphan(&self.item(*id)));
                count += settled.len();
                left += unknown.len();
            }
            cursor = next;
            if cursor == "0" {
                return Ok((count, left));
            }
        }
    }
}

/// Waits until something is to be looked through: all when it is told so, and those that are `left` soon.
async fn look_is_due(told: &Notify, all: impl Iterator<Item = u16>, left: &mut BTreeSet<u16>) {
    let soon = async || if left.is_empty() { std::future::pending().await } else { sleep(TICK).await };
    tokio::select! {
        () = told.notified() => left.extend(all),
        () = soon() => {}
    }
}

/// Looks through each of those that are `left`, and leaves those that gave no answer: one that is away keeps no other from being looked at.
async fn look_through<F>(left: &mut BTreeSet<u16>, look: impl Fn(u16) -> F) -> Result<(), Ended>
where
    F: Future<Output = Result<(), Incomplete>>,
{
    for partition in left.clone() {
        match look(partition).await {
            Ok(()) => drop(left.remove(&partition)),
            Err(Incomplete::Unanswered) => {}
            Err(Incomplete::Ended) => return Err(Ended),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// With one part of a Valkey Cluster away the look stopped there, and began with it again: what the parts behind it had of settled mail was
    /// delivered a second time. It did not end either, so what a new connection to another part had brought back was not looked for.
    #[tokio::test]
    async fn one_partition_that_is_away_keeps_no_other_from_being_looked_at_and_is_looked_at_on_its_return() {
        let (told, is_away, looked) = (Notify::new(), Cell::new(true), RefCell::new(Vec::new()));
        let mut left = BTreeSet::new();
        let round = async |left: &mut BTreeSet<u16>| {
            look_is_due(&told, 0..4, left).await;
            let look = |partition| {
                looked.borrow_mut().push(partition);
                let answer = if partition == 1 && is_away.get() { Err(Incomplete::Unanswered) } else { Ok(()) };
                async move { answer }
            };
            assert!(look_through(left, look).await.is_ok());
            looked.take()
        };
        told.notify_one();
        assert_eq!(round(&mut left).await, [0, 1, 2, 3]);
        assert_eq!(round(&mut left).await, [1], "again, and it alone");
        told.notify_one();
        assert_eq!(round(&mut left).await, [0, 1, 2, 3], "another may have gone back in time meanwhile");
        is_away.set(false);
        assert_eq!(round(&mut left).await, [1]);
        assert!(left.is_empty());
        told.notify_one();
        assert_eq!(round(&mut left).await, [0, 1, 2, 3], "nothing was left until then");
    }

    #[tokio::test]
    async fn a_shard_that_ends_ends_the_look() {
        let mut left: BTreeSet<u16> = (0..4).collect();
        assert!(look_through(&mut left, |_| std::future::ready(Err(Incomplete::Ended))).await.is_err());
    }
}
