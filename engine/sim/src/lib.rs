//! A seeded disk that tears, reorders and forgets, and the lives of a log on it. Never shipped.
//!
//! [`run`] is one seed: the shard's own [`Log`](ringpost_spool::Log) on a [`Disk`], cut wherever chance says, with a ledger of what was
//! promised; [`run_shards`] is several logs whose shards come and go. `ringpost-disk-model` runs many and counts what they met.

#![forbid(unsafe_code)]

mod actions;
pub mod content;
mod control;
mod counters;
mod disk;
pub mod ledger;
mod random;
mod small_log;
pub mod station;
mod world;

pub use control::Control;
pub use counters::Counters;
pub use disk::{Cut, Disk, Landing, Name, SECTOR_BYTES};
pub use random::Random;
pub use small_log::small_log;
pub use world::{Loss, run, run_shards};
