//! The worker's side: leases what others have offered, has it stored, and delivers what the queue says is this node's.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    claim::{ClaimTimes, Claims, Verdict},
    offer::OWN_AGAIN,
    valkey::random_u64,
    work_queue::{ITEMS_PER_CALL, Leased, Retry},
};
use ringpost_engine::{
    control::{Answer, Claim, Command, FoundClaim, HandOver},
    handed_mail::HEAD_BYTES,
    offering::ONLY_OFFERED_BYTES_MAX,
};
use ringpost_queue::QueueId;
use tokio::time::sleep;
use tracing::warn;

use super::{Driver, Ended};

/// Two rounds of an owner and what they take.
const RECONCILIATION: Duration = Duration::from_secs(25);
/// Leased and not decided at most.
const CLAIMS_MAX: usize = 128;
const LEASE_ITEMS: usize = 32;
/// A node with so much to deliver leaves the rest to others.
const READY_MAX: u64 = 1024;
/// Without a message that there is work it is looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// An envelope is far below this.
const ITEM_BYTES_MAX: usize = ONLY_OFFERED_BYTES_MAX as usize + HEAD_BYTES + 1024 * 1024;

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
    pub(super) async fn work(self: Arc<Self>) {
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
            self.driver.open_claims.store(self.claims.len() as u64, Ordering::Relaxed);
            if !self.driver.node.shares && self.claims.is_empty() {
                // A node that does not share only finds out what its earlier runs have taken over.
                return Ok(());
            }
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
        if !driver.takes_mail()
            || is_away
            || BootTime::now() < lease_from
            || self.claims.len() >= CLAIMS_MAX
            || self.ready().await? >= READY_MAX
        {
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
