//! Real mail through the floor: what is acknowledged arrives whole.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use ringpost_floor::server::{Counts, Options, Server};
use ringpost_tools::content::SizeRange;
use ringpost_tools::load::LoadOptions;
use ringpost_tools::sender::LoadHandle;
use ringpost_tools::sink::{Sink, SinkOptions};

/// Sends 500 messages of mixed sizes through a floor, and gives what it and the next hop counted.
fn through(folder: &Path, relayed: bool, chained: bool, pipeline: bool, per_connection: u32) -> (Counts, u64, u64) {
    let sink = Sink::spawn(SinkOptions::on_loopback()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let options = Options { log: folder.join("log"), log_bytes: 8 << 20, relay: relayed.then_some(sink.address), connections: 3, chained };
    let (ended, end) = std::io::pipe().unwrap();
    let server = thread::spawn(move || Server::new(&options).unwrap().run(&listener, ended.as_raw_fd()).unwrap());
    let load = LoadHandle::start(LoadOptions {
        sessions: 20,
        messages: Some(500),
        sizes: SizeRange(300..=70_000),
        pipeline,
        per_connection,
        ..LoadOptions::new(address)
    });
    let report = load.unwrap().join().unwrap();
    assert_eq!((report.refused, report.unknown), (0, 0), "{}", report.last_trouble);
    assert!(report.acknowledged >= 500);
    let began = Instant::now();
    while relayed && sink.state.accepted.load(Relaxed) < report.acknowledged {
        assert!(began.elapsed() < Duration::from_secs(20), "{} of {}", sink.state.accepted.load(Relaxed), report.acknowledged);
        thread::yield_now();
    }
    drop(end);
    let counts = server.join().unwrap();
    let arrived = sink.stop().unwrap();
    assert_eq!((arrived.damaged, arrived.foreign), (0, 0));
    assert_eq!(counts.accepted, report.acknowledged);
    (counts, report.acknowledged, arrived.accepted)
}

#[test]
fn every_message_is_accepted_after_a_flush() {
    for (pipeline, per_connection) in [(true, 0), (false, 0), (false, 1)] {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (counts, sent, _) = through(folder.path(), false, true, pipeline, per_connection);
        assert!(counts.batches > 0 && counts.batches <= sent);
    }
}

#[test]
fn every_message_reaches_the_next_hop_undamaged() {
    for chained in [true, false] {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (_, sent, arrived) = through(folder.path(), true, chained, true, 0);
        assert_eq!(arrived, sent);
    }
}
