//! What the log asks its driver to do, and how the driver tells what became of it.

use crate::batch::Ticket;
use crate::segment::SegmentFile;

/// A piece of memory that is written to disk or read into. The real one is 4 KiB-aligned and pooled.
///
/// Both methods give the same bytes, always the same length.
pub trait BatchBuffer {
    /// The whole memory, read.
    fn bytes(&self) -> &[u8];
    /// The whole memory, written.
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl BatchBuffer for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// What the log needs from where it runs.
pub trait Host {
    /// The memory of batches and reads.
    type Buffer: BatchBuffer;

    /// A buffer of at least `bytes` (a multiple of 4 KiB, at most 1 MiB), content whatever it was.
    ///
    /// `None` when there is none now: the caller of the log sees [`Full`](crate::AppendError::Full) and tries later, work in the
    /// background waits. Reads of recovery, 1 MiB, must be served in the end or the log never opens.
    fn take_buffer(&mut self, bytes: usize) -> Option<Self::Buffer>;

    /// 64 bits that nobody outside can guess: a generation is made of them.
    fn random(&mut self) -> u64;
}

/// Names one operation between [`poll`](crate::Log::poll) and [`completed`](crate::Log::completed).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub u64);

/// One thing to do on the log's directory. Several may be open at once, in any order of completion.
#[derive(Debug)]
pub struct Op<B> {
    /// To be given back with the result.
    pub id: OpId,
    /// What to do.
    pub kind: OpKind<B>,
}

/// What an [`Op`] asks for. Offsets and lengths are multiples of 4 KiB.
#[derive(Debug)]
pub enum OpKind<B> {
    /// Write the first `bytes` of `buffer` at `offset`, linked to fdatasync of that file: the chain is pushed whole or not at all.
    ///
    /// The buffer is the driver's from here on; for `batch` it is the content of the messages that carry this ticket, and may serve
    /// their first attempt. Answer with [`OpResult::WriteSynced`].
    WriteSynced {
        /// The file.
        file: SegmentFile,
        /// Whether the file has its temporary name still.
        temporary: bool,
        /// Where in the file.
        offset: u64,
        /// What to write.
        buffer: B,
        /// How much of it.
        bytes: usize,
        /// The batch, or `None` for a segment's header.
        batch: Option<Ticket>,
    },
    /// Read `bytes` at `offset` into `buffer`, past the page cache (O_DIRECT, or after dropping it). Answer with [`OpResult::Read`].
    Read {
        /// The file.
        file: SegmentFile,
        /// Where in the file.
        offset: u64,
        /// Memory for it, given back with the result; what it holds behind `bytes` stays as it is.
        buffer: B,
        /// How much to read; at most the buffer's length.
        bytes: usize,
    },
    /// fdatasync of the file. Answer with [`OpResult::Done`], as do all that follow.
    Sync {
        /// The file.
        file: SegmentFile,
    },
    /// Create the file under its temporary name, empty, mode 0600.
    Create {
        /// The file.
        file: SegmentFile,
    },
    /// Reserve `bytes` from the start with fallocate: unwritten extents, slower to write into, but correct. File under temporary name.
    Allocate {
        /// The file.
        file: SegmentFile,
        /// Length of the segment.
        bytes: u64,
    },
    /// Write zeros, with direct writes. File under temporary name. A short write is to be completed or failed by the driver.
    Fill {
        /// The file.
        file: SegmentFile,
        /// From here.
        offset: u64,
        /// So many; at most 1 MiB.
        bytes: usize,
    },
    /// Rename from the temporary name to the file's name.
    Publish {
        /// The file.
        file: SegmentFile,
    },
    /// fsync of the log's directory.
    SyncDirectory,
    /// Unlink the file. A file that isn't there is no failure.
    Unlink {
        /// The file.
        file: SegmentFile,
        /// Under its temporary name.
        temporary: bool,
    },
}

/// What became of an [`Op`]: results as io_uring gives them, a count or a negative errno.
#[derive(Debug)]
pub enum OpResult<B> {
    /// Of [`OpKind::WriteSynced`]: both completions. A cancelled flush is `-ECANCELED`.
    WriteSynced {
        /// Bytes written.
        write: i64,
        /// Zero when the flush went well.
        sync: i64,
    },
    /// Of [`OpKind::Read`]: the buffer back, and the bytes read.
    Read {
        /// The memory that came with the operation.
        buffer: B,
        /// Bytes read.
        result: i64,
    },
    /// Of all others: zero or more is well.
    Done {
        /// Zero, or a negative errno.
        result: i64,
    },
}

/// ENOSPC and EDQUOT, ENFILE and EMFILE, ENOMEM, negated: no room, descriptor or memory, which is no failure of the disk.
pub(crate) fn is_shortage(result: i64) -> bool {
    matches!(result, -28 | -122 | -23 | -24 | -12)
}

/// The result of an operation that only succeeds or fails.
pub(crate) fn done<B>(result: &OpResult<B>) -> i64 {
    let OpResult::Done { result } = *result else { panic!("the answer to an operation without data") };
    result
}

/// The first `bytes` of a buffer that a read filled.
pub(crate) fn filled<B: BatchBuffer>(buffer: &B, result: i64) -> &[u8] {
    let bytes = buffer.bytes();
    &bytes[..usize::try_from(result).unwrap_or(0).min(bytes.len())]
}
