//! Items of which something was heard, to be asked for before the round: each stands there once, however often it was said.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use super::{Offers, take};
use crate::work_queue::IDS_PER_CALL;

/// Calls for what has happened, after which the round goes on: a busy queue does not keep it from its end.
const SOON_IN_A_ROW_MAX: u32 = 3;

/// In the order in which it was heard first.
#[derive(Debug, Default)]
pub(super) struct Soon {
    order: VecDeque<Arc<str>>,
    waiting: HashSet<Arc<str>>,
}

impl Soon {
    pub(super) fn push(&mut self, id: &str) {
        if !self.waiting.contains(id) {
            let id: Arc<str> = id.into();
            self.waiting.insert(id.clone());
            self.order.push_back(id);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The next; what is heard of it from now on has it asked for again.
    pub(super) fn pop(&mut self) -> Option<String> {
        let id = self.order.pop_front()?;
        self.waiting.remove(&id);
        Some((*id).to_owned())
    }

    /// The next, so many at most.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<String>> {
        let ids: Vec<String> = std::iter::from_fn(|| self.pop()).take(count).collect();
        (!ids.is_empty()).then_some(ids)
    }
}

impl Offers {
    pub(super) fn next_to_ask(&mut self) -> Option<Vec<String>> {
        if self.soon_in_a_row < SOON_IN_A_ROW_MAX
            && let Some(ids) = self.chosen(|offers| offers.ask_soon.take(IDS_PER_CALL), |_| true)
        {
            self.soon_in_a_row += 1;
            return Some(ids);
        }
        self.soon_in_a_row = 0;
        let round = self.chosen(|offers| take(&mut offers.ask), |_| true);
        round.or_else(|| self.chosen(|offers| offers.ask_soon.take(IDS_PER_CALL), |_| true))
    }
}
