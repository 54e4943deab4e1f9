//! When and how a message ended that is not in the queue any more, by what the mail log says.

use std::path::PathBuf;

use crate::mail_log_entry::MailLogEntry;
use crate::mail_log_reader::grep;

/// Recipients told of one by one at most.
const RECIPIENTS_MAX: usize = 8;

/// One sentence for each recipient, or why there is none. `Ok(None)` when no line names the message.
pub fn ended(files: &[PathBuf], id: &str) -> std::io::Result<Option<String>> {
    let mut last: Vec<(String, MailLogEntry)> = Vec::new();
    let (mut accepted, mut deleted, mut known) = (None, None, false);
    grep(files, id, |_, entry| {
        if !entry.get("queue_id").is_some_and(|own| own.eq_ignore_ascii_case(id)) {
            return;
        }
        known = true;
        match (entry.get("event"), entry.get("to")) {
            (Some("accepted"), _) => accepted = Some(entry),
            (Some("deleted"), _) => deleted = Some(entry),
            // Whether somebody was told is another matter.
            (Some("report"), _) => {}
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
                format!("<{to}> was {relay} at {at}: {reply:?}.")
            }
            (Some("bounced"), Some("expired")) => format!("<{to}> expired at {at}: {reply:?}."),
            (Some("bounced"), _) => format!("<{to}> failed for good at {at}: {reply:?}."),
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
