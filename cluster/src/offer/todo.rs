//! What the owner's rules want done, and what they answer.

#[cfg(doc)]
use super::Offers;
#[cfg(doc)]
use crate::work_queue::{IDS_PER_CALL, ITEMS_PER_CALL};

/// What a shard is to do with an item that it handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sending {
    /// It goes into the queue now; call [`Offers::enqueued`], [`Offers::unanswered`] or [`Offers::refused`].
    Send,
    /// This node cannot offer it at this time: the shard delivers it.
    TakeBack,
    /// Nothing: what becomes of it is being found out.
    Leave,
}

/// What became of the wish to have an item back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recall {
    /// No worker has it, and none gets it.
    Out,
    /// A worker has leased it, or has taken it over.
    Taken,
    /// Valkey does not answer, or the call that brings it in takes long; it is offered as before.
    Unanswered,
}

/// What is to be done with some ids, at most [`IDS_PER_CALL`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Todo {
    /// Ask the queue where they are, then call [`Offers::known`] for each, or [`Offers::unheard`].
    Ask(Vec<String>),
    /// Read them from the spool and enqueue them again: [`Offers::sending`] for each when it is there, or [`Offers::gone`] for what the
    /// spool does not have any more. Each is to have one of the two, however long that takes: until then it is not asked for again.
    Offer(Vec<String>),
    /// Other nodes have them, with what they said: settle them in the spool, then call [`Offers::settled`] for each when that is durable,
    /// or [`Offers::not_settled`].
    Settle(Vec<(String, String)>),
    /// Let the shards deliver them.
    TakeBack(Vec<String>),
    /// Take them out of the queue, then call [`Offers::withdrawn`] for each, or [`Offers::unheard`].
    Withdraw(Vec<String>),
    /// Say with this node's signature that it has them, in place of a record that somebody completed them, or that they were withdrawn, without
    /// one; then call [`Offers::refused_record`] for each, or [`Offers::unheard`]. At most [`ITEMS_PER_CALL`] of them.
    Refuse(Vec<(String, Vec<u8>)>),
    /// They have come to their end, and are in the queue again: end them there, then call [`Offers::ended_there`] for each, or
    /// [`Offers::unheard`].
    End(Vec<String>),
    /// Tell the queue that it need not remember what became of them, then call [`Offers::forgotten`].
    Forget(Vec<String>),
    /// Tell the shards what became of their wishes.
    Tell(Vec<(String, Recall)>),
}
