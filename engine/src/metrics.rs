//! A shard's counters: plain cells, read by the control socket.

use std::cell::Cell;

/// One counter that only grows, or a gauge that is set.
#[derive(Default, Debug)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `n`; wraps after 2^64.
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get().wrapping_add(n));
    }

    /// Sets a gauge.
    pub fn set(&self, value: u64) {
        self.0.set(value);
    }

    /// Raises a high-water mark.
    pub fn raise(&self, value: u64) {
        self.0.set(self.0.get().max(value));
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Everything one shard counts.
        #[derive(Default, Debug)]
        pub struct Metrics { $($(#[$doc])* pub $name: Counter,)* }

        impl Metrics {
            /// Name and value of each, in declaration order.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

metrics! {
    /// Mails that other nodes have taken over.
    handed_over,
    /// Mails taken over from other nodes.
    claimed,
    /// Mails of other nodes that were stored here and turned out to be another's.
    claims_discarded,
    /// Sessions accepted.
    connections,
    /// Sessions open now.
    sessions,
    /// Sessions refused with 421 at a limit.
    connections_refused,
    /// Connections passed to a shard with less to do.
    connections_passed,
    /// Connections that another shard passed to this one.
    connections_taken,
    /// Connections kept although another shard has less to do: the lane to it was full.
    connections_not_passed,
    /// Messages answered with 250.
    accepted,
    /// Bytes of content of those.
    accepted_bytes,
    /// Messages refused at or after their data.
    refused,
    /// Transactions told to come back (452, 451).
    deferred_by_us,
    /// Recipients that the next hop took.
    delivered,
    /// Attempts that deferred a recipient.
    deferred,
    /// Recipients whose content was sent whole and not answered: deferred, so that they may get it twice.
    deliveries_unknown,
    /// Maildirs that did not answer within `delivery.maildir_timeout`: a thread hangs in each until it does.
    maildirs_unanswered,
    /// Recipients refused for good or expired.
    failed,
    /// Messages that nothing would have moved again, and destinations whose mail nobody would have looked at, found and made to go on: a bug
    /// of the queue.
    stuck,
    /// Reports to senders that were made.
    reports,
    /// Failures of mail with the null reverse-path of which nobody was told.
    reports_dropped,
    /// Outbound connections made.
    connects,
    /// Outbound connections that failed.
    connect_failures,
    /// Dispatches made by another shard, the home of their destination.
    dispatched_to_homes,
    /// Dispatches of other shards taken in as their home.
    dispatched_for_others,
    /// Dispatches that a home gave back untried, because its destination could do nothing.
    homes_refused,
    /// Pieces of content fetched from the shard that owns the message.
    content_fetched,
    /// Transactions on a kept connection.
    reused,
    /// Transactions whose MAIL left with the dot before.
    chained,
    /// Attempts that one host put off and another of the destination was asked for.
    tried_elsewhere,
    /// Connections that were made and have ended.
    pool_destroyed,
    /// Attempts that had to wait for a connection.
    pool_wait_count,
    /// Microseconds that they waited, all together.
    pool_wait_time_us,
    /// Attempts that found a connection: an idle one, or a new one that was greeted.
    pool_acquire_success,
    /// Attempts that found none: no host took one, or the time to wait was over.
    pool_acquire_failed,
    /// Connections closed because they were idle for too long.
    pool_idle_timeouts,
    /// Connections closed because they were too old.
    pool_lifetime_expired,
    /// Connections that ended so that another destination had their seat.
    pool_gave_way,
    /// Connections that did not pass a test.
    pool_health_check_fail,
    /// Questions about DNS that the coordinator could not take just then.
    lookups_put_off,
    /// Questions about a rate over all nodes that the coordinator could not take just then.
    reservations_put_off,
    /// Breakers of hosts that opened, probes that failed included.
    breakers_opened,
    /// Breakers that became half-open: a host that had failed was tried again.
    breakers_half_open,
    /// Breakers that closed again.
    breakers_closed,
    /// Pauses of destinations that asked for less.
    throttled,
    /// Batches made durable.
    batches,
    /// Bytes of those.
    batch_bytes,
    /// Most batches in flight at once.
    in_flight_max,
    /// 1 while new mail is answered with 452, so that the disk keeps its reserve.
    spool_reserve,
    /// Times that content which arrives in pieces found no more memory (452).
    memory_refused,
    /// Segments written on before they were prepared.
    segments_unprepared,
    /// Messages read back from disk for an attempt.
    content_reads,
    /// Mail log lines dropped because the coordinator did not keep up.
    log_lines_lost,
}
