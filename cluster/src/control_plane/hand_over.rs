//! Asking whoever leads to let another lead.

use std::time::Duration;

use redis::Value;

use super::{ControlPlane, REPLICATION_TTL_PARTS};
use crate::{boot_time::BootTime, identity::Leadership, valkey::CALL_DEADLINE, valkey_error::ValkeyError};

/// A leader that is asked to step down is asked again so often, while it has the lease.
const HAND_OVER_REPEATS: u32 = 10;
/// After so long each time.
const HAND_OVER_GAP: Duration = Duration::from_millis(250);
/// How often it is looked who follows.
const SUCCESSOR_LOOK: Duration = Duration::from_millis(50);
/// Beside the wait for replicas an election that fails makes a call to get the lease, two for its replicas and one to give it back.
const CALLS_OF_ELECTION: Duration = CALL_DEADLINE.saturating_mul(4);

impl ControlPlane {
    /// Who has the lease.
    pub(crate) async fn holder(&self) -> Result<Option<Leadership>, ValkeyError> {
        let leader = match self.valkey.command(redis::cmd("GET").arg(self.keyspace.leader())).await? {
            Value::Nil => return Ok(None),
            Value::BulkString(text) => String::from_utf8(text).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        leader.ok_or(ValkeyError::Malformed("a leader")).map(Some)
    }

    /// Asks whoever leads to step down; `None`: nobody does.
    pub async fn ask_hand_over(&self) -> Result<Option<Leadership>, ValkeyError> {
        let leader = self.holder().await?;
        if let Some(leader) = &leader {
            self.tell_hand_over(leader).await?;
        }
        Ok(leader)
    }

    /// Asks this leader again and again while it has the lease, for some seconds: right behind a failover it listens to nobody for a moment.
    pub async fn repeat_hand_over(&self, leader: &Leadership) {
        for _ in 0..HAND_OVER_REPEATS {
            tokio::time::sleep(HAND_OVER_GAP).await;
            match self.holder().await {
                Ok(Some(holder)) if holder == *leader => drop(self.tell_hand_over(leader).await),
                Ok(_) => return,
                Err(_) => {}
            }
        }
    }

    /// Waits until somebody has the lease by another election than that of `before`, for `patience` at most. Returns who has it then: `before` itself, who
    /// leads on; the same node by a later election; another node; or `None`, nobody. Fails where Valkey does not answer at the end.
    ///
    /// Where `replicas` above 0 must have the lease, who has it is not elected yet, and gives it back when they do not get it within a part of `ttl`: who
    /// has it for longer counts.
    pub async fn successor(
        &self,
        before: &Leadership,
        replicas: u32,
        ttl: Duration,
        patience: Duration,
    ) -> Result<Option<Leadership>, ValkeyError> {
        let until = BootTime::now() + patience;
        let to_be_elected = if replicas == 0 { Duration::ZERO } else { ttl / REPLICATION_TTL_PARTS + CALLS_OF_ELECTION };
        let mut seen: Option<(Leadership, BootTime)> = None;
        loop {
            let now = BootTime::now();
            match self.holder().await {
                Ok(Some(holder)) if holder != *before => {
                    let since = seen.take().filter(|(candidate, _)| *candidate == holder).map_or(now, |(_, since)| since);
                    if BootTime::now().since(since) >= to_be_elected {
                        return Ok(Some(holder));
                    }
                    if now >= until {
                        return Ok(None);
                    }
                    seen = Some((holder, since));
                    tokio::time::sleep(SUCCESSOR_LOOK).await;
                }
                found if now >= until => return found,
                _ => tokio::time::sleep(SUCCESSOR_LOOK).await,
            }
        }
    }

    async fn tell_hand_over(&self, leader: &Leadership) -> Result<Value, ValkeyError> {
        self.valkey.command(redis::cmd("PUBLISH").arg(self.keyspace.events()).arg(format!("handover {leader}"))).await
    }
}
