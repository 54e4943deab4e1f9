//! The load: many sessions in one thread that send as fast as the engine acknowledges, and a ledger of what it did.
//!
//! Costs a few microseconds a message, so that the engine is the bottleneck; above 95 % of its own core a result is void.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{ClockId, clock_gettime};

use crate::content::Composer;
use crate::ledger::LedgerWriter;
use crate::load::{Latency, LoadOptions, LoadReport, LoadState, latencies};
use crate::random::Random;
use crate::sender_session::{Notice, Script, Session, Supply};

/// A broken or refused connection is tried again after this.
const RECONNECT_AFTER: Duration = Duration::from_millis(20);
/// How long one wait for events lasts at most.
const WAIT_MAX: Duration = Duration::from_millis(5);
/// Connections begun in one turn: more at once overflow the backlog of a listener, and a lost SYN costs a second.
const CONNECTS_PER_TURN: usize = 128;
/// At the end, messages under way get this long to be answered.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// Above this share of its core the sender, not the engine, decides the result.
const OWN_CORE_PERCENT_MAX: f64 = 95.0;

/// CPU time this thread has used.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

struct Stock {
    composer: Composer,
    left: Option<u64>,
    /// Messages the rate allows at this moment; none: no rate.
    allowance: Option<f64>,
    closed: bool,
}

impl Supply for Stock {
    fn take(&mut self) -> bool {
        if self.closed || self.left == Some(0) || self.allowance.is_some_and(|allowance| allowance < 1.0) {
            return false;
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        if let Some(allowance) = &mut self.allowance {
            *allowance -= 1.0;
        }
        true
    }

    fn give_back(&mut self) {
        if let Some(left) = &mut self.left {
            *left += 1;
        }
        if let Some(allowance) = &mut self.allowance {
            *allowance += 1.0;
        }
    }

    fn composer(&mut self) -> &mut Composer {
        &mut self.composer
    }
}

/// A load in a thread of its own; it is stopped when dropped.
#[derive(Debug)]
pub struct LoadHandle {
    /// Its counters and switches.
    pub state: Arc<LoadState>,
    thread: Option<std::thread::JoinHandle<io::Result<LoadReport>>>,
}

impl LoadHandle {
    /// Starts it.
    pub fn start(options: LoadOptions) -> io::Result<Self> {
        let state = Arc::new(LoadState::default());
        let load = Load::new(options, Arc::clone(&state))?;
        let thread = std::thread::Builder::new().name("sender".into()).spawn(move || load.run())?;
        Ok(Self { state, thread: Some(thread) })
    }

    /// True when it has ended by itself.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Waits for its end (after `stop`, or when its messages or its time are used up).
    pub fn join(mut self) -> io::Result<LoadReport> {
        let thread = self.thread.take().expect("only join and drop take the thread");
        thread.join().map_err(|_| io::Error::other("the sender panicked"))?
    }
}

impl Drop for LoadHandle {
    fn drop(&mut self) {
        self.state.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

struct Load {
    options: LoadOptions,
    state: Arc<LoadState>,
    script: Script,
    stock: Stock,
    poll: Poll,
    sessions: Vec<Option<Session>>,
    /// Slots to connect again, by time.
    broken: VecDeque<(Instant, usize)>,
    /// Slots whose session rests.
    resting: Vec<usize>,
    ledger: LedgerWriter,
    all: Histogram<u32>,
    recent: Histogram<u32>,
}

impl Load {
    fn new(options: LoadOptions, state: Arc<LoadState>) -> io::Result<Self> {
        let recipient = |at: usize| {
            let number = if at == 0 { String::new() } else { at.to_string() };
            format!("RCPT TO:<b{number}@{}>\r\n", options.domain).into_bytes()
        };
        let script = Script {
            hello: b"EHLO sender.x.test\r\n".to_vec(),
            mail: b"MAIL FROM:<sender@x.test>\r\n".to_vec(),
            mail_8bit: b"MAIL FROM:<sender@x.test> BODY=8BITMIME\r\n".to_vec(),
            recipients: (0..options.recipients.max(1)).map(recipient).collect(),
            pipeline: options.pipeline,
            bdat: options.bdat,
        };
        let composer = Composer::new(Random::fresh_seed(), options.seed, &options.sizes, options.hash);
        let stock = Stock { composer, left: options.messages, allowance: options.rate.map(|_| 0.0), closed: false };
        let ledger = LedgerWriter::open(options.ledger.as_deref())?;
        let sessions = (0..options.sessions).map(|_| None).collect();
        let start = Instant::now();
        let broken = (0..options.sessions).map(|at| (start, at)).collect();
        let (all, recent) = (latencies(), latencies());
        Ok(Self { options, state, script, stock, poll: Poll::new()?, sessions, broken, resting: Vec::new(), ledger, all, recent })
    }

    fn run(mut self) -> io::Result<LoadReport> {
        crate::machine::run_on(self.options.core)?;
        let mut events = Events::with_capacity(1024);
        let start = Instant::now();
        let cpu_start = thread_cpu();
        let mut refilled = start;
        let mut shared = start;
        let mut closed_at: Option<Instant> = None;
        let mut last_answer = start;
        loop {
            let now = Instant::now();
            let done = !self.options.linger && self.options.messages.is_some_and(|target| self.state.acknowledged.load(Relaxed) >= target);
            let late = self.options.duration.is_some_and(|duration| now - start >= duration);
            if closed_at.is_none() && (done || late || self.state.stop.load(Relaxed)) {
                closed_at = Some(now);
            }
            self.stock.closed = closed_at.is_some() || self.state.pause.load(Relaxed);
            if let Some(closed) = closed_at
                && (self.wind_down(now) || now - closed > DRAIN_MAX)
            {
                break;
            }
            if let (Some(rate), Some(allowance)) = (self.options.rate, &mut self.stock.allowance) {
                *allowance = (*allowance + rate * (now - refilled).as_secs_f64()).min(rate / 50.0 + 1.0);
                refilled = now;
            }
            if self.state.hold.load(Relaxed) {
                self.cut_all(now);
            } else if closed_at.is_none() {
                self.connect_due(now);
                self.begin_resting(now);
            }
            match self.poll.poll(&mut events, Some(if self.options.rate.is_some() { Duration::from_millis(1) } else { WAIT_MAX })) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                let now = Instant::now();
                self.ready(event.token().0, now)?;
                last_answer = now;
            }
            self.ledger.flush()?;
            if now - shared > Duration::from_millis(100) {
                self.share_latencies();
                shared = now;
            }
        }
        self.ledger.flush()?;
        self.share_latencies();
        let cpu = thread_cpu() - cpu_start;
        let wall = (last_answer - start).as_secs_f64().max(1e-9);
        let acknowledged = self.state.acknowledged.load(Relaxed);
        let percent = 100.0 * cpu.as_secs_f64() / wall;
        let last_trouble = self.state.last_trouble.lock().map(|text| text.clone()).unwrap_or_default();
        Ok(LoadReport {
            acknowledged,
            refused: self.state.refused.load(Relaxed),
            unknown: self.state.unknown.load(Relaxed),
            broken: self.state.broken.load(Relaxed),
            seconds: wall,
            messages_per_s: acknowledged as f64 / wall,
            own_cpu_us_per_message: cpu.as_secs_f64() * 1e6 / acknowledged.max(1) as f64,
            own_core_percent: percent,
            is_void: percent > OWN_CORE_PERCENT_MAX,
            latency_us: Latency::of(&self.all),
            last_trouble,
        })
    }

    /// Ends what rests and waits for what is under way; true when all is over.
    fn wind_down(&mut self, now: Instant) -> bool {
        for slot in &mut self.sessions {
            let Some(session) = slot else { continue };
            if session.is_resting() {
                let _closing = session.quit(&self.stock.composer, now);
            } else if !session.has_content_under_way() && !session.is_quitting() {
                // Greeting, or an envelope without content: nothing is promised, so the connection may simply end.
                *slot = None;
            }
        }
        self.sessions.iter().all(Option::is_none)
    }

    fn cut_all(&mut self, now: Instant) {
        for at in 0..self.sessions.len() {
            if self.sessions[at].is_some() {
                self.broke(at, now, "held");
            }
        }
    }

    fn connect_due(&mut self, now: Instant) {
        for _ in 0..CONNECTS_PER_TURN {
            let Some(&(when, at)) = self.broken.front() else { return };
            if when > now {
                return;
            }
            self.broken.pop_front();
            let connected = TcpStream::connect(self.options.to).and_then(|mut stream| {
                let _not_yet_connected = stream.set_nodelay(true);
                self.poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
                Ok(stream)
            });
            match connected {
                Ok(stream) => self.sessions[at] = Some(Session::new(stream, self.options.per_connection, self.options.linger)),
                Err(error) => self.broke(at, now, &error.to_string()),
            }
        }
    }

    fn begin_resting(&mut self, now: Instant) {
        while let Some(&at) = self.resting.last() {
            let Some(session) = &mut self.sessions[at] else {
                self.resting.pop();
                continue;
            };
            match session.begin(&mut self.stock, &self.script, now) {
                Ok(true) => {}
                Ok(false) if session.is_resting() => return,
                Ok(false) => {}
                Err(error) => self.broke(at, now, &error.to_string()),
            }
            self.resting.pop();
        }
    }

    fn ready(&mut self, at: usize, now: Instant) -> io::Result<()> {
        let Some(session) = self.sessions[at].as_mut() else { return Ok(()) };
        let (mut ended, mut rests, mut refused) = (false, false, 0);
        let (state, ledger, all, recent, recipients) =
            (&self.state, &mut self.ledger, &mut self.all, &mut self.recent, self.script.recipients.len());
        let mut recorded = Ok(());
        let outcome = session.ready(&mut self.stock, &self.script, now, |notice, text| match notice {
            Notice::Acknowledged(composed, since) => {
                recorded = ledger.acknowledged(composed.id, &composed.hash, recipients, text);
                state.acknowledged.fetch_add(1, Relaxed);
                let us = (now - since).as_micros() as u64;
                all.saturating_record(us);
                recent.saturating_record(us);
            }
            Notice::Refused => {
                state.refused.fetch_add(1, Relaxed);
                refused += 1;
                note(state, text);
            }
            Notice::Ready => {
                state.connected.fetch_add(1, Relaxed);
                rests = true;
            }
            Notice::Idle => rests = true,
            Notice::Ended => ended = true,
        });
        recorded?;
        for _ in 0..refused {
            // It is sent again as a new message.
            self.stock.give_back();
        }
        match outcome {
            Err(error) => self.broke(at, now, &error.to_string()),
            Ok(()) if ended => {
                self.sessions[at] = None;
                self.broken.push_front((now, at));
            }
            Ok(()) if rests => match session.begin(&mut self.stock, &self.script, now) {
                Ok(true) => {}
                Ok(false) => self.resting.push(at),
                Err(error) => self.broke(at, now, &error.to_string()),
            },
            Ok(()) => {}
        }
        Ok(())
    }

    /// Forgets a connection that failed; what it had under way is sent again as a new message.
    fn broke(&mut self, at: usize, now: Instant, why: &str) {
        if let Some(mut session) = self.sessions[at].take() {
            let (unknown, opened) = session.abandon();
            self.state.unknown.fetch_add(u64::from(unknown.is_some()), Relaxed);
            for _ in 0..u8::from(unknown.is_some()) + u8::from(opened) {
                self.stock.give_back();
            }
        }
        self.state.broken.fetch_add(1, Relaxed);
        note(&self.state, why.as_bytes());
        self.broken.push_back((now + RECONNECT_AFTER, at));
    }

    /// Adds the newest latencies to those that wait for a reader.
    fn share_latencies(&mut self) {
        if let Ok(mut shared) = self.state.recent.lock() {
            let sum = shared.get_or_insert_with(latencies);
            sum.add(&self.recent).expect("both histograms have the same bounds");
            self.recent.reset();
        }
    }
}

fn note(state: &LoadState, text: &[u8]) {
    if let Ok(mut last) = state.last_trouble.lock() {
        last.clear();
        last.push_str(String::from_utf8_lossy(text).trim_end());
    }
}
