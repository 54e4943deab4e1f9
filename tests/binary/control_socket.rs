//! The control socket: whose it is, what it makes of nonsense, and commands while mail flows.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup};

#[test]
fn it_belongs_to_its_owner_alone() {
    let node = Node::start(&Setup::new());
    let mode = std::fs::metadata(node.folder.path().join("ringpost.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
}

#[test]
fn nonsense_gets_one_line_and_harms_nobody() {
    let mut node = Node::start(&Setup::new());
    let long = "x".repeat(2 << 20);
    for words in
        ["\n", "hello\n", "{}\n", "{\"call\":\"queue_show\",\"id\":\"!\"}\n", "{\"call\":\"stats\",\"more\":1}\n", "\0\u{1}\n", &long]
    {
        let mut stream = UnixStream::connect(node.folder.path().join("ringpost.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The engine reads no more than a request may have: a longer one may break off.
        let _as_much_as_is_taken = stream.write_all(words.as_bytes());
        let _may_be_gone = stream.shutdown(Shutdown::Write);
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            Ok(_) => assert!(answer.contains("\"error\""), "{:?}: {answer:?}", &words[..words.len().min(40)]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{:?}", &words[..words.len().min(40)]),
        }
    }
    assert!(node.is_running() && node.ask(&["stats"]).status.success());
}

/// What the command line refuses as wrong usage is refused of whoever asks without it.
#[test]
fn a_reason_that_is_too_long_or_no_line_is_refused_by_the_engine() {
    let node = Node::start(&Setup::new());
    let id = Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
    for (reason, said) in
        [("a\nb".to_owned(), "a line break or another control character"), ("x".repeat(191), "the reason is 191 bytes long")]
    {
        let change = serde_json::json!({"action": "bounce", "reason": reason});
        let asked = serde_json::json!({"call": "queue_change", "change": change, "ids": [id], "filter": null});
        let mut stream = UnixStream::connect(node.folder.path().join("ringpost.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(format!("{asked}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(said), "{answer}");
    }
    assert_eq!(node.queue().len(), 1);
}

/// A command to a stopped engine waited for two minutes, and said then that the answer broke off: a resource was temporarily unavailable.
#[test]
fn a_stopped_engine_is_told_from_one_that_is_at_work() {
    let mut node = Node::start(&Setup::new());
    node.signal(Signal::STOP);
    let began = Instant::now();
    let unheard = node.ask(&["stats"]);
    let said = String::from_utf8_lossy(&unheard.stderr);
    assert!(unheard.status.code() == Some(69) && said.contains("has not heard the call within 10 s"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    node.signal(Signal::CONT);
    assert!(node.ask(&["stats"]).status.success() && node.is_running());
}

/// The connection was closed without a word, and the command said that the answer broke off. Then those who asked nothing had all places for half
/// a minute, and the refusal looked as a no.
#[test]
fn one_connection_too_many_is_told_so() {
    let node = Node::start(&Setup::new());
    let socket = node.folder.path().join("ringpost.sock");
    let silent: Vec<UnixStream> = (0..64).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for words in [&["stats"][..], &["queue", "ls"]] {
        let refused = node.ask(words);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(69) && said.contains("64 connections to its control socket at a time"), "{said}");
    }
    let began = Instant::now();
    while !node.ask(&["stats"]).status.success() {
        assert!(began.elapsed() < PATIENCE, "{}", node.log());
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drop(silent);
}

#[test]
fn what_is_too_long_to_be_asked_is_told_with_its_size_and_the_limit() {
    let node = Node::start(&Setup::new());
    let ids = vec!["1NG9XPS00001"; 160_000];
    let request = serde_json::json!({"call": "queue_change", "change": {"action": "retry"}, "ids": ids}).to_string();
    let mut stream = UnixStream::connect(node.folder.path().join("ringpost.sock")).unwrap();
    let _as_much_as_is_taken = stream.write_all(request.as_bytes());
    let mut answer = String::new();
    if stream.read_to_string(&mut answer).is_ok() {
        assert!(answer.contains("a request is at most 2162688 bytes long"), "{answer}");
    }
    let file = node.folder.path().join("large.toml");
    std::fs::write(&file, format!("# {}\n", "x".repeat(3 << 20))).unwrap();
    let refused = node.ask(&["cluster", "config", "push", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("large.toml: is 3145731 bytes long") && said.contains("at most 1048576"),
        "{said}"
    );
    for interval in ["50ms", "2h", "soon"] {
        let refused = node.ask(&["cluster", "config", "poll", interval]);
        let said = String::from_utf8_lossy(&refused.stderr);
        let limits = if interval == "soon" { "is not a time" } else { "is not within 100ms to 1h, as cluster.config_poll is" };
        assert!(refused.status.code() == Some(2) && said.contains(interval) && said.contains(limits), "{said}");
    }
}

#[test]
fn holding_and_releasing_all_while_mail_flows_loses_nothing() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    for turn in 0..5 {
        for number in 0..10 {
            client.deliver("b@y.test", &format!("Subject: {turn}-{number}\r\n\r\nx"));
        }
        assert!(node.ask(&["queue", "hold", "--all"]).status.success());
        client.deliver("b@y.test", &format!("Subject: {turn}-after\r\n\r\nx"));
        assert!(node.ask(&["queue", "retry", "--all"]).status.success());
        assert!(node.ask(&["queue", "release", "--all"]).status.success());
    }
    let messages = hop.wait_for(55);
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!((messages.len(), hop.messages().len()), (55, 55), "each once");
}
