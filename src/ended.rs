//! When and how a message ended that is not in the queue any more, by what the mail log says.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::mail_log_entry::MailLogEntry;
use crate::mail_log_reader::grep;

/// Recipients told of one by one at most.
const RECIPIENTS_MAX: usize = 8;

/// One sentence for each recipient, or why there is none. `Ok(None)` when no line names the message.
pub fn ended(files: &[PathBuf], id: &str) -> std::io::Result<Option<String>> {
    let mut last: Vec<(String, MailLogEntry)> = Vec::new();
    let mut told: HashMap<String, MailLogEntry> = HashMap::new();
    let (mut accepted, mut deleted, mut known) = (None, None, false);
    grep(files, id, |_, entry| {
        if !entry.get("queue_id").is_some_and(|own| own.eq_ignore_ascii_case(id)) {
            return;
        }
        known = true;
        match (entry.get("event"), entry.get("to")) {
            (Some("accepted"), _) => accepted = Some(entry),
            (Some("deleted"), _) => deleted = Some(entry),
            (Some("report"), to) => {
                if let Some(to) = to.filter(|_| entry.get("about") == Some("failure")) {
                    told.insert(to.to_owned(), entry);
                }
            }
            (_, Some(to)) if entry.get("outcome").is_some() => match last.iter().position(|(other, _)| other == to) {
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
    let end = deleted.as_ref().map(|entry| format!("the message was removed by command at {}", field(entry, "time")));
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
            (_, _) => match &end {
                Some(end) => format!("<{to}> was last deferred at {at}: {reply:?}; {end}."),
                None => {
                    format!("<{to}> was last deferred at {at}: {reply:?}; how it ended is not in the log (lines can be lost at a crash).")
                }
            },
        });
    }
    if last.len() > RECIPIENTS_MAX {
        sentences.push(format!("{} more recipients.", last.len() - RECIPIENTS_MAX));
    }
    if sentences.is_empty() {
        let at = accepted.as_ref().map_or_else(|| "?".to_owned(), |entry| field(entry, "time"));
        sentences.push(match end {
            Some(end) => format!("It was accepted at {at}, and {end} before any attempt."),
            None => format!("It was accepted at {at} and is not in the queue; what became of it is not in the log."),
        });
    }
    Ok(Some(format!("Not in the queue any more: {}", sentences.join("\n"))))
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
