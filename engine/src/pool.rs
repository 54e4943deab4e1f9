//! Outbound connections of a shard, by destination: how many there may be, which are idle, and who waits for one.
//!
//! A connection is a task. It takes a [`Seat`] before it dials and gives it back when its socket is closed, so that a destination
//! never sees more of them than it allows, however they end. An idle one is parked here and is handed the next attempt; an
//! attempt that finds neither an idle connection nor a free seat waits, in order, until one of both comes or its time is up.
//! Every step is O(1) in the number of destinations and connections.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use ringpost_config::Config;
use ringpost_queue::{DestinationId, RouteId};

mod ahead;
mod chain;
mod line;
mod parked;
mod place;
mod turn;
mod waiting;

use self::{chain::Chain, line::Line, place::Place};
pub use self::{parked::Parked, place::PoolView, turn::GivingWay, waiting::Waiting};
use crate::{
    metrics::Metrics,
    pool_limits::{PoolLimits, RouteLimits},
    share::Share,
};

/// Descriptors that are neither a session's nor an outbound connection's: the spool, logs, control.
const OTHER_DESCRIPTORS: u64 = 256;
/// Outbound connections of a node that has few descriptors: so many, but at most half of the quarter that is not the sessions'.
const TOTAL_FEW: u64 = 64;
/// And at least so many.
const TOTAL_MIN: u64 = 8;

/// A checkout and the return have a look-up each, by numbers that this program has given: no peer chooses them, so that a fast hash serves.
type ByDestination<V> = HashMap<DestinationId, V, foldhash::fast::RandomState>;

/// Outbound connections of a node that may have so many descriptors: three quarters are the sessions'.
fn total_max(descriptors: u64) -> u64 {
    let quarter = descriptors / 4;
    quarter.saturating_sub(OTHER_DESCRIPTORS).max(TOTAL_FEW.min(quarter / 2)).max(TOTAL_MIN)
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// The right to one connection; given back when dropped.
pub struct Seat<T> {
    pool: Rc<Pool<T>>,
    destination: DestinationId,
}

impl<T> Drop for Seat<T> {
    fn drop(&mut self) {
        self.pool.give_back(self.destination);
    }
}

/// A connection that has no attempt and is not idle yet, because it is being made or tested: it counts as idle where enough of them
/// are to be kept. Ends when dropped.
pub struct SoonIdle<T> {
    pool: Rc<Pool<T>>,
    destination: DestinationId,
}

impl<T> Drop for SoonIdle<T> {
    fn drop(&mut self) {
        if let Some(place) = self.pool.places.borrow_mut().get_mut(&self.destination) {
            place.soon_idle -= 1;
        }
    }
}

/// What became of an attempt that wants a connection.
pub enum Acquired<T> {
    /// An idle connection has it.
    Handed,
    /// A new connection may be made for it.
    Seated(T, Seat<T>),
    /// It waits.
    Waits(Rc<Waiting<T>>),
}

/// The connections of a shard.
pub struct Pool<T> {
    /// By pattern of the routes, in order.
    limits: RefCell<RouteLimits>,
    /// Destinations with a connection or an attempt that waits for one.
    places: RefCell<ByDestination<Place<T>>>,
    total: Cell<u32>,
    total_max: u32,
    idle: Cell<u32>,
    /// There may be more connections than there are to be: those in use end after their message.
    shrinking: Cell<bool>,
    /// Changes of the limits so far.
    changes: Cell<u64>,
    /// Of those, how many are under way.
    changing: Cell<u32>,
    /// Who waits for connections to end.
    closed: RefCell<Vec<Waker>>,
    /// Destinations with an attempt that waits because there are `total_max` connections, and some without.
    starved: RefCell<Line>,
    /// Connections that end so that one of those has a seat.
    giving_way: Cell<u32>,
    /// Destinations with an idle connection: each connection that becomes idle or is handed an attempt may change it, so that a place knows
    /// where it stands.
    resting: RefCell<Chain>,
    metrics: Rc<Metrics>,
}

impl<T> Pool<T> {
    /// Without connections.
    pub fn new(config: &Config, share: Share, metrics: Rc<Metrics>) -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let total_max = share.of(u32::try_from(total_max(descriptors)).unwrap_or(u32::MAX));
        Pool::with_limits(RouteLimits::new(config), total_max, metrics)
    }

    fn with_limits(limits: RouteLimits, total_max: u32, metrics: Rc<Metrics>) -> Self {
        Pool {
            limits: RefCell::new(limits),
            places: RefCell::default(),
            total: Cell::new(0),
            total_max,
            idle: Cell::new(0),
            shrinking: Cell::new(false),
            changes: Cell::new(0),
            changing: Cell::new(0),
            closed: RefCell::default(),
            starved: RefCell::default(),
            giving_way: Cell::new(0),
            resting: RefCell::default(),
            metrics,
        }
    }

    /// Other limits from now on, for the routes as `number` names their patterns; a connection keeps those that it has begun with, until
    /// it is asked for its next message.
    pub fn set_limits(&self, config: &Config, number: impl Fn(&str) -> Option<RouteId>) {
        self.limits.borrow_mut().set(config, number);
    }

    /// From now on a destination may have as many connections as `allowed` says. Idle ones beyond end at once, others when they have no
    /// message; the rest of the idle ones look whether their host is one still. Who waits gets what has become free. Returns the attempts that wait where none is allowed any more.
    pub fn change_limits(self: &Rc<Self>, allowed: impl Fn(DestinationId) -> u32) -> Vec<T> {
        let mut waiting = Vec::new();
        let mut may_have_room = Vec::new();
        for (destination, place) in &mut *self.places.borrow_mut() {
            place.connections_max = allowed(*destination);
            let beyond = place.connections.saturating_sub(place.connections_max) as usize;
            for _ in 0..beyond.min(place.idle.len()) {
                // The oldest first, as they would time out.
                let Some(parked) = place.idle.pop_front() else { break };
                self.idle.set(self.idle.get() - 1);
                parked.retire();
            }
            self.rested(place);
            place.idle.iter().for_each(|parked| parked.look());
            if place.connections_max == 0 {
                for one in place.waiting.drain(..) {
                    waiting.extend(one.item.take());
                    wake(&one.waker);
                }
            } else if !place.waiting.is_empty() {
                may_have_room.push(*destination);
            }
        }
        for destination in may_have_room {
            while self.grant(destination) {}
            // What still waits may do so because of the others.
            self.starved.borrow_mut().join(destination);
        }
        self.changes.set(self.changes.get() + 1);
        self.shrinking.set(true);
        waiting
    }

    /// The limits are being changed, destination by destination, until [`Pool::end_change`].
    pub fn begin_change(&self) {
        self.changing.set(self.changing.get() + 1);
    }

    /// [`Pool::change_limits`] was called for what has begun so.
    pub fn end_change(&self) {
        self.changing.set(self.changing.get() - 1);
    }

    /// Changes of the limits so far.
    pub fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// No change has come after this one, and none is under way.
    pub fn is_newest(&self, change: u64) -> bool {
        self.changing.get() == 0 && change == self.changes.get()
    }

    /// No destination has more connections than it is allowed, so that those in use need not ask.
    pub fn end_shrinking(&self) {
        self.shrinking.set(false);
    }

    /// This connection, which has no message, is one too many.
    pub fn is_beyond(&self, destination: DestinationId, allowed: impl Fn(DestinationId) -> u32) -> bool {
        self.shrinking.get() && self.view(destination).total > allowed(destination)
    }

    /// Ready when no destination has more connections than `allowed` says.
    pub fn poll_within(&self, allowed: impl Fn(DestinationId) -> u32, cx: &mut Context<'_>) -> Poll<()> {
        if self.places.borrow().iter().all(|(destination, place)| place.connections <= allowed(*destination)) {
            return Poll::Ready(());
        }
        let mut closed = self.closed.borrow_mut();
        if !closed.iter().any(|waker| waker.will_wake(cx.waker())) {
            closed.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// What holds for a destination of this route, on all shards: `Shard::pool_limits` takes this one's part.
    pub fn limits(&self, route: Option<RouteId>) -> PoolLimits {
        self.limits.borrow().of(route)
    }

    /// Finds a connection for an attempt: an idle one, a seat for a new one, or a place in the line.
    pub fn acquire(self: &Rc<Self>, destination: DestinationId, item: T, limits: &PoolLimits) -> Acquired<T> {
        let mut places = self.places.borrow_mut();
        let place = places.entry(destination).or_default();
        place.connections_max = limits.connections_max;
        if let Some(parked) = place.idle.pop_back() {
            self.rested(place);
            drop(places);
            self.idle.set(self.idle.get() - 1);
            self.metrics.pool_acquire_success.increment();
            parked.hand(item);
            return Acquired::Handed;
        }
        let is_total = self.total.get() >= self.total_max;
        if place.connections < place.connections_max && !is_total {
            place.connections += 1;
            drop(places);
            self.total.set(self.total.get() + 1);
            return Acquired::Seated(item, Seat { pool: self.clone(), destination });
        }
        let waiting = Rc::new(Waiting::new(destination, item));
        place.waiting.push_back(waiting.clone());
        let lacks_total = is_total && place.connections < place.connections_max;
        drop(places);
        if lacks_total {
            self.starved.borrow_mut().join(destination);
            self.end_an_idle_one();
        }
        self.metrics.pool_wait_count.increment();
        Acquired::Waits(waiting)
    }

    /// A seat for a connection without an attempt, to have `min_idle` of them; none for a while after the peer has ended such ones.
    pub fn seat_for_idle(self: &Rc<Self>, destination: DestinationId, limits: &PoolLimits, now: Instant) -> Option<(Seat<T>, SoonIdle<T>)> {
        let mut places = self.places.borrow_mut();
        let place = places.entry(destination).or_default();
        let lacks = place.idle.len() + place.soon_idle < limits.min_idle && place.connections < limits.connections_max;
        if !lacks || self.total.get() >= self.total_max || !place.waiting.is_empty() || !place.ahead.may_begin(now) {
            return None;
        }
        place.connections += 1;
        drop(places);
        self.total.set(self.total.get() + 1);
        Some((Seat { pool: self.clone(), destination }, self.soon_idle(destination)))
    }

    /// The peer has ended a connection that was made without an attempt, and has served none.
    pub fn lost_ahead(&self, destination: DestinationId, age: Duration, now: Instant) {
        if let Some(place) = self.places.borrow_mut().get_mut(&destination) {
            place.ahead.lost(age, now);
        }
    }

    /// One that was made without an attempt has served its first.
    pub fn served_ahead(&self, destination: DestinationId) {
        if let Some(place) = self.places.borrow_mut().get_mut(&destination) {
            place.ahead.served();
        }
    }

    /// A connection, which has a seat, was greeted: how many are up now.
    pub fn came_up(&self, destination: DestinationId) -> u32 {
        let mut places = self.places.borrow_mut();
        let place = places.entry(destination).or_default();
        place.up += 1;
        place.up
    }

    /// One that was greeted ends.
    pub fn went_down(&self, destination: DestinationId) {
        if let Some(place) = self.places.borrow_mut().get_mut(&destination) {
            place.up = place.up.saturating_sub(1);
        }
    }

    /// Connections that were greeted and have not ended.
    pub fn up(&self, destination: DestinationId) -> u32 {
        self.places.borrow().get(&destination).map_or(0, |place| place.up)
    }

    /// A connection without an attempt will be idle in a moment.
    pub fn soon_idle(self: &Rc<Self>, destination: DestinationId) -> SoonIdle<T> {
        self.places.borrow_mut().entry(destination).or_default().soon_idle += 1;
        SoonIdle { pool: self.clone(), destination }
    }

    /// The attempt that has waited longest for a connection to this destination, for one that has become free.
    pub fn take_waiting(&self, destination: DestinationId) -> Option<T> {
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(&destination)?;
        let waiting = place.waiting.pop_front()?;
        if place.waiting.is_empty() {
            self.starved.borrow_mut().leave(destination);
        }
        drop(places);
        let item = waiting.item.take();
        wake(&waiting.waker);
        item
    }

    /// An attempt has waited long enough: it comes back, unless it was served at this moment.
    pub fn give_up(&self, waiting: &Rc<Waiting<T>>) -> Option<T> {
        let mut places = self.places.borrow_mut();
        if let Some(place) = places.get_mut(&waiting.destination) {
            place.waiting.retain(|other| !Rc::ptr_eq(other, waiting));
            if place.waiting.is_empty() {
                self.starved.borrow_mut().leave(waiting.destination);
            }
            if place.is_unused() {
                self.forget(&mut places, waiting.destination);
            }
        }
        drop(places);
        // A seat that was granted meanwhile goes on to the next.
        drop(waiting.seat.take());
        waiting.item.take()
    }

    /// Puts an idle connection in; `false` if there are enough, or others lack its seat.
    pub fn park(&self, destination: DestinationId, parked: &Rc<Parked<T>>, limits: &PoolLimits) -> bool {
        if self.total.get() >= self.total_max && self.is_lacked() {
            return false;
        }
        let mut places = self.places.borrow_mut();
        let place = places.entry(destination).or_default();
        if place.idle.len() >= limits.max_idle {
            return false;
        }
        place.idle.push_back(parked.clone());
        self.idle.set(self.idle.get() + 1);
        if place.rests_at.is_none() {
            place.rests_at = Some(self.resting.borrow_mut().push(destination));
        }
        true
    }

    /// An attempt waits for a seat that another destination has.
    fn is_lacked(&self) -> bool {
        let (mut places, mut starved) = (self.places.borrow_mut(), self.starved.borrow_mut());
        while let Some(destination) = starved.first() {
            if places.get(&destination).is_some_and(Place::may_have_more) {
                return true;
            }
            // It waits for nothing, or for a connection of its own: when that ends it stands in the line again.
            starved.leave(destination);
            if places.get(&destination).is_some_and(Place::is_unused) {
                self.forget(&mut places, destination);
            }
        }
        false
    }

    /// All connections there may be are there: an idle one of some destination ends for those that have none.
    fn end_an_idle_one(&self) {
        let (mut places, mut resting) = (self.places.borrow_mut(), self.resting.borrow_mut());
        while self.idle.get() > 0
            && let Some(destination) = resting.pop()
        {
            let Some(place) = places.get_mut(&destination) else { continue };
            place.rests_at = None;
            let Some(parked) = place.idle.pop_front() else { continue };
            if !place.idle.is_empty() {
                place.rests_at = Some(resting.push(destination));
            }
            self.idle.set(self.idle.get() - 1);
            parked.retire();
            return;
        }
    }

    /// Takes a connection out that is not idle any more; nothing if it was handed an attempt.
    pub fn leave(&self, destination: DestinationId, parked: &Rc<Parked<T>>) {
        let mut places = self.places.borrow_mut();
        let Some(place) = places.get_mut(&destination) else { return };
        // The ones that time out are the oldest, at the front.
        if let Some(at) = place.idle.iter().position(|other| Rc::ptr_eq(other, parked)) {
            place.idle.remove(at);
            self.idle.set(self.idle.get() - 1);
            self.rested(place);
        }
    }

    /// An idle connection was taken out.
    fn rested(&self, place: &mut Place<T>) {
        if place.idle.is_empty()
            && let Some(link) = place.rests_at.take()
        {
            self.resting.borrow_mut().remove(link);
        }
    }

    /// A destination without a connection and an attempt that waits for one holds no place.
    fn forget(&self, places: &mut ByDestination<Place<T>>, destination: DestinationId) {
        if let Some(link) = places.remove(&destination).and_then(|place| place.rests_at) {
            self.resting.borrow_mut().remove(link);
        }
    }

    /// Idle connections of a destination, and those that are about to be.
    pub fn idle_of(&self, destination: DestinationId) -> usize {
        self.places.borrow().get(&destination).map_or(0, |place| place.idle.len() + place.soon_idle)
    }

    /// The connections of one destination.
    pub fn view(&self, destination: DestinationId) -> PoolView {
        let places = self.places.borrow();
        let Some(place) = places.get(&destination) else { return PoolView::default() };
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (idle, total) = (count(place.idle.len()), place.connections);
        PoolView { active: total.saturating_sub(idle), idle, total, waiting: count(place.waiting.len()) }
    }

    /// The connections of all destinations; `waiting` is not counted.
    pub fn all(&self) -> PoolView {
        let (idle, total) = (self.idle.get(), self.total.get());
        PoolView { active: total.saturating_sub(idle), idle, total, waiting: 0 }
    }

    /// A connection is gone: its seat goes to who waits, and where more wait than there are seats, to one destination after the other.
    fn give_back(self: &Rc<Self>, destination: DestinationId) {
        self.total.set(self.total.get() - 1);
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(&destination).expect("a seat is counted at its destination");
        place.connections -= 1;
        if place.is_unused() {
            self.forget(&mut places, destination);
        } else if !place.waiting.is_empty() {
            // It may wait from now on because of the others.
            self.starved.borrow_mut().join(destination);
        }
        drop(places);
        self.closed.take().into_iter().for_each(Waker::wake);
        loop {
            let Some(starved) = self.starved.borrow_mut().next() else { return };
            if self.grant(starved) {
                let still_waits = self.places.borrow().get(&starved).is_some_and(|place| !place.waiting.is_empty());
                if still_waits {
                    self.starved.borrow_mut().join(starved);
                }
                return;
            }
        }
    }

    /// Gives a seat to the first in line at a destination, if both are there.
    fn grant(self: &Rc<Self>, destination: DestinationId) -> bool {
        let mut places = self.places.borrow_mut();
        let Some(place) = places.get_mut(&destination) else { return false };
        if place.is_unused() {
            self.forget(&mut places, destination);
            return false;
        }
        if place.connections >= place.connections_max || self.total.get() >= self.total_max {
            return false;
        }
        let Some(waiting) = place.waiting.pop_front() else { return false };
        place.connections += 1;
        drop(places);
        self.total.set(self.total.get() + 1);
        waiting.seat.set(Some(Seat { pool: self.clone(), destination }));
        wake(&waiting.waker);
        true
    }
}

#[cfg(test)]
mod tests;
