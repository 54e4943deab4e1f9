//! Driving the ring from inside a glommio executor: glommio schedules, the ring waits.
//!
//! The driver is a task like the others. It turns the ring, lets every task run that can, and when none could it sleeps in the ring
//! itself until something completes: a socket, a write, the nearest deadline, or the bell that other threads ring. To glommio it never
//! stops being busy, so glommio never looks at rings of its own: its timers and files do not work beside this ring, and are not needed.
//!
//! Whether a task can still run is not for glommio to say, so the ring counts the polls of all tasks ([`Ring::spawn`], [`Ring::watch`]):
//! glommio runs tasks in the order in which they were woken, so when none was polled between two polls of the driver, none can run. A task
//! that was spawned in another way may wait until something else completes.

use std::{
    future::Future,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_lite::future::yield_now;
use glommio::Task;
use pin_project_lite::pin_project;

use crate::ring::{Ring, Shared};

/// What to build a shard's executor with: `LocalExecutorBuilder::preempt_timer(PREEMPT_TIMER)`. Long on purpose.
///
/// When this timer fires glommio looks at its own rings, which have nothing, and 0.9 may then go to sleep with tasks that could run.
/// A timer of 50 ms bounds that sleep. Tasks that run for long let others in with [`Ring::yield_now`] instead.
pub const PREEMPT_TIMER: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest that glommio may sleep in spite of the driver.
const NAP: Duration = Duration::from_millis(50);

#[expect(clippy::disallowed_methods, reason = "the driver is the one that watches")]
pub(crate) fn spawn(shared: &Rc<Shared>) {
    glommio::spawn_local(drive(Rc::downgrade(shared))).detach();
    glommio::spawn_local(night_watch(Rc::downgrade(shared))).detach();
}

/// Holds the ring only while it uses it, so that the last of its owners ends it.
async fn drive(weak: Weak<Shared>) {
    let mut polls_seen = None;
    loop {
        match weak.upgrade() {
            Some(shared) if !shared.is_shut_down() => {
                let polls = shared.polls.get();
                let none_ran = polls_seen.replace(polls) == Some(polls);
                // Lost completions or an unusable ring: nothing that was promised could be kept.
                let turned = if none_ran && !shared.has_work() { shared.turn_asleep() } else { shared.turn() };
                turned.expect("io_uring_enter");
            }
            _ => return,
        }
        yield_now().await; // the woken tasks run first
    }
}

/// Keeps a timer in glommio, see [`PREEMPT_TIMER`]. It is looked at only when glommio sleeps.
#[expect(clippy::disallowed_methods, reason = "this timer is for glommio's own sleep")]
async fn night_watch(weak: Weak<Shared>) {
    while weak.upgrade().is_some_and(|shared| !shared.is_shut_down()) {
        glommio::timer::sleep(NAP).await;
    }
}

impl Ring {
    /// Runs a task on this thread, at once up to its first wait: call it while nothing is borrowed.
    #[expect(clippy::disallowed_methods, reason = "the task is watched")]
    pub fn spawn<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> Task<T> {
        glommio::spawn_local(self.watch(task))
    }

    /// Lets the ring know whenever `task` runs. The executor's main future needs this, what [`Ring::spawn`] runs has it.
    pub fn watch<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        Watched { ring: Rc::downgrade(&self.0), task }
    }
}

pin_project! {
    /// Not an `async` block: that would keep the task twice, as what it captured and as what it polls.
    struct Watched<F> {
        ring: Weak<Shared>,
        #[pin]
        task: F,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let Some(shared) = this.ring.upgrade() {
            shared.polls.set(shared.polls.get() + 1);
        }
        this.task.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;

    fn growth<F: Future>(_: F) -> usize {
        size_of::<Watched<F>>() - size_of::<F>()
    }

    #[test]
    fn a_watched_task_is_kept_once() {
        let task = async {
            let kept = [0u8; 1000];
            yield_now().await;
            std::hint::black_box(kept);
        };
        assert!(growth(task) <= 16);
    }
}
