//! The spool's commit: a write linked to the fdatasync that makes it durable.
//!
//! Both entries go to the kernel in one submission or not at all, because links do not cross submissions: a sync that went out later
//! would run while the write is still on its way, and prove nothing (RELIABILITY S3). Neither is ever retried (S8).

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use io_uring::{opcode, squeue, types};

use crate::{
    file::{File, write_entry},
    pages::Pages,
    ring::Ring,
    slot::{Lent, Op, check},
};

/// Why a write is not known to be durable. Whatever it is, nothing may be promised of these bytes, nor of the file from now on.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The kernel wrote less than it was given, and the sync was cancelled.
    #[error("wrote {written} of {expected} bytes")]
    Short {
        /// Bytes that were written.
        written: usize,
        /// Bytes that should have been.
        expected: usize,
    },
    /// The write failed, and the sync was cancelled.
    #[error("write: {0}")]
    Write(#[source] io::Error),
    /// The write went well, the sync did not.
    #[error("fdatasync: {0}")]
    Sync(#[source] io::Error),
    /// The sync was not ordered after the write. It should not happen: only a kernel that is out of memory parts a chain.
    #[error("the sync was not ordered after its write")]
    Torn,
}

/// The future of [`Ring::write_synced`]. Dropped early, the write and the sync run to their end unwatched.
#[must_use = "nothing is durable before this has answered"]
pub struct WriteSynced {
    op: Op,
    expected: usize,
}

impl Ring {
    /// Writes the first `len` bytes of `pages` at `offset` and makes them durable. Queued at once, also before the future is polled.
    ///
    /// `Ok` means that all `len` bytes were written and the fdatasync ordered after them succeeded. With O_DIRECT `len` and `offset`
    /// are multiples of 4 KiB. On any error stop promising: see [`WriteError`].
    ///
    /// # Panics
    /// When `len` is 0 or more than there is in `pages`.
    pub fn write_synced(&self, file: &File, pages: Pages, len: usize, offset: u64) -> WriteSynced {
        assert!(len > 0 && len <= pages.len(), "between one byte and what there is");
        let write = |lent: &mut Lent| write_entry(lent, len, offset);
        let chain = |lent: &mut Lent| {
            let sync = opcode::Fsync::new(lent.fd()).flags(types::FsyncFlags::DATASYNC).build();
            [write(lent).flags(squeue::Flags::IO_LINK), sync]
        };
        let lent = Lent::Pages(pages, file.clone());
        // SAFETY: the slot lends the pages and the file until both have completed.
        let op = unsafe { if cfg!(feature = "mutant-no-fdatasync") { self.0.issue(lent, write) } else { self.0.issue_chain(lent, chain) } };
        WriteSynced { op, expected: len }
    }
}

impl Future for WriteSynced {
    type Output = Result<(), WriteError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = ready!(Pin::new(&mut self.op).poll(cx));
        let expected = self.expected;
        Poll::Ready(match (check(done.results[0]), check(done.results[1])) {
            (Err(write), _) => Err(WriteError::Write(write)),
            (Ok(written), _) if written != expected => Err(WriteError::Short { written, expected }),
            _ if done.torn => Err(WriteError::Torn),
            (Ok(_), Err(sync)) => Err(WriteError::Sync(sync)),
            (Ok(_), Ok(_)) => Ok(()),
        })
    }
}
