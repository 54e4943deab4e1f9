//! Whose part of a shared limit is whose, so that it holds when nodes cannot ask Valkey. Pure.
//!
//! A node that is cut off has an equal part. Those that are not leave it that part: the leader counts who is gone without a word and says
//! what is left. One that left in order keeps nothing.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::identity::Leadership;

/// What a leader says about shared limits. Text form: `nodes connected_permille`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shares {
    /// Into so many equal parts a limit is divided for nodes that are cut off; at least 1.
    pub nodes: u32,
    /// Thousandths of each limit for those that are not; 1 to 1000.
    pub connected_permille: u32,
}

impl Default for Shares {
    /// A node that never heard of others is the only one.
    fn default() -> Shares {
        Shares { nodes: 1, connected_permille: 1000 }
    }
}

impl Shares {
    /// Of so many nodes, `gone` of which were not heard of for too long.
    pub fn of(nodes: u32, gone: u32) -> Shares {
        let nodes = nodes.max(1);
        Shares::keeping(nodes, std::iter::repeat_n(nodes, gone.min(nodes) as usize))
    }

    /// Of `nodes`; those that are gone divide by what they heard last, which may be another number.
    pub fn keeping(nodes: u32, gone: impl Iterator<Item = u32>) -> Shares {
        let kept: u32 = gone.map(|parts| 1000u32.div_ceil(parts.max(1))).fold(0, u32::saturating_add);
        Shares { nodes: nodes.max(1), connected_permille: 1000u32.saturating_sub(kept).max(1) }
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.nodes, self.connected_permille)
    }
}

impl FromStr for Shares {
    type Err = ();

    fn from_str(text: &str) -> Result<Shares, ()> {
        let (nodes, permille) = text.trim().split_once(' ').ok_or(())?;
        let (nodes, connected_permille) = (nodes.parse().map_err(|_| ())?, permille.parse().map_err(|_| ())?);
        if nodes == 0 || !(1..=1000).contains(&connected_permille) {
            return Err(());
        }
        Ok(Shares { nodes, connected_permille })
    }
}

/// [`Shares`] with whose word they are. Text form: `leadership nodes connected_permille`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Division {
    /// A node follows it only if that is the leadership it accepted last: a Valkey that lost its data takes words of a former leader until
    /// the first heartbeat has told it the epoch.
    pub by: Leadership,
    /// What it says.
    pub shares: Shares,
}

impl fmt::Display for Division {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.by, self.shares)
    }
}

impl FromStr for Division {
    type Err = ();

    fn from_str(text: &str) -> Result<Division, ()> {
        let (by, shares) = text.split_once(' ').ok_or(())?;
        Ok(Division { by: by.parse().map_err(|_| ())?, shares: shares.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_and_what_is_kept_add_up_to_no_more_than_the_limit() {
        for nodes in 1..40 {
            for gone in 0..=nodes {
                let shares = Shares::of(nodes, gone);
                assert!(gone == nodes || shares.connected_permille * nodes + gone * 1000 <= 1000 * nodes, "{nodes} {gone}");
                assert_eq!(shares.to_string().parse(), Ok(shares));
            }
        }
        assert_eq!(Shares::of(3, 1), Shares { nodes: 3, connected_permille: 666 });
        // It was cut off when there were two.
        assert_eq!(Shares::keeping(3, [2].into_iter()).connected_permille, 500);
        for bad in ["", "1", "0 1000", "2 0", "2 1001", "x 1"] {
            assert!(bad.parse::<Shares>().is_err(), "{bad}");
        }
    }
}
