//! Bounce and purge: who is taken out, and who is told.

use ringpost_queue::{Dispatch, Filter, MessageKey, NewMessage, Outcome, Queue, QueueId, Settled, State};

use crate::{ID, START, attempt, by_domain, enqueue, message, queue, recipients, recover, states};

const LATER: Outcome<'_> = Outcome::Deferred { reply: b"450 4.2.0 later" };

#[test]
fn bounce_fails_those_it_is_about_with_the_reason() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    assert_eq!(queue.bounce(key, &by_domain("Y.test"), b"554 5.0.0 no\r\nsuch campaign", START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    assert_eq!(states(&queue, key), [State::Failed, State::Ready, State::Failed]);
    assert_eq!(queue.show(key).unwrap().recipients().next().unwrap().reply(), "554 5.0.0 no  such campaign");
    let (recovered, key) = recover(&record, "backup.test");
    assert_eq!(states(&recovered, key), [State::Failed, State::Ready, State::Failed]);
    // The other one goes its way.
    assert_eq!(attempt(&mut queue, START).unwrap().recipients(), 1);
    assert!(attempt(&mut queue, START).is_none());
}

/// The word of a bounce stayed where a message with one recipient had been, and fell on the next one that came to that place.
#[test]
fn what_was_delivered_in_spite_of_a_bounce_leaves_nothing_for_who_comes_next() {
    let mut queue = queue("backup.test");
    let alone = |queue: &mut Queue, sequence| {
        let recipient = recipients(queue).swap_remove(0);
        let id = QueueId { sequence, ..ID };
        let key = queue.enqueue(&NewMessage { id, ..message() }, [recipient].into_iter(), START);
        (key, attempt(queue, START).unwrap())
    };
    let (bounced, dispatch) = alone(&mut queue, 1);
    assert_eq!(queue.bounce(bounced, &Filter::default(), b"554 5.0.0 no", START, &mut Vec::new()), Some(Settled::Outcome));
    queue.recorded(bounced);
    let delivered = Outcome::PassedOn { reply: b"250 ok" };
    assert_eq!(queue.settle(dispatch, &[(0, delivered)], START, &mut Vec::new()), Settled::Done);
    queue.recorded(bounced);
    assert!(queue.is_empty());

    let (next, dispatch) = alone(&mut queue, 2);
    assert!(queue.may_go_on(&dispatch, 0, START));
    let deferred = Outcome::Deferred { reply: b"450 4.2.0 later" };
    assert_eq!(queue.settle(dispatch, &[(0, deferred)], START, &mut Vec::new()), Settled::Outcome);
    assert_eq!(states(&queue, next), [State::Deferred]);
}

#[test]
fn purge_of_some_recipients_keeps_the_others_and_of_all_the_message_goes() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    assert_eq!(queue.purge(key, &by_domain("y.test"), START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    let (recovered, recovered_key) = recover(&record, "backup.test");
    // They read `bounced`, as if their sender had been told.
    let expected = [State::Purged, State::Ready, State::Purged];
    assert_eq!((states(&queue, key), states(&recovered, recovered_key)), (expected.to_vec(), expected.to_vec()));
    let left = |queue: &Queue, key| queue.show(key).unwrap().recipients().filter(|recipient| !recipient.is_settled()).count();
    assert_eq!((left(&queue, key), left(&recovered, recovered_key)), (1, 1));
    assert_eq!(queue.purge(key, &by_domain("z.test"), START, &mut record), Some(Settled::Done), "nobody else is open");
    queue.recorded(key);
    assert!(queue.is_empty() && attempt(&mut queue, START).is_none());
}

/// What a command does with who is to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leaving {
    Bounced,
    Purged,
}

impl Leaving {
    const REASON: &[u8] = b"554 5.0.0 no such campaign";

    fn command(self, queue: &mut Queue, key: MessageKey, filter: &Filter, record: &mut Vec<u8>) -> Option<Settled> {
        match self {
            Self::Bounced => queue.bounce(key, filter, Self::REASON, START, record),
            Self::Purged => queue.purge(key, filter, START, record),
        }
    }

    fn state(self) -> State {
        match self {
            Self::Bounced => State::Failed,
            Self::Purged => State::Purged,
        }
    }

    /// Of each recipient: has the command been for it, and does it wait for the attempt to end?
    fn waits(self, queue: &Queue, key: MessageKey) -> Vec<bool> {
        let recipients = queue.show(key).unwrap().recipients();
        recipients.map(|one| if self == Self::Bounced { one.is_failing() } else { one.is_leaving() }).collect()
    }
}

/// How the attempt of the two recipients that the command is for ends.
const ENDS: [&str; 6] = ["deferred", "failed", "untried", "abandoned", "unreachable", "delivered"];

fn end_attempt(queue: &mut Queue, dispatch: Dispatch, end: &str) -> Settled {
    let all = |outcome| [(0, outcome), (2, outcome)];
    let record = &mut Vec::new();
    match end {
        "deferred" => queue.settle(dispatch, &all(LATER), START, record),
        "failed" => queue.settle(dispatch, &all(Outcome::Failed { reply: b"550 5.1.1 no" }), START, record),
        "untried" => queue.settle(dispatch, &[], START, record),
        "abandoned" => queue.abandon(dispatch, START),
        "unreachable" => queue.unreachable(dispatch, START, record),
        _ => queue.settle(dispatch, &all(Outcome::PassedOn { reply: b"250 ok" }), START, record),
    }
}

/// The attempt of the two at `y.test`; the third one is deferred.
fn attempt_of_two(queue: &mut Queue) -> Dispatch {
    loop {
        let dispatch = attempt(queue, START).unwrap();
        if dispatch.recipients() == 2 {
            return dispatch;
        }
        let _deferred = queue.settle(dispatch, &[(1, LATER)], START, &mut Vec::new());
    }
}

/// A bounce, and a purge by filter, left what was being attempted just then: it was tried again for days.
#[test]
fn who_is_being_attempted_leaves_when_that_ends_unless_it_is_delivered() {
    for leaving in [Leaving::Bounced, Leaving::Purged] {
        for end in ENDS {
            let (mut queue, mut record, case) = (queue("backup.test"), Vec::new(), (leaving, end));
            let key = enqueue(&mut queue);
            let dispatch = attempt_of_two(&mut queue);
            assert_eq!(leaving.command(&mut queue, key, &by_domain("y.test"), &mut record), Some(Settled::Outcome), "{case:?}");
            queue.recorded(key);
            assert_eq!((states(&queue, key)[0], leaving.waits(&queue, key)), (State::Attempting, vec![true, false, true]), "{case:?}");
            assert!(!queue.may_go_on(&dispatch, 0, START), "no other host is to have it: {case:?}");
            // A second one finds nothing to do. What a crash leaves has left, in whatever form it is on the disk, and a sender is told why.
            assert_eq!(leaving.command(&mut queue, key, &by_domain("y.test"), &mut Vec::new()), Some(Settled::Nothing), "{case:?}");
            let mut whole = Vec::new();
            assert!(queue.state(key, &mut whole));
            for record in [&record, &whole] {
                let (recovered, key) = recover(record, "backup.test");
                let view = recovered.show(key).unwrap();
                let has_left: Vec<_> = view.recipients().map(|one| (one.state() == leaving.state(), one.reply().into_owned())).collect();
                let said = if leaving == Leaving::Bounced { str::from_utf8(Leaving::REASON).unwrap() } else { "" };
                let gone = (true, said.to_owned());
                assert_eq!((&has_left[0], &has_left[2], has_left[1].0), (&gone, &gone, false), "{case:?}");
            }
            let settled = end_attempt(&mut queue, dispatch, end);
            // The command's record says it already.
            let expected = if matches!(end, "abandoned" | "untried") { Settled::Nothing } else { Settled::Outcome };
            assert_eq!(settled, expected, "{case:?}");
            let state = if end == "delivered" { State::Delivered } else { leaving.state() };
            let of_both = (states(&queue, key)[0], states(&queue, key)[2]);
            assert_eq!((of_both, leaving.waits(&queue, key)), ((state, state), vec![false; 3]), "{case:?}");
            if state == State::Failed {
                assert_eq!(queue.show(key).unwrap().recipients().next().unwrap().reply().as_bytes(), Leaving::REASON, "{case:?}");
            } else {
                assert_eq!(queue.report(key), None, "nobody is told: {case:?}");
            }
            assert!(queue.show(key).unwrap().recipients().nth(1).unwrap().is_open(), "{case:?}");
        }
    }
}

#[test]
fn what_is_bounced_when_its_attempt_ends_can_be_purged_yet() {
    let mut queue = queue("backup.test");
    let key = enqueue(&mut queue);
    let dispatch = attempt_of_two(&mut queue);
    for leaving in [Leaving::Bounced, Leaving::Purged] {
        assert_eq!(leaving.command(&mut queue, key, &by_domain("y.test"), &mut Vec::new()), Some(Settled::Outcome), "{leaving:?}");
        queue.recorded(key);
    }
    assert_eq!(end_attempt(&mut queue, dispatch, "deferred"), Settled::Outcome);
    assert_eq!((states(&queue, key)[0], states(&queue, key)[2]), (State::Purged, State::Purged));
}

/// Also when its attempt was not made.
#[test]
fn the_last_that_is_open_leaves_with_its_message() {
    let (mut queue, mut record) = (queue("backup.test"), Vec::new());
    let key = enqueue(&mut queue);
    let dispatches: Vec<_> = std::iter::from_fn(|| attempt(&mut queue, START)).collect();
    assert_eq!(queue.purge(key, &by_domain("y.test"), START, &mut record), Some(Settled::Outcome));
    queue.recorded(key);
    for dispatch in dispatches {
        let settled = match dispatch.recipients() {
            2 => queue.abandon(dispatch, START),
            _ => queue.settle(dispatch, &[(1, Outcome::PassedOn { reply: b"250 ok" })], START, &mut Vec::new()),
        };
        if settled != Settled::Nothing {
            queue.recorded(key);
        }
    }
    assert!(queue.is_empty());
}
