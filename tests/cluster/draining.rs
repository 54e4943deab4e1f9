//! A node that is to be retired is emptied into the cluster, in whatever mode it is, and nothing is lost or repeated when it is killed meanwhile.

use serde_json::json;

use super::{
    proxy::{Passage, runs},
    pushed_settings::valkey,
    shared_mail::*,
    *,
};

const MAILS: usize = 40;

impl Rig {
    /// Writes another `[delivery]` or route into a node's file.
    fn change(&self, node: usize, from: &str, to: &str) {
        let config = &self.nodes[node].config;
        let text = fs::read_to_string(config).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(config, text.replace(from, to)).unwrap();
    }

    /// Mail that waits at a node and delivers nowhere.
    fn hold_at(&self, node: usize) {
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
    assert_eq!(rig.all_there(MAILS), Some(MAILS), "each once");
    assert_eq!(rig.nodes[0].ringpost("queue", &["ls", "--json"]).1, "");
    // It still accepts, and keeps nothing.
    rig.send(MAILS, MAILS + 5);
    let (code, text, _) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert_eq!((code, text.trim()), (0, format!("the node is empty: {} messages were handed over", MAILS + 5).as_str()));
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
    wait_for("its own leases", || (rig.nodes[0].get("/api/queue/stats")?["counters"]["completed"] == 5).then_some(()));
    rig.start_node(1);
    rig.takers(0);
    let began = Instant::now();
    let (code, _, errors) = rig.nodes[0].ringpost("drain", &["--to-cluster"]);
    assert_eq!(code, 0, "{errors}");
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(wait_for("delivery of all", || rig.all_there(5)), 5);
}

#[test]
fn a_drain_that_stands_still_says_so_and_goes_on() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, 3);
    rig.start_node(1);
    rig.takers(0);
    let worker = rig.nodes[1].process.as_ref().unwrap();
    worker.signal("-STOP");
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    program.args(["drain", "--to-cluster", "--json", "-c"]).arg(&rig.nodes[0].config).stdout(Stdio::piped());
    let mut drain = Process(program.spawn().unwrap());
    let lines = BufReader::new(drain.0.stdout.take().unwrap()).lines();
    let mut steps = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let still = steps.by_ref().find(|step| step["not_taken_s"] != 0).expect("it says so before it ends");
    assert_eq!((&still["not_taken_s"], &still["offered"]), (&json!(10), &json!(3)), "{still}");
    worker.signal("-CONT");
    let last = steps.last().unwrap();
    assert_eq!((&last["done"], &last["not_taken_s"]), (&json!(true), &json!(0)), "{last}");
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
    assert_eq!(rig.all_there(2), Some(2));
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
