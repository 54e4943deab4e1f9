//! The owner's shard in a hand-over: gives mail to the coordinator to be offered, keeps it until another node has it for certain.
//!
//! Offered mail stays in spool and queue, in the state `offered`. The coordinator pulls: it asks for offers when it has room for
//! some, so nothing in accepting mail waits for it. The rules are `ringpost_cluster::offer`'s.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use ringpost_config::DeliveryMode;
use ringpost_queue::{Cursor, Filter, QueueId, Settled};
use tracing::warn;

use crate::{
    content::MessageContent,
    control::{Answer, HandedOver, Offer, Offers, PAGE_MESSAGES_MAX},
    envelope_times::release_at_ms,
    handed_mail::HandedMail,
    mail_log::Escaped,
    record_id::record_id,
    shard::Shard,
    stored_envelope::{MessageRecord, RecordError},
};

/// The largest content that is offered by a node that can deliver it itself.
pub const OFFERED_BYTES_MAX: u64 = 1024 * 1024;
/// And by one that cannot.
pub const ONLY_OFFERED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What a shard keeps of its offers.
#[derive(Default)]
pub(crate) struct Offering {
    /// Valkey has been away for so long that new mail is delivered here.
    is_local: Cell<bool>,
    /// Of mail in state `offered`, what the coordinator has not got.
    unsent: RefCell<VecDeque<QueueId>>,
    /// Mail of earlier runs that is delivered here, though it may have been offered.
    kept: RefCell<VecDeque<QueueId>>,
    waker: RefCell<Option<Waker>>,
}

impl Offering {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Shard {
    /// Is mail of this size to be offered?
    pub(crate) fn offers(&self, content_bytes: u64) -> bool {
        let config = self.config();
        let delivery = &config.delivery;
        delivery.mode == DeliveryMode::Shared
            && !(self.offering.is_local.get() && delivery.deliver)
            // What is too large for a node that does not deliver waits there, visible, and is not offered.
            && (!delivery.deliver || content_bytes <= OFFERED_BYTES_MAX)
    }

    /// Mail in state `offered` came into the queue.
    pub(crate) fn offer_soon(&self, id: QueueId) {
        self.offering.unsent.borrow_mut().push_back(id);
        self.offering.wake();
    }

    /// Mail of an earlier run is delivered here.
    pub(crate) fn keeps(&self, id: QueueId) {
        if self.config().delivery.mode == DeliveryMode::Shared {
            self.offering.kept.borrow_mut().push_back(id);
            self.offering.wake();
        }
    }

    /// The coordinator has Valkey, or has had none for long.
    pub(crate) fn set_offering(&self, offers: bool) {
        self.offering.is_local.set(!offers);
    }

    /// Waits until there is something to offer, and gives up to `items_max` of it; one item more than `bytes_max` allows at most.
    pub(crate) async fn take_offers(self: Rc<Self>, items_max: usize, bytes_max: usize) -> Answer {
        let key = self.life_of_task().await;
        poll_fn(|cx| {
            if self.is_ending() || !self.offering.unsent.borrow().is_empty() || !self.offering.kept.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.offering.waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
        self.forget_waiter(key);
        let mut offers = Offers::default();
        let mut bytes = 0;
        {
            let mut kept = self.offering.kept.borrow_mut();
            let count = kept.len().min(items_max);
            offers.kept.extend(kept.drain(..count));
        }
        while offers.items.len() + offers.gone.len() < items_max && bytes < bytes_max && !self.is_ending() {
            let Some(id) = self.offering.unsent.borrow_mut().pop_front() else { break };
            match self.offer_of(id).await {
                Ok(Some(offer)) => {
                    bytes += offer.data.len();
                    offers.items.push(offer);
                }
                // Settled meanwhile, perhaps before its turn came.
                Ok(None) | Err(RecordError::Gone) => offers.gone.push(id),
                Err(reason) => {
                    warn!(queue_id = %id, %reason, "this mail cannot be read to be offered; it is delivered here");
                    self.deliver_here(&[id]);
                    offers.gone.push(id);
                }
            }
        }
        Answer::Offers(offers)
    }

    /// `None`: it is not offered any more.
    async fn offer_of(&self, id: QueueId) -> Result<Option<Offer>, RecordError> {
        let now = self.now_ms();
        let (priority, size, expires_at) = {
            let queue = self.queue.borrow();
            let Some(view) = queue.key_of(id).and_then(|key| queue.show(key)).filter(|view| view.is_offered() && !view.is_closing()) else {
                return Ok(None);
            };
            let expires_at = view.recipients().map(|recipient| recipient.expires_at()).max().unwrap_or(u64::MAX);
            (view.priority(), view.envelope().size, expires_at)
        };
        if size > ONLY_OFFERED_BYTES_MAX {
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
        let envelope_bytes = u32::try_from(view.as_bytes().len()).expect("it is part of a record");
        let tags_bytes = u16::try_from(tags.len()).expect("as in the record");
        let mut data = HandedMail::head(Some(priority), accepted_at_ms, envelope_bytes, tags_bytes).to_vec();
        data.extend_from_slice(view.as_bytes());
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
        self.offering.unsent.borrow_mut().extend(ids);
        self.offering.wake();
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

    /// Offers everything that can be offered: the node is to be retired. Returns how much that is.
    pub(crate) fn offer_all(&self) -> u64 {
        let now = self.now_ms();
        let mut keys = Vec::new();
        let mut cursor = Some(Cursor::default());
        while let Some(at) = cursor {
            let page = self.queue.borrow_mut().page(&Filter::default(), at, PAGE_MESSAGES_MAX, |view| keys.push(view.key()));
            cursor = page.unwrap_or(None);
        }
        let mut offered = 0;
        for key in keys {
            let mut queue = self.queue.borrow_mut();
            let Some(envelope) = queue.envelope(key) else { continue };
            let (id, size) = (envelope.id, envelope.size);
            if size <= ONLY_OFFERED_BYTES_MAX && queue.offer(key, now) {
                drop(queue);
                self.offer_soon(id);
                offered += 1;
            }
        }
        offered
    }

    /// Other nodes have these: they are settled, whatever state they are in here. Ready when that is durable.
    pub(crate) async fn handed_over(self: Rc<Self>, items: Vec<HandedOver>) -> Answer {
        self.loaded().await;
        for HandedOver { id, to } in items {
            let now = self.now_ms();
            let settled = {
                let mut queue = self.queue.borrow_mut();
                let Some(key) = queue.key_of(id) else { continue };
                queue.delete(key, now).map(|settled| (key, settled))
            };
            if let Some((key, settled)) = settled {
                self.metrics.handed_over.increment();
                self.log_mail(format_args!("queue_id={id} event=handed_over to=\"{}\"", Escaped(to.as_bytes())));
                debug_assert_eq!(settled, Settled::Done);
                self.persist(key, settled);
            }
        }
        self.records_durable().await;
        if self.is_ending() { Answer::Failed("the shard ends".to_owned()) } else { Answer::Done }
    }
}
