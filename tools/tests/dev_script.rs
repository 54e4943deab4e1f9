//! `./dev` itself, on a machine of stubs: what it starts, as whom, and in which surroundings.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Programs of the machine that the script may use; all others are stubs or missing.
const REAL: [&str; 6] = ["cat", "dirname", "env", "mkdir", "sh", "true"];
/// The rigs' program: says as whom it runs and where it works.
const TOOLS: &str = "echo \"$* | user ${USER_NOW:-caller} | folder ${RINGPOST_RIG_FOLDER:-none}\"";
/// Forgets the surroundings, as with `env_reset`.
const SUDO: &str = "shift\nexec env -i PATH=\"$PATH\" USER_NOW=root \"$@\"";

fn program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What `./dev bench floor` says to a user without root, where these programs are there, too.
fn bench_floor(stubs: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("programs");
    fs::create_dir_all(&programs).unwrap();
    fs::create_dir_all(folder.path().join("target/release")).unwrap();
    for name in REAL {
        let found = ["/usr/bin", "/bin"].iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
        symlink(found.expect("each system has it"), programs.join(name)).unwrap();
    }
    for &(name, text) in [("id", "echo 1000"), ("cargo", ":"), ("cc", ":"), ("perf", ":")].iter().chain(stubs) {
        program(&programs.join(name), text);
    }
    program(&folder.path().join("target/release/ringpost-tools"), TOOLS);
    let script = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../dev")).unwrap();
    // Programs of the machine itself would be found behind the stubs.
    let script: String = script.split_inclusive('\n').filter(|line| !line.starts_with("PATH=")).collect();
    fs::write(folder.path().join("dev"), script).unwrap();
    let mut command = Command::new(programs.join("sh"));
    command.arg(folder.path().join("dev")).args(["bench", "floor"]);
    command.env_clear().env("PATH", &programs).env("RINGPOST_RIG_FOLDER", "/the/disk");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

/// What happened: without Postfix `./dev bench floor` ended, though it promises to go on without it.
#[test]
fn without_postfix_floor_and_engine_are_measured_as_who_calls() {
    let said = bench_floor(&[("sudo", SUDO), ("apt-get", "exit 100")]);
    assert!(said.contains("it is left out"), "{said}");
    assert!(said.contains("| user caller | folder /the/disk"), "{said}");
}

/// What happened: through sudo the rigs forgot `RINGPOST_RIG_FOLDER` and measured another disk.
#[test]
fn the_folder_of_the_rigs_is_known_behind_sudo() {
    let said = bench_floor(&[("sudo", SUDO), ("postfix", ":")]);
    assert!(said.contains("| user root | folder /the/disk"), "{said}");
}

#[test]
fn without_sudo_the_caller_runs_what_needs_no_root() {
    let said = bench_floor(&[("postfix", ":")]);
    assert!(said.contains("Postfix cannot be started"), "{said}");
    assert!(said.contains("| user caller | folder /the/disk"), "{said}");
}
