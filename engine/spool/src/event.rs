//! What the log tells its driver.

use thiserror::Error;

use crate::batch::Ticket;
use crate::record::RecordId;
use crate::segment::SegmentFile;

/// One thing that happened, in order. `Found` events come between the start and [`Event::Loaded`].
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The write side is open: new messages may be appended, while older segments are still being read. What was found until here is not
    /// complete, see [`Event::Loaded`].
    Opened,
    /// A message record was read. May come again for the same id (a copy), and may be followed by [`Event::FoundSettled`].
    Found {
        /// The message.
        id: RecordId,
        /// Chunks that its content is made of; zero when the content is in the payload.
        chunks: u32,
        /// What was given to [`Log::begin`](crate::Log::begin)'s record; valid until the next call.
        payload: &'a [u8],
    },
    /// The newest state of one recipient known so far; the last one told counts. Its message may not have been told yet.
    FoundOutcome {
        /// The message.
        id: RecordId,
        /// The recipient.
        index: u32,
        /// What was given to [`Log::outcome`](crate::Log::outcome).
        payload: &'a [u8],
    },
    /// The message is settled: forget what was told about it. It may come for a message of which nothing was told.
    FoundSettled {
        /// The message.
        id: RecordId,
    },
    /// The whole log is known. Messages told and not settled are live if [`Log::message`](crate::Log::message) knows them still.
    Loaded(RecoveryReport),
    /// A message that was acknowledged once lacks chunks or their bytes differ: it cannot be delivered. It stays in the log, listed.
    Incomplete {
        /// The message.
        id: RecordId,
    },
    /// Bytes that could not be verified.
    Damaged(Damage),
    /// Every record appended with a ticket up to this one is durable: say 250.
    Acknowledged(Ticket),
    /// Nothing is promised any more by this process. Those who wait get 451, no attempt is begun, the process leaves.
    Poisoned(PoisonReason),
    /// The log cannot be opened as it is.
    Refused(RecoveryError),
    /// A segment was prepared. `written`: with zeros, else only reserved, because one was needed at once (count and show it).
    SegmentPrepared {
        /// The file.
        file: SegmentFile,
        /// Pre-written, or unwritten extents.
        written: bool,
    },
    /// A segment holds nothing that counts any more; its new header is on disk.
    SegmentFreed {
        /// The file.
        file: SegmentFile,
    },
    /// What counts in a segment could not all be carried out of it: it stays as it is until that is settled. What was left for the copies is
    /// for others again.
    NotEmptied {
        /// The file.
        file: SegmentFile,
    },
    /// Preparing met a full disk, or found no descriptor or memory, and will be tried again; what is promised goes on.
    PrepareFailed {
        /// The errno, negative.
        result: i64,
        /// The log can't be opened without it: none of its segments is free. It takes no mail, and what is in it is not told before.
        keeps_closed: bool,
    },
    /// Reserve mode began (`true`): messages are refused, outcomes gather up to 100 ms; or it is over.
    Reserve(bool),
    /// All that was appended before [`Log::stop`](crate::Log::stop) is durable and witnessed.
    Stopped,
    /// All files of the log are unlinked, as [`Log::retire`](crate::Log::retire) asked.
    Retired,
}

impl Event<'_> {
    /// What was refused with [`Full`](crate::AppendError::Full), [`NoSpace`](crate::AppendError::NoSpace) or
    /// [`NotOpen`](crate::AppendError::NotOpen) may be taken now. Whoever tries again at each of these, and at no other time, waits for
    /// no room that is there: it comes with one of them, or one of them is still to come.
    pub fn makes_room(&self) -> bool {
        match self {
            Self::Opened
            | Self::Loaded(_)
            | Self::Acknowledged(_)
            | Self::SegmentPrepared { .. }
            | Self::SegmentFreed { .. }
            | Self::NotEmptied { .. }
            | Self::Reserve(_) => true,
            Self::Found { .. }
            | Self::FoundOutcome { .. }
            | Self::FoundSettled { .. }
            | Self::Incomplete { .. }
            | Self::Damaged(_)
            | Self::Poisoned(_)
            | Self::Refused(_)
            | Self::PrepareFailed { .. }
            | Self::Stopped
            | Self::Retired => false,
        }
    }
}

/// A stretch of a segment that did not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: SegmentFile,
    /// Where it starts.
    pub offset: u64,
    /// How long it is, as far as that can be told.
    pub bytes: u64,
    /// What it means.
    pub kind: DamageKind,
}

/// What an unverifiable stretch means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// It was acknowledged once: its records are lost, except those that verify by themselves.
    Quarantined,
    /// Nobody was told 250 for it: the log ends here, the rest of the segment is ignored.
    UnacknowledgedTail,
    /// The header of the segment; its generation was taken from its batches.
    SegmentHeader,
    /// The whole segment: neither its head nor its batches tell which use it is in, or it is too short for any. Nothing of it is read in this run; it is left as it is,
    /// and the next start looks again.
    Unidentified,
    /// The file ends here, and its header says that it was longer: a restore that was cut short. What stood there isn't known in this run; the
    /// segment is left as after a failed read.
    CutShort,
    /// The device refused to read it, also by itself. What stands in it isn't known in this run; the segment is left as it is, neither
    /// sealed nor used again, and the next start looks again.
    ReadFailed,
}

/// Why the log promises nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PoisonReason {
    /// A write was short or failed (bytes written, or a negative errno).
    #[error("a write of {expected} bytes ended with {result}")]
    Write {
        /// What was to be written.
        expected: usize,
        /// What the kernel said.
        result: i64,
    },
    /// A flush failed.
    #[error("a flush ended with {result}")]
    Flush {
        /// What the kernel said.
        result: i64,
    },
    /// Creating, renaming or syncing a directory failed other than for lack of space.
    #[error("a change of the directory ended with {result}")]
    Directory {
        /// What the kernel said.
        result: i64,
    },
    /// Another log of the same spool failed, or the driver saw a reason of its own.
    #[error("the spool failed elsewhere")]
    Elsewhere,
}

/// Why a log cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecoveryError {
    /// A segment was written by a newer version. Nothing was changed.
    #[error("{file} has format {format}, this version reads up to 1")]
    NewerFormat {
        /// The file.
        file: SegmentFile,
        /// The format that it states.
        format: u32,
    },
    /// A segment belongs to another spool or shard. Nothing was changed.
    #[error("{file} belongs to spool {spool:016x}, shard {shard}")]
    Foreign {
        /// The file.
        file: SegmentFile,
        /// The spool it states.
        spool: u64,
        /// The shard it states.
        shard: u16,
    },
    /// A segment states the last number that there is: nothing could be written after it.
    #[error("{file} states that no number is left for another segment")]
    NumbersUsedUp {
        /// The file.
        file: SegmentFile,
    },
    /// The boot number given is not greater than one in the log.
    #[error("boot {boot} is in the log already")]
    BootNotNewer {
        /// The greatest one in the log.
        boot: u64,
    },
    /// fdatasync before reading failed: what the disk has cannot be known.
    #[error("flushing {file} ended with {result}")]
    SyncFailed {
        /// The file.
        file: SegmentFile,
        /// What the kernel said.
        result: i64,
    },
    /// A leftover of a preparation could not be removed, or the directory not synced.
    #[error("cleaning the directory ended with {result}")]
    Directory {
        /// What the kernel said.
        result: i64,
    },
}

/// What recovery met, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segment files.
    pub segments: u64,
    /// Segments that hold nothing of the log.
    pub blank_segments: u64,
    /// Batches that verified.
    pub batches: u64,
    /// Records that verified.
    pub records: u64,
    /// Unsettled messages.
    pub messages: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Ends of the log where the unverifiable batch had a valid one behind it.
    pub torn_before_valid: u64,
    /// Batch headers that were right in themselves but of another generation.
    pub stale_generations: u64,
    /// Segment headers that could not be read.
    pub headers_unreadable: u64,
    /// Chunks without a message, dropped.
    pub orphaned_chunks: u64,
    /// Log ends whose last batch no later one witnesses.
    pub tails_without_witness: u64,
    /// Unacknowledged tails that left traces.
    pub tails_dropped: u64,
    /// Stretches quarantined.
    pub quarantined: u64,
    /// Records rescued out of them.
    pub rescued_records: u64,
    /// Seals of earlier lives that were obeyed.
    pub seals: u64,
}
