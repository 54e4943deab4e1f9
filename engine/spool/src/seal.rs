//! A seal: where the log of an earlier life ends in a segment. What stands behind it is ignored for ever.

use crate::check::{Generation, u32_at, u64_at};

/// Bytes of its body.
pub(crate) const SEAL_BYTES: u32 = 40;

/// The end of an earlier life's log in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seal {
    /// Of the use.
    pub(crate) number: u64,
    pub(crate) generation: Generation,
    /// Log position of the last batch that counts; zeros when none does.
    pub(crate) last: (u64, u64),
    /// Offset behind it.
    pub(crate) end: u32,
}

impl Seal {
    pub(crate) fn encode(&self) -> [u8; SEAL_BYTES as usize] {
        let mut bytes = [0; SEAL_BYTES as usize];
        let words = [self.number, self.generation.0, self.last.0, self.last.1];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[32..36].copy_from_slice(&self.end.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let body = body.get(..SEAL_BYTES as usize)?;
        let generation = Generation(u64_at(body, 8));
        Some(Seal { number: u64_at(body, 0), generation, last: (u64_at(body, 16), u64_at(body, 24)), end: u32_at(body, 32) })
    }
}
