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
    content::{Body, Composer, Form, Item},
    ledger::LedgerWriter,
    parts::PartSender,
    pinning,
    schedule::Schedule,
    source::{
        CoreReport, GREETING_PATIENCE, Reached, SourceError, SourceOptions,
        connect_gate::ConnectGate,
        control::{Control, Progress},
        desk::{Desk, Part},
        host::Script,
        opening::Openings,
        outbox::Outbox,
        session,
    },
};

/// How often a core looks at its stop flag, its time and its seconds.
const TICK: Duration = Duration::from_millis(20);

/// Sessions that were told to end are waited for so long.
const ENDING_MAX: Duration = Duration::from_secs(2);

pub(super) struct Setup {
    pub(super) part: Part,
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
    /// Sessions that rest, the one that rests longest first, and some that have left off.
    idle: RefCell<VecDeque<usize>>,
    /// Sessions that wait for an opening, the one that waits longest first.
    waiting: RefCell<VecDeque<usize>>,
    pub(super) connect_gate: ConnectGate,
    pub(super) openings: Openings,
    pub(super) live: Cell<usize>,
    pub(super) connections: Cell<u64>,
    /// No connections are wanted for now.
    pub(super) held: Cell<bool>,
    /// Nothing is waited for beyond this.
    limit: Cell<Option<Instant>>,
}

/// What a core knows of a session beside its task.
pub(super) struct Slot {
    pub(super) deadline: Rc<Deadline>,
    waker: Option<Waker>,
    /// It rests.
    idle: bool,
    /// It is among those that rest, or rested: a place is kept until its turn comes.
    listed: bool,
    waits: bool,
}

/// Runs a core to its end.
pub(super) fn run(setup: Setup) -> Result<CoreReport, SourceError> {
    let core_number = setup.options.cores[setup.part.share];
    pinning::pin(core_number)?;
    let mut ledger = LedgerWriter::open(setup.options.ledger.as_deref())?;
    if setup.part.share == 0 {
        ledger.run(setup.run, &setup.script.reverse_path)?;
    }
    let sessions = setup.part.of(setup.options.sessions as u64) as usize;
    let buffers = (sessions * 2).next_power_of_two().clamp(256, 4096) as u16;
    let config = RingConfig { entries: 4096, buffers, buffer_bytes: 4096, window_bytes: 16 << 10, ..RingConfig::default() };
    let ran = local::run(config, |ring, spawner| async move {
        let cpu = pinning::thread_cpu();
        let (control, parts, began) = (setup.control.clone(), setup.parts.clone(), setup.began);
        let schedule = setup.options.rate.map(|rate| Schedule::new(rate, setup.part.share, setup.part.shares, setup.options.seed));
        let core = Rc::new(Core::new(ring, setup, ledger));
        for index in 0..sessions {
            let slot = Slot { deadline: Rc::new(core.ring.deadline()), waker: None, idle: false, listed: false, waits: false };
            core.slots.borrow_mut().push(slot);
            core.live.set(core.live.get() + 1);
            spawner.spawn(session::run(core.clone(), index));
        }
        if let Some(schedule) = schedule {
            spawner.spawn(keep_schedule(core.clone(), schedule, began));
        }
        let outcome = supervise(&core, &control, &parts, began).await;
        let mut desk = core.desk.borrow_mut();
        outcome.map(|()| desk.finish(pinning::thread_cpu().saturating_sub(cpu)))
    });
    ran.map_err(|reason| SourceError::Ring { core: core_number, reason })?
}

impl Core {
    fn new(ring: Ring, setup: Setup, ledger: LedgerWriter) -> Core {
        let Setup { part, run, began, script, options, progress, .. } = setup;
        let (composer, items) = Composer::new(&options.content, run, options.seed, part.share as u64);
        let prepared = |item: &Item| Prepared {
            raw: if options.chunking { place(&ring, &item.raw) } else { place(&ring, b"") },
            stuffed: place(&ring, &item.stuffed),
        };
        let desk = Desk::new(&options, composer, ledger, progress, part, began);
        Core {
            items: items.iter().map(prepared).collect(),
            ring,
            script,
            connect_gate: ConnectGate::new(options.gently),
            openings: Openings::default(),
            options,
            desk: RefCell::new(desk),
            outbox: RefCell::default(),
            slots: RefCell::default(),
            idle: RefCell::default(),
            waiting: RefCell::default(),
            live: Cell::new(0),
            connections: Cell::new(0),
            held: Cell::new(false),
            limit: Cell::new(None),
        }
    }

    /// So many connections are open from now on.
    pub(super) fn count_connections(&self, open: u64, now: Instant) {
        self.connections.set(open);
        let mut desk = self.desk.borrow_mut();
        desk.second_of(now);
        desk.recorder.connections(open);
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
        slot.idle = true;
        if !std::mem::replace(&mut slot.listed, true) {
            self.idle.borrow_mut().push_back(index);
        }
    }

    /// A session rests no more: woken for a message, it could not take it.
    pub(super) fn leave_rest(&self, index: usize) {
        self.slots.borrow_mut()[index].idle = false;
    }

    /// Wakes as many resting sessions.
    pub(super) fn wake_idle(&self, count: usize) {
        let mut left = count;
        while left > 0 {
            let Some(index) = self.idle.borrow_mut().pop_front() else { return };
            let waker = {
                let slot = &mut self.slots.borrow_mut()[index];
                slot.listed = false;
                if !std::mem::take(&mut slot.idle) {
                    continue;
                }
                slot.waker.take()
            };
            waker.into_iter().for_each(Waker::wake);
            left -= 1;
        }
    }

    /// Lists a session as waiting for an opening.
    pub(super) fn wait_for_opening(&self, index: usize, waker: &Waker) {
        self.keep(index, waker);
        let slot = &mut self.slots.borrow_mut()[index];
        if !slot.waits {
            slot.waits = true;
            self.waiting.borrow_mut().push_back(index);
        }
    }

    /// An opening has been given up: wakes the session that has waited longest for one.
    pub(super) fn wake_for_opening(&self) {
        let Some(index) = self.waiting.borrow_mut().pop_front() else { return };
        let waker = {
            let slot = &mut self.slots.borrow_mut()[index];
            slot.waits = false;
            slot.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Wakes all sessions that wait for more than the next event of their connection.
    fn wake_all(&self) {
        self.idle.borrow_mut().clear();
        self.waiting.borrow_mut().clear();
        let mut wakers = Vec::new();
        for slot in self.slots.borrow_mut().iter_mut() {
            (slot.idle, slot.listed, slot.waits) = (false, false, false);
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

    /// When the load ended, if it is over by its time. A closed loop begins nothing after that; an open one still owes what was due within
    /// it. Without a time, an open loop's is its schedule: what is still owed long after it is owed to a server that is gone.
    fn ended_at(&self, now: Instant, began: Instant) -> Option<Instant> {
        let desk = self.desk.borrow();
        match self.options.duration.map(|duration| began + duration) {
            Some(end) => (now >= end && (!desk.has_backlog() || now >= end + self.options.drain)).then_some(end),
            None => {
                let owes = desk.has_backlog() || desk.in_flight > 0;
                desk.scheduled_until.filter(|&end| owes && now >= end + self.options.drain)
            }
        }
    }

    /// All messages have ended: what still waits for its banner would carry none. Lingering connections stay.
    fn is_done(&self) -> bool {
        let desk = self.desk.borrow();
        !self.script.linger && desk.in_flight == 0 && desk.is_exhausted()
    }

    /// How far and for how long the load has come to nothing, where that ends it: one without an end in time would knock at a dead server's
    /// door for ever, or at that of one that greets and then closes. An open loop that began has an end in its schedule, and one without a
    /// number of messages is stopped by whoever started it.
    fn comes_to_nothing(&self, now: Instant) -> Option<(Reached, Duration)> {
        let desk = self.desk.borrow();
        let is_bound = self.options.rate.is_none() && self.options.messages.is_some();
        if self.options.duration.is_some() || !(is_bound || desk.report.settled == 0) {
            return None;
        }
        let reached = if desk.is_reached { Reached::Connection } else { Reached::Nobody };
        let nobody = desk.failing_since.filter(|_| desk.in_flight == 0).map(|since| (reached, now.saturating_duration_since(since)));
        // A server that takes each message and loses the connection always has some in flight.
        let fruitless = desk.fruitless_for(now).filter(|_| is_bound).map(|failing| (Reached::Session, failing));
        [nobody, fruitless].into_iter().flatten().find(|&(_, failing)| failing >= self.options.timeout)
    }

    /// Begins nothing more and waits for replies until `limit`.
    fn close(&self, now: Instant, on_time: bool, limit: Instant) {
        self.desk.borrow_mut().close(now, on_time);
        self.limit.set(Some(limit));
        self.end_waits(limit);
        self.wake_all();
    }

    /// How long a connection waits for its banner before that is counted against the server at the end of the load.
    pub(super) fn greeting_patience(&self) -> Duration {
        self.options.duration.map_or(GREETING_PATIENCE, |duration| GREETING_PATIENCE.min(duration / 2))
    }

    /// Until when something is waited for from `now` on.
    pub(super) fn patience(&self, now: Instant) -> Instant {
        self.at_most(now + self.options.timeout)
    }

    /// Until then, or until nothing is waited for any more.
    pub(super) fn at_most(&self, until: Instant) -> Instant {
        self.limit.get().map_or(until, |limit| until.min(limit))
    }

    /// Is the load over, and the wait for what was under way, too?
    pub(super) fn is_past_its_limit(&self, now: Instant) -> bool {
        self.limit.get().is_some_and(|limit| now >= limit)
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
    let mut last = began;
    let ends_at = loop {
        let due = began + schedule.next_due();
        if left == Some(0) {
            break last;
        }
        if let Some(end) = end.filter(|&end| due >= end) {
            break end;
        }
        left = left.map(|left| left - 1);
        if due > Instant::now() {
            deadline.set(due);
            deadline.expired().await;
        }
        if core.desk.borrow().closed {
            return;
        }
        core.desk.borrow_mut().is_due(due);
        last = due;
        core.wake_idle(1);
    };
    core.desk.borrow_mut().scheduled_all(ends_at);
    core.wake_idle(usize::MAX);
}

/// Looks after time and the stop flag until all sessions have ended, and hands in what each second measured.
async fn supervise(core: &Rc<Core>, control: &Control, parts: &PartSender, began: Instant) -> Result<(), SourceError> {
    let mut replies_until = None;
    let mut next = Instant::now();
    loop {
        next += TICK;
        let deadline = core.ring.deadline();
        deadline.set(next);
        poll_fn(|cx| if core.live.get() == 0 { Poll::Ready(()) } else { deadline.poll_expired(cx) }).await;
        let now = Instant::now();
        next = next.max(now);
        let ended_at = core.ended_at(now, began);
        let stopped = control.stop.load(Relaxed);
        core.obey(control, now);
        let came_to_nothing = core.comes_to_nothing(now);
        if replies_until.is_none()
            && (ended_at.is_some() || stopped || core.desk.borrow().closed || core.is_done() || came_to_nothing.is_some())
        {
            // Who began all there was to begin has nothing to give up, however long ago the first of its last connections failed.
            if let (Some(nothing), false) = (came_to_nothing, ended_at.is_some() || stopped || core.is_done()) {
                core.desk.borrow_mut().give_up(now, nothing);
            }
            // One drain for all: an open loop that began what was due until the end of it has had it.
            let limit = ended_at.unwrap_or(now) + core.options.drain;
            replies_until = Some(limit);
            core.close(now, ended_at.is_some() || stopped, limit);
        }
        let over = core.live.get() == 0 || replies_until.is_some_and(|limit| now > limit + ENDING_MAX);
        let mut desk = core.desk.borrow_mut();
        desk.second_of(now);
        let in_flight = desk.in_flight;
        parts.hand_in(&mut desk.recorder, in_flight, over);
        desk.report.last_trouble.iter().for_each(|trouble| control.note(trouble));
        desk.flush_ledger();
        if over {
            return Ok(());
        }
    }
}
