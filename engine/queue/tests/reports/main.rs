//! Who is told what became of a message: failures, delays and successes as NOTIFY asks, at a bounded pace, over restarts.

mod pace;
mod words;

use ringpost_queue::{
    About, DestinationLimits, Dispatch, Filter, MessageKey, NewMessage, NewRecipient, Notice, Notify, Offered, Outcome, Queue, QueueId,
    QueueSettings, Recovered, ReportLimits, RetryPolicy, Route, RouteId, Routes, Settled, State, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const HOUR: u64 = 3_600_000;
const LATER: Outcome<'_> = Outcome::Deferred { reply: b"450 4.2.0 later" };
const DELIVERED: Outcome<'_> = Outcome::Delivered { reply: b"250 ok" };
const RELAYED: Outcome<'_> = Outcome::Relayed { reply: b"250 ok" };
const PASSED_ON: Outcome<'_> = Outcome::PassedOn { reply: b"250 ok" };
const REFUSED: Outcome<'_> = Outcome::Failed { reply: b"550 5.1.1 no" };
const ID: QueueId = QueueId { boot: 1, shard: 0, sequence: 1 };

fn queue_with(limits: ReportLimits) -> Queue {
    let route = |pattern: &str, via, warn_after_ms| Route {
        pattern: pattern.into(),
        via,
        retry: RetryPolicy { warn_after_ms, ..RetryPolicy::default() },
        limits: DestinationLimits::default(),
    };
    let smarthost = || Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] };
    let routes = Routes::new(vec![
        route("*", smarthost(), Some(4 * HOUR)),
        route("slow.test", smarthost(), Some(9 * HOUR)),
        route("silent.test", smarthost(), None),
        route("final.test", Via::Discard, Some(4 * HOUR)),
    ]);
    Queue::new(QueueSettings { reports: Some(limits), ..QueueSettings::default() }, routes.unwrap(), 1, START)
}

fn queue() -> Queue {
    queue_with(ReportLimits::default())
}

fn message(sequence: u64) -> NewMessage<'static> {
    NewMessage { id: QueueId { sequence, ..ID }, size: 10, accepted_at: START, reverse_path: b"s@x.test", ..NewMessage::default() }
}

fn recipients<'a>(queue: &mut Queue, addresses: &[(&'a str, Notify)]) -> Vec<NewRecipient<'a>> {
    let route = |&(address, notify): &(&'a str, Notify)| NewRecipient {
        address: address.as_bytes(),
        destination: queue.route(address.split_once('@').unwrap().1.as_bytes()),
        notify,
    };
    addresses.iter().map(route).collect()
}

fn enqueue(queue: &mut Queue, message: &NewMessage<'_>, addresses: &[(&str, Notify)]) -> MessageKey {
    let recipients = recipients(queue, addresses);
    queue.enqueue(message, recipients.into_iter(), START)
}

fn attempt(queue: &mut Queue, now: u64) -> Dispatch {
    match queue.poll(now, &mut Vec::new()) {
        Some(Work::Attempt(dispatch)) => dispatch,
        other => panic!("{other:?}"),
    }
}

/// Attempts whatever may be attempted now, each with its recipients' outcomes; a report that is wanted then is taken.
fn attempt_all(queue: &mut Queue, now: u64, outcome: impl Fn(u16) -> Outcome<'static>) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some(Work::Attempt(dispatch)) = queue.poll(now, &mut Vec::new()) {
        let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, outcome(number))).collect();
        let mut record = Vec::new();
        let _ = queue.settle(dispatch, &outcomes, now, &mut record);
        records.push(record);
    }
    records
}

fn report(queue: &mut Queue, now: u64) -> MessageKey {
    match queue.poll(now, &mut Vec::new()) {
        Some(Work::Report(key)) => key,
        other => panic!("{other:?} at {now}"),
    }
}

fn states(queue: &Queue, key: MessageKey) -> Vec<State> {
    queue.show(key).unwrap().recipients().map(|recipient| recipient.state()).collect()
}

fn told(queue: &Queue, key: MessageKey) -> Vec<(u16, Option<Notice>, bool)> {
    queue.show(key).unwrap().recipients().map(|recipient| (recipient.number(), recipient.notice(), recipient.is_told())).collect()
}

#[test]
fn what_failed_together_is_one_report_and_settled_when_that_is_durable() {
    let mut queue = queue();
    let key =
        enqueue(&mut queue, &message(1), &[("b@y.test", Notify::UNSAID), ("c@y.test", Notify::FAILURE), ("d@y.test", Notify::UNSAID)]);
    let dispatch = attempt(&mut queue, START);
    let mut record = Vec::new();
    assert_eq!(queue.settle(dispatch, &[(0, REFUSED), (1, REFUSED), (2, DELIVERED)], START, &mut record), Settled::Outcome);
    queue.recorded(key);
    assert_eq!(report(&mut queue, START), key);
    assert!(queue.poll(START, &mut Vec::new()).is_none(), "one report at a time for each message");
    let due = queue.report(key).unwrap();
    assert_eq!((due.about, &due.recipients[..]), (About::Failure, &[0, 1][..]));
    assert_eq!(states(&queue, key), [State::Failed, State::Failed, State::Delivered]);
    assert_eq!(queue.reported(key, due.about, &due.recipients, START, &mut Vec::new()), Settled::Done);
    queue.recorded(key);
    assert!(queue.is_empty());
    assert_eq!((queue.next_due(START), queue.reports_waiting()), (None, 0));
}

#[test]
fn a_failure_recorded_before_a_crash_is_reported_after_it_and_a_bounce_is_not() {
    let mut queue = queue();
    let addresses = [("b@y.test", Notify::UNSAID), ("c@slow.test", Notify::UNSAID)];
    enqueue(&mut queue, &message(1), &addresses);
    let records = attempt_all(&mut queue, START, |number| if number == 0 { REFUSED } else { LATER });
    let all: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    let again = recipients(&mut queue, &addresses);
    let mut recovered = self::queue();
    let Recovered { key: after, done, .. } = recovered.recover(&message(1), again.clone().into_iter(), all.into_iter(), START).unwrap();
    assert!(!done);
    assert_eq!(report(&mut recovered, START), after);
    assert_eq!(recovered.report(after).unwrap().recipients, [0]);
    // The report became durable before the crash: it is found, and no other is made.
    let mut record = Vec::new();
    assert_eq!(recovered.was_reported(after, About::Failure, &[0, 9], START, &mut record), Settled::Outcome);
    assert_eq!(states(&recovered, after), [State::Bounced, State::Deferred]);
    assert_eq!(recovered.report(after), None);
    assert_eq!(recovered.was_reported(after, About::Failure, &[0], START, &mut Vec::new()), Settled::Nothing);
    // The driver that was already at it says that there was nothing to say.
    assert_eq!(recovered.reported(after, About::Failure, &[], START, &mut Vec::new()), Settled::Nothing);
    let mut whole = Vec::new();
    assert!(recovered.state(after, &mut whole));
    let mut third = self::queue();
    let Recovered { key, .. } = third.recover(&message(1), again.into_iter(), [&whole[..]].into_iter(), START).unwrap();
    assert_eq!(states(&third, key), [State::Bounced, State::Deferred]);
    assert!(third.poll(START, &mut Vec::new()).is_none());
    assert!(!record.is_empty());
}

/// That a delay was due stood in memory alone, so at the start nobody wanted the report that was found, and each kill between the report and its
/// record made another one.
#[test]
fn a_delay_whose_report_was_durable_before_a_crash_is_not_told_again() {
    let addresses = [("b@y.test", Notify::UNSAID), ("c@slow.test", Notify::UNSAID)];
    let now = START + 5 * HOUR;
    let mut queue = queue();
    let again = recipients(&mut queue, &addresses);
    let Recovered { key, .. } = queue.recover(&message(1), again.clone().into_iter(), std::iter::empty(), now).unwrap();
    let mut record = Vec::new();
    assert_eq!(queue.was_reported(key, About::Delay, &[0], now, &mut record), Settled::Outcome);
    queue.recorded(key);
    assert_eq!(queue.was_reported(key, About::Delay, &[0], now, &mut Vec::new()), Settled::Nothing, "it is known by now");
    let until_told = |queue: &mut Queue, from: u64, to: u64| {
        let mut now = from;
        while now < to {
            match queue.poll(now, &mut Vec::new()) {
                Some(Work::Attempt(dispatch)) => {
                    let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, LATER)).collect();
                    let _ = queue.settle(dispatch, &outcomes, now, &mut Vec::new());
                }
                Some(Work::Report(key)) => return queue.report(key).map(|report| (now, report.about, report.recipients)),
                Some(other) => panic!("{other:?}"),
                None => now = queue.next_due(now).unwrap(),
            }
        }
        None
    };
    let expected = Some((START + 9 * HOUR, About::Delay, vec![1]));
    assert_eq!(until_told(&mut queue, now, START + 20 * HOUR), expected, "the other one at its own time");
    // And after the next start.
    let mut queue = self::queue();
    let again = recipients(&mut queue, &addresses);
    let _ = queue.recover(&message(1), again.into_iter(), [&record[..]].into_iter(), now).unwrap();
    assert_eq!(until_told(&mut queue, now, START + 20 * HOUR), expected);
}

#[test]
fn a_report_that_cannot_be_made_now_is_made_later() {
    let mut queue = queue();
    let key = enqueue(&mut queue, &message(1), &[("b@y.test", Notify::UNSAID)]);
    attempt_all(&mut queue, START, |_| REFUSED);
    assert_eq!(queue.report(key).unwrap().recipients, [0]);
    queue.postpone_report(key, START + 60_000);
    assert_eq!(queue.next_due(START).map(|at| at <= START + 60_000), Some(true));
    assert!(queue.poll(START + 59_999, &mut Vec::new()).is_none());
    assert_eq!(states(&queue, key), [State::Failed]);
    assert_eq!(report(&mut queue, START + 60_000), key);
    assert_eq!(queue.reported(key, About::Failure, &[0], START, &mut Vec::new()), Settled::Done);
}

/// A retry between the report's becoming durable and the bounce made the recipient open again: its sender got a second report, or was told
/// of a failure and then of a delivery. From the first reports on; now what is being told is settled.
#[test]
fn a_failure_that_is_being_told_is_not_retried() {
    let mut queue = queue();
    let (asked, done) = ("b@y.test", "c@slow.test");
    let key = enqueue(&mut queue, &message(1), &[(asked, Notify::UNSAID), (done, Notify::UNSAID)]);
    attempt_all(&mut queue, START, |number| if number == 0 { REFUSED } else { LATER });
    // The other recipient is tried, this one is not.
    assert_eq!(queue.retry(key, &Filter::default(), START, &mut Vec::new()), Some(Settled::Outcome));
    assert_eq!(states(&queue, key), [State::Failed, State::Ready]);
    let failed = Filter { state: Some(State::Failed), ..Filter::default() };
    assert_eq!(queue.retry(key, &failed, START, &mut Vec::new()), None, "nothing else is meant");
    assert_eq!(queue.reroute(key, &failed, RouteId(0), START, &mut Vec::new()), Some(Settled::Nothing), "it is sent nowhere");
    assert_eq!(queue.reported(key, About::Failure, &[0], START, &mut Vec::new()), Settled::Outcome);
    assert_eq!(states(&queue, key), [State::Bounced, State::Ready]);
}

#[test]
fn a_failure_whose_report_waits_is_retried_and_a_deleted_message_asks_for_none() {
    let mut queue = queue();
    let key = enqueue(&mut queue, &message(1), &[("b@y.test", Notify::UNSAID)]);
    attempt_all(&mut queue, START, |_| REFUSED);
    queue.postpone_report(key, START + 60_000);
    assert_eq!(queue.retry(key, &Filter::default(), START, &mut Vec::new()), Some(Settled::Outcome));
    assert_eq!(queue.report(key), None, "nobody is told until it fails again");
    let dispatch = attempt(&mut queue, START);
    let _ = queue.settle(dispatch, &[(0, REFUSED)], START, &mut Vec::new());
    assert_eq!(queue.delete(key, START), Some(Settled::Done));
    assert!(queue.poll(START + 60_000, &mut Vec::new()).is_none());
}

/// It was told in one report with what is still tried, and as if it were, too.
#[test]
fn a_delay_of_what_is_held_is_told_by_itself() {
    let routes = [("*", Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] }), ("hold.test", Via::Hold)];
    let route = |(pattern, via): (&str, Via)| Route {
        pattern: pattern.into(),
        via,
        retry: RetryPolicy { warn_after_ms: Some(4 * HOUR), ..RetryPolicy::default() },
        limits: DestinationLimits::default(),
    };
    let settings = QueueSettings { reports: Some(ReportLimits::default()), ..QueueSettings::default() };
    let mut queue = Queue::new(settings, Routes::new(routes.map(route).into()).unwrap(), 1, START);
    let watched = NewMessage { warn_at: Some(START + HOUR), ..message(1) };
    let key = enqueue(&mut queue, &watched, &[("b@y.test", Notify::UNSAID), ("c@hold.test", Notify::UNSAID), ("d@y.test", Notify::UNSAID)]);
    let relay = "192.0.2.1:25";
    let dispatch = attempt(&mut queue, START);
    let _ = queue.settle_by(dispatch, &[(0, LATER), (2, LATER)], relay, START, &mut Vec::new());
    let now = START + HOUR;
    while let Some(work) = queue.poll(now, &mut Vec::new()) {
        match work {
            Work::Attempt(dispatch) => {
                let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, LATER)).collect();
                let _ = queue.settle_by(dispatch, &outcomes, relay, now, &mut Vec::new());
            }
            Work::Report(reported) => {
                assert_eq!(reported, key);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let first = queue.report(key).unwrap();
    assert_eq!((first.about, &first.recipients[..]), (About::Delay, &[0, 2][..]));
    let _ = queue.reported(key, first.about, &first.recipients, now, &mut Vec::new());
    assert_eq!(report(&mut queue, now), key);
    let second = queue.report(key).unwrap();
    assert_eq!((second.about, &second.recipients[..]), (About::Delay, &[1][..]));
    let _ = queue.reported(key, second.about, &second.recipients, now, &mut Vec::new());
    assert_eq!(queue.report(key), None);
    // What was said before the hold is not why it waits.
    let word = |queue: &Queue| queue.show(key).unwrap().recipients().next().unwrap().word(now).0.into_owned();
    assert_eq!(word(&queue), "450 4.2.0 later");
    let _ = queue.hold(key, now, &mut Vec::new());
    assert_eq!(word(&queue), "451 4.3.2 held by the operator of this system");
    assert!(queue.show(key).unwrap().recipients().all(|recipient| recipient.is_kept()));
}

/// NOTIFY against what happens: what is told to whom.
#[test]
fn notify_decides_who_is_told_what() {
    let all = Notify::SUCCESS.with(Notify::FAILURE).with(Notify::DELAY);
    for (notify, failed, delayed, succeeded) in [
        (Notify::UNSAID, true, true, false),
        (Notify::NEVER, false, false, false),
        (Notify::SUCCESS, false, false, true),
        (Notify::FAILURE, true, false, false),
        (Notify::DELAY, false, true, false),
        (all, true, true, true),
    ] {
        let case = |address: &'static str, outcome: Outcome<'static>, now: u64| {
            let mut queue = queue();
            let key = enqueue(&mut queue, &message(1), &[(address, notify)]);
            attempt_all(&mut queue, START, |_| outcome);
            while now > START && matches!(queue.poll(now, &mut Vec::new()), Some(Work::Attempt(_))) {}
            (told(&queue, key)[0].1, told(&queue, key)[0].2, states(&queue, key)[0])
        };
        assert_eq!(case("b@y.test", REFUSED, START), (Some(Notice::Failed), failed, State::Failed), "{notify:?}");
        let expected = delayed.then_some(Notice::Delayed);
        assert_eq!(case("b@y.test", LATER, START + 4 * HOUR).0, expected, "{notify:?}");
        assert_eq!(case("b@silent.test", LATER, START + 40 * HOUR).0, None, "no warning on this route");
        let expected = |notice| succeeded.then_some(notice);
        assert_eq!(case("b@y.test", RELAYED, START).0, expected(Notice::Relayed), "{notify:?}");
        assert_eq!(case("b@final.test", DELIVERED, START).0, expected(Notice::Delivered), "{notify:?}");
        assert_eq!(case("b@y.test", PASSED_ON, START).0, None, "{notify:?}: the next hop reports");
    }
    // Nobody is told of what became of a report, but whether it failed is the driver's to judge.
    let null = NewMessage { reverse_path: b"", ..message(1) };
    for (outcome, notify, expected) in
        [(DELIVERED, all, None), (LATER, all, None), (REFUSED, all, Some(Notice::Failed)), (REFUSED, Notify::NEVER, Some(Notice::Failed))]
    {
        let mut queue = queue();
        let key = enqueue(&mut queue, &null, &[("b@y.test", notify)]);
        attempt_all(&mut queue, START, |_| outcome);
        while matches!(queue.poll(START + 5 * HOUR, &mut Vec::new()), Some(Work::Attempt(_))) {}
        assert_eq!(told(&queue, key)[0], (0, expected, true));
    }
}

#[test]
fn a_success_that_is_to_be_told_keeps_the_message_over_a_restart() {
    let addresses = [("b@y.test", Notify::SUCCESS), ("c@final.test", Notify::SUCCESS)];
    let mut queue = queue();
    let key = enqueue(&mut queue, &message(1), &addresses);
    attempt_all(&mut queue, START, |number| if number == 0 { RELAYED } else { DELIVERED });
    let mut whole = Vec::new();
    assert!(queue.state(key, &mut whole));
    let mut queue = self::queue();
    let again = recipients(&mut queue, &addresses);
    let Recovered { key, done, .. } = queue.recover(&message(1), again.clone().into_iter(), [&whole[..]].into_iter(), START).unwrap();
    assert!(!done);
    assert_eq!(report(&mut queue, START), key);
    let due = queue.report(key).unwrap();
    assert_eq!((due.about, &due.recipients[..]), (About::Success, &[0, 1][..]));
    assert_eq!(told(&queue, key), [(0, Some(Notice::Relayed), true), (1, Some(Notice::Delivered), true)]);
    assert_eq!(queue.reported(key, due.about, &due.recipients, START, &mut Vec::new()), Settled::Done);
    // With reports switched off nobody waits for one.
    let mut off = Queue::new(QueueSettings::default(), Routes::new(vec![]).unwrap(), 1, START);
    let again = recipients(&mut off, &addresses);
    assert!(off.recover(&message(1), again.into_iter(), [&whole[..]].into_iter(), START).unwrap().done);
}

#[test]
fn a_delay_is_told_once_at_its_time_and_not_again_after_a_restart() {
    let addresses = [("b@y.test", Notify::UNSAID), ("c@slow.test", Notify::UNSAID), ("d@y.test", Notify::NEVER)];
    let mut queue = queue();
    let key = enqueue(&mut queue, &message(1), &addresses);
    let mut now = START;
    let mut reports = Vec::new();
    while now < START + 20 * HOUR {
        match queue.poll(now, &mut Vec::new()) {
            Some(Work::Attempt(dispatch)) => {
                let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, LATER)).collect();
                let _ = queue.settle(dispatch, &outcomes, now, &mut Vec::new());
            }
            Some(Work::Report(key)) => {
                let due = queue.report(key).unwrap();
                assert_eq!(due.about, About::Delay);
                assert_eq!(queue.reported(key, due.about, &due.recipients, now, &mut Vec::new()), Settled::Outcome);
                reports.push(((now - START) / HOUR, due.recipients));
            }
            Some(Work::Expired(..) | Work::Resolve(_) | Work::Reserve(_) | Work::Overdue(_)) => unreachable!("five days"),
            None => now = queue.next_due(now).unwrap(),
        }
    }
    assert_eq!(reports, [(4, vec![0]), (9, vec![1])], "each by its route, NEVER never");
    let mut whole = Vec::new();
    assert!(queue.state(key, &mut whole));
    let mut queue = self::queue();
    let again = recipients(&mut queue, &addresses);
    let _ = queue.recover(&message(1), again.into_iter(), [&whole[..]].into_iter(), now).unwrap();
    while let Some(work) = queue.poll(now, &mut Vec::new()) {
        assert!(matches!(work, Work::Attempt(_)), "{work:?}");
    }
}

#[test]
fn a_delay_is_told_of_mail_in_the_ready_queue_and_at_the_time_the_message_says() {
    let mut queue = queue();
    let destination = queue.route(b"y.test");
    queue.pause(destination, true, START);
    let first = enqueue(&mut queue, &message(1), &[("b@y.test", Notify::UNSAID)]);
    let second = enqueue(&mut queue, &NewMessage { warn_at: Some(START + HOUR), ..message(2) }, &[("b@y.test", Notify::UNSAID)]);
    assert!(queue.poll(START + HOUR - 1, &mut Vec::new()).is_none());
    assert_eq!(report(&mut queue, START + HOUR), second);
    assert!(queue.poll(START + 4 * HOUR - 1, &mut Vec::new()).is_none());
    assert_eq!(report(&mut queue, START + 4 * HOUR), first);
    assert_eq!(told(&queue, first), [(0, Some(Notice::Delayed), true)]);
}

/// The sender was told at the time of the route that the mail was about to leave.
#[test]
fn a_delay_of_mail_that_is_about_to_go_another_way_is_told_at_the_time_of_that() {
    let mut queue = queue();
    let key = enqueue(&mut queue, &message(1), &[("b@y.test", Notify::UNSAID), ("c@y.test", Notify::UNSAID)]);
    let mut dispatch = attempt(&mut queue, START);
    assert_eq!(queue.settle_some(&mut dispatch, &[(0, LATER)], "", START, &mut Vec::new()), Settled::Outcome);
    let to = queue.route_named("slow.test").unwrap();
    assert_eq!(queue.reroute(key, &Filter::default(), to, START, &mut Vec::new()), Some(Settled::Outcome));
    // The other one is tried there meanwhile.
    assert_eq!(attempt_all(&mut queue, START + 5 * HOUR, |_| LATER).len(), 1);
    assert_eq!(told(&queue, key).iter().filter(|(_, notice, _)| notice.is_some()).count(), 0);
    let _ = queue.settle(dispatch, &[(1, LATER)], START + 5 * HOUR, &mut Vec::new());
    attempt_all(&mut queue, START + 9 * HOUR - 1, |_| LATER);
    assert_eq!(told(&queue, key).iter().filter(|(_, notice, _)| notice.is_some()).count(), 0);
    attempt_all(&mut queue, START + 9 * HOUR, |_| LATER);
    assert_eq!(told(&queue, key), [(0, Some(Notice::Delayed), true), (1, Some(Notice::Delayed), true)]);
}

/// A front end offered the rest of a message as soon as one recipient had failed. Another node had the rest before the sender was told of
/// that one, since reports are paced; the message was then deleted whole, and the report with it.
#[test]
fn mail_of_which_another_node_has_the_rest_stays_until_its_sender_is_told_of_what_failed_here() {
    let (mut queue, mut record) = (queue(), Vec::new());
    let offered = NewMessage { offered: Offered::Always, ..message(1) };
    let key = enqueue(&mut queue, &offered, &[("b@y.test", Notify::default()), ("c@z.test", Notify::default())]);
    let filter = Filter { recipient_domain: Some("y.test".to_owned()), ..Filter::default() };
    assert_eq!(queue.bounce(key, &filter, b"554 5.0.0 no", START, &mut record), Some(Settled::Outcome));
    assert_eq!(queue.handed_over(key, START, &mut record), Some(Settled::Outcome));
    let states: Vec<State> = queue.show(key).unwrap().recipients().map(|recipient| recipient.state()).collect();
    assert_eq!(states, [State::Failed, State::Delivered]);
    assert!(!queue.show(key).unwrap().is_open(), "nothing is left to offer");
    assert_eq!(queue.handed_over(key, START, &mut record), Some(Settled::Nothing), "said twice");
    let Some(Work::Report(reported)) = queue.poll(START, &mut record) else { panic!("its sender is told") };
    assert_eq!(reported, key);
    let report = queue.report(key).unwrap();
    assert_eq!(report.recipients, [0]);
    assert_eq!(queue.reported(key, report.about, &report.recipients, START, &mut record), Settled::Done);
}
