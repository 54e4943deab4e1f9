//! What the queue has settled and no log had room for.
//!
//! In a lane for each log, and one more for what a full log takes when it takes nothing else: settled records, by which it gets room. So
//! what is stuck keeps nothing waiting that is not.

use std::collections::VecDeque;

use ringpost_queue::Settled;

/// Records of one kind that wait for one log, oldest first.
struct Lane<K> {
    log: u16,
    settled: Settled,
    waiting: VecDeque<K>,
    /// The log had no room for the oldest, and none was coming.
    is_stuck: bool,
}

/// Why the oldest record of a lane was not appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// There is room soon.
    Full,
    /// There is room when others have freed some, or the operator has.
    NoSpace,
}

/// All lanes of a shard, of messages named by `K`: two at most for each of its logs.
pub(crate) struct Backlog<K> {
    lanes: Vec<Lane<K>>,
    len: usize,
}

impl<K> Default for Backlog<K> {
    fn default() -> Self {
        Backlog { lanes: Vec::new(), len: 0 }
    }
}

impl<K: Copy + PartialEq> Backlog<K> {
    /// Records that wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a record behind those of its kind. Returns whether it is the only one: the others have been tried.
    pub(crate) fn push(&mut self, log: u16, key: K, settled: Settled) -> bool {
        self.len += 1;
        let at = self.lanes.iter().position(|lane| lane.log == log && lane.settled == settled);
        let at = at.unwrap_or_else(|| {
            self.lanes.push(Lane { log, settled, waiting: VecDeque::new(), is_stuck: false });
            self.lanes.len() - 1
        });
        self.lanes[at].waiting.push_back(key);
        self.lanes[at].waiting.len() == 1
    }

    /// Appends what there is room for.
    pub(crate) fn drain(&mut self, mut append: impl FnMut(K, Settled) -> Result<(), Refused>) {
        for lane in &mut self.lanes {
            while let Some(&key) = lane.waiting.front() {
                let appended = append(key, lane.settled);
                lane.is_stuck = appended == Err(Refused::NoSpace);
                if appended.is_err() {
                    break;
                }
                lane.waiting.pop_front();
                self.len -= 1;
            }
        }
    }

    /// A log that has room soon for what waits.
    pub(crate) fn awaited(&self) -> Option<u16> {
        self.lanes.iter().find(|lane| !lane.waiting.is_empty() && !lane.is_stuck).map(|lane| lane.log)
    }

    /// All that waits, with the log that it waits for.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (K, u16)> {
        self.lanes.iter().flat_map(|lane| lane.waiting.iter().map(|&key| (key, lane.log)))
    }

    /// Whether records of this kind wait for a log that has no room.
    pub(crate) fn is_stuck(&self, settled: Settled) -> bool {
        self.lanes.iter().any(|lane| lane.settled == settled && lane.is_stuck)
    }

    /// Takes out the outcomes of a message that is settled now: nothing has to be known of it any more. Returns how many there were.
    pub(crate) fn forget_outcomes(&mut self, log: u16, key: K) -> usize {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.log == log && lane.settled == Settled::Outcome) else { return 0 };
        let before = lane.waiting.len();
        lane.waiting.retain(|&waiting| waiting != key);
        let forgotten = before - lane.waiting.len();
        lane.is_stuck &= !lane.waiting.is_empty();
        self.len -= forgotten;
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends all but what goes to where `refused` says.
    fn drain(backlog: &mut Backlog<u32>, refused: impl Fn(u32, Settled) -> Option<Refused>) -> Vec<u32> {
        let mut appended = Vec::new();
        backlog.drain(|key, settled| match refused(key, settled) {
            Some(refused) => Err(refused),
            None => {
                appended.push(key);
                Ok(())
            }
        });
        appended
    }

    /// It was one queue over all logs: the head of an adopted one that was full kept the shard's own waiting.
    #[test]
    fn a_log_that_is_full_keeps_no_other_waiting() {
        let mut backlog = Backlog::default();
        assert!(backlog.push(7, 70, Settled::Outcome));
        assert_eq!([1, 2, 3].map(|key| backlog.push(0, key, Settled::Outcome)), [true, false, false]);
        let appended = drain(&mut backlog, |key, _| (key == 70).then_some(Refused::NoSpace));
        assert_eq!((appended, backlog.len()), (vec![1, 2, 3], 1));
        assert_eq!(backlog.awaited(), None, "whoever waits for all that has room waits no longer");
        assert_eq!(drain(&mut backlog, |_, _| Some(Refused::Full)), []);
        assert_eq!(backlog.awaited(), Some(7));
        assert_eq!((drain(&mut backlog, |_, _| None), backlog.is_empty()), (vec![70], true));
    }

    #[test]
    fn what_is_settled_does_not_wait_for_outcomes_and_needs_none() {
        let mut backlog = Backlog::default();
        let _only = [1, 2, 1].map(|key| backlog.push(0, key, Settled::Outcome));
        assert_eq!(backlog.forget_outcomes(0, 1), 2);
        assert!(backlog.push(0, 1, Settled::Done));
        assert_eq!(drain(&mut backlog, |_, settled| (settled == Settled::Outcome).then_some(Refused::NoSpace)), [1]);
        assert_eq!((backlog.len(), backlog.awaited()), (1, None));
        assert_eq!(backlog.waiting().collect::<Vec<_>>(), [(2, 0)], "whoever asks for this one alone learns that it is not written");
        assert!(backlog.is_stuck(Settled::Outcome) && !backlog.is_stuck(Settled::Done));
        assert_eq!((backlog.forget_outcomes(0, 2), backlog.is_stuck(Settled::Outcome)), (1, false));
    }
}
