//! Commands that steer many messages or send them another way, and what is seen of it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::client::Client;
use crate::faulty_hop::{Fault, FaultyHop, Script};
use crate::next_hop::NextHop;
use crate::node::{Node, Setup, ringpost};
use crate::taken_out::Hop;

pub(crate) fn deliver(node: &Node, sender: &str, recipients: &[&str]) -> String {
    let mut client = Client::greeted(node.address);
    client.must(&format!("MAIL FROM:<{sender}>"), "250");
    for recipient in recipients {
        client.must(&format!("RCPT TO:<{recipient}>"), "250");
    }
    client.must("DATA", "354");
    let reply = client.say("Subject: x\r\n\r\nx\r\n.");
    reply.trim_end().rsplit_once("id=").unwrap().1.to_owned()
}

fn ids(node: &Node, filter: &[&str]) -> Vec<String> {
    let output = node.ask(&[&["queue", "ls", "--json"], filter].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let id = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    let mut ids: Vec<String> = text.lines().map(id).collect();
    ids.sort();
    ids
}

/// Two ids in the order in which [`ids`] gives them: shards are listed one after the other.
fn sorted(ids: [&String; 2]) -> [String; 2] {
    let mut ids = ids.map(String::clone);
    ids.sort();
    ids
}

pub(crate) fn say(node: &Node, words: &[&str]) -> String {
    let output = node.ask(words);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).trim_end().to_owned()
}

#[test]
fn filters_narrow_down_what_is_listed_and_changed() {
    let node = Node::start(&Setup::new());
    let first = deliver(&node, "a@x.test", &["b@y.test", "c@z.test"]);
    let second = deliver(&node, "a@W.test", &["b@z.test"]);
    let bounce = deliver(&node, "", &["b@y.test"]);
    assert_eq!(ids(&node, &["--domain", "Z.test"]), sorted([&first, &second]));
    assert_eq!(ids(&node, &["--domain", "z.test", "--sender-domain", "w.test"]), [second.as_str()]);
    assert_eq!(ids(&node, &["--sender", ""]), [bounce.as_str()]);
    assert_eq!(ids(&node, &["--destination", "*", "--state", "held"]).len(), 3);
    assert_eq!(ids(&node, &["--destination", "nowhere"]).len(), 0);
    let unknown = "the engine has no mail for a destination of this name";
    assert!(say(&node, &["queue", "hold", "--destination", "nowhere"]).contains(unknown));
    assert!(say(&node, &["queue", "summary", "--destination", "nowhere"]).contains(unknown));
    assert!(!say(&node, &["queue", "ls", "--destination", "*", "--older-than", "1h"]).contains(unknown), "there is one");
    // These said "0 messages purged", as if there was such mail and none left.
    let long = "x".repeat(65);
    for (option, value) in [
        ("--domain", ""),
        ("--domain", "b@y.test"),
        ("--sender", "x.test"),
        ("--tag", ""),
        ("--tag", long.as_str()),
        ("--destination", " "),
    ] {
        let output = node.ask(&["queue", "purge", option, value]);
        let said = String::from_utf8_lossy(&output.stderr);
        let named = format!("'{value}' for '{option} <");
        assert!(output.status.code() == Some(2) && said.contains(&named) && said.contains(": write "), "{option} {value:?}: {said}");
    }
    assert_eq!(ids(&node, &["--older-than", "1h"]).len(), 0);
    assert_eq!(say(&node, &["queue", "hold", "--sender-domain", "w.test"]), "1 message held");
    // Only the recipients that match are purged: the first message keeps its other one.
    assert_eq!(say(&node, &["queue", "purge", "--domain", "z.test"]), "2 messages purged");
    assert_eq!(ids(&node, &[]), sorted([&first, &bounce]));
    assert_eq!(say(&node, &["queue", "purge", "--all", "--json"]), "{\"changed\":2}");
    assert!(ids(&node, &[]).is_empty());
    for wrong in [
        &["queue", "purge"][..],
        &["queue", "purge", "--all", "0000000000001"],
        &["queue", "set-expiry", "--all", "soon"],
        &["queue", "reroute", "--all"],
    ] {
        assert_eq!(node.ask(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let unknown = node.ask(&["queue", "reroute", "--all", "--to", "nowhere.test"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("\"nowhere.test\" is no route of the config"));
}

/// It was asked of the engine, which refused it: exit code 1, as of a message that is not there.
#[test]
fn what_is_no_queue_id_is_wrong_usage_whether_or_not_the_engine_runs() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let id = "1NGQ0E400011";
    for words in [
        &["queue", "show", "1NGQ"][..],
        &["queue", "why", "1NGQ"],
        &["queue", "retry", id, "1NGQ"],
        &["queue", "purge", "1NGQ", "--json"],
        &["queue", "set-expiry", id, "1NGQ", "2d"],
    ] {
        let output = ringpost().args(words).arg("--socket").arg(&socket).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(
            said.contains("1NGQ") && said.contains("is no queue id: write all of one, 12 to 24 letters and digits"),
            "{words:?}: {said}"
        );
    }
    let output = ringpost().args(["spool", "cat", "1NGQ", "--path"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

/// It was counted twice, and changed twice.
#[test]
fn an_id_that_is_named_twice_is_one_message() {
    let node = Node::start(&Setup::new());
    let id = deliver(&node, "a@x.test", &["b@y.test"]);
    let (lower, purge) = (id.to_lowercase(), ["queue", "purge"]);
    assert_eq!(say(&node, &["queue", "hold", &id, &lower, &id]), "1 message held");
    assert_eq!(say(&node, &["queue", "set-expiry", &id, &id, "2d"]), "1 message given another end of life");
    let purged = node.ask(&[&purge[..], &[&lower, &id]].concat());
    assert_eq!((purged.status.code(), &*String::from_utf8_lossy(&purged.stdout)), (Some(0), "1 message purged\n"), "{purged:?}");
}

/// It was said to be purged, and was delivered a moment later.
#[test]
fn what_is_being_attempted_is_purged_unless_that_delivers_and_is_said_so() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    hop.hold_content(true);
    let id = deliver(&node, "", &["b@y.test"]);
    hop.wait_for_contents(1);
    let said = say(&node, &["queue", "purge", &id]);
    assert_eq!(said, "1 message purged\nringpost: 1 of them is being attempted now: purged unless this attempt delivers");
    hop.hold_content(false);
    hop.wait_for(1);
    let log = node.wait_for_mail_log("outcome=delivered");
    assert!(log.contains("to=<b@y.test> outcome=purged reason=\"by command, unless the attempt that is under way delivers it\""), "{log}");
    node.wait_for_queue(<[_]>::is_empty);
    assert!(say(&node, &["queue", "why", &id]).contains("<b@y.test> was delivered to"));

    hop.hold_content(true);
    deliver(&node, "", &["b@y.test"]);
    hop.wait_for_contents(2);
    assert!(say(&node, &["queue", "purge", "--all", "--json"]).starts_with("{\"changed\":1,\"unless_delivered\":1}\n"));
    hop.hold_content(false);
    node.wait_for_queue(<[_]>::is_empty);

    // Beside one that waits, too.
    hop.hold_content(true);
    let both = deliver(&node, "", &["later-c@z.test", "b@y.test"]);
    hop.wait_for_contents(3);
    let said = say(&node, &["queue", "purge", "--domain", "y.test", "--json"]);
    assert!(said.starts_with("{\"changed\":1,\"unless_delivered\":1}\n"), "{said}");
    assert_eq!(say(&node, &["queue", "purge", "--domain", "y.test"]), "0 messages purged", "it is on its way out");
    hop.hold_content(false);
    node.wait_for_queue(|queue| queue.len() == 1 && queue[0]["id"] == *both && queue[0]["recipients"][1]["state"] == "delivered");
}

/// A purge by filter left what was being attempted just then: it came again at its retry, for days.
#[test]
fn what_is_being_attempted_beside_others_is_purged_when_the_attempt_ends_and_after_a_crash() {
    // Says nothing to MAIL.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let quiet = listener.local_addr().unwrap();
    let extra: &'static str = format!("[[route]]\ndomain = \"quiet.test\"\nvia = \"smarthost\"\nhosts = [\"{quiet}\"]\n").leak();
    let mut node = Node::start(&Setup { extra, ..Setup::new() });
    let id = deliver(&node, "a@x.test", &["b@quiet.test", "c@y.test"]);
    let mut silent = Hop::greeted(&listener);
    silent.hear("MAIL");
    let said = say(&node, &["queue", "purge", "--domain", "quiet.test"]);
    assert_eq!(said, "1 message purged\nringpost: 1 of them is being attempted now: purged unless this attempt delivers");
    let why = say(&node, &["queue", "why", &id]);
    assert!(why.contains("; purged by command when that has ended, unless it delivers."), "{why}");
    let log = node.wait_for_mail_log("to=<b@quiet.test> outcome=purged");
    assert!(log.contains("reason=\"by command, unless the attempt that is under way delivers it\""), "{log}");
    node.kill();
    node.restart();
    let queue = node.wait_for_queue(|queue| queue.len() == 1);
    assert_eq!((&queue[0]["id"], &queue[0]["recipients"][0]["state"]), (&id.clone().into(), &"purged".into()), "{queue:?}");
}

/// `queue bounce` left what was being attempted just then, with exit code 1: it came again at its retry, for days.
#[test]
fn what_is_being_attempted_is_bounced_when_the_attempt_ends() {
    let silent = FaultyHop::start(Script { point: "mail", fault: Fault::Silence, pipelining: true });
    let extra = format!("[[route]]\ndomain = \"slow.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", silent.address);
    let hop = NextHop::start();
    let retries = "[delivery]\nmail_timeout = \"8s\"\n";
    let node = Node::start(&Setup { extra: extra.leak(), retries, ..Setup::to(hop.address) });
    let id = deliver(&node, "a@x.test", &["b@slow.test"]);
    node.wait_for_queue(|queue| queue.len() == 1 && silent.faults() == 1);
    let said = say(&node, &["queue", "bounce", "--domain", "slow.test", "--reason", "no such campaign"]);
    assert_eq!(said, "1 message bounced\nringpost: 1 of them is being attempted now: bounced unless this attempt delivers");
    let why = say(&node, &["queue", "why", &id]);
    assert!(why.contains("; bounced by command when that has ended, unless it delivers."), "{why}");
    let report = &hop.wait_for(1)[0];
    assert!(report.recipients == ["a@x.test"] && report.text().contains("no such campaign"), "{}", report.text());
    node.wait_for_queue(<[_]>::is_empty);
    let log = node.wait_for_mail_log("event=bounced to=<b@slow.test>");
    assert!(log.contains("reason=\"unless the attempt that is under way delivers it\""), "{log}");
}

/// A reason of any length was taken: it was cut in the report, and its line in the mail log was cut within the quotes, so that
/// `queue why` and `log grep` knew nothing of the end of the message.
#[test]
fn a_reason_that_does_not_fit_is_refused_and_the_longest_is_found_again() {
    let node = Node::start(&Setup::new());
    let id = deliver(&node, "", &["b@y.test"]);
    let refused = node.ask(&["queue", "bounce", &id, "--reason", &"x".repeat(191)]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is 191 bytes long: at most 190 fit"));
    for lines in ["gone\nX-Forged: yes", "gone\u{1b}[31m"] {
        let refused = node.ask(&["queue", "bounce", &id, "--reason", lines]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("characters that no value here can have"), "{refused:?}");
    }
    assert_eq!(ids(&node, &[]), [id.as_str()]);
    let longest = "\"".repeat(190);
    assert_eq!(say(&node, &["queue", "bounce", &id, "--reason", &longest]), "1 message bounced");
    node.wait_for_queue(<[_]>::is_empty);
    let log = node.folder.path().join("mail.log");
    let began = std::time::Instant::now();
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("event=report") {
        assert!(began.elapsed() < crate::node::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let why = say(&node, &["queue", "why", &id]);
    assert!(why.contains("<b@y.test> failed for good at "), "{why}");
}

#[test]
fn rerouted_mail_goes_the_other_way_also_after_a_restart() {
    let hop = NextHop::start();
    let extra: &'static str = format!("[[route]]\ndomain = \"backup.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hop.address).leak();
    let mut node = Node::start(&Setup { extra, ..Setup::new() });
    let (moved, kept) = (deliver(&node, "a@x.test", &["b@y.test"]), deliver(&node, "a@x.test", &["c@y.test"]));
    assert!(node.ask(&["queue", "hold", &moved]).status.success());
    assert_eq!(say(&node, &["queue", "reroute", &moved, "--to", "backup.test"]), "1 message re-routed");
    let again = node.ask(&["queue", "reroute", &moved, "--to", "backup.test"]);
    let told = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && told.contains("1 message stayed as before: they go that way already"), "{told}");
    node.kill();
    node.restart();
    node.wait_for_queue(|queue| queue.len() == 2);
    assert_eq!(ids(&node, &["--destination", "backup.test"]), [moved.as_str()]);
    assert!(node.ask(&["queue", "release", &moved]).status.success());
    assert_eq!(hop.wait_for(1)[0].recipients, ["b@y.test"]);
    node.wait_for_queue(|queue| queue.len() == 1 && queue[0]["id"] == kept.as_str());
}

/// `reroute --domain` took the recipients of other domains along, and so did a hold, which said so when it was too late: it is refused unless
/// that is meant.
#[test]
fn a_filter_for_recipients_reroutes_those_alone_and_a_hold_of_others_has_to_be_meant() {
    let hop = NextHop::start();
    let extra: &'static str = format!("[[route]]\ndomain = \"backup.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hop.address).leak();
    let mut node = Node::start(&Setup { extra, ..Setup::new() });
    let id = deliver(&node, "a@x.test", &["b@y.test", "c@z.test", "d@z.test"]);
    let held =
        "1 message held\nringpost: 2 recipients that the filter does not match are held along with them: this is done with whole messages";
    let others = deliver(&node, "a@x.test", &["b@y.test"]);
    for (words, what) in [(&["hold"][..], "held"), (&["release"], "released"), (&["set-expiry", "2d"], "given another end of life")] {
        let refused = node.ask(&[&["queue"], words, &["--domain", "y.test"]].concat());
        let told = String::from_utf8_lossy(&refused.stderr);
        let expected = format!("2 recipients of 1 message that the filter does not match would be {what}, too; --whole-messages goes on");
        assert!(refused.status.code() == Some(1) && told.contains(&expected) && told.contains("nothing was changed"), "{told}");
    }
    assert_eq!(say(&node, &["queue", "release", "--all"]).lines().next(), Some("0 messages released"), "none was held");
    assert_eq!(say(&node, &["queue", "purge", &others]), "1 message purged");
    assert_eq!(say(&node, &["queue", "hold", "--domain", "y.test", "--whole-messages"]), held);
    assert_eq!(say(&node, &["queue", "reroute", "--domain", "y.test", "--to", "backup.test"]), "1 message re-routed");
    node.kill();
    node.restart();
    node.wait_for_queue(|queue| queue.len() == 1);
    let released = say(&node, &["queue", "release", "--domain", "z.test", "--whole-messages", "--json"]);
    assert_eq!(released.lines().next(), Some("{\"changed\":1,\"other_recipients\":1}"), "{released}");
    assert_eq!(hop.wait_for(1)[0].recipients, ["b@y.test"]);
    node.wait_for_queue(|queue| queue.len() == 1 && queue[0]["recipients"][0]["state"] == "delivered");
    let recipients = |filter: &[&str]| ids(&node, filter).len();
    assert_eq!((recipients(&["--destination", "*"]), recipients(&["--domain", "z.test", "--state", "held"])), (1, 1));
    assert_eq!(say(&node, &["queue", "purge", "--domain", "y.test"]), "0 messages purged", "it is delivered");
    assert_eq!(ids(&node, &[]), [id.as_str()]);
    // Who is purged beside others reads so, and not as if the sender had been told of a bounce.
    let other = deliver(&node, "a@x.test", &["b@y.test", "c@z.test"]);
    assert_eq!(say(&node, &["queue", "purge", "--domain", "y.test"]), "1 message purged");
    assert!(say(&node, &["queue", "show", &other]).contains("<b@y.test> purged, 0 attempts"));
}

/// What kept a message here was said to be the word about a recipient that had been told of and was done with.
#[test]
fn the_reason_of_a_message_is_that_of_what_is_still_open() {
    let hop = NextHop::start();
    let slow = "[queue]\nretry_base = \"1h\"\nretry_cap = \"2h\"\n";
    let node = Node::start(&Setup { retries: slow, ..Setup::to(hop.address) });
    deliver(&node, "a@x.test", &["no-b@z.test", "later-c@z.test"]);
    let queue = node.wait_for_queue(|queue| {
        queue.iter().any(|message| message["recipients"][0]["state"] == "bounced" && message["recipients"][1]["state"] == "deferred")
    });
    let message = queue.iter().find(|message| message["sender"] == "a@x.test").unwrap();
    assert_eq!(message["reason"], "450 4.2.1 Later", "{message}");
}

#[test]
fn the_mail_log_is_followed_and_searched() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let first = deliver(&node, "a@x.test", &["b@y.test"]);
    node.wait_for_queue(<[_]>::is_empty);
    let config = node.folder.path().join("ringpost.toml");
    let mut follow =
        Command::new(ringpost().get_program()).args(["log", "follow", "--json", "-c"]).arg(&config).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    // The log is rotated while it is followed.
    let log = node.folder.path().join("mail.log");
    let began = std::time::Instant::now();
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("outcome=delivered") {
        assert!(began.elapsed() < crate::node::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    std::fs::rename(&log, node.folder.path().join("mail.log.1")).unwrap();
    // One that came before the follower had opened the file is not seen: mail goes on until one is.
    let sender = std::thread::spawn({
        let address = node.address;
        move || {
            for _ in 0..50 {
                Client::greeted(address).deliver("c@y.test", "Subject: x\r\n\r\nx");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    });
    let seen = lines.map_while(Result::ok).find_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
        (entry["event"] == "attempt" && entry["outcome"] == "delivered" && entry["to"] == "c@y.test").then_some(entry)
    });
    assert!(seen.unwrap()["delay_ms"].is_u64());
    follow.kill().unwrap();
    follow.wait().unwrap();
    sender.join().unwrap();
    let found = say(&node, &["log", "grep", &first]);
    assert_eq!(found.lines().count(), 2, "{found}");
    assert!(found.contains("event=accepted") && found.contains("outcome=delivered"));
    assert!(say(&node, &["log", "grep", "C@y.test"]).lines().count() >= 1);
    assert_eq!(node.ask(&["log", "grep", "nobody@y.test"]).status.code(), Some(1));
}

/// A tag is found again after a restart, whether the message came in one piece, in pieces, or larger than a chunk.
#[test]
fn tags_of_listener_and_header_find_mail_also_after_a_restart() {
    let second = crate::node::free_port();
    let extra: &'static str = format!("[[listener]]\naddress = \"127.0.0.1:{second}\"\ntag = \"bulk\"\n").leak();
    let retries = "[queue]\ntag_header = \"X-Campaign\"\n";
    let mut node = Node::start(&Setup { extra, retries, ..Setup::new() });
    let bulk = std::net::SocketAddr::from(([127, 0, 0, 1], second));
    let plain = deliver(&node, "a@x.test", &["b@y.test"]);
    let spring = Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\nx-campaign: spring 27\r\n\r\nx");
    let both = Client::greeted(bulk).deliver("b@y.test", "X-Campaign: spring 27\r\n\r\nX-Campaign: no");
    let large = Client::greeted(bulk).deliver("b@y.test", &format!("X-Campaign: large\r\n\r\n{}", "0123456789\r\n".repeat(60_000)));
    for _ in 0..2 {
        assert_eq!(ids(&node, &["--tag", "spring 27"]), sorted([&spring, &both]));
        assert_eq!(ids(&node, &["--tag", "bulk"]), sorted([&both, &large]));
        assert_eq!(ids(&node, &["--tag", "large"]), [large.as_str()]);
        assert!(ids(&node, &["--tag", "no"]).is_empty());
        assert!(say(&node, &["queue", "show", &both]).contains("tags       "));
        node.kill();
        node.restart();
        node.wait_for_queue(|queue| queue.len() == 4);
    }
    assert_eq!(say(&node, &["queue", "purge", "--tag", "bulk"]), "2 messages purged");
    assert_eq!(ids(&node, &[]), sorted([&plain, &spring]));
}

#[test]
fn the_mail_log_can_be_json() {
    let hop = NextHop::start();
    let setup = Setup::to(hop.address);
    let mut node = Node::start(&setup);
    let config = node.folder.path().join("ringpost.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    node.kill();
    std::fs::write(&config, text.replace("[log]\n", "[log]\nmail_format = \"json\"\n")).unwrap();
    std::fs::remove_file(node.folder.path().join("mail.log")).ok();
    node.restart();
    let id = deliver(&node, "a@x.test", &["b@y.test"]);
    let began = std::time::Instant::now();
    let lines = loop {
        let log = std::fs::read_to_string(node.folder.path().join("mail.log")).unwrap_or_default();
        if log.contains("delivered") {
            break log;
        }
        assert!(began.elapsed() < crate::node::PATIENCE, "{log}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let of_message: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|entry: &serde_json::Value| entry["queue_id"] == id.as_str())
        .collect();
    assert_eq!((&of_message[0]["event"], &of_message[0]["from"]), (&"accepted".into(), &"a@x.test".into()));
    assert!(of_message[0]["size"].is_u64() && of_message[0]["recipients"] == 1);
    assert_eq!((&of_message[1]["outcome"], &of_message[1]["to"]), (&"delivered".into(), &"b@y.test".into()));
    assert!(say(&node, &["queue", "why", &id]).starts_with("Not in the queue any more: <b@y.test> was delivered to "));
}

/// A retry of held mail said "1 message retried" and did nothing.
#[test]
fn what_is_held_is_not_retried_and_the_answer_says_so() {
    let node = Node::start(&Setup::new());
    let id = deliver(&node, "a@x.test", &["b@y.test"]);
    for by_command in [false, true] {
        let output = node.ask(&["queue", "retry", &id]);
        let (said, told) = (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned());
        assert_eq!(said.trim_end(), "0 messages retried");
        assert!(told.contains("1 message stayed as before: held; ") && !told.contains("not in the queue"), "{told}");
        assert_eq!(output.status.code(), Some(1));
        if !by_command {
            assert_eq!(say(&node, &["queue", "hold", &id]), "1 message held");
        }
    }
    assert_eq!(
        say(&node, &["queue", "retry", "--all", "--json"]).lines().next().unwrap(),
        "{\"changed\":0,\"held\":1,\"taken\":0,\"unanswered\":0}"
    );
}

/// A retry of mail that may go already said "1 message retried", and so did the mail log.
#[test]
fn a_retry_of_what_may_go_already_changes_nothing_and_the_answer_says_so() {
    let node = Node::start(&Setup { route: "via = \"smarthost\"\nhosts = [\"127.0.0.1:1\"]".into(), ..Setup::new() });
    let id = deliver(&node, "a@x.test", &["b@y.test"]);
    let output = node.ask(&["queue", "retry", &id]);
    let (said, told) = (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!((said.trim_end(), output.status.code()), ("0 messages retried", Some(0)));
    assert!(told.contains("1 message stayed as before: they may go already, "), "{told}");
    assert_eq!(say(&node, &["queue", "retry", "--all", "--json"]).lines().next().unwrap(), "{\"changed\":0,\"unchanged\":1}");
    // What is changed afterwards has its line, behind which one of the retry would stand.
    assert_eq!(say(&node, &["queue", "hold", &id]), "1 message held");
    let log = node.wait_for_mail_log("command=hold");
    assert!(!log.contains("command=retry"), "{log}");
}

/// A billion days were taken, and a time in the past, and `queue why` spoke of 1970.
#[test]
fn an_end_of_life_is_ahead_and_within_reach() {
    let node = Node::start(&Setup { route: "via = \"smarthost\"\nhosts = [\"127.0.0.1:1\"]".into(), ..Setup::new() });
    let id = deliver(&node, "a@x.test", &["b@y.test"]);
    for (time, word) in [
        ("999999999d", "more than 366 days ahead"),
        ("367d", "more than 366 days ahead"),
        ("2999-01-01T00:00:00Z", "more than 366 days ahead"),
        ("2020-01-01T00:00:00Z", "is in the past"),
        ("1960-01-01T00:00:00Z", "is in the past"),
        ("soon", "neither a time from now"),
    ] {
        let output = node.ask(&["queue", "set-expiry", &id, time]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && told.contains(word), "{time}: {told}");
    }
    assert_eq!(say(&node, &["queue", "set-expiry", &id, "2h"]), "1 message given another end of life");
    let told = say(&node, &["queue", "set-expiry", &id, "30d"]);
    assert!(told.contains("1 of them end earlier all the same"), "{told}");
    assert_eq!(say(&node, &["queue", "set-expiry", &id, "0s"]), "1 message given another end of life");
    node.wait_for_mail_log("event=expired");
}
