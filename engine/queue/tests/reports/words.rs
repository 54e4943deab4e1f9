//! What senders are told of why mail waits, or was never tried, and whose word that is.

use ringpost_queue::{
    DestinationLimits, HostsTried, NewMessage, Notify, Outcome, Queue, QueueSettings, Rate, Resolution, RetryPolicy, Route, Routes,
    Settled, State, Via, Work,
};

use crate::{DELIVERED, HOUR, START, attempt, enqueue, message, queue};

/// Mail that was not tried, because another message was answered so, was reported with the words of that answer, the addresses of another
/// sender's mail among them. What the
/// connection's end left untried three times was told as a next hop's word, which had said nothing.
#[test]
fn a_word_is_told_as_the_one_whose_it_is() {
    let mut queue = queue();
    let word = |queue: &Queue, key, now| {
        let (text, relay) = queue.show(key).unwrap().recipients().next().unwrap().word(now);
        (text.into_owned(), relay.map(|relay| relay.into_owned()))
    };
    let relay = Some("192.0.2.1:25".to_owned());
    let first = enqueue(&mut queue, &message(1), &[("b@y.test", Notify::UNSAID)]);
    for _ in 0..3 {
        assert_eq!(word(&queue, first, START), (String::new(), None));
        let dispatch = attempt(&mut queue, START);
        let _ = queue.settle_by(dispatch, &[(0, Outcome::Untried { reply: b"" })], "192.0.2.1:25", START, &mut Vec::new());
    }
    assert_eq!(word(&queue, first, START), ("451 4.4.2 the connection ended before this recipient's turn".into(), None));
    let second = enqueue(&mut queue, &message(2), &[("b@y.test", Notify::UNSAID)]);
    let dispatch = attempt(&mut queue, START);
    let full = Outcome::Deferred { reply: b"421 4.3.2 no mail for <confidential@y.test>" };
    let _ = queue.settle_by(dispatch, &[(0, full)], "192.0.2.1:25", START, &mut Vec::new());
    assert_eq!(word(&queue, second, START), ("421 4.3.2 no mail for <confidential@y.test>".into(), relay));
    let third = enqueue(&mut queue, &message(3), &[("b@y.test", Notify::UNSAID)]);
    assert!(queue.poll(START, &mut Vec::new()).is_none(), "the destination pauses");
    assert_eq!(word(&queue, third, START), ("451 4.4.5 the destination asked for less mail".into(), None));
    let of_operators = queue.show(third).unwrap().recipients().next().unwrap().reason(START).into_owned();
    assert!(of_operators.contains("421 4.3.2 no mail for <confidential@y.test>"), "{of_operators}");
    // Nor is it told when its life ends without an attempt, then or later.
    let end = START + RetryPolicy::default().lifetime_ms;
    let mut expired = 0;
    while let Some(work) = queue.poll(end, &mut Vec::new()) {
        let Work::Expired(key, _) = work else { break };
        expired += 1;
        queue.recorded(key);
    }
    assert_eq!(expired, 3);
    let reply = |key| queue.show(key).unwrap().recipients().next().unwrap().reply().into_owned();
    assert_eq!(reply(second), "5.4.7 expired; last: 421 4.3.2 no mail for <confidential@y.test>");
    assert_eq!(reply(third), "5.4.7 expired; last: 451 4.4.5 the destination asked for less mail");
}

/// Mail that waited for its rate, for a pause or for a hold was reported with X.4.1, "no answer from host", and with the name of the route.
#[test]
fn what_keeps_mail_here_is_told_by_its_number_and_without_names_of_this_system() {
    let rate = Some(Rate { messages: 1, per_ms: 3_600_000, burst: 1 });
    let one = DestinationLimits { connections_max: 1, window_initial: 1, ..DestinationLimits::default() };
    let smarthost = || Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] };
    let routes = [
        ("rate.secret.test", smarthost(), DestinationLimits { rate, ..one }),
        ("window.secret.test", smarthost(), one),
        ("hold.secret.test", Via::Hold, one),
        ("dead.secret.test", smarthost(), one),
        ("paused.secret.test", smarthost(), one),
    ];
    let route = |(pattern, via, limits): (&str, Via, DestinationLimits)| Route {
        pattern: pattern.into(),
        via,
        retry: RetryPolicy::default(),
        limits,
    };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(routes.map(route).into()).unwrap(), 1, START);
    let mut sequences = 0..;
    let mut add = |queue: &mut Queue, domain: &str| {
        let message = message(sequences.next().unwrap());
        enqueue(queue, &message, &[(&format!("b@{domain}"), Notify::UNSAID)])
    };
    for domain in ["rate.secret.test", "window.secret.test", "dead.secret.test"] {
        add(&mut queue, domain);
    }
    let mut open = Vec::new();
    while let Some(Work::Attempt(dispatch)) = queue.poll(START, &mut Vec::new()) {
        let destination = dispatch.destination();
        let address = queue.recipients(&dispatch).next().unwrap().1.to_vec();
        match &address[..] {
            b"b@rate.secret.test" => assert_eq!(queue.settle(dispatch, &[(0, DELIVERED)], START, &mut Vec::new()), Settled::Done),
            b"b@dead.secret.test" => {
                let mut tried = HostsTried::default();
                let host = queue.next_host(destination, &mut tried, START).unwrap();
                queue.host_failed(destination, host, "connect to 192.0.2.1:25: refused", START);
                assert!(queue.ends_round(destination, tried, START));
                let _ = queue.unreachable(dispatch, START, &mut Vec::new());
            }
            _ => open.push(dispatch),
        }
    }
    let paused = queue.route(b"paused.secret.test");
    queue.pause(paused, true, START);
    for (domain, expected) in [
        ("rate.secret.test", "451 4.4.5 waits for its turn: mail goes to this destination at a limited rate"),
        ("window.secret.test", "451 4.4.5 waits for its turn behind other mail for this destination"),
        ("hold.secret.test", "451 4.3.2 held by the operator of this system"),
        ("dead.secret.test", "connect to 192.0.2.1:25: refused"),
        ("paused.secret.test", "451 4.3.2 delivery to this destination is suspended by the operator of this system"),
        ("nowhere.test", "451 4.4.4 no route for this domain"),
    ] {
        let key = add(&mut queue, domain);
        let word = |queue: &Queue| {
            let view = queue.show(key).unwrap();
            let recipient = view.recipients().next().unwrap();
            (recipient.word(START).0.into_owned(), recipient.word(START).1.is_some(), recipient.reason(START).into_owned())
        };
        let (told, is_of_a_hop, reason) = word(&queue);
        assert_eq!((&*told, is_of_a_hop), (expected, false), "{domain}");
        assert!(["rate", "window", "dead", "nowhere"].iter().any(|front| domain.starts_with(front)) || reason.contains(domain), "{reason}");
        let _ = queue.hold(key, START, &mut Vec::new());
        assert_eq!(word(&queue).0, "451 4.3.2 held by the operator of this system", "{domain}");
    }
    drop(open);
}

/// Mail that waited for its rate, for its turn, on a held route or for a route was reported as expired without a word of why it was never
/// tried, and a hold by command without a number.
#[test]
fn mail_that_expires_without_an_attempt_says_what_it_waited_for() {
    let rate = Some(Rate { messages: 1, per_ms: 24 * HOUR, burst: 1 });
    let one = DestinationLimits { connections_max: 1, window_initial: 1, ..DestinationLimits::default() };
    let smarthost = || Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] };
    let routes = [
        ("rate.test", smarthost(), DestinationLimits { rate, ..one }),
        ("window.test", smarthost(), one),
        ("hold.test", Via::Hold, one),
        ("command.test", smarthost(), one),
        ("paused.test", smarthost(), one),
        ("dns.test", Via::Mx { port: 25 }, one),
    ];
    let route = |(pattern, via, limits): (&str, Via, DestinationLimits)| Route {
        pattern: pattern.into(),
        via,
        retry: RetryPolicy::default(),
        limits,
    };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(routes.map(route).into()).unwrap(), 1, START);
    let add = |queue: &mut Queue, sequence: u64, domain: &str| {
        let message = NewMessage { expires_at: Some(START + HOUR), ..message(sequence) };
        enqueue(queue, &message, &[(&format!("b@{domain}"), Notify::UNSAID)])
    };
    for (sequence, domain) in [(1, "rate.test"), (2, "window.test")] {
        add(&mut queue, sequence, domain);
    }
    let mut open = Vec::new();
    while let Some(Work::Attempt(dispatch)) = queue.poll(START, &mut Vec::new()) {
        let address = queue.recipients(&dispatch).next().unwrap().1.to_vec();
        match &address[..] {
            b"b@rate.test" => assert_eq!(queue.settle(dispatch, &[(0, DELIVERED)], START, &mut Vec::new()), Settled::Done),
            _ => open.push(dispatch),
        }
    }
    let paused = queue.route(b"paused.test");
    queue.pause(paused, true, START);
    let expected = [
        ("rate.test", "451 4.4.5 waits for its turn: mail goes to this destination at a limited rate"),
        ("window.test", "451 4.4.5 waits for its turn behind other mail for this destination"),
        ("hold.test", "451 4.3.2 held by the operator of this system"),
        ("command.test", "451 4.3.2 held by the operator of this system"),
        ("paused.test", "451 4.3.2 delivery to this destination is suspended by the operator of this system"),
        ("dns.test", "451 4.4.3 MX of dns.test: SERVFAIL"),
        ("nowhere.test", "451 4.4.4 no route for this domain"),
    ];
    let keys: Vec<_> = (10..).zip(expected).map(|(sequence, (domain, _))| add(&mut queue, sequence, domain)).collect();
    assert_eq!(queue.hold(keys[3], START, &mut Vec::new()), Some(Settled::Outcome));
    while let Some(work) = queue.poll(START, &mut Vec::new()) {
        match work {
            Work::Resolve(lookup) => {
                let none = Resolution::Unanswered { reason: "MX of dns.test: SERVFAIL".into(), turns: 0 };
                queue.resolved(lookup.asking, &none, START);
            }
            Work::Attempt(dispatch) => assert_eq!(queue.unreachable(dispatch, START, &mut Vec::new()), Settled::Deferral),
            other => panic!("{other:?}"),
        }
    }
    while let Some(work) = queue.poll(START + HOUR, &mut Vec::new()) {
        assert!(matches!(work, Work::Expired(..)), "{work:?}");
    }
    for (key, (domain, reason)) in keys.into_iter().zip(expected) {
        let view = queue.show(key).unwrap();
        let recipient = view.recipients().next().unwrap();
        let said = (recipient.state(), recipient.reply().into_owned(), recipient.relay().is_some());
        assert_eq!(said, (State::Failed, format!("5.4.7 expired; last: {reason}"), false), "{domain}");
    }
    drop(open);
}
