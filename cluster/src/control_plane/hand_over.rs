//! Asking whoever leads to let another lead.

use std::time::Duration;

use redis::Value;

use super::ControlPlane;
use crate::{identity::Leadership, valkey_error::ValkeyError};

/// A leader that is asked to step down is asked again so often, while it has the lease.
const HAND_OVER_REPEATS: u32 = 10;
/// After so long each time.
const HAND_OVER_GAP: Duration = Duration::from_millis(250);

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

    async fn tell_hand_over(&self, leader: &Leadership) -> Result<Value, ValkeyError> {
        self.valkey.command(redis::cmd("PUBLISH").arg(self.keyspace.events()).arg(format!("handover {leader}"))).await
    }
}
