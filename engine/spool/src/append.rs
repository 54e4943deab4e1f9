//! Appending: records go straight into the batch that gathers, and the index learns of them.

use std::ops::Range;
use std::time::Instant;

use thiserror::Error;

use crate::batch::{BATCH_HEADER_BYTES, BLOCK_BYTES, Ticket};
use crate::config::Role;
use crate::index::{MessageState, PieceKind, Place};
use crate::log::{Log, Phase};
use crate::op::Host;
use crate::open_batch::OpenBatch;
use crate::read::Location;
use crate::record::{CHUNKS_BYTES, HOMES_MAX, RECORD_HEADER_BYTES, RecordHeader, RecordId, RecordKind, record_span};
use crate::release::Release;
use crate::seal::Seal;
use crate::segments::{RESERVE_SEGMENTS, SegmentState};

/// Why nothing was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AppendError {
    /// No room in the batch that gathers, no buffer, or no segment at this moment: try again after the next completion.
    #[error("the batch is full")]
    Full,
    /// No segment left and none can be made: 452 4.3.1, recovers by itself.
    #[error("the spool is full")]
    NoSpace,
    /// Too many bytes belong to uploads that are not committed yet: 452 for this one.
    #[error("too many bytes in open transactions")]
    OpenMax,
    /// The record can never fit into a batch: write it in chunks.
    #[error("larger than a batch")]
    TooLarge,
    /// A write or a flush failed, or the log is stopping or was refused: 451 4.3.0, and no attempts either.
    #[error("the log takes nothing any more")]
    Closed,
    /// The log is still being opened: try again after [`Event::Opened`](crate::Event::Opened), for messages of
    /// earlier lives after [`Event::Loaded`](crate::Event::Loaded).
    #[error("the log is not open yet")]
    NotOpen,
    /// An adopted log takes only outcomes.
    #[error("the log is adopted")]
    Adopted,
    /// The message isn't in the log, or is settled already.
    #[error("no such message")]
    Unknown,
}

/// What [`Log::begin`] begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// The message record: what it holds is opaque. Chunks that were written for the id before become its content.
    Message,
    /// The next chunk of the message's content; the first one has index 0.
    Chunk,
}

/// What became of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Durable when this is acknowledged.
    pub ticket: Ticket,
    /// Where it will stand.
    pub location: Location,
    /// Where the payload stands in the buffer of the batch with this ticket.
    pub payload: Range<usize>,
}

/// Who asks for room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// New mail: leaves the reserve alone.
    Content,
    /// Outcomes, seals and witnesses: leave one segment for what frees others, and for the next start.
    Bookkeeping,
    /// Settled records and copies by compaction, by which segments become free: takes the last one.
    Relief,
    /// A start: takes the last one.
    Start,
}

/// A record being written. Dropped without [`finish`](RecordWriter::finish) it leaves no trace.
pub struct RecordWriter<'a, H: Host> {
    log: &'a mut Log<H>,
    content: Content,
    id: RecordId,
    /// Bytes that the log itself put in front of the payload.
    prelude: usize,
}

impl<H: Host> RecordWriter<'_, H> {
    /// Appends to the payload, which stays within the bound stated at the beginning (asserted). The bytes are summed as they are copied.
    pub fn put(&mut self, bytes: &[u8]) {
        self.log.open.as_mut().expect("the record is open").put(bytes);
    }

    /// Payload bytes put so far.
    pub fn payload_bytes(&self) -> usize {
        self.log.open.as_ref().expect("the record is open").put_bytes() as usize - self.prelude
    }

    /// The record is complete; it goes out with the batch. Cannot fail.
    pub fn finish(self) -> Appended {
        let log = &mut *self.log;
        let (header, place, at) = log.finish_record();
        match self.content {
            Content::Message => log.message_appended(self.id, place),
            Content::Chunk => log.chunk_appended(self.id, &header, place),
        }
        let open = log.open.as_mut().expect("the batch is open");
        open.urgent = true;
        let start = at + RECORD_HEADER_BYTES + self.prelude;
        let payload = start..at + RECORD_HEADER_BYTES + header.body_bytes as usize;
        Appended { ticket: log.commit.next(), location: log.location(place), payload }
    }

    /// Rolls the open batch back: the record was never begun.
    pub fn abort(self) {}
}

impl<H: Host> Drop for RecordWriter<'_, H> {
    fn drop(&mut self) {
        // After `finish` no record is open and this does nothing.
        if let Some(open) = self.log.open.as_mut() {
            open.abort();
        }
    }
}

impl<H: Host> Log<H> {
    /// Begins a message or a chunk of at most `payload_bytes_max` bytes in the batch that gathers.
    ///
    /// `id` must be new to the log for a message without chunks (asserted). See [`AppendError`] for what each refusal means.
    pub fn begin(
        &mut self,
        content: Content,
        id: RecordId,
        payload_bytes_max: u32,
        now: Instant,
    ) -> Result<RecordWriter<'_, H>, AppendError> {
        self.check_open()?;
        if self.config.role == Role::Adopted {
            return Err(AppendError::Adopted);
        }
        let known = self.index.find(id);
        if let Some(known) = known {
            assert!(self.index.message(known).state == MessageState::Open, "a message is committed once");
        }
        let chunks = known.map_or(0, |known| self.index.message(known).chunks);
        let (kind, prelude) = match content {
            Content::Message if chunks > 0 => (RecordKind::Message, CHUNKS_BYTES),
            Content::Message => (RecordKind::Message, 0),
            Content::Chunk => (RecordKind::Chunk, 0),
        };
        if content == Content::Chunk && self.open_bytes + u64::from(payload_bytes_max) > self.config.open_bytes_max {
            return Err(AppendError::OpenMax);
        }
        // A message whose chunks are all here may end. They would fill what there is for records, and what is made for those below the limits.
        let is_end = content == Content::Message && chunks > 0;
        if self.reserve && !is_end {
            return Err(AppendError::NoSpace);
        }
        if self.segments.is_kept_from_mail() && !is_end {
            return Err(self.found_none(Asks::Content, RESERVE_SEGMENTS, now));
        }
        let body_bytes_max = payload_bytes_max.checked_add(prelude as u32).ok_or(AppendError::TooLarge)?;
        let header = RecordHeader { kind, id, index: chunks, body_bytes: 0, body_check: 0 };
        self.begin_record(header, body_bytes_max, Asks::Content, now)?;
        if prelude > 0 {
            let summary = self.chunks_summary(known.expect("it has chunks"));
            self.open.as_mut().expect("a record was begun").put(&summary);
        }
        Ok(RecordWriter { log: self, content, id, prelude })
    }

    /// Bytes that are left in the batch that gathers, or of the next one where nothing gathers: how many of those who wait for room it is
    /// worth asking, and no promise to any of them.
    pub fn batch_left(&self) -> usize {
        self.open.as_ref().filter(|open| !open.is_empty()).map_or(self.config.batch_bytes as usize, OpenBatch::left)
    }

    /// The client went away before its message was complete: its chunks stop counting at once.
    pub fn abandon(&mut self, id: RecordId) {
        let Some(at) = self.index.find(id) else { return };
        assert!(self.index.message(at).state == MessageState::Open, "a committed message is settled, not abandoned");
        let Log { index, segments, .. } = self;
        for piece in index.pieces(at) {
            segments.get_mut(piece.place.slot).release(piece.place.body_bytes);
        }
        self.is_changed = true;
        self.open_bytes -= self.index.message(at).open_bytes;
        self.index.remove(at);
    }

    /// Appends the state of one recipient, absolute. It rides on the next batch, at most 5 ms later (100 ms in reserve mode).
    ///
    /// It replaces what was appended for the same (id, index) before; which recipient `index` is, or whether 0 stands for all, is the
    /// caller's affair. The message must have been acknowledged before (no record relies on one that is not).
    pub fn outcome(&mut self, id: RecordId, index: u32, payload: &[u8], now: Instant) -> Result<Ticket, AppendError> {
        self.check_open()?;
        let at = self.committed(id)?;
        let header = RecordHeader { kind: RecordKind::Outcome, id, index, body_bytes: 0, body_check: 0 };
        let place = self.append_small(header, &[payload], Asks::Bookkeeping, now)?;
        self.hold_piece(PieceKind::Outcome, place);
        match self.index.piece_mut(at, PieceKind::Outcome, index) {
            Some(piece) => {
                // The older one counts until the newer one is acknowledged.
                let older = std::mem::replace(&mut piece.place, place);
                self.release_later(self.release_of(PieceKind::Outcome, older));
            }
            None => self.index.add_piece(at, PieceKind::Outcome, index, place, 0),
        }
        Ok(self.commit.next())
    }

    /// Appends that nothing is left to do for the message, with a last word (at most 1 KiB) for those who read the log. Rides as outcomes do.
    ///
    /// The settled record takes the place of all outcomes; it counts as long as a copy of the message record stands anywhere.
    pub fn settle(&mut self, id: RecordId, payload: &[u8], now: Instant) -> Result<Ticket, AppendError> {
        self.check_open()?;
        let at = self.committed(id)?;
        let (homes, count) = self.homes(at);
        let place = self.append_settled(id, &homes[..count], payload, Asks::Relief, now)?;
        self.hold_settled(place.slot, &homes[..count]);
        let message = self.index.message(at).place;
        self.release_later(Release::Record { slot: message.slot, body_bytes: message.body_bytes });
        let Log { index, releases, commit, config, .. } = self;
        for piece in index.pieces(at).filter(|piece| piece.kind != PieceKind::Copy) {
            releases.push_back((commit.next(), Release::of(piece.kind, piece.place, config.controls())));
        }
        index.remove(at);
        Ok(self.commit.next())
    }

    pub(crate) fn check_open(&self) -> Result<(), AppendError> {
        match self.phase {
            Phase::Open => Ok(()),
            Phase::Recovering => Err(AppendError::NotOpen),
            Phase::Stopping | Phase::Stopped | Phase::Poisoned | Phase::Retiring => Err(AppendError::Closed),
        }
    }

    fn committed(&self, id: RecordId) -> Result<u32, AppendError> {
        if self.recovery.is_some() && id.boot != self.config.boot {
            // What is known of an old message isn't complete before the old log is read.
            return Err(AppendError::NotOpen);
        }
        let at = self.index.find(id).ok_or(AppendError::Unknown)?;
        if self.index.message(at).state == MessageState::Committed { Ok(at) } else { Err(AppendError::Unknown) }
    }

    pub(crate) fn append_witness(&mut self, now: Instant) -> Result<(), AppendError> {
        let id = RecordId { boot: 0, shard: 0, sequence: 0 };
        let header = RecordHeader { kind: RecordKind::Witness, id, index: 0, body_bytes: 0, body_check: 0 };
        let fresh = self.open.as_ref().is_none_or(OpenBatch::is_empty);
        self.append_small(header, &[], Asks::Bookkeeping, now)?;
        let open = self.open.as_mut().expect("a record was appended");
        open.urgent = true;
        open.is_witness = fresh;
        Ok(())
    }

    /// Appends the seal of the use `number`: all behind `end` is to be ignored.
    pub(crate) fn append_seal(&mut self, seal: Seal, asks: Asks, now: Instant) -> Result<(), AppendError> {
        let id = RecordId { boot: 0, shard: 0, sequence: 0 };
        let header = RecordHeader { kind: RecordKind::Seal, id, index: 0, body_bytes: 0, body_check: 0 };
        let place = self.append_small(header, &[&seal.encode()], asks, now)?;
        self.segments.get_mut(place.slot).seals_for.push(seal.number);
        Ok(())
    }

    /// A settled record that names the segments where copies of its message stand.
    pub(crate) fn append_settled(
        &mut self,
        id: RecordId,
        homes: &[u64],
        payload: &[u8],
        asks: Asks,
        now: Instant,
    ) -> Result<Place, AppendError> {
        let mut named = [0; HOMES_MAX * 8];
        for (bytes, home) in named.chunks_exact_mut(8).zip(homes) {
            bytes.copy_from_slice(&home.to_le_bytes());
        }
        let header = RecordHeader { kind: RecordKind::Settled, id, index: homes.len() as u32, body_bytes: 0, body_check: 0 };
        self.append_small(header, &[&named[..homes.len() * 8], payload], asks, now)
    }

    /// A whole record at once, riding.
    pub(crate) fn append_small(&mut self, header: RecordHeader, parts: &[&[u8]], asks: Asks, now: Instant) -> Result<Place, AppendError> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        self.begin_record(header, u32::try_from(bytes).map_err(|_| AppendError::TooLarge)?, asks, now)?;
        let ride_until = self.ride_until(now);
        let open = self.open.as_mut().expect("a record was begun");
        parts.iter().for_each(|part| open.put(part));
        open.ride_until.get_or_insert(ride_until);
        Ok(self.finish_record().1)
    }

    /// Opens a record in the batch that gathers, opening a batch and a segment where needed.
    pub(crate) fn begin_record(&mut self, header: RecordHeader, body_bytes_max: u32, asks: Asks, now: Instant) -> Result<(), AppendError> {
        if BATCH_HEADER_BYTES as u64 + record_span(body_bytes_max) > u64::from(self.config.batch_bytes) {
            return Err(AppendError::TooLarge);
        }
        loop {
            match &mut self.open {
                Some(open) if open.has_room(body_bytes_max) => {
                    open.is_witness = false;
                    open.begin(header, body_bytes_max);
                    return Ok(());
                }
                Some(open) if !open.is_empty() => {
                    open.urgent = true;
                    return Err(AppendError::Full);
                }
                // Bound to what was left of its segment, and that is too little.
                Some(_) => self.open = None,
                None => self.open_batch(body_bytes_max, asks, now)?,
            }
        }
    }

    fn open_batch(&mut self, body_bytes_max: u32, asks: Asks, now: Instant) -> Result<(), AppendError> {
        let needed = (BATCH_HEADER_BYTES as u64 + record_span(body_bytes_max)).next_multiple_of(BLOCK_BYTES as u64) as u32;
        if self.segments.left() < needed {
            self.activate(asks, now)?;
        } else if asks == Asks::Bookkeeping && self.is_kept_for_compaction(needed) {
            return Err(AppendError::Full);
        }
        let slot = self.segments.active.expect("a segment was activated");
        let capacity = self.segments.left().min(self.config.batch_bytes) as usize;
        let buffer = self.host.take_buffer(self.config.batch_bytes as usize).ok_or(AppendError::Full)?;
        let segment = self.segments.get(slot);
        self.open = Some(OpenBatch::new(buffer, slot, segment.used, segment.generation, capacity));
        Ok(())
    }

    /// Goes on in a free segment.
    pub(crate) fn activate(&mut self, asks: Asks, now: Instant) -> Result<(), AppendError> {
        let kept = match asks {
            Asks::Content => RESERVE_SEGMENTS,
            Asks::Bookkeeping => 1,
            Asks::Relief | Asks::Start => 0,
        };
        if self.segments.free_count() <= kept {
            return Err(self.found_none(asks, kept, now));
        }
        self.segments.is_from_reserve = match asks {
            Asks::Content => false,
            Asks::Bookkeeping | Asks::Relief => true,
            // Mail that came in while the old segments are read would leave nothing for what they owe.
            Asks::Start => self.segments.free_count() <= RESERVE_SEGMENTS && !self.can_prepare(now),
        };
        let slot = self.segments.take_free().expect("one is free");
        self.leave_active();
        self.segments.active = Some(slot);
        self.supply.took_one();
        let first = (self.config.boot, self.commit.next().0);
        let segment = self.segments.get_mut(slot);
        segment.state = SegmentState::Active;
        segment.first = first;
        Ok(())
    }

    /// No segment is free for who asks: whether one is coming.
    fn found_none(&mut self, asks: Asks, kept: usize, now: Instant) -> AppendError {
        let is_mail = asks == Asks::Content;
        self.supply.found_none(is_mail);
        if asks == Asks::Bookkeeping && self.segments.active.is_some() && self.segments.free_count() == 0 && self.is_compacting() {
            // What is left of the active segment may be all that the copies can go into. Where they do not fit either they leave it.
            return AppendError::Full;
        }
        if !is_mail {
            // What stands in it may be dead, or little enough to be carried out of it: as long as it is written to it cannot be freed.
            self.leave_active();
        }
        let more = self.can_prepare(now) || (!is_mail && self.can_prepare_below(now));
        if more || self.segments.coming_count() > kept { AppendError::Full } else { AppendError::NoSpace }
    }

    /// Nothing more is appended to the active segment.
    fn leave_active(&mut self) {
        if let Some(left) = self.segments.active.take() {
            self.segments.get_mut(left).state = SegmentState::Full;
            self.is_changed = true;
        }
    }

    /// Closes the open record: its header, its place in the segment, its offset in the batch.
    pub(crate) fn finish_record(&mut self) -> (RecordHeader, Place, usize) {
        let open = self.open.as_mut().expect("a record is open");
        let (header, at) = open.finish();
        (header, Place { slot: open.slot, offset: open.offset + at as u32, body_bytes: header.body_bytes }, at)
    }

    fn message_appended(&mut self, id: RecordId, place: Place) {
        let at = self.index.find(id).unwrap_or_else(|| self.index.insert(id, MessageState::Open));
        let message = self.index.message_mut(at);
        self.open_bytes -= std::mem::take(&mut message.open_bytes);
        message.state = MessageState::Committed;
        message.place = place;
        self.segments.get_mut(place.slot).hold(place.body_bytes);
    }

    fn chunk_appended(&mut self, id: RecordId, header: &RecordHeader, place: Place) {
        let at = self.index.find(id).unwrap_or_else(|| self.index.insert(id, MessageState::Open));
        let message = self.index.message_mut(at);
        message.chunks += 1;
        message.open_bytes += u64::from(header.body_bytes);
        self.open_bytes += u64::from(header.body_bytes);
        let check = self.segments.get(place.slot).generation.plain_check(header.body_check, header.body_bytes);
        self.index.add_piece(at, PieceKind::Chunk, header.index, place, check);
        self.segments.get_mut(place.slot).hold(place.body_bytes);
    }

    /// Bytes of the chunks and a CRC over their CRCs, as a message record carries them.
    pub(crate) fn chunks_summary(&mut self, at: u32) -> [u8; CHUNKS_BYTES] {
        let (mut bytes, mut check) = (0u64, 0);
        for key in 0..self.index.message(at).chunks {
            if let Some(piece) = self.index.piece_mut(at, PieceKind::Chunk, key) {
                bytes += u64::from(piece.place.body_bytes);
                check = crc32c::crc32c_append(check, &piece.check.to_le_bytes());
            }
        }
        let mut summary = [0; CHUNKS_BYTES];
        summary[0..8].copy_from_slice(&bytes.to_le_bytes());
        summary[8..12].copy_from_slice(&check.to_le_bytes());
        summary
    }
}
