//! Mail that has ended and is in the queue again, and dead letters.

use super::*;

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
