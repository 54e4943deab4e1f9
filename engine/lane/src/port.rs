//! A port: one shard's end of the two lanes to another, for requests and their replies.
//!
//! A request first reserves a slot of the lane and a place in the window of open requests; each open request is owed one reply. A
//! reply goes into the lane, or, while that is full, into the replier's own backlog, which the window bounds. So a reply is never
//! refused, whoever is slow, and no side waits for the other to be able to read: two full directions cannot deadlock. Requests yield
//! to a backlog.

use std::collections::VecDeque;

use crate::lane::{Receiver, Sender, lane};
use crate::{Bell, SLOT_BYTES};

/// The size of the lanes of a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSettings {
    /// Slots of each lane, a power of two up to [`crate::SLOTS_MAX`]; 64 bytes each, two lanes per pair of shards that talk.
    pub slots: usize,
    /// Open requests one shard may have with another. More than `slots` because a request stays open while it is worked on; the
    /// replier's backlog has at most as many entries.
    pub window: u32,
}

impl Default for LaneSettings {
    fn default() -> LaneSettings {
        LaneSettings { slots: 64, window: 1024 }
    }
}

/// What goes over a lane.
enum Message<Q, R> {
    /// Full: the sender gets a [`Refusal`] before it gives the request away, and tries again when its bell rings.
    Request(Q),
    /// Full: waits in the replier's backlog, in the place that the request reserved.
    Reply(R),
}

/// Why a request cannot be sent now. The bell of the shard rings when the first two may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The lane is full: the other shard does not keep up reading.
    LaneFull,
    /// As many requests are open as the window allows: the other shard does not keep up answering.
    WindowFull,
    /// The other shard is gone.
    Closed,
}

/// A reserved slot and window place: the request sent with it is not refused. Unused, give it back with [`Port::cancel`].
#[derive(Debug)]
#[must_use = "unused, it must be given back with cancel"]
pub struct Permit {
    pub(crate) _private: (),
}

/// The right, and the duty, to reply to one request; else its place in the window is lost.
#[derive(Debug)]
#[must_use = "every request is replied to"]
pub struct Credit {
    pub(crate) _private: (),
}

/// What comes over a port.
#[derive(Debug)]
pub enum Incoming<Q, R, C = Credit> {
    /// A request, with the credit for its one reply.
    Request(Q, C),
    /// The reply to one of the requests sent.
    Reply(R),
}

/// One shard's end of the lanes to another.
#[derive(Debug)]
pub struct Port<Q, R> {
    outgoing: Sender<Message<Q, R>>,
    incoming: Receiver<Message<Q, R>>,
    window: u32,
    /// Requests sent or permitted whose reply has not come.
    open: u32,
    /// Permits given out: their slots are not for replies.
    permits: u32,
    /// Requests received and not replied to.
    owed: u32,
    backlog: VecDeque<R>,
    /// Requests refused, for the first two reasons.
    refused_total: u64,
}

impl<Q: Send, R: Send> Port<Q, R> {
    /// Two lanes and their ends; each bell is rung for the end it comes with.
    pub fn pair(settings: LaneSettings, bells: [Bell; 2]) -> [Port<Q, R>; 2] {
        const { assert!(size_of::<Message<Q, R>>() <= SLOT_BYTES) };
        assert!(settings.window > 0, "a window of 0 sends nothing");
        let [first, second] = bells;
        let (to_second, from_first) = lane(settings.slots, second.clone(), first.clone());
        let (to_first, from_second) = lane(settings.slots, first, second);
        let port = |outgoing, incoming| Port {
            outgoing,
            incoming,
            window: settings.window,
            open: 0,
            permits: 0,
            owed: 0,
            backlog: VecDeque::new(),
            refused_total: 0,
        };
        [port(to_second, from_second), port(to_first, from_first)]
    }

    /// Reserves what a request and its reply need. Refused, it is counted (unless the peer is gone).
    pub fn reserve(&mut self) -> Result<Permit, Refusal> {
        if self.outgoing.is_closed() {
            return Err(Refusal::Closed);
        }
        if self.open >= self.window {
            self.refused_total += 1;
            return Err(Refusal::WindowFull);
        }
        if !self.drain_backlog() || !self.outgoing.has_room(self.permits as usize + 1) {
            self.refused_total += 1;
            return Err(Refusal::LaneFull);
        }
        self.open += 1;
        self.permits += 1;
        Ok(Permit { _private: () })
    }

    /// Sends a request with its permit; the peer is woken at the next [`Port::flush`].
    pub fn send(&mut self, permit: Permit, request: Q) {
        self.take_permit(permit);
        let sent = self.outgoing.push(Message::Request(request));
        assert!(sent.is_ok(), "the permit holds a slot of the lane");
    }

    /// Gives an unused permit back.
    pub fn cancel(&mut self, permit: Permit) {
        self.take_permit(permit);
        self.open -= 1;
    }

    fn take_permit(&mut self, permit: Permit) {
        let Permit { _private: () } = permit;
        assert!(self.permits > 0, "the permit is of this port");
        self.permits -= 1;
    }

    /// Sends the reply to one request. Never refused; the peer is woken at the next [`Port::flush`].
    pub fn reply(&mut self, credit: Credit, reply: R) {
        let Credit { _private: () } = credit;
        assert!(self.owed > 0, "the credit is of this port");
        self.owed -= 1;
        self.backlog.push_back(reply);
        self.drain_backlog();
    }

    /// Moves waiting replies into the lane; whether none is left.
    fn drain_backlog(&mut self) -> bool {
        while !self.backlog.is_empty() {
            if !self.outgoing.has_room(self.permits as usize + 1) {
                return false;
            }
            let Some(reply) = self.backlog.pop_front() else { break };
            let sent = self.outgoing.push(Message::Reply(reply));
            assert!(sent.is_ok(), "room was asked for");
        }
        true
    }

    /// Takes what came next; None: nothing now.
    pub fn receive(&mut self) -> Option<Incoming<Q, R>> {
        match self.incoming.pop()? {
            Message::Request(request) => {
                assert!(self.owed < self.window, "the peer keeps to the window");
                self.owed += 1;
                Some(Incoming::Request(request, Credit { _private: () }))
            }
            Message::Reply(reply) => {
                assert!(self.open > self.permits, "a reply belongs to a request that was sent");
                self.open -= 1;
                Some(Incoming::Reply(reply))
            }
        }
    }

    /// Gives the slots taken so far back to the peer; see [`Receiver::release`].
    pub fn release(&mut self) {
        self.incoming.release();
    }

    /// Sends waiting replies as far as there is room, and wakes the peer once for all that was sent. Call it after a batch, and when
    /// the bell rang.
    pub fn flush(&mut self) {
        self.drain_backlog();
        self.outgoing.flush();
    }

    /// Requests whose reply has not come, permits included.
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Requests of the peer that were not replied to.
    pub fn owed(&self) -> u32 {
        self.owed
    }

    /// Replies that wait for room in the lane.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// How often a request was refused because the lane or the window was full.
    pub fn refused_total(&self) -> u64 {
        self.refused_total
    }

    /// Whether the peer is gone; what it sent before can still be received.
    pub fn is_closed(&self) -> bool {
        self.outgoing.is_closed()
    }
}
