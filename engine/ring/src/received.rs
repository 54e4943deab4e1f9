//! What a connection has received, while it is read.

use std::{fmt, ops::Deref, rc::Rc};

use crate::ring::Shared;

/// Received bytes, at least one and a buffer's at most, lent from the arena as a rule and given back on drop.
///
/// Drop it in the turn in which it was read: a reader that finds the arena empty waits for it.
pub struct Received(Bytes);

enum Bytes {
    Lent {
        shared: Rc<Shared>,
        bid: u16,
        len: u32,
    },
    /// They waited on the heap, because the arena was short.
    #[expect(clippy::box_collection, reason = "each session has place for this, and hardly one needs it")]
    Copied(Box<Vec<u8>>),
}

const _: () = assert!(size_of::<Received>() == 16);

impl Received {
    pub(crate) fn lent(shared: Rc<Shared>, bid: u16, len: u32) -> Received {
        Received(Bytes::Lent { shared, bid, len })
    }

    pub(crate) fn copied(bytes: Vec<u8>) -> Received {
        Received(Bytes::Copied(Box::new(bytes)))
    }
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: the buffer was taken off its connection's list and is given back in `drop`; `len` is what the kernel wrote.
            Bytes::Lent { shared, bid, len } => unsafe { shared.arena.bytes(*bid, *len) },
            Bytes::Copied(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received").field("len", &self.len()).finish()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Bytes::Lent { shared, bid, .. } = &self.0 {
            shared.give_back(*bid);
        }
    }
}
