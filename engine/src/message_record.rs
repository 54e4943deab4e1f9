//! What a message record of the spool holds: content, envelope, and a trailer that says where one ends and the other begins.
//!
//! ```text
//! offset            bytes  field
//! 0                 C      content: the Received field and, unless chunked, all that the client sent
//! C                 E      envelope (`ringpost_smtp::envelope`), which states facts of the content and so comes behind it
//! C + E             K      only of a claim: the item's id, a line feed, the token of its lease
//! C + E + K         T      tags: for each a length u8 and so many bytes
//! C + E + K + T     32     trailer
//!
//! trailer  0        1      version: 1, 2 with tags, 3 with a claim
//!          1        1      flags: 1 chunk records follow C, 2 the last line of the content has no end
//!          2        1      priority + 1; 0: nothing was said about it
//!          3        1      zero
//!          4        4      E
//!          8        8      accepted at, unix milliseconds
//!          16       8      content bytes in all: C and every chunk
//!          24       2      T
//!          26       2      zero
//!          28       4      K
//! ```
//! A claim is another node's mail: it is deliverable when an outcome record says so, however short (`ringpost_cluster::claim`).
//! Numbers are little-endian. The trailer is last because the length is known last: content goes straight into the open batch.

/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 32;
/// Without tags the record is as version 1 had it, so that an older program can still read it.
const VERSION: u8 = 1;
const VERSION_TAGS: u8 = 2;
const VERSION_CLAIM: u8 = 3;
const FLAG_CHUNKED: u8 = 1;
/// A program that does not know it announces two octets less to the next hop.
const FLAG_OPEN_END: u8 = 2;

/// The trailer's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Trailer {
    /// Bytes of the envelope.
    pub envelope_bytes: u32,
    /// When the message was accepted, unix milliseconds.
    pub accepted_at_ms: u64,
    /// Content in all, Received field and chunks included.
    pub content_bytes: u64,
    /// Chunk records hold the rest; the spool counts and joins them.
    pub chunked: bool,
    /// The last line of the content has no end.
    pub open_end: bool,
    /// 0 to 9, as its client, header or listener said.
    pub priority: Option<u8>,
    /// Bytes of the tags.
    pub tags_bytes: u16,
    /// Bytes of the claim; 0: it is none.
    pub claim_bytes: u32,
}

/// Why bytes are no message record; says nothing about the disk, which the spool's sums have already cleared.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
pub enum MessageRecordError {
    /// Shorter than its trailer, or lengths that do not add up.
    #[error("the message record's lengths do not add up ({0} bytes)")]
    Length(usize),
    /// Written by a newer version.
    #[error("the message record has version {0}, this program knows {VERSION_CLAIM}")]
    Version(u8),
}

impl Trailer {
    /// The bytes that end a record.
    pub fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[0] = match (self.claim_bytes, self.tags_bytes) {
            (0, 0) => VERSION,
            (0, _) => VERSION_TAGS,
            _ => VERSION_CLAIM,
        };
        bytes[1] = if self.chunked { FLAG_CHUNKED } else { 0 } | if self.open_end { FLAG_OPEN_END } else { 0 };
        bytes[2] = self.priority.map_or(0, |priority| priority.saturating_add(1));
        bytes[4..8].copy_from_slice(&self.envelope_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.accepted_at_ms.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.content_bytes.to_le_bytes());
        bytes[24..26].copy_from_slice(&self.tags_bytes.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.claim_bytes.to_le_bytes());
        bytes
    }

    /// Reads the trailer of a whole record body and checks that its parts fit.
    pub fn decode(body: &[u8]) -> Result<Trailer, MessageRecordError> {
        let Some((front, bytes)) = body.split_last_chunk::<TRAILER_BYTES>() else {
            return Err(MessageRecordError::Length(body.len()));
        };
        if !(VERSION..=VERSION_CLAIM).contains(&bytes[0]) {
            return Err(MessageRecordError::Version(bytes[0]));
        }
        let u32_at = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("within the trailer"));
        let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("within the trailer"));
        let trailer = Trailer {
            envelope_bytes: u32_at(4),
            accepted_at_ms: u64_at(8),
            content_bytes: u64_at(16),
            chunked: bytes[1] & FLAG_CHUNKED != 0,
            open_end: bytes[1] & FLAG_OPEN_END != 0,
            priority: bytes[2].checked_sub(1),
            tags_bytes: if bytes[0] >= VERSION_TAGS { u16::from_le_bytes([bytes[24], bytes[25]]) } else { 0 },
            claim_bytes: if bytes[0] >= VERSION_CLAIM { u32_at(28) } else { 0 },
        };
        let inline = front.len().checked_sub(trailer.tail_bytes()).ok_or(MessageRecordError::Length(body.len()))? as u64;
        let fits = if trailer.chunked { inline <= trailer.content_bytes } else { inline == trailer.content_bytes };
        if fits { Ok(trailer) } else { Err(MessageRecordError::Length(body.len())) }
    }

    /// Octets of the content as it goes to a next hop: RFC 1870 3 counts the line end that DATA gives the last line, too.
    pub fn sent_bytes(&self) -> u64 {
        self.content_bytes + if self.open_end { 2 } else { 0 }
    }

    /// Where the content lies in a record body of `body_bytes`.
    pub fn content(&self, body_bytes: usize) -> std::ops::Range<usize> {
        0..self.envelope(body_bytes).start
    }

    /// Where the envelope lies in a record body of `body_bytes`.
    pub fn envelope(&self, body_bytes: usize) -> std::ops::Range<usize> {
        let end = self.claim(body_bytes).start;
        end - self.envelope_bytes as usize..end
    }

    /// Where the claim lies in a record body of `body_bytes`.
    pub fn claim(&self, body_bytes: usize) -> std::ops::Range<usize> {
        let end = self.tags(body_bytes).start;
        end - self.claim_bytes as usize..end
    }

    fn tail_bytes(&self) -> usize {
        self.envelope_bytes as usize + self.claim_bytes as usize + usize::from(self.tags_bytes)
    }

    /// Where the tags lie in a record body of `body_bytes`; see `tags.rs`.
    pub fn tags(&self, body_bytes: usize) -> std::ops::Range<usize> {
        let end = body_bytes - TRAILER_BYTES;
        end - usize::from(self.tags_bytes)..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(trailer: Trailer, inline: usize) -> Vec<u8> {
        let mut body = vec![b'x'; trailer.tail_bytes() + inline];
        body.extend_from_slice(&trailer.encode());
        body
    }

    #[test]
    fn a_trailer_comes_back_as_it_was_written() {
        let whole = Trailer { envelope_bytes: 10, accepted_at_ms: 7, content_bytes: 20, ..Trailer::default() };
        let claim = Trailer { claim_bytes: 5, tags_bytes: 2, ..whole };
        assert_eq!(Trailer::decode(&body(claim, 20)), Ok(claim));
        let bytes = body(claim, 20).len();
        let parts = [claim.content(bytes), claim.envelope(bytes), claim.claim(bytes), claim.tags(bytes)];
        assert_eq!(parts, [0..20, 20..30, 30..35, 35..37]);
        assert_eq!(Trailer::decode(&body(whole, 20)), Ok(whole));
        let chunked = Trailer { content_bytes: 1 << 40, chunked: true, priority: Some(0), ..whole };
        assert_eq!(Trailer::decode(&body(chunked, 20)), Ok(chunked));
        for other in [Trailer { open_end: true, ..whole }, Trailer { open_end: true, ..chunked }] {
            assert_eq!(Trailer::decode(&body(other, 20)), Ok(other));
            assert_eq!(other.sent_bytes(), other.content_bytes + 2);
        }
        assert_eq!(chunked.sent_bytes(), chunked.content_bytes);
        assert_eq!(whole.content(body(whole, 20).len()), 0..20);
        assert_eq!(whole.envelope(body(whole, 20).len()), 20..30);
        let tagged = Trailer { tags_bytes: 9, ..whole };
        let body = body(tagged, 20);
        assert_eq!((Trailer::decode(&body), body[body.len() - TRAILER_BYTES]), (Ok(tagged), VERSION_TAGS));
        assert_eq!((tagged.content(body.len()), tagged.envelope(body.len()), tagged.tags(body.len())), (0..20, 20..30, 30..39));
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        let trailer = Trailer { envelope_bytes: 10, content_bytes: 20, ..Trailer::default() };
        let good = body(trailer, 20);
        assert!(Trailer::decode(&good[1..]).is_err());
        assert!(Trailer::decode(&good[..40]).is_err());
        let mut newer = good.clone();
        let at = newer.len() - TRAILER_BYTES;
        newer[at] = 4;
        assert_eq!(Trailer::decode(&newer), Err(MessageRecordError::Version(4)));
    }
}
