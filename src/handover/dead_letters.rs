//! Dead letters of the queue: said in the log, and given another chance where no owner is there that would. So is what no worker can read.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ringpost_cluster::{
    identity::NodeId,
    membership::{NodeView, Status},
    valkey::random_u64,
    work_queue::{DeadLetter, Revived},
};
use tokio::time::sleep;
use tracing::{info, warn};

use super::Driver;

/// How often a node looks through them, and up to as long again: by anybody, so not by all at the same moment.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Driver {
    pub(super) async fn see_to_dead_letters(self: Arc<Self>) {
        let (mut said, mut said_unreadable) = (0, 0);
        loop {
            sleep(LOOK_EVERY + Duration::from_millis(random_u64() % 60_000)).await;
            if !self.node.shares {
                continue;
            }
            said_unreadable = self.tell_unreadable(said_unreadable);
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

    /// Mail that no worker can read although it has this node's key; `said`: how much of it was told before. Returns how much there is.
    fn tell_unreadable(&self, said: u64) -> u64 {
        let count = self.offers().unreadable();
        if count > said {
            warn!(
                count,
                delivers = self.node.delivers,
                "workers with this node's cluster.key_file could not read mail that it offered, four times each: the workers' warnings say why. A node that \
                 delivers has taken it back; one that does not offers it again after five minutes, and after twice as long each further time"
            );
        }
        count
    }

    async fn revive(self: &Arc<Self>, owners: &HashSet<String>) -> Revived {
        let now_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let mut sum = Revived::default();
        for partition in self.partitions() {
            let answer = self
                .node
                .queue
                .revive(partition, |letter| has_owner(letter, owners, &self.node.me, |id| self.offers().knows(id)), now_ms)
                .await;
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

/// Whether somebody sees to a dead letter who has its original. What was offered under this node's name and it knows nothing of has nobody: its
/// disk was replaced, or put back from a copy. The other nodes cannot tell.
fn has_owner(letter: &DeadLetter, owners: &HashSet<String>, me: &NodeId, knows: impl Fn(&str) -> bool) -> bool {
    owners.contains(&letter.owner) && (letter.owner != me.as_str() || knows(&letter.id))
}

#[cfg(test)]
mod tests {
    use ringpost_cluster::{
        boot_time::BootTime,
        identity::{Incarnation, Role},
        membership::{Member, Members, NodeRecord},
    };

    use super::*;

    #[test]
    fn whoever_may_be_there_is_an_owner_and_who_does_not_see_itself_says_nothing_of_others() {
        let member = |id: &str, last_seen_ms| {
            let me = Incarnation::new(id.parse().unwrap(), 1);
            Member { record: NodeRecord::new(&me, Role::Worker), last_seen_ms, started_at_ms: 0 }
        };
        let mut members = Members::new(Duration::from_secs(1), Duration::from_secs(5));
        // Healthy, silent for three heartbeats, offline.
        members.update(vec![member("n1", 10_000), member("n2", 7_000), member("n3", 5_000)], 10_000, BootTime::now());
        let nodes = members.views();
        assert_eq!(owners_there(&nodes, "n1"), Some(HashSet::from(["n1".to_owned(), "n2".to_owned()])));
        assert_eq!(owners_there(&nodes, "n3"), None, "cut off, it knows the others by what they were");
        assert_eq!(owners_there(&nodes, "n4"), None);
        assert_eq!(owners_there(&[], "n1"), None);
    }

    /// After its disk was replaced n1 was there, so nobody tried its dead letters again, and the leader removed the last copies as too old.
    #[test]
    fn a_dead_letter_of_a_replaced_disk_has_no_owner() {
        let letter = |id: &str, owner: &str| DeadLetter {
            id: id.to_owned(),
            died_at: 0,
            owner: owner.to_owned(),
            priority: 5,
            attempts: 5,
            max_attempts: 5,
            created_at: 0,
            reason: String::new(),
        };
        let owners = HashSet::from(["n1".to_owned(), "n2".to_owned()]);
        let has_owner = |id: &str, owner: &str| has_owner(&letter(id, owner), &owners, &"n1".parse().unwrap(), |id| id == "n1:new");
        assert!(!has_owner("n1:lost", "n1"));
        assert!(has_owner("n1:new", "n1"));
        assert!(has_owner("n2:a", "n2"));
        assert!(!has_owner("n3:a", "n3"));
    }
}
