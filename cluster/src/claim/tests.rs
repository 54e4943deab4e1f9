//! What a worker does with its claims, one behaviour each.

use super::*;

const TIMES: ClaimTimes = ClaimTimes {
    lease_ttl: Duration::from_secs(3),
    repeat_after: Duration::from_millis(200),
    ask_every: Duration::from_secs(2),
    forget_after: Duration::from_secs(30),
    reconciliation: Duration::from_secs(12),
    alone_after: Duration::from_secs(900),
    refused_max: Duration::from_secs(14_400),
};

fn at(seconds: u64) -> BootTime {
    BootTime::after_boot(Duration::from_secs(100 + seconds))
}

fn lease(id: &str, token: &str) -> Lease {
    Lease { id: id.to_owned(), token: token.to_owned() }
}

#[test]
fn answers_decide() {
    for (answer, verdict) in [(Completed::Done, Verdict::Own), (Completed::DoneBefore, Verdict::Own), (Completed::Stale, Verdict::Discard)]
    {
        let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
        assert!(claims.leased(&a, "g", at(0)));
        assert_eq!(claims.completing(&a, at(1)), Verdict::Complete);
        assert_eq!(claims.completed(&a, answer, "g", at(1)), verdict, "{answer:?}");
        assert!(claims.is_empty());
    }
}

/// Valkey went back in time: its owner, which had settled with this node, took the item out, and the claim was refused.
#[test]
fn what_its_owner_has_settled_is_a_workers_that_may_have_been_believed() {
    for was_asked in [true, false] {
        let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
        claims.leased(&a, "g", at(0));
        claims.completing(&a, at(1));
        claims.unanswered(&a, was_asked, at(1));
        claims.completing(&a, at(2));
        let verdict = if was_asked { Verdict::Own } else { Verdict::Discard };
        assert_eq!(claims.completed(&a, Completed::Settled, "g", at(2)), verdict);
    }
}

/// A claim of which a complete may have been heard, and which is refused now.
fn refused() -> (Claims, Lease) {
    let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
    claims.leased(&a, "g", at(0));
    claims.completing(&a, at(1));
    assert_eq!(claims.unanswered(&a, true, at(1)), Verdict::Later);
    claims.completing(&a, at(2));
    assert_eq!(claims.completed(&a, Completed::Refused, "g", at(2)), Verdict::Later);
    (claims, a)
}

/// Its owner had settled with this worker before the queue went back in time: the worker was told that the item was there under another lease, and
/// dropped its copy, after which one more loss of data took the mail.
#[test]
fn a_copy_that_its_owner_may_have_believed_in_is_kept_until_it_is_proven_whose_the_mail_is() {
    let (mut claims, a) = refused();
    assert_eq!((claims.len(), claims.refused()), (1, 1));
    assert!(claims.due(at(3)).is_empty());
    assert_eq!(claims.due(at(4)), std::slice::from_ref(&a));
    assert_eq!(claims.completed(&a, Completed::Unproven, "g", at(4)), Verdict::Later, "nobody has signed that");
    assert_eq!(claims.completed(&a, Completed::Stale, "g", at(6)), Verdict::Discard);
    assert!(claims.is_empty());

    // The item is lost, and nobody offers it again.
    let (mut claims, a) = refused();
    assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(100)), Verdict::Later, "its owner has its chance first");
    assert_eq!(claims.refused(), 0);
    assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(112)), Verdict::Own);
}

#[test]
fn a_first_complete_that_is_refused_was_believed_by_nobody() {
    for answer in [Completed::Refused, Completed::Unproven] {
        let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
        claims.leased(&a, "g", at(0));
        claims.completing(&a, at(1));
        assert_eq!(claims.completed(&a, answer, "g", at(1)), Verdict::Discard, "{answer:?}");
    }
}

#[test]
fn what_was_refused_can_be_leased_anew_and_is_decided_by_that() {
    let (mut claims, a) = refused();
    let again = lease("a", "u");
    assert!(claims.leased(&again, "g", at(3)));
    claims.completing(&again, at(3));
    assert_eq!(claims.completed(&again, Completed::Done, "g", at(3)), Verdict::Own);
    assert_eq!(claims.due(at(4)), std::slice::from_ref(&a));
    assert_eq!(claims.completed(&a, Completed::Stale, "g", at(4)), Verdict::Discard);
}

/// Who can write to Valkey makes mail late, and does not take it.
#[test]
fn what_nobody_proves_is_delivered_after_a_quarter_of_an_hour_and_what_only_lies_in_the_queue_after_hours() {
    let passes = |answer, seconds: u64| {
        let (mut claims, a) = refused();
        claims.alone(at(2));
        let own = (3..=seconds + 10).find(|second| {
            claims.completing(&a, at(*second));
            claims.completed(&a, answer, "g", at(*second));
            !claims.alone(at(*second)).is_empty()
        });
        assert!(own.is_some_and(|second| second.abs_diff(seconds) < 5), "{answer:?}: {own:?}");
    };
    passes(Completed::Unproven, 900);
    passes(Completed::Refused, 14_400);
}

#[test]
fn a_lease_that_is_over_is_not_completed_for_the_first_time() {
    let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
    claims.leased(&a, "g", at(0));
    assert_eq!(claims.completing(&a, at(3)), Verdict::Discard);
    // Nor when the circuit was open all the time.
    claims.leased(&a, "g", at(0));
    claims.completing(&a, at(1));
    assert_eq!(claims.unanswered(&a, false, at(1)), Verdict::Later);
    assert_eq!(claims.completing(&a, at(3)), Verdict::Discard);
    assert!(claims.is_empty());
}

#[test]
fn what_may_have_been_heard_is_repeated_and_never_dropped() {
    let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
    claims.leased(&a, "g", at(0));
    claims.completing(&a, at(1));
    assert_eq!(claims.unanswered(&a, true, at(1)), Verdict::Later);
    assert!(claims.due(at(1)).is_empty());
    assert_eq!(claims.due(at(2)), std::slice::from_ref(&a));
    assert!(claims.due(at(2)).is_empty());
    assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(50)), Verdict::Own);
}

/// A failover that lost the last second, in which the item was offered, leased and completed, left the generation: the worker owned the item
/// at once, and so did the one to which its owner offered it again.
#[test]
fn what_a_failover_lost_is_not_owned_before_its_owner_had_its_chance() {
    let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
    claims.leased(&a, "g", at(0));
    claims.completing(&a, at(0));
    claims.unanswered(&a, true, at(0));
    assert_eq!(claims.due(at(1)), std::slice::from_ref(&a));
    claims.completing(&a, at(1));
    assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(1)), Verdict::Later);
    assert_eq!(claims.due(at(3)), std::slice::from_ref(&a));
    claims.completing(&a, at(3));
    assert_eq!(claims.completed(&a, Completed::Stale, "g", at(3)), Verdict::Discard);
}

#[test]
fn after_a_loss_of_data_the_owner_has_its_chance_first() {
    let (mut claims, a, b) = (Claims::new(TIMES), lease("a", "t"), lease("b", "t"));
    for lease in [&a, &b] {
        claims.leased(lease, "g1", at(0));
        claims.completing(lease, at(1));
        assert_eq!(claims.completed(lease, Completed::Unknown, "g2", at(1)), Verdict::Later);
    }
    assert!(claims.due(at(2)).is_empty());
    assert_eq!(claims.due(at(3)).len(), 2, "every two seconds");
    assert_eq!(claims.completed(&a, Completed::Stale, "g2", at(3)), Verdict::Discard, "its owner offered it again");
    for seconds in [3, 5, 7, 9, 11] {
        assert_eq!(claims.completed(&b, Completed::Unknown, "g2", at(seconds)), Verdict::Later);
        assert_eq!(claims.due(at(seconds + 2)), std::slice::from_ref(&b));
    }
    assert_eq!(claims.completed(&b, Completed::Unknown, "g2", at(13)), Verdict::Own);
}

#[test]
fn data_lost_without_a_sign_of_it_gives_the_owner_its_chance_too() {
    let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
    claims.leased(&a, "g", at(0));
    claims.completing(&a, at(1));
    assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(1)), Verdict::Later);
    assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(3)), Verdict::Later);
    assert_eq!(claims.completed(&a, Completed::Stale, "g", at(5)), Verdict::Discard);
}

#[test]
fn an_item_that_comes_again_has_its_earlier_claim_asked_about_at_once() {
    let (mut claims, first, again) = (Claims::new(TIMES), lease("a", "t"), lease("a", "u"));
    claims.leased(&first, "g1", at(0));
    claims.leased(&lease("b", "t"), "g1", at(0));
    assert!(!claims.leased(&again, "g1", at(0)));
    assert!(claims.due(at(0)).is_empty(), "the copy is not durable yet");
    claims.completing(&first, at(1));
    assert_eq!(claims.completed(&first, Completed::Unknown, "g2", at(1)), Verdict::Later);
    assert!(!claims.leased(&again, "g2", at(1)));
    assert_eq!(claims.due(at(1)), std::slice::from_ref(&first));
    assert_eq!(claims.completed(&first, Completed::Stale, "g2", at(1)), Verdict::Discard);
    assert!(claims.leased(&again, "g2", at(2)), "the next lease is one as always");
}

#[test]
fn a_claim_of_an_earlier_run_is_asked_about_at_once() {
    let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
    claims.recovered(a.clone(), at(0));
    assert_eq!(claims.due(at(0)), std::slice::from_ref(&a));
    assert_eq!(claims.completed(&a, Completed::Unknown, "g", at(0)), Verdict::Later);
    assert_eq!(claims.due(at(2)), std::slice::from_ref(&a));
    assert_eq!(claims.completed(&a, Completed::DoneBefore, "g", at(2)), Verdict::Own);
}

/// The seconds in which a running process finds nobody to ask, until something is its own.
fn seconds_alone(claims: &mut Claims, from: u64) -> (u64, Vec<Lease>) {
    assert!(claims.alone(at(from)).is_empty());
    (1..10_000).find_map(|second| Some((second, claims.alone(at(from + second)))).filter(|(_, alone)| !alone.is_empty())).unwrap()
}

/// A claim waited for an answer however long Valkey was away, with the only copy of mail that its owner had settled.
#[test]
fn a_claim_that_nobody_answers_for_a_quarter_of_an_hour_is_delivered() {
    let (mut claims, asked, stored, unsent) = (Claims::new(TIMES), lease("a", "t"), lease("b", "t"), lease("c", "t"));
    claims.leased(&asked, "g", at(0));
    claims.leased(&unsent, "g", at(0));
    claims.completing(&asked, at(1));
    assert_eq!(claims.unanswered(&asked, true, at(1)), Verdict::Later);
    assert_eq!(seconds_alone(&mut claims, 1), (899, vec![asked]), "the first look counts a second");
    claims.recovered(stored.clone(), at(1000));
    seconds_pass(&mut claims, 1000, 500);
    assert_eq!(claims.completed(&stored, Completed::Unknown, "g", at(1500)), Verdict::Later);
    assert_eq!(seconds_alone(&mut claims, 1500), (900, vec![stored]), "it was answered");
    // Nobody was told that this one is ours.
    seconds_pass(&mut claims, 10_000, 2000);
    assert_eq!(claims.completing(&unsent, at(20_000)), Verdict::Discard);
    assert!(claims.is_empty());
}

fn seconds_pass(claims: &mut Claims, from: u64, seconds: u64) {
    (from..=from + seconds).for_each(|second| assert!(claims.alone(at(second)).is_empty()));
}

#[test]
fn a_process_that_was_stopped_for_hours_asks_before_it_delivers() {
    let (mut claims, a) = (Claims::new(TIMES), lease("a", "t"));
    claims.recovered(a.clone(), at(0));
    assert!(claims.alone(at(1)).is_empty());
    assert!(claims.alone(at(20_000)).is_empty());
    assert_eq!(claims.due(at(20_000)), std::slice::from_ref(&a));
    assert_eq!(claims.completed(&a, Completed::Stale, "g", at(20_000)), Verdict::Discard);
}

#[test]
fn two_claims_of_one_item_have_an_answer_each() {
    let (mut claims, first, second) = (Claims::new(TIMES), lease("a", "t"), lease("a", "u"));
    claims.recovered(first.clone(), at(0));
    claims.recovered(second.clone(), at(0));
    assert_eq!(claims.due(at(0)), [first.clone(), second.clone()]);
    assert_eq!(claims.completed(&second, Completed::DoneBefore, "g", at(0)), Verdict::Own);
    assert_eq!(claims.len(), 1);
    assert_eq!(claims.completed(&first, Completed::Stale, "g", at(0)), Verdict::Discard);
}
