//! What an owner is bound to.

use std::time::Duration;

/// When an owner does what, and how much it has offered at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OfferBounds {
    /// With Valkey away for so long no worker begins to complete what it has leased before.
    pub lease_ttl: Duration,
    /// And for so long more, for clocks and for what was under way.
    pub guard: Duration,
    /// How often the owner asks for what it has heard nothing of.
    pub reconcile_every: Duration,
    /// How long the queue remembers what was settled: a worker that comes back within it gets an exact answer.
    pub forget_after: Duration,
    /// Of the queue.
    pub partitions: u16,
    /// Offered at most, of what nobody is known to have; what is accepted beyond waits in its shard. What has ended does not count, and is
    /// remembered for `forget_after`: that many more are kept as are settled in that time.
    pub open_max: usize,
    /// A node that does not deliver offers a dead letter again after so long, and after twice as long each further time.
    pub dead_wait: Duration,
}
