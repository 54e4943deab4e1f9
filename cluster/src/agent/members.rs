//! The list of nodes: when it is read, and what it says that is new.

use std::time::Duration;

use tracing::info;

use super::{Agent, Outcome};
use crate::{
    boot_time::BootTime,
    identity::Role,
    membership::{Member, MemberEvent, Members},
    valkey::random_u64,
};

impl Agent {
    /// The list of nodes is read now, or as soon as it may be.
    pub(super) fn read_members(&mut self, now: BootTime) {
        self.wants_members = true;
        if !self.is_reading_members && now >= self.next_members {
            (self.wants_members, self.is_reading_members) = (false, true);
            let (control, terms) = (self.control.clone(), self.terms);
            self.tasks.spawn(async move { Outcome::Members(terms, control.members().await) });
        }
    }

    /// Every node reads all nodes: in a large cluster less often, so that what Valkey sends does not grow with the square of their number.
    /// Whoever leads, or stands when no master is alive, has to know at once.
    pub(super) fn members_pause(&self, now: BootTime, count: usize) -> Duration {
        let small = Members::heartbeats_per_reading(count);
        if small == 0 || self.settings.role == Role::Standby || self.standing.leadership(now).is_some() {
            return Duration::ZERO;
        }
        let jitter = u32::try_from(random_u64() % 1024).expect("below 1024");
        self.settings.heartbeat_interval * small * 3 / 4 + self.settings.heartbeat_interval * small / 2 * jitter / 1024
    }

    /// The list that was read `now`, at `server_now_ms` of the server's clock.
    pub(super) fn update_members(&mut self, now: BootTime, members: Vec<Member>, server_now_ms: u64) {
        let events = {
            let mut known = self.handle.known();
            let events = known.members.update(members, server_now_ms, now);
            self.masters_alive = known.members.masters_alive();
            events
        };
        if !events.is_empty() {
            // Whoever leads divides shared limits anew at once.
            self.next_chores = BootTime::default();
        }
        for event in events {
            match event {
                MemberEvent::Joined(node) => {
                    info!(%node, "node joined");
                    self.count("nodes_joined");
                }
                MemberEvent::Left(node) => {
                    info!(%node, "node left");
                    self.count("nodes_left");
                }
                MemberEvent::HealthChanged(node, from, to) => {
                    info!(%node, ?from, ?to, "node's health changed");
                    self.count("health_changes");
                }
            }
        }
    }
}
