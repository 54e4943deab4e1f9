//! What a test message carries to be known again: run, number, length, checksum and the time it was to be sent.
//!
//! One header field, `X-Ringpost-Load`, whose parts have fixed widths, so that composing patches octets. Length and checksum cover
//! everything behind the line of that field, as it was before dot-stuffing; what relays put in front does not matter.

use std::fmt;

use crate::checksum::{CHECKSUM_CHARS, Checksum};

/// The field with its colon and space, as it is written. Read without regard to case.
pub const FIELD: &[u8] = b"X-Ringpost-Load: ";

/// Characters of a [`MessageId`] in text.
pub const ID_CHARS: usize = 29;

/// Characters of the field's value: id, length, checksum, time, with spaces between them.
pub const VALUE_CHARS: usize = ID_CHARS + 1 + 10 + 1 + CHECKSUM_CHARS + 1 + 16;

/// Which message: 64 random bits of the run that sent it, and a number in that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Random per run.
    pub run: u64,
    /// 0, 1, 2 ... in the run, at most 48 bits.
    pub sequence: u64,
}

impl MessageId {
    /// Writes the 29 characters: 16 digits, a hyphen, 12 digits, all hexadecimal.
    pub fn write(&self, text: &mut [u8; ID_CHARS]) {
        write_hex(self.run, &mut text[..16]);
        text[16] = b'-';
        write_hex(self.sequence, &mut text[17..]);
    }

    /// Appends them.
    pub fn push_to(&self, out: &mut Vec<u8>) {
        let mut text = [0; ID_CHARS];
        self.write(&mut text);
        out.extend_from_slice(&text);
    }

    /// Reads what [`MessageId::write`] wrote; `None` for anything else.
    pub fn parse(text: &[u8]) -> Option<MessageId> {
        if text.len() != ID_CHARS || text[16] != b'-' {
            return None;
        }
        Some(MessageId { run: read_hex(&text[..16])?, sequence: read_hex(&text[17..])? })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:012x}", self.run, self.sequence)
    }
}

/// The value of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which message.
    pub id: MessageId,
    /// Octets behind the field's line, before dot-stuffing.
    pub length: u64,
    /// Their checksum.
    pub checksum: Checksum,
    /// When it was to be sent: microseconds since 1970. Under an open loop this is the scheduled time.
    pub due_us: u64,
}

impl Mark {
    /// Writes the value.
    pub fn write(&self, text: &mut [u8; VALUE_CHARS]) {
        let (id, rest) = text.split_first_chunk_mut::<ID_CHARS>().expect("the value begins with the id");
        self.id.write(id);
        rest[0] = b' ';
        write_decimal(self.length, &mut rest[1..11]);
        rest[11] = b' ';
        write_hex(self.checksum.bits(), &mut rest[12..28]);
        rest[28] = b' ';
        write_hex(self.due_us, &mut rest[29..45]);
    }

    /// Reads the value of the field, white space around it allowed; `None` when it is not what [`Mark::write`] writes.
    pub fn parse(value: &[u8]) -> Option<Mark> {
        let value = value.trim_ascii();
        if value.len() != VALUE_CHARS {
            return None;
        }
        let mut words = value.split(|&byte| byte == b' ');
        let id = MessageId::parse(words.next()?)?;
        let length = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        let checksum = Checksum::parse(words.next()?)?;
        let due_us = read_hex(words.next()?)?;
        words.next().is_none().then_some(Mark { id, length, checksum, due_us })
    }
}

/// The low digits of `number`, as many as there is room for.
pub(crate) fn write_hex(number: u64, digits: &mut [u8]) {
    let mut left = number;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(left & 15) as usize];
        left >>= 4;
    }
}

fn write_decimal(number: u64, digits: &mut [u8]) {
    let mut left = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
}

/// At most 16 hexadecimal digits; `None` for anything else.
pub(crate) fn read_hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0u64, |number, &digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

/// Appends a number in decimal without allocating.
pub(crate) fn push_decimal(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    write_decimal(number, &mut digits);
    let first = digits.iter().position(|&digit| digit != b'0').unwrap_or(19);
    out.extend_from_slice(&digits[first..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_nothing_else_does() {
        let mark = Mark {
            id: MessageId { run: u64::MAX - 5, sequence: 0xABCD_EF01_2345 },
            length: 4096,
            checksum: Checksum::from_bits(0x00C0_FFEE_0000_0001),
            due_us: 1_790_000_000_123_456,
        };
        let mut text = [0; VALUE_CHARS];
        mark.write(&mut text);
        assert_eq!(Mark::parse(&text), Some(mark));
        assert_eq!(Mark::parse(&[b" \t", &text[..], b"\r\n"].concat()), Some(mark));
        assert_eq!(MessageId::parse(mark.id.to_string().as_bytes()), Some(mark.id));
        for at in 0..text.len() {
            let mut other = text;
            other[at] = b'!';
            assert_eq!(Mark::parse(&other), None, "octet {at}");
        }
        assert_eq!(Mark::parse(b""), None);
    }

    #[test]
    fn decimals_have_no_leading_zeros() {
        let mut out = Vec::new();
        for number in [0, 7, 10, 4096, u64::MAX] {
            out.clear();
            push_decimal(number, &mut out);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }
}
