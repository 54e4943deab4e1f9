//! Threads for work on files that must not block a shard and that the ring has no requests for: maildirs.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    task::{Poll, Waker},
    thread,
};

use ringpost_ring::Ring;

/// Threads of one shard, begun when they are first needed. They wait for disks, mostly.
const THREADS: usize = 2;
/// Work that may wait for them; attempts are bounded by the limits of their destinations, long before this.
const WAITING_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// Why work was not done.
#[derive(Debug, thiserror::Error)]
pub enum NotRun {
    /// So much waits already.
    #[error("too much work on files waits")]
    Busy,
    /// The system gives no further thread.
    #[error("no thread for work on files: {0}")]
    NoThread(#[from] io::Error),
}

/// The threads of one shard; they end with it.
#[derive(Default)]
pub struct FileThreads {
    jobs: RefCell<Option<SyncSender<Job>>>,
}

/// Where one job's result is left.
struct Handover<R> {
    result: Option<R>,
    waker: Option<Waker>,
}

impl FileThreads {
    /// Runs `work` on a thread and waits for its result without blocking.
    pub async fn run<R: Send + 'static>(&self, ring: &Ring, work: impl FnOnce() -> R + Send + 'static) -> Result<R, NotRun> {
        let handover = Arc::new(Mutex::new(Handover { result: None, waker: None }));
        let theirs = handover.clone();
        let job: Job = Box::new(move || {
            let result = work();
            let mut handover = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            handover.result = Some(result);
            let waker = handover.waker.take();
            drop(handover);
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        self.send(job)?;
        let taken = poll_fn(|cx| {
            let mut handover = handover.lock().unwrap_or_else(PoisonError::into_inner);
            match handover.result.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    handover.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        });
        Ok(ring.hear(taken).await)
    }

    fn send(&self, job: Job) -> Result<(), NotRun> {
        let mut jobs = self.jobs.borrow_mut();
        let jobs = match &*jobs {
            Some(jobs) => jobs,
            None => jobs.insert(start()?),
        };
        jobs.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => NotRun::Busy,
        })
    }
}

fn start() -> io::Result<SyncSender<Job>> {
    let (sender, receiver) = sync_channel::<Job>(WAITING_MAX);
    let receiver = Arc::new(Mutex::new(receiver));
    for number in 0..THREADS {
        let receiver: Arc<Mutex<Receiver<Job>>> = receiver.clone();
        let started = thread::Builder::new().name(format!("files-{number}")).spawn(move || {
            leave_core();
            loop {
                // The lock is held while waiting: one thread waits for work, the others for it.
                let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                match job {
                    Ok(job) => job(),
                    Err(_) => return,
                }
            }
        });
        // One is enough to go on with.
        if number == 0 {
            started?;
        }
    }
    Ok(sender)
}

/// A thread begins on the shard's core, to which that is pinned; this one may run wherever there is room.
fn leave_core() {
    let mut anywhere = rustix::thread::CpuSet::new();
    (0..rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| anywhere.set(cpu));
    // Where that is forbidden it stays.
    let _ = rustix::thread::sched_setaffinity(None, &anywhere);
}
