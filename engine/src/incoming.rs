//! A message on its way in: staged while it arrives in pieces, written as chunks when it is large, and at last one record.
//!
//! ```text
//! ends in the bytes at hand -> straight into the open batch          (one copy)
//! arrives in pieces         -> staging, 4 KiB growing to 128 KiB     -> the record
//! larger than that          -> chunk records as staging fills up     -> a record with the rest
//! ```

use ringpost_queue::QueueId;
use ringpost_smtp::{
    content::{ContentSink, SinkError},
    header::{RECEIVED_BYTES_MAX, Trace, write_received},
    line::Unread,
    server::{Action, CommitFailure, ContentStep, Replies, Session},
};
use ringpost_spool::{AppendError, Content, RecordWriter, Ticket};

use crate::{
    committer::{LogHost, Turn},
    message_record::{TRAILER_BYTES, Trailer},
    priority::Origin,
    record_id::record_id,
    shard::{PAYLOAD_BYTES_MAX, Shard},
    tags::TAGS_BYTES_MAX,
};

/// Staging of this size leaves as a chunk. A receive buffer more fits into a batch beside headers.
pub(crate) const CHUNK_BYTES: usize = 128 * 1024;

/// A message whose record is in a batch.
#[derive(Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) id: QueueId,
    /// Durable when this is.
    pub(crate) ticket: Ticket,
    pub(crate) accepted_at_ms: u64,
    /// What was said about its urgency.
    pub(crate) priority: Option<u8>,
}

/// What came of [`Incoming::direct`].
pub(crate) enum Direct {
    /// The content has ended and the session went on to this action. At [`Action::Commit`] the record is in the batch.
    Done { consumed: usize, action: Action },
    /// The message will be refused; its record was rolled back.
    Refused { consumed: usize },
    /// No room in the batch at this moment; nothing was consumed.
    Full,
    /// It has to take the way through staging; nothing was consumed.
    NotPossible,
}

/// One message on its way in, or none.
#[derive(Default)]
pub(crate) struct Incoming {
    id: Option<QueueId>,
    staging: Vec<u8>,
    chunks: u32,
    chunk_bytes: u64,
    failure: Option<CommitFailure>,
    stored: Option<Stored>,
    stored_bytes: u64,
    /// The last line of the stored message has no end.
    open_end: bool,
    /// What was found in the header, which may have left as a chunk.
    priority: Option<u8>,
    /// Which `[[listener]]` it comes in by.
    listener: usize,
    /// Its tags, once its header has been seen; see `tags.rs`.
    tags: Option<Vec<u8>>,
}

struct RecordSink<'r, 'l> {
    record: &'r mut RecordWriter<'l, LogHost>,
}

impl ContentSink for RecordSink<'_, '_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.record.put(bytes);
        Ok(())
    }
}

/// Puts content into staging, within the shard's budget.
pub(crate) struct StagingSink<'i> {
    incoming: &'i mut Incoming,
    shard: &'i Shard,
}

impl ContentSink for StagingSink<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if let Some(failure) = self.incoming.failure {
            return Err(if failure == CommitFailure::NoRoom { SinkError::Full } else { SinkError::Failed });
        }
        let staging = &mut self.incoming.staging;
        if !self.shard.staging.grow(staging, staging.len() + bytes.len()) {
            self.shard.metrics.memory_refused.increment();
            return Err(SinkError::Full);
        }
        staging.extend_from_slice(bytes);
        Ok(())
    }
}

impl Incoming {
    /// Nothing of a message is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.staging.is_empty() && self.chunks == 0 && self.stored.is_none() && self.failure.is_none()
    }

    /// Content bytes of the stored message, Received field included.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// As many as they are at a next hop, see [`Trailer::sent_bytes`].
    pub(crate) fn sent_bytes(&self) -> u64 {
        Trailer { content_bytes: self.stored_bytes, open_end: self.open_end, ..Trailer::default() }.sent_bytes()
    }

    /// Tags of the stored message.
    pub(crate) fn tags(&self) -> &[u8] {
        self.tags.as_deref().unwrap_or_default()
    }

    /// Says which listener's tag a message gets.
    pub(crate) fn by_listener(mut self, listener: usize) -> Self {
        self.listener = listener;
        self
    }

    /// Where content goes that arrives in pieces.
    pub(crate) fn sink<'i>(&'i mut self, shard: &'i Shard) -> StagingSink<'i> {
        StagingSink { incoming: self, shard }
    }

    /// Staging is full: [`Incoming::flush`] it before more is put.
    pub(crate) fn wants_flush(&self) -> bool {
        self.staging.len() >= CHUNK_BYTES && self.failure.is_none()
    }

    /// Copies content that ends within `unread` straight into the open batch.
    pub(crate) fn direct(
        &mut self,
        shard: &Shard,
        turn: &mut Turn<'_>,
        session: &mut Session,
        origin: Origin,
        mut unread: Unread<'_>,
        replies: &mut Vec<u8>,
    ) -> Direct {
        let input = unread.remaining();
        // A bare LF becomes two octets where that is set.
        let bound = RECEIVED_BYTES_MAX + 2 * input.len() + session.envelope().as_bytes().len() + TAGS_BYTES_MAX + TRAILER_BYTES;
        if bound > PAYLOAD_BYTES_MAX {
            return Direct::NotPossible;
        }
        let (id, accepted_at_ms) = (shard.next_id(), shard.now_ms());
        let priority = shard.priorities.borrow().stated(&session.envelope(), origin, input);
        let appended = turn.append(Content::Message, record_id(id), bound as u32, |record| {
            shard.with_received(&session.envelope(), id, |received| record.put(received));
            let step = session.content(&mut unread, &mut RecordSink { record });
            match step {
                ContentStep::Refused => (false, Direct::Refused { consumed: unread.consumed() }),
                ContentStep::More => unreachable!("the caller saw CRLF.CRLF, where content ends at the latest"),
                ContentStep::End => {
                    let action = session.next(&mut unread, &mut Replies::new(replies));
                    let is_commit = action == Action::Commit;
                    if is_commit {
                        let content_bytes = record.payload_bytes() as u64;
                        let tags = self.tags.insert(shard.tags_of(self.listener, input));
                        finish_record(record, session, tags, Trailer { accepted_at_ms, content_bytes, priority, ..Trailer::default() });
                        // By DATA, which ends with a whole line.
                        (self.stored_bytes, self.open_end) = (content_bytes, false);
                    }
                    (is_commit, Direct::Done { consumed: unread.consumed(), action })
                }
            }
        });
        match appended {
            Ok((appended, direct)) => {
                self.stored = appended.map(|appended| Stored { id, ticket: appended.ticket, accepted_at_ms, priority });
                direct
            }
            Err(AppendError::Full | AppendError::NotOpen) => Direct::Full,
            // The way through staging ends in the right refusal.
            Err(_) => Direct::NotPossible,
        }
    }

    /// Writes staging as a chunk. A failure is told with the next `put`, or at the commit.
    pub(crate) async fn flush(&mut self, shard: &Shard, session: &Session, origin: Origin) {
        if self.chunks == 0 {
            self.priority = shard.priorities.borrow().stated(&session.envelope(), origin, &self.staging);
        }
        let id = *self.id.get_or_insert_with(|| shard.next_id());
        self.find_tags(shard);
        let mut turn = shard.own.turn();
        loop {
            let (staging, bound) = (&self.staging, self.staging.len() as u32);
            let appended = turn.append(Content::Chunk, record_id(id), bound, |record| {
                record.put(staging);
                (true, ())
            });
            match appended {
                Ok(_) => {
                    self.chunks += 1;
                    self.chunk_bytes += self.staging.len() as u64;
                    self.staging.clear();
                    return;
                }
                Err(AppendError::Full | AppendError::NotOpen) => turn.room().await,
                Err(AppendError::NoSpace | AppendError::OpenMax) => return self.failure = Some(CommitFailure::NoRoom),
                Err(_) => return self.failure = Some(CommitFailure::NotStored),
            }
        }
    }

    /// Looks for tags in the beginning of the content, which is in staging until the first chunk leaves it.
    fn find_tags(&mut self, shard: &Shard) {
        if self.tags.is_none() {
            self.tags = Some(shard.tags_of(self.listener, &self.staging));
        }
    }

    /// Brings the message's record into a batch, unless [`Incoming::direct`] did.
    pub(crate) async fn store(&mut self, shard: &Shard, session: &Session, origin: Origin) -> Result<Stored, CommitFailure> {
        if let Some(stored) = self.stored {
            return Ok(stored);
        }
        let rest =
            |staging: &[u8]| RECEIVED_BYTES_MAX + staging.len() + session.envelope().as_bytes().len() + TAGS_BYTES_MAX + TRAILER_BYTES;
        if self.failure.is_none() && !self.staging.is_empty() && (self.chunks > 0 || rest(&self.staging) > PAYLOAD_BYTES_MAX) {
            self.flush(shard, session, origin).await;
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let id = *self.id.get_or_insert_with(|| shard.next_id());
        if self.chunks == 0 {
            self.priority = shard.priorities.borrow().stated(&session.envelope(), origin, &self.staging);
        }
        let priority = self.priority;
        self.find_tags(shard);
        let mut turn = shard.own.turn();
        loop {
            let accepted_at_ms = shard.now_ms();
            let (staging, chunks, chunk_bytes, tags) =
                (&self.staging, self.chunks, self.chunk_bytes, self.tags.as_deref().unwrap_or_default());
            let appended = turn.append(Content::Message, record_id(id), rest(staging) as u32, |record| {
                shard.with_received(&session.envelope(), id, |received| record.put(received));
                record.put(staging);
                let content_bytes = record.payload_bytes() as u64 + chunk_bytes;
                let (chunked, open_end) = (chunks > 0, session.ends_openly());
                let trailer = Trailer { accepted_at_ms, content_bytes, chunked, open_end, priority, ..Trailer::default() };
                finish_record(record, session, tags, trailer);
                (true, trailer)
            });
            match appended {
                Ok((Some(appended), trailer)) => {
                    let stored = Stored { id, ticket: appended.ticket, accepted_at_ms, priority };
                    (self.stored, self.stored_bytes, self.open_end) = (Some(stored), trailer.content_bytes, trailer.open_end);
                    return Ok(stored);
                }
                Ok((None, _)) => unreachable!("the record was kept"),
                Err(AppendError::Full | AppendError::NotOpen) => turn.room().await,
                Err(AppendError::NoSpace | AppendError::OpenMax) => return Err(CommitFailure::NoRoom),
                Err(_) => return Err(CommitFailure::NotStored),
            }
        }
    }

    /// The message is answered: what was staged goes, what was written stays.
    pub(crate) fn reset(&mut self, shard: &Shard) {
        if self.stored.is_some() {
            // The chunks belong to a message record, whether or not it was promised.
            self.chunks = 0;
        }
        self.abandon(shard);
    }

    /// Drops what was put; chunks die at once (S23).
    pub(crate) fn abandon(&mut self, shard: &Shard) {
        if self.chunks > 0
            && let Some(id) = self.id
        {
            shard.own.abandon(record_id(id));
        }
        shard.staging.give_back(std::mem::take(&mut self.staging));
        *self = Incoming::default().by_listener(self.listener);
    }
}

/// `trailer` lacks the lengths of the envelope and the tags only.
fn finish_record(record: &mut RecordWriter<'_, LogHost>, session: &Session, tags: &[u8], trailer: Trailer) {
    let envelope = session.envelope();
    record.put(envelope.as_bytes());
    let envelope_bytes = u32::try_from(envelope.as_bytes().len()).expect("it fits into a batch");
    record.put(tags);
    let tags_bytes = u16::try_from(tags.len()).expect("tags are bounded");
    record.put(&Trailer { envelope_bytes, tags_bytes, ..trailer }.encode());
}

/// Calls `put` with the Received field; part of the shard because its text buffer and date are.
impl Shard {
    fn tags_of(&self, listener: usize, content: &[u8]) -> Vec<u8> {
        self.inbound.present().tags.tags_of(listener, content)
    }

    fn with_received(&self, envelope: &ringpost_smtp::envelope::EnvelopeView<'_>, id: QueueId, put: impl FnOnce(&[u8])) {
        let mut date = self.date.borrow_mut();
        date.advance(i64::try_from(self.clock.unix_ms() / 1000).unwrap_or(i64::MAX));
        let mut text = self.received_text.borrow_mut();
        text.clear();
        let mut id_text = [0; QueueId::TEXT_BYTES_MAX];
        let trace = Trace { hostname: &self.hostname, id: id.write_text(&mut id_text), date: &date };
        write_received(envelope, &trace, &mut text);
        put(&text);
    }
}
