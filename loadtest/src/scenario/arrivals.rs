//! The wait for the mail of a server that cannot be asked for its queue: until all that was accepted has come and nothing comes behind it, or
//! nothing more comes for so long. [`Wait`] is the rule; [`wait_for_arrivals`] looks, compares and sleeps for it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::{diff::compare, scenario::Scenario, signals::StopSignal, sink::Sink};

/// See the module.
#[derive(Debug)]
struct Wait {
    /// So long after the last arrival it is over where something is missing.
    patience: Duration,
    /// And so long where nothing is: what comes then came before.
    quiet: Duration,
    /// Messages that have come.
    seen: u64,
    /// When the last of them came, or the wait began.
    since: Instant,
    /// So many must have come before another comparison can find nothing missing.
    wanted: u64,
    is_complete: bool,
}

impl Wait {
    fn new(scenario: &Scenario, seen: u64, now: Instant) -> Wait {
        let length = |seconds: f64, least: f64| Duration::from_secs_f64(seconds.clamp(least, 1e6));
        let patience = length(scenario.expect.drain_s_max, 0.1);
        let quiet = length(scenario.expect.quiet_s, 0.0).min(patience);
        Wait { patience, quiet, seen, since: now, wanted: 0, is_complete: false }
    }

    /// So many have come by now.
    fn see(&mut self, seen: u64, now: Instant) {
        if seen != self.seen {
            (self.seen, self.since) = (seen, now);
        }
    }

    /// Could nothing be missing any more?
    fn is_to_be_compared(&self) -> bool {
        !self.is_complete && self.seen >= self.wanted
    }

    /// So many deliveries are missing; a message has at most so many recipients.
    fn compared(&mut self, missing: u64, recipients: u64) {
        self.is_complete = missing == 0;
        // With all recipients missing a message comes for all of them at once.
        self.wanted = self.seen + missing.div_ceil(recipients);
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= if self.is_complete { self.quiet } else { self.patience }
    }
}

/// Waits until all that was accepted has come, damaged or not and whatever else the server had queued, and nothing came behind it for
/// `quiet_s`; or until nothing more comes for `drain_s_max`. False: until somebody asked for the end.
pub(super) fn wait_for_arrivals(scenario: &Scenario, sinks: &[Sink], (accepted, delivered): (&Path, &Path), stop: &StopSignal) -> bool {
    let arrived = || sinks.iter().map(Sink::messages).sum::<u64>();
    let mut wait = Wait::new(scenario, arrived(), Instant::now());
    while !stop.is_asked() {
        if wait.is_to_be_compared() {
            sinks.iter().for_each(Sink::write_ledger);
            // A ledger whose last line is just being written is looked at again when more has come.
            let missing = compare(&[accepted], delivered).map_or(1, |difference| difference.lost);
            wait.compared(missing, scenario.load.recipients as u64);
        }
        if wait.is_over(Instant::now()) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20)); // no event tells of an arrival
        wait.see(arrived(), Instant::now());
    }
    !stop.is_asked()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checksum::Checksum,
        identity::{Mark, MessageId},
        ledger::{Envelope, LedgerWriter},
        sink::verify::{Arrival, Damage},
    };

    fn scenario(drain_s_max: f64, quiet_s: f64) -> Scenario {
        let mut scenario = Scenario::find("relay").unwrap();
        (scenario.expect.drain_s_max, scenario.expect.quiet_s) = (drain_s_max, quiet_s);
        scenario
    }

    /// What happened: the next hop ended the moment that nothing was missing, and what the server sent twice behind that nobody saw.
    #[test]
    fn the_wait_goes_on_behind_the_last_that_is_owed_until_it_is_quiet() {
        let began = Instant::now();
        let at = |s: f64| began + Duration::from_secs_f64(s);
        let mut wait = Wait::new(&scenario(60.0, 2.0), 0, began);
        assert!(wait.is_to_be_compared() && !wait.is_over(at(59.0)) && wait.is_over(at(60.0)));
        wait.compared(5, 2);
        wait.see(2, at(3.0));
        assert!(!wait.is_to_be_compared() && !wait.is_over(at(62.0)));
        wait.see(3, at(4.0));
        assert!(wait.is_to_be_compared());
        wait.compared(0, 2);
        assert!(!wait.is_over(at(5.9)) && wait.is_over(at(6.0)));
        // It comes twice.
        wait.see(4, at(5.5));
        assert!(!wait.is_to_be_compared() && !wait.is_over(at(7.4)) && wait.is_over(at(7.5)));
        let mut hasty = Wait::new(&scenario(1.0, 2.0), 0, began);
        hasty.compared(0, 1);
        assert!(!hasty.is_over(at(0.9)) && hasty.is_over(at(1.0)));
    }

    /// What happened: a server that sends mail on damaged was waited for until nothing had come for a minute, though all was there.
    #[test]
    fn mail_that_came_damaged_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (accepted, delivered) = (folder.path().join("accepted"), folder.path().join("delivered"));
        let mark = Mark { id: MessageId { run: 1, sequence: 1 }, length: 10, checksum: Checksum::from_bits(1), due_us: 0 };
        let mut writer = LedgerWriter::open(Some(&accepted)).unwrap();
        writer.accepted(&mark, 5, b"a@x,b@x", b"7F3A").unwrap();
        writer.flush().unwrap();
        let mut writer = LedgerWriter::open(Some(&delivered)).unwrap();
        for (recipients, damage) in [(b"a@x", None), (b"b@x", Some(Damage::Length))] {
            let arrival = Arrival { mark: Some(mark), damage, bytes: 10, bare_line_ends: 0 };
            writer.delivered(&arrival, 6, Envelope { reverse_path: b"s@x", recipients }).unwrap();
        }
        writer.flush().unwrap();
        let (scenario, began) = (scenario(20.0, 0.0), Instant::now());
        assert!(wait_for_arrivals(&scenario, &[], (&accepted, &delivered), &StopSignal::never()));
        assert!(began.elapsed() < Duration::from_secs(20), "it had nothing to wait for");
    }
}
