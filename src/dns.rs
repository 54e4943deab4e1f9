//! What DNS says about domains and hosts, over `hickory-resolver`; what that means for mail is `ringpost_queue::mx`.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
};
use ringpost_config::{Config, Dns as DnsSettings};
use ringpost_engine::random::random_u64;
use ringpost_queue::{
    Jitter, NamedHost, Question, Resolution,
    mx::{self, DnsAnswer, Exchange, MX_HOSTS_AT_ONCE, Own, Plan},
    named_hosts,
};
use tokio::{task::JoinSet, time::Instant};

/// An answer holds at least so long, whatever its TTL: the mail of a burst asks once.
const HOLDS_MIN: Duration = Duration::from_secs(1);
/// An answer holds at most so long.
const HOLDS_MAX: Duration = Duration::from_secs(24 * 3600);
/// A name that is not there is asked about again after this, if its zone says nothing else.
const NEGATIVE_DEFAULT: Duration = Duration::from_secs(60);
/// A name that is not there is asked about again after this at the latest.
const NEGATIVE_MAX: Duration = Duration::from_secs(3600);
/// CNAMEs that are followed to see whether they have an end.
const ALIASES_MAX: usize = 16;
/// What was answered by the end of the time for a question is worked up in this.
const SLACK: Duration = Duration::from_secs(1);
/// Answers that the resolver keeps as they came, for hosts that many domains share. Each is as large as whoever answers wants it, up to a
/// megabyte once its names are written out; what mail needs of them is kept by `answers`.
const RAW_ANSWERS_MAX: u64 = 256;
/// One with more records, those beside it included, is not kept so.
const RAW_RECORDS_MAX: usize = 64;
/// Port of a name server.
const DNS_PORT: u16 = 53;
/// Queries at once over one connection to a name server.
const QUERIES_PER_CONNECTION: usize = 4096;

/// Asks name servers. Cheap to clone.
#[derive(Clone)]
pub struct Dns {
    resolver: TokioResolver,
    own: Arc<OwnHost>,
    /// Shuffles hosts of equal preference in the same way whenever it is the turn of further ones.
    seed: u64,
    settings: Arc<DnsSettings>,
}

struct OwnHost {
    names: Vec<String>,
    listeners: Vec<SocketAddr>,
    /// Lead to this host, by whatever port, and are not this machine's.
    addresses: Vec<IpAddr>,
}

impl OwnHost {
    /// Is an MX of this address this host?
    fn is_exchange(&self, address: SocketAddr) -> bool {
        self.addresses.contains(&address.ip()) || self.is_listener(address)
    }

    /// Is this address and port one of our listeners'? For those that listen on all addresses: is the address this machine's?
    fn is_listener(&self, address: SocketAddr) -> bool {
        self.listeners.iter().filter(|listener| listener.port() == address.port()).any(|listener| match listener.ip().is_unspecified() {
            true => is_of_this_machine(address),
            false => listener.ip() == address.ip(),
        })
    }
}

/// The routing table says: what is sent to an address of this machine comes from there. No packet leaves. That an address can be bound
/// says nothing, since with `ip_nonlocal_bind` every one can.
fn is_of_this_machine(address: SocketAddr) -> bool {
    let source_of = || {
        let socket = UdpSocket::bind(if address.is_ipv4() { (IpAddr::from([0; 4]), 0) } else { (IpAddr::from([0; 16]), 0) })?;
        socket.connect(address)?;
        socket.local_addr()
    };
    // All of 127.0.0.0/8 is, and is answered from 127.0.0.1.
    address.ip().is_loopback() || source_of().is_ok_and(|source| source.ip() == address.ip())
}

/// What is wanted of a domain's hosts.
#[derive(Clone, Copy)]
struct Asking {
    port: u16,
    turn: u16,
    anew: bool,
    until: Instant,
}

/// An answer and how long it holds.
struct Timed<T> {
    answer: DnsAnswer<T>,
    holds: Duration,
}

impl Dns {
    /// From `[dns]`, or from the system's resolver configuration. Must be called within the runtime that is to run the queries.
    pub fn new(config: &Config, hostname: &str) -> Result<Dns, String> {
        let settings = config.dns.clone();
        let resolver = resolver(&settings)?;
        let own = OwnHost {
            names: std::iter::once(hostname.to_owned()).chain(settings.own_names.iter().cloned()).collect(),
            listeners: config.listeners.iter().map(|listener| listener.address).collect(),
            addresses: settings.own_addresses.clone(),
        };
        Ok(Dns { resolver, own: Arc::new(own), seed: random_u64(), settings: Arc::new(settings) })
    }

    /// The answer to a question. `until` of what comes back is relative: milliseconds from now.
    pub async fn resolve(&self, question: Question) -> Resolution {
        self.resolve_as(question, false).await
    }

    /// As [`Dns::resolve`]; `anew`: what was said before is forgotten, for who asks after this, too.
    pub async fn resolve_as(&self, question: Question, anew: bool) -> Resolution {
        let limit = self.settings.timeout * u32::from(self.settings.attempts) * 4;
        let until = Instant::now() + limit;
        let about = about(&question);
        let answer = async {
            match question {
                Question::Mx { domain, port, turn } => self.mx(&domain, port, turn, anew, until).await,
                Question::Hosts(hosts) => self.hosts(hosts, anew, until).await,
            }
        };
        match tokio::time::timeout_at(until + SLACK, answer).await {
            Ok(resolution) => resolution,
            Err(_) => Resolution::Unanswered { reason: format!("{about}: timed out"), turns: 0 },
        }
    }

    async fn mx(&self, domain: &str, port: u16, turn: u16, anew: bool, until: Instant) -> Resolution {
        let is_name = |host: &str| self.own.names.iter().any(|name| host.eq_ignore_ascii_case(name));
        let is_listener = |address| self.own.is_exchange(address);
        let own = Own { is_name: &is_name, is_listener: &is_listener };
        if let Some(resolution) = mx::literal(domain, &own, port, self.settings.allow_private, millis(HOLDS_MAX)) {
            return resolution;
        }
        let Some(name) = name_of(domain) else {
            return Resolution::Refused { reply: format!("550 5.1.2 {domain} is no domain"), until: millis(NEGATIVE_MAX) };
        };
        let records = self.ask(name.clone(), RecordType::MX, anew, exchange).await;
        let is_negative = matches!(records.answer, DnsAnswer::NoData { .. } | DnsAnswer::NoName { .. });
        let resolution = self.exchanges(domain, records, &own, Asking { port, turn, anew, until }).await;
        match resolution {
            Resolution::Refused { .. } if is_negative => match self.circle(name, anew).await {
                Some(why) => Resolution::Unanswered { reason: format!("MX of {domain}: {why}"), turns: 0 },
                None => resolution,
            },
            resolution => resolution,
        }
    }

    /// What the MX records of a domain, or that it has none, mean.
    async fn exchanges(&self, domain: &str, records: Timed<Exchange>, own: &Own<'_>, asking: Asking) -> Resolution {
        let Asking { port, turn, anew, until } = asking;
        let mut holds = records.holds;
        let plan = {
            let mut random = Jitter::new(if turn == 0 { random_u64() } else { self.seed });
            mx::plan(domain, records.answer, own, turn, millis(holds), |below| random.below(below))
        };
        let candidates = match plan {
            Plan::Decided(resolution) => return resolution,
            Plan::Hosts(candidates) => candidates,
        };
        let mut addresses = Vec::with_capacity(candidates.exchanges.len().min(MX_HOSTS_AT_ONCE));
        loop {
            let names = candidates.next(addresses.len()).iter().map(|exchange| exchange.host.clone()).collect();
            for [four, six] in self.addresses(names, anew, until).await {
                holds = holds.min(four.holds).min(six.holds);
                addresses.push([four.answer, six.answer]);
            }
            let resolution = mx::site(domain, &candidates, &addresses, own, port, self.settings.allow_private, millis(holds));
            // When the time is over, whoever was not asked for is asked for at another turn.
            let is_over = candidates.next(addresses.len()).is_empty() || Instant::now() >= until;
            if is_over || !matches!(resolution, Resolution::Unanswered { .. }) {
                return resolution;
            }
        }
    }

    /// Why a name whose answer was negative has none all the same: its CNAMEs have no end, or nobody says where they lead.
    ///
    /// RFC 1034 3.6.2, 5.2.2: a loop is an error of the zone, whatever proof of another thing its server puts beside it, and the next hour may
    /// have mended it.
    async fn circle(&self, name: Name, anew: bool) -> Option<String> {
        let mut seen = vec![name];
        loop {
            let last = seen.last().expect("the first is the domain").clone();
            let alias = |data: &RData| match data {
                RData::CNAME(alias) => Some(alias.0.clone()),
                _ => None,
            };
            let target = match self.ask(last.clone(), RecordType::CNAME, anew, alias).await.answer {
                DnsAnswer::Found(targets) => targets.into_iter().next()?,
                DnsAnswer::NoData { .. } | DnsAnswer::NoName { .. } => return None,
                DnsAnswer::Failed(why) => return Some(format!("CNAME of {last}: {why}")),
            };
            if seen.contains(&target) {
                return Some(format!("its CNAMEs go round in a circle, by {target}"));
            }
            if seen.len() == ALIASES_MAX {
                return Some(format!("more than {ALIASES_MAX} CNAMEs in a row"));
            }
            seen.push(target);
        }
    }

    async fn hosts(&self, hosts: Vec<NamedHost>, anew: bool, until: Instant) -> Resolution {
        let names = hosts.iter().map(|host| &host.name).filter(|name| name.parse::<IpAddr>().is_err());
        let mut asked = self.addresses(names.cloned().collect(), anew, until).await.into_iter();
        let (mut holds, mut addresses) = (HOLDS_MAX, Vec::with_capacity(hosts.len()));
        for host in &hosts {
            let is_name = host.name.parse::<IpAddr>().is_err();
            let answers = if is_name { asked.next() } else { None };
            addresses.push(answers.map(|[four, six]| {
                holds = holds.min(four.holds).min(six.holds);
                [four.answer, six.answer]
            }));
        }
        named_hosts::site(&hosts, &addresses, |address| self.own.is_listener(address), millis(holds))
    }

    /// A and AAAA of each name, in their order; all are asked at once. What has not come by `until` counts as timed out.
    async fn addresses(&self, names: Vec<String>, anew: bool, until: Instant) -> Vec<[Timed<IpAddr>; 2]> {
        let mut asked = JoinSet::new();
        let count = names.len();
        for (at, name) in names.into_iter().enumerate() {
            let dns = self.clone();
            asked.spawn(async move {
                let Some(name) = name_of(&name) else {
                    let none = || Timed { answer: DnsAnswer::NoName { sure: false }, holds: NEGATIVE_DEFAULT };
                    return (at, [none(), none()]);
                };
                let (four, six) = tokio::join!(
                    dns.ask(name.clone(), RecordType::A, anew, |data| match data {
                        RData::A(address) => Some(IpAddr::from(address.0)),
                        _ => None,
                    }),
                    dns.ask(name, RecordType::AAAA, anew, |data| match data {
                        RData::AAAA(address) => Some(IpAddr::from(address.0)),
                        _ => None,
                    })
                );
                (at, [four, six])
            });
        }
        let mut all: Vec<_> = (0..count).map(|_| None).collect();
        while let Ok(Some(joined)) = tokio::time::timeout_at(until, asked.join_next()).await {
            let (at, answers) = joined.expect("a query does not panic");
            all[at] = Some(answers);
        }
        let late = || [failed(NetError::Timeout), failed(NetError::Timeout)];
        all.into_iter().map(|answers| answers.unwrap_or_else(late)).collect()
    }

    async fn ask<T>(&self, name: Name, kind: RecordType, anew: bool, pick: impl Fn(&RData) -> Option<T>) -> Timed<T> {
        if anew {
            self.resolver.clear_lookup_cache(name.clone(), kind);
        }
        let answer = self.resolver.lookup(name.clone(), kind).await;
        if records_of(&answer) > RAW_RECORDS_MAX {
            self.resolver.clear_lookup_cache(name, kind);
        }
        match answer {
            Ok(lookup) => found(&lookup, pick),
            Err(error) => failed(error),
        }
    }
}

fn resolver(settings: &DnsSettings) -> Result<TokioResolver, String> {
    let from_system = if settings.servers.is_empty() { TokioResolver::builder_tokio().ok() } else { None };
    let mut builder = from_system.unwrap_or_else(|| {
        // As the C library does without a resolver configuration: a name server of this machine.
        let local = [SocketAddr::from(([127, 0, 0, 1], DNS_PORT))];
        let servers = if settings.servers.is_empty() { &local[..] } else { &settings.servers };
        let servers = servers.iter().map(|address| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections.iter_mut().for_each(|connection| connection.port = address.port());
            server
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    });
    let options = builder.options_mut();
    options.timeout = settings.timeout;
    options.attempts = usize::from(settings.attempts) - 1;
    options.cache_size = RAW_ANSWERS_MAX.min(settings.cache_max.into());
    options.negative_max_ttl = Some(NEGATIVE_MAX);
    options.max_active_requests = QUERIES_PER_CONNECTION;
    options.preserve_intermediates = false;
    builder.build().map_err(|reason| reason.to_string())
}

/// Records that an answer has, in all of its sections.
fn records_of(answer: &Result<Lookup, NetError>) -> usize {
    match answer {
        Ok(lookup) => {
            let message = lookup.message();
            message.answers.len() + message.authorities.len() + message.additionals.len()
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let glue = none.ns.iter().flat_map(|servers| servers.iter()).map(|server| 1 + server.glue.len()).sum::<usize>();
            glue + none.authorities.as_ref().map_or(0, |authorities| authorities.len())
        }
        Err(_) => 0,
    }
}

fn found<T>(lookup: &Lookup, pick: impl Fn(&RData) -> Option<T>) -> Timed<T> {
    let records: Vec<T> = lookup.answers().iter().filter_map(|record| pick(&record.data)).collect();
    let holds = lookup.valid_until().saturating_duration_since(std::time::Instant::now()).clamp(HOLDS_MIN, HOLDS_MAX);
    match records.is_empty() {
        true => Timed { answer: DnsAnswer::NoData { sure: false }, holds: NEGATIVE_DEFAULT },
        false => Timed { answer: DnsAnswer::Found(records), holds },
    }
}

fn failed<T>(error: NetError) -> Timed<T> {
    let failed = |why: &str| Timed { answer: DnsAnswer::Failed(why.to_owned()), holds: HOLDS_MIN };
    let none = match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => none,
        NetError::Dns(DnsError::ResponseCode(code)) => return failed(code_name(code)),
        NetError::Timeout => return failed("timed out"),
        NetError::NoConnections => return failed("no name server answers"),
        other => return failed(&other.to_string()),
    };
    // RFC 2308 2: the SOA is the proof. An answer that only points to other servers is none.
    let sure = none.soa.is_some();
    let holds = none.negative_ttl.map_or(NEGATIVE_DEFAULT, |ttl| Duration::from_secs(ttl.into())).clamp(HOLDS_MIN, NEGATIVE_MAX);
    match none.response_code {
        ResponseCode::NXDomain => Timed { answer: DnsAnswer::NoName { sure }, holds },
        ResponseCode::NoError if !sure && none.ns.as_ref().is_some_and(|servers| !servers.is_empty()) => failed("lame answer (a referral)"),
        ResponseCode::NoError => Timed { answer: DnsAnswer::NoData { sure }, holds },
        code => failed(code_name(code)),
    }
}

fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        other => other.to_str(),
    }
}

fn exchange(data: &RData) -> Option<Exchange> {
    let RData::MX(record) = data else { return None };
    let host = if record.exchange.is_root() { String::new() } else { record.exchange.to_lowercase().to_ascii() };
    Some(Exchange { preference: record.preference, host: host.trim_end_matches('.').to_owned() })
}

/// A fully qualified name; IDN in UTF-8 becomes A-labels. `None` if no name can be so.
fn name_of(domain: &str) -> Option<Name> {
    let name = if domain.is_ascii() { Name::from_ascii(domain) } else { Name::from_utf8(domain) };
    let mut name = name.ok().filter(|name| !name.is_root())?;
    name.set_fqdn(true);
    Some(name)
}

/// What a question is about, for people.
pub fn about(question: &Question) -> String {
    match question {
        Question::Mx { domain, .. } => format!("MX of {domain}"),
        Question::Hosts(hosts) => format!("addresses of {}", hosts.first().map_or("", |host| &host.name)),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name server that says which hosts take the mail of a domain, 65 of them, and nothing of their addresses.
    fn server_without_addresses() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut query = [0; 1024];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                // The name, its end, kind and class.
                let end = 12 + query[12..length].iter().position(|&octet| octet == 0).unwrap() + 5;
                if query[end - 4..end - 2] != 15_u16.to_be_bytes() {
                    continue;
                }
                let mut answer = query[..2].to_vec();
                answer.extend([0x84, 0x80, 0, 1, 0, 65, 0, 0, 0, 0]);
                answer.extend_from_slice(&query[12..end]);
                for host in 0..65_u8 {
                    // MX in IN for a minute: preference, and a label before the name of the question; of one octet where there is one, since
                    // it is to be one datagram.
                    let letters = b"abcdefghijklmnopqrstuvwxyz0123456789";
                    let label = match letters.get(usize::from(host)) {
                        Some(letter) => vec![*letter],
                        None => vec![b'x', letters[usize::from(host) - letters.len()]],
                    };
                    answer.extend([0xC0, 12, 0, 15, 0, 1, 0, 0, 0, 60, 0, 5 + label.len() as u8, 0, host, label.len() as u8]);
                    answer.extend(label);
                    answer.extend([0xC0, 12]);
                }
                assert!(answer.len() <= 1232, "{}", answer.len());
                let _gone = socket.send_to(&answer, client);
            }
        });
        address
    }

    /// Where look-ups of addresses timed out, the time for the whole question ended with them, and the next one was about the same hosts again:
    /// the others were never asked for.
    #[tokio::test]
    async fn hosts_whose_addresses_are_not_said_in_time_have_had_their_turn() {
        let settings = DnsSettings {
            servers: vec![server_without_addresses()],
            timeout: Duration::from_millis(200),
            attempts: 1,
            ..DnsSettings::default()
        };
        let mut config = Config::default();
        config.dns = settings;
        let dns = Dns::new(&config, "here.test").unwrap();
        let question = Question::Mx { domain: "m.test".into(), port: 25, turn: 0 };
        let Resolution::Unanswered { reason, turns } = dns.resolve(question).await else { panic!("nobody said an address") };
        assert!(turns > 0 && reason.contains("timed out"), "{reason}, {turns} turns");
    }

    /// Where keepalived or HAProxy had set `net.ipv4.ip_nonlocal_bind`, every address in the world passed for ours, and all mail by MX
    /// failed for good as if it led back to us. So did what no host can have: a multicast address can be bound anywhere.
    #[test]
    fn who_listens_on_all_addresses_knows_those_of_this_machine() {
        for wildcard in ["0.0.0.0:25", "[::]:25"] {
            let own = OwnHost { names: Vec::new(), listeners: vec![wildcard.parse().unwrap()], addresses: Vec::new() };
            for (address, is_ours) in [
                ("127.0.0.1:25", true),
                ("127.1.2.3:25", true),
                ("[::1]:25", true),
                ("127.0.0.1:26", false),
                ("203.0.113.77:25", false),
                ("[2001:db8:5::77]:25", false),
                ("224.0.0.1:25", false),
                ("[ff02::1]:25", false),
                ("0.0.0.0:25", false),
                ("255.255.255.255:25", false),
            ] {
                assert_eq!(own.is_listener(address.parse().unwrap()), is_ours, "{address}");
            }
            // Whatever else this machine has.
            let source =
                UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("203.0.113.77:25").and_then(|()| socket.local_addr()));
            if let Ok(source) = source {
                assert!(own.is_listener(SocketAddr::new(source.ip(), 25)), "{source}");
            }
        }
        // What NAT leads here is none of this machine's, and has another port outside.
        let own = OwnHost {
            names: Vec::new(),
            listeners: vec!["10.0.0.2:2525".parse().unwrap()],
            addresses: vec!["203.0.113.77".parse().unwrap()],
        };
        let outside = "203.0.113.77:25".parse().unwrap();
        assert!(own.is_exchange(outside) && !own.is_listener(outside) && !own.is_exchange("203.0.113.78:25".parse().unwrap()));
        let own = OwnHost { names: Vec::new(), listeners: vec!["203.0.113.77:25".parse().unwrap()], addresses: Vec::new() };
        assert!(own.is_listener("203.0.113.77:25".parse().unwrap()) && !own.is_listener("127.0.0.1:25".parse().unwrap()));
    }
}
