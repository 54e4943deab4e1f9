//! Commands of a node that stays after an error of its disk, and keeps no record any more.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::node::{Node, PATIENCE, Setup};
use crate::queue_steering::say;
use crate::shards::on_one_core;

/// Beyond it each write to a file fails: less than a segment.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A node that holds its mail and whose disk has failed, and the mail that it has acknowledged.
fn failed(shards: u32) -> (Node, Vec<String>) {
    let mut node = Node::start(&on_one_core(Setup::new(), shards));
    node.kill();
    let config = std::fs::read_to_string(&node.config).unwrap();
    std::fs::write(&node.config, config.replace("[spool]\n", "[spool]\non_disk_failure = \"stop-accepting\"\n")).unwrap();
    node.prelude = Some("trap '' XFSZ".to_owned());
    node.restart();
    // The one that is written, and those that are prepared: the disk is to fail mail, and not what is done ahead.
    let log = node.folder.path().join("spool/shard-000");
    let segments =
        || std::fs::read_dir(&log).unwrap().flatten().filter(|file| file.path().extension().is_some_and(|end| end == "log")).count();
    let began = Instant::now();
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "no {what}: {}", node.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait("segments ahead", &|| segments() == 4);
    node.limit_files(FILE_BYTES_MAX);
    let (content, mut acknowledged) = (format!("Subject: x\r\n\r\n{}", ("x".repeat(70) + "\r\n").repeat(200)), Vec::new());
    loop {
        let mut client = Client::greeted(node.address);
        client.must("MAIL FROM:<a@x.test>", "250");
        client.must("RCPT TO:<b@y.test>", "250");
        client.must("DATA", "354");
        let reply = client.say(&format!("{content}\r\n."));
        let Some((_, id)) = reply.trim_end().rsplit_once("id=") else { break };
        acknowledged.push(id.to_owned());
    }
    wait("word of it", &|| node.log().contains("the spool failed: nothing more is promised"));
    (node, acknowledged)
}

/// A purge was answered with 0 messages, as if there were none, and the mail was back after the next start.
#[test]
fn a_change_that_cannot_be_recorded_is_refused_and_changes_nothing() {
    for shards in [1, 2] {
        let (mut node, acknowledged) = failed(shards);
        assert!(!acknowledged.is_empty());
        let listed = |node: &Node| {
            let mut ids: Vec<_> = node.queue().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
            ids.sort();
            ids
        };
        let before = listed(&node);
        for words in [&["purge", "--all"][..], &["hold", "--all"], &["bounce", &acknowledged[0], "--reason", "gone"]] {
            let output = node.ask(&[&["queue"], words].concat());
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{words:?}: {told}");
            assert!(told.contains("the engine's spool failed") && told.contains("nothing was changed"), "{words:?}: {told}");
        }
        assert_eq!(listed(&node), before);
        // What changes nothing is answered.
        assert!(say(&node, &["queue", "why", &acknowledged[0]]).starts_with("Held by the route"));
        node.kill();
        node.prelude = None;
        node.restart();
        let after = listed(&node);
        assert!(acknowledged.iter().all(|id| after.contains(id)), "{acknowledged:?} of {after:?}");
    }
}
