//! The worker's side of a hand-over: from the lease to the word that the item is its own (Q18).
//!
//! ```text
//! leased -> stored (in the spool, not deliverable) -> complete(token): done     -> own
//!                                                                      stale    -> discard
//!                                                                      refused  -> discard, or ask again if one of before may have been heard
//!                                                                      unknown  -> ask again, and at last own it
//! ```
//! A claim is discarded only when it is certain that the old owner was not told that this node has it (no complete of it can have been heard),
//! or when it is proven that another has the mail: by the signed word of whoever completed it, or of its owner that it has taken it back. That the
//! queue has the item under another lease proves nothing: it may have gone back in time behind a completion that its owner has settled, or somebody may
//! have written so, and what it has can be lost a second time. So the copy is kept until the item has come to its end. While the queue does not
//! know the item it is asked again and again, since an owner may offer it anew; after that time nobody else has it. While nobody answers, or
//! proves what is said, it waits, but not for ever: its owner may have given the mail up. Pure: the driver reports what it heard and does what it is told.

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
    /// As is one whose item the queue has for so long and gives to nobody who completes it.
    pub refused_max: Duration,
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
    /// The queue has not been heard about it for so long, or has proven nothing, while this process was there to ask.
    unheard_for: Duration,
    /// A complete of it may have been heard, and the last was refused without a proof.
    is_refused: bool,
    /// They were for so long.
    refused_for: Duration,
}

impl Claim {
    fn new(deadline: BootTime) -> Claim {
        Claim {
            generation: None,
            deadline,
            was_asked: false,
            asked_at: None,
            unknown_until: None,
            due: None,
            unheard_for: Duration::ZERO,
            is_refused: false,
            refused_for: Duration::ZERO,
        }
    }
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

    /// Of them those that were refused without a proof: their items go on in the queue, and they may stay for long.
    pub fn refused(&self) -> usize {
        self.claims.values().filter(|claim| claim.is_refused).count()
    }

    /// An item was leased; `asked_at` is from before the call was sent. False: there is a claim of an earlier lease of it, which is asked
    /// about at once; give this lease back, or its time would count against the item. One that was refused is in nobody's way: with this
    /// lease completed it is decided.
    pub fn leased(&mut self, lease: &Lease, generation: &str, asked_at: BootTime) -> bool {
        let mut is_free = true;
        let first = Lease { id: lease.id.clone(), token: String::new() };
        for (_, claim) in self.claims.range_mut(first..).take_while(|(earlier, _)| earlier.id == lease.id) {
            is_free &= claim.is_refused;
            if claim.due.is_some() && !claim.is_refused {
                claim.due = Some(asked_at);
            }
        }
        if is_free {
            let claim = Claim { generation: Some(generation.to_owned()), ..Claim::new(asked_at + self.times.lease_ttl) };
            self.claims.insert(lease.clone(), claim);
        }
        is_free
    }

    /// A claim of an earlier run was found in the spool. It may have been completed.
    pub fn recovered(&mut self, lease: Lease, now: BootTime) {
        self.claims.insert(lease, Claim { was_asked: true, due: Some(now), ..Claim::new(now) });
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
        if answer != Completed::Unproven {
            claim.unheard_for = Duration::ZERO;
        }
        claim.is_refused = claim.was_asked && matches!(answer, Completed::Refused | Completed::Unproven);
        let verdict = match answer {
            Completed::Done | Completed::DoneBefore => Verdict::Own,
            Completed::Stale => Verdict::Discard,
            // This complete was not recorded: its owner cannot have believed it.
            Completed::Refused | Completed::Unproven if !claim.was_asked => Verdict::Discard,
            Completed::Refused | Completed::Unproven => {
                // If the queue does not know it next time, that is not for its having been settled with this node.
                (claim.generation, claim.unknown_until) = (None, None);
                claim.due = Some(now + self.times.ask_every);
                return Verdict::Later;
            }
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

    /// Claims that are this node's for want of anybody who knows, or proves what is said. To be called again and again: what lies between two calls beyond a
    /// second counts for nothing. A process that was stopped asks first.
    pub fn alone(&mut self, now: BootTime) -> Vec<Lease> {
        let passed = now.since(std::mem::replace(&mut self.looked_at, now)).min(LOOK_MAX);
        for claim in self.claims.values_mut().filter(|claim| claim.was_asked) {
            claim.unheard_for += passed;
            claim.refused_for += if claim.is_refused { passed } else { Duration::ZERO };
        }
        let is_alone = |claim: &Claim| claim.unheard_for >= self.times.alone_after || claim.refused_for >= self.times.refused_max;
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
mod tests;
