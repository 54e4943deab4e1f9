//! What is done in all partitions: in each that answers, whatever becomes of the others, which are named.

use serde::{Deserialize, Serialize};

use super::{DeadLetter, IDS_PER_CALL, Purged, QueueError, WorkQueue};

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Items that it was done with, also in partitions that failed later.
    pub count: u64,
    /// Of them those that were no dead letters, but waited for somebody who can read them: see [`WorkQueue::purge`].
    #[serde(default, skip_serializing_if = "is_none")]
    pub unread: u64,
    /// Partitions that did not answer, or not to the end: something of them may be left as it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<u16>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// The same while it is under way.
#[derive(Default)]
struct Asked {
    tally: Tally,
    has_answer: bool,
    failed: Option<QueueError>,
}

impl Asked {
    fn heard(&mut self, partition: u16, answer: Result<(), QueueError>) {
        match answer {
            Ok(()) => self.has_answer = true,
            Err(error) => {
                self.tally.unanswered.push(partition);
                self.failed = Some(error);
            }
        }
    }

    /// Fails where nothing was answered.
    fn ended(self) -> Result<Tally, QueueError> {
        match self.failed {
            Some(error) if !self.has_answer && self.tally.count == 0 => Err(error),
            _ => Ok(self.tally),
        }
    }
}

/// What is done with dead letters.
#[derive(Clone, Copy)]
enum Fate {
    Requeue,
    Purge,
}

impl WorkQueue {
    /// Dead letters get their attempts back: those named, or all where none is. Fails when no partition that is asked answers.
    pub async fn requeue_all(&self, ids: &[String]) -> Result<Tally, QueueError> {
        self.decide_all(ids, Fate::Requeue).await
    }

    /// Removes dead letters, by an operator's word: those named, with what of them waits and nobody can read, or all where none is. Fails when no partition that is asked answers.
    pub async fn purge_all(&self, ids: &[String]) -> Result<Tally, QueueError> {
        self.decide_all(ids, Fate::Purge).await
    }

    async fn decide_all(&self, ids: &[String], fate: Fate) -> Result<Tally, QueueError> {
        let mut asked = Asked::default();
        for partition in 0..self.bounds.partitions {
            let here: Vec<&str> = ids.iter().map(String::as_str).filter(|id| self.partition(id) == partition).collect();
            let answer = if ids.is_empty() {
                self.decide_each(partition, fate, &mut asked.tally).await
            } else if here.is_empty() {
                continue;
            } else {
                self.decide_named(partition, &here, fate, &mut asked.tally).await
            };
            asked.heard(partition, answer);
        }
        asked.ended()
    }

    async fn decide_each(&self, partition: u16, fate: Fate, tally: &mut Tally) -> Result<(), QueueError> {
        loop {
            let moved = self.decide(partition, &[], fate, tally).await?;
            // Behind those that cannot be read, which leave the queue, are others.
            let is_over = moved == 0 && !(matches!(fate, Fate::Requeue) && self.dead_page(partition, 0, 1).await?.places > 0);
            if is_over {
                return Ok(());
            }
        }
    }

    async fn decide_named(&self, partition: u16, ids: &[&str], fate: Fate, tally: &mut Tally) -> Result<(), QueueError> {
        for ids in ids.chunks(IDS_PER_CALL) {
            self.decide(partition, ids, fate, tally).await?;
        }
        Ok(())
    }

    /// Returns how many there were, which are counted by then.
    async fn decide(&self, partition: u16, ids: &[&str], fate: Fate, tally: &mut Tally) -> Result<u64, QueueError> {
        let Purged { letters, unread } = match fate {
            Fate::Requeue => Purged { letters: self.requeue(partition, ids).await?, unread: 0 },
            Fate::Purge => self.purge(partition, ids).await?,
        };
        tally.count += letters + unread;
        tally.unread += unread;
        Ok(letters + unread)
    }

    /// Takes back leases that ran out, up to 128 in each partition. Fails when none answers.
    pub async fn recover_all(&self) -> Result<Tally, QueueError> {
        let mut asked = Asked::default();
        for partition in 0..self.bounds.partitions {
            let answer = self.recover(partition, 0).await.map(|swept| asked.tally.count += swept.waiting + swept.died);
            asked.heard(partition, answer);
        }
        asked.ended()
    }

    /// Up to `limit` dead letters, of each partition the oldest first, and the partitions that did not answer. Fails when none does.
    pub async fn dead_letters(&self, limit: usize) -> Result<(Vec<DeadLetter>, Vec<u16>), QueueError> {
        let (mut letters, mut asked) = (Vec::new(), Asked::default());
        for partition in 0..self.bounds.partitions {
            if letters.len() >= limit {
                break;
            }
            let answer = self.dead_of(partition, limit, &mut letters).await;
            asked.heard(partition, answer);
        }
        asked.tally.count = letters.len() as u64;
        letters.truncate(limit);
        Ok((letters, asked.ended()?.unanswered))
    }

    async fn dead_of(&self, partition: u16, limit: usize, letters: &mut Vec<DeadLetter>) -> Result<(), QueueError> {
        let mut offset = 0;
        while letters.len() < limit {
            let page = self.dead_page(partition, offset, IDS_PER_CALL as u64).await?;
            offset += page.places;
            letters.extend(page.letters);
            if page.places < IDS_PER_CALL as u64 {
                break;
            }
        }
        Ok(())
    }
}
