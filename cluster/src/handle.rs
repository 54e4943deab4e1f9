//! The agent as the rest of the process sees it: what is known of the cluster, and what operators ask.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{
    control_plane::ControlPlane,
    identity::{Epoch, Incarnation, Leadership},
    membership::{MemberCounts, Members, NodeView, Status},
    shares::Shares,
    surroundings::LocalState,
    valkey_error::ValkeyError,
};

/// What operators ask of the agent.
#[derive(Debug)]
pub(crate) enum Command {
    HandOver(oneshot::Sender<Result<Option<Leadership>, ValkeyError>>),
    Leave(oneshot::Sender<()>),
    RetryConfig,
}

/// Field names are those of the admin API.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClusterStats {
    /// Over all nodes.
    #[serde(flatten)]
    pub counts: MemberCounts,
    /// The node that leads; None: nobody does.
    pub leader: Option<String>,
    /// Whether it is this one.
    pub is_leader: bool,
    /// The highest epoch this node has accepted.
    pub epoch: Epoch,
    /// This node.
    pub local_node_id: String,
    /// How it is.
    pub local_node_status: Status,
    /// Whether Valkey answers. If not, all above is what was known last.
    pub valkey_available: bool,
    /// The pushed config that runs here; 0: none.
    pub config_version: u64,
    /// Whose part of shared limits is whose.
    pub shares: Shares,
    /// Random, and new when Valkey's data began anew.
    pub generation: String,
    /// Channels that Valkey's rights refuse to this node: what is said there is heard later, by asking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels_refused: Vec<String>,
    /// Leadership gained and lost, members' changes and the like, since the start.
    pub counters: BTreeMap<String, u64>,
}

/// What the agent knows, shared with those who ask.
pub(crate) struct Known {
    pub(crate) members: Members,
    pub(crate) leader: Option<Leadership>,
    pub(crate) is_leader: bool,
    pub(crate) epoch: Epoch,
    pub(crate) local: LocalState,
    pub(crate) config_version: u64,
    pub(crate) generation: String,
    pub(crate) counters: BTreeMap<String, u64>,
    pub(crate) shares: Shares,
    /// What else the node says of itself.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// The agent as others see it. Cheap to clone.
#[derive(Clone)]
pub struct ClusterHandle {
    pub(crate) me: Incarnation,
    pub(crate) control: ControlPlane,
    pub(crate) known: Arc<Mutex<Known>>,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl ClusterHandle {
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic happens under this lock")
    }

    /// The calls to Valkey.
    pub fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// This process.
    pub fn me(&self) -> &Incarnation {
        &self.me
    }

    /// Counts and who leads, as known here.
    pub fn stats(&self) -> ClusterStats {
        let valkey_available = !self.control.valkey().is_away();
        let known = self.known();
        let own = known.members.status_of(self.me.node());
        let ill = known.local.stalled.is_some() || known.local.last_error.is_some() || known.local.shedding;
        // The node knows of itself first hand; without Valkey, alone.
        let by_itself = if ill { Status::Degraded } else { Status::Healthy };
        let local_node_status = own.filter(|_| valkey_available).map_or(by_itself, |by_others| by_others.max(by_itself));
        ClusterStats {
            counts: known.members.counts(),
            leader: known.leader.as_ref().map(|leader| leader.incarnation.node().to_string()),
            is_leader: known.is_leader,
            epoch: known.epoch,
            local_node_id: self.me.node().to_string(),
            local_node_status,
            valkey_available,
            config_version: known.config_version,
            shares: known.shares,
            generation: known.generation.clone(),
            channels_refused: self.control.valkey().refused_channels(),
            counters: known.counters.clone(),
        }
    }

    /// Who leads, as known here.
    pub fn leader(&self) -> Option<Leadership> {
        self.known().leader.clone()
    }

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.known().is_leader
    }

    /// The nodes, as known here.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.known().members.views()
    }

    /// Whose part of shared limits is whose, by the leader's last word.
    pub fn shares(&self) -> Shares {
        self.known().shares
    }

    /// The node says this of itself, from its next heartbeat on.
    pub fn says(&self, key: &str, value: String) {
        self.known().metadata.insert(key.to_owned(), value);
    }

    /// The node says this of itself no longer, from its next heartbeat on.
    pub fn says_no_longer(&self, key: &str) {
        self.known().metadata.remove(key);
    }

    /// The version of the pushed config that runs here.
    pub fn config_version(&self) -> u64 {
        self.known().config_version
    }

    /// Asks whoever leads to let another lead, and says who that is; `None`: nobody does.
    pub async fn hand_over(&self) -> Result<Option<Leadership>, ValkeyError> {
        let (sender, receiver) = oneshot::channel();
        let gone = || ValkeyError::Unreachable("the cluster's task has ended".to_owned());
        self.commands.send(Command::HandOver(sender)).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// The node's own file has changed: a pushed config that did not go with it is tried again.
    pub fn retry_config(&self) {
        // A full lane is that of an agent that has ended.
        let _ = self.commands.try_send(Command::RetryConfig);
    }

    /// Leaves in order: gives up leadership and is no longer counted. Returns when that is done or has failed.
    pub async fn leave(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(Command::Leave(sender)).await.is_ok() {
            let _ = receiver.await;
        }
    }
}
