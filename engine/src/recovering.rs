//! What a log tells while it loads, gathered until it is known which messages are still live, then queued.

use std::{collections::HashMap, rc::Rc};

use ringpost_smtp::envelope::EnvelopeView;
use ringpost_spool::{Event, RecordId};
use tracing::error;

use crate::{claiming::Waiting, committer::Committer, message_record::Trailer, queueing::Stated, record_id::queue_id, shard::Shard};

/// Messages queued before other tasks get their turn.
const QUEUED_PER_TURN: usize = 512;

#[derive(Default)]
struct Found {
    /// The envelope, when the message record was met.
    envelope: Option<Box<[u8]>>,
    accepted_at_ms: u64,
    sent_bytes: u64,
    priority: Option<u8>,
    tags: Box<[u8]>,
    /// Item and token of a claim; empty: it is none.
    claim: Box<[u8]>,
    /// The newest state of its recipients.
    state: Option<Box<[u8]>>,
}

/// Everything found so far. A message costs its envelope and its state, for as long as the log loads.
#[derive(Default)]
pub struct Recovering {
    messages: HashMap<RecordId, Found>,
}

impl Recovering {
    /// Takes in `Found`, `FoundOutcome` and `FoundSettled`.
    pub fn found(&mut self, event: &Event<'_>) {
        match event {
            Event::Found { id, payload, .. } => match Trailer::decode(payload) {
                Ok(trailer) => {
                    let found = self.messages.entry(*id).or_default();
                    found.envelope = Some(payload[trailer.envelope(payload.len())].into());
                    found.accepted_at_ms = trailer.accepted_at_ms;
                    found.sent_bytes = trailer.sent_bytes();
                    found.priority = trailer.priority;
                    found.tags = payload[trailer.tags(payload.len())].into();
                    found.claim = payload[trailer.claim(payload.len())].into();
                }
                Err(reason) => error!(?id, %reason, "a message in the spool cannot be read by this version; it stays there"),
            },
            Event::FoundOutcome { id, payload, .. } => self.messages.entry(*id).or_default().state = Some((*payload).into()),
            // Without all of its content a message cannot be delivered; it stays in the spool, reported.
            Event::FoundSettled { id } | Event::Incomplete { id } => drop(self.messages.remove(id)),
            _ => {}
        }
    }

    /// All that was found, in the order in which it was accepted: who waited longest goes first again. A million take 32 MB and 0.2 s, in
    /// which the shard does nothing else.
    fn in_order(&self) -> Vec<(u64, RecordId)> {
        let mut order: Vec<_> = self.messages.iter().map(|(id, found)| (found.accepted_at_ms, *id)).collect();
        order.sort_unstable();
        order
    }

    /// Queues what is live, once the whole log is known.
    pub async fn enqueue(mut self, shard: &Rc<Shard>, number: u16, committer: &Rc<Committer>) {
        for (at, (_, id)) in self.in_order().into_iter().enumerate() {
            if at % QUEUED_PER_TURN == QUEUED_PER_TURN - 1 {
                shard.delivery.kick();
                shard.ring.yield_now().await;
            }
            let Some(Found { envelope: Some(envelope), accepted_at_ms, sent_bytes, priority, tags, claim, state }) =
                self.messages.remove(&id)
            else {
                continue;
            };
            if committer.log().message(id).is_none() {
                continue;
            }
            if state.is_none() && !claim.is_empty() {
                find_claim(shard, id, &claim, Waiting { envelope, accepted_at_ms, sent_bytes, priority, tags, ..Waiting::default() });
                continue;
            }
            let stated = Stated { priority, tags: &tags, elsewhere: !claim.is_empty() };
            if let Err(reason) = queue_one(shard, id, &envelope, (accepted_at_ms, sent_bytes), stated, state.as_deref()) {
                error!(shard = shard.id, log = number, ?id, reason, "a message in the spool cannot be queued; it stays there");
            }
        }
        shard.delivery.kick();
    }
}

fn find_claim(shard: &Shard, id: RecordId, claim: &[u8], waiting: Waiting) {
    let names = std::str::from_utf8(claim).ok().and_then(|claim| claim.split_once('\n'));
    match (queue_id(id), names) {
        (Some(id), Some((item, token))) => shard.found_claim(id, Waiting { item: item.to_owned(), token: token.to_owned(), ..waiting }),
        _ => error!(?id, "a claim in the spool has no name; it stays there"),
    }
}

fn queue_one(
    shard: &Shard,
    id: RecordId,
    envelope: &[u8],
    (accepted_at, size): (u64, u64),
    stated: Stated<'_>,
    state: Option<&[u8]>,
) -> Result<(), String> {
    let view = EnvelopeView::decode(envelope).map_err(|reason| reason.to_string())?;
    let id = queue_id(id).ok_or("its boot number is beyond this version's")?;
    shard.note_found_report(&view, stated.elsewhere);
    shard.requeue(id, &view, size, accepted_at, stated, state)
}
