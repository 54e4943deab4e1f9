//! What `ringpost cluster` asks of a running engine, and the answers.

use ringpost_cluster::control_plane::{ConfigVersion, Published};
use serde::{Deserialize, Serialize};

/// A call of `ringpost cluster`. Each is answered with one JSON object a line.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClusterCall {
    /// `ClusterStats`.
    Status {},
    /// A `NodeView` a line.
    Nodes {},
    /// `LeaderView`.
    Leader {},
    /// Let another lead.
    HandOver {},
    /// `QueueStats` of the mail queue.
    QueueStats {},
    /// A `DeadLetter` a line.
    QueueDead {
        /// At most so many.
        limit: u64,
    },
    /// Dead letters get another chance; none named: all.
    QueueRequeue {
        /// Which.
        ids: Vec<String>,
    },
    /// Dead letters are removed; none named: all.
    QueuePurge {
        /// Which.
        ids: Vec<String>,
    },
    /// Check and publish a config.
    ConfigPush {
        /// The text.
        text: String,
        /// Who pushes.
        author: String,
        /// Only check it here.
        dry_run: bool,
    },
    /// A `ConfigVersion` a line, the newest first.
    ConfigHistory {},
    /// `ConfigText` of a version; None: the current one.
    ConfigShow {
        /// Which.
        version: Option<u64>,
    },
    /// Publish an earlier version's text again; None: the one before.
    ConfigRollback {
        /// Which.
        version: Option<u64>,
        /// Who rolls back.
        author: String,
    },
    /// How often nodes ask.
    ConfigPoll {
        /// In milliseconds.
        interval_ms: u64,
    },
}

/// The answer to `leader`.
#[derive(Serialize, Deserialize, Debug)]
pub struct LeaderView {
    /// The node that leads.
    pub leader: Option<String>,
    /// Whether it is the one that was asked.
    pub is_leader: bool,
    /// The highest epoch that the asked node accepted.
    pub epoch: u64,
}

/// One version with its text.
#[derive(Serialize, Deserialize, Debug)]
pub struct ConfigText {
    /// Which, when, by whom.
    #[serde(flatten)]
    pub config: ConfigVersion,
    /// As it was pushed.
    pub text: String,
}

/// The answer to a push or a roll-back.
#[derive(Serialize, Deserialize, Debug)]
pub struct PublishedView {
    /// The version that is current now.
    pub version: u64,
    /// `published`, `unchanged` or `checked`.
    pub result: String,
}

impl PublishedView {
    /// Err: somebody else published in between.
    pub fn of(published: Published) -> Result<PublishedView, String> {
        match published {
            Published::Version(version) => Ok(PublishedView { version, result: "published".to_owned() }),
            Published::Same(version) => Ok(PublishedView { version, result: "unchanged".to_owned() }),
            Published::Overtaken(version) => Err(format!("version {version} was published meanwhile: look at it and try again")),
        }
    }
}
