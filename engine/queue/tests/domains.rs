//! Routes by mx: domains have destinations of their own, wait for DNS, share sites, move when DNS says so, and are dropped.

use ringpost_queue::{
    DestinationLimits, Dispatch, Filter, HostsTried, Lookup, NewMessage, NewRecipient, NextHop, Notify, Outcome, Question, Queue, QueueId,
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
    queue.resolved(lookups[1].destination, &site("o", &["192.0.2.9:25"], START + MINUTE), START);
    assert_eq!(work(&mut queue, START).0.len(), 1);
    queue.resolved(lookups[0].destination, &site("e", &["192.0.2.1:25"], START + MINUTE), START);
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
    queue.resolved(lookups[0].destination, &site("y", &["192.0.2.1:25"], START + MINUTE), START);
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
        queue.resolved(lookup.destination, &site("10 mx", &["192.0.2.1:25"], START + MINUTE), START);
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
    queue.resolved(lookups[0].destination, &site("old", &["192.0.2.1:25"], START + MINUTE), START);
    let mut now = START;
    loop {
        let (attempts, lookups) = work(&mut queue, now);
        for dispatch in attempts {
            let (destination, mut tried) = (dispatch.destination(), HostsTried::default());
            while let Some(host) = queue.next_host(destination, &mut tried, now) {
                queue.host_failed(destination, host, "connect: refused", now);
            }
            let key = dispatch.key();
            assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Outcome);
            queue.recorded(key);
        }
        if let Some(lookup) = lookups.first() {
            assert_eq!(now, START + MINUTE, "when the answer is old");
            queue.resolved(lookup.destination, &site("new", &["192.0.2.2:25"], now + MINUTE), now);
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

/// What DNS says of a domain with three hosts beside its first, of which each turn brings another one.
fn part_of_site(turn: u16, until: u64) -> Resolution {
    let hosts = ["192.0.2.1:25".to_owned(), format!("192.0.2.{}:25", 2 + turn % 3)].map(|host| host.parse().unwrap());
    Resolution::Site { key: "many".into(), name: "mx.test".into(), hosts: hosts.into(), is_whole: false, until }
}

fn turn_of(lookup: &Lookup) -> u16 {
    let Question::Mx { turn, .. } = &lookup.question else { panic!("of a route by mx") };
    *turn
}

/// Mail of a domain whose first hosts are dead was deferred until it expired: the others were never asked for.
#[test]
fn where_no_host_of_many_answers_others_are_asked_for_after_a_back_off() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@one.test"], START);
    let (mut now, mut turns, mut delivered) = (START, Vec::new(), false);
    while !delivered {
        let (attempts, lookups) = work(&mut queue, now);
        for dispatch in attempts {
            let (destination, mut tried) = (dispatch.destination(), HostsTried::default());
            let mut alive = None;
            while let Some(host) = queue.next_host(destination, &mut tried, now) {
                if queue.host_address(destination, host).unwrap().name == "192.0.2.4:25" {
                    alive = Some(host);
                    break;
                }
                queue.host_failed(destination, host, "connect: refused", now);
            }
            if let Some(host) = alive {
                queue.host_reached(destination, host, now);
                deliver(&mut queue, dispatch, now);
                delivered = true;
            } else if queue.ends_round(destination, tried, now) {
                let key = dispatch.key();
                assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Outcome);
                queue.recorded(key);
            } else {
                assert_eq!(queue.abandon(dispatch, now), Settled::Nothing);
            }
        }
        for lookup in lookups {
            turns.push((turn_of(&lookup), now - START));
            queue.resolved(lookup.destination, &part_of_site(turn_of(&lookup), now + 600 * MINUTE), now);
        }
        now = if delivered { now } else { queue.next_due(now).unwrap().max(now + 1) };
        assert!(now < START + 10 * MINUTE, "{turns:?}");
    }
    let [(0, 0), (1, first), (2, second)] = turns[..] else { panic!("{turns:?}") };
    assert!((4000..8000).contains(&first) && (8000..30_000).contains(&(second - first)), "{turns:?}");

    // Others at this site go by what it found, and do not exchange its hosts for the first ones.
    enqueue(&mut queue, 2, 5, &["a@two.test"], now);
    let (_, lookups) = work(&mut queue, now);
    assert_eq!(turn_of(&lookups[0]), 0, "nothing is known of it");
    queue.resolved(lookups[0].destination, &part_of_site(0, now + 1000), now);
    let (attempts, _) = work(&mut queue, now);
    let hosts: Vec<_> = queue.hosts(attempts[0].destination()).map(|host| host.name.as_str()).collect();
    assert_eq!(hosts, ["192.0.2.1:25", "192.0.2.4:25"]);
    attempts.into_iter().for_each(|dispatch| deliver(&mut queue, dispatch, now));
    enqueue(&mut queue, 3, 5, &["a@two.test"], now + 1000);
    let (_, lookups) = work(&mut queue, now + 1000);
    assert_eq!(turn_of(&lookups[0]), 2);
}

#[test]
fn where_no_host_of_those_asked_for_has_an_address_the_next_question_is_about_others() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@one.test"], START);
    let (mut now, mut turns) = (START, Vec::new());
    for has_more in [false, true, true, false] {
        let lookup = loop {
            let (attempts, mut lookups) = work(&mut queue, now);
            for dispatch in attempts {
                let key = dispatch.key();
                assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Outcome);
                queue.recorded(key);
            }
            if let Some(lookup) = lookups.pop() {
                break lookup;
            }
            now = queue.next_due(now).unwrap().max(now + 1);
        };
        turns.push(turn_of(&lookup));
        queue.resolved(lookup.destination, &Resolution::Unanswered { reason: "none".into(), has_more }, now);
    }
    // Seven times eight hosts, and the best eight, are sixty-four.
    assert_eq!(turns, [0, 0, 7, 14]);
}

#[test]
fn an_old_answer_is_asked_for_again_before_the_next_attempt_and_not_before() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@one.test"], START);
    let (_, lookups) = work(&mut queue, START);
    queue.resolved(lookups[0].destination, &site("s", &["192.0.2.1:25"], START + MINUTE), START);
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
    queue.resolved(lookups[0].destination, &site("s", &["192.0.2.1:25"], now + MINUTE), now);
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
            assert_eq!(queue.unreachable(dispatch, now, &mut Vec::new()), Settled::Outcome);
            queue.recorded(key);
            assert_eq!(reason(&queue, 7, now), "MX of broken.test: SERVFAIL");
            assert_eq!(word(&queue, 7, now), ("451 4.4.3 MX of broken.test: SERVFAIL".into(), None));
        }
        for lookup in lookups {
            questions.push(now);
            queue.resolved(
                lookup.destination,
                &Resolution::Unanswered { reason: "MX of broken.test: SERVFAIL".into(), has_more: false },
                now,
            );
        }
        now = queue.next_due(now).unwrap().max(now + 1);
    }
    assert!((7..20).contains(&questions.len()), "{}", questions.len());
    assert!((questions.len() - 1..=questions.len()).contains(&told));
    assert!(questions[1] - questions[0] <= 6000);
    assert_eq!(queue.counts().ready, 100, "nobody was deferred by name");
}

#[test]
fn a_refusal_of_dns_fails_each_message_with_its_words() {
    let mut queue = queue();
    for sequence in 0..3 {
        enqueue(&mut queue, sequence, 5, &["a@nosuch.test", "b@nosuch.test"], START);
    }
    let (_, lookups) = work(&mut queue, START);
    assert!(!lookups[0].anew);
    let reply = "556 5.1.10 nosuch.test takes no mail (null MX)";
    queue.resolved(lookups[0].destination, &Resolution::Refused { reply: reply.into(), until: START + MINUTE }, START);
    let (attempts, _) = work(&mut queue, START);
    assert_eq!(attempts.len(), 3);
    let key = attempts[0].key();
    for dispatch in attempts {
        assert_eq!(queue.verdict(&dispatch), Some(Verdict::Refused(reply.into())));
        let outcomes: Vec<_> =
            queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Failed { reply: reply.as_bytes() })).collect();
        assert_eq!(outcomes.len(), 2);
        assert_eq!(queue.settle(dispatch, &outcomes, START, &mut Vec::new()), Settled::Outcome);
    }
    assert_eq!(queue.counts().failed, 6);
    // Who retries has mended it, or believes so: what was said before says nothing.
    assert_eq!(queue.retry(key, &Filter::default(), START, &mut Vec::new()), Some(Settled::Outcome));
    let (attempts, lookups) = work(&mut queue, START);
    assert!(attempts.is_empty() && lookups.len() == 1 && lookups[0].anew);
    queue.not_asked(lookups[0].destination, START);
    let (_, lookups) = work(&mut queue, START + 1000);
    assert!(lookups[0].anew, "nobody has answered yet");
    queue.resolved(lookups[0].destination, &Resolution::Refused { reply: reply.into(), until: START + MINUTE }, START);
    let (attempts, _) = work(&mut queue, START + MINUTE);
    attempts.into_iter().for_each(|dispatch| assert_eq!(queue.abandon(dispatch, START + MINUTE), Settled::Nothing));
}

/// Nobody asked for a domain without mail: after a retry of a message whose refused recipient had left, other shards, and those that had
/// never heard of the domain, went on refusing mail for it by the old answer.
#[test]
fn a_retry_asks_about_a_refused_domain_at_once_though_its_mail_is_gone() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@nosuch.test", "b@known.test"], START);
    let (_, lookups) = work(&mut queue, START);
    let (mut refused, mut key) = (None, None);
    for lookup in lookups {
        let is_known = lookup.question == Question::Mx { domain: "known.test".into(), port: 25, turn: 0 };
        let refusal = Resolution::Refused { reply: "550 5.1.2 no".into(), until: START + 60 * MINUTE };
        let resolution = if is_known { site("s", &["192.0.2.1:25"], START + 60 * MINUTE) } else { refusal };
        refused = if is_known { refused } else { Some(lookup.destination) };
        queue.resolved(lookup.destination, &resolution, START);
    }
    let refused = refused.unwrap();
    for dispatch in work(&mut queue, START).0 {
        key = Some(dispatch.key());
        let number = queue.recipients(&dispatch).next().unwrap().0;
        let outcome = match queue.verdict(&dispatch) {
            Some(_) => Outcome::Failed { reply: b"550 5.1.2 no" },
            None => Outcome::Deferred { reply: b"450 later" },
        };
        assert_eq!(queue.settle(dispatch, &[(number, outcome)], START, &mut Vec::new()), Settled::Outcome);
    }
    let key = key.unwrap();
    let failed = Filter { state: Some(State::Failed), ..Filter::default() };
    assert_eq!(queue.purge(key, &failed, START, &mut Vec::new()), Some(Settled::Outcome));
    assert_eq!(queue.retry(key, &Filter::default(), START + 1, &mut Vec::new()), Some(Settled::Outcome));
    let (attempts, lookups) = work(&mut queue, START + 1);
    attempts.into_iter().for_each(|dispatch| assert_eq!(queue.abandon(dispatch, START + 1), Settled::Nothing));
    assert_eq!(lookups.iter().map(|lookup| (lookup.destination, lookup.anew)).collect::<Vec<_>>(), [(refused, true)]);
    // Its question did not get through: it comes again soon, and nothing spins meanwhile.
    queue.not_asked(refused, START + 1);
    assert!(work(&mut queue, START + 100).1.is_empty() && queue.next_due(START + 100).is_some_and(|at| at > START + 100));
    let (_, lookups) = work(&mut queue, START + 101);
    assert_eq!(lookups.iter().map(|lookup| (lookup.destination, lookup.anew)).collect::<Vec<_>>(), [(refused, true)]);
    // Another shard hears that the refusal counts no more, and fails nobody by it.
    let mut other = self::queue();
    enqueue(&mut other, 1, 5, &["a@nosuch.test"], START);
    let destination = work(&mut other, START).1[0].destination;
    let refusal = Resolution::Refused { reply: "550 5.1.2 no".into(), until: START + 60 * MINUTE };
    other.resolved(destination, &refusal, START);
    other.resolved(destination, &Resolution::Awaited, START);
    let (attempts, lookups) = work(&mut other, START);
    assert!(attempts.is_empty() && lookups.is_empty(), "it waits");
    other.resolved(destination, &site("s", &["192.0.2.1:25"], START + MINUTE), START);
    let (attempts, _) = work(&mut other, START);
    assert!(attempts.len() == 1 && other.verdict(&attempts[0]).is_none());
    other.resolved(destination, &Resolution::Awaited, START);
    attempts.into_iter().for_each(|dispatch| assert_eq!(other.abandon(dispatch, START), Settled::Nothing));
    assert_eq!(
        work(&mut other, START).0.into_iter().map(|dispatch| assert_eq!(other.abandon(dispatch, START), Settled::Nothing)).count(),
        1,
        "hosts are no refusal"
    );
}

/// It was put off as one that mail waits for; without that mail nobody asked, and other shards went on refusing by the old answer.
#[test]
fn a_retrys_question_that_was_put_off_is_asked_though_its_mail_is_withdrawn_meanwhile() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@nosuch.test"], START);
    let refused = work(&mut queue, START).1[0].destination;
    let refusal = Resolution::Refused { reply: "550 5.1.2 no".into(), until: START + 60 * MINUTE };
    queue.resolved(refused, &refusal, START);
    let dispatch = work(&mut queue, START).0.pop().unwrap();
    let key = dispatch.key();
    let _ = queue.settle(dispatch, &[(0, Outcome::Failed { reply: b"550 5.1.2 no" })], START, &mut Vec::new());
    assert_eq!(queue.retry(key, &Filter::default(), START + 1, &mut Vec::new()), Some(Settled::Outcome));
    assert_eq!(work(&mut queue, START + 1).1.iter().map(|lookup| lookup.anew).collect::<Vec<_>>(), [true]);
    queue.not_asked(refused, START + 1);
    assert!(queue.purge(key, &Filter::default(), START + 50, &mut Vec::new()).is_some());
    assert!(work(&mut queue, START + 100).1.is_empty());
    assert!(queue.next_due(START + 100).is_some_and(|at| at > START + 100), "a time of its own brings it back");
    let (_, lookups) = work(&mut queue, START + 101);
    assert_eq!(lookups.iter().map(|lookup| (lookup.destination, lookup.anew)).collect::<Vec<_>>(), [(refused, true)]);
    // Nobody comes back to it: it is asked once more after two minutes, and no longer when there is an answer.
    assert!(work(&mut queue, START + 101 + 2 * MINUTE - 1).1.is_empty());
    assert_eq!(work(&mut queue, START + 101 + 2 * MINUTE).1.len(), 1);
    queue.resolved(refused, &refusal, START + 3 * MINUTE);
    assert!(work(&mut queue, START + 9 * MINUTE).1.is_empty());
}

#[test]
fn hosts_that_stay_keep_what_is_known_of_them_and_a_late_word_about_one_that_left_is_ignored() {
    let mut queue = queue();
    enqueue(&mut queue, 1, 5, &["a@one.test"], START);
    let (_, lookups) = work(&mut queue, START);
    let destination = lookups[0].destination;
    queue.resolved(destination, &site("s", &["192.0.2.1:25", "192.0.2.2:25"], START + MINUTE), START);
    let (attempts, _) = work(&mut queue, START);
    let acting = attempts[0].destination();
    let mut tried = HostsTried::default();
    let (first, second) = (queue.next_host(acting, &mut tried, START).unwrap(), queue.next_host(acting, &mut tried, START).unwrap());
    let name = |queue: &Queue, host| queue.host_address(acting, host).map(|hop| hop.name.clone());
    let (left, stays) = (name(&queue, first).unwrap(), name(&queue, second).unwrap());
    queue.host_failed(acting, second, "connect: refused", START);
    queue.resolved(destination, &site("s", &[&stays, "192.0.2.3:25"], START + MINUTE), START);
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
        queue.resolved(lookups[0].destination, &site(&domain, &["192.0.2.1:25"], now + MINUTE), now);
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
