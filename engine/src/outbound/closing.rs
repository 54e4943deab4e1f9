//! The end of an outbound connection: what it says of its host, and what becomes of an attempt that it still has.

use std::{future::poll_fn, task::Poll, time::Duration};

use ringpost_queue::asks_for_fewer_connections;
use ringpost_smtp::client::{CloseReason, Disconnect};

use super::{Ended, Outbound};

/// How long the socket may take for a farewell. It takes it at once, unless the peer reads nothing.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

impl Outbound<'_> {
    /// Has the socket take a QUIT whose answer is not waited for, or it would end with the connection before it was sent.
    async fn bid_farewell(&self) {
        self.deadline.set(self.shard.before_drain_ends(self.shard.ring.now() + FAREWELL_MAX));
        poll_fn(|cx| match self.conn.poll_flush(cx) {
            // It went first.
            Poll::Ready(Ok(()) | Err(_)) => Poll::Ready(()),
            Poll::Pending => self.deadline.poll_expired(cx),
        })
        .await;
    }

    pub(super) async fn close(mut self, reason: CloseReason) -> Ended {
        self.send_out();
        if matches!(reason, CloseReason::Quit | CloseReason::Refused(_)) {
            self.bid_farewell().await;
        }
        self.shard.metrics.pool_destroyed.increment();
        if self.idling.has_failed() {
            self.shard.metrics.pool_health_check_fail.increment();
        }
        if let Some(key) = self.life.take() {
            self.shard.forget_waiter(key);
        }
        if self.is_ahead && self.served == 0 && !matches!(reason, CloseReason::Quit) {
            let now = self.shard.ring.now();
            self.shard.pool.lost_ahead(self.destination, self.age(now), now);
        }
        let now = self.shard.now_ms();
        // It was not the host's time that was over.
        if !self.greeted && matches!(reason, CloseReason::Disconnected(Disconnect::Abandoned)) {
            return Ended::Ungreeted { dispatch: self.next.take(), words: self.words.take(), is_crowded: false };
        }
        if !self.greeted {
            let is_crowded = match &reason {
                CloseReason::Refused(reply) | CloseReason::ServiceClosing(reply) => asks_for_fewer_connections(reply.line().as_bytes()),
                CloseReason::AnsweredEarly(_) | CloseReason::Protocol(_) | CloseReason::Disconnected(_) | CloseReason::Quit => false,
            };
            let word = match reason {
                CloseReason::Refused(reply) | CloseReason::ServiceClosing(reply) | CloseReason::AnsweredEarly(reply) => {
                    reply.line().to_owned()
                }
                CloseReason::Protocol(error) => error.to_string(),
                CloseReason::Disconnected(why) => why.to_string(),
                CloseReason::Quit => "closed".to_owned(),
            };
            let reason = format!("{}: {word}", self.relay);
            let mut queue = self.shard.queue.borrow_mut();
            match is_crowded {
                true => queue.host_crowded(self.destination, self.host, &reason, now),
                false => queue.host_failed(self.destination, self.host, &reason, now),
            }
            drop(queue);
            return Ended::Ungreeted { dispatch: self.next.take(), words: self.words.take(), is_crowded };
        }
        self.shard.pool.went_down(self.destination);
        match reason {
            // A message that is too large, or spam, is that before its end, too, and says nothing of how many the destination takes.
            CloseReason::AnsweredEarly(reply) if !asks_for_fewer_connections(reply.line().as_bytes()) => {}
            CloseReason::ServiceClosing(_) | CloseReason::AnsweredEarly(_) => self.shard.queue.borrow_mut().refused(self.destination),
            CloseReason::Protocol(_) | CloseReason::Disconnected(Disconnect::Closed | Disconnect::Lost | Disconnect::TimedOut)
                if self.broke_off =>
            {
                let word = match reason {
                    CloseReason::Protocol(error) => error.to_string(),
                    CloseReason::Disconnected(why) => why.to_string(),
                    _ => String::new(),
                };
                self.shard.queue.borrow_mut().host_faltered(self.destination, self.host, &format!("{}: {word}", self.relay), now);
            }
            _ => {}
        }
        match (self.next.take(), self.words.take()) {
            (Some(dispatch), Some(words)) => self.shard.settle_declined(dispatch, words, self.tried.unwrap_or_default()),
            (Some(dispatch), None) => self.shard.attempt_abandoned(dispatch),
            (None, _) => {}
        }
        self.declined.take().map_or(Ended::Served, Ended::Declined)
    }
}
