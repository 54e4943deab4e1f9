//! The generation of one use of a segment, and the checksums seeded with it.

/// 64 random bits drawn for one use of a segment.
///
/// They stand in the segment's header and in every batch header, and seed every CRC, so that neither the old content of a recycled
/// segment nor a batch forged inside a message's content verifies. Never shown outside the spool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(pub(crate) u64);

impl std::fmt::Debug for Generation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Generation(..)")
    }
}

impl Generation {
    /// CRC32C over `bytes` of a batch or record header.
    pub(crate) fn header_check(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0 as u32, bytes)
    }

    /// What the checksum of a body starts from. The other half of the generation: who finds one check out knows nothing of the other.
    pub(crate) fn body_seed(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// CRC32C over a whole body.
    pub(crate) fn body_check(self, body: &[u8]) -> u32 {
        crc32c::crc32c_append(self.body_seed(), body)
    }

    /// The plain CRC32C of a body, taken from its seeded one without reading the body again.
    ///
    /// CRCs are linear: the seeded check of `bytes` is the plain one xor the seed carried over that many bytes.
    pub(crate) fn plain_check(self, body_check: u32, body_bytes: u32) -> u32 {
        body_check ^ crc32c::crc32c_combine(self.body_seed(), 0, body_bytes as usize)
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u48_at(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..6].copy_from_slice(&bytes[at..at + 6]);
    u64::from_le_bytes(wide)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_check_is_that_of_the_unseeded_bytes() {
        let body: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        for seed in [0u64, 1 << 32, u64::MAX, 0x1234_5678_9abc_def0] {
            let generation = Generation(seed);
            for bytes in [0, 1, 7, 8, 999, 1000] {
                let seeded = generation.body_check(&body[..bytes]);
                assert_eq!(generation.plain_check(seeded, bytes as u32), crc32c::crc32c(&body[..bytes]));
            }
        }
    }
}
