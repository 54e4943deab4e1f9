//! `ringpost log follow|grep`: the mail log's files, read by people.

use std::{io, path::Path, process::ExitCode};

use ringpost_smtp::shown::{shown, shown_json};
use serde_json::json;

use crate::{
    Failure,
    cli::{EXIT_IO, EXIT_NEGATIVE, EXIT_OK, LogCall},
    mail_log_entry::MailLogEntry,
    mail_log_reader::{Follower, files, grep},
    queue_cli::say,
};

/// Runs a log command over the file at `path`.
pub fn log(path: &Path, call: LogCall) -> Result<ExitCode, Failure> {
    let failure = |reason: io::Error| Failure { message: format!("{}: {reason}", path.display()), code: EXIT_IO };
    match call {
        LogCall::Follow { id, output, .. } => {
            let mut follower = Follower::new(path, true).map_err(failure)?;
            if follower.is_missing() {
                eprintln!("ringpost: {} is not there yet: its first line is waited for", path.display());
            }
            loop {
                let line = follower.next_line().map_err(failure)?;
                let is_wanted = id.as_ref().is_none_or(|id| MailLogEntry::parse(&line).is_some_and(|entry| entry.is_about(id)));
                if is_wanted {
                    tell(&line, output.json);
                }
            }
        }
        LogCall::Grep { word, output, .. } => {
            let (files, mut found) = (files(path), false);
            if files.is_empty() {
                return Err(failure(io::ErrorKind::NotFound.into()));
            }
            grep(&files, &word, |line, _| {
                found = true;
                tell(line, output.json);
            })
            .map_err(failure)?;
            Ok(ExitCode::from(if found { EXIT_OK } else { EXIT_NEGATIVE }))
        }
    }
}

fn tell(line: &str, json: bool) {
    say(&told(line, json));
}

/// A line of the log as people or programs are to have it. What is no line of a mail log, as one that was cut off by a full disk, is the `raw` of an object
/// for these, so that each line they read is one.
fn told(line: &str, json: bool) -> String {
    match MailLogEntry::parse(line) {
        Some(entry) if json && !line.starts_with('{') => entry.to_json(),
        Some(_) if line.starts_with('{') => shown_json(line).into_owned(),
        None if json => shown_json(&json!({ "raw": line }).to_string()).into_owned(),
        _ => shown(line).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// `log follow --json` printed what it could not read as it stood there, and the program behind it broke off.
    #[test]
    fn a_program_reads_an_object_of_each_line() {
        for (line, expected) in [
            ("2026 queue_id=A1 size=7", json!({"time": "2026", "queue_id": "A1", "size": 7})),
            ("{\"queue_id\":\"A1\"}", json!({"queue_id": "A1"})),
            ("cut off", json!({"raw": "cut off"})),
            ("{\"queue_id\":\"A", json!({"raw": "{\"queue_id\":\"A"})),
            ("[1]", json!({"raw": "[1]"})),
            ("\u{1b}[2J", json!({"raw": "\u{1b}[2J"})),
            ("", json!({"raw": ""})),
        ] {
            let told = told(line, true);
            assert_eq!(serde_json::from_str::<Value>(&told).ok(), Some(expected), "{line}: {told}");
            assert!(!told.contains('\u{1b}'), "it steers no terminal");
        }
        assert_eq!((&*told("cut off", false), &*told("\u{1b}[2J", false)), ("cut off", "\\x1b[2J"));
    }
}
