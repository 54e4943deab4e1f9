//! One mail as it goes from node to node: what a message record holds, in one piece.
//!
//! ```text
//! 0   1  version, 1
//! 1   1  priority + 1; 0: nothing was said about it
//! 2   2  T, little-endian
//! 4   4  E, little-endian
//! 8   8  accepted at, unix milliseconds, little-endian
//! 16  E  envelope
//!     T  tags, as in the record
//!        content, Received field included
//! ```
//! It is signed and packed by the work queue, which knows nothing of it.

/// Bytes before the envelope.
pub const HEAD_BYTES: usize = 16;
const VERSION: u8 = 1;

/// A mail on its way, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandedMail<'m> {
    /// 0 to 9, as its client, header or listener said.
    pub priority: Option<u8>,
    /// Unix milliseconds; lifetimes count from it on every node.
    pub accepted_at_ms: u64,
    /// The envelope's bytes, not checked.
    pub envelope: &'m [u8],
    /// Its tags.
    pub tags: &'m [u8],
    /// All of the content.
    pub content: &'m [u8],
}

impl<'m> HandedMail<'m> {
    /// The bytes before envelope, tags and content.
    pub fn head(priority: Option<u8>, accepted_at_ms: u64, envelope_bytes: u32, tags_bytes: u16) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[0] = VERSION;
        head[1] = priority.map_or(0, |priority| priority.saturating_add(1));
        head[2..4].copy_from_slice(&tags_bytes.to_le_bytes());
        head[4..8].copy_from_slice(&envelope_bytes.to_le_bytes());
        head[8..16].copy_from_slice(&accepted_at_ms.to_le_bytes());
        head
    }

    /// Takes a mail apart; `None`: it is none, or of a later version.
    pub fn read(bytes: &'m [u8]) -> Option<HandedMail<'m>> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let envelope_bytes = u32::from_le_bytes(*head[4..].first_chunk()?) as usize;
        let (envelope, rest) = rest.split_at_checked(envelope_bytes)?;
        let (tags, content) = rest.split_at_checked(usize::from(u16::from_le_bytes(*head[2..].first_chunk()?)))?;
        let accepted_at_ms = u64::from_le_bytes(*head[8..].first_chunk()?);
        (head[0] == VERSION).then_some(HandedMail { priority: head[1].checked_sub(1), accepted_at_ms, envelope, tags, content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_comes_apart_as_it_was_put_together() {
        let mut bytes = HandedMail::head(Some(3), 77, 4, 2).to_vec();
        bytes.extend_from_slice(b"ENVL\x01tcontent");
        let mail = HandedMail { priority: Some(3), accepted_at_ms: 77, envelope: b"ENVL", tags: b"\x01t", content: b"content" };
        assert_eq!(HandedMail::read(&bytes), Some(mail));
        assert_eq!(HandedMail::read(&bytes[..19]), None);
        bytes[0] = 2;
        assert_eq!(HandedMail::read(&bytes), None);
    }
}
