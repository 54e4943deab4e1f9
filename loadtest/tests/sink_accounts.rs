//! What a sink says of its connections at its end.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use ringpost_loadtest::{
    pinning,
    sink::{Sink, SinkOptions},
};

/// What happened: connections that were open when the sink ended were in none of its counts.
#[test]
fn connections_that_are_open_at_the_end_of_a_sink_are_counted() {
    let sink = Sink::start(SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0])).unwrap();
    let counters = sink.counters();
    let mut stream = BufReader::new(TcpStream::connect(sink.address).unwrap());
    stream.get_mut().write_all(b"EHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n\r\nhello\r\n.\r\n").unwrap();
    let began = Instant::now();
    while counters.messages() == 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "the message");
        std::thread::yield_now();
    }
    sink.stop();
    let (report, _) = sink.join().unwrap();
    assert_eq!((report.connections, report.messages_per_connection_max, report.messages_per_connection_mean), (1, 1, 1.0), "{report:?}");
    assert_eq!((report.clients["127.0.0.1"].connections, report.clients["127.0.0.1"].messages), (1, 1));
    drop(stream);
}

/// What happened: lines were gathered for 20 ms, so that a sink that was killed had answered messages of which its ledger knew nothing.
#[test]
fn an_arrival_stands_in_the_ledger_before_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("delivered");
    let options = SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0]);
    let sink = Sink::start(SinkOptions { ledger: Some(ledger.clone()), ..options }).unwrap();
    let mut stream = BufReader::new(TcpStream::connect(sink.address).unwrap());
    stream.get_mut().write_all(b"HELO me\r\n").unwrap();
    for message in 1..=20 {
        stream.get_mut().write_all(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n\r\nhello\r\n.\r\n").unwrap();
        let mut reply = String::new();
        while !reply.contains("taken") {
            reply.clear();
            assert_ne!(stream.read_line(&mut reply).unwrap(), 0, "message {message}");
        }
        // What a process has written a kill leaves there.
        assert_eq!(fs::read_to_string(&ledger).unwrap().lines().count(), message);
    }
}
