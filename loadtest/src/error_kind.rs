//! What went wrong with a transaction or a connection, counted under few names.

use std::{collections::BTreeMap, fmt, io, str::FromStr};

use serde::{Deserialize, Serialize};

/// Different kinds one count tells apart; whatever comes after counts as [`ErrorKind::Other`]. A server that invents reply codes
/// cannot make the generator grow.
pub const KINDS_MAX: usize = 64;

/// One kind of error.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ErrorKind {
    /// The server refused with this code (RFC 5321 4.2: three digits).
    Reply(u16),
    /// Nobody listens.
    ConnectRefused,
    /// No connection in time.
    ConnectTimeout,
    /// Connected, and no octet of a banner in time or until the end: the kernel took the connection, and no process of the server did.
    NoBanner,
    /// No reply in time.
    ReplyTimeout,
    /// The connection was reset.
    Reset,
    /// The connection ended where a reply was due.
    Closed,
    /// What came is no SMTP reply.
    BrokenReply,
    /// A good reply where what went before it was refused: to a recipient of a refused MAIL, to content for nobody; or to content that had not
    /// been sent.
    OutOfOrder,
    /// The server does not announce SMTPUTF8, and an address has octets beyond ASCII.
    NoSmtputf8,
    /// This machine ran out of ports, files or memory; says nothing about the server.
    Local,
    /// Everything else.
    Other,
}

const NAMED: [(ErrorKind, &str); 11] = [
    (ErrorKind::ConnectRefused, "connect_refused"),
    (ErrorKind::ConnectTimeout, "connect_timeout"),
    (ErrorKind::NoBanner, "no_banner"),
    (ErrorKind::ReplyTimeout, "reply_timeout"),
    (ErrorKind::Reset, "reset"),
    (ErrorKind::Closed, "closed"),
    (ErrorKind::BrokenReply, "broken_reply"),
    (ErrorKind::OutOfOrder, "out_of_order"),
    (ErrorKind::NoSmtputf8, "no_smtputf8"),
    (ErrorKind::Local, "local"),
    (ErrorKind::Other, "other"),
];

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let ErrorKind::Reply(code) = self {
            return write!(f, "{code}");
        }
        f.write_str(NAMED.iter().find(|(kind, _)| kind == self).map_or("other", |(_, name)| name))
    }
}

impl FromStr for ErrorKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((kind, _)) = NAMED.iter().find(|(_, name)| *name == text) {
            return Ok(*kind);
        }
        text.parse().map(ErrorKind::Reply).map_err(|_| format!("{text:?} is no kind of error"))
    }
}

impl From<ErrorKind> for String {
    fn from(kind: ErrorKind) -> String {
        kind.to_string()
    }
}

impl TryFrom<String> for ErrorKind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<&io::Error> for ErrorKind {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => ErrorKind::ConnectRefused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => ErrorKind::Reset,
            io::ErrorKind::UnexpectedEof => ErrorKind::Closed,
            io::ErrorKind::TimedOut => ErrorKind::ConnectTimeout,
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse | io::ErrorKind::OutOfMemory => ErrorKind::Local,
            // EMFILE and ENFILE have no kind of their own.
            _ if matches!(error.raw_os_error(), Some(23 | 24 | 105)) => ErrorKind::Local,
            _ => ErrorKind::Other,
        }
    }
}

/// Errors by kind; at most [`KINDS_MAX`] of them and `other`.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCounts(BTreeMap<ErrorKind, u64>);

impl ErrorCounts {
    /// Counts `n` of a kind.
    pub fn add(&mut self, kind: ErrorKind, n: u64) {
        if n == 0 {
            return;
        }
        let known = self.0.len() < KINDS_MAX || self.0.contains_key(&kind);
        *self.0.entry(if known { kind } else { ErrorKind::Other }).or_insert(0) += n;
    }

    /// Adds what another thread counted.
    pub fn merge(&mut self, other: &ErrorCounts) {
        other.0.iter().for_each(|(&kind, &n)| self.add(kind, n));
    }

    /// All of them as a sentence begins, where so large a share of so many transactions is allowed by the key `bound`.
    pub fn told(&self, transactions: u64, share_max: f64, bound: &str, last: Option<&str>) -> String {
        let kinds: Vec<String> = self.iter().map(|(kind, count)| format!("{kind}: {count}")).collect();
        format!(
            "{} errors in {transactions} transactions ({}), {:.2} % are allowed ({bound}); the last: {}",
            self.total(),
            kinds.join(", "),
            share_max * 100.0,
            last.unwrap_or("a refusal")
        )
    }

    /// All errors.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Of one kind.
    pub fn of(&self, kind: ErrorKind) -> u64 {
        self.0.get(&kind).copied().unwrap_or(0)
    }

    /// Kinds and counts, replies by code first.
    pub fn iter(&self) -> impl Iterator<Item = (ErrorKind, u64)> + '_ {
        self.0.iter().map(|(&kind, &n)| (kind, n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_invents_codes_fills_other_and_nothing_is_lost() {
        let mut counts = ErrorCounts::default();
        (0..1000).for_each(|code| counts.add(ErrorKind::Reply(code), 1));
        assert!(counts.iter().count() <= KINDS_MAX + 1);
        assert_eq!(counts.total(), 1000);
        assert_eq!(counts.of(ErrorKind::Other), 1000 - KINDS_MAX as u64);
    }

    #[test]
    fn kinds_survive_json() {
        let mut counts = ErrorCounts::default();
        NAMED.iter().for_each(|(kind, _)| counts.add(*kind, 2));
        counts.add(ErrorKind::Reply(451), 3);
        let text = serde_json::to_string(&counts).unwrap();
        assert!(text.starts_with(r#"{"451":3,"connect_refused":2"#), "{text}");
        assert_eq!(serde_json::from_str::<ErrorCounts>(&text).unwrap(), counts);
        assert!(serde_json::from_str::<ErrorCounts>(r#"{"nonsense":1}"#).is_err());
    }
}
