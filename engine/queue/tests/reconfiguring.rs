//! Another routing table while mail is queued.

use std::net::SocketAddr;

use ringpost_queue::{
    Cursor, DestinationLimits, Filter, Followed, Homes, HostsTried, Lookup, MessageKey, NamedHost, NewMessage, NewRecipient, Outcome,
    Question, Queue, QueueId, QueueSettings, Resolution, RetryPolicy, Route, RouteError, Routes, Settled, State, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const LATER: Outcome<'_> = Outcome::Deferred { reply: b"450 4.2.0 later" };

fn smarthost(port: u16) -> Via {
    Via::Smarthost { hosts: vec![SocketAddr::from(([192, 0, 2, 1], port)).into()] }
}

fn route(pattern: &str, via: Via) -> Route {
    Route { pattern: pattern.into(), via, retry: RetryPolicy::default(), limits: DestinationLimits::default() }
}

fn queue(routes: Vec<Route>) -> Queue {
    Queue::new(QueueSettings::default(), Routes::new(routes).unwrap(), 1, START)
}

fn enqueue(queue: &mut Queue, sequence: u64, addresses: &[&str]) -> MessageKey {
    let message =
        NewMessage { id: QueueId { boot: 1, shard: 0, sequence }, accepted_at: START, reverse_path: b"s@x.test", ..NewMessage::default() };
    let to: Vec<_> = addresses.iter().map(|address| queue.route(address.rsplit_once('@').unwrap().1.as_bytes())).collect();
    let recipients = addresses.iter().zip(to).map(|(address, destination)| NewRecipient {
        address: address.as_bytes(),
        destination,
        notify: Default::default(),
    });
    queue.enqueue(&message, recipients, START)
}

fn short_lived(lifetime_ms: u64) -> Route {
    Route { retry: RetryPolicy { lifetime_ms, ..RetryPolicy::default() }, ..route("*", smarthost(28)) }
}

fn state(queue: &Queue, key: MessageKey) -> State {
    queue.show(key).unwrap().recipients().next().unwrap().state()
}

/// Changes the table and lets all mail follow; returns how many messages moved.
fn reconfigure(queue: &mut Queue, routes: Vec<Route>) -> usize {
    queue.begin_routes(routes, START).unwrap();
    // As a shard does it, between other tasks.
    (0..queue.destination_slots()).for_each(|slot| queue.reconfigure(slot..slot + 1, START));
    let mut keys = Vec::new();
    assert_eq!(queue.page(&Filter::default(), Cursor::default(), usize::MAX, |view| keys.push(view.key())), Ok(None));
    keys.into_iter().filter(|key| queue.follow_routes(*key, START).moves).count()
}

fn names(queue: &Queue, key: MessageKey) -> Vec<&str> {
    queue.show(key).unwrap().recipients().map(|recipient| recipient.destination_name()).collect()
}

fn attempt_to(queue: &mut Queue) -> Option<String> {
    match queue.poll(START, &mut Vec::new())? {
        Work::Attempt(dispatch) => {
            let destination = dispatch.destination();
            let host = queue.next_host(destination, &mut HostsTried::default(), START);
            let name = host.and_then(|host| queue.host_address(destination, host)).map(|hop| hop.name.clone());
            assert_eq!(queue.abandon(dispatch, START), Settled::Nothing);
            name
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_more_exact_route_takes_its_mail_and_one_that_is_gone_gives_it_back() {
    let mut queue = queue(vec![route("*", Via::Hold)]);
    let both = enqueue(&mut queue, 1, &["b@y.test", "c@z.test"]);
    let other = enqueue(&mut queue, 2, &["d@y.test"]);
    assert_eq!(reconfigure(&mut queue, vec![route("z.test", smarthost(26)), route("*", Via::Hold)]), 1);
    assert_eq!((names(&queue, both), names(&queue, other)), (vec!["*", "z.test"], vec!["*"]));
    assert_eq!(attempt_to(&mut queue).as_deref(), Some("192.0.2.1:26"));
    assert_eq!(reconfigure(&mut queue, vec![route("*", Via::Hold)]), 1);
    assert_eq!(names(&queue, both), ["*", "*"]);
    assert!(attempt_to(&mut queue).is_none());
    // The same pattern again has its old place.
    assert_eq!(reconfigure(&mut queue, vec![route("Z.test", smarthost(27))]), 2);
    assert_eq!((names(&queue, both), names(&queue, other)), (vec!["unrouted", "z.test"], vec!["unrouted"]));
    assert_eq!(attempt_to(&mut queue).as_deref(), Some("192.0.2.1:27"));
}

/// It read as deferred, with the next hop's last word and a time at which it would not be tried, until that time came.
#[test]
fn mail_whose_route_is_gone_is_held_says_so_and_does_not_expire() {
    let mut queue = queue(vec![route("y.test", smarthost(25))]);
    let key = enqueue(&mut queue, 1, &["b@y.test"]);
    let Some(Work::Attempt(dispatch)) = queue.poll(START, &mut Vec::new()) else { panic!("it is ready") };
    let _ = queue.settle(dispatch, &[(0, LATER)], START, &mut Vec::new());
    queue.recorded(key);
    assert_eq!(state(&queue, key), State::Deferred);
    for (routes, reason) in [
        (
            vec![route("z.test", smarthost(25))],
            "no route of the config is for it (any more): a route for its domain, or `queue reroute`, sends it",
        ),
        (vec![route("*", Via::Hold)], "held by route \"*\""),
    ] {
        assert_eq!(reconfigure(&mut queue, routes), 1);
        let recipient = queue.show(key).unwrap().recipients().next().unwrap();
        assert_eq!((recipient.state(), recipient.next_attempt(START), recipient.fails_at()), (State::Held, None, None));
        assert_eq!(recipient.reason(START), reason);
        let held = Filter { state: Some(State::Held), ..Filter::default() };
        let mut found = 0;
        assert_eq!(queue.page(&held, Cursor::default(), usize::MAX, |_| found += 1), Ok(None));
        assert_eq!(found, 1);
    }
    // Back before its time has come, it waits for that; and goes at once when it has.
    reconfigure(&mut queue, vec![route("y.test", smarthost(26))]);
    assert_eq!((state(&queue, key), attempt_to(&mut queue)), (State::Deferred, None));
    assert!(queue.show(key).unwrap().recipients().next().unwrap().next_attempt(START).is_some_and(|at| at > START));
    reconfigure(&mut queue, vec![]);
    let unrouted = queue.route(b"y.test");
    assert!(queue.destination(unrouted, START).unwrap().reason.contains("`queue reroute`"));
    for hour in 0..24 * 30 {
        assert!(queue.poll(START + hour * HOUR, &mut Vec::new()).is_none(), "{hour} h");
    }
    assert_eq!(state(&queue, key), State::Held);
    let back = START + 24 * 30 * HOUR;
    queue.begin_routes(vec![route("y.test", smarthost(27))], back).unwrap();
    queue.reconfigure(0..queue.destination_slots(), back);
    assert!(queue.follow_routes(key, back).moves);
    assert!(matches!(queue.poll(back, &mut Vec::new()), Some(Work::Attempt(dispatch)) if dispatch.key() == key));
}

#[test]
fn a_route_that_no_longer_holds_lets_its_mail_go_and_other_hosts_are_used() {
    let mut queue = queue(vec![route("*", Via::Hold)]);
    let key = enqueue(&mut queue, 1, &["b@y.test"]);
    assert_eq!(queue.show(key).unwrap().recipients().next().unwrap().state(), State::Held);
    assert_eq!(reconfigure(&mut queue, vec![route("*", smarthost(25))]), 0);
    assert_eq!(attempt_to(&mut queue).as_deref(), Some("192.0.2.1:25"));
    assert_eq!(reconfigure(&mut queue, vec![route("*", smarthost(28))]), 0);
    assert_eq!(attempt_to(&mut queue).as_deref(), Some("192.0.2.1:28"));
    // A lifetime that is over is noticed.
    assert_eq!(reconfigure(&mut queue, vec![short_lived(0)]), 0);
    let Some(Work::Attempt(dispatch)) = queue.poll(START + 1, &mut Vec::new()) else { panic!("it goes once more") };
    let _ = queue.settle(dispatch, &[(0, LATER)], START + 1, &mut Vec::new());
    assert_eq!(state(&queue, key), State::Failed);
}

/// While a shard went through its destinations, a new route held its mail until it was its turn: what came meanwhile never expired, unless
/// the look at all messages found it.
#[test]
fn a_new_route_is_itself_from_the_first_message_on() {
    let mut queue = queue(vec![route("y.test", Via::Hold)]);
    queue.begin_routes(vec![route("y.test", Via::Hold), route("*", smarthost(25))], START).unwrap();
    let key = enqueue(&mut queue, 1, &["c@z.test"]);
    assert_eq!(state(&queue, key), State::Ready);
    let destination = queue.route(b"z.test");
    queue.pause(destination, true, START);
    queue.reconfigure(0..queue.destination_slots(), START);
    assert!(queue.poll(START, &mut Vec::new()).is_none(), "it is paused");
    let now = START + 6 * DAY;
    let work = queue.poll(now, &mut Vec::new());
    assert!(matches!(&work, Some(Work::Expired(expired, _)) if *expired == key), "{work:?}");
}

/// A reload that ended a hold, or gave unrouted mail its route, bounced at once, without an attempt, all mail older than the lifetime of
/// its route: what is held does not grow old, and then it was. Here it has its attempt first, whatever comes between the reload and the
/// look at the message.
#[test]
fn old_mail_is_attempted_once_when_its_hold_ends() {
    let now = START + 6 * DAY;
    for (before, after, moves) in [
        (vec![route("*", Via::Hold)], vec![route("*", smarthost(25))], false),
        (vec![route("*", Via::Hold)], vec![route("*", Via::Mx { port: 25 })], true),
        (vec![], vec![route("*", smarthost(25))], true),
        (vec![route("*", Via::Hold)], vec![route("*", Via::Hold), route("y.test", smarthost(25))], true),
    ] {
        let mut queue = queue(before);
        let key = enqueue(&mut queue, 1, &["b@y.test"]);
        assert!(queue.poll(now, &mut Vec::new()).is_none(), "it is held");
        queue.set_routes(after, now).unwrap();
        match queue.poll(now, &mut Vec::new()) {
            None => {}
            Some(Work::Attempt(dispatch)) => assert_eq!(queue.abandon(dispatch, now), Settled::Nothing),
            Some(other) => panic!("{other:?}"),
        }
        assert_eq!(queue.follow_routes(key, now).moves, moves);
        let dispatch = loop {
            match queue.poll(now, &mut Vec::new()) {
                Some(Work::Attempt(dispatch)) => break dispatch,
                Some(Work::Resolve(lookup)) => {
                    let hosts = vec!["192.0.2.1:25".parse().unwrap()];
                    let site = Resolution::Site { key: "s".into(), name: "s".into(), hosts, is_whole: true, until: now + DAY };
                    queue.resolved(lookup.asking, &site, now);
                }
                other => panic!("{other:?}"),
            }
        };
        let _ = queue.settle(dispatch, &[(0, LATER)], now, &mut Vec::new());
        assert_eq!(state(&queue, key), State::Failed, "once");
    }
}

/// A reload that made the route of queued mail hold it, or sent it to one that does, said nothing of that mail.
#[test]
fn what_a_new_table_holds_is_told_once() {
    for (before, after, moves, is_held_now) in [
        (vec![route("*", smarthost(25))], vec![route("*", Via::Hold)], false, true),
        (vec![route("*", Via::Mx { port: 25 })], vec![route("*", Via::Hold)], true, true),
        (vec![route("*", smarthost(25))], vec![route("*", smarthost(25)), route("y.test", Via::Hold)], true, true),
        (vec![route("*", smarthost(25))], vec![], true, true),
        (vec![route("*", smarthost(25))], vec![route("*", smarthost(26))], false, false),
        (vec![route("*", Via::Hold)], vec![route("*", Via::Hold), route("y.test", Via::Hold)], true, false),
        (vec![route("*", Via::Hold)], vec![route("*", smarthost(25))], false, false),
    ] {
        let (from, to) = (format!("{before:?}"), after.clone());
        let mut queue = queue(before);
        let key = enqueue(&mut queue, 1, &["b@y.test"]);
        queue.set_routes(after.clone(), START).unwrap();
        assert_eq!(queue.follow_routes(key, START), Followed { moves, is_held_now }, "{from} to {to:?}");
        queue.set_routes(after, START).unwrap();
        assert_eq!(queue.follow_routes(key, START), Followed::default(), "{from} to {to:?}, again");
    }
}

/// So did one that made a lifetime shorter, where a restart with the same file tried such mail once more.
#[test]
fn a_shorter_lifetime_leaves_old_mail_one_attempt_and_the_time_for_it() {
    // Where the next attempt would come after the time that is given, it is brought forward.
    for (wait_ms, is_found_at_once) in [(3 * HOUR, false), (12 * HOUR, true)] {
        let with = |lifetime_ms| {
            let retry = RetryPolicy { first_ms: wait_ms, max_ms: wait_ms, jitter_percent: 0, lifetime_ms, ..RetryPolicy::default() };
            vec![Route { retry, ..route("*", smarthost(25)) }]
        };
        let mut queue = queue(with(5 * DAY));
        let key = enqueue(&mut queue, 1, &["b@y.test"]);
        let Some(Work::Attempt(dispatch)) = queue.poll(START, &mut Vec::new()) else { panic!("it is ready") };
        let _ = queue.settle(dispatch, &[(0, LATER)], START, &mut Vec::new());
        queue.recorded(key);
        let mut now = START + 2 * HOUR;
        assert!(queue.poll(now, &mut Vec::new()).is_none());
        queue.set_routes(with(HOUR), now).unwrap();
        if is_found_at_once {
            assert!(!queue.follow_routes(key, now).moves);
        }
        let dispatch = loop {
            match queue.poll(now, &mut Vec::new()) {
                Some(Work::Attempt(dispatch)) => break dispatch,
                None => now = queue.next_due(now).unwrap(),
                other => panic!("{other:?} after {} min", (now - START) / 60_000),
            }
        };
        assert!(now <= START + 4 * HOUR, "{} min", (now - START) / 60_000);
        let _ = queue.settle(dispatch, &[(0, LATER)], now, &mut Vec::new());
        assert_eq!(state(&queue, key), State::Failed, "once");
    }
}

/// Mail that came after the reload, or was not too old at it, has the lifetime that it says and no more.
#[test]
fn a_shorter_lifetime_is_that_of_all_other_mail() {
    let mut queue = queue(vec![route("*", smarthost(25))]);
    let young = enqueue(&mut queue, 1, &["b@y.test"]);
    let now = START + 30 * 60_000;
    queue.set_routes(vec![short_lived(HOUR)], now).unwrap();
    assert!(!queue.follow_routes(young, now).moves);
    let message = NewMessage { id: QueueId { boot: 1, shard: 0, sequence: 2 }, accepted_at: now, ..NewMessage::default() };
    let destination = queue.route(b"y.test");
    let recipient = NewRecipient { address: b"c@y.test", destination, notify: Default::default() };
    let later = queue.enqueue(&message, std::iter::once(recipient), now);
    for (key, end) in [(young, START + HOUR), (later, now + HOUR)] {
        assert_eq!(queue.show(key).unwrap().recipients().next().unwrap().fails_at(), Some(end));
    }
}

/// Nor does one reload after another give it time without end.
#[test]
fn the_time_for_one_more_attempt_is_given_once() {
    let mut queue = queue(vec![route("*", smarthost(25))]);
    let key = enqueue(&mut queue, 1, &["b@y.test"]);
    let destination = queue.route(b"y.test");
    queue.pause(destination, true, START);
    for hour in 2..6 {
        queue.set_routes(vec![short_lived(HOUR)], START + hour * HOUR).unwrap();
        assert!(!queue.follow_routes(key, START + hour * HOUR).moves);
        assert!(queue.poll(START + hour * HOUR, &mut Vec::new()).is_none());
    }
    assert!(matches!(queue.poll(START + 6 * HOUR, &mut Vec::new()), Some(Work::Expired(own, _)) if own == key));
}

#[test]
fn rerouted_mail_stays_rerouted_while_its_route_exists() {
    let mut queue = queue(vec![route("*", Via::Hold), route("backup.test", Via::Hold)]);
    let key = enqueue(&mut queue, 1, &["b@y.test"]);
    let to = queue.route_named("backup.test").unwrap();
    assert_eq!(queue.reroute(key, &Filter::default(), to, START, &mut Vec::new()), Some(Settled::Outcome));
    queue.recorded(key);
    assert_eq!(reconfigure(&mut queue, vec![route("new.test", Via::Hold), route("backup.test", smarthost(25)), route("*", Via::Hold)]), 0);
    assert_eq!(names(&queue, key), ["backup.test"]);
    assert_eq!(reconfigure(&mut queue, vec![route("*", Via::Hold)]), 1);
    assert_eq!(names(&queue, key), ["*"]);
    assert_eq!(queue.reroute(key, &Filter::default(), to, START, &mut Vec::new()), None, "that route is gone");
}

#[test]
fn a_table_that_contradicts_itself_changes_nothing() {
    let mut queue = queue(vec![route("*", smarthost(25))]);
    let key = enqueue(&mut queue, 1, &["b@y.test"]);
    let wrong = vec![route("y.test", Via::Hold), route("Y.test", Via::Hold)];
    assert_eq!(queue.set_routes(wrong, START), Err(RouteError::Twice("Y.test".into())));
    assert_eq!(names(&queue, key), ["*"]);
    assert_eq!(attempt_to(&mut queue).as_deref(), Some("192.0.2.1:25"));
}

#[test]
fn tables_follow_each_other_up_to_a_bound_until_limits_are_settled() {
    let homes = Homes { shard: 0, shards: 2 };
    let mut queue =
        Queue::new(QueueSettings { homes, ..QueueSettings::default() }, Routes::new(vec![route("*", smarthost(25))]).unwrap(), 1, START);
    for number in 0..16 {
        assert_eq!(queue.begin_routes(vec![route("*", smarthost(26 + number))], START), Ok(()), "{number}");
    }
    assert_eq!(queue.begin_routes(vec![route("*", smarthost(50))], START), Err(RouteError::ChangingOver));
    queue.begin_settling();
    assert_eq!(queue.begin_routes(vec![route("*", smarthost(50))], START), Ok(()));
}

/// An mx route becomes a smarthost and back: the domains' mail moves.
#[test]
fn mail_of_domains_follows_when_a_route_is_by_mx_no_more() {
    let mut queue = queue(vec![route("*", Via::Mx { port: 25 })]);
    let key = enqueue(&mut queue, 1, &["b@y.test", "c@z.test"]);
    assert_eq!(names(&queue, key), ["y.test", "z.test"]);
    assert_eq!(reconfigure(&mut queue, vec![route("*", smarthost(25))]), 1);
    assert_eq!(names(&queue, key), ["*", "*"]);
    assert_eq!(attempt_to(&mut queue).as_deref(), Some("192.0.2.1:25"));
    assert_eq!(reconfigure(&mut queue, vec![route("*", Via::Mx { port: 25 })]), 1);
    assert_eq!(names(&queue, key), ["y.test", "z.test"]);
}

#[test]
fn mail_follows_a_route_for_its_sender() {
    let mut queue = queue(vec![route("*", smarthost(25))]);
    let key = enqueue(&mut queue, 1, &["b@y.test", "c@own.test"]);
    let table = || vec![route("*", smarthost(25)), route("* from @X.test", smarthost(26)), route("own.test", Via::Hold)];
    assert_eq!(reconfigure(&mut queue, table()), 1);
    assert_eq!(names(&queue, key), ["* from @X.test", "own.test"]);
    assert_eq!(queue.show(key).unwrap().recipients().next().unwrap().route_name(), "* from @X.test");
    assert_eq!(attempt_to(&mut queue).as_deref(), Some("192.0.2.1:26"));
    assert_eq!(reconfigure(&mut queue, table()), 0, "it is where it belongs");
    assert_eq!(reconfigure(&mut queue, vec![route("*", smarthost(25)), route("* from s@x.test", Via::Hold)]), 1);
    assert_eq!(names(&queue, key), ["* from s@x.test", "* from s@x.test"]);
}

fn named(name: &str) -> NamedHost {
    NamedHost { name: name.into(), port: 25, preference: 0, weight: 1 }
}

/// What DNS says of a route's host.
fn is_at(address: &str) -> Resolution {
    let hosts = vec![address.parse().unwrap()];
    Resolution::Site { key: String::new(), name: address.into(), hosts, is_whole: true, until: START + DAY }
}

fn lookup(queue: &mut Queue) -> Lookup {
    match queue.poll(START, &mut Vec::new()) {
        Some(Work::Resolve(lookup)) => lookup,
        other => panic!("{other:?}"),
    }
}

/// An answer to what was asked before a reload was taken for that to the question after it: mail went to the hosts that had just been removed until
/// the answer grew old, or waited because they could not be found.
#[test]
fn an_answer_to_what_was_asked_before_a_reload_is_none() {
    let (old, new) = ("192.0.2.1:25", "192.0.2.2:25");
    let none = Resolution::Unanswered { reason: "A of old.test: time-out".into(), turns: 0 };
    for (late, comes_last, has_mail) in
        [(is_at(old), true, true), (is_at(old), false, true), (none.clone(), true, true), (none, false, true), (is_at(old), false, false)]
    {
        let mut queue = queue(vec![route("*", Via::Named { hosts: vec![named("old.test")] })]);
        let mut key = enqueue(&mut queue, 1, &["b@y.test"]);
        let before = lookup(&mut queue);
        if !has_mail {
            let _settled = queue.delete(key, START);
            queue.recorded(key);
        }
        assert_eq!(
            reconfigure(&mut queue, vec![route("*", Via::Named { hosts: vec![named("new.test")] })]),
            0,
            "it is the same destination"
        );
        if !has_mail {
            queue.resolved(before.asking, &late, START);
            key = enqueue(&mut queue, 2, &["b@y.test"]);
        }
        let after = lookup(&mut queue);
        assert_eq!(after.question, Question::Hosts(vec![named("new.test")]));
        if !comes_last {
            queue.resolved(before.asking, &late, START);
            queue.not_asked(before.asking, START);
            assert!(queue.poll(START, &mut Vec::new()).is_none(), "it waits for the new hosts");
        }
        queue.resolved(after.asking, &is_at(new), START);
        if comes_last {
            queue.resolved(before.asking, &late, START);
        }
        let Some(Work::Attempt(dispatch)) = queue.poll(START, &mut Vec::new()) else { panic!("its hosts are known") };
        assert_eq!((dispatch.key(), queue.verdict(&dispatch)), (key, None));
        assert_eq!(queue.hosts(dispatch.destination()).map(|hop| &*hop.name).collect::<Vec<_>>(), [new]);
        assert_eq!(queue.abandon(dispatch, START), Settled::Nothing);
    }
}

/// Mail of a route that became one by mx, or by names, was tried at no host before it was looked at: each message had an attempt at which no host
/// answered, on which its back-off counts.
#[test]
fn mail_of_a_route_whose_hosts_are_to_be_asked_for_is_not_attempted_before_it_follows() {
    for via in [Via::Mx { port: 25 }, Via::Named { hosts: vec![named("new.test")] }] {
        for before in [smarthost(25), Via::Discard, Via::Hold] {
            let mut queue = queue(vec![route("*", before)]);
            let key = enqueue(&mut queue, 1, &["b@y.test"]);
            queue.set_routes(vec![route("*", via.clone())], START).unwrap();
            assert!(queue.poll(START, &mut Vec::new()).is_none(), "it is not to be tried where it is");
            assert_eq!((state(&queue, key), queue.next_due(START).is_some_and(|at| at <= START)), (State::Ready, false));
            assert!(queue.follow_routes(key, START).moves);
            let asked = lookup(&mut queue);
            queue.resolved(asked.asking, &is_at("192.0.2.2:25"), START);
            let Some(Work::Attempt(dispatch)) = queue.poll(START, &mut Vec::new()) else { panic!("its hosts are known") };
            assert_eq!(dispatch.attempt(), 1);
            assert_eq!(queue.abandon(dispatch, START), Settled::Nothing);
        }
    }
}
