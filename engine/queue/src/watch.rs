//! A look for messages that nothing would ever move again: in no timer, no ready queue, no attempt and no report. And for destinations
//! with mail that nobody would look at again.
//!
//! There should be none. If there is one it is a bug of the queue, and mail must not pay for it: it is made to go on, and said.

use crate::destination_id::DestinationId;
use crate::message::{Flags, Place};
use crate::queue::Queue;
use crate::queue_id::QueueId;
use crate::site::{Listed, Role, Step};

/// Messages, or destinations, told of one look at most; the others are found by the next.
const FOUND_MAX: usize = 16;

impl Queue {
    /// Looks at up to `slots` places of messages from `cursor` on, makes those that are stuck go on, and returns their ids. `cursor` is
    /// moved on, and begins again at the end.
    pub fn look_for_stuck(&mut self, cursor: &mut u32, slots: usize, now: u64) -> Vec<QueueId> {
        let mut found = Vec::new();
        for _ in 0..slots.min(self.messages.slots()) {
            let index = *cursor;
            *cursor = if (index as usize) + 1 < self.messages.slots() { index + 1 } else { 0 };
            if index as usize >= self.messages.slots() || !self.messages[index].flags.has(Flags::QUEUED) || !self.is_stuck(index, now) {
                continue;
            }
            found.push(self.ids.id(self.messages[index].id_place));
            self.move_on(index, now);
            if found.len() == FOUND_MAX {
                break;
            }
        }
        found
    }

    /// Looks at up to `slots` destinations from `cursor` on: those with mail that may go, now or at a time, and that neither the next
    /// [`Queue::poll`] looks at nor a timer wakes. They go on, and are returned. `cursor` is moved on, and begins again at the end.
    pub fn look_for_forgotten(&mut self, cursor: &mut usize, slots: usize, now: u64) -> Vec<DestinationId> {
        let mut found = Vec::new();
        for _ in 0..slots.min(self.destinations.len()) {
            let slot = *cursor;
            *cursor = if slot + 1 < self.destinations.len() { slot + 1 } else { 0 };
            if slot >= self.destinations.len() || !self.is_forgotten(slot as u32, now) {
                continue;
            }
            let state = &mut self.destinations[slot];
            state.listed = false;
            if let Role::Domain(domain) = &mut state.role {
                (domain.queued_at, domain.listed) = (None, Listed::default());
            }
            found.push(self.id(slot as u32));
            self.refresh(slot as u32, now);
            if found.len() == FOUND_MAX {
                break;
            }
        }
        found
    }

    fn is_forgotten(&self, slot: u32, now: u64) -> bool {
        let state = &self.destinations[slot as usize];
        if state.listed {
            return self.serving.is_empty();
        }
        let is_timed = || self.destination_timers.is_set(slot);
        match &state.role {
            Role::Vacant => false,
            Role::Domain(_) if state.ready.is_empty() || state.paused => false,
            Role::Domain(domain) => match domain.step(now) {
                Step::Ask | Step::Tell | Step::Wait { .. } => !is_timed(),
                Step::Serve { site, .. } => {
                    let is_queued = matches!(&self.destinations[site as usize].role, Role::Site(site) if !site.queued.is_empty());
                    !is_timed() || domain.queued_at.is_none() || !is_queued
                }
            },
            // A full window is opened by an attempt that ends.
            Role::Route | Role::Site(_) => state.has_mail() && !is_timed() && (state.may_start(now) || state.wakes_at(now).is_some()),
        }
    }

    fn is_stuck(&self, index: u32, now: u64) -> bool {
        let (message, recipients) = self.messages.with_recipients(index);
        if message.flags.has(Flags::CLOSING) {
            return message.in_flight == 0 && message.unrecorded == 0;
        }
        let held = message.flags.has(Flags::KEPT);
        // A time of its own ends held mail, too; and what is offered has an end.
        let has_end = message.expires_at < u64::MAX || self.is_given_out(index);
        recipients.iter().any(|recipient| match recipient.place {
            Place::Waiting => (!held || has_end) && message.in_flight == 0 && !self.groups.timers.is_set(index),
            Place::Ready => {
                // That it has no timer is lost time only when it has come to its end by its route.
                let is_endless = message.in_flight == 0 && !self.groups.timers.is_set(index);
                held || self.groups[recipient.group].ready == 0
                    || is_endless && (has_end || self.deadline(recipient.group).is_some_and(|at| at <= now))
            }
            Place::Attempting => message.in_flight == 0,
            Place::Failed => self.settings.reports.is_some() && !message.flags.has(Flags::REPORT_SET),
            Place::Delivered | Place::Bounced | Place::Purged => false,
        })
    }

    fn move_on(&mut self, index: u32, now: u64) {
        if self.messages[index].flags.has(Flags::CLOSING) {
            return self.close(index);
        }
        for number in 0..self.messages.recipients(index).len() as u16 {
            let recipient = &self.messages.recipients(index)[usize::from(number)];
            let is_lost = match recipient.place {
                Place::Attempting => self.messages[index].in_flight == 0,
                Place::Ready => self.groups[recipient.group].ready == 0,
                Place::Waiting | Place::Delivered | Place::Failed | Place::Bounced | Place::Purged => false,
            };
            if is_lost {
                self.place(index, number, Place::Waiting);
            }
        }
        if self.messages[index].flags.has(Flags::KEPT) {
            self.withdraw(index);
        }
        self.start(index, now);
        self.want_what_is_left(index, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Asking, DestinationLimits, NewMessage, NewRecipient, Notify, Outcome, QueueSettings, Rate, ReportLimits, Resolution, RetryPolicy,
        Route, Routes, Via, Work,
    };

    #[test]
    fn a_message_that_lost_its_timer_its_attempt_or_its_report_goes_on() {
        let route = Route { pattern: "*".into(), via: Via::Discard, retry: RetryPolicy::default(), limits: DestinationLimits::default() };
        let settings = QueueSettings { reports: Some(ReportLimits::default()), ..QueueSettings::default() };
        for lost in ["timer", "attempt", "report"] {
            let mut queue = Queue::new(settings, Routes::new(vec![route.clone()]).unwrap(), 1, 1000);
            let destination = queue.route(b"y.test");
            let id = QueueId { boot: 1, shard: 0, sequence: 7 };
            let message = NewMessage { id, accepted_at: 1000, reverse_path: b"s@x.test", ..NewMessage::default() };
            let recipient = NewRecipient { address: b"b@y.test", destination, notify: Notify::UNSAID };
            let key = queue.enqueue(&message, [recipient].into_iter(), 1000);
            let Some(Work::Attempt(dispatch)) = queue.poll(1000, &mut Vec::new()) else { panic!("it may go") };
            let mut cursor = 0;
            assert!(queue.look_for_stuck(&mut cursor, 10_000, 1000).is_empty());
            let (index, mut record) = (key.index, Vec::new());
            match lost {
                "timer" => {
                    let _ = queue.settle(dispatch, &[(0, Outcome::Deferred { reply: b"450 later" })], 1000, &mut record);
                    queue.groups.timers.cancel(index);
                }
                "attempt" => {
                    drop(dispatch);
                    queue.messages[index].in_flight = 0;
                }
                _ => {
                    let _ = queue.settle(dispatch, &[(0, Outcome::Failed { reply: b"550 no" })], 1000, &mut record);
                    queue.messages[index].flags.set(Flags::REPORT_SET, false);
                }
            }
            assert_eq!(queue.look_for_stuck(&mut cursor, 10_000, 2000), [id], "{lost}");
            assert!(queue.look_for_stuck(&mut cursor, 10_000, 2000).is_empty(), "{lost}: it goes on");
            assert!(queue.next_due(2000).is_some(), "{lost}");
        }
    }

    fn smarthost(connections_max: u32, rate: Option<Rate>) -> Queue {
        let limits = DestinationLimits { connections_max, rate, ..DestinationLimits::default() };
        let via = Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] };
        let route = Route { pattern: "*".into(), via, retry: RetryPolicy::default(), limits };
        Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, 1000)
    }

    fn enqueue(queue: &mut Queue, sequence: u64, now: u64) -> (QueueId, u32) {
        let destination = queue.route(b"y.test");
        let id = QueueId { boot: 1, shard: 0, sequence };
        let message = NewMessage { id, accepted_at: now, reverse_path: b"s@x.test", ..NewMessage::default() };
        let recipient = NewRecipient { address: b"b@y.test", destination, notify: Notify::UNSAID };
        (id, queue.enqueue(&message, [recipient].into_iter(), now).index)
    }

    /// Only a message with an end of its own was looked for: one that waited for its turn and had lost its timer stayed for ever where its
    /// destination took nothing.
    #[test]
    fn ready_mail_that_lost_its_timer_expires_all_the_same() {
        let mut queue = smarthost(1, None);
        enqueue(&mut queue, 1, 1000);
        let (id, index) = enqueue(&mut queue, 2, 1000);
        let Some(Work::Attempt(_open)) = queue.poll(1000, &mut Vec::new()) else { panic!("it may go") };
        queue.groups.timers.cancel(index);
        let (mut cursor, end) = (0, 1000 + RetryPolicy::default().lifetime_ms);
        assert!(queue.look_for_stuck(&mut cursor, 10_000, end - 1).is_empty());
        assert_eq!(queue.look_for_stuck(&mut cursor, 10_000, end), [id]);
        let Some(Work::Expired(key, recipients)) = queue.poll(end, &mut Vec::new()) else { panic!("it expires") };
        assert_eq!((key.index, recipients), (index, vec![0]));
    }

    #[test]
    fn a_destination_with_mail_that_nobody_would_look_at_is_found() {
        for lost in ["its place", "its place, by its word", "its timer"] {
            let rate = (lost == "its timer").then_some(Rate { messages: 1, per_ms: 3_600_000, burst: 1 });
            let mut queue = smarthost(5, rate);
            let (_, mut cursor) = (enqueue(&mut queue, 1, 1000), 0);
            let destination = queue.route(b"y.test");
            if lost == "its timer" {
                let Some(Work::Attempt(_open)) = queue.poll(1000, &mut Vec::new()) else { panic!("it may go") };
                enqueue(&mut queue, 2, 1000);
                assert!(queue.poll(1000, &mut Vec::new()).is_none());
            }
            assert!(queue.look_for_forgotten(&mut cursor, 100, 1000).is_empty(), "{lost}");
            match lost {
                "its timer" => queue.destination_timers.cancel(destination.slot),
                "its place" => queue.serving.clear(),
                _ => {
                    queue.serving.clear();
                    queue.destinations[destination.index()].listed = false;
                }
            }
            assert_eq!(queue.look_for_forgotten(&mut cursor, 100, 2000), [destination], "{lost}");
            assert!(queue.look_for_forgotten(&mut cursor, 100, 2000).is_empty(), "{lost}: it goes on");
            let at = if lost == "its timer" { 1000 + 3_600_000 } else { 2000 };
            assert!(matches!(queue.poll(at, &mut Vec::new()), Some(Work::Attempt(_))), "{lost}");
        }
    }

    #[test]
    fn a_domain_with_mail_that_nobody_would_look_at_is_found() {
        let via = Via::Mx { port: 25 };
        let route = Route { pattern: "*".into(), via, retry: RetryPolicy::default(), limits: DestinationLimits::default() };
        for lost in ["its question", "its answer", "its turn at the site", "its place at the site"] {
            let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route.clone()]).unwrap(), 1, 1000);
            let (_, mut cursor) = (enqueue(&mut queue, 1, 1000), 0);
            let domain = queue.route(b"y.test");
            if lost != "its question" {
                assert!(matches!(queue.poll(1000, &mut Vec::new()), Some(Work::Resolve(_))));
            }
            if lost.ends_with("site") {
                let hosts = vec!["192.0.2.1:25".parse().unwrap()];
                let site = Resolution::Site { key: "k".into(), name: "mx.y.test".into(), hosts, is_whole: true, until: 10_000_000 };
                queue.resolved(Asking { destination: domain, table: 0 }, &site, 1000);
            }
            assert!(queue.look_for_forgotten(&mut cursor, 100, 1000).is_empty(), "{lost}");
            match lost {
                "its question" => queue.serving.clear(),
                "its answer" => queue.destination_timers.cancel(domain.slot),
                "its turn at the site" => {
                    let Role::Domain(state) = &mut queue.destinations[domain.index()].role else { unreachable!() };
                    state.queued_at = None;
                }
                _ => queue.serving.clear(),
            }
            assert!(!queue.look_for_forgotten(&mut cursor, 100, 2000).is_empty(), "{lost}");
            assert!(queue.look_for_forgotten(&mut cursor, 100, 2000).is_empty(), "{lost}: it goes on");
            let work = queue.poll(200_000, &mut Vec::new());
            assert!(
                if lost.ends_with("site") { matches!(work, Some(Work::Attempt(_))) } else { matches!(work, Some(Work::Resolve(_))) },
                "{lost}: {work:?}"
            );
        }
    }
}
