//! Hand-over of mail between nodes: carries offers, claims and answers between this node's shards and the work queue.
//!
//! The rules are `ringpost_cluster::offer` (this node's mail) and `ringpost_cluster::claim` (that of others); what is here asks them,
//! does what they say, and tells them what came of it. Shards never wait for it: they are asked, and what nobody asks for stays theirs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    claim::{ClaimTimes, Claims, Verdict},
    identity::NodeId,
    offer::{OWN_AGAIN, OfferTimes, Offers, Todo},
    valkey::{Message, Valkey, random_u64},
    valkey_error::ValkeyError,
    work_item::NewItem,
    work_queue::{ITEMS_PER_CALL, Known, Leased, QueueError, Retry, WorkQueue},
};
use ringpost_engine::{
    control::{Answer, Claim, Command, FoundClaim, HandOver, HandedOver, Offer},
    handed_mail::HEAD_BYTES,
    offering::ONLY_OFFERED_BYTES_MAX,
    request_lane::{RequestLane, RequestRefused},
};
use ringpost_queue::QueueId;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};
use tracing::{info, warn};

/// Beyond the lease, for clocks and for what was under way.
const GUARD: Duration = Duration::from_secs(1);
const RECONCILE_EVERY: Duration = Duration::from_secs(10);
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Two rounds of an owner and what they take.
const RECONCILIATION: Duration = Duration::from_secs(25);
/// How often a node sweeps leases that ran out and looks whether Valkey is there and has its data.
const TICK: Duration = Duration::from_millis(500);
/// Offered and not settled at most; what is accepted beyond waits in its shard.
const OFFERS_MAX: usize = 50_000;
/// Bytes of one enqueue: it is to be done within the deadline of a call.
const ENQUEUE_BYTES: usize = 512 * 1024;
/// Leased and not decided at most.
const CLAIMS_MAX: usize = 128;
const LEASE_ITEMS: usize = 32;
/// A node with so much to deliver leaves the rest to others.
const READY_MAX: u64 = 1024;
/// Without a message that there is work it is looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// On Valkey's return owners take out first what they have delivered meanwhile.
const OWNERS_FIRST: Duration = Duration::from_secs(1);
/// Leases that end without a word before an item is poison.
const MAIL_ATTEMPTS_MAX: u32 = 5;
/// An envelope is far below this.
const ITEM_BYTES_MAX: usize = ONLY_OFFERED_BYTES_MAX as usize + HEAD_BYTES + 1024 * 1024;

/// What hand-over needs of the node.
pub struct HandOverNode {
    /// Offered mail.
    pub queue: WorkQueue,
    /// For messages.
    pub valkey: Arc<Valkey>,
    /// This node.
    pub me: NodeId,
    /// `cluster.lease_ttl`.
    pub lease_ttl: Duration,
    /// `delivery.deliver`.
    pub delivers: bool,
}

struct Driver {
    node: HandOverNode,
    shards: Vec<Arc<RequestLane>>,
    offers: Mutex<Offers>,
    /// What the queue said of items that are being settled.
    results: Mutex<HashMap<String, String>>,
    is_away: Mutex<bool>,
    /// Leasing begins then.
    lease_from: Mutex<BootTime>,
    owner: Notify,
    worker: Notify,
}

/// The shard has ended: so does what asks it.
struct Ended;

/// Starts handing over mail, for the life of the process. Call it on the coordinator's runtime.
pub fn start(node: HandOverNode, shards: Vec<Arc<RequestLane>>) {
    let now = BootTime::now();
    let times = OfferTimes { lease_ttl: node.lease_ttl, guard: GUARD, reconcile_every: RECONCILE_EVERY, forget_after: FORGET_AFTER };
    info!(node = %node.me, delivers = node.delivers, "mail is shared with the cluster");
    let driver = Arc::new(Driver {
        offers: Mutex::new(Offers::new(times, node.delivers, now)),
        results: Mutex::default(),
        is_away: Mutex::new(false),
        lease_from: Mutex::new(now),
        owner: Notify::new(),
        worker: Notify::new(),
        node,
        shards,
    });
    for shard in 0..driver.shards.len() {
        tokio::spawn(driver.clone().offer_mail(shard));
    }
    tokio::spawn(driver.clone().see_to_offers());
    tokio::spawn(driver.clone().tick());
    if driver.node.delivers {
        tokio::spawn(driver.clone().work());
    }
}

impl Driver {
    fn offers(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().expect("no panic happens under this lock")
    }

    fn item(&self, id: QueueId) -> String {
        format!("{}:{id}", self.node.me)
    }

    /// The shard that has a message, and its name there.
    fn of_item(&self, item: &str) -> Option<(usize, QueueId)> {
        let id: QueueId = item.rsplit_once(':')?.1.parse().ok()?;
        // Logs of shards that no longer exist are adopted by their number (`node`).
        Some((usize::from(id.shard) % self.shards.len(), id))
    }

    async fn ask(&self, shard: usize, call: HandOver) -> Result<Answer, Ended> {
        self.ask_for(shard, Command::HandOver(call)).await
    }

    async fn ask_for(&self, shard: usize, command: Command) -> Result<Answer, Ended> {
        loop {
            let (sender, receiver) = oneshot::channel();
            match self.shards[shard].send(command.clone(), Box::new(move |answer| drop(sender.send(answer)))) {
                Ok(()) => return receiver.await.map_err(|_| Ended),
                // Operators' requests fill it for moments.
                Err(RequestRefused::Full) => sleep(Duration::from_millis(5)).await,
                Err(RequestRefused::Ended) => return Err(Ended),
            }
        }
    }

    /// Takes in how a call went.
    fn heard<R>(&self, answer: &Result<R, QueueError>) {
        let now = BootTime::now();
        let is_outage = match answer {
            Ok(_) => false,
            // An open circuit is the outage that opened it; what Valkey refuses it has at least answered.
            Err(QueueError::Valkey(error)) => error.is_outage() || *error == ValkeyError::CircuitOpen,
            // Nothing was sent.
            Err(QueueError::Item(_)) => return,
        };
        let mut is_away = self.is_away.lock().expect("no panic happens under this lock");
        if is_outage {
            *is_away = true;
            self.offers().away(now);
        } else if std::mem::take(&mut *is_away) {
            *self.lease_from.lock().expect("no panic happens under this lock") = now + OWNERS_FIRST;
            self.offers().returned(now);
            self.owner.notify_one();
        }
    }

    fn generation(&self, partition: u16, generation: &str) {
        self.offers().generation(partition, generation, BootTime::now());
    }

    fn by_partition<T>(&self, items: Vec<T>, item: impl Fn(&T) -> &str) -> BTreeMap<u16, Vec<T>> {
        let mut groups: BTreeMap<u16, Vec<T>> = BTreeMap::new();
        for one in items {
            groups.entry(self.node.queue.partition(item(&one))).or_default().push(one);
        }
        groups
    }

    fn by_shard(&self, items: Vec<String>) -> BTreeMap<usize, Vec<(String, QueueId)>> {
        let mut groups: BTreeMap<usize, Vec<(String, QueueId)>> = BTreeMap::new();
        for item in items {
            if let Some((shard, id)) = self.of_item(&item) {
                groups.entry(shard).or_default().push((item, id));
            }
        }
        groups
    }

    /// Brings one shard's mail into the queue.
    async fn offer_mail(self: Arc<Self>, shard: usize) {
        loop {
            if self.offers().len() >= OFFERS_MAX {
                sleep(Duration::from_millis(20)).await;
                continue;
            }
            let Ok(Answer::Offers(offers)) = self.ask(shard, HandOver::Take(ITEMS_PER_CALL, ENQUEUE_BYTES)).await else { return };
            if offers.items.is_empty() && offers.kept.is_empty() && offers.gone.is_empty() {
                // Only a shard that ends answers with nothing.
                return;
            }
            let mut back = Vec::new();
            let mut items = Vec::with_capacity(offers.items.len());
            {
                let mut known = self.offers();
                offers.kept.iter().for_each(|id| known.keeps(&self.item(*id)));
                offers.gone.iter().for_each(|id| known.gone(&self.item(*id)));
                for offer in offers.items {
                    let (id, item) = (offer.id, self.new_item(offer));
                    if known.sending(&item.id) { items.push(item) } else { back.push(id) }
                }
            }
            if !back.is_empty() && self.ask(shard, HandOver::TakeBack(back)).await.is_err() {
                return;
            }
            for (partition, items) in self.by_partition(items, |item| &item.id) {
                self.enqueue(partition, items).await;
            }
            self.owner.notify_one();
        }
    }

    fn new_item(&self, offer: Offer) -> NewItem {
        NewItem {
            id: self.item(offer.id),
            owner: self.node.me.clone(),
            // The queue serves 0 first.
            priority: 9 - offer.priority.min(9),
            max_attempts: MAIL_ATTEMPTS_MAX,
            delay_ms: offer.delay_ms,
            expires_in_ms: offer.expires_in_ms,
            data: offer.data,
        }
    }

    async fn enqueue(&self, partition: u16, items: Vec<NewItem>) {
        let answer = self.node.queue.enqueue(partition, &items).await;
        self.heard(&answer);
        match answer {
            Ok((generation, answers)) => {
                let mut offers = self.offers();
                items.iter().zip(answers).for_each(|(item, answer)| offers.enqueued(&item.id, answer));
                drop(offers);
                self.generation(partition, &generation);
            }
            Err(_) => items.iter().for_each(|item| self.offers().unanswered(&item.id)),
        }
    }

    /// Does what the owner's rules say.
    async fn see_to_offers(self: Arc<Self>) {
        let mut was_local = false;
        loop {
            let (todo, is_local, due) = {
                let mut offers = self.offers();
                (offers.poll(BootTime::now()), offers.is_local(), offers.next_due())
            };
            if is_local != was_local {
                was_local = is_local;
                if is_local {
                    warn!("Valkey has been away for too long: this node delivers its mail itself");
                }
                for shard in 0..self.shards.len() {
                    if self.ask(shard, HandOver::SetOffering(!is_local)).await.is_err() {
                        return;
                    }
                }
            }
            match todo {
                Some(todo) => {
                    if self.execute(todo).await.is_err() {
                        return;
                    }
                }
                None => {
                    let wait = due.since(BootTime::now()).clamp(Duration::from_millis(10), TICK);
                    tokio::select! {
                        () = self.owner.notified() => {}
                        () = sleep(wait) => {}
                    }
                }
            }
        }
    }

    async fn execute(&self, todo: Todo) -> Result<(), Ended> {
        match todo {
            Todo::Ask(ids) => {
                for (partition, ids) in self.by_partition(ids, |id| id) {
                    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
                    let answer = self.node.queue.known(partition, &names).await;
                    self.heard(&answer);
                    let Ok((generation, answers)) = answer else { continue };
                    let now = BootTime::now();
                    for (id, known) in ids.iter().zip(&answers) {
                        if let Known::Completed(result) = known {
                            self.results.lock().expect("no panic happens under this lock").insert(id.clone(), result.clone());
                        }
                        self.offers().known(id, known, now);
                    }
                    self.generation(partition, &generation);
                }
            }
            Todo::Offer(ids) => {
                for (shard, ids) in self.by_shard(ids) {
                    self.ask(shard, HandOver::OfferAgain(ids.into_iter().map(|(_, id)| id).collect())).await?;
                }
            }
            Todo::TakeBack(ids) => {
                for (shard, ids) in self.by_shard(ids) {
                    self.ask(shard, HandOver::TakeBack(ids.into_iter().map(|(_, id)| id).collect())).await?;
                }
            }
            Todo::Settle(ids) => {
                for (shard, ids) in self.by_shard(ids) {
                    let items = {
                        let mut results = self.results.lock().expect("no panic happens under this lock");
                        ids.iter().map(|(item, id)| HandedOver { id: *id, to: results.remove(item).unwrap_or_default() }).collect()
                    };
                    let is_settled = matches!(self.ask(shard, HandOver::HandedOver(items)).await?, Answer::Done);
                    let now = BootTime::now();
                    for (item, _) in &ids {
                        if is_settled { self.offers().settled(item, now) } else { self.offers().not_settled(item) }
                    }
                }
            }
            Todo::Withdraw(ids) => {
                for (partition, ids) in self.by_partition(ids, |id| id) {
                    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
                    let answer = self.node.queue.withdraw(partition, &names).await;
                    self.heard(&answer);
                    for (id, is_out) in ids.iter().zip(answer.into_iter().flatten()) {
                        self.offers().withdrawn(id, is_out);
                    }
                }
            }
            Todo::Forget(ids) => {
                for (partition, ids) in self.by_partition(ids, |id| id) {
                    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
                    let answer = self.node.queue.settled(partition, &names).await;
                    self.heard(&answer);
                    ids.iter().for_each(|id| self.offers().forgotten(id, answer.is_ok(), BootTime::now()));
                }
            }
        }
        Ok(())
    }

    /// Hears messages, sweeps leases that ran out (by anybody, L10), and looks whether Valkey has its data.
    async fn tick(self: Arc<Self>) {
        let (done, work) = (self.node.queue.done_channel(), self.node.queue.work_channel());
        let mut messages = self.node.valkey.subscribe(vec![done.clone(), work.clone()]);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(Message { channel, payload }) if channel == done => {
                        payload.lines().filter_map(|line| line.split_once(' ')).for_each(|(id, _)| self.offers().done(id));
                        self.owner.notify_one();
                    }
                    Some(Message { channel, .. }) if channel == work => self.worker.notify_one(),
                    // A new connection: what was said before was missed.
                    Some(_) => self.offers().missed(BootTime::now()),
                    None => return,
                },
                _ = ticks.tick() => {
                    for partition in 0..self.node.queue.bounds().partitions {
                        let answer = self.node.queue.known(partition, &[]).await;
                        self.heard(&answer);
                        let Ok((generation, _)) = answer else { break };
                        self.generation(partition, &generation);
                        let answer = self.node.queue.recover(partition, u64::try_from(TICK.as_millis()).unwrap_or(0)).await;
                        self.heard(&answer);
                    }
                }
            }
        }
    }
}

/// The worker's side: what it has of the shards.
struct Worker {
    driver: Arc<Driver>,
    claims: Claims,
    /// Where a claim is stored.
    places: HashMap<String, (usize, QueueId)>,
    next_shard: usize,
    next_partition: u16,
}

impl Driver {
    async fn work(self: Arc<Self>) {
        let times = ClaimTimes { lease_ttl: self.node.lease_ttl, repeat_after: Duration::from_millis(300), reconciliation: RECONCILIATION };
        let mut worker =
            Worker { driver: self.clone(), claims: Claims::new(times), places: HashMap::new(), next_shard: 0, next_partition: 0 };
        // A shard that ends takes its claims with it; the next start asks again.
        let _ = worker.run().await;
    }
}

impl Worker {
    async fn run(&mut self) -> Result<(), Ended> {
        for shard in 0..self.driver.shards.len() {
            let Answer::Claims(found) = self.driver.ask(shard, HandOver::Claims).await? else { continue };
            for FoundClaim { id, item, token } in found {
                self.claims.recovered(&item, &token, BootTime::now());
                self.places.insert(item, (shard, id));
            }
        }
        loop {
            let due = self.claims.due(BootTime::now());
            self.complete(due).await?;
            if !self.lease_some().await? {
                tokio::select! {
                    () = self.driver.worker.notified() => {}
                    () = sleep(LOOK_EVERY) => {}
                }
            }
        }
    }

    /// True: there may be more.
    async fn lease_some(&mut self) -> Result<bool, Ended> {
        let driver = self.driver.clone();
        let is_away = *driver.is_away.lock().expect("no panic happens under this lock");
        let lease_from = *driver.lease_from.lock().expect("no panic happens under this lock");
        if is_away || BootTime::now() < lease_from || self.claims.len() >= CLAIMS_MAX || self.ready().await? >= READY_MAX {
            return Ok(false);
        }
        let (partitions, lease_ms) =
            (driver.node.queue.bounds().partitions, u64::try_from(driver.node.lease_ttl.as_millis()).unwrap_or(u64::MAX));
        let mut found = false;
        for _ in 0..partitions {
            let partition = self.next_partition;
            self.next_partition = (partition + 1) % partitions;
            let asked_at = BootTime::now();
            // By time, not by the worker's life: a lease whose answer was lost has to end although this node lives.
            let answer = driver.node.queue.lease(partition, LEASE_ITEMS, lease_ms, lease_ms, ITEM_BYTES_MAX).await;
            driver.heard(&answer);
            let Ok((generation, items)) = answer else { return Ok(false) };
            driver.generation(partition, &generation);
            found |= !items.is_empty();
            self.take_over(items, &generation, asked_at).await?;
        }
        Ok(found)
    }

    /// What this node has to deliver now.
    async fn ready(&self) -> Result<u64, Ended> {
        let mut ready = 0;
        for shard in 0..self.driver.shards.len() {
            if let Answer::Stats(stats) = self.driver.ask_for(shard, Command::Stats).await? {
                ready += stats.iter().filter(|(name, _)| matches!(*name, "queue_ready" | "queue_attempting")).map(|(_, n)| n).sum::<u64>();
            }
        }
        Ok(ready)
    }

    async fn take_over(&mut self, items: Vec<Leased>, generation: &str, asked_at: BootTime) -> Result<(), Ended> {
        let driver = self.driver.clone();
        let (mut own, mut storing) = (Vec::new(), Vec::new());
        for Leased { id, owner, token, data, .. } in items {
            match data {
                Ok(_) if owner == driver.node.me => own.push((id, token)),
                Ok(data) => {
                    if self.claims.leased(&id, &token, generation, asked_at) {
                        let shard = self.next_shard;
                        self.next_shard = (shard + 1) % driver.shards.len();
                        let claim = Claim { item: id.clone(), token, data };
                        let asking = driver.clone();
                        storing.push((id, shard, tokio::spawn(async move { asking.ask(shard, HandOver::Claim(claim)).await })));
                    }
                }
                Err(reason) => {
                    warn!(item = id, %owner, %reason, "an item of the work queue is not used");
                    let answer = driver.node.queue.fail(&id, &token, Retry::Counted(60_000), &reason.to_string()).await;
                    driver.heard(&answer);
                }
            }
        }
        self.give_back_own(own).await;
        let mut stored = Vec::new();
        for (id, shard, answer) in storing {
            match answer.await {
                Ok(Ok(Answer::Claimed(place, _))) => {
                    self.places.insert(id.clone(), (shard, place));
                    stored.push(id);
                }
                Ok(Err(Ended)) | Err(_) => return Err(Ended),
                Ok(Ok(other)) => {
                    let reason = if let Answer::Failed(reason) = other { reason } else { "no answer".to_owned() };
                    if let Some(token) = self.claims.not_stored(&id) {
                        let answer = driver.node.queue.fail(&id, &token, Retry::Free(500 + random_u64() % 1000), &reason).await;
                        driver.heard(&answer);
                    }
                }
            }
        }
        let mut to_complete = Vec::new();
        for id in stored {
            match self.claims.stored(&id, BootTime::now()) {
                Verdict::Complete => to_complete.push(id),
                verdict => self.decide(&id, verdict).await?,
            }
        }
        self.complete(to_complete).await
    }

    /// Mail of this very node: no copy is needed, the shard that has it delivers it.
    async fn give_back_own(&self, own: Vec<(String, String)>) {
        let driver = &self.driver;
        let result = format!("{OWN_AGAIN} {}", driver.node.me);
        for (partition, own) in driver.by_partition(own, |(id, _)| id) {
            let leases: Vec<_> = own.iter().map(|(id, token)| (id.as_str(), token.as_str(), result.as_str())).collect();
            let answer = driver.node.queue.complete(partition, &leases).await;
            driver.heard(&answer);
            own.iter().for_each(|(id, _)| driver.offers().done(id));
        }
        driver.owner.notify_one();
    }

    async fn complete(&mut self, ids: Vec<String>) -> Result<(), Ended> {
        let driver = self.driver.clone();
        for (partition, ids) in driver.by_partition(ids, |id| id) {
            for ids in ids.chunks(ITEMS_PER_CALL) {
                let words: Vec<(String, String, String)> = ids
                    .iter()
                    .filter_map(|id| {
                        let place = self.places.get(id).map_or_else(String::new, |(_, place)| place.to_string());
                        Some((id.clone(), self.claims.token(id)?.to_owned(), format!("{} {place}", driver.node.me)))
                    })
                    .collect();
                let leases: Vec<_> = words.iter().map(|(id, token, word)| (id.as_str(), token.as_str(), word.as_str())).collect();
                if leases.is_empty() {
                    continue;
                }
                let answer = driver.node.queue.complete(partition, &leases).await;
                driver.heard(&answer);
                let now = BootTime::now();
                match answer {
                    Ok((generation, answers)) => {
                        for ((id, ..), answer) in words.iter().zip(answers) {
                            let verdict = self.claims.completed(id, answer, &generation, now);
                            self.decide(id, verdict).await?;
                        }
                    }
                    Err(_) => {
                        for (id, ..) in &words {
                            // It may have been sent.
                            let verdict = self.claims.unanswered(id, true, now);
                            self.decide(id, verdict).await?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn decide(&mut self, id: &str, verdict: Verdict) -> Result<(), Ended> {
        let is_own = match verdict {
            Verdict::Own => true,
            Verdict::Discard => false,
            Verdict::Complete | Verdict::Later => return Ok(()),
        };
        let Some((shard, place)) = self.places.remove(id) else { return Ok(()) };
        self.driver.ask(shard, HandOver::Decide(place, is_own)).await.map(|_| ())
    }
}
