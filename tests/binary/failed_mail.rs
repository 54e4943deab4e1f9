//! Commands on mail that has failed already, whose sender is still to be told.

use std::process::Output;

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup};
use crate::reports::send;

/// A node on which failed mail stays, as its reports are not made.
fn node(hop: &NextHop) -> Node {
    let extra = "[bounce]\nenabled = false\n[[route]]\ndomain = \"backup.test\"\nvia = \"hold\"\n";
    Node::start(&Setup { extra, retries: "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n", ..Setup::to(hop.address) })
}

fn deliver(node: &Node, recipients: &[&str]) -> String {
    let id = Client::greeted(node.address).deliver_to(recipients, "Subject: x\r\n\r\nx");
    node.wait_for_queue(|queue| queue.iter().all(|message| message["recipients"][0]["state"] == "failed" && message["attempts"] != 0));
    id
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// `hold`, `release` and `set-expiry` said "1 message held" and the like of mail that nothing is attempted of any more, and `bounce` that it is
/// not in the queue.
#[test]
fn what_has_failed_already_is_not_held_nor_given_another_end_and_the_answer_says_so() {
    let hop = NextHop::start();
    let node = node(&hop);
    let id = deliver(&node, &["no-b@z.test"]);
    for (words, count) in
        [(&["hold"][..], "0 messages held"), (&["release"], "0 messages released"), (&["bounce", "--reason", "gone"], "0 messages bounced")]
    {
        for by in [id.as_str(), "--all"] {
            let output = node.ask(&[&["queue"], words, &[by]].concat());
            let (out, told) = said(&output);
            assert_eq!((&*out, output.status.code()), (count, Some(i32::from(by == id))), "{words:?} {by}: {told}");
            let expected =
                "ringpost: 1 message stayed as before: failed or delivered already; what is still to come is the report to their senders";
            assert!(told.starts_with(expected) && !told.contains("not in the queue"), "{words:?} {by}: {told}");
        }
    }
    let (out, told) = said(&node.ask(&["queue", "set-expiry", &id, "2d"]));
    assert!(out == "0 messages given another end of life" && told.contains("failed or delivered already"), "{out} {told}");
    assert_eq!(said(&node.ask(&["queue", "hold", "--state", "failed", "--json"])).0, "{\"changed\":0,\"failed\":1}");
    // Nothing of it was done: it is retried at once, and fails again.
    assert_eq!(said(&node.ask(&["queue", "retry", &id])).0, "1 message retried");
    node.wait_for_queue(|queue| {
        queue.len() == 1 && queue[0]["recipients"][0]["attempts"] == 2 && queue[0]["recipients"][0]["state"] == "failed"
    });
    let log = node.wait_for_mail_log("command=retry");
    assert!(["hold", "release", "set-expiry"].iter().all(|command| !log.contains(&format!("command={command}"))), "{log}");
}

/// A re-route said "1 message re-routed", which counts only for who is retried; so does the release of what was held when it was bounced.
#[test]
fn another_way_for_what_has_failed_counts_once_it_is_retried_and_the_answer_says_so() {
    let hop = NextHop::start();
    let node = node(&hop);
    let (failed, partly) = (deliver(&node, &["no-b@z.test"]), deliver(&node, &["no-b@z.test", "later-c@z.test"]));
    let (out, told) = said(&node.ask(&["queue", "reroute", &failed, &partly, "--to", "backup.test"]));
    let then = "for those it counts only if `ringpost queue retry` comes before their senders are told";
    assert_eq!(
        (&*out, &*told),
        ("2 messages re-routed", &*format!("ringpost: 2 of them have recipients that have failed already: {then}"))
    );
    let (out, _) = said(&node.ask(&["queue", "reroute", "--state", "failed", "--to", "backup.test", "--json"]));
    assert_eq!(out, "{\"changed\":0,\"unchanged\":2}", "they go that way already, once they are retried");
    let (out, told) = said(&node.ask(&["queue", "reroute", "--state", "held", "--to", "*"]));
    assert_eq!((&*out, &*told), ("1 message re-routed", ""), "nothing else is meant");
    assert_eq!(said(&node.ask(&["queue", "retry", "--state", "failed"])).0, "2 messages retried");
    node.wait_for_queue(|queue| queue.iter().all(|message| message["recipients"][0]["state"] == "held"));

    assert_eq!(said(&node.ask(&["queue", "hold", &failed])).0, "1 message held");
    assert_eq!(said(&node.ask(&["queue", "bounce", &failed, "--reason", "gone"])).0, "1 message bounced");
    assert_eq!(said(&node.ask(&["queue", "retry", &failed])).0, "0 messages retried", "it is held yet");
    let (out, told) = said(&node.ask(&["queue", "release", &failed]));
    assert_eq!((&*out, &*told), ("1 message released", &*format!("ringpost: 1 of them has recipients that have failed already: {then}")));
    assert_eq!(said(&node.ask(&["queue", "retry", &failed])).0, "1 message retried");
}

/// A hold said "1 message held" of a message with recipients that had failed, whose senders were told all the same, and `why` and `ls` nothing of the
/// hold that a retry of those was refused for.
#[test]
fn a_hold_is_nothing_to_the_recipients_that_have_failed_and_all_that_tell_of_them_say_so() {
    let hop = NextHop::start();
    let node = node(&hop);
    let id = deliver(&node, &["no-b@z.test", "later-c@z.test"]);
    let (out, told) = said(&node.ask(&["queue", "set-expiry", &id, "2d"]));
    assert!(out == "1 message given another end of life" && told.contains("1 of them has recipients that have failed already"), "{told}");
    let (out, told) = said(&node.ask(&["queue", "hold", &id]));
    let then = "those are not kept back: the report to their senders is made where one is due (`ringpost queue why`)";
    assert_eq!((&*out, &*told), ("1 message held", &*format!("ringpost: 1 of them has recipients that have failed already: {then}")));
    assert_eq!(said(&node.ask(&["queue", "release", &id])).0, "1 message released");
    assert_eq!(said(&node.ask(&["queue", "hold", &id, "--json"])).0, "{\"already_failed\":1,\"changed\":1}");
    let why = said(&node.ask(&["queue", "why", &id])).0;
    let failed = "so a retry comes after `queue release`.";
    assert!(why.contains("<later-c@z.test>: Held by command until it is released") && why.contains(failed), "{why}");
    // What is left has failed, and a retry says that it is held.
    assert_eq!(said(&node.ask(&["queue", "purge", "--state", "held"])).0, "1 message purged");
    assert!(said(&node.ask(&["queue", "retry", &id])).1.contains("stayed as before: held"));
    for words in [&["queue", "ls"][..], &["queue", "show", &id]] {
        let out = said(&node.ask(words)).0;
        assert!(out.contains("its message is held by command: a retry comes after a release"), "{out}");
    }
    assert!(said(&node.ask(&["queue", "why", &id])).0.contains(failed));
}

/// Mail that was delivered, and whose sender was still to be told so, had a line in the mail log as bounced.
#[test]
fn a_bounce_has_a_line_for_whom_it_fails_and_none_for_who_has_the_mail() {
    let hop = NextHop::start();
    let extra = "[bounce]\nreports_per_minute_and_sender = 1\n";
    let node = Node::start(&Setup { extra, retries: "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n", ..Setup::to(hop.address) });
    let told = ["<b@z.test> NOTIFY=SUCCESS,FAILURE"];
    let mut client = Client::greeted(node.address);
    client.must("EHLO client.x.test", "250");
    send(&mut client, "MAIL FROM:<a@x.test>", &told, "Subject: x\r\n\r\nx");
    node.wait_for_mail_log("event=report about=success");
    // The turn of the next report is a minute away.
    let id = send(&mut client, "MAIL FROM:<a@x.test>", &[told[0], "<later-c@z.test>"], "Subject: x\r\n\r\nx");
    node.wait_for_queue(|queue| queue.iter().any(|one| one["id"] == *id && one["recipients"][1]["state"] == "deferred"));
    let (out, words) = said(&node.ask(&["queue", "bounce", &id, "--reason", "by hand"]));
    assert_eq!((&*out, &*words), ("1 message bounced", ""));
    let log = node.wait_for_mail_log(&format!("queue_id={id} event=bounced to=<later-c@z.test>"));
    assert_eq!(log.matches(&format!("queue_id={id} event=bounced")).count(), 1, "{log}");
}
