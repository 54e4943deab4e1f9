//! Who acts: node, incarnation, epoch, and the leadership that is made of them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest node id, in bytes.
pub const NODE_ID_BYTES_MAX: usize = 64;

/// The highest epoch: Lua counts in doubles, which are exact up to here.
pub const EPOCH_MAX: u64 = (1 << 53) - 1;

/// A leadership further than this above what a node has accepted is none: at three elections a second it would take decades. Whoever can
/// write to Valkey could else use up all epochs in one step, and no later leader could be followed, whatever is restored.
pub const EPOCH_JUMP_MAX: u64 = 1 << 32;

/// A name or an epoch that came from outside and is none.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
pub enum IdentityError {
    /// Not 1 to [`NODE_ID_BYTES_MAX`] letters, digits, dots, hyphens and underscores.
    #[error("{0:?} is not a node id: 1 to 64 letters, digits, '.', '-' and '_'")]
    NodeId(String),
    /// Not `node:` and 32 hexadecimal digits.
    #[error("{0:?} is not an incarnation")]
    Incarnation(String),
    /// Not `incarnation/epoch`.
    #[error("{0:?} is not a leadership")]
    Leadership(String),
}

/// The name of a node, as its operator gave it: 1 to 64 of `A-Z a-z 0-9 . - _`, so that it can stand in keys and in logs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

impl NodeId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<NodeId, IdentityError> {
        let is_name = (1..=NODE_ID_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
        if is_name { Ok(NodeId(text.to_owned())) } else { Err(IdentityError::NodeId(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for NodeId {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<NodeId, IdentityError> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> String {
        id.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One life of one node's process. A restarted process has another and can neither renew nor release what its predecessor held (L2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation {
    node: NodeId,
    random: u128,
}

impl Incarnation {
    /// `random` are 128 bits that no other process start has.
    pub fn new(node: NodeId, random: u128) -> Incarnation {
        Incarnation { node, random }
    }

    /// A fresh one, from the kernel's random bytes.
    pub fn of_this_process(node: NodeId) -> Incarnation {
        let mut random = [0; 16];
        getrandom::fill(&mut random).expect("the kernel gives random bytes");
        Incarnation { node, random: u128::from_ne_bytes(random) }
    }

    /// Whose life this is.
    pub fn node(&self) -> &NodeId {
        &self.node
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:032x}", self.node, self.random)
    }
}

impl FromStr for Incarnation {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Incarnation, IdentityError> {
        let refused = || IdentityError::Incarnation(text.chars().take(120).collect());
        let (node, random) = text.split_once(':').ok_or_else(refused)?;
        if random.len() != 32 || !random.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refused());
        }
        let random = u128::from_str_radix(random, 16).map_err(|_| refused())?;
        Ok(Incarnation { node: node.parse()?, random })
    }
}

/// A term of leadership, counted up: whoever has seen a higher one refuses a lower one. 0 means that there was none yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Whether a node that has accepted `accepted` can come to this by elections, at most `jump` of them.
    pub fn is_within(self, jump: u64, accepted: Epoch) -> bool {
        self.0 <= accepted.0.saturating_add(jump)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who leads in which epoch. Text form: `incarnation/epoch`, the value of the leader's key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Leadership {
    /// Who.
    pub incarnation: Incarnation,
    /// Which term.
    pub epoch: Epoch,
}

impl fmt::Display for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.incarnation, self.epoch)
    }
}

impl FromStr for Leadership {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Leadership, IdentityError> {
        let refused = || IdentityError::Leadership(text.chars().take(140).collect());
        let (incarnation, epoch) = text.split_once('/').ok_or_else(refused)?;
        let epoch: u64 = epoch.parse().map_err(|_| refused())?;
        if epoch == 0 || epoch > EPOCH_MAX {
            return Err(refused());
        }
        Ok(Leadership { incarnation: incarnation.parse()?, epoch: Epoch(epoch) })
    }
}

/// What a node may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Stands for election.
    Master,
    /// Never leads.
    Worker,
    /// Stands when no master is alive.
    Standby,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_read_back_and_others_are_refused() {
        let leadership = Leadership { incarnation: Incarnation::new("mx-1.example".parse().unwrap(), 0xfeed), epoch: Epoch(7) };
        assert_eq!(leadership.to_string(), "mx-1.example:0000000000000000000000000000feed/7");
        assert_eq!(leadership.to_string().parse(), Ok(leadership));
        for bad in [
            "",
            "n1",
            "n1:12/3",
            "n1:0000000000000000000000000000feed/0",
            "n1:0000000000000000000000000000feed/9007199254740992",
            "n1:+000000000000000000000000000feed/1",
            "n 1:0000000000000000000000000000feed/1",
        ] {
            assert!(bad.parse::<Leadership>().is_err(), "{bad}");
        }
        assert!("a/b".parse::<NodeId>().is_err());
        assert!("x".repeat(65).parse::<NodeId>().is_err());
    }
}
