//! One outbound connection: drives `smtp::client`, sends content straight from the batch, and stays for further mail.

use std::{
    cell::OnceCell,
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use ringpost_queue::{DestinationId, Dispatch, HostIndex, HostsTried, has_enough_of_connection};
use ringpost_ring::{Conn, Deadline, Received};
use ringpost_smtp::{
    client::{
        Action, Client, ClientSettings, Disconnect, MESSAGE_UNREADABLE, Rcpt, Transaction, TransactionId, Verdict, is_about_offer,
        is_about_protocol,
    },
    extension::{Body, Notify},
    reply::Reply,
};

use crate::{
    attempt::{Attempt, RecipientOutcome, Words},
    content_sending::has_taken_block,
    declined::Declined,
    envelope_times::deliver_by_left,
    idling::Idling,
    pool::{GivingWay, Parked, SoonIdle},
    pool_limits::PoolLimits,
    shard::Shard,
    stored_envelope::StoredEnvelope,
    ungreeted::Ungreeted,
    withheld,
};

mod closing;

/// Transactions of one connection at once: one whose content is sent or awaited, and one chained behind it.
const TRANSACTIONS: usize = 2;

/// How long the first answers of a store wait for others to be recorded with, for each recipient: a record has all of them, and one for
/// each answer would be a hundred megabytes for a thousand.
const RECORD_AFTER: Duration = Duration::from_millis(1);

/// How a connection ended.
pub(crate) enum Ended {
    /// It was greeted.
    Served,
    /// It did not even come to a greeting: its first dispatch is given back.
    Ungreeted {
        dispatch: Option<Dispatch>,
        /// What a host before it said of that dispatch.
        words: Option<Words>,
        /// The host has enough connections.
        is_crowded: bool,
    },
    /// It was greeted, and put off a message that another host may take.
    Declined(Declined),
}

/// What ended a wait.
pub(crate) enum Event {
    Bytes(Received),
    Handed(Dispatch),
    /// A command may be for the attempt that waits for the greeting.
    Called,
    Ended(Disconnect),
    /// Idle for as long as was asked.
    TimeOut,
}

/// A connection that is up.
pub(crate) struct Outbound<'s> {
    pub(crate) shard: &'s Rc<Shard>,
    pub(crate) conn: Conn,
    pub(crate) client: Client,
    pub(crate) destination: DestinationId,
    pub(crate) host: HostIndex,
    pub(crate) relay: String,
    /// Of its first attempt: the hosts that it has been to, and what the last of them said.
    tried: Option<HostsTried>,
    words: Option<Words>,
    /// It takes no further message.
    pub(crate) declined: Option<Declined>,
    /// Nor does it when its peer has said that it has had enough.
    is_used_up: bool,
    pub(crate) deadline: Deadline,
    /// Registered with the shard's life, to notice a drain.
    pub(crate) life: Option<usize>,
    pub(crate) out: Vec<u8>,
    attempts: [Option<Attempt>; TRANSACTIONS],
    /// Waits for the connection to be greeted, or for a test to be answered; a command may take it back until then.
    pub(crate) next: Option<Dispatch>,
    /// While that waits for the greeting.
    pub(crate) ungreeted: Option<Ungreeted>,
    since: Instant,
    /// How it is kept, since the pool's change of this number.
    pub(crate) limits: PoolLimits,
    limits_since: u64,
    pub(crate) idling: Idling,
    greeted: bool,
    /// Attempts that the peer answered.
    pub(crate) served: u32,
    /// It was idle, so that its end may have come before the message that met it.
    pub(crate) has_rested: bool,
    /// It was made without an attempt.
    is_ahead: bool,
    /// The end of the connection decided an attempt that the peer had begun to answer, or was its answer to the first one.
    broke_off: bool,
    /// The content's last octets are queued; the client is told when the socket has them: an answer that comes before is not to this content.
    pub(crate) dot_queued: bool,
    /// Octets that the peer had acknowledged when that was last looked at.
    pub(crate) acked: u64,
    /// Another destination waits for its seat: it takes no further message.
    pub(crate) giving_way: OnceCell<GivingWay<Dispatch>>,
    /// While it is being made or tested and has no message.
    pub(crate) soon_idle: Option<SoonIdle<Dispatch>>,
    /// Its place in the pool, used again and again.
    pub(crate) parked: Rc<Parked<Dispatch>>,
}

impl<'s> Outbound<'s> {
    /// Takes over a connection of `destination` to `host`, whose address for people is `relay`.
    pub(crate) fn new(
        shard: &'s Rc<Shard>,
        conn: Conn,
        settings: &ClientSettings,
        destination: DestinationId,
        host: HostIndex,
        relay: String,
        used: Instant,
    ) -> Self {
        Outbound {
            conn,
            client: Client::new(settings),
            destination,
            host,
            relay,
            tried: None,
            words: None,
            declined: None,
            is_used_up: false,
            deadline: shard.ring.deadline(),
            life: None,
            out: shard.ring.take_vec(),
            attempts: [None, None],
            next: None,
            ungreeted: None,
            since: shard.ring.now(),
            limits: shard.pool_limits(destination),
            limits_since: shard.pool.changes(),
            idling: Idling::new(used),
            greeted: false,
            served: 0,
            has_rested: false,
            is_ahead: false,
            broke_off: false,
            dot_queued: false,
            acked: 0,
            giving_way: OnceCell::new(),
            soon_idle: None,
            parked: Rc::default(),
            shard,
        }
    }

    /// Runs until the connection ends. `first` has been to the hosts of `tried`, of which the last one may have put it off in `words`.
    pub(crate) async fn run(mut self, first: Option<Dispatch>, tried: HostsTried, words: Option<Words>) -> Ended {
        self.tried = first.is_some().then_some(tried);
        self.is_ahead = first.is_none();
        (self.next, self.words) = (first, words);
        let mut received: Option<Received> = None;
        let mut consumed = 0;
        // The reply that is waited for, and until when: a peer that dribbles gets no more time than one that is silent.
        let mut awaited: Option<(usize, Instant)> = None;
        loop {
            let mut input = received.as_deref().map_or(&[][..], |bytes| &bytes[consumed..]);
            let before = input.len();
            let action = self.client.next(&mut input, &mut self.out);
            consumed += before - input.len();
            if received.as_ref().is_some_and(|bytes| consumed == bytes.len()) {
                (received, consumed) = (None, 0);
            }
            match action {
                Action::Read => {
                    let (owed, now) = (self.client.replies_owed(), self.shard.ring.now());
                    let due = match awaited {
                        Some((same, due)) if same == owed && self.out.is_empty() => due,
                        _ => now + self.client.timeout(),
                    };
                    awaited = Some((owed, due));
                    self.send_out();
                    let mut until = self.record_decided(now).map_or(due, |at| at.min(due));
                    if let Some(dispatch) = self.next.as_ref().filter(|_| !self.greeted) {
                        until = self.shard.looks_at(dispatch, until);
                    }
                    let event = self.wait(until.saturating_duration_since(now), None).await;
                    let dot_left = self.note_dot();
                    if dot_left {
                        // Until now it was the time of a block; the answer to the whole content has one of its own, also when it has begun.
                        awaited = None;
                    }
                    match event {
                        Event::Bytes(bytes) => (received, consumed) = (Some(bytes), 0),
                        Event::Ended(Disconnect::TimedOut) if dot_left && !self.shard.is_ending() => {}
                        Event::Called => self.heed_commands(),
                        // What was answered so far is recorded, and the life of what waits may be over.
                        Event::Ended(Disconnect::TimedOut) if self.shard.ring.now() < self.shard.before_drain_ends(due) => {
                            self.heed_commands();
                        }
                        // The drain's time is over and not the host's.
                        Event::Ended(Disconnect::TimedOut) if self.shard.ring.now() < due => {
                            self.client.disconnected(Disconnect::Abandoned);
                        }
                        Event::Ended(Disconnect::TimedOut) if self.dot_queued && has_taken_block(&self.conn, &mut self.acked) => {
                            awaited = None
                        }
                        Event::Ended(why) => self.client.disconnected(why),
                        Event::TimeOut | Event::Handed(_) => self.client.disconnected(Disconnect::TimedOut),
                    }
                }
                Action::Ready => {
                    if !self.greeted {
                        (self.greeted, self.ungreeted) = (true, None);
                        if self.next.is_some() {
                            self.shard.metrics.pool_acquire_success.increment();
                        }
                        let (up, now) = (self.shard.pool.came_up(self.destination), self.shard.now_ms());
                        let mut queue = self.shard.queue.borrow_mut();
                        queue.connections_are_up(self.destination, up, now);
                        queue.host_reached(self.destination, self.host, now);
                        drop(queue);
                        self.shard.delivery.kick();
                    }
                    self.idling.passed();
                    self.renew_limits();
                    // What has waited for the connection, in the pool, for a greeting or for a test, may have been stopped by a command.
                    let has_waited = self.next.is_none() || self.served == 0 || self.idling.was_tested();
                    let waited = self.next.take().or_else(|| self.take_waiting());
                    let next = match waited {
                        Some(dispatch) if has_waited && !self.shard.is_ending() => self.unless_stopped(dispatch),
                        waited => waited,
                    };
                    match next.or_else(|| self.take_next()) {
                        Some(dispatch) => self.begin_now(dispatch).await,
                        None => match self.idle().await {
                            Some(bytes) => (received, consumed) = (Some(bytes), 0),
                            None => continue,
                        },
                    }
                }
                Action::SendContent(id, form) => {
                    awaited = None;
                    match self.send_content(id, form).await {
                        Ok(Some(early)) => (received, consumed) = (Some(early), 0),
                        // The peer may have said why before it went: what it said is read next, or its end.
                        Ok(None) | Err(Disconnect::Lost) => {}
                        Err(why) => self.client.disconnected(why),
                    }
                }
                Action::Outcome(outcome) => {
                    // A peer that has enough of a connection that it served, or that rested, says nothing about the message: it goes over
                    // another. What it said goes along, for the destination.
                    let was_kept = self.served > 0 || self.has_rested;
                    let may_be_enough = was_kept && outcome.verdict == Verdict::Deferred;
                    let is_closing = may_be_enough && outcome.reply.code() == 421;
                    let is_enough = is_closing
                        || may_be_enough && !is_about_protocol(&outcome.reply) && has_enough_of_connection(outcome.reply.line().as_bytes());
                    // One that did not say so and just ended, or went silent, has broken off all the same.
                    self.broke_off |= is_closing;
                    self.is_used_up |= is_enough;
                    let verdict = if is_enough { Verdict::Untried } else { outcome.verdict };
                    let attempt = self.attempt_of(outcome.transaction);
                    attempt.decide(outcome.recipient, verdict, outcome.reply, outcome.success_report);
                }
                Action::Done(id) => self.settle(id),
                Action::Close(reason) => return self.close(reason).await,
            }
        }
    }

    pub(crate) fn attempt_of(&mut self, id: TransactionId) -> &mut Attempt {
        self.attempts.iter_mut().flatten().find(|attempt| attempt.transaction == Some(id)).expect("the client speaks of what it was given")
    }

    /// A message to be chained behind the one whose content is about to be sent.
    pub(crate) fn take_behind(&mut self, before: TransactionId) -> Option<Dispatch> {
        self.renew_limits();
        // What waits for a connection goes first, over this one when it has nothing to do.
        let is_awaited = self.shard.pool.view(self.destination).waiting > 0;
        if is_awaited || !self.client.chains() || !self.may_serve() {
            return None;
        }
        let (shard, now) = (self.shard, self.shard.now_ms());
        let dispatch = shard.queue.borrow_mut().poll_behind(&self.attempt_of(before).dispatch, now);
        shard.note_refused();
        let dispatch = dispatch?;
        shard.delivery.attempt_began();
        Some(dispatch)
    }

    /// A message for this connection, which has nothing to do.
    fn take_next(&mut self) -> Option<Dispatch> {
        if !self.may_serve() || !self.client.can_begin() {
            return None;
        }
        let dispatch = self.shard.queue.borrow_mut().poll_next(self.destination, self.shard.now_ms());
        self.shard.note_refused();
        let dispatch = dispatch?;
        self.shard.delivery.attempt_began();
        Some(dispatch)
    }

    /// An attempt of which its host has heard nothing yet comes to nothing where commands have come for all of its recipients, and those it is
    /// about leave it where they are some.
    fn unless_stopped(&mut self, mut dispatch: Dispatch) -> Option<Dispatch> {
        if self.shard.goes_on(&mut dispatch, self.words.as_mut()) {
            return Some(dispatch);
        }
        let tried = self.tried.take().unwrap_or_default();
        match self.words.take() {
            Some(words) => self.shard.settle_declined(dispatch, words, tried),
            None => self.shard.attempt_put_off(dispatch),
        }
        None
    }

    /// What waits for the greeting may have been stopped: then the connection is of no use.
    fn heed_commands(&mut self) {
        if let Some(dispatch) = self.next.take_if(|_| !self.greeted && !self.shard.is_ending()) {
            self.next = self.unless_stopped(dispatch);
            if self.next.is_none() {
                self.client.disconnected(Disconnect::Abandoned);
            }
        }
    }

    /// A message that waits in the pool for a connection.
    fn take_waiting(&mut self) -> Option<Dispatch> {
        loop {
            let waited = (self.may_serve() && self.client.can_begin()).then(|| self.shard.take_waiting(self.destination)).flatten()?;
            if self.shard.is_ending() || !self.shard.is_over(&waited) {
                return Some(waited);
            }
            self.shard.attempt_put_off(waited);
        }
    }

    pub(crate) fn may_serve(&self) -> bool {
        self.shard.may_attempt()
            && (self.shard.shards == 1 || self.shard.queue.borrow().is_home(self.destination))
            && !self.is_beyond()
            && self.declined.is_none()
            && !self.is_used_up
            && self.has_host()
            && self.client.transactions() < self.limits.messages_max
            && self.age(self.shard.ring.now()) < self.limits.max_lifetime
            && !self.gives_way()
    }

    /// Is its host one of the destination's still? DNS or a reload can have taken it away: what it has is finished, and no more begun.
    pub(crate) fn has_host(&self) -> bool {
        is_host(self.shard, self.destination, self.host)
    }

    /// After a reload it is kept as is said now.
    pub(crate) fn renew_limits(&mut self) {
        let changes = self.shard.pool.changes();
        if self.limits_since != changes {
            (self.limits, self.limits_since) = (self.shard.pool_limits(self.destination), changes);
        }
    }

    fn is_beyond(&self) -> bool {
        self.shard.pool.is_beyond(self.destination, |destination| self.shard.queue.borrow().home_connections_max(destination))
    }

    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }

    fn settle(&mut self, id: TransactionId) {
        let place = self.attempts.iter_mut().find(|attempt| attempt.as_ref().is_some_and(|attempt| attempt.transaction == Some(id)));
        let attempt = place.and_then(Option::take).expect("the client speaks of what it was given");
        if self.client.is_ending() {
            // Whoever greets and closes at the first MAIL means it: a usual way to keep a sender out.
            let is_first = self.served == 0 && !self.has_rested;
            let is_of_it = |outcome: &RecipientOutcome| outcome.verdict != Verdict::Untried && !is_about_offer(&outcome.reply);
            let is_answered = attempt.storage.outcomes.iter().any(is_of_it);
            self.broke_off |= is_first || is_answered || attempt.dispatch.has_delivered();
        } else {
            self.served += 1;
            if self.is_ahead && self.served == 1 {
                self.shard.pool.served_ahead(self.destination);
            }
            self.shard.queue.borrow_mut().host_served(self.destination, self.host, self.shard.now_ms());
        }
        if let Some(attempt) = self.decline(attempt) {
            self.conclude(attempt);
        }
    }

    /// A store answers for one recipient after the other (LMTP), and may take its time: what it has said is recorded before the rest is
    /// waited for long. Returns when there is something to be recorded next.
    fn record_decided(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for attempt in self.attempts.iter_mut().flatten() {
            let Attempt { dispatch, storage, record_at, .. } = attempt;
            let is_begun = storage.outcomes.iter().any(|outcome| outcome.verdict == Verdict::Delivered);
            if !is_begun || storage.outcomes.len() >= dispatch.recipients() {
                continue;
            }
            let recipients = u32::try_from(storage.recipients.len()).expect("a message has fewer recipients");
            let later = now + RECORD_AFTER * recipients;
            let mut at = *record_at.get_or_insert(later);
            if now >= at || self.shard.is_ending() {
                *record_at = None;
                // Another host may take what this one does not offer.
                let is_final = |outcome: &mut RecipientOutcome| match outcome.verdict {
                    Verdict::Failed => !is_about_offer(&outcome.reply),
                    verdict => verdict == Verdict::Delivered,
                };
                let decided: Vec<_> = storage.outcomes.extract_if(.., is_final).collect();
                let Err(decided) = self.shard.settle_some(dispatch, decided, &self.relay) else { continue };
                // Its owner has no time now.
                storage.outcomes.extend(decided);
                at = later;
                *record_at = Some(at);
            }
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        next
    }

    async fn begin_now(&mut self, dispatch: Dispatch) {
        let mut out = std::mem::take(&mut self.out);
        self.begin(dispatch, &mut out).await;
        self.out = out;
    }

    /// Gives the client a transaction; what may be sent at once is appended to `out`. An envelope that says more than addresses is
    /// read from the spool first.
    pub(crate) async fn begin(&mut self, dispatch: Dispatch, out: &mut Vec<u8>) {
        if self.client.transactions() > 0 {
            self.shard.metrics.reused.increment();
        }
        self.idling.end(self.shard.ring.now());
        self.soon_idle = None;
        let mut attempt = Attempt::new(dispatch, self.shard.delivery.storage());
        let tried = self.tried.take().unwrap_or_else(|| self.shard.queue.borrow().hosts_to_try(&attempt.dispatch));
        (attempt.tried, attempt.words) = (tried, self.words.take());
        let Some(mut attempt) = self.leave_to_others(attempt) else { return };
        let is_countermanded = self.shard.queue.borrow().is_countermanded(&attempt.dispatch);
        let is_further = attempt.words.is_some() || attempt.tried.are_several() || is_countermanded;
        if is_further && !self.shard.goes_on(&mut attempt.dispatch, attempt.words.as_mut()) {
            if attempt.words.is_some() {
                return self.settle_as_said_before(attempt);
            }
            self.shard.delivery.keep_storage(attempt.storage);
            return self.shard.attempt_put_off(attempt.dispatch);
        }
        let (stored, has_parts_beyond_ascii) = match self.shard.read_before_mail(&attempt.dispatch, self.client.offer().smtputf8).await {
            Ok(read) => read,
            Err(reason) => {
                self.shard.tell_unreadable(&attempt.dispatch, &reason);
                attempt.storage.recipients.extend(self.shard.queue.borrow().recipients(&attempt.dispatch).map(|(number, _)| number));
                attempt.decide_all(Verdict::Deferred, Reply::local(MESSAGE_UNREADABLE));
                return self.shard.settle_attempt(attempt, &self.relay);
            }
        };
        let view = stored.as_ref().map(StoredEnvelope::view);
        let queue = self.shard.queue.borrow();
        let Some(envelope) = queue.envelope(attempt.dispatch.key()) else {
            drop(queue);
            return self.shard.attempt_abandoned(attempt.dispatch);
        };
        let mut transaction = Transaction {
            reverse_path: envelope.reverse_path,
            size: envelope.size,
            eight_bit: envelope.eight_bit,
            eight_bit_header: envelope.eight_bit_header || has_parts_beyond_ascii,
            smtputf8: envelope.smtputf8,
            ..Transaction::default()
        };
        if let Some(view) = &view {
            transaction.binary = view.body() == Body::BinaryMime;
            transaction.ret = view.ret();
            transaction.envelope_id = view.envelope_id();
            transaction.priority = view.priority();
            transaction.deliver_by = deliver_by_left(view, envelope.accepted_at, self.shard.now_ms());
        }
        let recipients = queue.recipients(&attempt.dispatch);
        let withheld = match self.client.offer().smtputf8 {
            true => Vec::new(),
            false => withheld::beyond_ascii(&envelope, transaction.eight_bit_header, recipients.clone(), view.as_ref()),
        };
        withheld::decide(&withheld, &mut attempt.storage);
        let recipients = recipients.filter(|(number, _)| withheld.binary_search(number).is_err());
        attempt.storage.recipients.extend(recipients.clone().map(|(number, _)| number));
        attempt.transaction = Some(match view {
            None => self.client.begin(&transaction, recipients.map(|(_, address)| address), out),
            Some(view) => {
                // Both are in the order of the recipients' numbers.
                let mut said = (0..).zip(view.recipients());
                let rcpts = recipients.map(|(number, path)| {
                    let said = said.find(|(at, _)| *at == number).map(|(_, said)| said);
                    Rcpt { path, notify: said.map_or(Notify::UNSAID, |said| said.notify), original: said.and_then(|said| said.original) }
                });
                self.client.begin(&transaction, rcpts, out)
            }
        });
        drop(queue);
        let place = self.attempts.iter_mut().find(|place| place.is_none()).expect("the client takes no more than there are places");
        *place = Some(attempt);
    }

    pub(crate) fn send_out(&mut self) {
        if !self.out.is_empty() {
            let out = std::mem::replace(&mut self.out, self.shard.ring.take_vec());
            // A failed send shows in the next read.
            let _ = self.conn.send(out);
        }
    }

    /// Waits for bytes, for at most `patience`; with a place in the pool also for an attempt handed over.
    pub(crate) async fn wait(&mut self, patience: Duration, parked: Option<&Parked<Dispatch>>) -> Event {
        let now = self.shard.ring.now();
        self.deadline.set(self.shard.before_drain_ends(now + patience));
        let shard = self.shard.clone();
        let mut draining_since = None;
        let (destination, host, limits_since) = (self.destination, self.host, self.limits_since);
        let (conn, deadline, life, ungreeted) = (&self.conn, &self.deadline, &mut self.life, self.ungreeted.as_ref());
        poll_fn(|cx| {
            if ungreeted.is_some_and(|ungreeted| ungreeted.poll_called(cx)) {
                return Poll::Ready(Event::Called);
            }
            if let Some(Poll::Ready(dispatch)) = parked.map(|parked| parked.poll_handed(cx)) {
                return Poll::Ready(Event::Handed(dispatch));
            }
            match conn.poll_read(cx) {
                Poll::Ready(Ok(Some(bytes))) => return Poll::Ready(Event::Bytes(bytes)),
                Poll::Ready(Ok(None)) => return Poll::Ready(Event::Ended(Disconnect::Closed)),
                Poll::Ready(Err(_)) => return Poll::Ready(Event::Ended(Disconnect::Lost)),
                Poll::Pending => {}
            }
            if life.is_none() {
                *life = Some(shard.remember_waiter(cx.waker().clone()));
            }
            let is_over = |parked: &Parked<Dispatch>| {
                parked.is_retired() || shard.pool.changes() != limits_since || !is_host(&shard, destination, host)
            };
            if parked.is_some_and(is_over) {
                return Poll::Ready(Event::TimeOut);
            }
            if shard.is_ending() && draining_since.is_none() {
                if parked.is_some() {
                    return Poll::Ready(Event::TimeOut);
                }
                draining_since = Some(());
                deadline.set(shard.before_drain_ends(deadline.at().unwrap_or(now)));
            }
            if deadline.poll_expired(cx).is_ready() {
                return Poll::Ready(if parked.is_some() { Event::TimeOut } else { Event::Ended(Disconnect::TimedOut) });
            }
            Poll::Pending
        })
        .await
    }

    /// Tells the client once that the socket has the whole content. Whether it did.
    pub(crate) fn note_dot(&mut self) -> bool {
        let left = self.dot_queued && self.conn.unsent_bytes() == 0;
        if left {
            self.dot_queued = false;
            self.client.content_sent();
        }
        left
    }
}

fn is_host(shard: &Shard, destination: DestinationId, host: HostIndex) -> bool {
    shard.queue.borrow().host_address(destination, host).is_some()
}
