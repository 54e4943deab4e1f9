//! `ringpost queue why` in prepared situations, each answer quoted.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::faulty_hop::{Fault, FaultyHop, Script};
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup, free_port};
use crate::shards::{on_one_core, shard_of};

fn why(node: &Node, id: &str) -> String {
    let output = node.ask(&["queue", "why", id]);
    // A message that has just left is in the mail log a moment later.
    let said = if output.status.success() { output.stdout } else { output.stderr };
    String::from_utf8_lossy(&said).trim_end().to_owned()
}

/// Does an answer read like this? `*` is anything: a time, a port, an id.
fn is_like(answer: &str, expected: &str) -> bool {
    let (first, parts) = expected.split_once('*').unwrap_or((expected, ""));
    let Some(mut rest) = answer.strip_prefix(first) else { return false };
    if first.len() == expected.len() {
        return rest.is_empty();
    }
    let (parts, last) = parts.rsplit_once('*').unwrap_or(("", parts));
    for part in parts.split('*') {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Waits until the answer reads as expected, and returns it.
fn quote(node: &Node, id: &str, expected: &str) -> String {
    let began = Instant::now();
    loop {
        let answer = why(node, id);
        if is_like(&answer, expected) {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "answer  {answer:?}\nexpected {expected:?}\n{}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Answers each question with SERVFAIL, until the process ends.
pub(crate) fn broken_name_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut message = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut message) {
            // RFC 1035 4.1.1: QR is set, RA too, RCODE is 2.
            message[2] |= 0x80;
            message[3] = 0x82;
            let _late = socket.send_to(&message[..length], from);
        }
    });
    address
}

/// A node with a route for each situation. Its shards are on one core.
struct Situations {
    node: Node,
    hop: NextHop,
    dead: SocketAddr,
    _silent: TcpListener,
}

impl Situations {
    fn new(shards: u32) -> Self {
        let hop = NextHop::start();
        let dead = SocketAddr::from(([127, 0, 0, 1], free_port()));
        // It accepts and says nothing: an attempt that lasts.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let smarthost = |domain: &str, to: SocketAddr, keys: &str| {
            format!("[[route]]\ndomain = \"{domain}\"\nvia = \"smarthost\"\nhosts = [\"{to}\"]\n{keys}")
        };
        let extra = [
            "[[route]]\ndomain = \"held.test\"\nvia = \"hold\"\n".to_owned(),
            "[[route]]\ndomain = \"mx.test\"\nvia = \"mx\"\n".to_owned(),
            smarthost("fine.test", hop.address, ""),
            smarthost("grey.test", hop.address, ""),
            smarthost("much.test", hop.address, "throttle_pause = \"30m\"\n"),
            smarthost("rate.test", hop.address, "rate = \"1/h\"\n"),
            smarthost("dead.test", dead, "breaker_timeout = \"10m\"\n"),
            smarthost("slow.test", silent.local_addr().unwrap(), "connections_max = 1\n"),
            format!("[dns]\nservers = [\"{}\"]\ntimeout = \"1s\"\nattempts = 1\n", broken_name_server()),
        ];
        let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"2h\"\nretry_jitter = \"0 %\"\n[delivery]\ndead_destination = \"1h\"\n";
        let setup = on_one_core(Setup { retries, extra: extra.concat().leak(), ..Setup::new() }, shards);
        Situations { node: Node::start(&setup), hop, dead, _silent: silent }
    }

    fn send(&self, to: &str) -> String {
        Client::greeted(self.node.address).deliver(to, "Subject: x\r\n\r\nx")
    }
}

const GREY: &str = "Waits for its next attempt at * UTC (in * min); the answer of 127.0.0.1:* at * UTC (attempt 1) was \
    \"451 4.7.1 Greylisted, please try again in 300 seconds\"; expires 20* UTC.";

/// The quotes of docs/operations.md. `./dev why` prints them.
#[test]
fn answers_to_twelve_situations() {
    let all = Situations::new(1);
    let node = &all.node;
    let say = |situation: &str, id: &str, expected: &str| println!("{situation}\n    {}\n", quote(node, id, expected));

    let id = all.send("b@held.test");
    say(
        "held by its route",
        &id,
        "Held by the route \"held.test\", which holds all of its mail; `queue reroute` sends it another way; it does not expire meanwhile.",
    );
    assert!(node.ask(&["queue", "hold", &id]).status.success());
    say("held by command", &id, "Held by command until it is released; it does not expire meanwhile.");
    let id = all.send("grey-b@grey.test");
    say("refused for now", &id, GREY);
    let id = all.send("much-a@much.test");
    quote(node, &id, "Waits for its next attempt at *\"421 4.7.0 Too many messages from you, slow down\"*");
    let id = all.send("b@much.test");
    say(
        "the next hop asked for less",
        &id,
        "Ready, but \"much.test\" asked for less mail and is left alone: \"421 4.7.0 Too many messages from you, slow down\"; \
         it is tried next at * UTC (in * min); expires 20* UTC.",
    );
    let id = all.send("b@mx.test");
    say(
        "DNS gives no answer",
        &id,
        "Ready, but DNS does not say where mail for mx.test goes: \"*SERVFAIL*\"; it is asked again at * UTC (in * s)*; expires 20* UTC.",
    );
    let id = all.send("b@dead.test");
    let dead = format!(
        "Ready, but no host of \"dead.test\" answers (breaker open): \"connect to {}: refused\"; it is probed next at * UTC (in * min); \
         last tried at * UTC (attempt 1); expires 20* UTC.",
        all.dead
    );
    say("the breaker is open", &id, &dead);
    all.send("a@rate.test");
    all.hop.wait_for(1);
    let id = all.send("b@rate.test");
    say(
        "the rate is used up",
        &id,
        "Ready, but the rate of \"rate.test\", 1/h, is used up; the next one goes at * UTC (in * min); expires 20* UTC.",
    );
    let id = all.send("b@slow.test");
    say("under way", &id, "Is being attempted at \"slow.test\" right now, attempt 1.");
    let ids = [all.send("b@slow.test"), all.send("b@slow.test")];
    say(
        "as many attempts are open as the limit allows",
        &ids[1],
        "Ready, and waits for its turn at \"slow.test\" among 2 messages: 1 of 1 attempts at a time are open; expires 20* UTC.",
    );
    let id = all.send("b@fine.test");
    let fine = format!(
        "Not in the queue any more: <b@fine.test> was delivered to {} at 20*Z, * ms after it was accepted: \"250 2.0.0 Ok\".",
        all.hop.address
    );
    say("delivered", &id, &fine);
    let id = all.send("no-b@fine.test");
    say(
        "failed",
        &id,
        "Not in the queue any more: <no-b@fine.test> failed for good at 20*Z: \"550 5.1.1 No such user\"; <a@x.test> was told by report *.",
    );
    let id = all.send("grey-c@grey.test");
    quote(node, &id, GREY);
    assert!(node.ask(&["queue", "set-expiry", &id, "1ms"]).status.success());
    say(
        "expired",
        &id,
        "Not in the queue any more: <grey-c@grey.test> expired at 20*Z: \"5.4.7 expired; last: 451 4.7.1 Greylisted, please try again \
         in 300 seconds\"; <a@x.test> was told by report *.",
    );
}

/// Until the attempt had ended nobody heard what the first host said, and the second may be silent for minutes.
#[test]
fn what_a_host_said_is_told_while_the_next_one_is_tried() {
    let busy = FaultyHop::start(Script { point: "rcpt", fault: Fault::Says("450 4.2.1 Busy"), pipelining: true });
    let silent = FaultyHop::start(Script { point: "ehlo", fault: Fault::Silence, pipelining: true });
    let hosts = format!("hosts = [\"{}\", {{ host = \"{}\", backup = true }}]", busy.address, silent.address);
    let route = format!("via = \"smarthost\"\n{hosts}");
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n[delivery]\nehlo_timeout = \"5s\"\n";
    // Of another shard's, too.
    let node = Node::start(&on_one_core(Setup { route, retries, ..Setup::new() }, 2));
    let mut clients: Vec<Client> = (0..6).map(|_| Client::greeted(node.address)).collect();
    let ids: Vec<String> = clients.iter_mut().map(|client| client.deliver("b@y.test", "Subject: x\r\n\r\nx")).collect();
    assert!(ids.iter().any(|id| shard_of(id) != shard_of(&ids[0])), "both shards have mail");
    let (busy, silent) = (busy.address, silent.address);
    for id in [&ids[0], ids.iter().find(|id| shard_of(id) != shard_of(&ids[0])).unwrap()] {
        let expected =
            format!("Is being attempted at \"*\" right now, attempt 1, in which {busy} said \"450 4.2.1 Busy\"; now trying {silent}.");
        println!("under way, at another host than the first\n    {}\n", quote(&node, id, &expected));
    }
    for id in &ids {
        quote(
            &node,
            id,
            "Waits for its next attempt at * UTC (in * min); the answer of 127.0.0.1:* at * UTC (attempt 1) was \"4*\"; expires 20* UTC.",
        );
    }
}

/// A shard that only hears of a destination from the one that delivers there says what that one would.
#[test]
fn answers_of_shards_that_are_no_home() {
    let all = Situations::new(2);
    let node = &all.node;
    let on_both = |to: &str| -> Vec<String> {
        let mut clients: Vec<Client> = (0..10).map(|_| Client::greeted(node.address)).collect();
        let ids: Vec<String> = clients.iter_mut().map(|client| client.deliver(to, "Subject: x\r\n\r\nx")).collect();
        assert!(ids.iter().any(|id| shard_of(id) != shard_of(&ids[0])), "both shards have mail");
        ids
    };
    let first = all.send("a@rate.test");
    quote(node, &first, "Not in the queue any more: *");
    let rate = "Ready, but the rate of \"rate.test\", 1/h, is used up by others, and it waits among * messages; \
        the next one goes at * UTC (in * min); expires 20* UTC.";
    for id in on_both("b@rate.test") {
        quote(node, &id, rate);
    }
    let dead =
        format!("Ready, but no host of \"dead.test\" answers (breaker open): \"connect to {}: refused\"; it is probed next at *", all.dead);
    for id in on_both("b@dead.test") {
        quote(node, &id, &dead);
    }
    let ids: Vec<String> = (0..3).flat_map(|_| on_both("b@slow.test")).collect();
    let home = "Ready, and waits for its turn at \"slow.test\" among * messages: 1 of 1 attempts at a time are open; expires 20* UTC.";
    let elsewhere = "Ready, and waits for its turn at \"slow.test\" among * messages: another shard delivers there, and has * of this \
        one's; expires 20* UTC.";
    let there = "Ready, and waits for its turn at the shard that delivers to \"slow.test\"*; expires 20* UTC.";
    let began = Instant::now();
    loop {
        let answers: Vec<String> = ids.iter().map(|id| why(node, id)).collect();
        let shards_with = |expected: &str| -> BTreeSet<usize> {
            ids.iter().zip(&answers).filter(|(_, answer)| is_like(answer, expected)).map(|(id, _)| shard_of(id)).collect()
        };
        if [home, elsewhere, there].map(|expected| shards_with(expected).len()) == [1, 1, 1] && shards_with(there) == shards_with(elsewhere)
        {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{answers:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn send(node: &Node) -> String {
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx")
}

#[test]
fn held_by_route_and_by_command_and_unrouted() {
    let mut node = Node::start(&Setup::new());
    let id = send(&node);
    quote(
        &node,
        &id,
        "Held by the route \"*\", which holds all of its mail; `queue reroute` sends it another way; it does not expire meanwhile.",
    );
    assert!(node.ask(&["queue", "hold", &id]).status.success());
    quote(&node, &id, "Held by command until it is released; it does not expire meanwhile.");
    assert!(node.ask(&["queue", "release", &id]).status.success());
    node.kill();
    // The domain and its route are gone with a restart.
    let config = node.folder.path().join("ringpost.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("domain = \"*\"", "domain = \"z.test\"").replace("name = \"y.test\"", "name = \"z.test\"");
    std::fs::write(&config, text.replace(Setup::new().networks, "[]")).unwrap();
    node.restart();
    quote(
        &node,
        &id,
        "Held because no route of the config matches the domain \"y.test\"; a route for it, or `queue reroute`, sends it; it does not expire meanwhile.",
    );
}

/// It read as deferred, with the last answer of a next hop that it would not go to again.
#[test]
fn mail_whose_route_a_reload_takes_away_says_so_everywhere() {
    let hop = NextHop::start();
    let extra = format!("[[route]]\ndomain = \"q.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hop.address);
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"2h\"\nretry_jitter = \"0 %\"\n";
    let setup = Setup { retries, extra: extra.leak(), address: Setup::new().address, ..Setup::to(hop.address) };
    let node = Node::start(&setup);
    let id = Client::greeted(node.address).deliver("later-b@q.test", "Subject: x\r\n\r\nx");
    quote(
        &node,
        &id,
        "Waits for its next attempt at * UTC (in * min); the answer of 127.0.0.1:* at * UTC (attempt 1) was \"450 4.2.1 Later\"; expires 20* UTC.",
    );
    let config = node.folder.path().join("ringpost.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("domain = \"*\"", "domain = \"z.test\"").replace("domain = \"q.test\"", "domain = \"p.test\"");
    let text = text.replace("name = \"y.test\"", "name = \"z.test\"").replace(setup.networks, "[]");
    std::fs::write(&config, text).unwrap();
    assert!(node.ask(&["reload"]).status.success(), "{}", node.log());
    quote(
        &node,
        &id,
        "Held because its route is gone: none of the config matches the domain \"q.test\" any more; a route for it, or `queue reroute`, sends it; \
         the answer of 127.0.0.1:* at * UTC (attempt 1) was \"450 4.2.1 Later\"; it does not expire meanwhile.",
    );
    for command in ["ls", "summary"] {
        let said = String::from_utf8_lossy(&node.ask(&["queue", command]).stdout).into_owned();
        assert!(said.contains("no route of the config is for it (any more)") && said.contains("`queue reroute`"), "{command}: {said}");
    }
    let queue = node.queue();
    assert_eq!((&queue[0]["recipients"][0]["state"], &queue[0]["next_attempt"]), (&"held".into(), &serde_json::Value::Null));
    assert!(node.ask(&["queue", "reroute", &id, "--to", "z.test"]).status.success());
    node.wait_for_queue(|queue| queue[0]["recipients"][0]["destination"] == "z.test");
}

#[test]
fn removed_by_command_from_the_log() {
    let held = Node::start(&Setup::new());
    let id = send(&held);
    assert!(held.ask(&["queue", "purge", &id]).status.success());
    quote(&held, &id, "Not in the queue any more: <b@y.test> was removed by command at 20*Z.");
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
