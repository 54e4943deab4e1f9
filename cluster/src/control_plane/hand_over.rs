//! Asking whoever leads to let another lead.

use std::time::Duration;

use redis::Value;

use super::{ControlPlane, REPLICATION_TTL_PARTS};
use crate::{boot_time::BootTime, identity::Leadership, valkey::CALL_DEADLINE, valkey_error::ValkeyError};

/// A leader that is asked to step down is asked again so often, while it has the lease.
const HAND_OVER_REPEATS: u32 = 10;
/// After so long each time.
const HAND_OVER_GAP: Duration = Duration::from_millis(250);
/// How often it is looked who follows.
const SUCCESSOR_LOOK: Duration = Duration::from_millis(50);
/// Beside the wait for replicas an election that fails makes a call to get the lease, two for its replicas and one to give it back.
const CALLS_OF_ELECTION: Duration = CALL_DEADLINE.saturating_mul(4);

impl ControlPlane {
    /// Who has the lease.
    pub(crate) async fn holder(&self) -> Result<Option<Leadership>, ValkeyError> {
        let leader = match self.valkey.command(redis::cmd("GET").arg(self.keyspace.leader())).await? {
            Value::Nil => return Ok(None),
            Value::BulkString(text) => String::from_utf8(text).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        leader.ok_or(ValkeyError::Malformed("a leader")).map(Some)
    }

    /// Asks whoever leads to step down; `None`: nobody does.
    pub async fn ask_hand_over(&self) -> Result<Option<Leadership>, ValkeyError> {
        let leader = self.holder().await?;
        if let Some(leader) = &leader {
            self.tell_hand_over(leader).await?;
        }
        Ok(leader)
    }

    /// Asks this leader again and again while it has the lease, for some seconds: right behind a failover it listens to nobody for a moment.
    pub async fn repeat_hand_over(&self, leader: &Leadership) {
        for _ in 0..HAND_OVER_REPEATS {
            tokio::time::sleep(HAND_OVER_GAP).await;
            match self.holder().await {
                Ok(Some(holder)) if holder == *leader => drop(self.tell_hand_over(leader).await),
                Ok(_) => return,
                Err(_) => {}
            }
        }
    }

    /// Waits until somebody has the lease by another election than that of `before`, for `patience` at most. Returns who has it then: `before` itself, who
    /// leads on; the same node by a later election; another node; or `None`, nobody. Fails where Valkey does not answer at the end.
    ///
    /// Where `replicas` above 0 must have the lease, who has it is not elected yet, and gives it back when they do not get it within a part of `ttl`: who
    /// has it for longer counts, and whoever has it when the patience ends is waited for as long.
    pub async fn successor(
        &self,
        before: &Leadership,
        replicas: u32,
        ttl: Duration,
        patience: Duration,
    ) -> Result<Option<Leadership>, ValkeyError> {
        let to_be_elected = if replicas == 0 { Duration::ZERO } else { ttl / REPLICATION_TTL_PARTS + CALLS_OF_ELECTION };
        let mut succession = Succession { before, to_be_elected, until: BootTime::now() + patience, candidate: None };
        loop {
            let asked_at = BootTime::now();
            match self.holder().await {
                Ok(found) => {
                    if let Some(end) = succession.looked(found, asked_at, BootTime::now()) {
                        return Ok(end);
                    }
                }
                Err(reason) if succession.is_over(asked_at) => return Err(reason),
                Err(_) => {}
            }
            tokio::time::sleep(SUCCESSOR_LOOK).await;
        }
    }

    async fn tell_hand_over(&self, leader: &Leadership) -> Result<Value, ValkeyError> {
        self.valkey.command(redis::cmd("PUBLISH").arg(self.keyspace.events()).arg(format!("handover {leader}"))).await
    }
}

/// Who follows a leader, by one look after another at who has the lease. Pure.
#[derive(Debug)]
struct Succession<'l> {
    before: &'l Leadership,
    /// Who has the lease for so long is elected.
    to_be_elected: Duration,
    until: BootTime,
    /// Who has the lease by another election, and since when, as far as was seen.
    candidate: Option<(Leadership, BootTime)>,
}

impl Succession<'_> {
    /// What was found by a look that began at `asked_at` and was answered at `heard_at`. `Some`: that is the end.
    fn looked(&mut self, found: Option<Leadership>, asked_at: BootTime, heard_at: BootTime) -> Option<Option<Leadership>> {
        let Some(holder) = found.as_ref().filter(|holder| *holder != self.before) else {
            self.candidate = None;
            return self.is_over(asked_at).then_some(found);
        };
        let since = self.candidate.as_ref().filter(|(candidate, _)| candidate == holder).map_or(asked_at, |(_, since)| *since);
        if heard_at.since(since) >= self.to_be_elected {
            return Some(found);
        }
        self.candidate = found.map(|holder| (holder, since));
        self.is_over(asked_at).then_some(None)
    }

    /// Nothing is waited for any more: neither that somebody has the lease, nor that who has it is elected.
    fn is_over(&self, now: BootTime) -> bool {
        let more = if self.candidate.is_some() { self.to_be_elected } else { Duration::ZERO };
        now >= self.until + more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Epoch, Incarnation};

    fn at(millis: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(100_000 + millis))
    }

    fn leadership(node: &str, epoch: u64) -> Leadership {
        Leadership { incarnation: Incarnation::new(node.parse().unwrap(), 7), epoch: Epoch(epoch) }
    }

    /// A patience of 1000 ms and 450 ms until who has the lease is elected.
    fn succession(before: &Leadership) -> Succession<'_> {
        Succession { before, to_be_elected: Duration::from_millis(450), until: at(1000), candidate: None }
    }

    /// Who had the lease when the patience ended, and was elected a moment later, was told as nobody.
    #[test]
    fn who_has_the_lease_when_the_patience_ends_is_waited_for() {
        let (before, next) = (leadership("n1", 1), leadership("n2", 2));
        let mut succession = succession(&before);
        assert_eq!(succession.looked(None, at(900), at(901)), None);
        for millis in (950..1400).step_by(50) {
            assert_eq!(succession.looked(Some(next.clone()), at(millis), at(millis)), None, "{millis}");
            // One look that is not answered is none.
            assert!(!succession.is_over(at(millis)));
        }
        assert_eq!(succession.looked(Some(next.clone()), at(1400), at(1400)), Some(Some(next)));
    }

    #[test]
    fn who_gives_the_lease_back_is_nobody_and_no_succession_of_such_is_waited_for() {
        let before = leadership("n1", 1);
        let mut of_one = succession(&before);
        assert_eq!(of_one.looked(Some(leadership("n2", 2)), at(950), at(950)), None);
        assert_eq!(of_one.looked(None, at(1000), at(1001)), Some(None));
        let mut of_many = succession(&before);
        let ends = (0..).map(|look| 50 * look).find_map(|millis| {
            // Another election each 200 ms.
            let end = of_many.looked(Some(leadership("n2", 2 + millis / 200)), at(millis), at(millis))?;
            Some((millis, end))
        });
        assert_eq!(ends, Some((1450, None)));
    }

    #[test]
    fn a_leader_that_leads_on_is_told_when_the_patience_ends() {
        let before = leadership("n1", 1);
        let mut succession = succession(&before);
        assert_eq!(succession.looked(Some(before.clone()), at(999), at(1100)), None);
        assert_eq!(succession.looked(Some(before.clone()), at(1100), at(1101)), Some(Some(before.clone())));
    }
}
