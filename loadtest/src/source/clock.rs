//! The time of day for marks and ledgers, without asking the system for each message.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Turns instants into microseconds since 1970 without asking the system each time.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    instant: Instant,
    us: u64,
}

impl Clock {
    pub(crate) fn now() -> Clock {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { instant: Instant::now(), us: since.as_micros() as u64 }
    }

    pub(crate) fn us(&self, at: Instant) -> u64 {
        match at.checked_duration_since(self.instant) {
            Some(after) => self.us + after.as_micros() as u64,
            None => self.us - (self.instant - at).as_micros() as u64,
        }
    }
}
