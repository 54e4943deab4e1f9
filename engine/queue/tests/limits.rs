//! What a destination bears: its rate, its "too much", a next hop that breaks off; and that others pay nothing for it.

use ringpost_queue::{
    Apart, Breaker, BreakerSettings, Change, DestinationId, DestinationLimits, Dispatch, HostsTried, NewMessage, NewRecipient, Notify,
    Outcome, Queue, QueueId, QueueSettings, Rate, Reserved, RetryPolicy, Route, Routes, Settled, SharedRate, Slots, State, Via, Wait, Work,
};

const START: u64 = 1_790_000_000_000;

fn queue_routes(limits: DestinationLimits) -> Vec<Route> {
    let route = |pattern: &str| Route {
        pattern: pattern.into(),
        via: Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] },
        retry: RetryPolicy::default(),
        limits,
    };
    vec![route("a.test"), route("b.test")]
}

fn queue(limits: DestinationLimits) -> Queue {
    Queue::new(QueueSettings::default(), Routes::new(queue_routes(limits)).unwrap(), 1, START)
}

fn enqueue(queue: &mut Queue, sequence: u64, domain: &str, now: u64) {
    let message = NewMessage {
        id: QueueId { boot: 1, shard: 0, sequence },
        size: 10,
        accepted_at: now,
        reverse_path: b"s@x.test",
        ..NewMessage::default()
    };
    let destination = queue.route(domain.as_bytes());
    let address = format!("b@{domain}");
    queue.enqueue(&message, [NewRecipient { address: address.as_bytes(), destination, notify: Notify::UNSAID }].into_iter(), now);
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

fn deliver(queue: &mut Queue, dispatch: Dispatch, now: u64) {
    settle(queue, dispatch, Outcome::Delivered { reply: b"250 ok" }, now);
}

fn wait(queue: &Queue, destination: DestinationId, now: u64) -> Wait {
    queue.destinations(now).find(|view| view.id == destination).unwrap().wait
}

/// Sleeps as the queue says, in few steps, until an attempt may start; the time of that.
fn sleep(queue: &mut Queue, mut now: u64) -> u64 {
    for _ in 0..8 {
        if queue.destinations(now).any(|view| view.ready > 0 && view.wait == Wait::Turn) {
            return now;
        }
        assert!(queue.poll(now, &mut Vec::new()).is_none(), "nothing goes early");
        now = queue.next_due(now).expect("it waits for something");
    }
    panic!("too many steps");
}

/// Everything is delivered at once; the times of the attempts.
fn drain(queue: &mut Queue, mut now: u64) -> Vec<u64> {
    let mut times = Vec::new();
    loop {
        while let Some(dispatch) = poll(queue, now) {
            times.push(now);
            let behind = queue.poll_behind(&dispatch, now);
            deliver(queue, dispatch, now);
            if let Some(behind) = behind {
                times.push(now);
                deliver(queue, behind, now);
            }
        }
        match queue.next_due(now) {
            Some(at) => {
                assert!(at > now, "nothing spins");
                now = at;
            }
            None => return times,
        }
    }
}

#[test]
fn mail_goes_at_the_moments_that_were_reserved_and_its_neighbour_does_not_wait() {
    let rate = Rate { messages: 20, per_ms: 1000, burst: 1 };
    let shared_rate = Some(SharedRate { rate, apart: Apart::Share });
    let mut queue = queue(DestinationLimits { shared_rate, ..DestinationLimits::default() });
    let other = DestinationLimits::default();
    let routes = ["a.test", "b.test"].map(|pattern| Route {
        pattern: pattern.into(),
        via: Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] },
        retry: RetryPolicy::default(),
        limits: if pattern == "a.test" { DestinationLimits { shared_rate, ..other } } else { other },
    });
    queue.set_routes(routes.into(), START).unwrap();
    for sequence in 0..60 {
        enqueue(&mut queue, sequence, "a.test", START);
    }
    enqueue(&mut queue, 100, "b.test", START);
    let (mut now, mut free, mut times, mut others, mut put_off) = (START, START, Vec::new(), Vec::new(), false);
    let destination = queue.route(b"a.test");
    while times.len() < 60 {
        match queue.poll(now, &mut Vec::new()) {
            Some(Work::Attempt(dispatch)) => {
                if dispatch.destination() == destination {
                    times.push(now - START)
                } else {
                    others.push(now - START)
                }
                deliver(&mut queue, dispatch, now);
            }
            Some(Work::Reserve(wanted)) => {
                assert_eq!((wanted.destination, wanted.name.as_str(), wanted.limit.rate), (destination, "a.test", rate));
                if !std::mem::replace(&mut put_off, true) {
                    queue.not_reserved(destination, now);
                    assert_eq!(wait(&queue, destination, now), Wait::SharedRate { until: now + 100, rate });
                    continue;
                }
                // Whoever keeps the account gives each moment once, evenly spaced over all who ask.
                let first = free.max(now);
                free = first + 50 * u64::from(wanted.slots);
                let first_in_us = i64::try_from((first - now) * 1000).unwrap();
                queue.reserved(destination, Reserved::Slots(Slots { count: wanted.slots, first_in_us, step_ns: 50_000_000 }), now);
            }
            Some(other) => panic!("{other:?}"),
            None => {
                let due = queue.next_due(now).expect("it waits for something");
                assert!(due > now, "nothing spins");
                now = due;
            }
        }
    }
    assert_eq!(others, [0]);
    let expected: Vec<u64> = (0..60).map(|number| 100 + number * 50).collect();
    assert_eq!(times, expected, "evenly, without a gap for the questions");

    // Told to wait for an hour; another limit is another question.
    (200..300).for_each(|sequence| enqueue(&mut queue, sequence, "a.test", now));
    loop {
        match queue.poll(now, &mut Vec::new()) {
            Some(Work::Attempt(dispatch)) => deliver(&mut queue, dispatch, now),
            Some(Work::Reserve(wanted)) => queue.reserved(wanted.destination, Reserved::Later(3_600_000), now),
            Some(other) => panic!("{other:?}"),
            None => {
                let Wait::SharedRate { until, .. } = wait(&queue, destination, now) else { panic!("it waits for the limit") };
                if until > now + 3_000_000 {
                    break;
                }
                now = until;
            }
        }
    }
    // A limit that is shut while Valkey does not answer is not one that others have used up.
    queue.reserved(destination, Reserved::Shut(500), now);
    assert_eq!(wait(&queue, destination, now), Wait::SharedShut { until: now + 500, rate });
    queue.reserved(destination, Reserved::Later(500), now);
    assert_eq!(wait(&queue, destination, now), Wait::SharedRate { until: now + 500, rate });
    let faster = Some(SharedRate { rate: Rate { messages: 90, ..rate }, apart: Apart::Share });
    let routes = queue_routes(DestinationLimits { shared_rate: faster, ..other });
    queue.set_routes(routes, now).unwrap();
    assert!(matches!(queue.poll(now, &mut Vec::new()), Some(Work::Reserve(_))));
}

#[test]
fn a_rate_holds_with_chained_attempts_and_every_wait_ends_at_its_millisecond() {
    let rate = Rate { messages: 50, per_ms: 1000, burst: 2 };
    let mut queue = queue(DestinationLimits { rate: Some(rate), ..DestinationLimits::default() });
    for sequence in 0..200 {
        enqueue(&mut queue, sequence, "a.test", START);
    }
    let destination = queue.route(b"a.test");
    let times = drain(&mut queue, START);
    assert_eq!(times.len(), 200);
    let offsets: Vec<_> = times.iter().map(|at| at - START).collect();
    assert_eq!(offsets[..5], [0, 0, 20, 40, 60]);
    assert_eq!(*offsets.last().unwrap(), 198 * 20);
    let end = START + 198 * 20;
    enqueue(&mut queue, 1000, "a.test", end);
    assert!(poll(&mut queue, end).is_none());
    assert_eq!(wait(&queue, destination, end), Wait::Rate { until: end + 20, rate });
    let view = queue.show(queue.key_of(QueueId { boot: 1, shard: 0, sequence: 1000 }).unwrap()).unwrap();
    let recipient = view.recipients().next().unwrap();
    assert_eq!(recipient.next_attempt(end), Some(end + 20));
    assert_eq!(recipient.reason(end), "waits for the rate of the destination, 50/s");
    assert_eq!(sleep(&mut queue, end), end + 20);
}

#[test]
fn a_destination_that_says_too_much_is_left_alone_and_its_window_halves() {
    let limits = DestinationLimits { window_initial: 8, throttle_pause_ms: 10_000, ..DestinationLimits::default() };
    let mut queue = queue(limits);
    for sequence in 0..100 {
        enqueue(&mut queue, sequence, "a.test", START);
    }
    let destination = queue.route(b"a.test");
    let open: Vec<_> = std::iter::from_fn(|| poll(&mut queue, START)).collect();
    assert_eq!(open.len(), 8);
    assert_eq!(wait(&queue, destination, START), Wait::Window { attempts: 8, window: 8 });
    for dispatch in open {
        settle(&mut queue, dispatch, Outcome::Deferred { reply: b"421 4.7.0 too many messages" }, START);
    }
    assert!(poll(&mut queue, START).is_none());
    let Wait::Throttled { until } = wait(&queue, destination, START) else { panic!("{:?}", wait(&queue, destination, START)) };
    assert!((8_000..=12_000).contains(&(until - START)));
    let view = queue.destinations(START).find(|view| view.id == destination).unwrap();
    assert_eq!((view.throttled_until, view.reason, view.breaker), (Some(until), "421 4.7.0 too many messages", Breaker::Closed));
    assert_eq!(queue.take_change().map(|change| matches!(change, Change::Throttled(_))), Some(true));
    assert_eq!(queue.take_change(), None);
    // Then it goes on, carefully.
    assert_eq!(sleep(&mut queue, START), until);
    let open: Vec<_> = std::iter::from_fn(|| poll(&mut queue, until)).collect();
    assert!((1..=4).contains(&open.len()), "{}", open.len());
    for dispatch in open {
        deliver(&mut queue, dispatch, until);
    }
    let view = queue.destinations(until).find(|view| view.id == destination).unwrap();
    assert_eq!((view.throttled_until, view.reason), (None, ""));
}

/// Kept connections that answered every MAIL with 421 paused nobody, and what they said was lost: a message that met three of them was deferred
/// with a word of our own.
#[test]
fn what_used_connections_say_counts_for_the_destination_and_is_kept() {
    let limits = DestinationLimits { window_initial: 3, throttle_pause_ms: 10_000, ..DestinationLimits::default() };
    let too_much = Outcome::Untried { reply: b"421 4.7.28 unusual rate of mail" };
    let mut of_three = queue(limits);
    let destination = of_three.route(b"a.test");
    for sequence in 0..10 {
        enqueue(&mut of_three, sequence, "a.test", START);
    }
    let open: Vec<_> = std::iter::from_fn(|| poll(&mut of_three, START)).collect();
    assert_eq!(open.len(), 3);
    for dispatch in open {
        settle(&mut of_three, dispatch, too_much, START);
    }
    assert!(matches!(wait(&of_three, destination, START), Wait::Throttled { .. }), "{:?}", wait(&of_three, destination, START));
    let view = of_three.destinations(START).find(|view| view.id == destination).unwrap();
    assert_eq!((view.reason, of_three.counts().waiting), ("421 4.7.28 unusual rate of mail", 0), "nobody's attempt came to nothing");

    // What bounds a connection is said of each, and each next one takes mail: nobody waits, whatever words are used.
    let mut of_one = queue(DestinationLimits { window_initial: 1, ..limits });
    for sequence in 0..20 {
        enqueue(&mut of_one, sequence, "a.test", START);
        let dispatch = poll(&mut of_one, START).expect("it goes at once");
        settle(&mut of_one, dispatch, too_much, START);
        let dispatch = poll(&mut of_one, START).expect("and over another connection");
        deliver(&mut of_one, dispatch, START);
    }
    // Twice with nothing taken between them, it is about the sender.
    enqueue(&mut of_one, 20, "a.test", START);
    for _ in 0..2 {
        let dispatch = std::iter::from_fn(|| poll(&mut of_one, START)).next().expect("not paused yet");
        settle(&mut of_one, dispatch, too_much, START);
    }
    assert!(matches!(wait(&of_one, destination, START), Wait::Throttled { .. }));

    // Deferred at the third, with the word of the next hop.
    let mut of_one = queue(DestinationLimits { window_initial: 1, ..limits });
    enqueue(&mut of_one, 0, "a.test", START);
    for _ in 0..3 {
        let dispatch = poll(&mut of_one, START).expect("it goes at once");
        settle(&mut of_one, dispatch, Outcome::Untried { reply: b"421 4.7.0 enough for this session" }, START);
    }
    let message = of_one.show(of_one.key_of(QueueId { boot: 1, shard: 0, sequence: 0 }).unwrap()).unwrap();
    let recipient = message.recipients().next().unwrap();
    assert_eq!((recipient.state(), &*recipient.reply()), (State::Deferred, "421 4.7.0 enough for this session"));
}

/// `450 4.7.1` for one sender left the destination alone for up to five minutes at a time, and each time the oldest message was tried next,
/// which got the same: mail of others waited behind it until it expired.
#[test]
fn a_policy_about_some_mail_makes_the_window_small_and_pauses_nobody() {
    for reply in ["450 4.7.1 sender temporarily blocked", "451 4.7.1 Try again later"] {
        let mut queue = queue(DestinationLimits { window_initial: 8, connections_max: 8, ..DestinationLimits::default() });
        let destination = queue.route(b"a.test");
        for sequence in 0..100 {
            enqueue(&mut queue, sequence, "a.test", START);
        }
        let open: Vec<_> = std::iter::from_fn(|| poll(&mut queue, START)).collect();
        assert_eq!(open.len(), 8);
        for dispatch in open {
            settle(&mut queue, dispatch, Outcome::Deferred { reply: reply.as_bytes() }, START);
        }
        // One at a time, each at once behind the other.
        for count in 9..=50 {
            let dispatch = poll(&mut queue, START).expect("it is not left alone");
            assert!(poll(&mut queue, START).is_none(), "one at a time");
            assert_eq!(wait(&queue, destination, START), Wait::Window { attempts: 1, window: 1 });
            settle(&mut queue, dispatch, Outcome::Deferred { reply: reply.as_bytes() }, START);
            assert_eq!(queue.counts().waiting, count, "each goes by its own retry");
        }
        for _ in 50..100 {
            let dispatch = poll(&mut queue, START).expect("the others are tried");
            deliver(&mut queue, dispatch, START);
        }
        let view = queue.destinations(START).find(|view| view.id == destination).unwrap();
        assert_eq!((view.throttled_until, view.reason, queue.counts().waiting), (None, "", 50));
        assert!(view.window > 4, "it grows with what is delivered: {}", view.window);
        assert_eq!(queue.take_change(), None);
    }
}

#[test]
fn grey_listing_pauses_nobody() {
    let mut queue = queue(DestinationLimits::default());
    for sequence in 0..5 {
        enqueue(&mut queue, sequence, "a.test", START);
    }
    while let Some(dispatch) = poll(&mut queue, START) {
        settle(&mut queue, dispatch, Outcome::Deferred { reply: b"450 4.7.1 <b@a.test>: Greylisted" }, START);
    }
    assert_eq!(queue.counts().waiting, 5);
    enqueue(&mut queue, 9, "a.test", START);
    assert!(poll(&mut queue, START).is_some());
}

#[test]
fn a_next_hop_that_greets_and_breaks_off_is_found_by_its_share_of_failures() {
    let breaker = BreakerSettings { minimum: 10, failure_percent: 60, max_requests: 1, ..BreakerSettings::default() };
    let mut queue = queue(DestinationLimits { breaker, ..DestinationLimits::default() });
    let destination = queue.route(b"a.test");
    for sequence in 0..100 {
        enqueue(&mut queue, sequence, "a.test", START);
    }
    let mut attempts = 0;
    while let Some(dispatch) = poll(&mut queue, START) {
        let host = queue.next_host(destination, &mut HostsTried::default(), START).unwrap();
        queue.host_reached(destination, host, START);
        queue.host_faltered(destination, host, "a.test:25: the connection was lost", START);
        settle(&mut queue, dispatch, Outcome::Deferred { reply: b"421 4.4.2 connection to the next hop lost" }, START);
        attempts += 1;
    }
    assert_eq!(attempts, 10);
    let Wait::BreakerOpen { until } = wait(&queue, destination, START) else { panic!("{:?}", wait(&queue, destination, START)) };
    let Some(Change::Breaker(change)) = queue.take_change() else { panic!("it is told") };
    assert!(!change.was_broken && change.now == Breaker::Open { until });

    // One probe; that it greets is not enough.
    let probe = poll(&mut queue, until).unwrap();
    let host = queue.next_host(destination, &mut HostsTried::default(), until).unwrap();
    queue.host_reached(destination, host, until);
    assert!(poll(&mut queue, until).is_none());
    assert_eq!(wait(&queue, destination, until), Wait::Probing);
    queue.host_served(destination, host, until);
    deliver(&mut queue, probe, until);
    assert!(poll(&mut queue, until).is_some());
    let words: Vec<_> = std::iter::from_fn(|| queue.take_change())
        .map(|change| match change {
            Change::Breaker(change) => change.now.as_str(),
            Change::Throttled(_) => "throttled",
        })
        .collect();
    assert_eq!(words, ["half-open", "closed"]);
}

/// What was settled before the rest was not part of what the end of the attempt was judged by.
#[test]
fn a_store_that_has_taken_it_for_some_is_not_throttled_by_its_word_about_another() {
    let mut queue = queue(DestinationLimits { window_initial: 8, throttle_pause_ms: 10_000, ..DestinationLimits::default() });
    let destination = queue.route(b"a.test");
    let message = NewMessage { id: QueueId { boot: 1, shard: 0, sequence: 1 }, accepted_at: START, ..NewMessage::default() };
    let to = |address| NewRecipient { address, destination, notify: Notify::UNSAID };
    queue.enqueue(&message, [to(b"b@a.test".as_slice()), to(b"c@a.test".as_slice())].into_iter(), START);
    let mut dispatch = poll(&mut queue, START).unwrap();
    let taken = [(0, Outcome::Delivered { reply: b"250 ok" })];
    assert_eq!(queue.settle_some(&mut dispatch, &taken, "", START, &mut Vec::new()), Settled::Outcome);
    assert!(dispatch.has_delivered() && dispatch.recipients() == 1);
    let refused = [(1, Outcome::Deferred { reply: b"421 4.7.0 too many messages" })];
    assert_eq!(queue.settle(dispatch, &refused, START, &mut Vec::new()), Settled::Outcome);
    assert_eq!(queue.destinations(START).find(|view| view.id == destination).unwrap().throttled_until, None);
}

/// Nor what the others were judged by: a store that took a message for one recipient a connection had the rest deferred at the third.
#[test]
fn who_is_not_reached_while_a_store_takes_it_for_others_is_not_deferred() {
    let mut queue = queue(DestinationLimits::default());
    let destination = queue.route(b"a.test");
    let message = NewMessage { id: QueueId { boot: 1, shard: 0, sequence: 1 }, accepted_at: START, ..NewMessage::default() };
    let recipients = (0..8).map(|_| NewRecipient { address: b"b@a.test".as_slice(), destination, notify: Notify::UNSAID });
    let key = queue.enqueue(&message, recipients, START);
    for recipient in 0..7 {
        let mut dispatch = poll(&mut queue, START).expect("the rest goes at once");
        let taken = [(recipient, Outcome::Delivered { reply: b"250 ok" })];
        assert_eq!(queue.settle_some(&mut dispatch, &taken, "", START, &mut Vec::new()), Settled::Outcome);
        queue.recorded(key);
        let untried: Vec<_> = (recipient + 1..8).map(|other| (other, Outcome::Untried { reply: b"" })).collect();
        assert_eq!(queue.settle(dispatch, &untried, START, &mut Vec::new()), Settled::Nothing);
    }
}

#[test]
fn a_destination_that_is_dead_throttled_or_slow_delays_no_other() {
    let mut queue = queue(DestinationLimits::default());
    let (bad, good) = (queue.route(b"a.test"), queue.route(b"b.test"));
    for sequence in 0..1000 {
        enqueue(&mut queue, sequence, "a.test", START);
    }
    let mut held = Vec::new();
    while let Some(dispatch) = poll(&mut queue, START) {
        held.push(dispatch); // Slow: nothing comes of them.
    }
    for sequence in 1000..1100 {
        enqueue(&mut queue, sequence, "b.test", START);
        let dispatch = poll(&mut queue, START).expect("its turn comes at once");
        assert_eq!(dispatch.destination(), good);
        deliver(&mut queue, dispatch, START);
    }
    for dispatch in held {
        let mut tried = HostsTried::default();
        while let Some(host) = queue.next_host(bad, &mut tried, START) {
            queue.host_failed(bad, host, "connect to a.test:25: refused", START);
        }
        let key = dispatch.key();
        assert_eq!(queue.unreachable(dispatch, START, &mut Vec::new()), Settled::Deferral);
        queue.recorded(key);
    }
    for sequence in 2000..2100 {
        enqueue(&mut queue, sequence, "b.test", START);
        let dispatch = poll(&mut queue, START).expect("its turn comes at once");
        assert_eq!(dispatch.destination(), good);
        deliver(&mut queue, dispatch, START);
        assert!(poll(&mut queue, START).is_none());
    }
}

fn enqueue_with(queue: &mut Queue, sequence: u64, priority: u8, now: u64) {
    let id = QueueId { boot: 1, shard: 0, sequence };
    let message = NewMessage { id, size: 10, accepted_at: now, priority, reverse_path: b"s@x.test", ..NewMessage::default() };
    let destination = queue.route(b"a.test");
    queue.enqueue(&message, [NewRecipient { address: b"b@a.test", destination, notify: Notify::UNSAID }].into_iter(), now);
}

#[test]
fn behind_a_hundred_thousand_of_low_priority_a_high_one_leaves_first() {
    let mut queue = queue(DestinationLimits { connections_max: 1, ..DestinationLimits::default() });
    for sequence in 0..100_000 {
        enqueue_with(&mut queue, sequence, 0, START);
    }
    let mut now = START;
    for round in 0..100 {
        let low = poll(&mut queue, now).unwrap();
        enqueue_with(&mut queue, 200_000 + round, 9, now + 1);
        deliver(&mut queue, low, now + 1);
        let next = poll(&mut queue, now + 1).unwrap();
        assert_eq!(queue.envelope(next.key()).unwrap().id.sequence, 200_000 + round);
        deliver(&mut queue, next, now + 1);
        now += 2;
    }
}

#[test]
fn low_priorities_move_on_while_more_comes_of_high_ones_than_can_leave() {
    let mut queue = queue(DestinationLimits { connections_max: 1, ..DestinationLimits::default() });
    for sequence in 0..1000 {
        enqueue_with(&mut queue, sequence, 0, START);
    }
    // Ten leave a second; ten of the highest priority come in the same time.
    let (mut now, mut low_sent, mut since) = (START, 0, Vec::new());
    for tick in 0..20_000_u64 {
        enqueue_with(&mut queue, 10_000 + tick, 9, now);
        let next = poll(&mut queue, now).unwrap();
        if queue.envelope(next.key()).unwrap().id.sequence < 10_000 {
            low_sent += 1;
            since.push(now - START);
        }
        deliver(&mut queue, next, now);
        now += 100;
    }
    assert_eq!(low_sent, 1000, "all of them within half an hour");
    assert!((269_000..=272_000).contains(&since[0]), "nine steps of thirty seconds: {}", since[0]);
}
