//! Real mail through the floor: what is acknowledged arrives whole.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ringpost_floor::server::{Counts, Options, Server};
use ringpost_loadtest::sink::Sink;
use ringpost_loadtest::source::SourceOptions;
use ringpost_tools::traffic::{Sent, next_hop, texts};

/// Sends 500 messages of mixed sizes through a floor, and gives what it and the next hop counted.
fn through(folder: &Path, relayed: bool, chained: bool, pipelining: bool, per_connection: Option<u32>) -> (Counts, u64, u64) {
    let sink = Sink::start(next_hop(None).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let options = Options { log: folder.join("log"), log_bytes: 8 << 20, relay: relayed.then_some(sink.address), connections: 3, chained };
    let (ended, end) = std::io::pipe().unwrap();
    let server = thread::spawn(move || Server::new(&options).unwrap().run(&listener, ended.as_raw_fd()).unwrap());
    let load = texts(address, "300..70000").unwrap();
    let sent = Sent::run(SourceOptions { sessions: 20, messages: Some(500), pipelining, per_connection, ..load }).unwrap();
    assert_eq!((sent.acknowledged, sent.refused, sent.unknown), (500, 0, 0), "{}", sent.last_trouble);
    let began = Instant::now();
    while relayed && sink.messages() < sent.acknowledged {
        assert!(began.elapsed() < Duration::from_secs(20), "{} of {}", sink.messages(), sent.acknowledged);
        thread::yield_now();
    }
    drop(end);
    let counts = server.join().unwrap();
    sink.stop();
    let (arrived, _) = sink.join().unwrap();
    assert_eq!((arrived.damaged_all(), arrived.foreign), (0, 0));
    assert_eq!(counts.accepted, sent.acknowledged);
    (counts, sent.acknowledged, arrived.messages)
}

#[test]
fn every_message_is_accepted_after_a_flush() {
    for (pipeline, per_connection) in [(true, None), (false, None), (false, Some(1))] {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (counts, sent, _) = through(folder.path(), false, true, pipeline, per_connection);
        assert!(counts.batches > 0 && counts.batches <= sent);
    }
}

#[test]
fn every_message_reaches_the_next_hop_undamaged() {
    for chained in [true, false] {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (_, sent, arrived) = through(folder.path(), true, chained, true, None);
        assert_eq!(arrived, sent);
    }
}
