//! A history whose lock somebody else has, or has left.

use std::{
    fs::{File, Permissions},
    io::{BufRead, BufReader},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
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

/// What happened: root added to a user's history, and left a lock that was root's, so that the user could not add any more.
#[test]
fn a_user_adds_to_a_history_to_which_root_has_added() {
    let (user, group) = (12_345, 12_346);
    let sink = Sink::start(SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0])).unwrap();
    for left_before in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        let (history, lock) = (path("history.jsonl"), path("history.jsonl.lock"));
        for name in ["1.json", "2.json"] {
            let sent = ringpost_load(&["source", "--to", &sink.address.to_string(), "--messages", "5", "--output", &path(name)]);
            assert_eq!(sent.status.code(), Some(0), "{}", text(&sent));
        }
        std::fs::write(&history, "").unwrap();
        for name in ["", "history.jsonl", "1.json", "2.json"] {
            if let Err(reason) = chown(path(name), Some(user), Some(group)) {
                // Only root gives files away, and only root can leave a lock that the history's owner may not write.
                println!("not tested, as this is not root: {}: {reason}", path(name));
                return;
            }
        }
        if left_before {
            std::fs::write(&lock, "").unwrap();
            std::fs::set_permissions(&lock, Permissions::from_mode(0o644)).unwrap();
        }
        let add = |result: &str, uid: Option<u32>| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
            command.args(["history", "--file", &history, "add", &path(result)]);
            if let Some(uid) = uid {
                command.uid(uid).gid(group);
            }
            let added = command.output().unwrap();
            assert_eq!(added.status.code(), Some(0), "{uid:?}, a lock was there: {left_before}: {}", text(&added));
        };
        add("1.json", None);
        add("2.json", Some(user));
        assert_eq!(ringpost_loadtest::history::read(history.as_ref()).unwrap().len(), 2);
    }
}

/// What happened: a user who may not replace root's history in a sticky folder was told "Operation not permitted", and of a lock that is
/// refused the lock was named and not the history.
#[test]
fn who_may_not_add_to_a_history_is_told_why() {
    let (user, group) = (12_345, 12_346);
    let sink = Sink::start(SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0])).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let sent = ringpost_load(&["source", "--to", &sink.address.to_string(), "--messages", "5", "--output", &path("1.json")]);
    assert_eq!(sent.status.code(), Some(0), "{}", text(&sent));
    let (history, lock) = (path("history.jsonl"), path("history.jsonl.lock"));
    std::fs::write(&history, "").unwrap();
    if let Err(reason) = chown(path("1.json"), Some(user), Some(group)) {
        println!("not tested, as this is not root: {reason}");
        return;
    }
    let add = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-load"));
        let added = command.args(["history", "--file", &history, "add", &path("1.json")]).uid(user).gid(group).output().unwrap();
        (added.status.code(), text(&added))
    };
    let mode = |path: &str, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(&path(""), 0o1777);
    mode(&history, 0o666);
    let (code, told) = add();
    assert!(code == Some(74) && told.contains("history.jsonl: ") && told.contains("sticky") && told.contains("user 0"), "{told}");
    assert!(!std::fs::exists(&lock).unwrap(), "it left a lock behind for nothing");
    // A folder in which nobody else may write.
    mode(&path(""), 0o755);
    let (code, told) = add();
    assert!(code == Some(74) && told.contains("history.jsonl: ") && told.contains("may not write into its folder"), "{told}");
    // The user's own, and a lock that is root's alone.
    mode(&path(""), 0o777);
    chown(&history, Some(user), Some(group)).unwrap();
    std::fs::write(&lock, "").unwrap();
    mode(&lock, 0o600);
    let (code, told) = add();
    assert!(
        code == Some(74) && told.contains("history.jsonl: its lock ") && told.contains("history.jsonl.lock: Permission denied"),
        "{told}"
    );
}
