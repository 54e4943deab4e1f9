//! `ringpost queue` and `ringpost stats`: asks the running engine and prints.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use ringpost_engine::control::{Change, ListQuery, MessageView};

use crate::{
    cli::{EXIT_NEGATIVE, EXIT_OK, EXIT_UNAVAILABLE, ListFilter, Output, QueueCall, Selection},
    control_client::{ControlError, ask},
    control_wire::WireRequest,
};

/// Runs a queue command against the engine that listens at `socket`.
pub fn queue(socket: &Path, call: QueueCall) -> ExitCode {
    match call {
        QueueCall::Ls { filter, output } => list(socket, filter, output),
        QueueCall::Show { id, output } => show(socket, id, output),
        QueueCall::Retry(selection) => change(socket, Change::Retry, "retried", selection),
        QueueCall::Hold(selection) => change(socket, Change::Hold, "held", selection),
        QueueCall::Release(selection) => change(socket, Change::Release, "released", selection),
        QueueCall::Delete(selection) => change(socket, Change::Delete, "deleted", selection),
    }
}

/// Prints the engine's counters.
pub fn stats(socket: &Path, output: Output) -> ExitCode {
    let result = ask(socket, &WireRequest::Stats {}, |line| {
        if output.json {
            say(line);
        } else if let Ok(serde_json::Value::Object(counters)) = serde_json::from_str(line) {
            for (name, value) in counters {
                say(&format!("{name:<24}{value:>16}"));
            }
        }
    });
    code(result.map(|_| true))
}

fn list(socket: &Path, filter: ListFilter, output: Output) -> ExitCode {
    let query = ListQuery {
        state: filter.state.map(|state| format!("{state:?}").to_lowercase()),
        sender: filter.sender,
        domain: filter.domain,
        after: None,
        limit: filter.limit,
    };
    let mut listed = 0_u64;
    let result = ask(socket, &WireRequest::QueueList { query }, |line| {
        if output.json {
            return say(line);
        }
        let Ok(view) = serde_json::from_str::<MessageView>(line) else { return };
        if listed == 0 {
            say(&format!("{:<24}{:>10}  {:<25}{:>3}  {:<25}sender -> recipients", "id", "size", "accepted", "try", "next attempt"));
        }
        listed += 1;
        let recipients: Vec<_> =
            view.recipients.iter().map(|recipient| format!("{} ({})", plain(&recipient.address), recipient.state)).collect();
        let sender = if view.sender.is_empty() { "<>" } else { &view.sender };
        let next = view.next_attempt.as_deref().unwrap_or("-");
        say(&format!(
            "{:<24}{:>10}  {:<25}{:>3}  {:<25}{} -> {}",
            view.id,
            view.size,
            view.accepted_at,
            view.attempts,
            next,
            plain(sender),
            recipients.join(", ")
        ));
        if !view.reason.is_empty() {
            say(&format!("{:>24}{}", "", plain(&view.reason)));
        }
    });
    if let (Ok(count), false) = (&result, output.json) {
        say(&format!("{count} message{}", if *count == 1 { "" } else { "s" }));
    }
    code(result.map(|_| true))
}

fn show(socket: &Path, id: String, output: Output) -> ExitCode {
    let wanted = id.clone();
    let result = ask(socket, &WireRequest::QueueShow { id }, |line| {
        if output.json {
            return say(line);
        }
        let Ok(view) = serde_json::from_str::<MessageView>(line) else { return };
        say(&format!("id         {}", view.id));
        say(&format!("sender     <{}>", plain(&view.sender)));
        say(&format!("size       {} bytes", view.size));
        say(&format!("accepted   {}", view.accepted_at));
        if !view.reason.is_empty() {
            say(&format!("reason     {}", plain(&view.reason)));
        }
        for recipient in &view.recipients {
            say(&format!(
                "recipient  <{}> {}, {} attempt{}",
                plain(&recipient.address),
                recipient.state,
                recipient.attempts,
                if recipient.attempts == 1 { "" } else { "s" }
            ));
            if let Some(next) = &recipient.next_attempt {
                say(&format!("           next attempt {next}"));
            }
            if let Some(reply) = &recipient.last_reply {
                say(&format!("           last reply {}", plain(reply)));
            }
        }
    });
    if let Ok(0) = result {
        eprintln!("ringpost: no message {wanted} in the queue");
    }
    code(result.map(|count| count > 0))
}

fn change(socket: &Path, change: Change, word: &str, selection: Selection) -> ExitCode {
    let wanted = selection.ids.len() as u64;
    let ids = (!selection.all).then_some(selection.ids);
    let all = ids.is_none();
    let result = ask(socket, &WireRequest::QueueChange { change, ids }, |_| ());
    if let Ok(count) = result {
        say(&format!("{count} message{} {word}", if count == 1 { "" } else { "s" }));
        if !all && count < wanted {
            eprintln!("ringpost: {} of {wanted} ids are not in the queue", wanted - count);
        }
    }
    code(result.map(|count| all || count == wanted))
}

/// Text from peers without control characters: a terminal is not to be steered by a sender.
pub fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

/// Prints a line; a reader that went away (`| head`) ends the output quietly.
pub fn say(line: &str) {
    if writeln!(io::stdout(), "{line}").is_err() {
        std::process::exit(i32::from(EXIT_OK));
    }
}

/// The exit code of an answer.
pub fn code(result: Result<bool, ControlError>) -> ExitCode {
    ExitCode::from(match result {
        Ok(true) => EXIT_OK,
        Ok(false) => EXIT_NEGATIVE,
        Err(error) => {
            eprintln!("ringpost: {error}");
            if matches!(error, ControlError::Refused(_)) { EXIT_NEGATIVE } else { EXIT_UNAVAILABLE }
        }
    })
}
