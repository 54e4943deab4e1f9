//! What is said of refusals by Valkey (password, rights, settings), and of their end. Pure.
//!
//! Where a part of the rights is missing, calls are refused and answered in turn, and the circuit opens and closes each second for as long as that lasts:
//! one and the same refusal is said once a minute, and that Valkey answers again when nothing has been refused for a while.

use std::time::Duration;

use crate::boot_time::BootTime;

/// How often one and the same refusal is said.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// Refused calls come closer together than this, with all that a node asks by itself.
const QUIET: Duration = Duration::from_secs(10);

/// Those of one Valkey.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The one that was said last, and when.
    said: Option<(String, BootTime)>,
    /// When a call was refused last; `None`: the last that failed did so otherwise.
    last: Option<BootTime>,
    /// That Valkey answers again was not said yet.
    owes_word: bool,
}

impl Refusals {
    /// A call failed for want of a sound server; `is_refusal`: that refused it.
    pub(super) fn failed(&mut self, is_refusal: bool, now: BootTime) {
        self.last = is_refusal.then_some(now);
    }

    /// A refusal opened the circuit. True: it is to be said, being another than before, or the same after a minute.
    pub(super) fn opened(&mut self, reason: &str, now: BootTime) -> bool {
        let is_new = self.said.as_ref().is_none_or(|(before, at)| before != reason || now.since(*at) >= SAID_EVERY);
        if is_new {
            self.said = Some((reason.to_owned(), now));
        }
        is_new
    }

    /// A call was answered, and closed the circuit or did not. True: that Valkey answers again is to be said now.
    pub(super) fn answered(&mut self, has_closed: bool, now: BootTime) -> bool {
        let is_quiet = self.last.is_none_or(|at| now.since(at) >= QUIET);
        let is_due = (has_closed || self.owes_word) && (is_quiet || self.said.is_none());
        self.owes_word = (has_closed || self.owes_word) && !is_due;
        if is_due {
            // What is refused from now on is news.
            self.said = None;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(100) + Duration::from_millis(ms))
    }

    /// Three calls are refused, and the next is answered.
    fn flaps(refusals: &mut Refusals, reason: &str, ms: u64) -> (bool, bool) {
        (0..3).for_each(|call| refusals.failed(true, at(ms + call)));
        (refusals.opened(reason, at(ms + 3)), refusals.answered(true, at(ms + 500)))
    }

    /// It was said with each opening of the circuit, some thousand times an hour, and "answers again" beside it.
    #[test]
    fn one_refusal_is_said_once_a_minute_and_another_at_once() {
        let mut refusals = Refusals::default();
        let said: Vec<u64> = (0..180).filter(|second| flaps(&mut refusals, "NOPERM time", second * 1000).0).collect();
        assert_eq!(said, [0, 60, 120]);
        assert_eq!(flaps(&mut refusals, "WRONGPASS", 180_000), (true, false));
        assert_eq!(flaps(&mut refusals, "WRONGPASS", 181_000), (false, false));
    }

    /// Mended within a minute after it was said, its end was not: the one call that closed the circuit said nothing, and no other did.
    #[test]
    fn the_end_of_a_refusal_is_said_once_when_nothing_is_refused_any_more() {
        let mut refusals = Refusals::default();
        assert_eq!(flaps(&mut refusals, "NOPERM", 0), (true, false));
        let said: Vec<u64> = (501..30_000).filter(|ms| refusals.answered(false, at(*ms))).collect();
        assert_eq!(said, [10_002], "ten seconds after the last");
        assert_eq!(flaps(&mut refusals, "NOPERM", 30_000), (true, false), "it is news");
        // Within the ten seconds it is refused again: it is no end.
        assert_eq!(flaps(&mut refusals, "NOPERM", 35_000), (false, false));
        assert!(!refusals.answered(false, at(41_000)) && refusals.answered(false, at(46_000)) && !refusals.answered(false, at(60_000)));
    }

    #[test]
    fn the_end_of_an_outage_is_said_at_once() {
        let mut refusals = Refusals::default();
        refusals.failed(false, at(0));
        assert!(refusals.answered(true, at(1)) && !refusals.answered(false, at(2)));
        // One that came behind refusals, too: what is there now is perhaps another server.
        assert_eq!(flaps(&mut refusals, "NOPERM", 10), (true, false));
        refusals.failed(false, at(600));
        assert!(refusals.answered(true, at(700)));
        assert!(!refusals.answered(false, at(60_000)), "said once");
    }
}
