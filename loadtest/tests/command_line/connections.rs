//! Connections without mail, and what a sink timed: the files that are left.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use ringpost_loadtest::{
    pinning,
    run_result::RunResult,
    sink::{Sink, SinkOptions},
};

use super::{ringpost_load, text};

/// What happened: connections had no result, so that no report, comparison or history of them could be had.
#[test]
fn connections_leave_a_result_that_is_reported_compared_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let core = pinning::cores().unwrap()[0];
    let mut options = SinkOptions::new(([127, 0, 0, 1], 0).into(), core);
    options.connections_max = Some(20);
    let sink = Sink::start(options).unwrap();
    let to = sink.address.to_string();
    let run = |mode: &str, connections: &str, code| {
        let file = path(&format!("{mode}{connections}.json"));
        let own = std::process::id().to_string();
        let arguments = [mode, "--to", &to, "--connections", connections, "--seconds", "0.4", "--output", &file, "--server-pid", &own];
        let output = ringpost_load(&arguments);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        // Those that are gone take no place of the next ones.
        while sink.counters().connections_open() > 0 {
            std::thread::yield_now();
        }
        (RunResult::read(file.as_ref()).unwrap(), file)
    };
    let (held, idle) = run("idle", "10", 0);
    assert_eq!((held.success, held.emails_sent, held.transactions(), held.connections_max, held.load.sessions), (true, 10, 10, 10, 10));
    assert!(
        held.settings["connections"]["open_at_end"] == 10 && held.load.server_cores.is_some() && held.duration >= 0.4,
        "{:?}",
        held.settings
    );
    let (refused, _) = run("idle", "30", 1);
    assert_eq!((refused.success, refused.emails_sent, refused.fates.unsent, refused.transactions_begun), (false, 20, 10, 30));
    assert!(refused.failures[0].starts_with("10 connections failed; the last trouble: 421"), "{:?}", refused.failures);
    run("slowloris", "5", 0);
    let (left, churn) = run("churn", "5", 0);
    assert!(left.emails_sent > 5 && left.emails_sent == left.transactions(), "{left:?}");
    let report = ringpost_load(&["report", &idle, &churn, "--hgrm", &path("hdr"), "--html", &path("page.html"), "--advice"]);
    assert!(report.status.code() == Some(0) && text(&report).contains("connections without mail: "), "{}", text(&report));
    assert!(text(&report).contains("there is no pace of messages to explain"), "{}", text(&report));
    assert!(folder.path().join("hdr/idle-transaction.hgrm").exists() && folder.path().join("hdr/churn-banner.hgrm").exists());
    assert!(std::fs::read_to_string(path("page.html")).unwrap().contains("10 greeted ("));
    assert_eq!(ringpost_load(&["compare", &idle, &idle]).status.code(), Some(0));
    assert_eq!(ringpost_load(&["history", "add", &idle, &churn, "--file", &path("history")]).status.code(), Some(0));
}

/// What happened: what a sink timed was in its summary, and in no file that a viewer opens.
#[test]
fn a_sink_leaves_its_latencies_for_viewers() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["sink", "--listen", "127.0.0.1:0", "--messages", "300", "--hgrm", &path("hdr")]);
    let mut sink = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut listening = String::new();
    BufReader::new(sink.stderr.take().unwrap()).read_line(&mut listening).unwrap();
    let to = listening.trim().strip_prefix("listening on ").unwrap();
    assert_eq!(ringpost_load(&["source", "--to", to, "--messages", "300", "--quiet"]).status.code(), Some(0));
    assert_eq!(sink.wait().unwrap().code(), Some(0));
    let plot = std::fs::read_to_string(path("hdr/sink-end_to_end.hgrm")).unwrap();
    assert!(plot.contains("Total count    =          300]") && !folder.path().join("hdr/sink-transaction.hgrm").exists(), "{plot}");
    assert!(std::fs::read_to_string(path("hdr/sink.hlog")).unwrap().contains("Tag=end_to_end,"));
}
