//! Command lines out of received bytes, bounded and resynchronised at CRLF.
//!
//! A line that lies whole in the receive buffer is used where it lies; one that straddles two buffers is gathered in a
//! small carry. Read [`LineReader::next`] first.

use memchr::memchr;

/// A carry of at most this capacity is kept for the next line that straddles, a larger one is given back at once.
const CARRY_BYTES_KEPT: usize = 128;

/// Received bytes not yet understood: a cursor over the driver's buffer.
///
/// The session advances it over what it took; the driver asks [`consumed`](Unread::consumed) afterwards.
#[derive(Debug, Clone)]
pub struct Unread<'a> {
    bytes: &'a [u8],
    position: usize,
    more_behind: bool,
}

impl<'a> Unread<'a> {
    /// A cursor at the start of `bytes`, with nothing known to wait behind them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, more_behind: false }
    }

    /// Says whether further received bytes wait behind this slice (in another buffer, or cut off by the driver).
    ///
    /// The rules of RFC 2920 3.1 need it: some commands must be the last of what the client sent.
    pub fn with_more_behind(mut self, more_behind: bool) -> Self {
        self.more_behind = more_behind;
        self
    }

    /// What is still to be read.
    pub fn remaining(&self) -> &'a [u8] {
        &self.bytes[self.position..]
    }

    /// How many octets of the slice were taken so far.
    pub fn consumed(&self) -> usize {
        self.position
    }

    /// Whether the slice is used up. More may wait behind it.
    pub fn is_empty(&self) -> bool {
        self.position == self.bytes.len()
    }

    /// Whether any received byte, here or behind, was not yet taken.
    pub fn is_waiting(&self) -> bool {
        !self.is_empty() || self.more_behind
    }

    /// Takes `count` octets; more than remain is a bug of the caller.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.position, "more octets taken than were received");
        self.position += count;
    }
}

/// What stands at the start of the unread bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A whole line without its CRLF.
    Complete(&'a [u8]),
    /// A line of more octets than allowed ended here; it was thrown away.
    TooLong {
        /// Its first four octets.
        verb: [u8; 4],
    },
    /// An LF without a CR before it. RFC 5321 2.3.8: it ends no line, and what was meant is anybody's guess.
    BareLf,
    /// The bytes ran out before the line did. They are kept.
    Incomplete,
}

/// Gathers command lines. Holds no memory while lines come whole.
#[derive(Debug, Default)]
pub struct LineReader {
    carry: Vec<u8>,
    /// The first octets of the present line, which is too long and not kept.
    discarding: Option<[u8; 4]>,
    /// Whether the last discarded octet was CR.
    discarded_cr: bool,
    /// The carry was handed out as a line and is to be emptied before the next.
    handed_out: bool,
}

impl LineReader {
    /// Whether a line has begun and not ended: the deadline for a whole command runs.
    pub fn is_partial(&self) -> bool {
        self.discarding.is_some() || (!self.carry.is_empty() && !self.handed_out)
    }

    /// The first octet of the line at hand, if any arrived, without taking it.
    pub fn first(&self, input: &Unread<'_>) -> Option<u8> {
        match self.is_partial() {
            true => None,
            false => input.remaining().first().copied(),
        }
    }

    /// Takes the next line out of `input`, or keeps what is there of it.
    ///
    /// A line has at most `bytes_max` octets, CRLF included; the limit stays the same while a line is at hand. RFC 5321
    /// 4.5.3.1.4 asks for 512 and room for parameters.
    ///
    /// The line borrows `input` when it lies whole in it, else this reader. It is valid until the next call.
    pub fn next<'l, 'a: 'l>(&'l mut self, input: &mut Unread<'a>, bytes_max: usize) -> Line<'l> {
        if self.handed_out {
            self.forget();
        }
        let bytes = input.remaining();
        let Some(at) = memchr(b'\n', bytes) else {
            input.advance(bytes.len());
            self.keep(bytes, bytes_max);
            return Line::Incomplete;
        };
        input.advance(at + 1);
        let piece = &bytes[..at];
        if let Some(verb) = self.discarding {
            let ended = piece.last().map_or(self.discarded_cr, |&last| last == b'\r');
            self.forget();
            return if ended { Line::TooLong { verb } } else { Line::BareLf };
        }
        if self.carry.is_empty() {
            return match piece.strip_suffix(b"\r") {
                None => Line::BareLf,
                Some(line) if line.len() + 2 > bytes_max => Line::TooLong { verb: first_four(&[], line) },
                Some(line) => Line::Complete(line),
            };
        }
        if self.carry.len() + at + 1 > bytes_max {
            let ended = piece.last().or(self.carry.last()) == Some(&b'\r');
            let verb = first_four(&self.carry, piece);
            self.forget();
            return if ended { Line::TooLong { verb } } else { Line::BareLf };
        }
        self.carry.extend_from_slice(piece);
        self.handed_out = true;
        match self.carry.strip_suffix(b"\r") {
            None => Line::BareLf,
            Some(line) => Line::Complete(line),
        }
    }

    /// Drops what was gathered and the memory it took, if that was much.
    pub fn forget(&mut self) {
        self.carry.clear();
        if self.carry.capacity() > CARRY_BYTES_KEPT {
            self.carry = Vec::new();
        }
        self.discarding = None;
        self.discarded_cr = false;
        self.handed_out = false;
    }

    /// Octets of heap held.
    pub fn heap_bytes(&self) -> usize {
        self.carry.capacity()
    }

    /// Keeps the beginning of a line, or notes that it grew too long.
    fn keep(&mut self, bytes: &[u8], bytes_max: usize) {
        let Some(&last) = bytes.last() else { return };
        if self.discarding.is_some() || self.carry.len() + bytes.len() >= bytes_max {
            let verb = self.discarding.unwrap_or_else(|| first_four(&self.carry, bytes));
            self.forget();
            self.discarding = Some(verb);
            self.discarded_cr = last == b'\r';
            return;
        }
        if self.carry.capacity() == 0 {
            self.carry.reserve_exact(CARRY_BYTES_KEPT.max(bytes.len()));
        }
        self.carry.extend_from_slice(bytes);
    }
}

/// The first octets of a line that stands in two pieces and has more than four.
fn first_four(carry: &[u8], piece: &[u8]) -> [u8; 4] {
    let mut octets = carry.iter().chain(piece).copied();
    std::array::from_fn(|_| octets.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE_BYTES_MAX: usize = 2048;

    /// Every line of `stream`, given in pieces of `piece` octets, as text.
    fn lines(stream: &[u8], piece: usize) -> Vec<String> {
        let mut reader = LineReader::default();
        let mut seen = Vec::new();
        for bytes in stream.chunks(piece) {
            let mut input = Unread::new(bytes);
            while !input.is_empty() {
                let mut cursor = input.clone();
                match reader.next(&mut cursor, LINE_BYTES_MAX) {
                    Line::Complete(line) => seen.push(String::from_utf8_lossy(line).into_owned()),
                    Line::TooLong { verb } => seen.push(format!("<too long: {}>", verb.escape_ascii())),
                    Line::BareLf => seen.push("<bare LF>".into()),
                    Line::Incomplete => {}
                }
                let taken = cursor.consumed() - input.consumed();
                input.advance(taken);
            }
        }
        assert!(!reader.is_partial() || !stream.ends_with(b"\r\n"), "a line end leaves nothing behind");
        seen
    }

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        let long = "x".repeat(LINE_BYTES_MAX - 2);
        let stream = format!("NOOP\r\n\r\nbare\nMAIL\r\n{long}\r\n{long}y\r\n{long}\n\rQUIT\r\n\n");
        let whole = lines(stream.as_bytes(), usize::MAX);
        assert_eq!(whole, ["NOOP", "", "<bare LF>", "MAIL", &long, "<too long: xxxx>", "<bare LF>", "\rQUIT", "<bare LF>"]);
        for piece in (1..80).chain([2046, 2047, 2048, 2049, 2050]) {
            assert_eq!(lines(stream.as_bytes(), piece), whole, "cut every {piece} octets");
        }
    }

    #[test]
    fn a_line_of_a_megabyte_is_thrown_away_without_being_kept() {
        let mut reader = LineReader::default();
        let filler = [b'a'; 4096];
        for _ in 0..256 {
            assert_eq!(reader.next(&mut Unread::new(&filler), LINE_BYTES_MAX), Line::Incomplete);
            assert!(reader.heap_bytes() <= LINE_BYTES_MAX);
        }
        assert_eq!(reader.next(&mut Unread::new(b"\r\n"), LINE_BYTES_MAX), Line::TooLong { verb: *b"aaaa" });
        assert_eq!(reader.next(&mut Unread::new(b"NOOP\r\n"), LINE_BYTES_MAX), Line::Complete(b"NOOP"));
        assert_eq!(reader.heap_bytes(), 0);
    }

    #[test]
    fn whole_lines_hold_no_memory() {
        let mut reader = LineReader::default();
        let mut input = Unread::new(b"NOOP\r\nRSET\r\n");
        assert_eq!(reader.next(&mut input, LINE_BYTES_MAX), Line::Complete(b"NOOP"));
        assert_eq!(reader.next(&mut input, LINE_BYTES_MAX), Line::Complete(b"RSET"));
        assert_eq!(reader.heap_bytes(), 0);
    }
}
