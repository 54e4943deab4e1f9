//! The built program from outside: what it prints and how it ends.

use std::{
    path::Path,
    process::{Command, Output},
};

fn ringpost_load(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringpost-load")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn diff_ends_with_0_1_or_65() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("accepted", "0000000000000001-000000000001 10 000000000000000a 5 1 -\n");
    write("delivered", "0000000000000001-000000000001 10 000000000000000a 6 ok a@b\n");
    write("empty", "");
    write("cut", "0000000000000001-0000000");
    let exit = |a: &str, b: &str| ringpost_load(&["diff", &path(a), &path(b)]).status.code();
    assert_eq!(exit("accepted", "delivered"), Some(0));
    assert_eq!(exit("accepted", "empty"), Some(1));
    assert_eq!(exit("cut", "delivered"), Some(65));
    let json = ringpost_load(&["diff", "--json", &path("accepted"), &path("empty")]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["lost"], 1);
}

#[test]
fn a_scenario_with_an_unknown_key_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    let listed = ringpost_load(&["run", "--list", "baseline"]);
    let scenario = String::from_utf8(listed.stdout).unwrap();
    std::fs::write(&path, scenario.replace("sessions = 1", "session = 1")).unwrap();
    let output = ringpost_load(&["run", path.to_str().unwrap()]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(65), "{said}");
    assert!(said.contains("line 6") && said.contains("session") && said.contains("per_connection"), "{said}");
}

#[test]
fn a_scenario_runs_against_a_server_that_runs_and_leaves_results() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.toml");
    std::fs::write(&path, "name = \"short\"\nabout = \"Short.\"\nseconds = 0.5\n[load]\nsessions = 3\nmessages = 100\n").unwrap();
    let core = ringpost_loadtest::pinning::cores().unwrap()[0];
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = ringpost_loadtest::sink::Sink::start(ringpost_loadtest::sink::SinkOptions::new(address, core)).unwrap();
    let results = folder.path().join("results");
    let (to, results) = (sink.address.to_string(), results.to_str().unwrap());
    let arguments = ["run", path.to_str().unwrap(), "--to", &to, "--output", results, "--folder", folder.path().to_str().unwrap()];
    let output = ringpost_load(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let result = ringpost_loadtest::run_result::RunResult::read(&Path::new(results).join("short.json")).unwrap();
    assert!(result.success && result.emails_sent == 100 && result.test_name == "short");
    assert!(Path::new(results).join("suite.json").exists() && Path::new(results).join("report.html").exists());
}

#[test]
fn nobody_there_is_an_error_and_no_success() {
    let output = ringpost_load(&["source", "--to", "127.0.0.1:1", "--messages", "1", "--seconds", "0.3"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("connect_refused"));
    assert_eq!(ringpost_load(&["source", "--to", "nonsense", "--messages", "1"]).status.code(), Some(69));
    assert_eq!(ringpost_load(&["source", "--to", "127.0.0.1:1"]).status.code(), Some(2));
    assert_eq!(ringpost_load(&["run", "baseline", "--engine", "/nowhere/ringpost"]).status.code(), Some(69));
}

#[test]
fn a_standstill_is_seen_by_the_open_loop() {
    let output = ringpost_load(&["omission", "--seconds", "2", "--every", "1", "--stall", "0.3", "--rate", "300", "--quiet"]);
    let text = text(&output);
    assert!(text.contains("the open loop shows the standstill"), "{text}");
    // Three of ten messages were due while nobody answered, though only five sessions could be caught by it.
    let line = text.lines().find(|line| line.starts_with("open loop, from the scheduled time")).unwrap();
    let p90 = line.split("p90 ").nth(1).unwrap();
    let (number, unit) = p90.split_once(' ').unwrap();
    assert!(unit.starts_with("ms") && number.parse::<f64>().unwrap() > 100.0, "{line}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let core = ringpost_loadtest::pinning::cores().unwrap()[0];
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = ringpost_loadtest::sink::Sink::start(ringpost_loadtest::sink::SinkOptions::new(address, core)).unwrap();
    let to = sink.address.to_string();
    for arguments in [
        vec!["source", "--to", &to, "--messages", "10"],
        vec!["run", "--list"],
        vec!["sink", "--listen", "127.0.0.1:0", "--seconds", "0.1"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
        let mut child = command.args(&arguments).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
    }
}
