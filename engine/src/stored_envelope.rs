//! The envelope of one queued message, as the spool has it: for what the queue's memory does not hold (NOTIFY, ORCPT, RET, ENVID, BY,
//! MT-PRIORITY, BODY).

use std::rc::Rc;

use ringpost_queue::{Dispatch, MessageKey, QueueId};
use ringpost_ring::PageSlice;
use ringpost_smtp::{
    envelope::{EnvelopeError, EnvelopeView},
    part_headers::PartHeaders,
};
use ringpost_spool::{Location, RecordId};
use tracing::{debug, error, field::display};

use crate::{
    committer::{Committer, ReadError},
    content::MessageContent,
    message_record::{MessageRecordError, Trailer},
    record_id::record_id,
    shard::Shard,
};

/// Why a message cannot be read from the spool now. The attempt is deferred, whatever it is.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The log does not know the message any more.
    #[error("the spool does not hold the message any more")]
    Gone,
    /// The disk, or a sum that does not match.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The record verifies and is none of ours.
    #[error(transparent)]
    Record(#[from] MessageRecordError),
    /// The shard that owns the message cannot read it.
    #[error("its shard cannot read it: {0}")]
    Elsewhere(Box<str>),
    /// A command took the message out while it was attempted, as the shard that owned it says.
    #[error("the message was taken out by command")]
    TakenOut,
    /// The envelope in it does.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

/// A message record that was read and verified. Holds the memory of the record (content that is not chunked included): not for long.
pub struct MessageRecord {
    bytes: PageSlice,
    trailer: Trailer,
    chunks: u32,
}

impl MessageRecord {
    /// Reads the record of a message: from memory while its batch is there, else from the disk.
    pub async fn read(committer: &Committer, id: RecordId) -> Result<MessageRecord, RecordError> {
        let (location, chunks): (Location, u32) = {
            let log = committer.log();
            let queued = log.message(id).ok_or(RecordError::Gone)?;
            (queued.location, queued.chunks)
        };
        MessageRecord::from_parts(committer.payload(id, location).await?, chunks)
    }

    /// As `read`, if that needs no wait; `None` also when it fails, for `read` to say why.
    pub fn in_memory(committer: &Committer, id: RecordId) -> Option<MessageRecord> {
        let (location, chunks) = {
            let log = committer.log();
            let queued = log.message(id)?;
            (queued.location, queued.chunks)
        };
        MessageRecord::from_parts(committer.payload_in_memory(id, location)?, chunks).ok()
    }

    /// From what crosses to another shard: bytes that were verified, and the number of chunks.
    pub fn from_parts(bytes: PageSlice, chunks: u32) -> Result<MessageRecord, RecordError> {
        let trailer = Trailer::decode(&bytes)?;
        Ok(MessageRecord { bytes, trailer, chunks })
    }

    /// What crosses to another shard.
    pub fn into_parts(self) -> (PageSlice, u32) {
        (self.bytes, self.chunks)
    }

    /// Chunk records that follow the content in this one.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// The content that is in the record itself: the Received field and, unless there are chunks, all that the client sent.
    pub fn content(&self) -> PageSlice {
        self.bytes.slice(self.trailer.content(self.bytes.len()))
    }

    /// The tags, in the form of `tags.rs`.
    pub fn tags(&self) -> PageSlice {
        self.bytes.slice(self.trailer.tags(self.bytes.len()))
    }

    /// The envelope, checked.
    pub fn envelope(&self) -> Result<StoredEnvelope, RecordError> {
        let bytes = self.bytes.slice(self.trailer.envelope(self.bytes.len()));
        EnvelopeView::decode(&bytes)?;
        Ok(StoredEnvelope { bytes })
    }
}

/// The envelope of a queued message. Its recipients stand in the order of their numbers in the queue.
pub struct StoredEnvelope {
    bytes: PageSlice,
}

impl StoredEnvelope {
    /// All that MAIL and RCPT said.
    pub fn view(&self) -> EnvelopeView<'_> {
        EnvelopeView::decode(&self.bytes).expect("it was checked when it was read, and frozen pages do not change")
    }
}

impl Shard {
    /// The envelope of what is attempted.
    pub(crate) async fn stored_envelope(&self, dispatch: &Dispatch, id: QueueId) -> Result<StoredEnvelope, RecordError> {
        if dispatch.is_guest() {
            return self.record_of_guest(dispatch, id).await?.envelope();
        }
        let committer = self.committer_of(id.shard).ok_or(RecordError::Gone)?;
        MessageRecord::read(&committer, record_id(id)).await?.envelope()
    }

    /// What an attempt needs of its message before MAIL and the queue's memory does not hold: an envelope that says more than addresses, and
    /// whether the header of a part is beyond ASCII, which only matters where mail that came with SMTPUTF8 goes to a next hop without it
    /// and nothing else keeps it back.
    pub(crate) async fn read_before_mail(
        self: &Rc<Self>,
        dispatch: &Dispatch,
        takes_smtputf8: bool,
    ) -> Result<(Option<StoredEnvelope>, bool), RecordError> {
        let facts = self.queue.borrow().envelope(dispatch.key()).map(|envelope| {
            let is_open = envelope.smtputf8 && envelope.eight_bit && !envelope.eight_bit_header;
            (envelope.id, envelope.extended, is_open && !takes_smtputf8)
        });
        let Some((id, extended, is_open)) = facts else { return Ok((None, false)) };
        let stored = if extended { Some(self.stored_envelope(dispatch, id).await?) } else { None };
        let has_parts = is_open && self.has_part_headers_beyond_ascii(dispatch, id).await?;
        Ok((stored, has_parts))
    }

    async fn has_part_headers_beyond_ascii(self: &Rc<Self>, dispatch: &Dispatch, id: QueueId) -> Result<bool, RecordError> {
        let content = MessageContent::open(self, dispatch, id).await?;
        let mut headers = PartHeaders::new();
        for index in 0..content.pieces() {
            if headers.piece(&content.piece(index).await?) {
                return Ok(true);
            }
        }
        Ok(headers.finish())
    }

    /// Logs why what is attempted cannot be read; the attempt is deferred. That a command took the message out meanwhile is no error: it comes
    /// to nothing.
    pub(crate) fn tell_unreadable(&self, dispatch: &Dispatch, reason: &RecordError) {
        let key = dispatch.key();
        let queue_id = self.queue.borrow().envelope(key).map(|envelope| display(envelope.id));
        let is_taken_out = match reason {
            RecordError::TakenOut => true,
            RecordError::Gone => !dispatch.is_guest() && self.is_taken_out(key),
            _ => false,
        };
        if is_taken_out {
            debug!(shard = self.id, queue_id, "the message was taken out by command; the attempt ends");
        } else {
            error!(shard = self.id, queue_id, %reason, "the message cannot be read; the attempt is deferred");
        }
    }

    /// Was a message of this shard that is attempted deleted by command? Then its log forgets it before the attempt has ended.
    pub(crate) fn is_taken_out(&self, key: MessageKey) -> bool {
        self.queue.borrow().show(key).is_none_or(|view| view.is_closing())
    }

    /// The message record of a guest: sent along, or read by its owner.
    pub(crate) async fn record_of_guest(&self, dispatch: &Dispatch, id: QueueId) -> Result<MessageRecord, RecordError> {
        let (owner, attached) = {
            let queue = self.queue.borrow();
            let guest = queue.guest(dispatch).ok_or(RecordError::Gone)?;
            (guest.owner(), self.homes.attached(guest))
        };
        let (bytes, chunks) = match attached {
            Some(parts) => parts,
            None => self.fetch(owner, id, 0).await?,
        };
        MessageRecord::from_parts(bytes, chunks)
    }
}
