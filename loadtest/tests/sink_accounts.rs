//! What a sink says of its connections at its end.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use ringpost_loadtest::{
    pinning,
    sink::{Sink, SinkOptions, delay::ReplyDelay},
};

const AN_HOUR: Duration = Duration::from_secs(3600);

/// Waits for what another thread does.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}

/// Down, until a connection was refused, and up again, until one was not.
fn goes_down_and_up(sink: &Sink) {
    sink.set_down(true);
    wait_for("it goes down", || TcpStream::connect(sink.address).is_err());
    sink.set_down(false);
    wait_for("it comes up", || TcpStream::connect(sink.address).is_ok());
}

/// What a client is told until its connection ends, in any way.
fn said_until_the_end(mut stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => said.extend_from_slice(b", and it stayed"),
        _ => {}
    }
    String::from_utf8(said).unwrap()
}

/// What happened: the end of a connection was asked for behind its next read, so that one that paused when the sink went down was answered
/// and went on when it was up again; and what it had sent while the sink was down was taken, and answered to nobody: whoever sent it again had
/// doubled it.
#[test]
fn a_connection_that_pauses_when_its_sink_goes_down_is_reset() {
    let options = SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0]);
    // It holds its banner back, or reads so slowly that the first octets last for days.
    for (reply_delay, read_bytes_per_s) in [(ReplyDelay::fixed(AN_HOUR), None), (ReplyDelay::None, Some(1))] {
        let sink = Sink::start(SinkOptions { reply_delay, read_bytes_per_s, ..options.clone() }).unwrap();
        let counters = sink.counters();
        let mut stream = TcpStream::connect(sink.address).unwrap();
        wait_for("the connection", || counters.connections_open() == 1);
        stream.write_all(b"HELO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n\r\nhello\r\n.\r\n").unwrap();
        goes_down_and_up(&sink);
        let banner = if read_bytes_per_s.is_some() { "220 sink.load.test ESMTP\r\n" } else { "" };
        let said = said_until_the_end(&stream);
        assert!(banner.starts_with(&said), "{said:?}");
        assert_eq!(counters.messages(), 0, "{read_bytes_per_s:?}");
    }
}

/// What happened: connections that were open when the sink ended were in none of its counts.
#[test]
fn connections_that_are_open_at_the_end_of_a_sink_are_counted() {
    let sink = Sink::start(SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0])).unwrap();
    let counters = sink.counters();
    let mut stream = BufReader::new(TcpStream::connect(sink.address).unwrap());
    stream.get_mut().write_all(b"EHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n\r\nhello\r\n.\r\n").unwrap();
    wait_for("the message", || counters.messages() > 0);
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

/// What happened: a client that ended its side with its last octet was not answered, and its message stood in the ledger.
#[test]
fn a_client_that_says_no_more_is_answered_all_it_said() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("delivered");
    let options = SinkOptions::new(([127, 0, 0, 1], 0).into(), pinning::cores().unwrap()[0]);
    let sink = Sink::start(SinkOptions { ledger: Some(ledger.clone()), ..options }).unwrap();
    let begin = "EHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n\r\nhello\r\n";
    // The message is whole; or it is not, and what went before it is answered; or the last line is not.
    for (end, taken, last) in [(".\r\n", true, "250 2.0.0 Ok: taken"), ("", false, "354 "), (".\r\nNOO", true, "250 2.0.0 Ok: taken")] {
        let before = sink.messages();
        let mut stream = TcpStream::connect(sink.address).unwrap();
        stream.write_all(format!("{begin}{end}").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut replies = String::new();
        stream.read_to_string(&mut replies).unwrap();
        assert!(replies.lines().last().is_some_and(|line| line.starts_with(last)), "{end:?}: {replies:?}");
        assert_eq!(sink.messages() - before, u64::from(taken), "{end:?}");
        assert_eq!(fs::read_to_string(&ledger).unwrap().lines().count() as u64, sink.messages());
    }
}
