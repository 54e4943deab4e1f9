//! What holds for every outbound connection.

use super::timeouts::Timeouts;

/// What the peer speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// SMTP (RFC 5321).
    #[default]
    Smtp,
    /// LMTP (RFC 2033): a store of mailboxes, which answers the content once for each accepted recipient.
    Lmtp,
}

/// What holds for every connection.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Our name for EHLO: a domain or an address literal, without CR and LF.
    pub helo_name: String,
    /// Send commands in groups to servers that announce it.
    pub pipelining: bool,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// What the peer speaks.
    pub protocol: Protocol,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self { helo_name: "localhost".into(), pipelining: true, timeouts: Timeouts::default(), protocol: Protocol::default() }
    }
}
