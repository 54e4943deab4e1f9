//! Routes by mx: domains have destinations of their own, wait for DNS, share sites, move when DNS says so, and are dropped.

mod refusals;
mod turns;

use ringpost_queue::{
    DestinationLimits, Dispatch, HostsTried, Lookup, NewMessage, NewRecipient, NextHop, Notify, Outcome, Question, Queue, QueueId,
    QueueSettings, Resolution, RetryPolicy, Route, Routes, Settled, State, Verdict, Via, Wait, Work,
};

const START: u64 = 1_790_000_000_000;
const MINUTE: u64 = 60_000;

fn queue() -> Queue {
    let route = Route {
        pattern: "*".into(),
        via: Via::Mx { port: 25 },
        retry: RetryPolicy::default(),
        limits: DestinationLimits { connections_max: 2, window_initial: 2, ..DestinationLimits::default() },
    };
    Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START)
}

fn enqueue(queue: &mut Queue, sequence: u64, priority: u8, recipients: &[&str], now: u64) {
    let message = NewMessage {
        id: QueueId { boot: 1, shard: 0, sequence },
        size: 10,
        accepted_at: now,
        priority,
        reverse_path: b"s@x.test",
        ..NewMessage::default()
    };
    let recipients: Vec<_> = recipients
        .iter()
        .map(|address| NewRecipient {
            address: address.as_bytes(),
            destination: queue.route(address.split_once('@').unwrap().1.as_bytes()),
            notify: Notify::UNSAID,
        })
        .collect();
    queue.enqueue(&message, recipients.into_iter(), now);
}

fn site(key: &str, hosts: &[&str], until: u64) -> Resolution {
    let hosts: Vec<NextHop> = hosts.iter().map(|host| host.parse().unwrap()).collect();
    Resolution::Site { key: key.into(), name: hosts[0].name.clone(), hosts, is_whole: true, until }
}

fn work(queue: &mut Queue, now: u64) -> (Vec<Dispatch>, Vec<Lookup>) {
    let (mut attempts, mut lookups) = (Vec::new(), Vec::new());
    while let Some(work) = queue.poll(now, &mut Vec::new()) {
        match work {
            Work::Attempt(dispatch) => attempts.push(dispatch),
            Work::Resolve(lookup) => lookups.push(lookup),
            Work::Expired(..) | Work::Report(_) | Work::Reserve(_) | Work::Overdue(_) => {
                panic!("nothing is that old, and no limit is shared")
            }
        }
    }
    (attempts, lookups)
}

fn deliver(queue: &mut Queue, dispatch: Dispatch, now: u64) {
    let key = dispatch.key();
    let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Delivered { reply: b"250 ok" })).collect();
    if queue.settle(dispatch, &outcomes, now, &mut Vec::new()) != Settled::Nothing {
        queue.recorded(key);
    }
}

fn sequence(queue: &Queue, dispatch: &Dispatch) -> u64 {
    queue.envelope(dispatch.key()).unwrap().id.sequence
}

fn reason(queue: &Queue, sequence: u64, now: u64) -> String {
    let view = queue.show(queue.key_of(QueueId { boot: 1, shard: 0, sequence }).unwrap()).unwrap();
    view.recipients().next().unwrap().reason(now).into_owned()
}

/// What a report says of it, and whose word that is.
fn word(queue: &Queue, sequence: u64, now: u64) -> (String, Option<String>) {
    let view = queue.show(queue.key_of(QueueId { boot: 1, shard: 0, sequence }).unwrap()).unwrap();
    let (text, relay) = view.recipients().next().unwrap().word(now);
    (text.into_owned(), relay.map(|relay| relay.into_owned()))
}

#[test]
fn a_domain_is_asked_about_once_and_its_mail_waits_visibly() {
    let mut queue = queue();
    for sequence in 0..5 {
        enqueue(&mut queue, sequence, 5, &["a@Example.ORG"], START);
    }
    enqueue(&mut queue, 9, 5, &["b@other.test"], START);
    let (attempts, lookups) = work(&mut queue, START);
    assert!(attempts.is_empty());
    let asked: Vec<_> = lookups.iter().map(|lookup| lookup.question.clone()).collect();
    let mx = |domain: &str| Question::Mx { domain: domain.into(), port: 25, turn: 0 };
    assert_eq!(asked, [mx("example.org"), mx("other.test")]);
    assert_eq!(reason(&queue, 0, START), "waits for DNS of example.org");
    // The other domain's answer serves its mail, whatever the first one's does.
    queue.resolved(lookups[1].asking, &site("o", &["192.0.2.9:25"], START + MINUTE), START);
    assert_eq!(work(&mut queue, START).0.len(), 1);
    queue.resolved(lookups[0].asking, &site("e", &["192.0.2.1:25"], START + MINUTE), START);
    assert_eq!(work(&mut queue, START).0.len(), 2, "the window of the site");
}

/// It was said to wait for DNS, which nobody was asking.
#[test]
fn mail_that_waits_for_its_next_attempt_does_not_wait_for_dns() {
    let mut queue = queue();
    enqueue(&mut queue, 0, 5, &["a@y.test"], START);
    let destination = queue.route(b"y.test");
    let wait = |queue: &Queue, now: u64| queue.destination(destination, now).unwrap().wait;
    assert_eq!(wait(&queue, START), Wait::Asking, "it is about to be asked");
    let (_, lookups) = work(&mut queue, START);
    assert_eq!(wait(&queue, START), Wait::Asking);
    queue.resolved(lookups[0].asking, &site("y", &["192.0.2.1:25"], START + MINUTE), START);
    let (attempts, _) = work(&mut queue, START);
    for dispatch in attempts {
        let key = dispatch.key();
        let settled = queue.settle(dispatch, &[(0, Outcome::Deferred { reply: b"450 busy" })], START, &mut Vec::new());
        assert_eq!(settled, Settled::Outcome);
        queue.recorded(key);
    }
    for now in [START, START + MINUTE, START + MINUTE + 1] {
        assert_eq!(wait(&queue, now), Wait::Turn, "{}", now - START);
    }
}

#[test]
fn domains_with_the_same_mx_set_share_window_hosts_and_turns() {
    let mut queue = queue();
    for sequence in 0..6 {
        enqueue(&mut queue, sequence, 5, &["a@one.test"], START);
    }
    enqueue(&mut queue, 10, 5, &["a@two.test"], START);
    enqueue(&mut queue, 11, 9, &["a@three.test"], START);
    let (_, lookups) = work(&mut queue, START);
    for lookup in &lookups {
        queue.resolved(lookup.asking, &site("10 mx", &["192.0.2.1:25"], START + MINUTE), START);
    }
    let (mut open, _) = work(&mut queue, START);
    assert_eq!(open.len(), 2, "two connections in all");
    assert!(open.iter().all(|dispatch| dispatch.destination() == open[0].destination()));
    let mut order = Vec::new();
    while !open.is_empty() {
        let dispatch = open.remove(0);
        order.push(sequence(&queue, &dispatch));
        deliver(&mut queue, dispatch, START);
        open.extend(work(&mut queue, START).0);
    }
    let at = |wanted| order.iter().position(|sequence| *sequence == wanted).unwrap();
    assert!(at(11) < 2, "the high priority of another domain goes first: {order:?}");
    assert!(at(10) < 5, "a domain with one message does not wait for all of another's: {order:?}");
    assert_eq!(order.len(), 8);
}

#[test]
fn mail_of_a_domain_whose_mx_set_changed_goes_to_the_new_site_even_when_the_old_one_is_dead() {
    let mut queue = queue();
    for sequence in 0..10 {
        enqueue(&mut queue, sequence, 5, &["a@one.test"], START);
    }
    let (_, lookups) = work(&mut queue, START);
    queue.resolved(lookups[0].asking, &site("old", &["192.0.2.1:25"], START + MINUTE), START);
    let mut now = START;
    loop {
        let (attempts, lookups) = work(&mut queue, now);
        for dispatch in attempts {
            let (destination, mut tried) = (dispatch.destination(), HostsTried::default());
            while let Some(host) = queue.next_host(destination, &mut tried, now) {
                queue.host_failed(destination, host, "connect: refused", now);
            }
            let key = dispatch.key();
            assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Deferral);
            queue.recorded(key);
        }
        if let Some(lookup) = lookups.first() {
            assert_eq!(now, START + MINUTE, "when the answer is old");
            queue.resolved(lookup.asking, &site("new", &["192.0.2.2:25"], now + MINUTE), now);
            break;
        }
        now = queue.next_due(now).unwrap();
    }
    let mut delivered = 0;
    loop {
        let (attempts, _) = work(&mut queue, now);
        if attempts.is_empty() {
            break;
        }
        for dispatch in attempts {
            assert_eq!(queue.hosts(dispatch.destination()).next().unwrap().name, "192.0.2.2:25");
            deliver(&mut queue, dispatch, now);
            delivered += 1;
        }
    }
    assert_eq!(delivered, 10);
}

#[test]
fn an_old_answer_is_asked_for_again_before_the_next_attempt_and_not_before() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@one.test"], START);
    let (_, lookups) = work(&mut queue, START);
    queue.resolved(lookups[0].asking, &site("s", &["192.0.2.1:25"], START + MINUTE), START);
    let (mut attempts, _) = work(&mut queue, START);
    let settled = queue.settle(attempts.pop().unwrap(), &[(0, Outcome::Deferred { reply: b"450 busy" })], START, &mut Vec::new());
    assert_eq!(settled, Settled::Outcome);
    queue.recorded(queue.key_of(QueueId { boot: 1, shard: 0, sequence: 1 }).unwrap());
    let due = queue.next_due(START + 2 * MINUTE).unwrap();
    let mut now = due;
    let lookups = loop {
        assert!(now < START + 10 * MINUTE);
        let (attempts, lookups) = work(&mut queue, now);
        assert!(attempts.is_empty(), "not with an old answer");
        if !lookups.is_empty() {
            break lookups;
        }
        now = queue.next_due(now).unwrap();
    };
    assert!(now >= START + 4 * MINUTE, "mail that waits for its time asks nobody");
    queue.resolved(lookups[0].asking, &site("s", &["192.0.2.1:25"], now + MINUTE), now);
    assert_eq!(work(&mut queue, now).0.len(), 1);
}

#[test]
fn without_an_answer_one_attempt_tells_so_and_the_question_comes_again_after_a_back_off() {
    let mut queue = queue();
    for sequence in 0..100 {
        enqueue(&mut queue, sequence, 5, &["a@broken.test"], START);
    }
    let mut now = START;
    let mut questions = Vec::new();
    let mut told = 0;
    while now < START + 60 * MINUTE {
        let (attempts, lookups) = work(&mut queue, now);
        for dispatch in attempts {
            assert_eq!(queue.verdict(&dispatch), Some(Verdict::Unanswered));
            told += 1;
            let key = dispatch.key();
            assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Deferral);
            queue.recorded(key);
            assert_eq!(reason(&queue, 7, now), "MX of broken.test: SERVFAIL");
            assert_eq!(word(&queue, 7, now), ("451 4.4.3 MX of broken.test: SERVFAIL".into(), None));
        }
        for lookup in lookups {
            questions.push(now);
            queue.resolved(lookup.asking, &Resolution::Unanswered { reason: "MX of broken.test: SERVFAIL".into(), turns: 0 }, now);
        }
        now = queue.next_due(now).unwrap().max(now + 1);
    }
    assert!((7..20).contains(&questions.len()), "{}", questions.len());
    assert!((questions.len() - 1..=questions.len()).contains(&told));
    assert!(questions[1] - questions[0] <= 6000);
    assert_eq!(queue.counts().ready, 100, "nobody was deferred by name");
}

#[test]
fn hosts_that_stay_keep_what_is_known_of_them_and_a_late_word_about_one_that_left_is_ignored() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@one.test"], START);
    let (_, lookups) = work(&mut queue, START);
    let asking = lookups[0].asking;
    queue.resolved(asking, &site("s", &["192.0.2.1:25", "192.0.2.2:25"], START + MINUTE), START);
    let (attempts, _) = work(&mut queue, START);
    let acting = attempts[0].destination();
    let mut tried = HostsTried::default();
    let (first, second) = (queue.next_host(acting, &mut tried, START).unwrap(), queue.next_host(acting, &mut tried, START).unwrap());
    let name = |queue: &Queue, host| queue.host_address(acting, host).map(|hop| hop.name.clone());
    let (left, stays) = (name(&queue, first).unwrap(), name(&queue, second).unwrap());
    queue.host_failed(acting, second, "connect: refused", START);
    queue.resolved(asking, &site("s", &[&stays, "192.0.2.3:25"], START + MINUTE), START);
    assert_ne!(left, "192.0.2.3:25");
    assert_eq!((name(&queue, first), name(&queue, second)), (None, Some(stays.clone())));
    queue.host_reached(acting, first, START);
    queue.host_failed(acting, first, "late", START);
    // The one that failed is still dead: only the new one is offered.
    let mut tried = HostsTried::default();
    let offered = queue.next_host(acting, &mut tried, START).unwrap();
    assert_eq!(name(&queue, offered).unwrap(), "192.0.2.3:25");
    assert!(queue.next_host(acting, &mut tried, START).is_none());
}

#[test]
fn destinations_without_mail_are_dropped_and_their_ids_never_mean_another() {
    let mut queue = queue();
    let mut now = START;
    let mut ids = Vec::new();
    for sequence in 0..20_000u64 {
        let domain = format!("d{sequence}.test");
        enqueue(&mut queue, sequence, 5, &[&format!("a@{domain}")], now);
        let (_, lookups) = work(&mut queue, now);
        queue.resolved(lookups[0].asking, &site(&domain, &["192.0.2.1:25"], now + MINUTE), now);
        let (mut attempts, _) = work(&mut queue, now);
        ids.push(attempts[0].destination());
        deliver(&mut queue, attempts.pop().unwrap(), now);
        let _ = work(&mut queue, now);
        now += 10;
        assert!(sequence % 64 > 0 || queue.destinations(now).count() <= 2 + 2 * (4096 + 2), "they are bounded at {sequence}");
    }
    for _ in 0..100_000 {
        let _ = work(&mut queue, now);
        match queue.next_due(now) {
            Some(at) => now = at,
            None => break,
        }
    }
    assert!(queue.poll_next(ids[0], now).is_none(), "a late question is harmless");
    assert_eq!(queue.hosts(ids[0]).count(), 0);
    assert_eq!(queue.destinations(now).count(), 2, "what is unrouted, and the route itself");
    assert!(queue.is_empty());
}

#[test]
fn a_stable_number_tells_destinations_apart_in_every_queue() {
    let numbers = |seed: u64| {
        let mut queue = queue();
        (0..100)
            .map(|number| {
                let id = queue.route(format!("d{}.test", (number + seed) % 100).as_bytes());
                (queue.destination(id, START).unwrap().name.to_owned(), queue.spread(id))
            })
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let first = numbers(0);
    assert_eq!(first, numbers(37));
    assert_eq!(first.values().collect::<std::collections::BTreeSet<_>>().len(), 100);
}

#[test]
fn weights_share_the_attempts_and_a_lower_preference_goes_first() {
    let hop = |host, preference, weight| NextHop { preference, weight, host, ..format!("192.0.2.{host}:25").parse().unwrap() };
    let hosts = vec![hop(1, 0, 3), hop(2, 0, 1), hop(3, 1, 100)];
    let route =
        Route { pattern: "*".into(), via: Via::Smarthost { hosts }, retry: RetryPolicy::default(), limits: DestinationLimits::default() };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, START);
    let destination = queue.route(b"x.test");
    let mut drawn = [0; 3];
    for _ in 0..4000 {
        let mut tried = HostsTried::default();
        let host = queue.next_host(destination, &mut tried, START).unwrap();
        drawn[host.position()] += 1;
        let rest: Vec<_> = std::iter::from_fn(|| queue.next_host(destination, &mut tried, START)).map(|host| host.position()).collect();
        assert_eq!((rest.len(), rest[1]), (2, 2), "all are tried, the lower preference last");
    }
    assert_eq!(drawn[2], 0);
    assert!((2850..3150).contains(&drawn[0]), "{drawn:?}");
}

#[test]
fn mail_that_is_held_or_paused_asks_nobody() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@one.test"], START);
    let key = queue.key_of(QueueId { boot: 1, shard: 0, sequence: 1 }).unwrap();
    let _ = queue.hold(key, START, &mut Vec::new());
    assert!(work(&mut queue, START).1.is_empty());
    let _ = queue.release(key, START, &mut Vec::new());
    let destination = queue.route(b"one.test");
    queue.pause(destination, true, START);
    assert!(work(&mut queue, START).1.is_empty());
    queue.pause(destination, false, START);
    assert_eq!(work(&mut queue, START).1.len(), 1);
    assert_eq!(queue.show(key).unwrap().recipients().next().unwrap().state(), State::Ready);
}
