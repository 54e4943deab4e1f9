//! The worker's side: leases what others have offered, has it stored, and delivers what the queue says is this node's.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    claim::{ClaimTimes, Claims, Lease, Verdict},
    identity::NodeId,
    lease_load::{LeaseLoad, Load, Word},
    membership::Status,
    offer::OWN_AGAIN,
    restraint::{KEY_MARK, Restraint, is_shared},
    valkey::random_u64,
    valkey_error::ValkeyError,
    work_queue::{ITEMS_PER_CALL, Leased, QueueError, Retry},
};
use ringpost_engine::{
    control::{Answer, Claim, Command, FoundClaim, HandOver},
    handed_mail::HEAD_BYTES,
    offering::ONLY_OFFERED_BYTES_MAX,
};
use ringpost_queue::{Backlog, QueueId};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    Driver, Ended, FORGET_AFTER, LEASES_NONE,
    appetite::{Appetite, IN_TURN_MAX, Look, READY_MAX},
};

/// Two rounds of an owner and what they take.
const RECONCILIATION: Duration = Duration::from_secs(25);
/// How soon an unanswered complete is repeated.
const REPEAT_AFTER: Duration = Duration::from_millis(300);
/// How often the queue is asked for an item that it does not know: as soon as its owner has offered it again the claim is decided.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// With Valkey away for so long this node delivers what it has told its owner, or may have, that it has: the owner may have given it up.
const ALONE_AFTER: Duration = Duration::from_secs(15 * 60);
/// The same with the mail in the queue for so long: workers with enough to deliver can leave it there for hours.
const REFUSED_MAX: Duration = Duration::from_secs(4 * 3600);
/// Leased and not decided at most.
const CLAIMS_MAX: usize = 128;
/// Beside them, those whose mail is in the queue again, and of which another will say that it has it.
const REFUSED_CLAIMS_MAX: usize = 1024;
const LEASE_ITEMS: usize = 32;
/// So long an answer about the backlog is good enough: shards are looked through for it.
const BACKLOG_HOLDS: Duration = Duration::from_millis(100);
/// Without a message that there is work it is looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// An envelope is far below this.
const ITEM_BYTES_MAX: usize = ONLY_OFFERED_BYTES_MAX as usize + HEAD_BYTES + 1024 * 1024;

/// The worker's side: what it has of the shards.
struct Worker {
    driver: Arc<Driver>,
    claims: Claims,
    restraint: Restraint,
    appetite: Appetite,
    load: LeaseLoad,
    /// Why this node leases nothing, as it is said to others.
    said: Option<String>,
    /// What the shards said last, and when.
    backlog: Option<(BootTime, Backlog)>,
    /// Where a claim is stored.
    places: HashMap<Lease, (usize, QueueId)>,
    next_shard: usize,
    next_partition: u16,
}

/// What one call has leased, by whose it is.
struct Leases {
    /// Mail that this spool has.
    here: Vec<Lease>,
    /// Mail that came to its end here.
    ended: Vec<Lease>,
    others: Vec<Leased>,
}

impl Driver {
    pub(super) async fn work(self: Arc<Self>) {
        let mut worker = Worker {
            driver: self.clone(),
            claims: Claims::new(times(self.node.lease_ttl)),
            restraint: Restraint::default(),
            appetite: Appetite::default(),
            load: LeaseLoad::new(self.node.lease_ttl),
            said: None,
            backlog: None,
            places: HashMap::new(),
            next_shard: 0,
            next_partition: 0,
        };
        // A shard that ends takes its claims with it; the next start asks again.
        let _ = worker.run().await;
    }
}

impl Driver {
    /// Whether an owner's items that are not signed with this node's key are the owner's fault, by what nodes say.
    fn shares_key(&self, owner: &NodeId) -> bool {
        let (me, nodes) = (&self.node.me, self.node.cluster.nodes());
        let others = nodes.into_iter().filter(|node| node.id != *me && node.status != Status::Offline);
        let marks = others.filter_map(|mut node| Some((node.id, node.metadata.remove(KEY_MARK)?))).collect();
        is_shared(&self.node.queue.key_mark(), owner, &marks)
    }
}

impl Worker {
    async fn run(&mut self) -> Result<(), Ended> {
        for shard in 0..self.driver.shards.len() {
            let Answer::Claims(found) = self.driver.ask(shard, HandOver::Claims).await? else { continue };
            for FoundClaim { id, item, token } in found {
                let lease = Lease { id: item, token };
                self.claims.recovered(lease.clone(), BootTime::now());
                self.places.insert(lease, (shard, id));
            }
        }
        loop {
            let now = BootTime::now();
            let alone = self.claims.alone(now);
            if !alone.is_empty() {
                warn!(
                    count = alone.len(),
                    "mail that this node took over is delivered although nobody has said whose it is, with a signature and for too long: perhaps \
                     another delivers it, too"
                );
            }
            for lease in alone {
                self.decide(&lease, Verdict::Own).await?;
            }
            self.complete_due(now).await?;
            self.tell_claims();
            if !self.driver.node.shares && self.claims.is_empty() {
                // A node that does not share only finds out what its earlier runs have taken over.
                return Ok(());
            }
            let may_be_more = self.lease_some().await?;
            self.tell_claims();
            if !may_be_more {
                tokio::select! {
                    () = self.driver.worker.notified() => {}
                    () = sleep(LOOK_EVERY) => {}
                }
            }
        }
    }

    /// What is decided is in the shards' queues by now.
    fn tell_claims(&self) {
        self.driver.open_claims.are(self.claims.len());
    }

    /// Repeats what was not answered, but where it is the owners' turn.
    async fn complete_due(&mut self, now: BootTime) -> Result<(), Ended> {
        let driver = self.driver.clone();
        let is_early = |lease: &Lease| driver.is_owners_turn(driver.node.queue.partition(&lease.id), now);
        let (early, due): (Vec<Lease>, Vec<Lease>) = self.claims.due(now).into_iter().partition(is_early);
        for lease in early {
            let verdict = self.claims.unanswered(&lease, false, now);
            self.decide(&lease, verdict).await?;
        }
        self.complete(due).await
    }

    /// Why this node leases nothing now, in words for an operator.
    async fn hindrance(&mut self) -> Result<Option<String>, Ended> {
        let driver = self.driver.clone();
        let now = BootTime::now();
        let is_away = driver.partitions().all(|partition| driver.offers().is_away(partition).is_some());
        let hindrance = if driver.is_draining.load(Ordering::Relaxed) {
            "it is being emptied".to_owned()
        } else if driver.node.spool_failure.get().is_some() {
            "its spool failed, and it takes no mail until it is restarted".to_owned()
        } else if !driver.takes_mail() {
            "it is about to end".to_owned()
        } else if let Some(difference) = driver.node.queue.difference() {
            difference
        } else if is_away {
            "Valkey does not answer it, or takes nothing".to_owned()
        } else if driver.partitions().all(|partition| driver.is_owners_turn(partition, now)) {
            "Valkey was away: owners take back first what they have delivered".to_owned()
        } else if !self.restraint.allows(now) {
            "it had no room in its spool or its queue, or could not read what was offered, and waits for a while".to_owned()
        } else if !self.load.allows(now) {
            "the line to Valkey is slow: a lease of a single message was not answered in time, and it waits for a while".to_owned()
        } else if room(&self.claims) == 0 || self.claims.refused() >= REFUSED_CLAIMS_MAX {
            format!("{} messages wait for the word that they are its own", self.claims.len())
        } else {
            return self.fullness().await;
        };
        Ok(Some(hindrance))
    }

    /// Says to others what keeps this node from leasing. Heartbeats carry what was said last.
    fn say(&mut self, hindrance: Option<String>) {
        if self.said != hindrance {
            match &hindrance {
                Some(reason) => self.driver.node.cluster.says(LEASES_NONE, reason.clone()),
                None => self.driver.node.cluster.says_no_longer(LEASES_NONE),
            }
            self.said = hindrance;
        }
    }

    /// True: there may be more.
    async fn lease_some(&mut self) -> Result<bool, Ended> {
        let driver = self.driver.clone();
        if !driver.node.shares || !driver.node.delivers {
            return Ok(false);
        }
        let hindrance = self.hindrance().await?;
        let is_hindered = hindrance.is_some();
        self.say(hindrance);
        if is_hindered {
            return Ok(false);
        }
        let (partitions, lease_ms) =
            (driver.node.queue.bounds().partitions, u64::try_from(driver.node.lease_ttl.as_millis()).unwrap_or(u64::MAX));
        let mut found = false;
        for _ in 0..partitions {
            // What this call brings counts from here on, until all of it is decided or given back.
            driver.open_claims.may_be_one_more(self.claims.len());
            if driver.is_draining.load(Ordering::SeqCst) {
                return Ok(false);
            }
            // What the partitions before had counts as well.
            let room = room(&self.claims);
            if room == 0 || !driver.takes_mail() || !self.load.allows(BootTime::now()) {
                break;
            }
            let partition = self.next_partition;
            self.next_partition = (partition + 1) % partitions;
            let asked_at = BootTime::now();
            let is_away = driver.offers().is_away(partition).is_some();
            if is_away || driver.is_owners_turn(partition, asked_at) {
                continue;
            }
            // By time, not by the worker's life: a lease whose answer was lost has to end although this node lives.
            let load = self.load.next(asked_at);
            let answer = driver.node.queue.lease_by(partition, room, lease_ms, lease_ms, ITEM_BYTES_MAX, load).await;
            driver.heard(partition, &answer);
            self.note_load(&answer, load, asked_at);
            let Ok((generation, items)) = answer else { continue };
            driver.generation(partition, &generation);
            if !items.is_empty() && !driver.marks().await {
                for Leased { id, token, .. } in items {
                    let retry = self.restraint.no_room(soon(), BootTime::now());
                    self.give_back(&Lease { id, token }, retry, "this worker cannot write to its spool").await;
                }
                return Ok(false);
            }
            if driver.is_owners_turn(partition, BootTime::now()) {
                // The data became another's, or of another time, since it was looked.
                for Leased { id, token, .. } in items {
                    self.give_back(&Lease { id, token }, Retry::Free(soon()), "its owner is to look first").await;
                }
                continue;
            }
            found |= !items.is_empty();
            self.take_over(items, &generation, asked_at).await?;
            if !self.restraint.allows(BootTime::now()) {
                warn!("this node leaves mail to others for a while: it has no room for it, or not the cluster's key");
                return Ok(false);
            }
        }
        Ok(found)
    }

    /// Takes in what a lease brought, or that it came late.
    fn note_load(&mut self, answer: &Result<(String, Vec<Leased>), QueueError>, load: Load, asked_at: BootTime) {
        let (time, now) = (self.driver.node.queue.time_of_lease(ITEM_BYTES_MAX, load), BootTime::now());
        let word = match answer {
            Ok((_, items)) => self.load.carried(items.iter().map(|item| item.body_bytes).sum(), now.since(asked_at), time, now),
            Err(QueueError::Valkey(ValkeyError::Late(_))) => self.load.late(now),
            Err(_) => None,
        };
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        match word {
            Some(Word::Slow) => warn!(
                time_ms,
                "leases of this node are not answered in time, one after another: what they were to bring waits until they are over, and it asks for \
                 less. The line to Valkey is slow, or Valkey does not answer"
            ),
            Some(Word::Pauses(pause)) => warn!(
                time_ms,
                pause_s = pause.as_secs(),
                "not even a lease of a single message is answered in time: this node leaves mail to others for a while. See what else uses the line to Valkey"
            ),
            Some(Word::GoesOn) => info!("leases are answered in time again: this node takes mail"),
            None => {}
        }
    }

    /// Whether it takes no more by what it has to deliver.
    async fn fullness(&mut self) -> Result<Option<String>, Ended> {
        let now = BootTime::now();
        // The counters say at once that there is little; what of much goes takes a look at all destinations.
        let backlog = if self.ready().await? < IN_TURN_MAX { Backlog::default() } else { self.backlog(now).await? };
        let look = self.appetite.look(backlog, now);
        let Backlog { ready, in_turn } = backlog;
        if look == Look::Say {
            warn!(
                ready,
                in_turn, "this node has leased no mail for a minute: so much is left to deliver to destinations that take it slowly"
            );
        }
        let says = || {
            format!(
                "it has enough to deliver: {in_turn} messages in their turn (it takes more below {IN_TURN_MAX}), {ready} ready ({READY_MAX})"
            )
        };
        Ok((look != Look::Lease).then(says))
    }

    /// Recipients that are ready here or being attempted, whatever they wait for.
    async fn ready(&self) -> Result<u64, Ended> {
        let mut ready = 0;
        for shard in 0..self.driver.shards.len() {
            if let Answer::Stats(stats) = self.driver.ask_for(shard, Command::Stats).await? {
                ready += stats.iter().filter(|(name, _)| matches!(*name, "queue_ready" | "queue_attempting")).map(|(_, n)| n).sum::<u64>();
            }
        }
        Ok(ready)
    }

    /// What of it goes, of all shards.
    async fn backlog(&mut self, now: BootTime) -> Result<Backlog, Ended> {
        if let Some((at, backlog)) = self.backlog
            && now.since(at) < BACKLOG_HOLDS
        {
            return Ok(backlog);
        }
        let mut sum = Backlog::default();
        for shard in 0..self.driver.shards.len() {
            if let Answer::Backlog(of_shard) = self.driver.ask(shard, HandOver::Backlog).await? {
                sum.ready += of_shard.ready;
                sum.in_turn += of_shard.in_turn;
            }
        }
        self.backlog = Some((now, sum));
        Ok(sum)
    }

    async fn take_over(&mut self, items: Vec<Leased>, generation: &str, asked_at: BootTime) -> Result<(), Ended> {
        let driver = self.driver.clone();
        let Leases { here, ended, others } = self.told_apart(items).await?;
        let mut storing = Vec::new();
        for Leased { id, owner, token, data, .. } in others {
            let lease = Lease { id, token };
            match data {
                Ok(data) => {
                    self.restraint.read(&owner);
                    if !self.claims.leased(&lease, generation, asked_at) {
                        self.give_back(&lease, Retry::Free(soon()), "this worker has an earlier claim of it to ask about first").await;
                        continue;
                    }
                    let shard = self.next_shard;
                    self.next_shard = (shard + 1) % driver.shards.len();
                    let claim = Claim { item: lease.id.clone(), token: lease.token.clone(), data };
                    let asking = driver.clone();
                    storing.push((lease, shard, tokio::spawn(async move { asking.ask(shard, HandOver::Claim(claim)).await })));
                }
                Err(reason) => {
                    let now = BootTime::now();
                    if let Some(count) = self.restraint.says_unread(&owner, now) {
                        warn!(item = lease.id, %owner, %reason, count, "items of the work queue are not used: said once a minute for each owner");
                    }
                    let retry = self.restraint.unread(&owner, &reason, || driver.shares_key(&owner), soon(), now);
                    self.give_back(&lease, retry, &driver.node.queue.unread(&reason)).await;
                }
            }
        }
        self.give_back_own(here, ended).await?;
        let mut stored = Vec::new();
        for (lease, shard, answer) in storing {
            match answer.await {
                Ok(Ok(Answer::Claimed(place, _))) => {
                    self.restraint.stored();
                    self.places.insert(lease.clone(), (shard, place));
                    stored.push(lease);
                }
                Ok(Err(Ended)) | Err(_) => return Err(Ended),
                Ok(Ok(Answer::Unusable(reason))) => {
                    warn!(item = lease.id, reason, "an item of the work queue is not used");
                    self.claims.not_stored(&lease);
                    self.give_back(&lease, self.restraint.unusable(), reason).await;
                }
                Ok(Ok(other)) => {
                    let reason = if let Answer::Failed(reason) = other { reason } else { "no answer".to_owned() };
                    self.claims.not_stored(&lease);
                    let retry = self.restraint.no_room(soon(), BootTime::now());
                    self.give_back(&lease, retry, &reason).await;
                }
            }
        }
        self.complete(stored).await
    }

    /// Ends a lease that comes to nothing here. Unheard, it runs out.
    async fn give_back(&self, lease: &Lease, retry: Retry, reason: &str) {
        let answer = self.driver.node.queue.fail(&lease.id, &lease.token, retry, reason).await;
        self.driver.noticed(self.driver.node.queue.partition(&lease.id), &answer);
    }

    /// Mail of this very spool: no copy is needed, the shard that has it delivers it. What has ended here is taken out of the queue by the
    /// owner's rules: to complete it would be to say whose it is, and it may be another's.
    async fn give_back_own(&self, own: Vec<Lease>, ended: Vec<Lease>) -> Result<(), Ended> {
        let driver = &self.driver;
        for lease in ended {
            self.give_back(&lease, Retry::Free(soon()), "its owner has ended it").await;
            driver.offers().orphan(&lease.id);
        }
        let result = format!("{OWN_AGAIN} {}", driver.node.me);
        for (partition, own) in driver.by_partition(own, |lease| &lease.id) {
            let leases: Vec<_> = own.iter().map(|lease| (lease.id.as_str(), lease.token.as_str(), result.as_str())).collect();
            let answer = driver.node.queue.complete(partition, &leases).await;
            driver.noticed(partition, &answer);
            own.iter().for_each(|lease| driver.offers().done(&lease.id));
        }
        driver.owner.notify_one();
        Ok(())
    }

    /// Of this spool's mail what its shards have, and what has come to an end; what it knows nothing of is as good as another's.
    async fn told_apart(&self, items: Vec<Leased>) -> Result<Leases, Ended> {
        let driver = &self.driver;
        let is_own = |item: &Leased| item.owner == driver.node.me && driver.of_item(&item.id).is_some();
        let (own, mut others): (Vec<Leased>, Vec<Leased>) = items.into_iter().partition(is_own);
        let (mut ended, mut unknown): (HashSet<String>, HashSet<String>) = (HashSet::new(), HashSet::new());
        for (shard, ids) in driver.by_shard(own.iter().map(|item| item.id.clone()).collect()) {
            let missing = driver.missing(shard, ids.iter().map(|(_, id)| *id).collect()).await?;
            ended.extend(missing.settled.into_iter().map(|id| driver.item(id)));
            unknown.extend(missing.unknown.into_iter().map(|id| driver.item(id)));
        }
        // Last: to settle with a worker may have begun meanwhile. The shard has the mail then, until that is durable.
        ended.extend(own.iter().map(|item| item.id.clone()).filter(|id| driver.offers().has_ended(id)));
        let (own, strange): (Vec<Leased>, Vec<Leased>) =
            own.into_iter().partition(|item| ended.contains(&item.id) || !unknown.contains(&item.id));
        others.extend(strange);
        // Whatever became of the copies in the queue, the originals are here.
        let leases = own.into_iter().map(|Leased { id, token, .. }| Lease { id, token });
        let (ended, here) = leases.partition(|lease| ended.contains(&lease.id));
        Ok(Leases { here, ended, others })
    }

    async fn complete(&mut self, leases: Vec<Lease>) -> Result<(), Ended> {
        let driver = self.driver.clone();
        for (partition, leases) in driver.by_partition(leases, |lease| &lease.id) {
            for leases in leases.chunks(ITEMS_PER_CALL) {
                let mut words = Vec::with_capacity(leases.len());
                for lease in leases {
                    match self.claims.completing(lease, BootTime::now()) {
                        Verdict::Complete => words.push((lease, self.word(lease))),
                        verdict => self.decide(lease, verdict).await?,
                    }
                }
                let presented: Vec<_> =
                    words.iter().map(|(lease, word)| (lease.id.as_str(), lease.token.as_str(), word.as_str())).collect();
                if presented.is_empty() {
                    continue;
                }
                let answer = driver.node.queue.complete(partition, &presented).await;
                driver.noticed(partition, &answer);
                let now = BootTime::now();
                match answer {
                    Ok((generation, answers)) => {
                        for ((lease, _), answer) in words.iter().zip(answers) {
                            let verdict = self.claims.completed(lease, answer, &generation, now);
                            self.decide(lease, verdict).await?;
                        }
                    }
                    Err(error) => {
                        let was_sent = !matches!(&error, QueueError::Valkey(error) if !error.was_sent());
                        for (lease, _) in &words {
                            let verdict = self.claims.unanswered(lease, was_sent, now);
                            self.decide(lease, verdict).await?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What the owner is told: who has it, and where.
    fn word(&self, lease: &Lease) -> String {
        let place = self.places.get(lease).map_or_else(String::new, |(_, place)| place.to_string());
        format!("{} {place}", self.driver.node.me)
    }

    async fn decide(&mut self, lease: &Lease, verdict: Verdict) -> Result<(), Ended> {
        let is_own = match verdict {
            Verdict::Own => true,
            Verdict::Discard => false,
            Verdict::Complete | Verdict::Later => return Ok(()),
        };
        let Some((shard, place)) = self.places.remove(lease) else { return Ok(()) };
        self.driver.ask(shard, HandOver::Decide(place, is_own)).await.map(|_| ())
    }
}

fn times(lease_ttl: Duration) -> ClaimTimes {
    ClaimTimes {
        lease_ttl,
        repeat_after: REPEAT_AFTER,
        ask_every: ASK_EVERY,
        forget_after: FORGET_AFTER,
        reconciliation: RECONCILIATION,
        alone_after: ALONE_AFTER,
        refused_max: REFUSED_MAX,
    }
}

/// Items that one call may lease beside the claims that are open.
fn room(claims: &Claims) -> usize {
    CLAIMS_MAX.saturating_sub(claims.len() - claims.refused()).min(LEASE_ITEMS)
}

/// When an item that this worker could not take comes to another, in milliseconds: not all at the same moment.
fn soon() -> u64 {
    500 + random_u64() % 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claims were counted once, and then each partition gave as many as a call may bring: with sixteen of them four times what is meant.
    #[test]
    fn what_one_partition_gave_counts_before_the_next_is_asked() {
        let mut claims = Claims::new(times(Duration::from_secs(30)));
        let leased: Vec<usize> = (0..16)
            .map(|partition| {
                let count = room(&claims);
                for number in 0..count.min(30) {
                    let lease = Lease { id: format!("{partition}.{number}"), token: "t".to_owned() };
                    assert!(claims.leased(&lease, "g", BootTime::after_boot(Duration::ZERO)));
                }
                count
            })
            .collect();
        assert_eq!(leased[..6], [32, 32, 32, 32, 8, 0]);
        assert_eq!(claims.len(), CLAIMS_MAX);
    }
}
