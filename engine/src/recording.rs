//! From what the queue has settled to the log: outcomes and settled records, appended and acknowledged.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    time::Instant,
};

use ringpost_queue::{MessageKey, Settled};
use ringpost_spool::{AppendError, Ticket};
use tracing::{error, warn};

use crate::{
    backlog::{Backlog, Refused},
    gathered::Gathered,
    record_id::record_id,
    shard::Shard,
};

/// Outcomes that wait for room in a batch, beyond which no attempt is begun: what could not be recorded would be delivered twice.
const BACKLOG_MAX: usize = 1024;

/// What a shard has settled and is not durable.
#[derive(Default)]
pub struct Recording {
    /// Appended and not acknowledged, oldest first, with the number of the log.
    unrecorded: RefCell<VecDeque<(u16, Ticket, MessageKey)>>,
    /// A log took no record any more.
    has_closed: Cell<bool>,
    /// Settled in the queue, not appended for want of room.
    backlog: RefCell<Backlog<MessageKey>>,
    /// Messages whose deferrals wait to be recorded together. Each counts as one record in the queue.
    gathered: RefCell<Gathered<MessageKey>>,
    /// The state of one message, written anew for each.
    state: RefCell<Vec<u8>>,
}

impl Recording {
    /// Is there room for what further attempts come to?
    pub(crate) fn has_room(&self) -> bool {
        self.backlog.borrow().len() < BACKLOG_MAX
    }

    /// Nothing is left to append.
    pub(crate) fn is_quiet(&self) -> bool {
        self.backlog.borrow().is_empty() && self.gathered.borrow().is_empty()
    }

    /// When [`Shard::record_gathered`] has something to do.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.gathered.borrow().next_due()
    }

    /// A log's records up to `ticket` are durable. Called from within the log's events: touches the queue, never a log.
    pub fn acknowledged(&self, shard: &Shard, log: u16, ticket: Ticket) {
        let mut unrecorded = self.unrecorded.borrow_mut();
        let mut queue = shard.queue.borrow_mut();
        if unrecorded.iter().all(|(number, ..)| *number == log) {
            while let Some((_, wanted, key)) = unrecorded.front().copied()
                && wanted <= ticket
            {
                unrecorded.pop_front();
                queue.recorded(key);
            }
        } else {
            unrecorded.retain(|(number, wanted, key)| {
                let done = *number == log && *wanted <= ticket;
                if done {
                    queue.recorded(*key);
                }
                !done
            });
        }
    }
}

impl Shard {
    /// A log may take what found no room.
    pub(crate) fn room_came(&self) {
        if !self.recording.backlog.borrow().is_empty() {
            self.delivery.kick();
        }
    }

    /// Appends what the queue wants kept, or gathers it. Order between records of one message does not matter: each holds its whole state.
    pub(crate) fn persist(&self, key: MessageKey, settled: Settled) {
        match settled {
            Settled::Nothing => {}
            Settled::Deferral if self.gathers(key) => {}
            Settled::Deferral => self.append(key, Settled::Outcome),
            Settled::Outcome | Settled::Done => {
                // It says what was gathered, too.
                if self.recording.gathered.borrow_mut().take(key) {
                    self.queue.borrow_mut().recorded(key);
                    // A drain may have waited for no more than that.
                    if self.is_ending() {
                        self.wake_life();
                    }
                }
                self.append(key, settled);
            }
        }
    }

    /// Lets a deferral wait for others of its message. Not where there can be none, nor at the end.
    fn gathers(&self, key: MessageKey) -> bool {
        let mut queue = self.queue.borrow_mut();
        let recipients = queue.show(key).map_or(0, |view| view.recipients().len());
        if recipients < 2 || self.is_ending() {
            return false;
        }
        if !self.recording.gathered.borrow_mut().add(key, recipients, self.ring.now()) {
            queue.recorded(key);
        }
        true
    }

    /// Appends what has been gathered for long enough; all of it at the end.
    pub(crate) fn record_gathered(&self) {
        let (now, is_last) = (self.ring.now(), self.is_ending());
        let mut has_any = false;
        loop {
            let next = self.recording.gathered.borrow_mut().pop(now, is_last);
            let Some(key) = next else { break };
            self.append(key, Settled::Outcome);
            has_any = true;
        }
        // The drain waits for it.
        if has_any && is_last {
            self.wake_life();
        }
    }

    fn append(&self, key: MessageKey, settled: Settled) {
        if self.recording.backlog.borrow().is_empty() && self.try_persist(key, settled).is_ok() {
            return;
        }
        let Some(log) = self.queue.borrow().envelope(key).map(|envelope| envelope.id.shard) else { return };
        if settled == Settled::Done {
            let forgotten = self.recording.backlog.borrow_mut().forget_outcomes(log, key);
            (0..forgotten).for_each(|_| self.queue.borrow_mut().recorded(key));
        }
        let is_only = self.recording.backlog.borrow_mut().push(log, key, settled);
        if is_only {
            self.drain_backlog();
        }
    }

    pub(crate) fn drain_backlog(&self) {
        let mut backlog = self.recording.backlog.borrow_mut();
        if backlog.is_empty() {
            return;
        }
        backlog.drain(|key, settled| self.try_persist(key, settled));
        if self.is_ending() && backlog.is_empty() {
            self.wake_life();
        }
    }

    /// Waits until everything that was to be persisted so far is in a batch, but for deferrals that are gathered and for what the disk has no
    /// room for.
    pub(crate) async fn backlog_written(&self) {
        loop {
            self.drain_backlog();
            // It may be the log of an earlier start, while this shard's own does nothing.
            let awaited = self.recording.backlog.borrow().awaited();
            let Some(log) = awaited.filter(|_| !self.is_ending()).and_then(|log| self.committer_of(log)) else { return };
            log.room().await;
        }
    }

    /// Waits until everything that was to be persisted so far is durable, or the spool failed, but for what the disk has no room for: of
    /// what is promised next, [`Shard::unwritten`] or [`Shard::lacks_room_for`] is to be asked.
    pub(crate) async fn records_durable(&self) {
        self.backlog_written().await;
        // The newest ticket of each log now; what is appended later is not waited for.
        let mut newest: Vec<(u16, Ticket)> = Vec::new();
        for &(log, ticket, _) in self.recording.unrecorded.borrow().iter() {
            match newest.iter_mut().find(|(number, _)| *number == log) {
                Some((_, last)) => *last = ticket.max(*last),
                None => newest.push((log, ticket)),
            }
        }
        for (log, ticket) in newest {
            if let Some(committer) = self.committer_of(log)
                && committer.durable(ticket).await.is_err()
            {
                return;
            }
        }
    }

    /// Is what commands change recorded? Not once a log has taken no more, at the end of the process or after an error of the disk.
    pub(crate) fn keeps_records(&self) -> bool {
        !self.recording.has_closed.get() && !self.spool_has_failed()
    }

    /// Does a log lack room for records of this kind, so that what was changed last is not on disk?
    pub(crate) fn lacks_room_for(&self, settled: Settled) -> bool {
        self.recording.backlog.borrow().is_stuck(settled)
    }

    /// The messages of which something is not in a batch yet, each with a log that it waits for.
    pub(crate) fn unwritten(&self) -> HashMap<MessageKey, u16> {
        self.recording.backlog.borrow().waiting().collect()
    }

    fn try_persist(&self, key: MessageKey, settled: Settled) -> Result<(), Refused> {
        let id = match self.queue.borrow().envelope(key) {
            Some(envelope) => envelope.id,
            None => return Ok(()),
        };
        let Some(committer) = self.committer_of(id.shard) else {
            error!(queue_id = %id, "no log for this message: its outcome is not recorded");
            return Ok(());
        };
        let appended = if settled == Settled::Done {
            committer.settle(record_id(id))
        } else {
            let mut state = self.recording.state.borrow_mut();
            state.clear();
            if !self.queue.borrow().state(key, &mut state) {
                return Ok(());
            }
            committer.outcome(record_id(id), &state)
        };
        match appended {
            Ok(ticket) => {
                if settled == Settled::Done {
                    self.note_settled(id);
                }
                self.recording.unrecorded.borrow_mut().push_back((id.shard, ticket, key));
                Ok(())
            }
            Err(AppendError::Full | AppendError::NotOpen) => Err(Refused::Full),
            Err(AppendError::NoSpace) => Err(Refused::NoSpace),
            // The process is leaving; the next start finds the outcome missing and tries again (at least once).
            Err(AppendError::Closed) => {
                self.recording.has_closed.set(true);
                Ok(())
            }
            Err(AppendError::Unknown) if settled == Settled::Done => {
                self.queue.borrow_mut().recorded(key);
                Ok(())
            }
            Err(reason) => {
                warn!(queue_id = %id, %reason, "an outcome could not be recorded");
                self.queue.borrow_mut().recorded(key);
                Ok(())
            }
        }
    }
}
