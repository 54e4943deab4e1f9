//! A server whose answers have no end: it was read for as long as a call may take, gigabytes over a fast network.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Duration,
};

use ringpost_cluster::{target::Target, valkey::Valkey, valkey_error::ValkeyError};

const PATIENCE: Duration = Duration::from_secs(20);
/// Far above what is read: what the kernel holds for both ends comes on top.
const SENT_MAX: usize = 64 * 1024 * 1024;

/// A server that answers everything with `head`, and then with `again` for as long as somebody reads. Its port, and for each connection
/// how much it could send.
fn endless(head: &'static [u8], again: &'static [u8]) -> (u16, mpsc::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, (sent, received)) = (listener.local_addr().unwrap().port(), mpsc::channel());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _ = sent.send(answer(&connection.unwrap(), head, again));
        }
    });
    (port, received)
}

fn answer(mut connection: &TcpStream, head: &[u8], again: &[u8]) -> usize {
    let block = again.repeat(65_536 / again.len());
    let mut sent = 0;
    let asked = connection.read(&mut [0; 1024]).is_ok() && connection.write_all(head).is_ok();
    while asked && sent < 20 * SENT_MAX && connection.write_all(&block).is_ok() {
        sent += block.len();
    }
    sent
}

fn target(port: u16) -> Target {
    Target::parse(&format!("valkey://127.0.0.1:{port}"), None, None).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn an_answer_without_an_end_is_read_to_its_bound() {
    for (head, again) in [
        (&b"$99999999999\r\n"[..], &b"x"[..]),
        // Without a length, and with many values that are short on the way.
        (b"+", b"x"),
        (b"*2\r\n", b"*2\r\n"),
    ] {
        let (port, sent) = endless(head, again);
        run(async {
            let error = Valkey::new(target(port)).command(&redis::cmd("PING")).await.unwrap_err();
            assert!(matches!(error, ValkeyError::Unreachable(_)) && error.is_outage(), "{error}");
        });
        let sent = sent.recv_timeout(PATIENCE).unwrap();
        assert!(sent < SENT_MAX, "{sent} bytes of {}", String::from_utf8_lossy(head));
    }
}

#[test]
fn a_message_without_an_end_is_read_to_its_bound() {
    let (port, sent) = endless(b"+OK\r\n+OK\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$99999999999\r\n", b"x");
    run(async {
        let mut messages = Valkey::new(target(port)).subscribe(vec!["c".to_owned()]);
        let sent = tokio::task::spawn_blocking(move || sent.recv_timeout(PATIENCE).unwrap()).await.unwrap();
        assert!(sent < SENT_MAX, "{sent} bytes");
        messages.close();
    });
}
