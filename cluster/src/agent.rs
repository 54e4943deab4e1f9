//! One node's life in the cluster: heartbeats, election, configs, the leader's chores. A task on the coordinator's thread.
//!
//! It holds no rule of its own: it asks the pure parts what to do, does it, and tells them what came of it. Nothing in the path of a
//! mail waits for it.

use std::{
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tracing::{error, info, warn};

use crate::{
    boot_time::BootTime,
    config_watch::ConfigWatch,
    control_plane::{ControlPlane, Fetched, Heartbeat},
    election::{Answer, ElectionTimes, Event, Step},
    fence::Verdict,
    floor_file::FloorFile,
    identity::{Epoch, Incarnation, Leadership, Role},
    membership::{Member, MemberCounts, MemberEvent, Members, NodeRecord, NodeView, Status},
    pushed_config::PushedConfig,
    standing::Standing,
    valkey::{Message, random_u64},
    valkey_error::ValkeyError,
};

/// How often the election looks at the clock.
const TICK: Duration = Duration::from_millis(50);
/// How often a leader does its chores.
const CHORES_EVERY: Duration = Duration::from_secs(5);
/// Nodes not seen for so many times `node_ttl` are forgotten.
const FORGOTTEN_AFTER_TTLS: u32 = 20;

/// What the cluster section of the config says, and what the process is.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// This process.
    pub me: Incarnation,
    /// What it may become.
    pub role: Role,
    /// Where clients and other nodes reach it.
    pub address: String,
    /// The program's version.
    pub version: String,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// Without one for so long a node is offline.
    pub node_ttl: Duration,
    /// The leader's lease.
    pub leader_ttl: Duration,
    /// Replicas that must have the lease; 0: none is asked.
    pub replicas_required: u32,
    /// How often to ask for a config when none was heard of.
    pub config_poll: Duration,
    /// Where the accepted leadership and the pushed config are kept.
    pub folder: PathBuf,
}

/// What the node says of itself when it is asked.
#[derive(Clone, Debug, Default)]
pub struct LocalState {
    /// SMTP sessions.
    pub connections: u64,
    /// Messages in the queue.
    pub queue_depth: u64,
    /// 0.0 to 1.0.
    pub load: f64,
    /// Takes less mail, or none.
    pub shedding: bool,
    /// What is wrong.
    pub last_error: Option<String>,
    /// How often each shard answered.
    pub progress: Vec<u64>,
    /// A shard that does not move: no heartbeat is sent.
    pub stalled: Option<String>,
}

/// A future on the heap.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the agent needs of the process around it.
pub trait Surroundings: Send + Sync + 'static {
    /// How the node is. Within a second, whatever the shards do.
    fn observe(&self) -> Boxed<LocalState>;
    /// Runs with this pushed config from now on, or says why not and changes nothing.
    fn apply(&self, version: u64, text: String) -> Boxed<Result<(), String>>;
    /// This node leads from now on, or no longer.
    fn leads(&self, leadership: Option<Leadership>);
}

/// What operators ask of the agent.
#[derive(Debug)]
enum Command {
    HandOver(oneshot::Sender<Result<(), ValkeyError>>),
    Leave(oneshot::Sender<()>),
}

/// Field names are those of the admin API.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClusterStats {
    /// Over all nodes.
    #[serde(flatten)]
    pub counts: MemberCounts,
    /// The node that leads; None: nobody does.
    pub leader: Option<String>,
    /// Whether it is this one.
    pub is_leader: bool,
    /// The highest epoch this node has accepted.
    pub epoch: Epoch,
    /// This node.
    pub local_node_id: String,
    /// How it is.
    pub local_node_status: Status,
    /// Whether Valkey answers. If not, all above is what was known last.
    pub valkey_available: bool,
    /// The pushed config that runs here; 0: none.
    pub config_version: u64,
    /// Random, and new when Valkey's data began anew.
    pub generation: String,
    /// Leadership gained and lost, members' changes and the like, since the start.
    pub counters: std::collections::BTreeMap<String, u64>,
}

struct Known {
    members: Members,
    leader: Option<Leadership>,
    is_leader: bool,
    epoch: Epoch,
    local: LocalState,
    config_version: u64,
    generation: String,
    counters: std::collections::BTreeMap<String, u64>,
}

/// The agent as others see it. Cheap to clone.
#[derive(Clone)]
pub struct ClusterHandle {
    me: Incarnation,
    control: ControlPlane,
    known: Arc<Mutex<Known>>,
    commands: mpsc::Sender<Command>,
}

impl ClusterHandle {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no panic happens under this lock")
    }

    /// The calls to Valkey.
    pub fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// This process.
    pub fn me(&self) -> &Incarnation {
        &self.me
    }

    /// Counts and who leads, as known here.
    pub fn stats(&self) -> ClusterStats {
        let valkey_available = !self.control.valkey().is_away();
        let known = self.known();
        let own = known.members.status_of(self.me.node());
        let ill = known.local.stalled.is_some() || known.local.last_error.is_some() || known.local.shedding;
        // Without Valkey the node knows of itself alone, and that first hand.
        let local_node_status = match own {
            Some(status) if valkey_available => status,
            _ if ill => Status::Degraded,
            _ => Status::Healthy,
        };
        ClusterStats {
            counts: known.members.counts(),
            leader: known.leader.as_ref().map(|leader| leader.incarnation.node().to_string()),
            is_leader: known.is_leader,
            epoch: known.epoch,
            local_node_id: self.me.node().to_string(),
            local_node_status,
            valkey_available,
            config_version: known.config_version,
            generation: known.generation.clone(),
            counters: known.counters.clone(),
        }
    }

    /// The nodes, as known here.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.known().members.views()
    }

    /// The version of the pushed config that runs here.
    pub fn config_version(&self) -> u64 {
        self.known().config_version
    }

    /// Asks whoever leads to let another lead.
    pub async fn hand_over(&self) -> Result<(), ValkeyError> {
        let (sender, receiver) = oneshot::channel();
        let gone = || ValkeyError::Unreachable("the cluster's task has ended".to_owned());
        self.commands.send(Command::HandOver(sender)).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// Leaves in order: gives up leadership and is no longer counted. Returns when that is done or has failed.
    pub async fn leave(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(Command::Leave(sender)).await.is_ok() {
            let _ = receiver.await;
        }
    }
}

/// What one of the agent's tasks came to.
enum Outcome {
    Elected(Answer),
    Persisted(Leadership, io::Result<()>),
    Observed(LocalState),
    Pulse(Result<Heartbeat, ValkeyError>),
    Members(Result<(u64, Vec<Member>), ValkeyError>),
    Config(Result<Fetched, ValkeyError>),
    Applied(u64, String, String, Result<(), String>),
    Chores(Result<Result<u64, Epoch>, ValkeyError>),
    Nothing,
}

/// The task's state.
pub struct Agent {
    settings: AgentSettings,
    control: ControlPlane,
    surroundings: Arc<dyn Surroundings>,
    handle: ClusterHandle,
    commands: mpsc::Receiver<Command>,
    standing: Standing,
    floor: FloorFile,
    config: ConfigWatch,
    pushed: PushedConfig,
    tasks: JoinSet<Outcome>,
    next_heartbeat: BootTime,
    next_chores: BootTime,
    is_beating: bool,
    is_first_beat: bool,
    is_persisting: bool,
    is_reading_members: bool,
    is_doing_chores: bool,
    is_displaced: bool,
    was_leading: bool,
    masters_alive: bool,
}

impl Agent {
    /// Reads what the node's disk knows of the cluster. Fails when that cannot be read: the epoch's floor must not be forgotten.
    pub fn new(settings: AgentSettings, control: ControlPlane, surroundings: Arc<dyn Surroundings>) -> io::Result<Agent> {
        let floor = FloorFile::open(&settings.folder)?;
        let accepted = floor.read()?;
        let pushed = PushedConfig::open(&settings.folder)?;
        let (version, hash) = pushed.version();
        let (sender, commands) = mpsc::channel(16);
        let epoch = accepted.as_ref().map_or(Epoch(0), |accepted| accepted.epoch);
        let known = Known {
            members: Members::new(settings.heartbeat_interval, settings.node_ttl),
            leader: None,
            is_leader: false,
            epoch,
            local: LocalState::default(),
            config_version: version,
            generation: String::new(),
            counters: std::collections::BTreeMap::new(),
        };
        let handle =
            ClusterHandle { me: settings.me.clone(), control: control.clone(), known: Arc::new(Mutex::new(known)), commands: sender };
        let standing = Standing::new(settings.me.clone(), settings.role, ElectionTimes::of(settings.leader_ttl), accepted);
        let config = ConfigWatch::new(version, hash, settings.config_poll);
        Ok(Agent {
            settings,
            control,
            surroundings,
            handle,
            commands,
            standing,
            floor,
            config,
            pushed,
            tasks: JoinSet::new(),
            next_heartbeat: BootTime::default(),
            next_chores: BootTime::default(),
            is_beating: false,
            is_first_beat: true,
            is_persisting: false,
            is_reading_members: false,
            is_doing_chores: false,
            is_displaced: false,
            was_leading: false,
            masters_alive: true,
        })
    }

    /// How others see and steer it.
    pub fn handle(&self) -> ClusterHandle {
        self.handle.clone()
    }

    /// Runs until it is asked to leave.
    pub async fn run(mut self) {
        let mut events = self.control.valkey().subscribe(vec![self.control.events_channel()]);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.drive();
            tokio::select! {
                _ = tick.tick() => {}
                Some(outcome) = self.tasks.join_next() => match outcome {
                    Ok(outcome) => self.take(outcome),
                    Err(failed) => warn!(%failed, "a task of the cluster was given up"),
                },
                Some(message) = events.recv() => self.hear(&message),
                Some(command) = self.commands.recv() => if self.obey(command).await { return },
            }
        }
    }

    fn count(&self, counter: &str) {
        *self.handle.known().counters.entry(counter.to_owned()).or_default() += 1;
    }

    /// Starts what is due. Never waits.
    fn drive(&mut self) {
        let now = BootTime::now();
        match self.standing.next(now, self.masters_alive, random_u64()) {
            Step::Wait(_) => {}
            step => {
                let (control, me) = (self.control.clone(), self.settings.me.clone());
                let (ttl, replicas) = (self.settings.leader_ttl, self.settings.replicas_required);
                self.tasks.spawn(async move { Outcome::Elected(control.elect(&me, &step, ttl, replicas).await) });
            }
        }
        if let Some(mine) = self.standing.to_persist() {
            self.persist(mine);
        }
        if now >= self.next_heartbeat && !self.is_beating {
            self.is_beating = true;
            self.next_heartbeat = now + self.settings.heartbeat_interval;
            let observing = self.surroundings.observe();
            self.tasks.spawn(async move { Outcome::Observed(observing.await) });
        }
        if self.config.is_due(now) {
            self.config.asks(now, random_u64());
            let (control, hash) = (self.control.clone(), self.config.running_hash().to_owned());
            self.tasks.spawn(async move { Outcome::Config(control.read_config(None, &hash).await) });
        }
        if now >= self.next_chores && !self.is_doing_chores {
            self.next_chores = now + CHORES_EVERY;
            self.do_chores(now);
        }
        self.publish(now);
    }

    fn persist(&mut self, leadership: Leadership) {
        if self.is_persisting {
            return;
        }
        self.is_persisting = true;
        let floor = self.floor.clone();
        // A sync can take long on a busy disk; the election must go on looking at the clock.
        self.tasks.spawn(async move {
            let written = leadership.clone();
            let result = tokio::task::spawn_blocking(move || floor.write(&written)).await;
            Outcome::Persisted(leadership, result.unwrap_or_else(|_| Err(io::Error::other("given up"))))
        });
    }

    /// What the leader alone does: idempotent, fenced, and nothing that mail needs (L10).
    fn do_chores(&mut self, now: BootTime) {
        let Some(leadership) = self.standing.leadership(now) else { return };
        self.is_doing_chores = true;
        let rollout: std::collections::BTreeMap<String, u64> =
            self.handle.nodes().into_iter().map(|node| (node.id.to_string(), node.config_version)).collect();
        let control = self.control.clone();
        let forgotten_after = self.settings.node_ttl * FORGOTTEN_AFTER_TTLS;
        self.tasks.spawn(async move {
            let text = serde_json::to_string(&rollout).expect("names and numbers");
            let result = match control.write_rollout(leadership.epoch, &text).await {
                Ok(Ok(_)) => match control.write_plan(leadership.epoch, &format!("{leadership}")).await {
                    Ok(Ok(_)) => control.prune_members(leadership.epoch, forgotten_after).await,
                    other => other,
                },
                other => other,
            };
            Outcome::Chores(result)
        });
    }

    fn take(&mut self, outcome: Outcome) {
        let now = BootTime::now();
        match outcome {
            Outcome::Elected(answer) => self.standing.answered(now, answer),
            Outcome::Persisted(leadership, Ok(())) => {
                self.is_persisting = false;
                if self.standing.judge(&leadership) == Verdict::Newer {
                    self.standing.accept(now, leadership);
                }
            }
            Outcome::Persisted(leadership, Err(reason)) => {
                self.is_persisting = false;
                error!(%reason, %leadership, "the epoch could not be written: this node neither leads nor follows a new leader");
            }
            Outcome::Observed(local) => self.beat(local),
            Outcome::Pulse(result) => self.pulse(now, result),
            Outcome::Members(result) => {
                self.is_reading_members = false;
                if let Ok((server_now, members)) = result {
                    self.update_members(members, server_now);
                }
            }
            Outcome::Config(Ok(fetched)) => {
                let hash = self.config.running_hash().to_owned();
                let is_wanted = self.config.answered(match &fetched {
                    Fetched::Nothing => None,
                    Fetched::Unchanged(version) => Some((*version, hash.as_str())),
                    Fetched::Config(config, _) => Some((config.version, config.hash.as_str())),
                });
                self.handle.known().config_version = self.config.running();
                if let (true, Some((config, text))) = (is_wanted, fetched.config()) {
                    let applying = self.surroundings.apply(config.version, text.clone());
                    self.tasks.spawn(async move { Outcome::Applied(config.version, config.hash, text, applying.await) });
                }
            }
            Outcome::Config(Err(_)) => {
                self.config.answered(None);
            }
            Outcome::Applied(version, hash, text, result) => self.applied(version, &hash, &text, result),
            Outcome::Chores(result) => {
                self.is_doing_chores = false;
                if let Ok(Err(epoch)) = result {
                    self.count("stale_effects_refused");
                    self.standing.refused(epoch);
                }
            }
            Outcome::Nothing => {}
        }
    }

    fn beat(&mut self, local: LocalState) {
        let stalled = local.stalled.clone();
        let record = self.record(&local);
        self.handle.known().local = local;
        if let Some(reason) = stalled {
            // A node whose shards hang must not look alive.
            self.is_beating = false;
            self.count("heartbeats_withheld");
            warn!(reason, "no heartbeat is sent");
            return;
        }
        let (control, me, floor, is_first) = (self.control.clone(), self.settings.me.clone(), self.standing.floor(), self.is_first_beat);
        self.tasks.spawn(async move { Outcome::Pulse(control.heartbeat(&me, floor, &record, is_first).await) });
    }

    fn record(&self, local: &LocalState) -> NodeRecord {
        let settings = &self.settings;
        let short = |text: &String| text.chars().take(200).collect::<String>();
        NodeRecord {
            id: settings.me.node().clone(),
            incarnation: settings.me.to_string(),
            address: settings.address.clone(),
            role: settings.role,
            version: settings.version.clone(),
            epoch: self.standing.floor(),
            config_version: self.config.running(),
            config_refused: self
                .config
                .refused()
                .cloned()
                .map(|refused| crate::membership::ConfigRefused { reason: refused.reason.chars().take(1000).collect(), ..refused }),
            connections: local.connections,
            queue_depth: local.queue_depth,
            load: local.load,
            shedding: local.shedding,
            last_error: local.last_error.as_ref().map(short),
            progress: local.progress.iter().copied().take(64).collect(),
            metadata: std::collections::BTreeMap::new(),
        }
    }

    fn pulse(&mut self, now: BootTime, result: Result<Heartbeat, ValkeyError>) {
        self.is_beating = false;
        match result {
            Ok(Heartbeat::Taken(pulse)) => {
                self.is_first_beat = false;
                self.is_displaced = false;
                self.standing.saw(pulse.epoch, pulse.leader.clone());
                if let Some(leader) = pulse.leader {
                    // Following is accepting: from now on its predecessors are refused here.
                    self.follow(leader);
                }
                if let Ok(plan) = pulse.plan.parse::<Leadership>() {
                    self.follow(plan);
                }
                self.config.heard(pulse.config_version);
                self.config.set_poll(pulse.poll.unwrap_or(self.settings.config_poll));
                if pulse.config_version < self.config.running() {
                    self.restore_config();
                }
                self.handle.known().generation = pulse.generation;
                self.read_members();
            }
            Ok(Heartbeat::Displaced(by)) => {
                if !self.is_displaced {
                    error!(by, "another process uses this node's id: cluster.node_id must be unique");
                }
                self.is_displaced = true;
                self.standing.hand_over(now);
            }
            Err(_) => self.count("heartbeats_failed"),
        }
    }

    fn follow(&mut self, leader: Leadership) {
        match self.standing.judge(&leader) {
            Verdict::Newer if leader.incarnation != self.settings.me => self.persist(leader),
            Verdict::Rival(_) => self.count("rival_leaders_refused"),
            Verdict::Newer | Verdict::Current | Verdict::Stale(_) => {}
        }
    }

    fn restore_config(&mut self) {
        let (control, version) = (self.control.clone(), self.config.running());
        let Some(text) = self.pushed.text() else { return };
        self.tasks.spawn(async move {
            if let Ok(published) = control.restore_config(version, &text).await {
                info!(version, ?published, "Valkey lost the pushed config and was given it back");
            }
            Outcome::Nothing
        });
    }

    fn read_members(&mut self) {
        if !self.is_reading_members {
            self.is_reading_members = true;
            let control = self.control.clone();
            self.tasks.spawn(async move { Outcome::Members(control.members().await) });
        }
    }

    fn update_members(&mut self, members: Vec<Member>, server_now_ms: u64) {
        let events = {
            let mut known = self.handle.known();
            let events = known.members.update(members, server_now_ms);
            self.masters_alive = known.members.masters_alive();
            events
        };
        for event in events {
            match event {
                MemberEvent::Joined(node) => {
                    info!(%node, "node joined");
                    self.count("nodes_joined");
                }
                MemberEvent::Left(node) => {
                    info!(%node, "node left");
                    self.count("nodes_left");
                }
                MemberEvent::HealthChanged(node, from, to) => {
                    info!(%node, ?from, ?to, "node's health changed");
                    self.count("health_changes");
                }
            }
        }
    }

    fn applied(&mut self, version: u64, hash: &str, text: &str, result: Result<(), String>) {
        let result = match result {
            Ok(()) => self.pushed.keep(version, hash, text).map_err(|reason| format!("it could not be kept: {reason}")),
            Err(reason) => Err(reason),
        };
        match &result {
            Ok(()) => info!(version, "the pushed config runs"),
            Err(reason) => warn!(version, reason, "the pushed config is refused: the former one goes on"),
        }
        self.count(if result.is_ok() { "configs_applied" } else { "configs_refused" });
        self.config.applied(version, hash, result);
        self.handle.known().config_version = self.config.running();
        // The others hear of it with the next heartbeat, which is now.
        self.next_heartbeat = BootTime::default();
    }

    fn hear(&mut self, message: &Message) {
        let now = BootTime::now();
        if message.channel.is_empty() {
            // A new connection: whatever was said meanwhile was missed.
            self.next_heartbeat = BootTime::default();
            return;
        }
        match message.payload.split_once(' ').unwrap_or((&message.payload, "")) {
            ("config", rest) => {
                if let Some(version) = rest.split(' ').next().and_then(|version| version.parse().ok()) {
                    self.config.heard(version);
                }
            }
            ("joined" | "left", _) => self.read_members(),
            ("elected", who) => match who.parse::<Leadership>() {
                // The own election counts by the answer to the own call alone.
                Ok(leader) if leader.incarnation != self.settings.me => {
                    self.standing.saw(leader.epoch, Some(leader.clone()));
                    self.follow(leader);
                }
                _ => {}
            },
            ("released", _) => {
                self.standing.hurry(now, random_u64());
                self.next_heartbeat = BootTime::default();
            }
            ("handover", _) if self.standing.leadership(now).is_some() => self.standing.hand_over(now),
            _ => {}
        }
    }

    /// True: the agent ends.
    async fn obey(&mut self, command: Command) -> bool {
        let now = BootTime::now();
        match command {
            Command::HandOver(done) => {
                if self.standing.leadership(now).is_some() {
                    self.standing.hand_over(now);
                    let _ = done.send(Ok(()));
                } else {
                    let control = self.control.clone();
                    self.tasks.spawn(async move {
                        let _ = done.send(control.ask_hand_over().await);
                        Outcome::Nothing
                    });
                }
                false
            }
            Command::Leave(done) => {
                // Leadership ends before anything else does (L11).
                let leadership = self.standing.leadership(now);
                self.standing.hand_over(now);
                self.publish(now);
                if let Some(mine) = leadership {
                    self.control.elect(&self.settings.me, &Step::Release(mine), self.settings.leader_ttl, 0).await;
                }
                if let Err(reason) = self.control.leave(&self.settings.me).await {
                    info!(%reason, "left without a word: Valkey is away");
                }
                let _ = done.send(());
                true
            }
        }
    }

    /// Logs what changed and shows it to others.
    fn publish(&mut self, now: BootTime) {
        for event in self.standing.take_events() {
            match event {
                Event::Elected(epoch) => {
                    info!(%epoch, "this node leads");
                    self.count("elected");
                    self.next_chores = now;
                }
                Event::SteppedDown(epoch, why) => {
                    info!(%epoch, ?why, "this node leads no longer");
                    self.count("stepped_down");
                }
                Event::LeaderChanged(Some(leader)) => {
                    info!(leader = %leader.incarnation.node(), epoch = %leader.epoch, "leader changed");
                    self.count("leader_changes");
                    self.follow(leader);
                }
                Event::LeaderChanged(None) => info!("no leader"),
                Event::FrozenLease(left) => {
                    warn!(left_s = left.as_secs(), "the leader's lease outlasts its time: the clock of Valkey's host was stepped back");
                    self.count("frozen_leases");
                }
            }
        }
        let leadership = self.standing.leadership(now);
        let is_leader = leadership.is_some();
        let mut known = self.handle.known();
        known.is_leader = is_leader;
        known.leader = self.standing.leader().cloned();
        known.epoch = self.standing.floor();
        drop(known);
        if is_leader != self.was_leading {
            self.was_leading = is_leader;
            self.surroundings.leads(leadership);
        }
    }
}
