//! `ringpost cluster`: asks the running engine and prints.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Subcommand;
use ringpost_cluster::control_plane::CONFIG_BYTES_MAX;
use ringpost_config::{format_duration, parse_duration};
use ringpost_engine::control::time_text;
use ringpost_smtp::shown::shown as shown_text;
use serde_json::Value;

use crate::{
    cli::{EXIT_IO, EXIT_NEGATIVE, Output},
    cluster::QUEUE_PARTITIONS,
    cluster_queue_cli::{QueueCommand, queue, queue_name},
    cluster_wire::ClusterCall,
    control_client::{ControlError, ask},
    control_wire::WireRequest,
    handover::LEASES_NONE,
    queue_cli::{code, say, say_json},
};

/// `ringpost cluster …`
#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Counts over all nodes, who leads, and whether Valkey answers.
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// Each node: how it is, what it runs, what it carries.
    Nodes {
        #[command(flatten)]
        output: Output,
    },
    /// Who leads; exit 1 if nobody does.
    Leader {
        #[command(flatten)]
        output: Output,
    },
    /// Ask the leader to let another node lead, and wait until one does; exit 1 if nobody leads or nobody takes over, 69 while Valkey is away.
    Handover {
        #[command(flatten)]
        output: Output,
    },
    /// The shared work queue.
    Queue {
        /// The queue [default: that of mail]
        #[arg(long, value_name = "NAME", global = true, value_parser = queue_name)]
        name: Option<String>,
        #[command(subcommand)]
        call: QueueCommand,
    },
    /// Settings that all nodes share.
    Config {
        #[command(subcommand)]
        call: ConfigCommand,
    },
}

/// `ringpost cluster config …`
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Check a file and give it to all nodes.
    Push {
        /// Sections that all nodes share: `relay`, `domain`, `route`, limits, policy.
        #[arg(value_name = "FILE")]
        path: PathBuf,
        /// Who pushes [default: the user's name]
        #[arg(long)]
        author: Option<String>,
        /// Only say what would be wrong with it here
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List the versions that are kept, the newest first.
    History {
        #[command(flatten)]
        output: Output,
    },
    /// Print a version as it was pushed.
    Show {
        /// The version [default: the current one]
        #[arg(value_name = "VERSION")]
        number: Option<u64>,
        #[command(flatten)]
        output: Output,
    },
    /// Print what changed from one version to another; exit 1 when the texts differ, as diff does.
    Diff {
        /// From this version [default: the one before]
        from: Option<u64>,
        /// To this version [default: the current one]
        to: Option<u64>,
        #[command(flatten)]
        output: Output,
    },
    /// Publish an earlier version's text again.
    Rollback {
        /// The version [default: one back, past what was rolled back already]
        #[arg(value_name = "VERSION")]
        number: Option<u64>,
        /// Who rolls back [default: the user's name]
        #[arg(long)]
        author: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Set how often nodes ask for a config they did not hear of.
    Poll {
        /// For instance 10s; 100ms to 1h
        #[arg(value_parser = poll_interval)]
        interval: Duration,
        #[command(flatten)]
        output: Output,
    },
}

/// Runs a cluster command against the engine that listens at `socket`.
pub fn cluster(socket: &Path, command: ClusterCommand) -> ExitCode {
    match command {
        ClusterCommand::Status { output } => show(socket, ClusterCall::Status {}, output, |status| {
            object(status);
            if let Some(since) = status["nodes_unknown_since"].as_u64() {
                say(&format!("how the other nodes are is unknown since {}", time_text(since)));
            }
        }),
        ClusterCommand::Nodes { output } => nodes(socket, output),
        ClusterCommand::Leader { output } => leader(socket, output),
        ClusterCommand::Handover { output } => show(socket, ClusterCall::HandOver {}, output, |asked| {
            say(&format!("{} leads in place of {}, epoch {}", field(asked, "next"), field(asked, "leader"), field(asked, "next_epoch")));
        }),
        ClusterCommand::Queue { name, call } => queue(socket, name, call),
        ClusterCommand::Config { call } => config(socket, call),
    }
}

/// Asks; prints each line as it is or by `text`.
pub(crate) fn show(socket: &Path, call: ClusterCall, output: Output, mut text: impl FnMut(&Value)) -> ExitCode {
    let result = ask(socket, &WireRequest::Cluster { ask: call }, |line| {
        if output.json {
            say_json(line);
        } else if let Ok(value) = serde_json::from_str(line) {
            text(&value);
        }
    });
    code(result.map(|_| true))
}

pub(crate) fn object(value: &Value) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        match value {
            Value::Object(inner) => inner.iter().for_each(|(inner, value)| say(&row(&format!("{name}.{inner}"), value))),
            value => say(&row(name, value)),
        }
    }
}

/// A name that is longer than its column has a blank behind it all the same.
fn row(name: &str, value: &Value) -> String {
    format!("{name:<27} {}", shown(value))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => shown_text(text).into_owned(),
        Value::Null => "-".to_owned(),
        value => value.to_string(),
    }
}

pub(crate) fn field(value: &Value, name: &str) -> String {
    shown(&value[name])
}

fn nodes(socket: &Path, output: Output) -> ExitCode {
    let (mut listed, mut numbers) = (false, BTreeMap::new());
    let code = show(socket, ClusterCall::Nodes {}, output, |node| {
        if let Some(number) = node["metadata"][QUEUE_PARTITIONS].as_str() {
            numbers.entry(number.to_owned()).or_insert_with(Vec::new).push(field(node, "id"));
        }
        if !listed {
            say(&format!(
                "{:<20}{:<10}{:<11}{:<24}{:>8}{:>10}{:>6}{:>8}",
                "id", "role", "status", "address", "sessions", "queued", "load", "config"
            ));
            listed = true;
        }
        let load = node["load"].as_f64().unwrap_or(0.0);
        say(&format!(
            "{:<20}{:<10}{:<11}{:<24}{:>8}{:>10}{load:>6.2}{:>8}",
            field(node, "id"),
            field(node, "role"),
            field(node, "status"),
            field(node, "address"),
            field(node, "connections"),
            field(node, "queue_depth"),
            field(node, "config_version"),
        ));
        if let Some(since) = node["unknown_since"].as_u64() {
            say(&format!("{:>20}as it was known at {}: Valkey does not say more", "", time_text(since)));
        }
        if node["config_refused"].is_object() {
            let does = if node["config_refused"]["waits"] == true { "waits to take over" } else { "refuses" };
            say(&format!(
                "{:>20}{does} config {}: {}",
                "",
                field(&node["config_refused"], "version"),
                field(&node["config_refused"], "reason")
            ));
        }
        if let Some(reason) = node["metadata"][LEASES_NONE].as_str() {
            say(&format!("{:>20}takes no mail of others now: {reason}", ""));
        }
        if node["last_error"].is_string() {
            say(&format!("{:>20}{}", "", field(node, "last_error")));
        }
    });
    if numbers.len() > 1 {
        let of_each = numbers.iter().map(|(number, nodes)| format!("{} ({})", shown_text(number), nodes.join(", ")));
        let of_each = of_each.collect::<Vec<_>>().join(", ");
        say(&format!(
            "cluster.queue_partitions is not the same on all nodes: {of_each}; `ringpost cluster status` has the number in force"
        ));
    }
    code
}

fn leader(socket: &Path, output: Output) -> ExitCode {
    let mut found = false;
    let result = ask(socket, &WireRequest::Cluster { ask: ClusterCall::Leader {} }, |line| {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        found = value["leader"].is_string();
        if output.json {
            say_json(line);
        } else if found {
            say(&field(&value, "leader"));
        } else {
            eprintln!("ringpost: nobody leads");
        }
    });
    code(result.map(|_| found))
}

fn config(socket: &Path, call: ConfigCommand) -> ExitCode {
    let published = |value: &Value| {
        say(&published_text(value));
        if let Some(warning) = value["warning"].as_str() {
            eprintln!("ringpost: {}", shown_text(warning));
        }
        let warnings = value["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
        warnings.for_each(|warning| eprintln!("ringpost: warning: {}", shown_text(warning)));
    };
    match call {
        ConfigCommand::Push { path, author, dry_run, output } => {
            let text = match pushed_text(&path) {
                Ok(text) => text,
                Err((code, reason)) => {
                    eprintln!("ringpost: {}: {reason}", path.display());
                    return ExitCode::from(code);
                }
            };
            show(socket, ClusterCall::ConfigPush { text, author: author_or_user(author), dry_run }, output, published)
        }
        ConfigCommand::History { output } => show(socket, ClusterCall::ConfigHistory {}, output, |version| {
            let mark = if version["current"] == true { "*" } else { " " };
            let of = if version["of"] == 0 { String::new() } else { format!(" (again {})", version["of"]) };
            let hash: String = field(version, "hash").chars().take(12).collect();
            let names = version["nodes"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let nodes = names.collect::<Vec<_>>().join(", ");
            let runs = if nodes.is_empty() { nodes } else { format!("  runs on {nodes}") };
            say(&format!(
                "{mark}{:>6}  {:<14}{:<20}{}{of}{runs}",
                field(version, "version"),
                hash,
                field(version, "author"),
                version["at"].as_u64().map_or_else(|| "-".to_owned(), time_text)
            ));
            for waiting in version["waiting"].as_array().into_iter().flatten() {
                say(&format!("{:>9}{} waits to take it over, and tries again: {}", "", field(waiting, "node"), field(waiting, "reason")));
            }
        }),
        ConfigCommand::Show { number, output } => show(socket, ClusterCall::ConfigShow { version: number }, output, |found| {
            if let Some(text) = found["text"].as_str() {
                say(text.trim_end());
            }
            if let Some(reason) = found["unanswered"].as_str() {
                let version = field(found, "version");
                eprintln!("ringpost: this is version {version}, which runs on this node; what is current nobody knows now: {reason}");
            }
        }),
        ConfigCommand::Diff { from, to, output } => code(diff(socket, from, to, output)),
        ConfigCommand::Rollback { number, author, output } => {
            show(socket, ClusterCall::ConfigRollback { version: number, author: author_or_user(author) }, output, published)
        }
        ConfigCommand::Poll { interval, output } => {
            let interval_ms = u64::try_from(interval.as_millis()).expect("at most an hour");
            show(socket, ClusterCall::ConfigPoll { interval_ms }, output, |_| {
                say(&format!("nodes ask every {}", format_duration(interval)))
            })
        }
    }
}

/// What came of a push; of one that was only to be checked, that nothing was pushed.
fn published_text(value: &Value) -> String {
    match (value["result"].as_str(), value["version"].as_u64()) {
        (Some("checked"), Some(0)) => "it can be pushed, and was not: this node runs no pushed config".to_owned(),
        (Some("checked"), Some(version)) => format!("it can be pushed, and was not: this node runs version {version}"),
        _ => format!("version {} {}", field(value, "version"), field(value, "result")),
    }
}

/// A config as it is pushed, unless it is larger than what can be; else the exit code and why.
fn pushed_text(path: &Path) -> Result<String, (u8, String)> {
    let too_long = |size: &str| {
        let sentence =
            format!("is {size} bytes long, and a config that is pushed is at most {CONFIG_BYTES_MAX}: push what nodes share only");
        (EXIT_NEGATIVE, sentence)
    };
    let unread = |error: std::io::Error| (EXIT_IO, error.to_string());
    let file = File::open(path).map_err(unread)?;
    let size = file.metadata().map_err(unread)?.len();
    if size > CONFIG_BYTES_MAX as u64 {
        return Err(too_long(&size.to_string()));
    }
    // A device or a pipe says no length, and may have no end.
    let mut text = Vec::new();
    file.take(CONFIG_BYTES_MAX as u64 + 1).read_to_end(&mut text).map_err(unread)?;
    if text.len() > CONFIG_BYTES_MAX {
        return Err(too_long(&format!("more than {CONFIG_BYTES_MAX}")));
    }
    String::from_utf8(text).map_err(|error| (EXIT_NEGATIVE, error.to_string()))
}

/// Within the limits of `cluster.config_poll`.
fn poll_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    let limits = ringpost_config::CONFIG_POLL;
    if limits.contains(&interval) {
        return Ok(interval);
    }
    let [least, most] = [limits.start(), limits.end()].map(|limit| format_duration(*limit));
    Err(format!("is not within {least} to {most}, as cluster.config_poll is"))
}

fn author_or_user(author: Option<String>) -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|user| !user.is_empty());
    let process = || user_name(rustix::process::getuid().as_raw(), &std::fs::read_to_string("/etc/passwd").unwrap_or_default());
    author.or_else(|| set("SUDO_USER")).or_else(|| set("USER")).unwrap_or_else(process)
}

/// By the text of `/etc/passwd`; its number, where that has no name for it.
fn user_name(uid: u32, passwd: &str) -> String {
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("uid:{uid}"))
}

/// Exit 1 when the texts differ, as diff does.
fn diff(socket: &Path, from: Option<u64>, to: Option<u64>, output: Output) -> Result<bool, ControlError> {
    let mut history: Vec<Value> = Vec::new();
    ask(socket, &WireRequest::Cluster { ask: ClusterCall::ConfigHistory {} }, |line| history.extend(serde_json::from_str::<Value>(line)))?;
    let to = to.or_else(|| history.iter().find(|version| version["current"] == true)?["version"].as_u64());
    let from = from.or_else(|| history.iter().filter_map(|version| version["version"].as_u64()).find(|version| Some(*version) < to));
    let text = |version: Option<u64>| -> Result<String, ControlError> {
        let Some(version) = version else { return Ok(String::new()) };
        let mut text = String::new();
        ask(socket, &WireRequest::Cluster { ask: ClusterCall::ConfigShow { version: Some(version) } }, |line| {
            let found: Value = serde_json::from_str(line).unwrap_or_default();
            text = found["text"].as_str().unwrap_or_default().to_owned();
        })?;
        Ok(text)
    };
    let (before, after) = (text(from)?, text(to)?);
    let lines = changed_lines(&before, &after);
    if output.json {
        say_json(&serde_json::json!({ "from": from, "to": to, "lines": lines }).to_string());
        return Ok(lines.is_empty());
    }
    let name = |version: Option<u64>| version.map_or("nothing".to_owned(), |version| format!("version {version}"));
    if (from, to) == (None, None) {
        say("no config was pushed yet: there is nothing to compare");
    }
    if !lines.is_empty() {
        say(&format!("--- {}\n+++ {}", name(from), name(to)));
    }
    lines.iter().for_each(|line| say(&shown_text(line)));
    Ok(lines.is_empty())
}

/// Lines of the longest common subsequence begin with a blank, others with - or +. Configs are short: quadratic is good enough, and beyond
/// a bound everything is shown as changed.
fn changed_lines(before: &str, after: &str) -> Vec<String> {
    const LINES_MAX: usize = 4000;
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    if a == b {
        return Vec::new();
    }
    let removed = |line: &str| format!("-{line}");
    let added = |line: &str| format!("+{line}");
    if a.len().max(b.len()) > LINES_MAX {
        return a.iter().map(|line| removed(line)).chain(b.iter().map(|line| added(line))).collect();
    }
    let width = b.len() + 1;
    let mut longest = vec![0_u16; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = if a[i] == b[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push(format!(" {}", a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && longest[(i + 1) * width + j] >= longest[i * width + j + 1]) {
            lines.push(removed(a[i]));
            i += 1;
        } else {
            lines.push(added(b[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `counters.elections_not_replicated1`: the count looked like a part of the name.
    #[test]
    fn a_long_name_and_its_value_are_apart() {
        assert_eq!(row("counters.elections_not_replicated", &1.into()), "counters.elections_not_replicated 1");
        assert_eq!(row("leader", &"n1".into()), format!("{:<28}n1", "leader"));
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        crate::cli::Cli::command().debug_assert();
    }

    /// Timers and containers set no `USER`: the history said that nobody is known to have pushed.
    #[test]
    fn who_has_no_name_in_the_environment_has_one_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nnot a line\nann:x:1000:0::/:\n";
        let names = [0, 1000, 7].map(|uid| user_name(uid, passwd));
        assert_eq!(names, ["root", "ann", "uid:7"]);
    }

    /// A device and a pipe have no length: `/dev/zero` was read until memory was full.
    #[test]
    fn what_is_pushed_is_read_as_far_as_it_may_be_long() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let other_end = pipe.clone();
        // The reader may leave before all is written.
        let writer = std::thread::spawn(move || std::fs::write(other_end, vec![b'#'; 2 * CONFIG_BYTES_MAX]));
        let (code, reason) = pushed_text(&pipe).expect_err("it is too long");
        assert!(code == EXIT_NEGATIVE && reason.contains("is more than 1048576 bytes long"), "{code} {reason}");
        assert_eq!(pushed_text(&folder.path().join("none")).expect_err("it is not there").0, EXIT_IO);
        let _may_have_ended = writer.join().unwrap();
        let file = folder.path().join("file");
        for (bytes, fits) in [(CONFIG_BYTES_MAX, true), (CONFIG_BYTES_MAX + 1, false)] {
            std::fs::write(&file, vec![b'#'; bytes]).unwrap();
            assert_eq!(pushed_text(&file).is_ok(), fits, "{bytes}");
        }
    }

    /// `version 0 checked` looked as if there were such a version.
    #[test]
    fn a_push_that_is_only_checked_says_that_nothing_was_pushed() {
        let text = |version: u64, result: &str| published_text(&serde_json::json!({ "version": version, "result": result }));
        assert_eq!(text(0, "checked"), "it can be pushed, and was not: this node runs no pushed config");
        assert_eq!(text(7, "checked"), "it can be pushed, and was not: this node runs version 7");
        assert_eq!(text(8, "published"), "version 8 published");
    }

    #[test]
    fn a_diff_shows_what_was_removed_and_added_in_its_place() {
        assert_eq!(changed_lines("a\nb\nc\n", "a\nx\nc\nd\n"), [" a", "-b", "+x", " c", "+d"]);
        assert!(changed_lines("a\n", "a\n").is_empty());
        assert_eq!(changed_lines("", "a\n"), ["+a"]);
    }
}
