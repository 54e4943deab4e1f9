//! `ringpost queue why` in prepared situations, each answer quoted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup, free_port};

const SLOW: &str = "[queue]\nretry_base = \"1h\"\nretry_cap = \"2h\"\n";

fn why(node: &Node, id: &str) -> String {
    let output = node.ask(&["queue", "why", id]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.trim_end().to_owned()
}

/// Times as `0`, so that an answer can be quoted.
fn without_times(text: &str) -> String {
    let mut out = String::new();
    for word in text.split(' ') {
        let is_time = word.len() >= 8 && word.as_bytes()[2] == b':' || word.starts_with("20") && word.contains('-');
        let word = if is_time {
            word.trim_end_matches(|c| c != ';' && c != ':' && c != '.').replace(|c: char| c.is_ascii_digit(), "0")
        } else {
            word.to_owned()
        };
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&if is_time {
            format!("TIME{}", word.chars().last().filter(|c| ";:.".contains(*c)).map(String::from).unwrap_or_default())
        } else {
            word
        });
    }
    out
}

/// Waits until the answer, without its times, is the expected one.
fn quote(node: &Node, id: &str, expected: &str) {
    let began = Instant::now();
    loop {
        let answer = why(node, id);
        if without_times(&answer) == expected {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "answer  {:?}\nexpected {expected:?}", without_times(&answer));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn send(node: &Node) -> String {
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx")
}

#[test]
fn deferred_after_4xx() {
    let hop = NextHop::start();
    hop.set_busy(true);
    let node = Node::start(&Setup { retries: SLOW, ..Setup::to(hop.address) });
    let id = send(&node);
    let began = Instant::now();
    let answer = loop {
        let answer = why(&node, &id);
        if answer.starts_with("Waits") {
            break answer;
        }
        assert!(began.elapsed() < PATIENCE, "{answer}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let parts = ["Waits for its next attempt at ", " UTC (in ", "); the answer at ", " UTC (attempt 1) was \"450 4.2.1 Busy\"; expires 20"];
    let mut rest = &*answer;
    for part in parts {
        rest = rest.split_once(part).unwrap_or_else(|| panic!("{part:?} is not in {answer:?}")).1;
    }
}

#[test]
fn held_by_route_and_by_command_and_unrouted() {
    let mut node = Node::start(&Setup::new());
    let id = send(&node);
    quote(&node, &id, "Held by the route \"*\", which holds all of its mail; `queue reroute` sends it another way.");
    assert!(node.ask(&["queue", "hold", &id]).status.success());
    quote(&node, &id, "Held by command until it is released.");
    assert!(node.ask(&["queue", "release", &id]).status.success());
    node.kill();
    // The domain and its route are gone with a restart.
    let config = node.folder.path().join("ringpost.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("domain = \"*\"", "domain = \"z.test\"").replace("name = \"y.test\"", "name = \"z.test\"");
    std::fs::write(&config, text.replace(Setup::new().networks, "[]")).unwrap();
    node.restart();
    quote(&node, &id, "Held because no route of the config matches the domain \"y.test\"; a route for it, or `queue reroute`, sends it.");
}

#[test]
fn breaker_open() {
    let port = free_port();
    let node =
        Node::start(&Setup { retries: "[delivery]\ndead_destination = \"1h\"\n", ..Setup::to(SocketAddr::from(([127, 0, 0, 1], port))) });
    let id = send(&node);
    let began = Instant::now();
    loop {
        let answer = why(&node, &id);
        if answer.starts_with("Ready, but no host of \"*\" answers (breaker open): \"connect to 127.0.0.1:")
            && answer.contains("refused")
            && answer.contains("; it is probed next at ")
            && answer.contains("; expires 20")
        {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn behind_a_limit_and_being_attempted() {
    // It accepts and says nothing: an attempt that lasts.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = Setup { retries: "[delivery]\nconnections_max = 1\nwindow_initial = 1\n", ..Setup::to(silent.local_addr().unwrap()) };
    let node = Node::start(&setup);
    let first = send(&node);
    quote(&node, &first, "Is being attempted at \"*\" right now, attempt 1.");
    // Each shard has a connection: of so many messages one waits for another.
    let ids: Vec<String> = (0..8).map(|_| send(&node)).collect();
    let begin = "Ready, and waits for its turn at \"*\", where 1 of 1 attempts at a time are open; expires ";
    let began = Instant::now();
    while !ids.iter().any(|id| why(&node, id).starts_with(begin)) {
        assert!(began.elapsed() < PATIENCE, "{:?}", ids.iter().map(|id| why(&node, id)).collect::<Vec<_>>());
    }
}

#[test]
fn delivered_and_removed_by_command_from_the_log() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let id = send(&node);
    hop.wait_for(1);
    let began = Instant::now();
    loop {
        let output = node.ask(&["queue", "why", &id]);
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let start = format!("Not in the queue any more: <b@y.test> was delivered to {} at 20", hop.address);
        if answer.starts_with(&start) && answer.trim_end().ends_with("Z: \"250 2.0.0 Ok\".") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let held = Node::start(&Setup::new());
    let id = send(&held);
    assert!(held.ask(&["queue", "purge", &id]).status.success());
    let began = Instant::now();
    loop {
        let output = held.ask(&["queue", "why", &id]);
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if answer.starts_with("Not in the queue any more: <b@y.test> was removed by command at 20") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn expired_from_the_log_or_the_queue() {
    let hop = NextHop::start();
    hop.set_busy(true);
    let node = Node::start(&Setup { retries: SLOW, ..Setup::to(hop.address) });
    let id = send(&node);
    node.wait_for_queue(|queue| queue.first().is_some_and(|message| message["recipients"][0]["state"] == "deferred"));
    assert!(node.ask(&["queue", "set-expiry", &id, "1ms"]).status.success());
    let began = Instant::now();
    loop {
        let output = node.ask(&["queue", "why", &id]);
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if answer.contains("5.4.7 expired") && answer.contains("450 4.2.1 Busy") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_unknown_id_names_where_it_was_looked_for() {
    let node = Node::start(&Setup::new());
    send(&node);
    let output = node.ask(&["queue", "why", "000000000001"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("it is not in the queue, and ") && said.contains("mail.log"), "{said}");
}
