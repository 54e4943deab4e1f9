//! `ringpost queue retry|hold|release|bounce|purge|reroute|set-expiry`: asks the running engine and prints.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal},
    path::Path,
    process::ExitCode,
};

use ringpost_engine::control::{Change, MessageFilter};

use crate::{
    cli::{Selection, WholeMessages},
    control_client::ask,
    control_wire::{NotChanged, Progress, WireRequest},
    queue_cli::{code, messages, plural, say, say_json, tell_if_unknown, wrong_usage},
};

/// Runs `queue retry|hold|release|bounce|purge|reroute|set-expiry` against the engine that listens at `socket`.
pub fn change(socket: &Path, change: Change, selection: Selection, whole: WholeMessages) -> ExitCode {
    let (word, so_already) = words_of(&change);
    // What is being attempted is retried already.
    let or_else = if change == (Change::Retry {}) { "a report of theirs is being made" } else { "are being attempted" };
    let Selection { ids, matching, all, output } = selection;
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
        let NotChanged { unchanged, taken, unanswered, held, offered, ends_earlier, paused, unless_delivered, attempting, others } =
            left.unwrap_or_default();
        if unchanged > 0 {
            eprintln!("ringpost: {} stayed as before: {so_already}", messages(unchanged));
        }
        // Held mail that was named is not as it was wanted; among all of it, it is passed over.
        is_whole = taken + unanswered == 0 && (held + offered == 0 || !by_id);
        if taken > 0 {
            eprintln!("ringpost: {} stayed as before: another node of the cluster is taking them over", messages(taken));
        }
        if unanswered > 0 {
            eprintln!("ringpost: {} stayed as before: offered to the cluster, and Valkey does not answer; try again", messages(unanswered));
        }
        if held > 0 {
            let mend = "`ringpost queue release` comes first, or `reroute` where a route holds";
            eprintln!("ringpost: {} stayed as before: held; {mend}", messages(held));
        }
        if offered > 0 {
            let who = "the node of the cluster that takes them tries them at once; `ringpost cluster queue requeue` has dead letters tried";
            eprintln!("ringpost: {} stayed as before: offered to the cluster; {who}", messages(offered));
        }
        if ends_earlier > 0 {
            eprintln!("ringpost: {ends_earlier} of them end earlier all the same, by the `expiry` of their route");
        }
        if paused > 0 {
            eprintln!("ringpost: {paused} of them wait for destinations that are paused: `ringpost queue resume` lets them go");
        }
        if unless_delivered > 0 {
            let are = if unless_delivered == 1 { "is" } else { "are" };
            eprintln!("ringpost: {unless_delivered} of them {are} being attempted now: purged unless this attempt delivers");
        }
        if attempting > 0 {
            let (plural, are) =
                if attempting == 1 { ("", "is being attempted now and stays") } else { ("s", "are being attempted now and stay") };
            eprintln!("ringpost: {attempting} recipient{plural} {are}: say it again when the attempt has ended");
        }
        if others > 0 {
            let (plural, are) = (plural(others), if others == 1 { "is" } else { "are" });
            eprintln!(
                "ringpost: {others} recipient{plural} that the filter does not match {are} {word} along with them: this is done with whole messages"
            );
        }
        wanted -= (unchanged + taken + unanswered + held + offered).min(wanted);
        if output.json {
            let mut answer = serde_json::json!({"changed": count});
            if unchanged > 0 {
                answer["unchanged"] = unchanged.into();
            }
            if taken + unanswered + held > 0 {
                answer["taken"] = taken.into();
                answer["unanswered"] = unanswered.into();
            }
            if held > 0 {
                answer["held"] = held.into();
            }
            if offered > 0 {
                answer["offered"] = offered.into();
            }
            if ends_earlier > 0 {
                answer["ends_earlier"] = ends_earlier.into();
            }
            if paused > 0 {
                answer["paused"] = paused.into();
            }
            if unless_delivered > 0 {
                answer["unless_delivered"] = unless_delivered.into();
            }
            if attempting > 0 {
                answer["attempting_recipients"] = attempting.into();
            }
            if others > 0 {
                answer["other_recipients"] = others.into();
            }
            say_json(&answer.to_string());
        } else {
            say(&format!("{} {word}", messages(count)));
        }
        if let (0, 0, Some(name)) = (count, unchanged + taken + unanswered + held + offered, &destination) {
            tell_if_unknown(socket, name);
        }
        if by_id && count < wanted {
            eprintln!("ringpost: {} of {wanted} ids are not in the queue, or {or_else}", wanted - count);
        }
    }
    code(result.map(|count| is_whole && (!by_id || count == wanted)))
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
        Change::Reroute { .. } => ("re-routed", ""),
        Change::SetExpiry { .. } => ("given another end of life", ""),
    }
}

/// How many messages ids name.
fn different(ids: &[String]) -> u64 {
    ids.iter().collect::<BTreeSet<_>>().len() as u64
}
