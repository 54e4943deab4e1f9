//! What operators see and ask: how nodes are, what the queue has, and every command with what it says.

use std::process::Command;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    proxy::{Passage, proxy, runs},
    pushed_settings::{ask, valkey},
    shared_mail::{LOCAL, ONLY_OFFERS, mail_rig},
    *,
};

/// A node whose disk was full called itself healthy, and so did one whose spool had failed.
#[test]
fn a_node_that_turns_mail_away_says_that_it_is_degraded_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let valkey_port = free_port();
    let nodes = (1..=2).map(|number| node_files(folder.path(), number, valkey_port)).collect();
    let mut rig = Rig { folder, valkey_port, valkey: None, nodes };
    let text = fs::read_to_string(&rig.nodes[0].config).unwrap();
    // More than this disk has.
    fs::write(&rig.nodes[0].config, text.replace("min_free_bytes = \"1 MiB\"", "min_free_bytes = \"1024 GiB\"")).unwrap();
    rig.start_valkey();
    rig.spawn_node_by(0, Command::new(env!("CARGO_BIN_EXE_ringpost")));
    rig.start_node(1);
    // It was ready all the same, and a balancer went on sending mail there.
    // A node that still starts is not ready either, and says another reason.
    wait_for("its word on readiness", || {
        rig.nodes[0].get("/ready").filter(|answer| answer["ready"] == false && answer.to_string().contains("min_free_bytes"))
    });
    wait_for("its word", || {
        let nodes = rig.nodes[1].get("/api/cluster/nodes")?;
        let shown = nodes.as_array()?.iter().find(|node| node["id"] == "n1" && node["status"] == "degraded")?;
        shown["last_error"].as_str()?.contains("spool.min_free_bytes").then_some(())
    });
    let is = |node: usize, status: &str| (rig.nodes[node].get("/api/cluster/stats")?["local_node_status"] == status).then_some(());
    wait_for("its own word", || is(0, "degraded"));
    wait_for("the other's health", || is(1, "healthy"));
    wait_for("the list's word", || rig.nodes[1].cluster(&["nodes"]).1.contains("new mail gets 452").then_some(()));
}

/// The commands and `/ready` say which right is missing, for what, and not whose; no mail and no other call has to come for it to stay said.
#[test]
fn a_right_that_the_user_lacks_is_named_until_it_is_given() {
    let mut rig = mail_rig(&[ONLY_OFFERS]);
    rig.start_node(0);
    rig.leader();
    let told = |rig: &Rig| rig.nodes[0].get("/ready")?["local_last_error"].as_str().map(str::to_owned);
    wait_for("its health", || told(&rig).is_none().then_some(()));
    // Of all that it asks the queue wants it, and the leader, who counts the nodes that are gone: the word is of whichever came first.
    valkey(&rig, "ACL SETUSER default -zrangebyscore");
    let reason = wait_for("its word", || told(&rig).filter(|reason| reason.contains("'zrangebyscore'")));
    assert!(reason.starts_with("Valkey answers, and refuses what this node asks: "), "{reason}");
    assert!(["(for queue_", "(for members_prune)"].iter().any(|script| reason.contains(script)), "{reason}");
    assert!(!reason.contains("default"), "{reason}");
    let status = wait_for("the same of the command", || {
        let (code, status, _) = rig.nodes[0].cluster(&["status", "--json"]);
        (code == 0 && status.contains("'zrangebyscore'")).then_some(status)
    });
    assert!(!status.contains("User default"), "{status}");
    let shown = || rig.nodes[0].cluster(&["nodes"]).1;
    wait_for("the same of the nodes", || shown().contains("'zrangebyscore'").then_some(()));
    valkey(&rig, "ACL SETUSER default +zrangebyscore");
    wait_for("its health again", || told(&rig).is_none().then_some(()));
}

/// `handover` ended with 0 and said nothing when there was nobody to ask, and commands that change something had no `--json`.
#[test]
fn every_command_speaks_json_and_handover_says_who_was_asked_and_who_follows() {
    let mut rig = Rig::start();
    let leader = rig.leader();
    let json = |node: usize, words: &[&str]| {
        let (code, output, errors) = rig.nodes[node].cluster(&[words, &["--json"]].concat());
        (code, serde_json::from_str::<Value>(output.lines().next().unwrap_or("null")).unwrap_or(Value::Null), errors)
    };
    let (code, asked, errors) = json((leader + 1) % 3, &["handover"]);
    assert_eq!((code, asked["leader"].as_str()), (0, Some(format!("n{}", leader + 1).as_str())), "{errors}");
    // Of the other master.
    assert_eq!(asked["next"], format!("n{}", 2 - leader), "{asked}");
    assert!(asked["next_epoch"].as_u64() > asked["epoch"].as_u64(), "{asked}");
    assert_eq!(json(0, &["config", "poll", "2s"]).1["interval_ms"], 2000);
    assert_eq!(json(0, &["queue", "requeue", "--all"]).1["count"], 0);
    assert_eq!(json(0, &["queue", "purge", "--all"]).1["count"], 0);
    let file = rig.folder.path().join("push.toml");
    fs::write(&file, "[smtp]\nrecipients_max = 500\n").unwrap();
    assert_eq!(json(1, &["config", "push", file.to_str().unwrap()]).1["version"], 1);
    let (code, changed, _) = json(1, &["config", "diff"]);
    assert_eq!((code, &changed["to"], &changed["lines"][1]), (1, &Value::from(1), &Value::from("+recipients_max = 500")));
    // Of a version with itself there is none, and nothing to show.
    let (code, same, _) = json(1, &["config", "diff", "1", "1"]);
    assert_eq!(
        (code, &same["from"], &same["to"], &same["lines"]),
        (0, &Value::from(1), &Value::from(1), &Value::from(Vec::<Value>::new()))
    );
    let (code, shown, _) = rig.nodes[1].cluster(&["config", "diff", "1", "1"]);
    assert_eq!((code, shown.as_str()), (0, ""));
    // Nobody leads where only a worker is left.
    let text = fs::read_to_string(&rig.nodes[2].config).unwrap();
    rig.nodes.iter_mut().for_each(|node| node.process = None);
    fs::write(&rig.nodes[2].config, text.replace("\"standby\"", "\"worker\"")).unwrap();
    rig.start_node(2);
    wait_for("the end of the lease", || {
        let (code, _, errors) = rig.nodes[2].cluster(&["handover"]);
        // One that is dead is asked as long as it has its lease: that was all, and done.
        assert_eq!(code, 1, "{errors}");
        errors.contains("nobody leads: there is nobody to ask").then_some(())
    });
    rig.raw("SET {ringpost:cluster:c}:leader n9:00000000000000000000000000000001/99 PX 60000");
    let (code, output, errors) = rig.nodes[2].cluster(&["handover"]);
    assert!(code == 1 && output.is_empty() && errors.contains("n9 was asked to let another lead, and nobody took over"), "{code} {errors}");
}

/// There was no way to the work queue but for mail.
#[test]
fn work_of_ones_own_goes_through_the_queue_by_command() {
    let rig = Rig::start();
    let queue = |node: usize, words: &[&str]| {
        let (code, output, errors) = rig.nodes[node].cluster(&[&["queue", "--name", "report"], words, &["--json"]].concat());
        (code, serde_json::from_str::<Value>(output.lines().next().unwrap_or("null")).unwrap_or(Value::Null), errors)
    };
    let (code, added, errors) = wait_for("Valkey", || Some(queue(0, &["enqueue", "w1", "the data"])).filter(|(code, ..)| *code == 0));
    assert_eq!((code, &added["result"]), (0, &Value::from("added")), "{errors}");
    assert_eq!(queue(1, &["enqueue", "w1", "the data"]).1["result"], "present");
    assert_eq!(queue(1, &["stats"]).1["pending"], 1);
    let (code, item, _) = queue(1, &["lease", "--lease", "60s"]);
    assert_eq!((code, &item["data"], &item["type"], &item["max_attempts"]), (0, &"the data".into(), &"report".into(), &3.into()));
    assert_eq!(queue(2, &["lease"]).0, 1, "nothing is left");
    let token = item["token"].as_str().unwrap();
    assert_eq!(queue(1, &["extend", "w1", token]).1["result"], "extended");
    assert_eq!(queue(1, &["fail", "w1", token, "--no-retry", "--reason", "no"]).1["result"], "dead");
    assert_eq!(queue(1, &["complete", "w1", token]).0, 1, "the lease is over");
    assert_eq!(queue(0, &["dead"]).1["reason"], "no");
    assert_eq!(queue(0, &["requeue", "w1"]).1["count"], 1);
    let (_, item, _) = queue(2, &["lease"]);
    assert_eq!(queue(2, &["complete", "w1", item["token"].as_str().unwrap(), "--result", "done"]).1["result"], "completed");
    assert_eq!(queue(2, &["recover"]).1["count"], 0);
    // What was said with it could be read by no command, and its id was used up for good.
    assert_eq!(queue(0, &["enqueue", "w1", "the data"]).1["result"], "completed");
    let (code, settled, errors) = queue(0, &["settle", "w1"]);
    assert_eq!((code, settled), (0, serde_json::json!({ "id": "w1", "state": "completed", "result": "done" })), "{errors}");
    let (code, output, errors) = rig.nodes[0].cluster(&["queue", "--name", "report", "settle", "w1", "w3"]);
    assert_eq!((code, output.as_str()), (1, "w1 unknown\nw3 unknown\n"), "{errors}");
    assert_eq!(queue(0, &["enqueue", "w3", "more"]).1["result"], "added");
    assert_eq!(queue(0, &["settle", "w3"]).1["state"], "waiting");
    let (_, item, _) = queue(1, &["lease"]);
    assert_eq!(queue(0, &["settle", "w3"]).1["state"], "leased");
    assert_eq!(queue(1, &["complete", "w3", item["token"].as_str().unwrap()]).0, 0);
    assert_eq!(rig.nodes[0].cluster(&["queue", "--name", "report", "settle"]).0, 2, "of nothing");
    // What a worker that died had leased comes to whoever leases next.
    assert_eq!(queue(0, &["enqueue", "w2", "more"]).1["result"], "added");
    assert_eq!(queue(1, &["lease", "--lease", "1ms"]).1["id"], "w2");
    let again = wait_for("its lease's end", || Some(queue(2, &["lease"])).filter(|(code, ..)| *code == 0)).1;
    assert_eq!((&again["id"], &again["attempts"]), (&"w2".into(), &2.into()));
    // What failed waits, unless it is not to.
    assert_eq!(queue(0, &["enqueue", "w4", "more"]).1["result"], "added");
    let token = queue(1, &["lease"]).1["token"].as_str().unwrap().to_owned();
    assert_eq!(queue(1, &["fail", "w4", &token, "--delay", "0s"]).1["result"], "waits");
    (5..10).for_each(|number| assert_eq!(queue(0, &["enqueue", &format!("w{number}"), "more"]).1["result"], "added"));
    let lease = || {
        let (_, lines, errors) = rig.nodes[1].cluster(&["queue", "--name", "report", "lease", "--count", "6", "--json"]);
        assert!(errors.is_empty(), "{errors}");
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let items = lease();
    assert_eq!(items.len(), 6, "at once: {items:?}");
    for item in &items {
        let [id, token] = ["id", "token"].map(|name| item[name].as_str().unwrap());
        assert_eq!(queue(1, &["fail", id, token]).1["result"], "waits");
    }
    // For a time by chance, of which all six are as short as this once in more than a million millions.
    let again = lease();
    assert!(again.len() < 6, "{again:?}");
    let (code, _, errors) = rig.nodes[0].cluster(&["queue", "enqueue", "w1", "x"]);
    assert!(code == 1 && errors.contains("--name"), "{errors}");
    assert_eq!(rig.nodes[0].cluster(&["queue", "stats", "--json"]).0, 0);
}

/// Whoever leased on a node with another key was told nothing, with the exit code of an empty queue, and the log had nothing either.
#[test]
fn work_that_a_node_with_another_key_leases_is_told_and_logged() {
    let mut rig = mail_rig(&[ONLY_OFFERS, ONLY_OFFERS]);
    let key = rig.folder.path().join("another");
    fs::write(&key, "the secret of another cluster\n").unwrap();
    rig.nodes[1].set("[cluster]\n", &format!("[cluster]\nkey_file = \"{}\"\n", key.display()));
    rig.start_node(0);
    rig.start_node(1);
    let queue = |node: usize, words: &[&str]| rig.nodes[node].cluster(&[&["queue", "--name", "report"], words].concat());
    wait_for("Valkey", || (queue(0, &["enqueue", "w1", "the data"]).0 == 0).then_some(()));
    let (code, output, errors) = wait_for("Valkey", || Some(queue(1, &["lease"])).filter(|(code, ..)| *code != 69));
    assert!(code == 1 && output.is_empty(), "{code} {output}");
    assert!(
        errors.contains("1: the item is not signed with this cluster's key, such as w1") && errors.contains("cluster.key_file"),
        "{errors}"
    );
    wait_for("the log's word", || rig.nodes[1].has_logged("items of the queue that were leased cannot be read here"));
    // It waits now, and there is nothing else.
    let (code, _, errors) = queue(1, &["lease"]);
    assert_eq!((code, errors.as_str()), (1, ""));
    // By its name, which was told, it goes, and nobody has read it.
    let (code, output, errors) = queue(0, &["purge", "w1"]);
    assert!(code == 0 && output.starts_with("1 done; ") && output.ends_with("removed unread: 1\n"), "{code} {output} {errors}");
    assert_eq!(queue(0, &["purge", "w1"]).0, 1);
}

/// A name that is none, and a Valkey that is away, ended a command as a queue did that is empty: scripts could tell none from another.
#[test]
fn wrong_usage_and_a_valkey_that_is_away_have_exit_codes_of_their_own() {
    let mut rig = Rig { valkey: None, folder: tempfile::tempdir().unwrap(), valkey_port: free_port(), nodes: Vec::new() };
    rig.nodes.push(node_files(rig.folder.path(), 1, rig.valkey_port));
    rig.nodes[0].set("valkey://", "valkey://somebody:a-secret@");
    rig.start_node(0);
    for words in [&["queue", "--name", "no name", "stats"][..], &["queue", "--name", "a:b", "stats"], &["queue", "enqueue", "no id", "x"]] {
        let (code, _, errors) = rig.nodes[0].cluster(words);
        assert_eq!(code, 2, "{words:?}: {errors}");
    }
    let away = format!("valkey://127.0.0.1:{}", rig.valkey_port);
    for words in [&["queue", "stats"][..], &["queue", "--name", "report", "lease"], &["config", "history"], &["handover"]] {
        let (code, _, errors) = rig.nodes[0].cluster(words);
        assert_eq!(code, 69, "{words:?}: {errors}");
        assert!(errors.contains(&away) && !errors.contains("secret"), "{words:?}: {errors}");
    }
    rig.start_valkey();
    rig.raw("ACL SETUSER somebody on >a-secret ~* &* +@all");
    wait_for("an answer that is no", || (rig.nodes[0].cluster(&["queue", "--name", "report", "lease"]).0 == 1).then_some(()));
}

/// `cluster nodes` was empty, what has to do with the queue said that a number had not been heard yet, and a node that was refused called itself healthy.
#[test]
fn a_node_that_never_reached_valkey_shows_itself_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let valkey_port = free_port();
    let nodes = vec![node_files(folder.path(), 1, valkey_port)];
    let mut rig = Rig { folder, valkey_port, valkey: None, nodes };
    rig.start_node(0);
    for words in [["queue", "lease", "--count", "0"], ["queue", "lease", "--lease", "0s"]] {
        assert_eq!(rig.nodes[0].cluster(&words).0, 2, "{words:?}");
    }
    assert_eq!(rig.nodes[0].cluster(&["config", "push", "/nonexistent"]).0, 74);
    let shown = wait_for("itself, and since when nothing is known of others", || {
        let nodes = rig.nodes[0].get("/api/cluster/nodes")?;
        nodes.as_array()?.first().filter(|node| node["unknown_since"].is_u64()).cloned()
    });
    assert_eq!((&shown["id"], &shown["status"]), (&Value::from("n1"), &Value::from("healthy")), "{shown}");
    assert!(rig.nodes[0].get("/api/cluster/stats").unwrap()["nodes_unknown_since"].is_u64());
    for words in [["queue", "stats"], ["queue", "dead"]] {
        let (code, _, errors) = rig.nodes[0].cluster(&words);
        assert!(code == 69 && errors.contains("refused"), "{words:?}: {code} {errors}");
    }
    rig.start_valkey();
    valkey(&rig, "CONFIG SET requirepass another");
    rig.nodes[0].process = None;
    rig.start_node(0);
    wait_for("that it is refused", || {
        let stats = rig.nodes[0].get("/api/cluster/stats")?;
        let why = stats["local_last_error"].as_str().unwrap_or_default();
        (stats["local_node_status"] == "unhealthy" && why.contains("Valkey refuses this node")).then_some(())
    });
}

/// The file of the password was read at the start alone.
#[test]
fn a_password_is_changed_without_a_restart() {
    let mut rig = Rig { valkey: None, folder: tempfile::tempdir().unwrap(), valkey_port: free_port(), nodes: Vec::new() };
    rig.nodes.push(node_files(rig.folder.path(), 1, rig.valkey_port));
    let file = rig.folder.path().join("password");
    rig.nodes[0].set("config_poll = \"1s\"", &format!("config_poll = \"1s\"\nvalkey_password_file = {file:?}"));
    fs::write(&file, "first\n").unwrap();
    rig.start_valkey();
    rig.raw("CONFIG SET requirepass first");
    rig.start_node(0);
    let asks = |rig: &Rig| (rig.nodes[0].cluster(&["queue", "stats"]).0 == 0).then_some(());
    wait_for("an answer", || asks(&rig));
    fs::write(&file, "second\n").unwrap();
    rig.raw("AUTH first\r\nCONFIG SET requirepass second\r\nCLIENT KILL TYPE normal");
    wait_for("an answer by another connection", || asks(&rig));
    // Without a file it is what the environment says at the start.
    rig.nodes[0].process = None;
    rig.nodes[0].set(&format!("\nvalkey_password_file = {file:?}"), "");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    command.env("RINGPOST_VALKEY_PASSWORD", "second");
    rig.start_node_by(0, command);
    wait_for("an answer by the environment's", || asks(&rig));
}

/// The leader's account of a roll-out was written and read by nobody, and metrics had nothing of the work queue.
#[test]
fn the_leaders_account_and_the_queues_are_shown() {
    let rig = Rig::start();
    rig.leader();
    let file = rig.folder.path().join("push.toml");
    fs::write(&file, "[smtp]\nrecipients_max = 500\n").unwrap();
    wait_for("the push", || (rig.nodes[0].cluster(&["config", "push", file.to_str().unwrap()]).0 == 0).then_some(()));
    wait_for("the roll-out's account", || {
        let (_, lines, _) = rig.nodes[1].cluster(&["config", "history", "--json"]);
        let version: Value = serde_json::from_str(lines.lines().next()?).ok()?;
        (version["nodes"] == serde_json::json!(["n1", "n2", "n3"])).then_some(())
    });
    let (_, text, _) = rig.nodes[1].cluster(&["config", "history"]);
    assert!(text.contains("runs on n1, n2, n3"), "{text}");
    let status = wait_for("the queue's account", || {
        let (_, text, _) = rig.nodes[2].cluster(&["status", "--json"]);
        let status: Value = serde_json::from_str(&text).ok()?;
        status["queue"]["total"].is_u64().then_some(status)
    });
    assert_eq!(status["rollout"]["1"], serde_json::json!(["n1", "n2", "n3"]), "{status}");
    let queue = |words: &[&str]| rig.nodes[0].cluster(&[&["queue", "--name", "report"], words].concat()).0 == 0;
    wait_for("an item", || queue(&["enqueue", "w1", "x"]).then_some(()));
    let shows = |line: &str| wait_for(line, || rig.nodes[0].metrics().lines().any(|shown| shown == line).then_some(()));
    shows("mta_cluster_queue_items{state=\"pending\"} 0");
    shows("mta_cluster_queue_items{state=\"dead\"} 0");
    shows("mta_cluster_queue_oldest_seconds{state=\"ready\"} 0");
    shows("mta_cluster_unproven_total 0");
}

/// It was 404.
#[test]
fn without_a_cluster_the_queues_counts_are_the_nodes_own() {
    let folder = tempfile::tempdir().unwrap();
    let node = node_files(folder.path(), 1, free_port());
    let text = fs::read_to_string(&node.config).unwrap();
    fs::write(&node.config, text.replace("[cluster]\nenabled = true", "[cluster]\nenabled = false")).unwrap();
    let mut rig = Rig { folder, valkey_port: 0, valkey: None, nodes: vec![node] };
    rig.start_node(0);
    assert!(rig.nodes[0].accepts_mail());
    let stats = rig.nodes[0].get("/api/queue/stats").unwrap();
    assert_eq!(
        (&stats["pending"], &stats["processing"], &stats["total"], &stats["messages"]),
        (&1.into(), &0.into(), &1.into(), &1.into())
    );
}

impl Node {
    /// The counts, whatever answered.
    fn queue_stats(&self) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).unwrap();
        write!(stream, "GET /api/queue/stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }
}

/// A node of a cluster that held mail said that there was none, in local mode also while Valkey was there, and 503 while it was away.
#[test]
fn with_valkey_and_without_a_node_counts_its_own_mail() {
    let mut rig = mail_rig(&[LOCAL, ONLY_OFFERS]);
    // What is its own stays.
    let text = fs::read_to_string(&rig.nodes[0].config).unwrap();
    fs::write(&rig.nodes[0].config, text.replace("via = \"maildir\"\npath = \"mail/n1/{domain}/{local}\"", "via = \"hold\"")).unwrap();
    rig.start_node(0);
    rig.start_node(1);
    rig.send(0, 2);
    assert!((0..3).all(|_| rig.nodes[1].accepts_mail()));
    wait_for("three offers", || (rig.nodes[0].shared_queue()?["pending"] == 3).then_some(()));
    let stats = rig.nodes[0].queue_stats();
    assert_eq!(
        (&stats["pending"], &stats["total"], &stats["messages"], &stats["cluster"]["total"]),
        (&2.into(), &2.into(), &2.into(), &3.into())
    );
    wait_for("its own three", || {
        let stats = rig.nodes[1].queue_stats();
        assert_eq!(stats["local"]["messages"], 3, "{stats}");
        (stats["pending"] == 3 && stats["local"]["pending"] == 3).then_some(())
    });
    rig.valkey = None;
    for (node, messages) in [(0, 2), (1, 3)] {
        let stats = wait_for("that it is away", || {
            let stats = rig.nodes[node].queue_stats();
            let of_all = if node == 0 { &stats["cluster"] } else { &stats };
            (of_all["unanswered"].as_array()?.len() == 4 && of_all["error"].is_string()).then_some(stats)
        });
        assert_eq!(
            (&stats["pending"], &stats["total"], &stats["local"]["messages"]),
            (&messages.into(), &messages.into(), &messages.into()),
            "{stats}"
        );
    }
}

/// The text that a node runs was on its disk, and `config show` ended with 69.
#[test]
fn what_runs_here_is_shown_while_valkey_is_away() {
    let mut rig = Rig::start();
    let file = rig.folder.path().join("push.toml");
    fs::write(&file, "[smtp]\nrecipients_max = 500\n").unwrap();
    wait_for("the push", || (rig.nodes[0].cluster(&["config", "push", file.to_str().unwrap()]).0 == 0).then_some(()));
    wait_for("that it runs", || (rig.nodes[1].get("/api/cluster/stats")?["config_version"] == 1).then_some(()));
    rig.valkey = None;
    let (code, text, errors) = rig.nodes[1].cluster(&["config", "show"]);
    assert_eq!((code, text.as_str()), (0, "[smtp]\nrecipients_max = 500\n"), "{errors}");
    assert!(errors.contains("version 1, which runs on this node") && errors.contains("valkey://"), "{errors}");
    let (code, shown, _) = rig.nodes[1].cluster(&["config", "show", "1", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, &shown["version"], shown["unanswered"].is_string()), (0, &1.into(), true), "{shown}");
    assert_eq!(rig.nodes[1].cluster(&["config", "show", "2"]).0, 69, "what does not run here is there alone");
}

/// From an hour to less the nodes asked an hour later, and what was set was lost with Valkey's data.
#[test]
fn how_often_nodes_ask_is_set_from_outside_at_once_and_outlives_valkeys_data() {
    let folder = tempfile::tempdir().unwrap();
    let valkey_port = free_port();
    let node = node_files(folder.path(), 1, valkey_port);
    let mut rig = Rig { folder, valkey_port, valkey: None, nodes: vec![node] };
    rig.start_valkey();
    let (reads, heartbeats) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (of_reads, of_heartbeats) = (reads.clone(), heartbeats.clone());
    let port = proxy(valkey_port, move |words| {
        if runs(words, "config_read") {
            of_reads.fetch_add(1, Ordering::Relaxed);
        } else if runs(words, "heartbeat") {
            of_heartbeats.fetch_add(1, Ordering::Relaxed);
        }
        Passage::Through
    });
    let text = fs::read_to_string(&rig.nodes[0].config).unwrap();
    fs::write(&rig.nodes[0].config, text.replace(&format!("valkey://127.0.0.1:{valkey_port}"), &format!("valkey://127.0.0.1:{port}")))
        .unwrap();
    rig.start_node(0);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let beats = |more: u64| {
        let before = count(&heartbeats);
        wait_for("heartbeats", || (count(&heartbeats) >= before + more).then_some(()));
    };
    let poll = |interval: &str| wait_for("the poll", || (rig.nodes[0].cluster(&["config", "poll", interval]).0 == 0).then_some(()));
    wait_for("polls by its own file", || (count(&reads) >= 3).then_some(()));
    poll("1h");
    // What was due by the second of its own file may still come.
    beats(5);
    let before = count(&reads);
    beats(5);
    assert_eq!(count(&reads), before, "it asks each hour");
    poll("200ms");
    wait_for("polls by what was set", || (count(&reads) > before + 5).then_some(()));
    valkey(&rig, "FLUSHALL");
    wait_for("its being given back", || (ask(&rig, "HGET {ringpost:cluster:c}:configs poll_ms").contains("200")).then_some(()));
    let before = count(&reads);
    wait_for("polls as before", || (count(&reads) > before + 5).then_some(()));
}
