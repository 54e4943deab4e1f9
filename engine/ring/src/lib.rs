//! A shard's own io_uring beside its glommio executor: sockets, the spool's writes, deadlines, and the bell.
//!
//! Tasks queue requests; once per turn everything queued goes to the kernel in one system call, what has completed is collected, and the
//! tasks concerned are woken. Start with [`Ring::start`] inside a glommio executor that was built with [`PREEMPT_TIMER`]. Read [`ring`](Ring) first, then [`Conn`],
//! [`Ring::write_synced`] and [`Deadline`]; `driver.rs` says how the ring and glommio share a thread.
//!
//! - An idle connection holds no buffer: the arena lends one when bytes have arrived, and dropping [`Received`] gives it back.
//!   While buffers are short, who does not read holds none: its bytes go to the heap, within a bound (`spill.rs`).
//! - Memory and files lent to the kernel belong to the request until its last completion, whatever becomes of the future.
//! - At most one send per connection is in the kernel; what a task queues in one turn leaves as one send.
//! - Nothing here grows without limit: each queue has its bound beside its declaration.
//!
//! # Negative controls
//! **The features `mutant-chain-pushed-singly` and `mutant-no-fdatasync` break durability on purpose.** With either of them
//! [`Ring::write_synced`] may say `Ok` for bytes that a power cut takes away. They exist so that tests can be seen to go red.

// Unsafe lives here because the kernel reads and writes our memory through raw addresses: submission entries, the provided-buffer ring and
// socket addresses have no safe form. Every block names who keeps its promise.
#![allow(unsafe_code)]

mod arena;
mod bell;
mod conn;
mod connecting;
mod deadline;
mod driver;
mod file;
mod hearing;
mod kernel;
mod listener;
pub mod local;
mod mapping;
mod pages;
pub mod probe;
mod received;
mod ring;
mod sending;
mod slot;
mod socket;
mod spill;
mod write_sync;

pub use crate::{
    bell::Bell,
    conn::Conn,
    deadline::Deadline,
    driver::PREEMPT_TIMER,
    file::File,
    listener::{Accepted, Listener},
    pages::{PAGE_BYTES, PageSlice, Pages, PagesMut},
    received::Received,
    ring::{Pulse, Ring, RingConfig, RingError},
    sending::{Gather, PIECES_MAX, SendBuf},
    write_sync::{WriteError, WriteSynced},
};
