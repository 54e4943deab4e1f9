//! A destination as `queue summary` shows it, and the same destination of several shards as one.

use ringpost_queue::Breaker;
use serde::{Deserialize, Serialize};

/// A host of a destination that is left alone or probed, as `queue summary --json` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSummary {
    /// As attempts name it: `mx1.example.org[192.0.2.7]:25`.
    pub host: String,
    /// `open` or `half-open`; the worst of the shards.
    pub breaker: String,
    /// When it is probed next, if mail waits, RFC 3339; only while it is open.
    pub next_probe: Option<String>,
    /// Why its breaker opened.
    pub reason: String,
}

/// A destination as `queue summary --json` prints it; of one shard, or added up over all with [`DestinationSummary::add`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationSummary {
    /// Its name.
    pub destination: String,
    /// Messages with recipients that lead there. One that leads to several destinations counts at each.
    pub messages: u64,
    /// Their recipients that lead there and are not settled: the sum of those by state.
    #[serde(default)]
    pub recipients: u64,
    /// Recipients that may be tried now.
    pub ready: u64,
    /// Recipients that wait for their time.
    pub deferred: u64,
    /// Recipients being attempted; of one shard with those that wait for their turn at another, which is its home.
    pub active: u64,
    /// Recipients held by route or command.
    pub held: u64,
    /// Recipients that are offered to the cluster.
    #[serde(default)]
    pub offered: u64,
    /// Recipients that failed, whose sender is to be told.
    pub failed: u64,
    /// Attempts that are open at its home shards, for all shards.
    pub connections: u32,
    /// Attempts that are allowed at a time now.
    pub window: u32,
    /// Attempts at a time to which that may grow.
    #[serde(default)]
    pub connections_max: u32,
    /// Attempts per time that are allowed, as in the config; absent: as many as come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// `closed`, `half-open` or `open`; the worst of the shards. It is closed while one host's is.
    pub breaker: String,
    /// Its hosts whose breakers are not closed.
    #[serde(default)]
    pub hosts: Vec<HostSummary>,
    /// What ready mail waits for, in one word: `turn`, `window`, `rate`, `throttled`, `breaker-open`, `probing`, `paused`, `held`, `shortage`.
    pub wait: String,
    /// Paused by command.
    pub paused: bool,
    /// What `queue resume` takes to end that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<String>,
    /// Acceptance of its oldest message, RFC 3339.
    pub oldest: Option<String>,
    /// When something happens next, RFC 3339.
    pub next_attempt: Option<String>,
    /// Why its mail waits now, if it is not well; else the last word from there about a message.
    pub last_reply: Option<String>,
    /// `oldest` in unix milliseconds.
    pub oldest_ms: Option<u64>,
    /// `next_attempt` in unix milliseconds.
    pub next_ms: Option<u64>,
    /// When `last_reply` was said about a message, unix milliseconds; `None` of what holds now.
    pub last_reply_ms: Option<u64>,
}

impl DestinationSummary {
    /// So many of those that it counts as being attempted wait for their turn at the destination's home: they may be tried, and are not.
    pub fn wait_in_turn(&mut self, recipients: u64) {
        let waiting = recipients.min(self.active);
        self.active -= waiting;
        self.ready += waiting;
    }

    /// Adds what another shard says of the same destination.
    pub fn add(&mut self, other: DestinationSummary) {
        let is_worse = badness(&other.breaker) > badness(&self.breaker);
        let explains_more = match (self.ready > 0, other.ready > 0) {
            (false, true) => true,
            (true, false) => false,
            _ => is_worse,
        };
        if is_worse {
            self.breaker = other.breaker;
        }
        if explains_more {
            self.wait = other.wait;
        }
        for host in other.hosts {
            match self.hosts.iter_mut().find(|known| known.host == host.host) {
                Some(known) if badness(&host.breaker) <= badness(&known.breaker) => {}
                Some(known) => *known = host,
                None => self.hosts.push(host),
            }
        }
        self.messages += other.messages;
        self.recipients += other.recipients;
        self.ready += other.ready;
        self.deferred += other.deferred;
        self.active += other.active;
        self.held += other.held;
        self.offered += other.offered;
        self.failed += other.failed;
        self.connections += other.connections;
        self.window += other.window;
        self.connections_max = self.connections_max.max(other.connections_max);
        self.rate = self.rate.take().or(other.rate);
        self.paused |= other.paused;
        self.paused_by = self.paused_by.take().or(other.paused_by);
        if other.oldest_ms.is_some() && (self.oldest_ms.is_none() || other.oldest_ms < self.oldest_ms) {
            (self.oldest_ms, self.oldest) = (other.oldest_ms, other.oldest);
        }
        if other.next_ms.is_some() && (self.next_ms.is_none() || other.next_ms < self.next_ms) {
            (self.next_ms, self.next_attempt) = (other.next_ms, other.next_attempt);
        }
        let says_more = match (self.last_reply_ms, other.last_reply_ms) {
            _ if self.last_reply.is_none() || other.last_reply.is_none() => other.last_reply.is_some(),
            // What holds now is newer than any answer; of two such that goes with `wait`.
            (None, None) => explains_more,
            (own, others) => own.is_some_and(|own| others.is_none_or(|others| others > own)),
        };
        if says_more {
            (self.last_reply_ms, self.last_reply) = (other.last_reply_ms, other.last_reply);
        }
    }
}

/// More is worse.
fn badness(breaker: &str) -> Option<usize> {
    [Breaker::Closed, Breaker::HalfOpen, Breaker::Open { until: 0 }].iter().position(|state| state.as_str() == breaker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(ready: u64, breaker: &str, wait: &str) -> DestinationSummary {
        DestinationSummary { ready, breaker: breaker.into(), wait: wait.into(), ..DestinationSummary::default() }
    }

    /// A shard without ready mail whose breaker was open was passed over for the next one with some.
    #[test]
    fn the_breaker_is_the_worst_and_the_wait_is_that_of_ready_mail() {
        let closed = || shard(1, "closed", "window");
        let open = |ready| shard(ready, "open", "breaker-open");
        for (shards, breaker, wait) in [
            ([open(0), closed()], "open", "window"),
            ([closed(), open(0)], "open", "window"),
            ([closed(), open(3)], "open", "breaker-open"),
            ([open(3), closed()], "open", "breaker-open"),
            ([shard(0, "half-open", "probing"), shard(0, "closed", "turn")], "half-open", "probing"),
            ([shard(0, "closed", "turn"), shard(0, "half-open", "probing")], "half-open", "probing"),
            ([shard(0, "closed", "turn"), closed()], "closed", "window"),
        ] {
            let ready = shards.iter().map(|shard| shard.ready).sum();
            let [mut sum, other] = shards;
            sum.add(other);
            assert_eq!((&*sum.breaker, &*sum.wait, sum.ready), (breaker, wait, ready));
        }
    }

    /// Of a destination whose host did not answer, and of which another shard had mail that was put off before, it said "450 4.2.1 Busy, an old word".
    #[test]
    fn what_holds_now_is_the_last_word_whatever_was_said_of_messages() {
        let says = |ready, wait: &str, word: Option<&str>, at| DestinationSummary {
            last_reply: word.map(str::to_owned),
            last_reply_ms: at,
            ..shard(ready, if wait == "breaker-open" { "open" } else { "closed" }, wait)
        };
        let (older, newer) = (|| says(1, "turn", Some("450 older"), Some(10)), || says(1, "turn", Some("450 newer"), Some(20)));
        let (dead, throttled) = (|| says(1, "breaker-open", Some("refused"), None), || says(0, "throttled", Some("421 less"), None));
        let nothing = || says(1, "turn", None, None);
        for (shards, word, at) in [
            ([older(), newer()], "450 newer", Some(20)),
            ([newer(), older()], "450 newer", Some(20)),
            ([dead(), newer()], "refused", None),
            ([newer(), dead()], "refused", None),
            ([dead(), throttled()], "refused", None),
            ([throttled(), dead()], "refused", None),
            ([nothing(), older()], "450 older", Some(10)),
            ([older(), nothing()], "450 older", Some(10)),
            ([nothing(), dead()], "refused", None),
            ([dead(), nothing()], "refused", None),
        ] {
            let [mut sum, other] = shards;
            sum.add(other);
            assert_eq!((sum.last_reply.as_deref(), sum.last_reply_ms), (Some(word), at));
        }
    }

    #[test]
    fn a_host_is_told_once_as_the_shard_says_for_which_it_is_worst() {
        let host = |name: &str, breaker: &str, reason: &str| HostSummary {
            host: name.into(),
            breaker: breaker.into(),
            reason: reason.into(),
            ..HostSummary::default()
        };
        let of = |hosts: &[HostSummary]| DestinationSummary { hosts: hosts.to_vec(), ..DestinationSummary::default() };
        let (a, b, c) = (host("a", "half-open", "refused"), host("b", "open", "silent"), host("c", "open", "reset"));
        let mut sum = of(&[a, b.clone()]);
        sum.add(of(&[host("a", "open", "lost"), host("b", "half-open", "?"), c.clone()]));
        assert_eq!(sum.hosts, [host("a", "open", "lost"), b, c]);
    }
}
