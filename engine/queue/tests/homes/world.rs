//! Shards, the lanes between them, and connections to next hops; what is open and under way beside them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringpost_queue::{
    DestinationLimits, Dispatch, Guest, Homes, HostsTried, Jitter, MessageKey, NewMessage, NewRecipient, NextHop, Notify, Outcome,
    Question, Queue, QueueId, QueueSettings, Refused, Resolution, RetryPolicy, Route, Routes, Settled, Via, Wait, Work,
};

pub const START: u64 = 1_790_000_000_000;

pub type Recipient = (QueueId, u16);

pub enum End {
    Delivered,
    Deferred,
    Untried,
    Unreachable { until: u64, wait: Wait, reason: String },
    Refused { until: u64, wait: Wait, reason: String },
}

pub enum Message {
    Request(Box<Guest>),
    Reply(Box<Guest>, End),
}

/// A connection with the attempts on it, the second chained behind the first.
pub struct Connection {
    pub home: usize,
    pub route: usize,
    pub attempts: VecDeque<Dispatch>,
}

pub struct Shard {
    pub queue: Queue,
    pub next_sequence: u64,
    /// Out at homes, by the number of the call.
    pub out: BTreeMap<u32, Dispatch>,
    pub next_call: u32,
    pub kept: Vec<MessageKey>,
}

impl Shard {
    pub fn new(homes: Homes, routes: Routes, seed: u64) -> Self {
        let queue = Queue::new(QueueSettings { homes, ..QueueSettings::default() }, routes, seed, START);
        Self { queue, next_sequence: 1, out: BTreeMap::new(), next_call: 0, kept: Vec::new() }
    }
}

pub struct World {
    pub random: Jitter,
    pub now: u64,
    pub limits: Vec<u32>,
    pub shards: Vec<Shard>,
    /// From, to.
    pub lanes: BTreeMap<(usize, usize), VecDeque<Message>>,
    pub connections: Vec<Connection>,
    /// Where a host is dead.
    pub is_dead: Vec<bool>,
    pub attempting: BTreeSet<Recipient>,
    pub open: BTreeSet<Recipient>,
    pub attempts: usize,
    pub crossed: usize,
    pub refused: usize,
    pub most: Vec<usize>,
}

pub fn hop(number: usize) -> NextHop {
    NextHop::from(format!("192.0.2.{}:25", number + 1).parse::<std::net::SocketAddr>().unwrap())
}

pub fn domain(route: usize) -> String {
    format!("d{route}.test")
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Jitter::new(seed);
        let shards = 2 + random.below(6) as u16;
        let limits: Vec<u32> = (0..1 + random.below(6)).map(|_| [1, 2, 3, 8, 9, 20, 40][random.below(7) as usize]).collect();
        let route = |(number, limit): (usize, &u32)| Route {
            pattern: domain(number),
            via: if number % 2 == 0 { Via::Smarthost { hosts: vec![hop(number)] } } else { Via::Mx { port: 25 } },
            retry: RetryPolicy { first_ms: 50, max_ms: 200, ..RetryPolicy::default() },
            limits: DestinationLimits { connections_max: *limit, window_initial: *limit, ..DestinationLimits::default() },
        };
        let routes = || Routes::new(limits.iter().enumerate().map(route).collect()).unwrap();
        let shard = |shard| Shard::new(Homes { shard, shards }, routes(), seed ^ u64::from(shard));
        Self {
            now: START,
            shards: (0..shards).map(shard).collect(),
            lanes: BTreeMap::new(),
            connections: Vec::new(),
            is_dead: vec![false; limits.len()],
            attempting: BTreeSet::new(),
            open: BTreeSet::new(),
            attempts: 0,
            crossed: 0,
            refused: 0,
            most: vec![0; limits.len()],
            random,
            limits,
        }
    }

    fn pick(&mut self, count: usize) -> usize {
        self.random.below(count as u64) as usize
    }

    fn enqueue(&mut self) {
        let at = self.pick(self.shards.len());
        let priority = self.pick(3) as u8 * 4;
        let recipients: Vec<(String, String)> = (0..1 + self.pick(3))
            .map(|number| {
                let domain = domain(self.pick(self.limits.len()));
                (format!("r{number}@{domain}"), domain)
            })
            .collect();
        self.accept(at, priority, &recipients);
    }

    /// Mail comes to a shard; recipients with their domains.
    pub fn accept(&mut self, at: usize, priority: u8, recipients: &[(String, String)]) {
        let shard = &mut self.shards[at];
        let id = QueueId { boot: 1, shard: at as u16, sequence: shard.next_sequence };
        shard.next_sequence += 1;
        let message =
            NewMessage { id, size: 1000, accepted_at: self.now, priority, reverse_path: b"sender@x.test", ..NewMessage::default() };
        let routed: Vec<_> = recipients.iter().map(|(address, domain)| (address, shard.queue.route(domain.as_bytes()))).collect();
        let recipients = routed.iter().map(|(address, destination)| NewRecipient {
            address: address.as_bytes(),
            destination: *destination,
            notify: Notify::default(),
        });
        shard.queue.enqueue(&message, recipients, self.now);
        self.open.extend((0..routed.len() as u16).map(|number| (id, number)));
    }

    fn route_of(&self, shard: usize, dispatch: &Dispatch) -> usize {
        let (_, address) = self.shards[shard].queue.recipients(dispatch).next().expect("an attempt has recipients");
        let text = std::str::from_utf8(address).unwrap();
        let (_, number) = text.split_once("@d").unwrap();
        number.trim_end_matches(".test").parse().unwrap()
    }

    /// Does what a shard's queue wants; whether there was anything.
    pub fn poll(&mut self, at: usize) -> bool {
        let mut record = Vec::new();
        let Some(work) = self.shards[at].queue.poll(self.now, &mut record) else {
            return self.answer_refused(at);
        };
        let dispatch = match work {
            Work::Attempt(dispatch) => dispatch,
            Work::Resolve(lookup) => {
                let Question::Mx { domain, .. } = &lookup.question else { panic!("of a route by mx") };
                let number: usize = domain[1..].trim_end_matches(".test").parse().unwrap();
                let hosts = vec![hop(number)];
                let until = self.now + 5000;
                let answer = Resolution::Site { key: format!("site of {domain}"), name: domain.clone(), hosts, is_whole: true, until };
                self.shards[at].queue.resolved(lookup.asking, &answer, self.now);
                return true;
            }
            other => panic!("{other:?}"),
        };
        if let Some(home) = dispatch.home() {
            self.crossed += 1;
            let shard = &mut self.shards[at];
            let mut guest = Box::new(Guest::default());
            shard.queue.describe(&dispatch, shard.next_call, &mut guest);
            shard.out.insert(shard.next_call, dispatch);
            shard.next_call += 1;
            self.lanes.entry((at, home.into())).or_default().push_back(Message::Request(guest));
            return true;
        }
        let route = self.route_of(at, &dispatch);
        self.begin(at, &dispatch);
        self.connections.push(Connection { home: at, route, attempts: VecDeque::from([dispatch]) });
        let open = self.connections.iter().filter(|connection| connection.route == route).count();
        assert!(open <= self.limits[route] as usize, "{open} connections to a destination that may have {}", self.limits[route]);
        self.most[route] = self.most[route].max(open);
        true
    }

    fn answer_refused(&mut self, at: usize) -> bool {
        let Some(Refused { guest, until, wait, reason }) = self.shards[at].queue.take_refused() else { return false };
        self.refused += 1;
        self.reply(at, guest, End::Refused { until, wait, reason });
        true
    }

    fn reply(&mut self, home: usize, guest: Guest, end: End) {
        let owner = usize::from(guest.owner());
        self.lanes.entry((home, owner)).or_default().push_back(Message::Reply(Box::new(guest), end));
    }

    /// The envelope as an attempt sees it is the owner's, and no recipient is attempted twice at a time or after it was settled.
    fn begin(&mut self, at: usize, dispatch: &Dispatch) {
        self.attempts += 1;
        let queue = &self.shards[at].queue;
        let envelope = queue.envelope(dispatch.key()).expect("the message is there");
        assert_eq!(envelope.reverse_path, b"sender@x.test");
        let recipients: Vec<_> = queue.recipients(dispatch).map(|(number, address)| (number, address.to_vec())).collect();
        assert_eq!(recipients.len(), dispatch.recipients());
        for (number, address) in recipients {
            assert!(address.starts_with(format!("r{number}@").as_bytes()));
            let recipient = (envelope.id, number);
            assert!(self.open.contains(&recipient), "{recipient:?} was delivered before");
            assert!(self.attempting.insert(recipient), "{recipient:?} is attempted twice at a time");
        }
    }

    /// Ends the first attempt of a connection, or chains one behind it.
    fn serve(&mut self, which: usize) {
        let (home, route) = (self.connections[which].home, self.connections[which].route);
        if self.connections[which].attempts.len() == 1 && self.pick(3) == 0 {
            let before = self.connections[which].attempts.front().unwrap();
            if let Some(behind) = self.shards[home].queue.poll_behind(before, self.now) {
                self.begin(home, &behind);
                self.connections[which].attempts.push_back(behind);
            }
            return;
        }
        let dispatch = self.connections[which].attempts.pop_front().unwrap();
        let numbers: Vec<u16> = self.shards[home].queue.recipients(&dispatch).map(|(number, _)| number).collect();
        let id = self.shards[home].queue.envelope(dispatch.key()).unwrap().id;
        numbers.iter().for_each(|number| assert!(self.attempting.remove(&(id, *number))));
        let destination = dispatch.destination();
        if self.is_dead[route] {
            let mut tried = HostsTried::default();
            let queue = &mut self.shards[home].queue;
            while let Some(host) = queue.next_host(destination, &mut tried, self.now) {
                queue.host_failed(destination, host, "connect: refused", self.now);
            }
            self.end(home, dispatch, &id, &numbers, None);
        } else {
            let end = match self.pick(20) {
                0 => End::Deferred,
                1 => End::Untried,
                _ => End::Delivered,
            };
            let mut tried = HostsTried::default();
            let queue = &mut self.shards[home].queue;
            if let Some(host) = queue.next_host(destination, &mut tried, self.now) {
                queue.host_reached(destination, host, self.now);
            }
            if self.pick(50) == 0 {
                self.abandon(home, dispatch);
            } else {
                self.end(home, dispatch, &id, &numbers, Some(end));
            }
        }
        let connection = &mut self.connections[which];
        if connection.attempts.is_empty()
            && !self.is_dead[route]
            && let Some(next) = self.shards[home].queue.poll_next(destination, self.now)
        {
            connection.attempts.push_back(next);
            let next = self.connections[which].attempts.pop_back().unwrap();
            self.begin(home, &next);
            self.connections[which].attempts.push_back(next);
        }
        if self.connections[which].attempts.is_empty() {
            self.connections.swap_remove(which);
        }
    }

    fn abandon(&mut self, at: usize, dispatch: Dispatch) {
        let queue = &mut self.shards[at].queue;
        if dispatch.is_guest() {
            assert!(queue.abandon_guest(dispatch, false, self.now).is_none());
        } else {
            assert_eq!(queue.abandon(dispatch, self.now), Settled::Nothing);
        }
    }

    /// `None`: no host was reached.
    pub fn end(&mut self, at: usize, dispatch: Dispatch, id: &QueueId, numbers: &[u16], end: Option<End>) {
        if let Some(End::Delivered) = end {
            numbers.iter().for_each(|number| assert!(self.open.remove(&(*id, *number))));
        }
        if !dispatch.is_guest() {
            let outcomes = end.map(|end| outcomes(&end, numbers));
            return self.settle(at, dispatch, outcomes.as_deref());
        }
        let queue = &mut self.shards[at].queue;
        match end {
            None => {
                let Refused { guest, until, wait, reason } = queue.unreachable_guest(dispatch, self.now);
                self.reply(at, guest, End::Unreachable { until, wait, reason });
            }
            Some(end) => {
                let guest = queue.settle_guest(dispatch, &outcomes(&end, numbers), self.now);
                self.reply(at, guest, end);
            }
        }
    }

    fn settle(&mut self, at: usize, dispatch: Dispatch, outcomes: Option<&[(u16, Outcome<'_>)]>) {
        let (key, mut record) = (dispatch.key(), Vec::new());
        let shard = &mut self.shards[at];
        let settled = match outcomes {
            Some(outcomes) => shard.queue.settle(dispatch, outcomes, self.now, &mut record),
            None => shard.queue.unreachable(dispatch, self.now, &mut record),
        };
        if settled != Settled::Nothing {
            shard.kept.push(key);
        }
        // Acknowledged at some later time.
        if shard.kept.len() > 5 {
            shard.kept.drain(..).for_each(|key| shard.queue.recorded(key));
        }
    }

    /// Brings the next message of a lane.
    pub fn carry(&mut self, lane: (usize, usize)) {
        let Some(message) = self.lanes.get_mut(&lane).and_then(VecDeque::pop_front) else { return };
        match message {
            Message::Request(guest) => {
                if let Err(guest) = self.shards[lane.1].queue.receive(*guest, self.now) {
                    panic!("{:?} came to a shard that is no home", guest.id());
                }
            }
            Message::Reply(guest, end) => {
                let shard = &mut self.shards[lane.1];
                let dispatch = shard.out.remove(&guest.owner_call).expect("each dispatch is answered once");
                let numbers: Vec<u16> = shard.queue.recipients(&dispatch).map(|(number, _)| number).collect();
                match end {
                    End::Unreachable { until, wait, reason } => {
                        shard.queue.home_sleeps(&dispatch, until, wait, &reason, self.now);
                        self.settle(lane.1, dispatch, None);
                    }
                    End::Refused { until, wait, reason } => {
                        shard.queue.home_sleeps(&dispatch, until, wait, &reason, self.now);
                        assert_eq!(shard.queue.abandon(dispatch, self.now), Settled::Nothing);
                    }
                    end => self.settle(lane.1, dispatch, Some(&outcomes(&end, &numbers))),
                }
            }
        }
    }

    pub fn step(&mut self) {
        match self.pick(12) {
            0 if self.open.len() < 3000 => self.enqueue(),
            1..=4 => {
                let at = self.pick(self.shards.len());
                self.poll(at);
            }
            5..=7 if !self.lanes.is_empty() => {
                let at = self.pick(self.lanes.len());
                let lane = *self.lanes.keys().nth(at).unwrap();
                self.carry(lane);
            }
            8..=10 if !self.connections.is_empty() => {
                let which = self.pick(self.connections.len());
                self.serve(which);
            }
            11 => match self.pick(400) {
                0 => {
                    let route = self.pick(self.limits.len());
                    self.is_dead[route] = !self.is_dead[route];
                }
                1 => self.now += 2000,
                _ => self.now += self.random.below(3),
            },
            _ => {}
        }
    }

    /// Everything is well from now on; until nothing is queued.
    pub fn finish(&mut self) {
        self.is_dead.fill(false);
        let mut rounds = 0;
        while !self.open.is_empty() {
            for at in 0..self.shards.len() {
                while self.poll(at) {}
            }
            let lanes: Vec<_> = self.lanes.keys().copied().collect();
            for lane in lanes {
                while self.lanes.get(&lane).is_some_and(|lane| !lane.is_empty()) {
                    self.carry(lane);
                }
            }
            for which in (0..self.connections.len()).rev() {
                self.serve(which);
            }
            self.now += 20;
            rounds += 1;
            assert!(rounds < 200_000, "{} recipients are stuck; out: {:?}", self.open.len(), self.out());
        }
        // Answers that are still under way.
        for _ in 0..3 {
            let lanes: Vec<_> = self.lanes.keys().copied().collect();
            for lane in lanes {
                while self.lanes.get(&lane).is_some_and(|lane| !lane.is_empty()) {
                    self.carry(lane);
                }
            }
        }
        assert!(self.out().iter().all(|out| *out == 0), "not answered: {:?}", self.out());
        assert!(self.attempting.is_empty() && self.connections.is_empty());
        for shard in &mut self.shards {
            shard.kept.drain(..).for_each(|key| shard.queue.recorded(key));
            assert!(shard.queue.is_empty());
            assert_eq!(shard.queue.guests_waiting(), 0);
        }
    }

    fn out(&self) -> Vec<usize> {
        self.shards.iter().map(|shard| shard.out.len()).collect()
    }
}

fn outcomes(end: &End, numbers: &[u16]) -> Vec<(u16, Outcome<'static>)> {
    let outcome = match end {
        End::Delivered => Outcome::Delivered { reply: b"250 ok" },
        End::Deferred => Outcome::Deferred { reply: b"450 4.2.0 later" },
        _ => return Vec::new(),
    };
    numbers.iter().map(|number| (*number, outcome)).collect()
}
