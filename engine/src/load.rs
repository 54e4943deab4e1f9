//! What each shard has to do, seen by all: who passes a new connection on, and to whom.
//!
//! A shard writes its own line, others read it: sessions when they change, the share of time in which it is busy once a millisecond.
//! Readers look at all lines once a millisecond at most (`passing.rs`), so that no line is fought for.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crossbeam::utils::CachePadded;

/// In place of sessions: takes no connections.
const CLOSED: u32 = u32::MAX;
/// A shard says how it fares every millisecond unless it sleeps. One that has said nothing for so long sleeps, if it said so, or is stuck in
/// what it does.
const SILENT_AFTER: Duration = Duration::from_millis(20);
/// Over about so long busyness is averaged.
const BUSY_OVER: Duration = Duration::from_millis(100);
/// A shard less busy than this has time for whatever comes: how many sessions it has is all that counts.
const BUSY_PERMILLE_MIN: u32 = 500;
/// Looks at the loads of others that were not as they were known, for one connection. Then it stays.
const LOOKS_MAX: usize = 4;
/// All of a shard's time, in thousandths.
const WHOLE_PERMILLE: u32 = 1000;

/// The load of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Inbound sessions.
    pub sessions: u32,
    /// Thousandths of its time in which it was not asleep, of late.
    pub busy_permille: u32,
}

/// Above this share of the mean (five quarters) a load is too much.
fn is_above(load: u32, total: u32, shards: u32) -> bool {
    u64::from(load) * u64::from(shards) * 4 > u64::from(total) * 5
}

/// Which shard is to serve a connection that shard `own` has accepted and `loads` do not count yet; `None`: itself. Shards that take
/// none have no load.
///
/// It goes to the shard with the fewest sessions when this one would have more than 1.25 of the mean, and the other would still have
/// fewer. It goes to the least busy one when this one is busier than 1.25 of the mean, unless that gave the other too many sessions.
pub fn choose(own: usize, loads: &[Option<Load>]) -> Option<usize> {
    let mine = loads[own]?;
    let open = || loads.iter().enumerate().filter_map(|(shard, load)| Some((shard, (*load)?)));
    let (mut shards, mut sessions, mut busy) = (0, 1_u32, 0_u32);
    for (_, load) in open() {
        shards += 1;
        sessions = sessions.saturating_add(load.sessions);
        busy = busy.saturating_add(load.busy_permille);
    }
    if is_above(mine.sessions + 1, sessions, shards) {
        let (least, load) = open().min_by_key(|(_, load)| (load.sessions, load.busy_permille))?;
        if load.sessions < mine.sessions {
            return Some(least);
        }
    }
    if mine.busy_permille >= BUSY_PERMILLE_MIN && is_above(mine.busy_permille, busy, shards) {
        let (least, load) = open().min_by_key(|(_, load)| (load.busy_permille, load.sessions))?;
        if least != own && !is_above(load.sessions + 1, sessions, shards) {
            return Some(least);
        }
    }
    None
}

/// As [`choose`], with `known` that may be a little old: the load of the chosen shard is looked up before it counts, so that no two
/// shards pass their connections to the same one unaware of each other.
pub fn choose_surely(own: usize, known: &mut [Option<Load>], look: impl Fn(usize) -> Option<Load>) -> Option<usize> {
    // Each look makes one more load known as it is; most often the first confirms.
    for _ in 0..LOOKS_MAX {
        let chosen = choose(own, known)?;
        let load = look(chosen);
        if std::mem::replace(&mut known[chosen], load) == load {
            return Some(chosen);
        }
    }
    None
}

struct Line {
    sessions: AtomicU32,
    /// Connections passed to the shard that it has not taken yet. Counted by those who pass them.
    incoming: AtomicU32,
    /// Milliseconds since the start in the upper bits, then [`SLEEPS`], the average of `busy_permille` in the lower 15.
    busy: AtomicU64,
}

/// The shard has gone to sleep.
const SLEEPS: u64 = 1 << 15;

/// What a shard says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Busyness {
    /// Thousandths of its time in which it was not asleep, of late.
    pub busy_permille: u32,
    /// It sleeps until it says something else.
    pub sleeps: bool,
}

/// The lines of all shards.
pub struct Loads {
    start: Instant,
    lines: Box<[CachePadded<Line>]>,
}

impl Loads {
    /// Lines of `shards`, none of which takes connections yet.
    pub fn new(shards: u16) -> Loads {
        let line = || Line { sessions: AtomicU32::new(CLOSED), incoming: AtomicU32::new(0), busy: AtomicU64::new(SLEEPS) };
        Loads { start: Instant::now(), lines: (0..shards).map(|_| CachePadded::new(line())).collect() }
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.lines.len()
    }

    /// Says how many sessions `shard` has; `None`: it takes no connections.
    pub fn set_sessions(&self, shard: u16, sessions: Option<u32>) {
        let sessions = sessions.map_or(CLOSED, |sessions| sessions.min(CLOSED - 1));
        self.lines[usize::from(shard)].sessions.store(sessions, Ordering::Relaxed);
    }

    /// A connection is about to be passed to `shard`.
    pub fn passed(&self, shard: u16) {
        self.lines[usize::from(shard)].incoming.fetch_add(1, Ordering::Relaxed);
    }

    /// `shard` has taken one, and counts it among its sessions if it serves it.
    pub fn taken(&self, shard: u16) {
        self.lines[usize::from(shard)].incoming.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections on the way to `shard`.
    pub fn incoming(&self, shard: u16) -> u32 {
        self.lines[usize::from(shard)].incoming.load(Ordering::Relaxed)
    }

    /// Says how busy `shard` is.
    pub fn set_busy(&self, shard: u16, said: Busyness, now: Instant) {
        let at_ms = u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX >> 16);
        let busy = u64::from(said.busy_permille.min(WHOLE_PERMILLE)) | if said.sleeps { SLEEPS } else { 0 };
        self.lines[usize::from(shard)].busy.store(at_ms << 16 | busy, Ordering::Relaxed);
    }

    /// What `shard` last said, with the connections on the way to it; `None`: it takes none.
    pub fn get(&self, shard: u16, now: Instant) -> Option<Load> {
        let line = &self.lines[usize::from(shard)];
        let sessions = line.sessions.load(Ordering::Relaxed);
        let busy = line.busy.load(Ordering::Relaxed);
        let said = self.start + Duration::from_millis(busy >> 16);
        let is_silent = now.saturating_duration_since(said) > SILENT_AFTER;
        let busy_permille = match (is_silent, busy & SLEEPS != 0) {
            (false, _) => (busy & (SLEEPS - 1)) as u32,
            (true, true) => 0,
            (true, false) => WHOLE_PERMILLE,
        };
        (sessions != CLOSED).then(|| Load { sessions: sessions.saturating_add(self.incoming(shard)), busy_permille })
    }
}

/// How busy one shard is, from the time that its ring has slept: a moving average.
pub struct Busy {
    seen: Instant,
    slept: Duration,
    average_permille: f32,
}

impl Busy {
    /// Not busy so far.
    pub fn new(now: Instant) -> Busy {
        Busy { seen: now, slept: Duration::ZERO, average_permille: 0.0 }
    }

    /// Takes in that the ring has slept for `slept` in all by `now`; the average in thousandths.
    pub fn update(&mut self, now: Instant, slept: Duration) -> u32 {
        let elapsed = now.saturating_duration_since(self.seen).as_secs_f32();
        if elapsed > 0.0 {
            let asleep = slept.saturating_sub(self.slept).as_secs_f32();
            let busy = (1.0 - asleep / elapsed).clamp(0.0, 1.0) * WHOLE_PERMILLE as f32;
            let weight = elapsed / (elapsed + BUSY_OVER.as_secs_f32());
            self.average_permille += (busy - self.average_permille) * weight;
            (self.seen, self.slept) = (now, slept);
        }
        self.average_permille as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(counts: &[u32]) -> Vec<Option<Load>> {
        counts.iter().map(|&sessions| Some(Load { sessions, busy_permille: 0 })).collect()
    }

    #[test]
    fn a_shard_above_five_quarters_of_the_mean_passes_to_the_one_with_the_fewest() {
        assert_eq!(choose(0, &sessions(&[0, 0])), None, "one is nobody's too many");
        assert_eq!(choose(0, &sessions(&[1, 0])), Some(1));
        assert_eq!(choose(0, &sessions(&[4, 4])), None);
        assert_eq!(choose(0, &sessions(&[5, 4])), None, "6:4 is 1.2 of the mean");
        assert_eq!(choose(0, &sessions(&[9, 5, 4, 6])), Some(2));
        assert_eq!(choose(2, &sessions(&[9, 5, 4, 6])), None);
    }

    #[test]
    fn who_takes_no_connections_is_neither_counted_nor_chosen() {
        let mut loads = sessions(&[5, 0, 5]);
        loads[1] = None;
        assert_eq!(choose(0, &loads), None);
        assert_eq!(choose(1, &loads), None, "a closed shard keeps what it has");
        loads[2] = None;
        assert_eq!(choose(0, &loads), None);
    }

    #[test]
    fn a_busy_shard_passes_to_an_idle_one_unless_that_has_too_many_sessions() {
        let load = |sessions, busy_permille| Some(Load { sessions, busy_permille });
        assert_eq!(choose(0, &[load(4, 900), load(5, 100)]), Some(1));
        assert_eq!(choose(0, &[load(4, 900), load(7, 100)]), None, "8 of 12 are too many");
        assert_eq!(choose(0, &[load(4, 400), load(5, 0)]), None, "it has time enough");
        assert_eq!(choose(0, &[load(4, 1000), load(4, 1000)]), None);
    }

    /// Whatever the kernel's hash does and however old what a shard knows of the other is, up to all of it: never worse than 6:4.
    #[test]
    fn ten_connections_are_spread_six_to_four_at_worst() {
        let mut random = 1_u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for _ in 0..200_000 {
            let mut real = [0_u32; 2];
            // What each knows of the other: looked up at random times, and what it has passed itself.
            let mut known = [0_u32; 2];
            let skew = 1 + draw(9);
            for _ in 0..10 {
                let own = usize::from(draw(10) >= skew);
                let other = 1 - own;
                if draw(3) == 0 {
                    known[own] = real[other];
                }
                let load = |sessions| Some(Load { sessions, busy_permille: 0 });
                let mut loads = [None; 2];
                (loads[own], loads[other]) = (load(real[own]), load(known[own]));
                match choose_surely(own, &mut loads, |shard| load(real[shard])) {
                    Some(_) => real[other] += 1,
                    None => real[own] += 1,
                }
                known[own] = loads[other].map_or(0, |load| load.sessions);
            }
            assert!(real.iter().all(|&count| count <= 6), "{real:?}");
        }
    }

    #[test]
    fn a_shard_that_sleeps_is_not_busy_after_a_while() {
        let loads = Loads::new(1);
        let start = Instant::now();
        assert_eq!(loads.get(0, start), None);
        loads.set_sessions(0, Some(3));
        loads.set_busy(0, Busyness { busy_permille: 700, sleeps: true }, start);
        assert_eq!(loads.get(0, start), Some(Load { sessions: 3, busy_permille: 700 }));
        assert_eq!(loads.get(0, start + Duration::from_millis(50)), Some(Load { sessions: 3, busy_permille: 0 }));
        loads.passed(0);
        assert_eq!(loads.get(0, start).map(|load| load.sessions), Some(4), "what is on the way counts");
        loads.taken(0);
        assert_eq!(loads.get(0, start).map(|load| load.sessions), Some(3));
    }

    /// Silence was taken for sleep: a shard that was stuck in one turn for more than 20 ms counted as one that had nothing to do, and was
    /// given the connections of all others. That it sleeps is said now.
    #[test]
    fn a_shard_that_is_silent_without_having_gone_to_sleep_is_stuck_and_not_chosen() {
        let loads = Loads::new(2);
        let start = Instant::now();
        let later = start + Duration::from_millis(50);
        let busyness = |busy_permille, sleeps| Busyness { busy_permille, sleeps };
        (0..2).for_each(|shard| loads.set_sessions(shard, Some(4)));
        let chosen = |now| choose(0, &[loads.get(0, now), loads.get(1, now)]);
        loads.set_busy(1, busyness(1000, false), start);
        loads.set_busy(0, busyness(900, false), later);
        assert_eq!(chosen(later), None, "stuck");
        // It was not busy before, either way.
        loads.set_busy(1, busyness(100, false), start);
        assert_eq!(chosen(later), None, "stuck");
        loads.set_busy(1, busyness(1000, true), start);
        assert_eq!(chosen(later), Some(1), "asleep");
    }

    #[test]
    fn busyness_follows_the_time_not_slept() {
        let start = Instant::now();
        let mut busy = Busy::new(start);
        let mut now = start;
        for _ in 0..1000 {
            now += Duration::from_millis(1);
            busy.update(now, Duration::ZERO);
        }
        assert!(busy.update(now, Duration::ZERO) > 990);
        assert!(busy.update(now + Duration::from_secs(10), Duration::from_secs(10)) < 15);
    }
}
