//! A history whose lock somebody else has.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use ringpost_loadtest::{
    pinning,
    sink::{Sink, SinkOptions},
};
use rustix::fs::{FlockOperation, flock};

use super::{ringpost_load, text};

/// What happened: whoever added to a history while its lock was held waited without a word.
#[test]
fn whoever_waits_for_a_lock_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let sink = Sink::start(SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0])).unwrap();
    let sent = ringpost_load(&["source", "--to", &sink.address.to_string(), "--messages", "5", "--output", &path("x.json")]);
    assert_eq!(sent.status.code(), Some(0), "{}", text(&sent));
    let lock = File::create(path("history.jsonl.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
    command.args(["history", "--file", &path("history.jsonl"), "add", &path("x.json")]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut add = command.spawn().unwrap();
    let mut said = String::new();
    BufReader::new(add.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("waiting for ") && said.contains("history.jsonl.lock"), "{said}");
    flock(&lock, FlockOperation::Unlock).unwrap();
    assert_eq!(add.wait().unwrap().code(), Some(0));
    assert_eq!(ringpost_loadtest::history::read(&folder.path().join("history.jsonl")).unwrap().len(), 1);
}
