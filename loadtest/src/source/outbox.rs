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

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Body(_, body) => body.range.len(),
        }
    }
}

/// Gathers pieces. One serves all sessions of a core, as each empties it before another fills it.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: Vec<Piece>,
    /// What is being written.
    current: Vec<u8>,
    /// Vectors for later.
    spare: Vec<Vec<u8>>,
    /// Octets up to the end of the last content among the pieces, where there is one.
    content_end: Option<usize>,
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
        let before: usize = self.pieces.iter().map(Piece::len).sum();
        self.content_end = Some(before + self.current.len());
    }

    /// Is the end of a content in it?
    pub(crate) fn has_content_end(&self) -> bool {
        self.content_end.is_some()
    }

    /// Is there anything to send?
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.current.is_empty()
    }

    /// Hands out the pieces in order, and after how many octets of them the last content among them ends, if any does.
    pub fn drain(&mut self) -> (std::vec::Drain<'_, Piece>, Option<usize>) {
        self.close_current();
        (self.pieces.drain(..), self.content_end.take())
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
