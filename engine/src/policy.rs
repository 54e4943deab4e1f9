//! Who may send to whom. Pure: the peer's address and a recipient in, a verdict out.
//!
//! Only the TCP peer's address counts (never `Received`, XCLIENT or a name), and only the domain right of the last `@`.

use std::net::IpAddr;

use ringpost_config::Config;
use ringpost_smtp::address::Path;

/// What the policy says of one recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Accept it.
    Accept,
    /// An own domain without such a mailbox: 550 5.1.1.
    NoSuchRecipient,
    /// Neither an own domain nor a peer that may relay: 550 5.7.1.
    RelayDenied,
}

/// May this peer send to any domain? An IPv4-mapped IPv6 address counts as the IPv4 address it is.
pub fn may_relay(config: &Config, peer: IpAddr) -> bool {
    config.relay.allows(peer.to_canonical())
}

/// Decides on one recipient. `relaying` is [`may_relay`] of the peer, asked once per session.
pub fn decide(config: &Config, relaying: bool, recipient: Path<'_>) -> Decision {
    // RFC 5321 4.5.1: a bare `Postmaster` is ours. It is one without own domains only: otherwise the session has put `smtp.postmaster` there.
    let Some(domain) = recipient.domain() else { return Decision::Accept };
    let local_part = recipient.local_part();
    match config.domains.get(domain) {
        Some(own) => {
            // A list may have it as it is written, too.
            let is_known = own.accepts(&recipient.local_meaning()) || local_part.starts_with('"') && own.accepts(local_part);
            let is_listed = is_known && own.recipients().is_some();
            // `user%ext@own`, `ext!user@own` and `"user@ext"@own` ask an own domain to pass mail on to another.
            if recipient.has_route_in_local_part() && !relaying && !is_listed {
                Decision::RelayDenied
            } else if is_known {
                Decision::Accept
            } else {
                Decision::NoSuchRecipient
            }
        }
        None if relaying => Decision::Accept,
        None => Decision::RelayDenied,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path as FilePath;

    use super::*;

    fn config() -> Config {
        let text = "[relay]\nnetworks = [\"10.0.0.0/8\"]\n[[domain]]\nname = \"y.test\"\nrecipients = [\"b\", \"ann other\", '\"a..b\"']\n[[domain]]\nname = \"all.test\"\n[[route]]\ndomain = \"*\"\nvia = \"hold\"\n";
        Config::parse(text, FilePath::new("test.toml")).unwrap()
    }

    #[test]
    fn strangers_reach_own_recipients_only() {
        let config = config();
        for (recipient, expected) in [
            ("b@y.test", Decision::Accept),
            ("B@y.test", Decision::Accept),
            ("postmaster@y.test", Decision::Accept),
            ("postmaster", Decision::Accept),
            ("\"Ann Other\"@y.test", Decision::Accept),
            ("\"a..b\"@y.test", Decision::Accept),
            ("\"ann\"\"other\"@y.test", Decision::NoSuchRecipient),
            ("c@y.test", Decision::NoSuchRecipient),
            ("anybody@all.test", Decision::Accept),
            ("user@ext.test", Decision::RelayDenied),
            ("user%ext.test@y.test", Decision::RelayDenied),
            ("user%ext.test@all.test", Decision::RelayDenied),
            ("ext.test!user@all.test", Decision::RelayDenied),
            ("\"user@ext.test\"@all.test", Decision::RelayDenied),
            ("b@sub.y.test", Decision::RelayDenied),
            ("b@[192.0.2.1]", Decision::RelayDenied),
        ] {
            assert_eq!(decide(&config, false, Path::new(recipient)), expected, "{recipient}");
        }
    }

    #[test]
    fn relay_networks_reach_everybody_but_no_unknown_recipient_of_ours() {
        let config = config();
        assert!(may_relay(&config, "10.1.2.3".parse().unwrap()));
        assert!(may_relay(&config, "::ffff:10.1.2.3".parse().unwrap()));
        assert!(!may_relay(&config, "11.1.2.3".parse().unwrap()));
        assert!(!may_relay(&config, "::10.1.2.3".parse().unwrap()));
        assert_eq!(decide(&config, true, Path::new("user@ext.test")), Decision::Accept);
        assert_eq!(decide(&config, true, Path::new("c@y.test")), Decision::NoSuchRecipient);
    }
}
