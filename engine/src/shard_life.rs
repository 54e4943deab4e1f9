//! A shard lives, drains, or has lost its spool: who waits for which, and what the end waits for.

use std::{
    future::poll_fn,
    sync::atomic::Ordering,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use ringpost_spool::PoisonReason;
use tracing::{error, info};

use crate::shard::{Shard, ShardEvent};

/// So long a drain waits for clients and next hops; what they did not finish by then is not acknowledged, and tried again.
pub(crate) const DRAIN_PATIENCE: Duration = Duration::from_secs(20);

/// And so long more for their tasks to end.
const DRAIN_REST: Duration = Duration::from_secs(3);

/// Destinations that are named when it begins.
const DRAIN_NAMES_MAX: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    Draining,
}

impl Shard {
    /// Waits for a change of the shard's life.
    pub(crate) fn poll_life(&self, cx: &mut Context<'_>, ready: impl Fn(&Shard) -> bool) -> Poll<()> {
        if ready(self) {
            return Poll::Ready(());
        }
        self.life_watch.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// While the shard drains, no wait goes on beyond its patience.
    pub(crate) fn before_drain_ends(&self, at: Instant) -> Instant {
        self.drain_until.get().map_or(at, |until| at.min(until))
    }

    /// Waits until the mail of earlier runs is queued: before, a listing of the queue would be short of it.
    pub(crate) async fn loaded(&self) {
        let key = self.life_of_task().await;
        poll_fn(|_| if self.loading.get() == 0 || self.is_ending() { Poll::Ready(()) } else { Poll::Pending }).await;
        self.forget_waiter(key);
    }

    /// As [`Shard::loaded`], for a command, which does not wait for room on a disk. Err, for the operator: a log cannot be opened for want of it.
    pub(crate) async fn loaded_for_command(&self) -> Result<(), String> {
        let key = self.life_of_task().await;
        let closed = poll_fn(|_| {
            let closed = self.closed_logs.borrow().first().copied();
            if self.loading.get() == 0 || self.is_ending() || closed.is_some() { Poll::Ready(closed) } else { Poll::Pending }
        })
        .await;
        self.forget_waiter(key);
        match closed.filter(|_| !self.is_ending()) {
            None => Ok(()),
            Some(log) => Err(format!(
                "log {log} of the spool cannot be opened: none of its segments is free and none can be made, the engine's own log says why. The mail in it \
                 is not known before. It goes on by itself once there is room; repeat this then"
            )),
        }
    }

    /// The log that takes new mail is one of those.
    pub(crate) fn is_own_log_closed(&self) -> bool {
        self.closed_logs.borrow().contains(&self.id)
    }

    /// Logs that cannot be opened now for want of a segment.
    pub(crate) fn logs_closed(&self) -> usize {
        self.closed_logs.borrow().len()
    }

    /// Logs that are still being loaded.
    pub(crate) fn logs_loading(&self) -> usize {
        self.loading.get()
    }

    pub(crate) async fn drain(&self) -> Result<(), String> {
        self.say_what_drain_waits_for();
        let deadline = self.ring.deadline();
        deadline.set(self.ring.now() + DRAIN_PATIENCE + DRAIN_REST);
        poll_fn(|cx| {
            let quiet = |shard: &Shard| {
                let (is_settled, is_home) = (shard.delivery.is_quiet() && shard.recording.is_quiet(), shard.homes.is_quiet());
                shard.metrics.sessions.get() == 0 && is_settled && is_home && shard.mesh.backlog() == 0
            };
            match deadline.poll_expired(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => self.poll_life(cx, quiet),
            }
        })
        .await;
        self.mail_log.pass_on_all();
        let logs: Vec<_> = std::iter::once(self.own.clone()).chain(self.adopted.borrow().iter().map(|(_, log)| log.clone())).collect();
        for log in &logs {
            log.with_log(|log| log.stop());
        }
        for log in &logs {
            log.stopped().await.map_err(|_| "the spool failed while draining".to_owned())?;
        }
        self.mail_log.pass_on_all();
        Ok(())
    }

    /// Sessions, and attempts with the names of some destinations that they are at: a store or a file system that does not answer has a name from
    /// the beginning, and not when the patience with it is over.
    fn say_what_drain_waits_for(&self) {
        let queue = self.queue.borrow();
        let (mut attempts, mut at) = (0, Vec::new());
        // The attempts of a site are told by each of its domains, too.
        for destination in queue.destinations(self.now_ms()).filter(|destination| destination.site.is_none() && destination.in_flight > 0) {
            attempts += u64::from(destination.in_flight);
            if at.len() < DRAIN_NAMES_MAX {
                at.push(destination.name);
            }
        }
        info!(shard = self.id, sessions = self.metrics.sessions.get(), attempts, ?at, "shard drains");
    }

    /// A write or flush failed somewhere: every log of this shard is closed, every waiting session gets its 451.
    pub(crate) fn fail(&self, reason: String) {
        if self.spool_failed.swap(true, Ordering::SeqCst) && reason == PoisonReason::Elsewhere.to_string() {
            self.wake_life();
            return;
        }
        error!(shard = self.id, reason, "the spool failed");
        self.poison_logs();
        (self.on_event)(ShardEvent::SpoolFailed { shard: self.id, reason });
    }

    /// Looks whether another shard's log failed. Called when the coordinator rings.
    pub(crate) fn look_at_spool(&self) {
        if self.spool_failed.load(Ordering::SeqCst) {
            self.poison_logs();
        }
    }

    pub(crate) fn poison_logs(&self) {
        // Deferred: the event that brought us here may hold a log, and a spawned task begins at once.
        let logs: Vec<_> = std::iter::once(self.own.clone()).chain(self.adopted.borrow().iter().map(|(_, log)| log.clone())).collect();
        let ring = self.ring.clone();
        self.ring
            .spawn(async move {
                ring.yield_now().await;
                for log in logs.iter().filter(|log| !log.is_poisoned()) {
                    log.with_log(|log| log.poison(PoisonReason::Elsewhere));
                }
            })
            .detach();
        self.wake_life();
    }

    /// Has any log of this spool failed?
    pub(crate) fn spool_has_failed(&self) -> bool {
        self.spool_failed.load(Ordering::Relaxed)
    }

    /// Draining, or the spool failed: nothing new is begun.
    pub(crate) fn is_ending(&self) -> bool {
        self.life.get() == Life::Draining || self.spool_has_failed()
    }

    /// Begins the drain.
    pub(crate) fn begin_drain(&self) {
        if self.life.replace(Life::Draining) == Life::Running {
            self.drain_until.set(Some(self.ring.now() + DRAIN_PATIENCE));
        }
        self.wake_life();
    }

    /// Wakes all that wait for the shard's end.
    pub(crate) fn wake_life(&self) {
        if self.is_ending() {
            self.close_to_connections();
        }
        for (_, waiter) in self.life_waiters.borrow().iter() {
            waiter.wake_by_ref();
        }
        if let Some(waiter) = self.life_watch.take() {
            waiter.wake();
        }
        self.delivery.kick();
    }

    /// Registers for [`Shard::wake_life`]; the key is for [`Shard::forget_waiter`].
    pub(crate) fn remember_waiter(&self, waker: Waker) -> usize {
        self.life_waiters.borrow_mut().insert(waker)
    }

    /// Takes a registration back.
    pub(crate) fn forget_waiter(&self, key: usize) {
        self.life_waiters.borrow_mut().try_remove(key);
    }

    /// Registers the calling task for [`Shard::wake_life`].
    pub(crate) async fn life_of_task(&self) -> usize {
        poll_fn(|cx| Poll::Ready(self.remember_waiter(cx.waker().clone()))).await
    }
}
