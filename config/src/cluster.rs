//! `[cluster]` and `[admin]`: this node among others, and its HTTP listener.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::choice::choice;
use crate::section::Section;

/// How often nodes may ask for a config that they did not hear of: limits of `config_poll`, and of the command that sets it for all nodes.
pub const CONFIG_POLL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// The longest `address`: a host's name and a port.
const ADDRESS_BYTES_MAX: usize = 262;

/// The longest `valkey_keyspace`.
const KEYSPACE_BYTES_MAX: usize = 128;

/// `[cluster]`: several nodes as one engine, over Valkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Whether this node is one of several.
    pub enabled: bool,
    /// Its name, unique in the cluster; None: the machine's name, which the caller looks up.
    pub node_id: Option<String>,
    /// Where clients and other nodes reach it; None: its first listener's address.
    pub address: Option<String>,
    /// What it may become.
    pub role: ClusterRole,
    /// Where Valkey is.
    pub valkey_url: String,
    /// A file whose first line is Valkey's password; a relative path starts at the config file's folder.
    pub valkey_password_file: Option<PathBuf>,
    /// The user that Sentinels know this node by; None: their default one.
    pub valkey_sentinel_user: Option<String>,
    /// A file whose first line is the password of Sentinels; None: they want none.
    pub valkey_sentinel_password_file: Option<PathBuf>,
    /// PEM certificates that Valkey's, and those of Sentinels, must lead to; None: those of the system.
    pub valkey_ca_file: Option<PathBuf>,
    /// Prefix of all keys.
    pub valkey_keyspace: String,
    /// A file with the secret that signs items of the work queue, the same on all nodes.
    pub key_file: Option<PathBuf>,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// Without a heartbeat for so long a node is offline.
    pub node_ttl: Duration,
    /// The leader's lease.
    pub leader_ttl: Duration,
    /// A worker's leases of the work queue.
    pub lease_ttl: Duration,
    /// Replicas that must have the leader's lease before it counts.
    pub replicas_required: u32,
    /// How often a node asks for a pushed config it did not hear of.
    pub config_poll: Duration,
    /// Partitions of the work queue.
    pub queue_partitions: u32,
    /// Items in one partition.
    pub queue_capacity: u32,
    /// Dead letters in one partition.
    pub dead_letters_max: u32,
    /// How long dead letters are kept.
    pub dead_letters_kept: Duration,
}

choice! {
    /// What a node may become.
    ClusterRole {
        /// Stands for election.
        Master = "master",
        /// Never leads.
        Worker = "worker",
        /// Stands when no master is alive.
        Standby = "standby",
    }
}

impl Cluster {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Cluster {
        let default = Cluster::default();
        let (ms, second, hour) = (Duration::from_millis(1), Duration::from_secs(1), Duration::from_secs(3600));
        let valkey_password_file = section.optional_path("valkey_password_file");
        let valkey_sentinel_password_file = section.optional_path("valkey_sentinel_password_file");
        let valkey_ca_file = section.optional_path("valkey_ca_file");
        let key_file = section.optional_path("key_file");
        let cluster = Cluster {
            enabled: section.read("enabled", default.enabled),
            node_id: section.optional("node_id"),
            address: section.optional("address"),
            role: section.read("role", default.role),
            valkey_url: section.read("valkey_url", default.valkey_url),
            valkey_password_file,
            valkey_sentinel_user: section.optional("valkey_sentinel_user"),
            valkey_sentinel_password_file,
            valkey_ca_file,
            valkey_keyspace: section.read("valkey_keyspace", default.valkey_keyspace),
            key_file,
            heartbeat_interval: section.within("heartbeat_interval", default.heartbeat_interval, ms * 100..=second * 60),
            node_ttl: section.within("node_ttl", default.node_ttl, second..=hour),
            leader_ttl: section.within("leader_ttl", default.leader_ttl, second..=second * 60),
            lease_ttl: section.within("lease_ttl", default.lease_ttl, second..=second * 300),
            replicas_required: section.within("replicas_required", default.replicas_required, 0..=16),
            config_poll: section.within("config_poll", default.config_poll, CONFIG_POLL),
            queue_partitions: section.within("queue_partitions", default.queue_partitions, 1..=256),
            queue_capacity: section.within("queue_capacity", default.queue_capacity, 1..=10_000_000),
            dead_letters_max: section.within("dead_letters_max", default.dead_letters_max, 1..=1_000_000),
            dead_letters_kept: section.within("dead_letters_kept", default.dead_letters_kept, second * 60..=hour * 24 * 365),
        };
        if cluster.node_ttl < cluster.heartbeat_interval * 3 {
            let key = if section.has("node_ttl") { "node_ttl" } else { "heartbeat_interval" };
            section.refuse(
                key,
                "is a contradiction: node_ttl is at least three times heartbeat_interval, or a late heartbeat takes a node offline",
            );
        }
        if let Some(node_id) = &cluster.node_id {
            let is_name =
                (1..=64).contains(&node_id.len()) && node_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
            if !is_name {
                section.refuse("node_id", "is not 1 to 64 letters, digits, '.', '-' and '_'");
            }
        }
        // As the prefix of keys, whose braces would move the hash slot.
        let keyspace = &cluster.valkey_keyspace;
        let is_prefix = (1..=KEYSPACE_BYTES_MAX).contains(&keyspace.len())
            && keyspace.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:_-".contains(&byte));
        if !is_prefix {
            let default = Cluster::default().valkey_keyspace;
            let message = format!(
                "is not 1 to {KEYSPACE_BYTES_MAX} letters, digits, '.', ':', '_' and '-': leave it out for \"{default}\", or name the cluster, \
                 the same on all nodes"
            );
            section.refuse("valkey_keyspace", message);
        }
        if cluster.address.as_ref().is_some_and(|address| address.len() > ADDRESS_BYTES_MAX || address.chars().any(char::is_control)) {
            section.refuse("address", "is not a host and a port: at most 262 bytes");
        }
        section.finish();
        cluster
    }
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            enabled: false,
            node_id: None,
            address: None,
            role: ClusterRole::Master,
            valkey_url: "valkey://127.0.0.1:6379".to_owned(),
            valkey_password_file: None,
            valkey_sentinel_user: None,
            valkey_sentinel_password_file: None,
            valkey_ca_file: None,
            valkey_keyspace: "ringpost:cluster".to_owned(),
            key_file: None,
            heartbeat_interval: Duration::from_secs(5),
            node_ttl: Duration::from_secs(30),
            leader_ttl: Duration::from_secs(3),
            lease_ttl: Duration::from_secs(3),
            replicas_required: 0,
            config_poll: Duration::from_secs(30),
            queue_partitions: 4,
            queue_capacity: 100_000,
            dead_letters_max: 10_000,
            dead_letters_kept: Duration::from_secs(14 * 24 * 3600),
        }
    }
}

/// `[admin]`: HTTP for health, metrics and the cluster's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens; None: nowhere.
    pub address: Option<SocketAddr>,
    /// A file whose first line is the token that writing needs, and reading from anywhere but this machine.
    pub token_file: Option<PathBuf>,
}

impl Admin {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Admin {
        let address: Option<SocketAddr> = section.optional::<String>("address").and_then(|text| match text.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                section.refuse("address", "is not an IP address and port, for instance \"127.0.0.1:8080\"");
                None
            }
        });
        let token_file = section.optional_path("token_file");
        if address.is_some_and(|address| !is_loopback(address.ip())) && token_file.is_none() {
            section.refuse("address", "can be reached from other machines: set token_file, or listen on 127.0.0.1");
        }
        section.finish();
        Admin { address, token_file }
    }
}

fn is_loopback(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4: Ipv4Addr| v4.is_loopback()),
    }
}
