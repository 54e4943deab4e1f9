//! Mail that a command takes out while it is attempted.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use crate::client::Client;
use crate::node::{Node, PATIENCE, Setup};
use crate::shards::on_one_core;

/// The log said that the content cannot be read, as an error, and named the message as `Some(QueueId { .. })`.
#[test]
fn a_message_purged_before_its_content_is_wanted_ends_the_attempt_without_an_error() {
    for shards in [1, 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let node = Node::start(&on_one_core(Setup::to(listener.local_addr().unwrap()), shards));
        // Of several connections some are of the shard that does not deliver here.
        for _ in 0..4 * shards {
            let id = Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\nx");
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"220 hop.test ESMTP\r\n").unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut answer = |command: &str, reply: &str| {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                assert!(line.starts_with(command), "{line:?} instead of {command}");
                stream.write_all(reply.as_bytes()).unwrap();
            };
            answer("EHLO", "250 hop.test\r\n");
            answer("MAIL", "250 2.1.0 Ok\r\n");
            let purged = node.ask(&["queue", "purge", &id]);
            assert!(purged.status.success(), "{purged:?}");
            answer("RCPT", "250 2.1.5 Ok\r\n");
            answer("DATA", "354 Go on\r\n");
            // Content that another shard sent along is there all the same.
            let mut content = String::new();
            while !content.ends_with("\r\n.\r\n") && reader.read_line(&mut content).unwrap() > 0 {}
            assert!(shards > 1 || content.is_empty(), "nothing of it is sent");
            let _ended = stream.write_all(b"250 2.0.0 Ok\r\n");
        }
        let log = node.log();
        assert!(!log.contains("ERROR") && !log.contains("QueueId"), "{log}");
    }
}
