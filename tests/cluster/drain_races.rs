//! What a node takes over, accepts or is killed with while it is emptied.

use std::{
    net::TcpListener,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use super::{
    gray_failures::HeldThread,
    proxy::{Passage, runs},
    shared_mail::*,
    *,
};

/// In the place of a command: no server knows it. That is an answer, but none about the lease.
const REFUSED: &[u8] = b"*1\r\n$7\r\nREFUSED\r\n";

/// The number of claims was of now, and that of messages of up to a second ago: a claim that was decided between the two counted as neither, the drain
/// ended with 0, and the only copy of that mail was on the node that was to be retired.
#[test]
fn a_claim_that_is_decided_while_a_node_is_emptied_keeps_it_from_being_empty() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES, SHARES]);
    rig.hold_at(1);
    rig.load("queue_complete");
    let (was_asked, is_open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let opens = is_open.clone();
    rig.by_way_of(1, move |words| match runs(words, "queue_complete") {
        // The owner hears that the worker has it, and settles; the worker hears nothing.
        true if !was_asked.swap(true, Ordering::SeqCst) => Passage::OneWay,
        true if !is_open.load(Ordering::SeqCst) => Passage::Instead(REFUSED),
        _ => Passage::Through,
    });
    rig.start_node(0);
    rig.start_node(1);
    rig.send(0, 1);
    wait_for("its owner to settle", || (rig.messages_at(0)? == 0).then_some(()));
    rig.start_node(2);
    let is_taker = |node: &Value| node["id"] == "n3" && node["metadata"]["takes_mail"] == "yes";
    wait_for("somebody to empty it into", || rig.nodes[1].get("/api/cluster/nodes")?.as_array()?.iter().any(is_taker).then_some(()));
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    program.args(["drain", "--to-cluster", "--json", "-c"]).arg(&rig.nodes[1].config).stdout(Stdio::piped());
    let mut drain = Process(program.spawn().unwrap());
    let mut steps =
        BufReader::new(drain.0.stdout.take().unwrap()).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    // A look has just been, and the next is a second away. On a busy machine it may have been waited for.
    assert_eq!(steps.find(|step| step["shards_awaited"] == 0).expect("a first look")["claims"], 1);
    opens.store(true, Ordering::SeqCst);
    let last = steps.by_ref().last().unwrap();
    assert_eq!(last["done"], true, "{last}");
    assert_eq!(drain.0.wait().unwrap().code(), Some(0));
    assert_eq!(rig.messages_at(1), Some(0), "it said that it is empty");
    assert_eq!(wait_for("delivery by the third", || rig.all_there(1)), 1);
}

/// A next hop that puts each recipient off. Its port.
fn puts_off() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut replies = client.try_clone().unwrap();
                let mut say = |reply: &str| replies.write_all(reply.as_bytes());
                let mut goes_on = say("220 x\r\n").is_ok();
                for line in BufReader::new(client).lines().map_while(Result::ok) {
                    let reply = if line.starts_with("RCPT") { "450 4.2.1 later\r\n" } else { "250 x\r\n" };
                    goes_on = goes_on && say(reply).is_ok();
                }
            });
        }
    });
    port
}

/// The first node has tried so much mail, and is killed in a drain once all of it is offered; the other, which takes mail, is stopped until then.
fn cut_a_drain_short(rig: &mut Rig, mails: usize) {
    let attempts = |line: &str| serde_json::from_str::<Value>(line).unwrap()["attempts"].as_u64().unwrap();
    let tried = |rig: &Rig| rig.nodes[0].ringpost("queue", &["ls", "--json"]).1.lines().filter(|line| attempts(line) > 0).count();
    wait_for("an attempt at each", || (tried(rig) == mails).then_some(()));
    rig.start_node(1);
    let is_taker = |node: &Value| node["id"] == "n2" && node["metadata"]["takes_mail"] == "yes";
    wait_for("a taker", || rig.nodes[0].get("/api/cluster/nodes")?.as_array()?.iter().any(is_taker).then_some(()));
    rig.nodes[1].process.as_ref().unwrap().signal("-STOP");
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    program.args(["drain", "--to-cluster", "-c"]).arg(&rig.nodes[0].config).stdout(Stdio::null()).stderr(Stdio::null());
    let mut drain = Process(program.spawn().unwrap());
    wait_for("all offers", || (rig.nodes[0].shared_queue()?["pending"] == mails).then_some(()));
    rig.nodes[0].process = None;
    assert_ne!(drain.0.wait().unwrap().code(), Some(0));
}

/// A start took for offered only what nobody had tried and was small: all else that the drain had offered and others had taken while the node was down was
/// delivered as soon as the log was read.
#[test]
fn what_was_tried_before_a_drain_is_not_delivered_twice_when_that_is_cut_short() {
    for mode in [LOCAL, SHARES] {
        let mut rig = mail_rig(&[mode, SHARES]);
        let maildir = "via = \"maildir\"\npath = \"mail/n1/{domain}/{local}\"";
        let busy = format!("via = \"smarthost\"\nhosts = [\"127.0.0.1:{}\"]\nretry_base = \"1s\"\nretry_cap = \"1s\"", puts_off());
        rig.change(0, maildir, &busy);
        rig.start_node(0);
        rig.send(0, 5);
        // More than is shared: this node tries it itself.
        let large = format!("Subject: mail-0005\r\n\r\n{}.", format!("{}\r\n", "x".repeat(998)).repeat(2 * 1024));
        let replies = rig.nodes[0].converse(&["EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA", &large]);
        assert!(replies[4].starts_with("250"), "{replies:?}");
        cut_a_drain_short(&mut rig, 6);
        let note = rig.folder.path().join("spool1/cluster/offers");
        let is_noted = || fs::read_to_string(&note).is_ok_and(|text| text.lines().any(|line| line == "drained"));
        assert!(is_noted());
        rig.nodes[1].process.as_ref().unwrap().signal("-CONT");
        assert_eq!(wait_for("delivery of all by the other", || rig.all_there(6)), 6);
        rig.change(0, &busy, maildir);
        rig.start_node(0);
        wait_for("an empty node", || (rig.messages_at(0)? == 0).then_some(()));
        assert_eq!(rig.all_there(6), Some(6), "{mode}: each once");
        // A node that shares no longer waits for the queue to forget, too.
        if mode == SHARES {
            wait_for("that the drain is over", || (!is_noted()).then_some(()));
        }
    }
}

/// The same while the queue gives no answer about it: where the answer came at once the node had it before its first attempt, so that nothing showed that it was
/// not waited for.
#[test]
fn what_was_tried_before_a_drain_that_was_cut_short_waits_for_the_queues_word() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    let is_silent = Arc::new(AtomicBool::new(false));
    let seen = is_silent.clone();
    rig.by_way_of(0, move |words| match seen.load(Ordering::SeqCst) && (runs(words, "queue_withdraw") || runs(words, "queue_known")) {
        true => Passage::Instead(REFUSED),
        false => Passage::Through,
    });
    let maildir = "via = \"maildir\"\npath = \"mail/n1/{domain}/{local}\"";
    let busy = format!("via = \"smarthost\"\nhosts = [\"127.0.0.1:{}\"]\nretry_base = \"1s\"\nretry_cap = \"1s\"", puts_off());
    rig.change(0, maildir, &busy);
    rig.start_node(0);
    rig.send(0, 3);
    cut_a_drain_short(&mut rig, 3);
    rig.nodes[1].process.as_ref().unwrap().signal("-CONT");
    assert_eq!(wait_for("delivery of all by the other", || rig.all_there(3)), 3);
    rig.change(0, &busy, maildir);
    is_silent.store(true, Ordering::SeqCst);
    rig.start_node(0);
    // What comes behind it is delivered at once.
    rig.send(3, 6);
    assert_eq!(wait_for("delivery of what came since", || rig.all_there(6)), 6, "each once");
    assert_eq!(rig.messages_at(0), Some(3), "they wait for the queue's word");
    is_silent.store(false, Ordering::SeqCst);
    wait_for("an empty node", || (rig.messages_at(0)? == 0).then_some(()));
    assert_eq!(rig.all_there(6), Some(6), "each once");
}

/// Whether a node's spool says that all of its mail, tried mail too, may be in the queue.
fn is_noted(rig: &Rig) -> bool {
    fs::read_to_string(rig.folder.path().join("spool1/cluster/offers")).is_ok_and(|text| text.lines().any(|line| line == "drained"))
}

/// A node that delivers nothing offers what an earlier run had tried, and noted nothing of it: once it delivered again it tried such mail as its log was
/// read, while or after another node delivered it. And it took the note of a drain away at once, whatever of that was in the queue.
#[test]
fn tried_mail_that_a_node_offers_which_delivers_nothing_is_not_delivered_twice_when_it_delivers_again() {
    for mode in [LOCAL, SHARES] {
        let mut rig = mail_rig(&[mode, SHARES]);
        let maildir = "via = \"maildir\"\npath = \"mail/n1/{domain}/{local}\"";
        let busy = format!("via = \"smarthost\"\nhosts = [\"127.0.0.1:{}\"]\nretry_base = \"1h\"\nretry_cap = \"1h\"", puts_off());
        rig.change(0, maildir, &busy);
        if mode == SHARES {
            // Nobody is there to offer it to: it tries its mail itself.
            rig.valkey = None;
        }
        rig.start_node(0);
        rig.send(0, 1);
        wait_for("an attempt", || {
            let listed = rig.nodes[0].ringpost("queue", &["ls", "--json"]).1;
            (serde_json::from_str::<Value>(listed.lines().next()?).ok()?["attempts"].as_u64()? > 0).then_some(())
        });
        rig.nodes[0].process = None;
        if rig.valkey.is_none() {
            rig.start_valkey();
        }
        rig.change(0, &format!("[delivery]\n{mode}"), &format!("[delivery]\n{ONLY_OFFERS}"));
        // The second of these finds that a run has noted it.
        for run in ["first", "second"] {
            rig.start_node(0);
            wait_for("its offer", || (rig.nodes[0].shared_queue()?["pending"] == 1).then_some(()));
            rig.nodes[0].process = None;
            assert!(is_noted(&rig), "{mode}, {run}");
        }
        rig.start_node(1);
        assert_eq!(wait_for("delivery by the other", || rig.all_there(1)), 1);
        rig.change(0, ONLY_OFFERS, mode);
        rig.change(0, &busy, maildir);
        rig.start_node(0);
        wait_for("an empty node", || (rig.messages_at(0)? == 0).then_some(()));
        assert_eq!(rig.all_there(1), Some(1), "{mode}: once");
        if mode == SHARES {
            wait_for("the end of the note", || (!is_noted(&rig)).then_some(()));
        }
    }
}

/// Mail that a start keeps, as it is held by command, is told to the coordinator in parts: who waited for the last of it was woken on a node that shares no
/// longer alone, so that on one that shares a drain was never over.
#[test]
fn a_drain_is_over_for_a_node_that_shares_and_keeps_much_mail() {
    const MUCH: usize = 400;
    let mut rig = mail_rig(&[LOCAL]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, MUCH);
    assert_eq!(rig.nodes[0].ringpost("queue", &["hold", "--all"]).0, 0);
    rig.nodes[0].process = None;
    rig.change(0, LOCAL, SHARES);
    let cluster = rig.folder.path().join("spool1/cluster");
    fs::create_dir_all(&cluster).unwrap();
    let note = "mail of this spool may be in the cluster's queue\nnode=n1 partitions=4 named_since=0 spread_since=0\ndrained\n";
    fs::write(cluster.join("offers"), note).unwrap();
    assert!(is_noted(&rig));
    rig.start_node(0);
    wait_for("the end of the drain", || (!is_noted(&rig)).then_some(()));
    assert_eq!(rig.messages_at(0), Some(MUCH));
}

/// A node that still loads a large spool is not held here: its shard is, which gives no answer either.
#[test]
fn a_drain_that_waits_for_what_a_shard_holds_says_so_and_goes_on() {
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    rig.start_node(0);
    rig.send(0, 3);
    rig.start_node(1);
    let is_taker = |node: &Value| node["id"] == "n2" && node["metadata"]["takes_mail"] == "yes";
    wait_for("a taker", || rig.nodes[0].get("/api/cluster/nodes")?.as_array()?.iter().any(is_taker).then_some(()));
    let held = HeldThread::of(rig.nodes[0].process.as_ref().unwrap(), "shard-0");
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    program.args(["drain", "--to-cluster", "--json", "-c"]).arg(&rig.nodes[0].config).stdout(Stdio::piped());
    let mut drain = Process(program.spawn().unwrap());
    let (said, lines) = (BufReader::new(drain.0.stdout.take().unwrap()).lines(), mpsc::channel());
    thread::spawn(move || said.map_while(Result::ok).try_for_each(|line| lines.0.send(line)));
    let step = || lines.1.recv_timeout(PATIENCE).ok().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let first = step().expect("it says so");
    assert_eq!((&first["shards_awaited"], &first["done"], &first["handed_over"]), (&1.into(), &false.into(), &0.into()), "{first}");
    drop(held);
    let last = std::iter::from_fn(step).last().unwrap();
    assert_eq!((&last["shards_awaited"], &last["done"], &last["handed_over"]), (&0.into(), &true.into(), &3.into()), "{last}");
    assert_eq!(wait_for("delivery of all", || rig.all_there(3)), 3, "each once");
}

/// Each look, which comes each second, offered it again, read it in vain and said so.
#[test]
fn mail_that_a_node_which_is_emptied_cannot_read_is_told_at_growing_intervals() {
    const WORDS: &str = "this mail cannot be read to be offered; it is delivered here";
    let mut rig = mail_rig(&[LOCAL, SHARES]);
    rig.hold_at(0);
    rig.load("queue_enqueue");
    let takes = Arc::new(AtomicBool::new(false));
    let begins = takes.clone();
    rig.by_way_of(0, move |words| match runs(words, "queue_enqueue") && !takes.load(Ordering::SeqCst) {
        true => Passage::Instead(REFUSED),
        false => Passage::Through,
    });
    rig.start_node(0);
    rig.send(0, 1);
    rig.start_node(1);
    let is_taker = |node: &Value| node["id"] == "n2" && node["metadata"]["takes_mail"] == "yes";
    wait_for("a taker", || rig.nodes[0].get("/api/cluster/nodes")?.as_array()?.iter().any(is_taker).then_some(()));
    let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    program.args(["drain", "--to-cluster", "--json", "-c"]).arg(&rig.nodes[0].config).stdout(Stdio::null()).stderr(Stdio::null());
    let mut drain = Process(program.spawn().unwrap());
    // It is read again with the next round, after ten seconds, and not from memory as the first time, which is kept for a second.
    wait_for("the first offer", || rig.nodes[0].has_logged("does not take this node's mail"));
    flip(&rig, "spool1", b"mail-0000", b"MAIL-0000");
    begins.store(true, Ordering::SeqCst);
    let told = |times: usize| {
        let log = fs::read_to_string(rig.nodes[0].config.with_extension("log")).unwrap();
        (log.matches(WORDS).count() >= times).then(Instant::now)
    };
    let (first, second) = (wait_for("the first word", || told(1)), wait_for("the second", || told(2)));
    assert!(second - first > Duration::from_secs(3), "{:?}: it is tried again after five seconds", second - first);
    flip(&rig, "spool1", b"MAIL-0000", b"mail-0000");
    let status = wait_within(2 * PATIENCE, "the end of the drain", || drain.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert_eq!(wait_for("delivery by the other", || rig.all_there(1)), 1);
}

/// Changes each place in a node's spool that has these bytes: they are none of its records any more, and the same call brings them back.
fn flip(rig: &Rig, spool: &str, bytes: &[u8], flipped: &[u8]) {
    let mut count = 0;
    for folder in fs::read_dir(rig.folder.path().join(spool)).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for file in fs::read_dir(folder.path()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            let text = fs::read(file.path()).unwrap();
            for (at, _) in text.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes) {
                fs::OpenOptions::new().write(true).open(file.path()).unwrap().write_all_at(flipped, at as u64).unwrap();
                count += 1;
            }
        }
    }
    assert!(count > 0, "the mail is in the spool");
}

/// It tried the mail itself, by routes that were not meant for that, until its next start.
#[test]
fn mail_that_a_node_that_only_offers_cannot_read_once_is_offered_later() {
    let mut rig = mail_rig(&[ONLY_OFFERS, SHARES]);
    rig.load("queue_enqueue");
    let takes = Arc::new(AtomicBool::new(false));
    let begins = takes.clone();
    rig.by_way_of(0, move |words| match runs(words, "queue_enqueue") && !takes.load(Ordering::SeqCst) {
        true => Passage::Instead(REFUSED),
        false => Passage::Through,
    });
    rig.start_node(0);
    rig.send(0, 1);
    wait_for("the first offer", || rig.nodes[0].has_logged("does not take this node's mail"));
    flip(&rig, "spool1", b"mail-0000", b"MAIL-0000");
    begins.store(true, Ordering::SeqCst);
    rig.start_node(1);
    // It is read again with the next round, ten seconds after the start, and not from memory as the first time, which is kept for a second.
    wait_for("the read that fails", || rig.nodes[0].has_logged("cannot be read to be offered"));
    let listed = rig.nodes[0].ringpost("queue", &["ls", "--json"]).1;
    let mail: Value = serde_json::from_str(&listed).unwrap();
    let (reason, id) = (mail["reason"].as_str().unwrap(), mail["id"].as_str().unwrap());
    assert!(reason.starts_with("waits to be offered to the nodes of the cluster: it cannot be read from its spool ("), "{mail}");
    let why = rig.nodes[0].ringpost("queue", &["why", id]).1;
    assert!(why.starts_with("Waits to be offered") && why.contains("which is tried again at "), "{why}");
    assert_eq!((&mail["attempts"], &mail["recipients"][0]["state"]), (&Value::from(0), &Value::from("offered")), "{mail}");
    flip(&rig, "spool1", b"MAIL-0000", b"mail-0000");
    assert_eq!(wait_for("delivery by the other", || rig.all_there(1)), 1);
    assert!(delivered(&rig.folder.path().join("mail/n1")).is_empty(), "a front end delivers nothing");
}
