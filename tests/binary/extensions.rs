//! What a client asks for beside addresses, from end to end: it reaches the next hop, or the message does not.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::faulty_hop::{Fault, FaultyHop, Script};
use crate::next_hop::NextHop;
use crate::node::{Node, Setup};
use crate::shards::on_one_core;

/// Sends one message whose MAIL has these parameters, by BDAT; returns the final reply.
fn send(client: &mut Client, parameters: &str, content: &[u8]) -> String {
    client.must(&format!("MAIL FROM:<a@x.test> {parameters}"), "250 2.1.0");
    client.must("RCPT TO:<b@z.test>", "250 2.1.5");
    client.send(format!("BDAT {} LAST\r\n", content.len()).as_bytes());
    client.send(content);
    client.reply()
}

#[test]
fn content_without_lines_passes_octet_by_octet_to_a_hop_that_takes_it_and_to_no_other() {
    let content = b"Subject: x\r\n\r\n\n.\n\r.\r\0\xFF.\r\n.";
    let hop = NextHop::start();
    hop.offer(&["CHUNKING", "BINARYMIME"]);
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    assert!(send(&mut client, "BODY=BINARYMIME", content).starts_with("250 2.0.0 "));
    let message = &hop.wait_for(1)[0];
    assert!(message.chunk && message.wire.ends_with(content), "{:?}", message.text());
    assert!(message.commands[0].contains(" BODY=BINARYMIME"), "{:?}", message.commands);
    // The same hop takes lines by DATA afterwards, on the same connection.
    client.deliver("c@z.test", "Subject: lines\r\n\r\ntext");
    assert!(!hop.wait_for(2)[1].chunk);
    node.wait_for_queue(<[_]>::is_empty);

    let hop = NextHop::start();
    hop.offer(&["CHUNKING"]);
    let node = Node::start(&Setup::to(hop.address));
    assert!(send(&mut Client::greeted(node.address), "BODY=BINARYMIME", content).starts_with("250 2.0.0 "));
    let log = node.wait_for_mail_log("5.6.3");
    // Nothing but the report of it.
    assert!(log.contains("outcome=bounced") && hop.messages().iter().all(|message| message.sender.is_empty()), "{log}");
}

#[test]
fn a_priority_is_passed_on_and_a_strangers_is_lowered() {
    let hop = NextHop::start();
    hop.offer(&["MT-PRIORITY"]);
    let node = Node::start(&Setup::to(hop.address));
    send(&mut Client::greeted(node.address), "MT-PRIORITY=4", b"x\r\n");
    assert!(hop.wait_for(1)[0].commands[0].ends_with(" MT-PRIORITY=4"), "{:?}", hop.messages());

    let hop = NextHop::start();
    hop.offer(&["MT-PRIORITY"]);
    let node = Node::start(&Setup { networks: "[\"192.0.2.0/24\"]", ..Setup::to(hop.address) });
    let mut stranger = Client::greeted(node.address);
    stranger.must("MAIL FROM:<a@x.test> MT-PRIORITY=4", "250 2.1.0");
    stranger.must("RCPT TO:<b@y.test>", "250 2.1.5");
    stranger.must("DATA", "354");
    stranger.must("x\r\n.", "250 2.3.6 0 is its priority, message accepted for delivery, id=");
    // The next transaction does not inherit it. Two connections may bring them in any order.
    stranger.deliver("b@y.test", "y");
    let mut said: Vec<_> =
        hop.wait_for(2).into_iter().map(|message| (message.text().ends_with("x\r\n"), message.commands[0].clone())).collect();
    said.sort();
    assert!(said[1].0 && said[1].1.ends_with(" MT-PRIORITY=0"), "{said:?}");
    assert!(!said[0].0 && !said[0].1.contains("PRIORITY"), "{said:?}");
}

#[test]
fn mail_for_later_waits_over_a_kill_and_goes_at_its_time() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup::to(hop.address));
    let mut client = Client::connect(node.address);
    let ehlo = client.must("EHLO client.x.test", "250");
    assert!(ehlo.contains("250-FUTURERELEASE 2592000 2"), "{ehlo}");
    client.must("MAIL FROM:<a@x.test> HOLDFOR=2592001", "501 5.5.4");
    client.must("MAIL FROM:<a@x.test> HOLDUNTIL=2999-01-01T00:00:00Z", "501 5.5.4");
    let accepted = Instant::now();
    assert!(send(&mut client, "HOLDFOR=3", b"Subject: later\r\n\r\n").starts_with("250 2.0.0 "));
    assert!(send(&mut client, "HOLDUNTIL=2001-01-01T00:00:00Z", b"Subject: long ago\r\n\r\n").starts_with("250 2.0.0 "));
    assert!(hop.wait_for(1)[0].text().contains("long ago"));
    node.wait_for_queue(|queue| queue.len() == 1);
    node.kill();
    node.restart();
    assert!(hop.wait_for(2)[1].text().contains("later"));
    assert!(accepted.elapsed() >= Duration::from_millis(2900), "{:?}", accepted.elapsed());
}

#[test]
fn strangers_are_not_offered_to_have_mail_held() {
    let node = Node::start(&Setup { networks: "[\"192.0.2.0/24\"]", ..Setup::new() });
    let mut client = Client::connect(node.address);
    let ehlo = client.must("EHLO client.x.test", "250");
    assert!(!ehlo.contains("FUTURERELEASE"), "{ehlo}");
    client.must("MAIL FROM:<a@x.test> HOLDFOR=1", "555 5.5.4");
}

#[test]
fn a_message_goes_back_when_the_time_its_sender_gave_is_over() {
    // Nobody listens there.
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], crate::node::free_port()));
    let node = Node::start(&Setup::to(nobody));
    let began = Instant::now();
    assert!(send(&mut Client::greeted(node.address), "BY=2;R", b"Subject: soon\r\n\r\n").starts_with("250 2.0.0 "));
    let log = node.wait_for_mail_log("dsn=5.4.7 outcome=bounced");
    assert!(log.contains("event=expired to=<b@z.test>"), "{log}");
    assert!((2..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[test]
fn a_message_whose_time_is_over_during_an_attempt_is_said_to_have_expired() {
    let hop = NextHop::start();
    hop.offer(&["DELIVERBY"]);
    let node = Node::start(&Setup::to(hop.address));
    hop.hold_content(true);
    assert!(send(&mut Client::greeted(node.address), "BY=3;R", b"Subject: late\r\n\r\n").starts_with("250 2.0.0 "));
    let accepted = Instant::now();
    node.wait_for_queue(|queue| queue[0]["recipients"][0]["state"] == "active");
    while accepted.elapsed() < Duration::from_millis(3100) {
        std::thread::sleep(Duration::from_millis(10));
    }
    hop.set_busy(true);
    hop.hold_content(false);
    let log = node.wait_for_mail_log("event=report");
    assert!(log.contains("event=attempt to=<b@z.test>") && log.contains("reply=\"451 4.3.2 Busy\""), "{log}");
    assert_eq!(log.matches("event=expired to=<b@z.test>").count(), 1, "{log}");
    assert!(log.contains("dsn=5.4.7 outcome=bounced reply=\"5.4.7 expired; last: 451 4.3.2 Busy\""), "{log}");
}

#[test]
fn the_time_that_is_left_goes_to_a_hop_that_knows_it_and_to_no_other() {
    let hop = NextHop::start();
    hop.offer(&["DELIVERBY"]);
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    send(&mut client, "BY=1000;RT", b"x\r\n");
    let mail = &hop.wait_for(1)[0].commands[0];
    assert!(mail.ends_with(" BY=999;RT") || mail.ends_with(" BY=1000;RT"), "{mail}");
    client.must("MAIL FROM:<a@x.test> BY=0;R", "501 5.5.4");

    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    send(&mut client, "BY=1000;N", b"with notice\r\n");
    assert!(!hop.wait_for(1)[0].commands[0].contains(" BY="));
    send(&mut client, "BY=1000;R", b"with return\r\n");
    let log = node.wait_for_mail_log("dsn=5.3.3 outcome=bounced");
    assert!(hop.messages().iter().all(|message| !message.text().contains("with return") || message.sender.is_empty()), "{log}");
}

/// SIZE= was two octets too small for what DATA gives its last line end.
#[test]
fn the_size_that_is_announced_is_what_is_sent_also_after_a_restart() {
    let hop = NextHop::start();
    hop.set_busy(true);
    let mut node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    for content in [&b"Subject: open\r\n\r\nwithout an end"[..], b"Subject: whole\r\n\r\nwith one\r\n", b"Subject: header only"] {
        assert!(send(&mut client, "BODY=7BIT", content).starts_with("250 2.0.0 "));
    }
    node.kill();
    node.restart();
    assert!(send(&mut Client::greeted(node.address), "BODY=7BIT", b"Subject: new\r\n\r\nwithout an end").starts_with("250 2.0.0 "));
    hop.set_busy(false);
    for message in hop.wait_for(4) {
        let announced = message.commands[0].split(" SIZE=").nth(1).unwrap().split(' ').next().unwrap();
        assert_eq!(announced, message.wire.len().to_string(), "{}", message.text());
    }
}

/// Mail with SMTPUTF8 whose attachment has a name beyond ASCII, and nothing else, went to next hops that do not offer SMTPUTF8.
#[test]
fn a_header_of_a_part_beyond_ascii_goes_to_no_hop_without_smtputf8() {
    let content = |name: &str| {
        format!(
            "Subject: s\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n-- \r\nJ\u{fc}rgen: \u{fc}\r\n--b\r\n\
             Content-Disposition: attachment; filename=\"{name}\"\r\n\r\nx\r\n--b--\r\n.\r\n"
        )
    };
    let send = |node: &Node, mail: &str, name: &str| {
        let mut client = Client::greeted(node.address);
        client.must(mail, "250");
        client.must("RCPT TO:<b@z.test> NOTIFY=NEVER", "250");
        client.must("DATA", "354");
        client.send(content(name).as_bytes());
        let reply = client.reply();
        reply.trim_end().rsplit_once("id=").expect("it is accepted").1.to_owned()
    };
    let hop = NextHop::start();
    hop.offer_eight_bit_bodies();
    let node = Node::start(&Setup::to(hop.address));
    let asked = "MAIL FROM:<a@x.test> BODY=8BITMIME SMTPUTF8";
    let refused = send(&node, asked, "\u{e4}");
    let log = node.wait_for_mail_log("outcome=bounced");
    assert!(log.lines().any(|line| line.contains(&refused) && line.contains("reply=\"553 5.6.7 ")), "{log}");
    // A body of eight bits is 8BITMIME's, and what came without SMTPUTF8 goes as it came.
    send(&node, asked, "a");
    send(&node, "MAIL FROM:<a@x.test> BODY=8BITMIME", "\u{e4}");
    node.wait_for_queue(<[_]>::is_empty);
    let commands: Vec<_> = hop.wait_for(2).into_iter().map(|message| message.commands[0].clone()).collect();
    assert!(commands.iter().all(|mail| mail.contains(" BODY=8BITMIME") && !mail.contains("SMTPUTF8")), "{commands:?}");
    assert_eq!(hop.messages().len(), 2);
    drop(node);
    // A hop that offers it is told.
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    send(&node, asked, "\u{e4}");
    let message = hop.wait_for(1).remove(0);
    assert!(message.commands[0].contains(" SMTPUTF8") && message.text().contains("filename=\"\u{e4}\""), "{:?}", message.commands);
}

/// One recipient beyond ASCII had all others of its message refused where the next hop does not offer SMTPUTF8.
#[test]
fn only_who_needs_smtputf8_fails_at_a_hop_without_it() {
    let sent = |node: &Node, sender: &str, subject: &str| {
        let mut client = Client::greeted(node.address);
        client.must(&format!("MAIL FROM:<{sender}> BODY=8BITMIME SMTPUTF8"), "250");
        for recipient in ["b@one.test", "\u{fc}@two.test", "c@three.test"] {
            client.must(&format!("RCPT TO:<{recipient}> NOTIFY=NEVER"), "250");
        }
        client.must("DATA", "354");
        client.must(&format!("Subject: {subject}\r\n\r\nx\r\n."), "250");
        node.wait_for_queue(<[_]>::is_empty);
    };
    for shards in [1, 2] {
        let (plain, modern) = (NextHop::start(), NextHop::start());
        plain.offer_eight_bit_bodies();
        let node = Node::start(&on_one_core(Setup::to(plain.address), shards));
        // With two shards some are of the one that does not deliver there.
        for count in 1..=2 * shards as usize {
            sent(&node, "a@x.test", "s");
            let message = plain.wait_for(count).pop().unwrap();
            let mut recipients = message.recipients;
            recipients.sort();
            assert!(recipients == ["b@one.test", "c@three.test"] && !message.commands[0].contains("SMTPUTF8"), "{:?}", message.commands);
        }
        let log = node.wait_for_mail_log("outcome=bounced");
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("outcome=bounced")).collect();
        assert!(refused.iter().all(|line| line.contains("to=<\u{fc}@two.test>") && line.contains("reply=\"553 5.6.7 ")), "{log}");
        // What all of them need is asked for once, and nobody is sent it.
        for (sender, subject) in [("\u{e4}@x.test", "s"), ("a@x.test", "\u{e4}")] {
            sent(&node, sender, subject);
        }
        assert_eq!(plain.messages().len(), 2 * shards as usize);
        drop(node);
        // Another host of the destination offers it: it has the one, and the others are not sent twice.
        let route = format!("via = \"smarthost\"\nhosts = [\"{}\", \"{}\"]", plain.address, modern.address);
        let before = plain.messages().len();
        let node = Node::start(&on_one_core(Setup { route, ..Setup::new() }, shards));
        for count in 1..=2 * shards as usize {
            sent(&node, "a@x.test", "s");
            let at_both = [plain.messages().split_off(before), modern.messages()].concat();
            let mut recipients: Vec<String> = at_both.into_iter().flat_map(|message| message.recipients).collect();
            recipients.sort();
            let once = ["b@one.test", "c@three.test", "\u{fc}@two.test"].map(str::to_owned);
            let mut expected: Vec<String> = once.iter().cycle().take(3 * count).cloned().collect();
            expected.sort();
            assert_eq!(recipients, expected);
        }
    }
}

/// It was put off with those whom the host was too busy for, and told as an expiry days later.
#[test]
fn who_needs_smtputf8_fails_also_where_others_are_put_off() {
    let hop = FaultyHop::start(Script { point: "rcpt", fault: Fault::Says("450 4.2.1 Busy"), pipelining: true });
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test> SMTPUTF8", "250");
    for recipient in ["b@one.test", "\u{fc}@two.test"] {
        client.must(&format!("RCPT TO:<{recipient}> NOTIFY=NEVER"), "250");
    }
    client.must("DATA", "354");
    client.must("Subject: s\r\n\r\nx\r\n.", "250");
    let log = node.wait_for_mail_log("outcome=bounced");
    let refused: Vec<&str> = log.lines().filter(|line| line.contains("outcome=bounced")).collect();
    assert!(refused.iter().all(|line| line.contains("to=<\u{fc}@two.test>") && line.contains("reply=\"553 5.6.7 ")), "{log}");
    let queue = node.queue();
    let waits: Vec<_> = queue[0]["recipients"].as_array().unwrap().iter().filter(|one| one["state"] != "bounced").collect();
    assert!(waits.len() == 1 && waits[0]["address"] == "b@one.test", "{queue:?}");
}
