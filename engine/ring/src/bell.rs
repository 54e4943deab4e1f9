//! The bell: how another thread wakes a shard.
//!
//! The ring always has a read of the bell's descriptor with the kernel, so that ringing is a completion like others. The flag tells a
//! shard that is awake without any system call.

use std::{
    fmt,
    future::poll_fn,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use io_uring::{opcode, types};

use crate::{
    ring::{Ring, Shared},
    slot::Tag,
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

impl Ring {
    /// What wakes this shard from another thread.
    pub fn bell(&self) -> Bell {
        self.0.bell.clone()
    }

    /// Waits until the bell has been rung since the last call. One task waits in this way; others [`Ring::hear`].
    pub async fn bell_rung(&self) {
        poll_fn(|cx| self.poll_bell_rung(cx)).await;
    }

    /// Waits for a future that another thread wakes: a lane's, a channel's. What it waits for wakes it by the bell, which every task
    /// that hears it then looks at.
    pub async fn hear<F: Future>(&self, future: F) -> F::Output {
        let waker = self.0.bell.waker();
        let mut future = pin!(future);
        let mut seen = self.0.bell_rings();
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return Poll::Ready(output);
                }
                // Rung between the two looks: it may have been for this.
                let rings = self.0.bell_rings();
                if std::mem::replace(&mut seen, rings) == rings {
                    self.0.wait_for_bell(cx);
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// `bell_rung` for those who poll.
    pub fn poll_bell_rung(&self, cx: &mut Context<'_>) -> Poll<()> {
        let rings = self.0.bell_rings();
        if self.0.bell_seen.replace(rings) != rings {
            return Poll::Ready(());
        }
        self.0.wait_for_bell(cx);
        Poll::Pending
    }
}

impl Shared {
    /// Keeps a read of the bell's descriptor with the kernel, so that another thread ends a sleep.
    pub(crate) fn arm_bell(&self) {
        if self.is_shut_down() || self.bell_armed.replace(true) {
            return;
        }
        let entry = opcode::Read::new(types::Fd(self.bell.raw_fd()), self.bell_count.get().cast(), size_of::<u64>() as u32);
        self.armed.set(self.armed.get() + 1);
        // SAFETY: the count is boxed in `Shared`, outlives the kernel's queues, and is written by the kernel alone.
        unsafe { self.kernel.push(entry.build().user_data(Tag::Bell.with(0))) };
    }

    /// How often the bell was heard, a ring that nobody has noticed yet included.
    fn bell_rings(&self) -> u64 {
        self.hear_bell();
        self.bell_heard.get()
    }

    /// Takes the ring if there is one, and wakes all that wait for it. Returns how many.
    pub(crate) fn hear_bell(&self) -> usize {
        if !self.bell.take() {
            return 0;
        }
        self.bell_heard.set(self.bell_heard.get().wrapping_add(1));
        let mut waiters = self.bell_waiters.take();
        let woken = waiters.len();
        waiters.drain(..).for_each(Waker::wake);
        // The vector is kept; nobody has registered while they were woken, as a wake-up runs nothing.
        self.bell_waiters.replace(waiters);
        woken
    }

    fn wait_for_bell(&self, cx: &Context<'_>) {
        let mut waiters = self.bell_waiters.borrow_mut();
        // As many as there are tasks that hear: a few.
        if !waiters.iter().any(|waiter| waiter.will_wake(cx.waker())) {
            waiters.push(cx.waker().clone());
        }
    }

    pub(crate) fn complete_bell(&self, result: i32) {
        // Without its bell a shard would sleep for ever.
        let understood = [size_of::<u64>() as i32, -libc::EINTR, -libc::EAGAIN, -libc::ECANCELED].contains(&result);
        assert!(understood, "an eventfd can be read: {}", io::Error::from_raw_os_error(-result));
        self.bell_armed.set(false);
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("rung", &self.is_rung()).finish()
    }
}
