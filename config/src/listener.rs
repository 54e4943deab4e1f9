//! `[[listener]]`: where mail comes in.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use toml::de::DeValue;

use crate::WithoutValkey;
use crate::section::Section;
use crate::setting::{Setting, text};

/// Longest tag, in bytes; the queue has the same limit.
const TAG_BYTES_MAX: usize = 64;

/// `[[listener]]`: one address; every shard listens on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// IPv4 or IPv6 address and port, `0.0.0.0:25` or `[::1]:2525`.
    pub address: SocketAddr,
    /// What the log and the mail log call it; absent, its address.
    pub name: String,
    /// Of mail that comes in here and says nothing itself, 0 to 9.
    pub priority: Option<u32>,
    /// A tag that each message gets, by which the queue is searched.
    pub tag: Option<String>,
    /// Messages a minute that come in with this tag over all nodes; None: no limit. Beyond it 450 4.7.1.
    pub cluster_messages_per_minute: Option<u32>,
    /// What of it holds while Valkey is away.
    pub cluster_messages_without_valkey: WithoutValkey,
}

impl Listener {
    pub(crate) fn read(mut section: Section<'_, '_>) -> Option<Listener> {
        if !section.has("address") {
            section.refuse("address", "is missing: write for instance address = \"0.0.0.0:25\"");
        }
        let address = section.optional("address");
        let name: Option<String> = section.optional("name");
        if name
            .as_deref()
            .is_some_and(|name| name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)))
        {
            section.refuse("name", "is not a name: letters, digits, - _ and .");
        }
        let priority = section.optional_within("priority", 0..=9);
        let tag: Option<String> = section.optional("tag");
        if tag.as_deref().is_some_and(|tag| tag.is_empty() || tag.len() > TAG_BYTES_MAX || tag.bytes().any(|byte| byte.is_ascii_control()))
        {
            section.refuse("tag", "is not a tag: 1 to 64 bytes without control characters");
        }
        let cluster_messages_per_minute = section.optional_within("cluster_messages_per_minute", 1..=10_000_000);
        if cluster_messages_per_minute.is_some() && tag.is_none() {
            section.refuse("cluster_messages_per_minute", "is counted by tag: set tag, which is the tenant's name on all nodes");
        }
        let cluster_messages_without_valkey = section.optional("cluster_messages_without_valkey").unwrap_or(WithoutValkey::Share);
        section.finish();
        address.map(|address: SocketAddr| Listener {
            address,
            name: name.unwrap_or_else(|| address.to_string()),
            priority,
            tag,
            cluster_messages_per_minute,
            cluster_messages_without_valkey,
        })
    }
}

impl Default for Listener {
    fn default() -> Listener {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2525);
        Listener {
            address,
            name: address.to_string(),
            priority: None,
            tag: None,
            cluster_messages_per_minute: None,
            cluster_messages_without_valkey: WithoutValkey::Share,
        }
    }
}

impl Setting for SocketAddr {
    fn read(value: &DeValue<'_>) -> Result<SocketAddr, String> {
        let text = text(value, "an address and port in quotes, for instance \"0.0.0.0:25\" or \"[::]:25\"")?;
        let address: Result<SocketAddr, _> = text.parse();
        match address {
            Ok(address) if address.port() > 0 => Ok(address),
            Ok(_) => Err("has no port: it is 1 to 65535".to_owned()),
            Err(_) => Err("is not an address and port: write for instance \"0.0.0.0:25\" or \"[::]:25\"".to_owned()),
        }
    }
}
