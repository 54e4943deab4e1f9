//! Content as it streams in: un-dot-stuffed, checked, counted, handed on in slices as large as they came.
//!
//! [`ContentScanner`] looks at CR, LF, NUL and the first octets of each header line, and skips over everything between
//! with `memchr`; over a body without anything odd it goes in blocks. It keeps no content: what straddles two buffers is at most one CR or one dot, remembered as a state.

use memchr::{memchr3, memrchr};

use crate::envelope::ContentFacts;
use crate::line::Unread;
use crate::plain::{BLOCK_BYTES, plain_bytes};

/// Where content goes. It is called with slices of the input (and now and then with two octets of its own).
///
/// What is put is at most twice the input plus two octets, and never more than the input plus one with
/// [`BareNewline::Reject`].
pub trait ContentSink {
    /// Takes all of `bytes` or fails. After a failure nothing more of this message is put.
    fn put(&mut self, bytes: &[u8]) -> Result<(), SinkError>;
}

/// Why a sink takes no more of a message. The content is then read to its end and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// No room for it now: 452 4.3.1.
    #[error("no room for the message")]
    Full,
    /// It can't be written: 451 4.3.0.
    #[error("the message cannot be stored")]
    Failed,
}

/// What is done about CR and LF that stand alone, and about NUL. RFC 5321 2.3.8 forbids them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BareNewline {
    /// The message is read to its true end and refused with 550 5.5.2; the session ends.
    #[default]
    Reject,
    /// A bare LF becomes CRLF, a bare CR and a NUL become a blank. Only CRLF.CRLF ends content all the same.
    Normalize,
}

/// How long a line of content may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextLine {
    /// As long as it is.
    #[default]
    Relaxed,
    /// At most 998 octets and CRLF (RFC 5321 4.5.3.1.6), else 550 5.6.0.
    Strict,
}

/// The rules for the content of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRules {
    /// The most octets, without dot-stuffing.
    pub content_bytes_max: u64,
    /// The most octets of the header block.
    pub header_bytes_max: u64,
    /// The most lines of the header block.
    pub header_lines_max: u32,
    /// So many `Received` fields mean a loop. RFC 5321 6.3.
    pub hops_max: u32,
    /// Bare CR and LF.
    pub bare_newline: BareNewline,
    /// Long lines.
    pub text_line: TextLine,
}

impl Default for ContentRules {
    fn default() -> Self {
        Self {
            content_bytes_max: 50 << 20,
            header_bytes_max: 256 << 10,
            header_lines_max: 2000,
            hops_max: 100,
            bare_newline: BareNewline::Reject,
            text_line: TextLine::Relaxed,
        }
    }
}

/// RFC 5321 4.5.3.1.6, without the CRLF.
const TEXT_LINE_BYTES_MAX: u64 = 998;

/// What is wrong with a message. Of several the last in this order is told, wherever the input was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defect {
    /// The sink was full: 452 4.3.1.
    NoRoom,
    /// The sink failed: 451 4.3.0.
    NotStored,
    /// More octets than allowed: 552 5.3.4.
    TooLarge,
    /// The header block is too large: 552 5.3.4.
    HeaderTooLarge,
    /// Too many `Received` fields: 554 5.4.6.
    Loop,
    /// A line is too long: 550 5.6.0.
    LineTooLong,
    /// A NUL: 550 5.6.0.
    Nul,
    /// A CR or LF by itself: 550 5.5.2, and the session ends.
    BareNewline,
}

/// How content arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// DATA: dot-stuffed, ended by CRLF.CRLF.
    Dots,
    /// BDAT: as it is, ended by counting.
    Chunks,
    /// BDAT with BODY=BINARYMIME: as it is, and CR, LF and NUL are octets like any other.
    Binary,
}

/// How far [`ContentScanner::scan`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// The input is used up.
    More,
    /// CRLF.CRLF was read; what follows are commands.
    End,
}

/// Reads the content of one message. Make one anew for each.
#[derive(Debug, Clone)]
pub struct ContentScanner {
    position: Position,
    section: Section,
    framing: Framing,
    defect: Option<Defect>,
    eight_bit_header: bool,
    eight_bit_body: bool,
    header_lines: u32,
    hops: u32,
    header_bytes: u64,
    line_bytes: u64,
    bytes: u64,
}

/// What came last, as far as it matters for what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// A true CRLF, or nothing yet, in dot-stuffed content.
    LineStart,
    /// CRLF and a dot; the dot is not part of the content.
    Dot,
    /// CRLF, a dot and a CR.
    DotCr,
    /// Anything else.
    Text,
    /// A CR that was not put yet.
    Cr,
}

/// Where in the message the scanner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    /// The first octet of a line of the header block.
    FieldStart,
    /// In a field name; how much of `received` it matched, or [`NO_MATCH`].
    FieldName(u8),
    /// White space between field name and colon (RFC 5322 4.5).
    FieldBlank(u8),
    /// Behind the colon, or in a continuation line.
    FieldValue,
    /// Past the header block.
    Body,
}

const RECEIVED: &[u8] = b"received";
const NO_MATCH: u8 = u8::MAX;

impl ContentScanner {
    /// A scanner at the first octet of a message.
    pub fn new(framing: Framing) -> Self {
        Self {
            position: if framing == Framing::Dots { Position::LineStart } else { Position::Text },
            section: Section::FieldStart,
            framing,
            defect: None,
            eight_bit_header: false,
            eight_bit_body: false,
            header_lines: 0,
            hops: 0,
            header_bytes: 0,
            line_bytes: 0,
            bytes: 0,
        }
    }

    /// What is wrong so far. Once something is, nothing is put any more.
    pub fn defect(&self) -> Option<Defect> {
        self.defect
    }

    /// Octets of content so far, put or not.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was found out; complete when the content has ended.
    pub fn facts(&self) -> ContentFacts {
        ContentFacts { bytes: self.bytes, eight_bit_header: self.eight_bit_header, eight_bit_body: self.eight_bit_body }
    }

    /// The content has lines, and the last one has no end: DATA gives it one (RFC 5321 4.1.1.4).
    pub fn ends_openly(&self) -> bool {
        self.framing == Framing::Chunks && self.line_bytes > 0
    }

    /// Notes from outside that the message is to be refused; it is read to its end all the same.
    pub fn refuse(&mut self, defect: Defect) {
        self.defect = self.defect.max(Some(defect));
    }

    /// Reads as much of `input` as belongs to the content. Chunked content ends where its caller says, so for it `input`
    /// must not reach beyond the chunk.
    pub fn scan(&mut self, rules: &ContentRules, input: &mut Unread<'_>, sink: &mut impl ContentSink) -> Scanned {
        let bytes = input.remaining();
        let mut run = Run { bytes, from: 0, at: 0 };
        let mut scanned = Scanned::More;
        // Where something odd was seen, it is looked for in whole blocks again only behind it.
        let mut blocks_from = 0;
        while run.at < bytes.len() {
            let byte = bytes[run.at];
            if run.at >= blocks_from && self.may_be_plain(rules, byte) {
                let count = plain_bytes(&bytes[run.at..]);
                if count > 0 {
                    self.plain(&bytes[run.at..run.at + count]);
                    run.at += count;
                    continue;
                }
                blocks_from = run.at + BLOCK_BYTES;
            }
            match self.position {
                Position::Text => self.text(rules, &mut run, sink),
                // RFC 5321 4.5.2: the first dot of a line is removed.
                Position::LineStart if byte == b'.' => {
                    self.put(rules, run.take(), sink);
                    run.skip(1);
                    self.position = Position::Dot;
                }
                Position::LineStart => self.position = Position::Text,
                Position::Dot if byte == b'\r' => {
                    run.skip(1);
                    self.position = Position::DotCr;
                }
                Position::Dot => self.position = Position::Text,
                // Only this ends content: CRLF before, then dot, CR, LF.
                Position::DotCr if byte == b'\n' => {
                    run.skip(1);
                    scanned = Scanned::End;
                    break;
                }
                Position::Cr if byte == b'\n' => {
                    run.skip(1);
                    self.put(rules, b"\r\n", sink);
                    self.line_end(rules);
                }
                Position::Cr | Position::DotCr => {
                    self.position = Position::Text;
                    self.stray(rules, b"\r", b" ", Defect::BareNewline, sink);
                }
            }
        }
        self.put(rules, run.take(), sink);
        input.advance(run.at);
        scanned
    }

    /// Whether what begins with `byte` may be taken in blocks: the body, where no line is too long, and no octet whose meaning depends on
    /// what stood before it.
    fn may_be_plain(&self, rules: &ContentRules, byte: u8) -> bool {
        let known = match self.position {
            Position::Text => byte != b'\n',
            Position::LineStart => byte != b'\n' && byte != b'.',
            Position::Dot | Position::DotCr | Position::Cr => false,
        };
        known && self.section == Section::Body && rules.text_line == TextLine::Relaxed
    }

    /// Takes note of octets of the body that hold nothing to decide.
    fn plain(&mut self, bytes: &[u8]) {
        let behind_line = memrchr(b'\n', bytes).map(|at| bytes.len() - at - 1);
        self.line_bytes = behind_line.map_or(self.line_bytes + bytes.len() as u64, |count| count as u64);
        let at_start = behind_line == Some(0) && self.framing == Framing::Dots;
        self.position = if at_start { Position::LineStart } else { Position::Text };
    }

    /// Ends chunked content: a CR that waited for its LF will not get it.
    pub fn finish(&mut self, rules: &ContentRules, sink: &mut impl ContentSink) {
        if self.position == Position::Cr {
            self.position = Position::Text;
            self.stray(rules, b"\r", b" ", Defect::BareNewline, sink);
        }
    }

    /// Reads ordinary text up to the next octet that matters, and that octet.
    fn text(&mut self, rules: &ContentRules, run: &mut Run<'_>, sink: &mut impl ContentSink) {
        if !matches!(self.section, Section::Body | Section::FieldValue) {
            self.field_name(rules, run, sink);
        }
        let rest = &run.bytes[run.at..];
        let length = memchr3(b'\r', b'\n', 0, rest).unwrap_or(rest.len());
        self.account(rules, length as u64);
        run.at += length;
        match (rest.get(length), rest.get(length + 1)) {
            (None, _) => {}
            (Some(b'\r'), Some(b'\n')) => {
                run.at += 2;
                if !matches!(self.section, Section::Body | Section::FieldValue) {
                    // The header block ends here; what was read belongs to it.
                    self.put(rules, run.take(), sink);
                }
                self.line_end(rules);
            }
            (Some(b'\r'), _) => {
                self.put(rules, run.take(), sink);
                run.skip(1);
                self.position = Position::Cr;
            }
            (Some(b'\n'), _) => {
                self.put(rules, run.take(), sink);
                run.skip(1);
                self.stray(rules, b"\n", b"\r\n", Defect::BareNewline, sink);
                // The line that follows was not stuffed by its sender, so a dot in front of it stays.
                self.line_end(rules);
                self.position = Position::Text;
            }
            (Some(_), _) => {
                self.put(rules, run.take(), sink);
                run.skip(1);
                self.stray(rules, b"\0", b" ", Defect::Nul, sink);
            }
        }
    }

    /// Steps through the name of a header field until it is known what the line is.
    fn field_name(&mut self, rules: &ContentRules, run: &mut Run<'_>, sink: &mut impl ContentSink) {
        let bytes = run.bytes;
        while run.at < bytes.len() {
            let matched = match self.section {
                Section::FieldStart => Some(0),
                Section::FieldName(matched) => Some(matched),
                Section::FieldBlank(_) | Section::FieldValue | Section::Body => None,
            };
            if let Some(matched) = matched {
                let rest = &bytes[run.at..];
                let count = rest.iter().position(|byte| !matches!(byte, b'!'..=b'9' | b';'..=b'~')).unwrap_or(rest.len());
                if count > 0 {
                    self.section = Section::FieldName(match_name(matched, &rest[..count]));
                    self.account(rules, count as u64);
                    run.at += count;
                    continue;
                }
            }
            let section = match (self.section, bytes[run.at]) {
                (_, b'\r' | b'\n' | 0) => return,
                // A continuation; in front of the first field it is none, and the header block is empty.
                (Section::FieldStart, b' ' | b'\t') if self.header_lines > 0 => Section::FieldValue,
                (Section::FieldName(matched) | Section::FieldBlank(matched), b' ' | b'\t') => Section::FieldBlank(matched),
                (Section::FieldName(matched) | Section::FieldBlank(matched), b':') => {
                    if usize::from(matched) == RECEIVED.len() {
                        self.hop(rules);
                    }
                    Section::FieldValue
                }
                // No field: the body begins without an empty line before it.
                _ => Section::Body,
            };
            if section == Section::Body {
                self.put(rules, run.take(), sink);
                self.section = section;
                return;
            }
            self.section = section;
            self.account(rules, 1);
            run.at += 1;
            if section == Section::FieldValue {
                return;
            }
        }
    }

    fn hop(&mut self, rules: &ContentRules) {
        // Content that is refused is read on, for as long as it comes.
        self.hops = self.hops.saturating_add(1);
        if self.hops >= rules.hops_max {
            self.refuse(Defect::Loop);
        }
    }

    /// Counts octets of a line.
    fn account(&mut self, rules: &ContentRules, count: u64) {
        self.line_bytes += count;
        if rules.text_line == TextLine::Strict && self.line_bytes > TEXT_LINE_BYTES_MAX && self.framing != Framing::Binary {
            self.refuse(Defect::LineTooLong);
        }
        if self.section != Section::Body {
            self.header_bytes += count;
            if self.header_bytes > rules.header_bytes_max {
                self.refuse(Defect::HeaderTooLarge);
            }
        }
    }

    fn line_end(&mut self, rules: &ContentRules) {
        self.line_bytes = 0;
        self.position = if self.framing == Framing::Dots { Position::LineStart } else { Position::Text };
        match self.section {
            Section::Body => {}
            Section::FieldValue => {
                self.header_lines = self.header_lines.saturating_add(1);
                self.header_bytes += 2;
                self.section = Section::FieldStart;
                if self.header_lines > rules.header_lines_max || self.header_bytes > rules.header_bytes_max {
                    self.refuse(Defect::HeaderTooLarge);
                }
            }
            // An empty line, or one that is no field.
            Section::FieldStart | Section::FieldName(_) | Section::FieldBlank(_) => self.section = Section::Body,
        }
    }

    /// An octet that must not stand alone: refused, or put as `normal`, or (binary) as it is.
    fn stray(&mut self, rules: &ContentRules, octet: &[u8], normal: &[u8], defect: Defect, sink: &mut impl ContentSink) {
        let put = match (self.framing, rules.bare_newline) {
            (Framing::Binary, _) => octet,
            (_, BareNewline::Normalize) => normal,
            (_, BareNewline::Reject) => {
                self.refuse(defect);
                octet
            }
        };
        if octet != b"\n" {
            self.account(rules, 1);
        }
        self.put(rules, put, sink);
    }

    /// Hands a slice on, unless the message is refused anyway.
    fn put(&mut self, rules: &ContentRules, bytes: &[u8], sink: &mut impl ContentSink) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len() as u64;
        if self.bytes > rules.content_bytes_max {
            self.refuse(Defect::TooLarge);
        }
        let seen = if self.section == Section::Body { &mut self.eight_bit_body } else { &mut self.eight_bit_header };
        if !*seen {
            *seen = !bytes.is_ascii();
        }
        if self.defect.is_none() {
            match sink.put(bytes) {
                Ok(()) => {}
                Err(SinkError::Full) => self.refuse(Defect::NoRoom),
                Err(SinkError::Failed) => self.refuse(Defect::NotStored),
            }
        }
    }
}

/// How much of `received` is matched after these octets of a name.
fn match_name(matched: u8, name: &[u8]) -> u8 {
    let rest = RECEIVED.get(usize::from(matched)..).unwrap_or_default();
    match rest.get(..name.len()) {
        Some(expected) if name.eq_ignore_ascii_case(expected) => matched + name.len() as u8,
        _ => NO_MATCH,
    }
}

/// The stretch of input that was read and not yet put.
struct Run<'a> {
    bytes: &'a [u8],
    from: usize,
    at: usize,
}

impl<'a> Run<'a> {
    /// What was read, to be put.
    fn take(&mut self) -> &'a [u8] {
        let taken = &self.bytes[self.from..self.at];
        self.from = self.at;
        taken
    }

    /// Steps over octets that are not content, or not as they are; what was before them must be taken.
    fn skip(&mut self, count: usize) {
        self.at += count;
        self.from = self.at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    impl ContentSink for Nowhere {
        fn put(&mut self, _: &[u8]) -> Result<(), SinkError> {
            Ok(())
        }
    }

    /// Content that is refused is read on, and its lines and hops were counted on: four thousand million short ones ended the process.
    #[test]
    fn counts_of_refused_content_stay_at_their_end() {
        let rules = ContentRules::default();
        let mut scanner = ContentScanner::new(Framing::Dots);
        (scanner.header_lines, scanner.hops) = (u32::MAX - 1, u32::MAX - 1);
        let lines = b"Received:\r\n".repeat(4);
        assert_eq!(scanner.scan(&rules, &mut Unread::new(&lines), &mut Nowhere), Scanned::More);
        assert_eq!((scanner.header_lines, scanner.hops, scanner.defect()), (u32::MAX, u32::MAX, Some(Defect::Loop)));
    }
}
