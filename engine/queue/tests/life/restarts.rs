//! What survives a restart, and what a clock that was wrong before it left behind.

use ringpost_queue::{DecodeError, NewMessage, Queue, QueueId, Recovered, Settled, State};

use crate::{DAY, DELIVERED, ID, LATER, MINUTE, START, attempt, enqueue, expire, message, queue, recipients, state};

#[test]
fn mail_recovered_after_its_end_gets_one_attempt_and_at_most_the_grace() {
    let now = START + 8 * DAY;
    let mut queue = queue();
    let recipients = recipients(&mut queue, &["b@y.test"]);
    let Recovered { key, .. } = queue.recover(&message(ID), recipients.clone().into_iter(), std::iter::empty(), now).unwrap();
    let dispatch = attempt(&mut queue, now).unwrap();
    let _ = queue.settle(dispatch, &[(0, LATER)], now, &mut Vec::new());
    assert_eq!(state(&queue, key).0, State::Failed);

    let mut queue = self::queue();
    let destination = queue.route(b"y.test");
    queue.pause(destination, true, now);
    let Recovered { key, .. } = queue.recover(&message(ID), recipients.into_iter(), std::iter::empty(), now).unwrap();
    assert!(attempt(&mut queue, now + 4 * 60 * MINUTE - 1).is_none());
    // Reports of its delay said Will-Retry-Until a time that was over: what they say is when it expires.
    let view = queue.show(key).unwrap().recipients().next().unwrap();
    assert_eq!((view.expires_at(), view.fails_at()), (now + 4 * 60 * MINUTE, Some(now + 4 * 60 * MINUTE)));
    expire(&mut queue, now + 4 * 60 * MINUTE);
}

/// What was accepted and deferred while the clock was ahead waited until the right time had come to the wrong one, and no event led out:
/// the timer was set, so nothing seemed stuck.
#[test]
fn mail_of_a_clock_that_was_ahead_goes_on_at_the_next_start_and_expires_in_its_time() {
    let (ahead, mut record) = (12 * 365 * DAY, Vec::new());
    let mut queue = queue();
    let recipients = recipients(&mut queue, &["b@y.test"]);
    let late = NewMessage { accepted_at: START + ahead, expires_at: Some(START + ahead + 3 * DAY), ..message(ID) };
    queue.enqueue(&late, recipients.clone().into_iter(), START + ahead);
    let dispatch = attempt(&mut queue, START + ahead).unwrap();
    let _ = queue.settle(dispatch, &[(0, LATER)], START + ahead, &mut record);

    let mut queue = self::queue();
    let Recovered { key, .. } = queue.recover(&late, recipients.clone().into_iter(), [&record[..]].into_iter(), START).unwrap();
    let view = queue.show(key).unwrap().recipients().next().unwrap();
    assert!(view.next_attempt(START).unwrap() <= START + 5 * 60 * MINUTE);
    assert_eq!(view.expires_at(), START + 3 * DAY);
    let mut now = START;
    while attempt(&mut queue, now).map(|dispatch| assert_eq!(queue.abandon(dispatch, now), Settled::Nothing)).is_none() {
        now = queue.next_due(now).unwrap();
    }
    assert!(now <= START + 5 * 60 * MINUTE, "{} min", (now - START) / MINUTE);

    // What is to be released later has the time that it was given.
    let held = NewMessage { accepted_at: START + ahead, not_before: Some(START + ahead + DAY), ..message(ID) };
    let mut queue = self::queue();
    let Recovered { key, .. } = queue.recover(&held, recipients.into_iter(), std::iter::empty(), START).unwrap();
    let view = queue.show(key).unwrap().recipients().next().unwrap();
    assert_eq!((view.next_attempt(START), view.expires_at()), (Some(START + DAY), START + 6 * DAY));
}

/// Before the clock was set right, mail came in from 1970: after the next start it was too old, and failed at its first deferral.
#[test]
fn mail_of_a_clock_that_was_behind_is_as_old_as_it_can_be() {
    // The start before was at START, so the one after it, whatever its clock said, was not earlier.
    let id = QueueId { boot: (START / 1000) as u32 + 1, ..ID };
    let mut queue = queue();
    let recipients = recipients(&mut queue, &["b@y.test"]);
    let early = NewMessage { accepted_at: 5000, ..message(id) };
    let now = START + DAY;
    let Recovered { key, .. } = queue.recover(&early, recipients.clone().into_iter(), std::iter::empty(), now).unwrap();
    let dispatch = attempt(&mut queue, now).unwrap();
    let _ = queue.settle(dispatch, &[(0, LATER)], now, &mut Vec::new());
    assert_eq!((state(&queue, key).0, queue.show(key).unwrap().envelope().accepted_at), (State::Deferred, START + 1000));
    // What another node has accepted, days before the last start of this one, is as old as it is.
    let taken_over = NewMessage { accepted_elsewhere: true, accepted_at: START - 3 * DAY, ..message(id) };
    let mut queue = self::queue();
    let recovered = queue.recover(&taken_over, recipients.clone().into_iter(), std::iter::empty(), now).unwrap();
    assert_eq!(queue.show(recovered.key).unwrap().envelope().accepted_at, START - 3 * DAY);
    // A number that was counted on from a clock far ahead says nothing of the time.
    let far = NewMessage { id: QueueId { boot: u32::MAX, ..ID }, ..message(ID) };
    let mut queue = self::queue();
    let Recovered { key, .. } = queue.recover(&far, recipients.into_iter(), std::iter::empty(), START + DAY).unwrap();
    assert_eq!(queue.show(key).unwrap().envelope().accepted_at, START);
}

#[test]
fn attempts_times_and_replies_survive_a_restart_and_the_newest_record_wins() {
    let mut queue = queue();
    let key = enqueue(&mut queue, &["b@y.test", "c@y.test", "d@short.test"]);
    let (mut records, mut now) = (Vec::new(), START);
    for round in 0..3 {
        while let Some(dispatch) = attempt(&mut queue, now) {
            let numbers: Vec<u16> = queue.recipients(&dispatch).map(|(number, _)| number).collect();
            let outcomes: Vec<_> = numbers.iter().map(|&n| (n, if n == 1 && round == 1 { DELIVERED } else { LATER })).collect();
            let mut record = Vec::new();
            assert_eq!(queue.settle(dispatch, &outcomes, now, &mut record), Settled::Outcome);
            records.push(record);
        }
        now = queue.show(key).unwrap().recipients().filter_map(|recipient| recipient.next_attempt(now)).max().unwrap();
    }
    let facts = |queue: &Queue, key| {
        let view = queue.show(key).unwrap();
        let fact = |recipient: ringpost_queue::RecipientView<'_>| {
            (recipient.state(), recipient.attempts(), recipient.last_attempt(), recipient.next_attempt(0), recipient.reply().into_owned())
        };
        view.recipients().map(fact).collect::<Vec<_>>()
    };
    let before = facts(&queue, key);
    assert_eq!(before[0].1, 3);
    let mut whole = Vec::new();
    assert!(queue.state(key, &mut whole));
    let recipients = recipients(&mut queue, &["b@y.test", "c@y.test", "d@short.test"]);
    for records in [records.iter().map(Vec::as_slice).collect::<Vec<_>>(), vec![&whole[..]]] {
        let mut recovered = self::queue();
        let Recovered { key, done, .. } =
            recovered.recover(&message(ID), recipients.clone().into_iter(), records.into_iter(), START + 1).unwrap();
        assert!(!done);
        let after = facts(&recovered, key);
        assert_eq!(after, before);
        assert!(attempt(&mut recovered, START + 1).is_none(), "it waits for its time");
    }
    // A newer format or a foreign record is an error, and leaves nothing behind.
    let mut recovered = self::queue();
    for (record, error) in [(&[4, 0, 0, 0][..], DecodeError::Version(4)), (&whole[..9], DecodeError::Length)] {
        let result = recovered.recover(&message(ID), recipients.clone().into_iter(), [record].into_iter(), START);
        assert_eq!(result.unwrap_err(), error);
    }
    let alone = recovered.recover(&message(ID), recipients[..1].iter().copied(), [&whole[..]].into_iter(), START);
    assert_eq!(alone.unwrap_err(), DecodeError::Recipient(1));
    assert!(recovered.is_empty() && recovered.next_due(START).is_none());
    assert_eq!(recovered.counts(), Default::default());
}

#[test]
fn a_message_whose_settled_record_was_lost_is_done_after_recovery() {
    let mut queue = queue();
    let recipients = recipients(&mut queue, &["b@y.test", "c@short.test"]);
    let delivered = b"\x01\x00\x02\x00\
        \x00\x00\x01\x00\x01\x00\x08\x07\x06\x05\x04\x03\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\
        \x01\x00\x01\x00\x01\x00\x08\x07\x06\x05\x04\x03\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let Recovered { key, done, .. } = queue.recover(&message(ID), recipients.into_iter(), [&delivered[..]].into_iter(), START).unwrap();
    assert!(done);
    assert!(attempt(&mut queue, START).is_none());
    queue.recorded(key);
    assert!(queue.is_empty());
}

/// One delivered, one bounced (version 2).
const SETTLED: [u8; 54] = *b"\x02\x00\x02\x00\
    \x00\x00\x01\x00\x00\x01\x00\x08\x07\x06\x05\x04\x03\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \x01\x00\x03\x00\x00\x01\x00\x08\x07\x06\x05\x04\x03\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02no";

#[test]
fn a_bounced_recipient_stays_so_and_counts_as_settled() {
    let mut queue = queue();
    let (two, three) = (recipients(&mut queue, &["b@y.test", "c@y.test"]), recipients(&mut queue, &["b@y.test", "c@y.test", "d@y.test"]));
    let Recovered { key, done, .. } = queue.recover(&message(ID), two.into_iter(), [&SETTLED[..]].into_iter(), START).unwrap();
    assert!(done);
    queue.recorded(key);
    assert!(queue.is_empty());
    let Recovered { key, done, .. } = queue.recover(&message(ID), three.into_iter(), [&SETTLED[..]].into_iter(), START).unwrap();
    assert!(!done);
    let states: Vec<_> =
        queue.show(key).unwrap().recipients().map(|recipient| (recipient.state(), recipient.reply().into_owned())).collect();
    assert_eq!(states, [(State::Delivered, String::new()), (State::Bounced, "no".into()), (State::Ready, String::new())]);
    assert_eq!(queue.counts().bounced, 1);
    let mut whole = Vec::new();
    assert!(queue.state(key, &mut whole));
    assert_eq!(whole, SETTLED);
    let dispatch = attempt(&mut queue, START).unwrap();
    assert_eq!(queue.recipients(&dispatch).collect::<Vec<_>>(), [(2, &b"d@y.test"[..])]);
    assert_eq!(queue.settle(dispatch, &[(2, DELIVERED)], START, &mut Vec::new()), Settled::Done);
}

#[test]
fn a_lifetime_and_a_route_set_by_command_survive_restarts_while_the_route_exists() {
    let head = |route: &str| {
        let mut record = vec![2, 6, 0, 0];
        record.extend_from_slice(&(START + MINUTE).to_le_bytes());
        record.push(route.len() as u8);
        record.extend_from_slice(route.as_bytes());
        record
    };
    for (pattern, to, lost) in [("short.test", 2, None), ("gone.test", 1, Some("gone.test"))] {
        let mut queue = queue();
        let recipients = recipients(&mut queue, &["b@y.test"]);
        let record = head(pattern);
        let recovered = queue.recover(&message(ID), recipients.into_iter(), [&record[..]].into_iter(), START).unwrap();
        assert_eq!((recovered.done, recovered.lost_route), (false, lost));
        let key = recovered.key;
        let destination = queue.show(key).unwrap().recipients().next().unwrap().destination();
        assert_eq!(destination.index(), to);
        let mut whole = Vec::new();
        assert!(queue.state(key, &mut whole));
        assert_eq!(whole == record, lost.is_none(), "what is in force is written again");
        queue.pause(destination, true, START);
        expire(&mut queue, START + MINUTE);
        assert_eq!(state(&queue, key).0, State::Failed);
    }
}
