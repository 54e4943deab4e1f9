//! Attempts in the line for a connection.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll, Waker},
};

use ringpost_queue::DestinationId;

use super::Seat;

/// An attempt that waits for a connection.
pub struct Waiting<T> {
    pub(super) destination: DestinationId,
    pub(super) item: Cell<Option<T>>,
    pub(super) seat: Cell<Option<Seat<T>>>,
    pub(super) waker: RefCell<Option<Waker>>,
}

impl<T> Waiting<T> {
    pub(super) fn new(destination: DestinationId, item: T) -> Self {
        Waiting { destination, item: Cell::new(Some(item)), seat: Cell::new(None), waker: RefCell::new(None) }
    }

    /// Looks at the attempt while it waits; `None` when it waits no longer.
    pub fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut item = self.item.take()?;
        let seen = look(&mut item);
        self.item.set(Some(item));
        Some(seen)
    }

    /// Ready with a seat and the attempt, or with `None` when a connection that became free has taken the attempt over.
    pub fn poll_seated(&self, cx: &mut Context<'_>) -> Poll<Option<(T, Seat<T>)>> {
        match (self.item.take(), self.seat.take()) {
            (Some(item), Some(seat)) => Poll::Ready(Some((item, seat))),
            (None, _) => Poll::Ready(None),
            (item, None) => {
                self.item.set(item);
                self.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}
