//! A shard's part of a limit that the config states for the whole node.

use std::num::NonZeroU16;

/// Which shard of how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// The shard's number, below `shards`.
    pub shard: u16,
    /// How many there are.
    pub shards: NonZeroU16,
}

impl Share {
    /// This shard's part of `limit`. The parts of all shards add up to the limit, except where it is smaller than their number: nobody's
    /// part is 0, because mail that one shard alone has would wait for ever.
    pub fn of(self, limit: u32) -> u32 {
        self.exact(limit).max(1)
    }

    /// This shard's part of `limit`, exactly: the last shards have nothing where the limit is smaller than their number. For what can
    /// be kept away from those, see [`listening_shards`](crate::admission::listening_shards).
    pub fn exact(self, limit: u32) -> u32 {
        let shards = u32::from(self.shards.get());
        limit / shards + u32::from(u32::from(self.shard) < limit % shards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up_to_the_limit_and_differ_by_one_at_most() {
        for shards in 1..=17u16 {
            for limit in (u32::from(shards)..200).chain([u32::MAX]) {
                let of = |shard| Share { shard, shards: NonZeroU16::new(shards).unwrap() }.of(limit);
                let parts: Vec<_> = (0..shards).map(of).collect();
                assert_eq!(parts.iter().map(|part| u64::from(*part)).sum::<u64>(), u64::from(limit), "{limit} over {shards}");
                assert!(parts.iter().max().unwrap() - parts.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn exact_parts_always_add_up_and_the_first_have_them() {
        for limit in 0..40 {
            let parts: Vec<_> = (0..8).map(|shard| Share { shard, shards: NonZeroU16::new(8).unwrap() }.exact(limit)).collect();
            assert_eq!(parts.iter().sum::<u32>(), limit);
            assert!(parts.is_sorted_by(|before, after| before >= after), "{parts:?}");
        }
    }

    #[test]
    fn no_part_is_nothing() {
        let parts = (0..8).map(|shard| Share { shard, shards: NonZeroU16::new(8).unwrap() }.of(3));
        assert_eq!(parts.collect::<Vec<_>>(), [1; 8]);
    }
}
