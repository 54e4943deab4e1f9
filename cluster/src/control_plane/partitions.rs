//! How many partitions the work queue has, as operators see and set it.

use redis::Value;

use super::ControlPlane;
use crate::{partition_count::PARTITIONS_MAX, reply::number, valkey_error::ValkeyError};

impl ControlPlane {
    /// This node's number, and the one in force as it was heard last; `None`: this node has no queue.
    pub fn partitions(&self) -> Option<(u16, Option<u16>)> {
        self.partitions.as_ref().map(|count| (count.own(), count.in_force()))
    }

    /// The number in force, by Valkey's word; `None`: there is none, or what is none.
    pub async fn read_partitions(&self) -> Result<Option<u16>, ValkeyError> {
        let text = match self.valkey.command(redis::cmd("GET").arg(self.keyspace.partitions())).await? {
            Value::BulkString(text) => String::from_utf8(text).ok(),
            _ => None,
        };
        // As the scripts take it: digits alone.
        let digits = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        Ok(digits.and_then(|text| text.parse().ok()).filter(|number| (1..=PARTITIONS_MAX).contains(number)))
    }

    /// Puts another number in force, in the place of the one that [`ControlPlane::read_partitions`] found. False: that has changed meanwhile.
    pub async fn set_partitions(&self, before: Option<u16>, partitions: u16) -> Result<bool, ValkeyError> {
        let args = [before.unwrap_or(0).to_string(), partitions.to_string()];
        Ok(number(self.run("partitions_set", &[self.keyspace.partitions()], &args.each_ref().map(String::as_str)).await?)? == 1)
    }
}
