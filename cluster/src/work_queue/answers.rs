//! What the calls of the queue say.

use crate::{identity::NodeId, work_item::ItemError};

/// What became of an item that was to be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enqueued {
    /// It is there now.
    Added,
    /// It was there.
    Present,
    /// It was completed; its owner has not settled it yet.
    Completed,
    /// No room: keep it and try later.
    Full,
}

/// An item that this worker has for a while.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leased {
    /// The item's name.
    pub id: String,
    /// The node that holds the original.
    pub owner: NodeId,
    /// 0 to 9.
    pub priority: u8,
    /// Leases so far, this one included.
    pub attempts: u32,
    /// Leases at most.
    pub max_attempts: u32,
    /// When it was enqueued, in milliseconds of the server's clock.
    pub created_ms: u64,
    /// When it was due last, by the same clock: after a delay, a failure, or the end of another's lease.
    pub scheduled_ms: u64,
    /// When this lease began, by the same clock.
    pub leased_ms: u64,
    /// When it ends; 0: never.
    pub expires_ms: u64,
    /// What complete, fail and extend have to present.
    pub token: String,
    /// What it had on its way, packed and signed.
    pub body_bytes: usize,
    /// The data, or why it is not to be used.
    pub data: Result<Vec<u8>, ItemError>,
}

/// What complete says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Completed {
    /// Done now.
    Done,
    /// Done before, by this token: an answer was lost.
    DoneBefore,
    /// Another has it, by a signed word: drop what was made of it.
    Stale,
    /// The item is in the queue, and this lease of it is over.
    Refused,
    /// A record that nobody signed says that another has it.
    Unproven,
    /// Its owner has settled it, and the queue has gone back in time since: whoever may have been believed has it.
    Settled,
    /// Valkey never heard of it: its data is gone, or the owner has settled it.
    Unknown,
}

/// What became of an item that has come to its end and was in the queue again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It is out.
    Out,
    /// A worker has leased it.
    Leased,
    /// It stays: a worker that came for it was refused, and its copy may have been the last.
    Stays,
}

/// What fail says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed {
    /// It waits for its next lease.
    Waits,
    /// It is a dead letter.
    Dead,
    /// The lease is another's by now.
    Stale,
}

/// How a lease ends without success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// Not again.
    Never,
    /// After so many milliseconds; it counts against the item's attempts.
    Counted(u64),
    /// After so many milliseconds; the item was not to blame.
    Free(u64),
    /// After a time by chance, at most so many milliseconds after a first lease and twice as many after each further one, up to a cap (Q10); it counts
    /// against the item's attempts.
    BackOff {
        /// After the first.
        base_ms: u64,
        /// At most; at least 1.
        cap_ms: u64,
    },
    /// After so many milliseconds; this worker cannot read it. It counts once five days have passed in which every worker that gave it back said so,
    /// and [`WorkQueue::purge`](super::WorkQueue::purge) takes it out by name.
    Unread(u64),
}

/// What a sweep of one partition came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Items whose leases ran out, which wait again.
    pub waiting: u64,
    /// Those that became dead letters instead.
    pub died: u64,
    /// Outcomes beyond what is kept, of which their owners have not heard: an owner that comes back offers those items again.
    pub dropped: u64,
}

/// Where an item is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Known {
    /// Nowhere: never enqueued, forgotten, or lost with Valkey's data.
    Unknown,
    /// Ready or scheduled.
    Waiting,
    /// The same, and a worker with this node's key found that it is not signed with that.
    Unreadable,
    /// Leased.
    Leased,
    /// Among the dead letters.
    Dead,
    /// Taken back by its owner, who has said so and has neither offered it again nor had that forgotten; or ended there.
    Withdrawn,
    /// The same, and its record does not say so with a signature: [`WorkQueue::refuse`](super::WorkQueue::refuse) wants it.
    Unsigned(Vec<u8>),
    /// Completed, with what the completer said and signed.
    Completed(String),
    /// Its record says that it was completed, and is signed by nobody with this node's key: [`WorkQueue::refuse`](super::WorkQueue::refuse)
    /// wants it.
    Unproven(Vec<u8>),
}
