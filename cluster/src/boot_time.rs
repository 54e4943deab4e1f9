//! Time since boot, suspend included: leases must not outlive a sleep of the machine.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// A moment on `CLOCK_BOOTTIME`. The monotonic clock stands still in suspend and would keep a lease that others have seen expire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct BootTime(Duration);

impl BootTime {
    /// The present moment.
    pub fn now() -> BootTime {
        let now = clock_gettime(ClockId::Boottime);
        BootTime(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// For tests and simulation: a moment so long after boot.
    pub const fn after_boot(since: Duration) -> BootTime {
        BootTime(since)
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;

    fn add(self, later: Duration) -> BootTime {
        BootTime(self.0.saturating_add(later))
    }
}

impl Sub<Duration> for BootTime {
    type Output = BootTime;

    fn sub(self, earlier: Duration) -> BootTime {
        BootTime(self.0.saturating_sub(earlier))
    }
}
