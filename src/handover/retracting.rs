//! Taking back what earlier runs have offered: all of it when the node shares no longer, else what its shards do not have any more.

use std::sync::Arc;

use ringpost_cluster::work_queue::QueueError;
use ringpost_engine::control::{Answer, HandOver};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Driver, Ended, TICK};

/// Why a look through the queue came to no end.
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
        info!("an earlier run shared its mail: what it offered is taken back before it is delivered here");
        for shard in 0..self.shards.len() {
            if !matches!(self.ask(shard, HandOver::Retracted).await, Ok(Answer::Done)) {
                return;
            }
        }
        if self.look_for_orphans().await.is_err() {
            return;
        }
        while self.open_claims() > 0 || !self.offers().is_empty() {
            sleep(TICK).await;
        }
        self.has_retracted();
    }

    /// Each new connection, and each return, may be to a Valkey that has gone back in time: what was settled since is looked for.
    pub(super) async fn keep_looking_for_orphans(self: Arc<Self>) {
        loop {
            self.connected.notified().await;
            if self.look_for_orphans().await.is_err() {
                return;
            }
        }
    }

    /// Mail that was settled while the queue could not be told, perhaps in an earlier run, leaves it: nobody is to deliver it again.
    /// Repeats until Valkey has answered for all of it.
    pub(super) async fn look_for_orphans(&self) -> Result<(), Ended> {
        loop {
            match self.orphans().await {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    info!(count, "mail that this node has settled was still in the cluster's queue and is taken out");
                    self.owner.notify_one();
                    return Ok(());
                }
                Err(Incomplete::Ended) => return Err(Ended),
                Err(Incomplete::Unanswered) => sleep(TICK).await,
            }
        }
    }

    async fn orphans(&self) -> Result<usize, Incomplete> {
        // Of another spool of this name nothing is known here: it stays.
        let (mine, mut count) = (self.names.prefix(), 0);
        for partition in self.partitions() {
            let mut cursor = "0".to_owned();
            loop {
                let answer = self.node.queue.names(partition, &cursor, &mine).await;
                self.noticed(partition, &answer);
                let (next, items) = answer?;
                let (ended, items): (Vec<String>, Vec<String>) = items.into_iter().partition(|item| self.offers().has_ended(item));
                ended.iter().for_each(|item| self.offers().orphan(item));
                count += ended.len();
                for (shard, ids) in self.by_shard(items) {
                    let asked = ids.iter().map(|(_, id)| *id).collect();
                    let Answer::Missing(missing) = self.ask(shard, HandOver::Missing(asked)).await? else {
                        warn!(shard, "a shard cannot say which mail it has");
                        return Err(Incomplete::Ended);
                    };
                    missing.iter().for_each(|id| self.offers().orphan(&self.item(*id)));
                    count += missing.len();
                }
                cursor = next;
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(count)
    }
}
