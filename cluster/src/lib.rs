//! Several nodes as one engine, over Valkey: membership, election, work queue, config distribution, shared throttles.
//!
//! Valkey stores, nodes decide, and nothing that a mail needs waits for it. The rules are pure (`now` is an argument) and the
//! modules below each hold one: read [`election`] and [`fence`] first, they say why two leaders do no harm.
#![forbid(unsafe_code)]

pub mod agent;
pub mod boot_time;
pub mod breaker;
pub mod chores;
pub mod circuits;
pub mod claim;
mod completion;
pub mod config_watch;
pub mod control_plane;
pub mod durable_file;
pub mod election;
pub mod fence;
pub mod floor_file;
pub mod handle;
pub mod identity;
pub mod item_queue;
pub mod keyspace;
pub mod lease_load;
pub mod membership;
pub mod offer;
pub mod partition_count;
pub mod progress;
pub mod pushed_config;
mod reply;
pub mod restraint;
pub mod script;
pub mod shares;
pub mod shares_file;
pub mod standing;
pub mod surroundings;
pub mod target;
pub mod throttle;
pub mod valkey;
pub mod valkey_error;
mod withdrawal;
pub mod work_item;
pub mod work_queue;
