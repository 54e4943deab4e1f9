//! The turn of a writer of content: where its record enters the batch that gathers.

use std::future::poll_fn;

use ringpost_spool::{AppendError, Appended, Content, RecordId, RecordWriter};

use super::{Committer, LogHost};
use crate::room_line::Place;

/// The turn of one writer to append a message or a chunk: at once while nobody waits for room, else behind those who do. It is over with the
/// record, or when this is dropped.
pub struct Turn<'c> {
    committer: &'c Committer,
    place: Place,
    /// Of the record that found no room.
    bytes: u32,
}

impl<'c> Turn<'c> {
    pub(super) fn new(committer: &'c Committer) -> Self {
        Turn { committer, place: Place::default(), bytes: 0 }
    }

    /// Writes a message or chunk record of at most `payload_bytes_max` bytes; `write` puts the payload and says whether to keep it.
    ///
    /// Synchronous: nothing else is appended in between. `Ok(None)` when `write` declined and the record was rolled back.
    /// [`AppendError::Full`] also when others wait for room.
    pub fn append<R>(
        &mut self,
        content: Content,
        id: RecordId,
        payload_bytes_max: u32,
        write: impl FnOnce(&mut RecordWriter<'_, LogHost>) -> (bool, R),
    ) -> Result<(Option<Appended>, R), AppendError> {
        let committer = self.committer;
        self.bytes = payload_bytes_max;
        if !committer.line.may_look(&self.place) {
            return Err(AppendError::Full);
        }
        let mut log = committer.log.borrow_mut();
        let begun = log.begin(content, id, payload_bytes_max, committer.ring.now());
        let mut record = begun.inspect_err(|reason| {
            if matches!(reason, AppendError::Full | AppendError::NotOpen) {
                committer.line.found_none();
            }
        })?;
        let (keep, result) = write(&mut record);
        let appended = if keep {
            Some(record.finish())
        } else {
            record.abort();
            None
        };
        drop(log);
        if appended.is_some() {
            committer.kick();
        }
        self.leave();
        Ok((appended, result))
    }

    /// Waits until there may be room for what was to be appended.
    pub async fn room(&mut self) {
        self.committer.kick();
        poll_fn(|cx| self.committer.line.poll_called(&mut self.place, self.bytes, cx)).await;
    }

    /// Whoever waits may go on.
    fn leave(&mut self) {
        let line = &self.committer.line;
        line.leave(&mut self.place);
        if line.wants_call() {
            self.committer.kick();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;
    use crate::{record_id::record_id, shard::Shard, test_shard::run_with_segments};

    const WRITERS: usize = 60;
    /// Four such records fill a batch.
    const RECORD_BYTES: usize = 110 * 1024;
    const RECORDS_EACH: usize = 6;

    #[derive(Default)]
    struct Counts {
        records: Vec<Cell<usize>>,
        waits: Cell<usize>,
    }

    async fn write(shard: &Shard, counts: &Counts) {
        let (id, content) = (record_id(shard.next_id()), vec![0; RECORD_BYTES]);
        let mut turn = shard.own.turn();
        let ticket = loop {
            let appended = turn.append(Content::Message, id, RECORD_BYTES as u32, |record| {
                record.put(&content);
                (true, ())
            });
            match appended {
                Ok((appended, ())) => break appended.unwrap().ticket,
                Err(reason) => assert_eq!(reason, AppendError::Full),
            }
            turn.room().await;
            counts.waits.set(counts.waits.get() + 1);
        };
        shard.own.durable(ticket).await.unwrap();
        // Its segment is free again.
        while shard.own.settle(id) == Err(AppendError::Full) {
            shard.own.room().await;
        }
    }

    #[test]
    fn sixty_writers_for_four_places_are_served_in_turn_and_few_are_woken_for_nothing() {
        run_with_segments(64, async |shard| {
            let counts = Rc::new(Counts { records: vec![Cell::new(0); WRITERS], ..Counts::default() });
            let written = |counts: &Counts| counts.records.iter().map(Cell::get).sum::<usize>();
            let write_until_enough = |who: usize| {
                let (of_writer, counts) = (shard.clone(), counts.clone());
                async move {
                    while written(&counts) < WRITERS * RECORDS_EACH {
                        write(&of_writer, &counts).await;
                        counts.records[who].set(counts.records[who].get() + 1);
                    }
                }
            };
            let writers: Vec<_> = (0..WRITERS).map(|who| shard.ring.spawn(write_until_enough(who))).collect();
            for writer in writers {
                writer.await;
            }
            let each = counts.records.iter().map(Cell::get);
            let (least, most) = (each.clone().min().unwrap(), each.max().unwrap());
            assert!(most - least <= 2, "from {least} to {most}");
            let (waits, records) = (counts.waits.get(), written(&counts));
            // Segments of 1 MiB end in the middle of batches, where the estimate is wrong; woken all at once they would be thirty for each.
            assert!(waits < 6 * records, "{waits} waits for {records} records");
        });
    }

    /// Those who found the first batch full slept until it was on the disk.
    #[test]
    fn the_next_batch_gathers_and_leaves_beside_the_one_that_was_full() {
        run_with_segments(64, async |shard| {
            let writers: Vec<_> = (0..8)
                .map(|_| {
                    let of_writer = shard.clone();
                    shard.ring.spawn(async move { write(&of_writer, &Counts::default()).await })
                })
                .collect();
            for writer in writers {
                writer.await;
            }
            assert_eq!(shard.metrics.in_flight_max.get(), 2);
        });
    }

    #[test]
    fn a_writer_that_goes_while_it_waits_holds_up_nobody() {
        run_with_segments(64, async |shard| {
            let counts = Rc::new(Counts::default());
            // All places of two batches that are under way and of the one that gathers; then those who wait, of whom every other goes.
            let writers: Vec<_> = (0..WRITERS)
                .map(|_| {
                    let (of_writer, counts) = (shard.clone(), counts.clone());
                    shard.ring.spawn(async move { write(&of_writer, &counts).await })
                })
                .collect();
            shard.ring.yield_now().await;
            let stay: Vec<_> = writers.into_iter().enumerate().filter_map(|(at, writer)| at.is_multiple_of(2).then_some(writer)).collect();
            for writer in stay {
                writer.await;
            }
        });
    }
}
