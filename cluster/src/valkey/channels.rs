//! Channels that Valkey's rights keep from this node: told once, and shown while it is so.
//!
//! Nothing is lost by it. All that is said there is found by asking, too, only later.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::Valkey;

/// More are not kept apart: a cluster has one of its own, and two for each queue.
const CHANNELS_MAX: usize = 64;

/// Where this node is not heard, and where it cannot listen.
#[derive(Debug, Default)]
pub(super) struct RefusedChannels {
    speaking: BTreeSet<String>,
    listening: BTreeSet<String>,
}

impl Valkey {
    /// How it went with what a script had to say, by its code: 1 said, 0 refused, -1 there was nothing. `channel` may be the beginning of several.
    pub(crate) fn announced(&self, channel: &str, code: i64) {
        match code {
            0 => self.refused(channel, |refused| &mut refused.speaking),
            1 => self.allowed(channel, |refused| &mut refused.speaking),
            _ => {}
        }
    }

    pub(super) fn listens(&self, channels: &[String], is_allowed: bool) {
        for channel in channels {
            if is_allowed {
                self.allowed(channel, |refused| &mut refused.listening);
            } else {
                self.refused(channel, |refused| &mut refused.listening);
            }
        }
    }

    fn refused(&self, channel: &str, of: impl Fn(&mut RefusedChannels) -> &mut BTreeSet<String>) {
        let mut refused = self.channels();
        let known = of(&mut refused);
        if !known.contains(channel) && known.len() < CHANNELS_MAX {
            known.insert(channel.to_owned());
            drop(refused);
            warn!(
                valkey = %self.target,
                channel,
                "Valkey's rights refuse this node a channel: what is said there is heard later, by asking; give its user the channels of the keyspace (&...)"
            );
        }
    }

    fn allowed(&self, channel: &str, of: impl Fn(&mut RefusedChannels) -> &mut BTreeSet<String>) {
        if of(&mut self.channels()).remove(channel) {
            info!(valkey = %self.target, channel, "Valkey's rights no longer refuse this node the channel");
        }
    }

    /// Channels, or what they begin with, that Valkey's rights refuse to this node: what is said there is heard by asking.
    pub fn refused_channels(&self) -> Vec<String> {
        let refused = self.channels();
        refused.speaking.union(&refused.listening).cloned().collect()
    }

    fn channels(&self) -> std::sync::MutexGuard<'_, RefusedChannels> {
        self.channels.lock().expect("no panic happens under this lock")
    }
}
