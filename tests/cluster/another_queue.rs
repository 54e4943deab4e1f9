//! A node whose mail is in one queue, and that is started with the settings of another.

use super::{
    shared_mail::{LOCAL, ONLY_OFFERS, SHARES, mail_rig},
    *,
};

/// The exit code of a start that is refused, and what it says.
fn refused(node: &Node) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    command.arg("serve").arg("-c").arg(&node.config).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = Process(command.spawn().unwrap());
    let code = wait_for("the end of the start", || process.0.try_wait().unwrap()).code();
    let mut said = String::new();
    process.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (code, said)
}

/// A file that is there and has nothing in it, as one that a tool was about to write.
#[test]
fn a_ca_file_without_a_certificate_is_refused_by_check_and_by_a_start() {
    let mut rig = Rig { valkey: None, folder: tempfile::tempdir().unwrap(), valkey_port: free_port(), nodes: Vec::new() };
    rig.nodes.push(node_files(rig.folder.path(), 1, rig.valkey_port));
    let ca = rig.folder.path().join("ca.pem");
    rig.nodes[0].set("valkey_url = \"valkey://", &format!("valkey_ca_file = \"{}\"\nvalkey_url = \"valkeys://", ca.display()));
    for content in ["", "\n", "no PEM\n"] {
        fs::write(&ca, content).unwrap();
        let (checked, _, why) = rig.nodes[0].ringpost("check", &[]);
        let (started, said) = refused(&rig.nodes[0]);
        assert_eq!((checked, started), (78, Some(78)), "{content:?}: {why} {said}");
        for text in [why, said] {
            assert!(text.contains("cluster.valkey_ca_file") && text.contains("ca.pem has no certificate"), "{content:?}: {text}");
        }
    }
}

/// What a start with another keyspace or database said, once all of it was in force, was a warning: the mail in the queue there was delivered a second
/// time.
#[test]
fn a_start_with_another_keyspace_or_database_is_refused_until_the_queue_there_is_empty() {
    let mut rig = mail_rig(&[ONLY_OFFERS]);
    let url = format!("valkey://127.0.0.1:{}", rig.valkey_port);
    rig.start_node(0);
    rig.send(0, 3);
    wait_for("three offers", || (rig.pending(0)? == 3).then_some(()));
    rig.nodes[0].process = None;
    for (from, to) in [
        ("heartbeat_interval".to_owned(), "valkey_keyspace = \"ringpost:other\"\nheartbeat_interval".to_owned()),
        (url.clone(), format!("{url}/1")),
    ] {
        rig.nodes[0].set(&from, &to);
        for (mode, other) in [(ONLY_OFFERS, LOCAL), (LOCAL, ONLY_OFFERS)] {
            let (code, said) = refused(&rig.nodes[0]);
            assert!(
                code == Some(78) && said.contains("mail of this spool was offered in ringpost:cluster of database 0"),
                "{code:?} {said}"
            );
            rig.nodes[0].set(mode, other);
        }
        rig.nodes[0].set(&to, &from);
    }
    // What it says is done: set back, taken back, and then changed.
    rig.nodes[0].set(ONLY_OFFERS, LOCAL);
    rig.start_node(0);
    // What was settled is remembered for a minute.
    wait_within(Duration::from_secs(90), "that all is taken back", || rig.nodes[0].has_logged("nothing that this node has"));
    assert_eq!(wait_for("its own delivery", || rig.all_there(3)), 3, "each once");
    rig.nodes[0].process = None;
    rig.nodes[0].set("heartbeat_interval", "valkey_keyspace = \"ringpost:other\"\nheartbeat_interval");
    rig.nodes[0].set(LOCAL, ONLY_OFFERS);
    rig.start_node(0);
    rig.send(3, 6);
    wait_for("three offers there", || (rig.pending(0)? == 3).then_some(()));
    // Left behind by an operator's word: nothing is noted any more.
    rig.nodes[0].process = None;
    rig.nodes[0].set("valkey_keyspace = \"ringpost:other\"", "valkey_keyspace = \"ringpost:third\"");
    assert_eq!(refused(&rig.nodes[0]).0, Some(78));
    fs::remove_file(rig.folder.path().join("spool1/cluster/offers")).unwrap();
    rig.start_node(0);
    wait_for("three offers there", || (rig.pending(0)? == 3).then_some(()));
}

/// Each start in shared mode noted where it would offer mail: a wrong keyspace, set right a moment later, was refused with 78 although nothing had been
/// offered there.
#[test]
fn a_start_that_offered_nothing_and_took_nothing_binds_its_spool_to_no_queue() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    let (right, wrong) = ("heartbeat_interval", "valkey_keyspace = \"ringpost:wrnog\"\nheartbeat_interval");
    let mark = |spool: &str| rig.folder.path().join(spool).join("cluster/offers");
    let marks = [mark("spool1"), mark("spool2")];
    for node in 0..2 {
        rig.nodes[node].set(right, wrong);
        rig.start_node(node);
        wait_for("its share in the cluster", || rig.nodes[node].has_logged("mail is shared with the cluster"));
    }
    assert!(!marks.iter().any(|mark| mark.exists()));
    for node in 0..2 {
        rig.nodes[node].process = None;
        rig.nodes[node].set(wrong, right);
        rig.start_node(node);
    }
    rig.send(0, 3);
    assert_eq!(wait_for("their delivery", || rig.all_there(3)), 3, "each once");
    // The owner has offered, and the worker has taken.
    for (node, mark) in marks.iter().enumerate() {
        assert!(mark.exists(), "{node}");
        rig.nodes[node].process = None;
        rig.nodes[node].set(right, wrong);
        let (code, said) = refused(&rig.nodes[node]);
        assert!(
            code == Some(78) && said.contains("cluster.valkey_keyspace: mail of this spool was offered in ringpost:cluster"),
            "{code:?} {said}"
        );
    }
}

/// Another URL can lead to the same data, and another number may be that of the cluster: who has to change them is told what they leave behind.
#[test]
fn a_start_by_another_url_or_with_another_number_says_what_it_leaves_behind() {
    const LEFT: &str = "is neither taken back nor settled from here";
    let mut rig = mail_rig(&[ONLY_OFFERS]);
    let restart = |rig: &mut Rig, from: &str, to: &str| {
        rig.nodes[0].process = None;
        rig.nodes[0].set(from, to);
        rig.start_node(0);
    };
    rig.start_node(0);
    rig.send(0, 3);
    wait_for("three offers", || (rig.pending(0)? == 3).then_some(()));
    restart(&mut rig, "valkey://127.0.0.1", "valkey://localhost");
    wait_for("a warning of the server", || rig.nodes[0].has_logged("by way of another cluster.valkey_url"));
    restart(&mut rig, "heartbeat_interval", "queue_partitions = 5\nheartbeat_interval");
    wait_for("a warning of the number", || rig.nodes[0].has_logged(LEFT));
    restart(&mut rig, "queue_partitions = 5", "queue_partitions = 5");
    assert_eq!(rig.nodes[0].has_logged(LEFT), None, "said once");
}
