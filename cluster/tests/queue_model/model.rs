//! A model of one partition: where each item is, by plain rules.

use std::collections::BTreeMap;

use ringpost_cluster::{
    identity::Incarnation,
    script::Scripts,
    valkey::Valkey,
    work_item::{ItemKey, NewItem},
    work_queue::{Completed, Enqueued, Failed, Known, PAST_MAX, QueueBounds, Retry, Swept, WorkQueue},
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
    let fault_every = (operations / 8).max(1);
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

    async fn enqueue(&mut self) -> Result<(), String> {
        // Sometimes an id that is known: it must be there once.
        let known: Vec<String> = self.items.keys().cloned().collect();
        let id = match self.random.pick(&known) {
            Some(id) if self.random.below(8) == 0 => id,
            // Or one that has ended and of which somebody may come for the copy.
            _ if !self.past.is_empty() && self.random.below(16) == 0 => {
                let ended: Vec<String> = self.past.keys().cloned().collect();
                self.random.pick(&ended).expect("there is one")
            }
            _ => {
                self.next_id += 1;
                format!("item-{}", self.next_id)
            }
        };
        let (priority, max_attempts) = (self.random.below(10) as u8, 1 + self.random.below(4) as u32);
        let delay_ms = if self.random.below(24) == 0 { HOUR_MS } else { 0 };
        let data = vec![priority; self.random.below(3000) as usize];
        let item =
            NewItem { id: id.clone(), owner: "n1".parse().expect("a node id"), priority, max_attempts, delay_ms, expires_in_ms: 0, data };
        let (_, answers) = self.queues[0].enqueue(0, &[item]).await.map_err(text)?;
        let expected = match self.items.get(&id).map(|item| &item.state) {
            None => Enqueued::Added,
            Some(State::Done(_)) => Enqueued::Completed,
            Some(_) => Enqueued::Present,
        };
        ensure!(answers == [expected], "enqueue {id}: {answers:?}, the model says {expected:?}");
        if expected == Enqueued::Added {
            let state = if delay_ms > 0 { State::Scheduled(false) } else { State::Ready };
            let was_left = self.past.remove(&id).is_some();
            self.items.insert(id.clone(), Item { state, priority, attempts: 0, max_attempts, was_left, enqueued_at: String::new() });
            self.ledger.insert(id, (priority, max_attempts));
            self.report.enqueued += 1;
        }
        Ok(())
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

    async fn settle(&mut self) -> Result<(), String> {
        let done = self.ids(|state| matches!(state, State::Done(_)));
        let ids: Vec<&str> = done.iter().map(String::as_str).take(128).collect();
        let forgotten = self.queues[0].settled(0, &ids).await.map_err(text)?;
        ensure!(forgotten == ids.len() as u64, "settled {forgotten} of {}", ids.len());
        for id in ids {
            self.items.remove(id);
            self.ledger.remove(id);
            self.report.settled += 1;
        }
        Ok(())
    }

    async fn withdraw(&mut self) -> Result<(), String> {
        let ids: Vec<String> = self.items.keys().cloned().collect();
        let Some(id) = self.random.pick(&ids) else { return Ok(()) };
        let out = self.queues[0].withdraw(0, &[&id]).await.map_err(text)?;
        let is_leased = matches!(self.items[&id].state, State::Leased { .. });
        ensure!(out == [!is_leased], "withdraw {id} ({:?}): {out:?}", self.items[&id].state);
        if !is_leased && !matches!(self.items[&id].state, State::Done(_)) {
            let (_, known) = self.queues[0].known(0, &[&id]).await.map_err(text)?;
            let [Known::Unsigned(record)] = &known[..] else { return Err(format!("withdrawn {id}: {known:?}")) };
            // A worker that had it once is refused, whatever it held; only its owner's signature says that it is its owner's.
            let (_, late) = self.queues[1].complete(0, &[(&id, "0123456789abcdef:1", "n2 late")]).await.map_err(text)?;
            ensure!(late == [Completed::Unproven], "complete of withdrawn {id}: {late:?}");
            let mut by = String::new();
            if self.random.below(2) == 0 {
                let signed = self.queues[0].refuse(0, &[(id.clone(), record.clone())]).await.map_err(text)?;
                ensure!(signed == [true], "sign {id}: {signed:?}");
                let (_, late) = self.queues[1].complete(0, &[(&id, "0123456789abcdef:1", "n2 late")]).await.map_err(text)?;
                ensure!(late == [Completed::Stale], "complete of withdrawn {id}: {late:?}");
                by = format!("{OWNER}{}", self.items[&id].enqueued_at);
            }
            let forgotten = self.queues[0].settled(0, &[&id]).await.map_err(text)?;
            ensure!(forgotten == 1, "withdrawn {id} was forgotten {forgotten} times");
            self.ended(&id, &by);
            self.items.remove(&id);
            self.ledger.remove(&id);
        }
        Ok(())
    }

    async fn requeue(&mut self) -> Result<(), String> {
        let dead = self.ids(|state| *state == State::Dead);
        let letters = self.queues[0].dead(0, 0, 128).await.map_err(text)?;
        ensure!(letters.len() == dead.len().min(128), "{} dead letters listed, the model has {}", letters.len(), dead.len());
        for letter in &letters {
            let attempts = self.items.get(&letter.id).map(|item| item.attempts);
            ensure!(attempts == Some(letter.attempts), "dead {}: {} attempts, the model says {attempts:?}", letter.id, letter.attempts);
        }
        let Some(id) = self.random.pick(&dead) else { return Ok(()) };
        if self.random.below(2) == 0 {
            let removed = self.queues[0].purge(0, &[&id]).await.map_err(text)?;
            ensure!(removed == 1, "purge {id}: {removed}");
            self.ended(&id, "");
            self.items.remove(&id);
            self.ledger.remove(&id);
        } else {
            let moved = self.queues[0].requeue(0, &[&id]).await.map_err(text)?;
            ensure!(moved == 1, "requeue {id}: {moved}");
            let item = self.items.get_mut(&id).expect("chosen");
            (item.state, item.attempts) = (State::Ready, 0);
        }
        Ok(())
    }

    async fn ask(&mut self) -> Result<(), String> {
        let mut ids: Vec<&str> = self.items.keys().map(String::as_str).take(100).collect();
        ids.push("never-heard-of");
        let (_, answers) = self.queues[0].known(0, &ids).await.map_err(text)?;
        for (id, answer) in ids.iter().zip(answers) {
            let expected = match self.items.get(*id).map(|item| &item.state) {
                None => Known::Unknown,
                Some(State::Ready | State::Scheduled(_)) => Known::Waiting,
                Some(State::Leased { .. }) => Known::Leased,
                Some(State::Dead) => Known::Dead,
                Some(State::Done(_)) => Known::Completed("n1:done".to_owned()),
            };
            ensure!(answer == expected, "known {id}: {answer:?}, the model says {expected:?}");
        }
        Ok(())
    }

    /// After a loss of data: the owner asks for all it has and offers again what is unknown.
    async fn reconcile(&mut self) -> Result<(), String> {
        self.items.clear();
        self.past.clear();
        let ledger: Vec<(String, (u8, u32))> = self.ledger.iter().map(|(id, kept)| (id.clone(), *kept)).collect();
        for chunk in ledger.chunks(64) {
            let ids: Vec<&str> = chunk.iter().map(|(id, _)| id.as_str()).collect();
            let (_, known) = self.queues[0].known(0, &ids).await.map_err(text)?;
            ensure!(known.iter().all(|known| *known == Known::Unknown), "something survived the loss");
            let items: Vec<NewItem> = chunk
                .iter()
                .map(|(id, (priority, max_attempts))| NewItem {
                    id: id.clone(),
                    owner: "n1".parse().expect("a node id"),
                    priority: *priority,
                    max_attempts: *max_attempts,
                    delay_ms: 0,
                    expires_in_ms: 0,
                    data: vec![*priority; 10],
                })
                .collect();
            let (_, answers) = self.queues[0].enqueue(0, &items).await.map_err(text)?;
            ensure!(answers.iter().all(|answer| *answer == Enqueued::Added), "offered again: {answers:?}");
            for (id, (priority, max_attempts)) in chunk {
                let (priority, max_attempts) = (*priority, *max_attempts);
                let item = Item { state: State::Ready, priority, attempts: 0, max_attempts, was_left: false, enqueued_at: String::new() };
                self.items.insert(id.clone(), item);
                self.report.offered_again += 1;
            }
        }
        self.turns = 0;
        Ok(())
    }

    /// Everything the owner ever accepted and did not take back is completed and settled in the end: nothing is lost.
    async fn drain(&mut self) -> Result<(), String> {
        for worker in 0..WORKERS {
            self.queues[worker].renew(0, 0).await.map_err(text)?;
        }
        self.recover_expecting(|_, state| matches!(state, State::Leased { timed: false, .. })).await?;
        for id in self.ids(|state| matches!(state, State::Leased { .. })) {
            let State::Leased { token, .. } = self.items[&id].state.clone() else { continue };
            self.queues[0].extend(&id, &token, 0).await.map_err(text)?;
        }
        self.recover_expecting(|_, _| true).await?;
        for _ in 0..100 {
            while self.queues[0].requeue(0, &[]).await.map_err(text)? > 0 {}
            for item in self.items.values_mut().filter(|item| item.state == State::Dead) {
                (item.state, item.attempts) = (State::Ready, 0);
            }
            let (_, leased) = self.queues[0].lease(0, 64, HOUR_MS, 0, 1 << 20).await.map_err(text)?;
            if leased.is_empty() {
                break;
            }
            for got in leased {
                let (_, answers) = self.queues[0].complete(0, &[(&got.id, &got.token, "n1:done")]).await.map_err(text)?;
                ensure!(answers == [Completed::Done], "complete {}: {answers:?}", got.id);
                ensure!(self.items.contains_key(&got.id), "{} is not in the model", got.id);
                self.ended(&got.id, &got.token);
                self.items.get_mut(&got.id).expect("as just checked").state = State::Done(got.token);
            }
        }
        while !self.ids(|state| matches!(state, State::Done(_))).is_empty() {
            self.settle().await?;
        }
        let late = self.ids(|state| *state == State::Scheduled(false)).len();
        ensure!(self.ledger.len() == late, "{} of the owner's items are lost", self.ledger.len() - late);
        Ok(())
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
