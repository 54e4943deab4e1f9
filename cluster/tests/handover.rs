//! Hand-over of mail between nodes over a Valkey that forgets, goes away and loses answers: simulated, from a seed.
//!
//! Whatever happens, no mail is lost; and it is delivered twice only where Valkey lost its data or was away for longer than the guard.
//! `RINGPOST_SEEDS=100000 cargo test --profile fast -p ringpost-cluster --test handover` is the long run.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    claim::{ClaimTimes, Claims, Verdict},
    offer::{OWN_AGAIN, OfferTimes, Offers, Todo},
    work_queue::{Completed, Enqueued, Known},
};

const LEASE: Duration = Duration::from_secs(3);
const OFFERS: OfferTimes = OfferTimes {
    lease_ttl: LEASE,
    guard: Duration::from_secs(1),
    reconcile_every: Duration::from_secs(10),
    forget_after: Duration::from_secs(60),
};
const CLAIMS: ClaimTimes =
    ClaimTimes { lease_ttl: LEASE, repeat_after: Duration::from_millis(200), reconciliation: Duration::from_secs(25) };
const NODES: usize = 3;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The queue's scripts, as far as they matter here: one partition, the model of `queue_model` in small.
#[derive(Default)]
struct Valkey {
    is_up: bool,
    generation: u64,
    /// Where an item is: with `None` it is ready.
    items: BTreeMap<String, Option<Lease>>,
    outcomes: HashMap<String, (String, String)>,
    tokens: u64,
}

struct Lease {
    token: String,
    until: BootTime,
}

/// What can go wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Faults {
    crashes: bool,
    lost_answers: bool,
    outages: bool,
    flushes: bool,
}

#[derive(Clone, PartialEq, Debug)]
enum Held {
    /// Accepted here, in somebody's queue.
    Offered,
    /// To be delivered here.
    Local,
    /// A copy of another's item.
    Claim { token: String },
}

struct Node {
    spool: BTreeMap<String, Held>,
    offers: Offers,
    claims: Claims,
    /// Leased or stored, with what comes next.
    to_complete: VecDeque<String>,
    pushes: VecDeque<String>,
    down_until: Option<BootTime>,
    is_away: bool,
}

struct World {
    random: Random,
    now: BootTime,
    valkey: Valkey,
    up_again: Option<BootTime>,
    nodes: Vec<Node>,
    delivered: BTreeMap<String, u32>,
    accepted: u64,
    faults: Faults,
    rules: Rules,
}

/// Negative controls.
#[derive(Clone, Copy, PartialEq)]
enum Rules {
    AsShipped,
    /// The owner settles when a worker leases.
    SettlesAtLease,
    /// A refused claim is delivered all the same.
    DeliversRefused,
    /// An unanswered claim is dropped.
    DropsUnanswered,
}

impl World {
    fn new(seed: u64, faults: Faults, rules: Rules) -> World {
        let now = BootTime::after_boot(Duration::from_secs(1000));
        let node = || Node {
            spool: BTreeMap::new(),
            offers: Offers::new(OFFERS, true, now),
            claims: Claims::new(CLAIMS),
            to_complete: VecDeque::new(),
            pushes: VecDeque::new(),
            down_until: None,
            is_away: false,
        };
        World {
            random: Random(seed),
            now,
            valkey: Valkey { is_up: true, ..Valkey::default() },
            up_again: None,
            nodes: (0..NODES).map(|_| node()).collect(),
            delivered: BTreeMap::new(),
            accepted: 0,
            faults,
            rules,
        }
    }

    /// One call to Valkey: `None` is no answer, whether it was done or not.
    fn call<R>(&mut self, node: usize, script: impl FnOnce(&mut Valkey, BootTime) -> R) -> Option<R> {
        let (loses_request, loses_answer) = match self.faults.lost_answers {
            true => (self.random.chance(3), self.random.chance(3)),
            false => (false, false),
        };
        let answer = (self.valkey.is_up && !loses_request).then(|| script(&mut self.valkey, self.now)).filter(|_| !loses_answer);
        let (offers, generation) = (&mut self.nodes[node].offers, self.valkey.generation.to_string());
        if answer.is_some() {
            offers.returned(self.now);
            offers.generation(0, &generation, self.now);
            self.nodes[node].is_away = false;
        } else {
            offers.away(self.now);
            self.nodes[node].is_away = true;
        }
        answer
    }

    fn enqueue(&mut self, node: usize, id: &str) {
        let answer = self.call(node, |valkey, _| {
            if valkey.items.contains_key(id) {
                Enqueued::Present
            } else if valkey.outcomes.contains_key(id) {
                Enqueued::Completed
            } else {
                valkey.items.insert(id.to_owned(), None);
                Enqueued::Added
            }
        });
        match answer {
            Some(answer) => self.nodes[node].offers.enqueued(id, answer),
            None => self.nodes[node].offers.unanswered(id),
        }
    }

    fn offer(&mut self, node: usize, id: &str) {
        match self.nodes[node].spool.get(id) {
            Some(Held::Offered) => {
                if self.nodes[node].offers.sending(id) {
                    self.enqueue(node, id);
                } else {
                    self.nodes[node].spool.insert(id.to_owned(), Held::Local);
                }
            }
            _ => self.nodes[node].offers.gone(id),
        }
    }

    fn accept(&mut self, node: usize) {
        self.accepted += 1;
        let id = format!("n{node}.{}", self.accepted);
        self.delivered.insert(id.clone(), 0);
        self.nodes[node].spool.insert(id.clone(), Held::Offered);
        self.offer(node, &id);
    }

    fn do_offers(&mut self, node: usize) {
        while let Some(id) = self.nodes[node].pushes.pop_front() {
            self.nodes[node].offers.done(&id);
        }
        for _ in 0..4 {
            let now = self.now;
            let Some(todo) = self.nodes[node].offers.poll(now) else { return };
            match todo {
                Todo::Ask(ids) => {
                    let answers = self.call(node, |valkey, _| {
                        let known = |id: &String| match (valkey.items.get(id), valkey.outcomes.get(id)) {
                            (Some(None), _) => Known::Waiting,
                            (Some(Some(_)), _) => Known::Leased,
                            (None, Some((_, result))) => Known::Completed(result.clone()),
                            (None, None) => Known::Unknown,
                        };
                        ids.iter().map(known).collect::<Vec<_>>()
                    });
                    for (id, known) in ids.iter().zip(answers.into_iter().flatten()) {
                        self.nodes[node].offers.known(id, &known, now);
                    }
                }
                Todo::Offer(ids) => ids.iter().for_each(|id| self.offer(node, id)),
                Todo::Settle(ids) => {
                    for id in ids {
                        self.nodes[node].spool.remove(&id);
                        self.nodes[node].offers.settled(&id, now);
                    }
                }
                Todo::TakeBack(ids) => {
                    for id in ids {
                        if let Some(held @ Held::Offered) = self.nodes[node].spool.get_mut(&id) {
                            *held = Held::Local;
                        }
                    }
                }
                Todo::Withdraw(ids) => {
                    let answers = self.call(node, |valkey, _| {
                        ids.iter()
                            .map(|id| match valkey.items.get(id) {
                                Some(Some(_)) => false,
                                _ => {
                                    valkey.items.remove(id);
                                    true
                                }
                            })
                            .collect::<Vec<_>>()
                    });
                    for (id, is_out) in ids.iter().zip(answers.into_iter().flatten()) {
                        self.nodes[node].offers.withdrawn(id, is_out);
                    }
                }
                Todo::Forget(ids) => {
                    let answer = self.call(node, |valkey, _| ids.iter().for_each(|id| drop(valkey.outcomes.remove(id))));
                    for id in ids {
                        self.nodes[node].offers.forgotten(&id, answer.is_some(), now);
                    }
                }
            }
        }
    }

    fn lease(&mut self, node: usize) {
        // Owners take back first what they have delivered while Valkey was away.
        if self.nodes[node].is_away || self.nodes[node].claims.len() > 8 {
            let _ = self.call(node, |_, _| ());
            return;
        }
        let asked_at = self.now;
        let leased = self.call(node, |valkey, now| {
            let ready: Vec<String> = valkey.items.iter().filter(|(_, lease)| lease.is_none()).map(|(id, _)| id.clone()).take(4).collect();
            for id in &ready {
                valkey.tokens += 1;
                let lease = Lease { token: valkey.tokens.to_string(), until: now + LEASE };
                valkey.items.insert(id.clone(), Some(lease));
            }
            ready.into_iter().map(|id| (valkey.items[&id].as_ref().unwrap().token.clone(), id)).collect::<Vec<_>>()
        });
        let generation = self.valkey.generation.to_string();
        for (token, id) in leased.into_iter().flatten() {
            if self.rules == Rules::SettlesAtLease {
                for owner in &mut self.nodes {
                    if owner.spool.get(&id) == Some(&Held::Offered) {
                        owner.spool.remove(&id);
                    }
                }
            }
            if id.starts_with(&format!("n{node}.")) {
                let result = format!("{OWN_AGAIN} n{node}");
                if self.complete_call(node, &id, &token, &result).is_some() {
                    self.nodes[node].offers.done(&id);
                }
            } else if self.nodes[node].claims.leased(&id, &token, &generation, asked_at) {
                self.nodes[node].spool.insert(id.clone(), Held::Claim { token });
                self.nodes[node].to_complete.push_back(id);
            }
        }
    }

    fn complete_call(&mut self, node: usize, id: &str, token: &str, result: &str) -> Option<Completed> {
        let answer = self.call(node, |valkey, _| match valkey.items.get(id) {
            Some(Some(lease)) if lease.token == token => {
                valkey.items.remove(id);
                valkey.outcomes.insert(id.to_owned(), (token.to_owned(), result.to_owned()));
                (Completed::Done, true)
            }
            Some(_) => (Completed::Stale, false),
            None => match valkey.outcomes.get(id) {
                None => (Completed::Unknown, false),
                Some((other, _)) if other == token => (Completed::DoneBefore, false),
                Some(_) => (Completed::Stale, false),
            },
        });
        if let Some((Completed::Done, true)) = answer
            && self.random.chance(80)
        {
            let owner = usize::from(id.as_bytes()[1] - b'0');
            self.nodes[owner].pushes.push_back(id.to_owned());
        }
        answer.map(|(answer, _)| answer)
    }

    fn complete(&mut self, node: usize) {
        let due = self.nodes[node].claims.due(self.now);
        let mut ids: Vec<(String, bool)> = due.into_iter().map(|id| (id, false)).collect();
        if let Some(id) = self.nodes[node].to_complete.pop_front() {
            ids.push((id, true));
        }
        for (id, is_first) in ids {
            let now = self.now;
            if is_first && self.nodes[node].claims.stored(&id, now) == Verdict::Discard {
                self.nodes[node].spool.remove(&id);
                continue;
            }
            let Some(token) = self.nodes[node].claims.token(&id).map(str::to_owned) else { continue };
            let answer = self.complete_call(node, &id, &token, &format!("n{node}"));
            let generation = self.valkey.generation.to_string();
            let verdict = match answer {
                Some(answer) => self.nodes[node].claims.completed(&id, answer, &generation, now),
                None if self.rules == Rules::DropsUnanswered => Verdict::Discard,
                None => self.nodes[node].claims.unanswered(&id, true, now),
            };
            match verdict {
                Verdict::Own => drop(self.nodes[node].spool.insert(id, Held::Local)),
                Verdict::Discard if self.rules == Rules::DeliversRefused => drop(self.nodes[node].spool.insert(id, Held::Local)),
                Verdict::Discard => drop(self.nodes[node].spool.remove(&id)),
                Verdict::Later | Verdict::Complete => {}
            }
        }
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
    }

    fn crash(&mut self, node: usize) {
        let down = Duration::from_millis(100 + self.random.below(5_000));
        let now = self.now;
        let node = &mut self.nodes[node];
        node.down_until = Some(now + down);
        (node.offers, node.claims) = (Offers::new(OFFERS, true, now), Claims::new(CLAIMS));
        (node.to_complete, node.pushes) = (VecDeque::new(), VecDeque::new());
    }

    fn restart(&mut self, node: usize) {
        self.nodes[node].down_until = None;
        self.nodes[node].is_away = false;
        let now = self.now;
        for (id, held) in self.nodes[node].spool.clone() {
            match held {
                Held::Offered => self.offer(node, &id),
                // By what its spool says it is to be delivered here, but the queue may have it.
                Held::Local if id.starts_with(&format!("n{node}.")) => self.nodes[node].offers.keeps(&id),
                Held::Local => {}
                Held::Claim { token } => self.nodes[node].claims.recovered(&id, &token, now),
            }
        }
    }

    fn sweep(&mut self) {
        let now = self.now;
        for lease in self.valkey.items.values_mut().filter(|lease| lease.as_ref().is_some_and(|lease| now >= lease.until)) {
            *lease = None;
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
        if self.valkey.is_up {
            self.sweep();
        }
        if !is_calm {
            if self.faults.flushes && self.random.below(1500) == 0 {
                self.valkey.generation += 1;
                (self.valkey.items, self.valkey.outcomes) = (BTreeMap::new(), HashMap::new());
            }
            if self.faults.outages && self.valkey.is_up && self.random.below(1500) == 0 {
                self.valkey.is_up = false;
                self.up_again = Some(self.now + Duration::from_millis(self.random.below(15_000)));
            }
        }
        let node = self.random.below(NODES as u64) as usize;
        if self.nodes[node].down_until.is_some() {
            return;
        }
        if !is_calm && self.faults.crashes && self.random.below(300) == 0 {
            return self.crash(node);
        }
        match self.random.below(6) {
            // Load on one node.
            0 if !is_calm && self.accepted < 200 => self.accept(0),
            0 | 1 => self.do_offers(node),
            2 => self.lease(node),
            3 | 4 => self.complete(node),
            _ => self.deliver(node),
        }
    }

    fn is_done(&self) -> bool {
        self.nodes.iter().all(|node| node.spool.is_empty() && node.down_until.is_none())
    }

    /// Returns deliveries beyond the first of each, or what was lost.
    fn run(mut self) -> Result<(u64, u64), String> {
        for _ in 0..4000 {
            self.step(false);
        }
        let mut calm = 0;
        self.faults.lost_answers = false;
        while !self.is_done() {
            self.step(true);
            calm += 1;
            if calm > 40_000 {
                let left: Vec<_> = self.nodes.iter().map(|node| node.spool.len()).collect();
                return Err(format!("not done: {left:?}"));
            }
        }
        let lost: Vec<_> = self.delivered.iter().filter(|(_, count)| **count == 0).map(|(id, _)| id).collect();
        if !lost.is_empty() {
            return Err(format!("lost {lost:?}"));
        }
        let surplus = self.delivered.values().map(|&count| u64::from(count - 1)).sum();
        Ok((self.accepted, surplus))
    }
}

fn seeds() -> u64 {
    std::env::var("RINGPOST_SEEDS").ok().map_or(300, |text| text.parse().expect("RINGPOST_SEEDS is a number"))
}

fn run(faults: Faults, rules: Rules, seeds: u64) -> Result<(u64, u64), String> {
    let (mut accepted, mut surplus) = (0, 0);
    for seed in 0..seeds {
        let (mails, twice) = World::new(seed, faults, rules).run().map_err(|reason| format!("seed {seed}: {reason}"))?;
        (accepted, surplus) = (accepted + mails, surplus + twice);
    }
    println!("{faults:?}: {seeds} seeds, {accepted} mails, {surplus} delivered twice, 0 lost");
    Ok((accepted, surplus))
}

const CRASHES: Faults = Faults { crashes: true, lost_answers: true, outages: false, flushes: false };
const ALL: Faults = Faults { crashes: true, lost_answers: true, outages: true, flushes: true };

#[test]
fn crashes_and_lost_answers_lose_nothing_and_repeat_nothing() {
    let (accepted, surplus) = run(CRASHES, Rules::AsShipped, seeds()).unwrap();
    assert!(accepted > 10_000);
    assert_eq!(surplus, 0);
}

#[test]
fn lost_data_and_outages_lose_nothing_and_repeat_little() {
    let (accepted, surplus) = run(ALL, Rules::AsShipped, seeds()).unwrap();
    assert!(surplus * 10 < accepted, "{surplus} of {accepted}");
}

#[test]
fn an_owner_that_settles_too_early_is_noticed() {
    assert!(run(ALL, Rules::SettlesAtLease, 50).is_err());
}

#[test]
fn a_claim_delivered_in_spite_of_a_refusal_is_noticed() {
    assert!(run(CRASHES, Rules::DeliversRefused, 50).unwrap().1 > 0);
}

#[test]
fn a_claim_dropped_without_an_answer_is_noticed() {
    assert!(run(CRASHES, Rules::DropsUnanswered, 50).is_err());
}
