//! Mail that could not be read to offer it: that is tried again after a while, each time after a longer one. A node that delivers nothing leaves it offered
//! meanwhile: to try it here would be to send it by routes that are not meant for it. One that delivers takes it back, and a drain comes to it again.
//!
//! Pure but for the task at the end, which waits.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::{Duration, Instant},
};

use ringpost_queue::QueueId;
use tracing::{error, warn};

use crate::{
    shard::Shard,
    stored_envelope::RecordError,
    why::{clock, until},
};

/// After the first failure; twice as long after each further one.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// The longest.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(600);
/// Read again in one go.
const AGAIN_PER_TURN: usize = 256;

/// One of them.
#[derive(Debug)]
struct Unread {
    wait: Duration,
    again_at: Instant,
    reason: String,
}

/// Those of a shard; no more than it has mail.
#[derive(Debug, Default)]
pub(crate) struct UnreadOffers {
    mails: RefCell<BTreeMap<QueueId, Unread>>,
    /// Those whose turn has not come.
    order: RefCell<BTreeSet<(Instant, QueueId)>>,
    is_seen_to: Cell<bool>,
}

impl UnreadOffers {
    /// True: for the first time.
    fn failed(&self, id: QueueId, reason: String, now: Instant) -> bool {
        let mut mails = self.mails.borrow_mut();
        let before = mails.remove(&id);
        let is_first = before.is_none();
        let wait = before.map_or(AGAIN_AFTER, |before| {
            self.order.borrow_mut().remove(&(before.again_at, id));
            (before.wait * 2).min(AGAIN_AFTER_MAX)
        });
        mails.insert(id, Unread { wait, again_at: now + wait, reason });
        self.order.borrow_mut().insert((now + wait, id));
        is_first
    }

    /// Its turn to be read again has not come.
    pub(crate) fn waits(&self, id: QueueId, now: Instant) -> bool {
        self.mails.borrow().get(&id).is_some_and(|unread| now < unread.again_at)
    }

    /// Those of which the queue knows nothing any more are forgotten.
    pub(crate) fn retain(&self, is_there: impl Fn(QueueId) -> bool) {
        self.mails.borrow_mut().retain(|id, unread| {
            let stays = is_there(*id);
            if !stays {
                self.order.borrow_mut().remove(&(unread.again_at, *id));
            }
            stays
        });
    }

    /// It was read, or is not offered any more.
    pub(crate) fn is_over(&self, id: QueueId) {
        if let Some(unread) = self.mails.borrow_mut().remove(&id) {
            self.order.borrow_mut().remove(&(unread.again_at, id));
        }
    }

    /// Some of those whose turn it is; each is told once.
    fn due(&self, now: Instant) -> Vec<QueueId> {
        let mut order = self.order.borrow_mut();
        let due: Vec<(Instant, QueueId)> = order.iter().take(AGAIN_PER_TURN).take_while(|(at, _)| now >= *at).copied().collect();
        for one in &due {
            order.remove(one);
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    fn next_due(&self) -> Option<Instant> {
        self.order.borrow().first().map(|(at, _)| *at)
    }

    /// When to look for those whose turn it is, `None` where none waits: no later than the turn of one that fails from now on, since that wakes nobody.
    fn next_look(&self, now: Instant) -> Option<Instant> {
        Some(self.next_due()?.min(now + AGAIN_AFTER))
    }

    /// Why it could not be read, and when it is tried again.
    fn of(&self, id: QueueId) -> Option<(String, Instant)> {
        self.mails.borrow().get(&id).map(|unread| (unread.reason.clone(), unread.again_at))
    }
}

impl Shard {
    /// Leaves mail offered that could not be read for that, and reads it again later.
    pub(crate) fn offer_later(self: &Rc<Self>, id: QueueId, reason: &RecordError) {
        let unread = &self.offering.unread;
        if unread.failed(id, reason.to_string(), self.ring.now()) {
            error!(queue_id = %id, %reason, "this mail cannot be read to be offered; this node delivers nothing, so it is read again later");
        }
        if !unread.is_seen_to.replace(true) {
            self.ring.spawn(self.clone().offer_unread()).detach();
        }
    }

    /// Delivers mail here that could not be read to be offered; a drain offers it again later.
    pub(crate) fn deliver_unread(&self, id: QueueId, reason: &RecordError) {
        // Who does not drain has nothing to do with it any more.
        if self.offering.is_draining() {
            self.offering.unread.failed(id, reason.to_string(), self.ring.now());
        }
        warn!(queue_id = %id, %reason, "this mail cannot be read to be offered; it is delivered here");
        self.deliver_here(&[id]);
    }

    async fn offer_unread(self: Rc<Self>) {
        while let Some(look) = self.offering.unread.next_look(self.ring.now()) {
            self.ring.sleep_until(look).await;
            if self.is_ending() {
                break;
            }
            self.offering.unread.due(self.ring.now()).into_iter().for_each(|id| self.offer_soon(id));
        }
        self.offering.unread.is_seen_to.set(false);
    }

    /// That offered mail could not be read, why, and when it is read again: the end of a sentence, without the dot. `None`: it could, as far as is
    /// known, or this node delivers it meanwhile.
    pub(crate) fn unread_offer(&self, id: QueueId) -> Option<String> {
        if self.config().delivery.deliver {
            return None;
        }
        let (reason, at) = self.offering.unread.of(id)?;
        let now = self.now_ms();
        let at = now + u64::try_from(at.saturating_duration_since(self.ring.now()).as_millis()).unwrap_or(0);
        Some(format!("it cannot be read from its spool ({reason}), which is tried again at {} ({})", clock(at, now), until(at, now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_shard::{accept, run};

    /// Each stayed there for as long as the process lived.
    #[test]
    fn what_is_delivered_where_nobody_drains_is_kept_in_mind_by_nobody() {
        run(async |shard| {
            let (id, _) = accept(&shard, &["b@y.test"]).await;
            shard.deliver_unread(id, &RecordError::Gone);
            assert_eq!(shard.offering.unread.of(id), None);
        });
    }

    #[test]
    fn what_cannot_be_read_is_read_again_after_longer_and_longer_waits() {
        let (unread, id) = (UnreadOffers::default(), |sequence| QueueId { boot: 1, shard: 0, sequence });
        let mut now = Instant::now();
        for (time, wait) in [5, 10, 20, 40, 80, 160, 320, 600, 600].into_iter().enumerate() {
            assert_eq!(unread.failed(id(1), format!("failure {time}"), now), time == 0);
            assert_eq!(unread.of(id(1)), Some((format!("failure {time}"), now + Duration::from_secs(wait))));
            let end = now + Duration::from_secs(wait);
            assert!(unread.waits(id(1), end - Duration::from_nanos(1)) && !unread.waits(id(1), end) && !unread.waits(id(2), now));
            assert!(unread.due(now + Duration::from_secs(wait) - Duration::from_nanos(1)).is_empty());
            now += Duration::from_secs(wait);
            assert_eq!(unread.next_due(), Some(now));
            assert_eq!((unread.due(now), unread.due(now), unread.next_due()), (vec![id(1)], vec![], None), "once");
        }
        unread.is_over(id(1));
        assert!(unread.failed(id(1), "anew".to_owned(), now), "the first time again");
        unread.is_over(id(1));
        assert_eq!((unread.next_due(), unread.of(id(1))), (None, None));
        assert!(unread.failed(id(3), String::new(), now));
        unread.retain(|one| one != id(3));
        assert_eq!((unread.next_due(), unread.of(id(3))), (None, None), "settled meanwhile");
        // A shard of which no mail can be read goes on with other things meanwhile.
        assert!((0..1000).all(|sequence| unread.failed(id(sequence), String::new(), now)));
        now += AGAIN_AFTER;
        assert_eq!([(); 5].map(|()| unread.due(now).len()), [256, 256, 256, 232, 0]);
    }

    /// It waited for the turn that was next when the wait began, up to ten minutes after its own.
    #[test]
    fn what_cannot_be_read_for_the_first_time_does_not_wait_for_what_has_failed_often() {
        let (unread, id) = (UnreadOffers::default(), |sequence| QueueId { boot: 1, shard: 0, sequence });
        let mut now = Instant::now();
        for _ in 0..8 {
            unread.failed(id(1), String::new(), now);
            now = unread.next_due().unwrap();
            assert_eq!(unread.due(now), [id(1)]);
        }
        unread.failed(id(1), String::new(), now);
        let mut look = unread.next_look(now).unwrap();
        let failed_at = now + Duration::from_secs(1);
        unread.failed(id(2), String::new(), failed_at);
        let mut due = unread.due(look);
        while due.is_empty() {
            look = unread.next_look(look).unwrap();
            due = unread.due(look);
        }
        assert_eq!((due, look), (vec![id(2)], failed_at + AGAIN_AFTER));
    }
}
