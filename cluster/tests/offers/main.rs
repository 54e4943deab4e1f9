//! The owner's rules, one behaviour each. Whole hand-overs are in `handover.rs`.

use std::{collections::HashSet, time::Duration};

use ringpost_cluster::{
    boot_time::BootTime,
    offer::{OWN_AGAIN, OfferBounds, Offers, Recall, Sending, Todo},
    work_queue::{Ending, Enqueued, Known},
};

mod endings;
mod outages;
mod recalls;

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

/// A worker had leased and completed it before its owner read the answer to the call that brought it in. It was asked for at once, when the queue's word
/// meant nothing yet, and then with the next round, up to ten seconds later.
#[test]
fn what_is_completed_before_its_owner_hears_that_it_came_in_is_asked_for_as_soon_as_it_hears_that() {
    let completed = Known::Completed("n2 0001".to_owned());
    for answer in [Some(Enqueued::Added), Some(Enqueued::Present), None] {
        let mut offers = Offers::new(BOUNDS, true, at(0));
        assert_eq!(offers.sending("a"), Sending::Send);
        offers.done("a");
        assert_eq!(offers.poll(at(1)), None, "its call is under way");
        match answer {
            Some(answer) => offers.enqueued("a", answer),
            None => offers.unanswered("a", at(1)),
        }
        assert_eq!(offers.poll(at(1)), Some(Todo::Ask(one("a"))), "{answer:?}");
        offers.known("a", &completed, at(1));
        assert_eq!(offers.poll(at(1)), Some(Todo::Settle(vec![("a".to_owned(), "n2 0001".to_owned())])));
    }
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
