//! Destinations by the names that people know them by: several can have the same one, a domain and a site, or a domain in two routes.

use std::hash::{BuildHasher, Hasher, RandomState};

use hashbrown::HashTable;

use crate::destination::Destination;
use crate::destination_id::DestinationId;
use crate::domain_name::canonical_domain;
use crate::queue::Queue;

/// The slots of all destinations in use.
#[derive(Debug, Default)]
pub(crate) struct Names {
    slots: HashTable<u32>,
    /// Domains come from outside: nobody is to choose those that collide.
    hasher: RandomState,
}

impl Names {
    pub(crate) fn insert(&mut self, slot: u32, destinations: &[Destination]) {
        let hasher = &self.hasher;
        let hash = |&slot: &u32| hash(hasher, &destinations[slot as usize].name);
        self.slots.insert_unique(hash(&slot), slot, hash);
    }

    /// Before its name is another.
    pub(crate) fn remove(&mut self, slot: u32, name: &str) {
        let entry = self.slots.find_entry(hash(&self.hasher, name), |&other| other == slot);
        entry.expect("each destination in use is found by its name").remove();
    }
}

/// Case does not matter.
fn hash(hasher: &RandomState, name: &str) -> u64 {
    let mut state = hasher.build_hasher();
    name.bytes().for_each(|byte| state.write_u8(byte.to_ascii_lowercase()));
    state.finish()
}

impl Queue {
    /// The destinations with this name, in any case: see [`DestinationView::name`](crate::DestinationView::name).
    pub fn destinations_named(&self, name: &str) -> impl Iterator<Item = DestinationId> + use<'_> {
        let names = &self.directory.names;
        // Domains are called by their A-labels.
        let name = String::from_utf8_lossy(&canonical_domain(name.as_bytes())).into_owned();
        let same = names.slots.iter_hash(hash(&names.hasher, &name));
        same.copied().filter(move |&slot| self.destinations[slot as usize].name.eq_ignore_ascii_case(&name)).map(|slot| self.id(slot))
    }
}
