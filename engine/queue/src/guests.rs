//! The guests that wait for one destination, and whose turn it is: see `guest.rs`.

use std::collections::VecDeque;

/// Of mail of two priorities at a home, its own and guests', one of the lower goes after so many of the higher.
const PASSED_OVER_MAX: u8 = 16;

/// One of them: its place in the book.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    /// Time of arrival, and what its priority is worth in waiting.
    pub(crate) turn: u64,
    pub(crate) slot: u32,
    pub(crate) owner: u16,
    pub(crate) priority: u8,
}

/// The guests that wait for one destination.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    /// By turn.
    waiting: VecDeque<Waiting>,
    /// Shards with guests waiting, and how many.
    owners: Vec<(u16, u32)>,
    /// Guests that go before it is the home's own mail's turn.
    turns_left: usize,
    passed_over: u8,
}

impl Guests {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, guest: Waiting) {
        let at = self.waiting.iter().rposition(|other| other.turn <= guest.turn).map_or(0, |before| before + 1);
        self.waiting.insert(at, guest);
        match self.owners.iter_mut().find(|(owner, _)| *owner == guest.owner) {
            Some((_, count)) => *count += 1,
            None => self.owners.push((guest.owner, 1)),
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        let guest = self.waiting.pop_front()?;
        let at = self.owners.iter().position(|(owner, _)| *owner == guest.owner).expect("each is counted");
        self.owners[at].1 -= 1;
        if self.owners[at].1 == 0 {
            self.owners.swap_remove(at);
        }
        Some(guest)
    }

    /// Is it a guest's turn, when the best of the home's own mail has priority `own`?
    pub(crate) fn go_first(&mut self, own: Option<u8>) -> bool {
        let (Some(guest), Some(own)) = (self.waiting.front(), own) else { return !self.waiting.is_empty() };
        if guest.priority == own {
            self.passed_over = 0;
            return match self.turns_left.checked_sub(1) {
                Some(left) => {
                    self.turns_left = left;
                    true
                }
                None => {
                    self.turns_left = self.owners.len();
                    false
                }
            };
        }
        let higher = guest.priority > own;
        self.passed_over += 1;
        if self.passed_over > PASSED_OVER_MAX {
            self.passed_over = 0;
            return !higher;
        }
        higher
    }
}
