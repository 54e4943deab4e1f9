//! When mail may go: windows, dead hosts, fail-over, revival, holds by route, priorities.

use ringpost_queue::{
    Breaker, DestinationId, DestinationLimits, Dispatch, HostIndex, HostsTried, NewMessage, NewRecipient, NextHop, Notify, Outcome, Queue,
    QueueId, QueueSettings, RetryPolicy, Route, Routes, Settled, State, Via, Work,
};

const START: u64 = 1_790_000_000_000;

fn queue(via: Via) -> Queue {
    let route = Route { pattern: "*".into(), via, retry: RetryPolicy::default(), limits: DestinationLimits::default() };
    Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START)
}

/// In order of preference.
fn next_hops(hosts: &[&str]) -> Vec<NextHop> {
    (0..).zip(hosts).map(|(preference, host)| NextHop { preference, ..host.parse().unwrap() }).collect()
}

fn smarthost(hosts: &[&str]) -> Queue {
    queue(Via::Smarthost { hosts: next_hops(hosts) })
}

fn enqueue(queue: &mut Queue, sequence: u64, priority: u8, now: u64) {
    let id = QueueId { boot: 1, shard: 0, sequence };
    let message = NewMessage {
        id,
        size: 10,
        accepted_at: now,
        expires_at: None,
        priority,
        eight_bit: false,
        smtputf8: false,
        reverse_path: b"s@x.test",
        ..NewMessage::default()
    };
    let destination = queue.route(b"y.test");
    queue.enqueue(&message, [NewRecipient { address: b"b@y.test", destination, notify: Notify::UNSAID }].into_iter(), now);
}

fn poll(queue: &mut Queue, now: u64) -> Option<Dispatch> {
    match queue.poll(now, &mut Vec::new())? {
        Work::Attempt(dispatch) => Some(dispatch),
        Work::Expired(..) | Work::Report(_) | Work::Resolve(_) | Work::Reserve(_) | Work::Overdue(_) => {
            panic!("nothing is that old, or looked up")
        }
    }
}

fn poll_all(queue: &mut Queue, now: u64) -> Vec<Dispatch> {
    std::iter::from_fn(|| poll(queue, now)).collect()
}

fn deliver(queue: &mut Queue, dispatch: Dispatch, now: u64) {
    let key = dispatch.key();
    let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Delivered { reply: b"250 ok" })).collect();
    assert_eq!(queue.settle(dispatch, &outcomes, now, &mut Vec::new()), Settled::Done);
    queue.recorded(key);
}

/// Sleeps as the queue says until it has an attempt, and returns the time.
fn sleep(queue: &mut Queue, now: &mut u64) -> Dispatch {
    let mut visits = 0;
    loop {
        if let Some(dispatch) = poll(queue, *now) {
            assert!(visits < 12, "few visits per event");
            return dispatch;
        }
        let at = queue.next_due(*now).expect("it waits for something");
        assert!(at > *now, "no spinning");
        *now = at;
        visits += 1;
    }
}

/// Tries the hosts of an attempt in turn; `answers` says which do.
fn connect(queue: &mut Queue, dispatch: Dispatch, answers: impl Fn(&str) -> bool, now: u64) -> Result<(Dispatch, HostIndex), Vec<String>> {
    let (destination, mut tried, mut failed) = (dispatch.destination(), HostsTried::default(), Vec::new());
    while let Some(host) = queue.next_host(destination, &mut tried, now) {
        let address = queue.host_address(destination, host).unwrap().name.clone();
        if answers(&address) {
            queue.host_reached(destination, host, now);
            return Ok((dispatch, host));
        }
        queue.host_failed(destination, host, &format!("connect to {address}: refused"), now);
        failed.push(address);
    }
    if !queue.ends_round(destination, tried, now) {
        assert_eq!(queue.abandon(dispatch, now), Settled::Nothing);
        return Err(failed);
    }
    let key = dispatch.key();
    assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Deferral);
    queue.recorded(key);
    Err(failed)
}

/// Each of the addresses came to its next probe at a time of its own, and each probe was an attempt: 33 of them within 17 seconds.
#[test]
fn many_dead_addresses_are_one_attempt_for_each_round_of_them() {
    let hosts: Vec<String> = (1..=8).map(|number| format!("192.0.2.{number}:25")).collect();
    let mut queue = queue(Via::Smarthost { hosts: hosts.iter().map(|host| host.parse().unwrap()).collect() });
    enqueue(&mut queue, 1, 5, START);
    let (mut now, mut probes, mut dispatches) = (START, 0, 0);
    let attempts = |queue: &Queue| {
        let mut attempts = 0;
        let page = queue.destinations(START).flat_map(|destination| queue.messages_of(destination.id));
        page.for_each(|key| attempts = queue.show(key).unwrap().recipients().next().unwrap().attempts());
        attempts
    };
    while now < START + 17_000 {
        let dispatch = sleep(&mut queue, &mut now);
        probes += connect(&mut queue, dispatch, |_| false, now).unwrap_err().len();
        dispatches += 1;
        if dispatches == 1 {
            assert_eq!((probes, attempts(&queue)), (8, 1), "all were tried");
        }
    }
    assert!(dispatches > 25 && probes >= dispatches, "{dispatches} dispatches, {probes} probes");
    assert!((4..=6).contains(&attempts(&queue)), "{} attempts for {probes} probes of 8 hosts", attempts(&queue));
}

#[test]
fn the_window_begins_at_five_and_grows_with_deliveries_up_to_the_connection_limit() {
    let mut queue = smarthost(&["192.0.2.1:25"]);
    for sequence in 0..500 {
        enqueue(&mut queue, sequence, 5, START);
    }
    let mut open = poll_all(&mut queue, START);
    assert_eq!(open.len(), 5);
    let mut widest = 0;
    while let Some(dispatch) = open.pop() {
        deliver(&mut queue, dispatch, START);
        open.extend(poll_all(&mut queue, START));
        assert!(open.len() <= 20);
        widest = open.len().max(widest);
    }
    assert_eq!(widest, 20);
    assert!(queue.is_empty());
}

#[test]
fn chained_attempts_use_no_place_of_the_window_and_give_none_away() {
    let mut queue = smarthost(&["192.0.2.1:25"]);
    for sequence in 0..100 {
        enqueue(&mut queue, sequence, 5, START);
    }
    let mut open: Vec<(Dispatch, Option<Dispatch>)> = poll_all(&mut queue, START).into_iter().map(|dispatch| (dispatch, None)).collect();
    assert_eq!(open.len(), 5);
    let mut most = 0;
    while let Some((dispatch, behind)) = open.pop() {
        let behind = behind.or_else(|| queue.poll_behind(&dispatch, START));
        let settled = queue.settle(dispatch, &[(0, Outcome::Deferred { reply: b"450 x" })], START, &mut Vec::new());
        assert_eq!(settled, Settled::Outcome);
        if let Some(behind) = behind {
            open.insert(0, (behind, None));
        }
        open.extend(poll_all(&mut queue, START).into_iter().map(|dispatch| (dispatch, None)));
        most = most.max(open.len());
    }
    assert_eq!(most, 5, "without a delivery the window stays");
    assert_eq!(queue.counts().waiting, 100);
}

#[test]
fn a_dead_next_hop_costs_one_probe_per_dead_time_and_what_waits_goes_at_once_when_it_is_back() {
    let mut queue = smarthost(&["127.0.0.1:2600"]);
    for sequence in 0..1000 {
        enqueue(&mut queue, sequence, 5, START);
    }
    let mut now = START;
    let open = poll_all(&mut queue, now);
    assert_eq!(open.len(), 5);
    for dispatch in open {
        connect(&mut queue, dispatch, |_| false, now).unwrap_err();
    }
    // One failed cohort, and it is dead: nothing more is tried, whatever comes.
    assert!(poll(&mut queue, now).is_none());
    enqueue(&mut queue, 5000, 9, now);
    assert!(poll(&mut queue, now).is_none());
    let view = queue.destinations(now).nth(1).unwrap();
    assert!(matches!(view.breaker, Breaker::Open { .. }));
    assert_eq!(view.reason, "connect to 127.0.0.1:2600: refused");
    let message = queue.show(queue.key_of(QueueId { boot: 1, shard: 0, sequence: 5000 }).unwrap()).unwrap();
    let waiting = message.recipients().next().unwrap();
    assert_eq!((waiting.state(), waiting.reason(now).as_ref()), (State::Ready, "connect to 127.0.0.1:2600: refused"));
    assert!(waiting.next_attempt(now).unwrap() > now);

    let mut gaps = Vec::new();
    while now < START + 3_600_000 {
        let before = now;
        let probe = sleep(&mut queue, &mut now);
        gaps.push(now - before);
        assert!(poll(&mut queue, now).is_none(), "one probe");
        connect(&mut queue, probe, |_| false, now).unwrap_err();
    }
    assert!((800..=1200).contains(&gaps[0]), "{gaps:?}");
    assert!((12..30).contains(&gaps.len()), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= 360_000));

    // Back: the probe succeeds, and the rest goes without waiting for its delivery.
    let probe = sleep(&mut queue, &mut now);
    let (probe, _) = connect(&mut queue, probe, |_| true, now).unwrap();
    assert_eq!(poll_all(&mut queue, now).len(), 4);
    deliver(&mut queue, probe, now);
    assert_eq!(queue.destinations(now).nth(1).unwrap().breaker, Breaker::Closed);
    assert_eq!(queue.destinations(now).nth(1).unwrap().reason, "");
}

#[test]
fn a_next_hop_that_is_away_for_ten_seconds_is_used_again_within_ten_more() {
    let mut queue = smarthost(&["192.0.2.1:25"]);
    enqueue(&mut queue, 1, 5, START);
    let mut now = START;
    loop {
        if let Some(dispatch) = poll(&mut queue, now) {
            match connect(&mut queue, dispatch, |_| now >= START + 10_000, now) {
                Ok((dispatch, _)) => break deliver(&mut queue, dispatch, now),
                Err(_) => continue,
            }
        }
        now = queue.next_due(now).unwrap();
    }
    assert!(now <= START + 20_000, "{}", now - START);
}

#[test]
fn one_failed_connection_among_good_ones_kills_nothing() {
    let mut queue = smarthost(&["192.0.2.1:25"]);
    for sequence in 0..50 {
        enqueue(&mut queue, sequence, 5, START);
    }
    let mut open = poll_all(&mut queue, START);
    connect(&mut queue, open.pop().unwrap(), |_| false, START).unwrap_err();
    assert_eq!(queue.destinations(START).nth(1).unwrap().breaker, Breaker::Closed);
    assert!(poll_all(&mut queue, START).is_empty(), "until the cohort is decided the window shrinks with it");
    for dispatch in open {
        deliver(&mut queue, dispatch, START);
    }
    assert!(poll_all(&mut queue, START).len() >= 4);
}

#[test]
fn mail_fails_over_to_the_next_host_and_returns_to_the_first() {
    let mut queue = smarthost(&["192.0.2.1:25", "192.0.2.2:25"]);
    let mut now = START;
    let mut used = Vec::new();
    for sequence in 0..60 {
        enqueue(&mut queue, sequence, 5, now);
        let dispatch = poll(&mut queue, now).expect("a live host is left");
        let first_lives = now >= START + 20_000;
        let (dispatch, host) = connect(&mut queue, dispatch, |address| address != "192.0.2.1:25" || first_lives, now).unwrap();
        used.push(host.position());
        deliver(&mut queue, dispatch, now);
        now += 1000;
    }
    assert!(used[..20].iter().all(|host| *host == 1));
    let back = used.iter().position(|host| *host == 0).expect("it returns");
    assert!(back < 45, "{used:?}");
    assert!(used[back..].iter().all(|host| *host == 0));
}

#[test]
fn a_driver_that_cannot_connect_does_not_spin() {
    let mut queue = smarthost(&["192.0.2.1:25"]);
    enqueue(&mut queue, 1, 5, START);
    let mut now = START;
    for attempt in 0..20 {
        let before = now;
        let dispatch = sleep(&mut queue, &mut now);
        assert!(attempt == 0 || now >= before + 1000);
        assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Deferral);
    }
    // Probes that end without a word neither spin nor block.
    let dispatch = sleep(&mut queue, &mut now);
    connect(&mut queue, dispatch, |_| false, now).unwrap_err();
    for _ in 0..20 {
        let before = now;
        let dispatch = sleep(&mut queue, &mut now);
        assert!((800..=1200).contains(&(now - before)));
        queue.next_host(dispatch.destination(), &mut HostsTried::default(), now);
        assert_eq!(queue.abandon(dispatch, now), Settled::Nothing);
    }
}

#[test]
fn recipients_that_were_never_tried_go_again_at_once_but_not_for_ever() {
    let mut queue = smarthost(&["192.0.2.1:25"]);
    enqueue(&mut queue, 1, 5, START);
    for attempt in 1..=3 {
        let dispatch = poll(&mut queue, START).unwrap();
        let settled = queue.settle(dispatch, &[], START, &mut Vec::new());
        assert_eq!(settled, if attempt < 3 { Settled::Nothing } else { Settled::Outcome });
    }
    assert!(poll(&mut queue, START).is_none());
    assert_eq!(queue.counts().waiting, 1);
}

#[test]
fn mail_for_a_hold_route_or_none_waits_without_a_timer() {
    let mut queue = queue(Via::Hold);
    enqueue(&mut queue, 1, 5, START);
    assert!(poll(&mut queue, START).is_none());
    assert_eq!(queue.next_due(START), None);
    assert!(poll(&mut queue, START + 10 * 24 * 3_600_000).is_none(), "held mail does not expire");
    let message = queue.show(queue.key_of(QueueId { boot: 1, shard: 0, sequence: 1 }).unwrap()).unwrap();
    assert_eq!(message.recipients().next().unwrap().reason(START), "held by route \"*\"");

    let mut queue = Queue::new(QueueSettings::default(), Routes::default(), 1, START);
    assert_eq!(queue.route(b"y.test"), DestinationId::UNROUTED);
    enqueue(&mut queue, 1, 5, START);
    assert!(poll(&mut queue, START).is_none());
    let message = queue.show(queue.key_of(QueueId { boot: 1, shard: 0, sequence: 1 }).unwrap()).unwrap();
    let recipient = message.recipients().next().unwrap();
    let reason = recipient.reason(START);
    assert!(reason.starts_with("no route of the config is for it") && reason.contains("`queue reroute`"), "{reason}");
    assert_eq!(recipient.word(START), ("451 4.4.4 no route for this domain".into(), None), "what its sender is told");
}

#[test]
fn a_paused_destination_starts_nothing_until_it_is_resumed() {
    let mut queue = smarthost(&["192.0.2.1:25"]);
    let destination = queue.route(b"y.test");
    queue.pause(destination, true, START);
    enqueue(&mut queue, 1, 5, START);
    assert!(poll(&mut queue, START).is_none());
    queue.pause(destination, false, START);
    assert!(poll(&mut queue, START).is_some());
}

#[test]
fn higher_priorities_go_first_and_lower_ones_age() {
    let route = Route {
        pattern: "*".into(),
        via: Via::Smarthost { hosts: next_hops(&["192.0.2.1:25"]) },
        retry: RetryPolicy::default(),
        limits: DestinationLimits { connections_max: 1, ..DestinationLimits::default() },
    };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START);
    enqueue(&mut queue, 0, 0, START);
    // One urgent message arrives per 100 ms and one is sent: the low one waits, but at most nine steps of 30 s.
    let mut waited = None;
    for tick in 1..10_000u64 {
        let now = START + tick * 100;
        enqueue(&mut queue, tick, 9, now);
        let dispatch = poll(&mut queue, now).unwrap();
        if queue.envelope(dispatch.key()).unwrap().id.sequence == 0 {
            waited = Some(now - START);
            break;
        }
        deliver(&mut queue, dispatch, now);
    }
    let waited = waited.expect("it does not starve");
    assert!((265_000..=271_000).contains(&waited), "{waited}");
}

/// Each host that was tried meanwhile counted as one that does not answer, and was left alone for minutes when there were descriptors again.
#[test]
fn a_shortage_here_breaks_no_host_and_ends_with_the_next_connection() {
    let mut queue = smarthost(&["192.0.2.1:25", "192.0.2.2:25"]);
    enqueue(&mut queue, 1, 0, START);
    let destination = queue.route(b"y.test");
    let mut now = START;
    for second in 0..20 {
        let dispatch = sleep(&mut queue, &mut now);
        assert_eq!(now, START + second * 1000, "it is tried each second");
        let mut tried = HostsTried::default();
        assert!(queue.next_host(destination, &mut tried, now).is_some());
        queue.shortage(destination, "connect to 192.0.2.1:25: Too many open files (os error 24)", now);
        let _ = queue.unreachable(dispatch, now, &mut Vec::new());
        assert!(poll(&mut queue, now).is_none());
        let view = queue.destination(destination, now).unwrap();
        assert_eq!((view.breaker, view.is_short, view.wait.as_str()), (Breaker::Closed, true, "shortage"));
        assert!(view.reason.contains("Too many open files"));
    }
    let dispatch = sleep(&mut queue, &mut now);
    let host = queue.next_host(destination, &mut HostsTried::default(), now).unwrap();
    queue.host_reached(destination, host, now);
    let view = queue.destination(destination, now).unwrap();
    assert_eq!((view.reason, view.is_short), ("", false));
    deliver(&mut queue, dispatch, now);
}
