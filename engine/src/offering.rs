//! The owner's shard in a hand-over: gives mail to the coordinator to be offered, keeps it until another node has it for certain.
//!
//! Offered mail stays in spool and queue, in the state `offered`. The coordinator pulls: it asks for offers when it has room for
//! some, so nothing in accepting mail waits for it. The rules are `ringpost_cluster::offer`'s.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use ringpost_config::{DeliveryMode, OFFERED_CONTENT_MAX};
use ringpost_queue::{Filter, MessageKey, Offered, QueueId};
use ringpost_smtp::header::RECEIVED_BYTES_MAX;
use tracing::warn;

use crate::{
    content::MessageContent,
    control::{Answer, DrainCounts, HandedOver, Missing, Offer, Offers, PAGE_MESSAGES_MAX, Take, Which},
    envelope_times::release_at_ms,
    handed_mail::HandedMail,
    mail_log::Escaped,
    queue_walk::QueueWalk,
    record_id::record_id,
    shard::Shard,
    stored_envelope::{MessageRecord, RecordError},
    unread_offers::UnreadOffers,
};

/// The largest content that is offered by a node that can deliver it itself.
pub const OFFERED_BYTES_MAX: u64 = 1024 * 1024;
/// And by one that cannot, or is to be emptied: what was accepted and the Received field in front of it.
pub const ONLY_OFFERED_BYTES_MAX: u64 = OFFERED_CONTENT_MAX.bytes() + RECEIVED_BYTES_MAX as u64;

/// What a shard keeps of its offers.
#[derive(Default)]
pub(crate) struct Offering {
    /// Valkey has been away for so long that new mail is delivered here.
    is_local: Cell<bool>,
    /// The node is to be retired: all mail is offered, whatever the mode.
    is_draining: Cell<bool>,
    /// An earlier run shared its mail, and this one does not.
    retracts: bool,
    /// An earlier run was emptied, or delivered nothing: it may have offered what it had tried before, too.
    was_drained: bool,
    /// Of mail in state `offered`, what the coordinator has not got.
    unsent: Line,
    /// What it wants again, since the queue has lost it or never had it. Never waits for room.
    again: Line,
    /// Mail of earlier runs that is delivered here, though it may have been offered.
    kept: Line,
    /// What could not be read.
    pub(crate) unread: UnreadOffers,
}

/// Mail that waits for the coordinator to take it.
#[derive(Default)]
struct Line {
    ids: RefCell<VecDeque<QueueId>>,
    /// Of the coordinator's calls that wait for mail.
    wakers: RefCell<Vec<Waker>>,
}

impl Line {
    fn push(&self, ids: impl IntoIterator<Item = QueueId>) {
        self.ids.borrow_mut().extend(ids);
        self.wakers.take().into_iter().for_each(Waker::wake);
    }

    fn pop(&self) -> Option<QueueId> {
        self.ids.borrow_mut().pop_front()
    }

    /// Ready when something is there.
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.ids.borrow().is_empty() {
            return Poll::Ready(());
        }
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Offering {
    /// Is all mail offered, to empty the node?
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.get()
    }

    /// What the coordinator would get next.
    #[cfg(test)]
    pub(crate) fn take_unsent(&self) -> Vec<QueueId> {
        self.unsent.ids.take().into()
    }

    /// Both as in [`crate::shard::ShardPlan`].
    pub(crate) fn new(retracts: bool, was_drained: bool) -> Offering {
        Offering { retracts, was_drained, ..Offering::default() }
    }
}

impl Shard {
    /// Is mail of this size to be offered?
    pub(crate) fn offers(&self, content_bytes: u64) -> bool {
        let config = self.config();
        let delivery = &config.delivery;
        if !delivery.deliver {
            // What is too large waits, visible.
            return true;
        }
        if self.offering.is_draining.get() {
            return !self.offering.is_local.get() && content_bytes <= ONLY_OFFERED_BYTES_MAX;
        }
        delivery.mode == DeliveryMode::Shared && !self.offering.is_local.get() && content_bytes <= OFFERED_BYTES_MAX
    }

    /// How a message is queued; `is_found`: in the spool of an earlier run.
    pub(crate) fn offered(&self, content_bytes: u64, is_found: bool) -> Offered {
        if !self.config().delivery.deliver {
            Offered::Always
        } else if is_found && self.offering.was_drained && content_bytes <= ONLY_OFFERED_BYTES_MAX {
            Offered::Perhaps
        } else if self.offers(content_bytes) || is_found && self.offering.retracts && content_bytes <= ONLY_OFFERED_BYTES_MAX {
            Offered::Untouched
        } else {
            Offered::No
        }
    }

    /// Found offered in the spool: it is offered again, or taken back, by a node that shares no longer or that would not offer it anew. `is_untouched`:
    /// nothing of it was tried or has ended.
    pub(crate) fn found_offered(&self, id: QueueId, content_bytes: u64, is_untouched: bool) {
        if content_bytes > ONLY_OFFERED_BYTES_MAX {
            warn!(
                queue_id = %id,
                content_bytes,
                "this mail is too large to be offered to the cluster, and this node delivers nothing: it waits until it expires, or until a \
                 restart with delivery.deliver = true"
            );
        }
        let is_offered_anew = !self.config().delivery.deliver || self.offers(content_bytes) && is_untouched;
        if self.offering.retracts || !is_offered_anew {
            self.recalling.retract(id);
        } else {
            self.offer_soon(id);
        }
    }

    /// Mail in state `offered` came into the queue.
    pub(crate) fn offer_soon(&self, id: QueueId) {
        self.offering.unsent.push([id]);
    }

    /// Mail of an earlier run is delivered here.
    pub(crate) fn keeps(&self, id: QueueId) {
        if self.config().delivery.mode == DeliveryMode::Shared || self.offering.retracts {
            self.offering.kept.push([id]);
        }
    }

    /// The coordinator has not heard of all such mail.
    pub(crate) fn has_kept(&self) -> bool {
        !self.offering.kept.ids.borrow().is_empty()
    }

    /// The coordinator has Valkey, or has had none for long.
    pub(crate) fn set_offering(&self, offers: bool) {
        self.offering.is_local.set(!offers);
    }

    /// Waits until there is such mail to offer, and gives up to `items_max` of it; one item more than `bytes_max` allows at most.
    ///
    /// Mail that is asked back is not given: it could be on its way into the queue when the word comes that it is out. Whoever asked, or
    /// the coordinator's next look at what it takes for offered, brings it here again.
    pub(crate) async fn take_offers(self: Rc<Self>, take: Take) -> Answer {
        loop {
            self.offers_there(take.which).await;
            let offers = self.collect_offers(take).await;
            if !offers.is_empty() || self.is_ending() {
                return Answer::Offers(offers);
            }
        }
    }

    /// Waits until there is something to offer, or the shard ends.
    async fn offers_there(&self, which: Which) {
        let key = self.life_of_task().await;
        let Offering { unsent, again, kept, .. } = &self.offering;
        poll_fn(|cx| {
            let is_there = match which {
                Which::New => unsent.poll(cx).is_ready(),
                Which::Again => again.poll(cx).is_ready(),
                Which::Kept => kept.poll(cx).is_ready(),
            };
            if is_there || self.is_ending() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.forget_waiter(key);
    }

    async fn collect_offers(self: &Rc<Self>, Take { which, items_max, bytes_max }: Take) -> Offers {
        let mut offers = Offers::default();
        let mut bytes = 0;
        let line = match which {
            Which::New => &self.offering.unsent,
            Which::Again => &self.offering.again,
            Which::Kept => {
                offers.kept.extend(std::iter::from_fn(|| self.offering.kept.pop()).take(items_max));
                if !self.has_kept() {
                    self.wake_life();
                }
                return offers;
            }
        };
        while offers.items.len() + offers.gone.len() < items_max && bytes < bytes_max && !self.is_ending() {
            let Some(id) = line.pop() else { break };
            match self.offer_of(id).await {
                _ if self.recalling.is_wanted(id) => self.offering.unread.is_over(id),
                Ok(Some(offer)) => {
                    self.offering.unread.is_over(id);
                    bytes += offer.data.len();
                    offers.items.push(offer);
                }
                // Settled meanwhile, perhaps before its turn came.
                Ok(None) | Err(RecordError::Gone) => {
                    self.offering.unread.is_over(id);
                    offers.gone.push(id);
                }
                Err(reason) => {
                    if self.config().delivery.deliver {
                        self.deliver_unread(id, &reason);
                    } else {
                        self.offer_later(id, &reason);
                    }
                    offers.gone.push(id);
                }
            }
        }
        offers
    }

    /// `None`: it is not offered any more.
    async fn offer_of(&self, id: QueueId) -> Result<Option<Offer>, RecordError> {
        let now = self.now_ms();
        let (priority, size, expires_at, is_open) = {
            let queue = self.queue.borrow();
            let Some(view) = queue.key_of(id).and_then(|key| queue.show(key)).filter(|view| view.is_given_out()) else {
                return Ok(None);
            };
            let is_open: Vec<bool> = view.recipients().map(|recipient| recipient.is_open()).collect();
            (view.priority(), view.envelope().size, view.ends_at(), is_open)
        };
        if size > ONLY_OFFERED_BYTES_MAX || !is_open.contains(&true) {
            return Ok(None);
        }
        let committer = self.committer_of(id.shard).ok_or(RecordError::Gone)?;
        let record = MessageRecord::read(&committer, record_id(id)).await?;
        let (stored, tags) = (record.envelope()?, record.tags());
        let view = stored.view();
        let accepted_at_ms = {
            let queue = self.queue.borrow();
            queue.key_of(id).and_then(|key| queue.envelope(key)).map_or(now, |envelope| envelope.accepted_at)
        };
        // Who has it, or has failed, is this node's to remember.
        let envelope = view.with_recipients(|position| is_open.get(position).copied().unwrap_or(true));
        let envelope_bytes = u32::try_from(envelope.len()).expect("it is part of a record");
        let tags_bytes = u16::try_from(tags.len()).expect("as in the record");
        let mut data = HandedMail::head(Some(priority), accepted_at_ms, envelope_bytes, tags_bytes).to_vec();
        data.extend_from_slice(&envelope);
        data.extend_from_slice(&tags);
        let content = MessageContent::of_log(committer, record_id(id)).await?;
        for index in 0..content.pieces() {
            data.extend_from_slice(&content.piece(index).await?);
        }
        let delay_ms = release_at_ms(&view, accepted_at_ms).map_or(0, |at| at.saturating_sub(now));
        let expires_in_ms = if expires_at == u64::MAX { 0 } else { expires_at.saturating_sub(now).max(1) };
        Ok(Some(Offer { id, priority, delay_ms, expires_in_ms, data }))
    }

    /// Offers these again: the queue has lost them, or never had them.
    pub(crate) fn offer_again(&self, ids: &[QueueId]) {
        self.offering.again.push(ids.iter().copied());
    }

    /// Delivers these here. Returns how many were offered.
    pub(crate) fn deliver_here(&self, ids: &[QueueId]) -> u64 {
        let now = self.now_ms();
        let mut queue = self.queue.borrow_mut();
        let taken = ids.iter().filter(|id| queue.key_of(**id).is_some_and(|key| queue.take_back(key, now))).count();
        drop(queue);
        self.delivery.kick();
        taken as u64
    }

    /// The node is to be retired: offers everything that can be offered, and says what is left.
    pub(crate) async fn offer_all(self: Rc<Self>) -> Answer {
        self.offering.is_draining.set(true);
        self.loaded().await;
        self.offering.unread.retain(|id| self.queue.borrow().key_of(id).is_some());
        let mut counts = DrainCounts::default();
        // What comes meanwhile is offered as it comes.
        let mut walk = QueueWalk::begin(Filter::default(), self.upcoming_id());
        loop {
            let mut keys = Vec::new();
            let page = walk.page(&mut self.queue.borrow_mut(), PAGE_MESSAGES_MAX, |view| keys.push(view.key()));
            match page {
                Ok(true) => {}
                Ok(false) => return Answer::Draining(counts),
                Err(lost) => return Answer::Failed(lost.to_string()),
            }
            keys.into_iter().for_each(|key| self.offer_one(key, &mut counts));
            self.ring.yield_now().await;
        }
    }

    fn offer_one(&self, key: MessageKey, counts: &mut DrainCounts) {
        let now = self.now_ms();
        let mut queue = self.queue.borrow_mut();
        let Some(view) = queue.show(key).filter(|view| !view.is_closing()) else { return };
        let (id, size, is_offered) = (view.envelope().id, view.envelope().size, view.is_offered());
        if view.is_held() {
            counts.held += 1;
        } else if size > ONLY_OFFERED_BYTES_MAX {
            counts.too_large += 1;
        } else if is_offered {
            counts.offered += 1;
        } else if !self.offering.is_local.get() && !self.offering.unread.waits(id, self.ring.now()) && queue.offer(key, now) {
            counts.offered += 1;
            drop(queue);
            self.offer_soon(id);
        } else {
            counts.active += 1;
        }
    }

    /// Which of these the shard does not have, and of which of those it knows the end.
    pub(crate) async fn missing(self: Rc<Self>, mut ids: Vec<QueueId>) -> Answer {
        self.loaded().await;
        if self.is_ending() {
            return Answer::Failed("the shard ends".to_owned());
        }
        let (queue, settled) = (self.queue.borrow(), self.settled.borrow());
        ids.retain(|id| queue.key_of(*id).is_none());
        // What this run has accepted was in this process's memory all the time.
        let is_settled = |id: &QueueId| (id.boot, id.shard) == (self.boot, self.id) || settled.contains(*id);
        let (settled, unknown) = ids.into_iter().partition(is_settled);
        Answer::Missing(Missing { settled, unknown })
    }

    /// All that it knows to be settled, once its logs are read.
    pub(crate) async fn settled_ids(self: Rc<Self>) -> Answer {
        self.loaded().await;
        Answer::SettledIds(self.settled.borrow().clone())
    }

    /// A message came to its end, or its log says so. Only a cluster's queue can ask for it later.
    pub(crate) fn note_settled(&self, id: QueueId) {
        if self.config().cluster.enabled {
            self.settled.borrow_mut().insert(id);
        }
    }

    /// Other nodes have these: what is open of them is settled, whatever state it is in here. Done when that is durable of all; where the
    /// disk has no room for it, failed, to be asked again.
    pub(crate) async fn handed_over(self: Rc<Self>, items: Vec<HandedOver>) -> Answer {
        self.loaded().await;
        let mut keys = Vec::with_capacity(items.len());
        for HandedOver { id, to } in items {
            let now = self.now_ms();
            let mut queue = self.queue.borrow_mut();
            let Some(key) = queue.key_of(id) else { continue };
            let settled = queue.handed_over(key, now, &mut Vec::new());
            drop(queue);
            keys.push(key);
            if let Some(settled) = settled {
                self.metrics.handed_over.increment();
                self.log_mail(format_args!("queue_id={id} event=handed_over taken_by=\"{}\"", Escaped(to.as_bytes())));
                self.persist(key, settled);
            }
        }
        self.records_durable().await;
        if self.is_ending() || !self.keeps_records() {
            return Answer::Failed("the shard ends".to_owned());
        }
        // Forgotten at the next start, it would be delivered again. What an earlier call has settled may wait yet.
        let unwritten = self.unwritten();
        if keys.iter().any(|key| unwritten.contains_key(key)) {
            return Answer::Failed("the spool has no room left on its disk".to_owned());
        }
        Answer::Done
    }
}

#[cfg(test)]
mod tests {
    use ringpost_queue::Filter;

    use super::*;
    use crate::test_shard::{accept, empty, fill, run};

    /// Whoever offers mail heard that it was settled, and let it go; with the disk full that was on no disk, and the next start delivered it again.
    #[test]
    fn what_another_node_has_is_not_done_before_the_full_disk_has_it() {
        run(async |shard| {
            let (id, key) = accept(&shard, &["b@y.test", "c@z.test"]).await;
            let fillers = fill(&shard).await;
            // Its sender is to be told of one, so that no settled record does, which finds room where nothing else does.
            let one = Filter { recipient_domain: Some("z.test".into()), ..Filter::default() };
            let settled = shard.queue.borrow_mut().bounce(key, &one, b"554 5.0.0 no", shard.now_ms(), &mut Vec::new()).unwrap();
            shard.persist(key, settled);
            let handed_over = || shard.clone().handed_over(vec![HandedOver { id, to: "n2 1NGQZ6X00001J".to_owned() }]);
            for _ in 0..2 {
                let answer = handed_over().await;
                assert!(matches!(&answer, Answer::Failed(reason) if reason.contains("no room")), "{answer:?}");
            }
            empty(&shard, &fillers).await;
            while !shard.unwritten().is_empty() {
                shard.own.room().await;
            }
            assert!(matches!(handed_over().await, Answer::Done));
        });
    }
}
