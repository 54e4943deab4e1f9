//! `ringpost queue pause|resume`: asks the running engine and prints.

use std::{path::Path, process::ExitCode};

use ringpost_smtp::shown::shown;

use crate::{
    cli::{Output, PauseArguments},
    control_client::ask,
    control_wire::WireRequest,
    pauser::{PauseCall, Paused},
    queue_cli::{code, say, say_json, wrong_usage},
};

/// Runs `queue pause`.
pub fn pause(socket: &Path, which: PauseArguments, list: bool, output: Output) -> ExitCode {
    if list && (which.all || !which.names.is_empty()) {
        wrong_usage("--list says what is paused, and pauses nothing: leave the rest out");
    }
    if list {
        return tell(socket, &WireRequest::QueuePaused {}, output, "paused");
    }
    change(socket, PauseCall::Pause, which, output)
}

/// Runs `queue resume`.
pub fn resume(socket: &Path, which: PauseArguments, output: Output) -> ExitCode {
    change(socket, PauseCall::Resume, which, output)
}

fn change(socket: &Path, call: PauseCall, PauseArguments { names, all }: PauseArguments, output: Output) -> ExitCode {
    if all != names.is_empty() {
        wrong_usage(
            "which destinations? give names, as `ringpost queue summary` has them, or --all for every one there is and comes; not both",
        );
    }
    let word = match call {
        PauseCall::Pause => "paused",
        PauseCall::Resume => "resumed",
    };
    tell(socket, &WireRequest::QueuePause { action: call, names, all }, output, word)
}

/// Exit code 1 where what was to be resumed stays paused.
fn tell(socket: &Path, request: &WireRequest, output: Output, word: &str) -> ExitCode {
    let mut is_whole = true;
    let result = ask(socket, request, |line| {
        let Ok(paused) = serde_json::from_str::<Paused>(line) else { return };
        is_whole = paused.still.is_empty();
        for (name, by) in &paused.still {
            eprintln!("ringpost: {} stays paused: `ringpost queue resume {by}` ends that", shown(name));
        }
        if output.json {
            return say_json(line);
        }
        if !paused.unchanged.is_empty() {
            let so = if word == "paused" { "paused already" } else { "not paused by this name" };
            eprintln!("ringpost: {so}: {}", list_of(&paused.unchanged));
        }
        if !paused.changed.is_empty() {
            say(&format!("{word}: {}", list_of(&paused.changed)));
        }
        let all = paused.all.then(|| "--all".to_owned());
        let in_force: Vec<String> = all.into_iter().chain(paused.paused).collect();
        if in_force.is_empty() {
            say("nothing is paused");
        } else if matches!(request, WireRequest::QueuePaused {}) {
            in_force.iter().for_each(|name| say(&shown(name)));
        }
    });
    code(result.map(|_| is_whole))
}

fn list_of(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| shown(name).into_owned()).collect();
    names.join(", ")
}
