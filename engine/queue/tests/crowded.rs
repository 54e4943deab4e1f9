//! A peer that allows fewer connections than the destination has homes: all mail arrives about as fast as the peer takes it, and few
//! connections are refused.

use std::collections::{BTreeMap, VecDeque};

use ringpost_queue::{
    DestinationLimits, Dispatch, Guest, Homes, HostsTried, NewMessage, NewRecipient, NextHop, Notify, Outcome, Queue, QueueId,
    QueueSettings, Refused, RetryPolicy, Route, Routes, Settled, Via, Wait, Work,
};

const START: u64 = 1_790_000_000_000;
const DELAY_MS: u64 = 100;
const STEP_MS: u64 = 10;

enum Back {
    Delivered,
    Refused { until: u64, wait: Wait, reason: String },
}

struct Connection {
    shard: usize,
    /// Until when it is busy, and with what. Idle ones stay for ever.
    busy: Option<(u64, Dispatch)>,
}

struct Shard {
    queue: Queue,
    out: BTreeMap<u32, Dispatch>,
    /// Attempts that wait for a connection.
    waiting: VecDeque<Dispatch>,
    requests: VecDeque<Guest>,
    replies: VecDeque<(Guest, Back)>,
    calls: u32,
    sent: u64,
}

struct World {
    now: u64,
    shards: Vec<Shard>,
    connections: Vec<Connection>,
    /// Connections that the peer allows.
    capacity: usize,
    refused: usize,
    delivered: usize,
    most: usize,
}

impl World {
    fn new(shards: u16, capacity: usize, window_initial: u32) -> Self {
        let shard = |shard| {
            let hop = NextHop::from("192.0.2.1:25".parse::<std::net::SocketAddr>().unwrap());
            let limits = DestinationLimits { connections_max: 20, window_initial, ..DestinationLimits::default() };
            let via = Via::Smarthost { hosts: vec![hop] };
            let route = Route { pattern: "*".into(), via, retry: RetryPolicy::default(), limits };
            let settings = QueueSettings { homes: Homes { shard, shards }, ..QueueSettings::default() };
            Shard {
                queue: Queue::new(settings, Routes::new(vec![route]).unwrap(), u64::from(shard), START),
                out: BTreeMap::new(),
                waiting: VecDeque::new(),
                requests: VecDeque::new(),
                replies: VecDeque::new(),
                calls: 0,
                sent: 0,
            }
        };
        let shards = (0..shards).map(shard).collect();
        Self { now: START, shards, connections: Vec::new(), capacity, refused: 0, delivered: 0, most: 0 }
    }

    /// As many messages for each shard.
    fn add(&mut self, each: usize) {
        for (at, shard) in self.shards.iter_mut().enumerate() {
            for _ in 0..each {
                shard.sent += 1;
                let id = QueueId { boot: 1, shard: at as u16, sequence: shard.sent };
                let message = NewMessage { id, size: 1000, accepted_at: self.now, ..NewMessage::default() };
                let destination = shard.queue.route(b"y.test");
                let recipient = NewRecipient { address: b"b@y.test", destination, notify: Notify::default() };
                shard.queue.enqueue(&message, std::iter::once(recipient), self.now);
            }
        }
    }

    fn of(&self, at: usize) -> usize {
        self.connections.iter().filter(|connection| connection.shard == at).count()
    }

    fn start(&mut self, at: usize, dispatch: Dispatch) {
        let until = self.now + DELAY_MS;
        if let Some(idle) = self.connections.iter_mut().find(|connection| connection.shard == at && connection.busy.is_none()) {
            idle.busy = Some((until, dispatch));
            return;
        }
        let (up, destination) = (self.of(at), dispatch.destination());
        let queue = &mut self.shards[at].queue;
        if up >= queue.connections_now(destination, self.now) as usize {
            return self.shards[at].waiting.push_back(dispatch);
        }
        let host = queue.next_host(destination, &mut HostsTried::default(), self.now).expect("its host is alive");
        if self.connections.len() < self.capacity {
            queue.connections_are_up(destination, up as u32 + 1, self.now);
            queue.host_reached(destination, host, self.now);
            self.connections.push(Connection { shard: at, busy: Some((until, dispatch)) });
            self.most = self.most.max(self.connections.len());
            return;
        }
        self.refused += 1;
        queue.host_crowded(destination, host, "421 4.7.0 too many connections", self.now);
        queue.crowded(destination, up as u32, self.now);
        if dispatch.is_guest() {
            let refused = queue.put_off_guest(dispatch, self.now);
            self.send_back(refused);
        } else {
            assert_eq!(queue.abandon(dispatch, self.now), Settled::Nothing);
        }
    }

    fn send_back(&mut self, Refused { guest, until, wait, reason }: Refused) {
        self.shards[usize::from(guest.owner())].replies.push_back((guest, Back::Refused { until, wait, reason }));
    }

    fn deliver(&mut self, at: usize, dispatch: Dispatch) {
        let outcome = [(0, Outcome::Delivered { reply: b"250 ok" })];
        let (key, now) = (dispatch.key(), self.now);
        let queue = &mut self.shards[at].queue;
        if dispatch.is_guest() {
            let guest = queue.settle_guest(dispatch, &outcome, now);
            self.shards[usize::from(guest.owner())].replies.push_back((guest, Back::Delivered));
        } else {
            let _ = queue.settle(dispatch, &outcome, now, &mut Vec::new());
            queue.recorded(key);
            self.delivered += 1;
        }
    }

    fn step(&mut self) {
        for at in 0..self.shards.len() {
            while let Some((guest, back)) = self.shards[at].replies.pop_front() {
                let dispatch = self.shards[at].out.remove(&guest.owner_call).expect("each is answered once");
                match back {
                    Back::Delivered => self.deliver(at, dispatch),
                    Back::Refused { until, wait, reason } => {
                        let queue = &mut self.shards[at].queue;
                        queue.home_sleeps(&dispatch, until, wait, &reason, self.now);
                        assert_eq!(queue.abandon(dispatch, self.now), Settled::Nothing);
                    }
                }
            }
            while let Some(guest) = self.shards[at].requests.pop_front() {
                assert!(self.shards[at].queue.receive(guest, self.now).is_ok(), "it is a home, even if it gave way");
            }
            let mut polls = 0;
            while let Some(work) = self.shards[at].queue.poll(self.now, &mut Vec::new()) {
                let Work::Attempt(dispatch) = work else { panic!("{work:?}") };
                polls += 1;
                assert!(polls < 1000, "shard {at} spins");
                let Some(home) = dispatch.home() else {
                    self.start(at, dispatch);
                    continue;
                };
                let (shard, mut guest) = (&mut self.shards[at], Guest::default());
                shard.queue.describe(&dispatch, shard.calls, &mut guest);
                shard.out.insert(shard.calls, dispatch);
                shard.calls += 1;
                self.shards[usize::from(home)].requests.push_back(guest);
            }
            while let Some(refused) = self.shards[at].queue.take_refused() {
                self.send_back(refused);
            }
        }
        for which in 0..self.connections.len() {
            let at = self.connections[which].shard;
            let Some((_, dispatch)) = self.connections[which].busy.take_if(|(until, _)| *until <= self.now) else { continue };
            let destination = dispatch.destination();
            self.deliver(at, dispatch);
            let shard = &mut self.shards[at];
            let next = shard.waiting.pop_front().or_else(|| shard.queue.poll_next(destination, self.now));
            self.connections[which].busy = next.map(|next| (self.now + DELAY_MS, next));
        }
        self.now += STEP_MS;
    }

    /// Until so many are delivered; the time that took.
    fn run(&mut self, delivered: usize, patience_ms: u64) -> u64 {
        let began = self.now;
        while self.delivered < delivered {
            self.step();
            let took = self.now - began;
            assert!(took < patience_ms, "{} of {delivered} delivered, {} refused, after {took} ms", self.delivered, self.refused);
        }
        self.now - began
    }
}

/// A home that never got one of the peer's connections took each refusal for a dead host, for up to five minutes; the others had nothing to
/// do, their idle connections kept the peer full, and what was that home's expired. It gives way to the others now.
#[test]
fn a_peer_that_allows_fewer_connections_than_there_are_homes_gets_all_mail_as_fast_as_it_takes_it() {
    for window_initial in [1, 5, 20] {
        for shards in [1, 2, 3, 4, 8] {
            for capacity in [1, 2, 3, 5, 20] {
                let mut world = World::new(shards, capacity, window_initial);
                let messages = 800;
                world.add(messages / usize::from(shards));
                let messages = messages / usize::from(shards) * usize::from(shards);
                // As many as fit, or as the window has grown to; each that is used is free again at the next step.
                let least = messages as u64 * (DELAY_MS + STEP_MS) / capacity as u64;
                let took = world.run(messages, least * 3 / 2 + 30_000);
                println!("window {window_initial}, {shards} shards, {capacity} allowed: {took} ms, {} refused", world.refused);
                // One round of each home's window, and then one for each doubling of the time.
                let rounds = 3 * (1 + (took / 10_000).max(1).ilog2() as usize + 1);
                assert!(world.refused <= window_initial as usize * 3 + rounds, "{} refused", world.refused);
                assert!(world.most <= capacity);
            }
        }
    }
}

#[test]
fn a_peer_that_is_full_is_asked_again_within_seconds_and_one_that_allows_more_is_given_more() {
    let mut world = World::new(4, 0, 1);
    world.add(50);
    while world.now < START + 120_000 {
        world.step();
    }
    // Three homes: after 1, 2, 4, 8, 16 and then every 30 seconds, less the jitter.
    assert!((9..=36).contains(&world.refused), "{} refused in two minutes", world.refused);
    world.capacity = 1;
    world.run(200, 60_000 + 200 * (DELAY_MS + STEP_MS));
    world.capacity = 6;
    // The longest time for which nothing more is tried, and its jitter.
    let until = world.now + 2 * 360_000;
    while world.now < until && world.most < 6 {
        world.add(10);
        let delivered = world.delivered;
        world.run(delivered + 30, 60_000);
    }
    assert_eq!(world.most, 6);
}
