//! The shared work queue: items of one kind, spread over partitions (Q1 to Q19).
//!
//! Valkey never holds the only copy of anything: an item's owner keeps the original until it hears that another has taken it over.
//! Every call is safe to repeat when its outcome is unknown; a lease that nobody answers for runs out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::Value;

use crate::{
    boot_time::BootTime,
    completion::{Completion, RECORD_BYTES_MAX, SIGNATURE_BYTES, result_of},
    identity::{Incarnation, NodeId},
    keyspace::Keyspace,
    lease_load::Load,
    partition_count::PartitionCount,
    reply::{Reply, number},
    target::Target,
    valkey::{Allowance, Valkey, random_u64},
    valkey_error::ValkeyError,
    withdrawal::Withdrawal,
    work_item::{ITEM_ID_BYTES_MAX, ItemError, ItemKey, Label, NewItem, is_item_id},
};

mod all_partitions;
mod answers;
mod calls;
mod crowding;
mod damage;
mod dead_letters;
mod reconciliation;
mod slowness;
mod statistics;

pub use all_partitions::Tally;
pub use answers::{Completed, Ending, Enqueued, Failed, Known, Leased, Retry, Swept};
pub use dead_letters::{DeadLetter, DeadPage, Purged, Revived};
pub use statistics::QueueStats;

use crowding::Crowding;
use slowness::Slowness;

/// The most items in one call of enqueue, lease or complete.
pub const ITEMS_PER_CALL: usize = 64;
/// The most ids in one call of known, settled, withdraw, requeue or purge.
pub const IDS_PER_CALL: usize = 128;
/// The most bytes one lease call brings back; a larger item comes alone.
pub const LEASE_BYTES_MAX: usize = 512 * 1024;
/// The same once it is unpacked: what is much the same all through takes hardly any room in Valkey.
pub const LEASE_DATA_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long an outcome waits for its owner: a day longer than mail can live.
pub const OUTCOME_KEPT: Duration = Duration::from_secs(31 * 24 * 3600);
/// Ended items of one partition that some worker was leased and left, of which it is remembered whose they are after their owner has settled them.
pub const PAST_MAX: u64 = 8192;
/// What no worker could read for so long, since the first that could not, has each further look count ([`Retry::Unread`]).
const UNREAD_MAX: Duration = Duration::from_secs(5 * 24 * 3600);
/// The longest lease by time, as `cluster.lease_ttl` is bounded.
pub(crate) const LEASE_MAX_MS: u64 = 300 * 1000;
/// The longest text of a result (with its signature) or a reason, in bytes.
pub const RESULT_BYTES_MAX: usize = 512;
/// With a token and a node's name.
const _: () = assert!(RESULT_BYTES_MAX + 2 * ITEM_ID_BYTES_MAX <= RECORD_BYTES_MAX);

/// Bounds of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueBounds {
    /// Partitions; all nodes have the same number.
    pub partitions: u16,
    /// Items and unsettled outcomes in one partition; beyond, enqueue answers [`Enqueued::Full`].
    pub capacity: u64,
    /// Dead letters in one partition; beyond, the dead wait among the scheduled ones.
    pub dead_max: u64,
}

impl QueueBounds {
    /// Outcomes in one partition; beyond, the oldest are dropped, first those of which their owners have heard. An owner that comes back offers the
    /// others again: those of one owner are no more than it has offered at a time. They take room from what others offer, so they are not to
    /// take all of it.
    fn outcomes_max(self) -> u64 {
        self.capacity / 2
    }
}

/// A call that brought no answer, or an item that is none.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
pub enum QueueError {
    /// See [`ValkeyError`].
    #[error(transparent)]
    Valkey(#[from] ValkeyError),
    /// See [`ItemError`].
    #[error(transparent)]
    Item(#[from] ItemError),
}

/// One queue of one kind of items. Cheap to clone.
#[derive(Clone)]
pub struct WorkQueue {
    valkey: Arc<Valkey>,
    keyspace: Keyspace,
    name: Arc<str>,
    bounds: QueueBounds,
    key: ItemKey,
    me: Incarnation,
    /// Whether all nodes have as many partitions; `None`: nobody asks.
    agreed: Option<Arc<PartitionCount>>,
    /// Partitions that have no room in Valkey, and what it said.
    full: Arc<Mutex<BTreeMap<u16, (String, BootTime)>>>,
    /// Partitions that have [`QueueBounds::capacity`] items.
    crowding: Arc<Mutex<Crowding>>,
    /// The log says so.
    tells_crowding: bool,
    /// Of the line to Valkey.
    slowness: Arc<Mutex<Slowness>>,
}

impl WorkQueue {
    /// `name` is the kind of its items, for instance `email_delivery`. There is at least one partition. Fails with [`ItemError::Id`] for a
    /// name that is none.
    pub fn new(
        valkey: Arc<Valkey>,
        keyspace: Keyspace,
        name: &str,
        bounds: QueueBounds,
        key: ItemKey,
        me: Incarnation,
    ) -> Result<WorkQueue, ItemError> {
        assert!(bounds.partitions > 0, "a queue has a partition");
        if !is_queue_name(name) {
            return Err(ItemError::Id(name.chars().take(128).collect()));
        }
        Ok(WorkQueue {
            valkey,
            keyspace,
            name: name.into(),
            bounds,
            key,
            me,
            agreed: None,
            full: Arc::default(),
            crowding: Arc::default(),
            tells_crowding: true,
            slowness: Arc::default(),
        })
    }

    /// Another queue of the same cluster, for items of another kind. Fails with [`ItemError::Id`] for a name that is none.
    pub fn named(&self, name: &str) -> Result<WorkQueue, ItemError> {
        let named = WorkQueue::new(self.valkey.clone(), self.keyspace.clone(), name, self.bounds, self.key.clone(), self.me.clone())?;
        Ok(WorkQueue { agreed: self.agreed.clone(), ..named })
    }

    /// The kind of its items.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This node: the owner of what it enqueues.
    pub fn owner(&self) -> &NodeId {
        self.me.node()
    }

    /// Where its keys are.
    pub fn place(&self) -> (&Keyspace, &Target) {
        (&self.keyspace, self.valkey.target())
    }

    /// See [`ItemKey::mark`].
    pub fn key_mark(&self) -> String {
        self.key.mark()
    }

    /// The bounds it was made with.
    pub fn bounds(&self) -> QueueBounds {
        self.bounds
    }

    /// The partition of an id; the same on every node and in every version. The last four characters hardly count: ids that differ only there
    /// stay together.
    pub fn partition(&self, id: &str) -> u16 {
        partition_of(id, self.bounds.partitions)
    }

    /// The channel on which this node hears that its items were completed. Payload: lines of `id result`.
    pub fn done_channel(&self) -> String {
        format!("{}{}", self.keyspace.done_channel(&self.name), self.me.node())
    }

    /// The channel that says that there is work.
    pub fn work_channel(&self) -> String {
        self.keyspace.work_channel(&self.name)
    }

    /// Adds up to [`ITEMS_PER_CALL`] items. Each is of this partition ([`WorkQueue::partition`]): in another nobody would find it. Returns the
    /// data's generation and an answer for each item.
    pub async fn enqueue(&self, partition: u16, items: &[NewItem]) -> Result<(String, Vec<Enqueued>), QueueError> {
        self.enqueue_again(partition, items, 0).await
    }

    /// The same after so many calls with these items that came to nothing: with more time each time ([`Allowance::tries`]).
    pub async fn enqueue_again(&self, partition: u16, items: &[NewItem], tries: u32) -> Result<(String, Vec<Enqueued>), QueueError> {
        let (new_data, capacity, channel) = (generation_of_new_data(), self.bounds.capacity.to_string(), self.work_channel());
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            if !is_item_id(&item.id) {
                return Err(ItemError::Id(item.id.chars().take(128).collect()).into());
            }
            assert_eq!(self.partition(&item.id), partition, "an item is of its id's partition");
            let priority = item.priority.min(9);
            let label = Label { queue: &self.name, id: &item.id, owner: item.owner.as_str(), priority };
            let body = self.key.seal(&label, &item.data)?;
            texts.push((
                priority.to_string(),
                item.max_attempts.max(1).to_string(),
                item.delay_ms.to_string(),
                item.expires_in_ms.to_string(),
                body,
            ));
        }
        let mut args: Vec<&[u8]> = vec![new_data.as_bytes(), capacity.as_bytes(), channel.as_bytes()];
        for (item, (priority, attempts, delay, expires, body)) in items.iter().zip(&texts) {
            args.extend([
                item.id.as_bytes(),
                item.owner.as_str().as_bytes(),
                priority.as_bytes(),
                attempts.as_bytes(),
                delay.as_bytes(),
                expires.as_bytes(),
                body,
            ]);
        }
        let allowance = Allowance { tries, ..Allowance::default() };
        let mut reply = Reply::new(self.run_for("queue_enqueue", partition, &args, allowance).await?)?;
        let generation = reply.text()?;
        let mut answers = Vec::with_capacity(items.len());
        for _ in items {
            answers.push(match reply.number()? {
                1 => Enqueued::Added,
                0 => Enqueued::Present,
                2 => Enqueued::Completed,
                -1 => Enqueued::Full,
                _ => return Err(ValkeyError::Malformed("a code of enqueue").into()),
            });
        }
        self.valkey.announced(&channel, reply.number()?);
        self.tell_crowding(partition, answers.iter().filter(|answer| **answer == Enqueued::Full).count() as u64);
        Ok((generation, answers))
    }

    /// Leases up to `count` (at most [`ITEMS_PER_CALL`]) items, by priority, and [`LEASE_DATA_BYTES_MAX`] of data, beyond which an item comes alone. `lease_ms` 0: as long as this worker renews
    /// ([`WorkQueue::renew`]), else for that long. `data_bytes_max` bounds what an item may unpack to.
    pub async fn lease(
        &self,
        partition: u16,
        count: usize,
        worker_ttl_ms: u64,
        lease_ms: u64,
        data_bytes_max: usize,
    ) -> Result<(String, Vec<Leased>), QueueError> {
        self.lease_by(partition, count, worker_ttl_ms, lease_ms, data_bytes_max, Load::default()).await
    }

    /// The same over a line that carries no more than `load` in the time that a call has.
    pub async fn lease_by(
        &self,
        partition: u16,
        count: usize,
        worker_ttl_ms: u64,
        lease_ms: u64,
        data_bytes_max: usize,
        load: Load,
    ) -> Result<(String, Vec<Leased>), QueueError> {
        let token = format!("{:016x}", random_u64());
        let args = [
            generation_of_new_data(),
            self.me.to_string(),
            count.min(load.items_max).clamp(1, ITEMS_PER_CALL).to_string(),
            token,
            worker_ttl_ms.to_string(),
            lease_ms.min(LEASE_MAX_MS).to_string(),
            self.bounds.dead_max.to_string(),
            load.bytes_max.to_string(),
            LEASE_DATA_BYTES_MAX.to_string(),
        ];
        let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
        let mut reply = Reply::new(self.run_for("queue_lease", partition, &args, lease_allowance(data_bytes_max, load)).await?)?;
        let (generation, now_ms) = (reply.text()?, reply.count()?);
        let mut items = Vec::new();
        while !reply.is_empty() {
            items.push(self.leased(reply.list()?, now_ms, data_bytes_max)?);
        }
        Ok((generation, items))
    }

    /// How long such a lease may take to be answered.
    pub fn time_of_lease(&self, data_bytes_max: usize, load: Load) -> Duration {
        self.valkey.time_by(0, lease_allowance(data_bytes_max, load))
    }

    fn leased(&self, mut item: Reply, leased_ms: u64, data_bytes_max: usize) -> Result<Leased, ValkeyError> {
        let id = item.text()?;
        let owner = item.text()?.parse().map_err(|_| ValkeyError::Malformed("an owner is no node id"))?;
        let priority = u8::try_from(item.count()?).map_err(|_| ValkeyError::Malformed("a priority"))?;
        let mut small = || item.count().map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        let (attempts, max_attempts) = (small()?, small()?);
        let (created_ms, scheduled_ms, expires_ms) = (item.count()?, item.count()?, item.count()?);
        let (token, body) = (item.text()?, item.bytes()?);
        let body_bytes = body.len();
        let data = if is_item_id(&id) {
            self.key.open(&Label { queue: &self.name, id: &id, owner: NodeId::as_str(&owner), priority }, &body, data_bytes_max)
        } else {
            Err(ItemError::Id(id.chars().take(128).collect()))
        };
        Ok(Leased { id, owner, priority, attempts, max_attempts, created_ms, scheduled_ms, leased_ms, expires_ms, token, body_bytes, data })
    }

    /// Completes up to [`ITEMS_PER_CALL`] leases of one partition: id, token and what the owner is told (no line ends, cut where it is longer
    /// than [`RESULT_BYTES_MAX`] with its signature).
    pub async fn complete(&self, partition: u16, leases: &[(&str, &str, &str)]) -> Result<(String, Vec<Completed>), QueueError> {
        let (new_data, channel, kept) =
            (generation_of_new_data(), self.keyspace.done_channel(&self.name), OUTCOME_KEPT.as_millis().to_string());
        let word = |&(id, token, result): &(&str, &str, &str)| {
            Completion { queue: &self.name, id, token }.word(&self.key, &one_line(result, RESULT_BYTES_MAX - SIGNATURE_BYTES))
        };
        let words: Vec<String> = leases.iter().map(word).collect();
        let mut args: Vec<&[u8]> = vec![new_data.as_bytes(), channel.as_bytes(), kept.as_bytes()];
        for ((id, token, _), word) in leases.iter().zip(&words) {
            args.extend([id.as_bytes(), token.as_bytes(), word.as_bytes()]);
        }
        let mut reply = Reply::new(self.run("queue_complete", partition, &args).await?)?;
        let generation = reply.text()?;
        let mut answers = Vec::with_capacity(leases.len());
        for (id, token, _) in leases {
            let (code, record) = (reply.number()?, reply.bytes()?);
            answers.push(match code {
                1 => Completed::Done,
                2 => Completed::DoneBefore,
                3 => Completed::Settled,
                0 if record.is_empty() => Completed::Refused,
                0 if self.is_anothers(id, token, &record) => Completed::Stale,
                0 => Completed::Unproven,
                -1 => Completed::Unknown,
                _ => return Err(ValkeyError::Malformed("a code of complete").into()),
            });
        }
        self.valkey.announced(&channel, reply.number()?);
        Ok((generation, answers))
    }

    /// Whether a record proves that another has what was leased by this token: a worker's signed word that it has it, or its owner's that it
    /// has taken back what was enqueued then. Tokens of a version before do not say when that was.
    fn is_anothers(&self, id: &str, token: &str, record: &[u8]) -> bool {
        let enqueued_at = token.split(':').nth(2);
        let withdrawal = Withdrawal { queue: &self.name, id };
        let is_withdrawn = |at: &str| enqueued_at.is_none_or(|enqueued_at| enqueued_at == at);
        result_of(&self.key, &self.name, id, record).is_some() || withdrawal.signed_moment(&self.key, record).is_some_and(is_withdrawn)
    }

    /// Ends a lease without success.
    pub async fn fail(&self, id: &str, token: &str, retry: Retry, reason: &str) -> Result<Failed, QueueError> {
        let unread_max = UNREAD_MAX.as_millis().to_string();
        let (retries, delay, counts, unread_max, cap) = match retry {
            Retry::Never => ("0", 0, "1", "", 0),
            Retry::Counted(delay) => ("1", delay, "1", "", 0),
            Retry::Free(delay) => ("1", delay, "0", "", 0),
            Retry::Unread(delay) => ("1", delay, "0", unread_max.as_str(), 0),
            Retry::BackOff { base_ms, cap_ms } => ("1", base_ms, "1", "", cap_ms.max(1)),
        };
        let (delay, reason, dead_max) = (delay.to_string(), one_line(reason, RESULT_BYTES_MAX), self.bounds.dead_max.to_string());
        let (cap, chance) = (cap.to_string(), (random_u64() % 1024).to_string());
        let args = [id, token, retries, &delay, counts, &reason, &dead_max, unread_max, &cap, &chance].map(str::as_bytes);
        match number(self.run("queue_fail", self.partition(id), &args).await?)? {
            1 => Ok(Failed::Waits),
            2 => Ok(Failed::Dead),
            0 => Ok(Failed::Stale),
            _ => Err(ValkeyError::Malformed("a code of fail").into()),
        }
    }

    /// Lets a lease run for `lease_ms` from now; false: it is another's by now.
    pub async fn extend(&self, id: &str, token: &str, lease_ms: u64) -> Result<bool, QueueError> {
        let lease = lease_ms.min(LEASE_MAX_MS).to_string();
        Ok(number(self.run("queue_extend", self.partition(id), &[id.as_bytes(), token.as_bytes(), lease.as_bytes()]).await?)? == 1)
    }

    /// This worker lives: its leases in the partition go on for `worker_ttl_ms`. Returns the data's generation.
    pub async fn renew(&self, partition: u16, worker_ttl_ms: u64) -> Result<String, QueueError> {
        let (new_data, me, ttl) = (generation_of_new_data(), self.me.to_string(), worker_ttl_ms.to_string());
        match self.run("queue_renew", partition, &[new_data.as_bytes(), me.as_bytes(), ttl.as_bytes()]).await? {
            Value::BulkString(generation) => Ok(String::from_utf8_lossy(&generation).into_owned()),
            _ => Err(ValkeyError::Malformed("a generation").into()),
        }
    }

    /// Whether a partition takes what is written, by its last word: fails as an enqueue would, but for what that carries. Returns the data's
    /// generation.
    pub async fn probe(&self, partition: u16) -> Result<String, QueueError> {
        match self.run("queue_probe", partition, &[generation_of_new_data().as_bytes()]).await? {
            Value::BulkString(generation) => Ok(String::from_utf8_lossy(&generation).into_owned()),
            _ => Err(ValkeyError::Malformed("a generation").into()),
        }
    }

    /// Takes back leases that ran out, up to 128 a call, and cuts what is kept of ended items to its bounds.
    pub async fn recover(&self, partition: u16, jitter_ms: u64) -> Result<Swept, QueueError> {
        let args = [
            "128".to_owned(),
            jitter_ms.to_string(),
            (random_u64() % 1_000_000).to_string(),
            self.bounds.dead_max.to_string(),
            self.bounds.outcomes_max().to_string(),
            PAST_MAX.to_string(),
            LEASE_MAX_MS.to_string(),
        ];
        let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
        let mut reply = Reply::new(self.run("queue_recover", partition, &args).await?)?;
        Ok(Swept { waiting: reply.count()?, died: reply.count()?, dropped: reply.count()? })
    }
}

/// One item may come that is larger than all that several may have.
fn lease_allowance(data_bytes_max: usize, load: Load) -> Allowance {
    Allowance { answer_bytes_max: LEASE_BYTES_MAX.max(data_bytes_max), tries: load.tries, patience_max: Some(load.time_max) }
}

/// Whether `text` can be a queue's name.
pub fn is_queue_name(text: &str) -> bool {
    is_item_id(text) && !text.contains(':')
}

/// The partition of an id, of so many.
pub(crate) fn partition_of(id: &str, partitions: u16) -> u16 {
    // FNV-1a: ids need spreading, not defending; a flood of one partition ends at its capacity.
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    u16::try_from((hash >> 32) % u64::from(partitions)).expect("below the number of partitions")
}

/// How the data is called if this call is the first to find none. Another with each call: a node that finds none twice has seen two losses.
fn generation_of_new_data() -> String {
    format!("{:016x}{:016x}", random_u64(), random_u64())
}

/// What others read as one line: cut, and without control characters.
fn one_line(text: &str, bytes_max: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut end = line.len().min(bytes_max);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}
