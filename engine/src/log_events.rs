//! What a log of the spool tells its shard.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use ringpost_spool::Event;
use tracing::{error, info, warn};

use crate::{committer::Committer, record_id::queue_id, recovering::Recovering, shard::Shard};

/// What follows where no segment of a log is free and none could be made, with this errno, and what to do; `is_own`: of the shard itself.
fn want_of_segment(errno: i64, is_own: bool) -> &'static str {
    let is_full = [libc::ENOSPC, libc::EDQUOT].map(i64::from).contains(&errno);
    match (is_full, is_own) {
        (true, true) => {
            "no segment of this log is free, and there is no room to make one: mail is answered with 452, and what is in the log is kept and not \
             delivered, since it could not be recorded. Make so many bytes free on its file system, and it goes on by itself. Remove none of its files"
        }
        (true, false) => {
            "no segment of the log of a shard that no longer exists is free, and there is no room to make one: what is in it is kept and not \
             delivered, since that could not be recorded. Make so many bytes free on its file system, and it goes on by itself. Remove none of its files"
        }
        (false, _) => {
            "no segment of this log is free, and none can be made for want of descriptors or memory: what is in it is kept and not delivered, \
             since that could not be recorded. It is tried again and goes on by itself"
        }
    }
}

impl Shard {
    /// Drives a log and tells the shard what it finds; ends with the log.
    pub(crate) async fn run_log(self: Rc<Self>, number: u16, committer: Rc<Committer>, answers: Rc<Cell<bool>>) {
        let (recovering, lacks_segment) = (RefCell::new(Some(Recovering::default())), Cell::new(false));
        let shard = &self;
        let driver = committer.clone();
        driver
            .run(|event| {
                if event.makes_room() {
                    shard.room_came();
                }
                match event {
                Event::Opened => {
                    if lacks_segment.replace(false) {
                        shard.closed_logs.borrow_mut().retain(|log| *log != number);
                        info!(shard = shard.id, log = number, "there is room for a segment again: the log is open");
                    }
                    if number == shard.id {
                        answers.set(true);
                        shard.wake_life();
                    }
                }
                Event::Acknowledged(ticket) => shard.recording.acknowledged(shard, number, *ticket),
                Event::Found { .. } | Event::FoundOutcome { .. } | Event::FoundSettled { .. } => {
                    if let Event::FoundSettled { id } = event
                        && let Some(id) = queue_id(*id)
                    {
                        shard.note_settled(id);
                    }
                    if let Some(recovering) = &mut *recovering.borrow_mut() {
                        recovering.found(event);
                    }
                }
                Event::Loaded(report) => {
                    info!(shard = shard.id, log = number, messages = report.messages, segments = report.segments, batches = report.batches, "spool loaded");
                    if let Some(recovering) = recovering.take() {
                        let (shard, committer, ring) = (shard.clone(), committer.clone(), shard.ring.clone());
                        // Not within the event: enqueueing asks the log what is still live. A spawned task begins at once.
                        ring.spawn(async move {
                            shard.ring.yield_now().await;
                            recovering.enqueue(&shard, number, &committer).await;
                            shard.loading.set(shard.loading.get() - 1);
                            if shard.loading.get() == 0 {
                                shard.begin_reports();
                            }
                            shard.wake_life();
                        })
                        .detach();
                    }
                }
                Event::Incomplete { id } => {
                    if let Some(recovering) = &mut *recovering.borrow_mut() {
                        recovering.found(event);
                    }
                    error!(shard = shard.id, ?id, "a message lacks a part of its content and cannot be delivered; it stays in the spool");
                }
                Event::Damaged(damage) => match damage.kind {
                    ringpost_spool::DamageKind::UnacknowledgedTail => {
                        info!(shard = shard.id, file = %damage.file, offset = damage.offset, bytes = damage.bytes, "unacknowledged_tail: the log ends here, nobody was told 250 for the rest");
                    }
                    ringpost_spool::DamageKind::CutShort => {
                        warn!(shard = shard.id, file = %damage.file, bytes = damage.offset, should_be = damage.offset + damage.bytes, "a segment file is shorter than its header says, as after a restore that was cut short: what stood behind its end is not delivered; put the whole file in its place and start again. It is left as it is");
                    }
                    kind => error!(shard = shard.id, file = %damage.file, offset = damage.offset, bytes = damage.bytes, ?kind, "the spool is damaged here; everything else is delivered"),
                },
                Event::Poisoned(reason) => shard.fail(reason.to_string()),
                Event::Refused(reason) => shard.fail(format!("log {number} cannot be opened: {reason}")),
                Event::SegmentPrepared { written: false, .. } => shard.metrics.segments_unprepared.increment(),
                Event::PrepareFailed { result, keeps_closed: true } => {
                    if !lacks_segment.replace(true) {
                        shard.closed_logs.borrow_mut().push(number);
                        let (directory, words) = (committer.directory(), want_of_segment(-result, number == shard.id));
                        error!(shard = shard.id, log = number, directory = %directory.display(), bytes = shard.config().spool.segment_bytes.bytes(), errno = -result, "{words}");
                    }
                    // Whoever comes is to hear of it, instead of nothing, and who waits for its mail, too.
                    if number == shard.id {
                        answers.set(true);
                    }
                    shard.wake_life();
                }
                Event::PrepareFailed { result, keeps_closed: false } => warn!(shard = shard.id, errno = -result, "a segment could not be prepared for want of room, descriptors or memory; tried again"),
                Event::Reserve(on) if number == shard.id => {
                    shard.metrics.spool_reserve.set((*on).into());
                    warn!(shard = shard.id, on, "spool reserve: new mail is answered with 452 while this is on, deliveries go on");
                }
                // It takes no new mail, and says nothing of the log that does.
                Event::Reserve(on) => {
                    info!(shard = shard.id, log = number, on, "the log of a shard that no longer exists has only its reserve left while this is on");
                }
                Event::SegmentPrepared { .. } | Event::SegmentFreed { .. } | Event::NotEmptied { .. } | Event::Stopped => {}
                Event::Retired => {
                    info!(shard = shard.id, log = number, "the log of a shard that no longer exists is empty and gone");
                    let (shard, ring) = (shard.clone(), shard.ring.clone());
                    ring.spawn(async move {
                        shard.ring.yield_now().await;
                        shard.forget_adopted(number);
                    })
                    .detach();
                }
            }
            })
            .await;
    }

    /// An adopted log is empty and its files are unlinked.
    fn forget_adopted(&self, number: u16) {
        let mut adopted = self.adopted.borrow_mut();
        if let Some(at) = adopted.iter().position(|(log, _)| *log == number) {
            let (_, log) = adopted.remove(at);
            if let Err(reason) = log.remove_directory() {
                warn!(shard = self.id, log = number, %reason, "the folder of an empty log could not be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a log that takes no new mail it was said that mail gets 452, and of too few descriptors that bytes are to be made free.
    #[test]
    fn what_there_is_too_little_of_is_told_of_the_log_that_lacks_it() {
        for (errno, is_own, answers, frees) in [
            (libc::ENOSPC, true, true, true),
            (libc::EDQUOT, false, false, true),
            (libc::EMFILE, true, false, false),
            (libc::ENOMEM, false, false, false),
        ] {
            let words = want_of_segment(errno.into(), is_own);
            assert_eq!((words.contains("452"), words.contains("bytes free")), (answers, frees), "{errno} {is_own}");
        }
    }
}
