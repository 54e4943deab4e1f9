//! Another routing table while mail is queued: what a route says from now on, and mail that leads elsewhere by the new table.

use std::ops::Range;

use crate::destination::Destination;
use crate::message::{Flags, MessageKey, NO_RECIPIENT};
use crate::queue::Queue;
use crate::route::{Route, RouteId, Via};
use crate::routes::RouteError;
use crate::site::{Answer, Role};
use crate::slab::NONE;

/// Tables that may follow each other before the shards have come down to the limits of the first.
const TABLES_MAX: usize = 16;

/// What another table means for a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Followed {
    /// A recipient leads elsewhere than before.
    pub moves: bool,
    /// A route holds a recipient, and none did before.
    pub is_held_now: bool,
}

impl Queue {
    /// Takes another table, as [`Queue::begin_routes`], at all destinations at once.
    pub fn set_routes(&mut self, routes: Vec<Route>, now: u64) -> Result<(), RouteError> {
        self.begin_routes(routes, now)?;
        self.reconfigure(0..self.destinations.len(), now);
        Ok(())
    }

    /// Takes another table, by which mail is routed from now on; each destination goes by it when [`Queue::reconfigure`] was called for
    /// its slot, until then by the limits, hosts and retries that it has; those of new routes do so at once. Where there are several shards, parts of limits that grow do so
    /// with [`Queue::begin_settling`]. Patterns that stay keep their [`RouteId`]; those that are gone match nothing any more, but what
    /// leads to them goes on until [`Queue::follow_routes`] was called for its message.
    pub fn begin_routes(&mut self, routes: Vec<Route>, now: u64) -> Result<(), RouteError> {
        if self.limits_before.len() == TABLES_MAX {
            return Err(RouteError::ChangingOver);
        }
        let routes = self.routes.replaced(routes)?;
        if self.settings.homes.shards > 1 {
            self.limits_before.push(self.routes.all().iter().map(|route| route.limits).collect());
        }
        self.routes = routes;
        for number in self.route_slots.len()..self.routes.all().len() {
            let (id, route) = (RouteId(number as u16), &self.routes.all()[number]);
            let state = Destination::new(Some(id), Via::Hold, route.limits, route.retry, route.pattern.clone());
            let slot = self.add_destination(state);
            self.route_slots.push(slot);
            // Mail comes to it from now on, and is to expire as its route says, whether or not it is looked at once more.
            self.reconfigure_one(slot, now);
            self.refresh(slot, now);
        }
        Ok(())
    }

    /// The destinations in these of the [`Queue::destination_slots`] go by what their routes say now. One that is made meanwhile does so
    /// from the start.
    pub fn reconfigure(&mut self, slots: Range<usize>, now: u64) {
        for slot in slots.start..slots.end.min(self.destinations.len()) {
            self.reconfigure_one(slot as u32, now);
            self.refresh(slot as u32, now);
        }
    }

    /// Takes over what the route of a destination says now: hosts, limits, homes, retries.
    fn reconfigure_one(&mut self, slot: u32, now: u64) {
        let state = &mut self.destinations[slot as usize];
        let Some(route) = state.route else { return };
        let route = &self.routes.all()[usize::from(route.0)];
        let (was_held, lifetime_before) = (state.is_held(), state.retry.lifetime_ms);
        state.retry = route.retry;
        match state.role {
            Role::Route => {
                let hosts = match &route.via {
                    Via::Smarthost { hosts } | Via::Lmtp { hosts } => hosts.clone(),
                    _ => Vec::new(),
                };
                state.via = route.via.clone();
                state.set_hosts(&hosts, true);
            }
            // Domains and sites of a route that is by mx no more are left when their mail is.
            Role::Domain(_) | Role::Site(_) => {
                if matches!(route.via, Via::Mx { .. } | Via::Named { .. }) && state.via != route.via {
                    state.via = route.via.clone();
                    // Other names are other hosts: they are asked for anew.
                    if let Role::Domain(domain) = &mut state.role {
                        domain.answer = Answer::Unknown;
                        state.table = state.table.wrapping_add(1);
                    }
                }
            }
            Role::Vacant => return,
        }
        state.holds_anew = !was_held && state.is_held();
        // Mail that was not too old, or did not grow old, now is. It is found message by message, and is not to fail until then.
        if was_held && !state.is_held() || state.retry.lifetime_ms < lifetime_before {
            (state.spares_since, state.spares_until) = (now, now + self.settings.grace_ms);
        }
        self.assign_homes(slot, now);
    }

    /// Sends the recipients of a message where the table now says. Nothing is to be persisted, because a restart finds the same. A re-routed
    /// message stays so while its route exists. Mail that is past its lifetime by the new table gets one more attempt.
    pub fn follow_routes(&mut self, key: MessageKey, now: u64) -> Followed {
        let Some(index) = self.find_open(key) else { return Followed::default() };
        let was_held = self.is_any(index, |destination| destination.is_held() && !destination.holds_anew);
        self.forget_lost_reroutes(index);
        let moves = self.leads_elsewhere(index);
        if moves {
            self.regroup(index, now);
        } else if !self.messages[index].flags.has(Flags::REGROUP) {
            // Another lifetime, or a hold that began or ended.
            if self.messages[index].grace_until <= now {
                self.grant_grace(index, now);
            }
            self.arm(index);
        }
        Followed { moves, is_held_now: !was_held && self.is_any(index, Destination::is_held) }
    }

    /// Does an open recipient of a message lead to such a destination?
    fn is_any(&self, index: u32, is_such: impl Fn(&Destination) -> bool) -> bool {
        let mut recipients = self.messages.recipients(index).iter();
        recipients.any(|one| one.place.is_open() && is_such(&self.destinations[self.groups[one.group].destination as usize]))
    }

    pub(crate) fn leads_elsewhere(&mut self, index: u32) -> bool {
        let mut group = self.messages[index].first_group;
        while group != NONE {
            let (mut next, here, behind) = (self.groups[group].first, self.groups[group].destination, self.groups[group].next_in_message);
            while next != NO_RECIPIENT {
                if self.destination_now(index, next).slot != here {
                    return true;
                }
                next = self.messages.recipients(index)[usize::from(next)].next_in_group;
            }
            group = behind;
        }
        false
    }
}
