//! Mail that a command takes out while it is attempted.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use crate::client::Client;
use crate::node::{Node, PATIENCE, Setup};
use crate::shards::{counter, on_one_core, shard_of};

/// The next hop's end of a connection.
pub(crate) struct Hop {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Hop {
    pub(crate) fn greeted(listener: &TcpListener) -> Self {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"220 hop.test ESMTP\r\n").unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        let mut hop = Self { stream, reader };
        hop.answer("EHLO", "250 hop.test\r\n");
        hop
    }

    pub(crate) fn hear(&mut self, command: &str) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.starts_with(command), "{line:?} instead of {command}");
        line
    }

    fn answer(&mut self, command: &str, reply: &str) {
        self.hear(command);
        self.stream.write_all(reply.as_bytes()).unwrap();
    }

    /// What comes after the 354, up to the end of the content or of the connection.
    fn content(&mut self) -> String {
        let mut content = String::new();
        while !content.ends_with("\r\n.\r\n") && self.reader.read_line(&mut content).unwrap() > 0 {}
        content
    }
}

/// All mail goes to `listener`, over one connection, so that one of the shards delivers for all.
fn one_home(listener: &TcpListener, shards: u32) -> Setup {
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n[delivery]\nconnections_max = 1\n";
    on_one_core(Setup { retries, ..Setup::to(listener.local_addr().unwrap()) }, shards)
}

/// Has one of the shards not yet two of these? Which of them a connection comes to is the kernel's choice.
pub(crate) fn lacks_mail_of_some(ids: &[String], shards: u32) -> bool {
    assert!(ids.len() < 100, "all connections are of one shard: {ids:?}");
    (0..shards as usize).any(|shard| ids.iter().filter(|id| shard_of(id) == shard).count() < 2)
}

/// The log said that the content cannot be read, as an error, and named the message as `Some(QueueId { .. })`.
#[test]
fn a_message_purged_before_its_content_is_wanted_ends_the_attempt_without_an_error() {
    for shards in [1, 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let node = Node::start(&one_home(&listener, shards));
        let mut ids: Vec<String> = Vec::new();
        while lacks_mail_of_some(&ids, shards) {
            let id = Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
            ids.push(id.clone());
            let mut hop = Hop::greeted(&listener);
            hop.answer("MAIL", "250 2.1.0 Ok\r\n");
            let purged = node.ask(&["queue", "purge", &id]);
            assert!(purged.status.success(), "{purged:?}");
            hop.answer("RCPT", "250 2.1.5 Ok\r\n");
            hop.answer("DATA", "354 Go on\r\n");
            // Content that another shard sent along with the attempt was sent all the same.
            let content = hop.content();
            assert!(content.is_empty(), "{shards} shards: nothing of it is sent, and {content:?} was");
        }
        let log = node.log();
        assert!(!log.contains("ERROR") && !log.contains("QueueId"), "{log}");
    }
}

/// The same where its content is on the disk alone, and of another shard than the one that delivers: that asks for it when the next hop wants it.
#[test]
fn a_message_purged_before_another_shard_asks_for_its_content_is_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::start(&one_home(&listener, 2));
    assert!(node.ask(&["queue", "pause", "--all"]).status.success());
    let mut ids: Vec<String> = Vec::new();
    while lacks_mail_of_some(&ids, 2) {
        ids.push(Client::greeted(node.address).deliver(&format!("b{}@z.test", ids.len()), "Subject: x\r\n\r\nx"));
    }
    node.kill();
    node.restart();
    assert!(node.ask(&["queue", "resume", "--all"]).status.success());
    for _ in &ids {
        let mut hop = Hop::greeted(&listener);
        hop.answer("MAIL", "250 2.1.0 Ok\r\n");
        let to = hop.hear("RCPT TO:<b");
        let number: usize = to["RCPT TO:<b".len()..].split('@').next().unwrap().parse().unwrap();
        assert!(node.ask(&["queue", "purge", &ids[number]]).status.success());
        hop.stream.write_all(b"250 2.1.5 Ok\r\n").unwrap();
        hop.answer("DATA", "354 Go on\r\n");
        assert_eq!(hop.content(), "", "of {number} of {ids:?}");
    }
    node.wait_for_queue(<[_]>::is_empty);
    let log = node.log();
    assert!(!log.contains("ERROR"), "{log}");
    assert!(counter(&node, "dispatched_to_homes") > 0);
}
