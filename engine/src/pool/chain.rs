//! Destinations one behind the other, each of which knows where it stands.

use ringpost_queue::DestinationId;
use slab::Slab;

/// Where a destination stands in a [`Chain`], until it is taken out.
pub(super) type Link = usize;

/// Nothing stands before it, or behind it.
const NONE: Link = Link::MAX;

struct Linked {
    destination: DestinationId,
    before: Link,
    behind: Link,
}

/// First to last. Every step is O(1) without a look-up: who leaves says where it stands. Holds as many places as ever stood in it at once.
pub(super) struct Chain {
    links: Slab<Linked>,
    first: Link,
    last: Link,
}

impl Default for Chain {
    fn default() -> Self {
        Chain { links: Slab::new(), first: NONE, last: NONE }
    }
}

impl Chain {
    /// At the end. Nobody is to stand in it twice: the caller keeps what this returns.
    pub(super) fn push(&mut self, destination: DestinationId) -> Link {
        let before = self.last;
        let link = self.links.insert(Linked { destination, before, behind: NONE });
        match before {
            NONE => self.first = link,
            before => self.links[before].behind = link,
        }
        self.last = link;
        link
    }

    /// Takes out who stands there, which [`Chain::push`] has told and nobody has taken out.
    pub(super) fn remove(&mut self, link: Link) -> DestinationId {
        let Linked { destination, before, behind } = self.links.remove(link);
        match before {
            NONE => self.first = behind,
            before => self.links[before].behind = behind,
        }
        match behind {
            NONE => self.last = before,
            behind => self.links[behind].before = before,
        }
        destination
    }

    /// The first, which stays.
    pub(super) fn first(&self) -> Option<DestinationId> {
        Some(self.links.get(self.first)?.destination)
    }

    /// Takes the first out.
    pub(super) fn pop(&mut self) -> Option<DestinationId> {
        (self.first != NONE).then(|| self.remove(self.first))
    }

    /// How many are in it.
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use ringpost_queue::Jitter;

    use super::{super::tests::destinations, *};

    #[test]
    fn random_steps_are_those_of_a_queue_that_is_searched() {
        for seed in 0..100 {
            let (mut random, ids) = (Jitter::new(seed), destinations(8));
            let (mut chain, mut model) = (Chain::default(), VecDeque::new());
            for _ in 0..500 {
                match random.below(5) {
                    0 | 1 => {
                        let id = ids[random.below(8) as usize];
                        model.push_back((chain.push(id), id));
                    }
                    2 | 3 if !model.is_empty() => {
                        let (link, id) = model.remove(random.below(model.len() as u64) as usize).expect("it is within");
                        assert_eq!(chain.remove(link), id, "seed {seed}");
                    }
                    _ => assert_eq!(chain.pop(), model.pop_front().map(|(_, id)| id), "seed {seed}"),
                }
                assert_eq!((chain.first(), chain.len()), (model.front().map(|(_, id)| *id), model.len()), "seed {seed}");
            }
        }
    }
}
