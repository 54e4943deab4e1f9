//! What happens to destinations, told to operators: breakers that open and close, pauses.

use ringpost_queue::{Breaker, Change, DestinationId};
use tracing::{debug, info};

use crate::shard::Shard;

impl Shard {
    /// Counts and logs what happened since the last call.
    pub(crate) fn tell_changes(&self) {
        loop {
            let Some(change) = self.queue.borrow_mut().take_change() else { return };
            match change {
                Change::Breaker(change) => {
                    let queue = self.queue.borrow();
                    let host = queue.host_address(change.destination, change.host).map_or("", |host| &host.name);
                    let (destination, reason) = self.name_and_reason(&queue, change.destination);
                    let shard = self.id;
                    match change.now {
                        Breaker::Open { until } => {
                            self.metrics.breakers_opened.increment();
                            let retry_ms = until.saturating_sub(self.now_ms());
                            // That a dead host is still dead is no news.
                            match change.was_broken {
                                false => info!(shard, destination, host, reason, retry_ms, "breaker open: the host is left alone"),
                                true => debug!(shard, destination, host, reason, retry_ms, "breaker open again"),
                            }
                        }
                        Breaker::HalfOpen => {
                            self.metrics.breakers_half_open.increment();
                            debug!(shard, destination, host, "breaker half-open: the host is probed");
                        }
                        Breaker::Closed => {
                            self.metrics.breakers_closed.increment();
                            info!(shard, destination, host, "breaker closed: the host serves");
                        }
                    }
                }
                Change::Throttled(throttled) => {
                    self.metrics.throttled.increment();
                    let queue = self.queue.borrow();
                    let (destination, reason) = self.name_and_reason(&queue, throttled.destination);
                    let pause_ms = throttled.until.saturating_sub(self.now_ms());
                    info!(shard = self.id, destination, reason, pause_ms, "the destination asked for less and is left alone");
                }
            }
        }
    }

    fn name_and_reason<'q>(&self, queue: &'q ringpost_queue::Queue, destination: DestinationId) -> (&'q str, &'q str) {
        queue.destination(destination, self.now_ms()).map_or(("", ""), |view| (view.name, view.reason))
    }
}
