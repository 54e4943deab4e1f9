//! The mesh: a port between each two shards that talk, made when the first of them speaks.
//!
//! Shards that never talk cost nothing. The lock is taken when a port is made, once per pair; nothing after that shares more than
//! the lanes.

use std::collections::BTreeMap;
use std::fmt;
use std::task::{Context, Poll};

use crossbeam::utils::CachePadded;

use crate::port::{Credit, Incoming, LaneSettings, Permit, Port, Refusal};
use crate::sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering};
use crate::{Bell, Listener, bell};

/// Most shards of one mesh.
pub const SHARDS_MAX: usize = 1024;
/// Messages taken from one port before the next has its turn.
const TURN: u32 = 32;

/// A shard, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What all endpoints know.
struct Hall<Q, R> {
    settings: LaneSettings,
    doors: Vec<Door>,
    /// Ends that their shard has not fetched yet, by that shard and the one it leads to.
    waiting: Mutex<BTreeMap<(ShardId, ShardId), Port<Q, R>>>,
}

/// One shard as the others see it.
struct Door {
    bell: Bell,
    /// Ends waiting for it.
    knocks: CachePadded<AtomicUsize>,
    /// The endpoint was dropped. Read and written under the lock of `waiting`.
    is_gone: AtomicBool,
}

/// A mesh of `shards` (up to [`SHARDS_MAX`]): the endpoint of each, in order, to be moved to its thread.
///
/// `Q` and `R` are what requests and replies carry; with the enum around them they fit a slot (checked when compiled).
pub fn mesh<Q: Send, R: Send>(shards: usize, settings: LaneSettings) -> Vec<Endpoint<Q, R>> {
    assert!((1..=SHARDS_MAX).contains(&shards), "a mesh has 1 to {SHARDS_MAX} shards");
    let (bells, listeners): (Vec<Bell>, Vec<Listener>) = (0..shards).map(|_| bell()).unzip();
    let door = |bell| Door { bell, knocks: CachePadded::new(AtomicUsize::new(0)), is_gone: AtomicBool::new(false) };
    let hall = Arc::new(Hall { settings, doors: bells.into_iter().map(door).collect(), waiting: Mutex::new(BTreeMap::new()) });
    let endpoint = |(index, listener): (usize, Listener)| Endpoint {
        hall: hall.clone(),
        id: ShardId(u16::try_from(index).expect("SHARDS_MAX fits")),
        listener,
        ports: (0..shards).map(|_| None).collect(),
        made: Vec::new(),
        unflushed: Vec::new(),
        turn: 0,
        turn_left: TURN,
    };
    listeners.into_iter().enumerate().map(endpoint).collect()
}

/// One shard's end of the mesh. Of the permits and credits of its ports it keeps whose they are.
pub struct Endpoint<Q, R> {
    hall: Arc<Hall<Q, R>>,
    id: ShardId,
    listener: Listener,
    /// By shard; the own place stays empty. Boxed, so that a place without a port is a pointer.
    ports: Vec<Option<Box<Port<Q, R>>>>,
    /// Shards with a port, in the order they were made.
    made: Vec<ShardId>,
    /// Shards that were sent something since the last flush, or for which replies wait; each once.
    unflushed: Vec<ShardId>,
    /// Index into `made` of the port whose turn it is to be read.
    turn: usize,
    turn_left: u32,
}

/// A [`Permit`] and the shard it is for.
#[derive(Debug)]
#[must_use = "unused, it must be given back with cancel"]
pub struct MeshPermit {
    peer: ShardId,
    permit: Permit,
}

/// A [`Credit`] and the shard that is owed the reply.
#[derive(Debug)]
#[must_use = "every request is replied to"]
pub struct MeshCredit {
    peer: ShardId,
    credit: Credit,
}

impl MeshPermit {
    /// The shard that the request goes to.
    pub fn peer(&self) -> ShardId {
        self.peer
    }
}

impl MeshCredit {
    /// The shard that asked.
    pub fn peer(&self) -> ShardId {
        self.peer
    }
}

impl<Q: Send, R: Send> Endpoint<Q, R> {
    /// This shard.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Shards of the mesh, this one included.
    pub fn shards(&self) -> usize {
        self.ports.len()
    }

    /// A bell that wakes this shard, for others that have work for it.
    pub fn bell(&self) -> Bell {
        self.hall.doors[usize::from(self.id.0)].bell.clone()
    }

    /// Reserves what a request to `peer` and its reply need; `peer` is another shard of this mesh.
    pub fn reserve(&mut self, peer: ShardId) -> Result<MeshPermit, Refusal> {
        let permit = self.port(peer).reserve()?;
        Ok(MeshPermit { peer, permit })
    }

    /// Sends a request with its permit; the peer is woken at the next [`Endpoint::flush`].
    pub fn send(&mut self, permit: MeshPermit, request: Q) {
        let MeshPermit { peer, permit } = permit;
        self.port(peer).send(permit, request);
        self.note_unflushed(peer);
    }

    /// Gives an unused permit back.
    pub fn cancel(&mut self, permit: MeshPermit) {
        let MeshPermit { peer, permit } = permit;
        self.port(peer).cancel(permit);
    }

    /// Sends the reply to one request. Never refused; the peer is woken at the next [`Endpoint::flush`].
    pub fn reply(&mut self, credit: MeshCredit, reply: R) {
        let MeshCredit { peer, credit } = credit;
        self.port(peer).reply(credit, reply);
        self.note_unflushed(peer);
    }

    /// Takes what came next from any shard, all in turn; None: nothing now. Go on until None before waiting for the bell.
    pub fn receive(&mut self) -> Option<(ShardId, Incoming<Q, R, MeshCredit>)> {
        self.admit();
        // One round more than there are ports: the first may have had most of its turn already.
        for _ in 0..=self.made.len() {
            let Some(&peer) = self.made.get(self.turn) else { break };
            let port = self.ports[usize::from(peer.0)].as_mut().expect("a shard in `made` has a port");
            let received = if self.turn_left > 0 { port.receive() } else { None };
            if let Some(incoming) = received {
                self.turn_left -= 1;
                let incoming = match incoming {
                    Incoming::Request(request, credit) => Incoming::Request(request, MeshCredit { peer, credit }),
                    Incoming::Reply(reply) => Incoming::Reply(reply),
                };
                return Some((peer, incoming));
            }
            port.release();
            self.turn = (self.turn + 1) % self.made.len();
            self.turn_left = TURN;
        }
        None
    }

    /// Sends what waits and wakes each shard that was sent something, once. Call it after a batch.
    pub fn flush(&mut self) {
        let ports = &mut self.ports;
        // A port whose replies find no room yet is looked at again when the bell rang.
        self.unflushed.retain(|peer| {
            let port = ports[usize::from(peer.0)].as_mut().expect("something was sent over it");
            port.flush();
            port.backlog() > 0
        });
    }

    /// Flushes, then waits for the bell: something came, there is room again, or a shard is gone. Ready: [`Endpoint::receive`] until
    /// None.
    pub fn poll_ring(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.flush();
        let rung = self.listener.poll_ring(context);
        if rung.is_ready() {
            // Room may be what it rang for.
            self.flush();
        }
        rung
    }

    /// [`Endpoint::poll_ring`] as a future.
    pub async fn wait(&mut self) {
        std::future::poll_fn(|context| self.poll_ring(context)).await;
    }

    /// Replies that wait for room in their lanes. Zero before the endpoint is dropped, or they are lost.
    pub fn backlog(&self) -> usize {
        self.ports().map(|(_, port)| port.backlog()).sum()
    }

    /// The ports made so far, for metrics.
    pub fn ports(&self) -> impl Iterator<Item = (ShardId, &Port<Q, R>)> {
        self.made.iter().filter_map(|peer| Some((*peer, self.ports[usize::from(peer.0)].as_deref()?)))
    }

    fn note_unflushed(&mut self, peer: ShardId) {
        // As long as the number of shards spoken to in one batch, which is short.
        if !self.unflushed.contains(&peer) {
            self.unflushed.push(peer);
        }
    }

    fn port(&mut self, peer: ShardId) -> &mut Port<Q, R> {
        let place = usize::from(peer.0);
        assert!(peer != self.id && place < self.ports.len(), "{peer} is another shard of this mesh");
        if self.ports[place].is_none() {
            self.make(peer);
        }
        self.ports[place].as_mut().expect("it was made")
    }

    /// Fetches the end that the peer left for this shard, or makes both and leaves the peer's.
    #[cold]
    fn make(&mut self, peer: ShardId) {
        let hall = &self.hall;
        let mut waiting = hall.waiting.lock().expect("nobody panics holding it");
        let port = if let Some(left) = waiting.remove(&(self.id, peer)) {
            hall.doors[usize::from(self.id.0)].knocks.fetch_sub(1, Ordering::AcqRel);
            left
        } else {
            let door = &hall.doors[usize::from(peer.0)];
            let bells = [hall.doors[usize::from(self.id.0)].bell.clone(), door.bell.clone()];
            let [own, peers] = Port::pair(hall.settings, bells);
            // An end left for a shard that is gone is dropped instead, which closes the other.
            if !door.is_gone.load(Ordering::Acquire) {
                waiting.insert((peer, self.id), peers);
                door.knocks.fetch_add(1, Ordering::AcqRel);
            }
            own
        };
        drop(waiting);
        self.ports[usize::from(peer.0)] = Some(Box::new(port));
        self.made.push(peer);
    }

    /// Fetches the ends that others left for this shard. They ring when they have sent something.
    fn admit(&mut self) {
        let door = &self.hall.doors[usize::from(self.id.0)];
        if door.knocks.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut waiting = self.hall.waiting.lock().expect("nobody panics holding it");
        let own: Vec<(ShardId, ShardId)> =
            waiting.range((self.id, ShardId(0))..=(self.id, ShardId(u16::MAX))).map(|(key, _)| *key).collect();
        for key in own {
            let Some(port) = waiting.remove(&key) else { continue };
            door.knocks.fetch_sub(1, Ordering::AcqRel);
            self.ports[usize::from(key.1.0)] = Some(Box::new(port));
            self.made.push(key.1);
        }
    }
}

impl<Q, R> Drop for Endpoint<Q, R> {
    fn drop(&mut self) {
        // Ends that nobody will fetch any more close those they belong to.
        let Ok(mut waiting) = self.hall.waiting.lock() else { return };
        self.hall.doors[usize::from(self.id.0)].is_gone.store(true, Ordering::Release);
        waiting.retain(|(to, _), _| *to != self.id);
    }
}

impl<Q, R> fmt::Debug for Endpoint<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("id", &self.id).field("made", &self.made).finish_non_exhaustive()
    }
}
