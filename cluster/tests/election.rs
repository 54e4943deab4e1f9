//! The election of whole nodes over a model of Valkey: pauses, partitions, restarts, clock steps, failovers that lose writes.
//!
//! `RINGPOST_SEEDS=100000 cargo test --profile fast -p ringpost-cluster --test election` is the long run.

#[path = "simulation/valkey.rs"]
mod valkey;
#[path = "simulation/world.rs"]
mod world;

use world::World;

/// What is left out of the model's scripts to see that the checks notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// Nothing.
    None,
    /// A landing place does not compare epochs.
    EpochUnchecked,
    /// Acquire and heartbeat do not raise the epoch to the nodes' floor.
    FloorIgnored,
}

fn seeds(default: u64) -> u64 {
    std::env::var("RINGPOST_SEEDS").ok().map_or(default, |text| text.parse().expect("RINGPOST_SEEDS is a number"))
}

#[test]
fn no_stale_effect_no_epoch_twice_and_no_epoch_falls() {
    let (mut effects, mut refused, mut lossy) = (0, 0, 0);
    let seeds = seeds(1000);
    for seed in 0..seeds {
        let outcome = World::run(seed, Mutant::None);
        assert_eq!(outcome.violation, None, "seed {seed}");
        effects += outcome.effects;
        refused += outcome.refused;
        lossy += outcome.lossy_failovers;
    }
    println!("{seeds} seeds: {effects} effects accepted, {refused} stale ones refused, {lossy} failovers lost an epoch");
    // A run in which nothing happened would prove nothing.
    assert!(effects > seeds * 20 && refused > seeds && lossy > seeds / 20, "{effects} {refused} {lossy}");
}

#[test]
fn equal_seeds_have_equal_traces() {
    for seed in [1, 77, 4096] {
        assert_eq!(World::run(seed, Mutant::None).trace, World::run(seed, Mutant::None).trace);
    }
    assert_ne!(World::run(1, Mutant::None).trace, World::run(2, Mutant::None).trace);
}

/// The first seed that notices a mutant.
fn noticed(mutant: Mutant) -> Option<(u64, String)> {
    (0..300).find_map(|seed| World::run(seed, mutant).violation.map(|violation| (seed, violation)))
}

#[test]
fn an_unchecked_epoch_is_noticed() {
    let (_, violation) = noticed(Mutant::EpochUnchecked).expect("300 seeds find it");
    assert!(violation.contains("was accepted after"), "{violation}");
}

#[test]
fn an_ignored_floor_is_noticed() {
    let (_, violation) = noticed(Mutant::FloorIgnored).expect("300 seeds find it");
    assert!(violation.contains("repeats"), "{violation}");
}
