//! A few thousand seeds, and each control until it goes red: the full figures come from `ringpost-disk-model`.

use ringpost_sim::{Control, Counters, run, run_shards};

/// Seeds of the smoke run. Unoptimised builds take fewer, to stay within seconds.
const SEEDS: u64 = if cfg!(debug_assertions) { 120 } else { 4000 };

#[test]
fn acknowledged_messages_survive_every_cut() {
    let mut counters = Counters::default();
    for seed in 1..=SEEDS {
        match run(seed, None) {
            Ok(met) => counters.add(&met),
            Err(loss) => panic!("{loss}"),
        }
    }
    for (name, count) in counters.all() {
        println!("{name:32} {count:>12}");
        let is_rare = matches!(name, "room_made" | "header_torn" | "retired");
        assert!(count > 0 || is_rare, "{name} was never met");
    }
}

#[test]
fn logs_whose_shard_is_gone_are_adopted_and_nothing_is_lost() {
    let mut counters = Counters::default();
    for seed in 1..=SEEDS / 4 {
        match run_shards(seed, None) {
            Ok(met) => counters.add(&met),
            Err(loss) => panic!("{loss}"),
        }
    }
    assert!(counters.retired > 0 && counters.bounced > 0 && counters.settled > 0);
}

#[test]
fn equal_seeds_give_equal_runs() {
    for seed in [3, 77, 1001] {
        assert_eq!(run(seed, None).expect("no loss"), run(seed, None).expect("no loss"));
    }
}

#[test]
fn each_mechanism_left_out_is_noticed() {
    for (name, control) in Control::ALL {
        let from = if cfg!(debug_assertions) { FOUND_BY.iter().find(|found| found.0 == name).map_or(1, |found| found.1) } else { 1 };
        let red = (from..from + 40_000).find(|&seed| run(seed, Some(control)).is_err());
        println!("{name}: red at seed {red:?}");
        assert!(red.is_some(), "{name} stays green");
    }
}

/// Where the slow ones turn red, so that an unoptimised build need not search.
const FOUND_BY: [(&str, u64); 2] = [("append-after-restart", 15370), ("in-flight-across-segments", 2470)];
