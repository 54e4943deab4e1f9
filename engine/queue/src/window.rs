//! How many attempts at a time one destination bears: learned from what it says.
//!
//! Grows by 1/window per delivered transaction, so by about one per round of deliveries; loses one when a connection fails or
//! a peer closes one; halves when the peer says that it is too much.

use crate::route::DestinationLimits;

/// The window is counted in thousandths of an attempt.
const ONE: u32 = 1000;

/// Attempts at a time, from 1 to the connections that the route allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    thousandths: u32,
}

impl Window {
    /// As at the start, and after the destination was away.
    pub(crate) fn new(limits: &DestinationLimits) -> Self {
        Self { thousandths: limits.window_initial.clamp(1, limits.connections_max.max(1)).saturating_mul(ONE) }
    }

    /// Attempts at a time.
    pub(crate) fn attempts(self) -> u32 {
        self.thousandths / ONE
    }

    /// A transaction was delivered.
    pub(crate) fn grow(&mut self, limits: &DestinationLimits) {
        let most = limits.connections_max.max(1).saturating_mul(ONE);
        // Where all goes well it is as large as it may be, and a division is the longest step of settling.
        if self.thousandths != most {
            self.thousandths = (self.thousandths + ONE * ONE / self.thousandths).min(most);
        }
    }

    /// The limits are others now: what was learned holds as far as they allow.
    pub(crate) fn limit(&mut self, limits: &DestinationLimits) {
        self.thousandths = self.thousandths.min(limits.connections_max.max(1).saturating_mul(ONE));
    }

    /// It bears so many, and no more.
    pub(crate) fn come_down_to(&mut self, attempts: u32) {
        self.thousandths = self.thousandths.min(attempts.max(1).saturating_mul(ONE));
    }

    /// A connection failed, or was closed by the peer.
    pub(crate) fn lose_one(&mut self) {
        self.thousandths = self.thousandths.saturating_sub(ONE).max(ONE);
    }

    /// The peer asked for less.
    pub(crate) fn halve(&mut self) {
        self.thousandths = (self.thousandths / 2).max(ONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Jitter;

    #[test]
    fn it_stays_within_its_bounds_whatever_happens() {
        for seed in 0..100 {
            let mut random = Jitter::new(seed);
            let limits = DestinationLimits {
                connections_max: random.below(30) as u32,
                window_initial: random.below(40) as u32,
                ..DestinationLimits::default()
            };
            let mut window = Window::new(&limits);
            for _ in 0..1000 {
                match random.below(6) {
                    0 => window.lose_one(),
                    1 if random.below(4) == 0 => window.halve(),
                    _ => window.grow(&limits),
                }
                assert!((1..=limits.connections_max.max(1)).contains(&window.attempts()), "seed {seed}: {window:?}");
            }
        }
    }

    #[test]
    fn a_round_of_deliveries_adds_about_one() {
        let limits = DestinationLimits { connections_max: 100, window_initial: 10, ..DestinationLimits::default() };
        let mut window = Window::new(&limits);
        for round in 0..20 {
            let before = window.attempts();
            (0..before).for_each(|_| window.grow(&limits));
            assert!((before..=before + 1).contains(&window.attempts()), "round {round}");
        }
        assert!(window.attempts() > 25);
        window.halve();
        assert!(window.attempts() < 16);
    }
}
