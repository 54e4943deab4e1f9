//! What a connection has received, while it is read.

use std::{fmt, ops::Deref, rc::Rc};

use crate::ring::Shared;

/// Received bytes, at least one, lent from the arena and given back on drop.
///
/// Drop it in the turn in which it was read: a reader that finds the arena empty waits for it.
pub struct Received {
    shared: Rc<Shared>,
    bid: u16,
    len: u32,
}

impl Received {
    pub(crate) fn new(shared: Rc<Shared>, bid: u16, len: u32) -> Received {
        Received { shared, bid, len }
    }
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the buffer was taken off its connection's list and is given back in `drop`; `len` is what the kernel wrote.
        unsafe { self.shared.arena.bytes(self.bid, self.len) }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received").field("len", &self.len).finish()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.shared.give_back(self.bid);
    }
}
