//! Destinations in turn, each once.

use std::collections::hash_map::Entry;

use ringpost_queue::DestinationId;

use super::{
    ByDestination,
    chain::{Chain, Link},
};

/// A line of destinations, which are looked up by what they are: for those that seldom join and leave. Every step is O(1).
#[derive(Default)]
pub(super) struct Line {
    order: Chain,
    members: ByDestination<Link>,
}

impl Line {
    /// At the end, unless it is in the line.
    pub(super) fn join(&mut self, destination: DestinationId) {
        if let Entry::Vacant(member) = self.members.entry(destination) {
            member.insert(self.order.push(destination));
        }
    }

    /// Not in the line any more.
    pub(super) fn leave(&mut self, destination: DestinationId) {
        if let Some(link) = self.members.remove(&destination) {
            self.order.remove(link);
        }
    }

    /// The first, which stays.
    pub(super) fn first(&self) -> Option<DestinationId> {
        self.order.first()
    }

    /// Takes the first out.
    pub(super) fn next(&mut self) -> Option<DestinationId> {
        let first = self.order.pop()?;
        self.members.remove(&first);
        Some(first)
    }

    /// How many are in it.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}
