//! `ringpost log follow|grep`: the mail log's files, read by people.

use std::{io, path::Path, process::ExitCode};

use ringpost_smtp::shown::shown;

use crate::{
    Failure,
    cli::{EXIT_IO, EXIT_NEGATIVE, EXIT_OK, LogCall},
    mail_log_entry::MailLogEntry,
    mail_log_reader::{Follower, files, grep},
    queue_cli::{say, say_json},
};

/// Runs a log command over the file at `path`.
pub fn log(path: &Path, call: LogCall) -> Result<ExitCode, Failure> {
    let failure = |reason: io::Error| Failure { message: format!("{}: {reason}", path.display()), code: EXIT_IO };
    let tell = |line: &str, json: bool| match MailLogEntry::parse(line) {
        Some(entry) if json && !line.starts_with('{') => say_json(&entry.to_json()),
        Some(_) if line.starts_with('{') => say_json(line),
        _ => say(&shown(line)),
    };
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
