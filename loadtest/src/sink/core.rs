//! One core of the sink: its listener, its connections, and what they are counted in.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    hash::{BuildHasher, RandomState},
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{
        Arc, PoisonError,
        atomic::Ordering::{Relaxed, SeqCst},
    },
    task::Poll,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use ringpost_ring::{Conn, Deadline, Listener, Received, Ring, RingConfig, local, local::Spawner};

use crate::{
    deadlines::flush,
    encoded_histogram::latency_histogram,
    error_kind::ErrorKind,
    ledger::{Envelope, LedgerWriter},
    measurement::Recorder,
    parts::PartSender,
    phase::Phase,
    pinning,
    random::Random,
    sink::{
        Shared, SinkOptions, SinkReport,
        fault::FaultKind,
        listener,
        session::{Behaviour, Next, ServerSession},
        sharer,
        verify::Arrival,
    },
    source::{SourceError, clock::Clock, host::Stage},
};

/// How often a core looks at its stop flag and its seconds.
const TICK: Duration = Duration::from_millis(20);

/// Replies to the last messages are given so long to leave.
const REPLIES_MAX: Duration = Duration::from_secs(10);

/// Senders and recipients that greylisting remembers. When it is full, new ones pass.
const GREYLIST_MAX: usize = 1_000_000;

/// Without descriptors a listener waits for so long.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// When each sender and recipient first came.
#[derive(Debug, Default)]
pub(crate) struct Greylist {
    first: HashMap<u64, Instant>,
    hasher: RandomState,
}

impl Greylist {
    fn is_early(&mut self, reverse_path: &[u8], forward_path: &[u8], now: Instant, delay: Duration) -> bool {
        let key = self.hasher.hash_one((reverse_path, forward_path));
        if self.first.len() >= GREYLIST_MAX && !self.first.contains_key(&key) {
            return false;
        }
        now.saturating_duration_since(*self.first.entry(key).or_insert(now)) < delay
    }
}

pub(super) struct Setup {
    pub(super) share: usize,
    pub(super) listener: OwnedFd,
    pub(super) began: Instant,
    pub(super) options: SinkOptions,
    pub(super) shared: Arc<Shared>,
    pub(super) parts: PartSender,
}

struct Core {
    ring: Ring,
    options: SinkOptions,
    shared: Arc<Shared>,
    desk: RefCell<Desk>,
    connections: Cell<u64>,
    began: Instant,
    /// Nothing listens for now.
    down: Cell<bool>,
    /// What the listener waits for at most, so that going down ends the wait; so do the connections.
    listening: Deadline,
    open: RefCell<HashMap<u64, Rc<Open>>>,
    accepted: Cell<u64>,
    /// Replies that have not left, where the sink ends by its number of messages.
    owed: Cell<u64>,
}

/// A connection that is open.
struct Open {
    peer: IpAddr,
    /// What it waits for at most.
    deadline: Deadline,
    /// The sink went down while it was open, and may be up again.
    cut: Cell<bool>,
    messages: Cell<u64>,
}

/// A reply that has not left.
struct Owed<'a>(&'a Cell<u64>);

impl<'a> Owed<'a> {
    fn new(count: &'a Cell<u64>) -> Owed<'a> {
        count.set(count.get() + 1);
        Owed(count)
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Core {
    /// So many connections are open from now on.
    fn count_connections(&self, open: u64) {
        self.connections.set(open);
        let mut desk = self.desk.borrow_mut();
        desk.recorder.at(self.shared.seconds.of(self.began.elapsed()));
        desk.recorder.connections(open);
    }

    /// Goes down or comes up, as it is asked for.
    fn follow_down(&self) {
        let by_file = self.options.down_file.as_ref().is_some_and(|file| file.exists());
        let down = by_file || self.shared.down.load(Relaxed);
        if down && !self.down.replace(down) {
            let now = Instant::now();
            self.listening.set(now);
            self.open.borrow().values().for_each(|open| {
                open.cut.set(true);
                open.deadline.set(now);
            });
        }
        self.down.set(down);
    }

    /// A connection is over, or the sink.
    fn close(&self, open: &Open) {
        let messages = open.messages.get();
        self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner).close(open.peer, messages);
        let report = &mut self.desk.borrow_mut().report;
        report.connections += 1;
        report.messages_per_connection_max = report.messages_per_connection_max.max(messages);
    }
}

/// The part of a core that sessions' machines talk to.
struct Desk {
    options: SinkOptions,
    shared: Arc<Shared>,
    random: Random,
    recorder: Recorder,
    ledger: LedgerWriter,
    ledger_failed: Option<io::Error>,
    report: SinkReport,
    end_to_end: Histogram<u64>,
    clock: Clock,
    /// The time of the read that is being handled.
    now: Instant,
    began: Instant,
}

impl Desk {
    /// Writes what arrived since the last turn, whose replies leave with the next one.
    fn write_ledger(&mut self) {
        if let Err(error) = self.ledger.flush() {
            self.ledger_failed.get_or_insert(error);
        }
    }
}

impl Behaviour for Desk {
    fn fault(&mut self, stage: Stage) -> Option<FaultKind> {
        let fault = self.options.faults.draw(stage, &mut self.random);
        if fault.is_some_and(FaultKind::ends_connection) {
            self.report.dropped += 1;
        }
        fault
    }

    fn is_greylisted(&mut self, reverse_path: &[u8], forward_path: &[u8]) -> bool {
        self.options.greylist.is_some_and(|delay| {
            let mut greylist = self.shared.greylist.lock().unwrap_or_else(PoisonError::into_inner);
            greylist.is_early(reverse_path, forward_path, self.now, delay)
        })
    }

    fn arrived(&mut self, arrival: &Arrival, envelope: Envelope<'_>, is_first: bool) {
        let recipients = memchr::memchr_iter(b',', envelope.recipients).count() as u64 + 1;
        let report = &mut self.report;
        report.messages += u64::from(is_first);
        report.deliveries += recipients;
        report.bytes += arrival.bytes;
        report.bare_line_ends += arrival.bare_line_ends;
        let at = self.now.saturating_duration_since(self.began);
        report.span = Some((report.span.map_or(at, |(first, _)| first), at));
        match (arrival.damage, &arrival.mark) {
            (Some(damage), _) => report.count_damage(damage),
            (None, Some(_)) => report.intact += 1,
            (None, None) => report.foreign += 1,
        }
        self.recorder.at(self.shared.seconds.of(at));
        self.recorder.acknowledged(arrival.bytes);
        let now_us = self.clock.us(self.now);
        if let Some(mark) = &arrival.mark {
            let latency = Duration::from_micros(now_us.saturating_sub(mark.due_us));
            self.recorder.record(Phase::EndToEnd, latency);
            self.end_to_end.saturating_record((latency.as_nanos() as u64).max(1));
        }
        if let Err(error) = self.ledger.delivered(arrival, now_us, envelope) {
            self.ledger_failed.get_or_insert(error);
        }
        self.shared.deliveries.fetch_add(recipients, SeqCst);
        self.shared.messages.fetch_add(u64::from(is_first), SeqCst);
    }

    fn refused(&mut self, code: u16) {
        *self.report.refusals.entry(code).or_default() += 1;
        self.recorder.at(self.shared.seconds.of(self.now.saturating_duration_since(self.began)));
        self.recorder.error(ErrorKind::Reply(code));
    }
}

/// Runs a core until it is stopped or has what it wants.
pub(super) fn run(setup: Setup) -> Result<(SinkReport, Histogram<u64>), SourceError> {
    let core_number = setup.options.cores[setup.share];
    pinning::pin(core_number)?;
    let ledger = LedgerWriter::open(setup.options.ledger.as_deref())?;
    let config = RingConfig { entries: 4096, buffers: 2048, buffer_bytes: 16 << 10, ..RingConfig::default() };
    let ran = local::run(config, |ring, spawner| async move {
        let cpu = pinning::thread_cpu();
        let began = setup.began;
        let desk = Desk {
            options: setup.options.clone(),
            shared: setup.shared.clone(),
            random: Random::part(setup.options.seed, setup.share as u64),
            recorder: Recorder::new(),
            ledger,
            ledger_failed: None,
            report: SinkReport::default(),
            end_to_end: latency_histogram(),
            clock: Clock::now(),
            now: began,
            began,
        };
        let core = Rc::new(Core {
            listening: ring.deadline(),
            open: RefCell::default(),
            accepted: Cell::new(0),
            owed: Cell::new(0),
            down: Cell::new(false),
            ring,
            options: setup.options,
            shared: setup.shared,
            desk: RefCell::new(desk),
            connections: Cell::new(0),
            began,
        });
        let keeper = core.clone();
        spawner.before_each_turn(move || keeper.desk.borrow_mut().write_ledger());
        spawner.spawn(serve(core.clone(), setup.listener, spawner.clone()));
        supervise(&core, setup.share, &setup.parts).await?;
        core.open.take().into_values().for_each(|open| core.close(&open));
        let mut desk = core.desk.borrow_mut();
        desk.report.cpu = pinning::thread_cpu().saturating_sub(cpu);
        Ok((desk.report.clone(), desk.end_to_end.clone()))
    });
    ran.map_err(|reason| SourceError::Ring { core: core_number, reason })?
}

/// Looks after the stop flag and hands in what each second measured.
async fn supervise(core: &Core, share: usize, parts: &PartSender) -> Result<(), SourceError> {
    let mut enough = None;
    let deadline = core.ring.deadline();
    loop {
        deadline.set(Instant::now() + TICK);
        deadline.expired().await;
        core.follow_down();
        if core.options.messages.is_some_and(|messages| core.shared.messages.load(Relaxed) >= messages) {
            enough.get_or_insert_with(Instant::now);
        }
        // The last message counts before its reply has left, and a client that gets none would send it again.
        let replied = enough.is_some_and(|since| core.owed.get() == 0 || since.elapsed() > REPLIES_MAX);
        let over = replied || core.shared.stop.load(Relaxed);
        let mut desk = core.desk.borrow_mut();
        if let Some(error) = desk.ledger_failed.take() {
            return Err(error.into());
        }
        desk.recorder.at(core.shared.seconds.of(core.began.elapsed()));
        parts.hand_in(&mut desk.recorder, 0, over);
        let asked = core.shared.ledger_asked.load(SeqCst);
        desk.ledger.flush()?;
        core.shared.ledger_written[share].store(asked, SeqCst);
        if over {
            return Ok(());
        }
    }
}

/// Accepts, and goes up and down where that is asked for.
async fn serve(core: Rc<Core>, first: OwnedFd, spawner: Spawner) {
    let mut socket = Some(first);
    let deadline = core.ring.deadline();
    loop {
        while core.down.get() {
            socket = None;
            pause(&deadline, TICK).await;
        }
        let ends = core.options.flapping.map(|flapping| Instant::now() + flapping.up);
        let bound = match socket.take() {
            Some(socket) => Ok(socket),
            None if core.options.cores.len() > 1 => sharer(core.options.listen),
            None => listener(core.options.listen, false),
        };
        // Up again on a port that somebody else took meanwhile: stays down until it is free, as a host would.
        if let Ok(socket) = bound {
            let listener = core.ring.listen(socket);
            accept(&core, &listener, ends, &spawner).await;
        }
        pause(&deadline, core.options.flapping.map_or(TICK, |flapping| flapping.down)).await;
    }
}

async fn accept(core: &Rc<Core>, listener: &Listener, ends: Option<Instant>, spawner: &Spawner) {
    let deadline = &core.listening;
    while !core.down.get() {
        match ends {
            Some(ends) => deadline.set(ends),
            None => deadline.clear(),
        }
        let accepted = poll_fn(|cx| match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
            Poll::Pending if deadline.poll_expired(cx).is_ready() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        match accepted.await {
            None => return,
            Some(Ok(conn)) => spawner.spawn(connection(core.clone(), conn, ends)),
            Some(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::SHUTDOWN.raw_os_error()) => return,
            Some(Err(error)) => {
                {
                    let mut desk = core.desk.borrow_mut();
                    desk.recorder.error(ErrorKind::Local);
                    desk.report.accepts_failed += 1;
                }
                *core.shared.accept_trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                deadline.set(Instant::now() + ACCEPT_AGAIN);
                deadline.expired().await;
            }
        }
    }
}

async fn connection(core: Rc<Core>, conn: Conn, ends: Option<Instant>) {
    let Ok(peer) = conn.peer_addr() else { return };
    let admitted = core.shared.clients.lock().unwrap_or_else(PoisonError::into_inner).admit(peer.ip(), &core.options);
    if !admitted {
        core.desk.borrow_mut().report.connections_refused += 1;
        // A client that does not read it gets no better treatment.
        let _unread = conn.send(b"421 4.7.0 Too many connections\r\n");
        let _unsent = conn.flush().await;
        return;
    }
    core.count_connections(core.connections.get() + 1);
    let number = core.accepted.get();
    let open = Rc::new(Open { peer: peer.ip(), deadline: core.ring.deadline(), cut: Cell::new(core.down.get()), messages: Cell::new(0) });
    core.accepted.set(number + 1);
    core.open.borrow_mut().insert(number, open.clone());
    speak(&core, conn, &open, ends).await;
    core.count_connections(core.connections.get() - 1);
    let is_counted = core.open.borrow_mut().remove(&number).is_none();
    if !is_counted {
        core.close(&open);
    }
}

/// Speaks with a client until one of the two has had enough.
async fn speak(core: &Core, conn: Conn, open: &Open, ends: Option<Instant>) {
    let deadline = &open.deadline;
    let mut out = core.ring.take_vec();
    let (mut session, mut next) = {
        let mut desk = core.desk.borrow_mut();
        desk.now = Instant::now();
        ServerSession::begin(&core.options.announcement, &mut *desk, &mut out)
    };
    let counts = core.options.messages.is_some();
    let mut owed = None;
    // Asked behind each wait: one that came up again meanwhile has sessions of its own, and what is said to nobody is not taken.
    let is_down = || open.cut.get() || ends.is_some_and(|ends| Instant::now() >= ends);
    loop {
        if next == Next::Drop || is_down() {
            conn.abort();
            return;
        }
        if !out.is_empty() {
            let delay = core.options.reply_delay.draw(&mut core.desk.borrow_mut().random);
            if let Some(delay) = delay {
                pause_until(deadline, ends, delay).await;
                if is_down() {
                    conn.abort();
                    return;
                }
            }
            if conn.send(std::mem::replace(&mut out, core.ring.take_vec())).is_err() {
                return;
            }
            if let Some(reply) = owed.take() {
                if conn.flush().await.is_err() {
                    return;
                }
                drop(reply);
            }
        }
        let idle = Instant::now() + core.options.idle_timeout;
        deadline.set(ends.map_or(idle, |ends| ends.min(idle)));
        if next == Next::Close {
            // The client may be gone; nothing is owed to it any more.
            let _unsent = flush(&conn, deadline).await;
            return;
        }
        let received = match next_read(&conn, deadline).await {
            Ok(Some(received)) => received,
            Ok(None) => {
                // It says no more, and may still listen for what it is owed.
                let _unsent = flush(&conn, deadline).await;
                return;
            }
            Err(_) => {
                // Time is over, for the client or for the sink.
                conn.abort();
                return;
            }
        };
        if let Some(rate) = core.options.read_bytes_per_s {
            pause_until(deadline, ends, Duration::from_secs_f64(received.len() as f64 / rate.max(1) as f64)).await;
        }
        if is_down() {
            conn.abort();
            return;
        }
        let mut desk = core.desk.borrow_mut();
        desk.now = Instant::now();
        next = session.receive(&received, &core.options.announcement, &mut *desk, &mut out);
        drop(received);
        while next == Next::Read
            && core.options.read_bytes_per_s.is_none()
            && let Some(Ok(Some(more))) = conn.try_read()
        {
            next = session.receive(&more, &core.options.announcement, &mut *desk, &mut out);
        }
        open.messages.set(session.messages());
        owed = (counts && !out.is_empty()).then(|| Owed::new(&core.owed));
    }
}

async fn pause(deadline: &Deadline, length: Duration) {
    deadline.set(Instant::now() + length);
    deadline.expired().await;
}

/// A pause of a connection, until the sink goes down at most.
async fn pause_until(deadline: &Deadline, ends: Option<Instant>, length: Duration) {
    let until = Instant::now() + length;
    deadline.set(ends.map_or(until, |ends| ends.min(until)));
    deadline.expired().await;
}

async fn next_read(conn: &Conn, deadline: &Deadline) -> io::Result<Option<Received>> {
    poll_fn(|cx| match conn.poll_read(cx) {
        Poll::Ready(outcome) => Poll::Ready(outcome),
        Poll::Pending if deadline.poll_expired(cx).is_ready() => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        Poll::Pending => Poll::Pending,
    })
    .await
}
