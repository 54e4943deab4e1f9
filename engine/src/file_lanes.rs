//! Whose work on files is next: each route waits in a lane of its own, and what hangs in one does not hold up the others. Pure.
//!
//! Work of a lane is on few threads at a time. What nobody waits for any more (its time is over) is stuck: it keeps its thread, which nothing can
//! take from a system call, but not its place in the lane. A lane with [`STUCK_MAX`] of these is shut: more would end as they did.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

/// Work of one lane that is on threads at a time. They wait for disks, mostly.
pub const RUNNING_MAX: usize = 2;
/// Stuck work with which a lane is shut. Up to `RUNNING_MAX - 1` more can become stuck, which was begun before.
pub const STUCK_MAX: usize = 4;
/// Work that may wait in one lane; attempts are bounded by the limits of their destinations, long before this.
pub const WAITING_MAX: usize = 1024;

/// What was found when the time of work was over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GivenUp {
    /// It had no turn yet, and has none any more.
    Withdrawn,
    /// It had no turn yet, and goes on with something: it has its turn all the same, to leave nothing behind.
    Waits,
    /// It is on a thread and stays there.
    Stuck,
    /// It is done.
    Ended,
}

struct Waiting<J> {
    number: u64,
    job: J,
    goes_on: bool,
}

/// Work of one lane.
struct Lane<J> {
    name: Box<str>,
    waiting: VecDeque<Waiting<J>>,
    running: Vec<u64>,
    /// With the place where each hangs.
    stuck: Vec<(u64, PathBuf)>,
}

/// The lanes that have any work.
pub struct FileLanes<J> {
    lanes: Vec<Lane<J>>,
    /// The lane after the one that was served last.
    turn: usize,
    numbers: u64,
}

impl<J> Default for FileLanes<J> {
    fn default() -> Self {
        FileLanes { lanes: Vec::new(), turn: 0, numbers: 0 }
    }
}

impl<J> FileLanes<J> {
    /// Puts work into a lane; its number is for the other functions. What goes on with something is always taken, in front of what does not;
    /// of other work the lane is full with [`WAITING_MAX`]: `None`.
    pub fn enter(&mut self, lane: &str, job: J, goes_on: bool) -> Option<u64> {
        let at = self.lanes.iter().position(|known| &*known.name == lane).unwrap_or_else(|| {
            self.lanes.push(Lane { name: lane.into(), waiting: VecDeque::new(), running: Vec::new(), stuck: Vec::new() });
            self.lanes.len() - 1
        });
        let waiting = &mut self.lanes[at].waiting;
        if !goes_on && waiting.len() >= WAITING_MAX {
            return None;
        }
        self.numbers += 1;
        let place = if goes_on { waiting.iter().take_while(|other| other.goes_on).count() } else { waiting.len() };
        waiting.insert(place, Waiting { number: self.numbers, job, goes_on });
        Some(self.numbers)
    }

    /// How much may be begun now.
    pub fn runnable(&self) -> usize {
        self.lanes.iter().map(|lane| lane.waiting.len().min(RUNNING_MAX.saturating_sub(lane.running.len()))).sum()
    }

    /// The next work, lane after lane.
    pub fn begin(&mut self) -> Option<(u64, J)> {
        let lanes = self.lanes.len();
        let may_begin = |lane: &Lane<J>| !lane.waiting.is_empty() && lane.running.len() < RUNNING_MAX;
        let at = (0..lanes).map(|step| (self.turn + step) % lanes).find(|&at| may_begin(&self.lanes[at]))?;
        self.turn = at + 1;
        let lane = &mut self.lanes[at];
        let Waiting { number, job, .. } = lane.waiting.pop_front()?;
        lane.running.push(number);
        Some((number, job))
    }

    /// A thread is done with it. Returns where it hung, if it was given up.
    pub fn ended(&mut self, number: u64) -> Option<PathBuf> {
        let mut hung = None;
        for lane in &mut self.lanes {
            lane.running.retain(|&other| other != number);
            if let Some(at) = lane.stuck.iter().position(|(other, _)| *other == number) {
                hung = Some(lane.stuck.swap_remove(at).1);
            }
        }
        self.forget_empty();
        hung
    }

    /// Its time is over: nobody waits for it any more. It hangs at `place` if it is on a thread.
    pub fn give_up(&mut self, number: u64, place: PathBuf) -> GivenUp {
        for lane in &mut self.lanes {
            if let Some(at) = lane.running.iter().position(|&other| other == number) {
                lane.running.swap_remove(at);
                lane.stuck.push((number, place));
                return GivenUp::Stuck;
            }
            if let Some(at) = lane.waiting.iter().position(|other| other.number == number) {
                if lane.waiting[at].goes_on {
                    return GivenUp::Waits;
                }
                lane.waiting.remove(at);
                self.forget_empty();
                return GivenUp::Withdrawn;
            }
        }
        GivenUp::Ended
    }

    /// So much hangs in this lane that nothing further is to be begun.
    pub fn is_shut(&self, lane: &str) -> bool {
        self.lanes.iter().any(|known| &*known.name == lane && known.stuck.len() >= STUCK_MAX)
    }

    /// How much is stuck, in all lanes.
    pub fn stuck(&self) -> usize {
        self.lanes.iter().map(|lane| lane.stuck.len()).sum()
    }

    /// Does something hang at this place?
    pub fn hangs_at(&self, place: &Path) -> bool {
        self.lanes.iter().any(|lane| lane.stuck.iter().any(|(_, stuck)| stuck == place))
    }

    /// Drops all that waits.
    pub fn clear(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.waiting.clear());
    }

    fn forget_empty(&mut self) {
        self.lanes.retain(|lane| !lane.waiting.is_empty() || !lane.running.is_empty() || !lane.stuck.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(lanes: &mut FileLanes<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| lanes.begin()).map(|(_, job)| job).collect()
    }

    #[test]
    fn lanes_take_turns_and_none_has_more_than_its_part() {
        let mut lanes = FileLanes::default();
        for job in ["a1", "a2", "a3"] {
            lanes.enter("a", job, false).unwrap();
        }
        lanes.enter("b", "b1", false).unwrap();
        assert_eq!((lanes.runnable(), begun(&mut lanes)), (3, vec!["a1", "b1", "a2"]));
        assert_eq!(lanes.ended(1), None);
        lanes.enter("a", "goes on", true).unwrap();
        assert_eq!(begun(&mut lanes), ["goes on"], "before what has not begun");
        assert_eq!(begun(&mut lanes), [] as [&str; 0]);
    }

    #[test]
    fn what_is_stuck_leaves_its_place_to_others_until_there_is_too_much_of_it() {
        let mut lanes = FileLanes::default();
        for number in 1..=10 {
            assert_eq!(lanes.enter("a", "a", false), Some(number));
        }
        for number in 1..=STUCK_MAX as u64 {
            assert!(!lanes.is_shut("a"));
            while lanes.begin().is_some() {}
            assert_eq!(lanes.give_up(number, format!("/m/{number}").into()), GivenUp::Stuck);
        }
        assert!(lanes.is_shut("a") && !lanes.is_shut("b"));
        assert_eq!(lanes.stuck(), STUCK_MAX);
        assert!(lanes.hangs_at(Path::new("/m/2")) && !lanes.hangs_at(Path::new("/m/9")));
        assert_eq!(lanes.ended(2), Some("/m/2".into()));
        assert!(!lanes.is_shut("a") && !lanes.hangs_at(Path::new("/m/2")));
        assert_eq!(lanes.give_up(2, PathBuf::new()), GivenUp::Ended);
    }

    #[test]
    fn what_had_no_turn_is_withdrawn_unless_it_goes_on_with_something() {
        let mut lanes = FileLanes::default();
        lanes.enter("a", "first", false).unwrap();
        lanes.enter("a", "second", true).unwrap();
        assert_eq!(lanes.give_up(1, PathBuf::new()), GivenUp::Withdrawn);
        assert_eq!(lanes.give_up(2, PathBuf::new()), GivenUp::Waits);
        assert_eq!(begun(&mut lanes), ["second"]);
        assert_eq!((lanes.ended(2), lanes.lanes.len()), (None, 0), "empty lanes are forgotten");
        for _ in 0..WAITING_MAX {
            lanes.enter("a", "more", false).unwrap();
        }
        assert_eq!(lanes.enter("a", "more", false), None);
        assert!(lanes.enter("a", "more", true).is_some() && lanes.enter("b", "more", false).is_some());
    }
}
