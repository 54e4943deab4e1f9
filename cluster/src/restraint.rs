//! When a worker leaves items to others: it has no room for them, or cannot read what it gets.
//!
//! An item that a worker cannot use is rarely to blame. A worker without room, or with another `key_file`, would lease all that is ready,
//! put it off again and again, and count attempts until good mail is a dead letter. So it gives back what it has and pauses.
//! Pure: the driver reports how it went.

use std::{collections::BTreeMap, time::Duration};

use crate::{boot_time::BootTime, identity::NodeId, work_item::ItemError, work_queue::Retry};

/// The first pause; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// The longest: how late a worker notices that it can go on.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// What another version or another key may read comes again after so long.
const PUT_OFF_MS: u64 = 60_000;
/// So many items of one owner in a row are not damaged: the owner has another key than before.
const DAMAGED_MAX: u32 = 3;
/// Owners that are remembered: far more than a cluster has.
const OWNERS_MAX: usize = 4096;

/// How a worker holds itself back.
#[derive(Debug, Default)]
pub struct Restraint {
    pauses: u32,
    until: BootTime,
    /// Their items were signed with this node's key, and so many were not since.
    known_owners: BTreeMap<NodeId, u32>,
}

impl Restraint {
    /// Whether to lease now.
    pub fn allows(&self, now: BootTime) -> bool {
        now >= self.until
    }

    /// An item of another node was read: the two have one key.
    pub fn read(&mut self, owner: &NodeId) {
        if let Some(unread) = self.known_owners.get_mut(owner) {
            *unread = 0;
        } else if self.known_owners.len() < OWNERS_MAX {
            self.known_owners.insert(owner.clone(), 0);
        }
    }

    /// An item of another node could not be read: how its lease is given back. `soon_ms`: where another worker can do better at once.
    pub fn unread(&mut self, owner: &NodeId, reason: &ItemError, soon_ms: u64, now: BootTime) -> Retry {
        match reason {
            // Nothing of others was ever read: it is this node that has another key.
            ItemError::NotOurs if self.known_owners.is_empty() => {
                self.pause(now);
                Retry::Free(soon_ms)
            }
            ItemError::NotOurs => match self.known_owners.get_mut(owner) {
                // Damaged in the queue: as a dead letter it comes to its owner's notice.
                Some(unread) if *unread < DAMAGED_MAX => {
                    *unread += 1;
                    Retry::Counted(PUT_OFF_MS)
                }
                _ => Retry::Free(PUT_OFF_MS),
            },
            ItemError::Newer => Retry::Free(PUT_OFF_MS),
            ItemError::Id(_) | ItemError::TooLarge(_) | ItemError::Damaged(_) => Retry::Counted(PUT_OFF_MS),
        }
    }

    /// What was read is no mail that this version can store.
    pub fn unusable(&self) -> Retry {
        Retry::Free(PUT_OFF_MS)
    }

    /// A copy could not be stored.
    pub fn no_room(&mut self, soon_ms: u64, now: BootTime) -> Retry {
        self.pause(now);
        Retry::Free(soon_ms)
    }

    /// A copy was stored.
    pub fn stored(&mut self) {
        self.pauses = 0;
    }

    /// Once for all that one lease brought.
    fn pause(&mut self, now: BootTime) {
        if self.allows(now) {
            self.until = now + PAUSE_MIN.saturating_mul(1 << self.pauses.min(8)).min(PAUSE_MAX);
            self.pauses = self.pauses.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100 + seconds))
    }

    fn node(id: &str) -> NodeId {
        id.parse().unwrap()
    }

    #[test]
    fn a_worker_without_room_pauses_for_longer_and_longer() {
        let mut restraint = Restraint::default();
        assert!(restraint.allows(at(0)));
        for _ in 0..32 {
            assert_eq!(restraint.no_room(700, at(0)), Retry::Free(700));
        }
        assert!(!restraint.allows(at(4)) && restraint.allows(at(5)), "one pause for one lease");
        restraint.no_room(700, at(5));
        assert!(!restraint.allows(at(14)) && restraint.allows(at(15)));
        for seconds in [100, 200, 300, 400] {
            restraint.no_room(700, at(seconds));
        }
        assert!(!restraint.allows(at(459)) && restraint.allows(at(460)), "a minute at most");
        restraint.stored();
        restraint.no_room(700, at(500));
        assert!(restraint.allows(at(505)), "room was found in between");
    }

    #[test]
    fn a_worker_with_another_key_counts_nothing_and_pauses() {
        let mut restraint = Restraint::default();
        for owner in ["n1", "n2", "n1"] {
            assert_eq!(restraint.unread(&node(owner), &ItemError::NotOurs, 700, at(0)), Retry::Free(700));
        }
        assert!(!restraint.allows(at(1)));
    }

    #[test]
    fn an_owner_with_another_key_stops_no_worker_and_loses_no_mail() {
        let mut restraint = Restraint::default();
        restraint.read(&node("n1"));
        assert_eq!(restraint.unread(&node("n2"), &ItemError::NotOurs, 700, at(0)), Retry::Free(PUT_OFF_MS));
        assert!(restraint.allows(at(0)));
    }

    #[test]
    fn an_owner_that_was_given_another_key_loses_no_mail_either() {
        let mut restraint = Restraint::default();
        restraint.read(&node("n1"));
        for _ in 0..DAMAGED_MAX {
            assert_eq!(restraint.unread(&node("n1"), &ItemError::NotOurs, 700, at(0)), Retry::Counted(PUT_OFF_MS));
        }
        assert_eq!(restraint.unread(&node("n1"), &ItemError::NotOurs, 700, at(0)), Retry::Free(PUT_OFF_MS));
        assert!(restraint.allows(at(0)));
        restraint.read(&node("n1"));
        assert_eq!(restraint.unread(&node("n1"), &ItemError::NotOurs, 700, at(0)), Retry::Counted(PUT_OFF_MS), "one among good ones");
    }

    #[test]
    fn what_was_damaged_in_the_queue_comes_to_its_owner() {
        let mut restraint = Restraint::default();
        restraint.read(&node("n1"));
        for reason in [ItemError::NotOurs, ItemError::Damaged("it is too short"), ItemError::TooLarge(1 << 30)] {
            assert_eq!(restraint.unread(&node("n1"), &reason, 700, at(0)), Retry::Counted(PUT_OFF_MS), "{reason}");
        }
        assert_eq!(restraint.unread(&node("n1"), &ItemError::Newer, 700, at(0)), Retry::Free(PUT_OFF_MS));
        assert!(restraint.allows(at(0)));
    }
}
