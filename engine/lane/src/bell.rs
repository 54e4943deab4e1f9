//! A bell: many ringers, one listener that sleeps until it rings.
//!
//! A ring stays until the listener has taken it, so the listener may look at any number of lanes between two waits and misses
//! nothing: *take the ring, look at everything, wait again*. Whoever rings first wakes; the others find the ring set and go on.
#![expect(unsafe_code, reason = "the waker lies in a cell that the state hands from side to side")]

use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use crossbeam::utils::CachePadded;

use crate::sync::{Arc, AtomicUsize, Ordering, UnsafeCell, spin};

/// A ring the listener has not taken yet.
const RUNG: usize = 1;
/// The cell holds a waker. Set and taken back by the listener; cleared by the ringer that set [`RUNG`], once it took the waker.
const WAITING: usize = 2;

/// Who may touch `waker`: the listener while [`WAITING`] is clear; while it is set, the ringer that turned [`RUNG`] on. There is
/// one such ringer, because the listener clears [`RUNG`] only while [`WAITING`] is clear.
struct Shared {
    state: CachePadded<AtomicUsize>,
    waker: UnsafeCell<Option<Waker>>,
}

// SAFETY: `waker` is handed from thread to thread by `state` as written at `Shared`; a Waker is Send and Sync.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A new bell, silent.
pub fn bell() -> (Bell, Listener) {
    let shared = Arc::new(Shared { state: CachePadded::new(AtomicUsize::new(0)), waker: UnsafeCell::new(None) });
    (Bell { shared: shared.clone() }, Listener { shared })
}

/// The ringers' side; clones ring the same bell.
#[derive(Clone)]
pub struct Bell {
    shared: Arc<Shared>,
}

impl Bell {
    /// Rings: a sleeping listener is woken, one that is awake finds the ring at its next wait. What the caller wrote before is
    /// visible to the listener once it took the ring. Callable from every thread.
    #[inline]
    pub fn ring(&self) {
        let before = self.shared.state.fetch_or(RUNG, Ordering::AcqRel);
        if before == WAITING {
            self.wake();
        }
    }

    /// The slow half of `ring`: this thread turned RUNG on while WAITING was set.
    #[cold]
    fn wake(&self) {
        // SAFETY: this thread turned RUNG on and saw WAITING in the same operation, so the cell is its own until it clears WAITING.
        let waker = self.shared.waker.with_mut(|cell| unsafe { (*cell).take() });
        self.shared.state.fetch_and(!WAITING, Ordering::Release);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

/// The listener's side; there is one.
pub struct Listener {
    shared: Arc<Shared>,
}

impl Listener {
    /// Takes the ring if there is one, else has the task woken at the next.
    ///
    /// Ready means: look at everything that rings this bell, all of it, and only then poll again. Several rings may count as one.
    pub fn poll_ring(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.shared.state.load(Ordering::Acquire) {
            0 => self.register(None, context),
            WAITING => match self.shared.state.compare_exchange(WAITING, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    // SAFETY: WAITING was cleared with RUNG clear, so no ringer has the cell nor gets it.
                    let waker = self.shared.waker.with_mut(|cell| unsafe { (*cell).take() });
                    self.register(waker, context)
                }
                Err(_) => self.poll_rung(context),
            },
            _ => self.poll_rung(context),
        }
    }

    /// Waits for a ring; see [`Listener::poll_ring`].
    pub async fn wait(&mut self) {
        poll_fn(|context| self.poll_ring(context)).await;
    }

    /// RUNG is set; only this side clears it.
    fn poll_rung(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.shared.state.load(Ordering::Acquire) & WAITING != 0 {
            // A ringer is between its two steps, with a waker of ours. The ring is taken at the next poll.
            context.waker().wake_by_ref();
            spin();
            return Poll::Pending;
        }
        self.shared.state.fetch_and(!RUNG, Ordering::AcqRel);
        Poll::Ready(())
    }

    /// `waker` is the one that was registered last, kept if it wakes the same task.
    fn register(&mut self, waker: Option<Waker>, context: &mut Context<'_>) -> Poll<()> {
        let waker = waker.filter(|waker| waker.will_wake(context.waker())).unwrap_or_else(|| context.waker().clone());
        // SAFETY: WAITING is clear, and only this side sets it: the cell is the listener's.
        self.shared.waker.with_mut(|cell| unsafe { *cell = Some(waker) });
        match self.shared.state.compare_exchange(0, WAITING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Poll::Pending,
            // Somebody rang meanwhile. The waker stays in the cell, which is still ours: nobody takes it while WAITING is clear.
            Err(_) => self.poll_rung(context),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The waker is dropped by the thread it belongs to, not by the last ringer, unless one is about to use it.
        if self.shared.state.compare_exchange(WAITING, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            // SAFETY: WAITING was cleared with RUNG clear, so no ringer has the cell nor gets it.
            self.shared.waker.with_mut(|cell| unsafe { *cell = None });
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}
