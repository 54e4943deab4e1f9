//! What the agent needs of the process around it, and what it is told at its start.

use std::{collections::BTreeMap, future::Future, path::PathBuf, pin::Pin, time::Duration};

use crate::{
    config_watch::ConfigWatch,
    handle::Known,
    identity::{Epoch, Incarnation, Leadership, Role},
    membership::{ConfigRefused, NodeRecord},
    valkey_error::ValkeyError,
};

/// What the cluster section of the config says, and what the process is.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// This process.
    pub me: Incarnation,
    /// What it may become.
    pub role: Role,
    /// Where clients and other nodes reach it.
    pub address: String,
    /// The program's version.
    pub version: String,
    /// What else others are to know at first, in the form of the admin API's field of this name.
    pub metadata: BTreeMap<String, String>,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// Without one for so long a node is offline.
    pub node_ttl: Duration,
    /// The leader's lease.
    pub leader_ttl: Duration,
    /// Replicas that must have the lease; 0: none is asked.
    pub replicas_required: u32,
    /// How often to ask for a config when none was heard of.
    pub config_poll: Duration,
    /// Where the accepted leadership and the pushed config are kept.
    pub folder: PathBuf,
    /// Why the pushed config that was kept does not run, if it does not.
    pub pushed_unfit: Option<String>,
}

/// What the node says of itself when it is asked.
#[derive(Clone, Debug, Default)]
pub struct LocalState {
    /// SMTP sessions.
    pub connections: u64,
    /// Messages in the queue.
    pub queue_depth: u64,
    /// 0.0 to 1.0.
    pub load: f64,
    /// Takes less mail, or none.
    pub shedding: bool,
    /// What is wrong.
    pub last_error: Option<String>,
    /// How often each shard answered.
    pub progress: Vec<u64>,
    /// A shard that does not move: no heartbeat is sent.
    pub stalled: Option<String>,
}

impl LocalState {
    /// As it goes into the heartbeat; texts and lists are cut to what a record may hold.
    pub(crate) fn record(&self, settings: &AgentSettings, epoch: Epoch, config: &ConfigWatch, known: &Known) -> NodeRecord {
        let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
        let refused = config.refused();
        NodeRecord {
            id: settings.me.node().clone(),
            incarnation: settings.me.to_string(),
            address: settings.address.clone(),
            role: settings.role,
            version: settings.version.clone(),
            epoch,
            config_version: config.running(),
            config_refused: refused.map(|refused| ConfigRefused { version: refused.version, reason: cut(&refused.reason, 1000) }),
            connections: self.connections,
            queue_depth: self.queue_depth,
            load: self.load,
            shedding: self.shedding,
            last_error: self.last_error.as_ref().map(|text| cut(text, 200)),
            progress: self.progress.iter().copied().take(64).collect(),
            shares: known.shares.nodes,
            metadata: known.metadata.clone(),
        }
    }
}

/// A future on the heap.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the agent needs of the process around it.
pub trait Surroundings: Send + Sync + 'static {
    /// How the node is. Within a second, whatever the shards do.
    fn observe(&self) -> Boxed<LocalState>;
    /// Runs with this pushed config from now on, or says why not and changes nothing.
    fn apply(&self, version: u64, text: String) -> Boxed<Result<(), String>>;
    /// What this node does as the leader beside the agent's own chores: idempotent, each effect fenced by the epoch. Answers how much
    /// was done, or the higher epoch that refused it.
    fn chores(&self, leadership: Leadership) -> Boxed<Result<Result<u64, Epoch>, ValkeyError>>;
    /// This node leads from now on, or no longer.
    fn leads(&self, leadership: Option<Leadership>);
}
