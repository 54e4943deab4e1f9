//! How this spool's mail is called in the cluster's queue.
//!
//! A name says node, message and the start that accepted it, by a random number. A node that was set up anew under the old `node_id`, or a second
//! one that has it by mistake, with a copy of the spool perhaps, gives other names: neither takes out of the queue, or settles, what is not its
//! own.
//!
//! The number comes last: by a name all nodes know the item's partition, for which its last characters hardly count, and messages that come one
//! after another differ in nothing but the last characters of their ids.

use ringpost_cluster::identity::NodeId;
use ringpost_queue::QueueId;

use super::start_numbers::StartNumbers;

/// Names of this spool's mail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ItemNames {
    /// This node.
    pub(super) node: NodeId,
    /// The spool's random number: in the names of earlier versions.
    pub(super) spool: u64,
    /// Those of its starts.
    pub(super) starts: StartNumbers,
    /// Mail of earlier boots may be in the queue by its name without the spool, as it was offered before names had one, and keeps it.
    pub(super) named_since: u64,
    /// In the same way mail of earlier boots may be there by its name with the spool before the message.
    pub(super) spread_since: u64,
}

impl ItemNames {
    /// A message's name.
    pub(super) fn of(&self, id: QueueId) -> String {
        let (node, spool, boot) = (&self.node, self.spool, u64::from(id.boot));
        if boot < self.named_since {
            format!("{node}:{id}")
        } else if boot < self.spread_since {
            format!("{node}:{spool:016x}:{id}")
        } else {
            format!("{node}:{id}:{:016x}", self.starts.of(boot))
        }
    }

    /// The message of a name; `None` for what is not this spool's.
    pub(super) fn id_of(&self, item: &str) -> Option<QueueId> {
        item.rsplit(':').take(2).filter_map(|part| part.parse().ok()).find(|id| self.of(*id) == item)
    }

    /// How all names of this node begin, whatever its spool.
    pub(super) fn prefix(&self) -> String {
        format!("{}:", self.node)
    }
}

#[cfg(test)]
mod tests {
    use ringpost_cluster::{
        identity::Incarnation,
        keyspace::Keyspace,
        target::Target,
        valkey::Valkey,
        work_item::{ItemKey, is_item_id},
        work_queue::{QueueBounds, WorkQueue},
    };

    use super::*;

    fn names(spool: u64, named_since: u64) -> ItemNames {
        ItemNames { node: "n1".parse().unwrap(), spool, starts: StartNumbers::one(spool), named_since, spread_since: named_since }
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
        for other in ["", "n1", "n1:", "n1:x", "n1:0000000000000001:x", "n1:x:0000000000000001"] {
            assert_eq!(lost.id_of(other), None, "{other}");
        }
    }

    /// Two nodes were made from one image and started in the same second: each message of the one had the name of one of the other's, and each
    /// gave up its mail on the completion of the other's.
    #[test]
    fn mail_of_a_copied_spool_is_this_ones_up_to_the_copy_alone() {
        let names = |of_the_last| ItemNames { starts: StartNumbers::of_two((7, 0xa), (8, of_the_last)), ..names(1, 0) };
        let (one, other) = (names(0xb), names(0xc));
        let [before, since] = [7, 8].map(|boot| QueueId { boot, shard: 0, sequence: 3 });
        assert_eq!(other.id_of(&one.of(before)), Some(before), "both have it");
        assert_eq!(one.id_of(&one.of(since)), Some(since));
        assert_eq!(other.id_of(&one.of(since)), None);
    }

    #[test]
    fn mail_that_was_offered_before_names_had_a_spool_keeps_its_name() {
        let names = names(1, 9);
        let [before, since] = [8, 9].map(|boot| QueueId { boot, shard: 0, sequence: 3 });
        assert_eq!(names.of(before), format!("n1:{before}"));
        assert_eq!(names.of(since), format!("n1:{since}:0000000000000001"));
        assert_eq!([before, since].map(|id| names.id_of(&names.of(id))), [Some(before), Some(since)]);
        assert_eq!(names.id_of(&format!("n1:{since}")), None);
    }

    #[test]
    fn mail_that_was_offered_with_the_spool_before_the_message_keeps_its_name() {
        let names = ItemNames { spread_since: 12, ..names(1, 9) };
        let ids = [8, 9, 11, 12].map(|boot| QueueId { boot, shard: 0, sequence: 3 });
        let [unnamed, _, last, spread] = ids;
        assert_eq!(names.of(unnamed), format!("n1:{unnamed}"));
        assert_eq!(names.of(last), format!("n1:0000000000000001:{last}"));
        assert_eq!(names.of(spread), format!("n1:{spread}:0000000000000001"));
        assert_eq!(ids.map(|id| names.id_of(&names.of(id))), ids.map(Some));
        // By the name that another boot's mail has.
        assert_eq!(names.id_of(&format!("n1:{last}:0000000000000001")), None);
        assert_eq!(names.id_of(&format!("n1:0000000000000001:{spread}")), None);
    }

    /// All mail of some minutes went into one partition, and then all into another: the others, each on its own server perhaps, had nothing to do.
    #[test]
    fn messages_that_come_one_after_another_spread_over_the_partitions() {
        let partitions: u16 = 4;
        let bounds = QueueBounds { partitions, capacity: 1, dead_max: 1 };
        let valkey = Valkey::new(Target::parse("valkey://127.0.0.1:1", None, None).unwrap());
        let keyspace = Keyspace::new("ringpost").unwrap();
        let me = Incarnation::new("n1".parse().unwrap(), 1);
        let queue = WorkQueue::new(valkey, keyspace, "mail", bounds, ItemKey::new(b"k"), me).unwrap();
        for first in [0, 1000, 40_000, 1_000_000] {
            let mut counts = [0; 4];
            for sequence in first..first + 256 {
                let name = names(0x0123_4567_89ab_cdef, 0).of(QueueId { boot: 1_764_000_000, shard: 1, sequence });
                counts[usize::from(queue.partition(&name))] += 1;
            }
            assert!(counts.iter().all(|count| (32..128).contains(count)), "from {first}: {counts:?}");
        }
    }

    #[test]
    fn the_longest_name_is_one_of_an_item() {
        let names = ItemNames { node: "n".repeat(64).parse().unwrap(), ..names(u64::MAX, 0) };
        assert!(is_item_id(&names.of(QueueId { boot: u32::MAX, shard: u16::MAX, sequence: u64::MAX })));
    }
}
