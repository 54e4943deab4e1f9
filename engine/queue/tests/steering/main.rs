//! Bounce, purge, re-route and another end of life: what changes, what is recorded, and what a restart makes of the records.

mod leaving;
mod rerouting;

use ringpost_queue::{
    Dispatch, Filter, MessageKey, NewMessage, NewRecipient, Outcome, Queue, QueueId, QueueSettings, RetryPolicy, Route, RouteId, Routes,
    Settled, State, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const HOUR: u64 = 3_600_000;
const ID: QueueId = QueueId { boot: 1, shard: 0, sequence: 7 };
const ADDRESSES: [&str; 3] = ["b@y.test", "c@z.test", "d@y.test"];

fn queue(last_pattern: &str) -> Queue {
    let route = |pattern: &str| Route {
        pattern: pattern.into(),
        via: Via::Smarthost { hosts: vec![format!("192.0.2.1:{}", pattern.len()).parse().unwrap()] },
        retry: RetryPolicy::default(),
        limits: Default::default(),
    };
    let mut queue =
        Queue::new(QueueSettings::default(), Routes::new(vec![route("*"), route("z.test"), route(last_pattern)]).unwrap(), 1, START);
    queue.set_local_domain("mx1.example.test");
    queue
}

fn message() -> NewMessage<'static> {
    NewMessage { id: ID, accepted_at: START, reverse_path: b"s@x.test", ..NewMessage::default() }
}

fn recipients(queue: &mut Queue) -> Vec<NewRecipient<'static>> {
    let mut route = |address: &str| queue.route(address.rsplit_once('@').unwrap().1.as_bytes());
    ADDRESSES
        .iter()
        .map(|address| NewRecipient { address: address.as_bytes(), destination: route(address), notify: Default::default() })
        .collect()
}

fn enqueue(queue: &mut Queue) -> MessageKey {
    let recipients = recipients(queue);
    queue.enqueue(&message(), recipients.into_iter(), START)
}

fn recover(record: &[u8], last_pattern: &str) -> (Queue, MessageKey) {
    let mut queue = queue(last_pattern);
    let recipients = recipients(&mut queue);
    let recovered = queue.recover(&message(), recipients.into_iter(), [record].into_iter(), START + HOUR).unwrap();
    (queue, recovered.key)
}

fn attempt(queue: &mut Queue, now: u64) -> Option<Dispatch> {
    match queue.poll(now, &mut Vec::new())? {
        Work::Attempt(dispatch) => Some(dispatch),
        other => panic!("{other:?}"),
    }
}

fn states(queue: &Queue, key: MessageKey) -> Vec<State> {
    queue.show(key).unwrap().recipients().map(|recipient| recipient.state()).collect()
}

fn destinations(queue: &Queue, key: MessageKey) -> Vec<String> {
    let name = |index: usize| queue.destinations(START).nth(index).unwrap().name.to_owned();
    queue.show(key).unwrap().recipients().map(|recipient| name(recipient.destination().index())).collect()
}

fn by_domain(domain: &str) -> Filter {
    Filter { recipient_domain: Some(domain.into()), ..Filter::default() }
}

/// RFC 4865 5: nothing before the time of release. Both commands sent it at once, which no command can take back.
#[test]
fn a_message_with_a_time_of_release_waits_for_it_whatever_is_commanded() {
    for reroutes in [false, true] {
        let (mut queue, mut record) = (queue("backup.test"), Vec::new());
        let recipients = recipients(&mut queue);
        let key = queue.enqueue(&NewMessage { not_before: Some(START + HOUR), ..message() }, recipients.into_iter(), START);
        let changed = match reroutes {
            true => queue.reroute(key, &Filter::default(), RouteId(2), START, &mut record),
            false => queue.retry(key, &Filter::default(), START, &mut record),
        };
        assert_eq!(changed, Some(Settled::Outcome));
        queue.recorded(key);
        assert!(attempt(&mut queue, START + HOUR - 1).is_none(), "rerouted: {reroutes}");
        assert!(attempt(&mut queue, START + HOUR).is_some(), "rerouted: {reroutes}");
    }
}

#[test]
fn a_retry_with_a_filter_is_of_the_recipients_that_meet_it() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    while let Some(dispatch) = attempt(&mut queue, START) {
        let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Deferred { reply: b"450 later" })).collect();
        assert_eq!(queue.settle(dispatch, &outcomes, START, &mut record), Settled::Outcome);
        queue.recorded(key);
    }
    record.clear();
    assert_eq!(queue.retry(key, &by_domain("z.test"), START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    assert_eq!(states(&queue, key), [State::Deferred, State::Ready, State::Deferred]);
    assert_eq!(queue.retry(key, &by_domain("z.test"), START, &mut record), Some(Settled::Nothing), "it may go already");
    assert_eq!(queue.retry(key, &by_domain("x.test"), START, &mut record), None);
}

#[test]
fn a_held_message_keeps_its_hold_when_it_is_rerouted_or_bounced() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    for settled in [queue.hold(key, START, &mut record), queue.reroute(key, &Filter::default(), RouteId(2), START, &mut record)] {
        assert_eq!(settled, Some(Settled::Outcome));
        queue.recorded(key);
    }
    assert_eq!((states(&queue, key), attempt(&mut queue, START).is_none()), (vec![State::Held; 3], true));
    assert_eq!(queue.bounce(key, &by_domain("z.test"), b"554 5.0.0 no", START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    assert_eq!(states(&queue, key), [State::Held, State::Failed, State::Held]);
}

#[test]
fn an_end_of_life_set_by_command_counts_at_once_and_after_a_restart() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    for _ in 0..2 {
        let dispatch = attempt(&mut queue, START).unwrap();
        let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Deferred { reply: b"450 later" })).collect();
        assert_eq!(queue.settle(dispatch, &outcomes, START, &mut record), Settled::Outcome);
        queue.recorded(key);
    }
    record.clear();
    assert_eq!(queue.set_expiry(key, START + 60_000, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    assert!(attempt(&mut queue, START + 59_999).is_none());
    let mut expired = Vec::new();
    assert!(matches!(queue.poll(START + 60_000, &mut expired), Some(Work::Expired(own, _)) if own == key));
    assert_eq!(states(&queue, key), [State::Failed; 3]);
    assert_eq!(queue.set_expiry(key, START + 9 * HOUR, &mut record), Some(Settled::Outcome));
}
