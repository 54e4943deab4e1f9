//! Headers within the content: those of MIME parts and of messages in them, and whether one has octets beyond ASCII.
//!
//! RFC 6531 3.2: mail that came with SMTPUTF8 and has such a header "at any level within its MIME structure" goes to no server that does
//! not offer it. Looked for only where that decides: at a server that does not, in mail that is not decided by its addresses or its own header,
//! and in what a report returns. In doubt of where a part begins it begins wherever one may.

use memchr::{memchr, memchr2};

/// What is kept of a line: a boundary is shorter (RFC 2046 5.1.1: 70 octets), and a field's name and type stand in front.
const LINE_BYTES_MAX: usize = 1024;
/// What is kept of a Content-Type field with its continuations.
const FIELD_BYTES_MAX: usize = 4096;
/// Multiparts within each other that are followed by their boundaries. Of what lies deeper the boundaries are not known.
const DEPTH_MAX: usize = 100;

/// Reads the pieces of one content, from its header on.
#[derive(Debug)]
pub struct PartHeaders {
    section: Section,
    /// Boundaries of the multiparts that are open, the outermost first.
    boundaries: Vec<Vec<u8>>,
    /// So many of them stand around a multipart whose boundary is not known for sure: any line with two hyphens in front may begin a part of it.
    unsure_within: Option<usize>,
    /// The line so far.
    line: Vec<u8>,
    line_is_ascii: bool,
    /// The Content-Type field of the header that is read, unfolded; empty: none yet.
    content_type: Vec<u8>,
    /// A line that begins with white space goes on with the Content-Type field.
    is_within_type: bool,
    /// Not all of that field was kept, or there is a second one.
    is_type_unsure: bool,
    /// Fields of the header that is read.
    fields: u32,
    is_found: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Section {
    /// In a header: the one of the message itself, or one below it.
    Header {
        is_own: bool,
    },
    Body,
}

/// What a line of a header is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Empty,
    Continuation,
    Field,
    /// None of the header: the body begins without an empty line before it.
    Other,
}

impl Default for PartHeaders {
    fn default() -> Self {
        Self {
            section: Section::Header { is_own: true },
            boundaries: Vec::new(),
            unsure_within: None,
            line: Vec::new(),
            line_is_ascii: true,
            content_type: Vec::new(),
            is_within_type: false,
            is_type_unsure: false,
            fields: 0,
            is_found: false,
        }
    }
}

impl PartHeaders {
    /// At the beginning of a message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the next piece. True once a header below that of the message has an octet beyond ASCII; the rest need not be read then.
    pub fn piece(&mut self, piece: &[u8]) -> bool {
        let mut rest = piece;
        while !rest.is_empty() && !self.is_found {
            let end = memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
            let (part, behind) = rest.split_at(end);
            rest = behind;
            self.line_is_ascii = self.line_is_ascii && (self.section == Section::Body || part.is_ascii());
            let kept = part.len().min(LINE_BYTES_MAX - self.line.len());
            self.line.extend_from_slice(&part[..kept]);
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
        self.is_found
    }

    /// After the last piece, whose last line may have no end.
    pub fn finish(mut self) -> bool {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.is_found
    }

    fn end_line(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        let ended = line.strip_suffix(b"\n").unwrap_or(&line);
        self.take_line(ended.strip_suffix(b"\r").unwrap_or(ended));
        line.clear();
        (self.line, self.line_is_ascii) = (line, true);
    }

    /// `whole` is without its end.
    fn take_line(&mut self, whole: &[u8]) {
        let line = whole.trim_ascii_end();
        if self.take_boundary(line) {
            return;
        }
        let Section::Header { is_own } = self.section else { return };
        // RFC 5322 4.2: a line of white space alone goes on with the field before it, and ends no header.
        let kind = self.kind_of(whole);
        match kind {
            Kind::Empty | Kind::Other => return self.end_header(),
            Kind::Field => {
                self.fields += 1;
                self.is_within_type = false;
                match value_of(line, b"content-type") {
                    Some(value) if self.content_type.is_empty() => {
                        self.is_within_type = true;
                        self.is_type_unsure = whole.len() >= LINE_BYTES_MAX;
                        self.content_type.extend_from_slice(value);
                    }
                    Some(_) => self.is_type_unsure = true,
                    None => {}
                }
            }
            Kind::Continuation if self.is_within_type => {
                let room = FIELD_BYTES_MAX.saturating_sub(self.content_type.len());
                self.is_type_unsure |= line.len() > room || whole.len() >= LINE_BYTES_MAX;
                self.content_type.extend_from_slice(&line[..line.len().min(room)]);
            }
            Kind::Continuation => {}
        }
        self.is_found |= !is_own && !self.line_is_ascii;
    }

    /// A line between the parts of an open multipart ends what is within it.
    fn take_boundary(&mut self, line: &[u8]) -> bool {
        let Some(named) = line.strip_prefix(b"--").filter(|named| !named.is_empty()) else { return false };
        let is_open = |boundary: &Vec<u8>| named == boundary.as_slice();
        let is_close = |boundary: &Vec<u8>| named.strip_suffix(b"--") == Some(boundary.as_slice());
        let Some(at) = self.boundaries.iter().rposition(|boundary| is_open(boundary) || is_close(boundary)) else {
            let is_unsure = self.unsure_within.is_some();
            if is_unsure {
                self.begin_header(false);
            }
            return is_unsure;
        };
        self.unsure_within = self.unsure_within.filter(|&around| around <= at);
        if is_open(&self.boundaries[at]) {
            self.boundaries.truncate(at + 1);
            self.begin_header(false);
        } else {
            self.boundaries.truncate(at);
            self.section = Section::Body;
        }
        true
    }

    fn begin_header(&mut self, is_own: bool) {
        self.section = Section::Header { is_own };
        self.content_type.clear();
        (self.is_within_type, self.is_type_unsure, self.fields) = (false, false, 0);
    }

    /// What follows is a body of the type that the header said.
    fn end_header(&mut self) {
        let content_type = std::mem::take(&mut self.content_type);
        // A comment may stand behind the name (RFC 2045 5.1).
        let name = content_type.split(|octet| matches!(octet, b';' | b'(')).next().unwrap_or_default().trim_ascii();
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        self.section = Section::Body;
        if is(b"message/rfc822") || is(b"message/global") {
            self.begin_header(false);
        } else if name.get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case(b"multipart/")) {
            match boundary_of(&content_type).filter(|_| !self.is_type_unsure && self.boundaries.len() < DEPTH_MAX) {
                Some(boundary) => self.boundaries.push(boundary),
                None => self.unsure_within = self.unsure_within.or(Some(self.boundaries.len())),
            }
        }
    }

    fn kind_of(&self, line: &[u8]) -> Kind {
        let name = line.iter().take_while(|octet| matches!(octet, b'!'..=b'9' | b';'..=b'~')).count();
        match line.first() {
            None => Kind::Empty,
            Some(b' ' | b'\t') if self.fields > 0 => Kind::Continuation,
            Some(_) if name > 0 && line[name..].trim_ascii_start().starts_with(b":") => Kind::Field,
            Some(_) => Kind::Other,
        }
    }
}

/// What stands behind the name of a field and its colon, if it is that field.
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (front, rest) = line.split_at_checked(name.len())?;
    rest.trim_ascii_start().strip_prefix(b":").filter(|_| front.eq_ignore_ascii_case(name))
}

/// The boundary in the value of a Content-Type field (RFC 2045 5.1). `None` where there is none, and where readers may find different ones: it
/// is named twice, in pieces or encoded (RFC 2231 3 and 4), its quotes do not end, or a comment stands where a parameter does.
fn boundary_of(content_type: &[u8]) -> Option<Vec<u8>> {
    let (mut rest, mut found) = (&content_type[memchr(b';', content_type)? + 1..], None);
    while let Some(end) = memchr2(b'=', b';', rest) {
        let (name, behind) = rest.split_at(end);
        if behind[0] == b';' {
            // A parameter without a value is none, and says nothing of the next one.
            rest = &behind[1..];
            continue;
        }
        let behind = behind[1..].trim_ascii_start();
        let (value, after) = match behind.strip_prefix(b"\"") {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = behind.iter().position(|octet| matches!(octet, b';' | b' ' | b'\t' | b'(')).unwrap_or(behind.len());
                (behind[..end].to_vec(), &behind[end..])
            }
        };
        let name = name.trim_ascii();
        let (front, back) = name.split_at(name.len().min(b"boundary".len()));
        if front.eq_ignore_ascii_case(b"boundary") && back.first().is_none_or(|&octet| octet == b'*') {
            if found.is_some()
                || !back.is_empty()
                || value.is_empty()
                || !matches!(after.trim_ascii_start().first(), None | Some(b';' | b'('))
            {
                return None;
            }
            found = Some(value);
        } else if memchr(b'(', name).is_some() {
            return None;
        }
        rest = memchr(b';', after).map_or(&[], |at| &after[at + 1..]);
    }
    found
}

/// A quoted string without its quotes, and what follows it; `None` if it does not end.
fn unquoted(quoted: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (mut value, mut at) = (Vec::new(), 0);
    loop {
        match *quoted.get(at)? {
            b'"' => return Some((value, &quoted[at + 1..])),
            b'\\' => {
                value.push(*quoted.get(at + 1)?);
                at += 2;
            }
            octet => {
                value.push(octet);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_found(content: &[u8], cut: usize) -> bool {
        let mut headers = PartHeaders::new();
        let found = headers.piece(&content[..cut]) | headers.piece(&content[cut..]);
        let at_end = headers.finish();
        assert!(at_end || !found);
        at_end
    }

    fn check(content: &str, expected: bool) {
        for cut in 0..=content.len() {
            assert_eq!(is_found(content.as_bytes(), cut), expected, "cut at {cut}: {content:?}");
        }
    }

    /// Mail with SMTPUTF8 whose only header beyond ASCII was that of an attachment went to servers that do not offer it.
    #[test]
    fn a_header_of_a_part_is_found_wherever_the_content_is_cut() {
        let part = |head: &str, body: &str| {
            format!(
                "Subject: s\r\nContent-Type: multipart/mixed;\r\n\tcharset=x; boundary=\"a \\\"b\"\r\n\r\n--no\r\nX: ä\r\n\r\n--a \"b \r\n{head}\r\n\r\n{body}\r\n--a \"b--\r\nX: ä\r\n"
            )
        };
        check(&part("Content-Disposition: attachment; filename=\"ä\"", "x"), true);
        check(&part("X: y\r\n\tä", "x"), true);
        check(&part("X : ä", "x"), true);
        // What stands before the boundary in its field is passed over as other readers do: a parameter without a value, a line of blanks.
        for front in ["charset;", ";", "a=\"b;c\";d;", "\r\n \r\n\t", "a;\r\n\t \r\n "] {
            check(&format!("Content-Type: multipart/x; {front} boundary=in\r\n\r\n--in\r\nX: ä\r\n\r\nx\r\n--in--\r\n"), true);
        }
        check(&part("X: y\r\n \r\n\tä", "x"), true);
        // Its body is not its header, whatever it looks like: a signature, a header that is text, a part without a header.
        check(&part("Content-Type: text/plain; charset=utf-8", "-- \r\nJürgen: ü\r\n--x\r\nX: ä"), false);
        check(&part("", "X: ä"), false);
        check(&part("Grüße, ohne Kopf", "x"), false);
        // Within a message within a part, and within a multipart within that.
        check(&part("Content-Type: message/rfc822", "Subject: ä\r\n\r\nx"), true);
        check(&part("content-type:\r\n MESSAGE/Global", "Subject: s\r\n\r\nä: x"), false);
        let inner = |head: &str| {
            format!("Subject: s\r\nContent-Type: multipart/x; boundary=in(comment)\r\n\r\n--in\r\n{head}\r\n\r\nä\r\n--in--\r\nä: ä")
        };
        check(&part("Content-Type: message/rfc822", &inner("X: ä")), true);
        check(&part("Content-Type: message/rfc822", &inner("X: a")), false);
        // A delimiter of the outer one ends what was never closed, and begins a header.
        let open = "Content-Type: multipart/x; boundary=in\r\n\r\n--in\r\n\r\nä\r\n--a \"b\r\nX: ä";
        check(&part(open, "x"), true);
        check("Content-Type: message/rfc822\r\n\r\nSubject: ä", true);
    }

    /// A boundary in the form of RFC 2231 was not read, and neither were the parts: mail with SMTPUTF8 whose attachment had a name beyond ASCII
    /// went to servers that do not offer it. Now a part begins wherever one may.
    #[test]
    fn in_doubt_of_the_boundary_a_part_begins_wherever_one_may() {
        let long = |bytes: usize| format!("charset=\"{}\"", "x".repeat(bytes));
        let folded = vec![long(900); 5].join(";\r\n\t");
        for parameters in [
            "boundary*0=i; boundary*1=n",
            "BOUNDARY*0=\"i\";\r\n\tboundary*1*=%6E",
            "boundary*=us-ascii''in",
            "boundary=out; boundary*0=in",
            "boundary=out; boundary=in",
            "(a comment; boundary=out) boundary=in",
            "x (a comment; boundary=out); boundary=in",
            "boundary=\"in",
            "boundary=\"i\"n",
            &format!("{}; boundary=in", long(1100)),
            &format!("{folded}; boundary=in"),
            "",
        ] {
            let content = |head: &str, body: &str, behind: &str| {
                format!("Subject: s\r\nContent-Type: multipart/x; {parameters}\r\n\r\n--in\r\n{head}\r\n\r\n{body}\r\n--in--\r\n{behind}")
            };
            let is_in = |head: &str, body: &str, behind: &str| is_found(content(head, body, behind).as_bytes(), 10);
            assert!(is_in("X: ä", "x", ""), "{parameters}");
            assert!(!is_in("X: y", "Grüße: ä\r\n-- \r\nJürgen: ä", ""), "{parameters}");
            let message = "Content-Type: message/rfc822 (comment)";
            assert!(is_in(message, "Subject: ä\r\n\r\nx", ""), "{parameters}");
        }
        // What stands around it is known, and ends it.
        let outer = |behind: &str| {
            format!(
                "Content-Type: multipart/x; boundary=out\r\n\r\n--out\r\nContent-Type: multipart/x; boundary*0=in\r\n\r\n--in\r\n\r\nx\r\n--out\r\n\r\n{behind}\r\n--out--\r\n"
            )
        };
        check(&outer("ä\r\n--in\r\nX: ä"), false);
        check(&outer("x\r\n--out\r\nX: ä"), true);
        // A second field of this name: readers take the one or the other.
        check("Content-Type: multipart/x; boundary=out\r\nContent-Type: multipart/x; boundary=in\r\n\r\n--in\r\nX: ä\r\n\r\nx", true);
    }

    #[test]
    fn the_header_of_the_message_and_what_has_no_parts_are_not_its_business() {
        check("Subject: ä\r\n\r\nä\r\n--x\r\nX: ä\r\n", false);
        check("Content-Type: text/plain; boundary=x\r\n\r\n--x\r\nX: ä\r\n", false);
        check("Content-Type: multipart/mixed\r\n\r\n--\r\nX: ä\r\n", false);
        check("Content-Type: multipart/mixed; boundary=\r\n\r\n--\r\nX: ä\r\n", false);
        check("\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nX: ä\r\n", false);
        check("", false);
    }

    #[test]
    fn long_lines_and_deep_parts_cost_what_is_kept_and_no_more() {
        let head = "Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n";
        let mut headers = PartHeaders::new();
        assert!(!headers.piece(head.as_bytes()));
        for _ in 0..100 {
            assert!(!headers.piece(&[b'y'; 1000]) && headers.line.len() <= LINE_BYTES_MAX);
        }
        let mut headers = PartHeaders::new();
        assert!(!headers.piece(head.as_bytes()) && !headers.piece(b"X: "));
        assert!(!headers.piece(&[b'y'; 9000]));
        assert!(!headers.piece("ä".as_bytes()), "the line has no end yet");
        assert!(headers.piece(b"\r\n"), "far behind what is kept");
        let mut headers = PartHeaders::new();
        assert!(!headers.piece(b"Content-Type: multipart/mixed; boundary=b\r\n"));
        for number in 0..1000 {
            assert!(
                !headers.piece(
                    format!(
                        "\r\n--b{}\r\nContent-Type: multipart/x;\r\n boundary=b{number}\r\n",
                        if number == 0 { String::new() } else { (number - 1).to_string() }
                    )
                    .as_bytes()
                )
            );
            assert!(headers.boundaries.len() <= DEPTH_MAX && headers.content_type.len() <= FIELD_BYTES_MAX + LINE_BYTES_MAX);
        }
    }
}
