//! Kept outbound connections of a shard: each idle one is a parked task that waits for an attempt to be handed to it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use ringpost_config::Config;
use ringpost_queue::{DestinationId, Dispatch, RouteId};

/// How long and how often connections are reused.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Idle longer than this, a connection is closed with QUIT.
    pub idle_timeout: Duration,
    /// Older than this, it takes no further message.
    pub max_lifetime: Duration,
    /// Idle longer than this, it is tried with RSET before the next message.
    pub probe_after: Duration,
}

/// A connection's place in the pool while it is idle.
#[derive(Default)]
pub struct Parked {
    dispatch: Cell<Option<Dispatch>>,
    waker: RefCell<Option<Waker>>,
}

impl Parked {
    /// The attempt that was handed over.
    pub fn poll_handed(&self, cx: &mut Context<'_>) -> Poll<Dispatch> {
        match self.dispatch.take() {
            Some(dispatch) => Poll::Ready(dispatch),
            None => {
                self.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }

    /// What was handed over to a connection that is about to end; the caller gives it to another one.
    pub fn take(&self) -> Option<Dispatch> {
        self.dispatch.take()
    }

    fn hand(&self, dispatch: Dispatch) {
        self.dispatch.set(Some(dispatch));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The idle connections.
pub struct Pool {
    /// What holds for each.
    pub limits: PoolLimits,
    /// Messages that one connection takes in all, for each pattern of the routes, in order.
    messages_max: Vec<u32>,
    idle: RefCell<Vec<(DestinationId, Rc<Parked>)>>,
}

impl Pool {
    /// Without connections.
    pub fn new(config: &Config) -> Self {
        let delivery = &config.delivery;
        Pool {
            limits: PoolLimits {
                idle_timeout: delivery.policy.pool.idle_timeout,
                max_lifetime: delivery.policy.pool.max_lifetime,
                probe_after: delivery.policy.pool.probe_after,
            },
            messages_max: (config.routes.as_slice().iter())
                .flat_map(|route| {
                    let most = route.messages_per_connection(delivery);
                    route.domains.iter().map(move |_| most)
                })
                .map(|most| most.unwrap_or(u32::MAX))
                .collect(),
            idle: RefCell::default(),
        }
    }

    /// Messages that one connection of this route takes in all.
    pub fn messages_max(&self, route: Option<RouteId>) -> u32 {
        route.and_then(|route| self.messages_max.get(usize::from(route.0))).copied().unwrap_or(u32::MAX)
    }

    /// Gives an attempt to an idle connection, the one used last (the others may then time out); or gives it back.
    pub fn hand(&self, dispatch: Dispatch) -> Result<(), Dispatch> {
        let mut idle = self.idle.borrow_mut();
        let Some(at) = idle.iter().rposition(|(destination, _)| *destination == dispatch.destination()) else {
            return Err(dispatch);
        };
        // Order among the rest is kept: `rposition` finds the youngest.
        let (_, parked) = idle.remove(at);
        drop(idle);
        parked.hand(dispatch);
        Ok(())
    }

    /// Puts a connection in.
    pub fn park(&self, destination: DestinationId, parked: &Rc<Parked>) {
        self.idle.borrow_mut().push((destination, parked.clone()));
    }

    /// Takes a connection out that will not be idle any more; nothing if it was handed an attempt.
    pub fn leave(&self, parked: &Rc<Parked>) {
        self.idle.borrow_mut().retain(|(_, other)| !Rc::ptr_eq(other, parked));
    }

    /// Connections that are idle now.
    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }
}
