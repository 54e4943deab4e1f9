//! Content of a guest that was not sent along: its owner reads it, piece by piece, when the connection is ready for it.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use ringpost_lane::{MeshCredit, Refusal};
use ringpost_queue::QueueId;
use ringpost_ring::PageSlice;
use slab::Slab;

use crate::{
    content::read_chunk,
    mesh::{ShardReply, ShardRequest},
    record_id::record_id,
    shard::Shard,
    stored_envelope::{MessageRecord, RecordError},
};

/// A piece as its owner has it: the bytes, and with the message record (piece 0) the number of chunks that follow.
pub(crate) type Piece = (PageSlice, u32);

/// Why a piece cannot be read; `None`: its message was taken out by command.
pub(crate) type Unread = Option<Box<str>>;

/// A piece that was asked for.
struct Fetch {
    owner: u16,
    state: Waiting,
}

enum Waiting {
    For(Option<Waker>),
    /// The attempt is gone; the answer is thrown away.
    Nobody,
    Answered(Result<Piece, Unread>),
}

/// Pieces that were asked for and not taken.
#[derive(Default)]
pub(crate) struct Fetches(RefCell<Slab<Fetch>>);

impl Fetches {
    pub(crate) fn is_waiting_for(&self, peer: u16) -> bool {
        self.0.borrow().iter().any(|(_, fetch)| fetch.owner == peer)
    }

    /// The answer to a fetch.
    pub(crate) fn answered(&self, number: u32, piece: Result<Piece, Unread>) {
        let mut fetches = self.0.borrow_mut();
        let fetch = &mut fetches[number as usize];
        match std::mem::replace(&mut fetch.state, Waiting::Answered(piece)) {
            Waiting::For(waker) => {
                drop(fetches);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Waiting::Nobody | Waiting::Answered(_) => drop(fetches.remove(number as usize)),
        }
    }

    /// No answer will come from `peer`.
    pub(crate) fn forget_peer(&self, peer: u16) {
        let open = |fetch: &Fetch| fetch.owner == peer && !matches!(fetch.state, Waiting::Answered(_));
        let lost: Vec<u32> = self.0.borrow().iter().filter(|(_, fetch)| open(fetch)).map(|(number, _)| number as u32).collect();
        for number in lost {
            self.answered(number, Err(Some("it has ended".into())));
        }
    }

    fn begin(&self, owner: u16) -> u32 {
        let number = self.0.borrow_mut().insert(Fetch { owner, state: Waiting::For(None) });
        u32::try_from(number).expect("attempts bound the fetches")
    }
}

/// Takes the answer, or leaves word that nobody waits for it.
struct Asked<'s> {
    fetches: &'s Fetches,
    number: Option<u32>,
}

impl Asked<'_> {
    async fn answer(mut self) -> Result<Piece, Unread> {
        let number = self.number.expect("it is asked once") as usize;
        let answer = poll_fn(|cx| {
            let mut fetches = self.fetches.0.borrow_mut();
            match &mut fetches[number].state {
                Waiting::Answered(_) => match fetches.remove(number).state {
                    Waiting::Answered(piece) => Poll::Ready(piece),
                    _ => unreachable!("it was looked at"),
                },
                state => {
                    *state = Waiting::For(Some(cx.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await;
        self.number = None;
        answer
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut fetches = self.fetches.0.borrow_mut();
        match &mut fetches[number as usize].state {
            Waiting::Answered(_) => drop(fetches.remove(number as usize)),
            state => *state = Waiting::Nobody,
        }
    }
}

impl Shard {
    /// Asks the owner of a message for a piece of it: 0 is the message record, the others are its chunks.
    pub(crate) async fn fetch(&self, owner: u16, id: QueueId, piece: u32) -> Result<Piece, RecordError> {
        // Of the window of the lane half is for content, and each attempt asks for one piece at a time: a full lane is a short wait.
        let permit = loop {
            match self.mesh.reserve(owner) {
                Ok(permit) => break permit,
                Err(Refusal::Closed) => return Err(RecordError::Elsewhere("its shard has ended".into())),
                Err(Refusal::LaneFull | Refusal::WindowFull) => self.mesh.room().await,
            }
        };
        let number = self.homes.fetches.begin(owner);
        self.metrics.content_fetched.increment();
        self.mesh.send(permit, ShardRequest::Content { fetch: number, id, piece });
        Asked { fetches: &self.homes.fetches, number: Some(number) }
            .answer()
            .await
            .map_err(|reason| reason.map_or(RecordError::TakenOut, RecordError::Elsewhere))
    }

    /// Is nothing of this message to be delivered any more, because a command purged it during its attempt?
    fn is_leaving(&self, id: QueueId) -> bool {
        let queue = self.queue.borrow();
        let view = queue.key_of(id).and_then(|key| queue.show(key));
        view.is_some_and(|view| view.is_closing() || view.recipients().all(|recipient| recipient.is_settled() || recipient.is_leaving()))
    }

    /// Reads a piece for the home that asks for it.
    pub(crate) fn read_for_home(self: &Rc<Self>, fetch: u32, id: QueueId, piece: u32, credit: MeshCredit) {
        let shard = self.clone();
        self.ring
            .spawn(async move {
                let piece = match shard.committer_of(id.shard) {
                    // A command has taken out all that is left: what is not begun by now is not begun.
                    _ if piece == 0 && shard.is_leaving(id) => Err(RecordError::TakenOut),
                    None => Err(RecordError::Gone),
                    Some(log) => match piece.checked_sub(1) {
                        None => MessageRecord::read(&log, record_id(id)).await.map(MessageRecord::into_parts),
                        Some(chunk) => read_chunk(&log, record_id(id), chunk).await.map(|bytes| (bytes, 0)),
                    },
                };
                let is_taken_out = || shard.queue.borrow().key_of(id).is_none_or(|key| shard.is_taken_out(key));
                let piece = piece.map_err(|reason| match reason {
                    RecordError::TakenOut => None,
                    RecordError::Gone if is_taken_out() => None,
                    reason => Some(reason.to_string().into_boxed_str()),
                });
                shard.mesh.reply(credit, ShardReply::Content { fetch, piece });
            })
            .detach();
    }
}
