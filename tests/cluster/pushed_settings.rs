//! Pushed settings: routes and limits that running nodes take over, with the node's own file changing beside them, and how soon.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::*;

/// Pushes a text through one node: code, output, errors.
fn push(rig: &Rig, text: &str) -> (i32, String, String) {
    let file = rig.folder.path().join("push.toml");
    fs::write(&file, text).unwrap();
    answered(&rig.nodes[0], &["config", "push", file.to_str().unwrap(), "--author", "ann"])
}

/// What a command of `ringpost cluster` ends with once Valkey has answered it: on a busy machine a call can be late. One that is repeated does no more
/// than it did before.
fn answered(node: &Node, words: &[&str]) -> (i32, String, String) {
    wait_for("Valkey's answer", || Some(node.cluster(words)).filter(|(code, ..)| *code != 69))
}

fn all_run(rig: &Rig, version: u64) -> Duration {
    let began = Instant::now();
    wait_for("the version everywhere", || rig.nodes.iter().all(|node| node.config_version() == version).then_some(()));
    began.elapsed()
}

/// Lines of a node's log with these words.
fn logged(node: &Node, words: &str) -> usize {
    fs::read_to_string(node.config.with_extension("log")).unwrap().lines().filter(|line| line.contains(words)).count()
}

impl Node {
    /// `ringpost reload`: code, output and errors.
    fn reload(&self) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost"));
        let output = command.arg("reload").arg("-c").arg(&self.config).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), text)
    }
}

/// A next hop that reads mail, and answers none of it before the other holder of `under_way` lets it go: its port, and how many mails it has read.
fn slow_hop(under_way: Arc<()>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, read) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let of_threads = read.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (read, under_way) = (of_threads.clone(), Arc::downgrade(&under_way));
            std::thread::spawn(move || drop(read_slowly(&stream, &read, || under_way.strong_count() == 1)));
        }
    });
    (port, read)
}

fn read_slowly(mut stream: &TcpStream, read: &AtomicUsize, is_over: impl Fn() -> bool) -> io::Result<()> {
    let (mut lines, mut in_data) = (BufReader::new(stream.try_clone()?).lines(), false);
    stream.write_all(b"220 slow.test\r\n")?;
    while let Some(line) = lines.next().transpose()? {
        let reply: &[u8] = match &*line {
            "." if in_data => {
                in_data = false;
                read.fetch_add(1, Ordering::SeqCst);
                while !is_over() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                b"250 2.0.0 ok\r\n"
            }
            _ if in_data => continue,
            "DATA" => {
                in_data = true;
                b"354 go on\r\n"
            }
            "QUIT" => return stream.write_all(b"221 2.0.0 bye\r\n"),
            _ => b"250 2.0.0 ok\r\n",
        };
        stream.write_all(reply)?;
    }
    Ok(())
}

/// It was refused for good: what stood in the way ended after some seconds, and the node ran the former settings until somebody pushed again.
#[test]
fn a_push_that_comes_before_connections_of_earlier_limits_have_ended_waits_for_them() {
    /// As many tables as may follow each other meanwhile.
    const TABLES: u64 = 16;
    let under_way = Arc::new(());
    let (port, read) = slow_hop(under_way.clone());
    let folder = tempfile::tempdir().unwrap();
    let valkey_port = free_port();
    let nodes = vec![node_files(folder.path(), 1, valkey_port)];
    let mut rig = Rig { folder, valkey_port, valkey: None, nodes };
    // One shard alone has nobody to wait for.
    rig.nodes[0].set("cores = \"0\"\n", "cores = \"0\"\nper_core = 2\n");
    rig.nodes[0].set("via = \"hold\"\n", &format!("via = \"smarthost\"\nhosts = [\"127.0.0.1:{port}\"]\n"));
    rig.start_valkey();
    rig.start_node(0);
    rig.leader();
    (0..8).for_each(|_| assert!(rig.nodes[0].accepts_mail()));
    wait_for("more attempts under way than are to be", || (read.load(Ordering::SeqCst) > 1).then_some(()));
    let push_one = |version: u64| {
        let (code, _, errors) = push(&rig, &format!("[delivery]\nconnections_max = 1\n[queue]\nretry_base = \"{version}m\"\n"));
        assert_eq!(code, 0, "{errors}");
    };
    for version in 1..=TABLES {
        push_one(version);
        all_run(&rig, version);
    }
    push_one(TABLES + 1);
    let lines = |output: &str| output.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let reason = "route: connections of earlier limits have not ended yet; try again when they have";
    let json = wait_for("its word", || {
        let (_, output, _) = rig.nodes[0].cluster(&["config", "history", "--json"]);
        output.contains("waiting").then(|| lines(&output))
    });
    assert_eq!((&json[0]["version"], &json[0]["waiting"][0]["node"]), (&Value::from(TABLES + 1), &Value::from("n1")), "{json:?}");
    assert_eq!(json[0]["waiting"][0]["reason"], reason);
    assert!(json[1..].iter().all(|version| version["waiting"].is_null()), "{json:?}");
    let said = format!("n1 waits to take it over, and tries again: {reason}");
    assert!(answered(&rig.nodes[0], &["config", "history"]).1.contains(&said));
    let nodes = rig.nodes[0].cluster(&["nodes"]).1;
    assert!(nodes.contains(&format!("waits to take over config {}: {reason}", TABLES + 1)), "{nodes}");
    assert_eq!(rig.nodes[0].config_version(), TABLES);
    let (code, said) = rig.nodes[0].reload();
    assert!(code != 0 && said.contains("try again"), "{code} {said}");

    drop(under_way);
    all_run(&rig, TABLES + 1);
    wait_for("the end of its word", || (!rig.nodes[0].cluster(&["config", "history"]).1.contains("waits")).then_some(()));
    assert_eq!(logged(&rig.nodes[0], "cannot be taken over now"), 1);
}

/// "there is no earlier version" was all that was said of a first push, which no roll-back takes back.
#[test]
fn a_first_push_is_taken_back_by_an_empty_one_as_the_roll_back_says() {
    let rig = Rig::start();
    rig.leader();
    let (code, _, errors) = push(&rig, "[relay]\nnetworks = []\n");
    assert_eq!(code, 0, "{errors}");
    all_run(&rig, 1);
    assert!(rig.nodes[1].rcpt("c@else.test").starts_with("550 5.7.1"));
    let (code, output, errors) = answered(&rig.nodes[2], &["config", "rollback"]);
    assert!(code == 1 && output.is_empty() && errors.contains("version 1 is the first that was pushed"), "{code} {output} {errors}");
    assert!(errors.contains("an empty file, gives all of them back to the nodes' own files"), "{errors}");
    let (code, _, errors) = push(&rig, "");
    assert_eq!(code, 0, "{errors}");
    all_run(&rig, 2);
    assert!(rig.nodes[1].rcpt("c@else.test").starts_with("250"), "by its own file");
}

#[test]
fn pushed_routes_and_limits_are_taken_over_by_running_nodes() {
    let mut rig = Rig::start();
    let mail = rig.folder.path().join("mail");
    // Held by the node's own route; its session lives through everything below.
    let stream = TcpStream::connect(("127.0.0.1", rig.nodes[1].smtp)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone().unwrap()), stream);
    let mut command = |text: &str| {
        if !text.is_empty() {
            writer.write_all(format!("{text}\r\n").as_bytes()).unwrap();
        }
        let mut line = String::new();
        while line.as_bytes().get(3) != Some(&b' ') {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the session was dropped");
        }
        line
    };
    command("");
    command("EHLO x");
    assert!(rig.nodes[1].accepts_mail());
    let text = format!(
        "[[route]]\ndomain = \"*\"\nvia = \"maildir\"\npath = \"{}/{{domain}}/{{local}}\"\n[delivery]\nconnections_max = 7\nrate = \"500/s\"\n\
         [queue]\nretry_base = \"1m\"\n[relay]\nnetworks = [\"127.0.0.0/8\"]\n[[domain]]\nname = \"own.test\"\nrecipients = [\"b\"]\n\
         [smtp]\nrecipients_max = 100\n[bounce]\nfailed_text = \"no: {{recipients}}\"\n",
        mail.display()
    );
    let (code, output, errors) = push(&rig, &text);
    // One whose answer came too late was published all the same.
    assert!(code == 0 && output.starts_with("version 1 "), "{output} {errors}");
    all_run(&rig, 1);
    let is_delivered = || mail.join("y.test/b/new").read_dir().is_ok_and(|mut files| files.next().is_some());
    wait_for("mail that was held and follows the pushed route", || is_delivered().then_some(()));
    assert!(command("MAIL FROM:<a@x.test>").starts_with("250"));
    assert!(command("RCPT TO:<c@own.test>").starts_with("550 5.1.1"), "the pushed domain counts in an open session");
    assert!(command("RSET").starts_with("250"));

    // A node's own file changes, and is read again: what was pushed stays over it.
    let own = fs::read_to_string(&rig.nodes[1].config).unwrap();
    fs::write(&rig.nodes[1].config, own.clone() + "[queue]\nexpiry = \"3d\"\n[smtp]\nidle_timeout = \"200s\"\n").unwrap();
    let (code, said) = rig.nodes[1].reload();
    assert_eq!(code, 0, "{said}");
    assert!(command("MAIL FROM:<a@x.test>").starts_with("250"));
    assert!(command("RCPT TO:<c@own.test>").starts_with("550 5.1.1"), "{said}");
    // So is it after a restart, with Valkey away.
    rig.valkey = None;
    rig.nodes[1].process = None;
    rig.start_node(1);
    assert!(rig.nodes[1].rcpt("c@own.test").starts_with("550 5.1.1"));
    wait_for("its version", || (rig.nodes[1].config_version() == 1).then_some(()));
    // A file that the pushed config does not go with: said, and the node carries mail by its file.
    let clashing =
        own.replace("open_max = \"64 MiB\"", "open_max = \"60 MiB\"").replace("[control]", "[smtp]\ncontent_max = \"55 MiB\"\n[control]");
    fs::write(&rig.nodes[1].config, &clashing).unwrap();
    rig.start_valkey();
    wait_for("the nodes' return", || rig.nodes.iter().all(|node| node.config_version() == 1).then_some(()));
    // The node still has to find out that its old connections are gone.
    wait_for("a push", || (push(&rig, "[smtp]\ncontent_max = \"64 MiB\"\n").0 == 0).then_some(()));
    all_run(&rig, 2);
    rig.nodes[1].process = None;
    rig.start_node(1);
    let view = wait_for("the reason", || {
        let nodes = rig.nodes[0].get("/api/cluster/nodes")?;
        let view = nodes.as_array()?.iter().find(|node| node["id"] == "n2")?.clone();
        view["config_refused"]["reason"].is_string().then_some(view)
    });
    assert_eq!((&view["config_version"], &view["config_refused"]["version"]), (&Value::from(0), &Value::from(2)), "{view}");
    assert!(view["config_refused"]["reason"].as_str().unwrap().contains("spool.open_max"), "{view}");
    // The file is mended and read again: the pushed config is tried again.
    fs::write(&rig.nodes[1].config, &own).unwrap();
    assert_eq!(rig.nodes[1].reload().0, 0);
    all_run(&rig, 2);

    // What is settled at the start is refused by key where it is pushed, and nobody else hears of it.
    let (code, _, errors) = push(&rig, "[smtp]\nsessions_max = 50\nrecipients_max = 101\n[log]\nlevel = \"warn\"\n");
    assert!(code == 1 && errors.contains("log.level, smtp.sessions_max cannot change"), "{code} {errors}");
    // So does a node whose own file has something else there, and nothing of that push runs on it.
    rig.nodes[1].process = None;
    fs::write(&rig.nodes[1].config, own.clone() + "[log]\nlevel = \"warn\"\n").unwrap();
    rig.start_node(1);
    let (_, output, errors) = push(&rig, "[log]\nlevel = \"info\"\n[smtp]\nrecipients_max = 101\n");
    assert!(output.starts_with("version 3 "), "{output} {errors}");
    wait_for("the refusal", || {
        let nodes = rig.nodes[0].get("/api/cluster/nodes")?;
        let node = nodes.as_array()?.iter().find(|node| node["id"] == "n2")?.clone();
        let why = node["config_refused"]["reason"].as_str().unwrap_or_default().to_owned();
        (node["config_refused"]["version"] == 3 && why.starts_with("log.level cannot change")).then_some(())
    });
    wait_for("the others", || [0, 2].iter().all(|node| rig.nodes[*node].config_version() == 3).then_some(()));
    // Nor does a roll-back through that node publish it again.
    let (code, _, errors) = answered(&rig.nodes[1], &["config", "rollback", "3"]);
    assert!(code == 1 && errors.contains("version 3 cannot run here: log.level cannot change"), "{code} {errors}");
    let (code, _, errors) = answered(&rig.nodes[2], &["config", "rollback", "2"]);
    assert_eq!(code, 0, "{errors}");
    all_run(&rig, 4);
}

/// No limit of `[delivery]` could be pushed to a cluster with a node that only offers: `mode` and `deliver` are each node's own.
#[test]
fn limits_of_delivery_are_pushed_to_nodes_that_differ_in_who_delivers() {
    let mut rig = Rig::start();
    for (number, own) in ["mode = \"shared\"\ndeliver = false\n", "mode = \"shared\"\n", ""].into_iter().enumerate() {
        rig.nodes[number].process = None;
        let text = fs::read_to_string(&rig.nodes[number].config).unwrap();
        fs::write(&rig.nodes[number].config, format!("{text}[delivery]\n{own}")).unwrap();
        rig.start_node(number);
    }
    let (code, _, errors) = push(&rig, "[delivery]\nconnections_max = 7\n");
    assert_eq!(code, 0, "{errors}");
    all_run(&rig, 1);
    let (code, _, errors) = push(&rig, "[delivery]\nconnections_max = 8\nmode = \"shared\"\n");
    assert!(code == 1 && errors.contains("delivery.mode belongs to one node"), "{code} {errors}");
}

/// Nothing was red when no message came: nodes asked each second.
#[test]
fn a_push_is_heard_at_once_and_without_messages_within_the_poll() {
    let mut rig = Rig::start();
    let restart = |rig: &mut Rig, from: &str, to: &str| {
        for number in 0..3 {
            rig.nodes[number].process = None;
            rig.nodes[number].set(from, to);
            rig.start_node(number);
        }
    };
    // Neither heartbeats nor polls come in the time of a test: what is heard in it was a message.
    let seldom = "heartbeat_interval = \"60s\"\nnode_ttl = \"180s\"";
    restart(&mut rig, "heartbeat_interval = \"500ms\"\nnode_ttl = \"2s\"", seldom);
    restart(&mut rig, "config_poll = \"1s\"", "config_poll = \"1h\"");
    wait_for("all to listen", || ask(&rig, "PUBSUB NUMSUB {ringpost:cluster:c}:events").contains("\r\n:3\r\n").then_some(()));
    let mut versions = 0;
    let mut heard = Vec::new();
    for _ in 0..5 {
        let (code, _, errors) = push(&rig, &format!("[smtp]\nrecipients_max = {}\n", 200 + versions));
        assert_eq!(code, 0, "{errors}");
        versions += 1;
        heard.push(all_run(&rig, versions));
    }
    println!("by message: all three nodes run a version so long after its push had returned: {heard:?}");
    heard.sort_unstable();
    assert!(heard[2] < Duration::from_millis(500), "half of them: {heard:?}");
    for node in &rig.nodes {
        assert_eq!(logged(node, "the pushed config runs") as u64, versions, "each version once");
    }
    // Nobody may subscribe any more, and those who did are cut off.
    valkey(&rig, "ACL SETUSER default -subscribe -psubscribe -ssubscribe");
    restart(&mut rig, "config_poll = \"1h\"", "config_poll = \"1s\"");
    all_run(&rig, versions);
    let began = Instant::now();
    let (code, _, errors) = push(&rig, "[smtp]\nrecipients_max = 300\n");
    assert_eq!(code, 0, "{errors}");
    all_run(&rig, versions + 1);
    println!("by polling each second: all three nodes run it {:?} after the push began", began.elapsed());
    // The interval at most, the command and a call; the test's machine may be slow.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for node in &rig.nodes {
        assert_eq!(logged(node, "the pushed config runs"), 1, "each version once");
    }
}

/// One command, in Valkey's inline form.
pub fn valkey(rig: &Rig, command: &str) {
    let answer = ask(rig, command);
    assert!(!answer.is_empty() && !answer.starts_with('-'), "{answer}");
}

/// The same; the beginning of what it is answered.
pub fn ask(rig: &Rig, command: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", rig.valkey_port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    write!(stream, "{command}\r\n").unwrap();
    let mut answer = [0; 64];
    let count = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

/// `ringpost check` warned of a file that let strangers send through a node; pushed to all of them nobody did.
#[test]
fn a_pushed_config_that_lets_strangers_relay_is_warned_of_as_its_file_would_be() {
    const OPEN: &str = "[relay]\nnetworks = [\"0.0.0.0/0\", \"::/0\"]\n";
    let sentence = |network: &str| format!("relay.networks has \"{network}\": strangers are in it");
    let rig = Rig::start();
    // As the file of a node it is warned of.
    let own = fs::read_to_string(&rig.nodes[2].config).unwrap();
    let file = rig.folder.path().join("open.toml");
    fs::write(&file, own.replace("[relay]\nnetworks = [\"127.0.0.0/8\"]\n", OPEN)).unwrap();
    let checked = Command::new(env!("CARGO_BIN_EXE_ringpost")).arg("check").arg("-c").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    let sentences: Vec<&str> = said.lines().filter(|line| line.contains("strangers are in it")).collect();
    assert!(checked.status.success() && sentences.len() == 2, "{said}");

    let has_all = |text: &str| sentences.iter().all(|sentence| text.contains(sentence));
    let pushed = rig.folder.path().join("push.toml");
    fs::write(&pushed, OPEN).unwrap();
    let push_open = |more: &[&str]| rig.nodes[0].cluster(&[&["config", "push", pushed.to_str().unwrap()], more].concat());
    let (code, _, errors) = push_open(&["--dry-run"]);
    assert!(code == 0 && has_all(&errors), "{errors}");
    let (code, answer, _) = push_open(&["--json"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let warnings: Vec<&str> = answer["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!((code, &answer["result"]), (0, &Value::from("published")));
    for network in ["0.0.0.0/0", "::/0"] {
        assert!(warnings.iter().any(|warning| warning.starts_with(&sentence(network))), "{answer}");
    }
    let version = answer["version"].as_u64().unwrap();
    all_run(&rig, version);
    for node in &rig.nodes {
        assert_eq!(logged(node, "strangers are in it"), 2);
    }
    // One that has nothing of the kind is not spoken of, and one that is rolled back to is.
    let (code, _, errors) = push(&rig, "[relay]\nnetworks = [\"127.0.0.0/8\"]\n");
    assert_eq!((code, errors.as_str()), (0, ""));
    let (code, _, errors) = rig.nodes[0].cluster(&["config", "rollback"]);
    assert!(code == 0 && has_all(&errors), "{errors}");
}
