//! Several shards, whose dispatches go to home shards and come back over lanes of any slowness: none is lost or made twice, and the
//! connections to one destination, counted over all shards, are never more than its limit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringpost_queue::{
    DestinationLimits, Dispatch, Guest, Homes, HostsTried, Jitter, MessageKey, NewMessage, NewRecipient, NextHop, Notify, Outcome, Pauses,
    Question, Queue, QueueId, QueueSettings, Refused, Resolution, RetryPolicy, Route, Routes, Settled, Via, Wait, Work,
};

const START: u64 = 1_790_000_000_000;
/// Attempts of all runs together.
const ATTEMPTS: usize = 1_000_000;
const RUNS: u64 = 25;

type Recipient = (QueueId, u16);

enum End {
    Delivered,
    Deferred,
    Untried,
    Unreachable { until: u64, wait: Wait, reason: String },
    Refused { until: u64, wait: Wait, reason: String },
}

enum Message {
    Request(Box<Guest>),
    Reply(Box<Guest>, End),
}

/// A connection with the attempts on it, the second chained behind the first.
struct Connection {
    home: usize,
    route: usize,
    attempts: VecDeque<Dispatch>,
}

struct Shard {
    queue: Queue,
    next_sequence: u64,
    /// Out at homes, by the number of the call.
    out: BTreeMap<u32, Dispatch>,
    next_call: u32,
    kept: Vec<MessageKey>,
}

struct World {
    random: Jitter,
    now: u64,
    limits: Vec<u32>,
    shards: Vec<Shard>,
    /// From, to.
    lanes: BTreeMap<(usize, usize), VecDeque<Message>>,
    connections: Vec<Connection>,
    /// Where a host is dead.
    is_dead: Vec<bool>,
    attempting: BTreeSet<Recipient>,
    open: BTreeSet<Recipient>,
    attempts: usize,
    crossed: usize,
    refused: usize,
    most: Vec<usize>,
}

fn hop(number: usize) -> NextHop {
    NextHop::from(format!("192.0.2.{}:25", number + 1).parse::<std::net::SocketAddr>().unwrap())
}

fn domain(route: usize) -> String {
    format!("d{route}.test")
}

impl World {
    fn new(seed: u64) -> Self {
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
        let shard = |shard| Shard {
            queue: Queue::new(
                QueueSettings { homes: Homes { shard, shards }, ..QueueSettings::default() },
                routes(),
                seed ^ u64::from(shard),
                START,
            ),
            next_sequence: 1,
            out: BTreeMap::new(),
            next_call: 0,
            kept: Vec::new(),
        };
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
        let shard = &mut self.shards[at];
        let id = QueueId { boot: 1, shard: at as u16, sequence: shard.next_sequence };
        shard.next_sequence += 1;
        let message = NewMessage {
            id,
            size: 1000,
            accepted_at: self.now,
            expires_at: None,
            not_before: None,
            accepted_elsewhere: false,
            warn_at: None,
            traced: false,
            tags: &[],
            priority,
            eight_bit: false,
            eight_bit_header: false,
            smtputf8: false,
            extended: false,
            offered: Default::default(),
            reverse_path: b"sender@x.test",
        };
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
    fn poll(&mut self, at: usize) -> bool {
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
                self.shards[at].queue.resolved(lookup.destination, &answer, self.now);
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
    fn end(&mut self, at: usize, dispatch: Dispatch, id: &QueueId, numbers: &[u16], end: Option<End>) {
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
    fn carry(&mut self, lane: (usize, usize)) {
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

    fn step(&mut self) {
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
    fn finish(&mut self) {
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

#[test]
fn no_dispatch_is_lost_or_made_twice_and_limits_hold_over_all_shards() {
    let (mut attempts, mut crossed, mut refused, mut full, mut destinations) = (0, 0, 0, 0, 0);
    for seed in 0..RUNS {
        let mut world = World::new(seed);
        println!("seed {seed}: {} shards, limits {:?}", world.shards.len(), world.limits);
        while world.attempts < ATTEMPTS / RUNS as usize {
            world.step();
        }
        world.finish();
        println!(
            "  connections at once at most {:?}, {} of {} attempts crossed, {} refused",
            world.most, world.crossed, world.attempts, world.refused
        );
        attempts += world.attempts;
        crossed += world.crossed;
        refused += world.refused;
        destinations += world.limits.len();
        full += world.limits.iter().zip(&world.most).filter(|(limit, most)| **limit as usize == **most).count();
    }
    println!(
        "{attempts} attempts, {crossed} dispatches crossed, {refused} refused; {full} of {destinations} destinations were at their limit"
    );
    assert!(attempts >= ATTEMPTS && crossed > attempts / 10 && refused > 1000 && full > destinations / 2);
}

/// Two or three shards and one destination with one connection; what is at home there, and what is not.
fn one_connection(shards: u16) -> (World, usize, Vec<usize>) {
    let mut world = World::new(1);
    world.limits = vec![1];
    world.is_dead = vec![false];
    world.most = vec![0];
    let limits = DestinationLimits { connections_max: 1, window_initial: 1, ..DestinationLimits::default() };
    let route = || Route { pattern: domain(0), via: Via::Smarthost { hosts: vec![hop(0)] }, retry: RetryPolicy::default(), limits };
    world.shards = (0..shards)
        .map(|shard| Shard {
            queue: Queue::new(
                QueueSettings { homes: Homes { shard, shards }, ..QueueSettings::default() },
                Routes::new(vec![route()]).unwrap(),
                1,
                START,
            ),
            next_sequence: 1,
            out: BTreeMap::new(),
            next_call: 0,
            kept: Vec::new(),
        })
        .collect();
    let home = Homes { shard: 0, shards }.of(&domain(0), "", &limits)[0];
    let others = (0..shards).filter(|shard| *shard != home).map(usize::from).collect();
    (world, home.into(), others)
}

fn add(world: &mut World, at: usize, priority: u8, count: usize) {
    let now = world.now;
    for _ in 0..count {
        let shard = &mut world.shards[at];
        let id = QueueId { boot: 1, shard: at as u16, sequence: shard.next_sequence };
        shard.next_sequence += 1;
        let message = NewMessage {
            id,
            size: 1000,
            accepted_at: now,
            expires_at: None,
            not_before: None,
            accepted_elsewhere: false,
            warn_at: None,
            traced: false,
            tags: &[],
            priority,
            eight_bit: false,
            eight_bit_header: false,
            smtputf8: false,
            extended: false,
            offered: Default::default(),
            reverse_path: b"sender@x.test",
        };
        let destination = shard.queue.route(domain(0).as_bytes());
        let recipient = NewRecipient { address: b"r0@d0.test", destination, notify: Notify::default() };
        shard.queue.enqueue(&message, std::iter::once(recipient), now);
        world.open.insert((id, 0));
    }
}

/// Lets everything happen that can, and delivers one message at the home; its owner.
fn deliver_one(world: &mut World, home: usize) -> (u16, u64) {
    for _ in 0..3 {
        for at in 0..world.shards.len() {
            while world.poll(at) {}
        }
        let lanes: Vec<_> = world.lanes.keys().copied().collect();
        for lane in lanes {
            while world.lanes.get(&lane).is_some_and(|lane| !lane.is_empty()) {
                world.carry(lane);
            }
        }
    }
    let mut connection = world.connections.pop().expect("the home is serving");
    assert!(world.connections.is_empty() && connection.home == home);
    let dispatch = connection.attempts.pop_front().unwrap();
    let id = world.shards[home].queue.envelope(dispatch.key()).unwrap().id;
    world.attempting.remove(&(id, 0));
    world.end(home, dispatch, &id, &[0], Some(End::Delivered));
    (id.shard, id.sequence)
}

#[test]
fn a_home_serves_its_own_mail_and_that_of_each_other_shard_in_turn() {
    let (mut world, home, others) = one_connection(3);
    // The home has far more than the others, and had it first.
    add(&mut world, home, 0, 1000);
    world.now += 60_000;
    others.iter().for_each(|other| add(&mut world, *other, 0, 100));
    let mut served = [0; 3];
    for _ in 0..150 {
        served[usize::from(deliver_one(&mut world, home).0)] += 1;
    }
    assert!(served.iter().all(|count| (48..=52).contains(count)), "{served:?}");
}

#[test]
fn a_higher_priority_goes_first_on_both_sides_and_a_lower_one_is_not_starved() {
    for high_is_home in [true, false] {
        let (mut world, home, others) = one_connection(2);
        let (high, low) = if high_is_home { (home, others[0]) } else { (others[0], home) };
        add(&mut world, low, 0, 100);
        add(&mut world, high, 9, 400);
        // One of the low ones may have gone before the first high one came over the lane.
        let owners: Vec<usize> = (0..171).map(|_| deliver_one(&mut world, home).0.into()).skip(1).collect();
        let lows = owners.iter().filter(|owner| **owner == low).count();
        assert!((9..=11).contains(&lows), "{lows} of 170, high at home: {high_is_home}");
        assert!(owners.windows(2).all(|two| two != [low, low]));
    }
}

fn limits_of_one_home() -> DestinationLimits {
    DestinationLimits { connections_max: 1, window_initial: 1, ..DestinationLimits::default() }
}

/// One of three shards, with few destinations and one route by MX.
fn one_of_three(shard: u16) -> Queue {
    let route = Route { pattern: "*".into(), via: Via::Mx { port: 25 }, retry: RetryPolicy::default(), limits: limits_of_one_home() };
    let settings = QueueSettings { homes: Homes { shard, shards: 3 }, destinations_max: 3, ..QueueSettings::default() };
    Queue::new(settings, Routes::new(vec![route]).unwrap(), 1, START)
}

/// What one of three shards asks shard 1 for, when DNS told it these hosts of a site.
fn guest_of(shard: u16, hosts: Vec<NextHop>) -> Guest {
    guest_for("y.test", shard, hosts)
}

/// As [`guest_of`], for one of the domains of that site.
fn guest_for(domain: &str, shard: u16, hosts: Vec<NextHop>) -> Guest {
    let home_of = |key: &String| Homes { shard: 0, shards: 3 }.of("*", key, &limits_of_one_home())[0];
    let key = (0..).map(|number| format!("10 mx{number}.test")).find(|key| home_of(key) == 1).unwrap();
    let mut owner = one_of_three(shard);
    let destination = owner.route(domain.as_bytes());
    let message = NewMessage { id: QueueId { boot: 1, shard, sequence: 1 }, accepted_at: START, ..NewMessage::default() };
    let address = format!("b@{domain}");
    let recipient = NewRecipient { address: address.as_bytes(), destination, notify: Notify::default() };
    owner.enqueue(&message, std::iter::once(recipient), START);
    let dispatch = loop {
        match owner.poll(START, &mut Vec::new()) {
            Some(Work::Resolve(lookup)) => {
                let (key, hosts) = (key.clone(), hosts.clone());
                owner.resolved(
                    lookup.destination,
                    &Resolution::Site { key, name: "mx.test".into(), hosts, is_whole: true, until: START + 60_000 },
                    START,
                );
            }
            Some(Work::Attempt(dispatch)) => break dispatch,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(dispatch.home(), Some(1));
    let mut guest = Guest::default();
    owner.describe(&dispatch, 1, &mut guest);
    assert_eq!(owner.abandon(dispatch, START), Settled::Nothing);
    guest
}

/// While a reload goes from shard to shard they differ in who is home. A shard that was asked and is none made a site for the guest that
/// nothing removed: each counted as a destination in use for ever.
#[test]
fn a_site_made_for_a_guest_that_is_sent_back_goes_again() {
    let mut stranger = one_of_three(2);
    let guest = guest_of(0, vec![hop(0)]);
    assert!(stranger.has_room() && stranger.receive(guest, START).is_err() && !stranger.has_room());
    let mut now = START;
    while !stranger.has_room() {
        now = stranger.next_due(now).expect("the site is there for ever").max(now + 1);
        assert!(stranger.poll(now, &mut Vec::new()).is_none());
    }
}

/// A home took over the hosts of each guest: where DNS told two shards different ones, they went to and fro, and with each change the
/// connections to them were closed.
#[test]
fn the_hosts_of_a_site_do_not_go_to_and_fro_between_its_guests() {
    let mut home = one_of_three(1);
    home.receive(guest_of(0, vec![hop(0), hop(1)]), START).unwrap();
    let Some(Work::Attempt(dispatch)) = home.poll(START, &mut Vec::new()) else { panic!("it is its turn") };
    let (destination, mut tried) = (dispatch.destination(), HostsTried::default());
    let mut hosts: Vec<_> = std::iter::from_fn(|| home.next_host(destination, &mut tried, START)).collect();
    hosts.sort_by_key(|host| host.position());
    let told = |home: &mut Queue, shard, told: &[usize]| {
        home.receive(guest_of(shard, told.iter().map(|number| hop(*number)).collect()), START).unwrap();
        hosts.iter().map(|host| home.host_address(destination, *host).is_some()).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut home, 2, &[1, 2]), [true, true]);
    assert_eq!(told(&mut home, 0, &[0, 1]), [true, true]);
    assert_eq!(told(&mut home, 2, &[1, 2]), [true, true]);
    // What the same shard is told later counts, and what another is told when nothing that is known is in it.
    assert_eq!(told(&mut home, 0, &[1]), [false, true]);
    assert_eq!(told(&mut home, 2, &[2]), [false, false]);
    assert!(home.abandon_guest(dispatch, false, START).is_none());
}

/// A home that gave way took a guest whose attempt was given up, such as for want of a connection, back into its own line. From there it went
/// to the pool again, where it is allowed none, and so on for as long as that shard had mail of its own for the destination.
#[test]
fn a_guest_that_is_given_up_where_no_home_is_any_more_goes_back_to_its_owner() {
    let route = |connections_max| Route {
        pattern: "*".into(),
        via: Via::Smarthost { hosts: vec![hop(0)] },
        retry: RetryPolicy::default(),
        limits: DestinationLimits { connections_max, window_initial: connections_max, ..DestinationLimits::default() },
    };
    // With a message for the destination.
    let queue = |shard, connections_max| {
        let settings = QueueSettings { homes: Homes { shard, shards: 3 }, ..QueueSettings::default() };
        let mut queue = Queue::new(settings, Routes::new(vec![route(connections_max)]).unwrap(), 1, START);
        let destination = queue.route(b"y.test");
        let message = NewMessage { id: QueueId { boot: 1, shard, sequence: 1 }, accepted_at: START, ..NewMessage::default() };
        let recipient = NewRecipient { address: b"b@y.test", destination, notify: Notify::default() };
        queue.enqueue(&message, std::iter::once(recipient), START);
        queue
    };
    let next = |queue: &mut Queue| match queue.poll(START, &mut Vec::new()) {
        Some(Work::Attempt(dispatch)) => dispatch,
        other => panic!("{other:?}"),
    };
    let home = Homes { shard: 0, shards: 3 }.of("*", "", &limits_of_one_home())[0];
    let (owner, other) = ((home + 1) % 3, (home + 2) % 3);
    let mut owners = queue(owner, 1);
    let sent = next(&mut owners);
    let mut guest = Guest::default();
    owners.describe(&sent, 1, &mut guest);
    let mut others = queue(other, 24);
    others.receive(guest, START).unwrap();
    let (first, second) = (next(&mut others), next(&mut others));
    let (of_guest, own) = if first.is_guest() { (first, second) } else { (second, first) };
    assert!(of_guest.is_guest() && others.is_home(of_guest.destination()));
    others.set_routes(vec![route(1)], START).unwrap();
    assert!(!others.is_home(of_guest.destination()));
    assert_eq!(others.abandon(own, START), Settled::Nothing);
    assert!(others.abandon_guest(of_guest, false, START).is_none());
    assert_eq!(others.take_refused().map(|refused| refused.guest.owner()), Some(owner));
    let own = next(&mut others);
    assert_eq!((own.is_guest(), own.home()), (false, Some(home)));
    assert_eq!(others.abandon(own, START), Settled::Nothing);
    assert_eq!(owners.abandon(sent, START), Settled::Nothing);
}

/// What waited for its turn at a home was attempted though its domain had been paused: its owner had given it out before.
#[test]
fn guests_of_a_paused_domain_go_home_and_those_of_others_stay() {
    let mut home = one_of_three(1);
    home.receive(guest_for("y.test", 0, vec![hop(0)]), START).unwrap();
    home.receive(guest_for("z.test", 2, vec![hop(0)]), START).unwrap();
    let mut pauses = Pauses::default();
    pauses.insert("y.test");
    home.set_pauses(pauses.clone());
    home.follow_pauses(0..home.destination_slots(), START);
    let refused = home.take_refused().expect("it is paused");
    assert_eq!((refused.guest.owner(), refused.until, refused.wait), (0, START, Wait::Paused));
    assert!(home.take_refused().is_none());
    let Some(Work::Attempt(dispatch)) = home.poll(START, &mut Vec::new()) else { panic!("the other one's turn") };
    assert_eq!(home.recipients(&dispatch).map(|(_, address)| address.to_vec()).collect::<Vec<_>>(), [b"b@z.test"]);
    // One that was on its way.
    home.receive(refused.guest, START).unwrap();
    let refused = home.take_refused().expect("it is paused");
    pauses.remove("y.test");
    home.set_pauses(pauses.clone());
    home.follow_pauses(0..home.destination_slots(), START);
    home.receive(refused.guest, START).unwrap();
    assert_eq!((home.take_refused().is_none(), home.guests_waiting()), (true, 1));
    // The one under way is put off, and comes back to a pause of everything.
    pauses.set_all(true);
    home.set_pauses(pauses);
    home.follow_pauses(0..home.destination_slots(), START);
    assert_eq!(home.take_refused().map(|refused| refused.guest.owner()), Some(0));
    assert!(home.abandon_guest(dispatch, false, START).is_none());
    assert_eq!(home.take_refused().map(|refused| refused.guest.owner()), Some(2));
}

/// A site that is paused at its home by a name that its owner does not have for it: mail went to and fro between them without end.
#[test]
fn a_guest_of_a_paused_site_comes_again_after_a_while() {
    let mut home = one_of_three(1);
    let mut pauses = Pauses::default();
    pauses.insert("mx.test");
    home.set_pauses(pauses);
    home.receive(guest_of(0, vec![hop(0)]), START).unwrap();
    let refused = home.take_refused().expect("it is paused");
    assert_eq!((refused.until, refused.wait), (START + 1000, Wait::Paused));
}
