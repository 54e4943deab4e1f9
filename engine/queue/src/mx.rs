//! From what DNS says about a domain to the site that takes its mail (RFC 5321 5.1, RFC 7505), as pure rules.
//!
//! First [`plan`] reads the answer for MX and says which hosts' addresses are wanted, then [`site`] makes a
//! [`Resolution`] of them. Both say no for good only to what an authority has said for good; all else waits.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address_range::{is_no_hosts, unusable};
use crate::route::{HOSTS_MAX, NextHop};
use crate::site::Resolution;

/// Names of hosts whose addresses are asked for at most: of 200 MX records the best so many are used.
pub const MX_HOSTS_MAX: usize = 16;

/// Addresses of one host that are used at most.
pub(crate) const ADDRESSES_PER_HOST_MAX: usize = 8;

/// One MX record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Exchange {
    /// Lower goes first.
    pub preference: u16,
    /// Lower case, without a final dot; empty for the root (`.`).
    pub host: String,
}

/// What a name server said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DnsAnswer<T> {
    /// Records of the wanted type, at least one.
    Found(Vec<T>),
    /// The name has no such records. `sure`: the answer carried the SOA that proves it.
    NoData {
        /// Proved.
        sure: bool,
    },
    /// There is no such name.
    NoName {
        /// Proved.
        sure: bool,
    },
    /// SERVFAIL, a time-out, an answer that cannot be read: says nothing about the name. In words.
    Failed(String),
}

/// Who we are, for RFC 5321 5.1: a host that is ourselves, and all that are less preferred, get no mail from us.
pub struct Own<'a> {
    /// Is this one of our names, in any case?
    pub is_name: &'a (dyn Fn(&str) -> bool + Sync),
    /// Is this address and port one of our listeners', or does it lead to one?
    pub is_listener: &'a (dyn Fn(SocketAddr) -> bool + Sync),
}

impl Own<'_> {
    /// What no host can have is not ours either, whatever the system says of it.
    fn has(&self, address: IpAddr, port: u16) -> bool {
        !is_no_hosts(address) && (self.is_listener)(SocketAddr::new(address, port))
    }
}

/// What comes after the answer for MX.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Nothing more is to be asked.
    Decided(Resolution),
    /// The addresses of these hosts are wanted, best first.
    Hosts(Candidates),
}

/// Hosts whose addresses are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidates {
    /// In order of preference, equal ones shuffled; at most [`MX_HOSTS_MAX`].
    pub exchanges: Vec<Exchange>,
    /// The domain has no MX: the host is the domain itself.
    pub is_implicit: bool,
    /// That it has none, or these, was said with proof.
    is_sure: bool,
    key: String,
}

/// Which hosts are asked for their addresses. `draw(n)` gives a number below `n`; `until` is when the answer grows old, unix ms.
pub fn plan(domain: &str, answer: DnsAnswer<Exchange>, own: &Own<'_>, until: u64, mut draw: impl FnMut(u64) -> u64) -> Plan {
    let refused = |reply: String| Plan::Decided(Resolution::Refused { reply, until });
    let unanswered = |why: &str| Plan::Decided(Resolution::Unanswered { reason: format!("MX of {domain}: {why}") });
    let mut exchanges = match answer {
        DnsAnswer::Found(exchanges) => exchanges,
        DnsAnswer::NoData { sure: is_sure } => {
            let exchanges = vec![Exchange { preference: 0, host: domain.to_owned() }];
            return Plan::Hosts(Candidates { exchanges, is_implicit: true, is_sure, key: format!("= {domain}") });
        }
        DnsAnswer::NoName { sure: true } => return refused(format!("550 5.1.2 {domain}: no such domain")),
        DnsAnswer::NoName { sure: false } => return unanswered("NXDOMAIN without proof"),
        DnsAnswer::Failed(why) => return unanswered(&why),
    };
    let records = exchanges.len();
    // RFC 7505 3: a null MX stands alone.
    exchanges.retain(|exchange| !exchange.host.is_empty());
    if exchanges.is_empty() && records > 0 {
        return refused(format!("556 5.1.10 {domain} takes no mail (null MX)"));
    }
    exchanges.sort();
    let mut names = BTreeSet::new();
    exchanges.retain(|exchange| names.insert(exchange.host.clone()));
    if let Some(ours) = exchanges.iter().find(|exchange| (own.is_name)(&exchange.host)).map(|exchange| exchange.preference) {
        exchanges.retain(|exchange| exchange.preference < ours);
        if exchanges.is_empty() {
            return refused(loops_back(domain));
        }
    }
    let key = exchanges.iter().map(|exchange| format!("{} {}", exchange.preference, exchange.host)).collect::<Vec<_>>().join(",");
    // RFC 5321 5.1: equal preferences are shuffled, so that of many not always the same are used.
    for last in (1..exchanges.len()).rev() {
        exchanges.swap(last, draw(last as u64 + 1) as usize);
    }
    exchanges.sort_by_key(|exchange| exchange.preference);
    exchanges.truncate(MX_HOSTS_MAX);
    Plan::Hosts(Candidates { exchanges, is_implicit: false, is_sure: true, key })
}

/// The site of hosts whose addresses are known, each in the order of `candidates`: what was said for A and for AAAA.
pub fn site(
    domain: &str,
    candidates: Candidates,
    addresses: &[[DnsAnswer<IpAddr>; 2]],
    own: &Own<'_>,
    port: u16,
    allow_private: bool,
    until: u64,
) -> Resolution {
    let hosts: Vec<_> = candidates.exchanges.iter().zip(addresses).map(|(exchange, answers)| Host::of(exchange, answers)).collect();
    // RFC 5321 5.1: our own address cuts the list at its preference. What is behind the cut says nothing, and it leads back to us only
    // when nothing is before it: a host there that has no address today may have one tomorrow.
    let is_ours = |host: &&Host<'_>| host.addresses.iter().any(|&address| own.has(address, port));
    let cut = hosts.iter().filter(is_ours).map(|host| host.exchange.preference).min();
    let better: Vec<_> = hosts.into_iter().filter(|host| cut.is_none_or(|cut| host.exchange.preference < cut)).collect();
    let (mut hops, mut refusal) = (Vec::new(), None);
    for Host { exchange, addresses, .. } in &better {
        let mut used = 0;
        let mut seen = BTreeSet::new();
        for address in in_turn(addresses.clone()) {
            if !seen.insert(address) || used == ADDRESSES_PER_HOST_MAX {
                continue;
            }
            if let Some(why) = unusable(address, allow_private) {
                refusal.get_or_insert_with(|| format!("{} has the address {address}, which is {why}", exchange.host));
                continue;
            }
            used += 1;
            let name = format!("{}[{address}]:{port}", exchange.host);
            hops.push(NextHop { name, preference: u32::from(exchange.preference), ..SocketAddr::new(address, port).into() });
        }
    }
    hops.truncate(HOSTS_MAX);
    if let Some(first) = hops.first() {
        let name = first.name.split('[').next().unwrap_or_default().to_owned();
        return Resolution::Site { key: candidates.key, name, hosts: hops, until };
    }
    let failure = better.iter().find_map(|host| host.failure.clone());
    if let Some(reason) = failure.or(refusal) {
        return Resolution::Unanswered { reason: format!("MX of {domain}: {reason}") };
    }
    if better.is_empty() && cut.is_some() {
        return match candidates.is_sure {
            true => Resolution::Refused { reply: loops_back(domain), until },
            false => Resolution::Unanswered { reason: format!("MX of {domain}: leads back to this host, without proof that it has no MX") },
        };
    }
    let all_sure = candidates.is_sure && better.iter().all(|host| host.is_sure);
    // MX records that lead nowhere are somebody's mistake of today. RFC 5321 5.1: the domain's own address is no way round them.
    match candidates.is_implicit {
        true if all_sure => Resolution::Refused { reply: format!("550 5.4.4 {domain} has neither MX nor address"), until },
        true => Resolution::Unanswered { reason: format!("MX of {domain}: neither MX nor address, without proof") },
        false => Resolution::Unanswered { reason: format!("MX of {domain}: none of its hosts has an address") },
    }
}

/// What DNS says about one host.
struct Host<'a> {
    exchange: &'a Exchange,
    addresses: Vec<IpAddr>,
    /// That an address is missing, if one is, was said with proof.
    is_sure: bool,
    /// The first question that got no answer, and why.
    failure: Option<String>,
}

impl<'a> Host<'a> {
    fn of(exchange: &'a Exchange, answers: &[DnsAnswer<IpAddr>; 2]) -> Self {
        let mut host = Self { exchange, addresses: Vec::new(), is_sure: true, failure: None };
        for answer in answers {
            match answer {
                DnsAnswer::Found(found) => host.addresses.extend(found.iter().copied().map(unmapped)),
                DnsAnswer::NoData { sure } | DnsAnswer::NoName { sure } => host.is_sure &= sure,
                DnsAnswer::Failed(why) => {
                    host.is_sure = false;
                    host.failure.get_or_insert_with(|| format!("address of {}: {why}", exchange.host));
                }
            }
        }
        host
    }
}

/// The site of an address literal, `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 4.1.3); `None` if `domain` is none.
pub fn literal(domain: &str, own: &Own<'_>, port: u16, allow_private: bool, until: u64) -> Option<Resolution> {
    let inner = domain.strip_prefix('[')?.strip_suffix(']')?;
    let (tag, rest) = inner.split_at_checked(5).unwrap_or(("", ""));
    let address = match tag.eq_ignore_ascii_case("ipv6:") {
        true => rest.parse::<Ipv6Addr>().map(IpAddr::from).ok(),
        false => inner.parse::<Ipv4Addr>().map(IpAddr::from).ok(),
    };
    let Some(address) = address.map(unmapped) else {
        return Some(Resolution::Refused { reply: format!("550 5.1.3 {domain} is no address literal that is known here"), until });
    };
    if is_no_hosts(address) {
        // Nothing that anybody could change makes it one.
        return Some(Resolution::Refused { reply: format!("550 5.1.2 {domain} is no address of a host"), until });
    }
    let to = SocketAddr::new(address, port);
    if own.has(address, port) {
        return Some(Resolution::Refused { reply: loops_back(domain), until });
    }
    Some(match unusable(address, allow_private) {
        Some(why) => Resolution::Unanswered { reason: format!("{domain} is {why}") },
        None => Resolution::Site { key: domain.to_owned(), name: domain.to_owned(), hosts: vec![to.into()], until },
    })
}

/// RFC 5321 5.1: no host is left when those that are ourselves, or less preferred than ourselves, are taken out.
fn loops_back(domain: &str) -> String {
    format!("554 5.4.6 mail for {domain} leads back to this host")
}

/// IPv6 and IPv4 in turn, IPv6 first: whichever of them does not work here costs one attempt, not as many as there are addresses.
pub(crate) fn in_turn(addresses: Vec<IpAddr>) -> impl Iterator<Item = IpAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let (mut six, mut four, mut turn) = (six.into_iter(), four.into_iter(), false);
    std::iter::from_fn(move || {
        turn = !turn;
        if turn { six.next().or_else(|| four.next()) } else { four.next().or_else(|| six.next()) }
    })
}

/// An IPv4 address in the clothes of IPv6 is judged as what it is.
pub(crate) fn unmapped(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
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
        match plan("d.test", answer, &own(), UNTIL, |_| 0) {
            Plan::Hosts(candidates) => candidates.exchanges.into_iter().map(|exchange| exchange.host).collect(),
            Plan::Decided(resolution) => panic!("{resolution:?}"),
        }
    }

    fn decided(answer: DnsAnswer<Exchange>) -> String {
        match plan("d.test", answer, &own(), UNTIL, |_| 0) {
            Plan::Decided(Resolution::Refused { reply, .. }) => reply,
            Plan::Decided(Resolution::Unanswered { reason }) => reason,
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
        let Plan::Hosts(candidates) = plan("d.test", answer, &own(), UNTIL, |below| below - 1) else { panic!("hosts") };
        match site("d.test", candidates, addresses, &own(), 25, allow_private, UNTIL) {
            Resolution::Site { hosts, .. } => Ok(hosts.into_iter().map(|hop| hop.name).collect()),
            Resolution::Refused { reply, .. } => Err(reply),
            Resolution::Unanswered { reason } => Err(reason),
            Resolution::Awaited => unreachable!("it is no answer of DNS"),
        }
    }

    #[test]
    fn hosts_go_by_preference_and_a_domain_without_mx_is_its_own_host() {
        let records = vec![exchange(20, "b.test"), exchange(10, "a.test"), exchange(20, "b.test"), exchange(30, "a.test")];
        assert_eq!(hosts(DnsAnswer::Found(records)), ["a.test", "b.test"]);
        assert_eq!(hosts(DnsAnswer::NoData { sure: false }), ["d.test"]);
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
        let key = |draw: u64| match plan("d.test", DnsAnswer::Found(records.clone()), &own(), UNTIL, |below| draw % below) {
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
        assert_eq!(site_of(&exchanges, &vec![found(&many); 16], false).unwrap().len(), HOSTS_MAX);
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
            let Plan::Hosts(candidates) = plan("d.test", DnsAnswer::Found(vec![exchange(10, "a.test")]), &all_is_ours, UNTIL, |_| 0) else {
                panic!("hosts")
            };
            let resolution = site("d.test", candidates, &[found(&[address])], &all_is_ours, 25, true, UNTIL);
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
            let Plan::Hosts(candidates) = plan("d.test", DnsAnswer::NoData { sure }, &own(), UNTIL, |_| 0) else { panic!("hosts") };
            site("d.test", candidates, &[answers], &own(), 25, false, UNTIL)
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
            Resolution::Unanswered { reason } => Some(reason),
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
}
