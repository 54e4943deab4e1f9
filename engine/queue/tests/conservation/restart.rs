//! A process that dies and starts again from what was durable.

use ringpost_queue::{DestinationId, Queue, Recovered, Routes, State};

use crate::accepted::{Fate, HOUR, destinations, new_message, recipients_of};
use crate::world::{GRACE, World, settings};

impl World {
    /// The process dies, with what was not acknowledged, and starts again from what was.
    pub fn restart(&mut self, routes: Routes) {
        self.in_flight.clear();
        self.attempting.clear();
        self.unacknowledged.clear();
        self.taken += std::mem::take(&mut self.gathered).len();
        self.lookups.clear();
        self.keys.clear();
        self.reporting.clear();
        self.restarts += 1;
        self.queue = Queue::new(settings(self.with_reports), routes, 7, self.now);
        for (id, accepted) in &mut self.accepted {
            if accepted.settled {
                continue;
            }
            accepted.fate = accepted.durable_fate.clone();
            accepted.held = accepted.durable_held;
            (accepted.expires, accepted.routes) = (accepted.durable.expires, accepted.durable.routes.clone());
            accepted.deleted = false;
            let domains = destinations(&mut self.queue, accepted);
            let message = new_message(*id, accepted.accepted_at);
            let records = accepted.records.iter().map(Vec::as_slice);
            let Recovered { key, done, .. } = self.queue.recover(&message, recipients_of(accepted, &domains), records, self.now).unwrap();
            for &number in accepted.left.iter().filter(|number| accepted.fate[usize::from(**number)] == Fate::Bounced) {
                self.told.insert((*id, number, false), self.restarts);
            }
            if done {
                // Whom it was not delivered to was about to leave when the process died.
                assert!(accepted.fate.iter().all(|fate| fate.is_settled()));
                accepted.settled = true;
                self.queue.recorded(key);
                continue;
            }
            self.keys.insert(*id, key);
            let view = self.queue.show(key).unwrap();
            assert_eq!(view.priority(), accepted.durable.priority);
            for (recipient, before) in view.recipients().zip(&accepted.durable.recipients) {
                let now = (recipient.attempts(), recipient.last_attempt(), recipient.reply().into_owned());
                assert_eq!(now, (before.attempts, before.last_attempt, before.reply.clone()));
                match (recipient.due_at(), before.next_attempt) {
                    (Some(at), before_at) if !before.is_active && !accepted.held => assert_eq!(Some(at), before_at),
                    (None, Some(at)) if recipient.state() == State::Ready => assert!(at <= self.now),
                    _ => {}
                }
                let by_age = accepted.accepted_at + if recipient.destination() == DestinationId::UNROUTED { 120 } else { 30 } * HOUR;
                let (end, grace) = (accepted.expires.map_or(by_age, |at| at.min(by_age)), self.now + GRACE);
                // One recipient that is past its time has the time of grace given to all of them.
                assert!(recipient.expires_at() == end.max(grace) || end > self.now && recipient.expires_at() == end);
                let route = accepted.routes[usize::from(recipient.number())];
                let is_over = matches!(recipient.state(), State::Delivered | State::Bounced | State::Purged);
                let own = self.queue.route_of(recipient.destination());
                assert!(
                    is_over || route.map_or_else(|| own == self.queue.route_of(domains[usize::from(recipient.number())]), |_| own == route)
                );
                self.kept[0] += usize::from(recipient.state() == State::Deferred);
            }
            self.kept[1] += usize::from(accepted.held);
            self.kept[2] += usize::from(accepted.expires.is_some());
            self.kept[3] += usize::from(accepted.routes.iter().any(Option::is_some));
            // Compaction writes one record in place of all.
            let mut state = Vec::new();
            assert!(self.queue.state(key, &mut state));
            accepted.records = vec![state];
        }
    }
}
