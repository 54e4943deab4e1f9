//! The hosts of `via = "smarthost"`: addresses and names, one after the other or by weight.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use toml::de::DeValue;

use crate::name::parse_domain;
use crate::section::Section;
use crate::setting::{Setting, article};

/// Next hops of one route: as many as the queue knows of one destination, and one after the other is asked, so that more would only
/// delay the verdict.
pub const SMARTHOSTS_MAX: usize = 32;
/// The port of a host written without one (RFC 5321 4.5.4.2).
pub const SMTP_PORT: u16 = 25;
/// Largest weight of a host.
const WEIGHT_MAX: u16 = 1000;

/// A next hop of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smarthost {
    /// Where it listens.
    pub address: SmarthostAddress,
    /// Lower goes first: those of a higher number only while none of the lower ones can be tried.
    pub preference: u32,
    /// Share of the connections among hosts of the same preference, 1 to 1000.
    pub weight: u16,
}

/// Where a next hop listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SmarthostAddress {
    /// At this address.
    Ip(SocketAddr),
    /// At the addresses that DNS knows for a name (A and AAAA, never MX).
    Name {
        /// Lower case.
        name: String,
        /// TCP.
        port: u16,
    },
}

impl fmt::Display for SmarthostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SmarthostAddress::Ip(address) => address.fmt(f),
            SmarthostAddress::Name { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

impl FromStr for SmarthostAddress {
    type Err = String;

    /// An IP address or a host name, with or without a port.
    fn from_str(text: &str) -> Result<SmarthostAddress, String> {
        const FORMS: &str = "write for instance \"smart.example.net:587\", \"192.0.2.1:25\" or \"[2001:db8::1]:25\"";
        // Of what else has a colon the words are not about a port.
        if text.strip_prefix("unix:").is_some_and(|path| path.parse::<u16>().is_err()) {
            return Err(format!("names a socket, which via = \"lmtp\" takes and a smarthost does not: {FORMS}"));
        }
        if text.contains("://") {
            return Err(format!("is a URL: {FORMS}"));
        }
        let no_port = || match text.rsplit_once(':') {
            Some((_, port)) if !port.is_empty() => format!("has {port:?} as its port: it is 1 to 65535"),
            _ => "has no port: it is 1 to 65535".to_owned(),
        };
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let address = text.parse().ok().or_else(|| bare.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, SMTP_PORT)));
        if let Some(address) = address {
            return if address.port() == 0 { Err(no_port()) } else { Ok(SmarthostAddress::Ip(address)) };
        }
        let (name, port) = match text.rsplit_once(':') {
            None => (text, SMTP_PORT),
            Some((name, port)) => (name, port.parse().ok().filter(|port| *port > 0).ok_or_else(no_port)?),
        };
        // What ends in digits was to be an address (RFC 1123 2.1).
        let is_name = |name: &str| name.rsplit('.').next().is_some_and(|last| !last.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(inner) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'))
            && parse_domain(inner).is_ok()
            && is_name(inner)
        {
            return Err("has a name in brackets: write it without them; names of smarthosts are never looked up as MX".to_owned());
        }
        match parse_domain(name) {
            Ok(name) if is_name(&name) => Ok(SmarthostAddress::Name { name, port }),
            _ => Err(format!("is neither an address nor a host name: {FORMS}")),
        }
    }
}

impl FromStr for Smarthost {
    type Err = String;

    /// The only host of a route.
    fn from_str(text: &str) -> Result<Smarthost, String> {
        Ok(Smarthost { address: text.parse()?, preference: 0, weight: 1 })
    }
}

/// An element of `hosts` as it is written.
pub(crate) struct WrittenHost {
    address: SmarthostAddress,
    weight: Option<Weight>,
    is_backup: bool,
}

struct Weight(u16);

impl Setting for Weight {
    fn read(value: &DeValue<'_>) -> Result<Weight, String> {
        let allowed =
            format!("a weight is 1 to {WEIGHT_MAX}, and backup = true is for a host that gets mail only while the others are down");
        let integer = value.as_integer().ok_or_else(|| format!("is {}, not a whole number: {allowed}", article(value)))?;
        let number = u16::from_str_radix(integer.as_str(), integer.radix()).ok();
        number.filter(|weight| (1..=WEIGHT_MAX).contains(weight)).map(Weight).ok_or_else(|| format!("is out of bounds: {allowed}"))
    }
}

/// `hosts` as a list of strings and of tables with `host`, `weight` and `backup`; None when it is absent.
pub(crate) fn read_hosts(section: &mut Section<'_, '_>) -> Option<Vec<WrittenHost>> {
    let from_text = |text: &str| Ok(WrittenHost { address: text.parse()?, weight: None, is_backup: false });
    section.list_or_tables("hosts", from_text, |mut table| {
        if !table.has("host") {
            table.refuse("host", "is missing: write for instance { host = \"smart.example.net:587\", weight = 3 }");
        }
        let text: Option<String> = table.optional("host");
        let address = text.and_then(|text| match text.parse() {
            Ok(address) => Some(address),
            Err(message) => {
                table.refuse("host", message);
                None
            }
        });
        // A wrong one was refused, and is not missing besides.
        let weight = table.optional("weight").or_else(|| table.has("weight").then_some(Weight(1)));
        let is_backup = table.read("backup", false);
        if is_backup && table.has("weight") {
            table.refuse("weight", "is not used by a backup: backups are tried one after the other, in the order of the list");
        }
        table.finish();
        Some(WrittenHost { address: address?, weight, is_backup })
    })
}

/// What the list means. Without weights one host after the other is tried; with them, they share the connections. Backups stand behind.
pub(crate) fn smarthosts(section: &Section<'_, '_>, written: Option<Vec<WrittenHost>>) -> Option<Vec<Smarthost>> {
    let Some(written) = written else {
        section.refuse("hosts", "is missing: via = \"smarthost\" needs hosts = [\"smart.example.net:587\"] or [\"192.0.2.1:25\"]");
        return None;
    };
    if section.has_empty_list("hosts") {
        section.refuse("hosts", "names no host: write for instance [\"smart.example.net:587\"]");
    }
    if written.len() > SMARTHOSTS_MAX {
        section.refuse("hosts", format!("has more than {SMARTHOSTS_MAX} hosts"));
    }
    for (index, host) in written.iter().enumerate() {
        if written[..index].iter().any(|other| other.address == host.address) {
            section.refuse("hosts", format!("names {} twice", host.address));
        }
    }
    if !written.is_empty() && written.iter().all(|host| host.is_backup) {
        section.refuse("hosts", "has nothing but backups: at least one host is none");
    }
    let by_weight = written.iter().any(|host| host.weight.is_some());
    if let Some(host) = written.iter().find(|host| by_weight && host.weight.is_none() && !host.is_backup) {
        let message = format!(
            "gives {} no weight, but others have one: write {{ host = \"{}\", weight = 1 }} for its share, or backup = true",
            host.address, host.address
        );
        section.refuse("hosts", message);
    }
    let (backups, others): (Vec<_>, Vec<_>) = written.into_iter().partition(|host| host.is_backup);
    let mut hosts = Vec::with_capacity(backups.len() + others.len());
    for (place, host) in (0..).zip(others.into_iter().chain(backups)) {
        let preference = if by_weight && !host.is_backup { 0 } else { place };
        hosts.push(Smarthost { address: host.address, preference, weight: host.weight.map_or(1, |weight| weight.0) });
    }
    Some(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_names_with_a_port_of_25_by_default() {
        let cases = [
            ("127.0.0.1:2600", "127.0.0.1:2600"),
            ("192.0.2.1", "192.0.2.1:25"),
            ("[::1]:26", "[::1]:26"),
            ("[::1]", "[::1]:25"),
            ("::1", "[::1]:25"),
            ("Smart.Example.NET:587", "smart.example.net:587"),
            ("smart.example.net", "smart.example.net:25"),
            ("localhost:2600", "localhost:2600"),
            ("unix:25", "unix:25"),
            ("4.mail.example", "4.mail.example:25"),
            ("xn--bcher-kva.example:26", "xn--bcher-kva.example:26"),
        ];
        for (text, shown) in cases {
            assert_eq!(text.parse().map(|host: SmarthostAddress| host.to_string()), Ok(shown.to_owned()), "{text}");
        }
        // Each of these was said to have no port.
        let said = [
            ("127.0.0.1:0", "has \"0\" as its port: it is 1 to 65535"),
            ("smart.example:0", "has \"0\" as its port"),
            ("smart.example:65536", "has \"65536\" as its port"),
            ("1.2.3.4:99999", "has \"99999\" as its port"),
            ("smart.example:", "has no port: it is 1 to 65535"),
            ("smart.example:x", "has \"x\" as its port"),
            ("unix:/run/x", "names a socket, which via = \"lmtp\" takes"),
            ("smtp://smart.example", "is a URL: write for instance"),
        ];
        for (text, words) in said {
            assert!(text.parse::<SmarthostAddress>().unwrap_err().contains(words), "{text}");
        }
        for text in ["[smart.example]", "[smart.example]:587"] {
            assert!(text.parse::<SmarthostAddress>().unwrap_err().contains("without them"), "{text}");
        }
        for text in ["", ":25", "[::1", "a b", "192.0.2.256", "192.0.2", "a..b", "-a.example", "*.example", "[192.0.2.256]:25", "a@b"] {
            assert!(text.parse::<SmarthostAddress>().unwrap_err().contains("neither an address nor a host name"), "{text}");
        }
    }
}
