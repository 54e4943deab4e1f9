//! What the coordinator may ask of a shard, and what it answers. Plain data that crosses threads; the shard's side is in `shard`.

use std::sync::Arc;

use ringpost_config::Config;
use ringpost_queue::{DestinationId, QueueId, Resolution};
use serde::{Deserialize, Serialize};

/// One page of `queue ls` holds at most so many messages; the rest comes with further calls.
pub const PAGE_MESSAGES_MAX: usize = 1000;

/// A question to one shard with the way back. The answer is given exactly once, on the shard's thread; dropping the request
/// unanswered (a shard that ended) drops the way back with it.
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// Called with the answer; must not block.
    pub answer: Box<dyn FnOnce(Answer) + Send>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Command {
    /// One page of the queue.
    List(ListQuery),
    /// One message.
    Show(QueueId),
    /// Steer messages.
    Change(Change, Selection),
    /// The counters.
    Stats,
    /// What DNS said to questions of this shard; how long each answer holds counts from now.
    Resolved(Vec<(DestinationId, Resolution)>),
    /// Write so many segments ahead.
    Prepare(u32),
    /// Run with these settings, which were checked with [`crate::reload::unchangeable`].
    Reload(Arc<Config>),
    /// Stop accepting, finish, flush, end.
    Drain,
}

/// Filter and place of a page.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ListQuery {
    /// Only messages with a recipient in this state (`ready`, `deferred`, `active`, `held`, `failed`).
    pub state: Option<String>,
    /// Only this reverse-path.
    pub sender: Option<String>,
    /// Only messages with a recipient in this domain.
    pub domain: Option<String>,
    /// Where the page before ended, as its answer gave it.
    pub after: Option<u64>,
    /// At most so many, and never more than [`PAGE_MESSAGES_MAX`].
    pub limit: Option<usize>,
}

/// How `queue` commands steer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Attempt now.
    Retry,
    /// Keep back until released.
    Hold,
    /// End a hold.
    Release,
    /// Remove without a bounce.
    Delete,
}

/// Which messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selection {
    /// These.
    Ids(Vec<QueueId>),
    /// Every one.
    All,
}

/// A shard's answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A page, and where to go on when there is more.
    Messages(Vec<MessageView>, Option<u64>),
    /// The message, if this shard has it.
    Message(Option<Box<MessageView>>),
    /// How many messages changed; durable where the change must be.
    Changed(u64),
    /// Counter names and values.
    Stats(Vec<(&'static str, u64)>),
    /// It is done.
    Done,
    /// It could not be done; a sentence for the operator.
    Failed(String),
}

/// A queued message as `queue ls --json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MessageView {
    /// Queue id.
    pub id: String,
    /// Reverse-path without brackets.
    pub sender: String,
    /// Each recipient that is not delivered, and those that are while others are not.
    pub recipients: Vec<RecipientView>,
    /// Most attempts of a recipient.
    pub attempts: u32,
    /// Nearest next attempt, RFC 3339; absent when none is planned (active, held, failed).
    pub next_attempt: Option<String>,
    /// Content bytes.
    pub size: u64,
    /// RFC 3339.
    pub accepted_at: String,
    /// Why it is still here, in one sentence.
    pub reason: String,
}

/// A recipient within [`MessageView`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecipientView {
    /// Forward-path without brackets.
    pub address: String,
    /// `ready`, `deferred`, `active`, `held`, `failed` or `delivered`.
    pub state: String,
    /// Attempts so far.
    pub attempts: u32,
    /// RFC 3339; absent when none is planned.
    pub next_attempt: Option<String>,
    /// What the next hop said last, or why it could not be asked.
    pub last_reply: Option<String>,
}
