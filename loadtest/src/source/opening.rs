//! Sessions that are about to begin a message, or could at once, and how many more there may be.
//!
//! A session without a connection makes one, and begins its first message a few round trips later. Near the end of a load of so many
//! messages each session saw until then that some were left, so that several connected for the last one. So did one whose connection had
//! carried all it may, in an open loop, beside others that waited for a message on theirs.
//!
//! A session that fails gives its opening up before it pauses, and one that had none takes it: from an address that no connection leads
//! from, or that the server closes to, the last messages would never be begun.

use std::cell::Cell;

/// Counts the sessions that have not begun a message since they last connected, and those that rest on their connection.
#[derive(Debug, Default)]
pub(super) struct Openings(Cell<u64>);

impl Openings {
    /// One more; none where each of the `left` messages already has a session that is about to begin it. `None` of them: no limit.
    ///
    /// Whoever gets none is not needed while those that have one come to something, and waits for one of them to give it up.
    pub(super) fn open(&self, left: Option<u64>) -> Option<Opening<'_>> {
        left.is_none_or(|left| left > self.0.get()).then(|| self.count())
    }

    /// One that has begun a message on its connection before, and rests on it: it begins the next that is due.
    pub(super) fn rest(&self) -> Opening<'_> {
        self.count()
    }

    fn count(&self) -> Opening<'_> {
        self.0.set(self.0.get() + 1);
        Opening(self)
    }
}

/// A session that has no message yet, or none at the moment. Dropped when it has begun one, has failed, or is over.
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

    #[test]
    fn one_that_rests_is_as_good_as_one_that_connects() {
        let openings = Openings::default();
        let resting = openings.rest();
        assert!(openings.open(Some(1)).is_none() && openings.open(Some(2)).is_some());
        drop(resting); // its connection broke, or it has begun a message
        assert!(openings.open(Some(1)).is_some());
    }
}
