//! The worker's side of the simulated nodes.

use ringpost_cluster::{claim::Verdict, offer::OWN_AGAIN, work_queue::Completed};

use super::{Held, LEASE, Owner, Rules, World};
use crate::valkey::Lease;

impl World {
    pub(super) fn lease(&mut self, node: usize) {
        // Owners take back first what they have delivered while Valkey was away.
        let takes = node > 0 || self.owner == Owner::Shares;
        if !takes || self.nodes[node].is_away || self.nodes[node].claims.len() > 8 {
            let _ = self.call(node, |_, _| ());
            return;
        }
        let asked_at = self.now;
        let leased = self.call(node, |valkey, now| {
            let ready: Vec<String> = valkey.items.iter().filter(|(_, lease)| lease.is_none()).map(|(id, _)| id.clone()).take(4).collect();
            for id in &ready {
                valkey.tokens += 1;
                let lease = Lease { token: valkey.tokens.to_string(), until: now + LEASE };
                valkey.items.insert(id.clone(), Some(lease));
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
                let result = format!("{OWN_AGAIN} n{node}");
                if self.complete_call(node, &id, &token, &result).is_some() {
                    self.nodes[node].offers.done(&id);
                }
            } else if self.nodes[node].claims.leased(&id, &token, &generation, asked_at) {
                self.nodes[node].spool.insert(id.clone(), Held::Claim { token });
                self.nodes[node].to_complete.push_back(id);
            }
        }
    }

    fn complete_call(&mut self, node: usize, id: &str, token: &str, result: &str) -> Option<Completed> {
        let answer = self.call(node, |valkey, _| match valkey.items.get(id) {
            Some(Some(lease)) if lease.token == token => {
                valkey.items.remove(id);
                valkey.outcomes.insert(id.to_owned(), (token.to_owned(), result.to_owned()));
                (Completed::Done, true)
            }
            Some(_) => (Completed::Stale, false),
            None => match valkey.outcomes.get(id) {
                None => (Completed::Unknown, false),
                Some((other, _)) if other == token => (Completed::DoneBefore, false),
                Some(_) => (Completed::Stale, false),
            },
        });
        if let Some((Completed::Done, true)) = answer
            && self.random.chance(80)
        {
            let owner = usize::from(id.as_bytes()[1] - b'0');
            self.nodes[owner].pushes.push_back(id.to_owned());
        }
        answer.map(|(answer, _)| answer)
    }

    pub(super) fn complete(&mut self, node: usize) {
        let due = self.nodes[node].claims.due(self.now);
        let mut ids: Vec<(String, bool)> = due.into_iter().map(|id| (id, false)).collect();
        if let Some(id) = self.nodes[node].to_complete.pop_front() {
            ids.push((id, true));
        }
        for (id, is_first) in ids {
            let now = self.now;
            if is_first && self.nodes[node].claims.stored(&id, now) == Verdict::Discard {
                self.nodes[node].spool.remove(&id);
                continue;
            }
            let Some(token) = self.nodes[node].claims.token(&id).map(str::to_owned) else { continue };
            let answer = self.complete_call(node, &id, &token, &format!("n{node}"));
            let generation = self.valkey.generation.to_string();
            let verdict = match answer {
                Some(answer) => self.nodes[node].claims.completed(&id, answer, &generation, now),
                None if self.rules == Rules::DropsUnanswered => Verdict::Discard,
                None => self.nodes[node].claims.unanswered(&id, true, now),
            };
            match verdict {
                Verdict::Own => drop(self.nodes[node].spool.insert(id, Held::Local)),
                Verdict::Discard if self.rules == Rules::DeliversRefused => drop(self.nodes[node].spool.insert(id, Held::Local)),
                Verdict::Discard => drop(self.nodes[node].spool.remove(&id)),
                Verdict::Later | Verdict::Complete => {}
            }
        }
    }
}
