//! Offered mail on its way back: before a command or the end of its life changes it, it leaves the cluster's queue.
//!
//! Who wants mail back waits for the coordinator's word, which is `ringpost_cluster::offer`'s. Until then the mail stays offered, and
//! what a worker of the cluster has leased stays so for good.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use ringpost_queue::{MessageKey, QueueId, Settled};

use crate::{
    committer::Committer,
    control::{Answer, Recalled},
    shard::Shard,
};

/// Mail asked back in one go, and expired between other tasks.
pub(crate) const RECALLS_PER_TURN: usize = 256;

/// Of what is asked back, so much is told to the coordinator at a time: of a drain that was cut short it can be all mail of a long queue.
const RECALLS_PER_CALL: usize = 512;

/// What a shard has asked back.
#[derive(Default)]
pub(crate) struct Recalling {
    waiting: RefCell<HashMap<QueueId, Asked>>,
    /// Of that, what the coordinator has not got.
    unsent: RefCell<VecDeque<QueueId>>,
    /// Of these, what somebody waits for.
    urgent: RefCell<VecDeque<QueueId>>,
    waker: RefCell<Option<Waker>>,
    /// Its life has ended.
    overdue: Gathered<QueueId>,
    /// Out, and offered again as soon as what has ended of it is durable.
    parted: Gathered<MessageKey>,
    /// Of that, what waits until its log has room.
    crowded: Crowded<MessageKey>,
    /// Mail of an earlier run that shared, or was emptied: delivered here as soon as it is out.
    retracted: RefCell<HashSet<QueueId>>,
    /// All that was ever there, until it is asked for.
    found: RefCell<Vec<QueueId>>,
}

/// What comes together, for a task that sees to it together and ends when nothing is left.
struct Gathered<T> {
    items: RefCell<Vec<T>>,
    is_seen_to: Cell<bool>,
}

impl<T> Default for Gathered<T> {
    fn default() -> Self {
        Gathered { items: RefCell::default(), is_seen_to: Cell::default() }
    }
}

impl<T> Gathered<T> {
    /// True if the caller is to start the task.
    fn add(&self, item: T) -> bool {
        self.items.borrow_mut().push(item);
        !self.is_seen_to.replace(true)
    }

    /// The newest, at most so many.
    fn take(&self, items_max: usize) -> Vec<T> {
        let mut items = self.items.borrow_mut();
        let rest = items.len().saturating_sub(items_max);
        items.drain(rest..).collect()
    }

    /// Nothing is left: the task ends, and what comes next starts another.
    fn end(&self) {
        self.is_seen_to.set(false);
    }
}

/// What waits for logs that are full, each by itself: a disk that stays full keeps nothing that is in another log, or is on disk already.
struct Crowded<T>(RefCell<HashMap<u16, Vec<T>>>);

impl<T> Default for Crowded<T> {
    fn default() -> Self {
        Crowded(RefCell::default())
    }
}

impl<T> Crowded<T> {
    /// True if the caller is to wait for the log's room, and then [`Crowded::take`]: it is the first.
    fn add(&self, log: u16, item: T) -> bool {
        let mut logs = self.0.borrow_mut();
        let waiting = logs.entry(log).or_default();
        waiting.push(item);
        waiting.len() == 1
    }

    /// All that waits for a log.
    fn take(&self, log: u16) -> Vec<T> {
        self.0.borrow_mut().remove(&log).unwrap_or_default()
    }
}

/// A message that is asked back.
#[derive(Default)]
struct Asked {
    waits: Vec<Rc<Wait>>,
    /// The coordinator has it.
    is_sent: bool,
}

/// Somebody who waits for answers.
struct Wait {
    left: Cell<usize>,
    answers: RefCell<HashMap<QueueId, Recalled>>,
    waker: RefCell<Option<Waker>>,
}

impl Recalling {
    fn ask(&self, id: QueueId, wait: Option<Rc<Wait>>) {
        let mut waiting = self.waiting.borrow_mut();
        let asked = waiting.entry(id).or_insert_with(|| {
            self.unsent.borrow_mut().push_back(id);
            Asked::default()
        });
        // Where somebody waits it is about some mail, and now; the rest can be a long queue, of which this may be a part.
        if wait.is_some() && !asked.is_sent && asked.waits.is_empty() {
            self.urgent.borrow_mut().push_back(id);
        }
        asked.waits.extend(wait);
        drop(waiting);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// It is asked back, and there is no answer yet.
    pub(crate) fn is_wanted(&self, id: QueueId) -> bool {
        self.waiting.borrow().contains_key(&id)
    }

    /// The next of what the coordinator has not got.
    fn unsent(&self) -> Vec<QueueId> {
        let (mut waiting, mut urgent, mut unsent) = (self.waiting.borrow_mut(), self.urgent.borrow_mut(), self.unsent.borrow_mut());
        let mut next = std::iter::from_fn(|| urgent.pop_front().or_else(|| unsent.pop_front()));
        let mut told = Vec::with_capacity(RECALLS_PER_CALL.min(waiting.len()));
        while told.len() < RECALLS_PER_CALL
            && let Some(id) = next.next()
        {
            // What was urgent stands in the other list as well.
            if waiting.get_mut(&id).is_some_and(|asked| !std::mem::replace(&mut asked.is_sent, true)) {
                told.push(id);
            }
        }
        // What is left is something to tell, or nothing: who asks takes an empty answer for the end of the shard.
        while unsent.front().is_some_and(|id| waiting.get(id).is_none_or(|asked| asked.is_sent)) {
            unsent.pop_front();
        }
        told
    }

    /// Mail of an earlier run, found offered by a node that would not offer it.
    pub(crate) fn retract(&self, id: QueueId) {
        self.retracted.borrow_mut().insert(id);
        self.found.borrow_mut().push(id);
        self.ask(id, None);
    }
}

impl Shard {
    /// Asks mail back that is offered, all of which answers. What has none (the shard ends) is as offered as before.
    pub(crate) async fn recall(&self, ids: &[QueueId]) -> HashMap<QueueId, Recalled> {
        let distinct: HashSet<QueueId> = ids.iter().copied().collect();
        let wait = Rc::new(Wait { left: Cell::new(distinct.len()), answers: RefCell::default(), waker: RefCell::default() });
        for id in distinct {
            self.recalling.ask(id, Some(wait.clone()));
        }
        let key = self.life_of_task().await;
        poll_fn(|cx| {
            if wait.left.get() == 0 || self.is_ending() {
                return Poll::Ready(());
            }
            wait.waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
        self.forget_waiter(key);
        wait.answers.take()
    }

    /// Waits until something is wanted back.
    pub(crate) async fn take_recalls(self: Rc<Self>) -> Answer {
        let key = self.life_of_task().await;
        poll_fn(|cx| {
            if self.is_ending() || !self.recalling.unsent.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.recalling.waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
        self.forget_waiter(key);
        Answer::Recalls(self.recalling.unsent())
    }

    /// The coordinator's word about mail that was wanted back.
    pub(crate) fn recalled(&self, answers: Vec<(QueueId, Recalled)>) {
        let mut retracted = Vec::new();
        for (id, answer) in answers {
            if self.recalling.retracted.borrow_mut().remove(&id) && answer == Recalled::Out {
                retracted.push(id);
            }
            let Asked { waits, .. } = self.recalling.waiting.borrow_mut().remove(&id).unwrap_or_default();
            for wait in waits {
                wait.answers.borrow_mut().insert(id, answer);
                wait.left.set(wait.left.get().saturating_sub(1));
                if wait.left.get() == 0
                    && let Some(waker) = wait.waker.take()
                {
                    waker.wake();
                }
            }
        }
        self.deliver_here(&retracted);
        if self.recalling.retracted.borrow().is_empty() {
            self.wake_life();
        }
    }

    /// Waits until all mail of an earlier run that is wanted back has its answer, and the coordinator has heard of all that may have been offered; says which
    /// that was.
    pub(crate) async fn retracted(self: Rc<Self>) -> Answer {
        self.loaded().await;
        let key = self.life_of_task().await;
        let is_over = || self.recalling.retracted.borrow().is_empty() && !self.has_kept();
        poll_fn(|_| if is_over() || self.is_ending() { Poll::Ready(()) } else { Poll::Pending }).await;
        self.forget_waiter(key);
        if self.is_ending() { Answer::Failed("the shard ends".to_owned()) } else { Answer::Retracted(self.recalling.found.take()) }
    }

    /// Mail that was asked back and is out goes on: here, or offered again where this node delivers nothing.
    ///
    /// What has ended of it is durable before the rest is offered. Another node can have the rest in milliseconds, and then this one
    /// settles what its records say is open.
    pub(crate) fn after_recall(self: &Rc<Self>, key: MessageKey) {
        let now = self.now_ms();
        if self.config().delivery.deliver {
            self.queue.borrow_mut().take_back(key, now);
            return;
        }
        self.offer_when_durable(key);
    }

    fn offer_when_durable(self: &Rc<Self>, key: MessageKey) {
        if self.recalling.parted.add(key) {
            self.see_to(async |shard| shard.offer_parted().await);
        }
    }

    /// Starts the task that sees to what is gathered, when what comes at the same time has come.
    fn see_to(self: &Rc<Self>, work: impl AsyncFnOnce(Rc<Shard>) + 'static) {
        let shard = self.clone();
        self.ring
            .spawn(async move {
                shard.ring.yield_now().await;
                work(shard).await;
            })
            .detach();
    }

    async fn offer_parted(self: &Rc<Self>) {
        while !self.is_ending() {
            let parted = self.recalling.parted.take(usize::MAX);
            if parted.is_empty() {
                break;
            }
            self.records_durable().await;
            if !self.keeps_records() {
                break;
            }
            let unwritten = self.unwritten();
            for key in parted {
                match unwritten.get(&key).and_then(|&log| Some((log, self.committer_of(log)?))) {
                    None => self.offer_what_is_open(key),
                    // Not before the disk has room for it.
                    Some((log, full)) => self.offer_with_room(log, full, key),
                }
            }
        }
        self.recalling.parted.end();
    }

    /// As [`Shard::offer_when_durable`], once there may be room in this log.
    fn offer_with_room(self: &Rc<Self>, log: u16, full: Rc<Committer>, key: MessageKey) {
        if self.recalling.crowded.add(log, key) {
            let shard = self.clone();
            self.ring
                .spawn(async move {
                    full.room().await;
                    let keys = shard.recalling.crowded.take(log);
                    keys.into_iter().for_each(|key| shard.offer_when_durable(key));
                })
                .detach();
        }
    }

    /// Brings a message into the cluster's queue (again), unless nothing of it is left to offer.
    pub(crate) fn offer_what_is_open(&self, key: MessageKey) {
        let id = {
            let queue = self.queue.borrow();
            queue.show(key).filter(|view| view.is_given_out() && view.is_open()).map(|view| view.envelope().id)
        };
        if let Some(id) = id {
            self.offer_soon(id);
        }
    }

    /// The life of an offered message has ended. It fails here once it is out of the cluster's queue.
    pub(crate) fn overdue(self: &Rc<Self>, key: MessageKey) {
        let Some(id) = self.queue.borrow().envelope(key).map(|envelope| envelope.id) else { return };
        if self.recalling.overdue.add(id) {
            self.see_to(async |shard| shard.expire_overdue().await);
        }
    }

    async fn expire_overdue(self: &Rc<Self>) {
        while !self.is_ending() {
            let ids = self.recalling.overdue.take(RECALLS_PER_TURN);
            if ids.is_empty() {
                break;
            }
            let answers = self.recall(&ids).await;
            for (id, _) in answers.into_iter().filter(|(_, answer)| *answer == Recalled::Out) {
                let Some(key) = self.queue.borrow().key_of(id) else { continue };
                let expired = self.queue.borrow_mut().expire_offered(key, self.now_ms(), &mut Vec::new()).unwrap_or_default();
                if !expired.is_empty() {
                    self.log_expiry(key, expired);
                    self.persist(key, Settled::Outcome);
                }
                self.after_recall(key);
            }
            self.delivery.kick();
            self.backlog_written().await;
        }
        self.recalling.overdue.end();
    }
}

#[cfg(test)]
mod tests {
    use ringpost_queue::Filter;

    use super::*;
    use crate::test_shard::{accept, empty, fill, run, take_turns};

    /// It waited behind mail whose log was full until that had room; and before, that mail was offered with what had ended of it on no disk.
    #[test]
    fn what_waits_for_a_full_log_is_not_offered_and_keeps_nothing_else_from_it() {
        run(async |shard| {
            let (waits, key) = accept(&shard, &["b@y.test", "c@z.test"]).await;
            let (goes, other) = accept(&shard, &["b@y.test"]).await;
            assert_eq!(shard.offering.take_unsent(), [waits, goes]);
            let fillers = fill(&shard).await;
            let one = Filter { recipient_domain: Some("z.test".into()), ..Filter::default() };
            let settled = shard.queue.borrow_mut().purge(key, &one, shard.now_ms(), &mut Vec::new()).unwrap();
            shard.persist(key, settled);
            shard.after_recall(key);
            take_turns(&shard).await;
            assert_eq!(shard.offering.take_unsent(), []);
            shard.after_recall(other);
            take_turns(&shard).await;
            assert_eq!(shard.offering.take_unsent(), [goes]);
            empty(&shard, &fillers).await;
            loop {
                match shard.offering.take_unsent().as_slice() {
                    [] => shard.own.room().await,
                    offered => return assert_eq!(offered, [waits]),
                }
            }
        });
    }

    /// All mail of a queue that a drain was cut short with came in one answer, and what somebody waits for behind it.
    #[test]
    fn what_is_asked_back_is_told_a_part_at_a_time_and_what_somebody_waits_for_first() {
        let (recalling, id) = (Recalling::default(), |sequence| QueueId { boot: 1, shard: 0, sequence });
        (0..1000).for_each(|sequence| recalling.retract(id(sequence)));
        let wait = Wait { left: Cell::new(1), answers: RefCell::default(), waker: RefCell::default() };
        let wait = Rc::new(wait);
        // One of them, and one that nobody had asked back.
        recalling.ask(id(999), Some(wait.clone()));
        recalling.ask(id(5000), Some(wait));
        let told: Vec<Vec<QueueId>> = std::iter::from_fn(|| Some(recalling.unsent()).filter(|ids| !ids.is_empty())).collect();
        assert_eq!(told.iter().map(Vec::len).collect::<Vec<_>>(), [512, 489]);
        assert_eq!(told[0][..2], [id(999), id(5000)]);
        assert_eq!(told.concat().len(), 1001);
        assert!(recalling.is_wanted(id(999)));
    }

    /// An answer with nothing in it was the end of the shard to the coordinator, which asked no more.
    #[test]
    fn nothing_is_left_to_tell_once_all_has_been_told() {
        let (recalling, id) = (Recalling::default(), |sequence| QueueId { boot: 1, shard: 0, sequence });
        let wait = || Some(Rc::new(Wait { left: Cell::new(1), answers: RefCell::default(), waker: RefCell::default() }));
        (0..RECALLS_PER_CALL as u64).for_each(|sequence| recalling.ask(id(sequence), wait()));
        assert_eq!(recalling.unsent().len(), RECALLS_PER_CALL);
        assert!(recalling.unsent.borrow().is_empty());
        (1000..1000 + RECALLS_PER_CALL as u64).for_each(|sequence| recalling.retract(id(sequence)));
        recalling.ask(id(999 + RECALLS_PER_CALL as u64), wait());
        assert_eq!(recalling.unsent().len(), RECALLS_PER_CALL);
        assert!(recalling.unsent.borrow().is_empty());
    }
}
