//! Mail to many recipients none of whose hosts can be reached: what is written of that, and what is kept.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Client;
use crate::node::{Node, PATIENCE, Setup, free_port};
use crate::queue_why::broken_name_server;
use crate::shards::on_one_core;

/// A node of one shard whose log keeps all that is written to it.
fn node(setup: Setup) -> Node {
    let setup = on_one_core(setup, 1);
    Node::start_with(&setup, &keeping_all(&setup))
}

fn keeping_all(setup: &Setup) -> String {
    setup.text().replace("segment_bytes = \"1 MiB\"", "segment_bytes = \"4 MiB\"")
}

/// Starts it again, with all mail held by route: nothing is attempted any more.
fn restart_on_hold(node: &mut Node) {
    let setup = on_one_core(Setup { address: node.address, ..Setup::new() }, 1);
    std::fs::write(&node.config, keeping_all(&setup)).unwrap();
    node.restart();
}

/// Records of all kinds in its log.
fn records(node: &Node) -> u64 {
    let output = node.ask(&["spool", "verify", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| line["records"].as_u64()).sum()
}

/// Does its log say of this recipient of some message that it waits, was tried once, and when (`engine/queue/src/outcome.rs`)?
fn has_outcome(node: &Node, recipient: u8) -> bool {
    let log = node.folder.path().join("spool/shard-000");
    let segments = std::fs::read_dir(log).unwrap().flatten().filter(|file| file.path().extension().is_some_and(|end| end == "log"));
    segments.into_iter().any(|segment| {
        let written = std::fs::read(segment.path()).unwrap();
        // What was not written to yet has zeros only.
        let end = written.chunks(4096).rposition(|block| block != [0; 4096]).map_or(0, |last| (last + 1) * 4096);
        let is_state = |bytes: &[u8]| bytes[..7] == [recipient, 0, 0, 0, 0, 1, 0] && bytes[7..12] != [0; 5] && bytes[12..] == [1, 0, 0];
        written[..end].windows(15).any(is_state)
    })
}

/// By address: attempts that the queue knows of.
fn attempts(node: &Node, id: &str) -> HashMap<String, u64> {
    let output = node.ask(&["queue", "show", id, "--json"]);
    let message: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let of = |one: &serde_json::Value| (one["address"].as_str().unwrap().to_owned(), one["attempts"].as_u64().unwrap());
    message["recipients"].as_array().unwrap().iter().map(of).collect()
}

/// By address: attempts that the mail log tells of.
fn told(log: &str) -> HashMap<String, u64> {
    let mut told = HashMap::new();
    for line in log.lines().filter(|line| line.contains(" event=attempt ") && line.contains(" outcome=deferred ")) {
        let (_, rest) = line.split_once(" to=<").unwrap();
        *told.entry(rest.split_once('>').unwrap().0.to_owned()).or_default() += 1;
    }
    told
}

/// Each domain's answer had a record with the state of all recipients: a dozen messages to a thousand domains wrote a gigabyte in a minute.
#[test]
fn many_domains_that_cannot_be_found_are_not_as_many_records_and_a_drain_forgets_none_of_them() {
    let extra = format!("[dns]\nservers = [\"{}\"]\ntimeout = \"1s\"\nattempts = 1\n", broken_name_server());
    let mut node = node(Setup { route: "via = \"mx\"".into(), extra: extra.leak(), ..Setup::new() });
    let recipients: Vec<String> = (0..300).map(|number| format!("b@d{number}.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let began = Instant::now();
    let id = Client::greeted(node.address).deliver_to(&recipients, "Subject: x\r\n\r\nx");
    node.wait_for_mail_log_that("an attempt for each", |log| told(log).len() == recipients.len());
    let drains_since = Instant::now();
    node.signal(Signal::TERM);
    assert!(node.wait().success());
    // It waits for nothing, where it has 20 s for what is under way.
    assert!(drains_since.elapsed() < Duration::from_secs(15), "{:?}", drains_since.elapsed());
    // A record each 300 ms, with the message, what the drain found, and room for what the log itself writes.
    let bound = 5 + began.elapsed().as_millis() / 300;
    let (records, told) = (records(&node), told(&node.wait_for_mail_log("")));
    assert!(u128::from(records) <= bound, "{records} records, more than {bound}");
    restart_on_hold(&mut node);
    assert_eq!(attempts(&node, &id), told);
}

/// So that a crash takes a second of them at most.
#[test]
fn deferrals_are_recorded_though_nothing_else_is_to_be() {
    let dead = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"2h\"\n[delivery]\ndead_destination = \"1h\"\n";
    let setup = Setup { retries, ..Setup::to(dead) };
    let mut node = node(Setup { route: format!("{}\nbreaker_timeout = \"1h\"", setup.route), ..setup });
    let recipients: Vec<String> = (0..50).map(|number| format!("b{number}@z.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let id = Client::greeted(node.address).deliver_to(&recipients, "Subject: x\r\n\r\nx");
    let began = Instant::now();
    while !has_outcome(&node, 49) {
        assert!(began.elapsed() < PATIENCE, "no record of the attempt: {}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = told(&node.wait_for_mail_log(" outcome=deferred "));
    assert_eq!(told.len(), recipients.len());
    node.kill();
    restart_on_hold(&mut node);
    assert_eq!(attempts(&node, &id), told);
}
