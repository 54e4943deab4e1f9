//! One node: start the shards, watch them, drain them, stop. The thread that runs this is the coordinator.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ringpost_config::{Config, DeliveryMode, MailOutput, OnDiskFailure};
use ringpost_engine::{
    admission::listening_shards,
    control::Command,
    load::Loads,
    mesh::mesh_of,
    random::random_u64,
    request_lane::{RequestLane, RequestRefused, request_lane},
    shard::{self, ShardEvent, ShardPlan},
    spool_home::SpoolHome,
};
use ringpost_queue::Pauses;
use ringpost_smtp::address::is_domain;
use tokio::{
    net::UnixListener,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tracing::{error, info, warn};

use crate::{
    admin::Admin,
    cli::{EXIT_CONFIG, EXIT_IO, EXIT_OK},
    cluster::{self, ClusterNode},
    control_server::ControlServer,
    dns::Dns,
    handover::{self, HandOverNode, OfferMark, SharedDelivery},
    limit_keeper::LimitKeeper,
    mail_log_writer::{Destination, MailLogWriter},
    pauser::{self, Pauser},
    reloader::Reloader,
    resolver::Resolver,
    socket,
    topology::CorePlan,
};

/// A drain that takes longer is cut off; what was acknowledged is on disk.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// After a failed write or flush the process leaves within this (S8 allows 5 s): time for the 451 replies.
const LEAVE_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// Leaving the cluster in order takes at most this.
const LEAVE_CLUSTER_MAX: Duration = Duration::from_millis(500);

/// Why the node did not start. Each message names what is wrong and the mend.
#[derive(thiserror::Error, Debug)]
pub enum NodeError {
    /// A listener could not be opened.
    #[error("listener.address: cannot listen on {address}: {reason}")]
    Listen {
        /// The address of the config.
        address: SocketAddr,
        /// What the system said, and the mend.
        reason: String,
    },
    /// The control socket could not be made.
    #[error("control.socket: {0}")]
    Control(String),
    /// The admin listener could not be opened, or its token not be read.
    #[error("{0}")]
    Admin(String),
    /// The mail log could not be opened.
    #[error("log.mail_output: {0}")]
    MailLog(io::Error),
    /// The spool could not be opened.
    #[error(transparent)]
    Spool(#[from] ringpost_engine::spool_home::SpoolHomeError),
    /// What an earlier run left paused could not be read.
    #[error("{0}")]
    Pauses(String),
    /// The cluster's queue is another than that in which this spool's mail was offered.
    #[error("{0}")]
    OfferedElsewhere(String),
    /// A shard did not start.
    #[error("shard {shard}: {reason}")]
    Shard {
        /// Which.
        shard: u16,
        /// Why.
        reason: String,
    },
    /// The kernel lacks something, or forbids it.
    #[error("{0}")]
    Kernel(String),
    /// The name servers are not known.
    #[error("dns: {0}")]
    Dns(String),
    /// The runtime of the coordinator could not be built.
    #[error("coordinator: {0}")]
    Coordinator(io::Error),
}

impl NodeError {
    /// The exit code that scripts see.
    pub fn exit_code(&self) -> u8 {
        match self {
            NodeError::Listen { .. }
            | NodeError::Control(_)
            | NodeError::Admin(_)
            | NodeError::MailLog(_)
            | NodeError::Dns(_)
            | NodeError::OfferedElsewhere(_) => EXIT_CONFIG,
            NodeError::Spool(_) | NodeError::Pauses(_) | NodeError::Shard { .. } | NodeError::Kernel(_) | NodeError::Coordinator(_) => {
                EXIT_IO
            }
        }
    }
}

/// The machine's name, for want of `hostname` in the config; "localhost" where it has one that no greeting can have (RFC 5321 4.1.2).
pub fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if is_domain(name.as_bytes()) { name } else { "localhost".to_owned() }
}

/// What the node starts with.
pub struct StartConfig {
    /// The whole: the node's own file, with what was pushed to all nodes over it.
    pub config: Arc<Config>,
    /// The text of the node's own file, as the config was read from it; empty: there is none.
    pub own: String,
    /// What was pushed; empty: nothing.
    pub pushed: String,
    /// Why what was pushed is left out, if it is.
    pub unfit: Option<String>,
}

/// The coordinator's runtime, which hears SIGHUP from here on: until then that ends the process, and what is read afterwards is at least as new as the signal.
pub struct Hearing {
    runtime: Runtime,
    hangup: Signal,
}

impl Hearing {
    /// To be called before the config is read.
    pub fn start() -> Result<Hearing, NodeError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(NodeError::Coordinator)?;
        let guard = runtime.enter();
        let hangup = signal(SignalKind::hangup()).map_err(NodeError::Coordinator)?;
        drop(guard);
        Ok(Hearing { runtime, hangup })
    }
}

/// Runs the node until it is told to stop. Returns the process's exit code.
pub fn serve(Hearing { runtime, hangup }: Hearing, start: StartConfig, plan: CorePlan) -> Result<ExitCode, NodeError> {
    abort_on_panic();
    for warning in &plan.warnings {
        warn!("{warning}");
    }
    // Sessions need descriptors; what the hard limit allows is asked for.
    if let Err(reason) = rlimit::increase_nofile_limit(u64::MAX) {
        warn!(%reason, "the limit of open files could not be raised");
    }
    let features = ringpost_ring::probe::check().map_err(|missing| NodeError::Kernel(missing.to_string()))?;
    info!(version = crate::cli::version(), ?features, "starting");
    let guard = runtime.enter();
    let node = Node::start(start, &plan)?;
    drop(guard);
    if let Err(reason) = plan.pin_coordinator() {
        warn!(%reason, core = plan.coordinator, "the coordinator is not pinned");
    }
    let code = runtime.block_on(node.run(hangup));
    // The system's resolver may hold one of its threads for a minute, as when Valkey's name is looked up: nothing of it is wanted any more.
    runtime.shutdown_background();
    Ok(code)
}

/// A panic ends the process at once: a half-dead shard would keep mail from others, and nothing more is written.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        eprintln!("ringpost: thread {name} panicked: the process ends; everything acknowledged is in the spool");
        std::process::abort();
    }));
}

struct Node {
    shards: Vec<Arc<RequestLane>>,
    events: mpsc::UnboundedReceiver<ShardEvent>,
    mail_log: MailLogWriter,
    dns: Dns,
    resolver: Resolver,
    limits: LimitKeeper,
    control: UnixListener,
    control_path: PathBuf,
    on_disk_failure: OnDiskFailure,
    config: Arc<Config>,
    own: String,
    pushed: String,
    unfit: Option<String>,
    hostname: String,
    admin: Option<(tokio::net::TcpListener, Option<String>)>,
    offer_mark: OfferMark,
    pauses: Pauses,
    /// This node does not share its mail, and an earlier run did.
    retracts: bool,
    /// Keeps the spool's lock until the process has ended its shards.
    home: Arc<SpoolHome>,
}

impl Node {
    fn start(start: StartConfig, plan: &CorePlan) -> Result<Node, NodeError> {
        let StartConfig { config, own, pushed, unfit } = start;
        let config = &config;
        let home = SpoolHome::open(&config.spool.path, random_u64(), config.spool.allow_unsafe_spool)?;
        let home = Arc::new(home);
        let pauses = pauser::read(home.path()).map_err(NodeError::Pauses)?;
        if !pauses.is_empty() {
            let (all, names) = (pauses.is_all(), pauses.names().collect::<Vec<_>>());
            warn!(all, ?names, "destinations are paused since an earlier run: `ringpost queue resume` ends that");
        }
        let offer_mark = OfferMark::new(cluster::cluster_folder(config));
        // Before anything of it is delivered here.
        if let Some(place) = cluster::queue_place(config) {
            offer_mark.check_place(&place).map_err(NodeError::OfferedElsewhere)?;
        }
        let shards = u16::try_from(plan.shards.len()).unwrap_or(u16::MAX);
        let mut sockets: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
        let listening = listening_shards(config, shards);
        for listener in &config.listeners {
            let opened = socket::listeners(listener.address, usize::from(listening))
                .map_err(|error| NodeError::Listen { address: listener.address, reason: socket::listen_reason(&error) })?;
            if let Some(address) = opened.first().and_then(|socket| socket.local_addr().ok()) {
                info!(%address, name = listener.name, "listening");
            }
            for (of_shard, socket) in sockets.iter_mut().zip(opened) {
                of_shard.push(socket);
            }
        }
        let control = socket::control(&config.control.socket).map_err(NodeError::Control)?;
        let control = UnixListener::from_std(control).map_err(NodeError::Coordinator)?;
        let admin = admin_listener(config)?;
        let destination = match &config.log.mail_output {
            MailOutput::Stdout => Destination::Stdout,
            MailOutput::Stderr => Destination::Stderr,
            MailOutput::File(path) => Destination::File(path.clone()),
        };
        let mail_log = MailLogWriter::start(destination, config.log.mail_format, usize::from(shards)).map_err(NodeError::MailLog)?;
        let orphans = home.logs_beyond(shards)?;
        let retracts = config.cluster.enabled && config.delivery.mode == DeliveryMode::Local && offer_mark.is_set();
        let spool_failed = Arc::new(AtomicBool::new(false));
        let (sender, events) = mpsc::unbounded_channel();
        let hostname = config.hostname.clone().unwrap_or_else(machine_name);
        let loads = Arc::new(Loads::new(shards));
        let dns = Dns::new(config, &hostname).map_err(NodeError::Dns)?;
        let (questions, resolver) = Resolver::new(usize::from(shards), config.dns.cache_max as usize);
        let (limit_questions, limits) = LimitKeeper::new(usize::from(shards));
        let mut lanes = Vec::new();
        for (((core, listeners), mail_log), mesh) in plan.shards.iter().zip(sockets).zip(mail_log.channels()).zip(mesh_of(shards)) {
            let (lane, requests) = request_lane();
            let sender = sender.clone();
            shard::spawn(ShardPlan {
                id: core.shard,
                shards,
                core: core.core as usize,
                io_wq_core: plan.io_wq.map(|core| core as usize),
                listeners,
                config: config.clone(),
                hostname: hostname.clone(),
                home: home.clone(),
                segments_max: shard::SEGMENTS_MAX,
                adopted: orphans.iter().copied().filter(|orphan| orphan % shards == core.shard).collect(),
                pauses: pauses.clone(),
                retracts,
                was_drained: config.cluster.enabled && offer_mark.was_drained(),
                requests,
                mesh,
                loads: loads.clone(),
                mail_log: mail_log.clone(),
                ask_dns: questions.of_shard(core.shard),
                ask_limits: limit_questions.of_shard(core.shard),
                spool_failed: spool_failed.clone(),
                on_event: Box::new(move |event| drop(sender.send(event))),
            })
            .map_err(|reason| NodeError::Shard { shard: core.shard, reason: reason.to_string() })?;
            lanes.push(Arc::new(lane));
        }
        Ok(Node {
            shards: lanes,
            events,
            mail_log,
            dns,
            resolver,
            limits,
            control,
            control_path: config.control.socket.clone(),
            on_disk_failure: config.spool.on_disk_failure,
            config: config.clone(),
            own,
            pushed,
            unfit,
            hostname,
            admin,
            offer_mark,
            pauses,
            retracts,
            home,
        })
    }

    fn start_sharing(&self, cluster: &ClusterNode, spool_failure: Arc<OnceLock<String>>) -> Result<SharedDelivery, String> {
        let node = HandOverNode {
            queue: cluster.queue.clone(),
            valkey: cluster.handle.control().valkey().clone(),
            me: cluster.handle.me().node().clone(),
            lease_ttl: self.config.cluster.lease_ttl,
            delivers: self.config.delivery.deliver,
            shares: self.config.delivery.mode == DeliveryMode::Shared,
            retracts: self.retracts,
            mark: self.offer_mark.clone(),
            spool: self.home.node(),
            boot: u64::from(self.home.boot()),
            cluster: cluster.handle.clone(),
            spool_failure,
        };
        handover::start(node, self.shards.clone())
    }

    async fn run(mut self, mut hangup: Signal) -> ExitCode {
        let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        let [Ok(mut terminate), Ok(mut interrupt)] = signals else {
            error!("cannot watch signals");
            return ExitCode::from(EXIT_IO);
        };
        let lanes = Arc::new(self.shards.clone());
        let reloader =
            Arc::new(Reloader::new(self.config.clone(), std::mem::take(&mut self.own), std::mem::take(&mut self.pushed), lanes.clone()));
        let spool_failure: Arc<OnceLock<String>> = Arc::default();
        let joined = ClusterNode::start(
            &self.config,
            &self.hostname,
            self.shards.clone(),
            reloader.clone(),
            self.unfit.take(),
            spool_failure.clone(),
        );
        let cluster = match joined {
            Ok(cluster) => cluster,
            Err(reason) => {
                error!(reason, "the cluster cannot be joined: mend the config");
                let _ = std::fs::remove_file(&self.control_path);
                std::process::exit(i32::from(EXIT_CONFIG));
            }
        };
        let sharing = match cluster.as_ref().map(|cluster| self.start_sharing(cluster, spool_failure.clone())).transpose() {
            Ok(sharing) => sharing,
            Err(reason) => {
                error!(reason, "mail cannot be shared with the cluster");
                let _ = std::fs::remove_file(&self.control_path);
                std::process::exit(i32::from(EXIT_IO));
            }
        };
        if cluster.is_none() && self.offer_mark.is_set() {
            warn!(
                "an earlier run shared this spool's mail, and cluster.enabled is false now: what it had offered may be delivered twice, and what \
                 it was taking over waits; start once with cluster.enabled = true and delivery.mode = \"local\" to have it taken back"
            );
        }
        let is_ready = Arc::new(AtomicBool::new(false));
        if let Some((listener, token)) = self.admin.take()
            && let Ok(address) = listener.local_addr()
        {
            info!(%address, "admin listens");
            tokio::spawn(Admin::new(self.shards.clone(), cluster.clone(), is_ready.clone(), token, address).serve(listener));
        }
        let pauser = Arc::new(Pauser::new(self.home.path(), std::mem::take(&mut self.pauses), lanes.clone()));
        let server = ControlServer::new(lanes, self.resolver.counters(), reloader.clone(), pauser, cluster.clone(), sharing.clone());
        let control = server.serve(&self.control);
        tokio::pin!(control);
        let lanes = self.shards.clone();
        let resolver = self.resolver.run(self.dns, &lanes);
        tokio::pin!(resolver);
        let limits = self.limits.run(cluster.as_ref().map(|cluster| cluster.handle.clone()), &lanes);
        tokio::pin!(limits);
        let mut ready = 0;
        let leaving = async {
            is_ready.store(false, Ordering::Release);
            if let Some(sharing) = &sharing {
                sharing.leave();
            }
            // The cluster hears of it before any work stops (L11); a Valkey that is away delays nothing.
            if let Some(cluster) = &cluster {
                let _ = tokio::time::timeout(LEAVE_CLUSTER_MAX, cluster.handle.leave()).await;
            }
        };
        tokio::pin!(leaving);
        let code = loop {
            tokio::select! {
                () = &mut control => unreachable!("the control server does not end"),
                _ = hangup.recv() => drop(tokio::spawn(reload_file(reloader.clone()))),
                () = &mut resolver => unreachable!("the resolver does not end"),
                () = &mut limits => unreachable!("the keeper of limits does not end"),
                _ = terminate.recv() => break None,
                _ = interrupt.recv() => break None,
                event = self.events.recv() => match event {
                    Some(ShardEvent::Ready { shard }) => {
                        ready += 1;
                        info!(shard, "shard accepts mail");
                        if ready == self.shards.len() {
                            info!(shards = ready, "ready");
                            is_ready.store(true, Ordering::Release);
                            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                        }
                    }
                    Some(ShardEvent::SpoolFailed { shard, reason }) => {
                        is_ready.store(false, Ordering::Release);
                        // What others offer is not for this node, and its heartbeats say why.
                        if let Some(sharing) = &sharing {
                            sharing.leave();
                        }
                        let _first_counts = spool_failure.set(reason.clone());
                        error!(shard, reason, "the spool failed: nothing more is promised; the process leaves and the next start finds out what the disk has");
                        for shard in &self.shards {
                            shard.wake();
                        }
                        if self.on_disk_failure == OnDiskFailure::StopAccepting {
                            error!("spool.on_disk_failure = \"stop-accepting\": the process stays for inspection and takes no mail");
                            continue;
                        }
                        tokio::time::sleep(LEAVE_AFTER_FAILURE).await;
                        let _ = std::fs::remove_file(&self.control_path);
                        // Not a return: threads that still hold sockets and the ring end with the process, at once.
                        std::process::exit(i32::from(EXIT_IO));
                    }
                    Some(ShardEvent::Ended { shard, failure }) => {
                        let reason = failure.unwrap_or_else(|| "it ended by itself".to_owned());
                        error!(shard, reason, "shard ended");
                        break Some(EXIT_IO);
                    }
                    None => break Some(EXIT_IO),
                },
            }
        };
        let code = match code {
            Some(code) => code,
            // What is still being attempted can be asked for until the end.
            None => tokio::select! {
                () = &mut control => unreachable!("the control server does not end"),
                code = async {
                    leaving.await;
                    drain(&self.shards, &mut self.events, &mut terminate, &mut interrupt).await
                } => code,
            },
        };
        let _ = std::fs::remove_file(&self.control_path);
        self.mail_log.finish();
        if code != EXIT_OK {
            std::process::exit(i32::from(code));
        }
        ExitCode::from(code)
    }
}

fn admin_listener(config: &Config) -> Result<Option<(tokio::net::TcpListener, Option<String>)>, NodeError> {
    let Some(address) = config.admin.address else { return Ok(None) };
    let token = cluster::admin_token(config).map_err(NodeError::Admin)?;
    let failed =
        |error: io::Error| NodeError::Admin(format!("admin.address: cannot listen on {address}: {}", socket::listen_reason(&error)));
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Some((tokio::net::TcpListener::from_std(listener).map_err(failed)?, token)))
}

/// Reads the config file again, and tells the service manager.
async fn reload_file(reloader: Arc<Reloader>) {
    if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading, now]);
    }
    // What came of it is in the log.
    let _ = reloader.reload().await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Drains every shard; a second signal, or [`DRAIN_MAX`], ends it at once.
async fn drain(
    shards: &[Arc<RequestLane>],
    events: &mut mpsc::UnboundedReceiver<ShardEvent>,
    terminate: &mut tokio::signal::unix::Signal,
    interrupt: &mut tokio::signal::unix::Signal,
) -> u8 {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    info!("draining: no new sessions, what is under way is finished");
    let began = Instant::now();
    for shard in shards {
        // A full lane empties within moments: shards answer requests whatever else they do.
        while shard.send(Command::Drain, Box::new(|_| ())) == Err(RequestRefused::Full) && began.elapsed() < DRAIN_MAX {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut left = shards.len();
    let deadline = tokio::time::sleep(DRAIN_MAX);
    tokio::pin!(deadline);
    while left > 0 {
        tokio::select! {
            _ = terminate.recv() => { warn!("second signal: stopping at once"); return EXIT_IO; }
            _ = interrupt.recv() => { warn!("second signal: stopping at once"); return EXIT_IO; }
            () = &mut deadline => { warn!(shards = left, "the drain took too long: stopping; what was acknowledged is on disk"); return EXIT_IO; }
            event = events.recv() => match event {
                Some(ShardEvent::Ended { failure: None, .. }) => left -= 1,
                Some(ShardEvent::Ended { shard, failure: Some(reason) }) => { error!(shard, reason, "shard ended badly"); return EXIT_IO; }
                Some(ShardEvent::SpoolFailed { shard, reason }) => { error!(shard, reason, "the spool failed while draining"); return EXIT_IO; }
                Some(ShardEvent::Ready { .. }) => {}
                None => return EXIT_IO,
            },
        }
    }
    info!(took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), "drained");
    EXIT_OK
}
