//! Sessions that are about to begin a message, and how many more there may be.
//!
//! A session without a connection makes one, and begins its first message a few round trips later. Near the end of a load of so many
//! messages each session saw until then that some were left, so that several connected for the last one.

use std::cell::Cell;

/// Counts the sessions that have not begun a message since they last connected.
#[derive(Debug, Default)]
pub(super) struct Openings(Cell<u64>);

impl Openings {
    /// One more; none where each of the `left` messages already has a session that is about to begin it. `None` of them: no limit.
    ///
    /// Whoever gets none is not needed any more: those that are about to begin a message try until they can, or until there are none left.
    pub(super) fn open(&self, left: Option<u64>) -> Option<Opening<'_>> {
        let is_needed = left.is_none_or(|left| left > self.0.get());
        is_needed.then(|| {
            self.0.set(self.0.get() + 1);
            Opening(self)
        })
    }
}

/// A session that has no message yet. Dropped when it has begun one, or is over.
#[derive(Debug)]
pub(super) struct Opening<'a>(&'a Openings);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::Openings;

    #[test]
    fn there_are_no_more_openings_than_messages_left() {
        let openings = Openings::default();
        let first = openings.open(Some(2)).unwrap();
        let second = openings.open(Some(2)).unwrap();
        assert!(openings.open(Some(2)).is_none());
        drop(first); // it has begun one of the two
        assert!(openings.open(Some(1)).is_none());
        assert!(openings.open(Some(2)).is_some() && openings.open(None).is_some());
        drop(second);
        assert!(openings.open(Some(1)).is_some() && openings.open(Some(0)).is_none());
    }
}
