//! A batch: a fixed header, then records, padded to whole blocks. One batch is one write and one flush.

use crate::check::{Generation, u32_at, u64_at};
use crate::record::{RECORD_HEADER_BYTES, RecordHeader};

/// What is written is a multiple of this, and stands at a multiple of this: a block with acknowledged bytes is never rewritten.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes of a batch header, in front of its first record.
pub const BATCH_HEADER_BYTES: usize = 80;

/// Longest batch of the format. A reader takes buffers of this size; a writer may be set to less.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// The batch that a record travels in: it is durable when this ticket is acknowledged. Tickets grow within one run of one log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ticket(pub u64);

const MAGIC: u64 = u64::from_le_bytes(*b"RPBATCH1");

/// The header of one batch, decoded. `check` is the CRC over all of it, and what the next batch is chained to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchHeader {
    pub(crate) generation: Generation,
    pub(crate) number: u64,
    pub(crate) boot: u64,
    pub(crate) sequence: u64,
    pub(crate) durable_upto: u64,
    pub(crate) previous_check: u32,
    /// Whole blocks, header and padding included.
    pub(crate) bytes: u32,
    /// Up to the end of the last record.
    pub(crate) used_bytes: u32,
    pub(crate) records: u32,
    /// CRC over all record headers in order.
    pub(crate) table_check: u32,
}

impl BatchHeader {
    /// The header's bytes and their check.
    pub(crate) fn encode(&self) -> ([u8; BATCH_HEADER_BYTES], u32) {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.boot.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.durable_upto.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.previous_check.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.used_bytes.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.records.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.table_check.to_le_bytes());
        let check = self.generation.header_check(&bytes[..76]);
        bytes[76..80].copy_from_slice(&check.to_le_bytes());
        (bytes, check)
    }

    /// The header at the start of `bytes` and its check, if it holds under the generation that it states itself.
    ///
    /// The caller compares that generation with the segment's: content may hold headers that are right in themselves.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        let bytes = bytes.get(..BATCH_HEADER_BYTES)?;
        if u64_at(bytes, 0) != MAGIC {
            return None;
        }
        let header = BatchHeader {
            generation: Generation(u64_at(bytes, 8)),
            number: u64_at(bytes, 16),
            boot: u64_at(bytes, 24),
            sequence: u64_at(bytes, 32),
            durable_upto: u64_at(bytes, 40),
            previous_check: u32_at(bytes, 48),
            bytes: u32_at(bytes, 52),
            used_bytes: u32_at(bytes, 56),
            records: u32_at(bytes, 60),
            table_check: u32_at(bytes, 64),
        };
        let check = header.generation.header_check(&bytes[..76]);
        (check == u32_at(bytes, 76) && header.is_plausible()).then_some((header, check))
    }

    fn is_plausible(&self) -> bool {
        let bytes = self.bytes as usize;
        // Not more than its records need: nothing verifies the rest, and whoever reads on behind it would pass over what stands there.
        (BLOCK_BYTES..=BATCH_BYTES_MAX).contains(&bytes)
            && (BATCH_HEADER_BYTES..=bytes).contains(&(self.used_bytes as usize))
            && bytes == (self.used_bytes as usize).next_multiple_of(BLOCK_BYTES)
            && self.sequence > self.durable_upto
    }
}

/// The records of a batch, one after the other: (offset of the record in the batch, header).
///
/// Ends early at a header that doesn't verify or doesn't fit; `verify_records` tells whether all were there.
pub(crate) fn next_record(batch: &[u8], at: usize, used_bytes: usize, generation: Generation) -> Option<RecordHeader> {
    let header = RecordHeader::decode(batch.get(at..used_bytes)?, generation)?;
    (at as u64 + header.span() <= used_bytes.next_multiple_of(8) as u64).then_some(header)
}

/// Whether every record of `batch` (whole, as its header states) verifies, headers and bodies.
pub(crate) fn verify_records(batch: &[u8], header: &BatchHeader, check_bodies: bool) -> bool {
    let used = header.used_bytes as usize;
    let (mut at, mut table) = (BATCH_HEADER_BYTES, header.generation.0 as u32);
    for _ in 0..header.records {
        let Some(record) = next_record(batch, at, used, header.generation) else { return false };
        table = crc32c::crc32c_append(table, &batch[at..at + RECORD_HEADER_BYTES]);
        let body = at + RECORD_HEADER_BYTES;
        let Some(body) = batch.get(body..body + record.body_bytes as usize) else { return false };
        if check_bodies && header.generation.body_check(body) != record.body_check {
            return false;
        }
        at += record.span() as usize;
    }
    table == header.table_check && at == used
}

/// Whole blocks around `offset..offset + bytes`: start and length.
pub(crate) fn blocks_around(offset: u64, bytes: u64) -> (u64, u64) {
    let block = BLOCK_BYTES as u64;
    let start = offset / block * block;
    (start, (offset + bytes).next_multiple_of(block) - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            generation: Generation(99),
            number: 4,
            boot: 5,
            sequence: 6,
            durable_upto: 5,
            previous_check: 7,
            bytes: 4096,
            used_bytes: 112,
            records: 1,
            table_check: 8,
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was_written() {
        let (bytes, check) = header().encode();
        assert_eq!(BatchHeader::decode(&bytes), Some((header(), check)));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let (bytes, _) = header().encode();
        for bit in 0..76 * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BatchHeader::decode(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn lengths_outside_the_format_are_refused() {
        for (bytes, used_bytes) in [(0, 112), (4095, 112), (2 << 20, 112), (4096, 79), (4096, 4097), (8192, 4096), (1 << 20, 112)] {
            let (encoded, _) = BatchHeader { bytes, used_bytes, ..header() }.encode();
            assert_eq!(BatchHeader::decode(&encoded), None);
        }
    }
}
