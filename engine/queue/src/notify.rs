//! What a sender wants to be told (RFC 3461).

/// The conditions of NOTIFY as a set (RFC 3461 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Notify(pub(crate) u8);

impl Notify {
    /// Nothing was said: failure and delay are reported.
    pub const UNSAID: Self = Self(0);
    /// NEVER.
    pub const NEVER: Self = Self(1);
    /// SUCCESS.
    pub const SUCCESS: Self = Self(2);
    /// FAILURE.
    pub const FAILURE: Self = Self(4);
    /// DELAY.
    pub const DELAY: Self = Self(8);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` was asked for.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the sender is to be told of this: in doubt, yes.
    pub(crate) fn wants(self, condition: Self) -> bool {
        self == Self::UNSAID || self.has(condition)
    }
}
