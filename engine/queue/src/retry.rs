//! When a deferred recipient is tried again, and for how long.

/// Back-off and lifetime of mail for a route. All times in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
// What each message asks for comes first.
#[repr(C)]
pub struct RetryPolicy {
    /// Age at which a recipient that is still not delivered fails (RFC 5321 4.5.4.1: at least 4 to 5 days).
    pub lifetime_ms: u64,
    /// Age at which the sender is told that a recipient is delayed; `None`: it is not.
    pub warn_after_ms: Option<u64>,
    /// Wait after the first deferral; doubles with each further one.
    pub first_ms: u64,
    /// The wait never exceeds this.
    pub max_ms: u64,
    /// Spread of each wait to both sides, so that mail deferred together does not come back together.
    pub jitter_percent: u8,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        const MINUTE: u64 = 60_000;
        Self {
            first_ms: 5 * MINUTE,
            max_ms: 240 * MINUTE,
            jitter_percent: 20,
            lifetime_ms: 5 * 24 * 60 * MINUTE,
            warn_after_ms: Some(240 * MINUTE),
        }
    }
}

impl RetryPolicy {
    /// The longest wait there is, milliseconds.
    pub(crate) fn longest_ms(&self) -> u64 {
        self.max_ms.saturating_add(self.max_ms / 100 * u64::from(self.jitter_percent.min(100)))
    }

    /// Milliseconds to wait after the `deferrals`-th deferral (1 is the first).
    pub fn delay_ms(&self, deferrals: u32, jitter: &mut Jitter) -> u64 {
        back_off_ms(self.first_ms, self.max_ms, deferrals, self.jitter_percent, jitter)
    }
}

/// `first_ms` doubled for each of `times` after the first, at most `max_ms`, spread by `jitter_percent` to both sides.
pub(crate) fn back_off_ms(first_ms: u64, max_ms: u64, times: u32, jitter_percent: u8, jitter: &mut Jitter) -> u64 {
    let doublings = times.saturating_sub(1).min(40);
    let plain = first_ms.saturating_mul(1 << doublings).min(max_ms);
    let spread = plain / 100 * u64::from(jitter_percent.min(100));
    (plain - spread + jitter.below(2 * spread + 1)).max(1)
}

/// A small seeded generator (SplitMix64): spreads retries, decides nothing that an attacker must not guess.
#[derive(Clone, Debug)]
pub struct Jitter {
    state: u64,
}

impl Jitter {
    /// The same seed gives the same sequence.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A number below `bound`; 0 when the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_five_minutes_to_four_hours_within_twenty_percent() {
        let policy = RetryPolicy::default();
        let mut jitter = Jitter::new(1);
        for (deferrals, minutes) in [(1, 5), (2, 10), (3, 20), (4, 40), (5, 80), (6, 160), (7, 240), (60_000, 240)] {
            let mut seen = (u64::MAX, 0);
            for _ in 0..500 {
                let delay = policy.delay_ms(deferrals, &mut jitter);
                assert!(delay >= minutes * 48_000 && delay <= minutes * 72_000, "{deferrals}: {delay}");
                seen = (seen.0.min(delay), seen.1.max(delay));
            }
            assert!(seen.1 - seen.0 > minutes * 18_000, "the jitter spreads: {seen:?}");
        }
    }
}
