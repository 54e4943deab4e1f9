//! What holds for each destination: said in `[delivery]`, and for one route where it says otherwise.

use std::time::Duration;

use toml::de::DeValue;

use crate::section::Section;
use crate::setting::{Setting, text};
use crate::{Percent, Rate, WithoutValkey};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Connections that can be kept or allowed for one destination.
pub(crate) const CONNECTIONS_MAX: u32 = 10_000;
/// Messages that can go at once.
const BURST_MAX: u32 = 100_000;

/// How one destination is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationPolicy {
    /// Messages per time; None: as fast as its connections allow.
    pub rate: Option<Rate>,
    /// Messages that may go at once after a pause, at least 1.
    pub rate_burst: u32,
    /// Messages per time over all nodes of the cluster, beside `rate`; None: no such limit.
    pub cluster_rate: Option<Rate>,
    /// Messages that may go at once after a pause, over all nodes, at least 1.
    pub cluster_rate_burst: u32,
    /// What of `cluster_rate` holds while Valkey is away.
    pub cluster_rate_without_valkey: WithoutValkey,
    /// First pause of a destination that says "too much"; doubles up to `delivery.dead_destination`.
    pub throttle_pause: Duration,
    /// When its hosts are left alone.
    pub breaker: Breaker,
    /// How its connections are kept.
    pub pool: Pool,
}

/// When a host is left alone, and when it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Probes of a host that was left alone: so many at a time, and so many must succeed.
    pub max_requests: u32,
    /// Attempts are counted for so long.
    pub interval: Duration,
    /// First time a host is left alone; doubles up to `delivery.dead_destination`.
    pub timeout: Duration,
    /// Share of attempts that broke off, from which the host is left alone.
    pub failure_ratio: Percent,
    /// Attempts below which the share says nothing.
    pub minimum: u32,
}

/// How connections are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Idle connections that stay whatever their idleness, and are made when there are fewer.
    pub min_idle: u32,
    /// Idle connections; one more is closed.
    pub max_idle: u32,
    /// Connections, idle or not; never more than `connections_max`.
    pub max_active: u32,
    /// Age at which a connection is not used again.
    pub max_lifetime: Duration,
    /// How long a connection without work is kept.
    pub idle_timeout: Duration,
    /// How long an attempt waits for a connection before it goes back to the queue.
    pub wait_timeout: Duration,
    /// Test a connection before its next message, when it was idle for `probe_after`.
    pub test_on_borrow: bool,
    /// Test a connection when it becomes idle.
    pub test_on_return: bool,
    /// Test idle connections every `test_interval`.
    pub test_while_idle: bool,
    /// Idleness after which a connection is tested before it is used again.
    pub probe_after: Duration,
    /// Time between tests of an idle connection.
    pub test_interval: Duration,
}

impl Default for DestinationPolicy {
    fn default() -> DestinationPolicy {
        DestinationPolicy {
            rate: None,
            rate_burst: 1,
            cluster_rate: None,
            cluster_rate_burst: 1,
            cluster_rate_without_valkey: WithoutValkey::Share,
            throttle_pause: SECOND * 10,
            breaker: Breaker::default(),
            pool: Pool::default(),
        }
    }
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker { max_requests: 1, interval: SECOND * 60, timeout: SECOND, failure_ratio: Percent::new(60), minimum: 10 }
    }
}

impl Default for Pool {
    fn default() -> Pool {
        Pool {
            min_idle: 0,
            max_idle: 50,
            max_active: 200,
            max_lifetime: SECOND * 300,
            idle_timeout: SECOND * 5,
            wait_timeout: SECOND * 30,
            test_on_borrow: true,
            test_on_return: false,
            test_while_idle: true,
            probe_after: SECOND,
            test_interval: SECOND * 30,
        }
    }
}

/// What `[delivery]` or a route says; None: as in the defaults, or as in `[delivery]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyOverrides {
    rate: Option<RateOrOff>,
    rate_burst: Option<u32>,
    cluster_rate: Option<RateOrOff>,
    cluster_rate_burst: Option<u32>,
    cluster_rate_without_valkey: Option<WithoutValkey>,
    throttle_pause: Option<Duration>,
    breaker_max_requests: Option<u32>,
    breaker_interval: Option<Duration>,
    breaker_timeout: Option<Duration>,
    breaker_failure_ratio: Option<Percent>,
    breaker_minimum: Option<u32>,
    min_idle: Option<u32>,
    max_idle: Option<u32>,
    max_active: Option<u32>,
    max_lifetime: Option<Duration>,
    idle_timeout: Option<Duration>,
    wait_timeout: Option<Duration>,
    test_on_borrow: Option<bool>,
    test_on_return: Option<bool>,
    test_while_idle: Option<bool>,
    probe_after: Option<Duration>,
    test_interval: Option<Duration>,
}

/// Keys of a route that say how, and how fast, its mail is sent: those of [`PolicyOverrides`], and what else it takes over from `[delivery]`.
pub(crate) const ROUTE_LIMITS: [&str; 26] = [
    "connections_max",
    "window_initial",
    "dead_destination",
    "messages_per_connection",
    "rate",
    "rate_burst",
    "cluster_rate",
    "cluster_rate_burst",
    "cluster_rate_without_valkey",
    "throttle_pause",
    "breaker_max_requests",
    "breaker_interval",
    "breaker_timeout",
    "breaker_failure_ratio",
    "breaker_minimum",
    "min_idle",
    "max_idle",
    "max_active",
    "max_lifetime",
    "idle_timeout",
    "wait_timeout",
    "test_on_borrow",
    "test_on_return",
    "test_while_idle",
    "probe_after",
    "test_interval",
];

impl PolicyOverrides {
    /// The keys are the same in `[delivery]` and in a `[[route]]`.
    pub(crate) fn read(section: &mut Section<'_, '_>) -> PolicyOverrides {
        PolicyOverrides {
            rate: section.optional("rate"),
            rate_burst: section.optional_within("rate_burst", 1..=BURST_MAX),
            cluster_rate: section.optional("cluster_rate"),
            cluster_rate_burst: section.optional_within("cluster_rate_burst", 1..=BURST_MAX),
            cluster_rate_without_valkey: section.optional("cluster_rate_without_valkey"),
            throttle_pause: section.optional_within("throttle_pause", SECOND..=HOUR),
            breaker_max_requests: section.optional_within("breaker_max_requests", 1..=100),
            breaker_interval: section.optional_within("breaker_interval", SECOND..=HOUR),
            breaker_timeout: section.optional_within("breaker_timeout", Duration::from_millis(100)..=HOUR),
            breaker_failure_ratio: section.optional_within("breaker_failure_ratio", Percent::new(1)..=Percent::new(100)),
            breaker_minimum: section.optional_within("breaker_minimum", 1..=1_000_000),
            min_idle: section.optional_within("min_idle", 0..=CONNECTIONS_MAX),
            max_idle: section.optional_within("max_idle", 0..=CONNECTIONS_MAX),
            max_active: section.optional_within("max_active", 1..=CONNECTIONS_MAX),
            max_lifetime: section.optional_within("max_lifetime", SECOND..=HOUR * 24),
            idle_timeout: section.optional_within("idle_timeout", Duration::ZERO..=HOUR),
            wait_timeout: section.optional_within("wait_timeout", SECOND..=HOUR),
            test_on_borrow: section.optional("test_on_borrow"),
            test_on_return: section.optional("test_on_return"),
            test_while_idle: section.optional("test_while_idle"),
            probe_after: section.optional_within("probe_after", Duration::ZERO..=HOUR),
            test_interval: section.optional_within("test_interval", SECOND..=HOUR),
        }
    }

    pub(crate) fn over(&self, policy: DestinationPolicy) -> DestinationPolicy {
        let DestinationPolicy { breaker, pool, .. } = policy;
        DestinationPolicy {
            rate: self.rate.map_or(policy.rate, |RateOrOff(rate)| rate),
            rate_burst: self.rate_burst.unwrap_or(policy.rate_burst),
            cluster_rate: self.cluster_rate.map_or(policy.cluster_rate, |RateOrOff(rate)| rate),
            cluster_rate_burst: self.cluster_rate_burst.unwrap_or(policy.cluster_rate_burst),
            cluster_rate_without_valkey: self.cluster_rate_without_valkey.unwrap_or(policy.cluster_rate_without_valkey),
            throttle_pause: self.throttle_pause.unwrap_or(policy.throttle_pause),
            breaker: Breaker {
                max_requests: self.breaker_max_requests.unwrap_or(breaker.max_requests),
                interval: self.breaker_interval.unwrap_or(breaker.interval),
                timeout: self.breaker_timeout.unwrap_or(breaker.timeout),
                failure_ratio: self.breaker_failure_ratio.unwrap_or(breaker.failure_ratio),
                minimum: self.breaker_minimum.unwrap_or(breaker.minimum),
            },
            pool: Pool {
                min_idle: self.min_idle.unwrap_or(pool.min_idle),
                max_idle: self.max_idle.unwrap_or(pool.max_idle),
                max_active: self.max_active.unwrap_or(pool.max_active),
                max_lifetime: self.max_lifetime.unwrap_or(pool.max_lifetime),
                idle_timeout: self.idle_timeout.unwrap_or(pool.idle_timeout),
                wait_timeout: self.wait_timeout.unwrap_or(pool.wait_timeout),
                test_on_borrow: self.test_on_borrow.unwrap_or(pool.test_on_borrow),
                test_on_return: self.test_on_return.unwrap_or(pool.test_on_return),
                test_while_idle: self.test_while_idle.unwrap_or(pool.test_while_idle),
                probe_after: self.probe_after.unwrap_or(pool.probe_after),
                test_interval: self.test_interval.unwrap_or(pool.test_interval),
            },
        }
    }

    /// Refuses what contradicts itself once the keys of this section are laid over `below`.
    pub(crate) fn check(&self, section: &Section<'_, '_>, below: DestinationPolicy) {
        let pool = self.over(below).pool;
        if pool.min_idle > pool.max_idle {
            let key = if self.min_idle.is_some() { "min_idle" } else { "max_idle" };
            section.refuse(key, format!("contradicts itself: min_idle is {}, max_idle is {}", pool.min_idle, pool.max_idle));
        }
    }
}

/// `"off"` or a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RateOrOff(Option<Rate>);

impl Setting for RateOrOff {
    fn read(value: &DeValue<'_>) -> Result<RateOrOff, String> {
        match text(value, "a rate in quotes, for instance \"100/s\" or \"1000/min\"")? {
            "off" => Ok(RateOrOff(None)),
            rate => rate.parse().map(|rate| RateOrOff(Some(rate))).map_err(|message| message + ", or \"off\""),
        }
    }
}
