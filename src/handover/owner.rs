//! The owner's side: brings this node's mail into the work queue and does what the rules say of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, MutexGuard},
    time::Duration,
};

use ringpost_cluster::{
    boot_time::BootTime,
    offer::{NotCarried, Recall, RecallWait, Sending, Todo},
    valkey_error::ValkeyError,
    work_item::NewItem,
    work_queue::{ITEMS_PER_CALL, QueueError},
};
use ringpost_engine::control::{Answer, HandOver, HandedOver, Offer, Recalled, Take, Which};
use ringpost_queue::QueueId;
use tokio::{sync::mpsc, time::sleep};
use tracing::{error, info, warn};

use super::{Driver, ENQUEUE_BYTES_MAX, Ended, TICK, in_each, is_outage};

/// How soon a full hand-over looks again whether there is room for new mail, or for what is kept.
const ROOM_LOOKED_FOR: Duration = Duration::from_millis(20);
/// Bytes of one enqueue: it is to be done within the deadline of a call.
const ENQUEUE_BYTES: usize = 256 * 1024;
/// A call that carries so much and is not answered in time says nothing of Valkey: the line can be slow for that. A line of 0.25 MB/s carries less in the
/// time of any call.
const MUCH_BYTES: usize = 8 * 1024;
/// Mails that a shard settles at a time.
const SETTLED_PER_CALL: usize = 512;
/// Leases that end without a word before an item is poison.
const MAIL_ATTEMPTS_MAX: u32 = 5;

impl Driver {
    /// Brings one shard's mail into the queue: such of it. What is new waits while so much is offered; what is offered again does not, or
    /// nothing would ever be once all of it has to be. What is kept leaves the queue, and waits while so much does.
    pub(super) async fn offer_mail(self: Arc<Self>, shard: usize, which: Which) {
        let take = Take { which, items_max: ITEMS_PER_CALL, bytes_max: ENQUEUE_BYTES };
        loop {
            let has_room = match which {
                Which::New => self.offers().takes_new(),
                Which::Again => true,
                Which::Kept => self.offers().takes_kept(),
            };
            if !has_room {
                sleep(ROOM_LOOKED_FOR).await;
                continue;
            }
            let Ok(Answer::Offers(offers)) = self.ask(shard, HandOver::Take(take)).await else { return };
            if offers.is_empty() {
                // Only a shard that ends answers with nothing.
                return;
            }
            let mut back = Vec::new();
            let (mut items, mut slow) = (Vec::with_capacity(offers.items.len()), Vec::new());
            {
                let mut known = self.offers();
                offers.kept.iter().for_each(|id| known.keeps(&self.item(*id)));
                offers.gone.iter().for_each(|id| known.gone(&self.item(*id)));
                for offer in offers.items {
                    let (id, item) = (offer.id, self.new_item(offer));
                    match known.sending(&item.id) {
                        Sending::Send => match known.tries(&item.id) {
                            0 => items.push(item),
                            tries => slow.push((item, tries)),
                        },
                        Sending::TakeBack => back.push(id),
                        Sending::Leave => {}
                    }
                }
            }
            if !back.is_empty() && self.ask(shard, HandOver::TakeBack(back)).await.is_err() {
                return;
            }
            // The rules give one at a time, and what is offered beside it does not wait for its end.
            for (item, tries) in slow {
                let (driver, partition) = (self.clone(), self.node.queue.partition(&item.id));
                tokio::spawn(async move {
                    driver.clone().enqueue(partition, vec![item], tries).await;
                    driver.owner.notify_one();
                });
            }
            in_each(self.by_partition(items, |item| &item.id), |partition, items| self.clone().enqueue(partition, items, 0)).await;
            self.owner.notify_one();
        }
    }

    pub(super) fn refused(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.refused.lock().expect("no panic happens under this lock")
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

    /// `tries`: calls with them that came to nothing.
    async fn enqueue(self: Arc<Self>, partition: u16, items: Vec<NewItem>, tries: u32) {
        if !self.marks().await {
            let now = BootTime::now();
            return items.iter().for_each(|item| self.offers().refused(&item.id, now));
        }
        let bytes = items.iter().map(|item| item.data.len()).sum::<usize>();
        let room = u32::try_from(bytes.min(ENQUEUE_BYTES_MAX)).expect("below the bound");
        // What may take long holds no room of what may not.
        let _room = if tries == 0 { self.enqueue_bytes.acquire_many(room).await.ok() } else { None };
        let answer = self.node.queue.enqueue_again(partition, &items, tries).await;
        if let Err(reason) = &answer
            && let Some(ended) = not_carried(reason, Carried { bytes, items: items.len() }, self.node.valkey.is_away())
        {
            // Where small calls come to nothing, too, it can be more than the line.
            let late = match reason {
                QueueError::Valkey(ValkeyError::Late(deadline)) if self.offers().is_away(partition).is_none() => {
                    Some((items[0].id.clone(), *deadline))
                }
                _ => None,
            };
            let now = BootTime::now();
            items.iter().for_each(|item| self.offers().not_carried(&item.id, ended, now));
            // Whether the partition is there a small call says.
            let driver = self.clone();
            tokio::spawn(async move {
                let is_there = driver.probe_one(partition).await.is_none_or(|reason| !is_outage(&reason));
                if let Some((item, deadline)) = late.filter(|_| is_slow(is_there, tries)) {
                    driver.node.queue.is_slow_for(&item, bytes, deadline);
                }
            });
            return;
        }
        self.heard(partition, &answer);
        match answer {
            Ok((generation, answers)) => {
                self.node.queue.has_carried(bytes);
                if self.refused().remove(&partition) {
                    info!(partition, "Valkey takes this node's mail again");
                }
                let mut offers = self.offers();
                items.iter().zip(answers).for_each(|(item, answer)| offers.enqueued(&item.id, answer));
                drop(offers);
                self.generation(partition, &generation);
            }
            Err(reason) if is_outage(&reason) => {
                let now = BootTime::now();
                items.iter().for_each(|item| self.offers().unanswered(&item.id, now));
            }
            Err(reason) => {
                if self.refused().insert(partition) {
                    error!(partition, %reason, delivers = self.node.delivers, "Valkey answers and does not take this node's mail: it is tried again every ten \
                        seconds, and delivered here meanwhile where this node delivers");
                }
                let now = BootTime::now();
                items.iter().for_each(|item| self.offers().refused(&item.id, now));
            }
        }
    }

    /// Has one shard settle what others have: it may load its log first, or wait for its disk, and the others are not to wait for that.
    pub(super) async fn settle_mail(self: Arc<Self>, shard: usize, mut handed_over: mpsc::UnboundedReceiver<(String, HandedOver)>) {
        let mut batch = Vec::new();
        while handed_over.recv_many(&mut batch, SETTLED_PER_CALL).await > 0 {
            let mails = batch.iter().map(|(_, mail)| mail.clone()).collect();
            let Ok(answer) = self.ask(shard, HandOver::HandedOver(mails)).await else { return };
            let (is_settled, now) = (matches!(answer, Answer::Done), BootTime::now());
            let mut offers = self.offers();
            for (item, HandedOver { to, .. }) in batch.drain(..) {
                if is_settled { offers.settled(&item, now) } else { offers.not_settled(&item, to, now) }
            }
        }
    }

    /// Takes in what one shard wants back.
    pub(super) async fn recall_mail(self: Arc<Self>, shard: usize) {
        loop {
            self.room_for_recalls().await;
            let Ok(Answer::Recalls(ids)) = self.ask(shard, HandOver::Recalls).await else { return };
            if ids.is_empty() {
                // Only a shard that ends answers with nothing.
                return;
            }
            ids.iter().for_each(|id| self.offers().recalled(&self.item(*id)));
            self.owner.notify_one();
        }
    }

    /// Waits while much is on its way back, as long as any of it moves.
    async fn room_for_recalls(&self) {
        let mut wait = RecallWait::new(&self.offers(), BootTime::now());
        while !wait.is_over(&self.offers(), BootTime::now()) {
            sleep(ROOM_LOOKED_FOR).await;
        }
    }

    /// Does what the owner's rules say.
    pub(super) async fn see_to_offers(self: Arc<Self>) {
        let mut was_local = false;
        loop {
            let (todo, is_local, due) = {
                let mut offers = self.offers();
                (offers.poll(BootTime::now()), offers.is_local(), offers.next_due())
            };
            if is_local != was_local {
                was_local = is_local;
                // Why a node with another number of partitions does so was said.
                if is_local && self.node.queue.difference().is_none() {
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

    async fn execute(self: &Arc<Self>, todo: Todo) -> Result<(), Ended> {
        match todo {
            Todo::Ask(ids) => {
                in_each(self.by_partition(ids, |id| id), |partition, ids| self.clone().ask_queue(partition, ids)).await;
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
            Todo::Settle(items) => {
                for (item, to) in items {
                    if let Some((shard, id)) = self.of_item(&item) {
                        // A shard that has ended settles nothing any more; the next start asks again.
                        let _ended = self.handed_over[shard].send((item, HandedOver { id, to }));
                    }
                }
            }
            Todo::Withdraw(ids) => {
                in_each(self.by_partition(ids, |id| id), |partition, ids| self.clone().withdraw(partition, ids)).await;
            }
            Todo::End(ids) => {
                in_each(self.by_partition(ids, |id| id), |partition, ids| self.clone().end(partition, ids)).await;
            }
            Todo::Refuse(records) => {
                in_each(self.by_partition(records, |(id, _)| id), |partition, records| self.clone().refuse(partition, records)).await;
            }
            Todo::Tell(answers) => {
                let mut by_shard: BTreeMap<usize, Vec<(QueueId, Recalled)>> = BTreeMap::new();
                for (item, recall) in answers {
                    let recalled = match recall {
                        Recall::Out => Recalled::Out,
                        Recall::Taken => Recalled::Taken,
                        Recall::Unanswered => Recalled::Unanswered,
                    };
                    if let Some((shard, id)) = self.of_item(&item) {
                        by_shard.entry(shard).or_default().push((id, recalled));
                    }
                }
                for (shard, answers) in by_shard {
                    self.ask(shard, HandOver::Recalled(answers)).await?;
                }
            }
            Todo::Forget(ids) => {
                in_each(self.by_partition(ids, |id| id), |partition, ids| self.clone().forget(partition, ids)).await;
            }
        }
        Ok(())
    }

    async fn ask_queue(self: Arc<Self>, partition: u16, ids: Vec<String>) {
        let names: Vec<&str> = ids.iter().map(String::as_str).collect();
        let answer = self.node.queue.known(partition, &names).await;
        self.noticed(partition, &answer);
        let Ok((generation, answers)) = answer else { return self.offers().unheard(ids) };
        let now = BootTime::now();
        ids.iter().zip(&answers).for_each(|(id, known)| self.offers().known(id, known, now));
        self.generation(partition, &generation);
    }

    async fn withdraw(self: Arc<Self>, partition: u16, ids: Vec<String>) {
        let names: Vec<&str> = ids.iter().map(String::as_str).collect();
        let answer = self.node.queue.withdraw(partition, &names).await;
        self.noticed(partition, &answer);
        match answer {
            Ok(answers) => ids.iter().zip(answers).for_each(|(id, is_out)| self.offers().withdrawn(id, is_out)),
            Err(_) => self.offers().unheard(ids),
        }
    }

    async fn end(self: Arc<Self>, partition: u16, ids: Vec<String>) {
        let names: Vec<&str> = ids.iter().map(String::as_str).collect();
        let answer = self.node.queue.end(partition, &names).await;
        self.noticed(partition, &answer);
        match answer {
            Ok(answers) => ids.iter().zip(answers).for_each(|(id, ending)| self.offers().ended_there(id, ending)),
            Err(_) => self.offers().unheard(ids),
        }
    }

    /// What says that others have mail, and cannot prove it, and what this node has taken back: the mail is here, and the queue is to say so.
    async fn refuse(self: Arc<Self>, partition: u16, records: Vec<(String, Vec<u8>)>) {
        let unproven: Vec<&String> = records.iter().filter(|(_, record)| !record.starts_with(b"\n")).map(|(id, _)| id).collect();
        if let Some(item) = unproven.first() {
            warn!(
                count = unproven.len(),
                item,
                "what the cluster's queue says of these completions is not signed with this node's cluster.key_file: this node keeps the mail"
            );
        }
        let answer = self.node.queue.refuse(partition, &records).await;
        self.noticed(partition, &answer);
        let now = BootTime::now();
        match answer {
            Ok(answers) => records.iter().zip(answers).for_each(|((id, _), is_gone)| self.offers().refused_record(id, is_gone, now)),
            Err(_) => self.offers().unheard(records.into_iter().map(|(id, _)| id).collect()),
        }
    }

    async fn forget(self: Arc<Self>, partition: u16, ids: Vec<String>) {
        let names: Vec<&str> = ids.iter().map(String::as_str).collect();
        let answer = self.node.queue.settled(partition, &names).await;
        self.noticed(partition, &answer);
        ids.iter().for_each(|id| self.offers().forgotten(id, answer.is_ok(), BootTime::now()));
    }
}

/// What a call brings into the queue.
#[derive(Clone, Copy)]
struct Carried {
    bytes: usize,
    items: usize,
}

/// How an enqueue came to nothing that says nothing of Valkey, but perhaps something of the line; `None`: it carried little, or was answered, or Valkey
/// `is_away` by what other calls came to.
fn not_carried(reason: &QueueError, Carried { bytes, items }: Carried, is_away: bool) -> Option<NotCarried> {
    match reason {
        QueueError::Valkey(error) if bytes >= MUCH_BYTES && !is_away && error.is_unreachable() => Some(match error {
            ValkeyError::Late(_) => NotCarried::Late { was_alone: items == 1 },
            // Valkey was ended or restarted, which says nothing of the line.
            _ => NotCarried::Cut,
        }),
        QueueError::Valkey(_) | QueueError::Item(_) => None,
    }
}

/// Whether it is the line that a call was late for, by the small call after it; where that came to nothing too, it may be Valkey that hangs, unless the same
/// has come to nothing before.
fn is_slow(is_there: bool, tries: u32) -> bool {
    is_there || tries > 0
}

#[cfg(test)]
mod tests {
    use ringpost_cluster::work_item::ItemError;

    use super::*;

    const ONE: Carried = Carried { bytes: 3_000_000, items: 1 };

    fn late() -> QueueError {
        ValkeyError::Late(Duration::from_millis(410)).into()
    }

    #[test]
    fn a_call_that_carried_much_and_is_late_says_nothing_of_valkey() {
        assert_eq!(not_carried(&late(), ONE, false), Some(NotCarried::Late { was_alone: true }));
        assert_eq!(not_carried(&late(), Carried { items: 2, ..ONE }, false), Some(NotCarried::Late { was_alone: false }));
        let much = |bytes| not_carried(&late(), Carried { bytes, items: 1 }, false).is_some();
        assert_eq!((much(MUCH_BYTES - 1), much(MUCH_BYTES)), (false, true), "a small call says that Valkey does not answer");
        assert_eq!(not_carried(&late(), ONE, true), None, "what other calls came to counts");
    }

    /// A Valkey that was ended under a call that carried much counted as a line that was too slow for it.
    #[test]
    fn a_connection_that_is_not_there_or_breaks_says_nothing_of_the_line_either() {
        let cut: QueueError = ValkeyError::Unreachable("Connection reset by peer".to_owned()).into();
        assert_eq!(not_carried(&cut, ONE, false), Some(NotCarried::Cut));
        assert_eq!(not_carried(&cut, Carried { bytes: 100, items: 1 }, false), None);
        assert_eq!(not_carried(&cut, ONE, true), None);
    }

    #[test]
    fn what_valkey_answers_or_was_not_asked_is_no_matter_of_the_line() {
        for answered in [
            ValkeyError::CircuitOpen(String::new()),
            ValkeyError::Full("OOM".to_owned()),
            ValkeyError::Unavailable("LOADING".to_owned()),
            ValkeyError::Misconfigured("NOPERM".to_owned()),
            ValkeyError::Refused("ERR".to_owned()),
            ValkeyError::Malformed("a list"),
            ValkeyError::NotAgreed(String::new()),
        ] {
            assert_eq!(not_carried(&answered.clone().into(), ONE, false), None, "{answered}");
        }
        assert_eq!(not_carried(&ItemError::TooLarge(1).into(), ONE, false), None);
    }

    /// A Valkey that hung was told to the operator as a slow line, for two minutes, when a large mail was the first to meet it.
    #[test]
    fn a_line_is_slow_where_a_small_call_is_answered_behind_the_late_one_or_it_is_late_again() {
        assert!(is_slow(true, 0) && !is_slow(false, 0) && is_slow(false, 1));
    }
}
