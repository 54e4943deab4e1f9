//! Names of destinations.

/// A route, a domain of an mx route, or a site that domains share. Never means another one later: what is told about a
/// destination that was dropped meanwhile is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DestinationId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl DestinationId {
    /// Where recipients wait for whom no route is configured (a restart with fewer routes): held until there is one.
    pub const UNROUTED: Self = Self { slot: 0, generation: 0 };

    /// A small number that no other destination has at the same time; 0 is [`Self::UNROUTED`].
    pub fn index(self) -> usize {
        self.slot as usize
    }
}
