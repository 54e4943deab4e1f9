//! The smallest executor that can run a ring, for tests and tools: tasks of one thread, sleeping in the ring.
//!
//! A shard runs on glommio: see [`Ring::start`].

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, ThreadId},
};

use slab::Slab;

use crate::{
    bell::Bell,
    ring::{Ring, RingConfig, RingError},
};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What is done before each turn, where something is.
type BeforeTurn = Rc<RefCell<Option<Box<dyn FnMut()>>>>;

/// Which tasks may go on. The main future is number 0, task k is number k + 1.
struct Ready {
    queue: Mutex<VecDeque<usize>>,
    bell: Bell,
    thread: ThreadId,
}

impl Ready {
    fn push(&self, number: usize) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(number);
        if thread::current().id() != self.thread {
            self.bell.strike();
        }
    }

    fn pop(&self) -> Option<usize> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn is_empty(&self) -> bool {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

struct TaskWaker {
    number: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.push(self.number);
        }
    }
}

struct Spawned {
    task: Task,
    waker: Arc<TaskWaker>,
}

/// Spawns tasks beside the main future of [`run`]. Cheap to clone. They are dropped when the main future ends.
#[derive(Clone)]
pub struct Spawner {
    /// A task is `None` while it runs.
    tasks: Rc<RefCell<Slab<Option<Spawned>>>>,
    before_turn: BeforeTurn,
    ready: Arc<Ready>,
}

impl Spawner {
    /// From now on `work` is done before each turn of the ring, in place of what was said here before: what tasks have asked the ring for
    /// since the last turn, such as sends, leaves behind it. It is to ask nothing of the ring or of this spawner. Dropped with the tasks.
    pub fn before_each_turn(&self, work: impl FnMut() + 'static) {
        *self.before_turn.borrow_mut() = Some(Box::new(work));
    }

    /// Runs `task` from the next turn on.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let waker = Arc::new(TaskWaker { number: entry.key() + 1, queued: AtomicBool::new(false), ready: self.ready.clone() });
        entry.insert(Some(Spawned { task: Box::pin(task), waker: waker.clone() }));
        drop(tasks);
        waker.wake();
    }

    fn run(&self, key: usize) {
        let Some(mut spawned) = self.tasks.borrow_mut().get_mut(key).and_then(Option::take) else { return };
        spawned.waker.queued.store(false, Ordering::Release);
        let waker = Waker::from(spawned.waker.clone());
        match spawned.task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => drop(self.tasks.borrow_mut().remove(key)),
            Poll::Pending => self.tasks.borrow_mut()[key] = Some(spawned),
        }
    }
}

/// Makes a ring, and runs what `main` makes of it to its end.
pub fn run<T, F: Future<Output = T>>(config: RingConfig, main: impl FnOnce(Ring, Spawner) -> F) -> Result<T, RingError> {
    let ring = Ring::new(config)?;
    let shared = ring.0.clone();
    let ready = Arc::new(Ready { queue: Mutex::default(), bell: ring.bell(), thread: thread::current().id() });
    let spawner = Spawner { tasks: Rc::default(), before_turn: Rc::default(), ready: ready.clone() };
    let main_waker = Arc::new(TaskWaker { number: 0, queued: AtomicBool::new(false), ready: ready.clone() });
    let waker = Waker::from(main_waker.clone());
    let mut main = pin!(main(ring, spawner.clone()));
    main_waker.clone().wake();
    loop {
        // What is ready now, and then a turn: tasks that wake each other do not keep the ring waiting.
        let count = ready.queue.lock().unwrap_or_else(PoisonError::into_inner).len();
        for _ in 0..count {
            match ready.pop() {
                Some(0) => {
                    main_waker.queued.store(false, Ordering::Release);
                    if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                        let (tasks, before_turn) = (spawner.tasks.take(), spawner.before_turn.take());
                        drop((tasks, before_turn));
                        return Ok(value);
                    }
                }
                Some(number) => spawner.run(number - 1),
                None => break,
            }
        }
        if let Some(work) = &mut *spawner.before_turn.borrow_mut() {
            work();
        }
        let woken = shared.turn().expect("io_uring_enter");
        if woken == 0 && ready.is_empty() && !shared.has_work() {
            shared.turn_asleep().expect("io_uring_enter");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn};

    use super::*;

    #[test]
    fn work_before_a_turn_sees_what_tasks_have_done_and_ends_with_them() {
        let (done, seen) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (theirs, outside) = ((done.clone(), seen.clone()), seen.clone());
        run(RingConfig::default(), |_ring, spawner| async move {
            let (done, seen) = theirs.clone();
            spawner.before_each_turn(move || theirs.1.set(theirs.0.get()));
            for step in 1..=3 {
                done.set(step);
                assert_eq!(seen.get(), step - 1, "no turn has come between");
                let mut has_turned = false;
                poll_fn(|cx| match std::mem::replace(&mut has_turned, true) {
                    true => Poll::Ready(()),
                    false => {
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                })
                .await;
                assert_eq!(seen.get(), step);
            }
        })
        .unwrap();
        drop((done, outside));
        assert_eq!(Rc::strong_count(&seen), 1, "nothing holds what the work held");
    }
}
