//! A line to Valkey that does not carry this node's items in the time that a call has: said once when that begins, and by this node as long as it lasts.

use std::{sync::MutexGuard, time::Duration};

use tracing::{info, warn};

use super::WorkQueue;
use crate::{boot_time::BootTime, valkey::PATIENCE_MAX};

/// So long after the last call that was late the line counts as slow: an item is sent again within half a minute, and then has [`PATIENCE_MAX`].
const SLOW_FOR: Duration = PATIENCE_MAX.saturating_add(Duration::from_secs(60));

/// What was too much for the line last.
#[derive(Debug, Default)]
pub(super) struct Slowness(Option<Late>);

#[derive(Clone, Debug)]
struct Late {
    item: String,
    bytes: usize,
    deadline: Duration,
    at: BootTime,
}

impl Slowness {
    /// True: that is new.
    fn late(&mut self, item: &str, bytes: usize, deadline: Duration, at: BootTime) -> bool {
        let is_new = self.latest(at).is_none();
        self.0 = Some(Late { item: item.to_owned(), bytes, deadline, at });
        is_new
    }

    /// So many bytes came in. True: as much as was too much before.
    fn carried(&mut self, bytes: usize) -> bool {
        self.0.take_if(|late| bytes >= late.bytes).is_some()
    }

    fn latest(&self, now: BootTime) -> Option<&Late> {
        self.0.as_ref().filter(|late| now.since(late.at) < SLOW_FOR)
    }

    fn tell(&self, now: BootTime) -> Option<String> {
        let Late { item, bytes, deadline, .. } = self.latest(now)?;
        let ms = deadline.as_millis();
        Some(format!(
            "the line to Valkey is slow: {bytes} bytes of mail (item {item}) were not in the queue within {ms} ms, which is the time that a call has; what is \
             not there is sent again, later and with more time each time"
        ))
    }
}

impl WorkQueue {
    fn slow(&self) -> MutexGuard<'_, Slowness> {
        self.slowness.lock().expect("no panic happens under this lock")
    }

    /// A call with so many bytes, of which `item` is the first, was not answered within its deadline, and Valkey is there, as far as is known. Says so
    /// in the log, once in two minutes at most as long as it lasts.
    pub fn is_slow_for(&self, item: &str, bytes: usize, deadline: Duration) {
        if self.slow().late(item, bytes, deadline, BootTime::now()) {
            warn!(
                queue = %self.name,
                item,
                bytes,
                deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
                "the line to Valkey is too slow for what this node offers: it is sent again with more time, or delivered here where this node delivers. See \
                 what else uses that line, or that large mail is accepted by nodes nearer to Valkey"
            );
        }
    }

    /// A call with so many bytes brought its items in.
    pub fn has_carried(&self, bytes: usize) {
        if self.slow().carried(bytes) {
            info!(queue = %self.name, bytes, "the line to Valkey carries again what was too much for it");
        }
    }

    /// That the line was too slow, in words for an operator; `None`: it was not, for two minutes, or has carried as much since.
    pub fn slowness(&self) -> Option<String> {
        self.slow().tell(BootTime::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_slow_until_it_has_carried_as_much_or_for_two_minutes() {
        let at = |seconds: u64| BootTime::after_boot(Duration::from_secs(100 + seconds));
        let mut slowness = Slowness::default();
        assert!(slowness.late("a", 3_000_000, Duration::from_millis(407), at(0)));
        assert!(!slowness.late("a", 3_000_000, Duration::from_millis(1631), at(5)), "said before");
        let told = slowness.tell(at(6)).unwrap();
        assert!(told.contains("3000000 bytes of mail (item a) were not in the queue within 1631 ms"), "{told}");
        assert!(!slowness.carried(2000) && slowness.tell(at(124)).is_some());
        assert_eq!(slowness.tell(at(125)), None);
        assert!(slowness.late("a", 3_000_000, Duration::from_millis(407), at(125)), "it begins anew");
        assert!(slowness.carried(3_000_000) && slowness.tell(at(126)).is_none());
    }
}
