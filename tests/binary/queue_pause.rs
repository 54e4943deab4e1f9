//! Destinations that are paused by command: what waits, what goes on, what is said of it, and a restart.

use std::process::Output;

use crate::client::Client;
use crate::next_hop::NextHop;
use crate::node::{Node, Setup, ringpost};
use crate::shards::two_shards;

fn deliver(node: &Node, recipient: &str) -> String {
    Client::greeted(node.address).deliver(recipient, "Subject: x\r\n\r\nx")
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn queue(node: &Node, words: &[&str]) -> (Option<i32>, String, String) {
    text(&node.ask(&[&["queue"], words].concat()))
}

fn object(node: &Node, words: &[&str]) -> serde_json::Value {
    let (code, said, told) = queue(node, words);
    serde_json::from_str(said.lines().next().unwrap_or_default()).unwrap_or_else(|_| panic!("{code:?} {said} {told}"))
}

fn to_own(hop: &NextHop) -> Setup {
    let extra: &'static str = format!("[[route]]\ndomain = \"own.test\"\nvia = \"smarthost\"\nhosts = [\"{}\"]\n", hop.address).leak();
    Setup { extra, ..Setup::to(hop.address) }
}

fn is_done(code: Option<i32>, said: &str) -> (Option<i32>, String, String) {
    (code, said.to_owned(), String::new())
}

#[test]
fn what_is_paused_waits_also_after_a_kill_and_the_rest_goes_on() {
    let hop = NextHop::start();
    let mut node = Node::start(&two_shards(to_own(&hop)));
    assert_eq!(queue(&node, &["pause", "OWN.test"]), is_done(Some(0), "paused: OWN.test"));
    let ids = [deliver(&node, "b@own.test"), deliver(&node, "c@own.test")];
    for life in 0..2 {
        deliver(&node, "b@z.test");
        assert_eq!(hop.wait_for(life + 1)[life].recipients, ["b@z.test"]);
        let shown = node.wait_for_queue(|queue| queue.len() == 2);
        for message in &shown {
            let recipient = &message["recipients"][0];
            assert_eq!((&recipient["state"], &recipient["attempts"]), (&"ready".into(), &0.into()), "{message}");
            assert_eq!((&recipient["paused_by"], &message["next_attempt"]), (&"own.test".into(), &serde_json::Value::Null));
            assert_eq!(message["reason"], "destination \"own.test\" is paused by command");
        }
        let why = queue(&node, &["why", &ids[0]]).1;
        let expected =
            "Ready, but the destination \"own.test\" is paused by command until it is resumed by `queue resume own.test`; expires ";
        assert!(why.starts_with(expected), "{why}");
        assert!(queue(&node, &["show", &ids[0]]).1.contains("paused until `queue resume own.test`"));
        let summary = object(&node, &["summary", "--destination", "own.test", "--json"]);
        assert_eq!((&summary["ready"], &summary["wait"]), (&2.into(), &"paused".into()), "{summary}");
        assert_eq!((&summary["paused"], &summary["paused_by"]), (&true.into(), &"own.test".into()));
        assert_eq!(queue(&node, &["pause", "--list"]), is_done(Some(0), "own.test"));
        let again = queue(&node, &["pause", "own.test"]);
        assert_eq!(again, (Some(0), String::new(), "ringpost: paused already: own.test".to_owned()));
        if life == 0 {
            node.kill();
            node.restart();
            assert!(node.log().contains("destinations are paused since an earlier run"), "{}", node.log());
        }
    }
    // It said "they may go already", and nothing of the pause.
    let told = "ringpost: 2 of them wait for destinations that are paused: `ringpost queue resume` lets them go";
    assert_eq!(queue(&node, &["retry", "--all"]), (Some(0), "2 messages retried".to_owned(), told.to_owned()));
    let resumed = object(&node, &["resume", "own.test", "--json"]);
    assert_eq!(resumed, serde_json::json!({"all": false, "paused": [], "changed": ["own.test"], "unchanged": []}));
    hop.wait_for(4);
    node.wait_for_queue(<[_]>::is_empty);
    let unknown = queue(&node, &["resume", "own.test"]);
    assert_eq!(unknown, (Some(0), "nothing is paused".to_owned(), "ringpost: not paused by this name: own.test".to_owned()));
}

#[test]
fn what_is_being_attempted_ends_and_the_next_waits_until_everything_is_resumed() {
    let hop = NextHop::start();
    hop.hold_content(true);
    let retries = "[queue]\nretry_base = \"1h\"\nretry_cap = \"2h\"\n";
    let node = Node::start(&Setup { retries, ..to_own(&hop) });
    deliver(&node, "b@own.test");
    let later = deliver(&node, "later-b@z.test");
    node.wait_for_queue(|queue| {
        let is = |id: &str, state: &str| queue.iter().any(|message| message["id"] == *id && message["recipients"][0]["state"] == *state);
        queue.iter().any(|message| message["recipients"][0]["state"] == "active") && is(&later, "deferred")
    });
    assert_eq!(queue(&node, &["pause", "--all"]), is_done(Some(0), "paused: --all"));
    assert_eq!(queue(&node, &["pause", "own.test"]), is_done(Some(0), "paused: own.test"));
    hop.hold_content(false);
    assert_eq!(hop.wait_for(1)[0].recipients, ["b@own.test"]);
    deliver(&node, "b@y.test");
    node.wait_for_queue(|queue| queue.len() == 2 && queue.iter().all(|message| message["recipients"][0]["paused_by"] == "--all"));
    let why = queue(&node, &["why", &later]).1;
    assert!(why.starts_with("Waits for its next attempt at ") && why.contains(" min), and for the destination \"*\", which is paused by command until it is resumed by `queue resume --all`; the answer of 127.0.0.1:"), "{why}");
    let retried = queue(&node, &["retry", &later]);
    let told = "ringpost: 1 of them wait for destinations that are paused: `ringpost queue resume` lets them go";
    assert_eq!(retried, (Some(0), "1 message retried".to_owned(), told.to_owned()));
    let still = queue(&node, &["resume", "own.test"]);
    let told = "ringpost: own.test stays paused: `ringpost queue resume --all` ends that";
    assert_eq!(still, (Some(1), "resumed: own.test".to_owned(), told.to_owned()));
    assert_eq!(hop.messages().len(), 1);
    assert_eq!(queue(&node, &["resume", "--all"]), is_done(Some(0), "resumed: --all\nnothing is paused"));
    assert_eq!(hop.wait_for(2)[1].recipients, ["b@y.test"]);
}

#[test]
fn what_cannot_be_paused_is_refused_with_what_to_write() {
    let mut node = Node::start(&Setup::new());
    for (words, code, expected) in [
        (&["pause"][..], 2, "which destinations? give names"),
        (&["resume", "y.test", "--all"], 2, "which destinations? give names"),
        (&["pause", "y.test", "--list"], 2, "--list says what is paused"),
        (&["pause", " "], 2, "is empty: write the name"),
        (&["pause", "y.test"], 1, "mail for y.test goes by the route \"*\", which is one destination for all of its mail: pause \"*\""),
        (&["pause", "b@y.test"], 1, "\"b@y.test\" is no destination: `ringpost queue summary` names"),
    ] {
        let (found, _, told) = queue(&node, words);
        assert!(found == Some(code) && told.contains(expected), "{words:?}: {found:?} {told}");
    }
    assert_eq!(queue(&node, &["pause", "--list"]), is_done(Some(0), "nothing is paused"));
    assert!(queue(&node, &["pause", "*"]).0 == Some(0) && node.folder.path().join("spool/paused").exists());
    node.kill();
    // To begin with nothing paused would send what was not to go.
    std::fs::write(node.folder.path().join("spool/paused"), "{").unwrap();
    let config = node.folder.path().join("ringpost.toml");
    let (code, _, told) = text(&ringpost().args(["serve", "-c"]).arg(&config).output().unwrap());
    assert!(code == Some(74) && told.contains("does not say which destinations are paused"), "{code:?} {told}");
}
