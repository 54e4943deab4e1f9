//! How connections are kept, by route.

use std::time::Duration;

use ringpost_config::Config;
use ringpost_queue::RouteId;

/// How the connections of one destination are kept, for one shard.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Idle ones that stay whatever their idleness.
    pub min_idle: usize,
    /// Idle ones at most.
    pub max_idle: usize,
    /// Connections at most: dialing, in use, idle, saying goodbye.
    pub connections_max: u32,
    /// Messages over one connection.
    pub messages_max: u32,
    /// Older than this, it takes no further message.
    pub max_lifetime: Duration,
    /// Idle longer than this, it is closed with QUIT.
    pub idle_timeout: Duration,
    /// How long an attempt waits for a connection.
    pub wait_timeout: Duration,
    /// Idle longer than this, it is tested before the next message; `None`: never.
    pub test_on_borrow: Option<Duration>,
    /// It is tested before it becomes idle.
    pub test_on_return: bool,
    /// While idle it is tested so often; `None`: never.
    pub test_while_idle: Option<Duration>,
}

/// What the config says, by the number of the route.
#[derive(Debug)]
pub(crate) struct RouteLimits {
    pub(crate) limits: Vec<PoolLimits>,
}

impl RouteLimits {
    /// For routes that are numbered in the order of the config.
    pub(crate) fn new(config: &Config) -> Self {
        let of_route = |route: &ringpost_config::Route| {
            let limits = limits_of(config, route);
            route.names().map(move |_| limits).collect::<Vec<_>>()
        };
        Self { limits: config.routes.as_slice().iter().flat_map(of_route).collect() }
    }

    /// For routes that have these numbers by their names.
    pub(crate) fn set(&mut self, config: &Config, number: impl Fn(&str) -> Option<RouteId>) {
        for route in config.routes.as_slice() {
            let of_route = limits_of(config, route);
            for name in route.names() {
                let Some(RouteId(number)) = number(&name) else { continue };
                let number = usize::from(number);
                if self.limits.len() <= number {
                    self.limits.resize(number + 1, of_route);
                }
                self.limits[number] = of_route;
            }
        }
    }

    pub(crate) fn of(&self, route: Option<RouteId>) -> PoolLimits {
        const UNROUTED: PoolLimits = PoolLimits {
            min_idle: 0,
            max_idle: 0,
            connections_max: 1,
            messages_max: 1,
            max_lifetime: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            wait_timeout: Duration::ZERO,
            test_on_borrow: None,
            test_on_return: false,
            test_while_idle: None,
        };
        route.and_then(|route| self.limits.get(usize::from(route.0)).copied()).unwrap_or(UNROUTED)
    }
}

fn limits_of(config: &Config, route: &ringpost_config::Route) -> PoolLimits {
    let pool = route.policy(&config.delivery).pool;
    let connections_max = route.connections_max(&config.delivery).min(pool.max_active);
    let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    PoolLimits {
        min_idle: count(pool.min_idle),
        max_idle: count(pool.max_idle),
        connections_max,
        messages_max: route.messages_per_connection(&config.delivery).unwrap_or(u32::MAX),
        max_lifetime: pool.max_lifetime,
        idle_timeout: pool.idle_timeout,
        wait_timeout: pool.wait_timeout,
        test_on_borrow: pool.test_on_borrow.then_some(pool.probe_after),
        test_on_return: pool.test_on_return,
        test_while_idle: pool.test_while_idle.then_some(pool.test_interval),
    }
}
