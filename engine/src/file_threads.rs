//! Threads for work on files that must not block a shard and that the ring has no requests for: maildirs.
//!
//! A system call on a file system that does not answer (a network disk that is away) never returns, and nothing can end it. Who waits for it
//! gives up after a time, and another thread takes the place of the one that is stuck. Which work is next is [`FileLanes`]' to say.

use std::{
    future::poll_fn,
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    thread,
};

use ringpost_ring::Ring;
use tracing::info;

use crate::file_lanes::{FileLanes, GivenUp};

/// Threads of one shard that are not stuck, begun when they are needed.
const THREADS_MAX: usize = 32;
/// With those that are stuck: beyond it work waits until its time is over.
const THREADS_AND_STUCK_MAX: usize = 256;
/// Threads that are kept while there is nothing to do.
const IDLE_MAX: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

/// Why work was not done.
#[derive(Debug, thiserror::Error)]
pub enum NotRun {
    /// So much waits already.
    #[error("too much work on files waits")]
    Busy,
    /// The system gives no thread.
    #[error("no thread for work on files: {0}")]
    NoThread(#[from] io::Error),
    /// Its time was over before it had its turn: it is not done.
    #[error("other work on files took all the time")]
    NoTurn,
    /// Its time was over while a thread was at it, which still is: it may be done later.
    #[error("a file system does not answer")]
    Stuck,
}

/// The threads of one shard; they end with it.
#[derive(Default)]
pub struct FileThreads {
    pool: Arc<Pool>,
}

#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lanes: FileLanes<Job>,
    threads: usize,
    /// Those that wait for work, or are about to look for some for the first time.
    idle: usize,
    has_ended: bool,
}

/// Where one job's result is left.
struct Handover<R> {
    result: Option<R>,
    waker: Option<Waker>,
    is_given_up: bool,
}

impl FileThreads {
    /// Runs `work` on a thread, in its turn in `lane`, and waits for its result without blocking, until `over` ends. `place` then says where it
    /// is. Work that `goes_on` with something is done even after that, so that this is not dropped on the shard; its result is dropped on the thread.
    pub async fn run<R: Send + 'static>(
        &self,
        ring: &Ring,
        lane: &str,
        goes_on: bool,
        work: impl FnOnce() -> R + Send + 'static,
        over: impl Future<Output = ()>,
        place: impl Fn() -> PathBuf,
    ) -> Result<R, NotRun> {
        let handover = Arc::new(Mutex::new(Handover { result: None, waker: None, is_given_up: false }));
        let theirs = handover.clone();
        let number = self.enter(lane, goes_on, move || {
            let result = work();
            let mut handover = lock(&theirs);
            if handover.is_given_up {
                return;
            }
            handover.result = Some(result);
            let waker = handover.waker.take();
            drop(handover);
            if let Some(waker) = waker {
                waker.wake();
            }
        })?;
        let mut taken = pin!(ring.hear(poll_fn(|cx| {
            let mut handover = lock(&handover);
            match handover.result.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    handover.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })));
        let mut over = pin!(over);
        let taken = poll_fn(|cx| match taken.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => over.as_mut().poll(cx).map(|()| None),
        });
        if let Some(result) = taken.await {
            return Ok(result);
        }
        let given_up = self.give_up(number, place());
        let mut handover = lock(&handover);
        match (handover.result.take(), given_up) {
            (Some(result), _) => Ok(result),
            (None, GivenUp::Withdrawn | GivenUp::Waits) => {
                handover.is_given_up = true;
                Err(NotRun::NoTurn)
            }
            (None, GivenUp::Stuck | GivenUp::Ended) => {
                handover.is_given_up = true;
                Err(NotRun::Stuck)
            }
        }
    }

    /// Has `work` done that goes on with something; nobody waits for it.
    pub fn leave(&self, lane: &str, work: impl FnOnce() + Send + 'static) {
        // Where there is no thread at all there is nothing that it could go on with.
        let _ = self.enter(lane, true, work);
    }

    /// So much of this lane is stuck that nothing further is to be begun.
    pub fn is_shut(&self, lane: &str) -> bool {
        lock(&self.pool.state).lanes.is_shut(lane)
    }

    /// Is a thread stuck at this place?
    pub fn hangs_at(&self, place: &Path) -> bool {
        lock(&self.pool.state).lanes.hangs_at(place)
    }

    fn enter(&self, lane: &str, goes_on: bool, job: impl FnOnce() + Send + 'static) -> Result<u64, NotRun> {
        let mut state = lock(&self.pool.state);
        let number = state.lanes.enter(lane, Box::new(job), goes_on).ok_or(NotRun::Busy)?;
        match self.staff(&mut state) {
            // One is enough to go on with.
            Err(error) if state.threads == 0 => {
                state.lanes.give_up(number, PathBuf::new());
                Err(NotRun::NoThread(error))
            }
            _ => Ok(number),
        }
    }

    fn give_up(&self, number: u64, place: PathBuf) -> GivenUp {
        let mut state = lock(&self.pool.state);
        let given_up = state.lanes.give_up(number, place);
        // What waits behind it may go now. Without a further thread it waits for one of those that are there.
        let _ = self.staff(&mut state);
        given_up
    }

    /// Sees to it that there are threads for all that may be begun.
    fn staff(&self, state: &mut State) -> io::Result<()> {
        let runnable = state.lanes.runnable();
        if runnable > 0 {
            self.pool.changed.notify_all();
        }
        while state.idle < runnable && state.threads < THREADS_AND_STUCK_MAX && state.threads - state.lanes.stuck() < THREADS_MAX {
            let pool = self.pool.clone();
            thread::Builder::new().name("files".to_owned()).spawn(move || pool.serve())?;
            state.threads += 1;
            state.idle += 1;
        }
        Ok(())
    }
}

impl Drop for FileThreads {
    fn drop(&mut self) {
        let mut state = lock(&self.pool.state);
        state.has_ended = true;
        state.lanes.clear();
        self.pool.changed.notify_all();
    }
}

impl Pool {
    /// A thread: works until there is nothing to do for which it is needed.
    fn serve(&self) {
        leave_core();
        let mut state = lock(&self.state);
        state.idle -= 1;
        loop {
            if let Some((number, job)) = state.lanes.begin() {
                drop(state);
                job();
                state = lock(&self.state);
                if let Some(place) = state.lanes.ended(number) {
                    info!(folder = %place.display(), "a maildir that did not answer does so again");
                }
                continue;
            }
            if state.has_ended || state.idle >= IDLE_MAX {
                state.threads -= 1;
                return;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread begins on the shard's core, to which that is pinned; this one may run wherever there is room.
fn leave_core() {
    let mut anywhere = rustix::thread::CpuSet::new();
    (0..rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| anywhere.set(cpu));
    // Where that is forbidden it stays.
    let _ = rustix::thread::sched_setaffinity(None, &anywhere);
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        rc::Rc,
        sync::mpsc::{Sender, channel},
        time::{Duration, Instant},
    };

    use ringpost_ring::{RingConfig, local};

    use super::*;
    use crate::file_lanes::STUCK_MAX;

    /// Work that ends when the sender is dropped.
    fn hanging() -> (Sender<()>, impl FnOnce() + Send + 'static) {
        let (sender, receiver) = channel();
        (sender, move || assert!(receiver.recv().is_err()))
    }

    /// Longer than any work here takes that does not hang.
    async fn patience(ring: &Ring) {
        ring.sleep_until(Instant::now() + Duration::from_secs(10)).await;
    }

    /// Two messages for a route whose disk was away took both threads, and all other maildirs of the shard waited for ever.
    #[test]
    fn what_hangs_in_one_lane_holds_up_no_other() {
        let run = local::run(RingConfig::default(), |ring, spawner| async move {
            let threads = Rc::new(FileThreads::default());
            let mut ends = Vec::new();
            for _ in 0..2 * crate::file_lanes::RUNNING_MAX {
                let (end, work) = hanging();
                ends.push(end);
                let (ring, threads) = (ring.clone(), threads.clone());
                spawner.spawn(async move { drop(threads.run(&ring, "a", false, work, pending(), PathBuf::new).await) });
            }
            // Those of the first lane are with the threads before this one is.
            ring.sleep_until(Instant::now() + Duration::from_millis(20)).await;
            let other = threads.run(&ring, "b", false, || 7, patience(&ring), PathBuf::new).await;
            assert!(matches!(other, Ok(7)), "{other:?}");
            drop(ends);
        });
        run.unwrap();
    }

    /// Has work hang on a thread in a lane, at this place, until what it returns is dropped.
    async fn stick(threads: &FileThreads, ring: &Ring, lane: &str, place: &Path) -> Sender<()> {
        let ((end, work), (began, has_begun)) = (hanging(), channel::<()>());
        let both = move || {
            drop(began);
            work();
        };
        // Its time is over once it has begun.
        let (until, over) = (Instant::now() + Duration::from_secs(10), &has_begun);
        let over = async {
            while over.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) && Instant::now() < until {
                ring.sleep_until(Instant::now() + Duration::from_millis(1)).await;
            }
        };
        let given_up = threads.run(ring, lane, false, both, over, || place.to_owned()).await;
        assert!(matches!(given_up, Err(NotRun::Stuck)) && threads.hangs_at(place), "{given_up:?}");
        end
    }

    #[test]
    fn what_is_stuck_is_given_up_and_another_thread_goes_on() {
        let run = local::run(RingConfig::default(), |ring, _| async move {
            let threads = FileThreads::default();
            let mut ends = Vec::new();
            for number in 0..STUCK_MAX {
                assert!(!threads.is_shut("a"));
                ends.push(stick(&threads, &ring, "a", &PathBuf::from(format!("/m/{number}"))).await);
            }
            assert!(threads.is_shut("a") && !threads.is_shut("b"));
            let other = threads.run(&ring, "a", true, || 7, patience(&ring), PathBuf::new).await;
            assert!(matches!(other, Ok(7)), "{other:?}");
            drop(ends);
            let until = Instant::now() + Duration::from_secs(10);
            while threads.hangs_at(Path::new("/m/0")) || threads.is_shut("a") {
                assert!(Instant::now() < until, "it has ended");
                ring.sleep_until(Instant::now() + Duration::from_millis(1)).await;
            }
        });
        run.unwrap();
    }

    /// Eight routes on a disk that was away took all threads, and the maildirs of all others waited for as long as it was away.
    #[test]
    fn many_lanes_that_hang_leave_threads_to_the_others_up_to_a_bound() {
        let run = local::run(RingConfig::default(), |ring, _| async move {
            let threads = FileThreads::default();
            let mut ends = Vec::new();
            while ends.len() < THREADS_AND_STUCK_MAX {
                // More than so many are stuck in no lane: it is shut.
                let lane = (ends.len() / STUCK_MAX).to_string();
                ends.push(stick(&threads, &ring, &lane, Path::new("/m")).await);
                if ends.len() == THREADS_MAX || ends.len() == THREADS_AND_STUCK_MAX - 1 {
                    let healthy = threads.run(&ring, "healthy", false, || 7, patience(&ring), PathBuf::new).await;
                    assert!(matches!(healthy, Ok(7)), "{} are stuck: {healthy:?}", ends.len());
                }
            }
            // Now it waits for one of those, as long as it has time.
            let never = threads.run(&ring, "healthy", false, || panic!("it was withdrawn"), ready(()), PathBuf::new).await;
            assert!(matches!(never, Err(NotRun::NoTurn)), "{never:?}");
            assert_eq!(lock(&threads.pool.state).threads, THREADS_AND_STUCK_MAX);
            ends.pop();
            let healthy = threads.run(&ring, "healthy", false, || 7, patience(&ring), PathBuf::new).await;
            assert!(matches!(healthy, Ok(7)), "{healthy:?}");
        });
        run.unwrap();
    }

    #[test]
    fn work_that_had_no_turn_in_its_time_is_not_done() {
        let run = local::run(RingConfig::default(), |ring, spawner| async move {
            let threads = Rc::new(FileThreads::default());
            let mut ends = Vec::new();
            for _ in 0..crate::file_lanes::RUNNING_MAX {
                let (end, work) = hanging();
                ends.push(end);
                let (ring, threads) = (ring.clone(), threads.clone());
                spawner.spawn(async move { drop(threads.run(&ring, "a", false, work, pending(), PathBuf::new).await) });
            }
            ring.sleep_until(Instant::now() + Duration::from_millis(20)).await;
            let never = threads.run(&ring, "a", false, || panic!("it was withdrawn"), ready(()), PathBuf::new).await;
            assert!(matches!(never, Err(NotRun::NoTurn)), "{never:?}");
            // In its turn all the same, though nobody waits for it.
            let (sender, done) = channel();
            let late = threads.run(&ring, "a", true, move || sender.send(()).unwrap(), ready(()), PathBuf::new).await;
            assert!(matches!(late, Err(NotRun::NoTurn)), "{late:?}");
            drop(ends);
            done.recv_timeout(Duration::from_secs(10)).unwrap();
        });
        run.unwrap();
    }
}
