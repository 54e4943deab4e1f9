//! From what DNS says about a domain to the site that takes its mail (RFC 5321 5.1, RFC 7505), as pure rules.
//!
//! First [`plan`] reads the answer for MX and says which hosts' addresses are wanted, then [`site`] makes a
//! [`Resolution`] of them. Both say no for good only to what an authority has said for good; all else waits.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address_range::{is_no_hosts, unusable};
use crate::route::{HOSTS_MAX, NextHop};
use crate::site::Resolution;

/// Hosts whose addresses are asked for at a time; the next so many only where none of those before has one that can be used.
pub const MX_HOSTS_AT_ONCE: usize = 16;

/// Hosts whose addresses are asked for by one question at most: of 200 MX records the best so many, or those whose turn it is.
pub const MX_HOSTS_MAX: usize = 4 * MX_HOSTS_AT_ONCE;

/// Hosts of a domain that are known at most, the best of them: each has a number, and its turn.
const MX_HOSTS_KNOWN_MAX: usize = u8::MAX as usize + 1;

/// Of more than [`MX_HOSTS_AT_ONCE`] hosts the best so many are asked for in each turn; the other places go round, so that each host has its turn.
const MX_HOSTS_EACH_TURN: usize = MX_HOSTS_AT_ONCE / 2;

/// Further hosts that come with each turn.
const MX_HOSTS_PER_TURN: usize = MX_HOSTS_AT_ONCE - MX_HOSTS_EACH_TURN;

/// Turns that a question has had when so many hosts were asked for, and none of them has an address.
fn turns_of(asked: usize) -> u16 {
    (asked.min(MX_HOSTS_MAX).saturating_sub(MX_HOSTS_EACH_TURN) / MX_HOSTS_PER_TURN).max(1) as u16
}

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
    /// In order of preference, equal ones shuffled; at most [`MX_HOSTS_MAX`]. Of many, first the best of all, then those whose turn it is.
    pub exchanges: Vec<Exchange>,
    /// How many hosts the domain has, those beyond [`MX_HOSTS_MAX`] included, but for those beyond [`MX_HOSTS_KNOWN_MAX`].
    hosts: usize,
    /// So many of the first are the best of all; what comes behind is further down, with others between.
    best: usize,
    /// Of each, a number that is the same in each answer with the same hosts: by this, addresses are of one host.
    numbers: Vec<u8>,
    /// The domain has no MX: the host is the domain itself.
    pub is_implicit: bool,
    /// That it has none, or these, was said with proof.
    is_sure: bool,
    key: String,
}

/// Which hosts are asked for their addresses. `turn` is that of [`Question::Mx`](crate::Question::Mx): of a domain with many hosts each has one
/// of those turns, as long as `draw` shuffles them in the same way. `draw(n)` gives a number below `n`; `until` is when the answer grows old,
/// unix ms.
pub fn plan(domain: &str, answer: DnsAnswer<Exchange>, own: &Own<'_>, turn: u16, until: u64, mut draw: impl FnMut(u64) -> u64) -> Plan {
    let refused = |reply: String| Plan::Decided(Resolution::Refused { reply, until });
    let unanswered = |why: &str| Plan::Decided(Resolution::Unanswered { reason: format!("MX of {domain}: {why}"), turns: 0 });
    let mut exchanges = match answer {
        DnsAnswer::Found(exchanges) => exchanges,
        DnsAnswer::NoData { sure: is_sure } => {
            let exchanges = vec![Exchange { preference: 0, host: domain.to_owned() }];
            return Plan::Hosts(Candidates {
                exchanges,
                numbers: vec![0],
                hosts: 1,
                best: 1,
                is_implicit: true,
                is_sure,
                key: format!("= {domain}"),
            });
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
    let known = exchanges.len();
    exchanges.truncate(MX_HOSTS_KNOWN_MAX);
    let key = match known {
        ..=MX_HOSTS_MAX => {
            exchanges.iter().map(|exchange| format!("{} {}", exchange.preference, exchange.host)).collect::<Vec<_>>().join(",")
        }
        // Names without end; and no two domains have the same so many.
        _ => format!("> {domain}"),
    };
    // Before they are shuffled.
    let mut exchanges: Vec<(u8, Exchange)> = (0..=u8::MAX).zip(exchanges).collect();
    // RFC 5321 5.1: equal preferences are shuffled, so that of many not always the same are used.
    for last in (1..exchanges.len()).rev() {
        exchanges.swap(last, draw(last as u64 + 1) as usize);
    }
    exchanges.sort_by_key(|(_, exchange)| exchange.preference);
    let hosts = exchanges.len();
    let mut best = hosts;
    if hosts > MX_HOSTS_AT_ONCE {
        let others = &mut exchanges[MX_HOSTS_EACH_TURN..];
        let begin = usize::from(turn) * MX_HOSTS_PER_TURN % others.len();
        others.rotate_left(begin);
        best = if begin == 0 { hosts } else { MX_HOSTS_EACH_TURN };
    }
    exchanges.truncate(MX_HOSTS_MAX);
    let (numbers, exchanges) = exchanges.into_iter().unzip();
    Plan::Hosts(Candidates { exchanges, numbers, hosts, best, is_implicit: false, is_sure: true, key })
}

impl Candidates {
    /// The hosts whose addresses are wanted next when those of the first `asked` are known; none when all were asked.
    pub fn next(&self, asked: usize) -> &[Exchange] {
        &self.exchanges[asked..self.exchanges.len().min(asked + MX_HOSTS_AT_ONCE)]
    }
}

/// The site of hosts whose addresses are known, each in the order of `candidates`: what was said for A and for AAAA. Of the first so many
/// candidates; where that is [`Resolution::Unanswered`], [`Candidates::next`] says who may have an address, too.
pub fn site(
    domain: &str,
    candidates: &Candidates,
    addresses: &[[DnsAnswer<IpAddr>; 2]],
    own: &Own<'_>,
    port: u16,
    allow_private: bool,
    until: u64,
) -> Resolution {
    let numbered = candidates.exchanges.iter().zip(&candidates.numbers);
    let hosts: Vec<_> = numbered.zip(addresses).map(|((exchange, number), answers)| Host::of(exchange, *number, answers)).collect();
    // RFC 5321 5.1: our own address cuts the list at its preference. What is behind the cut says nothing, and it leads back to us only
    // when nothing is before it: a host there that has no address today may have one tomorrow.
    let is_ours = |host: &&Host<'_>| host.addresses.iter().any(|&address| own.has(address, port));
    let cut = hosts.iter().filter(is_ours).map(|host| host.exchange.preference).min();
    // In a turn of hosts further down others before the cut were not asked for: they are the turn of another time.
    let is_cut_short = hosts.iter().take(candidates.best).any(|host| is_ours(&host));
    let better: Vec<_> = hosts.into_iter().filter(|host| cut.is_none_or(|cut| host.exchange.preference < cut)).collect();
    let (mut usable, mut refusal) = (Vec::with_capacity(better.len()), None);
    // What is behind the cut takes no mail from us, asked or not.
    let mut is_whole = is_cut_short || candidates.hosts <= addresses.len();
    for Host { exchange, addresses, is_sure, .. } in &better {
        let mut of_host = Vec::new();
        for address in in_turn(addresses.clone()) {
            if of_host.contains(&address) || of_host.len() == ADDRESSES_PER_HOST_MAX {
                continue;
            }
            if let Some(why) = unusable(address, allow_private) {
                refusal.get_or_insert_with(|| format!("{} has the address {address}, which is {why}", exchange.host));
                continue;
            }
            of_host.push(address);
        }
        // One whose addresses cannot be used may have others tomorrow.
        is_whole &= !of_host.is_empty() || addresses.is_empty() && *is_sure;
        usable.push(of_host);
    }
    let most = addresses_of_each(&usable);
    is_whole &= most == ADDRESSES_PER_HOST_MAX;
    let mut hops = Vec::new();
    for (Host { exchange, number, .. }, of_host) in better.iter().zip(usable) {
        for address in of_host.into_iter().take(most) {
            let name = format!("{}[{address}]:{port}", exchange.host);
            let preference = u32::from(exchange.preference);
            hops.push(NextHop { name, preference, host: *number, ..SocketAddr::new(address, port).into() });
        }
    }
    hops.truncate(HOSTS_MAX);
    if let Some(first) = hops.first() {
        let name = first.name.split('[').next().unwrap_or_default().to_owned();
        return Resolution::Site { key: candidates.key.clone(), name, hosts: hops, is_whole, until };
    }
    let failure = better.iter().find_map(|host| host.failure.clone());
    let has_more = !is_cut_short && candidates.hosts > addresses.len();
    let turns = if has_more { turns_of(addresses.len()) } else { 0 };
    if let Some(reason) = failure.or(refusal) {
        return Resolution::Unanswered { reason: format!("MX of {domain}: {reason}"), turns };
    }
    if better.is_empty() && cut.is_some() {
        return match candidates.is_sure {
            true => Resolution::Refused { reply: loops_back(domain), until },
            false => Resolution::Unanswered {
                reason: format!("MX of {domain}: leads back to this host, without proof that it has no MX"),
                turns: 0,
            },
        };
    }
    let all_sure = candidates.is_sure && better.iter().all(|host| host.is_sure);
    // MX records that lead nowhere are somebody's mistake of today. RFC 5321 5.1: the domain's own address is no way round them.
    match candidates.is_implicit {
        true if all_sure => Resolution::Refused { reply: format!("550 5.4.4 {domain} has neither MX nor address"), until },
        true => Resolution::Unanswered { reason: format!("MX of {domain}: neither MX nor address, without proof"), turns: 0 },
        false if has_more => {
            let (asked, hosts) = (addresses.len(), candidates.hosts);
            Resolution::Unanswered { reason: format!("MX of {domain}: none of {asked} of its {hosts} hosts has an address"), turns }
        }
        false => Resolution::Unanswered { reason: format!("MX of {domain}: none of its hosts has an address"), turns: 0 },
    }
}

/// How many addresses of a host are used at most, so that each host has some: the last one is not to be left out for the eighth address of the first.
fn addresses_of_each(hosts: &[Vec<IpAddr>]) -> usize {
    let all = |most: usize| hosts.iter().map(|addresses| addresses.len().min(most)).sum::<usize>();
    (1..=ADDRESSES_PER_HOST_MAX).rev().find(|most| all(*most) <= HOSTS_MAX).unwrap_or(1)
}

/// What DNS says about one host.
struct Host<'a> {
    exchange: &'a Exchange,
    number: u8,
    addresses: Vec<IpAddr>,
    /// That an address is missing, if one is, was said with proof.
    is_sure: bool,
    /// The first question that got no answer, and why.
    failure: Option<String>,
}

impl<'a> Host<'a> {
    fn of(exchange: &'a Exchange, number: u8, answers: &[DnsAnswer<IpAddr>; 2]) -> Self {
        let mut host = Self { exchange, number, addresses: Vec::new(), is_sure: true, failure: None };
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
        Some(why) => Resolution::Unanswered { reason: format!("{domain} is {why}"), turns: 0 },
        None => Resolution::Site { key: domain.to_owned(), name: domain.to_owned(), hosts: vec![to.into()], is_whole: true, until },
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
mod tests;
