//! What comes of an attempt: each recipient is delivered, failed, waits or is ready again, and what has to be persisted is said.

use crate::destination_id::DestinationId;
use crate::dispatch::Dispatch;
use crate::message::{Flags, Message, MessageKey, NO_RECIPIENT, Place, Recipient};
use crate::notify::Notify;
use crate::outcome::{Outcome, SUCCESS_DUE};
use crate::queue::Queue;
use crate::retry::Jitter;
use crate::site::Role;

/// An attempt that ends before a recipient's turn so many times in a row counts as a deferral.
const UNTRIED_MAX: u8 = 3;

/// What the driver does after an attempt was settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Settled {
    /// Persist the record that was appended as an outcome of this message, then call [`Queue::recorded`].
    Outcome,
    /// As [`Settled::Outcome`], of an attempt that reached nobody: for a while it may wait for others of its message, to be persisted with them
    /// as their [`Queue::state`]. What a crash takes of it is that the attempt was made.
    Deferral,
    /// Every recipient is delivered or bounced and nobody is to be told anything, or the message was deleted: persist a settled record (nothing was appended), then call
    /// [`Queue::recorded`], which drops the message.
    Done,
    /// Nothing changed that must outlive a crash.
    Nothing,
}

/// What holds for all recipients of an attempt that is settled.
#[derive(Clone, Copy)]
pub(crate) struct Attempted<'a> {
    /// The next hop; empty if it was none.
    pub(crate) relay: &'a str,
    pub(crate) group: u32,
    pub(crate) number: u16,
    pub(crate) now: u64,
    /// Whose policy says when what is deferred is tried again.
    pub(crate) destination: DestinationId,
    /// Jitter drawn once: what was deferred together comes back together, in one transaction.
    pub(crate) draw: u64,
    /// Some recipient was decided, so that trying the rest again at once comes to an end.
    pub(crate) progress: bool,
}

impl Queue {
    /// Takes in what came of an attempt. Recipients not named in `outcomes` count as [`Outcome::Untried`]. The record is
    /// appended to `record`. Panics if an outcome names a recipient that is not of this attempt, or one twice.
    #[inline]
    pub fn settle(&mut self, dispatch: Dispatch, outcomes: &[(u16, Outcome<'_>)], now: u64, record: &mut Vec<u8>) -> Settled {
        self.settle_by(dispatch, outcomes, "", now, record)
    }

    /// As [`Queue::settle`], with the next hop that gave the outcomes (`mx1.example.org[192.0.2.7]:25`): it is kept with its words,
    /// for reports.
    pub fn settle_by(
        &mut self,
        dispatch: Dispatch,
        outcomes: &[(u16, Outcome<'_>)],
        relay: &str,
        now: u64,
        record: &mut Vec<u8>,
    ) -> Settled {
        if let Some(settled) = self.settle_alone(&dispatch, outcomes, now) {
            return settled;
        }
        let index = dispatch.key.index;
        // Then nobody is deferred, and nothing is drawn.
        let decides_all = !outcomes.is_empty() && outcomes.iter().all(|(_, outcome)| outcome.is_delivery());
        let attempted = Attempted {
            relay,
            group: dispatch.group,
            number: dispatch.number,
            now,
            destination: dispatch.destination,
            draw: if decides_all { 0 } else { self.jitter.below(u64::MAX) },
            progress: decides_all || dispatch.has_delivered || outcomes.iter().any(|(_, outcome)| !outcome.is_untried()),
        };
        let (mut delivered, mut changed) = (dispatch.has_delivered, false);
        for (recipient, outcome) in outcomes {
            delivered |= outcome.is_delivery();
            changed |= self.settle_recipient(index, *recipient, outcome, &attempted);
        }
        let mut pauses = false;
        if delivered {
            self.destinations[dispatch.destination.index()].succeeded(now);
        } else {
            pauses = self.heed(&dispatch, outcomes, now);
        }
        // Each outcome is of another recipient, so they are all there when there are so many.
        if outcomes.len() < dispatch.recipients() {
            self.each_open(&dispatch, |queue, recipient| {
                changed |= queue.settle_recipient(index, recipient, &Outcome::Untried { reply: b"" }, &attempted);
            });
        }
        if pauses {
            // What is tried after the pause is to be something else.
            self.go_behind(dispatch.group, now);
        }
        self.end_attempt(&dispatch, now);
        self.conclude(&dispatch, changed, now, record)
    }

    /// As [`Queue::settle_by`], for a message with one recipient that was delivered and of which nobody is told, as most mail is; of any other
    /// nothing is changed. Each thing is looked up once.
    #[inline(always)]
    fn settle_alone(&mut self, dispatch: &Dispatch, outcomes: &[(u16, Outcome<'_>)], now: u64) -> Option<Settled> {
        let [(0, outcome)] = outcomes else { return None };
        let (message, [recipient]) = self.messages.with_recipients_mut(dispatch.key.index) else { return None };
        if !outcome.is_delivery() || recipient.has_reply() || recipient.told & SUCCESS_DUE != 0 || message.flags.has(Flags::CLOSING) {
            return None;
        }
        // A command was for it: that has to be forgotten with it.
        if self.leaving.has(dispatch.key.index, 0) {
            return None;
        }
        if wants_success(outcome, recipient.notify(), message.flags.has(Flags::TRACED)) {
            return None;
        }
        assert!(recipient.is_in(dispatch.number) && recipient.group == dispatch.group, "an outcome is of its own attempt");
        recipient.attempted(now);
        recipient.place = Place::Delivered;
        self.placed[Place::Attempting as usize] -= 1;
        self.placed[Place::Delivered as usize] += 1;
        message.in_flight -= 1;
        message.begin_closing();
        self.groups.timers.cancel(dispatch.key.index);
        self.reports.forget(dispatch.key.index);
        self.destinations[dispatch.destination.index()].succeeded(now);
        self.end_at_destinations(dispatch, now);
        Some(Settled::Done)
    }

    /// Takes in what came of some recipients of an attempt while others are still under way (an LMTP store answers for one after the other,
    /// RFC 2033 4.2): what is recorded now is not done again after a crash. The rest of the attempt ends as any does. The record is
    /// appended to `record`. Panics if no recipient is left, or as [`Queue::settle`] does.
    pub fn settle_some(
        &mut self,
        dispatch: &mut Dispatch,
        outcomes: &[(u16, Outcome<'_>)],
        relay: &str,
        now: u64,
        record: &mut Vec<u8>,
    ) -> Settled {
        let (index, number) = (dispatch.key.index, dispatch.number);
        let count = u16::try_from(outcomes.len()).ok().filter(|count| *count < dispatch.recipients);
        dispatch.recipients -= count.expect("some recipients are still under way");
        let attempted = Attempted {
            relay,
            group: dispatch.group,
            destination: dispatch.destination,
            number,
            now,
            draw: self.jitter.below(u64::MAX),
            progress: true,
        };
        let (mut changed, mut is_any_open) = (false, false);
        for (recipient, outcome) in outcomes {
            dispatch.has_delivered |= outcome.is_delivery();
            changed |= self.settle_recipient(index, *recipient, outcome, &attempted);
            is_any_open |= self.messages.recipients(index)[usize::from(*recipient)].place.is_open();
        }
        if is_any_open {
            // Who was sent another way meanwhile goes there, and the rest need not wait for the others.
            match self.messages[index].flags {
                flags if flags.has(Flags::CLOSING) => {}
                flags if flags.has(Flags::REGROUP) => self.regroup(index, now),
                _ => self.arm(index),
            }
            self.refresh(self.groups[dispatch.group].destination, now);
        }
        if !changed || self.messages[index].flags.has(Flags::CLOSING) {
            return Settled::Nothing;
        }
        self.write_record(index, |recipient| recipient.dispatch == number && recipient.last_attempt == now, record);
        self.messages[index].unrecorded += 1;
        Settled::Outcome
    }

    /// No host of the destination could be reached: the recipients are ready again, before all others, and go as soon as the
    /// destination is alive. Report each host with [`Queue::host_failed`] first, and ask [`Queue::ends_round`].
    pub fn unreachable(&mut self, dispatch: Dispatch, now: u64, record: &mut Vec<u8>) -> Settled {
        let (index, leaving) = (dispatch.key.index, self.leaving.count());
        self.destinations[dispatch.destination.index()].unreachable(now);
        self.each_open(&dispatch, |queue, recipient| {
            let state = &mut queue.messages.recipients_mut(index)[usize::from(recipient)];
            state.attempts = state.attempts.saturating_add(1);
            state.last_attempt = now;
            queue.make_ready_again(index, recipient, now);
        });
        self.await_turn(self.groups[dispatch.group].destination, now);
        self.end_attempt(&dispatch, now);
        match self.conclude(&dispatch, true, now, record) {
            Settled::Outcome if self.leaving.count() == leaving => Settled::Deferral,
            settled => settled,
        }
    }

    /// The attempt was not made at all (drain, a task that was dropped): the recipients are ready again, nothing is counted. There is something
    /// to persist only where a purge or a bounce has waited for it.
    pub fn abandon(&mut self, dispatch: Dispatch, now: u64) -> Settled {
        let (index, leaving) = (dispatch.key.index, self.leaving.count());
        self.each_open(&dispatch, |queue, recipient| queue.make_ready_again(index, recipient, now));
        self.end_attempt(&dispatch, now);
        if self.leaving.count() == leaving {
            self.go_on(index, now);
            return Settled::Nothing;
        }
        // What they came to is recorded since the command.
        self.conclude(&dispatch, false, now, &mut Vec::new())
    }

    /// A record of this message is acknowledged. The last one of a done or deleted message drops it.
    pub fn recorded(&mut self, key: MessageKey) {
        let message = self.message_mut(key).expect("a message stays queued until its records are acknowledged");
        message.unrecorded = message.unrecorded.checked_sub(1).expect("each record is acknowledged once");
        if message.is_over() {
            self.drop_message(key.index);
        }
    }

    /// Takes in the outcome for one recipient of an attempt; true if its persisted state changes.
    /// Panics if it is not, or no longer, of this attempt.
    pub(crate) fn settle_recipient(&mut self, index: u32, recipient: u16, outcome: &Outcome<'_>, attempted: &Attempted<'_>) -> bool {
        let now = attempted.now;
        let (message, recipients) = self.messages.with_recipients_mut(index);
        let is_traced = message.flags.has(Flags::TRACED);
        let state = &mut recipients[usize::from(recipient)];
        assert!(state.is_in(attempted.number) && state.group == attempted.group, "an outcome is of its own attempt");
        if let Outcome::Untried { reply } = *outcome {
            state.untried = if attempted.progress { 0 } else { state.untried.saturating_add(1) };
            if state.untried >= UNTRIED_MAX {
                // What the next hop said instead, if it is a reason to wait; else it is no next hop's word.
                let (reply, relay) = match reply.first() {
                    Some(b'4') => (reply, attempted.relay),
                    _ => (&b"451 4.4.2 the connection ended before this recipient's turn"[..], ""),
                };
                return self.settle_recipient(index, recipient, &Outcome::Deferred { reply }, &Attempted { relay, ..*attempted });
            }
            self.make_ready_again(index, recipient, now);
            return false;
        }
        state.attempted(now);
        if !outcome.is_delivery() && self.leaves(index, recipient) {
            return true;
        }
        self.leaving.take(index, recipient);
        // Who goes another way now waits for nothing there, and a refusal on the old way is not the last word.
        let goes_elsewhere = !outcome.is_delivery() && self.is_to_go_elsewhere(index, recipient);
        let due = goes_elsewhere.then(|| self.messages[index].may_go_at(now));
        let outcome = match *outcome {
            Outcome::Failed { reply } if goes_elsewhere => &Outcome::Deferred { reply },
            _ => outcome,
        };
        let state = &mut self.messages.recipients_mut(index)[usize::from(recipient)];
        match outcome {
            Outcome::Delivered { reply } | Outcome::Relayed { reply } | Outcome::Untimed { reply } | Outcome::PassedOn { reply } => {
                let (has_reply, wants_success) = (state.has_reply(), wants_success(outcome, state.notify(), is_traced));
                self.placed[state.place as usize] -= 1;
                self.placed[Place::Delivered as usize] += 1;
                state.place = Place::Delivered;
                // Most mail is delivered at once, nobody is told, and it has nothing to forget.
                if wants_success && self.note_success(index, recipient, outcome.is_final()) {
                    self.keep_reply(index, recipient, &[reply], attempted.relay);
                } else if has_reply {
                    self.keep_reply(index, recipient, &[], "");
                }
            }
            Outcome::Failed { reply } => {
                self.place(index, recipient, Place::Failed);
                self.messages[index].flags.set(Flags::REPORT_DUE, true);
                self.keep_reply(index, recipient, &[reply], attempted.relay);
            }
            Outcome::Deferred { reply } => {
                let policy = &self.destinations[attempted.destination.index()].retry;
                state.deferrals = state.deferrals.saturating_add(1);
                let wait = policy.delay_ms(u32::from(state.deferrals), &mut Jitter::new(attempted.draw));
                state.next_attempt = due.unwrap_or(now + wait);
                let group = state.group;
                self.place(index, recipient, Place::Waiting);
                self.keep_reply(index, recipient, &[reply], attempted.relay);
                // Without the grace, which was for this attempt.
                let end = match self.messages[index].flags.has(Flags::WAY_OPEN) {
                    true => self.messages[index].expires_at,
                    false => self.end_of_life(group),
                };
                if end <= now {
                    self.fail_expired(index, recipient, now);
                }
            }
            Outcome::Untried { .. } => unreachable!("handled above"),
        }
        true
    }

    /// Back from an attempt that said nothing: before all others, with the age it had; or out, if a purge or a bounce has waited for that.
    pub(crate) fn make_ready_again(&mut self, index: u32, recipient: u16, now: u64) {
        if self.leaves(index, recipient) {
            return;
        }
        let state = &mut self.messages.recipients_mut(index)[usize::from(recipient)];
        state.next_attempt = now;
        let group = state.group;
        let flags = self.messages[index].flags;
        if flags.has(Flags::KEPT | Flags::CLOSING) {
            return self.place(index, recipient, Place::Waiting);
        }
        self.place(index, recipient, Place::Ready);
        self.add_ready(group, 1, |ready, groups| ready.put_back(groups, group));
    }

    /// Calls `each` for the recipients of an attempt that no outcome was given for; each must move them on.
    pub(crate) fn each_open(&mut self, dispatch: &Dispatch, mut each: impl FnMut(&mut Self, u16)) {
        let mut next = self.groups[dispatch.group].first;
        while next != NO_RECIPIENT {
            let recipient = &self.messages.recipients(dispatch.key.index)[usize::from(next)];
            let (this, is_open) = (next, recipient.is_in(dispatch.number));
            next = recipient.next_in_group;
            if is_open {
                each(self, this);
            }
        }
    }

    /// Ends an attempt none of whose recipients is open any more.
    pub(crate) fn end_attempt(&mut self, dispatch: &Dispatch, now: u64) {
        self.messages[dispatch.key.index].in_flight -= 1;
        self.end_at_destinations(dispatch, now);
    }

    /// Gives back what an attempt takes of its destination, and looks at where its mail is queued.
    #[inline]
    fn end_at_destinations(&mut self, dispatch: &Dispatch, now: u64) {
        let is_site = matches!(self.destinations[dispatch.destination.index()].role, Role::Site(_));
        self.end_at_destination(dispatch, now);
        // Only at sites mail of other destinations is attempted.
        if !is_site {
            return;
        }
        // What was given back may be all that the domain has ready: it is queued at its site again.
        let domain = self.groups[dispatch.group].destination;
        if domain != dispatch.destination.slot {
            self.refresh(domain, now);
        }
    }

    /// Gives back what an attempt takes of its destination.
    #[inline]
    pub(crate) fn end_at_destination(&mut self, dispatch: &Dispatch, now: u64) {
        let destination = &mut self.destinations[dispatch.destination.index()];
        destination.in_flight -= 1;
        if let Some(away) = &mut destination.away {
            away.give_back(dispatch.home);
        }
        // A chained attempt inherits the place in the window of the one before it.
        destination.chained = destination.chained.saturating_sub(1);
        if destination.in_flight == 0 {
            destination.forget_probes(now);
        }
        self.refresh(dispatch.destination.slot, now);
    }

    /// After an attempt: what has to be persisted.
    pub(crate) fn conclude(&mut self, dispatch: &Dispatch, changed: bool, now: u64, record: &mut Vec<u8>) -> Settled {
        let index = dispatch.key.index;
        let (message, recipients) = self.messages.with_recipients(index);
        let settled = if message.flags.has(Flags::CLOSING) {
            Settled::Nothing
        } else if recipients.iter().all(Recipient::is_settled) {
            self.begin_closing(index);
            // Its timer is gone, and it stays until this is recorded.
            return Settled::Done;
        } else if changed {
            self.write_record(index, |recipient| recipient.dispatch == dispatch.number && recipient.last_attempt == now, record);
            self.messages[index].unrecorded += 1;
            Settled::Outcome
        } else {
            Settled::Nothing
        };
        self.want_report(index, now);
        self.go_on(index, now);
        settled
    }

    /// After an attempt: sets the timer, sends what was re-routed meanwhile its new way, and drops what has no reason to stay.
    pub(crate) fn go_on(&mut self, index: u32, now: u64) {
        let Message { flags, .. } = self.messages[index];
        if flags.has(Flags::REGROUP) && !flags.has(Flags::CLOSING) {
            self.regroup(index, now);
        } else {
            self.arm(index);
        }
        self.close(index);
    }

    #[inline]
    pub(crate) fn is_settled(&self, index: u32) -> bool {
        self.messages.recipients(index).iter().all(Recipient::is_settled)
    }

    /// From here on only the acknowledgement of the settled record and open attempts keep the message. No recipient is ready.
    #[inline]
    pub(crate) fn begin_closing(&mut self, index: u32) {
        self.messages[index].begin_closing();
        self.groups.timers.cancel(index);
        self.reports.forget(index);
    }
}

/// Whether what was delivered so is to be told to its sender, where it can be.
#[inline]
fn wants_success(outcome: &Outcome<'_>, notify: Notify, is_traced: bool) -> bool {
    // RFC 2852 4.1: BY with T asks for a report of each next hop that takes it, even of one that reports itself. 4.1.4.2: without T
    // there is one where the time ends to be watched.
    let is_asked_for = is_traced && !outcome.is_final() || matches!(outcome, Outcome::Untimed { .. });
    let wants_trace = is_asked_for && !notify.has(Notify::NEVER);
    wants_trace || notify.has(Notify::SUCCESS) && !matches!(outcome, Outcome::PassedOn { .. })
}
