//! Reading content back: where it stands, and whether what was read is what was written.

use crate::batch::blocks_around;
use crate::index::{MessageState, PieceKind, Place};
use crate::log::Log;
use crate::op::Host;
use crate::record::{RECORD_HEADER_BYTES, RecordHeader, RecordId, payload};
use crate::segment::SegmentFile;

/// Where a record stands. Good as long as it is pinned or its message's record has not been carried forward: ask anew for each attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// The file.
    pub file: SegmentFile,
    /// Of the record header in the file.
    pub offset: u32,
    /// Length of the body.
    pub body_bytes: u32,
    slot: u32,
}

impl Location {
    /// The whole blocks to read: (offset in the file, bytes).
    pub fn blocks(&self) -> (u64, usize) {
        let (offset, bytes) = blocks_around(u64::from(self.offset), (RECORD_HEADER_BYTES as u64) + u64::from(self.body_bytes));
        (offset, bytes as usize)
    }
}

/// One queued message as the log knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueuedMessage {
    /// The message record.
    pub location: Location,
    /// Chunks that its content is made of.
    pub chunks: u32,
}

/// What [`Log::check`] found wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the record does not verify")]
pub struct RecordDamaged;

impl<H: Host> Log<H> {
    pub(crate) fn location(&self, place: Place) -> Location {
        let file = self.segments.get(place.slot).file;
        Location { file, offset: place.offset, body_bytes: place.body_bytes, slot: place.slot }
    }

    /// Where the message record of `id` stands now, to be read once its ticket is acknowledged; `None` when it isn't in the log, isn't committed or is settled.
    pub fn message(&self, id: RecordId) -> Option<QueuedMessage> {
        let message = self.index.message(self.index.find(id)?);
        (message.state == MessageState::Committed).then(|| QueuedMessage { location: self.location(message.place), chunks: message.chunks })
    }

    /// Where a chunk of a message stands now.
    pub fn chunk(&self, id: RecordId, index: u32) -> Option<Location> {
        let at = self.index.find(id)?;
        let mut pieces = self.index.pieces(at);
        pieces.find(|piece| piece.kind == PieceKind::Chunk && piece.key == index).map(|piece| self.location(piece.place))
    }

    /// Where the newest outcomes of a message stand: (recipient, location), to be read once their tickets are acknowledged.
    pub fn outcomes(&self, id: RecordId) -> impl Iterator<Item = (u32, Location)> + '_ {
        let pieces = self.index.find(id).map(|at| self.index.pieces(at));
        let outcomes = pieces.into_iter().flatten().filter(|piece| piece.kind == PieceKind::Outcome);
        outcomes.map(|piece| (piece.key, self.location(piece.place)))
    }

    /// Unsettled committed messages, in no particular order.
    pub fn queued(&self) -> impl Iterator<Item = RecordId> + '_ {
        let committed = |&at: &u32| self.index.message(at).state == MessageState::Committed;
        self.index.all().filter(committed).map(|at| self.index.id(at))
    }

    /// Keeps the segment of `location` from being freed while it is read. Pair with [`unpin`](Log::unpin).
    pub fn pin(&mut self, location: &Location) {
        self.segments.get_mut(location.slot).pins += 1;
    }

    /// The reading is over.
    pub fn unpin(&mut self, location: &Location) {
        let pins = &mut self.segments.get_mut(location.slot).pins;
        *pins = pins.checked_sub(1).expect("it was pinned");
        self.is_changed = true;
    }

    /// The payload of the record of `id` at `location` within `blocks`, which were read as [`Location::blocks`] says.
    ///
    /// Fails when header or body do not verify: then nothing of it may be delivered.
    pub fn check<'b>(&self, id: RecordId, location: &Location, blocks: &'b [u8]) -> Result<&'b [u8], RecordDamaged> {
        let generation = self.segments.get(location.slot).generation;
        let (start, _) = location.blocks();
        let at = (u64::from(location.offset) - start) as usize;
        let header = blocks.get(at..).and_then(|bytes| RecordHeader::decode(bytes, generation)).ok_or(RecordDamaged)?;
        let body =
            blocks.get(at + RECORD_HEADER_BYTES..).and_then(|bytes| bytes.get(..location.body_bytes as usize)).ok_or(RecordDamaged)?;
        let right = header.id == id && header.body_bytes == location.body_bytes && generation.body_check(body) == header.body_check;
        if !right {
            return Err(RecordDamaged);
        }
        Ok(payload(&header, body))
    }
}
