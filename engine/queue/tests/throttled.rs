//! After a destination asked for a pause: who is tried next. One sender that is refused costs others little, and what an operator chooses
//! is what it is tried with.

use std::collections::VecDeque;

use ringpost_queue::{
    DestinationId, DestinationLimits, Dispatch, Filter, Guest, Homes, MessageKey, NewMessage, NewRecipient, Notify, Outcome, Queue,
    QueueId, QueueSettings, RetryPolicy, Route, Routes, Settled, Via, Wait, Work,
};

const START: u64 = 1_790_000_000_000;
const REFUSED: Outcome<'static> = Outcome::Deferred { reply: b"421 4.7.0 your reputation is bad" };
const DELIVERED: Outcome<'static> = Outcome::Delivered { reply: b"250 ok" };

fn queue(homes: Homes) -> Queue {
    let limits = DestinationLimits { connections_max: 1, window_initial: 1, throttle_pause_ms: 10_000, ..DestinationLimits::default() };
    let via = Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] };
    let route = Route { pattern: "*".into(), via, retry: RetryPolicy::default(), limits };
    Queue::new(QueueSettings { homes, ..QueueSettings::default() }, Routes::new(vec![route]).unwrap(), 1, START)
}

fn enqueue(queue: &mut Queue, sequence: u64, sender: &str, now: u64) -> MessageKey {
    let message = NewMessage {
        id: QueueId { boot: 1, shard: 0, sequence },
        accepted_at: now,
        reverse_path: sender.as_bytes(),
        ..NewMessage::default()
    };
    let destination = queue.route(b"y.test");
    queue.enqueue(&message, [NewRecipient { address: b"b@y.test", destination, notify: Notify::UNSAID }].into_iter(), now)
}

fn poll(queue: &mut Queue, now: u64) -> Option<Dispatch> {
    match queue.poll(now, &mut Vec::new())? {
        Work::Attempt(dispatch) => Some(dispatch),
        other => panic!("{other:?}"),
    }
}

fn settle(queue: &mut Queue, dispatch: Dispatch, outcome: Outcome<'_>, now: u64) {
    let key = dispatch.key();
    if queue.settle(dispatch, &[(0, outcome)], now, &mut Vec::new()) != Settled::Nothing {
        queue.recorded(key);
    }
}

fn sender(queue: &Queue, dispatch: &Dispatch) -> String {
    String::from_utf8(queue.envelope(dispatch.key()).unwrap().reverse_path.to_vec()).unwrap()
}

fn throttled_until(queue: &Queue, destination: DestinationId, now: u64) -> Option<u64> {
    queue.destination(destination, now).unwrap().throttled_until
}

/// The next to be tried was the oldest, and of the sender that was refused as long as it had any: others waited for all of its mail, a pause of
/// up to five minutes for each message.
#[test]
fn after_a_pause_another_senders_mail_goes_and_the_refused_one_has_its_turn_again() {
    let mut queue = queue(Homes::default());
    let destination = queue.route(b"y.test");
    (0..100).for_each(|sequence| _ = enqueue(&mut queue, sequence, "bad@x.test", START));
    (100..110).for_each(|sequence| _ = enqueue(&mut queue, sequence, "good@x.test", START));
    let first = poll(&mut queue, START).unwrap();
    settle(&mut queue, first, REFUSED, START);
    let until = throttled_until(&queue, destination, START).expect("it is left alone");
    assert!(poll(&mut queue, START).is_none());
    for _ in 0..10 {
        let dispatch = poll(&mut queue, until).expect("it goes on");
        assert_eq!(sender(&queue, &dispatch), "good@x.test");
        settle(&mut queue, dispatch, DELIVERED, until);
    }
    // None of anybody else is left; and beyond the time it is in turn with others.
    let dispatch = poll(&mut queue, until).expect("it is not kept back for ever");
    assert_eq!(sender(&queue, &dispatch), "bad@x.test");
    settle(&mut queue, dispatch, REFUSED, until);
    let again = throttled_until(&queue, destination, until).unwrap();
    enqueue(&mut queue, 200, "good@x.test", again);
    let later = again + (again - until);
    let dispatch = poll(&mut queue, later).unwrap();
    assert_eq!(sender(&queue, &dispatch), "bad@x.test");
    settle(&mut queue, dispatch, REFUSED, later);
}

/// What a connection in use refused was put before all others, and was what the destination was tried with, three times.
#[test]
fn what_met_the_pause_on_a_used_connection_goes_behind_the_others() {
    let mut queue = queue(Homes::default());
    let destination = queue.route(b"y.test");
    (0..5).for_each(|sequence| _ = enqueue(&mut queue, sequence, "bad@x.test", START));
    let number = |queue: &Queue, dispatch: &Dispatch| queue.envelope(dispatch.key()).unwrap().id.sequence;
    for _ in 0..2 {
        let dispatch = poll(&mut queue, START).expect("not paused yet");
        assert_eq!(number(&queue, &dispatch), 0);
        settle(&mut queue, dispatch, Outcome::Untried { reply: b"421 4.7.28 unusual rate of mail" }, START);
    }
    let until = throttled_until(&queue, destination, START).unwrap();
    let order = std::iter::from_fn(|| {
        let dispatch = poll(&mut queue, until)?;
        let number = number(&queue, &dispatch);
        settle(&mut queue, dispatch, DELIVERED, until);
        Some(number)
    });
    let order: Vec<u64> = order.collect();
    assert_eq!(order, [1, 2, 3, 4, 0]);
}

/// `queue retry` of one message sent another one, and said that none was retried.
#[test]
fn what_an_operator_retries_is_what_the_destination_is_tried_with() {
    let mut queue = queue(Homes::default());
    let destination = queue.route(b"y.test");
    let keys: Vec<_> = (0..100).map(|sequence| enqueue(&mut queue, sequence, "bad@x.test", START)).collect();
    let dispatch = poll(&mut queue, START).unwrap();
    settle(&mut queue, dispatch, REFUSED, START);
    for &chosen in &keys[50..53] {
        assert!(poll(&mut queue, START).is_none() && throttled_until(&queue, destination, START).is_some());
        let retried = queue.retry(chosen, &Filter::default(), START, &mut Vec::new());
        assert_eq!(retried, Some(Settled::Outcome), "it is told as retried");
        queue.recorded(chosen);
        let dispatch = poll(&mut queue, START).expect("it is tried at once");
        assert_eq!(dispatch.key(), chosen);
        settle(&mut queue, dispatch, REFUSED, START);
    }
    // It takes mail again: what is ready may go already.
    let until = throttled_until(&queue, destination, START).unwrap();
    let dispatch = poll(&mut queue, until).unwrap();
    settle(&mut queue, dispatch, DELIVERED, until);
    let later = until + 1_000_000;
    let _open = poll(&mut queue, later).unwrap();
    assert_eq!(queue.retry(keys[80], &Filter::default(), later, &mut Vec::new()), Some(Settled::Nothing));
}

/// The shard that has the mail, and the one that delivers it.
struct Pair {
    owner: Queue,
    home: Queue,
    out: Vec<Option<Dispatch>>,
}

impl Pair {
    fn new() -> Self {
        let mut queues: Vec<Queue> = (0..2).map(|shard| queue(Homes { shard, shards: 2 })).collect();
        let destination = queues[0].route(b"y.test");
        let home = queues.iter().position(|queue| queue.is_home(destination)).unwrap();
        let home = queues.remove(home);
        Self { owner: queues.remove(0), home, out: Vec::new() }
    }

    /// All that the owner gives out is at the home.
    fn cross(&mut self, now: u64) {
        while let Some(dispatch) = poll(&mut self.owner, now) {
            let mut guest = Guest::default();
            self.owner.describe(&dispatch, self.out.len() as u32, &mut guest);
            self.out.push(Some(dispatch));
            self.home.receive(guest, now).expect("it is a home");
        }
    }

    /// The home attempts one, and answers all that it has to. The sender of that one.
    fn attempt(&mut self, outcome: Outcome<'_>, now: u64) -> Option<String> {
        self.cross(now);
        let dispatch = poll(&mut self.home, now);
        let tried = dispatch.map(|dispatch| {
            let sender = sender(&self.home, &dispatch);
            let guest = self.home.settle_guest(dispatch, &[(0, outcome)], now);
            let dispatch = self.out[guest.owner_call as usize].take().unwrap();
            settle(&mut self.owner, dispatch, outcome, now);
            sender
        });
        let refused: VecDeque<_> = std::iter::from_fn(|| self.home.take_refused()).collect();
        for refused in refused {
            let dispatch = self.out[refused.guest.owner_call as usize].take().unwrap();
            self.owner.home_sleeps(&dispatch, refused.until, refused.wait, &refused.reason, now);
            self.owner.abandon(dispatch, now);
        }
        tried
    }
}

#[test]
fn at_a_home_another_sender_goes_after_a_pause_and_what_an_operator_retries_goes_first() {
    let mut pair = Pair::new();
    (0..50).for_each(|sequence| _ = enqueue(&mut pair.owner, sequence, "bad@x.test", START));
    let chosen = enqueue(&mut pair.owner, 50, "chosen@x.test", START);
    (51..100).for_each(|sequence| _ = enqueue(&mut pair.owner, sequence, "bad@x.test", START));
    (100..110).for_each(|sequence| _ = enqueue(&mut pair.owner, sequence, "good@x.test", START));
    assert_eq!(pair.attempt(REFUSED, START).as_deref(), Some("bad@x.test"));
    assert_eq!(pair.attempt(REFUSED, START), None);
    let destination = pair.owner.route(b"y.test");
    let until = |pair: &Pair, now| match pair.owner.destination(destination, now).unwrap().wait {
        Wait::Throttled { until } => until,
        other => panic!("{other:?}"),
    };
    let now = until(&pair, START);
    assert_eq!(pair.attempt(REFUSED, now).as_deref(), Some("good@x.test"));
    assert_eq!(pair.attempt(REFUSED, now), None);
    assert!(until(&pair, now) > now);

    let retried = pair.owner.retry(chosen, &Filter::default(), now, &mut Vec::new());
    assert_eq!(retried, Some(Settled::Outcome));
    pair.owner.recorded(chosen);
    assert_eq!(pair.attempt(REFUSED, now).as_deref(), Some("chosen@x.test"));
}
