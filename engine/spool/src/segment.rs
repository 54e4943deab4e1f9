//! A segment file: its name, the header in its first block, and what the log keeps in memory about it.

use std::fmt;

use crate::batch::BLOCK_BYTES;
use crate::check::{Generation, u16_at, u32_at, u64_at};

/// Version of the format on disk. A reader refuses a newer one.
pub const FORMAT: u32 = 1;

const MAGIC: u64 = u64::from_le_bytes(*b"RPSEGMT1");

/// Where the first batch of a segment stands: behind two blocks for headers.
///
/// A header goes into the block that doesn't hold the present one, so that a torn write leaves the present one whole. Were the only
/// header torn, what remains could be batches of a use before the last, whose messages are long settled.
pub(crate) const FIRST_BATCH: u32 = 2 * BLOCK_BYTES as u32;

/// Bytes of a block that carry the header: a sector, with its check at the very end, so that a torn one doesn't verify.
const HEADER_BYTES: usize = 512;

/// One segment file of a log's directory. A recycled segment keeps its file; the number of each use stands in its header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentFile(pub u32);

impl fmt::Display for SegmentFile {
    /// The file's name: `segment-000000000042.log`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "segment-{:012}.log", self.0)
    }
}

impl SegmentFile {
    /// The name while it is being prepared: `segment-000000000042.log.new`.
    pub fn temporary_name(self) -> String {
        format!("{self}.new")
    }

    /// The file that a directory entry names, and whether the name is the temporary one. Other names are not the log's.
    pub fn parse(name: &str) -> Option<(SegmentFile, bool)> {
        let rest = name.strip_prefix("segment-")?;
        let (digits, temporary) = match rest.strip_suffix(".log.new") {
            Some(digits) => (digits, true),
            None => (rest.strip_suffix(".log")?, false),
        };
        let valid = digits.len() == 12 && digits.bytes().all(|digit| digit.is_ascii_digit());
        valid.then(|| digits.parse().ok()).flatten().map(|number| (SegmentFile(number), temporary))
    }
}

/// The header of a segment, written once per use and synced before the segment may be written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) spool: u64,
    pub(crate) shard: u16,
    pub(crate) bytes: u32,
    pub(crate) number: u64,
    pub(crate) generation: Generation,
}

/// The first block of a file that another than the log wrote in advance, as zeros: it tells that no use of it has begun.
///
/// A header of use 0, which no log writes; the first header that a log writes takes its place.
pub fn blank_front(spool: u64, shard: u16, segment_bytes: u32) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    SegmentHeader { spool, shard, bytes: segment_bytes, number: 0, generation: Generation(0) }.encode(&mut block);
    block
}

/// Why a block is no header that can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeaderFault {
    /// All zero: none was ever written.
    Absent,
    Unreadable,
    Newer(u32),
}

impl SegmentHeader {
    /// Writes one header block.
    pub(crate) fn encode(&self, block: &mut [u8]) {
        block[..BLOCK_BYTES].fill(0);
        block[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        block[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        block[12..16].copy_from_slice(&self.bytes.to_le_bytes());
        block[16..24].copy_from_slice(&self.spool.to_le_bytes());
        block[24..26].copy_from_slice(&self.shard.to_le_bytes());
        block[32..40].copy_from_slice(&self.number.to_le_bytes());
        block[40..48].copy_from_slice(&self.generation.0.to_le_bytes());
        let check = crc32c::crc32c(&block[..HEADER_BYTES - 4]);
        block[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&check.to_le_bytes());
    }

    pub(crate) fn decode(block: &[u8]) -> Result<Self, HeaderFault> {
        let block = block.get(..HEADER_BYTES).ok_or(HeaderFault::Unreadable)?;
        if block.iter().all(|&byte| byte == 0) {
            return Err(HeaderFault::Absent);
        }
        if u64_at(block, 0) != MAGIC || crc32c::crc32c(&block[..HEADER_BYTES - 4]) != u32_at(block, HEADER_BYTES - 4) {
            return Err(HeaderFault::Unreadable);
        }
        let format = u32_at(block, 8);
        if format != FORMAT {
            return Err(HeaderFault::Newer(format));
        }
        Ok(SegmentHeader {
            bytes: u32_at(block, 12),
            spool: u64_at(block, 16),
            shard: u16_at(block, 24),
            number: u64_at(block, 32),
            generation: Generation(u64_at(block, 40)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_strangers_do_not() {
        assert_eq!(SegmentFile(42).to_string(), "segment-000000000042.log");
        assert_eq!(SegmentFile::parse("segment-000000000042.log"), Some((SegmentFile(42), false)));
        assert_eq!(SegmentFile::parse(&SegmentFile(42).temporary_name()), Some((SegmentFile(42), true)));
        for stranger in
            ["segment-42.log", "lost+found", "segment-000000000042.logx", "segment-+00000000042.log", "segment-999999999999.log"]
        {
            assert_eq!(SegmentFile::parse(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn a_header_comes_back_and_a_newer_format_is_told_apart_from_damage() {
        let header = SegmentHeader { spool: 1, shard: 2, bytes: 1 << 20, number: 3, generation: Generation(4) };
        let mut block = vec![0xff; BLOCK_BYTES];
        header.encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Ok(header));
        assert_eq!(SegmentHeader::decode(&[0; BLOCK_BYTES]), Err(HeaderFault::Absent));
        block[8] = 9;
        assert_eq!(SegmentHeader::decode(&block), Err(HeaderFault::Unreadable));
        let check = crc32c::crc32c(&block[..508]);
        block[508..512].copy_from_slice(&check.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&block), Err(HeaderFault::Newer(9)));
    }
}
