//! Guests of a home: whose hosts it believes, and when they go back to their owners.

use ringpost_queue::{
    DestinationLimits, Dispatch, Guest, Homes, HostsTried, NewMessage, NewRecipient, NextHop, Notify, Outcome, Pauses, Question, Queue,
    QueueId, QueueSettings, Refused, Resolution, RetryPolicy, Route, Routes, Settled, Via, Wait, Work,
};

use crate::world::{START, hop};

fn limits_of_one_home() -> DestinationLimits {
    DestinationLimits { connections_max: 1, window_initial: 1, ..DestinationLimits::default() }
}

/// One of three shards, with few destinations and one route by MX.
fn one_of_three(shard: u16) -> Queue {
    one_of_three_with(shard, limits_of_one_home())
}

fn one_of_three_with(shard: u16, limits: DestinationLimits) -> Queue {
    let route = Route { pattern: "*".into(), via: Via::Mx { port: 25 }, retry: RetryPolicy::default(), limits };
    let settings = QueueSettings { homes: Homes { shard, shards: 3 }, destinations_max: 3, ..QueueSettings::default() };
    Queue::new(settings, Routes::new(vec![route]).unwrap(), 1, START)
}

/// What one of three shards asks shard 1 for, when DNS told it these hosts of a site.
fn guest_of(shard: u16, hosts: Vec<NextHop>) -> Guest {
    guest_for("y.test", shard, hosts)
}

/// As [`guest_of`], for one of the domains of that site.
fn guest_for(domain: &str, shard: u16, hosts: Vec<NextHop>) -> Guest {
    let home_of = |key: &String| Homes { shard: 0, shards: 3 }.of("*", key, &limits_of_one_home())[0];
    let key = (0..).map(|number| format!("10 mx{number}.test")).find(|key| home_of(key) == 1).unwrap();
    let mut owner = one_of_three(shard);
    let destination = owner.route(domain.as_bytes());
    let message = NewMessage { id: QueueId { boot: 1, shard, sequence: 1 }, accepted_at: START, ..NewMessage::default() };
    let address = format!("b@{domain}");
    let recipient = NewRecipient { address: address.as_bytes(), destination, notify: Notify::default() };
    owner.enqueue(&message, std::iter::once(recipient), START);
    let dispatch = loop {
        match owner.poll(START, &mut Vec::new()) {
            Some(Work::Resolve(lookup)) => {
                let (key, hosts) = (key.clone(), hosts.clone());
                owner.resolved(
                    lookup.asking,
                    &Resolution::Site { key, name: "mx.test".into(), hosts, is_whole: true, until: START + 60_000 },
                    START,
                );
            }
            Some(Work::Attempt(dispatch)) => break dispatch,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(dispatch.home(), Some(1));
    let mut guest = Guest::default();
    owner.describe(&dispatch, 1, &mut guest);
    assert_eq!(owner.abandon(dispatch, START), Settled::Nothing);
    guest
}

/// While a reload goes from shard to shard they differ in who is home. A shard that was asked and is none made a site for the guest that
/// nothing removed: each counted as a destination in use for ever.
#[test]
fn a_site_made_for_a_guest_that_is_sent_back_goes_again() {
    let mut stranger = one_of_three(2);
    let guest = guest_of(0, vec![hop(0)]);
    assert!(stranger.has_room() && stranger.receive(guest, START).is_err() && !stranger.has_room());
    let mut now = START;
    while !stranger.has_room() {
        now = stranger.next_due(now).expect("the site is there for ever").max(now + 1);
        assert!(stranger.poll(now, &mut Vec::new()).is_none());
    }
}

/// A home took over the hosts of each guest: where DNS told two shards different ones, they went to and fro, and with each change the
/// connections to them were closed.
#[test]
fn the_hosts_of_a_site_do_not_go_to_and_fro_between_its_guests() {
    let mut home = one_of_three(1);
    home.receive(guest_of(0, vec![hop(0), hop(1)]), START).unwrap();
    let Some(Work::Attempt(dispatch)) = home.poll(START, &mut Vec::new()) else { panic!("it is its turn") };
    let (destination, mut tried) = (dispatch.destination(), HostsTried::default());
    let mut hosts: Vec<_> = std::iter::from_fn(|| home.next_host(destination, &mut tried, START)).collect();
    hosts.sort_by_key(|host| host.position());
    let told = |home: &mut Queue, shard, told: &[usize]| {
        home.receive(guest_of(shard, told.iter().map(|number| hop(*number)).collect()), START).unwrap();
        hosts.iter().map(|host| home.host_address(destination, *host).is_some()).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut home, 2, &[1, 2]), [true, true]);
    assert_eq!(told(&mut home, 0, &[0, 1]), [true, true]);
    assert_eq!(told(&mut home, 2, &[1, 2]), [true, true]);
    // What the same shard is told later counts, and what another is told when nothing that is known is in it.
    assert_eq!(told(&mut home, 0, &[1]), [false, true]);
    assert_eq!(told(&mut home, 2, &[2]), [false, false]);
    assert!(home.abandon_guest(dispatch, false, START).is_none());
}

/// What DNS says of a domain with more hosts than are asked for at once, two of each turn.
fn part_of_site(turn: u16, now: u64) -> Resolution {
    let home_of = |key: &String| Homes { shard: 0, shards: 3 }.of("*", key, &limits_of_one_home())[0];
    let key = (0..).map(|number| format!("10 mx{number}.test")).find(|key| home_of(key) == 1).unwrap();
    let hosts = vec![hop(2 * usize::from(turn)), hop(2 * usize::from(turn) + 1)];
    Resolution::Site { key, name: "mx.test".into(), hosts, is_whole: false, until: now + 3_600_000 }
}

/// The next attempt of a shard, which hears of DNS what [`part_of_site`] says; the turns that it asked for go behind `turns`.
fn next_of(owner: &mut Queue, turns: &mut Vec<u16>, now: u64) -> Option<Dispatch> {
    loop {
        match owner.poll(now, &mut Vec::new())? {
            Work::Resolve(lookup) => {
                let Question::Mx { turn, .. } = lookup.question else { panic!("it is by MX") };
                turns.push(turn);
                owner.resolved(lookup.asking, &part_of_site(turn, now), now);
            }
            Work::Attempt(dispatch) => return Some(dispatch),
            other => panic!("{other:?}"),
        }
    }
}

/// The home tries all that it knows for a guest, and reaches none.
fn reach_none(home: &mut Queue, now: u64) -> (Vec<String>, Refused) {
    let Some(Work::Attempt(dispatch)) = home.poll(now, &mut Vec::new()) else { panic!("it is the guest's turn") };
    let (destination, mut tried, mut names) = (dispatch.destination(), HostsTried::default(), Vec::new());
    while let Some(host) = home.next_host(destination, &mut tried, now) {
        names.push(home.host_address(destination, host).unwrap().name.clone());
        home.host_failed(destination, host, "connect: refused", now);
    }
    names.sort();
    (names, home.unreachable_guest(dispatch, now))
}

/// Where another shard delivers, mail of a domain with many hosts waited as long as those of the first turn counted as dead before others were
/// asked for; and guests of several shards, each at its own turn, exchanged the hosts at the home.
#[test]
fn hosts_of_the_next_turn_are_tried_at_once_at_the_home_and_those_of_an_earlier_one_change_nothing() {
    let names = |turn: usize| vec![hop(2 * turn).name, hop(2 * turn + 1).name];
    // A host that fails counts as dead for a minute.
    let mut limits = limits_of_one_home();
    limits.breaker.timeout_ms = 60_000;
    let mut home = one_of_three_with(1, limits);
    let owner_of = |shard| {
        let mut owner = one_of_three_with(shard, limits);
        let destination = owner.route(b"y.test");
        let message = NewMessage { id: QueueId { boot: 1, shard, sequence: 1 }, accepted_at: START, ..NewMessage::default() };
        owner.enqueue(&message, [NewRecipient { address: b"b@y.test", destination, notify: Notify::default() }].into_iter(), START);
        owner
    };
    let (mut owner, mut other) = (owner_of(0), owner_of(2));
    let (mut turns, mut now) = (Vec::new(), START);
    for turn in 0..2_u16 {
        let dispatch = next_of(&mut owner, &mut turns, now).expect("nothing is known to be dead");
        let mut guest = Guest::default();
        owner.describe(&dispatch, 1, &mut guest);
        home.receive(guest, now).unwrap();
        let (tried, refused) = reach_none(&mut home, now);
        assert_eq!(tried, names(turn.into()));
        owner.home_sleeps(&dispatch, refused.until, refused.wait, &refused.reason, now);
        assert_eq!(owner.unreachable(dispatch, now, &mut Vec::new()), Settled::Deferral);
        // Its domain asks for the hosts of the next turn after a back-off, long before these are tried again.
        assert!(refused.until >= now + 20_000, "{}", refused.until - now);
        let refused_until = refused.until;
        while turns.len() == usize::from(turn) + 1 {
            now = owner.next_due(now).unwrap().max(now + 1);
            if let Some(dispatch) = next_of(&mut owner, &mut turns, now) {
                assert_eq!(owner.abandon(dispatch, now), Settled::Nothing);
            }
        }
        assert!(now < refused_until && turns.last() == Some(&(turn + 1)), "{turns:?}");
    }
    // The other one is at its first turn: its guest is refused by what the home has, and hears that it is to ask for others.
    let mut its_turns = Vec::new();
    let dispatch = next_of(&mut other, &mut its_turns, now).unwrap();
    let mut guest = Guest::default();
    other.describe(&dispatch, 1, &mut guest);
    home.receive(guest, now).unwrap();
    let refused = home.take_refused().expect("all that the home has are dead");
    assert!(matches!(refused.wait, Wait::BreakerOpen { .. }), "{refused:?}");
    other.home_sleeps(&dispatch, refused.until, refused.wait, &refused.reason, now);
    assert_eq!(other.abandon(dispatch, now), Settled::Nothing);
    while its_turns.len() == 1 {
        now = other.next_due(now).unwrap().max(now + 1);
        assert!(now < refused.until, "it asks before");
        if let Some(dispatch) = next_of(&mut other, &mut its_turns, now) {
            assert_eq!(other.abandon(dispatch, now), Settled::Nothing);
        }
    }
    assert_eq!(its_turns, [0, 1]);
    // The first one goes on to its third turn, and there is one that lives.
    let dispatch = next_of(&mut owner, &mut turns, now).expect("it is tried at once");
    let mut guest = Guest::default();
    owner.describe(&dispatch, 1, &mut guest);
    home.receive(guest, now).unwrap();
    let Some(Work::Attempt(at_home)) = home.poll(now, &mut Vec::new()) else { panic!("it is the guest's turn") };
    let mut known: Vec<_> = home.hosts(at_home.destination()).map(|host| host.name.clone()).collect();
    known.sort();
    assert_eq!(known, names(2));
    assert!(home.abandon_guest(at_home, true, now).is_some());
    assert_eq!(owner.abandon(dispatch, now), Settled::Nothing);
}

/// A home that gave way took a guest whose attempt was given up, such as for want of a connection, back into its own line. From there it went
/// to the pool again, where it is allowed none, and so on for as long as that shard had mail of its own for the destination.
#[test]
fn a_guest_that_is_given_up_where_no_home_is_any_more_goes_back_to_its_owner() {
    let route = |connections_max| Route {
        pattern: "*".into(),
        via: Via::Smarthost { hosts: vec![hop(0)] },
        retry: RetryPolicy::default(),
        limits: DestinationLimits { connections_max, window_initial: connections_max, ..DestinationLimits::default() },
    };
    // With a message for the destination.
    let queue = |shard, connections_max| {
        let settings = QueueSettings { homes: Homes { shard, shards: 3 }, ..QueueSettings::default() };
        let mut queue = Queue::new(settings, Routes::new(vec![route(connections_max)]).unwrap(), 1, START);
        let destination = queue.route(b"y.test");
        let message = NewMessage { id: QueueId { boot: 1, shard, sequence: 1 }, accepted_at: START, ..NewMessage::default() };
        let recipient = NewRecipient { address: b"b@y.test", destination, notify: Notify::default() };
        queue.enqueue(&message, std::iter::once(recipient), START);
        queue
    };
    let next = |queue: &mut Queue| match queue.poll(START, &mut Vec::new()) {
        Some(Work::Attempt(dispatch)) => dispatch,
        other => panic!("{other:?}"),
    };
    let home = Homes { shard: 0, shards: 3 }.of("*", "", &limits_of_one_home())[0];
    let (owner, other) = ((home + 1) % 3, (home + 2) % 3);
    let mut owners = queue(owner, 1);
    let sent = next(&mut owners);
    let mut guest = Guest::default();
    owners.describe(&sent, 1, &mut guest);
    let mut others = queue(other, 24);
    others.receive(guest, START).unwrap();
    let (first, second) = (next(&mut others), next(&mut others));
    let (of_guest, own) = if first.is_guest() { (first, second) } else { (second, first) };
    assert!(of_guest.is_guest() && others.is_home(of_guest.destination()));
    others.set_routes(vec![route(1)], START).unwrap();
    assert!(!others.is_home(of_guest.destination()));
    assert_eq!(others.abandon(own, START), Settled::Nothing);
    assert!(others.abandon_guest(of_guest, false, START).is_none());
    assert_eq!(others.take_refused().map(|refused| refused.guest.owner()), Some(owner));
    let own = next(&mut others);
    assert_eq!((own.is_guest(), own.home()), (false, Some(home)));
    assert_eq!(others.abandon(own, START), Settled::Nothing);
    assert_eq!(owners.abandon(sent, START), Settled::Nothing);
}

/// What waited for its turn at a home was attempted though its domain had been paused: its owner had given it out before.
#[test]
fn guests_of_a_paused_domain_go_home_and_those_of_others_stay() {
    let mut home = one_of_three(1);
    home.receive(guest_for("y.test", 0, vec![hop(0)]), START).unwrap();
    home.receive(guest_for("z.test", 2, vec![hop(0)]), START).unwrap();
    let mut pauses = Pauses::default();
    pauses.insert("y.test");
    home.set_pauses(pauses.clone());
    home.follow_pauses(0..home.destination_slots(), START);
    let refused = home.take_refused().expect("it is paused");
    assert_eq!((refused.guest.owner(), refused.until, refused.wait), (0, START, Wait::Paused));
    assert!(home.take_refused().is_none());
    let Some(Work::Attempt(dispatch)) = home.poll(START, &mut Vec::new()) else { panic!("the other one's turn") };
    assert_eq!(home.recipients(&dispatch).map(|(_, address)| address.to_vec()).collect::<Vec<_>>(), [b"b@z.test"]);
    // One that was on its way.
    home.receive(refused.guest, START).unwrap();
    let refused = home.take_refused().expect("it is paused");
    pauses.remove("y.test");
    home.set_pauses(pauses.clone());
    home.follow_pauses(0..home.destination_slots(), START);
    home.receive(refused.guest, START).unwrap();
    assert_eq!((home.take_refused().is_none(), home.guests_waiting()), (true, 1));
    // The one under way is put off, and comes back to a pause of everything.
    pauses.set_all(true);
    home.set_pauses(pauses);
    home.follow_pauses(0..home.destination_slots(), START);
    assert_eq!(home.take_refused().map(|refused| refused.guest.owner()), Some(0));
    assert!(home.abandon_guest(dispatch, false, START).is_none());
    assert_eq!(home.take_refused().map(|refused| refused.guest.owner()), Some(2));
}

/// A site that is paused at its home by a name that its owner does not have for it: mail went to and fro between them without end.
#[test]
fn a_guest_of_a_paused_site_comes_again_after_a_while() {
    let mut home = one_of_three(1);
    let mut pauses = Pauses::default();
    pauses.insert("mx.test");
    home.set_pauses(pauses);
    home.receive(guest_of(0, vec![hop(0)]), START).unwrap();
    let refused = home.take_refused().expect("it is paused");
    assert_eq!((refused.until, refused.wait), (START + 1000, Wait::Paused));
}

/// Two shards with a route whose one connection the first of them, the home, has.
fn home_and_owner() -> (Queue, Queue) {
    let (pattern, limits) = ("d.test", limits_of_one_home());
    let home = Homes { shard: 0, shards: 2 }.of(pattern, "", &limits)[0];
    let queue = |shard| {
        let route = Route { pattern: pattern.into(), via: Via::Smarthost { hosts: vec![hop(0)] }, retry: RetryPolicy::default(), limits };
        let settings = QueueSettings { homes: Homes { shard, shards: 2 }, ..QueueSettings::default() };
        Queue::new(settings, Routes::new(vec![route]).unwrap(), 1, START)
    };
    (queue(home), queue(1 - home))
}

fn accept(queue: &mut Queue, sequence: u64, priority: u8, recipients: &[&str]) {
    let destination = queue.route(b"d.test");
    let message = NewMessage { id: QueueId { boot: 1, shard: 0, sequence }, accepted_at: START, priority, ..NewMessage::default() };
    let recipients = recipients.iter().map(|address| NewRecipient { address: address.as_bytes(), destination, notify: Notify::default() });
    queue.enqueue(&message, recipients, START);
}

fn next_attempt(queue: &mut Queue) -> Option<Dispatch> {
    match queue.poll(START, &mut Vec::new())? {
        Work::Attempt(dispatch) => Some(dispatch),
        other => panic!("{other:?}"),
    }
}

/// It was begun at its turn whatever its owner had been told to do with it: what a command was for was only looked for before a further host.
#[test]
fn a_guest_that_a_command_has_come_for_goes_home_when_its_turn_comes() {
    for way in ["polled", "next on the connection", "chained"] {
        for has_own in [false, true] {
            let (mut home, mut owner) = home_and_owner();
            for sequence in 1..=4 {
                accept(&mut owner, sequence, 1, if sequence == 3 { &["a@d.test", "b@d.test"] } else { &["a@d.test"] });
            }
            let out: Vec<_> = std::iter::from_fn(|| next_attempt(&mut owner)).collect();
            let mut countermands = Vec::new();
            for (call, dispatch) in (0..).zip(&out) {
                let mut guest = Guest::default();
                owner.describe(dispatch, call, &mut guest);
                countermands.push(guest.countermand());
                home.receive(guest, START).unwrap();
            }
            assert_eq!(countermands.len(), 4, "as many as one connection is worth");
            let first = next_attempt(&mut home).expect("it is its turn");
            if has_own {
                // After the guests.
                accept(&mut home, 5, 0, &["own@d.test"]);
            }
            // One for all of its recipients, one for one of two, and one that finds nothing else to be begun.
            countermands[1].give([(0, false)].into_iter());
            countermands[2].give([(1, false)].into_iter());
            countermands[3].give([(0, false)].into_iter());
            assert!(!home.has_refused());
            let next = if way == "chained" {
                home.poll_behind(&first, START)
            } else {
                let destination = first.destination();
                let _guest = home.settle_guest(first, &[(0, Outcome::Delivered { reply: b"250 2.0.0 Ok" })], START);
                if way == "polled" { next_attempt(&mut home) } else { home.poll_next(destination, START) }
            };
            let begun = next.map(|next| home.envelope(next.key()).unwrap().id.sequence);
            assert_eq!(begun, has_own.then_some(5), "{way}");
            let mut refused: Vec<_> = std::iter::from_fn(|| home.take_refused()).collect();
            refused.sort_by_key(|refused| refused.guest.owner_call);
            assert_eq!(refused.iter().map(|refused| refused.guest.owner_call).collect::<Vec<_>>(), [1, 2, 3], "{way}");
            assert!(refused.iter().all(|refused| refused.until <= START && refused.wait == Wait::Turn), "they may go again at once");
            assert_eq!(home.guests_waiting(), 0);
        }
    }
}

/// It stood still behind a host that hung until its turn came, minutes later, though it was to go another way at once.
#[test]
fn a_guest_that_a_command_has_come_for_goes_home_while_others_are_attempted() {
    let (mut home, mut owner) = home_and_owner();
    let mut countermands = Vec::new();
    for sequence in 1..=4 {
        accept(&mut owner, sequence, 1, &["a@d.test"]);
        let dispatch = next_attempt(&mut owner).expect("it is the home's");
        let mut guest = Guest::default();
        owner.describe(&dispatch, sequence as u32, &mut guest);
        countermands.push(guest.countermand());
        home.receive(guest, START).unwrap();
    }
    let first = next_attempt(&mut home).expect("it is its turn");
    assert!(next_attempt(&mut home).is_none(), "the one connection is taken");
    home.send_countermanded_home(START);
    assert_eq!((home.has_refused(), home.guests_waiting()), (false, 3), "no command was for them");
    // The one that is attempted ends by itself.
    countermands[0].give([(0, false)].into_iter());
    countermands[2].give([(0, false)].into_iter());
    home.send_countermanded_home(START);
    let refused = home.take_refused().expect("it goes home");
    assert_eq!((refused.guest.owner_call, refused.until, refused.wait), (3, START, Wait::Turn), "and may go again at once");
    assert_eq!((home.has_refused(), home.guests_waiting()), (false, 2));
    assert!(home.settle_guest(first, &[(0, Outcome::Delivered { reply: b"250 2.0.0 Ok" })], START).owner_call == 1);
    let mut begun = Vec::new();
    while let Some(next) = next_attempt(&mut home) {
        begun.push(home.settle_guest(next, &[(0, Outcome::Delivered { reply: b"250 2.0.0 Ok" })], START).owner_call);
    }
    assert_eq!(begun, [2, 4], "in the same order");
}

/// A guest's route was a bare number. After a table that one shard had refused and another had had for a moment the numbers of further routes were not the
/// same any more, and mail went by whatever route had the number at the home.
#[test]
fn a_guest_goes_by_its_route_whatever_number_that_has_at_the_home() {
    let limits = limits_of_one_home();
    let route = |number: usize| Route {
        pattern: format!("d{number}.test"),
        via: Via::Smarthost { hosts: vec![hop(number)] },
        retry: RetryPolicy::default(),
        limits,
    };
    let queue = |shard| {
        let settings = QueueSettings { homes: Homes { shard, shards: 2 }, ..QueueSettings::default() };
        Queue::new(settings, Routes::new(vec![route(0)]).unwrap(), 1, START)
    };
    let of_home = |number: &usize| Homes { shard: 0, shards: 2 }.of(&format!("d{number}.test"), "", &limits)[0] == 1;
    let mut numbers = (1..).filter(of_home);
    let (refused, wanted, unknown) = (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap());
    let (mut owner, mut home) = (queue(0), queue(1));
    owner.set_routes(vec![route(0), route(refused)], START).unwrap();
    owner.set_routes(vec![route(0)], START).unwrap();
    home.set_routes(vec![route(0), route(wanted), route(refused)], START).unwrap();
    owner.set_routes(vec![route(0), route(wanted), route(refused), route(unknown)], START).unwrap();
    let mut send = |number: usize| {
        let domain = format!("d{number}.test");
        let destination = owner.route(domain.as_bytes());
        let message =
            NewMessage { id: QueueId { boot: 1, shard: 0, sequence: number as u64 }, accepted_at: START, ..NewMessage::default() };
        let address = format!("b@{domain}");
        let recipient = NewRecipient { address: address.as_bytes(), destination, notify: Notify::default() };
        owner.enqueue(&message, std::iter::once(recipient), START);
        let dispatch = next_attempt(&mut owner).expect("it is the home's");
        let mut guest = Guest::default();
        owner.describe(&dispatch, 1, &mut guest);
        assert_eq!(owner.abandon(dispatch, START), Settled::Nothing);
        assert!(owner.delete(owner.key_of(message.id).unwrap(), START).is_some());
        guest
    };
    for number in [wanted, refused] {
        home.receive(send(number), START).unwrap();
        let dispatch = next_attempt(&mut home).expect("it is its turn");
        assert_eq!(home.hosts(dispatch.destination()).map(|hop| hop.name.clone()).collect::<Vec<_>>(), [hop(number).name]);
        assert!(home.abandon_guest(dispatch, true, START).is_some());
    }
    assert!(home.receive(send(unknown), START).is_err(), "it waits until the home has that table");
}
