//! Hand-over of mail between nodes over a Valkey that forgets, goes away and loses answers: simulated, from a seed.
//!
//! Whatever happens, no mail is lost; and it is delivered twice only where Valkey lost its data or was away for longer than the guard.
//! `RINGPOST_SEEDS=100000 cargo test --profile fast -p ringpost-cluster --test handover` is the long run.

#[path = "handover/valkey.rs"]
mod valkey;
#[path = "handover/world.rs"]
mod world;

use world::{Account, Faults, Owner, Rules, World};

/// Ten at least: what is said of averages holds for no single world.
fn seeds() -> u64 {
    std::env::var("RINGPOST_SEEDS").ok().map_or(300, |text| text.parse().expect("RINGPOST_SEEDS is a number")).max(10)
}

/// As much mail as makes the rest worth saying, of so many seeds.
fn is_much(accepted: u64) -> bool {
    accepted * 3 > seeds() * 100
}

fn run(owner: Owner, faults: Faults, rules: Rules, seeds: u64) -> Result<(u64, u64), String> {
    account(owner, faults, rules, seeds).map(|sum| (sum.accepted, sum.surplus))
}

fn account(owner: Owner, faults: Faults, rules: Rules, seeds: u64) -> Result<Account, String> {
    let mut sum = Account::default();
    for seed in 0..seeds {
        let run = World::new(seed, owner, faults, rules).run().map_err(|reason| format!("seed {seed}: {reason}"))?;
        sum.accepted += run.accepted;
        sum.surplus += run.surplus;
        sum.ended += run.ended;
        sum.died += run.died;
        sum.late += run.late;
    }
    println!("{owner:?}, {faults:?}: {seeds} seeds, {sum:?}, 0 lost");
    Ok(sum)
}

const NONE: Faults = Faults {
    crashes: false,
    lost_answers: false,
    outages: false,
    flushes: false,
    rolls_back: false,
    forgeries: false,
    one_upon_another: false,
    forged_refusals: false,
    slow_disks: false,
};
const CRASHES: Faults = Faults { crashes: true, lost_answers: true, ..NONE };
const OUTAGES: Faults = Faults { outages: true, ..NONE };
const FLUSHES: Faults = Faults { flushes: true, ..NONE };
const ALL: Faults = Faults { outages: true, flushes: true, ..CRASHES };
const FORGERIES: Faults = Faults { forgeries: true, ..NONE };

#[test]
fn crashes_and_lost_answers_lose_nothing_and_repeat_nothing() {
    let (accepted, surplus) = run(Owner::Shares, CRASHES, Rules::AsShipped, seeds()).unwrap();
    assert!(is_much(accepted));
    assert_eq!(surplus, 0);
}

#[test]
fn lost_data_and_outages_lose_nothing_and_repeat_little() {
    let (accepted, surplus) = run(Owner::Shares, ALL, Rules::AsShipped, seeds()).unwrap();
    assert!(surplus * 10 < accepted, "{surplus} of {accepted}");
}

/// A worker had stored a claim and completed it, its owner had settled that, and then Valkey lost both. The owner, which found the item in the
/// queue again, took it out, and the worker, which came back later, was refused and dropped the last copy.
#[test]
fn a_valkey_that_goes_back_in_time_loses_nothing() {
    let goes_back = Faults { rolls_back: true, ..CRASHES };
    for owner in [Owner::Shares, Owner::Offers] {
        let (accepted, surplus) = run(owner, goes_back, Rules::AsShipped, seeds()).unwrap();
        assert!(surplus * 10 < accepted, "{surplus} of {accepted}");
    }
    run(Owner::Shares, Faults { rolls_back: true, ..ALL }, Rules::AsShipped, seeds()).unwrap();
    // With a minute between two losses two seeds of a thousand notice it, or by chance none.
    let often = Faults { one_upon_another: true, ..goes_back };
    assert!(run(Owner::Shares, often, Rules::WithdrawsWhatIsSettled, 1000).is_err(), "noticed");
}

/// A worker that came late was told that the item was there under another lease, and dropped its copy. If its owner had settled with it before the
/// queue went back in time, that item was the last copy until it was leased and stored, and a second loss in those moments took it.
#[test]
fn a_valkey_that_loses_data_again_in_the_same_moments_loses_no_mail() {
    for flushes in [false, true] {
        let again = Faults { rolls_back: true, one_upon_another: true, flushes, ..CRASHES };
        for owner in [Owner::Shares, Owner::Offers] {
            let (accepted, surplus) = run(owner, again, Rules::AsShipped, seeds()).unwrap();
            assert!(surplus * 4 < accepted, "{surplus} of {accepted}");
        }
    }
    let again = Faults { rolls_back: true, one_upon_another: true, ..CRASHES };
    assert!(run(Owner::Shares, again, Rules::DropsRefused, 1000).is_err(), "noticed");
}

/// An owner that believed a worker, and whose disk was not done with that, leased the item when the queue had gone back in time, and said that it had
/// the mail: the worker dropped its copy, and then the owner's was gone as well.
#[test]
fn an_owner_that_is_settling_while_valkey_goes_back_in_time_loses_no_mail() {
    let slow = Faults { rolls_back: true, one_upon_another: true, slow_disks: true, ..CRASHES };
    run(Owner::Shares, slow, Rules::AsShipped, seeds()).unwrap();
}

const FORGED_REFUSALS: Faults = Faults { lost_answers: true, forged_refusals: true, ..NONE };

/// Who could write to Valkey and wrote in the moments in which a worker had no answer yet that its item was under another lease made it drop the
/// copy that its owner had given up.
fn refuse_by_forgery(owner: Owner) {
    run(owner, FORGED_REFUSALS, Rules::AsShipped, seeds()).unwrap();
    run(owner, Faults { forged_refusals: true, ..ALL }, Rules::AsShipped, seeds()).unwrap();
}

#[test]
fn a_forged_refusal_costs_no_copy() {
    refuse_by_forgery(Owner::Shares);
    assert!(run(Owner::Shares, FORGED_REFUSALS, Rules::DropsRefused, 50).is_err(), "noticed");
}

#[test]
fn a_forged_refusal_costs_no_copy_of_a_front_ends_mail() {
    refuse_by_forgery(Owner::Offers);
}

#[test]
fn a_forged_refusal_costs_no_copy_of_a_node_that_is_emptied() {
    refuse_by_forgery(Owner::Drains);
}

#[test]
fn an_owner_that_settles_too_early_is_noticed() {
    assert!(run(Owner::Shares, ALL, Rules::SettlesAtLease, 50).is_err());
}

#[test]
fn forged_completions_lose_nothing_and_repeat_nothing() {
    for owner in [Owner::Shares, Owner::Offers, Owner::Drains] {
        let (accepted, surplus) = run(owner, FORGERIES, Rules::AsShipped, seeds()).unwrap();
        assert!(is_much(accepted));
        assert_eq!(surplus, 0);
        run(owner, Faults { forgeries: true, ..ALL }, Rules::AsShipped, seeds()).unwrap();
    }
}

#[test]
fn an_owner_that_believes_forgeries_is_noticed() {
    assert!(run(Owner::Offers, FORGERIES, Rules::BelievesForgeries, 50).is_err());
}

#[test]
fn a_claim_delivered_in_spite_of_a_refusal_is_noticed() {
    assert!(run(Owner::Shares, CRASHES, Rules::DeliversRefused, 50).unwrap().1 > 0);
}

#[test]
fn a_claim_dropped_without_an_answer_is_noticed() {
    assert!(run(Owner::Shares, CRASHES, Rules::DropsUnanswered, 50).is_err());
}

#[test]
fn what_is_purged_or_expires_at_a_front_end_is_delivered_by_nobody() {
    let (accepted, surplus) = run(Owner::Offers, CRASHES, Rules::AsShipped, seeds()).unwrap();
    assert!(is_much(accepted));
    assert_eq!(surplus, 0);
    let (accepted, surplus) = run(Owner::Offers, ALL, Rules::AsShipped, seeds()).unwrap();
    assert!(surplus * 10 < accepted, "{surplus} of {accepted}");
}

#[test]
fn a_node_that_is_emptied_and_killed_delivers_nothing_twice() {
    let (accepted, surplus) = run(Owner::Drains, CRASHES, Rules::AsShipped, seeds()).unwrap();
    assert!(is_much(accepted));
    assert_eq!(surplus, 0);
    let (accepted, surplus) = run(Owner::Drains, ALL, Rules::AsShipped, seeds()).unwrap();
    assert!(surplus * 10 < accepted, "{surplus} of {accepted}");
}

#[test]
fn mail_ended_without_a_word_to_the_queue_is_noticed() {
    assert!(run(Owner::Offers, CRASHES, Rules::EndsWithoutRecall, 50).unwrap().1 > 0);
}

#[test]
fn mail_offered_while_it_is_wanted_back_is_noticed() {
    assert!(run(Owner::Offers, CRASHES, Rules::GivesWhatIsRecalled, 50).unwrap().1 > 0);
}

#[test]
fn mail_that_waits_for_room_to_be_offered_again_is_noticed() {
    assert!(run(Owner::Offers, ALL, Rules::GatesWhatIsOfferedAgain, 50).is_err());
}

#[test]
fn mail_delivered_before_it_is_out_of_the_queue_is_noticed() {
    assert!(run(Owner::Drains, CRASHES, Rules::DeliversWithoutRecall, 50).unwrap().1 > 0);
}

#[test]
fn a_late_claim_of_what_was_withdrawn_is_noticed() {
    assert!(run(Owner::Offers, CRASHES, Rules::WithdrawsWithoutTrace, 300).unwrap().1 > 0);
}

#[test]
fn no_mail_becomes_a_dead_letter_for_want_of_an_answer() {
    let died = |rules| account(Owner::Offers, FLUSHES, rules, seeds().max(300)).unwrap().died;
    assert_eq!(died(Rules::AsShipped), 0);
    assert!(died(Rules::LetsLeasesRunOut) > 0, "noticed");
}

/// With Valkey back a worker repeats the completions that it could not send. Its lease is over by then, and the owner may have delivered
/// the mail: it was completed all the same, until somebody swept the lease, and so was what the owner could not take out for that lease.
#[test]
fn owners_take_out_what_they_have_delivered_before_workers_complete_it() {
    let late = |rules| account(Owner::Shares, OUTAGES, rules, 300).unwrap().late;
    let shipped = late(Rules::AsShipped);
    // Not none: an owner can be slower than the time it has.
    assert!(shipped * 2 < late(Rules::RepeatsBeforeOwners));
}
