//! Messages with deferrals that are recorded together, since a record has the state of all recipients.
//!
//! A message to a thousand domains none of which can be reached has a thousand deferrals in a few seconds: a record for each was 12 MB. Only
//! what reached nobody is here (`Settled::Deferral`): what a crash takes of it is that it was tried.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    hash::Hash,
    time::{Duration, Instant},
};

/// How long the first deferral of a message waits for others, for each recipient.
const WAIT: Duration = Duration::from_millis(1);
/// And at most: so much a crash takes.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Messages at once; beyond, those that have waited longest are recorded before their time. About 100 bytes each.
const MESSAGES_MAX: usize = 16_384;

/// When one is due, and its number: no two are due as one.
type Due = (Instant, u64);

/// Messages, named by `K`, that have a deferral to record.
pub(crate) struct Gathered<K> {
    due_of: HashMap<K, Due>,
    by_due: BTreeMap<Due, K>,
    entered: u64,
}

impl<K> Default for Gathered<K> {
    fn default() -> Self {
        Gathered { due_of: HashMap::new(), by_due: BTreeMap::new(), entered: 0 }
    }
}

impl<K: Copy + Eq + Hash> Gathered<K> {
    /// A message with so many recipients has a deferral. False if it has one here already: one record is for both.
    pub(crate) fn add(&mut self, key: K, recipients: usize, now: Instant) -> bool {
        let Entry::Vacant(entry) = self.due_of.entry(key) else { return false };
        let recipients = u32::try_from(recipients).unwrap_or(u32::MAX);
        let due = (now + WAIT.saturating_mul(recipients).min(WAIT_MAX), self.entered);
        self.entered += 1;
        entry.insert(due);
        self.by_due.insert(due, key);
        true
    }

    /// A record of the message is written now. True if it had a deferral here.
    pub(crate) fn take(&mut self, key: K) -> bool {
        !self.is_empty() && self.due_of.remove(&key).is_some_and(|due| self.by_due.remove(&due).is_some())
    }

    /// Takes out the next one to record now: one that is due, or whichever `is_last` when nothing is to wait any more, or there are too many.
    pub(crate) fn pop(&mut self, now: Instant, is_last: bool) -> Option<K> {
        let (&due, &key) = self.by_due.first_key_value()?;
        if due.0 > now && !is_last && self.by_due.len() <= MESSAGES_MAX {
            return None;
        }
        self.by_due.remove(&due);
        self.due_of.remove(&key);
        Some(key)
    }

    /// When [`Gathered::pop`] has one again.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.by_due.first_key_value().map(|(due, _)| due.0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deferrals_of_a_message_wait_a_millisecond_for_each_recipient_and_a_second_at_most() {
        let (mut gathered, start) = (Gathered::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!([(1, 1_500), (2, 20), (3, 20)].map(|(key, recipients)| gathered.add(key, recipients, start)), [true; 3]);
        assert!(!gathered.add(1, 1_500, after(900)) && !gathered.add(2, 20, after(19)), "what comes later puts nothing off");
        assert_eq!((gathered.next_due(), gathered.pop(after(19), false)), (Some(after(20)), None));
        assert_eq!([(); 3].map(|()| gathered.pop(after(20), false)), [Some(2), Some(3), None]);
        assert_eq!((gathered.pop(after(999), false), gathered.pop(after(1_000), false)), (None, Some(1)));
        assert!(gathered.is_empty() && gathered.next_due().is_none() && gathered.due_of.is_empty());
        assert!(gathered.add(1, 1_500, after(1_000)), "it is recorded, and has another");
    }

    #[test]
    fn what_is_recorded_with_something_else_and_what_is_last_does_not_wait() {
        let (mut gathered, now) = (Gathered::default(), Instant::now());
        for key in 1..=4 {
            assert!(gathered.add(key, 100, now));
        }
        assert_eq!([3, 3, 5].map(|key| gathered.take(key)), [true, false, false]);
        assert_eq!((gathered.pop(now, false), gathered.pop(now, true)), (None, Some(1)));
        assert_eq!((gathered.take(2), gathered.pop(now, true), gathered.pop(now, true)), (true, Some(4), None));
    }

    #[test]
    fn beyond_their_number_those_that_have_waited_longest_are_recorded() {
        let (mut gathered, now) = (Gathered::default(), Instant::now());
        for key in 0..MESSAGES_MAX + 2 {
            assert!(gathered.add(key, 1_000, now));
        }
        assert_eq!([(); 3].map(|()| gathered.pop(now, false)), [Some(0), Some(1), None]);
        assert_eq!((gathered.by_due.len(), gathered.due_of.len()), (MESSAGES_MAX, MESSAGES_MAX));
    }
}
