//! Election and fence of one node together: what it leads with and what it accepts from others.
//!
//! The caller does the I/O: it sends what [`Standing::next`] asks for, and makes leaderships durable before it accepts them.

use crate::{
    boot_time::BootTime,
    election::{Answer, Election, ElectionTimes, Event, Step},
    fence::{Fence, Verdict},
    identity::{Epoch, Incarnation, Leadership, Role},
};

/// One node's place in the cluster's order.
#[derive(Clone, Debug)]
pub struct Standing {
    election: Election,
    fence: Fence,
}

impl Standing {
    /// `accepted` is what this node's disk says it has accepted last.
    pub fn new(me: Incarnation, role: Role, times: ElectionTimes, accepted: Option<Leadership>) -> Standing {
        let fence = Fence::new(accepted);
        Standing { election: Election::new(me, role, times, fence.floor()), fence }
    }

    /// See [`Election::next`].
    pub fn next(&mut self, now: BootTime, masters_alive: bool, random: u64) -> Step {
        self.election.next(now, masters_alive, random)
    }

    /// See [`Election::answered`].
    pub fn answered(&mut self, now: BootTime, answer: Answer) {
        self.election.answered(now, answer);
    }

    /// The own election that waits to be durable: write it, then [`Standing::accept`] it.
    pub fn to_persist(&mut self) -> Option<Leadership> {
        let mine = self.election.unconfirmed()?;
        if self.fence.judge(&mine) == Verdict::Newer {
            return Some(mine);
        }
        self.election.refused(self.fence.floor());
        None
    }

    /// What to do with an order under `leadership`; for [`Verdict::Newer`] write it to disk, then [`Standing::accept`] it, then act.
    pub fn judge(&self, leadership: &Leadership) -> Verdict {
        self.fence.judge(leadership)
    }

    /// `leadership` is durable here: orders below it are refused from now on, and an own election is led with.
    pub fn accept(&mut self, now: BootTime, leadership: Leadership) {
        let epoch = leadership.epoch;
        let is_own = self.election.unconfirmed().as_ref() == Some(&leadership);
        self.fence.accept(leadership);
        self.election.accepted(epoch);
        if is_own {
            self.election.confirm(now);
        } else {
            self.election.refused(epoch);
        }
    }

    /// A receiver answered an order of ours with the epoch that it has accepted.
    pub fn refused(&mut self, epoch: Epoch) {
        self.election.refused(epoch);
    }

    /// A heartbeat's answer: the epoch that Valkey knows and who holds the lease.
    pub fn saw(&mut self, now: BootTime, epoch: Epoch, leader: Option<Leadership>) {
        self.election.saw_epoch(epoch);
        self.election.saw_leader(now, leader);
    }

    /// See [`Election::hand_over`].
    pub fn hand_over(&mut self, now: BootTime) {
        self.election.hand_over(now);
    }

    /// See [`Election::set_fit`].
    pub fn set_fit(&mut self, is_fit: bool) {
        self.election.set_fit(is_fit);
    }

    /// See [`Election::is_asking`].
    pub fn is_asking(&self) -> bool {
        self.election.is_asking()
    }

    /// See [`Election::hurry`].
    pub fn hurry(&mut self, now: BootTime, random: u64) {
        self.election.hurry(now, random);
    }

    /// See [`Election::leadership`].
    pub fn leadership(&self, now: BootTime) -> Option<Leadership> {
        self.election.leadership(now)
    }

    /// Whose standing this is.
    pub fn incarnation(&self) -> &Incarnation {
        self.election.incarnation()
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<&Leadership> {
        self.election.leader()
    }

    /// The highest epoch accepted.
    pub fn floor(&self) -> Epoch {
        self.fence.floor()
    }

    /// See [`Election::take_events`].
    pub fn take_events(&mut self) -> Vec<Event> {
        self.election.take_events()
    }
}
