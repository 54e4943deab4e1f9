//! The checksum of test messages: 64 bits, made of two CRCs of 32 bits with different polynomials over the same octets.
//!
//! One alone would not do. CRC32C also guards the engine's own log, and damage that one such sum does not see no other of the same
//! polynomial sees either. With the CRC-32 of Ethernet beside it (the two polynomials have no factor in common) it is a CRC of 64 bits:
//! damage by chance stays unseen once in 2^64. It is no defence against forgers, and needs none. Both sums continue where another
//! ended, which composing relies on.

use std::fmt;

use crate::identity::read_hex;

/// Characters of a [`Checksum`] in text.
pub const CHECKSUM_CHARS: usize = 16;

/// The sum of the octets so far; that of none by default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum {
    crc32c: u32,
    crc32: u32,
}

impl Checksum {
    /// Of these octets.
    pub fn of(bytes: &[u8]) -> Checksum {
        Checksum::default().append(bytes)
    }

    /// Of these octets behind the others.
    #[must_use]
    pub fn append(self, bytes: &[u8]) -> Checksum {
        let mut crc32 = crc32fast::Hasher::new_with_initial(self.crc32);
        crc32.update(bytes);
        Checksum { crc32c: crc32c::crc32c_append(self.crc32c, bytes), crc32: crc32.finalize() }
    }

    /// As a number.
    pub fn bits(self) -> u64 {
        u64::from(self.crc32c) << 32 | u64::from(self.crc32)
    }

    /// From [`Checksum::bits`].
    pub fn from_bits(bits: u64) -> Checksum {
        Checksum { crc32c: (bits >> 32) as u32, crc32: bits as u32 }
    }

    /// From its 16 hexadecimal digits; `None` for anything else.
    pub fn parse(digits: &[u8]) -> Option<Checksum> {
        if digits.len() == CHECKSUM_CHARS { read_hex(digits).map(Checksum::from_bits) } else { None }
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_of_the_two_sums_that_the_world_knows_and_continues() {
        let sum = Checksum::of(b"123456789");
        // The check values of CRC-32C and CRC-32 in every catalogue of CRCs.
        assert_eq!(sum.bits(), 0xE306_9283_CBF4_3926);
        assert_eq!(Checksum::of(b"1234").append(b"").append(b"56789"), sum);
        assert_eq!(Checksum::parse(format!("{sum:?}").as_bytes()), Some(sum));
        assert_eq!(Checksum::parse(b"e3069283"), None);
    }

    #[test]
    fn what_leaves_the_one_sum_as_it_was_is_seen_by_the_other() {
        // The polynomial of CRC32C itself, bits reflected and 33 of them, is damage that CRC32C cannot see.
        let message = vec![b'x'; 64];
        let mut damaged = message.clone();
        for (at, byte) in (0x82F6_3B78u64 << 1 | 1).to_le_bytes().into_iter().enumerate() {
            damaged[20 + at] ^= byte;
        }
        assert_eq!(crc32c::crc32c(&message), crc32c::crc32c(&damaged));
        assert_ne!(Checksum::of(&message), Checksum::of(&damaged));
    }
}
