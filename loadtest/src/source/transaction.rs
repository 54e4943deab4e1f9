//! What a session of the load has asked, and the messages it has open.

use std::time::Instant;

use crate::source::host::{Job, Sent, Stage};

/// What a reply is the answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Banner,
    Hello,
    Mail,
    Rcpt,
    Data,
    Dot,
    /// The reply to a dot without content, after all recipients were refused.
    LoneDot,
    Rset,
    Quit,
}

impl Asked {
    pub(super) fn stage(self) -> Stage {
        match self {
            Asked::Banner => Stage::Banner,
            Asked::Hello => Stage::Hello,
            Asked::Mail => Stage::Mail,
            Asked::Rcpt => Stage::Rcpt,
            Asked::Data => Stage::Data,
            Asked::Dot | Asked::LoneDot | Asked::Rset | Asked::Quit => Stage::Dot,
        }
    }
}

/// A message between its MAIL and its last reply.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) job: Job,
    pub(super) began: Instant,
    /// Set when content is composed.
    pub(super) sent: Option<Sent>,
    pub(super) mail_taken: bool,
    pub(super) recipients_taken: u32,
    pub(super) recipients_asked: u32,
    /// LMTP: replies after the dot that are 2xx.
    pub(super) delivered: u32,
    /// LMTP: replies after the dot still to come.
    pub(super) replies_left: u32,
    /// The first refusal.
    pub(super) refused: Option<(Stage, u16)>,
}
