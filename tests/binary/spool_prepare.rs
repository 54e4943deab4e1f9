//! `ringpost spool prepare` while the engine runs.

use std::time::Instant;

use crate::node::{Node, PATIENCE, Setup};
use crate::queue_steering::say;
use crate::shards::{counter, on_one_core};

fn wait_for_segments(node: &Node, count: u64) {
    let began = Instant::now();
    while counter(node, "segments_ready") != count {
        assert!(began.elapsed() < PATIENCE, "{} segments are ready: {}", counter(node, "segments_ready"), node.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// It said how many were asked for of each shard, and that the statistics counted them, which they did not.
#[test]
fn as_many_are_said_to_be_prepared_as_are_made() {
    let node = Node::start(&on_one_core(Setup::new(), 2));
    // Three for each shard: the one that is written to is not among them.
    wait_for_segments(&node, 6);
    let told = say(&node, &["spool", "prepare", "2"]);
    assert!(told.starts_with("4 more segments are being prepared, and 6 are ready; "), "{told}");
    wait_for_segments(&node, 10);
    assert_eq!(counter(&node, "segments_kept"), 10);
}

/// On a disk of 150 MB with 71 free, 30 of which were to stay, it said that all were being prepared, made what it could, and left 13.
#[test]
fn nothing_is_prepared_that_has_no_room_beside_what_is_to_stay_free() {
    let mut node = Node::start(&on_one_core(Setup::new(), 2));
    wait_for_segments(&node, 6);
    node.kill();
    let config = std::fs::read_to_string(&node.config).unwrap();
    std::fs::write(&node.config, config.replace("min_free_bytes = \"1 MiB\"", "min_free_bytes = \"1024 GiB\"")).unwrap();
    node.restart();
    let output = node.ask(&["spool", "prepare", "1"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{told}");
    assert!(told.contains("nothing was prepared; there is room for 0 each"), "{told}");
    assert_eq!(counter(&node, "segments_kept"), 6);
}
