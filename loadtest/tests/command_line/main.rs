//! The built program from outside: what it prints and how it ends.

mod completions;
mod connections;
mod ends;
mod history;

use ringpost_loadtest::run_result::RunResult;
use std::{
    io::Write,
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
    write("accepted", "0000000000000001-000000000001 10 000000000000000a 5 a@b -\n");
    write("delivered", "0000000000000001-000000000001 10 000000000000000a 6 ok a@b\n");
    write("empty", "");
    write("elsewhere", "0000000000000001-000000000001 10 000000000000000a 6 ok c@b\n");
    write("old", "0000000000000001-000000000001 10 000000000000000a 5 1 -\n");
    write("cut", "0000000000000001-0000000");
    let exit = |a: &str, b: &str| ringpost_load(&["diff", &path(a), &path(b)]).status.code();
    assert_eq!(exit("accepted", "delivered"), Some(0));
    assert_eq!(exit("accepted", "empty"), Some(1));
    assert_eq!(exit("accepted", "elsewhere"), Some(1));
    assert_eq!(exit("cut", "delivered"), Some(65));
    // Nothing was compared, and all was well.
    assert_eq!(exit("empty", "empty"), Some(65));
    write("run-only", "# run 0000000000000002\n");
    assert_eq!(exit("run-only", "empty"), Some(65));
    assert_eq!(exit("old", "delivered"), Some(65));
    // What follows was lost mail, or foreign, or nothing.
    assert_eq!(exit("delivered", "accepted"), Some(65));
    assert_eq!(exit("delivered", "delivered"), Some(65));
    assert_eq!(exit("accepted", "accepted"), Some(65));
    write("sinks", "0000000000000001-000000000001 10 000000000000000a 6 ok a@b s@x\n");
    let swapped = ringpost_load(&["diff", &path("sinks"), &path("accepted")]);
    assert!(text(&swapped).contains("the source's ledger comes first"), "{}", text(&swapped));
    write("crlf-accepted", "0000000000000001-000000000001 10 000000000000000a 5 a@b -\r\n");
    write("crlf-delivered", "0000000000000001-000000000001 10 000000000000000a 6 ok a@b\r\n");
    assert_eq!(exit("crlf-accepted", "crlf-delivered"), Some(0));
    write("no-recipient", "0000000000000001-000000000001 10 000000000000000a 5 a@b, -\n");
    write("no-time", "0000000000000001-000000000001 10 000000000000000a soon a@b -\n");
    write("no-verdict", "0000000000000001-000000000001 10 000000000000000a 6 well a@b\n");
    write("nobody", "0000000000000001-000000000001 10 000000000000000a 6 ok a@b,\n");
    for (accepted, delivered) in
        [("no-recipient", "delivered"), ("no-time", "delivered"), ("accepted", "no-verdict"), ("accepted", "nobody")]
    {
        let output = ringpost_load(&["diff", &path(accepted), &path(delivered)]);
        assert_eq!(output.status.code(), Some(65), "{accepted} {delivered}: {}", text(&output));
        assert!(text(&output).contains(":1: "), "{}", text(&output));
    }
    // A run of which no 250 was read.
    write("run", "# run 0000000000000001\n");
    assert_eq!(exit("run", "delivered"), Some(0));
    assert_eq!(exit("accepted", "run"), Some(65));
    write("other", "# run 1\n");
    assert_eq!(exit("other", "delivered"), Some(65));
    let json = ringpost_load(&["diff", "--json", &path("accepted"), &path("empty")]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["lost"], 1);
}

/// What happened: three messages of a load whose recipients were exchanged on the way were no difference, as their number was right.
#[test]
fn diff_notices_mail_that_came_to_somebody_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let core = ringpost_loadtest::pinning::cores().unwrap()[0];
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let options = ringpost_loadtest::sink::SinkOptions::new(address, core);
    let delivered = Some(path("delivered").into());
    let sink = ringpost_loadtest::sink::Sink::start(ringpost_loadtest::sink::SinkOptions { ledger: delivered, ..options }).unwrap();
    let load = ["source", "--to", &sink.address.to_string(), "--messages", "3", "--sessions", "1", "--ledger", &path("accepted")];
    let sent = ringpost_load(&[&load[..], &["--recipients", "2", "--domains", "3"]].concat());
    assert_eq!(sent.status.code(), Some(0), "{}", text(&sent));
    sink.stop();
    sink.join().unwrap();
    assert_eq!(ringpost_load(&["diff", &path("accepted"), &path("delivered")]).status.code(), Some(0));
    // Each line has the recipients of the one before it.
    let ledger = std::fs::read_to_string(path("delivered")).unwrap();
    let lines: Vec<Vec<&str>> = ledger.lines().map(|line| line.rsplitn(3, ' ').collect()).collect();
    assert!(lines.iter().all(|line| line[0] == "sender@load.test"), "{ledger}");
    let exchanged: String = (0..3).map(|at| format!("{} {} {}\n", lines[at][2], lines[(at + 2) % 3][1], lines[at][0])).collect();
    std::fs::write(path("exchanged"), exchanged).unwrap();
    let output = ringpost_load(&["diff", "--json", &path("accepted"), &path("exchanged")]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["lost"], &value["foreign"], &value["misdirected"]), (&6.into(), &6.into(), &6.into()), "{value}");
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
    // The attachment is this file; the key was not known to scenarios.
    let load =
        format!("sessions = 3\nmessages = 100\nheader = [\"X-Number: {{{{seq}}}}\"]\nattach = [{path:?}]\nfrom_address = [\"127.0.0.3\"]");
    std::fs::write(&path, format!("name = \"short\"\nabout = \"Short.\"\nseconds = 0.5\n[load]\n{load}\n")).unwrap();
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
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    let arguments = ["source", "--to", "127.0.0.1:1", "--messages", "1", "--seconds", "0.3", "--output", path.to_str().unwrap()];
    let output = ringpost_load(&arguments);
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
    assert!(text(&output).contains("connect_refused"));
    // The result said success, and its report that it had passed.
    let result = RunResult::read(&path).unwrap();
    assert!(!result.success && result.failures[0].starts_with("no message was acknowledged"), "{:?}", result.failures);
    let report = ringpost_load(&["report", path.to_str().unwrap(), "--advice"]);
    assert_eq!(report.status.code(), Some(1), "{}", text(&report));
    assert!(text(&report).contains("FAILED") && text(&report).contains("Nothing was acknowledged"), "{}", text(&report));
    assert_eq!(ringpost_load(&["source", "--to", "nonsense", "--messages", "1"]).status.code(), Some(2));
    assert_eq!(ringpost_load(&["source", "--to", "nobody.invalid:25", "--messages", "1"]).status.code(), Some(69));
    let no_end = ringpost_load(&["source", "--to", "127.0.0.1:1"]);
    assert!(no_end.status.code() == Some(2) && text(&no_end).contains("--messages <MESSAGES>|--seconds"), "{}", text(&no_end));
    // These were "unexpected arguments", with a tip that made it worse.
    for (arguments, part) in
        [(["--seconds", "1", "--rate", "-5"], "\"-5\" is no rate"), (["--seconds", "-1", "--size", "1"], "--seconds: -1")]
    {
        let output = ringpost_load(&[&["source", "--to", "127.0.0.1:1"][..], &arguments].concat());
        assert!(output.status.code() == Some(2) && text(&output).contains(part), "{}", text(&output));
    }
    let no_engine = ringpost_load(&["run", "baseline", "--engine", "/nowhere/ringpost"]);
    assert!(
        no_engine.status.code() == Some(2) && text(&no_engine).contains("--engine: no engine at /nowhere/ringpost"),
        "{}",
        text(&no_engine)
    );
}

#[test]
fn a_standstill_is_seen_by_the_open_loop() {
    let output = ringpost_load(&["omission", "--seconds", "2", "--every", "1", "--stall", "0.3", "--rate", "300", "--quiet"]);
    let text = text(&output);
    // What happened: there was a verdict by a p99.9 that was a dash two lines above it.
    assert!(text.contains("no verdict: p99.9") && !text.contains("shows the standstill"), "{text}");
    assert_eq!(output.status.code(), Some(1), "{text}");
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

/// What happened: connections that were greeted at once and held for a minute were so many sixtieths a second.
#[test]
fn connections_that_are_held_are_counted_by_the_time_of_their_greeting() {
    let core = ringpost_loadtest::pinning::cores().unwrap()[0];
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = ringpost_loadtest::sink::Sink::start(ringpost_loadtest::sink::SinkOptions::new(address, core)).unwrap();
    let to = sink.address.to_string();
    for mode in ["idle", "slowloris"] {
        let output = ringpost_load(&[mode, "--to", &to, "--connections", "30", "--seconds", "2", "--json"]);
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["greeted"], 30, "{value}");
        // Over the two seconds it would be 15.
        assert!(value["greeted_per_second"].as_f64().unwrap() > 20.0, "{value}");
    }
}

/// Each of these once ran, or went on for ever, or wasted the run, before it said what was wrong, or did not say it.
#[test]
fn what_cannot_be_measured_is_said_before_the_run() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    let own = std::process::id().to_string();
    let source = |more: &[&str]| {
        let output = ringpost_load(&[&["source", "--to", "127.0.0.1:1", "--messages", "1", "--seconds", "0.1"], more].concat());
        (output.status.code(), text(&output))
    };
    for (arguments, code, word) in [
        (vec!["--output", "/nowhere/x.json"], 74, "/nowhere/x.json"),
        (vec!["--output", "/"], 74, "directory"),
        (vec!["--server-pid", "4194305"], 2, "--server-pid 4194305: there is no such process on this machine; it names the server's"),
        (vec!["--cores", "1023"], 2, "may use"),
        (vec!["--tui"], 2, "terminal"),
        (vec!["--from-address", "::1"], 2, "IPv6"),
        (vec!["--header", "no field"], 2, "--header"),
        (vec!["--size", "100"], 2, "octets at least"),
        // These are files, and ended as wrong usage does.
        (vec!["--size", "@/nowhere/mix"], 65, "the mix file /nowhere/mix: No such file"),
        (vec!["--size", "@/dev/zero"], 65, "the mix file /dev/zero: it is no regular file"),
        // These were of the smallest that there is, half of them or all, and nothing was said.
        (vec!["--size", "lognormal:0:1"], 2, "half of them would have no more than 256 octets"),
        (vec!["--size", "lognormal:100:1:100..1k"], 2, "no more than 100 octets"),
        (vec!["--size", "1KiB", "--attach", "/dev/null"], 2, "--attach"),
        (vec!["--size", "1KiB", "--corpus", "/"], 2, "--corpus"),
        (vec!["--size", "1KiB", "--template", "/dev/null"], 2, "--template"),
        (vec!["--header", "X: {{nope}}"], 2, "--header: \"X: {{nope}}\": \"nope\" is not known"),
        (vec!["--timeout", "0"], 2, "--timeout"),
        (vec!["--timeout", "nan"], 2, "--timeout"),
        (vec!["--bytes-per-s", "0"], 2, "bytes-per-s"),
        (vec!["--think-ms", "18446744073709551615"], 2, "think-ms"),
        // The pause was a part of what the server was said to take.
        (vec!["--rate", "5", "--think-ms", "10"], 2, "--rate 5 with --think-ms: an open loop"),
        (vec!["--hello", "x\r\nQUIT"], 2, "RFC 5321"),
        (vec!["--sender", "a b>c"], 2, "RFC 5321"),
        // It was sent, whatever its length, and refused by each server.
        (vec!["--sender", &"a".repeat(255)], 2, "254 octets at most (RFC 5321 4.5.3.1.3), and this one 255"),
        (vec!["--domain", ""], 2, "octets"),
    ] {
        let (ended, said) = source(&arguments);
        assert_eq!(ended, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
    let long = ringpost_load(&["source", "--to", "127.0.0.1:1", "--seconds", "1e19"]);
    assert_eq!(long.status.code(), Some(2), "{}", text(&long));
    for (arguments, code, word) in [
        (vec!["run", "baseline", "baseline", "--to", "127.0.0.1:1"], 2, "twice"),
        (vec!["sink", "--connections-max", "0"], 2, "connections-max"),
        (vec!["sink", "--cores", "1023", "--seconds", "0.1"], 2, "may use"),
        (vec!["sink", "--listen", "127.0.0.1:x", "--seconds", "0.1"], 2, "HOST:PORT"),
        (vec!["source", "--to", "127.0.0.1:99999", "--messages", "1"], 2, "HOST:PORT"),
        (vec!["run", "baseline", "--engine-cores", "1023"], 2, "may use"),
        // These were taken for nothing where something else excluded --to.
        (vec!["run", "relay", "--next-hop", "127.0.0.1:1", "--engine-cores", "0"], 2, "--to"),
        (vec!["run", "relay", "--server-pid", "1", "--engine", "/nowhere/ringpost"], 2, "--to"),
        (vec!["run", "relay", "--next-hop", "127.0.0.1:1"], 2, "--to"),
        (vec!["report", "/nowhere/x.json"], 65, "/nowhere/x.json"),
        (vec!["compare", "/nowhere/x.json", "/nowhere/x.json"], 65, "/nowhere/x.json"),
        (vec!["idle", "--to", "127.0.0.1:1", "--timeout", "0"], 2, "--timeout"),
        (vec!["sink", "--per-client-max", "0"], 2, "per-client-max"),
        // Nothing is measured in no time or by no message, and that nobody answers was the wrong reason to end with.
        (vec!["source", "--to", &silent, "--messages", "0"], 2, "--messages"),
        (vec!["source", "--to", &silent, "--seconds", "0"], 2, "--seconds"),
        (vec!["sink", "--messages", "0"], 2, "--messages"),
        (vec!["idle", "--to", &silent, "--seconds", "0"], 2, "--seconds"),
        (vec!["slowloris", "--to", &silent, "--octet-every", "0"], 2, "--octet-every"),
        (vec!["churn", "--to", &silent, "--from-address", "::1"], 2, "IPv6"),
        (vec!["omission", "--seconds", "0"], 2, "--seconds"),
        (vec!["omission", "--sessions", "0"], 2, "--sessions 0"),
        (vec!["omission", "--to", "127.0.0.1:1", "--server-pid", "1"], 2, "init"),
        (vec!["omission", "--to", "127.0.0.1:1", "--server-pid", &own], 69, "127.0.0.1:1: Connection refused"),
        (vec!["sink", "--ledger", "/nowhere/l", "--seconds", "0.1"], 74, "/nowhere/l"),
        (vec!["omission", "--to", "127.0.0.1:1", "--server-pid", "4194305"], 2, "4194305: there is no such process"),
        (vec!["idle", "--to", "127.0.0.1:1", "--server-pid", "4194305"], 2, "whose CPU and memory are measured"),
        (vec!["run", "baseline", "--to", "127.0.0.1:1", "--server-pid", "4194305"], 2, "whose CPU and memory are measured"),
    ] {
        let output = ringpost_load(&arguments);
        assert!(output.status.code() == Some(code) && text(&output).contains(word), "{arguments:?}: {}", text(&output));
        assert!(!text(&output).contains("listening") && !text(&output).contains("stands still"), "{arguments:?}: {}", text(&output));
    }
    let itself = ringpost_load(&["run", "relay", "--to", "127.0.0.1:1", "--next-hop", "127.0.0.1:1"]);
    assert_eq!(itself.status.code(), Some(2), "{}", text(&itself));
    let gone = ringpost_load(&["run", "baseline", "--to", "127.0.0.1:1"]);
    assert_eq!(gone.status.code(), Some(69), "{}", text(&gone));
    for mode in ["idle", "slowloris", "churn"] {
        let gone = ringpost_load(&[mode, "--to", "127.0.0.1:1", "--connections", "3", "--seconds", "0.3"]);
        assert_eq!(gone.status.code(), Some(69), "{mode}: {}", text(&gone));
    }
    let idle = ringpost_load(&["idle", "--to", &silent, "--connections", "3", "--seconds", "0.3"]);
    assert_eq!(idle.status.code(), Some(1), "{}", text(&idle));
    assert!(text(&idle).contains("3 were connected, or tried to be, and never greeted"), "{}", text(&idle));
}

/// What happened: a damaged histogram was an empty one to whoever read it, and the comparison and the report of it ended with 0.
#[test]
fn a_result_with_a_damaged_histogram_is_refused_with_its_file_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let core = ringpost_loadtest::pinning::cores().unwrap()[0];
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = ringpost_loadtest::sink::Sink::start(ringpost_loadtest::sink::SinkOptions::new(address, core)).unwrap();
    let good = path("good.json");
    let output = ringpost_load(&["source", "--to", &sink.address.to_string(), "--messages", "50", "--output", &good]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(ringpost_load(&["compare", &good, &good]).status.code(), Some(0));
    assert_eq!(ringpost_load(&["report", &good, "--suite", &path("suite.json")]).status.code(), Some(0));
    let damaged = |from: &str, field: &str, damage: &dyn Fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(path(from)).unwrap()).unwrap();
        damage(value.pointer_mut(field).unwrap());
        std::fs::write(path("bad.json"), value.to_string()).unwrap();
        let bad = path("bad.json");
        for arguments in [["compare", &good, &bad], ["report", &good, &bad]] {
            let output = ringpost_load(&arguments);
            let (said, field) = (text(&output), field.rsplit('/').nth(1).unwrap());
            assert_eq!(output.status.code(), Some(65), "{arguments:?}: {said}");
            assert!(said.contains("bad.json") && said.contains(field) && said.contains("histogram"), "{said}");
        }
    };
    let cut = |histogram: &mut serde_json::Value| {
        let whole = histogram.as_str().unwrap();
        *histogram = whole[..whole.len() / 2].into();
    };
    damaged("good.json", "/phases/transaction/histogram", &cut);
    damaged("good.json", "/phases/mail/count", &|count| *count = 49.into());
    damaged("good.json", "/intervals/0/histograms/mail", &cut);
    damaged("suite.json", "/results/0/phases/transaction/histogram", &cut);
}

/// These passed against a server that runs without a look at what became of the mail.
#[test]
fn a_scenario_that_compares_ledgers_wants_a_next_hop() {
    for scenario in ["relay", "many-destinations", "recovery-after-kill"] {
        let output = ringpost_load(&["run", scenario, "--to", "127.0.0.1:1"]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        let word = if scenario == "recovery-after-kill" { "not killed" } else { "--next-hop" };
        assert!(text(&output).contains(word), "{}", text(&output));
    }
}

/// A name could colour the terminal or hide lines of it.
#[test]
fn names_are_printed_without_control_characters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    let core = ringpost_loadtest::pinning::cores().unwrap()[0];
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = ringpost_loadtest::sink::Sink::start(ringpost_loadtest::sink::SinkOptions::new(address, core)).unwrap();
    let arguments = ["--messages", "5", "--name", "a\u{1b}[31m\nb", "--output", path.to_str().unwrap()];
    ringpost_load(&[&["source", "--to", &sink.address.to_string()][..], &arguments].concat());
    let report = ringpost_load(&["report", path.to_str().unwrap(), "--advice"]);
    assert_eq!(report.status.code(), Some(0), "{}", text(&report));
    assert!(!text(&report).contains('\u{1b}') && text(&report).matches("a\\u{1b}[31m\\nb").count() == 2, "{}", text(&report));
    let history = folder.path().join("history").to_str().unwrap().to_owned();
    ringpost_load(&["history", "--file", &history, "add", path.to_str().unwrap()]);
    let kept = ringpost_load(&["history", "--file", &history, "list"]);
    assert!(!text(&kept).contains('\u{1b}') && text(&kept).contains("a\\u{1b}[31m"), "{}", text(&kept));
    let wrong = ringpost_load(&["source", "--to", "127.0.0.1:1", "--size", "\u{1b}[31m"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong));
    assert!(!text(&wrong).contains('\u{1b}') && text(&wrong).contains("--size"), "{}", text(&wrong));
}

/// What happened: the words of a server were printed as they came.
#[test]
fn what_a_server_says_is_printed_without_control_characters() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Ends with the process: it waits for connections that do not come any more.
    std::thread::spawn(move || {
        listener.incoming().map_while(Result::ok).for_each(|mut stream| stream.write_all(b"554 \x1b[2Jno\r\n").unwrap())
    });
    let load = ringpost_load(&["source", "--to", &address, "--messages", "1", "--timeout", "0.2"]);
    assert!(!text(&load).contains('\u{1b}') && text(&load).contains("554 \\u{1b}[2Jno"), "{}", text(&load));
}

/// What happened: the kernel's signal ended the command in the middle, without a word and without its result.
#[test]
fn a_limit_of_file_sizes_is_an_error_of_the_write() {
    let folder = tempfile::tempdir().unwrap();
    let limited = "ulimit -f 1; exec \"$0\" man --dir \"$1\"";
    let output = Command::new("/bin/sh").args(["-c", limited, env!("CARGO_BIN_EXE_ringpost-load")]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(74), "{:?}: {}", output.status, text(&output));
    assert!(text(&output).contains("too large"), "{}", text(&output));
}

/// What happened: a server's process that ended during the run had figures that looked like those of the whole of it.
#[test]
fn a_server_process_that_ends_during_the_run_is_told() {
    let mut server = Command::new("/bin/sh").args(["-c", "read line"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let pid = server.id().to_string();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = nobody.local_addr().unwrap().to_string();
    let load = Command::new(env!("CARGO_BIN_EXE_ringpost-load"))
        .args(["source", "--to", &to, "--seconds", "2", "--quiet", "--server-pid", &pid])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its first connection tells that it has begun.
    drop(nobody.accept().unwrap());
    drop(server.stdin.take());
    server.wait().unwrap();
    let output = load.wait_with_output().unwrap();
    assert!(text(&output).contains(&format!("--server-pid {pid}: the process ended before the run did")), "{}", text(&output));
}
