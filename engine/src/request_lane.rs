//! The way of requests from the coordinator to one shard: a bounded mailbox whose bell the shard hears.

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
    (RequestLane { sender }, RequestReceiver { receiver, listener })
}

/// The coordinator's end.
pub struct RequestLane {
    sender: MailSender<Request>,
}

/// The shard's end. What was not taken when it is dropped is never answered: the closures for the answers go with it.
pub struct RequestReceiver {
    receiver: MailReceiver<Request>,
    listener: Listener,
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
        if self.has_ended() {
            return Err(RequestRefused::Ended);
        }
        self.sender.try_send(Request { command, answer }).map_err(|_| RequestRefused::Full)
    }

    /// Nobody takes requests any more: the shard has drained, and others may still do.
    pub fn has_ended(&self) -> bool {
        self.sender.is_closed()
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
        while self.receiver.pop().is_some() {}
    }
}
