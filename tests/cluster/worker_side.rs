//! The worker's side of shared mail: what it cannot use or has asked about before goes back and costs the mail nothing.

use super::{
    proxy::{Passage, proxy, runs},
    shared_mail::{ONLY_OFFERS, SHARES, mail_rig},
    *,
};

impl Rig {
    /// How often that happened to items of the work queue.
    pub(super) fn count(&self, what: &str) -> u64 {
        // Without an answer that is not known, and not none.
        let stats = wait_for("the queue's account", || self.nodes[0].shared_queue().filter(|stats| stats["counters"].is_object()));
        stats["counters"][what].as_u64().unwrap_or(0)
    }
}

impl Node {
    pub(super) fn set(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.config).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(&self.config, text.replace(from, to)).unwrap();
    }

    pub(super) fn has_logged(&self, words: &str) -> Option<()> {
        fs::read_to_string(self.config.with_extension("log")).unwrap().contains(words).then_some(())
    }
}

#[test]
fn a_worker_with_another_key_spoils_no_mail() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES, SHARES]);
    for (number, key) in [(0, "a"), (1, "b"), (2, "a")] {
        let path = rig.folder.path().join(format!("key-{key}"));
        fs::write(&path, format!("the cluster's secret {key}\n")).unwrap();
        rig.nodes[number].set("[cluster]\n", &format!("[cluster]\nkey_file = \"{}\"\n", path.display()));
    }
    rig.start_node(0);
    rig.start_node(1);
    rig.send(0, 5);
    wait_for("the refusal", || rig.nodes[1].has_logged("is not signed with this cluster's key"));
    // Not a minute later.
    rig.start_node(2);
    assert_eq!(wait_for("delivery by the other", || rig.all_there(5)), 5);
    assert_eq!(rig.count("died"), 0);
}

#[test]
fn a_node_that_was_given_another_key_takes_back_what_it_has_offered() {
    let mut rig = mail_rig(&[ONLY_OFFERS]);
    rig.start_node(0);
    rig.send(0, 3);
    wait_for("three offers", || (rig.nodes[0].shared_queue()?["pending"] == 3).then_some(()));
    rig.nodes[0].process = None;
    let key = rig.folder.path().join("key");
    fs::write(&key, "another key of the cluster\n").unwrap();
    rig.nodes[0].set("[cluster]\n", &format!("[cluster]\nkey_file = \"{}\"\n", key.display()));
    rig.nodes[0].set("deliver = false\n", "");
    rig.start_node(0);
    assert_eq!(wait_for("its own delivery", || rig.all_there(3)), 3);
}

/// A node that only offers never meets its own items: what it had signed with a wrong key lay in the queue, and each worker refused it each minute.
#[test]
fn what_a_node_that_only_offers_has_signed_with_a_wrong_key_is_offered_again_once_it_has_the_right_one() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES, SHARES]);
    for (number, key) in [(0, "b"), (1, "a"), (2, "a")] {
        let path = rig.folder.path().join(format!("key-{key}"));
        fs::write(&path, format!("the cluster's secret {key}\n")).unwrap();
        rig.nodes[number].set("[cluster]\n", &format!("[cluster]\nkey_file = \"{}\"\n", path.display()));
    }
    (0..3).for_each(|number| rig.start_node(number));
    let says_so = |node: &Node| node.get("/api/cluster/stats")?["local_last_error"].as_str()?.contains("key_file").then_some(());
    wait_for("what is wrong with it", || says_so(&rig.nodes[0]));
    // Of two that start before the third nobody knows which is right.
    wait_for("the others to be right", || (1..3).all(|number| says_so(&rig.nodes[number]).is_none()).then_some(()));
    rig.send(0, 5);
    wait_for("the refusal", || (1..3).find_map(|number| rig.nodes[number].has_logged("is not signed with this cluster's key")));
    rig.nodes[0].process = None;
    rig.nodes[0].set("key-b", "key-a");
    rig.start_node(0);
    assert_eq!(wait_within(Duration::from_secs(40), "delivery by the others", || rig.all_there(5)), 5);
}

/// A node whose disk was lost, set up anew under its name, took what its first life had offered for mail that it had itself, and completed it
/// as its own: the queue's was the last copy.
#[test]
fn a_node_set_up_anew_delivers_what_its_lost_disk_had_offered() {
    let mut rig = mail_rig(&[ONLY_OFFERS]);
    rig.start_node(0);
    rig.send(0, 5);
    wait_for("five offers", || (rig.nodes[0].shared_queue()?["pending"] == 5).then_some(()));
    rig.nodes[0].process = None;
    fs::remove_dir_all(rig.folder.path().join("spool1")).unwrap();
    rig.nodes[0].set("deliver = false\n", "");
    rig.start_node(0);
    assert_eq!(wait_for("its delivery", || rig.all_there(5)), 5);
}

#[test]
fn a_node_that_is_stopped_takes_no_more_mail() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES, SHARES]);
    rig.start_node(0);
    rig.start_node(1);
    // A client in the middle of its mail keeps the node from ending.
    let mut session = TcpStream::connect(("127.0.0.1", rig.nodes[1].smtp)).unwrap();
    let mut replies = BufReader::new(session.try_clone().unwrap());
    let mut reply = String::new();
    replies.read_line(&mut reply).unwrap();
    for command in ["HELO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA"] {
        session.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        reply.clear();
        replies.read_line(&mut reply).unwrap();
    }
    assert!(reply.starts_with("354"), "{reply}");
    rig.nodes[1].process.as_ref().unwrap().signal("-TERM");
    wait_for("the drain", || rig.nodes[1].has_logged("shard drains"));
    rig.send(0, 3);
    rig.start_node(2);
    assert_eq!(wait_for("delivery by the other", || rig.all_there(3)), 3);
    assert_eq!((rig.count("completed"), rig.count("failed")), (3, 0), "nobody gave one back");
    assert!(rig.nodes[1].process.as_mut().unwrap().0.try_wait().unwrap().is_none(), "it was there all the time");
}

#[test]
fn a_node_that_is_emptied_is_no_place_to_empty_another_into() {
    let mut rig = mail_rig(&[SHARES, SHARES]);
    rig.start_node(0);
    rig.start_node(1);
    let takes = |number: usize, of: &str| {
        let nodes = rig.nodes[number].get("/api/cluster/nodes")?;
        nodes.as_array()?.iter().find(|node| node["id"] == of).map(|node| !node["metadata"]["takes_mail"].is_null())
    };
    wait_for("n1 to know n2", || takes(0, "n2").filter(|takes| *takes));
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert_eq!(code, 0, "{errors}");
    wait_for("n2 to hear that n1 takes nothing", || takes(1, "n1").filter(|takes| !takes));
    let says_why = || rig.nodes[1].cluster(&["nodes"]).1.contains("takes no mail of others now: it is being emptied").then_some(());
    wait_for("n2 to say why", says_why);
    let (code, _, errors) = rig.nodes[1].ringpost("drain", &["--to-cluster"]);
    assert!(code != 0 && errors.contains("no other node of the cluster takes mail"), "{code} {errors}");
}

#[test]
fn an_item_that_comes_again_while_its_claim_is_undecided_costs_no_attempt() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    // No server knows the command: that is an answer, but none about the lease.
    let refuses = |words: &[Vec<u8>]| match runs(words, "queue_complete") {
        true => Passage::Instead(b"*1\r\n$7\r\nREFUSED\r\n"),
        false => Passage::Through,
    };
    let port = proxy(rig.valkey_port, refuses);
    rig.nodes[1].set(&format!("valkey://127.0.0.1:{}", rig.valkey_port), &format!("valkey://127.0.0.1:{port}"));
    rig.start_node(0);
    rig.start_node(1);
    rig.send(0, 1);
    // The first lease ends without an answer. From then on each is given back, without waiting for its end.
    wait_for("three leases that were given back", || (rig.count("failed") >= 3).then_some(()));
    assert_eq!(rig.count("died"), 0);
    // The first, and at most one whose own answer came late.
    assert!(rig.count("recovered") <= 2);
}

/// Mail for a dead destination counted against what a worker takes: two workers with 1,024 messages each for one such destination leased
/// nothing more, for any destination, until that mail expired.
#[test]
fn a_dead_destination_stops_no_mail_for_others() {
    const DEAD: usize = 1200;
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    let dead = format!("[[route]]\ndomain = \"dead.test\"\nvia = \"smarthost\"\nhosts = [\"127.0.0.1:{}\"]\n", free_port());
    rig.nodes.iter().for_each(|node| node.set("[[route]]\n", &format!("{dead}[[route]]\n")));
    rig.start_node(0);
    rig.start_node(1);
    let mut session = vec!["EHLO x"];
    (0..50).for_each(|_| session.extend(["MAIL FROM:<a@x.test>", "RCPT TO:<b@dead.test>", "DATA", "Subject: x\r\n\r\nx\r\n."]));
    for _ in 0..DEAD / 50 {
        assert!(rig.nodes[0].converse(&session).iter().skip(4).step_by(4).all(|reply| reply.starts_with("250")));
    }
    wait_for("as much of it at the worker as it once took", || (rig.count("completed") >= 1024).then_some(()));
    rig.send(0, 20);
    assert_eq!(wait_for("delivery of the rest", || rig.all_there(20)), 20);
}
