//! Why mail in a ready queue waits, in words and with its end.

use std::fmt;

use crate::rate::Rate;

/// What keeps the next attempt at a destination from starting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wait {
    /// Its route holds it.
    Held,
    /// An operator paused it.
    Paused,
    /// DNS has not answered yet.
    Asking,
    /// DNS gave no answer that could be used; it is asked again then.
    Unanswered {
        /// Unix milliseconds.
        until: u64,
    },
    /// No host serves; the next probe is made then. Unix milliseconds.
    BreakerOpen {
        /// Unix milliseconds.
        until: u64,
    },
    /// A host that failed is being tried again, and what that comes to is waited for.
    Probing,
    /// It asked for less.
    Throttled {
        /// Unix milliseconds.
        until: u64,
    },
    /// It refuses connections because it has enough of them, and none of this node's is up; the next one is tried then.
    Crowded {
        /// Unix milliseconds.
        until: u64,
    },
    /// An attempt could not be made for a reason of our own.
    Shortage {
        /// Unix milliseconds.
        until: u64,
    },
    /// As many attempts are open as it is thought to bear.
    Window {
        /// Open now.
        attempts: u32,
        /// Allowed now.
        window: u32,
    },
    /// As many attempts are open as it has lately allowed connections.
    Full {
        /// Open now.
        attempts: u32,
    },
    /// Another shard owns the connections, and has as many attempts of this one as it is given.
    Home {
        /// There now.
        out: u32,
    },
    /// The route's rate is used up.
    Rate {
        /// When the next message may go, unix milliseconds.
        until: u64,
        /// The rate of this shard.
        rate: Rate,
    },
    /// Others have what the cluster's rate allows, or it is being asked for.
    SharedRate {
        /// When the next message may go, or is asked for again, unix milliseconds.
        until: u64,
        /// The rate of all nodes.
        rate: Rate,
    },
    /// Valkey does not answer about the cluster's rate, which lets nothing go without it.
    SharedShut {
        /// When it is asked again, unix milliseconds.
        until: u64,
        /// The rate of all nodes.
        rate: Rate,
    },
    /// Nothing: its turn comes at once.
    #[default]
    Turn,
}

impl Wait {
    /// When time alone ends it, unix milliseconds.
    pub const fn until(self) -> Option<u64> {
        match self {
            Self::Unanswered { until }
            | Self::BreakerOpen { until }
            | Self::Throttled { until }
            | Self::Crowded { until }
            | Self::Shortage { until }
            | Self::Rate { until, .. }
            | Self::SharedRate { until, .. }
            | Self::SharedShut { until, .. } => Some(until),
            Self::Held
            | Self::Paused
            | Self::Asking
            | Self::Probing
            | Self::Window { .. }
            | Self::Full { .. }
            | Self::Home { .. }
            | Self::Turn => None,
        }
    }

    /// The same, with another end where time ends it.
    #[must_use]
    pub(crate) const fn until_at(self, until: u64) -> Self {
        match self {
            Self::Unanswered { .. } => Self::Unanswered { until },
            Self::Throttled { .. } => Self::Throttled { until },
            Self::Crowded { .. } => Self::Crowded { until },
            Self::Rate { rate, .. } => Self::Rate { until, rate },
            Self::SharedRate { rate, .. } => Self::SharedRate { until, rate },
            Self::SharedShut { rate, .. } => Self::SharedShut { until, rate },
            Self::BreakerOpen { .. } | Self::Probing => Self::BreakerOpen { until },
            // Until it is resumed; then is only asked again.
            Self::Paused => Self::Paused,
            _ => Self::Shortage { until },
        }
    }

    /// One word for listings and `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Paused => "paused",
            Self::Asking => "dns",
            Self::Unanswered { .. } => "dns-failed",
            Self::BreakerOpen { .. } => "breaker-open",
            Self::Probing => "probing",
            Self::Throttled { .. } | Self::Crowded { .. } => "throttled",
            Self::Shortage { .. } => "shortage",
            Self::Window { .. } | Self::Full { .. } | Self::Home { .. } => "window",
            Self::Rate { .. } => "rate",
            Self::SharedRate { .. } | Self::SharedShut { .. } => "cluster-rate",
            Self::Turn => "turn",
        }
    }
}

/// A part of a sentence, without times and without what the peer said: `waits for one of 5 connections`.
impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("held by its route"),
            Self::Paused => f.write_str("the destination is paused by command"),
            Self::Asking => f.write_str("waits for an answer of DNS"),
            Self::Unanswered { .. } => f.write_str("DNS gave no answer; it is asked again at the time given"),
            Self::BreakerOpen { .. } => f.write_str("no host of the destination answers; the next probe is due at the time given"),
            Self::Probing => f.write_str("the destination is being probed"),
            Self::Throttled { .. } => f.write_str("the destination asked for less mail and is left alone"),
            Self::Crowded { .. } => {
                f.write_str("the destination allows no more connections at present; the next is tried at the time given")
            }
            Self::Shortage { .. } => f.write_str("no connection could be made for a reason on this machine"),
            Self::Window { window, .. } => {
                write!(f, "waits for its turn: {window} attempts at a time are open, as many as the destination is given")
            }
            Self::Full { attempts } => {
                write!(
                    f,
                    "waits for its turn: {attempts} attempts at a time are open, and the destination allows no more connections at present"
                )
            }
            Self::Home { out } => write!(f, "waits for its turn behind {out} attempts at the shard that delivers there"),
            Self::Rate { rate, .. } => write!(f, "waits for the rate of the destination, {rate}"),
            Self::SharedRate { rate, .. } => write!(f, "waits for the rate of the destination over all nodes, {rate}"),
            Self::SharedShut { rate, .. } => {
                write!(f, "Valkey does not answer about the rate of the destination over all nodes, {rate}, and nothing goes without it")
            }
            Self::Turn => f.write_str("its turn comes at once"),
        }
    }
}
