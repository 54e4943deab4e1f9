//! What `/api/queue/stats` answers: this node's own mail, and the items of the queue that all nodes share.

use ringpost_cluster::work_queue::QueueStats;
use serde::Serialize;
use serde_json::{Value, json};

/// Recipients in this node's own queue, of mail that it accepted or took over. What it has offered to others is among the pending.
#[derive(Serialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct OwnQueue {
    /// They wait for a time, for others or for their turn.
    pub pending: u64,
    /// Being attempted.
    pub processing: u64,
    /// Failed for good, and not yet reported.
    pub failed: u64,
    /// All three.
    pub total: u64,
    /// Messages.
    pub messages: u64,
    /// Shards that did not answer: what they have is in none of the counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<usize>,
}

impl OwnQueue {
    /// By each shard's counters; None: it did not answer.
    pub fn of(shards: &[Option<Vec<(&'static str, u64)>>]) -> OwnQueue {
        let sum = |name: &str| shards.iter().flatten().flatten().filter(|(of, _)| *of == name).map(|(_, count)| count).sum::<u64>();
        let (pending, processing, failed) = (sum("queue_waiting") + sum("queue_ready"), sum("queue_attempting"), sum("queue_failed"));
        let unanswered = (0..shards.len()).filter(|shard| shards[*shard].is_none()).collect();
        OwnQueue { pending, processing, failed, total: pending + processing + failed, messages: sum("queue_messages"), unanswered }
    }

    /// The answer of a node in no cluster.
    pub fn alone(&self) -> Value {
        json!(self)
    }

    /// The answer of a node of a cluster, whose own counts are always there (`local`). A node that shares mail answers for the queue of all, and
    /// while no partition of that answers for itself, with all of them named (`unanswered`) and why (`error`); one that does not share answers
    /// for itself, and has the queue of all beside (`cluster`). Of `partitions` no answer is `Err`, with the reason.
    pub fn in_cluster(&self, shares: bool, partitions: u16, queue: Result<QueueStats, String>) -> Value {
        let away = |reason: String| json!({ "unanswered": (0..partitions).collect::<Vec<_>>(), "error": reason });
        let mut answer = match (shares, queue) {
            (true, Ok(stats)) => json!(stats),
            (true, Err(reason)) => {
                let (mut answer, mut away) = (json!(self), away(reason));
                for name in ["unanswered", "error"] {
                    answer[name] = away[name].take();
                }
                answer
            }
            (false, queue) => {
                let mut answer = json!(self);
                answer["cluster"] = queue.map_or_else(away, |stats| json!(stats));
                answer
            }
        };
        answer["local"] = json!(self);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITIONS: u16 = 2;

    fn own() -> OwnQueue {
        let shard = |waiting| {
            Some(vec![("queue_waiting", waiting), ("queue_ready", 2), ("queue_attempting", 1), ("queue_messages", 3), ("sessions", 9)])
        };
        OwnQueue::of(&[shard(4), None, shard(5)])
    }

    #[test]
    fn what_shards_have_is_added_and_one_that_hangs_is_named() {
        let sums = OwnQueue { pending: 13, processing: 2, failed: 0, total: 15, messages: 6, unanswered: vec![1] };
        assert_eq!((own(), own().alone()["unanswered"].clone()), (sums, json!([1])));
    }

    /// A node with mail of its own said that there is none: what it holds is not in the queue of all.
    #[test]
    fn a_node_that_does_not_share_answers_for_itself() {
        let stats = QueueStats { pending: 70, total: 70, ..QueueStats::default() };
        let answer = own().in_cluster(false, PARTITIONS, Ok(stats));
        assert_eq!((&answer["pending"], &answer["total"], &answer["cluster"]["pending"]), (&json!(13), &json!(15), &json!(70)));
        assert_eq!(answer["local"], own().alone());
        let away = own().in_cluster(false, PARTITIONS, Err("no answer".to_owned()));
        assert_eq!((&away["total"], &away["cluster"]), (&json!(15), &json!({ "unanswered": [0, 1], "error": "no answer" })));
    }

    /// With Valkey away the answer was 503.
    #[test]
    fn a_node_that_shares_answers_for_all_and_for_itself_while_nobody_else_does() {
        let stats = QueueStats { pending: 70, total: 70, ..QueueStats::default() };
        let answer = own().in_cluster(true, PARTITIONS, Ok(stats));
        assert_eq!((&answer["pending"], &answer["unanswered"], &answer["local"]), (&json!(70), &Value::Null, &own().alone()));
        let away = own().in_cluster(true, PARTITIONS, Err("no answer".to_owned()));
        assert_eq!((&away["pending"], &away["unanswered"], &away["error"]), (&json!(13), &json!([0, 1]), &json!("no answer")));
        assert_eq!(away["local"], own().alone());
    }
}
