//! Nodes and their counts as they are shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ConfigRefused, Member, NodeRecord, Status};
use crate::identity::{Epoch, NodeId, Role};

/// A node as shown to people and programs; field names are those of the admin API.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Name.
    pub id: NodeId,
    /// Where it is reached.
    pub address: String,
    /// What it may become.
    pub role: Role,
    /// How it is.
    pub status: Status,
    /// Unix milliseconds of when all here was so, where that is not to be known now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_since: Option<u64>,
    /// Unix milliseconds of the last heartbeat.
    pub last_seen: u64,
    /// Unix milliseconds of the first one of this process.
    pub started_at: u64,
    /// Program version.
    pub version: String,
    /// Pushed config it runs.
    pub config_version: u64,
    /// Why it refused a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_refused: Option<ConfigRefused>,
    /// Highest epoch accepted.
    pub epoch: Epoch,
    /// SMTP sessions.
    pub connections: u64,
    /// Messages queued there.
    pub queue_depth: u64,
    /// 0.0 to 1.0.
    pub load: f64,
    /// What is wrong, by its own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What operators attached.
    pub metadata: BTreeMap<String, String>,
}

/// Counts over all nodes; field names are those of the admin API.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MemberCounts {
    /// Nodes that have not left.
    pub total_nodes: u64,
    /// Of these, healthy.
    pub healthy_nodes: u64,
    /// Degraded.
    pub degraded_nodes: u64,
    /// Unhealthy or offline.
    pub unhealthy_nodes: u64,
    /// Of which nobody can say now.
    #[serde(default)]
    pub unknown_nodes: u64,
    /// SMTP sessions of the nodes that are not offline.
    pub total_connections: u64,
    /// Messages queued on all nodes.
    pub total_queue_depth: u64,
    /// Mean load of the nodes that are not offline.
    pub avg_load: f64,
}

impl MemberCounts {
    /// The same once nothing is known of the nodes any more, but of the own one, where it is among them.
    #[must_use]
    pub fn of_unknown(self, own: Option<Status>) -> MemberCounts {
        let is = |status: &[Status]| u64::from(own.is_some_and(|own| status.contains(&own)));
        let (healthy_nodes, degraded_nodes) = (is(&[Status::Healthy]), is(&[Status::Degraded]));
        let unhealthy_nodes = is(&[Status::Unhealthy, Status::Offline]);
        let unknown_nodes = self.total_nodes.saturating_sub(healthy_nodes + degraded_nodes + unhealthy_nodes);
        MemberCounts { healthy_nodes, degraded_nodes, unhealthy_nodes, unknown_nodes, ..self }
    }
}

pub(crate) fn view(member: &Member, status: Status) -> NodeView {
    let NodeRecord {
        id,
        address,
        role,
        version,
        epoch,
        config_version,
        config_refused,
        connections,
        queue_depth,
        load,
        last_error,
        metadata,
        ..
    } = member.record.clone();
    NodeView {
        id,
        address,
        role,
        status,
        unknown_since: None,
        last_seen: member.last_seen_ms,
        started_at: member.started_at_ms,
        version,
        config_version,
        config_refused,
        epoch,
        connections,
        queue_depth,
        load,
        last_error,
        metadata,
    }
}
