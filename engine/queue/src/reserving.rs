//! Moments of a rate that all nodes share are asked for, destination by destination, and what came of it is taken in.

use crate::destination_id::DestinationId;
use crate::queue::Queue;
use crate::quota::{Reserved, SharedRate};
use crate::site::Role;

/// What nobody could be asked for is asked for again after this.
const NOT_ASKED_MS: u64 = 100;

/// What is to be reserved. Ends in [`Queue::reserved`] or [`Queue::not_reserved`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reservation {
    /// Whose mail waits.
    pub destination: DestinationId,
    /// The same on all nodes with the same routes.
    pub name: String,
    /// The limit.
    pub limit: SharedRate,
    /// So many could be used, 1 to [`SLOTS_MAX`](crate::SLOTS_MAX).
    pub slots: u32,
}

impl Queue {
    /// Takes in what came of a [`Reservation`]. What was asked for a destination that was dropped meanwhile is lost.
    pub fn reserved(&mut self, destination: DestinationId, reserved: Reserved, now: u64) {
        if let Some(state) = self.live_mut(destination) {
            state.quota.answered(reserved, now);
            self.refresh(destination.slot, now);
        }
    }

    /// A [`Reservation`] could not be passed on: it comes again soon.
    pub fn not_reserved(&mut self, destination: DestinationId, now: u64) {
        self.reserved(destination, Reserved::Later(NOT_ASKED_MS), now);
    }

    /// The next thing to reserve.
    pub(crate) fn poll_reservation(&mut self) -> Option<Reservation> {
        loop {
            let (destination, slots) = self.reservations.pop_front()?;
            let Some(state) = self.live(destination) else { continue };
            let Some(limit) = state.limits.shared_rate else { continue };
            return Some(Reservation { destination, name: self.shared_name(destination), limit, slots });
        }
    }

    /// Route and site, whatever the shard or node.
    fn shared_name(&self, destination: DestinationId) -> String {
        let Some(state) = self.live(destination) else { return String::new() };
        let route = state.route.map_or("", |route| &self.routes.all()[usize::from(route.0)].pattern);
        match &state.role {
            Role::Site(site) => format!("{route}/{}", site.key),
            _ => route.to_owned(),
        }
    }

    /// Asks for more of a shared rate, if this destination could use it.
    pub(crate) fn ask_for_quota(&mut self, slot: u32, now: u64) {
        let state = &mut self.destinations[slot as usize];
        let Some(limit) = state.limits.shared_rate else { return };
        if state.away.is_some() || state.paused || state.is_held() || !state.has_mail() || state.blocked_until(now).is_some() {
            return;
        }
        if let Some(slots) = state.quota.ask(limit.rate, now) {
            let id = self.id(slot);
            self.reservations.push_back((id, slots));
        }
    }
}
