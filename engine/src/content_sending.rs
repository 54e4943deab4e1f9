//! How an outbound connection sends content: straight from the batch or the spool, dots doubled by ranges, or as one exact chunk.

use std::{future::poll_fn, task::Poll};

use ringpost_ring::{Conn, Received};
use ringpost_smtp::{
    client::{ContentForm, Disconnect, TransactionId},
    stuffing::{BareLineEnd, Stuffing},
};
use tracing::error;

use crate::{content::MessageContent, outbound::Outbound, stored_envelope::RecordError};

/// Ranges of dot-stuffed content in one gathered send; content that is nothing but dots leaves in more of them.
const RANGES_PER_SEND: usize = 512;

/// Commands of the message behind in one send with the end of the content. With more of them, as for a thousand recipients, the socket may not
/// take the last of them before the content is answered, and an answer to content that has not left is none.
const BEHIND_BYTES_MAX: usize = 2048;

/// What a peer has to take in the time of a block (RFC 5321 4.5.3.2.5). A piece of content is up to thirty of them.
const BLOCK_BYTES: u64 = 16 * 1024;

/// Whether the peer has acknowledged a block of octets since this was last asked, or since the connection was made: one that stopped reading just
/// after is noticed after twice the time.
pub(crate) fn has_taken_block(conn: &Conn, acked: &mut u64) -> bool {
    let now = conn.acked_bytes().unwrap_or(0);
    let has_taken = now.saturating_sub(*acked) >= BLOCK_BYTES;
    if has_taken {
        *acked = now;
    }
    has_taken
}

impl Outbound<'_> {
    /// Sends the content whole, or up to a word of the peer, which comes back: it cannot be the answer to all of it.
    pub(crate) async fn send_content(&mut self, id: TransactionId, form: ContentForm) -> Result<Option<Received>, Disconnect> {
        let key = self.attempt_of(id).dispatch.key();
        let named = self.shard.queue.borrow().envelope(key).map(|envelope| (envelope.id, envelope.size));
        let Some((queue_id, size)) = named else { return Err(self.give_up_reading(id, &RecordError::Gone)) };
        let shard = self.shard;
        let is_taken_out = {
            let queue = shard.queue.borrow();
            queue.is_taken_out(&self.attempt_of(id).dispatch)
        };
        if is_taken_out {
            return Err(self.give_up_reading(id, &RecordError::TakenOut));
        }
        let opened = MessageContent::open(shard, &self.attempt_of(id).dispatch, queue_id).await;
        let content = match opened {
            Ok(content) => content,
            Err(reason) => return Err(self.give_up_reading(id, &reason)),
        };
        let mut behind = Vec::new();
        if let Some(next) = self.take_behind(id) {
            behind = self.shard.ring.take_vec();
            self.begin(next, &mut behind).await;
            if !behind.is_empty() {
                self.shard.metrics.chained.increment();
            }
        }
        self.send_out();
        let unclean = |bare: BareLineEnd| {
            error!(shard = shard.id, %queue_id, %bare, "the content must not be sent; the attempt is deferred");
            Disconnect::Unclean
        };
        let mut stuffing = Stuffing::new();
        let mut left = size;
        for index in 0..content.pieces() {
            let is_last = index + 1 == content.pieces();
            let piece = match content.piece(index).await {
                Ok(piece) => piece,
                Err(reason) => return Err(self.give_up_reading(id, &reason)),
            };
            let mut gather = self.shard.ring.gather();
            match form {
                ContentForm::Dots => match stuffing.piece(&piece) {
                    Ok(ranges) => {
                        for range in ranges {
                            let start = range.as_ptr().addr() - piece.as_ptr().addr();
                            gather.push_pages(piece.slice(start..start + range.len()));
                            if gather.pieces() >= RANGES_PER_SEND {
                                self.conn.send(std::mem::replace(&mut gather, self.shard.ring.gather())).map_err(|_| Disconnect::Lost)?;
                                if let Some(early) = self.flush().await? {
                                    return Ok(Some(early));
                                }
                            }
                        }
                        if is_last {
                            gather.push_static(stuffing.terminator().map_err(unclean)?);
                        }
                    }
                    Err(bare) => gather.push_vec(content.mended_report().ok_or_else(|| unclean(bare))?),
                },
                ContentForm::Chunk => {
                    let bytes = piece.len() as u64;
                    // The peer counts: a byte more or less, and content would be taken for commands.
                    if bytes > left || is_last && bytes != left {
                        error!(shard = self.shard.id, %queue_id, size, "the content has another length than was promised; the attempt is deferred");
                        return Err(Disconnect::Abandoned);
                    }
                    left -= bytes;
                    gather.push_pages(piece);
                }
            }
            if is_last && (1..=BEHIND_BYTES_MAX).contains(&behind.len()) {
                gather.push_vec(std::mem::take(&mut behind));
            }
            self.conn.send(gather).map_err(|_| Disconnect::Lost)?;
            if !is_last && let Some(early) = self.flush().await? {
                return Ok(Some(early));
            }
        }
        self.dot_queued = true;
        if behind.is_empty() {
            return Ok(None);
        }
        let flushed = self.flush().await;
        self.note_dot();
        let said = flushed?;
        self.conn.send(behind).map_err(|_| Disconnect::Lost)?;
        Ok(said)
    }

    fn give_up_reading(&mut self, id: TransactionId, reason: &RecordError) -> Disconnect {
        let shard = self.shard;
        shard.tell_unreadable(&self.attempt_of(id).dispatch, reason);
        Disconnect::Abandoned
    }

    /// Waits until the socket has taken what was queued, or until the peer says something. Each block has its time, and a drain the time that it has.
    async fn flush(&mut self) -> Result<Option<Received>, Disconnect> {
        let mut due = self.shard.ring.now() + self.client.timeout();
        self.deadline.set(self.shard.before_drain_ends(due));
        let (shard, patience) = (self.shard, self.client.timeout());
        let (conn, deadline, life, acked) = (&self.conn, &self.deadline, &mut self.life, &mut self.acked);
        poll_fn(|cx| {
            life.get_or_insert_with(|| shard.remember_waiter(cx.waker().clone()));
            if shard.is_ending() {
                deadline.set(shard.before_drain_ends(due));
            }
            // A peer that has answered may have stopped reading: its word comes first.
            match conn.poll_read(cx) {
                Poll::Ready(Ok(Some(bytes))) => return Poll::Ready(Ok(Some(bytes))),
                Poll::Ready(Ok(None)) => return Poll::Ready(Err(Disconnect::Closed)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Disconnect::Lost)),
                Poll::Pending => {}
            }
            if let Poll::Ready(result) = conn.poll_flush(cx) {
                return Poll::Ready(result.map(|()| None).map_err(|_| Disconnect::Lost));
            }
            while deadline.poll_expired(cx).is_ready() {
                let now = shard.ring.now();
                if now < due {
                    // The drain's time is over and not the host's.
                    return Poll::Ready(Err(Disconnect::Abandoned));
                }
                if !has_taken_block(conn, acked) {
                    return Poll::Ready(Err(Disconnect::TimedOut));
                }
                due = now + patience;
                deadline.set(shard.before_drain_ends(due));
            }
            Poll::Pending
        })
        .await
    }
}
