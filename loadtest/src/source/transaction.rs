//! What a session of the load has asked, and the messages it has open.

use std::time::Instant;

use crate::{
    content::Plan,
    source::{
        forward_paths::ForwardPaths,
        host::{Ended, Job, Sent, Stage},
    },
};

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
    /// The reply, as errors name it.
    pub(super) fn reply_name(self) -> &'static str {
        match self {
            Asked::Banner => "the banner",
            Asked::Hello => "the reply to EHLO",
            Asked::Mail => "the reply to MAIL",
            Asked::Rcpt => "the reply to RCPT",
            Asked::Data => "the reply to DATA",
            Asked::Dot | Asked::LoneDot => "the reply to the content",
            Asked::Rset => "the reply to RSET",
            Asked::Quit => "the reply to QUIT",
        }
    }

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
    /// Its content, decided before MAIL, which states its size.
    pub(super) plan: Plan,
    /// When MAIL was sent, or when the message before it ended, if that was later.
    pub(super) began: Instant,
    /// Set when content is composed.
    pub(super) sent: Option<Sent>,
    pub(super) mail_taken: bool,
    /// Its recipients; under LMTP those that the replies after the content are about.
    pub(super) forward_paths: ForwardPaths,
    pub(super) recipients_taken: u32,
    pub(super) recipients_asked: u32,
    pub(super) recipients_answered: u32,
    /// The session is given up at the reply to this, of which nothing was sent behind.
    pub(super) ends_at: Option<Stage>,
    /// LMTP: replies after the dot that are 2xx.
    pub(super) delivered: u32,
    /// LMTP: replies after the dot still to come.
    pub(super) replies_left: u32,
    /// The first refusal; what comes behind it, such as a 503 to DATA, only follows from it.
    pub(super) refused: Option<Refusal>,
}

/// A reply that decided against a message.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) stage: Stage,
    pub(super) code: u16,
    /// Its last line.
    line: Vec<u8>,
}

impl Transaction {
    /// It has ended by this reply, which may be none.
    pub(super) fn ended<'a>(&'a self, reply: &'a [u8]) -> Ended<'a> {
        Ended { job: &self.job, content: self.sent.as_ref(), recipients: self.forward_paths.taken(), reply }
    }

    /// Keeps the first refusal.
    pub(super) fn refuse(&mut self, stage: Stage, code: u16, line: &[u8]) {
        self.refused.get_or_insert_with(|| Refusal { stage, code, line: line.to_vec() });
    }

    /// The line that decided against it: that of the first refusal, or the one just read.
    pub(super) fn decided<'a>(&'a self, line: &'a [u8]) -> &'a [u8] {
        self.refused.as_ref().map_or(line, |first| &first.line)
    }
}
