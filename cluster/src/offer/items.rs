//! The items that this node has offered, each in one state.

use std::{collections::HashMap, sync::Arc};

use crate::{boot_time::BootTime, work_queue::partition_of};

/// So many items a walk looks at in one turn: some tenths of a millisecond in which nobody else has them.
pub(super) const WALK_ITEMS: usize = 2048;

/// Where an item is in its hand-over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// On its way into the queue.
    Sending {
        /// A message says that a worker has completed it: the answer to this call comes later, and then the queue is asked.
        is_done: bool,
    },
    /// The queue has it or not: nobody answered, or there was no room. Its content is asked for again.
    Unsure,
    /// The same, and its shard was asked for the content: it answers each item it was asked for, so nothing asks once more.
    Fetching,
    /// No call is known to have brought it in, for too long, or no worker can read it: to leave the queue, if it is there. Then this node delivers it.
    Overdue,
    /// In the queue, by its last word.
    Waiting,
    /// A dead letter, or what workers cannot read, that is to be offered once more: to leave the queue first.
    Reviving,
    /// Completed by this node for itself, and it does not deliver any more: the queue is to forget that first.
    Freeing,
    /// Another has it; the spool does not know yet.
    Settling {
        /// The queue has gone back in time and has it again: to leave the queue once the spool knows.
        is_again: bool,
    },
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
            State::Sending { .. }
            | State::Unsure
            | State::Fetching
            | State::Waiting
            | State::Reviving
            | State::Freeing
            | State::Overdue
            | State::Crossing => true,
            State::Settling { .. }
            | State::Settled { .. }
            | State::Back
            | State::Leftover
            | State::Recalled
            | State::Parted
            | State::Gone { .. } => false,
        }
    }

    /// A call has brought it into the queue, as far as this node has heard, or it has come to its end.
    pub(super) fn was_brought_in(self) -> bool {
        !matches!(self, State::Sending { .. } | State::Unsure | State::Fetching | State::Overdue | State::Crossing)
    }

    /// Another node may have taken it over: the queue's word on that counts. Not while it is just being sent, nor once that is known.
    pub(super) fn may_be_taken(self) -> bool {
        self == State::Leftover || self.is_this_nodes()
    }

    /// As far as is known this node has the mail, and nobody else: it can sign that.
    pub(super) fn is_this_nodes(self) -> bool {
        matches!(
            self,
            State::Unsure
                | State::Fetching
                | State::Overdue
                | State::Waiting
                | State::Reviving
                | State::Back
                | State::Recalled
                | State::Parted
        )
    }

    /// It has come to its end, and is remembered for a while.
    pub(super) fn is_past(self) -> bool {
        matches!(self, State::Settled { .. } | State::Gone { .. })
    }

    /// A round asks for it, or tells the queue what it wants.
    pub(super) fn is_asked_about(self) -> bool {
        matches!(self, State::Waiting | State::Unsure | State::Freeing | State::Leftover) || self.is_to_leave()
    }

    /// A worker may have it while it is to leave the queue, and that is waited for.
    pub(super) fn can_be_held(self) -> bool {
        matches!(self, State::Back | State::Parted | State::Leftover)
    }

    /// The queue is not to have it.
    pub(super) fn is_to_leave(self) -> bool {
        matches!(self, State::Back | State::Recalled | State::Parted | State::Reviving | State::Overdue)
    }
}

/// By partition and name.
#[derive(Debug)]
pub(super) struct Items {
    partitions: Vec<Partition>,
    counts: Counts,
}

/// How many are in which state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Remembered.
    all: usize,
    /// Offered, and nobody is known to have them.
    pub(super) open: usize,
    /// Delivered here and to leave the queue.
    pub(super) back: usize,
    /// Wanted back, and not known to be out.
    pub(super) recalled: usize,
    /// Out, and to be looked for once more.
    pub(super) parted: usize,
}

impl Counts {
    /// What an item in such a state counts.
    fn of(state: State) -> Counts {
        Counts {
            all: 1,
            open: state.is_open().into(),
            back: (state == State::Back).into(),
            recalled: (state == State::Recalled).into(),
            parted: (state == State::Parted).into(),
        }
    }

    fn change(&mut self, before: Option<State>, after: Option<State>) {
        let (less, more) = (before.map(Counts::of).unwrap_or_default(), after.map(Counts::of).unwrap_or_default());
        let Counts { all, open, back, recalled, parted } = self;
        *all = *all + more.all - less.all;
        *open = *open + more.open - less.open;
        *back = *back + more.back - less.back;
        *recalled = *recalled + more.recalled - less.recalled;
        *parted = *parted + more.parted - less.parted;
    }
}

#[derive(Debug, Default)]
struct Partition {
    /// In no order, and with no gap: what is removed gives its place to the last.
    live: Vec<(Arc<str>, State)>,
    places: HashMap<Arc<str>, usize>,
    /// Those that no walk looks at: in a busy minute they are many more than the others.
    past: HashMap<Arc<str>, State>,
}

/// How far a walk through the items of one partition is: from the last place to the first, so that it meets all that are there from its beginning to its
/// end, whatever comes and goes between two turns. Some it meets twice, and none that came in meanwhile.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) partition: u16,
    below: usize,
}

impl Items {
    pub(super) fn new(partitions: u16) -> Items {
        Items { partitions: (0..partitions).map(|_| Partition::default()).collect(), counts: Counts::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.counts.all
    }

    /// How many are in which state.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    fn number(&self, id: &str) -> usize {
        usize::from(partition_of(id, u16::try_from(self.partitions.len()).expect("it was made of one")))
    }

    pub(super) fn get(&self, id: &str) -> Option<State> {
        let Partition { live, places, past } = &self.partitions[self.number(id)];
        places.get(id).map(|place| live[*place].1).or_else(|| past.get(id).copied())
    }

    /// Returns the state before.
    pub(super) fn set(&mut self, id: &str, state: State) -> Option<State> {
        let number = self.number(id);
        let partition = &mut self.partitions[number];
        let before = match partition.places.get(id).filter(|_| !state.is_past()) {
            Some(place) => Some(std::mem::replace(&mut partition.live[*place].1, state)),
            None => {
                let before = partition.remove(id);
                partition.insert(id.into(), state);
                before
            }
        };
        self.counts.change(before, Some(state));
        before
    }

    pub(super) fn remove(&mut self, id: &str) {
        let number = self.number(id);
        let before = self.partitions[number].remove(id);
        self.counts.change(before, None);
    }

    /// A walk through the items of a partition.
    pub(super) fn walk(&self, partition: u16) -> Walk {
        Walk { partition, below: self.partitions[usize::from(partition)].live.len() }
    }

    /// The next names on a walk that are in such a state, of as many items as are left of `looks`; false: that was all of it.
    pub(super) fn go_on(&self, walk: &mut Walk, looks: &mut usize, is_one: impl Fn(State) -> bool, found: &mut Vec<String>) -> bool {
        let live = &self.partitions[usize::from(walk.partition)].live;
        let end = walk.below.min(live.len());
        let begin = end.saturating_sub(*looks);
        found.extend(live[begin..end].iter().rev().filter(|(_, state)| is_one(*state)).map(|(id, _)| (**id).to_owned()));
        *looks -= end - begin;
        walk.below = begin;
        begin > 0
    }
}

impl Partition {
    fn insert(&mut self, id: Arc<str>, state: State) {
        if state.is_past() {
            self.past.insert(id, state);
        } else {
            self.places.insert(id.clone(), self.live.len());
            self.live.push((id, state));
        }
    }

    fn remove(&mut self, id: &str) -> Option<State> {
        let Some(place) = self.places.remove(id) else { return self.past.remove(id) };
        let (_, before) = self.live.swap_remove(place);
        if let Some((moved, _)) = self.live.get(place) {
            *self.places.get_mut(moved).expect("each that is live has its place") = place;
        }
        Some(before)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    const STATES: [State; 5] = [
        State::Sending { is_done: false },
        State::Waiting,
        State::Back,
        State::Settling { is_again: false },
        State::Settled { until: BootTime::after_boot(std::time::Duration::ZERO) },
    ];

    /// Beside a plain map; and whatever is in a state when a walk begins, and stays in it, is met by the walk.
    #[test]
    fn items_are_those_of_a_plain_map_and_a_walk_meets_all_that_stay() {
        for seed in 0..50 {
            let (mut random, mut items, mut model) = (Random(seed), Items::new(3), BTreeMap::new());
            let mut change = |items: &mut Items, model: &mut BTreeMap<String, State>| {
                let id = random.below(400).to_string();
                if random.below(4) == 0 {
                    items.remove(&id);
                    model.remove(&id);
                } else {
                    let state = STATES[random.below(STATES.len() as u64) as usize];
                    assert_eq!(items.set(&id, state), model.insert(id.clone(), state));
                }
                id
            };
            (0..2000).for_each(|_| drop(change(&mut items, &mut model)));
            let is_one = |state: State| state == State::Waiting || state == State::Back;
            let mut waiting: Vec<String> = model.iter().filter(|(_, state)| is_one(**state)).map(|(id, _)| id.clone()).collect();
            for partition in 0..3 {
                let (mut walk, mut met) = (items.walk(partition), Vec::new());
                while items.go_on(&mut walk, &mut 7, is_one, &mut met) {
                    for _ in 0..5 {
                        let changed = change(&mut items, &mut model);
                        waiting.retain(|id| *id != changed);
                    }
                }
                waiting.retain(|id| !met.contains(id));
            }
            assert!(waiting.is_empty(), "seed {seed}: {waiting:?}");
            assert_eq!(items.len(), model.len());
            assert_eq!(items.counts().open, model.values().filter(|state| state.is_open()).count());
            assert!(model.iter().all(|(id, state)| items.get(id) == Some(*state)));
        }
    }
}
