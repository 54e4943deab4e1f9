//! Nodes that are emptied: not all of them at once.

use super::ControlPlane;
use crate::{
    identity::{Incarnation, NodeId},
    reply::number,
    valkey_error::ValkeyError,
};

impl ControlPlane {
    /// This node is about to be emptied into the cluster, of which `takers` are the other nodes that take mail. False: each of these is being
    /// emptied as well, and this one is not to be. Of two that begin at the same moment one is told so.
    pub async fn begin_drain(&self, me: &Incarnation, takers: &[NodeId]) -> Result<bool, ValkeyError> {
        let keys = [self.keyspace.nodes(), self.keyspace.drains()];
        let process = me.to_string();
        let args: Vec<&str> = [me.node().as_str(), &process].into_iter().chain(takers.iter().map(NodeId::as_str)).collect();
        Ok(number(self.run("drain_begin", &keys, &args).await?)? == 1)
    }

    /// This node is not emptied after all: the others may be. What was not said is none.
    pub async fn end_drain(&self, me: &Incarnation) -> Result<(), ValkeyError> {
        self.run("drain_end", &[self.keyspace.drains()], &[me.node().as_str(), &me.to_string()]).await.map(drop)
    }
}
