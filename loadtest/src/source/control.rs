//! What is asked of a running source from outside, and what it shows before its end.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// Switches of a source, looked at by each core every few milliseconds.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// No new messages, then the end.
    pub(super) stop: AtomicBool,
    /// No new messages; connections stay.
    pub(super) pause: AtomicBool,
    /// No connections.
    pub(super) hold: AtomicBool,
    last_trouble: Mutex<Option<String>>,
}

impl Control {
    pub(super) fn note(&self, trouble: &str) {
        let mut last = self.last_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(trouble) {
            *last = Some(trouble.to_string());
        }
    }

    pub(super) fn last_trouble(&self) -> Option<String> {
        self.last_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What one core has done so far. Only it writes, so that no core waits for another.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Progress {
    acknowledged: AtomicU64,
    broken: AtomicU64,
}

impl Progress {
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Relaxed)
    }

    pub(super) fn show_acknowledged(&self, count: u64) {
        self.acknowledged.store(count, Relaxed);
    }

    pub(super) fn broken(&self) -> u64 {
        self.broken.load(Relaxed)
    }

    pub(super) fn count_broken(&self) {
        self.broken.store(self.broken() + 1, Relaxed);
    }
}
