//! Mail addresses as RFC 5321 4.1.2 and RFC 6531 3.3 write them: the whole grammar, in one canonical form.
//!
//! [`parse_path`] reads what stands behind `MAIL FROM:` or `RCPT TO:` and appends the canonical text: source route left
//! out, quotes only where they are needed, domain in lower case without its trailing dot, address literals as the
//! address itself. [`Path`] is a view of that text. Canonical text is what policy compares and what the spool keeps, so
//! `"b"@Y.test.` and `b@y.test` cannot be two things.

use std::borrow::Cow;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

/// RFC 5321 4.5.3.1.2, in octets.
pub const DOMAIN_BYTES_MAX: usize = 255;
/// The most octets that [`PathLimits`] can allow a path: what an envelope holds.
pub const PATH_BYTES_MAX: usize = 512;
/// RFC 1035 2.3.4: one label of an ASCII domain.
const LABEL_BYTES_MAX: usize = 63;

/// Which path is parsed: they differ in what may stand without a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// `MAIL FROM`: may be `<>`.
    Reverse,
    /// `RCPT TO`: may be `<Postmaster>` in any case (RFC 5321 4.5.1).
    Forward,
}

/// How long a path may be. The default is what RFC 5321 4.5.3.1 names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathLimits {
    /// Octets of a local part, quotes included. RFC 5321 4.5.3.1.1: 64 at least.
    pub local_part_bytes_max: usize,
    /// Octets of a path, with the angle brackets, a source route and all separators, up to [`PATH_BYTES_MAX`]; more are
    /// allowed nobody. RFC 5321 4.5.3.1.3: 256 at least.
    pub path_bytes_max: usize,
}

impl Default for PathLimits {
    fn default() -> Self {
        Self { local_part_bytes_max: 64, path_bytes_max: 256 }
    }
}

/// Why a path was not understood. The reply is 501 5.1.7 for a reverse-path, 501 5.1.3 for a forward-path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It doesn't follow the grammar.
    #[error("the address does not follow the grammar of RFC 5321")]
    Syntax,
    /// Local part, domain or path is longer than its limit.
    #[error("the address is too long")]
    TooLong,
}

/// What [`parse_path`] found, beside the canonical text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParsedPath {
    /// Octets of the input that belong to the path, brackets included.
    pub consumed: usize,
    /// The path needs SMTPUTF8: an octet beyond ASCII is in it. RFC 6531 3.3.
    pub non_ascii: bool,
}

/// A path in canonical form: `local@domain`, `local@[literal]`, `postmaster`, or nothing for the null reverse-path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path<'a> {
    text: &'a str,
}

impl<'a> Path<'a> {
    /// The null path `<>`.
    pub const NULL: Path<'static> = Path { text: "" };

    /// Looks at canonical text as [`parse_path`] made it; other text gives a path that means nothing, never a panic.
    pub fn new(text: &'a str) -> Self {
        Self { text }
    }

    /// Where the separator stands.
    fn at(&self) -> Option<usize> {
        // No domain contains '@', so the last one is the separator whatever the local part quotes.
        memchr::memrchr(b'@', self.text.as_bytes())
    }

    /// The whole text, without angle brackets.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// Whether this is `<>`, the sender of reports: nothing may be reported back to it.
    pub fn is_null(&self) -> bool {
        self.text.is_empty()
    }

    /// The local part as it was given (its case is the receiver's business), in quotes where it needs them.
    pub fn local_part(&self) -> &'a str {
        &self.text[..self.at().unwrap_or(self.text.len())]
    }

    /// What the local part means: without its quotes, and the backslashes within them. RFC 5321 4.1.2.
    pub fn local_meaning(&self) -> Cow<'a, str> {
        let local = self.local_part();
        match local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            None => Cow::Borrowed(local),
            Some(quoted) => {
                let mut is_escape = false;
                let is_meant = |c: &char| {
                    is_escape = *c == '\\' && !is_escape;
                    !is_escape
                };
                Cow::Owned(quoted.chars().filter(is_meant).collect())
            }
        }
    }

    /// The domain in lower case, or the address literal with its brackets; none for `postmaster` and the null path.
    pub fn domain(&self) -> Option<&'a str> {
        self.at().map(|at| &self.text[at + 1..])
    }

    /// Whether the local part is `postmaster` in any case; the domain isn't looked at.
    pub fn is_postmaster(&self) -> bool {
        self.local_part().eq_ignore_ascii_case("postmaster")
    }

    /// Whether the local part asks for a second hop in one of the old ways: `user%host@`, `host!user@`, `"user@host"@`.
    ///
    /// A relay that takes such an address for a local one and hands it on lets strangers relay through its next hop.
    pub fn has_route_in_local_part(&self) -> bool {
        self.local_part().bytes().any(|byte| matches!(byte, b'%' | b'!' | b'@'))
    }
}

/// Reads one path, from `<` to its `>`, and appends its canonical text to `out`.
///
/// `text` may go on behind the path (parameters follow). On an error `out` may hold a part: the caller truncates it.
/// The text appended is UTF-8 and shorter than [`PATH_BYTES_MAX`].
pub fn parse_path(text: &[u8], kind: PathKind, limits: PathLimits, out: &mut Vec<u8>) -> Result<ParsedPath, AddressError> {
    let mut cursor = Cursor { text, at: 0 };
    cursor.expect(b'<')?;
    let start = out.len();
    if cursor.peek() == Some(b'>') {
        return match kind {
            PathKind::Reverse => Ok(ParsedPath { consumed: 2, non_ascii: false }),
            PathKind::Forward => Err(AddressError::Syntax),
        };
    }
    source_route(&mut cursor)?;
    local_part(&mut cursor, limits, out)?;
    match cursor.peek() {
        Some(b'@') => {
            cursor.at += 1;
            out.push(b'@');
            domain(&mut cursor, out)?;
        }
        // RFC 5321 4.1.1.3: only the reserved mailbox may stand without a domain.
        Some(b'>') if kind == PathKind::Forward && out[start..].eq_ignore_ascii_case(b"postmaster") => {
            out.truncate(start);
            out.extend_from_slice(b"postmaster");
        }
        _ => return Err(AddressError::Syntax),
    }
    cursor.expect(b'>')?;
    let bytes_max = limits.path_bytes_max.min(PATH_BYTES_MAX);
    if cursor.at > bytes_max || out.len() - start > bytes_max {
        return Err(AddressError::TooLong);
    }
    let non_ascii = !text[..cursor.at].is_ascii();
    if non_ascii && std::str::from_utf8(&text[..cursor.at]).is_err() {
        return Err(AddressError::Syntax);
    }
    Ok(ParsedPath { consumed: cursor.at, non_ascii })
}

/// Whether `name` can stand as a host name of ours or of a peer: letters, digits, hyphens, dots.
pub fn is_domain(name: &[u8]) -> bool {
    let mut cursor = Cursor { text: name, at: 0 };
    name.is_ascii() && dotted_labels(&mut cursor).is_ok() && cursor.at == name.len()
}

struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Result<(), AddressError> {
        if self.peek() != Some(byte) {
            return Err(AddressError::Syntax);
        }
        self.at += 1;
        Ok(())
    }
}

/// RFC 5321 3.3, appendix C and F.2: `@a,@b:` in front is accepted and ignored; the mailbox alone decides.
fn source_route(cursor: &mut Cursor<'_>) -> Result<(), AddressError> {
    if cursor.peek() != Some(b'@') {
        return Ok(());
    }
    loop {
        cursor.expect(b'@')?;
        dotted_labels(cursor)?;
        match cursor.peek() {
            Some(b',') => cursor.at += 1,
            _ => return cursor.expect(b':'),
        }
    }
}

fn local_part(cursor: &mut Cursor<'_>, limits: PathLimits, out: &mut Vec<u8>) -> Result<(), AddressError> {
    let (start, written_from) = (cursor.at, out.len());
    match cursor.peek() {
        Some(b'"') => quoted_string(cursor, out)?,
        _ => {
            let length = cursor.text[start..].iter().take_while(|&&byte| IS_DOT_TEXT[usize::from(byte)]).count();
            let text = &cursor.text[start..start + length];
            if !has_single_dots(text) {
                return Err(AddressError::Syntax);
            }
            cursor.at += length;
            out.extend_from_slice(text);
        }
    }
    match (cursor.at - start).max(out.len() - written_from) > limits.local_part_bytes_max {
        true => Err(AddressError::TooLong),
        false => Ok(()),
    }
}

/// Reads `"..."`; writes it without quotes where the content is a dot-string, else with the fewest backslashes.
fn quoted_string(cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), AddressError> {
    cursor.expect(b'"')?;
    let written_from = out.len();
    out.push(b'"');
    loop {
        let byte = match cursor.peek().ok_or(AddressError::Syntax)? {
            b'"' => break,
            b'\\' => {
                cursor.at += 1;
                // RFC 5321 4.1.2 quoted-pairSMTP: backslash and a printable ASCII character.
                cursor.peek().filter(|byte| matches!(byte, 0x20..=0x7e)).ok_or(AddressError::Syntax)?
            }
            byte @ (0x20..=0x7e | 0x80..) => byte,
            _ => return Err(AddressError::Syntax),
        };
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
        cursor.at += 1;
    }
    cursor.at += 1;
    if is_dot_string(&out[written_from + 1..]) {
        out.remove(written_from);
    } else {
        out.push(b'"');
    }
    Ok(())
}

fn domain(cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), AddressError> {
    if cursor.peek() == Some(b'[') {
        return address_literal(cursor, out);
    }
    let start = cursor.at;
    dotted_labels(cursor)?;
    let text = &cursor.text[start..cursor.at];
    let text = text.strip_suffix(b".").unwrap_or(text);
    // IDN labels stay as they were given; only ASCII letters have one lower case that everybody agrees on.
    out.extend(text.iter().map(u8::to_ascii_lowercase));
    Ok(())
}

/// RFC 5321 4.1.2 Domain, with U-labels (RFC 6531 3.3), and one trailing dot, which is common and harmless.
fn dotted_labels(cursor: &mut Cursor<'_>) -> Result<(), AddressError> {
    let start = cursor.at;
    loop {
        let rest = &cursor.text[cursor.at..];
        let length = rest.iter().take_while(|&&byte| is_let_dig(byte) || byte == b'-').count();
        let label = &rest[..length];
        if label.is_empty() {
            // Nothing behind a dot is a trailing dot; nothing at all is no domain.
            return if cursor.at > start && !matches!(rest.first(), Some(b'.')) { Ok(()) } else { Err(AddressError::Syntax) };
        }
        if label.starts_with(b"-") || label.ends_with(b"-") {
            return Err(AddressError::Syntax);
        }
        cursor.at += length;
        if cursor.at - start > DOMAIN_BYTES_MAX || (label.is_ascii() && length > LABEL_BYTES_MAX) {
            return Err(AddressError::TooLong);
        }
        match cursor.peek() {
            Some(b'.') => cursor.at += 1,
            _ => return Ok(()),
        }
    }
}

/// RFC 5321 4.1.3. IPv6 is the only registered tag, so any other is an error.
fn address_literal(cursor: &mut Cursor<'_>, out: &mut Vec<u8>) -> Result<(), AddressError> {
    let rest = &cursor.text[cursor.at + 1..];
    let end = memchr::memchr(b']', &rest[..rest.len().min(64)]).ok_or(AddressError::Syntax)?;
    let literal = std::str::from_utf8(&rest[..end]).map_err(|_| AddressError::Syntax)?;
    match literal.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => {
            let address: Ipv6Addr = literal[5..].parse().map_err(|_| AddressError::Syntax)?;
            write!(out, "[IPv6:{address}]").expect("writing into a Vec cannot fail");
        }
        _ => {
            let address: Ipv4Addr = literal.parse().map_err(|_| AddressError::Syntax)?;
            write!(out, "[{address}]").expect("writing into a Vec cannot fail");
        }
    }
    cursor.at += 1 + end + 1;
    Ok(())
}

/// RFC 5321 4.1.2 Dot-string: atoms with single dots between them.
fn is_dot_string(text: &[u8]) -> bool {
    text.iter().all(|&byte| IS_DOT_TEXT[usize::from(byte)]) && has_single_dots(text)
}

/// Each dot stands between two other octets, and there are some.
fn has_single_dots(text: &[u8]) -> bool {
    !text.is_empty() && text.split(|&byte| byte == b'.').all(|atom| !atom.is_empty())
}

/// What an atom is made of, and the dots between atoms.
static IS_DOT_TEXT: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_atext(byte as u8) || byte as u8 == b'.';
        byte += 1;
    }
    table
};

/// RFC 5322 3.2.3 atext, with UTF-8 beyond ASCII as RFC 6531 3.3 adds it. Whether UTF-8 is whole is checked for the path.
const fn is_atext(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'/' | b'='
        | b'?' | b'^'..=b'`' | b'{'..=b'~' | 0x80..)
}

fn is_let_dig(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(text: &str) -> Result<String, AddressError> {
        parse(text.as_bytes(), PathKind::Forward)
    }

    fn parse(text: &[u8], kind: PathKind) -> Result<String, AddressError> {
        let mut out = b"kept".to_vec();
        let parsed = parse_path(text, kind, PathLimits::default(), &mut out)?;
        assert_eq!(parsed.consumed, text.len(), "the whole of {text:?} is the path");
        Ok(String::from_utf8(out).expect("canonical text is UTF-8").split_off(4))
    }

    #[test]
    fn addresses_have_one_canonical_form() {
        for (text, canonical) in [
            ("<b@y.test>", "b@y.test"),
            ("<B@Y.Test>", "B@y.test"),
            ("<b@y.test.>", "b@y.test"),
            ("<b@localhost>", "b@localhost"),
            (r#"<"b"@y.test>"#, "b@y.test"),
            (r#"<"a\b"@y.test>"#, "ab@y.test"),
            (r#"<"a b"@y.test>"#, r#""a b"@y.test"#),
            (r#"<"a\ b"@y.test>"#, r#""a b"@y.test"#),
            (r#"<"a\"b\\"@y.test>"#, r#""a\"b\\"@y.test"#),
            (r#"<".a"@y.test>"#, r#"".a"@y.test"#),
            (r#"<""@y.test>"#, r#"""@y.test"#),
            (r#"<"user@ext"@y.test>"#, r#""user@ext"@y.test"#),
            (r#"<"a>b"@y.test>"#, r#""a>b"@y.test"#),
            ("<@a.test,@b.test:c@d.test>", "c@d.test"),
            ("<@a.test:c@d.test>", "c@d.test"),
            ("<b@[192.0.2.1]>", "b@[192.0.2.1]"),
            ("<b@[ipv6:2001:DB8:0::1]>", "b@[IPv6:2001:db8::1]"),
            ("<b@[IPv6:::ffff:10.0.0.1]>", "b@[IPv6:::ffff:10.0.0.1]"),
            ("<a.b!c#d$e%f&g'h*i+j-k/l=m?n^o_p`q{r|s}t~u@y.test>", "a.b!c#d$e%f&g'h*i+j-k/l=m?n^o_p`q{r|s}t~u@y.test"),
            ("<postmaster>", "postmaster"),
            ("<PostMaster>", "postmaster"),
            (r#"<"postmaster">"#, "postmaster"),
            ("<Postmaster@Y.test>", "Postmaster@y.test"),
            ("<jürgen@bücher.test>", "jürgen@bücher.test"),
            ("<\"j ü\"@xn--bcher-kva.TEST>", "\"j ü\"@xn--bcher-kva.test"),
        ] {
            assert_eq!(forward(text).as_deref(), Ok(canonical), "{text}");
        }
    }

    #[test]
    fn what_the_grammar_has_not_is_refused() {
        for text in [
            "",
            "<",
            "<>",
            "b@y.test",
            "<b>",
            "<b@>",
            "<@y.test>",
            "<b@y.test",
            "<b@y..test>",
            "<b@.y.test>",
            "<b@y.test..>",
            "<b@.>",
            "<.b@y.test>",
            "<b.@y.test>",
            "<a..b@y.test>",
            "<a b@y.test>",
            "<b @y.test>",
            "<b@y .test>",
            "<b@ y.test>",
            "<b@-y.test>",
            "<b@y-.test>",
            "<b@y_z.test>",
            "<user@ext@y.test>",
            "<b@y.test,>",
            r#"<"b@y.test>"#,
            r#"<"a"b@y.test>"#,
            r#"<"a\"@y.test>"#,
            "<@a.test>",
            "<@a.test:>",
            "<@a.test,:b@y.test>",
            "<@a.test,b.test:c@d.test>",
            "<b@[]>",
            "<b@[192.0.2]>",
            "<b@[192.0.2.256]>",
            "<b@[192.0.2.1>",
            "<b@192.0.2.1]>",
            "<b@[2001:db8::1]>",
            "<b@[IPv6:192.0.2.1]>",
            "<b@[x400:c=de]>",
            "<b@[IPv6:::1] >",
            "<b\0@y.test>",
            "<b@y\0.test>",
            "<b@y.test\0>",
            "<b\u{7f}@y.test>",
            "<\"a\tb\"@y.test>",
            "<(c)b@y.test>",
            "<<b@y.test>>",
            "<postmaster@>",
            "<postmasterx>",
        ] {
            assert_eq!(forward(text), Err(AddressError::Syntax), "{text:?}");
        }
        assert_eq!(parse(b"<j\xfc@y.test>", PathKind::Forward), Err(AddressError::Syntax), "ISO 8859-1 is not UTF-8");
        assert_eq!(parse(b"<b@y\xc3.test>", PathKind::Forward), Err(AddressError::Syntax), "half a character");
        assert_eq!(parse(b"<\"a\\\xc3\xbc\"@y.test>", PathKind::Forward), Err(AddressError::Syntax), "quoted pair beyond ASCII");
        assert_eq!(parse(b"<postmaster>", PathKind::Reverse), Err(AddressError::Syntax));
    }

    #[test]
    fn only_the_reverse_path_may_be_null() {
        assert_eq!(parse(b"<>", PathKind::Reverse).as_deref(), Ok(""));
        assert_eq!(forward("<>"), Err(AddressError::Syntax));
    }

    #[test]
    fn limits_are_64_255_and_256_octets() {
        let label = "d".repeat(LABEL_BYTES_MAX);
        assert!(forward(&format!("<{}@y.test>", "a".repeat(64))).is_ok());
        assert_eq!(forward(&format!("<{}@y.test>", "a".repeat(65))), Err(AddressError::TooLong));
        assert_eq!(forward(&format!("<\"{}\"@y.test>", "a".repeat(63))), Err(AddressError::TooLong), "quotes count");
        assert!(forward(&format!("<a@{label}.test>")).is_ok());
        assert_eq!(forward(&format!("<a@{label}d.test>")), Err(AddressError::TooLong));
        let path = |length: usize| format!("<a@{label}.{label}.{label}.{}>", "d".repeat(length - 196));
        assert_eq!(path(256).len(), 256);
        assert!(forward(&path(256)).is_ok());
        assert_eq!(forward(&path(257)), Err(AddressError::TooLong));
        let domain = format!("{label}.{label}.{label}.{label}.d");
        assert_eq!(forward(&format!("<a@{domain}>")), Err(AddressError::TooLong));
        assert_eq!(forward(&format!("<@{label}.{label}:a@{label}.{label}>")), Err(AddressError::TooLong), "a source route counts");
    }

    #[test]
    fn relay_probes_show_what_they_are() {
        for (text, domain, routed) in [
            ("<user%ext.test@local.test>", "local.test", true),
            (r#"<"user@ext.test"@local.test>"#, "local.test", true),
            ("<ext.test!user@local.test>", "local.test", true),
            ("<@local.test:user@ext.test>", "ext.test", false),
            ("<user@ext.test>", "ext.test", false),
            ("<user@LOCAL.test.>", "local.test", false),
            ("<postmaster@[192.0.2.25]>", "[192.0.2.25]", false),
            ("<postmaster@[IPv6:0:0::1]>", "[IPv6:::1]", false),
            ("<user@xn--lcal-5qa.test>", "xn--lcal-5qa.test", false),
        ] {
            let canonical = forward(text).expect(text);
            let path = Path::new(&canonical);
            assert_eq!(path.domain(), Some(domain), "{text}");
            assert_eq!(path.has_route_in_local_part(), routed, "{text}");
        }
        for text in ["<user@ext.test@local.test>", "<user@local.test\0.ext.test>", "<user@local.test .ext.test>"] {
            assert_eq!(forward(text), Err(AddressError::Syntax), "{text:?}");
        }
    }

    #[test]
    fn a_quoted_local_part_means_what_its_quotes_enclose() {
        for (text, meaning) in [
            ("<ann.other@y.test>", "ann.other"),
            (r#"<"Ann Other"@y.test>"#, "Ann Other"),
            (r#"<"a\"b\\ c"@y.test>"#, r#"a"b\ c"#),
            (r#"<"a..b"@y.test>"#, "a..b"),
        ] {
            assert_eq!(Path::new(&forward(text).expect(text)).local_meaning(), meaning, "{text}");
        }
    }

    #[test]
    fn octets_beyond_ascii_are_noticed() {
        let mut out = Vec::new();
        assert!(
            parse_path("<jürgen@y.test>".as_bytes(), PathKind::Reverse, PathLimits::default(), &mut out).is_ok_and(|path| path.non_ascii)
        );
        assert!(
            parse_path("<b@bücher.test> X".as_bytes(), PathKind::Reverse, PathLimits::default(), &mut out).is_ok_and(|path| path.non_ascii)
        );
        assert!(
            parse_path("<b@y.test> ü".as_bytes(), PathKind::Reverse, PathLimits::default(), &mut out).is_ok_and(|path| !path.non_ascii)
        );
    }

    #[test]
    fn canonical_text_is_its_own_canonical_form() {
        for text in ["<b@y.test>", r#"<"a\"b\\ c"@Y.test>"#, r#"<"a..b"@[IPv6:::1]>"#, "<jürgen@bücher.test>"] {
            let canonical = forward(text).expect(text);
            assert_eq!(forward(&format!("<{canonical}>")).as_ref(), Ok(&canonical));
        }
    }
}
