//! Heartbeats: what a node says of itself, and what it hears.

use std::time::Duration;

use super::{CONFIG_POLL_MAX, CONFIG_POLL_MIN, ControlPlane};
use crate::{
    boot_time::BootTime,
    identity::{Epoch, Incarnation, Leadership},
    membership::{NodeRecord, RECORD_BYTES_MAX},
    reply::Reply,
    shares::Division,
    valkey_error::ValkeyError,
};

/// The answer to a heartbeat.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// Milliseconds of the server's clock.
    pub now_ms: u64,
    /// The highest epoch that Valkey knows.
    pub epoch: Epoch,
    /// Who holds the lease.
    pub leader: Option<Leadership>,
    /// Changes when Valkey's data began anew.
    pub generation: String,
    /// The current config; 0: none.
    pub config_version: u64,
    /// Its hash.
    pub config_hash: String,
    /// How often nodes ask for a config; None: as they were configured.
    pub poll: Option<Duration>,
    /// The leader's word, as it wrote it.
    pub plan: String,
    /// Whose part of shared limits is whose; None: no leader has said so yet.
    pub shares: Option<Division>,
}

/// What a heartbeat is answered with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heartbeat {
    /// Taken.
    Taken(Box<Pulse>),
    /// Another process uses this node's id.
    Displaced(String),
}

impl ControlPlane {
    /// This node lives. Another process of the node goes before this one until it was not heard of for `rival_ttl`; at zero this one takes
    /// the id over.
    pub async fn heartbeat(
        &self,
        me: &Incarnation,
        floor: Epoch,
        record: &NodeRecord,
        rival_ttl: Duration,
    ) -> Result<Heartbeat, ValkeyError> {
        let k = &self.keyspace;
        let keys = [k.members(), k.nodes(), k.leader(), k.epoch(), k.generation(), k.configs(), k.plan(), k.shares(), k.partitions()];
        let json = serde_json::to_string(record).expect("a record is plain data");
        if json.len() > RECORD_BYTES_MAX {
            return Err(ValkeyError::Malformed("the own record is too long"));
        }
        let rival_ttl_ms = rival_ttl.as_millis().to_string();
        let proposed = self.partitions.as_ref().map_or(0, |count| count.proposed(BootTime::now())).to_string();
        let args = [me.node().as_str(), &me.to_string(), &floor.to_string(), &json, &rival_ttl_ms, &self.random, &k.events(), &proposed];
        let mut reply = Reply::new(self.run("heartbeat", &keys, &args).await?)?;
        if reply.number()? == 0 {
            return Ok(Heartbeat::Displaced(reply.text()?));
        }
        let (now_ms, epoch, leader, generation) = (reply.count()?, reply.epoch()?, reply.text()?, reply.text()?);
        // What is no leadership is nobody's; it ends with its time.
        let leader = leader.parse().ok();
        let (config_version, config_hash, poll_ms, plan) = (reply.count()?, reply.text()?, reply.count()?, reply.text()?);
        // Whoever can write to Valkey makes nodes ask neither without pause nor never.
        let poll = (poll_ms > 0).then(|| Duration::from_millis(poll_ms).clamp(CONFIG_POLL_MIN, CONFIG_POLL_MAX));
        let shares = reply.text()?.parse().ok();
        let partitions = reply.count()?;
        if let Some(count) = &self.partitions {
            count.heard(partitions, BootTime::now());
        }
        self.announced(&mut reply)?;
        Ok(Heartbeat::Taken(Box::new(Pulse { now_ms, epoch, leader, generation, config_version, config_hash, poll, plan, shares })))
    }

    /// This node leaves in order.
    pub async fn leave(&self, me: &Incarnation) -> Result<(), ValkeyError> {
        let keys = [self.keyspace.members(), self.keyspace.nodes()];
        self.was_announced(self.run("leave", &keys, &[me.node().as_str(), &me.to_string(), &self.keyspace.events()]).await?)
    }
}
