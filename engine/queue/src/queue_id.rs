//! The name of an accepted message, as people, logs and replies show it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Crockford's base 32: upper case, without I, L, O and U, so that an id survives being read aloud.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const BOOT_DIGITS: usize = 7;
const SHARD_DIGITS: usize = 4;
const SEQUENCE_DIGITS_MAX: usize = 13;

/// Names one accepted message for ever within its node: the process life, the shard and a running number.
///
/// The text form is 12 to 24 upper-case characters: 7 for `boot`, 4 for `shard`, 1 to 13 for `sequence`.
/// It needs no quoting in mail, logs or a shell, and parsing accepts lower case and the look-alikes I, L and O.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct QueueId {
    /// Number of the process life: `max(last + 1, unix seconds)`, so it only grows.
    pub boot: u32,
    /// The shard that accepted the message.
    pub shard: u16,
    /// Running number within boot and shard.
    pub sequence: u64,
}

impl QueueId {
    /// Longest text form, in bytes.
    pub const TEXT_BYTES_MAX: usize = BOOT_DIGITS + SHARD_DIGITS + SEQUENCE_DIGITS_MAX;

    /// Writes the text form into `buffer` and returns the part that was written; for paths that must not allocate.
    pub fn write_text<'b>(&self, buffer: &'b mut [u8; Self::TEXT_BYTES_MAX]) -> &'b str {
        write_digits(&mut buffer[..BOOT_DIGITS], u64::from(self.boot));
        write_digits(&mut buffer[BOOT_DIGITS..BOOT_DIGITS + SHARD_DIGITS], u64::from(self.shard));
        let bits = 64 - self.sequence.leading_zeros() as usize;
        let digits = bits.div_ceil(5).max(1);
        let end = BOOT_DIGITS + SHARD_DIGITS + digits;
        write_digits(&mut buffer[BOOT_DIGITS + SHARD_DIGITS..end], self.sequence);
        std::str::from_utf8(&buffer[..end]).expect("the alphabet is ASCII")
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.write_text(&mut [0; Self::TEXT_BYTES_MAX]))
    }
}

/// The text is not the form of a [`QueueId`]; the caller tells the user that there is no such message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("not a queue id: 12 to 24 letters and digits are expected")]
pub struct ParseQueueIdError;

impl FromStr for QueueId {
    type Err = ParseQueueIdError;

    fn from_str(text: &str) -> Result<Self, ParseQueueIdError> {
        let bytes = text.as_bytes();
        if bytes.len() <= BOOT_DIGITS + SHARD_DIGITS || bytes.len() > Self::TEXT_BYTES_MAX {
            return Err(ParseQueueIdError);
        }
        let (boot, rest) = bytes.split_at(BOOT_DIGITS);
        let (shard, sequence) = rest.split_at(SHARD_DIGITS);
        if sequence.len() > 1 && sequence[0] == b'0' {
            return Err(ParseQueueIdError);
        }
        Ok(Self {
            boot: read_digits(boot).and_then(|n| n.try_into().ok()).ok_or(ParseQueueIdError)?,
            shard: read_digits(shard).and_then(|n| n.try_into().ok()).ok_or(ParseQueueIdError)?,
            sequence: read_digits(sequence).and_then(|n| n.try_into().ok()).ok_or(ParseQueueIdError)?,
        })
    }
}

fn write_digits(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = ALPHABET[(number & 31) as usize];
        number >>= 5;
    }
}

fn read_digits(digits: &[u8]) -> Option<u128> {
    let mut number = 0u128;
    for &digit in digits {
        let plain = match digit.to_ascii_uppercase() {
            b'I' | b'L' => b'1',
            b'O' => b'0',
            other => other,
        };
        number = number << 5 | ALPHABET.iter().position(|&letter| letter == plain)? as u128;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_read_back() {
        for (boot, shard, sequence) in [(0, 0, 0), (1, 2, 3), (1_790_000_000, 7, 31), (u32::MAX, u16::MAX, u64::MAX), (5, 6, 1 << 40)] {
            let id = QueueId { boot, shard, sequence };
            let text = id.to_string();
            assert!(text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()), "{text}");
            assert_eq!(text.parse(), Ok(id), "{text}");
            assert_eq!(text.to_lowercase().parse(), Ok(id), "{text}");
        }
    }

    #[test]
    fn later_ids_of_a_shard_sort_later() {
        let early = QueueId { boot: 9, shard: 1, sequence: 31 };
        let late = QueueId { boot: 9, shard: 1, sequence: 32 };
        assert!(early < late);
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "0",
            "00000000000",
            "0000000000000",
            "0000000000U1",
            "00000000000 ",
            "ZZZZZZZ00001",
            "0000000ZZZZ1",
            "é0000000000",
            "0000000000000000000000000",
        ] {
            assert_eq!(text.parse::<QueueId>(), Err(ParseQueueIdError), "{text}");
        }
    }
}
