//! Mail offered to other nodes: not attempted here, no fault to the watchdog, until it is taken back or another has it.

use ringpost_queue::{
    MessageKey, NewMessage, NewRecipient, Outcome, Queue, QueueId, QueueSettings, RetryPolicy, Route, Routes, Settled, State, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const DAY: u64 = 24 * 3_600_000;
const ID: QueueId = QueueId { boot: 1, shard: 0, sequence: 7 };

fn queue() -> Queue {
    let via = Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] };
    let route = Route { pattern: "*".into(), via, retry: RetryPolicy::default(), limits: Default::default() };
    Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START)
}

fn message(offered: bool) -> NewMessage<'static> {
    NewMessage { id: ID, accepted_at: START, offered, reverse_path: b"s@x.test", ..NewMessage::default() }
}

fn recipient(queue: &mut Queue) -> std::iter::Once<NewRecipient<'static>> {
    std::iter::once(NewRecipient { address: b"b@y.test", destination: queue.route(b"y.test"), notify: Default::default() })
}

fn enqueue(queue: &mut Queue, offered: bool) -> MessageKey {
    let recipients = recipient(queue);
    queue.enqueue(&message(offered), recipients, START)
}

fn state(queue: &Queue, key: MessageKey) -> State {
    queue.show(key).unwrap().recipients().next().unwrap().state()
}

#[test]
fn offered_mail_waits_and_neither_expires_nor_counts_as_stuck() {
    let mut queue = queue();
    let key = enqueue(&mut queue, true);
    assert_eq!(state(&queue, key), State::Offered);
    for now in [START, START + DAY, START + 30 * DAY] {
        assert!(queue.poll(now, &mut Vec::new()).is_none());
        assert!(queue.look_for_stuck(&mut 0, 100, now).is_empty());
    }
    assert_eq!(queue.counts().messages, 1, "it is pending");
}

#[test]
fn mail_that_is_taken_back_is_attempted_and_mail_that_another_has_leaves() {
    let mut queue = queue();
    let key = enqueue(&mut queue, true);
    assert!(queue.take_back(key, START + 5));
    assert!(!queue.take_back(key, START + 5));
    let Some(Work::Attempt(dispatch)) = queue.poll(START + 5, &mut Vec::new()) else { panic!("it may go") };
    assert!(!queue.offer(key, START + 5), "what is being attempted is not offered");
    queue.abandon(dispatch, START + 5);
    assert!(queue.offer(key, START + 6));
    assert!(queue.poll(START + 6, &mut Vec::new()).is_none());
    assert_eq!(queue.delete(key, START + 7), Some(Settled::Done));
    queue.recorded(key);
    assert!(queue.is_empty());
}

#[test]
fn what_was_begun_here_is_not_offered_after_a_restart() {
    let mut before = queue();
    let key = enqueue(&mut before, false);
    let Some(Work::Attempt(dispatch)) = before.poll(START, &mut Vec::new()) else { panic!("it may go") };
    let mut record = Vec::new();
    let outcome = Outcome::Deferred { reply: b"450 4.2.1 later" };
    assert_eq!(before.settle(dispatch, &[(0, outcome)], START, &mut record), Settled::Outcome);
    for (records, expected) in [(vec![], State::Offered), (vec![&*record], State::Deferred)] {
        let mut after = queue();
        let recipients = recipient(&mut after);
        let recovered = after.recover(&message(true), recipients, records.into_iter(), START + 1).unwrap();
        assert_eq!(state(&after, recovered.key), expected);
    }
    // A claim that became this node's own is confirmed by a record that says nothing else.
    let (mut own, mut record) = (queue(), Vec::new());
    let key2 = enqueue(&mut own, false);
    assert_eq!(own.confirm(key2, &mut record), Some(Settled::Outcome));
    assert!(!record.is_empty());
    assert!(before.show(key).is_some());
}
