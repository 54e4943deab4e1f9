//! Where mail never goes because of an address alone: ranges that no host has, and ranges inside our network.
//!
//! IPv6 has several ways to carry an IPv4 address, and a translator or a tunnel on the way makes it that address again: each is judged as
//! what it carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What of an address says where mail may go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Range {
    Public,
    /// Of this host, this network or its operator.
    Private,
    /// Nobody can be there.
    NoHost,
}

/// Nobody can be there.
pub(crate) fn is_no_hosts(address: IpAddr) -> bool {
    range(address) == Range::NoHost
}

/// Why mail is never sent there, or not unless private addresses are allowed: whoever writes an MX record must not choose
/// which machine inside our network is spoken to.
pub(crate) fn unusable(address: IpAddr, allow_private: bool) -> Option<&'static str> {
    match range(address) {
        Range::NoHost => Some("no address of a host"),
        Range::Private if !allow_private => Some("a private address; dns.allow_private allows it"),
        Range::Private | Range::Public => None,
    }
}

fn range(address: IpAddr) -> Range {
    match address {
        IpAddr::V4(four) => range_of_four(four),
        IpAddr::V6(six) => range_of_six(six),
    }
}

/// RFC 6890 and what it lists.
fn range_of_four(four: Ipv4Addr) -> Range {
    match four.octets() {
        // 0.0.0.0/8, multicast, class E and with it the broadcast address.
        [0 | 224.., ..] => Range::NoHost,
        [10 | 127, ..] | [169, 254, ..] | [172, 16..32, ..] | [192, 168, ..] => Range::Private,
        // RFC 6598: shared by carriers. RFC 6890: protocol assignments. RFC 2544: benchmarks.
        [100, 64..128, ..] | [192, 0, 0, _] | [198, 18 | 19, ..] => Range::Private,
        _ => Range::Public,
    }
}

fn range_of_six(six: Ipv6Addr) -> Range {
    if six.is_unspecified() || six.is_multicast() {
        return Range::NoHost;
    }
    let four = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        range_of_four(Ipv4Addr::new(a, b, c, d))
    };
    match six.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Range::Private,
        // RFC 4291 2.5.5: compatible and mapped. RFC 2765: translated. RFC 6052: by a translator's well-known prefix.
        [0, 0, 0, 0, 0, 0 | 0xFFFF, high, low] | [0, 0, 0, 0, 0xFFFF, 0, high, low] | [0x64, 0xFF9B, 0, 0, 0, 0, high, low] => {
            four(high, low)
        }
        // RFC 8215: by a translator of this network, which decides where the address stands.
        [0x64, 0xFF9B, 1, ..] => Range::Private,
        // RFC 3056: 6to4.
        [0x2002, high, low, ..] => four(high, low),
        // RFC 4380: Teredo, by a server to a client whose address is inverted.
        [0x2001, 0, server_high, server_low, _, _, high, low] => four(server_high, server_low).max(four(!high, !low)),
        // Unique local, link-local, and site-local, which RFC 3879 took back.
        [0xFC00..0xFE00 | 0xFE80..0xFF00, ..] => Range::Private,
        // RFC 5214 6.1: ISATAP, behind any prefix; the bits u and g say nothing of where it leads.
        [_, _, _, _, flags, 0x5EFE, high, low] if flags & !0x0300 == 0 => four(high, low),
        _ => Range::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `64:ff9b::7f00:1` led to this host where a translator is in the way, and so did the other forms.
    #[test]
    fn each_form_of_an_address_is_judged_as_what_it_carries() {
        for (address, expected) in [
            ("192.0.2.1", Range::Public),
            ("100.63.255.255", Range::Public),
            ("100.128.0.0", Range::Public),
            ("172.15.255.255", Range::Public),
            ("172.32.0.0", Range::Public),
            ("192.0.1.0", Range::Public),
            ("198.17.255.255", Range::Public),
            ("198.20.0.0", Range::Public),
            ("223.255.255.255", Range::Public),
            ("127.0.0.1", Range::Private),
            ("10.1.2.3", Range::Private),
            ("172.16.0.1", Range::Private),
            ("172.31.255.255", Range::Private),
            ("192.168.0.1", Range::Private),
            ("169.254.169.254", Range::Private),
            ("100.64.0.1", Range::Private),
            ("100.127.255.255", Range::Private),
            ("192.0.0.8", Range::Private),
            ("198.18.0.1", Range::Private),
            ("198.19.255.255", Range::Private),
            ("0.0.0.0", Range::NoHost),
            ("0.1.2.3", Range::NoHost),
            ("224.0.0.1", Range::NoHost),
            ("240.0.0.1", Range::NoHost),
            ("255.255.255.255", Range::NoHost),
            ("2001:db8::1", Range::Public),
            ("2a00:1450::1", Range::Public),
            ("fbff::1", Range::Public),
            ("::1", Range::Private),
            ("fc00::1", Range::Private),
            ("fdff::1", Range::Private),
            ("fe80::1", Range::Private),
            ("fec0::1", Range::Private),
            ("::", Range::NoHost),
            ("ff02::1", Range::NoHost),
            ("::ffff:127.0.0.1", Range::Private),
            ("::ffff:192.0.2.1", Range::Public),
            ("::ffff:224.0.0.1", Range::NoHost),
            ("::127.0.0.1", Range::Private),
            ("::192.0.2.1", Range::Public),
            ("::0.0.0.2", Range::NoHost),
            ("::ffff:0:10.0.0.1", Range::Private),
            ("::ffff:0:192.0.2.1", Range::Public),
            ("64:ff9b::127.0.0.1", Range::Private),
            ("64:ff9b::169.254.169.254", Range::Private),
            ("64:ff9b::192.0.2.1", Range::Public),
            ("64:ff9b::0.0.0.0", Range::NoHost),
            ("64:ff9b:1::192.0.2.1", Range::Private),
            ("64:ff9b:1:ffff::", Range::Private),
            ("64:ff9b:2::1", Range::Public),
            ("2002:7f00:1::1", Range::Private),
            ("2002:c0a8:1::1", Range::Private),
            ("2002:c000:201::1", Range::Public),
            // The server 192.0.2.1; the client 127.0.0.1, and 192.0.2.45.
            ("2001:0:c000:201:0:0:80ff:fffe", Range::Private),
            ("2001:0:c000:201:0:0:3fff:fdd2", Range::Public),
            ("2001:0:7f00:1:0:0:3fff:fdd2", Range::Private),
            ("2001:1::1", Range::Public),
            ("2001:db8::5efe:127.0.0.1", Range::Private),
            ("2001:db8::200:5efe:10.1.2.3", Range::Private),
            ("2001:db8:1:2:300:5efe:169.254.169.254", Range::Private),
            ("2001:db8::5efe:192.0.2.1", Range::Public),
            ("2001:db8::200:5efe:224.0.0.1", Range::NoHost),
            ("2001:db8::400:5efe:127.0.0.1", Range::Public),
            ("fe80::5efe:192.0.2.1", Range::Private),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(range(address), expected, "{address}");
            assert_eq!(unusable(address, false).is_some(), expected != Range::Public, "{address}");
            assert_eq!(unusable(address, true).is_some(), expected == Range::NoHost, "{address}");
        }
    }
}
