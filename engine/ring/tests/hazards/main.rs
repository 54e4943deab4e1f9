//! The ring against a real kernel: what it does, and what goes wrong at its edges.
//!
//! `commits` holds the negative controls: `cargo test -p ringpost-ring --features mutant-chain-pushed-singly` and the same with
//! `mutant-no-fdatasync` must fail there, and nowhere else.

#![allow(unsafe_code, reason = "pipes, limits and clocks have no safe form here")]

mod commits;
mod crowd;
mod edges;
mod fixture;
mod sockets;
