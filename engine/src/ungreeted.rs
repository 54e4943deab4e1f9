//! Attempts whose host has not greeted yet: that can take minutes, and what commands make of them meanwhile is not to wait for it.
//!
//! A command calls those that it may be about, see [`Shard::goes_on`]; of mail of another shard its owner has this one do so. Nobody looks otherwise, but
//! at the end of life that the message itself has.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    rc::Rc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use ringpost_lane::Refusal;
use ringpost_queue::{Dispatch, MessageKey};
use slab::Slab;

use crate::{mesh::ShardRequest, shard::Shard};

/// Those of a shard: as many as connections that are being made at most.
#[derive(Default)]
pub(crate) struct UngreetedBook {
    attempts: RefCell<Slab<Entry>>,
    /// Homes that are to be told of a command as soon as there is room in their lane.
    untold: RefCell<BTreeSet<u16>>,
}

struct Entry {
    /// Of this shard; `None`: of another one.
    message: Option<MessageKey>,
    waker: Option<Waker>,
    is_called: bool,
}

/// One of them, until this is dropped.
pub(crate) struct Ungreeted {
    book: Rc<UngreetedBook>,
    place: usize,
}

impl UngreetedBook {
    pub(crate) fn enter(self: &Rc<Self>, dispatch: &Dispatch) -> Ungreeted {
        let message = (!dispatch.is_guest()).then(|| dispatch.key());
        let place = self.attempts.borrow_mut().insert(Entry { message, waker: None, is_called: false });
        Ungreeted { book: self.clone(), place }
    }

    /// Has those look whether they go on whose message, `None` for one of another shard, is meant.
    pub(crate) fn call(&self, is_meant: impl Fn(Option<MessageKey>) -> bool) {
        for (_, entry) in self.attempts.borrow_mut().iter_mut().filter(|(_, entry)| is_meant(entry.message)) {
            entry.is_called = true;
            if let Some(waker) = &entry.waker {
                waker.wake_by_ref();
            }
        }
    }
}

impl Ungreeted {
    /// Was it called since it was asked last? If not, the task is woken when it is.
    pub(crate) fn poll_called(&self, cx: &mut Context<'_>) -> bool {
        let entry = &mut self.book.attempts.borrow_mut()[self.place];
        if entry.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            entry.waker = Some(cx.waker().clone());
        }
        std::mem::take(&mut entry.is_called)
    }
}

impl Drop for Ungreeted {
    fn drop(&mut self) {
        self.book.attempts.borrow_mut().remove(self.place);
    }
}

impl Shard {
    /// When an attempt that nobody calls looks by itself whether it goes on: at the end of its message's life, and at `due` at the latest.
    pub(crate) fn looks_at(&self, dispatch: &Dispatch, due: Instant) -> Instant {
        let now = self.now_ms();
        let end = self.queue.borrow().own_end(dispatch).filter(|&end| end > now);
        // In whole milliseconds it may be now, and is not over yet.
        end.map_or(due, |end| self.clock.instant_of(end).max(self.ring.now() + Duration::from_millis(1)).min(due))
    }

    /// As [`Shard::looks_at`], of what waits for a connection: at the end of its life by its route as well.
    pub(crate) fn ends_waiting(&self, dispatch: &Dispatch, due: Instant) -> Instant {
        let looks_at = self.looks_at(dispatch, due);
        let end = self.queue.borrow().end_at(dispatch);
        end.map_or(looks_at, |end| self.clock.instant_of(end).max(self.ring.now() + Duration::from_millis(1)).min(looks_at))
    }

    /// Is the life over of an attempt that has begun nothing?
    pub(crate) fn is_over(&self, dispatch: &Dispatch) -> bool {
        self.queue.borrow().is_over(dispatch, self.now_ms())
    }

    /// As [`Shard::goes_on`], of an attempt that waits for a connection.
    pub(crate) fn may_begin(&self, dispatch: &mut Dispatch) -> bool {
        !self.is_over(dispatch) && self.goes_on(dispatch, None)
    }

    /// Commands were for mail of this shard that these homes attempt: there, too, those look whose host has not greeted.
    pub(crate) fn call_homes(self: &Rc<Self>, homes: impl IntoIterator<Item = u16>) {
        for home in homes {
            // One that waits for room comes behind what is said now.
            if self.ungreeted.untold.borrow_mut().insert(home) {
                let shard = self.clone();
                self.ring.spawn(async move { shard.call_home(home).await }).detach();
            }
        }
    }

    async fn call_home(&self, home: u16) {
        let permit = loop {
            match self.mesh.reserve(home) {
                Ok(permit) => break Some(permit),
                Err(Refusal::Closed) => break None,
                Err(Refusal::LaneFull | Refusal::WindowFull) => self.mesh.room().await,
            }
        };
        self.ungreeted.untold.borrow_mut().remove(&home);
        if let Some(permit) = permit {
            self.mesh.send(permit, ShardRequest::Commands);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use ringpost_queue::{
        DestinationLimits, NewMessage, NewRecipient, Notify, Queue, QueueId, QueueSettings, RetryPolicy, Route, Routes, Via, Work,
    };

    use super::*;

    fn dispatches() -> Vec<Dispatch> {
        let via = Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] };
        let limits = DestinationLimits { window_initial: 4, ..DestinationLimits::default() };
        let route = Route { pattern: "*".into(), via, retry: RetryPolicy::default(), limits };
        let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, 1);
        for sequence in 1..=2 {
            let message = NewMessage { id: QueueId { boot: 1, shard: 0, sequence }, accepted_at: 1, ..NewMessage::default() };
            let recipient = NewRecipient { address: b"b@y.test", destination: queue.route(b"y.test"), notify: Notify::UNSAID };
            queue.enqueue(&message, [recipient].into_iter(), 1);
        }
        let mut attempt = || match queue.poll(1, &mut Vec::new()) {
            Some(Work::Attempt(dispatch)) => dispatch,
            other => panic!("{other:?}"),
        };
        vec![attempt(), attempt()]
    }

    #[test]
    fn a_command_calls_those_that_it_is_about_and_each_once() {
        let (book, dispatches, mut cx) = (Rc::new(UngreetedBook::default()), dispatches(), Context::from_waker(Waker::noop()));
        let [first, second] = [&dispatches[0], &dispatches[1]].map(|dispatch| book.enter(dispatch));
        assert!(!first.poll_called(&mut cx) && !second.poll_called(&mut cx));
        book.call(|message| message == Some(dispatches[1].key()));
        assert_eq!((first.poll_called(&mut cx), second.poll_called(&mut cx), second.poll_called(&mut cx)), (false, true, false));
        // Called before it waits, it is called all the same.
        drop(first);
        let again = book.enter(&dispatches[0]);
        book.call(|_| true);
        assert!(again.poll_called(&mut cx) && second.poll_called(&mut cx));
        drop((again, second));
        assert!(book.attempts.borrow().is_empty());
    }
}
