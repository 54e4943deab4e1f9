//! Whether segments that are to be written ahead have room beside what `spool.min_free_bytes` keeps. Pure.

use ringpost_engine::control::LogsAhead;
use ringpost_spool::{Ahead, Space};
use serde::{Deserialize, Serialize};

/// What the logs of a spool have and are to have, and the room that there is for it.
pub struct SpoolSupply {
    /// Of logs that are to have more, one for each shard.
    pub own: Vec<Ahead>,
    /// Of logs that are not, and make what they lack all the same.
    pub others: Vec<Ahead>,
    /// What may still be used of the file system.
    pub space: Space,
    /// Of that, what stays.
    pub kept: Space,
}

/// What a preparation comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// Segments that are made now, of all logs.
    pub made: u64,
    /// Segments that are ready, of all logs.
    pub ready: u64,
}

impl SpoolSupply {
    /// By what the shards say, of which there is one at least.
    pub fn of_shards(shards: Vec<LogsAhead>) -> Option<SpoolSupply> {
        let last = shards.last()?;
        let mut supply = SpoolSupply { own: Vec::new(), others: Vec::new(), space: last.space, kept: last.kept };
        for LogsAhead { own, adopted, .. } in shards {
            supply.own.push(own);
            supply.others.extend(adopted);
        }
        Some(supply)
    }

    /// Segments that are made so that each shard's log keeps `more` ready than it does, and bytes that are written for it.
    fn lacking(&self, more: u32) -> (u64, u64) {
        let own = self.own.iter().map(|log| (log, more));
        let all = own.chain(self.others.iter().map(|log| (log, 0)));
        all.fold((0, 0), |(segments, bytes), (log, more)| {
            let lacking = u64::from(log.kept.saturating_add(more).saturating_sub(log.ready));
            let left = lacking.saturating_mul(log.segment_bytes.into()).saturating_sub(log.begun_bytes.into());
            (segments + lacking, u64::saturating_add(bytes, left))
        })
    }

    fn has_room_for(&self, more: u32) -> bool {
        let (segments, bytes) = self.lacking(more);
        let room = |free: u64, kept: u64| free.saturating_sub(kept);
        bytes <= room(self.space.bytes, self.kept.bytes) && segments <= room(self.space.inodes, self.kept.inodes)
    }

    /// What comes of `more` segments for each shard. Err: they have no room, as a sentence.
    pub fn prepare(&self, more: u32) -> Result<Prepared, String> {
        let (made, bytes) = self.lacking(more);
        if self.has_room_for(more) {
            let ready = self.own.iter().chain(&self.others).map(|log| u64::from(log.ready)).sum();
            return Ok(Prepared { made, ready });
        }
        // What has room is less for more.
        let (mut least, mut beyond) = (0, more);
        while beyond - least > 1 {
            let middle = least + (beyond - least) / 2;
            if self.has_room_for(middle) { least = middle } else { beyond = middle }
        }
        let (Space { bytes: free, inodes }, kept) = (self.space, self.kept);
        Err(format!(
            "{free} bytes and {inodes} inodes are free, of which spool.min_free_bytes and spool.min_free_inodes keep {} and {}: {made} segments of {bytes} bytes, \
             which it takes for {more} more for each of {} shards, do not fit, and nothing was prepared; there is room for {least} each",
            kept.bytes,
            kept.inodes,
            self.own.len(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn log(kept: u32, ready: u32) -> Ahead {
        Ahead { segment_bytes: 8 << 20, kept, ready, ..Ahead::default() }
    }

    fn spool(own: Vec<Ahead>, free_bytes: u64) -> SpoolSupply {
        let (space, kept) = (Space { bytes: free_bytes, inodes: 1_000 }, Space { bytes: 30 * MIB, inodes: 10 });
        SpoolSupply { own, others: Vec::new(), space, kept }
    }

    /// On a disk of 150 MB it wrote until nothing was free, all of it for the first of two logs, and the next start found no room.
    #[test]
    fn what_is_prepared_leaves_what_is_to_stay_free() {
        let none = || vec![log(0, 0); 2];
        assert_eq!(spool(none(), (30 + 80) * MIB).prepare(5), Ok(Prepared { made: 10, ready: 0 }));
        let refused = spool(none(), (30 + 80) * MIB - 1).prepare(5).unwrap_err();
        assert!(refused.contains("10 segments of 83886080 bytes, which it takes for 5 more for each of 2 shards, do not fit"), "{refused}");
        assert!(refused.ends_with("nothing was prepared; there is room for 4 each"), "{refused}");
        assert!(spool(none(), 30 * MIB).prepare(u32::MAX).unwrap_err().ends_with("there is room for 0 each"));
    }

    /// A running engine said that as many as were asked for were being made of each, made as many as the disk took, and left 13 of 30 MB that were to stay.
    #[test]
    fn of_a_running_engine_what_it_lacks_itself_counts_and_what_it_has_beyond_need_not_be_made() {
        let filling = Ahead { begun_bytes: 6 << 20, ..log(4, 2) };
        let found = || SpoolSupply { others: vec![log(3, 2)], ..spool(vec![filling, log(4, 6)], 71 * MIB) };
        // The first lacks two of its own, and a further one; of the second there are two too many.
        assert_eq!(found().lacking(1), (4, (4 * 8 - 6) * MIB));
        assert_eq!(found().prepare(1), Ok(Prepared { made: 4, ready: 10 }));
        assert_eq!(found().prepare(2), Ok(Prepared { made: 5, ready: 10 }));
        let refused = found().prepare(8).unwrap_err();
        assert!(
            refused.contains("17 segments of 136314880 bytes, which it takes for 8 more") && refused.ends_with("room for 2 each"),
            "{refused}"
        );
        let few_inodes = SpoolSupply { space: Space { bytes: 1 << 40, inodes: 13 }, ..found() };
        assert!(few_inodes.prepare(1).unwrap_err().ends_with("there is room for 0 each"));
    }
}
