//! `ringpost-load`: mail as load, a next hop that keeps accounts, and results that can be trusted and compared.
//!
//! A run is measured by one [`measurement::Recorder`] per thread; a [`measurement::Measurement`] gathers their parts once a
//! second and ends as a [`run_result::RunResult`], the JSON that everything behind it reads.

#![forbid(unsafe_code)]

pub mod addresses;
pub mod checksum;
pub mod cli;
pub mod compare;
pub mod connections;
pub mod content;
mod deadlines;
pub mod diff;
pub mod encoded_histogram;
pub mod engine;
pub mod error_kind;
pub mod free_port;
pub mod history;
pub mod identity;
pub mod ingredients;
pub mod input_file;
pub mod interval;
pub mod leash;
pub mod ledger;
pub mod live;
pub mod machine;
pub mod measurement;
pub mod omission;
pub mod own_floor;
pub mod parts;
pub mod percentile;
pub mod permissions;
pub mod phase;
pub mod pinning;
pub mod process;
pub mod random;
pub mod report;
pub mod run_result;
#[cfg(test)]
mod sample_run;
pub mod scenario;
pub mod schedule;
mod server_cores;
pub mod server_cpu;
pub mod signals;
pub mod sink;
pub mod sizes;
pub mod source;
pub mod template;
pub mod tui;
