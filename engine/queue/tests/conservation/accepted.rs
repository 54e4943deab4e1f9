//! What was accepted: what became of it, what the disk says of that, and what a restart has to find.

use std::collections::BTreeSet;

use ringpost_queue::{DestinationId, NewMessage, NewRecipient, Notify, Queue, QueueId, RouteId};

pub const HOUR: u64 = 3_600_000;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fate {
    Open,
    /// Being attempted, and purged when that ends unless it is delivered.
    Leaving,
    /// As that, and bounced.
    Failing,
    /// And its sender is told so, or does not want to know.
    Delivered,
    /// And its sender is still to be told.
    SuccessDue,
    Failed,
    Bounced,
}

impl Fate {
    pub fn is_settled(self) -> bool {
        matches!(self, Fate::Delivered | Fate::Bounced)
    }
}

#[derive(Clone)]
pub struct Accepted {
    pub accepted_at: u64,
    pub recipients: Vec<String>,
    pub notify: Vec<Notify>,
    pub fate: Vec<Fate>,
    /// What records on disk say.
    pub durable_fate: Vec<Fate>,
    pub held: bool,
    pub durable_held: bool,
    /// Set by command.
    pub expires: Option<u64>,
    pub routes: Vec<Option<RouteId>>,
    /// What a restart has to find.
    pub durable: Seen,
    pub records: Vec<Vec<u8>>,
    pub settled: bool,
    pub deleted: bool,
    /// Purged while they were being attempted: nobody is to be told.
    pub left: BTreeSet<u16>,
}

impl Accepted {
    pub fn is_over(&self, now: u64) -> bool {
        // The lifetime of its routes does not end what is held.
        self.expires.is_some_and(|at| at <= now) || !self.held && now >= self.accepted_at + 30 * HOUR
    }
}

/// What must not be forgotten of a message, by what the queue shows.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Seen {
    pub priority: u8,
    pub expires: Option<u64>,
    pub routes: Vec<Option<RouteId>>,
    pub recipients: Vec<SeenRecipient>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct SeenRecipient {
    pub attempts: u16,
    pub last_attempt: Option<u64>,
    /// Of those that wait for it, held by their route or not.
    pub next_attempt: Option<u64>,
    /// Being attempted: what it waited for before is what its records say.
    pub is_active: bool,
    pub reply: String,
}

pub fn new_message(id: QueueId, accepted_at: u64) -> NewMessage<'static> {
    NewMessage {
        id,
        size: 100,
        accepted_at,
        expires_at: None,
        priority: (id.sequence % 10) as u8,
        eight_bit: false,
        smtputf8: false,
        reverse_path: b"sender@x.test",
        ..NewMessage::default()
    }
}

pub fn destinations(queue: &mut Queue, accepted: &Accepted) -> Vec<DestinationId> {
    accepted.recipients.iter().map(|address| queue.route(address.split_once('@').unwrap().1.as_bytes())).collect()
}

pub fn recipients_of<'a>(accepted: &'a Accepted, destinations: &'a [DestinationId]) -> impl Iterator<Item = NewRecipient<'a>> + Clone {
    let facts = accepted.recipients.iter().zip(destinations).zip(&accepted.notify);
    facts.map(|((address, &destination), &notify)| NewRecipient { address: address.as_bytes(), destination, notify })
}
