//! The control socket's language: one JSON request line, JSON answer lines, the last of which is an [`End`].

use ringpost_engine::control::{Change, ListQuery};
use serde::{Deserialize, Serialize};

use crate::cluster_wire::ClusterCall;

/// The longest request line.
pub const REQUEST_BYTES_MAX: u64 = 1024 * 1024;

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
    /// `queue retry|hold|release|delete`.
    QueueChange {
        /// Which of them.
        change: Change,
        /// Queue ids; `None` is every message.
        ids: Option<Vec<String>>,
    },
    /// `stats`: one object with the counters of all shards added up.
    // Braces: without them serde lets unknown fields pass.
    Stats {},
    /// `cluster …`
    Cluster {
        /// Which of them.
        ask: ClusterCall,
    },
    /// `spool prepare`.
    SpoolPrepare {
        /// Segments for each shard.
        segments: u32,
    },
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
}
