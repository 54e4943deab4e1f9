//! What a shard has to deliver that goes: neither mail for dead destinations nor a lot for a slow one makes it busy.

use ringpost_queue::{
    BACKLOG_PER_DESTINATION_MAX, Backlog, BacklogWalk, DestinationLimits, Dispatch, Homes, HostsTried, Lookup, NewMessage, NewRecipient,
    Notify, Outcome, Queue, QueueId, QueueSettings, READY_PER_DESTINATION_MAX, Rate, Resolution, RetryPolicy, Route, Routes, Via, Work,
};

const START: u64 = 1_790_000_000_000;
/// More than any destination counts.
const MANY: u64 = 1200;

fn queue(homes: Homes, routes: Vec<(&str, Via, DestinationLimits)>) -> Queue {
    let route = |(pattern, via, limits): (&str, Via, _)| Route { pattern: pattern.into(), via, retry: RetryPolicy::default(), limits };
    let routes = Routes::new(routes.into_iter().map(route).collect()).unwrap();
    Queue::new(QueueSettings { homes, ..QueueSettings::default() }, routes, 1, START)
}

fn smarthost() -> Via {
    Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] }
}

fn limits() -> DestinationLimits {
    DestinationLimits { connections_max: 2, window_initial: 2, ..DestinationLimits::default() }
}

fn enqueue(queue: &mut Queue, domain: &str, count: u64) {
    for _ in 0..count {
        let id = QueueId { boot: 1, shard: 0, sequence: queue.len() as u64 };
        let message = NewMessage { id, size: 10, accepted_at: START, reverse_path: b"s@x.test", ..NewMessage::default() };
        let (destination, address) = (queue.route(domain.as_bytes()), format!("b@{domain}"));
        let recipient = NewRecipient { address: address.as_bytes(), destination, notify: Notify::UNSAID };
        queue.enqueue(&message, [recipient].into_iter(), START);
    }
}

fn backlog(queue: &Queue) -> Backlog {
    let mut walk = BacklogWalk::default();
    (0..10_000).find_map(|_| queue.backlog(&mut walk, START)).expect("it comes to an end")
}

fn work(queue: &mut Queue) -> (Vec<Dispatch>, Vec<Lookup>) {
    let (mut attempts, mut lookups) = (Vec::new(), Vec::new());
    while let Some(work) = queue.poll(START, &mut Vec::new()) {
        match work {
            Work::Attempt(dispatch) => attempts.push(dispatch),
            Work::Resolve(lookup) => lookups.push(lookup),
            other => panic!("nothing else is to be done: {other:?}"),
        }
    }
    (attempts, lookups)
}

/// No host answers any attempt, until none is made.
fn die(queue: &mut Queue) {
    for _ in 0..100 {
        let (attempts, _) = work(queue);
        if attempts.is_empty() {
            return;
        }
        for dispatch in attempts {
            let mut tried = HostsTried::default();
            while let Some(host) = queue.next_host(dispatch.destination(), &mut tried, START) {
                queue.host_failed(dispatch.destination(), host, "refused", START);
            }
            let key = dispatch.key();
            let _ = queue.unreachable(dispatch, START, &mut Vec::new());
            queue.recorded(key);
        }
    }
    panic!("the breaker never opens");
}

fn resolve(queue: &mut Queue, lookups: &[Lookup], key: &str, host: &str) {
    for Lookup { asking, .. } in lookups {
        let hosts = vec![host.parse().unwrap()];
        queue.resolved(
            *asking,
            &Resolution::Site { key: key.into(), name: key.into(), hosts, is_whole: true, until: START + 60_000 },
            START,
        );
    }
}

#[test]
fn what_cannot_go_counts_for_nothing() {
    let routes = ["dead.test", "paused.test", "full.test", "*"].map(|pattern| (pattern, smarthost(), limits()));
    let mut queue = queue(Homes::default(), routes.into_iter().chain([("held.test", Via::Hold, limits())]).collect());
    enqueue(&mut queue, "dead.test", MANY);
    die(&mut queue);
    assert!(queue.counts().ready > 1000, "its mail stays ready");
    enqueue(&mut queue, "held.test", MANY);
    let paused = queue.route(b"paused.test");
    queue.pause(paused, true, START);
    enqueue(&mut queue, "paused.test", MANY);
    enqueue(&mut queue, "full.test", MANY);
    // All that is tried is asked to come later.
    for _ in 0..100 {
        for dispatch in work(&mut queue).0 {
            let deferred = Outcome::Deferred { reply: b"421 4.7.0 too much" };
            let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, deferred)).collect();
            let key = dispatch.key();
            let _ = queue.settle(dispatch, &outcomes, START, &mut Vec::new());
            queue.recorded(key);
        }
    }
    assert_eq!(backlog(&queue), Backlog::default(), "dead, held, paused, throttled");
    enqueue(&mut queue, "good.test", 20);
    assert_eq!(backlog(&queue), Backlog { ready: 20, in_turn: 20 });
    queue.pause(paused, false, START);
    assert_eq!(backlog(&queue), Backlog { ready: MANY + 20, in_turn: BACKLOG_PER_DESTINATION_MAX + 20 });
}

#[test]
fn a_slow_destination_counts_in_part_and_so_does_one_that_waits_for_its_rate() {
    let rate = Some(Rate { messages: 1, per_ms: 1000, burst: 1 });
    let rated = DestinationLimits { rate, ..limits() };
    let mut queue = queue(Homes::default(), vec![("rate.test", smarthost(), rated), ("*", smarthost(), limits())]);
    enqueue(&mut queue, "slow.test", MANY);
    enqueue(&mut queue, "rate.test", MANY);
    let (open, _) = work(&mut queue);
    assert_eq!(open.len(), 3);
    assert_eq!(backlog(&queue), Backlog { ready: MANY - 2 + BACKLOG_PER_DESTINATION_MAX, in_turn: BACKLOG_PER_DESTINATION_MAX });
}

#[test]
fn shards_share_what_one_destination_counts() {
    let homes = Homes { shard: 0, shards: 64 };
    let mut queue = queue(homes, vec![("*", Via::Discard, limits())]);
    enqueue(&mut queue, "slow.test", MANY);
    assert_eq!(backlog(&queue), Backlog { ready: READY_PER_DESTINATION_MAX / 64, in_turn: BACKLOG_PER_DESTINATION_MAX / 64 });
}

/// A slow destination's mail counted in full: thousands of messages for one such filled all that a node takes over of others' mail, for
/// any destination.
#[test]
fn a_destination_with_thousands_of_messages_takes_a_part_of_what_a_node_takes() {
    let mut queue = queue(Homes::default(), vec![("slow.test", smarthost(), limits()), ("*", Via::Discard, limits())]);
    enqueue(&mut queue, "slow.test", 10_000);
    enqueue(&mut queue, "quick.test", 20);
    let both = Backlog { ready: READY_PER_DESTINATION_MAX + 20, in_turn: BACKLOG_PER_DESTINATION_MAX + 20 };
    assert_eq!(backlog(&queue), both);
}

#[test]
fn domains_with_the_same_hosts_are_one_destination() {
    let mut queue = queue(Homes::default(), vec![("*", Via::Mx { port: 25 }, limits())]);
    for domain in 0..30 {
        enqueue(&mut queue, &format!("d{domain}.test"), 20);
    }
    let (_, lookups) = work(&mut queue);
    assert_eq!(backlog(&queue), Backlog { ready: 600, in_turn: 0 }, "DNS is asked");
    resolve(&mut queue, &lookups, "one", "192.0.2.1:25");
    assert_eq!(backlog(&queue), Backlog { ready: 600, in_turn: BACKLOG_PER_DESTINATION_MAX });
    die(&mut queue);
    assert_eq!(backlog(&queue), Backlog::default(), "their hosts are dead");
    enqueue(&mut queue, "other.test", 20);
    let (_, lookups) = work(&mut queue);
    resolve(&mut queue, &lookups, "two", "192.0.2.2:25");
    assert_eq!(backlog(&queue), Backlog { ready: 20, in_turn: 20 });
    enqueue(&mut queue, "broken.test", MANY);
    let (_, lookups) = work(&mut queue);
    for lookup in &lookups {
        queue.resolved(lookup.asking, &Resolution::Unanswered { reason: "SERVFAIL".into(), turns: 0 }, START);
    }
    // One attempt tells the mail of it.
    die(&mut queue);
    assert_eq!(backlog(&queue), Backlog { ready: 18, in_turn: 18 }, "two are being tried");
}

#[test]
fn a_walk_over_many_destinations_lets_others_go_first() {
    let mut queue = queue(Homes::default(), vec![("*", Via::Mx { port: 25 }, limits())]);
    for domain in 0..10_000 {
        enqueue(&mut queue, &format!("d{domain}.test"), 1);
    }
    let mut walk = BacklogWalk::default();
    assert_eq!(queue.backlog(&mut walk, START), None);
    let (_, lookups) = work(&mut queue);
    resolve(&mut queue, &lookups, "one", "192.0.2.1:25");
    assert_eq!(backlog(&queue), Backlog { ready: READY_PER_DESTINATION_MAX, in_turn: BACKLOG_PER_DESTINATION_MAX });
}
