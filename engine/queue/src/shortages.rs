//! How often it is told that this system has run out of what a connection takes.
//!
//! A destination without a connection is tried each second, for as long as the shortage lasts. That is told once a minute, with what was found
//! since: to tell it is an attempt, with a record in the spool and a line of the mail log for each recipient, and a node that has run out of
//! something has better things to do a thousand times a second.

/// A destination is told to be short so often at most.
const TELL_EVERY_MS: u64 = 60_000;

/// Of one destination.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shortages {
    /// Unix milliseconds; 0: never.
    told_at: u64,
    /// Found since, and not told.
    untold: u32,
}

impl Shortages {
    /// One was found: how many were before that nobody was told of, if this one is to be told.
    pub(crate) fn found(&mut self, now: u64) -> Option<u32> {
        if self.told_at > 0 && now < self.told_at.saturating_add(TELL_EVERY_MS) {
            self.untold = self.untold.saturating_add(1);
            return None;
        }
        self.told_at = now.max(1);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_that_lasts_is_told_at_once_and_then_once_a_minute_with_its_count() {
        let mut shortages = Shortages::default();
        let told: Vec<_> =
            (0..150_u64).filter_map(|second| shortages.found(1_000_000 + second * 1000).map(|untold| (second, untold))).collect();
        assert_eq!(told, [(0, 0), (60, 59), (120, 59)]);
        // One that comes and goes is told no more often.
        assert_eq!(shortages.found(1_000_000 + 170_000), None);
        assert_eq!(shortages.found(1_000_000 + 180_000), Some(30));
    }
}
