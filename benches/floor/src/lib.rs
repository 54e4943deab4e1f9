//! The floor: the least that any honest acceptor of mail must do on this machine.
//!
//! Raw io_uring: multishot accept and receive into provided buffers, no parsing beyond line ends and the final dot, the same bytes to a
//! pre-written log (O_DIRECT write linked to fdatasync, two in flight, acknowledged in order), the same replies, every 250 after its flush.
//! In relay mode each message then goes to a next hop on kept connections, and its outcome into a later batch. It checks nothing, finds
//! nothing again and has no answer to failure but to end. It shares no code with the engine, so that what the engine costs can be said in
//! floors. Read [`server`] first.

// The kernel reads and writes our memory through raw addresses; see docs/decisions/0021-unsafe-in-the-floor.md. Every block names who
// keeps its promise.
#![allow(unsafe_code)]

pub mod client;
pub mod echo;
pub mod kernel;
pub mod log;
pub mod memory;
pub mod relay;
pub mod server;
