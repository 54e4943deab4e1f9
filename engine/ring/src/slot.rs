//! Requests in the kernel: how a completion finds its slot, and what a slot lends until then.
//!
//! A slot is freed only after its last completion, so its index is never given to another request while the kernel may still name it.
//! Cancellations go through the same queue in order, so one that comes too late meets nothing, never a successor.

use std::{
    future::Future,
    io,
    os::fd::{FromRawFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use io_uring::{opcode, squeue};

use crate::{
    file::File,
    pages::{Pages, PagesMut},
    ring::Shared,
};

/// What a completion belongs to: the upper byte of `user_data`, above the slot's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    /// Nobody waits: a close or a cancellation.
    Forget = 0,
    Accept = 1,
    Receive = 2,
    Send = 3,
    /// The only part of an operation, or the first of its chain.
    First = 4,
    /// The second part of a chain.
    Second = 5,
    Timeout = 6,
    Bell = 7,
}

impl Tag {
    pub(crate) fn with(self, index: u32) -> u64 {
        (self as u64) << 56 | u64::from(index)
    }

    pub(crate) fn parse(user_data: u64) -> (Tag, u32) {
        let tag = match user_data >> 56 {
            0 => Tag::Forget,
            1 => Tag::Accept,
            2 => Tag::Receive,
            3 => Tag::Send,
            4 => Tag::First,
            5 => Tag::Second,
            6 => Tag::Timeout,
            7 => Tag::Bell,
            other => unreachable!("the kernel hands back what it was given, not tag {other}"),
        };
        (tag, user_data as u32)
    }
}

/// What the kernel may use until the last completion, kept alive by the slot even when the future is gone.
pub(crate) enum Lent {
    Pages(Pages, File),
    PagesMut(PagesMut, File),
    File(File),
    /// A socket that is not connected yet, and the address it goes to.
    Connecting(OwnedFd, Box<crate::socket::RawAddress>),
    Paths(Box<[std::ffi::CString; 2]>),
    /// As above, for a request whose result is a descriptor.
    Opening(Box<std::ffi::CString>),
}

/// One operation: a single entry, or a chain of two.
pub(crate) struct OpSlot {
    pub(crate) results: [i32; 2],
    /// Completions still to come.
    pub(crate) pending: u8,
    /// The parts of the chain did not complete in their order, or were parted on submission: its sync proves nothing.
    pub(crate) torn: bool,
    abandoned: bool,
    waiter: Option<Waker>,
    /// `None` only after the result was taken.
    lent: Option<Lent>,
}

/// The future of one operation. Dropped early, it leaves the slot to the kernel.
pub(crate) struct Op {
    shared: Rc<Shared>,
    key: u32,
    taken: bool,
    cancel_on_drop: bool,
}

/// A finished operation.
pub(crate) struct OpDone {
    pub(crate) results: [i32; 2],
    pub(crate) torn: bool,
    pub(crate) lent: Lent,
}

impl OpDone {
    /// The result of an operation of one part.
    pub(crate) fn result(&self) -> io::Result<usize> {
        check(self.results[0])
    }
}

/// A kernel result as Rust sees it.
pub(crate) fn check(result: i32) -> io::Result<usize> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) }
}

impl Shared {
    /// Takes a slot, and issues the entry that `entry` makes of what is lent.
    ///
    /// # Safety
    /// The entry names no memory but what `lent` owns at a stable address, or what outlives the ring.
    pub(crate) unsafe fn issue(self: &Rc<Self>, lent: Lent, entry: impl FnOnce(&mut Lent) -> squeue::Entry) -> Op {
        let op = self.op_slot(lent, 1);
        let entry = self.with_lent(op.key, entry);
        if self.is_shut_down() {
            self.refuse_op(op.key);
        } else {
            self.armed.set(self.armed.get() + 1);
            // SAFETY: the slot keeps what is lent until the completion; the caller answers for the rest.
            unsafe { self.kernel.push(entry.user_data(Tag::First.with(op.key))) };
        }
        op
    }

    /// As `issue`, for two entries of which the first is linked to the second.
    ///
    /// # Safety
    /// As for `issue`.
    pub(crate) unsafe fn issue_chain(self: &Rc<Self>, lent: Lent, chain: impl FnOnce(&mut Lent) -> [squeue::Entry; 2]) -> Op {
        let op = self.op_slot(lent, 2);
        let [first, second] = self.with_lent(op.key, chain);
        if self.is_shut_down() {
            self.refuse_op(op.key);
            return op;
        }
        let chain = [first.user_data(Tag::First.with(op.key)), second.user_data(Tag::Second.with(op.key))];
        self.armed.set(self.armed.get() + 2);
        // SAFETY: as in `issue`.
        unsafe {
            if cfg!(feature = "mutant-chain-pushed-singly") {
                chain.into_iter().for_each(|entry| self.kernel.push(entry));
            } else {
                self.kernel.push_chain(chain, op.key);
            }
        }
        op
    }

    fn op_slot(self: &Rc<Self>, lent: Lent, pending: u8) -> Op {
        let slot = OpSlot { results: [0; 2], pending, torn: false, abandoned: false, waiter: None, lent: Some(lent) };
        let key = self.ops.borrow_mut().insert(slot) as u32;
        Op { shared: self.clone(), key, taken: false, cancel_on_drop: false }
    }

    fn with_lent<T>(&self, key: u32, act: impl FnOnce(&mut Lent) -> T) -> T {
        let mut ops = self.ops.borrow_mut();
        act(ops[key as usize].lent.as_mut().expect("a slot that was just made lends"))
    }

    /// Ends an operation that the kernel never sees.
    fn refuse_op(&self, key: u32) {
        let slot = &mut self.ops.borrow_mut()[key as usize];
        slot.results = [-libc::ESHUTDOWN, -libc::ECANCELED];
        slot.pending = 0;
    }

    /// One part of an operation is done. Tells whether a task was woken.
    pub(crate) fn complete_op(&self, key: u32, second: bool, result: i32) -> bool {
        let mut ops = self.ops.borrow_mut();
        let slot = &mut ops[key as usize];
        slot.results[usize::from(second)] = result;
        // RELIABILITY S3: a sync that ends before its write was never linked to it.
        slot.torn |= second && slot.pending == 2;
        slot.pending -= 1;
        if slot.pending > 0 {
            // A torn chain is known to have failed, yet its memory stays lent until the write ends, too.
            return false;
        }
        if slot.abandoned {
            let spent = ops.remove(key as usize);
            drop(ops);
            close_unwanted(&spent);
            return false;
        }
        let waiter = slot.waiter.take();
        drop(ops);
        waiter.map(Waker::wake).is_some()
    }

    /// The parts of this chain went out in two submissions.
    pub(crate) fn tear_op(&self, key: u32) {
        self.ops.borrow_mut()[key as usize].torn = true;
    }

    pub(crate) fn push_cancel(&self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data).build().flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: a cancellation names no memory.
        unsafe { self.kernel.push(entry.user_data(Tag::Forget.with(0))) };
    }
}

impl Op {
    /// Cancels the operation in the kernel when the future is dropped; otherwise it runs to its end unwatched.
    pub(crate) fn cancel_on_drop(mut self) -> Op {
        self.cancel_on_drop = true;
        self
    }
}

impl Future for Op {
    type Output = OpDone;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OpDone> {
        let mut ops = self.shared.ops.borrow_mut();
        assert!(!self.taken, "an operation is polled after its end");
        let slot = &mut ops[self.key as usize];
        if slot.pending > 0 {
            let before = slot.waiter.replace(cx.waker().clone());
            drop(ops);
            drop(before);
            return Poll::Pending;
        }
        let slot = ops.remove(self.key as usize);
        drop(ops);
        self.taken = true;
        Poll::Ready(OpDone { results: slot.results, torn: slot.torn, lent: slot.lent.expect("taken once") })
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut ops = self.shared.ops.borrow_mut();
        let slot = &mut ops[self.key as usize];
        let waiter = slot.waiter.take();
        if slot.pending > 0 {
            slot.abandoned = true;
            drop(ops);
            if self.cancel_on_drop {
                self.shared.push_cancel(Tag::First.with(self.key));
            }
        } else {
            let spent = ops.remove(self.key as usize);
            drop(ops);
            close_unwanted(&spent);
        }
        drop(waiter);
    }
}

/// A result that nobody will collect may be a descriptor.
fn close_unwanted(spent: &OpSlot) {
    if matches!(spent.lent, Some(Lent::Opening(_))) && spent.results[0] >= 0 {
        // SAFETY: the kernel opened it for this request, and nobody else knows of it.
        drop(unsafe { OwnedFd::from_raw_fd(spent.results[0]) });
    }
}
