//! Q14: a server that throws keys away when memory is short would throw away leases and epochs, so it is refused.

use redis::{
    Cmd, RedisResult, Value,
    aio::ConnectionLike,
    cluster_async::ClusterConnection,
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr},
};
use tokio::{task::JoinSet, time::timeout};
use tracing::warn;

use super::{
    CONNECT_DEADLINE, Valkey,
    connection::{Connection, Metered, SERVER_CONNECT_DEADLINE},
};
use crate::{reply::Reply, valkey_error::ValkeyError};

impl Valkey {
    /// Looks whether the server that calls go to now would still be connected to: its policy can be changed while it runs. If not its connections are given
    /// up, and none is made before that is mended. Without a connection there is nothing to look at.
    pub async fn check_policy(&self) {
        let held = self.small.held.lock().await.connection.clone();
        let Some((_, mut connection)) = held else { return };
        if let Ok(Err(ValkeyError::Misconfigured(reason))) = timeout(CONNECT_DEADLINE, refuse(&mut connection)).await {
            warn!(valkey = %self.target, reason, "Valkey's settings were changed, and this node uses it no longer");
            for line in self.lines() {
                line.held.lock().await.connection = None;
            }
        }
    }
}

/// Asks the server, or each primary of a cluster. One that does not answer now is not asked again before the next connection: the others serve.
pub(super) async fn refuse(connection: &mut Connection) -> Result<(), ValkeyError> {
    match connection {
        Connection::One(server) => judge(server.req_packed_command(&memory()).await),
        Connection::Cluster(cluster) => {
            let mut asked = JoinSet::new();
            for slot in a_slot_of_each(cluster).await? {
                let mut cluster = cluster.clone();
                asked.spawn(async move {
                    let primary = SingleNodeRoutingInfo::SpecificNode(Route::with_slot(slot, SlotAddr::Master));
                    timeout(SERVER_CONNECT_DEADLINE, cluster.route_command(memory(), RoutingInfo::SingleNode(primary))).await
                });
            }
            while let Some(Ok(answer)) = asked.join_next().await {
                if let Ok(Err(error @ ValkeyError::Misconfigured(_))) = answer.map(judge) {
                    return Err(error);
                }
            }
            Ok(())
        }
    }
}

fn memory() -> Cmd {
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    command
}

/// A slot of each server that has some.
async fn a_slot_of_each(cluster: &mut ClusterConnection<Metered>) -> Result<Vec<Slot>, ValkeyError> {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    let answer = cluster.route_command(command, RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random)).await;
    let mut ranges = Reply::new(answer.map_err(|error| ValkeyError::of_client(&error))?)?;
    let (mut servers, mut slots) = (Vec::new(), Vec::new());
    while !ranges.is_empty() {
        let mut range = ranges.list()?;
        let (first, _last) = (range.count()?, range.count()?);
        // A range without a server has lost it.
        if range.is_empty() {
            continue;
        }
        let mut server = range.list()?;
        let server = (server.value()?, server.count()?);
        if !servers.contains(&server) {
            servers.push(server);
            slots.extend(u16::try_from(first).ok().and_then(Slot::new));
        }
    }
    Ok(slots)
}

/// By what a server says of its memory.
fn judge(answer: RedisResult<Value>) -> Result<(), ValkeyError> {
    let text = match answer.map_err(|error| ValkeyError::of_client(&error))? {
        Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Value::VerbatimString { text, .. } => text,
        Value::ServerError(error) => {
            return Err(ValkeyError::of_reply(error.code(), format!("{} {}", error.code(), error.details().unwrap_or_default())));
        }
        // A server that tells nothing about its memory is taken at its word.
        _ => return Ok(()),
    };
    let policy = text.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).unwrap_or("noeviction");
    if policy == "noeviction" {
        return Ok(());
    }
    Err(ValkeyError::Misconfigured(format!(
        "its maxmemory-policy is {policy}: leases and epochs could vanish; set maxmemory-policy noeviction"
    )))
}
