//! The owner's rules, one behaviour each. Whole hand-overs are in `handover.rs`.

use std::{collections::HashSet, time::Duration};

use ringpost_cluster::{
    boot_time::BootTime,
    offer::{OWN_AGAIN, OfferBounds, Offers, Recall, Sending, Todo},
    work_queue::{Ending, Enqueued, Known},
};

const BOUNDS: OfferBounds = OfferBounds {
    lease_ttl: Duration::from_secs(3),
    guard: Duration::from_secs(1),
    reconcile_every: Duration::from_secs(10),
    forget_after: Duration::from_secs(30),
    open_max: 2,
    dead_wait: Duration::from_secs(300),
    partitions: 1,
};

fn at(seconds: u64) -> BootTime {
    BootTime::after_boot(Duration::from_secs(100 + seconds))
}

fn one(id: &str) -> Vec<String> {
    vec![id.to_owned()]
}

#[test]
fn a_completed_item_is_settled_and_forgotten_later() {
    let mut offers = Offers::new(BOUNDS, true, at(0));
    assert_eq!(offers.sending("a"), Sending::Send);
    offers.enqueued("a", Enqueued::Added);
    assert_eq!(offers.poll(at(1)), None);
    offers.done("a");
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
    offers.known("a", &Known::Completed("n2 0001".to_owned()), at(7));
    assert_eq!(offers.poll(at(1)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));
    offers.settled("a", at(2));
    offers.done("a");
    assert_eq!(offers.poll(at(3)), None);
    assert_eq!(offers.poll(at(32)), Some(Todo::Forget(one("a"))));
    offers.forgotten("a", true, at(32));
    assert!(offers.is_empty());
}

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

#[test]
fn a_node_that_does_not_deliver_takes_nothing_back() {
    let mut offers = Offers::new(BOUNDS, false, at(0));
    offers.sending("a");
    offers.enqueued("a", Enqueued::Full);
    offers.away(0, at(1));
    assert_eq!(offers.poll(at(99)), None);
    offers.returned(0, at(100));
    assert_eq!(offers.poll(at(100)), Some(Todo::Offer(one("a"))));
}

#[test]
fn lost_data_is_offered_again() {
    let mut offers = Offers::new(BOUNDS, false, at(0));
    offers.sending("a");
    offers.enqueued("a", Enqueued::Added);
    offers.generation(3, "g1", at(0));
    assert_eq!(offers.poll(at(1)), None);
    offers.generation(3, "g2", at(1));
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
    offers.known("a", &Known::Unknown, at(7));
    assert_eq!(offers.poll(at(1)), Some(Todo::Offer(one("a"))));
    assert_eq!(offers.sending("a"), Sending::Send);
    offers.unanswered("a", at(1));
    assert_eq!(offers.poll(at(1)), None, "not at once, or it would be offered without a pause");
    assert_eq!(offers.poll(at(11)), Some(Todo::Offer(one("a"))));
}

#[test]
fn an_item_that_its_own_node_leased_is_not_settled() {
    let mut offers = Offers::new(BOUNDS, true, at(0));
    offers.sending("a");
    offers.enqueued("a", Enqueued::Completed);
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
    offers.known("a", &Known::Completed(format!("{OWN_AGAIN} n1")), at(7));
    assert_eq!(offers.poll(at(1)), Some(Todo::TakeBack(one("a"))));
    assert_eq!(offers.poll(at(1)), Some(Todo::Withdraw(one("a"))));
    offers.withdrawn("a", true);
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
    offers.known("a", &Known::Completed(format!("{OWN_AGAIN} n1")), at(7));
    assert_eq!(offers.poll(at(1)), None);
    assert_eq!(offers.poll(at(37)), Some(Todo::Forget(one("a"))));
}

/// A node that delivered, and was set to only offer, took it back and tried to deliver it by itself, past its smarthosts and its addresses.
#[test]
fn a_front_end_offers_again_what_an_earlier_run_had_taken_for_itself() {
    let mut offers = Offers::new(BOUNDS, false, at(0));
    offers.sending("a");
    offers.enqueued("a", Enqueued::Completed);
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
    offers.known("a", &Known::Completed(format!("{OWN_AGAIN} n1")), at(1));
    assert_eq!(offers.poll(at(1)), Some(Todo::Forget(one("a"))));
    assert_eq!(offers.sending("a"), Sending::Leave);
    offers.forgotten("a", false, at(1));
    assert_eq!(offers.poll(at(9)), None);
    assert_eq!(offers.poll(at(10)), Some(Todo::Forget(one("a"))));
    offers.forgotten("a", true, at(10));
    assert_eq!(offers.poll(at(10)), Some(Todo::Offer(one("a"))));
    assert_eq!(offers.sending("a"), Sending::Send);
}

fn waiting(id: &str) -> Offers {
    let mut offers = Offers::new(BOUNDS, true, at(0));
    offers.sending(id);
    offers.enqueued(id, Enqueued::Added);
    offers
}

fn told(id: &str, recall: Recall) -> Option<Todo> {
    Some(Todo::Tell(vec![(id.to_owned(), recall)]))
}

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

/// Each round once asked for everything that was unsure, whether or not its shard had been asked for it already: after an outage the
/// doubles were more than the mail, and what was unsure again waited behind them.
#[test]
fn what_a_shard_was_asked_for_is_not_asked_for_again() {
    let mut offers = Offers::new(BOUNDS, false, at(0));
    offers.sending("a");
    offers.away(0, at(1));
    offers.unanswered("a", at(1));
    offers.returned(0, at(60));
    assert_eq!(offers.poll(at(60)), Some(Todo::Offer(one("a"))));
    for round in [70, 80] {
        offers.missed(at(round));
        assert_eq!(offers.poll(at(round)), None, "round at {round}");
    }
    assert_eq!(offers.sending("a"), Sending::Send);
    offers.enqueued("a", Enqueued::Added);
    assert_eq!(offers.poll(at(90)), Some(Todo::Ask(one("a"))));
    offers.known("a", &Known::Unknown, at(90));
    assert_eq!(offers.poll(at(90)), Some(Todo::Offer(one("a"))), "lost again, and offered again");
    offers.gone("a");
    assert_eq!(offers.poll(at(90)), Some(Todo::Withdraw(one("a"))), "the shard has it no more");
}

#[test]
fn what_the_queue_has_or_is_being_sent_is_not_sent_again() {
    let mut offers = Offers::new(BOUNDS, false, at(0));
    assert_eq!(offers.sending("a"), Sending::Send);
    assert_eq!(offers.sending("a"), Sending::Leave);
    offers.enqueued("a", Enqueued::Added);
    assert_eq!(offers.sending("a"), Sending::Leave);
}

#[test]
fn what_is_being_fetched_can_go_local_be_recalled_and_be_settled() {
    let fetching = || {
        let mut offers = Offers::new(BOUNDS, true, at(0));
        offers.sending("a");
        offers.away(0, at(1));
        offers.unanswered("a", at(1));
        offers.returned(0, at(2));
        assert_eq!(offers.poll(at(2)), Some(Todo::Offer(one("a"))));
        offers
    };
    let mut local = fetching();
    local.away(0, at(3));
    assert_eq!(local.poll(at(7)), Some(Todo::TakeBack(one("a"))));
    assert_eq!(local.sending("a"), Sending::TakeBack);

    let mut recalled = fetching();
    recalled.recalled("a");
    assert_eq!(recalled.poll(at(2)), Some(Todo::Withdraw(one("a"))));
    assert_eq!(recalled.sending("a"), Sending::Leave);

    let mut settled = fetching();
    settled.done("a");
    assert_eq!(settled.poll(at(2)), Some(Todo::Ask(one("a"))));
    settled.known("a", &Known::Completed("n2 0001".to_owned()), at(2));
    assert_eq!(settled.poll(at(2)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));
    assert_eq!(settled.sending("a"), Sending::Leave);
}

/// Each call over its deadline was taken for an outage: with the next answer all mail was asked for and all that was unsure offered again,
/// and workers leased nothing for a second. On a busy machine that repeated itself.
#[test]
fn after_a_late_call_only_what_was_not_answered_is_repeated() {
    let mut offers = Offers::new(BOUNDS, false, at(0));
    for id in ["asked", "quiet", "sent"] {
        offers.sending(id);
        offers.enqueued(id, if id == "sent" { Enqueued::Full } else { Enqueued::Added });
    }
    offers.done("asked");
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("asked"))));
    offers.away(0, at(1));
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

/// What was settled a minute ago counted as well, so that a node handed over 833 messages a second at most; and once as many were offered
/// as there may be and had to be offered again, nothing was, for ever.
#[test]
fn new_mail_waits_while_much_is_offered_and_what_has_ended_does_not_count() {
    let mut offers = Offers::new(BOUNDS, true, at(0));
    for id in ["a", "b"] {
        assert!(offers.takes_new());
        offers.sending(id);
        offers.enqueued(id, Enqueued::Added);
    }
    assert!(!offers.takes_new());
    offers.known("a", &Known::Completed("n2 0001".to_owned()), at(1));
    assert!(offers.takes_new(), "another has it");
    offers.sending("c");
    offers.enqueued("c", Enqueued::Added);
    assert!(!offers.takes_new());
    offers.recalled("b");
    assert!(offers.takes_new(), "wanted back");
    offers.sending("d");
    assert!(!offers.takes_new());
    offers.away(0, at(2));
    offers.unanswered("d", at(2));
    assert!(!offers.takes_new());
    offers.poll(at(6));
    assert!(offers.is_local() && offers.takes_new(), "what is not going to be offered needs no room");
    offers.returned(0, at(7));
    assert!(offers.takes_new(), "c and d are delivered here");
}

/// A shard that ends, or whose disk is full, answers at once that it settles nothing. It was asked again at once, without a pause, for as
/// long as that lasted.
#[test]
fn what_a_shard_cannot_settle_it_is_told_again_later_also_without_valkey() {
    let mut offers = waiting("a");
    offers.known("a", &Known::Completed("n2 0001".to_owned()), at(1));
    let settle = vec![("a".to_owned(), "n2 0001".to_owned())];
    assert_eq!(offers.poll(at(1)), Some(Todo::Settle(settle.clone())));
    offers.known("a", &Known::Completed("n2 0001".to_owned()), at(2));
    assert_eq!(offers.poll(at(2)), None, "said twice, it is settled once");
    offers.away(0, at(2));
    offers.not_settled("a", "n2 0001".to_owned(), at(3));
    assert_eq!(offers.poll(at(3)), None);
    offers.poll(at(6));
    assert_eq!(offers.next_due(), at(10));
    assert_eq!(offers.poll(at(13)), Some(Todo::Settle(settle)));
    offers.settled("a", at(13));
    offers.not_settled("a", "n2 0001".to_owned(), at(13));
    assert_eq!(offers.poll(at(23)), None);
}

/// With 50,000 items a round took longer than the time to the next, which began again with the same items: the last ones were never asked for,
/// and what others said that they had taken waited behind all.
#[test]
fn a_round_that_takes_long_comes_to_its_end_and_what_was_completed_before_it() {
    const ITEMS: usize = 50_000;
    let mut offers = Offers::new(OfferBounds { open_max: ITEMS, ..BOUNDS }, true, at(0));
    let mut unasked: HashSet<String> = (0..ITEMS).map(|number| number.to_string()).collect();
    for id in &unasked {
        offers.sending(id);
        offers.enqueued(id, Enqueued::Added);
    }
    let (mut now, mut calls) = (at(10), 0);
    while !unasked.is_empty() {
        assert!(now < at(70), "{} were not asked for", unasked.len());
        // Others complete all the time.
        for number in 0..128 {
            offers.done(&(number + calls % 50 * 128).to_string());
        }
        let Some(Todo::Ask(ids)) = offers.poll(now) else { panic!("nothing is asked") };
        for id in ids {
            unasked.remove(&id);
            offers.known(&id, &Known::Waiting, now);
        }
        (now, calls) = (now + Duration::from_millis(30), calls + 1);
    }
}

/// What the queue had lost was not offered again, and nothing was forgotten, for as long as others completed faster than one call asks.
#[test]
fn with_completions_all_the_time_mail_is_offered_again_and_what_was_settled_is_forgotten() {
    let mut offers = Offers::new(OfferBounds { open_max: 1000, ..BOUNDS }, true, at(0));
    let busy: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    for id in ["lost", "settled"].into_iter().chain(busy.iter().map(String::as_str)) {
        offers.sending(id);
        offers.enqueued(id, Enqueued::Added);
    }
    offers.known("settled", &Known::Completed("n2 0001".to_owned()), at(0));
    while offers.poll(at(0)).is_some() {}
    offers.settled("settled", at(0));
    offers.known("lost", &Known::Unknown, at(40));
    let mut done = Vec::new();
    for _ in 0..16 {
        busy.iter().for_each(|id| offers.done(id));
        match offers.poll(at(40)) {
            Some(Todo::Ask(ids)) => ids.iter().for_each(|id| offers.known(id, &Known::Waiting, at(40))),
            todo => done.extend(todo),
        }
    }
    assert_eq!(done, [Todo::Offer(one("lost")), Todo::Forget(one("settled"))]);
}

/// Each message that said that an item was completed stood there by itself: whoever could publish could fill a node's memory.
#[test]
fn what_is_said_many_times_is_asked_for_once_and_again_when_it_is_said_after_that() {
    let mut offers = waiting("a");
    (0..100_000).for_each(|_| offers.done("a"));
    (0..100_000).for_each(|number| offers.done(&number.to_string()));
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
    assert_eq!(offers.poll(at(1)), None);
    // The question is on its way, and what is said now may be news to its answer.
    offers.done("a");
    assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))));
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

#[test]
fn what_is_said_to_be_completed_is_asked_for_next() {
    let mut offers = Offers::new(OfferBounds { open_max: 500, ..BOUNDS }, true, at(0));
    for number in 0..500 {
        offers.sending(&number.to_string());
        offers.enqueued(&number.to_string(), Enqueued::Added);
    }
    assert!(matches!(offers.poll(at(10)), Some(Todo::Ask(ids)) if ids.len() == 128));
    offers.done("499");
    assert_eq!(offers.poll(at(10)), Some(Todo::Ask(one("499"))));
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

/// A Valkey that was killed and starts from a snapshot has items again that were completed and settled since.
#[test]
fn what_has_ended_and_is_in_the_queue_again_is_taken_out() {
    let own = format!("{OWN_AGAIN} n1");
    for result in ["n2 0001", &own] {
        let mut offers = waiting("a");
        offers.known("a", &Known::Completed(result.to_owned()), at(1));
        while offers.poll(at(1)).is_some() {}
        offers.settled("a", at(1));
        offers.known("a", &Known::Completed(result.to_owned()), at(1));
        assert!(offers.has_ended("a"), "{result}");
        offers.orphan("a");
        assert_eq!(offers.poll(at(2)), Some(Todo::End(one("a"))));
        offers.ended_there("a", Ending::Leased);
        assert_eq!(offers.poll(at(2)), None, "not at once");
        assert_eq!(offers.poll(at(11)), Some(Todo::End(one("a"))));
        offers.ended_there("a", Ending::Out);
        assert_eq!(offers.poll(at(11)), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Withdrawn, at(2));
        assert_eq!(offers.poll(at(33)), Some(Todo::Forget(one("a"))), "a worker's late claim was refused until then");
    }
    // Its shard may be settling it with a worker, which is the only one that has it then.
    let mut settling = waiting("a");
    settling.known("a", &Known::Completed("n2 0001".to_owned()), at(1));
    assert!(settling.has_ended("a"));
    settling.orphan("a");
    assert_eq!(settling.poll(at(1)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));
    assert_eq!(settling.poll(at(1)), None);
    let mut refused = Offers::new(BOUNDS, true, at(0));
    refused.orphan("a");
    assert_eq!(refused.poll(at(1)), Some(Todo::End(one("a"))), "settled by an earlier run");
    refused.ended_there("a", Ending::Stays);
    assert!(refused.is_empty(), "somebody else delivers it");
    let mut offers = waiting("b");
    offers.orphan("b");
    assert_eq!(offers.poll(at(1)), None, "what is offered stays");
}

/// When it had gone back in time twice within a minute, the owner said with its signature that it had mail which it had settled with a worker.
#[test]
fn what_has_ended_is_never_signed_however_often_the_queue_has_it_again() {
    for record in [Known::Withdrawn, Known::Unsigned(b"\nn1\nended".to_vec())] {
        let mut offers = waiting("a");
        offers.known("a", &Known::Completed("n2 0001".to_owned()), at(1));
        while offers.poll(at(1)).is_some() {}
        offers.settled("a", at(1));
        for _ in 0..3 {
            assert!(offers.has_ended("a"));
            offers.orphan("a");
            assert_eq!(offers.poll(at(2)), Some(Todo::End(one("a"))));
            offers.ended_there("a", Ending::Out);
            assert_eq!(offers.poll(at(2)), Some(Todo::Ask(one("a"))));
            offers.known("a", &record, at(2));
            assert_eq!(offers.poll(at(2)), None);
        }
    }
}

/// Every way of mail into the dead letters is one of its surroundings (slow disks, slow networks). A node that delivers takes it back; at one
/// that only offers it stayed there until it expired, and its sender was told that it could not be delivered.
#[test]
fn a_front_end_offers_a_dead_letter_again_and_waits_longer_each_time() {
    let mut offers = Offers::new(BOUNDS, false, at(0));
    offers.sending("a");
    offers.enqueued("a", Enqueued::Added);
    let mut now = 10;
    for wait in [300, 600, 1200, 2400, 4800, 4800] {
        for seconds in [0, wait - 1] {
            offers.known("a", &Known::Dead, at(now + seconds));
            assert_eq!(offers.poll(at(0)), None, "{wait}");
        }
        now += wait;
        offers.known("a", &Known::Dead, at(now));
        assert_eq!(offers.poll(at(0)), Some(Todo::Withdraw(one("a"))), "{wait}");
        assert_eq!(offers.sending("a"), Sending::Leave);
        offers.withdrawn("a", true);
        assert_eq!(offers.poll(at(0)), Some(Todo::Ask(one("a"))));
        offers.known("a", &Known::Withdrawn, at(now));
        assert_eq!(offers.poll(at(0)), Some(Todo::Offer(one("a"))));
        assert_eq!(offers.sending("a"), Sending::Send);
        offers.enqueued("a", Enqueued::Added);
    }
}

#[test]
fn a_dead_letter_on_its_way_out_can_be_leased_completed_and_recalled() {
    let reviving = || {
        let mut offers = Offers::new(BOUNDS, false, at(0));
        offers.sending("a");
        offers.enqueued("a", Enqueued::Added);
        offers.known("a", &Known::Dead, at(0));
        offers.known("a", &Known::Dead, at(300));
        assert_eq!(offers.poll(at(0)), Some(Todo::Withdraw(one("a"))));
        offers
    };
    let mut leased = reviving();
    leased.withdrawn("a", false);
    assert_eq!(leased.poll(at(10)), Some(Todo::Ask(one("a"))), "requeued by command, it waits like any other");

    let mut completed = reviving();
    completed.withdrawn("a", true);
    completed.poll(at(0));
    completed.known("a", &Known::Completed("n2 0001".to_owned()), at(301));
    assert_eq!(completed.poll(at(0)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));

    let mut recalled = reviving();
    recalled.recalled("a");
    recalled.withdrawn("a", true);
    assert_eq!(recalled.poll(at(0)), Some(Todo::Withdraw(one("a"))));
    recalled.poll(at(0));
    recalled.known("a", &Known::Withdrawn, at(301));
    assert_eq!(recalled.poll(at(0)), told("a", Recall::Out));

    let mut unheard = reviving();
    unheard.away(0, at(301));
    unheard.unheard(one("a"));
    unheard.returned(0, at(302));
    assert_eq!(unheard.poll(at(0)), Some(Todo::Withdraw(one("a"))));
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
