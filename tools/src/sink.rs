//! The next hop of the rigs: a minimal SMTP server that checks every message and keeps a ledger of what arrived.
//!
//! One thread, one mio poll. It can be down, slow or unfriendly on demand. Read [`Sink::run`] first.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use serde::Serialize;

use crate::arrival::Damage;
use crate::ledger::LedgerWriter;
use crate::random::Random;
use crate::sink_session::{SinkSession, Step};

const LISTENER: Token = Token(usize::MAX);
/// How long one wait for events lasts at most: the pace at which `down`, `stop` and delayed replies are looked at.
const WAIT_MAX: Duration = Duration::from_millis(10);

/// What the sink does.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// Where to listen; port 0 chooses a free one of loopback.
    pub listen: SocketAddr,
    /// Where arrivals are recorded.
    pub ledger: Option<PathBuf>,
    /// Announce PIPELINING.
    pub pipelining: bool,
    /// Wait this long before the reply to the final dot.
    pub delay: Duration,
    /// Answer the final dot with 451 once in this many messages; 0 never.
    pub defer_one_in: u64,
    /// Answer the final dot with 554 once in this many messages; 0 never.
    pub reject_one_in: u64,
    /// Close without a reply after the final dot once in this many messages; 0 never.
    pub drop_one_in: u64,
    /// While this file exists the sink is down: nothing listens.
    pub down_file: Option<PathBuf>,
    /// Keep each message as a file here, numbered, as it was on the wire without its final dot line.
    pub keep: Option<PathBuf>,
    /// Run on this core only.
    pub core: Option<usize>,
}

impl SinkOptions {
    /// A friendly sink without ledger on a free port of loopback.
    pub fn on_loopback() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            ledger: None,
            pipelining: true,
            delay: Duration::ZERO,
            defer_one_in: 0,
            reject_one_in: 0,
            drop_one_in: 0,
            down_file: None,
            keep: None,
            core: None,
        }
    }
}

/// Counters and switches shared with whoever runs the sink.
#[derive(Debug, Default)]
pub struct SinkState {
    /// Messages answered with 250.
    pub accepted: AtomicU64,
    /// Recipients of them, in all.
    pub deliveries: AtomicU64,
    /// Messages whose check failed.
    pub damaged: AtomicU64,
    /// Messages without our headers.
    pub foreign: AtomicU64,
    /// Messages answered with 4xx, 5xx or a closed connection, on purpose.
    pub turned_away: AtomicU64,
    /// Octets of content.
    pub bytes: AtomicU64,
    /// Connections ever accepted.
    pub connections: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Set: the listener is closed and all connections are cut. Cleared: it listens again.
    pub down: AtomicBool,
    /// Set: the sink ends.
    pub stop: AtomicBool,
}

/// The figures of a sink at its end.
#[derive(Debug, Clone, Serialize)]
pub struct SinkReport {
    /// Messages answered with 250.
    pub accepted: u64,
    /// Messages whose check failed.
    pub damaged: u64,
    /// Messages without our headers.
    pub foreign: u64,
    /// Messages turned away on purpose.
    pub turned_away: u64,
    /// Octets of content.
    pub bytes: u64,
    /// Connections ever accepted.
    pub connections: u64,
}

impl SinkState {
    /// The figures so far.
    pub fn report(&self) -> SinkReport {
        SinkReport {
            accepted: self.accepted.load(Relaxed),
            damaged: self.damaged.load(Relaxed),
            foreign: self.foreign.load(Relaxed),
            turned_away: self.turned_away.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            connections: self.connections.load(Relaxed),
        }
    }
}

/// What a session may touch of the sink while it handles its input.
pub(crate) struct Desk<'a> {
    pub(crate) options: &'a SinkOptions,
    pub(crate) state: &'a SinkState,
    pub(crate) ledger: &'a mut LedgerWriter,
    pub(crate) random: &'a mut Random,
    pub(crate) since: Instant,
}

impl Desk<'_> {
    /// Counts a checked message.
    pub(crate) fn count(&self, damage: Option<Damage>, bytes: usize) {
        self.state.bytes.fetch_add(bytes as u64, Relaxed);
        match damage {
            None => {}
            Some(Damage::Foreign) => drop(self.state.foreign.fetch_add(1, Relaxed)),
            Some(_) => drop(self.state.damaged.fetch_add(1, Relaxed)),
        }
    }
}

/// A bound sink.
#[derive(Debug)]
pub struct Sink {
    options: SinkOptions,
    state: Arc<SinkState>,
    listener: Option<TcpListener>,
    address: SocketAddr,
    poll: Poll,
}

impl Sink {
    /// Binds. Fails when the address is in use.
    pub fn bind(options: SinkOptions) -> io::Result<Self> {
        let poll = Poll::new()?;
        let address = if options.listen.port() == 0 { crate::machine::free_port()? } else { options.listen };
        let mut listener = TcpListener::bind(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self { options, state: Arc::new(SinkState::default()), listener: Some(listener), address, poll })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its counters and switches.
    pub fn state(&self) -> Arc<SinkState> {
        Arc::clone(&self.state)
    }

    /// Binds and runs in a thread of its own.
    pub fn spawn(options: SinkOptions) -> io::Result<SinkHandle> {
        let sink = Self::bind(options)?;
        let (address, state) = (sink.address(), sink.state());
        let thread = std::thread::Builder::new().name("sink".into()).spawn(move || sink.run())?;
        Ok(SinkHandle { address, state, thread: Some(thread) })
    }

    /// Serves until `stop` is set. Fails when the ledger cannot be written.
    pub fn run(mut self) -> io::Result<SinkReport> {
        crate::machine::run_on(self.options.core)?;
        let mut events = Events::with_capacity(1024);
        let mut sessions: Vec<Option<SinkSession>> = Vec::new();
        let mut free: Vec<usize> = Vec::new();
        let mut late: Vec<(Instant, usize)> = Vec::new();
        let mut ledger = LedgerWriter::open(self.options.ledger.as_deref())?;
        let mut random = Random::new(Random::fresh_seed());
        let since = Instant::now();
        let state = Arc::clone(&self.state);
        while !state.stop.load(Relaxed) {
            let now = Instant::now();
            let due = late.iter().map(|(when, _)| when.saturating_duration_since(now)).min().unwrap_or(WAIT_MAX);
            match self.poll.poll(&mut events, Some(due.min(WAIT_MAX))) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other?,
            }
            if self.follow_down()? {
                sessions.clear();
                free.clear();
                late.clear();
                state.open.store(0, Relaxed);
                continue;
            }
            let mut desk = Desk { options: &self.options, state: &state, ledger: &mut ledger, random: &mut random, since };
            for event in &events {
                if event.token() == LISTENER {
                    let Some(listener) = &self.listener else { continue };
                    while let Ok((mut stream, _)) = listener.accept() {
                        stream.set_nodelay(true)?;
                        state.connections.fetch_add(1, Relaxed);
                        state.open.fetch_add(1, Relaxed);
                        let at = free.pop().unwrap_or_else(|| {
                            sessions.push(None);
                            sessions.len() - 1
                        });
                        self.poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
                        sessions[at] = Some(SinkSession::new(stream));
                    }
                    continue;
                }
                let at = event.token().0;
                let Some(session) = sessions.get_mut(at).and_then(Option::as_mut) else { continue };
                let step = session.ready(event.is_readable() || event.is_read_closed(), &mut desk)?;
                settle(step, at, &mut sessions, &mut free, &mut late, &desk);
            }
            let now = Instant::now();
            late.retain(|&(when, at)| {
                when > now || {
                    if let Some(session) = sessions[at].as_mut() {
                        session.release();
                    }
                    false
                }
            });
            for at in 0..if self.options.delay.is_zero() { 0 } else { sessions.len() } {
                let Some(session) = sessions[at].as_mut().filter(|session| session.is_released()) else { continue };
                let step = session.ready(true, &mut desk)?;
                settle(step, at, &mut sessions, &mut free, &mut late, &desk);
            }
            ledger.flush()?;
            for session in sessions.iter_mut().flatten() {
                session.flush_replies();
            }
        }
        ledger.flush()?;
        Ok(state.report())
    }

    /// Closes or reopens the listener as the switch and the file say; true when it went down just now.
    fn follow_down(&mut self) -> io::Result<bool> {
        let down = self.state.down.load(Relaxed) || self.options.down_file.as_ref().is_some_and(|file| file.exists());
        if down && self.listener.take().is_some() {
            return Ok(true);
        }
        if !down && self.listener.is_none() {
            let mut listener = TcpListener::bind(self.address)?;
            self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
            self.listener = Some(listener);
        }
        Ok(false)
    }
}

/// Ends or delays a session as its step says.
fn settle(
    step: Step,
    at: usize,
    sessions: &mut [Option<SinkSession>],
    free: &mut Vec<usize>,
    late: &mut Vec<(Instant, usize)>,
    desk: &Desk<'_>,
) {
    match step {
        Step::Continue => {}
        Step::Wait => late.push((Instant::now() + desk.options.delay, at)),
        Step::Close => {
            if sessions[at].take().is_some() {
                free.push(at);
                desk.state.open.fetch_sub(1, Relaxed);
            }
        }
    }
}

/// A sink in a thread; stops when dropped.
#[derive(Debug)]
pub struct SinkHandle {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its counters and switches.
    pub state: Arc<SinkState>,
    thread: Option<std::thread::JoinHandle<io::Result<SinkReport>>>,
}

impl SinkHandle {
    /// Ends it and returns its figures. Fails when its ledger could not be written.
    pub fn stop(mut self) -> io::Result<SinkReport> {
        self.state.stop.store(true, Relaxed);
        let thread = self.thread.take().expect("only stop and drop take the thread");
        thread.join().map_err(|_| io::Error::other("the sink panicked"))?
    }
}

impl Drop for SinkHandle {
    fn drop(&mut self) {
        self.state.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
