//! How many partitions the cluster's work queue has: one number for all nodes, kept in Valkey by the first that says it.
//!
//! An item's partition follows from its name and this number, so nodes with different ones look for the same item in different places:
//! what one offers no other finds, and what one has settled stays where another completes it again. A node whose number is another takes
//! no part in the queue. Heartbeats carry the number both ways.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::Notify;
use tracing::{error, info};

use crate::{boot_time::BootTime, valkey_error::ValkeyError};

/// As `cluster.queue_partitions`: what is more in Valkey is damage, which its scripts replace.
pub(crate) const PARTITIONS_MAX: u16 = 256;

/// This node's number of partitions beside that of the cluster.
#[derive(Debug)]
pub struct PartitionCount {
    own: u16,
    stand_back: Duration,
    heard: Mutex<Heard>,
    agreed: Notify,
}

#[derive(Clone, Copy, Debug)]
enum Heard {
    /// Valkey has not been heard since the start.
    Nothing,
    Same,
    /// This many, and when that was heard last.
    Other(u16, BootTime),
}

impl PartitionCount {
    /// `own`: `cluster.queue_partitions`. A node that heard of another number writes its own where none is kept any more, as after a loss of
    /// all data, only once it has heard of none for `stand_back`: `cluster.node_ttl`, in which a node that agreed has said its own again.
    pub fn new(own: u16, stand_back: Duration) -> PartitionCount {
        PartitionCount { own, stand_back, heard: Mutex::new(Heard::Nothing), agreed: Notify::new() }
    }

    /// This node's.
    pub fn own(&self) -> u16 {
        self.own
    }

    /// The cluster's, as it was heard last; `None`: it was not heard yet.
    pub fn in_force(&self) -> Option<u16> {
        match *self.state() {
            Heard::Nothing => None,
            Heard::Same => Some(self.own),
            Heard::Other(number, _) => Some(number),
        }
    }

    fn state(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().expect("no panic happens under this lock")
    }

    /// What a heartbeat says where Valkey keeps no number; 0: nothing.
    pub fn proposed(&self, now: BootTime) -> u16 {
        match *self.state() {
            Heard::Other(_, at) if now.since(at) < self.stand_back => 0,
            _ => self.own,
        }
    }

    /// Takes in what Valkey keeps; 0: nothing, or what is no such number. A difference is said when it is new, and its end.
    pub fn heard(&self, kept: u64, now: BootTime) {
        let Ok(kept @ 1..=PARTITIONS_MAX) = u16::try_from(kept) else { return };
        let before = *self.state();
        if kept == self.own {
            *self.state() = Heard::Same;
            if !matches!(before, Heard::Same) {
                self.agreed.notify_one();
            }
            if matches!(before, Heard::Other(..)) {
                info!(
                    queue_partitions = kept,
                    "the cluster's work queue has as many partitions as this node: it takes part in the queue again"
                );
            }
            return;
        }
        *self.state() = Heard::Other(kept, now);
        if !matches!(before, Heard::Other(number, _) if number == kept) {
            error!(
                cluster = kept,
                this_node = self.own,
                "cluster.queue_partitions of this node is not that of the cluster: it neither offers mail nor takes any of others, and delivers \
                 its own where delivery.deliver is true. Set the cluster's number in its file and restart it. If this node's is the right one, set that \
                 on all nodes and call `ringpost cluster queue partitions` with it (docs/cluster.md)"
            );
        }
    }

    /// Waits until this node takes part in the queue, again or for the first time since this was asked. One asks.
    pub async fn agreed(&self) {
        self.agreed.notified().await;
    }

    /// The difference, in words for an operator; `None`: there is none, or Valkey was not heard yet.
    pub fn difference(&self) -> Option<String> {
        let Heard::Other(kept, _) = *self.state() else { return None };
        Some(format!(
            "its cluster.queue_partitions is {0} and the cluster's work queue has {kept}, so that it takes no part in the queue: set {kept} in its \
             file and restart it, or, if {0} is right, set {0} on all nodes and call `ringpost cluster queue partitions {0}`",
            self.own
        ))
    }

    /// Valkey has not said a number.
    pub(crate) fn is_unheard(&self) -> bool {
        matches!(*self.state(), Heard::Nothing)
    }

    /// Whether this node takes part in the queue. Fails, as when Valkey is away, where its number is another or it does not know yet.
    pub(crate) fn check(&self) -> Result<(), ValkeyError> {
        let heard = *self.state();
        match heard {
            Heard::Same => Ok(()),
            Heard::Nothing => Err(ValkeyError::NotAgreed("how many partitions the work queue has was not heard yet".to_owned())),
            Heard::Other(..) => Err(ValkeyError::NotAgreed(self.difference().unwrap_or_default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    #[test]
    fn a_node_takes_part_once_it_has_heard_its_own_number() {
        let count = PartitionCount::new(4, Duration::from_secs(5));
        assert!(count.check().is_err() && count.difference().is_none());
        assert_eq!(count.proposed(at(0)), 4);
        count.heard(0, at(0));
        assert!(count.check().is_err());
        count.heard(4, at(0));
        assert_eq!(count.check(), Ok(()));
        count.heard(8, at(1));
        let difference = count.difference().expect("it is known");
        assert!(difference.contains("queue_partitions is 4") && difference.contains("has 8"), "{difference}");
        assert_eq!(count.check(), Err(ValkeyError::NotAgreed(difference)));
        count.heard(4, at(2));
        assert_eq!((count.check(), count.difference()), (Ok(()), None));
    }

    /// After a loss of all data the node with the wrong number could have come first, and all others would have been the wrong ones.
    #[test]
    fn who_has_another_number_lets_the_others_say_theirs_first() {
        let count = PartitionCount::new(3, Duration::from_secs(5));
        count.heard(4, at(0));
        count.heard(0, at(4));
        assert_eq!(count.proposed(at(4)), 0);
        assert!(count.check().is_err(), "nothing is no agreement");
        assert_eq!(count.proposed(at(5)), 3);
    }
}
