use std::task::Waker;

use ringpost_queue::{DestinationLimits, Jitter, Queue, QueueSettings, RetryPolicy, Route, Routes, Via};

use super::*;

fn limits(connections_max: u32) -> PoolLimits {
    PoolLimits {
        min_idle: 0,
        max_idle: 3,
        connections_max,
        messages_max: u32::MAX,
        max_lifetime: Duration::MAX,
        idle_timeout: Duration::MAX,
        wait_timeout: Duration::MAX,
        test_on_borrow: None,
        test_on_return: false,
        test_while_idle: None,
    }
}

fn pool(total_max: u32) -> Rc<Pool<u64>> {
    Rc::new(Pool::with_limits(RouteLimits { limits: vec![limits(2)] }, total_max, Rc::default()))
}

fn poll(waiting: &Waiting<u64>) -> Poll<Option<(u64, Seat<u64>)>> {
    waiting.poll_seated(&mut Context::from_waker(Waker::noop()))
}

/// Ids are made by a queue alone: that of route `index`.
fn destination(index: usize) -> DestinationId {
    destinations(4)[index]
}

pub(super) fn destinations(count: usize) -> Vec<DestinationId> {
    let route =
        Route { pattern: "*".to_owned(), via: Via::Mx { port: 25 }, retry: RetryPolicy::default(), limits: DestinationLimits::default() };
    let mut queue = Queue::new(QueueSettings::default(), Routes::new(vec![route]).unwrap(), 1, 0);
    (0..count).map(|index| queue.route(format!("{index}.test").as_bytes())).collect()
}

#[test]
fn an_attempt_waits_for_a_seat_or_a_connection_that_becomes_free() {
    let (pool, to, limits) = (pool(100), destination(1), limits(2));
    let Acquired::Seated(1, first) = pool.acquire(to, 1, &limits) else { panic!("a seat is free") };
    let Acquired::Seated(2, second) = pool.acquire(to, 2, &limits) else { panic!("a seat is free") };
    let Acquired::Waits(third) = pool.acquire(to, 3, &limits) else { panic!("no seat is free") };
    let Acquired::Waits(fourth) = pool.acquire(to, 4, &limits) else { panic!("no seat is free") };
    let Acquired::Waits(fifth) = pool.acquire(to, 5, &limits) else { panic!("no seat is free") };
    assert!(poll(&third).is_pending());
    // A connection that became free takes the first in line, without becoming idle.
    assert_eq!(pool.take_waiting(to), Some(3));
    assert!(matches!(poll(&third), Poll::Ready(None)));
    // One that ended leaves its seat to the next.
    drop(first);
    let Poll::Ready(Some((4, seat))) = poll(&fourth) else { panic!("the seat is its own") };
    assert_eq!(pool.view(to), PoolView { active: 2, idle: 0, total: 2, waiting: 1 });
    assert_eq!(pool.give_up(&fifth), Some(5));
    drop((second, seat));
    assert_eq!(pool.view(to), PoolView::default());
    assert_eq!(pool.metrics.pool_wait_count.get(), 3);
}

/// A busy destination kept the seats that it gave back for its own line, for as long as that was not empty, and each attempt elsewhere
/// that waited in vain left an entry behind.
#[test]
fn destinations_take_turns_for_the_last_seats_and_their_line_is_bounded() {
    let (pool, busy, other, limits) = (pool(2), destination(1), destination(2), limits(2));
    let seat = |acquired| match acquired {
        Acquired::Seated(_, seat) => seat,
        _ => panic!("a seat is free"),
    };
    let (mut first, mut second) = (seat(pool.acquire(busy, 1, &limits)), seat(pool.acquire(busy, 2, &limits)));
    let wait = |to, item| match pool.acquire(to, item, &limits) {
        Acquired::Waits(waiting) => waiting,
        _ => panic!("no seat is free"),
    };
    for item in 100..200 {
        let in_vain = wait(other, item);
        assert_eq!(pool.give_up(&in_vain), Some(item));
    }
    assert_eq!(pool.starved.borrow().len(), 0);
    // Its own limit kept these waiting; when a seat of its own comes back the other one is first.
    let mine: Vec<_> = (3..6).map(|item| wait(busy, item)).collect();
    let theirs: Vec<_> = (7..9).map(|item| wait(other, item)).collect();
    for turn in 0..2 {
        drop(std::mem::replace(&mut first, second));
        let Poll::Ready(Some((_, seat))) = poll(if turn == 0 { &theirs[0] } else { &mine[0] }) else { panic!("turn {turn}") };
        second = seat;
    }
    drop(first);
    assert!(matches!(poll(&theirs[1]), Poll::Ready(Some((8, _)))));
}

#[test]
fn an_idle_connection_ends_where_others_have_no_seat() {
    let (pool, idle, other, limits) = (pool(1), destination(1), destination(2), limits(2));
    let Acquired::Seated(1, seat) = pool.acquire(idle, 1, &limits) else { panic!("a seat is free") };
    let parked = Rc::default();
    assert!(pool.park(idle, &parked, &limits) && !parked.is_retired());
    let Acquired::Waits(waiting) = pool.acquire(other, 2, &limits) else { panic!("no seat is free") };
    assert!(parked.is_retired() && pool.all().idle == 0);
    pool.leave(idle, &parked);
    drop(seat);
    assert!(matches!(poll(&waiting), Poll::Ready(Some((2, _)))));
    assert_eq!(pool.all().idle, 0);
}

#[test]
fn the_destination_that_has_rested_longest_gives_up_its_oldest_connection_first() {
    let (pool, limits, ids) = (pool(5), limits(5), destinations(4));
    let [busy, two, one, other] = ids[..] else { unreachable!("four were made") };
    let mut seats = Vec::new();
    for to in [busy, two, two, one, busy] {
        let Acquired::Seated(_, seat) = pool.acquire(to, 1, &limits) else { panic!("a seat is free") };
        seats.push(seat);
    }
    let parked: Vec<Rc<Parked<u64>>> = (0..4).map(|_| Rc::default()).collect();
    for (to, parked) in [busy, two, two, one].into_iter().zip(&parked) {
        assert!(pool.park(to, parked, &limits));
    }
    // Used in between it has rested less than the others.
    assert!(matches!(pool.acquire(busy, 7, &limits), Acquired::Handed));
    assert!(parked[0].take() == Some(7) && pool.park(busy, &parked[0], &limits));
    let mut retired = Vec::new();
    for item in 0..4 {
        let Acquired::Waits(waiting) = pool.acquire(other, item, &limits) else { panic!("no seat is free") };
        retired.extend((0..4).filter(|at| parked[*at].is_retired() && !retired.contains(at)).collect::<Vec<_>>());
        assert_eq!(pool.give_up(&waiting), Some(item));
    }
    assert_eq!(retired, [1, 3, 0, 2], "in turn: of two the older one, the other one when its turn comes again");
    assert_eq!((pool.all().idle, pool.resting.borrow().len()), (0, 0));
}

/// Only one that was idle when another found no seat ended for it: one that came to rest a moment later kept its seat until its time
/// was up, and the attempt waited in vain.
#[test]
fn a_connection_does_not_become_idle_where_others_have_no_seat() {
    let (pool, idle, other, limits) = (pool(1), destination(1), destination(2), limits(1));
    let Acquired::Seated(1, seat) = pool.acquire(idle, 1, &limits) else { panic!("a seat is free") };
    // Its own limit keeps this one waiting, which is taken over.
    let Acquired::Waits(_) = pool.acquire(idle, 2, &limits) else { panic!("no seat is free") };
    assert_eq!(pool.take_waiting(idle), Some(2));
    let Acquired::Waits(waiting) = pool.acquire(other, 3, &limits) else { panic!("no seat is free") };
    assert!(!pool.park(idle, &Rc::default(), &limits));
    drop(seat);
    let Poll::Ready(Some((3, seat))) = poll(&waiting) else { panic!("the seat has come back") };
    // Nobody waits any more.
    let parked = Rc::default();
    assert!(pool.park(other, &parked, &limits));
    pool.leave(other, &parked);
    // Nor does this one of its own account.
    let Acquired::Waits(own) = pool.acquire(other, 4, &limits) else { panic!("no seat is free") };
    assert!(pool.park(other, &parked, &limits));
    drop((own, seat));
}

/// Only idle connections ended for who had none: a destination with mail without end kept all seats until its connections were as old as
/// `max_lifetime` says, while attempts elsewhere waited in vain.
#[test]
fn a_connection_in_use_passes_its_seat_on_after_its_turn_and_no_more_of_them_than_others_wait() {
    let (pool, busy, other, limits) = (pool(4), destination(1), destination(2), limits(9));
    let wait = |to, item| match pool.acquire(to, item, &limits) {
        Acquired::Waits(waiting) => waiting,
        _ => panic!("no seat is free"),
    };
    let mut seats: Vec<_> = (0..4)
        .map(|item| match pool.acquire(busy, item, &limits) {
            Acquired::Seated(_, seat) => seat,
            _ => panic!("a seat is free"),
        })
        .collect();
    let old = Duration::from_secs(1);
    assert!(pool.gives_way(busy, old).is_none(), "nobody waits");
    let theirs = wait(other, 9);
    assert!(pool.gives_way(busy, old - Duration::from_millis(1)).is_none(), "it is its turn");
    let giving_way = pool.gives_way(busy, old).expect("it has had its turn");
    assert!(pool.gives_way(busy, old).is_none(), "one is enough for one that waits");
    drop((giving_way, seats.pop()));
    let Poll::Ready(Some((9, seat))) = poll(&theirs) else { panic!("the seat is its own") };
    assert!(pool.gives_way(busy, old).is_none());
    // Its own line gains nothing by the end of its own connection, and comes first when it is first.
    let mine = wait(busy, 10);
    assert!(pool.gives_way(busy, old).is_none());
    let theirs = wait(other, 11);
    assert!(pool.gives_way(busy, old).is_none());
    assert!(pool.gives_way(busy, old).is_some());
    assert_eq!(pool.metrics.pool_gave_way.get(), 2);
    drop((seat, mine, theirs));
}

#[test]
fn each_destination_with_mail_without_end_has_its_turn_within_a_round() {
    const SEATS: u32 = 4;
    let message = Duration::from_millis(10);
    for count in [5, 20, 100] {
        let (pool, limits) = (pool(SEATS), limits(SEATS));
        let ids = destinations(count);
        let (mut connections, mut waiting) = (Vec::new(), Vec::new());
        let mut longest = Duration::ZERO;
        for to in &ids {
            match pool.acquire(*to, 0, &limits) {
                Acquired::Seated(_, seat) => connections.push((*to, Duration::ZERO, seat)),
                Acquired::Waits(one) => waiting.push((*to, Duration::ZERO, one)),
                Acquired::Handed => panic!("none is idle"),
            }
        }
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(60) {
            now += message;
            for at in (0..connections.len()).rev() {
                let (to, since, _) = &connections[at];
                let Some(giving_way) = pool.gives_way(*to, now - *since) else { continue };
                let (to, _, seat) = connections.swap_remove(at);
                drop((giving_way, seat));
                let Acquired::Waits(one) = pool.acquire(to, 0, &limits) else { panic!("others wait") };
                waiting.push((to, now, one));
            }
            waiting.retain(|(to, since, one)| match poll(one) {
                Poll::Ready(Some((_, seat))) => {
                    longest = longest.max(now - *since);
                    connections.push((*to, now, seat));
                    false
                }
                Poll::Ready(None) => panic!("none is idle"),
                Poll::Pending => true,
            });
            assert_eq!(connections.len(), SEATS as usize);
        }
        waiting.iter().for_each(|(_, since, _)| longest = longest.max(now - *since));
        assert!(longest <= Duration::from_secs(11), "{count} destinations: {longest:?}");
    }
}

/// A destination that once had an idle connection stood in the line for good: with all the domains of a long life there were millions,
/// which the first that found no seat went through at once.
#[test]
fn who_has_no_idle_connection_any_more_holds_no_place() {
    let (pool, limits) = (pool(100), limits(2));
    let ids = destinations(100_000);
    for id in &ids {
        let Acquired::Seated(1, seat) = pool.acquire(*id, 1, &limits) else { panic!("a seat is free") };
        let parked = Rc::default();
        assert!(pool.park(*id, &parked, &limits));
        pool.leave(*id, &parked);
        drop(seat);
        assert_eq!(pool.resting.borrow().len(), 0);
    }
    assert!(pool.places.borrow().is_empty());
    // Nor does who has given up.
    let all: Vec<_> = (0..100).map(|_| pool.acquire(ids[0], 1, &PoolLimits { connections_max: 100, ..limits })).collect();
    for id in &ids[1..] {
        let Acquired::Waits(waiting) = pool.acquire(*id, 1, &limits) else { panic!("no seat is free") };
        assert_eq!(pool.give_up(&waiting), Some(1));
        assert_eq!(pool.starved.borrow().len(), 0);
    }
    assert_eq!((all.len(), pool.places.borrow().len()), (100, 1));
}

#[test]
fn idle_connections_are_handed_out_youngest_first_and_no_more_than_wanted_are_kept() {
    let (pool, to, limits) = (pool(100), destination(1), PoolLimits { max_idle: 2, ..limits(9) });
    let parked: Vec<Rc<Parked<u64>>> = (0..3).map(|_| Rc::default()).collect();
    assert!(pool.park(to, &parked[0], &limits) && pool.park(to, &parked[1], &limits));
    assert!(!pool.park(to, &parked[2], &limits));
    assert!(matches!(pool.acquire(to, 7, &limits), Acquired::Handed));
    assert_eq!((parked[0].take(), parked[1].take()), (None, Some(7)));
    pool.leave(to, &parked[1]);
    assert_eq!(pool.idle_of(to), 1);
    pool.leave(to, &parked[0]);
    assert_eq!((pool.idle_of(to), pool.all().idle), (0, 0));
}

#[test]
fn connections_that_are_about_to_be_idle_count_where_enough_are_to_be_kept() {
    let (pool, to, limits, now) = (pool(100), destination(1), PoolLimits { min_idle: 2, ..limits(9) }, Instant::now());
    let first = pool.seat_for_idle(to, &limits, now).expect("none is there");
    let second = pool.seat_for_idle(to, &limits, now).expect("one is being made");
    assert!(pool.seat_for_idle(to, &limits, now).is_none(), "two are being made");
    let (seat, soon) = first;
    let parked = Rc::default();
    assert!(pool.park(to, &parked, &limits));
    drop(soon);
    assert!(pool.seat_for_idle(to, &limits, now).is_none() && pool.idle_of(to) == 2);
    // A test, and one that failed.
    pool.leave(to, &parked);
    let test = pool.soon_idle(to);
    assert!(pool.seat_for_idle(to, &limits, now).is_none());
    drop((test, seat));
    assert!(pool.seat_for_idle(to, &limits, now).is_some());
    drop(second);
    assert_eq!((pool.idle_of(to), pool.all().total), (0, 0));
}

/// A peer that ended idle connections at once was called again as soon as another was idle, for five minutes after the last message.
#[test]
fn a_connection_made_ahead_that_the_peer_ends_is_not_made_again_at_once() {
    let (pool, to, limits, now) = (pool(100), destination(1), PoolLimits { min_idle: 3, ..limits(9) }, Instant::now());
    let Acquired::Seated(_, _used) = pool.acquire(to, 7, &limits) else { panic!("a seat is free") };
    let ahead = pool.seat_for_idle(to, &limits, now).expect("too few are idle");
    pool.lost_ahead(to, Duration::ZERO, now);
    drop(ahead);
    assert!(pool.seat_for_idle(to, &limits, now).is_none());
    let ahead = pool.seat_for_idle(to, &limits, now + Duration::from_secs(1)).expect("it may be another one now");
    pool.served_ahead(to);
    drop(ahead);
    assert!(pool.seat_for_idle(to, &limits, now).is_some());
}

#[test]
fn fewer_connections_are_allowed_and_then_more() {
    let (pool, to) = (pool(100), destination(1));
    let mut seats: Vec<_> = (0..4)
        .map(|item| match pool.acquire(to, item, &limits(4)) {
            Acquired::Seated(_, seat) => seat,
            _ => panic!("a seat is free"),
        })
        .collect();
    let parked: Vec<Rc<Parked<u64>>> = (0..2).map(|_| Rc::default()).collect();
    parked.iter().for_each(|parked| assert!(pool.park(to, parked, &limits(4))));
    assert!(!pool.is_beyond(to, |_| 1), "nobody has changed anything");
    assert!(pool.change_limits(|_| 3).is_empty());
    assert_eq!((parked[0].is_retired(), parked[1].is_retired()), (true, false));
    assert!(pool.is_beyond(to, |_| 3));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(pool.poll_within(|_| 3, &mut cx).is_pending());
    drop(seats.pop());
    assert!(pool.poll_within(|_| 3, &mut cx).is_ready() && !pool.is_beyond(to, |_| 3));
    assert!(matches!(pool.acquire(to, 7, &limits(3)), Acquired::Handed));
    let Acquired::Waits(eighth) = pool.acquire(to, 8, &limits(3)) else { panic!("all are in use") };
    assert!(pool.change_limits(|_| 4).is_empty());
    let Poll::Ready(Some((8, seat))) = poll(&eighth) else { panic!("there is one more") };
    seats.push(seat);
    let Acquired::Waits(ninth) = pool.acquire(to, 9, &limits(4)) else { panic!("all are in use") };
    assert_eq!(pool.change_limits(|_| 0), [9], "it goes elsewhere");
    assert!(matches!(poll(&ninth), Poll::Ready(None)));
}

#[test]
fn random_lives_keep_every_limit_and_lose_no_attempt() {
    for seed in 0..200 {
        let mut random = Jitter::new(seed);
        let total_max = 2 + random.below(6) as u32;
        let most = 1 + random.below(4) as u32;
        let (pool, limits) = (pool(total_max), limits(most));
        let mut seats: Vec<(usize, Seat<u64>)> = Vec::new();
        let mut waiting: Vec<(usize, Rc<Waiting<u64>>)> = Vec::new();
        let (mut began, mut ended) = (0_u64, 0_u64);
        for _ in 0..500 {
            let to = random.below(4) as usize;
            match random.below(5) {
                0 | 1 => {
                    began += 1;
                    match pool.acquire(destination(to), began, &limits) {
                        Acquired::Handed => panic!("none is idle"),
                        Acquired::Seated(_, seat) => seats.push((to, seat)),
                        Acquired::Waits(wait) => waiting.push((to, wait)),
                    }
                }
                2 if !seats.is_empty() => {
                    ended += 1;
                    let at = random.below(seats.len() as u64) as usize;
                    drop(seats.swap_remove(at));
                }
                // A connection has become free: it takes one over, whose own is then counted as ended.
                3 => ended += u64::from(pool.take_waiting(destination(to)).is_some()),
                4 if !waiting.is_empty() => {
                    let at = random.below(waiting.len() as u64) as usize;
                    ended += u64::from(pool.give_up(&waiting.swap_remove(at).1).is_some());
                }
                _ => {}
            }
            waiting.retain(|(to, wait)| match poll(wait) {
                Poll::Ready(Some((_, seat))) => {
                    seats.push((*to, seat));
                    false
                }
                Poll::Ready(None) => false,
                Poll::Pending => true,
            });
            assert_eq!(began, ended + seats.len() as u64 + waiting.len() as u64, "seed {seed}");
            assert_eq!(pool.all().total as usize, seats.len());
            assert!(seats.len() <= total_max as usize, "seed {seed}");
            for to in 0..4 {
                let of = |seats: &[(usize, Seat<u64>)]| seats.iter().filter(|(other, _)| *other == to).count();
                let (used, waits) = (of(&seats), waiting.iter().filter(|(other, _)| *other == to).count());
                assert!(used <= most as usize, "seed {seed}");
                assert!(waits == 0 || used == most as usize || seats.len() == total_max as usize, "seed {seed}: nobody waits for nothing");
            }
        }
    }
}

/// They were 64 whatever the limit, so that with the sessions' three quarters there were more connections than descriptors.
#[test]
fn few_descriptors_are_few_connections() {
    for (descriptors, connections) in
        [(16, 8), (64, 8), (128, 16), (256, 32), (512, 64), (1024, 64), (1280, 64), (2048, 256), (65_536, 16_128)]
    {
        assert_eq!(total_max(descriptors), connections, "{descriptors}");
    }
}
