//! Connections that carry no mail: idle ones by the ten thousands, ones that say an octet now and then, ones that come and go.

pub mod arguments;
mod core;
mod result;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    live::{Beside, Followed, Viewer, follow},
    measurement::Measurement,
    parts::channel,
    signals::StopSignal,
    source::{SourceError, local_addresses},
};

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// EHLO, then silence; with an interval a NOOP now and then.
    Idle {
        /// Between two NOOPs.
        noop_every: Option<Duration>,
    },
    /// EHLO, then a command without end, or content without end.
    Slowloris {
        /// Between two octets.
        octet_every: Duration,
        /// Content behind DATA instead of a command.
        in_content: bool,
    },
    /// Banner, QUIT, and again.
    Churn,
}

/// How many, where to, for how long.
#[derive(Debug, Clone)]
pub struct ConnectionsOptions {
    /// Where to.
    pub to: SocketAddr,
    /// Each gets a thread that is pinned to it. Never empty.
    pub cores: Vec<usize>,
    /// Connections at once.
    pub connections: usize,
    /// How long.
    pub duration: Duration,
    /// What they do.
    pub mode: Mode,
    /// Local addresses that connections take in turn.
    pub addresses: Vec<IpAddr>,
    /// How long a connection or reply is waited for.
    pub timeout: Duration,
}

/// What the connections saw.
#[derive(Debug, Clone, Default)]
pub struct ConnectionsReport {
    /// Connections that got a banner, and with `Idle` and `Slowloris` an answer to EHLO.
    pub greeted: u64,
    /// When the last of them was, since the start.
    pub greeted_after: Duration,
    /// Connections that did not come so far.
    pub failed: u64,
    /// Greeted connections that the server closed before their time.
    pub closed_by_server: u64,
    /// Connections that it told by 421 that it has enough: instead of a greeting, or before it closed them.
    pub told_421: u64,
    /// How long after the greeting, the shortest and the longest.
    pub closed_after: Option<(Duration, Duration)>,
    /// Most greeted connections open at once.
    pub open_max: u64,
    /// Greeted connections open at the end.
    pub open_at_end: u64,
    /// CPU time of the threads.
    pub cpu: Duration,
    /// The last thing that went wrong.
    pub last_trouble: Option<String>,
}

impl ConnectionsReport {
    /// Connections greeted per second of the time in which some were: how long they are held afterwards says nothing of the server's pace.
    pub fn greeted_per_second(&self) -> f64 {
        if self.greeted == 0 { 0.0 } else { self.greeted as f64 / self.greeted_after.as_secs_f64().max(1e-9) }
    }

    fn add(&mut self, other: ConnectionsReport) {
        self.greeted += other.greeted;
        self.greeted_after = self.greeted_after.max(other.greeted_after);
        self.failed += other.failed;
        self.closed_by_server += other.closed_by_server;
        self.told_421 += other.told_421;
        self.open_max += other.open_max;
        self.open_at_end += other.open_at_end;
        self.cpu += other.cpu;
        self.last_trouble = other.last_trouble.or(self.last_trouble.take());
        self.closed_after = match (self.closed_after, other.closed_after) {
            (Some(own), Some(others)) => Some((own.0.min(others.0), own.1.max(others.1))),
            (own, others) => own.or(others),
        };
    }
}

/// Runs them. `when_open` is called once, when all are greeted or have failed, with how many are open.
///
/// # Errors
/// No ring, no thread, or more connections than files may be open.
pub fn run(
    options: ConnectionsOptions,
    beside: Beside<'_>,
    stop: &StopSignal,
    viewer: &mut dyn Viewer,
    when_open: &mut dyn FnMut(u64),
) -> Result<(ConnectionsReport, Measurement), SourceError> {
    let files = crate::pinning::raise_open_files();
    if options.cores.is_empty() || options.connections == 0 {
        return Err(SourceError::Options("a core and a connection at least".into()));
    }
    if options.connections as u64 + 100 > files {
        return Err(SourceError::Options(format!(
            "{} connections need as many open files, and {files} are allowed: raise the hard limit (ulimit -Hn)",
            options.connections
        )));
    }
    let addresses = local_addresses(options.to, options.connections, options.addresses)?;
    let options = ConnectionsOptions { addresses, ..options };
    let (sender, parts) = channel();
    let shared = Arc::new(core::Shared { stop: AtomicBool::new(false), settled: AtomicU64::new(0), open: AtomicU64::new(0) });
    let began = Instant::now();
    let shares = options.cores.len().min(options.connections);
    let mut threads: Vec<JoinHandle<Result<ConnectionsReport, SourceError>>> = Vec::new();
    for share in 0..shares {
        let setup = core::Setup { share, shares, began, options: options.clone(), shared: shared.clone(), parts: sender.clone() };
        let name = format!("connections-{}", options.cores[share]);
        threads.push(std::thread::Builder::new().name(name).spawn(move || core::run(setup))?);
    }
    let mut announce = Some(when_open);
    let announced = std::cell::RefCell::new(&mut announce);
    let followed = Followed {
        threads: shares,
        began,
        next_part: &|limit| parts.next(limit),
        is_over: &|| {
            if shared.settled.load(Relaxed) >= options.connections as u64
                && let Some(announce) = announced.borrow_mut().take()
            {
                announce(shared.open.load(Relaxed));
            }
            threads.iter().all(JoinHandle::is_finished)
        },
        stop: &|| shared.stop.store(true, Relaxed),
    };
    let (measurement, _) = follow(&followed, beside, stop, viewer);
    let mut report = ConnectionsReport::default();
    for thread in threads {
        let ended = thread.join().map_err(|_| io::Error::other("a thread of the connections panicked"))?;
        report.add(ended?);
    }
    Ok((report, measurement))
}
