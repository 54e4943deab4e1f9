//! What recovery makes of each record it reads: the index as it was, whatever the order in which segments are read.

use std::collections::HashMap;
use std::ops::Range;

use crate::check::u64_at;
use crate::event::{Event, RecoveryReport};
use crate::index::{MessageState, PieceKind, Place};
use crate::log::Log;
use crate::op::Host;
use crate::record::{CHUNKS_BYTES, RecordHeader, RecordId, RecordKind};
use crate::release::Release;

/// A record that the driver is told of; its body stands in the window.
pub(crate) struct Found {
    pub(crate) header: RecordHeader,
    pub(crate) body: Range<usize>,
}

/// What is known of the old log only while it is read.
#[derive(Default)]
pub(crate) struct Known {
    /// Settled messages, and the slot that holds the record which says so.
    settled: HashMap<RecordId, u32>,
    /// What messages in chunks say about them, by place in the index.
    summaries: HashMap<u32, [u8; CHUNKS_BYTES]>,
}

impl<H: Host> Log<H> {
    /// Takes one record in. Returns whether the driver wants to know of it.
    pub(crate) fn load(&mut self, known: &mut Known, header: &RecordHeader, place: Place, body: &[u8]) -> bool {
        match header.kind {
            RecordKind::Message => self.load_message(known, header, place, body),
            RecordKind::Chunk => {
                let check = self.segments.get(place.slot).generation.plain_check(header.body_check, header.body_bytes);
                self.load_piece(known, header.id, PieceKind::Chunk, header.index, place, check);
                false
            }
            RecordKind::Outcome => self.load_piece(known, header.id, PieceKind::Outcome, header.index, place, 0),
            RecordKind::Settled => self.load_settled(known, header, place, body),
            RecordKind::Seal | RecordKind::Witness => false,
        }
    }

    fn load_message(&mut self, known: &mut Known, header: &RecordHeader, place: Place, body: &[u8]) -> bool {
        let number = self.segments.get(place.slot).number;
        if let Some(&settled_in) = known.settled.get(&header.id) {
            // The settled record names its homes; this holds it too should it stand somewhere it didn't know of.
            let holder = self.segments.get(settled_in);
            if settled_in != place.slot && !holder.held_for.iter().any(|held| held.0 == number) {
                self.hold_settled(settled_in, &[number]);
            }
            return false;
        }
        let at = self.index.find(header.id).unwrap_or_else(|| self.index.insert(header.id, MessageState::Unseen));
        let message = *self.index.message(at);
        if message.state == MessageState::Committed {
            let (newer, older) = if self.is_newer(place, message.place) { (place, message.place) } else { (message.place, place) };
            self.segments.get_mut(message.place.slot).release(message.place.body_bytes);
            self.segments.get_mut(newer.slot).hold(newer.body_bytes);
            self.index.message_mut(at).place = newer;
            let key = self.segments.get(older.slot).number as u32;
            self.index.add_piece(at, PieceKind::Copy, key, older, 0);
            return false;
        }
        let message = self.index.message_mut(at);
        (message.state, message.place, message.chunks) = (MessageState::Committed, place, header.index);
        self.segments.get_mut(place.slot).hold(place.body_bytes);
        if header.index > 0 {
            let summary = body.get(..CHUNKS_BYTES).and_then(|summary| summary.try_into().ok()).unwrap_or_default();
            known.summaries.insert(at, summary);
        }
        true
    }

    fn load_piece(&mut self, known: &Known, id: RecordId, kind: PieceKind, key: u32, place: Place, check: u32) -> bool {
        if known.settled.contains_key(&id) {
            return false;
        }
        let at = self.index.find(id).unwrap_or_else(|| self.index.insert(id, MessageState::Unseen));
        let older = self.index.piece_mut(at, kind, key).map(|piece| piece.place);
        match older {
            Some(older) if !self.is_newer(place, older) => return false,
            Some(older) => {
                self.release(self.release_of(kind, older));
                self.index.piece_mut(at, kind, key).expect("it was just found").place = place;
            }
            None => self.index.add_piece(at, kind, key, place, check),
        }
        self.hold_piece(kind, place);
        true
    }

    fn load_settled(&mut self, known: &mut Known, header: &RecordHeader, place: Place, body: &[u8]) -> bool {
        for home in body.chunks_exact(8).take(header.index as usize).map(|home| u64_at(home, 0)) {
            if self.holds_use(home) || self.segments.may_be_unknown(home) {
                self.hold_settled(place.slot, &[home]);
            }
        }
        known.settled.insert(header.id, place.slot);
        // The driver hears of it also where its message was not met: in what is read later, or recycled long ago.
        let Some(at) = self.index.find(header.id) else { return true };
        let message = *self.index.message(at);
        self.release_pieces(at);
        known.summaries.remove(&at);
        if message.state == MessageState::Committed {
            self.segments.get_mut(message.place.slot).release(message.place.body_bytes);
        }
        // A home that the record doesn't know of is found by the copies met so far.
        let copies = self.index.pieces(at).filter(|piece| piece.kind == PieceKind::Copy).map(|piece| piece.place.slot);
        let met: Vec<u32> = copies.chain((message.state == MessageState::Committed).then_some(message.place.slot)).collect();
        for slot in met {
            let number = self.segments.get(slot).number;
            if slot != place.slot && !self.segments.get(place.slot).held_for.iter().any(|held| held.0 == number) {
                self.hold_settled(place.slot, &[number]);
            }
        }
        self.index.remove(at);
        true
    }

    /// The old log is read to its end: what has no message goes, unless it may be in what could not be read; what lacks chunks is told.
    pub(crate) fn finish_loading(&mut self, known: &Known, report: &mut RecoveryReport) {
        let all: Vec<u32> = self.index.all().collect();
        let unread_upto = self.segments.unread_upto();
        for at in all {
            if self.index.id(at).boot == self.config.boot {
                // Came in while the old log was read.
                continue;
            }
            if self.index.message(at).state == MessageState::Unseen {
                // Its message may stand where this start could not read it: a later one that can needs the rest.
                if unread_upto.is_some_and(|upto| self.index.id(at).boot <= upto) {
                    continue;
                }
                report.orphaned_chunks += self.index.pieces(at).filter(|piece| piece.kind == PieceKind::Chunk).count() as u64;
                self.release_pieces(at);
                self.index.remove(at);
                continue;
            }
            report.messages += 1;
            if known.summaries.get(&at).is_some_and(|&summary| summary != self.chunks_summary(at)) {
                self.events.push_back(Event::Incomplete { id: self.index.id(at) });
            }
        }
    }

    fn release_pieces(&mut self, at: u32) {
        let held = |piece: &crate::index::Piece| piece.kind != PieceKind::Copy;
        let releases: Vec<Release> = self.index.pieces(at).filter(held).map(|piece| self.release_of(piece.kind, piece.place)).collect();
        releases.into_iter().for_each(|release| self.release(release));
    }

    /// Whether `place` is at a greater log position than `other`.
    fn is_newer(&self, place: Place, other: Place) -> bool {
        let position = |place: Place| (self.segments.get(place.slot).first, place.offset);
        position(place) > position(other)
    }
}
