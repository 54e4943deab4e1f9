//! Mail of other shards that waits for its turn at this home, by what its owners call the destination.

use std::collections::BTreeMap;

use crate::canonical::canonical_domain;
use crate::queue::Queue;
use crate::route::Via;
use crate::routes::DOMAIN_BYTES_MAX;

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

    /// What the destination of a domain is called.
    pub(crate) fn domain_name(&self, domain: &[u8]) -> String {
        let domain = canonical_domain(domain.strip_suffix(b".").unwrap_or(domain));
        String::from_utf8_lossy(&domain[..domain.len().min(DOMAIN_BYTES_MAX)]).to_ascii_lowercase()
    }
}
