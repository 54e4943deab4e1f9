//! How this spool's mail is called in the cluster's queue.
//!
//! A name says node, spool and message. A node that was set up anew under the old `node_id`, or a second one that has it by mistake, gives
//! other names: neither takes out of the queue, or settles, what is not its own.

use ringpost_cluster::identity::NodeId;
use ringpost_queue::QueueId;

/// Names of this spool's mail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ItemNames {
    /// This node.
    pub(super) node: NodeId,
    /// The spool's random number.
    pub(super) spool: u64,
    /// Mail of earlier boots may be in the queue by its name without the spool, as it was offered before names had one, and keeps it.
    pub(super) named_since: u64,
}

impl ItemNames {
    /// A message's name.
    pub(super) fn of(&self, id: QueueId) -> String {
        if u64::from(id.boot) < self.named_since {
            return format!("{}:{id}", self.node);
        }
        format!("{}:{:016x}:{id}", self.node, self.spool)
    }

    /// The message of a name; `None` for what is not this spool's.
    pub(super) fn id_of(&self, item: &str) -> Option<QueueId> {
        let id = item.rsplit_once(':')?.1.parse().ok()?;
        (self.of(id) == item).then_some(id)
    }

    /// How all names of this node begin, whatever its spool.
    pub(super) fn prefix(&self) -> String {
        format!("{}:", self.node)
    }
}

#[cfg(test)]
mod tests {
    use ringpost_cluster::work_item::is_item_id;

    use super::*;

    fn names(spool: u64, named_since: u64) -> ItemNames {
        ItemNames { node: "n1".parse().unwrap(), spool, named_since }
    }

    /// A node whose disk was lost, set up anew under its name, took all that its first life had offered for mail that it had settled, and
    /// took the last copies out of the queue.
    #[test]
    fn mail_of_another_spool_is_not_this_ones() {
        let (lost, new) = (names(1, 0), names(2, 0));
        let id = QueueId { boot: 7, shard: 0, sequence: 3 };
        assert_eq!(lost.id_of(&lost.of(id)), Some(id));
        assert_eq!(new.id_of(&lost.of(id)), None);
        assert_eq!(new.id_of(&format!("n1:{id}")), None, "offered before names had a spool, by a disk that is lost");
        assert!(lost.of(id).starts_with(&lost.prefix()));
        for other in ["", "n1", "n1:", "n1:x", "n1:0000000000000001:x"] {
            assert_eq!(lost.id_of(other), None, "{other}");
        }
    }

    #[test]
    fn mail_that_was_offered_before_names_had_a_spool_keeps_its_name() {
        let names = names(1, 9);
        let [before, since] = [8, 9].map(|boot| QueueId { boot, shard: 0, sequence: 3 });
        assert_eq!(names.of(before), format!("n1:{before}"));
        assert_eq!(names.of(since), format!("n1:0000000000000001:{since}"));
        assert_eq!([before, since].map(|id| names.id_of(&names.of(id))), [Some(before), Some(since)]);
        assert_eq!(names.id_of(&format!("n1:{since}")), None);
    }

    #[test]
    fn the_longest_name_is_one_of_an_item() {
        let names = ItemNames { node: "n".repeat(64).parse().unwrap(), spool: u64::MAX, named_since: 0 };
        assert!(is_item_id(&names.of(QueueId { boot: u32::MAX, shard: u16::MAX, sequence: u64::MAX })));
    }
}
