//! The budget of bytes that sessions may hold while content arrives in pieces.

use std::cell::Cell;

/// Bytes taken and the bound.
pub struct StagingBudget {
    bytes_max: usize,
    taken: Cell<usize>,
}

impl StagingBudget {
    /// Nothing taken. At `bytes_max` a message that needs more is answered with 452.
    pub fn new(bytes_max: usize) -> Self {
        StagingBudget { bytes_max, taken: Cell::default() }
    }

    /// Takes `bytes`; false when they would be too many.
    pub fn take(&self, bytes: usize) -> bool {
        let taken = self.taken.get() + bytes;
        let fits = taken <= self.bytes_max;
        if fits {
            self.taken.set(taken);
        }
        fits
    }

    /// Counts what the allocator gave beyond what was asked for.
    pub fn give_more(&self, bytes: usize) {
        self.taken.set(self.taken.get() + bytes);
    }

    /// Gives `bytes` back.
    pub fn give_back(&self, bytes: usize) {
        self.taken.set(self.taken.get() - bytes);
    }

    /// Bytes taken now.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }
}
