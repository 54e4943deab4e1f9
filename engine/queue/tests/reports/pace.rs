//! The pace at which reports are made, and what is said of those that wait for it.

use std::num::NonZeroU32;

use ringpost_queue::{
    About, Filter, MessageKey, NewMessage, Notify, Queue, QueueSettings, ReportLimits, ReportWait, Routes, Settled, Work,
};

use crate::{REFUSED, START, enqueue, message, queue_with};

/// `queue why` said that the sender is to be told, and not when.
#[test]
fn a_report_that_waits_for_the_pace_says_until_when() {
    let one = |per_second, per_minute_and_sender| ReportLimits {
        per_second: NonZeroU32::new(per_second),
        per_minute_and_sender: NonZeroU32::new(per_minute_and_sender),
    };
    for (limits, last) in [(one(10, 0), 2_000), (one(0, 6), 240_000)] {
        let mut queue = queue_with(limits);
        let keys: Vec<_> = (0..30).map(|sequence| enqueue(&mut queue, &message(sequence), &[("b@final.test", Notify::UNSAID)])).collect();
        let (mut now, mut said, mut told) = (START, Vec::new(), Vec::new());
        loop {
            match queue.poll(now, &mut Vec::new()) {
                Some(Work::Attempt(dispatch)) => {
                    let key = dispatch.key();
                    let _ = queue.settle(dispatch, &[(0, REFUSED)], now, &mut Vec::new());
                    queue.recorded(key);
                }
                Some(Work::Report(key)) => {
                    told.push((key, now));
                    assert_eq!(queue.show(key).unwrap().report_wait(now), ReportWait::Nothing, "it is being made");
                    let _ = queue.reported(key, About::Failure, &[0], now, &mut Vec::new());
                    queue.recorded(key);
                }
                Some(work) => unreachable!("{work:?}"),
                None if queue.is_empty() => break,
                None => {
                    if now == START {
                        said = keys.iter().filter_map(|key| Some((*key, queue.show(*key)?.report_wait(now)))).collect();
                    }
                    now = queue.next_due(now).unwrap();
                }
            }
        }
        assert!((20..25).contains(&said.len()) && now - START == last, "{} waited, until {}", said.len(), now - START);
        for (key, wait) in said {
            let at = told.iter().find(|(other, _)| *other == key).unwrap().1;
            assert_eq!(wait, ReportWait::Until(at));
        }
    }
    // Nobody is told anything.
    let mut queue = Queue::new(QueueSettings::default(), Routes::default(), 1, START);
    let key = enqueue(&mut queue, &message(1), &[("b@y.test", Notify::UNSAID)]);
    assert_eq!(queue.show(key).unwrap().report_wait(START), ReportWait::Off);
}

/// `queue why` looked at all waiting reports, once for each recipient: with a million of them a shard stood still for seconds.
#[test]
fn of_the_reports_that_wait_before_one_so_many_are_counted() {
    const AHEAD_MAX: usize = 10_000;
    let mut queue = queue_with(ReportLimits { per_second: NonZeroU32::new(10), per_minute_and_sender: None });
    let (mut keys, mut record) = (Vec::new(), Vec::new());
    for sequence in 0..AHEAD_MAX as u64 + 100 {
        keys.push(enqueue(&mut queue, &message(sequence), &[("b@final.test", Notify::UNSAID)]));
        let _ = queue.bounce(keys[keys.len() - 1], &Filter::default(), b"5.1.1 no", START, &mut record);
    }
    let wait = |key: &MessageKey| queue.show(*key).unwrap().report_wait(START);
    assert_eq!(wait(&keys[0]), ReportWait::Nothing);
    assert_eq!(wait(&keys[AHEAD_MAX - 1]), ReportWait::Until(START + 999_000));
    for key in &keys[AHEAD_MAX..] {
        assert_eq!(wait(key), ReportWait::Behind { more_than: AHEAD_MAX, from: START + 999_100 });
    }
}

#[test]
fn a_storm_is_reported_at_the_pace_of_its_sender_and_of_all_and_nothing_is_dropped() {
    let limits = ReportLimits { per_second: NonZeroU32::new(10), per_minute_and_sender: NonZeroU32::new(6) };
    let mut queue = queue_with(limits);
    for sequence in 0..60 {
        let reverse_path: &[u8] = if sequence < 40 { b"storm@x.test" } else { b"calm@x.test" };
        // NEVER needs no report, so it waits for none.
        let notify = if sequence == 59 { Notify::NEVER } else { Notify::UNSAID };
        enqueue(&mut queue, &NewMessage { reverse_path, ..message(sequence) }, &[("b@final.test", notify)]);
    }
    let (mut now, mut times) = (START, Vec::new());
    loop {
        match queue.poll(now, &mut Vec::new()) {
            Some(Work::Attempt(dispatch)) => {
                let key = dispatch.key();
                let _ = queue.settle(dispatch, &[(0, REFUSED)], now, &mut Vec::new());
                queue.recorded(key);
            }
            Some(Work::Report(key)) => {
                let sequence = queue.envelope(key).unwrap().id.sequence;
                times.push((now - START, sequence));
                assert_eq!(queue.reported(key, About::Failure, &[0], now, &mut Vec::new()), Settled::Done);
                queue.recorded(key);
            }
            Some(Work::Expired(..) | Work::Resolve(_) | Work::Reserve(_) | Work::Overdue(_)) => unreachable!("nothing waits so long"),
            None if queue.is_empty() => break,
            None => now = queue.next_due(now).unwrap(),
        }
    }
    assert_eq!(times.len(), 60);
    let last =
        |range: std::ops::Range<u64>| times.iter().filter(|(_, sequence)| range.contains(sequence)).map(|(at, _)| *at).max().unwrap();
    assert_eq!(last(0..40), 340_000, "six at once, then one every ten seconds");
    assert_eq!(last(40..59), 130_000, "another sender does not wait for the storm");
    assert_eq!(last(59..60), 0);
    for at in times.iter().map(|(at, _)| *at) {
        assert!(times.iter().filter(|(other, _)| (at..at + 1000).contains(other)).count() <= 20, "a second's worth and its burst");
    }
}
