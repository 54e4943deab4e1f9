//! The content of one queued message, for an attempt: taken from memory while its batch is there, else read from the spool.

use std::rc::Rc;

use ringpost_queue::{Dispatch, Guest, QueueId};
use ringpost_ring::PageSlice;
use ringpost_smtp::{report, stuffing::Stuffing};
use ringpost_spool::RecordId;

use crate::{
    committer::Committer,
    record_id::record_id,
    report_origin::ReportOrigin,
    shard::Shard,
    stored_envelope::{MessageRecord, RecordError},
};

/// Where the pieces are read.
enum Source {
    /// In a log of this shard.
    Log(Rc<Committer>, RecordId),
    /// By the shard that owns the message.
    Owner(Rc<Shard>, u16, QueueId),
}

/// The content's pieces, in order. Holds at most the piece at hand.
pub(crate) struct MessageContent {
    source: Source,
    record: MessageRecord,
}

impl MessageContent {
    /// Reads the message record of what is attempted.
    pub(crate) async fn open(shard: &Rc<Shard>, dispatch: &Dispatch, id: QueueId) -> Result<MessageContent, RecordError> {
        let owner = shard.queue.borrow().guest(dispatch).filter(|_| dispatch.is_guest()).map(Guest::owner);
        let source = match owner {
            Some(owner) => Source::Owner(shard.clone(), owner, id),
            None => Source::Log(shard.committer_of(id.shard).ok_or(RecordError::Gone)?, record_id(id)),
        };
        let record = match &source {
            Source::Log(log, id) => MessageRecord::read(log, *id).await?,
            Source::Owner(..) => shard.record_of_guest(dispatch, id).await?,
        };
        Ok(MessageContent { source, record })
    }

    /// Reads the record of a message of this shard, for its report.
    pub(crate) async fn of_log(log: Rc<Committer>, id: RecordId) -> Result<MessageContent, RecordError> {
        let record = MessageRecord::read(&log, id).await?;
        Ok(MessageContent { source: Source::Log(log, id), record })
    }

    /// What leaves by DATA of a report with a bare CR or LF, the final dot included; `None` for other mail. Earlier versions returned the header
    /// of a message as it was; nobody but this node is at fault for that, and the report would wait until it expires.
    pub(crate) fn mended_report(&self) -> Option<Vec<u8>> {
        let envelope = self.record.envelope().ok().filter(|_| self.record.chunks() == 0)?;
        ReportOrigin::of(&envelope.view())?;
        let content = self.record.content();
        let (clean, mut stuffing) = (report::without_strays(&content), Stuffing::new());
        let mut wire = Vec::with_capacity(clean.len() + 64);
        stuffing.piece(&clean).ok()?.for_each(|range| wire.extend_from_slice(range));
        wire.extend_from_slice(stuffing.terminator().ok()?);
        Some(wire)
    }

    /// Pieces in all, at least one.
    pub(crate) fn pieces(&self) -> u32 {
        1 + self.record.chunks()
    }

    /// One piece; 0 is the one in the message record, with the Received field.
    pub(crate) async fn piece(&self, index: u32) -> Result<PageSlice, RecordError> {
        match (index.checked_sub(1), &self.source) {
            (None, _) => Ok(self.record.content()),
            (Some(chunk), Source::Log(log, id)) => read_chunk(log, *id, chunk).await,
            (Some(_), Source::Owner(shard, owner, id)) => Ok(shard.fetch(*owner, *id, index).await?.0),
        }
    }
}

/// Reads one chunk record.
pub(crate) async fn read_chunk(log: &Rc<Committer>, id: RecordId, chunk: u32) -> Result<PageSlice, RecordError> {
    let location = log.log().chunk(id, chunk).ok_or(RecordError::Gone)?;
    Ok(log.payload(id, location).await?)
}
