//! `ringpost cluster queue`: asks the running engine about the work queue and prints.

use std::{path::Path, process::ExitCode, time::Duration};

use clap::Subcommand;
use ringpost_cluster::{
    item_queue::{ATTEMPTS_MAX, PRIORITY},
    work_item::{ITEM_ID_BYTES_MAX, is_item_id},
    work_queue::{IDS_PER_CALL, is_queue_name},
};
use ringpost_config::parse_duration;
use serde_json::Value;

use crate::{
    cli::{EXIT_UNAVAILABLE, Output},
    cluster_cli::{field, object, show},
    cluster_wire::{ClusterCall, QueueCall},
    control_client::{ControlError, ask},
    control_wire::WireRequest,
    queue_cli::{code, say, say_json},
};

/// `ringpost cluster queue …`
#[derive(Subcommand)]
pub enum QueueCommand {
    /// Pending, processing, failed, total.
    Stats {
        #[command(flatten)]
        output: Output,
    },
    /// List the dead letters, the oldest first.
    Dead {
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: u64,
        #[command(flatten)]
        output: Output,
    },
    /// Put another number of partitions in force, that of all nodes' files by then; exit 1 where one has another, or mail is in the queue.
    Partitions {
        /// As cluster.queue_partitions
        #[arg(value_parser = clap::value_parser!(u16).range(1..=256))]
        number: u16,
        /// Leave behind what is in the queue
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Give dead letters their attempts back; exit 1 if one that is named is none.
    Requeue(Letters),
    /// Remove dead letters from the shared queue; the mail stays with the node that owns it. Of a queue of one's own an item that
    /// is named goes too where it waits and could not be read when it was leased last. Exit 1 if one that is named is neither.
    Purge(Letters),
    /// Add an item to a queue of one's own; exit 1 if there is no room.
    Enqueue {
        /// Its name: enqueued twice it is there once
        #[arg(value_parser = item_id)]
        id: String,
        /// What the worker gets, a text
        data: String,
        /// 0 first, 9 last
        #[arg(long, default_value_t = PRIORITY, value_parser = clap::value_parser!(u8).range(0..=9))]
        priority: u8,
        /// Leases that may end without an answer or with a failure
        #[arg(long, default_value_t = ATTEMPTS_MAX, value_parser = clap::value_parser!(u32).range(1..))]
        max_attempts: u32,
        /// Not before so long from now
        #[arg(long, default_value = "0s", value_parser = parse_duration)]
        delay: Duration,
        /// Not after so long from now; 0s: always
        #[arg(long, default_value = "0s", value_parser = parse_duration)]
        expires_in: Duration,
        #[command(flatten)]
        output: Output,
    },
    /// Lease items; whoever does so completes, fails or extends each in time. Exit 1 if there are none,
    /// or none that this node can read.
    Lease {
        /// At most so many, 128 in one call
        #[arg(long, default_value_t = 1, value_parser = lease_count)]
        count: usize,
        /// For so long, five minutes at most
        #[arg(long, default_value = "30s", value_parser = lease_time)]
        lease: Duration,
        #[command(flatten)]
        output: Output,
    },
    /// Say that leased work is done; exit 1 if the lease is another's by now.
    Complete {
        #[command(flatten)]
        lease: Held,
        /// What its owner is told
        #[arg(long, default_value = "")]
        result: String,
        #[command(flatten)]
        output: Output,
    },
    /// Say that leased work was not done; exit 1 if the lease is another's by now.
    Fail {
        #[command(flatten)]
        lease: Held,
        /// Make it a dead letter
        #[arg(long)]
        no_retry: bool,
        /// Again after so long; without it after a time by chance, at most 30s after a first lease and twice as long after each further one, 1h at most
        #[arg(long, value_parser = parse_duration)]
        delay: Option<Duration>,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        output: Output,
    },
    /// Let a lease run for so long from now; exit 1 if it is another's by now.
    Extend {
        #[command(flatten)]
        held: Held,
        /// So long, five minutes at most
        #[arg(long, default_value = "30s", value_parser = lease_time)]
        lease: Duration,
        #[command(flatten)]
        output: Output,
    },
    /// What became of items, a line for each: `completed` with its result, which is forgotten with this answer, or where it is.
    /// Exit 1 if nobody knows one of them, 69 if one could not be asked for.
    Settle {
        /// Their names, 128 at most
        #[arg(value_name = "ID", required = true, num_args = 1..=IDS_PER_CALL, value_parser = item_id)]
        ids: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Take back leases that ran out, as a lease does that finds less than it asks for.
    Recover {
        #[command(flatten)]
        output: Output,
    },
}

/// Which dead letters.
#[derive(clap::Args)]
pub struct Letters {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    output: Output,
}

/// Named, or all.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Their ids.
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Every one
    #[arg(long)]
    pub all: bool,
}

/// A lease.
#[derive(clap::Args)]
pub struct Held {
    /// The item's name
    #[arg(value_parser = item_id)]
    pub id: String,
    /// The token that leasing gave
    pub token: String,
}

/// Runs a command about the queue of that name, or of mail.
pub fn queue(socket: &Path, name: Option<String>, call: QueueCommand) -> ExitCode {
    let about = |ask: QueueCall| ClusterCall::Queue { name: name.clone(), ask };
    match call {
        QueueCommand::Stats { output } => show(socket, about(QueueCall::Stats {}), output, object),
        QueueCommand::Dead { limit, output } => of_partitions(socket, about(QueueCall::Dead { limit }), output, |letter| {
            say(&dead_letter(letter));
        }),
        QueueCommand::Partitions { number, force, output } => {
            show(socket, ClusterCall::QueuePartitions { number, force }, output, |answer| {
                let (number, before) = (field(answer, "queue_partitions"), field(answer, "before"));
                say(&format!("the queue has {number} partitions; before: {before}"));
            })
        }
        QueueCommand::Requeue(letters) => of_letters(socket, letters, |ids| about(QueueCall::Requeue { ids })),
        QueueCommand::Purge(letters) => of_letters(socket, letters, |ids| about(QueueCall::Purge { ids })),
        QueueCommand::Enqueue { id, data, priority, max_attempts, delay, expires_in, output } => {
            let (delay_ms, expires_in_ms) = (millis(delay), millis(expires_in));
            let ask = QueueCall::Enqueue { id, data, priority, max_attempts, delay_ms, expires_in_ms };
            of_item(socket, about(ask), output, "full")
        }
        QueueCommand::Lease { count, lease, output } => {
            let mut leased = 0;
            let result = ask(socket, &WireRequest::Cluster { ask: about(QueueCall::Lease { count, lease_ms: millis(lease) }) }, |line| {
                leased += 1;
                if output.json {
                    say_json(line);
                } else if let Ok(item) = serde_json::from_str::<Value>(line) {
                    let (attempts, max_attempts) = (field(&item, "attempts"), field(&item, "max_attempts"));
                    say(&format!(
                        "{}  {}  {attempts} of {max_attempts}  {}",
                        field(&item, "id"),
                        field(&item, "token"),
                        field(&item, "data")
                    ));
                }
            });
            code(result.map(|_| leased > 0))
        }
        QueueCommand::Complete { lease: Held { id, token }, result, output } => {
            of_item(socket, about(QueueCall::Complete { id, token, result }), output, "stale")
        }
        QueueCommand::Fail { lease: Held { id, token }, no_retry, delay, reason, output } => {
            let ask = QueueCall::Fail { id, token, retry: !no_retry, delay_ms: delay.map(millis), reason };
            of_item(socket, about(ask), output, "stale")
        }
        QueueCommand::Extend { held: Held { id, token }, lease, output } => {
            of_item(socket, about(QueueCall::Extend { id, token, lease_ms: millis(lease) }), output, "stale")
        }
        QueueCommand::Settle { ids, output } => {
            let (mut are_known, mut are_answered) = (true, true);
            let result = ask(socket, &WireRequest::Cluster { ask: about(QueueCall::Settle { ids }) }, |line| {
                let value: Value = serde_json::from_str(line).unwrap_or_default();
                are_known &= value["state"] != "unknown";
                are_answered &= value["error"].is_null();
                if output.json {
                    say_json(line);
                } else if let Some(error) = value["error"].as_str() {
                    eprintln!("ringpost: {}: {error}", field(&value, "id"));
                } else {
                    say(format!("{} {} {}", field(&value, "id"), field(&value, "state"), value["result"].as_str().unwrap_or_default())
                        .trim_end());
                }
            });
            if result.is_ok() && !are_answered { ExitCode::from(EXIT_UNAVAILABLE) } else { code(result.map(|_| are_known)) }
        }
        QueueCommand::Recover { output } => of_partitions(socket, about(QueueCall::Recover {}), output, |swept| {
            say(&format!("{} taken back", field(swept, "count")));
        }),
    }
}

/// One line. Names can be longer than their columns: there is room behind each all the same.
fn dead_letter(letter: &Value) -> String {
    let [id, owner, attempts, max_attempts, reason] = ["id", "owner", "attempts", "max_attempts", "reason"].map(|name| field(letter, name));
    format!("{id:<46}  {owner:<16}  {attempts:>3} of {max_attempts:<4}  {reason}")
}

/// As [`show`], for what is done in all partitions: with exit 69 where some did not answer.
fn of_partitions(socket: &Path, call: ClusterCall, output: Output, mut text: impl FnMut(&Value)) -> ExitCode {
    let mut unanswered = Vec::new();
    let result = ask(socket, &WireRequest::Cluster { ask: call }, |line| {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        unanswered = partitions_away(&value);
        // A line that says nothing else is no dead letter.
        let is_about_them = !unanswered.is_empty() && value.as_object().is_some_and(|fields| fields.len() == 1);
        if is_about_them {
            return;
        }
        if output.json {
            say_json(line);
        } else {
            text(&value);
        }
    });
    code_with(result.map(|_| true), &unanswered)
}

/// Those that did not answer, as a line names them.
fn partitions_away(value: &Value) -> Vec<u64> {
    value["unanswered"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
}

/// The exit code of what was done in the other partitions.
fn code_with(result: Result<bool, ControlError>, unanswered: &[u64]) -> ExitCode {
    if result.is_err() || unanswered.is_empty() {
        return code(result);
    }
    let named = unanswered.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    eprintln!(
        "ringpost: of these partitions of the queue, which do not answer, nothing is shown, and perhaps nothing was done there: {named}"
    );
    ExitCode::from(EXIT_UNAVAILABLE)
}

/// Says what came of it; exit 1 when that is `bad`, or nobody knows the item.
fn of_item(socket: &Path, call: ClusterCall, output: Output, bad: &str) -> ExitCode {
    let mut is_good = true;
    let result = ask(socket, &WireRequest::Cluster { ask: call }, |line| {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        is_good = value["result"] != bad && value["result"] != "unknown";
        if output.json {
            say_json(line);
        } else {
            say(&format!("{} {}", field(&value, "id"), field(&value, "result")));
        }
    });
    code(result.map(|_| is_good))
}

/// Says how many were done; exit 1 when that is not each one that was named, 69 where partitions did not answer.
fn of_letters(
    socket: &Path,
    Letters { which: Which { mut ids, .. }, output }: Letters,
    call: impl FnOnce(Vec<String>) -> ClusterCall,
) -> ExitCode {
    ids.sort_unstable();
    ids.dedup();
    let (named, mut done, mut unanswered) = (ids.len() as u64, 0, Vec::new());
    let result = ask(socket, &WireRequest::Cluster { ask: call(ids) }, |line| {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        done = value["count"].as_u64().unwrap_or(0);
        unanswered = partitions_away(&value);
        if output.json {
            say_json(line);
        } else {
            say(&letters_done(done, value["unread"].as_u64().unwrap_or(0)));
        }
    });
    if result.is_ok() && done < named && unanswered.is_empty() {
        eprintln!("ringpost: {} of the {named} named are no dead letters", named - done);
    }
    code_with(result.map(|_| done >= named), &unanswered)
}

/// What was no dead letter is told.
fn letters_done(done: u64, unread: u64) -> String {
    match unread {
        0 => format!("{done} done"),
        _ => format!("{done} done; of them no dead letters, but waiting for somebody who can read them, and removed unread: {unread}"),
    }
}

/// None is nothing that could be leased.
fn lease_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| (1..=IDS_PER_CALL).contains(count)).ok_or_else(|| format!("is not a number of 1 to {IDS_PER_CALL}"))
}

/// A lease of no time is over before anybody has it.
fn lease_time(text: &str) -> Result<Duration, String> {
    let lease = parse_duration(text)?;
    if lease.is_zero() { Err("is no time: a lease lasts for 1ms at least".to_owned()) } else { Ok(lease) }
}

/// What is no name of an item is wrong usage.
fn item_id(text: &str) -> Result<String, String> {
    let sentence = || format!("is not 1 to {ITEM_ID_BYTES_MAX} letters, digits, '.', ':', '_' and '-'");
    is_item_id(text).then(|| text.to_owned()).ok_or_else(sentence)
}

/// Nor is what is no name of a queue.
pub(crate) fn queue_name(text: &str) -> Result<String, String> {
    let sentence = || format!("is not 1 to {ITEM_ID_BYTES_MAX} letters, digits, '.', '_' and '-'");
    is_queue_name(text).then(|| text.to_owned()).ok_or_else(sentence)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// None was leased, with exit 1 as from an empty queue, or for the least time.
    #[test]
    fn a_lease_of_nothing_or_for_no_time_is_wrong_usage() {
        assert_eq!((lease_count("1"), lease_count("128")), (Ok(1), Ok(128)));
        assert!(["0", "129", "-1", "x"].iter().all(|text| lease_count(text).is_err()));
        assert_eq!(lease_time("1ms"), Ok(Duration::from_millis(1)));
        assert!(["0s", "0ms", "x"].iter().all(|text| lease_time(text).is_err()));
    }

    /// A name of mail is longer than the column was: it ran into the owner's, and could not be taken out to be requeued.
    #[test]
    fn columns_of_a_dead_letter_stand_apart_however_long_its_names_are() {
        for length in [1, 46, 128] {
            let (id, owner) = ("i".repeat(length), "o".repeat(length.min(64)));
            let letter = serde_json::json!({"id": id, "owner": owner, "attempts": 123, "max_attempts": 12345, "reason": "it failed"});
            let line = dead_letter(&letter);
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words, [&id, &owner, "123", "of", "12345", "it", "failed"], "{line}");
        }
    }
}
