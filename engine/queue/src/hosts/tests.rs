use super::*;
use crate::route::HostAddress;

/// Host number, weight and preference of each address.
fn hosts(of: &[(u8, u16, u32)]) -> Hosts {
    let hop = |(at, &(host, weight, preference)): (usize, &(u8, u16, u32))| {
        let address: HostAddress = HostAddress::Tcp(([192, 0, 2, at as u8 + 1], 25).into());
        NextHop { host, weight, preference, ..address.into() }
    };
    Hosts::new(&of.iter().enumerate().map(hop).collect::<Vec<_>>())
}

/// How often each is chosen first in so many attempts.
fn chosen(hosts: &mut Hosts, attempts: usize) -> Vec<usize> {
    let (mut jitter, settings) = (Jitter::new(7), BreakerSettings::default());
    let mut counts = vec![0; hosts.hosts.len()];
    for _ in 0..attempts {
        let (index, _) = hosts.choose(&mut HostsTried::default(), &settings, 0, &mut jitter).unwrap();
        counts[index.position()] += 1;
    }
    counts
}

fn kill(hosts: &mut Hosts, slot: usize) {
    let settings = BreakerSettings::default();
    assert!(hosts.hosts[slot].circuit.failed(crate::breaker::Break::BeforeGreeting, 1, &settings, 0, &mut Jitter::new(1)));
}

/// Four standard deviations of a share of so many.
fn is_share(count: usize, attempts: usize, share: f64) -> bool {
    let deviation = (attempts as f64 * share * (1.0 - share)).sqrt();
    (count as f64 - attempts as f64 * share).abs() <= 4.0 * deviation
}

#[test]
fn another_host_is_one_of_another_name_that_lives_and_has_room() {
    let mut hosts = hosts(&[(0, 1, 0), (0, 1, 0), (1, 1, 10), (2, 1, 20)]);
    let (mut jitter, settings) = (Jitter::new(7), BreakerSettings::default());
    let mut tried = HostsTried::default();
    let (index, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).unwrap();
    assert!(hosts.has_other(index, PutOffBy::Host, &mut tried, &settings, 0));
    assert_eq!(tried, HostsTried { slots: 0b0011, asked: 1, ..HostsTried::default() }, "both addresses of the first");
    let (index, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).unwrap();
    assert_eq!(index.position(), 2);
    kill(&mut hosts, 3);
    let before = tried;
    assert!(!hosts.has_other(index, PutOffBy::Host, &mut tried, &settings, 0), "the last one is dead");
    assert_eq!(tried, before);
    // Who was served over a kept connection has been to that host only.
    let mut fresh = HostsTried::default();
    assert!(hosts.has_other(index, PutOffBy::Host, &mut fresh, &settings, 0));
    assert_eq!(fresh, HostsTried { slots: 0b0100, asked: 1, ..HostsTried::default() });
    let all: Vec<_> = std::iter::from_fn(|| hosts.choose(&mut fresh, &settings, 0, &mut jitter)).map(|(index, _)| index).collect();
    all.iter().for_each(|&one| hosts.crowded(one, 0, &mut jitter));
    assert!(!hosts.has_other(index, PutOffBy::Host, &mut HostsTried::default(), &settings, 0), "the others have enough connections");
}

#[test]
fn what_is_of_one_address_leaves_the_others_of_its_name() {
    let mut hosts = hosts(&[(0, 1, 0), (0, 1, 0), (1, 1, 10)]);
    let (mut jitter, settings) = (Jitter::new(7), BreakerSettings::default());
    let mut tried = HostsTried::default();
    let (first, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).unwrap();
    assert!(hosts.has_other(first, PutOffBy::Address, &mut tried, &settings, 0));
    let (second, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).unwrap();
    assert_eq!(first.position() + second.position(), 1);
}

#[test]
fn a_host_that_comes_later_is_tried_when_no_other_can_be() {
    let mut hosts = hosts(&[(0, 1, 0), (1, 1, 10), (2, 1, 20)]);
    let (mut jitter, settings) = (Jitter::new(7), BreakerSettings::default());
    let mut tried = HostsTried::default();
    let (first, _) = hosts.choose(&mut HostsTried::default(), &settings, 0, &mut jitter).unwrap();
    hosts.later(b"192.0.2.1:2", &mut tried);
    assert_eq!(tried, HostsTried::default(), "another name");
    hosts.later(b"192.0.2.1:25", &mut tried);
    assert!(hosts.comes_later(first, tried, &settings, 0));
    let order: Vec<_> =
        std::iter::from_fn(|| hosts.choose(&mut tried, &settings, 0, &mut jitter)).map(|(index, _)| index.position()).collect();
    assert_eq!(order, [1, 2, 0]);
    assert!(!hosts.comes_later(first, tried, &settings, 0), "the others were tried");
    hosts.later(b"192.0.2.[", &mut tried);
    assert_eq!(tried.later, 0);
}

/// A host that comes third or later by preference had a message never, if those before it put it off each time.
#[test]
fn an_attempt_asks_three_hosts_and_each_has_its_turn_over_several_attempts() {
    let of: Vec<_> = (0..8).map(|number| (number, 1, u32::from(number))).collect();
    let (mut hosts, mut jitter, settings) = (hosts(&of), Jitter::new(7), BreakerSettings::default());
    let mut counts = [0; 8];
    for _ in 0..600 {
        let (mut tried, mut asked) = (HostsTried::default(), 0);
        loop {
            let (index, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).expect("has_other says so");
            counts[index.position()] += 1;
            asked += 1;
            if !hosts.has_other(index, PutOffBy::Host, &mut tried, &settings, 0) {
                break;
            }
        }
        assert_eq!(asked, 3);
    }
    assert_eq!(counts[..2], [600, 600], "{counts:?}");
    assert!(counts[2..].iter().all(|&count| is_share(count, 600, 1.0 / 6.0)), "{counts:?}");
}

/// A host that stayed, and was moved into the place of one that left, was another one for who had a connection to it, and that was closed.
#[test]
fn a_host_that_stays_is_the_same_one_wherever_it_stands() {
    let mut hosts = hosts(&[(0, 1, 0), (1, 1, 0), (2, 1, 0)]);
    let hops: Vec<_> = hosts.hops().cloned().collect();
    let (mut tried, mut jitter, settings) = (HostsTried::default(), Jitter::new(7), BreakerSettings::default());
    let mut indices: Vec<_> = std::iter::from_fn(|| hosts.choose(&mut tried, &settings, 0, &mut jitter)).map(|(index, _)| index).collect();
    indices.sort_by_key(|index| index.position());
    let [a, b, c] = *indices else { panic!("{indices:?}") };
    assert!(hosts.replace(&hops[1..], true));
    assert_eq!([a, b, c].map(|index| hosts.hop(index)), [None, Some(&hops[1]), Some(&hops[2])]);
    hosts.circuit_mut(c).unwrap().failed(crate::breaker::Break::BeforeGreeting, 1, &settings, 0, &mut jitter);
    assert!(!hosts.circuit(c).unwrap().is_closed() && hosts.circuit(b).unwrap().is_closed());
    // One that comes back is not taken for what it was.
    assert!(hosts.replace(&hops, true));
    assert_eq!([a, b, c].map(|index| hosts.hop(index)), [None, Some(&hops[1]), Some(&hops[2])]);
    assert!(
        (0..100)
            .filter_map(|_| hosts.choose(&mut HostsTried::default(), &settings, 0, &mut jitter))
            .all(|(index, _)| index != a && index != c)
    );
}

#[test]
fn each_host_has_the_share_of_its_weight_however_many_addresses_it_has() {
    // The host of weight 1 has three addresses, that of weight 6 has two, that of weight 3 has one; the last is for worse times.
    let of = [(0, 1, 0), (0, 1, 0), (0, 1, 0), (1, 6, 0), (1, 6, 0), (2, 3, 0), (3, 1000, 1)];
    let counts = chosen(&mut hosts(&of), 30_000);
    for (slot, share) in [1.0 / 30.0, 1.0 / 30.0, 1.0 / 30.0, 0.3, 0.3, 0.3, 0.0].into_iter().enumerate() {
        assert!(is_share(counts[slot], 30_000, share), "{slot}: {counts:?}");
    }
}

#[test]
fn a_dead_address_leaves_its_share_to_its_host_and_a_dead_host_to_the_others() {
    let mut hosts = hosts(&[(0, 1, 0), (0, 1, 0), (1, 2, 0), (2, 1, 0), (3, 1, 1)]);
    kill(&mut hosts, 0);
    let counts = chosen(&mut hosts, 20_000);
    for (slot, share) in [0.0, 0.25, 0.5, 0.25, 0.0].into_iter().enumerate() {
        assert!(is_share(counts[slot], 20_000, share), "{slot}: {counts:?}");
    }
    kill(&mut hosts, 1);
    let counts = chosen(&mut hosts, 20_000);
    for (slot, share) in [0.0, 0.0, 2.0 / 3.0, 1.0 / 3.0, 0.0].into_iter().enumerate() {
        assert!(is_share(counts[slot], 20_000, share), "{slot}: {counts:?}");
    }
    kill(&mut hosts, 2);
    kill(&mut hosts, 3);
    assert_eq!(chosen(&mut hosts, 100), [0, 0, 0, 0, 100], "all of the better ones are dead");
}

#[test]
fn an_attempt_tries_each_address_once_and_the_backup_last() {
    let (mut hosts, settings, mut jitter) =
        (hosts(&[(0, 5, 0), (1, 1, 0), (1, 1, 0), (2, 9, 1)]), BreakerSettings::default(), Jitter::new(3));
    for _ in 0..50 {
        let mut tried = HostsTried::default();
        let mut order: Vec<_> =
            std::iter::from_fn(|| hosts.choose(&mut tried, &settings, 0, &mut jitter)).map(|(index, _)| index.position()).collect();
        assert_eq!(order.pop(), Some(3));
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2]);
    }
}

/// A message that needs what the living hosts do not offer failed for good while others were dead, or behind the third.
#[test]
fn what_hosts_lack_is_final_when_each_of_all_was_asked_and_costs_no_turn() {
    let mut hosts = hosts(&[(0, 1, 0), (0, 1, 0), (1, 1, 10), (2, 1, 20), (3, 1, 30), (4, 1, 40)]);
    let hops: Vec<_> = hosts.hops().cloned().collect();
    let (mut jitter, settings) = (Jitter::new(7), BreakerSettings::default());
    let ask_all = |hosts: &mut Hosts, tried: &mut HostsTried, jitter: &mut Jitter| {
        let mut asked = Vec::new();
        while let Some((index, _)) = hosts.choose(tried, &settings, 0, jitter) {
            asked.push(hosts.hosts[index.position()].hop.host);
            if !hosts.has_other(index, PutOffBy::Offer, tried, &settings, 0) {
                break;
            }
            assert!(!hosts.all_lack(*tried), "{asked:?}");
        }
        asked
    };
    let mut tried = HostsTried::default();
    assert_eq!(ask_all(&mut hosts, &mut tried, &mut jitter), [0, 1, 2, 3, 4]);
    assert!(hosts.all_lack(tried));
    // One that came, one that left: what was asked is another set.
    assert!(hosts.replace(&hops[..5], true) && !hosts.all_lack(tried));
    let mut fresh = HostsTried::default();
    assert_eq!(ask_all(&mut hosts, &mut fresh, &mut jitter), [0, 1, 2, 3]);
    assert!(hosts.all_lack(fresh));
    // DNS knows of more than it has told.
    assert!(!hosts.replace(&hops[..5], false) && !hosts.all_lack(fresh));
    assert!(!hosts.replace(&hops[..5], true) && hosts.all_lack(fresh));
    kill(&mut hosts, 3);
    let mut of_the_living = HostsTried::default();
    assert_eq!(ask_all(&mut hosts, &mut of_the_living, &mut jitter), [0, 1, 3]);
    assert!(!hosts.all_lack(of_the_living), "the dead one may offer it");
}

/// Those that put it off count, those that do not offer what it needs do not.
#[test]
fn hosts_that_lack_something_stand_between_three_that_put_it_off() {
    let of: Vec<_> = (0..8).map(|number| (number, 1, u32::from(number))).collect();
    let (mut hosts, mut jitter, settings) = (hosts(&of), Jitter::new(7), BreakerSettings::default());
    let (mut tried, mut asked) = (HostsTried::default(), 0);
    loop {
        let (index, _) = hosts.choose(&mut tried, &settings, 0, &mut jitter).expect("has_other says so");
        asked += 1;
        let by = if asked % 2 == 0 { PutOffBy::Offer } else { PutOffBy::Host };
        if !hosts.has_other(index, by, &mut tried, &settings, 0) {
            break;
        }
    }
    assert_eq!(asked, 5);
    assert!(!hosts.all_lack(tried));
}
