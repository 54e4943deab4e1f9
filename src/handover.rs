//! Hand-over of mail between nodes: carries offers, claims and answers between this node's shards and the work queue.
//!
//! The rules are `ringpost_cluster::offer` (this node's mail) and `ringpost_cluster::claim` (that of others); what is here asks them,
//! does what they say, and tells them what came of it. Shards never wait for it: they are asked, and what nobody asks for stays theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    breaker::GAP_MAX,
    handle::ClusterHandle,
    identity::NodeId,
    offer::{OfferBounds, Offers},
    restraint::KEY_MARK,
    valkey::{Message, Valkey, random_u64},
    work_queue::{QueueError, Swept, WorkQueue},
};
use ringpost_engine::{
    control::{Answer, Command, HandOver, HandedOver, Which},
    request_lane::RequestLane,
    settled_ids::SettledIds,
};
use ringpost_queue::QueueId;
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::JoinSet,
};
use tracing::{info, warn};

mod appetite;
mod dead_letters;
mod drain;
mod item_names;
mod marking;
mod offer_mark;
mod open_claims;
mod owner;
mod retracting;
mod settlements;
mod start_numbers;
mod unoffered;
mod worker;

pub use drain::{AWAY_MAX, DrainProgress};
use item_names::ItemNames;
use marking::Marking;
use offer_mark::Offering;
pub use offer_mark::{OfferMark, Place};
use open_claims::OpenClaims;
use settlements::SettledFile;

use crate::shard_call::answer_of;

/// Beyond the lease, for clocks and for what was under way.
const GUARD: Duration = Duration::from_secs(1);
const RECONCILE_EVERY: Duration = Duration::from_secs(10);
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Offered at most, of what nobody is known to have: an entry has about 200 bytes, so this is 10 MB.
const OFFERS_MAX: usize = 50_000;
/// What made a dead letter of mail has had the time to end.
const DEAD_WAIT: Duration = Duration::from_secs(300);
/// Batches of one shard's mail, new or to be offered again, that are read or on their way into the queue at the same time.
const OFFERERS: usize = 4;
/// Bytes on their way into the queue at the same time: what a slow network carries within the deadline of a call.
const ENQUEUE_BYTES_MAX: usize = 1024 * 1024;
/// How often a node sweeps leases that ran out and looks whether Valkey is there and has its data.
const TICK: Duration = Duration::from_millis(500);
/// In a shorter time no replica takes over: with Valkey Cluster the connection for messages, which may be to another server, tells nothing of it.
const FAILOVER_MIN: Duration = Duration::from_secs(1);
/// On Valkey's return, when it was away for so long that owners have delivered, or may have gone back in time, they first take out of the
/// queue what is not to be delivered again. An owner hears of the return later than a worker by a probe and a call at most, and then has half
/// a second.
const OWNERS_FIRST: Duration = GAP_MAX.saturating_add(TICK).saturating_add(TICK);

/// What hand-over needs of the node.
pub struct HandOverNode {
    /// Offered mail.
    pub queue: WorkQueue,
    /// For messages.
    pub valkey: Arc<Valkey>,
    /// This node.
    pub me: NodeId,
    /// `cluster.lease_ttl`.
    pub lease_ttl: Duration,
    /// `delivery.deliver`.
    pub delivers: bool,
    /// `delivery.mode` is shared: mail is offered, and taken from others.
    pub shares: bool,
    /// It is not, but an earlier run may have offered mail: the shards were told so.
    pub retracts: bool,
    /// Says so to the next start.
    pub mark: OfferMark,
    /// The spool's random number.
    pub spool: u64,
    /// And the number of this start.
    pub boot: u64,
    /// For who else is there.
    pub cluster: ClusterHandle,
    /// Set when the spool has failed, and says why.
    pub spool_failure: Arc<OnceLock<String>>,
}

/// Part of what a node says of itself in its heartbeats, if it does: that it takes mail over from others.
pub const TAKES_MAIL: &str = "takes_mail";

/// The same: why it leases none now.
pub const LEASES_NONE: &str = "leases_none";

/// Hand-over as the rest of the process sees it. Cheap to clone.
#[derive(Clone)]
pub struct SharedDelivery(Arc<Driver>);

struct Driver {
    node: HandOverNode,
    shards: Vec<Arc<RequestLane>>,
    names: ItemNames,
    /// What earlier runs have noted to be settled.
    settled_before: SettledIds,
    settled_file: SettledFile,
    /// As it is noted in the spool.
    offering: Offering,
    /// Under one lock, so that what is being set is not cleared.
    marking: Mutex<Marking>,
    /// The spool says, durably, that mail of this node may be in the queue; what is cleared after that is set again by a drain.
    is_marked: AtomicBool,
    has_told_unmarked: AtomicBool,
    offers: Mutex<Offers>,
    /// Of [`ENQUEUE_BYTES_MAX`], those that are free.
    enqueue_bytes: Semaphore,
    /// To each shard what others have of its mail. Bounded by what is being settled, each item of which is there once.
    handed_over: Vec<mpsc::UnboundedSender<(String, HandedOver)>>,
    /// Partitions that answer, and take no mail.
    refused: Mutex<BTreeSet<u16>>,
    /// Leasing begins then, by partition; where nothing is said it has begun.
    lease_from: Mutex<BTreeMap<u16, BootTime>>,
    owner: Notify,
    worker: Notify,
    /// There is a new connection for messages, or a partition is back: what answers now may be another server.
    connected: Notify,
    is_draining: AtomicBool,
    drain_begins: tokio::sync::Mutex<()>,
    /// What a drain that failed has told the other nodes is still to be taken back.
    takes_drain_back: AtomicBool,
    /// The process is about to end.
    is_leaving: AtomicBool,
    is_retracting: AtomicBool,
    /// There is something to do with the queue, for a node that does not share.
    activated: Notify,
    open_claims: OpenClaims,
    drain_progress: Mutex<DrainProgress>,
    /// Looks through the shards that a drain has begun.
    drain_looks: AtomicU64,
    /// Shards that have not answered the look that is under way.
    drain_awaits: AtomicUsize,
}

/// The shard has ended: so does what asks it.
struct Ended;

/// Starts handing over mail, for the life of the process. Call it on the coordinator's runtime. A node that does not share is silent
/// until it is to be emptied. Fails with a sentence where the spool cannot note how mail is offered.
pub fn start(node: HandOverNode, shards: Vec<Arc<RequestLane>>) -> Result<SharedDelivery, String> {
    let now = BootTime::now();
    node.cluster.says(KEY_MARK, node.queue.key_mark());
    let bounds = OfferBounds {
        lease_ttl: node.lease_ttl,
        guard: GUARD,
        reconcile_every: RECONCILE_EVERY,
        forget_after: FORGET_AFTER,
        open_max: OFFERS_MAX,
        dead_wait: DEAD_WAIT,
        partitions: node.queue.bounds().partitions,
    };
    let mut offers = Offers::new(bounds, node.delivers, now);
    let offering = Offering::of(&node).map_err(|reason| format!("how mail was offered cannot be read in the spool: {reason}"))?;
    let starts = start_numbers::of_this_start(&node)
        .map_err(|reason| format!("how mail is called that is offered cannot be noted in the spool: {reason}"))?;
    let (is_marked, was_drained) = (node.mark.is_set(), offering.drained);
    if node.shares {
        if is_marked {
            node.mark.set(&offering).map_err(|reason| format!("how mail is offered cannot be noted in the spool: {reason}"))?;
        }
        info!(node = %node.me, delivers = node.delivers, "mail is shared with the cluster");
    } else if node.retracts {
        offers.retract();
    }
    let settled_file = SettledFile::new(node.mark.beside("settled"));
    let (handed_over, settling): (Vec<_>, Vec<_>) = shards.iter().map(|_| mpsc::unbounded_channel()).unzip();
    let driver = Arc::new(Driver {
        names: ItemNames {
            node: node.me.clone(),
            spool: node.spool,
            starts,
            named_since: offering.named_since,
            spread_since: offering.spread_since.unwrap_or(node.boot),
        },
        settled_before: settled_file.read(),
        settled_file,
        offering,
        marking: Mutex::new(Marking::new(node.mark.clone(), was_drained)),
        is_marked: AtomicBool::new(is_marked),
        has_told_unmarked: AtomicBool::new(false),
        offers: Mutex::new(offers),
        enqueue_bytes: Semaphore::new(ENQUEUE_BYTES_MAX),
        handed_over,
        refused: Mutex::default(),
        lease_from: Mutex::default(),
        owner: Notify::new(),
        worker: Notify::new(),
        connected: Notify::new(),
        is_draining: AtomicBool::new(false),
        drain_begins: tokio::sync::Mutex::default(),
        takes_drain_back: AtomicBool::new(false),
        is_leaving: AtomicBool::new(false),
        is_retracting: AtomicBool::new(node.retracts),
        activated: Notify::new(),
        open_claims: OpenClaims::default(),
        drain_progress: Mutex::default(),
        drain_looks: AtomicU64::new(0),
        drain_awaits: AtomicUsize::new(0),
        node,
        shards,
    });
    for (shard, settling) in settling.into_iter().enumerate() {
        tokio::spawn(driver.clone().settle_mail(shard, settling));
        for which in [Which::New, Which::Again] {
            (0..OFFERERS).for_each(|_| drop(tokio::spawn(driver.clone().offer_mail(shard, which))));
        }
        tokio::spawn(driver.clone().offer_mail(shard, Which::Kept));
        tokio::spawn(driver.clone().recall_mail(shard));
    }
    tokio::spawn(driver.clone().see_to_offers());
    tokio::spawn(driver.clone().tick());
    tokio::spawn(driver.clone().work());
    if driver.node.retracts {
        tokio::spawn(driver.clone().retract());
    } else if was_drained && driver.node.delivers {
        tokio::spawn(driver.clone().see_to_drained());
    }
    tokio::spawn(driver.clone().keep_looking_for_orphans());
    tokio::spawn(driver.clone().see_to_dead_letters());
    tokio::spawn(driver.clone().note_settlements());
    Ok(SharedDelivery(driver))
}

impl SharedDelivery {
    /// The process is about to end: what others have offered is left to others. What this node has taken over is still decided.
    pub fn leave(&self) {
        self.0.is_leaving.store(true, Ordering::Relaxed);
        self.0.node.cluster.says_no_longer(TAKES_MAIL);
    }
}

impl Driver {
    fn offers(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().expect("no panic happens under this lock")
    }

    /// Whether the queue is of any interest now.
    fn is_active(&self) -> bool {
        self.node.shares || self.is_draining.load(Ordering::Relaxed) || self.is_retracting.load(Ordering::Relaxed)
    }

    /// A node that is emptied or stopped takes nothing.
    fn takes_mail(&self) -> bool {
        let ends = self.is_draining.load(Ordering::Relaxed) || self.is_leaving.load(Ordering::Relaxed);
        self.node.shares && self.node.delivers && !ends
    }

    fn item(&self, id: QueueId) -> String {
        self.names.of(id)
    }

    /// The shard that has a message, and its name there; `None` for one that is not this spool's.
    fn of_item(&self, item: &str) -> Option<(usize, QueueId)> {
        let id = self.names.id_of(item)?;
        // Logs of shards that no longer exist are adopted by their number (`node`).
        Some((usize::from(id.shard) % self.shards.len(), id))
    }

    async fn ask(&self, shard: usize, call: HandOver) -> Result<Answer, Ended> {
        self.ask_for(shard, Command::HandOver(call)).await
    }

    async fn ask_for(&self, shard: usize, command: Command) -> Result<Answer, Ended> {
        answer_of(&self.shards[shard], &command).await.map_err(|_| Ended)
    }

    /// Takes in how a call went that always writes.
    fn heard<R>(self: &Arc<Self>, partition: u16, answer: &Result<R, QueueError>) {
        match answer {
            // Nothing was sent.
            Err(QueueError::Item(_)) => {}
            Err(error) if is_outage(error) => self.is_away(partition),
            // What Valkey refuses it has at least answered.
            Ok(_) | Err(_) => self.is_there(partition),
        }
    }

    /// Takes in how a call went that may find nothing to write: a server can answer that and take no mail, so it ends no outage.
    fn noticed<R>(self: &Arc<Self>, partition: u16, answer: &Result<R, QueueError>) {
        if answer.as_ref().is_err_and(is_outage) {
            self.is_away(partition);
        }
    }

    /// What had no answer is repeated once the partition is there again. Where one call came late it is there: it is looked for at once, by one more call,
    /// as the next sweep comes up to half a second later.
    fn is_away(self: &Arc<Self>, partition: u16) {
        if self.offers().away(partition, BootTime::now()) {
            self.look_for(partition);
        }
    }

    fn look_for(self: &Arc<Self>, partition: u16) {
        let driver = self.clone();
        tokio::spawn(async move { driver.probe_one(partition).await });
    }

    /// Whether a partition takes what is written, by one small call: why not, if it does not.
    async fn probe_one(self: &Arc<Self>, partition: u16) -> Option<QueueError> {
        let answer = self.node.queue.probe(partition).await;
        self.heard(partition, &answer);
        answer.err()
    }

    fn is_there(&self, partition: u16) {
        let now = BootTime::now();
        let mut offers = self.offers();
        let Some(away) = offers.is_away(partition).map(|since| now.since(since)) else { return };
        let was_long = offers.returned(partition, now);
        drop(offers);
        // One call that came late is no outage that anybody has acted on, nor a failover.
        if was_long || away >= FAILOVER_MIN {
            self.owners_first(partition, now);
            self.connected.notify_one();
        }
        self.owner.notify_one();
    }

    /// The data can be older than what was there although no connection was lost: what was settled since is looked for before anything is leased.
    fn generation(&self, partition: u16, generation: &str) {
        let now = BootTime::now();
        if self.offers().generation(partition, generation, now) {
            self.owners_first(partition, now);
            self.connected.notify_one();
            self.owner.notify_one();
        }
    }

    fn by_partition<T>(&self, items: Vec<T>, item: impl Fn(&T) -> &str) -> BTreeMap<u16, Vec<T>> {
        let mut groups: BTreeMap<u16, Vec<T>> = BTreeMap::new();
        for one in items {
            groups.entry(self.node.queue.partition(item(&one))).or_default().push(one);
        }
        groups
    }

    fn by_shard(&self, items: Vec<String>) -> BTreeMap<usize, Vec<(String, QueueId)>> {
        let mut groups: BTreeMap<usize, Vec<(String, QueueId)>> = BTreeMap::new();
        for item in items {
            if let Some((shard, id)) = self.of_item(&item) {
                groups.entry(shard).or_default().push((item, id));
            }
        }
        groups
    }

    /// Hears messages, sweeps leases that ran out (by anybody, L10), and looks whether Valkey has its data.
    async fn tick(self: Arc<Self>) {
        loop {
            while !self.is_active() {
                self.activated.notified().await;
            }
            let (done, work) = (self.node.queue.done_channel(), self.node.queue.work_channel());
            let mut messages = self.node.valkey.subscribe(vec![done.clone(), work.clone()]);
            let mut is_first = true;
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            // At most one at a time, and beside the messages: what others have completed is heard while a partition is waited for.
            let mut sweeps = JoinSet::new();
            while self.is_active() {
                tokio::select! {
                    message = messages.recv() => match message {
                        Some(Message { channel, payload }) if channel == done => {
                            payload.lines().filter_map(|line| line.split_once(' ')).for_each(|(id, _)| self.offers().done(id));
                            self.owner.notify_one();
                        }
                        Some(Message { channel, .. }) if channel == work => self.worker.notify_one(),
                        Some(_) => self.reconnected(std::mem::take(&mut is_first)),
                        None => return,
                    },
                    Some(_) = sweeps.join_next() => {}
                    _ = ticks.tick(), if sweeps.is_empty() => drop(sweeps.spawn(self.clone().sweep())),
                    () = self.node.queue.begins(), if sweeps.is_empty() => {
                        // What was looked for before had no answer.
                        self.connected.notify_one();
                        sweeps.spawn(self.clone().sweep());
                    }
                }
            }
            while sweeps.join_next().await.is_some() {}
        }
    }

    /// What was said before was missed, and what is there may be older than what was there.
    fn reconnected(&self, is_first: bool) {
        let now = BootTime::now();
        self.offers().missed(now);
        self.owner.notify_one();
        self.connected.notify_one();
        if !is_first {
            self.partitions().for_each(|partition| self.owners_first(partition, now));
        }
    }

    /// Nothing is leased before owners have had the time to take out what is not to be delivered again.
    fn owners_first(&self, partition: u16, now: BootTime) {
        self.lease_from.lock().expect("no panic happens under this lock").insert(partition, now + OWNERS_FIRST);
    }

    /// Owners may have begun to deliver what they had offered, and have not had the time to take it out: nothing is leased, and what was not
    /// completed before is not completed now.
    fn is_owners_turn(&self, partition: u16, now: BootTime) -> bool {
        let was_away_long = self.offers().is_away(partition).is_some_and(|since| now.since(since) >= self.node.lease_ttl);
        was_away_long || self.lease_from.lock().expect("no panic happens under this lock").get(&partition).is_some_and(|from| now < *from)
    }

    fn partitions(&self) -> std::ops::Range<u16> {
        0..self.node.queue.bounds().partitions
    }

    /// All at the same time: one that does not answer keeps no other from being looked at. Each is the first in its turn, by chance: while the
    /// circuit is open only the first call is sent, and it decides.
    async fn sweep(self: Arc<Self>) {
        let count = self.node.queue.bounds().partitions;
        let first = u16::try_from(random_u64() % u64::from(count)).expect("below the number of partitions");
        let mut calls = JoinSet::new();
        (first..count).chain(0..first).for_each(|partition| drop(calls.spawn(self.clone().sweep_one(partition))));
        while calls.join_next().await.is_some() {}
    }

    async fn sweep_one(self: Arc<Self>, partition: u16) {
        let answer = self.node.queue.probe(partition).await;
        self.heard(partition, &answer);
        let Ok(generation) = answer else { return };
        self.generation(partition, &generation);
        let answer = self.node.queue.recover(partition, u64::try_from(TICK.as_millis()).unwrap_or(0)).await;
        self.noticed(partition, &answer);
        if let Ok(Swept { dropped: count @ 1.., .. }) = answer {
            warn!(
                partition,
                count,
                "completions that their owners have not heard of take up half of the cluster's queue: the oldest are forgotten, and a node that \
                 comes back delivers those of its mail a second time"
            );
        }
    }
}

/// An open circuit is the outage that opened it.
fn is_outage(error: &QueueError) -> bool {
    matches!(error, QueueError::Valkey(error) if error.is_away())
}

/// Makes the call of each partition, all of them at the same time, and waits for all.
async fn in_each<T, F>(groups: BTreeMap<u16, Vec<T>>, call: impl Fn(u16, Vec<T>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut calls = JoinSet::new();
    groups.into_iter().for_each(|(partition, items)| drop(calls.spawn(call(partition, items))));
    while calls.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use tokio::{sync::Barrier, time::timeout};

    use super::*;

    /// One after another, an owner's questions and offers took as many round trips as there are partitions.
    #[tokio::test]
    async fn partitions_are_asked_at_the_same_time() {
        let (groups, barrier) = ((0..4).map(|partition| (partition, vec![()])).collect(), Arc::new(Barrier::new(4)));
        let calls = in_each(groups, |_, _| {
            let barrier = barrier.clone();
            async move {
                barrier.wait().await;
            }
        });
        timeout(Duration::from_secs(10), calls).await.expect("each waits for the others");
    }
}
