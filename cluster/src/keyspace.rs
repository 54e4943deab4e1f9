//! Names of keys and channels. Everything of one script is in one hash slot: the part in braces decides it (Q13).

use std::fmt;

/// The prefix that the nodes of one cluster share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keyspace(String);

/// The longest prefix, in bytes.
const KEYSPACE_BYTES_MAX: usize = 128;

impl Keyspace {
    /// 1 to 128 of `A-Z a-z 0-9 . : _ -`: braces would move the hash slot. Fails with a sentence that goes on after the value.
    pub fn new(text: &str) -> Result<Keyspace, String> {
        let is_name = (1..=KEYSPACE_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':' | b'_' | b'-'));
        if is_name { Ok(Keyspace(text.to_owned())) } else { Err("is not 1 to 128 letters, digits, '.', ':', '_' and '-'".to_owned()) }
    }

    fn control(&self, name: &str) -> String {
        format!("{{{}:c}}:{name}", self.0)
    }

    /// The lease.
    pub fn leader(&self) -> String {
        self.control("leader")
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> String {
        self.control("epoch")
    }

    /// When each node was seen last.
    pub fn members(&self) -> String {
        self.control("members")
    }

    /// What each node said last.
    pub fn nodes(&self) -> String {
        self.control("nodes")
    }

    /// Pushed configs.
    pub fn configs(&self) -> String {
        self.control("configs")
    }

    /// A random value that is new when the data is.
    pub fn generation(&self) -> String {
        self.control("generation")
    }

    /// The leader's word for the nodes.
    pub fn plan(&self) -> String {
        self.control("plan")
    }

    /// Whose part of shared limits is whose.
    pub fn shares(&self) -> String {
        self.control("shares")
    }

    /// How many partitions each work queue has.
    pub fn partitions(&self) -> String {
        self.control("partitions")
    }

    /// Which processes are being emptied.
    pub fn drains(&self) -> String {
        self.control("drains")
    }

    /// Which node runs which config, by the leader's account.
    pub fn rollout(&self) -> String {
        self.control("rollout")
    }

    /// How full the work queue is, by the leader's account.
    pub fn statistics(&self) -> String {
        self.control("statistics")
    }

    /// Joined, left, elected, released, config.
    pub fn events(&self) -> String {
        self.control("events")
    }

    /// A shared limit's state. Limits spread over the slots.
    pub fn throttle(&self, name: &str) -> String {
        format!("{{{}:t:{name}}}", self.0)
    }

    /// The keys of one partition of a work queue, in the order in which its scripts take them.
    pub fn queue(&self, queue: &str, partition: u16) -> Vec<String> {
        const NAMES: [&str; 17] = [
            "ready",
            "ages",
            "scheduled",
            "held",
            "timed",
            "workers",
            "dead",
            "meta",
            "body",
            "counters",
            "done",
            "outcomes",
            "generation",
            "epoch",
            "past",
            "past_at",
            "damaged_last",
        ];
        NAMES.iter().map(|name| format!("{{{}:q:{queue}:{partition}}}:{name}", self.0)).collect()
    }

    /// There is work in a queue.
    pub fn work_channel(&self, queue: &str) -> String {
        format!("{}:work:{queue}", self.0)
    }

    /// Completions go to the owner's channel: this and the owner's name.
    pub fn done_channel(&self, queue: &str) -> String {
        format!("{}:done:{queue}:", self.0)
    }
}

impl fmt::Display for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_partition_share_their_tag() {
        let keyspace = Keyspace::new("ringpost:cluster").unwrap();
        assert_eq!(keyspace.leader(), "{ringpost:cluster:c}:leader");
        let keys = keyspace.queue("mail", 3);
        assert!(keys.iter().all(|key| key.starts_with("{ringpost:cluster:q:mail:3}:")));
        assert!(Keyspace::new("a{b}").is_err() && Keyspace::new("").is_err());
    }
}
