//! The argument of MAIL and RCPT: its keyword, a path in brackets, and parameters behind it (RFC 5321 4.1.2).
//!
//! Independent of the engine's own code on purpose, so that an engine that relays what is no path is told so. A path may be of any length,
//! and an underscore may stand in a domain, as servers differ there. One pass over the octets, as each message is asked for.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Whose path it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathKind {
    /// MAIL's: may be empty.
    Reverse,
    /// RCPT's: may be `postmaster` alone (RFC 5321 4.1.1.3).
    Forward,
}

/// The path without its brackets, a source route included, and what follows it, without the blank between; `None` where no server may take
/// it: no or another keyword, no brackets, something behind them that is no parameter of theirs, or a path that the grammar has not.
/// Octets beyond ASCII need SMTPUTF8 (RFC 6531 3.3), that it was announced, as `smtputf8` says; whether it was asked for is not looked at.
pub(super) fn path_and_parameters(argument: &[u8], kind: PathKind, smtputf8: bool) -> Option<(&[u8], &[u8])> {
    let keyword: &[u8] = if kind == PathKind::Reverse { b"FROM:" } else { b"TO:" };
    let (head, rest) = argument.trim_ascii_start().split_at_checked(keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    // A blank behind the colon is wrong and common.
    let text = rest.trim_ascii_start().strip_prefix(b"<")?;
    let (path, behind) = text.split_at(path_bytes(text, kind)?);
    let parameters = &behind[1..];
    if !parameters.first().is_none_or(|&octet| is_blank(octet)) {
        return None;
    }
    if !path.is_ascii() && (!smtputf8 || std::str::from_utf8(path).is_err()) {
        return None;
    }
    Some((path, parameters.trim_ascii()))
}

/// Whether all words are parameters: a name, and perhaps `=` and a value (RFC 5321 4.1.2 `esmtp-param`).
pub(super) fn are_parameters(parameters: &[u8]) -> bool {
    let is_name = |name: &[u8]| {
        name.first().is_some_and(u8::is_ascii_alphanumeric) && name.iter().all(|&octet| octet.is_ascii_alphanumeric() || octet == b'-')
    };
    let is_value = |value: &[u8]| !value.is_empty() && value.iter().all(|&octet| octet > b' ' && octet != b'=' && octet != 0x7F);
    parameters.split(|&octet| is_blank(octet)).filter(|word| !word.is_empty()).all(|word| match memchr::memchr(b'=', word) {
        Some(at) => is_name(&word[..at]) && is_value(&word[at + 1..]),
        None => is_name(word),
    })
}

/// Whether each parameter, all of which are parameters by their form, is one of these: its name in any case, and where a value stands here that
/// value in any case.
pub(super) fn are_known(parameters: &[u8], known: &[&str]) -> bool {
    let is_known = |word: &[u8]| {
        known.iter().any(|known| {
            let end = if known.contains('=') { word.len() } else { memchr::memchr(b'=', word).unwrap_or(word.len()) };
            word[..end].eq_ignore_ascii_case(known.as_bytes())
        })
    };
    parameters.split(|&octet| is_blank(octet)).filter(|word| !word.is_empty()).all(is_known)
}

/// What `SIZE=` behind a path declares, 0 where nothing does; `None` when it is no number (RFC 1870 4).
pub(super) fn declared_bytes(parameters: &[u8]) -> Option<u64> {
    let mut words = parameters.split(|&byte| byte == b' ');
    let Some(word) = words.find(|word| word.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"SIZE="))) else { return Some(0) };
    let digits = &word[5..];
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

/// Whether one of the parameters, all of which are known, is SMTPUTF8: then paths of this transaction may have octets beyond ASCII.
pub(super) fn has_smtputf8(parameters: &[u8]) -> bool {
    parameters.split(|&octet| is_blank(octet)).any(|word| word.eq_ignore_ascii_case(b"SMTPUTF8"))
}

fn is_blank(octet: u8) -> bool {
    octet == b' ' || octet == b'\t'
}

/// Octets of the path that `text` begins with, up to its `>`.
fn path_bytes(text: &[u8], kind: PathKind) -> Option<usize> {
    if kind == PathKind::Reverse && text.first() == Some(&b'>') {
        return Some(0);
    }
    let mut at = source_route_bytes(text)?;
    let local_part = local_part_bytes(&text[at..])?;
    at += local_part;
    match text.get(at)? {
        b'@' => at += 1 + domain_bytes(&text[at + 1..])?,
        b'>' if kind == PathKind::Forward && is_postmaster(&text[at - local_part..at]) => {}
        _ => return None,
    }
    (text.get(at) == Some(&b'>')).then_some(at)
}

fn is_postmaster(local_part: &[u8]) -> bool {
    let Some(quoted) = local_part.strip_prefix(b"\"") else { return local_part.eq_ignore_ascii_case(b"postmaster") };
    let mut octets = quoted.strip_suffix(b"\"").unwrap_or(quoted).iter();
    let plain = std::iter::from_fn(|| octets.next().and_then(|octet| if *octet == b'\\' { octets.next() } else { Some(octet) }));
    plain.map(u8::to_ascii_lowercase).eq(b"postmaster".iter().copied())
}

/// `@a,@b:`, or nothing.
fn source_route_bytes(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'@') {
        return Some(0);
    }
    let colon = memchr::memchr(b':', text)?;
    let is_hop = |hop: &[u8]| hop.strip_prefix(b"@").is_some_and(is_domain);
    text[..colon].split(|&octet| octet == b',').all(is_hop).then_some(colon + 1)
}

fn local_part_bytes(text: &[u8]) -> Option<usize> {
    if text.first() == Some(&b'"') {
        return quoted_bytes(text);
    }
    let length = text.iter().position(|&octet| !is_dot_text(octet))?;
    has_parts(&text[..length]).then_some(length)
}

fn quoted_bytes(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' if matches!(text.get(at + 1), Some(b' '..=b'~')) => at += 2,
            b'\\' => return None,
            b' '..=b'~' | 0x80.. => at += 1,
            _ => return None,
        }
    }
}

fn domain_bytes(text: &[u8]) -> Option<usize> {
    if text.first() == Some(&b'[') {
        let close = memchr::memchr(b']', text)?;
        let literal = std::str::from_utf8(&text[1..close]).ok()?;
        let is_address = match literal.get(..5) {
            Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => literal[5..].parse::<Ipv6Addr>().is_ok(),
            _ => literal.parse::<Ipv4Addr>().is_ok(),
        };
        return is_address.then_some(close + 1);
    }
    let length = text.iter().position(|&octet| !matches!(octet, b'-' | b'.' | b'_' | 0x80..) && !octet.is_ascii_alphanumeric())?;
    is_domain(&text[..length]).then_some(length)
}

/// Labels with a dot between them, and perhaps one behind the last, which is common and harmless.
fn is_domain(text: &[u8]) -> bool {
    let is_label = |label: &[u8]| {
        let is_of_label = |&octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | 0x80..);
        !label.is_empty() && !label.starts_with(b"-") && !label.ends_with(b"-") && label.iter().all(is_of_label)
    };
    text.strip_suffix(b".").unwrap_or(text).split(|&octet| octet == b'.').all(is_label)
}

/// Each dot stands between two other octets, and there are some.
fn has_parts(text: &[u8]) -> bool {
    text.split(|&octet| octet == b'.').all(|part| !part.is_empty())
}

/// RFC 5322 3.2.3 `atext`, the dots between atoms, and what RFC 6531 3.3 adds.
fn is_dot_text(octet: u8) -> bool {
    octet.is_ascii_alphanumeric()
        || matches!(octet, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-'..=b'/' | b'=' | b'?' | b'^'..=b'`' | b'{'..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use ringpost_smtp::{
        address::{self, PathLimits},
        command,
    };

    use super::*;
    use crate::random::Random;

    #[test]
    fn what_stands_in_brackets_and_behind_them_is_found() {
        for (argument, path, parameters) in [
            (" FROM:<a@b>", "a@b", ""),
            (" from: <a@b> SIZE=5  BODY=8BITMIME ", "a@b", "SIZE=5  BODY=8BITMIME"),
            (" FROM:<>", "", ""),
            (" FROM:<a.b+c=d@x-1.y_z.test.>\tSIZE=5", "a.b+c=d@x-1.y_z.test.", "SIZE=5"),
            (r#" FROM:<"a>\" b"@[IPv6:::1]> X"#, r#""a>\" b"@[IPv6:::1]"#, "X"),
            (" FROM:<@hop.test,@b:c@[192.0.2.1]>", "@hop.test,@b:c@[192.0.2.1]", ""),
            (" FROM:<jürgen@bücher.test>", "jürgen@bücher.test", ""),
        ] {
            let found = path_and_parameters(argument.as_bytes(), PathKind::Reverse, true);
            assert_eq!(found, Some((path.as_bytes(), parameters.as_bytes())), "{argument}");
        }
        let utf8 = " TO:<jürgen@b>".as_bytes();
        assert!(
            path_and_parameters(utf8, PathKind::Forward, true).is_some() && path_and_parameters(utf8, PathKind::Forward, false).is_none()
        );
        assert!(path_and_parameters(b" TO:<Postmaster>", PathKind::Forward, true).is_some());
        for broken in [
            "",
            " ",
            " FROM:",
            " FROM:a@b",
            " TO:<a@b>",
            " <a@b>",
            " FROM <a@b>",
            " FROM:x<a@b>",
            " FROM:<a@b>x",
            " FROM:<a@b>,<c@d>",
            " FROM:<a b>",
            " FROM:<a b@c>",
            " FROM:<a@b",
            " FROM:<a>",
            " FROM:<postmaster>",
            " FROM:<a@b@c>",
            " FROM:<<a@b>>",
            " FROM:<a@>",
            " FROM:<@b>",
            " FROM:< >",
            " FROM:<a..b@c>",
            " FROM:<a@b..c>",
            " FROM:<a@-b>",
            " FROM:<a@[192.0.2]>",
            " FROM:<\"a@b>",
            " FROM:<a@b\u{7f}>",
        ] {
            assert_eq!(path_and_parameters(broken.as_bytes(), PathKind::Reverse, true), None, "{broken:?}");
        }
    }

    #[test]
    fn parameters_are_names_and_values() {
        for parameters in ["", "SIZE=5", "BODY=8BITMIME  SMTPUTF8", "ORCPT=rfc822;c>d", "X-1=a+3Db"] {
            assert!(are_parameters(parameters.as_bytes()), "{parameters}");
        }
        for parameters in ["=5", "SIZE=", "-x", "<c@d>", "a=b=c", "SIZE=5 ,", "a=\x01"] {
            assert!(!are_parameters(parameters.as_bytes()), "{parameters}");
        }
    }

    #[test]
    fn parameters_are_known_by_name_and_where_it_counts_by_value() {
        let known = ["SIZE", "BODY=7BIT", "BODY=8BITMIME"];
        for parameters in ["", "size=5", "SIZE", "SIZE=5 body=8bitmime", "BODY=7BIT\tSIZE=1"] {
            assert!(are_known(parameters.as_bytes(), &known), "{parameters}");
        }
        for parameters in ["SMTPUTF8", "SIZE=5 RET=HDRS", "BODY", "BODY=BINARYMIME", "SIZES=5"] {
            assert!(!are_known(parameters.as_bytes(), &known), "{parameters}");
        }
    }

    /// Two readers of one grammar, written apart: what the engine takes and refuses, the sink does.
    #[test]
    fn the_engine_reads_the_same_of_arguments_of_any_kind() {
        let words: [&str; 20] = [
            "<",
            ">",
            "@",
            ".",
            "-",
            ":",
            ",",
            "\"",
            "\\",
            " ",
            "a",
            "B1",
            "@a:",
            "postmaster",
            "[192.0.2.1]",
            "[IPv6:::1]",
            "[",
            "\t",
            "ü",
            "\"a b\"",
        ];
        let mut random = Random::new(9);
        let mut taken = 0;
        for round in 0..200_000u64 {
            let mut text = if round % 2 == 0 { "<a@b".to_owned() } else { String::new() };
            (0..random.below(6)).for_each(|_| text.push_str(words[random.below(20) as usize]));
            text.push_str(["", ">", "> X=1", ">x"][random.below(4) as usize]);
            for (kind, keyword, theirs) in
                [(PathKind::Reverse, "FROM:", address::PathKind::Reverse), (PathKind::Forward, "TO:", address::PathKind::Forward)]
            {
                let argument = format!(" {keyword}{text}");
                let own = path_and_parameters(argument.as_bytes(), kind, true).map(|(path, parameters)| (path.len() + 2, parameters));
                let engine = command::path_and_parameters(text.trim_ascii().as_bytes(), theirs, PathLimits::default(), &mut Vec::new());
                assert_eq!(own, engine.ok().map(|(path, parameters)| (path.consumed, parameters)), "{kind:?} {text:?}");
                taken += u32::from(own.is_some());
            }
        }
        assert!(taken > 10_000, "{taken}");
    }
}
