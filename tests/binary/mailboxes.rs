//! Mail that ends in mailboxes: a store that speaks LMTP, and maildirs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::node::{Node, PATIENCE, Setup};
use crate::shards::{counter, on_one_core};
use crate::store::Store;

fn lmtp(host: &str) -> Setup {
    Setup { route: format!("via = \"lmtp\"\nhosts = [\"{host}\"]"), extra: UNTOLD, ..Setup::new() }
}

/// Reports to senders would go to the same mailboxes.
const UNTOLD: &str = "[bounce]\nenabled = false\n";

fn send(node: &Node, recipients: &[&str], content: &str) {
    send_over(&mut Client::greeted(node.address), recipients, content);
}

fn send_over(client: &mut Client, recipients: &[&str], content: &str) {
    client.must("MAIL FROM:<a@x.test>", "250 2.1.0");
    for recipient in recipients {
        client.must(&format!("RCPT TO:<{recipient}>"), "250 2.1.5");
    }
    client.must("DATA", "354");
    client.must(&format!("{content}\r\n."), "250 2.0.0");
}

#[test]
fn a_store_answers_for_each_recipient_and_those_it_deferred_come_again_alone() {
    let (store, address) = Store::over_tcp();
    store.answer("full@z.test", "452 4.2.2 over quota");
    store.answer("gone@z.test", "550 5.2.1 disabled");
    let node = Node::start(&lmtp(&address.to_string()));
    send(&node, &["b@z.test", "full@z.test", "nobody@z.test", "gone@z.test", "c@z.test"], "Subject: one\r\n\r\ntext");
    let saved = store.wait_for(3);
    assert_eq!(saved.iter().map(|(to, _)| to.as_str()).collect::<Vec<_>>(), ["b@z.test", "c@z.test", "full@z.test"]);
    assert!(saved[0].1.contains("Subject: one\r\n"));
    node.wait_for_mail_log("to=<full@z.test> relay=127.0.0.1");
    let log = node.wait_for_mail_log("to=<gone@z.test>");
    for (to, word) in [
        ("gone@z.test", "dsn=5.2.1 outcome=bounced"),
        ("nobody@z.test", "dsn=5.1.1 outcome=bounced"),
        ("full@z.test", "dsn=4.2.2 outcome=deferred"),
    ] {
        assert!(log.lines().any(|line| line.contains(&format!("to=<{to}>")) && line.contains(word)), "{to}: {log}");
    }
}

#[test]
fn a_store_that_breaks_off_between_its_answers_gets_only_the_unanswered_again() {
    let (store, address) = Store::over_tcp();
    store.answer("c@z.test", "close");
    let node = Node::start(&lmtp(&address.to_string()));
    send(&node, &["b@z.test", "c@z.test", "d@z.test"], "Subject: x\r\n\r\n");
    let saved = store.wait_for(3);
    assert_eq!(saved.iter().map(|(to, _)| to.as_str()).collect::<Vec<_>>(), ["b@z.test", "c@z.test", "d@z.test"]);
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(store.saved().len(), 3, "nothing twice");
}

#[test]
fn what_a_store_has_answered_survives_a_kill_while_it_is_silent_about_the_rest() {
    let (store, address) = Store::over_tcp();
    let mut node = Node::start(&on_one_core(lmtp(&address.to_string()), 1));
    store.answer("c@z.test", "silence");
    send(&node, &["a@z.test", "b@z.test", "c@z.test"], "Subject: x\r\n\r\n");
    for recipient in ["a", "b"] {
        node.wait_for_mail_log(&format!("to=<{recipient}@z.test> relay={address}"));
    }
    // Durable behind them in the same log.
    send(&node, &["d@z.test"], "Subject: later\r\n\r\n");
    node.kill();
    node.restart();
    store.wait_for(4);
    node.wait_for_queue(<[_]>::is_empty);
    let saved = store.saved();
    let to: Vec<_> = saved.iter().map(|(recipient, _)| recipient.as_str()).collect();
    let (first, later) = to.split_at(to.len().min(3));
    assert_eq!(first, ["a@z.test", "b@z.test", "c@z.test"], "nothing twice: {to:?}");
    // It may have been there before the kill, which swallowed that.
    assert!(!later.is_empty() && later.iter().all(|recipient| *recipient == "d@z.test"), "{to:?}");
}

/// Only the shard with the connection knew, until the last answer.
#[test]
fn what_a_store_has_answered_another_shard_survives_a_kill_too() {
    let (store, address) = Store::over_tcp();
    let retries = "[delivery]\nconnections_max = 4\n";
    let mut node = Node::start(&on_one_core(Setup { retries, ..lmtp(&address.to_string()) }, 2));
    store.answer("c@z.test", "silence");
    // One whose mail the other shard delivers.
    let (mut clients, began): (Vec<Client>, _) = (Vec::new(), Instant::now());
    let mut client = loop {
        assert!(began.elapsed() < PATIENCE, "one shard is no home");
        let mut client = Client::greeted(node.address);
        let before = counter(&node, "dispatched_to_homes");
        client.deliver("w@z.test", "Subject: first\r\n\r\n");
        store.wait_for(clients.len() + 1);
        if counter(&node, "dispatched_to_homes") > before {
            break client;
        }
        clients.push(client);
    };
    let count = clients.len() + 1;
    send_over(&mut client, &["a@z.test", "b@z.test", "c@z.test"], "Subject: x\r\n\r\n");
    for recipient in ["a", "b"] {
        node.wait_for_mail_log(&format!("to=<{recipient}@z.test> relay={address}"));
    }
    // Durable behind them in the same log.
    client.deliver("d@z.test", "Subject: later\r\n\r\n");
    node.kill();
    node.restart();
    let saved = store.wait_for(count + 4);
    node.wait_for_queue(<[_]>::is_empty);
    for recipient in ["a", "b", "c"] {
        let copies = saved.iter().filter(|(to, _)| to.starts_with(recipient)).count();
        assert_eq!(copies, 1, "{recipient}: {saved:?}");
    }
}

/// Each answer was recorded by itself, with all before it: for a thousand recipients that was up to a hundred megabytes.
#[test]
fn answers_that_come_one_by_one_are_recorded_together() {
    let (store, address) = Store::over_tcp();
    store.set_pause(Duration::from_millis(1));
    let node = Node::start(&on_one_core(lmtp(&address.to_string()), 1));
    let recipients: Vec<String> = (0..1000).map(|number| format!("r{number}@z.test")).collect();
    send(&node, &recipients.iter().map(String::as_str).collect::<Vec<_>>(), "Subject: x\r\n\r\n");
    store.wait_for(1000);
    node.wait_for_queue(<[_]>::is_empty);
    let written = counter(&node, "batch_bytes");
    assert!(written < 1_000_000, "{written} octets");
}

#[test]
fn a_socket_in_the_file_system_is_a_store_too_and_its_connection_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lmtp.sock");
    let node = Node::start(&lmtp(&format!("unix:{}", path.display())));
    // Not there yet: deferred, with the reason.
    send(&node, &["b@z.test"], "Subject: early\r\n\r\n");
    let log = node.wait_for_mail_log("outcome=deferred");
    assert!(log.contains(&format!("connect to unix:{}", path.display())), "{log}");
    let store = Store::at(&path);
    store.wait_for(1);
    for number in 0..5 {
        send(&node, &["b@z.test", "c@z.test"], &format!("Subject: {number}\r\n\r\n"));
    }
    store.wait_for(11);
    assert!(store.connections() < 6, "{} connections", store.connections());
    assert!(node.wait_for_mail_log("outcome=delivered").contains(&format!("relay=unix:{}", path.display())));
}

fn maildirs() -> Setup {
    Setup { route: "via = \"maildir\"\npath = \"mail/{domain}/{local}\"".into(), extra: UNTOLD, ..Setup::new() }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default();
    files.sort();
    files
}

fn wait_for_files(folder: &Path, count: usize) -> Vec<PathBuf> {
    let began = Instant::now();
    while files(folder).len() < count {
        assert!(began.elapsed() < PATIENCE, "{:?}", files(folder));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    files(folder)
}

#[test]
fn each_recipient_gets_a_file_with_line_feeds_and_where_it_came_from() {
    let node = Node::start(&maildirs());
    send(&node, &["Bob@Z.test", "carl+x@z.test", "\"..\"@z.test", "\"a/b\"@z.test"], "Subject: x\r\n\r\n..dot\r\nend");
    let mail = node.folder.path().join("mail");
    let file = wait_for_files(&mail.join("z.test/bob/new"), 1).remove(0);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("Return-Path: <a@x.test>\nDelivered-To: Bob@z.test\nReceived: from client.x.test"), "{text}");
    assert!(text.ends_with("\nSubject: x\n\n.dot\nend\n") && !text.contains('\r'), "{text:?}");
    assert!(file.to_str().unwrap().ends_with(&format!(".mx1.example.test,S={}", text.len())), "{}", file.display());
    wait_for_files(&mail.join("z.test/carl+x/new"), 1);
    let log = node.wait_for_mail_log("5.1.3");
    assert_eq!(log.matches("dsn=5.1.3 outcome=bounced").count(), 2, "{log}");
    assert_eq!(files(&mail), [mail.join("z.test")], "nothing outside");
    assert_eq!(files(&mail.join("z.test")).len(), 2);
}

#[test]
fn a_large_message_arrives_whole() {
    let node = Node::start(&maildirs());
    let body = ("0123456789abcdef".repeat(4) + "\r\n").repeat(20_000) + "end";
    send(&node, &["b@z.test"], &format!("Subject: large\r\n\r\n{body}"));
    let file = wait_for_files(&node.folder.path().join("mail/z.test/b/new"), 1).remove(0);
    let text = fs::read_to_string(file).unwrap();
    assert!(text.split_once("\n\n").unwrap().1 == body.replace('\r', "") + "\n", "{} octets", text.len());
}

#[test]
fn a_mailbox_that_cannot_be_written_is_deferred_with_the_reason_and_filled_later() {
    let node = Node::start(&maildirs());
    let mail = node.folder.path().join("mail");
    fs::create_dir_all(mail.join("z.test")).unwrap();
    fs::write(mail.join("z.test/b"), b"a file in its place").unwrap();
    send(&node, &["b@z.test", "c@z.test"], "Subject: x\r\n\r\n");
    wait_for_files(&mail.join("z.test/c/new"), 1);
    let log = node.wait_for_mail_log("outcome=deferred");
    assert!(log.contains("451 4.3.0 writing the mailbox"), "{log}");
    fs::remove_file(mail.join("z.test/b")).unwrap();
    wait_for_files(&mail.join("z.test/b/new"), 1);
    node.wait_for_queue(<[_]>::is_empty);
    assert_eq!(files(&mail.join("z.test/c/new")).len(), 1);
    assert_eq!(fs::metadata(mail.join("z.test/c/new")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_delivery_whose_outcome_a_kill_swallowed_is_not_made_twice() {
    let mut node = Node::start(&maildirs());
    let mail = node.folder.path().join("mail/z.test");
    // Kills at ever other moments: between the rename and the record of the outcome there are some milliseconds.
    for round in 0..8 {
        for number in 0..10 {
            send(&node, &[&format!("b{number}@z.test")], &format!("Subject: {round}\r\n\r\n"));
        }
        std::thread::sleep(std::time::Duration::from_millis(round));
        node.kill();
        node.restart();
    }
    node.wait_for_queue(<[_]>::is_empty);
    for number in 0..10 {
        let folder = mail.join(format!("b{number}"));
        assert_eq!(files(&folder.join("new")).len(), 8, "{number}");
        assert_eq!(files(&folder.join("tmp")).len(), 0, "{number}");
    }
}
