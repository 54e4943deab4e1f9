//! A way that mail goes: what is done with it, with which hosts, limits and retries.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::breaker::BreakerSettings;
use crate::quota::SharedRate;
use crate::rate::Rate;
use crate::retry::RetryPolicy;

/// Hosts of one destination at most: of a smarthost route, or of what DNS says of a domain.
pub const HOSTS_MAX: usize = 32;

/// One line of the routing table.
#[derive(Clone, Debug)]
pub struct Route {
    /// `example.org` (that domain), `*.example.org` (every domain below it, not itself) or `*` (all that no other line matches); for
    /// mail of some senders only with ` from ` and `news@example.org`, `@example.org`, `@*.example.org` or `<>` (the null
    /// reverse-path) behind it. Names the route to people and in records. Case does not matter; 255 bytes at most.
    pub pattern: String,
    /// What is done with the mail.
    pub via: Via,
    /// Back-off and lifetime of this route's mail.
    pub retry: RetryPolicy,
    /// Limits of each destination that the route leads to.
    pub limits: DestinationLimits,
}

/// What becomes of mail for a maildir that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum UnknownMailbox {
    /// It is made.
    #[default]
    Create,
    /// The mail waits for it.
    Defer,
    /// The mail fails.
    Refuse,
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
        /// What becomes of mail for one that is not there.
        unknown: UnknownMailbox,
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
// What each message asks for comes first, in one line of the cache where the destination has it.
#[repr(C)]
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
