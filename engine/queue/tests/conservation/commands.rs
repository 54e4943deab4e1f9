//! What an operator does to a message, and what the model says of it.

use ringpost_queue::{Filter, RouteId};

use crate::accepted::{Fate, HOUR};
use crate::world::{GIVEN_UP, World};

impl World {
    pub fn command(&mut self) {
        let Some((&id, &key)) = self.keys.iter().nth(self.random.below(self.keys.len().max(1) as u64) as usize) else { return };
        let (now, mut record) = (self.now, Vec::new());
        let is_being_told = self.reporting.iter().any(|(_, other)| *other == id);
        let accepted = self.accepted.get_mut(&id).unwrap();
        let attempting = |number: usize| self.attempting.contains(&(id, number as u16));
        let answer = match self.random.below(14) {
            0..=1 => self.queue.hold(key, now, &mut record).inspect(|_| accepted.held = true),
            2..=4 => self.queue.release(key, now, &mut record).inspect(|_| accepted.held = false),
            5..=6 => self.queue.retry(key, &Filter::default(), now, &mut record).inspect(|_| {
                accepted.fate.iter_mut().filter(|fate| **fate == Fate::Failed && !is_being_told).for_each(|fate| *fate = Fate::Open);
            }),
            7 => self.queue.delete(key, now).inspect(|_| {
                accepted.fate.fill(Fate::Delivered);
                accepted.deleted = true;
            }),
            8..=9 => {
                let at = now + self.random.below(60 * HOUR);
                self.queue.set_expiry(key, at, &mut record).inspect(|_| accepted.expires = Some(at))
            }
            10..=11 => {
                let route = RouteId(self.random.below(5) as u16);
                // At times only those of one domain.
                let domain = accepted.recipients[0].split_once('@').unwrap().1.to_owned();
                let recipient_domain = (self.random.below(2) == 0).then_some(domain);
                let filter = Filter { recipient_domain: recipient_domain.clone(), ..Filter::default() };
                self.queue.reroute(key, &filter, route, now, &mut record).inspect(|_| {
                    for (address, own) in accepted.recipients.iter().zip(&mut accepted.routes) {
                        if recipient_domain.as_ref().is_none_or(|domain| address.ends_with(domain)) {
                            *own = Some(route);
                        }
                    }
                })
            }
            12 => self.queue.bounce(key, &Filter::default(), GIVEN_UP.as_bytes(), now, &mut record).inspect(|_| {
                for (number, fate) in accepted.fate.iter_mut().enumerate().filter(|(_, fate)| **fate == Fate::Open) {
                    *fate = if attempting(number) { Fate::Failing } else { Fate::Failed };
                }
            }),
            _ => {
                let domain = accepted.recipients[0].split_once('@').unwrap().1.to_owned();
                let is_chosen: Vec<bool> = accepted.recipients.iter().map(|address| address.ends_with(&domain)).collect();
                let filter = Filter { recipient_domain: Some(domain), ..Filter::default() };
                // What is being attempted keeps the message until that has ended.
                let leaves = |number: usize, fate: &Fate| !attempting(number) && (fate.is_settled() || is_chosen[number]);
                let takes_all = accepted.fate.iter().enumerate().all(|(number, fate)| leaves(number, fate));
                self.queue.purge(key, &filter, now, &mut record).inspect(|_| {
                    if takes_all {
                        accepted.fate.fill(Fate::Delivered);
                        accepted.deleted = true;
                        return;
                    }
                    for (number, fate) in accepted.fate.iter_mut().enumerate().filter(|(number, _)| is_chosen[*number]) {
                        if matches!(*fate, Fate::Open | Fate::Failing) && attempting(number) {
                            *fate = Fate::Leaving;
                            accepted.left.insert(number as u16);
                        } else if matches!(*fate, Fate::Failed | Fate::Open) {
                            *fate = Fate::Bounced;
                            // Nobody is to be told.
                            self.told.insert((id, number as u16, false), self.restarts);
                        }
                    }
                })
            }
        };
        if let Some(settled) = answer {
            self.persist(id, settled, record);
        }
    }
}
