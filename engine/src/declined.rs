//! A message that a host of its destination put off: the other hosts are asked within the same attempt (RFC 5321 5.1).

use ringpost_queue::{Dispatch, HostsTried};
use ringpost_smtp::client::Verdict;

use crate::{
    attempt::{Attempt, AttemptStorage},
    outbound::Outbound,
    shard::Shard,
};

/// What a host said of those recipients that it neither took nor refused for good.
pub(crate) struct Words {
    storage: AttemptStorage,
    relay: String,
}

/// A message that is to be brought to a host that was not asked yet.
pub(crate) struct Declined {
    pub(crate) dispatch: Dispatch,
    /// What it comes to if no other host takes it.
    pub(crate) words: Words,
    /// With all addresses of the host that put it off.
    pub(crate) tried: HostsTried,
}

impl Shard {
    /// No other host could be asked: what the last one said is what the attempt came to, and the mail log has it.
    pub(crate) fn settle_declined(&self, dispatch: Dispatch, words: Words) {
        let Words { storage, relay } = words;
        self.settle_logged(Attempt { dispatch, transaction: None, storage, record_at: None }, &relay);
    }
}

impl Outbound<'_> {
    /// Keeps an attempt that this host has put off, for all of its recipients or some, if another one may take it. Else it comes back.
    ///
    /// Content whose end was not answered may be there: it is not brought elsewhere at once.
    pub(crate) fn decline(&mut self, mut attempt: Attempt, mut tried: HostsTried) -> Option<Attempt> {
        let outcomes = &mut attempt.storage.outcomes;
        let is_put_off = outcomes.iter().any(|outcome| outcome.verdict == Verdict::Deferred)
            && !outcomes.iter().any(|outcome| matches!(outcome.verdict, Verdict::Unknown | Verdict::Untried));
        let has_other =
            |tried: &mut HostsTried| self.shard.queue.borrow().has_other_host(self.destination, self.host, tried, self.shard.now_ms());
        if !is_put_off || self.shard.is_ending() || !has_other(&mut tried) {
            return Some(attempt);
        }
        if self.declined.is_some() {
            // The one before it goes to that host now; the next connection has this one.
            outcomes
                .iter_mut()
                .filter(|outcome| outcome.verdict == Verdict::Deferred)
                .for_each(|outcome| outcome.verdict = Verdict::Untried);
            return Some(attempt);
        }
        let relay = self.relay.clone();
        let decided: Vec<_> = outcomes.extract_if(.., |outcome| outcome.verdict != Verdict::Deferred).collect();
        if !decided.is_empty()
            && let Err(decided) = self.shard.settle_some(&mut attempt.dispatch, decided, &relay)
        {
            // Its owner has no time for a part of it.
            attempt.storage.outcomes.extend(decided);
            return Some(attempt);
        }
        self.shard.metrics.tried_elsewhere.increment();
        self.shard.log_outcomes(&attempt.dispatch, &attempt.storage.outcomes, &relay, self.shard.now_ms());
        let Attempt { dispatch, storage, .. } = attempt;
        self.declined = Some(Declined { dispatch, words: Words { storage, relay }, tried });
        None
    }
}
