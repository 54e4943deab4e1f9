//! The owner's side of the simulated nodes.

use std::time::Duration;

use ringpost_cluster::{
    offer::{Recall, Sending, Todo},
    work_queue::{Ending, Enqueued, Known},
};

use super::{ENDED, FORGED, Held, Node, Owner, Rules, Wish, World};
use crate::valkey::{signed, withdrawn};

impl World {
    fn enqueue(&mut self, node: usize, id: &str) {
        let answer = self.call(node, |valkey, _| {
            if valkey.outcomes.get(id).is_some_and(|(token, _)| token.is_empty()) {
                valkey.outcomes.remove(id);
            }
            if valkey.items.contains_key(id) {
                Enqueued::Present
            } else if valkey.outcomes.contains_key(id) {
                Enqueued::Completed
            } else {
                valkey.items.insert(id.to_owned(), None);
                valkey.attempts.remove(id);
                valkey.moments += 1;
                valkey.enqueued.insert(id.to_owned(), valkey.moments);
                Enqueued::Added
            }
        });
        match answer {
            Some(answer) => self.nodes[node].offers.enqueued(id, answer),
            None => self.nodes[node].offers.unanswered(id, self.now),
        }
    }

    /// A shard gives some of its mail to be offered.
    pub(super) fn offer_some(&mut self, node: usize) {
        for _ in 0..4 {
            let gates_all = self.rules == Rules::GatesWhatIsOfferedAgain;
            let node_offers = &mut self.nodes[node];
            // The control is about mail that has not waited long.
            let takes_new = node_offers.offers.takes_new() || self.rules == Rules::GivesWhatIsRecalled;
            let again = if takes_new || !gates_all { node_offers.again.pop_front() } else { None };
            let Some(id) = again.or_else(|| takes_new.then(|| node_offers.unsent.pop_front())?) else { return };
            // What it wants back it does not give: the answer may be that it is out.
            if !self.nodes[node].wishes.contains_key(&id) || self.rules == Rules::GivesWhatIsRecalled {
                self.offer(node, &id);
            }
        }
    }

    fn offer(&mut self, node: usize, id: &str) {
        match self.nodes[node].spool.get(id) {
            Some(Held::Offered) => match self.nodes[node].offers.sending(id) {
                Sending::Send => self.enqueue(node, id),
                Sending::TakeBack => drop(self.nodes[node].spool.insert(id.to_owned(), Held::Local)),
                Sending::Leave => {}
            },
            _ => self.nodes[node].offers.gone(id),
        }
    }

    pub(super) fn accept(&mut self, node: usize) {
        self.accepted += 1;
        let id = format!("n{node}.{}", self.accepted);
        self.delivered.insert(id.clone(), 0);
        self.ended.insert(id.clone(), 0);
        if self.owner == Owner::Drains && !self.nodes[node].is_draining {
            self.nodes[node].spool.insert(id, Held::Local);
            return;
        }
        self.nodes[node].spool.insert(id.clone(), Held::Offered);
        self.nodes[node].unsent.push_back(id);
    }

    /// An operator, or the end of a mail's life.
    pub(super) fn want_back(&mut self, node: usize, wish: Wish) {
        let offered: Vec<String> =
            self.nodes[node].spool.iter().filter(|(_, held)| **held == Held::Offered).map(|(id, _)| id.clone()).collect();
        if offered.is_empty() {
            return;
        }
        let id = offered[self.random.below(offered.len() as u64) as usize].clone();
        if self.rules == Rules::EndsWithoutRecall {
            self.nodes[node].spool.remove(&id);
            *self.ended.get_mut(&id).unwrap() += 1;
            return;
        }
        self.nodes[node].offers.recalled(&id);
        self.nodes[node].wishes.insert(id, wish);
    }

    fn told(&mut self, node: usize, id: &str, recall: Recall) {
        let Some(wish) = self.nodes[node].wishes.remove(id) else { return };
        if recall != Recall::Out || self.nodes[node].spool.get(id) != Some(&Held::Offered) {
            return;
        }
        match wish {
            Wish::Purge | Wish::Expire => {
                self.nodes[node].spool.remove(id);
                *self.ended.get_mut(id).unwrap() += 1;
            }
            Wish::Deliver => drop(self.nodes[node].spool.insert(id.to_owned(), Held::Local)),
        }
    }

    /// One look of a drain over the queue.
    pub(super) fn drain(&mut self, node: usize) {
        self.nodes[node].is_draining = true;
        if self.nodes[node].offers.is_local() {
            return;
        }
        let local: Vec<String> =
            self.nodes[node].spool.iter().filter(|(_, held)| **held == Held::Local).map(|(id, _)| id.clone()).take(8).collect();
        for id in local {
            self.nodes[node].spool.insert(id.clone(), Held::Offered);
            self.nodes[node].unsent.push_back(id);
        }
    }

    fn scan(&mut self, node: usize) {
        let mine = format!("n{node}.");
        let Some(items) = self.call(node, |valkey, _| valkey.items.keys().filter(|id| id.starts_with(&mine)).cloned().collect::<Vec<_>>())
        else {
            return;
        };
        self.nodes[node].is_to_scan = false;
        for id in items {
            if !self.nodes[node].spool.contains_key(&id) || self.nodes[node].offers.has_ended(&id) {
                self.nodes[node].offers.orphan(&id);
            }
        }
    }

    pub(super) fn do_offers(&mut self, node: usize) {
        while let Some(id) = self.nodes[node].pushes.pop_front() {
            self.nodes[node].offers.done(&id);
        }
        if self.nodes[node].is_to_scan {
            self.scan(node);
        }
        self.settle(node);
        for _ in 0..4 {
            let now = self.now;
            let Some(todo) = self.nodes[node].offers.poll(now) else { return };
            match todo {
                Todo::Ask(ids) => {
                    let believes_all = self.rules == Rules::BelievesForgeries;
                    let answers = self.call(node, |valkey, _| {
                        let known = |id: &String| match (valkey.items.get(id), valkey.outcomes.get(id)) {
                            (Some(None), _) => Known::Waiting,
                            (Some(Some(_)), _) => Known::Leased,
                            (None, Some((token, word))) if token.is_empty() && word.starts_with("withdrawn") => {
                                Known::Unsigned(word.clone().into_bytes())
                            }
                            (None, Some((token, _))) if token.is_empty() => Known::Withdrawn,
                            (None, Some((token, result))) if result == FORGED && !believes_all => {
                                Known::Unproven(token.clone().into_bytes())
                            }
                            (None, Some((_, result))) => Known::Completed(result.clone()),
                            (None, None) => Known::Unknown,
                        };
                        ids.iter().map(known).collect::<Vec<_>>()
                    });
                    match answers {
                        Some(answers) => ids.iter().zip(&answers).for_each(|(id, known)| self.nodes[node].offers.known(id, known, now)),
                        None => self.nodes[node].offers.unheard(ids),
                    }
                }
                Todo::Offer(ids) => {
                    for id in ids {
                        // A wish to have it back, refused, makes the shard's answer come late.
                        let is_asked_for = self.owner == Owner::Shares && self.nodes[node].again.contains(&id);
                        assert!(!is_asked_for, "{id} is asked for again before it was given");
                        self.nodes[node].again.push_back(id);
                    }
                }
                Todo::Refuse(records) => {
                    let answers = self.call(node, |valkey, _| {
                        let refuse = |(id, record): &(String, Vec<u8>)| match valkey.outcomes.get(id) {
                            Some(outcome @ (token, word)) if (if token.is_empty() { word } else { token }).as_bytes() == record => {
                                let word = if token.is_empty() { signed(outcome) } else { signed(&withdrawn(0)) };
                                valkey.outcomes.insert(id.clone(), word).is_some()
                            }
                            other => other.is_none(),
                        };
                        records.iter().map(refuse).collect::<Vec<_>>()
                    });
                    let offers = &mut self.nodes[node].offers;
                    match answers {
                        Some(answers) => records.iter().zip(answers).for_each(|((id, _), gone)| offers.refused_record(id, gone, now)),
                        None => offers.unheard(records.into_iter().map(|(id, _)| id).collect()),
                    }
                }
                Todo::Settle(ids) => {
                    for (id, _) in ids {
                        let takes_ms = if self.faults.slow_disks { self.random.below(6000) } else { 0 };
                        self.nodes[node].settling.push((now + Duration::from_millis(takes_ms), id));
                    }
                    self.settle(node);
                }
                Todo::TakeBack(ids) => {
                    for id in ids {
                        if let Some(held @ Held::Offered) = self.nodes[node].spool.get_mut(&id) {
                            *held = Held::Local;
                        }
                    }
                }
                Todo::Withdraw(ids) => {
                    let leaves_trace = self.rules != Rules::WithdrawsWithoutTrace;
                    let answers = self.call(node, |valkey, _| {
                        ids.iter()
                            .map(|id| match valkey.items.get(id) {
                                Some(Some(lease)) if now < lease.until => false,
                                Some(_) => {
                                    valkey.items.remove(id);
                                    if leaves_trace {
                                        valkey.outcomes.insert(id.clone(), withdrawn(valkey.enqueued[id]));
                                    }
                                    true
                                }
                                None => true,
                            })
                            .collect::<Vec<_>>()
                    });
                    match answers {
                        Some(answers) => {
                            ids.iter().zip(answers).for_each(|(id, is_out)| self.nodes[node].offers.withdrawn(id, is_out));
                        }
                        None => self.nodes[node].offers.unheard(ids),
                    }
                }
                Todo::End(ids) => {
                    let ends = self.rules != Rules::WithdrawsWhatIsSettled;
                    let answers = self.call(node, |valkey, _| {
                        ids.iter()
                            .map(|id| match valkey.items.get(id) {
                                Some(Some(lease)) if now < lease.until => Ending::Leased,
                                Some(_) => {
                                    valkey.items.remove(id);
                                    let as_withdrawn = signed(&withdrawn(valkey.enqueued[id]));
                                    let word = if ends { (String::new(), ENDED.to_owned()) } else { as_withdrawn };
                                    valkey.outcomes.insert(id.clone(), word);
                                    Ending::Out
                                }
                                None => Ending::Out,
                            })
                            .collect::<Vec<_>>()
                    });
                    let offers = &mut self.nodes[node].offers;
                    match answers {
                        Some(answers) => ids.iter().zip(answers).for_each(|(id, ending)| offers.ended_there(id, ending)),
                        None => offers.unheard(ids),
                    }
                }
                Todo::Tell(answers) => answers.iter().for_each(|(id, recall)| self.told(node, id, *recall)),
                Todo::Forget(ids) => {
                    let answer = self.call(node, |valkey, _| ids.iter().for_each(|id| drop(valkey.outcomes.remove(id))));
                    for id in ids {
                        self.nodes[node].offers.forgotten(&id, answer.is_some(), now);
                    }
                }
            }
        }
    }

    fn settle(&mut self, node: usize) {
        let now = self.now;
        let Node { spool, offers, settling, .. } = &mut self.nodes[node];
        for (_, id) in settling.extract_if(.., |(at, _)| now >= *at) {
            spool.remove(&id);
            offers.settled(&id, now);
        }
    }
}
