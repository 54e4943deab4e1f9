//! Writes that replicas must have: over a connection of their own, on which waiting keeps nobody.

use std::time::Duration;

use redis::{Value, cluster_routing::Slot};

use super::Valkey;
use crate::{reply::number, valkey_error::ValkeyError};

/// Something was written, over a connection that knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    connection: u64,
    slot: Option<Slot>,
}

impl Valkey {
    /// As [`Valkey::script`], over a connection that nothing else uses; [`Valkey::replicas_of`] says who has what it wrote.
    pub async fn script_to_replicate(&self, name: &'static str, keys: &[String], args: &[&[u8]]) -> Result<(Written, Value), ValkeyError> {
        let (connection, answer) = self.script_on(&self.replicated, name, keys, args, self.call_deadline).await?;
        Ok((Written { connection, slot: self.slot(keys) }, answer))
    }

    /// How many replicas of the server that it was written to have it, as soon as `wanted` of them do, or after `patience`.
    ///
    /// Fails also when the connection is not that of the writing: Valkey counts by connection, and all replicas have what a new one wrote.
    pub async fn replicas_of(&self, written: Written, wanted: u32, patience: Duration) -> Result<u64, ValkeyError> {
        let mut command = redis::cmd("WAIT");
        command.arg(wanted).arg(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1));
        let (connection, answer) = self.call(&self.replicated, written.slot, &command, self.call_deadline + patience).await?;
        if connection != written.connection {
            return Err(ValkeyError::Unreachable("the connection of what was written is gone".to_owned()));
        }
        Ok(u64::try_from(number(answer)?).unwrap_or(0))
    }
}
