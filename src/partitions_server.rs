//! The running engine's side of `ringpost cluster queue partitions`: another number of partitions is put in force once nobody has mail under the old
//! one.

use ringpost_cluster::{membership::Member, valkey_error::ValkeyError, work_queue::QueueError};
use serde_json::{Value, json};

use crate::{cluster::ClusterNode, cluster::QUEUE_PARTITIONS, control_wire::NotDone};

/// Puts `number` in force. Refuses, with a sentence for the operator, where a node has another number, which would go on with it until it hears, and
/// where the queue has mail under the number before, which nobody would find there again; `force` leaves that behind. Refuses as well where a node does not
/// say its number, but for `force`.
pub async fn set(
    cluster: &ClusterNode,
    number: u16,
    force: bool,
    failed: impl Fn(ValkeyError) -> NotDone,
    failed_queue: impl Fn(QueueError) -> NotDone,
) -> Result<Vec<Value>, NotDone> {
    let control = cluster.handle.control();
    let before = control.read_partitions().await.map_err(&failed)?;
    let answer = |result: &str| Ok(vec![json!({ "queue_partitions": number, "before": before, "result": result })]);
    if before == Some(number) {
        return answer("unchanged");
    }
    let (now_ms, members) = control.members().await.map_err(&failed)?;
    let node_ttl_ms = u64::try_from(cluster.node_ttl.as_millis()).unwrap_or(u64::MAX);
    let others = with_another(&members, now_ms, node_ttl_ms, number);
    if !others.is_empty() {
        return Err(format!(
            "{}: set cluster.queue_partitions = {number} in the file of each and restart it, one after another, then repeat this call",
            others.join(", ")
        )
        .into());
    }
    let silent = silent(&members, now_ms, node_ttl_ms);
    if !silent.is_empty() && !force {
        return Err(format!(
            "{}: of a version that does not say which number it has, which may be another: start each with this version and cluster.queue_partitions = \
             {number}, one after another, then repeat this call; with --force it is done without them, and what the queue has is left behind as well",
            silent.join(", ")
        )
        .into());
    }
    if let (Some(before), false) = (before, force) {
        let stats = cluster.queue.over(before).stats().await.map_err(failed_queue)?;
        if let Some(&partition) = stats.unanswered.first() {
            return Err(NotDone::Unavailable(format!("partition {partition} of the queue does not answer: what it has is not known")));
        }
        let left = stats.total + stats.unheard;
        if left > 0 {
            return Err(format!(
                "the queue has {left} items that were put into it over {before} partitions, and nobody would find them there again: start their nodes \
                 with cluster.queue_partitions = {before} and delivery.mode = \"local\" until `ringpost cluster queue stats` counts nothing; mail of a \
                 node that does not come back is delivered by any node started with that number, delivery.mode = \"shared\" and deliver = true; --force \
                 leaves all behind: mail of a node that is there is delivered twice at most, that of a node that is gone is not delivered"
            )
            .into());
        }
    }
    if control.set_partitions(before, number).await.map_err(&failed)? {
        answer("set")
    } else {
        Err("another number came into force meanwhile: look at `ringpost cluster status` and repeat the call".into())
    }
}

/// Whether a node may be at work, by its last heartbeat.
fn is_there(member: &Member, now_ms: u64, node_ttl_ms: u64) -> bool {
    now_ms.abs_diff(member.last_seen_ms) < node_ttl_ms
}

/// Nodes that are there and have another number.
fn with_another(members: &[Member], now_ms: u64, node_ttl_ms: u64, number: u16) -> Vec<String> {
    let number = number.to_string();
    let differs = |member: &Member| {
        let own = member.record.metadata.get(QUEUE_PARTITIONS)?;
        (*own != number).then(|| format!("{} has {own}", member.record.id))
    };
    members.iter().filter(|member| is_there(member, now_ms, node_ttl_ms)).filter_map(differs).collect()
}

/// Nodes that are there and do not say their number. Versions between compare it all the same, and would take no part in the queue with another.
fn silent(members: &[Member], now_ms: u64, node_ttl_ms: u64) -> Vec<&str> {
    let is_silent = |member: &&Member| is_there(member, now_ms, node_ttl_ms) && !member.record.metadata.contains_key(QUEUE_PARTITIONS);
    members.iter().filter(is_silent).map(|member| member.record.id.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use ringpost_cluster::{
        identity::{Incarnation, Role},
        membership::NodeRecord,
    };

    use super::*;

    fn member(id: &str, last_seen_ms: u64, number: Option<&str>) -> Member {
        let mut record = NodeRecord::new(&Incarnation::new(id.parse().unwrap(), 1), Role::Worker);
        record.metadata.extend(number.map(|number| (QUEUE_PARTITIONS.to_owned(), number.to_owned())));
        Member { record, last_seen_ms, started_at_ms: 0 }
    }

    /// A node of a version that compares its number and does not say it was passed over: the new number came into force, and the node took no part in the
    /// queue from then on.
    #[test]
    fn who_is_there_and_has_another_number_or_says_none_is_named() {
        let members = [
            member("n1", 10_000, Some("8")),
            member("n2", 10_000, Some("4")),
            member("n3", 9_000, None),
            // Gone.
            member("n4", 4_000, Some("4")),
            member("n5", 4_000, None),
            // By a clock that was stepped back since.
            member("n6", 11_000, None),
        ];
        assert_eq!(with_another(&members, 10_000, 5_000, 8), ["n2 has 4"]);
        assert_eq!(silent(&members, 10_000, 5_000), ["n3", "n6"]);
    }
}
