//! What a connection sends: pieces in order, gathered into as few sends as there can be.
//!
//! All that a task queues in one turn leaves as one send, plain or vectored. At most one send per connection is in the kernel; what is
//! queued meanwhile leaves as the next. Emptied vectors and queues go back to pools of the ring.

use std::{collections::VecDeque, fmt, mem, ptr};

use io_uring::{opcode, squeue, types};

use crate::pages::PageSlice;

/// Pieces that one connection may have queued. A reply is one, a dot-stuffed megabyte some thousands.
pub const PIECES_MAX: usize = 65_536;

/// Slices of one vectored send; the kernel takes 1,024.
const SLICES_MAX: usize = 1024;

/// Vectors the ring keeps for later, and the largest it keeps.
const POOLED_MAX: usize = 1024;
const POOLED_BYTES_MAX: usize = 64 << 10;
/// What a new vector holds without growing: a group of replies, or a whole envelope's commands.
const VEC_BYTES: usize = 512;

/// Bytes to send.
#[derive(Debug)]
pub enum SendBuf {
    /// Constant text.
    Static(&'static [u8]),
    /// Text written for this occasion, best into a vector from [`Ring::take_vec`](crate::Ring::take_vec), where it returns.
    Owned(Vec<u8>),
    /// Part of frozen pages, not copied.
    Pages(PageSlice),
    /// Many pieces, as for dot-stuffed content, best from [`Ring::gather`](crate::Ring::gather).
    Gather(Gather),
}

impl From<&'static [u8]> for SendBuf {
    fn from(bytes: &'static [u8]) -> SendBuf {
        SendBuf::Static(bytes)
    }
}

impl<const N: usize> From<&'static [u8; N]> for SendBuf {
    fn from(bytes: &'static [u8; N]) -> SendBuf {
        SendBuf::Static(bytes)
    }
}

impl From<Vec<u8>> for SendBuf {
    fn from(bytes: Vec<u8>) -> SendBuf {
        SendBuf::Owned(bytes)
    }
}

impl From<PageSlice> for SendBuf {
    fn from(bytes: PageSlice) -> SendBuf {
        SendBuf::Pages(bytes)
    }
}

impl From<Gather> for SendBuf {
    fn from(pieces: Gather) -> SendBuf {
        SendBuf::Gather(pieces)
    }
}

/// Pieces that are sent in order, without being copied together.
#[derive(Debug, Default)]
pub struct Gather {
    pieces: Vec<Piece>,
    bytes: usize,
}

impl Gather {
    /// Appends constant text.
    pub fn push_static(&mut self, bytes: &'static [u8]) {
        self.push(Piece::Static(bytes));
    }

    /// Appends a part of frozen pages.
    pub fn push_pages(&mut self, bytes: PageSlice) {
        self.push(Piece::Pages(bytes));
    }

    /// Appends text of its own.
    pub fn push_vec(&mut self, bytes: Vec<u8>) {
        self.push(Piece::Owned(bytes));
    }

    fn push(&mut self, piece: Piece) {
        self.bytes += piece.as_slice().len();
        self.pieces.push(piece);
    }

    /// Bytes of all pieces.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }
}

#[derive(Debug)]
pub(crate) enum Piece {
    Static(&'static [u8]),
    Owned(Vec<u8>),
    Pages(PageSlice),
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Piece::Static(bytes) => bytes,
            Piece::Owned(bytes) => bytes,
            Piece::Pages(bytes) => bytes,
        }
    }
}

/// What the ring keeps of earlier sends.
#[derive(Default)]
pub(crate) struct SendPool {
    vecs: Vec<Vec<u8>>,
    gathers: Vec<Vec<Piece>>,
    #[expect(
        clippy::vec_box,
        reason = "the kernel holds its address, and a connection that sends nothing has only the space of a pointer"
    )]
    queues: Vec<Box<Sending>>,
}

impl SendPool {
    pub(crate) fn take_vec(&mut self) -> Vec<u8> {
        self.vecs.pop().unwrap_or_else(|| Vec::with_capacity(VEC_BYTES))
    }

    pub(crate) fn take_gather(&mut self) -> Gather {
        Gather { pieces: self.gathers.pop().unwrap_or_default(), bytes: 0 }
    }

    pub(crate) fn take_queue(&mut self) -> Box<Sending> {
        self.queues.pop().unwrap_or_default()
    }

    pub(crate) fn put_vec(&mut self, mut vec: Vec<u8>) {
        if self.vecs.len() < POOLED_MAX && (1..=POOLED_BYTES_MAX).contains(&vec.capacity()) {
            vec.clear();
            self.vecs.push(vec);
        }
    }

    fn put_gather(&mut self, pieces: Vec<Piece>) {
        debug_assert!(pieces.is_empty(), "its pieces were queued");
        if self.gathers.len() < POOLED_MAX && (1..=POOLED_BYTES_MAX / size_of::<Piece>()).contains(&pieces.capacity()) {
            self.gathers.push(pieces);
        }
    }

    pub(crate) fn put_queue(&mut self, mut queue: Box<Sending>) {
        queue.pieces.drain(..).for_each(|piece| self.put_piece(piece));
        if self.queues.len() < POOLED_MAX && queue.pieces.capacity() <= POOLED_BYTES_MAX / size_of::<Piece>() {
            queue.bytes = 0;
            queue.sent_of_first = 0;
            self.queues.push(queue);
        }
    }

    fn put_piece(&mut self, piece: Piece) {
        if let Piece::Owned(vec) = piece {
            self.put_vec(vec);
        }
    }
}

/// The queue of one connection that has something to send. It does not move while a send is in the kernel.
pub(crate) struct Sending {
    pieces: VecDeque<Piece>,
    /// Bytes of all pieces that are not sent yet.
    bytes: usize,
    /// Bytes of the first piece that are sent.
    sent_of_first: usize,
    slices: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Default for Sending {
    fn default() -> Sending {
        // SAFETY: a message header of zeros is an empty message.
        let header = unsafe { mem::zeroed() };
        Sending { pieces: VecDeque::new(), bytes: 0, sent_of_first: 0, slices: Vec::new(), header }
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("pieces", &self.pieces.len()).field("bytes", &self.bytes).finish()
    }
}

impl Sending {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends `buf`, or hands it back when the queue is full.
    pub(crate) fn queue(&mut self, buf: SendBuf, pool: &mut SendPool) -> Result<(), SendBuf> {
        let pieces = match &buf {
            SendBuf::Gather(gather) => gather.pieces.len(),
            _ => 1,
        };
        if self.pieces.len() + pieces > PIECES_MAX {
            return Err(buf);
        }
        match buf {
            SendBuf::Static(bytes) => self.push(Piece::Static(bytes), pool),
            SendBuf::Owned(bytes) => self.push(Piece::Owned(bytes), pool),
            SendBuf::Pages(bytes) => self.push(Piece::Pages(bytes), pool),
            SendBuf::Gather(mut gather) => {
                gather.pieces.drain(..).for_each(|piece| self.push(piece, pool));
                pool.put_gather(gather.pieces);
            }
        }
        Ok(())
    }

    fn push(&mut self, piece: Piece, pool: &mut SendPool) {
        let bytes = piece.as_slice().len();
        if bytes == 0 {
            return pool.put_piece(piece);
        }
        self.bytes += bytes;
        self.pieces.push_back(piece);
    }

    /// The send of all that is queued, as far as one send takes it. What it names stays in place until `sent`: the bytes of a piece do
    /// not move when further pieces are queued, the slices and the header are written only here.
    pub(crate) fn entry(&mut self, fd: types::Fd) -> squeue::Entry {
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL; // the kernel goes on after a short send
        let first = &self.pieces.front().expect("there is something to send").as_slice()[self.sent_of_first..];
        if self.pieces.len() == 1 {
            return opcode::Send::new(fd, first.as_ptr(), first.len() as u32).flags(flags).build();
        }
        let slice = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        self.slices.clear();
        self.slices.push(slice(first));
        self.slices.extend(self.pieces.iter().skip(1).take(SLICES_MAX - 1).map(|piece| slice(piece.as_slice())));
        self.header.msg_iov = self.slices.as_mut_ptr();
        self.header.msg_iovlen = self.slices.len();
        opcode::SendMsg::new(fd, ptr::from_ref(&self.header)).flags(flags as u32).build()
    }

    /// The kernel has taken `bytes`. Tells whether all is sent.
    pub(crate) fn sent(&mut self, bytes: usize, pool: &mut SendPool) -> bool {
        assert!(bytes <= self.bytes, "the kernel sends no more than it was given");
        self.bytes -= bytes;
        self.sent_of_first += bytes;
        while let Some(first) = self.pieces.front()
            && self.sent_of_first >= first.as_slice().len()
        {
            self.sent_of_first -= first.as_slice().len();
            let piece = self.pieces.pop_front().expect("it was just looked at");
            pool.put_piece(piece);
        }
        self.pieces.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_short_goes_on_where_it_stopped() {
        let mut pool = SendPool::default();
        let mut sending = Sending::default();
        for part in [&b"one"[..], b"", b"three", b"seven"] {
            sending.queue(part.into(), &mut pool).unwrap();
        }
        let mut all = Vec::new();
        for step in [1usize, 2, 3, 4, 3] {
            let mut left: Vec<u8> = sending.pieces.iter().flat_map(|p| p.as_slice().to_vec()).collect();
            left.drain(..sending.sent_of_first);
            assert_eq!(left.len(), sending.bytes());
            all.extend_from_slice(&left[..step]);
            assert_eq!(sending.sent(step, &mut pool), left.len() == step);
        }
        assert_eq!(all, b"onethreeseven");
    }

    #[test]
    fn an_owned_vector_comes_back_empty_with_its_room() {
        let mut pool = SendPool::default();
        let mut sending = Sending::default();
        sending.queue(Vec::with_capacity(100).into(), &mut pool).unwrap();
        sending.queue(SendBuf::Owned(b"abc".to_vec()), &mut pool).unwrap();
        assert!(sending.sent(3, &mut pool));
        let first = pool.take_vec();
        assert!(first.is_empty() && first.capacity() >= 3);
        assert_eq!(pool.take_vec().capacity(), 100);
    }

    #[test]
    fn a_full_queue_hands_the_buffer_back() {
        let mut pool = SendPool::default();
        let mut sending = Sending::default();
        for _ in 0..PIECES_MAX {
            sending.queue(b"x".into(), &mut pool).unwrap();
        }
        assert!(matches!(sending.queue(b"y".into(), &mut pool), Err(SendBuf::Static(b"y"))));
    }
}
