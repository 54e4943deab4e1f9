//! A queue with its driver, its disk and its clock, and the model of what was accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use ringpost_queue::{
    About, Cursor, DestinationLimits, Dispatch, Filter, HostsTried, Jitter, Lookup, MessageKey, Notice, Notify, Outcome, Queue, QueueId,
    QueueSettings, RecipientView, ReportLimits, Resolution, RetryPolicy, Route, Routes, Settled, State, Verdict, Via, Work,
};

use crate::accepted::{Accepted, Fate, HOUR, Seen, SeenRecipient, destinations, new_message, recipients_of};
use crate::disk::Unacknowledged;

/// What senders of bounced mail are told.
pub const GIVEN_UP: &str = "554 5.0.0 given up";
const START: u64 = 1_790_000_000_000;
pub const GRACE: u64 = 4 * HOUR;
const DOMAINS: [&str; 8] =
    ["a.test", "b.test", "discard.test", "hold.test", "nowhere.example", "one.mx.test", "two.mx.test", "three.mx.test"];

pub struct World {
    pub queue: Queue,
    pub random: Jitter,
    pub now: u64,
    pub accepted: BTreeMap<QueueId, Accepted>,
    pub keys: BTreeMap<QueueId, MessageKey>,
    pub in_flight: Vec<(Dispatch, QueueId, Vec<u16>)>,
    pub attempting: BTreeSet<(QueueId, u16)>,
    pub unacknowledged: Vec<Unacknowledged>,
    /// Messages with deferrals that are to be recorded together.
    pub gathered: BTreeSet<QueueId>,
    /// Reports that the driver is at.
    pub reporting: Vec<(MessageKey, QueueId)>,
    /// Reports that are durable: recipient and kind, with the restarts before it.
    pub told: BTreeMap<(QueueId, u16, bool), usize>,
    pub durable_told: BTreeSet<(QueueId, u16, bool)>,
    pub restarts: usize,
    pub with_reports: bool,
    pub lookups: Vec<Lookup>,
    pub dead: bool,
    pub attempts: usize,
    pub expired: usize,
    pub reports: usize,
    /// Deferrals, holds, times and routes set by command that a restart brought back.
    pub kept: [usize; 4],
    /// Deferrals that a restart took.
    pub taken: usize,
}

pub fn settings(with_reports: bool) -> QueueSettings {
    let limits = ReportLimits { per_second: NonZeroU32::new(2), per_minute_and_sender: NonZeroU32::new(30) };
    QueueSettings { reports: with_reports.then_some(limits), ..QueueSettings::default() }
}

pub fn routes(hold_is_open: bool) -> Routes {
    let route = |pattern: &str, via: Via| Route {
        pattern: pattern.into(),
        via,
        retry: RetryPolicy { lifetime_ms: 30 * HOUR, ..RetryPolicy::default() },
        limits: DestinationLimits { recipients_max: 3, ..DestinationLimits::default() },
    };
    let smarthost = |hosts: &[&str]| Via::Smarthost { hosts: hosts.iter().map(|host| host.parse().unwrap()).collect() };
    Routes::new(vec![
        route("a.test", smarthost(&["192.0.2.1:25"])),
        route("b.test", smarthost(&["192.0.2.2:25", "192.0.2.3:25"])),
        route("*.mx.test", Via::Mx { port: 25 }),
        route("discard.test", Via::Discard),
        route("hold.test", if hold_is_open { smarthost(&["192.0.2.4:25"]) } else { Via::Hold }),
    ])
    .unwrap()
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            queue: Queue::new(settings(seed.is_multiple_of(2)), routes(false), seed, START),
            random: Jitter::new(seed),
            now: START,
            accepted: BTreeMap::new(),
            keys: BTreeMap::new(),
            in_flight: Vec::new(),
            attempting: BTreeSet::new(),
            unacknowledged: Vec::new(),
            gathered: BTreeSet::new(),
            reporting: Vec::new(),
            told: BTreeMap::new(),
            durable_told: BTreeSet::new(),
            restarts: 0,
            with_reports: seed.is_multiple_of(2),
            lookups: Vec::new(),
            dead: false,
            attempts: 0,
            expired: 0,
            reports: 0,
            kept: [0; 4],
            taken: 0,
        }
    }

    pub fn enqueue(&mut self) {
        let id = QueueId { boot: 1, shard: 0, sequence: self.accepted.len() as u64 };
        let count = 1 + self.random.below(8);
        let recipients: Vec<String> =
            (0..count).map(|n| format!("r{n}@{}", DOMAINS[self.random.below(DOMAINS.len() as u64) as usize])).collect();
        let sets = [Notify::UNSAID, Notify::UNSAID, Notify::NEVER, Notify::SUCCESS, Notify::FAILURE.with(Notify::DELAY)];
        let notify = recipients.iter().map(|_| sets[self.random.below(5) as usize]).collect();
        let open = vec![Fate::Open; recipients.len()];
        let accepted = Accepted {
            accepted_at: self.now,
            recipients,
            notify,
            fate: open.clone(),
            durable_fate: open,
            held: false,
            durable_held: false,
            expires: None,
            routes: vec![None; count as usize],
            durable: Seen::default(),
            records: vec![],
            settled: false,
            deleted: false,
            left: BTreeSet::new(),
        };
        let (message, domains) = (new_message(id, self.now), destinations(&mut self.queue, &accepted));
        let key = self.queue.enqueue(&message, recipients_of(&accepted, &domains), self.now);
        self.accepted.insert(id, accepted);
        self.keys.insert(id, key);
        self.accepted.get_mut(&id).unwrap().durable = self.seen(id);
    }

    pub fn seen(&self, id: QueueId) -> Seen {
        let (accepted, view) = (&self.accepted[&id], self.queue.show(self.keys[&id]).expect("queued"));
        let seen = |recipient: RecipientView<'_>| SeenRecipient {
            attempts: recipient.attempts(),
            last_attempt: recipient.last_attempt(),
            next_attempt: recipient.due_at(),
            is_active: recipient.state() == State::Attempting,
            // The records say of what fails that it has failed.
            reply: if recipient.is_failing() { GIVEN_UP.to_owned() } else { recipient.reply().into_owned() },
        };
        let recipients = view.recipients().map(seen).collect();
        Seen { priority: view.priority(), expires: accepted.expires, routes: accepted.routes.clone(), recipients }
    }

    /// What an attempt came to for some recipients. A refusal is not the last word about those that go `elsewhere`.
    fn note(&mut self, id: QueueId, outcomes: &[(u16, Outcome<'_>)], elsewhere: &[u16]) {
        let accepted = self.accepted.get_mut(&id).unwrap();
        for (number, outcome) in outcomes {
            let wants_success = self.with_reports && accepted.notify[*number as usize].has(Notify::SUCCESS);
            let fate = &mut accepted.fate[*number as usize];
            let is_delivery = matches!(outcome, Outcome::Delivered { .. } | Outcome::Relayed { .. } | Outcome::PassedOn { .. });
            if *fate == Fate::Leaving && !is_delivery {
                *fate = Fate::Bounced;
                self.told.insert((id, *number, false), self.restarts);
                continue;
            }
            if *fate == Fate::Failing && !is_delivery {
                *fate = Fate::Failed;
                continue;
            }
            *fate = match outcome {
                Outcome::Delivered { .. } | Outcome::Relayed { .. } if wants_success => Fate::SuccessDue,
                Outcome::Delivered { .. } | Outcome::Relayed { .. } | Outcome::PassedOn { .. } => Fate::Delivered,
                Outcome::Failed { .. } if !elsewhere.contains(number) => Fate::Failed,
                _ => Fate::Open,
            };
        }
    }

    /// An attempt has ended that said nothing of these: those that leave have left.
    fn note_untried(&mut self, id: QueueId, recipients: &[u16]) {
        let accepted = self.accepted.get_mut(&id).unwrap();
        for &number in recipients {
            let fate = &mut accepted.fate[usize::from(number)];
            if *fate == Fate::Leaving {
                *fate = Fate::Bounced;
                self.told.insert((id, number, false), self.restarts);
            } else if *fate == Fate::Failing {
                *fate = Fate::Failed;
            }
        }
    }

    fn id_of(&self, key: MessageKey) -> QueueId {
        self.queue.envelope(key).expect("queued").id
    }

    pub fn take(&mut self, dispatch: Dispatch) {
        let id = self.id_of(dispatch.key());
        let recipients: Vec<u16> = self.queue.recipients(&dispatch).map(|(number, _)| number).collect();
        assert_eq!(recipients.len(), dispatch.recipients());
        assert!((1..=3).contains(&recipients.len()));
        let accepted = &self.accepted[&id];
        assert!(!accepted.held, "held mail is not attempted");
        for (number, address) in self.queue.recipients(&dispatch) {
            assert_eq!(address, accepted.recipients[number as usize].as_bytes());
            assert_eq!(accepted.fate[number as usize], Fate::Open, "settled recipients are not attempted");
            let view = self.queue.show(dispatch.key()).unwrap();
            let home = view.recipients().nth(number.into()).unwrap().destination();
            if self.queue.verdict(&dispatch).is_some() || !matches!(self.queue.via(home), Via::Mx { .. }) {
                assert_eq!(home, dispatch.destination());
            } else {
                assert!(self.queue.hosts(dispatch.destination()).next().is_some(), "it goes to a site");
            }
            assert!(self.attempting.insert((id, number)), "nobody is attempted twice at a time");
        }
        self.attempts += 1;
        self.in_flight.push((dispatch, id, recipients));
    }

    /// Polls once; false when there is nothing to do.
    pub fn poll(&mut self) -> bool {
        let mut record = Vec::new();
        match self.queue.poll(self.now, &mut record) {
            None => return self.queue.next_due(self.now) == Some(self.now),
            Some(Work::Attempt(dispatch)) => {
                assert!(record.is_empty());
                self.take(dispatch);
            }
            Some(Work::Report(key)) => {
                assert!(self.with_reports);
                let id = self.id_of(key);
                assert!(self.reporting.iter().all(|(_, other)| *other != id), "one report at a time for each message");
                self.reporting.push((key, id));
            }
            Some(Work::Expired(key, _)) => {
                let id = self.id_of(key);
                let accepted = self.accepted.get_mut(&id).unwrap();
                let is_over = accepted.is_over(self.now);
                let mut failed = 0;
                for recipient in self.queue.show(key).unwrap().recipients() {
                    let fate = &mut accepted.fate[recipient.number() as usize];
                    if recipient.state() == State::Failed && *fate == Fate::Open {
                        assert!(is_over);
                        *fate = Fate::Failed;
                        failed += 1;
                    }
                }
                assert!(failed > 0);
                self.expired += failed;
                self.persist(id, Settled::Outcome, record);
            }
            Some(Work::Resolve(lookup)) => self.lookups.push(lookup),
            Some(Work::Reserve(_)) => unreachable!("no limit is shared"),
            Some(Work::Overdue(_)) => unreachable!("nothing is offered"),
        }
        true
    }

    pub fn finish_report(&mut self) {
        if self.reporting.is_empty() {
            return;
        }
        let index = self.random.below(self.reporting.len() as u64) as usize;
        let (key, id) = self.reporting.swap_remove(index);
        if self.random.below(10) == 0 {
            return self.queue.postpone_report(key, self.now + 1000);
        }
        let (mut record, now) = (Vec::new(), self.now);
        let Some(report) = self.queue.report(key) else {
            assert_eq!(self.queue.reported(key, About::Failure, &[], now, &mut record), Settled::Nothing);
            return assert!(record.is_empty());
        };
        let accepted = self.accepted.get_mut(&id).unwrap();
        let view = self.queue.show(key).unwrap();
        let mut told = Vec::new();
        for recipient in report.recipients.iter().map(|number| view.recipients().nth(usize::from(*number)).unwrap()) {
            let number = recipient.number();
            let fate = &mut accepted.fate[usize::from(number)];
            let notify = accepted.notify[usize::from(number)];
            let wants = |condition| notify == Notify::UNSAID || notify.has(condition);
            match (report.about, recipient.notice().unwrap()) {
                (About::Failure, Notice::Failed) => {
                    assert_eq!((*fate, recipient.is_told()), (Fate::Failed, wants(Notify::FAILURE)));
                    *fate = Fate::Bounced;
                }
                (About::Success, Notice::Delivered | Notice::Relayed) => {
                    assert_eq!((*fate, notify), (Fate::SuccessDue, Notify::SUCCESS));
                    *fate = Fate::Delivered;
                }
                (About::Delay, Notice::Delayed) => {
                    assert!(*fate == Fate::Open && wants(Notify::DELAY) && now >= accepted.accepted_at + 4 * HOUR);
                }
                wrong => panic!("{wrong:?}"),
            }
            if recipient.is_told() {
                let what = (id, number, report.about == About::Delay);
                assert!(!self.durable_told.contains(&what), "told again, after that was recorded");
                told.push(what);
                let before = self.told.insert(what, self.restarts);
                assert!(before.is_none_or(|restarts| restarts < self.restarts), "told twice");
            }
        }
        self.reports += 1;
        let settled = self.queue.reported(key, report.about, &report.recipients, now, &mut record);
        self.persist(id, settled, record);
        self.unacknowledged.last_mut().expect("a report changes something").told = told;
    }

    pub fn answer_one(&mut self) {
        let Some(Lookup { asking, .. }) = self.lookups.pop() else { return };
        let until = self.now + self.random.below(2 * HOUR);
        let draw = self.random.below(8);
        let host = |number: u64| format!("192.0.2.{number}:25").parse().unwrap();
        let resolution = match draw {
            0 => return self.queue.not_asked(asking, self.now),
            1 => Resolution::Refused { reply: "550 5.1.2 no such domain".into(), until },
            2 => Resolution::Unanswered { reason: "MX of it: SERVFAIL".into(), turns: 0 },
            site => Resolution::Site {
                key: format!("site {}", site % 3),
                name: "mx".into(),
                hosts: (1..=1 + self.random.below(3)).map(|number| host(number + site % 3 * 10)).collect(),
                is_whole: true,
                until,
            },
        };
        self.queue.resolved(asking, &resolution, self.now);
    }

    fn ended(&mut self, id: QueueId, recipients: &[u16], settled: Settled, record: Vec<u8>) {
        if !self.accepted[&id].deleted {
            self.note_untried(id, recipients);
        }
        self.persist(id, settled, record);
    }

    pub fn finish_one(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let index = self.random.below(self.in_flight.len() as u64) as usize;
        let (mut dispatch, id, recipients) = self.in_flight.swap_remove(index);
        for &number in &recipients {
            self.attempting.remove(&(id, number));
        }
        let (destination, mut record) = (dispatch.destination(), Vec::new());
        let key = dispatch.key();
        let verdict = self.queue.verdict(&dispatch);
        if let Some(Verdict::Unanswered) = verdict {
            let settled = self.queue.unreachable(dispatch, self.now, &mut record);
            return self.ended(id, &recipients, settled, record);
        }
        if verdict.is_none() && !matches!(self.queue.via(destination), Via::Discard) {
            let mut tried = HostsTried::default();
            let mut reached = false;
            while let Some(host) = self.queue.next_host(destination, &mut tried, self.now) {
                if self.dead || self.random.below(10) == 0 {
                    self.queue.host_failed(destination, host, "connect: refused", self.now);
                } else {
                    self.queue.host_reached(destination, host, self.now);
                    reached = true;
                    break;
                }
            }
            if !reached {
                let settled = self.queue.unreachable(dispatch, self.now, &mut record);
                return self.ended(id, &recipients, settled, record);
            }
        }
        if self.random.below(20) == 0 {
            let settled = self.queue.abandon(dispatch, self.now);
            return self.ended(id, &recipients, settled, record);
        }
        let fates: Vec<(u16, u64)> = recipients.iter().map(|&number| (number, self.random.below(10))).collect();
        let outcomes: Vec<(u16, Outcome<'_>)> = fates
            .iter()
            .filter(|(_, fate)| *fate < 9)
            .map(|&(number, fate)| {
                let outcome = match fate {
                    0 => Outcome::Failed { reply: b"550 5.1.1 no" },
                    1..=3 => Outcome::Deferred { reply: b"450 4.2.0 later" },
                    4 => Outcome::Untried { reply: b"421 4.3.2 bye" },
                    5 => Outcome::PassedOn { reply: b"250 ok" },
                    6 => Outcome::Relayed { reply: b"250 ok" },
                    _ => Outcome::Delivered { reply: b"250 ok" },
                };
                (number, outcome)
            })
            .collect();
        let deleted = self.queue.show(key).is_some_and(|message| message.is_closing());
        let elsewhere: Vec<u16> = recipients.iter().copied().filter(|number| self.queue.goes_elsewhere(&dispatch, *number)).collect();
        // At times some are decided before the others.
        let is_decided = |(_, outcome): &&(u16, Outcome<'_>)| !matches!(outcome, Outcome::Untried { .. } | Outcome::Deferred { .. });
        let decided = outcomes.iter().take_while(is_decided).count().min(recipients.len() - 1);
        let (early, outcomes) = outcomes.split_at(self.random.below(decided as u64 + 1) as usize);
        if !early.is_empty() {
            let settled = self.queue.settle_some(&mut dispatch, early, "", self.now, &mut record);
            assert_eq!(settled, if deleted { Settled::Nothing } else { Settled::Outcome });
            if !deleted {
                self.note(id, early, &elsewhere);
                self.persist(id, settled, std::mem::take(&mut record));
            }
        }
        let settled = self.queue.settle(dispatch, outcomes, self.now, &mut record);
        if deleted {
            assert_eq!(settled, Settled::Nothing);
            return;
        }
        self.note(id, outcomes, &elsewhere);
        self.note_untried(id, &recipients);
        let accepted = self.accepted.get_mut(&id).unwrap();
        // A deferral beyond the lifetime is a failure.
        let is_over = accepted.is_over(self.now);
        let view = self.queue.show(key).expect("a message stays until its last record is acknowledged");
        for recipient in view.recipients().filter(|recipient| recipient.state() == State::Failed) {
            let fate = &mut accepted.fate[recipient.number() as usize];
            if *fate == Fate::Open {
                assert!(is_over);
                *fate = Fate::Failed;
            }
        }
        assert_eq!(settled == Settled::Done, accepted.fate.iter().all(|fate| fate.is_settled()));
        self.persist(id, settled, record);
    }

    pub fn check(&mut self) {
        let mut cursor = 0;
        assert_eq!(self.queue.look_for_stuck(&mut cursor, usize::MAX, self.now), [], "nothing is out of all timers and queues");
        assert_eq!(self.queue.look_for_forgotten(&mut 0, usize::MAX, self.now), [], "no mail is where nobody looks");
        let Self { queue, accepted, attempting, .. } = self;
        let mut listed = BTreeSet::new();
        let mut cursor = Some(Cursor::default());
        while let Some(at) = cursor {
            let page = queue.page(&Filter::default(), at, 7, |message| {
                let id = message.envelope().id;
                assert!(listed.insert(id));
                let accepted = &accepted[&id];
                assert_eq!(message.is_held(), accepted.held);
                for (recipient, fate) in message.recipients().zip(&accepted.fate) {
                    let attempting = attempting.contains(&(id, recipient.number()));
                    let expected = match (recipient.state(), attempting) {
                        (State::Attempting, true) if recipient.is_leaving() => Fate::Leaving,
                        (State::Attempting, true) if recipient.is_failing() => Fate::Failing,
                        (State::Attempting, true) => Fate::Open,
                        (State::Delivered, false) if recipient.notice().is_some() => Fate::SuccessDue,
                        (State::Delivered, false) => Fate::Delivered,
                        (State::Bounced | State::Purged, false) => Fate::Bounced,
                        (State::Failed, false) => Fate::Failed,
                        (State::Deferred | State::Ready, false) => {
                            assert!(!accepted.held);
                            Fate::Open
                        }
                        (State::Held, false) => Fate::Open,
                        wrong => panic!("{wrong:?}"),
                    };
                    assert_eq!(*fate, expected);
                }
            });
            cursor = page.expect("no other listing is under way");
        }
        let live = self.accepted.iter().filter(|(_, accepted)| accepted.fate.iter().any(|fate| !fate.is_settled())).map(|(id, _)| *id);
        assert_eq!(listed, live.collect::<BTreeSet<_>>(), "what is not delivered, bounced or deleted is in the queue");
        let counts = self.queue.counts();
        let places = counts.waiting + counts.ready + counts.attempting + counts.delivered + counts.failed + counts.bounced + counts.purged;
        let kept: usize =
            self.accepted.keys().filter(|id| self.queue.key_of(**id).is_some()).map(|id| self.accepted[id].recipients.len()).sum();
        assert_eq!(places, kept, "every recipient is in exactly one place");
        for destination in self.queue.destinations(self.now).filter(|destination| destination.messages > 0) {
            let mut count = 0;
            for key in self.queue.messages_of(destination.id) {
                let message = self.queue.show(key).expect("what is linked is queued");
                assert!(message.recipients().any(|recipient| recipient.destination() == destination.id));
                count += 1;
            }
            assert_eq!(count, destination.messages, "{}", destination.name);
        }
        // Deleted messages leave when their last attempt ended, so there may be more of these.
        assert!(counts.attempting >= self.attempting.len());
    }
}
