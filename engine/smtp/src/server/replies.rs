//! What the server says: fixed lines, copied.

/// One reply line without its CRLF, checked when the program is compiled if it is made in a `const`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line(&'static str);

impl Line {
    /// A line like `550 5.7.1 Relaying denied`: code, enhanced code of the same class, text, at most 510 octets.
    ///
    /// # Panics
    /// When the text isn't of this form. In a `const` that is an error of the compiler.
    pub const fn new(text: &'static str) -> Self {
        let bytes = text.as_bytes();
        // RFC 5321 4.5.3.1.5 limits a reply line to 512 octets with CRLF; RFC 2034 4 wants the classes to agree.
        assert!(bytes.len() > 10 && bytes.len() <= 510, "code, enhanced code, text");
        assert!(matches!(bytes[0], b'2' | b'4' | b'5') && bytes[1].is_ascii_digit() && bytes[2].is_ascii_digit());
        assert!(bytes[3] == b' ' && bytes[4] == bytes[0] && bytes[5] == b'.', "the enhanced code has the class of the code");
        let mut at = 0;
        while at < bytes.len() {
            assert!(matches!(bytes[at], b' '..=b'~'), "printable ASCII");
            at += 1;
        }
        Self(text)
    }

    /// The text without CRLF.
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// 2, 4 or 5.
    pub const fn class(self) -> u8 {
        self.0.as_bytes()[0] - b'0'
    }
}

/// Replies gathered for one send, in a buffer that the driver owns.
///
/// The replies to a pipelined group stand in one buffer, so that they can leave in one segment. The driver sends
/// before it waits for anything.
#[derive(Debug)]
pub struct Replies<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Replies<'a> {
    /// Appends to `bytes`, which the driver empties after sending.
    pub fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Octets not yet sent.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends a line.
    pub fn line(&mut self, line: Line) {
        self.parts(&[line.as_str()]);
    }

    /// Appends the parts and CRLF as one line.
    pub(crate) fn parts(&mut self, parts: &[&str]) {
        for part in parts {
            self.bytes.extend_from_slice(part.as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Appends whole lines, CRLF included.
    pub(crate) fn lines(&mut self, lines: &str) {
        self.bytes.extend_from_slice(lines.as_bytes());
    }
}

/// The lines the session itself says.
pub(crate) mod lines {
    use super::Line;

    pub(crate) const MAIL_OK: Line = Line::new("250 2.1.0 Sender OK");
    pub(crate) const RCPT_OK: Line = Line::new("250 2.1.5 Recipient OK");
    pub(crate) const CHUNK_OK: Line = Line::new("250 2.0.0 Chunk received");
    pub(crate) const RSET_OK: Line = Line::new("250 2.0.0 Reset");
    pub(crate) const NOOP_OK: Line = Line::new("250 2.0.0 OK");
    pub(crate) const VRFY: Line = Line::new("252 2.5.2 Cannot verify, but RCPT tells");
    pub(crate) const HELP: Line = Line::new("214 2.0.0 See RFC 5321");
    pub(crate) const QUIT: Line = Line::new("221 2.0.0 Closing");

    pub(crate) const NOT_UNDERSTOOD: Line = Line::new("500 5.5.2 Command not understood");
    pub(crate) const LINE_TOO_LONG: Line = Line::new("500 5.5.2 Line too long");
    pub(crate) const BARE_LF: Line = Line::new("500 5.5.2 Lines end with CR LF");
    pub(crate) const UNKNOWN_COMMAND: Line = Line::new("500 5.5.1 Unknown command");
    pub(crate) const BAD_ARGUMENT: Line = Line::new("501 5.5.4 Bad argument");
    pub(crate) const BAD_CHUNK_SIZE: Line = Line::new("501 5.5.4 Bad chunk size, closing");
    pub(crate) const BAD_PARAMETER: Line = Line::new("501 5.5.4 Bad parameter value");
    pub(crate) const UNKNOWN_PARAMETER: Line = Line::new("555 5.5.4 Parameter not recognized");
    pub(crate) const BAD_SENDER: Line = Line::new("501 5.1.7 Bad sender address");
    pub(crate) const BAD_RECIPIENT: Line = Line::new("501 5.1.3 Bad recipient address");
    pub(crate) const NEEDS_SMTPUTF8: Line = Line::new("553 5.6.7 Address needs SMTPUTF8");
    pub(crate) const NOT_IMPLEMENTED: Line = Line::new("502 5.5.1 Command not implemented");
    pub(crate) const NO_CHUNKING: Line = Line::new("502 5.5.1 Command not implemented, closing");
    pub(crate) const GREET_FIRST: Line = Line::new("503 5.5.1 EHLO or HELO first");
    pub(crate) const MAIL_FIRST: Line = Line::new("503 5.5.1 MAIL first");
    pub(crate) const RCPT_FIRST: Line = Line::new("503 5.5.1 RCPT first");
    pub(crate) const NESTED_MAIL: Line = Line::new("503 5.5.1 A transaction is open");
    pub(crate) const AFTER_BDAT: Line = Line::new("503 5.5.1 Not after BDAT");
    pub(crate) const BDAT_FAILED: Line = Line::new("503 5.5.1 A chunk before this one failed");
    pub(crate) const BINARY_NEEDS_BDAT: Line = Line::new("503 5.5.1 BINARYMIME needs BDAT");
    pub(crate) const NO_RECIPIENTS: Line = Line::new("554 5.5.1 No valid recipients");
    pub(crate) const OUT_OF_SYNC: Line = Line::new("554 5.5.0 Wait for the reply before sending more, closing");
    pub(crate) const NOT_SMTP: Line = Line::new("554 5.5.0 This is SMTP, closing");

    pub(crate) const TOO_MANY_RECIPIENTS: Line = Line::new("452 4.5.3 Too many recipients");
    pub(crate) const TOO_LARGE: Line = Line::new("552 5.3.4 Message too large");
    pub(crate) const HEADER_TOO_LARGE: Line = Line::new("552 5.3.4 Header too large");
    pub(crate) const LOOP: Line = Line::new("554 5.4.6 Mail loop, too many Received fields");
    pub(crate) const TEXT_LINE_TOO_LONG: Line = Line::new("550 5.6.0 Text line too long");
    pub(crate) const NUL: Line = Line::new("550 5.6.0 NUL in message");
    pub(crate) const BARE_NEWLINE: Line = Line::new("550 5.5.2 Bare CR or LF in message, closing");
    pub(crate) const NO_ROOM: Line = Line::new("452 4.3.1 No room for the message");
    pub(crate) const NOT_STORED: Line = Line::new("451 4.3.0 Message not stored, try again");
    pub(crate) const TOO_BUSY: Line = Line::new("451 4.3.2 Too busy, try again");
}
