//! How long nobody has had the lease, as far as a standby has seen.

use std::time::Duration;

use crate::boot_time::BootTime;

/// What looks at the lease found, by this node's clock.
///
/// Masters that are there take a free lease within a quarter of it: one that has come to its end, and that nobody has for half of its length, has
/// no master to be taken by. Who has not looked for three quarters of it (a start, a pause, an outage of Valkey, from which masters may come back
/// later than this node) has not seen it end, and waits for twice its length. A look comes after a quarter of it at most, so one may be lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Vacancy {
    /// When the last look was sent that had an answer.
    looked_at: Option<BootTime>,
    /// Since when the lease is free, and for how long that is to last.
    free: Option<(BootTime, Duration)>,
}

impl Vacancy {
    /// A look that was sent then had this answer.
    pub(super) fn saw(&mut self, sent_at: BootTime, is_free: bool, ttl: Duration) {
        let watched = self.watches(sent_at, ttl);
        self.looked_at = Some(sent_at);
        self.free = match self.free {
            _ if !is_free => None,
            Some(free) if watched => Some(free),
            _ => Some((sent_at, if watched { ttl / 2 } else { ttl * 2 })),
        };
    }

    /// When the lease has been free for long enough, if nobody takes it.
    pub(super) fn due(&self) -> Option<BootTime> {
        self.free.map(|(since, lasting)| since + lasting)
    }

    /// Whether it has, by looks up to now.
    pub(super) fn is_lasting(&self, now: BootTime, ttl: Duration) -> bool {
        self.watches(now, ttl) && self.due().is_some_and(|due| now >= due)
    }

    fn watches(&self, now: BootTime, ttl: Duration) -> bool {
        self.looked_at.is_some_and(|at| now.since(at) <= ttl * 3 / 4)
    }
}
