//! From a message's id to its place in the slab: open addressing over 4-byte slots, because a queued message may cost little memory.

/// Linear probing, load at most 3/4, deletion by shifting back. The ids themselves stand in the slab.
#[derive(Default)]
pub(crate) struct IdTable {
    slots: Vec<u32>,
    used: usize,
}

const EMPTY: u32 = u32::MAX;

impl IdTable {
    /// The slab index for which `is_it` holds, among those of this hash.
    pub(crate) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at] != EMPTY {
            if is_it(self.slots[at]) {
                return Some(self.slots[at]);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Adds an index that isn't in the table. `hash_of` tells the hash of those that are, for when the table grows.
    pub(crate) fn insert(&mut self, hash: u64, index: u32, hash_of: impl Fn(u32) -> u64) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let larger = vec![EMPTY; (self.slots.len() * 2).max(64)];
            for index in std::mem::replace(&mut self.slots, larger) {
                if index != EMPTY {
                    self.place(hash_of(index), index);
                }
            }
        }
        self.place(hash, index);
        self.used += 1;
    }

    /// Takes an index out that is in the table.
    pub(crate) fn remove(&mut self, hash: u64, index: u32, hash_of: impl Fn(u32) -> u64) {
        let mask = self.slots.len() - 1;
        let mut hole = hash as usize & mask;
        while self.slots[hole] != index {
            assert!(self.slots[hole] != EMPTY, "the index is in the table");
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            if self.slots[at] == EMPTY {
                break;
            }
            let home = hash_of(self.slots[at]) as usize & mask;
            // What stands at `at` may move into the hole unless its home lies behind the hole.
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
        }
        self.slots[hole] = EMPTY;
        self.used -= 1;
    }

    fn place(&mut self, hash: u64, index: u32) {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.slots[at] = index;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn random_operations_agree_with_a_hash_map() {
        // Few distinct hashes, so that runs are long and deletions shift.
        let hash_of = |index: u32| u64::from(index % 7) * 9;
        let (mut table, mut model, mut state) = (IdTable::default(), HashMap::new(), 1u64);
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let index = (state >> 40) as u32 % 300;
            let known = table.find(hash_of(index), |other| other == index);
            assert_eq!(known, model.get(&index).copied());
            if known.is_some() {
                table.remove(hash_of(index), index, hash_of);
                model.remove(&index);
            } else {
                table.insert(hash_of(index), index, hash_of);
                model.insert(index, index);
            }
        }
    }
}
