//! One command line taken apart: verb and argument, nothing copied.

use crate::address::{ParsedPath, PathKind, PathLimits};

/// A command of RFC 5321 4.1 and its extensions, with its argument as it stood in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'a> {
    /// The peer's name. RFC 5321 4.1.1.1.
    Helo(&'a [u8]),
    /// The peer's name. RFC 5321 4.1.1.1.
    Ehlo(&'a [u8]),
    /// From the `<` on: the reverse-path and its parameters.
    Mail(&'a [u8]),
    /// From the `<` on: the forward-path and its parameters.
    Rcpt(&'a [u8]),
    /// RFC 5321 4.1.1.4.
    Data,
    /// RFC 3030 2: this many octets follow, and whether they are the last.
    Bdat {
        /// Octets that follow the line, not dot-stuffed.
        bytes: u64,
        /// They end the message.
        last: bool,
    },
    /// RFC 5321 4.1.1.5.
    Rset,
    /// RFC 5321 4.1.1.9; an argument is allowed and ignored.
    Noop,
    /// RFC 5321 4.1.1.6, with what to verify.
    Vrfy,
    /// RFC 5321 4.1.1.8.
    Help,
    /// RFC 5321 4.1.1.10.
    Quit,
    /// RFC 3207 4.
    StartTls,
    /// RFC 4954 4, with mechanism and initial response.
    Auth(&'a [u8]),
    /// A verb that is known and deliberately not done: EXPN, TURN, ETRN, SEND, SOML, SAML.
    NotImplemented,
}

/// Why a line is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// 500 5.5.2: control characters, NUL or a bare CR in the line, or nothing at all.
    #[error("not a command line")]
    Malformed,
    /// 500 5.5.1: a verb nobody knows.
    #[error("unknown command")]
    Unknown,
    /// 501 5.5.4: the verb is known, its argument is missing, not allowed or not understood.
    #[error("bad argument")]
    Argument,
    /// 501 5.5.4, and the session must end: the length of what follows a BDAT could not be read, so where the next
    /// command begins is unknown.
    #[error("bad chunk size")]
    ChunkSize,
    /// The peer speaks another protocol (an HTTP verb, or a line that begins with no letter): the session ends.
    #[error("not an SMTP client")]
    Foreign,
}

impl<'a> Command<'a> {
    /// Takes a line without its CRLF apart.
    pub fn parse(line: &'a [u8]) -> Result<Self, CommandError> {
        match line.first() {
            None => return Err(CommandError::Malformed),
            Some(first) if is_foreign_start(*first) => return Err(CommandError::Foreign),
            Some(_) => {}
        }
        // One pass without a branch, for the many lines that have none.
        if line.iter().fold(false, |odd, &byte| odd | ((byte < b' ') & (byte != b'\t')) | (byte == 0x7f)) {
            return Err(if Self::is_chunk(line) { CommandError::ChunkSize } else { CommandError::Malformed });
        }
        let end = line.iter().position(|&byte| is_space(byte)).unwrap_or(line.len());
        let (verb, argument) = (&line[..end], trim(&line[end..]));
        let mut upper = [0_u8; 8];
        if verb.len() > upper.len() {
            return Err(CommandError::Unknown);
        }
        upper[..verb.len()].copy_from_slice(verb);
        upper.make_ascii_uppercase();
        match &upper[..verb.len()] {
            b"MAIL" => after_keyword(argument, b"FROM:").map(Command::Mail),
            b"RCPT" => after_keyword(argument, b"TO:").map(Command::Rcpt),
            b"DATA" => bare(argument, Command::Data),
            b"BDAT" => chunk(argument),
            b"EHLO" => peer_name(argument).map(Command::Ehlo),
            b"HELO" => peer_name(argument).map(Command::Helo),
            b"RSET" => bare(argument, Command::Rset),
            b"NOOP" => Ok(Command::Noop),
            b"QUIT" => bare(argument, Command::Quit),
            b"HELP" => Ok(Command::Help),
            b"VRFY" if argument.is_empty() => Err(CommandError::Argument),
            b"VRFY" => Ok(Command::Vrfy),
            b"STARTTLS" => bare(argument, Command::StartTls),
            b"AUTH" => Ok(Command::Auth(argument)),
            b"EXPN" | b"TURN" | b"ETRN" | b"SEND" | b"SOML" | b"SAML" => Ok(Command::NotImplemented),
            b"GET" | b"POST" | b"PUT" | b"HEAD" | b"CONNECT" | b"OPTIONS" | b"DELETE" | b"PATCH" | b"TRACE" => Err(CommandError::Foreign),
            _ => Err(CommandError::Unknown),
        }
    }

    /// Whether a line that cannot be read begins as BDAT does: octets that are no commands may follow it.
    pub fn is_chunk(line: &[u8]) -> bool {
        line.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"BDAT"))
    }

    /// Whether the command must be the last of a pipelined group: input behind it is an error of the client, or
    /// somebody else's words in its mouth. RFC 2920 3.1; RFC 3030 4.2 exempts BDAT.
    pub fn ends_group(line: &[u8]) -> bool {
        let end = line.iter().position(|&byte| is_space(byte)).unwrap_or(line.len());
        ["DATA", "EHLO", "HELO", "NOOP", "VRFY", "EXPN", "STARTTLS"].iter().any(|verb| line[..end].eq_ignore_ascii_case(verb.as_bytes()))
    }
}

/// Whether a line that begins with this octet can't come from an SMTP client: no verb begins so. CR and LF are judged
/// as line ends first.
pub fn is_foreign_start(first: u8) -> bool {
    !first.is_ascii_alphabetic() && first != b'\r' && first != b'\n'
}

/// Reads the path at the start of an argument of MAIL or RCPT, appends its canonical text to `out` and gives back the
/// parameters behind it.
pub fn path_and_parameters<'a>(
    argument: &'a [u8],
    kind: PathKind,
    limits: PathLimits,
    out: &mut Vec<u8>,
) -> Result<(ParsedPath, &'a [u8]), crate::address::AddressError> {
    let parsed = crate::address::parse_path(argument, kind, limits, out)?;
    let rest = &argument[parsed.consumed..];
    match rest.first() {
        Some(&byte) if !is_space(byte) => Err(crate::address::AddressError::Syntax),
        _ => Ok((parsed, trim(rest))),
    }
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Without the blanks around. RFC 5321 4.1.1: trailing white space should be tolerated.
fn trim(text: &[u8]) -> &[u8] {
    text.trim_ascii()
}

fn bare<'a>(argument: &[u8], command: Command<'a>) -> Result<Command<'a>, CommandError> {
    if argument.is_empty() { Ok(command) } else { Err(CommandError::Argument) }
}

/// What follows `FROM:` or `TO:`. A blank behind the colon is wrong and common.
fn after_keyword<'a>(argument: &'a [u8], keyword: &[u8]) -> Result<&'a [u8], CommandError> {
    match argument.split_at_checked(keyword.len()) {
        Some((head, rest)) if head.eq_ignore_ascii_case(keyword) => Ok(trim(rest)),
        _ => Err(CommandError::Argument),
    }
}

/// One word of printable ASCII. It need not be a domain (many clients have none); `Received` shows it sanitised.
fn peer_name(argument: &[u8]) -> Result<&[u8], CommandError> {
    let fits = (1..=crate::address::DOMAIN_BYTES_MAX).contains(&argument.len());
    if fits && argument.iter().all(u8::is_ascii_graphic) { Ok(argument) } else { Err(CommandError::Argument) }
}

fn chunk<'a>(argument: &[u8]) -> Result<Command<'a>, CommandError> {
    let digits = argument.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let bytes = decimal(&argument[..digits]).ok_or(CommandError::ChunkSize)?;
    let rest = &argument[digits..];
    match trim(rest) {
        b"" => Ok(Command::Bdat { bytes, last: false }),
        word if rest.first().copied().is_some_and(is_space) && word.eq_ignore_ascii_case(b"LAST") => {
            Ok(Command::Bdat { bytes, last: true })
        }
        _ => Err(CommandError::ChunkSize),
    }
}

/// A decimal number of 1 to 20 digits that fits in 64 bits.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_known_in_any_case() {
        for (line, command) in [
            ("EHLO a.test", Command::Ehlo(b"a.test")),
            ("helo a.test  ", Command::Helo(b"a.test")),
            ("ehlo [192.0.2.1]", Command::Ehlo(b"[192.0.2.1]")),
            ("Mail From:<a@b> SIZE=1", Command::Mail(b"<a@b> SIZE=1")),
            ("MAIL FROM: <a@b>", Command::Mail(b"<a@b>")),
            ("rcpt to:<a@b>", Command::Rcpt(b"<a@b>")),
            ("DATA", Command::Data),
            ("data ", Command::Data),
            ("BDAT 0", Command::Bdat { bytes: 0, last: false }),
            ("BDAT 10 LAST", Command::Bdat { bytes: 10, last: true }),
            ("bdat 010 last", Command::Bdat { bytes: 10, last: true }),
            ("BDAT 18446744073709551615", Command::Bdat { bytes: u64::MAX, last: false }),
            ("RSET", Command::Rset),
            ("NOOP anything at all", Command::Noop),
            ("VRFY b", Command::Vrfy),
            ("HELP MAIL", Command::Help),
            ("QUIT", Command::Quit),
            ("STARTTLS", Command::StartTls),
            ("AUTH PLAIN AGEAYg==", Command::Auth(b"PLAIN AGEAYg==")),
            ("EXPN list", Command::NotImplemented),
        ] {
            assert_eq!(Command::parse(line.as_bytes()), Ok(command), "{line}");
        }
    }

    #[test]
    fn lines_that_are_no_commands_tell_why() {
        for (line, error) in [
            ("", CommandError::Malformed),
            ("NOOP \0", CommandError::Malformed),
            ("NO\rOP", CommandError::Malformed),
            ("BDAT 60\0 LAST", CommandError::ChunkSize),
            ("bdat\0 60", CommandError::ChunkSize),
            ("XYZZY", CommandError::Unknown),
            ("VERYLONGVERB", CommandError::Unknown),
            ("EHLO", CommandError::Argument),
            ("EHLO a b", CommandError::Argument),
            ("HELO ü", CommandError::Argument),
            ("MAIL", CommandError::Argument),
            ("MAIL TO:<a@b>", CommandError::Argument),
            ("MAIL FROM <a@b>", CommandError::Argument),
            ("RCPT <a@b>", CommandError::Argument),
            ("DATA now", CommandError::Argument),
            ("QUIT now", CommandError::Argument),
            ("VRFY", CommandError::Argument),
            ("BDAT", CommandError::ChunkSize),
            ("BDAT x", CommandError::ChunkSize),
            ("BDAT -1", CommandError::ChunkSize),
            ("BDAT 5LAST", CommandError::ChunkSize),
            ("BDAT 5 LAST 6", CommandError::ChunkSize),
            ("BDAT 18446744073709551616", CommandError::ChunkSize),
            ("GET / HTTP/1.1", CommandError::Foreign),
            ("connect x:25 HTTP/1.1", CommandError::Foreign),
            (" EHLO a", CommandError::Foreign),
            ("\u{16}\u{3}\u{1}", CommandError::Foreign),
            ("220 hello", CommandError::Foreign),
        ] {
            assert_eq!(Command::parse(line.as_bytes()), Err(error), "{line:?}");
        }
    }

    #[test]
    fn a_path_and_its_parameters_are_parted_by_a_blank() {
        let mut out = Vec::new();
        let (_, rest) = path_and_parameters(b"<a@b>  SIZE=1 X ", PathKind::Reverse, PathLimits::default(), &mut out).unwrap();
        assert_eq!((rest, &out[..]), (&b"SIZE=1 X"[..], &b"a@b"[..]));
        assert!(path_and_parameters(b"<a@b>SIZE=1", PathKind::Reverse, PathLimits::default(), &mut out).is_err());
    }
}
