//! This node's own calls that carry much: while they fill the line that all connections share, small ones are late by their doing and not by Valkey's.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use crate::boot_time::BootTime;

/// So long a small call may take while large ones are under way, and after their end: a queue of that length in the network is no outage. A lease of two
/// seconds is renewed twice in its time with calls of that length.
pub(super) const BEHIND_LARGE: Duration = Duration::from_millis(500);

/// How many there are.
#[derive(Debug, Default)]
pub(super) struct LargeCalls(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    ended_at: Option<BootTime>,
}

/// One of them, until it has its answer or nobody waits for it any more.
#[derive(Debug)]
pub(super) struct LargeCall<'c>(&'c LargeCalls);

impl LargeCalls {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic happens under this lock")
    }

    /// One is sent.
    pub fn begins(&self) -> LargeCall<'_> {
        self.state().under_way += 1;
        LargeCall(self)
    }

    /// Whether what they have sent, or asked for, may be in the way.
    pub fn fill_the_line(&self, now: BootTime) -> bool {
        let state = self.state();
        state.under_way > 0 || state.ended_at.is_some_and(|at| now.since(at) < BEHIND_LARGE)
    }

    fn ended(&self, now: BootTime) {
        let mut state = self.state();
        (state.under_way, state.ended_at) = (state.under_way - 1, Some(now));
    }
}

impl Drop for LargeCall<'_> {
    fn drop(&mut self) {
        self.0.ended(BootTime::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_full_from_the_first_large_call_to_a_while_after_the_last() {
        let calls = LargeCalls::default();
        assert!(!calls.fill_the_line(BootTime::now()));
        let (first, second) = (calls.begins(), calls.begins());
        drop(first);
        assert!(calls.fill_the_line(BootTime::now() + Duration::from_secs(60)), "the second is under way");
        drop(second);
        let ended_at = calls.state().ended_at.unwrap();
        assert!(calls.fill_the_line(ended_at + (BEHIND_LARGE - Duration::from_millis(1))));
        assert!(!calls.fill_the_line(ended_at + BEHIND_LARGE), "silence is told soon again");
    }
}
