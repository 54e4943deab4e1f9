//! The check of content as it arrives, octet by octet and in pieces of any length: line ends, stuffing, length, checksum.
//!
//! Independent of the engine's own code on purpose, so that both would have to be wrong in the same way. Pure.

use crate::{
    checksum::Checksum,
    identity::{FIELD, Mark},
};

/// What is wrong with a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Damage {
    /// A CR without LF or an LF without CR.
    BareLineEnd,
    /// A line that begins with one dot: not stuffed.
    NotStuffed,
    /// More or fewer octets than the mark says.
    Length,
    /// The right number, but others.
    Checksum,
    /// Octets beyond ASCII, though 8BITMIME was not announced (RFC 6152 3).
    EightBit,
}

impl Damage {
    /// All of them.
    pub const ALL: [Damage; 5] = [Damage::BareLineEnd, Damage::NotStuffed, Damage::Length, Damage::Checksum, Damage::EightBit];

    /// Its word in a ledger.
    pub fn name(self) -> &'static str {
        match self {
            Damage::BareLineEnd => "bare-line-end",
            Damage::NotStuffed => "not-stuffed",
            Damage::Length => "length",
            Damage::Checksum => "checksum",
            Damage::EightBit => "8-bit",
        }
    }
}

/// A message as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its mark; none: somebody else's mail.
    pub mark: Option<Mark>,
    /// None for an intact message.
    pub damage: Option<Damage>,
    /// Octets of content, unstuffed.
    pub bytes: u64,
    /// Bare CR and LF.
    pub bare_line_ends: u64,
}

/// Header lines longer than this are not looked into.
const HEADER_LINE_BYTES_MAX: usize = 256;

/// Checks one message.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// Undo stuffing: content of DATA. BDAT has none.
    unstuff: bool,
    /// Octets beyond ASCII may come: 8BITMIME was announced.
    takes_eight_bits: bool,
    has_eight_bits: bool,
    /// The octet before the next one; the content begins behind a line end.
    last: u8,
    /// At the beginning of a line.
    line_starts: bool,
    /// A stuffing dot was just removed; another octet must follow that makes it one.
    after_dot: bool,
    /// The header is being looked through; its lines are gathered here.
    line: Option<Vec<u8>>,
    mark: Option<Mark>,
    covered: u64,
    checksum: Checksum,
    bytes: u64,
    bare_line_ends: u64,
    not_stuffed: bool,
}

impl Verifier {
    /// At the beginning of a message.
    pub fn new() -> Verifier {
        Verifier {
            unstuff: true,
            takes_eight_bits: true,
            has_eight_bits: false,
            last: b'\n',
            line_starts: true,
            after_dot: false,
            line: Some(Vec::with_capacity(HEADER_LINE_BYTES_MAX)),
            mark: None,
            covered: 0,
            checksum: Checksum::default(),
            bytes: 0,
            bare_line_ends: 0,
            not_stuffed: false,
        }
    }

    /// Begins the next message; `stuffed`: it comes after DATA; `takes_eight_bits`: octets beyond ASCII may stand in it.
    pub fn begin(&mut self, stuffed: bool, takes_eight_bits: bool) {
        let mut line = self.line.take().unwrap_or_default();
        line.clear();
        *self = Verifier { unstuff: stuffed, takes_eight_bits, line: Some(line), ..Verifier::new() };
    }

    /// The next octets, without those of the final dot line.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        self.has_eight_bits |= !self.takes_eight_bits && !bytes.is_ascii();
        // Until the mark is found, or there is none, lines are looked into.
        while !bytes.is_empty() && self.mark.is_none() && self.line.is_some() {
            let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
            let (part, rest) = bytes.split_at(end);
            self.feed_header(part);
            bytes = rest;
        }
        if !bytes.is_empty() {
            self.feed_body(bytes);
        }
    }

    /// Any number of lines, in runs between the dots that are taken out.
    fn feed_body(&mut self, bytes: &[u8]) {
        let mut run = self.unstuff_start(bytes);
        let mut line_ends = 0;
        for at in memchr::memchr_iter(b'\n', bytes) {
            match at.checked_sub(1).map_or(self.last, |before| bytes[before]) {
                b'\r' => line_ends += u64::from(at > 0),
                _ => self.bare_line_ends += 1,
            }
            if self.unstuff && bytes.get(at + 1) == Some(&b'.') {
                self.take(&bytes[run..=at]);
                run = at + 2;
                self.removed_dot(bytes.get(run));
            }
        }
        self.take(&bytes[run..]);
        // Each CR that is not followed by LF; whether the last one is, the next piece will show.
        let last = bytes[bytes.len() - 1];
        let all = memchr::memchr_iter(b'\r', bytes).count() as u64;
        self.bare_line_ends += all - line_ends - u64::from(last == b'\r');
        self.bare_line_ends += u64::from(self.last == b'\r' && bytes[0] != b'\n');
        self.line_starts = last == b'\n';
        self.last = last;
    }

    /// Takes out a stuffing dot at the very beginning. Returns where content begins: at 0 or behind it.
    fn unstuff_start(&mut self, bytes: &[u8]) -> usize {
        if self.after_dot {
            self.after_dot = false;
            self.not_stuffed |= bytes[0] != b'.';
        } else if self.unstuff && self.line_starts && bytes[0] == b'.' {
            self.removed_dot(bytes.get(1));
            return 1;
        }
        0
    }

    /// RFC 5321 4.5.2: only a dot is stuffed. Anything else behind a removed one shows that it was content.
    fn removed_dot(&mut self, next: Option<&u8>) {
        match next {
            Some(&next) => self.not_stuffed |= next != b'.',
            None => self.after_dot = true,
        }
    }

    fn take(&mut self, content: &[u8]) {
        self.bytes += content.len() as u64;
        if self.mark.is_some() {
            self.covered += content.len() as u64;
            self.checksum = self.checksum.append(content);
        }
    }

    /// Octets of one header line, its end included where it is there.
    fn feed_header(&mut self, part: &[u8]) {
        let content = &part[self.unstuff_start(part)..];
        let ends = part.ends_with(b"\n");
        self.count_line_ends(part, ends);
        self.line_starts = ends;
        self.bytes += content.len() as u64;
        let line = self.line.as_mut().expect("called while there is a header");
        let room = HEADER_LINE_BYTES_MAX - line.len();
        line.extend_from_slice(&content[..content.len().min(room)]);
        if ends {
            self.mark = parse_mark(line);
            let header_ends = line.as_slice() == b"\r\n" || line.as_slice() == b"\n";
            line.clear();
            if header_ends {
                self.line = None;
            }
        }
    }

    fn count_line_ends(&mut self, part: &[u8], ends: bool) {
        // A CR is well only as the last octet before LF; a piece may end between the two.
        let before = if ends { &part[..part.len() - 1] } else { part };
        let (inner, closing) = match before.split_last() {
            Some((&last, inner)) => (inner, last),
            None => (before, self.last),
        };
        if self.last == b'\r' && !before.is_empty() {
            self.bare_line_ends += 1;
        }
        self.bare_line_ends += memchr::memchr_iter(b'\r', inner).count() as u64;
        if ends && closing != b'\r' {
            self.bare_line_ends += 1;
        }
        self.last = part[part.len() - 1];
    }

    /// The message is over. The verifier is ready for `begin`.
    pub fn finish(&mut self) -> Arrival {
        if self.last == b'\r' {
            self.bare_line_ends += 1;
            self.last = b'\n';
        }
        let damage = match self.mark {
            _ if self.bare_line_ends > 0 => Some(Damage::BareLineEnd),
            _ if self.not_stuffed || self.after_dot => Some(Damage::NotStuffed),
            Some(mark) if mark.length != self.covered => Some(Damage::Length),
            Some(mark) if mark.checksum != self.checksum => Some(Damage::Checksum),
            _ if self.has_eight_bits => Some(Damage::EightBit),
            _ => None,
        };
        Arrival { mark: self.mark, damage, bytes: self.bytes, bare_line_ends: self.bare_line_ends }
    }
}

impl Default for Verifier {
    fn default() -> Verifier {
        Verifier::new()
    }
}

fn parse_mark(line: &[u8]) -> Option<Mark> {
    let name = FIELD.trim_ascii_end();
    let (field, value) = line.split_at_checked(name.len())?;
    if field.eq_ignore_ascii_case(name) { Mark::parse(value) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        content::{Composer, ContentKind, Form},
        sizes::Sizes,
    };

    fn message(size: u64, form: Form) -> (Mark, Vec<u8>) {
        let (mut composer, items) = Composer::new(&ContentKind::Text(Sizes::fixed(size)), 7, 1, 0);
        let plan = composer.plan(3, 9, form);
        let mut out = b"Received: from a by b\r\n".to_vec();
        out.extend_from_slice(&composer.whole(&plan, &items));
        (plan.mark, out)
    }

    fn verify(wire: &[u8], stuffed: bool, piece: usize) -> Arrival {
        let mut verifier = Verifier::new();
        verifier.begin(stuffed, true);
        wire.chunks(piece).for_each(|piece| verifier.feed(piece));
        verifier.finish()
    }

    #[test]
    fn an_untouched_message_is_intact_in_pieces_of_any_length() {
        for size in [1, 700, 4096, 70_000] {
            for (form, stuffed) in [(Form::Stuffed, true), (Form::Raw, false)] {
                let (mark, wire) = message(size, form);
                for piece in [1, 2, 3, 7, 64, 1000, wire.len()] {
                    let arrival = verify(&wire, stuffed, piece);
                    assert_eq!((arrival.mark, arrival.damage), (Some(mark), None), "size {size}, pieces of {piece}");
                }
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_the_covered_part_is_noticed() {
        let (_, wire) = message(1200, Form::Stuffed);
        let covered = memchr::memmem::find(&wire, b"\r\nFrom:").unwrap() + 2;
        for at in covered..wire.len() {
            for bit in 0..8 {
                let mut other = wire.clone();
                other[at] ^= 1 << bit;
                assert!(verify(&other, true, 64).damage.is_some(), "bit {bit} of octet {at}");
            }
        }
    }

    #[test]
    fn a_missing_dot_a_lost_line_and_bare_line_ends_are_named() {
        let (_, wire) = message(4096, Form::Stuffed);
        let stuffed = memchr::memmem::find(&wire, b"\r\n..").unwrap() + 2;
        for piece in [1, 5, 4096] {
            let mut other = wire.clone();
            other.remove(stuffed);
            assert_eq!(verify(&other, true, piece).damage, Some(Damage::NotStuffed));
            assert_eq!(verify(&wire[..wire.len() - 10], true, piece).damage, Some(Damage::Length));
            let (mut bare_lf, mut bare_cr) = (wire.clone(), wire.clone());
            bare_lf.remove(wire.len() - 2);
            bare_cr.remove(wire.len() - 1);
            for bare in [bare_lf, bare_cr] {
                let arrival = verify(&bare, true, piece);
                assert_eq!((arrival.damage, arrival.bare_line_ends), (Some(Damage::BareLineEnd), 1));
            }
            assert_eq!(verify(b"a\rb\r\n\nc\r\r\n", true, piece).bare_line_ends, 3);
        }
    }

    #[test]
    fn pieces_of_any_length_give_what_single_octets_give() {
        let mut random = crate::random::Random::new(4);
        let (mark, _) = message(700, Form::Stuffed);
        let mut value = [0; crate::identity::VALUE_CHARS];
        mark.write(&mut value);
        for round in 0..20_000 {
            let mut wire = if round % 2 == 0 { [FIELD, &value, b"\r\n"].concat() } else { b"\r\n".to_vec() };
            wire.extend((0..random.below(30)).map(|_| b"\r\n..x"[random.below(5) as usize]));
            let stuffed = random.below(2) == 0;
            let whole = |piece: usize| {
                let mut verifier = Verifier::new();
                verifier.begin(stuffed, true);
                wire.chunks(piece).for_each(|piece| verifier.feed(piece));
                (verifier.finish(), verifier.checksum, verifier.covered)
            };
            let octets = whole(1);
            for piece in [2, 3, 5, 200] {
                assert_eq!(whole(piece), octets, "{:?} in pieces of {piece}", String::from_utf8_lossy(&wire));
            }
        }
    }

    #[test]
    fn a_mark_in_the_body_is_no_mark() {
        let (_, wire) = message(700, Form::Stuffed);
        let forged = [b"Subject: x\r\n\r\n", &wire[..]].concat();
        assert_eq!(
            verify(&forged, true, 4096),
            Arrival { mark: None, damage: None, bytes: verify(&forged, true, 1).bytes, bare_line_ends: 0 }
        );
    }
}
