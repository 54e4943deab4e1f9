//! One inbound session: drives `smtp::server::Session` over its connection, and brings messages into the spool.
//!
//! Content that ends within the bytes at hand is copied once, into the batch that gathers; what arrives in pieces goes through
//! [`Incoming`]'s staging. No receive buffer outlives the turn in which it was read (S24).

use std::{
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use memchr::memmem;
use ringpost_ring::{Conn, Deadline, Received};
use ringpost_smtp::{
    extension::Hold,
    line::Unread,
    server::{Action, CommitFailure, ContentStep, Line, REPLIES_BYTES_MAX, Replies, Session, Verdict},
};

use crate::{
    admission::Admitted,
    incoming::{Direct, Incoming, Stored},
    policy::{self, Decision},
    priority::Origin,
    queueing::{Leg, Stated},
    shard::Shard,
};

/// Refusals before the session began; whole lines.
pub(crate) const TOO_MANY_SESSIONS: &str = "421 4.7.0 Too many sessions, try again later\r\n";
pub(crate) const TOO_MANY_FROM_ADDRESS: &str = "421 4.7.0 Too many sessions from your address\r\n";
pub(crate) const TOO_FAST: &str = "421 4.7.0 Too many connections from your address, slow down\r\n";
pub(crate) const ENDING: &str = "421 4.3.2 Service shutting down\r\n";

const RELAY_DENIED: Line = Line::new("550 5.7.1 Relaying denied");
const NO_ROUTE: Line = Line::new("550 5.4.4 No route to this domain");
const NO_SUCH_RECIPIENT: Line = Line::new("550 5.1.1 No such recipient here");
const NO_ROOM: Line = Line::new("452 4.3.1 Insufficient system storage");
const LOG_BUSY: Line = Line::new("452 4.3.1 Mail log busy, try again");
const TOO_MANY_RECIPIENTS: Line = Line::new("452 4.5.3 Too many recipients");
const RATE: Line = Line::new("450 4.7.1 Rate limit exceeded, try again later");
const HELD_TOO_LONG: Line = Line::new("501 5.5.4 Time of release beyond the limit");
const SPOOL_FAILED: Line = Line::new("451 4.3.0 Mail store unavailable, try again later");

/// The end of content is looked for in so many last bytes of what was received: behind it stand at most the next commands.
const END_WITHIN: usize = 2048;
/// An envelope leaves room for content in the same record: a thousand recipients of 130 octets each, or a hundred of any length.
const ENVELOPE_BYTES_MAX: usize = 128 * 1024;
/// So much of an envelope's memory, and the step by which it grows, belong to the session; the rest is taken from the shard's staging.
const ENVELOPE_BYTES_FREE: usize = 4 * 1024;
/// A closing session reads on for so long, so that the peer gets to read the last reply before a reset.
const LINGER: Duration = Duration::from_secs(2);
/// And so many bytes.
const LINGER_BYTES: usize = 1 << 20;
/// A peer that does not take the last replies within this is cut.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Bytes received and not consumed.
enum Input {
    None,
    /// Lent by the arena, for this turn only.
    Lent(Received, usize),
    /// A copy, because something has to be waited for.
    Kept(Vec<u8>, usize),
}

impl Input {
    fn bytes(&self) -> &[u8] {
        match self {
            Input::None => &[],
            Input::Lent(bytes, at) => &bytes[*at..],
            Input::Kept(bytes, at) => &bytes[*at..],
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Input::None => debug_assert_eq!(count, 0),
            Input::Lent(_, at) | Input::Kept(_, at) => *at += count,
        }
    }
}

enum Heard {
    Bytes,
    /// The peer will send no more, or is gone.
    End,
    TimedOut,
    ShuttingDown,
}

/// One session with its connection.
pub(crate) struct Inbound {
    shard: Rc<Shard>,
    conn: Conn,
    session: Session,
    admitted: Admitted,
    relaying: bool,
    /// Which `[[listener]]` it came in by, in the order of the config.
    listener: usize,
    deadline: Deadline,
    /// The phase of time that runs, and since when.
    phase: (u32, Instant),
    replies: Vec<u8>,
    input: Input,
    incoming: Incoming,
    /// Of the envelope's memory, taken from staging.
    envelope_charged: u32,
    told_to_stop: bool,
}

impl Inbound {
    pub(crate) fn new(shard: Rc<Shard>, conn: Conn, peer: SocketAddr, relaying: bool, listener: usize, admitted: Admitted) -> Self {
        let present = shard.inbound.present();
        let settings = if relaying { &present.trusted } else { &present.strangers };
        settings.tell_time(i64::try_from(shard.clock.unix_ms() / 1000).unwrap_or(i64::MAX));
        Inbound {
            session: shard.spare_sessions.open(settings, peer),
            deadline: shard.ring.deadline(),
            phase: (u32::MAX, shard.ring.now()),
            replies: shard.ring.take_vec(),
            input: Input::None,
            incoming: Incoming::default().by_listener(listener),
            envelope_charged: 0,
            told_to_stop: false,
            conn,
            admitted,
            relaying,
            listener,
            shard,
        }
    }

    /// Runs the session to its end.
    ///
    /// Not an `async fn`: that would keep the session twice, as an argument and as a variable.
    pub(crate) fn serve(self) -> impl Future<Output = ()> {
        let mut inbound = self;
        async move {
            let life = inbound.shard.life_of_task().await;
            inbound.talk().await;
            inbound.incoming.abandon(&inbound.shard);
            inbound.shard.staging.release(inbound.envelope_charged as usize);
            inbound.shard.forget_waiter(life);
            inbound.shard.spare_sessions.keep(inbound.session);
            inbound.shard.count_sessions(-1);
            if inbound.shard.is_ending() {
                inbound.shard.wake_life();
            }
        }
    }

    /// Takes what the peer sent before our banner, without waiting for it: one turn of the ring brings what is there.
    async fn hear_early(&mut self) {
        for is_asked in [false, true] {
            match poll_fn(|cx| Poll::Ready(self.conn.poll_read(cx))).await {
                Poll::Ready(Ok(Some(early))) => self.input = Input::Lent(early, 0),
                Poll::Pending if !is_asked => {
                    self.shard.ring.yield_now().await;
                    continue;
                }
                // Nothing, or its end: the first read tells.
                _ => {}
            }
            return;
        }
    }

    async fn talk(&mut self) {
        self.hear_early().await;
        self.session.banner(&Unread::new(self.input.bytes()), &mut Replies::new(&mut self.replies));
        let mut then = None;
        loop {
            let action = then.take().unwrap_or_else(|| self.step(|session, input, replies| session.next(input, replies)));
            if self.envelope_charged > 0 {
                self.settle_envelope();
            }
            match action {
                Action::Read => {
                    if !self.send().await || !self.hear().await {
                        return;
                    }
                }
                Action::Send => {
                    if !self.send().await {
                        return;
                    }
                }
                Action::Mail { size } => {
                    let verdict = self.judge_mail(size);
                    self.session.mail(verdict, &mut Replies::new(&mut self.replies));
                }
                Action::Recipient => {
                    let verdict = self.judge_recipient();
                    self.session.recipient(verdict, &mut Replies::new(&mut self.replies));
                }
                Action::Content => {
                    if !self.content(&mut then).await {
                        return;
                    }
                }
                Action::Abort => self.incoming.abandon(&self.shard),
                Action::Commit => self.commit().await,
                Action::Delay(pause) => {
                    if !self.send().await {
                        return;
                    }
                    self.keep_input();
                    self.shard.ring.sleep_until(self.shard.ring.now() + pause).await;
                }
                Action::Close => return self.close().await,
            }
        }
    }

    /// Lets the session work on the input at hand.
    fn step<R>(&mut self, work: impl FnOnce(&mut Session, &mut Unread<'_>, &mut Replies<'_>) -> R) -> R {
        self.open_replies();
        let mut unread = Unread::new(self.input.bytes()).with_more_behind(self.conn.unread_bytes() > 0);
        let result = work(&mut self.session, &mut unread, &mut Replies::new(&mut self.replies));
        let consumed = unread.consumed();
        self.consume(consumed);
        result
    }

    /// Takes a buffer for replies, if there is none.
    fn open_replies(&mut self) {
        if self.replies.capacity() == 0 {
            self.replies = self.shard.ring.take_vec();
        }
    }

    /// Takes bytes off the input; an empty one gives its buffer back.
    fn consume(&mut self, count: usize) {
        self.input.advance(count);
        if self.input.bytes().is_empty()
            && let Input::Kept(kept, _) = std::mem::replace(&mut self.input, Input::None)
        {
            self.shard.ring.put_vec(kept);
        }
    }

    /// Queues the replies as one send; waits only for a peer that does not read. False when it is gone.
    async fn send(&mut self) -> bool {
        if !self.replies.is_empty() {
            // An idle session holds no buffer: the next step takes one.
            if self.conn.send(std::mem::take(&mut self.replies)).is_err() {
                return false;
            }
        }
        if self.conn.unsent_bytes() <= REPLIES_BYTES_MAX {
            return true;
        }
        self.keep_input();
        let limit = self.session.settings().options().idle_timeout;
        self.flush(limit).await
    }

    async fn flush(&mut self, limit: Duration) -> bool {
        self.deadline.set(self.shard.before_drain_ends(self.shard.ring.now() + limit));
        let (conn, deadline) = (&self.conn, &self.deadline);
        poll_fn(|cx| match conn.poll_flush(cx) {
            Poll::Ready(result) => Poll::Ready(result.is_ok()),
            Poll::Pending => deadline.poll_expired(cx).map(|()| false),
        })
        .await
    }

    /// Waits for bytes within the session's limit of time. False when the connection is of no more use.
    async fn hear(&mut self) -> bool {
        debug_assert!(matches!(self.input, Input::None), "the input was used up");
        let timeout = self.session.timeout();
        if self.phase.0 != timeout.phase {
            self.phase = (timeout.phase, self.shard.ring.now());
        }
        self.deadline.set(self.shard.before_drain_ends(self.phase.1 + timeout.after));
        let (conn, deadline, shard, told) = (&self.conn, &self.deadline, &self.shard, self.told_to_stop);
        let (heard, bytes) = poll_fn(|cx| match conn.poll_read(cx) {
            Poll::Ready(Ok(Some(bytes))) => Poll::Ready((Heard::Bytes, Some(bytes))),
            Poll::Ready(_) => Poll::Ready((Heard::End, None)),
            Poll::Pending if shard.is_ending() && !told => Poll::Ready((Heard::ShuttingDown, None)),
            Poll::Pending => deadline.poll_expired(cx).map(|()| (Heard::TimedOut, None)),
        })
        .await;
        match heard {
            Heard::Bytes => self.input = bytes.map_or(Input::None, |bytes| Input::Lent(bytes, 0)),
            // A peer that has closed its side only still reads: some do so behind the dot.
            Heard::End => {
                self.flush(LAST_WORDS).await;
                return false;
            }
            Heard::TimedOut => self.session.timed_out(timeout.kind, &mut Replies::new(&mut self.replies)),
            Heard::ShuttingDown => {
                self.told_to_stop = true;
                self.session.shutdown(&mut Replies::new(&mut self.replies));
            }
        }
        true
    }

    /// Copies what is left of a receive buffer, which goes back to the arena before anything is waited for.
    fn keep_input(&mut self) {
        if let Input::Lent(bytes, at) = &self.input {
            let mut kept = self.shard.ring.take_vec();
            kept.extend_from_slice(&bytes[*at..]);
            self.input = Input::Kept(kept, 0);
        }
    }

    fn judge_mail(&mut self, size: Option<u64>) -> Verdict {
        let shard = &self.shard;
        // A reload may have changed who may relay; a transaction sees one answer.
        self.relaying = policy::may_relay(&shard.config(), self.session.peer().ip());
        if shard.spool_has_failed() {
            return Verdict::Close(SPOOL_FAILED);
        }
        if let Some(Hold::Until(release_s)) = self.session.envelope().hold() {
            // RFC 4865 4.2: what cannot be held for so long is refused at MAIL.
            let most = i64::from(self.session.settings().options().hold_seconds_max);
            if release_s.saturating_sub(i64::try_from(shard.clock.unix_ms() / 1000).unwrap_or(i64::MAX)) > most {
                return Verdict::Refuse(HELD_TOO_LONG);
            }
        }
        let now = shard.ring.now();
        let room = shard.own.available();
        if room.reserve || room.bytes < size.unwrap_or(0) || !shard.queue.borrow().has_room() || !shard.may_accept() {
            shard.metrics.deferred_by_us.increment();
            return Verdict::Refuse(NO_ROOM);
        }
        if shard.waits_for_mail_log() {
            shard.metrics.deferred_by_us.increment();
            return Verdict::Refuse(LOG_BUSY);
        }
        if !self.admitted.message(now) || !shard.shared_limits_allow(self.admitted.site(), self.listener) {
            return Verdict::Refuse(RATE);
        }
        Verdict::Accept
    }

    fn judge_recipient(&mut self) -> Verdict {
        let recipient = self.session.recipient_path();
        match policy::decide(&self.shard.inbound.present().config, self.relaying, recipient) {
            Decision::Accept if self.session.envelope().as_bytes().len() > ENVELOPE_BYTES_MAX => Verdict::Refuse(TOO_MANY_RECIPIENTS),
            Decision::Accept if !self.shard.has_route(Leg { from: self.session.reverse_path(), to: recipient }) => {
                Verdict::Refuse(NO_ROUTE)
            }
            Decision::Accept if !self.has_memory_for_envelope() => {
                self.shard.metrics.memory_refused.increment();
                Verdict::Refuse(NO_ROOM)
            }
            Decision::Accept if !self.admitted.recipient(self.shard.ring.now()) => Verdict::Refuse(RATE),
            Decision::Accept => Verdict::Accept,
            Decision::NoSuchRecipient => Verdict::Refuse(NO_SUCH_RECIPIENT),
            Decision::RelayDenied => Verdict::Refuse(RELAY_DENIED),
        }
    }

    /// Takes what the envelope has come to hold from staging, if there is so much. One that was refused may have grown by a step, not further.
    fn has_memory_for_envelope(&mut self) -> bool {
        let held = self.session.envelope_heap_bytes().saturating_sub(ENVELOPE_BYTES_FREE);
        let more = held.saturating_sub(self.envelope_charged as usize);
        if more > 0 && !self.shard.staging.charge(more) {
            return false;
        }
        self.envelope_charged += u32::try_from(more).expect("an envelope is bounded");
        true
    }

    /// Gives back what the envelope does not hold any more: RSET, EHLO and each end of a message clear it.
    fn settle_envelope(&mut self) {
        let held = self.session.envelope_heap_bytes().saturating_sub(ENVELOPE_BYTES_FREE);
        let less = (self.envelope_charged as usize).saturating_sub(held);
        self.shard.staging.release(less);
        self.envelope_charged -= u32::try_from(less).expect("no more than was taken");
    }

    /// Brings content in until it, or a chunk of it, has ended. False when the connection is of no more use. `then` is set
    /// when the session has already said what comes next.
    async fn content(&mut self, then: &mut Option<Action>) -> bool {
        loop {
            let shard = self.shard.clone();
            if self.incoming.is_empty() && self.session.in_dot_content() && self.ends_within_input() {
                let mut turn = shard.own.turn();
                loop {
                    let origin = self.origin();
                    let unread = Unread::new(self.input.bytes()).with_more_behind(self.conn.unread_bytes() > 0);
                    match self.incoming.direct(&shard, &mut turn, &mut self.session, origin, unread, &mut self.replies) {
                        Direct::Done { consumed, action } => {
                            self.consume(consumed);
                            *then = Some(action);
                            return true;
                        }
                        Direct::Refused { consumed } => {
                            self.consume(consumed);
                            break;
                        }
                        Direct::Full => {
                            self.keep_input();
                            turn.room().await;
                        }
                        Direct::NotPossible => break,
                    }
                }
            }
            let mut incoming = std::mem::take(&mut self.incoming);
            let step = self.step(|session, input, _| session.content(input, &mut incoming.sink(&shard)));
            self.incoming = incoming;
            if self.incoming.wants_flush() {
                self.keep_input();
                self.incoming.flush(&shard, &self.session, self.origin()).await;
            }
            match step {
                ContentStep::End => return true,
                ContentStep::Refused => self.incoming.abandon(&self.shard),
                ContentStep::More => {
                    if !self.send().await || !self.hear().await {
                        return false;
                    }
                    // Timed out: the session says what comes next.
                    if !self.session.in_content() {
                        return true;
                    }
                }
            }
        }
    }

    /// Does CRLF.CRLF stand in what was received? Then this content ends there at the latest.
    fn ends_within_input(&self) -> bool {
        let bytes = self.input.bytes();
        memmem::rfind(&bytes[bytes.len().saturating_sub(END_WITHIN)..], b"\r\n.\r\n").is_some()
    }

    fn origin(&self) -> Origin {
        Origin { listener: self.listener, trusted: self.relaying }
    }

    /// Waits until the message is durable, queues it, and answers.
    async fn commit(&mut self) {
        self.keep_input();
        let stored = self.incoming.store(&self.shard, &self.session, self.origin()).await;
        let result = match stored {
            Ok(Stored { id, ticket, accepted_at_ms, priority }) => match self.shard.own.durable(ticket).await {
                Ok(()) if !self.shard.spool_has_failed() => {
                    self.accepted(id, accepted_at_ms, priority);
                    Ok(id)
                }
                _ => Err(CommitFailure::NotStored),
            },
            Err(failure) => Err(failure),
        };
        self.incoming.reset(&self.shard);
        self.open_replies();
        let mut text = [0; ringpost_queue::QueueId::TEXT_BYTES_MAX];
        let mut replies = Replies::new(&mut self.replies);
        match result {
            Ok(id) => self.session.committed(Ok(id.write_text(&mut text)), &mut replies),
            Err(failure) => {
                self.shard.metrics.deferred_by_us.increment();
                self.session.committed(Err(failure), &mut replies);
            }
        }
    }

    fn accepted(&self, id: ringpost_queue::QueueId, accepted_at_ms: u64, priority: Option<u8>) {
        let envelope = self.session.envelope();
        let bytes = self.incoming.stored_bytes();
        let stated = Stated { priority, tags: self.incoming.tags(), elsewhere: false };
        self.shard.enqueue(id, &envelope, self.incoming.sent_bytes(), accepted_at_ms, stated);
        self.shard.metrics.accepted.increment();
        self.shard.metrics.accepted_bytes.add(bytes);
        self.shard.write_mail_log(|line| {
            line.text("queue_id=").id(id).text(" event=accepted listener=").text(&self.shard.config().listeners[self.listener].name);
            line.text(" client=").address(self.session.peer()).text(" helo=").word(self.session.helo().as_bytes());
            line.text(" from=<").word(envelope.reverse_path().as_str().as_bytes()).text("> size=").number(bytes);
            line.text(" recipients=").number(envelope.recipient_count() as u64);
        });
    }

    /// Says the last words, and lets the peer read them.
    async fn close(&mut self) {
        self.incoming.abandon(&self.shard);
        let unread = !matches!(self.input, Input::None) || self.conn.unread_bytes() > 0;
        self.input = Input::None;
        if !self.replies.is_empty() {
            let replies = std::mem::take(&mut self.replies);
            if self.conn.send(replies).is_err() {
                return;
            }
        }
        if !self.flush(LAST_WORDS).await || !unread {
            return;
        }
        // RFC 1122 4.2.2.13: closing with input unread resets the connection, and the reset may overtake the reply.
        let _ = self.conn.shutdown_write();
        self.deadline.set(self.shard.ring.now() + LINGER);
        let mut left = LINGER_BYTES;
        let (conn, deadline) = (&self.conn, &self.deadline);
        poll_fn(|cx| {
            loop {
                match conn.poll_read(cx) {
                    Poll::Ready(Ok(Some(bytes))) if bytes.len() < left => left -= bytes.len(),
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return deadline.poll_expired(cx),
                }
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;

    fn future_bytes<F: Future>(_: impl Fn(Inbound) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_session_is_small() {
        let bytes = future_bytes(Inbound::serve);
        assert!(bytes <= 976, "{bytes}");
    }
}
