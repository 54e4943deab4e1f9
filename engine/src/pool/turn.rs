//! Whose turn it is where there are as many connections as there may be: one in use passes its seat on after a while, so that a
//! destination with mail without end keeps no other waiting until its connections are old.

use std::{rc::Rc, time::Duration};

use ringpost_queue::DestinationId;

use super::Pool;

/// So long a connection takes further messages while another destination waits for a seat. Long enough that its making costs little
/// beside its use.
const TURN_MAX: Duration = Duration::from_secs(1);
/// Turns are as much shorter as it takes for each destination that waits to have a seat within this, which is well below the time that an
/// attempt waits (`wait_timeout`); a message under way is finished, so that one message is the shortest turn.
const ROUND: Duration = Duration::from_secs(10);

/// A connection that ends so that another destination has its seat. No more of them do so than destinations wait. Ends when dropped.
pub struct GivingWay<T> {
    pool: Rc<Pool<T>>,
}

impl<T> Drop for GivingWay<T> {
    fn drop(&mut self) {
        self.pool.giving_way.set(self.pool.giving_way.get() - 1);
    }
}

impl<T> Pool<T> {
    /// Has a connection of this destination, in use for so long, had its turn, so that it is to end before the next message?
    pub fn gives_way(self: &Rc<Self>, destination: DestinationId, age: Duration) -> Option<GivingWay<T>> {
        if self.total.get() < self.total_max || !self.is_lacked() {
            return None;
        }
        let mut starved = self.starved.borrow_mut();
        if age < turn(self.total_max, starved.len()) || self.giving_way.get() as usize >= starved.len() {
            return None;
        }
        if starved.first() == Some(destination) {
            // It would have the seat again: this is its turn, and that of the others comes before its next one.
            starved.leave(destination);
            starved.join(destination);
            return None;
        }
        self.giving_way.set(self.giving_way.get() + 1);
        self.metrics.pool_gave_way.increment();
        Some(GivingWay { pool: self.clone() })
    }
}

fn turn(seats: u32, waiting: usize) -> Duration {
    let waiting = u32::try_from(waiting).unwrap_or(u32::MAX).max(1);
    (ROUND / waiting).saturating_mul(seats).min(TURN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_as_short_as_a_round_of_all_needs() {
        for (seats, waiting, expected_ms) in
            [(64, 1, 1000), (64, 640, 1000), (64, 1280, 500), (1, 1, 1000), (1, 100, 100), (1 << 30, 7, 1000)]
        {
            assert_eq!(turn(seats, waiting).as_millis(), expected_ms, "{seats} seats, {waiting} wait");
        }
    }
}
