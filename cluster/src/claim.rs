//! The worker's side of a hand-over: from the lease to the word that the item is its own (Q18).
//!
//! ```text
//! leased -> stored (in the spool, not deliverable) -> complete(token): done     -> own
//!                                                                      refused  -> discard
//!                                                                      unknown  -> ask again, and at last own it
//! ```
//! A claim is discarded only when it is certain that the old owner was not told that this node has it. Pure: the driver reports
//! what it heard and does what it is told.

use std::{collections::HashMap, time::Duration};

use crate::{boot_time::BootTime, work_queue::Completed};

/// When a worker does what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaimTimes {
    /// How long after the lease was asked for it may be completed for the first time.
    pub lease_ttl: Duration,
    /// How soon an unanswered complete is repeated.
    pub repeat_after: Duration,
    /// How long owners take to offer again what Valkey has lost.
    pub reconciliation: Duration,
}

/// What to do with a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Complete it with its token now.
    Complete,
    /// Complete it when [`Claims::due`] says so.
    Later,
    /// It is this node's: deliver it.
    Own,
    /// It is another's: drop the copy.
    Discard,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Claim {
    token: String,
    /// Of the queue's data when it was leased; `None` for a claim of an earlier run.
    generation: Option<String>,
    /// The first complete goes out before.
    deadline: BootTime,
    /// The complete may have been heard, but its answer was not.
    was_asked: bool,
    /// The queue has not known the item once already.
    was_unknown: bool,
    due: Option<BootTime>,
}

/// The claims without an answer.
#[derive(Debug)]
pub struct Claims {
    times: ClaimTimes,
    claims: HashMap<String, Claim>,
}

impl Claims {
    /// No claim.
    pub fn new(times: ClaimTimes) -> Claims {
        Claims { times, claims: HashMap::new() }
    }

    /// Claims without an answer.
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// An item was leased; `asked_at` is from before the call was sent. False: there is a claim of that name already, which is asked
    /// about first; leave this lease to run out.
    pub fn leased(&mut self, id: &str, token: &str, generation: &str, asked_at: BootTime) -> bool {
        if self.claims.contains_key(id) {
            return false;
        }
        let claim = Claim {
            token: token.to_owned(),
            generation: Some(generation.to_owned()),
            deadline: asked_at + self.times.lease_ttl,
            was_asked: false,
            was_unknown: false,
            due: None,
        };
        self.claims.insert(id.to_owned(), claim);
        true
    }

    /// A claim of an earlier run was found in the spool. It may have been completed.
    pub fn recovered(&mut self, id: &str, token: &str, now: BootTime) {
        let claim = Claim { token: token.to_owned(), generation: None, deadline: now, was_asked: true, was_unknown: false, due: Some(now) };
        self.claims.insert(id.to_owned(), claim);
    }

    /// The copy is durable.
    pub fn stored(&mut self, id: &str, now: BootTime) -> Verdict {
        let Some(claim) = self.claims.get_mut(id) else { return Verdict::Discard };
        if now >= claim.deadline && !claim.was_asked {
            // Nobody was told anything: whoever has the lease by now goes on.
            self.claims.remove(id);
            return Verdict::Discard;
        }
        claim.due = None;
        Verdict::Complete
    }

    /// The copy could not be stored; its lease is given back.
    pub fn not_stored(&mut self, id: &str) -> Option<String> {
        self.claims.remove(id).map(|claim| claim.token)
    }

    /// The token to complete a claim with; `None` when it has been decided.
    pub fn token(&self, id: &str) -> Option<&str> {
        self.claims.get(id).map(|claim| claim.token.as_str())
    }

    /// The complete went out and was not answered, or could not go out.
    pub fn unanswered(&mut self, id: &str, was_sent: bool, now: BootTime) -> Verdict {
        let Some(claim) = self.claims.get_mut(id) else { return Verdict::Discard };
        claim.was_asked |= was_sent;
        if !claim.was_asked && now >= claim.deadline {
            self.claims.remove(id);
            return Verdict::Discard;
        }
        claim.due = Some(now + self.times.repeat_after);
        Verdict::Later
    }

    /// The queue's answer to a complete.
    pub fn completed(&mut self, id: &str, answer: Completed, generation: &str, now: BootTime) -> Verdict {
        let Some(claim) = self.claims.get_mut(id) else { return Verdict::Discard };
        let verdict = match answer {
            Completed::Done | Completed::DoneBefore => Verdict::Own,
            Completed::Stale => Verdict::Discard,
            Completed::Unknown => {
                let same_data = claim.generation.as_deref().is_some_and(|leased_in| leased_in == generation);
                if same_data && !claim.was_asked {
                    // Its owner took it back, or another has completed it: this node was not heard.
                    Verdict::Discard
                } else if same_data || claim.was_unknown {
                    // Its owner was told and has settled it; or the data was lost, and no owner has offered it again.
                    Verdict::Own
                } else {
                    (claim.was_unknown, claim.was_asked) = (true, true);
                    claim.due = Some(now + self.times.reconciliation);
                    return Verdict::Later;
                }
            }
        };
        self.claims.remove(id);
        verdict
    }

    /// Claims whose complete is to be repeated now; each is told only once.
    pub fn due(&mut self, now: BootTime) -> Vec<String> {
        let due = self.claims.iter_mut().filter(|(_, claim)| claim.due.is_some_and(|at| now >= at));
        due.map(|(id, claim)| {
            claim.due = None;
            id.clone()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: ClaimTimes =
        ClaimTimes { lease_ttl: Duration::from_secs(3), repeat_after: Duration::from_millis(200), reconciliation: Duration::from_secs(12) };

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    #[test]
    fn answers_decide() {
        for (answer, verdict) in [
            (Completed::Done, Verdict::Own),
            (Completed::DoneBefore, Verdict::Own),
            (Completed::Stale, Verdict::Discard),
            (Completed::Unknown, Verdict::Discard),
        ] {
            let mut claims = Claims::new(TIMES);
            assert!(claims.leased("a", "t", "g", at(0)));
            assert!(!claims.leased("a", "u", "g", at(0)));
            assert_eq!(claims.stored("a", at(1)), Verdict::Complete);
            assert_eq!(claims.completed("a", answer, "g", at(1)), verdict, "{answer:?}");
            assert!(claims.is_empty());
        }
    }

    #[test]
    fn a_lease_that_is_over_is_not_completed_for_the_first_time() {
        let mut claims = Claims::new(TIMES);
        claims.leased("a", "t", "g", at(0));
        assert_eq!(claims.stored("a", at(3)), Verdict::Discard);
    }

    #[test]
    fn what_may_have_been_heard_is_repeated_and_never_dropped() {
        let mut claims = Claims::new(TIMES);
        claims.leased("a", "t", "g", at(0));
        claims.stored("a", at(1));
        assert_eq!(claims.unanswered("a", true, at(1)), Verdict::Later);
        assert!(claims.due(at(1)).is_empty());
        assert_eq!(claims.due(at(2)), ["a"]);
        assert!(claims.due(at(2)).is_empty());
        assert_eq!(claims.completed("a", Completed::Unknown, "g", at(50)), Verdict::Own);
    }

    #[test]
    fn after_a_loss_of_data_the_owner_has_its_chance_first() {
        let mut claims = Claims::new(TIMES);
        claims.leased("a", "t", "g1", at(0));
        claims.leased("b", "t", "g1", at(0));
        for id in ["a", "b"] {
            claims.stored(id, at(1));
            assert_eq!(claims.completed(id, Completed::Unknown, "g2", at(1)), Verdict::Later);
        }
        assert!(claims.due(at(12)).is_empty());
        assert_eq!(claims.due(at(13)).len(), 2);
        assert_eq!(claims.completed("a", Completed::Stale, "g2", at(13)), Verdict::Discard, "its owner offered it again");
        assert_eq!(claims.completed("b", Completed::Unknown, "g2", at(13)), Verdict::Own);
    }

    #[test]
    fn a_claim_of_an_earlier_run_is_asked_about_at_once() {
        let mut claims = Claims::new(TIMES);
        claims.recovered("a", "t", at(0));
        assert_eq!(claims.due(at(0)), ["a"]);
        assert_eq!(claims.completed("a", Completed::Unknown, "g", at(0)), Verdict::Later);
        assert_eq!(claims.due(at(12)), ["a"]);
        assert_eq!(claims.completed("a", Completed::DoneBefore, "g", at(12)), Verdict::Own);
    }
}
