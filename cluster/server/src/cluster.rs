//! Servers that form a cluster, as `valkey-cli --cluster create` makes one.

use std::time::{Duration, Instant};

use crate::Server;

/// Gives each server, started with `--cluster-enabled yes`, its part of the slots and has all meet. Returns as soon as each says that the cluster is
/// whole.
pub fn form(servers: &[Server]) {
    for (index, server) in servers.iter().enumerate() {
        let (from, to) = (index * 16384 / servers.len(), (index + 1) * 16384 / servers.len() - 1);
        assert!(server.command(&format!("CLUSTER ADDSLOTSRANGE {from} {to}")).starts_with("+OK"));
        server.command(&format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1));
        if index > 0 {
            server.command(&format!("CLUSTER MEET 127.0.0.1 {}", servers[0].port()));
        }
    }
    let began = Instant::now();
    while !servers.iter().all(|server| server.command("CLUSTER INFO").contains("cluster_state:ok")) {
        assert!(began.elapsed() < Duration::from_secs(60), "the servers do not form a cluster");
        std::thread::sleep(Duration::from_millis(20));
    }
}
