use super::*;

const UNTIL: u64 = 1_790_000_000_000;

fn own() -> Own<'static> {
    let is_name = &|host: &str| host.eq_ignore_ascii_case("me.test");
    Own { is_name, is_listener: &|address| address == "198.51.100.1:25".parse().unwrap() }
}

fn exchange(preference: u16, host: &str) -> Exchange {
    Exchange { preference, host: host.into() }
}

fn hosts(answer: DnsAnswer<Exchange>) -> Vec<String> {
    match plan("d.test", answer, &own(), 0, UNTIL, |_| 0) {
        Plan::Hosts(candidates) => candidates.exchanges.into_iter().map(|exchange| exchange.host).collect(),
        Plan::Decided(resolution) => panic!("{resolution:?}"),
    }
}

fn decided(answer: DnsAnswer<Exchange>) -> String {
    match plan("d.test", answer, &own(), 0, UNTIL, |_| 0) {
        Plan::Decided(Resolution::Refused { reply, .. }) => reply,
        Plan::Decided(Resolution::Unanswered { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn found(addresses: &[&str]) -> [DnsAnswer<IpAddr>; 2] {
    let of = |six: bool| {
        let some: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).filter(|ip: &IpAddr| ip.is_ipv6() == six).collect();
        if some.is_empty() { DnsAnswer::NoData { sure: true } } else { DnsAnswer::Found(some) }
    };
    [of(false), of(true)]
}

fn site_of(exchanges: &[(u16, &str)], addresses: &[[DnsAnswer<IpAddr>; 2]], allow_private: bool) -> Result<Vec<String>, String> {
    let answer = DnsAnswer::Found(exchanges.iter().map(|&(preference, host)| exchange(preference, host)).collect());
    let Plan::Hosts(candidates) = plan("d.test", answer, &own(), 0, UNTIL, |below| below - 1) else { panic!("hosts") };
    match site("d.test", &candidates, addresses, &own(), 25, allow_private, UNTIL) {
        Resolution::Site { hosts, .. } => Ok(hosts.into_iter().map(|hop| hop.name).collect()),
        Resolution::Refused { reply, .. } => Err(reply),
        Resolution::Unanswered { reason, .. } => Err(reason),
        Resolution::Awaited => unreachable!("it is no answer of DNS"),
    }
}

#[test]
fn hosts_go_by_preference_and_a_domain_without_mx_is_its_own_host() {
    let records = vec![exchange(20, "b.test"), exchange(10, "a.test"), exchange(20, "b.test"), exchange(30, "a.test")];
    assert_eq!(hosts(DnsAnswer::Found(records)), ["a.test", "b.test"]);
    assert_eq!(hosts(DnsAnswer::NoData { sure: false }), ["d.test"]);
}

/// By its number an address is of a host; and it is one of a hop's marks, so that another one each time would end all connections.
#[test]
fn each_host_has_a_number_of_its_own_however_they_are_shuffled() {
    let records: Vec<_> = ["a.test", "b.test", "c.test"].map(|host| exchange(10, host)).into();
    let mut shuffles = BTreeSet::new();
    for first in 0..6 {
        let mut draws = [first % 3, first % 2].into_iter();
        let Plan::Hosts(candidates) = plan("d.test", DnsAnswer::Found(records.clone()), &own(), 0, UNTIL, |_| draws.next().unwrap()) else {
            panic!("hosts")
        };
        shuffles.insert(candidates.exchanges.iter().map(|exchange| exchange.host.clone()).collect::<Vec<_>>());
        let addresses = [found(&["192.0.2.1", "192.0.2.2"]), found(&["192.0.2.3"]), found(&["192.0.2.4"])];
        let Resolution::Site { hosts, .. } = site("d.test", &candidates, &addresses, &own(), 25, false, UNTIL) else { panic!("a site") };
        for hop in hosts {
            let expected = ["a.test", "b.test", "c.test"].iter().position(|host| hop.name.starts_with(host)).unwrap();
            assert_eq!(usize::from(hop.host), expected, "{}", hop.name);
        }
    }
    assert_eq!(shuffles.len(), 6);
}

#[test]
fn only_what_an_authority_said_for_good_is_refused_for_good() {
    assert_eq!(decided(DnsAnswer::NoName { sure: true }), "550 5.1.2 d.test: no such domain");
    assert_eq!(decided(DnsAnswer::NoName { sure: false }), "MX of d.test: NXDOMAIN without proof");
    assert_eq!(decided(DnsAnswer::Failed("SERVFAIL".into())), "MX of d.test: SERVFAIL");
    assert_eq!(decided(DnsAnswer::Found(vec![exchange(0, "")])), "556 5.1.10 d.test takes no mail (null MX)");
    assert_eq!(hosts(DnsAnswer::Found(vec![exchange(0, ""), exchange(5, "a.test")])), ["a.test"], "a null MX stands alone");
}

#[test]
fn our_own_name_or_address_cuts_the_list_at_its_preference() {
    let records = vec![exchange(10, "a.test"), exchange(20, "ME.test"), exchange(20, "b.test"), exchange(30, "c.test")];
    assert_eq!(hosts(DnsAnswer::Found(records)), ["a.test"]);
    let loops = "554 5.4.6 mail for d.test leads back to this host";
    assert_eq!(decided(DnsAnswer::Found(vec![exchange(10, "me.test"), exchange(20, "b.test")])), loops);
    let exchanges = [(10, "a.test"), (20, "other-name.test"), (30, "c.test")];
    let addresses = [found(&["192.0.2.1"]), found(&["198.51.100.1"]), found(&["192.0.2.3"])];
    assert_eq!(site_of(&exchanges, &addresses, false).unwrap(), ["a.test[192.0.2.1]:25"]);
    assert_eq!(site_of(&exchanges[1..], &addresses[1..], false).unwrap_err(), loops);
}

/// One time-out for the host before us, and all mail for a domain that we are a backup of was failed for good, because the host behind
/// us has an address.
#[test]
fn a_better_host_that_has_no_usable_address_now_is_waited_for_when_we_are_the_next() {
    let exchanges = [(10, "mx1.test"), (20, "other-name.test"), (30, "mx3.test")];
    let first = |answer: DnsAnswer<IpAddr>| [answer.clone(), answer];
    for (mx1, reason) in [
        (first(DnsAnswer::Failed("SERVFAIL".into())), "address of mx1.test: SERVFAIL"),
        (first(DnsAnswer::NoData { sure: false }), "none of its hosts has an address"),
        (first(DnsAnswer::NoName { sure: true }), "none of its hosts has an address"),
        (found(&["10.0.0.1"]), "mx1.test has the address 10.0.0.1, which is a private address; dns.allow_private allows it"),
    ] {
        for last in [found(&["192.0.2.3"]), first(DnsAnswer::Failed("timed out".into()))] {
            let addresses = [mx1.clone(), found(&["198.51.100.1"]), last];
            assert_eq!(site_of(&exchanges, &addresses, false).unwrap_err(), format!("MX of d.test: {reason}"));
        }
    }
    // Nor does a host behind us that gives no answer keep back what leads back to us.
    let addresses = [found(&["198.51.100.1"]), first(DnsAnswer::Failed("timed out".into()))];
    assert_eq!(site_of(&exchanges[1..], &addresses, false).unwrap_err(), "554 5.4.6 mail for d.test leads back to this host");
}

#[test]
fn both_families_are_tried_in_turn_and_all_is_bounded() {
    let one = found(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "::ffff:192.0.2.1"]);
    let names = site_of(&[(10, "a.test")], &[one], false).unwrap();
    let expected = ["a.test[2001:db8::1]:25", "a.test[192.0.2.1]:25", "a.test[2001:db8::2]:25", "a.test[192.0.2.2]:25"];
    assert_eq!(names, expected);

    let records: Vec<_> = (0..200).map(|number| exchange(10 + number % 2, &format!("mx{number}.test"))).collect();
    let names = hosts(DnsAnswer::Found(records.clone()));
    assert_eq!(names.len(), MX_HOSTS_MAX);
    let key = |draw: u64| match plan("d.test", DnsAnswer::Found(records.clone()), &own(), 0, UNTIL, |below| draw % below) {
        Plan::Hosts(candidates) => (candidates.key, candidates.exchanges),
        other => panic!("{other:?}"),
    };
    assert_eq!(key(0).0, key(7).0, "the site is the whole set");
    assert_ne!(key(0).1, key(7).1, "equal preferences are shuffled");
    let many: Vec<String> = (0..40).map(|number| format!("192.0.2.{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let exchanges: Vec<_> = (0..16).map(|number| (number, "mx.test")).collect();
    let exchanges: Vec<_> = exchanges.iter().map(|&(number, _)| (number, format!("mx{number}.test"))).collect();
    let exchanges: Vec<_> = exchanges.iter().map(|(number, name)| (*number, name.as_str())).collect();
    let names = site_of(&exchanges, &vec![found(&many); 16], false).unwrap();
    assert_eq!(names.len(), HOSTS_MAX);
    // The first four hosts had all places.
    for (_, name) in exchanges {
        assert_eq!(names.iter().filter(|one| one.starts_with(&format!("{name}["))).count(), 2, "{name}: {names:?}");
    }
}

/// A domain whose first sixteen hosts are dead was deferred until it expired: nobody ever asked for the seventeenth.
#[test]
fn of_many_hosts_each_has_its_turn_beside_the_best() {
    for equal in [false, true] {
        let records: Vec<_> = (0..200).map(|number| exchange(if equal { 10 } else { number }, &format!("mx{number}.test"))).collect();
        let of_turn = |turn: u16, first: usize| {
            let mut random = crate::Jitter::new(7);
            let answer = DnsAnswer::Found(records.clone());
            let Plan::Hosts(candidates) = plan("d.test", answer, &own(), turn, UNTIL, |below| random.below(below)) else { panic!("hosts") };
            candidates.exchanges.into_iter().take(first).map(|exchange| exchange.host).collect::<Vec<_>>()
        };
        let best = of_turn(0, MX_HOSTS_EACH_TURN);
        if !equal {
            assert_eq!(of_turn(0, MX_HOSTS_MAX), (0..MX_HOSTS_MAX).map(|number| format!("mx{number}.test")).collect::<Vec<_>>());
        }
        let turns = 200_usize.div_ceil(MX_HOSTS_PER_TURN) as u16;
        // As many as are asked for first.
        let all: BTreeSet<_> = (0..turns).flat_map(|turn| of_turn(turn, MX_HOSTS_AT_ONCE)).collect();
        assert_eq!(all.len(), 200);
        assert!((0..turns).all(|turn| of_turn(turn, MX_HOSTS_EACH_TURN) == best));
        // Where none of them has an address.
        let all: BTreeSet<_> = (0..4).flat_map(|question| of_turn(question * turns_of(MX_HOSTS_MAX), MX_HOSTS_MAX)).collect();
        assert_eq!(all.len(), 200);
    }
    let few: Vec<_> = (0..16).map(|number| exchange(number, &format!("mx{number}.test"))).collect();
    let of_few = |turn| plan("d.test", DnsAnswer::Found(few.clone()), &own(), turn, UNTIL, |below| below - 1);
    assert_eq!(of_few(5), of_few(0));
}

/// The rest was not looked at, and mail for such a domain expired as if no host of it had an address.
#[test]
fn beyond_the_first_hosts_the_next_are_asked_while_none_can_be_used() {
    let records: Vec<_> = (0..200).map(|number| exchange(number, &format!("mx{number}.test"))).collect();
    let Plan::Hosts(candidates) = plan("d.test", DnsAnswer::Found(records), &own(), 0, UNTIL, |below| below - 1) else { panic!("hosts") };
    let resolution = |addresses: &[[DnsAnswer<IpAddr>; 2]]| site("d.test", &candidates, addresses, &own(), 25, false, UNTIL);
    let none = [DnsAnswer::NoName { sure: true }, DnsAnswer::NoName { sure: true }];
    let (mut addresses, mut rounds) = (Vec::new(), 0);
    loop {
        let next = candidates.next(addresses.len());
        if next.is_empty() {
            break;
        }
        assert_eq!((next.len(), &next[0].host), (MX_HOSTS_AT_ONCE, &format!("mx{}.test", addresses.len())));
        addresses.resize(addresses.len() + next.len(), none.clone());
        rounds += 1;
        let reason = format!("MX of d.test: none of {} of its 200 hosts has an address", addresses.len());
        assert_eq!(resolution(&addresses), Resolution::Unanswered { reason, turns: [1, 3, 5, 7][rounds - 1] });
    }
    assert_eq!((rounds, addresses.len()), (4, MX_HOSTS_MAX));
    addresses.truncate(MX_HOSTS_AT_ONCE);
    addresses.push(found(&["192.0.2.1"]));
    assert!(matches!(resolution(&addresses), Resolution::Site { name, .. } if name == "mx16.test"));
    // We are the next: those before us that have no address today are waited for.
    addresses[MX_HOSTS_AT_ONCE] = found(&["198.51.100.1"]);
    assert!(matches!(resolution(&addresses), Resolution::Unanswered { .. }));
}

#[test]
fn private_and_impossible_addresses_are_not_chosen_by_whoever_writes_mx_records() {
    for (address, never) in [
        ("127.0.0.1", false),
        ("10.1.2.3", false),
        ("192.168.0.1", false),
        ("169.254.169.254", false),
        ("100.64.0.1", false),
        ("::1", false),
        ("fe80::1", false),
        ("fd00::1", false),
        ("::ffff:127.0.0.1", false),
        ("0.0.0.0", true),
        ("255.255.255.255", true),
        ("224.0.0.1", true),
        ("ff02::1", true),
    ] {
        let refused = site_of(&[(10, "a.test")], &[found(&[address])], false).unwrap_err();
        assert!(refused.starts_with("MX of d.test: a.test has the address "), "{address}: {refused}");
        assert_eq!(refused.ends_with("; dns.allow_private allows it"), !never, "{address}: {refused}");
        assert_eq!(site_of(&[(10, "a.test")], &[found(&[address])], true).is_err(), never, "{address}");
        let public = found(&["192.0.2.1"]);
        assert_eq!(site_of(&[(10, "a.test"), (20, "b.test")], &[found(&[address]), public], false).unwrap().len(), 1);
    }
}

/// A system that lets everything be bound said that they are ours, and the mail failed for good.
#[test]
fn an_address_that_no_host_has_is_not_ours() {
    let all_is_ours = Own { is_listener: &|_| true, ..own() };
    for address in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "ff02::1"] {
        let Plan::Hosts(candidates) = plan("d.test", DnsAnswer::Found(vec![exchange(10, "a.test")]), &all_is_ours, 0, UNTIL, |_| 0) else {
            panic!("hosts")
        };
        let resolution = site("d.test", &candidates, &[found(&[address])], &all_is_ours, 25, true, UNTIL);
        assert!(matches!(resolution, Resolution::Unanswered { .. }), "{address}: {resolution:?}");
    }
}

#[test]
fn hosts_without_addresses_are_waited_for_and_the_domain_itself_is_no_way_round_them() {
    let none = [DnsAnswer::NoName { sure: true }, DnsAnswer::NoName { sure: true }];
    let failed = [DnsAnswer::Failed("timed out".into()), DnsAnswer::NoData { sure: true }];
    assert_eq!(
        site_of(&[(10, "a.test")], std::slice::from_ref(&none), false).unwrap_err(),
        "MX of d.test: none of its hosts has an address"
    );
    let both = [none.clone(), failed.clone()];
    assert_eq!(site_of(&[(10, "a.test"), (20, "b.test")], &both, false).unwrap_err(), "MX of d.test: address of b.test: timed out");
    let one = [failed, found(&["192.0.2.2"])];
    assert_eq!(site_of(&[(10, "a.test"), (20, "b.test")], &one, false).unwrap(), ["b.test[192.0.2.2]:25"]);

    let implicit_if = |sure, answers: [DnsAnswer<IpAddr>; 2]| {
        let Plan::Hosts(candidates) = plan("d.test", DnsAnswer::NoData { sure }, &own(), 0, UNTIL, |_| 0) else { panic!("hosts") };
        site("d.test", &candidates, &[answers], &own(), 25, false, UNTIL)
    };
    let implicit = |answers| implicit_if(true, answers);
    // A loop of CNAMEs, an answer about another name, an empty answer without SOA: mail was failed for good with 5.4.4 when the
    // domain has no address.
    assert!(matches!(implicit_if(false, none.clone()), Resolution::Unanswered { .. }));
    assert!(matches!(implicit_if(false, found(&["192.0.2.1"])), Resolution::Site { .. }));
    assert_eq!(implicit(none), Resolution::Refused { reply: "550 5.4.4 d.test has neither MX nor address".into(), until: UNTIL });
    let unsure = [DnsAnswer::NoData { sure: false }, DnsAnswer::NoData { sure: true }];
    assert!(matches!(implicit(unsure), Resolution::Unanswered { .. }));
    assert!(matches!(implicit(found(&["192.0.2.1"])), Resolution::Site { key, .. } if key == "= d.test"));
}

#[test]
fn literals_lead_to_their_address() {
    let to = |text: &str, allow_private| match literal(text, &own(), 2525, allow_private, UNTIL)? {
        Resolution::Site { hosts, .. } => Some(hosts[0].name.clone()),
        Resolution::Refused { reply, .. } => Some(reply),
        Resolution::Unanswered { reason, .. } => Some(reason),
        Resolution::Awaited => unreachable!("it is no answer of DNS"),
    };
    assert_eq!(to("d.test", false), None);
    assert_eq!(to("[192.0.2.1]", false).unwrap(), "192.0.2.1:2525");
    assert_eq!(to("[ipv6:2001:db8::1]", false).unwrap(), "[2001:db8::1]:2525");
    assert_eq!(to("[127.0.0.1]", false).unwrap(), "[127.0.0.1] is a private address; dns.allow_private allows it");
    assert_eq!(to("[127.0.0.1]", true).unwrap(), "127.0.0.1:2525");
    // They were tried for days, as if DNS could say something else tomorrow.
    for nobody in ["[0.0.0.0]", "[0.1.2.3]", "[224.0.0.1]", "[240.0.0.1]", "[255.255.255.255]", "[ipv6:::]", "[ipv6:ff02::1]"] {
        for allow_private in [false, true] {
            assert_eq!(to(nobody, allow_private).unwrap(), format!("550 5.1.2 {nobody} is no address of a host"));
        }
    }
    for bad in ["[127.1]", "[x]", "[]", "[ipv6:]", "[300.1.1.1]", "[tag:x]", "[é]"] {
        assert!(to(bad, true).unwrap().starts_with("550 5.1.3 "), "{bad}");
    }
}

/// Only of hosts that are all is it said that none of them offers something.
#[test]
fn a_site_is_whole_when_no_host_was_left_out() {
    let is_whole = |exchanges: &[(u16, &str)], addresses: &[[DnsAnswer<IpAddr>; 2]]| {
        let answer = DnsAnswer::Found(exchanges.iter().map(|&(preference, host)| exchange(preference, host)).collect());
        let Plan::Hosts(candidates) = plan("d.test", answer, &own(), 0, UNTIL, |below| below - 1) else { panic!("hosts") };
        match site("d.test", &candidates, addresses, &own(), 25, false, UNTIL) {
            Resolution::Site { is_whole, .. } => is_whole,
            other => panic!("{other:?}"),
        }
    };
    let failed = || [DnsAnswer::Failed("SERVFAIL".into()), DnsAnswer::NoData { sure: true }];
    let two = [(10, "a.test"), (20, "b.test")];
    assert!(is_whole(&two, &[found(&["192.0.2.1"]), found(&["192.0.2.2"])]));
    assert!(is_whole(&two, &[found(&["192.0.2.1"]), found(&[])]), "it has none for sure");
    assert!(!is_whole(&two, &[found(&["192.0.2.1"]), failed()]));
    assert!(!is_whole(&two, &[found(&["192.0.2.1"])]), "the second was not asked for");
    assert!(is_whole(&two, &[found(&["192.0.2.1"]), found(&["198.51.100.1"])]), "the second is this host");
}

/// The hosts of a domain were its key all together, whoever writes its records had megabytes kept for each answer.
#[test]
fn what_is_kept_of_a_domain_with_thousands_of_hosts_is_bounded() {
    let of = |domain: &str, count: u16| {
        let long = |number: u16| format!("{number}.{}test", "abcdefghi.".repeat(24));
        let records = (0..count).map(|number| exchange(10, &long(number))).collect();
        match plan(domain, DnsAnswer::Found(records), &own(), 0, UNTIL, |_| 0) {
            Plan::Hosts(candidates) => candidates,
            Plan::Decided(resolution) => panic!("{resolution:?}"),
        }
    };
    let many = of("d.test", 3000);
    assert_eq!((many.exchanges.len(), many.hosts), (MX_HOSTS_MAX, MX_HOSTS_KNOWN_MAX));
    let Resolution::Site { key, .. } = site("d.test", &many, &[found(&["192.0.2.1"])], &own(), 25, false, UNTIL) else { panic!("a site") };
    assert!(key.len() <= 64 << 10, "{}", key.len());
    assert_eq!(many.key, of("d.test", 3000).key);
    assert_ne!(many.key, of("e.test", 3000).key, "whoever names the hosts of another has a site of its own");
    assert_eq!(of("d.test", 64).key, of("e.test", 64).key, "few that are the same are one");
}
