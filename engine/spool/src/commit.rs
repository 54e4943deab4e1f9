//! Group commit: many records, one write and one flush. While batches are being synced, further records gather.
//!
//! The disk is the clock: a batch goes out as soon as one of two flight slots is free. In flight means not yet acknowledged, and batches
//! are acknowledged in log order, so one that completes before its elder frees nothing.

use std::collections::VecDeque;

use crate::batch::Ticket;
use crate::op::OpId;

/// Batches being written and synced at once.
pub const BATCHES_IN_FLIGHT_MAX: usize = 2;

struct Flight {
    ticket: Ticket,
    slot: u32,
    op: OpId,
    done: bool,
}

/// Which batches are under way, and up to where the log is durable.
pub(crate) struct GroupCommit {
    flights: VecDeque<Flight>,
    /// Ticket of the batch that gathers.
    next: Ticket,
    acknowledged: Ticket,
    /// Check of the batch sealed last, 0 before the first: what the next one is chained to.
    chain: u32,
    /// What the header sealed last stated as durable.
    witnessed: Ticket,
    /// The last batch that holds more than a witness.
    content: Ticket,
    /// Ignores that a flush of one file says nothing of another: only a control of the tests sets it.
    across_segments: bool,
}

impl GroupCommit {
    pub(crate) fn new(across_segments: bool) -> Self {
        GroupCommit {
            flights: VecDeque::with_capacity(BATCHES_IN_FLIGHT_MAX),
            next: Ticket(1),
            acknowledged: Ticket(0),
            chain: 0,
            witnessed: Ticket(0),
            content: Ticket(0),
            across_segments,
        }
    }

    /// Ticket of the batch that gathers now.
    pub(crate) fn next(&self) -> Ticket {
        self.next
    }

    pub(crate) fn acknowledged(&self) -> Ticket {
        self.acknowledged
    }

    pub(crate) fn chain(&self) -> u32 {
        self.chain
    }

    /// A control of the tests: the next batch is chained to one of an earlier life.
    pub(crate) fn resume(&mut self, chain: u32) {
        self.chain = chain;
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Whether a batch for the segment in `slot` may go out now.
    pub(crate) fn may_send(&self, slot: u32) -> bool {
        self.flights.len() < BATCHES_IN_FLIGHT_MAX && (self.across_segments || self.flights.iter().all(|flight| flight.slot == slot))
    }

    /// Whether the newest batch that matters lacks a later header which says that it was acknowledged.
    pub(crate) fn lacks_witness(&self) -> bool {
        self.content > self.witnessed
    }

    /// No witness can be written: the next batch will do.
    pub(crate) fn give_up_witness(&mut self) {
        self.witnessed = self.content;
    }

    /// The gathering batch went out with the header check `check`.
    pub(crate) fn sent(&mut self, op: OpId, slot: u32, check: u32, is_witness: bool) {
        assert!(self.flights.len() < BATCHES_IN_FLIGHT_MAX, "a flight slot was free");
        self.flights.push_back(Flight { ticket: self.next, slot, op, done: false });
        self.chain = check;
        self.witnessed = self.acknowledged;
        if !is_witness {
            self.content = self.next;
        }
        self.next.0 += 1;
    }

    /// Both completions of `op` came in and were good. Returns whether more is acknowledged now.
    pub(crate) fn landed(&mut self, op: OpId) -> bool {
        let flight = self.flights.iter_mut().find(|flight| flight.op == op).expect("the batch is in flight");
        flight.done = true;
        let before = self.acknowledged;
        while self.flights.front().is_some_and(|flight| flight.done) {
            self.acknowledged = self.flights.pop_front().expect("the front was just seen").ticket;
        }
        self.acknowledged > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_younger_batch_that_lands_first_is_not_acknowledged_and_frees_no_slot() {
        let mut commit = GroupCommit::new(false);
        commit.sent(OpId(1), 0, 11, false);
        commit.sent(OpId(2), 0, 22, false);
        assert!(!commit.landed(OpId(2)));
        assert_eq!(commit.acknowledged(), Ticket(0));
        assert!(!commit.may_send(0));
        assert!(commit.landed(OpId(1)));
        assert_eq!(commit.acknowledged(), Ticket(2));
        assert!(commit.may_send(0));
    }

    #[test]
    fn the_first_batch_of_a_new_segment_waits_for_the_last_of_the_old() {
        let mut commit = GroupCommit::new(false);
        commit.sent(OpId(1), 0, 11, false);
        assert!(commit.may_send(0));
        assert!(!commit.may_send(1));
        commit.landed(OpId(1));
        assert!(commit.may_send(1));
    }

    #[test]
    fn a_witness_is_wanted_until_a_header_states_the_last_content_as_durable() {
        let mut commit = GroupCommit::new(false);
        assert!(!commit.lacks_witness());
        commit.sent(OpId(1), 0, 11, false);
        commit.landed(OpId(1));
        assert!(commit.lacks_witness());
        commit.sent(OpId(2), 0, 22, true);
        assert!(!commit.lacks_witness());
        commit.landed(OpId(2));
        assert!(!commit.lacks_witness());
    }
}
