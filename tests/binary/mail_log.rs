//! What the mail log says of attempts that come to nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::node::{Node, PATIENCE, Setup, free_port};

/// Waits for a line of the mail log with all of `parts`.
fn wait_for_line(node: &Node, parts: &[&str]) {
    let began = Instant::now();
    loop {
        let log = std::fs::read_to_string(node.folder.path().join("mail.log")).unwrap_or_default();
        if log.lines().any(|line| parts.iter().all(|part| line.contains(part))) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "no line with {parts:?} in {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Such an attempt was counted, and no line told of it.
#[test]
fn an_attempt_that_reaches_no_host_is_a_line() {
    let node = Node::start(&Setup::to(SocketAddr::from(([127, 0, 0, 1], free_port()))));
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nhi\r\n");
    wait_for_line(&node, &["event=attempt to=<b@y.test> relay=none", "dsn=4.4.1 outcome=deferred reply=\"connect to ", "refused"]);
}

/// The queue deferred the recipient, and no line told of it: such mail was in no log.
#[test]
fn a_next_hop_that_always_hangs_up_is_a_line() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _gone = stream.write_all(b"220 hop.test ESMTP\r\n");
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            if lines.next().is_some() {
                let _gone = stream.write_all(b"250 hop.test\r\n");
            }
            // The next line is MAIL.
            lines.next();
        }
    });
    let node = Node::start(&Setup::to(address));
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nhi\r\n");
    wait_for_line(
        &node,
        &["event=attempt to=<b@y.test>", "dsn=4.4.2 outcome=deferred reply=\"421 4.4.2 connection closed by the next hop"],
    );
}

/// The key was read, and nothing called a listener by its name.
#[test]
fn an_accepted_message_names_its_listener() {
    let second = free_port();
    let extra = format!("[[listener]]\naddress = \"127.0.0.1:{second}\"\nname = \"second\"\n");
    let node = Node::start(&Setup { extra: extra.leak(), ..Setup::new() });
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nhi\r\n");
    wait_for_line(&node, &[&format!("event=accepted listener={} client=127.0.0.1:", node.address)]);
    Client::greeted(SocketAddr::from(([127, 0, 0, 1], second))).deliver("b@y.test", "Subject: x\r\n\r\nhi\r\n");
    wait_for_line(&node, &["event=accepted listener=second client=127.0.0.1:"]);
    assert!(node.log().contains("name=\"second\""), "{}", node.log());
}

/// With a full disk lines were lost and counted nowhere, and mail was taken whose lines had to be written.
#[test]
fn a_log_that_cannot_be_written_keeps_its_lines_and_refuses_mail_where_it_is_required() {
    let retries = "mail = \"required\"\n[queue]\nretry_base = \"1s\"\nretry_cap = \"2s\"\n";
    let node = Node::start(&Setup { retries, ..Setup::new() });
    let (log, other) = (node.folder.path().join("mail.log"), node.folder.path().join("other"));
    symlink("/dev/full", &other).unwrap();
    std::fs::rename(&other, &log).unwrap();
    let mut client = Client::greeted(node.address);
    let (began, mut taken) = (Instant::now(), 0);
    let refusal = loop {
        let reply = client.say("MAIL FROM:<a@x.test>");
        if !reply.starts_with("250 ") {
            break reply;
        }
        client.must("RCPT TO:<b@y.test>", "250");
        client.must("DATA", "354");
        client.must("Subject: x\r\n\r\nx\r\n.", "250");
        taken += 1;
        assert!(began.elapsed() < PATIENCE, "{taken} messages were taken that no line tells of");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(refusal.starts_with("452 4.3.1 "), "{refusal}");
    // There is room again, behind a line that was cut off.
    std::fs::write(&other, "cut off").unwrap();
    std::fs::rename(&other, &log).unwrap();
    loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if text.matches("event=accepted").count() == taken {
            assert!(text.starts_with("cut off\n2"), "{text}");
            break;
        }
        assert!(began.elapsed() < 2 * PATIENCE, "{taken} messages were taken, these have a line: {text}");
        std::thread::sleep(Duration::from_millis(20));
    }
    client.must("MAIL FROM:<a@x.test>", "250");
}
