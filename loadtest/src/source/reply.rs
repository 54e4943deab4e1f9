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

/// Messages per connection that a server allows: `LIMITS MAILMAX=n` (RFC 9422 4.1), n from 1 to 6 digits.
pub(super) fn mail_max(word: &[u8]) -> Option<u32> {
    let mut words = word.split(|&byte| byte == b' ');
    if !words.next()?.eq_ignore_ascii_case(b"LIMITS") {
        return None;
    }
    let value = words.find_map(|limit| {
        let (name, value) = limit.split_at_checked(8)?;
        name.eq_ignore_ascii_case(b"MAILMAX=").then_some(value)
    })?;
    let number = if value.len() <= 6 { std::str::from_utf8(value).ok()?.parse().ok() } else { None };
    number.filter(|&most| most > 0)
}

/// The server's name for a message, as the 250 after its content tells it: behind `id=` or `queued as `; empty where it tells none.
pub(super) fn queue_id(line: &[u8]) -> &[u8] {
    let behind = |word: &[u8]| memchr::memmem::find(line, word).map(|at| at + word.len());
    let Some(start) = behind(b"id=").or_else(|| behind(b"queued as ")) else { return b"" };
    let part = &line[start..];
    let end = part.iter().position(|&byte| !byte.is_ascii_alphanumeric() && byte != b'-' && byte != b'_');
    &part[..end.unwrap_or(part.len())]
}

pub(super) fn closing(stage: Stage, code: u16, line: &[u8]) -> ClientError {
    ClientError::Closing { stage, code, text: shown(line.get(4..).unwrap_or_default()) }
}

/// The beginning of what a peer said, for an error.
pub(super) fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::queue_id;

    #[test]
    fn the_queue_id_is_read_from_the_replies_of_this_engine_and_of_postfix() {
        assert_eq!(queue_id(b"250 2.0.0 Message accepted for delivery, id=7F3A\r\n"), b"7F3A");
        assert_eq!(queue_id(b"250 2.0.0 Ok: queued as 4ABC\r\n"), b"4ABC");
        assert_eq!(queue_id(b"250 2.0.0 Ok: queued as 4ABC"), b"4ABC");
        assert_eq!(queue_id(b"250 OK\r\n"), b"");
    }
}
