//! Completion scripts, asked as shells ask them.

use std::{collections::BTreeSet, process::Command};

use super::{ringpost_load, text};

fn script(shell: &str) -> String {
    let output = ringpost_load(&["completions", shell]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What bash offers for the last of these words.
fn offered(words: &[&str]) -> Vec<String> {
    let call = "eval \"$SCRIPT\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _ringpost__load \"$1\" \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", call, "bash"]).args(words).env("SCRIPT", script("bash")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output).split_whitespace().map(str::to_owned).collect()
}

/// What happened: nothing was offered behind the first word, as the script went to states under other names than it had them.
#[test]
fn bash_offers_what_may_come_behind_a_command() {
    assert_eq!(offered(&["ringpost-load", "so"]), ["source"]);
    assert_eq!(
        offered(&["ringpost-load", "source", "--se"]),
        ["--sessions", "--seconds", "--sender", "--seed", "--server-pid", "--server-cores"]
    );
    assert_eq!(offered(&["ringpost-load", "history", "pl"]), ["plot"]);
    assert!(offered(&["ringpost-load", "history", "plot", "--metric", ""]).contains(&"p99".to_owned()));
    // This one has a hyphen in its own name, too.
    assert_eq!(offered(&["ringpost-load", "own-floor", "--mess"]), ["--messages"]);
}

/// In zsh and fish what is called has to be defined under the same name.
#[test]
fn scripts_of_other_shells_call_what_they_define() {
    let named = |script: &str, prefix: &str| -> BTreeSet<String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        script.match_indices(prefix).map(|(at, _)| script[at..].chars().take_while(|&c| is_name(c)).collect()).collect()
    };
    let zsh = script("zsh");
    for name in named(&zsh, "_ringpost-load") {
        assert!(zsh.contains(&format!("\n{name}() {{")), "{name}");
    }
    let fish = script("fish");
    for name in named(&fish, "__fish_ringpost_load") {
        assert!(fish.contains(&format!("function {name}\n")), "{name}");
    }
}
