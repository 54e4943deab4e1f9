//! Commands for mail that is being attempted: what they say, and what comes of it when the attempt has ended.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use ringpost_queue::{DestinationLimits, Homes};

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup};
use crate::queue_steering::{deliver, say};
use crate::shards::{on_one_core, shard_of};

/// Takes one message up to the end of its content, and answers that when it is told to.
pub(crate) struct Held {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Held {
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    pub(crate) fn up_to_the_dot(listener: &TcpListener) -> Self {
        let mut held = Self::accept(listener);
        held.say("220 slow.test ESMTP");
        for (command, reply) in [("EHLO", "250 slow.test"), ("MAIL", "250 2.1.0 Ok"), ("RCPT", "250 2.1.5 Ok"), ("DATA", "354 Go on")] {
            held.hear(command);
            held.say(reply);
        }
        held.hear_content();
        held
    }

    fn hear(&mut self, command: &str) {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.starts_with(command), "{line:?} instead of {command}");
    }

    fn hear_content(&mut self) {
        let mut content = String::new();
        while !content.ends_with("\r\n.\r\n") {
            assert!(self.reader.read_line(&mut content).unwrap() > 0, "the end of {content:?}");
        }
    }

    /// Without a reply it ends.
    pub(crate) fn end(mut self, reply: &str) {
        if !reply.is_empty() {
            self.say(reply);
        }
    }

    fn say(&mut self, reply: &str) {
        self.stream.write_all(format!("{reply}\r\n").as_bytes()).unwrap();
    }
}

/// Mail of slow.test goes to `slow`, all other, and that of backup.test, to `hop`; of several shards one delivers it.
fn start(slow: SocketAddr, hop: SocketAddr, shards: u32) -> Node {
    let route = |domain: &str, host: SocketAddr| {
        format!("[[route]]\ndomain = \"{domain}\"\nvia = \"smarthost\"\nhosts = [\"{host}\"]\nconnections_max = 8\n")
    };
    let extra = route("slow.test", slow) + &route("backup.test", hop);
    Node::start(&on_one_core(Setup { extra: extra.leak(), ..Setup::to(hop) }, shards))
}

/// The log told of an expiry as well, and `queue why` of that alone.
#[test]
fn what_is_bounced_meanwhile_has_one_end_and_did_not_expire() {
    for end in ["451 4.3.0 later", "550 5.7.1 no", ""] {
        let (listener, hop) = (TcpListener::bind("127.0.0.1:0").unwrap(), NextHop::start());
        let node = start(listener.local_addr().unwrap(), hop.address, 1);
        let id = deliver(&node, "a@x.test", &["b@slow.test"]);
        let held = Held::up_to_the_dot(&listener);
        assert!(say(&node, &["queue", "bounce", &id, "--reason", "by hand"]).starts_with("1 message bounced\n"));
        held.end(end);
        assert!(hop.wait_for(1)[0].text().contains("by hand"), "{end}");
        node.wait_for_queue(<[_]>::is_empty);
        let log = node.wait_for_mail_log("event=report");
        assert!(log.contains("event=bounced to=<b@slow.test>") && !log.contains("event=expired"), "{log}");
        let why = say(&node, &["queue", "why", &id]);
        assert!(why.contains("<b@slow.test> failed for good at ") && why.contains("\"554 5.0.0 by hand\""), "{why}");
    }
}

/// A host that refused, after an operator had sent the mail away from it, failed it for good.
#[test]
fn what_is_rerouted_meanwhile_goes_the_other_way_unless_it_is_delivered() {
    for (shards, end) in [(1, "550 5.7.1 no"), (2, "550 5.7.1 no"), (1, "451 4.3.0 later"), (1, "250 2.0.0 Ok"), (1, "kill")] {
        let (listener, hop) = (TcpListener::bind("127.0.0.1:0").unwrap(), NextHop::start());
        let mut node = start(listener.local_addr().unwrap(), hop.address, shards);
        // With several shards some are of the one that does not deliver there.
        for count in 1..=2 * shards as usize {
            let id = deliver(&node, "a@x.test", &["b@slow.test"]);
            let held = Held::up_to_the_dot(&listener);
            assert_eq!(say(&node, &["queue", "reroute", &id, "--to", "backup.test"]), "1 message re-routed");
            // A pause of the way that it leaves is nothing to it.
            assert!(node.ask(&["queue", "pause", "slow.test"]).status.success());
            let comes = "sent by the route \"backup.test\" when that has ended, unless it delivers";
            for words in [["queue", "why", &id], ["queue", "show", &id]] {
                let said = say(&node, &words);
                assert!(said.contains(comes), "{said}");
            }
            assert!(node.ask(&["queue", "resume", "slow.test"]).status.success());
            if end == "kill" {
                node.kill();
                node.restart();
            } else {
                held.end(end);
            }
            node.wait_for_queue(<[_]>::is_empty);
            let is_delivered = |line: &str| line.contains(&*id) && line.contains("outcome=delivered");
            let log = node.wait_for_mail_log_that("a delivery", |log| log.lines().any(is_delivered));
            let why = say(&node, &["queue", "why", &id]);
            if end.starts_with("250") {
                assert!(hop.wait_for(0).is_empty() && why.contains("was delivered to"), "{why}");
                continue;
            }
            assert_eq!(hop.wait_for(count).last().unwrap().recipients, ["b@slow.test"], "nobody is told of a failure");
            assert!(why.contains("<b@slow.test> was delivered to"), "{why}");
            assert!(!log.contains("outcome=bounced"), "{log}");
        }
    }
}

/// The message was gone at once, and may have been delivered a moment later.
#[test]
fn what_is_purged_meanwhile_is_seen_until_its_attempt_has_ended() {
    for shards in [1, 2] {
        let (listener, hop) = (TcpListener::bind("127.0.0.1:0").unwrap(), NextHop::start());
        let node = start(listener.local_addr().unwrap(), hop.address, shards);
        for end in ["451 4.3.0 later", "550 5.7.1 no", "", "250 2.0.0 Ok"] {
            let id = deliver(&node, "a@x.test", &["b@slow.test"]);
            let held = Held::up_to_the_dot(&listener);
            assert!(say(&node, &["queue", "purge", &id]).ends_with("purged unless this attempt delivers"));
            let queue = node.queue();
            assert_eq!((queue.len(), &queue[0]["recipients"][0]["state"]), (1, &"active".into()), "{queue:?}");
            for words in [["queue", "why", &id], ["queue", "show", &id]] {
                let said = say(&node, &words);
                assert!(said.contains("purged by command when that has ended, unless it delivers"), "{said}");
            }
            held.end(end);
            node.wait_for_queue(<[_]>::is_empty);
            let log = node.wait_for_mail_log_that("the end of the attempt", |log| log.contains(&format!("queue_id={id} event=attempt")));
            assert!(!log.contains("event=expired") && !log.contains("event=report"), "{log}");
            let why = say(&node, &["queue", "why", &id]);
            let expected = if end.starts_with("250") { "was delivered to" } else { "was removed by command at" };
            assert!(why.contains(expected), "{why}");
        }
        assert!(hop.wait_for(0).is_empty(), "nobody is told");
    }
}

/// `why` and `show` spoke of the attempt alone.
#[test]
fn what_comes_after_the_attempt_is_told() {
    let (listener, hop) = (TcpListener::bind("127.0.0.1:0").unwrap(), NextHop::start());
    let node = start(listener.local_addr().unwrap(), hop.address, 1);
    let id = deliver(&node, "a@x.test", &["b@slow.test"]);
    let held = Held::up_to_the_dot(&listener);
    let say_both = || [["queue", "why", &id], ["queue", "show", &id]].map(|words| say(&node, &words));
    assert!(say_both().iter().all(|said| !said.contains("when that has ended")));
    assert!(node.ask(&["queue", "set-expiry", &id, "1h"]).status.success());
    assert!(say_both().iter().all(|said| said.contains(" by command") && said.contains("expires ")), "{:?}", say_both());
    assert!(node.ask(&["queue", "set-expiry", &id, "0s"]).status.success());
    assert!(say_both().iter().all(|said| said.contains("expired by command when that has ended, unless it delivers")));
    assert!(node.ask(&["queue", "pause", "slow.test"]).status.success());
    assert!(say_both().iter().all(|said| said.contains("kept until `queue resume slow.test` and expired by command when that has ended")));
    assert!(node.ask(&["queue", "hold", &id]).status.success());
    assert!(say_both().iter().all(|said| said.contains("held by command and kept until `queue resume slow.test` and expired")));
    // A refusal is told to the sender at once: nothing is held then.
    assert!(say_both().iter().all(|said| said.contains("unless it delivers or is refused for good")));
    held.end("550 5.7.1 no");
    hop.wait_for(1);
}

/// The attempt ran to the end of `banner_timeout`, five minutes, whatever was commanded.
#[test]
fn a_command_ends_an_attempt_at_a_host_that_has_not_greeted() {
    for (shards, is_greeted) in [(1, false), (1, true), (2, false), (2, true)] {
        let (listener, hop) = (TcpListener::bind("127.0.0.1:0").unwrap(), NextHop::start());
        let node = start(listener.local_addr().unwrap(), hop.address, shards);
        let silent = |listener: &TcpListener| {
            let mut held = Held::accept(listener);
            if is_greeted {
                held.say("220 slow.test ESMTP");
                held.hear("EHLO");
            }
            held
        };
        let moved = deliver(&node, "a@x.test", &["b@slow.test"]);
        let mut first = silent(&listener);
        assert_eq!(say(&node, &["queue", "reroute", &moved, "--to", "backup.test"]), "1 message re-routed");
        assert_eq!(hop.wait_for(1)[0].recipients, ["b@slow.test"]);
        let mut line = String::new();
        assert_eq!(first.reader.read_line(&mut line).unwrap(), 0, "it was told {line:?}");
        // With two shards some is of the one that does not deliver there.
        for state in ["held", "gone", "failed", "expired", "ready", "later"].repeat(shards as usize) {
            let id = deliver(&node, "", &["c@slow.test"]);
            let _silent = silent(&listener);
            let command: &[&str] = match state {
                "held" => &["queue", "hold", &id],
                "gone" => &["queue", "purge", &id],
                "failed" => &["queue", "bounce", &id],
                "expired" => &["queue", "set-expiry", &id, "0s"],
                "later" => &["queue", "set-expiry", &id, "1s"],
                _ => &["queue", "pause", "slow.test"],
            };
            assert!(node.ask(command).status.success(), "{state}");
            node.wait_for_queue(|queue| {
                let found = queue.iter().find(|one| one["id"] == *id);
                match state {
                    "held" | "ready" => found.is_some_and(|one| one["recipients"][0]["state"] == state),
                    _ => found.is_none(),
                }
            });
            assert!(node.ask(&["queue", "purge", "--all"]).status.success());
            node.wait_for_queue(<[_]>::is_empty);
            assert!(node.ask(&["queue", "resume", "slow.test"]).status.success());
        }
        let last = deliver(&node, "a@x.test", &["last@slow.test"]);
        Held::up_to_the_dot(&listener).end("250 2.0.0 Ok");
        node.wait_for_queue(|queue| queue.iter().all(|one| one["id"] != *last));
        assert_eq!(hop.messages().len(), 1, "nothing was sent twice");
    }
}

/// It was begun and delivered after the command had been confirmed: a shard that delivers what others bring looked for commands only before it
/// asked a further host. Later it stood still until its turn came.
#[test]
fn what_waits_for_its_turn_at_the_shard_that_delivers_is_not_begun_after_a_command() {
    let (listener, hop) = (TcpListener::bind("127.0.0.1:0").unwrap(), NextHop::start());
    let slow = format!("[[route]]\ndomain = \"slow.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", listener.local_addr().unwrap());
    let extra =
        format!("{slow}connections_max = 1\n[[route]]\ndomain = \"backup.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hop.address);
    let node = Node::start(&on_one_core(Setup { extra: extra.leak(), ..Setup::to(hop.address) }, 2));
    deliver(&node, "", &["first@slow.test"]);
    let mut busy = Held::up_to_the_dot(&listener);
    // Of each shard; that which has no connection to this host has four out at the other at most.
    let mut of_shards = [Vec::new(), Vec::new()];
    while of_shards.iter().any(|ids| ids.len() < 3) {
        let id = deliver(&node, "", &["b@slow.test"]);
        of_shards[shard_of(&id)].push(id);
    }
    let (mut held, mut moved) = (Vec::new(), 0);
    for (number, id) in of_shards.iter().flat_map(|ids| ids.iter().enumerate()) {
        let (command, said): (&[&str], _) = match number % 3 {
            0 => (&["queue", "hold", id], "1 message held"),
            1 => (&["queue", "purge", id], "1 message "),
            _ => (&["queue", "reroute", id, "--to", "backup.test"], "1 message re-routed"),
        };
        assert!(say(&node, command).starts_with(said), "{}", say(&node, command));
        match number % 3 {
            0 => held.push(id.clone()),
            1 => {}
            _ => moved += 1,
        }
    }
    // They do not wait for their turn, which behind a host that hangs is minutes away.
    assert!(hop.wait_for(moved).iter().all(|message| message.recipients == ["b@slow.test"]));
    deliver(&node, "", &["last@slow.test"]);
    busy.say("250 2.0.0 Ok");
    busy.hear("MAIL");
    busy.say("250 2.1.0 Ok");
    busy.hear("RCPT TO:<last@slow.test>");
    busy.say("250 2.1.5 Ok");
    busy.hear("DATA");
    busy.say("354 Go on");
    busy.hear_content();
    busy.say("250 2.0.0 Ok");
    let queue = node.wait_for_queue(|queue| queue.len() == held.len());
    assert!(queue.iter().all(|one| held.contains(&one["id"].as_str().unwrap().to_owned())), "{queue:?}");
    node.wait_for_queue(|queue| queue.iter().all(|one| one["recipients"][0]["state"] == "held"));
}

/// Some of it was delivered a second later, without a report: by the clock of the shard its end had not quite come when that was said.
#[test]
fn what_is_to_end_at_once_while_it_waits_for_its_turn_is_not_begun() {
    let (listener, hop) = (TcpListener::bind("127.0.0.1:0").unwrap(), NextHop::start());
    let extra = format!(
        "[[route]]\ndomain = \"slow.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\nconnections_max = 1\n",
        listener.local_addr().unwrap()
    );
    let node = Node::start(&on_one_core(Setup { extra: extra.leak(), ..Setup::to(hop.address) }, 2));
    deliver(&node, "", &["first@slow.test"]);
    let busy = Held::up_to_the_dot(&listener);
    let mut of_shards = [Vec::new(), Vec::new()];
    while of_shards.iter().any(|ids| ids.len() < 4) {
        let id = deliver(&node, "a@x.test", &["b@slow.test"]);
        of_shards[shard_of(&id)].push(id);
    }
    for id in of_shards.iter().flatten() {
        // As the clocks of two that differ have it.
        let said = say(&node, &["queue", "set-expiry", id, "50ms"]);
        assert!(said.starts_with("1 message given another end of life"), "{said}");
    }
    let ended = of_shards.iter().flatten().count();
    assert!(hop.wait_for(ended).iter().all(|report| report.recipients == ["a@x.test"]));
    busy.end("250 2.0.0 Ok");
    node.wait_for_queue(<[_]>::is_empty);
}

/// A command came before the dispatch had room in the lane: what was said of it then was forgotten when it was sent, and it was begun.
#[test]
fn what_waits_for_room_on_its_way_to_the_shard_that_delivers_stays_here_after_a_command() {
    // More than a shard has out at another. A destination with eight connections has one home, and 18 dispatches of a shard there.
    const OUT_OF_EACH: usize = 18;
    const DESTINATIONS: usize = 512 / OUT_OF_EACH + 2;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let limits = DestinationLimits { connections_max: 8, ..DestinationLimits::default() };
    let is_of_first = |domain: &String| Homes { shard: 0, shards: 2 }.of(domain, "", &limits) == [0];
    let domains: Vec<String> = (0..).map(|number| format!("d{number}.test")).filter(is_of_first).take(DESTINATIONS).collect();
    let route = |domain: &String| {
        let host = listener.local_addr().unwrap();
        format!("[[route]]\ndomain = \"{domain}\"\nvia = \"smarthost\"\nhosts = [\"{host}\"]\nconnections_max = 8\n")
    };
    let extra: String = domains.iter().map(route).collect();
    let node = Node::start(&on_one_core(Setup { extra: extra.leak(), ..Setup::to(listener.local_addr().unwrap()) }, 2));
    let mut client = loop {
        let mut client = Client::greeted(node.address);
        if shard_of(&client.deliver(&format!("b@{}", domains[0]), "x")) == 1 {
            break client;
        }
    };
    for domain in &domains {
        (0..OUT_OF_EACH).for_each(|_| drop(client.deliver(&format!("b@{domain}"), "x")));
    }
    // No host greets, so that nothing comes back by itself.
    assert!(node.ask(&["queue", "hold", "--all"]).status.success());
    node.wait_for_queue(|queue| {
        queue.len() > OUT_OF_EACH * DESTINATIONS && queue.iter().all(|one| one["recipients"][0]["state"] == "held")
    });
}
