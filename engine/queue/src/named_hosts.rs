//! From what DNS says about the hosts that a route names to the next hops of its mail, as a pure rule.
//!
//! Unlike those of an MX set they are the operator's choice: they may be private, no answer is proof that they take no mail, and
//! mail is never refused because of them. A host that just now has no address is left out while others have one.

use std::net::{IpAddr, SocketAddr};

use crate::mx::{ADDRESSES_PER_HOST_MAX, DnsAnswer, in_turn, unmapped};
use crate::route::{HOSTS_MAX, NamedHost, NextHop};
use crate::site::Resolution;

/// The site of a route's hosts. `addresses` has for each of them what was said for A and for AAAA, or nothing where its name is an
/// address itself; `until` is when the answer grows old, unix ms.
///
/// Of many addresses the same are used each time, and each host has some: what is known of them is kept from answer to answer.
/// Our own listeners are left out, because mail would come back to us until it has too many Received lines.
/// [`Resolution::Unanswered`] when no host has an address, with the first thing that was wrong.
pub fn site(
    hosts: &[NamedHost],
    addresses: &[Option<[DnsAnswer<IpAddr>; 2]>],
    is_listener: impl Fn(SocketAddr) -> bool,
    until: u64,
) -> Resolution {
    let mut failure: Option<String> = None;
    let mut of_hosts = Vec::with_capacity(hosts.len());
    for (host, answers) in hosts.iter().zip(addresses) {
        let mut of_host = match answers {
            Some(answers) => found(&host.name, answers, &mut failure),
            None => host.name.parse().into_iter().collect(),
        };
        of_host.retain(|&address| {
            let is_own = is_listener(SocketAddr::new(address, host.port));
            if is_own {
                failure.get_or_insert_with(|| format!("{}:{} is a listener of this node", host.name, host.port));
            }
            !is_own
        });
        of_hosts.push(in_turn(of_host).take(ADDRESSES_PER_HOST_MAX).collect::<Vec<_>>());
    }
    let mut hops = Vec::new();
    for turn in 0..ADDRESSES_PER_HOST_MAX {
        for (number, (host, of_host)) in (0..).zip(hosts.iter().zip(&of_hosts)) {
            if let Some(&address) = of_host.get(turn) {
                hops.push(next_hop(host, number, address));
            }
        }
    }
    hops.truncate(HOSTS_MAX);
    // A name that has no address just now may have one tomorrow.
    let is_whole = of_hosts.iter().all(|addresses| !addresses.is_empty());
    match hops.iter().min_by_key(|hop| (hop.preference, hop.host)) {
        Some(first) => Resolution::Site { key: String::new(), name: first.name.clone(), hosts: hops, is_whole, until },
        None => Resolution::Unanswered { reason: failure.unwrap_or_else(|| "no host is named".to_owned()), turns: 0 },
    }
}

/// In order, each once.
fn found(name: &str, answers: &[DnsAnswer<IpAddr>; 2], failure: &mut Option<String>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (answer, kind) in answers.iter().zip(["A", "AAAA"]) {
        match answer {
            DnsAnswer::Found(found) => addresses.extend(found.iter().copied().map(unmapped)),
            DnsAnswer::Failed(why) => drop(failure.get_or_insert_with(|| format!("{kind} of {name}: {why}"))),
            DnsAnswer::NoData { .. } | DnsAnswer::NoName { .. } => {}
        }
    }
    if addresses.is_empty() {
        failure.get_or_insert_with(|| format!("address of {name}: there is none"));
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn next_hop(host: &NamedHost, number: u8, address: IpAddr) -> NextHop {
    let NamedHost { name, port, preference, weight } = host;
    let hop = NextHop::from(SocketAddr::new(address, *port));
    // An address that the operator wrote has no other name.
    let name = if name.parse::<IpAddr>().is_ok() { hop.name.clone() } else { format!("{name}[{address}]:{port}") };
    NextHop { name, preference: *preference, weight: *weight, host: number, ..hop }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTIL: u64 = 1_790_000_000_000;

    fn named(name: &str, weight: u16) -> NamedHost {
        NamedHost { name: name.into(), port: 587, preference: 0, weight }
    }

    fn a(addresses: &[&str]) -> DnsAnswer<IpAddr> {
        DnsAnswer::Found(addresses.iter().map(|address| address.parse().unwrap()).collect())
    }

    fn none() -> DnsAnswer<IpAddr> {
        DnsAnswer::NoData { sure: true }
    }

    fn hops(resolution: Resolution) -> Vec<(String, u8)> {
        let Resolution::Site { key, hosts, until, .. } = resolution else { panic!("{resolution:?}") };
        assert_eq!((key.as_str(), until), ("", UNTIL));
        hosts.into_iter().map(|hop| (hop.name, hop.host)).collect()
    }

    #[test]
    fn names_become_their_addresses_and_addresses_stay() {
        let hosts = [named("one.test", 3), named("192.0.2.9", 1), named("2001:db8::9", 1)];
        let addresses = [Some([a(&["192.0.2.2", "192.0.2.1", "192.0.2.2"]), a(&["2001:db8::1", "::ffff:192.0.2.1"])]), None, None];
        let Resolution::Site { name, hosts: hops, .. } = site(&hosts, &addresses, |_| false, UNTIL) else { panic!() };
        assert_eq!(name, "one.test[2001:db8::1]:587");
        let seen: Vec<_> = hops.iter().map(|hop| (hop.name.as_str(), hop.address.to_string(), hop.weight, hop.host)).collect();
        let expected = [
            ("one.test[2001:db8::1]:587", "[2001:db8::1]:587".to_owned(), 3, 0),
            ("192.0.2.9:587", "192.0.2.9:587".to_owned(), 1, 1),
            ("[2001:db8::9]:587", "[2001:db8::9]:587".to_owned(), 1, 2),
            ("one.test[192.0.2.1]:587", "192.0.2.1:587".to_owned(), 3, 0),
            ("one.test[192.0.2.2]:587", "192.0.2.2:587".to_owned(), 3, 0),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn of_many_addresses_each_host_has_some_and_always_the_same() {
        let many: Vec<String> = (1..=40).map(|last| format!("192.0.2.{last}")).collect();
        let mut answer: Vec<&str> = many.iter().map(String::as_str).collect();
        let hosts: Vec<_> = (0..30).map(|number| named(&format!("h{number}.test"), 1)).collect();
        let mut before = None;
        for _ in 0..3 {
            answer.rotate_left(7);
            let addresses: Vec<_> = hosts.iter().map(|_| Some([a(&answer), none()])).collect();
            let seen = hops(site(&hosts, &addresses, |_| false, UNTIL));
            assert_eq!(seen.len(), HOSTS_MAX);
            assert!((0..30).all(|number| seen.iter().any(|(_, host)| *host == number)));
            assert_eq!(before.replace(seen.clone()).unwrap_or(seen.clone()), seen, "DNS turns its answers round");
        }
        let one = site(&hosts[..1], &[Some([a(&answer), none()])], |_| false, UNTIL);
        assert_eq!(hops(one).len(), ADDRESSES_PER_HOST_MAX);
    }

    #[test]
    fn a_host_without_an_address_is_left_out_and_no_host_is_a_reason_to_wait() {
        let hosts = [named("gone.test", 1), named("ill.test", 1), named("well.test", 1)];
        let failed = || DnsAnswer::Failed("SERVFAIL".to_owned());
        let gone = || Some([DnsAnswer::NoName { sure: true }, DnsAnswer::NoName { sure: true }]);
        let addresses = [gone(), Some([failed(), failed()]), Some([a(&["192.0.2.1"]), failed()])];
        assert_eq!(hops(site(&hosts, &addresses, |_| false, UNTIL)), [("well.test[192.0.2.1]:587".to_owned(), 2)]);
        for (count, reason) in [(2, "address of gone.test: there is none"), (1, "address of gone.test: there is none")] {
            assert_eq!(site(&hosts[..count], &addresses, |_| false, UNTIL), Resolution::Unanswered { reason: reason.into(), turns: 0 });
        }
        let ill = site(&hosts[1..2], &addresses[1..2], |_| false, UNTIL);
        assert_eq!(ill, Resolution::Unanswered { reason: "A of ill.test: SERVFAIL".into(), turns: 0 });
    }

    #[test]
    fn a_host_that_is_this_node_gets_no_mail() {
        let hosts = [named("self.test", 1), named("other.test", 1)];
        let addresses = [Some([a(&["192.0.2.1"]), none()]), Some([a(&["192.0.2.2"]), none()])];
        let is_listener = |address: SocketAddr| address == "192.0.2.1:587".parse().unwrap();
        assert_eq!(hops(site(&hosts, &addresses, is_listener, UNTIL)), [("other.test[192.0.2.2]:587".to_owned(), 1)]);
        let alone = site(&hosts[..1], &addresses, is_listener, UNTIL);
        assert_eq!(alone, Resolution::Unanswered { reason: "self.test:587 is a listener of this node".into(), turns: 0 });
    }
}
