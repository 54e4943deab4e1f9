//! Dead letters of a node that does not deliver: nobody but other nodes can, so each is offered again, more and more seldom.

use std::time::Duration;

use super::{Offers, State};
use crate::boot_time::BootTime;

/// So many times the first wait a dead letter waits at most.
const DEAD_WAITS_MAX: u32 = 16;

/// A dead letter that nobody but other nodes can deliver.
#[derive(Debug)]
pub(super) struct DeadLetter {
    /// How long it waits this time, or the next.
    wait: Duration,
    /// `None`: it was offered again, and has not died again.
    pub(super) again_at: Option<BootTime>,
}

impl Offers {
    /// The workers could not take it, which says nothing of the mail: their disks were slow, or the network. It leaves the queue and is offered
    /// once more when it has waited.
    pub(super) fn dead(&mut self, id: &str, now: BootTime) {
        let first = DeadLetter { wait: self.bounds.dead_wait, again_at: None };
        let letter = self.dead.entry(id.to_owned()).or_insert(first);
        match letter.again_at {
            None => letter.again_at = Some(now + letter.wait),
            Some(at) if now >= at => {
                letter.wait = (letter.wait * 2).min(self.bounds.dead_wait * DEAD_WAITS_MAX);
                letter.again_at = None;
                self.items.set(id, State::Reviving);
                self.withdraw.push_back(id.to_owned());
            }
            Some(_) => {}
        }
    }
}
