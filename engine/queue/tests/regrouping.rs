//! Recipients that are sent another way while others of their message are being attempted.

use ringpost_queue::{
    Dispatch, Filter, NewMessage, NewRecipient, Notify, Outcome, Queue, QueueId, QueueSettings, ReportLimits, RetryPolicy, Route, RouteId,
    Routes, Settled, Via, Work,
};

const START: u64 = 1_790_000_000_000;
const HOUR: u64 = 3_600_000;

/// Defers all that is tried, but for what `keeps` is for, and makes all reports: the recipients they are about.
fn defer_all(queue: &mut Queue, now: u64, mut keeps: impl FnMut(u16) -> bool) -> (Vec<Dispatch>, Vec<Vec<u16>>) {
    let (mut kept, mut told) = (Vec::new(), Vec::new());
    while let Some(work) = queue.poll(now, &mut Vec::new()) {
        match work {
            Work::Attempt(dispatch) => {
                let outcomes: Vec<_> =
                    queue.recipients(&dispatch).map(|(number, _)| (number, Outcome::Deferred { reply: b"450 4.2.0 later" })).collect();
                if keeps(outcomes[0].0) {
                    kept.push(dispatch);
                } else {
                    let _ = queue.settle(dispatch, &outcomes, now, &mut Vec::new());
                }
            }
            Work::Report(key) => {
                let report = queue.report(key).unwrap();
                let _ = queue.reported(key, report.about, &report.recipients, now, &mut Vec::new());
                told.push(report.recipients);
            }
            other => panic!("{other:?}"),
        }
    }
    (kept, told)
}

/// Who joined those that had been told of their delay never was.
#[test]
fn who_joins_others_that_were_told_of_a_delay_is_told_as_well() {
    let route = |(pattern, hours): (&str, u64)| Route {
        pattern: pattern.into(),
        via: Via::Smarthost { hosts: vec![format!("192.0.2.1:{}", pattern.len()).parse().unwrap()] },
        retry: RetryPolicy { warn_after_ms: Some(hours * HOUR), ..RetryPolicy::default() },
        limits: Default::default(),
    };
    let settings = QueueSettings { reports: Some(ReportLimits::default()), ..QueueSettings::default() };
    let routes = Routes::new([("*", 4), ("z.test", 48), ("backup.test", 4)].map(route).into()).unwrap();
    let mut queue = Queue::new(settings, routes, 1, START);
    let recipients = ["b@backup.test", "c@z.test", "d@z.test"].map(|address| NewRecipient {
        address: address.as_bytes(),
        destination: queue.route(address.split_once('@').unwrap().1.as_bytes()),
        notify: Notify::UNSAID,
    });
    let message = NewMessage {
        id: QueueId { boot: 1, shard: 0, sequence: 1 },
        accepted_at: START,
        reverse_path: b"a@x.test",
        ..NewMessage::default()
    };
    let key = queue.enqueue(&message, recipients.into_iter(), START);
    assert!(defer_all(&mut queue, START, |_| false).1.is_empty());
    let now = START + 5 * HOUR;
    let (open, told) = defer_all(&mut queue, now, |number| number == 0);
    assert_eq!((open.len(), told), (1, vec![vec![0]]));
    let to_z = Filter { recipient_domain: Some("z.test".into()), ..Filter::default() };
    let _ = queue.reroute(key, &to_z, RouteId(2), now, &mut Vec::new());
    assert_eq!(defer_all(&mut queue, now + HOUR, |_| false).1, [[1, 2]]);
    open.into_iter().for_each(|dispatch| assert_eq!(queue.abandon(dispatch, now + HOUR), Settled::Nothing));
}
