//! Home shards: who delivers to a destination, and what of its limits is whose.
//!
//! A destination has one home for each [`CONNECTIONS_PER_HOME`] connections that it may be given, up to all shards, chosen by
//! rendezvous hashing. Each home owns an equal part of the limits, so they hold exactly and nobody counts for another. A shard
//! that is a home delivers its own mail; the others bring theirs to the homes ([`crate::guest`]), each with a few dispatches
//! out at a time: its credits. What has no credit stays in the ready queue of its owner.

use std::sync::Arc;

use crate::destination_id::DestinationId;
use crate::guest::GuestSite;
use crate::queue::Queue;
use crate::quota::Quota;
use crate::route::{DestinationLimits, Via};
use crate::site::Role;
use crate::wait::Wait;

/// A destination gets a further home when each of those it has would own more than so many of its connections: enough to keep
/// a core busy, and few enough to be shared by all that the home delivers.
pub const CONNECTIONS_PER_HOME: u32 = 8;

/// Dispatches that one shard has out at one home at most, whatever the home's part of the limits: each holds memory there.
const CREDITS_MAX: u32 = 32;

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
    fn give_way(self, route: &str, site: &str, limits: &DestinationLimits, part: Part) -> Option<(DestinationLimits, Placement)> {
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
    fn place_among<'a>(
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

impl Queue {
    /// What this shard is for a destination from now on, by the limits that its route has now and those that other shards may still go
    /// by. Homes give way and come: guests of what is no home any more are refused at once, attempts under way end where they are.
    pub(crate) fn assign_homes(&mut self, slot: u32, now: u64) {
        let state = &mut self.destinations[slot as usize];
        let Some(route) = state.route else { return };
        let number = usize::from(route.0);
        let route = &self.routes.all()[number];
        let before = self.limits_before.iter().filter_map(|table| table.get(number));
        let homes = self.settings.homes;
        let site = match (&route.via, &state.role) {
            (Via::Smarthost { .. } | Via::Lmtp { .. }, Role::Route) => Some(""),
            (_, Role::Site(site)) => Some(&*site.key),
            _ => None,
        };
        let (mut limits, mut placement) = match (site, &route.via) {
            (Some(site), _) => homes.place_among(&route.pattern, site, before, &route.limits),
            // Each shard writes its own mail itself.
            (None, Via::Maildir { .. }) => (self.settings.homes.share(&route.limits), Placement::default()),
            _ => (route.limits, Placement::default()),
        };
        if let (Some(site), None, Some(_)) = (site, &placement.away, state.crowding.gives_way_until(now))
            && let Some(elsewhere) = homes.give_way(&route.pattern, site, &route.limits, placement.part)
        {
            (limits, placement) = elsewhere;
        }
        let Placement { part, away } = placement;
        let before = std::mem::replace(&mut state.away, away);
        if let (Some(before), Some(away)) = (before, &mut state.away) {
            away.carry_over(&before);
        }
        if state.limits.shared_rate != limits.shared_rate {
            // What was reserved, and for how long nothing more can be, was by another limit.
            state.quota = Quota::default();
        }
        (state.limits, state.part) = (limits, part);
        state.limit_window();
        if state.away.is_some() {
            self.refuse_guests(slot, now, now);
        }
    }

    /// As [`Queue::assign_homes`], for a destination that was just made.
    pub(crate) fn assign_first_homes(&mut self, slot: u32) {
        self.assign_homes(slot, 0);
        self.destinations[slot as usize].begin_window();
    }

    /// Does this shard make the attempts at this destination itself?
    pub fn is_home(&self, destination: DestinationId) -> bool {
        self.live(destination).is_none_or(|destination| destination.away.is_none())
    }

    /// Of a limit of the whole node, what this shard owns for a destination that it is a home of; those of all homes add up to it.
    pub fn part_of(&self, destination: DestinationId, limit: u32) -> u32 {
        self.live(destination).map_or(limit, |destination| destination.part.of(limit))
    }

    /// Every shard has come down to its part of the limits of [`Queue::begin_routes`]: from now on each has its whole part, at a
    /// destination when [`Queue::reconfigure`] was called for its slot.
    pub fn begin_settling(&mut self) {
        self.limits_before.clear();
    }

    /// Connections that this shard may have to a destination as its home; 0 where it is none.
    pub fn home_connections_max(&self, destination: DestinationId) -> u32 {
        self.live(destination).filter(|state| state.away.is_none()).map_or(0, |state| state.limits.connections_max)
    }

    /// Connections that this shard may have to a destination.
    pub fn connections_max(&self, destination: DestinationId) -> u32 {
        self.live(destination).map_or(0, |destination| destination.limits.connections_max)
    }
}

/// How a shard that is no home of a destination stands with those that are.
#[derive(Debug)]
pub(crate) struct Away {
    /// In the order in which this shard prefers them: each shard begins with another.
    homes: Vec<HomeState>,
    /// Dispatches out at each, at most.
    credits: u16,
    /// The operator wants it tried at once: the next dispatch says so.
    pub(crate) revive: bool,
    /// What the homes are told of a site, which they may not have asked DNS about; made at first use.
    pub(crate) site: Option<Arc<GuestSite>>,
}

#[derive(Debug)]
struct HomeState {
    shard: u16,
    /// Dispatches out.
    out: u16,
    /// It said that it can do nothing before, and why.
    sleeps_until: u64,
    wait: Wait,
    /// What those that it has wait for there, as it last said.
    busy_with: Wait,
}

impl Away {
    fn new(mut homes: Vec<u16>, shard: u16, connections: u32) -> Self {
        let first = usize::from(shard) % homes.len();
        homes.rotate_left(first);
        // Two for each connection, one under way and one chained behind it, and as many more as are on the lanes meanwhile.
        let credits = (2 * connections + 2).min(CREDITS_MAX) as u16;
        let homes =
            homes.into_iter().map(|shard| HomeState { shard, out: 0, sleeps_until: 0, wait: Wait::Turn, busy_with: Wait::Turn }).collect();
        Self { homes, credits, revive: false, site: None }
    }

    /// Dispatches that are out at homes that stay.
    fn carry_over(&mut self, before: &Away) {
        for home in &mut self.homes {
            home.out = before.homes.iter().find(|old| old.shard == home.shard).map_or(0, |old| old.out);
        }
    }

    pub(crate) fn credits_of_all(&self) -> u32 {
        u32::from(self.credits) * self.homes.len() as u32
    }

    fn best(&mut self, now: u64) -> Option<&mut HomeState> {
        let credits = self.credits;
        let open = self.homes.iter_mut().filter(|home| home.out < credits && home.sleeps_until <= now);
        open.min_by_key(|home| home.out)
    }

    pub(crate) fn has_credit(&self, now: u64) -> bool {
        self.homes.iter().any(|home| home.out < self.credits && home.sleeps_until <= now)
    }

    /// Takes a credit of the home with the most left.
    pub(crate) fn take(&mut self, now: u64) -> Option<u16> {
        let home = self.best(now)?;
        home.out += 1;
        Some(home.shard)
    }

    /// A dispatch came back.
    pub(crate) fn give_back(&mut self, shard: u16) {
        // The homes may be others by now, if the limits were changed meanwhile.
        if let Some(home) = self.homes.iter_mut().find(|home| home.shard == shard) {
            home.out = home.out.saturating_sub(1);
        }
    }

    pub(crate) fn set_sleep(&mut self, shard: u16, until: u64, wait: Wait) {
        if let Some(home) = self.homes.iter_mut().find(|home| home.shard == shard) {
            (home.sleeps_until, home.wait) = (until, wait);
        }
    }

    /// What mail here waits for, by what the homes said; of several that sleep, the one that wakes first.
    pub(crate) fn wait(&self, now: u64) -> Wait {
        if self.has_credit(now) {
            return Wait::Turn;
        }
        match self.homes.iter().min_by_key(|home| home.sleeps_until) {
            Some(home) if home.sleeps_until > now => home.wait.until_at(home.sleeps_until),
            _ => {
                let there = self.wait_there(now);
                if there == Wait::Turn { Wait::Home { out: self.homes.iter().map(|home| u32::from(home.out)).sum() } } else { there }
            }
        }
    }

    /// What dispatches that are out wait for, as the home with the most of them last said.
    pub(crate) fn wait_there(&self, now: u64) -> Wait {
        let most = self.homes.iter().filter(|home| home.out > 0).max_by_key(|home| home.out);
        let busy_with = most.map_or(Wait::Turn, |home| home.busy_with);
        // Where the time that it gave is over it gives another one by now.
        busy_with.until().map_or(busy_with, |until| busy_with.until_at(until.max(now)))
    }

    /// What the home has lately said of those that wait there.
    pub(crate) fn set_busy(&mut self, shard: u16, busy_with: Wait) {
        if let Some(home) = self.homes.iter_mut().find(|home| home.shard == shard) {
            home.busy_with = busy_with;
        }
    }

    pub(crate) fn wake(&mut self) {
        self.homes.iter_mut().for_each(|home| home.sleeps_until = 0);
        self.revive = true;
    }

    /// When the first of those that sleep is to be asked again.
    pub(crate) fn wakes_at(&self, now: u64) -> Option<u64> {
        self.homes.iter().map(|home| home.sleeps_until).filter(|&until| until > now).min()
    }

    /// All homes sleep until then at least.
    pub(crate) fn asleep_until(&self, now: u64) -> Option<u64> {
        self.homes.iter().map(|home| home.sleeps_until).min().filter(|&until| until > now)
    }
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
    use crate::guest::Guest;
    use crate::queue::QueueSettings;
    use crate::rate::Rate;
    use crate::route::Route;
    use crate::routes::Routes;

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
                    assert_eq!(away.homes.len() as u32, homes);
                    assert!(away.homes.iter().all(|home| places[usize::from(home.shard)].1.away.is_none()), "it is a home");
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
    fn homes_give_way_and_come_when_the_limit_changes() {
        let routes = |connections_max| {
            let via = Via::Smarthost { hosts: vec!["192.0.2.1:25".parse::<std::net::SocketAddr>().unwrap().into()] };
            let retry = crate::retry::RetryPolicy::default();
            Routes::new(vec![Route { pattern: "*".into(), via, retry, limits: limits(connections_max) }]).unwrap()
        };
        let queue = |homes| Queue::new(QueueSettings { homes, ..QueueSettings::default() }, routes(1), 1, 1000);
        let mut queues: Vec<Queue> = node(3).map(queue).collect();
        let id = queues[0].route(b"x.test");
        let homes = |queues: &[Queue]| queues.iter().map(|queue| queue.is_home(id)).collect::<Vec<_>>();
        let home = homes(&queues).iter().position(|is_home| *is_home).unwrap();
        let away = (home + 1) % 3;
        assert_eq!(homes(&queues).iter().filter(|is_home| **is_home).count(), 1);
        let credit = queues[away].destinations[1].away.as_mut().unwrap().take(1000);
        assert_eq!(credit, Some(home as u16));
        let set = |queues: &mut [Queue], connections_max| {
            for queue in queues {
                queue.routes = routes(connections_max);
                queue.assign_homes(1, 1000);
            }
        };
        // Two homes, and the one that is left still owes an answer to who is none.
        set(&mut queues, 16);
        let own = |queues: &[Queue]| {
            let at_home = queues.iter().filter(|queue| queue.is_home(id));
            at_home.map(|queue| queue.connections_max(id)).collect::<Vec<_>>()
        };
        assert_eq!(own(&queues), [8, 8]);
        set(&mut queues, 30);
        assert_eq!(own(&queues), [10, 10, 10]);
        assert!(queues[home].receive(Guest::default(), 1000).is_ok(), "a guest that comes late finds a home");
        queues.iter_mut().for_each(|queue| queue.destinations[1].set_window(10));
        set(&mut queues, 1);
        assert_eq!(own(&queues), [1]);
        assert!(queues.iter().all(|queue| queue.destinations[1].away.is_some() || queue.destinations[1].window(1000) == 1));
        let gone = (0..3).find(|shard| *shard != home).unwrap();
        assert!(queues[gone].receive(Guest::default(), 1000).is_err(), "it gave way");
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

    /// It was "waits for its turn" whatever the home waited for.
    #[test]
    fn what_is_out_waits_for_what_its_home_said_last() {
        let mut away = Away::new(vec![3], 0, 1);
        while away.take(50).is_some() {}
        assert_eq!((away.wait(50), away.wait_there(50)), (Wait::Home { out: 4 }, Wait::Turn));
        let rate = Rate { messages: 10, per_ms: 1000, burst: 1 };
        away.set_busy(3, Wait::Rate { until: 60, rate });
        assert_eq!(away.wait(50), Wait::Rate { until: 60, rate });
        assert_eq!(away.wait_there(70), Wait::Rate { until: 70, rate }, "its time is over, and it has another by now");
        away.give_back(3);
        assert_eq!((away.wait(50), away.wait_there(50)), (Wait::Turn, Wait::Rate { until: 60, rate }));
        (0..3).for_each(|_| away.give_back(3));
        assert_eq!(away.wait_there(50), Wait::Turn, "nothing is out");
    }

    #[test]
    fn shards_begin_with_different_homes() {
        let firsts: std::collections::BTreeSet<u16> =
            node(64).filter_map(|homes| homes.place("*", "x", &limits(64)).1.away).map(|mut away| away.take(0).unwrap()).collect();
        assert_eq!(firsts.len(), 8);
    }

    #[test]
    fn credits_are_bounded_for_each_home_and_a_sleeping_one_is_left_alone() {
        let mut away = Away::new(vec![3, 5], 0, 1);
        let taken: Vec<_> = std::iter::from_fn(|| away.take(10)).collect();
        assert_eq!(taken, [3, 5, 3, 5, 3, 5, 3, 5]);
        assert!(!away.has_credit(10));
        away.give_back(5);
        away.set_sleep(5, 50, Wait::Probing);
        assert!(!away.has_credit(10), "its credit sleeps, too");
        assert_eq!((away.wakes_at(10), away.asleep_until(10)), (Some(50), None));
        assert_eq!(away.wait(10), Wait::Home { out: 7 });
        assert!(away.has_credit(50));
        away.give_back(3);
        assert_eq!(away.take(10), Some(3));
        away.set_sleep(3, 40, Wait::Throttled { until: 99 });
        assert_eq!(away.asleep_until(10), Some(40));
        assert_eq!(away.wait(10), Wait::Throttled { until: 40 }, "the home that is asked first says why");
        away.wake();
        assert_eq!((away.take(10), away.revive), (Some(5), true));
    }
}
