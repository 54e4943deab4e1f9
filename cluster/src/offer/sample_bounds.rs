//! Bounds for the tests of the owner's rules.

use std::time::Duration;

use super::OfferBounds;

/// One partition, and times that are far apart; a test names those that it is about.
pub(super) const SAMPLE_BOUNDS: OfferBounds = OfferBounds {
    lease_ttl: Duration::from_secs(3),
    guard: Duration::from_secs(1),
    reconcile_every: Duration::from_secs(10),
    forget_after: Duration::from_secs(30),
    open_max: 1000,
    dead_wait: Duration::from_secs(300),
    partitions: 1,
};
