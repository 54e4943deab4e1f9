//! Limits of the cluster about which Valkey does not answer, though it answers about others: of a Valkey Cluster a part is away, or a key holds
//! what is none of ours. The circuit stays closed for that, so it is counted here, limit by limit.
//!
//! Pure: [`UnansweredLimits::asks`] says whether a limit is asked about, the other calls take what came of it.

use std::{collections::HashMap, time::Duration};

use ringpost_cluster::{boot_time::BootTime, throttle::HORIZON};

/// Calls about one limit that fail in a row before this node goes by its own part: one costs 50 ms, and may be a moment's.
const FAILURES_MAX: u32 = 3;
/// How often Valkey is asked again about a limit that it does not answer.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Limits that are kept in mind: some 150 bytes each. One that finds no room is answered alone with its first failure.
const LIMITS_MAX: usize = 65_536;
/// A limit of which nothing more was heard for so long is forgotten when there is no room.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many calls failed.
    Failing(u32),
    /// Since then this node goes by its own part.
    Apart(BootTime),
    /// It is answered again since then.
    Returned(BootTime),
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    state: State,
    /// Apart: when the next question may go to Valkey.
    ask_at: BootTime,
    heard_at: BootTime,
}

/// Those of one node, by the limit's name.
#[derive(Debug, Default)]
pub struct UnansweredLimits {
    limits: HashMap<String, Limit>,
}

impl UnansweredLimits {
    /// Whether Valkey is asked about the limit now; if not, this node answers alone.
    pub fn asks(&mut self, name: &str, now: BootTime) -> bool {
        match self.limits.get_mut(name) {
            Some(limit @ Limit { state: State::Apart(_), .. }) => {
                let is_due = now >= limit.ask_at;
                if is_due {
                    limit.ask_at = now + ASK_EVERY;
                }
                is_due
            }
            _ => true,
        }
    }

    /// A call about it failed; `is_settled`: so will the next ones, by what was answered. True: this node answers alone.
    pub fn failed(&mut self, name: &str, is_settled: bool, now: BootTime) -> bool {
        if self.limits.len() >= LIMITS_MAX && !self.limits.contains_key(name) {
            self.limits.retain(|_, limit| now.since(limit.heard_at) < FORGOTTEN_AFTER);
            if self.limits.len() >= LIMITS_MAX {
                return true;
            }
        }
        let new = Limit { state: State::Failing(0), ask_at: now, heard_at: now };
        let limit = self.limits.entry(name.to_owned()).or_insert(new);
        let failures = match limit.state {
            _ if is_settled => FAILURES_MAX,
            State::Apart(_) => FAILURES_MAX,
            State::Failing(before) => before + 1,
            State::Returned(_) => 1,
        };
        limit.heard_at = now;
        if failures < FAILURES_MAX {
            limit.state = State::Failing(failures);
            return false;
        }
        if !matches!(limit.state, State::Apart(_)) {
            (limit.state, limit.ask_at) = (State::Apart(now), now + ASK_EVERY);
        }
        true
    }

    /// A call about it was answered. True: the first since this node went by its own part, moments of which may still be used: what the answer
    /// gives is left unused.
    pub fn answered(&mut self, name: &str, now: BootTime) -> bool {
        let Some(limit) = self.limits.get_mut(name) else { return false };
        match limit.state {
            State::Apart(_) => {
                (limit.state, limit.heard_at) = (State::Returned(now), now);
                true
            }
            State::Failing(_) => {
                self.limits.remove(name);
                false
            }
            State::Returned(at) => {
                if now.since(at) >= 2 * HORIZON {
                    self.limits.remove(name);
                }
                false
            }
        }
    }

    /// Since when this node goes by its own part.
    pub fn apart_since(&self, name: &str) -> Option<BootTime> {
        match self.limits.get(name)?.state {
            State::Apart(since) => Some(since),
            State::Failing(_) | State::Returned(_) => None,
        }
    }

    /// For how long Valkey has answered again; `None`: it always has.
    pub fn since_return(&self, name: &str, now: BootTime) -> Option<Duration> {
        match self.limits.get(name)?.state {
            State::Returned(at) => Some(now.since(at)),
            State::Failing(_) | State::Apart(_) => None,
        }
    }

    /// All of Valkey went away or came back: that counts for every limit.
    pub fn clear(&mut self) {
        self.limits.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(ms))
    }

    /// With a part of Valkey Cluster away, or a key of another type, limits said to be closed let all mail through, and those said to be open
    /// or shared stopped it for ever: the one circuit stayed closed, and each failed call was taken for the first.
    #[test]
    fn a_limit_that_is_not_answered_is_apart_after_three_calls_and_asked_about_each_second() {
        let mut limits = UnansweredLimits::default();
        assert!(limits.asks("a", at(0)));
        assert!(!limits.failed("a", false, at(50)) && !limits.failed("a", false, at(100)), "a moment's failures");
        assert!(limits.asks("a", at(110)) && limits.apart_since("a").is_none());
        assert!(limits.failed("a", false, at(150)));
        assert_eq!(limits.apart_since("a"), Some(at(150)));
        assert!(!limits.asks("a", at(1149)) && limits.asks("a", at(1150)) && !limits.asks("a", at(1151)), "one question a second");
        assert!(limits.failed("a", false, at(1200)) && limits.apart_since("a") == Some(at(150)));
        assert!(limits.asks("b", at(1200)), "others are asked about as ever");
    }

    #[test]
    fn the_first_answer_ends_it_and_is_left_unused() {
        let mut limits = UnansweredLimits::default();
        assert_eq!([0, 1, 2].map(|ms| limits.failed("a", false, at(ms))), [false, false, true]);
        assert!(limits.answered("a", at(5000)));
        assert_eq!((limits.apart_since("a"), limits.since_return("a", at(5500))), (None, Some(Duration::from_millis(500))));
        assert!(limits.asks("a", at(5500)) && !limits.answered("a", at(6500)));
        assert!(!limits.answered("a", at(7000)) && limits.since_return("a", at(7000)).is_none(), "forgotten");
        // What fails now and then is not apart.
        for ms in 0..10 {
            assert!(!limits.failed("c", false, at(ms)) && !limits.failed("c", false, at(ms)) && !limits.answered("c", at(ms)));
        }
    }

    #[test]
    fn what_finds_no_room_is_answered_alone() {
        let mut limits = UnansweredLimits::default();
        assert!((0..LIMITS_MAX).all(|number| !limits.failed(&number.to_string(), false, at(0))));
        assert!(limits.failed("one more", false, at(59_999)));
        assert!(!limits.failed("one more", false, at(60_000)), "those of which nothing was heard make room");
    }

    /// A Valkey that is full says so at once: two more messages went past a limit that was to be closed, and its own part began while moments that
    /// were reserved before could still be used.
    #[test]
    fn a_limit_of_which_it_is_said_that_it_has_no_room_is_apart_at_once() {
        let mut limits = UnansweredLimits::default();
        assert!(limits.failed("a", true, at(50)));
        assert_eq!(limits.apart_since("a"), Some(at(50)));
        assert!(!limits.asks("a", at(1049)) && limits.asks("a", at(1050)), "asked about each second");
        assert!(limits.failed("a", true, at(1060)) && limits.apart_since("a") == Some(at(50)));
        assert!(limits.answered("a", at(2100)) && limits.since_return("a", at(2200)) == Some(Duration::from_millis(100)));
        assert!(!limits.failed("a", false, at(2300)) && limits.failed("a", true, at(2400)));
    }
}
