//! The nodes of a rig: engines with a cluster section, and what they say of themselves.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    engine::{Engine, EngineOptions, Route},
    machine,
    witness::ask_within,
};

/// Whatever is waited for happens within this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Pace of looking whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// A node that does not answer within this is not asked again for now.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What the nodes of one rig have in common.
#[derive(Debug, Clone)]
pub(crate) struct NodeSetup {
    /// The engine's binary.
    pub(crate) engine: PathBuf,
    /// Each node gets a folder in it.
    pub(crate) folder: PathBuf,
    /// `cluster.valkey_url`.
    pub(crate) valkey_url: String,
    /// Further lines of `[cluster]`.
    pub(crate) cluster: String,
    /// `cluster.leader_ttl`.
    pub(crate) leader_ttl: Duration,
    /// `delivery.mode = "shared"`.
    pub(crate) is_shared: bool,
    /// The route of all mail.
    pub(crate) route: Route,
}

impl NodeSetup {
    /// Nodes that keep their mail to themselves, with a lease of 3 s.
    pub(crate) fn new(engine: &Path, folder: &Path, valkey_url: String, route: Route) -> Self {
        let (engine, folder, leader_ttl) = (engine.to_path_buf(), folder.to_path_buf(), Duration::from_secs(3));
        Self { engine, folder, valkey_url, cluster: String::new(), leader_ttl, is_shared: false, route }
    }

    /// Node `n<number>`, which `delivers` what it accepts or only offers it; for [`Engine::new`].
    pub(crate) fn node(&self, number: usize, delivers: bool) -> io::Result<EngineOptions> {
        let home = self.folder.join(format!("n{number}"));
        std::fs::create_dir_all(&home)?;
        let mut options = EngineOptions::new(&self.engine, &home, self.route)?;
        let (shards, _) = machine::shares()?;
        options.cores = vec![shards[number % shards.len()]];
        options.segment_mib = Some(16);
        let mut lines = format!("enabled = true\nnode_id = \"n{number}\"\nvalkey_url = \"{}\"\n", self.valkey_url);
        lines += "heartbeat_interval = \"1s\"\nnode_ttl = \"5s\"\nlease_ttl = \"3s\"\n";
        write!(lines, "leader_ttl = \"{}ms\"\n{}", self.leader_ttl.as_millis(), self.cluster).expect("writing to a string does not fail");
        options.lines.push(("cluster", lines));
        if self.is_shared {
            options.lines.push(("delivery", format!("mode = \"shared\"\ndeliver = {delivers}")));
        }
        Ok(options)
    }

    /// Nodes n1 to n`count`, started; the first `fronts` of them do not deliver.
    pub(crate) fn start(&self, count: usize, fronts: usize) -> io::Result<Vec<Engine>> {
        let start = |number| {
            let mut node = Engine::new(self.node(number, number > fronts)?)?;
            node.start()?;
            Ok(node)
        };
        (1..=count).map(start).collect()
    }
}

/// Asks until `found` gives something: the answer comes from what is waited for, not from a guess of how long it takes.
pub(crate) fn wait_for<T>(what: &str, mut found: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    wait_within(PATIENCE, what, &mut found)
}

/// The same for what may take longer.
pub(crate) fn wait_within<T>(limit: Duration, what: &str, mut found: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(value) = found()? {
            return Ok(value);
        }
        if began.elapsed() > limit {
            return Err(io::Error::other(format!("{what} does not happen within {limit:?}")));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// `ringpost cluster status` of a node, over its socket; none from one that does not answer.
pub(crate) fn status(node: &Engine) -> Option<Value> {
    one(node, "{\"do\":\"status\"}")
}

/// `ringpost cluster queue stats`; none where a partition did not answer just then.
pub(crate) fn queue_stats(node: &Engine) -> Option<Value> {
    one(node, "{\"do\":\"queue\",\"ask\":{\"do\":\"stats\"}}").filter(|stats| stats["unanswered"].is_null())
}

/// Asks whoever leads to let another lead. A node whose connection to Valkey has just ended, or that knows of no leader yet, says so and is
/// asked again.
pub(crate) fn hand_over(node: &Engine) -> io::Result<()> {
    wait_for("a hand-over that is taken", || Ok((!call(node, "{\"do\":\"hand_over\"}")?.contains("\"error\"")).then_some(())))
}

fn call(node: &Engine, what: &str) -> io::Result<String> {
    ask_within(&node.socket(), &format!("{{\"call\":\"cluster\",\"ask\":{what}}}"), ANSWER_MAX)
}

fn one(node: &Engine, what: &str) -> Option<Value> {
    let answer = call(node, what).ok()?;
    let value: Value = serde_json::from_str(answer.lines().next()?).ok()?;
    value["end"].is_null().then_some(value)
}

/// The node among `asked` that says it leads, and may act.
pub(crate) fn leading(nodes: &[Engine], asked: impl IntoIterator<Item = usize>) -> Option<usize> {
    asked.into_iter().find(|&node| nodes[node].pid().is_some() && status(&nodes[node]).is_some_and(|status| status["is_leader"] == true))
}

/// Waits for a leader among all that run, other than `not`.
pub(crate) fn leader(nodes: &[Engine], not: Option<usize>) -> io::Result<usize> {
    wait_for("an election", || Ok(leading(nodes, (0..nodes.len()).filter(|node| Some(*node) != not))))
}

/// Messages in a node's queue; none while it does not answer.
pub(crate) fn depth(node: &Engine) -> Option<u64> {
    let answer = ask_within(&node.socket(), "{\"call\":\"stats\"}", ANSWER_MAX).ok()?;
    serde_json::from_str::<Value>(answer.lines().next()?).ok()?["queue_messages"].as_u64()
}
