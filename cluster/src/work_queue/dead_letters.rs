//! Items that no worker could use: listed, given another chance, or removed.

use serde::{Deserialize, Serialize};

use super::{QueueError, WorkQueue};
use crate::{
    identity::Epoch,
    reply::{Reply, number},
    valkey_error::ValkeyError,
};

/// One dead letter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Name.
    pub id: String,
    /// Unix milliseconds of its death.
    pub died_at: u64,
    /// The node that holds the original.
    pub owner: String,
    /// 0 to 9.
    pub priority: u8,
    /// Leases it had.
    pub attempts: u32,
    /// Leases it could have.
    pub max_attempts: u32,
    /// Unix milliseconds of its enqueueing.
    pub created_at: u64,
    /// The last thing that went wrong.
    pub reason: String,
}

impl WorkQueue {
    /// Up to 128 dead letters from `offset` on, the oldest first.
    pub async fn dead(&self, partition: u16, offset: u64, count: u64) -> Result<Vec<DeadLetter>, QueueError> {
        let (offset, count) = (offset.to_string(), count.to_string());
        let mut reply = Reply::new(self.with_ids("queue_dead", partition, &[&offset, &count], &[]).await?)?;
        let mut letters = Vec::new();
        while !reply.is_empty() {
            let mut letter = reply.list()?;
            let (id, died_at, owner) = (letter.text()?, letter.count()?, letter.text()?);
            let mut small = || letter.count().map(|number| u32::try_from(number).unwrap_or(u32::MAX));
            let (priority, attempts, max_attempts) = (small()?, small()?, small()?);
            let priority = u8::try_from(priority).map_err(|_| ValkeyError::Malformed("a priority"))?;
            letters.push(DeadLetter {
                id,
                died_at,
                owner,
                priority,
                attempts,
                max_attempts,
                created_at: letter.count()?,
                reason: letter.text()?,
            });
        }
        Ok(letters)
    }

    /// Dead letters get their attempts back: those named (up to [`IDS_PER_CALL`](super::IDS_PER_CALL)), or the oldest 128. Returns how many.
    pub async fn requeue(&self, partition: u16, ids: &[&str]) -> Result<u64, QueueError> {
        let moved = number(self.with_ids("queue_requeue", partition, &[&self.work_channel()], ids).await?)?;
        Ok(u64::try_from(moved).unwrap_or(0))
    }

    /// Removes dead letters: those named, or up to 128 that died longer than `older_than_ms` ago. With `epoch` a leader's chore, which
    /// answers the higher epoch when another leads.
    pub async fn purge(
        &self,
        partition: u16,
        epoch: Option<Epoch>,
        older_than_ms: u64,
        ids: &[&str],
    ) -> Result<Result<u64, Epoch>, QueueError> {
        let (epoch, older) = (epoch.unwrap_or_default().to_string(), older_than_ms.to_string());
        let mut reply = Reply::new(self.with_ids("queue_purge", partition, &[&epoch, &older], ids).await?)?;
        let is_done = reply.number()? == 1;
        Ok(if is_done { Ok(reply.count()?) } else { Err(reply.epoch()?) })
    }
}
