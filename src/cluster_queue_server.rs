//! The running engine's side of `ringpost cluster queue`.

use std::time::Duration;

use ringpost_cluster::{
    item_queue::{ItemQueue, Unread, Work, WorkItem},
    work_queue::{Completed, Enqueued, Failed, IDS_PER_CALL, Known, QueueError, WorkQueue},
};
use serde_json::{Value, json};

use crate::{cluster::MAIL_QUEUE, cluster_wire::QueueCall, control_wire::NotDone};

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
        QueueCall::Dead { limit } => {
            let (letters, unanswered) = queue.dead_letters(usize::try_from(limit).unwrap_or(usize::MAX)).await.map_err(failed)?;
            let unanswered = (!unanswered.is_empty()).then(|| json!({ "unanswered": unanswered }));
            Ok(letters.iter().map(|letter| json!(letter)).chain(unanswered).collect())
        }
        QueueCall::Requeue { ids } => Ok(vec![json!(queue.requeue_all(&ids).await.map_err(failed)?)]),
        QueueCall::Purge { ids } => Ok(vec![json!(queue.purge_all(&ids).await.map_err(failed)?)]),
        QueueCall::Lease { count, lease_ms } => {
            let (count, lease) = (count.min(IDS_PER_CALL), Duration::from_millis(lease_ms));
            let (leased, unread) = ItemQueue::new(queue).dequeue_and_unread(count, lease).await.map_err(failed)?;
            // Of those that come with others the log says so.
            if leased.is_empty() && !unread.is_empty() {
                return Err(unreadable(&unread).into());
            }
            Ok(leased.iter().map(item).collect())
        }
        QueueCall::Settle { ids } => {
            let ids: Vec<&str> = ids.iter().take(IDS_PER_CALL).map(String::as_str).collect();
            let answers = ItemQueue::new(queue).settle(&ids).await;
            if let Some(Err(error)) = answers.first()
                && answers.iter().all(Result::is_err)
            {
                return Err(failed(error.clone()));
            }
            Ok(std::iter::zip(ids, answers).map(|(id, answer)| settled(id, answer)).collect())
        }
        call => items(&ItemQueue::new(queue), call).await.map_err(failed),
    }
}

/// What became of one; an id that could not be asked for has `error` and no state.
fn settled(id: &str, answer: Result<Known, QueueError>) -> Value {
    let state = match answer {
        Ok(Known::Unknown) => "unknown",
        Ok(Known::Waiting) => "waiting",
        Ok(Known::Unreadable) => "unreadable",
        Ok(Known::Leased) => "leased",
        Ok(Known::Dead) => "dead",
        Ok(Known::Withdrawn | Known::Unsigned(_)) => "withdrawn",
        Ok(Known::Unproven(_)) => "unproven",
        Ok(Known::Completed(result)) => return json!({ "id": id, "state": "completed", "result": result }),
        Err(error) => return json!({ "id": id, "error": error.to_string() }),
    };
    json!({ "id": id, "state": state })
}

/// What whoever leases is told, who would else take the queue for empty.
fn unreadable(unread: &[Unread]) -> String {
    let kinds: Vec<String> = unread.iter().map(|Unread { reason, first, count }| format!("{count}: {reason}, such as {first}")).collect();
    format!(
        "the items that were leased cannot be read on this node, and were given back for a minute ({}); all nodes need one cluster.key_file, and one \
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
        QueueCall::Fail { id, token, retry: true, delay_ms: None, reason } => word(&id, ended(queue.back_off(&id, &token, &reason).await?)),
        QueueCall::Fail { id, token, retry, delay_ms, reason } => {
            word(&id, ended(queue.fail_by(&id, &token, retry, ms(delay_ms.unwrap_or(0)), &reason).await?))
        }
        QueueCall::Extend { id, token, lease_ms } => {
            word(&id, if queue.extend_lease(&id, &token, ms(lease_ms)).await? { "extended" } else { "stale" })
        }
        QueueCall::Recover {} => Ok(vec![json!(queue.recover_expired_leases().await?)]),
        QueueCall::Stats {}
        | QueueCall::Dead { .. }
        | QueueCall::Requeue { .. }
        | QueueCall::Purge { .. }
        | QueueCall::Lease { .. }
        | QueueCall::Settle { .. } => {
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
