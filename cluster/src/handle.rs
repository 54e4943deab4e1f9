//! The agent as the rest of the process sees it: what is known of the cluster, and what operators ask.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{
    boot_time::BootTime,
    control_plane::ControlPlane,
    identity::{Epoch, Incarnation, Leadership, NodeId},
    membership::{Member, MemberCounts, Members, NodeRecord, NodeView, Status, view},
    restraint::{KEY_MARK, key_differs},
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

/// What [`ClusterStats::counters`] counts, events of this node's life in the cluster: docs/cluster.md says of each what it is. One that has not
/// come yet is exported as 0.
pub const COUNTERS: [&str; 18] = [
    "nodes_joined",
    "nodes_left",
    "health_changes",
    "elected",
    "stepped_down",
    "leader_changes",
    "leader_lost",
    "rival_leaders_refused",
    "stale_effects_refused",
    "epochs_out_of_reach",
    "elections_not_replicated",
    "frozen_leases",
    "heartbeats_failed",
    "heartbeats_withheld",
    "configs_applied",
    "configs_refused",
    "configs_put_off",
    "configs_not_ours",
];

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
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_last_error: Option<String>,
    /// Whether Valkey answers. If not, all above but for this node is what was known last.
    pub valkey_available: bool,
    /// Unix milliseconds of when the nodes were as they are counted, where that is not to be known now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_unknown_since: Option<u64>,
    /// The pushed config that runs here; 0: none.
    pub config_version: u64,
    /// Whose part of shared limits is whose.
    pub shares: Shares,
    /// This node's number of partitions of the work queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_partitions: Option<u16>,
    /// The number in force for all nodes: one that has another takes no part in the queue. Not known before Valkey was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_partitions_in_force: Option<u16>,
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
    /// This node, as its last heartbeat says or would have said it.
    pub(crate) own: Option<NodeRecord>,
    pub(crate) leader: Option<Leadership>,
    pub(crate) is_leader: bool,
    pub(crate) epoch: Epoch,
    pub(crate) local: LocalState,
    pub(crate) config_version: u64,
    pub(crate) generation: String,
    pub(crate) counters: BTreeMap<String, u64>,
    pub(crate) shares: Shares,
    /// Why this node is none to the others, if it is so: its heartbeats are refused, or another process has its name.
    pub(crate) ousted: Option<String>,
    /// Why what Valkey has as the pushed config is none, if it is so.
    pub(crate) config_unusable: Option<String>,
    /// What else the node says of itself.
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Known {
    /// A heartbeat of this node was taken by data of this generation.
    pub(crate) fn taken(&mut self, generation: String) {
        (self.generation, self.ousted) = (generation, None);
    }

    /// That this node has another key than others that are there, in words for an operator.
    pub(crate) fn key_differs(&self, me: &NodeId) -> Option<String> {
        key_differs(self.metadata.get(KEY_MARK)?, &self.members.said_by_others(me, KEY_MARK))
    }

    /// What is wrong with this node, as its heartbeats say it: a cause before what comes of it.
    pub(crate) fn last_error(&self, local: &LocalState, me: &NodeId) -> Option<String> {
        let error = local.last_error.clone().or_else(|| self.config_unusable.clone()).or_else(|| self.key_differs(me));
        error.or_else(|| local.symptom.clone())
    }

    /// How this node is by what it knows first hand.
    fn by_itself(&self, me: &NodeId) -> Status {
        let is_ill = self.local.stalled.is_some() || self.local.shedding || self.last_error(&self.local, me).is_some();
        match (&self.ousted, is_ill) {
            (Some(_), _) => Status::Unhealthy,
            (None, true) => Status::Degraded,
            (None, false) => Status::Healthy,
        }
    }
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
        let (known, now) = (self.known(), BootTime::now());
        let own = known.members.status_of(self.me.node());
        let nodes_unknown_since = known.members.unknown_since(now);
        let by_itself = known.by_itself(self.me.node());
        let is_known = valkey_available && nodes_unknown_since.is_none();
        let local_node_status = own.filter(|_| is_known).map_or(by_itself, |by_others| by_others.max(by_itself));
        let counts = known.members.counts();
        let (local, partitions) = (&known.local, self.control.partitions());
        ClusterStats {
            counts: if nodes_unknown_since.is_some() { counts.of_unknown(own.map(|_| by_itself)) } else { counts },
            leader: known.leader.as_ref().map(|leader| leader.incarnation.node().to_string()),
            is_leader: known.is_leader,
            epoch: known.epoch,
            local_node_id: self.me.node().to_string(),
            local_node_status,
            local_last_error: known
                .ousted
                .clone()
                .or_else(|| local.stalled.clone())
                .or_else(|| known.last_error(local, self.me.node()))
                .or_else(|| self.valkey_is_away()),
            valkey_available,
            nodes_unknown_since,
            config_version: known.config_version,
            shares: known.shares,
            queue_partitions: partitions.map(|(own, _)| own),
            queue_partitions_in_force: partitions.and_then(|(_, in_force)| in_force),
            generation: known.generation.clone(),
            channels_refused: self.control.valkey().refused_channels(),
            counters: known.counters.clone(),
        }
    }

    /// Why Valkey does not serve this node, which says nothing of how the node is.
    fn valkey_is_away(&self) -> Option<String> {
        Some(format!("Valkey is away, and this node goes on alone: {}", self.control.valkey().outage()?))
    }

    /// Who leads, as known here.
    pub fn leader(&self) -> Option<Leadership> {
        self.known().leader.clone()
    }

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.known().is_leader
    }

    /// The nodes, as they were read last.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.known().members.views()
    }

    /// The nodes as they are to be shown: how the others are is unknown once that was read too long ago.
    pub fn nodes_now(&self) -> Vec<NodeView> {
        let known = self.known();
        let (mut nodes, unknown_since) = (known.members.views(), known.members.unknown_since(BootTime::now()));
        // A node that was never heard of knows itself.
        if let Some(own) = known.own.clone().filter(|own| !nodes.iter().any(|node| node.id == own.id)) {
            let own = Member { record: own, last_seen_ms: 0, started_at_ms: 0 };
            nodes.push(view(&own, known.by_itself(self.me.node())));
        }
        for node in nodes.iter_mut().filter(|_| unknown_since.is_some()) {
            node.unknown_since = unknown_since;
            node.status = if node.id == *self.me.node() { known.by_itself(self.me.node()) } else { Status::Unknown };
        }
        if let Some(own) = nodes.iter_mut().find(|node| unknown_since.is_some() && node.id == *self.me.node()) {
            // What it would say with its next heartbeat.
            let told = known.ousted.clone().or_else(|| known.last_error(&known.local, self.me.node()));
            own.last_error = told.or_else(|| self.valkey_is_away());
        }
        nodes
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
