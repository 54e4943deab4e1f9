//! Idle connections, which wait in the pool for an attempt.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll, Waker},
};

use super::wake;

/// A connection's place while it is idle. `T` is what is handed to it: an attempt.
pub struct Parked<T> {
    handed: Cell<Option<T>>,
    /// It is one too many: it is to end.
    retired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Default for Parked<T> {
    fn default() -> Self {
        Parked { handed: Cell::new(None), retired: Cell::new(false), waker: RefCell::new(None) }
    }
}

impl<T> Parked<T> {
    /// What was handed over.
    pub fn poll_handed(&self, cx: &mut Context<'_>) -> Poll<T> {
        match self.handed.take() {
            Some(item) => Poll::Ready(item),
            None => {
                self.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }

    /// Its connection is to end.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// What was handed over to a connection that is about to end; the caller gives it to another one.
    pub fn take(&self) -> Option<T> {
        self.handed.take()
    }

    pub(super) fn hand(&self, item: T) {
        self.handed.set(Some(item));
        self.look();
    }

    /// Its connection is to end.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.look();
    }

    /// Its connection is to look whether it can stay.
    pub(super) fn look(&self) {
        wake(&self.waker);
    }
}
