//! Passing mail log lines on, and giving back memory that is kept for speed only.

use std::{
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use tracing::error;

use crate::{mail_line::MailLine, mail_log, shard::Shard};

/// Housekeeping while there is something to give back.
const TRIM_EVERY: Duration = Duration::from_secs(1);

/// How often the queue is looked through for messages that are stuck, and how far at a time.
const WATCH_EVERY: Duration = Duration::from_secs(30);
const WATCHED_SLOTS: usize = 16_384;
/// Destinations are larger, and fewer.
const WATCHED_DESTINATIONS: usize = 4096;

impl Shard {
    /// Looks for messages that nothing would ever move again, and for destinations that nobody would look at, a part of the queue at a time.
    /// There should be none.
    pub(crate) async fn watch_progress(self: Rc<Self>) {
        let (mut cursor, mut at_destination) = (0, 0);
        loop {
            self.ring.sleep_until(self.ring.now() + WATCH_EVERY).await;
            let stuck = self.queue.borrow_mut().look_for_stuck(&mut cursor, WATCHED_SLOTS, self.now_ms());
            for queue_id in &stuck {
                self.metrics.stuck.increment();
                error!(shard = self.id, %queue_id, "a message was in no timer, no queue and no attempt; it goes on now, please report this");
            }
            let now = self.now_ms();
            let forgotten = self.queue.borrow_mut().look_for_forgotten(&mut at_destination, WATCHED_DESTINATIONS, now);
            for destination in &forgotten {
                self.metrics.stuck.increment();
                let queue = self.queue.borrow();
                let name = queue.destination(*destination, now).map_or("", |view| view.name);
                error!(
                    shard = self.id,
                    destination = name,
                    "mail for a destination was in no list and no timer; it goes on now, please report this"
                );
            }
            if !stuck.is_empty() || !forgotten.is_empty() {
                self.delivery.kick();
            }
        }
    }

    /// Writes a mail log line, and sees to it that it is passed on in time.
    pub(crate) fn log_mail(&self, line: std::fmt::Arguments<'_>) {
        self.write_mail_log(|out| {
            out.shown(line);
        });
    }

    /// As [`Shard::log_mail`], piece by piece: for the lines that every message has.
    pub(crate) fn write_mail_log(&self, write: impl FnOnce(&mut MailLine<'_>)) {
        let was_waiting = self.mail_log.is_waiting();
        self.mail_log.write(&self.clock, write);
        if !was_waiting {
            self.wake_housekeeping();
        }
    }

    /// Is new mail refused because its lines would be lost, and `log.mail` requires them?
    pub(crate) fn waits_for_mail_log(&self) -> bool {
        self.config().log.mail == ringpost_config::MailLog::Required && !self.mail_log.has_room()
    }

    /// There is something to give back or pass on later.
    pub(crate) fn wake_housekeeping(&self) {
        if let Some(waker) = self.housekeeping.take() {
            waker.wake();
        }
    }

    /// Passes mail log lines on after 100 ms, gives memory back after a second; sleeps without a timer when there is nothing.
    pub(crate) async fn keep_house(self: Rc<Self>) {
        let mut trim_at: Option<Instant> = None;
        let mut quiet_rounds = 0;
        loop {
            if !self.mail_log.is_waiting() && trim_at.is_none() {
                let mut slept = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut slept, true) || self.mail_log.is_waiting() {
                        return Poll::Ready(());
                    }
                    self.housekeeping.replace(Some(cx.waker().clone()));
                    Poll::Pending
                })
                .await;
            }
            self.ring.sleep_until(self.ring.now() + mail_log::FLUSH_AFTER).await;
            let now = self.ring.now();
            let busy = self.mail_log.pass_on();
            if busy && trim_at.is_none() {
                quiet_rounds = 0;
                trim_at = Some(now + TRIM_EVERY);
            }
            if trim_at.is_some_and(|at| now >= at) {
                let mut kept = self.staging.trim();
                kept |= self.own.forget_recent(now);
                for (_, log) in &*self.adopted.borrow() {
                    kept |= log.forget_recent(now);
                }
                self.ring.trim(now);
                self.metrics.log_lines_lost.set(self.mail_log.lost_total());
                // What was found unused now is given back when it still is in a second: two quiet rounds end it.
                quiet_rounds = if kept || busy { 0 } else { quiet_rounds + 1 };
                trim_at = (quiet_rounds < 3).then(|| now + TRIM_EVERY);
            }
        }
    }
}
