//! Dead letters of the queue: said in the log, and given another chance where no owner is there that would.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ringpost_cluster::{
    membership::{NodeView, Status},
    valkey::random_u64,
    work_queue::Revived,
};
use tokio::time::sleep;
use tracing::{info, warn};

use super::Driver;

/// How often a node looks through them, and up to as long again: by anybody, so not by all at the same moment.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Driver {
    pub(super) async fn see_to_dead_letters(self: Arc<Self>) {
        let mut said = 0;
        loop {
            sleep(LOOK_EVERY + Duration::from_millis(random_u64() % 60_000)).await;
            if !self.node.shares {
                continue;
            }
            let Some(owners) = owners_there(&self.node.cluster.nodes(), self.node.me.as_str()) else { continue };
            let found = self.revive(&owners).await;
            if found.requeued > 0 {
                info!(
                    count = found.requeued,
                    "mail among the dead letters of the cluster's queue whose owners are not there is tried again: what is in the queue may be its last copy"
                );
            }
            let count = found.requeued + found.left;
            if count > said {
                warn!(
                    count,
                    "mail lies among the dead letters of the cluster's queue: `ringpost cluster queue dead` shows it, and `requeue` has it tried at once. \
                     Its owners deliver it themselves or offer it again; where they are not there, it is tried again for five days"
                );
            }
            said = count;
        }
    }

    async fn revive(&self, owners: &HashSet<String>) -> Revived {
        let now_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let mut sum = Revived::default();
        for partition in self.partitions() {
            let answer = self.node.queue.revive(partition, |owner| owners.contains(owner), now_ms).await;
            self.noticed(partition, &answer);
            let Revived { requeued, left } = answer.unwrap_or_default();
            sum = Revived { requeued: sum.requeued + requeued, left: sum.left + left };
        }
        sum
    }
}

/// Those that can see to their mail; `None` while this node does not know the others: then it does not see itself either.
fn owners_there(nodes: &[NodeView], me: &str) -> Option<HashSet<String>> {
    let there: HashSet<String> = nodes.iter().filter(|node| node.status != Status::Offline).map(|node| node.id.to_string()).collect();
    there.contains(me).then_some(there)
}
