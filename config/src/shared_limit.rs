//! What of a limit over all nodes holds while they cannot agree on it.

use crate::choice::choice;

choice! {
    /// What holds while Valkey is away.
    WithoutValkey {
        /// Each node has an equal part of the limit.
        Share = "share",
        /// There is no limit.
        Open = "open",
        /// Nothing passes.
        Closed = "closed",
    }
}
