//! Driving the ring from inside a glommio executor, and sleeping through glommio.
//!
//! Two tasks. The driver turns the ring while there is work; when there is none it suspends, and glommio may put the thread to sleep in
//! its own ring. The doorbell is what glommio sleeps on: a read of the eventfd that our ring signals and other threads write, through
//! `BufferedFile`, the one public type of glommio's that reads any descriptor.
//!
//! Under load glommio never goes idle, and looks at its own rings (timers, files, wakes from other threads) only then. So the driver
//! lets it in every [`VISIT`], by waiting for the bell to come through glommio. While the shard is busy the bell is always rung ahead,
//! so that glommio does not sleep long with tasks that could run. 0.9 may do that after a preemption, whence [`PREEMPT_TIMER`]. Tasks
//! that keep the thread busy without the ring yield by `Ring::yield_now`, which keeps the driver awake, too.

use std::{
    future::poll_fn,
    io,
    os::fd::{FromRawFd, IntoRawFd},
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use futures_lite::future::yield_now;
use glommio::io::BufferedFile;

use crate::ring::Shared;

/// How often a busy driver lets glommio look at its own rings. A visit costs a few microseconds.
const VISIT: Duration = Duration::from_micros(500);

/// What to build a shard's executor with: `LocalExecutorBuilder::preempt_timer(PREEMPT_TIMER)`. Long on purpose.
///
/// glommio 0.9 goes to sleep with tasks that could run when its preemption timer fires between being set and being looked at, and then
/// nothing may ever wake it. That takes a thread that loses its core for as long as the timer runs: often with 1 ms, now and then with the
/// default of 100 ms, not with this. Tasks that run for long let others in with [`Ring::yield_now`](crate::Ring::yield_now) instead.
pub const PREEMPT_TIMER: Duration = Duration::from_secs(1);

/// Turns without a sleep after which a shard counts as busy: shorter bursts need no bell.
const BUSY_TURNS: u32 = 8;

pub(crate) fn spawn(shared: &Rc<Shared>) -> io::Result<()> {
    let descriptor = shared.bell.second_fd()?;
    // SAFETY: the descriptor is ours, and the file takes it over.
    let bell = unsafe { BufferedFile::from_raw_fd(descriptor.into_raw_fd()) };
    glommio::spawn_local(drive(Rc::downgrade(shared))).detach();
    glommio::spawn_local(doorbell(Rc::downgrade(shared), bell)).detach();
    glommio::spawn_local(night_watch(Rc::downgrade(shared))).detach();
    Ok(())
}

/// How long glommio may sleep with tasks that could run: the least while the shard works, doubling to the most while it does not.
///
/// glommio 0.9 asks whether to preempt before it runs the first task of a round, and goes to sleep if the answer is yes: the completion
/// of a cancelled preemption timer is enough for that. The doorbell's read is then consumed and nothing would ever wake the thread (seen
/// under relay load, some seconds in). A timer of its own bounds that sleep.
const NAP_MIN: Duration = Duration::from_millis(5);
const NAP_MAX: Duration = Duration::from_millis(320);

/// How long the driver has been awake.
struct Awake {
    visited: Instant,
    turns: u32,
    rung_ahead: bool,
}

/// Holds the ring only while it uses it, so that the last of its owners ends it.
async fn drive(weak: Weak<Shared>) {
    let mut awake = Awake { visited: Instant::now(), turns: 0, rung_ahead: false };
    while let Some(shared) = weak.upgrade() {
        if shared.is_shut_down() {
            return;
        }
        // Lost completions or an unusable ring: nothing that was promised could be kept.
        let woken = shared.turn().expect("io_uring_enter");
        if shared.visited.take() {
            awake.visited = shared.now.get();
            awake.rung_ahead = false;
        }
        let idle = woken == 0 && !shared.nudged.take() && !shared.has_work();
        if idle {
            shared.kernel.arm_eventfd(true);
            drop(shared);
            sleep(&weak, |shared| shared.nudged.get() || shared.has_work()).await;
            let Some(shared) = weak.upgrade() else { return };
            shared.kernel.arm_eventfd(false);
            awake.turns = 0;
            continue;
        }
        awake.turns += 1;
        if awake.turns >= BUSY_TURNS && !awake.rung_ahead {
            shared.bell.strike();
            awake.rung_ahead = true;
        }
        let visit = awake.rung_ahead && shared.now.get().saturating_duration_since(awake.visited) >= VISIT;
        drop(shared);
        if visit {
            sleep(&weak, |shared| shared.visited.get() || shared.nudged.get()).await;
        } else {
            yield_now().await; // the woken tasks run first
        }
    }
}

/// Keeps a timer in glommio, see [`NAP_MIN`].
async fn night_watch(weak: Weak<Shared>) {
    let (mut nap, mut seen) = (NAP_MIN, None);
    loop {
        match weak.upgrade() {
            Some(shared) if !shared.is_shut_down() => {
                let turned = shared.now.get();
                nap = if seen.replace(turned) == Some(turned) { (nap * 2).min(NAP_MAX) } else { NAP_MIN };
            }
            _ => return,
        }
        glommio::timer::sleep(nap).await;
    }
}

async fn sleep(weak: &Weak<Shared>, ready: impl Fn(&Shared) -> bool) {
    poll_fn(|cx| match weak.upgrade() {
        Some(shared) => {
            let ready = shared.is_shut_down() || ready(&shared);
            shared.poll_sleep(cx, ready)
        }
        None => std::task::Poll::Ready(()),
    })
    .await;
}

async fn doorbell(weak: Weak<Shared>, bell: BufferedFile) {
    loop {
        let read = bell.read_at(0, 8).await;
        let Some(shared) = weak.upgrade() else { break };
        // Another error than an interruption cannot happen to an eventfd; without the bell the shard would sleep for ever.
        read.expect("an eventfd can be read");
        if shared.is_shut_down() {
            break;
        }
        shared.visited.set(true);
        shared.wake_driver();
    }
    // The descriptor is closed either way; a failed close of an eventfd loses nothing.
    let _ = bell.close().await;
}
