//! Agents and the Valkey that they share, and the process around each as a test wants it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ringpost_cluster::{
    agent::Agent,
    config_watch::NotApplied,
    control_plane::{ControlPlane, Published},
    handle::ClusterHandle,
    identity::{Epoch, Incarnation, Leadership, Role},
    keyspace::Keyspace,
    pushed_config::PushedConfig,
    script::Scripts,
    surroundings::{AgentSettings, Boxed, LocalState, Surroundings},
    target::Target,
    valkey::Valkey,
    valkey_error::ValkeyError,
    work_item::ItemKey,
};
use ringpost_valkey_server::{Durability, Server};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinHandle,
};

pub const KEY: &[u8] = b"the key that all nodes of one cluster have";
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const HEARTBEAT: Duration = Duration::from_millis(300);
pub const LEADER_TTL: Duration = Duration::from_secs(2);

pub fn keyspace() -> Keyspace {
    Keyspace::new("ringpost:test").unwrap()
}

pub fn target(server: &Server) -> Target {
    Target::parse(&server.url(), None, None).unwrap()
}

/// The process around an agent, as the test wants it.
#[derive(Default)]
pub struct Process {
    pub local: LocalState,
    pub runs: String,
    pub refuses: Option<NotApplied>,
    /// Does not say how it is.
    pub is_silent: bool,
}

pub struct Scripted(Arc<Mutex<Process>>);

impl Surroundings for Scripted {
    fn observe(&self) -> Boxed<LocalState> {
        let process = self.0.lock().unwrap();
        if process.is_silent {
            return Box::pin(std::future::pending());
        }
        let local = process.local.clone();
        Box::pin(async { local })
    }

    fn apply(&self, _version: u64, text: String) -> Boxed<Result<(), NotApplied>> {
        let process = self.0.clone();
        Box::pin(async move {
            let mut process = process.lock().unwrap();
            match &process.refuses {
                Some(reason) => Err(reason.clone()),
                None => {
                    process.runs = text;
                    Ok(())
                }
            }
        })
    }

    fn chores(&self, _leadership: Leadership) -> Boxed<Result<Result<u64, Epoch>, ValkeyError>> {
        Box::pin(async { Ok(Ok(0)) })
    }

    fn leads(&self, _leadership: Option<Leadership>) {}
}

pub struct Node {
    pub handle: ClusterHandle,
    pub process: Arc<Mutex<Process>>,
    pub folder: PathBuf,
    pub task: JoinHandle<()>,
}

impl Node {
    pub fn start(number: usize, rig: &Rig, role: Role) -> Node {
        Node::start_in(number, rig, role, Process::default())
    }

    pub fn start_in(number: usize, rig: &Rig, role: Role, process: Process) -> Node {
        let folder = rig.folder.path().join(format!("n{number}"));
        let settings = AgentSettings {
            me: Incarnation::of_this_process(format!("n{number}").parse().unwrap()),
            role,
            address: "127.0.0.1:2525".to_owned(),
            version: "test".to_owned(),
            metadata: BTreeMap::new(),
            heartbeat_interval: rig.heartbeat,
            node_ttl: rig.heartbeat * 4,
            leader_ttl: LEADER_TTL,
            replicas_required: rig.replicas_required,
            config_poll: Duration::from_millis(500),
            folder: folder.clone(),
            pushed_unfit: None,
        };
        let valkey = Valkey::with_scripts(target(&rig.server), Scripts::shipped(), Duration::from_secs(1));
        let process = Arc::new(Mutex::new(process));
        let control = ControlPlane::new(valkey, keyspace()).with_key(ItemKey::new(KEY));
        let agent = Agent::new(settings, control, Arc::new(Scripted(process.clone()))).unwrap();
        Node { handle: agent.handle(), process, folder, task: tokio::spawn(agent.run()) }
    }

    pub fn runs(&self) -> String {
        self.process.lock().unwrap().runs.clone()
    }

    /// What it would begin with.
    pub fn kept(&self) -> (u64, Option<String>) {
        let pushed = PushedConfig::open(&self.folder).unwrap();
        (pushed.version(), pushed.text())
    }

    pub async fn push(&self, text: &str) -> u64 {
        match self.handle.control().publish_config(text, "ann", 0, self.handle.config_version(), None).await.unwrap() {
            Published::Version(version) => version,
            other => panic!("{other:?}"),
        }
    }

    pub fn leader(&self) -> Option<String> {
        self.handle.stats().leader
    }
}

pub struct Rig {
    pub server: Server,
    pub replicas_required: u32,
    pub heartbeat: Duration,
    pub folder: tempfile::TempDir,
    pub nodes: Vec<Node>,
}

impl Rig {
    /// One command, past the agents.
    pub fn run(&self, command: &redis::Cmd) -> redis::Value {
        let mut connection = redis::Client::open(self.server.url().replace("valkey://", "redis://")).unwrap().get_connection().unwrap();
        command.query(&mut connection).unwrap()
    }

    pub fn copy(&self, from: &str, to: &str) {
        self.run(redis::cmd("COPY").arg(from).arg(to).arg("REPLACE"));
    }

    /// Returns once somebody, and no script, has read who has the lease: that is answered before whatever is asked from now on.
    pub async fn looks_for_leader(&self) {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", self.server.port())).await.unwrap());
        stream.write_all(b"MONITOR\r\n").await.unwrap();
        let look = format!("\"GET\" \"{}\"", keyspace().leader());
        let mut seen = String::new();
        while !seen.contains(&look) || seen.contains("lua]") {
            seen.clear();
            assert!(stream.read_line(&mut seen).await.unwrap() > 0, "Valkey has ended");
        }
    }
}

/// Nodes of these roles, called n0 and so on.
pub fn with_nodes(roles: &[Role], test: impl AsyncFnOnce(&mut Rig)) {
    with_nodes_and_replicas(roles, 0, test);
}

pub fn with_nodes_and_replicas(roles: &[Role], replicas_required: u32, test: impl AsyncFnOnce(&mut Rig)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = Server::start(Durability::None);
    let mut rig = Rig { server, replicas_required, heartbeat: HEARTBEAT, folder: tempfile::tempdir().unwrap(), nodes: Vec::new() };
    runtime.block_on(async {
        for (number, role) in roles.iter().enumerate() {
            rig.nodes.push(Node::start(number, &rig, *role));
        }
        test(&mut rig).await;
        rig.nodes.iter().for_each(|node| node.task.abort());
    });
}

pub async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for_some(what, || holds().then_some(())).await;
}

/// What `found` gave at last: asked once more it may give another thing.
pub async fn wait_for_some<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
