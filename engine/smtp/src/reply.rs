//! Replies as a client reads them: any peer may send anything, so every reply is bounded and becomes one printable line.

use std::fmt;

use memchr::memchr;
use thiserror::Error;

/// Longest reply line that is read, CRLF included. RFC 5321 4.5.3.1.5 promises 512; servers exceed it.
pub const REPLY_LINE_BYTES_MAX: usize = 2048;

/// Lines of one reply at most, so that an endless `250-` ends.
pub const REPLY_LINES_MAX: usize = 100;

/// Bytes kept of a reply, its code included; the rest is read and dropped.
pub const REPLY_TEXT_BYTES_MAX: usize = 200;

/// A carry of at most this capacity is kept for the next line that straddles two reads.
const CARRY_BYTES_KEPT: usize = 256;

/// An enhanced status code (RFC 3463), `class.subject.detail`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EnhancedCode {
    /// 2, 4 or 5: the first digit of the reply's code.
    pub class: u8,
    /// 0 to 999.
    pub subject: u16,
    /// 0 to 999.
    pub detail: u16,
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// What the first digit of a code says; of an unknown code a client looks at nothing else (RFC 5321 4.3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// 2yz.
    Completed,
    /// 3yz: go on.
    Intermediate,
    /// 4yz: not now.
    Transient,
    /// 5yz: never.
    Permanent,
}

/// A complete reply: its code and one sanitised line, kept in place so that reading one does not allocate.
#[derive(Clone, Copy)]
pub struct Reply {
    code: u16,
    enhanced: Option<EnhancedCode>,
    length: u8,
    line: [u8; REPLY_TEXT_BYTES_MAX],
}

impl Reply {
    /// A reply of our own, for what no peer said: `line` in the form `451 4.4.2 text`.
    pub fn local(line: &str) -> Self {
        let mut reply = Self { code: 0, enhanced: None, length: 0, line: [0; REPLY_TEXT_BYTES_MAX] };
        let code = code_of(line.as_bytes()).expect("own replies begin with a code");
        reply.begin(code, line.as_bytes().get(4..).unwrap_or_default());
        reply
    }

    /// 200 to 599.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// What the first digit says.
    pub fn class(&self) -> Class {
        match self.code / 100 {
            2 => Class::Completed,
            3 => Class::Intermediate,
            4 => Class::Transient,
            _ => Class::Permanent,
        }
    }

    /// The enhanced code, if there is one and its class fits the code (RFC 2034 4).
    pub fn enhanced(&self) -> Option<EnhancedCode> {
        self.enhanced
    }

    /// Code and text in one line of at most [`REPLY_TEXT_BYTES_MAX`] bytes; lines of the reply are joined by a space,
    /// control characters are spaces, what is not UTF-8 is a question mark.
    pub fn line(&self) -> &str {
        std::str::from_utf8(&self.line[..usize::from(self.length)]).expect("the line is made of characters")
    }

    fn begin(&mut self, code: u16, text: &[u8]) {
        self.code = code;
        self.enhanced = enhanced_of(code, text);
        self.length = 3;
        self.line[..3].copy_from_slice(&[b'0' + (code / 100) as u8, b'0' + (code / 10 % 10) as u8, b'0' + (code % 10) as u8]);
        self.append(text);
    }

    /// RFC 2034 4: each line of a reply has the enhanced code; in one line it stands once.
    fn without_enhanced<'t>(&self, text: &'t [u8]) -> &'t [u8] {
        let is_again = self.enhanced.is_some() && enhanced_of(self.code, text) == self.enhanced;
        let behind = memchr(b' ', text).map_or(text.len(), |at| at + 1);
        if is_again { &text[behind..] } else { text }
    }

    /// Appends a line's text after a space, sanitised, never cutting a character.
    fn append(&mut self, text: &[u8]) {
        if text.is_empty() || !self.push(' ') {
            return;
        }
        for chunk in text[..text.len().min(REPLY_TEXT_BYTES_MAX)].utf8_chunks() {
            for character in chunk.valid().chars() {
                if !self.push(if character.is_control() { ' ' } else { character }) {
                    return;
                }
            }
            if !chunk.invalid().is_empty() && !self.push('?') {
                return;
            }
        }
    }

    fn push(&mut self, character: char) -> bool {
        let start = usize::from(self.length);
        let fits = start + character.len_utf8() <= REPLY_TEXT_BYTES_MAX;
        if fits {
            character.encode_utf8(&mut self.line[start..]);
            self.length += character.len_utf8() as u8;
        }
        fits
    }
}

impl PartialEq for Reply {
    fn eq(&self, other: &Self) -> bool {
        self.code == other.code && self.line() == other.line()
    }
}

impl Eq for Reply {}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({:?})", self.line())
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.line())
    }
}

/// What the peer sent is not a reply. The connection is of no more use: what it might have meant is deferred.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ReplyError {
    /// More than [`REPLY_LINE_BYTES_MAX`].
    #[error("a reply line of more than {REPLY_LINE_BYTES_MAX} bytes")]
    LineTooLong,
    /// More than [`REPLY_LINES_MAX`].
    #[error("a reply of more than {REPLY_LINES_MAX} lines")]
    TooManyLines,
    /// No code of 200 to 599, or something else than a space, a hyphen or the line's end behind it.
    #[error("a line that is not a reply")]
    Malformed,
    /// The lines of one reply have different codes (RFC 5321 4.2.1).
    #[error("a reply with two codes")]
    TwoCodes,
}

/// Reads replies out of received bytes, cut anywhere.
#[derive(Debug, Default)]
pub struct ReplyReader {
    carry: Vec<u8>,
    partial: Option<Reply>,
    lines: usize,
}

impl ReplyReader {
    /// Advances `input` to the end of the next reply and returns it, or takes all of `input` and returns `None`.
    /// `on_line` gets the text of each line as it was sent. After an error the reader must not be used again.
    pub fn next(&mut self, input: &mut &[u8], mut on_line: impl FnMut(&[u8])) -> Result<Option<Reply>, ReplyError> {
        loop {
            let Some(end) = memchr(b'\n', input) else {
                if self.carry.len() + input.len() >= REPLY_LINE_BYTES_MAX {
                    return Err(self.too_long(input));
                }
                self.carry.extend_from_slice(input);
                *input = &[];
                return Ok(None);
            };
            let (line, rest) = input.split_at(end + 1);
            *input = rest;
            if self.carry.len() + line.len() > REPLY_LINE_BYTES_MAX {
                return Err(self.too_long(line));
            }
            let complete = if self.carry.is_empty() {
                self.line(line, &mut on_line)?
            } else {
                let mut carry = std::mem::take(&mut self.carry);
                carry.extend_from_slice(line);
                let complete = self.line(&carry, &mut on_line);
                carry.clear();
                if carry.capacity() <= CARRY_BYTES_KEPT {
                    self.carry = carry;
                }
                complete?
            };
            if complete.is_some() {
                return Ok(complete);
            }
        }
    }

    /// After [`ReplyError::LineTooLong`] and [`ReplyError::TooManyLines`] what had come of the reply, whose code is known; `None` if it is not, and after
    /// other errors.
    pub fn cut_off(&self, error: ReplyError) -> Option<Reply> {
        self.partial.filter(|_| matches!(error, ReplyError::LineTooLong | ReplyError::TooManyLines))
    }

    /// Keeps of a line that is too long what its beginning says.
    fn too_long(&mut self, more: &[u8]) -> ReplyError {
        let mut head = std::mem::take(&mut self.carry);
        head.extend_from_slice(&more[..more.len().min(REPLY_TEXT_BYTES_MAX)]);
        head.truncate(REPLY_TEXT_BYTES_MAX);
        // One line too many, or another code, is not this reply any more.
        self.partial = match self.line(&head, &mut |_| {}) {
            Ok(complete) => complete.or(self.partial),
            Err(_) => None,
        };
        ReplyError::LineTooLong
    }

    /// A reply has begun and is not complete.
    pub fn is_within_reply(&self) -> bool {
        self.partial.is_some() || !self.carry.is_empty()
    }

    fn line(&mut self, line: &[u8], on_line: &mut impl FnMut(&[u8])) -> Result<Option<Reply>, ReplyError> {
        // A bare LF is taken as a line's end here: what a server says is never passed on as bytes.
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let code = code_of(line).ok_or(ReplyError::Malformed)?;
        let (last, text) = match line.get(3) {
            None => (true, &[][..]),
            Some(b' ') => (true, &line[4..]),
            Some(b'-') => (false, &line[4..]),
            Some(_) => return Err(ReplyError::Malformed),
        };
        match &mut self.partial {
            None => {
                let mut reply = Reply { code: 0, enhanced: None, length: 0, line: [0; REPLY_TEXT_BYTES_MAX] };
                reply.begin(code, text);
                self.partial = Some(reply);
                self.lines = 1;
            }
            Some(reply) if reply.code != code => return Err(ReplyError::TwoCodes),
            Some(reply) => {
                reply.append(reply.without_enhanced(text));
                self.lines += 1;
            }
        }
        on_line(text);
        if !last && self.lines == REPLY_LINES_MAX {
            return Err(ReplyError::TooManyLines);
        }
        Ok(if last { self.partial.take() } else { None })
    }
}

fn code_of(line: &[u8]) -> Option<u16> {
    match line {
        &[first @ b'2'..=b'5', second @ b'0'..=b'9', third @ b'0'..=b'9', ..] => {
            Some(u16::from(first - b'0') * 100 + u16::from(second - b'0') * 10 + u16::from(third - b'0'))
        }
        _ => None,
    }
}

fn enhanced_of(code: u16, text: &[u8]) -> Option<EnhancedCode> {
    let word = text.split(|&b| b == b' ').next()?;
    let mut parts = word.split(|&b| b == b'.');
    let mut number = || {
        let digits = parts.next().filter(|digits| (1..=3).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit))?;
        Some(digits.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')))
    };
    let (class, subject, detail) = (number()?, number()?, number()?);
    (parts.next().is_none() && class == code / 100 && class != 3).then_some(EnhancedCode { class: class as u8, subject, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<Reply>, ReplyError> {
        ReplyReader::default().next(&mut &*bytes, |_| {})
    }

    #[test]
    fn a_reply_is_the_same_wherever_it_is_cut() {
        let bytes = b"250-2.1.5 first\r\n250- second\r\n250 third\r\n550 5.1.1 no such user\r\n";
        let expected = ["250 2.1.5 first  second third", "550 5.1.1 no such user"];
        for cut in 0..bytes.len() {
            let mut reader = ReplyReader::default();
            let (mut replies, mut lines) = (Vec::new(), Vec::new());
            for mut part in [&bytes[..cut], &bytes[cut..]] {
                while let Some(reply) = reader.next(&mut part, |line| lines.push(line.to_vec())).unwrap() {
                    replies.push(reply);
                }
                assert!(part.is_empty());
            }
            assert!(!reader.is_within_reply());
            assert_eq!(replies.iter().map(Reply::line).collect::<Vec<_>>(), expected, "cut at {cut}");
            assert_eq!(lines, [&b"2.1.5 first"[..], b" second", b"third", b"5.1.1 no such user"]);
            assert_eq!(replies[1].enhanced(), Some(EnhancedCode { class: 5, subject: 1, detail: 1 }));
        }
    }

    #[test]
    fn an_enhanced_code_of_another_class_is_not_believed() {
        for (line, expected) in [
            ("250 2.0.0 ok", Some("2.0.0")),
            ("250 5.0.0 ok", None),
            ("450 4.7.123", Some("4.7.123")),
            ("450 4.7.1234 x", None),
            ("450 4.7", None),
            ("450 4.7.1.1 x", None),
            ("354 3.0.0 go", None),
            ("550 x", None),
        ] {
            assert_eq!(Reply::local(line).enhanced().map(|code| code.to_string()).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn endless_and_malformed_replies_are_errors() {
        assert_eq!(read(&b"250-x\r\n".repeat(REPLY_LINES_MAX)), Err(ReplyError::TooManyLines));
        assert!(read(&[b"250-x\r\n".repeat(REPLY_LINES_MAX - 1), b"250 x\r\n".to_vec()].concat()).unwrap().is_some());
        assert_eq!(read(&b"2".repeat(REPLY_LINE_BYTES_MAX)), Err(ReplyError::LineTooLong));
        let fits = [b"250 ".to_vec(), vec![b'x'; REPLY_LINE_BYTES_MAX - 6], b"\r\n".to_vec()].concat();
        assert_eq!(read(&fits).unwrap().unwrap().line().len(), REPLY_TEXT_BYTES_MAX);
        assert_eq!(read(&[b"250 x".to_vec(), fits].concat()), Err(ReplyError::LineTooLong));
        for line in [&b"\r\n"[..], b"25\r\n", b"250x\r\n", b"150 x\r\n", b"650 x\r\n", b"2\x000 x\r\n", b"hello\r\n", b" 250 x\r\n"] {
            assert_eq!(read(line), Err(ReplyError::Malformed), "{line:?}");
        }
        assert_eq!(read(b"250-a\r\n251 b\r\n"), Err(ReplyError::TwoCodes));
    }

    #[test]
    fn text_is_one_printable_line() {
        assert_eq!(read(b"550-a\x00b\x1b[2J\r\n550 \xFFc\rd\r\n").unwrap().unwrap().line(), "550 a b [2J ?c d");
        assert_eq!(read(b"250\n").unwrap().unwrap().line(), "250");
        // The status code stood before the words of each line: "550 5.1.1 no 5.1.1 such 5.1.1 user".
        for (reply, line) in [
            (&b"550-5.1.1 no\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n"[..], "550 5.1.1 no such user"),
            (b"550-5.1.1 no\r\n550-5.1.1\r\n550 5.1.2 such user\r\n", "550 5.1.1 no 5.1.2 such user"),
            (b"550-no\r\n550 5.1.1 such user\r\n", "550 no 5.1.1 such user"),
        ] {
            assert_eq!(read(reply).unwrap().unwrap().line(), line);
        }
        let long = format!("550 {}\r\n", "ü".repeat(300));
        assert_eq!(read(long.as_bytes()).unwrap().unwrap().line().len(), REPLY_TEXT_BYTES_MAX);
    }
}
