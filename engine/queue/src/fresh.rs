//! Messages that wait to be put into the lists of their domains, in the order of their coming.
//!
//! Most have left before their turn comes, and their places in memory are others' by then. Each knows where it waits and takes itself out, so
//! that nothing is looked for in messages that have nothing to do with it and are in no cache.

use ringpost_prefetch::prefetch_later;

use crate::slab::NONE;

/// Messages that wait to be linked: so many may pass unlisted, and so many are linked at once when somebody asks.
pub(crate) const FRESH_MAX: usize = 16_384;

/// Messages linked at once, each time so many have come. None is in the cache any more: what is loaded for several at a time takes little
/// longer than what is loaded for one.
pub(crate) const LINKED_AT_ONCE: usize = 16;

/// A ring of [`FRESH_MAX`] messages at most.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// [`NONE`] in place of those that have left.
    messages: Box<[u32; FRESH_MAX]>,
    /// The place of the next message that comes; places are counted on and on.
    next: u32,
    oldest: u32,
}

const _: () = assert!(FRESH_MAX.is_power_of_two(), "places go round in the ring when their count overflows, too");

impl Fresh {
    /// Nobody waits.
    pub(crate) fn new() -> Self {
        let messages: Box<[u32]> = vec![NONE; FRESH_MAX].into();
        Self { messages: messages.try_into().unwrap_or_else(|_| unreachable!("so many were made")), next: 0, oldest: 0 }
    }

    /// How many wait; those that have left count, too, until their turn comes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.next.wrapping_sub(self.oldest) as usize
    }

    /// Adds a message, and returns its place for [`Fresh::leave`]. When it is full the oldest go first.
    #[inline]
    pub(crate) fn push(&mut self, message: u32) -> u32 {
        debug_assert!(self.len() < FRESH_MAX, "the oldest are taken in time");
        let place = self.next;
        self.messages[place as usize % FRESH_MAX] = message;
        self.next = place.wrapping_add(1);
        place
    }

    /// A message leaves the queue, whether or not its turn has come.
    #[inline]
    pub(crate) fn leave(&mut self, place: u32, message: u32) {
        let waiting = &mut self.messages[place as usize % FRESH_MAX];
        // If its turn has come another message may be here by now.
        if *waiting == message {
            *waiting = NONE;
        }
    }

    /// Takes the oldest that has not left.
    pub(crate) fn pop(&mut self) -> Option<u32> {
        while self.len() > 0 {
            let message = self.messages[self.oldest as usize % FRESH_MAX];
            self.oldest = self.oldest.wrapping_add(1);
            if message != NONE {
                return Some(message);
            }
        }
        None
    }

    /// Takes as many places as are linked at once, whose messages are written into the first of `messages`: so many have not left. There are
    /// more places than twice that.
    pub(crate) fn pop_some(&mut self, messages: &mut [u32; LINKED_AT_ONCE]) -> usize {
        let count = self.peek_some(messages);
        self.oldest = self.oldest.wrapping_add(LINKED_AT_ONCE as u32);
        // They were written long ago, and are asked for in time to be looked at.
        prefetch_later(&self.messages[self.oldest.wrapping_add(LINKED_AT_ONCE as u32) as usize % FRESH_MAX]);
        count
    }

    /// As [`Fresh::pop_some`], without taking them.
    pub(crate) fn peek_some(&self, messages: &mut [u32; LINKED_AT_ONCE]) -> usize {
        let mut count = 0;
        for ahead in 0..LINKED_AT_ONCE as u32 {
            messages[count] = self.messages[self.oldest.wrapping_add(ahead) as usize % FRESH_MAX];
            count += usize::from(messages[count] != NONE);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::retry::Jitter;

    /// Who comes has any number that nobody else has just then, as slots of messages are used again.
    #[test]
    fn random_operations_agree_with_a_deque() {
        for seed in 0..10 {
            let mut random = Jitter::new(seed);
            let (mut fresh, mut model) = (Fresh::new(), VecDeque::new());
            // Those that are queued, linked or not: message and place.
            let mut queued: Vec<(u32, u32)> = Vec::new();
            let mut free: Vec<u32> = (0..2 * FRESH_MAX as u32).collect();
            // Places go on behind the largest number.
            (fresh.next, fresh.oldest) = (u32::MAX - 1000, u32::MAX - 1000);
            for step in 0..60_000 {
                let comes = random.below(10) < if step % 40_000 < 30_000 { 8 } else { 3 };
                if comes && let Some(message) = free.pop() {
                    queued.push((message, fresh.push(message)));
                    model.push_back(Some(message));
                    if fresh.len() == FRESH_MAX {
                        let mut some = [0; LINKED_AT_ONCE];
                        let count = fresh.pop_some(&mut some);
                        let expected: Vec<u32> = model.drain(..LINKED_AT_ONCE).flatten().collect();
                        assert_eq!(some[..count], expected, "seed {seed}, step {step}");
                    }
                } else if !queued.is_empty() {
                    let (message, place) = queued.swap_remove(random.below(queued.len() as u64) as usize);
                    fresh.leave(place, message);
                    model.iter_mut().filter(|waiting| **waiting == Some(message)).for_each(|waiting| *waiting = None);
                    free.push(message);
                }
                assert_eq!(fresh.len(), model.len());
                if random.below(5000) == 0 {
                    for _ in 0..random.below(300) {
                        let expected = std::iter::from_fn(|| model.pop_front()).find_map(|waiting| waiting);
                        assert_eq!(fresh.pop(), expected, "seed {seed}, step {step}");
                    }
                }
            }
            let rest: Vec<u32> = std::iter::from_fn(|| fresh.pop()).collect();
            assert_eq!(rest, model.into_iter().flatten().collect::<Vec<_>>(), "seed {seed}");
        }
    }
}
