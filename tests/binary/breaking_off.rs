//! A next hop that breaks off: behind the content, or with 421 on a connection that it has served.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup, free_port};
use crate::shards::{counter, on_one_core};

/// What it does.
#[derive(Default)]
struct Manner {
    /// It reads the next content whole and closes, without an answer.
    leaves_unanswered: AtomicBool,
    /// No content is answered meanwhile.
    holds_content: AtomicBool,
    /// Contents that were read.
    contents: AtomicUsize,
    /// Each MAIL is answered with 421, and the connection ends.
    is_tired: AtomicBool,
    /// The connection ends at each MAIL, without an answer; at the third when this is off again.
    leaves_at_mail: AtomicBool,
    /// MAILs at which it left, or is about to.
    left: AtomicUsize,
    /// Each MAIL of this connection, counted from 1, is answered with 421, too.
    tired_connection: AtomicUsize,
    /// Connections that were greeted.
    greeted: AtomicUsize,
    /// So many messages are taken over each connection, and no further MAIL of it; 0: any number.
    messages_max: AtomicUsize,
    /// It says so to each MAIL.
    is_full: AtomicBool,
    /// It takes one message over each connection, and closes at the first recipient of the next.
    takes_one: AtomicBool,
}

fn start(manner: &Arc<Manner>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let manner = Arc::clone(manner);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let manner = Arc::clone(&manner);
            // A connection that breaks is the business of the test, not of its next hop.
            std::thread::spawn(move || stream.and_then(|stream| converse(stream, &manner)));
        }
    });
    address
}

fn converse(stream: TcpStream, manner: &Manner) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    writer.write_all(b"220 hop.test ESMTP\r\n")?;
    let number = manner.greeted.fetch_add(1, Ordering::SeqCst) + 1;
    let is_tired = || manner.is_tired.load(Ordering::SeqCst) || manner.tired_connection.load(Ordering::SeqCst) == number;
    let mut taken = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.get(..4).unwrap_or("") {
            "EHLO" => writer.write_all(b"250 hop.test\r\n")?,
            "MAIL" if is_tired() => return writer.write_all(b"421 4.7.28 Unusual rate of mail\r\n"),
            "MAIL" if manner.is_full.load(Ordering::SeqCst) || taken > 0 && taken == manner.messages_max.load(Ordering::SeqCst) => {
                writer.write_all(b"450 4.7.1 too many messages on this connection\r\n")?;
            }
            "MAIL" if manner.leaves_at_mail.load(Ordering::SeqCst) => {
                let left = manner.left.fetch_add(1, Ordering::SeqCst) + 1;
                while left == 3 && manner.leaves_at_mail.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                return Ok(());
            }
            "RCPT" if taken > 0 && manner.takes_one.load(Ordering::SeqCst) => return Ok(()),
            "DATA" => {
                taken += 1;
                writer.write_all(b"354 Go on\r\n")?;
                while line != ".\r\n" {
                    line.clear();
                    reader.read_line(&mut line)?;
                }
                manner.contents.fetch_add(1, Ordering::SeqCst);
                if manner.leaves_unanswered.swap(false, Ordering::SeqCst) {
                    return Ok(());
                }
                while manner.holds_content.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                writer.write_all(b"250 2.0.0 Ok\r\n")?;
            }
            _ => writer.write_all(b"250 2.0.0 Ok\r\n")?,
        }
    }
}

/// It was one of the deferred, and nothing told that its recipient might get it twice.
#[test]
fn content_that_is_not_answered_is_counted_and_marked() {
    let manner = Arc::new(Manner { leaves_unanswered: true.into(), ..Manner::default() });
    let node = Node::start(&Setup::to(start(&manner)));
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\n");
    let log = node.wait_for_mail_log("outcome=delivered");
    let deferred: Vec<_> = log.lines().filter(|line| line.contains("outcome=deferred")).collect();
    assert!(matches!(deferred[..], [line] if line.contains(" outcome=deferred delivery=unknown reply=\"421 4.4.2 ")), "{log}");
    assert_eq!((counter(&node, "deferred"), counter(&node, "deliveries_unknown")), (1, 1));
    let output = node.ask(&["log", "grep", "b@y.test", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["delivery"] == "unknown" && line["outcome"] == "deferred").count(), 1, "{text}");
}

/// The word was taken for one about the connection, and dropped.
#[test]
fn a_421_on_used_connections_pauses_the_destination_in_its_own_words() {
    let manner = Arc::new(Manner { holds_content: true.into(), ..Manner::default() });
    let retries = "[queue]\nretry_base = \"1h\"\n[delivery]\nconnections_max = 3\nwindow_initial = 3\nthrottle_pause = \"10m\"\nidle_timeout = \"1h\"\n";
    let node = Node::start(&on_one_core(Setup { retries, ..Setup::to(start(&manner)) }, 1));
    let mut client = Client::greeted(node.address);
    for _ in 0..3 {
        client.deliver("b@y.test", "Subject: first\r\n\r\n");
    }
    // Each over a connection of its own, which stays.
    let began = Instant::now();
    while manner.contents.load(Ordering::SeqCst) < 3 {
        assert!(began.elapsed() < PATIENCE, "{:?}", node.queue());
        std::thread::sleep(Duration::from_millis(5));
    }
    manner.holds_content.store(false, Ordering::SeqCst);
    node.wait_for_queue(<[_]>::is_empty);
    manner.is_tired.store(true, Ordering::SeqCst);
    let id = client.deliver("c@y.test", "Subject: second\r\n\r\n");
    let began = Instant::now();
    while counter(&node, "throttled") == 0 {
        assert!(began.elapsed() < PATIENCE, "{:?}", node.queue());
        std::thread::sleep(Duration::from_millis(5));
    }
    let why = String::from_utf8(node.ask(&["queue", "why", &id]).stdout).unwrap();
    assert!(why.starts_with("Ready, but \"*\" asked for less mail") && why.contains("421 4.7.28 Unusual rate of mail"), "{why}");
    assert_eq!(counter(&node, "deferred"), 0);
}

/// The third attempt that came to nothing counts as a deferral. Where a reload took the route away meanwhile it was neither in the mail log
/// nor in the counters.
#[test]
fn a_deferral_is_told_though_the_route_went_away_during_the_attempt() {
    let manner = Arc::new(Manner { leaves_at_mail: true.into(), ..Manner::default() });
    let node = Node::start(&on_one_core(Setup::to(start(&manner)), 1));
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\n");
    let began = Instant::now();
    while manner.left.load(Ordering::SeqCst) < 3 {
        assert!(began.elapsed() < PATIENCE, "{:?}", node.queue());
        std::thread::sleep(Duration::from_millis(5));
    }
    let config = node.folder.path().join("ringpost.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("domain = \"*\"", "domain = \"z.test\"").replace("name = \"y.test\"", "name = \"z.test\"");
    std::fs::write(&config, text.replace(Setup::new().networks, "[]")).unwrap();
    let reloaded = node.ask(&["reload"]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    manner.leaves_at_mail.store(false, Ordering::SeqCst);
    let log = node.wait_for_mail_log("event=attempt");
    assert!(log.contains(" dsn=4.4.2 outcome=deferred reply=\"421 4.4.2 connection closed by the next hop\""), "{log}");
    assert_eq!((counter(&node, "deferred"), &node.queue()[0]["recipients"][0]["state"]), (1, &"held".into()));
}

/// A connection of `min_idle` that a hop ended with 421 as its message came: that one was deferred, though it was about the connection alone.
#[test]
fn a_421_on_a_connection_made_ahead_sends_the_message_over_another() {
    let manner = Arc::new(Manner { tired_connection: 2.into(), ..Manner::default() });
    let retries = "[queue]\nretry_base = \"1h\"\n[delivery]\nmin_idle = 2\nidle_timeout = \"1h\"\ntest_while_idle = false\n";
    let node = Node::start(&on_one_core(Setup { retries, ..Setup::to(start(&manner)) }, 1));
    let mut client = Client::greeted(node.address);
    client.deliver("b@y.test", "Subject: first\r\n\r\n");
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "{what}: {:?}", node.queue());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait("one that served and one made ahead", &|| counter(&node, "pool_idle") == 2);
    // Two at once: each of the connections gets one.
    manner.holds_content.store(true, Ordering::SeqCst);
    client.deliver("b@y.test", "Subject: second\r\n\r\n");
    client.deliver("c@y.test", "Subject: third\r\n\r\n");
    wait("content of both", &|| manner.contents.load(Ordering::SeqCst) == 3);
    manner.holds_content.store(false, Ordering::SeqCst);
    node.wait_for_queue(<[_]>::is_empty);
    let log = node.wait_for_mail_log("to=<c@y.test>");
    assert!(!log.contains("outcome=deferred") && counter(&node, "deferred") == 0, "{log}");
}

/// Such mail waited for its next attempt, though a new connection would have taken it.
#[test]
fn what_a_connection_has_had_enough_for_goes_over_another_at_once() {
    let manner = Arc::new(Manner { messages_max: 2.into(), ..Manner::default() });
    let retries = "[queue]\nretry_base = \"1h\"\n[delivery]\nidle_timeout = \"1h\"\n";
    let node = Node::start(&on_one_core(Setup { retries, ..Setup::to(start(&manner)) }, 1));
    let mut client = Client::greeted(node.address);
    for _ in 0..5 {
        client.deliver("b@y.test", "Subject: x\r\n\r\n");
        node.wait_for_queue(<[_]>::is_empty);
    }
    assert_eq!((manner.contents.load(Ordering::SeqCst), manner.greeted.load(Ordering::SeqCst)), (5, 3));
    assert_eq!((counter(&node, "deferred"), counter(&node, "throttled")), (0, 0));
    // Where a new one says so as well it is no word about the connection.
    manner.is_full.store(true, Ordering::SeqCst);
    client.deliver("c@y.test", "Subject: y\r\n\r\n");
    let log = node.wait_for_mail_log("to=<c@y.test>");
    assert!(log.contains("outcome=deferred reply=\"450 4.7.1 too many messages on this connection\""), "{log}");
    assert_eq!((counter(&node, "deferred"), manner.greeted.load(Ordering::SeqCst)), (1, 4));
}

/// A host that closed used connections, or went silent on them, was never told of to its breaker: the message went over another one, and so on.
#[test]
fn a_host_that_breaks_off_on_used_connections_is_left_alone() {
    let manner = Arc::new(Manner { takes_one: true.into(), ..Manner::default() });
    let retries =
        "[queue]\nretry_base = \"1h\"\n[delivery]\nbreaker_failure_ratio = \"50 %\"\nbreaker_minimum = 2\nidle_timeout = \"1h\"\n";
    let node = Node::start(&on_one_core(Setup { retries, ..Setup::to(start(&manner)) }, 1));
    let mut client = Client::greeted(node.address);
    for _ in 0..2 {
        client.deliver("b@y.test", "Subject: x\r\n\r\n");
        node.wait_for_queue(<[_]>::is_empty);
    }
    assert_eq!((counter(&node, "breakers_opened"), counter(&node, "deferred")), (1, 0), "{}", node.log());
    assert_eq!((manner.contents.load(Ordering::SeqCst), manner.greeted.load(Ordering::SeqCst)), (2, 2));
}

/// Two of the three counters were seen by no test.
#[test]
fn a_breaker_is_counted_when_it_opens_when_it_is_probed_and_when_it_closes() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let node = Node::start(&on_one_core(Setup::to(address), 1));
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    node.wait_for_queue(|queue| queue[0]["reason"].as_str().is_some_and(|reason| reason.contains("refused")));
    let count = || ["breakers_opened", "breakers_half_open", "breakers_closed"].map(|name| counter(&node, name));
    assert_eq!((count()[0] >= 1, count()[2]), (true, 0), "{:?}", count());
    let hop = NextHop::start_at(address);
    hop.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
    // Each opening was followed by a probe, and the last probe was answered.
    let [opened, half_open, closed] = count();
    assert_eq!((half_open, closed), (opened, 1), "{opened}");
}
