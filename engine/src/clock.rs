//! Wall-clock time of a shard: unix milliseconds, and the text of the present second made once.
//!
//! Waiting never uses this clock (it may be stepped); records, logs and `Received` fields do.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use time::OffsetDateTime;

/// `2026-11-23T22:40:03`: an RFC 3339 second, without fraction and zone.
const SECOND_TEXT_BYTES: usize = 19;

/// The shard's view of the wall clock.
pub struct Clock {
    start: Instant,
    start_ms: u64,
    second: Cell<u64>,
    text: RefCell<[u8; SECOND_TEXT_BYTES]>,
}

impl Clock {
    /// Milliseconds since 1970, UTC; 0 for a machine whose clock stands before that.
    pub fn unix_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Unix milliseconds of a clock that never steps: the wall clock at the start, and monotonic time since. The queue lives by it.
    pub fn steady_ms(&self, now: Instant) -> u64 {
        self.start_ms + u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX / 2)
    }

    /// When [`Clock::steady_ms`] will show `ms`; the start for times before it.
    pub fn instant_of(&self, ms: u64) -> Instant {
        // A year is beyond every timer of this process.
        const FAR: u64 = 366 * 24 * 3600 * 1000;
        self.start + Duration::from_millis(ms.saturating_sub(self.start_ms).min(FAR))
    }

    /// Appends `2026-11-23T22:40:03.123Z` for `unix_ms`.
    pub fn write_rfc3339(&self, unix_ms: u64, out: &mut Vec<u8>) {
        let second = unix_ms / 1000;
        if self.second.get() != second {
            *self.text.borrow_mut() = second_text(second);
            self.second.set(second);
        }
        out.extend_from_slice(&*self.text.borrow());
        let millis = unix_ms % 1000;
        let digit = |value: u64| b'0' + u8::try_from(value % 10).expect("a digit");
        out.extend_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis), b'Z']);
    }
}

impl Default for Clock {
    fn default() -> Self {
        let mut clock = Clock { start: Instant::now(), start_ms: 0, second: Cell::default(), text: RefCell::new(second_text(0)) };
        clock.start_ms = clock.unix_ms();
        clock
    }
}

fn second_text(second: u64) -> [u8; SECOND_TEXT_BYTES] {
    let mut text = *b"1970-01-01T00:00:00";
    let Some(at) = i64::try_from(second).ok().and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok()) else {
        return text;
    };
    let mut put = |start: usize, width: usize, value: u32| {
        let mut rest = value;
        for place in (start..start + width).rev() {
            text[place] = b'0' + u8::try_from(rest % 10).expect("a digit");
            rest /= 10;
        }
    };
    put(0, 4, u32::try_from(at.year()).unwrap_or(0));
    put(5, 2, u32::from(u8::from(at.month())));
    put(8, 2, u32::from(at.day()));
    put(11, 2, u32::from(at.hour()));
    put(14, 2, u32::from(at.minute()));
    put(17, 2, u32::from(at.second()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_follows_the_second_and_the_millisecond() {
        let clock = Clock::default();
        let mut out = Vec::new();
        clock.write_rfc3339(1_795_473_603_045, &mut out);
        out.push(b' ');
        clock.write_rfc3339(0, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "2026-11-23T22:40:03.045Z 1970-01-01T00:00:00.000Z");
    }
}
