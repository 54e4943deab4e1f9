//! Networks of peers, and who may relay.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::section::Section;

/// An IPv4 or IPv6 network in CIDR notation, `192.0.2.0/24` or `2001:db8::/32`; without a length a single address.
///
/// An IPv4-mapped IPv6 address (`::ffff:192.0.2.1`, as a dual-stack listener reports it) counts as the IPv4 address it carries,
/// in the network and in the address asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    first: IpAddr,
    prefix_len: u8,
}

impl Network {
    /// Whether `address` lies in this network. An IPv4 network holds no IPv6 address and the other way round.
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.prefix_len) == Some(self.first)
    }

    /// The first address, in canonical form.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The bits that are fixed, 0 to 32 (IPv4) or 128 (IPv6).
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }
}

/// The first address of the network around `address`; None when the length is beyond the family's.
fn masked(address: IpAddr, prefix_len: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => {
            let host_bits = 32u32.checked_sub(u32::from(prefix_len))?;
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            Some(IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask)))
        }
        IpAddr::V6(v6) => {
            let host_bits = 128u32.checked_sub(u32::from(prefix_len))?;
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            Some(IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask)))
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let written: IpAddr =
            address.parse().map_err(|_| "is not a network: write for instance \"192.0.2.0/24\" or \"2001:db8::/32\"".to_owned())?;
        let bits = if written.is_ipv4() { 32u8 } else { 128 };
        let digits = length.map(|length| Some(length).filter(|length| length.bytes().all(|byte| byte.is_ascii_digit())));
        let written_len = match digits {
            None => Some(bits),
            Some(length) => length.and_then(|length| length.parse().ok()).filter(|length| *length <= bits),
        };
        let written_len = written_len.ok_or_else(|| format!("is not a network: the prefix length is 0 to {bits}"))?;

        let address = written.to_canonical();
        let is_mapped = address.is_ipv4() && written.is_ipv6();
        let prefix_len = if is_mapped { written_len.checked_sub(96) } else { Some(written_len) };
        // ::ffff:0:0/95 and shorter reach beyond the mapped addresses; as a set of IPv4 and IPv6 it has no one meaning.
        let prefix_len = prefix_len.ok_or("is not a network: an IPv4-mapped one has a prefix length of 96 to 128")?;
        let first = masked(address, prefix_len).expect("the length was checked against the family");
        if first != address {
            return Err(format!("is not a network: bits are set beyond the prefix; write \"{first}/{prefix_len}\""));
        }
        Ok(Network { first, prefix_len })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_len)
    }
}

/// `[relay]`: who may send to every domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Peers that may relay; default this machine. They are not subject to the limit of sessions per address.
    pub networks: Vec<Network>,
}

impl Relay {
    /// Whether a peer with this address may relay.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }

    /// A sentence for each network so wide that strangers are in it: anyone could send through this node.
    pub fn open_to_strangers(&self) -> Vec<String> {
        // Nobody owns an IPv4 network wider than /8; the widest IPv6 network of one owner is fc00::/7, the private addresses.
        let is_too_wide = |network: &&Network| network.prefix_len < if network.first.is_ipv4() { 8 } else { 7 };
        let sentence = |network: &Network| {
            format!(
                "relay.networks has \"{network}\": strangers are in it and may send to anywhere through this node; list your own networks only"
            )
        };
        self.networks.iter().filter(is_too_wide).map(sentence).collect()
    }

    pub(crate) fn read(mut section: Section<'_, '_>) -> Relay {
        let networks = section.list("networks", str::parse).unwrap_or_else(|| Relay::default().networks);
        section.finish();
        Relay { networks }
    }
}

impl Default for Relay {
    fn default() -> Relay {
        let loopback_v4 = Network { first: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix_len: 8 };
        let loopback_v6 = Network { first: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix_len: 128 };
        Relay { networks: vec![loopback_v4, loopback_v6] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap_or_else(|error| panic!("{text} {error}"))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_holds_what_shares_its_prefix() {
        let cases = [
            ("127.0.0.0/8", "127.255.0.1", true),
            ("127.0.0.0/8", "128.0.0.0", false),
            ("192.0.2.128/25", "192.0.2.127", false),
            ("192.0.2.128/25", "192.0.2.128", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7/32", "192.0.2.6", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.9", false),
            ("::1/128", "::1", true),
            ("::1/128", "::2", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ];
        for (text, peer, is_inside) in cases {
            assert_eq!(network(text).contains(address(peer)), is_inside, "{text} {peer}");
        }
    }

    #[test]
    fn a_mapped_address_counts_as_the_ipv4_address_it_carries() {
        assert!(network("127.0.0.0/8").contains(address("::ffff:127.0.0.1")));
        assert!(!network("::/0").contains(address("::ffff:127.0.0.1")));
        assert_eq!(network("::ffff:192.0.2.0/120"), network("192.0.2.0/24"));
        assert!("::ffff:0.0.0.0/95".parse::<Network>().is_err());
    }

    #[test]
    fn a_wrong_network_says_what_is_wrong() {
        let cases = [
            ("10.0.0.0/33", "the prefix length is 0 to 32"),
            ("2001:db8::/129", "the prefix length is 0 to 128"),
            ("10.0.0.0/", "the prefix length is 0 to 32"),
            ("10.0.0.0/+8", "the prefix length is 0 to 32"),
            ("10.0.0.1/8", "write \"10.0.0.0/8\""),
            ("10.0.0/8", "write for instance"),
            ("mx.example", "write for instance"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.contains(expected), "{text} {error}");
        }
    }

    #[test]
    fn a_network_with_strangers_in_it_is_named() {
        let relay = |texts: &[&str]| Relay { networks: texts.iter().map(|text| network(text)).collect() };
        for text in ["0.0.0.0/0", "128.0.0.0/1", "::/0", "2000::/3"] {
            let sentences = relay(&["127.0.0.0/8", text]).open_to_strangers();
            assert!(sentences.len() == 1 && sentences[0].contains(text), "{sentences:?}");
        }
        assert!(relay(&["127.0.0.0/8", "10.0.0.0/8", "::1/128", "fc00::/7", "2001:db8::/32"]).open_to_strangers().is_empty());
    }

    #[test]
    fn random_prefixes_agree_with_a_bit_by_bit_comparison() {
        let seed = 0x5eed_0001u64;
        println!("seed {seed:#x}");
        let mut state = seed;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        for _ in 0..10_000 {
            let prefix_len = (random() % 33) as u8;
            let base = random();
            let peer = base ^ (random() >> (random() % 32));
            let IpAddr::V4(first) = masked(IpAddr::V4(Ipv4Addr::from_bits(base)), prefix_len).unwrap() else { unreachable!() };
            let network = network(&format!("{first}/{prefix_len}"));
            let is_inside = (0..prefix_len).all(|bit| (base >> (31 - bit)) & 1 == (peer >> (31 - bit)) & 1);
            assert_eq!(network.contains(IpAddr::V4(Ipv4Addr::from_bits(peer))), is_inside, "{network} {peer:#x}");
        }
    }
}
