//! Dot-stuffing of content on its way out (RFC 5321 4.5.2), as ranges for a vectored send: nothing is copied.
//!
//! A line that begins with a dot gets a second one by sending that dot twice: one range ends behind it, the next begins with
//! it. Content with n such lines is n + 1 ranges, most content is one. A bare CR or LF does not pass: what is in the spool has none, unless it
//! came as BODY=BINARYMIME, which never goes this way, and this is the check of that.

use memchr::memchr2;
use memchr::memmem::Finder;
use thiserror::Error;

use crate::plain::{BLOCK_BYTES, plain_bytes};

/// Cuts the pieces of one message into ranges. One per message; the state runs across pieces.
#[derive(Clone, Debug)]
pub struct Stuffing {
    /// The last two bytes so far; content begins at the start of a line.
    last: [u8; 2],
    check: LineEndCheck,
    finder: Finder<'static>,
}

impl Default for Stuffing {
    fn default() -> Self {
        Self { last: *b"\r\n", check: LineEndCheck::default(), finder: Finder::new(b"\n.") }
    }
}

impl Stuffing {
    /// At the beginning of a message.
    pub fn new() -> Self {
        Self::default()
    }

    /// The ranges of the next piece, in order; none for an empty piece. The iterator must be run to its end before the next
    /// piece or [`Stuffing::terminator`], or the rest of the piece is taken for sent.
    ///
    /// After an error nothing more of the content may be sent, and no terminator: the connection ends.
    pub fn piece<'a>(&mut self, piece: &'a [u8]) -> Result<Ranges<'a, '_>, BareLineEnd> {
        let dot = self.check.first_dot(piece)?;
        let before = self.last;
        match *piece {
            [] => {}
            [.., a, b] => self.last = [a, b],
            [b] => self.last = [self.last[1], b],
        }
        // The check has seen what stands behind each line's end, so that most content is not looked through again.
        let dots_from = dot.map_or(piece.len(), |dot| dot - 1);
        Ok(Ranges { piece, before, start: 0, look_from: 0, dots_from, finder: &self.finder })
    }

    /// What follows the last piece: the CRLF that the content lacks, if it does, the dot, CRLF.
    pub fn terminator(&self) -> Result<&'static [u8], BareLineEnd> {
        self.check.finish()?;
        Ok(if self.last == *b"\r\n" { b".\r\n" } else { b"\r\n.\r\n" })
    }
}

/// The ranges of one piece. See [`Stuffing::piece`].
#[derive(Clone, Debug)]
pub struct Ranges<'a, 's> {
    piece: &'a [u8],
    before: [u8; 2],
    start: usize,
    look_from: usize,
    /// The LF before the first dot that is looked for, or the end of the piece.
    dots_from: usize,
    finder: &'s Finder<'static>,
}

impl<'a> Ranges<'a, '_> {
    /// The next dot at the start of a line.
    fn next_dot(&mut self) -> Option<usize> {
        if self.look_from == 0 {
            self.look_from = self.dots_from.max(1);
            if self.piece.starts_with(b".") && self.before == *b"\r\n" {
                return Some(0);
            }
            if self.piece.starts_with(b"\n.") && self.before[1] == b'\r' {
                return Some(1);
            }
        }
        // `look_from` is at least 1, and a match begins with LF, so the byte before it is in the piece.
        while let Some(at) = self.piece.get(self.look_from..).and_then(|rest| self.finder.find(rest)) {
            let line_feed = self.look_from + at;
            self.look_from = line_feed + 1;
            if self.piece[line_feed - 1] == b'\r' {
                return Some(line_feed + 1);
            }
        }
        None
    }
}

impl<'a> Iterator for Ranges<'a, '_> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.start >= self.piece.len() {
            return None;
        }
        let (start, dot) = (self.start, self.next_dot());
        match dot {
            Some(dot) => {
                self.start = dot;
                Some(&self.piece[start..=dot])
            }
            None => {
                self.start = self.piece.len();
                Some(&self.piece[start..])
            }
        }
    }
}

/// Content with a CR or LF that is not part of a CRLF. It must not be sent (RFC 5321 2.3.8): a peer could read it as a line's
/// end, and so find a second message in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a bare CR or LF at byte {offset}")]
pub struct BareLineEnd {
    /// Offset in the content.
    pub offset: u64,
}

/// Looks for bare CR and LF in the pieces of one message.
#[derive(Clone, Debug, Default)]
pub struct LineEndCheck {
    offset: u64,
    after_cr: bool,
}

impl LineEndCheck {
    /// Checks the next piece.
    pub fn piece(&mut self, piece: &[u8]) -> Result<(), BareLineEnd> {
        self.first_dot(piece).map(|_| ())
    }

    /// As [`LineEndCheck::piece`], and finds the first dot behind a CRLF, where all three are in the piece.
    fn first_dot(&mut self, piece: &[u8]) -> Result<Option<usize>, BareLineEnd> {
        let (mut position, mut dot) = (0, None);
        if self.after_cr && !piece.is_empty() {
            if piece[0] != b'\n' {
                return Err(BareLineEnd { offset: self.offset - 1 });
            }
            (self.after_cr, position) = (false, 1);
        }
        // Where something is to be looked at closely, whole blocks are tried again only behind it.
        let mut blocks_from = 0;
        loop {
            if position >= blocks_from && piece.get(position).is_some_and(|&octet| octet != b'\n') {
                position += plain_bytes(&piece[position..]);
                blocks_from = position + BLOCK_BYTES;
            }
            let Some(found) = memchr2(b'\r', b'\n', &piece[position..]) else { break };
            position += found;
            match (piece[position], piece.get(position + 1)) {
                (b'\r', Some(b'\n')) => {
                    position += 2;
                    if dot.is_none() && piece.get(position) == Some(&b'.') {
                        dot = Some(position);
                    }
                }
                (b'\r', None) => {
                    self.after_cr = true;
                    break;
                }
                _ => return Err(BareLineEnd { offset: self.offset + position as u64 }),
            }
        }
        self.offset += piece.len() as u64;
        Ok(dot)
    }

    /// After the last piece: a CR at the very end is bare, too.
    pub fn finish(&self) -> Result<(), BareLineEnd> {
        if self.after_cr { Err(BareLineEnd { offset: self.offset - 1 }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuffed(pieces: &[&[u8]]) -> Result<(Vec<u8>, usize), BareLineEnd> {
        let mut stuffing = Stuffing::new();
        let (mut out, mut ranges) = (Vec::new(), 0);
        for piece in pieces {
            for range in stuffing.piece(piece)? {
                assert!(!range.is_empty());
                out.extend_from_slice(range);
                ranges += 1;
            }
        }
        out.extend_from_slice(stuffing.terminator()?);
        Ok((out, ranges))
    }

    fn has_bare(content: &[u8]) -> bool {
        let pairs = content.windows(2).filter(|pair| *pair == b"\r\n").count();
        content.iter().filter(|octet| matches!(octet, b'\r' | b'\n')).count() != 2 * pairs
    }

    /// What a server does, byte by byte: content ends at CRLF.CRLF, and one leading dot of a line is removed.
    fn unstuffed(wire: &[u8]) -> Option<Vec<u8>> {
        let (mut content, mut rest) = (Vec::new(), wire);
        loop {
            let end = rest.windows(2).position(|pair| pair == b"\r\n")? + 2;
            let (line, after) = rest.split_at(end);
            if line == b".\r\n" {
                return after.is_empty().then_some(content);
            }
            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            rest = after;
        }
    }

    /// A report returned the header of binary content as it was, so that `\n.\r\n` left by DATA: a next hop to which a bare LF ends a line
    /// found a second message in it, sent by whom its author pleased. Nothing looked at what goes out.
    #[test]
    fn a_server_gets_back_every_content_wherever_it_is_cut_and_none_with_a_bare_line_end() {
        let alphabet = [b'.', b'\r', b'\n', b'x'];
        let mut contents: Vec<Vec<u8>> = vec![vec![]];
        for length in 1..=6u32 {
            contents.extend((0..4usize.pow(length)).map(|n| (0..length).map(|digit| alphabet[n / 4usize.pow(digit) % 4]).collect()));
        }
        contents.push(b"a\r\n.\r\n..\r\n...b\r\n.\r\nc.\r\n\r\n.".to_vec());
        for content in &contents {
            let mut expected = content.clone();
            if !content.is_empty() && !content.ends_with(b"\r\n") {
                expected.extend_from_slice(b"\r\n");
            }
            let whole = stuffed(&[content]);
            match &whole {
                Ok((whole, _)) => assert_eq!(unstuffed(whole).as_ref(), Some(&expected), "{:?}", content.escape_ascii().to_string()),
                Err(_) => assert!(has_bare(content), "{:?}", content.escape_ascii().to_string()),
            }
            assert!(!has_bare(content) || whole.is_err(), "{:?}", content.escape_ascii().to_string());
            let whole = whole.map(|(bytes, _)| bytes);
            for cut in 0..=content.len() {
                assert_eq!(stuffed(&[&content[..cut], &content[cut..]]).map(|(bytes, _)| bytes), whole);
                for second in cut..=content.len() {
                    let pieces = [&content[..cut], &content[cut..second], &content[second..]];
                    assert_eq!(stuffed(&pieces).map(|(bytes, _)| bytes), whole);
                }
            }
        }
    }

    /// Blocks in which nothing is looked at closely are long, and the dot may be anywhere.
    #[test]
    fn a_server_gets_back_long_content_with_a_dot_anywhere() {
        let text = b"0123456789abcdef".repeat(14);
        for at in 0..200 {
            for inserted in [&b"\r\n."[..], b"\r\n..\r\n", b".", b"\r\n.\r\n.\r\nx", b"\r\n"] {
                let content = [&text[..at], inserted, &text[at..at + 20], inserted, &text[at..], b"\r\n"].concat();
                for cut in [0, 1, at / 2, at, at + 1, at + 2, at + 3, content.len()] {
                    let (wire, _) = stuffed(&[&content[..cut], &content[cut..]]).unwrap();
                    assert_eq!(unstuffed(&wire).as_ref(), Some(&content), "{} at {at}, cut at {cut}", inserted.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn content_without_dots_is_one_range_and_each_dot_line_adds_one() {
        assert_eq!(stuffed(&[b"a\r\nb.c\r\n"]).unwrap().1, 1);
        assert_eq!(stuffed(&[b"a\r\n.b\r\n.c\r\n"]), Ok((b"a\r\n..b\r\n..c\r\n.\r\n".to_vec(), 3)));
        assert_eq!(stuffed(&[b""]), Ok((b".\r\n".to_vec(), 0)));
        assert_eq!(stuffed(&[b"."]), Ok((b"..\r\n.\r\n".to_vec(), 2)));
    }

    #[test]
    fn bare_line_ends_are_found_wherever_the_content_is_cut() {
        let cases: [(&[u8], Option<u64>); 8] = [
            (b"a\r\nb\r\n", None),
            (b"", None),
            (b"a\nb", Some(1)),
            (b"a\rb", Some(1)),
            (b"ab\r", Some(2)),
            (b"a\r\n\n", Some(3)),
            (b"\r\r\n", Some(0)),
            (b"\r\n.\r", Some(3)),
        ];
        for (content, offset) in cases {
            for cut in 0..=content.len() {
                let mut check = LineEndCheck::default();
                let result = check.piece(&content[..cut]).and_then(|()| check.piece(&content[cut..])).and_then(|()| check.finish());
                assert_eq!(result.err().map(|bare| bare.offset), offset, "{content:?} at {cut}");
            }
        }
        // And wherever it stands among blocks without any.
        for at in 0..200 {
            let mut content = b"0123456789\r\n.123456789abcdef\r\n".repeat(7);
            content[at] = b'\n';
            let expected = has_bare(&content).then_some(at as u64);
            for cut in [0, 1, at / 2, at, at + 1, content.len()] {
                let mut check = LineEndCheck::default();
                let result = check.piece(&content[..cut]).and_then(|()| check.piece(&content[cut..])).and_then(|()| check.finish());
                assert_eq!(result.err().map(|bare| bare.offset), expected, "{at} at {cut}");
            }
        }
    }
}
