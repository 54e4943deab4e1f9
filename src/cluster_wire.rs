//! What `ringpost cluster` asks of a running engine, and the answers.

use ringpost_cluster::{
    control_plane::{ConfigVersion, Published},
    identity::Leadership,
};
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
    /// `HandOverView`, once another leads.
    HandOver {},
    /// The work queue.
    Queue {
        /// The kind of its items; None: mail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// What of it.
        ask: QueueCall,
    },
    /// Put another number of the work queue's partitions in force.
    QueuePartitions {
        /// The number.
        number: u16,
        /// Whatever the queue has under the number before.
        force: bool,
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
    /// `ConfigText` of a version; None: the current one. While Valkey is away `RunningConfigText`, where that is asked for.
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

/// A call of `ringpost cluster queue`.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum QueueCall {
    /// `QueueStats`.
    Stats {},
    /// A `DeadLetter` a line, then an object with `unanswered` alone where partitions do not answer.
    Dead {
        /// At most so many.
        limit: u64,
    },
    /// Dead letters get another chance; none named: all. Answered with a `Tally`.
    Requeue {
        /// Which.
        ids: Vec<String>,
    },
    /// Dead letters are removed; none named: all. Of those named also what waits and nobody can read. Answered with a `Tally`.
    Purge {
        /// Which.
        ids: Vec<String>,
    },
    /// Adds an item.
    Enqueue {
        /// Its name.
        id: String,
        /// A text.
        data: String,
        /// 0 to 9.
        priority: u8,
        /// Leases at most.
        max_attempts: u32,
        /// Not before so long from now.
        delay_ms: u64,
        /// Not after so long from now; 0: always.
        expires_in_ms: u64,
    },
    /// An item a line.
    Lease {
        /// At most so many.
        count: usize,
        /// For so long.
        lease_ms: u64,
    },
    /// A lease ends, and the work is done.
    Complete {
        /// Which.
        id: String,
        /// The lease's.
        token: String,
        /// What its owner is told.
        result: String,
    },
    /// A lease ends, and the work is not done.
    Fail {
        /// Which.
        id: String,
        /// The lease's.
        token: String,
        /// Or a dead letter.
        retry: bool,
        /// Again after so long; None: by its attempts.
        delay_ms: Option<u64>,
        /// Why.
        reason: String,
    },
    /// A lease runs for so long from now.
    Extend {
        /// Which.
        id: String,
        /// The lease's.
        token: String,
        /// So long.
        lease_ms: u64,
    },
    /// Leases that ran out are taken back. Answered with a `Tally`.
    Recover {},
    /// What became of items, a line for each; what is completed is forgotten with the answer.
    Settle {
        /// Which.
        ids: Vec<String>,
    },
}

/// The answer to `handover`.
#[derive(Serialize, Deserialize, Debug)]
pub struct HandOverView {
    /// Who was asked to let another lead.
    pub leader: String,
    /// What it led with.
    pub epoch: u64,
    /// Who leads in its place.
    pub next: String,
    /// What that one leads with.
    pub next_epoch: u64,
}

impl HandOverView {
    /// Of a leader that was asked, and who had the lease at the end. Err, for the operator: no other node has taken over.
    pub fn of(asked: &Leadership, next: Option<Leadership>) -> Result<HandOverView, String> {
        let leader = asked.incarnation.node();
        match next {
            Some(next) if next.incarnation.node() != leader => Ok(HandOverView {
                leader: leader.to_string(),
                epoch: asked.epoch.0,
                next: next.incarnation.node().to_string(),
                next_epoch: next.epoch.0,
            }),
            Some(next) if next == *asked => Err(format!(
                "{leader} was asked to let another lead, and nobody took over: it has the lease still. It does not hear Valkey's messages, or its process is \
                 stopped; where it is dead the lease ends within cluster.leader_ttl"
            )),
            Some(_) => Err(format!(
                "{leader} was asked to let another lead, and nobody took over: it leads again. No other node stands: see `ringpost cluster nodes` for masters \
                 that are there and healthy"
            )),
            None => Err(format!(
                "{leader} was asked to let another lead, and nobody took over: nobody leads now. No node that is there stands: a master has to run, be healthy, \
                 and reach Valkey; or who stood was not elected, since fewer than cluster.replicas_required replicas have its lease. Mail goes on without a \
                 leader"
            )),
        }
    }
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

/// The version that runs on the node that was asked, where Valkey does not say which is current.
#[derive(Serialize, Deserialize, Debug)]
pub struct RunningConfigText {
    /// Its number.
    pub version: u64,
    /// As it was pushed.
    pub text: String,
    /// Why no other answers.
    pub unanswered: String,
}

/// The answer to a push or a roll-back.
#[derive(Serialize, Deserialize, Debug)]
pub struct PublishedView {
    /// The version that is current now.
    pub version: u64,
    /// `published`, `unchanged` or `checked`.
    pub result: String,
    /// What the operator should mend, though it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// What `ringpost check` warns of in a config like this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl PublishedView {
    /// Without a warning.
    pub fn new(version: u64, result: &str) -> PublishedView {
        PublishedView { version, result: result.to_owned(), warning: None, warnings: Vec::new() }
    }

    /// The same with these.
    #[must_use]
    pub fn with(self, warnings: Vec<String>) -> PublishedView {
        PublishedView { warnings, ..self }
    }

    /// Err: somebody else published in between.
    pub fn of(published: Published) -> Result<PublishedView, String> {
        match published {
            Published::Version(version) => Ok(PublishedView::new(version, "published")),
            Published::Untold(version) => {
                let warning = "Valkey lets this user publish no message: nodes take the version with a heartbeat or when they ask \
                               (cluster.config_poll); give the user its channels (&*)";
                Ok(PublishedView { warning: Some(warning.to_owned()), ..PublishedView::new(version, "published") })
            }
            Published::Same(version) => Ok(PublishedView::new(version, "unchanged")),
            Published::Overtaken(version) => Err(format!("version {version} was published meanwhile: look at it and try again")),
        }
    }
}
