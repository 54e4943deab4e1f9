//! `ringpost queue` and `ringpost stats`: asks the running engine and prints.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::CommandFactory;
use ringpost_config::{MailOutput, parse_duration};
use ringpost_engine::control::{Change, DestinationSummary, EXPIRY_AHEAD_MAX, HostSummary, ListQuery, MessageFilter, MessageView};
use ringpost_smtp::shown::{shown, shown_json, shown_lines};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    change_cli::change,
    cli::{
        Cli, EXIT_CONFIG, EXIT_NEGATIVE, EXIT_OK, EXIT_UNAVAILABLE, ListFilter, Output, QueueCall, Selection, WholeMessages, WholeSelection,
    },
    control_client::{ControlError, ask},
    control_wire::{WhyLine, WireRequest},
    ended::ended,
    lines::{Lines, ended_by},
    mail_log_reader, pause_cli, queue_filter,
    reloader::Reloaded,
};

/// Destinations that `queue summary` shows to people who do not say how many.
const DESTINATIONS_SHOWN: usize = 40;

/// Runs a queue command against the engine that listens at `socket`. `mail_log` is where its mail log goes, if that is known.
pub fn queue(socket: &Path, call: QueueCall, mail_log: Option<&MailOutput>) -> ExitCode {
    match call {
        QueueCall::Ls { filter, output } => list(socket, filter, output),
        QueueCall::Show { id, output } => show(socket, id, output),
        QueueCall::Why { id, output } => why(socket, &id, output, mail_log),
        QueueCall::Summary { destination, limit, output } => summary(socket, destination, limit, output),
        QueueCall::Pause { which, list, output } => pause_cli::pause(socket, which, list, output),
        QueueCall::Resume { which, output } => pause_cli::resume(socket, which, output),
        QueueCall::Retry(selection) => change(socket, Change::Retry {}, selection, WholeMessages::default()),
        QueueCall::Hold(WholeSelection { selection, whole }) => change(socket, Change::Hold {}, selection, whole),
        QueueCall::Release(WholeSelection { selection, whole }) => change(socket, Change::Release {}, selection, whole),
        QueueCall::Bounce { reason, selection } => change(socket, Change::Bounce { reason }, selection, WholeMessages::default()),
        QueueCall::Purge(selection) => change(socket, Change::Purge {}, selection, WholeMessages::default()),
        QueueCall::Reroute { to, selection } => change(socket, Change::Reroute { to }, selection, WholeMessages::default()),
        QueueCall::SetExpiry { mut words, matching, all, whole, output } => {
            let word = words.pop().unwrap_or_default();
            let at_ms = end_of_life(&word).unwrap_or_else(|reason| wrong_usage(&reason));
            // The time stands among them, so that they are read here and not with the other arguments.
            let id_of = |word: &String| queue_filter::queue_id(word).unwrap_or_else(|reason| wrong_usage(&format!("{word:?} {reason}")));
            let ids = words.iter().map(id_of).collect();
            change(socket, Change::SetExpiry { at_ms }, Selection { ids, matching, all, output }, whole)
        }
    }
}

/// Prints the engine's counters.
pub fn stats(socket: &Path, output: Output) -> ExitCode {
    let result = ask(socket, &WireRequest::Stats {}, |line| {
        if output.json {
            say_json(line);
        } else if let Ok(serde_json::Value::Object(counters)) = serde_json::from_str(line) {
            for (name, value) in counters {
                say(&format!("{name:<24}{value:>16}"));
            }
        }
    });
    code(result.map(|_| true))
}

/// Lets the engine read its config file again.
pub fn reload(socket: &Path, output: Output) -> ExitCode {
    let result = ask(socket, &WireRequest::Reload {}, |line| {
        if output.json {
            return say_json(line);
        }
        let Ok(done) = serde_json::from_str::<Reloaded>(line) else { return };
        match &*done.reloaded {
            [] => say("nothing that can be taken over has changed"),
            keys => say(&format!("taken over: {}", keys.join(", "))),
        }
        if done.moved > 0 {
            say(&format!(
                "{} queued message{} now lead{} elsewhere",
                done.moved,
                plural(done.moved),
                if done.moved == 1 { "s" } else { "" }
            ));
        }
        if done.held > 0 {
            say(&format!("{} queued message{} held from now on", done.held, if done.held == 1 { " is" } else { "s are" }));
        }
        if done.is_moving {
            say("queued mail is still being looked through: what leads elsewhere now follows");
        }
        if !done.restart.is_empty() {
            say(&format!("changed, and counts from the next start: {}", done.restart.join(", ")));
        }
    });
    code(result.map(|_| true))
}

/// Says so, and ends the process.
pub fn wrong_usage(reason: &str) -> ! {
    Cli::command().error(clap::error::ErrorKind::ValueValidation, reason).exit()
}

/// `2d` from now, or a time as it is; unix milliseconds.
fn end_of_life(text: &str) -> Result<u64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let too_far = || format!("{text:?} is more than {} days ahead, the farthest end of life", EXPIRY_AHEAD_MAX.as_secs() / 86_400);
    let at = match parse_duration(text) {
        Ok(span) if span > EXPIRY_AHEAD_MAX => return Err(too_far()),
        Ok(span) => now + span,
        Err(_) => {
            let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
                format!("{text:?} is neither a time from now (\"2d\", \"12h\") nor a time (\"2026-12-04T12:00:00Z\"); it stands last")
            })?;
            let at = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_or(Duration::ZERO, Duration::from_millis);
            if at < now {
                return Err(format!("{text:?} is in the past: \"0s\" expires mail at once, `queue bounce` tells its senders why"));
            }
            at
        }
    };
    if at > now + EXPIRY_AHEAD_MAX {
        return Err(too_far());
    }
    Ok(u64::try_from(at.as_millis()).unwrap_or(u64::MAX))
}

fn list(socket: &Path, filter: ListFilter, output: Output) -> ExitCode {
    if let Some(reason) = queue_filter::contradiction(&filter.matching) {
        wrong_usage(&reason);
    }
    let query = ListQuery { filter: MessageFilter::from(filter.matching), after: None, limit: filter.limit };
    let destination = query.filter.destination.clone();
    let (mut listed, mut lines) = (0_u64, Lines::default());
    let result = ask(socket, &WireRequest::QueueList { query }, |line| {
        if output.json {
            return lines.say_json(line);
        }
        let Ok(view) = serde_json::from_str::<MessageView>(line) else { return };
        if listed == 0 {
            lines.say(&format!("{:<24}{:>10}  {:<25}{:>3}  {:<25}sender -> recipients", "id", "size", "accepted", "try", "next attempt"));
        }
        listed += 1;
        let recipients: Vec<_> =
            view.recipients.iter().map(|recipient| format!("{} ({})", shown(&recipient.address), recipient.state)).collect();
        let sender = if view.sender.is_empty() { "<>" } else { &view.sender };
        let next = view.next_attempt.as_deref().unwrap_or("-");
        lines.say(&format!(
            "{:<24}{:>10}  {:<25}{:>3}  {:<25}{} -> {}",
            view.id,
            view.size,
            view.accepted_at,
            view.attempts,
            next,
            shown(sender),
            recipients.join(", ")
        ));
        if !view.reason.is_empty() {
            lines.say(&format!("{:>24}{}", "", shown(&view.reason)));
        }
    });
    lines.end();
    if let (Ok(count), false) = (&result, output.json) {
        say(&messages(*count));
    }
    if let (Ok(0), Some(name)) = (&result, &destination) {
        tell_if_unknown(socket, name);
    }
    code(result.map(|_| true))
}

fn show(socket: &Path, id: String, output: Output) -> ExitCode {
    let wanted = id.clone();
    let result = ask(socket, &WireRequest::QueueShow { id }, |line| {
        if output.json {
            return say_json(line);
        }
        let Ok(view) = serde_json::from_str::<MessageView>(line) else { return };
        say(&format!("id         {}", view.id));
        say(&format!("sender     <{}>", shown(&view.sender)));
        say(&format!("size       {} bytes", view.size));
        if let Some(priority) = view.priority {
            say(&format!("priority   {priority}"));
        }
        say(&format!("accepted   {}", view.accepted_at));
        if !view.tags.is_empty() {
            say(&format!("tags       {}", shown(&view.tags.join(", "))));
        }
        if !view.reason.is_empty() {
            say(&format!("reason     {}", shown(&view.reason)));
        }
        for recipient in &view.recipients {
            say(&format!(
                "recipient  <{}> {}, {} attempt{}, to {:?}",
                shown(&recipient.address),
                recipient.state,
                recipient.attempts,
                if recipient.attempts == 1 { "" } else { "s" },
                recipient.destination,
            ));
            if !recipient.route.is_empty() && recipient.route != recipient.destination {
                say(&format!("           by route {:?}", recipient.route));
            }
            if let Some(next) = &recipient.next_attempt {
                say(&format!("           next attempt {next}"));
            }
            if let Some(by) = &recipient.paused_by {
                say(&format!("           paused until `queue resume {}`", shown(by)));
            }
            if let Some(after) = &recipient.after_attempt {
                say(&format!("           {}", shown(after)));
            }
            if let Some(expires) = &recipient.expires_at {
                say(&format!("           expires {expires}"));
            }
            if let Some(reply) = &recipient.last_reply {
                say(&format!("           last reply {}", shown(reply)));
            }
            if let Some(relay) = &recipient.relay {
                say(&format!("           said by {}", shown(relay)));
            }
        }
    });
    if let Ok(0) = result {
        eprintln!("ringpost: no message {wanted} in the queue; `ringpost queue why {wanted}` looks into the mail log");
    }
    code(result.map(|count| count > 0))
}

fn why(socket: &Path, id: &str, output: Output, mail_log: Option<&MailOutput>) -> ExitCode {
    let tell = |line: &WhyLine| {
        if output.json {
            say_json(&serde_json::to_string(line).expect("a line is plain data"));
        } else {
            line.why.lines().for_each(|sentence| say(&shown(sentence)));
        }
    };
    let result = ask(socket, &WireRequest::QueueWhy { id: id.to_owned() }, |line| {
        if let Ok(line) = serde_json::from_str::<WhyLine>(line) {
            tell(&line);
        }
    });
    let is_running = match &result {
        Ok(0) => true,
        // Without a running engine the log still knows something.
        Err(ControlError::Unreachable { .. }) => false,
        _ => return code(result.map(|_| true)),
    };
    if !is_running {
        eprintln!("ringpost: the engine is not running: only the mail log is searched, the queue cannot be asked");
    }
    let unknown = ExitCode::from(if is_running { EXIT_NEGATIVE } else { EXIT_UNAVAILABLE });
    // To open a pipe is to wait for who writes to it, and to read it takes from who reads it.
    let is_searchable = |path: &Path| std::fs::metadata(path).map_or(true, |file| file.is_file());
    let Some(MailOutput::File(path)) = mail_log.filter(|log| matches!(log, MailOutput::File(path) if is_searchable(path))) else {
        eprintln!("ringpost: no word of message {id}: the mail log, which would know of earlier ones, is no file that can be searched");
        return unknown;
    };
    let files = mail_log_reader::files(path);
    match ended(&files, id, is_running) {
        Ok(Some(why)) => {
            tell(&WhyLine { id: id.to_owned(), why });
            ExitCode::from(if is_running { EXIT_OK } else { EXIT_UNAVAILABLE })
        }
        Ok(None) => {
            eprintln!(
                "ringpost: no message {id}: {}{} and its {} rotated files have no line of it",
                if is_running { "it is not in the queue, and " } else { "" },
                path.display(),
                files.len().saturating_sub(1)
            );
            unknown
        }
        Err(reason) => {
            eprintln!("ringpost: no message {id} in the queue; {} cannot be searched: {reason}", path.display());
            unknown
        }
    }
}

fn summary(socket: &Path, destination: Option<String>, limit: Option<usize>, output: Output) -> ExitCode {
    let limit = limit.unwrap_or(if output.json { usize::MAX } else { DESTINATIONS_SHOWN });
    let (mut listed, mut recipients) = (0, 0);
    let name = destination.clone();
    let result = ask(socket, &WireRequest::QueueSummary { destination }, |line| {
        let Ok(summary) = serde_json::from_str::<DestinationSummary>(line) else { return };
        recipients += summary.recipients;
        listed += 1;
        if listed > limit {
            return;
        }
        if output.json {
            return say_json(line);
        }
        if listed == 1 {
            say(&summary_head());
        }
        say(&summary_line(&summary));
        if let Some(reply) = &summary.last_reply {
            say(&format!("    {}", shown(reply)));
        }
        summary.hosts.iter().for_each(|host| say(&host_line(host, summary.last_reply.as_deref())));
    });
    if result.is_ok() {
        let more = listed.saturating_sub(limit);
        let more = (more > 0).then(|| format!("{more} with less mail {} not shown", if more == 1 { "is" } else { "are" }));
        if !output.json {
            let more = more.map_or_else(String::new, |more| format!("; {more}"));
            say(&format!("{recipients} recipient{} at {listed} destination{}{more}", plural(recipients), plural(listed as u64)));
        } else if let Some(more) = more {
            eprintln!("ringpost: of {listed} destinations {more} (--limit)");
        }
    }
    if let (Ok(0), Some(name)) = (&result, &name) {
        say_unknown(name);
    }
    code(result.map(|_| true))
}

fn summary_head() -> String {
    format!(
        "{:<32}{:>9}{:>12}{:>9}{:>10}{:>8}{:>8}{:>9}{:>8}{:>7}{:>8}{:>6}   {:<10}{:<14}{:<26}{:<26}",
        "destination",
        "messages",
        "recipients:",
        "ready",
        "deferred",
        "active",
        "held",
        "offered",
        "failed",
        "open",
        "window",
        "max",
        "breaker",
        "waits for",
        "oldest",
        "next"
    )
}

fn summary_line(summary: &DestinationSummary) -> String {
    format!(
        "{:<32}{:>9}{:>11} {:>9}{:>10}{:>8}{:>8}{:>9}{:>8}{:>7}{:>8}{:>6}   {:<10}{:<14}{:<26}{:<26}",
        shown(&summary.destination),
        summary.messages,
        summary.recipients,
        summary.ready,
        summary.deferred,
        summary.active,
        summary.held,
        summary.offered,
        summary.failed,
        summary.connections,
        summary.window,
        summary.connections_max,
        summary.breaker,
        summary.wait,
        summary.oldest.as_deref().unwrap_or("-"),
        summary.next_attempt.as_deref().unwrap_or("-"),
    )
}

/// `last_reply` stands above it: a reason that is the same word for word is not said again.
fn host_line(host: &HostSummary, last_reply: Option<&str>) -> String {
    let probe = host.next_probe.as_deref().map_or_else(String::new, |at| format!(", probed next at {at}"));
    let reason = Some(&*host.reason).filter(|&reason| !reason.is_empty() && Some(reason) != last_reply);
    let reason = reason.map_or_else(String::new, |reason| format!(": {}", shown(reason)));
    format!("    host {} {}{probe}{reason}", shown(&host.host), host.breaker)
}

/// When nothing matched: is there such a destination at all?
pub fn tell_if_unknown(socket: &Path, destination: &str) {
    if let Ok(0) = ask(socket, &WireRequest::QueueSummary { destination: Some(destination.to_owned()) }, |_| ()) {
        say_unknown(destination);
    }
}

fn say_unknown(destination: &str) {
    eprintln!(
        "ringpost: --destination {destination:?}: the engine has no mail for a destination of this name; `ringpost queue summary` names those there are"
    );
}

/// `1 message`, `2 messages`.
pub fn messages(count: u64) -> String {
    format!("{count} message{}", plural(count))
}

/// What makes a noun plural, if it is.
pub fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Prints text; a reader that went away (`| head`) ends the output quietly. Whatever peers put into it steers no terminal; that it makes no
/// line of its own is for [`shown`] to see to, part by part.
pub fn say(text: &str) {
    print(&shown_lines(text));
}

/// Prints an object for programs.
pub fn say_json(object: &str) {
    print(&shown_json(object));
}

fn print(text: &str) {
    ended_by(writeln!(io::stdout(), "{text}"));
}

/// The exit code of an answer.
pub fn code(result: Result<bool, ControlError>) -> ExitCode {
    ExitCode::from(match result {
        Ok(true) => EXIT_OK,
        Ok(false) => EXIT_NEGATIVE,
        Err(ControlError::TooLong(reason)) => wrong_usage(&reason),
        Err(error) => {
            eprintln!("ringpost: {}", shown_lines(&error.to_string()));
            match error {
                ControlError::Refused(_) => EXIT_NEGATIVE,
                ControlError::Config(_) => EXIT_CONFIG,
                _ => EXIT_UNAVAILABLE,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is offered to the cluster once counted as held, and has a column of its own since.
    #[test]
    fn each_number_of_a_destination_stands_under_its_name() {
        let summary = DestinationSummary {
            destination: "example.org".to_owned(),
            messages: 20,
            recipients: 21,
            ready: 1,
            deferred: 2,
            active: 3,
            held: 4,
            offered: 5,
            failed: 6,
            connections: 7,
            window: 8,
            connections_max: 9,
            ..Default::default()
        };
        let (head, line) = (summary_head(), summary_line(&summary));
        for (name, number) in [
            ("messages", "20"),
            ("recipients", "21"),
            ("ready", "1"),
            ("deferred", "2"),
            ("active", "3"),
            ("held", "4"),
            ("offered", "5"),
            ("failed", "6"),
            ("open", "7"),
            ("window", "8"),
            ("max", "9"),
        ] {
            let end = head.find(name).expect("it has a column") + name.len();
            assert!(
                line[..end].ends_with(&format!(" {number}")) && !line[end..].starts_with(|next: char| next.is_ascii_digit()),
                "{name}\n{head}\n{line}"
            );
        }
    }
}
