//! Which pushed config this node runs, and when to ask for another.
//!
//! Pure. Nodes hear of a version by a message or with a heartbeat, and ask at a jittered interval in case they heard nothing.

use std::time::Duration;

use crate::{boot_time::BootTime, membership::ConfigRefused};

/// One node's view of the pushed config.
#[derive(Clone, Debug)]
pub struct ConfigWatch {
    running: u64,
    running_hash: String,
    latest: u64,
    refused: Option<ConfigRefused>,
    poll: Duration,
    next_poll: BootTime,
    is_fetching: bool,
    is_applying: bool,
}

impl ConfigWatch {
    /// `running` and its hash as kept on disk; 0: none. Asks at once.
    pub fn new(running: u64, running_hash: String, poll: Duration) -> ConfigWatch {
        ConfigWatch {
            running,
            running_hash,
            latest: running,
            refused: None,
            poll,
            next_poll: BootTime::default(),
            is_fetching: false,
            is_applying: false,
        }
    }

    /// At the start: the version that was kept, and why it does not run. What is pushed next is tried again.
    pub fn refusing(version: u64, reason: String, poll: Duration) -> ConfigWatch {
        ConfigWatch { refused: Some(ConfigRefused { version, reason }), ..ConfigWatch::new(0, String::new(), poll) }
    }

    /// The version that runs here; 0: the own file alone.
    pub fn running(&self) -> u64 {
        self.running
    }

    /// The hash of what runs here.
    pub fn running_hash(&self) -> &str {
        &self.running_hash
    }

    /// A later version that was refused here, and why.
    pub fn refused(&self) -> Option<&ConfigRefused> {
        self.refused.as_ref()
    }

    /// How often to ask, as set for all nodes; None: as configured here.
    pub fn set_poll(&mut self, poll: Duration) {
        self.poll = poll;
    }

    /// Somebody said that `version` is current.
    pub fn heard(&mut self, version: u64) {
        self.latest = self.latest.max(version);
    }

    /// Whether to ask now. A version that was refused is not asked for again before the next poll.
    pub fn is_due(&self, now: BootTime) -> bool {
        let known = self.refused.as_ref().map_or(self.running, |refused| refused.version.max(self.running));
        !self.is_fetching && !self.is_applying && (self.latest > known || now >= self.next_poll)
    }

    /// What was refused may be taken now: it is asked for at once.
    pub fn retry(&mut self) {
        if let Some(refused) = self.refused.take() {
            self.latest = self.latest.max(refused.version);
        }
    }

    /// A question is under way.
    pub fn asks(&mut self, now: BootTime, random: u64) {
        self.is_fetching = true;
        // Three quarters to five quarters of the interval: many nodes do not ask at once.
        let jitter = self.poll / 2 * u32::try_from(random % 1024).expect("below 1024") / 1024;
        self.next_poll = now + self.poll * 3 / 4 + jitter;
    }

    /// The answer, None for none: the current version, if it is another than the one that runs. True: apply it and say how it went
    /// ([`ConfigWatch::applied`]).
    pub fn answered(&mut self, found: Option<(u64, &str)>) -> bool {
        self.is_fetching = false;
        let Some((version, hash)) = found else {
            // What was heard is not there, or cannot be read now: the next heartbeat says it again.
            self.latest = self.running;
            return false;
        };
        self.latest = self.latest.max(version);
        let was_refused = self.refused.as_ref().is_some_and(|refused| refused.version == version);
        if hash == self.running_hash && version > self.running {
            // The same text again: nothing to do but to name it rightly.
            self.running = version;
            self.refused = None;
            return false;
        }
        // An earlier version than ours comes from a Valkey that lost data; it is told ours, not the other way round.
        self.is_applying = version > self.running && !was_refused;
        self.is_applying
    }

    /// How it went.
    pub fn applied(&mut self, version: u64, hash: &str, result: Result<(), String>) {
        self.is_applying = false;
        match result {
            Ok(()) => {
                self.running = version;
                hash.clone_into(&mut self.running_hash);
                self.refused = None;
            }
            Err(reason) => self.refused = Some(ConfigRefused { version, reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(s))
    }

    #[test]
    fn a_heard_version_is_asked_for_at_once_and_applied_once() {
        let mut watch = ConfigWatch::new(0, String::new(), Duration::from_secs(30));
        assert!(watch.is_due(at(1)));
        watch.asks(at(1), 512);
        assert!(!watch.is_due(at(2)), "one question at a time");
        assert!(!watch.answered(None));
        assert!(!watch.is_due(at(30)) && watch.is_due(at(32)));
        watch.heard(1);
        assert!(watch.is_due(at(2)));
        watch.asks(at(2), 0);
        assert!(watch.answered(Some((1, "aa"))));
        watch.heard(1);
        assert!(!watch.is_due(at(60)), "it is being applied");
        watch.applied(1, "aa", Ok(()));
        watch.heard(1);
        assert!(!watch.is_due(at(3)) && !watch.answered(Some((1, "aa"))));
        assert!(!watch.answered(Some((2, "aa"))), "the same text under a new number");
        assert_eq!(watch.running(), 2);
        assert!(!watch.answered(Some((1, "bb"))), "never back");
    }

    #[test]
    fn a_version_that_cannot_be_read_is_not_asked_for_without_pause() {
        let mut watch = ConfigWatch::new(1, "aa".to_owned(), Duration::from_secs(30));
        watch.heard(2);
        watch.asks(at(1), 0);
        assert!(!watch.answered(None) && !watch.is_due(at(2)));
    }

    #[test]
    fn going_back_to_the_running_text_after_a_refusal_ends_the_refusal() {
        let mut watch = ConfigWatch::new(1, "aa".to_owned(), Duration::from_secs(30));
        watch.asks(at(1), 0);
        assert!(watch.answered(Some((2, "bb"))));
        watch.applied(2, "bb", Err("no".to_owned()));
        watch.heard(3);
        watch.asks(at(2), 0);
        assert!(!watch.answered(Some((3, "aa"))));
        assert_eq!((watch.running(), watch.refused()), (3, None));
        assert!(!watch.is_due(at(3)));
    }

    #[test]
    fn a_refused_version_is_tried_again_when_the_own_file_has_changed() {
        let mut watch = ConfigWatch::refusing(7, "smtp.x: no".to_owned(), Duration::from_secs(30));
        assert_eq!((watch.running(), watch.refused().unwrap().version), (0, 7));
        watch.asks(at(1), 0);
        assert!(!watch.answered(Some((7, "aa"))) && !watch.is_due(at(2)), "nothing has changed");
        watch.retry();
        assert!(watch.is_due(at(2)));
        watch.asks(at(2), 0);
        assert!(watch.answered(Some((7, "aa"))));
    }

    #[test]
    fn a_refused_version_is_named_and_not_tried_again() {
        let mut watch = ConfigWatch::new(1, "aa".to_owned(), Duration::from_secs(30));
        watch.asks(at(1), 0);
        assert!(watch.answered(Some((2, "bb"))));
        watch.applied(2, "bb", Err("relay.networks: no".to_owned()));
        assert_eq!((watch.running(), watch.refused().unwrap().version), (1, 2));
        watch.heard(2);
        assert!(!watch.is_due(at(2)) && !watch.answered(Some((2, "bb"))));
        watch.heard(3);
        assert!(watch.is_due(at(2)) && watch.answered(Some((3, "cc"))));
        watch.applied(3, "cc", Ok(()));
        assert_eq!(watch.refused(), None);
    }
}
