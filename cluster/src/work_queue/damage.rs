//! What is lost or damaged of the queue itself: keys put aside, and items put back into their places.

use tracing::{error, warn};

use super::{QueueError, WorkQueue, generation_of_new_data};
use crate::{identity::Epoch, reply::Reply, valkey_error::ValkeyError};

/// What comes behind a key's name for one that is put aside.
const QUARANTINED: &str = ":quarantined";

impl WorkQueue {
    /// Puts the keys of a partition aside that are of another type than they have to be. Another may have done it a moment before.
    pub(super) async fn quarantine(&self, partition: u16, keys: &[String]) -> Result<(), ValkeyError> {
        let aside = keys.iter().map(|key| format!("{key}{QUARANTINED}"));
        let both: Vec<String> = keys.iter().cloned().chain(aside).collect();
        let new_data = generation_of_new_data();
        let mut reply = Reply::new(self.valkey.script("queue_quarantine", &both, &[new_data.as_bytes()]).await?)?;
        while !reply.is_empty() {
            let (number, kind) = (reply.count()?, reply.text()?);
            let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
            let key = index.and_then(|index| keys.get(index)).ok_or(ValkeyError::Malformed("the number of a key"))?;
            let queue = self.name();
            error!(
                queue,
                partition,
                key,
                kind,
                "a key of the work queue was damaged, it is of another type: it is put aside under its name with {QUARANTINED}, and the queue goes on"
            );
        }
        Ok(())
    }

    /// Puts items back that are in none of the queue's places, whoever owns them, in a part of the partition: from `cursor` (`"0"`: the beginning) on.
    /// Returns where to go on (`"0"`: that was all) and how many there were, or the higher epoch of another leader.
    pub async fn restore(&self, partition: u16, epoch: Epoch, cursor: &str) -> Result<Result<(String, u64), Epoch>, QueueError> {
        let mut reply = Reply::new(self.run("queue_restore", partition, &[epoch.to_string().as_bytes(), cursor.as_bytes()]).await?)?;
        if reply.number()? != 1 {
            return Ok(Err(reply.epoch()?));
        }
        let (next, restored) = (reply.text()?, reply.count()?);
        self.tell_restored(partition, restored);
        Ok(Ok((next, restored)))
    }

    pub(super) fn tell_restored(&self, partition: u16, restored: u64) {
        if restored > 0 {
            let queue = self.name();
            warn!(
                queue,
                partition,
                restored,
                "items of the work queue were in none of its places, as keys of it were lost or damaged: they are put back"
            );
        }
    }
}
