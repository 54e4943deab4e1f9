//! One core's connections.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use ringpost_ring::{Conn, Deadline, Ring, RingConfig, local};

use crate::{
    connections::{ConnectionsOptions, ConnectionsReport, Mode},
    error_kind::ErrorKind,
    measurement::Recorder,
    parts::PartSender,
    phase::Phase,
    pinning,
    source::{SourceError, connect_gate::ConnectGate, session::connect},
};

/// How often a core looks at its stop flag and its seconds.
const TICK: Duration = Duration::from_millis(50);

/// Where a connection of `Churn` failed, the next waits so long.
const AGAIN: Duration = Duration::from_millis(20);

/// Octets of a reply that is waited for.
const REPLY_BYTES_MAX: usize = 8192;

pub(super) struct Shared {
    pub(super) stop: AtomicBool,
    /// Connections that were greeted or have failed.
    pub(super) settled: AtomicU64,
    /// Greeted ones that are open.
    pub(super) open: AtomicU64,
}

pub(super) struct Setup {
    pub(super) share: usize,
    pub(super) shares: usize,
    pub(super) began: Instant,
    pub(super) options: ConnectionsOptions,
    pub(super) shared: Arc<Shared>,
    pub(super) parts: PartSender,
}

struct Core {
    ring: Ring,
    options: ConnectionsOptions,
    shared: Arc<Shared>,
    desk: RefCell<Desk>,
    gate: ConnectGate,
    began: Instant,
    /// When it is over.
    ends: Instant,
    open: Cell<u64>,
}

#[derive(Default)]
struct Desk {
    recorder: Recorder,
    report: ConnectionsReport,
}

impl Desk {
    fn failed(&mut self, error: &io::Error) {
        let kind = kind_of(error);
        self.report.failed += 1;
        self.report.told_421 += u64::from(kind == ErrorKind::Reply(421));
        self.recorder.error(kind);
        self.report.last_trouble = Some(error.to_string());
    }
}

/// A reply of another class than was wanted, or none at all.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Refusal {
    /// None: it is no reply.
    code: Option<u16>,
    text: String,
}

impl Refusal {
    fn error(line: &[u8]) -> io::Error {
        let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        let code = text.get(..3).and_then(|code| code.parse().ok()).filter(|code| (200..=599).contains(code));
        io::Error::other(Refusal { code, text })
    }
}

/// A reply that did not come in time, and what that counts as.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("no {what} in time")]
struct Overdue {
    what: &'static str,
    kind: ErrorKind,
}

impl Overdue {
    const BANNER: Overdue = Overdue { what: "banner", kind: ErrorKind::NoBanner };
    const REPLY: Overdue = Overdue { what: "reply", kind: ErrorKind::ReplyTimeout };
}

/// On a connection that was made, time that is over is no connection's.
fn told(overdue: Overdue) -> impl Fn(io::Error) -> io::Error {
    move |error| if error.kind() == io::ErrorKind::TimedOut { io::Error::new(io::ErrorKind::TimedOut, overdue) } else { error }
}

/// What it counts as: a refusal by its code.
fn kind_of(error: &io::Error) -> ErrorKind {
    if let Some(overdue) = error.get_ref().and_then(|inner| inner.downcast_ref::<Overdue>()) {
        return overdue.kind;
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>()) {
        Some(refusal) => refusal.code.map_or(ErrorKind::BrokenReply, ErrorKind::Reply),
        None => ErrorKind::from(error),
    }
}

pub(super) fn run(setup: Setup) -> Result<ConnectionsReport, SourceError> {
    let Setup { share, shares, began, options, shared, parts } = setup;
    let core_number = options.cores[share];
    pinning::pin(core_number)?;
    let own = options.connections / shares + usize::from(share < options.connections % shares);
    let config = RingConfig { entries: 4096, buffers: 2048, buffer_bytes: 1024, window_bytes: 4096, ..RingConfig::default() };
    let ran = local::run(config, |ring, spawner| async move {
        let cpu = pinning::thread_cpu();
        let ends = began + options.duration;
        let (desk, gate, open) = (RefCell::default(), ConnectGate::new(false), Cell::new(0));
        let core = Rc::new(Core { ring, options, shared, desk, gate, began, ends, open });
        for index in 0..own {
            spawner.spawn(keep(core.clone(), share + index * shares));
        }
        supervise(&core, began, &parts).await;
        let mut desk = core.desk.borrow_mut();
        desk.report.open_at_end = core.open.get();
        desk.report.cpu = pinning::thread_cpu().saturating_sub(cpu);
        desk.report.clone()
    });
    ran.map_err(|reason| SourceError::Ring { core: core_number, reason })
}

async fn supervise(core: &Core, began: Instant, parts: &PartSender) {
    let deadline = core.ring.deadline();
    loop {
        deadline.set(Instant::now() + TICK);
        deadline.expired().await;
        let now = Instant::now();
        let over = now >= core.ends || core.shared.stop.load(Relaxed);
        let mut desk = core.desk.borrow_mut();
        desk.recorder.at((now - began).as_secs());
        parts.hand_in(&mut desk.recorder, 0, over);
        if over {
            return;
        }
    }
}

async fn keep(core: Rc<Core>, index: usize) {
    let deadline = core.ring.deadline();
    let from = match core.options.addresses[..] {
        [] => None,
        ref addresses => Some(addresses[index % addresses.len()]),
    };
    let mut first = true;
    loop {
        let settle = |core: &Core| core.shared.settled.fetch_add(1, Relaxed);
        match greet(&core, from, &deadline).await {
            Ok((conn, took)) => {
                count(&core, true);
                core.desk.borrow_mut().recorder.record(Phase::Transaction, took);
                if std::mem::take(&mut first) {
                    settle(&core);
                }
                hold(&core, &conn, &deadline).await;
                count(&core, false);
            }
            Err(error) => {
                core.desk.borrow_mut().failed(&error);
                if std::mem::take(&mut first) {
                    settle(&core);
                }
                deadline.set(Instant::now() + AGAIN);
                deadline.expired().await;
            }
        }
        if core.options.mode != Mode::Churn {
            return;
        }
    }
}

fn count(core: &Core, opens: bool) {
    let open = if opens { core.open.get() + 1 } else { core.open.get() - 1 };
    core.open.set(open);
    core.desk.borrow_mut().recorder.connections(open);
    if opens {
        core.shared.open.fetch_add(1, Relaxed);
        let mut desk = core.desk.borrow_mut();
        desk.report.greeted += 1;
        desk.report.greeted_after = core.began.elapsed();
        desk.report.open_max = desk.report.open_max.max(open);
        desk.recorder.acknowledged(0);
    } else {
        core.shared.open.fetch_sub(1, Relaxed);
    }
}

/// Connects, reads the banner and, unless it leaves at once, says EHLO; the connection, and how long all of it took.
async fn greet(core: &Core, from: Option<IpAddr>, deadline: &Deadline) -> io::Result<(Conn, Duration)> {
    let place = core.gate.enter().await;
    let began = Instant::now();
    deadline.set(began + core.options.timeout);
    core.desk.borrow_mut().recorder.sent();
    let conn = connect(&core.ring, core.options.to, from, deadline).await?;
    let connected = Instant::now();
    core.desk.borrow_mut().recorder.record(Phase::Connect, connected - began);
    reply(&conn, deadline, b'2').await.map_err(told(Overdue::BANNER))?;
    let greeted = Instant::now();
    core.desk.borrow_mut().recorder.record(Phase::Banner, greeted - connected);
    if core.options.mode != Mode::Churn {
        conn.send(b"EHLO idle.load.test\r\n")?;
        reply(&conn, deadline, b'2').await.map_err(told(Overdue::REPLY))?;
        core.desk.borrow_mut().recorder.record(Phase::Ehlo, greeted.elapsed());
    }
    drop(place);
    Ok((conn, began.elapsed()))
}

/// Reads a reply to its last line; anything but the class that is wanted is an error.
async fn reply(conn: &Conn, deadline: &Deadline, class: u8) -> io::Result<()> {
    let mut text = Vec::new();
    loop {
        let received = poll_fn(|cx| match conn.poll_read(cx) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending if deadline.poll_expired(cx).is_ready() => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        });
        let Some(received) = received.await? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        text.extend_from_slice(&received);
        let last = text.strip_suffix(b"\n").map(|lines| lines.rsplit(|&byte| byte == b'\n').next().unwrap_or(lines));
        if let Some(line) = last.filter(|line| line.get(3) != Some(&b'-')) {
            return if line.first() == Some(&class) { Ok(()) } else { Err(Refusal::error(line)) };
        }
        if text.len() > REPLY_BYTES_MAX {
            return Err(io::Error::other("a reply without end"));
        }
    }
}

/// Does what the mode says until its end or the server's.
async fn hold(core: &Core, conn: &Conn, deadline: &Deadline) {
    let began = Instant::now();
    let error = match core.options.mode {
        Mode::Churn => {
            deadline.set(began + core.options.timeout);
            // It leaves; how the server takes that is not asked.
            let _left = conn.send(b"QUIT\r\n");
            let _bye = reply(conn, deadline, b'2').await;
            return;
        }
        Mode::Idle { noop_every } => chat(conn, deadline, noop_every, b"NOOP\r\n").await,
        Mode::Slowloris { octet_every, in_content } => {
            let opened = if in_content { open_content(core, conn, deadline).await } else { Ok(()) };
            match opened {
                Ok(()) => chat(conn, deadline, Some(octet_every), b"a").await,
                Err(error) => error,
            }
        }
    };
    let mut desk = core.desk.borrow_mut();
    let (after, kind) = (began.elapsed(), kind_of(&error));
    desk.recorder.error(kind);
    let report = &mut desk.report;
    report.closed_by_server += 1;
    report.told_421 += u64::from(kind == ErrorKind::Reply(421));
    report.closed_after = Some(report.closed_after.map_or((after, after), |(least, most)| (least.min(after), most.max(after))));
    report.last_trouble = Some(error.to_string());
}

async fn open_content(core: &Core, conn: &Conn, deadline: &Deadline) -> io::Result<()> {
    for (command, class) in [(&b"MAIL FROM:<slow@load.test>\r\n"[..], b'2'), (b"RCPT TO:<slow@load.test>\r\n", b'2'), (b"DATA\r\n", b'3')] {
        deadline.set(Instant::now() + core.options.timeout);
        conn.send(command.to_vec())?;
        reply(conn, deadline, class).await.map_err(told(Overdue::REPLY))?;
    }
    Ok(())
}

/// Says something now and then, until the server has had enough or the core ends. The error tells how.
async fn chat(conn: &Conn, deadline: &Deadline, every: Option<Duration>, words: &'static [u8]) -> io::Error {
    let mut next = every.map(|every| Instant::now() + every);
    loop {
        match next {
            Some(next) => deadline.set(next),
            None => deadline.clear(),
        }
        let received = poll_fn(|cx| match conn.poll_read(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending if deadline.poll_expired(cx).is_ready() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        match received.await {
            Some(Ok(Some(received))) if received.starts_with(b"421") => return Refusal::error(&received),
            // The reply to a NOOP.
            Some(Ok(Some(_))) => {}
            Some(Ok(None)) => return io::ErrorKind::UnexpectedEof.into(),
            Some(Err(error)) => return error,
            None => {
                if let Err(error) = conn.send(words) {
                    return error;
                }
                next = every.map(|every| Instant::now() + every);
            }
        }
    }
}
