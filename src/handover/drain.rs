//! Emptying a node that is to be retired: all that it has is offered, and it takes nothing of others.

use std::{
    io,
    sync::{Arc, MutexGuard, atomic::Ordering},
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    identity::NodeId,
    membership::{NodeView, Status},
    work_queue::QueueError,
};
use ringpost_engine::control::{Answer, Command, DrainCounts, HandOver};
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::sleep};
use tracing::{info, warn};

use super::{Driver, SharedDelivery, TAKES_MAIL, TICK, is_outage};
use crate::{cluster::QUEUE_PARTITIONS, control_wire::NotDone};

/// How often the shards are looked through for mail that can be offered by now.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Shards that have loaded their spools and are not busy are looked through within less.
const LOOKED_THROUGH_WITHIN: Duration = Duration::from_secs(2);
/// A node that takes mail takes some within less.
const TAKEN_WITHIN_S: u64 = 10;
/// An operator who waits is told after so long without Valkey.
pub const AWAY_MAX: Duration = Duration::from_secs(15);

/// How far a drain is, as `ringpost drain --json` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DrainProgress {
    /// What the node still has.
    #[serde(flatten)]
    pub counts: DrainCounts,
    /// Mail of others that was leased before, of which it was not known yet whose it is when the look began that found `counts`: what is decided
    /// meanwhile may have come behind it.
    pub claims: u64,
    /// Taken over by other nodes since the drain began.
    pub handed_over: u64,
    /// Mail is offered of which no node has taken any for so long, in steps of ten seconds.
    pub not_taken_s: u64,
    /// Valkey, all of it, has not answered for so long.
    pub valkey_away_ms: u64,
    /// So many partitions of the queue do not answer: what is offered there waits for them.
    #[serde(default)]
    pub partitions_away: u64,
    /// So many shards have not told what they hold since the drain was asked for: nothing else is known yet.
    #[serde(default)]
    pub shards_awaited: u64,
    /// For so long, in steps of ten seconds.
    #[serde(default)]
    pub awaited_s: u64,
    /// The look through the shards that found this.
    #[serde(skip)]
    look: u64,
}

impl DrainProgress {
    /// Nothing is left.
    pub fn is_done(&self) -> bool {
        self.counts.messages() == 0 && self.claims == 0 && self.shards_awaited == 0
    }

    /// What is left and goes by no other way than an operator's, in words for one; `None`: nothing is left, or some of it goes by itself. `delivers`: the
    /// node does.
    pub fn stuck(&self, delivers: bool) -> Option<String> {
        let DrainCounts { offered, active, held, too_large } = self.counts;
        if offered + active + self.claims + self.shards_awaited > 0 || held + too_large == 0 {
            return None;
        }
        let mut left = Vec::new();
        if held > 0 {
            left.push(format!(
                "{} held by command: `ringpost queue release` lets what is held go to the cluster, or `ringpost queue purge` or `bounce` ends it",
                messages_are(held)
            ));
        }
        if too_large > 0 {
            let what = if delivers {
                "this node delivers such mail itself, in its time, and what a route `hold` has of it stays until it is given another (`ringpost queue \
                 reroute`), purged or bounced"
            } else {
                "this node delivers nothing, so it stays until a restart with delivery.deliver = true, or until it is purged or bounced"
            };
            left.push(format!("{} larger than what can be offered: {what}", messages_are(too_large)));
        }
        Some(format!(
            "the node is not empty: {}. `ringpost queue ls` lists what is left; the drain goes on until the process ends, and a further call waits for it",
            left.join("; ")
        ))
    }

    /// What a look through the shards has found. `claims`: those before it, which can be in no queue yet and in one behind it; `None`: not known, as the
    /// shards had not told, or the worker had not heard what it leased last. `counts`: `None`: the queue changed under the look. `None`: it says nothing.
    fn found(claims: Option<u64>, counts: Option<DrainCounts>) -> Option<DrainProgress> {
        Some(DrainProgress { claims: claims?, counts: counts?, ..DrainProgress::default() })
    }

    /// Before the first look: so many shards are waited for, for so long. One at least, as what earlier runs have taken over may be all that is awaited.
    fn awaiting(shards: usize, waited: Duration) -> DrainProgress {
        let awaited_s = waited.as_secs() / TAKEN_WITHIN_S * TAKEN_WITHIN_S;
        DrainProgress { shards_awaited: u64::try_from(shards.max(1)).unwrap_or(u64::MAX), awaited_s, ..DrainProgress::default() }
    }
}

fn messages_are(count: u64) -> String {
    if count == 1 { "1 message is".to_owned() } else { format!("{count} messages are") }
}

/// Whether other nodes take what is offered.
struct Taking {
    handed_over: u64,
    /// They did then, or nothing was offered.
    last: BootTime,
}

impl Taking {
    /// For how long they have not, as [`DrainProgress::not_taken_s`] says it.
    fn not_taken_s(&mut self, offered: u64, handed_over: u64, now: BootTime) -> u64 {
        if offered == 0 || handed_over != self.handed_over {
            *self = Self { handed_over, last: now };
        }
        now.since(self.last).as_secs() / TAKEN_WITHIN_S * TAKEN_WITHIN_S
    }
}

impl SharedDelivery {
    /// Begins to empty the node, for the rest of the process's life. A sentence for the operator where that cannot be. Returns what
    /// [`SharedDelivery::drain_progress`] wants.
    pub async fn begin_drain(&self) -> Result<u64, NotDone> {
        let driver = &self.0;
        self.has_spool()?;
        // One at a time: the second begins nothing, and hears of what the first could not do.
        let _begins = driver.drain_begins.lock().await;
        let failed = driver.probe_all().await;
        if failed.len() == driver.partitions().len()
            && let Some((_, reason)) = failed.first()
        {
            return Err(driver.not_begun(reason));
        }
        if !failed.is_empty() {
            let partitions: Vec<u16> = failed.iter().map(|(partition, _)| *partition).collect();
            warn!(?partitions, reason = %failed[0].1, "the drain begins without these partitions of the queue: their mail waits until they take it");
        }
        let takers = driver.takers();
        if takers.is_empty() {
            return Err(
                "no other node of the cluster takes mail: at least one needs delivery.mode = \"shared\" and delivery.deliver = true; \
                        nothing was offered"
                    .into(),
            );
        }
        let cluster = &driver.node.cluster;
        // What nodes say of themselves comes with their heartbeats: two that are told at the same moment do not see it of each other.
        match cluster.control().begin_drain(cluster.me(), &takers).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(
                    "no other node of the cluster takes mail: those that did are being emptied themselves; nothing was offered".into()
                );
            }
            Err(reason) => {
                // It may have been written without an answer.
                if reason.was_sent() {
                    driver.is_not_emptied().await;
                }
                return Err(driver.not_begun(&reason.into()));
            }
        }
        let keeps = driver.clone();
        let marked = tokio::task::spawn_blocking(move || keeps.marking().keep(&keeps.offering)).await;
        if let Err(reason) = marked.unwrap_or_else(|_| Err(io::Error::other("given up"))) {
            driver.is_not_emptied().await;
            return Err(format!("that mail is offered cannot be noted in the spool: {reason}; nothing was offered for the drain").into());
        }
        if !driver.is_draining.swap(true, Ordering::SeqCst) {
            info!("the node is emptied into the cluster's queue and takes no more mail from it");
            driver.node.cluster.says_no_longer(TAKES_MAIL);
            driver.offers().empty();
            driver.activated.notify_one();
            tokio::spawn(driver.clone().keep_draining());
        }
        Ok(driver.drain_looks.load(Ordering::SeqCst))
    }

    /// Err, for the operator: the spool failed, so that nothing that it holds can be read for others or be settled.
    pub fn has_spool(&self) -> Result<(), NotDone> {
        match self.0.node.spool_failure.get() {
            None => Ok(()),
            Some(reason) => Err(format!(
                "this node's spool failed, and what it holds can be neither offered nor settled before a restart: {reason}. Mend the disk, restart the node \
                 and repeat the call"
            )
            .into()),
        }
    }

    /// Whether this node delivers, and what cannot be offered leaves it that way.
    pub fn delivers(&self) -> bool {
        self.0.node.delivers
    }

    /// How far it is, `waited` after `begun`; `None`: the shards have not been looked through anew since, which may be so for a moment.
    pub fn drain_progress(&self, begun: u64, waited: Duration) -> Option<DrainProgress> {
        let (away, partitions_away) = {
            let offers = self.0.offers();
            let away = offers.all_away_since().map_or(Duration::ZERO, |since| BootTime::now().since(since));
            (away, u64::try_from(offers.partitions_away()).unwrap_or(u64::MAX))
        };
        let progress = *self.0.drain_progress();
        let valkey_away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
        let progress = if progress.look > begun {
            progress
        } else if waited >= LOOKED_THROUGH_WITHIN {
            DrainProgress::awaiting(self.0.drain_awaits.load(Ordering::SeqCst), waited)
        } else {
            return None;
        };
        Some(DrainProgress { valkey_away_ms, partitions_away, ..progress })
    }
}

impl Driver {
    fn drain_progress(&self) -> MutexGuard<'_, DrainProgress> {
        self.drain_progress.lock().expect("no panic happens under this lock")
    }

    /// Why a drain does not begin for which the queue did not answer, or would not take anything.
    fn not_begun(&self, reason: &QueueError) -> NotDone {
        let sentence = format!("{}: {reason}; nothing was offered for the drain", self.node.valkey.target());
        // Its number of partitions is another, which no waiting mends.
        if !is_outage(reason) || self.node.queue.difference().is_some() {
            return NotDone::Refused(sentence);
        }
        NotDone::Unavailable(format!(
            "Valkey does not answer this node, or takes nothing, and a node is emptied by way of it: {sentence}. See that Valkey runs and that it is \
             reached from here (`ringpost cluster status`), then repeat the call; stopping the node without emptying it keeps its mail in its spool"
        ))
    }

    /// Other nodes that take mail, as far as this one knows.
    fn takers(&self) -> Vec<NodeId> {
        // One with another number of partitions says that it takes mail, and does not find this node's.
        let own = self.node.queue.bounds().partitions.to_string();
        let is_of_queue = |node: &NodeView| node.metadata.get(QUEUE_PARTITIONS).is_none_or(|number| *number == own);
        let takes = |node: &NodeView| {
            node.id != self.node.me && node.status != Status::Offline && node.metadata.contains_key(TAKES_MAIL) && is_of_queue(node)
        };
        self.node.cluster.nodes().into_iter().filter(takes).map(|node| node.id).collect()
    }

    /// Takes back what a drain that failed has told the other nodes, so that they can be emptied. Where Valkey does not answer that is tried again, as
    /// long as this node is not emptied by a later call.
    async fn is_not_emptied(self: &Arc<Self>) {
        if self.has_taken_back().await || self.takes_drain_back.swap(true, Ordering::SeqCst) {
            return;
        }
        let driver = self.clone();
        tokio::spawn(async move {
            loop {
                sleep(LOOK_EVERY).await;
                let _begins = driver.drain_begins.lock().await;
                if driver.has_taken_back().await {
                    driver.takes_drain_back.store(false, Ordering::SeqCst);
                    return;
                }
            }
        });
    }

    /// Once, under the lock of who begins. A node that is being emptied by an earlier call goes on.
    async fn has_taken_back(&self) -> bool {
        let cluster = &self.node.cluster;
        self.is_draining.load(Ordering::SeqCst) || cluster.control().end_drain(cluster.me()).await.is_ok()
    }

    /// Which partitions do not take what is written, and why.
    async fn probe_all(self: &Arc<Self>) -> Vec<(u16, QueueError)> {
        let mut asked = JoinSet::new();
        for partition in self.partitions() {
            let driver = self.clone();
            asked.spawn(async move { driver.probe_one(partition).await.map(|reason| (partition, reason)) });
        }
        let mut failed: Vec<(u16, QueueError)> = asked.join_all().await.into_iter().flatten().collect();
        failed.sort_unstable_by_key(|(partition, _)| *partition);
        failed
    }

    /// Mail whose attempt has ended, that was released or came in can be offered: the shards are asked again and again.
    async fn keep_draining(self: Arc<Self>) {
        self.drain_awaits.store(self.shards.len(), Ordering::SeqCst);
        let Some(before) = self.handed_over().await else { return };
        let mut was_done = false;
        let mut taking = Taking { handed_over: before, last: BootTime::now() };
        loop {
            let look = self.drain_looks.fetch_add(1, Ordering::SeqCst) + 1;
            // Before the shards are looked through: what is decided from then on is a message that the look may miss.
            let claims = self.open_claims.count();
            let mut counts = Some(DrainCounts::default());
            for shard in 0..self.shards.len() {
                self.drain_awaits.store(self.shards.len() - shard, Ordering::SeqCst);
                // Answered once it has loaded its spool.
                match self.ask(shard, HandOver::OfferAll).await {
                    Ok(Answer::Draining(of_shard)) => counts.iter_mut().for_each(|counts| counts.add(of_shard)),
                    // The queue changed under the look: the next one is whole.
                    Ok(_) => counts = None,
                    Err(_) => return,
                }
            }
            let Some(handed_over) = self.handed_over().await else { return };
            if counts.is_none() {
                warn!("a look at the queue for the drain was not whole; it is repeated");
            }
            if let Some(found) = DrainProgress::found(claims, counts) {
                let not_taken_s = taking.not_taken_s(found.counts.offered, handed_over, BootTime::now());
                let handed_over = handed_over.saturating_sub(before);
                let progress = DrainProgress { handed_over, not_taken_s, look, ..found };
                *self.drain_progress() = progress;
                if !was_done && progress.is_done() {
                    info!(handed_over = progress.handed_over, "the node holds no mail");
                }
                was_done = progress.is_done();
            }
            self.owner.notify_one();
            sleep(if claims.is_some() { LOOK_EVERY } else { TICK }).await;
        }
    }

    async fn handed_over(&self) -> Option<u64> {
        let mut sum = 0;
        for shard in 0..self.shards.len() {
            if let Answer::Stats(stats) = self.ask_for(shard, Command::Stats).await.ok()? {
                sum += stats.iter().filter(|(name, _)| *name == "handed_over").map(|(_, count)| count).sum::<u64>();
            }
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_that_nobody_takes_is_noticed_after_ten_seconds() {
        let at = |seconds| BootTime::after_boot(Duration::from_secs(seconds));
        let mut taking = Taking { handed_over: 7, last: at(100) };
        assert_eq!(taking.not_taken_s(5, 7, at(109)), 0);
        assert_eq!(taking.not_taken_s(6, 7, at(110)), 10, "more mail is no progress");
        assert_eq!(taking.not_taken_s(6, 7, at(129)), 20);
        assert_eq!(taking.not_taken_s(5, 8, at(130)), 0);
        assert_eq!(taking.not_taken_s(5, 8, at(141)), 10);
        assert_eq!(taking.not_taken_s(0, 8, at(150)), 0, "nothing is there to be taken");
        assert_eq!(taking.not_taken_s(5, 8, at(159)), 0);
    }

    fn left(counts: DrainCounts) -> DrainProgress {
        DrainProgress { counts, ..DrainProgress::default() }
    }

    /// Of one message that was too large, on a node that delivers nothing or has a route that holds it: "0 messages are held and 1 message is larger than what
    /// can be offered: release, purge or bounce what is held; what is larger is delivered here".
    #[test]
    fn what_keeps_a_node_from_being_empty_is_named_and_how_it_is_let_go() {
        let says = |held, too_large, delivers| {
            let counts = DrainCounts { held, too_large, ..Default::default() };
            left(counts).stuck(delivers).expect("it goes by no other way")
        };
        let (both, held) = (says(2, 1, true), says(2, 0, true));
        assert!(held.starts_with("the node is not empty: 2 messages are held by command: `ringpost queue release` lets"), "{held}");
        assert!(!held.contains("larger"), "{held}");
        assert!(
            both.contains("2 messages are held") && both.contains("; 1 message is larger than what can be offered: this node delivers"),
            "{both}"
        );
        assert!(
            says(0, 3, true)
                .starts_with("the node is not empty: 3 messages are larger than what can be offered: this node delivers such mail")
        );
        assert!(says(0, 3, true).contains("what a route `hold` has of it stays"));
        let nothing = says(0, 1, false);
        assert!(nothing.contains("this node delivers nothing, so it stays") && !nothing.contains("held"), "{nothing}");
    }

    /// It said nothing for as long as a node loaded its spool, and then it could have been taken for one that is empty.
    #[test]
    fn a_node_of_which_shards_have_not_told_what_they_hold_is_not_empty() {
        let awaiting = DrainProgress::awaiting(3, Duration::from_secs(29));
        assert_eq!((awaiting.shards_awaited, awaiting.awaited_s, awaiting.is_done(), awaiting.stuck(true)), (3, 20, false, None));
        assert!(!DrainProgress::awaiting(0, Duration::ZERO).is_done());
    }

    #[test]
    fn a_drain_goes_on_as_long_as_something_goes_by_itself() {
        let held = DrainCounts { held: 1, too_large: 1, ..Default::default() };
        assert!(left(held).stuck(true).is_some());
        for counts in [DrainCounts { offered: 1, ..held }, DrainCounts { active: 1, ..held }, DrainCounts::default()] {
            assert_eq!(left(counts).stuck(true), None);
        }
        assert_eq!(DrainProgress { claims: 1, ..left(held) }.stuck(true), None);
    }

    /// Right behind its start a node had 18446744073709551615 messages that were being taken over, and while it leased its last it had none.
    #[test]
    fn how_far_it_is_nobody_says_before_all_of_it_is_known() {
        let counts = DrainCounts::default();
        assert_eq!((DrainProgress::found(None, Some(counts)), DrainProgress::found(Some(0), None)), (None, None));
        assert!(DrainProgress::found(Some(0), Some(counts)).is_some_and(|progress| progress.is_done()));
        assert!(DrainProgress::found(Some(1), Some(counts)).is_some_and(|progress| !progress.is_done()));
    }
}
