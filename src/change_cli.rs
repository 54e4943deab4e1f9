//! `ringpost queue retry|hold|release|bounce|purge|reroute|set-expiry`: asks the running engine and prints.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal},
    path::Path,
    process::ExitCode,
};

use ringpost_engine::control::{Change, MessageFilter};
use serde::Serialize;

use crate::{
    cli::{Selection, WholeMessages},
    control_client::ask,
    control_wire::{NotChanged, Progress, WireRequest},
    queue_cli::{code, messages, plural, say, say_json, tell_if_unknown, wrong_usage},
    queue_filter,
};

/// Runs `queue retry|hold|release|bounce|purge|reroute|set-expiry` against the engine that listens at `socket`.
pub fn change(socket: &Path, change: Change, selection: Selection, whole: WholeMessages) -> ExitCode {
    let (word, so_already) = words_of(&change);
    // What is being attempted is retried already.
    let or_else = if change == (Change::Retry {}) { "a report of theirs is being made" } else { "are being attempted" };
    let Selection { ids, matching, all, output } = selection;
    if let Some(reason) = queue_filter::contradiction(&matching) {
        wrong_usage(&reason);
    }
    let filter = MessageFilter::from(matching);
    let (is_filtered, mut wanted) = (filter != MessageFilter::default(), different(&ids));
    let mut is_whole = true;
    if !ids.is_empty() && (is_filtered || all) {
        wrong_usage("either ids or filters say which messages are meant, not both");
    }
    if ids.is_empty() && !is_filtered && !all {
        wrong_usage("which messages? give ids, filters (--domain, --destination, --sender, --tag ...), or --all for every message");
    }
    let by_id = !ids.is_empty();
    let destination = filter.destination.clone();
    let request = WireRequest::QueueChange {
        change,
        ids: by_id.then_some(ids),
        filter: (!by_id).then_some(filter),
        whole_messages: whole.whole_messages,
    };
    let shows_progress = !output.json && io::stderr().is_terminal();
    let mut reported = false;
    let mut left = None;
    let result = ask(socket, &request, |line| {
        left = left.take().or_else(|| serde_json::from_str::<NotChanged>(line).ok());
        if let (true, Ok(progress)) = (shows_progress, serde_json::from_str::<Progress>(line)) {
            eprint!("\r{} messages so far, on disk", progress.changed);
            reported = true;
        }
    });
    if reported {
        eprint!("\r\x1b[K");
    }
    if let Ok(count) = result {
        let left = left.unwrap_or_default();
        let NotChanged {
            unchanged,
            taken,
            unanswered,
            held,
            offered,
            failed,
            once_retried,
            already_failed,
            ends_earlier,
            paused,
            unless_delivered,
            others,
        } = left;
        if unchanged > 0 {
            eprintln!("ringpost: {} stayed as before: {so_already}", messages(unchanged));
        }
        // Held mail that was named is not as it was wanted; among all of it, it is passed over.
        is_whole = taken + unanswered == 0 && (held + offered + failed == 0 || !by_id);
        if taken > 0 {
            eprintln!("ringpost: {} stayed as before: another node of the cluster is taking them over", messages(taken));
        }
        if unanswered > 0 {
            eprintln!(
                "ringpost: {} stayed as before: offered to the cluster, and Valkey does not answer, or is long taking them; try again",
                messages(unanswered)
            );
        }
        if held > 0 {
            let mend = "`ringpost queue release` comes first, or `reroute` where a route holds";
            eprintln!("ringpost: {} stayed as before: held; {mend}", messages(held));
        }
        if offered > 0 {
            let who = "the node of the cluster that takes them tries them at once; `ringpost cluster queue requeue` has dead letters tried";
            eprintln!("ringpost: {} stayed as before: offered to the cluster; {who}", messages(offered));
        }
        if failed > 0 {
            let mend = "what is still to come is the report to their senders, where one is due (`ringpost queue why`); until it is made \
                        `ringpost queue retry` tries them once more, and `purge` takes them out without a word";
            eprintln!("ringpost: {} stayed as before: failed or delivered already; {mend}", messages(failed));
        }
        if once_retried > 0 {
            let of = if once_retried == 1 { "1 of them has" } else { &format!("{once_retried} of them have") };
            let then = "for those it counts only if `ringpost queue retry` comes before their senders are told";
            eprintln!("ringpost: {of} recipients that have failed already: {then}");
        }
        if already_failed > 0 {
            let of = if already_failed == 1 { "1 of them has" } else { &format!("{already_failed} of them have") };
            let then = "those are not kept back: the report to their senders is made where one is due (`ringpost queue why`)";
            eprintln!("ringpost: {of} recipients that have failed already: {then}");
        }
        if ends_earlier > 0 {
            eprintln!("ringpost: {ends_earlier} of them end earlier all the same, by the `expiry` of their route");
        }
        if paused > 0 {
            eprintln!("ringpost: {paused} of them wait for destinations that are paused: `ringpost queue resume` lets them go");
        }
        if unless_delivered > 0 {
            let are = if unless_delivered == 1 { "is" } else { "are" };
            eprintln!("ringpost: {unless_delivered} of them {are} being attempted now: {word} unless this attempt delivers");
        }
        if others > 0 {
            let (plural, are) = (plural(others), if others == 1 { "is" } else { "are" });
            eprintln!(
                "ringpost: {others} recipient{plural} that the filter does not match {are} {word} along with them: this is done with whole messages"
            );
        }
        let left_alone = unchanged + taken + unanswered + held + offered + failed;
        wanted -= left_alone.min(wanted);
        if output.json {
            say_json(&serde_json::to_string(&ChangeAnswer::of(count, &left)).expect("counts are JSON"));
        } else {
            say(&format!("{} {word}", messages(count)));
        }
        if let (0, 0, Some(name)) = (count, left_alone, &destination) {
            tell_if_unknown(socket, name);
        }
        if by_id && count < wanted {
            eprintln!("ringpost: {} of {wanted} ids are not in the queue, or {or_else}", wanted - count);
        }
    }
    code(result.map(|count| is_whole && (!by_id || count == wanted)))
}

/// What `--json` says, in the order of the names: counts of nothing are left out.
#[derive(Serialize)]
struct ChangeAnswer {
    #[serde(skip_serializing_if = "is_nothing")]
    already_failed: u64,
    changed: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    ends_earlier: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    failed: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    held: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    offered: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    once_retried: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    other_recipients: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    paused: u64,
    /// Both of these where mail was left alone for one of them, or because it is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    taken: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unanswered: Option<u64>,
    #[serde(skip_serializing_if = "is_nothing")]
    unchanged: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    unless_delivered: u64,
}

impl ChangeAnswer {
    fn of(changed: u64, left: &NotChanged) -> ChangeAnswer {
        let NotChanged {
            unchanged,
            taken,
            unanswered,
            held,
            offered,
            failed,
            once_retried,
            already_failed,
            ends_earlier,
            paused,
            unless_delivered,
            others,
        } = *left;
        let says_both = taken + unanswered + held > 0;
        ChangeAnswer {
            already_failed,
            changed,
            ends_earlier,
            failed,
            held,
            offered,
            once_retried,
            other_recipients: others,
            paused,
            taken: says_both.then_some(taken),
            unanswered: says_both.then_some(unanswered),
            unchanged,
            unless_delivered,
        }
    }
}

fn is_nothing(count: &u64) -> bool {
    *count == 0
}

/// What is said of messages that were changed so, and of those that were so already.
fn words_of(change: &Change) -> (&'static str, &'static str) {
    match change {
        Change::Retry {} => ("retried", "they may go already, or are being attempted; hosts that do not answer are probed all the same"),
        Change::Hold {} => ("held", "held by command already"),
        Change::Release {} => {
            ("released", "not held by command; what a route holds goes when the route changes, or by `ringpost queue reroute`")
        }
        Change::Bounce { .. } => ("bounced", ""),
        Change::Purge {} => ("purged", ""),
        Change::Reroute { .. } => ("re-routed", "they go that way already"),
        Change::SetExpiry { .. } => ("given another end of life", ""),
    }
}

/// How many messages ids name.
fn different(ids: &[String]) -> u64 {
    ids.iter().collect::<BTreeSet<_>>().len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_in_json_says_what_there_is_and_nothing_of_nothing() {
        let of = |left: NotChanged| serde_json::to_string(&ChangeAnswer::of(7, &left)).unwrap();
        assert_eq!(of(NotChanged::default()), r#"{"changed":7}"#);
        assert_eq!(of(NotChanged { taken: 3, ..NotChanged::default() }), r#"{"changed":7,"taken":3,"unanswered":0}"#);
        assert_eq!(of(NotChanged { held: 2, ..NotChanged::default() }), r#"{"changed":7,"held":2,"taken":0,"unanswered":0}"#);
        let all = NotChanged {
            unchanged: 1,
            taken: 2,
            unanswered: 3,
            held: 4,
            offered: 5,
            failed: 10,
            once_retried: 12,
            already_failed: 13,
            ends_earlier: 6,
            paused: 8,
            unless_delivered: 9,
            others: 11,
        };
        let expected = r#"{"already_failed":13,"changed":7,"ends_earlier":6,"failed":10,"held":4,"offered":5,"once_retried":12,"other_recipients":11,"paused":8,"taken":2,"unanswered":3,"unchanged":1,"unless_delivered":9}"#;
        assert_eq!(of(all), expected);
    }
}
