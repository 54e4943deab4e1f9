//! Connections that are made ahead of mail, for `min_idle`, where the peer ends them before they have served any: each further one comes
//! later. A peer that has no room for idle ones would be called again at once, for ever.

use std::time::{Duration, Instant};

/// After the first that was lost; doubled with each further one.
const WAIT_MIN: Duration = Duration::from_secs(1);
/// And no longer than this.
const WAIT_MAX: Duration = Duration::from_secs(256);
/// One that was kept for so long was not refused. What idles is ended by many a peer in time.
const KEPT: Duration = Duration::from_secs(30);

/// What is known of those of one destination.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    /// In a row.
    lost: u32,
    not_before: Option<Instant>,
}

impl Ahead {
    /// May one be made now?
    pub fn may_begin(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// The peer has ended one of this age that had served nothing. Those that were made together count once.
    pub fn lost(&mut self, age: Duration, now: Instant) {
        if age < KEPT && self.may_begin(now) {
            let wait = WAIT_MIN.saturating_mul(1_u32.checked_shl(self.lost).unwrap_or(u32::MAX)).min(WAIT_MAX);
            (self.lost, self.not_before) = (self.lost.saturating_add(1), Some(now + wait));
        }
    }

    /// One was of use.
    pub fn served(&mut self) {
        *self = Ahead::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_one_that_is_lost_puts_the_next_off_for_longer_until_one_is_of_use() {
        let (mut now, mut ahead, mut waits) = (Instant::now(), Ahead::default(), Vec::new());
        for _ in 0..40 {
            assert!(ahead.may_begin(now));
            ahead.lost(KEPT, now);
            assert!(ahead.may_begin(now));
            ahead.lost(Duration::ZERO, now);
            ahead.lost(Duration::ZERO, now);
            let wait = (0..).map(Duration::from_secs).find(|wait| ahead.may_begin(now + *wait)).unwrap();
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]);
        assert_eq!(waits[39], 256);
        ahead.lost(Duration::ZERO, now);
        ahead.served();
        assert!(ahead.may_begin(now));
    }
}
