//! Re-routes: who goes another way, when, and what a restart makes of it.

use ringpost_queue::{
    Cursor, Dispatch, Filter, MessageKey, NewMessage, NewRecipient, Outcome, Queue, QueueId, QueueSettings, RetryPolicy, Route, RouteId,
    Routes, Settled, State, Via, Work,
};

use crate::{HOUR, START, attempt, by_domain, destinations, enqueue, message, queue, recipients, recover, states};

#[test]
fn a_rerouted_message_goes_the_other_way_at_once_and_after_a_restart() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    assert_eq!(destinations(&queue, key), ["*", "z.test", "*"]);
    assert_eq!(queue.reroute(key, &Filter::default(), RouteId(9), START, &mut record), None);
    assert_eq!(queue.reroute(key, &Filter::default(), RouteId(2), START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    assert_eq!(destinations(&queue, key), ["backup.test"; 3]);
    let dispatch = attempt(&mut queue, START).unwrap();
    assert_eq!((dispatch.recipients(), queue.destinations(START).map(|one| one.messages).collect::<Vec<_>>()), (3, vec![0, 0, 0, 1]));
    assert_eq!(queue.abandon(dispatch, START), Settled::Nothing);
    let (recovered, key) = recover(&record, "backup.test");
    assert_eq!(destinations(&recovered, key), ["backup.test"; 3]);
    let (recovered, key) = recover(&record, "other.test");
    assert_eq!(destinations(&recovered, key), ["*", "z.test", "*"], "a route that is gone is none");
}

/// `reroute --domain z.test` sent whole messages the other way, with the recipients of other domains.
#[test]
fn a_reroute_with_a_filter_takes_along_nobody_else_also_after_a_restart() {
    let (mut queue, mut records) = (queue("backup.test"), vec![Vec::new()]);
    let key = enqueue(&mut queue);
    let reroute = |queue: &mut Queue, domain: &str, to: u16, record: &mut Vec<u8>| {
        let settled = queue.reroute(key, &by_domain(domain), RouteId(to), START, record);
        if settled == Some(Settled::Outcome) {
            queue.recorded(key);
        }
        settled
    };
    let recovered = |records: &[Vec<u8>], last_pattern: &str| {
        let mut queue = self::queue(last_pattern);
        let recipients = recipients(&mut queue);
        let recovered = queue.recover(&message(), recipients.into_iter(), records.iter().map(Vec::as_slice), START + HOUR).unwrap();
        (destinations(&queue, recovered.key), recovered.lost_route.map(str::to_owned), whole_state(&queue, recovered.key))
    };
    assert_eq!(reroute(&mut queue, "z.test", 2, &mut records[0]), Some(Settled::Outcome));
    let expected = ["*", "backup.test", "*"];
    assert_eq!(destinations(&queue, key), expected);
    let (again, lost, state) = recovered(&records, "backup.test");
    assert_eq!((again, lost), (expected.map(str::to_owned).to_vec(), None));
    assert_eq!(recovered(&[state], "backup.test").0, expected, "compaction forgets nothing");
    let (again, lost, _) = recovered(&records, "other.test");
    assert_eq!((again, lost.as_deref()), (["*", "z.test", "*"].map(str::to_owned).to_vec(), Some("backup.test")));
    // Others of the message another way, and none of a domain that it has no recipients in.
    let mut record = Vec::new();
    assert_eq!(reroute(&mut queue, "y.test", 1, &mut record), Some(Settled::Outcome));
    records.push(record);
    assert_eq!(reroute(&mut queue, "x.test", 2, &mut Vec::new()), Some(Settled::Nothing));
    assert_eq!(destinations(&queue, key), ["z.test", "backup.test", "z.test"]);
    assert_eq!(recovered(&records, "backup.test").0, ["z.test", "backup.test", "z.test"]);
    // All of it: what earlier records say of single ones is over.
    let mut record = Vec::new();
    assert_eq!(queue.reroute(key, &Filter::default(), RouteId(0), START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    records.push(record);
    assert_eq!((destinations(&queue, key), recovered(&records, "backup.test").0), (vec!["*".to_owned(); 3], vec!["*".to_owned(); 3]));
    assert_eq!(whole_state(&queue, key)[0], 2, "a program from before can read it");
}

fn whole_state(queue: &Queue, key: MessageKey) -> Vec<u8> {
    let mut record = Vec::new();
    assert!(queue.state(key, &mut record));
    record
}

/// `queue show` said of who had been delivered or purged before that it went by the route that the rest was sent by later.
#[test]
fn who_is_over_stays_where_it_went_also_after_a_restart() {
    let (mut queue, mut records) = (queue("backup.test"), vec![Vec::new(), Vec::new(), Vec::new()]);
    let key = enqueue(&mut queue);
    let dispatch = loop {
        let dispatch = attempt(&mut queue, START).unwrap();
        if dispatch.recipients() == 2 {
            break dispatch;
        }
        let later = Outcome::Deferred { reply: b"450 later" };
        assert_eq!(queue.settle(dispatch, &[(1, later)], START, &mut Vec::new()), Settled::Outcome);
        queue.recorded(key);
    };
    let outcomes = [(0, Outcome::PassedOn { reply: b"250 ok" }), (2, Outcome::Deferred { reply: b"450 later" })];
    assert_eq!(queue.settle(dispatch, &outcomes, START, &mut records[0]), Settled::Outcome);
    queue.recorded(key);
    assert_eq!(queue.purge(key, &by_domain("z.test"), START, &mut records[1]), Some(Settled::Outcome));
    queue.recorded(key);
    assert_eq!(queue.reroute(key, &Filter::default(), RouteId(2), START, &mut records[2]), Some(Settled::Outcome));
    queue.recorded(key);
    let expected = ["*", "z.test", "backup.test"];
    let routes = |queue: &Queue, key| queue.show(key).unwrap().recipients().map(|one| one.route_name().to_owned()).collect::<Vec<_>>();
    assert_eq!((destinations(&queue, key), routes(&queue, key)), (expected.map(str::to_owned).into(), expected.map(str::to_owned).into()));
    for records in [records, vec![whole_state(&queue, key)]] {
        let mut again = self::queue("backup.test");
        let recipients = recipients(&mut again);
        let recovered = again.recover(&message(), recipients.into_iter(), records.iter().map(Vec::as_slice), START + HOUR).unwrap();
        assert_eq!(routes(&again, recovered.key), expected);
    }
}

/// Each start named a route that the config no longer has though nobody was left to be sent by it.
#[test]
fn a_lost_route_is_named_only_while_somebody_goes_by_it() {
    let (mut queue, mut records) = (queue("backup.test"), vec![Vec::new(), Vec::new()]);
    let key = enqueue(&mut queue);
    assert_eq!(queue.reroute(key, &by_domain("z.test"), RouteId(2), START, &mut records[0]), Some(Settled::Outcome));
    queue.recorded(key);
    let dispatch = loop {
        let dispatch = attempt(&mut queue, START).unwrap();
        if dispatch.recipients() == 1 {
            break dispatch;
        }
    };
    let lost = |records: &[Vec<u8>]| {
        let mut queue = self::queue("other.test");
        let recipients = recipients(&mut queue);
        let recovered = queue.recover(&message(), recipients.into_iter(), records.iter().map(Vec::as_slice), START + HOUR).unwrap();
        (recovered.done, recovered.lost_route.map(str::to_owned))
    };
    assert_eq!(lost(&records[..1]), (false, Some("backup.test".to_owned())));
    assert_eq!(queue.settle(dispatch, &[(1, Outcome::Delivered { reply: b"250 ok" })], START, &mut records[1]), Settled::Outcome);
    queue.recorded(key);
    assert_eq!(lost(&records), (false, None), "the others go by their domain");
    assert_eq!(lost(&[whole_state(&queue, key)]), (false, None));
}

/// While an attempt of the message was under way, its other recipients went on going the old way.
#[test]
fn what_is_rerouted_never_goes_the_old_way_again() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    let first = attempt(&mut queue, START).unwrap();
    let old = queue.recipients(&first).map(|(_, address)| address.to_vec()).collect::<Vec<_>>();
    let (domain, open) = if old[0].ends_with(b"y.test") { ("z.test", 1) } else { ("y.test", 2) };
    assert_eq!(queue.reroute(key, &by_domain(domain), RouteId(2), START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    // It does not wait for the attempt that is under way.
    let (mut at_backup, mut elsewhere, mut others) = (0, 0, Vec::new());
    let mut begin = |queue: &mut Queue, others: &mut Vec<Dispatch>| {
        while let Some(dispatch) = attempt(queue, START) {
            match queue.destination(dispatch.destination(), START).unwrap().name {
                "backup.test" => at_backup += dispatch.recipients(),
                _ => elsewhere += dispatch.recipients(),
            }
            others.push(dispatch);
        }
        (at_backup, elsewhere)
    };
    assert_eq!(begin(&mut queue, &mut others), (open, 0));
    assert!(queue.next_due(START).is_none_or(|at| at > START), "nothing spins meanwhile");
    assert!(queue.look_for_stuck(&mut 0, 100, START).is_empty());
    assert_eq!(queue.abandon(first, START), Settled::Nothing);
    assert_eq!(begin(&mut queue, &mut others), (open, 3 - open));
    others.into_iter().for_each(|dispatch| assert_eq!(queue.abandon(dispatch, START), Settled::Nothing));
}

/// A host that refused, after an operator had sent the mail away from it, failed it for good.
#[test]
fn a_refusal_on_the_old_way_fails_nobody_who_was_rerouted_before() {
    for is_in_part in [false, true] {
        let (mut queue, mut record) = (queue("backup.test"), Vec::new());
        let key = enqueue(&mut queue);
        let (first, second) = (attempt(&mut queue, START).unwrap(), attempt(&mut queue, START).unwrap());
        let (mut two, other) = if first.recipients() == 2 { (first, second) } else { (second, first) };
        assert_eq!((two.recipients(), other.recipients()), (2, 1));
        assert_eq!(queue.reroute(key, &by_domain("y.test"), RouteId(2), START, &mut record), Some(Settled::Outcome));
        queue.recorded(key);
        let refused = |number| (number, Outcome::Failed { reply: b"550 5.7.1 no" });
        assert_eq!((queue.goes_elsewhere(&two, 0), queue.goes_elsewhere(&other, 1)), (true, false));
        if is_in_part {
            assert_eq!(queue.settle_some(&mut two, &[refused(0)], "", START, &mut record), Settled::Outcome);
            queue.recorded(key);
            assert_eq!(
                attempt(&mut queue, START).map(|dispatch| queue.abandon(dispatch, START)),
                Some(Settled::Nothing),
                "it goes at once"
            );
            assert_eq!(queue.settle(two, &[refused(2)], START, &mut record), Settled::Outcome);
        } else {
            assert_eq!(queue.settle(two, &[refused(0), refused(2)], START, &mut record), Settled::Outcome);
        }
        queue.recorded(key);
        // Of its own way it is the last word.
        assert_eq!(queue.settle(other, &[refused(1)], START, &mut record), Settled::Outcome);
        queue.recorded(key);
        assert_eq!(states(&queue, key), [State::Ready, State::Failed, State::Ready]);
        let whole = whole_state(&queue, key);
        let (recovered, again) = recover(&whole, "backup.test");
        assert_eq!((states(&recovered, again)[0], states(&recovered, again)[1]), (State::Ready, State::Failed));
        for (queue, key) in [(&queue, key), (&recovered, again)] {
            assert_eq!(destinations(queue, key), ["backup.test", "z.test", "backup.test"]);
        }
        let dispatch = attempt(&mut queue, START).unwrap();
        assert_eq!((queue.destination(dispatch.destination(), START).unwrap().name, dispatch.recipients()), ("backup.test", 2));
        // There it is the last word, too.
        assert_eq!(queue.settle(dispatch, &[refused(0), refused(2)], START, &mut record), Settled::Outcome);
        assert_eq!(states(&queue, key), [State::Failed; 3]);
    }
}

/// Some of an attempt's recipients go on to another host; who comes back before them went the old way once more, or waited for them.
#[test]
fn who_comes_back_before_the_others_of_the_attempt_goes_where_it_was_rerouted_to() {
    for outcome in [Outcome::Untried { reply: b"421 4.3.2 bye" }, Outcome::Deferred { reply: b"450 4.2.0 later" }] {
        let (mut queue, mut record) = (queue("backup.test"), Vec::new());
        let key = enqueue(&mut queue);
        let mut two = loop {
            let dispatch = attempt(&mut queue, START).unwrap();
            if dispatch.recipients() == 2 {
                break dispatch;
            }
            let _ = queue.settle(dispatch, &[(1, Outcome::Delivered { reply: b"250 ok" })], START, &mut record);
            queue.recorded(key);
        };
        assert_eq!(queue.reroute(key, &by_domain("y.test"), RouteId(2), START, &mut record), Some(Settled::Outcome));
        queue.recorded(key);
        if queue.settle_some(&mut two, &[(2, outcome)], "", START, &mut record) == Settled::Outcome {
            queue.recorded(key);
        }
        let mut begun = Vec::new();
        while let Some(dispatch) = attempt(&mut queue, START) {
            begun.push(dispatch);
        }
        let way = |dispatch: &Dispatch| queue.destination(dispatch.destination(), START).unwrap().name.to_owned();
        let gone: Vec<_> = begun
            .iter()
            .flat_map(|dispatch| queue.recipients(dispatch).map(|(number, _)| (number, way(dispatch))).collect::<Vec<_>>())
            .filter(|(number, _)| *number != 1)
            .collect();
        assert_eq!(gone, [(2, "backup.test".to_owned())]);
        assert!(queue.look_for_stuck(&mut 0, 100, START).is_empty());
    }
}

/// A re-route of one recipient kept all others of its message back as long as any attempt ran, and what was deferred meanwhile beyond its time.
#[test]
fn a_reroute_of_one_recipient_keeps_no_other_back() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    let open = loop {
        let dispatch = attempt(&mut queue, START).unwrap();
        if dispatch.recipients() == 1 {
            break dispatch;
        }
        let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Deferred { reply: b"450 later" })).collect();
        assert_eq!(queue.settle(dispatch, &outcomes, START, &mut record), Settled::Outcome);
        queue.recorded(key);
    };
    // The recipient whose attempt runs is sent another way; the two others have been deferred, or are ready.
    assert_eq!(queue.reroute(key, &by_domain("z.test"), RouteId(2), START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    assert_eq!(destinations(&queue, key), ["*", "z.test", "*"], "it goes there when its attempt has ended");
    let now = START + HOUR;
    let others = attempt(&mut queue, now).expect("they are tried when their time has come");
    assert_eq!(queue.recipients(&others).map(|(number, _)| number).collect::<Vec<_>>(), [0, 2]);
    assert!(attempt(&mut queue, now).is_none());
    let deferred = [(1, Outcome::Deferred { reply: b"450 later" })];
    assert_eq!(queue.settle(open, &deferred, now, &mut record), Settled::Outcome);
    queue.recorded(key);
    assert_eq!(destinations(&queue, key), ["*", "backup.test", "*"], "the attempt of the others still runs");
    assert!(queue.look_for_stuck(&mut 0, 100, now).is_empty());
    let moved = attempt(&mut queue, now + HOUR).unwrap();
    assert_eq!(queue.destination(moved.destination(), now).unwrap().name, "backup.test");
    assert_eq!(queue.abandon(moved, now + HOUR), Settled::Nothing);
    assert_eq!(queue.abandon(others, now + HOUR), Settled::Nothing);
}

#[test]
fn a_message_rerouted_during_attempts_moves_as_each_of_them_ends() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    let (first, second) = (attempt(&mut queue, START).unwrap(), attempt(&mut queue, START).unwrap());
    assert_eq!(queue.reroute(key, &Filter::default(), RouteId(2), START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    let deferred: Vec<_> = queue.recipients(&first).map(|(number, _)| (number, Outcome::Deferred { reply: b"450 later" })).collect();
    assert_eq!(queue.settle(first, &deferred, START, &mut record), Settled::Outcome);
    queue.recorded(key);
    let moved = |number: u16| deferred.iter().any(|(deferred, _)| *deferred == number);
    let expected: Vec<_> =
        (0..3).map(|number| if moved(number) { "backup.test" } else { ["*", "z.test", "*"][usize::from(number)] }).collect();
    assert_eq!(destinations(&queue, key), expected, "the other attempt is still open");
    assert_eq!(queue.abandon(second, START), Settled::Nothing);
    assert_eq!(destinations(&queue, key), ["backup.test"; 3]);
    // All go at once to the new destination, which has not deferred them.
    let dispatch = attempt(&mut queue, START).unwrap();
    assert_eq!(dispatch.recipients(), 3);
    assert_eq!(queue.abandon(dispatch, START), Settled::Nothing);
    let counts = queue.counts();
    assert_eq!((counts.ready, counts.waiting, counts.attempting), (3, 0, 0));
}

/// It had time for one more attempt where it came from, and none where it went to: with a shorter lifetime there it bounced at once.
#[test]
fn old_mail_that_is_rerouted_is_attempted_once_where_it_leads_now() {
    for is_under_way in [false, true] {
        let (mut queue, mut record) = (queue("backup.test"), Vec::new());
        let routes = ["*", "z.test", "backup.test"].map(|pattern| Route {
            pattern: pattern.into(),
            via: Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] },
            retry: RetryPolicy { lifetime_ms: if pattern == "backup.test" { HOUR } else { 24 * HOUR }, ..RetryPolicy::default() },
            limits: Default::default(),
        });
        queue.set_routes(routes.into(), START).unwrap();
        let key = enqueue(&mut queue);
        let now = START + 2 * HOUR;
        let open = if is_under_way { attempt(&mut queue, now) } else { None };
        assert_eq!(queue.reroute(key, &Filter::default(), RouteId(2), now, &mut record), Some(Settled::Outcome));
        queue.recorded(key);
        if let Some(dispatch) = open {
            assert_eq!(queue.abandon(dispatch, now), Settled::Nothing);
        }
        let dispatch = attempt(&mut queue, now).expect("it is tried there at once");
        let outcomes: Vec<_> = queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Deferred { reply: b"450 later" })).collect();
        assert_eq!(queue.settle(dispatch, &outcomes, now, &mut record), Settled::Outcome);
        queue.recorded(key);
        assert_eq!(states(&queue, key), [State::Failed; 3]);
    }
}

/// While the re-route of an old message waited for an attempt to end, the way that it had left went on ending it: with a short lifetime there
/// it bounced, the recipient of the attempt as well as those that were kept back.
#[test]
fn what_waits_to_go_another_way_does_not_expire_by_the_old_one() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let routes = ["*", "z.test", "backup.test"].map(|pattern| Route {
        pattern: pattern.into(),
        via: Via::Smarthost { hosts: vec!["192.0.2.1:25".parse().unwrap()] },
        retry: RetryPolicy { lifetime_ms: if pattern == "backup.test" { 24 * HOUR } else { HOUR }, ..RetryPolicy::default() },
        limits: Default::default(),
    });
    queue.set_routes(routes.into(), START).unwrap();
    let key = enqueue(&mut queue);
    let open = attempt(&mut queue, START).unwrap();
    assert_eq!(queue.reroute(key, &Filter::default(), RouteId(2), START + 1, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    let now = START + 2 * HOUR;
    let moved = attempt(&mut queue, now).expect("nothing expires");
    assert_eq!(queue.abandon(moved, now), Settled::Nothing);
    let outcomes: Vec<_> = queue.recipients(&open).map(|(number, _)| (number, Outcome::Deferred { reply: b"450 later" })).collect();
    assert_eq!(queue.settle(open, &outcomes, now, &mut record), Settled::Outcome);
    queue.recorded(key);
    assert_eq!(destinations(&queue, key), ["backup.test"; 3]);
    assert!(states(&queue, key).iter().all(|state| matches!(state, State::Ready | State::Deferred)), "{:?}", states(&queue, key));
    // A time of its own counts all the while, for those that wait.
    let mut first = attempt(&mut queue, now).unwrap();
    let deferred = [(0, Outcome::Deferred { reply: b"450 later" })];
    assert_eq!(queue.settle_some(&mut first, &deferred, "", now, &mut record), Settled::Outcome);
    queue.recorded(key);
    assert_eq!(queue.reroute(key, &Filter::default(), RouteId(0), now, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    assert_eq!(queue.set_expiry(key, now + 1, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    assert!(matches!(queue.poll(now + 1, &mut record), Some(Work::Expired(own, _)) if own == key));
    assert_eq!(queue.abandon(first, now + 1), Settled::Nothing);
}

/// A bare `postmaster` that was sent by an mx route was looked for in the domain "" after a restart.
#[test]
fn a_recipient_without_a_domain_is_rerouted_by_the_local_one_also_after_a_restart() {
    let mx = |pattern: &str| Route {
        pattern: pattern.into(),
        via: Via::Mx { port: 25 },
        retry: RetryPolicy::default(),
        limits: Default::default(),
    };
    let queue = || {
        let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![mx("*"), mx("backup.test")]).unwrap(), 1, START);
        queue.set_local_domain("mx1.example.test");
        queue
    };
    let postmaster = |queue: &mut Queue| {
        let destination = queue.route(b"mx1.example.test");
        [NewRecipient { address: b"postmaster", destination, notify: Default::default() }]
    };
    let (mut running, mut restarted, mut record) = (queue(), queue(), Vec::new());
    let recipients = postmaster(&mut running);
    let key = running.enqueue(&message(), recipients.into_iter(), START);
    assert_eq!(running.reroute(key, &Filter::default(), RouteId(1), START, &mut record), Some(Settled::Outcome));
    running.recorded(key);
    let recipients = postmaster(&mut restarted);
    let recovered = restarted.recover(&message(), recipients.into_iter(), [&record[..]].into_iter(), START).unwrap();
    for (queue, key) in [(&running, key), (&restarted, recovered.key)] {
        let destination = queue.show(key).unwrap().recipients().next().unwrap().destination();
        let name = queue.destination(destination, START).unwrap().name;
        assert_eq!((name, queue.route_of(destination)), ("mx1.example.test", Some(RouteId(1))));
    }
}

/// A command goes along the lists of a destination, also that of the route where it sends the mail: all that it had sent there stood behind the rest once
/// more, so that with more than one page of it the command never ended, and wrote a record for each message each time.
#[test]
fn a_reroute_along_the_list_that_it_leads_to_ends_and_finds_each_message_once() {
    const PAGE: usize = 256;
    let mut queue = queue("backup.test");
    let mail: Vec<_> = (1..=600_u64)
        .map(|sequence| {
            let recipients = recipients(&mut queue);
            let id = QueueId { sequence, ..message().id };
            queue.enqueue(&NewMessage { id, ..message() }, recipients.into_iter().take(1), START)
        })
        .collect();
    let (from, to) = (queue.route(b"y.test"), queue.route(b"backup.test"));
    for (is_there_already, destinations) in [(false, vec![from]), (true, vec![to]), (true, vec![from, to])] {
        let filter = Filter { destinations, ..Filter::default() };
        let (mut seen, mut cursor) = (Vec::new(), Some(Cursor::default()));
        while let Some(at) = cursor {
            let mut page = Vec::new();
            cursor = queue.page(&filter, at, PAGE, |view| page.push(view.key())).unwrap();
            for key in page {
                let mut record = Vec::new();
                let settled = queue.reroute(key, &filter, RouteId(2), START, &mut record);
                let expected = if is_there_already { Settled::Nothing } else { Settled::Outcome };
                assert_eq!((settled, record.is_empty()), (Some(expected), is_there_already));
                if !is_there_already {
                    queue.recorded(key);
                }
                seen.push(key);
                assert!(seen.len() <= mail.len(), "it is found again");
            }
        }
        assert_eq!(seen, mail);
    }
    // What waits for a later time there is tried at once.
    let dispatch = attempt(&mut queue, START).unwrap();
    let key = dispatch.key();
    assert_eq!(queue.settle(dispatch, &[(0, Outcome::Deferred { reply: b"450 later" })], START, &mut Vec::new()), Settled::Outcome);
    queue.recorded(key);
    assert_eq!(states(&queue, key), [State::Deferred]);
    assert_eq!(queue.reroute(key, &Filter::default(), RouteId(2), START + 1, &mut Vec::new()), Some(Settled::Outcome));
    assert_eq!(states(&queue, key), [State::Ready]);
}
