//! What the client wants done, and what it found out.

use thiserror::Error;

use crate::reply::{Reply, ReplyError};

/// Names a transaction of one connection; counts from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TransactionId(pub u32);

/// What the driver does next. Before it waits for anything it sends what is in `out`, whole and in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Action {
    /// Send `out`, then wait for bytes for at most [`Client::timeout`](super::Client::timeout), then call `next` with them.
    Read,
    /// Send `out`, then the content of this transaction in this form, then call [`Client::content_sent`](super::Client::content_sent)
    /// and `next`.
    ///
    /// Before sending, [`Client::begin`](super::Client::begin) may be given the next transaction: where the peer pipelines, its
    /// commands are to be sent right behind the content (give `begin` a buffer of its own for them). Each block that is sent
    /// may take [`Timeouts::block`](super::Timeouts::block).
    SendContent(TransactionId, ContentForm),
    /// One recipient is decided.
    Outcome(RecipientOutcome),
    /// All recipients of this transaction are decided.
    Done(TransactionId),
    /// Greeted, and nothing is in progress: begin a transaction, probe, quit, or keep the connection. Bytes that arrive
    /// meanwhile are given to `next`.
    Ready,
    /// Send `out` if that does not wait, and close. All outcomes were told.
    Close(CloseReason),
}

/// How content is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentForm {
    /// Dot-stuffed, with its terminator ([`crate::stuffing`]).
    Dots,
    /// As it is, exactly [`Transaction::size`](super::Transaction::size) bytes: `out` ends with the BDAT that says so.
    Chunk,
}

/// Who reports that a recipient was delivered, if the sender asked for that (RFC 3461 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SuccessReport {
    /// We do, as `relayed`: the next hop knows nothing of DSN.
    #[default]
    Relayed,
    /// We do, as `delivered`: it was a mailbox.
    Delivered,
    /// The next hop: it offered DSN and was told what the sender wants.
    PassedOn,
    /// We do, as `relayed`, also if success was not asked for: the sender gave a time, and the next hop knows nothing of that (RFC 2852
    /// 4.1.4.2).
    Untimed,
}

/// What came of one recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecipientOutcome {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// Position in the order in which [`Client::begin`](super::Client::begin) was given them.
    pub recipient: u16,
    /// What it came to.
    pub verdict: Verdict,
    /// The peer's reply, or one of our own where no peer spoke.
    pub reply: Reply,
    /// Whose word on success it is from here on; of a meaning only with [`Verdict::Delivered`].
    pub success_report: SuccessReport,
}

/// What it came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The peer took responsibility.
    Delivered,
    /// Not now.
    Deferred,
    /// Refused for good.
    Failed,
    /// The content was sent whole and no reply came: the peer may have it. Deferred, and counted, because it may arrive twice.
    Unknown,
    /// Nothing was said about it: it can be tried again at once, elsewhere or in a further transaction.
    Untried,
}

/// Why the connection is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// [`Client::quit`](super::Client::quit) was answered, or its answer did not come.
    Quit,
    /// The peer does not want us: its answer to the connection, to EHLO and HELO, or to RSET. Says something about the host,
    /// nothing about mail.
    Refused(Reply),
    /// 421 while something else was expected.
    ServiceClosing(Reply),
    /// It answered content before it had all of it, other than by 421. The rest cannot be left out, so the connection ends; that says nothing
    /// about the host.
    AnsweredEarly(Reply),
    /// What was read is not SMTP, or is an answer to nothing.
    Protocol(ProtocolError),
    /// The driver told so.
    Disconnected(Disconnect),
}

/// How the peer broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProtocolError {
    /// Not a reply.
    #[error(transparent)]
    Reply(#[from] ReplyError),
    /// A reply although nothing was asked, so that replies and commands can no longer be matched.
    #[error("a reply to nothing")]
    Unasked,
    /// A reply of a class that the command cannot have.
    #[error("a reply of a class that does not fit the command")]
    Class,
}

/// How a connection ended from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Disconnect {
    /// The peer closed it.
    #[error("connection closed by the peer")]
    Closed,
    /// It was reset, or another error of the network.
    #[error("connection lost")]
    Lost,
    /// A deadline passed.
    #[error("timed out")]
    TimedOut,
    /// We gave it up: the content could not be read, or the process stops.
    #[error("given up")]
    Abandoned,
    /// We end it before the end of the content, which has a bare CR or LF ([`crate::stuffing::BareLineEnd`]).
    #[error("content with a bare line end")]
    Unclean,
}
