//! The running engine's side of `ringpost cluster queue`.

use std::time::Duration;

use ringpost_cluster::{
    item_queue::{ItemQueue, Unread, Work, WorkItem},
    work_queue::{Completed, Enqueued, Failed, IDS_PER_CALL, QueueError, WorkQueue},
};
use serde_json::{Value, json};

use crate::{cluster::MAIL_QUEUE, cluster_wire::QueueCall, control_wire::NotDone};

/// Pages of dead letters asked for in one call.
const PAGE: u64 = 128;

/// Answers a call about the queue of that name, or of mail: one value for each line. `failed` says for the operator what a call came to.
pub async fn answer(
    mail: &WorkQueue,
    name: Option<&str>,
    call: QueueCall,
    failed: impl Fn(QueueError) -> NotDone,
) -> Result<Vec<Value>, NotDone> {
    let queue = match name {
        None | Some(MAIL_QUEUE) => mail.clone(),
        Some(name) => mail.named(name).map_err(|error| format!("--name: {error}"))?,
    };
    let is_about_items =
        !matches!(call, QueueCall::Stats {} | QueueCall::Dead { .. } | QueueCall::Requeue { .. } | QueueCall::Purge { .. });
    if queue.name() == MAIL_QUEUE && is_about_items {
        return Err(format!("the items of {MAIL_QUEUE} are those of delivery: name another queue with --name").into());
    }
    match call {
        QueueCall::Stats {} => Ok(vec![json!(queue.stats().await.map_err(failed)?)]),
        QueueCall::Dead { limit } => dead(&queue, limit).await.map_err(failed),
        QueueCall::Requeue { ids } => each_partition(&queue, &ids, true).await.map_err(failed),
        QueueCall::Purge { ids } => each_partition(&queue, &ids, false).await.map_err(failed),
        QueueCall::Lease { count, lease_ms } => {
            let (count, lease) = (count.min(IDS_PER_CALL), Duration::from_millis(lease_ms));
            let (leased, unread) = ItemQueue::new(queue).dequeue_and_unread(count, lease).await.map_err(failed)?;
            // Of those that come with others the log says so.
            if leased.is_empty() && !unread.is_empty() {
                return Err(unreadable(&unread).into());
            }
            Ok(leased.iter().map(item).collect())
        }
        call => items(&ItemQueue::new(queue), call).await.map_err(failed),
    }
}

/// What whoever leases is told, who would else take the queue for empty.
fn unreadable(unread: &[Unread]) -> String {
    let kinds: Vec<String> = unread.iter().map(|Unread { reason, count }| format!("{count}: {reason}")).collect();
    format!(
        "the items that were leased cannot be read on this node, and were given back as a failure ({}); all nodes need one cluster.key_file, and one \
         version of this program",
        kinds.join("; ")
    )
}

async fn items(queue: &ItemQueue, call: QueueCall) -> Result<Vec<Value>, QueueError> {
    let (ms, word) = (Duration::from_millis, |id: &str, result: &str| Ok(vec![json!({ "id": id, "result": result })]));
    match call {
        QueueCall::Enqueue { id, data, priority, max_attempts, delay_ms, expires_in_ms } => {
            let work = Work { priority, max_attempts, delay: ms(delay_ms), expires_in: ms(expires_in_ms), ..Work::new(id.clone(), data) };
            word(&id, enqueued(queue.enqueue(&[work]).await?[0]))
        }
        QueueCall::Complete { id, token, result } => word(&id, completed(queue.complete_by(&id, &token, &result).await?)),
        QueueCall::Fail { id, token, retry, delay_ms, reason } => {
            word(&id, ended(queue.fail_by(&id, &token, retry, ms(delay_ms), &reason).await?))
        }
        QueueCall::Extend { id, token, lease_ms } => {
            word(&id, if queue.extend_lease(&id, &token, ms(lease_ms)).await? { "extended" } else { "stale" })
        }
        QueueCall::Recover {} => Ok(vec![json!({ "count": queue.recover_expired_leases().await? })]),
        QueueCall::Stats {} | QueueCall::Dead { .. } | QueueCall::Requeue { .. } | QueueCall::Purge { .. } | QueueCall::Lease { .. } => {
            unreachable!("they have ways of their own")
        }
    }
}

/// What is no text is shown as such, and cannot be read by this way.
fn item(item: &WorkItem) -> Value {
    json!({
        "id": item.id,
        "type": item.kind,
        "priority": item.priority,
        "data": String::from_utf8_lossy(&item.data),
        "created_at": item.created_at,
        "scheduled_at": item.scheduled_at,
        "attempts": item.attempts,
        "max_attempts": item.max_attempts,
        "owner": item.owner,
        "lease_expiry": item.lease_expiry,
        "token": item.token,
    })
}

fn enqueued(answer: Enqueued) -> &'static str {
    match answer {
        Enqueued::Added => "added",
        Enqueued::Present => "present",
        Enqueued::Completed => "completed",
        Enqueued::Full => "full",
    }
}

fn completed(answer: Completed) -> &'static str {
    match answer {
        Completed::Done | Completed::DoneBefore | Completed::Settled => "completed",
        Completed::Stale | Completed::Refused | Completed::Unproven => "stale",
        Completed::Unknown => "unknown",
    }
}

fn ended(answer: Failed) -> &'static str {
    match answer {
        Failed::Waits => "waits",
        Failed::Dead => "dead",
        Failed::Stale => "stale",
    }
}

async fn dead(queue: &WorkQueue, limit: u64) -> Result<Vec<Value>, QueueError> {
    let mut letters = Vec::new();
    for partition in 0..queue.bounds().partitions {
        let mut offset = 0;
        while (letters.len() as u64) < limit {
            let page = queue.dead_page(partition, offset, PAGE).await?;
            offset += page.places;
            letters.extend(page.letters.iter().map(|letter| json!(letter)));
            if page.places < PAGE {
                break;
            }
        }
    }
    letters.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(letters)
}

async fn each_partition(queue: &WorkQueue, ids: &[String], requeues: bool) -> Result<Vec<Value>, QueueError> {
    let mut count = 0;
    for partition in 0..queue.bounds().partitions {
        let here: Vec<&str> = ids.iter().map(String::as_str).filter(|id| queue.partition(id) == partition).collect();
        if ids.is_empty() {
            loop {
                let moved = if requeues { queue.requeue(partition, &[]).await? } else { queue.purge(partition, &[]).await? };
                count += moved;
                // Behind those that cannot be read, which leave the queue, are others.
                if moved == 0 && !(requeues && queue.dead_page(partition, 0, 1).await?.places > 0) {
                    break;
                }
            }
        }
        for chunk in here.chunks(IDS_PER_CALL) {
            count += if requeues { queue.requeue(partition, chunk).await? } else { queue.purge(partition, chunk).await? };
        }
    }
    Ok(vec![json!({ "count": count })])
}
