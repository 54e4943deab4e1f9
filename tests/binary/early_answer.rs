//! A next hop that answers before it has the whole content: its word counts at once, and nothing is delivered by it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::node::{Node, PATIENCE, Setup};

/// More than the sockets of both sides hold, so that the content stands in the middle when the answer comes.
const LINES: usize = 300_000;
/// A message that is tried again; which of them depends on the moment.
const WAITING: [&str; 3] = ["deferred", "ready", "active"];
/// Far below every deadline of the client.
const AT_ONCE: Duration = Duration::from_secs(15);

/// A next hop that says `answer` instead of reading content, and keeps the connection open.
fn answering(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A connection that breaks is the business of the test, not of its next hop.
            std::thread::spawn(move || stream.and_then(|stream| converse(stream, answer)));
        }
    });
    address
}

fn converse(stream: TcpStream, answer: &str) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    writer.write_all(b"220 hop.test ESMTP\r\n")?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.get(..4).unwrap_or("") {
            "EHLO" => writer.write_all(b"250-hop.test\r\n250 PIPELINING\r\n")?,
            "DATA" => {
                writer.write_all(b"354 Go on\r\n")?;
                reader.read_line(&mut line)?;
                writer.write_all(answer.as_bytes())?;
                // Nothing more is read and the connection stays: the client's sends cannot end.
                std::thread::park_timeout(PATIENCE);
                return Ok(());
            }
            _ => writer.write_all(b"250 2.0.0 Ok\r\n")?,
        }
    }
}

pub(crate) fn large() -> String {
    let line = "0123456789012345678901234567890123456789012345678901234567890123456789\r\n";
    format!("Subject: large\r\n\r\n{}", line.repeat(LINES))
}

/// The recipient as `queue ls` shows it once it is in one of `states`, and how long that took.
fn state_after(answer: &'static str, states: &[&str]) -> (serde_json::Value, Duration) {
    // So that what failed stays to be seen.
    let node = Node::start(&Setup { extra: "[bounce]\nenabled = false\n", ..Setup::to(answering(answer)) });
    Client::greeted(node.address).deliver("b@y.test", &large());
    let began = Instant::now();
    let queue = node.wait_for_queue(|messages| {
        messages.iter().any(|message| {
            let recipient = &message["recipients"][0];
            recipient["state"].as_str().is_some_and(|state| states.contains(&state)) && message["attempts"].as_u64() > Some(0)
        })
    });
    (queue[0].clone(), began.elapsed())
}

#[test]
fn a_refusal_before_the_content_is_sent_counts_at_once() {
    let (message, took) = state_after("552 5.3.4 Too big for us\r\n", &["failed"]);
    assert!(took < AT_ONCE, "{took:?}");
    assert!(message.to_string().contains("552"), "{message}");
}

#[test]
fn a_busy_server_before_the_content_is_sent_defers_at_once() {
    let (_, took) = state_after("421 4.3.2 Shutting down\r\n", &WAITING);
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn a_250_before_the_content_is_sent_delivers_nothing() {
    let (_, took) = state_after("250 2.0.0 Taken unseen\r\n", &WAITING);
    assert!(took < AT_ONCE, "{took:?}");
}
