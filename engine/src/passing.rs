//! Accepted connections go to the shard that has room for them, before anything is received from them.
//!
//! SO_REUSEPORT spreads connections by a hash: of ten kept ones, eight may well meet at one of two shards and stay there.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use ringpost_ring::{Accepted, Ring};

use crate::{
    load::{Busy, Busyness, Load, Loads, choose_surely},
    mesh::ShardRequest,
    shard::Shard,
};

/// The loads of all are looked up once in this time at most, that of the chosen one each time.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What one shard knows of the others' loads.
pub(crate) struct Passing {
    loads: Arc<Loads>,
    /// What the others last said, and what was passed to them since; the own place is filled at each use.
    known: RefCell<Vec<Option<Load>>>,
    looked_at: Cell<Option<Instant>>,
    is_open: Cell<bool>,
}

impl Passing {
    /// Nothing known; the shard takes no connections before [`Shard::open_to_connections`].
    pub(crate) fn new(loads: Arc<Loads>) -> Passing {
        let shards = loads.shards();
        Passing { loads, known: RefCell::new(vec![None; shards]), looked_at: Cell::default(), is_open: Cell::default() }
    }

    /// Tells the others how busy this shard is.
    pub(crate) fn observe(&self, ring: &Ring, shard: u16) {
        let (loads, busy) = (self.loads.clone(), RefCell::new(Busy::new(ring.now())));
        ring.observe(move |pulse| {
            let busy_permille = busy.borrow_mut().update(pulse.now, pulse.slept);
            loads.set_busy(shard, Busyness { busy_permille, sleeps: pulse.sleeps }, pulse.now);
        });
    }

    /// The shard that is to serve a further connection, if another.
    fn choose(&self, own: u16, sessions: u32, now: Instant) -> Option<u16> {
        let mut known = self.known.borrow_mut();
        if self.looked_at.get().is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY) {
            self.looked_at.set(Some(now));
            for (shard, load) in (0..).zip(known.iter_mut()) {
                *load = self.loads.get(shard, now);
            }
        }
        if let Some(mine) = &mut known[usize::from(own)] {
            mine.sessions = sessions.saturating_add(self.loads.incoming(own));
        }
        let number = |shard: usize| u16::try_from(shard).expect("shards are numbered in sixteen bits");
        choose_surely(usize::from(own), &mut known, |shard| self.loads.get(number(shard), now)).map(number)
    }

    fn passed(&self, peer: u16) {
        self.loads.passed(peer);
        if let Some(load) = &mut self.known.borrow_mut()[usize::from(peer)] {
            load.sessions = load.sessions.saturating_add(1);
        }
    }
}

impl Shard {
    /// Others may pass connections from now on.
    pub(crate) fn open_to_connections(&self) {
        self.passing.is_open.set(true);
        self.count_sessions(0);
    }

    /// And from now on not any more.
    pub(crate) fn close_to_connections(&self) {
        self.passing.is_open.set(false);
        self.passing.loads.set_sessions(self.id, None);
    }

    /// One session more or less.
    pub(crate) fn count_sessions(&self, change: i64) {
        let sessions = self.metrics.sessions.get().saturating_add_signed(change);
        self.metrics.sessions.set(sessions);
        if self.passing.is_open.get() {
            self.passing.loads.set_sessions(self.id, Some(u32::try_from(sessions).unwrap_or(u32::MAX)));
        }
    }

    /// Passes a fresh connection to a shard that has less to do; it comes back when it stays.
    pub(crate) fn pass_on(&self, accepted: Accepted, listener: usize) -> Option<Accepted> {
        if self.passing.loads.shards() == 1 || !self.config().shards.pass_connections {
            return Some(accepted);
        }
        let sessions = u32::try_from(self.metrics.sessions.get()).unwrap_or(u32::MAX);
        let Some(peer) = self.passing.choose(self.id, sessions, self.ring.now()) else { return Some(accepted) };
        let (Ok(permit), Ok(listener)) = (self.mesh.reserve(peer), u16::try_from(listener)) else {
            self.metrics.connections_not_passed.increment();
            return Some(accepted);
        };
        // Before it is sent: the peer is to know of it when it decides about its own.
        self.passing.passed(peer);
        self.mesh.send(permit, ShardRequest::Connection { accepted, listener });
        self.metrics.connections_passed.increment();
        None
    }

    /// Serves a connection that another shard passed on: the limits of this one hold for it.
    pub(crate) fn take_connection(self: &Rc<Self>, accepted: Accepted, listener: usize) {
        self.metrics.connections_taken.increment();
        self.serve(accepted, listener);
        self.passing.loads.taken(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        net::{TcpListener, TcpStream},
        os::fd::OwnedFd,
    };

    use super::*;
    use crate::test_shard::run_beside;

    /// The promise was kept by one line, and by no test.
    #[test]
    fn a_connection_stays_where_it_was_accepted_while_the_lane_to_the_idle_shard_is_full() {
        run_beside(1, async |shard: Rc<Shard>| {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = socket.local_addr().unwrap();
            let listener = shard.ring.listen(OwnedFd::from(socket));
            let accept = async || {
                let client = TcpStream::connect(address).unwrap();
                (poll_fn(|cx| listener.poll_accepted(cx)).await.unwrap(), client)
            };
            shard.open_to_connections();
            shard.count_sessions(10);
            shard.passing.loads.set_sessions(1, Some(0));
            let count = || (shard.metrics.connections_passed.get(), shard.metrics.connections_not_passed.get());
            let (accepted, _client) = accept().await;
            assert!(shard.pass_on(accepted, 0).is_none(), "there is room");
            assert_eq!((count(), shard.passing.loads.incoming(1)), ((1, 0), 1));
            while shard.mesh.reserve(1).is_ok() {}
            let (accepted, client) = accept().await;
            let kept = shard.pass_on(accepted, 0).expect("the lane is full");
            assert_eq!(kept.peer_addr().unwrap(), client.local_addr().unwrap(), "it is the same, and open");
            assert_eq!((count(), shard.passing.loads.incoming(1)), ((1, 1), 1), "nobody waits for it there");
        });
    }
}
