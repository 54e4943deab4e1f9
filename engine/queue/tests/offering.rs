//! Mail offered to other nodes: not attempted here, no fault to the watchdog, until it is taken back or another has it.

use ringpost_queue::{
    Filter, MessageKey, NewMessage, NewRecipient, Offered, Outcome, Queue, QueueId, QueueSettings, RetryPolicy, Route, Routes, Settled,
    State, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const DAY: u64 = 24 * 3_600_000;
const ID: QueueId = QueueId { boot: 1, shard: 0, sequence: 7 };

fn queue() -> Queue {
    let via = Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] };
    let route = Route { pattern: "*".into(), via, retry: RetryPolicy::default(), limits: Default::default() };
    Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START)
}

fn message(offered: Offered) -> NewMessage<'static> {
    NewMessage { id: ID, accepted_at: START, offered, reverse_path: b"s@x.test", ..NewMessage::default() }
}

fn recipient(queue: &mut Queue) -> std::iter::Once<NewRecipient<'static>> {
    std::iter::once(NewRecipient { address: b"b@y.test", destination: queue.route(b"y.test"), notify: Default::default() })
}

fn enqueue(queue: &mut Queue, offered: Offered) -> MessageKey {
    let recipients = recipient(queue);
    queue.enqueue(&message(offered), recipients, START)
}

fn state(queue: &Queue, key: MessageKey) -> State {
    queue.show(key).unwrap().recipients().next().unwrap().state()
}

/// The next message that is said to be overdue, and when.
fn overdue_at(queue: &mut Queue, mut now: u64) -> Option<(MessageKey, u64)> {
    loop {
        match queue.poll(now, &mut Vec::new()) {
            Some(Work::Overdue(key)) => return Some((key, now)),
            Some(other) => panic!("{other:?}"),
            None => now = queue.next_due(now)?,
        }
    }
}

#[test]
fn offered_mail_waits_and_is_no_fault_to_the_watchdog() {
    let mut queue = queue();
    let key = enqueue(&mut queue, Offered::Untouched);
    assert_eq!(state(&queue, key), State::Offered);
    for now in [START, START + DAY, START + 4 * DAY] {
        assert!(queue.poll(now, &mut Vec::new()).is_none());
        assert!(queue.look_for_stuck(&mut 0, 100, now).is_empty());
    }
    assert_eq!(queue.counts().messages, 1, "it is pending");
}

#[test]
fn offered_mail_fails_at_the_end_of_its_life_when_it_is_said_to_be_nobody_elses() {
    let (mut queue, mut record) = (queue(), Vec::new());
    let key = enqueue(&mut queue, Offered::Always);
    let end = START + 5 * DAY;
    assert_eq!(queue.expire_offered(key, end - 1, &mut record), Some(Vec::new()), "before its time nothing happens");
    assert_eq!(overdue_at(&mut queue, START), Some((key, end)));
    // Nobody could say whether another node has it: it is asked for again, and stays as it is until then.
    assert!(queue.poll(end, &mut record).is_none());
    assert_eq!(state(&queue, key), State::Offered);
    let (_, again) = overdue_at(&mut queue, end + 1).unwrap();
    assert!((end + 1..=end + 60_000).contains(&again));
    assert_eq!(queue.expire_offered(key, again, &mut record), Some(vec![0]));
    assert_eq!(state(&queue, key), State::Failed);
    let reply = queue.show(key).unwrap().recipients().next().unwrap().reply().into_owned();
    assert_eq!(reply, "5.4.7 expired; last: no node of the cluster has taken it over");
    assert!(!queue.show(key).unwrap().is_open());
    assert_eq!(overdue_at(&mut queue, again), None);
    let mut after = self::queue();
    let recipients = recipient(&mut after);
    let recovered = after.recover(&message(Offered::Always), recipients, [&*record].into_iter(), again).unwrap();
    assert_eq!(state(&after, recovered.key), State::Failed, "the record says so");
}

#[test]
fn held_mail_does_not_become_overdue() {
    let (mut queue, mut record) = (queue(), Vec::new());
    let key = enqueue(&mut queue, Offered::Always);
    assert_eq!(queue.hold(key, START, &mut record), Some(Settled::Outcome));
    assert_eq!(queue.next_due(START), None);
    assert_eq!(state(&queue, key), State::Held);
    assert!(!queue.show(key).unwrap().is_given_out());
    queue.release(key, START + 1, &mut record);
    assert!(queue.show(key).unwrap().is_given_out());
    assert_eq!(overdue_at(&mut queue, START + 1), Some((key, START + 5 * DAY)));
}

#[test]
fn what_is_left_of_a_message_is_offered_but_not_while_something_is_to_be_reported() {
    let (mut queue, mut record) = (queue(), Vec::new());
    let destination = queue.route(b"y.test");
    let recipients = [b"b@y.test", b"c@y.test"].map(|address| NewRecipient { address, destination, notify: Default::default() });
    let key = queue.enqueue(&message(Offered::No), recipients.into_iter(), START);
    let Some(Work::Attempt(dispatch)) = queue.poll(START, &mut record) else { panic!("it may go") };
    let outcomes = [(0, Outcome::Delivered { reply: b"250 ok" }), (1, Outcome::Deferred { reply: b"450 4.2.1 later" })];
    let _ = queue.settle(dispatch, &outcomes, START, &mut record);
    assert!(queue.offer(key, START + 1));
    let open: Vec<bool> = queue.show(key).unwrap().recipients().map(|recipient| recipient.is_open()).collect();
    assert_eq!(open, [false, true]);
    assert!(queue.take_back(key, START + 2));
    let _ = queue.bounce(key, &Filter::default(), b"554 5.0.0 no", START + 3, &mut record);
    assert!(!queue.offer(key, START + 4), "its failure is reported here first");
}

#[test]
fn mail_that_is_taken_back_is_attempted_and_mail_that_another_has_leaves() {
    let mut queue = queue();
    let key = enqueue(&mut queue, Offered::Untouched);
    assert!(queue.take_back(key, START + 5));
    assert!(!queue.take_back(key, START + 5));
    let Some(Work::Attempt(dispatch)) = queue.poll(START + 5, &mut Vec::new()) else { panic!("it may go") };
    assert!(!queue.offer(key, START + 5), "what is being attempted is not offered");
    assert_eq!(queue.abandon(dispatch, START + 5), Settled::Nothing);
    assert!(queue.offer(key, START + 6));
    assert!(queue.poll(START + 6, &mut Vec::new()).is_none());
    assert_eq!(queue.delete(key, START + 7), Some(Settled::Done));
    queue.recorded(key);
    assert!(queue.is_empty());
}

#[test]
fn what_was_begun_here_is_offered_after_a_restart_only_by_a_node_that_delivers_nothing_or_was_emptied() {
    let mut before = queue();
    let key = enqueue(&mut before, Offered::No);
    let Some(Work::Attempt(dispatch)) = before.poll(START, &mut Vec::new()) else { panic!("it may go") };
    let mut record = Vec::new();
    let outcome = Outcome::Deferred { reply: b"450 4.2.1 later" };
    assert_eq!(before.settle(dispatch, &[(0, outcome)], START, &mut record), Settled::Outcome);
    for (offered, records, expected) in [
        (Offered::Untouched, vec![], State::Offered),
        (Offered::Untouched, vec![&*record], State::Deferred),
        (Offered::Perhaps, vec![&*record], State::Offered),
        (Offered::Always, vec![&*record], State::Offered),
    ] {
        let mut after = queue();
        let recipients = recipient(&mut after);
        let recovered = after.recover(&message(offered), recipients, records.into_iter(), START + 1).unwrap();
        assert_eq!(state(&after, recovered.key), expected);
    }
    // What is held was taken back before.
    let mut held = Vec::new();
    assert_eq!(before.hold(key, START, &mut held), Some(Settled::Outcome));
    let mut after = queue();
    let recipients = recipient(&mut after);
    let recovered = after.recover(&message(Offered::Perhaps), recipients, [&*record, &*held].into_iter(), START + 1).unwrap();
    assert!(!after.show(recovered.key).unwrap().is_offered());
    // A claim that became this node's own is confirmed by a record that says nothing else.
    let (mut own, mut record) = (queue(), Vec::new());
    let key2 = enqueue(&mut own, Offered::No);
    assert_eq!(own.confirm(key2, &mut record), Some(Settled::Outcome));
    assert!(!record.is_empty());
    assert!(before.show(key).is_some());
}

#[test]
fn mail_that_owes_no_report_leaves_when_another_has_it() {
    let (mut queue, mut record) = (queue(), Vec::new());
    let key = enqueue(&mut queue, Offered::Untouched);
    assert_eq!(queue.handed_over(key, START, &mut record), Some(Settled::Done));
    assert_eq!(queue.handed_over(key, START, &mut record), None);
}

/// A drain bounced all that a route had held for longer than it would have tried it: mail of which is said that it does not grow old.
#[test]
fn what_a_route_has_held_beyond_its_lifetime_gets_the_time_for_an_attempt_elsewhere() {
    let route = Route { pattern: "*".into(), via: Via::Hold, retry: RetryPolicy::default(), limits: Default::default() };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START);
    let key = enqueue(&mut queue, Offered::No);
    let (now, grace) = (START + 6 * DAY, QueueSettings::default().grace_ms);
    assert!(queue.poll(now, &mut Vec::new()).is_none(), "it does not grow old");
    assert!(queue.offer(key, now));
    assert!(queue.poll(now, &mut Vec::new()).is_none());
    assert_eq!(queue.show(key).unwrap().ends_at(), now + grace);
    // Taken back and offered again it has no more time than that, until it was held for as long again.
    assert!(queue.take_back(key, now + 1) && queue.offer(key, now + 2));
    assert_eq!(queue.show(key).unwrap().ends_at(), now + grace);
    assert!(queue.take_back(key, now + 3) && queue.poll(now + 2 * grace, &mut Vec::new()).is_none());
    assert!(queue.offer(key, now + 2 * grace));
    assert_eq!(overdue_at(&mut queue, now + 2 * grace), Some((key, now + 3 * grace)));
}

#[test]
fn mail_in_its_lifetime_is_given_no_more_when_it_is_offered_or_taken_over() {
    let mut queue = queue();
    let key = enqueue(&mut queue, Offered::No);
    queue.taken_over(key, START + 1);
    assert!(queue.offer(key, START + 2));
    assert_eq!(queue.show(key).unwrap().ends_at(), START + 5 * DAY);
}

/// Its owner had given it the time for one more attempt, after a release or a long absence, and the worker failed it without one.
#[test]
fn what_is_taken_over_past_its_lifetime_is_attempted_before_it_fails() {
    let (mut queue, mut record) = (queue(), Vec::new());
    let (now, grace) = (START + 6 * DAY, QueueSettings::default().grace_ms);
    let recipients = recipient(&mut queue);
    let message = NewMessage { accepted_elsewhere: true, ..message(Offered::No) };
    let key = queue.enqueue(&message, recipients, now);
    queue.taken_over(key, now);
    assert_eq!(queue.show(key).unwrap().ends_at(), now + grace);
    let Some(Work::Attempt(dispatch)) = queue.poll(now, &mut record) else { panic!("it is attempted first") };
    let _ = queue.settle(dispatch, &[(0, Outcome::Deferred { reply: b"450 4.2.1 later" })], now, &mut record);
    let reply = queue.show(key).unwrap().recipients().next().unwrap().reply().into_owned();
    assert_eq!((state(&queue, key), &*reply), (State::Failed, "5.4.7 expired; last: 450 4.2.1 later"), "one attempt, as everywhere");
}

/// RFC 2852 4.1.1: what could not be delivered by then goes back.
#[test]
fn a_time_that_the_sender_set_ends_what_is_taken_over_all_the_same() {
    let now = START + 6 * DAY;
    for (expires_at, end) in [(now - 1, START + 5 * DAY), (now + 1000, now + 1000)] {
        let mut queue = queue();
        let recipients = recipient(&mut queue);
        let message = NewMessage { expires_at: Some(expires_at), ..message(Offered::No) };
        let key = queue.enqueue(&message, recipients, now);
        queue.taken_over(key, now);
        assert_eq!(queue.show(key).unwrap().ends_at(), end);
        let first = queue.poll(now, &mut Vec::new());
        assert_eq!(matches!(first, Some(Work::Attempt(_))), expires_at > now, "{first:?}");
    }
}
