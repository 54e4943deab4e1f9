//! The guests that wait for one destination, and whose turn it is: see `guest.rs`.

use std::collections::VecDeque;

/// Of mail of two priorities at a home, its own and guests', one of the lower goes after so many of the higher.
const PASSED_OVER_MAX: u8 = 16;

/// One of them: its place in the book.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    /// Time of arrival, and what its priority is worth in waiting; 0: it goes before all others.
    pub(crate) turn: u64,
    pub(crate) slot: u32,
    pub(crate) owner: u16,
    pub(crate) priority: u8,
}

/// The guests that wait for one destination. Most destinations never have one.
#[derive(Debug, Default)]
pub(crate) struct Guests(Option<Box<Present>>);

#[derive(Debug, Default)]
struct Present {
    /// By turn.
    waiting: VecDeque<Waiting>,
    /// Shards with guests waiting, and how many.
    owners: Vec<(u16, u32)>,
    /// Guests that go before it is the home's own mail's turn.
    turns_left: usize,
    passed_over: u8,
}

impl Guests {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |present| present.waiting.len())
    }

    pub(crate) fn push(&mut self, guest: Waiting) {
        self.0.get_or_insert_default().push(guest);
    }

    /// The first one goes before all others, the home's own mail included.
    pub(crate) fn has_chosen(&self) -> bool {
        self.0.as_ref().is_some_and(|present| present.has_chosen())
    }

    /// All of them: no more than the credits of their owners.
    pub(crate) fn in_turn(&self) -> impl Iterator<Item = &Waiting> {
        self.0.iter().flat_map(|present| &present.waiting)
    }

    /// Takes out the one at this place, counted from the front.
    pub(crate) fn take(&mut self, place: usize) -> Option<Waiting> {
        self.0.as_mut()?.take(place)
    }

    /// Is it a guest's turn, when the best of the home's own mail has priority `own`?
    pub(crate) fn go_first(&mut self, own: Option<u8>) -> bool {
        self.0.as_mut().is_some_and(|present| present.go_first(own))
    }
}

impl Present {
    fn push(&mut self, guest: Waiting) {
        let at = self.waiting.iter().rposition(|other| other.turn <= guest.turn).map_or(0, |before| before + 1);
        self.waiting.insert(at, guest);
        match self.owners.iter_mut().find(|(owner, _)| *owner == guest.owner) {
            Some((_, count)) => *count += 1,
            None => self.owners.push((guest.owner, 1)),
        }
    }

    fn has_chosen(&self) -> bool {
        self.waiting.front().is_some_and(|guest| guest.turn == 0)
    }

    fn take(&mut self, place: usize) -> Option<Waiting> {
        let guest = self.waiting.remove(place)?;
        let at = self.owners.iter().position(|(owner, _)| *owner == guest.owner).expect("each is counted");
        self.owners[at].1 -= 1;
        if self.owners[at].1 == 0 {
            self.owners.swap_remove(at);
        }
        Some(guest)
    }

    fn go_first(&mut self, own: Option<u8>) -> bool {
        let (Some(guest), Some(own)) = (self.waiting.front(), own) else { return !self.waiting.is_empty() };
        if self.has_chosen() {
            return true;
        }
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
