//! A message that a host of its destination put off: the other hosts are asked within the same attempt (RFC 5321 5.1).

use std::rc::Rc;

use ringpost_queue::{Dispatch, HostsTried, PutOffBy, asks_for_fewer_connections, asks_for_less, put_off_by};
use ringpost_smtp::{
    client::{SuccessReport, Verdict, is_about_content, is_about_offer, put_off_offer},
    reply::Reply,
};

use crate::{
    attempt::{Attempt, RecipientOutcome, Words},
    outbound::Outbound,
    said_before::SaidBeforeNote,
    shard::Shard,
};

/// A message that is to be brought to a host that was not asked yet.
pub(crate) struct Declined {
    pub(crate) dispatch: Dispatch,
    /// What it comes to if no other host takes it; none if none was asked.
    pub(crate) words: Option<Words>,
    /// With the host that put it off.
    pub(crate) tried: HostsTried,
}

impl Shard {
    /// Of what hosts say of this attempt.
    fn note_about(&self, dispatch: &Dispatch) -> Rc<SaidBeforeNote> {
        let message = self.queue.borrow().envelope(dispatch.key()).map(|envelope| envelope.id);
        Rc::new(self.said_before.begin(message.unwrap_or_default()))
    }

    /// An attempt is about to be brought to a further host. Recipients whom a command has stopped meanwhile leave it, with what the last host said
    /// of them in `words`, or untried. False where nobody may go on, or the owner of a guest has no time now: then it has all that it had.
    pub(crate) fn goes_on(&self, dispatch: &mut Dispatch, words: Option<&mut Words>) -> bool {
        let stopped: Vec<u16> = {
            let (mut queue, now) = (self.queue.borrow_mut(), self.now_ms());
            let mut recipients: Vec<u16> = queue.recipients(dispatch).map(|(number, _)| number).collect();
            recipients.retain(|number| !queue.may_go_on(dispatch, *number, now));
            recipients.sort_unstable();
            recipients
        };
        if stopped.is_empty() || stopped.len() == dispatch.recipients() {
            return stopped.is_empty();
        }
        let is_stopped = |recipient: u16| stopped.binary_search(&recipient).is_ok();
        let (mut said, relay, note) = match words {
            Some(words) => (Some(&mut words.storage.outcomes), words.relay.clone(), Some(&words.note)),
            None => (None, String::new(), None),
        };
        let outcomes = said.as_mut().map(|said| said.extract_if(.., |outcome| is_stopped(outcome.recipient)).collect::<Vec<_>>());
        let mut outcomes = outcomes.unwrap_or_default();
        for &recipient in &stopped {
            if outcomes.iter().all(|outcome| outcome.recipient != recipient) {
                let reply = Reply::local("451 4.3.2 stopped by command before another host was tried");
                outcomes.push(RecipientOutcome { recipient, verdict: Verdict::Untried, reply, success_report: SuccessReport::Delivered });
            }
        }
        if let Err(mut outcomes) = self.settle_some_logged(dispatch, outcomes, &relay) {
            outcomes.retain(|outcome| outcome.verdict != Verdict::Untried);
            said.into_iter().for_each(|said| said.append(&mut outcomes));
            return false;
        }
        if dispatch.is_guest() {
            self.queue.borrow_mut().keep_of_guest(dispatch, |number| !is_stopped(number));
        }
        note.into_iter().for_each(|note| note.left(&stopped));
        true
    }

    /// No other host could be asked, or none said a word: what the last one said is what the attempt came to, and the mail log has it.
    pub(crate) fn settle_declined(&self, mut dispatch: Dispatch, words: Words, tried: HostsTried) {
        dispatch.weigh(tried);
        self.settle_logged(Attempt::decided(dispatch, words.storage), &words.relay);
    }
}

/// May another host take what this one said these of? Content whose end was not answered may be there: it is not brought elsewhere at once.
/// And content that cannot be sent can be sent nowhere.
fn is_put_off(outcomes: &[RecipientOutcome], has_broken_off: bool) -> bool {
    let is_of_host = |outcome: &RecipientOutcome| match outcome.verdict {
        Verdict::Deferred | Verdict::Untried => !is_about_content(&outcome.reply),
        Verdict::Delivered | Verdict::Failed => true,
        Verdict::Unknown => false,
    };
    outcomes.iter().all(is_of_host) && outcomes.iter().any(|outcome| is_open(outcome, has_broken_off))
}

/// After [`is_put_off`]: it goes to the next host, which may offer what this one does not. What nothing was said of goes along where the host
/// broke off with its first message: else it is for another transaction, or another connection, with this one.
fn is_open(outcome: &RecipientOutcome, has_broken_off: bool) -> bool {
    match outcome.verdict {
        Verdict::Deferred => true,
        Verdict::Untried => has_broken_off,
        Verdict::Failed => is_about_offer(&outcome.reply),
        Verdict::Delivered | Verdict::Unknown => false,
    }
}

/// What a host does not offer is waited for, because another host may.
fn put_off_offers(outcomes: &mut [RecipientOutcome]) {
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.verdict == Verdict::Failed && is_about_offer(&outcome.reply)) {
        (outcome.verdict, outcome.reply) = (Verdict::Deferred, put_off_offer(&outcome.reply));
    }
}

/// Of what goes on to the next host: if nobody takes it, it was an attempt all the same.
fn defer(outcomes: &mut [RecipientOutcome]) {
    put_off_offers(outcomes);
    outcomes.iter_mut().for_each(|outcome| outcome.verdict = Verdict::Deferred);
}

impl Words {
    /// Do they stand, after another host came to this? It said nothing of the message, or does not offer what that needs while this one, which
    /// does, may take it later.
    pub(crate) fn outweigh(&self, outcomes: &[RecipientOutcome]) -> bool {
        let lacks = |outcome: &RecipientOutcome| is_about_offer(&outcome.reply);
        let says_nothing = |outcome: &RecipientOutcome| outcome.verdict == Verdict::Untried;
        outcomes.iter().all(says_nothing) || outcomes.iter().all(lacks) && !self.storage.outcomes.iter().any(lacks)
    }
}

impl Outbound<'_> {
    /// Keeps an attempt that this host has put off, for all of its recipients or some, if another one may take it. Else it comes back.
    pub(crate) fn decline(&mut self, mut attempt: Attempt) -> Option<Attempt> {
        let outcomes = &mut attempt.storage.outcomes;
        let has_broken_off = self.client.is_ending() && self.served == 0 && !self.has_rested;
        // What goes on of a guest is what its list of recipients keeps: all that is open is to be known.
        let is_known = || outcomes.len() == attempt.dispatch.recipients();
        if !is_put_off(outcomes, has_broken_off) || self.shard.is_ending() || attempt.dispatch.is_guest() && !is_known() {
            return Some(attempt);
        }
        let now = self.shard.now_ms();
        let mut decided: Vec<_> = {
            let mut queue = self.shard.queue.borrow_mut();
            let mut goes_on =
                |outcome: &RecipientOutcome| is_open(outcome, has_broken_off) && queue.may_go_on(&attempt.dispatch, outcome.recipient, now);
            outcomes.extract_if(.., |outcome| !goes_on(outcome)).collect()
        };
        if outcomes.is_empty() || !self.has_other_host(&mut attempt, now) {
            attempt.storage.outcomes.append(&mut decided);
            return Some(attempt);
        }
        let outcomes = &mut attempt.storage.outcomes;
        self.note_crowded(outcomes, now);
        if self.declined.is_some() {
            // The one before it goes to that host now; the next connection has this one.
            outcomes.iter_mut().for_each(|outcome| outcome.verdict = Verdict::Untried);
            outcomes.append(&mut decided);
            return Some(attempt);
        }
        let relay = self.relay.clone();
        // Of those that a command keeps from going on.
        put_off_offers(&mut decided);
        let told = if attempt.dispatch.is_guest() {
            let mut put_off = attempt.storage.outcomes.clone();
            defer(&mut put_off);
            self.shard.tell_owner_what_goes_on(&mut attempt.dispatch, decided, put_off, &relay)
        } else if decided.is_empty() {
            Ok(())
        } else {
            self.shard.settle_some(&mut attempt.dispatch, decided, &relay)
        };
        if let Err(decided) = told {
            attempt.storage.outcomes.extend(decided);
            return Some(attempt);
        }
        if attempt.dispatch.is_guest() {
            let mut open: Vec<u16> = attempt.storage.outcomes.iter().map(|outcome| outcome.recipient).collect();
            open.sort_unstable();
            self.shard.queue.borrow_mut().keep_of_guest(&attempt.dispatch, |number| open.binary_search(&number).is_ok());
        }
        let said_less = attempt.words.as_ref().is_some_and(|words| words.outweigh(&attempt.storage.outcomes));
        // One that broke off said nothing at all.
        let says_otherwise = |outcome: &RecipientOutcome| outcome.reply.code() != 421 && !asks_for_less(outcome.reply.line().as_bytes());
        if attempt.storage.outcomes.iter().all(says_otherwise) {
            attempt.tried.note_said_otherwise();
        }
        defer(&mut attempt.storage.outcomes);
        self.shard.metrics.tried_elsewhere.increment();
        let Attempt { dispatch, storage, tried, words: before, .. } = attempt;
        if !dispatch.is_guest() {
            self.shard.log_outcomes(&dispatch, &storage.outcomes, &relay, now);
        }
        let note = before.as_ref().map_or_else(|| self.shard.note_about(&dispatch), |before| before.note.clone());
        let reply = storage.outcomes.first().map_or("", |outcome| outcome.reply.line());
        note.said(&relay, reply, storage.outcomes.iter().map(|outcome| outcome.recipient));
        let words = match before {
            // What the host before said stays the last word where this one says less.
            Some(mut before) if said_less => {
                // Of those that go on.
                let goes_on = |one: &RecipientOutcome| storage.outcomes.iter().any(|outcome| outcome.recipient == one.recipient);
                before.storage.outcomes.retain(goes_on);
                self.shard.delivery.keep_storage(storage);
                before
            }
            _ => Words { storage, relay, note },
        };
        self.declined = Some(Declined { dispatch, words: Some(words), tried });
        None
    }

    /// May another host have what is in its outcomes, all of which goes on? Then it knows of this one.
    fn has_other_host(&self, attempt: &mut Attempt, now: u64) -> bool {
        let Attempt { storage, tried, .. } = attempt;
        let outcomes = &storage.outcomes;
        let is_of_address = |outcome: &RecipientOutcome| put_off_by(outcome.reply.line().as_bytes()) == PutOffBy::Address;
        let by = match outcomes.iter().all(|outcome| is_about_offer(&outcome.reply)) {
            true => PutOffBy::Offer,
            false if outcomes.iter().any(is_of_address) => PutOffBy::Address,
            false => PutOffBy::Host,
        };
        self.shard.queue.borrow().has_other_host(self.destination, self.host, by, tried, now)
    }

    /// Other hosts come first for a moment where this one asks for less, or it has a connection for each message.
    fn note_crowded(&self, outcomes: &[RecipientOutcome], now: u64) {
        if let Some(outcome) = outcomes.iter().find(|outcome| asks_for_fewer_connections(outcome.reply.line().as_bytes())) {
            let reason = format!("{}: {}", self.relay, outcome.reply.line());
            self.shard.queue.borrow_mut().host_crowded(self.destination, self.host, &reason, now);
        }
    }

    /// No other host is asked: the attempt is over.
    pub(crate) fn conclude(&self, mut attempt: Attempt) {
        self.spare_what_others_may_offer(&mut attempt);
        match &attempt.words {
            Some(words) if words.outweigh(&attempt.storage.outcomes) => self.settle_as_said_before(attempt),
            _ => {
                if attempt.tried.have_said_otherwise() {
                    self.note_crowded(&attempt.storage.outcomes, self.shard.now_ms());
                }
                attempt.dispatch.weigh(attempt.tried);
                self.shard.settle_attempt(attempt, &self.relay);
            }
        }
    }

    /// What the host before it said stays the attempt's word. This one has a line in the mail log for what it said.
    pub(crate) fn settle_as_said_before(&self, attempt: Attempt) {
        let Attempt { dispatch, storage, mut tried, words, .. } = attempt;
        if storage.outcomes.iter().any(|outcome| is_about_offer(&outcome.reply)) {
            tried.note_said_otherwise();
        }
        match dispatch.is_guest() {
            true => self.shard.keep_for_log(&dispatch, storage.outcomes.clone(), &self.relay),
            false => self.shard.log_outcomes(&dispatch, &storage.outcomes, &self.relay, self.shard.now_ms()),
        }
        self.shard.delivery.keep_storage(storage);
        self.shard.settle_declined(dispatch, words.expect("the caller asked"), tried);
    }

    /// The word of this host is the attempt's. What it does not offer is final only where each host of the destination was asked, and none does.
    fn spare_what_others_may_offer(&self, attempt: &mut Attempt) {
        let outcomes = &mut attempt.storage.outcomes;
        let lacks = |outcome: &RecipientOutcome| outcome.verdict == Verdict::Failed && is_about_offer(&outcome.reply);
        if outcomes.iter().any(lacks) && !self.shard.queue.borrow().all_hosts_lack(self.destination, self.host, attempt.tried) {
            put_off_offers(outcomes);
        }
    }

    /// Is this message to be brought to another host first, because this one failed with it before? Then it is.
    pub(crate) fn leave_to_others(&mut self, attempt: Attempt) -> Option<Attempt> {
        let now = self.shard.now_ms();
        if self.declined.is_some() || !self.shard.queue.borrow().comes_later(self.destination, self.host, attempt.tried, now) {
            return Some(attempt);
        }
        let Attempt { dispatch, storage, tried, words, .. } = attempt;
        self.shard.delivery.keep_storage(storage);
        self.declined = Some(Declined { dispatch, words, tried });
        None
    }
}
