//! Recipients that a command sent another way than their domains say, or than the rest of their message goes.
//!
//! A message that goes one way as a whole says so itself ([`Message::rerouted`](crate::message::Message)). One of which a filter chose
//! some recipients is in a table here, with the route of each; there are few of them. `outcome.rs` has the persisted form.

use std::collections::{BTreeMap, HashMap};

use crate::message::{Flags, NOT_REROUTED};
use crate::outcome::{DecodeError, names_routes, read_head, read_record};
use crate::queue::Queue;
use crate::route::RouteId;

/// The routes of messages that were re-routed in part, by their index: one for each recipient, or [`NOT_REROUTED`].
#[derive(Debug, Default)]
pub(crate) struct Reroutes {
    by_message: HashMap<u32, Box<[u16]>>,
}

/// What the records of a message say about re-routes, by the patterns of the routes.
#[derive(Debug, Default)]
pub(crate) struct RecordedReroutes<'r> {
    /// Of all recipients that are not in `own`.
    whole: Option<&'r str>,
    own: BTreeMap<u16, &'r str>,
}

impl<'r> RecordedReroutes<'r> {
    /// From all records, oldest first.
    pub(crate) fn read(records: impl Iterator<Item = &'r [u8]> + Clone) -> Result<Self, DecodeError> {
        let mut recorded = Self::default();
        if !records.clone().any(names_routes) {
            for record in records {
                recorded.whole = read_head(record)?.route;
            }
            return Ok(recorded);
        }
        for record in records {
            let own = &mut recorded.own;
            let head = read_record(record, |state| {
                match state.route {
                    Some(route) => own.insert(state.recipient, route),
                    None => own.remove(&state.recipient),
                };
                Ok(())
            })?;
            recorded.whole = head.route;
        }
        Ok(recorded)
    }

    /// Nothing was re-routed.
    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_none() && self.own.is_empty()
    }

    fn of(&self, recipient: u16) -> Option<&'r str> {
        self.own.get(&recipient).copied().or(self.whole)
    }

    /// The routes of so many recipients; where the pattern is none any more, [`NOT_REROUTED`].
    pub(crate) fn resolve(&self, recipients: usize, find: impl Fn(&str) -> Option<RouteId>) -> Vec<u16> {
        // Neighbours mostly go the same way.
        let mut last: (Option<&str>, u16) = (None, NOT_REROUTED);
        let one = |recipient| {
            let pattern = self.of(recipient);
            if pattern != last.0 {
                last = (pattern, pattern.and_then(&find).map_or(NOT_REROUTED, |route| route.0));
            }
            last.1
        };
        (0..).take(recipients).map(one).collect()
    }

    /// The first pattern of these recipients that is none any more.
    pub(crate) fn first_lost(&self, recipients: impl Iterator<Item = u16>, find: impl Fn(&str) -> Option<RouteId>) -> Option<&'r str> {
        let mut found = None;
        let patterns = recipients.filter_map(|recipient| self.of(recipient));
        patterns.filter(|pattern| found.replace(*pattern) != Some(*pattern)).find(|pattern| find(pattern).is_none())
    }
}

impl Queue {
    /// The route that a command sent this recipient by.
    pub(crate) fn rerouted_to(&self, index: u32, recipient: u16) -> Option<RouteId> {
        let message = &self.messages[index];
        let route = match message.flags.has(Flags::PARTLY_REROUTED) {
            true => self.reroutes.by_message[&index][usize::from(recipient)],
            false => message.rerouted,
        };
        (route != NOT_REROUTED).then_some(RouteId(route))
    }

    /// Sends these recipients by a route, the others as before.
    pub(crate) fn reroute_some(&mut self, index: u32, chosen: &[u16], to: RouteId) {
        let is_chosen = |number: u16| chosen.binary_search(&number).is_ok();
        // Those that are over stay where they went.
        let word = |number| if is_chosen(number) { to.0 } else { self.route_word(index, number) };
        let routes = (0..).take(self.messages.recipients(index).len()).map(word).collect();
        self.set_reroutes(index, routes);
    }

    /// Sets the route of each recipient, or [`NOT_REROUTED`].
    pub(crate) fn set_reroutes(&mut self, index: u32, routes: Vec<u16>) {
        let first = routes[0];
        if routes.iter().all(|&route| route == first) {
            return self.reroute_whole(index, first);
        }
        self.reroutes.by_message.insert(index, routes.into_boxed_slice());
        let message = &mut self.messages[index];
        message.rerouted = NOT_REROUTED;
        message.flags.set(Flags::PARTLY_REROUTED, true);
    }

    fn reroute_whole(&mut self, index: u32, route: u16) {
        self.forget_reroutes(index);
        let message = &mut self.messages[index];
        message.rerouted = route;
        message.flags.set(Flags::PARTLY_REROUTED, false);
    }

    /// Routes that match nothing any more are none: who was sent by one goes by domain again.
    pub(crate) fn forget_lost_reroutes(&mut self, index: u32) {
        let count = self.messages.recipients(index).len();
        let kept = |number| self.rerouted_to(index, number).filter(|&route| self.routes.is_matched(route));
        if (0..).take(count).any(|number| self.rerouted_to(index, number) != kept(number)) {
            let routes = (0..).take(count).map(|number| kept(number).map_or(NOT_REROUTED, |route| route.0)).collect();
            self.set_reroutes(index, routes);
        }
    }

    /// It goes another way than the rest of its message.
    pub(crate) fn has_own_route(&self, index: u32, recipient: u16) -> bool {
        self.messages[index].flags.has(Flags::PARTLY_REROUTED) && self.rerouted_to(index, recipient).is_some()
    }

    /// The message leaves, or goes one way.
    pub(crate) fn forget_reroutes(&mut self, index: u32) {
        if self.messages[index].flags.has(Flags::PARTLY_REROUTED) {
            self.reroutes.by_message.remove(&index);
        }
    }

    fn route_word(&self, index: u32, recipient: u16) -> u16 {
        self.rerouted_to(index, recipient).map_or(NOT_REROUTED, |route| route.0)
    }
}
