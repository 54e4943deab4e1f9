//! The worker's side of a hand-over: from the lease to the word that the item is its own (Q18).
//!
//! ```text
//! leased -> stored (in the spool, not deliverable) -> complete(token): done     -> own
//!                                                                      refused  -> discard
//!                                                                      unknown  -> ask again, and at last own it
//! ```
//! A claim is discarded only when it is certain that the old owner was not told that this node has it: it was never completed, or the
//! queue says that the item is there under another lease (after which it stays there until somebody has completed it, even if the queue has
//! gone back in time and its owner has settled it). While the queue does not know the item it is asked again and again, since an
//! owner may offer it anew; after that time nobody else has it. While nobody answers it waits, but not for ever: its owner may have given
//! the mail up. Pure: the driver reports what it heard and does what it is told.

use std::{collections::BTreeMap, time::Duration};

use crate::{boot_time::BootTime, work_queue::Completed};

/// A worker looks at its claims at least so often, while it runs.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// When a worker does what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaimTimes {
    /// How long after the lease was asked for it may be completed for the first time.
    pub lease_ttl: Duration,
    /// How soon an unanswered complete is repeated.
    pub repeat_after: Duration,
    /// How often it is repeated while the queue does not know the item.
    pub ask_every: Duration,
    /// How long an owner remembers what it has settled, and the queue with it.
    pub forget_after: Duration,
    /// How long owners take to offer again what Valkey has lost.
    pub reconciliation: Duration,
    /// A claim that was completed and that nobody answers for so long is this node's: late mail is worse than mail that comes twice.
    pub alone_after: Duration,
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

/// One lease of one item. A spool can hold claims of two leases of the same item, each of which has its own answer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lease {
    /// The item's name.
    pub id: String,
    /// What its complete presents.
    pub token: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Claim {
    /// Of the queue's data when it was leased; `None` for a claim of an earlier run.
    generation: Option<String>,
    /// The first complete goes out before.
    deadline: BootTime,
    /// The complete may have been heard, but its answer was not.
    was_asked: bool,
    /// When a complete went out first.
    asked_at: Option<BootTime>,
    /// The queue did not know the item. If it still does not at this time, no owner has offered it again.
    unknown_until: Option<BootTime>,
    due: Option<BootTime>,
    /// The queue has not been heard about it for so long, while this process was there to ask.
    unheard_for: Duration,
}

/// The claims without an answer.
#[derive(Debug)]
pub struct Claims {
    times: ClaimTimes,
    claims: BTreeMap<Lease, Claim>,
    looked_at: BootTime,
}

impl Claims {
    /// No claim.
    pub fn new(times: ClaimTimes) -> Claims {
        Claims { times, claims: BTreeMap::new(), looked_at: BootTime::default() }
    }

    /// Claims without an answer.
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// An item was leased; `asked_at` is from before the call was sent. False: there is a claim of an earlier lease of it, which is asked
    /// about at once; give this lease back, or its time would count against the item.
    pub fn leased(&mut self, lease: &Lease, generation: &str, asked_at: BootTime) -> bool {
        let mut is_free = true;
        let first = Lease { id: lease.id.clone(), token: String::new() };
        for (_, claim) in self.claims.range_mut(first..).take_while(|(earlier, _)| earlier.id == lease.id) {
            is_free = false;
            if claim.due.is_some() {
                claim.due = Some(asked_at);
            }
        }
        if is_free {
            let claim = Claim {
                generation: Some(generation.to_owned()),
                deadline: asked_at + self.times.lease_ttl,
                was_asked: false,
                asked_at: None,
                unknown_until: None,
                due: None,
                unheard_for: Duration::ZERO,
            };
            self.claims.insert(lease.clone(), claim);
        }
        is_free
    }

    /// A claim of an earlier run was found in the spool. It may have been completed.
    pub fn recovered(&mut self, lease: Lease, now: BootTime) {
        let claim = Claim {
            generation: None,
            deadline: now,
            was_asked: true,
            asked_at: None,
            unknown_until: None,
            due: Some(now),
            unheard_for: Duration::ZERO,
        };
        self.claims.insert(lease, claim);
    }

    /// The copy is durable, and its complete is about to go out, for the first time or again.
    pub fn completing(&mut self, lease: &Lease, now: BootTime) -> Verdict {
        let Some(claim) = self.claims.get_mut(lease) else { return Verdict::Discard };
        if now >= claim.deadline && !claim.was_asked {
            // Nobody was told anything: whoever has the lease by now goes on.
            self.claims.remove(lease);
            return Verdict::Discard;
        }
        claim.due = None;
        claim.asked_at.get_or_insert(now);
        Verdict::Complete
    }

    /// The copy could not be stored; its lease is given back.
    pub fn not_stored(&mut self, lease: &Lease) {
        self.claims.remove(lease);
    }

    /// The complete went out and was not answered, or could not go out.
    pub fn unanswered(&mut self, lease: &Lease, was_sent: bool, now: BootTime) -> Verdict {
        let Some(claim) = self.claims.get_mut(lease) else { return Verdict::Discard };
        claim.was_asked |= was_sent;
        if !claim.was_asked && now >= claim.deadline {
            self.claims.remove(lease);
            return Verdict::Discard;
        }
        claim.due = Some(now + self.times.repeat_after);
        Verdict::Later
    }

    /// The queue's answer to a complete.
    pub fn completed(&mut self, lease: &Lease, answer: Completed, generation: &str, now: BootTime) -> Verdict {
        let Some(claim) = self.claims.get_mut(lease) else { return Verdict::Discard };
        claim.unheard_for = Duration::ZERO;
        let verdict = match answer {
            Completed::Done | Completed::DoneBefore => Verdict::Own,
            Completed::Stale => Verdict::Discard,
            // The owner may have settled with this node, or with another: a duplicate rather than a loss.
            Completed::Settled => {
                if claim.was_asked {
                    Verdict::Own
                } else {
                    Verdict::Discard
                }
            }
            Completed::Unknown => {
                let same_data = claim.generation.as_deref().is_some_and(|leased_in| leased_in == generation);
                // An earlier complete was heard in this data: its owner was told, and has settled it since and had that forgotten. Before it can
                // have, the queue does not know the item because it has lost the last moments, which no new generation tells, and the owner
                // is about to offer it again.
                let can_be_forgotten = claim.asked_at.is_some_and(|at| now.since(at) > self.times.forget_after);
                let was_settled = same_data && claim.was_asked && claim.unknown_until.is_none() && can_be_forgotten;
                let until = *claim.unknown_until.get_or_insert(now + self.times.reconciliation);
                claim.was_asked = true;
                if !was_settled && now < until {
                    claim.due = Some((now + self.times.ask_every).min(until));
                    return Verdict::Later;
                }
                Verdict::Own
            }
        };
        self.claims.remove(lease);
        verdict
    }

    /// Claims that are this node's for want of anybody to ask. To be called again and again: what lies between two calls beyond a
    /// second counts for nothing. A process that was stopped asks first.
    pub fn alone(&mut self, now: BootTime) -> Vec<Lease> {
        let passed = now.since(std::mem::replace(&mut self.looked_at, now)).min(LOOK_MAX);
        let asked = self.claims.values_mut().filter(|claim| claim.was_asked);
        asked.for_each(|claim| claim.unheard_for += passed);
        let is_alone = |claim: &Claim| claim.unheard_for >= self.times.alone_after;
        let alone: Vec<Lease> = self.claims.iter().filter(|(_, claim)| is_alone(claim)).map(|(lease, _)| lease.clone()).collect();
        alone.iter().for_each(|lease| drop(self.claims.remove(lease)));
        alone
    }

    /// Claims whose complete is to be repeated now; each is told only once.
    pub fn due(&mut self, now: BootTime) -> Vec<Lease> {
        let due = self.claims.iter_mut().filter(|(_, claim)| claim.due.is_some_and(|at| now >= at));
        due.map(|(lease, claim)| {
            claim.due = None;
            lease.clone()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: ClaimTimes = ClaimTimes {
        lease_ttl: Duration::from_secs(3),
        repeat_after: Duration::from_millis(200),
        ask_every: Duration::from_secs(2),
        forget_after: Duration::from_secs(30),
        reconciliation: Duration::from_secs(12),
        alone_after: Duration::from_secs(900),
    };

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    fn lease(id: &str, token: &str) -> Lease {
        Lease { id: id.to_owned(), token: token.to_owned() }
    }

    #[test]
    fn answers_decide() {
        for (answer, verdict) in
            [(Completed::Done, Verdict::Own), (Completed::DoneBefore, Verdict::Own), (Completed::Stale, Verdict::Discard)]
        {
            let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
            assert!(claims.leased(&a, "g", at(0)));
            assert_eq!(claims.completing(&a, at(1)), Verdict::Complete);
            assert_eq!(claims.completed(&a, answer, "g", at(1)), verdict, "{answer:?}");
            assert!(claims.is_empty());
        }
    }

    /// Valkey went back in time: its owner, which had settled with this node, took the item out, and the claim was refused.
    #[test]
    fn what_its_owner_has_settled_is_a_workers_that_may_have_been_believed() {
        for was_asked in [true, false] {
            let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
            claims.leased(&a, "g", at(0));
            claims.completing(&a, at(1));
            claims.unanswered(&a, was_asked, at(1));
            claims.completing(&a, at(2));
            let verdict = if was_asked { Verdict::Own } else { Verdict::Discard };
            assert_eq!(claims.completed(&a, Completed::Settled, "g", at(2)), verdict);
        }
    }

    #[test]
    fn a_lease_that_is_over_is_not_completed_for_the_first_time() {
        let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
        claims.leased(&a, "g", at(0));
        assert_eq!(claims.completing(&a, at(3)), Verdict::Discard);
        // Nor when the circuit was open all the time.
        claims.leased(&a, "g", at(0));
        claims.completing(&a, at(1));
        assert_eq!(claims.unanswered(&a, false, at(1)), Verdict::Later);
        assert_eq!(claims.completing(&a, at(3)), Verdict::Discard);
        assert!(claims.is_empty());
    }

    #[test]
    fn what_may_have_been_heard_is_repeated_and_never_dropped() {
        let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
        claims.leased(&a, "g", at(0));
        claims.completing(&a, at(1));
        assert_eq!(claims.unanswered(&a, true, at(1)), Verdict::Later);
        assert!(claims.due(at(1)).is_empty());
        assert_eq!(claims.due(at(2)), std::slice::from_ref(&a));
        assert!(claims.due(at(2)).is_empty());
        assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(50)), Verdict::Own);
    }

    /// A failover that lost the last second, in which the item was offered, leased and completed, left the generation: the worker owned the item
    /// at once, and so did the one to which its owner offered it again.
    #[test]
    fn what_a_failover_lost_is_not_owned_before_its_owner_had_its_chance() {
        let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
        claims.leased(&a, "g", at(0));
        claims.completing(&a, at(0));
        claims.unanswered(&a, true, at(0));
        assert_eq!(claims.due(at(1)), std::slice::from_ref(&a));
        claims.completing(&a, at(1));
        assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(1)), Verdict::Later);
        assert_eq!(claims.due(at(3)), std::slice::from_ref(&a));
        claims.completing(&a, at(3));
        assert_eq!(claims.completed(&a, Completed::Stale, "g", at(3)), Verdict::Discard);
    }

    #[test]
    fn after_a_loss_of_data_the_owner_has_its_chance_first() {
        let (mut claims, a, b) = (Claims::new(TIMES), lease("a", "t"), lease("b", "t"));
        for lease in [&a, &b] {
            claims.leased(lease, "g1", at(0));
            claims.completing(lease, at(1));
            assert_eq!(claims.completed(lease, Completed::Unknown, "g2", at(1)), Verdict::Later);
        }
        assert!(claims.due(at(2)).is_empty());
        assert_eq!(claims.due(at(3)).len(), 2, "every two seconds");
        assert_eq!(claims.completed(&a, Completed::Stale, "g2", at(3)), Verdict::Discard, "its owner offered it again");
        for seconds in [3, 5, 7, 9, 11] {
            assert_eq!(claims.completed(&b, Completed::Unknown, "g2", at(seconds)), Verdict::Later);
            assert_eq!(claims.due(at(seconds + 2)), std::slice::from_ref(&b));
        }
        assert_eq!(claims.completed(&b, Completed::Unknown, "g2", at(13)), Verdict::Own);
    }

    #[test]
    fn data_lost_without_a_sign_of_it_gives_the_owner_its_chance_too() {
        let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
        claims.leased(&a, "g", at(0));
        claims.completing(&a, at(1));
        assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(1)), Verdict::Later);
        assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(3)), Verdict::Later);
        assert_eq!(claims.completed(&a, Completed::Stale, "g", at(5)), Verdict::Discard);
    }

    #[test]
    fn an_item_that_comes_again_has_its_earlier_claim_asked_about_at_once() {
        let (mut claims, first, again) = (Claims::new(TIMES), lease("a", "t"), lease("a", "u"));
        claims.leased(&first, "g1", at(0));
        claims.leased(&lease("b", "t"), "g1", at(0));
        assert!(!claims.leased(&again, "g1", at(0)));
        assert!(claims.due(at(0)).is_empty(), "the copy is not durable yet");
        claims.completing(&first, at(1));
        assert_eq!(claims.completed(&first, Completed::Unknown, "g2", at(1)), Verdict::Later);
        assert!(!claims.leased(&again, "g2", at(1)));
        assert_eq!(claims.due(at(1)), std::slice::from_ref(&first));
        assert_eq!(claims.completed(&first, Completed::Stale, "g2", at(1)), Verdict::Discard);
        assert!(claims.leased(&again, "g2", at(2)), "the next lease is one as always");
    }

    #[test]
    fn a_claim_of_an_earlier_run_is_asked_about_at_once() {
        let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
        claims.recovered(a.clone(), at(0));
        assert_eq!(claims.due(at(0)), std::slice::from_ref(&a));
        assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(0)), Verdict::Later);
        assert_eq!(claims.due(at(2)), std::slice::from_ref(&a));
        assert_eq!(claims.completed(&a, Completed::DoneBefore, "g", at(2)), Verdict::Own);
    }

    /// The seconds in which a running process finds nobody to ask, until something is its own.
    fn seconds_alone(claims: &mut Claims, from: u64) -> (u64, Vec<Lease>) {
        assert!(claims.alone(at(from)).is_empty());
        (1..10_000).find_map(|second| Some((second, claims.alone(at(from + second)))).filter(|(_, alone)| !alone.is_empty())).unwrap()
    }

    /// A claim waited for an answer however long Valkey was away, with the only copy of mail that its owner had settled.
    #[test]
    fn a_claim_that_nobody_answers_for_a_quarter_of_an_hour_is_delivered() {
        let (mut claims, asked, stored, unsent) = (Claims::new(TIMES), lease("a", "t"), lease("b", "t"), lease("c", "t"));
        claims.leased(&asked, "g", at(0));
        claims.leased(&unsent, "g", at(0));
        claims.completing(&asked, at(1));
        assert_eq!(claims.unanswered(&asked, true, at(1)), Verdict::Later);
        assert_eq!(seconds_alone(&mut claims, 1), (899, vec![asked]), "the first look counts a second");
        claims.recovered(stored.clone(), at(1000));
        seconds_pass(&mut claims, 1000, 500);
        assert_eq!(claims.completed(&stored, Completed::Unknown, "g", at(1500)), Verdict::Later);
        assert_eq!(seconds_alone(&mut claims, 1500), (900, vec![stored]), "it was answered");
        // Nobody was told that this one is ours.
        seconds_pass(&mut claims, 10_000, 2000);
        assert_eq!(claims.completing(&unsent, at(20_000)), Verdict::Discard);
        assert!(claims.is_empty());
    }

    fn seconds_pass(claims: &mut Claims, from: u64, seconds: u64) {
        (from..=from + seconds).for_each(|second| assert!(claims.alone(at(second)).is_empty()));
    }

    #[test]
    fn a_process_that_was_stopped_for_hours_asks_before_it_delivers() {
        let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
        claims.recovered(a.clone(), at(0));
        assert!(claims.alone(at(1)).is_empty());
        assert!(claims.alone(at(20_000)).is_empty());
        assert_eq!(claims.due(at(20_000)), std::slice::from_ref(&a));
        assert_eq!(claims.completed(&a, Completed::Stale, "g", at(20_000)), Verdict::Discard);
    }

    #[test]
    fn two_claims_of_one_item_have_an_answer_each() {
        let (mut claims, first, second) = (Claims::new(TIMES), lease("a", "t"), lease("a", "u"));
        claims.recovered(first.clone(), at(0));
        claims.recovered(second.clone(), at(0));
        assert_eq!(claims.due(at(0)), [first.clone(), second.clone()]);
        assert_eq!(claims.completed(&second, Completed::DoneBefore, "g", at(0)), Verdict::Own);
        assert_eq!(claims.len(), 1);
        assert_eq!(claims.completed(&first, Completed::Stale, "g", at(0)), Verdict::Discard);
    }
}
