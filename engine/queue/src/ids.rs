//! Which message an id names, and which id a message has.
//!
//! Ids are given out in order, and mail mostly comes in their order and leaves not long after its neighbours. So they are kept in blocks of
//! consecutive ones: the table is looked at for a new block only, and a message knows its place, which is found without a look at the table.

use std::hint::black_box;

use hashbrown::HashTable;
use ringpost_prefetch::prefetch_later;

use crate::queue_id::QueueId;
use crate::slab::{NONE, Slab};

/// Ids of a block. The last message of a block keeps all of it, so this is also what mail that stays behind costs.
const BLOCK_IDS: usize = 8;

#[derive(Debug)]
struct Block {
    boot: u32,
    shard: u16,
    /// How many of its messages are queued.
    queued: u16,
    /// Of its ids, the sequence without the last bits.
    number: u64,
    messages: [u32; BLOCK_IDS],
}

const _: () = assert!(size_of::<Block>() <= 48);

impl Default for Block {
    fn default() -> Self {
        Self { boot: 0, shard: 0, queued: 0, number: 0, messages: [NONE; BLOCK_IDS] }
    }
}

impl Block {
    fn has(&self, id: QueueId) -> bool {
        (self.number, self.boot, self.shard) == (number(id), id.boot, id.shard)
    }

    fn hash(&self) -> u64 {
        hash(self.boot, self.shard, self.number)
    }
}

/// The ids of all queued messages.
#[derive(Debug)]
pub(crate) struct Ids {
    blocks: Slab<Block>,
    table: HashTable<u32>,
    /// The block that the last id was added to, or [`NONE`]: it stays when it is empty, so that a short queue does not make it again and
    /// again.
    current: u32,
    queued: usize,
}

impl Ids {
    pub(crate) const fn new() -> Self {
        Self { blocks: Slab::new(), table: HashTable::new(), current: NONE, queued: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.queued
    }

    /// Adds the id of a message, and returns its place, which finds it again. Panics if it is there already.
    #[inline]
    pub(crate) fn insert(&mut self, id: QueueId, message: u32) -> u32 {
        if !self.blocks.get(self.current).is_some_and(|block| block.has(id)) {
            self.turn_to(id);
        }
        let within = within(id);
        let block = &mut self.blocks[self.current];
        assert!(block.messages[within] == NONE, "an id is given out once");
        block.messages[within] = message;
        block.queued += 1;
        self.queued += 1;
        self.current << BLOCK_IDS.trailing_zeros() | within as u32
    }

    /// Takes out the id at a place.
    #[inline]
    pub(crate) fn remove(&mut self, place: u32) {
        let (index, within) = split(place);
        let block = &mut self.blocks[index];
        block.messages[within] = NONE;
        block.queued -= 1;
        self.queued -= 1;
        if block.queued == 0 && index != self.current {
            self.drop_block(index);
        }
    }

    /// The id at a place.
    #[inline]
    pub(crate) fn id(&self, place: u32) -> QueueId {
        let (block, within) = split(place);
        let Block { boot, shard, number, .. } = self.blocks[block];
        QueueId { boot, shard, sequence: number << BLOCK_IDS.trailing_zeros() | within as u64 }
    }

    /// The message with this id.
    pub(crate) fn find(&self, id: QueueId) -> Option<u32> {
        let message = self.blocks[self.find_block(id)?].messages[within(id)];
        (message != NONE).then_some(message)
    }

    /// Brings the id at a place into the cache by a load.
    #[inline]
    pub(crate) fn load(&self, place: u32) {
        black_box(self.blocks[split(place).0].queued);
    }

    /// Asks for the id at a place, which is wanted later.
    #[inline]
    pub(crate) fn prefetch_later(&self, place: u32) {
        prefetch_later(&self.blocks[split(place).0].queued);
    }

    fn find_block(&self, id: QueueId) -> Option<u32> {
        self.table.find(hash(id.boot, id.shard, number(id)), |&block| self.blocks[block].has(id)).copied()
    }

    /// Makes the block of an id the current one.
    #[inline(never)]
    fn turn_to(&mut self, id: QueueId) {
        let before = std::mem::replace(&mut self.current, NONE);
        if before != NONE && self.blocks[before].queued == 0 {
            self.drop_block(before);
        }
        self.current = self.find_block(id).unwrap_or_else(|| {
            let index = self.blocks.take();
            // Of the last use of the slot no message is left.
            let block = &mut self.blocks[index];
            (block.boot, block.shard, block.number) = (id.boot, id.shard, number(id));
            let (hash, blocks) = (block.hash(), &self.blocks);
            self.table.insert_unique(hash, index, |&other| blocks[other].hash());
            index
        });
    }

    fn drop_block(&mut self, index: u32) {
        let entry = self.table.find_entry(self.blocks[index].hash(), |&other| other == index);
        entry.expect("a block is found by its ids").remove();
        self.blocks.give(index);
    }
}

fn number(id: QueueId) -> u64 {
    id.sequence / BLOCK_IDS as u64
}

fn within(id: QueueId) -> usize {
    (id.sequence % BLOCK_IDS as u64) as usize
}

/// Block and position of a place.
fn split(place: u32) -> (u32, usize) {
    (place / BLOCK_IDS as u32, place as usize % BLOCK_IDS)
}

/// Ids are made by nodes of ours: nobody outside can aim at collisions.
fn hash(boot: u32, shard: u16, number: u64) -> u64 {
    let word = number ^ u64::from(boot) << 32 ^ u64::from(shard) << 17;
    let mixed = (word ^ word >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::retry::Jitter;

    fn some_id(random: &mut Jitter, about: u64) -> QueueId {
        QueueId { boot: random.below(3) as u32, shard: random.below(2) as u16, sequence: about + random.below(40) }
    }

    #[test]
    fn random_operations_agree_with_a_sorted_map() {
        for seed in 0..40 {
            let mut random = Jitter::new(seed);
            let (mut ids, mut model) = (Ids::new(), BTreeMap::<QueueId, (u32, u32)>::new());
            for step in 0..4000_u32 {
                let id = some_id(&mut random, u64::from(step) / 50);
                assert_eq!(ids.find(id), model.get(&id).map(|(message, _)| *message), "seed {seed}, step {step}");
                // More come than leave, or more leave than come.
                let comes = random.below(10) < if step % 1000 < 500 { 7 } else { 2 };
                if comes && !model.contains_key(&id) {
                    model.insert(id, (step, ids.insert(id, step)));
                } else if !comes && let Some((&id, &(_, place))) = model.range(id..).next() {
                    assert_eq!(ids.id(place), id, "seed {seed}, step {step}");
                    ids.remove(place);
                    model.remove(&id);
                }
                assert_eq!(ids.len(), model.len());
            }
            for (id, (message, place)) in model {
                assert_eq!((ids.find(id), ids.id(place)), (Some(message), id), "seed {seed}");
                ids.remove(place);
                assert_eq!(ids.find(id), None);
            }
            assert!(ids.len() == 0 && ids.table.len() <= 1, "seed {seed}: blocks without ids leave");
        }
    }

    #[test]
    #[should_panic(expected = "an id is given out once")]
    fn an_id_that_is_there_is_not_added_again() {
        let (mut ids, id) = (Ids::new(), QueueId { boot: 1, shard: 0, sequence: 9 });
        ids.insert(id, 0);
        ids.insert(QueueId { sequence: 90, ..id }, 1);
        ids.insert(id, 2);
    }
}
