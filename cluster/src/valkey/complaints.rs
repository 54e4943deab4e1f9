//! What Valkey refuses to do for this node, call by call: rights that are missing, a replica in place of a primary, no room. Pure.
//!
//! While other calls are answered no circuit opens for that, so it is kept here until the same call is answered.

use std::{collections::HashMap, time::Duration};

use redis::cluster_routing::Slot;

use crate::{boot_time::BootTime, valkey_error::ValkeyError};

/// A refusal holds for so long after it was heard last: heartbeats and what nodes ask of the queue come more often.
const HOLDS: Duration = Duration::from_secs(15);
/// What may end by itself, as with a failover, is told once it has lasted.
const LASTS: Duration = Duration::from_secs(3);
/// Calls that are kept in mind; further ones are refused for the same reasons.
const CALLS_MAX: usize = 64;

#[derive(Debug)]
struct Complaint {
    error: ValkeyError,
    since: BootTime,
    last: BootTime,
}

impl Complaint {
    fn holds(&self, now: BootTime) -> bool {
        now.since(self.last) < HOLDS
    }

    fn is_grave(&self) -> bool {
        matches!(self.error, ValkeyError::Misconfigured(_))
    }

    fn has_lasted(&self) -> bool {
        self.last.since(self.since) >= LASTS
    }
}

/// What is to be said in the log, once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// This call was refused again and again.
    Refused(String),
    /// Nothing is refused any more.
    Over,
}

/// Those of one node, by script and slot.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    calls: HashMap<(&'static str, Option<Slot>), Complaint>,
    has_told: bool,
}

impl Complaints {
    /// A call ended so. `None`: no word is due.
    pub(super) fn ended(&mut self, script: &'static str, slot: Option<Slot>, error: Option<&ValkeyError>, now: BootTime) -> Option<Word> {
        let call = (script, slot);
        match error {
            Some(error @ (ValkeyError::Misconfigured(_) | ValkeyError::Unavailable(_) | ValkeyError::Full(_))) => {
                if self.calls.len() >= CALLS_MAX && !self.calls.contains_key(&call) {
                    return None;
                }
                let complaint = self.calls.entry(call).or_insert_with(|| Complaint { error: error.clone(), since: now, last: now });
                if !complaint.holds(now) {
                    complaint.since = now;
                }
                (complaint.error, complaint.last) = (error.clone(), now);
                let is_due = complaint.has_lasted() && !std::mem::replace(&mut self.has_told, true);
                is_due.then(|| Word::Refused(error.to_string()))
            }
            // Nothing was heard of what it would say.
            Some(ValkeyError::Unreachable(_) | ValkeyError::CircuitOpen(_) | ValkeyError::NotAgreed(_)) => None,
            _ if self.calls.is_empty() => None,
            _ => {
                self.calls.remove(&call);
                self.calls.retain(|_, complaint| complaint.holds(now));
                (self.calls.is_empty() && std::mem::take(&mut self.has_told)).then_some(Word::Over)
            }
        }
    }

    /// What an operator has to know of now: what has to be mended at once, all else once it has lasted. The gravest.
    pub(super) fn gravest(&self, now: BootTime) -> Option<&ValkeyError> {
        let told = |complaint: &&Complaint| complaint.holds(now) && (complaint.is_grave() || complaint.has_lasted());
        self.calls.values().filter(told).max_by_key(|complaint| complaint.is_grave()).map(|complaint| &complaint.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100) + Duration::from_millis(ms))
    }

    fn readonly() -> ValkeyError {
        ValkeyError::Unavailable("READONLY".to_owned())
    }

    /// Heartbeats failed from the start, the list of nodes was read, and neither the log nor a command said anything.
    #[test]
    fn what_is_refused_while_other_calls_are_answered_is_told_once_and_so_is_its_end() {
        let mut complaints = Complaints::default();
        let mut said = Vec::new();
        for ms in (0..10_000).step_by(500) {
            said.extend(complaints.ended("heartbeat", None, Some(&readonly()), at(ms)));
            assert_eq!(complaints.ended("members", None, None, at(ms)), None, "another call");
            assert_eq!(complaints.gravest(at(ms)).is_some(), ms >= 3000, "{ms}");
        }
        assert_eq!(said, [Word::Refused(readonly().to_string())]);
        let away = ValkeyError::Unreachable("late".to_owned());
        assert_eq!(complaints.ended("heartbeat", None, Some(&away), at(10_000)), None);
        assert_eq!(complaints.gravest(at(10_000)), Some(&readonly()));
        assert_eq!(complaints.ended("heartbeat", None, None, at(10_001)), Some(Word::Over));
        assert_eq!(complaints.gravest(at(10_001)), None);
        assert_eq!(complaints.ended("heartbeat", None, None, at(10_002)), None);
    }

    #[test]
    fn missing_rights_are_told_at_once_and_no_longer_than_they_are_asked_for() {
        let mut complaints = Complaints::default();
        let noperm = ValkeyError::Misconfigured("NOPERM".to_owned());
        (0..4000).for_each(|ms| drop(complaints.ended("heartbeat", None, Some(&readonly()), at(ms))));
        complaints.ended("queue_enqueue", None, Some(&noperm), at(4000));
        assert_eq!(complaints.gravest(at(4000)), Some(&noperm), "the gravest");
        assert_eq!(complaints.gravest(at(19_000)), None);
        // A refusal long after is another.
        complaints.ended("heartbeat", None, Some(&readonly()), at(30_000));
        assert_eq!(complaints.gravest(at(30_000)), None);
    }

    #[test]
    fn calls_in_mind_are_bounded() {
        let mut complaints = Complaints::default();
        for number in 0..1000 {
            complaints.ended("throttle", Slot::new(number), Some(&readonly()), at(0));
        }
        assert_eq!(complaints.calls.len(), CALLS_MAX);
        // Those of which nothing more was heard go with the next call that is answered.
        assert_eq!(complaints.ended("members", None, None, at(15_000)), None);
        assert!(complaints.calls.is_empty());
    }
}
