//! One core's engine: what its tasks share, and how it starts, drains and ends. Wiring only; each task has a file of its own.
//!
//! ```text
//! listener -> inbound -> committer -> queue -> delivery -> outbound -> queue (settle) -> committer (outcome)
//! ```

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::TcpListener,
    num::NonZeroU16,
    os::fd::OwnedFd,
    path::Path,
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
    task::Waker,
    thread::JoinHandle,
    time::Instant,
};

use glommio::{LocalExecutorBuilder, Placement};
use ringpost_config::{Config, RECIPIENTS_MAX};
use ringpost_queue::{DestinationId, Dispatch, Homes, Lookup, Pauses, Queue, QueueId, QueueSettings, REPLY_BYTES_MAX, Routes};
use ringpost_ring::{PREEMPT_TIMER, Ring, RingConfig};
use ringpost_smtp::header::{DateText, RECEIVED_BYTES_MAX};
use ringpost_spool::{LogConfig, Role};
use tracing::warn;

use crate::{
    admission::{Admission, memory_budget},
    claiming::Claiming,
    clock::Clock,
    committer::Committer,
    delivery::Delivery,
    deposit_progress::LateDeposits,
    file_threads::FileThreads,
    homes::HomeCalls,
    inbound_settings::InboundSettings,
    listener,
    load::Loads,
    mail_log::{MailLog, MailLogChannel},
    mesh::{Mesh, MeshEnd},
    metrics::Metrics,
    offering::{ONLY_OFFERED_BYTES_MAX, Offering},
    passing::Passing,
    pool::Pool,
    preparation,
    priority::Priorities,
    random::random_u64,
    recalling::Recalling,
    recording::Recording,
    reporting::Reporting,
    request_lane::RequestReceiver,
    routes::{report_limits, routes_of},
    said_before::SaidBeforeBook,
    segment_files::SegmentFiles,
    settled_ids::SettledIds,
    shard_control,
    shard_life::Life,
    share::Share,
    shared_limits::{AskLimits, SharedLimits},
    spare_sessions::SpareSessions,
    spool_home::SpoolHome,
    staging::Staging,
    ungreeted::UngreetedBook,
};

/// Longest batch: bounds a record and so the size of what leaves staging as a chunk.
/// Two of them fit into the smallest segment, 1 MiB, beside its header; a message with a thousand recipients fits, with the replies to each.
pub const BATCH_BYTES: u32 = 480 * 1024;
/// The largest payload that certainly fits into an empty batch.
pub(crate) const PAYLOAD_BYTES_MAX: usize = BATCH_BYTES as usize - 4096;
/// Beside its reply a recipient takes less than this in an outcome record, which holds the state of all recipients of its message. One
/// that did not fit could not be recorded, and what was delivered would go out again after a crash.
const RECIPIENT_STATE_BYTES: usize = 32;
const _: () = assert!(RECIPIENTS_MAX as usize * (RECIPIENT_STATE_BYTES + REPLY_BYTES_MAX) <= BATCH_BYTES as usize - 4096);
/// Submission queue entries of a shard's ring.
const RING_ENTRIES: u32 = 1024;
/// Receive buffers of a shard; a power of two. One is lent for each receive that has bytes, for one turn.
const RECEIVE_BUFFERS: u16 = 512;
const RECEIVE_BUFFER_BYTES: u32 = 16 * 1024;
/// Bytes a connection may be sent before its reader asks for more.
const RECEIVE_WINDOW_BYTES: u32 = 64 * 1024;
/// The share of the memory budget for what was received and is not read, while receive buffers are short: those whose sessions wait for
/// something else then take none of those who listen.
const UNREAD_SHARE: u64 = 8;
/// What a queued message is reckoned with: 250 bytes, addresses, the last reply, and its place in the spool's index.
const QUEUED_BYTES: u64 = 1024;

/// The share of the memory budget that sessions may stage while content arrives in pieces; a quarter is the queue's.
const STAGING_SHARE: u64 = 8;
const QUEUE_SHARE: u64 = 4;

/// Enough segments of a log for a terabyte of the smallest ones.
pub const SEGMENTS_MAX: u32 = 1 << 20;

/// Everything a shard is told at its start.
pub struct ShardPlan {
    /// Its number, from 0.
    pub id: u16,
    /// How many there are: limits are divided by it.
    pub shards: u16,
    /// Where it is pinned.
    pub core: usize,
    /// Where the kernel's workers of its ring run; `None` for the shard's core.
    pub io_wq_core: Option<usize>,
    /// One listening socket for each `[[listener]]`, in the order of the config, with SO_REUSEPORT; none beyond [`crate::admission::listening_shards`].
    pub listeners: Vec<TcpListener>,
    /// The settings.
    pub config: Arc<Config>,
    /// Our name in banner, EHLO and Received.
    pub hostname: String,
    /// The spool, open and locked.
    pub home: Arc<SpoolHome>,
    /// Segments that each log may have: [`SEGMENTS_MAX`].
    pub segments_max: u32,
    /// Logs of shards that no longer exist, adopted by this one (S18).
    pub adopted: Vec<u16>,
    /// Destinations that operators paused.
    pub pauses: Pauses,
    /// An earlier run shared its mail, and this one does not: what it had offered is taken back before it is delivered.
    pub retracts: bool,
    /// An earlier run was emptied into the cluster, or delivered nothing, and none has said that this is over: any of its mail may have been offered, tried
    /// before or not.
    pub was_drained: bool,
    /// Requests of the coordinator.
    pub requests: RequestReceiver,
    /// Its end of the lanes to the other shards.
    pub mesh: MeshEnd,
    /// What each shard has to do, for all to see.
    pub loads: Arc<Loads>,
    /// Where mail log lines go.
    pub mail_log: Arc<MailLogChannel>,
    /// Passes a question about DNS to the coordinator; false when it takes no more just now. Never waits.
    pub ask_dns: Box<dyn Fn(Lookup) -> bool + Send>,
    /// Asks the coordinator about limits over all nodes.
    pub ask_limits: AskLimits,
    /// Set when any log of this spool failed: nobody promises anything any more (S8).
    pub spool_failed: Arc<AtomicBool>,
    /// Called on the shard's thread.
    pub on_event: Box<dyn Fn(ShardEvent) + Send>,
}

/// What a shard tells the coordinator.
#[derive(Debug)]
pub enum ShardEvent {
    /// It accepts mail.
    Ready {
        /// Which.
        shard: u16,
    },
    /// A write or flush failed; nothing more is promised.
    SpoolFailed {
        /// Which.
        shard: u16,
        /// Why, as a sentence.
        reason: String,
    },
    /// Its thread is about to end.
    Ended {
        /// Which.
        shard: u16,
        /// Why, unless it was drained.
        failure: Option<String>,
    },
}

/// What all tasks of a shard share.
pub struct Shard {
    pub(crate) id: u16,
    /// How many there are.
    pub(crate) shards: u16,
    pub(crate) boot: u32,
    pub(crate) ring: Ring,
    #[expect(clippy::redundant_allocation, reason = "counting what one shard shares with itself needs no atomic operation")]
    config: RefCell<Rc<Arc<Config>>>,
    /// Its part of the limits.
    pub(crate) share: Share,
    pub(crate) own: Rc<Committer>,
    pub(crate) adopted: RefCell<Vec<(u16, Rc<Committer>)>>,
    pub(crate) queue: RefCell<Queue>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Rc<Metrics>,
    pub(crate) mail_log: MailLog,
    pub(crate) inbound: InboundSettings,
    pub(crate) admission: Rc<Admission>,
    pub(crate) mesh: Mesh,
    pub(crate) passing: Passing,
    pub(crate) homes: HomeCalls,
    pub(crate) delivery: Delivery,
    pub(crate) recording: Recording,
    pub(crate) said_before: Rc<SaidBeforeBook>,
    pub(crate) ungreeted: Rc<UngreetedBook>,
    pub(crate) offering: Offering,
    pub(crate) recalling: Recalling,
    pub(crate) claiming: Claiming,
    pub(crate) reporting: Reporting,
    /// What is known to be settled, of a node of a cluster: by this run, and by what its logs say.
    pub(crate) settled: RefCell<SettledIds>,
    pub(crate) pool: Rc<Pool<Dispatch>>,
    pub(crate) priorities: RefCell<Priorities>,
    pub(crate) staging: Staging,
    pub(crate) file_threads: FileThreads,
    pub(crate) late_deposits: Arc<LateDeposits>,
    pub(crate) spare_sessions: SpareSessions,
    pub(crate) hostname: String,
    pub(crate) date: RefCell<DateText>,
    pub(crate) received_text: RefCell<Vec<u8>>,
    pub(crate) routes_scratch: RefCell<Vec<DestinationId>>,
    /// Logs whose messages are not all queued yet.
    pub(crate) loading: Cell<usize>,
    /// Of these the logs that cannot be opened for want of a segment, by number.
    pub(crate) closed_logs: RefCell<Vec<u16>>,
    pub(crate) next_sequence: Cell<u64>,
    pub(crate) life: Cell<Life>,
    /// When the drain stops waiting for others.
    pub(crate) drain_until: Cell<Option<Instant>>,
    pub(crate) spool_failed: Arc<AtomicBool>,
    /// Who waits in [`Shard::poll_life`]: the shard's main task.
    pub(crate) life_watch: RefCell<Option<Waker>>,
    /// Woken when the shard drains or the spool fails; each owner takes its own back.
    pub(crate) life_waiters: RefCell<slab::Slab<Waker>>,
    pub(crate) ask_dns: Box<dyn Fn(Lookup) -> bool + Send>,
    pub(crate) ask_limits: AskLimits,
    pub(crate) shared_limits: SharedLimits,
    pub(crate) on_event: Box<dyn Fn(ShardEvent) + Send>,
    pub(crate) housekeeping: RefCell<Option<Waker>>,
}

/// Starts the shard's thread. Its events tell the rest.
pub fn spawn(plan: ShardPlan) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("shard-{}", plan.id)).spawn(move || {
        let id = plan.id;
        // glommio's own rings have nothing to do: small, and next to no locked memory.
        let executor = LocalExecutorBuilder::new(Placement::Fixed(plan.core)).preempt_timer(PREEMPT_TIMER).ring_depth(64).io_memory(64 << 10).make();
        match executor {
            Ok(executor) => executor.run(run(plan)),
            Err(reason) => {
                let failure = format!(
                    "the executor on core {} did not start: {reason}; raise the memlock limit (`ulimit -l`, LimitMEMLOCK= in the unit) or choose another core in shards.cores",
                    plan.core
                );
                (plan.on_event)(ShardEvent::Ended { shard: id, failure: Some(failure) });
            }
        }
    })
}

async fn run(plan: ShardPlan) {
    let id = plan.id;
    match start(plan) {
        Ok((shard, listeners, requests)) => {
            let shard: Rc<Shard> = shard;
            let failure = shard.ring.watch(shard.clone().live(listeners, requests)).await.err();
            (shard.on_event)(ShardEvent::Ended { shard: id, failure });
            shard.ring.shutdown();
        }
        Err((on_event, failure)) => on_event(ShardEvent::Ended { shard: id, failure: Some(failure) }),
    }
}

pub(crate) type OnEvent = Box<dyn Fn(ShardEvent) + Send>;

/// What the shard's main task goes on with.
pub(crate) type Started = (Rc<Shard>, Vec<TcpListener>, RequestReceiver);

pub(crate) fn start(plan: ShardPlan) -> Result<Started, (OnEvent, String)> {
    let config = plan.config;
    let budget = memory_budget(&config) / u64::from(plan.shards);
    let in_bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let ring = match Ring::start(RingConfig {
        entries: RING_ENTRIES,
        buffers: RECEIVE_BUFFERS,
        buffer_bytes: RECEIVE_BUFFER_BYTES,
        window_bytes: RECEIVE_WINDOW_BYTES,
        heap_bytes_max: in_bytes(budget / UNREAD_SHARE),
        iowq_core: plan.io_wq_core,
        ..RingConfig::default()
    }) {
        Ok(ring) => ring,
        Err(reason) => return Err((plan.on_event, reason.to_string())),
    };
    let clock = Clock::default();
    let now = clock.steady_ms(ring.now());
    let metrics: Rc<Metrics> = Rc::default();
    let share = Share { shard: plan.id, shards: NonZeroU16::new(plan.shards).expect("a node has shards") };
    let routes = match Routes::new(routes_of(&config)) {
        Ok(routes) => routes,
        Err(reason) => return Err((plan.on_event, format!("route: {reason}"))),
    };
    let settings = QueueSettings {
        messages_max: in_bytes(budget / QUEUE_SHARE / QUEUED_BYTES),
        homes: Homes { shard: plan.id, shards: plan.shards },
        offered_bytes_max: ONLY_OFFERED_BYTES_MAX,
        reports: report_limits(&config, share),
        ..QueueSettings::default()
    };
    let mut queue = Queue::new(settings, routes, random_u64(), now);
    queue.set_local_domain(&plan.hostname);
    queue.set_pauses(plan.pauses);
    queue.follow_pauses(0..queue.destination_slots(), now);
    let open = |number: u16, role: Role| {
        let directory = plan.home.log_directory(number);
        if role == Role::Own {
            prepare_first(&config, &plan.home, number, &directory);
        }
        let files = SegmentFiles::open(ring.clone(), directory.clone(), plan.home.write_mode())
            .map_err(|reason| format!("{}: {reason}", directory.display()))?;
        let log = LogConfig { segments_max: plan.segments_max, ..log_config(&config, &plan.home, number, role) };
        Committer::open(ring.clone(), files, log, plan.home.previous_boot(), metrics.clone())
            .map_err(|reason| format!("{}: {reason}", directory.display()))
    };
    let mut committers = Vec::new();
    for (number, role) in std::iter::once((plan.id, Role::Own)).chain(plan.adopted.iter().map(|number| (*number, Role::Adopted))) {
        match open(number, role) {
            Ok(committer) => committers.push((number, committer)),
            Err(reason) => return Err((plan.on_event, reason)),
        }
    }
    let (_, own) = committers.remove(0);
    let pool = Rc::new(Pool::new(&config, share, metrics.clone()));
    let shard = Rc::new(Shard {
        id: plan.id,
        shards: plan.shards,
        boot: plan.home.boot(),
        own,
        adopted: RefCell::new(committers),
        queue: RefCell::new(queue),
        clock,
        metrics,
        mail_log: MailLog::new(plan.mail_log),
        inbound: InboundSettings::new(&config, &plan.hostname),
        admission: Rc::new(Admission::new(&config, share)),
        mesh: Mesh::new(plan.mesh),
        passing: Passing::new(plan.loads),
        homes: HomeCalls::new(plan.shards),
        delivery: Delivery::new(&ring),
        recording: Recording::default(),
        said_before: Rc::default(),
        offering: Offering::new(plan.retracts, plan.was_drained),
        ungreeted: Rc::default(),
        recalling: Recalling::default(),
        claiming: Claiming::default(),
        reporting: Reporting::default(),
        settled: RefCell::default(),
        pool,
        file_threads: FileThreads::default(),
        late_deposits: Arc::default(),
        priorities: RefCell::new(Priorities::new(&config)),
        staging: Staging::new(in_bytes(budget / STAGING_SHARE)),
        spare_sessions: SpareSessions::default(),
        hostname: plan.hostname,
        date: RefCell::new(DateText::new(0)),
        received_text: RefCell::new(Vec::with_capacity(RECEIVED_BYTES_MAX)),
        routes_scratch: RefCell::default(),
        loading: Cell::new(1 + plan.adopted.len()),
        closed_logs: RefCell::default(),
        next_sequence: Cell::new(1),
        life: Cell::new(Life::Running),
        drain_until: Cell::new(None),
        spool_failed: plan.spool_failed,
        life_watch: RefCell::default(),
        life_waiters: RefCell::default(),
        ask_dns: plan.ask_dns,
        ask_limits: plan.ask_limits,
        shared_limits: SharedLimits::default(),
        on_event: plan.on_event,
        housekeeping: RefCell::default(),
        ring,
        config: RefCell::new(Rc::new(config)),
        share,
    });
    Ok((shard, plan.listeners, plan.requests))
}

/// A new log gets its first segment written with zeros before it is opened: the first mail is not to pay for a segment that was only
/// reserved. Without room for it the log makes do.
fn prepare_first(config: &Config, home: &SpoolHome, number: u16, directory: &Path) {
    let segment_bytes = config.spool.segment_bytes.bytes();
    let is_new = std::fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none());
    let room =
        directory.parent().and_then(|spool| rustix::fs::statvfs(spool).ok()).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    if is_new
        && room > config.spool.min_free_bytes.bytes().saturating_add(segment_bytes)
        && let Err(reason) = preparation::prepare(home, number, segment_bytes, 1, |_, _| ())
    {
        warn!(directory = %directory.display(), %reason, "the first segment could not be prepared; the log makes do without");
    }
}

fn log_config(config: &Config, home: &SpoolHome, number: u16, role: Role) -> LogConfig {
    let mut log = LogConfig::new(home.node(), number, u64::from(home.boot()));
    log.role = role;
    log.segment_bytes = u32::try_from(config.spool.segment_bytes.bytes()).expect("the config allows at most 1 GiB");
    log.batch_bytes = BATCH_BYTES;
    log.prepared_segments = config.spool.prepared_segments;
    log.open_bytes_max = config.spool.open_max.bytes();
    log.free_bytes_min = config.spool.min_free_bytes.bytes();
    log.free_inodes_min = u64::from(config.spool.min_free_inodes);
    log
}

impl Shard {
    pub(crate) async fn live(self: Rc<Self>, listeners: Vec<TcpListener>, requests: RequestReceiver) -> Result<(), String> {
        let answers = Rc::new(Cell::new(false));
        let logs: Vec<_> = std::iter::once((self.id, self.own.clone())).chain(self.adopted.borrow().iter().cloned()).collect();
        for (number, committer) in logs {
            self.ring.spawn(self.clone().run_log(number, committer, answers.clone())).detach();
        }
        self.ring.spawn(self.clone().deliver()).detach();
        self.ring.spawn(self.clone().keep_house()).detach();
        self.ring.spawn(self.clone().watch_progress()).detach();
        let answering = self.ring.spawn(shard_control::answer_requests(self.clone(), requests));
        if self.shards > 1 {
            self.passing.observe(&self.ring, self.id);
            self.ring.spawn(self.clone().serve_mesh()).detach();
        }
        // The write side of the own log is enough to accept mail: old mail loads in the background (S13). Where there is no room to open it
        // mail is refused for now.
        poll_fn(|cx| self.poll_life(cx, |shard| answers.get() || shard.is_ending())).await;
        if !self.is_ending() {
            // One that does not listen may have no session: see `listening_shards`.
            if !listeners.is_empty() {
                self.open_to_connections();
            }
            for (number, socket) in listeners.into_iter().enumerate() {
                self.ring.spawn(listener::accept(self.clone(), self.ring.listen(OwnedFd::from(socket)), number)).detach();
            }
            (self.on_event)(ShardEvent::Ready { shard: self.id });
        }
        poll_fn(|cx| self.poll_life(cx, Shard::is_ending)).await;
        let end = if self.spool_has_failed() {
            // The coordinator ends the process; sessions answer 451 until then.
            poll_fn(|cx| self.poll_life(cx, |shard| shard.life.get() == Life::Draining)).await;
            Err("the spool failed before".to_owned())
        } else {
            self.drain().await
        };
        // The executor keeps what it does not run any more: whoever asks now, or has asked, is to hear at once that nobody answers, and not when
        // the last shard has ended. What is dropped wakes nobody before the next turn, and the ring sleeps where no task was polled since its last one.
        drop(answering);
        self.ring.yield_now().await;
        end
    }

    /// The settings in force. To be asked for again after a wait: a reload may have come between.
    #[expect(clippy::redundant_allocation, reason = "counting what one shard shares with itself needs no atomic operation")]
    pub(crate) fn config(&self) -> Rc<Arc<Config>> {
        self.config.borrow().clone()
    }

    /// Other settings from now on.
    pub(crate) fn set_config(&self, config: Arc<Config>) {
        self.inbound.replace(&config, &self.hostname);
        self.config.replace(Rc::new(config));
    }

    /// Is there room for the outcomes of what would be accepted?
    pub(crate) fn may_accept(&self) -> bool {
        self.may_attempt() || self.is_ending()
    }

    /// The log that holds messages of shard number `number`.
    pub(crate) fn committer_of(&self, number: u16) -> Option<Rc<Committer>> {
        if number == self.id {
            return Some(self.own.clone());
        }
        self.adopted.borrow().iter().find(|(adopted, _)| *adopted == number).map(|(_, committer)| committer.clone())
    }

    /// The next id of this shard and boot.
    pub(crate) fn next_id(&self) -> QueueId {
        let id = self.upcoming_id();
        self.next_sequence.set(id.sequence + 1);
        id
    }

    /// What [`Shard::next_id`] will give out next.
    pub(crate) fn upcoming_id(&self) -> QueueId {
        QueueId { boot: self.boot, shard: self.id, sequence: self.next_sequence.get() }
    }

    /// Unix milliseconds of the queue's clock.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.steady_ms(self.ring.now())
    }
}
