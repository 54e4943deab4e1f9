//! The way of requests from the coordinator to one shard: a bounded mailbox whose bell the shard hears.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringpost_lane::{Listener, MailReceiver, MailSender, bell, mailbox};
use ringpost_ring::Ring;

use crate::control::{Answer, Command, Request};

/// Requests that may wait for a shard; a further one is refused and the operator told to try again.
const REQUESTS_MAX: usize = 64;

/// Makes both ends of the way to one shard.
pub fn request_lane() -> (RequestLane, RequestReceiver) {
    let (shard_bell, listener) = bell();
    // Nobody waits for room: a full lane is an answer.
    let (coordinator_bell, _) = bell();
    let (sender, receiver) = mailbox(REQUESTS_MAX, shard_bell, coordinator_bell);
    let end = End::default();
    (RequestLane { sender, end: end.clone() }, RequestReceiver { receiver, listener, end })
}

/// Whether the shard's end is gone. Held while a request is put in, and while the last ones are thrown away: so none is put in behind them, where
/// nobody would take it and whoever asked would wait for ever. For a few instructions each, and by few: requests are an operator's.
#[derive(Clone, Default)]
struct End(Arc<Mutex<bool>>);

impl End {
    fn has_come(&self) -> MutexGuard<'_, bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The coordinator's end.
pub struct RequestLane {
    sender: MailSender<Request>,
    end: End,
}

/// The shard's end. What was not taken when it is dropped is never answered: the closures for the answers go with it.
pub struct RequestReceiver {
    receiver: MailReceiver<Request>,
    listener: Listener,
    end: End,
}

/// A request was not passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestRefused {
    /// So many wait already; try again.
    #[error("a shard has too many requests waiting; try again")]
    Full,
    /// Nobody takes requests any more.
    #[error("a shard has ended")]
    Ended,
}

impl RequestLane {
    /// Passes a command on; `answer` is called on the shard's thread.
    pub fn send(&self, command: Command, answer: Box<dyn FnOnce(Answer) + Send>) -> Result<(), RequestRefused> {
        let has_ended = self.end.has_come();
        if *has_ended {
            return Err(RequestRefused::Ended);
        }
        self.sender.try_send(Request { command, answer }).map_err(|_| RequestRefused::Full)
    }

    /// Nobody takes requests any more: the shard has drained, and others may still do.
    pub fn has_ended(&self) -> bool {
        *self.end.has_come()
    }

    /// Wakes the shard to look at what it shares with others.
    pub fn wake(&self) {
        self.sender.flush();
    }
}

impl RequestReceiver {
    /// The next request, if there is one.
    pub fn take(&mut self) -> Option<Request> {
        self.receiver.pop()
    }

    /// Waits until there may be a request, or the shard was woken.
    pub(crate) async fn rung(&mut self, ring: &Ring) {
        ring.hear(self.listener.wait()).await;
    }
}

impl Drop for RequestReceiver {
    fn drop(&mut self) {
        let mut unanswered = Vec::new();
        {
            let mut has_ended = self.end.has_come();
            *has_ended = true;
            unanswered.extend(std::iter::from_fn(|| self.receiver.pop()));
        }
        // Whatever their closures do, the lane is free.
        drop(unanswered);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    /// A request that was put in while the shard threw its last ones away was kept as long as the process ran, and who had asked waited for the
    /// answer until their patience was over.
    #[test]
    fn no_request_is_left_behind_by_the_end_of_its_shard() {
        for round in 0..4_000 {
            let (lane, receiver) = request_lane();
            let (barrier, asked) = (Arc::new(Barrier::new(2)), Arc::new(()));
            let ends = thread::spawn({
                let barrier = barrier.clone();
                move || {
                    barrier.wait();
                    drop(receiver);
                }
            });
            barrier.wait();
            let ask = || {
                let asked = asked.clone();
                lane.send(Command::Stats, Box::new(move |_| drop(asked)))
            };
            while ask() != Err(RequestRefused::Ended) {}
            ends.join().unwrap();
            assert_eq!(Arc::strong_count(&asked), 1, "round {round}: somebody waits for ever");
        }
    }
}
