//! The circuits between a node and Valkey: one for a single server, one for each hash slot of a cluster of servers.
//!
//! Of a cluster a part can be away. Its calls fail, and must not keep those from being sent that go elsewhere. Which server has a slot is known
//! to the client alone, and changes; so each slot is judged by its own calls. Pure.

use std::{collections::HashMap, time::Duration};

use redis::cluster_routing::Slot;

use crate::{
    boot_time::BootTime,
    breaker::{Breaker, Failure},
};

/// A cluster of servers of which none has answered for so long is away as a whole.
const SILENCE: Duration = Duration::from_secs(1);

/// What a circuit that opened or closed is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// All of Valkey.
    All,
    /// Some slots: told with the first that opens and the last that closes.
    Part,
}

/// All circuits of a node. A call is of no slot where there is one server, or where it names no key.
#[derive(Debug, Default)]
pub struct Circuits {
    /// Calls of no slot pass it. Of those that have one it keeps account.
    all: Breaker,
    /// Of each slot that was asked, 16,384 at most: when it answered last tells which failures count.
    slots: HashMap<Slot, Breaker>,
    /// Of them those that are open.
    open_slots: usize,
    answered_at: Option<BootTime>,
}

impl Circuits {
    /// See [`Breaker::allows`].
    pub fn allows(&mut self, slot: Option<Slot>, now: BootTime) -> bool {
        match slot {
            None => self.all.allows(now),
            Some(slot) => self.slots.get_mut(&slot).is_none_or(|breaker| breaker.allows(now)),
        }
    }

    /// Whether a call may be sent that takes too long to be a probe: others would wait for its end.
    pub fn are_closed(&self, slot: Option<Slot>) -> bool {
        !self.is_open() && slot.and_then(|slot| self.slots.get(&slot)).is_none_or(|breaker| !breaker.is_open())
    }

    /// Whether Valkey as a whole is taken for gone.
    pub fn is_open(&self) -> bool {
        self.all.is_open()
    }

    /// Whether calls to all of it are sent.
    pub fn is_whole(&self) -> bool {
        !self.is_open() && self.open_slots == 0
    }

    /// A call was answered. Says what that closed.
    pub fn succeeded(&mut self, slot: Option<Slot>, now: BootTime) -> Option<Extent> {
        let was_open = slot.is_some_and(|slot| self.slots.entry(slot).or_default().succeeded(now));
        self.open_slots -= usize::from(was_open);
        self.answered_at = Some(now);
        if self.all.succeeded(now) {
            return Some(Extent::All);
        }
        (was_open && self.open_slots == 0).then_some(Extent::Part)
    }

    /// A call failed. Says what that opened. `random` spreads the probes of many nodes.
    pub fn failed(&mut self, slot: Option<Slot>, failure: Failure, random: u64) -> Option<Extent> {
        let Some(slot) = slot else { return self.all.failed(failure, random).then_some(Extent::All) };
        let is_first = self.open_slots == 0;
        let opened = self.slots.entry(slot).or_default().failed(failure, random);
        self.open_slots += usize::from(opened);
        let is_silent = self.answered_at.is_none_or(|answered_at| failure.failed_at.since(answered_at) >= SILENCE);
        if is_silent && self.all.failed(failure, random) {
            return Some(Extent::All);
        }
        (opened && is_first && !self.is_open()).then_some(Extent::Part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(ms))
    }

    fn slot(number: u16) -> Option<Slot> {
        Slot::new(number)
    }

    fn fails(circuits: &mut Circuits, slot: Option<Slot>, ms: u64) -> Option<Extent> {
        circuits.failed(slot, Failure { sent_at: at(ms), failed_at: at(ms + 50) }, 1023)
    }

    /// Three calls for a dead primary, nothing else being asked in their 50 ms, opened the one circuit: nothing went to the living either.
    #[test]
    fn calls_that_fail_for_one_slot_stop_no_other() {
        let mut circuits = Circuits::default();
        circuits.succeeded(slot(1), at(0));
        assert_eq!([0, 50, 100].map(|ms| fails(&mut circuits, slot(7), ms)), [None, None, Some(Extent::Part)]);
        assert!(!circuits.allows(slot(7), at(151)) && circuits.allows(slot(1), at(151)) && circuits.allows(None, at(151)));
        assert!(!circuits.are_closed(slot(7)) && circuits.are_closed(slot(1)) && circuits.are_closed(None));
        assert!(!circuits.is_open());
        // Another slot of the dead server is told with the first.
        assert_eq!([150, 200, 250].map(|ms| fails(&mut circuits, slot(8), ms)), [None; 3]);
        assert!(!circuits.allows(slot(8), at(301)));
        // Probes, slot by slot.
        assert!(circuits.allows(slot(7), at(400)) && !circuits.allows(slot(7), at(400)) && circuits.allows(slot(8), at(400)));
        assert_eq!(circuits.succeeded(slot(7), at(410)), None);
        assert!(!circuits.is_whole());
        assert_eq!(circuits.succeeded(slot(8), at(410)), Some(Extent::Part));
        assert!(circuits.is_whole());
    }

    /// With an answer the slot's account ended, and with it what was known of that answer: three calls that had been sent before it, and failed after
    /// it, opened the circuit.
    #[test]
    fn failures_of_calls_that_were_sent_before_an_answer_do_not_open_a_slot() {
        for fails_first in [false, true] {
            let mut circuits = Circuits::default();
            if fails_first {
                assert_eq!(fails(&mut circuits, slot(7), 0), None);
            }
            circuits.succeeded(slot(7), at(60));
            assert_eq!([20, 30, 40, 59].map(|ms| fails(&mut circuits, slot(7), ms)), [None; 4]);
            assert!(circuits.allows(slot(7), at(110)));
            // Another slot's answer says nothing of this one.
            circuits.succeeded(slot(8), at(111));
            assert_eq!([61, 70, 80].map(|ms| fails(&mut circuits, slot(7), ms)), [None, None, Some(Extent::Part)]);
        }
    }

    #[test]
    fn all_of_it_is_away_once_no_slot_answers() {
        let mut circuits = Circuits::default();
        circuits.succeeded(slot(1), at(0));
        for ms in (100..900).step_by(50) {
            assert_ne!(fails(&mut circuits, slot((ms / 50) as u16 % 3), ms), Some(Extent::All));
        }
        assert!(!circuits.is_open());
        assert_eq!([950, 1000, 1050].map(|ms| fails(&mut circuits, slot(5), ms)), [None, None, Some(Extent::All)]);
        assert!(circuits.is_open() && !circuits.allows(None, at(1101)) && !circuits.are_closed(slot(9)));
        // Any answer ends it, and each slot asks for itself.
        assert!(circuits.allows(slot(9), at(1200)));
        assert_eq!(circuits.succeeded(slot(9), at(1210)), Some(Extent::All));
        assert!(!circuits.is_open() && circuits.allows(None, at(1210)));
    }

    #[test]
    fn one_server_has_one_circuit() {
        let mut circuits = Circuits::default();
        assert_eq!([0, 50, 100].map(|ms| fails(&mut circuits, None, ms)), [None, None, Some(Extent::All)]);
        assert!(!circuits.allows(None, at(151)) && circuits.is_open());
        assert!(circuits.allows(None, at(300)));
        assert_eq!(circuits.succeeded(None, at(310)), Some(Extent::All));
    }
}
