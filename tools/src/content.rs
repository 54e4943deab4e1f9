//! Test messages that carry their own identity, length and hash.
//!
//! A body is a prebuilt block of random lines plus one unique line, so that composing costs no walk over the
//! content: the hash continues from the block's saved state. The check of one that arrived (`arrival`) walks every byte.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::random::Random;

/// Blocks of one load; messages take turns with them.
const BLOCKS: usize = 64;
/// Characters of a [`MessageId`] in text.
const ID_CHARS: usize = 28;
/// The longest header this module writes, in octets: what a size option is reduced by to find the block's length.
const HEADER_BYTES: usize = 256;

/// Which sum a message carries: SHA-256 for proofs, CRC32C where the sink shares a core with what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashKind {
    /// 64 hexadecimal digits.
    Sha256,
    /// 8 hexadecimal digits.
    Crc32c,
}

impl FromStr for HashKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "crc32c" => Ok(Self::Crc32c),
            other => Err(format!("unknown hash {other:?}: sha256 or crc32c")),
        }
    }
}

/// The state of a sum in the middle of a body; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Sum {
    Sha256(Sha256),
    Crc32c(u32),
}

/// A finished sum, comparable and printable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentHash {
    /// SHA-256 of the body.
    Sha256([u8; 32]),
    /// CRC32C of the body.
    Crc32c(u32),
}

impl Sum {
    pub(crate) fn new(kind: HashKind) -> Self {
        match kind {
            HashKind::Sha256 => Self::Sha256(Sha256::new()),
            HashKind::Crc32c => Self::Crc32c(0),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Crc32c(state) => *state = crc32c::crc32c_append(*state, bytes),
        }
    }

    pub(crate) fn finish(self) -> ContentHash {
        match self {
            Self::Sha256(state) => ContentHash::Sha256(state.finalize().into()),
            Self::Crc32c(state) => ContentHash::Crc32c(state),
        }
    }
}

fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

impl ContentHash {
    /// Appends the hexadecimal digits.
    pub fn push_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Sha256(bytes) => push_hex(out, bytes),
            Self::Crc32c(sum) => push_hex(out, &sum.to_be_bytes()),
        }
    }

    /// Reads what [`ContentHash::push_to`] wrote: 8 or 64 hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        match text.len() {
            8 => u32::from_str_radix(text, 16).ok().map(Self::Crc32c),
            64 => {
                let mut bytes = [0; 32];
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
                }
                Some(Self::Sha256(bytes))
            }
            _ => None,
        }
    }
}

/// Identity of one submission: 64 random bits of the sending run and a number in it. A message sent again gets a new one,
/// so whatever arrives twice under one identity was doubled by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Random per sending run.
    pub run: u64,
    /// 0, 1, 2 ... in the run; at most 48 bits.
    pub sequence: u64,
}

impl MessageId {
    /// Appends the 28 hexadecimal digits.
    pub fn push_to(&self, out: &mut Vec<u8>) {
        push_hex(out, &self.run.to_be_bytes());
        push_hex(out, &self.sequence.to_be_bytes()[2..]);
    }

    /// Reads what [`MessageId::push_to`] wrote.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != ID_CHARS {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        Some(Self { run: u64::from_str_radix(text.get(..16)?, 16).ok()?, sequence: u64::from_str_radix(text.get(16..)?, 16).ok()? })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:012x}", self.run, self.sequence)
    }
}

/// Content sizes of a load, in octets; a range is skewed towards its small end so that mail of 5 MiB is rare but present.
#[derive(Debug, Clone)]
pub struct SizeRange(pub RangeInclusive<u64>);

impl FromStr for SizeRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| -> Result<u64, String> {
            let part = part.trim();
            let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
            let unit = match part[digits.len()..].trim() {
                "" | "B" => 1,
                "K" | "k" | "KiB" => 1 << 10,
                "M" | "m" | "MiB" => 1 << 20,
                other => return Err(format!("unknown unit {other:?} in size {text:?}: B, KiB or MiB")),
            };
            digits.parse::<u64>().map(|n| n * unit).map_err(|_| format!("size {text:?} is not BYTES or BYTES..BYTES"))
        };
        let (low, high) = match text.split_once("..") {
            Some((low, high)) => (one(low)?, one(high.trim_start_matches('='))?),
            None => (one(text)?, one(text)?),
        };
        if low > high || high > 1 << 30 {
            return Err(format!("size {text:?}: want low..high, at most 1024 MiB"));
        }
        Ok(Self(low..=high))
    }
}

/// A prebuilt body without its unique last line.
#[derive(Debug)]
pub struct Block {
    /// As the recipient sees it.
    raw: Vec<u8>,
    /// As DATA carries it: lines that begin with a dot have a second one.
    stuffed: Vec<u8>,
    sum: Sum,
}

impl Block {
    /// The lines as BDAT carries them.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The lines as DATA carries them (RFC 5321 4.5.2).
    pub fn stuffed(&self) -> &[u8] {
        &self.stuffed
    }
}

/// The blocks of a load and the counter of its identities.
#[derive(Debug)]
pub struct Composer {
    blocks: Vec<Block>,
    run: u64,
    next: u64,
}

/// What a session must remember of a message under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Composed {
    /// Its identity.
    pub id: MessageId,
    /// What it must hash to on arrival.
    pub hash: ContentHash,
    /// Index for [`Composer::block`].
    pub block: usize,
}

impl Composer {
    /// Builds the blocks; `seed` decides their content, `run` names the run.
    pub fn new(run: u64, seed: u64, sizes: &SizeRange, kind: HashKind) -> Self {
        let mut random = Random::new(seed);
        let (low, high) = (*sizes.0.start(), *sizes.0.end());
        let count = if low == high && low > 1 << 20 { 4 } else { BLOCKS };
        let blocks = (0..count)
            .map(|turn| {
                // The quantile to the fourth power on a logarithmic scale: half of the messages within 1.7 times the least size
                // of 1 KiB, one in sixty-four of the greatest.
                let quantile = if count > 1 { turn as f64 / (count - 1) as f64 } else { 0.0 };
                let size = low as f64 * (high as f64 / low.max(1) as f64).powf(quantile.powi(4));
                let (raw, stuffed) = lines((size as usize).saturating_sub(HEADER_BYTES), &mut random);
                let mut sum = Sum::new(kind);
                sum.update(&raw);
                Block { raw, stuffed, sum }
            })
            .collect::<Vec<_>>();
        Self { blocks, run, next: 0 }
    }

    /// Identities given out so far.
    pub fn composed(&self) -> u64 {
        self.next
    }

    /// The block of a composed message.
    pub fn block(&self, index: usize) -> &Block {
        &self.blocks[index]
    }

    /// Starts a message: its header goes to `head`, its last line to `tail`; between them belongs the block.
    pub fn compose(&mut self, head: &mut Vec<u8>, tail: &mut Vec<u8>) -> Composed {
        let id = MessageId { run: self.run, sequence: self.next };
        // A prime stride, so that large blocks are spread over the run.
        let index = (self.next as usize).wrapping_mul(29) % self.blocks.len();
        self.next += 1;
        let block = &self.blocks[index];

        let tail_start = tail.len();
        tail.extend_from_slice(b"end ");
        id.push_to(tail);
        tail.extend_from_slice(b"\r\n");
        let mut sum = block.sum.clone();
        sum.update(&tail[tail_start..]);
        let hash = sum.finish();

        push_header(head, id, &hash, block.raw.len() + tail.len() - tail_start);
        Composed { id, hash, block: index }
    }
}

/// A whole message (unstuffed) around a body of the caller's, which must end with CRLF: its identity and hash, and its octets.
pub fn sealed(id: MessageId, body: &[u8]) -> (ContentHash, Vec<u8>) {
    let mut sum = Sum::new(HashKind::Sha256);
    sum.update(body);
    let hash = sum.finish();
    let mut content = Vec::with_capacity(HEADER_BYTES + body.len());
    push_header(&mut content, id, &hash, body.len());
    content.extend_from_slice(body);
    (hash, content)
}

fn push_header(head: &mut Vec<u8>, id: MessageId, hash: &ContentHash, body_bytes: usize) {
    head.extend_from_slice(b"From: sender <sender@x.test>\r\nTo: <b@y.test>\r\nSubject: ringpost load\r\nX-Ringpost-Id: ");
    id.push_to(head);
    head.extend_from_slice(b"\r\nX-Ringpost-Length: ");
    let mut digits = [0u8; 20];
    head.extend_from_slice(decimal(body_bytes, &mut digits));
    head.extend_from_slice(b"\r\nX-Ringpost-Hash: ");
    hash.push_to(head);
    head.extend_from_slice(b"\r\n\r\n");
}

/// Writes `number` into `digits` without allocating.
pub fn decimal(mut number: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

/// Random lines of `bytes` octets in all: text, 8-bit text, long lines, lines that begin with dots, empty lines.
fn lines(bytes: usize, random: &mut Random) -> (Vec<u8>, Vec<u8>) {
    let mut raw = Vec::with_capacity(bytes);
    while raw.len() < bytes {
        let room = bytes - raw.len();
        if room < 3 {
            // Too little for another line: lengthen the last one, in front of its CRLF.
            let at = raw.len().saturating_sub(2);
            raw.splice(at..at, std::iter::repeat_n(b'-', room));
            break;
        }
        let wanted = match random.below(32) {
            0 => 0,
            1 => random.between(100, 990),
            _ => random.between(20, 76),
        } as usize;
        let length = if room < wanted + 5 { room - 2 } else { wanted }.min(996);
        let start = raw.len();
        let eight_bit = random.one_in(8);
        for _ in 0..length {
            let byte = if eight_bit && random.one_in(4) { random.between(0xA1, 0xFE) } else { random.between(0x20, 0x7E) };
            raw.push(byte as u8);
        }
        if length > 0 && random.one_in(12) {
            raw[start] = b'.';
        }
        if length > 1 && random.one_in(40) {
            raw[start..start + 2].copy_from_slice(b"..");
        }
        raw.extend_from_slice(b"\r\n");
        if random.one_in(24) && bytes - raw.len() > 3 {
            raw.extend_from_slice(b".\r\n");
        }
    }
    let mut stuffed = Vec::with_capacity(raw.len() + raw.len() / 64);
    for line in raw.split_inclusive(|&byte| byte == b'\n') {
        if line[0] == b'.' {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    (raw, stuffed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_units_and_refused_without_sense() {
        assert_eq!("1KiB..5MiB".parse::<SizeRange>().unwrap().0, 1024..=5 << 20);
        assert_eq!("4096".parse::<SizeRange>().unwrap().0, 4096..=4096);
        assert!("9..3".parse::<SizeRange>().is_err() && "4 parsecs".parse::<SizeRange>().is_err());
    }

    #[test]
    fn identities_and_hashes_read_back() {
        let id = MessageId { run: u64::MAX - 5, sequence: 77 };
        let mut text = Vec::new();
        id.push_to(&mut text);
        assert_eq!(MessageId::parse(&text), Some(id));
        assert_eq!(id.to_string().as_bytes(), text);
        assert_eq!(ContentHash::parse(b"00c0ffee"), Some(ContentHash::Crc32c(0x00C0_FFEE)));
        assert_eq!(ContentHash::parse(b"xyz"), None);
    }
}
