//! Times in records that were written while the machine's clock stood wrong.
//!
//! A clock that was ahead leaves times that are still to come, and mail would wait for them, for years if need be; one that was behind
//! leaves mail that seems to be past its lifetime. What cannot be is recognised by now and by the number of the start in the message's
//! id, which is no less than the time of any start before it.

use crate::message::{NewMessage, Place};
use crate::queue::Queue;

/// A clock that is so far off stood wrong; less changes nothing that matters, and starts within one second count on.
const OFF_MS: u64 = 3_600_000;

/// The message as accepted when it can have been at the latest, or at the earliest, where it says something else; its other times move along.
pub(crate) fn as_accepted<'a>(message: &NewMessage<'a>, now: u64) -> NewMessage<'a> {
    // A number that is still to come was counted on from a clock that was ahead: it says nothing.
    let boot = if message.accepted_elsewhere { 0 } else { u64::from(message.id.boot) * 1000 };
    let earliest = if boot <= now { boot } else { 0 };
    let accepted_at = match message.accepted_at {
        late if late > now.saturating_add(OFF_MS) => now,
        early if early.saturating_add(OFF_MS) < earliest => earliest,
        _ => return *message,
    };
    let moved = |at: u64| at.saturating_sub(message.accepted_at).saturating_add(accepted_at);
    NewMessage {
        accepted_at,
        expires_at: message.expires_at.map(moved),
        not_before: message.not_before.map(moved),
        warn_at: message.warn_at.map(moved),
        ..*message
    }
}

impl Queue {
    /// Of a message just read: its next attempts come no later than after the longest wait of their route.
    pub(crate) fn bound_attempts(&mut self, index: u32, now: u64) {
        let (message, recipients) = self.messages.with_recipients_mut(index);
        let from = now.max(message.released_at());
        for recipient in recipients {
            if recipient.place == Place::Waiting {
                let retry = &self.destinations[self.groups[recipient.group].destination as usize].retry;
                recipient.next_attempt = recipient.next_attempt.min(from.saturating_add(retry.longest_ms()));
            }
        }
    }
}
