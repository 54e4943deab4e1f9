//! Whether the shards move: a heartbeat must not be sent by a thread that lives while the shards hang.

use std::time::Duration;

use crate::boot_time::BootTime;

/// Answers of each shard to the coordinator's questions.
#[derive(Clone, Debug)]
pub struct Progress {
    shards: Vec<(u64, BootTime)>,
    stalled_after: Duration,
}

impl Progress {
    /// `shards` shards that are taken for alive at `now`; one that is silent for `stalled_after` is stalled.
    pub fn new(shards: usize, stalled_after: Duration, now: BootTime) -> Progress {
        Progress { shards: vec![(0, now); shards], stalled_after }
    }

    /// A shard answered.
    pub fn answered(&mut self, shard: usize, now: BootTime) {
        if let Some((count, at)) = self.shards.get_mut(shard) {
            *count += 1;
            *at = now;
        }
    }

    /// The first shard that is stalled, and for how long it has been silent.
    pub fn stalled(&self, now: BootTime) -> Option<(usize, Duration)> {
        let silent = self.shards.iter().map(|(_, at)| now.since(*at));
        silent.enumerate().find(|(_, silence)| *silence >= self.stalled_after)
    }

    /// One running number a shard, for the heartbeat.
    pub fn counters(&self) -> Vec<u64> {
        self.shards.iter().map(|(count, _)| *count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_silent_shard_is_enough() {
        let at = |s| BootTime::after_boot(Duration::from_secs(s));
        let mut progress = Progress::new(2, Duration::from_secs(3), at(10));
        progress.answered(0, at(12));
        progress.answered(9, at(12));
        assert_eq!(progress.stalled(at(12)), None);
        assert_eq!(progress.stalled(at(13)), Some((1, Duration::from_secs(3))));
        assert_eq!(progress.counters(), [1, 0]);
    }
}
