use super::*;

const TTL: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_secs(1);

fn at(ms: u64) -> BootTime {
    BootTime::after_boot(Duration::from_millis(100_000 + ms))
}

fn election(role: Role) -> Election {
    Election::new(Incarnation::new("n1".parse().unwrap(), 1), role, ElectionTimes::of(TTL, HEARTBEAT), Epoch(4))
}

fn leading() -> Election {
    let mut election = election(Role::Master);
    assert_eq!(election.next(at(0), true, 0), Step::Acquire(Epoch(4)));
    election.answered(at(20), Answer::Acquired(Epoch(5)));
    assert_eq!(election.leadership(at(20)), None, "not before the floor is durable");
    election.confirm(at(30));
    assert_eq!(election.leadership(at(30)).unwrap().epoch, Epoch(5));
    election
}

/// Looks at the clock every 100 ms and answers nothing.
fn walk(election: &mut Election, from: u64, to: u64) -> Vec<Step> {
    (from..to).step_by(100).map(|ms| election.next(at(ms), true, 0)).filter(|step| !matches!(step, Step::Wait(_))).collect()
}

#[test]
fn a_lease_is_renewed_after_a_third_and_counted_from_before_it_was_asked_for() {
    let mut election = leading();
    assert_eq!(walk(&mut election, 100, 1000), []);
    assert!(matches!(election.next(at(1000), true, 0), Step::Renew(_)));
    election.answered(at(1040), Answer::Renewed);
    walk(&mut election, 1100, 2000);
    assert!(matches!(election.next(at(2000), true, 0), Step::Renew(_)));
    walk(&mut election, 2100, 3000);
    assert!(election.leadership(at(2999)).is_some());
    assert_eq!(election.leadership(at(3000)), None, "two thirds after the last answered renewal was sent");
}

#[test]
fn an_unanswered_renewal_ends_leadership_at_two_thirds_and_the_lease_is_given_back() {
    let mut election = leading();
    let steps = walk(&mut election, 100, 2200);
    assert_eq!(steps.len(), 1, "one call at a time: {steps:?}");
    assert!(election.take_events().contains(&Event::SteppedDown(Epoch(5), SteppedDown::Expired)));
    election.answered(at(2200), Answer::Unknown);
    assert!(matches!(election.next(at(2200), true, 0), Step::Release(_)));
}

#[test]
fn a_gap_between_two_looks_ends_leadership_first() {
    let mut election = leading();
    walk(&mut election, 100, 600);
    assert_eq!(election.leadership(at(500 + 501)), None);
    assert!(matches!(election.next(at(1100), true, 0), Step::Release(_)));
    assert!(election.take_events().contains(&Event::SteppedDown(Epoch(5), SteppedDown::Paused)));
}

#[test]
fn an_epoch_at_the_floor_is_not_led_with() {
    let mut election = election(Role::Master);
    election.next(at(0), true, 0);
    election.answered(at(10), Answer::Acquired(Epoch(4)));
    assert_eq!(election.unconfirmed(), None);
    assert!(matches!(election.next(at(20), true, 0), Step::Release(_)));
}

#[test]
fn a_lease_whose_answer_was_lost_is_given_back_and_asked_for_again() {
    let mut election = election(Role::Master);
    election.next(at(0), true, 0);
    election.answered(at(60), Answer::Unknown);
    let mine = Leadership { incarnation: Incarnation::new("n1".parse().unwrap(), 1), epoch: Epoch(5) };
    assert_eq!(election.next(at(500), true, 0), Step::Acquire(Epoch(4)));
    election.answered(at(510), Answer::Held(mine.clone(), TTL));
    assert_eq!(election.next(at(520), true, 0), Step::Release(mine));
    election.answered(at(530), Answer::Released);
    assert!(walk(&mut election, 600, 1200).contains(&Step::Acquire(Epoch(4))));
}

#[test]
fn workers_never_stand_and_standby_nodes_only_without_a_master() {
    assert_eq!(walk(&mut election(Role::Worker), 0, 5000), []);
    let mut standby = election(Role::Standby);
    assert_eq!(standby.next(at(0), true, 0), Step::Look);
    standby.answered(at(10), Answer::Seen(None));
    assert_eq!(standby.next(at(600), false, 0), Step::Acquire(Epoch(4)));
}

/// Looks as a standby that believes that a master is alive, and answers by `holder`: when it stands, if it does before `to`.
fn stands_at(standby: &mut Election, from: u64, to: u64, mut holder: impl FnMut(u64) -> Option<Answer>) -> Option<u64> {
    for ms in (from..to).step_by(50) {
        match standby.next(at(ms), true, 1023) {
            Step::Wait(_) => {}
            Step::Look => standby.answered(at(ms + 20), holder(ms).unwrap_or(Answer::Unknown)),
            // It takes nothing from a master that was a moment earlier.
            Step::Acquire(_) => match holder(ms) {
                Some(Answer::Seen(Some(leader))) => standby.answered(at(ms + 20), Answer::Held(leader, TTL)),
                _ => return Some(ms),
            },
            step => panic!("{step:?}"),
        }
    }
    None
}

/// With the defaults a standby saw only after two and a half heartbeats of 5 s, and its own next, that no master is there.
#[test]
fn a_standby_stands_once_no_master_has_taken_the_lease_for_half_of_its_length() {
    let leader = Leadership { incarnation: Incarnation::new("n2".parse().unwrap(), 2), epoch: Epoch(5) };
    let held_until = |end: u64| {
        let leader = leader.clone();
        move |ms: u64| Some(Answer::Seen((ms < end).then(|| leader.clone())))
    };
    // Held, it is watched and no more.
    let mut standby = election(Role::Standby);
    assert_eq!(stands_at(&mut standby, 0, 20_000, held_until(20_000)), None);
    assert_eq!(standby.leader(), Some(&leader));
    // It ends: seen by the next look, three quarters of a second later at most.
    let ended = stands_at(&mut standby, 20_000, 40_000, held_until(20_000)).unwrap();
    assert!((21_500..=22_400).contains(&ended), "{ended}");
    // A master that takes it within half of its length is left to it.
    let mut standby = election(Role::Standby);
    let late = |ms: u64| Some(Answer::Seen((!(10_000..11_400).contains(&ms)).then(|| leader.clone())));
    assert_eq!(stands_at(&mut standby, 0, 30_000, late), None);
    // One look without an answer says nothing.
    let mut standby = election(Role::Standby);
    let mut lost = 0;
    let ended = stands_at(&mut standby, 0, 30_000, |ms| {
        let is_lost = ms >= 10_000 && lost == 0;
        lost += u32::from(is_lost);
        if is_lost { None } else { held_until(10_000)(ms) }
    });
    assert!((11_500..=13_200).contains(&ended.unwrap()), "{ended:?}");
}

/// Masters come back from an outage up to a second after a standby, which is not to be before them.
#[test]
fn a_standby_that_has_not_watched_the_lease_waits_for_longer() {
    // From its start on.
    let mut standby = election(Role::Standby);
    let began = stands_at(&mut standby, 0, 30_000, |_| Some(Answer::Seen(None))).unwrap();
    assert!((6000..=6800).contains(&began), "{began}");
    // From the end of an outage on.
    let leader = Leadership { incarnation: Incarnation::new("n2".parse().unwrap(), 2), epoch: Epoch(5) };
    let mut standby = election(Role::Standby);
    let outage = |ms: u64| match ms {
        0..5000 => Some(Answer::Seen(Some(leader.clone()))),
        5000..15_000 => None,
        _ => Some(Answer::Seen(None)),
    };
    let ended = stands_at(&mut standby, 0, 60_000, outage).unwrap();
    assert!((21_000..=22_600).contains(&ended), "{ended}");
    // And from that of a pause on, in which it has seen nothing.
    let mut standby = election(Role::Standby);
    assert_eq!(stands_at(&mut standby, 0, 5000, |_| Some(Answer::Seen(Some(leader.clone())))), None);
    let ended = stands_at(&mut standby, 25_000, 60_000, |_| Some(Answer::Seen(None))).unwrap();
    assert!((31_000..=31_800).contains(&ended), "{ended}");
}

#[test]
fn a_higher_epoch_ends_leadership_and_is_the_floor_of_the_next() {
    let mut election = leading();
    election.saw_epoch(Epoch(9));
    assert_eq!(election.leadership(at(40)), None);
    assert!(matches!(election.next(at(40), true, 0), Step::Release(_)));
    election.answered(at(50), Answer::Released);
    assert!(walk(&mut election, 100, 700).contains(&Step::Acquire(Epoch(9))));
}

/// A follower named its last leader for as long as Valkey was away.
#[test]
fn a_leader_of_whom_nothing_is_heard_is_forgotten() {
    let leader = Leadership { incarnation: Incarnation::new("n2".parse().unwrap(), 2), epoch: Epoch(5) };
    let mut follower = election(Role::Worker);
    follower.saw_leader(at(0), Some(leader.clone()));
    walk(&mut follower, 100, 2000);
    follower.saw_leader(at(2000), Some(leader.clone()));
    assert_eq!(follower.take_events(), [Event::LeaderChanged(Some(leader.clone()))]);
    walk(&mut follower, 2100, 8000);
    assert_eq!(follower.leader(), Some(&leader));
    walk(&mut follower, 8000, 8100);
    assert_eq!((follower.leader().cloned(), follower.take_events()), (None, vec![Event::LeaderChanged(None)]));
    follower.saw_leader(at(8100), Some(leader.clone()));
    assert_eq!(follower.leader(), Some(&leader));
    // One that leads hears of itself by its own renewals.
    let mut leader = leading();
    for ms in (1000..20_000).step_by(1000) {
        walk(&mut leader, ms - 900, ms);
        assert!(matches!(leader.next(at(ms), true, 0), Step::Renew(_)));
        leader.answered(at(ms + 10), Answer::Renewed);
        assert!(leader.leader().is_some());
    }
}

/// A failover that brought an earlier lease back had its holder named as the leader for as long as that lasted, though nobody followed it.
#[test]
fn a_leader_of_before_is_not_named() {
    let leader = |epoch| Leadership { incarnation: Incarnation::new("n2".parse().unwrap(), 2), epoch: Epoch(epoch) };
    let mut follower = election(Role::Master);
    follower.accepted(Epoch(6));
    assert_eq!(follower.next(at(0), true, 0), Step::Acquire(Epoch(6)));
    follower.answered(at(10), Answer::Held(leader(5), TTL));
    assert_eq!(follower.leader(), None);
    follower.saw_leader(at(20), Some(leader(6)));
    assert_eq!(follower.leader(), Some(&leader(6)));
    follower.saw_leader(at(30), Some(leader(5)));
    assert_eq!(follower.leader(), None);
}

/// With the defaults, a lease of 3 s and heartbeats of 5 s, one heartbeat that was lost made a worker say that nobody leads.
#[test]
fn one_lost_heartbeat_makes_nobody_forget_the_leader() {
    let leader = Leadership { incarnation: Incarnation::new("n2".parse().unwrap(), 2), epoch: Epoch(5) };
    let times = ElectionTimes::of(TTL, Duration::from_secs(5));
    let mut follower = Election::new(Incarnation::new("n1".parse().unwrap(), 1), Role::Worker, times, Epoch(4));
    for heard_at in [0, 5_000, 15_800] {
        walk(&mut follower, heard_at.max(10_000) - 10_000, heard_at);
        follower.saw_leader(at(heard_at), Some(leader.clone()));
    }
    assert_eq!(follower.take_events(), [Event::LeaderChanged(Some(leader))]);
}

/// One forged number, and no later epoch was above what the nodes had in memory or on disk, whatever was restored.
#[test]
fn an_epoch_out_of_reach_neither_ends_leadership_nor_counts_for_the_next() {
    let forged = Epoch(crate::identity::EPOCH_MAX);
    let mut election = leading();
    election.saw_epoch(forged);
    election.refused(forged);
    assert!(election.leadership(at(40)).is_some());
    // The gap between two looks ends it.
    assert!(matches!(election.next(at(1010), true, 0), Step::Release(_)));
    election.answered(at(1020), Answer::Released);
    assert_eq!(election.next(at(1600), true, 0), Step::Acquire(Epoch(5)));
    election.answered(at(1610), Answer::Held(Leadership { incarnation: Incarnation::new("x".parse().unwrap(), 9), epoch: forged }, TTL));
    assert_eq!(election.leader(), None);
    assert_eq!(election.next(at(2400), true, 0), Step::Acquire(Epoch(5)));
    election.answered(at(2410), Answer::Acquired(forged));
    assert_eq!(election.unconfirmed(), None);
    assert!(matches!(election.next(at(2420), true, 0), Step::Release(_)));
    assert_eq!(election.take_events().iter().filter(|event| **event == Event::OutOfReach(forged)).count(), 4);
    // Restored.
    election.answered(at(2430), Answer::Released);
    // Not before a lease's time: each node that stands would take one epoch after another.
    assert_eq!(walk(&mut election, 2500, 5400), []);
    assert_eq!(election.next(at(5500), true, 0), Step::Acquire(Epoch(5)));
    election.answered(at(5510), Answer::Acquired(Epoch(6)));
    assert!(election.unconfirmed().is_some());
}

#[test]
fn a_node_that_is_not_fit_does_not_stand() {
    let mut election = election(Role::Master);
    election.set_fit(false);
    assert_eq!(walk(&mut election, 0, 5000), []);
    election.set_fit(true);
    assert!(matches!(walk(&mut election, 5000, 6000)[..], [Step::Acquire(_)]));
}

/// A node whose shard hung while its question was under way was elected by the answer, and led until its next heartbeat was due.
#[test]
fn an_answer_that_comes_once_the_node_must_not_lead_elects_nobody() {
    let becomes_unfit: fn(&mut Election) = |election| election.set_fit(false);
    let hands_over: fn(&mut Election) = |election| election.hand_over(at(10));
    for happens in [becomes_unfit, hands_over] {
        let mut asking = election(Role::Master);
        assert_eq!(asking.next(at(0), true, 0), Step::Acquire(Epoch(4)));
        happens(&mut asking);
        asking.answered(at(20), Answer::Acquired(Epoch(5)));
        assert_eq!(asking.unconfirmed(), None);
        assert!(matches!(asking.next(at(30), true, 0), Step::Release(_)), "given back at once");
        // The answer came first, and the epoch is not durable yet.
        let mut elected = election(Role::Master);
        elected.next(at(0), true, 0);
        elected.answered(at(5), Answer::Acquired(Epoch(5)));
        happens(&mut elected);
        assert_eq!(elected.unconfirmed(), None);
        elected.confirm(at(20));
        assert_eq!(elected.leadership(at(20)), None);
        assert!(matches!(elected.next(at(30), true, 0), Step::Release(_)));
    }
}

#[test]
fn a_leader_that_is_no_longer_fit_steps_down_at_once() {
    let mut election = leading();
    election.take_events();
    election.set_fit(false);
    assert_eq!(election.leadership(at(40)), None);
    assert!(election.take_events().contains(&Event::SteppedDown(Epoch(5), SteppedDown::Unfit)));
    assert!(matches!(election.next(at(40), true, 0), Step::Release(_)));
    election.answered(at(50), Answer::Released);
    assert_eq!(walk(&mut election, 100, 5000), []);
}

/// Each node asked again at once, and was elected and gave the lease back without end.
#[test]
fn a_lease_that_replicas_did_not_get_is_asked_for_again_after_one_ttl() {
    let mut election = election(Role::Master);
    assert_eq!(election.next(at(0), true, 1023), Step::Acquire(Epoch(4)));
    election.answered(at(100), Answer::NotReplicated(Epoch(5)));
    assert_eq!(election.take_events(), [Event::NotReplicated(Epoch(5))]);
    assert_eq!(election.unconfirmed(), None);
    // Others try it, and give it back.
    let other = Leadership { incarnation: Incarnation::new("n2".parse().unwrap(), 2), epoch: Epoch(6) };
    election.saw_leader(at(200), Some(other));
    election.saw_leader(at(300), None);
    election.hurry(at(300), 0);
    // A poll has 500 ms, its jitter up to half as many.
    assert_eq!(walk(&mut election, 300, 3300), []);
    assert!(matches!(walk(&mut election, 3300, 4100)[..], [Step::Acquire(_)]));
}

#[test]
fn after_a_hand_over_others_go_first() {
    let mut election = leading();
    election.hand_over(at(100));
    assert_eq!(election.leadership(at(100)), None);
    assert!(matches!(election.next(at(100), true, 0), Step::Release(_)));
    election.answered(at(110), Answer::Released);
    assert_eq!(walk(&mut election, 200, 3000), []);
    assert!(matches!(walk(&mut election, 3100, 3900)[..], [Step::Acquire(_)]));
}
