//! What a sink says of its connections at its end.

use std::{
    io::{BufReader, Write},
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
