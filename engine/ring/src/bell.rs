//! The bell: how another thread wakes a shard.
//!
//! The flag tells a shard that is awake without any system call; one that sleeps has a read of the descriptor with the kernel
//! ([`hearing`](crate::hearing)).

use std::{
    fmt, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

/// Wakes a shard from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Bell(Arc<Inner>);

struct Inner {
    rung: AtomicBool,
    eventfd: OwnedFd,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        // SAFETY: a system call without pointers. Blocking on purpose: io_uring answers EAGAIN at once for descriptors that are not.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is fresh and ours.
        Ok(Bell(Arc::new(Inner { rung: AtomicBool::new(false), eventfd: unsafe { OwnedFd::from_raw_fd(raw) } })))
    }

    /// Wakes the shard, even one that sleeps. Rings again before it looked cost nothing, so ring after each batch, once the batch can be
    /// seen by the shard. What is rung after the ring has ended is lost.
    pub fn ring(&self) {
        // The shard clears the flag before it looks at the lanes, so whoever finds it set will be seen.
        if !self.0.rung.swap(true, Ordering::SeqCst) {
            self.strike();
        }
    }

    /// Writes the descriptor: whoever reads it wakes.
    pub(crate) fn strike(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes. It cannot block: the count would have to reach 2^64 - 1 first.
        let written = unsafe { libc::write(self.0.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        debug_assert_eq!(written, 8, "an eventfd takes eight bytes");
    }

    /// Has it rung since the last call?
    pub(crate) fn take(&self) -> bool {
        self.0.rung.load(Ordering::Relaxed) && self.0.rung.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn is_rung(&self) -> bool {
        self.0.rung.load(Ordering::SeqCst)
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.0.eventfd.as_raw_fd()
    }
}

impl Bell {
    /// A waker that rings. It works from every thread, unlike a task's own: glommio's wakers do not reach a shard that sleeps.
    pub(crate) fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        Bell(self).ring();
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("rung", &self.is_rung()).finish()
    }
}
