//! A Valkey that is away, in whole or in part, answers late, or refuses.

use super::*;

#[test]
fn with_valkey_away_the_node_delivers_after_the_guard_and_withdraws_on_return() {
    let mut offers = Offers::new(BOUNDS, true, at(0));
    offers.sending("a");
    offers.enqueued("a", Enqueued::Added);
    offers.away(0, at(1));
    assert_eq!(offers.next_due(), at(5));
    assert_eq!(offers.poll(at(4)), None);
    assert_eq!(offers.poll(at(5)), Some(Todo::TakeBack(one("a"))));
    assert_eq!(offers.sending("b"), Sending::TakeBack, "what is new is delivered at once");
    assert_eq!(offers.poll(at(6)), None);
    offers.returned(0, at(7));
    assert_eq!(offers.poll(at(7)), Some(Todo::Withdraw(one("a"))));
    offers.withdrawn("a", true);
    assert_eq!(offers.poll(at(7)), Some(Todo::Ask(one("a"))));
    offers.known("a", &Known::Unknown, at(7));
    assert!(offers.is_empty());
}

/// Each call over its deadline was taken for an outage: with the next answer all mail was asked for and all that was unsure offered again,
/// and workers leased nothing for a second. On a busy machine that repeated itself.
#[test]
fn after_a_late_call_only_what_was_not_answered_is_repeated() {
    let mut offers = Offers::new(BOUNDS, false, at(0));
    for id in ["asked", "quiet", "sent"] {
        offers.sending(id);
        if id == "sent" { offers.refused(id, at(0)) } else { offers.enqueued(id, Enqueued::Added) }
    }
    offers.done("asked");
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("asked"))));
    assert!(offers.away(0, at(1)), "it is looked for at once");
    assert!(!offers.away(0, at(1)), "and once");
    offers.unheard(one("asked"));
    assert!(!offers.returned(0, at(3)), "no owner has acted on it");
    assert_eq!(offers.poll(at(3)), Some(Todo::Ask(one("asked"))));
    assert_eq!(offers.poll(at(3)), None);

    offers.recalled("quiet");
    assert_eq!(offers.poll(at(3)), Some(Todo::Withdraw(one("quiet"))));
    offers.away(0, at(3));
    offers.unheard(one("quiet"));
    offers.returned(0, at(4));
    assert_eq!(offers.poll(at(4)), Some(Todo::Withdraw(one("quiet"))));

    offers.away(0, at(5));
    assert!(offers.returned(0, at(8)), "another node that saw it go earlier may have begun to deliver");
    let mut round = Vec::new();
    while let Some(todo) = offers.poll(at(8)) {
        round.push(todo);
    }
    assert_eq!(round, [Todo::Withdraw(one("quiet")), Todo::Ask(one("asked")), Todo::Offer(one("sent"))]);
}

/// Each question without an answer put its item among those to be asked for again once more: whoever published while Valkey answered nothing could
/// fill a node's memory.
#[test]
fn what_was_asked_for_in_vain_many_times_is_asked_for_once_when_valkey_is_back() {
    let mut offers = waiting("a");
    for _ in 0..1000 {
        offers.done("a");
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
        offers.unheard(one("a"));
    }
    offers.away(0, at(1));
    assert!(!offers.returned(0, at(2)), "it was not away for long");
    assert_eq!(offers.poll(at(2)), Some(Todo::Ask(one("a"))));
    assert_eq!(offers.poll(at(2)), None);
}

/// A Valkey that answered some calls was never away: mail that it did not take, because that was too much for the network or its memory, was
/// offered again and again and delivered by nobody.
#[test]
fn mail_that_no_call_brings_in_is_delivered_here_though_valkey_answers() {
    let mut offers = Offers::new(BOUNDS, true, at(0));
    for id in ["large", "small"] {
        offers.sending(id);
        offers.away(0, at(1));
        offers.unanswered(id, at(1));
    }
    for seconds in 2..=4 {
        assert!(!offers.returned(0, at(seconds)));
        assert!(matches!(offers.poll(at(seconds)), Some(Todo::Offer(ids)) if ids[0] == "large"));
        assert_eq!(offers.poll(at(seconds)), None);
        assert_eq!(offers.sending("large"), Sending::Send);
        offers.away(0, at(seconds));
        offers.unanswered("large", at(seconds));
        if offers.sending("small") == Sending::Send {
            offers.enqueued("small", Enqueued::Added);
        }
    }
    // There are answers to small calls, and one of the large ones may have come.
    assert!(!offers.returned(0, at(5)));
    assert_eq!(offers.poll(at(5)), Some(Todo::Withdraw(one("large"))), "the other is in the queue");
    offers.withdrawn("large", true);
    assert_eq!(offers.poll(at(5)), Some(Todo::Ask(one("large"))));
    offers.known("large", &Known::Unknown, at(5));
    assert_eq!(offers.poll(at(5)), Some(Todo::TakeBack(one("large"))));
}

#[test]
fn mail_that_came_in_without_an_answer_is_left_to_the_worker_that_has_it() {
    let overdue = || {
        let mut offers = Offers::new(BOUNDS, true, at(1));
        offers.sending("a");
        offers.unanswered("a", at(1));
        assert_eq!(offers.poll(at(5)), Some(Todo::Withdraw(one("a"))));
        assert_eq!(offers.sending("a"), Sending::Leave);
        offers
    };
    let mut leased = overdue();
    leased.withdrawn("a", false);
    assert_eq!(leased.poll(at(10)), None);
    assert_eq!(leased.poll(at(11)), Some(Todo::Ask(one("a"))), "it waits like any other");

    let mut completed = overdue();
    completed.withdrawn("a", true);
    completed.poll(at(5));
    completed.known("a", &Known::Completed("n2 0001".to_owned()), at(5));
    assert_eq!(completed.poll(at(5)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));

    let mut unheard = overdue();
    unheard.unheard(one("a"));
    assert_eq!(unheard.poll(at(8)), None);
    assert_eq!(unheard.poll(at(9)), Some(Todo::TakeBack(one("a"))), "nor is that waited for for ever");
}

/// A drain said that Valkey was away, and ended with that, where one partition of many did not answer.
#[test]
fn valkey_is_away_since_the_last_of_its_partitions_is() {
    let mut offers = Offers::new(OfferBounds { partitions: 2, ..BOUNDS }, true, at(0));
    offers.away(1, at(1));
    assert_eq!((offers.all_away_since(), offers.partitions_away()), (None, 1));
    offers.away(0, at(9));
    assert_eq!((offers.all_away_since(), offers.partitions_away()), (Some(at(9)), 2));
    offers.returned(1, at(10));
    assert_eq!((offers.all_away_since(), offers.partitions_away()), (None, 1));
}

/// One part of a Valkey Cluster without a primary was no outage as long as the others answered: what was offered there waited for it.
#[test]
fn a_partition_that_is_away_takes_no_other_with_it() {
    let mut offers = Offers::new(OfferBounds { partitions: 2, open_max: 9, ..BOUNDS }, true, at(0));
    // One of each partition, whichever is whose.
    let names: Vec<String> = (0..64).map(|number| format!("n1:{number}")).collect();
    let lost = |offers: &mut Offers| {
        names.iter().for_each(|id| {
            offers.sending(id);
            offers.enqueued(id, Enqueued::Added);
        });
        offers.away(1, at(1));
        let Some(Todo::TakeBack(ids)) = offers.poll(at(5)) else { panic!("nothing is taken back") };
        ids
    };
    let taken_back = lost(&mut offers);
    assert!(taken_back.len() > 8 && taken_back.len() < 56, "{taken_back:?}");
    assert!(!offers.is_local(), "new mail is offered, where there is somebody to take it");
    let asked = loop {
        match offers.poll(at(10)) {
            Some(Todo::Ask(ids)) => break ids,
            other => assert_eq!(other, None, "nothing is said to a partition that is away"),
        }
    };
    assert_eq!(asked.len() + taken_back.len(), 64);
    assert!(asked.iter().all(|id| !taken_back.contains(id)));
    assert!(offers.returned(1, at(11)));
    let Some(Todo::Withdraw(withdrawn)) = offers.poll(at(11)) else { panic!("nothing is withdrawn") };
    assert_eq!(withdrawn.len(), taken_back.len());
}

/// An error of a script was neither an outage nor an answer: the item was offered again at once and without a pause, and since Valkey was
/// there the node never delivered it itself.
#[test]
fn what_valkey_refuses_is_offered_again_in_rounds_and_delivered_here_after_the_time_of_an_outage() {
    for delivers in [true, false] {
        let mut offers = Offers::new(BOUNDS, delivers, at(0));
        offers.sending("a");
        offers.refused("a", at(1));
        assert_eq!(offers.poll(at(4)), None);
        assert_eq!(offers.next_due(), if delivers { at(5) } else { at(10) });
        if delivers {
            assert_eq!(offers.poll(at(5)), Some(Todo::TakeBack(one("a"))));
            assert_eq!(offers.poll(at(5)), Some(Todo::Withdraw(one("a"))), "part of it may have been done");
        } else {
            assert_eq!(offers.poll(at(5)), None);
            assert_eq!(offers.poll(at(10)), Some(Todo::Offer(one("a"))));
        }
    }
}

#[test]
fn what_valkey_refuses_once_and_takes_then_is_not_delivered_here() {
    let mut offers = Offers::new(BOUNDS, true, at(7));
    offers.sending("a");
    offers.refused("a", at(16));
    assert_eq!(offers.poll(at(17)), Some(Todo::Offer(one("a"))));
    assert_eq!(offers.sending("a"), Sending::Send);
    offers.enqueued("a", Enqueued::Added);
    assert_eq!(offers.poll(at(20)), None);
}
