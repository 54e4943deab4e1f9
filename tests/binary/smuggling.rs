//! SMTP smuggling: a bare CR or LF never ends content and is never passed on (RFC 5321 2.3.8, 4.1.1.4).

use std::time::Duration;

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup};
use crate::spool_surgery::replace_in_spool;

/// Everything that some mailer has once taken for the end of content, and is not.
const NOT_THE_END: &[&str] = &[
    "\n.\n",
    "\n.\r",
    "\r.\n",
    "\r.\r",
    "\n.\r\n",
    "\r.\r\n",
    "\r\n.\n",
    "\r\n.\r",
    "\r\n\0.\r\n",
    "\r\n.\0\r\n",
    "\r\n.\r\r\n",
    "\r\r\n.\r\r\n",
];

/// What an attacker wants to be taken for a second message.
const SMUGGLED: &str = "MAIL FROM:<evil@x.test>\r\nRCPT TO:<c@y.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nevil\r\n";

fn content(sequence: &str) -> String {
    format!("Subject: first\r\n\r\nline{sequence}{SMUGGLED}")
}

fn has_bare(octets: &[u8]) -> bool {
    let text: Vec<u8> = octets.windows(2).filter(|pair| *pair == b"\r\n").flatten().copied().collect();
    let ends = octets.iter().filter(|byte| matches!(byte, b'\r' | b'\n')).count();
    text.len() != ends
}

fn is_bare(sequence: &str) -> bool {
    has_bare(sequence.as_bytes())
}

fn in_transaction(node: &Node) -> Client {
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test>", "250");
    client.must("RCPT TO:<b@y.test>", "250");
    client
}

/// Sends `octets` in two segments cut at `cut`.
fn send_cut(client: &mut Client, octets: &[u8], cut: usize) {
    client.send(&octets[..cut]);
    if cut > 0 && cut < octets.len() {
        std::thread::sleep(Duration::from_micros(300));
    }
    client.send(&octets[cut..]);
}

/// Sends by DATA; returns the reply to the true end.
fn by_data(node: &Node, sequence: &str, cut: usize) -> String {
    let mut client = in_transaction(node);
    client.must("DATA", "354");
    let octets = format!("{}.\r\n", content(sequence));
    send_cut(&mut client, octets.as_bytes(), cut);
    let reply = client.reply_or_silence().unwrap_or_else(|| panic!("{sequence:?} cut at {cut}: no reply to the true end; {}", node.log()));
    if reply.starts_with("250") {
        client.must("QUIT", "221");
    } else if reply.starts_with("550 5.5.2") {
        let end = client.reply_or_silence();
        assert_eq!(end.as_deref(), Some(""), "{sequence:?} cut at {cut}: the session goes on after {reply:?}");
    }
    reply
}

/// Sends by BDAT in two chunks cut at `cut`; returns the last reply.
fn by_bdat(node: &Node, sequence: &str, cut: usize) -> String {
    let octets = content(sequence).into_bytes();
    let mut client = in_transaction(node);
    let mut wire = format!("BDAT {cut}\r\n").into_bytes();
    wire.extend_from_slice(&octets[..cut]);
    wire.extend_from_slice(format!("BDAT {} LAST\r\n", octets.len() - cut).as_bytes());
    wire.extend_from_slice(&octets[cut..]);
    client.send(&wire);
    let first = client.reply();
    let last = client.reply();
    if last.is_empty() { first } else { last }
}

/// Cuts at every octet around the sequence, and at some far from it.
fn cuts(sequence: &str) -> impl Iterator<Item = usize> {
    let start = content(sequence).find(sequence).unwrap();
    let end = content(sequence).len();
    (1..start + sequence.len() + 8).chain((start + 40..end).step_by(17))
}

#[test]
fn no_bare_line_end_ends_data_or_is_passed_on() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut whole = 0;
    for sequence in NOT_THE_END {
        for cut in cuts(sequence) {
            let reply = by_data(&node, sequence, cut);
            if is_bare(sequence) {
                assert!(reply.starts_with("550 5.5.2 "), "{sequence:?} cut at {cut}: {reply:?}");
            } else {
                // A NUL beside the dot: one message, whatever is thought of it.
                assert!(reply.starts_with("250 2.0.0 ") || reply.starts_with("55"), "{sequence:?} cut at {cut}: {reply:?}");
                whole += usize::from(reply.starts_with("250"));
            }
        }
    }
    node.wait_for_queue(<[_]>::is_empty);
    let messages = hop.wait_for(whole);
    assert_eq!(messages.len(), whole, "a second message came out of one");
    for message in messages {
        assert_eq!((message.sender.as_str(), &message.recipients[..]), ("a@x.test", &["b@y.test".to_string()][..]));
        assert!(!has_bare(&message.wire), "{:?}", message.text());
    }
}

#[test]
fn no_bare_line_end_passes_in_chunks() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut whole = 0;
    for sequence in NOT_THE_END {
        for cut in cuts(sequence) {
            let reply = by_bdat(&node, sequence, cut);
            if is_bare(sequence) {
                assert!(reply.starts_with("550 5.5.2 ") || reply.starts_with("503 5."), "{sequence:?} cut at {cut}: {reply:?}");
            } else {
                whole += usize::from(reply.starts_with("250"));
            }
        }
    }
    node.wait_for_queue(<[_]>::is_empty);
    let messages = hop.wait_for(whole);
    assert_eq!(messages.len(), whole);
    for message in messages {
        assert!(!has_bare(&message.wire), "{:?}", message.text());
        assert_eq!(message.recipients, ["b@y.test"]);
    }
}

#[test]
fn normalize_makes_one_clean_message_of_it() {
    let hop = NextHop::start();
    let node = Node::start(&Setup { extra: "[smtp]\nbare_newline = \"normalize\"", ..Setup::to(hop.address) });
    let mut sent = 0;
    for sequence in NOT_THE_END {
        for cut in cuts(sequence) {
            let reply = by_data(&node, sequence, cut);
            assert!(reply.starts_with("250 2.0.0 "), "{sequence:?} cut at {cut}: {reply:?}");
            sent += 1;
        }
    }
    let messages = hop.wait_for(sent);
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(hop.messages().len(), sent, "one message each");
    for message in messages {
        assert!(!has_bare(&message.wire), "{:?}", message.text());
        assert!(message.body().contains("Subject: smuggled"), "the attempt is content of the first message");
        let dots = message.wire.windows(3).filter(|three| *three == b"\r\n.").count();
        let doubled = message.wire.windows(4).filter(|four| *four == b"\r\n..").count();
        assert_eq!(dots, doubled, "every line with a leading dot is stuffed on the way out: {:?}", message.text());
    }
}

/// Content of octets keeps every one of them in the spool, and a report returned its header as it was, by DATA: a next hop to which a bare
/// LF ends a line found a message in it whose sender a stranger had chosen.
#[test]
fn a_report_about_content_of_octets_has_no_bare_line_end() {
    let hop = NextHop::start();
    hop.offer(&["CHUNKING"]);
    // A failure of what the hop cannot take, and a success in a mailbox.
    let boxes = "[[route]]\ndomain = \"box.test\"\nvia = \"maildir\"\npath = \"mail/{local}\"\n";
    let node = Node::start(&Setup { extra: boxes, ..Setup::to(hop.address) });
    let mut told = 0;
    for sequence in NOT_THE_END {
        let content = format!("X: a{sequence}{SMUGGLED}");
        for recipient in ["<b@z.test>", "<b@box.test> NOTIFY=SUCCESS"] {
            let mut client = Client::greeted(node.address);
            client.must("MAIL FROM:<victim@x.test> BODY=BINARYMIME", "250");
            client.must(&format!("RCPT TO:{recipient}"), "250");
            client.send(format!("BDAT {} LAST\r\n{content}", content.len()).as_bytes());
            let reply = client.reply();
            assert!(reply.starts_with("250 2.0.0 "), "{sequence:?}: {reply:?}");
            told += 1;
        }
    }
    for message in hop.wait_for(told) {
        assert_eq!((message.sender.as_str(), &message.recipients[..]), ("", &["victim@x.test".to_owned()][..]));
        assert!(!has_bare(&message.wire) && !message.wire.contains(&0), "{:?}", message.text());
        assert!(message.text().contains("X: a"), "{:?}", message.text());
    }
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(hop.messages().len(), told, "a second message came out of one");
}

/// Reports from before that check were in spools with what they returned as it was: each attempt was deferred, until they expired.
#[test]
fn a_report_that_an_earlier_version_made_loses_its_bare_line_ends_and_leaves() {
    let hop = NextHop::start();
    // The report waits for its route.
    let waits = Setup { extra: "[[route]]\ndomain = \"x.test\"\nvia = \"hold\"\n", ..Setup::to(hop.address) };
    let mut node = Node::start(&waits);
    let mut client = Client::greeted(node.address);
    client.must("MAIL FROM:<a@x.test>", "250");
    client.must("RCPT TO:<no-b@z.test>", "250");
    client.must("DATA", "354");
    client.must("X: one@.@@two\r\n\r\nx\r\n.", "250");
    let queue = node.wait_for_queue(|queue| queue.len() == 1 && queue[0]["sender"] == "");
    node.kill();
    assert!(replace_in_spool(node.folder.path(), b"X: one@.@@two", b"X: one\n.\n\rtwo") > 0);
    node.reconfigure(&Setup { address: node.address, ..Setup::to(hop.address) });
    node.restart();
    let messages = hop.wait_for(1);
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!((messages[0].sender.as_str(), &messages[0].recipients[..]), ("", &["a@x.test".to_owned()][..]), "{queue:?}");
    assert!(!has_bare(&messages[0].wire), "{:?}", messages[0].text());
    assert!(messages[0].text().contains("\r\nX: one .  two\r\n"), "{:?}", messages[0].text());
    assert!(messages[0].text().ends_with("--\r\n"), "it is whole: {:?}", messages[0].text());
}
