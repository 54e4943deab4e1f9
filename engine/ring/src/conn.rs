//! A connection on the ring.
//!
//! Receives are armed once and again, and completions wait in the slot until the task reads, at most a window of them. A task that is
//! dropped between two reads loses nothing, and a dropped [`Conn`] leaves the kernel nothing but its last completions to post.

use std::{
    fmt,
    future::poll_fn,
    io,
    net::{Shutdown, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use io_uring::{cqueue, opcode, squeue, types};

use crate::{
    arena::{GROUP, Unread, windowed_receive},
    received::Received,
    ring::Shared,
    sending::{SendBuf, Sending},
    slot::Tag,
    socket,
    spill::Spilled,
};

/// What an idle connection costs, with the `Conn` and the kernel's own.
pub(crate) struct ConnSlot {
    fd: RawFd,
    /// errno that ended reading, 0 for none.
    receive_error: i32,
    /// errno that ended sending, 0 for none.
    send_error: i32,
    pub(crate) unread: Unread,
    /// Older than what `unread` lists; none while the arena has buffers enough.
    pub(crate) spilled: Option<Spilled>,
    reader: Option<Waker>,
    flusher: Option<Waker>,
    /// Only while there is something to send.
    sending: Option<Box<Sending>>,
    receive_armed: bool,
    send_armed: bool,
    /// Listed in `Shared::to_send`.
    listed: bool,
    /// Listed in `Shared::starved`.
    starved: bool,
    ended: bool,
    /// The `Conn` is gone; the slot goes with the last completion.
    abandoned: bool,
}

impl ConnSlot {
    pub(crate) fn take_wakers(&mut self) -> impl Iterator<Item = Waker> + use<> {
        self.reader.take().into_iter().chain(self.flusher.take())
    }
}

/// A connected stream socket. Closed on drop, with what is queued and not sent yet: [`Conn::flush`] first.
///
/// One task may read while another sends; two that read at once take each other's wake-ups.
pub struct Conn {
    shared: Rc<Shared>,
    key: u32,
}

impl Shared {
    pub(crate) fn adopt(self: &Rc<Self>, socket: OwnedFd) -> Conn {
        let slot = ConnSlot {
            fd: socket.into_raw_fd(),
            receive_error: 0,
            send_error: 0,
            unread: Unread::EMPTY,
            spilled: None,
            reader: None,
            flusher: None,
            sending: None,
            receive_armed: false,
            send_armed: false,
            listed: false,
            starved: false,
            ended: false,
            abandoned: false,
        };
        Conn { shared: self.clone(), key: self.conns.borrow_mut().insert(slot) as u32 }
    }

    // ---- the driver's side -------------------------------------------------

    /// Hands the kernel the sends that were queued since the last turn: one per connection.
    pub(crate) fn push_sends(&self) {
        // The list is swapped out and back so that neither of the two vectors is ever allocated anew.
        let mut keys = self.to_send.take();
        for key in keys.drain(..) {
            let mut conns = self.conns.borrow_mut();
            let slot = &mut conns[key as usize];
            slot.listed = false;
            if slot.abandoned {
                self.remove_if_done(&mut conns, key);
                continue;
            }
            if slot.send_armed || slot.send_error != 0 {
                continue;
            }
            if let Some(sending) = &mut slot.sending {
                let entry = sending.entry(types::Fd(slot.fd)).user_data(Tag::Send.with(key));
                slot.send_armed = true;
                self.armed.set(self.armed.get() + 1);
                // SAFETY: the slot keeps the pieces, the slices and the header in place until the completion.
                unsafe { self.kernel.push(entry) };
            }
        }
        keys.append(&mut self.to_send.borrow_mut());
        self.to_send.replace(keys);
    }

    /// Lets readers that found the arena empty try again: no more of them than there are buffers.
    pub(crate) fn arm_starved(&self) {
        for _ in 0..self.arena.free() {
            let Some(key) = self.starved.borrow_mut().pop_front() else { return };
            let mut conns = self.conns.borrow_mut();
            // A connection leaves the list only here, so its slot is still its own.
            let slot = &mut conns[key as usize];
            slot.starved = false;
            if slot.abandoned {
                self.remove_if_done(&mut conns, key);
            } else if slot.reader.is_some() && !slot.receive_armed && !slot.ended {
                self.arm_receive(slot, key);
            }
        }
    }

    fn arm_receive(&self, slot: &mut ConnSlot, key: u32) {
        let fd = types::Fd(slot.fd);
        let entry = if self.window_works {
            windowed_receive(fd, self.window_bytes)
        } else {
            // One buffer at most, which is no more than the window.
            opcode::Recv::new(fd, std::ptr::null_mut(), 0).buf_group(GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
        };
        slot.receive_armed = true;
        self.armed.set(self.armed.get() + 1);
        // SAFETY: it names no memory but the arena's.
        unsafe { self.kernel.push(entry.user_data(Tag::Receive.with(key))) };
    }

    pub(crate) fn complete_receive(&self, key: u32, result: i32, flags: u32) -> bool {
        let buffer = cqueue::buffer_select(flags);
        if buffer.is_some() {
            self.arena.taken();
        }
        let mut conns = self.conns.borrow_mut();
        let slot = &mut conns[key as usize];
        slot.receive_armed = cqueue::more(flags);
        match buffer {
            Some(bid) if result > 0 && !slot.abandoned => {
                self.arena.append(&mut slot.unread, bid, result as u32);
                // Its task waits for something else, or has still to run.
                if slot.reader.is_none() && self.arena.is_short() {
                    self.spill(slot);
                }
            }
            Some(bid) => self.arena.give_back(bid),
            None => {}
        }
        if slot.abandoned {
            self.remove_if_done(&mut conns, key);
            return false;
        }
        match -result {
            0 => slot.ended = true,
            _ if result > 0 => {}
            // Not failures: the reader arms it anew.
            libc::ENOBUFS | libc::EINTR | libc::EAGAIN => {
                if !slot.receive_armed && slot.reader.is_some() && !slot.starved {
                    slot.starved = true;
                    self.starved.borrow_mut().push_back(key);
                }
                return false;
            }
            errno => {
                slot.ended = true;
                slot.receive_error = if self.is_shut_down() { libc::ESHUTDOWN } else { errno };
            }
        }
        let reader = slot.reader.take();
        drop(conns);
        reader.map(Waker::wake).is_some()
    }

    pub(crate) fn complete_send(&self, key: u32, result: i32) -> bool {
        let mut conns = self.conns.borrow_mut();
        let slot = &mut conns[key as usize];
        slot.send_armed = false;
        if slot.abandoned {
            let spent = slot.sending.take();
            self.remove_if_done(&mut conns, key);
            drop(conns);
            spent.into_iter().for_each(|queue| self.sends.borrow_mut().put_queue(queue));
            return false;
        }
        let sending = slot.sending.as_mut().expect("a send in the kernel has its queue");
        let spent;
        if result < 0 && ![libc::EINTR, libc::EAGAIN].contains(&-result) {
            slot.send_error = if self.is_shut_down() { libc::ESHUTDOWN } else { -result };
            spent = slot.sending.take();
        } else if sending.sent(result.max(0) as usize, &mut self.sends.borrow_mut()) {
            spent = slot.sending.take();
        } else {
            self.list_to_send(slot, key);
            return false;
        }
        let flusher = slot.flusher.take();
        drop(conns);
        spent.into_iter().for_each(|queue| self.sends.borrow_mut().put_queue(queue));
        flusher.map(Waker::wake).is_some()
    }

    fn list_to_send(&self, slot: &mut ConnSlot, key: u32) {
        if !slot.listed {
            slot.listed = true;
            self.to_send.borrow_mut().push(key);
        }
    }

    fn remove_if_done(&self, conns: &mut slab::Slab<ConnSlot>, key: u32) {
        let slot = &conns[key as usize];
        // While a list names it the slot stays, or the list would mean its successor.
        if slot.abandoned && !slot.receive_armed && !slot.send_armed && !slot.listed && !slot.starved {
            conns.remove(key as usize);
        }
    }
}

impl Conn {
    fn slot<T>(&self, act: impl FnOnce(&mut ConnSlot) -> T) -> T {
        act(&mut self.shared.conns.borrow_mut()[self.key as usize])
    }

    // ---- reading -----------------------------------------------------------

    /// Waits for bytes. `None`: the peer will send no more. An error ends reading for good, and comes again with each call.
    ///
    /// Dropping the future loses nothing.
    pub async fn read(&self) -> io::Result<Option<Received>> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// `read` for those who poll.
    pub fn poll_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Received>>> {
        if let Some(ready) = self.try_read() {
            return Poll::Ready(ready);
        }
        let mut conns = self.shared.conns.borrow_mut();
        let slot = &mut conns[self.key as usize];
        let before = match &slot.reader {
            Some(waker) if waker.will_wake(cx.waker()) => None,
            _ => slot.reader.replace(cx.waker().clone()),
        };
        if self.shared.is_shut_down() {
            return Poll::Ready(Err(io::Error::from_raw_os_error(libc::ESHUTDOWN)));
        }
        if !slot.receive_armed && !slot.starved {
            if self.shared.arena.free() == 0 {
                slot.starved = true;
                self.shared.starved.borrow_mut().push_back(self.key);
            } else {
                self.shared.arm_receive(slot, self.key);
            }
        }
        drop(conns);
        drop(before);
        Poll::Pending
    }

    /// Takes what has already arrived on the ring, without waiting and without asking the kernel for more: only `read` does that.
    pub fn try_read(&self) -> Option<io::Result<Option<Received>>> {
        let mut conns = self.shared.conns.borrow_mut();
        let slot = &mut conns[self.key as usize];
        if slot.spilled.is_some()
            && let Some(piece) = self.shared.take_spilled(slot)
        {
            return Some(Ok(Some(Received::copied(piece))));
        }
        if let Some((bid, len)) = self.shared.arena.pop(&mut slot.unread) {
            return Some(Ok(Some(Received::lent(self.shared.clone(), bid, len))));
        }
        match (slot.ended, slot.receive_error) {
            (false, _) => None,
            (true, 0) => Some(Ok(None)),
            (true, errno) => Some(Err(io::Error::from_raw_os_error(errno))),
        }
    }

    /// Bytes that have arrived on the ring and are not read: at most a window and one buffer.
    pub fn unread_bytes(&self) -> usize {
        self.slot(|slot| slot.unread.bytes() as usize)
    }

    // ---- sending -----------------------------------------------------------

    /// Queues bytes. All that is queued in one turn of the ring leaves as one send.
    ///
    /// # Errors
    /// The error that ended sending, or `WouldBlock` with [`PIECES_MAX`](crate::PIECES_MAX) pieces queued: flush first. The bytes are
    /// dropped. Errors of this send itself are told by `flush`, or by the next `send`.
    pub fn send(&self, bytes: impl Into<SendBuf>) -> io::Result<()> {
        if self.shared.is_shut_down() {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        let bytes = bytes.into();
        let mut conns = self.shared.conns.borrow_mut();
        let slot = &mut conns[self.key as usize];
        if slot.send_error != 0 {
            return Err(io::Error::from_raw_os_error(slot.send_error));
        }
        let mut pool = self.shared.sends.borrow_mut();
        let mut sending = slot.sending.take().unwrap_or_else(|| pool.take_queue());
        let queued = sending.queue(bytes, &mut pool);
        if sending.bytes() == 0 {
            pool.put_queue(sending);
        } else {
            slot.sending = Some(sending);
            if !slot.send_armed {
                self.shared.list_to_send(slot, self.key);
            }
        }
        drop(pool);
        drop(conns);
        queued.map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))
    }

    /// Waits until all that was queued has been taken by the kernel's socket. An error ends sending for good.
    pub async fn flush(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// `flush` for those who poll.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut conns = self.shared.conns.borrow_mut();
        let slot = &mut conns[self.key as usize];
        if slot.send_error != 0 {
            return Poll::Ready(Err(io::Error::from_raw_os_error(slot.send_error)));
        }
        if slot.sending.is_none() {
            return Poll::Ready(Ok(()));
        }
        if self.shared.is_shut_down() {
            return Poll::Ready(Err(io::Error::from_raw_os_error(libc::ESHUTDOWN)));
        }
        let before = slot.flusher.replace(cx.waker().clone());
        drop(conns);
        drop(before);
        Poll::Pending
    }

    /// Bytes queued or in the kernel's hands that its socket has not taken yet.
    pub fn unsent_bytes(&self) -> usize {
        self.slot(|slot| slot.sending.as_ref().map_or(0, |sending| sending.bytes()))
    }

    /// Octets that the peer's system has acknowledged since the connection was made; none where it is not TCP. One system call.
    pub fn acked_bytes(&self) -> Option<u64> {
        socket::acked_bytes(self.as_raw_fd())
    }

    /// Tells the peer that nothing more will come, after what was flushed.
    pub fn shutdown_write(&self) -> io::Result<()> {
        socket::shut_down(self.as_raw_fd(), Shutdown::Write)
    }

    /// Closes with a reset instead of an orderly end; what is not sent is thrown away.
    pub fn abort(self) {
        // Best effort: should it fail, the close that follows is an orderly one.
        let _ = socket::reset_on_close(self.as_raw_fd());
    }

    // ---- the socket --------------------------------------------------------

    /// Who is at the other end. One system call.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        socket::peer_addr(self.as_raw_fd())
    }

    /// The address it was accepted on or connected from. One system call.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        socket::local_addr(self.as_raw_fd())
    }
}

impl AsRawFd for Conn {
    fn as_raw_fd(&self) -> RawFd {
        self.slot(|slot| slot.fd)
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("fd", &self.as_raw_fd()).field("unsent_bytes", &self.unsent_bytes()).finish()
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let shared = &self.shared;
        let mut conns = shared.conns.borrow_mut();
        let slot = &mut conns[self.key as usize];
        slot.abandoned = true;
        let wakers = (slot.reader.take(), slot.flusher.take());
        while shared.take_spilled(slot).is_some() {}
        let mut unread = std::mem::replace(&mut slot.unread, Unread::EMPTY);
        let (fd, receive_armed, send_armed) = (slot.fd, slot.receive_armed, slot.send_armed);
        // What the kernel has is its own until it answers; what it has not will not be sent.
        let unsent = if send_armed { None } else { slot.sending.take() };
        shared.remove_if_done(&mut conns, self.key);
        drop(conns);
        while let Some((bid, _)) = shared.arena.pop(&mut unread) {
            shared.give_back(bid);
        }
        unsent.into_iter().for_each(|queue| shared.sends.borrow_mut().put_queue(queue));
        drop(wakers);
        if shared.is_shut_down() {
            // SAFETY: the descriptor is the connection's, which ends here.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            return;
        }
        // Requests hold the socket open, so they end before it can.
        if receive_armed {
            shared.push_cancel(Tag::Receive.with(self.key));
        }
        if send_armed {
            shared.push_cancel(Tag::Send.with(self.key));
        }
        let close = opcode::Close::new(types::Fd(fd)).build().flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: it names no memory.
        unsafe { shared.kernel.push(close.user_data(Tag::Forget.with(0))) };
    }
}
