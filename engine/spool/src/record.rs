//! One record: a 32-byte header standing directly before its body.
//!
//! The header's check proves the header, the body's CRC the body; both are seeded with the generation of the segment, so a reader that
//! lost a batch header still finds the records behind it.

use crate::check::{Generation, u16_at, u32_at, u48_at};

/// Bytes of a record header; bodies are padded so that the next header stands 8-aligned.
pub const RECORD_HEADER_BYTES: usize = 32;

/// Largest value of [`RecordId::boot`] and [`RecordId::sequence`]: 48 bits.
pub const ID_PART_MAX: u64 = (1 << 48) - 1;

/// Bytes in front of the payload of a message that has chunks: their bytes and the CRC over their CRCs.
pub(crate) const CHUNKS_BYTES: usize = 16;

/// Segments that a settled record can name as homes of its message.
pub(crate) const HOMES_MAX: usize = 16;

/// Names one message of this node, for ever.
///
/// `boot` is greater with every start of the process and synced before the first id is given out, `sequence` counts within it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RecordId {
    /// The start of the process that accepted the message; at most [`ID_PART_MAX`].
    pub boot: u64,
    /// The shard that accepted it.
    pub shard: u16,
    /// Counts within boot and shard; at most [`ID_PART_MAX`].
    pub sequence: u64,
}

/// What a record says about the message it names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// The message exists from here on: envelope, Received field and content, or envelope and the number of its chunks.
    Message,
    /// A piece of a message's content, named by (id, index).
    Chunk,
    /// The state of one recipient (id, index), absolute: it replaces every earlier one.
    Outcome,
    /// Nothing is left to do for the message.
    Settled,
    /// Where the log of an earlier life ends in a segment; what stands behind it is ignored for ever.
    Seal,
    /// Nothing, but the batch that holds it proves that all before it was acknowledged.
    Witness,
}

impl RecordKind {
    fn code(self) -> u8 {
        match self {
            RecordKind::Message => 1,
            RecordKind::Chunk => 2,
            RecordKind::Outcome => 3,
            RecordKind::Settled => 4,
            RecordKind::Seal => 5,
            RecordKind::Witness => 6,
        }
    }

    fn of(code: u8) -> Option<Self> {
        Some(match code {
            1 => RecordKind::Message,
            2 => RecordKind::Chunk,
            3 => RecordKind::Outcome,
            4 => RecordKind::Settled,
            5 => RecordKind::Seal,
            6 => RecordKind::Witness,
            _ => return None,
        })
    }
}

/// A record header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    pub(crate) id: RecordId,
    /// Message: number of chunks. Chunk: its place in the content. Outcome: the recipient. Settled: number of homes.
    pub(crate) index: u32,
    pub(crate) body_bytes: u32,
    pub(crate) body_check: u32,
}

impl RecordHeader {
    pub(crate) fn encode(&self, generation: Generation) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[4] = self.kind.code();
        bytes[6..8].copy_from_slice(&self.id.shard.to_le_bytes());
        bytes[8..14].copy_from_slice(&self.id.boot.to_le_bytes()[..6]);
        bytes[14..20].copy_from_slice(&self.id.sequence.to_le_bytes()[..6]);
        bytes[20..24].copy_from_slice(&self.index.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.body_check.to_le_bytes());
        let check = generation.header_check(&bytes[..28]);
        bytes[28..32].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, if its check holds under `generation`. Lengths are for the caller to bound.
    pub(crate) fn decode(bytes: &[u8], generation: Generation) -> Option<Self> {
        let bytes = bytes.get(..RECORD_HEADER_BYTES)?;
        // The kind byte first: it rules most of the positions out that a search through a damaged batch tries.
        let kind = RecordKind::of(bytes[4])?;
        if generation.header_check(&bytes[..28]) != u32_at(bytes, 28) {
            return None;
        }
        let id = RecordId { boot: u48_at(bytes, 8), shard: u16_at(bytes, 6), sequence: u48_at(bytes, 14) };
        Some(RecordHeader { kind, id, index: u32_at(bytes, 20), body_bytes: u32_at(bytes, 0), body_check: u32_at(bytes, 24) })
    }

    /// Bytes from this header to the next one.
    pub(crate) fn span(&self) -> u64 {
        record_span(self.body_bytes)
    }
}

/// Bytes that a record with a body of `body_bytes` takes: header, body, padding to 8.
pub(crate) fn record_span(body_bytes: u32) -> u64 {
    RECORD_HEADER_BYTES as u64 + u64::from(body_bytes).next_multiple_of(8)
}

/// What the driver put into the body: without what the log put in front of it.
pub(crate) fn payload<'b>(header: &RecordHeader, body: &'b [u8]) -> &'b [u8] {
    let own = match header.kind {
        RecordKind::Message if header.index > 0 => CHUNKS_BYTES,
        RecordKind::Settled => header.index as usize * 8,
        _ => 0,
    };
    body.get(own..).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: RecordHeader = RecordHeader {
        kind: RecordKind::Outcome,
        id: RecordId { boot: 0x1234_5678_9abc, shard: 7, sequence: ID_PART_MAX },
        index: 3,
        body_bytes: 100,
        body_check: 0xdead_beef,
    };

    #[test]
    fn a_header_comes_back_as_it_was_written() {
        let generation = Generation(0x0102_0304_0506_0708);
        assert_eq!(RecordHeader::decode(&HEADER.encode(generation), generation), Some(HEADER));
    }

    #[test]
    fn every_flipped_bit_and_every_other_generation_is_refused() {
        let generation = Generation(0x0102_0304_0506_0708);
        let bytes = HEADER.encode(generation);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&flipped, generation), None, "bit {bit}");
        }
        assert_eq!(RecordHeader::decode(&bytes, Generation(0x0102_0304_0506_0709)), None);
        assert_eq!(RecordHeader::decode(&bytes[..31], generation), None);
    }
}
