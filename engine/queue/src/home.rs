//! Home shards: who delivers to a destination, and what of its limits is whose.
//!
//! A destination has one home for each [`CONNECTIONS_PER_HOME`] connections that it may be given, up to all shards, chosen by
//! rendezvous hashing. Each home owns an equal part of the limits, so they hold exactly and nobody counts for another. A shard
//! that is a home delivers its own mail; the others bring theirs to the homes ([`crate::guest`]), each with a few dispatches
//! out at a time: its credits. What has no credit stays in the ready queue of its owner.

use crate::away::Away;
use crate::route::DestinationLimits;

/// A destination gets a further home when each of those it has would own more than so many of its connections: enough to keep
/// a core busy, and few enough to be shared by all that the home delivers.
pub const CONNECTIONS_PER_HOME: u32 = 8;

/// This shard among all. The default is the only one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Homes {
    /// Its number, below `shards`.
    pub shard: u16,
    /// How many there are, at least 1.
    pub shards: u16,
}

impl Default for Homes {
    fn default() -> Self {
        Self { shard: 0, shards: 1 }
    }
}

/// One home's place among the homes of a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    rank: u32,
    homes: u32,
}

impl Default for Part {
    fn default() -> Self {
        Self { rank: 0, homes: 1 }
    }
}

/// What a shard is for a destination.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    pub(crate) part: Part,
    /// It is no home: how it reaches those that are.
    pub(crate) away: Option<Box<Away>>,
}

impl Part {
    /// Its part of `limit`: those of all homes add up to it and differ by one at most.
    pub(crate) fn of(self, limit: u32) -> u32 {
        limit / self.homes + u32::from(self.rank < limit % self.homes)
    }

    /// Other homes deliver there, too.
    pub(crate) fn has_others(self) -> bool {
        self.homes > 1
    }

    fn of_limits(self, limits: &DestinationLimits) -> DestinationLimits {
        DestinationLimits {
            connections_max: self.of(limits.connections_max.max(1)),
            window_initial: self.of(limits.window_initial.min(limits.connections_max)).max(1),
            rate: limits.rate.map(|rate| rate.divided(self.homes)),
            ..*limits
        }
    }
}

impl Homes {
    /// The homes of the destination with this name and these limits (of the whole node), in order of rank.
    ///
    /// Adding or removing a shard moves the destinations that it is a home of, and no others.
    pub fn of(self, route: &str, site: &str, limits: &DestinationLimits) -> Vec<u16> {
        let count = self.count(limits);
        let key = fnv(site.as_bytes(), fnv(&[0], fnv(route.as_bytes(), FNV_START)));
        let mut shards: Vec<(u64, u16)> = (0..self.shards).map(|shard| (mix(key ^ mix(u64::from(shard) + 1)), shard)).collect();
        shards.sort_unstable_by(|a, b| b.cmp(a));
        shards.truncate(usize::from(count));
        shards.into_iter().map(|(_, shard)| shard).collect()
    }

    fn count(self, limits: &DestinationLimits) -> u16 {
        let by_connections = limits.connections_max.max(1).div_ceil(CONNECTIONS_PER_HOME);
        // Each home may use its burst at any time, and nobody's is 0.
        let by_burst = limits.rate.map_or(u32::MAX, |rate| rate.burst.max(1));
        u16::try_from(by_connections.min(by_burst)).unwrap_or(u16::MAX).min(self.shards)
    }

    /// Limits of what every shard does for itself: an even part, and nobody's is nothing.
    pub(crate) fn share(self, limits: &DestinationLimits) -> DestinationLimits {
        let part = Part { rank: self.shard.into(), homes: self.shards.into() };
        let of_part = part.of_limits(limits);
        DestinationLimits { connections_max: of_part.connections_max.max(1), ..of_part }
    }

    /// What this shard is for a destination with these limits (of the whole node), and what of them is its own.
    pub(crate) fn place(self, route: &str, site: &str, limits: &DestinationLimits) -> (DestinationLimits, Placement) {
        if self.shards == 1 {
            return (*limits, Placement::default());
        }
        let homes = self.of(route, site, limits);
        let count = homes.len() as u32;
        match (0..count).zip(&homes).find(|(_, home)| **home == self.shard) {
            Some((rank, _)) => {
                let part = Part { rank, homes: count };
                (part.of_limits(limits), Placement { part, away: None })
            }
            None => self.away_from(homes, count, limits, Part::default()),
        }
    }

    /// As [`Homes::place`], for a home that leaves all to the others.
    pub(crate) fn give_way(
        self,
        route: &str,
        site: &str,
        limits: &DestinationLimits,
        part: Part,
    ) -> Option<(DestinationLimits, Placement)> {
        let mut homes = self.of(route, site, limits);
        let count = homes.len() as u32;
        homes.retain(|home| *home != self.shard);
        (!homes.is_empty()).then(|| self.away_from(homes, count, limits, part))
    }

    fn away_from(self, homes: Vec<u16>, count: u32, limits: &DestinationLimits, part: Part) -> (DestinationLimits, Placement) {
        let away = Away::new(homes, self.shard, limits.connections_max.max(1).div_ceil(count));
        let limits = DestinationLimits { connections_max: away.credits_of_all(), rate: None, shared_rate: None, ..*limits };
        (limits, Placement { part, away: Some(Box::new(away)) })
    }

    /// As [`Homes::place`], while other shards may still go by limits of `before`: nobody is more than it is by each of them, so that no
    /// home is added and no part grows before every shard has come down to its part.
    pub(crate) fn place_among<'a>(
        self,
        route: &str,
        site: &str,
        before: impl Iterator<Item = &'a DestinationLimits>,
        limits: &DestinationLimits,
    ) -> (DestinationLimits, Placement) {
        let (mut own, mut placement) = self.place(route, site, limits);
        let mut fewest = self.count(limits);
        for earlier in before {
            let (theirs, there) = self.place(route, site, earlier);
            // Homes of fewer are among those of more.
            let most = match (&placement.away, &there.away) {
                (None, None) => own.connections_max.min(theirs.connections_max),
                (None, Some(_)) => theirs.connections_max,
                (Some(_), _) => own.connections_max,
            };
            if self.count(earlier) < fewest {
                fewest = self.count(earlier);
                own = DestinationLimits { rate: theirs.rate, window_initial: theirs.window_initial, ..own };
                placement = there;
            }
            own.connections_max = most;
        }
        (own, placement)
    }
}

/// A number for a name, spread evenly and the same in every process.
pub(crate) fn number_of(name: &str) -> u64 {
    mix(fnv(name.as_bytes(), FNV_START))
}

const FNV_START: u64 = 0xCBF2_9CE4_8422_2325;

/// FNV-1a: good enough as `mix` follows, and the same in every run, so that a restart finds the same homes.
fn fnv(bytes: &[u8], start: u64) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// Spreads each bit over all (the finaliser of splitmix64).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::Rate;

    fn limits(connections_max: u32) -> DestinationLimits {
        DestinationLimits { connections_max, ..DestinationLimits::default() }
    }

    fn node(shards: u16) -> impl Iterator<Item = Homes> {
        (0..shards).map(move |shard| Homes { shard, shards })
    }

    #[test]
    fn parts_of_all_homes_add_up_to_the_limits_whatever_the_number_of_shards() {
        for shards in [1, 2, 3, 7, 16, 100] {
            for connections in [1, 2, 7, 8, 9, 20, 64, 1000] {
                let rate = Some(Rate { messages: 10, per_ms: 1000, burst: 4 });
                let whole = DestinationLimits { rate, ..limits(connections) };
                let places: Vec<_> = node(shards).map(|homes| homes.place("*", "example.org", &whole)).collect();
                let at_home = || places.iter().filter(|(_, place)| place.away.is_none()).map(|(limits, _)| limits);
                let homes = at_home().count() as u32;
                assert_eq!(at_home().map(|limits| limits.connections_max).sum::<u32>(), connections, "{shards} shards");
                assert!(at_home().all(|limits| limits.connections_max > 0));
                assert!(shards == 1 || at_home().all(|limits| limits.window_initial <= limits.connections_max));
                assert!(at_home().map(|limits| limits.rate.unwrap().burst).sum::<u32>() <= 4);
                assert!(homes == 1 || at_home().all(|limits| limits.rate.unwrap().per_ms == 1000 * u64::from(homes)));
                assert_eq!(homes, connections.div_ceil(CONNECTIONS_PER_HOME).min(4).min(shards.into()));
                for away in places.iter().filter_map(|(_, place)| place.away.as_ref()) {
                    assert_eq!(away.homes().count() as u32, homes);
                    assert!(away.homes().all(|home| places[usize::from(home)].1.away.is_none()), "it is a home");
                }
            }
        }
    }

    #[test]
    fn destinations_are_spread_evenly_and_few_move_when_a_shard_is_added() {
        let home = |shards, name: &str| Homes { shard: 0, shards }.of("*", name, &limits(1))[0];
        let names: Vec<String> = (0..10_000).map(|number| format!("d{number}.test")).collect();
        let mut counts = [0_u32; 8];
        names.iter().for_each(|name| counts[usize::from(home(8, name))] += 1);
        assert!(counts.iter().all(|count| (1100..1400).contains(count)), "{counts:?}");
        let moved = names.iter().filter(|name| home(8, name) != home(9, name)).count();
        assert!(names.iter().all(|name| home(8, name) == home(9, name) || home(9, name) == 8));
        assert!((900..1350).contains(&moved), "{moved} of 10,000 went to the ninth of nine");
    }

    #[test]
    fn who_leaves_takes_one_nth_of_the_destinations_along_and_no_other_moves() {
        let home = |shards, name: &str| Homes { shard: 0, shards }.of("*", name, &limits(1))[0];
        let names: Vec<String> = (0..10_000).map(|number| format!("d{number}.test")).collect();
        for shards in [10_u16, 100, 1000] {
            let moved = names.iter().filter(|name| home(shards, name) != home(shards - 1, name)).count();
            println!("{shards}: {moved} of 10,000 moved when the last one left");
            assert!(names.iter().all(|name| home(shards, name) == home(shards - 1, name) || home(shards, name) == shards - 1));
            // One nth, and four standard deviations of a fair choice.
            let share = 10_000.0 / f64::from(shards);
            assert!((moved as f64) < share + 4.0 * share.sqrt(), "{moved}");
        }
    }

    #[test]
    fn no_part_grows_before_all_have_come_down() {
        for shards in [2, 3, 5] {
            for old in [1, 4, 8, 9, 16, 17, 30, 40] {
                for new in [1, 5, 8, 15, 16, 17, 24, 33] {
                    let own = |limits: &DestinationLimits, place: &Placement| if place.away.is_none() { limits.connections_max } else { 0 };
                    let of = |total| {
                        node(shards).map(|homes| homes.place("*", "x", &limits(total))).map(|(l, p)| own(&l, &p)).collect::<Vec<_>>()
                    };
                    let (before, after) = (of(old), of(new));
                    let between = node(shards).map(|homes| homes.place_among("*", "x", [limits(old)].iter(), &limits(new)));
                    let between: Vec<_> = between.map(|(limits, place)| own(&limits, &place)).collect();
                    let least: Vec<_> = before.iter().zip(&after).map(|(a, b)| *a.min(b)).collect();
                    assert_eq!(between, least, "{shards} shards, {old} to {new}");
                    assert!(between.iter().any(|own| *own > 0), "somebody delivers meanwhile");
                }
            }
        }
    }

    #[test]
    fn shards_begin_with_different_homes() {
        let firsts: std::collections::BTreeSet<u16> =
            node(64).filter_map(|homes| homes.place("*", "x", &limits(64)).1.away).map(|mut away| away.take(0).unwrap()).collect();
        assert_eq!(firsts.len(), 8);
    }
}
