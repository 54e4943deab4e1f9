//! Destinations get their homes: when they are made, when limits change, and when one gives way to the others.

use crate::destination_id::DestinationId;
use crate::home::Placement;
use crate::queue::Queue;
use crate::quota::Quota;
use crate::route::Via;
use crate::site::Role;

impl Queue {
    /// What this shard is for a destination from now on, by the limits that its route has now and those that other shards may still go
    /// by. Homes give way and come: guests of what is no home any more are refused at once, attempts under way end where they are.
    pub(crate) fn assign_homes(&mut self, slot: u32, now: u64) {
        let state = &mut self.destinations[slot as usize];
        let Some(route) = state.route else { return };
        let number = usize::from(route.0);
        let route = &self.routes.all()[number];
        let before = self.limits_before.iter().filter_map(|table| table.get(number));
        let homes = self.settings.homes;
        let site = match (&route.via, &state.role) {
            (Via::Smarthost { .. } | Via::Lmtp { .. }, Role::Route) => Some(""),
            (_, Role::Site(site)) => Some(&*site.key),
            _ => None,
        };
        let (mut limits, mut placement) = match (site, &route.via) {
            (Some(site), _) => homes.place_among(&route.pattern, site, before, &route.limits),
            // Each shard writes its own mail itself.
            (None, Via::Maildir { .. }) => (self.settings.homes.share(&route.limits), Placement::default()),
            _ => (route.limits, Placement::default()),
        };
        if let (Some(site), None, Some(_)) = (site, &placement.away, state.crowding.gives_way_until(now))
            && let Some(elsewhere) = homes.give_way(&route.pattern, site, &route.limits, placement.part)
        {
            (limits, placement) = elsewhere;
        }
        let Placement { part, away } = placement;
        let before = std::mem::replace(&mut state.away, away);
        if let (Some(before), Some(away)) = (before, &mut state.away) {
            away.carry_over(&before);
        }
        if state.limits.shared_rate != limits.shared_rate {
            // What was reserved, and for how long nothing more can be, was by another limit.
            state.quota = Quota::default();
        }
        (state.limits, state.part) = (limits, part);
        state.limit_window();
        if state.away.is_some() {
            self.refuse_guests(slot, now, now);
        }
    }

    /// As [`Queue::assign_homes`], for a destination that was just made.
    pub(crate) fn assign_first_homes(&mut self, slot: u32) {
        self.assign_homes(slot, 0);
        self.destinations[slot as usize].begin_window();
    }

    /// Does this shard make the attempts at this destination itself?
    pub fn is_home(&self, destination: DestinationId) -> bool {
        self.live(destination).is_none_or(|destination| destination.away.is_none())
    }

    /// Of a limit of the whole node, what this shard owns for a destination that it is a home of; those of all homes add up to it.
    pub fn part_of(&self, destination: DestinationId, limit: u32) -> u32 {
        self.live(destination).map_or(limit, |destination| destination.part.of(limit))
    }

    /// Every shard has come down to its part of the limits of [`Queue::begin_routes`]: from now on each has its whole part, at a
    /// destination when [`Queue::reconfigure`] was called for its slot.
    pub fn begin_settling(&mut self) {
        self.limits_before.clear();
    }

    /// Connections that this shard may have to a destination as its home; 0 where it is none.
    pub fn home_connections_max(&self, destination: DestinationId) -> u32 {
        self.live(destination).filter(|state| state.away.is_none()).map_or(0, |state| state.limits.connections_max)
    }

    /// Connections that this shard may have to a destination.
    pub fn connections_max(&self, destination: DestinationId) -> u32 {
        self.live(destination).map_or(0, |destination| destination.limits.connections_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Guest;
    use crate::home::Homes;
    use crate::queue::QueueSettings;
    use crate::route::{DestinationLimits, Route, RouteId};
    use crate::routes::Routes;

    fn limits(connections_max: u32) -> DestinationLimits {
        DestinationLimits { connections_max, ..DestinationLimits::default() }
    }

    #[test]
    fn homes_give_way_and_come_when_the_limit_changes() {
        let routes = |connections_max| {
            let via = Via::Smarthost { hosts: vec!["192.0.2.1:25".parse::<std::net::SocketAddr>().unwrap().into()] };
            let retry = crate::retry::RetryPolicy::default();
            Routes::new(vec![Route { pattern: "*".into(), via, retry, limits: limits(connections_max) }]).unwrap()
        };
        let queue = |homes| Queue::new(QueueSettings { homes, ..QueueSettings::default() }, routes(1), 1, 1000);
        let mut queues: Vec<Queue> = (0..3).map(|shard| queue(Homes { shard, shards: 3 })).collect();
        let id = queues[0].route(b"x.test");
        let homes = |queues: &[Queue]| queues.iter().map(|queue| queue.is_home(id)).collect::<Vec<_>>();
        let home = homes(&queues).iter().position(|is_home| *is_home).unwrap();
        let away = (home + 1) % 3;
        assert_eq!(homes(&queues).iter().filter(|is_home| **is_home).count(), 1);
        let credit = queues[away].destinations[1].away.as_mut().unwrap().take(1000);
        assert_eq!(credit, Some(home as u16));
        let set = |queues: &mut [Queue], connections_max| {
            for queue in queues {
                queue.routes = routes(connections_max);
                queue.assign_homes(1, 1000);
            }
        };
        // Two homes, and the one that is left still owes an answer to who is none.
        set(&mut queues, 16);
        let own = |queues: &[Queue]| {
            let at_home = queues.iter().filter(|queue| queue.is_home(id));
            at_home.map(|queue| queue.connections_max(id)).collect::<Vec<_>>()
        };
        assert_eq!(own(&queues), [8, 8]);
        set(&mut queues, 30);
        assert_eq!(own(&queues), [10, 10, 10]);
        let route_number = queues[home].routes.number(RouteId(0));
        let guest = || {
            let mut guest = Guest::default();
            guest.route_number = route_number;
            guest
        };
        assert!(queues[home].receive(guest(), 1000).is_ok(), "a guest that comes late finds a home");
        queues.iter_mut().for_each(|queue| queue.destinations[1].set_window(10));
        set(&mut queues, 1);
        assert_eq!(own(&queues), [1]);
        assert!(queues.iter().all(|queue| queue.destinations[1].away.is_some() || queue.destinations[1].window(1000) == 1));
        let gone = (0..3).find(|shard| *shard != home).unwrap();
        assert!(queues[gone].receive(guest(), 1000).is_err(), "it gave way");
    }
}
