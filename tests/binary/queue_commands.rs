//! `ringpost queue` and `ringpost spool` against a running engine.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Client;
use crate::name_server::NameServer;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup};
use crate::shards::{shard_of, two_shards};

const ANSWER_IS_NO: i32 = 1;
const NOT_RUNNING: i32 = 69;
const DISK: i32 = 74;

fn state(message: &Value) -> &str {
    message["recipients"][0]["state"].as_str().unwrap_or("none")
}

#[test]
fn ls_shows_what_was_accepted() {
    let node = Node::start(&Setup::new());
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    let queue = node.queue();
    assert_eq!(queue.len(), 1);
    let message = &queue[0];
    assert_eq!(message["id"], id.as_str());
    assert_eq!(message["sender"], "a@x.test");
    assert_eq!(message["recipients"][0]["address"], "b@y.test");
    assert_eq!(state(message), "held");
    for key in ["attempts", "next_attempt", "size", "accepted_at"] {
        assert!(message.get(key).is_some(), "{key} is missing in {message}");
    }
    let text = node.ask(&["queue", "ls"]);
    assert!(text.status.success());
    assert!(String::from_utf8_lossy(&text.stdout).contains(&id));
    let shown = node.ask(&["queue", "show", &id]);
    assert!(shown.status.success());
    assert!(String::from_utf8_lossy(&shown.stdout).contains("b@y.test"));
}

/// A list that a full disk had cut counted as whole: nothing was said, and the exit code was 0.
#[test]
fn a_list_that_cannot_be_written_is_an_error_and_one_that_nobody_reads_is_none() {
    let node = Node::start(&Setup::new());
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    for call in [&["queue", "ls"][..], &["queue", "ls", "--json"], &["queue", "summary"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let cut = node.call(call).stdout(full).output().unwrap();
        assert_eq!(cut.status.code(), Some(DISK), "{cut:?}");
        assert!(String::from_utf8_lossy(&cut.stderr).contains("standard output cannot be written"), "{cut:?}");
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let unread = node.call(call).stdout(writer).output().unwrap();
        assert!(unread.status.success() && unread.stderr.is_empty(), "{unread:?}");
    }
}

#[test]
fn delete_removes_for_good() {
    let mut node = Node::start(&Setup::new());
    let mut client = Client::greeted(node.address);
    let gone = client.deliver("b@y.test", "Subject: gone\r\n\r\ngone");
    let kept = client.deliver("b@y.test", "Subject: kept\r\n\r\nkept");
    assert!(node.ask(&["queue", "delete", &gone]).status.success());
    assert_eq!(node.queue().len(), 1);
    node.kill();
    node.restart();
    let queue = node.wait_for_queue(|queue| !queue.is_empty());
    assert_eq!(queue.len(), 1, "a deleted message came back: {queue:?}");
    assert_eq!(queue[0]["id"], kept.as_str());
}

#[test]
fn a_hold_by_command_lasts_over_a_restart_until_released() {
    let hop = NextHop::start();
    hop.set_busy(true);
    let mut node = Node::start(&Setup::to(hop.address));
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    node.wait_for_queue(|queue| queue.first().is_some_and(|message| state(message) == "deferred"));
    assert!(node.ask(&["queue", "hold", &id]).status.success());
    node.wait_for_queue(|queue| state(&queue[0]) == "held");
    // It was counted once more, and again when it was released twice. It is so, as was wished: no error.
    let again = node.ask(&["queue", "hold", &id]);
    assert_eq!((again.status.code(), &*String::from_utf8_lossy(&again.stdout)), (Some(0), "0 messages held\n"));
    assert!(String::from_utf8_lossy(&again.stderr).contains("1 message stayed as before: held by command already"), "{again:?}");
    node.kill();
    hop.set_busy(false);
    node.restart();
    node.wait_for_queue(|queue| queue.first().is_some_and(|message| state(message) == "held"));
    // Later mail goes, so the next hop is in use and the held message had its chance.
    Client::greeted(node.address).deliver("b@y.test", "Subject: other\r\n\r\nother");
    assert!(hop.wait_for(1)[0].text().contains("Subject: other"));
    node.wait_for_queue(|queue| queue.len() == 1);
    hop.hold_content(true);
    assert!(node.ask(&["queue", "release", "--all"]).status.success());
    let again = node.ask(&["queue", "release", "--all", "--json"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), "{\"changed\":0,\"unchanged\":1}\n", "{again:?}");
    hop.hold_content(false);
    assert!(hop.wait_for(2)[1].text().contains("Subject: x"));
    node.wait_for_queue(<[_]>::is_empty);
}

#[test]
fn retry_does_not_wait_for_its_time() {
    let hop = NextHop::start();
    hop.set_busy(true);
    let slow = Setup { retries: "[queue]\nretry_base = \"1h\"\nretry_cap = \"2h\"\n", ..Setup::to(hop.address) };
    let node = Node::start(&slow);
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    node.wait_for_queue(|queue| queue.first().is_some_and(|message| state(message) == "deferred"));
    hop.set_busy(false);
    // Other mail passes meanwhile; the deferred message waits for its hour.
    Client::greeted(node.address).deliver("b@y.test", "Subject: other\r\n\r\nother");
    assert!(hop.wait_for(1)[0].text().contains("Subject: other"));
    node.wait_for_queue(|queue| queue.len() == 1);
    assert!(node.ask(&["queue", "retry", &id]).status.success());
    assert!(hop.wait_for(2)[1].text().contains("Subject: x"));
}

#[test]
fn exit_codes_tell_absence_from_failure() {
    let mut node = Node::start(&Setup::new());
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    assert!(node.ask(&["queue", "delete", &id]).status.success());
    for call in ["show", "retry", "hold", "release", "delete"] {
        let output = node.ask(&["queue", call, &id]);
        assert_eq!(output.status.code(), Some(ANSWER_IS_NO), "{call}: {}", String::from_utf8_lossy(&output.stderr));
    }
    node.kill();
    let output = node.ask(&["queue", "ls"]);
    assert_eq!(output.status.code(), Some(NOT_RUNNING));
    assert!(!output.stderr.is_empty());
}

#[test]
fn the_spool_is_read_while_running_and_when_stopped() {
    let mut node = Node::start(&Setup::new());
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: inside\r\n\r\n..dots and text");
    for stopped in [false, true] {
        if stopped {
            node.signal(rustix::process::Signal::TERM);
            assert!(node.wait().success());
        }
        let output = node.ask(&["spool", "verify"]);
        assert!(output.status.success(), "stopped {stopped}: {}", String::from_utf8_lossy(&output.stderr));
        let output = node.ask(&["spool", "ls", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&id), "stopped {stopped}: {text}");
        let output = node.ask(&["spool", "cat", &id]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.ends_with("Subject: inside\r\n\r\n.dots and text\r\n"), "stopped {stopped}: {text:?}");
    }
}

/// The "no" from before was kept for as long as its zone said, so the mail failed for good once more, at once. Then the retry asked past
/// what was kept, and when its own answer had grown old, further mail failed by the old "no".
#[test]
fn a_retry_asks_anew_what_dns_has_refused() {
    let (names, hop) = (NameServer::start(), NextHop::start());
    names.set_negative_ttl(3600);
    let node = Node::start(&Setup {
        route: format!("via = \"mx\"\nport = {}", hop.address.port()),
        extra: format!("[dns]\nservers = [\"{}\"]\nallow_private = true\n[bounce]\nenabled = false\n", names.address).leak(),
        ..Setup::new()
    });
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    node.wait_for_queue(|queue| queue.iter().any(|message| message["recipients"][0]["state"] == "failed"));
    names.set("y.test", &[[127, 0, 0, 1]], 1);
    let began = Instant::now();
    while hop.messages().is_empty() {
        assert!(began.elapsed() < PATIENCE, "{:?}", node.queue());
        // One that comes within the second of the answer gets it: the next does not.
        assert!(node.ask(&["queue", "retry", "--all"]).status.success());
        std::thread::sleep(Duration::from_millis(50));
    }
    node.wait_for_queue(<[_]>::is_empty);
    // Until the answer to the retry has grown old, and DNS is asked once more.
    let (asked, mut sent) = (names.asked("y.test"), hop.messages().len());
    while names.asked("y.test") == asked {
        assert!(began.elapsed() < PATIENCE);
        Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
        sent += 1;
        while hop.messages().len() < sent {
            let queue = node.queue();
            assert!(queue.iter().all(|message| message["recipients"][0]["state"] != "failed") && began.elapsed() < PATIENCE, "{queue:?}");
        }
    }
}

/// The mended domain was refused on by the other shard, and by one that had not had it before, until the old answer's end: the retry found
/// no mail to ask for.
#[test]
fn a_retry_mends_a_domain_on_all_shards_though_its_mail_is_gone() {
    let (names, hop) = (NameServer::start(), NextHop::start());
    names.set_negative_ttl(3600);
    let node = Node::start(&two_shards(Setup {
        route: format!("via = \"mx\"\nport = {}", hop.address.port()),
        extra: format!("[dns]\nservers = [\"{}\"]\nallow_private = true\n[bounce]\nenabled = false\n", names.address).leak(),
        ..Setup::new()
    }));
    let began = Instant::now();
    let deliver = || shard_of(&Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx"));
    let mut refused_by = [0; 2];
    while refused_by.contains(&0) {
        refused_by[deliver()] += 1;
    }
    let all: usize = refused_by.iter().sum();
    node.wait_for_queue(|queue| queue.len() == all && queue.iter().all(|message| state(message) == "failed"));
    assert!(node.ask(&["queue", "purge", "--all"]).status.success());
    names.set("y.test", &[[127, 0, 0, 1]], 3600);
    let asked = names.asked("y.test");
    while names.asked("y.test") == asked {
        assert!(began.elapsed() < PATIENCE);
        // One that comes within the second of the answer is given that.
        let retried = node.ask(&["queue", "retry", "--domain", "y.test"]);
        assert_eq!(String::from_utf8_lossy(&retried.stdout), "0 messages retried\n");
    }
    let (mut sent, mut delivered_by) = (0, [0; 2]);
    while delivered_by.contains(&0) {
        delivered_by[deliver()] += 1;
        sent += 1;
        while hop.messages().len() < sent {
            let queue = node.queue();
            assert!(queue.iter().all(|message| state(message) != "failed") && began.elapsed() < PATIENCE, "{queue:?}");
        }
    }
}

/// A backup MX behind NAT did not know its public address for its own, and sent the mail of a primary that was away to itself until it had a
/// hundred Received fields.
#[test]
fn a_host_behind_nat_is_told_its_public_address() {
    let names = NameServer::start();
    names.set("y.test", &[[203, 0, 113, 25]], 1);
    let said = |own_hosts: &str| {
        let extra = format!("[dns]\nservers = [\"{}\"]\n{own_hosts}\n", names.address).leak();
        let node = Node::start(&Setup { route: "via = \"mx\"".into(), extra, ..Setup::new() });
        String::from_utf8(node.ask(&["dns", "y.test"]).stdout).unwrap()
    };
    assert!(said("").contains("y.test[203.0.113.25]:25"), "{}", said(""));
    let own = said("own_hosts = [\"203.0.113.25\"]");
    assert!(own.contains("554 5.4.6 mail for y.test leads back to this host"), "{own}");
}
