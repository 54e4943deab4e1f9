//! The `Received` field a relay puts in front, and the date in it. RFC 5321 4.4, RFC 5322 3.3 and 3.6.7.

use std::io::Write;
use std::net::IpAddr;

use crate::decimal::write_ipv4;
use crate::envelope::{EnvelopeView, Protocol};

/// The most octets [`write_received`] appends, for a host name and a queue id of at most 255 octets.
pub const RECEIVED_BYTES_MAX: usize = 1536;

/// The date of RFC 5322 3.3, kept as text because it changes once a second and is written for every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateText {
    unix_s: i64,
    text: [u8; DATE_BYTES],
}

/// `Mon, 23 Nov 2026 23:13:33 +0000`
const DATE_BYTES: usize = 31;

impl DateText {
    /// The date of this second, in UTC. Years beyond 0 to 9999 are taken for the nearest of them.
    pub fn new(unix_s: i64) -> Self {
        let mut text = *b"Thu, 01 Jan 1970 00:00:00 +0000";
        let unix_s = unix_s.clamp(YEAR_0, YEAR_9999);
        let date = time::OffsetDateTime::from_unix_timestamp(unix_s).expect("clamped to four-digit years");
        let day = date.weekday().number_days_from_monday() as usize;
        let month = date.month() as usize - 1;
        text[..3].copy_from_slice(&b"MonTueWedThuFriSatSun"[day * 3..][..3]);
        digits(&mut text[5..7], date.day().into());
        text[8..11].copy_from_slice(&b"JanFebMarAprMayJunJulAugSepOctNovDec"[month * 3..][..3]);
        digits(&mut text[12..16], date.year().unsigned_abs());
        digits(&mut text[17..19], date.hour().into());
        digits(&mut text[20..22], date.minute().into());
        digits(&mut text[23..25], date.second().into());
        Self { unix_s, text }
    }

    /// Moves to another second; nothing is computed while it is the same.
    pub fn advance(&mut self, unix_s: i64) {
        if self.unix_s != unix_s {
            *self = Self::new(unix_s);
        }
    }

    /// The text: ASCII, 31 octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }
}

const YEAR_0: i64 = -62_167_219_200;
const YEAR_9999: i64 = 253_402_300_799;

/// What the trace field says beside the envelope.
#[derive(Debug, Clone, Copy)]
pub struct Trace<'a> {
    /// Our host name.
    pub hostname: &'a str,
    /// The queue id, printable ASCII without blanks.
    pub id: &'a str,
    /// When the message was accepted.
    pub date: &'a DateText,
}

/// Appends the `Received` field with its CRLF to `out`, at most [`RECEIVED_BYTES_MAX`] octets: with that much room
/// nothing is allocated.
///
/// The peer's name is unverified and shown sanitised: what is no letter, digit, hyphen, dot, or part of an address
/// literal becomes `?`, so that no peer can write a comment, a field or a line of its own. `for` is shown with exactly
/// one recipient: with more, each would learn of the others (RFC 5321 7.2).
pub fn write_received(envelope: &EnvelopeView<'_>, trace: &Trace<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Received: from ");
    out.extend(envelope.helo().bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b':' | b'[' | b']' => byte,
        _ => b'?',
    }));
    out.extend_from_slice(b" ([");
    // A dual-stack socket says IPv4 in its own way.
    match envelope.peer().ip().to_canonical() {
        IpAddr::V4(address) => write_ipv4(address, out),
        IpAddr::V6(address) => write!(out, "IPv6:{address}").expect("writing into a Vec cannot fail"),
    }
    out.extend_from_slice(b"])\r\n\tby ");
    out.extend_from_slice(trace.hostname.as_bytes());
    // RFC 6531 4.3: UTF8SMTP marks the way a message took under SMTPUTF8.
    out.extend_from_slice(match (envelope.protocol(), envelope.smtputf8()) {
        (_, true) => b" with UTF8SMTP id ",
        (Protocol::Esmtp, false) => b" with ESMTP id ",
        (Protocol::Smtp, false) => b" with SMTP id ",
    });
    out.extend_from_slice(trace.id.as_bytes());
    if envelope.recipient_count() == 1
        && let Some(only) = envelope.recipients().next()
    {
        out.extend_from_slice(b"\r\n\tfor <");
        out.extend_from_slice(only.path.as_str().as_bytes());
        out.push(b'>');
    }
    out.extend_from_slice(b";\r\n\t");
    out.extend_from_slice(trace.date.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Where a field is looked for: in so many first octets of a message.
const FIELD_WITHIN: usize = 64 << 10;

/// The value of the first header field of this name, in any case, as far as it stands on the field's first line and without white space
/// around it; `None` when there is none within the first 64 KiB. `content` is CRLF text, dot-stuffed or not.
pub fn field_value<'c>(content: &'c [u8], name: &str) -> Option<&'c [u8]> {
    let mut rest = &content[..content.len().min(FIELD_WITHIN)];
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        if line.is_empty() {
            return None;
        }
        if line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name.as_bytes()) {
            let value = line[name.len()..].trim_ascii_start();
            if let Some(value) = value.strip_prefix(b":") {
                return Some(value.trim_ascii());
            }
        }
        rest = &rest[end + 1..];
    }
    None
}

/// Writes `value` in decimal, right-aligned with zeros in front.
fn digits(place: &mut [u8], mut value: u32) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name_in_the_header_alone() {
        let content =
            b"Subject: X-Campaign: no\r\n X-Campaign: folded\r\nX-CAMPAIGN :\t spring 27 \r\nX-Campaign-Id: 7\r\n\r\nX-Body: no\r\n";
        assert_eq!(field_value(content, "x-campaign"), Some(&b"spring 27"[..]));
        assert_eq!(field_value(content, "X-Campaign-Id"), Some(&b"7"[..]));
        assert_eq!(field_value(content, "X-Body"), None);
        assert_eq!(field_value(b"X-Body: cut", "X-Body"), None, "a line without an end may go on");
        assert_eq!(field_value(b"X:\r\n", "X"), Some(&b""[..]));
    }
}
