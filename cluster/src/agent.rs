//! One node's life in the cluster: heartbeats, election, configs, the leader's chores. A task on the coordinator's thread.
//!
//! It holds no rule of its own: it asks the pure parts what to do, does it, and tells them what came of it. Nothing in the path of a
//! mail waits for it.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet};
use tracing::{error, info, warn};

use crate::{
    boot_time::BootTime,
    chores::Chores,
    config_watch::{ConfigName, ConfigWatch, NotApplied},
    control_plane::{ControlPlane, Fetched, Heartbeat},
    election::{Answer, ElectionTimes, Step},
    fence::Verdict,
    floor_file::FloorFile,
    handle::{ClusterHandle, Command, Known},
    identity::{Epoch, Leadership},
    membership::{Member, Members},
    pushed_config::PushedConfig,
    shares::{Division, Shares},
    shares_file::SharesFile,
    standing::Standing,
    surroundings::{AgentSettings, LocalState, Surroundings},
    valkey::{Message, random_u64},
    valkey_error::ValkeyError,
};

mod commands;
mod configs;
mod events;
mod members;

/// How often the election looks at the clock.
const TICK: Duration = Duration::from_millis(50);
/// How soon a first heartbeat that failed is sent again.
const FIRST_BEAT_AGAIN: Duration = Duration::from_millis(250);
/// How often a leader does its chores.
const CHORES_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether Valkey's settings are still such that it can be used.
const POLICY_EVERY: Duration = Duration::from_secs(60);
/// Nodes not seen for so many times `node_ttl` are forgotten.
const FORGOTTEN_AFTER_TTLS: u32 = 20;

/// What one of the agent's tasks came to.
enum Outcome {
    Elected(Answer),
    Persisted(Leadership, io::Result<()>),
    Observed(LocalState),
    Pulse(Result<Heartbeat, ValkeyError>),
    /// The list of nodes, and after how many elections it was asked for.
    Members(u64, Result<(u64, Vec<Member>), ValkeyError>),
    Config(Result<Fetched, ValkeyError>),
    Applied(ConfigName, PushedConfig, Result<(), NotApplied>),
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
    shares: SharesFile,
    config: ConfigWatch,
    pushed: PushedConfig,
    tasks: JoinSet<Outcome>,
    next_heartbeat: BootTime,
    next_chores: BootTime,
    next_policy_look: BootTime,
    is_beating: bool,
    /// Valkey answers, and does not take its heartbeats: to others it is not there.
    are_beats_refused: bool,
    is_first_beat: bool,
    is_persisting: bool,
    is_reading_members: bool,
    wants_members: bool,
    /// The list of nodes is not read before this.
    next_members: BootTime,
    is_doing_chores: bool,
    /// The list of nodes was read since this node was elected.
    is_list_of_term: bool,
    /// How often this node was elected.
    terms: u64,
    /// What was set from outside for all nodes.
    poll_set: Option<Duration>,
    /// That heartbeats are refused was told.
    has_told_refusal: bool,
    is_displaced: bool,
    was_leading: bool,
    /// A config that is none was told.
    has_refused_config: bool,
    /// An epoch out of reach was told.
    has_refused_epoch: bool,
    /// When replicas were missing for a lease last.
    replicas_missed_at: Option<BootTime>,
    /// A lease that does not run out was told.
    has_told_frozen: bool,
    masters_alive: bool,
}

/// The world's clock.
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Agent {
    /// Reads what the node's disk knows of the cluster. Fails when that cannot be read: the epoch's floor must not be forgotten.
    pub fn new(settings: AgentSettings, control: ControlPlane, surroundings: Arc<dyn Surroundings>) -> io::Result<Agent> {
        let floor = FloorFile::open(&settings.folder)?;
        let accepted = floor.read()?;
        let shares = SharesFile::open(&settings.folder);
        let pushed = PushedConfig::open(&settings.folder)?;
        let kept = ConfigName::new(pushed.version(), pushed.text().map(|text| control.config_hash(&text)).unwrap_or_default());
        let config = match &settings.pushed_unfit {
            None => ConfigWatch::new(kept, settings.config_poll),
            Some(reason) => ConfigWatch::refusing(kept, reason.clone(), settings.config_poll),
        };
        let (sender, commands) = mpsc::channel(16);
        let epoch = accepted.as_ref().map_or(Epoch(0), |accepted| accepted.epoch);
        let known = Known {
            members: Members::new(settings.heartbeat_interval, settings.node_ttl).unread_since(BootTime::now(), unix_ms()),
            own: None,
            leader: None,
            is_leader: false,
            epoch,
            local: LocalState::default(),
            config_version: config.running(),
            generation: String::new(),
            counters: BTreeMap::new(),
            shares: shares.kept(),
            ousted: None,
            config_unusable: None,
            metadata: settings.metadata.clone(),
        };
        let handle =
            ClusterHandle { me: settings.me.clone(), control: control.clone(), known: Arc::new(Mutex::new(known)), commands: sender };
        let times = ElectionTimes::of(settings.leader_ttl, settings.heartbeat_interval);
        let standing = Standing::new(settings.me.clone(), settings.role, times, accepted);
        Ok(Agent {
            settings,
            control,
            surroundings,
            handle,
            commands,
            standing,
            floor,
            shares,
            config,
            pushed,
            tasks: JoinSet::new(),
            next_heartbeat: BootTime::default(),
            next_chores: BootTime::default(),
            next_policy_look: BootTime::now() + POLICY_EVERY,
            is_beating: false,
            are_beats_refused: false,
            is_first_beat: true,
            is_persisting: false,
            is_reading_members: false,
            wants_members: false,
            next_members: BootTime::default(),
            is_doing_chores: false,
            is_list_of_term: false,
            terms: 0,
            poll_set: None,
            has_told_refusal: false,
            is_displaced: false,
            was_leading: false,
            has_refused_config: false,
            has_refused_epoch: false,
            replicas_missed_at: None,
            has_told_frozen: false,
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

    /// One of [`COUNTERS`](crate::handle::COUNTERS).
    fn count(&self, counter: &str) {
        debug_assert!(crate::handle::COUNTERS.contains(&counter), "{counter} is exported from 0 on");
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
        if self.wants_members {
            self.read_members(now);
        }
        if now >= self.next_chores && !self.is_doing_chores {
            self.next_chores = now + CHORES_EVERY;
            self.do_chores(now);
        }
        if now >= self.next_policy_look {
            self.next_policy_look = now + POLICY_EVERY;
            let valkey = self.control.valkey().clone();
            self.tasks.spawn(async move {
                valkey.check_policy().await;
                Outcome::Nothing
            });
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
        if !self.is_list_of_term {
            // L11: what this node knew before it led, perhaps nothing, is not what limits are divided by. The list brings the chores.
            return self.read_members(now);
        }
        self.is_doing_chores = true;
        let chores = Chores {
            leadership: leadership.clone(),
            rollout: self.handle.nodes().into_iter().map(|node| (node.id.to_string(), node.config_version)).collect(),
            shares: self.handle.known().members.shares(),
            forgotten_after: self.settings.node_ttl * FORGOTTEN_AFTER_TTLS,
        };
        let (control, surroundings) = (self.control.clone(), self.surroundings.clone());
        self.tasks.spawn(async move {
            Outcome::Chores(match chores.run(&control).await {
                Ok(Ok(_)) => surroundings.chores(leadership).await,
                other => other,
            })
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
            Outcome::Members(terms, result) => {
                self.is_reading_members = false;
                if let Ok((server_now, members)) = result {
                    if terms == self.terms && !std::mem::replace(&mut self.is_list_of_term, true) {
                        self.next_chores = now;
                    }
                    self.next_members = now + self.members_pause(now, members.len());
                    self.update_members(now, members, server_now);
                }
            }
            Outcome::Config(fetched) => self.config_fetched(fetched),
            Outcome::Applied(name, pushed, result) => self.applied(name, pushed, result),
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

    fn beat(&mut self, mut local: LocalState) {
        if local.last_error.is_none() {
            let refusal = self.control.valkey().refusal();
            local.last_error = refusal.map(|reason| format!("Valkey answers, and refuses what this node asks: {reason}"));
        }
        let (stalled, is_unfit) = (local.stalled.clone(), local.unfit);
        let record = local.record(&self.settings, self.standing.floor(), &self.config, &self.handle.known());
        {
            let mut known = self.handle.known();
            (known.local, known.own) = (local, Some(record.clone()));
        }
        self.standing.set_fit(stalled.is_none() && !is_unfit && !self.are_beats_refused);
        if let Some(reason) = stalled {
            // A node whose shards hang must not look alive.
            self.is_beating = false;
            self.count("heartbeats_withheld");
            warn!(reason, "no heartbeat is sent");
            let now = BootTime::now();
            // Nor must it lead, or stand; what others do it reads as before.
            self.standing.hand_over(now);
            self.read_members(now);
            return;
        }
        let (control, me, floor) = (self.control.clone(), self.settings.me.clone(), self.standing.floor());
        // The first one takes the id over from an earlier process of the node.
        let rival_ttl = if self.is_first_beat { Duration::ZERO } else { self.settings.node_ttl };
        self.tasks.spawn(async move { Outcome::Pulse(control.heartbeat(&me, floor, &record, rival_ttl).await) });
    }

    fn pulse(&mut self, now: BootTime, result: Result<Heartbeat, ValkeyError>) {
        self.is_beating = false;
        match result {
            Ok(Heartbeat::Taken(pulse)) => {
                self.is_first_beat = false;
                self.is_displaced = false;
                self.has_told_refusal = false;
                self.are_beats_refused = false;
                self.standing.saw(now, pulse.epoch, pulse.leader.clone());
                if let Some(leader) = pulse.leader.clone() {
                    // Following is accepting: from now on its predecessors are refused here.
                    self.follow(leader);
                }
                if let Ok(plan) = pulse.plan.parse::<Leadership>() {
                    self.follow(plan);
                }
                self.poll_heard(now, &pulse);
                self.config.heard(ConfigName::new(pulse.config_version, pulse.config_hash));
                if pulse.config_version < self.config.running() {
                    self.restore_config();
                }
                if let Some(Division { by, shares }) = pulse.shares {
                    // One that is not accepted yet is heard with a later heartbeat.
                    self.follow(by.clone());
                    if self.standing.judge(&by) == Verdict::Current {
                        self.divide(shares);
                    }
                }
                self.handle.known().taken(pulse.generation);
                self.read_members(now);
            }
            Ok(Heartbeat::Displaced(by)) => {
                if !self.is_displaced {
                    error!(by, "another process uses this node's id: cluster.node_id must be unique");
                }
                self.handle.known().ousted = Some(format!("another process uses this node's id, which must be its own: {by}"));
                self.is_displaced = true;
                self.standing.hand_over(now);
                self.read_members(now);
            }
            Err(reason) => {
                self.count("heartbeats_failed");
                if self.is_first_beat {
                    // The queue waits for it (`PartitionCount`), and other nodes leave owners two seconds to take out what they have delivered.
                    self.next_heartbeat = self.next_heartbeat.min(now + FIRST_BEAT_AGAIN);
                }
                let is_told = reason.is_away();
                if !is_told || matches!(reason, ValkeyError::Misconfigured(_)) {
                    self.handle.known().ousted = Some(format!("its heartbeats are refused, to others it is offline: {reason}"));
                    // The election's own calls may need fewer rights. Whom nobody sees is not to lead, nor to stand.
                    self.are_beats_refused = true;
                    self.standing.set_fit(false);
                }
                if !is_told && !std::mem::replace(&mut self.has_told_refusal, true) {
                    error!(%reason, "heartbeats of this node are refused: to others it is offline");
                }
            }
        }
    }

    /// The leader's word about shared limits. It is kept: a node that starts while Valkey is away has its part and no more.
    fn divide(&mut self, shares: Shares) {
        if self.handle.shares() != shares {
            info!(nodes = shares.nodes, connected_permille = shares.connected_permille, "shared limits are divided anew");
            self.handle.known().shares = shares;
            let (file, handle) = (self.shares.clone(), self.handle.clone());
            self.tasks.spawn(async move {
                if let Ok(Err(reason)) = tokio::task::spawn_blocking(move || file.keep(|| handle.shares())).await {
                    warn!(%reason, "how shared limits are divided could not be kept: a start without Valkey goes by what was kept before");
                }
                Outcome::Nothing
            });
        }
    }

    fn follow(&mut self, leader: Leadership) {
        match self.standing.judge(&leader) {
            Verdict::Newer if leader.incarnation != self.settings.me => self.persist(leader),
            Verdict::Rival(_) => self.count("rival_leaders_refused"),
            Verdict::OutOfReach(_) => self.refuse_epoch(leader.epoch),
            Verdict::Newer | Verdict::Current | Verdict::Stale(_) => {}
        }
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
                let (version, hash) = rest.split_once(' ').unwrap_or((rest, ""));
                if let Ok(version) = version.parse() {
                    self.config.heard(ConfigName::new(version, hash));
                }
            }
            ("joined" | "left", _) => self.read_members(now),
            ("elected", who) => match who.parse::<Leadership>() {
                // The own election counts by the answer to the own call alone.
                Ok(leader) if leader.incarnation != self.settings.me => {
                    self.standing.saw(now, leader.epoch, Some(leader.clone()));
                    self.follow(leader);
                }
                _ => {}
            },
            ("released", _) => {
                self.standing.hurry(now, random_u64());
                self.next_heartbeat = BootTime::default();
            }
            // A version before asks whoever leads.
            ("handover", who) if self.standing.leadership(now).is_some_and(|mine| who.is_empty() || who == mine.to_string()) => {
                self.standing.hand_over(now);
            }
            _ => {}
        }
    }
}
