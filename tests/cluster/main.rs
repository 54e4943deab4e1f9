//! Three real nodes and a real Valkey: election, membership, pushed configs, and life without Valkey.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

mod another_queue;
mod copied_spools;
mod dead_letters;
mod drain_races;
mod draining;
mod forgery;
mod gray_failures;
mod lost_keys;
mod old_data;
mod operators;
mod partition;
mod proxy;
mod pushed_settings;
mod queue_partitions;
mod refused_writes;
mod replacement;
mod shared_limits;
mod shared_mail;
mod steering;
mod worker_side;

/// Everything here happens within this, or it does not happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// One that nobody else takes.
fn free_port() -> u16 {
    ringpost_loadtest::free_port::free_port().unwrap().port()
}

/// Asks until `found` gives something; the answer comes from the thing waited for, not from a guess of how long it takes.
fn wait_for<T>(what: &str, found: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, found)
}

fn wait_within<T>(patience: Duration, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(began.elapsed() < patience, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Rig {
    folder: tempfile::TempDir,
    valkey_port: u16,
    valkey: Option<Process>,
    nodes: Vec<Node>,
}

struct Node {
    config: PathBuf,
    smtp: u16,
    admin: u16,
    process: Option<Process>,
}

impl Rig {
    fn start() -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let valkey_port = free_port();
        let nodes = (1..=3).map(|number| node_files(folder.path(), number, valkey_port)).collect();
        let mut rig = Rig { folder, valkey_port, valkey: None, nodes };
        rig.start_valkey();
        for number in 0..3 {
            rig.start_node(number);
        }
        rig
    }

    fn start_valkey(&mut self) {
        let program = ["valkey-server", "redis-server"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok());
        let mut command = Command::new(program.expect("valkey-server is installed: ./dev valkey"));
        command.args(["--port", &self.valkey_port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        self.valkey = Some(Process(command.arg("--dir").arg(self.folder.path()).stdout(Stdio::null()).spawn().unwrap()));
        wait_for("Valkey's start", || TcpStream::connect(("127.0.0.1", self.valkey_port)).ok());
    }

    fn start_node(&mut self, number: usize) {
        self.start_node_by(number, Command::new(env!("CARGO_BIN_EXE_ringpost")));
    }

    /// The command is ringpost, or becomes it with the arguments that follow.
    fn start_node_by(&mut self, number: usize, command: Command) {
        self.spawn_node_by(number, command);
        let node = &self.nodes[number];
        wait_for("a node's readiness", || node.get("/ready").filter(|answer| answer["ready"] == true));
    }

    /// The same, ready or not.
    fn spawn_node_by(&mut self, number: usize, mut command: Command) {
        let node = &mut self.nodes[number];
        let log = fs::File::create(node.config.with_extension("log")).unwrap();
        command.arg("serve").arg("-c").arg(&node.config).stdout(Stdio::null()).stderr(log);
        node.process = Some(Process(command.spawn().unwrap()));
    }

    /// One leader that all running nodes agree on.
    fn leader(&self) -> usize {
        wait_for("agreement on a leader", || {
            let running: Vec<&Node> = self.nodes.iter().filter(|node| node.process.is_some()).collect();
            let seen: Vec<Value> =
                running.iter().map(|node| node.get("/api/cluster/stats").map_or(Value::Null, |stats| stats["leader"].clone())).collect();
            let leader = seen[0].as_str().filter(|_| seen.iter().all(|other| *other == seen[0]))?;
            let number: usize = leader.strip_prefix('n')?.parse::<usize>().ok()? - 1;
            let leads = self.nodes[number].process.is_some() && self.nodes[number].get("/api/cluster/stats")?["is_leader"] == true;
            leads.then_some(number)
        })
    }
}

impl Process {
    /// As `kill` does.
    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap().success());
    }
}

fn node_files(folder: &std::path::Path, number: usize, valkey_port: u16) -> Node {
    let (smtp, admin) = (free_port(), free_port());
    let config = folder.join(format!("n{number}.toml"));
    let role = if number == 3 { "standby" } else { "master" };
    let text = format!(
        r#"
[shards]
cores = "0"
[spool]
path = "spool{number}"
segment_bytes = "4 MiB"
prepared_segments = 3
open_max = "64 MiB"
min_free_bytes = "1 MiB"
allow_unsafe_spool = true
[control]
socket = "c{number}.sock"
[[listener]]
address = "127.0.0.1:{smtp}"
[admin]
address = "127.0.0.1:{admin}"
[cluster]
enabled = true
node_id = "n{number}"
role = "{role}"
valkey_url = "valkey://127.0.0.1:{valkey_port}"
heartbeat_interval = "500ms"
node_ttl = "2s"
leader_ttl = "2s"
config_poll = "1s"
[relay]
networks = ["127.0.0.0/8"]
[[route]]
domain = "*"
via = "hold"
"#
    );
    fs::write(&config, text).unwrap();
    Node { config, smtp, admin, process: None }
}

impl Node {
    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let value: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        // Counts without some of the partitions, which did not answer just then, are none to wait for.
        value["unanswered"].is_null().then_some(value)
    }

    /// `/metrics`, with the head of the answer.
    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// One of them, `mta_` left out; none that is not there.
    fn metric(&self, name: &str) -> Option<u64> {
        self.metrics().lines().find_map(|line| line.strip_prefix("mta_")?.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// The counts of the queue that all nodes share, as this node reads them.
    fn shared_queue(&self) -> Option<Value> {
        let mut stats = self.get("/api/queue/stats")?;
        let beside = stats["cluster"].take();
        let stats = if beside.is_null() { stats } else { beside };
        stats["unanswered"].is_null().then_some(stats)
    }

    /// `ringpost cluster ...`: exit code, output, errors.
    fn cluster(&self, words: &[&str]) -> (i32, String, String) {
        self.ringpost("cluster", words)
    }

    /// A command to the node, and what follows it: exit code, output, errors.
    fn ringpost(&self, command: &str, words: &[&str]) -> (i32, String, String) {
        let mut program = Command::new(env!("CARGO_BIN_EXE_ringpost"));
        let output = program.arg(command).arg("-c").arg(&self.config).args(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn config_version(&self) -> u64 {
        self.get("/api/cluster/stats").map_or(0, |stats| stats["config_version"].as_u64().unwrap_or(0))
    }

    /// What each command is answered with, its last line.
    fn converse(&self, commands: &[&str]) -> Vec<String> {
        self.try_converse(commands).expect("the session lasts")
    }

    /// The same with a node that may end meanwhile.
    fn try_converse(&self, commands: &[&str]) -> io::Result<Vec<String>> {
        let stream = TcpStream::connect(("127.0.0.1", self.smtp))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
        let mut reply = || {
            let mut line = String::new();
            while line.as_bytes().get(3) != Some(&b' ') {
                line.clear();
                if reader.read_line(&mut line)? == 0 {
                    return Err(io::Error::other("the session ended early"));
                }
            }
            Ok(line)
        };
        reply()?;
        let mut replies = Vec::new();
        for command in commands {
            // In one write: two would wait for each other's acknowledgement.
            writer.write_all(format!("{command}\r\n").as_bytes())?;
            replies.push(reply()?);
        }
        Ok(replies)
    }

    /// What RCPT is answered with.
    fn rcpt(&self, recipient: &str) -> String {
        self.converse(&["EHLO x", "MAIL FROM:<a@x.test>", &format!("RCPT TO:<{recipient}>")]).remove(2)
    }

    /// One message, and whether it was acknowledged.
    fn accepts_mail(&self) -> bool {
        let replies = self.converse(&["EHLO x", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA", "Subject: x\r\n\r\nx\r\n."]);
        replies[4].starts_with("250")
    }
}

#[test]
fn leaders_come_and_go_and_nodes_are_counted() {
    let mut rig = Rig::start();
    let first = rig.leader();
    assert_ne!(first, 2, "a standby does not stand while a master is alive");
    wait_for("three healthy nodes", || (rig.nodes[0].get("/api/cluster/stats")?["healthy_nodes"] == 3).then_some(()));
    let epoch = rig.nodes[first].get("/api/cluster/stats").unwrap()["epoch"].as_u64().unwrap();

    // What has not come yet is counted as well: a first time that makes a counter is seen by no rate.
    for name in ["stale_effects_refused", "rival_leaders_refused", "epochs_out_of_reach", "nodes_left", "configs_refused"] {
        assert_eq!(rig.nodes[2].metric(&format!("cluster_{name}_total")), Some(0), "{name}");
    }
    for name in ["valkey_circuit_opened_total", "valkey_circuit_closed_total", "valkey_messages_dropped_total"] {
        assert!(rig.nodes[2].metric(name).is_some(), "{name}");
    }
    assert_eq!(rig.nodes[2].metric("cluster_nodes{status=\"healthy\"}"), Some(3));
    assert_eq!(rig.nodes[first].metric("cluster_is_leader"), Some(1));
    assert_eq!((rig.nodes[first].metric("cluster_epoch"), rig.nodes[first].metric("cluster_config_version")), (Some(epoch), Some(0)));
    let (joined, lost) = (rig.nodes[first].metric("cluster_nodes_joined_total"), rig.nodes[first].metric("cluster_leader_lost_total"));
    assert!(joined >= Some(3), "{joined:?}");

    // Handed over in order: another leads within moments.
    let began = Instant::now();
    assert_eq!(rig.nodes[2].cluster(&["handover"]).0, 0);
    let second = wait_for("the hand-over", || Some(rig.leader()).filter(|leader| *leader != first));
    assert!(rig.nodes[first].metric("cluster_stepped_down_total") >= Some(1));
    assert!(rig.nodes[first].metric("cluster_leader_lost_total") > lost);
    assert!(rig.nodes[first].metric("cluster_leader_changes_total") >= Some(2));
    let health = rig.nodes[first].metric("cluster_health_changes_total");
    println!("handed over in {:?}", began.elapsed());

    // Killed: its lease ends, another is elected with a higher epoch.
    let began = Instant::now();
    rig.nodes[second].process = None;
    let third = wait_for("a new leader", || Some(rig.leader()).filter(|leader| *leader != second));
    println!("after a kill in {:?}", began.elapsed());
    assert!(rig.nodes[third].get("/api/cluster/stats").unwrap()["epoch"].as_u64().unwrap() > epoch);
    wait_for("an offline node", || {
        let nodes = rig.nodes[third].get("/api/cluster/nodes")?;
        let lost = nodes.as_array()?.iter().find(|node| node["id"] == format!("n{}", second + 1))?.clone();
        (lost["status"] == "offline").then_some(())
    });
    assert!((0..3).filter(|node| *node != second).any(|node| rig.nodes[node].metric("cluster_health_changes_total") > health));

    // It comes back; then one leaves in order and is no longer counted.
    rig.start_node(second);
    wait_for("three nodes again", || (rig.nodes[third].get("/api/cluster/stats")?["healthy_nodes"] == 3).then_some(()));
    let leaving = (0..3).find(|node| *node != third).unwrap();
    let pid = rig.nodes[leaving].process.as_ref().unwrap().0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    wait_for("two nodes", || (rig.nodes[third].get("/api/cluster/stats")?["total_nodes"] == 2).then_some(()));
    assert!(rig.nodes[third].metric("cluster_nodes_left_total") >= Some(1));

    // Valkey goes and comes back.
    let (opened, closed) = (rig.nodes[third].metric("valkey_circuit_opened_total"), rig.nodes[third].metric("valkey_circuit_closed_total"));
    rig.valkey = None;
    wait_for("an open circuit", || (rig.nodes[third].metric("valkey_circuit_opened_total") > opened).then_some(()));
    wait_for("that it is away", || (rig.nodes[third].metric("cluster_valkey_available") == Some(0)).then_some(()));
    rig.start_valkey();
    wait_for("a closed one", || (rig.nodes[third].metric("valkey_circuit_closed_total") > closed).then_some(()));
}

#[test]
fn a_pushed_config_runs_on_all_nodes_and_a_bad_one_on_none() {
    let rig = Rig::start();
    rig.leader();
    assert!(rig.nodes[1].rcpt("c@own.test").starts_with('2'), "the loopback may relay");
    let file = rig.folder.path().join("push.toml");
    let push = |text: &str| {
        fs::write(&file, text).unwrap();
        rig.nodes[0].cluster(&["config", "push", file.to_str().unwrap(), "--author", "ann"])
    };
    let (code, _, errors) = push("[spool]\npath = \"x\"\n[relay]\nnetworks = []\n");
    assert!(code == 1 && errors.contains("[spool] belongs to one node"), "{errors}");
    let (code, _, errors) = push("[smtp]\nrecipients_max = 0\n");
    assert!(code == 1 && errors.contains("smtp.recipients_max"), "{errors}");
    assert!(rig.nodes.iter().all(|node| node.config_version() == 0));

    let began = Instant::now();
    let (code, output, errors) = push("[relay]\nnetworks = []\n[[domain]]\nname = \"own.test\"\nrecipients = [\"b\"]\n");
    assert_eq!((code, output.trim()), (0, "version 1 published"), "{errors}");
    wait_for("version 1 everywhere", || rig.nodes.iter().all(|node| node.config_version() == 1).then_some(()));
    println!("pushed to three nodes in {:?}", began.elapsed());
    for node in &rig.nodes {
        assert!(node.rcpt("b@own.test").starts_with("250"));
        assert!(node.rcpt("c@own.test").starts_with("550 5.1.1"));
        assert!(node.rcpt("b@else.test").starts_with("550 5.7.1"));
    }
    // What cannot change while the engine runs is refused where it is pushed: nobody else hears of it.
    let (code, _, errors) = push("[memory]\nmax_memory = \"512 MiB\"\n");
    assert!(code == 1 && errors.contains("memory.max_memory cannot change"), "{code} {errors}");
    assert!(rig.nodes[1].rcpt("c@own.test").starts_with("550 5.1.1"));
    assert!(rig.nodes.iter().all(|node| node.config_version() == 1));

    let (code, output, errors) = push("[smtp]\nrecipients_max = 500\n");
    assert_eq!((code, output.trim()), (0, "version 2 published"), "{errors}");
    let (_, lines, _) = rig.nodes[1].cluster(&["config", "history", "--json"]);
    let versions: Vec<u64> = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [2, 1]);
    assert_eq!(rig.nodes[2].cluster(&["config", "diff"]).0, 1);
    let (code, output, errors) = rig.nodes[2].cluster(&["config", "rollback"]);
    assert_eq!((code, output.trim()), (0, "version 3 published"), "{errors}");
    wait_for("version 3 everywhere", || rig.nodes.iter().all(|node| node.config_version() == 3).then_some(()));
}

#[test]
fn without_valkey_each_node_goes_on_alone_and_comes_back() {
    let mut rig = Rig::start();
    rig.leader();
    let epoch = rig.nodes[0].get("/api/cluster/stats").unwrap()["epoch"].as_u64().unwrap();
    let leader = rig.leader();
    rig.valkey = None;
    // It answered 0 to whoever asked it while it had its lease, and nobody could follow.
    let (code, _, errors) = rig.nodes[leader].cluster(&["handover"]);
    assert!(code == 69 && errors.contains("Valkey"), "{code} {errors}");
    // On those that followed, too.
    for node in &rig.nodes {
        wait_for("the loss", || (node.get("/api/cluster/stats")?["leader"].is_null()).then_some(()));
        let (code, _, errors) = node.cluster(&["leader"]);
        assert!(code == 1 && errors.contains("nobody leads"), "{code} {errors}");
        assert_ne!(node.cluster(&["handover"]).0, 0);
    }
    for node in &rig.nodes {
        assert!(node.accepts_mail());
        assert_eq!(node.get("/health").unwrap()["status"], "ok");
    }
    let (code, _, errors) = rig.nodes[0].cluster(&["queue", "stats"]);
    assert!(code == 69 && errors.contains("Valkey"), "{errors}");
    // It comes back with nothing: the epoch jumps forward.
    rig.start_valkey();
    let leader = rig.leader();
    assert!(rig.nodes[leader].get("/api/cluster/stats").unwrap()["epoch"].as_u64().unwrap() > epoch);
    wait_for("three nodes", || (rig.nodes[0].get("/api/cluster/stats")?["healthy_nodes"] == 3).then_some(()));
}

/// The epoch of the last word that a leader wrote for all nodes.
fn plan_epoch(rig: &Rig) -> u64 {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", rig.valkey_port)) else { return 0 };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(b"GET {ringpost:cluster:c}:plan\r\nQUIT\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().find_map(|line| line.rsplit_once('/')).map_or(0, |(_, epoch)| epoch.parse().unwrap())
}

#[test]
fn a_leader_that_was_stopped_does_nothing_stale_when_it_wakes() {
    let pauses: u64 = std::env::var("RINGPOST_PAUSES").ok().map_or(2, |text| text.parse().expect("RINGPOST_PAUSES is a number"));
    let rig = Rig::start();
    let signal = |node: usize, signal: &str| {
        let pid = rig.nodes[node].process.as_ref().unwrap().0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    };
    let epoch_of = |node: usize| rig.nodes[node].get("/api/cluster/stats").map_or(0, |stats| stats["epoch"].as_u64().unwrap());
    let (mut plan, mut accepted) = (0, [0; 3]);
    for pause in 0..pauses {
        let stopped = rig.leader();
        signal(stopped, "-STOP");
        let others: Vec<usize> = (0..3).filter(|node| *node != stopped).collect();
        let next = wait_for("another leader", || {
            others.iter().copied().find(|node| rig.nodes[*node].get("/api/cluster/stats").is_some_and(|stats| stats["is_leader"] == true))
        });
        wait_for("the new leader's word", || (plan_epoch(&rig) >= epoch_of(next)).then_some(()));
        signal(stopped, "-CONT");
        // It wakes with all that it had in hand; for a while everything that can be seen must go forward only.
        let began = Instant::now();
        let mut has_stepped_down = false;
        while began.elapsed() < Duration::from_millis(700) || !has_stepped_down {
            let now = plan_epoch(&rig);
            assert!(now >= plan, "pause {pause}: the leaders' word went from epoch {plan} to {now}");
            plan = now;
            for (node, before) in accepted.iter_mut().enumerate() {
                let now = epoch_of(node);
                assert!(now >= *before, "pause {pause}: n{} went from epoch {before} to {now}", node + 1);
                *before = now;
            }
            let stats = rig.nodes[stopped].get("/api/cluster/stats").unwrap();
            assert!(
                stats["is_leader"] == false || stats["epoch"].as_u64() >= Some(plan),
                "pause {pause}: a stopped leader woke and leads: {stats}"
            );
            has_stepped_down |= stats["is_leader"] == false;
            assert!(began.elapsed() < PATIENCE, "pause {pause}: it does not step down");
        }
    }
    println!("{pauses} pauses, epoch {plan} at the end");
}
