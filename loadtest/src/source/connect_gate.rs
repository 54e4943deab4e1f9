//! How many connections a core begins at once.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    task::{Poll, Waker},
};

/// Connections that a core has under way at once: more overflow the backlog of a listener, and a lost SYN costs a second.
const CONNECTING_MAX: usize = 128;

/// Lets [`CONNECTING_MAX`] in.
#[derive(Debug, Default)]
pub(crate) struct ConnectGate {
    inside: Cell<usize>,
    queue: RefCell<VecDeque<Waker>>,
}

impl ConnectGate {
    /// Waits for a place, which is taken until what this returns is dropped.
    pub(crate) async fn enter(&self) -> Inside<'_> {
        poll_fn(|cx| {
            if self.inside.get() < CONNECTING_MAX {
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
