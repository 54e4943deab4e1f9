//! Whether a worker leases more, by what it has to deliver already. Pure: the worker asks its shards and says what they answered.

use std::time::Duration;

use ringpost_cluster::boot_time::BootTime;
use ringpost_queue::{BACKLOG_PER_DESTINATION_MAX, Backlog, READY_PER_DESTINATION_MAX};

/// Messages in their turn from which a worker leaves the rest to others.
pub(super) const IN_TURN_MAX: u64 = 1024;
/// Messages for destinations that take mail, slow ones too, from which it does: what waits here waits on while this node is down.
pub(super) const READY_MAX: u64 = 8192;
/// Three slow destinations, or dead ones in any number, leave room for the mail of the others.
const _: () = assert!(3 * BACKLOG_PER_DESTINATION_MAX < IN_TURN_MAX && 3 * READY_PER_DESTINATION_MAX < READY_MAX);
/// So long without any room is said in the log, again and again: under load there is some in between.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What a worker remembers of earlier looks at its backlog.
#[derive(Default)]
pub(super) struct Appetite {
    /// There was room at no look since then, or it was said then.
    full_since: Option<BootTime>,
}

/// What comes of a look.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// Lease.
    Lease,
    /// Leave the rest to others.
    Leave,
    /// As `Leave`, and say so: it has lasted.
    Say,
}

impl Appetite {
    pub(super) fn look(&mut self, backlog: Backlog, now: BootTime) -> Look {
        if backlog.in_turn < IN_TURN_MAX && backlog.ready < READY_MAX {
            self.full_since = None;
            return Look::Lease;
        }
        if now.since(*self.full_since.get_or_insert(now)) < SAID_EVERY {
            return Look::Leave;
        }
        self.full_since = Some(now);
        Look::Say
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn a_full_worker_leaves_mail_and_says_so_once_a_minute() {
        let mut appetite = Appetite::default();
        let (open, full) = (Backlog { ready: 8191, in_turn: 1023 }, Backlog { ready: 1024, in_turn: 1024 });
        assert_eq!(appetite.look(open, at(0)), Look::Lease);
        assert_eq!(appetite.look(full, at(1)), Look::Leave);
        assert_eq!(appetite.look(full, at(60)), Look::Leave);
        assert_eq!(appetite.look(Backlog { ready: 8192, in_turn: 0 }, at(61)), Look::Say);
        assert_eq!(appetite.look(full, at(62)), Look::Leave);
        assert_eq!(appetite.look(full, at(121)), Look::Say);
        // What is busy and gets on says nothing.
        assert_eq!(appetite.look(open, at(122)), Look::Lease);
        assert_eq!(appetite.look(full, at(200)), Look::Leave);
        assert_eq!(appetite.look(full, at(259)), Look::Leave);
    }
}
