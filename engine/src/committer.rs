//! Drives one log: starts its operations on the ring, tells it what became of them, and wakes who waits for a ticket.
//!
//! The rules (what is written, in which order, when it counts as durable) are `ringpost_spool::Log`'s. Read [`Committer::run`] first.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    path::Path,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use ringpost_ring::{PageSlice, Pages, Ring, WriteSynced};
use ringpost_spool::{
    AppendError, BATCHES_IN_FLIGHT_MAX, Event, Host, Location, Log, LogConfig, Op, OpId, OpKind, RecordId, Role, Room, SegmentFile, Space,
    Ticket,
};
use tracing::warn;

use crate::{
    metrics::Metrics,
    random::random_u64,
    room_line::RoomLine,
    segment_files::{PageBuffer, SegmentFiles, write_result},
};

mod turn;

pub use turn::Turn;

/// Batches kept in memory for the first attempts of their messages (S25); with buffers of 512 KiB at most 8 MiB of them.
const RECENT_BATCHES_MAX: usize = 16;
/// And no longer than this.
const RECENT_FOR: Duration = Duration::from_secs(1);
/// How often the room on the file system is looked up while mail arrives.
const SPACE_EVERY: Duration = Duration::from_millis(200);

/// The commit failed: nothing more is promised by this process (S8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the spool failed")]
pub struct Poisoned;

/// What the log needs from this shard.
pub struct LogHost {
    ring: Ring,
}

impl Host for LogHost {
    type Buffer = PageBuffer;

    fn take_buffer(&mut self, bytes: usize) -> Option<PageBuffer> {
        Some(PageBuffer(self.ring.take_pages_unzeroed(bytes)))
    }

    fn random(&mut self) -> u64 {
        random_u64()
    }
}

/// A batch whose memory is still at hand.
struct Recent {
    file: SegmentFile,
    offset: u64,
    pages: Pages,
    since: Instant,
}

struct Writing {
    id: OpId,
    bytes: usize,
    write: WriteSynced,
}

/// Drives one log.
pub struct Committer {
    ring: Ring,
    log: RefCell<Log<LogHost>>,
    files: SegmentFiles,
    boot: u64,
    metrics: Rc<Metrics>,
    acknowledged: Cell<Ticket>,
    poisoned: Cell<bool>,
    stopped: Cell<bool>,
    waiters: RefCell<Vec<(Ticket, Waker)>>,
    /// Those who found no room and try again after the next completion, or event that makes some.
    crowded: RefCell<Vec<Waker>>,
    /// Those who found none for a message or a chunk.
    line: RoomLine,
    recent: RefCell<VecDeque<Recent>>,
    /// Operations beside the batches that no hand has taken yet, and the hands that have nothing to do.
    cold: RefCell<VecDeque<Op<PageBuffer>>>,
    idle_hands: RefCell<Vec<Waker>>,
    pump: RefCell<Option<Waker>>,
    kicked: Cell<bool>,
    space_at: Cell<Option<Instant>>,
    is_adopted: bool,
}

impl Committer {
    /// Opens the log in `files`' directory; `previous_boot` is the start before this one, if that is sure. Nothing happens until [`Committer::run`] is polled.
    pub fn open(
        ring: Ring,
        files: SegmentFiles,
        config: LogConfig,
        previous_boot: Option<u64>,
        metrics: Rc<Metrics>,
    ) -> io::Result<Rc<Committer>> {
        let (found, boot) = (files.found(previous_boot)?, config.boot);
        let is_adopted = config.role == Role::Adopted;
        let log = Log::open(config, LogHost { ring: ring.clone() }, &found, ring.now());
        Ok(Rc::new(Committer {
            ring,
            log: RefCell::new(log),
            files,
            boot,
            metrics,
            acknowledged: Cell::new(Ticket(0)),
            poisoned: Cell::new(false),
            stopped: Cell::new(false),
            waiters: RefCell::default(),
            crowded: RefCell::default(),
            line: RoomLine::default(),
            recent: RefCell::default(),
            cold: RefCell::default(),
            idle_hands: RefCell::default(),
            pump: RefCell::default(),
            kicked: Cell::new(true),
            space_at: Cell::new(None),
            is_adopted,
        }))
    }

    /// The pump: runs until the log has stopped, or was poisoned. `on_event` is told everything; it must not touch this log.
    pub async fn run(self: Rc<Self>, on_event: impl Fn(&Event<'_>)) {
        let mut writes: [Option<Writing>; BATCHES_IN_FLIGHT_MAX] = [const { None }; BATCHES_IN_FLIGHT_MAX];
        let deadline = self.ring.deadline();
        poll_fn(|cx| {
            self.pump.borrow_mut().replace(cx.waker().clone());
            loop {
                self.kicked.set(false);
                self.reap(&mut writes, cx);
                self.drain_events(&on_event);
                self.start_operations(&mut writes);
                self.drain_events(&on_event);
                if self.stopped.get() || self.poisoned.get() {
                    return Poll::Ready(());
                }
                if self.kicked.get() {
                    continue;
                }
                let now = self.ring.now();
                let log = self.log.borrow();
                self.line.call(log.batch_left());
                // A full disk is looked at again although nothing happens on it.
                let look_again = log.room(now).reserve.then(|| now + SPACE_EVERY);
                match [log.next_deadline(), look_again].into_iter().flatten().min() {
                    Some(at) => deadline.set(at),
                    None => deadline.clear(),
                }
                drop(log);
                if deadline.poll_expired(cx).is_ready() {
                    // Others first, completions above all: what is due may wait for one.
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
        })
        .await;
    }

    fn reap(&self, writes: &mut [Option<Writing>], cx: &mut Context<'_>) {
        for slot in writes {
            let Some(writing) = slot else { continue };
            let Poll::Ready(result) = Pin::new(&mut writing.write).poll(cx) else { continue };
            let (id, bytes) = (writing.id, writing.bytes);
            *slot = None;
            if result.is_ok() {
                self.metrics.batches.increment();
                self.metrics.batch_bytes.add(bytes as u64);
            }
            self.log.borrow_mut().completed(id, write_result(bytes, result), self.ring.now());
            self.room_was_made();
            self.kicked.set(true);
        }
    }

    fn start_operations(self: &Rc<Self>, writes: &mut [Option<Writing>]) {
        self.look_at_space();
        if self.is_adopted && self.log.borrow().is_retirable() {
            self.log.borrow_mut().retire();
        }
        loop {
            let now = self.ring.now();
            let Some(Op { id, kind }) = self.log.borrow_mut().poll(now) else { break };
            match kind {
                OpKind::WriteSynced { file, temporary, offset, buffer, bytes, batch: Some(_) } => {
                    let pages = buffer.0.freeze();
                    // The next batch gathers from here on, beside this one.
                    self.line.room_was_made();
                    self.remember(Recent { file, offset, pages: pages.clone(), since: now });
                    match self.files.write_synced(file, temporary, offset, pages, bytes) {
                        Ok(write) => {
                            let free = writes.iter_mut().find(|slot| slot.is_none()).expect("the log keeps to the flight slots");
                            *free = Some(Writing { id, bytes, write });
                            self.metrics.in_flight_max.raise(writes.iter().flatten().count() as u64);
                            self.kicked.set(true);
                        }
                        Err(error) => {
                            let failed = Err(ringpost_ring::WriteError::Write(error));
                            self.log.borrow_mut().completed(id, write_result(bytes, failed), now);
                            self.kicked.set(true);
                        }
                    }
                }
                kind => self.hand_over(Op { id, kind }),
            }
        }
    }

    /// Gives an operation to a hand that has nothing to do, or to a new one: there are as many as operations were ever under way at once,
    /// which the log bounds.
    fn hand_over(self: &Rc<Self>, op: Op<PageBuffer>) {
        self.cold.borrow_mut().push_back(op);
        let idle = self.idle_hands.borrow_mut().pop();
        match idle {
            Some(hand) => hand.wake(),
            None => drop(self.ring.spawn(self.clone().execute_cold()).detach()),
        }
    }

    /// A hand: executes one operation after the other until the log ends.
    async fn execute_cold(self: Rc<Self>) {
        while let Some(Op { id, kind }) = poll_fn(|cx| self.poll_cold(cx)).await {
            let result = self.files.execute(kind).await;
            self.log.borrow_mut().completed(id, result, self.ring.now());
            self.room_was_made();
            self.kick();
        }
    }

    fn poll_cold(&self, cx: &mut Context<'_>) -> Poll<Option<Op<PageBuffer>>> {
        if let Some(op) = self.cold.borrow_mut().pop_front() {
            return Poll::Ready(Some(op));
        }
        if self.poisoned.get() || self.stopped.get() {
            return Poll::Ready(None);
        }
        self.idle_hands.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }

    fn drain_events(&self, on_event: &impl Fn(&Event<'_>)) {
        let (mut log, mut is_loaded) = (self.log.borrow_mut(), false);
        while let Some(event) = log.event() {
            match &event {
                Event::Loaded(_) => is_loaded = true,
                Event::Acknowledged(ticket) => self.acknowledge(*ticket),
                Event::Poisoned(_) | Event::Refused(_) => {
                    self.poisoned.set(true);
                    self.wake_all();
                }
                Event::Stopped | Event::Retired => {
                    self.stopped.set(true);
                    self.wake_all();
                }
                _ => {}
            }
            if event.makes_room() {
                self.room_was_made();
            }
            on_event(&event);
        }
        if is_loaded {
            let doubts: Vec<_> = log.doubts().collect();
            if let Err(reason) = self.files.note_doubts(self.boot, &doubts) {
                warn!(%reason, files = doubts.len(), "which segments could not be read cannot be written down: the next start keeps more for their sake");
            }
        }
    }

    fn acknowledge(&self, ticket: Ticket) {
        self.acknowledged.set(ticket);
        let mut waiters = self.waiters.borrow_mut();
        let mut at = 0;
        while at < waiters.len() {
            if waiters[at].0 <= ticket {
                waiters.swap_remove(at).1.wake();
            } else {
                at += 1;
            }
        }
    }

    /// After a completion, or an event that makes room: an append that found none may succeed.
    fn room_was_made(&self) {
        self.crowded.borrow_mut().drain(..).for_each(Waker::wake);
        self.line.room_was_made();
    }

    fn wake_all(&self) {
        self.waiters.borrow_mut().drain(..).for_each(|(_, waker)| waker.wake());
        self.crowded.borrow_mut().drain(..).for_each(Waker::wake);
        self.line.close();
        self.idle_hands.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// Lets the pump look at the log again.
    pub fn kick(&self) {
        if !self.kicked.replace(true)
            && let Some(pump) = &*self.pump.borrow()
        {
            pump.wake_by_ref();
        }
    }

    /// Waits until everything with this ticket is durable.
    pub async fn durable(&self, ticket: Ticket) -> Result<(), Poisoned> {
        self.kick();
        poll_fn(|cx| {
            if self.acknowledged.get() >= ticket {
                return Poll::Ready(Ok(()));
            }
            if self.poisoned.get() || self.stopped.get() {
                return Poll::Ready(Err(Poisoned));
            }
            // Woken for nothing else, a task comes here once.
            self.waiters.borrow_mut().push((ticket, cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Waits until the log has stopped, after `Log::stop`.
    pub async fn stopped(&self) -> Result<(), Poisoned> {
        self.kick();
        poll_fn(|cx| {
            if self.poisoned.get() {
                return Poll::Ready(Err(Poisoned));
            }
            if self.stopped.get() {
                return Poll::Ready(Ok(()));
            }
            self.waiters.borrow_mut().push((Ticket(u64::MAX), cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Waits for a completion, or for an event that makes room: after it an append that found none may succeed.
    pub async fn room(&self) {
        self.kick();
        let mut waited = false;
        poll_fn(|cx| {
            if waited || self.poisoned.get() || self.stopped.get() {
                return Poll::Ready(());
            }
            waited = true;
            self.crowded.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// For the writer of one message or chunk record, to be dropped when that is written.
    pub fn turn(&self) -> Turn<'_> {
        Turn::new(self)
    }

    /// The transaction ended without its message: its chunks die.
    pub fn abandon(&self, id: RecordId) {
        self.log.borrow_mut().abandon(id);
    }

    /// Appends a message's whole recipient state; rides on the next batch.
    pub fn outcome(&self, id: RecordId, state: &[u8]) -> Result<Ticket, AppendError> {
        let ticket = self.log.borrow_mut().outcome(id, 0, state, self.ring.now());
        self.kick();
        ticket
    }

    /// Appends that nothing is left to do for the message; rides on the next batch.
    pub fn settle(&self, id: RecordId) -> Result<Ticket, AppendError> {
        let ticket = self.log.borrow_mut().settle(id, &[], self.ring.now());
        self.kick();
        ticket
    }

    /// Looks something up in the log.
    pub fn log(&self) -> std::cell::Ref<'_, Log<LogHost>> {
        self.log.borrow()
    }

    /// Changes something in the log, then lets the pump look.
    pub fn with_log<R>(&self, change: impl FnOnce(&mut Log<LogHost>) -> R) -> R {
        let result = change(&mut self.log.borrow_mut());
        self.kick();
        result
    }

    /// Has a write or flush failed, here or in another log of this spool?
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.get()
    }

    /// Where its segments are.
    pub fn directory(&self) -> &Path {
        self.files.directory()
    }

    /// Removes the directory of a retired log.
    pub fn remove_directory(&self) -> io::Result<()> {
        self.files.remove_directory()
    }

    /// Whether it was time to look.
    fn look_at_space(&self) -> bool {
        let now = self.ring.now();
        if self.space_at.get().is_some_and(|at| now < at) {
            return false;
        }
        self.space_at.set(Some(now + SPACE_EVERY));
        if let Ok(space) = self.files.space() {
            self.log.borrow_mut().set_space(space);
        }
        true
    }

    fn remember(&self, batch: Recent) {
        let mut recent = self.recent.borrow_mut();
        while recent.len() >= RECENT_BATCHES_MAX || recent.front().is_some_and(|old| batch.since.duration_since(old.since) > RECENT_FOR) {
            recent.pop_front();
        }
        recent.push_back(batch);
    }

    /// The room on the file system now.
    pub fn space(&self) -> io::Result<Space> {
        self.files.space()
    }

    /// What can be promised to new messages now. An idle log would not notice that others have filled the disk, so this looks.
    pub fn available(&self) -> Room {
        if self.look_at_space() {
            self.kick();
        }
        self.log.borrow().room(self.ring.now())
    }

    /// Gives up memory that is kept for speed only. Called by the shard about once a second while there is some.
    pub fn forget_recent(&self, now: Instant) -> bool {
        let mut recent = self.recent.borrow_mut();
        while recent.front().is_some_and(|old| now.duration_since(old.since) > RECENT_FOR) {
            recent.pop_front();
        }
        !recent.is_empty()
    }

    /// The blocks around a record, if its batch is still in memory.
    fn blocks_in_memory(&self, location: &Location) -> Option<PageSlice> {
        let (start, bytes) = location.blocks();
        let recent = self.recent.borrow();
        // The newest first: a recycled segment may be in the list with both of its uses.
        let batch = recent.iter().rev().find(|batch| {
            batch.file == location.file && start >= batch.offset && start + bytes as u64 <= batch.offset + batch.pages.len() as u64
        })?;
        let at = usize::try_from(start - batch.offset).expect("within the batch");
        Some(batch.pages.slice(at..at + bytes))
    }

    /// The payload of a record of `id`: from memory while its batch is there, else from the disk, verified.
    pub async fn payload(&self, id: RecordId, location: Location) -> Result<PageSlice, ReadError> {
        if let Some(blocks) = self.blocks_in_memory(&location) {
            return self.checked(id, &location, blocks);
        }
        self.metrics.content_reads.increment();
        let (offset, bytes) = location.blocks();
        self.log.borrow_mut().pin(&location);
        let (pages, result) = self.files.read(location.file, offset, self.ring.take_pages_unzeroed(bytes), bytes).await;
        self.log.borrow_mut().unpin(&location);
        match result {
            Ok(read) if read == bytes => self.checked(id, &location, pages.freeze().slice(0..bytes)),
            Ok(_) => Err(ReadError::Damaged),
            Err(error) => Err(ReadError::Io(error)),
        }
    }

    /// As `payload`, if the record's batch is in memory and verifies.
    pub fn payload_in_memory(&self, id: RecordId, location: Location) -> Option<PageSlice> {
        self.checked(id, &location, self.blocks_in_memory(&location)?).ok()
    }

    fn checked(&self, id: RecordId, location: &Location, blocks: PageSlice) -> Result<PageSlice, ReadError> {
        let log = self.log.borrow();
        let payload = log.check(id, location, &blocks).map_err(|_| ReadError::Damaged)?;
        let start = payload.as_ptr().addr() - blocks.as_ptr().addr();
        Ok(blocks.slice(start..start + payload.len()))
    }
}

/// Content cannot be had from the spool now.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk said no.
    #[error("reading the spool: {0}")]
    Io(#[source] io::Error),
    /// What it gave is not what was written.
    #[error("the record in the spool is damaged")]
    Damaged,
}
