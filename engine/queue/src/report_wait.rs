//! What a sender waits for who is to be told something, for people who ask.

use crate::message::Flags;
use crate::view::MessageView;

/// What the report about a message waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReportWait {
    /// No reports are made.
    Off,
    /// Nothing: it is being made, or is the next to be.
    Nothing,
    /// Its turn among others by the pace of reports, or its being tried again; unix ms, `now` at the earliest.
    Until(u64),
}

impl MessageView<'_> {
    /// What its report waits for, if it has one to come.
    pub fn report_wait(&self, now: u64) -> ReportWait {
        if self.queue.settings.reports.is_none() {
            return ReportWait::Off;
        }
        if !self.queue.messages[self.index].flags.has(Flags::REPORT_SET) {
            return ReportWait::Nothing;
        }
        match self.queue.reports.turn(self.index, self.key(), now) {
            Some(at) if at > now => ReportWait::Until(at),
            _ => ReportWait::Nothing,
        }
    }
}
