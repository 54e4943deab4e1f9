//! Nodes, their network and their faults, from one seed.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    election::{Answer, ElectionTimes, Event as ElectionEvent, Step},
    fence::Verdict,
    identity::{Incarnation, Leadership, Role},
    standing::Standing,
};

use crate::{
    Mutant,
    valkey::{Call, Reply, Valkey},
};

const MS: u64 = 1000;
const TTL: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The driver's deadline for a call.
const CALL_DEADLINE_US: u64 = 50 * MS;
const FAULTS_END_US: u64 = 25_000 * MS;
/// Quiet time in which the cluster must find a leader whom all follow: old leases, the polls, an outranked leader, orders on their way.
const END_US: u64 = FAULTS_END_US + 25_000 * MS;
/// At the end every node has accepted an order within this.
const FOLLOWED_WITHIN_US: u64 = 12_000 * MS;

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

enum Event {
    Tick(usize, u32),
    Arrives(usize, u32, u64, Call),
    Answers(usize, u32, u64, Reply),
    TimesOut(usize, u32, u64),
    Order(usize, Leadership),
    Replicate,
    Fault,
}

struct Node {
    standing: Standing,
    role: Role,
    life: u32,
    /// The clock runs so many parts per million too fast.
    drift_ppm: i64,
    on_disk: Option<Leadership>,
    highest_accepted: u64,
    paused_until: u64,
    cut_off_until: u64,
    /// Requests reach Valkey, answers do not come back.
    deaf_until: u64,
    election_call: Option<u64>,
    next_heartbeat: u64,
    next_effect: u64,
    masters_seen: bool,
    last_order: u64,
}

pub struct World {
    random: Random,
    now: u64,
    sequence: u64,
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    nodes: Vec<Node>,
    valkey: Valkey,
    violation: Option<String>,
    pub orders_accepted: u64,
    pub orders_refused: u64,
    trace: u64,
    led: HashSet<Leadership>,
}

/// What one seed showed.
pub struct Outcome {
    pub violation: Option<String>,
    pub effects: u64,
    pub refused: u64,
    pub lossy_failovers: u64,
    /// Equal for equal seeds.
    pub trace: u64,
}

impl World {
    pub fn run(seed: u64, mutant: Mutant) -> Outcome {
        let mut random = Random(seed);
        let count = 2 + random.below(4) as usize;
        let mut world = World {
            random,
            now: 1_000_000 * MS,
            sequence: 0,
            heap: BinaryHeap::new(),
            events: HashMap::new(),
            nodes: Vec::new(),
            valkey: Valkey::new(mutant),
            violation: None,
            orders_accepted: 0,
            orders_refused: 0,
            trace: seed,
            led: HashSet::new(),
        };
        for index in 0..count {
            let role = match index {
                0 | 1 => Role::Master,
                _ => [Role::Master, Role::Worker, Role::Standby][world.random.below(3) as usize],
            };
            let drift_ppm = world.random.below(10_001) as i64 - 5000;
            let incarnation = world.incarnation(index);
            let standing = Standing::new(incarnation, role, ElectionTimes::of(TTL, HEARTBEAT), None);
            world.nodes.push(Node {
                standing,
                role,
                life: 0,
                drift_ppm,
                on_disk: None,
                highest_accepted: 0,
                paused_until: 0,
                cut_off_until: 0,
                deaf_until: 0,
                election_call: None,
                next_heartbeat: 0,
                next_effect: 0,
                masters_seen: true,
                last_order: 0,
            });
            world.after(0, Event::Tick(index, 0));
        }
        world.after(0, Event::Replicate);
        world.after(500 * MS, Event::Fault);
        let start = world.now;
        while world.violation.is_none() && world.valkey.violation.is_none() {
            let Some(Reverse((at, id))) = world.heap.pop() else { break };
            if at - start > END_US {
                break;
            }
            world.now = at;
            let event = world.events.remove(&id).expect("scheduled once");
            world.step(event, at - start);
        }
        if world.violation.is_none() && world.valkey.violation.is_none() {
            world.check_end();
        }
        Outcome {
            violation: world.violation.or(world.valkey.violation.take()),
            effects: world.valkey.effects + world.orders_accepted,
            refused: world.valkey.refused + world.orders_refused,
            lossy_failovers: world.valkey.lossy_failovers,
            trace: world.trace,
        }
    }

    fn incarnation(&mut self, index: usize) -> Incarnation {
        let random = u128::from(self.random.next()) << 64 | u128::from(self.random.next());
        Incarnation::new(format!("n{index}").parse().expect("a node id"), random)
    }

    fn after(&mut self, delay_us: u64, event: Event) -> u64 {
        self.sequence += 1;
        self.heap.push(Reverse((self.now + delay_us, self.sequence)));
        self.events.insert(self.sequence, event);
        self.sequence
    }

    fn local(&self, node: usize) -> BootTime {
        let drift = self.now as i64 / 1_000_000 * self.nodes[node].drift_ppm;
        BootTime::after_boot(Duration::from_micros(self.now.saturating_add_signed(drift)))
    }

    fn network_delay(&mut self) -> u64 {
        match self.random.below(20) {
            0 => self.random.below(3000 * MS),
            1 => self.random.below(80 * MS),
            _ => 200 + self.random.below(2 * MS),
        }
    }

    fn step(&mut self, event: Event, since_start: u64) {
        let kind = match &event {
            Event::Tick(node, _) => *node as u64,
            Event::Arrives(..) => 10,
            Event::Answers(..) => 11,
            Event::TimesOut(..) => 12,
            Event::Order(..) => 13,
            Event::Replicate => 14,
            Event::Fault => 15,
        };
        self.trace = (self.trace ^ self.now ^ kind << 56).wrapping_mul(0x0000_0100_0000_01B3);
        match event {
            Event::Tick(node, life) if life == self.nodes[node].life => self.tick(node),
            Event::Tick(..) => {}
            Event::Arrives(node, life, id, call) => {
                let reply = self.valkey.run(self.now, call);
                if self.nodes[node].deaf_until <= self.now {
                    let delay = self.network_delay();
                    self.after(delay, Event::Answers(node, life, id, reply));
                }
            }
            Event::Answers(node, life, id, reply) => {
                if self.defer_if_paused(node, |node| Event::Answers(node, life, id, reply.clone())) || life != self.nodes[node].life {
                    return;
                }
                self.answered(node, id, reply);
            }
            Event::TimesOut(node, life, id) => {
                if self.defer_if_paused(node, |node| Event::TimesOut(node, life, id)) || life != self.nodes[node].life {
                    return;
                }
                if self.nodes[node].election_call == Some(id) {
                    self.nodes[node].election_call = None;
                    let now = self.local(node);
                    self.nodes[node].standing.answered(now, Answer::Unknown);
                }
            }
            Event::Order(node, order) => {
                if !self.defer_if_paused(node, |node| Event::Order(node, order.clone())) {
                    self.receive(node, order);
                }
            }
            Event::Replicate => {
                self.valkey.replicate();
                let next = 1 + self.random.below(300 * MS);
                self.after(next, Event::Replicate);
            }
            Event::Fault if since_start < FAULTS_END_US => {
                self.fault();
                let next = self.random.below(2500 * MS);
                self.after(next, Event::Fault);
            }
            Event::Fault => self.heal(),
        }
    }

    fn defer_if_paused(&mut self, node: usize, event: impl Fn(usize) -> Event) -> bool {
        let until = self.nodes[node].paused_until;
        if until <= self.now {
            return false;
        }
        let jitter = self.random.below(MS);
        self.after(until - self.now + jitter, event(node));
        true
    }

    fn tick(&mut self, node: usize) {
        let life = self.nodes[node].life;
        if self.defer_if_paused(node, |node| Event::Tick(node, life)) {
            return;
        }
        let now = self.local(node);
        let random = self.random.next();
        let masters_alive = self.nodes[node].masters_seen;
        let step = self.nodes[node].standing.next(now, masters_alive, random);
        let ttl_us = TTL.as_micros() as u64;
        let call = match step {
            Step::Wait(_) => None,
            Step::Acquire(floor) => {
                let me = self.nodes[node].standing.incarnation().clone();
                Some(Call::Acquire { me, floor, ttl_us })
            }
            Step::Renew(mine) => Some(Call::Renew { mine, ttl_us }),
            Step::Release(mine) => Some(Call::Release { mine }),
            Step::Look => Some(Call::Look),
        };
        if let Some(call) = call {
            let id = self.send(node, call);
            self.nodes[node].election_call = Some(id);
        }
        self.persist(node);
        if self.nodes[node].next_heartbeat <= self.now {
            self.nodes[node].next_heartbeat = self.now + 1000 * MS;
            let floor = self.nodes[node].standing.floor();
            self.send(node, Call::Heartbeat { floor });
        }
        let leadership = self.nodes[node].standing.leadership(self.local(node));
        if let Some(order) = leadership
            && self.nodes[node].next_effect <= self.now
        {
            self.nodes[node].next_effect = self.now + 300 * MS;
            self.act(order, node);
        }
        let next = (40 + self.random.below(60)) * MS;
        self.after(next, Event::Tick(node, life));
    }

    fn persist(&mut self, node: usize) {
        if let Some(mine) = self.nodes[node].standing.to_persist() {
            self.accept(node, mine);
        }
    }

    fn accept(&mut self, node: usize, leadership: Leadership) {
        let now = self.local(node);
        let state = &mut self.nodes[node];
        if leadership.epoch.0 < state.highest_accepted {
            self.violation = Some(format!("n{node} accepted epoch {} after {}", leadership.epoch, state.highest_accepted));
        }
        state.highest_accepted = state.highest_accepted.max(leadership.epoch.0);
        state.on_disk = Some(leadership.clone());
        state.standing.accept(now, leadership);
        for event in self.nodes[node].standing.take_events() {
            if let ElectionEvent::Elected(epoch) = event {
                let led = Leadership { incarnation: self.nodes[node].standing.incarnation().clone(), epoch };
                if !self.led.insert(led.clone()) {
                    self.violation = Some(format!("{led} led twice"));
                }
            }
        }
    }

    /// A leader's effects: the check was made, but what comes after it may take long (a pause, a slow network).
    fn act(&mut self, order: Leadership, leader: usize) {
        let late = if self.random.one_in(10) { self.random.below(8000 * MS) } else { 0 };
        for node in 0..self.nodes.len() {
            let delay = late + self.network_delay();
            if node == leader || !self.random.one_in(5) {
                self.after(delay, Event::Order(node, order.clone()));
            }
        }
        let delay = late + self.network_delay();
        let life = self.nodes[leader].life;
        if self.nodes[leader].cut_off_until <= self.now {
            let id = self.sequence + 1;
            self.after(delay, Event::Arrives(leader, life, id, Call::Effect { order }));
        }
    }

    fn receive(&mut self, node: usize, order: Leadership) {
        match self.nodes[node].standing.judge(&order) {
            Verdict::Current => {
                self.nodes[node].last_order = self.now;
                self.orders_accepted += 1;
            }
            Verdict::Newer => {
                self.accept(node, order);
                self.nodes[node].last_order = self.now;
                self.orders_accepted += 1;
            }
            Verdict::OutOfReach(floor) => self.violation = Some(format!("n{node}, at {floor}, cannot follow {order}")),
            Verdict::Stale(epoch) | Verdict::Rival(epoch) => {
                self.orders_refused += 1;
                // The refusal travels back to whoever gave the order, if it still lives.
                if let Some(leader) = self.nodes.iter_mut().find(|other| *other.standing.incarnation() == order.incarnation) {
                    leader.standing.refused(epoch);
                }
            }
        }
    }

    fn send(&mut self, node: usize, call: Call) -> u64 {
        let id = self.sequence + 1;
        let life = self.nodes[node].life;
        let delay = self.network_delay();
        if self.nodes[node].cut_off_until <= self.now {
            self.after(delay, Event::Arrives(node, life, id, call));
        }
        self.after(CALL_DEADLINE_US, Event::TimesOut(node, life, id));
        id
    }

    fn answered(&mut self, node: usize, id: u64, reply: Reply) {
        let now = self.local(node);
        match reply {
            Reply::Election(answer) => {
                // An answer after its deadline is dropped, as the driver does.
                if self.nodes[node].election_call == Some(id) {
                    self.nodes[node].election_call = None;
                    self.nodes[node].standing.answered(now, answer);
                    self.persist(node);
                }
            }
            Reply::Heartbeat(epoch, leader) => {
                self.nodes[node].masters_seen = leader.is_some() || self.random.one_in(2);
                self.nodes[node].standing.saw(now, epoch, leader);
            }
            Reply::Effect(Err(epoch)) => self.nodes[node].standing.refused(epoch),
            Reply::Effect(Ok(())) => {}
        }
    }

    fn fault(&mut self) {
        let node = self.random.below(self.nodes.len() as u64) as usize;
        let leading = self
            .nodes
            .iter()
            .position(|node| node.standing.leader().is_some_and(|leader| leader.incarnation == *node.standing.incarnation()));
        let node = if self.random.one_in(2) { leading.unwrap_or(node) } else { node };
        let until = self.now + self.random.below(9000 * MS);
        match self.random.below(12) {
            0 | 1 => self.nodes[node].paused_until = until,
            2 => self.nodes[node].cut_off_until = until,
            3 => self.nodes[node].deaf_until = until,
            4 | 5 => self.valkey.fail_over(),
            6 => self.valkey.is_replicating = !self.valkey.is_replicating,
            7 => self.valkey.flush(),
            8 => self.valkey.clock_offset_us = self.random.below(8000 * MS) as i64 - 4000 * MS as i64,
            9 | 10 => self.restart(node),
            _ => {
                let now = self.local(node);
                self.nodes[node].standing.hand_over(now);
            }
        }
    }

    fn restart(&mut self, node: usize) {
        let incarnation = self.incarnation(node);
        let state = &mut self.nodes[node];
        state.life += 1;
        state.election_call = None;
        state.standing = Standing::new(incarnation, state.role, ElectionTimes::of(TTL, HEARTBEAT), state.on_disk.clone());
        let life = state.life;
        self.after(300 * MS, Event::Tick(node, life));
    }

    fn heal(&mut self) {
        self.valkey.is_replicating = true;
        for node in &mut self.nodes {
            node.paused_until = node.paused_until.min(self.now);
            node.cut_off_until = 0;
            node.deaf_until = 0;
        }
    }

    /// Once the faults are over, a leader is found whom every node follows.
    fn check_end(&mut self) {
        if let Some(node) = self.nodes.iter().position(|node| self.now - node.last_order > FOLLOWED_WITHIN_US) {
            self.violation = Some(format!("at the end n{node} follows nobody"));
        }
    }
}
