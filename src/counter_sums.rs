//! What the counters of all shards come to for their node. Pure.

use std::collections::BTreeMap;

/// Name and value of each: summed, but for what is no amount of its shard. A highest value so far, whose name ends in `_max`, is the highest of all;
/// `spool_reserve` is 1 where a shard has it, since shards share a disk; and `pool_avg_wait_time_us` goes by all that waited.
pub fn counter_sums(shards: impl IntoIterator<Item = Vec<(&'static str, u64)>>) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for (name, value) in shards.into_iter().flatten() {
        let sum = sums.entry(name).or_insert(0_u64);
        let is_highest = name.ends_with("_max") || name == "spool_reserve";
        *sum = if is_highest { (*sum).max(value) } else { sum.wrapping_add(value) };
    }
    if let (Some(&time), Some(&count)) = (sums.get("pool_wait_time_us"), sums.get("pool_wait_count")) {
        sums.insert("pool_avg_wait_time_us", time.checked_div(count).unwrap_or(0));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With eight shards on a disk that keeps its reserve it was 8.
    #[test]
    fn what_shards_have_in_common_is_not_summed() {
        let shard = |accepted, reserve, in_flight, waited_us| {
            vec![
                ("accepted", accepted),
                ("spool_reserve", reserve),
                ("in_flight_max", in_flight),
                ("pool_wait_time_us", waited_us),
                ("pool_wait_count", 2),
            ]
        };
        let sums = counter_sums([shard(3, 1, 2, 10), shard(4, 0, 7, 30), shard(5, 1, 1, 20)]);
        assert_eq!(["accepted", "spool_reserve", "in_flight_max", "pool_avg_wait_time_us"].map(|name| sums[name]), [12, 1, 7, 10]);
        assert_eq!(counter_sums([shard(3, 0, 2, 10), shard(4, 0, 7, 30)])["spool_reserve"], 0);
    }
}
