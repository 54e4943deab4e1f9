//! Lines of replies, as the client reads them (RFC 5321 4.2).

use crate::source::host::{ClientError, Stage};

/// The code and whether further lines follow.
pub(super) fn parse_reply(line: &[u8]) -> Option<(u16, bool)> {
    let line = line.strip_suffix(b"\n")?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (code, rest) = line.split_at_checked(3)?;
    if !(b'2'..=b'5').contains(&code[0]) || !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = code.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'));
    match rest.first() {
        None | Some(b' ') => Some((code, false)),
        Some(b'-') => Some((code, true)),
        Some(_) => None,
    }
}

pub(super) fn closing(stage: Stage, code: u16, line: &[u8]) -> ClientError {
    ClientError::Closing { stage, code, text: shown(line.get(4..).unwrap_or_default()) }
}

/// The beginning of what a peer said, for an error.
pub(super) fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).trim_end().to_string()
}
