//! The connections of one destination, and who waits for one.

use std::{collections::VecDeque, rc::Rc};

use super::{ahead::Ahead, chain::Link, parked::Parked, waiting::Waiting};

/// The connections of one destination, as counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolView {
    /// Dialing, in use or saying goodbye.
    pub active: u32,
    /// Idle.
    pub idle: u32,
    /// Both.
    pub total: u32,
    /// Attempts that wait for one.
    pub waiting: u32,
}

/// A destination with a connection, or an attempt that waits for one.
pub(super) struct Place<T> {
    /// The one used last is at the back and is used next, so that the others may time out.
    pub(super) idle: VecDeque<Rc<Parked<T>>>,
    /// Where it stands among the destinations with an idle connection, while it has one.
    pub(super) rests_at: Option<Link>,
    pub(super) soon_idle: usize,
    pub(super) connections: u32,
    /// Those of them that were greeted and have not ended.
    pub(super) up: u32,
    pub(super) connections_max: u32,
    pub(super) ahead: Ahead,
    pub(super) waiting: VecDeque<Rc<Waiting<T>>>,
}

impl<T> Default for Place<T> {
    fn default() -> Self {
        Place {
            idle: VecDeque::new(),
            rests_at: None,
            soon_idle: 0,
            connections: 0,
            up: 0,
            connections_max: 0,
            ahead: Ahead::default(),
            waiting: VecDeque::new(),
        }
    }
}

impl<T> Place<T> {
    pub(super) fn is_unused(&self) -> bool {
        self.connections == 0 && self.waiting.is_empty()
    }

    /// It wants a connection, which its own limit allows.
    pub(super) fn may_have_more(&self) -> bool {
        !self.waiting.is_empty() && self.connections < self.connections_max
    }
}
