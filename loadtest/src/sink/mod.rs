//! The sink: a next hop for SMTP or LMTP on several cores that takes mail, checks every octet of it and keeps accounts.
//!
//! Each core has a thread of its own with a ring and a listener (SO_REUSEPORT, among its own cores only). Read `session.rs` for what is said, `verify.rs` for
//! the check, `core.rs` for connections, limits and delays.

pub mod announcement;
pub mod arguments;
mod clients;
mod core;
pub mod delay;
pub mod fault;
mod path;
pub(crate) mod seconds;
pub mod session;
pub mod terminator;
pub mod verify;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt};
use serde::Serialize;

use crate::{
    ledger::LedgerWriter,
    parts::{CorePart, PartReceiver, channel},
    percentile::{PERCENTILES, told},
    random::Random,
    sink::{announcement::Announcement, clients::Clients, delay::ReplyDelay, fault::Faults, seconds::Seconds, verify::Damage},
    source::SourceError,
};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 8192;

/// The longest wait for an address that is in use. A process that was killed (`kill -9`) listens until it is gone, a few hundredths of a second
/// with many connections, and whoever starts it again at once is there before.
const IN_USE_PATIENCE: Duration = Duration::from_secs(1);

/// Pace of trying again: nothing tells that an address is free.
const AGAIN: Duration = Duration::from_millis(10);

/// Pace of looking whether what was asked for has been done.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Up and down in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flapping {
    /// How long it takes connections.
    pub up: Duration,
    /// How long it does not: connections are reset, those there are and those that come.
    pub down: Duration,
}

/// What a sink does.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Each gets a thread that is pinned to it. Never empty.
    pub cores: Vec<usize>,
    /// What it says of itself.
    pub announcement: Announcement,
    /// Where arrivals are recorded.
    pub ledger: Option<PathBuf>,
    /// What goes wrong.
    pub faults: Faults,
    /// A sender and recipient are answered 451 until so much time after they first came.
    pub greylist: Option<Duration>,
    /// Connections at once; further ones get 421.
    pub connections_max: Option<u64>,
    /// Connections at once from one address; further ones get 421.
    pub per_client_max: Option<u64>,
    /// Up and down in turn.
    pub flapping: Option<Flapping>,
    /// Down while this file exists.
    pub down_file: Option<PathBuf>,
    /// Octets per second that a connection is read with.
    pub read_bytes_per_s: Option<u64>,
    /// How long replies are held back.
    pub reply_delay: ReplyDelay,
    /// A connection that says nothing for so long is closed.
    pub idle_timeout: Duration,
    /// Ends after so many messages.
    pub messages: Option<u64>,
    /// Decides which faults happen when.
    pub seed: u64,
}

impl SinkOptions {
    /// A good next hop on one core.
    pub fn new(listen: SocketAddr, core: usize) -> SinkOptions {
        SinkOptions {
            listen,
            cores: vec![core],
            announcement: Announcement::default(),
            ledger: None,
            faults: Faults::default(),
            greylist: None,
            connections_max: None,
            per_client_max: None,
            flapping: None,
            down_file: None,
            read_bytes_per_s: None,
            reply_delay: ReplyDelay::None,
            idle_timeout: Duration::from_secs(300),
            messages: None,
            seed: Random::fresh_seed(),
        }
    }
}

/// What one client address did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ClientReport {
    /// Connections in all.
    pub connections: u64,
    /// Most of them at once.
    pub concurrent_max: u64,
    /// Messages.
    pub messages: u64,
}

/// What came in all.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SinkReport {
    /// Seconds from the first message to the last.
    pub seconds: f64,
    /// Messages taken, damaged ones and other people's, too: one each, however many recipients it had.
    pub messages: u64,
    /// Recipients that they were taken for.
    pub deliveries: u64,
    /// Messages per second.
    pub messages_per_second: f64,
    /// Arrivals with a mark that are as they were sent: messages, and under LMTP deliveries, as each has a reply of its own.
    pub intact: u64,
    /// By what is wrong.
    pub damaged: BTreeMap<&'static str, u64>,
    /// Messages without a mark.
    pub foreign: u64,
    /// Octets of content.
    pub bytes: u64,
    /// Bare CR and LF in content.
    pub bare_line_ends: u64,
    /// Connections in all, those that were open at the end too.
    pub connections: u64,
    /// Connections that were over a limit.
    pub connections_refused: u64,
    /// Most at once.
    pub concurrent_max: u64,
    /// Mean over all of them, those that were open at the end too.
    pub messages_per_connection_mean: f64,
    /// The most of one.
    pub messages_per_connection_max: u64,
    /// By client address; at most 1,000 of them.
    pub clients: BTreeMap<String, ClientReport>,
    /// Refusals by code.
    pub refusals: BTreeMap<u16, u64>,
    /// Connections dropped on purpose.
    pub dropped: u64,
    /// Times that no connection could be taken, as this process had no descriptors left: twenty a second while that lasts.
    pub accepts_failed: u64,
    /// From when a message was due at its source until it was whole here, microseconds, by percentile; nothing where too few were timed.
    pub end_to_end_us: BTreeMap<String, Option<u64>>,
    /// Messages that were timed so.
    pub end_to_end_count: u64,
    /// CPU time of its threads by message, microseconds.
    pub cpu_us_per_message: f64,
    #[serde(skip)]
    cpu: Duration,
    /// When the first and the last message were whole, since the start.
    #[serde(skip)]
    span: Option<(Duration, Duration)>,
}

impl SinkReport {
    fn count_damage(&mut self, damage: Damage) {
        *self.damaged.entry(damage.name()).or_default() += 1;
    }

    /// Messages that are not as they were sent.
    pub fn damaged_all(&self) -> u64 {
        self.damaged.values().sum()
    }

    fn add(&mut self, other: SinkReport) {
        self.span = match (self.span, other.span) {
            (Some((first, last)), Some((other_first, other_last))) => Some((first.min(other_first), last.max(other_last))),
            (own, other) => own.or(other),
        };
        self.messages += other.messages;
        self.deliveries += other.deliveries;
        self.intact += other.intact;
        self.foreign += other.foreign;
        self.bytes += other.bytes;
        self.bare_line_ends += other.bare_line_ends;
        self.connections += other.connections;
        self.connections_refused += other.connections_refused;
        self.dropped += other.dropped;
        self.accepts_failed += other.accepts_failed;
        self.cpu += other.cpu;
        self.messages_per_connection_max = self.messages_per_connection_max.max(other.messages_per_connection_max);
        other.damaged.into_iter().for_each(|(name, count)| *self.damaged.entry(name).or_default() += count);
        other.refusals.into_iter().for_each(|(code, count)| *self.refusals.entry(code).or_default() += count);
    }

    fn finish(&mut self, clients: &Clients, end_to_end_ns: &Histogram<u64>) {
        self.seconds = self.span.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        self.messages_per_second = if self.seconds > 0.0 { self.messages as f64 / self.seconds } else { 0.0 };
        self.messages_per_connection_mean = self.messages as f64 / self.connections.max(1) as f64;
        self.cpu_us_per_message = self.cpu.as_secs_f64() * 1e6 / self.messages.max(1) as f64;
        self.concurrent_max = clients.concurrent_max;
        self.clients = clients.by_address.iter().map(|(address, client)| (address.to_string(), client.clone())).collect();
        self.end_to_end_count = end_to_end_ns.len();
        self.end_to_end_us = PERCENTILES.iter().map(|&(name, at)| (name.into(), told(end_to_end_ns, at).map(|ns| ns / 1000))).collect();
    }
}

/// What the cores of a sink share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) stop: AtomicBool,
    pub(crate) seconds: Seconds,
    pub(crate) down: AtomicBool,
    pub(crate) messages: AtomicU64,
    pub(crate) deliveries: AtomicU64,
    /// How often somebody has asked for the ledger to be written, and what of it each core has done.
    pub(crate) ledger_asked: AtomicU64,
    pub(crate) ledger_written: Box<[AtomicU64]>,
    /// Why no connection could be taken, until somebody asks.
    pub(crate) accept_trouble: Mutex<Option<String>>,
    pub(crate) clients: Mutex<Clients>,
    pub(crate) greylist: Mutex<core::Greylist>,
}

/// What a core took, and its latencies.
type CoreResult = Result<(SinkReport, Histogram<u64>), SourceError>;

/// The counters of a sink, for any thread, while it runs and afterwards.
#[derive(Debug, Clone)]
pub struct SinkCounters {
    shared: Arc<Shared>,
}

impl SinkCounters {
    /// Messages so far.
    pub fn messages(&self) -> u64 {
        self.shared.messages.load(SeqCst)
    }

    /// Recipients of them. A message counts before it is answered.
    pub fn deliveries(&self) -> u64 {
        self.shared.deliveries.load(SeqCst)
    }

    /// Connections taken so far.
    pub fn connections(&self) -> u64 {
        self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner).taken()
    }

    /// Connections that are open: the end of each of the others has been seen, and all that stood in it counts.
    pub fn connections_open(&self) -> u64 {
        self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner).open()
    }
}

/// A sink that runs. Stopped when dropped.
#[derive(Debug)]
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    /// When it began.
    pub began: Instant,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<CoreResult>>,
    parts: PartReceiver,
}

impl Sink {
    /// Binds and starts a thread on each core.
    ///
    /// # Errors
    /// A ledger that cannot be opened, an address that cannot be had or that another has for a second, no thread. What the ring lacks comes from [`Sink::join`].
    pub fn start(options: SinkOptions) -> Result<Sink, SourceError> {
        if options.cores.is_empty() {
            return Err(SourceError::Options("a sink needs a core at least".into()));
        }
        // Each core opens its own: whoever hears that the sink listens may rely on all of them.
        LedgerWriter::open(options.ledger.as_deref())?;
        let (listeners, address) = when_free(IN_USE_PATIENCE, || listeners(options.listen, options.cores.len()))?;
        let (sender, parts) = channel();
        let ledger_written = options.cores.iter().map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { ledger_written, ..Shared::default() });
        let mut sink = Sink { address, began: Instant::now(), shared, threads: Vec::new(), parts };
        for (share, listener) in listeners.into_iter().enumerate() {
            let setup = core::Setup {
                share,
                listener,
                began: sink.began,
                options: SinkOptions { listen: address, ..options.clone() },
                shared: sink.shared.clone(),
                parts: sender.clone(),
            };
            let name = format!("sink-{}", options.cores[share]);
            sink.threads.push(std::thread::Builder::new().name(name).spawn(move || core::run(setup))?);
        }
        Ok(sink)
    }

    /// Counts from now on in the seconds of a run that began at `run_began`.
    pub fn follow(&self, run_began: Instant) {
        self.shared.seconds.follow(run_began.saturating_duration_since(self.began));
    }

    /// The second of its parts that something at this time is in.
    pub fn second_of(&self, at: Instant) -> u64 {
        self.shared.seconds.of(at.saturating_duration_since(self.began))
    }

    /// Messages so far.
    pub fn messages(&self) -> u64 {
        self.shared.messages.load(Relaxed)
    }

    /// The same and more for any thread.
    pub fn counters(&self) -> SinkCounters {
        SinkCounters { shared: self.shared.clone() }
    }

    /// Goes down soon, or comes up again: down, it resets connections, those there are and those that come.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Relaxed);
    }

    /// Waits until each arrival so far stands in the ledger's file, or the sink is over.
    pub fn write_ledger(&self) {
        let asked = self.shared.ledger_asked.fetch_add(1, SeqCst) + 1;
        while self.shared.ledger_written.iter().any(|written| written.load(SeqCst) < asked) && !self.is_over() {
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Why no connection could be taken lately. None: that did not happen since this was asked last.
    pub fn accept_trouble(&self) -> Option<String> {
        self.shared.accept_trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends it soon, connections and all.
    pub fn stop(&self) {
        self.shared.stop.store(true, Relaxed);
    }

    /// Has it ended, by its number of messages or a failure?
    pub fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// The next part that a core has measured, waiting for at most `limit`.
    pub fn next_part(&self, limit: Duration) -> Option<CorePart> {
        self.parts.next(limit)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The first thread that failed: no ring, or a ledger that could not be written.
    pub fn join(mut self) -> Result<(SinkReport, Vec<CorePart>), SourceError> {
        let mut report = SinkReport::default();
        let mut end_to_end = crate::encoded_histogram::latency_histogram();
        for thread in self.threads.drain(..) {
            let ended = thread.join().map_err(|_| io::Error::other("a thread of the sink panicked"))?;
            let (part, histogram) = ended?;
            report.add(part);
            end_to_end.add(&histogram).expect("all latencies have the same bounds");
        }
        report.finish(&self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner), &end_to_end);
        Ok((report, self.parts.rest()))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

/// Does this until the address that it is about is not in use any more, or has been for as long as `patience` says.
fn when_free<T>(patience: Duration, mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && began.elapsed() < patience => std::thread::sleep(AGAIN),
            bound => return bound,
        }
    }
}

/// So many listening sockets on one port that is nobody else's, and where that is.
fn listeners(address: SocketAddr, count: usize) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
    let mut listeners = vec![listener(address, count > 1)?];
    let address = address_of(&listeners[0])?;
    for _ in 1..count {
        listeners.push(sharer(address)?);
    }
    Ok((listeners, address))
}

/// A listening socket on a port that is nobody else's. With `shared` further ones of this process may be bound to it ([`sharer`]).
pub(crate) fn listener(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let socket = socket_for(address)?;
    // SO_REUSEPORT comes behind the bind: before it, the kernel would let this socket share the port of any other sink.
    bind(&socket, &address).and_then(|()| sockopt::set_socket_reuseport(&socket, shared)).map_err(|error| wrong(address, error))?;
    listen(&socket, BACKLOG).map_err(|error| wrong(address, error))?;
    Ok(socket)
}

/// Another listening socket on the port of a [`listener`].
pub(crate) fn sharer(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket_for(address)?;
    sockopt::set_socket_reuseport(&socket, true).and_then(|()| bind(&socket, &address)).map_err(|error| wrong(address, error))?;
    listen(&socket, BACKLOG).map_err(|error| wrong(address, error))?;
    Ok(socket)
}

fn socket_for(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(|error| wrong(address, error))?;
    sockopt::set_socket_reuseaddr(&socket, true).map_err(|error| wrong(address, error))?;
    Ok(socket)
}

fn wrong(address: SocketAddr, error: rustix::io::Errno) -> io::Error {
    io::Error::new(io::Error::from(error).kind(), format!("listen on {address}: {error}"))
}

fn address_of(socket: &OwnedFd) -> io::Result<SocketAddr> {
    SocketAddr::try_from(getsockname(socket)?).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What happened: a sink that was killed and started again at once found its address in use by itself, which was not gone yet.
    #[test]
    fn an_address_that_becomes_free_is_waited_for_and_one_that_does_not_is_given_up() {
        for count in [1, 2] {
            let mut held = Some(TcpListener::bind("127.0.0.1:0").unwrap());
            let address = held.as_ref().unwrap().local_addr().unwrap();
            let mut tries = 0;
            let bound = when_free(Duration::from_secs(600), || {
                let bound = listeners(address, count);
                tries += 1;
                held = None;
                bound
            });
            let (listeners, bound_to) = bound.unwrap();
            assert_eq!((listeners.len(), bound_to, tries), (count, address, 2));
            let refused = when_free(Duration::ZERO, || self::listeners(address, count)).unwrap_err();
            assert!(
                refused.kind() == io::ErrorKind::AddrInUse && refused.to_string().contains(&format!("listen on {address}")),
                "{refused}"
            );
        }
    }
}
