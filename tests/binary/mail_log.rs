//! What the mail log says of attempts that come to nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::client::Client;
use crate::node::{Node, PATIENCE, Setup, free_port};
use crate::shards::on_one_core;

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
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let extra = format!("[admin]\naddress = \"{admin}\"\n");
    let node = Node::start(&on_one_core(Setup { retries, extra: extra.leak(), ..Setup::new() }, 1));
    assert!(readiness(admin).starts_with("HTTP/1.1 200 "));
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
    // It said that it was ready, and a balancer went on sending mail to it.
    let answer = readiness(admin);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("the mail log, which log.mail requires, cannot be written"), "{answer}");
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
    assert!(readiness(admin).starts_with("HTTP/1.1 200 "));
}

/// What `/ready` answers.
fn readiness(admin: SocketAddr) -> String {
    let mut stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The command opened the pipe, and waited for somebody who writes to it.
#[test]
fn why_does_not_wait_for_a_mail_log_that_is_a_pipe() {
    let node = Node::start(&Setup::new());
    let log = node.folder.path().join("mail.log");
    std::fs::remove_file(&log).unwrap();
    mknodat(CWD, &log, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut asking = node.call(&["queue", "why", "1NG9X0G00003"]).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = asking.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > PATIENCE {
            asking.kill().unwrap();
            panic!("it waits");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut told = String::new();
    asking.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(status.code() == Some(1) && told.contains("is no file that can be searched"), "{status}: {told}");
}
