//! Mail that is wanted back: by a command, by its end, or by a node that shares no longer.

use super::*;

#[test]
fn a_recalled_item_is_out_when_the_queue_neither_has_it_nor_saw_it_completed() {
    let mut offers = waiting("a");
    offers.recalled("a");
    assert_eq!(offers.sending("a"), Sending::Leave);
    assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(one("a"))));
    offers.withdrawn("a", true);
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
    offers.known("a", &Known::Unknown, at(1));
    assert_eq!(offers.poll(at(1)), told("a", Recall::Out));
    assert_eq!(offers.poll(at(1)), None);
    // An enqueue that was on its way is found by the next round.
    assert_eq!(offers.poll(at(10)), Some(Todo::Withdraw(one("a"))));
    offers.withdrawn("a", true);
    assert_eq!(offers.poll(at(10)), Some(Todo::Ask(one("a"))));
    offers.known("a", &Known::Unknown, at(10));
    assert!(offers.is_empty());
}

#[test]
fn a_recalled_item_can_be_offered_again() {
    let mut offers = waiting("a");
    offers.recalled("a");
    offers.poll(at(1));
    offers.withdrawn("a", true);
    offers.poll(at(1));
    offers.known("a", &Known::Unknown, at(1));
    offers.poll(at(1));
    assert_eq!(offers.sending("a"), Sending::Send);
    offers.enqueued("a", Enqueued::Added);
    assert_eq!(offers.poll(at(10)), Some(Todo::Ask(one("a"))), "and is not withdrawn by the look for late calls");
}

#[test]
fn what_a_worker_has_is_not_out() {
    let mut offers = waiting("a");
    offers.recalled("a");
    offers.poll(at(1));
    offers.withdrawn("a", false);
    assert_eq!(offers.poll(at(1)), told("a", Recall::Taken));
    offers.recalled("a");
    offers.poll(at(2));
    offers.withdrawn("a", true);
    offers.poll(at(2));
    offers.known("a", &Known::Completed("n2 0001".to_owned()), at(2));
    assert_eq!(offers.poll(at(2)), told("a", Recall::Taken));
    assert_eq!(offers.poll(at(2)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));
}

#[test]
fn an_item_that_is_wanted_back_on_its_way_is_withdrawn_behind_it() {
    let mut offers = Offers::new(BOUNDS, true, at(0));
    offers.sending("a");
    offers.recalled("a");
    assert_eq!(offers.poll(at(1)), None);
    offers.enqueued("a", Enqueued::Added);
    assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(one("a"))));
}

#[test]
fn with_valkey_away_nothing_can_be_said_until_leases_have_ended() {
    for delivers in [true, false] {
        let mut offers = Offers::new(BOUNDS, delivers, at(0));
        offers.sending("a");
        offers.enqueued("a", Enqueued::Added);
        offers.away(0, at(1));
        offers.recalled("a");
        assert_eq!(offers.poll(at(2)), told("a", Recall::Unanswered));
        offers.recalled("a");
        assert_eq!(offers.poll(at(5)), told("a", Recall::Out), "{delivers}");
        offers.returned(0, at(6));
        assert_eq!(offers.poll(at(6)), Some(Todo::Withdraw(one("a"))));
    }
}

#[test]
fn a_node_that_shares_no_longer_waits_for_the_last_word() {
    let mut offers = Offers::new(BOUNDS, true, at(0));
    offers.retract();
    offers.recalled("a");
    assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(one("a"))));
    offers.withdrawn("a", false);
    assert_eq!(offers.poll(at(1)), None);
    assert_eq!(offers.poll(at(10)), Some(Todo::Withdraw(one("a"))));
    offers.away(0, at(11));
    assert_eq!(offers.poll(at(12)), None);
    assert_eq!(offers.next_due(), at(15));
    assert_eq!(offers.poll(at(15)), told("a", Recall::Out));
}

#[test]
fn that_an_item_was_withdrawn_is_forgotten_later_unless_it_is_offered_again() {
    for is_offered_again in [false, true] {
        let mut offers = waiting("a");
        offers.recalled("a");
        offers.poll(at(1));
        offers.withdrawn("a", true);
        offers.poll(at(1));
        offers.known("a", &Known::Withdrawn, at(1));
        assert_eq!(offers.poll(at(1)), told("a", Recall::Out));
        assert_eq!(offers.poll(at(10)), Some(Todo::Withdraw(one("a"))));
        offers.withdrawn("a", true);
        offers.poll(at(10));
        offers.known("a", &Known::Withdrawn, at(10));
        if is_offered_again {
            assert_eq!(offers.sending("a"), Sending::Send);
            offers.enqueued("a", Enqueued::Added);
        }
        let mut todo = offers.poll(at(45));
        if todo == Some(Todo::Ask(one("a"))) {
            todo = offers.poll(at(45));
        }
        assert_eq!(todo, (!is_offered_again).then(|| Todo::Forget(one("a"))));
    }
}

#[test]
fn an_answer_that_comes_twice_leaves_nothing_offered_that_was_taken_back() {
    let mut offers = waiting("a");
    let own = Known::Completed(format!("{OWN_AGAIN} n1"));
    offers.known("a", &own, at(1));
    offers.known("a", &own, at(1));
    assert_eq!(offers.poll(at(1)), Some(Todo::TakeBack(one("a"))));
}

/// Until its owner has said with its signature that it has the mail, a worker whose completion may have been heard keeps its copy, and delivers it.
#[test]
fn what_is_withdrawn_is_signed_before_its_shard_is_told_that_it_is_out() {
    let record = b"\nn1\nwithdrawn 7".to_vec();
    let sign = Some(Todo::Refuse(vec![("a".to_owned(), record.clone())]));
    let withdrawn = |mut offers: Offers, now| {
        offers.withdrawn("a", true);
        assert_eq!(offers.poll(now), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Unsigned(record.clone()), now);
        offers
    };
    let mut recalled = waiting("a");
    recalled.recalled("a");
    recalled.poll(at(1));
    let mut recalled = withdrawn(recalled, at(1));
    assert_eq!(recalled.poll(at(1)), sign);
    assert_eq!(recalled.poll(at(1)), None, "not yet");
    recalled.refused_record("a", true, at(1));
    assert_eq!(recalled.poll(at(1)), told("a", Recall::Out));

    let mut local = waiting("a");
    local.away(0, at(1));
    assert_eq!(local.poll(at(5)), Some(Todo::TakeBack(one("a"))));
    local.returned(0, at(6));
    assert_eq!(local.poll(at(6)), Some(Todo::Withdraw(one("a"))));
    let mut local = withdrawn(local, at(6));
    assert_eq!(local.poll(at(6)), sign);
    local.refused_record("a", true, at(6));
    assert_eq!(local.poll(at(6)), None);
    assert_eq!(local.poll(at(37)), Some(Todo::Forget(one("a"))));

    // With whom what has come to its end was ended is not known: that is not signed.
    let mut ended = Offers::new(BOUNDS, true, at(0));
    ended.orphan("a");
    ended.poll(at(1));
    ended.ended_there("a", Ending::Out);
    ended.poll(at(1));
    ended.known("a", &Known::Unsigned(record.clone()), at(1));
    assert_eq!(ended.poll(at(1)), None);

    // What is offered again takes the record's place.
    let mut offers = waiting("a");
    offers.known("a", &Known::Unsigned(record.clone()), at(1));
    assert_eq!(offers.poll(at(1)), Some(Todo::Offer(one("a"))));
}
