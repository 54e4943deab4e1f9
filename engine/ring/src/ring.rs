//! The ring itself: what a shard holds, and one turn of it.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::VecDeque,
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
    task::Waker,
    time::{Duration, Instant},
};

use io_uring::types::CancelBuilder;
use io_uring::{opcode, squeue};
use slab::Slab;

use crate::{
    arena::Arena,
    bell::Bell,
    conn::{Conn, ConnSlot},
    deadline::{Deadline, Deadlines},
    driver,
    kernel::{Completion, Kernel},
    listener::{Accepted, Listener, ListenerSlot},
    pages::{PagesMut, Pool},
    probe::{self, Missing},
    sending::{Gather, SendPool},
    slot::{OpSlot, Tag},
    socket,
    spill::Heap,
};

/// How often a shutdown asks the kernel again to cancel what is still armed.
const CANCEL_AGAIN: Duration = Duration::from_millis(10);

/// What a ring is made of.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Entries of the submission queue, 2 to 32,768. A fuller turn costs a further system call, nothing else.
    pub entries: u32,
    /// Receive buffers, a power of two from 1 to 32,768. With all of them unread, readers wait.
    pub buffers: u16,
    /// Bytes of one buffer. Pages cost nothing until they are filled, so large buffers cost short commands nothing.
    pub buffer_bytes: u32,
    /// Bytes that a connection may have unread before the kernel stops taking more from its peer, not below `buffer_bytes`.
    pub window_bytes: u32,
    /// Bytes of heap that all connections together may take for what is not read. While fewer than a quarter of the buffers are free, what arrives
    /// for a connection whose task waits for something else goes there, with what it has in buffers already; without room it stays in them. 0: none.
    pub heap_bytes_max: usize,
    /// The core for the kernel's workers, which run fdatasync. `None`: where the shard's own thread may run.
    pub iowq_core: Option<usize>,
    /// Receives once per read instead of once per window, as on kernels before 6.17. For tests and comparison.
    pub one_shot_receives: bool,
}

impl Default for RingConfig {
    fn default() -> RingConfig {
        RingConfig {
            entries: 1024,
            buffers: 1024,
            buffer_bytes: 16 << 10,
            window_bytes: 64 << 10,
            heap_bytes_max: 0,
            iowq_core: None,
            one_shot_receives: false,
        }
    }
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A number in [`RingConfig`] that the kernel would refuse.
    #[error("{what} is {given}, and must be {wanted}")]
    Config {
        /// The field.
        what: &'static str,
        /// Its value.
        given: u64,
        /// What it must be.
        wanted: &'static str,
    },
    /// The kernel lacks or forbids something, with what mends it.
    #[error(transparent)]
    Missing(#[from] Missing),
}

/// A shard's io_uring. Cheap to clone; lives on the thread that made it.
///
/// The ring ends with its last clone, or at [`Ring::shutdown`]. Every future, [`Conn`], [`Listener`] and [`Deadline`] holds a clone.
#[derive(Clone)]
pub struct Ring(pub(crate) Rc<Shared>);

pub(crate) struct Shared {
    /// Dropped first, after `shut_down` has seen nothing armed: the kernel must let go of the rest.
    pub(crate) kernel: Kernel,
    pub(crate) arena: Arena,
    pub(crate) heap: Heap,
    pub(crate) conns: RefCell<Slab<ConnSlot>>,
    pub(crate) listeners: RefCell<Slab<ListenerSlot>>,
    pub(crate) ops: RefCell<Slab<OpSlot>>,
    /// Requests in the kernel or on the way to it, whose last completion is still to come.
    pub(crate) armed: Cell<usize>,
    /// Connections with something to send and no send in the kernel.
    pub(crate) to_send: RefCell<Vec<u32>>,
    /// Connections whose reader found the arena empty.
    pub(crate) starved: RefCell<VecDeque<u32>>,
    pub(crate) sends: RefCell<SendPool>,
    pub(crate) deadlines: Deadlines,
    pub(crate) pages: Rc<Pool>,
    pub(crate) window_works: bool,
    pub(crate) window_bytes: u32,
    /// The time of the last turn.
    pub(crate) now: Cell<Instant>,
    pub(crate) bell: Bell,
    /// How often the bell was heard, and how often when its one direct listener last looked.
    pub(crate) bell_heard: Cell<u64>,
    pub(crate) bell_seen: Cell<u64>,
    /// The tasks that wait for it, each once.
    pub(crate) bell_waiters: RefCell<Vec<Waker>>,
    /// Is the read of the bell with the kernel, and where it puts the count that nobody looks at.
    pub(crate) bell_armed: Cell<bool>,
    pub(crate) bell_count: Box<UnsafeCell<u64>>,
    /// How often tasks of this thread were polled, so that the driver knows when none can run.
    pub(crate) polls: Cell<u64>,
    reaped: RefCell<Vec<Completion>>,
    shut_down: Cell<bool>,
    /// Time spent asleep so far.
    slept: Cell<Duration>,
    /// Told how the shard fares, and when it was last told.
    observer: RefCell<Option<Observer>>,
    observed_at: Cell<Instant>,
}

/// See [`Ring::observe`].
type Observer = Box<dyn Fn(Pulse)>;

/// What an observer is told of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// The time of it.
    pub now: Instant,
    /// Time slept so far, in all.
    pub slept: Duration,
    /// The shard goes to sleep now, and is asleep until the next pulse.
    pub sleeps: bool,
}

/// An observer of a busy shard is called once in this time.
const OBSERVE_EVERY: Duration = Duration::from_millis(1);

impl Ring {
    /// Makes the ring of this thread and spawns the tasks that drive it. Call it inside a glommio executor, built with
    /// [`PREEMPT_TIMER`](crate::PREEMPT_TIMER).
    ///
    /// # Errors
    /// [`RingError::Missing`] says in one sentence what the kernel lacks or forbids, and the mend.
    pub fn start(config: RingConfig) -> Result<Ring, RingError> {
        let ring = Ring::new(config)?;
        driver::spawn(&ring.0);
        Ok(ring)
    }

    /// A ring that something else than glommio drives: see [`crate::local`].
    pub(crate) fn new(config: RingConfig) -> Result<Ring, RingError> {
        config.check()?;
        let window_works = !config.one_shot_receives && probe::receive_window_works()?;
        let kernel = Kernel::new(config.entries).map_err(|e| Missing::from_io("io_uring_setup", e))?;
        let arena =
            Arena::new(&kernel, config.buffers, config.buffer_bytes).map_err(|e| Missing::from_io("a ring of receive buffers", e))?;
        let bell = Bell::new().map_err(|e| Missing::from_io("an eventfd", e))?;
        if let Some(core) = config.iowq_core {
            bind_workers(&kernel, core).map_err(|e| Missing::from_io("binding the kernel's workers to a core", e))?;
        }
        let now = Instant::now();
        Ok(Ring(Rc::new(Shared {
            kernel,
            arena,
            heap: Heap::new(config.heap_bytes_max),
            conns: RefCell::default(),
            listeners: RefCell::default(),
            ops: RefCell::default(),
            armed: Cell::new(0),
            to_send: RefCell::default(),
            starved: RefCell::default(),
            sends: RefCell::default(),
            deadlines: Deadlines::new(),
            pages: Pool::new(now),
            window_works,
            window_bytes: config.window_bytes,
            now: Cell::new(now),
            bell,
            bell_heard: Cell::new(0),
            bell_seen: Cell::new(0),
            bell_waiters: RefCell::default(),
            bell_armed: Cell::new(false),
            bell_count: Box::default(),
            polls: Cell::new(0),
            reaped: RefCell::default(),
            shut_down: Cell::new(false),
            slept: Cell::default(),
            observer: RefCell::default(),
            observed_at: Cell::new(now),
        })))
    }

    // ---- sockets -----------------------------------------------------------

    /// Accepts connections on a listening socket, which must not be O_NONBLOCK. Sets TCP_NODELAY on it, which they inherit.
    pub fn listen(&self, socket: OwnedFd) -> Listener {
        // Best effort: replies then wait for acknowledgements, and nothing else is worse.
        let _ = socket::set_no_delay(socket.as_raw_fd());
        self.0.listen(socket)
    }

    /// Takes over a connection that some ring of this process accepted.
    pub fn take_in(&self, accepted: Accepted) -> Conn {
        self.0.adopt(accepted.into_socket())
    }

    /// Takes over a connected stream socket that was made elsewhere. It must not be O_NONBLOCK.
    pub fn adopt(&self, socket: OwnedFd) -> Conn {
        // Best effort, as for `listen`.
        let _ = socket::set_no_delay(socket.as_raw_fd());
        self.0.adopt(socket)
    }

    /// An empty vector for a reply, one that was sent before where there is one.
    pub fn take_vec(&self) -> Vec<u8> {
        self.0.sends.borrow_mut().take_vec()
    }

    /// Gives back a vector that was not sent after all.
    pub fn put_vec(&self, vec: Vec<u8>) {
        self.0.sends.borrow_mut().put_vec(vec);
    }

    /// An empty vectored message.
    pub fn gather(&self) -> Gather {
        self.0.sends.borrow_mut().take_gather()
    }

    // ---- memory ------------------------------------------------------------

    /// `bytes` bytes of zeros, 4 KiB-aligned.
    pub fn take_pages(&self, bytes: usize) -> PagesMut {
        self.0.pages.take(bytes, true)
    }

    /// As `take_pages`, with whatever an earlier use left in them: for those who overwrite all, padding included.
    pub fn take_pages_unzeroed(&self, bytes: usize) -> PagesMut {
        self.0.pages.take(bytes, false)
    }

    /// Bytes of all pages there are, in use or kept for use.
    pub fn pages_bytes(&self) -> usize {
        self.0.pages.bytes()
    }

    /// Gives back to the system the pages that nobody has used for a second. Call it about once a second.
    pub fn trim(&self, now: Instant) {
        self.0.pages.trim(now);
    }

    /// Receive buffers that the kernel can still take.
    pub fn buffers_free(&self) -> usize {
        usize::from(self.0.arena.free())
    }

    /// All receive buffers.
    pub fn buffers(&self) -> usize {
        usize::from(self.0.arena.count())
    }

    /// Heap taken by what is not read, see [`RingConfig::heap_bytes_max`].
    pub fn heap_bytes(&self) -> usize {
        self.0.heap.bytes()
    }

    // ---- time --------------------------------------------------------------

    /// The time of the ring's last turn, at most one turn of all tasks old while the shard is awake.
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }

    /// A deadline, not set yet. Keep it for as long as what it guards: setting it again is what it is good at.
    pub fn deadline(&self) -> Deadline {
        self.0.new_deadline()
    }

    /// Waits until `at`.
    pub async fn sleep_until(&self, at: Instant) {
        let deadline = self.deadline();
        deadline.set(at);
        deadline.expired().await;
    }

    /// Has `observer` told how the shard fares: once a millisecond while it is busy, each time it goes to sleep, and each time it wakes.
    /// It is called between two turns and must not use the ring.
    pub fn observe(&self, observer: impl Fn(Pulse) + 'static) {
        self.0.observer.replace(Some(Box::new(observer)));
    }

    /// Lets other tasks run, and the ring turn. What works for long without waiting for the ring yields here, at least every
    /// millisecond.
    pub async fn yield_now(&self) {
        futures_lite::future::yield_now().await;
    }

    // ---- the end -----------------------------------------------------------

    /// Requests that the kernel holds, beside the one for the bell that it always has.
    pub fn armed(&self) -> usize {
        self.0.armed.get() - usize::from(self.0.bell_armed.get())
    }

    /// Do receives keep a window on this kernel (from 6.17), or is each a request of its own?
    pub fn receive_window_works(&self) -> bool {
        self.0.window_works
    }

    /// Cancels all requests and waits, blocking, until the kernel has let go of each. Writes and syncs that run are waited for.
    ///
    /// Whatever is waited for on the ring ends with an error (ESHUTDOWN or ECANCELED), deadlines never expire any more, and further
    /// requests are refused. Doing it again does nothing.
    pub fn shutdown(&self) {
        self.0.shut_down();
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("armed", &self.armed()).field("buffers_free", &self.buffers_free()).finish()
    }
}

impl RingConfig {
    fn check(&self) -> Result<(), RingError> {
        let refuse = |what, given: u64, wanted| Err(RingError::Config { what, given, wanted });
        if !(2..=32_768).contains(&self.entries) {
            return refuse("entries", self.entries.into(), "2 to 32768");
        }
        if !self.buffers.is_power_of_two() || self.buffers > 32_768 {
            return refuse("buffers", self.buffers.into(), "a power of two up to 32768");
        }
        if !(64..=1 << 20).contains(&self.buffer_bytes) {
            return refuse("buffer_bytes", self.buffer_bytes.into(), "64 bytes to 1 MiB");
        }
        if !(self.buffer_bytes..=1 << 30).contains(&self.window_bytes) {
            return refuse("window_bytes", self.window_bytes.into(), "from buffer_bytes to 1 GiB");
        }
        Ok(())
    }
}

fn bind_workers(kernel: &Kernel, core: usize) -> io::Result<()> {
    // SAFETY: a set of zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the core lies within the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    kernel.with_submitter(|s| s.register_iowq_aff(&set))
}

impl Shared {
    /// Submits what tasks have queued, in one system call, and hands out what has completed. Returns how many tasks it woke.
    pub(crate) fn turn(&self) -> io::Result<usize> {
        self.prepare();
        self.kernel.turn(&mut self.reaped.borrow_mut())?;
        let woken = self.hand_out();
        let now = self.now.get();
        if now.saturating_duration_since(self.observed_at.get()) >= OBSERVE_EVERY {
            self.tell_observer(now, false);
        }
        Ok(woken)
    }

    /// As `turn`, but sleeps until something completes.
    pub(crate) fn turn_asleep(&self) -> io::Result<usize> {
        self.prepare();
        let asleep_from = Instant::now();
        self.tell_observer(asleep_from, true);
        self.kernel.turn_and_wait(None, &mut self.reaped.borrow_mut())?;
        let woken = self.hand_out();
        let now = self.now.get();
        self.slept.set(self.slept.get() + now.saturating_duration_since(asleep_from));
        // What it woke for may take long: it is not asleep meanwhile.
        self.tell_observer(now, false);
        Ok(woken)
    }

    fn tell_observer(&self, now: Instant, sleeps: bool) {
        self.observed_at.set(now);
        if let Some(observer) = &*self.observer.borrow() {
            observer(Pulse { now, slept: self.slept.get(), sleeps });
        }
    }

    fn prepare(&self) {
        self.arm_bell();
        self.arm_deadline();
        if !self.to_send.borrow().is_empty() {
            self.push_sends();
        }
        if !self.starved.borrow().is_empty() {
            self.arm_starved();
        }
    }

    fn hand_out(&self) -> usize {
        let now = Instant::now();
        self.now.set(now);
        self.pages.now.set(now);
        while let Some(key) = self.kernel.take_split() {
            self.tear_op(key);
        }
        let mut woken = 0;
        let mut reaped = self.reaped.take();
        for completion in reaped.drain(..) {
            woken += usize::from(self.complete(completion));
        }
        self.reaped.replace(reaped);
        if !self.is_shut_down() {
            woken += self.deadlines.expire(now);
        }
        woken + self.hear_bell()
    }

    fn complete(&self, done: Completion) -> bool {
        let (tag, key) = Tag::parse(done.user_data);
        if tag != Tag::Forget && !io_uring::cqueue::more(done.flags) {
            self.armed.set(self.armed.get() - 1);
        }
        match tag {
            Tag::Forget => false,
            Tag::Accept => self.complete_accept(key, done.result, done.flags),
            Tag::Receive => self.complete_receive(key, done.result, done.flags),
            Tag::Send => self.complete_send(key, done.result),
            Tag::First => self.complete_op(key, false, done.result),
            Tag::Second => self.complete_op(key, true, done.result),
            Tag::Bell => {
                self.complete_bell(done.result);
                false
            }
            Tag::Timeout => {
                self.deadlines.timed_out();
                false
            }
        }
    }

    /// Would a turn find anything to do?
    pub(crate) fn has_work(&self) -> bool {
        self.kernel.has_work()
            || !self.to_send.borrow().is_empty()
            || self.deadlines.needs_arming()
            || self.bell.is_rung()
            || (!self.starved.borrow().is_empty() && self.arena.free() > 0)
    }

    pub(crate) fn give_back(&self, bid: u16) {
        self.arena.give_back(bid);
    }

    // ---- the end -----------------------------------------------------------

    pub(crate) fn is_shut_down(&self) -> bool {
        self.shut_down.get()
    }

    fn shut_down(&self) {
        if self.shut_down.replace(true) {
            return;
        }
        // What no request is armed for would wait for ever: its next poll is told.
        self.to_send.borrow_mut().clear();
        while self.armed.get() > 0 {
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().flags(squeue::Flags::SKIP_SUCCESS);
            // SAFETY: a cancellation names no memory.
            unsafe { self.kernel.push(cancel.user_data(Tag::Forget.with(0))) };
            let patience = Instant::now() + CANCEL_AGAIN;
            while self.armed.get() > 0 {
                let left = patience.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let waited = self.kernel.turn_and_wait(Some(left), &mut self.reaped.borrow_mut());
                // Without the kernel's answer memory may still be lent, and going on would hand it to others.
                waited.expect("the kernel answers a ring that is being closed");
                self.hand_out();
            }
        }
        // Closes that connections queued before.
        let last = self.kernel.turn(&mut self.reaped.borrow_mut());
        last.expect("the kernel answers a ring that is being closed");
        self.hand_out();
        self.wake_all();
    }

    /// Wakes whoever waits for something that will not come, to be told so.
    fn wake_all(&self) {
        let mut wakers = Vec::new();
        for (_, slot) in self.conns.borrow_mut().iter_mut() {
            wakers.extend(slot.take_wakers());
        }
        for (_, slot) in self.listeners.borrow_mut().iter_mut() {
            wakers.extend(slot.take_waker());
        }
        wakers.append(&mut self.bell_waiters.borrow_mut());
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.shut_down();
    }
}
