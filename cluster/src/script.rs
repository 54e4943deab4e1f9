//! The Lua scripts, one transition each, compiled into the program.

use std::{collections::HashMap, sync::LazyLock};

/// One script and the hash by which the server knows it.
#[derive(Debug)]
pub struct Script {
    /// The file's name without its ending.
    pub name: &'static str,
    source: String,
    hash: String,
}

impl Script {
    /// For tests that change a script to see that it is missed.
    pub fn new(name: &'static str, source: String) -> Script {
        let hash = redis::Script::new(&source).get_hash().to_owned();
        Script { name, source, hash }
    }

    /// The Lua text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// SHA-1 of the text, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// All scripts, by name.
#[derive(Debug)]
pub struct Scripts(HashMap<&'static str, Script>);

macro_rules! sources {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("../scripts/", $name, ".lua")))),*] };
}

/// Name and text of each.
const SOURCES: &[(&str, &str)] = &sources![
    "leader_acquire",
    "leader_announce",
    "leader_renew",
    "leader_release",
    "leader_write",
    "heartbeat",
    "leave",
    "drain_begin",
    "drain_end",
    "partitions_set",
    "members",
    "members_prune",
    "config_publish",
    "config_read",
    "config_history",
    "config_poll",
    "throttle_reserve",
    "throttle_charge",
    "queue_enqueue",
    "queue_lease",
    "queue_complete",
    "queue_fail",
    "queue_extend",
    "queue_renew",
    "queue_recover",
    "queue_known",
    "queue_quarantine",
    "queue_restore",
    "queue_probe",
    "queue_names",
    "queue_settled",
    "queue_refuse",
    "queue_withdraw",
    "queue_dead",
    "queue_requeue",
    "queue_purge",
    "queue_retire",
    "queue_stats",
];

/// What scripts share: the functions, and the text that goes in front of a script that uses one of them.
const SHARED: [(&[&str], &str); 2] = [
    (&["announce("], include_str!("../scripts/announce.lua")),
    (&["meta_of(", "heard_at(", "check_keys(", "tally("], include_str!("../scripts/queue_meta.lua")),
];

static SHIPPED: LazyLock<Scripts> = LazyLock::new(|| Scripts::changed(|_, source| source.to_owned()));

impl Scripts {
    /// As shipped.
    pub fn shipped() -> &'static Scripts {
        &SHIPPED
    }

    /// As shipped, but with `change` applied to each text: a negative control.
    pub fn changed(change: impl Fn(&str, &str) -> String) -> Scripts {
        let whole = |source: String| -> String {
            // Flags stand in the first line. What the cluster lives by is small, and written also where Valkey has no room for mail.
            let flags = if source.starts_with("#!") { source.find('\n').map_or(source.len(), |end| end + 1) } else { 0 };
            let (flags, source) = source.split_at(flags);
            let shared = SHARED.iter().filter(|(functions, _)| functions.iter().any(|function| source.contains(function)));
            std::iter::once(flags).chain(shared.map(|(_, text)| *text)).chain([source]).collect()
        };
        Scripts(SOURCES.iter().map(|(name, source)| (*name, Script::new(name, whole(change(name, source))))).collect())
    }

    /// One of them, for benches; panics for a name that is none.
    pub fn named(&self, name: &'static str) -> &Script {
        self.get(name)
    }

    pub(crate) fn get(&self, name: &'static str) -> &Script {
        self.0.get(name).expect("the name is one of the list")
    }
}
