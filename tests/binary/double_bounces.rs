//! Reports that fail in their turn: to whom they go, and that they come to an end.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, PATIENCE, Setup};
use crate::reports::{parsed, send, wait_for_reports};

#[test]
fn mail_with_the_null_reverse_path_is_never_bounced() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    let id = send(&mut client, "MAIL FROM:<>", &["<no-b@z.test> NOTIFY=SUCCESS,FAILURE,DELAY"], "Subject: s\r\n\r\nb");
    let log = node.wait_for_mail_log("outcome=dropped");
    assert!(log.lines().any(|line| line.contains(&id) && line.contains("event=report") && line.contains("double_bounce_to")), "{log}");
    node.wait_for_queue(<[_]>::is_empty);
    // A report that fails: a@x.test does not exist there.
    send(&mut client, "MAIL FROM:<no-a@x.test>", &["<no-b@z.test>"], "Subject: s\r\n\r\nb");
    node.wait_for_mail_log("event=report about=failure to=<no-a@x.test> outcome=dropped");
    node.wait_for_queue(<[_]>::is_empty);
    assert!(hop.messages().is_empty());
}

#[test]
fn double_bounces_go_to_whom_the_config_names_and_no_further() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup { extra: "[bounce]\ndouble_bounce_to = \"postmaster@own.test\"\n", ..Setup::to(hop.address) });
    let mut client = Client::greeted(node.address);
    send(&mut client, "MAIL FROM:<no-a@x.test>", &["<no-b@z.test>"], "Subject: first\r\n\r\nb");
    let reports = wait_for_reports(&hop, &node, 1);
    assert_eq!(reports[0].recipients, ["postmaster@own.test"]);
    assert_eq!(parsed(&reports[0])["recipients"][0]["final-recipient"], "rfc822; no-a@x.test", "the report that failed is reported");
    node.wait_for_queue(<[_]>::is_empty);
    node.kill();
    let to_nobody =
        Setup { extra: "[bounce]\ndouble_bounce_to = \"no-postmaster@own.test\"\n", address: node.address, ..Setup::to(hop.address) };
    node.reconfigure(&to_nobody);
    node.restart();
    send(&mut Client::greeted(node.address), "MAIL FROM:<no-a@x.test>", &["<no-b@z.test>"], "Subject: second\r\n\r\nb");
    node.wait_for_mail_log("reason=\"this was the report of a report that failed\"");
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(hop.messages().len(), 1);
}

/// Two nodes that relay what they do not know to each other, with senders and recipients that nobody has.
#[test]
fn two_nodes_that_relay_to_each_other_come_to_rest() {
    let (a, b) = (Setup::new().address, Setup::new().address);
    let setup = |own: std::net::SocketAddr, other: std::net::SocketAddr, domains| Setup {
        address: own,
        domains,
        extra: "[smtp]\nreceived_max = 10\n",
        ..Setup::to(other)
    };
    let first = Node::start(&setup(a, b, "[[domain]]\nname = \"a.test\"\nrecipients = [\"real\"]\n"));
    let second = Node::start(&setup(b, a, "[[domain]]\nname = \"b.test\"\nrecipients = [\"real\"]\n"));
    let mut client = Client::greeted(first.address);
    let mut ids = Vec::new();
    for _ in 0..10 {
        // Refused by the other node, and its report by this one: no such sender.
        ids.push(send(&mut client, "MAIL FROM:<ghost@a.test>", &["<ghost@b.test>"], "Subject: s\r\n\r\nb"));
        // Known to neither: round and round until there are too many Received fields, and so is the report.
        ids.push(send(&mut client, "MAIL FROM:<ghost@c.test>", &["<ghost@d.test>"], "Subject: s\r\n\r\nb"));
    }
    let began = Instant::now();
    loop {
        let left = first.queue().len() + second.queue().len();
        let log = |node: &Node| std::fs::read_to_string(node.folder.path().join("mail.log")).unwrap_or_default();
        let (logs, dropped) = (format!("{}{}", log(&first), log(&second)), "outcome=dropped");
        // All twenty reports failed in their turn.
        if left == 0 && logs.matches(dropped).count() == 20 {
            let accepted = logs.matches("event=accepted").count();
            let reports = logs.matches("listener=report").count();
            assert_eq!(reports, 20, "one report for each message and none of a report");
            assert!(accepted <= 10 * (2 + 2) + 10 * 2 * 12, "{accepted} transactions for 20 messages");
            eprintln!("20 messages: {accepted} transactions, {reports} reports, 0 left");
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{left} left, {} dropped: {logs}", logs.matches(dropped).count());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Each node's reports of reports went to an address that the other one could not deliver to: each failure was a report of a report to the
/// other, without end.
#[test]
fn two_nodes_that_tell_each_other_of_reports_that_failed_come_to_rest() {
    let hop = NextHop::start();
    let (a, b) = (Setup::new().address, Setup::new().address);
    let node = |own, name: &str, other, others: &str| {
        let extra = format!(
            "[[route]]\ndomain = \"{others}\"\nvia = \"smarthost\"\nhosts = [\"{other}\"]\n[bounce]\ndouble_bounce_to = \"no-boss@{others}\"\n"
        );
        let domains = format!("[[domain]]\nname = \"{name}\"\n");
        Node::start(&Setup { address: own, domains: domains.leak(), extra: extra.leak(), ..Setup::to(hop.address) })
    };
    let (first, second) = (node(a, "a.test", b, "b.test"), node(b, "b.test", a, "a.test"));
    send(&mut Client::greeted(first.address), "MAIL FROM:<>", &["<no-b@a.test>"], "Subject: s\r\n\r\nb");
    let log = second.wait_for_mail_log("outcome=dropped reason=\"this was the report of a report that failed\"");
    assert!(!log.contains("listener=report"), "{log}");
    first.wait_for_queue(<[_]>::is_empty);
    second.wait_for_queue(<[_]>::is_empty);
    assert!(hop.messages().is_empty());
}
