//! What keeps a segment: each record that counts is a hold on the segment it stands in, released when a later record is acknowledged.

use crate::controls::Controls;
use crate::index::{Piece, PieceKind, Place};
use crate::log::Log;
use crate::op::Host;
use crate::record::{HOMES_MAX, RecordId};

/// Something that stops counting once a later record is acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Release {
    /// Nothing: a control of the tests does not count it.
    Nothing,
    /// A message record was copied; the copy can be read from now on.
    MovedMessage { id: RecordId, from: Place, to: Place },
    /// The same of a chunk or an outcome.
    MovedPiece { id: RecordId, kind: PieceKind, key: u32, from: Place, to: Place },
    /// A live record.
    Record { slot: u32, body_bytes: u32 },
    /// A settled record that stood in the use `number` of `slot` for the sake of `home`.
    Settled { slot: u32, number: u64, home: u64 },
    /// A seal in the use `number` of `slot` for the use `sealed`.
    Seal { slot: u32, number: u64, sealed: u64 },
}

impl Release {
    pub(crate) fn of(kind: PieceKind, place: Place, controls: Controls) -> Self {
        if kind == PieceKind::Outcome && controls.outcomes_not_live {
            return Release::Nothing;
        }
        Release::Record { slot: place.slot, body_bytes: place.body_bytes }
    }
}

impl<H: Host> Log<H> {
    /// The segment in `slot` now holds a settled record for these homes; for its own sake none is held.
    pub(crate) fn hold_settled(&mut self, slot: u32, homes: &[u64]) {
        if self.config.controls().outcomes_not_live {
            return;
        }
        let segment = self.segments.get_mut(slot);
        let own = segment.number;
        homes.iter().filter(|&&home| home != own).for_each(|&home| segment.hold_for(home));
    }

    pub(crate) fn hold_piece(&mut self, kind: PieceKind, place: Place) {
        if kind != PieceKind::Outcome || !self.config.controls().outcomes_not_live {
            self.segments.get_mut(place.slot).hold(place.body_bytes);
        }
    }

    pub(crate) fn release_of(&self, kind: PieceKind, place: Place) -> Release {
        Release::of(kind, place, self.config.controls())
    }

    /// Whether the use `number` of some segment may still be found by a recovery.
    pub(crate) fn holds_use(&self, number: u64) -> bool {
        let segments = &self.segments;
        (segments.heading.is_some() && segments.ending == number)
            || segments.slots.iter().any(|segment| segment.number == number && segment.may_be_found())
    }

    /// The uses of segments in which a copy of the message record stands, or may stand, where this start could not read them.
    pub(crate) fn homes(&self, at: u32) -> ([u64; HOMES_MAX], usize) {
        let (mut homes, mut count) = ([0; HOMES_MAX], 1);
        homes[0] = self.segments.get(self.index.message(at).place.slot).number;
        for piece in self.index.pieces(at).filter(|piece| piece.kind == PieceKind::Copy) {
            if let Some(number) = self.use_of_copy(&piece) {
                assert!(count < HOMES_MAX, "compaction stops copying before");
                homes[count] = number;
                count += 1;
            }
        }
        let boot = self.index.id(at).boot;
        // Of this life everything was read; going over all segments for each message is only for what a start left behind.
        let unread = (boot < self.config.boot).then(|| self.segments.unread_uses(boot));
        for number in unread.into_iter().flatten() {
            if count < HOMES_MAX && !homes[..count].contains(&number) {
                homes[count] = number;
                count += 1;
            }
        }
        (homes, count)
    }

    /// The number of the use in which this older copy of a message record may still be found.
    pub(crate) fn use_of_copy(&self, piece: &Piece) -> Option<u64> {
        let segment = self.segments.get(piece.place.slot);
        let ending = (self.segments.heading == Some(piece.place.slot)).then_some(self.segments.ending);
        let present = segment.may_be_found().then_some(segment.number);
        [ending, present].into_iter().flatten().find(|&number| number as u32 == piece.key)
    }

    /// When the batch that gathers is acknowledged.
    pub(crate) fn release_later(&mut self, release: Release) {
        self.releases.push_back((self.commit.next(), release));
    }

    pub(crate) fn release(&mut self, release: Release) {
        self.is_changed = true;
        match release {
            Release::Nothing => (),
            Release::MovedMessage { id, from, to } => self.message_moved(id, from, to),
            Release::MovedPiece { id, kind, key, from, to } => {
                let found = self.index.find(id);
                let piece = found.and_then(|at| self.index.piece_mut(at, kind, key)).filter(|piece| piece.place == from);
                // A newer one came in between: then the copy is what doesn't count.
                let left = match piece {
                    Some(piece) => std::mem::replace(&mut piece.place, to),
                    None => to,
                };
                self.release(self.release_of(kind, left));
            }
            Release::Record { slot, body_bytes } => self.segments.get_mut(slot).release(body_bytes),
            Release::Settled { slot, number, home } => {
                let segment = self.segments.get_mut(slot);
                if segment.number == number {
                    segment.release_for(home);
                }
            }
            Release::Seal { slot, number, sealed } => {
                let segment = self.segments.get_mut(slot);
                if segment.number == number
                    && let Some(at) = segment.seals_for.iter().position(|&held| held == sealed)
                {
                    segment.seals_for.swap_remove(at);
                }
            }
        }
    }

    fn message_moved(&mut self, id: RecordId, from: Place, to: Place) {
        let found = self.index.find(id).filter(|&at| self.index.message(at).place == from);
        let left = match found {
            Some(at) => {
                self.index.message_mut(at).place = to;
                self.index.retain_pieces(at, |piece| piece.kind != PieceKind::Copy || piece.place != to);
                let number = self.segments.get(from.slot).number;
                self.index.add_piece(at, PieceKind::Copy, number as u32, from, 0);
                from
            }
            // Settled in between.
            None => to,
        };
        self.segments.get_mut(left.slot).release(left.body_bytes);
    }
}
