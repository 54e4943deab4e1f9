//! Items that no call has brought into the queue, by the time at which that has lasted for too long: whatever the reason is, and however
//! well the queue answers to other calls.

use std::collections::{BTreeSet, HashMap};

use super::{Offers, State};
use crate::boot_time::BootTime;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Failed {
    due: BootTime,
    /// A call was not answered.
    may_be_there: bool,
}

#[derive(Debug, Default)]
pub(super) struct Late {
    due: HashMap<String, Failed>,
    /// What has no time any more, or another, is left out when it is its turn.
    order: BTreeSet<(BootTime, String)>,
}

impl Late {
    /// A call with it has failed: that is to last until `due` at most. The first failure counts. `may_be_there`: it was not answered.
    pub(super) fn failed(&mut self, id: &str, due: BootTime, may_be_there: bool) {
        if let Some(failed) = self.due.get_mut(id) {
            failed.may_be_there |= may_be_there;
            return;
        }
        self.due.insert(id.to_owned(), Failed { due, may_be_there });
        self.order.insert((due, id.to_owned()));
    }

    /// It is there.
    pub(super) fn came_in(&mut self, id: &str) {
        self.due.remove(id);
    }

    pub(super) fn next_due(&self) -> Option<BootTime> {
        self.order.first().map(|(due, _)| *due)
    }

    /// The next that has failed for too long, and whether it may be there all the same; each is told once.
    pub(super) fn pop(&mut self, now: BootTime) -> Option<(String, bool)> {
        while self.next_due().is_some_and(|due| now >= due) {
            let (due, id) = self.order.pop_first().expect("it was looked at");
            if let Some(failed) = self.due.get(&id).copied().filter(|failed| failed.due == due) {
                self.due.remove(&id);
                return Some((id, failed.may_be_there));
            }
        }
        None
    }
}

impl Offers {
    /// What no call has brought in is delivered here. What may have come in without an answer leaves the queue first: Valkey answers to small
    /// calls. If it does not, that is not waited for any longer.
    pub(super) fn is_late(&mut self, id: &str, may_be_there: bool, now: BootTime) {
        match self.items.get(id) {
            Some(State::Unsure | State::Fetching) if may_be_there => {
                self.items.set(id, State::Overdue);
                self.withdraw.push_back(id.to_owned());
                self.late.failed(id, now + self.bounds.lease_ttl + self.bounds.guard, true);
            }
            Some(State::Unsure | State::Fetching | State::Overdue) => self.back(id),
            // The answer to this call comes first.
            Some(State::Sending { .. }) => self.late.failed(id, now + self.bounds.guard, may_be_there),
            _ => {}
        }
    }
}
