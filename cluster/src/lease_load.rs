//! How much a worker has one lease bring, by what the line to Valkey carried before.
//!
//! What was leased and did not arrive is held until that lease is over, and has lost one of its attempts: a worker whose line is too slow for what others
//! carry easily would make dead letters of mail that nobody saw. So a lease that was late is followed by one that brings a quarter and has more time,
//! and more is asked for only where it came in a small part of its time. Where a single item does not come either the worker leaves all of them to others
//! for a while. Pure: the driver reports how it went.

use std::time::Duration;

use crate::{
    boot_time::BootTime,
    valkey::PATIENCE_MAX,
    work_queue::{ITEMS_PER_CALL, LEASE_BYTES_MAX},
};

/// What a lease that was late is followed by, in parts of it: no item is in many of those that are late.
const SMALLER_BY: usize = 4;
/// A lease that brought at least half of what it may bring is followed by so many times as much ...
const LARGER_BY: usize = 2;
/// ... if it took this part of its time at most: four times as much then takes half of it.
const EASY_PARTS: u32 = 8;
/// The least that is asked for: a line that does not carry that in the time of any call is hardly of use for Valkey at all.
const BYTES_MIN: usize = 8 * 1024;
const _: () = assert!(LEASE_BYTES_MAX / (SMALLER_BY * SMALLER_BY * SMALLER_BY) == BYTES_MIN);
/// By then a call has the most time that any has.
const TRIES_MAX: u32 = 4;
/// A step is taken back when nothing was late, nor took more than an easy part of its time, for so long: longer than the longest lease, so that what was
/// late comes again meanwhile.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// The first pause after a single item did not come; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(60);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(16 * 60);

/// What one lease may bring, and how long that may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Items.
    pub items_max: usize,
    /// Bytes on their way, beyond which an item comes alone.
    pub bytes_max: usize,
    /// As in [`Allowance`](crate::valkey::Allowance).
    pub tries: u32,
    /// The most time, but for what any lease may take.
    pub time_max: Duration,
}

impl Default for Load {
    /// All that one lease can bring, in the time that a call of that size has.
    fn default() -> Load {
        Load { items_max: ITEMS_PER_CALL, bytes_max: LEASE_BYTES_MAX, tries: 0, time_max: PATIENCE_MAX }
    }
}

/// What an operator is to hear of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// Leases are late, one after another: this node takes less at a time.
    Slow,
    /// A single item does not come either: it takes none for so long.
    Pauses(Duration),
    /// It takes some again.
    GoesOn,
}

/// What is known of the line.
#[derive(Debug)]
pub struct LeaseLoad {
    load: Load,
    /// When a lease was late last, or took more time than is easy.
    needed_at: BootTime,
    late_in_a_row: u32,
    has_said: bool,
    pauses: u32,
    until: BootTime,
}

impl LeaseLoad {
    /// Leases run for `lease_ttl`: half of it is left for what comes of them, whatever the line takes.
    pub fn new(lease_ttl: Duration) -> LeaseLoad {
        LeaseLoad {
            load: Load { time_max: lease_ttl / 2, ..Load::default() },
            needed_at: BootTime::default(),
            late_in_a_row: 0,
            has_said: false,
            pauses: 0,
            until: BootTime::default(),
        }
    }

    /// Whether to lease now.
    pub fn allows(&self, now: BootTime) -> bool {
        now >= self.until
    }

    /// What the next lease may bring.
    pub fn next(&mut self, now: BootTime) -> Load {
        if now.since(self.needed_at) >= REMEMBERED_FOR {
            // Valkey may have been away then, and few items say nothing of more.
            self.load.tries = self.load.tries.saturating_sub(1);
            self.grow();
            self.needed_at = now;
        }
        // After a pause one is enough to know.
        Load { items_max: if self.pauses > 0 { 1 } else { ITEMS_PER_CALL }, ..self.load }
    }

    /// A lease brought so many bytes, of `time` that it had. What brought nothing says nothing.
    pub fn carried(&mut self, bytes: usize, took: Duration, time: Duration, now: BootTime) -> Option<Word> {
        if bytes == 0 {
            return None;
        }
        self.late_in_a_row = 0;
        if took.saturating_mul(EASY_PARTS) > time {
            self.needed_at = now;
        } else if bytes.saturating_mul(2) >= self.load.bytes_max {
            self.grow();
        }
        (std::mem::take(&mut self.pauses) > 0).then_some(Word::GoesOn)
    }

    fn grow(&mut self) {
        self.load.bytes_max = self.load.bytes_max.saturating_mul(LARGER_BY).min(LEASE_BYTES_MAX);
        self.has_said &= self.load.bytes_max < LEASE_BYTES_MAX;
    }

    /// A lease was late: whatever it was to bring is held for nothing. That Valkey is away may be the reason; then it is not asked for long.
    pub fn late(&mut self, now: BootTime) -> Option<Word> {
        self.needed_at = now;
        self.load.tries = (self.load.tries + 1).min(TRIES_MAX);
        self.late_in_a_row = self.late_in_a_row.saturating_add(1);
        if self.load.bytes_max > BYTES_MIN {
            self.load.bytes_max = (self.load.bytes_max / SMALLER_BY).max(BYTES_MIN);
            // A single one can be Valkey's own affair.
            let is_new = self.late_in_a_row > 1 && !self.has_said;
            self.has_said |= is_new;
            return is_new.then_some(Word::Slow);
        }
        let pause = PAUSE_MIN.saturating_mul(1 << self.pauses.min(8)).min(PAUSE_MAX);
        self.pauses = self.pauses.saturating_add(1);
        self.until = now + pause;
        Some(Word::Pauses(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    fn at(millis: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(100_000 + millis))
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn next(load: &mut LeaseLoad, millis: u64) -> (usize, usize, u32) {
        let Load { items_max, bytes_max, tries, .. } = load.next(at(millis));
        (items_max, bytes_max / KIB, tries)
    }

    /// The same was asked for, in the same time, for ever: each call took 32 items from all others for the length of a lease, and one of their attempts.
    #[test]
    fn what_was_late_is_followed_by_less_with_more_time() {
        let mut load = LeaseLoad::new(Duration::from_secs(30));
        assert_eq!(next(&mut load, 0), (ITEMS_PER_CALL, 512, 0));
        assert_eq!(load.late(at(0)), None, "a single one can be Valkey's own affair");
        assert_eq!(next(&mut load, 0), (ITEMS_PER_CALL, 128, 1));
        assert_eq!(load.late(at(1)), Some(Word::Slow));
        assert_eq!(load.late(at(2)), None, "said once");
        assert_eq!(next(&mut load, 2), (ITEMS_PER_CALL, 8, 3));
        assert_eq!(load.next(at(2)).time_max, Duration::from_secs(15));
    }

    #[test]
    fn more_is_asked_for_once_it_comes_easily_and_not_what_is_known_to_take_long() {
        let mut load = LeaseLoad::new(Duration::from_secs(30));
        for _ in 0..3 {
            load.late(at(0));
        }
        // Half a megabyte a second, and two seconds for each lease: what takes a quarter of a second is enough.
        let mut asked = Vec::new();
        for _ in 0..20 {
            let bytes = load.next(at(1)).bytes_max;
            asked.push(bytes / KIB);
            load.carried(bytes, ms(bytes as u64 * 1000 / (512 * KIB) as u64), ms(2000), at(1));
        }
        assert_eq!(asked[..6], [8, 16, 32, 64, 128, 256]);
        assert!(asked[6..].iter().all(|kib| *kib == 256), "{asked:?}");
        // What did not fill it says nothing of more, nor does an answer without anything.
        load.late(at(2));
        assert_eq!(load.carried(KIB, ms(1), ms(2000), at(2)), None);
        assert_eq!(load.carried(0, ms(1), ms(2000), at(2)), None);
        assert_eq!(next(&mut load, 3).1, 64);
    }

    /// A large item after many small ones would be late again and again, and dead after five times.
    #[test]
    fn more_time_is_given_for_longer_than_any_lease_and_what_was_long_ago_is_forgotten() {
        let mut load = LeaseLoad::new(Duration::from_secs(30));
        load.late(at(0));
        for _ in 0..9 {
            load.carried(512 * KIB, ms(1), ms(2000), at(599_999));
        }
        assert_eq!(next(&mut load, 599_999), (ITEMS_PER_CALL, 512, 1));
        load.carried(4096 * KIB, ms(251), ms(2000), at(599_999));
        assert_eq!(next(&mut load, 1_199_998).2, 1, "it was used");
        assert_eq!(next(&mut load, 1_199_999).2, 0);
        // Of a worker that has little to do one outage each hour is no slow line.
        for hour in 1..20 {
            assert!(!matches!(load.late(at(hour * 3_600_000)), Some(Word::Pauses(_))), "{hour}");
            for round in 1..4 {
                load.next(at(hour * 3_600_000 + round * 600_000));
            }
        }
    }

    #[test]
    fn a_worker_that_gets_no_single_item_leaves_them_to_others_for_longer_and_longer() {
        let mut load = LeaseLoad::new(Duration::from_secs(30));
        for _ in 0..3 {
            load.late(at(0));
        }
        assert!(load.allows(at(0)));
        assert_eq!(load.late(at(0)), Some(Word::Pauses(Duration::from_secs(60))));
        assert!(!load.allows(at(59_999)) && load.allows(at(60_000)));
        assert_eq!(next(&mut load, 60_000), (1, 8, 4));
        assert_eq!(load.late(at(60_000)), Some(Word::Pauses(Duration::from_secs(120))));
        let pauses: Vec<_> = (0..5).map(|_| load.late(at(200_000))).collect();
        assert_eq!(pauses.last(), Some(&Some(Word::Pauses(Duration::from_secs(960)))), "{pauses:?}");
        assert_eq!(load.carried(100, ms(1), ms(2000), at(1_200_000)), Some(Word::GoesOn));
        assert_eq!(next(&mut load, 1_200_000).0, ITEMS_PER_CALL);
        assert_eq!(load.carried(100, ms(1), ms(2000), at(1_200_000)), None);
    }
}
