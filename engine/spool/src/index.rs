//! What is queued, and where on the disk: one slab entry per unsettled message, one piece per chunk, outcome or older copy.

use crate::id_table::IdTable;
use crate::record::RecordId;

/// Where a record stands: slot of the segment table, offset of its header, length of its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) slot: u32,
    pub(crate) offset: u32,
    pub(crate) body_bytes: u32,
}

/// How far a message has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MessageState {
    /// Recovery met records about it, but not its message record: not yet, or it may stand in what this start could not read.
    Unseen,
    /// Chunks are written, the message record isn't.
    Open,
    /// It exists.
    Committed,
}

/// One message. 48 bytes.
#[derive(Clone, Copy)]
pub(crate) struct MessageEntry {
    id: [u64; 2],
    pub(crate) place: Place,
    /// First of its pieces, or `NONE`.
    pieces: u32,
    pub(crate) chunks: u32,
    /// While open: bytes of its chunks.
    pub(crate) open_bytes: u64,
    pub(crate) state: MessageState,
}

/// What a [`Piece`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PieceKind {
    /// A chunk of the content; `key` is its index, `check` its plain CRC.
    Chunk,
    /// The newest outcome of the recipient `key`.
    Outcome,
    /// A copy of the message record that compaction left behind; `key` is the low half of the number of its segment's use.
    Copy,
}

/// One more record of a message.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) kind: PieceKind,
    pub(crate) key: u32,
    pub(crate) place: Place,
    pub(crate) check: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;

/// All unsettled messages of a log.
#[derive(Default)]
pub(crate) struct Index {
    table: IdTable,
    messages: Vec<MessageEntry>,
    free_messages: Vec<u32>,
    pieces: Vec<Piece>,
    free_pieces: Vec<u32>,
}

impl Index {
    pub(crate) fn len(&self) -> usize {
        self.messages.len() - self.free_messages.len()
    }

    pub(crate) fn find(&self, id: RecordId) -> Option<u32> {
        let packed = pack(id);
        self.table.find(hash(packed), |at| self.messages[at as usize].id == packed)
    }

    /// Adds a message that isn't known.
    pub(crate) fn insert(&mut self, id: RecordId, state: MessageState) -> u32 {
        let place = Place { slot: 0, offset: 0, body_bytes: 0 };
        let entry = MessageEntry { id: pack(id), place, pieces: NONE, chunks: 0, open_bytes: 0, state };
        let at = match self.free_messages.pop() {
            Some(at) => {
                self.messages[at as usize] = entry;
                at
            }
            None => {
                self.messages.push(entry);
                self.messages.len() as u32 - 1
            }
        };
        let Index { table, messages, .. } = self;
        table.insert(hash(pack(id)), at, |other| hash(messages[other as usize].id));
        at
    }

    /// Takes a message and its pieces out; the caller has dealt with what they held.
    pub(crate) fn remove(&mut self, at: u32) {
        let mut piece = self.messages[at as usize].pieces;
        while piece != NONE {
            self.free_pieces.push(piece);
            piece = self.pieces[piece as usize].next;
        }
        let Index { table, messages, .. } = self;
        table.remove(hash(messages[at as usize].id), at, |other| hash(messages[other as usize].id));
        messages[at as usize].id = [u64::MAX; 2];
        self.free_messages.push(at);
    }

    pub(crate) fn message(&self, at: u32) -> &MessageEntry {
        &self.messages[at as usize]
    }

    pub(crate) fn message_mut(&mut self, at: u32) -> &mut MessageEntry {
        &mut self.messages[at as usize]
    }

    pub(crate) fn id(&self, at: u32) -> RecordId {
        unpack(self.messages[at as usize].id)
    }

    /// All messages, in no particular order.
    pub(crate) fn all(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.messages.len() as u32).filter(|&at| self.messages[at as usize].id != [u64::MAX; 2])
    }

    pub(crate) fn pieces(&self, at: u32) -> Pieces<'_> {
        Pieces { index: self, next: self.messages[at as usize].pieces }
    }

    /// The piece of this kind and key.
    pub(crate) fn piece_mut(&mut self, at: u32, kind: PieceKind, key: u32) -> Option<&mut Piece> {
        let mut next = self.messages[at as usize].pieces;
        while next != NONE {
            let piece = self.pieces[next as usize];
            if piece.kind == kind && piece.key == key {
                return Some(&mut self.pieces[next as usize]);
            }
            next = piece.next;
        }
        None
    }

    pub(crate) fn add_piece(&mut self, at: u32, kind: PieceKind, key: u32, place: Place, check: u32) {
        let piece = Piece { kind, key, place, check, next: self.messages[at as usize].pieces };
        let new = match self.free_pieces.pop() {
            Some(new) => {
                self.pieces[new as usize] = piece;
                new
            }
            None => {
                self.pieces.push(piece);
                self.pieces.len() as u32 - 1
            }
        };
        self.messages[at as usize].pieces = new;
    }

    /// Drops the pieces for which `keep` is false.
    pub(crate) fn retain_pieces(&mut self, at: u32, mut keep: impl FnMut(&Piece) -> bool) {
        let (mut previous, mut next) = (NONE, self.messages[at as usize].pieces);
        while next != NONE {
            let piece = self.pieces[next as usize];
            if keep(&piece) {
                previous = next;
            } else {
                self.free_pieces.push(next);
                match previous {
                    NONE => self.messages[at as usize].pieces = piece.next,
                    previous => self.pieces[previous as usize].next = piece.next,
                }
            }
            next = piece.next;
        }
    }
}

/// The pieces of one message, newest first.
pub(crate) struct Pieces<'a> {
    index: &'a Index,
    next: u32,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.next == NONE {
            return None;
        }
        let piece = self.index.pieces[self.next as usize];
        self.next = piece.next;
        Some(piece)
    }
}

fn pack(id: RecordId) -> [u64; 2] {
    [id.boot << 16 | u64::from(id.shard), id.sequence]
}

fn unpack(packed: [u64; 2]) -> RecordId {
    RecordId { boot: packed[0] >> 16, shard: packed[0] as u16, sequence: packed[1] }
}

/// Ids are ours and mostly consecutive: a multiplication spreads them, nobody outside chooses them.
fn hash(packed: [u64; 2]) -> u64 {
    let mixed = (packed[0] ^ packed[1].rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: u64) -> RecordId {
        RecordId { boot: 7, shard: 3, sequence }
    }

    fn place(offset: u32) -> Place {
        Place { slot: 1, offset, body_bytes: 10 }
    }

    #[test]
    fn a_queued_message_with_one_outcome_costs_at_most_96_bytes() {
        // Slab entry, piece, and the table at its emptiest (3/8 full after it doubled).
        assert!(size_of::<MessageEntry>() + size_of::<Piece>() + 4 * 8 / 3 <= 96);
    }

    #[test]
    fn pieces_are_found_moved_and_dropped() {
        let mut index = Index::default();
        let at = index.insert(id(1), MessageState::Open);
        for key in 0..5 {
            index.add_piece(at, PieceKind::Outcome, key, place(key), 0);
        }
        index.piece_mut(at, PieceKind::Outcome, 2).expect("it was added").place = place(99);
        assert!(index.piece_mut(at, PieceKind::Chunk, 2).is_none());
        index.retain_pieces(at, |piece| piece.key % 2 == 0);
        let left: Vec<_> = index.pieces(at).map(|piece| (piece.key, piece.place.offset)).collect();
        assert_eq!(left, [(4, 4), (2, 99), (0, 0)]);
        index.remove(at);
        assert_eq!((index.find(id(1)), index.len()), (None, 0));
        assert_eq!(index.insert(id(2), MessageState::Open), at, "the slot is used again");
        assert_eq!(index.id(at), id(2));
    }
}
