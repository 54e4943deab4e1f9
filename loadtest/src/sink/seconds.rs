//! The seconds that a sink counts in: those of the run that it serves, as soon as there is one.
//!
//! A sink listens before a run begins, and what it measured in one second cannot be parted afterwards. Seconds that began some tenths before
//! those of the run would bring the last arrivals of a load under the first second behind it.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// When seconds begin. Shared by the cores of a sink.
#[derive(Debug, Default)]
pub(crate) struct Seconds {
    /// So much earlier than whole seconds after the sink's beginning, below a second.
    lead_ns: AtomicU64,
}

impl Seconds {
    /// From now on seconds begin with those of a run that began so long after the sink. No second is counted twice: they go on with a longer
    /// or a shorter one.
    pub(crate) fn follow(&self, run_began: Duration) {
        let behind_ns = run_began.subsec_nanos();
        let lead = if behind_ns == 0 { 0 } else { 1_000_000_000 - behind_ns };
        self.lead_ns.store(u64::from(lead), Relaxed);
    }

    /// The second of what happens so long after the sink began.
    pub(crate) fn of(&self, at: Duration) -> u64 {
        (at + Duration::from_nanos(self.lead_ns.load(Relaxed))).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_begin_with_those_of_the_run_that_is_followed() {
        let ms = Duration::from_millis;
        let seconds = Seconds::default();
        assert_eq!([0, 999, 1000, 2500].map(|at| seconds.of(ms(at))), [0, 0, 1, 2]);
        for (run_began, first) in [(0, 0), (700, 1), (1000, 1), (2300, 3)] {
            seconds.follow(ms(run_began));
            let of_run = |at: u64| seconds.of(ms(run_began + at)) - first;
            assert_eq!([0, 999, 1000, 9999, 10_000].map(of_run), [0, 0, 1, 9, 10], "{run_began}");
        }
    }
}
