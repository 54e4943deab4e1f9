//! What a session wants of its driver, and what the driver may answer.

use std::time::Duration;

use super::replies::Line;

/// What the driver does next. Before it waits for anything it sends the replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// The input is used up. Send the replies, receive until [`Session::timeout`](super::Session::timeout), call `next` with what came.
    Read,
    /// Too many replies wait ([`REPLIES_BYTES_MAX`](super::REPLIES_BYTES_MAX)). Send them, then call `next` with the rest of the input.
    Send,
    /// MAIL is understood: may [`Session::reverse_path`](super::Session::reverse_path) send here, is there room? Answer with [`Session::mail`](super::Session::mail).
    Mail {
        /// SIZE, in octets, if it was declared; at most the limit of the listener.
        size: Option<u64>,
    },
    /// RCPT is understood: is [`Session::recipient_path`](super::Session::recipient_path) taken? Answer with [`Session::recipient`](super::Session::recipient).
    Recipient,
    /// Content follows: call [`Session::content`](super::Session::content), also when the input is used up, until it says [`ContentStep::End`].
    Content,
    /// The transaction ended without a message: drop the content that was put, then call `next`.
    Abort,
    /// The message is whole: make [`Session::envelope`](super::Session::envelope) and the content that was put durable, then tell
    /// [`Session::committed`](super::Session::committed).
    Commit,
    /// Send the replies, let this time pass, then call `next`.
    Delay(Duration),
    /// Send the replies, drop content that was put, close. Let the peer read what was sent: close with input unread
    /// resets the connection, so shut the sending side down first and read on a little.
    Close,
}

/// How far [`Session::content`](super::Session::content) came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum ContentStep {
    /// The input is used up and the content isn't. Send the replies, receive, call [`Session::content`](super::Session::content) again.
    More,
    /// The message will be refused: drop what was put, nothing more will be. Call [`Session::content`](super::Session::content) again at once, the
    /// content is read to its end. Said once.
    Refused,
    /// The content, or this chunk of it, has ended. Call [`Session::next`](super::Session::next).
    End,
}

/// What policy says about a MAIL or RCPT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// 250.
    Accept,
    /// This 4xx or 5xx; the session goes on.
    Refuse(Line),
    /// This 421 (or any 4xx or 5xx), and the session ends.
    Close(Line),
}

/// Why a message could not be made durable. Nothing was promised, and the peer will try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFailure {
    /// 452 4.3.1: no room on the disk.
    NoRoom,
    /// 451 4.3.0: a write or sync failed.
    NotStored,
    /// 451 4.3.2: too much at once.
    TooBusy,
    /// Policy on the whole message: this 4xx or 5xx.
    Refused(Line),
}

/// Which limit of time applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeoutKind {
    /// The peer says nothing.
    Idle,
    /// A command has begun and doesn't end.
    Command,
    /// Content is on its way: the time for all of it, and a minimum rate. Also between two chunks.
    Data,
}

/// The limit of time that applies now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout {
    /// Why.
    pub kind: TimeoutKind,
    /// Changes whenever time counts from the start again: the driver notes the time when it sees a new one.
    pub phase: u32,
    /// The limit, counted from the moment the phase began. It grows within a phase while content arrives.
    pub after: Duration,
}
