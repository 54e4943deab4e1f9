//! The control socket's language: one JSON request line, an empty line that says that it was heard, JSON answer
//! lines, the last of which is an [`End`].

use ringpost_cluster::control_plane::CONFIG_BYTES_MAX;
use ringpost_engine::control::{Change, ListQuery, MessageFilter};
use serde::{Deserialize, Serialize};

use crate::{cluster_wire::ClusterCall, pauser::PauseCall};

/// The longest request line: a config that is pushed, whose line ends and quotes are two octets each in JSON.
pub const REQUEST_BYTES_MAX: u64 = 2 * CONFIG_BYTES_MAX as u64 + 64 * 1024;

/// What is said of a longer one.
pub fn too_long() -> String {
    format!("a request is at most {REQUEST_BYTES_MAX} bytes long: name fewer ids at a time, or filters")
}

/// What can be asked.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "call", rename_all = "snake_case", deny_unknown_fields)]
pub enum WireRequest {
    /// `queue ls`: a `MessageView` for each line.
    QueueList {
        /// Filter and limit.
        query: ListQuery,
    },
    /// `queue show`: one `MessageView`.
    QueueShow {
        /// Queue id.
        id: String,
    },
    /// `queue why`: one [`WhyLine`], if the message is queued.
    QueueWhy {
        /// Queue id.
        id: String,
    },
    /// `queue summary`: a `DestinationSummary` for each line, most messages first.
    QueueSummary {
        /// Only destinations of this name.
        #[serde(default)]
        destination: Option<String>,
    },
    /// `queue retry|hold|release|bounce|purge|reroute|set-expiry`: a [`Progress`] now and then.
    QueueChange {
        /// Which of them.
        change: Change,
        /// Queue ids; this or `filter`.
        ids: Option<Vec<String>>,
        /// All that match; an empty filter is every message.
        filter: Option<MessageFilter>,
        /// What is done with messages as a whole may be done where the filter matches only some of the recipients.
        #[serde(default)]
        whole_messages: bool,
    },
    /// `queue pause|resume`: one `Paused`.
    QueuePause {
        /// Which of them.
        action: PauseCall,
        /// Destinations; these or `all`.
        names: Vec<String>,
        /// All there are and come; a resume of all also of those that are named.
        all: bool,
    },
    /// `queue pause --list`: one `Paused`.
    QueuePaused {},
    /// `drain --to-cluster`: a `DrainProgress` now and then; it goes on when nobody waits for it any more.
    DrainToCluster {},
    /// `reload`: one `Reloaded`.
    Reload {},
    /// `stats`: one object with the counters of the node.
    // Braces: without them serde lets unknown fields pass.
    Stats {},
    /// `cluster …`
    Cluster {
        /// Which of them.
        ask: ClusterCall,
    },
    /// `spool prepare`: one [`Prepared`](crate::spool_supply::Prepared), before they are made.
    SpoolPrepare {
        /// Segments for each shard.
        segments: u32,
    },
}

/// The answer to `queue why`.
#[derive(Serialize, Deserialize, Debug)]
pub struct WhyLine {
    /// Queue id.
    pub id: String,
    /// A sentence, or one a line for each situation that its recipients are in.
    pub why: String,
}

/// How far a long command is.
#[derive(Serialize, Deserialize, Debug)]
pub struct Progress {
    /// Messages changed so far.
    pub changed: u64,
}

/// What a change of queued mail left as it was, or changed without effect, if anything.
#[derive(Serialize, Deserialize, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NotChanged {
    /// Messages to hold that are held already, to release that are not held by command, or to retry that may go already.
    pub unchanged: u64,
    /// Messages that another node of the cluster is taking over.
    pub taken: u64,
    /// Messages that are offered to the cluster while Valkey does not answer, or is long taking them.
    pub unanswered: u64,
    /// Messages that are held.
    #[serde(default)]
    pub held: u64,
    /// Messages to retry that are in the cluster's queue.
    #[serde(default)]
    pub offered: u64,
    /// Messages of which nothing that is meant is attempted any more: it has failed, and the sender is still to be told.
    #[serde(default)]
    pub failed: u64,
    /// Messages that were changed and of which something has failed already: for that the change counts once it is retried.
    #[serde(default)]
    pub once_retried: u64,
    /// Messages that were held and of which something has failed already: a hold is nothing to that.
    #[serde(default)]
    pub already_failed: u64,
    /// Messages that were changed and that their route's `expiry` ends earlier all the same.
    #[serde(default)]
    pub ends_earlier: u64,
    /// Messages that were changed and go when their destinations are resumed.
    #[serde(default)]
    pub paused: u64,
    /// Messages that were purged or bounced while an attempt is under way, which may deliver all the same.
    #[serde(default)]
    pub unless_delivered: u64,
    /// Recipients that the filter does not match and that were changed along with their messages.
    #[serde(default)]
    pub others: u64,
}

impl WireRequest {
    /// The line, without its end; or the sentence that says why it is none, of one that is too long.
    pub fn line(&self) -> Result<String, String> {
        let line = serde_json::to_string(self).expect("a request is plain data");
        if line.len() as u64 >= REQUEST_BYTES_MAX { Err(too_long()) } else { Ok(line) }
    }
}

/// Why a call was not done, as a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotDone {
    /// It cannot be, or not so.
    Refused(String),
    /// What it needs is away, as Valkey can be: try again.
    Unavailable(String),
    /// The config has to be another for it.
    Config(String),
}

impl From<String> for NotDone {
    fn from(reason: String) -> NotDone {
        NotDone::Refused(reason)
    }
}

impl From<&str> for NotDone {
    fn from(reason: &str) -> NotDone {
        NotDone::Refused(reason.to_owned())
    }
}

/// The last line of every answer.
#[derive(Serialize, Deserialize, Debug, Default)]
pub struct End {
    /// Always true: tells this line from the others.
    pub end: bool,
    /// Messages listed or changed.
    pub count: u64,
    /// What went wrong, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// That is for want of what is away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unavailable: bool,
    /// The config has to be another for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_config: bool,
}
