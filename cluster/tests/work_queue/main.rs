//! The work queue where something is lost, damaged or left behind, on a real Valkey.

use ringpost_cluster::{
    script::Scripts,
    work_queue::{QueueBounds, WorkQueue},
};
use ringpost_valkey_server::Server;

mod counters;
mod damaged_keys;
mod dead_letters;
mod fixture;
mod full_valkey;
mod recovered;

/// Where room is of no interest.
const ROOMY: QueueBounds = QueueBounds { partitions: 1, capacity: 10_000, dead_max: 10_000 };

fn queue(server: &Server, node: &str) -> WorkQueue {
    fixture::queue(server, Scripts::shipped(), node, ROOMY)
}
