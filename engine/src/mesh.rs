//! What shards say to each other, and the task that hears it.

use std::{cell::RefCell, future::poll_fn, rc::Rc};

use ringpost_lane::{Endpoint, Incoming, LaneSettings, MeshCredit, MeshPermit, Refusal, SLOT_BYTES, ShardId, mesh};
use ringpost_ring::Accepted;

use crate::shard::Shard;

/// Messages taken in before other tasks get their turn.
const MESSAGES_PER_TURN: usize = 256;

/// A request to another shard.
pub(crate) enum ShardRequest {
    /// Serve this connection, which came in by the `[[listener]]` of this number. Full: it is kept.
    Connection {
        /// Accepted, and nothing received from it.
        accepted: Accepted,
        /// In the order of the config.
        listener: u16,
    },
}

/// What became of one.
pub(crate) enum ShardReply {
    /// The connection is the other shard's, which has counted it.
    Taken,
}

const _: () = assert!(size_of::<ShardRequest>() < SLOT_BYTES && size_of::<ShardReply>() < SLOT_BYTES);

/// One shard's end of the mesh, to be moved to its thread.
pub struct MeshEnd(Endpoint<ShardRequest, ShardReply>);

/// The ends of `shards` shards, in order.
pub fn mesh_of(shards: u16) -> Vec<MeshEnd> {
    mesh(usize::from(shards), LaneSettings::default()).into_iter().map(MeshEnd).collect()
}

/// The end in use.
pub(crate) struct Mesh(RefCell<Endpoint<ShardRequest, ShardReply>>);

impl Mesh {
    pub(crate) fn new(end: MeshEnd) -> Mesh {
        Mesh(RefCell::new(end.0))
    }

    /// Room for a request to `peer` and its reply, or not now.
    pub(crate) fn reserve(&self, peer: u16) -> Result<MeshPermit, Refusal> {
        self.0.borrow_mut().reserve(ShardId(peer))
    }

    /// Sends a request, and wakes its receiver.
    pub(crate) fn send(&self, permit: MeshPermit, request: ShardRequest) {
        let mut endpoint = self.0.borrow_mut();
        endpoint.send(permit, request);
        endpoint.flush();
    }

    /// Replies; the peer is woken when the mesh's task waits again.
    fn reply(&self, credit: MeshCredit, reply: ShardReply) {
        self.0.borrow_mut().reply(credit, reply);
    }

    fn receive(&self) -> Option<(ShardId, Incoming<ShardRequest, ShardReply, MeshCredit>)> {
        self.0.borrow_mut().receive()
    }
}

impl Shard {
    /// Hears the other shards until the thread ends.
    pub(crate) async fn serve_mesh(self: Rc<Self>) {
        loop {
            let mut messages = 0;
            while let Some((_, incoming)) = self.mesh.receive() {
                match incoming {
                    Incoming::Request(ShardRequest::Connection { accepted, listener }, credit) => {
                        self.take_connection(accepted, usize::from(listener));
                        self.mesh.reply(credit, ShardReply::Taken);
                    }
                    Incoming::Reply(ShardReply::Taken) => {}
                }
                messages += 1;
                if messages % MESSAGES_PER_TURN == 0 {
                    self.ring.yield_now().await;
                }
            }
            self.ring.hear(poll_fn(|cx| self.mesh.0.borrow_mut().poll_ring(cx))).await;
        }
    }
}
