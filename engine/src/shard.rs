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
    os::fd::OwnedFd,
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use glommio::{LocalExecutorBuilder, Placement};
use ringpost_config::{Config, RECIPIENTS_MAX};
use ringpost_queue::{
    DestinationId, DestinationLimits, NewMessage, NewRecipient, Queue, QueueId, QueueSettings, REPLY_BYTES_MAX, RetryPolicy, Route, Routes,
    Settled, Via,
};
use ringpost_ring::{PREEMPT_TIMER, Ring, RingConfig};
use ringpost_smtp::{
    envelope::EnvelopeView,
    header::{DateText, RECEIVED_BYTES_MAX},
};
use ringpost_spool::{Event, LogConfig, PoisonReason, Role};
use tracing::{error, info, warn};

use crate::{
    admission::{Admission, memory_budget},
    clock::Clock,
    committer::Committer,
    delivery::Delivery,
    inbound::InboundSettings,
    listener, mail_log,
    mail_log::{MailLog, MailLogChannel},
    metrics::Metrics,
    pool::Pool,
    preparation,
    recovering::Recovering,
    request_lane::RequestReceiver,
    segment_files::SegmentFiles,
    shard_control,
    spool_home::SpoolHome,
    staging::StagingBudget,
};

/// Longest batch: bounds a record and so the size of what leaves staging as a chunk.
/// Two of them fit into the smallest segment, 1 MiB, beside its header; a message with a thousand recipients fits, with the replies to each.
pub const BATCH_BYTES: u32 = 480 * 1024;
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
/// Housekeeping while there is something to give back.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// What a queued message is reckoned with: 250 bytes, addresses, the last reply, and its place in the spool's index.
const QUEUED_BYTES: u64 = 1024;

/// So long a drain waits for clients and next hops; what they did not finish by then is not acknowledged, and tried again.
pub(crate) const DRAIN_PATIENCE: Duration = Duration::from_secs(20);
/// And so long more for their tasks to end.
const DRAIN_REST: Duration = Duration::from_secs(3);

/// The share of the memory budget that sessions may stage while content arrives in pieces; a quarter is the queue's.
const STAGING_SHARE: u64 = 8;
const QUEUE_SHARE: u64 = 4;

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
    /// One listening socket for each `[[listener]]`, with SO_REUSEPORT.
    pub listeners: Vec<TcpListener>,
    /// The settings.
    pub config: Arc<Config>,
    /// Our name in banner, EHLO and Received.
    pub hostname: String,
    /// The spool, open and locked.
    pub home: Arc<SpoolHome>,
    /// Logs of shards that no longer exist, adopted by this one (S18).
    pub adopted: Vec<u16>,
    /// Requests of the coordinator.
    pub requests: RequestReceiver,
    /// Where mail log lines go.
    pub mail_log: Arc<MailLogChannel>,
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    Draining,
}

/// What all tasks of a shard share.
pub struct Shard {
    pub(crate) id: u16,
    pub(crate) boot: u32,
    pub(crate) ring: Ring,
    pub(crate) config: Arc<Config>,
    pub(crate) own: Rc<Committer>,
    pub(crate) adopted: RefCell<Vec<(u16, Rc<Committer>)>>,
    pub(crate) queue: RefCell<Queue>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Rc<Metrics>,
    pub(crate) mail_log: MailLog,
    pub(crate) inbound: InboundSettings,
    pub(crate) admission: Rc<Admission>,
    pub(crate) delivery: Delivery,
    pub(crate) pool: Pool,
    pub(crate) staging: StagingBudget,
    pub(crate) hostname: String,
    pub(crate) date: RefCell<DateText>,
    pub(crate) received_text: RefCell<Vec<u8>>,
    routes_scratch: RefCell<Vec<DestinationId>>,
    /// Logs whose messages are not all queued yet.
    loading: Cell<usize>,
    next_sequence: Cell<u64>,
    life: Cell<Life>,
    /// When the drain stops waiting for others.
    drain_until: Cell<Option<Instant>>,
    spool_failed: Arc<AtomicBool>,
    /// Who waits in [`Shard::poll_life`]: the shard's main task.
    life_watch: RefCell<Option<Waker>>,
    /// Woken when the shard drains or the spool fails; each owner takes its own back.
    life_waiters: RefCell<slab::Slab<Waker>>,
    on_event: Box<dyn Fn(ShardEvent) + Send>,
    housekeeping: RefCell<Option<Waker>>,
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

type OnEvent = Box<dyn Fn(ShardEvent) + Send>;

/// What the shard's main task goes on with.
type Started = (Rc<Shard>, Vec<TcpListener>, RequestReceiver);

fn start(plan: ShardPlan) -> Result<Started, (OnEvent, String)> {
    let ring = match Ring::start(RingConfig {
        entries: RING_ENTRIES,
        buffers: RECEIVE_BUFFERS,
        buffer_bytes: RECEIVE_BUFFER_BYTES,
        window_bytes: RECEIVE_WINDOW_BYTES,
        iowq_core: plan.io_wq_core,
        ..RingConfig::default()
    }) {
        Ok(ring) => ring,
        Err(reason) => return Err((plan.on_event, reason.to_string())),
    };
    let config = plan.config;
    let clock = Clock::default();
    let now = clock.steady_ms(ring.now());
    let metrics: Rc<Metrics> = Rc::default();
    let routes = match Routes::new(routes_of(&config, plan.shards)) {
        Ok(routes) => routes,
        Err(reason) => return Err((plan.on_event, format!("route: {reason}"))),
    };
    let budget = memory_budget(&config) / u64::from(plan.shards);
    let in_bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let settings = QueueSettings { messages_max: in_bytes(budget / QUEUE_SHARE / QUEUED_BYTES), ..QueueSettings::default() };
    let queue = Queue::new(settings, routes, random(), now);
    let open = |number: u16, role: Role| {
        let directory = plan.home.path().join(format!("shard-{number:03}"));
        if role == Role::Own {
            prepare_first(&config, &directory);
        }
        let files = SegmentFiles::open(ring.clone(), directory.clone(), plan.home.write_mode())
            .map_err(|reason| format!("{}: {reason}", directory.display()))?;
        let log = log_config(&config, &plan.home, number, role);
        Committer::open(ring.clone(), files, log, metrics.clone()).map_err(|reason| format!("{}: {reason}", directory.display()))
    };
    let mut committers = Vec::new();
    for (number, role) in std::iter::once((plan.id, Role::Own)).chain(plan.adopted.iter().map(|number| (*number, Role::Adopted))) {
        match open(number, role) {
            Ok(committer) => committers.push((number, committer)),
            Err(reason) => return Err((plan.on_event, reason)),
        }
    }
    let (_, own) = committers.remove(0);
    let shard = Rc::new(Shard {
        id: plan.id,
        boot: u32::try_from(plan.home.boot()).unwrap_or(u32::MAX),
        own,
        adopted: RefCell::new(committers),
        queue: RefCell::new(queue),
        clock,
        metrics,
        mail_log: MailLog::new(plan.mail_log),
        inbound: InboundSettings::new(&config, &plan.hostname),
        admission: Rc::new(Admission::new(&config, plan.shards)),
        delivery: Delivery::new(&ring),
        pool: Pool::new(&config),
        staging: StagingBudget::new(in_bytes(budget / STAGING_SHARE)),
        hostname: plan.hostname,
        date: RefCell::new(DateText::new(0)),
        received_text: RefCell::new(Vec::with_capacity(RECEIVED_BYTES_MAX)),
        routes_scratch: RefCell::default(),
        loading: Cell::new(1 + plan.adopted.len()),
        next_sequence: Cell::new(1),
        life: Cell::new(Life::Running),
        drain_until: Cell::new(None),
        spool_failed: plan.spool_failed,
        life_watch: RefCell::default(),
        life_waiters: RefCell::default(),
        on_event: plan.on_event,
        housekeeping: RefCell::default(),
        ring,
        config,
    });
    Ok((shard, plan.listeners, plan.requests))
}

/// A new log gets its first segment written with zeros before it is opened: the first mail is not to pay for a segment that was only
/// reserved. Without room for it the log makes do.
fn prepare_first(config: &Config, directory: &Path) {
    let segment_bytes = config.spool.segment_bytes.bytes();
    let is_new = std::fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none());
    let room =
        directory.parent().and_then(|spool| rustix::fs::statvfs(spool).ok()).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    if is_new
        && room > config.spool.min_free_bytes.bytes().saturating_add(segment_bytes)
        && let Err(reason) = preparation::prepare(directory, segment_bytes, 1, |_, _| ())
    {
        warn!(directory = %directory.display(), %reason, "the first segment could not be prepared; the log makes do without");
    }
}

fn log_config(config: &Config, home: &SpoolHome, number: u16, role: Role) -> LogConfig {
    let mut log = LogConfig::new(home.node(), number, home.boot());
    log.role = role;
    log.segment_bytes = u32::try_from(config.spool.segment_bytes.bytes()).expect("the config allows at most 1 GiB");
    log.batch_bytes = BATCH_BYTES;
    log.prepared_segments = config.spool.prepared_segments.max(3);
    // Enough numbers for a terabyte of the smallest segments.
    log.segments_max = 1 << 20;
    log.open_bytes_max = config.spool.open_max.bytes();
    log.free_bytes_min = config.spool.min_free_bytes.bytes();
    log.free_inodes_min = u64::from(config.spool.min_free_inodes);
    log
}

fn routes_of(config: &Config, shards: u16) -> Vec<Route> {
    let share = |limit: u32| limit.div_ceil(u32::from(shards)).max(1);
    let mut routes = Vec::new();
    for route in config.routes.as_slice() {
        let via = match &route.via {
            ringpost_config::Via::Smarthost { hosts } => Via::Smarthost { hosts: hosts.iter().map(ToString::to_string).collect() },
            ringpost_config::Via::Discard => Via::Discard,
            ringpost_config::Via::Hold => Via::Hold,
        };
        let connections_max = route.connections_max(&config.delivery);
        for pattern in &route.domains {
            routes.push(Route {
                pattern: pattern.to_string(),
                via: via.clone(),
                retry: RetryPolicy {
                    first_ms: millis(route.retry.base),
                    max_ms: millis(route.retry.cap),
                    jitter_percent: route.retry.jitter.percent(),
                    lifetime_ms: millis(route.retry.expiry),
                },
                limits: DestinationLimits {
                    connections_max: share(connections_max),
                    window_initial: share(config.delivery.window_initial.min(connections_max)),
                    dead_max_ms: millis(config.delivery.dead_destination),
                    ..DestinationLimits::default()
                },
            });
        }
    }
    routes
}

/// Recipients of an envelope with their destinations.
#[derive(Clone)]
struct Recipients<'a> {
    envelope: ringpost_smtp::envelope::Recipients<'a>,
    routes: std::slice::Iter<'a, DestinationId>,
}

impl<'a> Iterator for Recipients<'a> {
    type Item = NewRecipient<'a>;

    fn next(&mut self) -> Option<NewRecipient<'a>> {
        let (recipient, destination) = (self.envelope.next()?, *self.routes.next()?);
        Some(NewRecipient { address: recipient.path.as_str().as_bytes(), destination })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    u64::from_ne_bytes(bytes)
}

impl Shard {
    async fn live(self: Rc<Self>, listeners: Vec<TcpListener>, requests: RequestReceiver) -> Result<(), String> {
        let opened = Rc::new(Cell::new(0_usize));
        let logs: Vec<_> = std::iter::once((self.id, self.own.clone())).chain(self.adopted.borrow().iter().cloned()).collect();
        for (number, committer) in logs {
            self.ring.spawn(self.clone().run_log(number, committer, opened.clone())).detach();
        }
        self.ring.spawn(self.clone().deliver()).detach();
        self.ring.spawn(self.clone().keep_house()).detach();
        self.ring.spawn(shard_control::answer_requests(self.clone(), requests)).detach();
        // The write side of the own log is enough to accept mail: old mail loads in the background (S13).
        poll_fn(|cx| self.poll_life(cx, |shard| opened.get() > 0 || shard.is_ending())).await;
        if !self.is_ending() {
            for socket in listeners {
                self.ring.spawn(listener::accept(self.clone(), self.ring.listen(OwnedFd::from(socket)))).detach();
            }
            (self.on_event)(ShardEvent::Ready { shard: self.id });
        }
        poll_fn(|cx| self.poll_life(cx, Shard::is_ending)).await;
        if self.spool_has_failed() {
            // The coordinator ends the process; sessions answer 451 until then.
            poll_fn(|cx| self.poll_life(cx, |shard| shard.life.get() == Life::Draining)).await;
            return Err("the spool failed before".to_owned());
        }
        self.drain().await
    }

    /// Waits for a change of the shard's life.
    fn poll_life(&self, cx: &mut std::task::Context<'_>, ready: impl Fn(&Shard) -> bool) -> Poll<()> {
        if ready(self) {
            return Poll::Ready(());
        }
        self.life_watch.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// While the shard drains, no wait goes on beyond its patience.
    pub(crate) fn before_drain_ends(&self, at: Instant) -> Instant {
        self.drain_until.get().map_or(at, |until| at.min(until))
    }

    /// Waits until the mail of earlier runs is queued: before, a listing of the queue would be short of it.
    pub(crate) async fn loaded(&self) {
        let key = self.life_of_task().await;
        poll_fn(|_| if self.loading.get() == 0 || self.is_ending() { Poll::Ready(()) } else { Poll::Pending }).await;
        self.forget_waiter(key);
    }

    /// Logs that are still being loaded.
    pub(crate) fn logs_loading(&self) -> usize {
        self.loading.get()
    }

    /// Is there a route for this recipient?
    pub(crate) fn has_route(&self, recipient: ringpost_smtp::address::Path<'_>) -> bool {
        let domain = recipient.domain().unwrap_or(&self.hostname);
        self.queue.borrow().route(domain.as_bytes()) != DestinationId::UNROUTED
    }

    async fn drain(&self) -> Result<(), String> {
        info!(shard = self.id, sessions = self.metrics.sessions.get(), "shard drains");
        let deadline = self.ring.deadline();
        deadline.set(self.ring.now() + DRAIN_PATIENCE + DRAIN_REST);
        poll_fn(|cx| {
            let quiet = |shard: &Shard| shard.metrics.sessions.get() == 0 && shard.delivery.is_quiet();
            match deadline.poll_expired(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => self.poll_life(cx, quiet),
            }
        })
        .await;
        self.mail_log.pass_on();
        let logs: Vec<_> = std::iter::once(self.own.clone()).chain(self.adopted.borrow().iter().map(|(_, log)| log.clone())).collect();
        for log in &logs {
            log.with_log(|log| log.stop());
        }
        for log in &logs {
            log.stopped().await.map_err(|_| "the spool failed while draining".to_owned())?;
        }
        self.mail_log.pass_on();
        Ok(())
    }

    async fn run_log(self: Rc<Self>, number: u16, committer: Rc<Committer>, opened: Rc<Cell<usize>>) {
        let recovering = RefCell::new(Some(Recovering::default()));
        let shard = &self;
        let driver = committer.clone();
        driver
            .run(|event| match event {
                Event::Opened => {
                    if number == shard.id {
                        opened.set(1);
                        shard.wake_life();
                    }
                }
                Event::Acknowledged(ticket) => shard.delivery.acknowledged(shard, number, *ticket),
                Event::Found { .. } | Event::FoundOutcome { .. } | Event::FoundSettled { .. } => {
                    if let Some(recovering) = &mut *recovering.borrow_mut() {
                        recovering.found(event);
                    }
                }
                Event::Loaded(report) => {
                    info!(shard = shard.id, log = number, messages = report.messages, segments = report.segments, batches = report.batches, "spool loaded");
                    if let Some(recovering) = recovering.take() {
                        let (shard, committer, ring) = (shard.clone(), committer.clone(), shard.ring.clone());
                        // Not within the event: enqueueing asks the log what is still live. A spawned task begins at once.
                        ring.spawn(async move {
                            shard.ring.yield_now().await;
                            recovering.enqueue(&shard, number, &committer).await;
                            shard.loading.set(shard.loading.get() - 1);
                            shard.wake_life();
                        })
                        .detach();
                    }
                }
                Event::Incomplete { id } => {
                    if let Some(recovering) = &mut *recovering.borrow_mut() {
                        recovering.found(event);
                    }
                    error!(shard = shard.id, ?id, "a message lacks a part of its content and cannot be delivered; it stays in the spool");
                }
                Event::Damaged(damage) => match damage.kind {
                    ringpost_spool::DamageKind::UnacknowledgedTail => {
                        info!(shard = shard.id, file = %damage.file, offset = damage.offset, bytes = damage.bytes, "unacknowledged_tail: the log ends here, nobody was told 250 for the rest");
                    }
                    kind => error!(shard = shard.id, file = %damage.file, offset = damage.offset, bytes = damage.bytes, ?kind, "the spool is damaged here; everything else is delivered"),
                },
                Event::Poisoned(reason) => shard.fail(reason.to_string()),
                Event::Refused(reason) => shard.fail(format!("log {number} cannot be opened: {reason}")),
                Event::SegmentPrepared { written: false, .. } => shard.metrics.segments_unprepared.increment(),
                Event::PrepareFailed { result } => warn!(shard = shard.id, errno = -result, "no room to prepare a segment; tried again"),
                Event::Reserve(on) => {
                    shard.delivery.kick();
                    warn!(shard = shard.id, on, "spool reserve: new mail is answered with 452 while this is on, deliveries go on");
                }
                Event::SegmentPrepared { .. } | Event::Stopped => {}
                Event::SegmentFreed { .. } => shard.delivery.kick(),
                Event::Retired => {
                    info!(shard = shard.id, log = number, "the log of a shard that no longer exists is empty and gone");
                    let (shard, ring) = (shard.clone(), shard.ring.clone());
                    ring.spawn(async move {
                        shard.ring.yield_now().await;
                        shard.forget_adopted(number);
                    })
                    .detach();
                }
            })
            .await;
    }

    /// An adopted log is empty and its files are unlinked.
    fn forget_adopted(&self, number: u16) {
        let mut adopted = self.adopted.borrow_mut();
        if let Some(at) = adopted.iter().position(|(log, _)| *log == number) {
            let (_, log) = adopted.remove(at);
            if let Err(reason) = log.remove_directory() {
                warn!(shard = self.id, log = number, %reason, "the folder of an empty log could not be removed");
            }
        }
    }

    /// A write or flush failed somewhere: every log of this shard is closed, every waiting session gets its 451.
    fn fail(&self, reason: String) {
        if self.spool_failed.swap(true, Ordering::SeqCst) && reason == PoisonReason::Elsewhere.to_string() {
            self.wake_life();
            return;
        }
        error!(shard = self.id, reason, "the spool failed");
        self.poison_logs();
        (self.on_event)(ShardEvent::SpoolFailed { shard: self.id, reason });
    }

    /// Looks whether another shard's log failed. Called when the coordinator rings.
    pub(crate) fn look_at_spool(&self) {
        if self.spool_failed.load(Ordering::SeqCst) {
            self.poison_logs();
        }
    }

    fn poison_logs(&self) {
        // Deferred: the event that brought us here may hold a log, and a spawned task begins at once.
        let logs: Vec<_> = std::iter::once(self.own.clone()).chain(self.adopted.borrow().iter().map(|(_, log)| log.clone())).collect();
        let ring = self.ring.clone();
        self.ring
            .spawn(async move {
                ring.yield_now().await;
                for log in logs.iter().filter(|log| !log.is_poisoned()) {
                    log.with_log(|log| log.poison(PoisonReason::Elsewhere));
                }
            })
            .detach();
        self.wake_life();
    }

    /// Has any log of this spool failed?
    pub(crate) fn spool_has_failed(&self) -> bool {
        self.spool_failed.load(Ordering::Relaxed)
    }

    /// Draining, or the spool failed: nothing new is begun.
    pub(crate) fn is_ending(&self) -> bool {
        self.life.get() == Life::Draining || self.spool_has_failed()
    }

    /// Begins the drain.
    pub(crate) fn begin_drain(&self) {
        if self.life.replace(Life::Draining) == Life::Running {
            self.drain_until.set(Some(self.ring.now() + DRAIN_PATIENCE));
        }
        self.wake_life();
    }

    /// Wakes all that wait for the shard's end.
    pub(crate) fn wake_life(&self) {
        for (_, waiter) in self.life_waiters.borrow().iter() {
            waiter.wake_by_ref();
        }
        if let Some(waiter) = self.life_watch.take() {
            waiter.wake();
        }
        self.delivery.kick();
    }

    /// Registers for [`Shard::wake_life`]; the key is for [`Shard::forget_waiter`].
    pub(crate) fn remember_waiter(&self, waker: Waker) -> usize {
        self.life_waiters.borrow_mut().insert(waker)
    }

    /// Takes a registration back.
    pub(crate) fn forget_waiter(&self, key: usize) {
        self.life_waiters.borrow_mut().try_remove(key);
    }

    /// Registers the calling task for [`Shard::wake_life`].
    pub(crate) async fn life_of_task(&self) -> usize {
        poll_fn(|cx| Poll::Ready(self.remember_waiter(cx.waker().clone()))).await
    }

    /// Queues a message whose record is durable.
    pub(crate) fn enqueue(&self, id: QueueId, envelope: &EnvelopeView<'_>, size: u64, accepted_at: u64) {
        let now = self.now_ms();
        self.with_message(id, envelope, size, accepted_at, |queue, message, recipients| queue.enqueue(message, recipients, now));
        self.delivery.kick();
    }

    /// Queues a message found in the spool, with the state that its recipients had, if any.
    pub(crate) fn requeue(
        &self,
        id: QueueId,
        envelope: &EnvelopeView<'_>,
        size: u64,
        accepted_at: u64,
        state: Option<&[u8]>,
    ) -> Result<(), String> {
        if self.queue.borrow().key_of(id).is_some() {
            return Ok(());
        }
        let now = self.now_ms();
        let recovered = self.with_message(id, envelope, size, accepted_at, |queue, message, recipients| {
            queue.recover(message, recipients, state.into_iter(), now)
        });
        let (key, done) = recovered.map_err(|reason| reason.to_string())?;
        if done {
            self.persist(key, Settled::Done);
        }
        Ok(())
    }

    fn with_message<R>(
        &self,
        id: QueueId,
        envelope: &EnvelopeView<'_>,
        size: u64,
        accepted_at: u64,
        put: impl FnOnce(&mut Queue, &NewMessage<'_>, Recipients<'_>) -> R,
    ) -> R {
        let mut queue = self.queue.borrow_mut();
        let facts = envelope.content();
        let message = NewMessage {
            id,
            location: Default::default(),
            size,
            accepted_at,
            expires_at: None,
            priority: 0,
            eight_bit: facts.eight_bit_header || facts.eight_bit_body,
            smtputf8: envelope.smtputf8(),
            reverse_path: envelope.reverse_path().as_str().as_bytes(),
        };
        let mut routes = self.routes_scratch.borrow_mut();
        routes.clear();
        routes.extend(envelope.recipients().map(|recipient| queue.route(recipient.path.domain().unwrap_or(&self.hostname).as_bytes())));
        put(&mut queue, &message, Recipients { envelope: envelope.recipients(), routes: routes.iter() })
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
        let sequence = self.next_sequence.get();
        self.next_sequence.set(sequence + 1);
        QueueId { boot: self.boot, shard: self.id, sequence }
    }

    /// Unix milliseconds of the queue's clock.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.steady_ms(self.ring.now())
    }

    /// Writes a mail log line, and sees to it that it is passed on in time.
    pub(crate) fn log_mail(&self, line: std::fmt::Arguments<'_>) {
        let was_waiting = self.mail_log.is_waiting();
        self.mail_log.line(&self.clock, line);
        if !was_waiting {
            self.wake_housekeeping();
        }
    }

    /// There is something to give back or pass on later.
    pub(crate) fn wake_housekeeping(&self) {
        if let Some(waker) = self.housekeeping.take() {
            waker.wake();
        }
    }

    /// Passes mail log lines on after 100 ms, gives memory back after a second; sleeps without a timer when there is nothing.
    async fn keep_house(self: Rc<Self>) {
        let mut trim_at: Option<Instant> = None;
        let mut quiet_rounds = 0;
        loop {
            if !self.mail_log.is_waiting() && trim_at.is_none() {
                let mut slept = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut slept, true) || self.mail_log.is_waiting() {
                        return Poll::Ready(());
                    }
                    self.housekeeping.replace(Some(cx.waker().clone()));
                    Poll::Pending
                })
                .await;
            }
            self.ring.sleep_until(self.ring.now() + mail_log::FLUSH_AFTER).await;
            let now = self.ring.now();
            let busy = self.mail_log.pass_on();
            if busy && trim_at.is_none() {
                quiet_rounds = 0;
                trim_at = Some(now + TRIM_EVERY);
            }
            if trim_at.is_some_and(|at| now >= at) {
                let mut kept = self.own.forget_recent(now);
                for (_, log) in &*self.adopted.borrow() {
                    kept |= log.forget_recent(now);
                }
                self.ring.trim(now);
                self.metrics.log_lines_lost.set(self.mail_log.lost_total());
                // What was found unused now is given back when it still is in a second: two quiet rounds end it.
                quiet_rounds = if kept || busy { 0 } else { quiet_rounds + 1 };
                trim_at = (quiet_rounds < 3).then(|| now + TRIM_EVERY);
            }
        }
    }
}
