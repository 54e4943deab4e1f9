//! Destinations that operators paused: no attempt is begun there until they are resumed. Acceptance and attempts under way go on.
//!
//! A pause is of names, not of the destinations that there are: one that is made later is paused from its start.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use crate::destination::Destination;
use crate::destination_id::DestinationId;
use crate::domain_name::{canonical_pattern, is_domain};
use crate::guest::Guest;
use crate::queue::Queue;
use crate::route::{RouteId, Via};
use crate::site::Role;

/// Names at most: each new destination is compared with them.
pub const PAUSES_MAX: usize = 1024;

/// What is paused.
///
/// A name pauses each destination that is called so, and all of a route whose pattern it is; `*.y.test` every domain below `y.test` that
/// has a destination of its own (by mx), whichever route it goes by.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pauses {
    all: bool,
    /// As [`canonical_pattern`] writes them.
    names: BTreeSet<String>,
}

/// What pauses a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PausedBy<'q> {
    /// Everything is paused.
    All,
    /// This name.
    Name(&'q str),
}

/// As `queue resume` takes it.
impl fmt::Display for PausedBy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("--all"),
            Self::Name(name) if name.contains(|character: char| character.is_whitespace() || "*<>'\"[]".contains(character)) => {
                write!(f, "'{name}'")
            }
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Pauses {
    /// Pauses everything, or nothing but what is named. False if it was so.
    pub fn set_all(&mut self, all: bool) -> bool {
        std::mem::replace(&mut self.all, all) != all
    }

    /// Everything is paused.
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// False if it was there.
    pub fn insert(&mut self, name: &str) -> bool {
        self.names.insert(canonical_name(name))
    }

    /// False if it was not there.
    pub fn remove(&mut self, name: &str) -> bool {
        self.names.remove(&canonical_name(name))
    }

    /// The names, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Nothing is paused.
    pub fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty()
    }

    /// What pauses the destination of this name in a route of this pattern; `is_domain`: it is a domain of an mx route. The narrowest first.
    fn of(&self, name: &str, route: &str, is_domain: bool) -> Option<PausedBy<'_>> {
        if self.is_empty() {
            return None;
        }
        let named = |name: &str| self.names.get(name).map(|name| PausedBy::Name(name));
        let own = canonical_name(name);
        let above = || own.match_indices('.').find_map(|(dot, _)| named(&format!("*{}", &own[dot..])));
        let found = named(&own).or_else(|| if is_domain { above() } else { None }).or_else(|| named(&canonical_name(route)));
        found.or(self.all.then_some(PausedBy::All))
    }
}

/// A final dot makes no other name; `*.` with its dot taken off would be the route of all other mail.
fn canonical_name(name: &str) -> String {
    let bare = name.strip_suffix('.').filter(|bare| !matches!(*bare, "" | "*"));
    canonical_pattern(bare.unwrap_or(name))
}

impl Queue {
    /// Pauses these, and nothing else, from now on: destinations that are made later at once, those that there are with
    /// [`Queue::follow_pauses`].
    pub fn set_pauses(&mut self, pauses: Pauses) {
        self.pauses = pauses;
    }

    /// The destinations in these of the [`Queue::destination_slots`] are paused, or not, as the last [`Queue::set_pauses`] says. Guests of
    /// those that are go home.
    pub fn follow_pauses(&mut self, slots: Range<usize>, now: u64) {
        for slot in slots.start..slots.end.min(self.destinations.len()) {
            let is_paused = self.is_to_be_paused(&self.destinations[slot]);
            if self.destinations[slot].paused != is_paused {
                self.pause(self.id(slot as u32), is_paused, now);
            }
            if !self.destinations[slot].guests.is_empty() {
                self.refuse_paused_guests(slot as u32, now);
            }
        }
    }

    /// Starts no attempts at one destination, or does so again, as long as that is used: what lasts is [`Queue::set_pauses`].
    pub fn pause(&mut self, destination: DestinationId, paused: bool, now: u64) {
        if let Some(state) = self.live_mut(destination) {
            state.paused = paused;
            self.refresh(destination.slot, now);
        }
    }

    /// Can a destination be called so? Or a sentence for the operator that says why not.
    pub fn can_be_paused(&self, name: &str) -> Result<(), String> {
        let own = canonical_name(name);
        let is_one = |id: DestinationId| id != DestinationId::UNROUTED;
        if self.destinations_named(&own).any(is_one) || self.routes.by_pattern(&own).is_some() {
            return Ok(());
        }
        let (below, domain) = match own.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, &*own),
        };
        if !is_domain(domain) {
            return Err(format!("{name:?} is no destination: `ringpost queue summary` names those with mail, the config the routes"));
        }
        // No domain is called so: what no route names is routed as it is.
        let any_below = format!("_.{domain}");
        let probe = if below { any_below.as_bytes() } else { domain.as_bytes() };
        let by = self.routes.find(probe);
        let all: Vec<RouteId> = by.into_iter().chain(self.routes.find_for_senders(probe)).collect();
        let has_own = |route: &RouteId| matches!(self.routes.all()[usize::from(route.0)].via, Via::Mx { .. });
        let is_narrower = |pattern: &str| canonical_pattern(pattern).split(" from ").next().is_some_and(|of| of.ends_with(&own[1..]));
        let mut all_routes = (0..self.routes.all().len()).map(|number| RouteId(number as u16));
        if all.iter().any(has_own) || below && all_routes.any(|route| has_own(&route) && is_narrower(self.pattern(route))) {
            return Ok(());
        }
        Err(match by {
            Some(route) => {
                let pattern = self.pattern(route);
                format!(
                    "mail for {name} goes by the route {pattern:?}, which is one destination for all of its mail: pause {pattern:?}, or give {name} a route of its own"
                )
            }
            None => format!("no route of the config is for {name}"),
        })
    }

    /// What pauses what is called so, whether or not it is there.
    pub fn what_pauses(&self, name: &str) -> Option<PausedBy<'_>> {
        let own = canonical_name(name);
        let mut known = self.destinations_named(&own).map(|id| &self.destinations[id.index()]);
        if let Some(state) = known.find(|state| state.route.is_some()) {
            return self.pausing(state);
        }
        match self.routes.find(own.as_bytes()).filter(|_| is_domain(&own)) {
            Some(route) => {
                let is_mx = matches!(self.routes.all()[usize::from(route.0)].via, Via::Mx { .. });
                self.pauses.of(&own, self.pattern(route), is_mx)
            }
            None => self.pauses.of(&own, "", false),
        }
    }

    fn pattern(&self, route: RouteId) -> &str {
        &self.routes.all()[usize::from(route.0)].pattern
    }

    /// What pauses this destination; `None` if nothing does. What the queue alone knows of ([`Queue::pause`]) bears the destination's name.
    pub(crate) fn paused_by<'q>(&'q self, state: &'q Destination) -> Option<PausedBy<'q>> {
        state.paused.then(|| self.pausing(state).unwrap_or(PausedBy::Name(&state.name)))
    }

    pub(crate) fn is_to_be_paused(&self, state: &Destination) -> bool {
        self.pausing(state).is_some()
    }

    fn pausing(&self, state: &Destination) -> Option<PausedBy<'_>> {
        // What no route is for is held, and is nothing that could be resumed.
        let route = state.route?;
        let is_domain = matches!((&state.role, &state.via), (Role::Domain(_), Via::Mx { .. }));
        self.pauses.of(&state.name, self.pattern(route), is_domain)
    }

    /// Is the destination that this guest's owner has it for paused?
    pub(crate) fn is_guest_paused(&self, guest: &Guest) -> bool {
        if self.pauses.is_empty() {
            return false;
        }
        let Some(route) = self.routes.all().get(usize::from(guest.route)) else { return false };
        match (&route.via, guest.recipients().next()) {
            (Via::Mx { .. }, Some((_, address))) => {
                let name = self.domain_name(self.domain_of(address));
                self.pauses.of(&name, &route.pattern, true).is_some()
            }
            _ => self.pauses.of(&route.pattern, &route.pattern, false).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::QueueSettings;
    use crate::retry::RetryPolicy;
    use crate::route::{DestinationLimits, Route};
    use crate::routes::Routes;

    fn pauses(names: &[&str]) -> Pauses {
        let mut pauses = Pauses::default();
        names.iter().for_each(|name| assert!(pauses.insert(name)));
        pauses
    }

    #[test]
    fn the_narrowest_name_is_said_to_pause() {
        let mut all = pauses(&["Y.test.", "*.y.test", "*", "* from <>", "*.Bücher.test"]);
        assert!(!all.insert("y.TEST") && all.insert("*.b.y.test"));
        let by = |name: &str, route: &str, is_domain| all.of(name, route, is_domain).map(|by| by.to_string());
        for (name, route, is_domain, expected) in [
            ("y.test", "*", true, Some("y.test")),
            ("a.y.test", "*", true, Some("'*.y.test'")),
            ("a.b.y.test", "z", true, Some("'*.b.y.test'")),
            ("b.y.test", "z", true, Some("'*.y.test'")),
            ("other.test", "*", true, Some("'*'")),
            ("other.test", "* from <>", true, Some("'* from <>'")),
            ("other.test", "z", true, None),
            ("a.xn--bcher-kva.test", "z", true, Some("'*.xn--bcher-kva.test'")),
            // A host that is a site's name is below nothing.
            ("mx.y.test", "z", false, None),
            ("*.y.test", "*.y.test", false, Some("'*.y.test'")),
            ("*.x.y.test", "*.x.y.test", false, None),
        ] {
            assert_eq!(by(name, route, is_domain).as_deref(), expected, "{name} by {route}");
        }
        assert!(all.set_all(true) && !all.set_all(true));
        assert_eq!((all.of("o.test", "z", true), all.of("y.test", "z", true)), (Some(PausedBy::All), Some(PausedBy::Name("y.test"))));
        assert!(all.remove("y.test") && !all.remove("y.test"));
    }

    #[test]
    fn what_is_no_destination_and_what_shares_one_is_refused_with_what_to_write() {
        let route = |(pattern, via): (&str, Via)| Route {
            pattern: pattern.into(),
            via,
            retry: RetryPolicy::default(),
            limits: DestinationLimits::default(),
        };
        let mx = Via::Mx { port: 25 };
        let queue = |routes: Vec<(&str, Via)>| {
            let routes = Routes::new(routes.into_iter().map(route).collect()).unwrap();
            Queue::new(QueueSettings::default(), routes, 1, 1000)
        };
        let own = queue(vec![("*", Via::Discard), ("*.m.test", mx.clone()), ("*.n.test from <>", mx.clone()), ("own.test", Via::Discard)]);
        for name in
            ["*", "own.test", "OWN.test.", "*.m.test", "a.m.test", "*.a.m.test", "*.test", "x.n.test", "* from <>", "*.n.test from <>"]
        {
            let refused = own.can_be_paused(name).err();
            assert_eq!(refused.is_none(), name != "* from <>", "{name}: {refused:?}");
        }
        for (name, expected) in [
            ("y.test", "mail for y.test goes by the route \"*\", which is one destination for all of its mail: pause \"*\", or "),
            ("*.own.test", "mail for *.own.test goes by the route \"*\""),
            ("a b", "\"a b\" is no destination"),
            // It was the route `*`, which has all other mail.
            ("*.", "\"*.\" is no destination"),
            ("", "\"\" is no destination"),
        ] {
            let refused = own.can_be_paused(name).unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
        }
        assert_eq!(queue(vec![("own.test", mx.clone())]).can_be_paused("y.test").unwrap_err(), "no route of the config is for y.test");
        let mut all = queue(vec![("*", mx)]);
        all.set_pauses(pauses(&["*", "*.y.test"]));
        let by = |name: &str| all.what_pauses(name).map(|by| by.to_string());
        assert_eq!((by("a.y.test").as_deref(), by("o.test").as_deref(), by("* from <>")), (Some("'*.y.test'"), Some("'*'"), None));
        assert_eq!(
            (all.can_be_paused("y.test"), all.can_be_paused("*.y.test"), all.can_be_paused("[192.0.2.1]")),
            (Ok(()), Ok(()), Ok(()))
        );
    }
}
