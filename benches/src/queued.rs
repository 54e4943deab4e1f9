//! A queue with real entries over many destinations, and what is done with it.

use ringpost_queue::{
    DestinationId, DestinationLimits, Dispatch, NewMessage, NewRecipient, Notify, Outcome, Queue, QueueId, QueueSettings, RetryPolicy,
    Route, Routes, Settled, Via, Work,
};

use crate::Random;

/// The time of the first enqueue, unix milliseconds.
pub const START: u64 = 1_790_000_000_000;
/// Destinations that mail goes to.
pub const DESTINATIONS: usize = 64;
/// Attempts at a time at one destination: more than are ever open, so that the window is not what is measured.
const ATTEMPTS_MAX: u32 = 100_000;

/// A queue and what is needed to feed it.
#[derive(Debug)]
pub struct Queued {
    /// The queue.
    pub queue: Queue,
    destinations: Vec<DestinationId>,
    addresses: Vec<String>,
    random: Random,
    sequence: u64,
    record: Vec<u8>,
    open: Vec<Dispatch>,
    /// Of the ids that were settled.
    pub checksum: u64,
    /// Unix milliseconds.
    pub now: u64,
}

impl Queued {
    /// `depth` messages wait, spread over the destinations at random.
    pub fn new(depth: usize) -> Self {
        let limits = DestinationLimits { connections_max: ATTEMPTS_MAX, window_initial: ATTEMPTS_MAX, ..Default::default() };
        let domains: Vec<String> = (0..DESTINATIONS).map(|number| format!("mx{number}.example.com")).collect();
        let via = Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().expect("an address")] };
        let route = |pattern: &String| Route { pattern: pattern.clone(), via: via.clone(), retry: RetryPolicy::default(), limits };
        let routes = Routes::new(domains.iter().map(route).collect()).expect("the table is valid");
        let mut queue = Queue::new(QueueSettings { messages_max: usize::MAX, ..Default::default() }, routes, 1, START);
        let destinations = domains.iter().map(|domain| queue.route(domain.as_bytes())).collect();
        let addresses = domains.iter().map(|domain| format!("some.recipient@{domain}")).collect();
        let mut queued = Self {
            queue,
            destinations,
            addresses,
            random: Random::default(),
            sequence: 0,
            record: Vec::with_capacity(1024),
            open: Vec::new(),
            checksum: 0,
            now: START,
        };
        (0..depth).for_each(|_| queued.enqueue());
        queued
    }

    /// Queues a message for some destination.
    pub fn enqueue(&mut self) {
        self.sequence += 1;
        let at = self.random.below(DESTINATIONS);
        let message = NewMessage {
            id: QueueId { boot: 7, shard: 0, sequence: self.sequence },
            size: 4096,
            accepted_at: self.now,
            expires_at: None,
            priority: 5,
            eight_bit: false,
            smtputf8: false,
            reverse_path: b"newsletter-bounces@lists.example.org",
            ..NewMessage::default()
        };
        let recipient = NewRecipient { address: self.addresses[at].as_bytes(), destination: self.destinations[at], notify: Notify::UNSAID };
        self.queue.enqueue(&message, std::iter::once(recipient), self.now);
    }

    /// Starts an attempt. Panics when nothing may go.
    pub fn poll(&mut self) {
        match self.queue.poll(self.now, &mut self.record) {
            Some(Work::Attempt(dispatch)) => self.open.push(dispatch),
            other => panic!("mail waits that may go, and nothing expires: {other:?}"),
        }
    }

    /// Delivers some open attempt, and the log says that it knows.
    pub fn settle(&mut self) {
        let at = self.random.below(self.open.len());
        let dispatch = self.open.swap_remove(at);
        let key = dispatch.key();
        self.checksum = self.checksum.rotate_left(3) ^ self.queue.envelope(key).map_or(0, |envelope| envelope.id.sequence);
        let settled = self.queue.settle(dispatch, &[(0, Outcome::Delivered { reply: b"250 2.0.0 ok" })], self.now, &mut self.record);
        assert_eq!(settled, Settled::Done);
        self.queue.recorded(key);
    }

    /// Defers some open attempt; the record is acknowledged.
    pub fn defer(&mut self) {
        let at = self.random.below(self.open.len());
        let dispatch = self.open.swap_remove(at);
        let key = dispatch.key();
        let settled =
            self.queue.settle(dispatch, &[(0, Outcome::Deferred { reply: b"450 4.2.0 mailbox busy" })], self.now, &mut self.record);
        assert_eq!(settled, Settled::Outcome);
        self.record.clear();
        self.queue.recorded(key);
    }

    /// Gives an open attempt away, whose destination is its number.
    pub fn take_open(&mut self) -> Option<Dispatch> {
        self.open.pop()
    }
}
