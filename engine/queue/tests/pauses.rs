//! Destinations that operators paused: what begins there, what goes on, and what is made later.

use ringpost_queue::{
    DestinationLimits, NewMessage, NewRecipient, Notify, Outcome, Pauses, Queue, QueueId, QueueSettings, Resolution, RetryPolicy, Route,
    Routes, State, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const MINUTE: u64 = 60_000;

fn route(pattern: &str, via: Via) -> Route {
    Route { pattern: pattern.into(), via, retry: RetryPolicy::default(), limits: DestinationLimits::default() }
}

fn queue() -> Queue {
    let routes = vec![route("*", Via::Mx { port: 25 }), route("own.test", smarthost())];
    Queue::new(QueueSettings::default(), Routes::new(routes).unwrap(), 1, START)
}

fn smarthost() -> Via {
    Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] }
}

fn enqueue(queue: &mut Queue, sequence: u64, domain: &str, now: u64) {
    let message = NewMessage { id: id(sequence), accepted_at: now, reverse_path: b"s@x.test", ..NewMessage::default() };
    let address = format!("b@{domain}");
    let recipient = NewRecipient { address: address.as_bytes(), destination: queue.route(domain.as_bytes()), notify: Notify::UNSAID };
    queue.enqueue(&message, [recipient].into_iter(), now);
}

fn id(sequence: u64) -> QueueId {
    QueueId { boot: 1, shard: 0, sequence }
}

/// Attempts that begin now, by the number of their message; all hosts are one site's.
fn attempts(queue: &mut Queue, now: u64) -> Vec<ringpost_queue::Dispatch> {
    let mut attempts = Vec::new();
    while let Some(work) = queue.poll(now, &mut Vec::new()) {
        match work {
            Work::Attempt(dispatch) => attempts.push(dispatch),
            Work::Resolve(lookup) => {
                let hosts = vec!["192.0.2.2:25".parse().unwrap()];
                let site = Resolution::Site { key: "k".into(), name: "mx.test".into(), hosts, is_whole: true, until: now + 100 * MINUTE };
                queue.resolved(lookup.asking, &site, now);
            }
            other => panic!("{other:?}"),
        }
    }
    attempts
}

fn sequences(queue: &Queue, attempts: &[ringpost_queue::Dispatch]) -> Vec<u64> {
    let mut sequences: Vec<u64> = attempts.iter().map(|dispatch| queue.envelope(dispatch.key()).unwrap().id.sequence).collect();
    sequences.sort_unstable();
    sequences
}

/// What begins now, by number.
fn begun(queue: &mut Queue, now: u64) -> Vec<u64> {
    let attempts = attempts(queue, now);
    sequences(queue, &attempts)
}

fn set(queue: &mut Queue, names: &[&str], all: bool, now: u64) {
    let mut pauses = Pauses::default();
    pauses.set_all(all);
    names.iter().for_each(|name| assert!(pauses.insert(name)));
    queue.set_pauses(pauses);
    queue.follow_pauses(0..queue.destination_slots(), now);
}

#[test]
fn a_pause_holds_for_what_is_there_and_for_what_comes_until_it_is_resumed() {
    let mut queue = queue();
    enqueue(&mut queue, 1, "y.test", START);
    set(&mut queue, &["Y.test", "*.y.test", "own.test"], false, START);
    for (sequence, domain) in (2..).zip(["a.y.test", "own.test", "z.test", "y.test"]) {
        enqueue(&mut queue, sequence, domain, START);
    }
    let under_way = attempts(&mut queue, START);
    assert_eq!(sequences(&queue, &under_way), [4]);
    let by = |queue: &Queue, sequence| {
        let view = queue.show(queue.key_of(id(sequence)).unwrap()).unwrap();
        let recipient = view.recipients().next().unwrap();
        (recipient.state(), recipient.paused().map(|by| by.to_string()).unwrap_or_default(), recipient.next_attempt(START))
    };
    assert_eq!(by(&queue, 2), (State::Ready, "'*.y.test'".to_owned(), None));
    assert_eq!(by(&queue, 3), (State::Ready, "own.test".to_owned(), None));
    set(&mut queue, &["own.test"], false, START);
    assert_eq!(begun(&mut queue, START), [1, 2, 5]);
    set(&mut queue, &[], false, START);
    assert_eq!(begun(&mut queue, START), [3]);
}

#[test]
fn attempts_under_way_end_and_what_they_put_off_waits() {
    let mut queue = queue();
    enqueue(&mut queue, 1, "y.test", START);
    enqueue(&mut queue, 2, "own.test", START);
    let mut open = attempts(&mut queue, START);
    set(&mut queue, &[], true, START);
    let delivered = open.swap_remove(open.iter().position(|dispatch| sequences(&queue, std::slice::from_ref(dispatch)) == [2]).unwrap());
    assert!(queue.poll_behind(&delivered, START).is_none() && queue.poll_next(delivered.destination(), START).is_none());
    let (key, mut record) = (delivered.key(), Vec::new());
    let _ = queue.settle(delivered, &[(0, Outcome::Delivered { reply: b"250 ok" })], START, &mut record);
    queue.recorded(key);
    assert!(queue.show(key).is_none(), "it was delivered");
    let _ = queue.settle(open.pop().unwrap(), &[(0, Outcome::Deferred { reply: b"450 later" })], START, &mut record);
    assert!(attempts(&mut queue, START + 60 * MINUTE).is_empty());
    let view = queue.show(queue.key_of(id(1)).unwrap()).unwrap();
    let recipient = view.recipients().next().unwrap();
    assert_eq!((recipient.reason(START), recipient.attempts()), ("destination \"y.test\" is paused by command".into(), 1));
    set(&mut queue, &[], false, START + 60 * MINUTE);
    assert_eq!(begun(&mut queue, START + 60 * MINUTE), [1]);
}

/// One that was paused was kept for ever, though no mail was there: as many domains as mail had ever come for counted as in use.
#[test]
fn a_paused_domain_without_mail_is_dropped_and_paused_again_when_mail_comes() {
    let mut queue = queue();
    let destination = queue.route(b"y.test");
    set(&mut queue, &["y.test"], false, START);
    assert!(attempts(&mut queue, START).is_empty());
    assert!(attempts(&mut queue, START + 20 * MINUTE).is_empty());
    assert!(queue.destination(destination, START).is_none(), "it was dropped");
    enqueue(&mut queue, 1, "y.test", START + 20 * MINUTE);
    assert!(attempts(&mut queue, START + 20 * MINUTE).is_empty());
}

#[test]
fn a_pause_holds_for_routes_that_a_reload_brings() {
    let mut queue = queue();
    set(&mut queue, &["new.test", "*"], false, START);
    queue.set_routes(vec![route("*", smarthost()), route("new.test", smarthost())], START).unwrap();
    enqueue(&mut queue, 1, "new.test", START);
    enqueue(&mut queue, 2, "z.test", START);
    assert!(attempts(&mut queue, START).is_empty());
    set(&mut queue, &["*"], false, START);
    assert_eq!(begun(&mut queue, START), [1]);
}

/// A site by its first host: all domains that have it.
#[test]
fn the_site_of_several_domains_is_paused_by_its_name() {
    let mut queue = queue();
    enqueue(&mut queue, 1, "y.test", START);
    let open = attempts(&mut queue, START);
    set(&mut queue, &["mx.test"], false, START);
    enqueue(&mut queue, 2, "y.test", START);
    enqueue(&mut queue, 3, "z.test", START);
    assert!(attempts(&mut queue, START).is_empty());
    let view = queue.show(queue.key_of(id(3)).unwrap()).unwrap();
    assert_eq!(view.recipients().next().unwrap().paused().map(|by| by.to_string()).as_deref(), Some("mx.test"));
    drop(open);
    set(&mut queue, &[], false, START);
    assert_eq!(begun(&mut queue, START), [2, 3]);
}
