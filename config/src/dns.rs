//! `[dns]`: who is asked where mail goes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::name::parse_domain;
use crate::section::Section;

/// Name servers that can be named.
const SERVERS_MAX: usize = 16;
/// Names and addresses of this host that can be named.
const OWN_HOSTS_MAX: usize = 64;
/// The port of a name server written without one.
const DNS_PORT: u16 = 53;

/// `[dns]`: for `via = "mx"`, and for smarthosts with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Name servers; empty: those of the system (`/etc/resolv.conf`).
    pub servers: Vec<SocketAddr>,
    /// How long one query waits for its answer.
    pub timeout: Duration,
    /// How often a query is sent, at least once.
    pub attempts: u8,
    /// Answers kept until their TTL ends.
    pub cache_max: u32,
    /// May MX records lead to loopback and private addresses?
    pub allow_private: bool,
    /// Names, in lower case, under which other hosts reach this one beside its hostname.
    pub own_names: Vec<String>,
    /// Addresses that lead to this host and are not this machine's: the public one of a NAT.
    pub own_addresses: Vec<IpAddr>,
}

impl Dns {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Dns {
        let default = Dns::default();
        let servers = section.list("servers", parse_server).unwrap_or_default();
        if servers.len() > SERVERS_MAX {
            section.refuse("servers", format!("has more than {SERVERS_MAX} name servers"));
        }
        let (mut own_names, mut own_addresses) = (Vec::new(), Vec::new());
        for own in section.list("own_hosts", OwnHost::read).unwrap_or_default() {
            match own {
                OwnHost::Name(name) => own_names.push(name),
                OwnHost::Address(address) => own_addresses.push(address),
            }
        }
        if own_names.len() + own_addresses.len() > OWN_HOSTS_MAX {
            section.refuse("own_hosts", format!("has more than {OWN_HOSTS_MAX} names and addresses"));
        }
        let dns = Dns {
            servers,
            timeout: section.within("timeout", default.timeout, Duration::from_millis(100)..=Duration::from_secs(60)),
            attempts: u8::try_from(section.within("attempts", u32::from(default.attempts), 1..=10)).unwrap_or(default.attempts),
            cache_max: section.within("cache_max", default.cache_max, 100..=1_000_000),
            allow_private: section.read("allow_private", default.allow_private),
            own_names,
            own_addresses,
        };
        section.finish();
        dns
    }
}

impl Default for Dns {
    fn default() -> Dns {
        Dns {
            servers: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            cache_max: 10_000,
            allow_private: false,
            own_names: Vec::new(),
            own_addresses: Vec::new(),
        }
    }
}

enum OwnHost {
    Name(String),
    Address(IpAddr),
}

impl OwnHost {
    fn read(text: &str) -> Result<OwnHost, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(OwnHost::Address(address));
        }
        let name = parse_domain(text).map(OwnHost::Name);
        name.map_err(|_| "is neither a host's name nor an address: write for instance \"mx2.example.org\" or \"203.0.113.25\"".to_owned())
    }
}

/// An IP address with or without a port.
fn parse_server(text: &str) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let parsed = text.parse().ok().or_else(|| bare.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, DNS_PORT)));
    match parsed {
        Some(server) if server.port() == 0 => Err("has no port: it is 1 to 65535".to_owned()),
        Some(server) => Ok(server),
        None => Err("is not an address: write for instance \"192.0.2.53\" or \"127.0.0.1:5353\"".to_owned()),
    }
}
