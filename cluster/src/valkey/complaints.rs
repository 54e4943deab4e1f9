//! What Valkey refuses to do for this node, call by call: rights that are missing, a replica in place of a primary, no room. Pure.
//!
//! While other calls are answered no circuit opens for that, so it is kept here until the same call is answered. What a server refuses for its own
//! state, and not for this call, is forgotten as well when nothing was refused so for a while: other calls would be.

use std::{cmp::Reverse, collections::HashMap, time::Duration};

use redis::cluster_routing::Slot;

use crate::{boot_time::BootTime, valkey_error::ValkeyError};

/// A refusal for the server's state holds for so long after it was heard last: heartbeats and what nodes ask of the queue come more often.
const HOLDS: Duration = Duration::from_secs(15);
/// A right that is missing for a call that was not made again for so long: that is said with it.
const IS_OLD: Duration = Duration::from_secs(60);
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
        self.error.is_of_rights() || now.since(self.last) < HOLDS
    }

    fn is_grave(&self) -> bool {
        matches!(self.error, ValkeyError::Misconfigured(_))
    }

    fn has_lasted(&self) -> bool {
        self.last.since(self.since) >= LASTS
    }

    /// In words for an operator: a missing right with the call that wants it.
    fn told(&self, script: &str, now: BootTime) -> ValkeyError {
        let unasked = now.since(self.last);
        match &self.error {
            ValkeyError::Misconfigured(text) if self.error.is_of_rights() && unasked >= IS_OLD => {
                ValkeyError::Misconfigured(format!("{text} (for {script}, which was not asked again for {} min)", unasked.as_secs() / 60))
            }
            ValkeyError::Misconfigured(text) if self.error.is_of_rights() => ValkeyError::Misconfigured(format!("{text} (for {script})")),
            error => error.clone(),
        }
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
    /// Why it makes no connection, by its last answer to that.
    connection: Option<ValkeyError>,
    has_told: bool,
}

impl Complaints {
    /// An attempt to connect ended so. What is refused then is refused to all calls, and is no complaint about one.
    pub(super) fn connecting(&mut self, error: Option<&ValkeyError>) {
        self.connection = error.filter(|error| matches!(error, ValkeyError::Misconfigured(_))).cloned();
    }

    /// A call ended so. `None`: no word is due.
    pub(super) fn ended(&mut self, script: &'static str, slot: Option<Slot>, error: Option<&ValkeyError>, now: BootTime) -> Option<Word> {
        let call = (script, slot);
        match error {
            Some(error) if self.connection.as_ref() == Some(error) => None,
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
            Some(ValkeyError::Unreachable(_) | ValkeyError::Late(_) | ValkeyError::CircuitOpen(_) | ValkeyError::NotAgreed(_)) => None,
            _ if self.calls.is_empty() => None,
            _ => {
                self.calls.remove(&call);
                self.calls.retain(|_, complaint| complaint.holds(now));
                (self.calls.is_empty() && std::mem::take(&mut self.has_told)).then_some(Word::Over)
            }
        }
    }

    /// What an operator has to know of now: what has to be mended at once, all else once it has lasted. The gravest, and of those the first: it is the
    /// same each time.
    pub(super) fn gravest(&self, now: BootTime) -> Option<ValkeyError> {
        if self.connection.is_some() {
            return self.connection.clone();
        }
        let is_told = |complaint: &Complaint| complaint.holds(now) && (complaint.is_grave() || complaint.has_lasted());
        let told = self.calls.iter().filter(|(_, complaint)| is_told(complaint)).map(|((script, _), complaint)| (*script, complaint));
        let gravest = told.max_by_key(|(script, complaint)| (complaint.is_grave(), Reverse(complaint.since), Reverse(*script)));
        gravest.map(|(script, complaint)| complaint.told(script, now))
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
        assert_eq!(complaints.gravest(at(10_000)), Some(readonly()));
        assert_eq!(complaints.ended("heartbeat", None, None, at(10_001)), Some(Word::Over));
        assert_eq!(complaints.gravest(at(10_001)), None);
        assert_eq!(complaints.ended("heartbeat", None, None, at(10_002)), None);
    }

    fn noperm() -> ValkeyError {
        ValkeyError::Misconfigured("NOPERM".to_owned())
    }

    fn told(complaints: &Complaints, ms: u64) -> String {
        complaints.gravest(at(ms)).map_or_else(String::new, |error| error.to_string())
    }

    /// It was over after fifteen seconds in which no mail came, and the next mail warned again.
    #[test]
    fn missing_rights_are_told_at_once_and_until_the_same_call_is_answered() {
        let mut complaints = Complaints::default();
        (0..4000).for_each(|ms| drop(complaints.ended("heartbeat", None, Some(&readonly()), at(ms))));
        assert_eq!(complaints.ended("heartbeat", None, None, at(4000)), Some(Word::Over));
        let mut said = Vec::new();
        for ms in [4000, 24_000, 400_000] {
            said.extend(complaints.ended("queue_enqueue", None, Some(&noperm()), at(ms)));
            said.extend(complaints.ended("heartbeat", None, None, at(ms)));
            assert!(told(&complaints, ms).ends_with("NOPERM (for queue_enqueue)"), "{ms}");
        }
        assert_eq!(said, [Word::Refused(noperm().to_string())]);
        assert!(told(&complaints, 530_000).ends_with("NOPERM (for queue_enqueue, which was not asked again for 2 min)"));
        assert_eq!(complaints.ended("heartbeat", None, None, at(530_000)), None);
        assert_eq!(complaints.ended("queue_enqueue", None, None, at(530_001)), Some(Word::Over));
        assert_eq!(complaints.gravest(at(530_001)), None);
    }

    /// A node that pushed a config to a server that had become a replica was degraded until somebody pushed again.
    #[test]
    fn what_a_server_refuses_for_its_state_is_over_when_nothing_was_refused_so_for_a_while() {
        let mut complaints = Complaints::default();
        (0..4000).for_each(|ms| drop(complaints.ended("config_publish", None, Some(&readonly()), at(ms))));
        assert_eq!(complaints.gravest(at(4000)), Some(readonly()));
        assert_eq!(complaints.gravest(at(19_000)), None);
        // A refusal long after is another.
        complaints.ended("config_publish", None, Some(&readonly()), at(30_000));
        assert_eq!(complaints.gravest(at(30_000)), None);
    }

    /// Which of two was told depended on where they lay in memory, and changed with each that came or went.
    #[test]
    fn of_two_that_are_as_grave_the_first_is_told() {
        for count in 2..40 {
            let mut complaints = Complaints::default();
            complaints.ended("queue_enqueue", None, Some(&noperm()), at(0));
            (1..count).for_each(|slot| drop(complaints.ended("throttle", Slot::new(slot), Some(&noperm()), at(1))));
            assert!(told(&complaints, 2).contains("(for queue_enqueue)"), "{count}");
            complaints.ended("announce", None, Some(&noperm()), at(0));
            assert!(told(&complaints, 2).contains("(for announce)"), "at the same moment by name");
        }
    }

    #[test]
    fn what_keeps_a_node_from_connecting_is_no_complaint_about_the_calls_that_waited_for_it() {
        let mut complaints = Complaints::default();
        let policy = ValkeyError::Misconfigured("NOPERM its user may not run 'info'".to_owned());
        complaints.connecting(Some(&policy));
        assert_eq!(complaints.ended("config_publish", None, Some(&policy), at(0)), None);
        assert_eq!((complaints.gravest(at(100_000)), complaints.calls.len()), (Some(policy), 0));
        complaints.connecting(None);
        assert_eq!(complaints.gravest(at(100_000)), None);
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
