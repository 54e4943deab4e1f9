//! The small sender, sink and fault rigs behind `./dev`.
//!
//! Small and honest: every message carries its identity, length and hash; the sender writes a ledger of what was
//! acknowledged, the sink one of what arrived, and [`ledger::difference`] judges.
#![forbid(unsafe_code)]

pub mod allocations;
pub mod arrival;
pub mod bench;
pub mod bench_floor;
pub mod connections;
pub mod content;
pub mod contest;
pub mod crash;
pub mod demo;
pub mod dialogue;
pub mod disk;
pub mod engine;
pub mod faults;
pub mod flushes;
pub mod interop;
pub mod ledger;
pub mod load;
pub mod machine;
pub mod peer;
pub mod postfix;
pub mod powercut;
pub mod random;
pub mod sender;
mod sender_session;
pub mod shards;
pub mod sink;
mod sink_session;
pub mod unpacked;
pub mod volume;
pub mod witness;
