//! What shards say to each other, and the task that hears it.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

use ringpost_lane::{Endpoint, Incoming, LaneSettings, MeshCredit, MeshPermit, Refusal, SHARDS_MAX, SLOT_BYTES, ShardId, mesh};
use ringpost_queue::QueueId;
use ringpost_ring::{Accepted, Ring};

use crate::{
    homes::{Parcel, PartOutcomes},
    remote_content::{Piece, Unread},
    shard::Shard,
};

/// Messages taken in before other tasks get their turn.
const MESSAGES_PER_TURN: usize = 256;

/// Open requests that one shard may have with another: dispatches, as many pieces of content, and connections, which are few.
const WINDOW: u32 = 2048;

/// A request to another shard.
pub(crate) enum ShardRequest {
    /// Serve this connection, which came in by the `[[listener]]` of this number. Full: it is kept.
    Connection {
        /// Accepted, and nothing received from it.
        accepted: Accepted,
        /// In the order of the config.
        listener: u16,
    },
    /// Make this attempt. Full: it waits with its owner, which has a few of them out at a time.
    Dispatch(Box<Parcel>),
    /// Some recipients of this dispatch of yours are decided. Full: they stay with the attempt and are told later, at its end if need be.
    Outcomes(Box<PartOutcomes>),
    /// Read a piece of a message that was dispatched. Full: the attempt waits.
    Content {
        /// Names the answer.
        fetch: u32,
        /// Of which message.
        id: QueueId,
        /// 0 is the message record, 1 and more are its chunks.
        piece: u32,
    },
    /// Commands were for dispatches of mine: those that wait for their turn come back, and those whose host has not greeted look whether they go on. Full:
    /// it is sent later.
    Commands,
}

/// What became of one. Never refused.
pub(crate) enum ShardReply {
    /// The connection is the other shard's, which has counted it; or it knows the outcomes, or of the commands.
    Taken,
    /// The attempt has ended.
    Dispatch(Box<Parcel>),
    /// The piece, or why it cannot be read.
    Content {
        /// As it was asked for.
        fetch: u32,
        /// Shared memory: it crosses without a copy.
        piece: Result<Piece, Unread>,
    },
}

const _: () = assert!(ringpost_config::topology::SHARDS_MAX <= SHARDS_MAX);
const _: () = assert!(size_of::<ShardRequest>() < SLOT_BYTES && size_of::<ShardReply>() < SLOT_BYTES);

/// One shard's end of the mesh, to be moved to its thread.
pub struct MeshEnd(Endpoint<ShardRequest, ShardReply>);

/// The ends of `shards` shards, in order: 1 to [`SHARDS_MAX`], which the plan of the cores keeps.
pub fn mesh_of(shards: u16) -> Vec<MeshEnd> {
    mesh(usize::from(shards), LaneSettings { window: WINDOW, ..LaneSettings::default() }).into_iter().map(MeshEnd).collect()
}

/// The end in use. What is sent leaves when the mesh's task runs next, in the same round of tasks.
pub(crate) struct Mesh {
    endpoint: RefCell<Endpoint<ShardRequest, ShardReply>>,
    task: RefCell<Option<Waker>>,
    is_kicked: Cell<bool>,
    /// Who waits for room in a lane: told at each ring of the bell.
    wants_room: RefCell<Vec<Waker>>,
}

impl Mesh {
    pub(crate) fn new(end: MeshEnd) -> Mesh {
        Mesh { endpoint: RefCell::new(end.0), task: RefCell::default(), is_kicked: Cell::default(), wants_room: RefCell::default() }
    }

    /// Room for a request to `peer` and its reply, or not now.
    pub(crate) fn reserve(&self, peer: u16) -> Result<MeshPermit, Refusal> {
        self.endpoint.borrow_mut().reserve(ShardId(peer))
    }

    /// Waits until there may be room in a lane that was full.
    pub(crate) async fn room(&self) {
        let mut is_registered = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut is_registered, true) {
                return Poll::Ready(());
            }
            self.wants_room.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Sends a request with its permit.
    pub(crate) fn send(&self, permit: MeshPermit, request: ShardRequest) {
        self.endpoint.borrow_mut().send(permit, request);
        self.kick();
    }

    /// Sends a reply.
    pub(crate) fn reply(&self, credit: MeshCredit, reply: ShardReply) {
        self.endpoint.borrow_mut().reply(credit, reply);
        self.kick();
    }

    /// Replies that wait for room in their lanes.
    pub(crate) fn backlog(&self) -> usize {
        self.endpoint.borrow().backlog()
    }

    fn kick(&self) {
        if !self.is_kicked.replace(true)
            && let Some(task) = &*self.task.borrow()
        {
            task.wake_by_ref();
        }
    }

    fn receive(&self) -> Option<(ShardId, Incoming<ShardRequest, ShardReply, MeshCredit>)> {
        self.endpoint.borrow_mut().receive()
    }

    /// Shards whose threads have ended.
    fn closed(&self) -> Vec<u16> {
        self.endpoint.borrow().ports().filter(|(_, port)| port.is_closed()).map(|(peer, _)| peer.0).collect()
    }

    /// Flushes, and waits for the bell.
    async fn wait(&self, ring: &Ring) {
        let mut hearing = pin!(ring.hear(poll_fn(|cx| self.endpoint.borrow_mut().poll_ring(cx))));
        poll_fn(|cx| {
            if self.task.borrow().as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
                self.task.replace(Some(cx.waker().clone()));
            }
            // What is sent from here on kicks again.
            self.is_kicked.set(false);
            hearing.as_mut().poll(cx)
        })
        .await;
    }
}

impl Shard {
    /// Hears the other shards until the thread ends.
    pub(crate) async fn serve_mesh(self: Rc<Self>) {
        loop {
            // In this order: what a shard sent before its end is received before it is given up.
            let closed = self.mesh.closed();
            let mut messages = 0;
            while let Some((_, incoming)) = self.mesh.receive() {
                self.hear_shard(incoming);
                messages += 1;
                if messages % MESSAGES_PER_TURN == 0 {
                    self.ring.yield_now().await;
                }
            }
            for peer in closed.into_iter().filter(|peer| self.homes.is_waiting_for(*peer)) {
                self.forget_peer(peer);
            }
            self.launch_waiting();
            self.mesh.wants_room.take().into_iter().for_each(Waker::wake);
            if self.is_ending() && self.mesh.backlog() == 0 {
                self.wake_life();
            }
            self.mesh.wait(&self.ring).await;
        }
    }

    fn hear_shard(self: &Rc<Self>, incoming: Incoming<ShardRequest, ShardReply, MeshCredit>) {
        match incoming {
            Incoming::Request(ShardRequest::Connection { accepted, listener }, credit) => {
                self.take_connection(accepted, usize::from(listener));
                self.mesh.reply(credit, ShardReply::Taken);
            }
            Incoming::Request(ShardRequest::Dispatch(parcel), credit) => self.receive_dispatch(parcel, credit),
            Incoming::Request(ShardRequest::Outcomes(outcomes), credit) => {
                self.take_part(*outcomes);
                self.mesh.reply(credit, ShardReply::Taken);
            }
            Incoming::Request(ShardRequest::Content { fetch, id, piece }, credit) => self.read_for_home(fetch, id, piece, credit),
            Incoming::Request(ShardRequest::Commands, credit) => {
                self.ungreeted.call(|message| message.is_none());
                self.queue.borrow_mut().send_countermanded_home(self.now_ms());
                self.note_refused();
                self.mesh.reply(credit, ShardReply::Taken);
            }
            Incoming::Reply(ShardReply::Taken) => {}
            Incoming::Reply(ShardReply::Dispatch(parcel)) => self.take_back(parcel),
            Incoming::Reply(ShardReply::Content { fetch, piece }) => self.homes.fetches.answered(fetch, piece),
        }
    }
}
