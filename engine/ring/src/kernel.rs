//! The two queues shared with the kernel: entries go in, completions come out.
//!
//! An entry is never refused and never waits in a loop: when the submission queue is full it is submitted, when the kernel is busy
//! completions are set aside so that it can go on, and when even that does not help the entry waits in the backlog for the next turn.
//! The backlog is bounded by what is armed: a request is one entry, its cancellation another. A chain enters the queue whole or not at all.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    time::Duration,
};

use io_uring::{IoUring, Submitter, squeue, types};

/// What the kernel says about one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) user_data: u64,
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

/// Entries that wait for room, as one unit.
enum Waiting {
    One(squeue::Entry),
    Chain([squeue::Entry; 2], u32),
}

pub(crate) struct Kernel {
    uring: RefCell<IoUring>,
    backlog: RefCell<VecDeque<Waiting>>,
    /// Completions taken out of their queue before the turn that handles them.
    early: RefCell<VecDeque<Completion>>,
    /// Entries put into the submission queue since the start, and those of them that the kernel took.
    pushed: Cell<u64>,
    submitted: Cell<u64>,
    /// Chains pushed since everything was last submitted: position of their first entry, and their slot.
    chains: RefCell<Vec<(u64, u32)>>,
    /// Slots of chains that the kernel took in two submissions, which it does when it is out of memory between the two.
    split: RefCell<Vec<u32>>,
}

impl Kernel {
    /// A ring of `entries` submissions and four times as many completions, for this thread alone.
    pub(crate) fn new(entries: u32) -> io::Result<Kernel> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(entries.saturating_mul(4).max(16))
            .build(entries)?;
        Ok(Kernel {
            uring: RefCell::new(uring),
            backlog: RefCell::default(),
            early: RefCell::default(),
            pushed: Cell::new(0),
            submitted: Cell::new(0),
            chains: RefCell::default(),
            split: RefCell::default(),
        })
    }

    pub(crate) fn with_submitter<T>(&self, act: impl FnOnce(&Submitter<'_>) -> T) -> T {
        act(&self.uring.borrow().submitter())
    }

    /// Queues one entry.
    ///
    /// # Safety
    /// All memory that the entry names stays valid and unmoved until its last completion.
    pub(crate) unsafe fn push(&self, entry: squeue::Entry) {
        // SAFETY: the caller answers for the entry.
        if !self.backlog.borrow().is_empty() || !unsafe { self.try_push(std::slice::from_ref(&entry)) } {
            self.backlog.borrow_mut().push_back(Waiting::One(entry));
        }
    }

    /// Queues two entries of which the first is linked to the second, in one submission. `slot` comes back from `take_split` should the
    /// kernel part them all the same.
    ///
    /// # Safety
    /// As for `push`.
    pub(crate) unsafe fn push_chain(&self, chain: [squeue::Entry; 2], slot: u32) {
        // SAFETY: the caller answers for the entries.
        if !self.backlog.borrow().is_empty() || !unsafe { self.try_push_chain(&chain, slot) } {
            self.backlog.borrow_mut().push_back(Waiting::Chain(chain, slot));
        }
    }

    /// # Safety
    /// As for `push`.
    unsafe fn try_push_chain(&self, chain: &[squeue::Entry; 2], slot: u32) -> bool {
        // SAFETY: the caller answers for the entries.
        let pushed = unsafe { self.try_push(chain) };
        if pushed {
            self.chains.borrow_mut().push((self.pushed.get() - 2, slot));
        }
        pushed
    }

    /// Pushes all of `entries` or none of them.
    ///
    /// # Safety
    /// As for `push`.
    unsafe fn try_push(&self, entries: &[squeue::Entry]) -> bool {
        // Room by submitting; if the kernel is busy because completions wait, room by setting those aside.
        for attempt in 0..3 {
            // SAFETY: the caller answers for the entries.
            if unsafe { self.uring.borrow_mut().submission().push_multiple(entries) }.is_ok() {
                self.pushed.set(self.pushed.get() + entries.len() as u64);
                return true;
            }
            if attempt > 0 {
                self.set_completions_aside();
            }
            if self.enter(0, None).is_err() {
                return false; // the next turn meets the same error and reports it
            }
        }
        false
    }

    fn set_completions_aside(&self) {
        let mut uring = self.uring.borrow_mut();
        let mut early = self.early.borrow_mut();
        early.extend(uring.completion().map(|c| Completion { user_data: c.user_data(), result: c.result(), flags: c.flags() }));
    }

    /// Submits all that is queued and moves all completions to `into`.
    pub(crate) fn turn(&self, into: &mut Vec<Completion>) -> io::Result<()> {
        self.drain_backlog();
        if self.kernel_has_business() {
            self.enter(0, None)?;
        }
        self.reap(into);
        Ok(())
    }

    /// Like `turn`, but sleeps until there is a completion or `patience`, if any, is over.
    pub(crate) fn turn_and_wait(&self, patience: Option<Duration>, into: &mut Vec<Completion>) -> io::Result<()> {
        self.drain_backlog();
        self.enter(1, patience)?;
        self.reap(into);
        Ok(())
    }

    fn reap(&self, into: &mut Vec<Completion>) {
        into.extend(self.early.borrow_mut().drain(..));
        let mut uring = self.uring.borrow_mut();
        into.extend(uring.completion().map(|c| Completion { user_data: c.user_data(), result: c.result(), flags: c.flags() }));
    }

    fn drain_backlog(&self) {
        while let Some(waiting) = self.backlog.borrow_mut().pop_front() {
            // SAFETY: the entries' owners answered for them when they queued them, until their completion.
            let pushed = unsafe {
                match &waiting {
                    Waiting::One(entry) => self.try_push(std::slice::from_ref(entry)),
                    Waiting::Chain(chain, slot) => self.try_push_chain(chain, *slot),
                }
            };
            if !pushed {
                return self.backlog.borrow_mut().push_front(waiting);
            }
        }
    }

    /// One system call: submits, and waits for `want` completions for as long as `patience`.
    fn enter(&self, want: usize, patience: Option<Duration>) -> io::Result<()> {
        let uring = self.uring.borrow();
        let submitter = uring.submitter();
        let outcome = match patience {
            None => submitter.submit_and_wait(want),
            Some(patience) => {
                let limit = types::Timespec::new().sec(patience.as_secs()).nsec(patience.subsec_nanos());
                submitter.submit_with_args(want, &types::SubmitArgs::new().timespec(&limit))
            }
        };
        match outcome {
            Ok(taken) => {
                self.submitted.set(self.submitted.get() + taken as u64);
                self.look_for_split_chains();
                Ok(())
            }
            // EBUSY: completions wait to be reaped. EAGAIN: out of memory for now. ETIME: patience is over. The queue stands as it was.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME)) => {
                let left = {
                    drop(uring);
                    self.uring.borrow_mut().submission().len() as u64
                };
                // A wait that timed out reports only that; what the kernel took shows in the queue.
                self.submitted.set(self.pushed.get() - left);
                self.look_for_split_chains();
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn look_for_split_chains(&self) {
        let mut chains = self.chains.borrow_mut();
        if chains.is_empty() {
            return;
        }
        let submitted = self.submitted.get();
        chains.retain(|&(first, slot)| {
            if first + 1 == submitted {
                self.split.borrow_mut().push(slot);
            }
            first >= submitted
        });
    }

    /// The slot of a chain that went out in two submissions, so that its sync proves nothing.
    pub(crate) fn take_split(&self) -> Option<u32> {
        self.split.borrow_mut().pop()
    }

    fn kernel_has_business(&self) -> bool {
        let mut uring = self.uring.borrow_mut();
        let sq = uring.submission();
        !sq.is_empty() || sq.taskrun() || sq.cq_overflow()
    }

    /// Would a turn find anything to do?
    pub(crate) fn has_work(&self) -> bool {
        self.kernel_has_business()
            || !self.backlog.borrow().is_empty()
            || !self.early.borrow().is_empty()
            || !self.uring.borrow_mut().completion().is_empty()
    }

    /// Where the entry that was pushed last stands, for `has_taken`. `None`: it waits in the backlog.
    pub(crate) fn last_pushed(&self) -> Option<u64> {
        self.backlog.borrow().is_empty().then(|| self.pushed.get())
    }

    /// Has the kernel taken the entry that was last when `last_pushed` said `position`?
    pub(crate) fn has_taken(&self, position: Option<u64>) -> bool {
        self.backlog.borrow().is_empty() && self.submitted.get() >= position.unwrap_or(self.pushed.get())
    }
}
