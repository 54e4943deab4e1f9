//! The work queue for work of any kind: items in, items leased, completed or failed, by anybody who has the cluster's key.
//!
//! [`ItemQueue`] is [`WorkQueue`] with the partitions taken care of. Delivery uses [`WorkQueue`] itself, since it has to know of each partition
//! whether it answers.

use std::{
    collections::BTreeMap,
    mem::discriminant,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use tracing::warn;

use crate::{
    identity::NodeId,
    valkey::random_u64,
    work_item::{ItemError, NewItem, is_item_id},
    work_queue::{
        Completed, Enqueued, Failed, ITEMS_PER_CALL, Known, LEASE_DATA_BYTES_MAX, LEASE_MAX_MS, Leased, QueueError, QueueStats, Retry,
        Tally, WorkQueue,
    },
};

/// Leases that an item may have where nothing else is said.
pub const ATTEMPTS_MAX: u32 = 3;
/// The most data of one item.
pub const WORK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// With so much data no more is leased in one [`ItemQueue::dequeue`]; the last call can bring as much again.
pub const DEQUEUE_BYTES_MAX: usize = LEASE_DATA_BYTES_MAX;
/// What failed comes again within this after its first lease, and within twice as long after each further one.
pub const BACK_OFF_BASE: Duration = Duration::from_secs(30);
/// But within this.
pub const BACK_OFF_CAP: Duration = Duration::from_secs(3600);
/// The priority of an item of which nothing is said.
pub const PRIORITY: u8 = 5;

/// Work to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Work {
    /// 1 to 128 letters, digits, '.', ':', '_' and '-'. Enqueued twice under one id it is there once.
    pub id: String,
    /// 0 first, 9 last.
    pub priority: u8,
    /// What the worker gets, [`WORK_BYTES_MAX`] at most; above 1 KiB it is compressed on its way.
    pub data: Vec<u8>,
    /// Leases that may end without an answer, or with a failure, before it is a dead letter.
    pub max_attempts: u32,
    /// Not before so long from now.
    pub delay: Duration,
    /// Not after so long from now; zero: always.
    pub expires_in: Duration,
}

impl Work {
    /// To be done soon, [`ATTEMPTS_MAX`] times at most.
    pub fn new(id: impl Into<String>, data: impl Into<Vec<u8>>) -> Work {
        let (delay, expires_in) = (Duration::ZERO, Duration::ZERO);
        Work { id: id.into(), priority: PRIORITY, data: data.into(), max_attempts: ATTEMPTS_MAX, delay, expires_in }
    }
}

/// Work that this process has leased.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkItem {
    /// Its name.
    pub id: String,
    /// The queue's name: of one queue all items are of one kind.
    pub kind: String,
    /// 0 first, 9 last.
    pub priority: u8,
    /// As it was enqueued.
    pub data: Vec<u8>,
    /// Unix milliseconds, by the server's clock, as the others.
    pub created_at: u64,
    /// When it was due last: when it was enqueued, or after its delay, a failure or the end of another's lease.
    pub scheduled_at: u64,
    /// Leases so far, this one included.
    pub attempts: u32,
    /// Leases at most.
    pub max_attempts: u32,
    /// The node that enqueued it, and is told how it ended.
    pub owner: NodeId,
    /// When others may lease it, if it is neither ended nor extended before.
    pub lease_expiry: u64,
    /// What complete, fail and extend have to present.
    pub token: String,
}

/// Items of one lease that this process cannot read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unread {
    /// Why; of several of one kind the first.
    pub reason: ItemError,
    /// The name of that one.
    pub first: String,
    /// How many of that kind.
    pub count: u64,
}

impl Unread {
    fn count(kinds: &mut Vec<Unread>, reason: &ItemError, id: &str) {
        match kinds.iter_mut().find(|kind| discriminant(&kind.reason) == discriminant(reason)) {
            Some(kind) => kind.count += 1,
            None => kinds.push(Unread { reason: reason.clone(), first: id.to_owned(), count: 1 }),
        }
    }
}

/// A queue of work of one kind. Cheap to clone are its parts, not it: make one a task, or share it.
///
/// A lease runs for its time and no longer: a worker that needs more extends it ([`ItemQueue::extend_lease`]) well before it ends. What ran out
/// comes to whoever leases next and finds less than it asked for, or after [`ItemQueue::recover_expired_leases`]. An item is done at least once,
/// and twice where a lease ran out under its worker; which of two may say so is told by the token.
///
/// What was completed is remembered for the item's owner until it has asked ([`ItemQueue::settle`]): an owner that never does fills the queue,
/// of whose capacity such outcomes take half at most.
///
/// ```no_run
/// use std::time::Duration;
/// use ringpost_cluster::{
///     identity::Incarnation, item_queue::{ItemQueue, Work}, keyspace::Keyspace, target::Target, valkey::Valkey, work_item::ItemKey,
///     work_queue::{QueueBounds, WorkQueue},
/// };
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let valkey = Valkey::new(Target::parse("valkey://127.0.0.1:6379", None, None)?);
/// let bounds = QueueBounds { partitions: 4, capacity: 100_000, dead_max: 1_000 };
/// let me = Incarnation::of_this_process("n1".parse()?);
/// let keyspace = Keyspace::new("ringpost:cluster")?;
/// let queue = ItemQueue::new(WorkQueue::new(valkey, keyspace, "report", bounds, ItemKey::new(b"the cluster's key"), me)?);
///
/// queue.enqueue(&[Work::new("2026-11-29", "yesterday's figures")]).await?;
/// for item in queue.dequeue(10, Duration::from_secs(30)).await? {
///     match std::str::from_utf8(&item.data) {
///         Ok(_text) => drop(queue.complete(&item, "done").await?),
///         Err(reason) => drop(queue.back_off(&item.id, &item.token, &reason.to_string()).await?),
///     }
/// }
/// for known in queue.settle(&["2026-11-29"]).await {
///     println!("{:?}", known?);
/// }
/// # Ok(())
/// # }
/// ```
pub struct ItemQueue {
    queue: WorkQueue,
    /// Where the next lease begins to look.
    next: AtomicU16,
}

impl ItemQueue {
    /// Over all partitions of `queue`. Which is the first to be leased of is chance: who makes one for each call has its turn with all of them.
    pub fn new(queue: WorkQueue) -> ItemQueue {
        let first = u16::try_from(random_u64() % u64::from(queue.bounds().partitions)).expect("below the number of partitions");
        ItemQueue { queue: queue.untold(), next: AtomicU16::new(first) }
    }

    /// Adds work, and answers for each item in turn. Where there is no room, leases that ran out are taken back and the oldest outcomes beyond half of the
    /// capacity forgotten first. After an error some of it may be there: it is safe to repeat.
    pub async fn enqueue(&self, work: &[Work]) -> Result<Vec<Enqueued>, QueueError> {
        let mut groups: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (index, work) in work.iter().enumerate() {
            if work.data.len() > WORK_BYTES_MAX {
                return Err(ItemError::TooLarge(work.data.len()).into());
            }
            groups.entry(self.queue.partition(&work.id)).or_default().push(index);
        }
        let mut answers = vec![Enqueued::Full; work.len()];
        for (partition, indexes) in groups {
            for indexes in indexes.chunks(ITEMS_PER_CALL) {
                let items: Vec<NewItem> = indexes.iter().map(|index| self.new_item(&work[*index])).collect();
                let (_, mut of_call) = self.queue.enqueue(partition, &items).await?;
                if of_call.contains(&Enqueued::Full) {
                    // Nobody else may cut outcomes to their half: an owner that asks for none would fill the queue for ever.
                    self.queue.recover(partition, 0).await?;
                    // What came in with the first call can be done and forgotten by now: sent again it would be done twice.
                    let left: Vec<NewItem> =
                        std::iter::zip(items, &of_call).filter(|(_, answer)| **answer == Enqueued::Full).map(|(item, _)| item).collect();
                    let (_, again) = self.queue.enqueue(partition, &left).await?;
                    of_call.iter_mut().filter(|answer| **answer == Enqueued::Full).zip(again).for_each(|(answer, again)| *answer = again);
                }
                indexes.iter().zip(of_call).for_each(|(index, answer)| answers[*index] = answer);
            }
        }
        Ok(answers)
    }

    fn new_item(&self, work: &Work) -> NewItem {
        NewItem {
            id: work.id.clone(),
            owner: self.queue.owner().clone(),
            priority: work.priority,
            max_attempts: work.max_attempts,
            delay_ms: millis(work.delay),
            expires_in_ms: millis(work.expires_in),
            data: work.data.clone(),
        }
    }

    /// Leases up to `count` items for so long (five minutes at most; extend it), fewer where they are large ([`DEQUEUE_BYTES_MAX`]). What this process
    /// cannot read is given back for a minute and left out; a warning says so. That costs no attempt where it is signed with another key, or of a later
    /// version: whoever can read it has them all, and where that is nobody its owner is told ([`Known::Unreadable`], by a worker with the owner's key).
    /// What nobody has read for five days since costs one with each further lease, and is a dead letter once they are used up. Of each partition those of
    /// the lowest priority number come first; which partition does is chance. A partition that has fewer than are asked for takes back leases that
    /// ran out, up to 128, and is asked once more.
    ///
    /// With the first partition that does not answer it returns what it has, of which the time runs; while that is nothing it goes on to the others.
    /// Fails when nothing was leased and a partition did not answer, which can have something.
    pub async fn dequeue(&self, count: usize, lease: Duration) -> Result<Vec<WorkItem>, QueueError> {
        self.dequeue_and_unread(count, lease).await.map(|(items, _)| items)
    }

    /// The same, with what was left out: who has another key than the owners gets nothing else, and would take the queue for empty.
    pub async fn dequeue_and_unread(&self, count: usize, lease: Duration) -> Result<(Vec<WorkItem>, Vec<Unread>), QueueError> {
        let (mut items, mut unread) = (Vec::new(), Vec::new());
        let ended = self.lease_in_turn(count, lease, &mut items, &mut unread).await;
        for Unread { reason, first, count } in &unread {
            warn!(queue = self.queue.name(), first, %reason, count, "items of the queue that were leased cannot be read here: they are given back for a minute");
        }
        ended.map(|()| (items, unread))
    }

    async fn lease_in_turn(
        &self,
        count: usize,
        lease: Duration,
        items: &mut Vec<WorkItem>,
        unread: &mut Vec<Unread>,
    ) -> Result<(), QueueError> {
        let partitions = self.queue.bounds().partitions;
        let first = self.next.fetch_add(1, Ordering::Relaxed) % partitions;
        let mut failed = None;
        for partition in (first..partitions).chain(0..first) {
            let mut is_swept = false;
            // What is much more than others have comes in several calls.
            while items.len() < count && items.iter().map(|item: &WorkItem| item.data.len()).sum::<usize>() < DEQUEUE_BYTES_MAX {
                let asked = (count - items.len()).min(ITEMS_PER_CALL);
                let more = match self.lease(partition, asked, lease, items, unread).await {
                    // Nobody else may look for what dead workers had: it comes to whoever has nothing else to do. Without jitter, as each takes
                    // no more than it asks for.
                    Ok(leased) if leased < asked && !is_swept => {
                        is_swept = true;
                        self.queue.recover(partition, 0).await.map(|swept| swept.waiting > 0)
                    }
                    leased => leased.map(|leased| leased == ITEMS_PER_CALL),
                };
                match more {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) if !items.is_empty() => return Ok(()),
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
        }
        match failed {
            Some(error) if items.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns how many were leased, of which those that can be read are among `items` now, and the others among `unread`.
    async fn lease(
        &self,
        partition: u16,
        count: usize,
        lease: Duration,
        items: &mut Vec<WorkItem>,
        unread: &mut Vec<Unread>,
    ) -> Result<usize, QueueError> {
        // What it is told is what it has.
        let lease_ms = millis(lease).clamp(1, LEASE_MAX_MS);
        let (_, leased) = self.queue.lease(partition, count, lease_ms, lease_ms, WORK_BYTES_MAX).await?;
        let leases = leased.len();
        for Leased { id, owner, priority, attempts, max_attempts, created_ms, scheduled_ms, leased_ms, token, data, .. } in leased {
            match data {
                Ok(data) => items.push(WorkItem {
                    id,
                    kind: self.queue.name().to_owned(),
                    priority,
                    data,
                    created_at: created_ms,
                    scheduled_at: scheduled_ms,
                    attempts,
                    max_attempts,
                    owner,
                    lease_expiry: leased_ms.saturating_add(lease_ms),
                    token,
                }),
                Err(reason) => {
                    Unread::count(unread, &reason, &id);
                    // Unheard, its lease runs out, and counts.
                    drop(self.queue.fail(&id, &token, unread_retry(&reason), &self.queue.unread(&reason)).await);
                }
            }
        }
        Ok(leases)
    }

    /// It is done; the owner is told `result`. [`Completed::Stale`]: the lease is another's by now, and so is the work.
    pub async fn complete(&self, item: &WorkItem, result: &str) -> Result<Completed, QueueError> {
        self.complete_by(&item.id, &item.token, result).await
    }

    /// The same, where only id and token are left.
    pub async fn complete_by(&self, id: &str, token: &str, result: &str) -> Result<Completed, QueueError> {
        check(id)?;
        let (_, answers) = self.queue.complete(self.queue.partition(id), &[(id, token, result)]).await?;
        Ok(answers[0])
    }

    /// It was not done: it waits for `delay` and is leased again, or with `retry` false, or with its attempts used up, is a dead letter.
    pub async fn fail(&self, item: &WorkItem, retry: bool, delay: Duration, reason: &str) -> Result<Failed, QueueError> {
        self.fail_by(&item.id, &item.token, retry, delay, reason).await
    }

    /// It was not done: it waits for a time by chance and by its attempts, at most [`BACK_OFF_BASE`] after the first, twice as long after each further
    /// one, [`BACK_OFF_CAP`] at most, and is leased again; with its attempts used up it is a dead letter.
    pub async fn back_off(&self, id: &str, token: &str, reason: &str) -> Result<Failed, QueueError> {
        check(id)?;
        let retry = Retry::BackOff { base_ms: millis(BACK_OFF_BASE), cap_ms: millis(BACK_OFF_CAP) };
        self.queue.fail(id, token, retry, reason).await
    }

    /// As [`ItemQueue::fail`], where only id and token are left.
    pub async fn fail_by(&self, id: &str, token: &str, retry: bool, delay: Duration, reason: &str) -> Result<Failed, QueueError> {
        check(id)?;
        let retry = if retry { Retry::Counted(millis(delay)) } else { Retry::Never };
        self.queue.fail(id, token, retry, reason).await
    }

    /// The lease runs for so long from now (five minutes at most); false: it is another's by now.
    pub async fn extend_lease(&self, id: &str, token: &str, lease: Duration) -> Result<bool, QueueError> {
        check(id)?;
        self.queue.extend(id, token, millis(lease)).await
    }

    /// Takes back leases that ran out, up to 128 in each partition: they wait again, or are dead letters. Returns how many, and which partitions did
    /// not answer. Fails when none does.
    pub async fn recover_expired_leases(&self) -> Result<Tally, QueueError> {
        self.queue.recover_all().await
    }

    /// What became of each of these of this node's items, in turn: those that are completed are forgotten with this answer, which nobody gives a second
    /// time. One that fails says nothing of the others; it is safe to repeat. Where the forgetting alone had no answer a warning says so: the outcome is
    /// told, and perhaps once more by a later call.
    pub async fn settle(&self, ids: &[&str]) -> Vec<Result<Known, QueueError>> {
        let mut answers = Vec::with_capacity(ids.len());
        for id in ids {
            answers.push(self.settle_one(id).await);
        }
        answers
    }

    async fn settle_one(&self, id: &str) -> Result<Known, QueueError> {
        check(id)?;
        let partition = self.queue.partition(id);
        let known = self.queue.known(partition, &[id]).await?.1.remove(0);
        if let Known::Completed(_) = known
            && let Err(reason) = self.queue.settled(partition, &[id]).await
        {
            warn!(
                queue = self.queue.name(),
                id,
                %reason,
                "what became of an item is told to its owner, and may stay in the queue until its owner asks once more"
            );
        }
        Ok(known)
    }

    /// Pending, processing, failed, total.
    pub async fn stats(&self) -> Result<QueueStats, QueueError> {
        self.queue.stats().await
    }

    /// The queue below, for its dead letters and what else it has.
    pub fn queue(&self) -> &WorkQueue {
        &self.queue
    }
}

/// What cannot be read comes again after this: perhaps to a worker of a later version.
const UNREAD_DELAY_MS: u64 = 60_000;

/// What another key or a later version has made says nothing of the work: whose key is wrong nobody knows here, and a dead letter by a stranger's mistake
/// would be its end. What nobody has read for days nobody will: it would wait for ever. What is signed with this key and no item all the same is nobody's to do.
fn unread_retry(reason: &ItemError) -> Retry {
    match reason {
        ItemError::NotOurs | ItemError::Newer => Retry::Unread(UNREAD_DELAY_MS),
        ItemError::Id(_) | ItemError::TooLarge(_) | ItemError::Damaged(_) => Retry::Counted(UNREAD_DELAY_MS),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// An id that is none would be asked for in vain, and its partition would be anybody's.
fn check(id: &str) -> Result<(), ItemError> {
    if is_item_id(id) { Ok(()) } else { Err(ItemError::Id(id.chars().take(128).collect())) }
}
