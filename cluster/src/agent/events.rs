//! What became of the election: logged, counted and shown to others.

use tracing::{error, info, warn};

use super::Agent;
use crate::{boot_time::BootTime, election::Event, identity::Epoch};

/// Each node asks once a leader_ttl while replicas are missing: after so many without, they were back.
const REPLICAS_BACK_TTLS: u32 = 4;

impl Agent {
    /// Logs what changed and shows it to others.
    pub(super) fn publish(&mut self, now: BootTime) {
        for event in self.standing.take_events() {
            match event {
                Event::Elected(epoch) => {
                    (self.has_refused_epoch, self.has_told_frozen) = (false, false);
                    info!(%epoch, "this node leads");
                    self.count("elected");
                    // Everything is read anew (L11).
                    self.terms += 1;
                    self.is_list_of_term = false;
                    self.next_members = now;
                    self.read_members(now);
                }
                Event::SteppedDown(epoch, why) => {
                    info!(%epoch, ?why, "this node leads no longer");
                    self.count("stepped_down");
                }
                Event::LeaderChanged(Some(leader)) => {
                    self.has_refused_epoch = false;
                    info!(leader = %leader.incarnation.node(), epoch = %leader.epoch, "leader changed");
                    self.count("leader_changes");
                    self.follow(leader);
                }
                Event::LeaderChanged(None) => {
                    self.has_told_frozen = false;
                    info!("no leader");
                    // At its start a node has lost none.
                    if self.handle.known().leader.is_some() {
                        self.count("leader_lost");
                    }
                }
                Event::OutOfReach(epoch) => self.refuse_epoch(epoch),
                Event::NotReplicated(epoch) => self.replicas_are_missing(now, epoch),
                // It comes with each poll, until the lease runs out or is another's: told once.
                Event::FrozenLease(left) => {
                    if !std::mem::replace(&mut self.has_told_frozen, true) {
                        warn!(left_s = left.as_secs(), "the leader's lease outlasts its time: the clock of Valkey's host was stepped back");
                        self.count("frozen_leases");
                    }
                }
            }
        }
        let leadership = self.standing.leadership(now);
        let is_leader = leadership.is_some();
        let mut known = self.handle.known();
        known.is_leader = is_leader;
        known.leader = self.standing.leader().cloned();
        known.epoch = self.standing.floor();
        drop(known);
        if is_leader != self.was_leading {
            self.was_leading = is_leader;
            self.surroundings.leads(leadership);
        }
    }

    /// Nobody can lead: told once, until it was otherwise for a while.
    fn replicas_are_missing(&mut self, now: BootTime, epoch: Epoch) {
        self.count("elections_not_replicated");
        let before = self.replicas_missed_at.replace(now);
        if before.is_none_or(|before| now.since(before) > self.settings.leader_ttl * REPLICAS_BACK_TTLS) {
            let required = self.settings.replicas_required;
            warn!(%epoch, required, "Valkey's replicas did not get a lease in time: nobody is elected until cluster.replicas_required of them do");
        }
    }

    /// An epoch out of reach: told once, until a leader is there again.
    pub(super) fn refuse_epoch(&mut self, epoch: Epoch) {
        self.count("epochs_out_of_reach");
        if !std::mem::replace(&mut self.has_refused_epoch, true) {
            error!(%epoch, accepted = %self.standing.floor(), "an epoch in Valkey is far above all that were accepted: it is damaged or forged; restore or remove the keys leader, epoch, plan and shares");
        }
    }
}
