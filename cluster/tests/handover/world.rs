//! Nodes, their spools and what befalls them; the rules of both sides as they are shipped.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    breaker::{Breaker, Failure},
    claim::{ClaimTimes, Claims, Lease},
    offer::{OfferBounds, Offers},
};

use crate::valkey::{self, Random, Valkey};

#[path = "owner.rs"]
mod owner;
#[path = "worker.rs"]
mod worker;

const LEASE: Duration = Duration::from_secs(3);
const OFFERS: OfferBounds = OfferBounds {
    lease_ttl: LEASE,
    guard: Duration::from_secs(1),
    reconcile_every: Duration::from_secs(10),
    forget_after: Duration::from_secs(60),
    // Far below what is offered.
    open_max: 4,
    dead_wait: Duration::from_secs(300),
    partitions: 1,
};
const CLAIMS: ClaimTimes = ClaimTimes {
    lease_ttl: LEASE,
    repeat_after: Duration::from_millis(200),
    ask_every: Duration::from_secs(2),
    forget_after: OFFERS.forget_after,
    reconciliation: Duration::from_secs(25),
    alone_after: Duration::from_secs(900),
    refused_max: Duration::from_secs(4 * 3600),
};
/// Leases of an item that may end without an answer, as the driver's.
const ATTEMPTS_MAX: u32 = 5;
/// As the driver's.
const TICK: Duration = Duration::from_millis(500);
const OWNERS_FIRST: Duration = Duration::from_secs(2);
const NODES: usize = 3;
/// A Valkey that goes back in time loses nothing else for so long.
const APART: Duration = Duration::from_secs(60);
/// The outcome of what its owner had settled before Valkey went back.
const ENDED: &str = "ended";

/// What can go wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Faults {
    pub crashes: bool,
    pub lost_answers: bool,
    pub outages: bool,
    pub flushes: bool,
    /// Valkey comes back with what it had some moments before.
    pub rolls_back: bool,
    /// Somebody writes that items were completed.
    pub forgeries: bool,
    /// Valkey loses data again while nodes are still busy with the last loss.
    pub one_upon_another: bool,
    /// Somebody writes that items which were completed are there, under another's lease.
    pub forged_refusals: bool,
    /// That an owner has settled with a worker is durable only seconds later.
    pub slow_disks: bool,
}

/// What that says; it is not signed.
const FORGED: &str = "n9";

/// What the node that accepts mail is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Owner {
    /// It shares, and delivers as well.
    Shares,
    /// It only offers. Some of its mail is purged by command, some expires.
    Offers,
    /// It delivers by itself until it is emptied; after a restart it does so again.
    Drains,
}

/// Why mail is wanted back.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Wish {
    Purge,
    Expire,
    Deliver,
}

#[derive(Clone, PartialEq, Debug)]
enum Held {
    /// Accepted here, in somebody's queue.
    Offered,
    /// To be delivered here.
    Local,
}

struct Node {
    /// What it has accepted.
    spool: BTreeMap<String, Held>,
    /// What it has stored of others' mail, and whether that is its own by now.
    copies: BTreeMap<Lease, bool>,
    offers: Offers,
    claims: Claims,
    /// Leased or stored, with what comes next.
    to_complete: VecDeque<Lease>,
    pushes: VecDeque<String>,
    down_until: Option<BootTime>,
    is_away: bool,
    breaker: Breaker,
    /// Nothing is leased, nor completed once more, before: owners come first.
    owners_until: BootTime,
    wishes: HashMap<String, Wish>,
    /// What its shard has to give, to be offered: new mail, and what it was asked for.
    unsent: VecDeque<String>,
    again: VecDeque<String>,
    /// What its shard settles, durable from then on.
    settling: Vec<(BootTime, String)>,
    /// When it notices that Valkey may have gone back in time.
    reconnects_at: Option<BootTime>,
    /// Looks for items of its own that its spool does not have.
    is_to_scan: bool,
    is_draining: bool,
    /// Looks then whether Valkey is there, whatever else it does.
    next_tick: BootTime,
}

pub struct World {
    random: Random,
    now: BootTime,
    valkey: Valkey,
    up_again: Option<BootTime>,
    /// What Valkey comes back with, and when.
    snapshot: Option<(BootTime, Valkey)>,
    /// When it last went back, or lost everything.
    lost_at: BootTime,
    nodes: Vec<Node>,
    delivered: BTreeMap<String, u32>,
    /// Purged, or given up with a report.
    ended: BTreeMap<String, u32>,
    owner: Owner,
    accepted: u64,
    late: u64,
    faults: Faults,
    rules: Rules,
}

/// What a run came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Account {
    pub accepted: u64,
    /// How often a mail came to an end beyond its first: delivered twice, or delivered and ended.
    pub surplus: u64,
    /// Purged or expired.
    pub ended: u64,
    /// Dead letters.
    pub died: u64,
    /// Completions of what its owner delivered itself by then.
    pub late: u64,
}

/// Negative controls.
#[derive(Clone, Copy, PartialEq)]
pub enum Rules {
    AsShipped,
    /// The owner settles when a worker leases.
    SettlesAtLease,
    /// The owner believes whatever says that an item was completed.
    BelievesForgeries,
    /// A refused claim is delivered all the same.
    DeliversRefused,
    /// An unanswered claim is dropped.
    DropsUnanswered,
    /// What is wanted back is dropped without a word to the queue.
    EndsWithoutRecall,
    /// A shard gives to be offered what it has asked back.
    GivesWhatIsRecalled,
    /// What is offered again waits for room like new mail.
    GatesWhatIsOfferedAgain,
    /// On Valkey's return a worker repeats its completions at once.
    RepeatsBeforeOwners,
    /// The queue does not remember what was withdrawn.
    WithdrawsWithoutTrace,
    /// A node that shares no longer delivers what it finds at once.
    DeliversWithoutRecall,
    /// What its owner has settled is withdrawn like what it wants back.
    WithdrawsWhatIsSettled,
    /// A worker drops its copy as soon as the queue says that the item is there, or another's, whoever wrote that.
    DropsRefused,
    /// A worker keeps the lease of an item of which it has an undecided claim, and asks about that only once more.
    LetsLeasesRunOut,
}

fn claim_times(rules: Rules) -> ClaimTimes {
    let ask_every = if rules == Rules::LetsLeasesRunOut { CLAIMS.reconciliation } else { CLAIMS.ask_every };
    ClaimTimes { ask_every, ..CLAIMS }
}

impl World {
    /// A whole cluster from a seed.
    pub fn new(seed: u64, owner: Owner, faults: Faults, rules: Rules) -> World {
        let now = BootTime::after_boot(Duration::from_secs(1000));
        let claims = claim_times(rules);
        let node = |number: usize| Node {
            spool: BTreeMap::new(),
            copies: BTreeMap::new(),
            offers: Offers::new(OFFERS, number > 0 || owner != Owner::Offers, now),
            claims: Claims::new(claims),
            to_complete: VecDeque::new(),
            pushes: VecDeque::new(),
            down_until: None,
            is_away: false,
            breaker: Breaker::default(),
            owners_until: now,
            wishes: HashMap::new(),
            unsent: VecDeque::new(),
            again: VecDeque::new(),
            settling: Vec::new(),
            reconnects_at: None,
            is_to_scan: false,
            is_draining: false,
            next_tick: now,
        };
        World {
            random: Random(seed),
            now,
            valkey: Valkey { is_up: true, ..Valkey::default() },
            up_again: None,
            snapshot: None,
            lost_at: now,
            nodes: (0..NODES).map(node).collect(),
            delivered: BTreeMap::new(),
            ended: BTreeMap::new(),
            owner,
            accepted: 0,
            late: 0,
            faults,
            rules,
        }
    }

    /// One call to Valkey: `None` is no answer, whether it was done or not.
    fn call<R>(&mut self, node: usize, script: impl FnOnce(&mut Valkey, BootTime) -> R) -> Option<R> {
        // What is about to fail over answers little.
        let lost = if self.snapshot.is_some() { 40 } else { 3 };
        let (loses_request, loses_answer) = match self.faults.lost_answers {
            true => (self.random.chance(3), self.random.chance(lost)),
            false => (false, false),
        };
        // A driver that has met nobody for a while asks again only now and then: some nodes hear of a return later than others.
        let is_sent = self.nodes[node].breaker.allows(self.now);
        let answer = (is_sent && self.valkey.is_up && !loses_request).then(|| script(&mut self.valkey, self.now)).filter(|_| !loses_answer);
        let breaker = &mut self.nodes[node].breaker;
        match answer {
            _ if !is_sent => {}
            Some(_) => drop(breaker.succeeded(self.now)),
            None => drop(breaker.failed(Failure { sent_at: self.now, failed_at: self.now }, self.random.below(1024))),
        }
        let (offers, generation) = (&mut self.nodes[node].offers, self.valkey.generation.to_string());
        if answer.is_some() {
            if offers.returned(0, self.now) {
                self.nodes[node].owners_until = self.now + OWNERS_FIRST;
            }
            let offers = &mut self.nodes[node].offers;
            offers.generation(0, &generation, self.now);
            self.nodes[node].is_away = false;
        } else {
            offers.away(0, self.now);
            self.nodes[node].is_away = true;
        }
        answer
    }

    /// Owners may have begun to deliver what they had offered, and have not taken it out yet.
    fn is_owners_turn(&self, node: usize) -> bool {
        let Node { offers, owners_until, .. } = &self.nodes[node];
        self.now < *owners_until || offers.away_since().is_some_and(|since| self.now.since(since) >= LEASE)
    }

    fn deliver(&mut self, node: usize) {
        let local: Vec<String> =
            self.nodes[node].spool.iter().filter(|(_, held)| **held == Held::Local).map(|(id, _)| id.clone()).collect();
        for id in local {
            if self.random.chance(50) {
                self.nodes[node].spool.remove(&id);
                *self.delivered.get_mut(&id).unwrap() += 1;
            }
        }
        let own: Vec<Lease> = self.nodes[node].copies.iter().filter(|(_, is_own)| **is_own).map(|(lease, _)| lease.clone()).collect();
        for lease in own {
            if self.random.chance(50) {
                self.nodes[node].copies.remove(&lease);
                *self.delivered.get_mut(&lease.id).unwrap() += 1;
            }
        }
    }

    fn crash(&mut self, node: usize) {
        // Now and then for longer than claims wait, and never for as long as the queue remembers what was settled.
        let longest_ms = if self.random.chance(5) { 40_000 } else { 5_000 };
        let down = Duration::from_millis(100 + self.random.below(longest_ms));
        let (now, delivers, claims) = (self.now, node > 0 || self.owner != Owner::Offers, claim_times(self.rules));
        let node = &mut self.nodes[node];
        node.down_until = Some(now + down);
        (node.offers, node.claims) = (Offers::new(OFFERS, delivers, now), Claims::new(claims));
        (node.to_complete, node.pushes) = (VecDeque::new(), VecDeque::new());
        (node.unsent, node.again, node.settling) = (VecDeque::new(), VecDeque::new(), Vec::new());
        (node.wishes, node.is_draining) = (HashMap::new(), false);
    }

    fn restart(&mut self, node: usize) {
        self.nodes[node].down_until = None;
        self.nodes[node].is_away = false;
        self.nodes[node].is_to_scan = true;
        let (now, retracts) = (self.now, node == 0 && self.owner == Owner::Drains);
        if retracts {
            self.nodes[node].offers.retract();
        }
        for (id, held) in self.nodes[node].spool.clone() {
            match held {
                Held::Offered | Held::Local if retracts && self.rules == Rules::DeliversWithoutRecall => {
                    self.nodes[node].spool.insert(id, Held::Local);
                }
                Held::Offered | Held::Local if retracts => {
                    self.nodes[node].offers.recalled(&id);
                    self.nodes[node].spool.insert(id.clone(), Held::Offered);
                    self.nodes[node].wishes.insert(id, Wish::Deliver);
                }
                Held::Offered => self.nodes[node].unsent.push_back(id),
                // By what its spool says it is to be delivered here, but the queue may have it.
                Held::Local if id.starts_with(&format!("n{node}.")) => self.nodes[node].offers.keeps(&id),
                Held::Local => {}
            }
        }
        let Node { copies, claims, .. } = &mut self.nodes[node];
        copies.iter().filter(|(_, is_own)| !**is_own).for_each(|(lease, _)| claims.recovered(lease.clone(), now));
    }

    fn sweep(&mut self) {
        let now = self.now;
        self.valkey.items.retain(|_, held| held.as_ref().is_none_or(|held| held.token != FORGED || now < held.until));
        for (id, held) in self.valkey.items.iter_mut().filter(|(_, held)| held.as_ref().is_some_and(|held| now >= held.until)) {
            *held = None;
            let attempts = self.valkey.attempts.entry(id.clone()).or_default();
            if *attempts >= ATTEMPTS_MAX {
                *attempts = 0;
                self.valkey.died += 1;
            }
        }
    }

    fn step(&mut self, is_calm: bool) {
        self.now = self.now + Duration::from_millis(5 + self.random.below(60));
        if let Some(at) = self.up_again
            && (self.now >= at || is_calm)
        {
            (self.valkey.is_up, self.up_again) = (true, None);
        }
        for node in 0..NODES {
            if self.nodes[node].down_until.is_some_and(|at| self.now >= at || is_calm) {
                self.restart(node);
            }
        }
        if self.snapshot.as_ref().is_some_and(|(at, _)| self.now >= *at) {
            self.roll_back();
        }
        for node in &mut self.nodes {
            if node.down_until.is_none() && node.reconnects_at.is_some_and(|at| self.now >= at) {
                node.reconnects_at = None;
                node.is_to_scan = true;
                node.offers.missed(self.now);
                node.owners_until = self.now + OWNERS_FIRST;
            }
        }
        if !is_calm {
            let was_long_ago = self.faults.one_upon_another || self.now.since(self.lost_at) >= APART;
            let is_apart = !self.faults.rolls_back || self.snapshot.is_none() && was_long_ago;
            let soon_after = self.faults.one_upon_another && self.now.since(self.lost_at) < Duration::from_secs(5);
            if self.faults.flushes && is_apart && self.random.below(if soon_after { 60 } else { 1500 }) == 0 {
                self.valkey.generation += 1;
                self.lost_at = self.now;
                (self.valkey.items, self.valkey.outcomes) = (BTreeMap::new(), HashMap::new());
            }
            if self.faults.forgeries && self.random.below(60) == 0 {
                let items: Vec<String> = self.valkey.items.keys().cloned().collect();
                for id in items.into_iter().filter(|_| self.random.chance(30)) {
                    self.valkey.items.remove(&id);
                    self.valkey.tokens += 1;
                    self.valkey.outcomes.insert(id.clone(), (format!("forged {}", self.valkey.tokens), FORGED.to_owned()));
                    self.nodes[0].pushes.push_back(id);
                }
            }
            if self.faults.forged_refusals && self.random.below(10) == 0 {
                self.forge_refusals();
            }
            if self.faults.rolls_back && is_apart && self.random.below(300) == 0 {
                self.snapshot = Some((self.now + Duration::from_millis(self.random.below(4000)), self.valkey.clone()));
            }
            if self.faults.outages && self.valkey.is_up && self.random.below(1500) == 0 {
                self.valkey.is_up = false;
                self.up_again = Some(self.now + Duration::from_millis(self.random.below(15_000)));
            }
        }
        for node in 0..NODES {
            if self.nodes[node].down_until.is_none() && self.now >= self.nodes[node].next_tick {
                self.nodes[node].next_tick = self.now + TICK;
                if self.call(node, |_, _| ()).is_some() {
                    self.sweep();
                }
            }
        }
        let node = self.random.below(NODES as u64) as usize;
        if self.nodes[node].down_until.is_some() {
            return;
        }
        if !is_calm && self.faults.crashes && self.random.below(300) == 0 {
            return self.crash(node);
        }
        match (self.owner, node) {
            (Owner::Offers, 0) if !is_calm && self.random.below(12) == 0 => return self.want_back(0, Wish::Purge),
            (Owner::Offers, 0) if !is_calm && self.random.below(12) == 0 => return self.want_back(0, Wish::Expire),
            (Owner::Drains, 0) if self.nodes[0].is_draining && self.random.below(3) == 0 => return self.drain(0),
            (Owner::Drains, 0) if self.random.below(60) == 0 => return self.drain(0),
            _ => {}
        }
        match self.random.below(6) {
            // Load on one node.
            0 if !is_calm && self.accepted < 200 && self.nodes[0].down_until.is_none() => self.accept(0),
            0 | 1 => {
                self.offer_some(node);
                self.do_offers(node);
            }
            2 => self.lease(node),
            3 | 4 => self.complete(node),
            _ => self.deliver(node),
        }
    }

    /// Of what workers have completed, as far as the queue remembers it. What lies there nobody can read.
    fn forge_refusals(&mut self) {
        let completed = self.valkey.outcomes.iter().filter(|(_, (token, _))| !token.is_empty());
        for id in completed.map(|(id, _)| id.clone()).collect::<BTreeSet<_>>() {
            if self.random.chance(30) {
                self.valkey.outcomes.remove(&id);
                self.valkey.items.insert(id, Some(valkey::Held { token: FORGED.to_owned(), until: self.now + LEASE }));
            }
        }
    }

    /// A failover that lost writes, or a start from a snapshot: nobody is answered for a moment, and each node notices what it was when its
    /// connection for messages is a new one.
    fn roll_back(&mut self) {
        let Some((_, valkey)) = self.snapshot.take() else { return };
        self.lost_at = self.now;
        // Tokens are random: none comes twice.
        let Valkey { tokens, moments, died, .. } = self.valkey;
        self.valkey = Valkey { is_up: false, tokens, moments, died, ..valkey };
        let up_again = self.now + Duration::from_millis(200 + self.random.below(2000));
        self.up_again = Some(up_again);
        for node in &mut self.nodes {
            let longest_ms = if self.random.chance(50) { 200 } else { 2000 };
            node.reconnects_at = Some(up_again + Duration::from_millis(self.random.below(longest_ms)));
        }
    }

    fn is_done(&self) -> bool {
        self.nodes.iter().all(|node| node.spool.is_empty() && node.copies.is_empty() && node.down_until.is_none())
    }

    /// Returns what it came to, or what was lost.
    pub fn run(mut self) -> Result<Account, String> {
        for _ in 0..4000 {
            self.step(false);
        }
        let mut calm = 0;
        self.faults.lost_answers = false;
        while !self.is_done() {
            self.step(true);
            calm += 1;
            if calm > 40_000 {
                let left: Vec<_> = self.nodes.iter().map(|node| (node.spool.len(), node.copies.len())).collect();
                return Err(format!("not done: {left:?}"));
            }
        }
        let ends = |id: &String| self.delivered[id] + self.ended[id];
        let lost: Vec<_> = self.delivered.keys().filter(|id| ends(id) == 0).collect();
        if !lost.is_empty() {
            return Err(format!("lost {lost:?}"));
        }
        let surplus = self.delivered.keys().map(|id| u64::from(ends(id) - 1)).sum();
        let ended = self.ended.values().map(|&count| u64::from(count)).sum();
        Ok(Account { accepted: self.accepted, surplus, ended, died: self.valkey.died, late: self.late })
    }
}
