//! The durable log as pure rules: no I/O, no clock, no async.
//!
//! One [`Log`] is the whole spool of one shard, one state machine. The driver turns a crank:
//!
//! ```text
//! append:    begin -> put .. -> finish = Appended { ticket, .. }     outcome, settle = ticket
//! drive:     while let Some(op) = log.poll(now)   { execute op }
//! on result: log.completed(id, result, now)
//!            while let Some(event) = log.event()  { Acknowledged(ticket) -> say 250 to all up to it, Poisoned -> 451, ... }
//! sleep:     until a completion, an append, or log.next_deadline()
//! ```
//!
//! Payloads are opaque. The format is in `docs/spool-format.md`; the rules S1 to S26 that the code cites are the spool's contract.

#![forbid(unsafe_code)]

mod append;
mod batch;
mod check;
mod commit;
mod compaction;
mod config;
mod controls;
mod event;
mod fetch;
mod heads;
mod id_table;
mod index;
mod load;
mod log;
mod op;
mod open_batch;
mod read;
mod reading;
mod record;
mod recovery;
mod release;
mod scan;
mod seal;
mod search;
mod segment;
mod segments;
mod supply;

pub use append::{AppendError, Appended, Content, RecordWriter};
pub use batch::{BATCH_BYTES_MAX, BATCH_HEADER_BYTES, BLOCK_BYTES, Ticket};
pub use commit::BATCHES_IN_FLIGHT_MAX;
pub use compaction::Carried;
pub use config::{LogConfig, PREPARE_RETRY, RIDE_IN_RESERVE_MAX, RIDE_MAX, Role, WITNESS_AFTER};
#[cfg(feature = "controls")]
pub use controls::{Controls, forged_batch, forged_run};
pub use event::{Damage, DamageKind, Event, PoisonReason, RecoveryError, RecoveryReport};
pub use log::{Doubt, FoundFile, Log, Space};
pub use op::{BatchBuffer, Host, Op, OpId, OpKind, OpResult};
pub use read::{Location, QueuedMessage, RecordDamaged};
pub use record::{ID_PART_MAX, RECORD_HEADER_BYTES, RecordId, RecordKind};
pub use segment::{FORMAT, SegmentFile, blank_front};
pub use segments::RESERVE_SEGMENTS;
pub use supply::{Ahead, Room};
