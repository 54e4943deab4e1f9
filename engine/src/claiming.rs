//! The worker's shard in a hand-over: another node's mail goes into this spool as a claim, and becomes deliverable when it is this node's.
//!
//! A claim is a message record with the name of the item and the token of its lease (`message_record`), and no outcome. The first
//! outcome record makes it this node's mail; until then a restart asks again. The rules are `ringpost_cluster::claim`'s.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use ringpost_queue::{BacklogWalk, Offered, QueueId, Settled};
use ringpost_smtp::{envelope::EnvelopeView, extension::Body};
use ringpost_spool::{AppendError, Content, Ticket};
use tracing::{error, warn};

use crate::{
    control::{Answer, Claim, FoundClaim},
    handed_mail::HandedMail,
    incoming::CHUNK_BYTES,
    mail_log::EscapedWord,
    message_record::{TRAILER_BYTES, Trailer},
    queueing::{Entry, Stated},
    record_id::record_id,
    shard::{PAYLOAD_BYTES_MAX, Shard},
};

/// A claim without an answer, beside its record.
#[derive(Default)]
pub(crate) struct Waiting {
    pub(crate) item: String,
    pub(crate) token: String,
    pub(crate) envelope: Box<[u8]>,
    pub(crate) accepted_at_ms: u64,
    /// Of the content, as it goes to a next hop.
    pub(crate) sent_bytes: u64,
    pub(crate) priority: Option<u8>,
    pub(crate) tags: Box<[u8]>,
}

/// The claims of a shard.
#[derive(Default)]
pub(crate) struct Claiming {
    waiting: RefCell<HashMap<QueueId, Waiting>>,
}

impl Shard {
    /// A claim was found in the spool.
    pub(crate) fn found_claim(&self, id: QueueId, waiting: Waiting) {
        self.claiming.waiting.borrow_mut().insert(id, waiting);
    }

    /// Claims without an answer, once the logs are loaded.
    pub(crate) async fn claims(self: Rc<Self>) -> Answer {
        self.loaded().await;
        let waiting = self.claiming.waiting.borrow();
        let found = |(id, claim): (&QueueId, &Waiting)| FoundClaim { id: *id, item: claim.item.clone(), token: claim.token.clone() };
        Answer::Claims(waiting.iter().map(found).collect())
    }

    /// What is left to deliver that goes: by this the node decides whether it leases more.
    pub(crate) async fn backlog(self: Rc<Self>) -> Answer {
        let mut walk = BacklogWalk::default();
        loop {
            if let Some(backlog) = self.queue.borrow().backlog(&mut walk, self.now_ms()) {
                return Answer::Backlog(backlog);
            }
            self.ring.yield_now().await;
        }
    }

    /// Stores another node's mail; answers when it is durable, with the id that it has here.
    pub(crate) async fn claim(self: Rc<Self>, claim: Claim) -> Answer {
        let Some(mail) = HandedMail::read(&claim.data) else { return Answer::Unusable("the item is no mail of this version") };
        if !EnvelopeView::decode(mail.envelope).is_ok_and(|view| view.recipient_count() > 0) {
            return Answer::Unusable("the item's envelope is none");
        }
        match self.store_claim(&claim, &mail).await {
            Ok(id) => Answer::Claimed(id, self.queue.borrow().len() as u64),
            Err(reason) => Answer::Failed(reason.to_owned()),
        }
    }

    async fn store_claim(&self, claim: &Claim, mail: &HandedMail<'_>) -> Result<QueueId, &'static str> {
        const NO_ROOM: &str = "this node has no room";
        let name = format!("{}\n{}", claim.item, claim.token);
        let tail = mail.envelope.len() + name.len() + mail.tags.len() + TRAILER_BYTES;
        if self.own.available().reserve || !self.queue.borrow().has_room() || self.is_ending() || tail + CHUNK_BYTES > PAYLOAD_BYTES_MAX {
            return Err(NO_ROOM);
        }
        let id = self.next_id();
        // The record has the beginning of the content, the chunks what comes behind it.
        let inline_bytes = if mail.content.len() + tail > PAYLOAD_BYTES_MAX { CHUNK_BYTES } else { mail.content.len() };
        let (inline, behind) = mail.content.split_at(inline_bytes);
        for chunk in behind.chunks(CHUNK_BYTES) {
            self.append_claim(Content::Chunk, id, &[chunk]).await.inspect_err(|_| self.own.abandon(record_id(id)))?;
        }
        let trailer = Trailer {
            envelope_bytes: u32::try_from(mail.envelope.len()).expect("it fits into a batch"),
            accepted_at_ms: mail.accepted_at_ms,
            content_bytes: mail.content.len() as u64,
            chunked: !behind.is_empty(),
            // What came as BODY=BINARYMIME has no lines.
            open_end: !mail.content.ends_with(b"\r\n")
                && EnvelopeView::decode(mail.envelope).is_ok_and(|envelope| envelope.body() != Body::BinaryMime),
            priority: mail.priority,
            tags_bytes: u16::try_from(mail.tags.len()).expect("its length has two octets"),
            claim_bytes: u32::try_from(name.len()).expect("it fits into a batch"),
        };
        let ticket = self.append_claim(Content::Message, id, &[inline, mail.envelope, name.as_bytes(), mail.tags, &trailer.encode()]).await;
        let ticket = ticket.inspect_err(|_| self.own.abandon(record_id(id)))?;
        self.own.durable(ticket).await.map_err(|_| "the spool failed")?;
        let waiting = Waiting {
            item: claim.item.clone(),
            token: claim.token.clone(),
            envelope: mail.envelope.into(),
            accepted_at_ms: mail.accepted_at_ms,
            sent_bytes: trailer.sent_bytes(),
            priority: mail.priority,
            tags: mail.tags.into(),
        };
        self.claiming.waiting.borrow_mut().insert(id, waiting);
        Ok(id)
    }

    async fn append_claim(&self, content: Content, id: QueueId, parts: &[&[u8]]) -> Result<Ticket, &'static str> {
        let bytes = parts.iter().map(|part| part.len()).sum::<usize>();
        let bound = u32::try_from(bytes).expect("bounded by the caller");
        let mut turn = self.own.turn();
        let appended = loop {
            let appended = turn.append(content, record_id(id), bound, |record| {
                parts.iter().for_each(|part| record.put(part));
                (true, ())
            });
            match appended {
                Err(AppendError::Full | AppendError::NotOpen) if !self.is_ending() => turn.room().await,
                other => break other.map(|(kept, ())| kept.expect("the record was kept").ticket),
            }
        };
        match appended {
            Err(AppendError::NoSpace | AppendError::OpenMax) => Err("this node has no room"),
            other => other.map_err(|_| "the spool failed"),
        }
    }

    /// A claim's answer: it is this node's mail from now on, or never was.
    pub(crate) fn decide_claim(self: &Rc<Self>, id: QueueId, is_own: bool) {
        let Some(claim) = self.claiming.waiting.borrow_mut().remove(&id) else { return };
        if !is_own {
            self.metrics.claims_discarded.increment();
            // Not waited for: a disk that is slow holds up no other claim.
            self.ring.clone().spawn(self.clone().drop_claim(id)).detach();
            return;
        }
        let Ok(view) = EnvelopeView::decode(&claim.envelope) else {
            return error!(queue_id = %id, "the envelope of a claim cannot be read; it stays in the spool");
        };
        self.metrics.claimed.increment();
        let entry = Entry {
            id,
            size: claim.sent_bytes,
            accepted_at: claim.accepted_at_ms,
            stated: Stated { priority: claim.priority, tags: &claim.tags, elsewhere: true },
            // A node that ceased to deliver gives it to others.
            offered: if self.config().delivery.deliver { Offered::No } else { Offered::Always },
        };
        let key = self.enqueue_entry(&view, entry);
        // Its owner may have given it the time for one more attempt, and says nothing of that.
        self.queue.borrow_mut().taken_over(key, self.now_ms());
        self.offer_what_is_open(key);
        self.log_mail(format_args!(
            "queue_id={id} event=claimed item={} from=<{}> size={} recipients={}",
            EscapedWord(claim.item.as_bytes()),
            EscapedWord(view.reverse_path().as_str().as_bytes()),
            claim.sent_bytes,
            view.recipient_count(),
        ));
        let mut record = Vec::new();
        let settled = self.queue.borrow_mut().confirm(key, &mut record).unwrap_or(Settled::Nothing);
        self.persist(key, settled);
        self.delivery.kick();
    }

    /// Another's claim leaves the spool. One that stays there is asked about again at the next start, by when the queue may have forgotten
    /// whose it is.
    async fn drop_claim(self: Rc<Self>, id: QueueId) {
        let Some(committer) = self.committer_of(id.shard) else { return };
        // A full disk gets room again.
        let settle =
            || committer.settle(record_id(id)).map_err(|error| if error == AppendError::NoSpace { AppendError::Full } else { error });
        let room = async || {
            committer.room().await;
            true
        };
        match with_room(settle, room).await {
            // It is nobody's to ask for; noted it makes one range of those beside it.
            Ok(_) => self.note_settled(id),
            Err(AppendError::Closed) => {}
            Err(reason) => warn!(queue_id = %id, %reason, "a claim that is another's could not be dropped"),
        }
    }
}

/// Appends as soon as there is room: `room` waits for it; false: that is not worth while any more.
async fn with_room<T>(mut append: impl FnMut() -> Result<T, AppendError>, mut room: impl AsyncFnMut() -> bool) -> Result<T, AppendError> {
    loop {
        match append() {
            Err(AppendError::Full | AppendError::NotOpen) if room().await => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_finds_the_batch_full_is_appended_later() {
        let mut answers = vec![Ok(7), Err(AppendError::NotOpen), Err(AppendError::Full)];
        let mut waits = 0;
        let room = async || {
            waits += 1;
            true
        };
        assert_eq!(futures_lite::future::block_on(with_room(|| answers.pop().unwrap(), room)), Ok(7));
        assert_eq!(waits, 2);
        assert_eq!(
            futures_lite::future::block_on(with_room(|| Err::<(), _>(AppendError::Closed), async || false)),
            Err(AppendError::Closed)
        );
        assert_eq!(futures_lite::future::block_on(with_room(|| Err::<(), _>(AppendError::Full), async || false)), Err(AppendError::Full));
    }
}
