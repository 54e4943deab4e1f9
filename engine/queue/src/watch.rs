//! A look for messages that nothing would ever move again: in no timer, no ready queue, no attempt and no report.
//!
//! There should be none. If there is one it is a bug of the queue, and mail must not pay for it: it is made to go on, and said.

use crate::message::{Flags, Place};
use crate::queue::Queue;
use crate::queue_id::QueueId;

/// Messages told of one look at most; the others are found by the next.
const FOUND_MAX: usize = 16;

impl Queue {
    /// Looks at up to `slots` places of messages from `cursor` on, makes those that are stuck go on, and returns their ids. `cursor` is
    /// moved on, and begins again at the end.
    pub fn look_for_stuck(&mut self, cursor: &mut u32, slots: usize, now: u64) -> Vec<QueueId> {
        let mut found = Vec::new();
        for _ in 0..slots.min(self.messages.slots()) {
            let index = *cursor;
            *cursor = if (index as usize) + 1 < self.messages.slots() { index + 1 } else { 0 };
            if index as usize >= self.messages.slots() || !self.messages[index].flags.has(Flags::QUEUED) || !self.is_stuck(index) {
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

    fn is_stuck(&self, index: u32) -> bool {
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
                held || has_end && message.in_flight == 0 && !self.groups.timers.is_set(index) || self.groups[recipient.group].ready == 0
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
        DestinationLimits, NewMessage, NewRecipient, Notify, Outcome, QueueSettings, ReportLimits, RetryPolicy, Route, Routes, Via, Work,
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
}
