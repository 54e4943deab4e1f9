//! The content of one queued message, for an attempt: taken from memory while its batch is there, else read from the spool.

use std::rc::Rc;

use ringpost_ring::PageSlice;
use ringpost_spool::RecordId;

use crate::{
    committer::Committer,
    stored_envelope::{MessageRecord, RecordError},
};

/// The content's pieces, in order. Holds at most the piece at hand.
pub struct MessageContent {
    committer: Rc<Committer>,
    id: RecordId,
    record: MessageRecord,
}

impl MessageContent {
    /// Reads the message record.
    pub async fn open(committer: Rc<Committer>, id: RecordId) -> Result<MessageContent, RecordError> {
        let record = MessageRecord::read(&committer, id).await?;
        Ok(MessageContent { committer, id, record })
    }

    /// Pieces in all, at least one.
    pub fn pieces(&self) -> u32 {
        1 + self.record.chunks()
    }

    /// One piece; 0 is the one in the message record, with the Received field.
    pub async fn piece(&self, index: u32) -> Result<PageSlice, RecordError> {
        match index.checked_sub(1) {
            None => Ok(self.record.content()),
            Some(chunk) => {
                let location = self.committer.log().chunk(self.id, chunk).ok_or(RecordError::Gone)?;
                Ok(self.committer.payload(self.id, location).await?)
            }
        }
    }
}
