//! Queue ids as users see them, record ids as the spool keeps them: one number twice.

use ringpost_queue::QueueId;
use ringpost_spool::RecordId;

/// The spool's name of a message.
pub fn record_id(id: QueueId) -> RecordId {
    RecordId { boot: u64::from(id.boot), shard: id.shard, sequence: id.sequence }
}

/// The user's name of a message; `None` for a boot number beyond 32 bits, which this program never gives out.
pub fn queue_id(id: RecordId) -> Option<QueueId> {
    Some(QueueId { boot: u32::try_from(id.boot).ok()?, shard: id.shard, sequence: id.sequence })
}
