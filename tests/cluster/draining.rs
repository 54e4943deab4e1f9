//! A node that is to be retired is emptied into the cluster, in whatever mode it is, and nothing is lost or repeated when it is killed meanwhile.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::json;

use super::{
    gray_failures::ignoring_full_files,
    proxy::{Passage, runs},
    pushed_settings::valkey,
    shared_mail::*,
    *,
};

const MAILS: usize = 40;

impl Rig {
    /// Writes another `[delivery]` or route into a node's file.
    pub(super) fn change(&self, node: usize, from: &str, to: &str) {
        let config = &self.nodes[node].config;
        let text = fs::read_to_string(config).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(config, text.replace(from, to)).unwrap();
    }

    /// Mail that waits at a node and delivers nowhere.
    pub(super) fn hold_at(&self, node: usize) {
        self.change(node, "via = \"maildir\"", "via = \"hold\"");
        let config = &self.nodes[node].config;
        let text: Vec<String> =
            fs::read_to_string(config).unwrap().lines().filter(|line| !line.starts_with("path = \"mail")).map(str::to_owned).collect();
        fs::write(config, text.join("\n")).unwrap();
    }

    /// Starts two nodes, and waits until each knows of both.
    fn start_both(&mut self) {
        self.start_node(0);
        self.start_node(1);
        let takers = |node: &Node| {
            let nodes = node.get("/api/cluster/nodes")?;
            Some(nodes.as_array()?.iter().filter(|other| other["metadata"]["takes_mail"] == "yes").count())
        };
        wait_for("both that take mail", || self.nodes.iter().all(|node| takers(node) == Some(2)).then_some(()));
    }

    /// Empties a node as soon as another one knows that it may.
    fn drains_in_time(&self, node: usize) {
        wait_for("a drain for which somebody is there", || (self.nodes[node].ringpost("drain", &["--to-cluster"]).0 == 0).then_some(()));
    }

    /// This node says that it takes mail, and leases none before that is let go.
    fn leases_nothing(&self, node: usize) -> Arc<AtomicBool> {
        const REFUSED: &[u8] = b"*3\r\n$4\r\nEVAL\r\n$42\r\nreturn redis.error_reply('ERR not leased')\r\n$1\r\n0\r\n";
        let is_let_go = Arc::new(AtomicBool::new(false));
        let seen = is_let_go.clone();
        self.by_way_of(node, move |words| {
            if runs(words, "queue_lease") && !seen.load(Ordering::SeqCst) { Passage::Instead(REFUSED) } else { Passage::Through }
        });
        is_let_go
    }

    /// Begins to empty the first node; what the command says of it, line by line, comes by its standard error.
    fn draining(&self) -> Process {
        let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
        program.args(["drain", "--to-cluster", "-c"]).arg(&self.nodes[0].config).stdout(Stdio::null()).stderr(Stdio::piped());
        Process(program.spawn().unwrap())
    }

    fn takers(&self, node: usize) {
        wait_for("a node that takes mail", || {
            let nodes = self.nodes[node].get("/api/cluster/nodes")?;
            nodes.as_array()?.iter().any(|other| other["metadata"]["takes_mail"] == "yes").then_some(())
        });
    }
}

#[test]
fn a_local_node_is_emptied_and_what_comes_meanwhile_goes_too() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, MAILS);
    rig.start_node(1);
    rig.takers(0);
    let (code, lines, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster", "--json"]);
    assert_eq!(code, 0, "{errors}");
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["done"], &last["handed_over"], &last["offered"]), (&json!(true), &json!(MAILS), &json!(0)), "{last}");
    // The other has it in its spool, and delivers it from there.
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS, "each once");
    assert_eq!(rig.nodes[0].ringpost("queue", &["ls", "--json"]).1, "");
    // It still accepts, and keeps nothing.
    rig.send(MAILS, MAILS + 5);
    let (code, text, _) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(code == 0 && text.starts_with(&format!("the node is empty: {} messages were handed over; ", MAILS + 5)), "{code} {text}");
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS + 5)), MAILS + 5);
}

#[test]
fn a_node_that_shares_is_emptied_without_taking_back_what_it_offers() {
    let mut rig = mail_rig(&[SHARES, SHARES]);
    rig.start_node(1);
    rig.start_node(0);
    rig.takers(0);
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert_eq!(code, 0, "{errors}");
    rig.send(0, MAILS);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS);
    assert!(delivered(&rig.folder.path().join("mail/n1")).is_empty(), "a node that is emptied leases nothing");
}

/// Both were accepted, as neither had heard yet that the other takes nothing any more, and a third of the mail waited until a third node came.
#[test]
fn of_two_nodes_that_are_emptied_at_the_same_moment_one_is_told_that_nobody_is_left() {
    let mut rig = mail_rig(&[SHARES, SHARES]);
    for node in [0, 1] {
        // Neither hears of the other meanwhile.
        rig.nodes[node].set("heartbeat_interval = \"500ms\"\nnode_ttl = \"2s\"", "heartbeat_interval = \"10s\"\nnode_ttl = \"40s\"");
    }
    rig.start_both();
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert_eq!(code, 0, "{errors}");
    let (code, _, errors) = rig.nodes[1].ringpost("drain", &["--to-cluster"]);
    assert!(code == 1 && errors.contains("no other node of the cluster takes mail"), "{code} {errors}");
    rig.send(0, MAILS);
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS);
    assert_eq!(delivered(&rig.folder.path().join("mail/n2")).len(), MAILS, "by the one that was not emptied");
    // Once more it is no other's turn, and a process that came after is not emptied.
    assert_eq!(rig.nodes[0].ringpost("drain", &["--to-cluster"]).0, 0);
    rig.nodes[0].process = None;
    rig.start_node(0);
    rig.takers(1);
    rig.drains_in_time(1);
}

/// A drain that failed behind what it had told the others left them without one that may be emptied, until its process ended.
#[test]
fn a_drain_that_the_spool_cannot_note_leaves_the_others_free_to_be_emptied() {
    let mut rig = mail_rig(&[SHARES, SHARES]);
    rig.start_both();
    // Its file is a folder.
    let note = rig.folder.path().join("spool1/cluster/offers");
    fs::create_dir(&note).unwrap();
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(code == 1 && errors.contains("cannot be noted in the spool"), "{code} {errors}");
    assert!(errors.contains("nothing was offered for the drain"), "{errors}");
    let (code, _, errors) = rig.nodes[1].ringpost("drain", &["--to-cluster"]);
    assert_eq!(code, 0, "{errors}");
    // The first is the last that takes mail now.
    fs::remove_dir(&note).unwrap();
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(code == 1 && errors.contains("no other node of the cluster takes mail"), "{code} {errors}");
}

/// The same where the answer alone is lost, and nothing else fails.
#[test]
fn a_drain_of_which_nobody_heard_that_it_had_begun_is_taken_back() {
    let mut rig = mail_rig(&[SHARES, SHARES]);
    rig.load("drain_begin");
    rig.by_way_of(0, |words| if runs(words, "drain_begin") { Passage::OneWay } else { Passage::Through });
    rig.start_both();
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(code == 69 && errors.contains("nothing was offered for the drain"), "{code} {errors}");
    rig.drains_in_time(1);
}

/// The queue remembered for a minute that the node had the mail itself, took none of it again, and the drain said that no node had taken any.
#[test]
fn what_a_node_has_offered_and_taken_itself_is_offered_at_once_where_it_is_emptied() {
    let mut rig = mail_rig(&[SHARES, SHARES]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, 5);
    wait_for("its own leases", || (rig.nodes[0].shared_queue()?["counters"]["completed"] == 5).then_some(()));
    rig.start_node(1);
    rig.takers(0);
    let began = Instant::now();
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert_eq!(code, 0, "{errors}");
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(wait_for("delivery of all", || rig.all_there(5)), 5);
}

/// The other was stopped for this, and was offline to the first by the time that the drain began on a busy machine: that was refused then.
#[test]
fn a_drain_that_stands_still_says_so_and_goes_on() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    let is_let_go = rig.leases_nothing(1);
    rig.start_node(0);
    rig.send(0, 3);
    rig.start_node(1);
    rig.takers(0);
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    program.args(["drain", "--to-cluster", "--json", "-c"]).arg(&rig.nodes[0].config).stdout(Stdio::piped());
    let mut drain = Process(program.spawn().unwrap());
    let lines = BufReader::new(drain.0.stdout.take().unwrap()).lines();
    let mut steps = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let still = steps.by_ref().find(|step| step["not_taken_s"] != 0).expect("it says so before it ends");
    // A call that was late may have one of them here for a moment; all three are there, and so is the time, in steps of ten.
    let left: u64 = ["offered", "active"].iter().map(|what| still[what].as_u64().unwrap()).sum();
    assert_eq!((left, &still["handed_over"], &still["done"]), (3, &json!(0), &json!(false)), "{still}");
    assert_eq!(still["not_taken_s"].as_u64().unwrap() % 10, 0, "{still}");
    is_let_go.store(true, Ordering::SeqCst);
    let last = steps.last().unwrap();
    assert_eq!((&last["done"], &last["not_taken_s"], &last["handed_over"]), (&json!(true), &json!(0), &json!(3)), "{last}");
}

#[test]
fn held_mail_stays_and_is_named() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, 2);
    assert_eq!(rig.nodes[0].ringpost("queue", &["hold", "--all"]).0, 0);
    rig.start_node(1);
    rig.takers(0);
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(code == 1 && errors.contains("2 messages are held"), "{code} {errors}");
    assert_eq!(rig.nodes[0].ringpost("queue", &["release", "--all"]).0, 0);
    assert_eq!(rig.nodes[0].ringpost("drain", &["--to-cluster"]).0, 0);
    assert_eq!(wait_for("delivery of both", || rig.all_there(2)), 2);
}

/// The two kinds of held mail: what a route of this node holds is no operator's word that it stays.
#[test]
fn mail_of_a_hold_route_goes_and_what_is_held_by_command_goes_once_it_is_released() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, 4);
    let listed = rig.nodes[0].ringpost("queue", &["ls", "--json"]).1;
    let first: Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    let held = first["id"].as_str().unwrap();
    assert_eq!(rig.nodes[0].ringpost("queue", &["hold", held]).0, 0);
    rig.start_node(1);
    rig.takers(0);
    let (code, text, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(code == 1 && text.is_empty(), "{code} {text}");
    assert!(errors.contains("the node is not empty: 1 message is held by command: `ringpost queue release`"), "{errors}");
    assert_eq!(wait_for("what the route held", || rig.all_there(3)), 3);
    // New mail goes, and what was held, without another call.
    rig.send(4, 5);
    assert_eq!(wait_for("what came meanwhile", || rig.all_there(4)), 4);
    assert_eq!(rig.nodes[0].ringpost("queue", &["release", held]).0, 0);
    assert_eq!(wait_for("what was released", || rig.all_there(5)), 5);
    let (code, text, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(
        code == 0 && text.starts_with("the node is empty: 5 messages were handed over; it goes on accepting"),
        "{code} {text} {errors}"
    );
    assert_eq!(rig.messages_at(0), Some(0));
}

/// "what is larger is delivered here" was said of what a route holds, too.
#[test]
fn what_is_too_large_to_be_offered_keeps_a_node_from_being_empty_and_is_named() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, 1);
    let large = format!("Subject: mail-0001\r\n\r\n{}.", ("x".repeat(70) + "\r\n").repeat(5 * 1024 * 1024 / 72));
    let replies = rig.nodes[0].converse(&["EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA", &large]);
    assert!(replies[4].starts_with("250"), "{replies:?}");
    rig.start_node(1);
    rig.takers(0);
    let (code, text, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(code == 1 && text.is_empty(), "{code} {text}");
    assert!(errors.contains("the node is not empty: 1 message is larger than what can be offered"), "{errors}");
    assert!(errors.contains("what a route `hold` has of it stays"), "{errors}");
    assert_eq!(wait_for("the small one", || rig.all_there(1)), 1);
    assert_eq!(rig.nodes[0].ringpost("queue", &["purge", "--all"]).0, 0);
    assert_eq!(rig.nodes[0].ringpost("drain", &["--to-cluster"]).0, 0);
}

/// It went on for ever, and said that the others had enough to deliver.
#[test]
fn a_drain_that_is_under_way_when_the_disk_fails_ends_with_that() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    let _never_let_go = rig.leases_nothing(1);
    rig.nodes[0].set("[spool]\n", "[spool]\non_disk_failure = \"stop-accepting\"\n");
    rig.start_node_by(0, ignoring_full_files());
    rig.send(0, 1);
    rig.start_node(1);
    rig.takers(0);
    let mut drain = rig.draining();
    let mut said = BufReader::new(drain.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    said.by_ref().find(|line| line.contains("1 left: 1 offered")).expect("it says how far it is before it ends");
    rig.fail_disk();
    let ended = wait_for("the end of the drain", || drain.0.try_wait().unwrap());
    let last = said.last().expect("it says why it ends");
    assert!(last.contains("this node's spool failed, and what it holds can be neither offered nor settled before a restart"), "{last}");
    assert_eq!(ended.code(), Some(1));
}

#[test]
fn a_drain_that_cannot_be_is_refused_and_changes_nothing() {
    let mut rig = mail_rig(&[LOCAL, LOCAL]);
    rig.change(1, "enabled = true", "enabled = false");
    rig.start_node(0);
    rig.start_node(1);
    let (code, _, errors) = rig.nodes[1].ringpost("drain", &["--to-cluster"]);
    assert!(code == 78 && errors.contains("cluster.enabled = true"), "{code} {errors}");
    let (code, _, errors) = rig.nodes[1].cluster(&["status"]);
    assert!(code == 78 && errors.contains("cluster.enabled = true"), "{code} {errors}");
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert!(code == 1 && errors.contains("no other node of the cluster takes mail"), "{code} {errors}");
    rig.valkey = None;
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    let words = ["Valkey does not answer", &format!("valkey://127.0.0.1:{}", rig.valkey_port), "nothing was offered", "repeat the call"];
    assert!(code == 69 && words.iter().all(|word| errors.contains(word)), "{code} {errors}");
    rig.nodes[0].process = None;
    assert_eq!(rig.nodes[0].ringpost("drain", &["--to-cluster"]).0, 69);
    assert_eq!(rig.nodes[0].ringpost("drain", &[]).0, 2);
    rig.start_node(0);
    rig.send(0, 3);
    assert_eq!(wait_for("local delivery", || rig.all_there(3)), 3);
}

/// The first partition alone was asked whether it takes mail: damaged, it kept all other mail from leaving.
#[test]
fn one_partition_that_takes_nothing_keeps_only_its_own_mail() {
    const GENERATION: &str = "{ringpost:cluster:q:email_delivery:0}:generation";
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, MAILS);
    rig.start_node(1);
    rig.takers(0);
    valkey(&rig, &format!("EVAL \"redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], 'x')\" 1 {GENERATION}"));
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    program.args(["drain", "--to-cluster", "-c"]).arg(&rig.nodes[0].config).stdout(Stdio::null());
    let mut drain = Process(program.spawn().unwrap());
    wait_for("mail of others", || (!delivered(&rig.folder.path().join("mail")).is_empty()).then_some(()));
    valkey(&rig, &format!("DEL {GENERATION}"));
    assert_eq!(drain.0.wait().unwrap().code(), Some(0));
    assert_eq!(wait_for("delivery of all", || rig.all_there(MAILS)), MAILS);
}

/// Killed while its mail is in the queue and a worker has some of it leased, then started again in local mode: what the worker has not
/// taken over is taken back before it is delivered.
#[test]
fn a_node_killed_while_it_is_emptied_loses_and_repeats_nothing() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, 4 * MAILS);
    rig.start_node(1);
    rig.takers(0);
    let mut draining = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    draining.args(["drain", "--to-cluster", "-c"]).arg(&rig.nodes[0].config).stdout(Stdio::null()).stderr(Stdio::null());
    let mut draining = Process(draining.spawn().unwrap());
    wait_for("the first delivery", || (!delivered(&rig.folder.path().join("mail")).is_empty()).then_some(()));
    rig.nodes[1].process.as_ref().unwrap().signal("-STOP");
    rig.nodes[0].process = None;
    assert_ne!(draining.0.wait().unwrap().code(), Some(0));
    assert!(rig.folder.path().join("spool1/cluster/offers").exists());
    rig.change(0, "via = \"hold\"", "via = \"maildir\"\npath = \"mail/n1/{domain}/{local}\"");
    rig.start_node(0);
    // What the stopped worker has leased comes back when its lease ends; what it has completed is its own.
    wait_for("what the worker does not have", || {
        let waiting = rig.nodes[0].ringpost("queue", &["ls", "--json"]).1;
        waiting.is_empty().then_some(())
    });
    println!("taken back: {} of {} delivered by now", delivered(&rig.folder.path().join("mail")).len(), 4 * MAILS);
    rig.nodes[1].process.as_ref().unwrap().signal("-CONT");
    let all = wait_for("delivery of all", || rig.all_there(4 * MAILS));
    assert_eq!(all, 4 * MAILS, "each once");
}
