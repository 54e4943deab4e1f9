//! The argument of MAIL and RCPT: a path in brackets, and parameters behind it.

/// What `SIZE=` behind a path declares, 0 where nothing does; `None` when it is no number (RFC 1870 4).
pub(super) fn declared_bytes(parameters: &[u8]) -> Option<u64> {
    let mut words = parameters.split(|&byte| byte == b' ');
    let Some(word) = words.find(|word| word.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"SIZE="))) else { return Some(0) };
    let digits = &word[5..];
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

/// What stands between the first `<` and the `>` that ends it, and what follows. In a quoted local part a `>` ends nothing (RFC 5321 4.1.2).
pub(super) fn bracketed(argument: &[u8]) -> Option<(&[u8], &[u8])> {
    let path = &argument[memchr::memchr(b'<', argument)? + 1..];
    let (mut quoted, mut escaped) = (false, false);
    let close = path.iter().position(|&octet| {
        let literal = std::mem::take(&mut escaped);
        match octet {
            _ if literal => {}
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' => return !quoted,
            _ => {}
        }
        false
    })?;
    Some((&path[..close], &path[close + 1..]))
}
