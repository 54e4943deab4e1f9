//! The routes of the config as the queue of one shard knows them.

use std::{num::NonZeroU32, time::Duration};

use ringpost_config::{Config, SMARTHOSTS_MAX, Smarthost, SmarthostAddress, StoreAddress};
use ringpost_queue::{
    BreakerSettings, DestinationLimits, HOSTS_MAX, HostAddress, NamedHost, NextHop, Rate, ReportLimits, RetryPolicy, Route, RouteError,
    Routes, SharedRate, UnknownMailbox, Via,
};

use crate::{share::Share, shared_limits::apart};

/// Mailboxes that one attempt writes: each is a file that is open until the message is whole.
const MAILDIRS_AT_ONCE: u16 = 16;

const _: () = assert!(SMARTHOSTS_MAX <= HOSTS_MAX, "what the config allows is a route of the queue");

/// All routes, in the order of the config, with their limits for the whole node: the queue takes the part of a home.
pub(crate) fn routes_of(config: &Config) -> Vec<Route> {
    let mut routes = Vec::new();
    for route in config.routes.as_slice() {
        let via = match &route.via {
            ringpost_config::Via::Smarthost { hosts } => smarthost(hosts),
            ringpost_config::Via::Lmtp { hosts } => {
                Via::Lmtp { hosts: (0..).zip(hosts).map(|(number, store)| stored(number, store)).collect() }
            }
            ringpost_config::Via::Maildir { path, unknown } => Via::Maildir { path: path.clone(), unknown: unknown_mailbox(*unknown) },
            ringpost_config::Via::Mx { port } => Via::Mx { port: *port },
            ringpost_config::Via::Discard => Via::Discard,
            ringpost_config::Via::Hold => Via::Hold,
        };
        let policy = route.policy(&config.delivery);
        let connections_max = route.connections_max(&config.delivery).min(policy.pool.max_active);
        for pattern in route.names() {
            routes.push(Route {
                pattern,
                via: via.clone(),
                retry: RetryPolicy {
                    first_ms: millis(route.retry.base),
                    max_ms: millis(route.retry.cap),
                    jitter_percent: route.retry.jitter.percent(),
                    lifetime_ms: millis(route.retry.expiry),
                    warn_after_ms: route.retry.warn_after.map(millis),
                },
                limits: DestinationLimits {
                    connections_max,
                    window_initial: route.window_initial(&config.delivery).min(connections_max),
                    rate: policy.rate.map(|rate| Rate { messages: rate.messages, per_ms: millis(rate.per), burst: policy.rate_burst }),
                    shared_rate: policy.cluster_rate.map(|rate| SharedRate {
                        rate: Rate { messages: rate.messages, per_ms: millis(rate.per), burst: policy.cluster_rate_burst },
                        apart: apart(policy.cluster_rate_without_valkey),
                    }),
                    breaker: BreakerSettings {
                        max_requests: policy.breaker.max_requests,
                        interval_ms: millis(policy.breaker.interval),
                        timeout_ms: millis(policy.breaker.timeout),
                        timeout_max_ms: millis(route.dead_destination(&config.delivery)),
                        failure_percent: policy.breaker.failure_ratio.percent(),
                        minimum: policy.breaker.minimum,
                    },
                    throttle_pause_ms: millis(policy.throttle_pause),
                    recipients_max: if matches!(via, Via::Maildir { .. }) {
                        MAILDIRS_AT_ONCE
                    } else {
                        DestinationLimits::default().recipients_max
                    },
                },
            });
        }
    }
    routes
}

fn unknown_mailbox(word: ringpost_config::UnknownMailbox) -> UnknownMailbox {
    match word {
        ringpost_config::UnknownMailbox::Create => UnknownMailbox::Create,
        ringpost_config::UnknownMailbox::Defer => UnknownMailbox::Defer,
        ringpost_config::UnknownMailbox::Refuse => UnknownMailbox::Refuse,
    }
}

/// The routing table, as a shard looks routes up in it.
///
/// # Errors
/// What the config lets pass and the queue does not: more names of routes than it can number.
pub fn table(config: &Config) -> Result<Routes, RouteError> {
    Routes::new(routes_of(config))
}

/// How fast this shard may report; `None` when nobody is told anything.
pub(crate) fn report_limits(config: &Config, share: Share) -> Option<ReportLimits> {
    let divided = |limit: Option<u32>| NonZeroU32::new(share.of(limit?));
    config.bounce.enabled.then(|| ReportLimits {
        per_second: divided(config.bounce.reports_per_second),
        per_minute_and_sender: divided(config.bounce.reports_per_minute_and_sender),
    })
}

/// Without names there is nothing to ask DNS about.
fn smarthost(hosts: &[Smarthost]) -> Via {
    let of_address = |(number, host): (u8, &Smarthost)| match host.address {
        SmarthostAddress::Ip(address) => {
            Some(NextHop { preference: host.preference, weight: host.weight, host: number, ..NextHop::from(address) })
        }
        SmarthostAddress::Name { .. } => None,
    };
    match (0..).zip(hosts).map(of_address).collect() {
        Some(hosts) => Via::Smarthost { hosts },
        None => Via::Named { hosts: named_hosts(hosts) },
    }
}

/// The hosts of a route as DNS is asked about them.
fn named_hosts(hosts: &[Smarthost]) -> Vec<NamedHost> {
    let named = |Smarthost { address, preference, weight }: &Smarthost| {
        let (name, port) = match address {
            SmarthostAddress::Ip(address) => (address.ip().to_string(), address.port()),
            SmarthostAddress::Name { name, port } => (name.clone(), *port),
        };
        NamedHost { name, port, preference: *preference, weight: *weight }
    };
    hosts.iter().map(named).collect()
}

/// The first store that answers has the mail.
fn stored(number: u8, store: &StoreAddress) -> NextHop {
    let address = match store {
        StoreAddress::Tcp(address) => HostAddress::Tcp(*address),
        StoreAddress::Unix(path) => HostAddress::Unix(path.clone()),
    };
    NextHop { preference: number.into(), host: number, ..address.into() }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_route_has_limits_of_its_own_in_the_queue_too() {
        let text = "hostname = \"mx1.example.test\"\n[delivery]\nwindow_initial = 6\ndead_destination = \"2m\"\n\
            [[route]]\ndomain = \"a.test\"\nvia = \"mx\"\nwindow_initial = 9\ndead_destination = \"1h\"\n\
            [[route]]\ndomain = \"*\"\nvia = \"mx\"\nmax_active = 2\n";
        let config = Config::parse(text, Path::new("ringpost.toml")).unwrap();
        let limits = routes_of(&config).into_iter().map(|route| (route.limits.window_initial, route.limits.breaker.timeout_max_ms));
        assert_eq!(limits.collect::<Vec<_>>(), [(9, 3_600_000), (2, 120_000)]);
    }
}
