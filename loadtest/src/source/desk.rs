//! The part of a core that its sessions' machines talk to: what is to be sent, and the accounts of what became of it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    addresses::Recipients,
    content::Composer,
    error_kind::ErrorKind,
    ledger::LedgerWriter,
    measurement::Recorder,
    phase::Phase,
    random::Random,
    source::{
        CoreReport, Reached, SourceOptions,
        clock::Clock,
        control::Progress,
        host::{Ended, Host, Job, Manner, Outcome, Stage},
        reply::{queue_id, shown},
    },
};

/// Messages that may be due and wait for a session. Further ones are counted as never begun.
const BACKLOG_MAX: usize = 1_000_000;

/// Connections that fail, for each session, before a load without an acknowledged message among them is one that comes to nothing.
const FRUITLESS_TRIES: u64 = 3;

/// Which of several equal parts of a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) share: usize,
    pub(super) shares: usize,
}

impl Part {
    /// What falls to it of a whole.
    pub(super) fn of(self, whole: u64) -> u64 {
        whole / self.shares as u64 + u64::from((self.share as u64) < whole % self.shares as u64)
    }
}

/// Connections that failed one after the other, without an acknowledged message between them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fruitless {
    pub(super) since: Instant,
    pub(super) connections: u64,
}

/// See the module.
pub(super) struct Desk {
    composer: Composer,
    recipients: Recipients,
    pub(super) recorder: Recorder,
    ledger: LedgerWriter,
    random: Random,
    aborts: Vec<(Stage, f64)>,
    pub(super) report: CoreReport,
    pub(super) progress: Arc<Progress>,
    clock: Clock,
    /// Messages still to be begun, of an open loop those that are not due yet; none: no limit.
    pub(super) left: Option<u64>,
    backlog: Option<VecDeque<Instant>>,
    /// The schedule has nothing more to give: since when.
    pub(super) scheduled_until: Option<Instant>,
    next_sequence: u64,
    sequence_step: u64,
    pub(super) in_flight: u64,
    /// No message is begun any more.
    pub(super) closed: bool,
    /// None is begun for now.
    pub(super) paused: bool,
    /// A session that thinks begins its next message itself.
    pub(super) thinking: bool,
    open_loop: bool,
    lmtp: bool,
    began: Instant,
    sessions: u32,
    /// The first failure of a connection since the last word on one that was greeted.
    pub(super) failing_since: Option<Instant>,
    /// Connections that failed since the last message that was acknowledged, and when the first of them did.
    fruitless: Option<Fruitless>,
    /// When no message was begun any more.
    closed_at: Option<Instant>,
    /// The last connection that was tried was made.
    pub(super) is_reached: bool,
    /// When the load was over by time or by somebody's wish: what is answered from then on are stragglers.
    ended_at: Option<Instant>,
    /// Closed loop: what sessions waited from then on for messages that were answered, added up.
    overtime: Duration,
}

impl Host for Desk {
    fn take(&mut self, now: Instant) -> Option<Job> {
        self.second_of(now);
        if self.closed || self.paused || self.thinking {
            return None;
        }
        let due = match &mut self.backlog {
            Some(backlog) => backlog.pop_front()?,
            None => {
                if let Some(left) = &mut self.left {
                    *left = left.checked_sub(1)?;
                }
                now
            }
        };
        let sequence = self.next_sequence;
        self.next_sequence += self.sequence_step;
        Some(Job { sequence, due, due_us: self.clock.us(due) })
    }

    fn push_recipient(&mut self, out: &mut Vec<u8>) {
        self.recipients.push_next(out);
    }

    fn composer(&mut self) -> &mut Composer {
        &mut self.composer
    }

    fn began(&mut self, manner: Manner) {
        self.report.pipelined += u64::from(manner.pipelined);
        self.report.chunked += u64::from(manner.chunked);
        self.recorder.sent();
        self.in_flight += 1;
    }

    fn has_its_turn(&mut self, job: &mut Job, now: Instant) {
        if !self.open_loop {
            (job.due, job.due_us) = (now, self.clock.us(now));
        }
    }

    fn observe(&mut self, phase: Phase, since: Instant, now: Instant) {
        self.second_of(now);
        self.recorder.record(phase, now.saturating_duration_since(since));
    }

    fn recipient_refused(&mut self, code: u16, reply: &[u8]) {
        self.report.recipients_refused += 1;
        self.report.last_trouble = Some(format!("recipient refused: {}", shown(reply)));
        self.recorder.error(ErrorKind::Reply(code));
    }

    fn settle(&mut self, ended: Ended<'_>, outcome: Outcome, now: Instant) {
        self.second_of(now);
        self.in_flight -= 1;
        self.report.settled += 1;
        self.keep_time(outcome, ended.job.due, now);
        match (outcome, ended.content) {
            (Outcome::Accepted { .. }, Some(sent)) => {
                self.report.acknowledged += 1;
                self.fruitless = None;
                self.recorder.acknowledged(sent.content_bytes);
                self.observe(Phase::Transaction, ended.job.due, now);
                if self.open_loop {
                    self.observe(Phase::TransactionNaive, sent.began, now);
                }
                match self.ledger.accepted(&sent.mark, self.clock.us(now), ended.recipients, queue_id(ended.reply)) {
                    Ok(()) => self.progress.show_acknowledged(self.report.acknowledged),
                    Err(error) => self.ledger_broke(&error),
                }
            }
            (Outcome::Accepted { .. }, None) => unreachable!("what was accepted was composed"),
            (Outcome::Refused { stage, code }, content) => {
                self.report.refused += 1;
                // The server has it all, and may deliver it whatever it said.
                if let Some(Err(error)) = content.map(|sent| self.ledger.refused(sent.mark.id, code)) {
                    self.ledger_broke(&error);
                }
                self.report.last_trouble = Some(format!("refused: {}", shown(ended.reply)));
                // A message without a recipient left has its errors in them, and a 421 is that of the connection that ends with it.
                if !(stage == Stage::Rcpt || (self.lmtp && stage == Stage::Dot) || code == 421) {
                    self.recorder.error(ErrorKind::Reply(code));
                }
            }
            // The end of the connection is counted as the error; these tell what it did to messages.
            (Outcome::Unknown, _) => self.report.unknown += 1,
            (Outcome::Unsent, _) => self.report.unsent += 1,
            (Outcome::Aborted, _) => self.report.aborted += 1,
        }
    }

    fn gives_up(&mut self, stage: Stage) -> bool {
        let gives_up = self.aborts.iter().any(|&(at, probability)| at == stage && self.random.happens(probability));
        if gives_up && matches!(stage, Stage::Banner | Stage::Hello) {
            self.abort_unbegun();
        }
        gives_up
    }
}

impl Desk {
    pub(super) fn new(
        options: &SourceOptions,
        composer: Composer,
        ledger: LedgerWriter,
        progress: Arc<Progress>,
        part: Part,
        began: Instant,
    ) -> Desk {
        Desk {
            composer,
            recipients: Recipients::new(&options.recipients, options.seed, part.share as u64),
            recorder: Recorder::new(),
            ledger,
            random: Random::part(options.seed ^ 0xAB0, part.share as u64),
            aborts: options.aborts.clone(),
            report: CoreReport::default(),
            progress,
            clock: Clock::now(),
            left: options.messages.map(|messages| part.of(messages)),
            backlog: options.rate.is_some().then(VecDeque::new),
            scheduled_until: None,
            next_sequence: part.share as u64,
            sequence_step: part.shares as u64,
            in_flight: 0,
            closed: false,
            paused: false,
            thinking: !options.think.is_zero(),
            open_loop: options.rate.is_some(),
            lmtp: options.lmtp,
            began,
            sessions: part.of(options.sessions as u64).max(1) as u32,
            failing_since: None,
            fruitless: None,
            closed_at: None,
            is_reached: false,
            ended_at: None,
            overtime: Duration::ZERO,
        }
    }

    /// The next message is that of the session that is given up before it could begin one: or so many messages would never end.
    fn abort_unbegun(&mut self) {
        let took = !self.closed
            && match (&mut self.backlog, &mut self.left) {
                (Some(backlog), _) => backlog.pop_front().is_some(),
                (None, Some(left)) => left.checked_sub(1).map(|fewer| *left = fewer).is_some(),
                (None, None) => true,
            };
        if took {
            let now = Instant::now();
            self.second_of(now);
            self.report.settled += 1;
            self.report.aborted += 1;
            self.keep_time(Outcome::Aborted, now, now);
        }
    }

    /// How long the load lasted, as far as `outcome` tells of a message that was due then. What nobody answered after the end does not make it
    /// longer. Of two messages that a session has under way at the end, the second is due when the first is answered: each adds its own wait.
    fn keep_time(&mut self, outcome: Outcome, due: Instant, now: Instant) {
        let answered = matches!(outcome, Outcome::Accepted { .. } | Outcome::Refused { .. });
        match self.ended_at {
            Some(ended_at) if !self.open_loop => {
                if answered {
                    self.overtime += now.saturating_duration_since(due.max(ended_at));
                }
            }
            _ if self.open_loop && !answered => {}
            _ => self.report.lasted = self.report.lasted.max(now.saturating_duration_since(self.began)),
        }
    }

    /// A message is due by the schedule.
    pub(super) fn is_due(&mut self, due: Instant) {
        self.left = self.left.map(|left| left.saturating_sub(1));
        let backlog = self.backlog.as_mut().expect("a schedule fills a backlog");
        if backlog.len() < BACKLOG_MAX {
            backlog.push_back(due);
        } else {
            self.report.never_begun += 1;
        }
    }

    /// The schedule ends at `end`, and with it the least that an open loop lasts.
    pub(super) fn scheduled_all(&mut self, end: Instant) {
        self.scheduled_until = Some(end);
        self.left = Some(0);
        self.report.lasted = self.report.lasted.max(end.saturating_duration_since(self.began));
    }

    /// Begins nothing any more. `on_time`: by time or by somebody's wish, not because all was done.
    pub(super) fn close(&mut self, now: Instant, on_time: bool) {
        self.closed = true;
        self.closed_at = Some(now);
        if on_time {
            self.ended_at = Some(now);
            if self.scheduled_until.is_none() {
                self.report.lasted = now.saturating_duration_since(self.began);
            }
        }
    }

    /// A session waited from then to now to connect again after a failure. What follows the end of the load is nobody's loss: an open
    /// loop's is that of its schedule, as the time that it lasts is, and not that of the drain behind it.
    pub(super) fn slept(&mut self, since: Instant, now: Instant) {
        let until = [self.closed_at, self.scheduled_until].into_iter().flatten().fold(now, Instant::min);
        self.report.pauses += 1;
        self.report.paused += until.saturating_duration_since(since);
    }

    /// For how long connection after connection has failed without an acknowledged message between them. None: not so often that each
    /// session has tried [`FRUITLESS_TRIES`] times; a pause between messages, or a slow sender, may make one try as long as it likes.
    pub(super) fn fruitless_for(&self, now: Instant) -> Option<Duration> {
        let tries = u64::from(self.sessions) * FRUITLESS_TRIES;
        self.fruitless.filter(|fruitless| fruitless.connections >= tries).map(|fruitless| now.saturating_duration_since(fruitless.since))
    }

    /// The load came to nothing for so long that it ends: what had still to become due is never begun. It lasted for as long as it tried.
    pub(super) fn give_up(&mut self, now: Instant, (at, after): (Reached, Duration)) {
        self.report.gave_up_after = Some(after);
        self.report.gave_up_at = at;
        self.report.lasted = self.report.lasted.max(now.saturating_duration_since(self.began));
        // What was due and waits is counted at the end.
        self.report.never_begun += self.left.unwrap_or(0);
    }

    /// The accounts at the end. What was due and waits still is never begun, and what a session that did not end had begun may have been
    /// accepted. A closed loop's rate is that of sessions that were busy: each was so until the end and, where its last message was answered
    /// after it, until then; the mean of that is how long the load lasted.
    pub(super) fn finish(&mut self, cpu: Duration) -> CoreReport {
        let left_open = std::mem::take(&mut self.in_flight);
        self.report.settled += left_open;
        self.report.unknown += left_open;
        self.report.never_begun += self.backlog.as_ref().map_or(0, VecDeque::len) as u64;
        self.report.lasted += self.overtime / self.sessions;
        self.report.cpu = cpu;
        self.report.sizes_raised = self.composer.raised();
        self.report.clone()
    }

    /// Is something due that no session has taken?
    pub(super) fn has_backlog(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.is_empty())
    }

    /// What is recorded from now on happens now.
    pub(super) fn second_of(&mut self, now: Instant) {
        self.recorder.at(now.saturating_duration_since(self.began).as_secs());
    }

    /// Writes the ledger as far as it is, from the first message that ended on, so that a disk that takes none leaves figures, too.
    pub(super) fn flush_ledger(&mut self) {
        let begins = self.report.settled > 0 || self.closed;
        if let Some(Err(error)) = begins.then(|| self.ledger.flush()) {
            self.ledger_broke(&error);
        }
    }

    /// A ledger with holes proves nothing, so nothing more is sent; what was measured until then stays.
    fn ledger_broke(&mut self, error: &std::io::Error) {
        self.closed = true;
        if self.report.ledger_trouble.is_none() {
            let text = format!("the ledger: {error}");
            self.report.ledger_trouble = Some(text.clone());
            self.trouble(ErrorKind::Local, || text);
        }
    }

    /// No connection can carry this load: nothing more is begun. It lasted for as long as it tried.
    pub(super) fn cannot_be_sent(&mut self) {
        self.closed = true;
        self.report.lasted = self.report.lasted.max(self.began.elapsed());
    }

    /// Counts something that went wrong with a connection.
    pub(super) fn trouble(&mut self, kind: ErrorKind, text: impl FnOnce() -> String) {
        let now = Instant::now();
        self.second_of(now);
        self.failing_since.get_or_insert(now);
        self.fruitless.get_or_insert(Fruitless { since: now, connections: 0 }).connections += 1;
        self.recorder.error(kind);
        self.progress.count_broken();
        self.report.last_trouble = Some(text());
    }

    /// Messages that have still to be begun, and are nobody's yet. None: as many as the time allows.
    pub(super) fn wanted(&self) -> Option<u64> {
        Some(self.left? + self.backlog.as_ref().map_or(0, VecDeque::len) as u64)
    }

    /// Will there never be another message to begin?
    pub(super) fn is_exhausted(&self) -> bool {
        self.closed
            || match &self.backlog {
                Some(backlog) => self.scheduled_until.is_some() && backlog.is_empty(),
                None => self.left == Some(0),
            }
    }

    /// Is there a message to begin at once?
    pub(super) fn has_due(&self) -> bool {
        !self.closed
            && !self.paused
            && match &self.backlog {
                Some(backlog) => !backlog.is_empty(),
                None => self.left != Some(0),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        content::ContentKind,
        sizes::Sizes,
        source::{client::Client, host::Script, outbox::Outbox},
    };

    /// What happened: of two messages under way in one session both counted from the end of the load on, so that the wait for the second held
    /// that for the first once more, and the rate was too low.
    #[test]
    fn a_session_waits_behind_the_end_once_whatever_it_has_under_way() {
        let began = Instant::now();
        let at = |s: f64| began + Duration::from_secs_f64(s);
        let content = ContentKind::Text(Sizes::fixed(700));
        let options = SourceOptions::new(([127, 0, 0, 1], 25).into(), 0, content.clone());
        let (composer, _) = Composer::new(&content, 1, 1, 0);
        let ledger = LedgerWriter::open(None).unwrap();
        let mut desk = Desk::new(&options, composer, ledger, Arc::default(), Part { share: 0, shares: 1 }, began);
        let script: Script = options.script();
        let (mut client, mut out) = (Client::new(&script, began), Outbox::default());
        let mut say = |text: &str, s: f64, desk: &mut Desk| {
            client.receive(&script, text.as_bytes(), at(s), desk, &mut out).unwrap();
            drop(out.drain());
        };
        say("220 here\r\n", 0.1, &mut desk);
        say("250-here\r\n250 PIPELINING\r\n", 0.2, &mut desk);
        // The next envelope leaves with the content.
        say("250 ok\r\n250 ok\r\n354 go\r\n", 9.5, &mut desk);
        assert_eq!(desk.in_flight, 2);
        desk.close(at(10.0), true);
        say("250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", 11.0, &mut desk);
        say("250 ok\r\n", 12.0, &mut desk);
        let report = desk.finish(Duration::ZERO);
        assert_eq!((report.acknowledged, report.settled, report.lasted), (2, 2, Duration::from_secs(12)), "{report:?}");
    }
}
