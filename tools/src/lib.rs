//! The fault rigs behind `./dev`.
//!
//! Their mail comes from the source of `ringpost-load` and goes to its sink ([`traffic`]): every message carries its identity, length and
//! checksum, the source writes a ledger of what was acknowledged, the sink one of what arrived, and the difference judges.
#![forbid(unsafe_code)]

pub mod allocations;
pub mod bench;
pub mod bench_cluster;
pub mod bench_floor;
pub mod bench_relay;
pub mod cluster;
pub mod cluster_demo;
pub mod connections;
pub mod contest;
pub mod crash;
pub mod demo;
pub mod destinations;
pub mod dialogue;
pub mod disk;
pub mod dns;
pub mod engine;
pub mod events;
pub mod faults;
pub mod floor;
pub mod flushes;
pub mod goals;
pub mod heading;
pub mod homes;
pub mod hops;
pub mod interop;
pub mod machine;
pub mod million;
pub mod odd_content;
pub mod peer;
pub mod postfix;
pub mod powercut;
pub mod priorities;
pub mod shards;
pub mod syscalls;
pub mod traffic;
pub mod unpacked;
pub mod valkey_server;
pub mod volume;
pub mod witness;
