//! Who takes what an open loop has due.

mod loopback;

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use loopback::{load, loopback, wait_for};
use ringpost_loadtest::{phase::Phase, schedule::Rate};

/// Answers each line and each content with 250, and behind the first content tells so; false: the client is gone.
fn converse(stream: &mut BufReader<TcpStream>, messages: usize) -> bool {
    let (mut line, mut in_content, mut taken) = (String::new(), false, 0);
    while taken < messages {
        line.clear();
        if !stream.read_line(&mut line).is_ok_and(|octets| octets > 0) {
            return false;
        }
        let ends = line == ".\r\n";
        if !in_content || ends {
            let reply = if line == "DATA\r\n" { "354 go\r\n" } else { "250 ok\r\n" };
            stream.get_mut().write_all(reply.as_bytes()).unwrap();
        }
        taken += usize::from(ends);
        in_content = line == "DATA\r\n" || (in_content && !ends);
    }
    true
}

/// The first client takes one message and rests; then the second is greeted and rests; then the connection of the first ends, and whoever comes
/// from then on is not greeted.
fn serve(listener: &TcpListener) {
    let accept = || BufReader::new(listener.accept().unwrap().0);
    let (mut first, mut second) = (accept(), accept());
    first.get_mut().write_all(b"220 here\r\n").unwrap();
    assert!(converse(&mut first, 1));
    second.get_mut().write_all(b"220 here\r\n").unwrap();
    let (rests, resting): (Sender<()>, Receiver<()>) = channel();
    let _ungreeted = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut line = String::new();
            second.read_line(&mut line).unwrap();
            second.get_mut().write_all(b"250 ok\r\n").unwrap();
            rests.send(()).unwrap();
            converse(&mut second, usize::MAX);
        });
        resting.recv().unwrap();
        drop(first);
        accept()
    });
}

/// What happened: a session whose connection ended while it rested stood among those that rest, first of all, so that the message that was due
/// next woke it where nobody spoke to it, and waited until the one after it was due.
#[test]
fn a_message_wakes_a_session_that_rests_and_not_one_whose_connection_has_ended() {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || serve(&listener));
    let ran = load(address, |o| (o.sessions, o.messages, o.rate) = (2, Some(3), Some(Rate::Fixed(0.5))));
    wait_for("the server", || server.is_finished());
    server.join().unwrap();
    assert_eq!(ran.report.acknowledged, 3, "{:?}", ran.report);
    // The second message was two seconds late: as long as it is to the third.
    let latest = Duration::from_nanos(ran.measurement.totals().histogram(Phase::Transaction).max());
    assert!(latest < Duration::from_millis(1500), "{latest:?}");
}
