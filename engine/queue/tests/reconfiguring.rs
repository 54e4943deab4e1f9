//! Another routing table while mail is queued.

use std::net::SocketAddr;

use ringpost_queue::{
    Cursor, DestinationLimits, Filter, HostsTried, MessageKey, NewMessage, NewRecipient, Queue, QueueId, QueueSettings, RetryPolicy, Route,
    RouteError, Routes, Settled, State, Via, Work,
};

const START: u64 = 1_790_000_000_000;

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

/// Changes the table and lets all mail follow; returns how many messages moved.
fn reconfigure(queue: &mut Queue, routes: Vec<Route>) -> usize {
    queue.set_routes(routes, START).unwrap();
    let mut keys = Vec::new();
    assert_eq!(queue.page(&Filter::default(), Cursor::default(), usize::MAX, |view| keys.push(view.key())), Ok(None));
    keys.into_iter().filter(|key| queue.follow_routes(*key, START)).count()
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
            queue.abandon(dispatch, START);
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
    let short = RetryPolicy { lifetime_ms: 1, ..RetryPolicy::default() };
    assert_eq!(reconfigure(&mut queue, vec![Route { retry: short, ..route("*", smarthost(28)) }]), 0);
    assert!(matches!(queue.poll(START + 1, &mut Vec::new()), Some(Work::Expired(own)) if own == key));
}

#[test]
fn rerouted_mail_stays_rerouted_while_its_route_exists() {
    let mut queue = queue(vec![route("*", Via::Hold), route("backup.test", Via::Hold)]);
    let key = enqueue(&mut queue, 1, &["b@y.test"]);
    let to = queue.route_named("backup.test").unwrap();
    assert_eq!(queue.reroute(key, to, START, &mut Vec::new()), Some(Settled::Outcome));
    queue.recorded(key);
    assert_eq!(reconfigure(&mut queue, vec![route("new.test", Via::Hold), route("backup.test", smarthost(25)), route("*", Via::Hold)]), 0);
    assert_eq!(names(&queue, key), ["backup.test"]);
    assert_eq!(reconfigure(&mut queue, vec![route("*", Via::Hold)]), 1);
    assert_eq!(names(&queue, key), ["*"]);
    assert_eq!(queue.reroute(key, to, START, &mut Vec::new()), None, "that route is gone");
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
