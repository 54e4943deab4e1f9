//! The content of one queued message, for an attempt: taken from memory while its batch is there, else read from the spool.

use std::rc::Rc;

use ringpost_ring::PageSlice;
use ringpost_spool::RecordId;

use crate::{
    committer::{Committer, ReadError},
    message_record::{MessageRecordError, Trailer},
};

/// Why content cannot be sent now. The attempt is deferred, whatever it is.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The log does not know the message any more.
    #[error("the spool does not hold the message any more")]
    Gone,
    /// The disk, or a sum that does not match.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The record verifies and is none of ours.
    #[error(transparent)]
    Record(#[from] MessageRecordError),
}

/// The content's pieces, in order. Holds at most the piece at hand.
pub struct MessageContent {
    committer: Rc<Committer>,
    id: RecordId,
    record: PageSlice,
    trailer: Trailer,
    chunks: u32,
}

impl MessageContent {
    /// Reads the message record.
    pub async fn open(committer: Rc<Committer>, id: RecordId) -> Result<MessageContent, ContentError> {
        let queued = committer.log().message(id).ok_or(ContentError::Gone)?;
        let record = committer.payload(id, queued.location).await?;
        let trailer = Trailer::decode(&record)?;
        Ok(MessageContent { committer, id, record, trailer, chunks: queued.chunks })
    }

    /// Pieces in all, at least one.
    pub fn pieces(&self) -> u32 {
        1 + self.chunks
    }

    /// One piece; 0 is the one in the message record, with the Received field.
    pub async fn piece(&self, index: u32) -> Result<PageSlice, ContentError> {
        match index.checked_sub(1) {
            None => Ok(self.record.slice(self.trailer.content(self.record.len()))),
            Some(chunk) => {
                let location = self.committer.log().chunk(self.id, chunk).ok_or(ContentError::Gone)?;
                Ok(self.committer.payload(self.id, location).await?)
            }
        }
    }
}
