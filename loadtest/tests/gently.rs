//! Loads that connect a few at a time.

mod loopback;

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    net::TcpListener,
    time::Duration,
};

use loopback::{load, loopback, wait_for};
use ringpost_loadtest::source::SourceOptions;

/// Greets the first connection and takes all its messages; greets no other. How many there were, once the load is over.
fn connections_made(change: impl FnOnce(&mut SourceOptions)) -> usize {
    let listener = TcpListener::bind(loopback()).unwrap();
    let (address, accepting) = (listener.local_addr().unwrap(), listener.try_clone().unwrap());
    let server = std::thread::spawn(move || {
        let mut stream = BufReader::new(accepting.accept().unwrap().0);
        let mut reply = &b"220 here\r\n"[..];
        let (mut line, mut in_content) = (String::new(), false);
        loop {
            let said = stream.get_mut().write_all(reply);
            line.clear();
            if said.is_err() || !stream.read_line(&mut line).is_ok_and(|octets| octets > 0) {
                return;
            }
            in_content = (in_content && line != ".\r\n") || line == "DATA\r\n";
            reply = match line.as_str() {
                "DATA\r\n" => b"354 go\r\n",
                "QUIT\r\n" => b"221 bye\r\n",
                _ if in_content => b"",
                _ => b"250 ok\r\n",
            };
        }
    });
    let ran = load(address, |o| {
        (o.sessions, o.gently) = (40, true);
        change(o);
    });
    assert!(ran.report.acknowledged > 0, "{:?}", ran.report);
    wait_for("the end of the first connection", || server.is_finished());
    listener.set_nonblocking(true).unwrap();
    let others = std::iter::from_fn(|| match listener.accept() {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            None
        }
    });
    1 + others.count()
}

/// What happened: when the messages were used up or the time was over, all sessions that had waited for their turn connected at once.
#[test]
fn who_waits_for_a_turn_does_not_connect_when_there_is_nothing_left_to_send() {
    // The one that is greeted makes room for a fifth.
    assert_eq!(connections_made(|o| o.messages = Some(40)), 5);
    assert_eq!(connections_made(|o| o.duration = Some(Duration::from_millis(300))), 5);
}
