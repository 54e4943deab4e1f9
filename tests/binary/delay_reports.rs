//! What senders are told of mail that is late.

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup};
use crate::reports::{parsed, send, wait_for_reports};

/// Whoever asks to be told (RFC 2852: BY with N) was told that mail is still being retried that an operator holds.
#[test]
fn mail_that_is_held_is_not_said_to_be_retried() {
    let hop = NextHop::start();
    let extra = "[[route]]\ndomain = \"held.test\"\nvia = \"hold\"\n";
    let node = Node::start(&Setup { extra, ..Setup::to(hop.address) });
    let mut client = Client::greeted(node.address);
    send(&mut client, "MAIL FROM:<a@x.test> BY=1;N", &["<later-b@z.test>", "<c@held.test>"], "Subject: s\r\n\r\nb");
    let mut reports: Vec<_> = wait_for_reports(&hop, &node, 2).iter().map(parsed).collect();
    reports.sort_by_key(|report| report["recipients"][0]["final-recipient"].to_string());
    let [held, tried] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!(held["header"]["subject"], "Delayed mail (held, not being tried at present)");
    assert_eq!(tried["header"]["subject"], "Delayed mail (still being retried)");
    let group = &held["recipients"][0];
    assert_eq!((&group["action"], &group["status"]), (&"delayed".into(), &"4.3.2".into()));
    assert_eq!(group["diagnostic-code"], "x-ringpost; 451 4.3.2 held by the operator of this system");
    assert!(group.get("will-retry-until").is_none(), "{group}");
    assert!(tried["recipients"][0]["will-retry-until"].is_string());
    let text = |report: &serde_json::Value| report["text"].as_str().unwrap().to_owned();
    assert!(text(held).contains("is not tried until the operator of this system") && !text(held).contains("it is tried until"));
    assert!(text(tried).contains("it is tried until") && !text(tried).contains("<c@held.test>"));
}
