//! How many connections a core begins at once.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    task::{Poll, Waker},
};

/// Connections that a core has under way at once: more overflow the backlog of a listener, and a lost SYN costs a second.
const CONNECTING_MAX: usize = 128;

/// The same for listeners with a backlog of few connections, where a place is kept until the peer has spoken: some servers ask the
/// kernel to keep 5.
const CONNECTING_GENTLY_MAX: usize = 4;

/// Lets so many in.
#[derive(Debug)]
pub(crate) struct ConnectGate {
    places: usize,
    inside: Cell<usize>,
    queue: RefCell<VecDeque<Waker>>,
}

impl ConnectGate {
    /// [`CONNECTING_MAX`] places, or [`CONNECTING_GENTLY_MAX`].
    pub(crate) fn new(gently: bool) -> ConnectGate {
        let places = if gently { CONNECTING_GENTLY_MAX } else { CONNECTING_MAX };
        ConnectGate { places, inside: Cell::new(0), queue: RefCell::default() }
    }

    /// Waits for a place, which is taken until what this returns is dropped.
    pub(crate) async fn enter(&self) -> Inside<'_> {
        poll_fn(|cx| {
            if self.inside.get() < self.places {
                self.inside.set(self.inside.get() + 1);
                return Poll::Ready(());
            }
            self.queue.borrow_mut().push_back(cx.waker().clone());
            Poll::Pending
        })
        .await;
        Inside(self)
    }
}

/// A place.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a ConnectGate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
        let next = self.0.queue.borrow_mut().pop_front();
        next.into_iter().for_each(Waker::wake);
    }
}
