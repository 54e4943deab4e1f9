//! Settings that are allowed and hardly meant: said by `ringpost check`, each with its key, its value and what to write instead.

use std::net::{IpAddr, SocketAddr};

use crate::destination_policy::ROUTE_LIMITS;
use crate::{
    Config, ConfigError, Domain, DomainPattern, Listener, Placeholder, Retry, SmarthostAddress, UnknownMailbox, Via, format_duration,
};

/// Ports of mail, as the last group of an IPv6 address without brackets may have been meant.
const PORTS: [u16; 6] = [24, 25, 465, 587, 2525, 2600];

impl Config {
    /// What can do harm or is never reached, with so many shards: said at each start, by `ringpost check`, and where it is pushed.
    pub fn cautions(&self, shards: u32) -> Vec<String> {
        let mut cautions = self.exceeded_by_shards(shards);
        cautions.extend(self.relay.open_to_strangers());
        cautions
    }

    /// What is hardly meant, in the order of the file's sections. Nothing of it keeps the engine from running.
    pub fn advice(&self) -> Vec<ConfigError> {
        let mut advice = Vec::new();
        self.retry("queue", &self.queue.retry, &mut advice);
        self.texts(&mut advice);
        self.limits("delivery", self.delivery.connections_max, self.delivery.policy, &mut advice);
        for (number, route) in (1..).zip(self.routes.as_slice()) {
            let section = format!("route[{number}]");
            if self.has_key(&section, "warn_after") || self.has_key(&section, "expiry") {
                self.retry(&section, &route.retry, &mut advice);
            }
            match &route.via {
                Via::Hold => self.limits_of_nothing(&section, &mut advice),
                _ => self.limits(&section, route.connections_max(&self.delivery), route.policy(&self.delivery), &mut advice),
            }
            match &route.via {
                Via::Maildir { path, unknown } => {
                    self.mailboxes_of_strangers(&section, number - 1, *unknown, &mut advice);
                    let is_of_many = !matches!(&route.domains[..], [DomainPattern::Exact(_)]);
                    let path = path.to_string_lossy();
                    if is_of_many && !path.contains("{domain}") {
                        let message = "has no {domain}, and the route is for several domains: b@one.example and b@two.example share one mailbox; \
                                       put {domain} into the path";
                        advice.push(self.error_at(&format!("{section}.path"), message));
                    }
                    if path.split('/').any(|name| name == "..") {
                        let message =
                            "leads through \"..\", which is another folder as soon as one before it is a link: write the path without";
                        advice.push(self.error_at(&format!("{section}.path"), message));
                    }
                }
                Via::Smarthost { hosts } => {
                    for host in hosts {
                        if let SmarthostAddress::Ip(address) = host.address {
                            self.host(&format!("{section}.hosts"), address, &mut advice);
                        }
                    }
                }
                Via::Lmtp { .. } | Via::Mx { .. } | Via::Discard | Via::Hold => {}
            }
        }
        advice
    }

    /// A domain without recipients takes mail for every local part that somebody invents, and each becomes a folder.
    fn mailboxes_of_strangers(&self, section: &str, route: usize, unknown: UnknownMailbox, advice: &mut Vec<ConfigError>) {
        let is_open = |domain: &&Domain| domain.recipients().is_none() && self.routes.index_of(domain.name()) == Some(route);
        if unknown == UnknownMailbox::Create
            && let Some(domain) = self.domains.iter().find(is_open)
        {
            let message = format!(
                "makes a mailbox for every local part of {} that anybody writes to: list its recipients in [[domain]], or write \
                 unknown_mailbox = \"refuse\" or \"defer\"",
                domain.name()
            );
            advice.push(self.error_at(&format!("{section}.via"), &message));
        }
    }

    fn has_key(&self, section: &str, key: &str) -> bool {
        self.error_at(&format!("{section}.{key}"), "").value.is_some()
    }

    fn retry(&self, section: &str, retry: &Retry, advice: &mut Vec<ConfigError>) {
        let Some(warn_after) = retry.warn_after.filter(|warn_after| *warn_after >= retry.expiry) else { return };
        let key = if self.has_key(section, "warn_after") { "warn_after" } else { "expiry" };
        let message = format!(
            "has no effect as a warning: mail expires after {} and its sender would be warned after {}; write a shorter warn_after, or \"off\"",
            format_duration(retry.expiry),
            format_duration(warn_after)
        );
        advice.push(self.error_at(&format!("{section}.{key}"), message));
    }

    /// A report whose text leaves out whom it is about says that only where programs read.
    fn texts(&self, advice: &mut Vec<ConfigError>) {
        let bounce = &self.bounce;
        let texts = [
            ("failed_text", &bounce.failed_text),
            ("delayed_text", &bounce.delayed_text),
            ("held_text", &bounce.held_text),
            ("success_text", &bounce.success_text),
        ];
        for (key, text) in texts {
            if self.has_key("bounce", key) && !text.names(Placeholder::Recipients) {
                let message = "has no {recipients}: who reads it is not told whom it is about, nor what was answered; put {recipients} on a \
                               line of its own";
                advice.push(self.error_at(&format!("bounce.{key}"), message));
            }
        }
    }

    /// Nothing is sent from a route that holds.
    fn limits_of_nothing(&self, section: &str, advice: &mut Vec<ConfigError>) {
        for key in ROUTE_LIMITS.into_iter().filter(|key| self.has_key(section, key)) {
            let message =
                "has no effect with via = \"hold\", which sends nothing: leave it out, or set it for the route that the mail goes by later";
            advice.push(self.error_at(&format!("{section}.{key}"), message));
        }
    }

    fn limits(&self, section: &str, connections_max: u32, policy: crate::DestinationPolicy, advice: &mut Vec<ConfigError>) {
        let bursts = [
            ("rate_burst", "rate", policy.rate.is_none() && policy.rate_burst > 1),
            ("cluster_rate_burst", "cluster_rate", policy.cluster_rate.is_none() && policy.cluster_rate_burst > 1),
        ];
        for (burst, rate, is_idle) in bursts {
            if is_idle && self.has_key(section, burst) {
                let message = format!("has no effect without a rate: set {rate}, for instance {rate} = \"100/min\", or leave it out");
                advice.push(self.error_at(&format!("{section}.{burst}"), message));
            }
        }
        let says = |key| self.has_key(section, key);
        if policy.pool.min_idle > connections_max && (says("min_idle") || says("connections_max")) {
            let key = if says("min_idle") { "min_idle" } else { "connections_max" };
            let message = format!(
                "cannot be: {} idle connections are to be kept and {connections_max} are allowed; lower min_idle or raise connections_max",
                policy.pool.min_idle
            );
            advice.push(self.error_at(&format!("{section}.{key}"), message));
        }
    }

    fn host(&self, key: &str, address: SocketAddr, advice: &mut Vec<ConfigError>) {
        if let IpAddr::V6(six) = address.ip() {
            let text = six.to_string();
            let last = text.rsplit(':').next().and_then(|last| last.parse().ok()).filter(|last| PORTS.contains(last));
            let has_brackets = self.error_at(key, "").value.is_none_or(|value| value.contains("\"["));
            if let (Some(port), Some(before), false) = (last, text.rsplit_once(':').map(|(before, _)| before), has_brackets) {
                let before = if before.ends_with(':') { format!("{before}:") } else { before.to_owned() };
                let message = format!("is read as port 25 of {text}; write \"[{text}]\" for that, or \"[{before}]:{port}\" for a port");
                advice.push(self.error_at(key, message));
            }
        }
        let is_ours = |listener: &Listener| {
            let own = listener.address;
            let is_here = own.ip() == address.ip() || own.ip().is_unspecified() && address.ip().is_loopback();
            own.port() == address.port() && is_here
        };
        if let Some(listener) = self.listeners.iter().find(|listener| is_ours(listener)) {
            let message =
                format!("has {address}, where this node itself listens ({}): mail would go round; name another host", listener.address);
            advice.push(self.error_at(key, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn advice(text: &str) -> Vec<String> {
        Config::parse(text, Path::new("r.toml")).unwrap().advice().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_hardly_meant_is_said_with_key_value_and_mend() {
        let route = |rest: &str| format!("[[route]]\ndomain = \"*\"\n{rest}\n");
        for (text, key, word) in [
            (route("via = \"maildir\"\npath = \"/m/{local}\""), "r.toml:4: route[1].path: \"/m/{local}\" ", "put {domain} into the path"),
            (route("via = \"maildir\"\npath = \"/m/../{domain}/{local}\""), "r.toml:4: route[1].path: ", "leads through \"..\""),
            (
                route("via = \"maildir\"\npath = \"/m/{domain}/{local}\"\n[[domain]]\nname = \"y.test\""),
                "r.toml:3: route[1].via: \"maildir\" ",
                "every local part of y.test",
            ),
            (route("via = \"smarthost\"\nhosts = [\"::1:25\"]"), "r.toml:4: route[1].hosts: ", "\"[::1]:25\" for a port"),
            (route("via = \"smarthost\"\nhosts = [\"2001:db8::5:587\"]"), "r.toml:4: route[1].hosts: ", "\"[2001:db8::5]:587\" for a port"),
            (
                route("via = \"smarthost\"\nhosts = [\"127.0.0.1:26\"]\n[[listener]]\naddress = \"0.0.0.0:26\""),
                "r.toml:4: route[1].hosts: ",
                "where this node itself listens (0.0.0.0:26)",
            ),
            ("[queue]\nexpiry = \"2h\"\n".into(), "r.toml:2: queue.expiry: \"2h\" ", "expires after 2h"),
            (route("via = \"mx\"\nwarn_after = \"6d\""), "r.toml:4: route[1].warn_after: \"6d\" ", "or \"off\""),
            (route("via = \"mx\"\nrate_burst = 5"), "r.toml:4: route[1].rate_burst: 5 ", "set rate, for instance"),
            ("[delivery]\ncluster_rate_burst = 5\n".into(), "r.toml:2: delivery.cluster_rate_burst: 5 ", "set cluster_rate"),
            (route("via = \"hold\"\nrate = \"5/s\""), "r.toml:4: route[1].rate: \"5/s\" ", "leave it out, or set it for the route"),
            (route("via = \"hold\"\nrate_burst = 5"), "r.toml:4: route[1].rate_burst: 5 ", "has no effect with via = \"hold\""),
            (
                "[bounce]\nfailed_text = \"gone {id}\"\n".into(),
                "r.toml:2: bounce.failed_text: \"gone {id}\" ",
                "put {recipients} on a line",
            ),
            ("[bounce]\nheld_text = \"held\"\n".into(), "r.toml:2: bounce.held_text: \"held\" ", "has no {recipients}"),
            (route("via = \"mx\"\nmin_idle = 4\nconnections_max = 2"), "r.toml:4: route[1].min_idle: 4 ", "raise connections_max"),
        ] {
            let said = advice(&text);
            assert_eq!(said.len(), 1, "{text}: {said:?}");
            assert!(said[0].starts_with(key) && said[0].contains(word), "{}", said[0]);
        }
    }

    #[test]
    fn what_is_meant_is_not_spoken_of() {
        assert_eq!(advice(crate::DEFAULT_TOML), [""; 0]);
        for text in [
            "[relay]\nnetworks = []\n[[route]]\ndomain = \"y.test\"\nvia = \"maildir\"\npath = \"/m/{local}\"\n",
            "[[route]]\ndomain = \"*\"\nvia = \"smarthost\"\nhosts = [\"[::1]:25\", \"[2001:db8::25]\", \"192.0.2.1\"]\n",
            "[delivery]\nrate = \"5/s\"\nrate_burst = 5\n[[route]]\ndomain = \"*\"\nvia = \"mx\"\nrate_burst = 9\n",
            "[queue]\nexpiry = \"2h\"\nwarn_after = \"off\"\n",
            "[bounce]\nfailed_text = \"gone: {recipients}\"\n[[route]]\ndomain = \"*\"\nvia = \"hold\"\npriority = 3\n",
            // Mailboxes of listed recipients, of those that are there already, and of somebody else's route.
            "[relay]\nnetworks = []\n[[route]]\ndomain = \"y.test\"\nvia = \"maildir\"\npath = \"/m/{local}\"\n[[domain]]\nname = \"y.test\"\nrecipients = [\"b\"]\n",
            "[relay]\nnetworks = []\n[[route]]\ndomain = \"y.test\"\nvia = \"maildir\"\npath = \"/m/{local}\"\nunknown_mailbox = \"refuse\"\n[[domain]]\nname = \"y.test\"\n",
            "[relay]\nnetworks = []\n[[route]]\ndomain = \"y.test\"\nvia = \"maildir\"\npath = \"/m/{local}\"\n[[route]]\ndomain = \"z.test\"\nvia = \"hold\"\n[[domain]]\nname = \"z.test\"\n",
        ] {
            assert_eq!(advice(text), [""; 0], "{text}");
        }
    }
}
