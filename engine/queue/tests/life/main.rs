//! The life of a message: retries, expiry wherever it is, holds, commands, and what survives a restart.

mod restarts;

use ringpost_queue::{
    Cursor, DestinationLimits, Dispatch, Filter, HostsTried, MessageKey, NewMessage, NewRecipient, Notify, Outcome, Queue, QueueId,
    QueueSettings, Recovered, RetryPolicy, Route, Routes, Settled, State, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;
const LATER: Outcome<'_> = Outcome::Deferred { reply: b"450 4.2.0 later" };
const DELIVERED: Outcome<'_> = Outcome::Delivered { reply: b"250 ok" };

fn queue() -> Queue {
    let route = |pattern: &str, lifetime_ms| Route {
        pattern: pattern.into(),
        via: Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] },
        retry: RetryPolicy { lifetime_ms, ..RetryPolicy::default() },
        limits: DestinationLimits::default(),
    };
    Queue::new(QueueSettings::default(), Routes::new(vec![route("*", 5 * DAY), route("short.test", DAY)]).unwrap(), 1, START)
}

const ID: QueueId = QueueId { boot: 1, shard: 0, sequence: 1 };

fn message(id: QueueId) -> NewMessage<'static> {
    NewMessage {
        id,
        size: 10,
        accepted_at: START,
        expires_at: None,
        priority: 5,
        eight_bit: false,
        smtputf8: false,
        reverse_path: b"s@x.test",
        ..NewMessage::default()
    }
}

fn recipients<'a>(queue: &mut Queue, addresses: &[&'a str]) -> Vec<NewRecipient<'a>> {
    let mut route = |address: &'a str| NewRecipient {
        address: address.as_bytes(),
        destination: queue.route(address.split_once('@').unwrap().1.as_bytes()),
        notify: Notify::UNSAID,
    };
    addresses.iter().map(|address| route(address)).collect()
}

fn enqueue(queue: &mut Queue, addresses: &[&str]) -> MessageKey {
    let recipients = recipients(queue, addresses);
    queue.enqueue(&message(ID), recipients.into_iter(), START)
}

fn attempt(queue: &mut Queue, now: u64) -> Option<Dispatch> {
    match queue.poll(now, &mut Vec::new())? {
        Work::Attempt(dispatch) => Some(dispatch),
        other => panic!("not yet: {other:?}"),
    }
}

fn expire(queue: &mut Queue, now: u64) -> Vec<u8> {
    let mut record = Vec::new();
    match queue.poll(now, &mut record) {
        Some(Work::Expired(..)) => record,
        other => panic!("{other:?} at {now}"),
    }
}

fn state(queue: &Queue, key: MessageKey) -> (State, String) {
    let recipient = queue.show(key).unwrap().recipients().next().unwrap();
    (recipient.state(), recipient.reply().into_owned())
}

/// Each is found, whatever came between.
#[test]
fn an_id_that_is_queued_is_refused_in_any_order() {
    for (order, again) in [([1, 2, 3], 3), ([3, 2, 1], 3), ([2, 3, 1], 1), ([1, 3, 2], 2)] {
        let refused = std::panic::catch_unwind(|| {
            let mut queue = queue();
            for sequence in order.into_iter().chain([again]) {
                let recipients = recipients(&mut queue, &["a@x.test"]);
                assert!(queue.len() < order.len() || sequence == again);
                queue.enqueue(&message(QueueId { sequence, ..ID }), recipients.into_iter(), START);
            }
        });
        let text = refused.expect_err("it is queued already").downcast::<&str>().expect("a plain text");
        assert_eq!(*text, "an id is given out once", "{order:?}");
    }
}

#[test]
fn mail_for_later_waits_for_its_release_and_its_lifetime_counts_from_then() {
    for recovered in [false, true] {
        let mut queue = queue();
        let recipients = recipients(&mut queue, &["b@y.test"]);
        let message = NewMessage { not_before: Some(START + DAY), extended: true, ..message(ID) };
        let key = if recovered {
            queue.recover(&message, recipients.into_iter(), std::iter::empty(), START + MINUTE).unwrap().key
        } else {
            queue.enqueue(&message, recipients.into_iter(), START)
        };
        assert!(queue.envelope(key).unwrap().extended);
        assert!(attempt(&mut queue, START + DAY - 1).is_none());
        while queue.next_due(START + DAY - 1).unwrap() < START + DAY {
            assert!(attempt(&mut queue, START + DAY - 1).is_none());
        }
        let dispatch = attempt(&mut queue, START + DAY).unwrap();
        assert_eq!(queue.abandon(dispatch, START + DAY), Settled::Nothing);
        let destination = queue.route(b"y.test");
        queue.pause(destination, true, START + DAY);
        assert!(attempt(&mut queue, START + 6 * DAY - 1).is_none());
        assert_eq!(state(&queue, key).0, State::Ready);
        expire(&mut queue, START + 6 * DAY);
        assert_eq!(state(&queue, key).0, State::Failed);
    }
}

#[test]
fn deferred_mail_waits_five_minutes_doubling_to_four_hours_and_fails_after_five_days() {
    let mut queue = queue();
    let key = enqueue(&mut queue, &["b@y.test", "c@y.test"]);
    let (mut now, mut waits) = (START, Vec::new());
    loop {
        let dispatch = attempt(&mut queue, now).unwrap();
        assert_eq!(dispatch.recipients(), 2, "what was deferred together comes back together");
        assert_eq!(dispatch.attempt() as usize, waits.len() + 1);
        assert_eq!(queue.settle(dispatch, &[(0, LATER), (1, LATER)], now, &mut Vec::new()), Settled::Outcome);
        let next = queue.show(key).unwrap().recipients().next().unwrap().next_attempt(now).unwrap();
        waits.push(next - now);
        while now < next.min(START + 5 * DAY) {
            now = queue.next_due(now).unwrap();
            if now < next.min(START + 5 * DAY) {
                assert!(attempt(&mut queue, now).is_none());
            }
        }
        if now >= START + 5 * DAY {
            break;
        }
    }
    for (wait, minutes) in waits.iter().zip([5, 10, 20, 40, 80, 160, 240, 240]) {
        assert!((minutes * 48_000..=minutes * 72_000).contains(wait), "{waits:?}");
    }
    assert_eq!(now, START + 5 * DAY, "expiry is an event of its own");
    expire(&mut queue, now);
    assert_eq!(state(&queue, key), (State::Failed, "5.4.7 expired; last: 450 4.2.0 later".into()));
    assert_eq!(queue.next_due(now), None);
}

#[test]
fn mail_expires_in_the_ready_queue_of_a_dead_destination() {
    let mut queue = queue();
    let key = enqueue(&mut queue, &["b@y.test"]);
    let mut now = START;
    loop {
        let mut record = Vec::new();
        match queue.poll(now, &mut record) {
            Some(Work::Attempt(dispatch)) => {
                let (destination, mut tried) = (dispatch.destination(), HostsTried::default());
                while let Some(host) = queue.next_host(destination, &mut tried, now) {
                    queue.host_failed(destination, host, "connect to h:25: refused", now);
                }
                let _ = queue.unreachable(dispatch, now, &mut record);
            }
            Some(Work::Expired(..)) => break,
            Some(Work::Report(_) | Work::Resolve(_) | Work::Reserve(_) | Work::Overdue(_)) => {
                unreachable!("reports are off, and no route needs DNS")
            }
            None => now = queue.next_due(now).unwrap(),
        }
    }
    assert_eq!(now, START + 5 * DAY);
    assert_eq!(state(&queue, key), (State::Failed, "5.4.7 expired; last: connect to h:25: refused".into()));
    assert!(attempt(&mut queue, now + DAY).is_none());
    assert_eq!(queue.destinations(now).nth(1).unwrap().ready, 0);
}

#[test]
fn mail_expires_in_the_ready_queue_of_a_paused_destination_and_behind_a_full_window() {
    let mut queue = queue();
    let destination = queue.route(b"y.test");
    queue.pause(destination, true, START);
    let key = enqueue(&mut queue, &["b@y.test"]);
    assert_eq!(queue.next_due(START).map(|at| at <= START + 5 * DAY), Some(true));
    assert!(attempt(&mut queue, START + 5 * DAY - 1).is_none());
    expire(&mut queue, START + 5 * DAY);
    let said = "5.4.7 expired; last: 451 4.3.2 delivery to this destination is suspended by the operator of this system";
    assert_eq!(state(&queue, key), (State::Failed, said.into()));
}

#[test]
fn an_attempt_open_at_the_end_of_life_is_heard_first() {
    for (outcome, expected) in
        [(DELIVERED, None), (LATER, Some("5.4.7 expired; last: 450 4.2.0 later")), (Outcome::Untried { reply: b"" }, Some("5.4.7 expired"))]
    {
        let mut queue = queue();
        let key = enqueue(&mut queue, &["b@y.test"]);
        let dispatch = attempt(&mut queue, START).unwrap();
        let now = START + 6 * DAY;
        assert!(attempt(&mut queue, now).is_none());
        let settled = queue.settle(dispatch, &[(0, outcome)], now, &mut Vec::new());
        match expected {
            None => assert_eq!(settled, Settled::Done),
            Some(reply) => {
                if settled == Settled::Nothing {
                    expire(&mut queue, now);
                }
                assert_eq!(state(&queue, key), (State::Failed, reply.into()));
            }
        }
    }
}

#[test]
fn each_route_has_its_own_lifetime_and_the_message_may_have_a_shorter_one() {
    let mut queue = queue();
    let recipients = recipients(&mut queue, &["b@y.test", "c@short.test"]);
    let first = queue.enqueue(&message(ID), recipients.clone().into_iter(), START);
    let urgent = NewMessage { expires_at: Some(START + MINUTE), ..message(QueueId { sequence: 2, ..ID }) };
    let second = queue.enqueue(&urgent, recipients.into_iter(), START);
    for id in [1, 2] {
        let destination = queue.route(if id == 1 { b"y.test" } else { b"short.test" });
        queue.pause(destination, true, START);
    }
    let states = |queue: &Queue, key| queue.show(key).unwrap().recipients().map(|recipient| recipient.state()).collect::<Vec<_>>();
    expire(&mut queue, START + MINUTE);
    assert_eq!(states(&queue, second), [State::Failed; 2]);
    expire(&mut queue, START + DAY);
    assert_eq!(states(&queue, first), [State::Ready, State::Failed]);
    expire(&mut queue, START + 5 * DAY);
    assert_eq!(states(&queue, first), [State::Failed; 2]);
}

#[test]
fn held_mail_neither_goes_nor_expires_and_gets_one_attempt_after_its_release() {
    let mut queue = queue();
    let key = enqueue(&mut queue, &["b@y.test"]);
    let mut record = Vec::new();
    assert_eq!(queue.hold(key, START, &mut record), Some(Settled::Outcome));
    assert_eq!(queue.hold(key, START, &mut Vec::new()), Some(Settled::Nothing));
    queue.recorded(key);
    assert!(attempt(&mut queue, START).is_none());
    assert_eq!(queue.next_due(START), None);
    let now = START + 9 * DAY;
    assert!(attempt(&mut queue, now).is_none());
    assert_eq!(state(&queue, key).0, State::Held);
    // The hold survives a restart.
    let mut again = self::queue();
    let (mut queue, recipients) = (self::queue(), recipients(&mut again, &["b@y.test"]));
    let Recovered { key, done, .. } = queue.recover(&message(ID), recipients.into_iter(), [&record[..]].into_iter(), now).unwrap();
    assert!(!done);
    assert!(attempt(&mut queue, now).is_none());
    assert_eq!(queue.release(key, now, &mut Vec::new()), Some(Settled::Outcome));
    let dispatch = attempt(&mut queue, now).unwrap();
    let _ = queue.settle(dispatch, &[(0, LATER)], now, &mut Vec::new());
    assert_eq!(state(&queue, key), (State::Failed, "5.4.7 expired; last: 450 4.2.0 later".into()));
}

#[test]
fn a_time_of_its_own_ends_held_mail_and_its_restart_keeps_it() {
    let (mut record, mut queue) = (Vec::new(), queue());
    let key = enqueue(&mut queue, &["b@y.test"]);
    let _ = queue.set_expiry(key, START + DAY, &mut Vec::new());
    let _ = queue.hold(key, START, &mut record);
    let view = |queue: &Queue, key| queue.show(key).unwrap().recipients().next().unwrap().fails_at();
    assert!(attempt(&mut queue, START).is_none());
    assert_eq!(view(&queue, key), Some(START + DAY));
    // The wheel may want to be looked at before, never after.
    assert!(queue.next_due(START).is_some_and(|at| at <= START + DAY));
    let mut again = self::queue();
    let recipients = recipients(&mut again, &["b@y.test"]);
    let Recovered { key: other, .. } = again.recover(&message(ID), recipients.into_iter(), [&record[..]].into_iter(), START).unwrap();
    for (mut queue, key) in [(queue, key), (again, other)] {
        assert!(attempt(&mut queue, START + DAY - 1).is_none());
        assert_eq!(state(&queue, key).0, State::Held);
        expire(&mut queue, START + DAY);
        assert_eq!(state(&queue, key), (State::Failed, "5.4.7 expired; last: 451 4.3.2 held by the operator of this system".into()));
    }
    // Without one nothing ends it.
    let mut queue = self::queue();
    let key = enqueue(&mut queue, &["b@y.test"]);
    let _ = queue.hold(key, START, &mut Vec::new());
    assert!(attempt(&mut queue, START).is_none());
    assert_eq!((view(&queue, key), queue.next_due(START)), (None, None));
}

/// The mail log named recipients that had expired before once more, with each further one.
#[test]
fn an_expiry_names_the_recipients_that_it_is_about() {
    let mut queue = queue();
    for domain in [&b"short.test"[..], b"y.test"] {
        let destination = queue.route(domain);
        queue.pause(destination, true, START);
    }
    let key = enqueue(&mut queue, &["b@short.test", "c@y.test", "d@short.test"]);
    for (now, expected) in [(START + DAY, vec![0, 2]), (START + 5 * DAY, vec![1])] {
        match queue.poll(now, &mut Vec::new()) {
            Some(Work::Expired(own, mut recipients)) => {
                recipients.sort_unstable();
                assert_eq!((own, recipients), (key, expected));
            }
            other => panic!("{other:?} at {now}"),
        }
    }
}

#[test]
fn a_hold_during_an_attempt_lets_it_end_and_keeps_the_rest() {
    let mut queue = queue();
    let key = enqueue(&mut queue, &["b@y.test", "c@y.test"]);
    let dispatch = attempt(&mut queue, START).unwrap();
    queue.hold(key, START, &mut Vec::new());
    let _ = queue.settle(dispatch, &[(0, DELIVERED)], START, &mut Vec::new());
    let states: Vec<_> = queue.show(key).unwrap().recipients().map(|recipient| recipient.state()).collect();
    assert_eq!(states, [State::Delivered, State::Held]);
    assert!(attempt(&mut queue, START + DAY).is_none());
    queue.release(key, START, &mut Vec::new());
    assert_eq!(attempt(&mut queue, START).unwrap().recipients(), 1);
}

#[test]
fn a_refusal_stays_visible_until_it_is_retried_or_deleted() {
    let mut queue = queue();
    let key = enqueue(&mut queue, &["b@y.test", "c@y.test"]);
    let dispatch = attempt(&mut queue, START).unwrap();
    let outcomes = [(0, DELIVERED), (1, Outcome::Failed { reply: b"550 5.1.1 no\r\nsuch \x00user" })];
    let mut record = Vec::new();
    assert_eq!(queue.settle(dispatch, &outcomes, START, &mut record), Settled::Outcome);
    queue.recorded(key);
    assert_eq!(queue.next_due(START), None);
    let view = queue.show(key).unwrap();
    let failed = view.recipients().nth(1).unwrap();
    assert_eq!((failed.state(), failed.reply().as_ref(), failed.attempts()), (State::Failed, "550 5.1.1 no  such  user", 1));
    // Retried by the operator, it is attempted at once; the delivered one is not.
    assert_eq!(queue.retry(key, &Filter::default(), START + 1, &mut Vec::new()), Some(Settled::Outcome));
    queue.recorded(key);
    let dispatch = attempt(&mut queue, START + 1).unwrap();
    assert_eq!(queue.recipients(&dispatch).collect::<Vec<_>>(), [(1, &b"c@y.test"[..])]);
    assert_eq!(dispatch.attempt(), 2);
    // Deleted during the attempt: what comes of it is no longer kept, and the message leaves when both are over.
    assert_eq!(queue.delete(key, START), Some(Settled::Done));
    assert_eq!(queue.delete(key, START), None);
    queue.recorded(key);
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.settle(dispatch, &[(1, LATER)], START, &mut Vec::new()), Settled::Nothing);
    assert!(queue.is_empty());
    assert!(
        queue.show(key).is_none()
            && queue.envelope(key).is_none()
            && queue.retry(key, &Filter::default(), START, &mut Vec::new()).is_none()
    );
}

#[test]
fn listing_filters_and_pages() {
    let mut queue = queue();
    for sequence in 0..100 {
        let address = if sequence % 10 == 0 { "b@short.test" } else { "b@y.test" };
        let recipients = recipients(&mut queue, &["a@Third.test", address]);
        let new = NewMessage { reverse_path: if sequence == 5 { b"" } else { b"s@x.test" }, ..message(QueueId { sequence, ..ID }) };
        queue.enqueue(&new, recipients.into_iter(), START);
    }
    let mut count = |filter: &Filter, limit| {
        let (mut found, mut pages, mut cursor) = (Vec::new(), 0, Some(Cursor::default()));
        while let Some(at) = cursor {
            let before = found.len();
            cursor = queue.page(filter, at, limit, |message| found.push(message.envelope().id.sequence)).unwrap();
            assert!(found.len() - before <= limit);
            pages += 1;
        }
        (found, pages)
    };
    assert_eq!(count(&Filter::default(), 1000).0.len(), 100);
    let (found, pages) = count(&Filter::default(), 7);
    assert_eq!(found, (0..100).collect::<Vec<_>>());
    assert!(pages >= 15);
    assert_eq!(count(&Filter { sender: Some("".into()), ..Filter::default() }, 9).0, [5]);
    assert_eq!(count(&Filter { sender: Some("S@X.TEST".into()), ..Filter::default() }, 9).0.len(), 99);
    assert_eq!(count(&Filter { recipient_domain: Some("SHORT.test".into()), ..Filter::default() }, 9).0.len(), 10);
    assert_eq!(count(&Filter { recipient_domain: Some("third.test".into()), ..Filter::default() }, 9).0.len(), 100);
    assert_eq!(count(&Filter { id: Some(QueueId { sequence: 42, ..ID }), ..Filter::default() }, 9).0, [42]);
    assert_eq!(count(&Filter { state: Some(State::Failed), ..Filter::default() }, 9).0, []);
    assert_eq!(count(&Filter { state: Some(State::Ready), ..Filter::default() }, 9).0.len(), 100);
}

#[test]
fn recipients_of_one_transaction_are_bounded_and_destinations_kept_apart() {
    let mut queue = queue();
    let addresses: Vec<String> = (0..1000).map(|n| format!("r{n}@{}", if n % 4 == 0 { "short.test" } else { "y.test" })).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let key = enqueue(&mut queue, &addresses);
    let (mut sizes, mut seen) = (Vec::new(), Vec::new());
    while let Some(dispatch) = attempt(&mut queue, START) {
        sizes.push(dispatch.recipients());
        let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, DELIVERED)).collect();
        seen.extend(outcomes.iter().map(|outcome| outcome.0));
        if queue.settle(dispatch, &outcomes, START, &mut Vec::new()) == Settled::Done {
            assert_eq!(seen.len(), 1000);
        }
        queue.recorded(key);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 50, 100, 100, 100, 100, 100, 100, 100, 100, 100]);
    assert!(queue.is_empty());
}
