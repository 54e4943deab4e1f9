//! Reports to senders, as the next hop gets them and as an independent parser (Python's `email`) reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Client;
use crate::next_hop::{Message, NextHop};
use crate::node::{Node, PATIENCE, Setup, free_port};
use crate::queue_why::broken_name_server;

/// Warned after a second, tried again every second.
const SOON: &str = "[queue]\nretry_base = \"1s\"\nretry_cap = \"1s\"\nwarn_after = \"1s\"\n[delivery]\ndead_destination = \"1s\"\n";

const PARSER: &str = r#"
import email, email.policy, json, sys
message = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
defects = [str(defect) for part in message.walk() for defect in part.defects]
parts = list(message.iter_parts())
groups = [{key.lower(): str(value) for key, value in group.items()} for group in parts[1].get_payload()]
returned = None
if len(parts) > 2:
    inner = parts[2].get_payload()
    returned = {"type": parts[2].get_content_type(), "text": inner[0].as_string() if isinstance(inner, list) else inner}
print(json.dumps({
    "type": message.get_content_type(), "report_type": message.get_param("report-type"), "defects": defects,
    "header": {key.lower(): str(value) for key, value in message.items()},
    "text": parts[0].get_content(), "status_type": parts[1].get_content_type(),
    "message": groups[0], "recipients": groups[1:], "returned": returned,
}))
"#;

/// What Python's `email` makes of a report.
pub(crate) fn parsed(message: &Message) -> Value {
    let mut python = Command::new("python3")
        .args(["-c", PARSER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("these tests need python3");
    // The hop keeps dots stuffed; no line of these reports begins with one.
    python.stdin.take().unwrap().write_all(&message.wire).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", message.text());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["defects"], serde_json::json!([]), "{}", message.text());
    assert_eq!((&report["type"], &report["report_type"]), (&"multipart/report".into(), &"delivery-status".into()));
    assert_eq!(report["header"]["auto-submitted"], "auto-replied");
    report
}

fn is_report(message: &Message) -> bool {
    message.sender.is_empty()
}

/// Waits until the hop has so many reports.
pub(crate) fn wait_for_reports(hop: &NextHop, node: &Node, count: usize) -> Vec<Message> {
    let began = Instant::now();
    loop {
        let reports: Vec<_> = hop.messages().into_iter().filter(is_report).collect();
        if reports.len() >= count {
            return reports;
        }
        assert!(began.elapsed() < PATIENCE, "{} of {count} reports; {:?} {}", reports.len(), node.queue(), node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn send(client: &mut Client, mail: &str, recipients: &[&str], content: &str) -> String {
    client.must(mail, "250 2.1.0");
    for recipient in recipients {
        client.must(&format!("RCPT TO:{recipient}"), "250 2.1.5");
    }
    client.must("DATA", "354");
    let reply = client.must(&format!("{content}\r\n."), "250 2.0.0 ");
    reply.trim_end().rsplit_once("id=").unwrap().1.to_owned()
}

#[test]
fn a_refused_recipient_is_reported_with_all_that_the_sender_gave() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    let recipients =
        ["<no-b@z.test> NOTIFY=FAILURE ORCPT=rfc822;B+2Bx@old.test", "<c@z.test>", "<no-d@z.test>", "<no-e@z.test> NOTIFY=NEVER"];
    let id = send(&mut client, "MAIL FROM:<a@x.test> RET=FULL ENVID=QQ+3D314", &recipients, "Subject: whole\r\n\r\nthe body");
    let reports = wait_for_reports(&hop, &node, 1);
    node.wait_for_queue(<[_]>::is_empty);
    let message = &reports[0];
    assert_eq!(message.recipients, ["a@x.test"]);
    let report = parsed(message);
    assert_eq!(report["header"]["to"], "a@x.test");
    assert_eq!(report["header"]["from"], "Mail Delivery System <MAILER-DAEMON@mx1.example.test>");
    for field in ["date", "message-id", "subject"] {
        assert!(report["header"][field].is_string(), "{field}: {report}");
    }
    assert_eq!(report["message"]["reporting-mta"], "dns; mx1.example.test");
    assert_eq!(report["message"]["original-envelope-id"], "QQ=314");
    assert!(report["message"]["arrival-date"].is_string());
    let groups = report["recipients"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "one report for both, none for NEVER: {report}");
    assert_eq!(groups[0]["original-recipient"], "rfc822;B+x@old.test");
    assert!(groups[1].get("original-recipient").is_none());
    for (group, address) in groups.iter().zip(["rfc822; no-b@z.test", "rfc822; no-d@z.test"]) {
        assert_eq!(group["final-recipient"], address);
        assert_eq!((&group["action"], &group["status"]), (&"failed".into(), &"5.1.1".into()));
        assert_eq!(group["diagnostic-code"], "smtp; 550 5.1.1 No such user");
        assert_eq!(group["remote-mta"], "dns; [127.0.0.1]");
        assert!(group["last-attempt-date"].is_string());
    }
    assert!(report["text"].as_str().unwrap().contains(&id) && report["text"].as_str().unwrap().contains("<no-b@z.test>"));
    let returned = &report["returned"];
    assert_eq!(returned["type"], "message/rfc822");
    assert!(returned["text"].as_str().unwrap().contains("the body"));
    let log = node.wait_for_mail_log("event=report about=failure to=<no-e@z.test> outcome=none");
    for part in ["to=<no-b@z.test> outcome=sent report=", "listener=report"] {
        assert!(log.lines().any(|line| line.contains(&id) && line.contains(part)), "{part}: {log}");
    }
}

/// The report returned the message as it was, so it needed what that had failed for want of, and was dropped: mail that was accepted
/// vanished, and its sender heard nothing.
#[test]
fn a_sender_whose_mail_fails_for_its_eight_bits_is_told_in_seven() {
    let hop = NextHop::start();
    hop.offer_seven_bits();
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    send(&mut client, "MAIL FROM:<a@x.test> BODY=8BITMIME", &["<b@z.test>"], "Subject: s\r\nX-Plain: 1\r\n\r\nGr\u{f6}\u{df}e");
    let reports = wait_for_reports(&hop, &node, 1);
    node.wait_for_queue(<[_]>::is_empty);
    assert!(reports[0].wire.is_ascii(), "{}", reports[0].text());
    assert_eq!((&reports[0].recipients[..], reports[0].commands[0].contains("BODY")), (&["a@x.test".to_owned()][..], false));
    let report = parsed(&reports[0]);
    assert_eq!(
        (&report["recipients"][0]["final-recipient"], &report["recipients"][0]["status"]),
        (&"rfc822; b@z.test".into(), &"5.6.3".into())
    );
    assert_eq!((&report["status_type"], &report["returned"]["type"]), (&"message/delivery-status".into(), &"text/rfc822-headers".into()));
    let header = report["returned"]["text"].as_str().unwrap();
    assert!(header.contains("X-Plain: 1") && !header.contains("Gr"), "{header}");
    node.wait_for_mail_log("event=report about=failure to=<a@x.test> outcome=sent");
}

/// Where one host did not take its eight bits and another could not be asked, the report waited for that one until its time was over, was then not
/// known for one that fails for its eight bits, and was dropped.
#[test]
fn a_sender_is_told_in_seven_bits_where_not_every_host_could_be_asked_in_time() {
    let hop = NextHop::start();
    hop.offer_seven_bits();
    let route = format!("via = \"smarthost\"\nhosts = [\"{}\", \"127.0.0.1:{}\"]", hop.address, free_port());
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\n";
    let node = Node::start(&Setup { route, retries, ..Setup::new() });
    let mut client = Client::greeted(node.address);
    let id = send(&mut client, "MAIL FROM:<a@x.test> BODY=8BITMIME", &["<b@z.test>"], "Subject: s\r\n\r\nGr\u{f6}\u{df}e");
    let ends = |id: &str| {
        let waits = |line: &str| line.contains(id) && line.contains("not every host could be asked");
        let log = node.wait_for_mail_log_that("a deferral for eight bits", |log| log.lines().any(waits));
        node.wait_for_queue(|queue| queue.iter().any(|message| message["id"] == id && message["recipients"][0]["state"] == "deferred"));
        assert!(node.ask(&["queue", "set-expiry", id, "0s"]).status.success(), "{log}");
    };
    ends(&id);
    let log = node.wait_for_mail_log("event=report about=failure to=<b@z.test> outcome=sent");
    let report = log.split_once(" report=").and_then(|(_, rest)| rest.split_whitespace().next()).unwrap();
    ends(report);
    let reports = wait_for_reports(&hop, &node, 1);
    node.wait_for_queue(<[_]>::is_empty);
    assert!(reports[0].wire.is_ascii(), "{}", reports[0].text());
    let report = parsed(&reports[0]);
    assert_eq!(
        (&report["recipients"][0]["final-recipient"], &report["recipients"][0]["status"]),
        (&"rfc822; b@z.test".into(), &"5.4.7".into())
    );
    node.wait_for_mail_log("event=report about=failure to=<a@x.test> outcome=sent");
    assert_eq!(hop.messages().len(), 1);
}

/// What no hop took for its eight bits was sent again in seven, and that was so refused, too: again, under a new id, for ever, as often
/// as the hop answered, and at any sender's will, since whoever sends mail chooses who answers its report.
#[test]
fn a_report_that_is_refused_for_eight_bits_is_made_again_once_at_most() {
    for (subject, reports) in [("Subject: plain", 1), ("Subject: gr\u{f6}\u{df}e", 1), ("Subject: s\r\n\r\ngr\u{f6}\u{df}e", 2)] {
        let hop = NextHop::start();
        let node = Node::start(&Setup::to(hop.address));
        send(&mut Client::greeted(node.address), "MAIL FROM:<eight-a@x.test> BODY=8BITMIME", &["<no-b@z.test>"], subject);
        let log = node.wait_for_mail_log("event=report about=failure to=<eight-a@x.test> outcome=dropped");
        node.wait_for_queue(<[_]>::is_empty);
        assert_eq!(log.matches("listener=report").count(), reports, "{log}");
        assert!(hop.messages().is_empty());
    }
}

#[test]
fn what_goes_back_follows_ret_and_the_size() {
    let hop = NextHop::start();
    let node = Node::start(&Setup { extra: "[bounce]\nreturn_max = \"4 KiB\"\n", ..Setup::to(hop.address) });
    let mut client = Client::greeted(node.address);
    let large = "text of a line that is long enough to fill\r\n".repeat(200);
    for (index, (ret, body, whole)) in
        [("", "small", true), (" RET=FULL", "small", true), (" RET=HDRS", "small", false), (" RET=FULL", large.as_str(), false)]
            .iter()
            .enumerate()
    {
        send(&mut client, &format!("MAIL FROM:<a{index}@x.test>{ret}"), &["<no-b@z.test>"], &format!("Subject: s\r\n\r\n{body}"));
        let reports = wait_for_reports(&hop, &node, index + 1);
        let report = parsed(reports.iter().find(|message| message.recipients == [format!("a{index}@x.test")]).unwrap());
        let returned = &report["returned"];
        let text = returned["text"].as_str().unwrap();
        assert!(text.contains("Subject: s") && text.contains("Received: from client.x.test"), "{report}");
        assert_eq!(text.contains(&body[..5]), *whole, "{ret}: {text}");
        assert_eq!(returned["type"], if *whole { "message/rfc822" } else { "text/rfc822-headers" });
    }
    // Written in chunks, since it does not fit into one record.
    let huge = "text of a line that is long enough to fill\r\n".repeat(20_000);
    send(&mut client, "MAIL FROM:<huge@x.test>", &["<no-b@z.test>"], &format!("Subject: huge\r\n\r\n{huge}"));
    let reports = wait_for_reports(&hop, &node, 5);
    let text = parsed(reports.last().unwrap())["returned"]["text"].as_str().unwrap().to_owned();
    assert!(text.contains("Subject: huge") && !text.contains("text of"), "{text}");
    node.wait_for_queue(<[_]>::is_empty);
}

/// NOTIFY against what becomes of a recipient, with and without DSN at the next hop.
#[test]
fn notify_decides_which_reports_there_are() {
    for hop_has_dsn in [false, true] {
        let hop = NextHop::start();
        if hop_has_dsn {
            hop.offer(&["DSN"]);
        }
        let node = Node::start(&Setup { retries: SOON, ..Setup::to(hop.address) });
        let mut client = Client::greeted(node.address);
        let mut expected: BTreeMap<String, &str> = BTreeMap::new();
        let notifies = ["", "NEVER", "SUCCESS", "FAILURE", "DELAY", "SUCCESS,FAILURE,DELAY"];
        for notify in notifies {
            for outcome in ["ok", "no", "later"] {
                let sender = format!("from-{outcome}-{}@x.test", notify.replace(',', "-").to_ascii_lowercase());
                let parameter = if notify.is_empty() { String::new() } else { format!(" NOTIFY={notify}") };
                send(&mut client, &format!("MAIL FROM:<{sender}>"), &[&format!("<{outcome}-b@z.test>{parameter}")], "Subject: s\r\n\r\nb");
                let wants = |word: &str| notify.contains(word);
                let action = match outcome {
                    "ok" if wants("SUCCESS") && !hop_has_dsn => Some("relayed"),
                    "no" if wants("FAILURE") || notify.is_empty() => Some("failed"),
                    "later" if wants("DELAY") || notify.is_empty() => Some("delayed"),
                    _ => None,
                };
                expected.extend(action.map(|action| (sender, action)));
            }
        }
        wait_for_reports(&hop, &node, expected.len());
        // Warned after all others: what they would be told of has been told by then.
        send(&mut client, "MAIL FROM:<last@x.test>", &["<later-b@z.test> NOTIFY=DELAY"], "Subject: s\r\n\r\nb");
        expected.insert("last@x.test".into(), "delayed");
        let reports = wait_for_reports(&hop, &node, expected.len());
        let told: BTreeMap<String, String> = reports
            .iter()
            .map(|message| {
                let report = parsed(message);
                let group = &report["recipients"][0];
                let (action, status) = (group["action"].as_str().unwrap().to_owned(), group["status"].as_str().unwrap());
                let class = match action.as_str() {
                    "failed" => "5.",
                    "delayed" => "4.",
                    _ => "2.",
                };
                assert!(status.starts_with(class), "{report}");
                assert_eq!(group["will-retry-until"].is_string(), action == "delayed", "{report}");
                (message.recipients[0].clone(), action)
            })
            .collect();
        assert_eq!(reports.len(), told.len(), "nobody is told twice");
        assert_eq!(
            told,
            expected.into_iter().map(|(sender, action)| (sender, action.to_owned())).collect(),
            "DSN at the hop: {hop_has_dsn}"
        );
        // What was passed on was asked of the next hop, and reports of its own were told to be kept from it.
        let messages = hop.messages();
        let said = |sender: &str| messages.iter().find(|message| message.sender == sender).unwrap().commands[1].contains("NOTIFY=SUCCESS");
        assert_eq!(said("from-ok-success@x.test"), hop_has_dsn);
        assert!(
            messages.iter().filter(|message| is_report(message)).all(|report| report.commands[1].contains("NOTIFY=NEVER") == hop_has_dsn)
        );
        // Only what is still tried is left.
        let queue = node.wait_for_queue(|queue| queue.len() == notifies.len() + 1);
        assert!(queue.iter().all(|message| message["recipients"][0]["state"] != "failed"), "{queue:?}");
    }
}

/// DNS that did not answer was reported as a host that did not, and to all whose mail waited what the next hop had said to one of them.
#[test]
fn a_delay_is_told_by_the_status_and_the_word_of_whoever_failed() {
    let hop = NextHop::start();
    let extra = format!(
        "[[route]]\ndomain = \"z.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n[[route]]\ndomain = \"mx.test\"\nvia = \"mx\"\n\
         [dns]\nservers = [\"{}\"]\ntimeout = \"1s\"\nattempts = 1\n",
        hop.address,
        broken_name_server()
    );
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"1h\"\nwarn_after = \"1s\"\n[delivery]\nthrottle_pause = \"10m\"\ndead_destination = \"1h\"\n";
    let node = Node::start(&Setup { retries, extra: extra.leak(), ..Setup::to(hop.address) });
    let mut client = Client::greeted(node.address);
    send(&mut client, "MAIL FROM:<a@x.test>", &["<much-b@z.test>"], "Subject: s\r\n\r\nb");
    node.wait_for_queue(|queue| queue.first().is_some_and(|message| message["recipients"][0]["state"] == "deferred"));
    send(&mut client, "MAIL FROM:<b@x.test>", &["<c@z.test>"], "Subject: s\r\n\r\nb");
    send(&mut client, "MAIL FROM:<c@x.test>", &["<d@mx.test>"], "Subject: s\r\n\r\nb");
    let reports = wait_for_reports(&hop, &node, 3);
    for (to, status, diagnostic) in [
        ("a@x.test", "4.7.0", "smtp; 421 4.7.0 Too many messages from you, slow down"),
        // What was said to the mail of another sender is not this one's to read.
        ("b@x.test", "4.4.5", "x-ringpost; 451 4.4.5 the destination asked for less mail"),
        ("c@x.test", "4.4.3", "x-ringpost; 451 4.4.3 MX of mx.test: SERVFAIL"),
    ] {
        let report = parsed(reports.iter().find(|report| report.recipients == [to]).unwrap());
        let group = &report["recipients"][0];
        assert_eq!((&group["action"], &group["status"]), (&"delayed".into(), &status.into()), "{report}");
        assert_eq!(group["diagnostic-code"], diagnostic, "{report}");
    }
}

#[test]
fn a_next_hop_and_its_words_are_named_in_successes_and_after_a_restart() {
    let hop = NextHop::start();
    let mut node = Node::start(&Setup { extra: "[bounce]\nenabled = false\n", retries: SOON, ..Setup::to(hop.address) });
    let mut client = Client::greeted(node.address);
    send(&mut client, "MAIL FROM:<a@x.test>", &["<no-b@z.test>", "<later-c@z.test>"], "Subject: s\r\n\r\nb");
    node.wait_for_queue(|queue| {
        let state = |number: usize| queue.first().map(|message| message["recipients"][number]["state"].clone());
        state(0) == Some("failed".into()) && state(1) == Some("deferred".into())
    });
    node.kill();
    node.reconfigure(&Setup { retries: SOON, address: node.address, ..Setup::to(hop.address) });
    node.restart();
    let told = wait_for_reports(&hop, &node, 2);
    for (action, path, diagnostic) in
        [("failed", "no-b@z.test", "smtp; 550 5.1.1 No such user"), ("delayed", "later-c@z.test", "smtp; 450 4.2.1 Later")]
    {
        let report = told.iter().map(parsed).find(|report| report["recipients"][0]["action"] == action).unwrap();
        let group = &report["recipients"][0];
        assert_eq!(group["final-recipient"], format!("rfc822; {path}"));
        assert_eq!((&group["remote-mta"], &group["diagnostic-code"]), (&"dns; [127.0.0.1]".into(), &diagnostic.into()), "{report}");
    }
    let mut client = Client::greeted(node.address);
    send(&mut client, "MAIL FROM:<glad@x.test>", &["<b@z.test> NOTIFY=SUCCESS"], "Subject: s\r\n\r\nb");
    let told = wait_for_reports(&hop, &node, 3);
    let report = parsed(told.iter().find(|message| message.recipients == ["glad@x.test"]).unwrap());
    let group = &report["recipients"][0];
    assert_eq!((&group["action"], &group["status"]), (&"relayed".into(), &"2.0.0".into()));
    assert_eq!((&group["remote-mta"], &group["diagnostic-code"]), (&"dns; [127.0.0.1]".into(), &"smtp; 250 2.0.0 Ok".into()));
}

/// RFC 2852 4.1: BY with T.
#[test]
fn a_traced_message_is_reported_at_each_next_hop_that_takes_it() {
    let hop = NextHop::start();
    hop.offer(&["DSN", "DELIVERBY"]);
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    let recipients = ["<b@z.test>", "<c@z.test> NOTIFY=SUCCESS", "<d@z.test> NOTIFY=NEVER"];
    send(&mut client, "MAIL FROM:<a@x.test> BY=600;NT", &recipients, "Subject: s\r\n\r\nb");
    let report = parsed(&wait_for_reports(&hop, &node, 1)[0]);
    let groups = report["recipients"].as_array().unwrap();
    let told: Vec<_> = groups.iter().map(|group| (group["final-recipient"].as_str().unwrap(), group["action"].as_str().unwrap())).collect();
    assert_eq!(told, [("rfc822; b@z.test", "relayed"), ("rfc822; c@z.test", "relayed")]);
    node.wait_for_queue(<[_]>::is_empty);
    let passed = hop.messages();
    let passed = passed.iter().find(|message| message.sender == "a@x.test").unwrap();
    assert!(passed.commands[0].contains(" BY=") && passed.commands[0].contains(";NT"), "it is passed on: {:?}", passed.commands);
    // The same without T, at a hop that reports itself: nobody is told here.
    send(&mut client, "MAIL FROM:<other@x.test> BY=600;N", &recipients, "Subject: s\r\n\r\nb");
    node.wait_for_queue(<[_]>::is_empty);
    hop.wait_for(3);
    assert_eq!(hop.messages().iter().filter(|message| is_report(message)).count(), 1);
}

/// With N and without T nobody was told, and the sender waited for the word on a delay that nobody would give.
#[test]
fn a_sender_is_told_where_its_time_is_not_watched_any_more() {
    for offer in [&["DSN"][..], &[]] {
        let hop = NextHop::start();
        hop.offer(offer);
        let node = Node::start(&Setup::to(hop.address));
        let mut client = Client::greeted(node.address);
        let recipients = ["<b@z.test>", "<c@z.test> NOTIFY=FAILURE", "<d@z.test> NOTIFY=NEVER"];
        send(&mut client, "MAIL FROM:<a@x.test> BY=600;N", &recipients, "Subject: s\r\n\r\nb");
        let report = parsed(&wait_for_reports(&hop, &node, 1)[0]);
        let groups = report["recipients"].as_array().unwrap();
        let told: Vec<_> =
            groups.iter().map(|group| (group["final-recipient"].as_str().unwrap(), group["action"].as_str().unwrap())).collect();
        assert_eq!(told, [("rfc822; b@z.test", "relayed"), ("rfc822; c@z.test", "relayed")], "{offer:?}");
        node.wait_for_queue(<[_]>::is_empty);
    }
}

#[test]
fn a_discarded_message_was_delivered() {
    let hop = NextHop::start();
    let extra = format!("[[route]]\ndomain = \"x.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hop.address);
    let node = Node::start(&Setup { route: "via = \"discard\"".into(), extra: extra.leak(), ..Setup::new() });
    send(&mut Client::greeted(node.address), "MAIL FROM:<a@x.test>", &["<b@z.test> NOTIFY=SUCCESS"], "Subject: s\r\n\r\nb");
    let report = parsed(&wait_for_reports(&hop, &node, 1)[0]);
    assert_eq!((&report["recipients"][0]["action"], &report["recipients"][0]["status"]), (&"delivered".into(), &"2.0.0".into()));
}

#[test]
fn mail_with_smtputf8_is_reported_in_its_own_script() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    send(&mut client, "MAIL FROM:<m\u{fc}ller@x.test> SMTPUTF8", &["<no-gr\u{fc}n@z.test>"], "Subject: gr\u{fc}n\r\n\r\nb");
    let message = &wait_for_reports(&hop, &node, 1)[0];
    assert!(message.commands[0].contains("SMTPUTF8"), "{:?}", message.commands);
    let report = parsed(message);
    assert_eq!(report["status_type"], "message/global-delivery-status");
    for part in ["Final-Recipient: utf-8; no-gr\u{fc}n@z.test\r\n", "Content-Type: message/global\r\n", "To: <m\u{fc}ller@x.test>\r\n"] {
        assert!(message.text().contains(part), "{part:?}: {}", message.text());
    }
}

/// Its headers beyond ASCII went to next hops as they are, without SMTPUTF8.
#[test]
fn mail_with_smtputf8_of_a_plain_sender_is_reported_in_seven_bits() {
    let hop = NextHop::start();
    let node = Node::start(&Setup::to(hop.address));
    let mut client = Client::greeted(node.address);
    send(&mut client, "MAIL FROM:<a@x.test> SMTPUTF8", &["<no-gr\u{fc}n@z.test>"], "Subject: gr\u{fc}n\r\n\r\nb");
    let message = &wait_for_reports(&hop, &node, 1)[0];
    assert!(!message.commands[0].contains("SMTPUTF8") && !message.commands[0].contains("8BITMIME"), "{:?}", message.commands);
    assert!(message.wire.is_ascii(), "{}", message.text());
    for part in ["Final-Recipient: utf-8; no-gr=C3=BCn@z.test\r\n", "Content-Type: message/global\r\n", "Subject: gr=C3=BCn\r\n"] {
        assert!(message.text().contains(part), "{part:?}: {}", message.text());
    }
}

#[test]
fn a_storm_waits_in_the_queue_and_is_visible_there() {
    let hop = NextHop::start();
    // Split over the shards: two a minute for the one that has the session.
    let node = Node::start(&Setup {
        extra: "[shards]\nper_core = 2\ncores = \"0\"\n[bounce]\nreports_per_minute_and_sender = 4\n",
        ..Setup::to(hop.address)
    });
    let mut client = Client::greeted(node.address);
    for _ in 0..5 {
        send(&mut client, "MAIL FROM:<a@x.test>", &["<no-b@z.test>"], "Subject: s\r\n\r\nb");
    }
    wait_for_reports(&hop, &node, 2);
    let queue = node.wait_for_queue(|queue| queue.len() == 3 && queue.iter().all(|message| message["recipients"][0]["state"] == "failed"));
    assert!(queue[0]["recipients"][0]["last_reply"].as_str().is_some_and(|reply| reply.contains("550 5.1.1")), "{queue:?}");
    // Another sender does not wait.
    send(&mut client, "MAIL FROM:<other@x.test>", &["<no-b@z.test>"], "Subject: s\r\n\r\nb");
    assert!(wait_for_reports(&hop, &node, 3).iter().any(|report| report.recipients == ["other@x.test"]));
}

#[test]
fn without_bounces_what_failed_stays_until_a_command() {
    let hop = NextHop::start();
    let node = Node::start(&Setup { extra: "[bounce]\nenabled = false\n", ..Setup::to(hop.address) });
    let id = send(&mut Client::greeted(node.address), "MAIL FROM:<a@x.test>", &["<no-b@z.test>"], "Subject: s\r\n\r\nb");
    node.wait_for_queue(|queue| queue.first().is_some_and(|message| message["recipients"][0]["state"] == "failed"));
    assert!(node.ask(&["queue", "delete", &id]).status.success());
    node.wait_for_queue(<[_]>::is_empty);
    assert!(hop.messages().is_empty());
}

/// Killed at any moment between the refusal and the report, nobody is left untold, and no report that is durable is made again.
#[test]
fn no_report_is_lost_by_kill_9() {
    let hop = NextHop::start();
    let setup = Setup::to(hop.address);
    let mut node = Node::start(&setup);
    let mut expected = BTreeSet::new();
    for round in 0..8 {
        let mut client = Client::greeted(node.address);
        for number in 0..25 {
            let sender = format!("a{round}-{number}@x.test");
            send(&mut client, &format!("MAIL FROM:<{sender}>"), &["<no-b@z.test>", "<later-c@z.test>"], "Subject: s\r\n\r\nb");
            expected.insert(sender);
        }
        std::thread::sleep(Duration::from_millis(round * 3));
        node.kill();
        node.restart();
    }
    let began = Instant::now();
    loop {
        let reports: Vec<_> = hop.messages().into_iter().filter(is_report).collect();
        let told: BTreeSet<String> = reports.iter().map(|report| report.recipients[0].clone()).collect();
        if told == expected {
            break;
        }
        assert!(began.elapsed() < PATIENCE * 2, "{} of {} told", told.len(), expected.len());
        std::thread::sleep(Duration::from_millis(50));
    }
    // Each report has an id of its own; one that came twice was sent before its outcome was written.
    let queue = node.wait_for_queue(|queue| queue.len() == expected.len());
    for message in &queue {
        let states: Vec<_> =
            message["recipients"].as_array().unwrap().iter().map(|recipient| recipient["state"].as_str().unwrap()).collect();
        assert_eq!(states[0], "bounced", "{message}");
    }
    let reports: Vec<_> = hop.messages().into_iter().filter(is_report).collect();
    let id_of = |report: &Message| report.text().lines().find(|line| line.starts_with("Message-ID:")).unwrap().to_owned();
    let distinct: BTreeSet<String> = reports.iter().map(id_of).collect();
    eprintln!("{} senders, {} reports made, {} sent, 8 kills", expected.len(), distinct.len(), reports.len());
    assert_eq!(distinct.len(), expected.len(), "a report in the spool is found and not made again");
}

/// That the texts of the config are what people read was seen by no test.
#[test]
fn a_report_says_what_the_config_says_also_after_a_reload() {
    let hop = NextHop::start();
    let with = |extra| Setup { extra, ..Setup::to(hop.address) };
    let setup = with("[bounce]\nfailed_text = \"Gone, {sender}: {recipients} ({id}, {arrival}, {hostname})\"\n");
    let node = Node::start(&setup);
    let mut client = Client::greeted(node.address);
    let id = send(&mut client, "MAIL FROM:<a@x.test>", &["<no-b@z.test>"], "Subject: x\r\n\r\nx");
    let first = parsed(&wait_for_reports(&hop, &node, 1)[0]);
    let (text, arrival) = (first["text"].as_str().unwrap(), first["message"]["arrival-date"].as_str().unwrap());
    assert!(text.starts_with("Gone, a@x.test: ") && text.contains("no-b@z.test") && text.contains("550 5.1.1 No such user"), "{text}");
    assert!(text.trim_end().ends_with(&format!("({id}, {arrival}, mx1.example.test)")), "{text} {arrival}");
    node.reconfigure(&Setup { address: setup.address, ..with("[bounce]\nfailed_text = \"Still gone: {recipients}\"\n") });
    assert!(node.ask(&["reload"]).status.success(), "{}", node.log());
    send(&mut client, "MAIL FROM:<a@x.test>", &["<no-c@z.test>"], "Subject: x\r\n\r\nx");
    let second = parsed(&wait_for_reports(&hop, &node, 2)[1]);
    let text = second["text"].as_str().unwrap();
    assert!(text.starts_with("Still gone: ") && text.contains("no-c@z.test") && !text.contains("a@x.test"), "{text}");
}
