//! A model of one partition: where each item is, by plain rules.

use std::collections::BTreeMap;

use ringpost_cluster::{
    identity::Incarnation,
    script::Scripts,
    valkey::Valkey,
    work_item::ItemKey,
    work_queue::{Completed, Failed, PAST_MAX, QueueBounds, Retry, Swept, WorkQueue},
};
use ringpost_valkey_server::Server;

use crate::{keyspace, target};

/// What happens to the server now and then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    None,
    /// kill -9; its log brings everything back.
    Kill,
    /// kill -9; everything is gone.
    KillForgets,
    Flush,
}

#[derive(Debug, Default)]
#[allow(dead_code, reason = "read by Debug")]
pub struct Report {
    pub operations: u64,
    pub enqueued: u64,
    pub leased: u64,
    pub completed: u64,
    pub stale_refused: u64,
    pub recovered: u64,
    pub died: u64,
    pub faults: u64,
    pub offered_again: u64,
    pub settled: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Ready,
    /// Scheduled; whether its time has come.
    Scheduled(bool),
    Leased {
        worker: usize,
        token: String,
        timed: bool,
    },
    Dead,
    /// Completed by this token, not settled.
    Done(String),
}

#[derive(Clone, Debug)]
struct Item {
    state: State,
    priority: u8,
    attempts: u32,
    max_attempts: u32,
    /// A worker's lease of it ran out, of this offer or an earlier one: that worker may come back.
    was_left: bool,
    /// When it was enqueued, as its leases say.
    enqueued_at: String,
}

const WORKERS: usize = 3;
/// Of a long run each part meets a fault.
const FAULT_EVERY_MAX: u64 = 20_000;
const HOUR_MS: u64 = 3_600_000;
/// Items at a time; below what one lease call promotes.
const ITEMS: usize = 100;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len() as u64) as usize].clone()) }
    }
}

struct World {
    random: Random,
    queues: Vec<WorkQueue>,
    items: BTreeMap<String, Item>,
    /// What the owner has accepted and not settled: the originals.
    ledger: BTreeMap<String, (u8, u32)>,
    /// Tokens of leases, whatever became of them.
    tokens: Vec<(String, String)>,
    /// Of ended items that a worker had left: who ended them.
    past: BTreeMap<String, String>,
    next_id: u64,
    turns: u64,
    report: Report,
}

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => { if !$condition { return Err(format!($($message)*)); } };
}

// Behind the macro that it uses.
mod owner;

/// In the place of a token, of what its owner has withdrawn and signed.
const OWNER: &str = "owner ";

/// When the item was enqueued that was leased by this token.
fn moment(token: &str) -> &str {
    token.split(':').nth(2).expect("each says so")
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Runs random operations; Err says where server and model part.
pub async fn check(server: &mut Server, scripts: &'static Scripts, seed: u64, operations: u64, fault: Fault) -> Result<Report, String> {
    let bounds = QueueBounds { partitions: 1, capacity: 1_000_000, dead_max: 100_000 };
    // The deadline is not what is tested here, and the machine may be busy.
    let valkey = Valkey::with_scripts(target(server), scripts, std::time::Duration::from_secs(5));
    let key = ItemKey::new(b"test");
    let queues = (0..WORKERS).map(|worker| {
        let me = Incarnation::new("n1".parse().expect("a node id"), worker as u128 + 1);
        WorkQueue::new(valkey.clone(), keyspace(), "mail", bounds, key.clone(), me).expect("a queue's name")
    });
    let mut world = World {
        random: Random(seed),
        queues: queues.collect(),
        items: BTreeMap::new(),
        ledger: BTreeMap::new(),
        tokens: Vec::new(),
        past: BTreeMap::new(),
        next_id: 0,
        turns: 0,
        report: Report::default(),
    };
    let fault_every = (operations / 8).clamp(1, FAULT_EVERY_MAX);
    for operation in 1..=operations {
        world.report.operations = operation;
        world.step().await.map_err(|why| format!("seed {seed}, operation {operation}: {why}"))?;
        if operation % 500 == 0 || operation == operations {
            world.compare(server).map_err(|why| format!("seed {seed}, operation {operation}: {why}"))?;
        }
        if fault != Fault::None && operation % fault_every == 0 {
            world.report.faults += 1;
            match fault {
                Fault::Flush => drop(server.command("FLUSHALL")),
                // Synced each second, a log may lag behind the answers while a sync is under way: what that loses is a loss like any other,
                // and has its own test. Here everything is in the file.
                Fault::Kill => {
                    let mut looks = 0;
                    while !server.command("INFO persistence").contains("aof_buffer_length:0") {
                        looks += 1;
                        assert!(looks < 4000, "the log is not written: {}", server.command("INFO persistence"));
                        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    }
                    server.restart();
                }
                _ => server.restart(),
            }
            // Connections of the killed server are noticed by the first call, which may fail for that.
            for _ in 0..200 {
                if world.queues[0].renew(0, HOUR_MS).await.is_ok() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            if fault != Fault::Kill {
                world.reconcile().await.map_err(|why| format!("seed {seed}, after the loss at {operation}: {why}"))?;
            }
            world.compare(server)?;
        }
    }
    world.drain().await.map_err(|why| format!("seed {seed}, at the end: {why}"))?;
    world.compare(server)?;
    Ok(world.report)
}

impl World {
    async fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..30 if self.live() < ITEMS && self.items.len() < 4 * ITEMS => self.enqueue().await,
            0..52 => self.lease().await,
            52..68 => self.complete().await,
            68..74 => self.complete_stale().await,
            74..82 => self.fail().await,
            82..86 => self.extend().await,
            86..90 => self.crash().await,
            90..91 => self.recover().await,
            91..93 => self.settle().await,
            93..95 => self.withdraw().await,
            95..99 => self.requeue().await,
            _ => self.ask().await,
        }
    }

    /// Items that can become ready by themselves.
    fn live(&self) -> usize {
        self.items.values().filter(|item| matches!(item.state, State::Ready | State::Scheduled(true) | State::Leased { .. })).count()
    }

    fn ids(&self, wanted: impl Fn(&State) -> bool) -> Vec<String> {
        self.items.iter().filter(|(_, item)| wanted(&item.state)).map(|(id, _)| id.clone()).collect()
    }

    async fn lease(&mut self) -> Result<(), String> {
        let worker = self.random.below(WORKERS as u64) as usize;
        let count = 1 + self.random.below(6) as usize;
        let timed = self.random.below(3) == 0;
        let (_, leased) = self.queues[worker].lease(0, count, HOUR_MS, if timed { HOUR_MS } else { 0 }, 1 << 20).await.map_err(text)?;
        // Everything that is due becomes ready first, what is used up dies.
        for item in self.items.values_mut().filter(|item| item.state == State::Scheduled(true)) {
            item.state = if item.attempts >= item.max_attempts { State::Dead } else { State::Ready };
        }
        let ready = self.ids(|state| *state == State::Ready).len();
        ensure!(leased.len() == count.min(ready), "lease gave {} of {count}, {ready} are ready", leased.len());
        self.turns += leased.len() as u64 + u64::from(leased.len() < count);
        for got in leased {
            let id = got.id;
            let lowest = self.items.values().filter(|item| item.state == State::Ready).map(|item| item.priority).min();
            let item = self.items.get_mut(&id).ok_or_else(|| format!("lease gave {id}, which the model does not know"))?;
            ensure!(item.state == State::Ready, "lease gave {id}, which is {:?}", item.state);
            item.attempts += 1;
            ensure!(got.attempts == item.attempts, "lease of {id}: {} attempts, the model says {}", got.attempts, item.attempts);
            ensure!(got.attempts <= got.max_attempts, "lease of {id}: {} attempts of {}", got.attempts, got.max_attempts);
            let data = got.data.map_err(text)?;
            ensure!(data.iter().all(|byte| *byte == item.priority), "the data of {id} is another's");
            // Which turn it was is known only to the server; seven of eight go by priority, so two out of order in a row are wrong.
            if Some(item.priority) != lowest {
                self.out_of_order(&id)?;
            } else {
                self.turns_in_order();
            }
            let item = self.items.get_mut(&id).expect("found above");
            item.state = State::Leased { worker, token: got.token.clone(), timed };
            item.enqueued_at = moment(&got.token).to_owned();
            self.tokens.push((id, got.token));
            self.report.leased += 1;
        }
        if self.tokens.len() > 2000 {
            self.tokens.drain(..1000);
        }
        Ok(())
    }

    fn out_of_order(&mut self, id: &str) -> Result<(), String> {
        ensure!(self.turns != 0, "lease gave {id} against its priority twice in a row");
        self.turns = 0;
        Ok(())
    }

    fn turns_in_order(&mut self) {
        self.turns = self.turns.max(1);
    }

    async fn complete(&mut self) -> Result<(), String> {
        let leased = self.ids(|state| matches!(state, State::Leased { .. }));
        let Some(id) = self.random.pick(&leased) else { return Ok(()) };
        let State::Leased { worker, token, .. } = self.items[&id].state.clone() else { unreachable!("chosen as leased") };
        let (_, answers) = self.queues[worker].complete(0, &[(&id, &token, "n1:done")]).await.map_err(text)?;
        ensure!(answers == [Completed::Done], "complete {id}: {answers:?}");
        self.ended(&id, &token);
        self.items.get_mut(&id).expect("chosen").state = State::Done(token.clone());
        self.report.completed += 1;
        if self.random.below(3) == 0 {
            let (_, again) = self.queues[worker].complete(0, &[(&id, &token, "n1:done")]).await.map_err(text)?;
            ensure!(again == [Completed::DoneBefore], "complete {id} again: {again:?}");
        }
        Ok(())
    }

    /// What was left by a worker is remembered for it.
    fn ended(&mut self, id: &str, token: &str) {
        if self.items[id].was_left {
            self.past.insert(id.to_owned(), token.to_owned());
        }
    }

    /// A token of any time: what it may do is what the model says.
    async fn complete_stale(&mut self) -> Result<(), String> {
        let Some((id, token)) = self.random.pick(&self.tokens) else { return Ok(()) };
        let expected = match self.items.get(&id).map(|item| &item.state) {
            None => match self.past.get(&id) {
                None => Completed::Unknown,
                Some(by) if *by == token => Completed::DoneBefore,
                // Its owner has withdrawn it and has not signed that, or it was purged.
                Some(by) if by.is_empty() => Completed::Unproven,
                // Or signed for an offer before or after that of this token.
                Some(by) if by.strip_prefix(OWNER).is_some_and(|offer| offer != moment(&token)) => Completed::Unproven,
                Some(_) => Completed::Stale,
            },
            Some(State::Leased { token: held, .. }) if *held == token => return Ok(()),
            Some(State::Done(by)) if *by == token => Completed::DoneBefore,
            Some(State::Done(_)) => Completed::Stale,
            Some(_) => Completed::Refused,
        };
        let (_, answers) = self.queues[0].complete(0, &[(&id, &token, "stale")]).await.map_err(text)?;
        // Beyond a bound the oldest of what workers left is forgotten; the model keeps all of it.
        let may_be_forgotten = !self.items.contains_key(&id) && self.past.len() as u64 > PAST_MAX;
        if may_be_forgotten && answers == [Completed::Unknown] {
            return Ok(());
        }
        ensure!(answers == [expected], "complete {id} with an old token: {answers:?}, the model says {expected:?}");
        if matches!(expected, Completed::Stale | Completed::Refused)
            && let Some(item) = self.items.get_mut(&id)
        {
            // That worker may have kept its copy.
            item.was_left |= expected == Completed::Refused;
            self.report.stale_refused += 1;
            let failed = self.queues[0].fail(&id, &token, Retry::Never, "stale").await.map_err(text)?;
            ensure!(failed == Failed::Stale, "fail {id} with an old token: {failed:?}");
            let extended = self.queues[0].extend(&id, &token, HOUR_MS).await.map_err(text)?;
            ensure!(!extended, "extend {id} with an old token");
        }
        Ok(())
    }

    async fn fail(&mut self) -> Result<(), String> {
        let leased = self.ids(|state| matches!(state, State::Leased { .. }));
        let Some(id) = self.random.pick(&leased) else { return Ok(()) };
        let State::Leased { token, .. } = self.items[&id].state.clone() else { unreachable!("chosen as leased") };
        let delay = if self.random.below(24) == 0 { HOUR_MS } else { 0 };
        let retry = match self.random.below(8) {
            0 => Retry::Never,
            1..4 => Retry::Free(delay),
            _ => Retry::Counted(delay),
        };
        let answer = self.queues[0].fail(&id, &token, retry, "tried\nonce").await.map_err(text)?;
        let item = self.items.get_mut(&id).expect("chosen");
        if let Retry::Free(_) = retry {
            item.attempts -= 1;
        }
        let dies = retry == Retry::Never || item.attempts >= item.max_attempts;
        ensure!(answer == if dies { Failed::Dead } else { Failed::Waits }, "fail {id} ({retry:?}): {answer:?}");
        item.state = if dies { State::Dead } else { State::Scheduled(delay == 0) };
        self.report.died += u64::from(dies);
        Ok(())
    }

    async fn extend(&mut self) -> Result<(), String> {
        let leased = self.ids(|state| matches!(state, State::Leased { .. }));
        let Some(id) = self.random.pick(&leased) else { return Ok(()) };
        let State::Leased { worker, token, .. } = self.items[&id].state.clone() else { unreachable!("chosen as leased") };
        // A lease of no time is over at once: its recovery is due.
        let lease_ms = if self.random.below(2) == 0 { 0 } else { HOUR_MS };
        let done = self.queues[worker].extend(&id, &token, lease_ms).await.map_err(text)?;
        ensure!(done, "extend {id} was refused");
        self.items.get_mut(&id).expect("chosen").state = State::Leased { worker, token, timed: true };
        if lease_ms == 0 {
            self.recover_expecting(|item_id, _| item_id == id).await?;
        }
        Ok(())
    }

    /// A worker goes away with all it holds.
    async fn crash(&mut self) -> Result<(), String> {
        let gone = self.random.below(WORKERS as u64) as usize;
        self.queues[gone].renew(0, 0).await.map_err(text)?;
        self.recover_expecting(|_, state| matches!(state, State::Leased { worker, timed: false, .. } if *worker == gone)).await
    }

    async fn recover_expecting(&mut self, expected: impl Fn(&str, &State) -> bool) -> Result<(), String> {
        let Swept { waiting, died, .. } = self.queues[0].recover(0, 0).await.map_err(text)?;
        let mut model = (0, 0);
        for (id, item) in self.items.iter_mut().filter(|(id, item)| matches!(item.state, State::Leased { .. }) && expected(id, &item.state))
        {
            let _ = id;
            if item.attempts >= item.max_attempts {
                item.state = State::Dead;
                model.1 += 1;
            } else {
                item.state = State::Scheduled(true);
                model.0 += 1;
            }
            item.was_left = true;
        }
        ensure!((waiting, died) == model, "recover: {:?}, the model says {model:?}", (waiting, died));
        self.report.recovered += waiting;
        self.report.died += died;
        Ok(())
    }

    async fn recover(&mut self) -> Result<(), String> {
        self.recover_expecting(|_, _| false).await
    }

    /// Each id is in exactly one place, and the places hold nothing else (Q1).
    fn compare(&self, server: &Server) -> Result<(), String> {
        let keys = keyspace().queue("mail", 0);
        let count = |command: &str, key: usize| -> u64 {
            let answer = server.command(&format!("{command} {}", keys[key]));
            answer.trim_start_matches(':').trim().parse().unwrap_or(u64::MAX)
        };
        let (ready, ages, scheduled) = (count("ZCARD", 0), count("ZCARD", 1), count("ZCARD", 2));
        let (held, timed, dead) = (count("ZCARD", 3), count("ZCARD", 4), count("ZCARD", 6));
        let (meta, body, done, outcomes) = (count("HLEN", 7), count("HLEN", 8), count("ZCARD", 10), count("HLEN", 11));
        ensure!(ready == ages, "{ready} by priority, {ages} by age");
        ensure!(
            ready + scheduled + held + timed + dead == meta && meta == body,
            "{meta} items with {body} bodies: {ready} ready, {scheduled} scheduled, {held} held, {timed} timed, {dead} dead"
        );
        ensure!(done == outcomes, "{done} completed, {outcomes} outcomes");
        let model = |wanted: fn(&State) -> bool| self.items.values().filter(|item| wanted(&item.state)).count() as u64;
        let leased = model(|state| matches!(state, State::Leased { .. }));
        ensure!(leased == held + timed, "{} leased, the model has {leased}", held + timed);
        ensure!(dead == model(|state| *state == State::Dead), "{dead} dead, the model differs");
        ensure!(outcomes == model(|state| matches!(state, State::Done(_))), "{outcomes} outcomes, the model differs");
        ensure!(
            ready + scheduled == model(|state| matches!(state, State::Ready | State::Scheduled(_))),
            "{} waiting, the model differs",
            ready + scheduled
        );
        Ok(())
    }
}
