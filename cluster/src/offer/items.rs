//! The items that this node has offered, each in one state.

use std::collections::HashMap;

use crate::boot_time::BootTime;

/// Where an item is in its hand-over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// On its way into the queue.
    Sending,
    /// The queue has it or not: nobody answered, or there was no room. Its content is asked for again.
    Unsure,
    /// The same, and its shard was asked for the content: it answers each item it was asked for, so nothing asks once more.
    Fetching,
    /// No call is known to have brought it in, for too long: to leave the queue, if one has. Then this node delivers it.
    Overdue,
    /// In the queue, by its last word.
    Waiting,
    /// A dead letter that is to be offered once more: to leave the queue first.
    Reviving,
    /// Completed by this node for itself in an earlier run, and this run does not deliver: the queue is to forget that first.
    Freeing,
    /// Another has it; the spool does not know yet.
    Settling,
    /// The spool knows; the queue remembers until then, and is told to forget it.
    Settled {
        /// See there.
        until: BootTime,
    },
    /// Delivered by this node; the queue may have it still.
    Back,
    /// It has come to its end, and the queue has it again: to leave the queue.
    Leftover,
    /// Wanted back while it is on its way into the queue.
    Crossing,
    /// Wanted back: to leave the queue first.
    Recalled,
    /// A shard has it back and may offer it again. A call of before may yet bring it into the queue: it is looked for once more.
    Parted,
    /// The same, looked for. The queue remembers for a while that it was withdrawn: a worker's late claim of it is to be refused.
    Gone {
        /// It is told to forget that then.
        until: BootTime,
    },
}

impl State {
    /// It is offered and nobody is known to have it. The others have come to an end, and are remembered for a bounded time.
    pub(super) fn is_open(self) -> bool {
        match self {
            State::Sending
            | State::Unsure
            | State::Fetching
            | State::Waiting
            | State::Reviving
            | State::Freeing
            | State::Overdue
            | State::Crossing => true,
            State::Settling
            | State::Settled { .. }
            | State::Back
            | State::Leftover
            | State::Recalled
            | State::Parted
            | State::Gone { .. } => false,
        }
    }

    /// Another node may have taken it over: the queue's word on that counts. Not while it is just being sent, nor once that is known.
    pub(super) fn may_be_taken(self) -> bool {
        matches!(
            self,
            State::Unsure
                | State::Fetching
                | State::Overdue
                | State::Waiting
                | State::Reviving
                | State::Back
                | State::Leftover
                | State::Recalled
                | State::Parted
        )
    }

    /// A round asks for it, or tells the queue what it wants.
    pub(super) fn is_asked_about(self) -> bool {
        matches!(self, State::Waiting | State::Unsure | State::Freeing | State::Leftover) || self.is_to_leave()
    }

    /// The queue is not to have it.
    pub(super) fn is_to_leave(self) -> bool {
        matches!(self, State::Back | State::Recalled | State::Parted | State::Reviving | State::Overdue)
    }
}

/// By name.
#[derive(Debug, Default)]
pub(super) struct Items {
    states: HashMap<String, State>,
    open: usize,
}

impl Items {
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// How many are offered, and nobody is known to have them.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    pub(super) fn get(&self, id: &str) -> Option<State> {
        self.states.get(id).copied()
    }

    /// Returns the state before.
    pub(super) fn set(&mut self, id: &str, state: State) -> Option<State> {
        self.open += usize::from(state.is_open());
        let before = match self.states.get_mut(id) {
            Some(held) => Some(std::mem::replace(held, state)),
            None => self.states.insert(id.to_owned(), state),
        };
        self.open -= usize::from(before.is_some_and(State::is_open));
        before
    }

    pub(super) fn remove(&mut self, id: &str) {
        let before = self.states.remove(id);
        self.open -= usize::from(before.is_some_and(State::is_open));
    }

    /// The names in these states.
    pub(super) fn in_states(&self, is_one: impl Fn(State) -> bool) -> Vec<String> {
        self.states.iter().filter(|(_, state)| is_one(**state)).map(|(id, _)| id.clone()).collect()
    }
}
