//! The check of a message that arrived: line ends, stuffing, length, hash.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::content::{ContentHash, HashKind, MessageId, Sum};

/// What is wrong with a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// No header this module writes: somebody else's mail.
    Foreign,
    /// A CR without LF or an LF without CR.
    BareLineEnd,
    /// A line that begins with a dot was not stuffed by the engine.
    NotStuffed,
    /// More or fewer octets than its header says.
    Length,
    /// The right length but other octets.
    Hash,
}

/// A message as it was found by [`verify`].
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    /// Its identity, where its header could be read.
    pub id: Option<MessageId>,
    /// What its header says it hashes to.
    pub hash: Option<ContentHash>,
    /// None for an intact message.
    pub damage: Option<Damage>,
}

/// Checks content as DATA carried it, without the final dot line: line ends, stuffing, length, hash.
pub fn verify(wire: &[u8]) -> Arrived {
    let mut arrived = Arrived { id: None, hash: None, damage: Some(Damage::Foreign) };
    let Some(header_end) = BLANK_LINE.find(wire) else { return arrived };
    let (header, body) = (&wire[..header_end + 2], &wire[header_end + 4..]);
    arrived.id = field(header, &ID_FIELD).and_then(MessageId::parse);
    arrived.hash = field(header, &HASH_FIELD).and_then(ContentHash::parse);
    let length = field(header, &LENGTH_FIELD).and_then(|text| std::str::from_utf8(text).ok()?.parse::<usize>().ok());
    let (Some(_), Some(hash), Some(length)) = (arrived.id, arrived.hash, length) else { return arrived };

    let mut sum = Sum::new(if matches!(hash, ContentHash::Sha256(_)) { HashKind::Sha256 } else { HashKind::Crc32c });
    let mut octets = 0;
    let mut not_stuffed = false;
    // RFC 5321 4.5.2: a line of content that begins with a dot was sent with one more; any other dot in front is damage.
    let mut from = 0;
    let mut at = 0;
    loop {
        if body[at..].starts_with(b".") {
            not_stuffed |= !body[at..].starts_with(b"..");
            sum.update(&body[from..at]);
            octets += at - from;
            from = at + 1;
        }
        match LINE_DOT.find(&body[at..]) {
            Some(next) => at += next + 2,
            None => break,
        }
    }
    sum.update(&body[from..]);
    octets += body.len() - from;
    arrived.damage = if has_bare_line_end(wire) {
        Some(Damage::BareLineEnd)
    } else if not_stuffed {
        Some(Damage::NotStuffed)
    } else if octets != length {
        Some(Damage::Length)
    } else if sum.finish() != hash {
        Some(Damage::Hash)
    } else {
        None
    };
    arrived
}

/// True when a CR stands without LF or an LF without CR anywhere in `bytes`.
pub fn has_bare_line_end(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'\r', b'\n', &bytes[at..]) {
        if !bytes[at + found..].starts_with(b"\r\n") {
            return true;
        }
        at += found + 2;
    }
    false
}

/// The value of the header field `name` (with CRLF in front and the colon behind).
fn field<'a>(header: &'a [u8], name: &Finder<'_>) -> Option<&'a [u8]> {
    let start = name.find(header)? + name.needle().len();
    let end = start + memchr::memchr(b'\r', &header[start..])?;
    Some(header[start..end].trim_ascii())
}

static BLANK_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
static LINE_DOT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n."));
static ID_FIELD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\nX-Ringpost-Id:"));
static LENGTH_FIELD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\nX-Ringpost-Length:"));
static HASH_FIELD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\nX-Ringpost-Hash:"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{Composed, Composer, SizeRange};

    fn message(kind: HashKind, size: u64) -> (Composed, Vec<u8>) {
        let mut composer = Composer::new(5, 9, &SizeRange(size..=size), kind);
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        let composed = composer.compose(&mut head, &mut tail);
        head.extend_from_slice(composer.block(composed.block).stuffed());
        head.extend_from_slice(&tail);
        (composed, head)
    }

    #[test]
    fn an_untouched_message_is_intact_at_every_size() {
        for kind in [HashKind::Sha256, HashKind::Crc32c] {
            for size in (0..1200).chain([4096, 70_000]) {
                let (composed, wire) = message(kind, size);
                let arrived = verify(&wire);
                assert_eq!(arrived.damage, None, "size {size}");
                assert_eq!((arrived.id, arrived.hash), (Some(composed.id), Some(composed.hash)));
                assert!(size < 400 || (wire.len() as u64).abs_diff(size) <= 64 + size / 64, "size {size} became {}", wire.len());
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_the_body_is_noticed() {
        let (_, wire) = message(HashKind::Sha256, 700);
        let body = BLANK_LINE.find(&wire).unwrap() + 4;
        for at in body..wire.len() {
            for bit in 0..8 {
                let mut damaged = wire.clone();
                damaged[at] ^= 1 << bit;
                assert!(verify(&damaged).damage.is_some(), "bit {bit} of octet {at}");
            }
        }
    }

    #[test]
    fn missing_stuffing_lost_octets_and_bare_line_ends_are_named() {
        let (_, wire) = message(HashKind::Sha256, 4096);
        let stuffed = memchr::memmem::find(&wire, b"\r\n..").unwrap() + 2;
        let mut other = wire.clone();
        other.remove(stuffed);
        assert!(matches!(verify(&other).damage, Some(Damage::NotStuffed | Damage::Length)));
        assert_eq!(verify(&wire[..wire.len() - 10]).damage, Some(Damage::Length));
        let mut bare = wire.clone();
        let end = bare.len() - 2;
        bare.remove(end);
        assert_eq!(verify(&bare).damage, Some(Damage::BareLineEnd));
        assert_eq!(verify(b"Subject: x\r\n\r\nhello\r\n").damage, Some(Damage::Foreign));
    }
}
