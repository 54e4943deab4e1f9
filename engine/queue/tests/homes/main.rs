//! Several shards, whose dispatches go to home shards and come back over lanes of any slowness: none is lost or made twice, and the
//! connections to one destination, counted over all shards, are never more than its limit.

mod guests;
mod world;

use ringpost_queue::{DestinationLimits, Homes, RetryPolicy, Route, Routes, Via};

use world::{End, Shard, World, domain, hop};

/// Attempts of all runs together.
const ATTEMPTS: usize = 1_000_000;
const RUNS: u64 = 25;

#[test]
fn no_dispatch_is_lost_or_made_twice_and_limits_hold_over_all_shards() {
    let (mut attempts, mut crossed, mut refused, mut full, mut destinations) = (0, 0, 0, 0, 0);
    for seed in 0..RUNS {
        let mut world = World::new(seed);
        println!("seed {seed}: {} shards, limits {:?}", world.shards.len(), world.limits);
        while world.attempts < ATTEMPTS / RUNS as usize {
            world.step();
        }
        world.finish();
        println!(
            "  connections at once at most {:?}, {} of {} attempts crossed, {} refused",
            world.most, world.crossed, world.attempts, world.refused
        );
        attempts += world.attempts;
        crossed += world.crossed;
        refused += world.refused;
        destinations += world.limits.len();
        full += world.limits.iter().zip(&world.most).filter(|(limit, most)| **limit as usize == **most).count();
    }
    println!(
        "{attempts} attempts, {crossed} dispatches crossed, {refused} refused; {full} of {destinations} destinations were at their limit"
    );
    assert!(attempts >= ATTEMPTS && crossed > attempts / 10 && refused > 1000 && full > destinations / 2);
}

/// Two or three shards and one destination with one connection; what is at home there, and what is not.
fn one_connection(shards: u16) -> (World, usize, Vec<usize>) {
    let mut world = World::new(1);
    world.limits = vec![1];
    world.is_dead = vec![false];
    world.most = vec![0];
    let limits = DestinationLimits { connections_max: 1, window_initial: 1, ..DestinationLimits::default() };
    let route = || Route { pattern: domain(0), via: Via::Smarthost { hosts: vec![hop(0)] }, retry: RetryPolicy::default(), limits };
    let routes = || Routes::new(vec![route()]).unwrap();
    world.shards = (0..shards).map(|shard| Shard::new(Homes { shard, shards }, routes(), 1)).collect();
    let home = Homes { shard: 0, shards }.of(&domain(0), "", &limits)[0];
    let others = (0..shards).filter(|shard| *shard != home).map(usize::from).collect();
    (world, home.into(), others)
}

fn add(world: &mut World, at: usize, priority: u8, count: usize) {
    let recipients = [(format!("r0@{}", domain(0)), domain(0))];
    (0..count).for_each(|_| world.accept(at, priority, &recipients));
}

/// Lets everything happen that can, and delivers one message at the home; its owner.
fn deliver_one(world: &mut World, home: usize) -> (u16, u64) {
    for _ in 0..3 {
        for at in 0..world.shards.len() {
            while world.poll(at) {}
        }
        let lanes: Vec<_> = world.lanes.keys().copied().collect();
        for lane in lanes {
            while world.lanes.get(&lane).is_some_and(|lane| !lane.is_empty()) {
                world.carry(lane);
            }
        }
    }
    let mut connection = world.connections.pop().expect("the home is serving");
    assert!(world.connections.is_empty() && connection.home == home);
    let dispatch = connection.attempts.pop_front().unwrap();
    let id = world.shards[home].queue.envelope(dispatch.key()).unwrap().id;
    world.attempting.remove(&(id, 0));
    world.end(home, dispatch, &id, &[0], Some(End::Delivered));
    (id.shard, id.sequence)
}

#[test]
fn a_home_serves_its_own_mail_and_that_of_each_other_shard_in_turn() {
    let (mut world, home, others) = one_connection(3);
    // The home has far more than the others, and had it first.
    add(&mut world, home, 0, 1000);
    world.now += 60_000;
    others.iter().for_each(|other| add(&mut world, *other, 0, 100));
    let mut served = [0; 3];
    for _ in 0..150 {
        served[usize::from(deliver_one(&mut world, home).0)] += 1;
    }
    assert!(served.iter().all(|count| (48..=52).contains(count)), "{served:?}");
}

#[test]
fn a_higher_priority_goes_first_on_both_sides_and_a_lower_one_is_not_starved() {
    for high_is_home in [true, false] {
        let (mut world, home, others) = one_connection(2);
        let (high, low) = if high_is_home { (home, others[0]) } else { (others[0], home) };
        add(&mut world, low, 0, 100);
        add(&mut world, high, 9, 400);
        // One of the low ones may have gone before the first high one came over the lane.
        let owners: Vec<usize> = (0..171).map(|_| deliver_one(&mut world, home).0.into()).skip(1).collect();
        let lows = owners.iter().filter(|owner| **owner == low).count();
        assert!((9..=11).contains(&lows), "{lows} of 170, high at home: {high_is_home}");
        assert!(owners.windows(2).all(|two| two != [low, low]));
    }
}
