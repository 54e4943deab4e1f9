//! Destinations in turn, each once.

use std::collections::{VecDeque, hash_map::Entry};

use ringpost_queue::DestinationId;

use super::ByDestination;

/// Places of those that left which are kept beside as many as stand in the line.
const LEFT_MAX: usize = 64;

/// A line of destinations. Every step is O(1), amortized: a place is taken once, and looked at twice more at most.
#[derive(Default)]
pub(super) struct Line {
    /// First to last, with the number of the place; that of one which left is skipped.
    order: VecDeque<(u64, DestinationId)>,
    /// The places that are taken.
    members: ByDestination<u64>,
    joined: u64,
}

impl Line {
    /// At the end, unless it is in the line.
    pub(super) fn join(&mut self, destination: DestinationId) {
        if let Entry::Vacant(place) = self.members.entry(destination) {
            self.joined += 1;
            place.insert(self.joined);
            self.order.push_back((self.joined, destination));
        }
    }

    /// Not in the line any more.
    pub(super) fn leave(&mut self, destination: DestinationId) {
        if self.members.remove(&destination).is_some() && self.order.len() > 2 * self.members.len() + LEFT_MAX {
            self.order.retain(|(place, destination)| self.members.get(destination) == Some(place));
        }
    }

    /// The first, which stays.
    pub(super) fn first(&mut self) -> Option<DestinationId> {
        while let Some(&(place, destination)) = self.order.front() {
            if self.members.get(&destination) == Some(&place) {
                return Some(destination);
            }
            self.order.pop_front();
        }
        None
    }

    /// Takes the first out.
    pub(super) fn next(&mut self) -> Option<DestinationId> {
        let first = self.first()?;
        self.order.pop_front();
        self.members.remove(&first);
        Some(first)
    }

    /// How many are in it.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Places that are held, by those that left, too.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.order.len()
    }
}
