//! The seeds of a run's parts. All follow from one, so that whoever has that can have what was drawn again.

use serde::Serialize;

use crate::random::Random;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Seeds {
    /// Content, sizes, recipients, arrivals and aborts of the load.
    pub(super) load: u64,
    /// The same of the background.
    pub(super) background: u64,
    /// Faults and delays of each next hop.
    pub(super) sinks: Vec<u64>,
}

impl Seeds {
    /// For so many next hops.
    pub(super) fn new(seed: u64, sinks: usize) -> Seeds {
        let of_part = |part| Random::part(seed, part).bits();
        Seeds { load: of_part(0), background: of_part(1), sinks: (0..sinks as u64).map(|sink| of_part(2 + sink)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_part_has_a_seed_of_its_own_that_follows_from_the_one() {
        let seeds = Seeds::new(7, 3);
        assert_eq!(seeds, Seeds::new(7, 3));
        let all: BTreeSet<u64> = seeds.sinks.iter().copied().chain([seeds.load, seeds.background]).collect();
        assert_eq!(all.len(), 5);
        assert!(Seeds::new(8, 3).load != seeds.load && Seeds::new(7, 9).sinks[..3] == seeds.sinks);
    }
}
