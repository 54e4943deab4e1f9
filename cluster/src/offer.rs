//! The owner's side of a hand-over: what became of the mail that this node has offered to the work queue (Q18).
//!
//! ```text
//! sending -> waiting -> settling -> settled -> (forgotten)
//!  ^ |          |          ^
//!  | +-- unsure +-- back --+   back: the node delivers it itself, and takes it out of the queue as soon as Valkey answers
//!  |       |
//!  +-- fetching   its shard was asked for it once, and gives it or says that it has it no more
//! ```
//! A shard can want mail back: to change it by command, because its life has ended, or because the node shares no longer. Such mail is
//! `recalled`: it leaves the queue, and only when the queue says that it is neither there nor completed the shard is told that it is out
//! (`parted`); a worker that has leased it keeps it. With Valkey away for longer than a lease and the guard no worker that this node could
//! hear of has it, and it is out as well.
//!
//! The owner's spool holds the mail in every state but the last two. It leaves on nothing but the signed word of another that it has
//! completed it; silence, a restart, lost data or a record that nobody signed only make the owner ask, or offer again by the same id. Pure:
//! the driver reports what it heard and does what [`Offers::poll`] says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{boot_time::BootTime, work_queue::IDS_PER_CALL};

mod bounds;
mod crowd;
mod dead_letters;
mod heard;
mod heavy;
mod held_by_lease;
mod items;
mod kept;
mod late;
mod outages;
#[cfg(test)]
mod sample_bounds;
mod soon;
mod todo;
mod unread;
mod walks;

use crowd::Crowd;
use dead_letters::DeadLetter;
use heavy::Heavy;
pub use heavy::NotCarried;
use held_by_lease::HeldByLease;
use items::{Items, State, WALK_ITEMS};
use late::Late;
use outages::Outages;
use soon::Soon;
use unread::Unread;
use walks::Walks;

pub use bounds::OfferBounds;
pub use kept::RecallWait;
pub use todo::{Recall, Sending, Todo};

/// How the completer's word begins that gives an item back to its own owner.
pub const OWN_AGAIN: &str = "own-again";

/// Calls that ask, after which one that offers and one that has something forgotten come before the next.
const ASKS_IN_A_ROW_MAX: u32 = 3;
/// Calls that take out of the queue what this node delivers, after which another comes before the next.
const WITHDRAWALS_IN_A_ROW_MAX: u32 = 8;

/// All that this node has offered.
#[derive(Debug)]
pub struct Offers {
    bounds: OfferBounds,
    /// A node that does not deliver takes nothing back.
    delivers: bool,
    items: Items,
    /// Of the round that is under way.
    ask: VecDeque<String>,
    /// Something has happened to them: they come before the round.
    ask_soon: Soon,
    /// Calls with such since the round went on.
    soon_in_a_row: u32,
    /// Calls that ask since one offered; one more than the most: it has, and what is to be forgotten comes next.
    asks_in_a_row: u32,
    offer: VecDeque<String>,
    /// What there was no room for.
    crowd: Crowd,
    /// What others have, with what they said.
    settle: VecDeque<(String, String)>,
    /// Of that, what its shard could not settle.
    settle_later: VecDeque<(BootTime, (String, String))>,
    take_back: VecDeque<String>,
    /// Of a node that does not deliver.
    dead: BTreeMap<String, DeadLetter>,
    unread: Unread,
    withdraw: VecDeque<String>,
    /// Calls that withdraw since another was made.
    withdrawals_in_a_row: u32,
    leftover: VecDeque<String>,
    /// Of those, and of what is to be withdrawn, what a worker had.
    held: HeldByLease,
    free: VecDeque<String>,
    /// Records of completions that are not signed, and of withdrawals that are not yet.
    unproven: VecDeque<(String, Vec<u8>)>,
    forget: VecDeque<(BootTime, String)>,
    /// What no call has brought in, until the node delivers it itself.
    late: Late,
    /// What no call has carried in time.
    heavy: Heavy,
    /// Items of calls that were not answered, or wait for it, by partition: to be repeated when that is back.
    unheard: BTreeMap<u16, BTreeSet<String>>,
    walks: Walks,
    tell: VecDeque<(String, Recall)>,
    /// Wishes without an answer; those that have one are left out when it is their turn.
    recalls: VecDeque<String>,
    /// Recalls wait for their answer however long that takes.
    retracts: bool,
    /// The node delivers nothing any more.
    is_emptied: bool,
    generations: BTreeMap<u16, String>,
    outages: Outages,
    ask_all_at: BootTime,
}

impl Offers {
    /// Nothing is offered. `delivers`: `[delivery] deliver`.
    pub fn new(bounds: OfferBounds, delivers: bool, now: BootTime) -> Offers {
        Offers {
            bounds,
            delivers,
            items: Items::new(bounds.partitions),
            ask: VecDeque::new(),
            ask_soon: Soon::default(),
            soon_in_a_row: 0,
            asks_in_a_row: 0,
            offer: VecDeque::new(),
            crowd: Crowd::default(),
            settle: VecDeque::new(),
            settle_later: VecDeque::new(),
            take_back: VecDeque::new(),
            dead: BTreeMap::new(),
            unread: Unread::default(),
            withdraw: VecDeque::new(),
            withdrawals_in_a_row: 0,
            leftover: VecDeque::new(),
            held: HeldByLease::default(),
            free: VecDeque::new(),
            unproven: VecDeque::new(),
            forget: VecDeque::new(),
            late: Late::default(),
            heavy: Heavy::default(),
            unheard: BTreeMap::new(),
            walks: Walks::default(),
            tell: VecDeque::new(),
            recalls: VecDeque::new(),
            retracts: false,
            is_emptied: false,
            generations: BTreeMap::new(),
            outages: Outages::new(bounds.partitions),
            ask_all_at: now + bounds.reconcile_every,
        }
    }

    /// Nothing is offered, and nothing is remembered of what was.
    pub fn is_empty(&self) -> bool {
        self.items.len() == 0
    }

    /// Whether shards are to hand out mail that was not offered before: there is room, or it is not going to be offered. What is offered
    /// again, and what an earlier run may have offered, never has to ask.
    pub fn takes_new(&self) -> bool {
        self.is_local() || self.items.counts().open < self.bounds.open_max
    }

    /// Valkey, all of it, has been away for so long that the node delivers what it accepts.
    pub fn is_local(&self) -> bool {
        self.delivers && self.outages.all_over()
    }

    /// It delivers this item.
    fn is_local_for(&self, id: &str) -> bool {
        self.delivers && self.outages.is_over(id)
    }

    /// The node is emptied: what it has it delivers no more, also what it took itself.
    pub fn empty(&mut self) {
        self.is_emptied = true;
    }

    /// A shard hands out an item.
    pub fn sending(&mut self, id: &str) -> Sending {
        match self.items.get(id) {
            // Its own completion would be the answer as long as the queue has it in mind.
            Some(State::Settled { .. }) if self.is_emptied => {
                self.items.set(id, State::Freeing);
                self.free.push_back(id.to_owned());
                return Sending::Leave;
            }
            // Settled, and still there: this node's own lease ended it.
            Some(State::Back | State::Leftover | State::Settled { .. }) if self.delivers => return Sending::TakeBack,
            // What is there, or on its way, is not sent a second time.
            Some(State::Sending { .. } | State::Overdue | State::Waiting | State::Reviving | State::Freeing) => return Sending::Leave,
            Some(State::Crossing | State::Recalled | State::Leftover | State::Settling { .. } | State::Settled { .. }) => {
                return Sending::Leave;
            }
            None | Some(State::Parted | State::Gone { .. }) if self.is_local_for(id) => return Sending::TakeBack,
            None | Some(State::Unsure | State::Fetching | State::Back | State::Parted | State::Gone { .. }) => {}
        }
        self.items.set(id, State::Sending { is_done: false });
        Sending::Send
    }

    /// Whether an item has come to its end, or is about to, by all that is remembered: the queue should not have it, and this node does not say
    /// that it has the mail.
    pub fn has_ended(&self, id: &str) -> bool {
        matches!(self.items.get(id), Some(State::Settling { .. } | State::Settled { .. } | State::Gone { .. }))
    }

    /// The queue has an item of this node that has come to its end, or is about to, or that no shard knows: it was settled while the queue could
    /// not be told, or the queue has gone back in time. It is taken out, once its end is durable. With whom it was settled is not known any more,
    /// so a worker that has said that the mail is its own, and was perhaps believed, keeps it.
    pub fn orphan(&mut self, id: &str) {
        match self.items.get(id) {
            None | Some(State::Settled { .. }) => self.leave_over(id),
            // The queue is told nothing before the spool knows.
            Some(State::Settling { .. }) => drop(self.items.set(id, State::Settling { is_again: true })),
            // It was withdrawn while this node had it: no worker was believed.
            Some(State::Gone { .. }) => {
                self.items.set(id, State::Back);
                self.withdraw.push_back(id.to_owned());
            }
            Some(_) => {}
        }
    }

    /// Whether a call has brought an item into the queue, as far as this node has heard. One that is wanted back may be there all the same.
    pub fn was_brought_in(&self, id: &str) -> bool {
        self.items.get(id).is_some_and(State::was_brought_in)
    }

    /// A shard wants an item back.
    pub fn recalled(&mut self, id: &str) {
        match self.items.get(id) {
            Some(State::Leftover | State::Settling { .. } | State::Settled { .. }) => self.tell.push_back((id.to_owned(), Recall::Taken)),
            Some(State::Crossing | State::Recalled) => {}
            // Its call may take a minute. What may be in the queue after it is not out.
            Some(State::Sending { .. }) if self.tries(id) > 0 && !self.retracts => self.tell.push_back((id.to_owned(), Recall::Unanswered)),
            Some(State::Sending { .. }) => drop(self.items.set(id, State::Crossing)),
            None | Some(State::Back | State::Parted | State::Gone { .. }) => self.recall(id),
            Some(State::Unsure | State::Fetching | State::Waiting | State::Reviving | State::Freeing | State::Overdue) => {
                self.recall(id);
            }
        }
    }

    /// The node shares no longer: its shards recall everything, and wait for the answer.
    pub fn retract(&mut self) {
        self.retracts = true;
    }

    /// The spool does not have it any more: it was settled by command, or is in delivery.
    pub fn gone(&mut self, id: &str) {
        if matches!(
            self.items.get(id),
            Some(
                State::Sending { .. }
                    | State::Unsure
                    | State::Fetching
                    | State::Overdue
                    | State::Waiting
                    | State::Reviving
                    | State::Freeing
            )
        ) {
            self.items.set(id, State::Back);
            self.withdraw.push_back(id.to_owned());
        }
    }

    /// That it is settled here is durable.
    pub fn settled(&mut self, id: &str, now: BootTime) {
        match self.items.get(id) {
            Some(State::Settling { is_again: false }) => self.ended(id, now),
            Some(State::Settling { is_again: true }) => self.leave_over(id),
            _ => {}
        }
    }

    /// The shard could not settle it now, whatever the `result`: it is told again as late as a round is.
    pub fn not_settled(&mut self, id: &str, result: String, now: BootTime) {
        if matches!(self.items.get(id), Some(State::Settling { .. })) {
            self.settle_later.push_back((now + self.bounds.reconcile_every, (id.to_owned(), result)));
        }
    }

    /// The next thing to do. While Valkey is away only what concerns the shards.
    pub fn poll(&mut self, now: BootTime) -> Option<Todo> {
        for partition in self.outages.over(now - (self.bounds.lease_ttl + self.bounds.guard)) {
            if self.delivers {
                self.go_local(partition);
            }
        }
        self.go_on_local();
        self.answer_recalls();
        if !self.tell.is_empty() {
            let count = self.tell.len().min(IDS_PER_CALL);
            return Some(Todo::Tell(self.tell.drain(..count).collect()));
        }
        while let Some((id, may_be_there)) = self.late.pop(now) {
            self.is_late(&id, may_be_there, now);
        }
        // Not what was offered again meanwhile, or is another's.
        while let Some(mut ids) = take(&mut self.take_back) {
            ids.retain(|id| matches!(self.items.get(id), None | Some(State::Back | State::Settled { .. })));
            if !ids.is_empty() {
                return Some(Todo::TakeBack(ids));
            }
        }
        let due = self.settle_later.iter().take_while(|(at, _)| now >= *at).count();
        self.settle.extend(self.settle_later.drain(..due).map(|(_, item)| item));
        if !self.settle.is_empty() {
            let count = self.settle.len().min(IDS_PER_CALL);
            return Some(Todo::Settle(self.settle.drain(..count).collect()));
        }
        if self.outages.all() {
            return None;
        }
        // A round that takes longer comes to its end before the next begins, which would begin with the same.
        if now >= self.ask_all_at && self.ask.is_empty() && !self.walks.has_round() {
            self.ask_all_at = now + self.bounds.reconcile_every;
            self.begin_round();
        }
        self.go_on_round();
        self.offer_crowd(now);
        self.ask_for_held(now);
        self.ask_for_heavy(now);
        // What this node delivers itself leaves the queue first: workers are about to lease again. It can be all that its disk has.
        if self.withdrawals_in_a_row >= WITHDRAWALS_IN_A_ROW_MAX
            && let Some(todo) = self.next_beside_withdrawals(now)
        {
            self.withdrawals_in_a_row = 0;
            return Some(todo);
        }
        if let Some(ids) = self.chosen(|offers| take(&mut offers.withdraw), State::is_to_leave) {
            self.withdrawals_in_a_row = self.withdrawals_in_a_row.saturating_add(1);
            return Some(Todo::Withdraw(ids));
        }
        self.withdrawals_in_a_row = 0;
        self.next_beside_withdrawals(now)
    }

    fn next_beside_withdrawals(&mut self, now: BootTime) -> Option<Todo> {
        if let Some(ids) = self.chosen(|offers| take(&mut offers.leftover), |state| state == State::Leftover) {
            return Some(Todo::End(ids));
        }
        if let Some(ids) = self.chosen(|offers| take(&mut offers.free), |state| state == State::Freeing) {
            return Some(Todo::Forget(ids));
        }
        if let Some(records) = self.next_to_refuse() {
            return Some(Todo::Refuse(records));
        }
        // Where others complete all the time there is always something to ask.
        let turn = std::mem::replace(&mut self.asks_in_a_row, 0);
        if turn == ASKS_IN_A_ROW_MAX
            && let Some(todo) = self.next_to_offer()
        {
            self.asks_in_a_row = turn + 1;
            return Some(todo);
        }
        if turn >= ASKS_IN_A_ROW_MAX
            && let Some(todo) = self.next_to_forget(now)
        {
            return Some(todo);
        }
        if let Some(ids) = self.next_to_ask() {
            self.asks_in_a_row = if turn < ASKS_IN_A_ROW_MAX { turn + 1 } else { 1 };
            return Some(Todo::Ask(ids));
        }
        self.next_to_offer().or_else(|| self.next_to_forget(now))
    }

    /// When [`Offers::poll`] has something to do again if nothing happens.
    pub fn next_due(&self) -> BootTime {
        let has_wishes = self.outages.any() && self.recalls.len() > WALK_ITEMS;
        if has_wishes || self.walks.are_due(self.outages.all()) {
            return BootTime::default();
        }
        let rounds = self.forget.front().map_or(self.ask_all_at, |(at, _)| self.ask_all_at.min(*at));
        let is_awaited = self.delivers || !self.recalls.is_empty();
        let over = self.outages.first_fresh().filter(|_| is_awaited).map(|since| since + self.bounds.lease_ttl + self.bounds.guard);
        let due = if self.outages.all() { over.unwrap_or(rounds) } else { rounds.min(over.unwrap_or(rounds)) };
        let crowd = self.crowd.next_due().filter(|_| !self.outages.all());
        let held = self.held.next_due().filter(|_| !self.outages.all());
        let heavy = self.heavy.next_due().filter(|_| !self.outages.all());
        let later = [self.settle_later.front().map(|(at, _)| *at), self.late.next_due(), crowd, held, heavy];
        later.into_iter().flatten().fold(due, BootTime::min)
    }

    fn next_to_offer(&mut self) -> Option<Todo> {
        // An id may stand there twice.
        while let Some(mut ids) = self.chosen(|offers| take(&mut offers.offer), |state| state == State::Unsure) {
            ids.retain(|id| self.items.set(id, State::Fetching) == Some(State::Unsure));
            if !ids.is_empty() {
                return Some(Todo::Offer(ids));
            }
        }
        None
    }

    fn next_to_forget(&mut self, now: BootTime) -> Option<Todo> {
        while self.forget.front().is_some_and(|(at, _)| now >= *at) {
            let due = self.forget.iter().take(IDS_PER_CALL).take_while(|(at, _)| now >= *at).count();
            let due: Vec<(BootTime, String)> = self.forget.drain(..due).collect();
            // What was offered or withdrawn again meanwhile has another outcome, or another time.
            let is_over =
                |at, id: &str| matches!(self.items.get(id), Some(State::Settled { until } | State::Gone { until }) if until == at);
            let ids: Vec<String> = due.into_iter().filter(|(at, id)| is_over(*at, id)).map(|(_, id)| id).collect();
            let (away, ids): (Vec<String>, Vec<String>) = ids.into_iter().partition(|id| self.outages.has(id));
            away.iter().for_each(|id| self.forgotten(id, false, now));
            if !ids.is_empty() {
                return Some(Todo::Forget(ids));
            }
        }
        None
    }

    fn begin_round(&mut self) {
        self.withdraw.clear();
        self.leftover.clear();
        self.free.clear();
        self.unproven.clear();
        self.offer.clear();
        self.unheard.clear();
        let Offers { dead, unread, held, heavy, items, .. } = self;
        let is_open = |id: &str| items.get(id).is_some_and(State::is_open);
        dead.retain(|id, _| is_open(id));
        unread.retain(is_open);
        heavy.retain(is_open);
        held.retain(|id| items.get(id).is_some_and(State::can_be_held));
        self.go_round();
    }

    /// Asks or tells what an item's state wants, if nothing is on its way.
    fn look_after(&mut self, id: String) {
        match self.items.get(&id) {
            Some(State::Waiting) => self.ask.push_back(id),
            Some(State::Unsure) if self.heavy.has(&id) => self.ask.push_back(id),
            Some(State::Unsure) => self.offer.push_back(id),
            Some(State::Leftover) => self.leftover.push_back(id),
            Some(State::Freeing) => self.free.push_back(id),
            Some(State::Back | State::Recalled | State::Parted | State::Reviving | State::Overdue) => self.withdraw.push_back(id),
            Some(State::Sending { .. } | State::Fetching | State::Crossing)
            | Some(State::Settling { .. } | State::Settled { .. } | State::Gone { .. })
            | None => {}
        }
    }

    fn back(&mut self, id: &str) {
        self.items.set(id, State::Back);
        self.take_back.push_back(id.to_owned());
        self.withdraw.push_back(id.to_owned());
    }

    fn recall(&mut self, id: &str) {
        self.items.set(id, State::Recalled);
        self.withdraw.push_back(id.to_owned());
        self.recalls.push_back(id.to_owned());
    }

    fn part(&mut self, id: &str) {
        self.items.set(id, State::Parted);
        self.tell.push_back((id.to_owned(), Recall::Out));
    }

    fn settling(&mut self, id: &str, result: &str) {
        self.items.set(id, State::Settling { is_again: false });
        self.settle.push_back((id.to_owned(), result.to_owned()));
    }

    /// It has come to its end, and the queue has it.
    fn leave_over(&mut self, id: &str) {
        self.items.set(id, State::Leftover);
        self.leftover.push_back(id.to_owned());
    }

    /// A worker has what is wanted back.
    fn is_leased(&mut self, id: &str) {
        if !self.retracts {
            self.items.set(id, State::Waiting);
            self.tell.push_back((id.to_owned(), Recall::Taken));
        }
    }

    /// It is settled, or it was this node's own lease. The queue remembers that for a while, too: another's claim of it is to be refused.
    fn ended(&mut self, id: &str, now: BootTime) {
        self.remember(id, |until| State::Settled { until }, now + self.bounds.forget_after);
    }

    fn remember(&mut self, id: &str, state: fn(BootTime) -> State, until: BootTime) {
        self.items.set(id, state(until));
        self.forget.push_back((until, id.to_owned()));
    }

    /// The next ids of those taken from a queue that are in such a state. Those of a partition that is away wait for it.
    fn chosen(&mut self, taken: impl Fn(&mut Offers) -> Option<Vec<String>>, is_one: impl Fn(State) -> bool) -> Option<Vec<String>> {
        while let Some(mut ids) = taken(self) {
            ids.retain(|id| self.items.get(id).is_some_and(&is_one));
            // What was told to the queue when its partition came back may have waited there before.
            ids.sort_unstable();
            ids.dedup();
            if self.outages.any() {
                let (away, there) = ids.into_iter().partition(|id| self.outages.has(id));
                self.unheard(away);
                ids = there;
            }
            if !ids.is_empty() {
                return Some(ids);
            }
        }
        None
    }
}

fn take(queue: &mut VecDeque<String>) -> Option<Vec<String>> {
    let count = queue.len().min(IDS_PER_CALL);
    (count > 0).then(|| queue.drain(..count).collect())
}
