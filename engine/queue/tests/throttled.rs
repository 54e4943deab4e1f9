//! After a destination asked for a pause: who is tried next. One sender that is refused costs others little, and what an operator chooses
//! is what it is tried with.

use std::collections::VecDeque;

use ringpost_queue::{
    DestinationId, DestinationLimits, Dispatch, Filter, Guest, Homes, MessageKey, NewMessage, NewRecipient, Notify, Outcome, Queue,
    QueueId, QueueSettings, Resolution, RetryPolicy, Route, Routes, Settled, Via, Wait, Work,
};

const START: u64 = 1_790_000_000_000;
const REFUSED: Outcome<'static> = Outcome::Deferred { reply: b"421 4.7.0 your reputation is bad" };
const DELIVERED: Outcome<'static> = Outcome::Delivered { reply: b"250 ok" };

fn queue(homes: Homes) -> Queue {
    let limits = DestinationLimits { connections_max: 1, window_initial: 1, throttle_pause_ms: 10_000, ..DestinationLimits::default() };
    let via = Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] };
    // What is deferred stays so for the length of a test.
    let retry = RetryPolicy { first_ms: 1 << 30, max_ms: 1 << 30, ..RetryPolicy::default() };
    let route = Route { pattern: "*".into(), via, retry, limits };
    Queue::new(QueueSettings { homes, ..QueueSettings::default() }, Routes::new(vec![route]).unwrap(), 1, START)
}

fn enqueue(queue: &mut Queue, sequence: u64, sender: &str, now: u64) -> MessageKey {
    enqueue_with(queue, sequence, sender, 0, now)
}

fn enqueue_with(queue: &mut Queue, sequence: u64, sender: &str, priority: u8, now: u64) -> MessageKey {
    let message = NewMessage {
        priority,
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

/// As a driver does: what was not come to in one go is at the next.
fn poll_to_the_end(queue: &mut Queue, now: u64) -> Option<Dispatch> {
    (0..100).find_map(|_| match poll(queue, now) {
        Some(dispatch) => Some(Some(dispatch)),
        None => (queue.next_due(now) != Some(now)).then_some(None),
    })?
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

/// One host of several that asked for less had the whole destination wait, although another one had put off no more than a message.
#[test]
fn what_one_host_asks_for_is_not_what_the_destination_asks_for() {
    let mut queue = queue(Homes::default());
    let destination = queue.route(b"y.test");
    (0..3).for_each(|sequence| _ = enqueue(&mut queue, sequence, "a@x.test", START));
    for says_otherwise in [true, false] {
        let mut dispatch = poll(&mut queue, START).expect("nobody waits");
        let mut tried = queue.hosts_to_try(&dispatch);
        if says_otherwise {
            tried.note_said_otherwise();
        }
        dispatch.weigh(tried);
        settle(&mut queue, dispatch, REFUSED, START);
        assert_eq!(throttled_until(&queue, destination, START).is_some(), !says_otherwise);
    }
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

/// Only the first sixteen messages and the last one were looked at: mail of others between those of a refused sender expired without an attempt,
/// and what fell due again during the pause made the last one the refused sender's, too.
#[test]
fn mail_of_others_in_the_middle_of_a_refused_senders_is_what_is_tried_next() {
    let mut queue = queue(Homes::default());
    let destination = queue.route(b"y.test");
    (0..5000).for_each(|sequence| _ = enqueue(&mut queue, sequence, "bad@x.test", START));
    (5000..5010).for_each(|sequence| _ = enqueue(&mut queue, sequence, "good@x.test", START));
    (5010..5020).for_each(|sequence| _ = enqueue(&mut queue, sequence, "bad@x.test", START));
    let mut now = START;
    // Two senders are refused, one after the other: neither makes the other one next.
    enqueue(&mut queue, 6000, "worse@x.test", now);
    for expected in ["bad@x.test", "good@x.test"] {
        let dispatch = poll_to_the_end(&mut queue, now).expect("it goes on");
        assert_eq!(sender(&queue, &dispatch), expected);
        settle(&mut queue, dispatch, REFUSED, now);
        now = throttled_until(&queue, destination, now).expect("it is left alone");
    }
    let dispatch = poll_to_the_end(&mut queue, now).unwrap();
    assert_eq!(sender(&queue, &dispatch), "worse@x.test");
    settle(&mut queue, dispatch, DELIVERED, now);
    // Those who were refused, in the order of their mail; the pause is over, and nobody else is there.
    let dispatch = poll_to_the_end(&mut queue, now).unwrap();
    assert_eq!((sender(&queue, &dispatch).as_str(), queue.envelope(dispatch.key()).unwrap().id.sequence), ("bad@x.test", 1));
    settle(&mut queue, dispatch, DELIVERED, now);
}

/// The model: one list in the order of coming, in which the first of the earliest turn whose sender is not avoided is next, else the first.
#[test]
fn random_mail_of_refused_senders_and_others_agrees_with_one_list() {
    const AGE_STEP_MS: u64 = 30_000;
    struct Waits {
        sequence: u64,
        sender: u64,
        turn: u64,
        priority: u8,
    }
    for seed in 1..=30_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut queue = queue(Homes::default());
        let destination = queue.route(b"y.test");
        let (mut model, mut avoided, mut avoided_until) = (Vec::<Waits>::new(), Vec::new(), 0);
        let (mut now, mut sequence) = (START, 0);
        let senders = 1 + random(6);
        let refused = random(1 << senders);
        let several_priorities = seed % 2 == 0;
        for step in 0..200 {
            // Few at a time or more than are looked at in one go, in runs of one sender.
            for _ in 0..random(4) {
                let (sender, count) = (random(senders), if random(20) == 0 { random(1500) } else { random(20) });
                let priority = if several_priorities { random(3) as u8 * 3 } else { 4 };
                for _ in 0..count {
                    sequence += 1;
                    enqueue_with(&mut queue, sequence, &format!("a@{sender}.test"), priority, now);
                    let turn = now / 1000 * 1000 + u64::from(9 - priority) * AGE_STEP_MS;
                    model.push(Waits { sequence, sender, turn, priority });
                }
            }
            let Some(dispatch) = poll_to_the_end(&mut queue, now) else {
                let paused = throttled_until(&queue, destination, now);
                assert!(model.is_empty() || paused.is_some(), "seed {seed}, step {step}: {} wait", model.len());
                now = paused.unwrap_or(now + random(5000));
                continue;
            };
            if avoided_until <= now {
                avoided.clear();
            }
            // Of one priority what came first, on equal turns the higher one.
            let first = |others: bool| {
                let meant = (0..model.len()).filter(|&at| !others || !avoided.contains(&model[at].sender));
                meant.min_by_key(|&at| (model[at].turn, 9 - model[at].priority, at))
            };
            let expected = model.remove(first(true).or_else(|| first(false)).expect("something was tried"));
            assert_eq!(queue.envelope(dispatch.key()).unwrap().id.sequence, expected.sequence, "seed {seed}, step {step}");
            if refused & 1 << expected.sender != 0 {
                settle(&mut queue, dispatch, REFUSED, now);
                let until = throttled_until(&queue, destination, now).expect("one attempt at a time is a cohort");
                if !avoided.contains(&expected.sender) {
                    avoided.push(expected.sender);
                }
                avoided_until = avoided_until.max(2 * until - now);
            } else {
                settle(&mut queue, dispatch, DELIVERED, now);
                now += random(3) * random(10_000);
            }
        }
    }
}

/// By its reverse-path each message of a list was of somebody whom nobody had refused: each was tried, with a pause, before anybody else's.
#[test]
fn a_list_with_a_reverse_path_for_each_recipient_keeps_others_no_longer_than_one_sender_does() {
    for (pauses, address) in [(1, "news+b{}=y.test@x.test"), (1, "prvs={}abc=news@x.test"), (4, "bounce-{}@x.test")] {
        let mut queue = queue(Homes::default());
        let destination = queue.route(b"y.test");
        for sequence in 0..1000 {
            enqueue(&mut queue, sequence, &address.replace("{}", &sequence.to_string()), START);
        }
        enqueue(&mut queue, 1000, "good@z.test", START);
        let mut now = START;
        for _ in 0..pauses {
            let dispatch = poll_to_the_end(&mut queue, now).expect("it goes on");
            assert!(sender(&queue, &dispatch).ends_with("@x.test"), "{address}");
            settle(&mut queue, dispatch, REFUSED, now);
            now = throttled_until(&queue, destination, now).expect("it is left alone");
        }
        let dispatch = poll_to_the_end(&mut queue, now).unwrap();
        assert_eq!(sender(&queue, &dispatch), "good@z.test", "{address}");
        settle(&mut queue, dispatch, DELIVERED, now);
    }
}

/// As above, where the mail is of many domains with the same hosts.
#[test]
fn mail_of_others_for_one_of_many_domains_of_a_site_is_what_is_tried_next() {
    let limits = DestinationLimits { connections_max: 1, window_initial: 1, throttle_pause_ms: 10_000, ..DestinationLimits::default() };
    let retry = RetryPolicy { first_ms: 1 << 30, max_ms: 1 << 30, ..RetryPolicy::default() };
    let route = Route { pattern: "*".into(), via: Via::Mx { port: 25 }, retry, limits };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START);
    for number in 0..200_u64 {
        let (sender, priority) = if number == 150 { ("good@x.test", 0) } else { ("bad@x.test", 5) };
        for part in 0..3 {
            let id = QueueId { boot: 1, shard: 0, sequence: 3 * number + part };
            let message = NewMessage { id, accepted_at: START, reverse_path: sender.as_bytes(), priority, ..NewMessage::default() };
            let address = format!("b@{number}.test");
            let destination = queue.route(format!("{number}.test").as_bytes());
            queue.enqueue(&message, [NewRecipient { address: address.as_bytes(), destination, notify: Notify::UNSAID }].into_iter(), START);
        }
    }
    let attempt = |queue: &mut Queue, now: u64| {
        loop {
            match queue.poll(now, &mut Vec::new()) {
                Some(Work::Attempt(dispatch)) => return dispatch,
                Some(Work::Resolve(lookup)) => {
                    let hosts = vec!["192.0.2.1:25".parse().unwrap()];
                    let (key, name) = ("all".to_owned(), "mx.test".to_owned());
                    queue.resolved(lookup.asking, &Resolution::Site { key, name, hosts, is_whole: true, until: START + 100_000_000 }, now);
                }
                None => assert_eq!(queue.next_due(now), Some(now), "there is mail, and the pause is over"),
                Some(other) => panic!("{other:?}"),
            }
        }
    };
    let mut now = START;
    let dispatch = attempt(&mut queue, now);
    assert_eq!(sender(&queue, &dispatch), "bad@x.test");
    let destination = dispatch.destination();
    settle(&mut queue, dispatch, REFUSED, now);
    now = throttled_until(&queue, destination, now).expect("it is left alone");
    for _ in 0..3 {
        let dispatch = attempt(&mut queue, now);
        assert_eq!(sender(&queue, &dispatch), "good@x.test");
        settle(&mut queue, dispatch, DELIVERED, now);
    }
    // Nobody else is left, and each message is tried once.
    for _ in 0..596 {
        let dispatch = attempt(&mut queue, now);
        assert_eq!(sender(&queue, &dispatch), "bad@x.test");
        settle(&mut queue, dispatch, DELIVERED, now);
    }
    assert!(queue.poll(now, &mut Vec::new()).is_none() && queue.next_due(now) != Some(now));
}

/// Each message of another sender cost a look at every domain of the avoided one, at most thirty-two a poll: with 20,000 of them 4.6 ms.
#[test]
fn domains_with_nothing_but_avoided_mail_are_looked_at_once_and_not_for_each_message_of_others() {
    const DOMAINS: u64 = 1_000;
    let limits = DestinationLimits { connections_max: 1, window_initial: 1, throttle_pause_ms: 10_000, ..DestinationLimits::default() };
    let retry = RetryPolicy { first_ms: 1 << 30, max_ms: 1 << 30, ..RetryPolicy::default() };
    let route = Route { pattern: "*".into(), via: Via::Mx { port: 25 }, retry, limits };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START);
    let mut sequence = 0;
    let mut enqueue = |queue: &mut Queue, sender: &str, domain: u64, now: u64| {
        sequence += 1;
        let id = QueueId { boot: 1, shard: 0, sequence };
        let message = NewMessage { id, accepted_at: now, reverse_path: sender.as_bytes(), priority: 5, ..NewMessage::default() };
        let (address, destination) = (format!("b@{domain}.test"), queue.route(format!("{domain}.test").as_bytes()));
        queue.enqueue(&message, [NewRecipient { address: address.as_bytes(), destination, notify: Notify::UNSAID }].into_iter(), now);
    };
    let site_of_all = || {
        let (key, name, hosts) = ("all".to_owned(), "mx.test".to_owned(), vec!["192.0.2.1:25".parse().unwrap()]);
        Resolution::Site { key, name, hosts, is_whole: true, until: START + 100_000_000 }
    };
    // The next attempt, and the polls that it took.
    let attempt = |queue: &mut Queue, now: u64| {
        let mut polls = 0;
        loop {
            polls += 1;
            match queue.poll(now, &mut Vec::new()) {
                Some(Work::Attempt(dispatch)) => return (dispatch, polls),
                Some(Work::Resolve(lookup)) => queue.resolved(lookup.asking, &site_of_all(), now),
                None => assert_eq!(queue.next_due(now), Some(now), "there is mail"),
                Some(other) => panic!("{other:?}"),
            }
        }
    };
    (0..DOMAINS).for_each(|domain| enqueue(&mut queue, "bad@x.test", domain, START));
    (0..7).for_each(|domain| enqueue(&mut queue, "good@x.test", DOMAINS + domain, START));
    let (dispatch, _) = attempt(&mut queue, START);
    let destination = dispatch.destination();
    // While that is open the others are asked about.
    while let Some(Work::Resolve(lookup)) = queue.poll(START, &mut Vec::new()) {
        queue.resolved(lookup.asking, &site_of_all(), START);
    }
    settle(&mut queue, dispatch, REFUSED, START);
    let now = throttled_until(&queue, destination, START).expect("it is left alone");
    let mut all_polls = Vec::new();
    for _ in 0..7 {
        let (dispatch, polls) = attempt(&mut queue, now);
        assert_eq!(sender(&queue, &dispatch), "good@x.test");
        settle(&mut queue, dispatch, DELIVERED, now);
        all_polls.push(polls);
    }
    for number in 0..50 {
        // To a domain of its own, and to one that has mail of the other sender, too.
        for domain in [DOMAINS + number % 7, number * 3] {
            enqueue(&mut queue, "good@x.test", domain, now);
            let (dispatch, polls) = attempt(&mut queue, now);
            assert_eq!(sender(&queue, &dispatch), "good@x.test");
            settle(&mut queue, dispatch, DELIVERED, now);
            all_polls.push(polls);
        }
    }
    let first = all_polls.remove(0);
    assert!(first <= DOMAINS / 32 + 10, "{first}");
    assert!(all_polls.iter().all(|polls| *polls <= 3), "{all_polls:?}");
    // What was set aside is in nobody's way, and not lost.
    for _ in 1..DOMAINS {
        let (dispatch, polls) = attempt(&mut queue, now);
        assert_eq!(sender(&queue, &dispatch), "bad@x.test");
        settle(&mut queue, dispatch, DELIVERED, now);
        assert_eq!(polls, 1);
    }
    assert!(queue.poll(now, &mut Vec::new()).is_none() && queue.next_due(now) != Some(now));
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
            assert_eq!(self.owner.abandon(dispatch, now), Settled::Nothing);
        }
        tried
    }
}

#[test]
fn at_a_home_another_sender_goes_after_a_pause_and_what_an_operator_retries_goes_first() {
    let mut pair = Pair::new();
    (0..100).for_each(|sequence| _ = enqueue(&mut pair.owner, sequence, "bad@x.test", START));
    (100..110).for_each(|sequence| _ = enqueue(&mut pair.owner, sequence, &format!("good-{sequence}@x.test"), START));
    let chosen = enqueue(&mut pair.owner, 110, "chosen@x.test", START);
    assert_eq!(pair.attempt(REFUSED, START).as_deref(), Some("bad@x.test"));
    assert_eq!(pair.attempt(REFUSED, START), None);
    let destination = pair.owner.route(b"y.test");
    let until = |pair: &Pair, now| match pair.owner.destination(destination, now).unwrap().wait {
        Wait::Throttled { until } => until,
        other => panic!("{other:?}"),
    };
    let now = until(&pair, START);
    assert_eq!(pair.attempt(REFUSED, now).as_deref(), Some("good-100@x.test"));
    assert_eq!(pair.attempt(REFUSED, now), None);
    assert!(until(&pair, now) > now);

    let retried = pair.owner.retry(chosen, &Filter::default(), now, &mut Vec::new());
    assert_eq!(retried, Some(Settled::Outcome));
    pair.owner.recorded(chosen);
    assert_eq!(pair.attempt(REFUSED, now).as_deref(), Some("chosen@x.test"));
}
