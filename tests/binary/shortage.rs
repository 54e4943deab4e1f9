//! What this system has run out of is no word about a next hop.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup, free_port};
use crate::shards::on_one_core;

/// It was told as a host that does not answer (4.4.1), and counted for the breaker of each host.
#[test]
fn a_shortage_of_descriptors_is_no_fault_of_the_next_hop() {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let node = Node::start(&on_one_core(Setup::to(address), 1));
    Client::greeted(node.address).deliver("b@y.test", "Subject: x\r\n\r\n");
    // Nobody listens there, so that it is tried each second.
    node.wait_for_mail_log("relay=none delay_ms=");
    node.limit_open_files(Some(3));
    let log = node.wait_for_mail_log(" dsn=4.3.0 ");
    let line = log.lines().find(|line| line.contains(" dsn=4.3.0 ")).unwrap();
    assert!(line.contains("outcome=deferred reply=\"connect to ") && line.contains("Too many open files"), "{line}");
    assert!(!log.lines().any(|line| line.contains(" dsn=4.4.1 ") && line.contains("Too many open files")), "{log}");
    // It was told each second.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        let log = node.wait_for_mail_log(" dsn=4.3.0 ");
        assert_eq!(log.matches(" dsn=4.3.0 ").count(), 1, "{log}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let hop = NextHop::start_at(address);
    node.limit_open_files(None);
    hop.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
}

/// Each connection that could not be made stopped all attempts at the destination for a second, those over connections that are up as well.
#[test]
fn a_shortage_of_descriptors_leaves_connections_that_are_up_at_work() {
    let hop = NextHop::start();
    let node = Node::start(&on_one_core(Setup { retries: "[delivery]\nidle_timeout = \"1h\"\n", ..Setup::to(hop.address) }, 1));
    let mut client = Client::greeted(node.address);
    client.deliver("b@y.test", "Subject: x\r\n\r\n");
    node.wait_for_queue(<[_]>::is_empty);
    hop.hold_content(true);
    node.limit_open_files(Some(3));
    // The first takes the connection, and the second would have one of its own.
    (0..10).for_each(|_| drop(client.deliver("b@y.test", "Subject: x\r\n\r\n")));
    hop.wait_for_contents(2);
    hop.hold_content(false);
    hop.wait_for(11);
    assert_eq!(hop.connections_made(), 1);
    let log = node.wait_for_mail_log("outcome=delivered");
    assert!(!log.contains("outcome=deferred"), "{log}");
}
