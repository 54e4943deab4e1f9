//! The way of requests from the coordinator to one shard.

use std::sync::OnceLock;

use crossbeam::queue::ArrayQueue;
use ringpost_ring::Bell;

use crate::control::{Answer, Command, Request};

/// Requests that may wait for a shard; a further one is refused and the operator told to try again.
const REQUESTS_MAX: usize = 64;

/// Bounded; each push rings the shard's bell once it has one.
pub struct RequestLane {
    queue: ArrayQueue<Request>,
    bell: OnceLock<Bell>,
}

impl Default for RequestLane {
    fn default() -> Self {
        RequestLane { queue: ArrayQueue::new(REQUESTS_MAX), bell: OnceLock::new() }
    }
}

impl RequestLane {
    /// Passes a command on. False when the lane is full: nothing was passed on.
    pub fn send(&self, command: Command, answer: Box<dyn FnOnce(Answer) + Send>) -> bool {
        let sent = self.queue.push(Request { command, answer }).is_ok();
        self.wake();
        sent
    }

    /// Wakes the shard to look at what it shares with others.
    pub fn wake(&self) {
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    /// The shard's side: the next request.
    pub(crate) fn take(&self) -> Option<Request> {
        self.queue.pop()
    }

    /// The shard's side: how it is woken from now on.
    pub(crate) fn attach(&self, bell: Bell) {
        // A lane belongs to one shard for its life; a second bell would be a fault of the wiring.
        assert!(self.bell.set(bell).is_ok(), "a lane is attached once");
    }
}
