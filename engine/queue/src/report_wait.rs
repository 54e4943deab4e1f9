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
    /// Its turn among others by the pace of reports, or its being tried again; unix ms, after `now`.
    Until(u64),
    /// Its turn is behind that of more than so many others, and so not before this (unix ms).
    Behind {
        /// As many as are counted.
        more_than: usize,
        /// When the last of them has its turn.
        from: u64,
    },
}

impl MessageView<'_> {
    /// What its report waits for, if it has one to come. Looks at some of the reports that wait: ask once for each message.
    pub fn report_wait(&self, now: u64) -> ReportWait {
        if self.queue.settings.reports.is_none() {
            return ReportWait::Off;
        }
        let flags = &self.queue.messages[self.index].flags;
        // One that is being made is due no more.
        if !flags.has(Flags::REPORT_SET) || !flags.has(Flags::REPORT_DUE) {
            return ReportWait::Nothing;
        }
        self.queue.reports.turn(self.index, self.key(), now)
    }
}
