//! Mail of other shards that waits for its turn at this home, by what its owners call the destination.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain_name::{DOMAIN_BYTES_MAX, canonical_domain};
use crate::guest::Guest;
use crate::guests::Waiting;
use crate::queue::Queue;
use crate::queue_id::QueueId;
use crate::route::Via;

impl Queue {
    /// Recipients of other shards that wait here, by the name of the destination that they have there: their owners know only that they
    /// are out, and count them among those being attempted. Goes over the guests that are here.
    pub fn guests_in_turn(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for guest in self.guests.in_turn() {
            let Some(route) = self.routes.all().get(usize::from(guest.route)) else { continue };
            for (_, address) in guest.recipients() {
                let name = match route.via {
                    Via::Mx { .. } => self.domain_name(self.domain_of(address)),
                    _ => route.pattern.clone(),
                };
                *counts.entry(name).or_default() += 1;
            }
        }
        counts
    }

    /// Of these messages, those recipients that wait here, by their numbers. Goes over the guests that are here.
    pub fn guests_in_turn_of(&self, ids: &BTreeSet<QueueId>) -> Vec<(QueueId, Vec<u16>)> {
        let wanted = self.guests.in_turn().filter(|guest| ids.contains(&guest.id()));
        wanted.map(|guest| (guest.id(), guest.recipients().map(|(number, _)| number).collect())).collect()
    }

    /// Takes those out that wait for a destination and are such; the others keep their order. The caller calls `Queue::refresh`.
    pub(crate) fn take_guests_that(&mut self, destination: u32, are_such: impl Fn(&Queue, &Guest) -> bool) -> Vec<Guest> {
        let guests = &mut self.destinations[destination as usize].guests;
        let waiting: Vec<Waiting> = std::iter::from_fn(|| guests.take(0)).collect();
        let mut taken = Vec::new();
        for one in waiting {
            if are_such(self, self.guests.at(one.slot).expect("a waiting guest is in the book")) {
                taken.push(self.guests.remove(one.slot));
            } else {
                self.destinations[destination as usize].guests.push(one);
            }
        }
        taken
    }

    /// What the destination of a domain is called.
    pub(crate) fn domain_name(&self, domain: &[u8]) -> String {
        let domain = canonical_domain(domain.strip_suffix(b".").unwrap_or(domain));
        String::from_utf8_lossy(&domain[..domain.len().min(DOMAIN_BYTES_MAX)]).to_ascii_lowercase()
    }
}
