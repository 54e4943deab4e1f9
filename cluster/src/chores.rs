//! What the leader alone does for all: idempotent, fenced, and nothing that mail needs (L10).

use std::{collections::BTreeMap, time::Duration};

use crate::{
    control_plane::ControlPlane,
    identity::{Epoch, Leadership},
    shares::Shares,
    valkey_error::ValkeyError,
};

/// One round of them.
#[derive(Clone, Debug)]
pub struct Chores {
    /// The leader's; also its word for the nodes that it leads.
    pub leadership: Leadership,
    /// Which node runs which pushed config.
    pub rollout: BTreeMap<String, u64>,
    /// Whose part of shared limits is whose.
    pub shares: Shares,
    /// Nodes not heard of for so long are forgotten.
    pub forgotten_after: Duration,
}

impl Chores {
    /// Does them in order. Err(epoch): another leads, and what was left is its.
    pub async fn run(&self, control: &ControlPlane) -> Result<Result<u64, Epoch>, ValkeyError> {
        let epoch = self.leadership.epoch;
        let rollout = serde_json::to_string(&self.rollout).expect("names and numbers");
        if let Err(epoch) = control.write_rollout(epoch, &rollout).await? {
            return Ok(Err(epoch));
        }
        if let Err(epoch) = control.write_plan(epoch, &self.leadership.to_string()).await? {
            return Ok(Err(epoch));
        }
        if let Err(epoch) = control.write_shares(&self.leadership, self.shares).await? {
            return Ok(Err(epoch));
        }
        control.prune_members(epoch, self.forgotten_after).await
    }
}
