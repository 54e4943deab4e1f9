//! The running engine's side of `ringpost cluster`.

use std::{collections::BTreeMap, time::Duration};

use ringpost_cluster::{
    control_plane::ConfigVersion, membership::NodeView, valkey::Valkey, valkey_error::ValkeyError, work_queue::QueueError,
};
use ringpost_config::CONFIG_POLL;
use serde_json::Value;

use crate::{
    cluster::ClusterNode,
    cluster_queue_server,
    cluster_wire::{ClusterCall, ConfigText, HandOverView, LeaderView, PublishedView, RunningConfigText},
    control_wire::NotDone,
    partitions_server,
};

/// Counts of the work queue that tell of damage in Valkey.
const DAMAGE: [&str; 3] = ["damaged", "quarantined", "counters_reset"];

/// A leader that is dead is followed once its lease has ended, and one that no other follows leads again after as long: within this more.
const SUCCESSOR_BEYOND_LEASE: Duration = Duration::from_secs(3);

/// Answers a call: one value for each line. Err is a sentence for the operator.
pub async fn answer(call: ClusterCall, cluster: Option<&ClusterNode>) -> Result<Vec<Value>, NotDone> {
    let cluster =
        cluster.ok_or_else(|| NotDone::Config("this node is in no cluster: set cluster.enabled = true in its config".to_owned()))?;
    let control = cluster.handle.control();
    let failed = |error: ValkeyError| not_answered(control.valkey(), &error);
    let failed_queue = |error: QueueError| match error {
        QueueError::Valkey(error) => not_answered(control.valkey(), &error),
        QueueError::Item(error) => NotDone::Refused(error.to_string()),
    };
    let one = |value: Value| Ok(vec![value]);
    match call {
        ClusterCall::Status {} => {
            let mut status = json(&cluster.handle.stats());
            // What nobody has written, or Valkey does not tell now, is left out.
            if let Ok(Some(text)) = control.read_statistics().await
                && let Ok(Value::Object(mut queue)) = serde_json::from_str(&text)
            {
                // Of the counts only what tells of damage.
                if let Some(Value::Object(mut damage)) = queue.remove("counters") {
                    damage.retain(|name, count| DAMAGE.contains(&name.as_str()) && *count != 0);
                    if !damage.is_empty() {
                        queue.insert("damage".to_owned(), Value::Object(damage));
                    }
                }
                status["queue"] = Value::Object(queue);
            }
            if let Ok(rollout) = control.read_rollout().await {
                status["rollout"] = json(&versions(&rollout));
            }
            one(status)
        }
        ClusterCall::Nodes {} => Ok(cluster.handle.nodes_now().iter().map(json).collect()),
        ClusterCall::Leader {} => {
            let stats = cluster.handle.stats();
            one(json(&LeaderView { leader: stats.leader, is_leader: stats.is_leader, epoch: stats.epoch.0 }))
        }
        ClusterCall::HandOver {} => {
            let asked = cluster.handle.hand_over().await.map_err(failed)?;
            let asked = asked.ok_or("nobody leads: there is nobody to ask; the next election takes about cluster.leader_ttl")?;
            let patience = cluster.leader_ttl + SUCCESSOR_BEYOND_LEASE;
            let next = control.successor(&asked, cluster.replicas_required, cluster.leader_ttl, patience).await.map_err(failed)?;
            one(json(&HandOverView::of(&asked, next)?))
        }
        ClusterCall::Queue { name, ask } => cluster_queue_server::answer(&cluster.queue, name.as_deref(), ask, failed_queue).await,
        ClusterCall::QueuePartitions { number, force } => partitions_server::set(cluster, number, force, failed, failed_queue).await,
        ClusterCall::ConfigPush { text, author, dry_run } => {
            // Refused here, it is refused whole and nobody else hears of it.
            let warnings = cluster.check_push(&text)?;
            if dry_run {
                return one(json(&PublishedView::new(cluster.handle.config_version(), "checked").with(warnings)));
            }
            let published = control.publish_config(&text, &author, 0, cluster.handle.config_version(), None).await.map_err(failed)?;
            one(json(&PublishedView::of(published)?.with(warnings)))
        }
        ClusterCall::ConfigHistory {} => {
            let (current, history) = control.config_history().await.map_err(failed)?;
            // The leader's account may be missing: the versions are there without it.
            let rollout = control.read_rollout().await.unwrap_or_default();
            let (rollout, nodes) = (versions(&rollout), cluster.handle.nodes_now());
            let line = |config: &ConfigVersion| {
                let mut value = json(config);
                value["nodes"] = json(rollout.get(&config.version).map_or(&[][..], Vec::as_slice));
                value["current"] = Value::Bool(config.version == current);
                let waiting = waiting_for(config.version, &nodes);
                if !waiting.is_empty() {
                    value["waiting"] = Value::Array(waiting);
                }
                value
            };
            Ok(history.iter().map(line).collect())
        }
        ClusterCall::ConfigShow { version } => match control.read_config(version, "").await {
            Ok(found) => {
                let (config, text) = found.config().ok_or("there is no such version")?;
                one(json(&ConfigText { config, text }))
            }
            Err(error) => match (failed(error), cluster.handle.config_version()) {
                // What runs here is on this node's disk: an operator may have to know it just while Valkey is away.
                (NotDone::Unavailable(unanswered), running @ 1..) if version.is_none_or(|version| version == running) => {
                    one(json(&RunningConfigText { version: running, text: cluster.running_push(), unanswered }))
                }
                (reason, _) => Err(reason),
            },
        },
        ClusterCall::ConfigRollback { version, author } => {
            let (current, history) = control.config_history().await.map_err(failed)?;
            let target = rollback_target(current, &history, version)?;
            let (found, text) =
                control.read_config(Some(target), "").await.map_err(failed)?.config().ok_or("that version is not kept any more")?;
            let warnings =
                cluster.check_push(&text).map_err(|why| format!("version {target} cannot run here: {why}; name another version"))?;
            let floor = cluster.handle.config_version();
            let published = control.publish_config(&text, &author, found.version, floor, Some(current)).await.map_err(failed)?;
            one(json(&PublishedView::of(published)?.with(warnings)))
        }
        ClusterCall::ConfigPoll { interval_ms } => {
            let interval = Duration::from_millis(interval_ms);
            if !CONFIG_POLL.contains(&interval) {
                return Err(format!("interval_ms: {interval_ms} is not within the limits of cluster.config_poll").into());
            }
            control.set_config_poll(interval).await.map_err(failed)?;
            one(serde_json::json!({ "interval_ms": interval_ms }))
        }
    }
}

/// A call that Valkey did not answer, or refused, by the place where it is looked for.
fn not_answered(valkey: &Valkey, error: &ValkeyError) -> NotDone {
    let reason = format!("{}: {error}", valkey.target());
    if error.is_away() { NotDone::Unavailable(reason) } else { NotDone::Refused(reason) }
}

/// The nodes that cannot take a version now and try again, with why.
fn waiting_for(version: u64, nodes: &[NodeView]) -> Vec<Value> {
    let waiting = |node: &NodeView| {
        let refused = node.config_refused.as_ref().filter(|refused| refused.waits && refused.version == version)?;
        Some(serde_json::json!({ "node": node.id, "reason": refused.reason }))
    };
    nodes.iter().filter_map(waiting).collect()
}

/// The nodes that run each version, by the leader's account.
fn versions(rollout: &BTreeMap<String, u64>) -> BTreeMap<u64, Vec<&str>> {
    let mut versions: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for (node, version) in rollout {
        versions.entry(*version).or_default().push(node);
    }
    versions
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> Value {
    serde_json::to_value(value).expect("plain data")
}

/// The version to go back to. Without a number: the text that was in force when the current one was pushed; rolling back twice goes back
/// two. What was rolled back is no text to come back to.
fn rollback_target(current: u64, history: &[ConfigVersion], wanted: Option<u64>) -> Result<u64, String> {
    if current == 0 {
        return Err("no config was ever pushed".to_owned());
    }
    if let Some(wanted) = wanted {
        return history
            .iter()
            .find(|config| config.version == wanted)
            .map(|config| config.version)
            .ok_or_else(|| format!("version {wanted} is not kept"));
    }
    let now = history.iter().find(|config| config.version == current).ok_or("the current version is not kept")?;
    let mut at = now;
    while at.hash == now.hash {
        let base = pushed_as(at, history);
        let before = history.iter().filter(|config| config.version < base).max_by_key(|config| config.version);
        at = before.ok_or_else(|| nothing_before(current, base))?;
    }
    Ok(at.version)
}

/// Why there is no text to go back to from `current`, which is that of `base`, and what to do instead.
fn nothing_before(current: u64, base: u64) -> String {
    let same = if current == base { String::new() } else { format!(" (that of version {base})") };
    let why = if base == 1 { "is the first that was pushed" } else { "is the earliest that is kept" };
    format!(
        "the text of version {current}{same} {why}: there is none before it to go back to. Push the text that is wanted; one without any section, \
         as an empty file, gives all of them back to the nodes' own files"
    )
}

/// The version that was pushed and whose text `config` is again, through all roll-backs.
fn pushed_as(config: &ConfigVersion, history: &[ConfigVersion]) -> u64 {
    // A roll-back leads to an earlier version; what says otherwise is damage.
    let earlier = |config: &ConfigVersion| Some(config.of).filter(|of| (1..config.version).contains(of));
    let mut version = config.version;
    let mut at = Some(config);
    while let Some(of) = at.and_then(earlier) {
        version = of;
        at = history.iter().find(|config| config.version == of);
    }
    version
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(version: u64, hash: &str, of: u64) -> ConfigVersion {
        ConfigVersion { version, hash: hash.to_owned(), author: String::new(), at: 0, of }
    }

    #[test]
    fn rolling_back_twice_goes_back_two() {
        let mut history = vec![version(3, "c", 0), version(2, "b", 0), version(1, "a", 0)];
        assert_eq!(rollback_target(3, &history, None), Ok(2));
        history.insert(0, version(4, "b", 2));
        assert_eq!(rollback_target(4, &history, None), Ok(1));
        history.insert(0, version(5, "a", 1));
        let why = rollback_target(5, &history, None).unwrap_err();
        assert!(why.starts_with("the text of version 5 (that of version 1) is the first that was pushed: "), "{why}");
        assert_eq!(rollback_target(5, &history, Some(3)), Ok(3));
        assert!(rollback_target(5, &history, Some(9)).is_err());
        assert!(rollback_target(0, &[], None).is_err());
    }

    /// "there is no earlier version", and nothing of what could be done.
    #[test]
    fn rolling_back_the_first_push_says_that_it_is_the_first_and_what_to_do() {
        let why = rollback_target(1, &[version(1, "a", 0)], None).unwrap_err();
        assert!(why.starts_with("the text of version 1 is the first that was pushed: "), "{why}");
        assert!(why.contains("an empty file"), "{why}");
        let why = rollback_target(40, &[version(40, "b", 0)], None).unwrap_err();
        assert!(why.starts_with("the text of version 40 is the earliest that is kept: "), "{why}");
    }

    /// A bad version came back: pushed, rolled back, and taken for the text before the next push.
    #[test]
    fn rolling_back_never_leads_to_what_was_rolled_back() {
        let mut history = vec![version(4, "c", 0), version(3, "a", 1), version(2, "b", 0), version(1, "a", 0)];
        assert_eq!(rollback_target(4, &history, None), Ok(3));
        history.insert(0, version(5, "a", 3));
        assert!(rollback_target(5, &history, None).is_err(), "before a there was nothing");
        // With a text before a, that comes next.
        for config in &mut history {
            (config.version, config.of) = (config.version + 1, if config.of > 0 { config.of + 1 } else { 0 });
        }
        history.push(version(1, "z", 0));
        assert_eq!(rollback_target(5, &history, None), Ok(4));
        assert_eq!(rollback_target(6, &history, None), Ok(1));
        history.insert(0, version(7, "z", 1));
        assert!(rollback_target(7, &history, None).is_err());
        // What an asked-for version followed is where it goes back to.
        history.insert(0, version(8, "b", 3));
        assert_eq!(rollback_target(8, &history, None), Ok(2));
    }

    #[test]
    fn rolling_back_ends_with_what_is_kept_and_with_damage() {
        let kept = [version(9, "c", 0), version(8, "a", 2)];
        assert_eq!(rollback_target(9, &kept, None), Ok(8), "its text is kept under this number");
        assert!(rollback_target(8, &kept, None).is_err());
        let damaged = [version(3, "b", 3), version(2, "a", 9), version(1, "a", 0)];
        assert_eq!(rollback_target(3, &damaged, None), Ok(2));
    }
}
