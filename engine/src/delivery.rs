//! Between the queue and the connections: starts the attempts that the queue allows, and takes in what became of them.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use ringpost_queue::{Dispatch, Settled, Verdict as DnsVerdict, Via, Work};
use ringpost_ring::{Deadline, Ring};
use ringpost_smtp::{client::Verdict, reply::Reply};

use crate::{
    attempt::{Attempt, AttemptStorage, RecipientOutcome},
    dialing, mailbox_delivery,
    pool::Acquired,
    shard::Shard,
    shared_limits::LimitAsk,
};

/// Attempts begun in one go before other tasks get their turn.
const STARTS_PER_TURN: usize = 256;
/// Attempt storages kept; more attempts than this at once allocate.
const SPARE_MAX: usize = 256;

/// What the delivery of a shard keeps.
pub struct Delivery {
    deadline: Deadline,
    waker: RefCell<Option<Waker>>,
    kicked: Cell<bool>,
    /// Attempts under way, connecting ones included.
    attempts: Cell<usize>,
    record: RefCell<Vec<u8>>,
    /// Storage of ended attempts for new ones.
    spare: RefCell<Vec<AttemptStorage>>,
}

impl Delivery {
    /// Nothing under way.
    pub fn new(ring: &Ring) -> Self {
        Delivery {
            deadline: ring.deadline(),
            waker: RefCell::default(),
            kicked: Cell::new(true),
            attempts: Cell::default(),
            record: RefCell::default(),
            spare: RefCell::default(),
        }
    }

    /// Empty storage for an attempt.
    pub(crate) fn storage(&self) -> AttemptStorage {
        self.spare.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps the storage of an ended attempt for another.
    pub(crate) fn keep_storage(&self, storage: AttemptStorage) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAX {
            spare.push(storage);
        }
    }

    /// The queue changed, or room came: look again.
    pub fn kick(&self) {
        if !self.kicked.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// No attempt is under way.
    pub fn is_quiet(&self) -> bool {
        self.attempts.get() == 0
    }

    /// An attempt begins.
    pub(crate) fn attempt_began(&self) {
        self.attempts.set(self.attempts.get() + 1);
    }

    /// An attempt was given back to the queue.
    pub(crate) fn attempt_ended(&self, shard: &Shard) {
        self.attempts.set(self.attempts.get() - 1);
        if shard.is_ending() {
            shard.wake_life();
        }
        self.kick();
    }
}

impl Shard {
    /// The delivery's task: polls the queue whenever something changed or a time has come.
    pub(crate) async fn deliver(self: Rc<Self>) {
        poll_fn(|cx| {
            self.delivery.waker.replace(Some(cx.waker().clone()));
            self.delivery.kicked.set(false);
            self.drain_backlog();
            self.record_gathered();
            let more = self.start_attempts();
            self.tell_changes();
            if self.shards > 1 {
                self.end_what_is_out();
                self.tend_guests();
            }
            if self.delivery.kicked.get() || more {
                // Others first: what they do may fill the connections that this would open.
                self.delivery.kicked.set(true);
                cx.waker().wake_by_ref();
                return Poll::<()>::Pending;
            }
            // What ends the state in which none may be begun kicks: room in a log, the end of an attempt.
            let due = match self.may_attempt() {
                true => [self.queue.borrow().next_due(self.now_ms()), self.out_ends_at()],
                false => [None; 2],
            };
            let due = due.into_iter().flatten().map(|due| self.clock.instant_of(due));
            if let Some(due) = due.chain(self.recording.next_due()).min() {
                self.delivery.deadline.set(due);
            } else {
                self.delivery.deadline.clear();
            }
            if self.delivery.deadline.poll_expired(cx).is_ready() {
                self.delivery.kicked.set(true);
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
    }

    /// May attempts be begun? Not while their outcomes could not be recorded (S15).
    pub(crate) fn may_attempt(&self) -> bool {
        !self.is_ending() && self.recording.has_room()
    }

    /// Returns whether there may be more to start.
    fn start_attempts(self: &Rc<Self>) -> bool {
        for _ in 0..STARTS_PER_TURN {
            if !self.may_attempt() {
                return false;
            }
            let mut record = self.delivery.record.borrow_mut();
            record.clear();
            let work = self.queue.borrow_mut().poll(self.now_ms(), &mut record);
            drop(record);
            match work {
                None => return false,
                Some(Work::Expired(key, recipients)) => {
                    self.log_expiry(key, recipients);
                    self.persist(key, Settled::Outcome);
                }
                Some(Work::Overdue(key)) => self.overdue(key),
                Some(Work::Report(key)) => self.start_report(key),
                Some(Work::Attempt(dispatch)) => self.start_attempt(dispatch),
                Some(Work::Resolve(lookup)) => {
                    let asking = lookup.asking;
                    if !(self.ask_dns)(lookup) {
                        self.metrics.lookups_put_off.increment();
                        self.queue.borrow_mut().not_asked(asking, self.now_ms());
                    }
                }
                Some(Work::Reserve(reservation)) => {
                    let destination = reservation.destination;
                    if !(self.ask_limits)(LimitAsk::Reserve(reservation)) {
                        self.metrics.reservations_put_off.increment();
                        self.queue.borrow_mut().not_reserved(destination, self.now_ms());
                    }
                }
            }
        }
        true
    }

    fn start_attempt(self: &Rc<Self>, dispatch: Dispatch) {
        self.delivery.attempt_began();
        if let Some(home) = dispatch.home() {
            return self.send_home(dispatch, home);
        }
        let (discards, maildir) = match self.queue.borrow().via(dispatch.destination()) {
            Via::Discard => (true, None),
            Via::Maildir { path, unknown } => (false, Some((path.clone(), *unknown))),
            _ => (false, None),
        };
        if let Some((path, unknown)) = maildir {
            self.ring.spawn(mailbox_delivery::deliver(self.clone(), dispatch, path, unknown)).detach();
            return;
        }
        if discards {
            let mut attempt = Attempt::new(dispatch, self.delivery.storage());
            attempt.storage.recipients.extend(self.queue.borrow().recipients(&attempt.dispatch).map(|(number, _)| number));
            attempt.decide_all(Verdict::Delivered, Reply::local("250 2.0.0 discarded by route"));
            self.settle_attempt(attempt, "discard");
            return;
        }
        let verdict = self.queue.borrow().verdict(&dispatch);
        match verdict {
            None => {}
            Some(DnsVerdict::Unanswered) => return self.attempt_unreachable(dispatch),
            Some(DnsVerdict::Refused(reply)) => {
                let mut attempt = Attempt::new(dispatch, self.delivery.storage());
                attempt.storage.recipients.extend(self.queue.borrow().recipients(&attempt.dispatch).map(|(number, _)| number));
                attempt.decide_all(Verdict::Failed, Reply::local(&reply));
                return self.settle_attempt(attempt, "none");
            }
        }
        let destination = dispatch.destination();
        let limits = self.pool_limits(destination);
        match self.pool.acquire(destination, dispatch, &limits) {
            Acquired::Handed => {}
            Acquired::Seated(dispatch, seat) => {
                self.ring.spawn(dialing::deliver(self.clone(), dispatch, seat)).detach();
            }
            Acquired::Waits(waiting) => {
                self.ring.spawn(dialing::wait_and_deliver(self.clone(), waiting, limits.wait_timeout)).detach();
            }
        }
    }

    /// Takes in what an attempt came to: mail log, queue, spool.
    pub(crate) fn settle_attempt(&self, attempt: Attempt, relay: &str) {
        if attempt.dispatch.is_guest() {
            return self.settle_guest(attempt, false, relay);
        }
        self.log_outcomes(&attempt.dispatch, &attempt.storage.outcomes, relay, self.now_ms());
        self.settle_logged(attempt, relay);
    }

    /// As [`Shard::settle_attempt`], of what the mail log has already.
    pub(crate) fn settle_logged(&self, attempt: Attempt, relay: &str) {
        if attempt.dispatch.is_guest() {
            return self.settle_guest(attempt, true, relay);
        }
        let now = self.now_ms();
        let key = attempt.dispatch.key();
        let Attempt { dispatch, storage, .. } = attempt;
        let settled = {
            let mut record = self.delivery.record.borrow_mut();
            record.clear();
            let mut queue = self.queue.borrow_mut();
            match &*storage.outcomes {
                // The usual case needs no list.
                [only] => queue.settle_by(dispatch, &[(only.recipient, only.outcome())], relay, now, &mut record),
                many => {
                    let outcomes: Vec<_> = many.iter().map(|outcome| (outcome.recipient, outcome.outcome())).collect();
                    queue.settle_by(dispatch, &outcomes, relay, now, &mut record)
                }
            }
        };
        self.log_undecided(key, &storage, relay, now);
        self.persist(key, settled);
        self.delivery.keep_storage(storage);
        self.delivery.attempt_ended(self);
    }

    /// Takes in `outcomes` of some recipients of an attempt whose other recipients are still under way. They come back when those of a
    /// guest cannot be told to its owner just now.
    pub(crate) fn settle_some(
        &self,
        dispatch: &mut Dispatch,
        outcomes: Vec<RecipientOutcome>,
        relay: &str,
    ) -> Result<(), Vec<RecipientOutcome>> {
        if dispatch.is_guest() {
            return self.tell_owner(dispatch, outcomes, false, relay);
        }
        self.log_outcomes(dispatch, &outcomes, relay, self.now_ms());
        self.settle_some_logged(dispatch, outcomes, relay)
    }

    /// As [`Shard::settle_some`], of what the mail log has already.
    pub(crate) fn settle_some_logged(
        &self,
        dispatch: &mut Dispatch,
        outcomes: Vec<RecipientOutcome>,
        relay: &str,
    ) -> Result<(), Vec<RecipientOutcome>> {
        if dispatch.is_guest() {
            return self.tell_owner(dispatch, outcomes, true, relay);
        }
        let now = self.now_ms();
        let settled = {
            let mut record = self.delivery.record.borrow_mut();
            record.clear();
            let outcomes: Vec<_> = outcomes.iter().map(|outcome| (outcome.recipient, outcome.outcome())).collect();
            self.queue.borrow_mut().settle_some(dispatch, &outcomes, relay, now, &mut record)
        };
        self.persist(dispatch.key(), settled);
        self.delivery.kick();
        Ok(())
    }

    /// No host could be reached: the message waits in its destination's ready queue.
    pub(crate) fn attempt_unreachable(&self, dispatch: Dispatch) {
        if dispatch.is_guest() {
            return self.guest_unreachable(dispatch);
        }
        let key = dispatch.key();
        self.log_unreachable(&dispatch);
        let settled = {
            let mut record = self.delivery.record.borrow_mut();
            record.clear();
            self.queue.borrow_mut().unreachable(dispatch, self.now_ms(), &mut record)
        };
        self.persist(key, settled);
        self.delivery.attempt_ended(self);
    }

    /// The destination takes no further connection, or not all of its hosts were tried: the message waits for another home, for a
    /// connection or for the next host, and nothing is counted.
    pub(crate) fn attempt_put_off(&self, dispatch: Dispatch) {
        if dispatch.is_guest() {
            return self.guest_put_off(dispatch);
        }
        self.attempt_abandoned(dispatch);
    }

    /// The attempt was not made.
    pub(crate) fn attempt_abandoned(&self, dispatch: Dispatch) {
        if dispatch.is_guest() {
            return self.guest_abandoned(dispatch);
        }
        let key = dispatch.key();
        let settled = self.queue.borrow_mut().abandon(dispatch, self.now_ms());
        self.persist(key, settled);
        self.delivery.attempt_ended(self);
    }
}
