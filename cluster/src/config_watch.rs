//! Which pushed config this node runs, and when to ask for another.
//!
//! Pure. Nodes hear of a version by a message or with a heartbeat, and ask at a jittered interval in case they heard nothing.

use std::time::Duration;

use crate::{boot_time::BootTime, membership::ConfigRefused};

/// A version and the hash of its text. Valkey that lost a version can give its number to another text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfigName {
    /// Which; 0: none was pushed.
    pub version: u64,
    /// As [`crate::control_plane::ControlPlane::config_hash`] makes it; empty: none was pushed.
    pub hash: String,
}

impl ConfigName {
    /// Of a version and its hash.
    pub fn new(version: u64, hash: impl Into<String>) -> ConfigName {
        ConfigName { version, hash: hash.into() }
    }

    /// Whether a node that knows `known` takes this: a later version, or another text under the same number.
    fn replaces(&self, known: &ConfigName) -> bool {
        self.version > known.version || self.version == known.version && self.hash != known.hash
    }
}

/// Why a version does not run here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotApplied {
    /// It does not go with this node's own file or with what is settled at the start. It is not tried again before one of these changes.
    Unfit(String),
    /// What runs here has to come to an end first. It is tried again after a second, and after twice as long each further time, a minute at most.
    NotNow(String),
    /// The disk did not take it. It is tried again with each poll.
    NotKept(String),
}

impl NotApplied {
    /// In words.
    pub fn into_reason(self) -> String {
        match self {
            NotApplied::Unfit(reason) | NotApplied::NotNow(reason) | NotApplied::NotKept(reason) => reason,
        }
    }
}

/// How soon what cannot be taken now is tried again, and how late at most; up to half of it sooner, so that many nodes do not ask at once.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// When what was refused is tried again.
#[derive(Clone, Copy, Debug)]
enum Again {
    Never,
    EachPoll,
    /// Then, and not before; or so long after that, if nobody answers.
    At(BootTime, Duration),
}

#[derive(Clone, Debug)]
struct Refusal {
    name: ConfigName,
    shown: ConfigRefused,
    again: Again,
}

impl Refusal {
    /// The time for it has come, by itself.
    fn is_due(&self, now: BootTime) -> bool {
        matches!(self.again, Again::At(at, _) if now >= at)
    }

    /// It is asked for, or for what came instead. Returns whether it is to be tried if it is current still.
    fn asked(&mut self, now: BootTime, random: u64) -> bool {
        match self.again {
            Again::Never => false,
            Again::EachPoll => true,
            Again::At(at, _) if now < at => false,
            Again::At(_, wait) => {
                self.again = Again::At(now + jittered(wait, random), wait);
                true
            }
        }
    }
}

/// Half of it to all of it: many nodes do not ask at once, and none asks later than it says.
fn jittered(wait: Duration, random: u64) -> Duration {
    wait / 2 + wait / 2 * u32::try_from(random % 1024).expect("below 1024") / 1024
}

/// One node's view of the pushed config.
#[derive(Clone, Debug)]
pub struct ConfigWatch {
    running: ConfigName,
    /// The latest that was heard of since it was asked for the last time.
    latest: ConfigName,
    refused: Option<Refusal>,
    poll: Duration,
    next_poll: BootTime,
    is_fetching: bool,
    is_applying: bool,
    /// What was refused is tried again by the question that is under way.
    tries_refused: bool,
}

impl ConfigWatch {
    /// `running` as kept on disk. Asks at once.
    pub fn new(running: ConfigName, poll: Duration) -> ConfigWatch {
        ConfigWatch {
            latest: running.clone(),
            running,
            refused: None,
            poll,
            next_poll: BootTime::default(),
            is_fetching: false,
            is_applying: false,
            tries_refused: false,
        }
    }

    /// At the start: what was kept, and why it does not run. What is pushed next is tried again.
    pub fn refusing(kept: ConfigName, reason: String, poll: Duration) -> ConfigWatch {
        let mut watch = ConfigWatch::new(ConfigName::default(), poll);
        watch.refuse(kept, reason, Again::Never);
        watch
    }

    /// The version that runs here; 0: the own file alone.
    pub fn running(&self) -> u64 {
        self.running.version
    }

    /// The hash of what runs here.
    pub fn running_hash(&self) -> &str {
        &self.running.hash
    }

    /// A later version that was refused here, and why.
    pub fn refused(&self) -> Option<&ConfigRefused> {
        self.refused.as_ref().map(|refused| &refused.shown)
    }

    /// How often to ask from now on. What was due much later by a longer one is due by this.
    pub fn set_poll(&mut self, now: BootTime, poll: Duration) {
        self.poll = poll;
        self.next_poll = self.next_poll.min(now + poll);
    }

    /// Somebody said that this is current.
    pub fn heard(&mut self, name: ConfigName) {
        if name.replaces(&self.latest) {
            self.latest = name;
        }
    }

    /// Whether to ask now. A version that was refused is not asked for again before the next poll, or before its time.
    pub fn is_due(&self, now: BootTime) -> bool {
        let is_news =
            self.latest.replaces(&self.running) && self.refused.as_ref().is_none_or(|refused| self.latest.replaces(&refused.name));
        let is_again = self.refused.as_ref().is_some_and(|refused| refused.is_due(now));
        !self.is_fetching && !self.is_applying && (is_news || is_again || now >= self.next_poll)
    }

    /// What was refused may be taken now: it is asked for at once.
    pub fn retry(&mut self) {
        if let Some(refused) = self.refused.take() {
            self.heard(refused.name);
        }
    }

    /// A question is under way.
    pub fn asks(&mut self, now: BootTime, random: u64) {
        self.is_fetching = true;
        // What was heard is asked for once: it may be false. What is true is said again with the next heartbeat.
        self.latest = self.running.clone();
        self.tries_refused = self.refused.as_mut().is_some_and(|refused| refused.asked(now, random));
        self.next_poll = now + jittered(self.poll, random);
    }

    /// The answer, None for none: what is current. True: apply it and say how it went ([`ConfigWatch::applied`]).
    pub fn answered(&mut self, found: Option<ConfigName>) -> bool {
        self.is_fetching = false;
        let Some(found) = found else { return false };
        // What another came instead of waits for nothing.
        self.refused.take_if(|refused| refused.shown.waits && refused.name != found);
        let was_refused = self.refused.as_ref().is_some_and(|refused| refused.name == found && !self.tries_refused);
        if found.hash == self.running.hash && found.version > self.running.version {
            // The same text again: nothing to do but to name it rightly.
            self.running = found;
            self.refused = None;
            return false;
        }
        // An earlier version than ours comes from a Valkey that lost data; it is told ours, not the other way round. Another text under our
        // number was pushed to one that had lost ours: what all hear of is what counts.
        self.is_applying = found.replaces(&self.running) && !was_refused;
        self.is_applying
    }

    /// How it went.
    pub fn applied(&mut self, name: ConfigName, result: Result<(), NotApplied>, now: BootTime, random: u64) {
        self.is_applying = false;
        match result {
            Ok(()) => {
                self.running = name;
                self.refused = None;
            }
            Err(NotApplied::Unfit(reason)) => self.refuse(name, reason, Again::Never),
            Err(NotApplied::NotKept(reason)) => self.refuse(name, reason, Again::EachPoll),
            Err(NotApplied::NotNow(reason)) => {
                let (first, longest) = AGAIN;
                let wait = match &self.refused {
                    Some(Refusal { name: earlier, again: Again::At(_, wait), .. }) if *earlier == name => (*wait * 2).min(longest),
                    _ => first,
                };
                self.refuse(name, reason, Again::At(now + jittered(wait, random), wait));
            }
        }
    }

    fn refuse(&mut self, name: ConfigName, reason: String, again: Again) {
        let waits = matches!(again, Again::At(..));
        self.refused = Some(Refusal { shown: ConfigRefused { version: name.version, reason, waits }, name, again });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(s))
    }

    fn named(version: u64, hash: &str) -> ConfigName {
        ConfigName::new(version, hash)
    }

    #[test]
    fn a_heard_version_is_asked_for_at_once_and_applied_once() {
        let mut watch = ConfigWatch::new(ConfigName::default(), Duration::from_secs(30));
        assert!(watch.is_due(at(1)));
        watch.asks(at(1), 512);
        assert!(!watch.is_due(at(2)), "one question at a time");
        assert!(!watch.answered(None));
        assert!(!watch.is_due(at(23)) && watch.is_due(at(24)));
        watch.heard(named(1, "aa"));
        assert!(watch.is_due(at(2)));
        watch.asks(at(2), 0);
        assert!(watch.answered(Some(named(1, "aa"))));
        watch.heard(named(1, "aa"));
        assert!(!watch.is_due(at(60)), "it is being applied");
        watch.applied(named(1, "aa"), Ok(()), at(3), 0);
        watch.heard(named(1, "aa"));
        assert!(!watch.is_due(at(3)) && !watch.answered(Some(named(1, "aa"))));
        assert!(!watch.answered(Some(named(2, "aa"))), "the same text under a new number");
        assert_eq!(watch.running(), 2);
        assert!(!watch.answered(Some(named(1, "bb"))), "never back");
    }

    #[test]
    fn a_version_that_cannot_be_read_is_not_asked_for_without_pause() {
        let mut watch = ConfigWatch::new(named(1, "aa"), Duration::from_secs(30));
        watch.heard(named(2, "bb"));
        watch.asks(at(1), 0);
        assert!(!watch.answered(None) && !watch.is_due(at(2)));
    }

    #[test]
    fn going_back_to_the_running_text_after_a_refusal_ends_the_refusal() {
        let mut watch = ConfigWatch::new(named(1, "aa"), Duration::from_secs(30));
        watch.asks(at(1), 0);
        assert!(watch.answered(Some(named(2, "bb"))));
        watch.applied(named(2, "bb"), Err(NotApplied::Unfit("no".to_owned())), at(3), 0);
        watch.heard(named(3, "cc"));
        watch.asks(at(2), 0);
        assert!(!watch.answered(Some(named(3, "aa"))));
        assert_eq!((watch.running(), watch.refused()), (3, None));
        assert!(!watch.is_due(at(3)));
    }

    #[test]
    fn a_refused_version_is_tried_again_when_the_own_file_has_changed() {
        let mut watch = ConfigWatch::refusing(named(7, "aa"), "smtp.x: no".to_owned(), Duration::from_secs(30));
        assert_eq!((watch.running(), watch.refused().unwrap().version), (0, 7));
        watch.asks(at(1), 0);
        assert!(!watch.answered(Some(named(7, "aa"))) && !watch.is_due(at(2)), "nothing has changed");
        watch.retry();
        assert!(watch.is_due(at(2)));
        watch.asks(at(2), 0);
        assert!(watch.answered(Some(named(7, "aa"))));
    }

    /// From an hour to a second: the node asked an hour later.
    #[test]
    fn a_shorter_poll_counts_at_once() {
        let mut watch = ConfigWatch::new(named(1, "aa"), Duration::from_secs(3600));
        watch.asks(at(1), 0);
        assert!(!watch.answered(Some(named(1, "aa"))) && !watch.is_due(at(1700)));
        watch.set_poll(at(1700), Duration::from_secs(1));
        assert!(!watch.is_due(at(1700)) && watch.is_due(at(1701)));
        // A longer one is that of the question after.
        watch.set_poll(at(1700), Duration::from_secs(3600));
        assert!(watch.is_due(at(1701)));
        watch.asks(at(1701), 0);
        watch.answered(Some(named(1, "aa")));
        assert!(!watch.is_due(at(3500)));
    }

    /// "Within the poll interval" was up to a quarter more than it.
    #[test]
    fn a_node_asks_within_the_interval_and_not_all_nodes_at_once() {
        for (random, earliest_ms) in [(0, 500), (512, 750), (1023, 999)] {
            let mut watch = ConfigWatch::new(named(1, "aa"), Duration::from_secs(1));
            watch.asks(at(1), random);
            watch.answered(Some(named(1, "aa")));
            let due = |ms| watch.is_due(at(1) + Duration::from_millis(ms));
            assert!(!due(earliest_ms - 1) && due(earliest_ms + 1) && due(1000), "{random}");
        }
    }

    #[test]
    fn a_refused_version_is_named_and_not_tried_again() {
        let mut watch = ConfigWatch::new(named(1, "aa"), Duration::from_secs(30));
        watch.asks(at(1), 0);
        assert!(watch.answered(Some(named(2, "bb"))));
        watch.applied(named(2, "bb"), Err(NotApplied::Unfit("relay.networks: no".to_owned())), at(3), 0);
        assert_eq!((watch.running(), watch.refused().unwrap().version), (1, 2));
        watch.heard(named(2, "bb"));
        assert!(!watch.is_due(at(2)) && !watch.answered(Some(named(2, "bb"))));
        watch.heard(named(3, "cc"));
        assert!(watch.is_due(at(2)) && watch.answered(Some(named(3, "cc"))));
        watch.applied(named(3, "cc"), Ok(()), at(3), 0);
        assert_eq!(watch.refused(), None);
    }
    /// A failover lost version 8 after one node had taken it, another text became version 8, and that node ran the lost one for good.
    #[test]
    fn another_text_under_the_running_number_is_taken() {
        let mut watch = ConfigWatch::new(named(8, "aa"), Duration::from_secs(30));
        watch.asks(at(1), 0);
        assert!(!watch.answered(Some(named(8, "aa"))) && !watch.is_due(at(2)));
        watch.heard(named(8, "other"));
        assert!(watch.is_due(at(2)));
        watch.asks(at(2), 0);
        assert!(watch.answered(Some(named(8, "other"))));
        watch.applied(named(8, "other"), Err(NotApplied::Unfit("no".to_owned())), at(3), 0);
        watch.heard(named(8, "other"));
        assert!(!watch.is_due(at(3)) && !watch.answered(Some(named(8, "other"))), "refused once");
        watch.heard(named(8, "third"));
        assert!(watch.is_due(at(3)));
        watch.asks(at(3), 0);
        assert!(watch.answered(Some(named(8, "third"))));
        watch.applied(named(8, "third"), Ok(()), at(3), 0);
        assert_eq!((watch.running(), watch.running_hash(), watch.refused()), (8, "third", None));
    }

    /// A push that came while connections of earlier limits had work to end was refused for good: the node ran the former settings until somebody pushed again.
    #[test]
    fn what_cannot_be_taken_now_is_tried_again_less_and_less_often_until_it_is_taken() {
        let mut watch = ConfigWatch::new(named(1, "aa"), Duration::from_secs(3600));
        let two = || Some(named(2, "bb"));
        watch.heard(named(2, "bb"));
        watch.asks(at(1000), 0);
        assert!(watch.answered(two()));
        let mut now = at(1000);
        // With the least jitter half of the wait.
        for wait_ms in [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            watch.applied(named(2, "bb"), Err(NotApplied::NotNow("not yet".to_owned())), now, 0);
            assert!(watch.refused().is_some_and(|refused| refused.waits && refused.version == 2 && refused.reason == "not yet"));
            let due = now + Duration::from_millis(wait_ms / 2);
            // Another question, as with a poll, does not have it tried any sooner.
            watch.heard(named(9, "false"));
            watch.asks(now, 0);
            assert!(!watch.answered(two()) && !watch.is_due(due - Duration::from_millis(1)), "{wait_ms}");
            assert!(watch.is_due(due), "{wait_ms}");
            now = due;
            watch.asks(now, 0);
            assert!(!watch.answered(None) && !watch.is_due(now), "with Valkey away it is not asked for without pause");
            now = now + Duration::from_millis(wait_ms / 2);
            watch.asks(now, 0);
            assert!(watch.answered(two()));
        }
        watch.applied(named(2, "bb"), Ok(()), now, 0);
        assert_eq!((watch.running(), watch.refused()), (2, None));
        assert!(!watch.is_due(now + Duration::from_secs(1700)), "there is nothing to wait for");
    }

    #[test]
    fn what_waits_is_given_up_for_what_comes_instead() {
        let waiting = || {
            let mut watch = ConfigWatch::new(named(1, "aa"), Duration::from_secs(30));
            watch.asks(at(1), 0);
            assert!(watch.answered(Some(named(2, "bb"))));
            watch.applied(named(2, "bb"), Err(NotApplied::NotNow("not yet".to_owned())), at(1), 0);
            watch
        };
        let mut watch = waiting();
        watch.heard(named(3, "cc"));
        assert!(watch.is_due(at(1)), "at once");
        watch.asks(at(1), 0);
        assert!(watch.answered(Some(named(3, "cc"))));
        watch.applied(named(3, "cc"), Err(NotApplied::Unfit("no".to_owned())), at(1), 0);
        assert!(watch.refused().is_some_and(|refused| refused.version == 3 && !refused.waits) && !watch.is_due(at(5)));

        // Valkey has lost it.
        let mut watch = waiting();
        watch.asks(at(2), 0);
        assert!(!watch.answered(Some(named(1, "aa"))) && watch.refused().is_none() && !watch.is_due(at(5)));
    }

    /// Whoever could publish a message made each node ask without pause.
    #[test]
    fn a_version_that_is_only_said_is_asked_for_once() {
        let mut watch = ConfigWatch::new(named(1, "aa"), Duration::from_secs(30));
        watch.asks(at(1), 0);
        assert!(!watch.answered(Some(named(1, "aa"))));
        watch.heard(named(u64::MAX, "zz"));
        assert!(watch.is_due(at(2)));
        watch.asks(at(2), 0);
        assert!(!watch.answered(Some(named(1, "aa"))) && !watch.is_due(at(3)));
        watch.asks(at(3), 0);
        watch.heard(named(2, "bb"));
        assert!(!watch.answered(Some(named(1, "aa"))) && watch.is_due(at(3)), "what is heard meanwhile counts");
    }

    #[test]
    fn a_version_that_the_disk_did_not_take_is_tried_with_each_poll() {
        let mut watch = ConfigWatch::new(named(1, "aa"), Duration::from_secs(30));
        watch.asks(at(1), 0);
        assert!(watch.answered(Some(named(2, "bb"))));
        watch.applied(named(2, "bb"), Err(NotApplied::NotKept("full".to_owned())), at(3), 0);
        watch.heard(named(2, "bb"));
        assert!(!watch.is_due(at(2)) && watch.is_due(at(40)));
        watch.asks(at(40), 0);
        assert!(watch.answered(Some(named(2, "bb"))));
        watch.applied(named(2, "bb"), Ok(()), at(3), 0);
        assert_eq!((watch.running(), watch.refused()), (2, None));
    }
}
