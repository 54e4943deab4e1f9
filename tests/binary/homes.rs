//! Mail of all shards to a destination whose connections belong to one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Client;
use crate::next_hop::{Message, NextHop};
use crate::node::{Node, PATIENCE, Setup, free_port};
use crate::shards::{counter, shard_of, two_shards};

/// Of two shards only one may connect to `hop`, `connections` times.
fn one_home(hop: SocketAddr, connections: u32) -> Setup {
    let retries = format!(
        "[queue]\nretry_base = \"1s\"\nretry_cap = \"2s\"\n[delivery]\ndead_destination = \"1s\"\nwindow_initial = 1\nconnections_max = {connections}\n"
    );
    two_shards(Setup { retries: retries.leak(), ..Setup::to(hop) })
}

/// Sends messages `numbers` over ten connections, which both shards have; the queue ids.
fn send(node: &Node, numbers: std::ops::Range<usize>, padding: &str) -> Vec<String> {
    let mut clients: Vec<Client> = (0..10).map(|_| Client::greeted(node.address)).collect();
    let among = clients.len();
    numbers.map(|number| clients[number % among].deliver("d@z.test", &format!("Subject: {number}\r\n\r\n{padding}body {number}"))).collect()
}

fn bodies(messages: &[Message]) -> Vec<String> {
    let mut bodies: Vec<String> =
        messages.iter().map(|message| message.body().rsplit("body ").next().unwrap_or_default().trim().into()).collect();
    bodies.sort_by_key(|body| body.parse::<usize>().unwrap_or(usize::MAX));
    bodies
}

fn expect_each_once(messages: &[Message], count: usize) {
    assert_eq!(bodies(messages), (0..count).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn mail_of_both_shards_goes_over_the_connections_of_the_home() {
    let hop = NextHop::start();
    let node = Node::start(&one_home(hop.address, 2));
    let ids = send(&node, 0..200, "");
    let owners: BTreeSet<usize> = ids.iter().map(|id| shard_of(id)).collect();
    assert_eq!(owners.len(), 2, "both shards have mail");
    expect_each_once(&hop.wait_for(200), 200);
    node.wait_for_queue(|queue| queue.is_empty());
    assert!(hop.connections_most() <= 2, "{} connections", hop.connections_most());
    let crossed = counter(&node, "dispatched_to_homes");
    let away = ids.iter().filter(|id| shard_of(id) == shard_of(&ids[0])).count() as u64;
    assert!(crossed == away || crossed == 200 - away, "{crossed} of 200 crossed, {away} are of one shard: each once, and only they");
    assert_eq!(crossed, counter(&node, "dispatched_for_others"));
    let fetched = counter(&node, "content_fetched");
    assert!(fetched < crossed, "content that is in memory goes along: {fetched} of {crossed}");
    assert_eq!(counter(&node, "connects"), hop.connections_most() as u64, "they are kept");
}

#[test]
fn content_that_is_not_in_memory_any_more_is_read_by_its_owner() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let node = Node::start(&one_home(address, 1));
    // Chunk records follow, and a line that is a dot.
    let padding = format!("{}\r\n..\r\n", "0123456789abcdef".repeat(4).as_str()).repeat(4000);
    send(&node, 0..6, &padding);
    send(&node, 6..40, "");
    std::thread::sleep(Duration::from_secs(3));
    let hop = NextHop::start_at(address);
    let messages = hop.wait_for(40);
    expect_each_once(&messages, 40);
    for message in messages.iter().filter(|message| message.wire.len() > 10_000) {
        assert_eq!(message.body().trim_end(), format!("{padding}body {}", bodies(std::slice::from_ref(message))[0]));
    }
    assert!(counter(&node, "content_fetched") > 0);
    assert!(hop.connections_most() <= 1);
    // A dead destination costs an answer for each credit and dead time, not one for each message.
    let refused = counter(&node, "homes_refused");
    assert!(refused < 100, "{refused}");
}

#[test]
fn a_drain_gives_dispatches_back_and_nothing_is_lost_or_sent_twice() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut node = Node::start(&one_home(address, 1));
    let mut sent = 0;
    let mut hop = None;
    for life in 0..3 {
        send(&node, sent..sent + 60, "");
        sent += 60;
        // In the first life the hop is dead, in the others it works when the drain comes.
        if life > 0 {
            hop.get_or_insert_with(|| NextHop::start_at(address)).wait_for(sent / 4);
        }
        let began = Instant::now();
        node.signal(Signal::TERM);
        assert!(node.wait().success());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {}", began.elapsed(), node.log());
        node.restart();
    }
    let hop = hop.unwrap();
    expect_each_once(&hop.wait_for(sent), sent);
    node.wait_for_queue(|queue| queue.is_empty());
    expect_each_once(&hop.messages(), sent);
    assert!(hop.connections_most() <= 1, "{}", hop.connections_most());
}

#[test]
fn a_drain_that_waits_for_a_slow_home_ends_in_time() {
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::start(&one_home(silent.local_addr().unwrap(), 1));
    send(&node, 0..20, "");
    let began = Instant::now();
    while counter(&node, "dispatches_of_others") == 0 {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    let began = Instant::now();
    node.signal(Signal::TERM);
    assert!(node.wait().success());
    assert!(began.elapsed() < Duration::from_secs(24), "{:?}", began.elapsed());
    node.restart();
    assert_eq!(node.queue().len(), 20, "nothing was lost");
}

/// All that was out at a home counted as being attempted, though the home had one connection.
#[test]
fn what_waits_at_its_home_is_not_said_to_be_active() {
    let hop = NextHop::start();
    hop.hold_content(true);
    let node = Node::start(&one_home(hop.address, 1));
    let count = send(&node, 0..24, "").len() as u64;
    let began = Instant::now();
    loop {
        let output = node.ask(&["queue", "summary", "--json"]);
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one destination is one line");
        // One is under way, and one may be chained behind it.
        let of = |state: &str| summary[state].as_u64().unwrap();
        if of("active") <= 2 && of("active") > 0 && of("ready") + of("active") == count && counter(&node, "dispatches_at_homes") > 0 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{summary}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // `ls` and `show` said so all the longer: that an attempt was under way of each.
    let began = Instant::now();
    loop {
        let listed = |state: &str| {
            let output = node.ask(&["queue", "ls", "--json", "--state", state]);
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<serde_json::Value>>()
        };
        let (active, ready) = (listed("active"), listed("ready"));
        let is = |message: &serde_json::Value, state: &str| message["recipients"][0]["state"] == *state;
        assert!(active.iter().all(|message| is(message, "active")) && ready.iter().all(|message| is(message, "ready")));
        if (1..=2).contains(&active.len()) && active.len() + ready.len() == 24 && counter(&node, "dispatches_of_others") > 2 {
            let out = ready.iter().find(|message| message["reason"].as_str().unwrap().contains("at the shard that delivers to \"*\""));
            let shown = node.ask(&["queue", "show", out.expect("more are out than are tried")["id"].as_str().unwrap()]);
            assert!(String::from_utf8(shown.stdout).unwrap().contains("<d@z.test> ready, 0 attempts"));
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{active:?} {ready:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    hop.hold_content(false);
    expect_each_once(&hop.wait_for(24), 24);
}
