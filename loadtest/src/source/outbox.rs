//! What one turn of a session sends: short texts written for the occasion, and parts of prepared content between them.

use crate::content::{Body, Form};

/// A part of what is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Commands, header and last line of a message.
    Bytes(Vec<u8>),
    /// A part of a prepared text.
    Body(Form, Body),
}

/// Gathers pieces. One serves all sessions of a core, as each empties it before another fills it.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: Vec<Piece>,
    /// What is being written.
    current: Vec<u8>,
    /// Vectors for later.
    spare: Vec<Vec<u8>>,
    /// Whether the end of a content is among the pieces.
    content_ends: bool,
}

impl Outbox {
    /// Where to append bytes.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.current
    }

    /// Puts a part of a prepared text behind what was written.
    pub fn push_body(&mut self, form: Form, body: Body) {
        self.close_current();
        self.pieces.push(Piece::Body(form, body));
    }

    pub(crate) fn content_ends(&mut self) {
        self.content_ends = true;
    }

    /// Is there anything to send?
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.current.is_empty()
    }

    /// Hands out the pieces in order and whether they contain the end of a content.
    pub fn drain(&mut self) -> (std::vec::Drain<'_, Piece>, bool) {
        self.close_current();
        (self.pieces.drain(..), std::mem::take(&mut self.content_ends))
    }

    /// Leaves at least `wanted` vectors ready to be written, taking new ones from `take`.
    pub fn refill(&mut self, wanted: usize, mut take: impl FnMut() -> Vec<u8>) {
        while self.spare.len() < wanted {
            self.spare.push(take());
        }
    }

    fn close_current(&mut self) {
        if !self.current.is_empty() {
            let next = self.spare.pop().unwrap_or_default();
            self.pieces.push(Piece::Bytes(std::mem::replace(&mut self.current, next)));
        }
    }
}
