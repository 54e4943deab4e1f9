//! A listening socket: connections are accepted ahead, by one request that stays armed.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use io_uring::{cqueue, opcode, types};

use crate::{conn::Conn, ring::Shared, slot::Tag, socket};

/// Connections accepted ahead of the task that takes them. Beyond this they wait in the kernel's backlog.
const AHEAD_MAX: usize = 256;

pub(crate) struct ListenerSlot {
    /// Descriptors, or negative errno.
    accepted: VecDeque<i32>,
    waiter: Option<Waker>,
    armed: bool,
    /// It is being cancelled because too many wait.
    held: bool,
    abandoned: bool,
}

impl ListenerSlot {
    pub(crate) fn take_waker(&mut self) -> Option<Waker> {
        self.waiter.take()
    }
}

/// A connection that was accepted and that no ring drives yet: it may cross threads. Closed when dropped.
#[derive(Debug)]
pub struct Accepted(OwnedFd);

impl Accepted {
    /// Who is at the other end. One system call.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        socket::peer_addr(self.0.as_raw_fd())
    }

    pub(crate) fn into_socket(self) -> OwnedFd {
        self.0
    }
}

/// Accepts connections on one socket. Dropping it closes the socket, and the connections that nobody took.
pub struct Listener {
    shared: Rc<Shared>,
    key: u32,
    socket: OwnedFd,
}

impl Shared {
    pub(crate) fn listen(self: &Rc<Self>, socket: OwnedFd) -> Listener {
        let slot = ListenerSlot { accepted: VecDeque::new(), waiter: None, armed: false, held: false, abandoned: false };
        Listener { shared: self.clone(), key: self.listeners.borrow_mut().insert(slot) as u32, socket }
    }

    pub(crate) fn complete_accept(&self, key: u32, result: i32, flags: u32) -> bool {
        let mut listeners = self.listeners.borrow_mut();
        let slot = &mut listeners[key as usize];
        slot.armed = cqueue::more(flags);
        if slot.abandoned {
            close_accepted(result);
            if !slot.armed {
                listeners.remove(key as usize);
            }
            return false;
        }
        let own_cancel = slot.held && result == -libc::ECANCELED;
        slot.held &= slot.armed;
        if !own_cancel {
            slot.accepted.push_back(result);
            if slot.accepted.len() >= AHEAD_MAX && slot.armed && !slot.held {
                slot.held = true;
                self.push_cancel(Tag::Accept.with(key));
            }
        }
        let waiter = slot.waiter.take();
        drop(listeners);
        waiter.map(Waker::wake).is_some()
    }
}

fn close_accepted(result: i32) {
    if result >= 0 {
        // SAFETY: the kernel accepted it for us, and nobody else knows of it.
        drop(unsafe { OwnedFd::from_raw_fd(result) });
    }
}

impl Listener {
    /// Waits for a connection. Dropping the future loses none.
    ///
    /// # Errors
    /// What accept(2) says. The listener goes on: the next call asks the kernel again. Out of descriptors (EMFILE, ENFILE) it would say
    /// so again at once, so wait before that; a peer that gave up meanwhile (ECONNABORTED) is no reason to.
    pub async fn accept(&self) -> io::Result<Conn> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// `accept` for those who poll.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Conn>> {
        self.poll_accepted(cx).map_ok(|accepted| self.shared.adopt(accepted.into_socket()))
    }

    /// As `poll_accept`, and the connection may still be given to the ring of another thread: see [`Ring::take_in`](crate::Ring::take_in).
    pub fn poll_accepted(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let mut listeners = self.shared.listeners.borrow_mut();
        let slot = &mut listeners[self.key as usize];
        match slot.accepted.pop_front() {
            Some(fd) if fd >= 0 => {
                drop(listeners);
                // SAFETY: the kernel accepted it for us, and it has just left the slot's list.
                return Poll::Ready(Ok(Accepted(unsafe { OwnedFd::from_raw_fd(fd) })));
            }
            Some(errno) => return Poll::Ready(Err(io::Error::from_raw_os_error(-errno))),
            None => {}
        }
        if self.shared.is_shut_down() {
            return Poll::Ready(Err(io::Error::from_raw_os_error(libc::ESHUTDOWN)));
        }
        let before = slot.waiter.replace(cx.waker().clone());
        if !slot.armed {
            slot.armed = true;
            self.shared.armed.set(self.shared.armed.get() + 1);
            let entry = opcode::AcceptMulti::new(types::Fd(self.socket.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build();
            // SAFETY: it names no memory.
            unsafe { self.shared.kernel.push(entry.user_data(Tag::Accept.with(self.key))) };
        }
        drop(listeners);
        drop(before);
        Poll::Pending
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("fd", &self.socket.as_raw_fd()).finish()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut listeners = self.shared.listeners.borrow_mut();
        let slot = &mut listeners[self.key as usize];
        slot.abandoned = true;
        slot.accepted.drain(..).for_each(close_accepted);
        let waiter = slot.waiter.take();
        let armed = slot.armed;
        if !armed {
            listeners.remove(self.key as usize);
        }
        drop(listeners);
        drop(waiter);
        if armed {
            self.shared.push_cancel(Tag::Accept.with(self.key));
        }
    }
}
