//! When and how a message ended that is not in the queue any more, by what the mail log says; or how far it had come when the engine stopped.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::mail_log_entry::MailLogEntry;
use crate::mail_log_reader::grep;

/// Of what has no end in the log while nobody can be asked.
const MAY_WAIT: &str = "the log has no end of it, so it waits in the spool (`ringpost spool ls`) or its last lines were lost at a crash";

/// Recipients told of one by one at most.
const RECIPIENTS_MAX: usize = 8;

/// One sentence for each recipient, or why there is none. `Ok(None)` when no line names the message. `is_running`: the engine has said that it is not
/// in the queue; else what has no end here may wait in the spool.
pub fn ended(files: &[PathBuf], id: &str, is_running: bool) -> std::io::Result<Option<String>> {
    let mut last: Vec<(String, MailLogEntry)> = Vec::new();
    let mut told: HashMap<String, MailLogEntry> = HashMap::new();
    let (mut accepted, mut deleted, mut handed_over, mut known) = (None, None, None, false);
    grep(files, id, |_, entry| {
        if !entry.get("queue_id").is_some_and(|own| own.eq_ignore_ascii_case(id)) {
            return;
        }
        known = true;
        match (entry.get("event"), entry.get("to")) {
            (Some("accepted"), _) => accepted = Some(entry),
            (Some("deleted"), _) => deleted = Some(entry),
            (Some("handed_over"), _) => handed_over = Some(entry),
            (Some("report"), to) => {
                if let Some(to) = to.filter(|_| entry.get("about") == Some("failure")) {
                    told.insert(to.to_owned(), entry);
                }
            }
            (_, Some(to)) if entry.get("outcome").is_some() => match last.iter().position(|(other, _)| other == to) {
                // A command had ended it, unless it was delivered: what else the attempt that was under way came to is nothing to it.
                Some(at) if is_undelivered(&entry) && is_by_command(&last[at].1) => {}
                Some(at) => last[at].1 = entry,
                None => last.push((to.to_owned(), entry)),
            },
            _ => {}
        }
    })?;
    if !known {
        return Ok(None);
    }
    let field = |entry: &MailLogEntry, name: &str| entry.get(name).unwrap_or("?").to_owned();
    let mut sentences: Vec<String> = Vec::new();
    let removed = deleted.as_ref().map(|entry| format!("the message was removed by command at {}", field(entry, "time")));
    let taken_over = handed_over.as_ref().map(taken_over);
    let end = taken_over.as_ref().or(removed.as_ref());
    for (to, entry) in last.iter().take(RECIPIENTS_MAX) {
        let (at, reply) = (field(entry, "time"), field(entry, "reply"));
        sentences.push(match (entry.get("outcome"), entry.get("event")) {
            (Some("delivered"), _) => {
                let relay = match entry.get("relay") {
                    Some("discard") => "thrown away, as its route says,".to_owned(),
                    Some(relay) => format!("delivered to {relay}"),
                    None => "delivered".to_owned(),
                };
                let delay = entry.get("delay_ms").and_then(|ms| ms.parse().ok()).map(after_acceptance).unwrap_or_default();
                format!("<{to}> was {relay} at {at}{delay}: {reply:?}.")
            }
            (Some("bounced"), Some("expired")) => format!("<{to}> expired at {at}: {reply:?}{}.", who_was_told(told.get(to))),
            (Some("bounced"), _) => format!("<{to}> failed for good at {at}: {reply:?}{}.", who_was_told(told.get(to))),
            (Some("purged"), _) => format!("<{to}> was removed by command at {at}."),
            (_, _) => match end {
                Some(end) => format!("<{to}> was last deferred at {at}: {reply:?}; {end}."),
                None if is_running => {
                    format!("<{to}> was last deferred at {at}: {reply:?}; how it ended is not in the log (lines can be lost at a crash).")
                }
                None => format!("<{to}> was last deferred at {at}: {reply:?}; {MAY_WAIT}."),
            },
        });
    }
    if last.len() > RECIPIENTS_MAX {
        let more = last.len() - RECIPIENTS_MAX;
        sentences.push(format!("{more} more recipient{}.", if more == 1 { "" } else { "s" }));
    }
    if let (Some(taken_over), false) = (&taken_over, last.is_empty()) {
        // Recipients that had no attempt here have no line of their own.
        if !sentences.iter().any(|sentence| sentence.contains(taken_over.as_str())) {
            sentences.push(format!("What else was open: {taken_over}."));
        }
    }
    if sentences.is_empty() {
        let at = accepted.as_ref().map_or_else(|| "?".to_owned(), |entry| field(entry, "time"));
        sentences.push(match end {
            Some(end) if taken_over.is_some() => format!("It was accepted at {at}, and {end}."),
            Some(end) => format!("It was accepted at {at}, and {end} before any attempt."),
            None if is_running => format!("It was accepted at {at} and is not in the queue; what became of it is not in the log."),
            None => format!("It was accepted at {at}; {MAY_WAIT}."),
        });
    }
    let known_by = if is_running { "Not in the queue any more" } else { "By the mail log alone" };
    Ok(Some(format!("{known_by}: {}", sentences.join("\n"))))
}

/// A line of an attempt that did not deliver.
fn is_undelivered(entry: &MailLogEntry) -> bool {
    entry.get("event") == Some("attempt") && entry.get("outcome") != Some("delivered")
}

/// A line about a recipient that an operator bounced or purged.
fn is_by_command(entry: &MailLogEntry) -> bool {
    matches!(entry.get("event"), Some("bounced" | "purged"))
}

/// Where a message is now that another node has.
fn taken_over(entry: &MailLogEntry) -> String {
    let at = entry.get("time").unwrap_or("?");
    match entry.get("taken_by").and_then(|to| to.split_once(' ')) {
        // The worker did not know the id any more.
        Some((node, "")) => format!("the node {node} took it over at {at}"),
        Some((node, id)) => format!("the node {node} took it over at {at} as {id}; `queue why {id}` there says what became of it"),
        None => format!("another node took it over at {at}"),
    }
}

/// Who knows of a failure, by the line about its report.
fn who_was_told(report: Option<&MailLogEntry>) -> String {
    let Some(report) = report else { return String::new() };
    let field = |name: &str| report.get(name).unwrap_or("?").to_owned();
    match report.get("outcome") {
        Some("sent") => format!("; <{}> was told by report {}", field("report_to"), field("report")),
        _ => format!("; nobody was told: {}", field("reason")),
    }
}

/// `, 20 ms after it was accepted`, in the largest unit of which there are two.
fn after_acceptance(ms: u64) -> String {
    let (number, unit) = match ms {
        0..2000 => (ms, "ms"),
        2000..120_000 => (ms / 1000, "s"),
        120_000..7_200_000 => (ms / 60_000, "min"),
        7_200_000..172_800_000 => (ms / 3_600_000, "h"),
        _ => (ms / 86_400_000, "days"),
    };
    format!(", {number} {unit} after it was accepted")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "1NGQZ6X00001H";
    const ACCEPTED: &str = "2026-11-29T10:00:00.000Z queue_id=1NGQZ6X00001H event=accepted from=<a@x.test>";
    const HANDED_OVER: &str = "2026-11-29T10:00:02.000Z queue_id=1NGQZ6X00001H event=handed_over taken_by=\"n3 1NGQZ6X00001J\"";
    const THERE: &str =
        "the node n3 took it over at 2026-11-29T10:00:02.000Z as 1NGQZ6X00001J; `queue why 1NGQZ6X00001J` there says what became of it.";

    fn attempt(to: &str, outcome: &str) -> String {
        format!("2026-11-29T10:00:01.000Z queue_id={HERE} event=attempt to=<{to}> relay=h:25 outcome={outcome} reply=\"words\"")
    }

    fn why(lines: &[&str]) -> String {
        why_while(true, lines)
    }

    fn why_while(is_running: bool, lines: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mail.log");
        std::fs::write(&file, lines.join("\n") + "\n").unwrap();
        ended(&[file], HERE, is_running).unwrap().expect("its lines are there")
    }

    /// The node that accepted a message once said that its end is not in the log, although the line that names the other node was there.
    #[test]
    fn a_message_that_another_node_has_is_to_be_asked_for_there() {
        let accepted = "Not in the queue any more: It was accepted at 2026-11-29T10:00:00.000Z, and";
        assert_eq!(why(&[ACCEPTED, HANDED_OVER]), format!("{accepted} {THERE}"));
        let deferred = "Not in the queue any more: <b@y.test> was last deferred at 2026-11-29T10:00:01.000Z: \"words\";";
        assert_eq!(why(&[ACCEPTED, &attempt("b@y.test", "deferred"), HANDED_OVER]), format!("{deferred} {THERE}"));
        let without_id = "2026-11-29T10:00:02.000Z queue_id=1NGQZ6X00001H event=handed_over taken_by=\"n3 \"";
        assert_eq!(why(&[ACCEPTED, without_id]), format!("{accepted} the node n3 took it over at 2026-11-29T10:00:02.000Z."));
        let told = why(&[ACCEPTED, &attempt("b@y.test", "delivered"), HANDED_OVER]);
        assert!(told.contains("<b@y.test> was delivered to h:25") && told.ends_with(&format!("\nWhat else was open: {THERE}")), "{told}");
    }

    /// Of mail that waited in the spool it said, with the engine stopped, that it was not in the queue any more.
    #[test]
    fn with_the_engine_stopped_mail_without_an_end_may_wait_in_the_spool() {
        let waits = format!("By the mail log alone: It was accepted at 2026-11-29T10:00:00.000Z; {MAY_WAIT}.");
        assert_eq!(why_while(false, &[ACCEPTED]), waits);
        let deferred = format!("By the mail log alone: <b@y.test> was last deferred at 2026-11-29T10:00:01.000Z: \"words\"; {MAY_WAIT}.");
        assert_eq!(why_while(false, &[ACCEPTED, &attempt("b@y.test", "deferred")]), deferred);
        assert!(
            why_while(false, &[ACCEPTED, &attempt("b@y.test", "delivered")])
                .starts_with("By the mail log alone: <b@y.test> was delivered to")
        );
    }

    /// Of mail that was bounced while it was attempted it said that it was last deferred, and nothing of its end.
    #[test]
    fn what_a_command_ended_during_an_attempt_did_not_end_deferred() {
        let bounced =
            format!("2026-11-29T10:00:00.500Z queue_id={HERE} event=bounced to=<b@y.test> outcome=bounced reply=\"554 5.0.0 no\"");
        for outcome in ["deferred", "bounced"] {
            let told = why(&[ACCEPTED, &bounced, &attempt("b@y.test", outcome)]);
            assert!(told.contains("<b@y.test> failed for good at 2026-11-29T10:00:00.500Z: \"554 5.0.0 no\""), "{told}");
        }
        assert!(why(&[ACCEPTED, &bounced, &attempt("b@y.test", "delivered")]).contains("<b@y.test> was delivered to h:25"));
    }
}
