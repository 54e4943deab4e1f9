//! Which way mail for a domain goes.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::breaker::BreakerSettings;
use crate::quota::SharedRate;
use crate::rate::Rate;
use crate::retry::RetryPolicy;

/// Longest domain that is looked up, in bytes (RFC 5321 4.5.3.1.2); a longer one matches only `*`.
pub(crate) const DOMAIN_BYTES_MAX: usize = 255;

/// Hosts of one destination at most: of a smarthost route, or of what DNS says of a domain.
pub const HOSTS_MAX: usize = 32;

/// One line of the routing table.
#[derive(Clone, Debug)]
pub struct Route {
    /// `example.org` (that domain), `*.example.org` (every domain below it, not itself) or `*` (all that no other line matches).
    /// Case does not matter; 255 bytes at most.
    pub pattern: String,
    /// What is done with the mail.
    pub via: Via,
    /// Back-off and lifetime of this route's mail.
    pub retry: RetryPolicy,
    /// Limits of each destination that the route leads to.
    pub limits: DestinationLimits,
}

/// What a route does with mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// Hands it to one of these hosts, 1 to [`HOSTS_MAX`], of the lowest preference that answers: after a fail-over the first
    /// is tried again when its dead time is over.
    Smarthost {
        /// The next hops.
        hosts: Vec<NextHop>,
    },
    /// As smarthost, but with names, whose addresses DNS knows: they are looked up anew as they grow old. See
    /// [`named_hosts`](crate::named_hosts).
    Named {
        /// 1 to [`HOSTS_MAX`] names and addresses.
        hosts: Vec<NamedHost>,
    },
    /// To the hosts that DNS names for each domain (RFC 5321 5.1): each domain has a destination of its own, and those with
    /// the same MX set share a site.
    Mx {
        /// TCP port of all hosts, 25 but for tests.
        port: u16,
    },
    /// Gives it to one of these stores of mailboxes, likewise, by LMTP.
    Lmtp {
        /// The stores.
        hosts: Vec<NextHop>,
    },
    /// The driver writes it into maildirs.
    Maildir {
        /// Of each recipient's, with `{local}` and `{domain}` in it; the queue does not read it.
        path: PathBuf,
    },
    /// Counts as delivered and is dropped.
    Discard,
    /// Waits for as long as the configuration says so. A restart with another route sends it.
    Hold,
}

/// A next hop by name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NamedHost {
    /// A host name in lower case, or an IP address.
    pub name: String,
    /// TCP port.
    pub port: u16,
    /// As in [`NextHop`].
    pub preference: u32,
    /// As in [`NextHop`].
    pub weight: u16,
}

/// Where a connection goes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum HostAddress {
    /// Over TCP.
    Tcp(SocketAddr),
    /// To a stream socket of this machine.
    Unix(PathBuf),
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One host of a destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// For people, in the mail log too: `mx1.example.org[192.0.2.7]:25`, or the address alone where there is no name.
    pub name: String,
    /// What is connected to.
    pub address: HostAddress,
    /// Lower goes first, as in an MX record.
    pub preference: u32,
    /// Share of the connections among hosts of equal preference; 0 counts as 1.
    pub weight: u16,
    /// Number of the host in its route: addresses with the same one share its weight.
    pub host: u8,
}

impl From<HostAddress> for NextHop {
    /// A host without a name.
    fn from(address: HostAddress) -> Self {
        Self { name: address.to_string(), address, preference: 0, weight: 1, host: 0 }
    }
}

impl From<SocketAddr> for NextHop {
    fn from(address: SocketAddr) -> Self {
        HostAddress::Tcp(address).into()
    }
}

impl FromStr for NextHop {
    type Err = std::net::AddrParseError;

    /// `192.0.2.1:25`, `[2001:db8::1]:25` or `unix:/run/lmtp.sock`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(HostAddress::Unix(path.into()).into()),
            None => text.parse::<SocketAddr>().map(Self::from),
        }
    }
}

/// Limits per destination of one shard; the engine divides those of the configuration by the number of shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DestinationLimits {
    /// Most attempts at a time, so most connections.
    pub connections_max: u32,
    /// Attempts at a time to begin with, and after the destination was dead.
    pub window_initial: u32,
    /// Recipients of one transaction at most (RFC 5321 4.5.3.1.8: 100 are always allowed).
    pub recipients_max: u16,
    /// Messages per time; `None` is as fast as the window allows.
    pub rate: Option<Rate>,
    /// Messages per time over all nodes of the cluster, beside `rate`.
    pub shared_rate: Option<SharedRate>,
    /// When a host is taken to be dead, and when it is tried again.
    pub breaker: BreakerSettings,
    /// First pause of a destination that asks for less; doubles up to the breaker's longest time.
    pub throttle_pause_ms: u64,
}

impl Default for DestinationLimits {
    fn default() -> Self {
        Self {
            connections_max: 20,
            window_initial: 5,
            recipients_max: 100,
            rate: None,
            shared_rate: None,
            breaker: BreakerSettings::default(),
            throttle_pause_ms: 10_000,
        }
    }
}

/// Index of a route in the table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RouteId(pub u16);

/// The routing table: the most specific pattern wins (exact, then the longest `*.suffix`, then `*`).
#[derive(Clone, Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
    exact: HashMap<Box<[u8]>, RouteId>,
    below: HashMap<Box<[u8]>, RouteId>,
    all: Option<RouteId>,
}

/// The table is refused; the configuration names the pattern to the operator.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RouteError {
    /// Two routes have the same pattern, so one would never be used.
    #[error("domain {0:?} has two routes")]
    Twice(String),
    /// Neither a domain, nor `*.domain`, nor `*`.
    #[error("{0:?} is not a domain, \"*.domain\" or \"*\"")]
    Pattern(String),
    /// A route by smarthost or lmtp needs 1 to [`HOSTS_MAX`] hosts.
    #[error("route for {0:?} needs 1 to {HOSTS_MAX} hosts")]
    Hosts(String),
    /// More than 65,534 routes.
    #[error("too many routes")]
    TooMany,
    /// So many tables have followed each other while connections beyond their limits had work to end: nothing was changed.
    #[error("connections of earlier limits have not ended yet; try again when they have")]
    ChangingOver,
}

impl Routes {
    /// Builds the table.
    pub fn new(routes: Vec<Route>) -> Result<Self, RouteError> {
        let matched = 0..routes.len();
        Self::build(routes, matched)
    }

    /// The table that follows this one: routes with the same pattern keep their [`RouteId`], further ones come behind, and what is gone
    /// keeps its place and matches nothing.
    pub(crate) fn replaced(&self, new: Vec<Route>) -> Result<Self, RouteError> {
        let mut numbers: HashMap<String, usize> =
            self.routes.iter().enumerate().map(|(number, route)| (route.pattern.to_ascii_lowercase(), number)).collect();
        let (mut routes, mut matched) = (self.routes.clone(), Vec::with_capacity(new.len()));
        for route in new {
            let number = *numbers.entry(route.pattern.to_ascii_lowercase()).or_insert(routes.len());
            match routes.get_mut(number) {
                Some(old) => *old = route,
                None => routes.push(route),
            }
            matched.push(number);
        }
        Self::build(routes, matched)
    }

    /// `matched` are the routes that domains are compared with.
    fn build(routes: Vec<Route>, matched: impl IntoIterator<Item = usize>) -> Result<Self, RouteError> {
        let mut table = Self::default();
        if routes.len() >= usize::from(u16::MAX) {
            return Err(RouteError::TooMany);
        }
        for index in matched {
            let (id, route) = (RouteId(index as u16), &routes[index]);
            let hosts = match &route.via {
                Via::Smarthost { hosts } | Via::Lmtp { hosts } => Some(hosts.len()),
                Via::Named { hosts } => Some(hosts.len()),
                Via::Mx { .. } | Via::Maildir { .. } | Via::Discard | Via::Hold => None,
            };
            if hosts.is_some_and(|hosts| !(1..=HOSTS_MAX).contains(&hosts)) {
                return Err(RouteError::Hosts(route.pattern.clone()));
            }
            let pattern = route.pattern.to_ascii_lowercase();
            if pattern.len() > DOMAIN_BYTES_MAX {
                return Err(RouteError::Pattern(route.pattern.clone()));
            }
            let before = match (pattern.as_str(), pattern.strip_prefix("*.")) {
                ("*", _) => table.all.replace(id),
                (_, Some(suffix)) if is_domain(suffix) => table.below.insert(suffix.as_bytes().into(), id),
                (exact, None) if is_domain(exact) => table.exact.insert(exact.as_bytes().into(), id),
                _ => return Err(RouteError::Pattern(route.pattern.clone())),
            };
            if before.is_some() {
                return Err(RouteError::Twice(route.pattern.clone()));
            }
        }
        table.routes = routes;
        Ok(table)
    }

    /// Is it more than the place of a route that is gone?
    pub(crate) fn is_matched(&self, route: RouteId) -> bool {
        self.routes.get(usize::from(route.0)).is_some_and(|own| self.by_pattern(&own.pattern) == Some(route))
    }

    /// The route of a recipient's domain (the part after the last `@`, in any case), or none. Does not allocate.
    pub fn find(&self, domain: &[u8]) -> Option<RouteId> {
        let mut lower = [0; DOMAIN_BYTES_MAX];
        let domain = domain.strip_suffix(b".").unwrap_or(domain);
        let Some(lower) = lower.get_mut(..domain.len()) else { return self.all };
        lower.copy_from_slice(domain);
        lower.make_ascii_lowercase();
        if let Some(id) = self.exact.get(&*lower) {
            return Some(*id);
        }
        if !self.below.is_empty() {
            let mut rest = &*lower;
            while let Some(dot) = rest.iter().position(|&b| b == b'.') {
                rest = &rest[dot + 1..];
                if let Some(id) = self.below.get(rest) {
                    return Some(*id);
                }
            }
        }
        self.all
    }

    /// The route with this pattern, in any case; not what a domain of that name would match.
    pub fn by_pattern(&self, pattern: &str) -> Option<RouteId> {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_prefix("*.") {
            Some(suffix) => self.below.get(suffix.as_bytes()).copied(),
            None if pattern == "*" => self.all,
            None => self.exact.get(pattern.as_bytes()).copied(),
        }
    }

    /// All routes, by [`RouteId`].
    pub fn all(&self) -> &[Route] {
        &self.routes
    }
}

fn is_domain(text: &str) -> bool {
    !text.is_empty() && text.len() <= DOMAIN_BYTES_MAX && !text.contains('*') && text.bytes().all(|b| b > b' ' && b != b'@' && b != 0x7F)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(pattern: &str) -> Route {
        Route { pattern: pattern.into(), via: Via::Discard, retry: RetryPolicy::default(), limits: DestinationLimits::default() }
    }

    #[test]
    fn the_most_specific_pattern_wins_in_any_case() {
        let routes = Routes::new(["*", "*.a.test", "A.test", "*.b.a.test", "[192.0.2.1]"].map(route).into()).unwrap();
        let long = [b'x'; 400];
        for (domain, expected) in [
            (&b"other.test"[..], 0),
            (b"a.TEST", 2),
            (b"a.test.", 2),
            (b"x.a.test", 1),
            (b"y.x.A.test", 1),
            (b"b.a.test", 1),
            (b"c.B.a.test", 3),
            (b"xa.test", 0),
            (b"[192.0.2.1]", 4),
            (b"", 0),
            (&long, 0),
        ] {
            assert_eq!(routes.find(domain), Some(RouteId(expected)), "{}", String::from_utf8_lossy(domain));
        }
        for (pattern, expected) in [("*", Some(0)), ("*.a.TEST", Some(1)), ("a.test", Some(2)), ("x.a.test", None), ("*.x.a.test", None)] {
            assert_eq!(routes.by_pattern(pattern), expected.map(RouteId), "{pattern}");
        }
        assert_eq!(Routes::new(vec![route("a.test")]).unwrap().find(b"b.test"), None);
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused() {
        assert_eq!(Routes::new(vec![route("a.test"), route("A.TEST")]).unwrap_err(), RouteError::Twice("A.TEST".into()));
        for pattern in ["", "*a.test", "*.", "a b", "x@y", "a.*"] {
            assert_eq!(Routes::new(vec![route(pattern)]).unwrap_err(), RouteError::Pattern(pattern.into()));
        }
        let nowhere = Route { via: Via::Smarthost { hosts: vec![] }, ..route("*") };
        assert_eq!(Routes::new(vec![nowhere]).unwrap_err(), RouteError::Hosts("*".into()));
    }
}
