//! What a session of the load says, what it asks of its driver, and what becomes of its messages.

use std::{fmt, str::FromStr, time::Instant};

use crate::{content::Composer, identity::Mark, phase::Phase};

/// A point of a session at which it can be given up, and which names where a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The banner was read.
    Banner,
    /// The reply to EHLO or LHLO was read. STARTTLS and AUTH have their place behind it, in `Client::greeted`.
    Hello,
    /// The reply to MAIL was read.
    Mail,
    /// The reply to an RCPT was read.
    Rcpt,
    /// The reply to DATA was read.
    Data,
    /// Half of the content is sent.
    Content,
    /// All of it is sent, and the reply not waited for.
    Dot,
}

impl Stage {
    /// All, in the order of a session.
    pub const ALL: [Stage; 7] = [Stage::Banner, Stage::Hello, Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Content, Stage::Dot];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Banner => "banner",
            Stage::Hello => "ehlo",
            Stage::Mail => "mail",
            Stage::Rcpt => "rcpt",
            Stage::Data => "data",
            Stage::Content => "content",
            Stage::Dot => "dot",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Stage, String> {
        let names: Vec<&str> = Stage::ALL.iter().map(|stage| stage.name()).collect();
        Stage::ALL.into_iter().find(|stage| stage.name() == text).ok_or_else(|| format!("{text:?} is none of {}", names.join(", ")))
    }
}

/// What all sessions of a load say.
#[derive(Debug, Clone)]
pub struct Script {
    /// The first command, CRLF included.
    pub hello: Vec<u8>,
    /// LMTP: one reply per recipient after the dot (RFC 2033 4.2).
    pub lmtp: bool,
    /// The sender of all messages, without brackets.
    pub reverse_path: Vec<u8>,
    /// It, or a recipient, has octets beyond ASCII: no MAIL to a server that does not announce SMTPUTF8, and the parameter with each (RFC 6531
    /// 3.2, 3.4).
    pub needs_smtputf8: bool,
    /// Recipients of each message.
    pub recipients: u32,
    /// Send ahead where PIPELINING is announced.
    pub pipelining: bool,
    /// There, the next envelope leaves with a content.
    pub envelopes_ahead: bool,
    /// BDAT instead of DATA where CHUNKING is announced.
    pub chunking: bool,
    /// Messages a connection carries before QUIT; none: no limit.
    pub per_connection: Option<u32>,
    /// No QUIT then: the connection stays, silent.
    pub linger: bool,
}

/// One message that the load wants sent.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// Its number in the run.
    pub sequence: u64,
    /// When it was due: under an open loop the scheduled time, else when its session could begin it ([`Host::has_its_turn`]).
    pub due: Instant,
    /// The same as microseconds since 1970.
    pub due_us: u64,
}

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The server answered 2xx to its end: it is the server's now. Under LMTP: for so many of its recipients.
    Accepted {
        /// Recipients that were accepted.
        recipients: u32,
    },
    /// The server answered with this code.
    Refused {
        /// To what.
        stage: Stage,
        /// 400 to 599, or an unexpected code.
        code: u16,
    },
    /// The connection ended after the end of content was sent: it may have been accepted or not.
    Unknown,
    /// The connection ended before.
    Unsent,
    /// The session was given up, as it was to be. It may have been accepted where all of it had been sent.
    Aborted,
}

/// What was sent of a message.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// What it says of itself.
    pub mark: Mark,
    /// All its octets before stuffing.
    pub content_bytes: u64,
    /// When MAIL was sent, or when the message before it had its last reply, if that was later.
    pub began: Instant,
}

/// A message that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// Which.
    pub job: &'a Job,
    /// Known once it was composed.
    pub content: Option<&'a Sent>,
    /// Recipients that the server took, joined by commas, as ledgers have them.
    pub recipients: &'a [u8],
    /// The line that decided, empty where there was none.
    pub reply: &'a [u8],
}

/// How a message is sent, by what was asked for and what the server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// What follows MAIL does not wait for the reply.
    pub pipelined: bool,
    /// The content goes with BDAT.
    pub chunked: bool,
}

/// What the machine asks of its driver.
pub trait Host {
    /// The next message that is due; none: nothing to do for now.
    fn take(&mut self, now: Instant) -> Option<Job>;
    /// Appends a forward-path without brackets.
    fn push_recipient(&mut self, out: &mut Vec<u8>);
    /// What composes the messages.
    fn composer(&mut self) -> &mut Composer;
    /// MAIL was sent.
    fn began(&mut self, manner: Manner);
    /// The message before `job` on its connection has had its last reply, and `job`'s MAIL was sent before that: it is its turn now. A
    /// closed loop has it due now; under an open loop it stays due when it was.
    fn has_its_turn(&mut self, job: &mut Job, now: Instant);
    /// A phase began then and is over now.
    fn observe(&mut self, phase: Phase, since: Instant, now: Instant);
    /// A recipient was refused with this code, in the reply to its RCPT or, under LMTP, in its reply after the content.
    fn recipient_refused(&mut self, code: u16, reply: &[u8]);
    /// A message has ended.
    fn settle(&mut self, ended: Ended<'_>, outcome: Outcome, now: Instant);
    /// Shall the session be given up here? Of MAIL, RCPT and DATA it is asked when they are sent, once for each.
    fn gives_up(&mut self, stage: Stage) -> bool;
}

/// How the session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Send what is in the outbox, then read.
    Go,
    /// Send what is in the outbox, then close without a word.
    GiveUp,
    /// The session is over; close.
    Over,
}

/// Why a session is over before its time. What was open has been settled by the time `receive` returns it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server closes: 421, or a refusal where none can be borne.
    #[error("{stage} answered {code} {text}")]
    Closing {
        /// What it was the answer to.
        stage: Stage,
        /// The code.
        code: u16,
        /// The line behind it.
        text: String,
    },
    /// Something that is no reply.
    #[error("not a reply: {0:?}")]
    NotAReply(String),
    /// A reply to nothing.
    #[error("a reply to nothing: {0:?}")]
    Unasked(String),
    /// The server cannot be sent this mail (RFC 6531 3.2).
    #[error(
        "the server does not announce SMTPUTF8, which sender or recipients need, as they have octets beyond ASCII: nothing can be sent"
    )]
    NoSmtputf8,
    /// A good reply to content that had not left: it promises what the server cannot have.
    #[error("{reply} is {code} {text}, before all of the content had been sent")]
    TooEarly {
        /// The reply, in words.
        reply: &'static str,
        /// Its code.
        code: u16,
        /// The line behind it.
        text: String,
    },
    /// A good reply where what it rests on was refused: what the server holds now is not known.
    #[error("{reply} is {code} {text}, although {stage} was answered {refused}")]
    OutOfOrder {
        /// The reply, in words.
        reply: &'static str,
        /// Its code.
        code: u16,
        /// The line behind it.
        text: String,
        /// What was refused before.
        stage: Stage,
        /// With what.
        refused: u16,
    },
    /// A reply that its command cannot have, such as 354 to content or 250 to DATA: the dialogue is out of step.
    #[error("{reply} is {code} {text}, which is the answer to something else")]
    OutOfStep {
        /// The reply, in words.
        reply: &'static str,
        /// Its code.
        code: u16,
        /// The line behind it.
        text: String,
    },
}
