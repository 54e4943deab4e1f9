//! The place where a leader's order lands: lower epochs are refused, and an equal epoch from somebody else (L5).
//!
//! A lease makes two leaders rare; this makes them harmless. What was accepted must be durable before it is acted on (L6), so
//! judging and accepting are two calls.

use crate::identity::{EPOCH_JUMP_MAX, Epoch, Leadership};

/// What a fence says to an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// From the leadership accepted last: act.
    Current,
    /// From a later one: make it durable, call [`Fence::accept`], then act.
    Newer,
    /// From an earlier one: refuse, and tell the sender the epoch, which is its floor from now on.
    Stale(Epoch),
    /// The same epoch from another incarnation: refuse. Two leaders were elected where Valkey forgot the first.
    Rival(Epoch),
    /// Further above the accepted one than elections lead ([`EPOCH_JUMP_MAX`]): refuse. Valkey is damaged, or somebody forged it.
    OutOfReach(Epoch),
}

/// The highest leadership that a receiver has accepted.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    accepted: Option<Leadership>,
}

impl Fence {
    /// As it was kept on disk; None for a node that never accepted one.
    pub fn new(accepted: Option<Leadership>) -> Fence {
        Fence { accepted }
    }

    /// The epoch below which orders are refused; 0 when none was accepted.
    pub fn floor(&self) -> Epoch {
        self.accepted.as_ref().map_or(Epoch(0), |accepted| accepted.epoch)
    }

    /// What was accepted last.
    pub fn accepted(&self) -> Option<&Leadership> {
        self.accepted.as_ref()
    }

    /// What to do with an order under `leadership`. Changes nothing.
    pub fn judge(&self, leadership: &Leadership) -> Verdict {
        if !leadership.epoch.is_within(EPOCH_JUMP_MAX, self.floor()) {
            return Verdict::OutOfReach(self.floor());
        }
        match &self.accepted {
            None => Verdict::Newer,
            Some(accepted) if leadership.epoch > accepted.epoch => Verdict::Newer,
            Some(accepted) if leadership.epoch < accepted.epoch => Verdict::Stale(accepted.epoch),
            Some(accepted) if *accepted == *leadership => Verdict::Current,
            Some(accepted) => Verdict::Rival(accepted.epoch),
        }
    }

    /// Accepts a leadership that was judged [`Verdict::Newer`] and is durable now.
    ///
    /// # Panics
    /// When the epoch would fall: that is a bug of the caller.
    pub fn accept(&mut self, leadership: Leadership) {
        assert_eq!(self.judge(&leadership), Verdict::Newer, "an accepted epoch never falls");
        self.accepted = Some(leadership);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Incarnation;

    fn leadership(random: u128, epoch: u64) -> Leadership {
        Leadership { incarnation: Incarnation::new("n1".parse().unwrap(), random), epoch: Epoch(epoch) }
    }

    #[test]
    fn lower_epochs_and_rivals_are_refused() {
        let mut fence = Fence::default();
        assert_eq!(fence.judge(&leadership(1, 4)), Verdict::Newer);
        fence.accept(leadership(1, 4));
        assert_eq!(fence.judge(&leadership(1, 4)), Verdict::Current);
        assert_eq!(fence.judge(&leadership(2, 4)), Verdict::Rival(Epoch(4)));
        assert_eq!(fence.judge(&leadership(2, 3)), Verdict::Stale(Epoch(4)));
        assert_eq!(fence.judge(&leadership(2, 5)), Verdict::Newer);
        assert_eq!(fence.judge(&leadership(2, 4 + EPOCH_JUMP_MAX)), Verdict::Newer);
        assert_eq!(fence.judge(&leadership(2, 5 + EPOCH_JUMP_MAX)), Verdict::OutOfReach(Epoch(4)));
        assert_eq!(Fence::default().judge(&leadership(2, crate::identity::EPOCH_MAX)), Verdict::OutOfReach(Epoch(0)));
        assert_eq!(fence.floor(), Epoch(4));
    }
}
