//! Items that no worker could use: listed, given another chance, or removed.

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::Retry;
use super::{IDS_PER_CALL, QueueError, WorkQueue};
use crate::{identity::Epoch, reply::Reply, valkey_error::ValkeyError};

/// The first wait of a dead letter that nobody owns any more, and the longest: each is as long as all that was before.
const REVIVAL_WAIT_MS: (u64, u64) = (5 * 60 * 1000, 80 * 60 * 1000);
/// One that has died again and again for so long stays: its workers may die of it.
const REVIVED_FOR_MS: u64 = 5 * 24 * 3600 * 1000;
/// Why an item died that was in the queue when its time had come. It has none any more once it is requeued.
const EXPIRED: &str = "expired";

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

impl DeadLetter {
    /// Whether it gets another chance when its owner is not there to see to it. `now_ms`: Unix time.
    pub fn is_to_be_revived(&self, now_ms: u64) -> bool {
        let (wait_min, wait_max) = REVIVAL_WAIT_MS;
        let age = self.died_at.saturating_sub(self.created_at);
        let is_over = now_ms >= self.died_at.saturating_add(age.clamp(wait_min, wait_max));
        is_over && (age < REVIVED_FOR_MS || self.reason == EXPIRED)
    }
}

/// Some dead letters of a partition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeadPage {
    /// Those that can be read.
    pub letters: Vec<DeadLetter>,
    /// What was looked at, readable or not: the next page begins so much later. Fewer than were asked for, and at most 128: there is no next.
    pub places: u64,
}

/// What a look through the dead letters of a partition came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Revived {
    /// They wait for a worker again.
    pub requeued: u64,
    /// They stay.
    pub left: u64,
}

/// What an operator's word removed from a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Purged {
    /// Dead letters.
    pub letters: u64,
    /// Items that waited, and that no worker could read.
    pub unread: u64,
}

impl WorkQueue {
    /// Requeues the dead letters that no owner sees to, each when it is due: nobody else would, and what is in the queue may be the last copy. By
    /// anybody, as often as one likes. A node that is taken for absent by mistake has its letter tried once more.
    pub async fn revive(&self, partition: u16, has_owner: impl Fn(&DeadLetter) -> bool, now_ms: u64) -> Result<Revived, QueueError> {
        let (mut orphans, mut seen, mut offset) = (Vec::new(), 0, 0);
        while offset < self.bounds.dead_max {
            let DeadPage { letters, places } = self.dead_page(partition, offset, IDS_PER_CALL as u64).await?;
            offset += places;
            seen += letters.len() as u64;
            orphans
                .extend(letters.into_iter().filter(|letter| !has_owner(letter) && letter.is_to_be_revived(now_ms)).map(|letter| letter.id));
            if places < IDS_PER_CALL as u64 {
                break;
            }
        }
        let mut requeued = 0;
        for ids in orphans.chunks(IDS_PER_CALL) {
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            requeued += self.requeue(partition, &ids).await?;
        }
        Ok(Revived { requeued, left: seen.saturating_sub(requeued) })
    }

    /// Up to 128 dead letters from `offset` on, the oldest first; those that cannot be read are left out.
    pub async fn dead(&self, partition: u16, offset: u64, count: u64) -> Result<Vec<DeadLetter>, QueueError> {
        Ok(self.dead_page(partition, offset, count).await?.letters)
    }

    /// The same, and where the next page begins.
    pub async fn dead_page(&self, partition: u16, offset: u64, count: u64) -> Result<DeadPage, QueueError> {
        let (offset, count) = (offset.to_string(), count.to_string());
        let mut reply = Reply::new(self.with_ids("queue_dead", partition, &[&offset, &count], &[]).await?)?;
        let (places, mut letters) = (reply.count()?, Vec::new());
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
                reason: String::from_utf8_lossy(&letter.bytes()?).into_owned(),
            });
        }
        Ok(DeadPage { letters, places })
    }

    /// Dead letters get their attempts back: those named (up to [`IDS_PER_CALL`]), or the oldest 128. Returns how many. Of the oldest those that cannot
    /// be read leave the queue, so that none may be counted though others are left.
    pub async fn requeue(&self, partition: u16, ids: &[&str]) -> Result<u64, QueueError> {
        let channel = self.work_channel();
        let mut reply = Reply::new(self.with_ids("queue_requeue", partition, &[&channel], ids).await?)?;
        let moved = reply.count()?;
        self.valkey.announced(&channel, reply.number()?);
        Ok(moved)
    }

    /// Removes dead letters, by an operator's word: those named (up to [`IDS_PER_CALL`]), or the oldest 128. Those named go too where they wait, and the
    /// last that leased them could not read them ([`Retry::Unread`]).
    pub async fn purge(&self, partition: u16, ids: &[&str]) -> Result<Purged, QueueError> {
        let mut reply = Reply::new(self.with_ids("queue_purge", partition, &[], ids).await?)?;
        Ok(Purged { letters: reply.count()?, unread: reply.count()? })
    }

    /// Removes dead letters that leaders have watched for `kept_ms`, of up to 128 from `offset` on. A leader's chore: what a partition is looked at less
    /// often than once a minute counts as less time. Answers how many were removed and where to go on (0: the beginning), or the higher epoch of another
    /// leader.
    pub async fn retire(&self, partition: u16, epoch: Epoch, kept_ms: u64, offset: u64) -> Result<Result<(u64, u64), Epoch>, QueueError> {
        let args = [epoch.to_string(), kept_ms.to_string(), offset.to_string()];
        let mut reply = Reply::new(self.with_ids("queue_retire", partition, &args.each_ref().map(String::as_str), &[]).await?)?;
        if reply.number()? != 1 {
            return Ok(Err(reply.epoch()?));
        }
        Ok(Ok((reply.count()?, reply.count()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    #[test]
    fn a_dead_letter_that_nobody_owns_waits_longer_each_time_and_not_for_ever() {
        let letter = |age: u64, reason: &str| DeadLetter {
            id: "n1:a".to_owned(),
            died_at: 1_000_000 + age,
            owner: "n1".to_owned(),
            priority: 5,
            attempts: 5,
            max_attempts: 5,
            created_at: 1_000_000,
            reason: reason.to_owned(),
        };
        for (age, wait) in [(0, 5), (4, 5), (30, 30), (60, 60), (300, 80), (5 * 24 * 60 - 1, 80)] {
            let letter = letter(age * MINUTE, "its worker went away");
            let due = letter.died_at + wait * MINUTE;
            assert_eq!([due - 1, due].map(|now| letter.is_to_be_revived(now)), [false, true], "{age}");
        }
        assert!(!letter(5 * 24 * 60 * MINUTE, "its worker went away").is_to_be_revived(u64::MAX));
        // That one has not been tried: whoever leases it reports to its sender that its time is over.
        assert!(letter(5 * 24 * 60 * MINUTE, EXPIRED).is_to_be_revived(u64::MAX));
    }
}
