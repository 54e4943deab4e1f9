//! When a worker leaves items to others: it has no room for them, or cannot read what it gets.
//!
//! An item that a worker cannot use is rarely to blame. A worker without room, or with another `key_file`, would lease all that is ready,
//! put it off again and again, and count attempts until good mail is a dead letter. So it gives back what it has and pauses.
//!
//! That it is the worker that has another key is known where it has never read an item of others. Before its first it goes by what nodes say of
//! their keys: an owner with another key than all, whose mail lies before that of the others, is not to stop a worker that has just started.
//! Pure: the driver reports how it went.

use std::{collections::BTreeMap, time::Duration};

use crate::{boot_time::BootTime, identity::NodeId, work_item::ItemError, work_queue::Retry};

/// By this name nodes say in their heartbeats which key they have, as [`ItemKey::mark`](crate::work_item::ItemKey::mark) tells it.
pub const KEY_MARK: &str = "key_mark";

/// The first pause; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// The longest: how late a worker notices that it can go on.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// What another version or another key may read comes again after so long.
const PUT_OFF_MS: u64 = 60_000;
/// So many items of one owner in a row are not damaged: the owner has another key than before.
const DAMAGED_MAX: u32 = 3;
/// That items of an owner cannot be read is said this often.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// Owners that are remembered: far more than a cluster has.
const OWNERS_MAX: usize = 4096;

/// Nodes that a sentence names.
const NAMED_MAX: usize = 8;

/// How a worker holds itself back.
#[derive(Debug, Default)]
pub struct Restraint {
    pauses: u32,
    until: BootTime,
    /// Their items were signed with this node's key, and so many were not since.
    known_owners: BTreeMap<NodeId, u32>,
    /// When it was said last that their items could not be read, and how many there were since.
    unread: BTreeMap<NodeId, (Option<BootTime>, u64)>,
}

/// Whether this node's key is that of others as well, and of no fewer than the owner's is: what cannot be read is the owner's fault then. `others`:
/// what the other nodes that are there say of theirs.
pub fn is_shared(mine: &str, owner: &NodeId, others: &BTreeMap<NodeId, String>) -> bool {
    let count = |mark: &str| others.values().filter(|other| *other == mark).count();
    let theirs = others.get(owner).filter(|theirs| *theirs != mine);
    count(mine) > 0 && theirs.is_none_or(|theirs| count(mine) >= count(theirs))
}

/// What an operator is to hear where other nodes have another key than this one: of the two sides the one says so that is not the larger.
pub fn key_differs(mine: &str, others: &BTreeMap<NodeId, String>) -> Option<String> {
    let mut by_mark: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    others.iter().for_each(|(node, mark)| by_mark.entry(mark).or_default().push(node.as_str()));
    let with_mine = 1 + by_mark.remove(mine).map_or(0, |nodes| nodes.len());
    let nodes = by_mark.into_values().max_by_key(Vec::len).filter(|nodes| nodes.len() >= with_mine)?;
    let named = nodes.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    let more = if nodes.len() > NAMED_MAX { format!(" and {} more", nodes.len() - NAMED_MAX) } else { String::new() };
    Some(format!(
        "cluster.key_file has another key here than at {named}{more}: mail that is offered here is not taken there, nor settings that are pushed, nor the \
         other way round"
    ))
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

    /// An item of another node could not be read: how its lease is given back. `is_shared`: see [`is_shared`]. `soon_ms`: where another worker can
    /// do better at once.
    pub fn unread(&mut self, owner: &NodeId, reason: &ItemError, is_shared: impl FnOnce() -> bool, soon_ms: u64, now: BootTime) -> Retry {
        match reason {
            // Nothing of others was ever read: it is this node that has another key.
            ItemError::NotOurs if self.known_owners.is_empty() && !is_shared() => {
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

    /// Whether it is to be said now that items of this owner cannot be read: of how many since it was said last. There can be thousands.
    pub fn says_unread(&mut self, owner: &NodeId, now: BootTime) -> Option<u64> {
        if self.unread.len() >= OWNERS_MAX && !self.unread.contains_key(owner) {
            self.unread.clear();
        }
        let (said, count) = self.unread.entry(owner.clone()).or_default();
        *count += 1;
        said.is_none_or(|at| now.since(at) >= SAID_EVERY).then(|| {
            *said = Some(now);
            std::mem::take(count)
        })
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
            assert_eq!(restraint.unread(&node(owner), &ItemError::NotOurs, || false, 700, at(0)), Retry::Free(700));
        }
        assert!(!restraint.allows(at(1)));
    }

    #[test]
    fn an_owner_with_another_key_stops_no_worker_and_loses_no_mail() {
        let mut restraint = Restraint::default();
        restraint.read(&node("n1"));
        assert_eq!(restraint.unread(&node("n2"), &ItemError::NotOurs, || false, 700, at(0)), Retry::Free(PUT_OFF_MS));
        assert!(restraint.allows(at(0)));
    }

    #[test]
    fn an_owner_that_was_given_another_key_loses_no_mail_either() {
        let mut restraint = Restraint::default();
        restraint.read(&node("n1"));
        for _ in 0..DAMAGED_MAX {
            assert_eq!(restraint.unread(&node("n1"), &ItemError::NotOurs, || false, 700, at(0)), Retry::Counted(PUT_OFF_MS));
        }
        assert_eq!(restraint.unread(&node("n1"), &ItemError::NotOurs, || false, 700, at(0)), Retry::Free(PUT_OFF_MS));
        assert!(restraint.allows(at(0)));
        restraint.read(&node("n1"));
        assert_eq!(
            restraint.unread(&node("n1"), &ItemError::NotOurs, || false, 700, at(0)),
            Retry::Counted(PUT_OFF_MS),
            "one among good ones"
        );
    }

    /// A worker that had just started met a front end's mail first that was signed with another key: it paused for a minute at a time, and took 32
    /// messages of it after each, while good mail lay behind thousands.
    #[test]
    fn an_owner_with_another_key_stops_no_worker_that_has_just_started_beside_others_with_its_key() {
        let others: BTreeMap<NodeId, String> = [("n1", "a"), ("n3", "b")].map(|(id, mark)| (id.parse().unwrap(), mark.to_owned())).into();
        let mut restraint = Restraint::default();
        for _ in 0..100 {
            let is_shared = || is_shared("a", &node("n3"), &others);
            assert_eq!(restraint.unread(&node("n3"), &ItemError::NotOurs, is_shared, 700, at(0)), Retry::Free(PUT_OFF_MS));
        }
        assert!(restraint.allows(at(0)));
    }

    #[test]
    fn a_key_is_shared_that_others_have_and_no_fewer_than_the_owners() {
        let others = |marks: &[(&str, &str)]| marks.iter().map(|(id, mark)| (node(id), (*mark).to_owned())).collect();
        let is_shared = |owner: &str, marks: &[(&str, &str)]| is_shared("a", &node(owner), &others(marks));
        assert!(!is_shared("n3", &[]));
        assert!(!is_shared("n3", &[("n3", "b")]), "one against one");
        assert!(is_shared("n3", &[("n3", "b"), ("n1", "a")]));
        assert!(!is_shared("n3", &[("n3", "b"), ("n4", "b"), ("n1", "a")]));
        // It is not there, or of a version that does not say.
        assert!(is_shared("n3", &[("n1", "a")]));
        assert!(!is_shared("n3", &[("n1", "b")]));
        assert!(is_shared("n3", &[("n3", "a")]), "damaged, or signed before it had this key");
    }

    #[test]
    fn the_side_with_no_more_nodes_says_that_keys_differ() {
        let differs = |marks: &[(&str, &str)]| key_differs("a", &marks.iter().map(|(id, mark)| (node(id), (*mark).to_owned())).collect());
        assert_eq!(differs(&[]), None);
        assert_eq!(differs(&[("n1", "a"), ("n2", "b")]), None);
        assert!(differs(&[("n1", "b")]).is_some_and(|words| words.contains("at n1:")), "one against one");
        assert!(differs(&[("n1", "a"), ("n2", "b"), ("n3", "b"), ("n4", "c")]).is_some_and(|words| words.contains("at n2, n3:")));
    }

    #[test]
    fn that_an_owner_has_another_key_is_said_once_a_minute_with_a_count() {
        let mut restraint = Restraint::default();
        let said: Vec<Option<u64>> = [0, 0, 1, 59, 60, 61].map(|second| restraint.says_unread(&node("n3"), at(second))).into();
        assert_eq!(said, [Some(1), None, None, None, Some(4), None]);
        assert_eq!(restraint.says_unread(&node("n4"), at(61)), Some(1));
    }

    #[test]
    fn what_was_damaged_in_the_queue_comes_to_its_owner() {
        let mut restraint = Restraint::default();
        restraint.read(&node("n1"));
        for reason in [ItemError::NotOurs, ItemError::Damaged("it is too short"), ItemError::TooLarge(1 << 30)] {
            assert_eq!(restraint.unread(&node("n1"), &reason, || false, 700, at(0)), Retry::Counted(PUT_OFF_MS), "{reason}");
        }
        assert_eq!(restraint.unread(&node("n1"), &ItemError::Newer, || false, 700, at(0)), Retry::Free(PUT_OFF_MS));
        assert!(restraint.allows(at(0)));
    }
}
