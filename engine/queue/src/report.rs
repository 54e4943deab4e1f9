//! Who is to be told what became of a message (RFC 3461), and when: one report at a time per message, at a bounded pace.
//!
//! A failed recipient stays failed until the driver says that its report is durable ([`Queue::reported`]); only then it is
//! bounced, which is settled. So a crash between the two makes a report again and loses none. Reports beyond the pace wait in
//! the queue, visible as failed recipients.
//!
//! ```text
//! failed | delay due | success due -> wanted (pace of its sender) -> waiting (pace of all) -> Work::Report -> reported
//! ```

use std::collections::VecDeque;
use std::num::NonZeroU32;

use crate::destination::Destination;
use crate::message::{Flags, Group, Message, MessageKey, NO_RECIPIENT, Place, Recipient};
use crate::notify::Notify;
use crate::outcome::{SUCCESS_DUE, SUCCESS_RELAYED, TOLD_DELAY, TOLD_KNOWN};
use crate::queue::{Queue, QueueSettings};
use crate::report_wait::ReportWait;
use crate::settling::Settled;
use crate::slab::NONE;
use crate::view::{MessageView, RecipientView};
use crate::wheel::{Popped, Wheel};

/// Recipients of one report at most; more are told in further reports, each of which so fits into a batch of the spool.
pub const REPORT_RECIPIENTS_MAX: usize = 100;

/// Reports being made at a time.
const REPORTS_OPEN_MAX: u32 = 16;

/// Timers handled or moved in their wheel by one look at most.
const TIMERS_PER_LOOK: usize = 256;

/// Senders that share one of these share its pace: their reports come later, and none is lost.
const SENDER_SLOTS: usize = 4096;

/// Reports before one's own that are counted for people who ask: so many are looked at within ten microseconds.
const AHEAD_MAX: usize = 10_000;

/// In memory only: a report of the delay is wanted.
const DELAY_DUE: u8 = 8;
/// Where NOTIFY stands in [`Recipient::told`]; it is read from the envelope at each start.
const NOTIFY_SHIFT: u32 = 4;

/// What a report says of a recipient: the Action of RFC 3464 2.3.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Refused for good or expired.
    Failed,
    /// Still tried.
    Delayed,
    /// Delivered to where it is kept.
    Delivered,
    /// Taken by a next hop that will not report.
    Relayed,
}

/// What a report is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// Recipients that failed.
    Failure,
    /// Recipients that are still tried after the time of the warning.
    Delay,
    /// Delivered and relayed recipients.
    Success,
}

impl Notice {
    /// Which report it is told in.
    pub fn about(self) -> About {
        match self {
            Self::Failed => About::Failure,
            Self::Delayed => About::Delay,
            Self::Delivered | Self::Relayed => About::Success,
        }
    }
}

/// A report that is to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// What it is about.
    pub about: About,
    /// Numbers of its recipients, at least one, at most [`REPORT_RECIPIENTS_MAX`]. Not all need be told: see
    /// [`RecipientView::is_told`](crate::RecipientView::is_told). Of a delay either all are
    /// [kept](crate::RecipientView::is_kept) by an operator or none is.
    pub recipients: Vec<u16>,
}

/// How fast reports are made; what comes faster waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReportLimits {
    /// Reports a second, to all senders.
    pub per_second: Option<NonZeroU32>,
    /// Reports a minute, to one sender.
    pub per_minute_and_sender: Option<NonZeroU32>,
}

/// An even pace with a burst of one period at its begin (GCRA), in microseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    interval_us: u64,
    burst_us: u64,
}

impl Pace {
    fn new(limit: Option<NonZeroU32>, period_us: u64) -> Option<Self> {
        let interval_us = (period_us / u64::from(limit?.get())).max(1);
        Some(Self { interval_us, burst_us: period_us - interval_us })
    }

    /// When the next one may go (unix ms, `now` at the earliest). `arrival` is the pace's memory.
    fn due(self, arrival: u64, now: u64) -> u64 {
        arrival.saturating_sub(self.burst_us).div_ceil(1000).max(now)
    }

    fn take(self, arrival: &mut u64, now: u64) {
        *arrival = (*arrival).max(now.saturating_mul(1000)) + self.interval_us;
    }
}

/// The reports of one queue.
#[derive(Debug)]
pub(crate) struct Reports {
    all: Option<Pace>,
    each: Option<Pace>,
    seed: u64,
    all_arrival: u64,
    /// By the hash of the reverse-path; empty until the first report.
    arrivals: Vec<u64>,
    /// Messages whose report waits for its sender's turn, or was put off.
    timers: Wheel,
    timed: usize,
    /// Messages whose report waits for the common pace, oldest first. May name such as are gone.
    waiting: VecDeque<MessageKey>,
    open: u32,
}

impl Reports {
    pub(crate) fn new(limits: Option<ReportLimits>, seed: u64, now: u64) -> Self {
        let limits = limits.unwrap_or_default();
        Self {
            all: Pace::new(limits.per_second, 1_000_000),
            each: Pace::new(limits.per_minute_and_sender, 60_000_000),
            seed,
            all_arrival: 0,
            arrivals: Vec::new(),
            timers: Wheel::new(now),
            timed: 0,
            waiting: VecDeque::new(),
            open: 0,
        }
    }

    /// Takes this sender's next turn: when it is.
    fn turn_of(&mut self, reverse_path: &[u8], now: u64) -> u64 {
        let Some(pace) = self.each else { return now };
        if self.arrivals.is_empty() {
            self.arrivals.resize(SENDER_SLOTS, 0);
        }
        let hash = reverse_path.iter().fold(self.seed, |hash, byte| {
            (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
        });
        let arrival = &mut self.arrivals[(hash >> 20) as usize % SENDER_SLOTS];
        let due = pace.due(*arrival, now);
        pace.take(arrival, now);
        due
    }

    /// What a message's report waits for: where others are before it, by the pace of all. Of those it counts [`AHEAD_MAX`].
    pub(crate) fn turn(&self, index: u32, key: MessageKey, now: u64) -> ReportWait {
        let arrival =
            |pace: Pace, ahead| self.all_arrival.max(now.saturating_mul(1000)).saturating_add(pace.interval_us.saturating_mul(ahead));
        let at = |ahead: usize| self.all.map_or(now, |pace| pace.due(arrival(pace, ahead as u64), now));
        let until = |at| if at > now { ReportWait::Until(at) } else { ReportWait::Nothing };
        if let Some(deadline) = self.timers.deadline(index) {
            return until(deadline);
        }
        match self.waiting.iter().take(AHEAD_MAX).position(|other| *other == key) {
            Some(ahead) => until(at(ahead)),
            None if self.waiting.len() > AHEAD_MAX => ReportWait::Behind { more_than: AHEAD_MAX, from: at(AHEAD_MAX) },
            None => ReportWait::Nothing,
        }
    }

    #[cfg(test)]
    pub(crate) fn timers_mut(&mut self) -> &mut Wheel {
        &mut self.timers
    }

    /// A message leaves.
    #[inline]
    pub(crate) fn forget(&mut self, index: u32) {
        // Few messages are ever reported, and each leaves.
        if self.timed > 0 && self.timers.is_set(index) {
            self.timed -= 1;
            self.timers.cancel(index);
        }
    }

    fn wait_until(&mut self, index: u32, at: u64) {
        self.timed += usize::from(!self.timers.is_set(index));
        self.timers.set(index, at);
    }
}

impl Recipient {
    pub(crate) fn set_notify(&mut self, notify: Notify) {
        self.told |= notify.0 << NOTIFY_SHIFT;
    }

    pub(crate) fn notify(&self) -> Notify {
        Notify(self.told >> NOTIFY_SHIFT)
    }

    /// Its record says more than where it is.
    pub(crate) fn was_told(&self) -> bool {
        self.told & TOLD_KNOWN != 0
    }

    pub(crate) fn notice(&self) -> Option<Notice> {
        let has = |bit| self.told & bit != 0;
        match self.place {
            Place::Failed => Some(Notice::Failed),
            Place::Delivered if has(SUCCESS_RELAYED) => Some(Notice::Relayed),
            Place::Delivered if has(SUCCESS_DUE) => Some(Notice::Delivered),
            Place::Waiting | Place::Ready | Place::Attempting if has(DELAY_DUE) => Some(Notice::Delayed),
            _ => None,
        }
    }

    /// Its notice is to be told. Mail with the null reverse-path has no sender: who is told of its failures is the driver's
    /// decision, whatever NOTIFY says.
    pub(crate) fn is_told(&self, has_sender: bool) -> bool {
        self.notice() != Some(Notice::Failed) || !has_sender || self.notify().wants(Notify::FAILURE)
    }
}

impl Queue {
    /// What `Work::Report` of this message has to be about: its failures first. `None` when there is nothing to say any more:
    /// call [`Queue::reported`] with no recipients.
    pub fn report(&self, key: MessageKey) -> Option<Report> {
        let index = self.find_open(key)?;
        let recipients = self.messages.recipients(index);
        let notices = || (0..).zip(recipients).filter_map(|(number, recipient)| Some((number, recipient.notice()?.about())));
        let about = [About::Failure, About::Delay, About::Success].into_iter().find(|about| notices().any(|(_, other)| other == *about))?;
        let is_kept = |number: u16| RecipientView { message: MessageView { queue: self, index }, number }.is_kept();
        let mut numbers = notices().filter(|(_, other)| *other == about).map(|(number, _)| number).peekable();
        // What is told of mail that is tried is not true of what an operator keeps: that has a report of its own.
        let first_is_kept = about == About::Delay && numbers.peek().is_some_and(|number| is_kept(*number));
        let numbers = numbers.filter(|number| about != About::Delay || is_kept(*number) == first_is_kept);
        Some(Report { about, recipients: numbers.take(REPORT_RECIPIENTS_MAX).collect() })
    }

    /// A report is durable, or none was due: its recipients are told. Those that failed are bounced; no command makes them open again while
    /// their report is made, or their sender would hear of two ends. The record is appended to `record`.
    pub fn reported(&mut self, key: MessageKey, about: About, recipients: &[u16], now: u64, record: &mut Vec<u8>) -> Settled {
        self.reports.open = self.reports.open.saturating_sub(1);
        let Some(index) = self.find_open(key) else { return Settled::Nothing };
        self.messages[index].flags.set(Flags::REPORT_SET | Flags::REPORT_OPEN, false);
        self.tell(index, about, recipients, now, record)
    }

    /// As [`Queue::reported`], for a report that was found in the spool when the process started: it need not be made again.
    pub fn was_reported(&mut self, key: MessageKey, about: About, recipients: &[u16], now: u64, record: &mut Vec<u8>) -> Settled {
        let Some(index) = self.find_open(key) else { return Settled::Nothing };
        let count = self.messages.recipients(index).len();
        let is_known = |number: &&u16| usize::from(**number) < count;
        let known: Vec<u16> = recipients.iter().filter(is_known).copied().collect();
        let is_about = |number: &u16| {
            let recipient = &self.messages.recipients(index)[usize::from(*number)];
            match about {
                // That it is due is known once its time is looked at, which the start does not wait for.
                About::Delay => recipient.place.is_open() && recipient.told & TOLD_DELAY == 0,
                About::Failure | About::Success => recipient.notice().is_some_and(|notice| notice.about() == about),
            }
        };
        if !known.iter().any(is_about) {
            return Settled::Nothing;
        }
        self.tell(index, about, &known, now, record)
    }

    /// A report cannot be made now: it is wanted again at `at`.
    pub fn postpone_report(&mut self, key: MessageKey, at: u64) {
        self.reports.open = self.reports.open.saturating_sub(1);
        if let Some(index) = self.find_open(key) {
            self.messages[index].flags.set(Flags::REPORT_OPEN, false);
            self.messages[index].flags.set(Flags::REPORT_DUE, true);
            self.reports.wait_until(index, at);
        }
    }

    fn tell(&mut self, index: u32, about: About, recipients: &[u16], now: u64, record: &mut Vec<u8>) -> Settled {
        for &number in recipients {
            let recipient = &mut self.messages.recipients_mut(index)[usize::from(number)];
            match about {
                About::Failure if recipient.place == Place::Failed => self.place(index, number, Place::Bounced),
                About::Failure => {}
                About::Delay => recipient.told = recipient.told & !DELAY_DUE | TOLD_DELAY,
                About::Success => recipient.told &= !(SUCCESS_DUE | SUCCESS_RELAYED),
            }
        }
        if self.is_settled(index) {
            self.begin_closing(index);
            return Settled::Done;
        }
        self.want_what_is_left(index, now);
        if recipients.is_empty() {
            return Settled::Nothing;
        }
        self.write_numbered(index, |number, _| recipients.contains(&number), record);
        self.messages[index].unrecorded += 1;
        Settled::Outcome
    }

    /// Wants a report of a message that was laid down with its records, or has more to tell than one report holds.
    pub(crate) fn want_what_is_left(&mut self, index: u32, now: u64) {
        if self.messages.recipients(index).iter().any(|recipient| recipient.notice().is_some()) {
            self.messages[index].flags.set(Flags::REPORT_DUE, true);
            self.want_report(index, now);
        }
    }

    /// Lets a message with [`Flags::REPORT_DUE`] have its report, unless one is under way already.
    pub(crate) fn want_report(&mut self, index: u32, now: u64) {
        let flags = &mut self.messages[index].flags;
        let is_wanted = flags.has(Flags::REPORT_DUE) && !flags.has(Flags::REPORT_SET) && !flags.has(Flags::CLOSING);
        if !is_wanted || self.settings.reports.is_none() {
            return;
        }
        flags.set(Flags::REPORT_SET, true);
        if !self.tells_anybody(index) {
            // Costs nobody anything, so it waits for nobody's turn.
            return self.reports.waiting.push_front(self.key(index));
        }
        let message = &self.messages[index];
        let reverse_path = &self.texts.get(message.addresses)[..usize::from(message.reverse_bytes)];
        let due = self.reports.turn_of(reverse_path, now);
        match due <= now {
            true => self.reports.waiting.push_back(self.key(index)),
            false => self.reports.wait_until(index, due),
        }
    }

    /// Takes the next message whose report may be made.
    pub(crate) fn poll_report(&mut self, now: u64) -> Option<MessageKey> {
        let mut moves = TIMERS_PER_LOOK;
        while let Popped::Due(index) = self.reports.timers.pop(now, &mut moves) {
            self.reports.timed -= 1;
            self.reports.waiting.push_back(self.key(index));
        }
        while self.reports.open < REPORTS_OPEN_MAX {
            let key = *self.reports.waiting.front()?;
            if let Some(index) = self.find_open(key) {
                if let Some(pace) = self.reports.all
                    && self.tells_anybody(index)
                {
                    if pace.due(self.reports.all_arrival, now) > now {
                        return None;
                    }
                    pace.take(&mut self.reports.all_arrival, now);
                }
                self.reports.waiting.pop_front();
                self.reports.open += 1;
                self.messages[index].flags.set(Flags::REPORT_DUE, false);
                self.messages[index].flags.set(Flags::REPORT_OPEN, true);
                return Some(key);
            }
            self.reports.waiting.pop_front();
        }
        None
    }

    /// When [`Queue::poll_report`] has something, by time alone.
    pub(crate) fn next_report(&self, now: u64) -> Option<u64> {
        let may_begin = self.reports.open < REPORTS_OPEN_MAX && !self.reports.waiting.is_empty();
        let next = may_begin.then(|| self.reports.all.map_or(now, |pace| pace.due(self.reports.all_arrival, now)));
        [self.reports.timers.next_due(), next].into_iter().flatten().min()
    }

    /// Messages whose report waits for the pace, or for its being made again.
    pub fn reports_waiting(&self) -> usize {
        self.reports.waiting.len() + self.reports.timed
    }

    fn tells_anybody(&self, index: u32) -> bool {
        let (message, recipients) = self.messages.with_recipients(index);
        recipients.iter().any(|recipient| recipient.notice().is_some() && recipient.is_told(message.reverse_bytes > 0))
    }

    /// A recipient was delivered, and its sender wants to know: true if it is to be told. `is_final` when no further hop will have it.
    pub(crate) fn note_success(&mut self, index: u32, recipient: u16, is_final: bool) -> bool {
        let (message, recipients) = self.messages.with_recipients_mut(index);
        if self.settings.reports.is_none() || message.reverse_bytes == 0 {
            return false;
        }
        recipients[usize::from(recipient)].told |= if is_final { SUCCESS_DUE } else { SUCCESS_DUE | SUCCESS_RELAYED };
        message.flags.set(Flags::REPORT_DUE, true);
        true
    }

    /// Wants a report for the recipients that are still tried after the time of the warning.
    pub(crate) fn warn(&mut self, index: u32, now: u64) {
        let mut group = self.messages[index].first_group;
        while group != NONE {
            let state = &self.groups[group];
            let warn_at = self.settings.warn_at(state, &self.messages[index], &self.destinations[state.destination as usize]);
            if warn_at.is_some_and(|at| at <= now) {
                self.groups[group].warned = true;
                let mut next = self.groups[group].first;
                while next != NO_RECIPIENT {
                    let is_leaving = self.leaving.has(index, next);
                    let recipient = &mut self.messages.recipients_mut(index)[usize::from(next)];
                    next = recipient.next_in_group;
                    if recipient.place.is_open()
                        && !is_leaving
                        && recipient.told & TOLD_DELAY == 0
                        && recipient.notify().wants(Notify::DELAY)
                    {
                        recipient.told |= DELAY_DUE;
                        self.messages[index].flags.set(Flags::REPORT_DUE, true);
                    }
                }
            }
            group = self.groups[group].next_in_message;
        }
    }
}

impl QueueSettings {
    /// When the sender is warned that the recipients of a group are delayed; `None` when nobody is to be, or was.
    #[inline]
    pub(crate) fn warn_at(&self, group: &Group, message: &Message, destination: &Destination) -> Option<u64> {
        if self.reports.is_none() || group.warned || message.reverse_bytes == 0 {
            return None;
        }
        match message.warn_after_s {
            // Whoever holds mail may not want its sender to know, and what is about to go another way goes by that one's time. Only a time
            // that the sender has named is kept all the same.
            0 if message.flags.has(Flags::WAY_OPEN) || destination.is_held() => None,
            0 => Some(message.released_at().saturating_add(destination.retry.warn_after_ms?)),
            seconds => Some(message.accepted_at + u64::from(seconds) * 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_lets_one_period_go_at_once_and_the_rest_evenly() {
        let pace = Pace::new(NonZeroU32::new(4), 1_000_000).unwrap();
        let (mut arrival, mut times) = (0, Vec::new());
        for _ in 0..8 {
            let due = pace.due(arrival, 10_000);
            pace.take(&mut arrival, 10_000);
            times.push(due - 10_000);
        }
        assert_eq!(times, [0, 0, 0, 0, 250, 500, 750, 1000]);
        assert_eq!(pace.due(arrival, 20_000), 20_000, "what was not used is not saved up beyond a period");
    }

    #[test]
    fn senders_are_paced_by_themselves_without_regard_to_case() {
        let limits = ReportLimits { per_minute_and_sender: NonZeroU32::new(1), ..ReportLimits::default() };
        let mut reports = Reports::new(Some(limits), 7, 0);
        assert_eq!(reports.turn_of(b"a@x.test", 1000), 1000);
        assert_eq!(reports.turn_of(b"A@x.Test", 1000), 61_000);
        assert_eq!(reports.turn_of(b"b@x.test", 1000), 1000);
    }
}
