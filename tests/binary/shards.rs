//! Several shards of one node: who serves a connection.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::node::{Node, PATIENCE, Setup};

/// Connections that a client keeps.
const KEPT: usize = 10;
const TRIALS: usize = 50;

/// Two shards, on the first core this process may use.
pub(crate) fn two_shards(setup: Setup) -> Setup {
    on_one_core(setup, 2)
}

/// So many shards, on the first core this process may use.
pub(crate) fn on_one_core(setup: Setup, shards: u32) -> Setup {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..rustix::thread::CpuSet::MAX_CPU).find(|&core| allowed.is_set(core)).unwrap();
    let extra = format!("[shards]\ncores = \"{core}\"\nper_core = {shards}\n{}", setup.extra);
    Setup { extra: extra.leak(), ..setup }
}

/// A counter of the running node.
pub(crate) fn counter(node: &Node, name: &str) -> u64 {
    let output = node.ask(&["stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_slice(&output.stdout).expect("stats are one JSON object");
    stats[name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {stats}"))
}

/// The shard that accepted the message, from its queue id.
pub(crate) fn shard_of(queue_id: &str) -> usize {
    queue_id[7..11].parse().expect("shards below ten are decimal in base 32, too")
}

fn wait_for_no_session(node: &Node) {
    let began = Instant::now();
    while counter(node, "sessions") > 0 {
        assert!(began.elapsed() < PATIENCE, "sessions do not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn ten_kept_connections_are_spread_over_two_shards_six_to_four_at_worst() {
    let node = Node::start(&two_shards(Setup { route: "via = \"discard\"".into(), ..Setup::new() }));
    let mut distribution = [0; KEPT + 1];
    for _ in 0..TRIALS {
        wait_for_no_session(&node);
        // All at once, before any of them is served.
        let clients: Vec<Client> = (0..KEPT).map(|_| Client::silent(node.address)).collect();
        let on_first = clients
            .into_iter()
            .map(|mut client| {
                assert!(client.reply().starts_with("220 "));
                client.must("EHLO client.x.test", "250");
                let shard = shard_of(&client.deliver("d@z.test", "Subject: x\r\n\r\nx"));
                (client, shard)
            })
            // Collected, so that all are open until the last is served.
            .collect::<Vec<_>>()
            .iter()
            .filter(|(_, shard)| *shard == 0)
            .count();
        distribution[on_first] += 1;
    }
    println!("connections on the first of two shards, trials: {distribution:?}");
    assert_eq!(distribution[4..=6].iter().sum::<usize>(), TRIALS, "{distribution:?}");
    assert!(counter(&node, "connections_passed") > 0, "the kernel's hash alone does not do this");
    assert_eq!(counter(&node, "connections_taken"), counter(&node, "connections_passed"));
}

#[test]
fn limits_hold_for_connections_that_were_passed_on() {
    let setup = Setup {
        route: "via = \"discard\"".into(),
        networks: "[\"192.0.2.0/24\"]",
        extra: "[smtp]\nsessions_per_address = 6\n",
        ..Setup::new()
    };
    let node = Node::start(&two_shards(setup));
    wait_for_no_session(&node);
    let clients: Vec<(Client, String)> = (0..12)
        .map(|_| {
            let mut client = Client::silent(node.address);
            let banner = client.reply();
            (client, banner)
        })
        .collect();
    let served = clients.iter().filter(|(_, banner)| banner.starts_with("220 ")).count();
    assert_eq!(served, 6, "each shard has half of the address's six: {:?}", clients.iter().map(|(_, banner)| banner).collect::<Vec<_>>());
    assert!(clients.iter().all(|(_, banner)| banner.starts_with("220 ") || banner.starts_with("421 ")));
}

/// Both logs of a shard that has adopted one told of their reserve in one voice: mail was said to be refused that was taken.
#[test]
fn an_adopted_log_that_is_short_of_room_refuses_no_mail() {
    let mut node = Node::start(&two_shards(Setup::new()));
    wait_for_no_session(&node);
    // Both at once, before any of them is served: one on each shard.
    let mut clients = [Client::silent(node.address), Client::silent(node.address)];
    for client in &mut clients {
        assert!(client.reply().starts_with("220 "));
        client.must("EHLO client.x.test", "250");
        let id = client.deliver("b@y.test", "Subject: x\r\n\r\nx");
        if shard_of(&id) == 0 {
            assert!(node.ask(&["queue", "delete", &id]).status.success());
        }
    }
    drop(clients);
    node.wait_for_queue(|queue| queue.len() == 1);
    let began = Instant::now();
    let spool = node.folder.path().join("spool");
    let ready =
        |log: &str| std::fs::read_dir(spool.join(log)).unwrap().filter(|file| is_segment(&file.as_ref().unwrap().file_name())).count();
    while ready("shard-000") < 4 || ready("shard-001") < 4 {
        assert!(began.elapsed() < PATIENCE, "segments are made");
        std::thread::sleep(Duration::from_millis(20));
    }
    node.kill();
    // What is ready is all that there is. The log with the message in it lacks a segment.
    node.reconfigure(&on_one_core(Setup { address: node.address, ..Setup::new() }, 1));
    let text = std::fs::read_to_string(&node.config).unwrap();
    std::fs::write(&node.config, text.replace("min_free_bytes = \"1 MiB\"", "min_free_bytes = \"1024 GiB\"")).unwrap();
    node.restart();
    let began = Instant::now();
    while !node.log().contains("has only its reserve left") {
        assert!(began.elapsed() < PATIENCE, "{}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!node.log().contains("new mail is answered with 452"), "{}", node.log());
    assert_eq!(counter(&node, "spool_reserve"), 0);
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
}

fn is_segment(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.ends_with(".log"))
}
