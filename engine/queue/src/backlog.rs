//! How much this shard has to deliver that goes, destination by destination: by this a node decides whether it takes over mail of others.
//!
//! Mail that is ready at a destination which takes none now (dead, paused, held, asked for less) says nothing about how busy the node
//! is, so it counts for nothing: however much of it there is, mail for other destinations goes on. For the same reason a slow destination
//! counts in part.

use std::collections::HashMap;

use crate::queue::Queue;
use crate::wait::Wait;

/// Messages that one destination counts for in [`Backlog::in_turn`] at most, all shards together.
pub const BACKLOG_PER_DESTINATION_MAX: u64 = 256;
/// And in [`Backlog::ready`].
pub const READY_PER_DESTINATION_MAX: u64 = 2048;

/// Destinations that one step of a walk looks at: some 50 µs where each has mail.
const SLOTS_PER_STEP: usize = 1024;

/// Messages in ready queues, of destinations that take mail now. Domains with the same hosts are one destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backlog {
    /// All of them, but of each destination at most this shard's part of [`READY_PER_DESTINATION_MAX`], and of one that waits for its rate (or
    /// for DNS) as few as in `in_turn`: they go at their time, whatever else this node does, and a day's worth of them is to stop no other
    /// mail.
    pub ready: u64,
    /// Those that wait for their turn and nothing else, of each destination at most this shard's part of [`BACKLOG_PER_DESTINATION_MAX`].
    pub in_turn: u64,
}

/// A walk over the destinations, a step at a time.
#[derive(Debug, Default)]
pub struct BacklogWalk {
    next: usize,
    at_their_time: u64,
    in_turn: HashMap<u32, u64>,
}

/// How mail counts, by what it waits for.
enum Counts {
    /// Nothing here can go.
    Nothing,
    AtItsTime,
    InTurn,
}

impl Queue {
    /// Looks at the next destinations; the sum once all have been looked at. `None`: call it again, others may go first.
    pub fn backlog(&self, walk: &mut BacklogWalk, now: u64) -> Option<Backlog> {
        let end = self.destinations.len().min(walk.next + SLOTS_PER_STEP);
        for slot in walk.next..end {
            let ready = self.destinations[slot].ready.len() as u64;
            if ready == 0 {
                continue;
            }
            let slot = slot as u32;
            match counts(self.wait_of(slot, now)) {
                Counts::Nothing => {}
                Counts::AtItsTime => walk.at_their_time += ready.min(self.backlog_part(BACKLOG_PER_DESTINATION_MAX)),
                Counts::InTurn => *walk.in_turn.entry(self.acting_slot(slot)).or_default() += ready,
            }
        }
        walk.next = end;
        let in_turn = |max| walk.in_turn.values().map(|ready| (*ready).min(self.backlog_part(max))).sum::<u64>();
        (end == self.destinations.len()).then(|| Backlog {
            ready: walk.at_their_time + in_turn(READY_PER_DESTINATION_MAX),
            in_turn: in_turn(BACKLOG_PER_DESTINATION_MAX),
        })
    }

    /// Mail for one destination is spread over all shards.
    fn backlog_part(&self, messages: u64) -> u64 {
        (messages / u64::from(self.settings.homes.shards)).max(1)
    }
}

fn counts(wait: Wait) -> Counts {
    match wait {
        Wait::Held
        | Wait::Paused
        | Wait::Unanswered { .. }
        | Wait::BreakerOpen { .. }
        | Wait::Probing
        | Wait::Throttled { .. }
        | Wait::Crowded { .. } => Counts::Nothing,
        Wait::Asking | Wait::Rate { .. } | Wait::SharedRate { .. } | Wait::SharedShut { .. } => Counts::AtItsTime,
        Wait::Shortage { .. } | Wait::Window { .. } | Wait::Full { .. } | Wait::Home { .. } | Wait::Turn => Counts::InTurn,
    }
}
