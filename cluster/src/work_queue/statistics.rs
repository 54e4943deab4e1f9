//! How full the queue is, over its partitions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{QueueError, WorkQueue};
use crate::{reply::Reply, valkey_error::ValkeyError, work_item::ITEM_ID_BYTES_MAX};

/// Counts over all partitions; the first four names are those of the admin API.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct QueueStats {
    /// Ready and scheduled.
    pub pending: u64,
    /// Leased.
    pub processing: u64,
    /// Dead letters.
    pub failed: u64,
    /// All three.
    pub total: u64,
    /// Of the pending, those that wait for a time.
    pub scheduled: u64,
    /// Completed and not yet settled by their owners, or withdrawn by them a short while ago.
    pub unsettled: u64,
    /// Of the unsettled, those of which their owners have not heard.
    #[serde(default)]
    pub unheard: u64,
    /// Age of the item that has waited for a worker for longest, in milliseconds.
    #[serde(default)]
    pub oldest_ready_age_ms: u64,
    /// Age of the oldest dead letter, in milliseconds.
    pub oldest_dead_age_ms: u64,
    /// The item that was found damaged last, or without its content, and left the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged_last: Option<String>,
    /// Since the data's beginning: enqueued, leased, completed, failed, recovered, died, stale, dead_full, purged, withdrawn, damaged, unproven,
    /// outcomes_dropped (of which their owners had not heard), heard_dropped (of which they had), counters_reset (which were no
    /// numbers), quarantined (keys of another type, put aside).
    pub counters: BTreeMap<String, u64>,
    /// Partitions that did not answer: what they have is in none of the counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<u16>,
}

impl QueueStats {
    /// Damaged counts are shown as they are; they must not end a process.
    fn add(&mut self, mut reply: Reply) -> Result<(), ValkeyError> {
        let now = reply.count()?;
        let (ready, scheduled, leased, dead, unsettled) = (reply.count()?, reply.count()?, reply.count()?, reply.count()?, reply.count()?);
        let unheard = reply.count()?;
        let (oldest_dead, _next_due, oldest_ready) = (reply.count()?, reply.count()?, reply.count()?);
        let damaged = reply.bytes()?;
        if !damaged.is_empty() {
            self.damaged_last = Some(String::from_utf8_lossy(&damaged).chars().take(ITEM_ID_BYTES_MAX).collect());
        }
        let add = |sum: &mut u64, count: u64| *sum = sum.saturating_add(count);
        add(&mut self.pending, ready.saturating_add(scheduled));
        add(&mut self.scheduled, scheduled);
        add(&mut self.processing, leased);
        add(&mut self.failed, dead);
        add(&mut self.unsettled, unsettled);
        add(&mut self.unheard, unheard);
        let age = |since: u64| if since > 0 { now.saturating_sub(since) } else { 0 };
        self.oldest_dead_age_ms = self.oldest_dead_age_ms.max(age(oldest_dead));
        self.oldest_ready_age_ms = self.oldest_ready_age_ms.max(age(oldest_ready));
        while !reply.is_empty() {
            let (name, value) = (reply.text()?, reply.count()?);
            if !matches!(name.as_str(), "sequence" | "turns" | "watched" | "watched_at") {
                add(self.counters.entry(name).or_default(), value);
            }
        }
        self.total = self.pending.saturating_add(self.processing).saturating_add(self.failed);
        Ok(())
    }
}

impl WorkQueue {
    /// Counts over all partitions that answer; those that do not are named. Fails when none does.
    pub async fn stats(&self) -> Result<QueueStats, QueueError> {
        let mut asked = JoinSet::new();
        for partition in 0..self.bounds.partitions {
            let queue = self.clone();
            asked.spawn(async move { (partition, queue.run("queue_stats", partition, &[]).await) });
        }
        let (mut stats, mut failed) = (QueueStats::default(), None);
        while let Some(Ok((partition, answer))) = asked.join_next().await {
            // What came of a partition that is damaged is left out whole.
            let mut with_it = stats.clone();
            match answer.and_then(Reply::new).and_then(|reply| with_it.add(reply)) {
                Ok(()) => stats = with_it,
                Err(error) => {
                    stats.unanswered.push(partition);
                    failed = Some(error);
                }
            }
        }
        stats.unanswered.sort_unstable();
        match failed {
            Some(error) if stats.unanswered.len() == usize::from(self.bounds.partitions) => Err(error.into()),
            _ => Ok(stats),
        }
    }
}
