//! `ringpost queue summary`: where mail is stuck, and why.

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup, free_port};
use crate::queue_steering::{deliver, say};
use crate::shards::{shard_of, two_shards};

#[test]
fn the_summary_names_what_is_stuck() {
    let hop = NextHop::start();
    hop.set_busy(true);
    let slow = "[queue]\nretry_base = \"1h\"\nretry_cap = \"2h\"\n";
    let extra = "[[route]]\ndomain = \"held.test\"\nvia = \"hold\"\n";
    let node = Node::start(&Setup { retries: slow, extra, ..Setup::to(hop.address) });
    (0..2).for_each(|_| drop(deliver(&node, "a@x.test", &["b@y.test"])));
    // A message with recipients for one destination on both sides of one for another counted twice at the first; and messages stood beside
    // recipients as if they were the same.
    deliver(&node, "a@x.test", &["b@y.test", "b@held.test", "c@y.test"]);
    node.wait_for_queue(|queue| queue.iter().filter(|message| message["recipients"][0]["state"] == "deferred").count() == 3);
    // Which of several hosts had said it was known, and told by none of the commands.
    let listed = node.wait_for_queue(|queue| queue.len() == 3);
    assert_eq!(listed[0]["recipients"][0]["relay"], hop.address.to_string(), "{listed:?}");
    assert_eq!(listed[2]["recipients"][1]["relay"], serde_json::Value::Null, "held mail has nobody's word: {listed:?}");
    let shown = say(&node, &["queue", "show", listed[0]["id"].as_str().unwrap()]);
    assert!(shown.contains(&format!("last reply 450 4.2.1 Busy\n           said by {}", hop.address)), "{shown}");
    let output = node.ask(&["queue", "summary", "--json"]);
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let (stuck, held) = (&lines[0], &lines[1]);
    assert_eq!((&stuck["destination"], &stuck["messages"]), (&"*".into(), &3.into()));
    assert_eq!((&stuck["recipients"], &stuck["deferred"]), (&4.into(), &4.into()));
    assert_eq!((&stuck["last_reply"], &stuck["breaker"]), (&"450 4.2.1 Busy".into(), &"closed".into()));
    assert!(stuck["oldest"].is_string() && stuck["next_attempt"].is_string());
    assert_eq!((&held["destination"], &held["held"], &held["wait"]), (&"held.test".into(), &1.into(), &"held".into()));
    let text = say(&node, &["queue", "summary"]);
    assert!(text.contains("450 4.2.1 Busy") && text.ends_with("5 recipients at 2 destinations"), "{text}");
    let columns: Vec<&str> = text.lines().find(|line| line.starts_with("* ")).unwrap().split_whitespace().take(5).collect();
    assert_eq!(columns, ["*", "3", "4", "0", "4"], "{text}");
    let one = say(&node, &["queue", "summary", "--destination", "Held.test"]);
    assert!(one.contains("held.test") && !one.contains("Busy") && one.ends_with("1 recipient at 1 destination"), "{one}");
    assert!(
        say(&node, &["queue", "summary", "--destination", "nowhere"])
            .starts_with("0 recipients at 0 destinations\nringpost: --destination")
    );
}

/// A destination that did not answer had a line of nothing when its mail had gone another way, and was counted.
#[test]
fn a_destination_without_mail_has_no_line_unless_it_is_asked_for() {
    let extra = "[[route]]\ndomain = \"kept.test\"\nvia = \"hold\"\n";
    let node = Node::start(&Setup { extra, ..Setup::to(std::net::SocketAddr::from(([127, 0, 0, 1], free_port()))) });
    deliver(&node, "a@x.test", &["b@y.test"]);
    node.wait_for_queue(|queue| queue[0]["reason"].as_str().is_some_and(|reason| reason.contains("refused")));
    assert!(say(&node, &["queue", "summary"]).ends_with("1 recipient at 1 destination"));
    assert_eq!(say(&node, &["queue", "reroute", "--all", "--to", "kept.test"]), "1 message re-routed");
    let moved = node.wait_for_queue(|queue| queue[0]["recipients"][0]["state"] == "held");
    let summary = say(&node, &["queue", "summary"]);
    assert!(summary.ends_with("1 recipient at 1 destination") && !summary.contains("\n* "), "{summary} {moved:?}");
    let one = say(&node, &["queue", "summary", "--destination", "*", "--json"]);
    let one: serde_json::Value = serde_json::from_str(&one).expect("it does not answer, and who asks for it sees that");
    assert_eq!((&one["recipients"], &one["messages"]), (&0.into(), &0.into()), "{one}");
}

/// What is shown as the last word of a destination was that of another one.
#[test]
fn the_word_of_where_mail_was_before_is_not_told_of_where_it_was_rerouted_to() {
    let hop = NextHop::start();
    let extra = "[[route]]\ndomain = \"kept.test\"\nvia = \"hold\"\n";
    let setup = Setup { retries: "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n", extra, ..Setup::to(hop.address) };
    let node = Node::start(&setup);
    let id = deliver(&node, "a@x.test", &["later-b@z.test"]);
    node.wait_for_queue(|queue| queue.iter().any(|message| message["recipients"][0]["state"] == "deferred"));
    let last = |name: &str| {
        let summary: serde_json::Value =
            serde_json::from_str(&say(&node, &["queue", "summary", "--destination", name, "--json"])).expect("one line");
        summary["last_reply"].clone()
    };
    assert!(last("*").as_str().unwrap().starts_with("450"), "{}", last("*"));
    assert_eq!(say(&node, &["queue", "reroute", &id, "--to", "kept.test"]), "1 message re-routed");
    assert_eq!(last("kept.test"), serde_json::Value::Null);
    assert!(say(&node, &["queue", "show", &id]).contains("450"), "it is the message's all the same");
}

/// Programs were given the first 40 destinations without a word of the others.
#[test]
fn programs_are_given_all_destinations_and_whoever_gets_less_is_told() {
    let domains: Vec<String> = (0..42).map(|number| format!("d{number}.test")).collect();
    let extra: String = domains.iter().map(|domain| format!("[[route]]\ndomain = \"{domain}\"\nvia = \"hold\"\n")).collect();
    let node = Node::start(&Setup { extra: extra.leak(), ..Setup::new() });
    let recipients: Vec<String> = domains.iter().map(|domain| format!("b@{domain}")).collect();
    deliver(&node, "a@x.test", &recipients.iter().map(String::as_str).collect::<Vec<_>>());
    let text = say(&node, &["queue", "summary"]);
    assert!(text.ends_with("42 recipients at 42 destinations; 2 with less mail are not shown"), "{text}");
    let ask = |words: &[&str]| {
        let output = node.ask(words);
        let (lines, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (lines.lines().count(), said)
    };
    assert_eq!(ask(&["queue", "summary", "--json"]), (42, String::new()));
    let cut = (3, "ringpost: of 42 destinations 39 with less mail are not shown (--limit)\n".to_owned());
    assert_eq!(ask(&["queue", "summary", "--json", "--limit", "3"]), cut);
}

/// One of two hosts was dead, and no command said so: the destination's breaker is closed while one of them serves, and one without mail has no line.
#[test]
fn each_host_that_is_left_alone_is_told_with_its_reason_and_its_time() {
    let (hop, dead) = (NextHop::start(), std::net::SocketAddr::from(([127, 0, 0, 1], free_port())));
    let route =
        format!("via = \"smarthost\"\nhosts = [\"{dead}\", {{ host = \"{}\", backup = true }}]\nbreaker_timeout = \"10m\"", hop.address);
    let setup = Setup { route, retries: "[delivery]\ndead_destination = \"1h\"\n", ..Setup::new() };
    let node = Node::start(&two_shards(setup));
    deliver(&node, "a@x.test", &["b@y.test"]);
    hop.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
    let one = say(&node, &["queue", "summary", "--destination", "*", "--json"]);
    let one: serde_json::Value = serde_json::from_str(&one).expect("one line");
    assert_eq!((&one["breaker"], &one["recipients"], one["hosts"].as_array().unwrap().len()), (&"closed".into(), &0.into(), 1), "{one}");
    let host = &one["hosts"][0];
    assert_eq!((&host["host"], &host["breaker"]), (&dead.to_string().into(), &"open".into()), "{one}");
    assert_eq!(host["reason"], format!("connect to {dead}: refused"), "{one}");
    let next = host["next_probe"].as_str().expect("it is open");
    let text = say(&node, &["queue", "summary", "--destination", "*"]);
    assert!(text.contains(&format!("\n    host {dead} open, probed next at {next}")), "{text}");
    assert!(text.ends_with("0 recipients at 1 destination") && text.matches("refused").count() == 1, "{text}");
}

/// How many attempts are open and how many may be was in no column; and of two shards each counted what one had given to the other.
#[test]
fn the_attempts_that_are_open_stand_beside_those_that_may_be() {
    // It accepts and says nothing: an attempt that lasts.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = Setup::to(silent.local_addr().unwrap());
    let route = format!("{}\nconnections_max = 1\nrate = \"60/min\"\nrate_burst = 9", to.route);
    let node = Node::start(&two_shards(Setup { route, ..Setup::new() }));
    let mut clients: Vec<Client> = (0..6).map(|_| Client::greeted(node.address)).collect();
    let ids: Vec<String> = clients.iter_mut().map(|client| client.deliver("b@y.test", "Subject: x\r\n\r\nx")).collect();
    assert!(ids.iter().any(|id| shard_of(id) != shard_of(&ids[0])), "both shards have mail");
    let _connection = silent.accept().unwrap();
    let line: serde_json::Value = serde_json::from_str(&say(&node, &["queue", "summary", "--json"])).expect("one line");
    let numbers = ["recipients", "connections", "window", "connections_max"].map(|name| line[name].as_u64().unwrap());
    assert_eq!((numbers, &line["rate"]), ([6, 1, 1, 1], &"60/min".into()), "{line}");
    let text = say(&node, &["queue", "summary"]);
    let columns: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(columns[9..12], ["1", "1", "1"], "{text}");
}
