//! The source: many sessions on each core that send mail and measure what becomes of it.
//!
//! Each core has a thread of its own with a ring; no thread waits for another. [`Source::start`] starts them, and what they measure
//! comes out of a channel once a second. Read `client.rs` for what is said, `core.rs` for what a core holds, `session.rs` for one
//! connection's life.

pub mod arguments;
pub mod client;
pub(crate) mod clock;
pub(crate) mod connect_gate;
mod control;
mod core;
mod desk;
mod forward_paths;
pub mod host;
mod opening;
pub mod outbox;
mod pace;
mod reply;
mod sending;
pub(crate) mod session;
mod settings;
pub mod summary;
mod transaction;

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ringpost_ring::RingError;

use crate::{
    addresses::RecipientPlan,
    content::ContentKind,
    parts::{CorePart, PartReceiver, channel},
    random::Random,
    schedule::Rate,
    source::{
        control::{Control, Progress},
        host::{Script, Stage},
    },
};

/// Sessions of one core at most: each has a descriptor and some memory.
pub const SESSIONS_MAX: usize = 500_000;

/// A banner that takes longer is no matter of load any more: nobody is there to say it. Of a short run half its length counts.
pub const GREETING_PATIENCE: Duration = Duration::from_secs(1);

/// What a load consists of.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Where to.
    pub to: SocketAddr,
    /// Each gets a thread that is pinned to it. Never empty.
    pub cores: Vec<usize>,
    /// Connections at once, over all cores.
    pub sessions: usize,
    /// Messages in all; none: until the time is over, and without that until it is stopped.
    pub messages: Option<u64>,
    /// How long messages are begun.
    pub duration: Option<Duration>,
    /// Open loop: when messages are due. None: closed loop, each session as fast as it is answered.
    pub rate: Option<Rate>,
    /// What is in them.
    pub content: ContentKind,
    /// Whom they go to.
    pub recipients: RecipientPlan,
    /// The sender of all.
    pub reverse_path: String,
    /// What EHLO names.
    pub hello: String,
    /// LMTP instead of SMTP.
    pub lmtp: bool,
    /// Send ahead where the server announces PIPELINING.
    pub pipelining: bool,
    /// BDAT where it announces CHUNKING.
    pub chunking: bool,
    /// Messages per connection; none: no limit.
    pub per_connection: Option<u32>,
    /// A connection that has carried all it may stays, silent, until the time is over or the source is stopped.
    pub linger: bool,
    /// A core begins no more than 4 connections at once, each until its banner: for listeners that keep few and lose the others' SYNs.
    pub gently: bool,
    /// Local addresses that connections take in turn; none: the system's choice.
    pub addresses: Vec<IpAddr>,
    /// Pause of a session between two messages; of a closed loop only.
    pub think: Duration,
    /// Octets per second that a session sends; none: as fast as it goes.
    pub bytes_per_s: Option<u64>,
    /// Where sessions are given up, and how often.
    pub aborts: Vec<(Stage, f64)>,
    /// Where acknowledged messages are recorded.
    pub ledger: Option<PathBuf>,
    /// Decides content, sizes, recipients, Poisson arrivals, aborts.
    pub seed: u64,
    /// How long a connection or a reply is waited for. Where nothing else ends the load, so long without anybody there does, or without an
    /// acknowledged message while connection after connection breaks.
    pub timeout: Duration,
    /// How long what is under way, and what an open loop still owes, is waited for when the load is over; never longer than `timeout`.
    pub drain: Duration,
}

impl SourceOptions {
    /// One closed-loop session on one core, pipelined, with messages of this content.
    pub fn new(to: SocketAddr, core: usize, content: ContentKind) -> SourceOptions {
        SourceOptions {
            to,
            cores: vec![core],
            sessions: 1,
            messages: None,
            duration: None,
            rate: None,
            content,
            recipients: RecipientPlan::default(),
            reverse_path: "sender@load.test".into(),
            hello: "source.load.test".into(),
            lmtp: false,
            pipelining: true,
            chunking: false,
            per_connection: None,
            linger: false,
            gently: false,
            addresses: Vec::new(),
            think: Duration::ZERO,
            bytes_per_s: None,
            aborts: Vec::new(),
            ledger: None,
            seed: Random::fresh_seed(),
            timeout: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }

    fn script(&self) -> Script {
        Script {
            hello: format!("{} {}\r\n", if self.lmtp { "LHLO" } else { "EHLO" }, self.hello).into_bytes(),
            lmtp: self.lmtp,
            reverse_path: self.reverse_path.clone().into_bytes(),
            needs_smtputf8: !self.reverse_path.is_ascii() || !self.recipients.domain.is_ascii(),
            recipients: self.recipients.per_message as u32,
            pipelining: self.pipelining,
            // A slow sender's content has left long before what would follow it.
            envelopes_ahead: self.bytes_per_s.is_none(),
            chunking: self.chunking,
            per_connection: self.per_connection,
            linger: self.linger,
        }
    }
}

/// Connections that one local address carries to one port: the usual range of ports has 28,232, and closed ones rest a minute.
const CONNECTIONS_PER_ADDRESS: usize = 20_000;

/// Local addresses for so many connections: those given, or where one of loopback has too few ports, as many as are needed.
///
/// # Errors
/// [`SourceError::Options`]: one from which there is no way to the server.
pub fn local_addresses(to: SocketAddr, connections: usize, given: Vec<IpAddr>) -> Result<Vec<IpAddr>, SourceError> {
    if let Some(other) = given.iter().find(|address| address.is_ipv4() != to.is_ipv4()) {
        return Err(SourceError::Options(format!("no connection leads from {other} to {to}: one is IPv4, the other IPv6")));
    }
    // Each connection would fail by itself, and the load give up after its timeout.
    for address in &given {
        UdpSocket::bind((*address, 0))
            .map_err(|error| SourceError::Options(format!("--from-address {address} is no address of this machine: {error}")))?;
    }
    if !given.is_empty() || connections <= CONNECTIONS_PER_ADDRESS || !to.ip().is_loopback() || to.is_ipv6() {
        return Ok(given);
    }
    let count = connections.div_ceil(CONNECTIONS_PER_ADDRESS).min(250) as u8;
    Ok((1..=count).map(|last| IpAddr::from([127, 0, 1, last])).collect())
}

/// Why an open loop has no pause between messages, by the names of the two settings.
pub(crate) fn paused_open_loop(rate: &Rate, rate_name: &str, think_name: &str) -> String {
    format!(
        "{rate_name} {rate} with {think_name}: an open loop begins each message when it is due and measures from then, so that a pause of its own \
         would count as the server's; leave one of the two out"
    )
}

/// How far a load that gave up had come with its server at last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// No connection could be had.
    #[default]
    Nobody,
    /// Connections were taken, and no session was opened on them.
    Connection,
    /// Sessions were opened, and connection after connection ended by a failure without an acknowledged message.
    Session,
}

/// What a core has done in all.
#[derive(Debug, Clone, Default)]
pub struct CoreReport {
    /// Messages that ended in any way.
    pub settled: u64,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Messages whose connection ended between the end of content and the reply.
    pub unknown: u64,
    /// Messages whose connection ended before.
    pub unsent: u64,
    /// Messages answered with 4xx or 5xx.
    pub refused: u64,
    /// Messages whose session was given up on purpose.
    pub aborted: u64,
    /// Messages begun whose commands did not wait for each other's replies.
    pub pipelined: u64,
    /// Messages begun whose content goes with BDAT.
    pub chunked: u64,
    /// Messages begun whose size was drawn smaller than the least there is, and is that.
    pub sizes_raised: u64,
    /// Recipients that were refused, those of refused messages too.
    pub recipients_refused: u64,
    /// Messages that were due but never taken, because all sessions were busy until the end, or nobody was there.
    pub never_begun: u64,
    /// The load ended because it came to nothing for so long.
    pub gave_up_after: Option<Duration>,
    /// How far it came in that time.
    pub gave_up_at: Reached,
    /// Times that a session waited to connect again after a failure.
    pub pauses: u64,
    /// How long all of them waited so, added up.
    pub paused: Duration,
    /// Connections without a banner when the load was over, though they had waited for [`GREETING_PATIENCE`] at least.
    pub ungreeted: u64,
    /// CPU time of its thread.
    pub cpu: Duration,
    /// How long the load lasted: to the last message that ended; where it ended by time, to that time at least. An open loop lasts as long
    /// as its schedule at least, and to the last reply; a closed one to the end and what its sessions waited then for replies, on average.
    /// One that gave up lasted for as long as it tried.
    pub lasted: Duration,
    /// Why the ledger could not be written: the load ended with that.
    pub ledger_trouble: Option<String>,
    /// The last thing that went wrong, in words.
    pub last_trouble: Option<String>,
}

impl CoreReport {
    fn add(&mut self, other: CoreReport) {
        self.settled += other.settled;
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.unsent += other.unsent;
        self.refused += other.refused;
        self.aborted += other.aborted;
        self.pipelined += other.pipelined;
        self.chunked += other.chunked;
        self.sizes_raised += other.sizes_raised;
        self.recipients_refused += other.recipients_refused;
        self.never_begun += other.never_begun;
        self.gave_up_after = self.gave_up_after.max(other.gave_up_after);
        self.gave_up_at = self.gave_up_at.max(other.gave_up_at);
        self.pauses += other.pauses;
        self.paused += other.paused;
        self.ungreeted += other.ungreeted;
        self.cpu += other.cpu;
        self.lasted = self.lasted.max(other.lasted);
        self.ledger_trouble = self.ledger_trouble.take().or(other.ledger_trouble);
        self.last_trouble = other.last_trouble.or(self.last_trouble.take());
    }
}

/// Why a source could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing to do, or too much.
    #[error("{0}")]
    Options(String),
    /// No ring on this machine.
    #[error("core {core}: {reason}")]
    Ring {
        /// Where.
        core: usize,
        /// What the kernel lacks.
        reason: RingError,
    },
    /// The ledger or a thread.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<SourceError> for io::Error {
    fn from(error: SourceError) -> io::Error {
        match error {
            SourceError::Io(error) => error,
            other => io::Error::other(other),
        }
    }
}

/// A load that runs. Stopped when dropped.
#[derive(Debug)]
pub struct Source {
    control: Arc<Control>,
    progress: Vec<Arc<Progress>>,
    threads: Vec<JoinHandle<Result<CoreReport, SourceError>>>,
    parts: PartReceiver,
    /// When it began: second 0.
    pub began: Instant,
    /// The run that its messages carry.
    pub run: u64,
}

impl Source {
    /// Starts a thread on each core.
    ///
    /// # Errors
    /// Options that make no sense together, a ledger that cannot be opened, no thread. What the ring lacks comes from [`Source::join`].
    pub fn start(options: SourceOptions) -> Result<Source, SourceError> {
        let wrong = |text: &str| Err(SourceError::Options(text.into()));
        if options.cores.is_empty() || options.sessions == 0 {
            return wrong("a source needs a core and a session at least");
        }
        if options.sessions.div_ceil(options.cores.len()) > SESSIONS_MAX {
            return wrong("a core carries 500000 sessions at most");
        }
        if options.linger && options.per_connection.is_none() {
            return wrong("connections linger behind their last message: say how many messages each carries");
        }
        if let (Some(rate), false) = (options.rate, options.think.is_zero()) {
            return Err(SourceError::Options(paused_open_loop(&rate, "--rate", "--think-ms")));
        }
        if options.recipients.per_message == 0 || options.recipients.domains == 0 {
            return wrong("a message needs a recipient and a domain at least");
        }
        let addresses = local_addresses(options.to, options.sessions, options.addresses)?;
        let options = SourceOptions { addresses, drain: options.drain.min(options.timeout), ..options };
        let (sender, parts) = channel();
        let (began, run) = (Instant::now(), Random::fresh_seed());
        let shares = options.cores.len().min(options.sessions);
        let progress = (0..shares).map(|_| Arc::default()).collect();
        let mut source = Source { control: Arc::default(), progress, threads: Vec::new(), parts, began, run };
        for share in 0..shares {
            let setup = core::Setup {
                part: desk::Part { share, shares },
                run,
                began,
                script: options.script(),
                options: options.clone(),
                control: source.control.clone(),
                progress: source.progress[share].clone(),
                parts: sender.clone(),
            };
            let name = format!("source-{}", options.cores[share]);
            source.threads.push(std::thread::Builder::new().name(name).spawn(move || core::run(setup))?);
        }
        Ok(source)
    }

    /// Begins no further messages and ends when those under way are answered.
    pub fn stop(&self) {
        self.control.stop.store(true, Relaxed);
    }

    /// Begins no messages from now on, or begins them again. Connections stay, and what is under way goes on. An open loop gathers what
    /// is due meanwhile.
    pub fn pause(&self, pause: bool) {
        self.control.pause.store(pause, Relaxed);
    }

    /// Cuts all connections and makes none, or makes them again, as if the network were gone for a time. What is under way on them ends
    /// as unknown or unsent.
    pub fn hold(&self, hold: bool) {
        self.control.hold.store(hold, Relaxed);
    }

    /// Messages acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.progress.iter().map(|core| core.acknowledged()).sum()
    }

    /// Connections so far that could not be made or ended before their time, those cut by [`Source::hold`] apart.
    pub fn broken(&self) -> u64 {
        self.progress.iter().map(|core| core.broken()).sum()
    }

    /// The last thing that went wrong so far, in words.
    pub fn last_trouble(&self) -> Option<String> {
        self.control.last_trouble()
    }

    /// The next part that a core has measured, waiting for at most `limit`; `None` when there is none, for now or any more.
    pub fn next_part(&self, limit: Duration) -> Option<CorePart> {
        self.parts.next(limit)
    }

    /// Has every thread ended?
    pub fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits for the end. Parts that nobody took are lost: take them first.
    ///
    /// # Errors
    /// The first thread that failed.
    pub fn join(mut self) -> Result<CoreReport, SourceError> {
        let mut report = CoreReport::default();
        for thread in self.threads.drain(..) {
            let ended = thread.join().map_err(|_| io::Error::other("a thread of the source panicked"))?;
            report.add(ended?);
        }
        Ok(report)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_connections_to_loopback_come_from_several_addresses() {
        let to = SocketAddr::from(([127, 0, 0, 1], 25));
        let addresses = |to, connections, given| local_addresses(to, connections, given).unwrap();
        assert!(addresses(to, 20_000, Vec::new()).is_empty());
        assert_eq!(addresses(to, 50_000, Vec::new()).len(), 3);
        let given = vec![IpAddr::from([127, 0, 0, 9])];
        assert_eq!(addresses(to, 50_000, given.clone()), given);
        assert!(addresses(SocketAddr::from(([192, 0, 2, 1], 25)), 50_000, Vec::new()).is_empty());
    }

    /// What happened: a load from an address that this machine has not tried for a minute, and ended as if the server had been gone.
    #[test]
    fn an_address_that_this_machine_has_not_is_refused_before_the_load() {
        let to = SocketAddr::from(([127, 0, 0, 1], 25));
        let error = local_addresses(to, 1, vec![IpAddr::from([127, 0, 0, 9]), IpAddr::from([192, 0, 2, 9])]).unwrap_err();
        assert!(matches!(&error, SourceError::Options(text) if text.contains("--from-address 192.0.2.9")), "{error}");
    }
}
