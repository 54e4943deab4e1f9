//! Mail shared between nodes: one accepts and only offers, the others deliver, whatever happens to them and to Valkey.

use std::path::Path;

use super::*;

const MAILS: usize = 60;

/// Files in the maildirs under `folder`, by their subject.
pub fn delivered(folder: &Path) -> Vec<String> {
    let mut subjects = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.parent().is_some_and(|parent| parent.ends_with("new"))
                && let Ok(text) = fs::read_to_string(&path)
            {
                subjects.extend(text.lines().find_map(|line| line.strip_prefix("Subject: ")).map(str::to_owned));
            }
        }
    }
    subjects.sort_unstable();
    subjects
}

/// Nodes with these `[delivery]` sections, none of them started, beside a running Valkey. All deliver into maildirs below `mail/n1` and so on.
pub fn mail_rig(deliveries: &[&str]) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let valkey_port = free_port();
    let mut rig = Rig { folder, valkey_port, valkey: None, nodes: Vec::new() };
    for (number, delivery) in (1..).zip(deliveries) {
        let node = node_files(rig.folder.path(), number, valkey_port);
        let text = fs::read_to_string(&node.config).unwrap();
        let text = text.replace("via = \"hold\"", &format!("via = \"maildir\"\npath = \"mail/n{number}/{{domain}}/{{local}}\""));
        fs::write(&node.config, format!("{text}\n[delivery]\n{delivery}\n")).unwrap();
        rig.nodes.push(node);
    }
    rig.start_valkey();
    rig
}

pub const SHARES: &str = "mode = \"shared\"";
pub const ONLY_OFFERS: &str = "mode = \"shared\"\ndeliver = false";
pub const LOCAL: &str = "mode = \"local\"";

fn shared_rig() -> Rig {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES, SHARES]);
    for number in 0..3 {
        rig.start_node(number);
    }
    rig
}

impl Rig {
    pub fn send(&self, from: usize, to: usize) {
        for number in from..to {
            let content = format!("Subject: mail-{number:04}\r\n\r\nx\r\n.");
            let replies = self.nodes[0].converse(&["EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA", &content]);
            assert!(replies[4].starts_with("250"), "{replies:?}");
        }
    }

    /// How many mails were delivered, once each of so many was, reports not counted.
    pub fn all_there(&self, count: usize) -> Option<usize> {
        let mut subjects = delivered(&self.folder.path().join("mail"));
        subjects.retain(|subject| subject.starts_with("mail-"));
        let all = subjects.len();
        subjects.dedup();
        (subjects.len() == count).then_some(all)
    }
}

/// A claim without an answer is decided within this: 25 s when its owner says nothing, and what a busy machine takes.
pub const CLAIM_DECIDED_MAX: Duration = Duration::from_secs(35);

#[test]
fn what_one_node_accepts_the_others_deliver_once() {
    let rig = shared_rig();
    rig.send(0, MAILS);
    let all = wait_for("delivery of all", || rig.all_there(MAILS));
    assert_eq!(all, MAILS, "each once");
    assert!(delivered(&rig.folder.path().join("mail/n1")).is_empty(), "a front end delivers nothing");
}

#[test]
fn a_killed_worker_and_a_valkey_that_lost_everything_lose_no_mail() {
    let mut rig = shared_rig();
    rig.send(0, MAILS);
    rig.nodes[1].process = None;
    rig.valkey = None;
    // Nothing in accepting mail waits for Valkey.
    rig.send(MAILS, 2 * MAILS);
    rig.start_valkey();
    rig.start_node(1);
    // A claim whose answer was lost with Valkey's data is decided as soon as its owner has offered the mail again, or settled it.
    let all = wait_within(CLAIM_DECIDED_MAX, "delivery of all", || rig.all_there(2 * MAILS));
    println!("{all} deliveries of {} mails", 2 * MAILS);
}

#[test]
fn with_valkey_away_a_node_that_delivers_goes_on_by_itself() {
    let mut rig = mail_rig(&[SHARES]);
    rig.start_node(0);
    rig.valkey = None;
    rig.send(0, 5);
    let began = Instant::now();
    assert_eq!(wait_for("its own delivery", || rig.all_there(5)), 5);
    println!("delivered {:?} after Valkey went away", began.elapsed());
}

/// It was said to be offered to the nodes of the cluster, whichever took it, of mail that no call had brought into the queue.
#[test]
fn mail_that_waits_to_be_offered_says_for_what() {
    let mut rig = mail_rig(&[ONLY_OFFERS]);
    rig.valkey = None;
    rig.start_node(0);
    rig.send(0, 1);
    let ask = |rig: &Rig, words: &[&str]| rig.nodes[0].ringpost("queue", words).1;
    let mail = |rig: &Rig| serde_json::from_str::<Value>(ask(rig, &["ls", "--json"]).lines().next()?).ok();
    let id = wait_for("its mail", || Some(mail(&rig)?["id"].as_str()?.to_owned()));
    let reason = wait_for("why it waits", || {
        let reason = mail(&rig)?["reason"].as_str()?.to_owned();
        reason.contains("Connection refused").then_some(reason)
    });
    assert!(reason.starts_with("waits to be offered to the nodes of the cluster: Valkey is away: "), "{reason}");
    let why = ask(&rig, &["why", &id]);
    assert!(why.contains("Waits to be offered to the nodes of the cluster") && why.contains("Connection refused"), "{why}");
    assert!(ask(&rig, &["show", &id, "--json"]).contains("waits to be offered"));
    rig.start_valkey();
    wait_for("its offer", || (mail(&rig)?["reason"] == "offered to the nodes of the cluster").then_some(()));
    wait_for("the same in a sentence", || {
        ask(&rig, &["why", &id]).contains("Offered to the nodes of the cluster: whichever").then_some(())
    });
}

/// What only answers was never away: each answer ended the outage that each refused write had begun.
#[test]
fn with_a_valkey_that_answers_and_takes_nothing_a_node_that_delivers_goes_on_by_itself() {
    for refuses in ["min-replicas-to-write 1", "maxmemory 1mb"] {
        let mut rig = mail_rig(&[SHARES]);
        rig.start_node(0);
        rig.raw(&format!("CONFIG SET {refuses}"));
        let began = Instant::now();
        rig.send(0, 1);
        // What was offered before is delivered a lease and a second later, which are four.
        assert_eq!(wait_within(Duration::from_secs(10), "its own delivery", || rig.all_there(1)), 1, "{refuses}");
        println!("{refuses}: delivered after {:?}", began.elapsed());
    }
}

/// A node whose disk was lost, set up anew under its name, took what its first life had offered for mail that it had settled, and took the
/// last copies out of the queue.
#[test]
fn what_a_lost_disk_had_offered_is_delivered_although_its_node_is_set_up_anew() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.start_node(0);
    rig.send(0, 5);
    let pending = |rig: &Rig| rig.nodes[0].shared_queue().and_then(|stats| stats["pending"].as_u64());
    wait_for("five offers", || (pending(&rig)? == 5).then_some(()));
    rig.nodes[0].process = None;
    fs::remove_dir_all(rig.folder.path().join("spool1")).unwrap();
    rig.start_node(0);
    rig.send(5, 6);
    // Its look through the queue comes before its first offer is answered, or soon after: what it took out would be gone from here on.
    wait_for("its own offer", || (pending(&rig)? == 6).then_some(()));
    rig.start_node(1);
    assert_eq!(wait_for("delivery of all", || rig.all_there(6)), 6);
}
