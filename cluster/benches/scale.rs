//! Ten, a hundred and a thousand nodes on one Valkey: what they cost it, how soon all run a pushed config, how soon another leads.
//!
//! The nodes are real agents with real connections, in one process and on one thread; what they lack is mail. Calls may take longer than
//! a node's 50 ms, because it is this thread that they wait for. `./dev scale [--nodes 10,100,1000] [--seconds 20]`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use ringpost_cluster::agent::Agent;
use ringpost_cluster::config_watch::NotApplied;
use ringpost_cluster::control_plane::{ControlPlane, Published};
use ringpost_cluster::handle::ClusterHandle;
use ringpost_cluster::identity::{Epoch, Incarnation, Leadership, Role};
use ringpost_cluster::keyspace::Keyspace;
use ringpost_cluster::script::Scripts;
use ringpost_cluster::surroundings::{AgentSettings, Boxed, LocalState, Surroundings};
use ringpost_cluster::target::Target;
use ringpost_cluster::valkey::Valkey;
use ringpost_cluster::valkey_error::ValkeyError;
use ringpost_valkey_server::{Durability, Server};
use tokio::task::JoinHandle;

/// Everything here happens within this, or it does not happen.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pace of looking.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// See the module.
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// Pushes of each kind.
const PUSHES: u64 = 5;
/// How often nodes ask for a config while they hear no messages.
const POLL: Duration = Duration::from_secs(2);
/// A pushed config of a usual size.
const CONFIG_LINES: usize = 100;

fn target(server: &Server) -> Target {
    Target::parse(&server.url(), None, None).unwrap()
}

/// What to run.
struct Arguments {
    /// Numbers of nodes, each with a Valkey of its own.
    nodes: Vec<u32>,
    /// Over which the steady state is measured.
    window: Duration,
}

impl Arguments {
    fn read() -> Result<Arguments, Box<dyn Error>> {
        // Small under `cargo test`.
        let is_real = std::env::args().any(|argument| argument == "--bench");
        let mut read = match is_real {
            true => Arguments { nodes: vec![10, 100, 1000], window: Duration::from_secs(20) },
            false => Arguments { nodes: vec![3], window: Duration::from_secs(1) },
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--nodes" => read.nodes = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--seconds" => read.window = Duration::from_secs(value()?.parse()?),
                // Cargo's own options for tests and benches mean nothing here.
                _ => {}
            }
        }
        Ok(read)
    }
}

/// What was seen with one number of nodes.
struct Row {
    nodes: u32,
    joined: Duration,
    cpu_percent: f64,
    bytes_per_s: f64,
    commands_per_s: f64,
    pushed: Vec<Duration>,
    polled: Duration,
    elected: Duration,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("scale: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Runs each number of nodes in turn and prints a table.
fn run() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::read()?;
    // Two connections for each node, on both ends.
    let most = u64::from(arguments.nodes.iter().max().copied().unwrap_or(0));
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;
    if limit.maximum.is_some_and(|maximum| maximum < most * 4 + 200) {
        return Err(format!("{most} nodes need {} open files, which the hard limit (`ulimit -Hn`) does not allow", most * 4 + 200).into());
    }
    println!("heartbeat_interval 5s, leader_ttl 3s, config_poll 30s ({} s while nobody hears messages); all may lead", POLL.as_secs());
    let mut rows = Vec::new();
    for nodes in &arguments.nodes {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let row = runtime.block_on(measure(*nodes, arguments.window))?;
        runtime.shutdown_background();
        print!("{}", line(&row));
        rows.push(row);
    }
    println!("\n{}", table(&rows));
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn line(row: &Row) -> String {
    let worst = row.pushed.iter().max().copied().unwrap_or_default();
    format!(
        "{} nodes: all there in {:.0} ms; Valkey {:.2} % of a core, {:.1} kB/s, {:.0} commands/s; a push runs everywhere in {:.1} ms (worst of {}), \
         by polls in {:.0} ms; another leader is known everywhere {:.0} ms after a kill\n",
        row.nodes,
        ms(row.joined),
        row.cpu_percent,
        row.bytes_per_s / 1e3,
        row.commands_per_s,
        ms(worst),
        row.pushed.len(),
        ms(row.polled),
        ms(row.elected)
    )
}

/// Figures side by side, with the growth from one number to the next.
fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut head = format!("{:<36}", "");
    rows.iter().for_each(|row| write!(head, "{:>14}", format!("{} nodes", row.nodes)).expect("writing to memory"));
    writeln!(text, "{head}    growth").expect("writing to memory");
    let mut add = |name: &str, figure: &dyn Fn(&Row) -> f64| {
        write!(text, "{name:<36}").expect("writing to memory");
        rows.iter().for_each(|row| write!(text, "{:>14.2}", figure(row)).expect("writing to memory"));
        let growth: Vec<String> = rows.windows(2).map(|pair| format!("x{:.1}", figure(&pair[1]) / figure(&pair[0]).max(1e-9))).collect();
        writeln!(text, "    {}", growth.join(", ")).expect("writing to memory");
    };
    add("Valkey, % of a core", &|row| row.cpu_percent);
    add("network, kB/s both ways", &|row| row.bytes_per_s / 1e3);
    add("network, kB/s for each node", &|row| row.bytes_per_s / 1e3 / f64::from(row.nodes));
    add("commands/s", &|row| row.commands_per_s);
    add("push to all by message, ms, median", &|row| {
        let mut times = row.pushed.clone();
        times.sort_unstable();
        times.get(times.len() / 2).copied().map_or(0.0, ms)
    });
    add("push to all by message, ms, worst", &|row| row.pushed.iter().max().copied().map_or(0.0, ms));
    add("push to all by polls, ms", &|row| ms(row.polled));
    add("another leader known by all, ms", &|row| ms(row.elected));
    text
}

/// A node without mail.
struct NoMail;

impl Surroundings for NoMail {
    fn observe(&self) -> Boxed<LocalState> {
        Box::pin(async { LocalState { connections: 10, queue_depth: 100, progress: vec![1; 4], ..LocalState::default() } })
    }

    fn apply(&self, _version: u64, _text: String) -> Boxed<Result<(), NotApplied>> {
        Box::pin(async { Ok(()) })
    }

    fn chores(&self, _leadership: Leadership) -> Boxed<Result<Result<u64, Epoch>, ValkeyError>> {
        Box::pin(async { Ok(Ok(0)) })
    }

    fn leads(&self, _leadership: Option<Leadership>) {}
}

struct Node {
    handle: ClusterHandle,
    task: JoinHandle<()>,
}

fn node(number: u32, server: &Server, folder: &Path) -> Result<Node, Box<dyn Error>> {
    let folder = folder.join(number.to_string());
    std::fs::create_dir_all(&folder)?;
    let me = Incarnation::of_this_process(format!("n{number}").parse()?);
    let settings = AgentSettings {
        me,
        role: Role::Master,
        address: format!("mx{number}.example.org:25"),
        version: "0.1.0".to_owned(),
        metadata: std::collections::BTreeMap::new(),
        heartbeat_interval: Duration::from_secs(5),
        node_ttl: Duration::from_secs(30),
        leader_ttl: Duration::from_secs(3),
        replicas_required: 0,
        config_poll: Duration::from_secs(30),
        folder,
        pushed_unfit: None,
    };
    let valkey = Valkey::with_scripts(target(server), Scripts::shipped(), CALL_DEADLINE);
    let control = ControlPlane::new(valkey, Keyspace::new("ringpost:scale")?);
    let agent = Agent::new(settings, control, Arc::new(NoMail))?;
    let handle = agent.handle();
    Ok(Node { handle, task: tokio::spawn(agent.run()) })
}

/// Waits until it holds, and says how long that took.
async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) -> Result<Duration, Box<dyn Error>> {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > PATIENCE {
            return Err(format!("{what} did not happen within {} s", PATIENCE.as_secs()).into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(began.elapsed())
}

fn leader(nodes: &[Node]) -> Option<usize> {
    nodes.iter().position(|node| node.handle.is_leader())
}

/// Waits until all follow one that leads, and is not `other`.
async fn wait_for_leader(nodes: &[Node], other: Option<&Incarnation>) -> Result<Duration, Box<dyn Error>> {
    wait_for("agreement on a leader", || {
        let first = nodes[0].handle.leader();
        first.as_ref().is_some_and(|first| other != Some(&first.incarnation)) && nodes.iter().all(|node| node.handle.leader() == first)
    })
    .await
}

async fn measure(count: u32, window: Duration) -> Result<Row, Box<dyn Error>> {
    // In memory: what is measured is Valkey, not a thousand nodes' syncs on one disk.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let server = Server::start_with(Durability::None, &["--maxclients", &(count * 2 + 100).to_string()]);
    // Beside the nodes: what it is asked counts among what they ask, and is next to nothing.
    let observer = Valkey::with_scripts(target(&server), Scripts::shipped(), CALL_DEADLINE);
    let began = Instant::now();
    let mut nodes = Vec::new();
    for number in 0..count {
        nodes.push(node(number, &server, folder.path())?);
    }
    wait_for_leader(&nodes, None).await?;
    wait_for("all nodes known to the leader", || {
        leader(&nodes).is_some_and(|leader| nodes[leader].handle.stats().counts.healthy_nodes == u64::from(count))
    })
    .await?;
    let joined = began.elapsed();

    // Steady: nothing happens but heartbeats, renewals and polls.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let before = Use::of(&observer).await?;
    tokio::time::sleep(window).await;
    let used = Use::of(&observer).await?.since(&before);

    let control = nodes[0].handle.control().clone();
    let text = |number: u64| {
        let mut text = format!("# {number}\n[relay]\nnetworks = []\n");
        (0..CONFIG_LINES).for_each(|line| writeln!(text, "[[domain]]\nname = \"d{line}.example.org\"").expect("writing to memory"));
        text
    };
    let mut version = 0;
    let mut pushed = Vec::new();
    for number in 0..PUSHES {
        let began = Instant::now();
        let Published::Version(now) = control.publish_config(&text(number), "scale", 0, version, None).await? else {
            return Err("the push was not taken".into());
        };
        version = now;
        wait_for("the push everywhere", || nodes.iter().all(|node| node.handle.config_version() == version)).await?;
        pushed.push(began.elapsed());
        // Heartbeats that tell of it come at once; the next push is not to meet them.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    // Nobody hears messages, and heartbeats are far apart for most: polls bring it.
    control.set_config_poll(POLL).await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    ask(&observer, &["ACL", "SETUSER", "default", "-subscribe"]).await?;
    ask(&observer, &["CLIENT", "KILL", "TYPE", "pubsub"]).await?;
    let began = Instant::now();
    let Published::Version(now) = control.publish_config(&text(PUSHES), "scale", 0, version, None).await? else {
        return Err("the push was not taken".into());
    };
    version = now;
    wait_for("the push everywhere, by polls", || nodes.iter().all(|node| node.handle.config_version() == version)).await?;
    let polled = began.elapsed();
    ask(&observer, &["ACL", "SETUSER", "default", "+subscribe"]).await?;

    let killed = leader(&nodes).ok_or("nobody leads")?;
    let gone = nodes.swap_remove(killed);
    gone.task.abort();
    let elected = wait_for_leader(&nodes, Some(gone.handle.me())).await?;
    nodes.iter().for_each(|node| node.task.abort());
    let seconds = window.as_secs_f64();
    Ok(Row {
        nodes: count,
        joined,
        cpu_percent: used.cpu_s / seconds * 100.0,
        bytes_per_s: used.bytes / seconds,
        commands_per_s: used.commands / seconds,
        pushed,
        polled,
        elected,
    })
}

/// One command; its answer as text, if it is one.
async fn ask(observer: &Valkey, words: &[&str]) -> Result<String, Box<dyn Error>> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    Ok(match observer.command(&command).await? {
        Value::BulkString(bytes) => String::from_utf8(bytes)?,
        Value::VerbatimString { text, .. } => text,
        _ => String::new(),
    })
}

/// What the server has used since its start.
struct Use {
    cpu_s: f64,
    bytes: f64,
    commands: f64,
}

impl Use {
    async fn of(observer: &Valkey) -> Result<Use, Box<dyn Error>> {
        let (cpu, stats) = (ask(observer, &["INFO", "cpu"]).await?, ask(observer, &["INFO", "stats"]).await?);
        let figure = |text: &str, key: &str| -> Result<f64, Box<dyn Error>> {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            Ok(line.ok_or_else(|| format!("INFO has no {key}"))?.trim().parse()?)
        };
        Ok(Use {
            cpu_s: figure(&cpu, "used_cpu_user")? + figure(&cpu, "used_cpu_sys")?,
            bytes: figure(&stats, "total_net_input_bytes")? + figure(&stats, "total_net_output_bytes")?,
            commands: figure(&stats, "total_commands_processed")?,
        })
    }

    fn since(&self, before: &Use) -> Use {
        Use { cpu_s: self.cpu_s - before.cpu_s, bytes: self.bytes - before.bytes, commands: self.commands - before.commands }
    }
}
