//! Reports to the sender of a message, as mail: `multipart/report` (RFC 6522) with what a program reads in
//! `message/delivery-status` (RFC 3464), or their forms for SMTPUTF8 (RFC 6533).
//!
//! Pure: facts in, content out. Replies of next hops and addresses are others' text: whatever stands in them, they stay one
//! line of their field. Read [`write_report`] first.

use std::borrow::Cow;
use std::io::Write;

use memchr::{memchr_iter, memchr3_iter, memmem};

use crate::address::Path;
use crate::extension::decode_xtext;
use crate::header::{DateText, field_value};
use crate::part_headers::PartHeaders;
use crate::shown::is_steering;

mod encoding;
mod fields;
mod seven_bit;

pub use fields::{Action, ReportedRecipient, is_for_conversion};
pub use seven_bit::to_seven_bit;

/// The most octets a report takes beside its text and what it returns, for each recipient: its paths, reply and dates, each octet of which may
/// take three.
pub const RECIPIENT_BYTES_MAX: usize = 4 * 1024 + 512;

/// A field by which other nodes know a report that nobody is to be told of if it fails: what it reports had the null reverse-path, too.
const DOUBLE_FIELD: &str = "X-Ringpost-Report";
const DOUBLE: &str = "double";

/// Whether content that begins so, wherever it comes from, is a report of mail with the null reverse-path. Two nodes that send such
/// reports to each other would never end.
pub fn is_double(content: &[u8]) -> bool {
    field_value(content, DOUBLE_FIELD).is_some_and(|value| value.eq_ignore_ascii_case(DOUBLE.as_bytes()))
}

/// All that a report says.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// Our host name.
    pub hostname: &'a str,
    /// The queue id of the report: its Message-ID is made of it.
    pub id: &'a str,
    /// Now.
    pub date: &'a DateText,
    /// Whom it goes to: the reverse-path of the message, or whoever is told of reports that failed.
    pub to: Path<'a>,
    /// What is said to people; lines end with LF or CRLF.
    pub text: &'a str,
    /// ENVID of the message, as xtext.
    pub envelope_id: Option<&'a str>,
    /// When the message was accepted.
    pub arrival: &'a DateText,
    /// At least one, all with the same [`Action`] or with those of success.
    pub recipients: &'a [ReportedRecipient<'a>],
    /// Of delayed ones: they are not tried until an operator lets them.
    pub is_kept: bool,
    /// The message came with SMTPUTF8: addresses and replies may be UTF-8.
    pub smtputf8: bool,
    /// The message had the null reverse-path: [`is_double`].
    pub is_double: bool,
    /// What goes back of the message.
    pub returned: Returned<'a>,
    /// 128 random bits for the boundary.
    pub seed: u128,
}

/// What goes back of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returned<'a> {
    /// Nothing: its content cannot be read.
    Nothing,
    /// Its header, without the blank line; possibly cut.
    Header(&'a [u8]),
    /// All of it.
    Whole(&'a [u8]),
}

/// What the report's own envelope needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportNeeds {
    /// Its content has octets beyond ASCII.
    pub eight_bit: bool,
    /// Its header has.
    pub smtputf8: bool,
}

/// Appends the content of a report to `out`, without dot-stuffing. No CR or LF in it stands alone, and there is no NUL, whatever it returns: it
/// leaves by DATA.
pub fn write_report(report: &Report<'_>, out: &mut Vec<u8>) -> ReportNeeds {
    let body = Body::of(report);
    let returned = body.returned.as_ref().map_or(&[][..], |part| &part.content);
    let boundary = boundary(report.seed, [&body.text, &body.status, returned]);
    let eight_bit_body = [&body.status, returned].iter().any(|part| !part.is_ascii());
    let needs = ReportNeeds { eight_bit: eight_bit_body || !report.to.as_str().is_ascii(), smtputf8: !report.to.as_str().is_ascii() };
    write_header(report, &boundary, eight_bit_body, out);
    let part = |out: &mut Vec<u8>, description: &str, kind: &str, is_quoted: bool, content: &[u8]| {
        write(out, format_args!("--{boundary}\r\nContent-Description: {description}\r\nContent-Type: {kind}\r\n"));
        match is_quoted {
            true => out.extend_from_slice(b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"),
            false if content.is_ascii() => out.extend_from_slice(b"\r\n"),
            false => out.extend_from_slice(b"Content-Transfer-Encoding: 8bit\r\n\r\n"),
        }
        out.extend_from_slice(content);
        if !content.ends_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
        }
        // The line break before a boundary belongs to it (RFC 2046 5.1.1).
        out.extend_from_slice(b"\r\n");
    };
    let charset = if body.is_plain { "us-ascii" } else { "utf-8" };
    part(out, "Notification", &format!("text/plain; charset={charset}"), !body.is_plain, &body.text);
    let status = if report.smtputf8 { "message/global-delivery-status" } else { "message/delivery-status" };
    part(out, "Delivery report", status, body.is_status_quoted, &body.status);
    if let Some(ReturnedPart { description, kind, content, is_quoted }) = &body.returned {
        part(out, description, kind, *is_quoted, content);
    }
    write(out, format_args!("--{boundary}--\r\n"));
    needs
}

/// The parts before they are put together.
struct Body<'a> {
    text: Vec<u8>,
    is_plain: bool,
    status: Vec<u8>,
    is_status_quoted: bool,
    returned: Option<ReturnedPart<'a>>,
}

/// What goes back of the message.
struct ReturnedPart<'a> {
    description: &'static str,
    kind: &'static str,
    content: Cow<'a, [u8]>,
    is_quoted: bool,
}

impl<'a> Body<'a> {
    fn of(report: &Report<'a>) -> Self {
        let is_plain = report.text.is_ascii() && !has_long_line(report.text.as_bytes());
        let mut text = Vec::with_capacity(report.text.len() + 64);
        for line in report.text.lines() {
            match is_plain {
                true => text.extend(line.bytes().map(|byte| if byte.is_ascii_control() && byte != b'\t' { b' ' } else { byte })),
                false => encoding::quote_printable(line.as_bytes(), &mut text),
            }
            text.extend_from_slice(b"\r\n");
        }
        let mut status = Vec::new();
        fields::write_message_fields(report, &mut status);
        for recipient in report.recipients {
            status.extend_from_slice(b"\r\n");
            fields::write_recipient_fields(recipient, report.smtputf8, &mut status);
        }
        // RFC 6533 6, RFC 6531 3.2: headers beyond ASCII at whatever level go with SMTPUTF8 or encoded, and a report goes with it only to an
        // address that needs it: whoever relays it may know nothing of that.
        let is_encoded = report.smtputf8 && report.to.as_str().is_ascii();
        let (status, is_status_quoted) = encoded(status.into(), is_encoded);
        let returned = returned_of(report, is_encoded);
        Self { text, is_plain, status: status.into_owned(), is_status_quoted, returned }
    }
}

/// What goes back of the message, as it stands in its part.
///
/// RFC 2046 5.2.1: a message/rfc822 is never encoded, and headers in it are ASCII. Where one in the message is not, it goes back as a
/// message/global (RFC 6532 3.7), encoded, if it is UTF-8; else its header alone does, as text. So does the header of one with a line that
/// is longer than 7bit and 8bit allow.
fn returned_of<'a>(report: &Report<'a>, is_encoded: bool) -> Option<ReturnedPart<'a>> {
    const WHOLE: &str = "The message";
    const HEADER: &str = "Header of the message";
    let header = |bytes: &'a [u8]| without_strays(&bytes[..header_bytes(bytes)]);
    let (content, is_encoded, (description, kind)) = match report.returned {
        Returned::Nothing => return None,
        Returned::Header(bytes) if report.smtputf8 => (without_strays(bytes), is_encoded, (HEADER, "message/global-headers")),
        Returned::Whole(bytes) if report.smtputf8 => (without_strays(bytes), is_encoded, (WHOLE, "message/global")),
        // RFC 6522 4: a header that is broken so may be encoded.
        Returned::Header(bytes) => (without_strays(bytes), true, (HEADER, "text/rfc822-headers")),
        Returned::Whole(bytes) if has_header_beyond_ascii(bytes) && std::str::from_utf8(bytes).is_ok() => {
            (without_strays(bytes), true, (WHOLE, "message/global"))
        }
        Returned::Whole(bytes) if has_header_beyond_ascii(bytes) || has_long_line(bytes) => {
            (header(bytes), true, (HEADER, "text/rfc822-headers"))
        }
        Returned::Whole(bytes) => (without_strays(bytes), false, (WHOLE, "message/rfc822")),
    };
    let (content, is_quoted) = encoded(content, is_encoded);
    Some(ReturnedPart { description, kind, content, is_quoted })
}

/// Whether a header of a content, or one within it, has an octet beyond ASCII.
fn has_header_beyond_ascii(content: &[u8]) -> bool {
    if content.is_ascii() {
        return false;
    }
    let mut parts = PartHeaders::new();
    !content[..header_bytes(content)].is_ascii() || parts.piece(content) || parts.finish()
}

/// RFC 2045 2.7, 2.8: octets of a line of what is 7bit or 8bit, without its end.
const LINE_BYTES_MAX: usize = 998;

fn has_long_line(content: &[u8]) -> bool {
    let mut start = 0;
    memchr_iter(b'\n', content).chain([content.len()]).any(|end| {
        let line = &content[start.min(end)..end];
        start = end + 1;
        line.strip_suffix(b"\r").unwrap_or(line).len() > LINE_BYTES_MAX
    })
}

/// The content in quoted-printable where it needs that, for a line that is too long or, if `is_encoded`, for its octets beyond ASCII; and
/// whether it is.
fn encoded(content: Cow<'_, [u8]>, is_encoded: bool) -> (Cow<'_, [u8]>, bool) {
    if (!is_encoded || content.is_ascii()) && !has_long_line(&content) {
        return (content, false);
    }
    let mut quoted = Vec::with_capacity(content.len() * 2);
    encoding::quote_lines(&content, &mut quoted);
    (quoted.into(), true)
}

/// The same, with a blank for each CR and LF that is no part of a CRLF, and for each NUL. RFC 3030 3: what came as BODY=BINARYMIME has such
/// octets in its header, too. A next hop that takes a bare LF for the end of a line would find commands in them (RFC 5321 2.3.8).
pub fn without_strays(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut clean = Cow::Borrowed(bytes);
    for at in memchr3_iter(b'\r', b'\n', 0, bytes) {
        let is_paired = match bytes[at] {
            b'\r' => bytes.get(at + 1) == Some(&b'\n'),
            b'\n' => at > 0 && bytes[at - 1] == b'\r',
            _ => false,
        };
        if !is_paired {
            clean.to_mut()[at] = b' ';
        }
    }
    clean
}

fn write_header(report: &Report<'_>, boundary: &str, eight_bit_body: bool, out: &mut Vec<u8>) {
    let Report { hostname, id, date, recipients, .. } = report;
    let subject = match recipients.first().map(|recipient| recipient.action) {
        Some(Action::Delayed) if report.is_kept => "Delayed mail (held, not being tried at present)",
        Some(Action::Delayed) => "Delayed mail (still being retried)",
        Some(Action::Delivered | Action::Relayed) => "Successful mail delivery report",
        Some(Action::Failed) | None => "Undelivered mail returned to sender",
    };
    out.extend_from_slice(b"Date: ");
    out.extend_from_slice(date.as_bytes());
    write(out, format_args!("\r\nFrom: Mail Delivery System <MAILER-DAEMON@{hostname}>\r\nTo: <"));
    fields::put_line(report.to.as_str(), true, out);
    write(out, format_args!(">\r\nSubject: {subject}\r\nMessage-ID: <{id}@{hostname}>\r\n"));
    // RFC 3834 5: nothing answers a report.
    out.extend_from_slice(b"Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n");
    if report.is_double {
        write(out, format_args!("{DOUBLE_FIELD}: {DOUBLE}\r\n"));
    }
    write(out, format_args!("Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n"));
    if eight_bit_body {
        out.extend_from_slice(b"Content-Transfer-Encoding: 8bit\r\n");
    }
    out.extend_from_slice(b"\r\nThis is a report in the form of RFC 6522.\r\n\r\n");
}

/// A boundary that occurs in none of the parts.
fn boundary(seed: u128, parts: [&[u8]; 3]) -> String {
    let mut number = seed;
    loop {
        let boundary = format!("=_{number:032x}");
        if parts.iter().all(|part| memmem::find(part, boundary.as_bytes()).is_none()) {
            return boundary;
        }
        number = number.wrapping_add(1);
    }
}

/// What people read of the recipients: address, reply.
pub fn write_list(recipients: &[ReportedRecipient<'_>], out: &mut String) {
    for (index, recipient) in recipients.iter().enumerate() {
        if index > 0 {
            out.push_str("\n\n");
        }
        out.push('<');
        out.extend(recipient.path.as_str().chars().map(|character| if is_steering(character) { ' ' } else { character }));
        out.push('>');
        if !recipient.reply.is_empty() {
            out.push_str(":\n    ");
            let reply = match fields::refused_for_now(recipient) {
                Some(said) => {
                    out.push_str("refused for now, and tried again");
                    out.push_str(if said.is_empty() { "" } else { "; the next hop says: " });
                    said
                }
                None => recipient.reply,
            };
            out.extend(reply.chars().map(|character| if is_steering(character) { ' ' } else { character }));
        }
    }
}

/// Octets of a content that are its header, without the blank line; all of it if there is none.
pub fn header_bytes(content: &[u8]) -> usize {
    if content.starts_with(b"\r\n") {
        return 0;
    }
    memmem::find(content, b"\r\n\r\n").map_or(content.len(), |at| at + 2)
}

/// What an xtext means if that is printable ASCII, else the xtext itself.
fn meaning_of(xtext: &str) -> String {
    let mut bytes = Vec::with_capacity(xtext.len());
    let is_printable = decode_xtext(xtext.as_bytes(), &mut bytes) && bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    match String::from_utf8(bytes) {
        Ok(text) if is_printable => text,
        _ => xtext.to_owned(),
    }
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing into a Vec cannot fail");
}

#[cfg(test)]
mod tests;
