//! Bounded lock-free lanes between threads, with wakers.
//!
//! - [`bell()`]: one listener, many ringers. A thread sleeps on one bell, whatever number of lanes lead to it.
//! - [`lane()`]: single producer, single consumer; between two shards.
//! - [`Port`]: two lanes between two shards, carrying requests and replies. A request reserves the place of its reply first, so a
//!   reply is never refused and two full directions cannot deadlock.
//! - [`mesh()`]: the ports of all shards, each made at its first use.
//! - [`mailbox()`]: many producers; between a shard and the coordinator's ordinary thread.
//!
//! Everything that is sent is published at once, and the other side is woken once per [`Sender::flush`]: send a batch, then flush.
//! A full lane gives the item back and counts; its sender's bell rings when there is room again.
//!
//! The unsafe code is in `bell` and `lane`, tested under loom (`RUSTFLAGS="--cfg loom" cargo test --release -p ringpost-lane --test loom`).

mod bell;
mod lane;
#[cfg(not(loom))]
mod mailbox;
mod mesh;
mod port;
mod sync;

pub use bell::{Bell, Listener, bell};
pub use lane::{Full, Receiver, SLOT_BYTES, SLOTS_MAX, Sender, lane};
#[cfg(not(loom))]
pub use mailbox::{MailReceiver, MailSender, mailbox};
pub use mesh::{Endpoint, MeshCredit, MeshPermit, SHARDS_MAX, ShardId, mesh};
pub use port::{Credit, Incoming, LaneSettings, Permit, Port, Refusal};
