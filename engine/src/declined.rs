//! A message that a host of its destination put off: the other hosts are asked within the same attempt (RFC 5321 5.1).

use ringpost_queue::{Dispatch, HostsTried, asks_for_fewer_connections};
use ringpost_smtp::client::{Verdict, is_about_content};

use crate::{
    attempt::{Attempt, RecipientOutcome, Words},
    outbound::Outbound,
    shard::Shard,
};

/// A message that is to be brought to a host that was not asked yet.
pub(crate) struct Declined {
    pub(crate) dispatch: Dispatch,
    /// What it comes to if no other host takes it.
    pub(crate) words: Words,
    /// With all addresses of the host that put it off.
    pub(crate) tried: HostsTried,
}

impl Shard {
    /// No other host could be asked, or none said a word: what the last one said is what the attempt came to, and the mail log has it.
    /// That of a guest has its owner, as for all guests.
    pub(crate) fn settle_declined(&self, dispatch: Dispatch, words: Words) {
        self.settle_logged(Attempt::decided(dispatch, words.storage), &words.relay);
    }
}

/// May another host take what this one said these of? Content whose end was not answered may be there: it is not brought elsewhere at once.
/// And content that cannot be sent can be sent nowhere.
fn is_put_off(outcomes: &[RecipientOutcome]) -> bool {
    let is_of_host = |outcome: &RecipientOutcome| match outcome.verdict {
        Verdict::Deferred => !is_about_content(&outcome.reply),
        Verdict::Delivered | Verdict::Failed => true,
        Verdict::Unknown | Verdict::Untried => false,
    };
    outcomes.iter().all(is_of_host) && outcomes.iter().any(|outcome| outcome.verdict == Verdict::Deferred)
}

impl Outbound<'_> {
    /// Keeps an attempt that this host has put off, for all of its recipients or some, if another one may take it. Else it comes back.
    pub(crate) fn decline(&mut self, mut attempt: Attempt) -> Option<Attempt> {
        let outcomes = &mut attempt.storage.outcomes;
        let is_deferred = |outcome: &RecipientOutcome| outcome.verdict == Verdict::Deferred;
        // A guest goes elsewhere whole: its list of recipients is its owner's, and keeps those that are decided.
        let is_whole = || outcomes.iter().all(is_deferred) && outcomes.len() == attempt.storage.recipients.len();
        if !is_put_off(outcomes) || self.shard.is_ending() || attempt.dispatch.is_guest() && !is_whole() {
            return Some(attempt);
        }
        let now = self.shard.now_ms();
        if !self.shard.queue.borrow().has_other_host(self.destination, self.host, &mut attempt.tried, now) {
            return Some(attempt);
        }
        if let Some(outcome) =
            outcomes.iter().find(|outcome| is_deferred(outcome) && asks_for_fewer_connections(outcome.reply.line().as_bytes()))
        {
            // The other hosts come first for a moment, or it has a connection for each message.
            let reason = format!("{}: {}", self.relay, outcome.reply.line());
            self.shard.queue.borrow_mut().host_crowded(self.destination, self.host, &reason, now);
        }
        if self.declined.is_some() {
            // The one before it goes to that host now; the next connection has this one.
            outcomes.iter_mut().filter(|outcome| is_deferred(outcome)).for_each(|outcome| outcome.verdict = Verdict::Untried);
            return Some(attempt);
        }
        let relay = self.relay.clone();
        let decided: Vec<_> = outcomes.extract_if(.., |outcome| !is_deferred(outcome)).collect();
        if !decided.is_empty()
            && let Err(decided) = self.shard.settle_some(&mut attempt.dispatch, decided, &relay)
        {
            attempt.storage.outcomes.extend(decided);
            return Some(attempt);
        }
        self.shard.metrics.tried_elsewhere.increment();
        let Attempt { dispatch, storage, tried, .. } = attempt;
        if !dispatch.is_guest() {
            self.shard.log_outcomes(&dispatch, &storage.outcomes, &relay, now);
        }
        self.declined = Some(Declined { dispatch, words: Words { storage, relay }, tried });
        None
    }
}
