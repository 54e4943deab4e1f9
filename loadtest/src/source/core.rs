//! What one core of the source holds, and its life: sessions, the messages that are due, the recorder.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use ringpost_ring::{Deadline, PageSlice, Ring, RingConfig, local};

use crate::{
    addresses::Recipients,
    content::{Body, Composer, Form, Item},
    error_kind::ErrorKind,
    ledger::LedgerWriter,
    measurement::Recorder,
    parts::{CorePart, PartSender},
    phase::Phase,
    pinning,
    random::Random,
    schedule::Schedule,
    source::{
        CoreReport, GREETING_PATIENCE, SourceError, SourceOptions,
        clock::Clock,
        connect_gate::ConnectGate,
        control::{Control, Progress},
        host::{Host, Job, Outcome, Script, Sent, Stage},
        outbox::Outbox,
        reply::{queue_id, shown},
        session,
    },
};

/// How often a core looks at its stop flag, its time and its seconds.
const TICK: Duration = Duration::from_millis(20);

/// Messages that may be due and wait for a session. Further ones are counted as never begun.
const BACKLOG_MAX: usize = 1_000_000;

pub(super) struct Setup {
    pub(super) share: usize,
    pub(super) shares: usize,
    pub(super) run: u64,
    pub(super) began: Instant,
    pub(super) script: Script,
    pub(super) options: SourceOptions,
    pub(super) control: Arc<Control>,
    pub(super) progress: Arc<Progress>,
    pub(super) parts: PartSender,
}

/// A prepared text in the memory that the ring sends from.
struct Prepared {
    raw: PageSlice,
    stuffed: PageSlice,
}

/// One core. Sessions hold it by `Rc`.
pub(super) struct Core {
    pub(super) ring: Ring,
    pub(super) script: Script,
    pub(super) options: SourceOptions,
    pub(super) desk: RefCell<Desk>,
    pub(super) outbox: RefCell<Outbox>,
    items: Vec<Prepared>,
    pub(super) slots: RefCell<Vec<Slot>>,
    /// Sessions that rest, the one that rests longest first.
    idle: RefCell<VecDeque<usize>>,
    pub(super) connect_gate: ConnectGate,
    pub(super) live: Cell<usize>,
    pub(super) connections: Cell<u64>,
    /// No connections are wanted for now.
    pub(super) held: Cell<bool>,
}

/// What a core knows of a session beside its task.
pub(super) struct Slot {
    pub(super) deadline: Rc<Deadline>,
    waker: Option<Waker>,
    idle: bool,
}

/// The part of a core that sessions' machines talk to.
pub(super) struct Desk {
    composer: Composer,
    recipients: Recipients,
    recorder: Recorder,
    ledger: LedgerWriter,
    random: Random,
    aborts: Vec<(Stage, f64)>,
    pub(super) report: CoreReport,
    progress: Arc<Progress>,
    clock: Clock,
    /// Closed loop: messages still to be begun; none: no limit.
    left: Option<u64>,
    backlog: Option<VecDeque<Instant>>,
    /// The schedule has nothing more to give.
    scheduled_all: bool,
    next_sequence: u64,
    sequence_step: u64,
    in_flight: u64,
    /// No message is begun any more.
    pub(super) closed: bool,
    /// None is begun for now.
    paused: bool,
    /// A session that thinks begins its next message itself.
    pub(super) thinking: bool,
    open_loop: bool,
    began: Instant,
}

impl Host for Desk {
    fn take(&mut self, now: Instant) -> Option<Job> {
        if self.closed || self.paused || self.thinking {
            return None;
        }
        let due = match &mut self.backlog {
            Some(backlog) => backlog.pop_front()?,
            None => {
                if let Some(left) = &mut self.left {
                    *left = left.checked_sub(1)?;
                }
                now
            }
        };
        let sequence = self.next_sequence;
        self.next_sequence += self.sequence_step;
        Some(Job { sequence, due, due_us: self.clock.us(due) })
    }

    fn push_recipient(&mut self, out: &mut Vec<u8>) {
        self.recipients.push_next(out);
    }

    fn composer(&mut self) -> &mut Composer {
        &mut self.composer
    }

    fn began(&mut self) {
        self.recorder.sent();
        self.in_flight += 1;
    }

    fn has_its_turn(&mut self, job: &mut Job, now: Instant) {
        if !self.open_loop {
            (job.due, job.due_us) = (now, self.clock.us(now));
        }
    }

    fn observe(&mut self, phase: Phase, since: Instant, now: Instant) {
        self.recorder.record(phase, now.saturating_duration_since(since));
    }

    fn settle(&mut self, job: &Job, content: Option<&Sent>, outcome: Outcome, reply: &[u8], now: Instant) {
        self.in_flight -= 1;
        self.report.settled += 1;
        self.report.lasted = now.saturating_duration_since(self.began);
        match (outcome, content) {
            (Outcome::Accepted { recipients }, Some(sent)) => {
                self.report.acknowledged += 1;
                self.recorder.acknowledged(sent.content_bytes);
                self.observe(Phase::Transaction, job.due, now);
                if self.open_loop {
                    self.observe(Phase::TransactionNaive, sent.began, now);
                }
                match self.ledger.accepted(&sent.mark, self.clock.us(now), recipients, queue_id(reply)) {
                    Ok(()) => self.progress.show_acknowledged(self.report.acknowledged),
                    Err(error) => {
                        // A ledger with holes proves nothing, so nothing more is sent.
                        self.closed = true;
                        self.trouble(ErrorKind::Local, || format!("the ledger: {error}"));
                    }
                }
            }
            (Outcome::Accepted { .. }, None) => unreachable!("what was accepted was composed"),
            (Outcome::Refused { code, .. }, _) => {
                self.report.refused += 1;
                self.report.last_trouble = Some(format!("refused: {}", shown(reply)));
                self.recorder.error(ErrorKind::Reply(code));
            }
            // The end of the connection is counted as the error; these tell what it did to messages.
            (Outcome::Unknown, _) => self.report.unknown += 1,
            (Outcome::Unsent, _) => self.report.unsent += 1,
        }
    }

    fn gives_up(&mut self, stage: Stage) -> bool {
        self.aborts.iter().any(|&(at, probability)| at == stage && self.random.happens(probability))
    }
}

impl Desk {
    /// Counts something that went wrong with a connection.
    pub(super) fn trouble(&mut self, kind: ErrorKind, text: impl FnOnce() -> String) {
        self.recorder.error(kind);
        self.progress.count_broken();
        self.report.last_trouble = Some(text());
    }

    /// Will there never be another message to begin?
    pub(super) fn is_exhausted(&self) -> bool {
        self.closed
            || match &self.backlog {
                Some(backlog) => self.scheduled_all && backlog.is_empty(),
                None => self.left == Some(0),
            }
    }

    /// Is there a message to begin at once?
    pub(super) fn has_due(&self) -> bool {
        !self.closed
            && !self.paused
            && match &self.backlog {
                Some(backlog) => !backlog.is_empty(),
                None => self.left != Some(0),
            }
    }
}

/// Runs a core to its end.
pub(super) fn run(setup: Setup) -> Result<CoreReport, SourceError> {
    let core_number = setup.options.cores[setup.share];
    pinning::pin(core_number)?;
    let ledger = LedgerWriter::open(setup.options.ledger.as_deref())?;
    let sessions = part_of(setup.options.sessions as u64, setup.share, setup.shares) as usize;
    let buffers = (sessions * 2).next_power_of_two().clamp(256, 4096) as u16;
    let config = RingConfig { entries: 4096, buffers, buffer_bytes: 4096, window_bytes: 16 << 10, ..RingConfig::default() };
    let ran = local::run(config, |ring, spawner| async move {
        let cpu = pinning::thread_cpu();
        let (control, parts, began) = (setup.control.clone(), setup.parts.clone(), setup.began);
        let schedule = setup.options.rate.map(|rate| Schedule::new(rate, setup.share, setup.shares, setup.options.seed));
        let core = Rc::new(Core::new(ring, setup, ledger));
        for index in 0..sessions {
            let slot = Slot { deadline: Rc::new(core.ring.deadline()), waker: None, idle: false };
            core.slots.borrow_mut().push(slot);
            core.live.set(core.live.get() + 1);
            spawner.spawn(session::run(core.clone(), index));
        }
        if let Some(schedule) = schedule {
            spawner.spawn(keep_schedule(core.clone(), schedule, began));
        }
        let outcome = supervise(&core, &control, &parts, began).await;
        let mut desk = core.desk.borrow_mut();
        let never_begun = desk.backlog.as_ref().map_or(0, VecDeque::len) as u64;
        desk.report.never_begun += never_begun;
        desk.report.cpu = pinning::thread_cpu().saturating_sub(cpu);
        outcome.map(|()| desk.report.clone())
    });
    ran.map_err(|reason| SourceError::Ring { core: core_number, reason })?
}

/// What falls to one of several shares of a whole.
fn part_of(whole: u64, share: usize, shares: usize) -> u64 {
    whole / shares as u64 + u64::from((share as u64) < whole % shares as u64)
}

impl Core {
    fn new(ring: Ring, setup: Setup, ledger: LedgerWriter) -> Core {
        let Setup { share, shares, run, began, script, options, progress, .. } = setup;
        let (composer, items) = Composer::new(&options.content, run, options.seed, share as u64);
        let prepared = |item: &Item| Prepared {
            raw: if options.chunking { place(&ring, &item.raw) } else { place(&ring, b"") },
            stuffed: place(&ring, &item.stuffed),
        };
        let desk = Desk {
            composer,
            recipients: Recipients::new(&options.recipients, options.seed, share as u64),
            recorder: Recorder::new(),
            ledger,
            random: Random::part(options.seed ^ 0xAB0, share as u64),
            aborts: options.aborts.clone(),
            report: CoreReport::default(),
            progress,
            clock: Clock::now(),
            left: options.messages.map(|messages| part_of(messages, share, shares)),
            backlog: options.rate.is_some().then(VecDeque::new),
            scheduled_all: false,
            next_sequence: share as u64,
            sequence_step: shares as u64,
            in_flight: 0,
            closed: false,
            paused: false,
            thinking: !options.think.is_zero(),
            open_loop: options.rate.is_some(),
            began,
        };
        Core {
            items: items.iter().map(prepared).collect(),
            ring,
            script,
            connect_gate: ConnectGate::new(options.gently),
            options,
            desk: RefCell::new(desk),
            outbox: RefCell::default(),
            slots: RefCell::default(),
            idle: RefCell::default(),
            live: Cell::new(0),
            connections: Cell::new(0),
            held: Cell::new(false),
        }
    }

    pub(super) fn body(&self, form: Form, body: Body) -> PageSlice {
        let item = &self.items[body.item];
        match form {
            Form::Raw => item.raw.slice(body.range),
            Form::Stuffed => item.stuffed.slice(body.range),
        }
    }

    /// Keeps a session's waker for [`Core::wake_all`].
    pub(super) fn keep(&self, index: usize, waker: &Waker) {
        let slot = &mut self.slots.borrow_mut()[index];
        match &slot.waker {
            Some(known) if known.will_wake(waker) => {}
            _ => slot.waker = Some(waker.clone()),
        }
    }

    /// Lists a session as resting, to be woken when a message is due.
    pub(super) fn rest(&self, index: usize, waker: &Waker) {
        self.keep(index, waker);
        let slot = &mut self.slots.borrow_mut()[index];
        if !slot.idle {
            slot.idle = true;
            self.idle.borrow_mut().push_back(index);
        }
    }

    /// Wakes as many resting sessions.
    pub(super) fn wake_idle(&self, count: usize) {
        for _ in 0..count {
            let Some(index) = self.idle.borrow_mut().pop_front() else { return };
            let waker = {
                let mut slots = self.slots.borrow_mut();
                slots[index].idle = false;
                slots[index].waker.take()
            };
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Wakes all sessions that wait for more than the next event of their connection.
    fn wake_all(&self) {
        self.idle.borrow_mut().clear();
        let mut wakers = Vec::new();
        for slot in self.slots.borrow_mut().iter_mut() {
            slot.idle = false;
            wakers.extend(slot.waker.take());
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Does what the switches ask for.
    fn obey(&self, control: &Control, now: Instant) {
        let (pause, hold) = (control.pause.load(Relaxed), control.hold.load(Relaxed));
        let paused = std::mem::replace(&mut self.desk.borrow_mut().paused, pause);
        let held = self.held.replace(hold);
        if hold && !held {
            self.end_waits(now);
        }
        if hold != held || (paused && !pause) {
            self.wake_all();
        }
    }

    /// A closed loop begins nothing after its time; an open one still owes what was due within it.
    fn is_over(&self, lasted: Duration, duration: Duration) -> bool {
        let waiting = self.desk.borrow().backlog.as_ref().is_some_and(|backlog| !backlog.is_empty());
        lasted >= duration && (!waiting || lasted >= duration + self.options.drain)
    }

    /// All messages have ended: what still waits for its banner would carry none. Lingering connections stay.
    fn is_done(&self) -> bool {
        let desk = self.desk.borrow();
        !self.script.linger && desk.in_flight == 0 && desk.is_exhausted()
    }

    /// A load without an end in time would knock at a dead server's door for ever.
    fn finds_nobody(&self, lasted: Duration) -> bool {
        let desk = self.desk.borrow();
        self.options.duration.is_none()
            && lasted >= self.options.timeout
            && desk.report.settled == 0
            && desk.in_flight == 0
            && desk.progress.broken() > 0
    }

    fn close(&self, now: Instant, stopped: bool) {
        let mut desk = self.desk.borrow_mut();
        desk.closed = true;
        if let (Some(backlog), true) = (&mut desk.backlog, stopped) {
            // Whoever ends a run early does not want to know what would have come.
            backlog.clear();
        }
        drop(desk);
        self.end_waits(now + self.options.drain);
        self.wake_all();
    }

    /// How long a connection waits for its banner before that is counted against the server at the end of the load.
    pub(super) fn greeting_patience(&self) -> Duration {
        self.options.duration.map_or(GREETING_PATIENCE, |duration| GREETING_PATIENCE.min(duration / 2))
    }

    /// Lets nobody wait for longer than until then.
    fn end_waits(&self, limit: Instant) {
        for slot in self.slots.borrow().iter() {
            if slot.deadline.at().is_some_and(|at| at > limit) {
                slot.deadline.set(limit);
            }
        }
    }
}

fn place(ring: &Ring, bytes: &[u8]) -> PageSlice {
    let mut pages = ring.take_pages_unzeroed(bytes.len());
    pages.copy_from_slice(bytes);
    pages.freeze().slice(0..bytes.len())
}

/// Puts messages into the backlog when they are due.
async fn keep_schedule(core: Rc<Core>, mut schedule: Schedule, began: Instant) {
    let mut left = core.desk.borrow().left;
    let end = core.options.duration.map(|duration| began + duration);
    let deadline = core.ring.deadline();
    loop {
        let due = began + schedule.next_due();
        if left == Some(0) || end.is_some_and(|end| due >= end) {
            break;
        }
        left = left.map(|left| left - 1);
        if due > Instant::now() {
            deadline.set(due);
            deadline.expired().await;
        }
        let mut desk = core.desk.borrow_mut();
        if desk.closed {
            break;
        }
        let backlog = desk.backlog.as_mut().expect("a schedule fills a backlog");
        if backlog.len() < BACKLOG_MAX {
            backlog.push_back(due);
        } else {
            desk.report.never_begun += 1;
        }
        drop(desk);
        core.wake_idle(1);
    }
    core.desk.borrow_mut().scheduled_all = true;
    core.wake_idle(usize::MAX);
}

/// Looks after time and the stop flag until all sessions have ended, and hands in what each second measured.
async fn supervise(core: &Rc<Core>, control: &Control, parts: &PartSender, began: Instant) -> Result<(), SourceError> {
    let mut second = 0;
    let mut closed_at = None;
    let mut next = Instant::now();
    loop {
        next += TICK;
        let deadline = core.ring.deadline();
        deadline.set(next);
        poll_fn(|cx| if core.live.get() == 0 { Poll::Ready(()) } else { deadline.poll_expired(cx) }).await;
        let now = Instant::now();
        next = next.max(now);
        let late = core.options.duration.is_some_and(|duration| core.is_over(now - began, duration));
        let stopped = control.stop.load(Relaxed);
        core.obey(control, now);
        if closed_at.is_none() && (late || stopped || core.desk.borrow().closed || core.is_done() || core.finds_nobody(now - began)) {
            closed_at = Some(now);
            core.close(now, stopped);
        }
        let over = core.live.get() == 0 || closed_at.is_some_and(|closed| now - closed > core.options.drain + Duration::from_secs(2));
        let current = (now - began).as_secs();
        let mut desk = core.desk.borrow_mut();
        if (current > second && parts.has_room()) || over {
            let in_flight = desk.in_flight;
            let part = desk.recorder.take(in_flight, core.connections.get());
            parts.send(CorePart { second: if over { current } else { current - 1 }, part });
            second = current;
        }
        desk.report.last_trouble.iter().for_each(|trouble| control.note(trouble));
        desk.ledger.flush()?;
        if over {
            return Ok(());
        }
    }
}
