//! The worker's side of the simulated nodes.

use std::collections::BTreeMap;

use ringpost_cluster::{
    claim::{Lease, Verdict},
    offer::OWN_AGAIN,
    work_queue::Completed,
};

use super::{ENDED, FORGED, Held, LEASE, Owner, Rules, World};
use crate::valkey::Held as Leased;

impl World {
    pub(super) fn lease(&mut self, node: usize) {
        // Owners take back first what they have delivered while Valkey was away.
        let takes = node > 0 || self.owner == Owner::Shares;
        let claims = &self.nodes[node].claims;
        if !takes || self.nodes[node].is_away || self.is_owners_turn(node) || claims.len() - claims.refused() > 8 {
            let _ = self.call(node, |_, _| ());
            return;
        }
        let asked_at = self.now;
        let leased = self.call(node, |valkey, now| {
            let ready: Vec<String> = valkey.items.iter().filter(|(_, lease)| lease.is_none()).map(|(id, _)| id.clone()).take(4).collect();
            for id in &ready {
                valkey.tokens += 1;
                let lease = Leased { token: format!("{}.{}", valkey.tokens, valkey.enqueued[id]), until: now + LEASE };
                valkey.items.insert(id.clone(), Some(lease));
                *valkey.attempts.entry(id.clone()).or_default() += 1;
            }
            ready.into_iter().map(|id| (valkey.items[&id].as_ref().unwrap().token.clone(), id)).collect::<Vec<_>>()
        });
        let generation = self.valkey.generation.to_string();
        for (token, id) in leased.into_iter().flatten() {
            if self.rules == Rules::SettlesAtLease {
                for owner in &mut self.nodes {
                    if owner.spool.get(&id) == Some(&Held::Offered) {
                        owner.spool.remove(&id);
                    }
                }
            }
            if id.starts_with(&format!("n{node}.")) {
                if !self.nodes[node].spool.contains_key(&id) || self.nodes[node].offers.has_ended(&id) {
                    self.give_back(node, &Lease { id: id.clone(), token });
                    self.nodes[node].offers.orphan(&id);
                    continue;
                }
                let result = format!("{OWN_AGAIN} n{node}");
                if self.complete_call(node, &id, &token, &result).is_some() {
                    self.nodes[node].offers.done(&id);
                }
                continue;
            }
            let lease = Lease { id, token };
            let has_claim = |copies: &BTreeMap<Lease, bool>| copies.iter().any(|(claim, is_own)| claim.id == lease.id && !is_own);
            if self.rules == Rules::LetsLeasesRunOut && has_claim(&self.nodes[node].copies) {
                continue;
            }
            if self.nodes[node].claims.leased(&lease, &generation, asked_at) {
                self.nodes[node].copies.insert(lease.clone(), false);
                self.nodes[node].to_complete.push_back(lease);
            } else {
                self.give_back(node, &lease);
            }
        }
    }

    /// The item was not to blame: its attempt does not count.
    fn give_back(&mut self, node: usize, lease: &Lease) {
        let _ = self.call(node, |valkey, _| {
            if let Some(held @ Some(_)) = valkey.items.get_mut(&lease.id)
                && held.as_ref().is_some_and(|held| held.token == lease.token)
            {
                *held = None;
                *valkey.attempts.get_mut(&lease.id).unwrap() -= 1;
            }
        });
    }

    fn complete_call(&mut self, node: usize, id: &str, token: &str, result: &str) -> Option<Completed> {
        let drops_refused = self.rules == Rules::DropsRefused;
        // The script tells the owner, whether the worker hears its answer or not.
        let mut is_done = false;
        let answer = self.call(node, |valkey, _| match valkey.items.get(id) {
            Some(Some(lease)) if lease.token == token => {
                valkey.items.remove(id);
                valkey.outcomes.insert(id.to_owned(), (token.to_owned(), result.to_owned()));
                is_done = true;
                Completed::Done
            }
            Some(_) if drops_refused => Completed::Stale,
            Some(_) => Completed::Refused,
            None => match valkey.outcomes.get(id) {
                None => Completed::Unknown,
                Some((_, result)) if result == ENDED => Completed::Settled,
                Some((other, _)) if other == token => Completed::DoneBefore,
                Some(_) if drops_refused || valkey.is_anothers(id, token, FORGED) => Completed::Stale,
                Some(_) => Completed::Unproven,
            },
        });
        let owner = usize::from(id.as_bytes()[1] - b'0');
        if is_done && self.nodes[owner].down_until.is_none() && self.nodes[owner].spool.get(id) != Some(&Held::Offered) {
            self.late += 1;
        }
        if is_done && (!self.faults.lost_answers || self.random.chance(80)) {
            self.nodes[owner].pushes.push_back(id.to_owned());
        }
        answer
    }

    pub(super) fn complete(&mut self, node: usize) {
        for lease in self.nodes[node].claims.alone(self.now) {
            self.nodes[node].copies.insert(lease, true);
        }
        let is_due = !self.is_owners_turn(node) || self.rules == Rules::RepeatsBeforeOwners;
        let mut leases = if is_due { self.nodes[node].claims.due(self.now) } else { Vec::new() };
        // A disk can take longer than a lease, but not time after time.
        let stored = (self.random.below(8) as usize + 1).min(self.nodes[node].to_complete.len());
        leases.extend(self.nodes[node].to_complete.drain(..stored));
        for lease in leases {
            let now = self.now;
            let verdict = match self.nodes[node].claims.completing(&lease, now) {
                Verdict::Complete => {
                    let answer = self.complete_call(node, &lease.id, &lease.token, &format!("n{node}"));
                    let generation = self.valkey.generation.to_string();
                    match answer {
                        Some(answer) => self.nodes[node].claims.completed(&lease, answer, &generation, now),
                        None if self.rules == Rules::DropsUnanswered => Verdict::Discard,
                        None => self.nodes[node].claims.unanswered(&lease, true, now),
                    }
                }
                verdict => verdict,
            };
            let is_own = match verdict {
                Verdict::Own => true,
                Verdict::Discard => self.rules == Rules::DeliversRefused,
                Verdict::Later | Verdict::Complete => continue,
            };
            let copies = &mut self.nodes[node].copies;
            if is_own {
                copies.insert(lease, true);
            } else {
                copies.remove(&lease);
            }
        }
    }
}
