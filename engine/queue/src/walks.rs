//! Listings that go on in a later call: each stands on an element of a list and is moved along when that element leaves.

use std::sync::Arc;

use crate::destination_id::DestinationId;

/// Listings that can be under way; a further one ends the one that was used longest ago.
pub(crate) const WALKS_MAX: usize = 32;

/// Which lists a walk goes along.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Chain {
    /// Nodes of a term.
    Term,
    /// Groups of a destination.
    Groups,
}

/// Where a walk stands.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    pub(crate) chain: Chain,
    /// The next element, or [`NONE`](crate::slab::NONE) at the end of a list.
    pub(crate) at: u32,
    /// Of groups: the destinations whose lists are walked, by slot. Those of a large site are many, but they are the ones with mail.
    pub(crate) lists: Arc<[DestinationId]>,
    /// Which of them it is in.
    pub(crate) list: usize,
}

impl Position {
    /// The beginning of a term's list.
    pub(crate) fn in_term(first: u32) -> Self {
        Self { chain: Chain::Term, at: first, lists: Arc::default(), list: 0 }
    }
}

#[derive(Debug)]
struct Walk {
    number: u32,
    position: Position,
    used: u32,
}

/// The walks under way.
#[derive(Debug, Default)]
pub(crate) struct Walks {
    walks: Vec<Walk>,
    numbers: u32,
    clock: u32,
}

impl Walks {
    /// Leaves a listing for a later call; the number finds it again.
    pub(crate) fn rest(&mut self, position: Position) -> u32 {
        self.clock = self.clock.wrapping_add(1);
        self.numbers = self.numbers.wrapping_add(1);
        let walk = Walk { number: self.numbers, position, used: self.clock };
        if self.walks.len() < WALKS_MAX {
            self.walks.push(walk);
        } else if let Some(oldest) = self.walks.iter_mut().min_by_key(|walk| walk.used) {
            *oldest = walk;
        }
        self.numbers
    }

    /// Where a listing goes on; it is known no more afterwards.
    pub(crate) fn resume(&mut self, number: u32) -> Option<Position> {
        let at = self.walks.iter().position(|walk| walk.number == number)?;
        Some(self.walks.swap_remove(at).position)
    }

    /// An element leaves its list: who stands on it goes on with the one behind.
    #[inline]
    pub(crate) fn leaves(&mut self, chain: Chain, at: u32, next: u32) {
        for position in self.walks.iter_mut().map(|walk| &mut walk.position) {
            if position.at == at && position.chain == chain {
                position.at = next;
            }
        }
    }
}
