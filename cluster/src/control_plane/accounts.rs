//! What the leader writes for all, each fenced by its epoch, and what is read of it.

use std::collections::BTreeMap;

use redis::Value;

use super::{ControlPlane, fenced};
use crate::{
    identity::{Epoch, Leadership},
    shares::{Division, Shares},
    valkey_error::ValkeyError,
};

impl ControlPlane {
    /// The leader writes its word for the nodes. Err(epoch): another leads.
    pub async fn write_plan(&self, epoch: Epoch, text: &str) -> Result<Result<u64, Epoch>, ValkeyError> {
        fenced(self.run("leader_write", &[self.keyspace.epoch(), self.keyspace.plan()], &[&epoch.to_string(), text]).await?)
    }

    /// The leader writes which node runs which config. Err(epoch): another leads.
    pub async fn write_rollout(&self, epoch: Epoch, text: &str) -> Result<Result<u64, Epoch>, ValkeyError> {
        fenced(self.run("leader_write", &[self.keyspace.epoch(), self.keyspace.rollout()], &[&epoch.to_string(), text]).await?)
    }

    /// Which node runs which config, by the leader's last account; empty where there is none.
    pub async fn read_rollout(&self) -> Result<BTreeMap<String, u64>, ValkeyError> {
        Ok(self.read_account(self.keyspace.rollout()).await?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// The leader writes its statistics of the cluster. Err(epoch): another leads.
    pub async fn write_statistics(&self, epoch: Epoch, text: &str) -> Result<Result<u64, Epoch>, ValkeyError> {
        fenced(self.run("leader_write", &[self.keyspace.epoch(), self.keyspace.statistics()], &[&epoch.to_string(), text]).await?)
    }

    /// The leader's last statistics, as it wrote them.
    pub async fn read_statistics(&self) -> Result<Option<String>, ValkeyError> {
        self.read_account(self.keyspace.statistics()).await
    }

    async fn read_account(&self, key: String) -> Result<Option<String>, ValkeyError> {
        match self.valkey.command(redis::cmd("GET").arg(key)).await? {
            Value::BulkString(text) => Ok(String::from_utf8(text).ok()),
            _ => Ok(None),
        }
    }

    /// The leader writes whose part of shared limits is whose. Err(epoch): another leads.
    pub async fn write_shares(&self, by: &Leadership, shares: Shares) -> Result<Result<u64, Epoch>, ValkeyError> {
        let keys = [self.keyspace.epoch(), self.keyspace.shares()];
        let division = Division { by: by.clone(), shares };
        fenced(self.run("leader_write", &keys, &[&by.epoch.to_string(), &division.to_string()]).await?)
    }
}
