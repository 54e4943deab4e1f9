//! A report again, for a hop that knows seven bits only.

use memchr::memmem;

use super::encoding::quote_lines;
use super::{has_long_line, header_bytes};

const EIGHT_BIT: &[u8] = b"Content-Transfer-Encoding: 8bit\r\n";

/// The same report without an octet beyond ASCII, where [`write_report`](super::write_report) has made it: of the message goes back its
/// header at most, since a message within another must not be encoded (RFC 2046 5.2.1), and what is not ASCII is quoted-printable
/// (RFC 6522 4, RFC 6533 4). `None` for what is no such report, has such octets in its own header, which need SMTPUTF8 in any case, or
/// has none at all: it would be the same.
pub fn to_seven_bit(report: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = report.split_at(header_bytes(report));
    let named = &header[memmem::find(header, b"boundary=\"")? + b"boundary=\"".len()..];
    let boundary = &named[..memchr::memchr(b'"', named)?];
    let delimiter = [b"--", boundary, b"\r\n"].concat();
    let close = [b"--", boundary, b"--\r\n"].concat();
    let body = rest.strip_suffix(&*close)?;
    let first = memmem::find(body, &delimiter)?;
    if report.is_ascii() || !header.is_ascii() || !body[..first].is_ascii() {
        return None;
    }
    let mut out = Vec::with_capacity(report.len());
    let encoding = memmem::find(header, EIGHT_BIT).map_or(header.len()..header.len(), |at| at..at + EIGHT_BIT.len());
    out.extend_from_slice(&header[..encoding.start]);
    out.extend_from_slice(&header[encoding.end..]);
    out.extend_from_slice(&body[..first]);
    let mut parts = &body[first..];
    while !parts.is_empty() {
        let behind = parts.strip_prefix(&*delimiter)?;
        let end = memmem::find(behind, &delimiter).unwrap_or(behind.len());
        out.extend_from_slice(&delimiter);
        match behind[..end].is_ascii() {
            true => out.extend_from_slice(&behind[..end]),
            false => write_part(&behind[..end], &mut out)?,
        }
        parts = &behind[end..];
    }
    out.extend_from_slice(&close);
    Some(out)
}

fn write_part(part: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (header, rest) = part.split_at(header_bytes(part));
    // The blank line in front, and the line break that belongs to the boundary.
    let content = rest.strip_prefix(b"\r\n")?.strip_suffix(b"\r\n")?;
    let field = |name: &str| {
        let text = std::str::from_utf8(header).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name))
    };
    let (description, kind) = (field("Content-Description: ")?, field("Content-Type: ")?);
    let to_header = match kind {
        "message/rfc822" => Some("text/rfc822-headers"),
        "message/global" => Some("message/global-headers"),
        _ => None,
    };
    let (description, kind, content) = match to_header {
        Some(kind) => ("Header of the message", kind, &content[..header_bytes(content)]),
        None => (description, kind, content),
    };
    out.extend_from_slice(format!("Content-Description: {description}\r\nContent-Type: {kind}\r\n").as_bytes());
    if content.is_ascii() && !has_long_line(content) {
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(content);
    } else {
        out.extend_from_slice(b"Content-Transfer-Encoding: quoted-printable\r\n\r\n");
        quote_lines(content, out);
    }
    out.extend_from_slice(b"\r\n");
    Some(())
}
