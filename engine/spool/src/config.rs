//! What the driver decides about a log.

use std::time::Duration;

use crate::batch::{BATCH_BYTES_MAX, BLOCK_BYTES};
use crate::controls::Controls;
use crate::segment::FIRST_BATCH;

/// Longest time that outcomes wait for a batch to ride on.
pub const RIDE_MAX: Duration = Duration::from_millis(5);
/// The same in reserve mode, where each block counts.
pub const RIDE_IN_RESERVE_MAX: Duration = Duration::from_millis(100);
/// Silence after which a witness block is written.
pub const WITNESS_AFTER: Duration = Duration::from_millis(100);
/// Pause after a preparation that met a full disk, or another shortage.
pub const PREPARE_RETRY: Duration = Duration::from_secs(1);

/// Whether the log takes new messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A shard's own log.
    Own,
    /// The log of a shard that no longer exists: only outcomes and settled records are appended, until it is empty.
    Adopted,
}

/// Settings of one log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// 64 random bits made with the spool; a segment of another spool is refused.
    pub spool: u64,
    /// The shard that made the log; a segment of another shard is refused. An adopted log keeps its number.
    pub shard: u16,
    /// Greater than that of every start before, and synced by the driver before the log is opened.
    pub boot: u64,
    /// Own or adopted.
    pub role: Role,
    /// Length of segments made from now on, a multiple of 4 KiB, at least twice `batch_bytes` plus 8 KiB, at most 1 GiB.
    pub segment_bytes: u32,
    /// Longest batch, a multiple of 4 KiB, at most 1 MiB: bounds a record.
    pub batch_bytes: u32,
    /// Bytes taken at once by recovery and compaction. 1 MiB, or less in tests whose batches are all shorter.
    pub read_bytes: u32,
    /// Free segments kept ready, pre-written; at least 3: two are a reserve for outcomes and compaction.
    pub prepared_segments: u32,
    /// Segment files the log may have at all.
    pub segments_max: u32,
    /// Bytes of chunks whose message isn't committed yet; beyond it a chunk is refused.
    pub open_bytes_max: u64,
    /// Preparing for mail stops while the file system has less than this left, or fewer than `inodes_min` inodes: what is left is for outcomes.
    pub free_bytes_min: u64,
    /// See `free_bytes_min`.
    pub free_inodes_min: u64,
    /// Zeros written ahead, at most.
    pub prepare_bytes_per_s: u64,
    /// Bytes read by compaction, at most. Not heeded in reserve mode.
    pub compact_bytes_per_s: u64,
    /// Mechanisms left out, to see that the tests notice.
    #[cfg(feature = "controls")]
    pub controls: Controls,
}

impl LogConfig {
    /// The defaults for a shard's own log: segments of 64 MiB, batches of 256 KiB.
    pub fn new(spool: u64, shard: u16, boot: u64) -> Self {
        LogConfig {
            spool,
            shard,
            boot,
            role: Role::Own,
            segment_bytes: 64 << 20,
            batch_bytes: 256 << 10,
            read_bytes: BATCH_BYTES_MAX as u32,
            prepared_segments: 4,
            segments_max: 4096,
            open_bytes_max: 256 << 20,
            free_bytes_min: 256 << 20,
            free_inodes_min: 1024,
            prepare_bytes_per_s: 64 << 20,
            compact_bytes_per_s: 64 << 20,
            #[cfg(feature = "controls")]
            controls: Controls::default(),
        }
    }

    /// Panics on settings that contradict each other: the configuration was checked before.
    pub(crate) fn check(&self) {
        let block = BLOCK_BYTES as u32;
        assert!(self.segment_bytes.is_multiple_of(block) && self.segment_bytes <= 1 << 30);
        assert!(self.batch_bytes.is_multiple_of(block) && self.batch_bytes >= block && self.batch_bytes as usize <= BATCH_BYTES_MAX);
        assert!(self.segment_bytes >= 2 * self.batch_bytes + FIRST_BATCH);
        assert!(self.read_bytes.is_multiple_of(block) && self.read_bytes >= self.batch_bytes);
        assert!(self.prepared_segments >= 3 && self.segments_max > self.prepared_segments);
    }

    #[cfg(feature = "controls")]
    pub(crate) fn controls(&self) -> Controls {
        self.controls
    }

    #[cfg(not(feature = "controls"))]
    pub(crate) fn controls(&self) -> Controls {
        Controls::default()
    }
}
