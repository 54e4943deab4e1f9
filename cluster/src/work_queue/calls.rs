//! How a call of the queue is made, and what its answer says of the partition itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard},
    time::Duration,
};

use redis::Value;

use super::{QueueBounds, WorkQueue};
use crate::{boot_time::BootTime, partition_count::PartitionCount, valkey::Allowance, valkey_error::ValkeyError};

/// How long it is believed that a partition has no room: nodes that share mail ask more than once a second, a leader for its chores each 5 s.
const FULL_HOLDS: Duration = Duration::from_secs(15);
/// Scripts that write whatever they find: their success tells that there is room.
const ALWAYS_WRITE: [&str; 2] = ["queue_probe", "queue_retire"];

impl WorkQueue {
    /// Nothing is sent before, and unless, this node's number of partitions is that of the cluster: every call fails as one does while Valkey is
    /// away.
    #[must_use]
    pub fn agreed_by(self, count: Arc<PartitionCount>) -> WorkQueue {
        WorkQueue { agreed: Some(count), ..self }
    }

    /// The same queue over another number of partitions, whatever this node's is: for an account of what was put into it by that number.
    #[must_use]
    pub fn over(&self, partitions: u16) -> WorkQueue {
        assert!(partitions > 0, "a queue has a partition");
        let bounds = QueueBounds { partitions, ..self.bounds };
        WorkQueue { bounds, agreed: None, full: Arc::default(), crowding: Arc::default(), slowness: Arc::default(), ..self.clone() }
    }

    /// Waits until calls are sent that were not before: see [`WorkQueue::agreed_by`]. One asks.
    pub async fn begins(&self) {
        match &self.agreed {
            Some(count) => count.agreed().await,
            None => std::future::pending().await,
        }
    }

    /// Why no call is sent: see [`PartitionCount::difference`].
    pub fn difference(&self) -> Option<String> {
        self.agreed.as_ref().and_then(|count| count.difference())
    }

    pub(super) async fn run(&self, script: &'static str, partition: u16, args: &[&[u8]]) -> Result<Value, ValkeyError> {
        self.run_for(script, partition, args, Allowance::default()).await
    }

    /// With such an allowance. A key that is damaged ends a script before it changes anything: it is put aside, and the call made again.
    pub(super) async fn run_for(
        &self,
        script: &'static str,
        partition: u16,
        args: &[&[u8]],
        allowance: Allowance,
    ) -> Result<Value, ValkeyError> {
        assert!(partition < self.bounds.partitions, "the partition is one of this queue's");
        if let Some(count) = &self.agreed {
            // Whoever was never heard could not say a number: why is what the caller wants to know.
            let unheard = || count.is_unheard().then(|| self.valkey.complaint()).flatten();
            count.check().map_err(|error| unheard().map_or(error, |reason| ValkeyError::NotAgreed(reason.to_string())))?;
        }
        let keys = self.keyspace.queue(&self.name, partition);
        let answer = match self.valkey.script_for(script, &keys, args, allowance).await {
            Err(error) if error.is_of_a_type() && self.quarantine(partition, &keys).await.is_ok() => {
                self.valkey.script_for(script, &keys, args, allowance).await
            }
            answer => answer,
        };
        match &answer {
            Err(ValkeyError::Full(reason)) => drop(self.full().insert(partition, (reason.clone(), BootTime::now()))),
            Ok(_) if ALWAYS_WRITE.contains(&script) => drop(self.full().remove(&partition)),
            _ => {}
        }
        answer
    }

    fn full(&self) -> MutexGuard<'_, BTreeMap<u16, (String, BootTime)>> {
        self.full.lock().expect("no panic happens under this lock")
    }

    /// Why a partition takes nothing that is written, if its last word was that Valkey has no room (`maxmemory`), and not long ago; `None`: all take
    /// it, as far as this node has asked. Who asks no more, as a leader that was, hears of no room either.
    pub fn is_full(&self) -> Option<String> {
        latest(&self.full(), BootTime::now())
    }

    pub(super) async fn with_ids(&self, script: &'static str, partition: u16, first: &[&str], ids: &[&str]) -> Result<Value, ValkeyError> {
        let args: Vec<&[u8]> = first.iter().chain(ids).map(|text| text.as_bytes()).collect();
        self.run(script, partition, &args).await
    }
}

fn latest(full: &BTreeMap<u16, (String, BootTime)>, now: BootTime) -> Option<String> {
    full.values().find(|(_, said)| now.since(*said) < FULL_HOLDS).map(|(reason, _)| reason.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that led, and shares no mail, asked no more: it was degraded for ever.
    #[test]
    fn a_word_that_there_is_no_room_holds_for_a_while() {
        let said = BootTime::now();
        let full = BTreeMap::from([(3, ("maxmemory".to_owned(), said))]);
        assert_eq!(latest(&full, said + (FULL_HOLDS - Duration::from_millis(1))).as_deref(), Some("maxmemory"));
        assert_eq!(latest(&full, said + FULL_HOLDS), None);
    }
}
