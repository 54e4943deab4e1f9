//! This node in its cluster: the agent, the work queue, and what the agent asks of the shards.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ringpost_cluster::{
    agent::Agent,
    boot_time::BootTime,
    config_watch::NotApplied,
    control_plane::ControlPlane,
    handle::ClusterHandle,
    identity::{Epoch, Incarnation, Leadership, NodeId, Role},
    keyspace::Keyspace,
    partition_count::PartitionCount,
    progress::Progress,
    surroundings::{AgentSettings, Boxed, LocalState, Surroundings},
    target::Target,
    valkey::Valkey,
    valkey_error::ValkeyError,
    work_item::ItemKey,
    work_queue::{OUTCOME_KEPT, QueueBounds, QueueError, WorkQueue},
};
use ringpost_config::{Cluster as Settings, ClusterRole, Config, DeliveryMode, EXPIRY_MAX};
use ringpost_engine::request_lane::RequestLane;
use tracing::warn;

use crate::{
    chores::{Deaths, Walks, tidy},
    handover::{Place, TAKES_MAIL},
    reloader::Reloader,
    shard_call::counters,
};

/// The queue that mail is offered in.
pub const MAIL_QUEUE: &str = "email_delivery";
/// Part of what a node says of itself in its heartbeats: its `cluster.queue_partitions`.
pub const QUEUE_PARTITIONS: &str = "queue_partitions";
/// A shard answers the heartbeat's question within this, or the heartbeat goes without its answer.
const SHARD_ANSWER_MAX: Duration = Duration::from_millis(800);
/// A shard that has not answered for so many heartbeats, and at least this long, is stalled.
const STALLED_HEARTBEATS: u32 = 2;
const STALLED_MIN: Duration = Duration::from_secs(3);
/// The shortest key of a cluster: who reads what it signs can try shorter ones until one fits.
const KEY_BYTES_MIN: usize = 16;
/// The owner of mail that was taken over may be away for as long as mail lives, by any config that it has or is given later.
const _: () = assert!(OUTCOME_KEPT.as_secs() >= EXPIRY_MAX.as_secs() + 24 * 3600);
/// The longest secret file that is read.
const SECRET_BYTES_MAX: u64 = 4096;

/// What the rest of the process has of the cluster.
#[derive(Clone)]
pub struct ClusterNode {
    /// The agent.
    pub handle: ClusterHandle,
    /// Offered mail.
    pub queue: WorkQueue,
    /// `cluster.node_ttl`.
    pub node_ttl: Duration,
    /// `cluster.leader_ttl`.
    pub leader_ttl: Duration,
    /// `cluster.replicas_required`.
    pub replicas_required: u32,
    /// `delivery.mode` is shared.
    pub shares: bool,
    reloader: Arc<Reloader>,
}

impl ClusterNode {
    /// Starts the agent on this thread's runtime; None: the cluster is not enabled. `unfit` says why the pushed config that was kept does
    /// not run; `spool_failure` is set when the spool has failed, and says why. Fails with a sentence naming the key.
    pub fn start(
        config: &Config,
        machine: &str,
        shards: Vec<Arc<RequestLane>>,
        reloader: Arc<Reloader>,
        unfit: Option<String>,
        spool_failure: Arc<OnceLock<String>>,
    ) -> Result<Option<ClusterNode>, String> {
        let settings = &config.cluster;
        if !settings.enabled {
            return Ok(None);
        }
        let node_id: NodeId =
            settings.node_id.as_deref().unwrap_or(machine).parse().map_err(|error| format!("cluster.node_id: {error}"))?;
        let target = target_of(settings)?;
        if target.is_exposed() {
            warn!(valkey = %target, "cluster.valkey_url: Valkey is spoken to in the clear over a network; use valkeys://");
        }
        let keyspace = Keyspace::new(&settings.valkey_keyspace)
            .map_err(|why| format!("cluster.valkey_keyspace: {:?} {why}", settings.valkey_keyspace))?;
        let key = match cluster_key(settings)? {
            Some(key) => ItemKey::new(key.as_bytes()),
            None => {
                warn!(
                    "cluster.key_file is not set: whoever can write to Valkey can forge mail, end mail that is offered, and push settings"
                );
                ItemKey::new(settings.valkey_keyspace.as_bytes())
            }
        };
        if settings.replicas_required == 0 {
            warn!("cluster.replicas_required = 0: a failover of Valkey may forget the leader; fencing makes that harmless");
        }
        let me = Incarnation::of_this_process(node_id);
        // A password is changed while nodes run: each connection shows what the files have then.
        let of_start = settings.clone();
        let valkey = Valkey::with_source(target, Arc::new(move || target_of(&of_start)));
        let bounds = QueueBounds {
            partitions: u16::try_from(settings.queue_partitions).expect("at most 256"),
            capacity: u64::from(settings.queue_capacity),
            dead_max: u64::from(settings.dead_letters_max),
        };
        let partitions = Arc::new(PartitionCount::new(bounds.partitions, settings.node_ttl));
        let queue = WorkQueue::new(valkey.clone(), keyspace.clone(), MAIL_QUEUE, bounds, key.clone(), me.clone())
            .map_err(|error| error.to_string())?
            .agreed_by(partitions.clone());
        let address = settings.address.clone().unwrap_or_else(|| config.listeners[0].address.to_string());
        let stalled_after = (settings.heartbeat_interval * STALLED_HEARTBEATS).max(STALLED_MIN);
        let control = ControlPlane::new(valkey, keyspace).with_key(key).with_partitions(partitions);
        let surroundings = Arc::new(LocalNode {
            progress: Arc::new(Mutex::new(Progress::new(shards.len(), stalled_after, BootTime::now()))),
            shards,
            sessions_max: config.smtp.sessions_max,
            reloader: reloader.clone(),
            queue: queue.clone(),
            control: control.clone(),
            deaths: Arc::default(),
            walks: Arc::default(),
            dead_letters_kept: settings.dead_letters_kept,
            spool_failure,
            memory_refused: Arc::default(),
        });
        let agent_settings = AgentSettings {
            me,
            role: match settings.role {
                ClusterRole::Master => Role::Master,
                ClusterRole::Worker => Role::Worker,
                ClusterRole::Standby => Role::Standby,
            },
            address,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            metadata: metadata(config),
            heartbeat_interval: settings.heartbeat_interval,
            node_ttl: settings.node_ttl,
            leader_ttl: settings.leader_ttl,
            replicas_required: settings.replicas_required,
            config_poll: settings.config_poll,
            folder: cluster_folder(config),
            pushed_unfit: unfit,
        };
        let agent = Agent::new(agent_settings, control, surroundings).map_err(|error| format!("cluster: {error}"))?;
        let handle = agent.handle();
        let to_agent = handle.clone();
        reloader.when_reloaded(move || to_agent.retry_config());
        tokio::spawn(agent.run());
        Ok(Some(ClusterNode {
            handle,
            queue,
            node_ttl: settings.node_ttl,
            leader_ttl: settings.leader_ttl,
            replicas_required: settings.replicas_required,
            shares: config.delivery.mode == DeliveryMode::Shared,
            reloader,
        }))
    }

    /// Whether a config could be pushed, or why not: what `ringpost check` would warn of.
    pub fn check_push(&self, text: &str) -> Result<Vec<String>, String> {
        self.reloader.check(text)
    }

    /// The text of the pushed config that runs here; empty: none does.
    pub fn running_push(&self) -> String {
        self.reloader.pushed()
    }
}

/// Where this node keeps what it knows of the cluster.
pub fn cluster_folder(config: &Config) -> PathBuf {
    config.spool.path.join("cluster")
}

/// Where the cluster's queue is by this config; `None`: in no cluster, or its URL, which the start says, is none.
pub fn queue_place(config: &Config) -> Option<Place> {
    let settings = &config.cluster;
    let target = settings.enabled.then(|| target_of(settings).ok()).flatten()?;
    Some(Place { database: target.database(), keyspace: settings.valkey_keyspace.clone(), url: target.to_string() })
}

fn secret(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    file.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(|error| format!("{}: {error}", path.display()))?;
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() { Err(format!("{}: its first line is empty", path.display())) } else { Ok(line.to_owned()) }
}

/// The admin listener's token, where it has one.
pub fn admin_token(config: &Config) -> Result<Option<String>, String> {
    config.admin.token_file.as_deref().map(secret).transpose().map_err(|why| format!("admin.token_file: {why}"))
}

/// Reads the files with secrets that a start would read: what is wrong with the first that cannot be used.
pub fn check_secrets(config: &Config) -> Result<(), String> {
    if config.admin.address.is_some() {
        admin_token(config)?;
    }
    if config.cluster.enabled {
        cluster_key(&config.cluster)?;
        target_of(&config.cluster)?;
    }
    Ok(())
}

/// The key that all nodes share, where there is a file of it.
pub fn cluster_key(settings: &Settings) -> Result<Option<String>, String> {
    let Some(path) = settings.key_file.as_deref() else { return Ok(None) };
    let key = secret(path).map_err(|why| format!("cluster.key_file: {why}"))?;
    if key.len() < KEY_BYTES_MIN {
        let (path, length) = (path.display(), key.len());
        return Err(format!(
            "cluster.key_file: {path}: its first line has {length} bytes, and at least {KEY_BYTES_MIN} are needed: \
             make one with `openssl rand -hex 32`, the same for all nodes"
        ));
    }
    Ok(Some(key))
}

/// Where Valkey is, with what the files of secrets have now.
pub fn target_of(settings: &Settings) -> Result<Target, String> {
    let password = match &settings.valkey_password_file {
        Some(path) => Some(secret(path).map_err(|why| format!("cluster.valkey_password_file: {why}"))?),
        None => std::env::var("RINGPOST_VALKEY_PASSWORD").ok(),
    };
    let ca = match &settings.valkey_ca_file {
        Some(path) => {
            let fails = |error: String| format!("cluster.valkey_ca_file: {} {error}", path.display());
            let pem = std::fs::read(path).map_err(|error| format!("cluster.valkey_ca_file: {}: {error}", path.display()))?;
            Target::check_ca(&pem).map_err(fails)?;
            Some(pem)
        }
        None => None,
    };
    let target = Target::parse(&settings.valkey_url, password.as_deref(), ca);
    let (user, file) = (settings.valkey_sentinel_user.as_deref(), settings.valkey_sentinel_password_file.as_deref());
    let target = if user.is_some() || file.is_some() {
        let password = file.map(secret).transpose().map_err(|why| format!("cluster.valkey_sentinel_password_file: {why}"))?;
        target.and_then(|target| target.with_sentinel_login(user, password.as_deref()))
    } else {
        target
    };
    target.map_err(|why| format!("cluster.valkey_url: {why}"))
}

/// The shards, as the agent asks them.
struct LocalNode {
    shards: Vec<Arc<RequestLane>>,
    progress: Arc<Mutex<Progress>>,
    sessions_max: Option<u32>,
    reloader: Arc<Reloader>,
    queue: WorkQueue,
    control: ControlPlane,
    deaths: Arc<Mutex<Deaths>>,
    walks: Arc<Mutex<Walks>>,
    dead_letters_kept: Duration,
    spool_failure: Arc<OnceLock<String>>,
    /// As the shards counted when they were asked last.
    memory_refused: Arc<AtomicU64>,
}

/// What keeps a node from taking mail, or all of it; the gravest is told.
struct Ills<'i> {
    spool_failure: Option<&'i str>,
    keeps_reserve: bool,
    lacks_memory: bool,
    /// It takes mail all the same, and shares none.
    queue_is_full: Option<String>,
    /// The same.
    partitions_differ: Option<String>,
}

impl Ills<'_> {
    fn tell(&self) -> Option<String> {
        if let Some(reason) = self.spool_failure {
            return Some(format!("its spool failed, so that it takes no mail until it is restarted: {reason}"));
        }
        if self.keeps_reserve {
            return Some("its disk has no more than spool.min_free_bytes and spool.min_free_inodes left: new mail gets 452".to_owned());
        }
        if self.lacks_memory {
            return Some("its memory for mail that arrives in pieces was full: some of it got 452".to_owned());
        }
        if self.partitions_differ.is_some() {
            return self.partitions_differ.clone();
        }
        self.queue_is_full.as_ref().map(|reason| format!("Valkey has no room, so that mail is not shared: {reason}"))
    }

    fn sheds_mail(&self) -> bool {
        self.spool_failure.is_some() || self.keeps_reserve || self.lacks_memory
    }
}

/// What a node says of itself beside the fields that all have.
fn metadata(config: &Config) -> BTreeMap<String, String> {
    let takes_mail = config.delivery.mode == DeliveryMode::Shared && config.delivery.deliver;
    let partitions = (QUEUE_PARTITIONS.to_owned(), config.cluster.queue_partitions.to_string());
    takes_mail.then(|| (TAKES_MAIL.to_owned(), "yes".to_owned())).into_iter().chain([partitions]).collect()
}

/// Sessions that count as full load where the config names no limit.
const SESSIONS_OF_FULL_LOAD: u32 = 10_000;

impl Surroundings for LocalNode {
    fn observe(&self) -> Boxed<LocalState> {
        let shards = self.shards.clone();
        let progress = self.progress.clone();
        let sessions_max = self.sessions_max.unwrap_or(SESSIONS_OF_FULL_LOAD);
        let (spool_failure, refused_before, queue) = (self.spool_failure.clone(), self.memory_refused.clone(), self.queue.clone());
        Box::pin(async move {
            let mut local = LocalState::default();
            let (mut keeps_reserve, mut memory_refused) = (false, 0);
            for (shard, stats) in counters(&shards, SHARD_ANSWER_MAX).await.into_iter().enumerate() {
                let Some(stats) = stats else { continue };
                progress.lock().expect("no panic happens under this lock").answered(shard, BootTime::now());
                for (name, value) in stats {
                    match name {
                        "sessions" => local.connections += value,
                        "queue_messages" => local.queue_depth += value,
                        "spool_reserve" => keeps_reserve |= value > 0,
                        "memory_refused" => memory_refused += value,
                        _ => {}
                    }
                }
            }
            let progress = progress.lock().expect("no panic happens under this lock");
            local.progress = progress.counters();
            local.stalled = progress
                .stalled(BootTime::now())
                .map(|(shard, silence)| format!("shard {shard} has not answered for {} s", silence.as_secs()));
            local.load = (f64::from(u32::try_from(local.connections).unwrap_or(u32::MAX)) / f64::from(sessions_max)).min(1.0);
            let lacks_memory = memory_refused > refused_before.swap(memory_refused, Ordering::Relaxed);
            let spool_failure = spool_failure.get().map(String::as_str);
            let partitions_differ = queue.difference();
            local.unfit = spool_failure.is_some() || partitions_differ.is_some();
            let ills = Ills { spool_failure, keeps_reserve, lacks_memory, queue_is_full: queue.is_full(), partitions_differ };
            local.last_error = ills.tell();
            // It takes mail all the same, and shares less of it. Why the queue is so full is told first, where it is known.
            local.symptom = queue.slowness().or_else(|| queue.crowded());
            local.shedding = ills.sheds_mail();
            local
        })
    }

    fn apply(&self, _version: u64, text: String) -> Boxed<Result<(), NotApplied>> {
        let reloader = self.reloader.clone();
        Box::pin(async move { reloader.push(text).await })
    }

    /// Dead letters are removed when they are old. Their mail is with the nodes that own it, which offer it again or give it up; that of nodes that
    /// are gone was tried again for days (`handover::dead_letters`). What lost its place in the queue is put back: owners see to theirs, and those that
    /// are gone have nobody else. Then the account of the queue is written. A partition that does not answer keeps nothing from the others; its error is
    /// what is answered.
    fn chores(&self, leadership: Leadership) -> Boxed<Result<Result<u64, Epoch>, ValkeyError>> {
        let (queue, kept_ms) = (self.queue.clone(), u64::try_from(self.dead_letters_kept.as_millis()).unwrap_or(u64::MAX));
        let (control, deaths, walks) = (self.control.clone(), self.deaths.clone(), self.walks.clone());
        Box::pin(async move {
            let (mut removed, mut failed) = (0, None);
            for partition in 0..queue.bounds().partitions {
                match tidy(&queue, partition, leadership.epoch, kept_ms, &walks).await {
                    Ok(Ok(count)) => removed += count,
                    Ok(Err(epoch)) => return Ok(Err(epoch)),
                    Err(QueueError::Valkey(error)) => failed = failed.or(Some(error)),
                    Err(QueueError::Item(error)) => unreachable!("no item is named: {error}"),
                }
            }
            if removed > 0 {
                warn!(
                    removed,
                    "dead letters older than cluster.dead_letters_kept were removed from the queue: of nodes that are gone for good they were the last copies"
                );
            }
            if let Ok(stats) = queue.stats().await {
                deaths.lock().expect("no panic happens under this lock").look(&stats);
                let text = serde_json::to_string(&stats).expect("plain data");
                match control.write_statistics(leadership.epoch, &text).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(epoch)) => return Ok(Err(epoch)),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            failed.map_or(Ok(Ok(removed)), Err)
        })
    }

    fn leads(&self, _leadership: Option<Leadership>) {}
}

#[cfg(test)]
mod tests {
    use ringpost_engine::request_lane::request_lane;

    use super::*;

    /// The heartbeat is withheld by the agent; that it hears of a shard that hangs is what is asked here, with shards' own lanes.
    #[tokio::test]
    async fn a_shard_that_hangs_is_named_and_one_that_answers_is_counted() {
        let config = Arc::new(Config::parse("[[listener]]\naddress = \"127.0.0.1:2525\"\n", "x.toml".as_ref()).unwrap());
        let (lanes, mut receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| request_lane()).unzip();
        let shards: Vec<Arc<RequestLane>> = lanes.into_iter().map(Arc::new).collect();
        let valkey = Valkey::new(Target::parse("valkey://127.0.0.1:1", None, None).unwrap());
        let (keyspace, key) = (Keyspace::new("x").unwrap(), ItemKey::new(b"k"));
        let bounds = QueueBounds { partitions: 1, capacity: 1, dead_max: 1 };
        let me = Incarnation::of_this_process("n1".parse().unwrap());
        let node = LocalNode {
            // Both have been silent since the machine was started.
            progress: Arc::new(Mutex::new(Progress::new(2, Duration::from_secs(30), BootTime::default()))),
            sessions_max: Some(10),
            reloader: Arc::new(Reloader::new(config, String::new(), String::new(), Arc::new(shards.clone()))),
            queue: WorkQueue::new(valkey.clone(), keyspace.clone(), MAIL_QUEUE, bounds, key, me).unwrap(),
            control: ControlPlane::new(valkey, keyspace),
            deaths: Arc::default(),
            walks: Arc::default(),
            dead_letters_kept: Duration::from_secs(60),
            spool_failure: Arc::default(),
            memory_refused: Arc::default(),
            shards,
        };
        let stats = |request: ringpost_engine::control::Request| {
            (request.answer)(ringpost_engine::control::Answer::Stats(vec![("sessions", 3), ("queue_messages", 7)]))
        };
        let (local, ()) = tokio::join!(node.observe(), async {
            while receivers[0].take().map(stats).is_none() {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!((local.connections, local.queue_depth, local.progress), (3, 7, vec![1, 0]));
        assert!(local.stalled.unwrap().starts_with("shard 1 has not answered for "));
        // It goes on, and answers what it was asked before as well.
        let answering = async {
            loop {
                receivers.iter_mut().for_each(|receiver| while receiver.take().map(stats).is_some() {});
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            local = node.observe() => assert_eq!(local.stalled, None),
            () = answering => {}
        }
    }

    #[test]
    fn the_gravest_ill_is_told() {
        let full = |queue_is_full: Option<&str>| Ills {
            spool_failure: None,
            keeps_reserve: false,
            lacks_memory: false,
            queue_is_full: queue_is_full.map(str::to_owned),
            partitions_differ: None,
        };
        let ills =
            |spool_failure, keeps_reserve, lacks_memory| Ills { spool_failure, keeps_reserve, lacks_memory, ..full(Some("OOM")) }.tell();
        assert_eq!((full(None).tell(), full(None).sheds_mail()), (None, false));
        assert!(full(Some("OOM")).tell().unwrap().ends_with(": OOM") && !full(Some("OOM")).sheds_mail());
        assert!(ills(None, false, false).unwrap().contains("Valkey has no room"));
        assert!(ills(None, false, true).unwrap().contains("memory"));
        assert!(ills(None, true, true).unwrap().contains("min_free_bytes"));
        assert!(ills(Some("EIO"), true, true).unwrap().ends_with(": EIO"));
    }
}
