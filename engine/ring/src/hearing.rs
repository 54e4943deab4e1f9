//! How a shard hears its bell: the ring always has a read of its descriptor with the kernel, so that ringing is a completion like others.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    task::{Context, Poll, Waker},
};

use io_uring::{opcode, types};

use crate::{
    bell::Bell,
    ring::{Ring, Shared},
    slot::Tag,
};

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
