//! Networks that carry some of what a node says to Valkey, or one direction of it.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use ringpost_cluster::script::Scripts;

use super::{
    proxy::{DOWN, Passage, proxy, runs},
    shared_mail::{ONLY_OFFERS, SHARES, mail_rig},
    *,
};

const MAILS: usize = 12;

impl Rig {
    /// This node reaches Valkey by way of a proxy.
    pub(super) fn by_way_of(&self, node: usize, rule: impl Fn(&[Vec<u8>]) -> Passage + Send + Sync + 'static) {
        let port = proxy(self.valkey_port, rule);
        self.nodes[node].set(&format!("valkey://127.0.0.1:{}", self.valkey_port), &format!("valkey://127.0.0.1:{port}"));
    }

    pub(super) fn load(&self, script: &'static str) {
        let text = Scripts::shipped().named(script).source();
        let mut stream = TcpStream::connect(("127.0.0.1", self.valkey_port)).unwrap();
        write!(stream, "*3\r\n$6\r\nSCRIPT\r\n$4\r\nLOAD\r\n${}\r\n{text}\r\n", text.len()).unwrap();
        assert_eq!(BufReader::new(stream).lines().next().unwrap().unwrap(), "$40");
    }

    pub(super) fn messages_at(&self, node: usize) -> Option<usize> {
        let (code, text, _) = self.nodes[node].ringpost("queue", &["ls", "--json"]);
        (code == 0).then(|| text.lines().count())
    }
}

fn is_subscription(words: &[Vec<u8>]) -> bool {
    words.first().is_some_and(|word| word.eq_ignore_ascii_case(b"SUBSCRIBE"))
}

/// The owner hears of no completion, and asks.
#[test]
fn an_owner_that_reaches_commands_and_no_messages_settles_what_others_have() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.by_way_of(0, |words| if is_subscription(words) { Passage::Lost } else { Passage::Through });
    rig.start_node(0);
    rig.start_node(1);
    rig.send(0, MAILS);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
    // Its next round comes within ten seconds.
    wait_for("an empty spool", || rig.messages_at(0).filter(|count| *count == 0));
    assert_eq!(rig.all_there(MAILS), Some(MAILS));
}

/// Messages come in over their own connection, and no call is answered: for its mail that is as if Valkey were away.
#[test]
fn a_node_that_reaches_messages_and_no_commands_delivers_by_itself() {
    let mut rig = mail_rig(&[SHARES]);
    let is_whole = Arc::new(AtomicBool::new(true));
    let seen = is_whole.clone();
    rig.by_way_of(0, move |words| {
        let is_call = words.first().is_some_and(|word| word.eq_ignore_ascii_case(b"EVALSHA") || word.eq_ignore_ascii_case(b"EVAL"));
        if is_call && !seen.load(Ordering::SeqCst) { Passage::Lost } else { Passage::Through }
    });
    rig.start_node(0);
    is_whole.store(false, Ordering::SeqCst);
    rig.send(0, MAILS);
    assert_eq!(wait_for("its own delivery", || rig.all_there(MAILS)), MAILS);
    is_whole.store(true, Ordering::SeqCst);
    rig.send(MAILS, 2 * MAILS);
    assert_eq!(wait_for("delivery as before", || rig.all_there(2 * MAILS)), 2 * MAILS, "each once");
    wait_for("an empty queue", || (rig.pending(0)? == 0).then_some(()));
}

/// What a worker says arrives, and it hears nothing: the owner has settled, and the only copies wait as claims.
#[test]
fn a_worker_whose_completions_arrive_and_are_not_answered_keeps_the_mail() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    let is_whole = Arc::new(AtomicBool::new(false));
    let seen = is_whole.clone();
    rig.by_way_of(
        1,
        move |words| {
            if runs(words, "queue_complete") && !seen.load(Ordering::SeqCst) { Passage::OneWay } else { Passage::Through }
        },
    );
    rig.start_node(0);
    // Valkey knows it already, as from another worker: its first answer would else be that it does not.
    rig.load("queue_complete");
    rig.start_node(1);
    rig.send(0, MAILS);
    // Each call without an answer opens the circuit, for longer each time.
    wait_within(3 * PATIENCE, "settling by the owner", || rig.messages_at(0).filter(|count| *count == 0));
    assert_eq!(rig.all_there(0), Some(0), "the worker does not know whose they are");
    // Not for want of time.
    rig.nodes[1].process = None;
    rig.start_node(1);
    assert_eq!(rig.all_there(0), Some(0));
    is_whole.store(true, Ordering::SeqCst);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
}

/// The answers of the other parts ended the outage each time: what was offered there was taken by nobody, and not delivered here either.
#[test]
fn mail_for_a_part_of_valkey_that_is_away_is_delivered_here() {
    let mut rig = mail_rig(&[SHARES]);
    // The part to which the first mail goes, and about a quarter of what comes next.
    let part: OnceLock<Vec<u8>> = OnceLock::new();
    rig.by_way_of(0, move |words| {
        let keys = || words.iter().filter(|word| word.starts_with(b"{ringpost:cluster:q:email_delivery:"));
        let part_of = |key: &[u8]| key.split(|byte| *byte == b'}').next().map(<[u8]>::to_vec);
        if runs(words, "queue_enqueue")
            && let Some(first) = keys().next().and_then(|key| part_of(key))
        {
            part.get_or_init(|| first);
        }
        if keys().any(|key| part_of(key).as_ref() == part.get()) { Passage::Instead(DOWN) } else { Passage::Through }
    });
    rig.start_node(0);
    rig.send(0, MAILS);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
}

/// A lease ended with 69 and what it had of the other parts was dropped, each with an attempt less; what sees to dead letters stopped at the part that was away
/// and did not say what it had done.
#[test]
fn commands_about_a_queue_do_what_they_can_while_a_part_of_valkey_is_away() {
    let mut rig = mail_rig(&[SHARES]);
    rig.by_way_of(0, |words| {
        let is_away = words.iter().any(|word| word.starts_with(b"{ringpost:cluster:q:report:1}"));
        if is_away { Passage::Instead(DOWN) } else { Passage::Through }
    });
    rig.start_node(0);
    let report = |args: &[&str]| rig.nodes[0].ringpost("cluster", &[&["queue", "--name", "report"], args].concat());
    wait_for("its part in the queue", || (report(&["stats"]).0 == 0).then_some(()));
    let codes: Vec<i32> = (0..16).map(|number| report(&["enqueue", &format!("{number}-report"), "x"]).0).collect();
    let there = codes.iter().filter(|code| **code == 0).count();
    assert!(codes.iter().all(|code| [0, 69].contains(code)) && (1..16).contains(&there), "{codes:?}");
    for _ in 0..there {
        // Several calls in a row to the part that is away had the circuit open, for a moment.
        let leased = wait_for("a lease", || Some(report(&["lease", "--json"])).filter(|(code, ..)| *code == 0)).1;
        assert_eq!(leased.lines().count(), 1);
        let item: serde_json::Value = serde_json::from_str(&leased).unwrap();
        assert_eq!(item["attempts"], 1, "none was leased for nothing");
        let (id, token) = (item["id"].as_str().unwrap(), item["token"].as_str().unwrap());
        assert_eq!(report(&["fail", id, token, "--no-retry"]).0, 0);
    }
    assert_eq!(report(&["lease"]).0, 69, "what is in the other part nobody knows");
    let (code, dead, why) = report(&["dead", "--json"]);
    assert_eq!((code, dead.lines().count()), (69, there), "{why}");
    assert!(why.contains("do not answer") && why.trim_end().ends_with(": 1"), "{why}");
    let (code, swept, _) = report(&["recover", "--json"]);
    assert_eq!((code, swept.trim()), (69, r#"{"count":0,"unanswered":[1]}"#));
    let (code, purged, why) = report(&["purge", "--all", "--json"]);
    assert_eq!((code, purged.trim()), (69, &*format!(r#"{{"count":{there},"unanswered":[1]}}"#)), "{why}");
}
